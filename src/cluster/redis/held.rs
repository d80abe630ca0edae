//! [`Held`]: how many bytes all connections of a server hold together, and may.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is collected for one reply may be so much, however much all others hold.
const FAIR: usize = 64 << 10;

/// What the connections of a server count in.
#[derive(Debug)]
pub(super) struct Held {
    bytes: AtomicUsize,
    most: usize,
}

impl Held {
    pub(super) fn new(most: usize) -> Arc<Held> {
        Arc::new(Held { bytes: AtomicUsize::new(0), most })
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
}
