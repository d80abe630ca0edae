//! The bytes of what a group of replicas exchanges: fixed for good, and refused when anything is
//! wrong with them.

use std::ops::Bound;

use crate::commands_support::Random;
use dogsled_storage::codec::{
    Listed, decode_group_command, decode_group_read, decode_group_read_reply, decode_group_reply,
    encode_group_command, encode_group_read, encode_group_read_reply, encode_group_reply,
};
use dogsled_storage::command::{KeyRead, RangeRead};
use dogsled_storage::counter::{CounterAddition, Sums};
use dogsled_storage::lock::{FencingToken, Holder, LockReply, Permit};
use dogsled_storage::transaction::{Commit, Prepare, Reason};
use dogsled_storage::{
    Answer, ChunkPosition, Command, Decision, Error, ExpiryCommand, ExpiryReply, Fence, GroupCommand,
    GroupRead, GroupReadReply, GroupReply, LockedBy, Measure, OpenSession, Operation, Owned, Part,
    QuotaExceeded, QuotaLimit, Refusal, Reply, SessionId, SessionTag, TransactionId, TreeId, TreeQuota,
    Versioned, Vote, When, Write,
};

fn command(operation: Operation) -> GroupCommand {
    GroupCommand { session: None, time_ms: 7, trees: Vec::new(), operation }
}

fn quota() -> TreeQuota {
    let limit = QuotaLimit { bytes: Some(300), entries: None };
    TreeQuota { tree: "t".into(), limit, bytes: 7, entries: 2 }
}

fn reply(result: Result<Answer, Refusal>) -> GroupReply {
    GroupReply { position: 3, time_ms: 7, result }
}

/// A test that fails here has broken every log and every peer out there: give the format a new
/// version instead.
#[test]
fn commands_of_a_group_have_the_bytes_they_always_had() {
    let tag = SessionTag { session: SessionId(0x0102), slot: 4, sequence: 5 };
    let put = Write { tree: TreeId(1), key: "k".into(), value: Some("v".into()) };
    let golden: Vec<(GroupCommand, &[u8])> = vec![
        (command(Operation::Nothing), b"\x03\x00\x07\x00\x00"),
        (
            GroupCommand {
                session: Some(tag),
                time_ms: 1_766_279_860_224,
                trees: vec!["a".into(), "".into()],
                operation: Operation::Command(Command::Batch { writes: vec![put] }),
            },
            b"\x03\x01\xfb\x02\x01\x04\x05\xfd\x00\xd0\x7b\x3e\x9b\x01\x00\x00\x02\x01a\x00\x01\x06\x01\x01\x01k\x01\x01v",
        ),
        (
            command(Operation::OpenSession { session: SessionId(u128::MAX), lease_ms: 300 }),
            b"\x03\x00\x07\x00\x02\xfe\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfb\x2c\x01",
        ),
        (command(Operation::RenewSession { session: SessionId(9) }), b"\x03\x00\x07\x00\x03\x09"),
        (
            command(Operation::Command(Command::SetQuota {
                name: "t".into(),
                limit: Some(QuotaLimit { bytes: None, entries: Some(9) }),
            })),
            b"\x03\x00\x07\x00\x01\x13\x01t\x01\x00\x01\x09",
        ),
        (command(Operation::CloseSession { session: SessionId(9) }), b"\x03\x00\x07\x00\x04\x09"),
        (command(Operation::ExpireSessions { led_ms: 9 }), b"\x03\x00\x07\x00\x05\x09"),
        (
            command(Operation::Fenced {
                fences: vec![Fence { lock: "l".into(), token: FencingToken(8) }],
                command: Command::Remove { tree: TreeId(0), key: "k".into() },
            }),
            b"\x03\x00\x07\x00\x06\x01\x01l\x08\x04\x00\x01k",
        ),
        (
            command(Operation::Prepare(Prepare {
                transaction: TransactionId(300),
                home: 2,
                decide_by_ms: 9,
                lease_ms: 8,
                only_lock: true,
                part: Part {
                    reads: vec![KeyRead { tree: TreeId(0), key: "r".into(), version: 5 }],
                    ranges: vec![RangeRead {
                        tree: TreeId(1),
                        low: "a".into(),
                        high: Some("b".into()),
                        count: 1,
                        fingerprint: 2,
                    }],
                    writes: vec![Write { tree: TreeId(0), key: "w".into(), value: None }],
                    expiries: vec![ExpiryCommand::Insert {
                        tree: TreeId(1),
                        key: "k".into(),
                        value: "v".into(),
                        when: When::After(7),
                    }],
                },
            })),
            b"\x03\x00\x07\x00\x07\xfb\x2c\x01\x02\x09\x08\x01\x01\x00\x01r\x05\x01\x01\x01a\x01\x01b\x01\x02\x01\x00\x01w\x00\x01\x00\x01\x01k\x01v\x00\x07",
        ),
        (
            command(Operation::Commit(Commit {
                transaction: TransactionId(3),
                decide_by_ms: 9,
                participants: vec![1, 4],
                part: Part::default(),
            })),
            b"\x03\x00\x07\x00\x08\x03\x09\x02\x01\x04\x00\x00\x00\x00",
        ),
        (
            command(Operation::Settle { transaction: TransactionId(3), decide_by_ms: 9 }),
            b"\x03\x00\x07\x00\x09\x03\x09",
        ),
        (
            command(Operation::Resolve { transaction: TransactionId(3), commit: true }),
            b"\x03\x00\x07\x00\x0a\x03\x01",
        ),
        (
            command(Operation::Forget { transactions: vec![TransactionId(3), TransactionId(4)] }),
            b"\x03\x00\x07\x00\x0b\x02\x03\x04",
        ),
    ];
    for (command, bytes) in golden {
        let encoded = encode_group_command(&command).unwrap();
        assert!(encoded == bytes, "{command:?} is \"{}\" now", encoded.escape_ascii());
        assert_eq!(decode_group_command(bytes).unwrap(), command);
    }
}

