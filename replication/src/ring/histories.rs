//! Histories of members that join, leave and change, and what must be true of each step.

use super::share::Shares;
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
    Leave(NodeId),
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
            3..6 => Event::Leave(self.members.remove(chosen).node),
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

/// Whether everybody could have been brought within the bounds by moving replicas only to one member,
/// or only away from one. Another way to the same answer than the one under test: a matching of
/// partitions and members, one at a time.
struct Oracle {
    members: Vec<Member>,
    shares: Shares,
    load: Vec<u64>,
    /// For each partition, the members that could take its replica (or give theirs).
    edges: Vec<Vec<usize>>,
}

impl Oracle {
    fn new(before: &Placement, after: &Placement, members: &[Member], one: NodeId, gains: bool) -> Oracle {
        let mut members: Vec<Member> = members.iter().filter(|member| member.weight > 0).cloned().collect();
        members.sort_by_key(|member| member.node);
        let shares = Shares::new(&members, after.partitions(), after.replica_count() as usize);
        let number = |node: NodeId| members.iter().position(|member| member.node == node);
        let mut load = vec![0; members.len()];
        let mut edges = Vec::new();
        for partition in 1..=before.partitions() {
            let holders: Vec<usize> = before.replicas(partition).iter().filter_map(|n| number(*n)).collect();
            holders.iter().for_each(|holder| load[*holder] += 1);
            let can = |from: Option<usize>, to: usize| {
                let neighbours =
                    holders.iter().filter(|h| Some(**h) != from && shares.zone[**h] == shares.zone[to]);
                !holders.contains(&to) && neighbours.count() < shares.depth
            };
            edges.push(match number(one) {
                Some(one) if gains => holders.iter().copied().filter(|from| can(Some(*from), one)).collect(),
                _ if !before.replicas(partition).contains(&one) => Vec::new(),
                from => (0..members.len()).filter(|to| can(from, *to)).collect(),
            });
        }
        Oracle { members, shares, load, edges }
    }

    fn is_possible(&self, one: NodeId, gains: bool) -> bool {
        let one = self.members.iter().position(|member| member.node == one);
        let bounds = &self.shares.bounds;
        let (mut need, mut most) = (vec![0; self.load.len()], vec![0; self.load.len()]);
        for member in (0..self.load.len()).filter(|member| Some(*member) != one) {
            let (load, (low, high)) = (self.load[member], bounds[member]);
            (need[member], most[member]) = match gains {
                true => (load.saturating_sub(high), load.saturating_sub(low)),
                false => (low.saturating_sub(load), high.saturating_sub(load)),
            };
            if gains && load < low || !gains && load > high {
                return false;
            }
        }
        let (least, limit) = match one {
            Some(one) if gains => (
                bounds[one].0.saturating_sub(self.load[one]),
                bounds[one].1 - self.load[one].min(bounds[one].1),
            ),
            Some(one) => {
                (self.load[one].saturating_sub(bounds[one].1), self.load[one].saturating_sub(bounds[one].0))
            }
            None => {
                let lost = self.edges.iter().filter(|edges| !edges.is_empty()).count() as u64;
                (lost, lost)
            }
        };
        let mut chosen = vec![None; self.edges.len()];
        let mut total = 0;
        for stage in [&need, &most] {
            for member in 0..self.load.len() {
                loop {
                    let used = chosen.iter().filter(|c| **c == Some(member)).count() as u64;
                    if used >= stage[member] || std::ptr::eq(stage, &most) && total >= least {
                        break;
                    }
                    if !self.augment(member, &mut chosen, &mut vec![false; self.edges.len()]) {
                        if std::ptr::eq(stage, &need) {
                            return false;
                        }
                        break;
                    }
                    total += 1;
                }
            }
        }
        total >= least && total <= limit
    }

    fn augment(&self, member: usize, chosen: &mut [Option<usize>], seen: &mut [bool]) -> bool {
        for partition in 0..self.edges.len() {
            if !self.edges[partition].contains(&member) || std::mem::replace(&mut seen[partition], true) {
                continue;
            }
            let free = match chosen[partition] {
                None => true,
                Some(other) => other != member && self.augment(other, chosen, seen),
            };
            if free {
                chosen[partition] = Some(member);
                return true;
            }
        }
        false
    }
}

