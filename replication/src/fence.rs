//! [`Fence`]: whom a node does not take part in Raft with any more, and whether it is outside itself.
//!
//! A member that was taken out may come back with what it had: one that left and was started again, or
//! one that was given up for lost ([`crate::recovery`]) and was not. Its log is of a history that went on
//! without it. So nobody counts its votes and acknowledgements, answers its requests for them, or tells
//! it how far it may read; and what it asked for is answered with the reason. By that it learns that it
//! was taken out, and serves nobody from then on, neither clients nor others like it: two of them that
//! find each other again would otherwise go on with the old history as if they were the cluster. What it
//! was told it writes into its [file](crate::node_file), so that it knows when it is started again and
//! hears of nobody.
//!
//! # Who is believed
//!
//! To be out is for ever, so it is not believed of just anybody: an old member, too, has a record, and may
//! have taken out there those who went on without it. Each refusal carries the [`Authority`] of whoever
//! refuses, and only a greater one than the own counts. Within one history the one that knows of the
//! removal has applied more; and a recovery goes on beyond all terms of the past. So of two histories
//! that took each other out the one that was recovered wins, and if both were, the same one everywhere.
//!
//! # Before the record says so
//!
//! While a recovery is under way, those who are given up must not be heard any more by any survivor, though
//! no record says so yet: a vote, an acknowledgement, or just the answer to a vote that tells them the new
//! term, would bring the old history back. For that there are two more stages:
//!
//! - **held**: for a time, by a recovery with a number of its own. No second recovery is let in, so that two
//!   operators at once do not choose two survivors for one group. It is in [a file](crate::given_up), too, so that a
//!   survivor that loses power amid it does not answer the lost when it is started again. Forgotten if nothing comes
//!   of it: nobody is told that it was taken out.
//! - **given up**: for ever, in the same file: by whoever goes on with the meta group alone, before its log has
//!   another history than theirs; by all survivors before any partition goes on; and by whoever is given a replica
//!   of any group by one who has given them up, so before he has anything of the new history.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::codec::{Malformed, Put, Take};
use crate::message::PeerError;
use crate::runtime::watch;
use crate::transport::NodeId;

/// A recovery of which nothing was heard for so long is over: whoever carried it out is gone.
pub(crate) const HOLD: Duration = Duration::from_secs(15);

/// How much of the meta group's history a node knows; see the [module](self). Of two, the greater is right.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Authority {
    /// The term of the last entry that it has applied,
    pub(crate) term: u64,
    /// who led then,
    pub(crate) leader: u64,
    /// and the record's epoch.
    pub(crate) epoch: u64,
}

impl Authority {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.term);
        bytes.put_u64(self.leader);
        bytes.put_u64(self.epoch);
    }

    pub(crate) fn take(take: &mut Take) -> Result<Authority, Malformed> {
        Ok(Authority { term: take.u64()?, leader: take.u64()?, epoch: take.u64()? })
    }
}

/// A recovery that is under way.
struct Hold {
    operation: u128,
    lost: BTreeSet<NodeId>,
    until: Instant,
}

/// See the [module](self).
pub(crate) struct Fence {
    /// By the record.
    removed: ArcSwap<BTreeSet<NodeId>>,
    given_up: ArcSwap<BTreeSet<NodeId>>,
    /// Those without whom this node is about to go on.
    about_to_be: ArcSwap<BTreeSet<NodeId>>,
    hold: Mutex<Option<Hold>>,
    own: Mutex<Authority>,
    /// The own record says that this node was taken out.
    knows: AtomicBool,
    is_out: AtomicBool,
    /// Tells whoever writes it down.
    out: watch::Sender<bool>,
}

impl Fence {
    /// As its files say.
    pub(crate) fn new(is_out: bool) -> Fence {
        Fence {
            removed: ArcSwap::default(),
            given_up: ArcSwap::default(),
            about_to_be: ArcSwap::default(),
            hold: Mutex::default(),
            own: Mutex::default(),
            knows: AtomicBool::new(false),
            is_out: AtomicBool::new(is_out),
            out: watch::Sender::new(is_out),
        }
    }

