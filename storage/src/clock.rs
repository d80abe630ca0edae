//! What tells the time, so that tests and simulations can.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A clock. Commits are stamped with it, and the stamps never run backwards even if it does.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;

    /// Milliseconds since whatever moment, by a clock that nobody sets. One that stands still will
    /// do: then the log's time does, too, while [`Clock::now_ms`] is behind it.
    fn elapsed_ms(&self) -> u64 {
        0
    }

    /// What the system's clock shows, in milliseconds since 1970, where that is not [`Clock::now_ms`].
    fn wall_ms(&self) -> u64 {
        self.now_ms()
    }
}

/// A clock that is ahead of another: the log's, of a database whose last commit was later than the clock shows when it is
/// opened. Readers, leases and times to live go by the same as commits then, at the pace of the other.
#[derive(Debug)]
pub(crate) struct Ahead {
    clock: Arc<dyn Clock>,
    by_ms: u64,
}

impl Ahead {
    /// At least as late as `last_ms`.
    pub(crate) fn of(clock: Arc<dyn Clock>, last_ms: u64) -> Arc<dyn Clock> {
        match last_ms.saturating_sub(clock.now_ms()) {
            0 => clock,
            by_ms => Arc::new(Ahead { clock, by_ms }),
        }
    }
}

impl Clock for Ahead {
    fn now_ms(&self) -> u64 {
        self.clock.now_ms().saturating_add(self.by_ms)
    }

    fn elapsed_ms(&self) -> u64 {
        self.clock.elapsed_ms()
    }

    fn wall_ms(&self) -> u64 {
        self.clock.wall_ms()
    }
}

/// The log's time: never before that of the last commit, and, if the clock was set back, going on
/// from there at its pace. Were it to stand still until the clock has caught up, so would leases.
#[derive(Debug, Default)]
pub(crate) struct LogTime {
    /// Elapsed time and the log's time when the clock was first seen behind the log.
    behind: Option<(u64, u64)>,
}

impl LogTime {
    /// The time of a commit that is made now, after one of `last_ms`.
    #[inline]
    pub(crate) fn now_ms(&mut self, clock: &dyn Clock, last_ms: u64) -> u64 {
        let now = clock.now_ms();
        if now >= last_ms {
            self.behind = None;
            return now;
        }
        let elapsed = clock.elapsed_ms();
        let (since, from) = *self.behind.get_or_insert((elapsed, last_ms));
        last_ms.max(from + elapsed.saturating_sub(since))
    }
}

/// The operating system's clock, to a few milliseconds: leases are longer than that, and it costs
/// a tenth of a precise reading on every commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        milliseconds(rustix::time::ClockId::RealtimeCoarse)
    }

    fn elapsed_ms(&self) -> u64 {
        milliseconds(rustix::time::ClockId::MonotonicCoarse)
    }
}

/// The time that an embedded database goes by: what the system's clock showed when this was made, and since then as
/// much more as has really passed. So a lease ends when its time is over, not when somebody sets the clock.
///
/// If the system's clock shows something else, by a step or because it is slewed, this approaches it by no more than
/// one part in 64 of the time that passes; leases are renewed with more to spare than that. Time in
/// which the machine was suspended has passed.
///
/// ```
/// use dogsled_storage::{Clock, SteadyClock};
/// let clock = SteadyClock::new();
/// let before = clock.now_ms();
/// assert!(clock.now_ms() >= before);
/// assert!(clock.now_ms().abs_diff(clock.wall_ms()) < 60_000);
/// ```
#[derive(Debug, Default)]
pub struct SteadyClock(Steady<Machine>);

impl SteadyClock {
    /// Goes on from what the system's clock shows now.
    pub fn new() -> SteadyClock {
        SteadyClock::default()
    }
}

impl Clock for SteadyClock {
    fn now_ms(&self) -> u64 {
        self.0.now_ms()
    }

    fn elapsed_ms(&self) -> u64 {
        self.0.elapsed_ms()
    }

