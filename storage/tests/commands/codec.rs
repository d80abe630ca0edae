//! The bytes of commands and effects: fixed for good, and refused when anything is wrong with them.

use crate::commands_support::Random;
use dogsled_storage::codec::{
    Listed, Malformed, decode_command, decode_effects, encode_command, encode_effects,
};
use dogsled_storage::command::{KeyRead, RangeRead};
use dogsled_storage::compare::{Comparison, Condition};
use dogsled_storage::counter::{CounterAddition, CounterCommand};
use dogsled_storage::hashes::{HashAction, HashId};
use dogsled_storage::lock::{FencingToken, LockCommand, LockRequest};
use dogsled_storage::strings::{SetOnly, StringAction, StringsOperation};
use dogsled_storage::{
    Command, Effect, Error, ExpiryCommand, IVec, OwnedCommand, SessionId, SetIf, TreeId, When, Write,
};

/// The encoding of each command. A test that fails here has broken every log and every peer out
/// there: give the format a new version instead.
#[test]
fn commands_have_the_bytes_they_always_had() {
    let tree = TreeId(16);
    let put = Write { tree, key: "k".into(), value: Some("v".into()) };
    let remove = Write { tree: TreeId(300), key: "".into(), value: None };
    let golden: Vec<(Command, &[u8])> = vec![
        (Command::CreateTree { name: "t".into() }, b"\x01\x00\x01t"),
        (Command::DropTree { name: "t".into() }, b"\x01\x01\x01t"),
        (Command::ClearTree { tree }, b"\x01\x02\x10"),
        (Command::Insert { tree, key: "k".into(), value: "val".into() }, b"\x01\x03\x10\x01k\x03val"),
        (Command::Remove { tree, key: "k".into() }, b"\x01\x04\x10\x01k"),
        (
            Command::CompareAndSwap { tree, key: "k".into(), old: None, new: Some("v".into()) },
            b"\x01\x05\x10\x01k\x00\x01\x01v",
        ),
        (
            Command::Batch { writes: vec![put.clone(), remove] },
            b"\x01\x06\x02\x10\x01k\x01\x01v\xfb\x2c\x01\x00\x00",
        ),
        (Command::Pop { tree, last: true }, b"\x01\x07\x10\x01"),
        (
            Command::Transact {
                reads: vec![KeyRead { tree, key: "k".into(), version: 70_000 }],
                ranges: vec![RangeRead {
                    tree,
                    low: "a".into(),
                    high: Some("b".into()),
                    count: 2,
                    fingerprint: u64::MAX,
                }],
                writes: vec![put],
                expiries: vec![ExpiryCommand::Clear { tree, key: "k".into() }],
            },
            b"\x01\x08\x01\x10\x01k\xfc\x70\x11\x01\x00\
              \x01\x10\x01a\x01\x01b\x02\xfd\xff\xff\xff\xff\xff\xff\xff\xff\
              \x01\x10\x01k\x01\x01v\x01\x03\x10\x01k",
        ),
        (Command::ReserveIds { count: 250 }, b"\x01\x09\xfa"),
        (Command::Counter(CounterCommand::Add { name: "c".into(), delta: -1 }), b"\x01\x0a\x00\x01c\x01"),
        (
            Command::Counter(CounterCommand::AddWithin { name: "c".into(), delta: 1, min: -2, max: 200 }),
            b"\x01\x0a\x01\x01c\x02\x03\xfb\x90\x01",
        ),
        (Command::Counter(CounterCommand::Get { name: "c".into() }), b"\x01\x0a\x02\x01c"),
        (Command::Counter(CounterCommand::Set { name: "c".into(), value: 3 }), b"\x01\x0a\x03\x01c\x06"),
        (Command::Counter(CounterCommand::Remove { name: "c".into() }), b"\x01\x0a\x04\x01c"),
        (
            Command::Lock(LockCommand::TryAcquire { name: "l".into(), owner: "ann".into(), lease_ms: 500 }),
            b"\x01\x0b\x00\x01l\x03ann\xfb\xf4\x01",
        ),
        (
            Command::Lock(LockCommand::Renew {
                name: "l".into(),
                owner: "ann".into(),
                token: FencingToken(7),
                lease_ms: 1,
            }),
            b"\x01\x0b\x01\x01l\x03ann\x07\x01",
        ),
        (
            Command::Lock(LockCommand::Release {
                name: "l".into(),
                owner: "ann".into(),
                token: FencingToken(7),
            }),
            b"\x01\x0b\x02\x01l\x03ann\x07",
        ),
        (Command::Lock(LockCommand::Expire { name: "l".into() }), b"\x01\x0b\x03\x01l"),
        (
            Command::Lock(LockCommand::Acquire {
                name: "l".into(),
                owner: "ann".into(),
                request: LockRequest { permits: 1, capacity: u32::MAX, lease_ms: 5, delay_ms: 6 },
                wait_ms: 7,
            }),
            b"\x01\x0b\x04\x01l\x03ann\x01\xfc\xff\xff\xff\xff\x05\x06\x07",
        ),
        (
            Command::Lock(LockCommand::RenewWait { name: "l".into(), ticket: 3, wait_ms: 7 }),
            b"\x01\x0b\x05\x01l\x03\x07",
        ),
        (Command::Lock(LockCommand::CancelWait { name: "l".into(), ticket: 3 }), b"\x01\x0b\x06\x01l\x03"),
        (
            Command::Counter(CounterCommand::SetIf { name: "c".into(), expected: -1, value: 1 }),
            b"\x01\x0a\x05\x01c\x01\x02",
        ),
        (Command::Put { tree, key: "k".into(), value: "v".into() }, b"\x01\x0c\x10\x01k\x01v"),
        (
            Command::CountMany { additions: vec![CounterAddition { name: "c".into(), delta: -1 }] },
            b"\x01\x0d\x01\x01c\x01",
        ),
        (
            Command::Expiry(ExpiryCommand::Insert {
                tree,
                key: "k".into(),
                value: "v".into(),
                when: When::After(5),
            }),
            b"\x01\x0e\x00\x10\x01k\x01v\x00\x05",
        ),
        (
            Command::Expiry(ExpiryCommand::Swap {
                tree,
                key: "k".into(),
                old: None,
                new: "v".into(),
                when: When::Keep,
            }),
            b"\x01\x0e\x01\x10\x01k\x00\x01v\x02",
        ),
        (
            Command::Expiry(ExpiryCommand::Set {
                tree,
                key: "k".into(),
                when: When::At(9),
                only: SetIf::Earlier,
            }),
            b"\x01\x0e\x02\x10\x01k\x01\x09\x04",
        ),
        (Command::Expiry(ExpiryCommand::Clear { tree, key: "k".into() }), b"\x01\x0e\x03\x10\x01k"),
        (Command::Expiry(ExpiryCommand::Get { tree, key: "k".into() }), b"\x01\x0e\x04\x10\x01k"),
        (
            Command::Expiry(ExpiryCommand::Strings {
                tree,
                key: "k".into(),
                actions: Listed(vec![StringAction::Delete, StringAction::Add { delta: 1 }]),
            }),
            b"\x01\x0e\x05\x10\x01k\x02\x07\x0c\x02",
        ),
        (
            Command::Expiry(ExpiryCommand::Lock {
                tree,
                command: LockCommand::Release { name: "l".into(), owner: "o".into(), token: FencingToken(4) },
            }),
            b"\x01\x0e\x06\x10\x02\x01l\x01o\x04",
        ),
        (
            Command::Expiry(ExpiryCommand::Held { tree, key: "l".into(), token: FencingToken(4) }),
            b"\x01\x0e\x07\x10\x01l\x04",
        ),
        (
            Command::Expiry(ExpiryCommand::Lives { tree, key: "k".into(), at_ms: Some(9) }),
            b"\x01\x0e\x08\x10\x01k\x01\x09",
        ),
        (
            Command::Expiry(ExpiryCommand::Owned {
                tree,
                key: "k".into(),
                value: "v".into(),
                session: Some(SessionId(3)),
                is_numbered: true,
            }),
            b"\x01\x0e\x09\x10\x01k\x01v\x01\x03\x01",
        ),
        (
            Command::Owned(OwnedCommand::Insert {
                tree,
                key: "k".into(),
                value: "v".into(),
                session: SessionId(3),
            }),
            b"\x01\x10\x00\x10\x01k\x01v\x03",
        ),
        (
            Command::Owned(OwnedCommand::InsertNext {
                tree,
                prefix: "p".into(),
                value: "v".into(),
                session: None,
            }),
            b"\x01\x10\x01\x10\x01p\x01v\x00",
        ),
        (
            Command::Owned(OwnedCommand::SetNext { tree, prefix: "p".into(), next: "12345678".into() }),
            b"\x01\x10\x02\x10\x01p\x0812345678",
        ),
        (Command::SettleDue { limit: 7 }, b"\x01\x0f\x07"),
    ];
    // Apart, because what is in it is told by its own module.
    let comparison = |condition| Comparison { tree, key: "k".into(), condition };
    let compare = Command::Compare {
        comparisons: vec![
            comparison(Condition::Present),
            comparison(Condition::Absent),
            comparison(Condition::Is("v".into())),
            comparison(Condition::IsNot("v".into())),
            comparison(Condition::Less("v".into())),
            comparison(Condition::Greater("v".into())),
            comparison(Condition::Version(7)),
        ],
        then: vec![Write { tree, key: "k".into(), value: Some("v".into()) }],
        otherwise: vec![],
    };
    let bytes = b"\x01\x11\x07\x10\x01k\x00\x10\x01k\x01\x10\x01k\x02\x01v\x10\x01k\x03\x01v\
                  \x10\x01k\x04\x01v\x10\x01k\x05\x01v\x10\x01k\x06\x07\x01\x10\x01k\x01\x01v\x00";
    let operation = |action| StringsOperation { tree, key: "k".into(), action };
    let (value, after) = (IVec::from("v"), Some(When::After(5)));
    let strings = Command::Strings {
        watched: vec![KeyRead { tree, key: "k".into(), version: 7 }],
        operations: vec![
            operation(StringAction::Get),
            operation(StringAction::Length),
            operation(StringAction::Range { start: 0, end: -1 }),
            operation(StringAction::Exists),
            operation(StringAction::Expires),
            operation(StringAction::Set {
                value: value.clone(),
                only: SetOnly::Absent,
                when: after,
                get: true,
            }),
            operation(StringAction::RequireAbsent { first: true }),
            operation(StringAction::Delete),
            operation(StringAction::Take),
            operation(StringAction::GetAndExpire { when: None }),
            operation(StringAction::Append { value: value.clone() }),
            operation(StringAction::Overwrite { offset: 3, value: value.clone() }),
            operation(StringAction::Add { delta: -1 }),
            operation(StringAction::AddFloat { delta: value }),
            operation(StringAction::Expire { when: When::Keep, only: SetIf::None, only_some: false }),
            operation(StringAction::Persist),
            operation(StringAction::Transfer { tree, key: "l".into(), copy: true, replace: false }),
        ],
    };
    let of_strings =
        b"\x01\x12\x01\x10\x01k\x07\x11\x10\x01k\x00\x10\x01k\x01\x10\x01k\x02\x00\x01\x10\x01k\x03\
                       \x10\x01k\x04\x10\x01k\x05\x01v\x01\x01\x00\x05\x01\x10\x01k\x06\x01\x10\x01k\x07\
                       \x10\x01k\x08\x10\x01k\x09\x00\x10\x01k\x0a\x01v\x10\x01k\x0b\x03\x01v\
                       \x10\x01k\x0c\x01\x10\x01k\x0d\x01v\x10\x01k\x0e\x02\x01\x00\x10\x01k\x0f\
                       \x10\x01k\x10\x10\x01l\x01\x00";
    let one = || IVec::from("f");
    let hash = |action| operation(StringAction::Hash(action));
    let hashes = Command::Strings {
        watched: vec![],
        operations: vec![
            operation(StringAction::Kind),
            operation(StringAction::Suspect { id: HashId { base: 7, ordinal: 2 } }),
            operation(StringAction::Clear),
            hash(HashAction::Set { pairs: Listed(vec![(one(), "v".into())]) }),
            hash(HashAction::SetAbsent { field: one(), value: "v".into() }),
            hash(HashAction::Get { field: one() }),
            hash(HashAction::GetMany { fields: Listed(vec![one()]) }),
            hash(HashAction::Delete { fields: Listed(vec![one()]) }),
            hash(HashAction::Exists { field: one() }),
            hash(HashAction::Length),
            hash(HashAction::ValueLength { field: one() }),
            hash(HashAction::All),
            hash(HashAction::Page { after: Some(one()), limit: 9 }),
            hash(HashAction::Add { field: one(), delta: -1 }),
            hash(HashAction::AddFloat { field: one(), delta: "v".into() }),
            operation(StringAction::Tell { value: "v".into() }),
        ],
    };
    let of_hashes = b"\x01\x12\x00\x10\x10\x01k\x11\x10\x01k\x13\x07\x02\x10\x01k\x14\
                      \x10\x01k\x12\x00\x01\x01f\x01v\x10\x01k\x12\x01\x01f\x01v\x10\x01k\x12\x02\x01f\
                      \x10\x01k\x12\x03\x01\x01f\x10\x01k\x12\x04\x01\x01f\x10\x01k\x12\x05\x01f\
                      \x10\x01k\x12\x06\x10\x01k\x12\x07\x01f\x10\x01k\x12\x08\x10\x01k\x12\x09\x01\x01f\x09\
                      \x10\x01k\x12\x0a\x01f\x01\x10\x01k\x12\x0b\x01f\x01v\x10\x01k\x15\x01v";
    let more = [(compare, &bytes[..]), (strings, &of_strings[..]), (hashes, &of_hashes[..])];
    let golden = golden.into_iter().chain(more);
    for (command, bytes) in golden {
        let encoded = encode_command(&command).unwrap();
        assert!(encoded == bytes, "{command:?} is \"{}\" now", encoded.escape_ascii());
        assert_eq!(decode_command(bytes).unwrap(), command);
    }
}

