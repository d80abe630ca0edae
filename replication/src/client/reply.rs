//! [`ClientReply`]: what a client is answered. The layout of all messages is at [`super`].

use std::time::Duration;

use bytes::Bytes;

use super::{ClusterMap, NEWER_MAP, PROTOCOL_VERSION};
use crate::codec::{Malformed, Put, Take, malformed};
use crate::error::ClusterError;
use crate::meta::Record;
use crate::pin::{PinnedPage, PinnedState};
use crate::recovery::Recovery;
use crate::status::{NodeStatus, put_ids, take_ids};
use crate::transport::NodeId;

/// An answer to a client; see the [module](super).
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
        /// `None` if never, or if it is level. Of one that may be so old: how long ago it was confirmed.
        age: Option<Duration>,
        /// A [`GroupReadReply`](dogsled_storage::group::GroupReadReply), encoded.
        reply: Bytes,
    },
    /// Where everything is.
    Map(ClusterMap),
    /// How the node is.
    Status(Box<NodeStatus>),
    /// What is wanted of the cluster.
    Record(Box<Record>),
    /// Who belongs to a group.
    Membership {
        /// The place in the group's log of what says so.
        position: u64,
        /// Those that vote, and those that do not.
        nodes: Vec<NodeId>,
    },
    /// What was recovered, or would be.
    Recovery(Box<Recovery>),
    /// A group's state is held.
    Pinned(PinnedState),
    /// What was read of it.
    PinnedPage(PinnedPage),
    /// It was not done, or that is not known.
    Error(ClusterError),
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
                map.put(&mut bytes);
            }
            ClientReply::Status(status) => {
                bytes.put_u8(4);
                status.put(&mut bytes);
            }
            ClientReply::Error(error) => {
                bytes.put_u8(5);
                error.put(&mut bytes);
            }
            ClientReply::Record(record) => {
                bytes.put_u8(8);
                bytes.extend_from_slice(&record.encode());
            }
            ClientReply::Membership { position, nodes } => {
                bytes.put_u8(9);
                bytes.put_u64(*position);
                put_ids(&mut bytes, nodes);
            }
            ClientReply::Recovery(recovery) => {
                bytes.put_u8(10);
                recovery.put(&mut bytes);
            }
            ClientReply::Pinned(pinned) => {
                bytes.put_u8(11);
                pinned.put(&mut bytes);
            }
            ClientReply::PinnedPage(page) => {
                bytes.put_u8(12);
                page.put(&mut bytes);
            }
        }
        bytes.into()
    }

    /// A reply's bytes, with the map that whoever asked does not know yet.
    pub(crate) fn encode_with_map(map: ClusterMap, reply: &[u8]) -> Bytes {
        let map = ClientReply::Map(map).encode();
        let mut bytes = Vec::with_capacity(6 + map.len() + reply.len());
        bytes.put_u8(PROTOCOL_VERSION);
        bytes.put_u8(NEWER_MAP);
        bytes.put_bytes(&map);
        bytes.extend_from_slice(reply);
        bytes.into()
    }

    /// The reply to a request that was [`encode_knowing`](super::ClientRequest::encode_knowing), and the newer
    /// map, if there is one.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn decode_with_map(bytes: Bytes) -> Result<(Option<ClusterMap>, ClientReply), Malformed> {
        if bytes.get(..2) != Some(&[PROTOCOL_VERSION, NEWER_MAP]) {
            return Ok((None, ClientReply::decode(bytes)?));
        }
        let mut take = Take::new(bytes);
        take.version(PROTOCOL_VERSION)?;
        take.u8()?;
        match ClientReply::decode(take.bytes()?)? {
            ClientReply::Map(map) => Ok((Some(map), ClientReply::decode(take.rest())?)),
            _ => malformed("what stands for a map is none"),
        }
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
            3 => ClientReply::Map(ClusterMap::take(&mut take)?),
            4 => ClientReply::Status(Box::new(NodeStatus::take(&mut take)?)),
            5 => ClientReply::Error(ClusterError::take(&mut take)?),
            8 => ClientReply::Record(Box::new(Record::decode(take.rest())?)),
            9 => ClientReply::Membership { position: take.u64()?, nodes: take_ids(&mut take)? },
            10 => ClientReply::Recovery(Box::new(Recovery::take(&mut take)?)),
            11 => ClientReply::Pinned(PinnedState::take(&mut take)?),
            12 => ClientReply::PinnedPage(PinnedPage::take(&mut take)?),
            other => return malformed(format!("a reply of the unknown kind {other}")),
        };
        take.end()?;
        Ok(reply)
    }
}
