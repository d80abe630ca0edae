//! [`Change`]: what can be asked of the record, who may ask, and its bytes: a byte that says the kind, then what the
//! kind has. What a change comes to is decided in one place, [`Record::changed`](super::Record::changed).

use dogsled_storage::IVec;

use crate::codec::{Malformed, Put, Take, malformed};
use crate::ring::TreeHash;
use crate::status::{put_ids, take_ids};
use crate::transport::NodeId;
use crate::types::{put_addresses, take_addresses};

/// What an operator, or the cluster itself, changes in the record.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Change {
    /// Take in a node; or tell of a member's new addresses.
    Add {
        /// Which.
        node: NodeId,
        /// Where to reach it.
        addresses: Vec<String>,
        /// Its share.
        weight: u32,
        /// Its zone.
        zone: String,
    },
    /// Take out a member, for ever.
    Remove {
        /// Which.
        node: NodeId,
    },
    /// Empty a member, or let it have its share again.
    Drain {
        /// Which.
        node: NodeId,
        /// Whether it is to be empty.
        on: bool,
    },
    /// Give a member another share.
    Weight {
        /// Which.
        node: NodeId,
        /// How much.
        weight: u32,
    },
    /// Keep so many replicas of each partition.
    Replicas(u32),
    /// How movement is done; what is `None` stays.
    Moves {
        /// Whether nothing moves.
        paused: Option<bool>,
        /// Partitions at a time.
        moves: Option<u32>,
        /// Bytes of a second; 0: no limit of the cluster's.
        bytes_per_second: Option<u64>,
        /// Silence after which a member is replaced, in milliseconds.
        replace_after_ms: Option<u64>,
    },
    /// All groups have begun. The cluster's own.
    Formed,
    /// A new member follows. The cluster's own.
    Follows {
        /// Which.
        node: NodeId,
    },
    /// A member was silent for too long. The cluster's own.
    Silent {
        /// Which.
        node: NodeId,
    },
    /// A member was heard again. The cluster's own.
    Heard {
        /// Which.
        node: NodeId,
    },
    /// A member that leaves holds nothing any more. The cluster's own.
    Gone {
        /// Which.
        node: NodeId,
    },
    /// Members are given up for ever, with what only they had; see [`crate::recovery`]. Asked for by no
    /// other way than that.
    Lost {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// Hash a prefix of the keys of a tree that is nowhere yet. For applications as well.
    HashTree {
        /// Its name.
        tree: IVec,
        /// What is hashed of its keys, for ever.
        hash: TreeHash,
    },
    /// These partitions are to be led by these of their replicas, because of what there is to do. The cluster's
    /// own.
    Leaders {
        /// Which, and by whom.
        leaders: Vec<(u32, NodeId)>,
    },
    /// Every partition goes by what was chosen for a tree. The cluster's own.
    TreeHashed {
        /// Its name.
        tree: IVec,
    },
}

impl Change {
    /// Whether applications may ask for it, not only administrators: it says how the application's own data
    /// is to lie, and changes nothing for others.
    pub fn is_for_applications(&self) -> bool {
        matches!(self, Change::HashTree { .. })
    }

