//! Sessions: a command that is retried happens once; and what else an entry of a group comes to.
//!
//! On the model, where the rules are seen without an engine; `model.rs` compares the two.

use std::sync::Arc;

use dogsled_storage::codec::{Listed, encode_group_command};
use dogsled_storage::command::MAX_KEY_LENGTH;
use dogsled_storage::counter::{CounterCommand, CounterReply};
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::model::ModelState;
use dogsled_storage::session::REMOVE_AT_ONCE;
use dogsled_storage::strings::{StringAction, StringsOperation};
use dogsled_storage::wal::{Wal, WalOptions};
use dogsled_storage::{
    Answer, Command, ExpiryCommand, GroupCommand, GroupRead, GroupReadReply, GroupReply, IVec, Operation,
    OwnedCommand, Refusal, Replica, ReplicaInstaller, ReplicaOptions, Reply, SessionId, SessionTag, TreeId,
    View, When, Write,
};

const ANN: SessionId = SessionId(0xa);
const BEN: SessionId = SessionId(0xb);

/// A group of one model.
struct Group {
    state: ModelState,
    time_ms: u64,
}

impl Group {
    fn new() -> Group {
        Group { state: ModelState::for_replica(), time_ms: 1_000 }
    }

    fn apply(
        &mut self,
        session: Option<SessionTag>,
        trees: &[&str],
        operation: Operation,
    ) -> Result<Answer, Refusal> {
        self.reply(session, trees, operation).result
    }

    fn reply(&mut self, session: Option<SessionTag>, trees: &[&str], operation: Operation) -> GroupReply {
        let trees = trees.iter().map(|name| IVec::from(*name)).collect();
        let command = GroupCommand { session, time_ms: self.time_ms, trees, operation };
        self.state.apply_entry(self.state.sequence() + 1, command).unwrap()
    }

    fn open(&mut self, session: SessionId, lease_ms: u64) -> Result<Answer, Refusal> {
        self.apply(None, &[], Operation::OpenSession { session, lease_ms })
    }

    /// Adds one to a counter within a session.
    fn add(&mut self, session: SessionId, slot: u16, sequence: u64) -> Result<Answer, Refusal> {
        self.apply(Some(SessionTag { session, slot, sequence }), &[], add_one())
    }

    /// How many keys the tree of sessions has.
    fn kept(&self) -> u64 {
        self.state.len(TreeId::SESSIONS)
    }
}

fn add_one() -> Operation {
    Operation::Command(Command::Counter(CounterCommand::Add { name: "visits".into(), delta: 1 }))
}

fn added(value: i64) -> Result<Answer, Refusal> {
    Ok(Answer::Reply(Reply::Counter(CounterReply::Added { value })))
}

fn insert(tree: u32, key: &str, value: &str) -> Operation {
    Operation::Command(Command::Insert { tree: TreeId(tree), key: key.into(), value: value.into() })
}

#[test]
fn a_retry_gets_the_first_answer_and_happens_once() {
    let mut group = Group::new();
    assert_eq!(group.open(ANN, 500), Ok(Answer::Session { expires_ms: 1_500 }));
    let tag = Some(SessionTag { session: ANN, slot: 0, sequence: 7 });
    let first = group.reply(tag, &[], add_one());
    assert_eq!(first.result, added(1));
    group.time_ms = 1_400;
    let state = group.state.clone();
    for _ in 0..3 {
        assert_eq!(group.reply(tag, &[], add_one()), first, "position and time are the first ones, too");
    }
    assert_eq!(group.state.tree(TreeId::SESSIONS), state.tree(TreeId::SESSIONS));
    // Even if it asks for something else under the same number.
    assert_eq!(group.reply(tag, &["t"], insert(0, "k", "v")), first);
    assert_eq!(group.add(ANN, 0, 8), added(2));
    // Another slot, and another session, have numbers of their own.
    assert_eq!(group.add(ANN, 1, 7), added(3));
    group.open(BEN, 500).unwrap();
    assert_eq!(group.add(BEN, 0, 7), added(4));
}

