//! Locks in transactions: what is done to them happens with all the rest or not at all, judged by the time of the log
//! where it is committed.

use dogsled_storage::lock::{FencingToken, LockCommand, LockReply, LockRequest};
use dogsled_storage::{
    Command, ExpiryCommand, GroupRead, GroupReadReply, Part, Refusal, Reply, TreeId, Vote, Write,
};

use crate::replicas::group::Group;

const TREE: TreeId = TreeId(0);
/// Behind the tree of values in what commands here name.
const LOCKS: TreeId = TreeId(1);

fn new() -> Group {
    Group::new(&["t", "__dogsled__locks"])
}

impl Group {
    fn lock(&mut self, command: LockCommand) -> Result<LockReply, Refusal> {
        match self.command(Command::Lock(command))? {
            Reply::Lock(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn acquire(&mut self, name: &str, owner: &str) -> FencingToken {
        match self.lock(acquire(name, owner, 500)) {
            Ok(LockReply::Acquired { token, .. }) => token,
            other => panic!("{other:?}"),
        }
    }

    /// Writes `key` with these beside it, in one group.
    fn transact(&mut self, expiries: Vec<ExpiryCommand>) -> Result<Reply, Refusal> {
        self.command(Command::Transact { reads: vec![], ranges: vec![], writes: written(), expiries })
    }

    /// The same as a part of a transaction.
    fn prepare_locks(&mut self, transaction: u128, expiries: Vec<ExpiryCommand>) -> Result<Vote, Refusal> {
        self.prepare(transaction, Part { writes: written(), expiries, ..Part::default() })
    }

    /// Who holds a lock, under which token.
    fn holder(&self, name: &str) -> Option<(String, FencingToken)> {
        match self.replica.read(&GroupRead::LockHolder { name: name.into() }).unwrap() {
            GroupReadReply::LockHolder(holder) => {
                holder.map(|holder| (String::from_utf8(holder.owner.to_vec()).unwrap(), holder.token))
            }
            other => panic!("{other:?}"),
        }
    }

    fn is_written(&self) -> bool {
        self.found("key").is_some()
    }
}

fn written() -> Vec<Write> {
    vec![Write { tree: TREE, key: "key".into(), value: Some("value".into()) }]
}

fn acquire(name: &str, owner: &str, lease_ms: u64) -> LockCommand {
    LockCommand::TryAcquire { name: name.into(), owner: owner.into(), lease_ms }
}

fn does(command: LockCommand) -> ExpiryCommand {
    ExpiryCommand::Lock { tree: LOCKS, command }
}

fn release(name: &str, owner: &str, token: FencingToken) -> LockCommand {
    LockCommand::Release { name: name.into(), owner: owner.into(), token }
}

fn held(name: &str, token: FencingToken) -> ExpiryCommand {
    ExpiryCommand::Held { tree: LOCKS, key: name.into(), token }
}

#[test]
fn a_lock_is_taken_and_given_back_with_all_that_is_written_or_nothing_is() {
    let mut group = new();
    assert_eq!(group.transact(vec![does(acquire("l", "ann", 500))]), Ok(Reply::Done));
    let token = FencingToken(group.position());
    assert_eq!(group.holder("l"), Some(("ann".to_owned(), token)), "the token is the position of the commit");
    assert!(group.is_written());

    group.command(Command::Remove { tree: TREE, key: "key".into() }).unwrap();
    // It is not free, and neither is it ben's to give back, or ann's under another token.
    for command in
        [acquire("l", "ben", 500), release("l", "ben", token), release("l", "ann", FencingToken(token.0 + 1))]
    {
        assert_eq!(group.transact(vec![does(command.clone())]), Ok(Reply::Conflict), "{command:?}");
    }
    assert!(!group.is_written() && group.holder("l").is_some());
    assert_eq!(group.transact(vec![held("l", token), does(release("l", "ann", token))]), Ok(Reply::Done));
    assert!(group.is_written() && group.holder("l").is_none());
    assert_eq!(group.transact(vec![held("l", token)]), Ok(Reply::Conflict));
}

#[test]
fn a_lease_that_has_ended_where_the_transaction_is_committed_counts_for_nothing() {
    let mut group = new();
    let token = group.acquire("l", "ann");
    let renew = LockCommand::Renew { name: "l".into(), owner: "ann".into(), token, lease_ms: 800 };
    group.time_ms = 1_499;
    assert_eq!(group.transact(vec![held("l", token)]), Ok(Reply::Done));
    assert_eq!(group.transact(vec![does(renew.clone())]), Ok(Reply::Done));
    group.time_ms = 2_298;
    assert_eq!(group.prepare_locks(1, vec![held("l", token)]), Ok(Vote::Yes));
    group.resolve(1, false);
    group.time_ms = 2_299;
    for last in [held("l", token), does(renew), does(release("l", "ann", token))] {
        assert_eq!(group.transact(vec![last.clone()]), Ok(Reply::Conflict), "{last:?}");
        assert_eq!(group.prepare_locks(2, vec![last.clone()]), Ok(Vote::Conflict), "{last:?}");
    }
    assert_eq!(group.transact(vec![does(acquire("l", "ben", 500))]), Ok(Reply::Done));
}

#[test]
fn a_lock_that_is_to_be_taken_is_nobody_elses_until_that_is_decided() {
    let mut group = new();
    assert_eq!(group.prepare_locks(1, vec![does(acquire("l", "ann", 500))]), Ok(Vote::Yes));
    assert!(group.holder("l").is_none(), "not yet");
    assert!(matches!(group.lock(acquire("l", "ben", 500)), Err(Refusal::Locked(_))));
    assert!(matches!(group.prepare_locks(2, vec![does(acquire("l", "ben", 500))]), Ok(Vote::Locked(_))));
    assert!(matches!(group.transact(vec![does(acquire("l", "ben", 500))]), Err(Refusal::Locked(_))));
    // Another lock is nobody's business.
    group.acquire("m", "ben");
    group.resolve(1, true);
    let token = FencingToken(group.position());
    assert_eq!(group.holder("l"), Some(("ann".to_owned(), token)), "later than any grant before");

    // What comes to nothing leaves it as it was.
    assert_eq!(group.prepare_locks(3, vec![does(release("l", "ann", token))]), Ok(Vote::Yes));
    group.resolve(3, false);
    assert_eq!(group.holder("l"), Some(("ann".to_owned(), token)));
}

#[test]
fn whoever_waits_gets_the_lock_with_the_commit_that_gives_it_back() {
    let mut group = new();
    let token = group.acquire("l", "ann");
    let request = LockRequest { permits: 1, capacity: 1, lease_ms: 500, delay_ms: 0 };
    let wait = LockCommand::Acquire { name: "l".into(), owner: "ben".into(), request, wait_ms: 5_000 };
    assert!(matches!(group.lock(wait), Ok(LockReply::Waiting { .. })));
    assert_eq!(group.transact(vec![does(acquire("l", "cy", 500))]), Ok(Reply::Conflict), "ben was first");
    assert_eq!(group.prepare_locks(1, vec![does(release("l", "ann", token))]), Ok(Vote::Yes));
    assert_eq!(group.holder("l").unwrap().0, "ann");
    group.resolve(1, true);
    let (holder, next) = group.holder("l").unwrap();
    assert_eq!(holder, "ben");
    assert!(next > token);
}

#[test]
fn what_no_transaction_can_do_to_a_lock_is_refused_before_anything_is_promised() {
    let mut group = new();
    let token = group.acquire("shared", "ann");
    group.lock(release("shared", "ann", token)).unwrap();
    let request = LockRequest { permits: 1, capacity: 3, lease_ms: 500, delay_ms: 0 };
    let wait = LockCommand::Acquire { name: "shared".into(), owner: "ben".into(), request, wait_ms: 0 };
    assert!(matches!(group.lock(wait.clone()), Ok(LockReply::Acquired { .. })));
    let other_tree = ExpiryCommand::Held { tree: TREE, key: "l".into(), token };
    for (what, expiries) in [
        ("waits", vec![does(wait)]),
        ("expires", vec![does(LockCommand::Expire { name: "l".into() })]),
        ("no lease", vec![does(acquire("l", "ann", 0))]),
        ("another capacity", vec![does(acquire("shared", "ann", 500))]),
        ("another tree", vec![other_tree]),
        ("twice", vec![does(acquire("l", "ann", 500)), does(acquire("l", "ann", 500))]),
    ] {
        assert!(matches!(group.transact(expiries.clone()), Err(Refusal::Invalid(_))), "{what}");
        assert!(matches!(group.prepare_locks(1, expiries), Err(Refusal::Invalid(_))), "{what}");
    }
    assert!(!group.is_written());
    // By itself it is no command.
    assert!(matches!(group.command(Command::Expiry(held("l", token))), Err(Refusal::Invalid(_))));
}
