//! [`Figures`]: how many are connected to a node, and how many were turned away or cut off.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Figures of an endpoint as of about now. What counts up does so since it was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct Figures {
    /// Clients that are connected.
    pub clients: u64,
    /// Connections that peers have made to this node and that are served.
    pub peers: u64,
    /// Connections that were let in since.
    pub accepted: u64,
    /// Connections that were ignored because too many were being made.
    pub flooded: u64,
    /// Clients that were refused because as many as there may be were connected.
    pub busy: u64,
    /// Connections that came to nothing: no certificate of the cluster, another one's name, no greeting.
    pub failed: u64,
    /// Connections that were closed because they did not take their replies.
    pub stalled: u64,
}

/// What is counted.
#[derive(Default)]
pub(crate) struct Counters {
    clients: Arc<AtomicU64>,
    peers: Arc<AtomicU64>,
    accepted: AtomicU64,
    flooded: AtomicU64,
    busy: AtomicU64,
    failed: AtomicU64,
    stalled: AtomicU64,
}

/// A connection, counted as long as it is there.
pub(crate) struct Connected(Arc<AtomicU64>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Counters {
    fn connected(&self, gauge: &Arc<AtomicU64>) -> Connected {
        self.accepted.fetch_add(1, Relaxed);
        gauge.fetch_add(1, Relaxed);
        Connected(Arc::clone(gauge))
    }

    pub(crate) fn client(&self) -> Connected {
        self.connected(&self.clients)
    }

    pub(crate) fn peer(&self) -> Connected {
        self.connected(&self.peers)
    }

    pub(crate) fn flooded(&self) {
        self.flooded.fetch_add(1, Relaxed);
    }

    pub(crate) fn busy(&self) {
        self.busy.fetch_add(1, Relaxed);
    }

    pub(crate) fn failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn stalled(&self) {
        self.stalled.fetch_add(1, Relaxed);
    }

    pub(crate) fn read(&self) -> Figures {
        Figures {
            clients: self.clients.load(Relaxed),
            peers: self.peers.load(Relaxed),
            accepted: self.accepted.load(Relaxed),
            flooded: self.flooded.load(Relaxed),
            busy: self.busy.load(Relaxed),
            failed: self.failed.load(Relaxed),
            stalled: self.stalled.load(Relaxed),
        }
    }
}
