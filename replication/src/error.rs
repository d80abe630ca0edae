//! What can go wrong for a caller, grouped by what the caller can do.

use std::fmt;

use crate::codec::{Malformed, Put, Take, malformed};
use crate::transport::NodeId;
use crate::types::{put_addresses, take_addresses};

/// Why a request was not served.
///
/// Whether it happened all the same is never left to guess: only [`ClusterError::OutcomeUnknown`] may
/// have.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ClusterError {
    /// Nothing was done: another node leads the group. Ask it, or any node if none is named.
    NotLeader {
        /// The group that was asked.
        group: u32,
        /// Who leads it, as far as is known here.
        leader: Option<NodeId>,
        /// Where to reach it (`host:port`).
        addresses: Vec<String>,
    },
    /// Nothing was done: there is no quorum, or no leader yet, or the node is starting or stopping.
    /// Try again, here or elsewhere.
    Unavailable(String),
    /// Leadership or the connection was lost before the outcome was heard. It may have happened, or
    /// may still happen. Ask again with the same session and sequence number.
    OutcomeUnknown(String),
    /// Nothing was done, and nothing will be: the request cannot be carried out as it stands.
    Invalid(String),
    /// Nothing was done: this node's storage has failed. Ask another node.
    Storage(String),
    /// Nothing was done, and nothing will be: only an administrator may ask for this. Show an
    /// administrator's certificate.
    Denied(String),
    /// Nothing was done: the cluster was changed by somebody else since the caller looked at it. Look
    /// again, and ask again if it is still what is wanted.
    Conflict(String),
    /// Nothing was done: the disks of so many replicas of the group are nearly full that it takes no writes, only
    /// what removes something. It goes on by itself when there is space.
    NoSpace(String),
}

impl fmt::Display for ClusterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClusterError::NotLeader { group, leader: Some(leader), .. } => {
                write!(f, "group {group} is led by node {leader}")
            }
            ClusterError::NotLeader { group, leader: None, .. } => {
                write!(f, "no leader of group {group} is known; perhaps most of its replicas are down")
            }
            ClusterError::Unavailable(why) => write!(f, "try again: {why}"),
            ClusterError::OutcomeUnknown(why) => write!(f, "the outcome is unknown: {why}"),
            ClusterError::Invalid(what) => write!(f, "invalid request: {what}"),
            ClusterError::Storage(what) => write!(f, "the node's storage failed: {what}"),
            ClusterError::Denied(what) => write!(f, "not permitted: {what}"),
            ClusterError::Conflict(what) => write!(f, "conflict: {what}"),
            ClusterError::NoSpace(what) => write!(f, "no space for writes: {what}"),
        }
    }
}

impl std::error::Error for ClusterError {}

impl ClusterError {
    /// Whether it is certain that nothing was done and nothing will be.
    pub fn is_definite(&self) -> bool {
        !matches!(self, ClusterError::OutcomeUnknown(_))
    }

    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        let mut text = |kind: u8, text: &str| {
            bytes.put_u8(kind);
            bytes.put_bytes(text.as_bytes());
        };
        match self {
            ClusterError::NotLeader { group, leader, addresses } => {
                bytes.put_u8(1);
                bytes.put_u32(*group);
                match leader {
                    None => bytes.put_u8(0),
                    Some(leader) => {
                        bytes.put_u8(1);
                        bytes.put_u64(leader.0);
                    }
                }
                put_addresses(bytes, addresses);
            }
            ClusterError::Unavailable(why) => text(2, why),
            ClusterError::OutcomeUnknown(why) => text(3, why),
            ClusterError::Invalid(what) => text(4, what),
            ClusterError::Storage(what) => text(5, what),
            ClusterError::Denied(what) => text(6, what),
            ClusterError::Conflict(what) => text(7, what),
            ClusterError::NoSpace(what) => text(8, what),
        }
    }

    pub(crate) fn take(take: &mut Take) -> Result<ClusterError, Malformed> {
        Ok(match take.u8()? {
            1 => ClusterError::NotLeader {
                group: take.u32()?,
                leader: if take.flag()? { Some(NodeId(take.u64()?)) } else { None },
                addresses: take_addresses(take)?,
            },
            2 => ClusterError::Unavailable(take.text()?),
            3 => ClusterError::OutcomeUnknown(take.text()?),
            4 => ClusterError::Invalid(take.text()?),
            5 => ClusterError::Storage(take.text()?),
            6 => ClusterError::Denied(take.text()?),
            7 => ClusterError::Conflict(take.text()?),
            8 => ClusterError::NoSpace(take.text()?),
            other => return malformed(format!("an error of the unknown kind {other}")),
        })
    }
}