#[test]
fn replies_of_a_group_have_the_bytes_they_always_had() {
    let lock = LockedBy { transaction: TransactionId(9), home: 2, decide_by_ms: 8, expires_ms: 7 };
    let aborted = |reason| reply(Ok(Answer::Decided(Decision::Aborted(reason))));
    let golden: Vec<(GroupReply, &[u8])> = vec![
        (reply(Ok(Answer::Done)), b"\x01\x03\x07\x00\x00"),
        (reply(Ok(Answer::Reply(Reply::Previous(Some("v".into()))))), b"\x01\x03\x07\x00\x01\x03\x01\x01v"),
        (reply(Ok(Answer::Session { expires_ms: 9 })), b"\x01\x03\x07\x00\x02\x09"),
        (reply(Ok(Answer::SessionsExpired { sessions: 2, more: true })), b"\x01\x03\x07\x00\x03\x02\x01"),
        (reply(Err(Refusal::Invalid("no".into()))), b"\x01\x03\x07\x01\x00\x02no"),
        (reply(Err(Refusal::TooLarge("no".into()))), b"\x01\x03\x07\x01\x01\x02no"),
        (reply(Err(Refusal::TreeNotFound("t".into()))), b"\x01\x03\x07\x01\x02\x01t"),
        (reply(Err(Refusal::SessionUnknown(SessionId(4)))), b"\x01\x03\x07\x01\x03\x04"),
        (reply(Err(Refusal::Forgotten { latest: 8 })), b"\x01\x03\x07\x01\x04\x08"),
        (reply(Err(Refusal::Malformed("no".into()))), b"\x01\x03\x07\x01\x05\x02no"),
        (
            reply(Err(Refusal::LockNotHeld {
                lock: "l".into(),
                token: FencingToken(4),
                current: Some(FencingToken(5)),
            })),
            b"\x01\x03\x07\x01\x06\x01l\x04\x01\x05",
        ),
        (
            reply(Ok(Answer::Reply(Reply::Expiry(ExpiryReply::Expires(Some(9)))))),
            b"\x01\x03\x07\x00\x01\x0b\x02\x01\x09",
        ),
        (
            reply(Ok(Answer::Reply(Reply::Settled { keys: 1, locks: 2, more: true }))),
            b"\x01\x03\x07\x00\x01\x0c\x01\x02\x01",
        ),
        (
            reply(Ok(Answer::Reply(Reply::Counted(Sums(vec![CounterAddition {
                name: "c".into(),
                delta: -1,
            }]))))),
            b"\x01\x03\x07\x00\x01\x0a\x01\x01c\x01",
        ),
        (
            reply(Ok(Answer::Reply(Reply::Lock(LockReply::Waiting { ticket: 4, expires_ms: 5 })))),
            b"\x01\x03\x07\x00\x01\x09\x06\x04\x05",
        ),
        (reply(Err(Refusal::Locked(lock))), b"\x01\x03\x07\x01\x07\x09\x02\x08\x07"),
        (reply(Err(Refusal::TreeSealed("t".into()))), b"\x01\x03\x07\x01\x08\x01t"),
        (
            reply(Err(Refusal::QuotaExceeded(QuotaExceeded {
                tree: "t".into(),
                measure: Measure::Entries,
                limit: 4,
                used: 3,
                wanted: 5,
            }))),
            b"\x01\x03\x07\x01\x09\x01t\x01\x04\x03\x05",
        ),
        (reply(Ok(Answer::Reply(Reply::Quota(None)))), b"\x01\x03\x07\x00\x01\x10\x00"),
        (
            reply(Ok(Answer::Reply(Reply::Quota(Some(quota()))))),
            b"\x01\x03\x07\x00\x01\x10\x01\x01t\x01\xfb\x2c\x01\x00\x07\x02",
        ),
        (reply(Ok(Answer::Vote(Vote::Yes))), b"\x01\x03\x07\x00\x04\x00"),
        (reply(Ok(Answer::Vote(Vote::Conflict))), b"\x01\x03\x07\x00\x04\x01"),
        (reply(Ok(Answer::Vote(Vote::Locked(lock)))), b"\x01\x03\x07\x00\x04\x02\x09\x02\x08\x07"),
        (reply(Ok(Answer::Decided(Decision::Committed))), b"\x01\x03\x07\x00\x05\x00"),
        (aborted(Reason::Conflict), b"\x01\x03\x07\x00\x05\x01\x00"),
        (aborted(Reason::Locked(lock)), b"\x01\x03\x07\x00\x05\x01\x01\x09\x02\x08\x07"),
        (aborted(Reason::TooLate), b"\x01\x03\x07\x00\x05\x01\x02"),
        (aborted(Reason::Settled), b"\x01\x03\x07\x00\x05\x01\x03"),
        (aborted(Reason::Presumed), b"\x01\x03\x07\x00\x05\x01\x04"),
        (
            reply(Ok(Answer::Reply(Reply::Compared(Err((1, Some("v".into()))))))),
            b"\x01\x03\x07\x00\x01\x0e\x01\x01\x01\x01v",
        ),
    ];
    for (reply, bytes) in golden {
        let encoded = encode_group_reply(&reply).unwrap();
        assert!(encoded == bytes, "{reply:?} is \"{}\" now", encoded.escape_ascii());
        assert_eq!(decode_group_reply(bytes).unwrap(), reply);
    }
}

