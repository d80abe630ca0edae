//! That every kind is looked up in the bytes as it is in what they decode to, and has one name of its own.

use std::collections::BTreeSet;

use super::*;
use crate::codec::{Listed, encode_group_command};
use crate::command::KeyRead;
use crate::compare::{Comparison, Condition};
use crate::expiry::{SetIf, When};
use crate::fence::Fence;
use crate::group::{GroupCommand, SessionId, SessionTag};
use crate::hashes::{HashAction, HashId};
use crate::lock::{FencingToken, LockRequest};
use crate::strings::{SetOnly, StringAction, StringsOperation};
use crate::transaction::{Commit, Part, Prepare, TransactionId};
use crate::{IVec, TreeId, Write};

fn counters() -> Vec<CounterCommand> {
    let name = || IVec::from("n");
    vec![
        CounterCommand::Add { name: name(), delta: -1 },
        CounterCommand::AddWithin { name: name(), delta: 1, min: 0, max: 1 << 40 },
        CounterCommand::Get { name: name() },
        CounterCommand::Set { name: name(), value: 5 },
        CounterCommand::Remove { name: name() },
        CounterCommand::SetIf { name: name(), expected: 0, value: 1 },
    ]
}

fn locks() -> Vec<LockCommand> {
    let (name, owner, token) = (|| IVec::from("l"), || IVec::from("ann"), FencingToken(1 << 33));
    let (request, session) = (LockRequest::exclusive(500), SessionId(u128::MAX));
    let mut locks = vec![
        LockCommand::TryAcquire { name: name(), owner: owner(), lease_ms: 1 },
        LockCommand::Renew { name: name(), owner: owner(), token, lease_ms: 1 },
        LockCommand::Release { name: name(), owner: owner(), token },
        LockCommand::Expire { name: name() },
        LockCommand::Acquire { name: name(), owner: owner(), request, wait_ms: 1 },
        LockCommand::RenewWait { name: name(), ticket: 1, wait_ms: 1 },
        LockCommand::CancelWait { name: name(), ticket: 1 },
        LockCommand::AcquireOwned { name: name(), owner: owner(), request, session, waits: true },
    ];
    // Readers, writers, and a semaphore, some of whose permits are taken.
    for (permits, capacity) in [(1, READ_WRITE), (READ_WRITE, READ_WRITE), (1, 5), (300, 300)] {
        let request = LockRequest { permits, capacity, ..request };
        locks.push(LockCommand::Acquire { name: name(), owner: owner(), request, wait_ms: 1 });
    }
    locks
}

fn expiries() -> Vec<ExpiryCommand> {
    let (tree, key, value, when) = (TreeId(0), || IVec::from("k"), || IVec::from("v"), When::After(1));
    vec![
        ExpiryCommand::Insert { tree, key: key(), value: value(), when },
        ExpiryCommand::Swap { tree, key: key(), old: None, new: value(), when },
        ExpiryCommand::Set { tree, key: key(), when, only: SetIf::Always },
        ExpiryCommand::Clear { tree, key: key() },
        ExpiryCommand::Get { tree, key: key() },
        ExpiryCommand::Strings { tree, key: key(), actions: Listed(vec![StringAction::Delete]) },
        ExpiryCommand::Strings { tree, key: key(), actions: Listed(actions()) },
        ExpiryCommand::Lock { tree, command: LockCommand::Expire { name: key() } },
        ExpiryCommand::Held { tree, key: key(), token: FencingToken(300) },
        ExpiryCommand::Lives { tree, key: key(), at_ms: Some(300) },
        ExpiryCommand::Owned { tree, key: key(), value: value(), session: None, is_numbered: true },
    ]
}

/// Each operation of Redis clients.
fn actions() -> Vec<StringAction> {
    let (tree, key, value) = (TreeId(300), || IVec::from("k"), || IVec::from(&[b'v'; 300][..]));
    let (id, listed) = (HashId { base: 1 << 40, ordinal: 1 }, |count| Listed(vec![key(); count]));
    let set = |only, when, get| StringAction::Set { value: value(), only, when, get };
    let mut actions = vec![
        StringAction::Get,
        StringAction::Length,
        StringAction::Range { start: -300, end: i64::MAX },
        StringAction::Exists,
        StringAction::Expires,
        set(SetOnly::Always, None, false),
        set(SetOnly::AsRequired, Some(When::Keep), true),
        set(SetOnly::Absent, Some(When::At(u64::MAX)), false),
        StringAction::RequireAbsent { first: true },
        StringAction::Delete,
        StringAction::Take,
        StringAction::GetAndExpire { when: None },
        StringAction::GetAndExpire { when: Some(When::After(300)) },
        StringAction::Append { value: value() },
        StringAction::Overwrite { offset: 1 << 20, value: value() },
        StringAction::Add { delta: i64::MIN },
        StringAction::AddFloat { delta: value() },
        StringAction::Expire { when: When::Keep, only: SetIf::Earlier, only_some: true },
        StringAction::Persist,
        StringAction::Transfer { tree, key: key(), copy: true, replace: false },
        StringAction::Kind,
        StringAction::Suspect { id },
        StringAction::Clear,
        StringAction::Tell { value: value() },
    ];
    let hashes = [
        HashAction::Set { pairs: Listed(vec![(key(), value()), (value(), key())]) },
        HashAction::SetAbsent { field: key(), value: value() },
        HashAction::Get { field: key() },
        HashAction::GetMany { fields: listed(3) },
        HashAction::Delete { fields: listed(2) },
        HashAction::Exists { field: key() },
        HashAction::Length,
        HashAction::ValueLength { field: key() },
        HashAction::All,
        HashAction::Page { after: None, limit: 300 },
        HashAction::Page { after: Some(value()), limit: 1 },
        HashAction::Add { field: key(), delta: -1 },
        HashAction::AddFloat { field: key(), delta: value() },
    ];
    actions.extend(hashes.map(StringAction::Hash));
    actions
}

