//! Sessions of an embedded database: what they own dies with them, across reopening, and not by the wall clock.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dogsled_storage::lock::{LockCommand, LockReply, LockRequest};
use dogsled_storage::{
    Clock, Command, Durability, Engine, IVec, Options, OwnedCommand, Reply, SessionId, TreeId,
};

#[derive(Debug, Default)]
struct Time {
    wall: AtomicU64,
    elapsed: AtomicU64,
}

impl Time {
    fn pass(&self, ms: u64) {
        self.wall.fetch_add(ms, Ordering::SeqCst);
        self.elapsed.fetch_add(ms, Ordering::SeqCst);
    }
}

impl Clock for Time {
    fn now_ms(&self) -> u64 {
        self.wall.load(Ordering::SeqCst)
    }

    fn elapsed_ms(&self) -> u64 {
        self.elapsed.load(Ordering::SeqCst)
    }
}

fn open(directory: &tempfile::TempDir, time: &Arc<Time>) -> Arc<Engine> {
    let mut options = Options::new(directory.path());
    options.clock = Arc::clone(time) as Arc<dyn Clock>;
    options.cache_capacity = 8 << 20;
    options.segment_size = 1 << 20;
    // What ends, ends when the test says so.
    options.background_threads = false;
    Engine::open(options).expect("it opens")
}

fn insert(engine: &Engine, key: &str, session: u128) -> dogsled_storage::Result<()> {
    let (tree, key, session) = (TreeId::DEFAULT, IVec::from(key), SessionId(session));
    let insert = OwnedCommand::Insert { tree, key, value: "v".into(), session };
    engine.execute(Command::Owned(insert), Durability::Buffered).map(drop)
}

fn put(engine: &Engine, key: &str) {
    engine.put(TreeId::DEFAULT, key.into(), "plain".into(), Durability::Buffered).expect("it is put");
}

fn keys(engine: &Engine) -> BTreeSet<String> {
    let snapshot = engine.snapshot();
    snapshot
        .range(TreeId::DEFAULT, Bound::Unbounded, Bound::Unbounded)
        .map(|entry| String::from_utf8(entry.expect("readable").0.to_vec()).expect("text"))
        .collect()
}

fn acquire(engine: &Engine, name: &str, owner: &str, session: Option<u128>, delay_ms: u64) -> LockReply {
    let (name, owner) = (IVec::from(name), IVec::from(owner));
    let request = LockRequest { permits: 1, capacity: 1, lease_ms: 1_000, delay_ms };
    let command = match session {
        Some(session) => {
            LockCommand::AcquireOwned { name, owner, request, session: SessionId(session), waits: false }
        }
        None => LockCommand::Acquire { name, owner, request, wait_ms: 0 },
    };
    match engine.execute(Command::Lock(command), Durability::Buffered).expect("it is answered") {
        Reply::Lock(reply) => reply,
        other => panic!("{other:?}"),
    }
}

const B: Durability = Durability::Buffered;

#[test]
fn a_session_that_is_not_renewed_takes_its_keys_and_locks_with_it() {
    let (directory, time) = (tempfile::tempdir().expect("a directory"), Arc::new(Time::default()));
    time.wall.store(1_000_000, Ordering::SeqCst);
    let engine = open(&directory, &time);
    assert_eq!(engine.open_session(SessionId(7), 1_000, B).expect("it opens"), 1_001_000);
    assert_eq!(engine.session_lease(SessionId(7)).expect("readable"), Some(1_000));
    insert(&engine, "owned", 7).expect("it is open");
    insert(&engine, "taken", 7).expect("it is open");
    put(&engine, "taken");
    assert!(matches!(acquire(&engine, "door", "ann", Some(7), 500), LockReply::Acquired { .. }));
    time.pass(900);
    assert_eq!(engine.renew_session(SessionId(7), B).expect("renewed"), Some(1_001_900));
    time.pass(900);
    assert_eq!(engine.expire_sessions().expect("a step"), 0);
    assert_eq!(keys(&engine).len(), 2);
    assert!(matches!(acquire(&engine, "door", "ben", None, 0), LockReply::Held { .. }));
    time.pass(100);
    assert_eq!(engine.expire_sessions().expect("a step"), 1);
    assert_eq!(keys(&engine), BTreeSet::from(["taken".to_owned()]));
    assert!(matches!(acquire(&engine, "door", "ben", None, 0), LockReply::Held { .. }), "the delay");
    time.pass(500);
    assert!(matches!(acquire(&engine, "door", "ben", None, 0), LockReply::Acquired { .. }));
    assert_eq!(engine.renew_session(SessionId(7), B).expect("answered"), None);
    assert_eq!(engine.session_lease(SessionId(7)).expect("readable"), None);
    assert!(insert(&engine, "late", 7).is_err());
}

