//! Keys of sessions, keys with numbers, and times to live that were read, in transactions: all of it happens with the rest
//! or not at all, and what came between is noticed.

use dogsled_storage::command::KeyRead;
use dogsled_storage::lock::LockCommand;
use dogsled_storage::transaction::Commit;
use dogsled_storage::{
    Answer, Command, ExpiryCommand, GroupRead, GroupReadReply, Operation, OwnedCommand, Part, Refusal, Reply,
    SessionId, SetIf, TransactionId, TreeId, Vote, When,
};

use crate::replicas::group::Group;

const TREE: TreeId = TreeId(0);
const OWNER: SessionId = SessionId(7);

fn new() -> Group {
    Group::new(&["t"])
}

impl Group {
    fn open(&mut self, session: SessionId) {
        self.plain(Operation::OpenSession { session, lease_ms: 1_000 }).unwrap();
    }

    fn close(&mut self, session: SessionId) -> Result<Answer, Refusal> {
        self.plain(Operation::CloseSession { session })
    }

    fn next_number(&self, prefix: &str) -> u64 {
        let read = GroupRead::NextNumber { tree: "t".into(), prefix: prefix.into() };
        match self.replica.read(&read).unwrap() {
            GroupReadReply::NextNumber(number) => number,
            other => panic!("{other:?}"),
        }
    }

    fn insert_next(&mut self, prefix: &str) -> Result<Reply, Refusal> {
        let (prefix, value) = (prefix.into(), "plain".into());
        self.command(Command::Owned(OwnedCommand::InsertNext { tree: TREE, prefix, value, session: None }))
    }

    fn transact_owned(&mut self, expiries: Vec<ExpiryCommand>) -> Result<Reply, Refusal> {
        let (reads, ranges, writes) = (vec![], vec![], vec![]);
        self.command(Command::Transact { reads, ranges, writes, expiries })
    }

    fn value(&self, key: &str) -> Option<String> {
        self.found(key).map(|found| String::from_utf8(found.value.to_vec()).unwrap())
    }
}

fn owned(key: &str, session: Option<SessionId>, is_numbered: bool) -> ExpiryCommand {
    ExpiryCommand::Owned { tree: TREE, key: key.into(), value: "of tx".into(), session, is_numbered }
}

fn numbered(number: u64) -> String {
    format!("job:{number:020}")
}

fn part(expiries: Vec<ExpiryCommand>) -> Part {
    Part { expiries, ..Part::default() }
}

#[test]
fn a_key_of_a_session_dies_with_it_though_a_transaction_set_it() {
    for prepared in [false, true] {
        let mut group = new();
        group.open(OWNER);
        let set = vec![owned("a", Some(OWNER), false), owned("b", None, false)];
        if prepared {
            assert_eq!(group.prepare(1, part(set)), Ok(Vote::Yes));
            assert_eq!(group.value("a"), None);
            group.resolve(1, true);
        } else {
            assert_eq!(group.transact_owned(set), Ok(Reply::Done));
        }
        assert_eq!(group.value("a").as_deref(), Some("of tx"));
        group.close(OWNER).unwrap();
        assert_eq!(group.value("a"), None);
        assert_eq!(group.value("b").as_deref(), Some("of tx"));
    }
}

#[test]
fn a_session_that_is_not_open_gets_no_keys() {
    let mut group = new();
    let set = || vec![owned("a", Some(OWNER), false)];
    let refused = group.transact_owned(set());
    assert!(matches!(&refused, Err(Refusal::Invalid(what)) if what.contains("not open")), "{refused:?}");
    let refused = group.prepare(1, part(set()));
    assert!(matches!(&refused, Err(Refusal::Invalid(what)) if what.contains("not open")), "{refused:?}");
    assert_eq!(group.replica.transaction_counts().0, 0);
}

/// It was set before the session ended, and has died with it, though it is written only now.
#[test]
fn what_is_prepared_for_a_session_that_has_ended_since_is_not_there() {
    let mut group = new();
    group.open(OWNER);
    for key in ["a", "b"] {
        let insert = Command::Insert { tree: TREE, key: key.into(), value: "old".into() };
        group.command(insert).unwrap();
    }
    let set = vec![owned("a", Some(OWNER), false), owned(&numbered(0), Some(OWNER), true)];
    assert_eq!(group.prepare(1, part(set)), Ok(Vote::Yes));
    group.close(OWNER).unwrap();
    assert_eq!(group.value("a").as_deref(), Some("old"));
    group.resolve(1, true);
    assert_eq!(group.value("a"), None);
    assert_eq!(group.value(&numbered(0)), None);
    // Somebody has had the number.
    assert_eq!(group.next_number("job:"), 1);
    // It is counted as what is there.
    let GroupReadReply::Length(length) = group.replica.read(&GroupRead::Len { tree: "t".into() }).unwrap()
    else {
        panic!()
    };
    assert_eq!(length, 1);
}

