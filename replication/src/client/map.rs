//! [`ClusterMap`]: what a client has to know to go straight to the node that can answer. It comes as an answer of
//! its own, and before other answers to one whose map is old; the layout is at [`super`].

use std::collections::BTreeMap;

use dogsled_storage::IVec;

use super::{put_nodes, take_nodes};
use crate::codec::{Malformed, Put, Take};
use crate::ring::TreeHash;
use crate::status::{put_ids, take_ids};
use crate::transport::NodeId;

/// Where everything is, as far as the node that answers knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterMap {
    /// Drawn when the cluster was made; 0 if the node belongs to none.
    pub cluster: u128,
    /// How often it was changed whose what is to be; 0 as long as the cluster is being made.
    pub epoch: u64,
    /// Groups 1 to so many are partitions; group 0 is the meta group.
    pub partitions: u32,
    /// The members and where to reach them.
    pub members: Vec<(NodeId, Vec<String>)>,
    /// Their zones, in the same order; empty if they are not known.
    pub zones: Vec<String>,
    /// Who leads each group, beginning with group 0. `None`: there is no leader, or the node that answers
    /// has no replica of the group.
    pub leaders: Vec<Option<NodeId>>,
    /// Who has each group, or is about to, beginning with group 0. The first is to lead it.
    pub replicas: Vec<Vec<NodeId>>,
    /// Trees of which not the whole key is hashed, by their plain names.
    pub trees: BTreeMap<IVec, TreeHash>,
}

impl ClusterMap {
    /// Who has a group; nobody, if that is not known.
    pub fn replicas_of(&self, group: u32) -> &[NodeId] {
        self.replicas.get(group as usize).map_or(&[], Vec::as_slice)
    }

    /// What is hashed of the keys of a tree.
    pub fn tree_hash(&self, tree: &[u8]) -> TreeHash {
        self.trees.get(tree).copied().unwrap_or_else(|| TreeHash::by_name(tree))
    }

    /// The zone of a member; empty if it has none, or none is known.
    pub fn zone_of(&self, node: NodeId) -> &str {
        let index = self.members.iter().position(|(member, _)| *member == node);
        index.and_then(|index| self.zones.get(index)).map_or("", String::as_str)
    }

    pub(super) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u128(self.cluster);
        bytes.put_u64(self.epoch);
        bytes.put_u32(self.partitions);
        put_nodes(bytes, &self.members);
        bytes.put_u32(self.zones.len() as u32);
        for zone in &self.zones {
            bytes.put_bytes(zone.as_bytes());
        }
        bytes.put_u32(self.leaders.len() as u32);
        for leader in &self.leaders {
            bytes.put_u64(leader.map_or(0, |leader| leader.0));
        }
        bytes.put_u32(self.replicas.len() as u32);
        for replicas in &self.replicas {
            put_ids(bytes, replicas);
        }
        bytes.put_u32(self.trees.len() as u32);
        for (name, hash) in &self.trees {
            bytes.put_bytes(name);
            hash.put(bytes);
        }
    }

    pub(super) fn take(take: &mut Take) -> Result<ClusterMap, Malformed> {
        let mut map = ClusterMap {
            cluster: take.u128()?,
            epoch: take.u64()?,
            partitions: take.u32()?,
            members: take_nodes(take)?,
            zones: (0..take.count(4)?).map(|_| take.text()).collect::<Result<_, Malformed>>()?,
            leaders: Vec::new(),
            replicas: Vec::new(),
            trees: BTreeMap::new(),
        };
        for _ in 0..take.count(8)? {
            map.leaders.push(Some(NodeId(take.u64()?)).filter(|leader| leader.0 != 0));
        }
        for _ in 0..take.count(4)? {
            map.replicas.push(take_ids(take)?);
        }
        for _ in 0..take.count(7)? {
            map.trees.insert(IVec::from(&take.bytes()?[..]), TreeHash::take(take)?);
        }
        Ok(map)
    }
}
