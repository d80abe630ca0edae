//! The circle: virtual points of members, and the order in which a partition meets them.

use twox_hash::XxHash3_64;

use super::placement::Member;

/// Points of a member of average weight. More of them spread what a lost member had over more of the
/// others, which then share the work of replacing it; balance does not come from here.
const POINTS: u128 = 64;

/// The points of some members. Members are numbered by their place in the list.
pub(super) struct Points {
    /// All of them, sorted.
    circle: Vec<(u64, u32)>,
    /// Those of each member, sorted.
    own: Vec<Vec<u64>>,
}

impl Points {
    /// Points of these members, whose weights are above 0.
    ///
    /// How many a member has depends on the average weight, so a join can take a point from another.
    /// That moves nothing: points only say what is preferred for replicas that need a place.
    pub(super) fn new(members: &[Member]) -> Points {
        let total: u128 = members.iter().map(|member| u128::from(member.weight)).sum();
        let mut own = Vec::with_capacity(members.len());
        let mut circle = Vec::new();
        for (number, member) in members.iter().enumerate() {
            let count = POINTS * u128::from(member.weight) * members.len() as u128 / total;
            let mut points: Vec<u64> = (0..count.max(1) as u32).map(|i| point(member.node.0, i)).collect();
            points.sort_unstable();
            circle.extend(points.iter().map(|point| (*point, number as u32)));
            own.push(points);
        }
        circle.sort_unstable();
        Points { circle, own }
    }

    /// Members in the order in which they are met clockwise from a place. Each comes again at each of
    /// its points.
    pub(super) fn clockwise(&self, from: u64) -> impl Iterator<Item = u32> {
        let start = self.circle.partition_point(|(point, _)| *point < from);
        self.circle[start..].iter().chain(&self.circle[..start]).map(|(_, member)| *member)
    }

    /// How far it is clockwise from a place to a member's next point.
    pub(super) fn distance(&self, from: u64, member: u32) -> u64 {
        let points = &self.own[member as usize];
        let next = points.partition_point(|point| *point < from);
        points[if next == points.len() { 0 } else { next }].wrapping_sub(from)
    }
}

/// One point of a member: the hash of both numbers, in little-endian.
fn point(node: u64, number: u32) -> u64 {
    let mut bytes = [0; 12];
    bytes[..8].copy_from_slice(&node.to_le_bytes());
    bytes[8..].copy_from_slice(&number.to_le_bytes());
    XxHash3_64::oneshot(&bytes)
}

/// Where a partition begins: the smallest hash that belongs to it. Counted from 0.
pub(super) fn beginning(partition: u32, partitions: u32) -> u64 {
    (u128::from(partition) << 64).div_ceil(u128::from(partitions)) as u64
}
