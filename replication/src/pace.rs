//! [`Pace`]: how fast a node copies state to others while it serves.
//!
//! # Idea
//!
//! A node that comes, or comes back after long, is given a snapshot, or entries that only the disk
//! still has. There is no hurry about it, and whoever writes meanwhile should notice little. A fixed rate would
//! be too slow for one machine and too fast for another, so the rate follows what clients notice: how long
//! commands take at the groups that this node leads, which is measured anyway ([`NodeMetrics`](crate::metrics::NodeMetrics)).
//!
//! ```text
//! burst           the first bytes after a while without copying go at once: who was away for a moment is back soon
//! rest            nothing is copied; what commands take by the end of it is what is usual
//! copy            every so often: took they much longer than usual, the rate goes down by a part;
//!                 if not, up by a part
//! rest, copy …    the load changes, so what is usual is measured again from time to time
//! ```
//!
//! Delay is the signal, and rests are there to learn the delay of an otherwise quiet path, as in LEDBAT (RFC 6817) and
//! its successor LEDBAT++, whose problem is the same: to use what others leave.
//!
//! # Invariants
//!
//! - Never more than the operator's limit.
//! - While no command completes at all there is nobody to be spared, and the rate grows. A group whose quorum waits for
//!   the one who is catching up, while other groups of the node go on, is not told from the rest, and has the
//!   pace of all.
//! - Never less than [`FLOOR`], nor than half as much again as this node appends to its log: otherwise who is
//!   behind could stay so for ever.
//!
//! Time is tokio's, so a simulation paces as it pleases its clock, the same each time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// Copied at once after [`APART`] without copying.
const BURST: u64 = 1 << 20;
/// Without copying for so long, what follows is another copying.
const APART: Duration = Duration::from_secs(2);
/// Bytes per second that there are at least.
const FLOOR: f64 = (2 << 20) as f64;
/// Those that it begins with.
const FIRST: f64 = (8 << 20) as f64;
/// Those beyond which nothing is waited for.
const MOST: f64 = (8_u64 << 30) as f64;
/// How long a rest is: first what is on its way gets through, then it is measured.
const SETTLE: Duration = Duration::from_millis(100);
const MEASURE: Duration = Duration::from_millis(300);
/// Between two rests.
const REST_EVERY: Duration = Duration::from_secs(5);
/// How often the rate may change.
const LOOK: Duration = Duration::from_millis(100);
/// From so few commands nothing is concluded,
const FEW: u64 = 8;
/// unless no more came in so long.
const LONG: Duration = Duration::from_millis(400);
/// Commands that take more than so many times as long as usual are too slow,
const SLOW: f64 = 1.4;
/// and those up to so many times are quick enough.
const QUICK: f64 = 1.2;
/// What the difference between two quick ones may be, whatever the ratio, in seconds.
const NOTHING: f64 = 0.000_3;
const DOWN: f64 = 0.7;
const UP: f64 = 1.25;

/// What a node has done since it began, as far as it concerns its pace.
#[derive(Clone, Copy, Default, PartialEq, Debug)]
pub(crate) struct Served {
    /// Commands that were carried out,
    pub(crate) commands: u64,
    /// how long they took together,
    pub(crate) took: Duration,
    /// and the bytes appended to the log.
    pub(crate) appended: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// Bytes that still go at once.
    Burst(u64),
    /// Nothing is copied before `until`; it is measured from `from` on.
    Rest {
        from: Instant,
        until: Instant,
    },
    Copy {
        rest_at: Instant,
    },
}

struct State {
    phase: Phase,
    /// When the next piece may go.
    free_at: Instant,
    /// The last time that something was copied.
    copied: Instant,
    /// Bytes per second.
    rate: f64,
    /// Seconds that a command usually takes; `None`: nobody wrote.
    usual: Option<f64>,
    /// The last look, and what was seen.
    looked: (Instant, Served),
}

/// See the [module](self).
pub(crate) struct Pace {
    /// What the node was started with; 0: no limit.
    own_limit: u64,
    /// What holds now.
    limit: AtomicU64,
    /// `None` before anything was copied.
    state: Mutex<Option<State>>,
}

impl Pace {
    /// Never more than so many bytes per second.
    pub(crate) fn new(limit: Option<u64>) -> Pace {
        let own_limit = limit.unwrap_or(0);
        Pace { own_limit, limit: AtomicU64::new(own_limit), state: Mutex::new(None) }
    }

    /// From now on no more than this, or than the node was started with if that is less. 0: no limit.
    pub(crate) fn set_limit(&self, bytes_per_second: u64) {
        let limits = [self.own_limit, bytes_per_second];
        let least = limits.into_iter().filter(|limit| *limit > 0).min().unwrap_or(0);
        self.limit.store(least, Ordering::Relaxed);
    }

