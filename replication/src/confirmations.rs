//! Who has confirmed that this node leads, and since when: what a linearizable read goes by.
//!
//! A read is answered with what was committed when it came, if a majority says *after that* that this node still
//! leads: see [`read_index`](crate::read_index). openraft keeps that account by the last entry of a request: what answers one
//! answers all that end with the same entry. That is right as long as one request is under way at a time. Here several
//! are, and some of them carry nothing but what is committed, so that they end where the one before them ends: the answer to
//! an old request would count as one to a request that was made much later, and may never have been sent. A leader that
//! stood still, and was replaced meanwhile, would take an answer of the time before for leave to read.
//!
//! So the account is kept here as well, request by request, and a read is answered when both agree. Time is a
//! counter: a confirmation counts for a read if its request was made after the read had begun, however long either
//! took. And it counts only for the leadership that the request was made in: who leads again has not led on.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::transport::NodeId;
use crate::types::{LeaderId, Membership};

/// How often it is looked whether the members are others.
const LOOK: Duration = Duration::from_millis(20);

/// A moment of this account; one that is taken later is greater.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Moment(u64);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Confirmations {
    next: AtomicU64,
    /// The newest leadership that each peer has confirmed, and when the newest request was made that it did so for.
    by_peer: Mutex<BTreeMap<NodeId, (LeaderId, Moment)>>,
    changed: Notify,
}

impl Confirmations {
    /// Later than all that were taken before.
    pub(crate) fn now(&self) -> Moment {
        Moment(self.next.fetch_add(1, Ordering::SeqCst))
    }

    /// A peer has answered a request of that moment, and accepted its sender as the leader.
    pub(crate) fn confirmed(&self, peer: NodeId, leader: LeaderId, made: Moment) {
        {
            let mut by_peer = self.by_peer.lock();
            let newest = by_peer.entry(peer).or_insert((leader, made));
            *newest = (*newest).max((leader, made));
        }
        self.changed.notify_waiters();
    }

    /// Whether a majority of `members`, of which `me` leads, confirmed after `since` that it does.
    fn is_confirmed(&self, members: &Membership, me: NodeId, leader: LeaderId, since: Moment) -> bool {
        let by_peer = self.by_peer.lock();
        let confirms = |voter: &u64| {
            let newest = by_peer.get(&NodeId(*voter));
            *voter == me.0 || newest.is_some_and(|(led, made)| *led == leader && *made > since)
        };
        // While the members change it takes a majority of those before and one of those to come.
        members.get_joint_config().iter().all(|voters| {
            let confirming = voters.iter().filter(|voter| confirms(voter)).count();
            confirming > voters.len() / 2
        })
    }

    /// Returns when that is so; `is_confirmed` is told how to ask for members.
    pub(crate) async fn until_confirmed(
        &self,
        (me, leader, since): (NodeId, LeaderId, Moment),
        with_members: impl Fn(&dyn Fn(&Membership) -> bool) -> bool,
    ) {
        let is_confirmed = |members: &Membership| self.is_confirmed(members, me, leader, since);
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            // Before looking: what comes after that is not missed.
            changed.as_mut().enable();
            if with_members(&is_confirmed) {
                return;
            }
            // Who the members are may change without a word from any of them.
            let _ = tokio::time::timeout(LOOK, changed).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::Member;

    const ME: NodeId = NodeId(1);

    fn leader(term: u64) -> LeaderId {
        LeaderId { term, node_id: 1 }
    }

    fn members(configs: &[&[u64]]) -> Membership {
        let configs: Vec<BTreeSet<u64>> =
            configs.iter().map(|voters| voters.iter().copied().collect()).collect();
        let nodes: BTreeMap<u64, Member> =
            configs.iter().flatten().map(|node| (*node, Member::default())).collect();
        Membership::new(configs, nodes).unwrap()
    }

    #[test]
    fn a_majority_counts_that_was_asked_after_the_read_and_in_the_same_leadership() {
        let confirmations = Confirmations::default();
        let three = members(&[&[1, 2, 3]]);
        let confirmed = |since| confirmations.is_confirmed(&three, ME, leader(4), since);
        let before = confirmations.now();
        let read = confirmations.now();
        assert!(!confirmed(read));
        confirmations.confirmed(NodeId(2), leader(4), before);
        assert!(!confirmed(read), "it was asked before, whenever it answers");
        confirmations.confirmed(NodeId(2), leader(3), confirmations.now());
        assert!(!confirmed(read), "of an earlier leadership");
        confirmations.confirmed(NodeId(3), leader(5), confirmations.now());
        assert!(!confirmed(read), "of a later one");
        confirmations.confirmed(NodeId(9), leader(4), confirmations.now());
        assert!(!confirmed(read), "of one who has no vote");
        confirmations.confirmed(NodeId(2), leader(4), confirmations.now());
        assert!(confirmed(read));
        // What answers an older request later takes nothing back.
        confirmations.confirmed(NodeId(2), leader(4), before);
        assert!(confirmed(read) && !confirmed(confirmations.now()));
    }

    #[test]
    fn while_members_change_both_majorities_count() {
        let confirmations = Confirmations::default();
        let read = confirmations.now();
        let joint = members(&[&[1, 2, 3], &[3, 4, 5]]);
        let confirmed = || confirmations.is_confirmed(&joint, ME, leader(1), read);
        let confirm = |peer| confirmations.confirmed(NodeId(peer), leader(1), confirmations.now());
        confirm(2);
        assert!(!confirmed());
        confirm(4);
        assert!(!confirmed(), "this node is none of those to come");
        confirm(5);
        assert!(confirmed());
        assert!(confirmations.is_confirmed(&members(&[&[1]]), ME, leader(1), confirmations.now()));
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_hears_of_what_comes() {
        let (confirmations, three) = (Confirmations::default(), members(&[&[1, 2, 3]]));
        let read = confirmations.now();
        let wait = confirmations.until_confirmed((ME, leader(1), read), |is_confirmed| is_confirmed(&three));
        let mut wait = std::pin::pin!(wait);
        let brief = Duration::from_millis(1);
        assert!(tokio::time::timeout(brief, &mut wait).await.is_err());
        confirmations.confirmed(NodeId(3), leader(1), confirmations.now());
        assert!(tokio::time::timeout(brief, wait).await.is_ok());
    }
}
