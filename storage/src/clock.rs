//! What tells the time, so that tests and simulations can.

use std::fmt::Debug;

/// A clock. Commits are stamped with it, and the stamps never run backwards even if it does.
pub trait Clock: Debug + Send + Sync + 'static {
    /// Milliseconds since 1970.
    fn now_ms(&self) -> u64;
}

/// The operating system's clock, to a few milliseconds: leases are longer than that, and it costs
/// a tenth of a precise reading on every commit.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
        // Before 1970 there is nothing to stamp.
        u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + now.tv_nsec as u64 / 1_000_000
    }
}
