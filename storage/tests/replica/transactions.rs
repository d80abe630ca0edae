//! Prepared parts of transactions: what they keep others from, in which reads they show, and that they are
//! there after everything that a replica goes through.

use std::ops::Bound;
use std::sync::Arc;

use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::compare::{Comparison, Condition};
use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{LockCommand, LockRequest};
use dogsled_storage::strings::{StringAction, StringsOperation};
use dogsled_storage::transaction::{Commit, Reason};
use dogsled_storage::{
    Answer, Command, Decision, ExpiryCommand, GroupRead, GroupReadReply, IVec, Operation, OwnedCommand, Part,
    Refusal, Replica, ReplicaInstaller, Reply, SessionId, SessionTag, SetIf, Settled, TransactionId, TreeId,
    Vote, When, Write,
};

use crate::replicas::group::Group;
use crate::replicas::{open_wal, options, send};

pub(crate) const TREE: TreeId = TreeId(0);
const TREES: [&str; 2] = ["t", "__dogsled__counters"];

/// One replica, whose prepared parts have short leases.
pub(crate) fn new() -> Group {
    Group { lease_ms: 100, ..Group::new(&TREES) }
}

fn of(replica: Arc<Replica>) -> Group {
    Group { lease_ms: 100, ..Group::of(replica, &TREES) }
}

impl Group {
    pub(crate) fn put(&mut self, key: &str, value: &str) -> Result<Reply, Refusal> {
        self.command(Command::Put { tree: TREE, key: key.into(), value: value.into() })
    }

    pub(crate) fn vote(&mut self, transaction: u128, part: Part) -> Vote {
        self.prepare(transaction, part).unwrap()
    }

    pub(crate) fn read(&self, read: &GroupRead) -> Option<GroupReadReply> {
        match self.replica.read_settled(read).unwrap() {
            Settled::Answer(answer) => {
                assert_eq!(answer, self.replica.read(read).unwrap());
                Some(answer)
            }
            Settled::Locked(_) => None,
        }
    }

