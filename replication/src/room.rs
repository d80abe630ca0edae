//! [`Room`]: which nodes have disks that are nearly full, and what follows for a group.
//!
//! Each node looks at its own file system a few times a second, and tells every leader that it hears from, in
//! its answer to entries and heartbeats. So a leader knows of all its followers, and decides before it logs
//! anything:
//!
//! - **A follower is low**: nothing changes. Its disk may fill up; then it stops, and catches up when there is
//!   space again. The others are a quorum without it.
//! - **The leader is low**, and a majority is not: it hands leadership to one that is not, and refuses writes
//!   meanwhile with "try again".
//! - **No majority has space**: writes are refused ([`ClusterError::NoSpace`]) until one has. Going on would fill
//!   their disks, and then nothing at all could be done, not even what frees space.
//!
//! What counts as a write, and why this is asked before an entry is logged and never when it is applied, is told
//! in [`dogsled_storage::space`]. Raft's own messages, reads, checkpoints and snapshots go on in any case, and so
//! does the meta group: members can be added and taken out.
//!
//! Nothing of this is remembered. A node that is started anew looks, and says so.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use dogsled_storage::disk::Space;
use dogsled_storage::space::LowDisk;
use parking_lot::Mutex;

use crate::error::ClusterError;
use crate::transport::NodeId;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Room {
    me: NodeId,
    own: Mutex<Own>,
    own_is_low: AtomicBool,
    /// Those that were low when they last said anything.
    low: Mutex<BTreeSet<NodeId>>,
    /// Whether there is anybody, which is asked for every write.
    any: AtomicBool,
}

#[derive(Debug)]
struct Own {
    disk: LowDisk,
    seen: Option<Space>,
}

/// Whether a group can take writes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// It can.
    Plenty,
    /// Under another leader.
    Elsewhere,
    /// It cannot.
    Scarce,
}

impl Room {
    pub(crate) fn new(me: NodeId, mark: Option<u64>) -> Room {
        Room {
            me,
            own: Mutex::new(Own { disk: LowDisk::new(mark), seen: None }),
            own_is_low: AtomicBool::new(false),
            low: Mutex::default(),
            any: AtomicBool::new(false),
        }
    }

    /// Takes note of the own disk. Whether it is low, and whether that is new.
    pub(crate) fn see(&self, space: Space) -> (bool, bool) {
        let is_low = {
            let mut own = self.own.lock();
            own.seen = Some(space);
            own.disk.see(space)
        };
        let was_low = self.own_is_low.swap(is_low, Ordering::Relaxed);
        self.heard(self.me, is_low);
        (is_low, is_low != was_low)
    }

    /// A node has said how it is.
    pub(crate) fn heard(&self, node: NodeId, is_low: bool) {
        // Nearly always nobody is, and nobody was.
        if !is_low && !self.any.load(Ordering::Relaxed) {
            return;
        }
        let mut low = self.low.lock();
        match is_low {
            true => low.insert(node),
            false => low.remove(&node),
        };
        self.any.store(!low.is_empty(), Ordering::Relaxed);
    }

    /// Whether this node is low.
    pub(crate) fn is_low(&self) -> bool {
        self.own_is_low.load(Ordering::Relaxed)
    }

    /// Whether a node said so when it was last heard.
    pub(crate) fn is_low_at(&self, node: NodeId) -> bool {
        self.any.load(Ordering::Relaxed) && self.low.lock().contains(&node)
    }

    /// The mark, in bytes of this node's file system; 0 before it was looked at.
    pub(crate) fn mark(&self) -> u64 {
        let own = self.own.lock();
        own.seen.map_or(0, |seen| own.disk.mark(seen.total))
    }

    /// Whether any node is low that this one knows of: if not, there is plenty everywhere.
    pub(crate) fn is_scarce_somewhere(&self) -> bool {
        self.any.load(Ordering::Relaxed)
    }