    /// Waits until so many bytes may be sent.
    pub(crate) async fn wait(&self, bytes: usize, served: impl Fn() -> Served) {
        loop {
            let until = {
                let mut state = self.state.lock();
                let now = Instant::now();
                let state = state.get_or_insert_with(|| State::new(now, served()));
                state.turn(now, bytes, self.limit.load(Ordering::Relaxed), &served)
            };
            match until {
                Turn::Granted(at) => return tokio::time::sleep_until(at).await,
                Turn::AskAgain(at) => tokio::time::sleep_until(at).await,
            }
        }
    }
}

/// What is said to who asks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Turn {
    /// It may go then.
    Granted(Instant),
    /// What holds then is not known yet.
    AskAgain(Instant),
}

impl State {
    fn new(now: Instant, served: Served) -> State {
        State {
            phase: Phase::Burst(BURST),
            free_at: now,
            copied: now,
            rate: FIRST,
            usual: None,
            looked: (now, served),
        }
    }

    fn turn(&mut self, now: Instant, bytes: usize, limit: u64, served: &impl Fn() -> Served) -> Turn {
        if now.saturating_duration_since(self.copied) > APART {
            *self = State::new(now, served());
        }
        let rate = match self.phase {
            Phase::Burst(left) => {
                match left.checked_sub(bytes as u64) {
                    Some(left) => self.phase = Phase::Burst(left),
                    None => self.rest(now, served),
                }
                MOST
            }
            Phase::Rest { from, until } => {
                if now < from {
                    return Turn::AskAgain(from);
                }
                if self.looked.0 < from {
                    // The first who comes after `from` begins the measurement, and all wait for its end.
                    let before = std::mem::replace(&mut self.looked, (now, served()));
                    let is_awaited = self.looked.1.commands > before.1.commands;
                    if is_awaited && now < until {
                        return Turn::AskAgain(until);
                    }
                } else if now < until {
                    return Turn::AskAgain(until);
                }
                self.usual = mean(&self.looked.1, &served());
                self.looked = (now, served());
                self.phase = Phase::Copy { rest_at: now + REST_EVERY };
                self.rate
            }
            Phase::Copy { rest_at } => {
                if now >= rest_at {
                    self.rest(now, served);
                    return Turn::AskAgain(now + SETTLE);
                }
                self.look(now, served);
                self.rate
            }
        };
        let rate = if limit > 0 { rate.min(limit as f64) } else { rate };
        let at = self.free_at.max(now);
        self.free_at = at + Duration::from_secs_f64(bytes as f64 / rate);
        self.copied = self.free_at;
        Turn::Granted(at)
    }

    fn rest(&mut self, now: Instant, served: &impl Fn() -> Served) {
        self.looked = (now, served());
        self.phase = Phase::Rest { from: now + SETTLE, until: now + SETTLE + MEASURE };
    }

    /// Changes the rate by what commands took since the last look, while something was copied.
    fn look(&mut self, now: Instant, served: &impl Fn() -> Served) {
        let since = now.saturating_duration_since(self.looked.0);
        if since < LOOK {
            return;
        }
        let served = served();
        let commands = served.commands - self.looked.1.commands;
        if commands < FEW && since < LONG {
            return;
        }
        match (mean(&self.looked.1, &served), self.usual) {
            // Nobody is there to be spared.
            (None, _) => self.rate = (self.rate * 2.0).min(MOST),
            // They came meanwhile.
            (Some(_), None) => {
                self.rate = self.rate.min(FIRST);
                return self.rest(now, &|| served);
            }
            (Some(took), Some(usual)) if took > usual * SLOW + NOTHING => self.rate *= DOWN,
            (Some(took), Some(usual)) if took < usual * QUICK + NOTHING => {
                self.rate = (self.rate * UP).min(MOST);
            }
            _ => {}
        }
        let appended = (served.appended - self.looked.1.appended) as f64 / since.as_secs_f64();
        self.rate = self.rate.max(FLOOR).max(appended * 1.5);
        self.looked = (now, served);
    }
}

