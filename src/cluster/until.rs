//! [`Until`]: when a lease ends, also if the machine sleeps meanwhile.
//!
//! The monotonic clock, by which all else here is timed, stands still while the machine is suspended, and the cluster's time
//! does not. Whoever held a lock before would believe that he holds it still, for as long as he was asleep.

use std::time::Duration;

use dogsled_storage::clock::suspended;
use tokio::time::Instant;

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
}
