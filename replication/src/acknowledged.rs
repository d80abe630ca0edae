//! What each follower has acknowledged to this leadership, so that one that has lost it is noticed.
//!
//! Raft counts what a follower acknowledged towards what is committed, for good. A follower whose disk forgets it (the
//! directory was put back as an older copy of itself, or the disk lies about its syncs) breaks that: it helps to elect a
//! leader that lacks what was acknowledged. Nothing can bring back what nobody has, but as long as the leader to which
//! it was acknowledged leads on, that leader knows better than the follower, and goes by this account:
//!
//! - A follower says that it lacks an entry that it had acknowledged *before the request was made that it answers*. (An
//!   answer that was under way may be older than what the follower has got since.)
//! - From then on it is sent nothing but [`Kind::Forgotten`](crate::message::Kind::Forgotten), and openraft is not told:
//!   it would take the follower back to the beginning at once.
//! - The follower, being told, grants no vote and asks for none before its log is as long as it was: the same
//!   safeguard, in the same durable register, as for one that is given a replica again (see
//!   [`hosting`](crate::node::hosting)). It says in its status what has happened, and counts it.
//! - When it has answered that this is durable, openraft hears that it lacks the entry, and sends it everything. What was
//!   committed with the help of what it acknowledged is not in danger any more: without the leader nobody is elected
//!   who lacks it, for this follower's vote would be needed.
//!
//! A follower that has its replica made anew, because the files of the old one are gone, comes the same way; so does one
//! that has lost its disk before it was a voter, and joins again.
//!
//! A leader that is elected before the follower is back does not know. What cannot be noticed is a directory that is put
//! back while no leader knows better: hence never do that (`docs/operating.md`). The last line of defence are
//! [`check_append`](crate::message::check_append), which refuses entries that contradict what is committed, and the log, which refuses
//! to cut that off: two replicas that have applied different things do not go on as if they agreed.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::confirmations::Moment;
use crate::transport::NodeId;
use crate::types::LeaderId;

#[derive(Clone, Copy, Debug)]
struct Peer {
    leader: LeaderId,
    /// The last entry that it has acknowledged.
    position: u64,
    /// When that was known.
    since: Moment,
    has_forgotten: bool,
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Acknowledged {
    by_peer: Mutex<BTreeMap<NodeId, Peer>>,
}

impl Acknowledged {
    /// A peer that has forgotten it has made sure that it does not vote before it has it again.
    pub(crate) fn is_told(&self, peer: NodeId, leader: LeaderId) {
        let mut by_peer = self.by_peer.lock();
        if by_peer.get(&peer).is_some_and(|known| known.leader == leader) {
            by_peer.remove(&peer);
        }
    }

    /// A peer has everything up to `position`, as is known since `now`.
    pub(crate) fn has(&self, peer: NodeId, leader: LeaderId, position: u64, now: Moment) {
        let mut by_peer = self.by_peer.lock();
        let new = Peer { leader, position, since: now, has_forgotten: false };
        let known = by_peer.entry(peer).or_insert(new);
        if leader > known.leader || (leader == known.leader && position > known.position) {
            *known = Peer { has_forgotten: leader == known.leader && known.has_forgotten, ..new };
        }
    }

    /// A peer lacks the entry at `position`, as it answers to a request that was made then; whether it had acknowledged
    /// it before that.
    pub(crate) fn lacks(&self, peer: NodeId, leader: LeaderId, position: u64, made: Moment) -> bool {
        let mut by_peer = self.by_peer.lock();
        let Some(known) = by_peer.get_mut(&peer) else { return false };
        let has_forgotten = known.leader == leader && position <= known.position && made > known.since;
        known.has_forgotten |= has_forgotten;
        has_forgotten
    }

    /// What a peer that has forgotten it had acknowledged to this leadership.
    pub(crate) fn forgotten(&self, peer: NodeId, leader: LeaderId) -> Option<u64> {
        let by_peer = self.by_peer.lock();
        let known = by_peer.get(&peer)?;
        (known.leader == leader && known.has_forgotten).then_some(known.position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confirmations::Confirmations;

    const PEER: NodeId = NodeId(2);

    fn leader(term: u64) -> LeaderId {
        LeaderId { term, node_id: 1 }
    }

    #[test]
    fn who_lacks_what_it_had_acknowledged_before_it_was_asked_has_forgotten_it() {
        let (clock, account) = (Confirmations::default(), Acknowledged::default());
        let early = clock.now();
        assert!(!account.lacks(PEER, leader(1), 9, early), "nothing was acknowledged yet");
        account.has(PEER, leader(1), 9, clock.now());
        assert!(!account.lacks(PEER, leader(1), 9, early), "it has got it since");
        assert!(!account.lacks(PEER, leader(1), 10, clock.now()), "what comes next it need not have");
        assert_eq!(account.forgotten(PEER, leader(1)), None);
        assert!(account.lacks(PEER, leader(1), 9, clock.now()));
        assert_eq!(account.forgotten(PEER, leader(1)), Some(9));
        assert_eq!(account.forgotten(NodeId(3), leader(1)), None);
        // What is under way still does not make it forgotten.
        account.has(PEER, leader(1), 12, clock.now());
        assert_eq!(account.forgotten(PEER, leader(1)), Some(12));
    }

    #[test]
    fn it_is_of_one_leadership_and_of_one_replica() {
        let (clock, account) = (Confirmations::default(), Acknowledged::default());
        account.has(PEER, leader(1), 9, clock.now());
        assert!(
            !account.lacks(PEER, leader(2), 9, clock.now()),
            "what was not committed may have been cut off"
        );
        account.has(PEER, leader(2), 5, clock.now());
        assert!(!account.lacks(PEER, leader(2), 9, clock.now()));
        account.has(PEER, leader(1), 20, clock.now());
        assert!(account.lacks(PEER, leader(2), 5, clock.now()), "an old leadership changes nothing");
        account.is_told(PEER, leader(1));
        assert_eq!(account.forgotten(PEER, leader(2)), Some(5), "it was told of another leadership");
        account.is_told(PEER, leader(2));
        assert_eq!(account.forgotten(PEER, leader(2)), None);
        assert!(!account.lacks(PEER, leader(2), 5, clock.now()));
    }
}
