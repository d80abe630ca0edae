//! How many replicas each member should have: proportional to weight, within what is possible.
//!
//! A member can hold each partition once, so at most as many replicas as there are partitions. A zone
//! can hold *d* replicas of each partition, so at most *d* times that; see [`Shares::depth`]. Weights
//! that ask for more are cut there, and what is cut off goes to the others by their weights: as if
//! water rose in vessels as wide as the weights, some of which have a lid.
//!
//! All of it is in whole numbers and fractions of them, because every machine must come to the same.

use std::cmp::Ordering;

use super::placement::Member;

/// A margin of a sixteenth about the share, within which nothing needs to move.
const MARGIN: u128 = 16;

/// A fraction that is not negative.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    numerator: u128,
    denominator: u128,
}

impl Share {
    fn whole(number: u64) -> Share {
        Share { numerator: u128::from(number), denominator: 1 }
    }

    pub(super) fn floor(self) -> u64 {
        (self.numerator / self.denominator) as u64
    }

    pub(super) fn ceiling(self) -> u64 {
        self.numerator.div_ceil(self.denominator) as u64
    }

    /// The least that a member may hold.
    fn low(self) -> u64 {
        (self.numerator * (MARGIN - 1) / (self.denominator * MARGIN)) as u64
    }

    /// The most that a member may hold, were there no limit.
    fn high(self) -> u64 {
        (self.numerator * (MARGIN + 1)).div_ceil(self.denominator * MARGIN) as u64
    }

    fn compare_rest(self, other: Share) -> Ordering {
        let (rest, of_other) = (self.numerator % self.denominator, other.numerator % other.denominator);
        (rest * other.denominator).cmp(&(of_other * self.denominator))
    }
}

/// The shares of some members, numbered by their place in the list.
pub(super) struct Shares {
    /// The most replicas of one partition that a zone needs to hold.
    pub(super) depth: usize,
    /// Each member's zone, as a number.
    pub(super) zone: Vec<u32>,
    /// Each member's share.
    pub(super) share: Vec<Share>,
    /// The least and the most that each member may hold.
    pub(super) bounds: Vec<(u64, u64)>,
    zones: usize,
    partitions: u64,
}

impl Shares {
    /// # Panics
    /// If there are fewer members than replicas, or one has no weight.
    pub(super) fn new(members: &[Member], partitions: u32, replicas: usize) -> Shares {
        assert!(members.len() >= replicas, "{replicas} replicas on {} members", members.len());
        let partitions = u64::from(partitions);
        let mut names: Vec<&str> = members.iter().map(|member| &*member.zone).collect();
        names.sort_unstable();
        names.dedup();
        let number = |zone: &str| names.binary_search(&zone).expect("every zone is in the list") as u32;
        let zone: Vec<u32> = members.iter().map(|member| number(&member.zone)).collect();
        let mut of_zone: Vec<Vec<u32>> = vec![Vec::new(); names.len()];
        for (member, zone) in zone.iter().enumerate() {
            of_zone[*zone as usize].push(member as u32);
        }
        let room = |depth: usize| of_zone.iter().map(|zone| zone.len().min(depth)).sum::<usize>();
        let depth = (1..=replicas).find(|depth| room(*depth) >= replicas).expect("one each is enough");
        let capacity = |zone: &Vec<u32>| partitions * zone.len().min(depth) as u64;
        let weight = |member: u32| u128::from(members[member as usize].weight);

        let mut share = vec![Share::whole(0); members.len()];
        let mut full = vec![false; of_zone.len()];
        // Once a zone is full the others get more each; so none that is full becomes less than that.
        loop {
            let mut rest = partitions * replicas as u64;
            let mut open = Vec::new();
            for (zone, is_full) in of_zone.iter().zip(&full) {
                match is_full {
                    true => rest -= capacity(zone),
                    false => open.extend_from_slice(zone),
                }
            }
            let level = Level::new(&open, weight, rest, partitions);
            for member in open {
                share[member as usize] = level.share(weight(member));
            }
            let mut changed = false;
            for (zone, is_full) in of_zone.iter().zip(&mut full) {
                if !*is_full && level.exceeds(zone.iter().map(|member| weight(*member)), capacity(zone)) {
                    (*is_full, changed) = (true, true);
                }
            }
            if !changed {
                break;
            }
        }
        for zone in of_zone.iter().zip(&full).filter(|(_, full)| **full).map(|(zone, _)| zone) {
            let level = Level::new(zone, weight, capacity(zone), partitions);
            for member in zone {
                share[*member as usize] = level.share(weight(*member));
            }
        }
        let bounds = share.iter().map(|share| (share.low(), share.high().min(partitions))).collect();
        Shares { depth, zone, share, bounds, zones: of_zone.len(), partitions }
    }

