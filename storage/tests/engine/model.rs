//! Random operations on the engine, compared with two models after every one of them.
//!
//! [`ModelState`] shares [`evaluate`](dogsled_storage::evaluate::evaluate) with the engine, so it
//! proves that the engine stores, versions, counts, folds and recovers what commands came to.
//! [`Plain`] shares nothing with it: it is what the words on [`Command`] say, over a `BTreeMap`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, Durability, Engine, Error, IVec, Reply, Snapshot, TreeId, Write};

use crate::support::compare::{assert_engine_is, assert_random_range, assert_snapshot_is};
use crate::support::workload::{Shape, Workload};
use crate::support::{TestClock, Watchdog, for_each_seed, open_small, small_options};

/// What commands on keys mean, written down a second time.
#[derive(Default)]
struct Plain(BTreeMap<(u32, Vec<u8>), Vec<u8>>);

impl Plain {
    fn get(&self, tree: TreeId, key: &[u8]) -> Option<IVec> {
        self.0.get(&(tree.0, key.to_vec())).map(|value| IVec::from(&value[..]))
    }

    fn set(&mut self, tree: TreeId, key: &[u8], value: Option<&IVec>) {
        match value {
            Some(value) => self.0.insert((tree.0, key.to_vec()), value.to_vec()),
            None => self.0.remove(&(tree.0, key.to_vec())),
        };
    }

    fn clear(&mut self, tree: TreeId) {
        self.0.retain(|(id, _), _| *id != tree.0);
    }

    /// Applies a command that succeeded with `reply` and checks the reply, for the commands whose
    /// meaning is a line or two.
    fn follow(&mut self, command: &Command, reply: &Reply, dropped: Option<TreeId>) {
        match command {
            Command::Insert { tree, key, value } => {
                assert_eq!(*reply, Reply::Previous(self.get(*tree, key)), "{command:?}");
                self.set(*tree, key, Some(value));
            }
            Command::Put { tree, key, value } => {
                assert_eq!(*reply, Reply::Done);
                self.set(*tree, key, Some(value));
            }
            Command::Remove { tree, key } => {
                assert_eq!(*reply, Reply::Previous(self.get(*tree, key)), "{command:?}");
                self.set(*tree, key, None);
            }
            Command::CompareAndSwap { tree, key, old, new } => {
                let current = self.get(*tree, key);
                if current == *old {
                    assert_eq!(*reply, Reply::Swapped(Ok(())), "{command:?}");
                    self.set(*tree, key, new.as_ref());
                } else {
                    assert_eq!(*reply, Reply::Swapped(Err(current)), "{command:?}");
                }
            }
            Command::Batch { writes } => {
                assert_eq!(*reply, Reply::Done);
                self.write(writes);
            }
            Command::Transact { writes, .. } if *reply == Reply::Done => self.write(writes),
            Command::Pop { tree, last } => {
                let mut keys = self.0.range((tree.0, Vec::new())..(tree.0 + 1, Vec::new()));
                let end = if *last { keys.next_back() } else { keys.next() };
                let expected = end.map(|((_, key), value)| (IVec::from(&key[..]), IVec::from(&value[..])));
                assert_eq!(*reply, Reply::Popped(expected.clone()), "{command:?}");
                if let Some((key, _)) = expected {
                    self.set(*tree, &key, None);
                }
            }
            Command::ClearTree { tree } => self.clear(*tree),
            Command::DropTree { .. } => {
                if let Some(id) = dropped {
                    self.clear(id);
                }
            }
            Command::Transact { .. }
            | Command::CreateTree { .. }
            | Command::ReserveIds { .. }
            | Command::Counter(_)
            | Command::Compare { .. }
            | Command::Lock(_)
            | Command::CountMany { .. }
            | Command::Expiry(_)
            | Command::SettleDue { .. }
            | Command::Owned(_)
            | Command::SetQuota { .. }
            | Command::Strings { .. } => {}
        }
    }

    fn write(&mut self, writes: &[Write]) {
        for write in writes {
            self.set(write.tree, &write.key, write.value.as_ref());
        }
    }