    /// Whether it is for operators to ask for.
    pub fn is_for_operators(&self) -> bool {
        match self {
            Change::Add { .. }
            | Change::Remove { .. }
            | Change::Drain { .. }
            | Change::Weight { .. }
            | Change::Replicas(_)
            | Change::Moves { .. }
            | Change::HashTree { .. } => true,
            Change::Formed
            | Change::Follows { .. }
            | Change::Silent { .. }
            | Change::Heard { .. }
            | Change::Gone { .. }
            | Change::Lost { .. }
            | Change::Leaders { .. }
            | Change::TreeHashed { .. } => false,
        }
    }

    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Add { node, addresses, weight, zone } => {
                bytes.put_u8(1);
                bytes.put_u64(node.0);
                bytes.put_u32(*weight);
                bytes.put_bytes(zone.as_bytes());
                put_addresses(bytes, addresses);
            }
            Change::Remove { node } => {
                bytes.put_u8(2);
                bytes.put_u64(node.0);
            }
            Change::Drain { node, on } => {
                bytes.put_u8(3);
                bytes.put_u64(node.0);
                bytes.put_u8(u8::from(*on));
            }
            Change::Weight { node, weight } => {
                bytes.put_u8(4);
                bytes.put_u64(node.0);
                bytes.put_u32(*weight);
            }
            Change::Replicas(replicas) => {
                bytes.put_u8(5);
                bytes.put_u32(*replicas);
            }
            Change::Moves { paused, moves, bytes_per_second, replace_after_ms } => {
                bytes.put_u8(6);
                for number in
                    [paused.map(u64::from), moves.map(u64::from), *bytes_per_second, *replace_after_ms]
                {
                    bytes.put_u8(u8::from(number.is_some()));
                    bytes.put_u64(number.unwrap_or(0));
                }
            }
            Change::Formed => bytes.put_u8(7),
            Change::Follows { node } => {
                bytes.put_u8(8);
                bytes.put_u64(node.0);
            }
            Change::Silent { node } => {
                bytes.put_u8(9);
                bytes.put_u64(node.0);
            }
            Change::Heard { node } => {
                bytes.put_u8(10);
                bytes.put_u64(node.0);
            }
            Change::Gone { node } => {
                bytes.put_u8(11);
                bytes.put_u64(node.0);
            }
            Change::Lost { nodes } => {
                bytes.put_u8(12);
                put_ids(bytes, nodes);
            }
            Change::HashTree { tree, hash } => {
                bytes.put_u8(13);
                bytes.put_bytes(tree);
                hash.put(bytes);
            }
            Change::TreeHashed { tree } => {
                bytes.put_u8(14);
                bytes.put_bytes(tree);
            }
            Change::Leaders { leaders } => {
                bytes.put_u8(15);
                bytes.put_u32(leaders.len() as u32);
                for (partition, leader) in leaders {
                    bytes.put_u32(*partition);
                    bytes.put_u64(leader.0);
                }
            }
        }
    }

    pub(crate) fn take(take: &mut Take) -> Result<Change, Malformed> {
        let node = |take: &mut Take| Ok::<_, Malformed>(NodeId(take.u64()?));
        Ok(match take.u8()? {
            1 => {
                let node = node(take)?;
                let (weight, zone) = (take.u32()?, take.text()?);
                Change::Add { node, weight, zone, addresses: take_addresses(take)? }
            }
            2 => Change::Remove { node: node(take)? },
            3 => Change::Drain { node: node(take)?, on: take.flag()? },
            4 => Change::Weight { node: node(take)?, weight: take.u32()? },
            5 => Change::Replicas(take.u32()?),
            6 => {
                let mut number = || {
                    let given = take.flag()?;
                    let number = take.u64()?;
                    if !given && number != 0 {
                        return malformed("a number that is not given");
                    }
                    Ok(given.then_some(number))
                };
                let paused = match number()? {
                    None => None,
                    Some(0) => Some(false),
                    Some(1) => Some(true),
                    Some(other) => return malformed(format!("{other} is neither yes nor no")),
                };
                let moves = match number()?.map(u32::try_from) {
                    None => None,
                    Some(Ok(moves)) => Some(moves),
                    Some(Err(_)) => return malformed("too many moves at a time"),
                };
                Change::Moves { paused, moves, bytes_per_second: number()?, replace_after_ms: number()? }
            }
            7 => Change::Formed,
            8 => Change::Follows { node: node(take)? },
            9 => Change::Silent { node: node(take)? },
            10 => Change::Heard { node: node(take)? },
            11 => Change::Gone { node: node(take)? },
            12 => Change::Lost { nodes: take_ids(take)? },
            13 => Change::HashTree { tree: IVec::from(&take.bytes()?[..]), hash: TreeHash::take(take)? },
            14 => Change::TreeHashed { tree: IVec::from(&take.bytes()?[..]) },
            15 => Change::Leaders {
                leaders: (0..take.count(12)?)
                    .map(|_| Ok((take.u32()?, NodeId(take.u64()?))))
                    .collect::<Result<_, Malformed>>()?,
            },
            other => return malformed(format!("a change of the unknown kind {other}")),
        })
    }
}