#[test]
fn effects_have_the_bytes_they_always_had() {
    let tree = TreeId(16);
    let golden: [(Effect, &[u8]); 9] = [
        (
            Effect::Put { tree, key: "k".into(), value: "val".into(), fresh: Some(false) },
            b"\x01\x10\x01\x03kval",
        ),
        (
            Effect::Put { tree: TreeId(u32::MAX), key: "".into(), value: vec![b'x'; 128].into(), fresh: Some(true) },
            b"\x81\xff\xff\xff\xff\x0f\x00\x80\x01xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx\
              xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        ),
        (Effect::Remove { tree, key: "k".into() }, b"\x02\x10\x01k"),
        (Effect::Clear { tree }, b"\x03\x10"),
        (Effect::CreateTree { id: tree, name: "t".into() }, b"\x04\x10\x01t"),
        (Effect::DropTree { id: tree }, b"\x05\x10"),
        (Effect::SetNextId { next: u64::MAX }, b"\x06\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"),
        (Effect::Put { tree, key: "k".into(), value: "val".into(), fresh: None }, b"\x07\x10\x01\x03kval"),
        (Effect::Tell { tree, key: "k".into(), value: "val".into() }, b"\x08\x10\x01\x03kval"),
    ];
    let head = b"\x01\x80\xa0\xef\xf3\xb3\x33";
    let time_ms = 1_766_279_860_224;
    for (effect, bytes) in &golden {
        let expected = [&head[..], &[1], bytes].concat();
        assert_eq!(
            encoded(time_ms, std::slice::from_ref(effect)).escape_ascii().to_string(),
            expected.escape_ascii().to_string()
        );
    }
    let all: Vec<Effect> = golden.iter().map(|(effect, _)| effect.clone()).collect();
    let bytes: Vec<&[u8]> = golden.iter().map(|(_, bytes)| *bytes).collect();
    assert_eq!(encoded(time_ms, &all), [&head[..], &[9], &bytes.concat()].concat());
}

fn encoded(time_ms: u64, effects: &[Effect]) -> Vec<u8> {
    let mut bytes = Vec::new();
    encode_effects(time_ms, effects, &mut bytes);
    bytes
}

fn decoded(bytes: &[u8]) -> Result<(u64, Vec<Effect>), Malformed> {
    let (time_ms, effects) = decode_effects(bytes)?;
    Ok((time_ms, effects.to_owned()?.into_vec()))
}

#[test]
fn random_commands_come_back_as_they_went() {
    for seed in 0..5_000 {
        let command = Random(seed).command();
        let bytes = encode_command(&command).unwrap();
        assert_eq!(decode_command(&bytes).unwrap(), command, "seed {seed}");
    }
}

#[test]
fn random_effects_come_back_as_they_went_behind_what_was_there() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let time_ms = random.number();
        let effects: Vec<Effect> = (0..random.below(6)).map(|_| random.effect()).collect();
        let mut bytes = b"before".to_vec();
        encode_effects(time_ms, &effects, &mut bytes);
        assert_eq!(&bytes[..6], b"before");
        assert_eq!(decoded(&bytes[6..]), Ok((time_ms, effects)), "seed {seed}");
    }
}