#[test]
fn reads_of_a_group_have_the_bytes_they_always_had() {
    let tree = || "t".into();
    let golden: Vec<(GroupRead, &[u8])> = vec![
        (GroupRead::Get { tree: tree(), key: "k".into() }, b"\x01\x00\x01t\x01k"),
        (
            GroupRead::GetMany { tree: tree(), keys: vec!["k".into(), "".into()] },
            b"\x01\x01\x01t\x02\x01k\x00",
        ),
        (
            GroupRead::Range {
                tree: tree(),
                low: Bound::Included("a".into()),
                high: Bound::Excluded("b".into()),
                reverse: true,
                limit: 10,
                limit_bytes: 300,
                values: false,
            },
            b"\x01\x02\x01t\x01\x01a\x02\x01b\x01\x0a\xfb\x2c\x01\x00",
        ),
        (GroupRead::Len { tree: tree() }, b"\x01\x03\x01t"),
        (GroupRead::Counter { name: "c".into() }, b"\x01\x04\x01c"),
        (GroupRead::LockHolder { name: "l".into() }, b"\x01\x05\x01l"),
        (GroupRead::Trees, b"\x01\x06"),
        (GroupRead::EarliestSessionExpiry, b"\x01\x07"),
        (GroupRead::Ticket { name: "l".into(), ticket: 4 }, b"\x01\x08\x01l\x04"),
        (GroupRead::Expires { tree: tree(), key: "k".into() }, b"\x01\x09\x01t\x01k"),
        (
            GroupRead::Validate {
                trees: vec![tree()],
                reads: vec![KeyRead { tree: TreeId(0), key: "k".into(), version: 5 }],
                ranges: vec![],
                since: Some(4),
                under: Some(TransactionId(300)),
            },
            b"\x01\x0a\x01\x01t\x01\x00\x01k\x05\x00\x01\x04\x01\xfb\x2c\x01",
        ),
        (GroupRead::Transactions, b"\x01\x0b"),
        (GroupRead::LockHolders { name: "l".into() }, b"\x01\x0d\x01l"),
        (GroupRead::Sessions { after: Some(SessionId(3)), limit: 9 }, b"\x01\x0e\x01\x03\x09"),
        (GroupRead::Quotas, b"\x01\x0f"),
        (GroupRead::NextNumber { tree: tree(), prefix: "p".into() }, b"\x01\x10\x01t\x01p"),
        (GroupRead::GetKinds { tree: tree(), keys: vec!["k".into()] }, b"\x01\x11\x01t\x01\x01k"),
    ];
    for (read, bytes) in golden {
        let encoded = encode_group_read(&read).unwrap();
        assert!(encoded == bytes, "{read:?} is \"{}\" now", encoded.escape_ascii());
        assert_eq!(decode_group_read(bytes).unwrap(), read);
    }
    let found = || Versioned { version: 6, value: "v".into() };
    let golden: Vec<(GroupReadReply, &[u8])> = vec![
        (GroupReadReply::Value(Some(found())), b"\x01\x00\x01\x06\x01v"),
        (GroupReadReply::Values(vec![None, Some(found())]), b"\x01\x01\x02\x00\x01\x06\x01v"),
        (
            GroupReadReply::Page { entries: vec![("k".into(), found())], more: true },
            b"\x01\x02\x01\x01k\x06\x01v\x01",
        ),
        (GroupReadReply::Length(8), b"\x01\x03\x08"),
        (GroupReadReply::Counter(Some(-1)), b"\x01\x04\x01\x01"),
        (
            GroupReadReply::LockHolder(Some(Holder {
                owner: "ann".into(),
                token: FencingToken(2),
                expires_ms: 9,
            })),
            b"\x01\x05\x01\x03ann\x02\x09",
        ),
        (GroupReadReply::Trees(vec!["t".into()]), b"\x01\x06\x01\x01t"),
        (GroupReadReply::Time(None), b"\x01\x07\x00"),
        (GroupReadReply::Ticket { reply: LockReply::NotHeld, now_ms: 4 }, b"\x01\x08\x03\x04"),
        (GroupReadReply::Expires { at_ms: Some(Some(9)), now_ms: 4 }, b"\x01\x09\x01\x01\x09\x04"),
        (GroupReadReply::Valid(true), b"\x01\x0a\x01"),
        (GroupReadReply::Transactions { prepared: 2, decided: 3 }, b"\x01\x0b\x02\x03"),
        (
            GroupReadReply::LockHolders {
                capacity: 5,
                holders: vec![Permit {
                    owner: "ann".into(),
                    token: FencingToken(2),
                    permits: 3,
                    expires_ms: 9,
                    delay_ms: 4,
                    ticket: 0,
                    session: Some(SessionId(7)),
                }],
            },
            b"\x01\x0d\x05\x01\x03ann\x02\x03\x09\x04\x00\x01\x07",
        ),
        (
            GroupReadReply::Sessions {
                sessions: vec![OpenSession {
                    session: SessionId(3),
                    lease_ms: 10,
                    expires_ms: 20,
                    answers: 2,
                    owned: Listed(vec![
                        Owned::Key { tree: "t".into(), key: "k".into() },
                        Owned::Lock { name: "l".into(), token: FencingToken(6) },
                        Owned::Place { name: "l".into(), ticket: 7 },
                    ]),
                    owns_more: true,
                }],
                more: false,
                now_ms: 8,
                led_ms: 9,
            },
            b"\x01\x0e\x01\x03\x0a\x14\x02\x03\x00\x01t\x01k\x01\x01l\x06\x02\x01l\x07\x01\x00\x08\x09",
        ),
        (GroupReadReply::Quotas(vec![quota()]), b"\x01\x0f\x01\x01t\x01\xfb\x2c\x01\x00\x07\x02"),
    ];
    for (reply, bytes) in golden {
        let encoded = encode_group_read_reply(&reply).unwrap();
        assert!(encoded == bytes, "{reply:?} is \"{}\" now", encoded.escape_ascii());
        assert_eq!(decode_group_read_reply(bytes).unwrap(), reply);
    }
}

