//! A database that dies and is opened again, on one simulated disk after another.
//!
//! A [`Life`] runs random commands, notes what was acknowledged as durable, and ends with the
//! first error. What it leaves behind is judged by [`Past::open`]: the next opening must find a
//! prefix of the history that holds all that was acknowledged.

use std::sync::Arc;

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, Durability, Engine, Error, Options, Reply};

use super::compare::assert_engine_is;
use super::workload::{Shape, Workload};
use super::{TestClock, small_options};

/// Every commit that was ever tried, in order, and how much of it must survive.
pub struct Past {
    commits: Vec<(u64, Command)>,
    /// Up to here everything was acknowledged as durable.
    pub acknowledged: u64,
    pub workload: Workload,
    pub clock: Arc<TestClock>,
    now_ms: u64,
    /// The state after all of `commits`.
    newest: ModelState,
    /// Of what kind the commands are: one in so many is [`Durability::Synced`].
    synced_one_in: u64,
    /// What a test changes of [`small_options`].
    pub options: fn(&mut Options),
}

/// How a life ended.
#[derive(Debug)]
pub enum End {
    /// It did all its steps.
    Alive,
    /// An operation failed.
    Failed(Error),
}

impl Past {
    pub fn new(seed: u64) -> Past {
        let mut workload = Workload::new(seed, Shape::SMALL);
        let synced_one_in = *workload.random.pick(&[1, 2, 5, 30]);
        Past {
            commits: Vec::new(),
            acknowledged: 0,
            workload,
            clock: TestClock::new(1_000),
            now_ms: 1_000,
            newest: ModelState::new(),
            synced_one_in,
            options: |options| options.checkpoint_slice_keys = 7,
        }
    }

    fn options(&self, disk: &SimulatedDisk) -> Options {
        let mut options = small_options(disk, &self.clock);
        (self.options)(&mut options);
        options
    }

    /// The state after the first `sequence` commits.
    pub fn at(&self, sequence: u64) -> ModelState {
        let mut state = ModelState::new();
        for (time_ms, command) in &self.commits[..sequence as usize] {
            state.execute(*time_ms, command).expect("it was carried out before");
        }
        assert_eq!(state.sequence(), sequence, "each commit takes one sequence");
        state
    }

    /// Opens what is on the disk for the first time, or gives back the error of a disk that
    /// misbehaves.
    pub fn open_first(&self, disk: &SimulatedDisk) -> dogsled_storage::Result<Arc<Engine>> {
        Engine::open(self.options(disk))
    }

    /// Opens what a life left on a disk that works again, and checks it.
    pub fn open(&mut self, disk: &SimulatedDisk, context: &str) -> Arc<Engine> {
        let engine = match Engine::open(self.options(disk)) {
            Ok(engine) => engine,
            Err(error) => panic!("{context}: it does not open again: {error}"),
        };
        self.check(&engine, context);
        engine
    }

    /// Checks that the engine holds a prefix of the history with all that was acknowledged, and
    /// forgets the rest of the history.
    pub fn check(&mut self, engine: &Engine, context: &str) {
        let (found, newest) = (engine.sequence(), self.commits.len() as u64);
        assert!(
            found >= self.acknowledged,
            "{context}: commits up to {} were acknowledged as durable, but {found} is the last",
            self.acknowledged
        );
        assert!(found <= newest, "{context}: {newest} commits were tried, and {found} are there");
        self.newest = self.at(found);
        self.commits.truncate(found as usize);
        assert_engine_is(engine, &self.newest, context);
    }

    /// Lives for up to `steps`, or until an operation fails; drops the engine.
    pub fn live(&mut self, engine: Arc<Engine>, steps: u64) -> End {
        let mut held = None;
        for _ in 0..steps {
            if let Err(error) = self.step(&engine) {
                return End::Failed(error);
            }
            if self.workload.random.one_in(30) {
                held = Some(engine.snapshot());
            } else if self.workload.random.one_in(10) {
                held = None;
            }
        }
        drop(held);
        End::Alive
    }

