//! What clients say to a node, and the answers, as bytes.
//!
//! Any node takes any request: one that its group's leader must answer is passed on, once.
//!
//! ```text
//! request   version u8 (1), kind u8, then by kind:
//!    1 submit      group u32, deadline in ms u32 (0: the node's), command to the end
//!    2 read        group u32, deadline u32, consistency u8 (0 linearizable, 1 stale, 2 at most so old:
//!                  ms u32), read to the end
//!    3 map         nothing
//!    4 status      nothing
//!    5 initialize  partitions u32, replicas u32, members
//!    6 add member, or change its addresses
//!                  node u64, addresses
//!    7 remove member
//!                  node u64
//!    8 lead        group u32, node u64: leadership is to go there
//!    9 change one group's members (nodes use it among themselves)
//!                  group u32, based on: term u64, leader u64, position u64; kind u8, then
//!                  1 begin, 2 learners: members;  3 voters: keep u8, nodes;  4 remove: nodes;
//!                  5 settle: nothing
//!   10 watch       group u32, tree: length u32, bytes; prefix: length u32, bytes;
//!                  0: from now on, or 1, position u64, events u32: from where was told to
//!   11 change the cluster
//!                  epoch u64 (0 any), wait u8, change as in crate::meta
//!   12 record      nothing: what is wanted of the cluster
//!   13 membership  group u32: who belongs to it, by its leader
//!   14 another request, of one who knows the map of an epoch
//!                  epoch u64, the request to the end
//!   15 recover     carry out u8, lost: nodes; see crate::recovery
//!   16 go on alone (nodes use it among themselves)
//!                  recovery u128, lost: nodes, groups u32, each: group u32, term u64, last entry:
//!                  term u64, leader u64, position u64
//!   17 a recovery is under way (nodes use it among themselves)
//!                  recovery u128, stage u8 (0 begins, 1 they are given up for ever, 2 ends), lost: nodes
//!   18 pin         group u32, deadline u32, transaction u128, lease in ms u32; see crate::pin
//!   19 read what is pinned
//!                  node u64, group u32, transaction u128, tree: length u32, bytes, part u8, after,
//!                  since u64, limit in bytes u32
//!   20 keep what is pinned, or let it go
//!                  node u64, transaction u128, keep u8, groups u32, each: u32
//!
//! reply     version u8 (1), kind u8, then by kind:
//!    0 done        nothing
//!    1 applied     reply to the end
//!    2 read        position u64, age: 0, or 1 and ms u64; reply to the end
//!    3 map         cluster id u128, epoch u64, partitions u32, members,
//!                  zones u32 (of each member, in that order; or 0), each: length u32, UTF-8;
//!                  leaders u32, each: node u64 (0 none); replicas u32, each: nodes;
//!                  trees u32, each: name: length u32, bytes; what is hashed: 3 bytes, as in
//!                  crate::ring::tree_hash
//!    4 status      as in crate::status
//!    5 error       as in crate::error
//!    6 events      see crate::watch
//!    7 newer map   length u32, a map reply; then the reply to what was asked
//!    8 record      as in crate::meta
//!    9 membership  position u64, nodes
//!   10 recovery    lost: nodes; done u8; groups u32, each: group u32, survivor u64 (0 none), lost: nodes,
//!                  others: nodes, last entry as above, committed u64, applied u64, term u64, led u8,
//!                  level in ms u64 (all ones: not known)
//!   11 pinned      as in crate::pin
//!   12 a page of what is pinned
//!                  as in crate::pin
//! ```
//!
//! Nodes: a count u32, then each u64.
//!
//! Commands, reads and their replies are storage's; see [`dogsled_storage::codec`]. Members and
//! addresses: a count u32, then each (node u64, addresses), (length u32, UTF-8).

mod map;
mod reply;

use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::TransactionId;
use dogsled_storage::codec::long_group_read_answer;
use dogsled_storage::kind::OperationKind;

pub use self::map::ClusterMap;
pub use self::reply::ClientReply;
use crate::codec::{Malformed, Put, Take, malformed};
use crate::message::{put_members, take_members};
use crate::meta::Change;
use crate::pin::PinnedRead;
use crate::status::{MembershipId, put_ids, take_ids};
use crate::transport::NodeId;
use crate::types::{put_addresses, take_addresses};
use crate::watch::Told;

