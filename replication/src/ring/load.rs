//! Leaders follow load: which partitions' leaders change places so that members carry what they are entitled
//! to, not only lead as many. Pure; who measures and decides when is in `node::drive`.
//!
//! # What it may change
//!
//! Who leads, among those who hold a partition: nothing is copied. How *many* partitions a member leads stays
//! as even as [the ring](super) promises, so a busy partition is usually given away in exchange for a quiet
//! one. Where replicas lie (zones, weights, members that are being emptied) is not touched at all.
//!
//! # When
//!
//! A member's *burden* is the load of the partitions that it is to lead, divided by its part of all
//! replicas; if all were even, each burden would be the whole load. Leaders change only if
//!
//! - somebody's burden is over 125 percent of that, and
//! - of the two members between whom something changes the greater burden falls by 20 percent of it or more.
//!
//! The second is what keeps leaders from going back and forth: the way back would raise it by as much, so
//! loads must have changed by that before it is taken. And because each change lowers the greater of two burdens,
//! and raises none above that, it ends.
//!
//! One partition that is busier than all others together stays somebody's. Only more partitions would help.

use std::collections::BTreeMap;

use super::Placement;
use crate::transport::NodeId;

/// A burden of so many percent of an even one is too much.
const OVER: u128 = 125;
/// What a change must be good for, in percent of an even burden.
const GAIN: u128 = 20;
/// Changes that are decided at once: the loads afterwards are to be seen first.
const MOST: usize = 4;

#[derive(Clone, Copy)]
struct Burdened {
    load: u128,
    held: u128,
    leads: u64,
}

struct Work<'a> {
    placement: &'a Placement,
    members: BTreeMap<NodeId, Burdened>,
    /// Of partition 1, 2, and so on.
    leaders: Vec<NodeId>,
    loads: Vec<u128>,
    all: u128,
    replicas: u128,
}

/// Who is to lead what.
type Exchange = Vec<(u32, NodeId)>;

impl Work<'_> {
    fn load(&self, partition: u32) -> u128 {
        self.loads[partition as usize - 1]
    }

    /// An even one is the whole load.
    fn burden(&self, load: u128, held: u128) -> u128 {
        load * self.replicas / held
    }

    fn burden_of(&self, node: NodeId) -> u128 {
        let member = &self.members[&node];
        self.burden(member.load, member.held)
    }

    /// Whether a member may lead so many.
    fn may_lead(&self, node: NodeId, leads: u64) -> bool {
        let (held, replicas) = (self.members[&node].held as u64, u64::from(self.placement.replica_count()));
        (held / replicas..=held.div_ceil(replicas)).contains(&leads)
    }

    fn led_by(&self, node: NodeId) -> impl Iterator<Item = u32> + '_ {
        let led = self.leaders.iter().enumerate().filter(move |(_, leader)| **leader == node);
        led.map(|(index, _)| index as u32 + 1)
    }

    /// The best that can be done for a member: the greater burden afterwards, and who is to lead what.
    fn best(&self, from: NodeId) -> Option<(u128, Exchange)> {
        let giver = self.members[&from];
        let mut best: Option<(u128, Exchange)> = None;
        for given in self.led_by(from) {
            let load = self.load(given);
            for &to in self.placement.replicas(given).iter().filter(|node| **node != from) {
                let taker = self.members[&to];
                let mut consider = |back: Option<u32>| {
                    let returned = back.map_or(0, |back| self.load(back));
                    if returned >= load {
                        return;
                    }
                    let after = self
                        .burden(giver.load - load + returned, giver.held)
                        .max(self.burden(taker.load + load - returned, taker.held));
                    if best.as_ref().is_none_or(|(least, _)| after < *least) {
                        let back = back.map(|back| (back, from));
                        best = Some((after, [Some((given, to)), back].into_iter().flatten().collect()));
                    }
                };
                if self.may_lead(from, giver.leads - 1) && self.may_lead(to, taker.leads + 1) {
                    consider(None);
                }
                for back in self.led_by(to).filter(|back| self.placement.replicas(*back).contains(&from)) {
                    consider(Some(back));
                }
            }
        }
        let before = self.burden_of(from);
        best.filter(|(after, _)| (before.saturating_sub(*after)) * 100 >= self.all * GAIN)
    }

    fn apply(&mut self, exchange: &Exchange) {
        for &(partition, to) in exchange {
            let load = self.load(partition);
            let from = std::mem::replace(&mut self.leaders[partition as usize - 1], to);
            let giver = self.members.get_mut(&from).expect("it holds what it led");
            giver.load -= load;
            giver.leads -= 1;
            let taker = self.members.get_mut(&to).expect("it holds the partition");
            taker.load += load;
            taker.leads += 1;
        }
    }
}

