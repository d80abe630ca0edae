//! Who holds which partition: the table, its bytes, and what must be true of it.
//!
//! ```text
//! placement  version u8 (1), replicas u32, partitions u32, nodes u32, each: u64, ascending;
//!            then, for each partition and replica, the node's number in that list: a u8 if there are
//!            at most 256 nodes, otherwise a u32
//! ```
//!
//! 100,000 partitions of 3 replicas are 300 KB on up to 256 nodes, and 1.2 MB beyond.

use std::collections::BTreeMap;
use std::fmt;

use bytes::Bytes;

use super::leaders;
use super::rebalance::Work;
use super::share::Shares;
use crate::codec::{Malformed, Put, Take, malformed};
use crate::transport::NodeId;

const VERSION: u8 = 1;

/// A member as a place for replicas.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Which.
    pub node: NodeId,
    /// How much it should hold, against the weights of the others. It holds no partition twice, so
    /// weights beyond what that allows have no effect. With 0 it gets nothing and is emptied.
    pub weight: u32,
    /// What fails together: a rack, a building. Replicas of a partition are in different zones wherever
    /// there are enough of them, **even if that makes a member hold more than its weight asks for**:
    /// the only member of the third zone holds every partition of which there are three replicas. Give
    /// it the zone of others, or all members the same, if that is not wanted.
    pub zone: String,
}

/// Why there is no placement of these members.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RingError {
    /// There is nothing to place. Ask for at least one partition.
    NoPartitions,
    /// A partition without replicas is lost data. Ask for at least one.
    NoReplicas,
    /// There is no member. Add one.
    NoMembers,
    /// Every member has weight 0. Give one a weight.
    NoWeight,
    /// A member is named twice. Leave one of both out.
    Duplicate(NodeId),
    /// Replicas of a partition are on distinct members. Add members, give some of those with weight 0 a
    /// weight, or ask for fewer replicas.
    TooFewMembers {
        /// How many replicas were asked for.
        replicas: u32,
        /// How many members have a weight above 0.
        usable: usize,
        /// How many members there are.
        members: usize,
    },
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RingError::NoPartitions => f.write_str("a cluster has at least one partition"),
            RingError::NoReplicas => f.write_str("a partition has at least one replica"),
            RingError::NoMembers => f.write_str("there is no member: add one"),
            RingError::NoWeight => f.write_str("every member has weight 0: give one a weight"),
            RingError::Duplicate(node) => write!(f, "node {node} is named twice"),
            RingError::TooFewMembers { replicas, usable, members } => {
                write!(f, "{replicas} replicas need as many members, and there are {usable}")?;
                match members - usable {
                    0 => f.write_str(": add members or ask for fewer replicas"),
                    others => write!(
                        f,
                        " ({others} more have weight 0): add members, give those a weight, or ask for fewer \
                         replicas"
                    ),
                }
            }
        }
    }
}

impl std::error::Error for RingError {}

/// What happens to one partition between two placements.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    /// The partition.
    pub partition: u32,
    /// Who gets it.
    pub added: Vec<NodeId>,
    /// Who gives it up.
    pub removed: Vec<NodeId>,
}

/// Who holds each partition; see the [module](super). Partitions are numbered as their groups are,
/// from 1.
#[derive(Clone, PartialEq, Eq)]
pub struct Placement {
    replicas: u32,
    /// Of partition 1, then of partition 2, and so on.
    nodes: Vec<NodeId>,
}

