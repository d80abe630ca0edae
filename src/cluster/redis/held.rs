//! [`Held`]: how many bytes all connections of a server hold together, and may.
//!
//! If it is more than may be, those that hold most have to leave, not whoever happens to need a little more: two that hold
//! all and say nothing would keep all others off. So those that hold much are known one by one ([`Share`]); the many that
//! do not only add to one number, and take no lock.

use std::collections::HashMap;
use std::mem;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// What is collected for one reply may be so much, however much all others hold.
const FAIR: usize = 64 << 10;
/// Connections that hold more than this are known one by one.
pub(super) const MUCH: usize = 1 << 20;

/// What the connections of a server count in.
#[derive(Debug)]
pub(super) struct Held {
    bytes: AtomicUsize,
    most: usize,
    /// Those that hold much, by the numbers of their connections.
    large: Mutex<HashMap<u64, Large>>,
}

#[derive(Debug)]
struct Large {
    bytes: usize,
    leave: Arc<Notify>,
    is_told: bool,
}

impl Held {
    pub(super) fn new(most: usize) -> Arc<Held> {
        Arc::new(Held { bytes: AtomicUsize::new(0), most, large: Mutex::default() })
    }

    /// What one connection holds, nothing yet.
    pub(super) fn share(self: &Arc<Held>, connection: u64) -> Share {
        Share { held: Arc::clone(self), connection, bytes: 0, leave: None }
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts one that holds so much now and held so much before; whether all together hold no more than they may.
    pub(super) fn change(&self, before: usize, now: usize) -> bool {
        let all = match now >= before {
            true => self.bytes.fetch_add(now - before, Ordering::Relaxed) + (now - before),
            false => self.bytes.fetch_sub(before - now, Ordering::Relaxed) - (before - now),
        };
        all <= self.most
    }

    /// Begins to collect a reply.
    pub(super) fn collect(self: &Arc<Held>) -> Collected {
        Collected { held: Arc::clone(self), bytes: AtomicUsize::new(0) }
    }
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Share {
    held: Arc<Held>,
    connection: u64,
    bytes: usize,
    /// Of one that holds much: told when it has to leave.
    leave: Option<Arc<Notify>>,
}

impl Share {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// It holds so much now; whether all together hold no more than they may.
    pub(super) fn set(&mut self, bytes: usize) -> bool {
        let has_room = self.held.change(mem::replace(&mut self.bytes, bytes), bytes);
        if bytes > MUCH || self.leave.is_some() {
            self.enter();
        }
        has_room
    }

    fn enter(&mut self) {
        let mut large = self.held.large.lock();
        if self.bytes <= MUCH {
            large.remove(&self.connection);
            self.leave = None;
            return;
        }
        let leave = self.leave.get_or_insert_default();
        let new = || Large { bytes: 0, leave: Arc::clone(leave), is_told: false };
        large.entry(self.connection).or_insert_with(new).bytes = self.bytes;
    }

    /// Has those leave that hold more than this one, the largest first, until all together hold no more than they may;
    /// whether that was enough. Otherwise this one has to.
    pub(super) fn make_room(&self) -> bool {
        let mut large = self.held.large.lock();
        if large.get(&self.connection).is_some_and(|own| own.is_told) {
            return false;
        }
        // What was told is on its way out, but may be amid something: it is not waited for with any amount.
        let leaving = large.values().filter(|other| other.is_told).map(|other| other.bytes).sum::<usize>();
        let may_be = self.held.most + leaving.min(self.held.most / 4);
        let mut over = self.held.bytes().saturating_sub(may_be);
        while over > 0 {
            let staying = large.values_mut().filter(|other| !other.is_told);
            // Which this one may be itself.
            let Some(largest) = staying.max_by_key(|other| other.bytes).filter(|it| it.bytes > self.bytes)
            else {
                return false;
            };
            largest.is_told = true;
            largest.leave.notify_one();
            over = over.saturating_sub(largest.bytes);
        }
        true
    }

    /// Returns when this connection has to leave. What it holds does not change meanwhile.
    pub(super) async fn has_to_leave(&self) {
        match &self.leave {
            Some(leave) => leave.notified().await,
            None => std::future::pending().await,
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// What has been collected for a reply: counted while it is, as that is long before a byte of it is sent.
#[derive(Debug)]
pub(super) struct Collected {
    held: Arc<Held>,
    bytes: AtomicUsize,
}

impl Collected {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Counts what was added; whether there is room for it.
    pub(super) fn add(&self, bytes: usize) -> bool {
        let own = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.held.change(0, bytes) || own <= FAIR
    }
}

impl Drop for Collected {
    fn drop(&mut self) {
        self.held.change(*self.bytes.get_mut(), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_collected_counts_until_it_is_dropped_and_a_little_always_has_room() {
        let held = Held::new(1 << 20);
        assert!(held.change(0, 1 << 19));
        let (large, small) = (held.collect(), held.collect());
        assert!(large.add(1 << 18) && large.add(1 << 18));
        assert!(!large.add(1));
        assert!(small.add(100));
        assert_eq!((held.bytes(), large.bytes()), ((1 << 20) + 101, (1 << 19) + 1));
        drop(large);
        drop(small);
        assert_eq!(held.bytes(), 1 << 19);
        assert!(held.change(1 << 19, 0));
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn those_that_hold_most_leave_and_not_whoever_comes_next() {
        use futures_util::FutureExt;
        let held = Held::new(10 << 20);
        let mut shares: Vec<Share> = (0..5).map(|connection| held.share(connection)).collect();
        let leaves = |share: &Share| share.has_to_leave().now_or_never().is_some();
        assert!(shares[0].set(4 << 20) && shares[1].set(5 << 20));
        // A small one is over the most: the largest leaves, once.
        assert!(!shares[2].set(3 << 19));
        assert!(shares[2].make_room());
        assert!(shares[2].make_room());
        assert!(leaves(&shares[1]) && !leaves(&shares[0]) && !leaves(&shares[2]));
        // Who was told makes no others leave.
        assert!(!shares[1].make_room());
        // As long as it has not gone it is not waited for with any amount.
        assert!(!shares[3].set(3 << 20));
        assert!(shares[3].make_room());
        assert!(leaves(&shares[0]) && !leaves(&shares[3]));
        drop(shares.drain(..2));
        assert_eq!(held.bytes(), (3 << 19) + (3 << 20));
        // The largest itself.
        assert!(!shares[2].set(9 << 20));
        assert!(!shares[2].make_room());
        // Who has become small is let be, and is told anew later.
        assert!(shares[2].set(1) && shares[2].make_room());
        assert_eq!(held.large.lock().len(), 2);
        drop(shares);
        assert_eq!((held.bytes(), held.large.lock().len()), (0, 0));
    }
}
