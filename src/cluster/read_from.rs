//! [`ReadFrom`]: which replica answers a read, and how much it has to know.

use std::time::Duration;

use dogsled_replication::{ClusterMap, Consistency, NodeId};

use super::core::leader_of;

/// Which replica answers a read; see [`Tree::read_from`](super::Tree::read_from).
///
/// The first three read linearizably: a replica that does not lead asks its leader how far it has to be,
/// which costs a small message and no reading at the leader. The last two do without, and may be old.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum ReadFrom {
    /// The leader of the partition, which has to ask nobody but its majority: the shortest way.
    #[default]
    Leader,
    /// The replicas of the partition in turn, so that all of them carry the load.
    Any,
    /// A replica in the client's own [zone](super::ClientOptions::zone), if one answers: large values
    /// then do not travel far. Without a zone, the same replica each time.
    Nearest,
    /// The nearest replica, as of no longer ago than this: everything that was acknowledged before then
    /// is seen. A replica that was confirmed to be that new within that time answers by itself; another one
    /// asks first, so the answer is never older, and an error if nobody can tell.
    AtMostOld(Duration),
    /// One replica as it is, however old: see [`Tree::stale`](super::Tree::stale), which tells the age.
    Stale,
}

impl ReadFrom {
    pub(super) fn consistency(self) -> Consistency {
        match self {
            ReadFrom::Leader | ReadFrom::Any | ReadFrom::Nearest => Consistency::Linearizable,
            ReadFrom::AtMostOld(age) => Consistency::AtMostOld(age),
            ReadFrom::Stale => Consistency::Stale,
        }
    }

    pub(super) fn prefer(self) -> Prefer {
        match self {
            ReadFrom::Leader => Prefer::Leader,
            ReadFrom::Any => Prefer::InTurn,
            ReadFrom::Nearest | ReadFrom::AtMostOld(_) => Prefer::Nearest,
            ReadFrom::Stale => Prefer::Any,
        }
    }
}

/// Whom a call prefers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Prefer {
    Leader,
    /// The same node each time, to spread clients over nodes.
    Any,
    /// Another one each time.
    InTurn,
    /// One of the client's zone; the same each time.
    Nearest,
}

/// Whom to ask, the best first. `home` stays the same, `turn` is another one each time.
pub(super) fn candidates(
    map: &ClusterMap,
    group: Option<u32>,
    prefer: Prefer,
    zone: &str,
    home: usize,
    turn: usize,
) -> Vec<NodeId> {
    let first = match prefer {
        Prefer::Any | Prefer::Nearest => home,
        Prefer::Leader | Prefer::InTurn => turn,
    };
    let in_turn = |nodes: &[NodeId]| -> Vec<NodeId> {
        let count = nodes.len();
        (0..count).map(|i| nodes[first.wrapping_add(i) % count]).collect()
    };
    // Those that have the group answer by themselves; the others pass it on.
    let holders = group.map_or(&[][..], |group| map.replicas_of(group));
    let others: Vec<NodeId> =
        map.members.iter().map(|(node, _)| *node).filter(|node| !holders.contains(node)).collect();
    let mut candidates = [in_turn(holders), in_turn(&others)].concat();
    match prefer {
        Prefer::Leader => {
            let leader = group.and_then(|group| leader_of(map, group));
            candidates.sort_by_key(|node| Some(*node) != leader);
            // One that is not listed is a leader all the same.
            if let Some(leader) = leader.filter(|leader| !candidates.contains(leader)) {
                candidates.insert(0, leader);
            }
        }
        Prefer::Nearest if !zone.is_empty() => {
            candidates.sort_by_key(|node| (!holders.contains(node), map.zone_of(*node) != zone));
        }
        Prefer::Any | Prefer::InTurn | Prefer::Nearest => {}
    }
    candidates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nodes(ids: &[u64]) -> Vec<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    /// Five members in zones a to c; partition 1 is on 1, 2 and 3, led by 2.
    fn map() -> ClusterMap {
        ClusterMap {
            partitions: 1,
            members: nodes(&[1, 2, 3, 4, 5]).into_iter().map(|node| (node, Vec::new())).collect(),
            zones: ["a", "b", "c", "a", "b"].map(str::to_owned).into(),
            leaders: vec![None, Some(NodeId(2))],
            replicas: vec![Vec::new(), nodes(&[1, 2, 3])],
            ..ClusterMap::default()
        }
    }

    fn first(prefer: Prefer, zone: &str, turn: usize) -> u64 {
        candidates(&map(), Some(1), prefer, zone, 0, turn)[0].0
    }

    #[test]
    fn the_leader_is_asked_first_unless_the_caller_chose_otherwise() {
        assert!((0..9).all(|turn| first(Prefer::Leader, "a", turn) == 2));
        assert_eq!(
            (0..6).map(|turn| first(Prefer::InTurn, "a", turn)).collect::<Vec<_>>(),
            [1, 2, 3, 1, 2, 3]
        );
        assert!((0..9).all(|turn| first(Prefer::Any, "c", turn) == 1), "its home");
    }

    #[test]
    fn only_what_may_be_old_is_read_without_asking() {
        let linearizable = [ReadFrom::Leader, ReadFrom::Any, ReadFrom::Nearest];
        assert!(linearizable.iter().all(|from| from.consistency() == Consistency::Linearizable));
        assert_eq!(linearizable.map(ReadFrom::prefer), [Prefer::Leader, Prefer::InTurn, Prefer::Nearest]);
        let aged = ReadFrom::AtMostOld(Duration::from_secs(3));
        assert_eq!(aged.consistency(), Consistency::AtMostOld(Duration::from_secs(3)));
        assert_eq!((aged.prefer(), ReadFrom::Stale.prefer()), (Prefer::Nearest, Prefer::Any));
    }

    #[test]
    fn a_replica_in_the_own_zone_is_the_nearest_and_one_elsewhere_before_one_that_passes_on() {
        assert_eq!(["a", "b", "c"].map(|zone| first(Prefer::Nearest, zone, 7)), [1, 2, 3]);
        let all = candidates(&map(), Some(1), Prefer::Nearest, "c", 0, 0);
        assert_eq!(all, nodes(&[3, 1, 2, 4, 5]));
        // No replica is in the zone; its members come before the others that pass on.
        let mut elsewhere = map();
        elsewhere.replicas[1] = nodes(&[2, 3, 5]);
        let all = candidates(&elsewhere, Some(1), Prefer::Nearest, "a", 0, 0);
        assert_eq!(all, nodes(&[2, 3, 5, 1, 4]));
        assert!((0..9).all(|turn| first(Prefer::Nearest, "", turn) == 1), "no zone: its home");
    }

    #[test]
    fn a_leader_that_is_not_among_those_that_are_to_have_the_group_is_asked_all_the_same() {
        let mut moving = map();
        moving.leaders[1] = Some(NodeId(4));
        assert_eq!(candidates(&moving, Some(1), Prefer::Leader, "", 0, 0)[0], NodeId(4));
        moving.leaders[1] = Some(NodeId(9));
        assert_eq!(candidates(&moving, Some(1), Prefer::Leader, "", 0, 0)[0], NodeId(9));
        moving.leaders[1] = None;
        assert_eq!(candidates(&moving, Some(1), Prefer::Leader, "", 0, 1)[0], NodeId(1), "who is to lead");
    }
}
