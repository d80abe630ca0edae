//! Locks that live and die with a session, on the model.

use std::ops::Bound;

use dogsled_storage::lock::queue::waiter_key;
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply, LockRequest, decode_state};
use dogsled_storage::model::ModelState;
use dogsled_storage::{
    Answer, Command, Fence, GroupCommand, IVec, Operation, Refusal, Reply, SessionId, TreeId, View,
};

const ANN: SessionId = SessionId(0xa);
const BEN: SessionId = SessionId(0xb);
const CAT: SessionId = SessionId(0xc);

struct Group {
    state: ModelState,
    time_ms: u64,
}

impl Group {
    fn new(sessions: &[SessionId]) -> Group {
        let mut group = Group { state: ModelState::for_replica(), time_ms: 1_000 };
        for session in sessions {
            group.apply(Operation::OpenSession { session: *session, lease_ms: 500 }).unwrap();
        }
        group
    }

    fn apply(&mut self, operation: Operation) -> Result<Answer, Refusal> {
        let command = GroupCommand { session: None, time_ms: self.time_ms, trees: Vec::new(), operation };
        let reply = self.state.apply_entry(self.state.sequence() + 1, command).unwrap();
        self.check();
        reply.result
    }

    fn lock(&mut self, command: LockCommand) -> LockReply {
        match self.apply(Operation::Command(Command::Lock(command))) {
            Ok(Answer::Reply(Reply::Lock(reply))) => reply,
            other => panic!("{other:?}"),
        }
    }

    fn acquire(&mut self, name: &str, session: SessionId, capacity: u32, delay_ms: u64) -> LockReply {
        let request = LockRequest { permits: 1, capacity, lease_ms: 0, delay_ms };
        let (name, owner) = (name.into(), format!("{session}").as_str().into());
        self.lock(LockCommand::AcquireOwned { name, owner, request, session, waits: true })
    }

    fn token(&mut self, name: &str, session: SessionId) -> FencingToken {
        match self.acquire(name, session, 1, 0) {
            LockReply::Acquired { token, expires_ms: u64::MAX } => token,
            other => panic!("{other:?}"),
        }
    }

    fn ticket(&mut self, name: &str, session: SessionId) -> u64 {
        match self.acquire(name, session, 1, 0) {
            LockReply::Waiting { ticket, expires_ms: u64::MAX } => ticket,
            other => panic!("{other:?}"),
        }
    }

    fn look(&self, name: &str, ticket: u64) -> LockReply {
        dogsled_storage::lock::ticket(&self.state, self.time_ms, name.as_bytes(), ticket).unwrap()
    }

    fn keys(&self, tree: TreeId) -> Vec<IVec> {
        let mut keys = Vec::new();
        let each = &mut |key: &[u8], _| {
            keys.push(IVec::from(key));
            true
        };
        self.state.scan(tree, Bound::Unbounded, Bound::Unbounded, each).unwrap();
        keys
    }

    /// Each session has two keys, and one for each grant and each place in a queue, and there are no others.
    fn check(&self) {
        let sessions = self.keys(TreeId::SESSIONS);
        let of_kind = |kind: u8| sessions.iter().filter(|key| key[0] == kind).count();
        let permits = self.keys(TreeId::LOCKS).into_iter().map(|name| {
            let state = decode_state(&name, &self.state.get(TreeId::LOCKS, &name).unwrap().unwrap()).unwrap();
            state.holders.len()
        });
        let permits: usize = permits.sum();
        let waiting = self.keys(TreeId::LOCK_QUEUES).iter().filter(|key| key[0] == 2).count();
        assert_eq!(of_kind(4), permits + waiting, "{permits} grants, {waiting} wait");
        assert_eq!(of_kind(1), of_kind(3));
    }

