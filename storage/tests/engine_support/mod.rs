//! What the engine's tests share: seeds, a clock that stands still, small databases on a simulated
//! disk, random commands, and comparison with the model.
//!
//! # Seeds
//! Every search runs from seeds and prints, when it fails, the seed and the command that replays
//! it. `DOGSLED_SEED=n` runs that one seed, `DOGSLED_SEEDS=n` runs `n` of them from
//! `DOGSLED_FIRST_SEED` (default 1) on instead of the few that CI runs.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part of this module")]

pub mod compare;
pub mod lives;
pub mod serializability;

pub mod workload;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::{Clock, Engine, Options};

/// The database's directory on every simulated disk.
pub const DIRECTORY: &str = "db";

/// splitmix64: all choices of a search come from it, so a seed replays them.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        // Small seeds are spread, so that neighbours share nothing.
        Random(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ 0x1234_5678_9abc_def0)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number in `0..limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    /// True once in `n` times.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len() as u64) as usize]
    }
}

/// A number from the environment.
pub fn from_environment(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, not a number")))
}

/// Runs `test` for `default` seeds, or those that the environment asks for; when one fails,
/// prints how to replay it. `binary` and `name` are the test's.
pub fn for_each_seed(binary: &'static str, name: &'static str, default: u64, mut test: impl FnMut(u64)) {
    let seeds = match from_environment("DOGSLED_SEED") {
        Some(seed) => seed..seed + 1,
        None => {
            let first = from_environment("DOGSLED_FIRST_SEED").unwrap_or(1);
            first..first + from_environment("DOGSLED_SEEDS").unwrap_or(default)
        }
    };
    for seed in seeds {
        let _replay = Replay { binary, name, seed };
        test(seed);
    }
}

/// Prints the command that replays a failing case when it is dropped by a panic.
struct Replay {
    binary: &'static str,
    name: &'static str,
    seed: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "replay with: DOGSLED_SEED={} cargo test -p dogsled-storage --test {} -- {}",
                self.seed, self.binary, self.name
            );
        }
    }
}

/// Aborts the process when a test hangs, which a test harness would wait out for ever.
pub struct Watchdog(Arc<AtomicBool>);

impl Watchdog {
    /// Aborts after `limit` unless dropped before; `doing` is printed then.
    pub fn new(doing: impl Into<String>, limit: Duration) -> Watchdog {
        let done = Arc::new(AtomicBool::new(false));
        let (seen, doing) = (Arc::clone(&done), doing.into());
        std::thread::spawn(move || {
            let start = Instant::now();
            while start.elapsed() < limit {
                if seen.load(Ordering::Relaxed) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            eprintln!("hangs for {limit:?}: {doing}");
            std::process::abort();
        });
        Watchdog(done)
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A clock that moves only when told.
#[derive(Debug)]
pub struct TestClock(AtomicU64);

impl TestClock {
    pub fn new(now_ms: u64) -> Arc<TestClock> {
        Arc::new(TestClock(AtomicU64::new(now_ms)))
    }

    pub fn set(&self, now_ms: u64) {
        self.0.store(now_ms, Ordering::Relaxed);
    }

    pub fn advance(&self, by_ms: u64) {
        self.0.fetch_add(by_ms, Ordering::Relaxed);
    }
}

impl Clock for TestClock {
    fn now_ms(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A small database on `disk`: 8 MiB of cache, 64 KiB segments, checkpoints only when asked for,
/// no syncs in the background.
pub fn small_options(disk: &SimulatedDisk, clock: &Arc<TestClock>) -> Options {
    let mut options = Options::new(DIRECTORY);
    options.cache_capacity = 8 << 20;
    options.segment_size = 64 << 10;
    options.flush_every_ms = None;
    options.background_threads = false;
    options.clock = Arc::clone(clock) as Arc<dyn Clock>;
    options.disk = Arc::new(disk.clone());
    options.database_id = Some(0x0d06_51ed);
    options
}

/// Opens a [`small_options`] database.
pub fn open_small(disk: &SimulatedDisk, clock: &Arc<TestClock>) -> dogsled_storage::Result<Arc<Engine>> {
    Engine::open(small_options(disk, clock))
}

/// A path within the database's directory.
pub fn in_directory(name: &str) -> std::path::PathBuf {
    Path::new(DIRECTORY).join(name)
}
