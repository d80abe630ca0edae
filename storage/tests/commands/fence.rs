//! Fencing: a write that takes place only while a lock is held, in an embedded database and in a group.

use crate::commands_support::Random;
use dogsled_storage::counter::{CounterCommand, CounterReply};
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply, LockRequest};
use dogsled_storage::model::ModelState;
use dogsled_storage::{
    Answer, Command, Durability, Error, Fence, GroupCommand, GroupReply, Operation, Refusal, Reply,
    SessionId, SessionTag, TreeId, Write,
};

use crate::support::{TestClock, open_small};

struct Group {
    state: ModelState,
    time_ms: u64,
}

impl Group {
    fn apply(&mut self, session: Option<SessionTag>, operation: Operation) -> GroupReply {
        let command = GroupCommand { session, time_ms: self.time_ms, trees: vec!["t".into()], operation };
        self.state.apply_entry(self.state.sequence() + 1, command).unwrap()
    }

    fn acquire(&mut self, owner: &str, lease_ms: u64) -> FencingToken {
        let command = LockCommand::TryAcquire { name: "door".into(), owner: owner.into(), lease_ms };
        match self.apply(None, Operation::Command(Command::Lock(command))).result {
            Ok(Answer::Reply(Reply::Lock(LockReply::Acquired { token, .. }))) => token,
            other => panic!("{other:?}"),
        }
    }

    fn fenced(&mut self, token: FencingToken, command: Command) -> Result<Answer, Refusal> {
        let fences = vec![Fence { lock: "door".into(), token }];
        self.apply(None, Operation::Fenced { fences, command }).result
    }
}

fn writes() -> Vec<Command> {
    let tree = TreeId(0);
    let write = Write { tree, key: "k".into(), value: Some("batch".into()) };
    vec![
        Command::Insert { tree, key: "k".into(), value: "insert".into() },
        Command::Put { tree, key: "k".into(), value: "put".into() },
        Command::CompareAndSwap { tree, key: "k".into(), old: Some("put".into()), new: Some("swap".into()) },
        Command::Batch { writes: vec![write.clone()] },
        Command::Transact {
            reads: Vec::new(),
            ranges: Vec::new(),
            writes: vec![write],
            expiries: Vec::new(),
        },
        Command::Counter(CounterCommand::Add { name: "c".into(), delta: 1 }),
        Command::Remove { tree, key: "k".into() },
    ]
}

#[test]
fn every_kind_of_write_takes_place_under_the_lock_and_none_after_it() {
    let mut group = Group { state: ModelState::for_replica(), time_ms: 1_000 };
    let ann = group.acquire("ann", 500);
    for command in writes() {
        assert!(group.fenced(ann, command.clone()).is_ok(), "{command:?}");
    }
    group.time_ms = 1_499;
    assert!(group.fenced(ann, writes()[0].clone()).is_ok(), "until the last millisecond");
    // The lease has ended. Nobody has come yet, and still.
    group.time_ms = 1_500;
    let refused = |current| Err(Refusal::LockNotHeld { lock: "door".into(), token: ann, current });
    let before = group.state.clone();
    for command in writes() {
        assert_eq!(group.fenced(ann, command), refused(None));
    }
    let ben = group.acquire("ben", 500);
    for command in writes() {
        assert_eq!(group.fenced(ann, command), refused(Some(ben)));
    }
    for tree in [TreeId::COUNTERS, TreeId(16)] {
        assert_eq!(group.state.tree(tree), before.tree(tree), "a refused write has changed something");
    }
    assert!(group.fenced(ben, writes()[0].clone()).is_ok());
    let message = refused(Some(ben)).unwrap_err().to_string();
    assert_eq!(
        message,
        format!(
            "lock \"door\" is not held under token {ann} any more, so nothing was written: token {ben} holds it"
        )
    );
}

#[test]
fn a_lock_that_is_not_of_this_partition_is_not_held() {
    let mut group = Group { state: ModelState::for_replica(), time_ms: 1_000 };
    let refused = group.fenced(FencingToken(1), writes()[0].clone());
    assert!(matches!(refused, Err(Refusal::LockNotHeld { current: None, .. })), "{refused:?}");
}