/// Seconds that a command took between the two; `None` if there were none.
fn mean(before: &Served, after: &Served) -> Option<f64> {
    let commands = after.commands - before.commands;
    let took = after.took.saturating_sub(before.took);
    (commands > 0).then(|| took.as_secs_f64() / commands as f64)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MIB: usize = 1 << 20;

    /// A node whose commands take longer the more is copied: 1 ms, and 1 ms more for each 10 MiB/s.
    struct Machine {
        pace: Pace,
        served: Mutex<Served>,
        /// What was copied, and when.
        copied: Mutex<Vec<(Instant, usize)>>,
        /// Commands per second, while they are answered at all.
        commands: AtomicU64,
    }

    impl Machine {
        fn new(limit: Option<u64>, commands: u64) -> Arc<Machine> {
            Arc::new(Machine {
                pace: Pace::new(limit),
                served: Mutex::default(),
                copied: Mutex::default(),
                commands: AtomicU64::new(commands),
            })
        }

        fn copied_since(&self, since: Instant) -> usize {
            self.copied.lock().iter().filter(|(at, _)| *at >= since).map(|(_, bytes)| bytes).sum()
        }

        /// Serves for ever.
        async fn serve(self: Arc<Machine>) {
            let tick = Duration::from_millis(10);
            loop {
                tokio::time::sleep(tick).await;
                let rate = self.copied_since(Instant::now() - tick * 10) as f64 * 10.0;
                let took = Duration::from_secs_f64(0.001 * (1.0 + rate / (10 * MIB) as f64));
                let commands = self.commands.load(Ordering::Relaxed) / 100;
                let mut served = self.served.lock();
                served.commands += commands;
                served.took += took * commands as u32;
            }
        }

        /// Copies pieces for so long; the bytes per second of the second half.
        async fn copy(self: &Arc<Machine>, time: Duration) -> f64 {
            let serving = tokio::spawn(Arc::clone(self).serve());
            let begun = Instant::now();
            while begun.elapsed() < time {
                self.pace.wait(MIB / 4, || *self.served.lock()).await;
                // The link has an end, too.
                tokio::time::sleep(Duration::from_millis(1)).await;
                self.copied.lock().push((Instant::now(), MIB / 4));
            }
            serving.abort();
            self.copied_since(begun + time / 2) as f64 / (time / 2).as_secs_f64()
        }
    }

    #[tokio::test(start_paused = true)]
    async fn copying_leaves_commands_nearly_as_quick_as_they_are_without() {
        let machine = Machine::new(None, 5_000);
        let rate = machine.copy(Duration::from_secs(30)).await / MIB as f64;
        // 1.2 and 1.4 times as long, and what is nothing, are 5 and 7 MiB/s.
        assert!((4.0..9.0).contains(&rate), "{rate} MiB/s");
    }

    #[tokio::test(start_paused = true)]
    async fn without_commands_copying_is_as_fast_as_the_link() {
        let machine = Machine::new(None, 0);
        let rate = machine.copy(Duration::from_secs(10)).await / MIB as f64;
        assert!(rate > 100.0, "{rate} MiB/s");
        // And when somebody comes, he is noticed.
        machine.commands.store(5_000, Ordering::Relaxed);
        let rate = machine.copy(Duration::from_secs(20)).await / MIB as f64;
        assert!(rate < 9.0, "{rate} MiB/s");
    }

    #[tokio::test(start_paused = true)]
    async fn an_operators_limit_holds_whatever_nobody_notices() {
        let machine = Machine::new(Some(3 << 20), 0);
        machine.pace.set_limit(2 << 20);
        let rate = machine.copy(Duration::from_secs(20)).await / MIB as f64;
        assert!((1.8..2.1).contains(&rate), "{rate} MiB/s");
        machine.pace.set_limit(0);
        let rate = machine.copy(Duration::from_secs(20)).await / MIB as f64;
        assert!((2.8..3.1).contains(&rate), "{rate} MiB/s");
    }

    #[tokio::test(start_paused = true)]
    async fn a_little_after_a_while_is_copied_at_once() {
        let machine = Machine::new(None, 5_000);
        for _ in 0..3 {
            tokio::time::sleep(APART * 2).await;
            let begun = Instant::now();
            for _ in 0..4 {
                machine.pace.wait(BURST as usize / 4, || *machine.served.lock()).await;
            }
            assert!(begun.elapsed() < Duration::from_millis(20), "{:?}", begun.elapsed());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_behind_is_sent_more_than_is_written_meanwhile() {
        let machine = Machine::new(None, 5_000);
        // However little is copied, commands take ten times as long, and 20 MiB/s are appended.
        let serving = tokio::spawn({
            let machine = Arc::clone(&machine);
            async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    let is_copied = machine.copied_since(Instant::now() - LOOK) > 0;
                    let mut served = machine.served.lock();
                    served.commands += 10;
                    served.took += Duration::from_millis(if is_copied { 100 } else { 10 });
                    served.appended += MIB as u64 / 5;
                }
            }
        });
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(20) {
            machine.pace.wait(MIB / 4, || *machine.served.lock()).await;
            machine.copied.lock().push((Instant::now(), MIB / 4));
        }
        serving.abort();
        let rate = machine.copied_since(begun) as f64 / 20.0 / MIB as f64;
        assert!((24.0..32.0).contains(&rate), "{rate} MiB/s");
    }
}
