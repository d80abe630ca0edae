//! [`SimulatedClock`]: what one machine takes for the time.

use std::sync::Arc;

use dogsled_storage::Clock;
use parking_lot::Mutex;
use tokio::time::Instant;

/// 2026-01-01 00:00 UTC in milliseconds.
const BEGIN_MS: i64 = 1_767_225_600_000;

#[derive(Debug)]
struct State {
    began: Instant,
    offset_ms: i64,
    /// How much faster it runs than time, in millionths.
    drift_ppm: i64,
}

/// A clock that is wrong by an offset, drifts and jumps. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct SimulatedClock(Arc<Mutex<State>>);

impl SimulatedClock {
    /// A clock that is off by so much.
    pub fn new(offset_ms: i64, drift_ppm: i64) -> SimulatedClock {
        SimulatedClock(Arc::new(Mutex::new(State { began: Instant::now(), offset_ms, drift_ppm })))
    }

    /// Somebody sets it, or it is stepped by a time service.
    pub fn jump(&self, by_ms: i64) {
        self.0.lock().offset_ms += by_ms;
    }
}

impl Clock for SimulatedClock {
    fn now_ms(&self) -> u64 {
        let state = self.0.lock();
        let elapsed = state.began.elapsed().as_millis() as i64;
        let drift = elapsed * state.drift_ppm / 1_000_000;
        u64::try_from(BEGIN_MS + elapsed + drift + state.offset_ms).unwrap_or(0)
    }
}