/// Says how to see a failing history again.
struct Replay(u64);

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let seed = self.0;
            eprintln!(
                "replay with: DOGSLED_SEED={seed} cargo test -p dogsled-replication --lib ring::histories"
            );
        }
    }
}

fn seeds() -> std::ops::RangeInclusive<u64> {
    match std::env::var("DOGSLED_SEED") {
        Ok(seed) => {
            let seed = seed.parse().expect("DOGSLED_SEED is a number");
            seed..=seed
        }
        Err(_) => 1..=400,
    }
}

#[test]
fn every_step_of_a_history_keeps_every_promise() {
    let (mut steps, mut avoidable) = (0, 0);
    for seed in seeds() {
        let _replay = Replay(seed);
        let mut history = History::new(seed);
        history.placement.check_invariants(&history.members);
        for _ in 0..30 {
            let Some((event, before)) = history.step() else { continue };
            let after = &history.placement;
            after.check_invariants(&history.members);
            let again = after.rebalance(&history.members, after.replica_count());
            assert_eq!(again.as_ref(), Ok(after), "nothing changed after {event:?}");
            let (one, gains) = match event {
                Event::Join(node) => (node, true),
                Event::Leave(node) => (node, false),
                Event::Weight(node, old, new) => (node, new > old),
                Event::Zone | Event::Replicas => continue,
            };
            let changes = before.changes_to(after);
            let moved = changes.iter().flat_map(|change| if gains { &change.added } else { &change.removed });
            let between_others = moved.filter(|node| **node != one).count();
            let oracle = Oracle::new(&before, after, &history.members, one, gains);
            steps += 1;
            if between_others > 0 && oracle.is_possible(one, gains) {
                assert!(
                    history.zones > 1 || matches!(event, Event::Weight(..)),
                    "{event:?} moved {between_others} between others, without need: {changes:?}"
                );
                avoidable += 1;
            }
        }
    }
    // Zones and weights interlock so that a full search sometimes finds what the paths do not.
    assert!(avoidable * 100 <= steps, "{avoidable} of {steps} steps moved more than they had to");
}

/// The promise of the fewest movements, with what it comes to in numbers: (1 + 1/16)/N and a rounding.
#[test]
fn joins_and_leaves_move_their_share() {
    for (partitions, replicas) in [(16, 3), (64, 3), (256, 2), (1000, 5)] {
        let mut members = equal(1..=replicas);
        let mut placement = Placement::new(&members, partitions, replicas as u32).unwrap();
        let bound = |members: usize| {
            let share = f64::from(partitions) * replicas as f64 / members as f64;
            (share * 17.0 / 16.0).ceil() as u64
        };
        for node in replicas + 1..=24 {
            members.push(member(node, 100, ""));
            let joined = placement.rebalance(&members, replicas as u32).unwrap();
            assert_eq!(moved(&placement, &joined), held(&joined, node), "{node} joins");
            assert!(moved(&placement, &joined) <= bound(members.len()));
            placement = joined;
        }
        for node in (replicas + 1..=24).step_by(2) {
            members.retain(|member| member.node.0 != node);
            let left = placement.rebalance(&members, replicas as u32).unwrap();
            assert_eq!(moved(&placement, &left), held(&placement, node), "{node} leaves");
            assert!(moved(&placement, &left) <= bound(members.len() + 1));
            placement = left;
        }
    }
}

#[test]
fn weights_decide_how_much_is_held_and_led() {
    let members = [member(1, 100, ""), member(2, 200, ""), member(3, 300, ""), member(4, 0, "")];
    let placement = Placement::new(&members, 600, 1).unwrap();
    let loads: Vec<_> = placement.loads().into_iter().map(|(node, loads)| (node.0, loads)).collect();
    assert_eq!(loads, [(1, (100, 100)), (2, (200, 200)), (3, (300, 300))]);
    // With two replicas the third cannot have more than all, and the rest is for the others.
    let members = [member(1, 1, ""), member(2, 2, ""), member(3, 300, "")];
    let placement = Placement::new(&members, 600, 2).unwrap();
    let held: Vec<u64> = placement.loads().values().map(|(replicas, _)| *replicas).collect();
    assert_eq!(held, [200, 400, 600]);
}