/// Commands that do one thing, often, with what is told of it; and those that do two things, for all pairs of them.
fn lists() -> Vec<Command> {
    let tell = || StringAction::Tell { value: "told".into() };
    let command = |actions: Vec<StringAction>| {
        let operation = |action| StringsOperation { tree: TreeId(300), key: "key".into(), action };
        let watched =
            vec![KeyRead { tree: TreeId(0), key: "watched".into(), version: 1 << 40 }; actions.len() % 3];
        Command::Strings { watched, operations: actions.into_iter().map(operation).collect() }
    };
    let mut commands = vec![command(Vec::new())];
    for action in actions() {
        commands.push(command(vec![action.clone(); 3]));
        commands.push(command(vec![tell(), action.clone(), tell()]));
        commands.extend(actions().into_iter().map(|other| command(vec![action.clone(), other])));
    }
    commands
}

fn commands() -> Vec<Command> {
    let (tree, key, value) = (TreeId(0), || IVec::from("k"), || IVec::from("v"));
    let writes = || vec![Write { tree, key: key(), value: None }];
    let (session, prefix) = (SessionId(7), key);
    let mut commands = vec![
        Command::CreateTree { name: key() },
        Command::DropTree { name: key() },
        Command::ClearTree { tree },
        Command::Insert { tree, key: key(), value: value() },
        Command::Remove { tree, key: key() },
        Command::CompareAndSwap { tree, key: key(), old: None, new: None },
        Command::Batch { writes: writes() },
        Command::Pop { tree, last: true },
        Command::Transact { reads: Vec::new(), ranges: Vec::new(), writes: writes(), expiries: Vec::new() },
        Command::ReserveIds { count: 1 },
        Command::Put { tree, key: key(), value: value() },
        Command::CountMany { additions: Vec::new() },
        Command::SettleDue { limit: 1 },
        Command::SetQuota { name: key(), limit: None },
        Command::Compare {
            comparisons: vec![Comparison { tree, key: key(), condition: Condition::Present }],
            then: writes(),
            otherwise: Vec::new(),
        },
        Command::Owned(OwnedCommand::Insert { tree, key: key(), value: value(), session }),
        Command::Owned(OwnedCommand::InsertNext { tree, prefix: prefix(), value: value(), session: None }),
        Command::Owned(OwnedCommand::SetNext { tree, prefix: prefix(), next: value() }),
    ];
    commands.extend(counters().into_iter().map(Command::Counter));
    commands.extend(locks().into_iter().map(Command::Lock));
    commands.extend(expiries().into_iter().map(Command::Expiry));
    commands
}

fn operations() -> Vec<Operation> {
    let (session, transaction, decide_by_ms) = (SessionId(1 << 90), TransactionId(1 << 70), 1 << 40);
    let mut operations = vec![
        Operation::Nothing,
        Operation::OpenSession { session, lease_ms: 1 },
        Operation::RenewSession { session },
        Operation::CloseSession { session },
        Operation::ExpireSessions { led_ms: 1 },
        Operation::Prepare(Prepare {
            transaction,
            home: 1,
            decide_by_ms,
            lease_ms: 1,
            only_lock: false,
            part: Part::default(),
        }),
        Operation::Commit(Commit { transaction, decide_by_ms, participants: vec![1], part: Part::default() }),
        Operation::Settle { transaction, decide_by_ms },
        Operation::Resolve { transaction, commit: true },
        Operation::Forget { transactions: vec![transaction] },
    ];
    operations.extend(commands().into_iter().chain(lists()).map(Operation::Command));
    let fences = |count| vec![Fence { lock: "lock".into(), token: FencingToken(1 << 40) }; count];
    for count in [0, 1, 3] {
        let fenced = |command| Operation::Fenced { fences: fences(count), command };
        operations.extend(commands().into_iter().map(fenced));
    }
    operations
}