#[test]
fn a_refusal_is_remembered_too() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    let tag = Some(SessionTag { session: ANN, slot: 3, sequence: 1 });
    let refused = group.reply(tag, &[], insert(0, "k", "v"));
    assert!(matches!(refused.result, Err(Refusal::Invalid(_))), "{refused:?}");
    assert_eq!(group.reply(tag, &["t"], insert(0, "k", "v")), refused);
}

#[test]
fn what_the_client_has_given_up_is_refused_and_its_answer_goes() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    for slot in 0..4 {
        group.add(ANN, slot, 0).unwrap();
    }
    // Session, expiry, four answers.
    assert_eq!(group.kept(), 6);
    assert_eq!(group.add(ANN, 2, 5), added(5), "numbers may be left out");
    assert_eq!(group.kept(), 6, "the answer has taken the place of the one before");
    for given_up in [0, 1, 4] {
        assert_eq!(group.add(ANN, 2, given_up), Err(Refusal::Forgotten { latest: 5 }));
    }
    assert_eq!(group.add(ANN, 2, 5), added(5));
    assert_eq!(group.add(ANN, 3, 0), added(4), "those of other slots are still there");
    assert_eq!(group.state.get(TreeId::COUNTERS, b"visits").unwrap().unwrap().value, 5u64.to_be_bytes());
}

#[test]
fn the_first_and_the_last_slot_and_number_are_like_any() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    for (slot, sequence, value) in [(0, 0, 1), (u16::MAX, 0, 2), (u16::MAX, u64::MAX, 3)] {
        assert_eq!(group.add(ANN, slot, sequence), added(value));
        assert_eq!(group.add(ANN, slot, sequence), added(value));
    }
    let numbered = Some(SessionTag { session: ANN, slot: 0, sequence: 1 });
    let refused = group.apply(numbered, &[], Operation::RenewSession { session: ANN });
    assert!(matches!(refused, Err(Refusal::Invalid(_))));
    assert!(matches!(group.open(BEN, 0), Err(Refusal::Invalid(_))));
    // The last slot goes with the session.
    group.apply(None, &[], Operation::CloseSession { session: ANN }).unwrap();
    assert_eq!(group.kept(), 0);
}

#[test]
fn a_session_ends_by_an_entry_that_has_seen_its_whole_lease() {
    let mut group = Group::new();
    assert_eq!(group.add(ANN, 0, 0), Err(Refusal::SessionUnknown(ANN)));
    group.open(ANN, 500).unwrap();
    group.time_ms = 1_400;
    let renew = || Operation::RenewSession { session: ANN };
    assert_eq!(group.apply(None, &[], renew()), Ok(Answer::Session { expires_ms: 1_900 }));
    // The next leader's clock is behind.
    group.time_ms = 1_000;
    assert_eq!(group.apply(None, &[], renew()), Ok(Answer::Session { expires_ms: 1_900 }));
    group.time_ms = 1_899;
    assert_eq!(group.add(ANN, 0, 0), added(1));
    let none = Ok(Answer::SessionsExpired { sessions: 0, more: false });
    assert_eq!(group.apply(None, &[], Operation::ExpireSessions { led_ms: 500 }), none);
    // Its time is over, but not for a leader that has not led for so long.
    group.time_ms = 1_900;
    assert_eq!(group.apply(None, &[], Operation::ExpireSessions { led_ms: 499 }), none);
    assert_eq!(group.add(ANN, 0, 1), added(2));
    assert_eq!(group.apply(None, &[], renew()), Ok(Answer::Session { expires_ms: 2_400 }));
    group.time_ms = 2_400;
    let expire = group.apply(None, &[], Operation::ExpireSessions { led_ms: 500 });
    assert_eq!(expire, Ok(Answer::SessionsExpired { sessions: 1, more: false }));
    assert_eq!(group.add(ANN, 0, 2), Err(Refusal::SessionUnknown(ANN)));
    assert_eq!(group.apply(None, &[], renew()), Err(Refusal::SessionUnknown(ANN)));
    assert_eq!(group.kept(), 0);
    let expire = group.apply(None, &[], Operation::ExpireSessions { led_ms: u64::MAX });
    assert_eq!(expire, Ok(Answer::SessionsExpired { sessions: 0, more: false }));
    // Nothing but the session is gone.
    assert_eq!(group.state.len(TreeId::COUNTERS), 1);
}