#[test]
fn a_member_of_weight_zero_is_emptied() {
    let mut members = equal(1..=5);
    let placement = Placement::new(&members, 64, 3).unwrap();
    members[1].weight = 0;
    let drained = placement.rebalance(&members, 3).unwrap();
    assert_eq!(held(&drained, 2), 0);
    assert_eq!(moved(&placement, &drained), held(&placement, 2));
    members.remove(1);
    assert_eq!(drained.rebalance(&members, 3), Ok(drained));
}

#[test]
fn replicas_are_in_as_many_zones_as_there_are() {
    let zones_of = |placement: &Placement, members: &[Member], partition| {
        let zone = |node: &NodeId| &members.iter().find(|member| member.node == *node).unwrap().zone;
        placement.replicas(partition).iter().map(zone).collect::<std::collections::BTreeSet<_>>().len()
    };
    let mut members: Vec<Member> =
        (1..=9).map(|node| member(node, 100, ["a", "b"][node as usize % 2])).collect();
    let two = Placement::new(&members, 64, 3).unwrap();
    assert!((1..=64).all(|partition| zones_of(&two, &members, partition) == 2));
    // The only one in the third zone gets a replica of every partition, and nothing else moves.
    members.push(member(10, 100, "c"));
    let three = two.rebalance(&members, 3).unwrap();
    assert!((1..=64).all(|partition| zones_of(&three, &members, partition) == 3));
    assert_eq!((moved(&two, &three), held(&three, 10)), (64, 64));
    three.check_invariants(&members);
}

#[test]
fn members_that_allow_no_placement_are_refused_with_what_to_do() {
    let idle = [member(1, 0, ""), member(2, 0, "")];
    let few = [member(1, 1, ""), member(2, 0, ""), member(3, 1, "")];
    let twice = [member(1, 1, ""), member(1, 2, "")];
    let cases: [(&[Member], u32, u32, RingError); 6] = [
        (&few, 0, 1, RingError::NoPartitions),
        (&few, 1, 0, RingError::NoReplicas),
        (&[], 1, 1, RingError::NoMembers),
        (&idle, 1, 1, RingError::NoWeight),
        (&twice, 1, 1, RingError::Duplicate(NodeId(1))),
        (&few, 1, 3, RingError::TooFewMembers { replicas: 3, usable: 2, members: 3 }),
    ];
    for (members, partitions, replicas, error) in cases {
        assert_eq!(Placement::new(members, partitions, replicas), Err(error));
    }
    let placement = Placement::new(&few, 8, 2).unwrap();
    let refused = placement.rebalance(&few, 3).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "3 replicas need as many members, and there are 2 (1 more have weight 0): add members, give those a \
         weight, or ask for fewer replicas"
    );
    let most = [member(1, u32::MAX, ""), member(2, u32::MAX, "x"), member(u64::MAX, 1, "")];
    Placement::new(&most, 100_000, 2).unwrap().check_invariants(&most);
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
fn a_placement_survives_its_bytes() {
    let placement = Placement::new(&equal(1..=2), 2, 1).unwrap();
    assert_eq!(placement.encode()[..], GOLDEN);
    for nodes in [4, 300] {
        let placement = Placement::new(&equal(1..=nodes), 200, 3).unwrap();
        let bytes = placement.encode();
        assert_eq!(Placement::decode(bytes.clone()), Ok(placement));
        for length in 0..bytes.len() {
            assert!(Placement::decode(bytes.slice(..length)).is_err());
        }
        for place in 0..bytes.len() {
            for flip in [1, 0x80] {
                let mut damaged = bytes.to_vec();
                damaged[place] ^= flip;
                // What is still a placement is one that can be worked with.
                if let Ok(placement) = Placement::decode(damaged.into())
                    && place % 97 == 0
                {
                    placement.rebalance(&equal(1..=nodes), 3).unwrap().check_invariants(&equal(1..=nodes));
                }
            }
        }
    }
}

const GOLDEN: [u8; 31] =
    [1, 1, 0, 0, 0, 2, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0];