    /// The record, which the meta group's log has said so far, takes out these; `me` is whoever reads it.
    pub(crate) fn set_record(&self, own: Authority, removed: &BTreeSet<NodeId>, me: NodeId) {
        if **self.removed.load() != *removed {
            self.removed.store(removed.clone().into());
        }
        self.knows.store(removed.contains(&me), Ordering::Relaxed);
        let mut known = self.own.lock();
        *known = own.max(*known);
    }

    /// These are given up for ever, as the file says.
    pub(crate) fn set_given_up(&self, given_up: BTreeSet<NodeId>) {
        self.given_up.store(given_up.into());
        self.about_to_be.store(BTreeSet::new().into());
    }

    /// These will be, as soon as the log says that this node goes on without them: until then they are not heard, but
    /// nor told that they were taken out, for if nothing comes of it they were not.
    pub(crate) fn is_about_to_give_up(&self, nodes: BTreeSet<NodeId>) {
        self.about_to_be.store(nodes.into());
    }

    /// Those that were given up for ever.
    pub(crate) fn given_up(&self) -> BTreeSet<NodeId> {
        BTreeSet::clone(&self.given_up.load())
    }

    /// Whether a node is not to be heard, nor told anything.
    pub(crate) fn is_shut_out(&self, node: NodeId) -> bool {
        self.is_removed(node) || self.is_held(node)
    }

    /// Whether a node was taken out for ever.
    pub(crate) fn is_removed(&self, node: NodeId) -> bool {
        self.removed.load().contains(&node) || self.given_up.load().contains(&node)
    }

    fn is_held(&self, node: NodeId) -> bool {
        let hold = self.hold.lock();
        self.about_to_be.load().contains(&node)
            || hold.as_ref().is_some_and(|hold| hold.until > Instant::now() && hold.lost.contains(&node))
    }

    /// The refusal of a node that is shut out.
    pub(crate) fn refusal(&self, node: NodeId) -> Option<PeerError> {
        if self.is_removed(node) {
            let why = format!(
                "node {node} was taken out of the cluster, and what it has is not the cluster's any more: give it a new \
                 id and an empty directory"
            );
            return Some(PeerError::Removed(*self.own.lock(), why));
        }
        self.is_held(node).then(|| PeerError::NoGroup(format!("node {node} is just being given up for lost")))
    }

    /// A peer has refused what this node asked for.
    pub(crate) fn refused(&self, error: &PeerError) {
        let PeerError::Removed(authority, _) = error else { return };
        let own = *self.own.lock();
        if *authority <= own && !self.knows.load(Ordering::Relaxed) {
            tracing::warn!(%error, ?authority, ?own, "refused by one whose history is not newer: it is not believed");
            return;
        }
        if !self.is_out.swap(true, Ordering::Relaxed) {
            tracing::error!(%error, "this node was taken out of the cluster, and serves nobody any more");
            self.out.send_replace(true);
        }
    }

    /// Whether this node was told that it was taken out.
    pub(crate) fn is_out(&self) -> bool {
        self.is_out.load(Ordering::Relaxed)
    }

    /// Tells when it is.
    pub(crate) fn out(&self) -> watch::Receiver<bool> {
        self.out.subscribe()
    }

    /// Begins, or goes on with, a recovery that gives up these.
    ///
    /// # Errors
    /// In words: another one is under way.
    pub(crate) fn hold(&self, operation: u128, lost: BTreeSet<NodeId>) -> Result<(), String> {
        let mut hold = self.hold.lock();
        let now = Instant::now();
        match &*hold {
            Some(held) if held.operation != operation && held.until > now => {
                Err("another recovery is under way: look again when it has ended".to_owned())
            }
            _ => {
                *hold = Some(Hold { operation, lost, until: now + HOLD });
                Ok(())
            }
        }
    }

    /// Whether a recovery is still under way; then it is for a while longer.
    pub(crate) fn holds(&self, operation: u128) -> bool {
        let (mut hold, now) = (self.hold.lock(), Instant::now());
        match &mut *hold {
            Some(held) if held.operation == operation && held.until > now => {
                held.until = now + HOLD;
                true
            }
            _ => false,
        }
    }