    /// How it is for a group that this node leads, whose majorities are those of each of these sets.
    pub(crate) fn verdict(&self, configs: &[BTreeSet<u64>]) -> Verdict {
        let low = self.low.lock();
        let has_majority = |voters: &BTreeSet<u64>| {
            let with_space = voters.iter().filter(|voter| !low.contains(&NodeId(**voter))).count();
            with_space * 2 > voters.len()
        };
        match (configs.iter().all(has_majority), low.contains(&self.me)) {
            (false, _) => Verdict::Scarce,
            (true, true) => Verdict::Elsewhere,
            (true, false) => Verdict::Plenty,
        }
    }

    /// What a writer is told, unless there is plenty.
    pub(crate) fn refusal(&self, verdict: Verdict, group: u32) -> Option<ClusterError> {
        let node = self.me;
        match verdict {
            Verdict::Plenty => None,
            Verdict::Elsewhere => Some(ClusterError::Unavailable(format!(
                "the disk of node {node} is nearly full, and it is handing group {group} to a node with space"
            ))),
            Verdict::Scarce => {
                let low: Vec<String> = self.low.lock().iter().map(NodeId::to_string).collect();
                Some(ClusterError::NoSpace(format!(
                    "the disks of a majority of group {group} are nearly full (low: node {}); remove something, or \
                     give them space: writes go on by themselves then",
                    low.join(", ")
                )))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(free: u64) -> Space {
        Space { total: 1_000_000, free }
    }

    fn three() -> [BTreeSet<u64>; 1] {
        [BTreeSet::from([1, 2, 3])]
    }

    #[test]
    fn a_low_follower_stops_nobody_and_a_low_leader_makes_way() {
        let room = Room::new(NodeId(1), Some(1_000));
        assert_eq!(room.see(seen(5_000)), (false, false));
        assert!(!room.is_scarce_somewhere());
        assert_eq!(room.verdict(&three()), Verdict::Plenty);
        room.heard(NodeId(2), true);
        assert!(room.is_scarce_somewhere() && room.is_low_at(NodeId(2)) && !room.is_low());
        assert_eq!(room.verdict(&three()), Verdict::Plenty);
        room.heard(NodeId(2), false);
        assert!(!room.is_scarce_somewhere());
        assert_eq!(room.see(seen(10)), (true, true));
        assert_eq!(room.verdict(&three()), Verdict::Elsewhere);
        assert!(matches!(room.refusal(Verdict::Elsewhere, 4), Some(ClusterError::Unavailable(_))));
    }

    #[test]
    fn without_a_majority_with_space_writes_end_until_there_is_one() {
        let room = Room::new(NodeId(1), Some(1_000));
        room.heard(NodeId(2), true);
        room.heard(NodeId(3), true);
        assert_eq!(room.verdict(&three()), Verdict::Scarce);
        let Some(ClusterError::NoSpace(why)) = room.refusal(Verdict::Scarce, 4) else { panic!("no refusal") };
        assert!(why.contains("low: node 2, 3"), "{why}");
        // Amid a change of members each of the two majorities counts.
        let joint = [BTreeSet::from([1, 4, 5]), BTreeSet::from([1, 2, 3])];
        assert_eq!(room.verdict(&joint), Verdict::Scarce);
        assert_eq!(room.verdict(&joint[..1]), Verdict::Plenty);
        room.heard(NodeId(3), false);
        assert_eq!(room.verdict(&three()), Verdict::Plenty);
        // A lone node has nobody to make way for.
        room.see(seen(0));
        assert_eq!(room.verdict(&[BTreeSet::from([1])]), Verdict::Scarce);
        assert_eq!(room.see(seen(1_249)), (true, false));
        assert_eq!(room.see(seen(1_250)), (false, true));
        assert_eq!(room.verdict(&[BTreeSet::from([1])]), Verdict::Plenty);
    }
}