    fn expire(&mut self) -> (u64, bool) {
        match self.apply(Operation::ExpireSessions { led_ms: 500 }) {
            Ok(Answer::SessionsExpired { sessions, more }) => (sessions, more),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_lock_is_held_as_long_as_its_session_and_then_goes_to_whoever_waits() {
    let mut group = Group::new(&[ANN, BEN, CAT]);
    let first = group.token("door", ANN);
    let (second, third) = (group.ticket("door", BEN), group.ticket("door", CAT));
    // No time ends it.
    group.time_ms = 1_400;
    for session in [ANN, BEN, CAT] {
        group.apply(Operation::RenewSession { session }).unwrap();
    }
    group.time_ms = 1_800;
    let renew = LockCommand::Renew {
        name: "door".into(),
        owner: format!("{ANN}").as_str().into(),
        token: first,
        lease_ms: 5,
    };
    assert_eq!(group.lock(renew), LockReply::Renewed { expires_ms: u64::MAX });
    assert!(matches!(group.look("door", second), LockReply::Waiting { .. }));
    group.apply(Operation::RenewSession { session: BEN }).unwrap();
    group.apply(Operation::RenewSession { session: CAT }).unwrap();
    // Nobody has renewed ANN: the entry that ends it grants the lock.
    group.time_ms = 1_950;
    assert_eq!(group.expire(), (1, false));
    let LockReply::Acquired { token, .. } = group.look("door", second) else { panic!("BEN holds it") };
    assert!(token > first);
    let write = |token| Operation::Fenced {
        fences: vec![Fence { lock: "door".into(), token }],
        command: Command::Counter(dogsled_storage::counter::CounterCommand::Get { name: "c".into() }),
    };
    assert!(matches!(group.apply(write(first)), Err(Refusal::LockNotHeld { .. })));
    assert!(group.apply(write(token)).is_ok());
    // Closing is a release.
    group.apply(Operation::CloseSession { session: BEN }).unwrap();
    assert!(matches!(group.look("door", third), LockReply::Acquired { .. }));
    let release = LockCommand::CancelWait { name: "door".into(), ticket: third };
    assert_eq!(group.lock(release), LockReply::Released);
    group.apply(Operation::CloseSession { session: CAT }).unwrap();
    assert_eq!(group.keys(TreeId::SESSIONS).len() + group.keys(TreeId::LOCKS).len(), 0);
}

#[test]
fn places_in_the_queue_go_with_their_session_and_those_behind_move_up() {
    let mut group = Group::new(&[ANN, BEN, CAT]);
    let first = group.token("door", ANN);
    let gone = [group.ticket("door", BEN), group.ticket("door", BEN)];
    let stays = group.ticket("door", CAT);
    let behind = group.ticket("door", BEN);
    group.apply(Operation::CloseSession { session: BEN }).unwrap();
    for ticket in gone.into_iter().chain([behind]) {
        assert_eq!(group.look("door", ticket), LockReply::NotHeld);
        assert_eq!(group.state.get(TreeId::LOCK_QUEUES, &waiter_key(b"door", ticket)).unwrap(), None);
    }
    let owner = format!("{ANN}").as_str().into();
    group.lock(LockCommand::Release { name: "door".into(), owner, token: first });
    assert!(matches!(group.look("door", stays), LockReply::Acquired { .. }));
    let request = LockRequest { permits: 1, capacity: 1, lease_ms: 0, delay_ms: 0 };
    let (name, owner, session) = ("door".into(), "ben".into(), BEN);
    let late = Command::Lock(LockCommand::AcquireOwned { name, owner, request, session, waits: true });
    let refused = group.apply(Operation::Command(late));
    assert!(matches!(&refused, Err(Refusal::Invalid(what)) if what.contains("not open")), "{refused:?}");
}

#[test]
fn the_delay_follows_the_end_of_a_lease_and_not_a_closing() {
    for is_closed in [true, false] {
        let mut group = Group::new(&[ANN]);
        assert!(matches!(group.acquire("door", ANN, 1, 300), LockReply::Acquired { .. }));
        group.time_ms = 1_700;
        group.apply(Operation::OpenSession { session: BEN, lease_ms: 60_000 }).unwrap();
        let ticket = group.ticket("door", BEN);
        if is_closed {
            group.apply(Operation::CloseSession { session: ANN }).unwrap();
        } else {
            assert_eq!(group.expire(), (1, false));
        }
        for (time_ms, granted) in [(1_700, is_closed), (1_999, is_closed), (2_000, true)] {
            group.time_ms = time_ms;
            group.apply(Operation::Command(Command::SettleDue { limit: 10 })).unwrap();
            let is_granted = matches!(group.look("door", ticket), LockReply::Acquired { .. });
            assert_eq!(is_granted, granted, "closed: {is_closed}, at {time_ms}");
        }
    }
}

/// Any number of sessions, of locks and of semaphores; see [`Group::check`].
#[test]
fn whatever_happens_locks_and_sessions_agree_and_nothing_outlives_its_session() {
    for seed in 1..=200u64 {
        let mut random = seed;
        let mut below = |limit: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % limit
        };
        let mut group = Group::new(&[]);
        let mut held: Vec<(String, SessionId, FencingToken)> = Vec::new();
        let mut waits = Vec::new();
        for _ in 0..150 {
            let session = SessionId(u128::from(below(5)));
            let (name, capacity) = [("door", 1), ("seats", 3), ("gate", 1)][below(3) as usize];
            match below(10) {
                0 | 1 => drop(group.apply(Operation::OpenSession { session, lease_ms: 500 })),
                2 => drop(group.apply(Operation::CloseSession { session })),
                3 => {
                    group.time_ms += 200;
                    group.expire();
                }
                4 => group.time_ms += below(300),
                5 if !held.is_empty() => {
                    let (name, session, token) = held.swap_remove(below(held.len() as u64) as usize);
                    let (name, owner) = (name.as_str().into(), format!("{session}").as_str().into());
                    group.lock(LockCommand::Release { name, owner, token });
                }
                6 if !waits.is_empty() => {
                    let (name, ticket): (&str, u64) = waits.swap_remove(below(waits.len() as u64) as usize);
                    group.lock(LockCommand::CancelWait { name: name.into(), ticket });
                }
                7 => drop(group.apply(Operation::Command(Command::SettleDue { limit: 10 }))),
                _ => {
                    let request = LockRequest { permits: 1, capacity, lease_ms: 0, delay_ms: below(2) * 100 };
                    let (lock, owner) = (name.into(), format!("{session}").as_str().into());
                    let waits_for = below(2) == 0;
                    let acquire =
                        LockCommand::AcquireOwned { name: lock, owner, request, session, waits: waits_for };
                    match group.apply(Operation::Command(Command::Lock(acquire))) {
                        Ok(Answer::Reply(Reply::Lock(LockReply::Acquired { token, .. }))) => {
                            held.push((name.to_owned(), session, token));
                        }
                        Ok(Answer::Reply(Reply::Lock(LockReply::Waiting { ticket, .. }))) => {
                            waits.push((name, ticket));
                        }
                        Ok(Answer::Reply(Reply::Lock(LockReply::Held { .. }))) | Err(Refusal::Invalid(_)) => {
                        }
                        other => panic!("seed {seed}: {other:?}"),
                    }
                }
            }
        }
        group.time_ms += 1_000;
        let mut entries = 0;
        while group.expire().1 {
            entries += 1;
            assert!(entries < 50, "seed {seed}: it never ends");
        }
        assert_eq!(group.keys(TreeId::SESSIONS), [] as [IVec; 0], "seed {seed}");
        let queued = group.keys(TreeId::LOCK_QUEUES);
        assert!(queued.iter().all(|key| key[0] != 2), "seed {seed}: {queued:?}");
    }
}

/// Tokens run ahead of the log where permits change hands faster than entries come; each is larger than the one before,
/// and none is taken for damage.
#[test]
fn permits_that_change_hands_in_entries_that_follow_each_other_leave_a_lock_that_can_be_read() {
    let mut group = Group::new(&[ANN, BEN, CAT]);
    let ask = |group: &mut Group, owner: &str, session, permits| {
        let request = LockRequest { permits, capacity: 2, lease_ms: 0, delay_ms: 0 };
        let (name, owner) = ("pool".into(), owner.into());
        group.lock(LockCommand::AcquireOwned { name, owner, request, session, waits: true })
    };
    let LockReply::Acquired { token: first, .. } = ask(&mut group, "all", CAT, 2) else {
        panic!("it is free")
    };
    let mut tickets = Vec::new();
    for (owner, session) in [("a1", ANN), ("a2", ANN), ("b1", BEN), ("b2", BEN)] {
        match ask(&mut group, owner, session, 1) {
            LockReply::Waiting { ticket, .. } => tickets.push(ticket),
            other => panic!("{other:?}"),
        }
    }
    let release = LockCommand::Release { name: "pool".into(), owner: "all".into(), token: first };
    assert_eq!(group.lock(release), LockReply::Released);
    // The very next entry.
    group.apply(Operation::CloseSession { session: ANN }).unwrap();
    let mut last = first;
    for (owner, ticket) in [("b1", tickets[2]), ("b2", tickets[3])] {
        let LockReply::Acquired { token, .. } = group.look("pool", ticket) else {
            panic!("{owner} holds it")
        };
        assert!(token > last);
        last = token;
        let release = LockCommand::Release { name: "pool".into(), owner: owner.into(), token };
        assert_eq!(group.lock(release), LockReply::Released);
    }
}