/// Also the last effect may not be cut at its border: the count tells.
#[test]
fn every_truncation_is_an_error() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let command = encode_command(&random.command()).unwrap();
        let effects: Vec<Effect> = (0..1 + random.below(4)).map(|_| random.effect()).collect();
        let record = encoded(random.number(), &effects);
        // Of long ones, the first and last bytes and some between.
        let lengths =
            |length: usize| (0..length).filter(move |at| *at < 60 || length - at < 60 || at % 97 == 0);
        for length in lengths(command.len()) {
            let error = decode_command(&command[..length]).unwrap_err();
            assert!(matches!(error, Error::InvalidRequest(_)), "seed {seed}, {length} bytes: {error}");
        }
        for length in lengths(record.len()) {
            let error = decoded(&record[..length]).unwrap_err();
            assert!(error.offset <= length, "seed {seed}, {length} bytes: {error}");
        }
    }
}

#[test]
fn bytes_left_over_are_an_error() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut command = encode_command(&random.command()).unwrap();
        command.push(random.next() as u8);
        assert!(
            decode_command(&command).unwrap_err().to_string().contains("1 bytes left over"),
            "seed {seed}"
        );

        let mut record = encoded(0, &[random.effect()]);
        let offset = record.len();
        record.push(random.next() as u8);
        let error = decoded(&record).unwrap_err();
        assert_eq!((error.offset, &error.what[..]), (offset, "1 bytes after the last effect"), "seed {seed}");
    }
}