impl Placement {
    /// Which partitions should be led by others than now, and by whom, given the load of each (in any unit; those
    /// that are not named have none); see the [module](self). Nothing, if it is even enough.
    ///
    /// ```
    /// use std::collections::BTreeMap;
    /// use dogsled_replication::NodeId;
    /// use dogsled_replication::ring::{Member, Placement};
    ///
    /// let member = |node| Member { node: NodeId(node), weight: 1, zone: String::new() };
    /// let placement = Placement::new(&[member(1), member(2), member(3)], 12, 3)?;
    /// let busy: Vec<u32> = (1..=12).filter(|p| placement.preferred_leader(*p) == NodeId(1)).collect();
    /// let loads = busy.iter().map(|partition| (*partition, 1_000)).collect();
    /// let leaders = placement.follow_load(&loads);
    /// assert!(leaders.iter().any(|(partition, leader)| busy.contains(partition) && *leader != NodeId(1)));
    /// # Ok::<(), dogsled_replication::ring::RingError>(())
    /// ```
    pub fn follow_load(&self, loads: &BTreeMap<u32, u64>) -> Vec<(u32, NodeId)> {
        let load = |partition: u32| loads.get(&partition).map_or(0, |load| u128::from(*load));
        let loads: Vec<u128> = (1..=self.partitions()).map(load).collect();
        let leaders: Vec<NodeId> =
            (1..=self.partitions()).map(|partition| self.preferred_leader(partition)).collect();
        let held = self.loads().into_iter();
        let mut members: BTreeMap<NodeId, Burdened> = held
            .map(|(node, (held, leads))| (node, Burdened { load: 0, held: u128::from(held), leads }))
            .collect();
        for (leader, load) in leaders.iter().zip(&loads) {
            members.get_mut(leader).expect("who leads a partition holds it").load += load;
        }
        let replicas = members.values().map(|member| member.held).sum();
        let all = loads.iter().sum();
        let mut work = Work { placement: self, members, leaders, loads, all, replicas };
        for _ in 0..MOST {
            let mut over: Vec<(u128, NodeId)> = work
                .members
                .keys()
                .map(|node| (work.burden_of(*node), *node))
                .filter(|(burden, _)| burden * 100 > all * OVER)
                .collect();
            // The most burdened first; of equals the one with the smaller id.
            over.sort_unstable_by_key(|(burden, node)| (std::cmp::Reverse(*burden), *node));
            let Some((_, exchange)) = over.into_iter().find_map(|(_, node)| work.best(node)) else { break };
            work.apply(&exchange);
        }
        let changed = (1..=self.partitions()).zip(work.leaders);
        changed.filter(|(partition, leader)| self.preferred_leader(*partition) != *leader).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Member;

    /// splitmix64.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = self.0;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            (z ^ (z >> 31)) % limit
        }
    }

    fn drawn(seed: u64) -> (Random, Vec<Member>, Placement, BTreeMap<u32, u64>) {
        let mut random = Random(seed);
        let count = 1 + random.below(9);
        let zones = 1 + random.below(4);
        let members: Vec<Member> = (1..=count)
            .map(|node| {
                let weight = [100, 100, 100, 50, 300][random.below(5) as usize];
                Member { node: NodeId(node), weight, zone: format!("zone {}", random.below(zones)) }
            })
            .collect();
        let partitions = [1, 4, 16, 48][random.below(4) as usize];
        let replicas = 1 + random.below(count.min(5)) as u32;
        let placement = Placement::new(&members, partitions, replicas).unwrap();
        // A few that are busy, many that are not.
        let loads = (1..=partitions).map(|partition| {
            let scale = [1, 1, 10, 100, 1_000][random.below(5) as usize];
            (partition, random.below(1_000) * scale)
        });
        let loads = loads.collect();
        (random, members, placement, loads)
    }

    fn burdens(placement: &Placement, loads: &BTreeMap<u32, u64>) -> Vec<u128> {
        let held = placement.loads();
        let all: u64 = held.values().map(|(held, _)| held).sum();
        let burden = |(node, (held, _)): (&NodeId, &(u64, u64))| {
            let led = (1..=placement.partitions()).filter(|p| placement.preferred_leader(*p) == *node);
            let load: u128 = led.map(|partition| u128::from(loads[&partition])).sum();
            load * u128::from(all) / u128::from(*held)
        };
        let mut burdens: Vec<u128> = held.iter().map(burden).collect();
        burdens.sort_unstable_by(|a, b| b.cmp(a));
        burdens
    }

    /// Follows until it is content; how often it has changed something.
    fn settle(placement: &mut Placement, loads: &BTreeMap<u32, u64>, members: &[Member], seed: u64) -> u32 {
        for steps in 0..200 {
            let leaders = placement.follow_load(loads);
            if leaders.is_empty() {
                return steps;
            }
            let before = burdens(placement, loads);
            let next = placement.with_leaders(&leaders).unwrap();
            next.check_invariants(members);
            assert!(placement.changes_to(&next).is_empty(), "seed {seed}: a replica has moved");
            assert!(burdens(&next, loads) < before, "seed {seed}: no better by {leaders:?}");
            *placement = next;
        }
        panic!("seed {seed}: it does not come to an end");
    }

    #[test]
    fn leaders_follow_load_and_come_to_rest_and_nothing_else_changes() {
        let mut changed = 0;
        for seed in 0..600 {
            let (_, members, mut placement, loads) = drawn(seed);
            changed += u32::from(settle(&mut placement, &loads, &members, seed) > 0);
        }
        assert!(changed > 100, "only {changed} of 600");
    }

    #[test]
    fn loads_that_waver_move_no_leader_back_and_forth() {
        for seed in 0..300 {
            let (mut random, members, mut placement, loads) = drawn(seed);
            settle(&mut placement, &loads, &members, seed);
            let mut moved: BTreeMap<u32, u32> = BTreeMap::new();
            for _ in 0..60 {
                // Up to a twentieth more or less, each by itself.
                let wavering =
                    loads.iter().map(|(partition, load)| (*partition, load * (95 + random.below(11)) / 100));
                let leaders = placement.follow_load(&wavering.collect());
                for (partition, _) in &leaders {
                    *moved.entry(*partition).or_default() += 1;
                }
                placement = placement.with_leaders(&leaders).unwrap();
            }
            assert!(moved.values().all(|times| *times <= 2), "seed {seed}: {moved:?}");
        }
    }

    #[test]
    fn busy_partitions_that_one_member_leads_are_shared() {
        let members: Vec<Member> =
            (1..=3).map(|node| Member { node: NodeId(node), weight: 1, zone: String::new() }).collect();
        let mut placement = Placement::new(&members, 12, 3).unwrap();
        let busy = |partition: u32| placement.preferred_leader(partition) == NodeId(2);
        let loads: BTreeMap<u32, u64> =
            (1..=12).map(|partition| (partition, if busy(partition) { 1_000 } else { 10 })).collect();
        let all: u64 = loads.values().sum();
        assert!(burdens(&placement, &loads)[0] > u128::from(all) * 29 / 10);
        settle(&mut placement, &loads, &members, 0);
        // Four between three: two is the most.
        assert!(burdens(&placement, &loads)[0] < u128::from(all) * 16 / 10);
    }

    #[test]
    fn even_loads_and_no_load_and_one_busy_partition_move_nothing() {
        for seed in 0..100 {
            let (_, _, placement, _) = drawn(seed);
            assert!(placement.follow_load(&BTreeMap::new()).is_empty());
            let unknown = BTreeMap::from([(0, 1_000), (placement.partitions() + 1, 1_000)]);
            assert!(placement.follow_load(&unknown).is_empty());
        }
        let members: Vec<Member> =
            (1..=4).map(|node| Member { node: NodeId(node), weight: 1, zone: String::new() }).collect();
        let placement = Placement::new(&members, 64, 3).unwrap();
        let even: BTreeMap<u32, u64> = (1..=64).map(|partition| (partition, 500)).collect();
        assert!(placement.follow_load(&even).is_empty());
        // It would be as much of a burden to anybody else.
        assert!(placement.follow_load(&BTreeMap::from([(7, 1_000_000)])).is_empty());
    }

    #[test]
    fn leaders_that_cannot_be_are_refused() {
        let members: Vec<Member> =
            (1..=4).map(|node| Member { node: NodeId(node), weight: 1, zone: String::new() }).collect();
        let placement = Placement::new(&members, 4, 2).unwrap();
        let stranger = (1..=4).map(NodeId).find(|node| !placement.replicas(1).contains(node)).unwrap();
        assert!(placement.with_leaders(&[(1, stranger)]).is_err());
        assert!(placement.with_leaders(&[(5, NodeId(1))]).is_err());
        // Two where one is its part.
        let second = placement.replicas(1)[1];
        assert!(placement.with_leaders(&[(1, second)]).is_err());
        assert_eq!(placement.with_leaders(&[(1, placement.replicas(1)[0])]).unwrap(), placement);
    }
}