    /// Goes on with a recovery that was under way, for so long, when the node was started again.
    pub(crate) fn hold_still(&self, operation: u128, lost: BTreeSet<NodeId>, left: Duration) {
        let until = Instant::now() + left.min(HOLD);
        *self.hold.lock() = Some(Hold { operation, lost, until });
    }

    /// Ends a recovery; whether it was under way.
    pub(crate) fn release(&self, operation: u128) -> bool {
        self.hold.lock().take_if(|held| held.operation == operation).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(term: u64, leader: u64, epoch: u64) -> Authority {
        Authority { term, leader, epoch }
    }

    fn fence(own: Authority) -> Fence {
        let fence = Fence::new(false);
        fence.set_record(own, &BTreeSet::new(), NodeId(1));
        fence
    }

    #[test]
    fn only_a_newer_history_takes_a_node_out() {
        let own = authority(7, 2, 40);
        for (other, is_out) in [
            (authority(7, 2, 41), true),
            (authority(8, 1, 39), true),
            (authority(1 << 32, 1, 12), true),
            (own, false),
            (authority(6, 3, 99), false),
        ] {
            let fence = fence(own);
            fence.refused(&PeerError::Removed(other, "out".to_owned()));
            assert_eq!(fence.is_out(), is_out, "{other:?}");
        }
        let fence = fence(own);
        fence.refused(&PeerError::NoGroup("none".to_owned()));
        assert!(!fence.is_out());
        // Its own record says the same.
        fence.set_record(own, &BTreeSet::from([NodeId(1)]), NodeId(1));
        fence.refused(&PeerError::Removed(own, "out".to_owned()));
        assert!(fence.is_out());
    }

    #[test]
    fn of_two_that_took_each_other_out_one_stays() {
        for (one, other) in [
            (authority(9, 1, 40), authority(1 << 32, 3, 20)),
            (authority((1 << 32) + 9, 1, 21), authority((1 << 32) + 9, 3, 21)),
        ] {
            let (first, second) = (fence(one), fence(other));
            first.refused(&PeerError::Removed(other, "out".to_owned()));
            second.refused(&PeerError::Removed(one, "out".to_owned()));
            assert!(first.is_out() && !second.is_out(), "{one:?} {other:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_recovery_at_a_time_and_nothing_is_left_of_one_that_came_to_nothing() {
        let fence = fence(authority(7, 2, 40));
        let lost = BTreeSet::from([NodeId(3)]);
        fence.hold(1, lost.clone()).unwrap();
        assert!(fence.hold(2, lost.clone()).is_err());
        assert!(fence.is_shut_out(NodeId(3)) && !fence.is_shut_out(NodeId(2)));
        assert!(
            matches!(fence.refusal(NodeId(3)), Some(PeerError::NoGroup(_))),
            "it is not told that it is out"
        );
        assert!(fence.holds(1) && !fence.holds(2));
        tokio::time::advance(HOLD * 2).await;
        assert!(!fence.holds(1) && !fence.is_shut_out(NodeId(3)));
        fence.hold(2, lost.clone()).unwrap();
        fence.release(1);
        assert!(fence.holds(2), "the other one's");
        fence.set_given_up(lost);
        fence.release(2);
        assert!(matches!(fence.refusal(NodeId(3)), Some(PeerError::Removed(..))));
    }

    #[test]
    fn who_is_about_to_be_given_up_is_not_heard_nor_told_that_it_is() {
        let fence = fence(authority(7, 2, 40));
        fence.is_about_to_give_up(BTreeSet::from([NodeId(3)]));
        assert!(
            fence.is_shut_out(NodeId(3)) && !fence.is_removed(NodeId(3)) && !fence.is_shut_out(NodeId(2))
        );
        assert!(matches!(fence.refusal(NodeId(3)), Some(PeerError::NoGroup(_))));
        fence.set_given_up(BTreeSet::from([NodeId(3)]));
        assert!(matches!(fence.refusal(NodeId(3)), Some(PeerError::Removed(..))));
    }
}