    /// Compares all trees that commands on keys can change.
    fn assert_is(&self, model: &ModelState) {
        let mut keys = 0;
        for (_, id) in model.names() {
            for (key, found) in model.tree(id).expect("a named tree exists") {
                assert_eq!(self.get(id, key).as_ref(), Some(&found.value), "{id:?} {key:?}");
                keys += 1;
            }
        }
        assert_eq!(keys, self.0.len());
    }
}

/// Both models and the database, in step.
struct Session {
    disk: SimulatedDisk,
    clock: Arc<TestClock>,
    engine: Option<Arc<Engine>>,
    background: bool,
    model: ModelState,
    plain: Plain,
    workload: Workload,
    held: Vec<(Snapshot, ModelState)>,
    now_ms: u64,
}

impl Session {
    fn new(seed: u64, shape: Shape, background: bool) -> Session {
        let mut session = Session {
            disk: SimulatedDisk::new(seed),
            clock: TestClock::new(1_000),
            engine: None,
            background,
            model: ModelState::new(),
            plain: Plain::default(),
            workload: Workload::new(seed, shape),
            held: Vec::new(),
            now_ms: 1_000,
        };
        session.open();
        session
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().expect("it is open")
    }

    fn open(&mut self) {
        let mut options = small_options(&self.disk, &self.clock);
        options.background_threads = self.background;
        options.checkpoint_slice_keys = 16;
        if self.background {
            options.flush_every_ms = Some(5);
        }
        self.engine = Some(Engine::open(options).expect("a sound database opens"));
    }

    fn step(&mut self) {
        let elapsed = self.workload.random.below(40);
        self.clock.advance(elapsed);
        self.now_ms += elapsed;
        let command = self.workload.command(&self.model);
        let durability =
            if self.workload.random.one_in(20) { Durability::Synced } else { Durability::Buffered };
        let dropped = match &command {
            Command::DropTree { name } => {
                self.model.names().find(|(found, _)| *found == name).map(|(_, id)| id)
            }
            _ => None,
        };
        let expected = self.model.execute(self.now_ms, &command);
        let found = self.engine().execute(command.clone(), durability);
        match (&expected, &found) {
            (Ok(expected), Ok(found)) => {
                assert_eq!(expected, found, "{command:?}");
                self.plain.follow(&command, found, dropped);
            }
            (Err(Error::TreeNotFound(_)), Err(Error::TreeNotFound(_)))
            | (Err(Error::InvalidRequest(_)), Err(Error::InvalidRequest(_))) => {}
            (Err(Error::QuotaExceeded(expected)), Err(Error::QuotaExceeded(found))) if expected == found => {}
            _ => panic!("{command:?}: the model says {expected:?}, the engine {found:?}"),
        }
        if let (
            Command::Lock(LockCommand::TryAcquire { name, owner, .. }),
            Ok(Reply::Lock(LockReply::Acquired { token, .. })),
        ) = (&command, &found)
        {
            self.workload.granted(name, owner, *token);
        }
        self.look(&command);
    }

    /// Reads what the command touched, and now and then more.
    fn look(&mut self, command: &Command) {
        if let Command::Insert { tree, key, .. }
        | Command::Remove { tree, key }
        | Command::CompareAndSwap { tree, key, .. } = command
            && let Some(expected) = self.model.tree(*tree)
        {
            let expected = expected.get(key).map(|found| found.value.clone());
            assert_eq!(self.engine().get(*tree, key).expect("a key can be read"), expected, "{command:?}");
            assert_eq!(self.engine().len(*tree).expect("a length"), self.model.len(*tree), "{command:?}");
        }
        let random = &mut self.workload.random;
        if random.one_in(25) {
            let snapshot = self.engine.as_ref().expect("open").snapshot();
            self.held.push((snapshot, self.model.clone()));
        }
        if random.one_in(3) && !self.held.is_empty() {
            let chosen = random.below(self.held.len() as u64) as usize;
            let tree = self.workload.tree(&self.held[chosen].1);
            let keys = (self.workload.key(), self.workload.key());
            let (snapshot, model) = &self.held[chosen];
            assert_random_range(snapshot, model, tree, keys, &mut self.workload.random);
        }
        if self.workload.random.one_in(3) {
            let tree = self.workload.tree(&self.model);
            let keys = (self.workload.key(), self.workload.key());
            let snapshot = self.engine().snapshot();
            assert_random_range(&snapshot, &self.model, tree, keys, &mut self.workload.random);
        }
        if self.held.len() > 6 || (self.workload.random.one_in(60) && !self.held.is_empty()) {
            let chosen = self.workload.random.below(self.held.len() as u64) as usize;
            let (snapshot, model) = self.held.swap_remove(chosen);
            assert_snapshot_is(&snapshot, &model, "a held snapshot");
        }
    }