#[test]
fn numbers_are_given_once_to_transactions_and_to_all_others() {
    let mut group = new();
    assert_eq!(group.next_number("job:"), 0);
    assert_eq!(group.insert_next("job:"), Ok(Reply::Named { key: numbered(0).as_str().into() }));
    let two = || vec![owned(&numbered(1), None, true), owned(&numbered(2), None, true)];
    // The second of two that have read the same number is a conflict.
    assert_eq!(group.transact_owned(two()), Ok(Reply::Done));
    assert_eq!(group.transact_owned(two()), Ok(Reply::Conflict));
    assert_eq!(group.next_number("job:"), 3);
    assert_eq!(group.insert_next("job:"), Ok(Reply::Named { key: numbered(3).as_str().into() }));
    assert_eq!(group.prepare(1, part(two())), Ok(Vote::Conflict));

    // Whoever comes while it is prepared waits.
    assert_eq!(group.prepare(2, part(vec![owned(&numbered(4), None, true)])), Ok(Vote::Yes));
    let waits = group.insert_next("job:");
    assert!(matches!(waits, Err(Refusal::Locked(_))), "{waits:?}");
    group.resolve(2, true);
    assert_eq!(group.insert_next("job:"), Ok(Reply::Named { key: numbered(5).as_str().into() }));
    assert_eq!(group.value(&numbered(4)).as_deref(), Some("of tx"));
    // One that was given up has used none.
    assert_eq!(group.prepare(3, part(vec![owned(&numbered(6), None, true)])), Ok(Vote::Yes));
    group.resolve(3, false);
    assert_eq!(group.insert_next("job:"), Ok(Reply::Named { key: numbered(6).as_str().into() }));

    let last = format!("job:{}", u64::MAX);
    for bad in ["job:1", "job:0000000000000000000x", &last, ""] {
        let refused = group.transact_owned(vec![owned(bad, None, true)]);
        assert!(matches!(refused, Err(Refusal::Invalid(_))), "{bad}: {refused:?}");
    }
}

#[test]
fn a_time_to_live_that_was_read_is_the_same_when_the_transaction_is_committed() {
    let mut group = new();
    let insert = |key: &str, when| {
        let (key, value) = (key.into(), "v".into());
        Command::Expiry(ExpiryCommand::Insert { tree: TREE, key, value, when })
    };
    let set =
        |when| Command::Expiry(ExpiryCommand::Set { tree: TREE, key: "k".into(), when, only: SetIf::Always });
    group.command(insert("k", When::At(5_000))).unwrap();
    let reads = |group: &Group| vec![KeyRead { tree: TREE, key: "k".into(), version: group.version("k") }];
    let lives = |at_ms| vec![ExpiryCommand::Lives { tree: TREE, key: "k".into(), at_ms }];
    let transact = |group: &mut Group, at_ms| {
        let (reads, expiries) = (reads(group), lives(at_ms));
        group.command(Command::Transact { reads, ranges: vec![], writes: vec![], expiries })
    };
    assert_eq!(transact(&mut group, Some(5_000)), Ok(Reply::Done));
    assert_eq!(transact(&mut group, None), Ok(Reply::Conflict));
    let version = group.version("k");
    group.command(set(When::At(6_000))).unwrap();
    assert_eq!(group.version("k"), version, "its version does not tell");
    assert_eq!(transact(&mut group, Some(5_000)), Ok(Reply::Conflict));

    // From the vote on it stays so.
    let part = Part { reads: reads(&group), expiries: lives(Some(6_000)), ..Part::default() };
    assert_eq!(group.prepare(1, part), Ok(Vote::Yes));
    for changes in [
        set(When::At(7_000)),
        Command::Expiry(ExpiryCommand::Clear { tree: TREE, key: "k".into() }),
        insert("k", When::Keep),
    ] {
        let waits = group.command(changes.clone());
        assert!(matches!(waits, Err(Refusal::Locked(_))), "{changes:?}: {waits:?}");
    }
    group.resolve(1, true);
    group.command(set(When::At(7_000))).unwrap();
    group.command(Command::Expiry(ExpiryCommand::Clear { tree: TREE, key: "k".into() })).unwrap();
    assert_eq!(transact(&mut group, None), Ok(Reply::Done));
    assert_eq!(transact(&mut group, Some(7_000)), Ok(Reply::Conflict));
}

/// Found out at the second look only, when what has ended is hidden, it once stopped every replica for good.
#[test]
fn a_part_that_cannot_be_applied_is_refused_whenever_that_shows() {
    let mut group = Group::new(&["t", "__dogsled__locks"]);
    // It has a number, and nobody has noted that it was given: until it has ended the number is not to be had.
    let (key, value) = (numbered(0).as_str().into(), "ends".into());
    let insert = ExpiryCommand::Insert { tree: TREE, key, value, when: When::After(500) };
    group.command(Command::Expiry(insert)).unwrap();
    group.time_ms = 2_000;
    let no_lease = || {
        let command = LockCommand::TryAcquire { name: "l".into(), owner: "o".into(), lease_ms: 0 };
        vec![owned(&numbered(0), None, true), ExpiryCommand::Lock { tree: TreeId(1), command }]
    };
    let not_open = || vec![owned(&numbered(0), None, true), owned("a", Some(OWNER), false)];
    for expiries in [no_lease(), not_open()] {
        let prepared = group.prepare(1, part(expiries.clone()));
        assert!(matches!(prepared, Err(Refusal::Invalid(_))), "{prepared:?}");
        let (transaction, decide_by_ms) = (TransactionId(2), 9_000);
        let commit = Commit { transaction, decide_by_ms, participants: vec![], part: part(expiries.clone()) };
        let committed = group.numbered(Operation::Commit(commit));
        assert!(matches!(committed, Err(Refusal::Invalid(_))), "{committed:?}");
        let transacted = group.transact_owned(expiries);
        assert!(matches!(transacted, Err(Refusal::Invalid(_))), "{transacted:?}");
    }
    assert_eq!(group.replica.transaction_counts(), (0, 0));
}