#[test]
fn what_is_peeked_at_is_what_the_bytes_decode_to() {
    let tags = [None, Some(SessionTag { session: SessionId(u128::MAX), slot: 300, sequence: 1 << 40 })];
    let trees = [
        vec![],
        vec![IVec::from("dogs"), IVec::from(""), IVec::from(&[b'x'; 300][..])],
        vec![IVec::from(ELECTIONS_TREE_NAME)],
        vec![IVec::from(SERVICES_TREE_NAME), IVec::from(ELECTIONS_TREE_NAME)],
    ];
    let mut seen = BTreeSet::new();
    for operation in operations() {
        for (session, trees) in tags.iter().flat_map(|tag| trees.iter().map(move |trees| (tag, trees))) {
            let (session, trees, operation) = (*session, trees.clone(), operation.clone());
            let command = GroupCommand { session, time_ms: 1_766_279_860_224, trees, operation };
            let kind = OperationKind::of(&command);
            seen.insert(kind);
            let bytes = encode_group_command(&command).unwrap();
            assert_eq!(OperationKind::peek(&bytes), Some(kind), "{command:?}");
            // Whatever is missing, there is no panic, and no other kind.
            for length in 0..bytes.len().min(600) {
                let peeked = OperationKind::peek(&bytes[..length]);
                assert!(peeked.is_none_or(|peeked| peeked == kind), "{length} bytes of {command:?}");
            }
        }
    }
    let all: BTreeSet<OperationKind> = OperationKind::ALL.iter().copied().collect();
    assert_eq!(seen, all, "a kind that no operation has, or that this test does not know");
}

#[test]
fn lists_of_operations_are_called_by_what_all_of_them_do() {
    let tell = || StringAction::Tell { value: "v".into() };
    let set = || StringAction::Set { value: "v".into(), only: SetOnly::AsRequired, when: None, get: false };
    let cases = [
        (vec![set(), set()], "strings_set"),
        (vec![StringAction::RequireAbsent { first: true }, set()], "strings_set"),
        (vec![StringAction::Add { delta: 1 }, tell()], "strings_add"),
        (vec![tell(), tell()], "publish"),
        (vec![StringAction::Suspect { id: HashId::default() }, StringAction::Delete], "key_delete"),
        (vec![set(), StringAction::Add { delta: 1 }], "several"),
        (vec![tell(), set(), StringAction::Get], "several"),
        (vec![StringAction::Exists, StringAction::Kind], "key_look"),
        (vec![], "several"),
    ];
    for (actions, name) in cases {
        assert_eq!(OperationKind::of_actions(&actions).name(), name, "{actions:?}");
    }
}

#[test]
fn names_are_told_apart_and_fit_a_label() {
    let names: BTreeSet<&str> = OperationKind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(names.len(), OperationKind::ALL.len());
    let reads: BTreeSet<&str> = ReadKind::ALL.iter().map(|kind| kind.name()).collect();
    assert_eq!(reads.len(), ReadKind::ALL.len());
    for (number, kind) in OperationKind::ALL.iter().enumerate() {
        assert_eq!(*kind as usize, number);
    }
    for name in names.iter().chain(&reads) {
        assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
    }
}

#[test]
fn bytes_that_are_no_command_have_no_kind() {
    for bytes in [&b""[..], b"\x02\0\x07\0\0", b"\x03\0\x07\0\x0c", b"\x03\0\xff", b"\x03\0\x07\0\x01\x14"] {
        assert_eq!(OperationKind::peek(bytes), None, "{bytes:?}");
    }
    // A list that is claimed to be longer than anything.
    assert_eq!(OperationKind::peek(b"\x03\0\x07\xfd\xff\xff\xff\xff\xff\xff\xff\xff"), None);
}

#[test]
fn the_trees_that_a_command_names_are_found_in_its_bytes() {
    let named = |trees: &[&str], operation: Operation| {
        let trees = trees.iter().map(|tree| IVec::from(*tree)).collect();
        let session = Some(SessionTag { session: SessionId(u128::MAX), slot: 1, sequence: 300 });
        let command = GroupCommand { session, time_ms: 1 << 40, trees, operation };
        let mut names = Vec::new();
        let encoded = encode_group_command(&command).unwrap();
        assert!(!names_tree(&encoded, |name| {
            names.push(String::from_utf8(name.to_vec()).unwrap());
            false
        }));
        for name in &names {
            assert!(names_tree(&encoded, |other| other == name.as_bytes()), "{name}");
        }
        names
    };
    let name = || IVec::from("own");
    let fences = vec![Fence { lock: "l".into(), token: FencingToken(1 << 33) }];
    let made = [Command::CreateTree { name: name() }, Command::SetQuota { name: name(), limit: None }];
    for command in made {
        assert_eq!(named(&[], Operation::Command(command.clone())), ["own"]);
        let fenced = Operation::Fenced { fences: fences.clone(), command };
        assert_eq!(named(&["a", "b"], fenced), ["a", "b", "own"]);
    }
    let put = Command::Put { tree: TreeId(0), key: "own".into(), value: "v".into() };
    assert_eq!(named(&["a"], Operation::Command(put)), ["a"]);
    assert_eq!(
        named(&[], Operation::Command(Command::DropTree { name: name() })),
        [""; 0],
        "that makes none"
    );
    assert_eq!(named(&["a"], Operation::CloseSession { session: SessionId(1) }), ["a"]);
    assert!(!names_tree(b"nothing", |_| true) && !names_tree(&[], |_| true));
}