    fn release_snapshots(&mut self) {
        for (snapshot, model) in self.held.drain(..) {
            assert_snapshot_is(&snapshot, &model, "a held snapshot at its end");
        }
    }

    /// Closes it, and opens it again: everything is there.
    fn reopen(&mut self) {
        if self.workload.random.one_in(2) && !self.held.is_empty() {
            // A snapshot outlives its database, and keeps the directory from being opened.
            self.engine = None;
            let refused = open_small(&self.disk, &self.clock).expect_err("a snapshot still reads");
            assert!(matches!(refused, Error::InUse(_)), "{refused}");
        }
        self.release_snapshots();
        self.engine = None;
        self.open();
        assert!(self.engine().was_recovered());
        assert_engine_is(self.engine(), &self.model, "reopened");
    }

    fn run(&mut self, steps: u64, checkpoint_every: u64) {
        for _ in 0..steps {
            self.step();
            if self.workload.random.one_in(checkpoint_every) {
                self.engine().checkpoint().expect("a checkpoint on a sound disk");
                assert_engine_is(self.engine(), &self.model, "after a checkpoint");
            }
            if self.workload.random.one_in(150) {
                self.reopen();
            }
        }
        self.release_snapshots();
        assert_engine_is(self.engine(), &self.model, "at the end");
        self.plain.assert_is(&self.model);
        self.reopen();
    }
}

#[test]
fn random_commands_do_what_the_models_say_with_checkpoints_by_hand() {
    for_each_seed(
        "engine",
        "model::random_commands_do_what_the_models_say_with_checkpoints_by_hand",
        12,
        |seed| {
            let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(120));
            Session::new(seed, Shape::SMALL, false).run(1_000, 50);
        },
    );
}

#[test]
fn random_commands_do_what_the_models_say_with_checkpoints_in_the_background() {
    for_each_seed(
        "engine",
        "model::random_commands_do_what_the_models_say_with_checkpoints_in_the_background",
        3,
        |seed| {
            let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(180));
            // Large enough to be frozen again and again with 8 MiB of memory.
            let shape = Shape { keys: 3_000, largest_value: 20_000, largest_batch: 40 };
            let mut session = Session::new(seed, shape, true);
            session.run(2_500, 400);
            let stats = session.engine().stats().expect("figures");
            assert!(stats.tree_file_bytes > 0);
        },
    );
}

/// Many keys with values of half a kilobyte and more, and no cache that lives for long.
#[test]
fn random_commands_do_what_the_models_say_when_most_is_on_disk() {
    for_each_seed(
        "engine",
        "model::random_commands_do_what_the_models_say_when_most_is_on_disk",
        4,
        |seed| {
            let _watchdog = Watchdog::new(format!("seed {seed}"), Duration::from_secs(120));
            let shape = Shape { keys: 400, largest_value: 20_000, largest_batch: 60 };
            let mut session = Session::new(seed, shape, false);
            for _ in 0..25 {
                for _ in 0..25 {
                    session.step();
                }
                session.engine().checkpoint().expect("a checkpoint on a sound disk");
                session.reopen();
            }
        },
    );
}