/// Flips of bits, and random bytes behind a good beginning: an error or some other value, and for
/// effects only a value that encodes to the very same bytes.
#[test]
fn damaged_bytes_never_panic_and_effects_have_one_encoding() {
    for seed in 0..2_000 {
        let mut random = Random(seed);
        let mut command = encode_command(&random.command()).unwrap();
        let mut record = encoded(random.number(), &[random.effect(), random.effect()]);
        for _ in 0..20 {
            for bytes in [&mut command, &mut record] {
                // Half of the flips in the first bytes, where the lengths are.
                let end = if random.coin() { bytes.len().min(40) } else { bytes.len() };
                let at = random.below(end as u64) as usize;
                bytes[at] ^= 1 << random.below(8);
            }
            let _ = decode_command(&command);
            if let Ok((time_ms, effects)) = decoded(&record) {
                assert_eq!(encoded(time_ms, &effects), record, "seed {seed}");
            }
        }
        let noise: Vec<u8> =
            [1].into_iter().chain((0..random.below(40)).map(|_| random.below(20) as u8)).collect();
        let _ = decode_command(&noise);
        if let Ok((time_ms, effects)) = decoded(&noise) {
            assert_eq!(encoded(time_ms, &effects), noise, "seed {seed}");
        }
    }
}

