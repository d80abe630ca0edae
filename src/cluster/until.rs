//! [`Until`]: when a lease ends, also if the machine sleeps meanwhile.
//!
//! The monotonic clock, by which all else here is timed, stands still while the machine is suspended, and the cluster's time
//! does not. Whoever held a lock before would believe that he holds it still, for as long as he was asleep.

use std::time::Duration;

use dogsled_storage::clock::suspended;
use tokio::time::Instant;

/// The log's time may pass faster than this machine's by one part of 64: twice that is taken off a lease.
pub(super) const MARGIN: u32 = 32;
/// Two clocks are read one after the other: what is less than this is no sleep.
const NONE: Duration = Duration::from_millis(20);
/// Whoever waits for a moment looks so often whether it has come nearer than it was.
const LOOK: Duration = Duration::from_secs(1);

/// A moment that comes nearer while the machine is suspended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Until {
    at: Instant,
    /// How long the machine had been suspended when this was made.
    suspended: Duration,
}

impl Until {
    /// A moment by the monotonic clock, if the machine is not suspended from now on.
    pub(super) fn new(at: Instant) -> Until {
        Until { at, suspended: suspended() }
    }

    /// The moment by the monotonic clock, as far as it is known now.
    pub(super) fn instant(self) -> Instant {
        self.instant_at(suspended())
    }

    fn instant_at(self, suspended: Duration) -> Instant {
        match suspended.saturating_sub(self.suspended) {
            slept if slept < NONE => self.at,
            // Before this machine was started nothing was.
            slept => self.at.checked_sub(slept).unwrap_or_else(Instant::now),
        }
    }
}

/// A moment that has come, as when something was asked: what is counted from it counts the time that the machine is
/// suspended, also before the answer is there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    at: Instant,
    /// How long the machine had been suspended by then.
    suspended: Duration,
}

impl Asked {
    /// This moment.
    pub(super) fn now() -> Asked {
        // In this order: a sleep between the two counts as one behind them.
        let suspended = suspended();
        Asked { at: Instant::now(), suspended }
    }

    /// By the monotonic clock.
    pub(super) fn instant(self) -> Instant {
        self.at
    }

    /// What has passed since an earlier moment, asleep or not.
    pub(super) fn since(self, earlier: Asked) -> Duration {
        let slept = self.suspended.saturating_sub(earlier.suspended);
        let slept = if slept < NONE { Duration::ZERO } else { slept };
        self.at.saturating_duration_since(earlier.at).saturating_add(slept)
    }

    /// So much later, of what is no longer than a clock can tell.
    pub(super) fn until(self, length: Duration) -> Until {
        Until { at: self.at + length, suspended: self.suspended }
    }

    /// So much later; `None`: never.
    pub(super) fn checked_add(self, length: Duration) -> Option<Until> {
        Some(Until { at: self.at.checked_add(length)?, suspended: self.suspended })
    }

    #[cfg(test)]
    pub(super) fn later(self, awake: Duration, asleep: Duration) -> Asked {
        Asked { at: self.at + awake, suspended: self.suspended + asleep }
    }
}

/// When to look next, of whoever waits for a moment.
pub(super) fn look(at: Instant) -> Instant {
    at.min(Instant::now() + LOOK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_has_slept_brings_a_moment_nearer() {
        let at = Instant::now() + Duration::from_secs(3600);
        let until = Until { at, suspended: Duration::from_secs(5) };
        assert_eq!(until.instant_at(Duration::from_secs(5)), at);
        assert_eq!(until.instant_at(Duration::from_millis(5_001)), at);
        let slept = Duration::from_secs(600);
        assert_eq!(until.instant_at(Duration::from_secs(5) + slept), at - slept);
        assert!(look(at) < at);
    }

    #[test]
    fn what_the_machine_sleeps_before_the_answer_is_there_counts() {
        let (asked, second) = (Asked::now(), Duration::from_secs(1));
        let answered = asked.later(2 * second, 45 * second);
        assert_eq!(answered.since(asked), 47 * second);
        assert_eq!(asked.later(2 * second, NONE / 2).since(asked), 2 * second);
        let until = asked.checked_add(30 * second).unwrap();
        assert!(
            until.instant_at(answered.suspended) < answered.instant(),
            "it was over when the answer came"
        );
        assert!(asked.checked_add(Duration::MAX).is_none());
    }
}
