//! What clients say to a node, and the answers, as bytes.
//!
//! Any node takes any request: one that its group's leader must answer is passed on, once.
//!
//! ```text
//! request   version u8 (1), kind u8, then by kind:
//!    1 submit      group u32, deadline in ms u32 (0: the node's), command to the end
//!    2 read        group u32, deadline u32, consistency u8 (0 linearizable, 1 stale), read to the end
//!    3 map         nothing
//!    4 status      nothing
//!    5 initialize  partitions u32, members
//!    6 add member, or change its addresses
//!                  node u64, addresses
//!    7 remove member
//!                  node u64
//!    8 lead        group u32, node u64: leadership is to go there
//!    9 change one group's members (nodes use it among themselves)
//!                  group u32, step u8 (0 learner, 1 voter, 2 remove), node u64, addresses
//!   10 watch       group u32, tree: length u32, bytes; prefix: length u32, bytes
//!
//! reply     version u8 (1), kind u8, then by kind:
//!    0 done        nothing
//!    1 applied     reply to the end
//!    2 read        position u64, age: 0, or 1 and ms u64; reply to the end
//!    3 map         cluster id u128, partitions u32, members, leaders u32, each: node u64 (0 none)
//!    4 status      as in crate::status
//!    5 error       as in crate::error
//!    6 events      see crate::watch
//! ```
//!
//! Commands, reads and their replies are storage's; see [`dogsled_storage::codec`]. Members and
//! addresses: a count u32, then each (node u64, addresses), (length u32, UTF-8).

use std::time::Duration;

use bytes::Bytes;

use crate::codec::{Malformed, Put, Take, malformed};
use crate::error::ClusterError;
use crate::message::{put_members, take_members};
use crate::status::NodeStatus;
use crate::transport::NodeId;
use crate::types::{put_addresses, take_addresses};

/// The first byte of every request and reply.
pub const PROTOCOL_VERSION: u8 = 1;

/// How much a read must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// Everything that was acknowledged to anybody before the read began.
    #[default]
    Linearizable,
    /// What the node that is asked happens to have; the answer says how old that may be.
    Stale,
}

/// A step of changing who belongs to one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemberStep {
    /// The node gets the log, and no vote.
    Learner {
        /// Where to reach it.
        addresses: Vec<String>,
    },
    /// The learner gets a vote, once it has caught up.
    Voter,
    /// The node leaves.
    Remove,
}

/// A request of a client; see the [module](self).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ClientRequest {
    /// Carry out a command. Reply: [`ClientReply::Applied`].
    Submit {
        /// The group.
        group: u32,
        /// How long to try; zero for the node's own.
        deadline: Duration,
        /// A [`GroupCommand`](dogsled_storage::group::GroupCommand), encoded.
        command: Bytes,
    },
    /// Read. Reply: [`ClientReply::Read`].
    Read {
        /// The group.
        group: u32,
        /// How long to try; zero for the node's own.
        deadline: Duration,
        /// How much it must know.
        consistency: Consistency,
        /// A [`GroupRead`](dogsled_storage::group::GroupRead), encoded.
        read: Bytes,
    },
    /// Where is what? Reply: [`ClientReply::Map`].
    Map,
    /// How is the node? Reply: [`ClientReply::Status`].
    Status,
    /// Make a cluster of these members, of which the node is one. Reply: [`ClientReply::Done`].
    Initialize {
        /// How many partitions, for ever.
        partitions: u32,
        /// Every member and where to reach it.
        members: Vec<(NodeId, Vec<String>)>,
    },
    /// Make a node a voting member of every group. Reply: [`ClientReply::Done`].
    AddMember {
        /// Which.
        node: NodeId,
        /// Where to reach it.
        addresses: Vec<String>,
    },
    /// Take a node out of every group. Reply: [`ClientReply::Done`].
    RemoveMember {
        /// Which.
        node: NodeId,
    },
    /// Move a group's leadership. Reply: [`ClientReply::Done`] once it was asked for.
    TransferLeader {
        /// The group.
        group: u32,
        /// To whom.
        to: NodeId,
    },
    /// One step for one group. Reply: [`ClientReply::Done`].
    ChangeMember {
        /// The group.
        group: u32,
        /// Whose membership changes.
        node: NodeId,
        /// How.
        step: MemberStep,
    },
    /// Follow what happens to keys. Reply: a stream; see [`crate::watch`].
    Watch {
        /// The group.
        group: u32,
        /// The tree's name.
        tree: Bytes,
        /// What the keys begin with.
        prefix: Bytes,
    },
}