#[test]
fn one_key_overwritten_under_snapshots_keeps_each_of_their_versions() {
    for_each_seed(
        "engine",
        "model::one_key_overwritten_under_snapshots_keeps_each_of_their_versions",
        20,
        |seed| {
            let shape = Shape { keys: 6, largest_value: 60, largest_batch: 4 };
            let mut session = Session::new(seed, shape, false);
            let mut random = crate::support::Random::new(seed);
            for _ in 0..400 {
                session.step();
                if random.one_in(3) {
                    let snapshot = session.engine().snapshot();
                    session.held.push((snapshot, session.model.clone()));
                }
                if random.one_in(40) {
                    session.engine().checkpoint().expect("a checkpoint on a sound disk");
                }
                // Not those that `step` gives back: in any order.
                while session.held.len() > 6 {
                    let chosen = random.below(session.held.len() as u64) as usize;
                    let (snapshot, model) = session.held.swap_remove(chosen);
                    assert_snapshot_is(&snapshot, &model, "a held snapshot");
                }
            }
            session.release_snapshots();
            let stats = session.engine().stats().expect("figures");
            assert_eq!(stats.open_snapshots, 0, "each registration is taken back");
        },
    );
}

#[test]
fn a_clock_that_runs_backwards_does_not_turn_back_the_logs_time() {
    let disk = SimulatedDisk::new(1);
    let acquire = |owner: &str, lease_ms| {
        Command::Lock(LockCommand::TryAcquire { name: "door".into(), owner: owner.into(), lease_ms })
    };
    let clock = TestClock::new(10_000);
    let engine = open_small(&disk, &clock).expect("opens");
    let granted = engine.execute(acquire("ann", 500), Durability::Synced).expect("granted");
    assert!(matches!(granted, Reply::Lock(LockReply::Acquired { expires_ms: 10_500, .. })), "{granted:?}");
    drop(engine);
    // The machine's clock was set back while the database was closed.
    let clock = TestClock::new(2_000);
    let engine = open_small(&disk, &clock).expect("opens");
    assert_eq!(engine.now_ms(), 10_000);
    let refused = engine.execute(acquire("ben", 1), Durability::Buffered).expect("an answer");
    assert!(matches!(refused, Reply::Lock(LockReply::Held { .. })), "{refused:?}");
    clock.advance(8_500);
    let granted = engine.execute(acquire("ben", 1), Durability::Buffered).expect("an answer");
    assert!(matches!(granted, Reply::Lock(LockReply::Acquired { expires_ms: 18_501, .. })), "{granted:?}");
}

#[test]
fn a_batch_over_the_limit_is_refused_and_leaves_nothing() {
    let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1));
    let engine = open_small(&disk, &clock).expect("opens");
    let write = |key: Vec<u8>| Write { tree: TreeId::DEFAULT, key: IVec::from(key), value: Some("v".into()) };
    let writes = vec![write(b"fits".to_vec()), write(vec![b'x'; (64 << 10) + 1])];
    let refused =
        engine.execute(Command::Batch { writes }, Durability::Synced).expect_err("a key over the limit");
    assert!(matches!(refused, Error::InvalidRequest(_)), "{refused}");
    assert_eq!((engine.sequence(), engine.len(TreeId::DEFAULT).expect("a length")), (0, 0));
}

/// The leaf cache loads a missed key with its neighbours: those must not crowd it out.
#[test]
fn a_key_among_large_neighbours_is_found_in_the_b_tree() {
    for length in [100, 400, 700, 1_500, 2_500, 9_000] {
        let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1));
        let value = |number: u64| IVec::from(vec![number as u8; length]);
        let key = |number: u64| IVec::from(format!("key {number:03}"));
        let engine = open_small(&disk, &clock).expect("opens");
        for number in 0..80 {
            let insert = Command::Insert { tree: TreeId::DEFAULT, key: key(number), value: value(number) };
            engine.execute(insert, Durability::Buffered).expect("a write");
        }
        engine.checkpoint().expect("a sound disk");
        drop(engine);
        for step in [1, 7, 13, 40] {
            let engine = open_small(&disk, &clock).expect("opens");
            for number in (0..80 * step).step_by(step as usize).map(|number| 79 - number % 80) {
                let found = engine.get(TreeId::DEFAULT, &key(number)).expect("a read");
                assert_eq!(found, Some(value(number)), "key {number} with values of {length}");
                let absent = [&key(number)[..], b"!"].concat();
                assert_eq!(engine.get(TreeId::DEFAULT, &absent).expect("a read"), None);
            }
        }
    }
}
