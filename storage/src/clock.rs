//! What tells the time, so that tests and simulations can.

use std::fmt::Debug;

/// A clock. Commits are stamped with it, and the stamps never run backwards even if it does.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;

    /// Milliseconds since whatever moment, by a clock that nobody sets. One that stands still will
    /// do: then the log's time does, too, while [`Clock::now_ms`] is behind it.
    fn elapsed_ms(&self) -> u64 {
        0
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

fn milliseconds(clock: rustix::time::ClockId) -> u64 {
    let now = rustix::time::clock_gettime(clock);
    // Before 1970 there is nothing to stamp.
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + now.tv_nsec as u64 / 1_000_000
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

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