/// The first byte of every request and reply.
pub const PROTOCOL_VERSION: u8 = 1;

/// The kind of request that is another one with an epoch before it.
const KNOWING: u8 = 14;
/// The kind of reply that is another one with a map before it.
const NEWER_MAP: u8 = 7;

/// How much a read must know.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Consistency {
    /// Everything that was acknowledged to anybody before the read began.
    #[default]
    Linearizable,
    /// What the node that is asked happens to have; the answer says how old that may be.
    Stale,
    /// Everything that was acknowledged to anybody so long before the read began. A replica that was
    /// confirmed to have it within that time, by a leader that had a majority, answers by itself; another
    /// asks, as for a linearizable read.
    AtMostOld(Duration),
}

impl Consistency {
    fn put(self, bytes: &mut Vec<u8>) {
        match self {
            Consistency::Linearizable => bytes.put_u8(0),
            Consistency::Stale => bytes.put_u8(1),
            Consistency::AtMostOld(age) => {
                bytes.put_u8(2);
                put_duration(bytes, age);
            }
        }
    }

    fn take(take: &mut Take) -> Result<Consistency, Malformed> {
        Ok(match take.u8()? {
            0 => Consistency::Linearizable,
            1 => Consistency::Stale,
            2 => Consistency::AtMostOld(take_duration(take)?),
            other => return malformed(format!("a consistency of the unknown kind {other}")),
        })
    }
}

/// A change of who belongs to one group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupChange {
    /// These are its first members.
    Begin {
        /// All of them.
        members: Vec<(NodeId, Vec<String>)>,
    },
    /// These get the log, and no vote.
    Learners {
        /// Which, and where to reach them.
        nodes: Vec<(NodeId, Vec<String>)>,
    },
    /// These vote, once they have everything, and no others do.
    Voters {
        /// All of them.
        voters: Vec<NodeId>,
        /// Whether those that do not vote any more still get the log.
        keep: bool,
    },
    /// These, which do not vote, get nothing any more.
    Remove {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// A change that was half done is done.
    Settle,
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
        /// How many replicas of each, as soon as there are so many members.
        replicas: u32,
        /// Every member and where to reach it.
        members: Vec<(NodeId, Vec<String>)>,
    },
    /// Take in a node, and give it its share. Reply: [`ClientReply::Done`].
    AddMember {
        /// Which.
        node: NodeId,
        /// Where to reach it.
        addresses: Vec<String>,
    },
    /// Take out a node, and move away what it has. Reply: [`ClientReply::Done`].
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
    /// Change who belongs to one group. Reply: [`ClientReply::Done`].
    ChangeGroup {
        /// The group.
        group: u32,
        /// The newest membership that whoever asks knows of; if there is a newer, nothing is done.
        based_on: MembershipId,
        /// How.
        change: GroupChange,
    },
    /// Follow what happens to keys. Reply: a stream; see [`crate::watch`].
    Watch {
        /// The group.
        group: u32,
        /// The tree's name.
        tree: Bytes,
        /// What the keys begin with.
        prefix: Bytes,
        /// How far the client was told; `None`: from now on.
        told: Option<Told>,
    },
    /// Change the cluster. Reply: [`ClientReply::Done`].
    Change {
        /// The epoch of the record that whoever asks has seen: if it is another by now, nothing is done.
        /// 0: whatever it is.
        epoch: u64,
        /// Whether the answer is to wait until it is carried through.
        wait: bool,
        /// What.
        change: Change,
    },
    /// What is wanted of the cluster? Reply: [`ClientReply::Record`].
    Record,
    /// Who belongs to a group? Reply: [`ClientReply::Membership`], by its leader.
    Membership {
        /// The group.
        group: u32,
    },
    /// Bring back what has lost its quorum; see [`crate::recovery`]. Reply: [`ClientReply::Recovery`].
    Recover {
        /// Members that will never come back; nobody: those that do not answer, and nothing is done.
        lost: Vec<NodeId>,
        /// Whether it is to be done, though acknowledged writes may be lost; otherwise the reply says
        /// what would be.
        accept_data_loss: bool,
    },
    /// As the best survivor: go on with these groups alone. Reply: [`ClientReply::Done`].
    GoOn {
        /// Of which [recovery](ClientRequest::Hold).
        operation: u128,
        /// Members that will never come back.
        lost: Vec<NodeId>,
        /// Group, the greatest term that any survivor knows, and what is to be the last entry here.
        groups: Vec<(u32, u64, MembershipId)>,
    },
    /// A recovery is under way: one at a time, and those that are given up in it are not heard any more. Reply:
    /// [`ClientReply::Done`].
    Hold {
        /// Its number, drawn at random.
        operation: u128,
        /// How far it is.
        stage: HoldStage,
        /// Members that will never come back.
        lost: Vec<NodeId>,
    },
    /// Hold the state of a group, which the transaction has [locked as a whole](dogsled_storage::pin); see
    /// [`crate::pin`]. Reply: [`ClientReply::Pinned`].
    Pin {
        /// The group.
        group: u32,
        /// How long to try; zero for the node's own.
        deadline: Duration,
        /// Under which it is locked, and will be held.
        under: TransactionId,
        /// How long it is held if nobody asks for it; at most [`MAX_LEASE`](crate::pin::MAX_LEASE).
        lease: Duration,
    },
    /// Read what is held. Reply: [`ClientReply::PinnedPage`].
    ReadPinned {
        /// Who holds it.
        node: NodeId,
        /// The group.
        group: u32,
        /// Under which it is held.
        under: TransactionId,
        /// What.
        read: PinnedRead,
    },
    /// What is held is still wanted, or is not any more. Reply: [`ClientReply::Done`].
    KeepPins {
        /// Who holds it.
        node: NodeId,
        /// Under which it is held.
        under: TransactionId,
        /// Whether it is wanted.
        keep: bool,
        /// Of which groups.
        groups: Vec<u32>,
    },
}

