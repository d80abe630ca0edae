//! [`Fence`]: whom a node does not take part in Raft with any more, and whether it is outside itself.
//!
//! A member that was taken out may come back with what it had: one that left and was started again, or
//! one that was given up for lost ([`crate::recovery`]) and was not. Its log is of a history that went on
//! without it. So nobody counts its votes and acknowledgements, answers its requests for them, or tells
//! it how far it may read; and what it asked for is answered with the reason. By that it learns that it
//! was taken out, and serves nobody from then on, neither clients nor others like it: two of them that
//! find each other again would otherwise go on with the old history as if they were the cluster.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use arc_swap::ArcSwap;

use crate::message::PeerError;
use crate::transport::NodeId;

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Fence {
    removed: ArcSwap<BTreeSet<NodeId>>,
    is_out: AtomicBool,
}

impl Fence {
    /// These were taken out of the cluster.
    pub(crate) fn set_removed(&self, removed: &BTreeSet<NodeId>) {
        if **self.removed.load() != *removed {
            self.removed.store(removed.clone().into());
        }
    }

    /// Whether a node was taken out.
    pub(crate) fn is_removed(&self, node: NodeId) -> bool {
        self.removed.load().contains(&node)
    }

    /// A peer has refused what this node asked for.
    pub(crate) fn refused(&self, error: &PeerError) {
        if matches!(error, PeerError::Removed(_)) && !self.is_out.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "this node was taken out of the cluster, and serves nobody any more");
        }
    }

    /// Whether this node was told that it was taken out.
    pub(crate) fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }
}