impl Placement {
    /// Places partitions that lie nowhere yet.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn new(members: &[Member], partitions: u32, replicas: u32) -> Result<Placement, RingError> {
        if partitions == 0 {
            return Err(RingError::NoPartitions);
        }
        let usable = usable(members, replicas)?;
        Ok(Placement::place(&usable, partitions, replicas, None))
    }

    /// The next placement, for these members and this number of replicas. The same if nothing changed.
    ///
    /// # Errors
    /// [`RingError`].
    pub fn rebalance(&self, members: &[Member], replicas: u32) -> Result<Placement, RingError> {
        let usable = usable(members, replicas)?;
        Ok(Placement::place(&usable, self.partitions(), replicas, Some(self)))
    }

    fn place(members: &[Member], partitions: u32, replicas: u32, before: Option<&Placement>) -> Placement {
        let number = |node: &NodeId| members.binary_search_by_key(node, |member| member.node).ok();
        let kept: Vec<Vec<u32>> = match before {
            None => vec![Vec::new(); partitions as usize],
            Some(before) => {
                let kept = |nodes: &[NodeId]| nodes.iter().filter_map(number).map(|m| m as u32).collect();
                before.nodes.chunks_exact(before.replicas as usize).map(kept).collect()
            }
        };
        let shares = Shares::new(members, partitions, replicas as usize);
        let mut slots = Work::new(members, &shares, kept, replicas as usize).run();
        leaders::spread(&mut slots, members.len());
        let nodes = slots.iter().flatten().map(|member| members[*member as usize].node).collect();
        Placement { replicas, nodes }
    }

    /// How many partitions there are.
    pub fn partitions(&self) -> u32 {
        self.nodes.len() as u32 / self.replicas
    }

    /// How many replicas each has.
    pub fn replica_count(&self) -> u32 {
        self.replicas
    }

    /// Who holds a partition. The first is the one that should lead it.
    ///
    /// # Panics
    /// If there is no such partition. They are numbered from 1, as [`group_of`](super::group_of) does.
    pub fn replicas(&self, partition: u32) -> &[NodeId] {
        let partitions = self.partitions();
        assert!((1..=partitions).contains(&partition), "partition {partition} of {partitions}");
        let replicas = self.replicas as usize;
        &self.nodes[(partition as usize - 1) * replicas..][..replicas]
    }

    /// Who should lead a partition, so that each member leads as many as its replicas entitle it to:
    /// their number divided by that of the replicas of a partition, rounded down or up. As replicas
    /// follow weights, so do leaders.
    ///
    /// # Panics
    /// As [`Placement::replicas`].
    pub fn preferred_leader(&self, partition: u32) -> NodeId {
        self.replicas(partition)[0]
    }

    /// The same, but these are to be led by these; see [`super::load`].
    ///
    /// # Errors
    /// In words: somebody does not hold what he is to lead, or would lead more or less than his part.
    pub fn with_leaders(&self, leaders: &[(u32, NodeId)]) -> Result<Placement, String> {
        let mut next = self.clone();
        let replicas = self.replicas as usize;
        for (partition, leader) in leaders {
            if !(1..=self.partitions()).contains(partition) {
                return Err(format!("there is no partition {partition}"));
            }
            let nodes = &mut next.nodes[(*partition as usize - 1) * replicas..][..replicas];
            let Some(place) = nodes.iter().position(|node| node == leader) else {
                return Err(format!("node {leader} does not hold partition {partition}"));
            };
            nodes[..=place].rotate_right(1);
        }
        for (node, (held, leads)) in next.loads() {
            let part = held / u64::from(self.replicas)..=held.div_ceil(u64::from(self.replicas));
            if !part.contains(&leads) {
                return Err(format!("node {node} would lead {leads} of {held}"));
            }
        }
        Ok(next)
    }

    /// How many replicas each node holds, and how many it should lead. Nodes that hold none are not
    /// there.
    pub fn loads(&self) -> BTreeMap<NodeId, (u64, u64)> {
        let mut loads = BTreeMap::new();
        for nodes in self.nodes.chunks_exact(self.replicas as usize) {
            for (place, node) in nodes.iter().enumerate() {
                let (replicas, leads) = loads.entry(*node).or_default();
                *replicas += 1;
                *leads += u64::from(place == 0);
            }
        }
        loads
    }

    /// What differs in another placement of as many partitions: the partitions whose members differ, in
    /// ascending order. A change of order, and thus of the preferred leader, is none.
    ///
    /// # Panics
    /// If the other is of a different number of partitions, which never changes.
    pub fn changes_to(&self, next: &Placement) -> Vec<Change> {
        assert_eq!(self.partitions(), next.partitions(), "the number of partitions is fixed");
        let without = |these: &[NodeId], those: &[NodeId]| -> Vec<NodeId> {
            these.iter().copied().filter(|node| !those.contains(node)).collect()
        };
        let change = |partition| {
            let (before, after) = (self.replicas(partition), next.replicas(partition));
            Change { partition, added: without(after, before), removed: without(before, after) }
        };
        let changes = (1..=self.partitions()).map(change);
        changes.filter(|change| !change.added.is_empty() || !change.removed.is_empty()).collect()
    }

    /// Checks every promise of the [module](super) about a placement of these members.
    ///
    /// # Panics
    /// If one is broken; the message says which, and where.
    pub fn check_invariants(&self, members: &[Member]) {
        let members = usable(members, self.replicas).expect("members that can be placed");
        let shares = Shares::new(&members, self.partitions(), self.replicas as usize);
        let mut held = vec![(0, 0); members.len()];
        for partition in 1..=self.partitions() {
            let nodes = self.replicas(partition);
            let mut zones = vec![0; members.len()];
            for (place, node) in nodes.iter().enumerate() {
                let number = members.binary_search_by_key(node, |member| member.node).unwrap_or_else(|_| {
                    panic!("partition {partition} is on node {node}, which is no member with a weight")
                });
                assert!(
                    !nodes[..place].contains(node),
                    "partition {partition} is on {node} twice: {nodes:?}"
                );
                held[number].0 += 1;
                held[number].1 += u64::from(place == 0);
                let in_zone = &mut zones[shares.zone[number] as usize];
                *in_zone += 1;
                let (zone, depth) = (&members[number].zone, shares.depth);
                assert!(*in_zone <= depth, "over {depth} of partition {partition} in '{zone}': {nodes:?}");
            }
        }
        for (((held, leads), (low, high)), member) in held.into_iter().zip(&shares.bounds).zip(&members) {
            assert!(held >= *low && held <= *high, "{held} replicas, not {low} to {high}, on {member:?}");
            let replicas = u64::from(self.replicas);
            assert!(
                leads >= held / replicas && leads <= held.div_ceil(replicas),
                "{leads} leaders of {held} replicas on {member:?}"
            );
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::new();
        self.put(&mut bytes);
        bytes.into()
    }

    /// From bytes that may be anything. What comes out has distinct members in each partition, and
    /// fits [`Placement::rebalance`]; whether it is balanced is not looked at.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: Bytes) -> Result<Placement, Malformed> {
        let mut take = Take::new(bytes);
        let placement = Placement::take(&mut take)?;
        take.end()?;
        Ok(placement)
    }

    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        let mut table = self.nodes.clone();
        table.sort_unstable();
        table.dedup();
        bytes.reserve(13 + 8 * table.len() + self.nodes.len() * width(table.len()));
        bytes.put_u8(VERSION);
        bytes.put_u32(self.replicas);
        bytes.put_u32(self.partitions());
        bytes.put_u32(table.len() as u32);
        for node in &table {
            bytes.put_u64(node.0);
        }
        for node in &self.nodes {
            let number = table.binary_search(node).expect("every node is in the table");
            match width(table.len()) {
                1 => bytes.put_u8(number as u8),
                _ => bytes.put_u32(number as u32),
            }
        }
    }

    pub(crate) fn take(take: &mut Take) -> Result<Placement, Malformed> {
        take.version(VERSION)?;
        let (replicas, partitions) = (take.u32()?, take.u32()?);
        let table: Vec<NodeId> =
            (0..take.count(8)?).map(|_| Ok(NodeId(take.u64()?))).collect::<Result<_, Malformed>>()?;
        if !table.is_sorted_by(|a, b| a < b) {
            return malformed("nodes of a placement that are not in ascending order");
        }
        let count = u64::from(replicas) * u64::from(partitions);
        if count == 0 || replicas as usize > table.len() {
            return malformed(format!(
                "{partitions} partitions of {replicas} replicas on {} nodes",
                table.len()
            ));
        }
        let width = width(table.len());
        if count.saturating_mul(width as u64) > take.left() as u64 {
            return malformed(format!("{count} replicas claimed in {} bytes", take.left()));
        }
        let mut nodes = Vec::with_capacity(count as usize);
        for _ in 0..count {
            let number = if width == 1 { usize::from(take.u8()?) } else { take.u32()? as usize };
            match table.get(number) {
                Some(node) => nodes.push(*node),
                None => return malformed(format!("node {number} of {} in a placement", table.len())),
            }
        }
        for nodes in nodes.chunks_exact(replicas as usize) {
            if (1..nodes.len()).any(|place| nodes[..place].contains(&nodes[place])) {
                return malformed(format!("a partition on one node twice: {nodes:?}"));
            }
        }
        Ok(Placement { replicas, nodes })
    }
}