    fn wall_ms(&self) -> u64 {
        SystemClock.now_ms()
    }
}

/// The clocks of a machine.
trait Source {
    /// What somebody may set.
    fn wall_ms(&self) -> u64;
    /// What passes while the machine is awake; cheap.
    fn awake_ms(&self) -> u64;
    /// What has passed while it was suspended.
    fn suspended_ms(&self) -> u64;
}

#[derive(Debug, Default)]
struct Machine;

impl Source for Machine {
    fn wall_ms(&self) -> u64 {
        SystemClock.now_ms()
    }

    fn awake_ms(&self) -> u64 {
        SystemClock.elapsed_ms()
    }

    fn suspended_ms(&self) -> u64 {
        // The second is read later, so it is never too little but by the reading.
        let awake = milliseconds(rustix::time::ClockId::Monotonic);
        milliseconds(rustix::time::ClockId::Boottime).saturating_sub(awake)
    }
}

/// How long this machine has been suspended since it was started. [`Instant`](std::time::Instant) does not count that.
pub fn suspended() -> std::time::Duration {
    std::time::Duration::from_millis(Machine.suspended_ms())
}

/// It is corrected when so much has passed: a correction of a millisecond is one part in as many.
const CORRECTED_EVERY_MS: u64 = 64;

/// [`SteadyClock`], of any machine.
#[derive(Debug)]
struct Steady<S> {
    source: S,
    /// The time awake at which it was corrected last.
    corrected_ms: AtomicU64,
    suspended_ms: AtomicU64,
    /// What is to be added to the time awake; wrapping, because a machine may not know that it is later than 1970.
    offset_ms: AtomicU64,
}

impl<S: Source + Default> Default for Steady<S> {
    fn default() -> Steady<S> {
        Steady::of(S::default())
    }
}

impl<S: Source> Steady<S> {
    fn of(source: S) -> Steady<S> {
        let (awake, wall, suspended) = (source.awake_ms(), source.wall_ms(), source.suspended_ms());
        Steady {
            source,
            corrected_ms: AtomicU64::new(awake),
            suspended_ms: AtomicU64::new(suspended),
            offset_ms: AtomicU64::new(wall.wrapping_sub(awake)),
        }
    }

    fn now_ms(&self) -> u64 {
        let awake = self.corrected();
        awake.wrapping_add(self.offset_ms.load(Ordering::Relaxed))
    }

    fn elapsed_ms(&self) -> u64 {
        let awake = self.corrected();
        awake + self.suspended_ms.load(Ordering::Relaxed)
    }

    /// The time awake, after a correction if one is due.
    #[inline]
    fn corrected(&self) -> u64 {
        let awake = self.source.awake_ms();
        let last = self.corrected_ms.load(Ordering::Relaxed);
        if awake.saturating_sub(last) >= CORRECTED_EVERY_MS {
            self.correct(awake, last);
        }
        awake
    }