    pub(crate) fn get(&self, key: &str) -> Option<Option<IVec>> {
        match self.read(&GroupRead::Get { tree: "t".into(), key: key.into() })? {
            GroupReadReply::Value(found) => Some(found.map(|found| found.value)),
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn range(&self, low: &str, high: &str) -> RangeRead {
        let read = GroupRead::Range {
            tree: "t".into(),
            low: Bound::Included(low.into()),
            high: Bound::Excluded(high.into()),
            reverse: false,
            limit: 10_000,
            limit_bytes: 1 << 20,
            values: true,
        };
        let GroupReadReply::Page { entries, .. } = self.replica.read(&read).unwrap() else { panic!() };
        let mut fingerprint = RangeFingerprint::default();
        entries.iter().for_each(|(_, found)| fingerprint.add(found.version));
        let (low, high) = (low.into(), Some(high.into()));
        RangeRead { tree: TREE, low, high, count: entries.len() as u64, fingerprint: fingerprint.finish() }
    }
}

pub(crate) fn write(key: &str, value: Option<&str>) -> Write {
    Write { tree: TREE, key: key.into(), value: value.map(IVec::from) }
}

fn set(key: &str, when: When) -> ExpiryCommand {
    ExpiryCommand::Set { tree: TREE, key: key.into(), when, only: SetIf::Always }
}

pub(crate) fn insert(key: &str, value: &str, when: When) -> ExpiryCommand {
    ExpiryCommand::Insert { tree: TREE, key: key.into(), value: value.into(), when }
}

pub(crate) fn is_locked<T>(result: &Result<T, Refusal>) -> bool {
    matches!(result, Err(Refusal::Locked(lock)) if lock.home == 2 && lock.expires_ms == 1_100)
}

#[test]
fn a_prepared_part_keeps_off_all_that_would_not_be_serializable_and_nothing_else() {
    let mut group = new();
    for key in ["a", "b", "c", "m1", "z"] {
        group.put(key, "old").unwrap();
    }
    let part = Part {
        reads: vec![KeyRead { tree: TREE, key: "a".into(), version: group.version("a") }],
        ranges: vec![group.range("m", "n")],
        writes: vec![write("b", Some("new")), write("c", None)],
        expiries: vec![],
    };
    assert_eq!(group.vote(1, part), Vote::Yes);

    // Reads of what is written wait; of what was read they do not.
    assert_eq!(group.get("a").unwrap().unwrap(), "old");
    assert!(group.get("b").is_none() && group.get("c").is_none());
    assert_eq!(group.get("z").unwrap().unwrap(), "old");
    let many = |keys: &[&str]| GroupRead::GetMany {
        tree: "t".into(),
        keys: keys.iter().map(|key| (*key).into()).collect(),
    };
    assert!(group.read(&many(&["a", "z"])).is_some() && group.read(&many(&["a", "b"])).is_none());
    assert!(group.read(&GroupRead::Len { tree: "t".into() }).is_none());
    assert!(group.read(&GroupRead::Len { tree: "other".into() }).is_some());
    let page = |low: &str, high: &str| GroupRead::Range {
        tree: "t".into(),
        low: Bound::Included(low.into()),
        high: Bound::Excluded(high.into()),
        reverse: true,
        limit: 9,
        limit_bytes: 9,
        values: false,
    };
    assert!(group.read(&page("a", "b")).is_some() && group.read(&page("a", "b0")).is_none());
    // A page waits only for what it shows.
    let first = |low: &str, reverse, limit| {
        let (low, high) = (Bound::Included(low.into()), Bound::Unbounded);
        GroupRead::Range { tree: "t".into(), low, high, reverse, limit, limit_bytes: 99, values: false }
    };
    assert!(group.read(&first("a", false, 1)).is_some() && group.read(&first("a", false, 2)).is_none());
    assert!(group.read(&first("a", true, 2)).is_some() && group.read(&first("a", true, 3)).is_none());

    // Commands.
    let (tree, key) = (TREE, IVec::from("b"));
    let swap =
        |key: &str| Command::CompareAndSwap { tree, key: key.into(), old: Some("x".into()), new: None };
    for command in [
        Command::Put { tree, key: key.clone(), value: "1".into() },
        Command::Insert { tree, key: "a".into(), value: "1".into() },
        Command::Remove { tree, key: "c".into() },
        swap("b"),
        Command::Batch { writes: vec![write("z", None), write("m5", Some("phantom"))] },
        Command::Batch { writes: vec![write("m1", None)] },
        Command::Pop { tree, last: false },
        Command::ClearTree { tree },
        Command::DropTree { name: "t".into() },
        Command::Transact {
            reads: vec![KeyRead { tree, key, version: group.version("b") }],
            ranges: vec![],
            writes: vec![write("z", Some("1"))],
            expiries: vec![],
        },
        Command::Transact {
            reads: vec![],
            ranges: vec![group.range("b", "b1")],
            writes: vec![],
            expiries: vec![],
        },
        Command::Transact {
            reads: vec![],
            ranges: vec![],
            writes: vec![],
            expiries: vec![set("b", When::After(5))],
        },
        Command::Expiry(set("c", When::After(5))),
        Command::Compare {
            comparisons: vec![Comparison { tree, key: "c".into(), condition: Condition::Present }],
            then: vec![],
            otherwise: vec![],
        },
    ] {
        let refused = group.command(command.clone());
        assert!(is_locked(&refused), "{command:?}: {refused:?}");
    }
    let swapped = Ok(Reply::Swapped(Err(Some("old".into()))));
    assert_eq!(group.command(swap("a")), swapped, "it only reads");
    group.put("z", "1").unwrap();
    group.put("n", "1").unwrap();
    let transact = Command::Transact {
        reads: vec![KeyRead { tree, key: "a".into(), version: group.version("a") }],
        ranges: vec![group.range("m", "n")],
        writes: vec![write("z", Some("2"))],
        expiries: vec![],
    };
    assert_eq!(group.command(transact), Ok(Reply::Done));
    let counter = Command::Counter(CounterCommand::Add { name: "b".into(), delta: 1 });
    assert!(group.command(counter).is_ok(), "another tree");

    // Others that prepare: two may read, one writes.
    let reads = |group: &Group, key: &str| Part {
        reads: vec![KeyRead { tree, key: key.into(), version: group.version(key) }],
        ..Part::default()
    };
    let writes = |key: &str| Part { writes: vec![write(key, Some("2"))], ..Part::default() };
    let part = reads(&group, "a");
    assert_eq!(group.vote(2, part), Vote::Yes);
    group.resolve(2, false);
    for part in [reads(&group, "b"), writes("a"), writes("b"), writes("m5")] {
        assert!(matches!(group.vote(3, part), Vote::Locked(lock) if lock.transaction == TransactionId(1)));
    }
    let late = Part { reads: vec![KeyRead { tree, key: "z".into(), version: 1 }], ..Part::default() };
    assert_eq!(group.vote(3, late), Vote::Conflict);

    group.resolve(1, true);
    assert_eq!(group.get("b").unwrap().unwrap(), "new");
    assert_eq!(group.get("c").unwrap(), None);
    group.put("a", "free").unwrap();
    group.put("m5", "free").unwrap();
    assert_eq!(group.replica.transaction_counts(), (0, 0));
    // Again, it does nothing.
    group.put("b", "later").unwrap();
    group.resolve(1, true);
    assert_eq!(group.get("b").unwrap().unwrap(), "later");
}

#[test]
fn a_command_that_met_a_lock_is_carried_out_under_its_number_when_that_is_gone() {
    let mut group = new();
    let part = Part { writes: vec![write("a", Some("1"))], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    let tag = SessionTag { session: SessionId(1), slot: 7, sequence: 0 };
    let insert = Operation::Command(Command::Insert { tree: TREE, key: "a".into(), value: "2".into() });
    assert!(is_locked(&group.apply(Some(tag), insert.clone())));
    group.resolve(1, true);
    let first = Ok(Answer::Reply(Reply::Previous(Some("1".into()))));
    assert_eq!(group.apply(Some(tag), insert.clone()), first);
    assert_eq!(group.apply(Some(tag), insert), first, "the same answer, and not done again");
}

#[test]
fn home_decides_once() {
    let mut group = new();
    group.put("a", "0").unwrap();
    let commit = |transaction: u128, version: u64, decide_by_ms: u64| {
        Operation::Commit(Commit {
            transaction: TransactionId(transaction),
            decide_by_ms,
            participants: vec![3],
            part: Part {
                reads: vec![KeyRead { tree: TREE, key: "a".into(), version }],
                ranges: vec![],
                writes: vec![write("a", Some("1"))],
                expiries: vec![],
            },
        })
    };
    let decided = |decision| Ok(Answer::Decided(decision));
    let aborted = |reason| Ok(Answer::Decided(Decision::Aborted(reason)));
    let settle = |transaction: u128| Operation::Settle {
        transaction: TransactionId(transaction),
        decide_by_ms: 2_000,
    };
    let version = group.version("a");

    assert!(matches!(group.plain(commit(1, version, 2_000)), Err(Refusal::Invalid(_))), "without a session");
    assert!(matches!(group.numbered(commit(1, version, 70_000)), Err(Refusal::Invalid(_))), "too far off");
    assert_eq!(group.numbered(commit(1, version + 1, 2_000)), aborted(Reason::Conflict));
    assert_eq!(group.numbered(commit(1, version, 1_000)), aborted(Reason::TooLate));
    assert_eq!(group.numbered(commit(2, version, 2_000)), decided(Decision::Committed));
    assert_eq!(group.plain(settle(2)), decided(Decision::Committed));
    assert_eq!(group.get("a").unwrap().unwrap(), "1");

    let version = group.version("a");
    assert_eq!(group.plain(settle(3)), aborted(Reason::Settled));
    assert_eq!(group.numbered(commit(3, version, 2_000)), aborted(Reason::Settled));
    // What was aborted stays so until a commit would come too late.
    let forget =
        Operation::Forget { transactions: vec![TransactionId(2), TransactionId(3), TransactionId(9)] };
    assert_eq!(group.plain(forget.clone()), Ok(Answer::Done));
    assert_eq!(group.replica.transaction_counts(), (0, 1));
    assert_eq!(group.numbered(commit(3, version, 2_000)), aborted(Reason::Settled));
    group.time_ms = 2_000;
    assert_eq!(group.plain(forget), Ok(Answer::Done));
    assert_eq!(group.replica.transaction_counts(), (0, 0));
    assert_eq!(group.numbered(commit(3, version, 2_000)), aborted(Reason::TooLate));
    assert_eq!(group.plain(settle(4)), aborted(Reason::Presumed));
    assert_eq!(group.version("a"), version);
}

#[test]
fn what_was_absent_is_valid_only_if_nothing_came_and_went() {
    let mut group = new();
    group.put("a", "1").unwrap();
    let since = group.replica.applied().position;
    let validate = |group: &Group, key: &str, since| {
        let read = GroupRead::Validate {
            trees: vec!["t".into()],
            reads: vec![KeyRead { tree: TREE, key: key.into(), version: group.version(key) }],
            ranges: vec![group.range("x", "y")],
            since,
            under: None,
        };
        group.read(&read) == Some(GroupReadReply::Valid(true))
    };
    assert!(validate(&group, "a", Some(since)) && validate(&group, "none", Some(since)));
    group.put("x1", "1").unwrap();
    group.command(Command::Remove { tree: TREE, key: "x1".into() }).unwrap();
    assert!(!validate(&group, "a", Some(since)) && !validate(&group, "none", Some(since)));
    assert!(validate(&group, "none", None), "at one moment it does not matter");
    let since = group.replica.applied().position;
    assert!(validate(&group, "none", Some(since)));
    let part = Part { writes: vec![write("x", None)], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    assert!(!validate(&group, "none", None), "perhaps it is committed already");
}

#[test]
fn who_only_locks_is_given_what_is_there_and_keeps_writers_off_and_nobody_else() {
    let mut group = new();
    group.put("a", "1").unwrap();
    group.put("m1", "1").unwrap();
    // What was seen before does not matter.
    let part = || Part {
        reads: vec![
            KeyRead { tree: TREE, key: "a".into(), version: 1 },
            KeyRead { tree: TREE, key: "absent".into(), version: 99 },
        ],
        ranges: vec![RangeRead {
            tree: TREE,
            low: "m".into(),
            high: Some("n".into()),
            count: 7,
            fingerprint: 7,
        }],
        ..Part::default()
    };
    let yes = Ok(Answer::Vote(Vote::Yes));
    assert_eq!(group.vote(1, part()), Vote::Conflict);
    let writes = Part { writes: vec![write("a", None)], ..Part::default() };
    assert!(matches!(group.prepare_or_lock(2, writes, true), Err(Refusal::Invalid(_))));
    assert_eq!(group.prepare_or_lock(3, part(), true), yes);
    // Two that look are not in each other's way, and reads are not at all.
    assert_eq!(group.prepare_or_lock(4, part(), true), yes);
    assert_eq!(group.get("a").unwrap().unwrap(), "1");
    for key in ["a", "absent", "m2"] {
        assert!(is_locked(&group.put(key, "2")), "{key}");
        let part = Part { writes: vec![write(key, None)], ..Part::default() };
        assert!(matches!(group.vote(5, part), Vote::Locked(_)), "{key}");
    }
    group.put("free", "2").unwrap();

    let look = |group: &Group, transaction: u128| {
        let read = GroupRead::Validate {
            trees: vec!["t".into()],
            reads: ["a", "absent"]
                .map(|key| KeyRead { tree: TREE, key: key.into(), version: group.version(key) })
                .into(),
            ranges: vec![group.range("m", "n")],
            since: None,
            under: Some(TransactionId(transaction)),
        };
        group.read(&read) == Some(GroupReadReply::Valid(true))
    };
    // Something else of the tree was removed meanwhile.
    group.command(Command::Remove { tree: TREE, key: "free".into() }).unwrap();
    assert!(look(&group, 3) && look(&group, 4) && !look(&group, 5));
    group.resolve(3, false);
    assert!(!look(&group, 3) && look(&group, 4));
    assert!(is_locked(&group.put("a", "2")));
    group.resolve(4, false);
    assert!(!look(&group, 4));
    group.put("a", "2").unwrap();

    // One that was there before writes, and nobody after it.
    for key in ["a", "absent", "m5"] {
        let part_of_writer = || Part { writes: vec![write(key, Some("3"))], ..Part::default() };
        assert_eq!(group.vote(6, part_of_writer()), Vote::Yes);
        assert_eq!(group.prepare_or_lock(7, part(), true), yes, "{key}");
        assert!(group.get(key).is_none() && !look(&group, 7), "{key}");
        group.resolve(6, true);
        assert_eq!(group.get(key).unwrap().unwrap(), "3");
        assert!(matches!(group.vote(8, part_of_writer()), Vote::Locked(_)), "{key}");
        assert!(look(&group, 7), "{key}");
        group.resolve(7, false);
    }
    assert_eq!(group.replica.transaction_counts(), (0, 0));
}

impl Group {
    /// When a key expires; outer `None`: it is not there.
    fn expires(&self, key: &str) -> Option<Option<u64>> {
        match self.read(&GroupRead::Expires { tree: "t".into(), key: key.into() }).unwrap() {
            GroupReadReply::Expires { at_ms, .. } => at_ms,
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn times_to_live_of_a_part_count_from_when_it_was_prepared_however_late_it_is_resolved() {
    let mut group = new();
    let put_for = |group: &mut Group, key: &str, ms| {
        group.command(Command::Expiry(insert(key, "old", When::After(ms)))).unwrap();
    };
    for key in ["extended", "over", "stays", "replaced", "plainly"] {
        put_for(&mut group, key, 50);
    }
    group.put("forever", "old").unwrap();
    let part = || Part {
        reads: vec![],
        ranges: vec![],
        writes: vec![write("plainly", Some("new"))],
        expiries: vec![
            insert("fresh", "new", When::After(200)),
            insert("replaced", "new", When::After(200)),
            insert("short", "new", When::After(10)),
            set("extended", When::After(300)),
            set("over", When::At(900)),
            set("absent", When::After(300)),
            set("forever", When::After(400)),
            ExpiryCommand::Clear { tree: TREE, key: "stays".into() },
        ],
    };
    assert_eq!(group.vote(1, part()), Vote::Yes);
    // By now, of what was there, some would have expired; and it is not purged meanwhile.
    group.time_ms = 1_100;
    let nothing = Ok(Reply::Settled { keys: 0, locks: 0, more: false });
    assert_eq!(group.command(Command::SettleDue { limit: 100 }), nothing);
    assert!(is_locked(&group.command(Command::Expiry(insert("extended", "x", When::Keep)))));
    group.resolve(1, true);
    for (key, expires) in [
        ("fresh", Some(Some(1_200))),
        ("replaced", Some(Some(1_200))),
        ("short", None),
        ("extended", Some(Some(1_300))),
        ("over", None),
        ("absent", None),
        ("forever", Some(Some(1_400))),
        ("stays", Some(None)),
        ("plainly", Some(None)),
    ] {
        assert_eq!(group.expires(key), expires, "{key}");
    }
    group.command(Command::SettleDue { limit: 100 }).unwrap();
    let length = |group: &Group| group.read(&GroupRead::Len { tree: "t".into() }).unwrap();
    assert_eq!(length(&group), GroupReadReply::Length(6));
    group.time_ms = 1_250;
    group.command(Command::SettleDue { limit: 100 }).unwrap();
    assert_eq!(length(&group), GroupReadReply::Length(4));
    assert_eq!(group.get("fresh"), Some(None));
    assert_eq!(group.get("extended").unwrap().unwrap(), "old");

    // Home counts from the decision; and what is aborted changes nothing.
    let commit = Operation::Commit(Commit {
        transaction: TransactionId(2),
        decide_by_ms: 9_000,
        participants: vec![3],
        part: Part { expiries: vec![insert("fresh", "new", When::After(200))], ..Part::default() },
    });
    assert_eq!(group.numbered(commit), Ok(Answer::Decided(Decision::Committed)));
    assert_eq!(group.expires("fresh"), Some(Some(1_450)));
    let part = Part { expiries: vec![set("stays", When::After(1))], ..Part::default() };
    assert_eq!(group.vote(3, part), Vote::Yes);
    group.resolve(3, false);
    assert_eq!(group.expires("stays"), Some(None));
}

#[test]
fn a_part_that_could_not_be_applied_is_refused_before_anything_is_promised() {
    let mut group = new();
    group.put("k", "v").unwrap();
    let at = When::After(5);
    let of_counters = ExpiryCommand::Set { tree: TreeId(1), key: "c".into(), when: at, only: SetIf::Always };
    let swap = ExpiryCommand::Swap { tree: TREE, key: "k".into(), old: None, new: "w".into(), when: at };
    let parts = [
        Part { expiries: vec![set("k", When::After(0))], ..Part::default() },
        Part { expiries: vec![insert("k", "w", When::After(0))], ..Part::default() },
        Part { expiries: vec![set("k", at), insert("k", "w", at)], ..Part::default() },
        Part { writes: vec![write("k", None)], expiries: vec![set("k", at)], ..Part::default() },
        Part { expiries: vec![of_counters], ..Part::default() },
        Part { expiries: vec![swap], ..Part::default() },
        Part { expiries: vec![ExpiryCommand::Get { tree: TREE, key: "k".into() }], ..Part::default() },
    ];
    for part in parts {
        let prepared = group.prepare_or_lock(1, part.clone(), false);
        assert!(matches!(prepared, Err(Refusal::Invalid(_))), "{part:?}: {prepared:?}");
        let (transaction, decide_by_ms) = (TransactionId(1), 9_000);
        let commit = Commit { transaction, decide_by_ms, participants: vec![3], part: part.clone() };
        let committed = group.numbered(Operation::Commit(commit));
        assert!(matches!(committed, Err(Refusal::Invalid(_))), "{part:?}: {committed:?}");
        let Part { reads, ranges, writes, expiries } = part.clone();
        let transacted = group.command(Command::Transact { reads, ranges, writes, expiries });
        assert!(matches!(transacted, Err(Refusal::Invalid(_))), "{part:?}: {transacted:?}");
    }
    let only_locks = Part { expiries: vec![set("k", at)], ..Part::default() };
    assert!(matches!(group.prepare_or_lock(1, only_locks, true), Err(Refusal::Invalid(_))));
    assert_eq!(group.replica.transaction_counts(), (0, 0));
    assert_eq!(group.get("k").unwrap().unwrap(), "v");
}

#[test]
fn what_is_prepared_survives_checkpoints_and_travels_in_snapshots() {
    let disk = SimulatedDisk::new(2);
    let wal = open_wal(&disk).unwrap();
    let replica = Replica::open(options(&disk, 1), Arc::clone(&wal)).unwrap();
    let mut group = of(replica);
    group.plain(Operation::OpenSession { session: SessionId(1), lease_ms: 1 << 40 }).unwrap();
    let part = Part { writes: vec![write("a", Some("1")), write("gone", None)], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    let settle = Operation::Settle { transaction: TransactionId(5), decide_by_ms: 2_000 };
    group.plain(settle).unwrap();
    group.replica.checkpoint().unwrap();
    let Group { replica, .. } = group;

    let target = options(&disk, 2);
    let mut installer = ReplicaInstaller::begin(&target).unwrap();
    send(&replica.snapshot(), &mut installer, 100).unwrap();
    installer.finish().unwrap();
    drop(replica);
    for of in [options(&disk, 1), target] {
        let replica = Replica::open(of, Arc::clone(&wal)).unwrap();
        let mut group = self::of(replica);
        assert_eq!(group.replica.transaction_counts(), (1, 1));
        assert_eq!(group.replica.expired_transactions(1_099, None, 9), []);
        let expired = group.replica.expired_transactions(1_100, None, 9);
        assert_eq!(expired.iter().map(|lock| lock.transaction.0).collect::<Vec<_>>(), [1]);
        assert_eq!(group.replica.decisions_before(2_000, None, 9), []);
        assert_eq!(group.replica.decisions_before(2_001, None, 9)[0].0, TransactionId(5));
        assert!(group.get("a").is_none() && is_locked(&group.put("a", "2")));
        group.resolve(1, true);
        assert_eq!(group.get("a").unwrap().unwrap(), "1");
    }
}

#[test]
fn one_locked_key_does_not_stop_the_end_of_sessions() {
    let mut group = new();
    for session in [2, 3].map(SessionId) {
        group.plain(Operation::OpenSession { session, lease_ms: 500 }).unwrap();
        for key in ["x", "y"] {
            let key = format!("{key}{}", session.0).as_str().into();
            let owned = OwnedCommand::Insert { tree: TREE, key, value: "here".into(), session };
            group.command(Command::Owned(owned)).unwrap();
        }
    }
    let request = LockRequest { permits: 1, capacity: 1, lease_ms: 0, delay_ms: 0 };
    let (name, owner) = (IVec::from("door"), IVec::from("two"));
    let session = SessionId(2);
    let acquire = LockCommand::AcquireOwned { name, owner, request, session, waits: false };
    group.command(Command::Lock(acquire)).unwrap();
    // A range in which the first session has a key was read by a transaction that is prepared.
    let part = Part { ranges: vec![group.range("x2", "x3")], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    group.time_ms = 5_000;
    let expire = || Operation::ExpireSessions { led_ms: 10_000 };
    let expired = |sessions| Ok(Answer::SessionsExpired { sessions, more: false });
    assert_eq!(group.plain(expire()), expired(1), "the other one");
    assert_eq!(group.get("x2"), Some(Some("here".into())));
    for key in ["y2", "x3", "y3"] {
        assert_eq!(group.get(key), Some(None), "{key}");
    }
    let holder = GroupRead::LockHolder { name: "door".into() };
    assert_eq!(group.read(&holder), Some(GroupReadReply::LockHolder(None)));
    assert_eq!(group.plain(expire()), expired(0));
    group.resolve(1, false);
    assert_eq!(group.plain(expire()), expired(1));
    assert_eq!(group.get("x2"), Some(None));
}

/// Neither many sessions with a locked key nor one with many: what is locked is asked for again in a while, not at once.
#[test]
fn much_that_is_locked_neither_stops_the_end_of_other_sessions_nor_is_come_back_for_at_once() {
    let mut group = new();
    let open = |group: &mut Group, session| {
        group.plain(Operation::OpenSession { session, lease_ms: 500 }).unwrap();
    };
    let own = |group: &mut Group, session, key: String| {
        let key = key.as_str().into();
        let owned = OwnedCommand::Insert { tree: TREE, key, value: "here".into(), session };
        group.command(Command::Owned(owned)).unwrap();
    };
    let (large, last) = (SessionId(1), SessionId(5_000));
    open(&mut group, large);
    (0..700).for_each(|key| own(&mut group, large, format!("x{key:04}")));
    for number in 0..600 {
        let session = SessionId(1_000 + number);
        open(&mut group, session);
        own(&mut group, session, format!("x of {number}"));
    }
    open(&mut group, last);
    own(&mut group, last, "y".to_owned());
    let part = Part { ranges: vec![group.range("x", "y")], ..Part::default() };
    assert_eq!(group.vote(1, part), Vote::Yes);
    group.time_ms = 5_000;
    let expire = || Operation::ExpireSessions { led_ms: 10_000 };
    let (mut ended, mut rounds) = (0, 0);
    let mut expire_all = |group: &mut Group| {
        loop {
            rounds += 1;
            assert!(rounds < 100, "it goes on for ever");
            let Ok(Answer::SessionsExpired { sessions, more }) = group.plain(expire()) else { panic!() };
            ended += sessions;
            if !more {
                return ended;
            }
        }
    };
    assert_eq!(expire_all(&mut group), 1, "the one that has nothing locked");
    assert_eq!((group.get("y"), group.get("x0000")), (Some(None), Some(Some("here".into()))));
    group.resolve(1, false);
    assert_eq!(expire_all(&mut group), 602);
    assert_eq!(group.get("x0000"), Some(None));
}

#[test]
fn a_key_is_told_with_the_position_that_the_answer_is_of() {
    let mut group = new();
    let as_of = |group: &Group, key: &str| group.replica.get_as_of(&"t".into(), &key.into()).unwrap();
    let nothing = as_of(&group, "a");
    assert_eq!(nothing, (None, group.replica.applied().position));
    group.put("a", "1").unwrap();
    group.put("b", "1").unwrap();
    let (found, position) = as_of(&group, "a");
    assert_eq!(position, group.replica.applied().position);
    assert_eq!(found.unwrap().version, position - 1);
    group.command(Command::Remove { tree: TREE, key: "a".into() }).unwrap();
    assert_eq!(as_of(&group, "a"), (None, position + 1));
}

/// `u64::MAX` says of all keys together that none expires.
#[test]
fn a_time_to_live_without_end_is_counted_once_and_the_group_can_be_sent() {
    let disk = SimulatedDisk::new(3);
    let wal = open_wal(&disk).unwrap();
    let replica = Replica::open(options(&disk, 1), Arc::clone(&wal)).unwrap();
    let mut group = self::of(replica);
    let strings = |action| {
        let operations = vec![StringsOperation { tree: TREE, key: "k".into(), action }];
        Command::Strings { watched: Vec::new(), operations }
    };
    for when in [When::After(u64::MAX), When::At(u64::MAX)] {
        group.command(Command::Expiry(insert("k", "v", when))).unwrap();
        let (only, only_some) = (SetIf::Always, false);
        group.command(strings(StringAction::Expire { when, only, only_some })).unwrap();
        group.command(strings(StringAction::Expire { when: When::After(60_000), only, only_some })).unwrap();
        group.command(Command::Expiry(set("k", when))).unwrap();
    }
    let target = options(&disk, 2);
    let mut installer = ReplicaInstaller::begin(&target).unwrap();
    send(&group.replica.snapshot(), &mut installer, 100).unwrap();
    installer.finish().unwrap();
    let other = Replica::open(target, wal).unwrap();
    assert_eq!(other.snapshot().fingerprint().unwrap(), group.replica.snapshot().fingerprint().unwrap());
}

#[test]
fn a_tree_that_was_dropped_and_made_again_is_not_the_one_that_was_read() {
    let mut group = new();
    group.put("a", "1").unwrap();
    let since = group.replica.applied().position;
    let validate = |group: &Group| {
        let read = GroupRead::Validate {
            trees: vec!["t".into()],
            reads: vec![KeyRead { tree: TREE, key: "none".into(), version: 0 }],
            ranges: Vec::new(),
            since: Some(since),
            under: None,
        };
        group.read(&read) == Some(GroupReadReply::Valid(true))
    };
    assert!(validate(&group));
    group.put("none", "came").unwrap();
    group.command(Command::DropTree { name: "t".into() }).unwrap();
    group.put("a", "2").unwrap();
    assert!(!validate(&group), "it came, and went with its tree");
}