fn width(nodes: usize) -> usize {
    if nodes <= 256 { 1 } else { 4 }
}

impl fmt::Debug for Placement {
    /// One partition after the other, each as its nodes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list =
            |partition| (partition, self.replicas(partition).iter().map(|node| node.0).collect::<Vec<_>>());
        f.debug_map().entries((1..=self.partitions()).map(list)).finish()
    }
}

/// Members that can hold replicas, in the order of their numbers.
fn usable(members: &[Member], replicas: u32) -> Result<Vec<Member>, RingError> {
    let mut all: Vec<&Member> = members.iter().collect();
    all.sort_by_key(|member| member.node);
    if let Some(pair) = all.windows(2).find(|pair| pair[0].node == pair[1].node) {
        return Err(RingError::Duplicate(pair[0].node));
    }
    let usable: Vec<Member> = all.into_iter().filter(|member| member.weight > 0).cloned().collect();
    if replicas == 0 {
        return Err(RingError::NoReplicas);
    }
    if members.is_empty() {
        return Err(RingError::NoMembers);
    }
    if usable.is_empty() {
        return Err(RingError::NoWeight);
    }
    if usable.len() < replicas as usize {
        return Err(RingError::TooFewMembers { replicas, usable: usable.len(), members: members.len() });
    }
    Ok(usable)
}