/// Every decoder, with its result made comparable: whether it was decoded, and to what.
fn decode_all(bytes: &[u8]) -> [Result<Vec<u8>, Error>; 5] {
    [
        decode_group_command(bytes).map(|value| encode_group_command(&value).unwrap()),
        decode_group_reply(bytes).map(|value| encode_group_reply(&value).unwrap()),
        decode_group_read(bytes).map(|value| encode_group_read(&value).unwrap()),
        decode_group_read_reply(bytes).map(|value| encode_group_read_reply(&value).unwrap()),
        ChunkPosition::decode(bytes).map(|value| value.encode()),
    ]
}

#[test]
fn whatever_the_bytes_are_they_are_refused_or_mean_one_thing() {
    let mut decoded = [0; 5];
    for seed in 0..200_000 {
        let mut random = Random(seed);
        // The versions of commands, and of all else.
        let version = [1, 3][random.below(2) as usize];
        let mut bytes = vec![if random.below(20) == 0 { random.next() as u8 } else { version }];
        let length = if random.below(2) == 0 { 3 + random.below(8) } else { random.below(40) };
        bytes.extend((0..length).map(|_| match random.below(6) {
            0 => 251 + random.below(5) as u8,
            1..=3 => random.below(8) as u8,
            _ => random.next() as u8,
        }));
        for (count, result) in decoded.iter_mut().zip(decode_all(&bytes)) {
            match result {
                // Numbers may have been longer than need be; the second time they are not.
                Ok(again) => {
                    *count += 1;
                    assert!(again.len() <= bytes.len(), "{}", bytes.escape_ascii());
                }
                Err(error) => assert!(matches!(error, Error::InvalidRequest(_)), "{error:?}"),
            }
        }
    }
    assert!(decoded.iter().all(|count| *count > 10), "the search finds too little: {decoded:?}");
}

#[test]
fn bytes_too_many_or_too_few_are_refused() {
    let whole = encode_group_command(&GroupCommand {
        session: Some(SessionTag { session: SessionId(1), slot: 2, sequence: 3 }),
        time_ms: 4,
        trees: vec!["t".into()],
        operation: Operation::Command(Command::Insert {
            tree: TreeId(0),
            key: "k".into(),
            value: "v".into(),
        }),
    })
    .unwrap();
    for length in 0..whole.len() {
        assert!(decode_group_command(&whole[..length]).is_err(), "{length} bytes");
    }
    assert!(decode_group_command(&[&whole[..], &[0]].concat()).is_err());
    let mut newer = whole;
    newer[0] = 4;
    let error = decode_group_command(&newer).unwrap_err().to_string();
    assert!(error.contains("version 4"), "{error}");
}