/// What is wrong, and at which byte of the record.
#[test]
fn malformed_effects_are_told_with_their_place() {
    let cases: [(&[u8], &str); 20] = [
        (b"", "byte 0 of the record: the record ends before the format version"),
        (b"\x02", "byte 0 of the record: effects of format version 2; this build reads 1"),
        (b"\x01", "byte 1 of the record: the record ends before the time"),
        (b"\x01\x80", "byte 2 of the record: the record ends before the time"),
        (b"\x01\x80\x00\x00", "byte 1 of the record: the time is not in its shortest form"),
        (
            b"\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02\x00",
            "byte 1 of the record: the time is above 64 bits",
        ),
        (
            b"\x01\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01\x00",
            "byte 1 of the record: the time is above 64 bits",
        ),
        (b"\x01\x05", "byte 2 of the record: the record ends before the number of effects"),
        (b"\x01\x05\x02\x03\x10", "byte 2 of the record: 2 effects announced, with room for 1 at most"),
        (b"\x01\x05\x00\x03", "byte 3 of the record: 1 bytes after the last effect"),
        (b"\x01\x05\x01\x00\x00", "byte 3 of the record: no effect is of kind 0x00"),
        (b"\x01\x05\x01\x09\x00", "byte 3 of the record: no effect is of kind 0x09"),
        (b"\x01\x05\x01\x88\x00", "byte 3 of the record: no effect is of kind 0x88"),
        (b"\x01\x05\x01\x82\x00", "byte 3 of the record: no effect is of kind 0x82"),
        (b"\x01\x05\x01\x01\x10", "byte 5 of the record: the record ends before the length of a key"),
        (b"\x01\x05\x01\x02\x10\x02k", "byte 5 of the record: the length of a key is 2, with 1 bytes left"),
        (
            b"\x01\x05\x01\x01\x10\x01\x02kv",
            "byte 8 of the record: the record ends within a value: 2 bytes, 1 left",
        ),
        (
            b"\x01\x05\x01\x01\x10\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01kv",
            "byte 6 of the record: the length of a value is 18446744073709551615, with 2 bytes left",
        ),
        (
            b"\x01\x05\x01\x03\x80\x80\x80\x80\x10",
            "byte 4 of the record: 4294967296 is above any number of a tree",
        ),
        (b"\x01\x05\x02\x03\x10\x03", "byte 2 of the record: 2 effects announced, with room for 1 at most"),
    ];
    for (bytes, expected) in cases {
        let error = decoded(bytes).unwrap_err();
        assert_eq!(error.to_string(), format!("malformed at {expected}"), "{}", bytes.escape_ascii());
    }
}

#[test]
fn the_place_within_the_file_is_told() {
    let error = decoded(b"\x01\x05\x00\x03").unwrap_err().in_file("wal/0000000000000001.wal", 8192);
    let expected = "damaged data in wal/0000000000000001.wal at offset 8195: 1 bytes after the last effect; \
                    `dogsled repair` saves what is sound";
    assert_eq!(error.to_string(), expected);
}

#[test]
fn the_iterator_ends_after_its_first_error() {
    let (_, mut effects) = decode_effects(b"\x01\x05\x02\x09\x10\x03\x10").unwrap();
    assert_eq!(effects.remaining(), 2);
    assert!(effects.next().unwrap().is_err());
    assert!(effects.next().is_none());
}

#[test]
fn what_is_no_command_says_why() {
    let error = |bytes: &[u8]| decode_command(bytes).unwrap_err().to_string();
    assert_eq!(error(b""), "invalid request: not a command: no bytes");
    assert_eq!(
        error(b"\x02\x04\x00\x00"),
        "invalid request: not a command: format version 2 is not known, only 1"
    );
    let unknown = error(b"\x01\x63\x00");
    assert!(unknown.contains("UnexpectedVariant") && unknown.contains("99"), "{unknown}");
}