/// Where everything is, as far as the node that answers knows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterMap {
    /// Drawn when the cluster was made; 0 if the node belongs to none.
    pub cluster: u128,
    /// Groups 1 to so many are partitions; group 0 is the meta group.
    pub partitions: u32,
    /// The members and where to reach them.
    pub members: Vec<(NodeId, Vec<String>)>,
    /// Who leads each group, beginning with group 0.
    pub leaders: Vec<Option<NodeId>>,
}

/// An answer to a client; see the [module](self).
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ClientReply {
    /// It is done.
    Done,
    /// A [`GroupReply`](dogsled_storage::group::GroupReply), encoded.
    Applied(Bytes),
    /// What was read.
    Read {
        /// Position of the last entry that the answer includes.
        position: u64,
        /// Of a stale read: how long ago the replica was last known to be level with its leader;
        /// `None` if never, or if it is level.
        age: Option<Duration>,
        /// A [`GroupReadReply`](dogsled_storage::group::GroupReadReply), encoded.
        reply: Bytes,
    },
    /// Where everything is.
    Map(ClusterMap),
    /// How the node is.
    Status(Box<NodeStatus>),
    /// It was not done, or that is not known.
    Error(ClusterError),
}

fn put_duration(bytes: &mut Vec<u8>, duration: Duration) {
    bytes.put_u32(u32::try_from(duration.as_millis()).unwrap_or(u32::MAX));
}

fn take_duration(take: &mut Take) -> Result<Duration, Malformed> {
    Ok(Duration::from_millis(u64::from(take.u32()?)))
}

fn put_nodes(bytes: &mut Vec<u8>, members: &[(NodeId, Vec<String>)]) {
    let members: Vec<_> = members.iter().map(|(node, addresses)| (node.0, addresses.clone())).collect();
    put_members(bytes, &members);
}

fn take_nodes(take: &mut Take) -> Result<Vec<(NodeId, Vec<String>)>, Malformed> {
    Ok(take_members(take)?.into_iter().map(|(node, addresses)| (NodeId(node), addresses)).collect())
}

impl ClientRequest {
    /// Whether only an administrator may ask for it: it changes the cluster, not what the cluster holds.
    pub fn is_administrative(&self) -> bool {
        match self {
            ClientRequest::Submit { .. }
            | ClientRequest::Read { .. }
            | ClientRequest::Map
            | ClientRequest::Status
            | ClientRequest::Watch { .. } => false,
            ClientRequest::Initialize { .. }
            | ClientRequest::AddMember { .. }
            | ClientRequest::RemoveMember { .. }
            | ClientRequest::TransferLeader { .. }
            | ClientRequest::ChangeMember { .. } => true,
        }
    }

    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(64);
        bytes.put_u8(PROTOCOL_VERSION);
        match self {
            ClientRequest::Submit { group, deadline, command } => {
                bytes.reserve(command.len());
                bytes.put_u8(1);
                bytes.put_u32(*group);
                put_duration(&mut bytes, *deadline);
                bytes.extend_from_slice(command);
            }
            ClientRequest::Read { group, deadline, consistency, read } => {
                bytes.reserve(read.len());
                bytes.put_u8(2);
                bytes.put_u32(*group);
                put_duration(&mut bytes, *deadline);
                bytes.put_u8(u8::from(*consistency == Consistency::Stale));
                bytes.extend_from_slice(read);
            }
            ClientRequest::Map => bytes.put_u8(3),
            ClientRequest::Status => bytes.put_u8(4),
            ClientRequest::Initialize { partitions, members } => {
                bytes.put_u8(5);
                bytes.put_u32(*partitions);
                put_nodes(&mut bytes, members);
            }
            ClientRequest::AddMember { node, addresses } => {
                bytes.put_u8(6);
                bytes.put_u64(node.0);
                put_addresses(&mut bytes, addresses);
            }
            ClientRequest::RemoveMember { node } => {
                bytes.put_u8(7);
                bytes.put_u64(node.0);
            }
            ClientRequest::TransferLeader { group, to } => {
                bytes.put_u8(8);
                bytes.put_u32(*group);
                bytes.put_u64(to.0);
            }
            ClientRequest::ChangeMember { group, node, step } => {
                bytes.put_u8(9);
                bytes.put_u32(*group);
                let (number, addresses) = match step {
                    MemberStep::Learner { addresses } => (0, addresses.as_slice()),
                    MemberStep::Voter => (1, &[][..]),
                    MemberStep::Remove => (2, &[][..]),
                };
                bytes.put_u8(number);
                bytes.put_u64(node.0);
                put_addresses(&mut bytes, addresses);
            }
            ClientRequest::Watch { group, tree, prefix } => {
                bytes.put_u8(10);
                bytes.put_u32(*group);
                bytes.put_bytes(tree);
                bytes.put_bytes(prefix);
            }
        }
        bytes.into()
    }

    /// From bytes that may be anything. Commands and reads are not looked into.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: Bytes) -> Result<ClientRequest, Malformed> {
        let mut take = Take::new(bytes);
        take.version(PROTOCOL_VERSION)?;
        let request = match take.u8()? {
            1 => ClientRequest::Submit {
                group: take.u32()?,
                deadline: take_duration(&mut take)?,
                command: take.rest(),
            },
            2 => ClientRequest::Read {
                group: take.u32()?,
                deadline: take_duration(&mut take)?,
                consistency: if take.flag()? { Consistency::Stale } else { Consistency::Linearizable },
                read: take.rest(),
            },
            3 => ClientRequest::Map,
            4 => ClientRequest::Status,
            5 => ClientRequest::Initialize { partitions: take.u32()?, members: take_nodes(&mut take)? },
            6 => {
                ClientRequest::AddMember { node: NodeId(take.u64()?), addresses: take_addresses(&mut take)? }
            }
            7 => ClientRequest::RemoveMember { node: NodeId(take.u64()?) },
            8 => ClientRequest::TransferLeader { group: take.u32()?, to: NodeId(take.u64()?) },
            9 => {
                let group = take.u32()?;
                let step = take.u8()?;
                let node = NodeId(take.u64()?);
                let addresses = take_addresses(&mut take)?;
                let step = match step {
                    0 => MemberStep::Learner { addresses },
                    1 => MemberStep::Voter,
                    2 => MemberStep::Remove,
                    other => return malformed(format!("a step of the unknown kind {other}")),
                };
                ClientRequest::ChangeMember { group, node, step }
            }
            10 => ClientRequest::Watch { group: take.u32()?, tree: take.bytes()?, prefix: take.bytes()? },
            other => return malformed(format!("a request of the unknown kind {other}")),
        };
        take.end()?;
        Ok(request)
    }
}