#[test]
fn opening_again_is_a_retry_and_a_session_may_live_for_ever() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    group.add(ANN, 0, 0).unwrap();
    assert_eq!(group.open(ANN, 800), Ok(Answer::Session { expires_ms: 1_800 }));
    assert_eq!(group.add(ANN, 0, 0), added(1), "its answers are kept");
    assert_eq!(group.open(BEN, u64::MAX), Ok(Answer::Session { expires_ms: u64::MAX }));
    group.time_ms = u64::MAX;
    let expire = group.apply(None, &[], Operation::ExpireSessions { led_ms: u64::MAX });
    assert_eq!(expire, Ok(Answer::SessionsExpired { sessions: 1, more: false }));
    assert_eq!(group.add(BEN, 0, 0), added(2));
}

#[test]
fn closing_and_expiring_do_a_bounded_amount_of_work() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    group.open(BEN, 600).unwrap();
    let many = REMOVE_AT_ONCE as u64 * 5 / 2;
    for slot in 0..many {
        group.add(ANN, slot as u16, 0).unwrap();
    }
    group.add(BEN, 0, 0).unwrap();
    let close = || Operation::CloseSession { session: ANN };
    assert_eq!(group.apply(None, &[], close()), Ok(Answer::Done));
    assert!(group.kept() > many - REMOVE_AT_ONCE as u64);
    // What is left of it cannot be used.
    assert_eq!(group.add(ANN, many as u16 - 1, 0), Err(Refusal::SessionUnknown(ANN)));
    let mut rounds = 0;
    loop {
        let before = group.kept();
        let answer = group.apply(None, &[], Operation::ExpireSessions { led_ms: u64::MAX });
        assert!(before - group.kept() <= REMOVE_AT_ONCE as u64);
        rounds += 1;
        match answer {
            Ok(Answer::SessionsExpired { more: true, .. }) => {}
            Ok(Answer::SessionsExpired { sessions: 1, more: false }) => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(rounds, 2);
    assert_eq!(group.kept(), 3, "the other session, its expiry and its answer");
    assert_eq!(group.apply(None, &[], close()), Ok(Answer::Done));
}

#[test]
fn many_sessions_that_end_at_once_are_expired_over_many_entries() {
    let mut group = Group::new();
    for session in 0..3_000 {
        group.open(SessionId(session), 100).unwrap();
    }
    group.time_ms = 2_000;
    let mut expired = 0;
    loop {
        let Ok(Answer::SessionsExpired { sessions, more }) =
            group.apply(None, &[], Operation::ExpireSessions { led_ms: u64::MAX })
        else {
            panic!("it is not refused")
        };
        assert!(sessions as usize <= REMOVE_AT_ONCE / 2);
        expired += sessions;
        if !more {
            break;
        }
    }
    assert_eq!((expired, group.kept()), (3_000, 0));
}

#[test]
fn a_tree_that_is_not_there_is_empty_and_made_by_the_first_write() {
    let mut group = Group::new();
    let empty = |command| Operation::Command(command);
    let tree = TreeId(0);
    let remove = || empty(Command::Remove { tree, key: "k".into() });
    let none = Ok(Answer::Reply(Reply::Previous(None)));
    assert_eq!(group.apply(None, &["t"], remove()), none);
    let pop = empty(Command::Pop { tree, last: false });
    assert_eq!(group.apply(None, &["t"], pop), Ok(Answer::Reply(Reply::Popped(None))));
    let clear = empty(Command::ClearTree { tree });
    assert_eq!(group.apply(None, &["t"], clear), Ok(Answer::Reply(Reply::Done)));
    let swap = empty(Command::CompareAndSwap { tree, key: "k".into(), old: Some("v".into()), new: None });
    assert_eq!(group.apply(None, &["t"], swap), Ok(Answer::Reply(Reply::Swapped(Err(None)))));
    assert_eq!(group.state.names().count(), 1, "only the default tree");

    // Of three that are named, twice one of them, the one that is written to.
    let write = |tree, value: Option<&str>| Write {
        tree: TreeId(tree),
        key: "k".into(),
        value: value.map(IVec::from),
    };
    let batch = empty(Command::Batch { writes: vec![write(0, None), write(2, Some("v")), write(1, None)] });
    assert_eq!(group.apply(None, &["a", "b", "t", "t"], batch), Ok(Answer::Reply(Reply::Done)));
    let names: Vec<_> = group.state.names().map(|(name, _)| name.clone()).collect();
    assert_eq!(names, ["__sled__default", "t"]);
    let id = group.state.tree_id(b"t").unwrap();
    assert_eq!(
        group.apply(None, &["x", "t"], insert(1, "k", "w")),
        Ok(Answer::Reply(Reply::Previous(Some("v".into()))))
    );
    assert_eq!(group.state.tree_id(b"t"), Some(id));
    let position = group.state.sequence();
    assert_eq!(group.state.get(id, b"k").unwrap().unwrap().version, position);
}

#[test]
fn what_would_harm_the_group_is_refused() {
    let mut group = Group::new();
    let invalid = |answer| match answer {
        Err(Refusal::Invalid(what)) => what,
        other => panic!("{other:?}"),
    };
    invalid(group.apply(None, &["t"], insert(1, "k", "v")));
    invalid(group.apply(None, &[], insert(u32::MAX, "k", "v")));
    invalid(group.apply(None, &["__dogsled__locks"], insert(0, "k", "v")));
    invalid(group.apply(None, &["__dogsled__sessions"], insert(0, "k", "v")));
    let clear = Operation::Command(Command::ClearTree { tree: TreeId(0) });
    invalid(group.apply(None, &["__dogsled__sessions"], clear));
    // A counter may be imported, but only one that can be read.
    invalid(group.apply(None, &["__dogsled__counters"], insert(0, "visits", "v")));
    group.apply(None, &["__dogsled__counters"], insert(0, "visits", "\0\0\0\0\0\0\0\x07")).unwrap();
    assert_eq!(group.apply(None, &[], add_one()), added(8));
    let long = "x".repeat(5_000);
    assert!(matches!(group.apply(None, &[&long], insert(0, "k", "v")), Err(Refusal::TooLarge(_))));
    let names = vec!["t"; 1_025];
    assert!(matches!(group.apply(None, &names, insert(0, "k", "v")), Err(Refusal::TooLarge(_))));
    let key = "x".repeat(70_000);
    assert!(matches!(group.apply(None, &["t"], insert(0, &key, "v")), Err(Refusal::TooLarge(_))));
    assert!(matches!(
        group.apply(None, &[], Operation::Command(Command::DropTree { name: "__sled__default".into() })),
        Err(Refusal::Invalid(_))
    ));
}

/// A replica on a simulated disk.
fn replica(disk: &SimulatedDisk, group: u32) -> (Arc<Replica>, ReplicaOptions) {
    let disk = Arc::new(disk.clone());
    let wal =
        WalOptions { threads: false, segment_size: 64 << 10, ..WalOptions::new(format!("wal {group}"), 1) };
    let wal = Arc::new(Wal::open(Arc::clone(&disk) as _, wal).unwrap());
    let options = ReplicaOptions {
        cache_capacity: 8 << 20,
        disk,
        background_threads: false,
        ..ReplicaOptions::new(format!("groups/{group}"), 1)
    };
    (Replica::open(options.clone(), wal).unwrap(), options)
}

fn entry(session: Option<SessionTag>, operation: Operation) -> Vec<u8> {
    encode_group_command(&GroupCommand { session, time_ms: 1_000, trees: vec!["t".into()], operation })
        .unwrap()
}

/// A second replica, which was sent the state of the first.
fn installed(disk: &SimulatedDisk, source: &Replica) -> Arc<Replica> {
    let (target, options) = replica(disk, 2);
    drop(target);
    let mut installer = ReplicaInstaller::begin(&options).unwrap();
    let snapshot = source.snapshot();
    while !installer.is_complete() {
        installer.chunk(&snapshot.chunk(installer.position(), 1000).unwrap().bytes).unwrap();
    }
    installer.finish().unwrap();
    replica(disk, 2).0
}

/// What a failover looks like when the new leader had to install a snapshot: the answer to the
/// command was lost with the old one, and the client tries again.
#[test]
fn a_command_retried_after_a_snapshot_was_installed_happens_once() {
    let disk = SimulatedDisk::new(1);
    let (source, _) = replica(&disk, 1);
    let tag = Some(SessionTag { session: ANN, slot: 0, sequence: 0 });
    source.apply(1, None, &entry(None, Operation::OpenSession { session: ANN, lease_ms: 500 })).unwrap();
    let first = source.apply(2, None, &entry(tag, add_one())).unwrap();
    assert_eq!(first.result, added(1));

    let target = installed(&disk, &source);
    assert_eq!(target.apply(3, None, &entry(tag, add_one())).unwrap(), first);
    let counter = GroupRead::Counter { name: "visits".into() };
    assert_eq!(target.read(&counter).unwrap(), GroupReadReply::Counter(Some(1)));
}

/// The database's own trees put something before such a key, which must not be too long for those who receive it.
#[test]
fn the_longest_keys_and_fields_travel_in_snapshots() {
    let disk = SimulatedDisk::new(1);
    let (source, _) = replica(&disk, 1);
    let longest = |letter: &str| IVec::from(letter.repeat(MAX_KEY_LENGTH).as_str());
    let tree = TreeId(0);
    let expiring =
        ExpiryCommand::Insert { tree, key: longest("e"), value: "v".into(), when: When::After(60_000) };
    let owned = OwnedCommand::Insert { tree, key: longest("o"), value: "v".into(), session: ANN };
    let pairs = Listed(vec![(longest("f"), IVec::from("v"))]);
    let hash =
        StringsOperation { tree, key: longest("h"), action: StringAction::Hash(HashAction::Set { pairs }) };
    let operations = [
        Operation::OpenSession { session: ANN, lease_ms: 500 },
        Operation::Command(Command::Expiry(expiring)),
        Operation::Command(Command::Owned(owned)),
        Operation::Command(Command::Strings { watched: Vec::new(), operations: vec![hash] }),
    ];
    let mut position = 0;
    for operation in operations {
        position += 1;
        source.apply(position, None, &entry(None, operation)).unwrap().result.unwrap();
    }
    let target = installed(&disk, &source);
    let fingerprint = |replica: &Replica| replica.snapshot().fingerprint().unwrap();
    assert_eq!(fingerprint(&target), fingerprint(&source));
}

#[test]
fn reads_see_the_newest_state_and_name_trees() {
    use std::ops::Bound;
    let (replica, _) = replica(&SimulatedDisk::new(1), 1);
    let read = |read| replica.read(&read).unwrap();
    let tree = || IVec::from("t");
    assert_eq!(read(GroupRead::Get { tree: tree(), key: "k".into() }), GroupReadReply::Value(None));
    assert_eq!(read(GroupRead::Len { tree: tree() }), GroupReadReply::Length(0));
    assert_eq!(read(GroupRead::EarliestSessionExpiry), GroupReadReply::Time(None));
    let page = |low: Bound<&str>, reverse, limit, limit_bytes| {
        let (low, high) = (low.map(IVec::from), Bound::Unbounded);
        match read(GroupRead::Range { tree: tree(), low, high, reverse, limit, limit_bytes, values: true }) {
            GroupReadReply::Page { entries, more } => {
                let names = entries
                    .iter()
                    .map(|(key, found)| format!("{} {}", String::from_utf8_lossy(key), found.version));
                (names.collect::<Vec<_>>().join(", "), more)
            }
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(page(Bound::Unbounded, false, 9, 99), (String::new(), false));
    for (index, key) in ["a", "b", "c"].into_iter().enumerate() {
        replica.apply(index as u64 + 1, None, &entry(None, insert(0, key, "1234567"))).unwrap();
    }
    assert_eq!(page(Bound::Unbounded, false, 9, 99), ("a 1, b 2, c 3".into(), false));
    assert_eq!(page(Bound::Unbounded, false, 2, 99), ("a 1, b 2".into(), true));
    assert_eq!(page(Bound::Unbounded, false, 3, 99), ("a 1, b 2, c 3".into(), false));
    assert_eq!(page(Bound::Unbounded, false, 0, 0), ("a 1".into(), true));
    assert_eq!(page(Bound::Unbounded, false, 9, 16), ("a 1, b 2".into(), true));
    assert_eq!(page(Bound::Excluded("a"), true, 1, 99), ("c 3".into(), true));
    assert_eq!(page(Bound::Excluded("a"), true, 2, 99), ("c 3, b 2".into(), false));
    let keys = vec!["a".into(), "x".into(), "c".into()];
    let GroupReadReply::Values(values) = read(GroupRead::GetMany { tree: tree(), keys }) else { panic!() };
    let versions: Vec<_> = values.iter().map(|found| found.as_ref().map(|found| found.version)).collect();
    assert_eq!(versions, [Some(1), None, Some(3)]);
    assert_eq!(read(GroupRead::Len { tree: tree() }), GroupReadReply::Length(3));

    let lock = Command::Lock(LockCommand::TryAcquire { name: "l".into(), owner: "ann".into(), lease_ms: 10 });
    let held = replica.apply(4, None, &entry(None, Operation::Command(lock))).unwrap();
    let Ok(Answer::Reply(Reply::Lock(LockReply::Acquired { token, .. }))) = held.result else { panic!() };
    assert_eq!(token.0, 4, "a grant's token is its position");
    let holder = || read(GroupRead::LockHolder { name: "l".into() });
    assert!(matches!(holder(), GroupReadReply::LockHolder(Some(holder)) if holder.owner == "ann"));
    let open = Operation::OpenSession { session: ANN, lease_ms: 500 };
    replica.apply(5, None, &entry(None, open)).unwrap();
    assert_eq!(read(GroupRead::EarliestSessionExpiry), GroupReadReply::Time(Some(1_500)));
    let later = GroupCommand { session: None, time_ms: 1_010, trees: vec![], operation: Operation::Nothing };
    replica.apply(6, None, &encode_group_command(&later).unwrap()).unwrap();
    assert_eq!(holder(), GroupReadReply::LockHolder(None), "by the log's time");
    let names = ["__dogsled__locks", "__sled__default", "t"].map(IVec::from).to_vec();
    assert_eq!(read(GroupRead::Trees), GroupReadReply::Trees(names));
    assert!(replica.read(&GroupRead::Len { tree: "__dogsled__sessions".into() }).is_err());
}

fn ephemeral(key: &str, session: SessionId) -> Operation {
    Operation::Command(Command::Owned(OwnedCommand::Insert {
        tree: TreeId(0),
        key: key.into(),
        value: "v".into(),
        session,
    }))
}

#[test]
fn keys_of_a_session_die_with_it_and_nothing_else_does() {
    for closed in [true, false] {
        let mut group = Group::new();
        group.open(ANN, 500).unwrap();
        group.open(BEN, 90_000).unwrap();
        for (key, session) in [("mine", ANN), ("mine too", ANN), ("rewritten", ANN), ("of another", BEN)] {
            group.apply(None, &["t"], ephemeral(key, session)).unwrap();
        }
        // Somebody else's from here on, and nobody's.
        group.apply(None, &["t"], ephemeral("mine too", BEN)).unwrap();
        group.apply(None, &["t"], insert(0, "rewritten", "w")).unwrap();
        let unknown = group.apply(None, &["t"], ephemeral("no", SessionId(77)));
        assert!(matches!(unknown, Err(Refusal::Invalid(_))), "{unknown:?}");
        group.time_ms = 1_500;
        let ends = if closed {
            Operation::CloseSession { session: ANN }
        } else {
            Operation::ExpireSessions { led_ms: 500 }
        };
        group.apply(None, &[], ends).unwrap();
        let left: Vec<_> = group.state.tree(TreeId(16)).unwrap().keys().cloned().collect();
        assert_eq!(left, ["mine too", "of another", "rewritten"]);
        // The other session, its expiry, its two keys.
        assert_eq!(group.kept(), 4);
    }
}

#[test]
fn many_keys_of_a_session_go_in_bounded_steps() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    for number in 0..3_000 {
        group.apply(None, &["t"], ephemeral(&format!("{number}"), ANN)).unwrap();
    }
    group.add(ANN, 0, 0).unwrap();
    group.time_ms = 1_500;
    let mut steps = 0;
    loop {
        let before = group.state.len(TreeId(16)) + group.kept();
        let ended = group.apply(None, &[], Operation::ExpireSessions { led_ms: 500 });
        let removed = before - group.state.len(TreeId(16)) - group.kept();
        assert!(removed <= REMOVE_AT_ONCE as u64, "{removed} at once");
        steps += 1;
        if !matches!(ended, Ok(Answer::SessionsExpired { more: true, .. })) {
            break;
        }
        // It can do nothing any more.
        assert_eq!(group.add(ANN, 0, steps), Err(Refusal::SessionUnknown(ANN)));
    }
    assert_eq!((group.state.len(TreeId(16)), group.kept()), (0, 0));
    assert!(steps >= 6, "{steps} steps");
}

#[test]
fn numbered_keys_get_the_next_number_of_their_prefix_for_ever() {
    let mut group = Group::new();
    group.open(ANN, 500).unwrap();
    let mut next = |tree: &str, prefix: &str, session| {
        let (tree_id, prefix, value) = (TreeId(0), prefix.into(), "v".into());
        let command = OwnedCommand::InsertNext { tree: tree_id, prefix, value, session };
        match group.apply(None, &[tree], Operation::Command(Command::Owned(command))) {
            Ok(Answer::Reply(Reply::Named { key })) => String::from_utf8(key.to_vec()).unwrap(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(next("t", "job-", None), "job-00000000000000000000");
    assert_eq!(next("t", "job-", Some(ANN)), "job-00000000000000000001");
    assert_eq!(next("t", "", None), "00000000000000000000");
    assert_eq!(next("u", "job-", None), "job-00000000000000000000");
    group.apply(None, &[], Operation::CloseSession { session: ANN }).unwrap();
    assert_eq!(group.state.len(TreeId(16)), 2, "the session's is gone");
    let command =
        OwnedCommand::InsertNext { tree: TreeId(0), prefix: "job-".into(), value: "v".into(), session: None };
    let third = group.apply(None, &["t"], Operation::Command(Command::Owned(command)));
    assert_eq!(third, Ok(Answer::Reply(Reply::Named { key: "job-00000000000000000002".into() })));
}