    fn step(&mut self, engine: &Engine) -> Result<(), Error> {
        let elapsed = self.workload.random.below(30);
        self.clock.advance(elapsed);
        self.now_ms += elapsed;
        match self.workload.random.below(40) {
            0 | 1 => {
                engine.checkpoint()?;
                self.acknowledged = self.commits.len() as u64;
            }
            2 => {
                engine.sync()?;
                self.acknowledged = self.commits.len() as u64;
            }
            _ => {
                let command = self.workload.command(&self.newest);
                let synced = self.workload.random.one_in(self.synced_one_in);
                let durability = if synced { Durability::Synced } else { Durability::Buffered };
                self.execute(engine, command, durability)?;
            }
        }
        Ok(())
    }

    /// Carries out one command on engine and model.
    pub fn execute(
        &mut self,
        engine: &Engine,
        command: Command,
        durability: Durability,
    ) -> Result<(), Error> {
        let result = engine.execute(command.clone(), durability);
        if let Err(error @ (Error::Io { .. } | Error::Corrupt(_))) = result {
            // Nothing was changed: a recovery that finds it has a commit too many.
            return Err(error);
        }
        let before = self.newest.sequence();
        let expected = self.newest.execute(self.now_ms, &command);
        if self.newest.sequence() > before {
            self.commits.push((self.now_ms, command.clone()));
        }
        match (expected, result) {
            (_, Err(error @ Error::Poisoned(_))) => {
                // In doubt: it may be found or not, and whatever is tried now is refused.
                let again = Command::ReserveIds { count: 1 };
                let refused = engine.execute(again, Durability::Buffered);
                assert!(matches!(refused, Err(Error::Poisoned(_))), "after {error}: {refused:?}");
                let refused = engine.sync();
                assert!(matches!(refused, Err(Error::Poisoned(_))), "after {error}: {refused:?}");
                return Err(error);
            }
            (Ok(expected), Ok(found)) => {
                assert_eq!(expected, found, "{command:?}");
                if durability == Durability::Synced && is_done(&command, &found) {
                    self.acknowledged = self.commits.len() as u64;
                }
                if let Command::Lock(LockCommand::TryAcquire { name, owner, .. }) = &command
                    && let Reply::Lock(LockReply::Acquired { token, .. }) = found
                {
                    self.workload.granted(name, owner, token);
                }
            }
            (Err(Error::TreeNotFound(_)), Err(Error::TreeNotFound(_)))
            | (Err(Error::InvalidRequest(_)), Err(Error::InvalidRequest(_))) => {}
            (Err(Error::QuotaExceeded(expected)), Err(Error::QuotaExceeded(found))) if expected == found => {}
            (expected, found) => panic!("{command:?}: {expected:?} expected, found {found:?}"),
        }
        Ok(())
    }

    /// How many commits were tried and not yet found lost.
    pub fn commits(&self) -> u64 {
        self.commits.len() as u64
    }
}

/// Whether a reply says that what was asked for is so now, as against "it could not be done".
///
/// Then a synced command has promised that it stays so, even if it had nothing to change: a key
/// removed twice must not come back because only the first, buffered remove was lost.
fn is_done(command: &Command, reply: &Reply) -> bool {
    match reply {
        Reply::Conflict
        | Reply::Swapped(Err(_))
        | Reply::Counter(_)
        | Reply::Lock(_)
        | Reply::Popped(None) => {
            matches!(
                reply,
                Reply::Counter(dogsled_storage::counter::CounterReply::Added { .. })
                    | Reply::Lock(
                        LockReply::Acquired { .. } | LockReply::Renewed { .. } | LockReply::Released
                    )
            )
        }
        Reply::Done => !matches!(command, Command::Transact { writes, .. } if writes.is_empty()),
        _ => true,
    }
}