#[test]
fn a_step_of_the_wall_clock_ends_no_session_and_reopening_gives_each_its_full_lease() {
    let (directory, time) = (tempfile::tempdir().expect("a directory"), Arc::new(Time::default()));
    time.wall.store(1_000_000, Ordering::SeqCst);
    let engine = open(&directory, &time);
    engine.open_session(SessionId(7), 10_000, B).expect("it opens");
    insert(&engine, "owned", 7).expect("it is open");
    time.pass(1_000);
    // Somebody sets the clock.
    time.wall.fetch_add(3_600_000, Ordering::SeqCst);
    assert_eq!(engine.expire_sessions().expect("a step"), 0);
    assert_eq!(keys(&engine).len(), 1);
    drop(engine);

    time.pass(9_500);
    let engine = open(&directory, &time);
    for _ in 0..9 {
        time.pass(1_000);
        assert_eq!(engine.expire_sessions().expect("a step"), 0);
    }
    assert_eq!(keys(&engine).len(), 1, "its lease began anew");
    time.pass(1_000);
    assert_eq!(engine.expire_sessions().expect("a step"), 1);
    assert_eq!(keys(&engine).len(), 0);
}

/// A small generator of numbers, so that a failure can be replayed.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (x ^ (x >> 31)) % limit
    }
}

/// What must be there.
#[derive(Default)]
struct Model {
    /// Lease and end of those that live.
    sessions: BTreeMap<u128, (u64, u64)>,
    /// Whose each key is.
    keys: BTreeMap<String, Option<u128>>,
    opened_at: u64,
}

impl Model {
    fn end(&mut self, session: u128) {
        self.sessions.remove(&session);
        self.keys.retain(|_, owner| *owner != Some(session));
    }
}

fn run(seed: u64) {
    let context =
        format!("replay with: DOGSLED_SEED={seed} cargo test -p dogsled-storage --test engine sessions");
    let (directory, time) = (tempfile::tempdir().expect("a directory"), Arc::new(Time::default()));
    time.wall.store(1_000_000, Ordering::SeqCst);
    let mut engine = open(&directory, &time);
    let (mut random, mut model) = (Random(seed), Model::default());
    for step in 0..400 {
        let now = time.now_ms();
        let (session, key) = (u128::from(random.below(6)), format!("k{}", random.below(12)));
        match random.below(100) {
            0..15 => {
                let lease = 100 + random.below(900);
                let opened = engine.open_session(SessionId(session), lease, B).expect(&context);
                assert_eq!(opened, now + lease, "{context}, step {step}");
                model.sessions.insert(session, (lease, now + lease));
            }
            15..45 => {
                let done = insert(&engine, &key, session);
                assert_eq!(done.is_ok(), model.sessions.contains_key(&session), "{context}, step {step}");
                if done.is_ok() {
                    model.keys.insert(key, Some(session));
                }
            }
            45..55 => {
                put(&engine, &key);
                model.keys.insert(key, None);
            }
            55..65 => {
                let renewed = engine.renew_session(SessionId(session), B).expect(&context);
                let known = model.sessions.get_mut(&session);
                assert_eq!(renewed, known.as_ref().map(|(lease, _)| now + *lease), "{context}, step {step}");
                if let Some((lease, end)) = known {
                    *end = now + *lease;
                }
            }
            65..72 => {
                engine.close_session(SessionId(session), B).expect(&context);
                model.end(session);
            }
            72..94 => {
                time.pass(random.below(300));
                let (now, led) = (time.now_ms(), time.elapsed_ms() - model.opened_at);
                engine.expire_sessions().expect(&context);
                let over = model.sessions.iter().filter(|(_, (lease, end))| *end <= now && *lease <= led);
                let over: Vec<u128> = over.map(|(session, _)| *session).collect();
                over.into_iter().for_each(|session| model.end(session));
            }
            _ => {
                drop(engine);
                time.pass(random.below(500));
                engine = open(&directory, &time);
                model.opened_at = time.elapsed_ms();
            }
        }
        assert_eq!(keys(&engine), model.keys.keys().cloned().collect(), "{context}, step {step}");
    }
}

#[test]
fn random_sessions_own_what_the_model_says() {
    match std::env::var("DOGSLED_SEED") {
        Ok(seed) => run(seed.parse().expect("a number")),
        Err(_) => (0..40).for_each(run),
    }
}