impl ClientReply {
    /// Its bytes.
    pub fn encode(&self) -> Bytes {
        let mut bytes = Vec::with_capacity(64);
        bytes.put_u8(PROTOCOL_VERSION);
        match self {
            ClientReply::Done => bytes.put_u8(0),
            ClientReply::Applied(reply) => {
                bytes.reserve(reply.len());
                bytes.put_u8(1);
                bytes.extend_from_slice(reply);
            }
            ClientReply::Read { position, age, reply } => {
                bytes.reserve(reply.len());
                bytes.put_u8(2);
                bytes.put_u64(*position);
                bytes.put_u8(u8::from(age.is_some()));
                if let Some(age) = age {
                    bytes.put_u64(age.as_millis() as u64);
                }
                bytes.extend_from_slice(reply);
            }
            ClientReply::Map(map) => {
                bytes.put_u8(3);
                bytes.put_u128(map.cluster);
                bytes.put_u32(map.partitions);
                put_nodes(&mut bytes, &map.members);
                bytes.put_u32(map.leaders.len() as u32);
                for leader in &map.leaders {
                    bytes.put_u64(leader.map_or(0, |leader| leader.0));
                }
            }
            ClientReply::Status(status) => {
                bytes.put_u8(4);
                status.put(&mut bytes);
            }
            ClientReply::Error(error) => {
                bytes.put_u8(5);
                error.put(&mut bytes);
            }
        }
        bytes.into()
    }

    /// From bytes that may be anything. Replies of storage are not looked into.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn decode(bytes: Bytes) -> Result<ClientReply, Malformed> {
        let mut take = Take::new(bytes);
        take.version(PROTOCOL_VERSION)?;
        let reply = match take.u8()? {
            0 => ClientReply::Done,
            1 => ClientReply::Applied(take.rest()),
            2 => ClientReply::Read {
                position: take.u64()?,
                age: if take.flag()? { Some(Duration::from_millis(take.u64()?)) } else { None },
                reply: take.rest(),
            },
            3 => {
                let mut map = ClusterMap {
                    cluster: take.u128()?,
                    partitions: take.u32()?,
                    members: take_nodes(&mut take)?,
                    leaders: Vec::new(),
                };
                for _ in 0..take.count(8)? {
                    map.leaders.push(Some(NodeId(take.u64()?)).filter(|leader| leader.0 != 0));
                }
                ClientReply::Map(map)
            }
            4 => ClientReply::Status(Box::new(NodeStatus::take(&mut take)?)),
            5 => ClientReply::Error(ClusterError::take(&mut take)?),
            other => return malformed(format!("a reply of the unknown kind {other}")),
        };
        take.end()?;
        Ok(reply)
    }
}

#[cfg(test)]
mod tests;