/// How far a recovery is; see [`ClientRequest::Hold`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HoldStage {
    /// It begins.
    Begin,
    /// The cluster's record gives them up: so do all, for ever, before any partition goes on without them.
    Keep,
    /// It has ended, or came to nothing.
    End,
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
    /// Whether only an administrator may ask for it: it changes the cluster, not what the cluster holds, or
    /// has a state of it held, for a backup.
    pub fn is_administrative(&self) -> bool {
        match self {
            // Whoever is limited by a quota must not lift it.
            ClientRequest::Submit { command, .. } => {
                OperationKind::peek(command) == Some(OperationKind::SetTreeQuota)
            }
            ClientRequest::Read { .. }
            | ClientRequest::Map
            | ClientRequest::Status
            | ClientRequest::Record
            | ClientRequest::Membership { .. }
            | ClientRequest::Watch { .. } => false,
            ClientRequest::Change { change, .. } => !change.is_for_applications(),
            ClientRequest::Initialize { .. }
            | ClientRequest::AddMember { .. }
            | ClientRequest::RemoveMember { .. }
            | ClientRequest::TransferLeader { .. }
            | ClientRequest::ChangeGroup { .. }
            | ClientRequest::Recover { .. }
            | ClientRequest::Hold { .. }
            | ClientRequest::GoOn { .. }
            // Few states are held at a time, and each keeps space from being used again: others' backups would find none left.
            | ClientRequest::Pin { .. }
            | ClientRequest::ReadPinned { .. }
            | ClientRequest::KeepPins { .. } => true,
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
                consistency.put(&mut bytes);
                bytes.extend_from_slice(read);
            }
            ClientRequest::Map => bytes.put_u8(3),
            ClientRequest::Status => bytes.put_u8(4),
            ClientRequest::Initialize { partitions, replicas, members } => {
                bytes.put_u8(5);
                bytes.put_u32(*partitions);
                bytes.put_u32(*replicas);
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
            ClientRequest::ChangeGroup { group, based_on, change } => {
                bytes.put_u8(9);
                bytes.put_u32(*group);
                based_on.put(&mut bytes);
                match change {
                    GroupChange::Begin { members } => {
                        bytes.put_u8(1);
                        put_nodes(&mut bytes, members);
                    }
                    GroupChange::Learners { nodes } => {
                        bytes.put_u8(2);
                        put_nodes(&mut bytes, nodes);
                    }
                    GroupChange::Voters { voters, keep } => {
                        bytes.put_u8(3);
                        bytes.put_u8(u8::from(*keep));
                        put_ids(&mut bytes, voters);
                    }
                    GroupChange::Remove { nodes } => {
                        bytes.put_u8(4);
                        put_ids(&mut bytes, nodes);
                    }
                    GroupChange::Settle => bytes.put_u8(5),
                }
            }
            ClientRequest::Watch { group, tree, prefix, told } => {
                bytes.put_u8(10);
                bytes.put_u32(*group);
                bytes.put_bytes(tree);
                bytes.put_bytes(prefix);
                bytes.put_u8(u8::from(told.is_some()));
                if let Some(told) = told {
                    told.put(&mut bytes);
                }
            }
            ClientRequest::Change { epoch, wait, change } => {
                bytes.put_u8(11);
                bytes.put_u64(*epoch);
                bytes.put_u8(u8::from(*wait));
                change.put(&mut bytes);
            }
            ClientRequest::Record => bytes.put_u8(12),
            ClientRequest::Membership { group } => {
                bytes.put_u8(13);
                bytes.put_u32(*group);
            }
            ClientRequest::Recover { lost, accept_data_loss } => {
                bytes.put_u8(15);
                bytes.put_u8(u8::from(*accept_data_loss));
                put_ids(&mut bytes, lost);
            }
            ClientRequest::Hold { operation, stage, lost } => {
                bytes.put_u8(17);
                bytes.put_u128(*operation);
                bytes.put_u8(match stage {
                    HoldStage::Begin => 0,
                    HoldStage::Keep => 1,
                    HoldStage::End => 2,
                });
                put_ids(&mut bytes, lost);
            }
            ClientRequest::Pin { group, deadline, under, lease } => {
                bytes.put_u8(18);
                bytes.put_u32(*group);
                put_duration(&mut bytes, *deadline);
                bytes.put_u128(under.0);
                put_duration(&mut bytes, *lease);
            }
            ClientRequest::ReadPinned { node, group, under, read } => {
                bytes.put_u8(19);
                bytes.put_u64(node.0);
                bytes.put_u32(*group);
                bytes.put_u128(under.0);
                read.put(&mut bytes);
            }
            ClientRequest::KeepPins { node, under, keep, groups } => {
                bytes.put_u8(20);
                bytes.put_u64(node.0);
                bytes.put_u128(under.0);
                bytes.put_u8(u8::from(*keep));
                bytes.put_u32(groups.len() as u32);
                groups.iter().for_each(|group| bytes.put_u32(*group));
            }
            ClientRequest::GoOn { operation, lost, groups } => {
                bytes.put_u8(16);
                bytes.put_u128(*operation);
                put_ids(&mut bytes, lost);
                bytes.put_u32(groups.len() as u32);
                for (group, term, last) in groups {
                    bytes.put_u32(*group);
                    bytes.put_u64(*term);
                    last.put(&mut bytes);
                }
            }
        }
        bytes.into()
    }

    /// Its bytes, from one who knows the map of an epoch: if there is a newer, the answer comes with it.
    /// See [`ClientReply::decode_with_map`].
    pub fn encode_knowing(&self, epoch: u64) -> Bytes {
        let request = self.encode();
        let mut bytes = Vec::with_capacity(10 + request.len());
        bytes.put_u8(PROTOCOL_VERSION);
        bytes.put_u8(KNOWING);
        bytes.put_u64(epoch);
        bytes.extend_from_slice(&request);
        bytes.into()
    }

    /// Takes off what [`ClientRequest::encode_knowing`] has put before a request: the epoch, if there is
    /// one, and the request.
    pub(crate) fn split_knowing(bytes: Bytes) -> Result<(Option<u64>, Bytes), Malformed> {
        if bytes.get(..2) != Some(&[PROTOCOL_VERSION, KNOWING]) {
            return Ok((None, bytes));
        }
        let mut take = Take::new(bytes);
        take.version(PROTOCOL_VERSION)?;
        take.u8()?;
        Ok((Some(take.u64()?), take.rest()))
    }

    /// About how many bytes the reply to an encoded request may have, as
    /// [`Service::long_reply`](crate::Service::long_reply) has to say it.
    pub(crate) fn long_reply(bytes: &Bytes) -> usize {
        let Ok((_, bytes)) = Self::split_knowing(bytes.clone()) else { return 0 };
        // Only reads are worth a closer look: they wait for the disk on another thread, and have pages for answers.
        if !matches!(bytes.get(1), Some(2 | 19)) {
            return 0;
        }
        match ClientRequest::decode(bytes) {
            Ok(ClientRequest::Read { read, .. }) => long_group_read_answer(&read) as usize,
            Ok(ClientRequest::ReadPinned { read, .. }) => {
                read.limit_bytes.clamp(1, crate::pin::MAX_PAGE_BYTES) as usize
            }
            _ => 0,
        }
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
                consistency: Consistency::take(&mut take)?,
                read: take.rest(),
            },
            3 => ClientRequest::Map,
            4 => ClientRequest::Status,
            5 => ClientRequest::Initialize {
                partitions: take.u32()?,
                replicas: take.u32()?,
                members: take_nodes(&mut take)?,
            },
            6 => {
                ClientRequest::AddMember { node: NodeId(take.u64()?), addresses: take_addresses(&mut take)? }
            }
            7 => ClientRequest::RemoveMember { node: NodeId(take.u64()?) },
            8 => ClientRequest::TransferLeader { group: take.u32()?, to: NodeId(take.u64()?) },
            9 => ClientRequest::ChangeGroup {
                group: take.u32()?,
                based_on: MembershipId::take(&mut take)?,
                change: match take.u8()? {
                    1 => GroupChange::Begin { members: take_nodes(&mut take)? },
                    2 => GroupChange::Learners { nodes: take_nodes(&mut take)? },
                    3 => GroupChange::Voters { keep: take.flag()?, voters: take_ids(&mut take)? },
                    4 => GroupChange::Remove { nodes: take_ids(&mut take)? },
                    5 => GroupChange::Settle,
                    other => return malformed(format!("a change of a group of the unknown kind {other}")),
                },
            },
            10 => ClientRequest::Watch {
                group: take.u32()?,
                tree: take.bytes()?,
                prefix: take.bytes()?,
                told: if take.flag()? { Some(Told::take(&mut take)?) } else { None },
            },
            11 => ClientRequest::Change {
                epoch: take.u64()?,
                wait: take.flag()?,
                change: Change::take(&mut take)?,
            },
            12 => ClientRequest::Record,
            13 => ClientRequest::Membership { group: take.u32()? },
            15 => ClientRequest::Recover { accept_data_loss: take.flag()?, lost: take_ids(&mut take)? },
            17 => ClientRequest::Hold {
                operation: take.u128()?,
                stage: match take.u8()? {
                    0 => HoldStage::Begin,
                    1 => HoldStage::Keep,
                    2 => HoldStage::End,
                    other => return malformed(format!("a recovery at the unknown stage {other}")),
                },
                lost: take_ids(&mut take)?,
            },
            16 => ClientRequest::GoOn {
                operation: take.u128()?,
                lost: take_ids(&mut take)?,
                groups: (0..take.count(36)?)
                    .map(|_| Ok((take.u32()?, take.u64()?, MembershipId::take(&mut take)?)))
                    .collect::<Result<_, Malformed>>()?,
            },
            18 => ClientRequest::Pin {
                group: take.u32()?,
                deadline: take_duration(&mut take)?,
                under: TransactionId(take.u128()?),
                lease: take_duration(&mut take)?,
            },
            19 => ClientRequest::ReadPinned {
                node: NodeId(take.u64()?),
                group: take.u32()?,
                under: TransactionId(take.u128()?),
                read: PinnedRead::take(&mut take)?,
            },
            20 => ClientRequest::KeepPins {
                node: NodeId(take.u64()?),
                under: TransactionId(take.u128()?),
                keep: take.flag()?,
                groups: (0..take.count(4)?).map(|_| take.u32()).collect::<Result<_, Malformed>>()?,
            },
            other => return malformed(format!("a request of the unknown kind {other}")),
        };
        take.end()?;
        Ok(request)
    }
}

#[cfg(test)]
mod tests;
