//! Histories of members that join, leave and change, and what must be true of each step.

use super::*;
use crate::transport::NodeId;

fn member(node: u64, weight: u32, zone: &str) -> Member {
    Member { node: NodeId(node), weight, zone: zone.to_owned() }
}

fn equal(nodes: std::ops::RangeInclusive<u64>) -> Vec<Member> {
    nodes.map(|node| member(node, 100, "")).collect()
}

fn held(placement: &Placement, node: u64) -> u64 {
    placement.loads().get(&NodeId(node)).map_or(0, |(replicas, _)| *replicas)
}

fn moved(before: &Placement, after: &Placement) -> u64 {
    before.changes_to(after).iter().map(|change| change.added.len() as u64).sum()
}

/// splitmix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }
}

/// What happened between two placements.
#[derive(Clone, Debug)]
enum Event {
    Join(NodeId),
    Leave,
    Weight(NodeId, u32, u32),
    Zone,
    Replicas,
}

struct History {
    random: Random,
    members: Vec<Member>,
    placement: Placement,
    zones: usize,
    next_node: u64,
}

impl History {
    fn new(seed: u64) -> History {
        let mut random = Random(seed);
        let zones = [1, 1, 2, 3, 4, 6][random.below(6)];
        let partitions = [1, 5, 16, 64, 256, 500][random.below(6)];
        let equal = random.below(2) == 0;
        let count = 1 + random.below(12);
        let replicas = 1 + random.below(count.min(5)) as u32;
        let mut history = History {
            random,
            members: Vec::new(),
            placement: Placement::new(&[member(1, 1, "")], 1, 1).unwrap(),
            zones,
            next_node: 1,
        };
        for _ in 0..count {
            let mut member = history.anybody();
            if equal {
                member.weight = 100;
            }
            history.members.push(member);
        }
        history.placement = Placement::new(&history.members, partitions, replicas).unwrap();
        history
    }

    fn anybody(&mut self) -> Member {
        let node = self.next_node;
        self.next_node += 1 + self.random.below(3) as u64;
        let weight = [100, 100, 50, 200, 1 + self.random.below(400)][self.random.below(5)] as u32;
        let zone = format!("zone {}", self.random.below(self.zones));
        member(node, weight, &zone)
    }

    fn step(&mut self) -> Option<(Event, Placement)> {
        let before = self.members.clone();
        let mut replicas = self.placement.replica_count();
        let chosen = self.random.below(self.members.len());
        let event = match self.random.below(10) {
            0..3 => {
                let new = self.anybody();
                let node = new.node;
                self.members.push(new);
                Event::Join(node)
            }
            3..6 => {
                self.members.remove(chosen);
                Event::Leave
            }
            6 | 7 => {
                let weight = [0, 50, 100, 200, 1 + self.random.below(400)][self.random.below(5)] as u32;
                let member = &mut self.members[chosen];
                let old = std::mem::replace(&mut member.weight, weight);
                Event::Weight(member.node, old, weight)
            }
            8 => {
                let zone = format!("zone {}", self.random.below(self.zones));
                self.members[chosen].zone = zone;
                Event::Zone
            }
            _ => {
                replicas = 1 + self.random.below(5) as u32;
                Event::Replicas
            }
        };
        // The order in which members are named must not matter.
        let named = self.random.below(self.members.len().max(1));
        if !self.members.is_empty() {
            self.members.rotate_left(named);
        }
        match self.placement.rebalance(&self.members, replicas) {
            Ok(next) => Some((event, std::mem::replace(&mut self.placement, next))),
            Err(error) => {
                let usable = self.members.iter().filter(|member| member.weight > 0).count();
                assert!(usable < replicas as usize, "{error} with {usable} members for {replicas}");
                self.members = before;
                None
            }
        }
    }
}

#[test]
fn every_step_of_a_history_keeps_every_promise() {
    for seed in 1..=300 {
        let mut history = History::new(seed);
        history.placement.check_invariants(&history.members);
        for _ in 0..30 {
            let Some((event, before)) = history.step() else { continue };
            history.placement.check_invariants(&history.members);
            assert_eq!(
                history.placement.rebalance(&history.members, history.placement.replica_count()).as_ref(),
                Ok(&history.placement),
                "seed {seed}: nothing changed after {event:?}"
            );
            let changes = before.changes_to(&history.placement);
            match &event {
                Event::Join(node) if history.zones == 1 => {
                    for change in changes {
                        assert_eq!(change.added, [*node], "seed {seed}: {change:?} moves between others");
                    }
                }
                Event::Weight(node, old, new) if history.zones == 1 && old < new => {
                    for change in changes {
                        assert_eq!(change.added, [*node], "seed {seed}: {change:?} moves between others");
                    }
                }
                _ => {}
            }
        }
    }
}

#[test]
fn placements_are_fixed_for_ever() {
    let list = |placement: &Placement| -> Vec<Vec<u64>> {
        let nodes = |partition| placement.replicas(partition).iter().map(|node| node.0).collect();
        (1..=placement.partitions()).map(nodes).collect()
    };
    let placement = Placement::new(&equal(1..=4), 8, 3).unwrap();
    assert_eq!(
        list(&placement),
        [[2, 3, 4], [4, 2, 3], [1, 4, 2], [1, 2, 4], [3, 1, 2], [2, 1, 3], [3, 4, 1], [4, 3, 1]]
    );
    let joined = placement.rebalance(&equal(1..=5), 3).unwrap();
    assert_eq!(
        list(&joined),
        [[2, 3, 5], [4, 2, 3], [5, 1, 4], [1, 2, 4], [3, 2, 5], [2, 1, 5], [3, 4, 1], [4, 3, 1]]
    );
}

#[test]
fn a_join_moves_what_the_new_member_gets() {
    for (before, after) in [(3, 4), (9, 10)] {
        let placement = Placement::new(&equal(1..=before), 64, 3).unwrap();
        let joined = placement.rebalance(&equal(1..=after), 3).unwrap();
        joined.check_invariants(&equal(1..=after));
        assert_eq!(moved(&placement, &joined), held(&joined, after));
        assert!(moved(&placement, &joined) <= (64 * 3u64).div_ceil(after));
        let fullest = joined.loads().values().map(|(replicas, _)| *replicas).max().unwrap();
        assert!(fullest <= (64 * 3u64).div_ceil(after));
    }
}

#[test]
fn a_placement_survives_its_bytes() {
    for nodes in [4, 300] {
        let placement = Placement::new(&equal(1..=nodes), 500, 3).unwrap();
        let bytes = placement.encode();
        assert_eq!(Placement::decode(bytes.clone()), Ok(placement));
        for length in 0..bytes.len() {
            assert!(Placement::decode(bytes.slice(..length)).is_err());
        }
    }
}
