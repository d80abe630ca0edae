//! How busy groups are; and when leaders are to follow that.
//!
//! Every node measures the groups that it has, by the entries that come into their logs: so whoever begins to
//! lead one knows at once what it has to do. The figure is part of a node's status, which the leader of the meta
//! group asks for anyway. It decides by [`crate::ring::load`], and puts down in the record who is to lead; from there
//! on leadership goes there as it does otherwise: see `maintenance`.
//!
//! Nothing is decided while partitions move, or movement is paused; nor if there is little to do at all; nor
//! before the loads have been uneven for a while, in several looks in a row. A burst moves nobody.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Groups, Inner};
use crate::meta::{Change, Record};
use crate::reconcile::View;

/// What was so long ago counts half.
const MEMORY: Duration = Duration::from_secs(20);
/// Loads are uneven for so long before leaders follow.
const PERSISTS: Duration = Duration::from_secs(12);
/// Entries in a thousand seconds of all groups, below which it does not matter who leads.
const LEAST: u64 = 20_000;

/// Of one group.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    /// Entries in a thousand seconds.
    rate: f64,
    /// The entry that came next, and when.
    seen: (u64, Instant),
}

/// Of all groups that a node has.
pub(super) type Loads = HashMap<u32, Load>;

impl Load {
    fn see(&mut self, next: u64, now: Instant) {
        let (before, at) = std::mem::replace(&mut self.seen, (next, now));
        let passed = now.saturating_duration_since(at).as_secs_f64();
        if passed <= 0.0 {
            self.seen = (before, at);
            return;
        }
        let rate = next.saturating_sub(before) as f64 * 1_000.0 / passed;
        // Only +, -, × and ÷, which are the same on every machine.
        self.rate += (rate - self.rate) * (passed / (passed + MEMORY.as_secs_f64()));
    }
}

impl Inner {
    /// Looks how much has come into each group's log.
    pub(super) fn measure(&self, groups: &Groups) {
        let now = Instant::now();
        let mut loads = self.loads.lock();
        loads.retain(|group, _| groups.contains_key(group));
        for group in groups.values() {
            let (_, next) = group.log.bounds();
            // What a log has already is no work of now.
            loads.entry(group.id).or_insert(Load { rate: 0.0, seen: (next, now) }).see(next, now);
        }
    }

    /// Entries of a group in a thousand seconds, lately.
    pub(super) fn load_of(&self, group: u32) -> u64 {
        self.loads.lock().get(&group).map_or(0, |load| load.rate as u64)
    }
}

/// Of whoever leads the meta group: since when the loads are uneven.
#[derive(Default)]
pub(super) struct Leaders {
    uneven_since: Option<Instant>,
}

impl Leaders {
    /// Who is to lead what instead, if it is time for that.
    pub(super) fn decide(&mut self, record: &Record, view: &View) -> Option<Change> {
        let all: u64 = view.loads.values().sum();
        let leaders = match record.settings.paused || all < LEAST {
            true => Vec::new(),
            false => record.placement.follow_load(&view.loads),
        };
        if leaders.is_empty() {
            self.uneven_since = None;
            return None;
        }
        let now = Instant::now();
        if now - *self.uneven_since.get_or_insert(now) < PERSISTS {
            return None;
        }
        // What comes of it is looked at for as long before anything else changes.
        self.uneven_since = None;
        tracing::info!(?leaders, "leaders follow the load");
        Some(Change::Leaders { leaders })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_load_comes_and_goes_slowly_and_a_burst_is_soon_forgotten() {
        let mut load = Load { rate: 0.0, seen: (7, Instant::now()) };
        let mut next = 7;
        let mut run = async |load: &mut Load, seconds: u32, entries: u64| {
            for _ in 0..seconds {
                tokio::time::advance(Duration::from_secs(1)).await;
                next += entries;
                load.see(next, Instant::now());
            }
            load.rate
        };
        assert!(run(&mut load, 5, 100).await < 30_000.0);
        let long = run(&mut load, 120, 100).await;
        assert!((90_000.0..=100_000.0).contains(&long), "{long}");
        let gone = run(&mut load, 60, 0).await;
        assert!(gone < 10_000.0, "{gone}");
        let burst = run(&mut load, 1, 300).await;
        assert!(burst < 25_000.0, "{burst}");
        // Nothing is divided by no time.
        load.see(1_000_000, Instant::now());
        assert!(load.rate < 25_000.0);
        // A log that was cut off.
        tokio::time::advance(Duration::from_secs(1)).await;
        load.see(3, Instant::now());
        assert!(load.rate.is_finite() && load.rate >= 0.0);
    }
}