#[test]
fn the_retry_of_a_fenced_write_gets_the_first_answer_though_the_lock_is_gone() {
    let mut group = Group { state: ModelState::for_replica(), time_ms: 1_000 };
    let session = SessionId(7);
    group.apply(None, Operation::OpenSession { session, lease_ms: 60_000 });
    let token = group.acquire("ann", 500);
    let tag = Some(SessionTag { session, slot: 0, sequence: 0 });
    let fenced = Operation::Fenced {
        fences: vec![Fence { lock: "door".into(), token }],
        command: Command::Counter(CounterCommand::Add { name: "c".into(), delta: 1 }),
    };
    let first = group.apply(tag, fenced.clone());
    assert_eq!(first.result, Ok(Answer::Reply(Reply::Counter(CounterReply::Added { value: 1 }))));
    group.time_ms = 2_000;
    assert_eq!(group.apply(tag, fenced), first);
}

#[test]
fn all_of_several_locks_must_be_held_and_any_holder_of_a_shared_one_will_do() {
    let mut group = Group { state: ModelState::for_replica(), time_ms: 1_000 };
    let door = group.acquire("ann", 500);
    let mut share = |owner: &str| {
        let request = LockRequest { permits: 1, capacity: 2, lease_ms: 500, delay_ms: 0 };
        let acquire = LockCommand::Acquire { name: "seats".into(), owner: owner.into(), request, wait_ms: 0 };
        match group.apply(None, Operation::Command(Command::Lock(acquire))).result {
            Ok(Answer::Reply(Reply::Lock(LockReply::Acquired { token, .. }))) => token,
            other => panic!("{other:?}"),
        }
    };
    let (first, second) = (share("ben"), share("cat"));
    let fence = |lock: &str, token| Fence { lock: lock.into(), token };
    let mut fenced = |fences: Vec<Fence>| {
        group.apply(None, Operation::Fenced { fences, command: writes()[0].clone() }).result
    };
    assert!(fenced(vec![fence("door", door), fence("seats", first)]).is_ok());
    assert!(fenced(vec![fence("door", door), fence("seats", second)]).is_ok());
    let other = FencingToken(second.0 + 1);
    let refused = fenced(vec![fence("door", door), fence("seats", other)]);
    let expected = Refusal::LockNotHeld { lock: "seats".into(), token: other, current: Some(second) };
    assert_eq!(refused, Err(expected));
    assert!(matches!(fenced(vec![fence("door", door); 65]), Err(Refusal::Invalid(_))));
    // No fence at all is a command like any other.
    assert!(fenced(Vec::new()).is_ok());
}

/// Holders that are paused at random, write whenever they wake, and never notice: what was written under a
/// lock is never overwritten by an earlier holder.
#[test]
fn no_write_of_an_earlier_holder_comes_after_one_of_a_later_holder() {
    for seed in 0..100 {
        let mut random = Random(seed);
        let disk = SimulatedDisk::new(seed);
        let clock = TestClock::new(1_000);
        let engine = open_small(&disk, &clock).unwrap();
        let mut held: Vec<FencingToken> = Vec::new();
        let (mut written, mut refused) = (0, 0);
        for _ in 0..200 {
            clock.advance(random.below(60));
            if random.below(3) == 0 {
                let command =
                    LockCommand::TryAcquire { name: "door".into(), owner: "x".into(), lease_ms: 100 };
                let reply = engine.execute(Command::Lock(command), Durability::Buffered).unwrap();
                if let Reply::Lock(LockReply::Acquired { token, .. }) = reply {
                    held.push(token);
                }
            }
            let Some(token) = held.get(random.below(held.len().max(1) as u64) as usize).copied() else {
                continue;
            };
            let put = Command::Put {
                tree: TreeId::DEFAULT,
                key: "guarded".into(),
                value: token.0.to_be_bytes().as_slice().into(),
            };
            let fence = Fence { lock: "door".into(), token };
            let before = engine.get(TreeId::DEFAULT, b"guarded").unwrap();
            match engine.execute_fenced(&[fence], put, Durability::Buffered) {
                Ok(_) => {
                    let before = before.map_or(0, |value| u64::from_be_bytes(value[..].try_into().unwrap()));
                    assert!(before <= token.0, "seed {seed}: {token} has overwritten {before}");
                    written += 1;
                }
                Err(Error::LockNotHeld { .. }) => {
                    assert_eq!(engine.get(TreeId::DEFAULT, b"guarded").unwrap(), before, "seed {seed}");
                    refused += 1;
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(written > 5 && refused > 5, "seed {seed}: {written} written, {refused} refused");
    }
}