    /// Each share as a whole number, rounded down or up so that together they are as many replicas as
    /// there are, and no zone has more than it can hold. Who has more already is rounded up first.
    pub(super) fn targets(&self, replicas: usize, held: &[u64]) -> Vec<u64> {
        let mut targets: Vec<u64> = self.share.iter().map(|share| share.floor()).collect();
        let mut in_zone = vec![0u64; self.zones];
        let mut members_in_zone = vec![0usize; self.zones];
        for (target, zone) in targets.iter().zip(&self.zone) {
            in_zone[*zone as usize] += target;
            members_in_zone[*zone as usize] += 1;
        }
        let mut left = self.partitions * replicas as u64 - targets.iter().sum::<u64>();
        let mut order: Vec<usize> =
            (0..targets.len()).filter(|member| self.share[*member].ceiling() > targets[*member]).collect();
        order.sort_by(|a, b| {
            let has_more = |member: usize| held[member] > targets[member];
            has_more(*b).cmp(&has_more(*a)).then(self.share[*b].compare_rest(self.share[*a])).then(a.cmp(b))
        });
        for member in order {
            let zone = self.zone[member] as usize;
            if left > 0 && in_zone[zone] < self.partitions * members_in_zone[zone].min(self.depth) as u64 {
                targets[member] += 1;
                in_zone[zone] += 1;
                left -= 1;
            }
        }
        // Roundings within the limits of zones are a matroid: taken one by one they come to the most.
        assert_eq!(left, 0, "{left} replicas are in nobody's share: {:?}", self.share);
        targets
    }
}

/// How high the water stands: a member's share is its weight times this, or the limit.
struct Level {
    load: u64,
    weight: u128,
    limit: u64,
}

impl Level {
    /// The level at which these members hold this load together, each at most the limit.
    fn new(members: &[u32], weight: impl Fn(u32) -> u128, mut load: u64, limit: u64) -> Level {
        let mut weights: Vec<u128> = members.iter().map(|member| weight(*member)).collect();
        weights.sort_unstable();
        let mut total: u128 = weights.iter().sum();
        while let Some(heaviest) = weights.pop() {
            if u128::from(load) * heaviest < u128::from(limit) * total {
                break;
            }
            load -= limit;
            total -= heaviest;
        }
        Level { load, weight: total, limit }
    }

    fn share(&self, weight: u128) -> Share {
        match self.is_limited(weight) {
            true => Share::whole(self.limit),
            false => Share { numerator: u128::from(self.load) * weight, denominator: self.weight },
        }
    }

    fn is_limited(&self, weight: u128) -> bool {
        u128::from(self.load) * weight >= u128::from(self.limit) * self.weight
    }

    /// Whether members of these weights have more than so much together.
    fn exceeds(&self, weights: impl Iterator<Item = u128>, capacity: u64) -> bool {
        let (mut limited, mut others) = (0, 0);
        for weight in weights {
            match self.is_limited(weight) {
                true => limited += u128::from(self.limit),
                false => others += weight,
            }
        }
        match self.weight {
            0 => limited > u128::from(capacity),
            total => limited * total + u128::from(self.load) * others > u128::from(capacity) * total,
        }
    }
}