    #[cold]
    fn correct(&self, awake: u64, last: u64) {
        // One of those who find it due.
        if self.corrected_ms.compare_exchange(last, awake, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let suspended = self.source.suspended_ms();
        let before = self.suspended_ms.fetch_max(suspended, Ordering::Relaxed);
        let slept = suspended.saturating_sub(before);
        let offset = self.offset_ms.load(Ordering::Relaxed).wrapping_add(slept);
        let (now, wall) = (awake.wrapping_add(offset), self.source.wall_ms());
        let most = (awake - last) / CORRECTED_EVERY_MS;
        let offset = match wall.checked_sub(now) {
            Some(ahead) => offset.wrapping_add(ahead.min(most)),
            None => offset.wrapping_sub((now - wall).min(most)),
        };
        self.offset_ms.store(offset, Ordering::Relaxed);
    }
}

fn milliseconds(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    // Before 1970 there is nothing to stamp.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[derive(Debug, Default)]
    struct Clocks {
        wall: Cell<u64>,
        awake: Cell<u64>,
        suspended: Cell<u64>,
    }

    impl Clocks {
        /// Time passes, and everything shows it.
        fn pass(&self, ms: u64) {
            self.wall.set(self.wall.get() + ms);
            self.awake.set(self.awake.get() + ms);
        }
    }

    impl Source for &Clocks {
        fn wall_ms(&self) -> u64 {
            self.wall.get()
        }

        fn awake_ms(&self) -> u64 {
            self.awake.get()
        }

        fn suspended_ms(&self) -> u64 {
            self.suspended.get()
        }
    }

    #[test]
    fn a_step_of_the_wall_clock_is_approached_slowly_in_both_directions() {
        for step in [3_600_000_i64, -3_600_000] {
            let clocks = Clocks::default();
            clocks.wall.set(1_700_000_000_000);
            let steady = Steady::of(&clocks);
            clocks.pass(10_000);
            assert_eq!(steady.now_ms(), 1_700_000_010_000);
            clocks.wall.set(clocks.wall.get().checked_add_signed(step).expect("after 1970"));
            assert_eq!(steady.now_ms(), 1_700_000_010_000, "by a step of {step}");
            // However often somebody looks.
            let mut last = steady.now_ms();
            let (mut passed, mut ended) = (0, None);
            for i in 0..3_000_000_u64 {
                clocks.pass(192 + i % 7);
                passed += 192 + i % 7;
                let (now, late) = (steady.now_ms(), 1_700_000_010_000 + passed);
                assert!(now >= last, "{now} after {last}");
                let most = passed / 64 + 1;
                assert!(now.abs_diff(late) <= most, "{now} is not within {most} of {late}");
                last = now;
                if now == clocks.wall.get() {
                    ended = Some(passed);
                    break;
                }
            }
            // An hour in about 64 of them.
            let took = ended.expect("it gets there");
            assert!((3_600_000 * 64..3_600_000 * 70).contains(&took), "{took}");
        }
    }

    #[test]
    fn time_in_which_the_machine_was_suspended_has_passed() {
        let clocks = Clocks::default();
        clocks.wall.set(1_700_000_000_000);
        let steady = Steady::of(&clocks);
        let began = steady.elapsed_ms();
        clocks.pass(1_000);
        clocks.suspended.set(60_000);
        clocks.wall.set(clocks.wall.get() + 60_000);
        clocks.pass(64);
        assert_eq!(steady.now_ms(), 1_700_000_061_064);
        assert_eq!(steady.elapsed_ms() - began, 61_064);
    }

    #[test]
    fn a_machine_that_takes_it_for_1970_counts_on() {
        let clocks = Clocks::default();
        clocks.awake.set(500_000);
        clocks.wall.set(100);
        let steady = Steady::of(&clocks);
        clocks.pass(1_000);
        assert_eq!(steady.now_ms(), 1_100);
    }

    #[derive(Debug, Default)]
    struct Wall {
        now: AtomicU64,
        elapsed: AtomicU64,
    }

    impl Clock for Wall {
        fn now_ms(&self) -> u64 {
            self.now.load(Relaxed)
        }

        fn elapsed_ms(&self) -> u64 {
            self.elapsed.load(Relaxed)
        }
    }

    #[test]
    fn the_logs_time_goes_on_while_a_clock_that_was_set_back_is_behind_it() {
        let wall = Wall::default();
        let mut time = LogTime::default();
        let mut last = 0;
        // Clock, elapsed time, and what the log's time must be.
        for (now, elapsed, expected) in [
            (1_000_000, 50, 1_000_000),
            (1_000_010, 60, 1_000_010),
            (400_000, 70, 1_000_010),
            (400_500, 570, 1_000_510),
            (401_000, 1_070, 1_001_010),
            (1_001_020, 1_080, 1_001_020),
            (900_000, 1_090, 1_001_020),
            (900_005, 1_095, 1_001_025),
        ] {
            wall.now.store(now, Relaxed);
            wall.elapsed.store(elapsed, Relaxed);
            last = time.now_ms(&wall, last);
            assert_eq!(last, expected, "at {now}");
        }
    }
}
