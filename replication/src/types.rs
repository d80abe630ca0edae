//! The types that openraft is told to use, and their bytes.
//!
//! # Log ids
//!
//! The *leader id* of an entry is the term and the node that led in it (openraft's "advanced"
//! mode: two nodes may win elections of one term one after the other, the greater id wins), so
//! a split vote costs no second round.
//!
//! openraft counts entries from 0. The WAL's index of an entry, the position at which the state
//! machine applies it and the version that it gives to keys are all one more ([`position`]): 0 is
//! "before everything" in each of them.
//!
//! # Bytes of an entry, in the WAL and on the wire
//!
//! ```text
//! kind   u8    0 blank, 1 command, 2 membership
//! term   u64
//! node   u64   that led in this term
//! body         nothing; a command as storage encodes it; a membership
//!
//! membership:  configs u32, each: voters u32, each: node u64
//!              nodes u32, each: node u64, addresses u32, each: length u32, UTF-8
//! ```
//!
//! # Bytes of a stream's register
//!
//! ```text
//! version    u8    2
//! vote       u8    0 none, 1 not granted, 2 granted by a quorum; then term u64, node u64
//! committed  u8    0 none, 1; then term u64, node u64, index u64
//! purged     u8    the same
//! hosting    u8    0 no, 1 yes, 2 it is being dropped; see crate::node::hosting
//! hosted     u64   no vote is granted before the log reaches this position
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::Bytes;
use dogsled_storage::IVec;
use openraft::storage::RaftStateMachine;
use openraft::vote::RaftLeaderId;

use crate::codec::{Malformed, Put, Take, malformed};
use crate::state_machine::AppliedReply;

/// What openraft works with.
#[derive(Debug, Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd)]
pub(crate) struct TypeConfig;

impl openraft::RaftTypeConfig for TypeConfig {
    type D = Proposal;
    type R = AppliedReply;
    type NodeId = u64;
    type Node = Member;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = crate::runtime::Runtime;
    type Responder<T>
        = Responder<T>
    where
        T: openraft::OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: openraft::OptionalSend + 'static;
    type ErrorSource = openraft::AnyError;
}

pub(crate) type LeaderId = openraft::impls::leader_id_adv::LeaderId<u64, u64>;
pub(crate) type LogId = openraft::LogId<LeaderId>;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type Payload = openraft::EntryPayload<Proposal, u64, Member>;
pub(crate) type Entry = openraft::Entry<LeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<u64, Member>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderId, u64, Member>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<LeaderId, u64, Member>;
pub(crate) type SnapshotOf<M> =
    openraft::Snapshot<LeaderId, u64, Member, <M as RaftStateMachine<TypeConfig>>::SnapshotData>;

/// The position at which the state machine applies the entry of an index.
pub(crate) fn position(index: u64) -> u64 {
    index + 1
}

/// A command as storage encodes it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proposal(pub(crate) Bytes);

impl fmt::Debug for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// What a group knows of one of its members beside its id.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    /// `host:port`, tried in order.
    pub(crate) addresses: Vec<String>,
}

/// Tells a caller the outcome; a caller that has gone away is no matter.
pub(crate) struct Responder<T> {
    pub(crate) sender: tokio::sync::oneshot::Sender<T>,
    /// With the responder of a batch's last entry.
    pub(crate) last: Option<crate::metrics::Handed>,
}

impl<T: openraft::OptionalSend + 'static> openraft::raft::responder::Responder<TypeConfig, T>
    for Responder<T>
{
    fn on_complete(self, result: T) {
        let _ = self.sender.send(result);
        if let Some(batch) = self.last {
            batch.answered();
        }
    }
}

const BLANK: u8 = 0;
const COMMAND: u8 = 1;
const MEMBERSHIP: u8 = 2;

/// Bytes before an entry's body.
pub(crate) const ENTRY_HEADER: usize = 17;

pub(crate) fn entry_header(entry: &Entry) -> [u8; ENTRY_HEADER] {
    let mut header = [0; ENTRY_HEADER];
    header[0] = match entry.payload {
        Payload::Blank => BLANK,
        Payload::Normal(_) => COMMAND,
        Payload::Membership(_) => MEMBERSHIP,
    };
    header[1..9].copy_from_slice(&entry.log_id.leader_id.term.to_le_bytes());
    header[9..].copy_from_slice(&entry.log_id.leader_id.node_id.to_le_bytes());
    header
}

/// What follows the header.
pub(crate) fn entry_body(entry: &Entry) -> Bytes {
    match &entry.payload {
        Payload::Blank => Bytes::new(),
        Payload::Normal(Proposal(bytes)) => bytes.clone(),
        Payload::Membership(membership) => {
            let mut bytes = Vec::new();
            put_membership(&mut bytes, membership);
            bytes.into()
        }
    }
}

/// The entry of a place in the log.
pub(crate) fn decode_entry(index: u64, bytes: Bytes) -> Result<Entry, Malformed> {
    let mut take = Take::new(bytes);
    let kind = take.u8()?;
    let leader_id = take_leader_id(&mut take)?;
    let payload = match kind {
        BLANK => Payload::Blank,
        COMMAND => Payload::Normal(Proposal(take.rest())),
        MEMBERSHIP => Payload::Membership(take_membership(&mut take)?),
        other => return malformed(format!("an entry of the unknown kind {other}")),
    };
    take.end()?;
    Ok(Entry { log_id: LogId::new(leader_id, index), payload })
}

/// Shares the memory of an entry read from the WAL.
pub(crate) fn shared_bytes(bytes: IVec) -> Bytes {
    Bytes::from_owner(bytes)
}

/// About what an entry takes in memory.
pub(crate) fn entry_memory(entry: &Entry) -> usize {
    let body = match &entry.payload {
        Payload::Blank => 0,
        Payload::Normal(Proposal(bytes)) => bytes.len(),
        Payload::Membership(membership) => 256 * membership.nodes().count(),
    };
    body + size_of::<Entry>()
}

pub(crate) fn put_leader_id(bytes: &mut Vec<u8>, id: &LeaderId) {
    bytes.put_u64(id.term);
    bytes.put_u64(id.node_id);
}

pub(crate) fn take_leader_id(take: &mut Take) -> Result<LeaderId, Malformed> {
    Ok(LeaderId::new(take.u64()?, take.u64()?))
}

pub(crate) fn put_log_id(bytes: &mut Vec<u8>, id: Option<&LogId>) {
    match id {
        None => bytes.put_u8(0),
        Some(id) => {
            bytes.put_u8(1);
            put_leader_id(bytes, &id.leader_id);
            bytes.put_u64(id.index);
        }
    }
}

pub(crate) fn take_log_id(take: &mut Take) -> Result<Option<LogId>, Malformed> {
    if !take.flag()? {
        return Ok(None);
    }
    let leader_id = take_leader_id(take)?;
    let index = take.u64()?;
    // Positions are one more, and the WAL leaves the last one unused.
    if index >= u64::MAX - 2 {
        return malformed(format!("index {index} is beyond every log"));
    }
    Ok(Some(LogId::new(leader_id, index)))
}

pub(crate) fn put_vote(bytes: &mut Vec<u8>, vote: &Vote) {
    bytes.put_u8(1 + u8::from(vote.committed));
    put_leader_id(bytes, &vote.leader_id);
}

pub(crate) fn take_vote(take: &mut Take) -> Result<Vote, Malformed> {
    match take_optional_vote(take)? {
        Some(vote) => Ok(vote),
        None => malformed("a vote is missing"),
    }
}

fn take_optional_vote(take: &mut Take) -> Result<Option<Vote>, Malformed> {
    let committed = match take.u8()? {
        0 => return Ok(None),
        1 => false,
        2 => true,
        other => return malformed(format!("a vote of the unknown kind {other}")),
    };
    let leader_id = take_leader_id(take)?;
    Ok(Some(Vote { leader_id, committed }))
}

pub(crate) fn put_membership(bytes: &mut Vec<u8>, membership: &Membership) {
    let configs = membership.get_joint_config();
    bytes.put_u32(configs.len() as u32);
    for config in configs {
        bytes.put_u32(config.len() as u32);
        for voter in config {
            bytes.put_u64(*voter);
        }
    }
    bytes.put_u32(membership.nodes().count() as u32);
    for (node, member) in membership.nodes() {
        bytes.put_u64(*node);
        put_addresses(bytes, &member.addresses);
    }
}

pub(crate) fn take_membership(take: &mut Take) -> Result<Membership, Malformed> {
    let mut configs = Vec::new();
    for _ in 0..take.count(4)? {
        let voters = (0..take.count(8)?).map(|_| take.u64()).collect::<Result<BTreeSet<u64>, _>>()?;
        configs.push(voters);
    }
    let mut nodes = BTreeMap::new();
    for _ in 0..take.count(12)? {
        let node = take.u64()?;
        nodes.insert(node, Member { addresses: take_addresses(take)? });
    }
    Membership::new(configs, nodes).or_else(|error| malformed(format!("not a membership: {error}")))
}

pub(crate) fn put_addresses(bytes: &mut Vec<u8>, addresses: &[String]) {
    bytes.put_u32(addresses.len() as u32);
    for address in addresses {
        bytes.put_bytes(address.as_bytes());
    }
}

pub(crate) fn take_addresses(take: &mut Take) -> Result<Vec<String>, Malformed> {
    (0..take.count(4)?).map(|_| take.text()).collect()
}

/// What a group keeps in its stream's register.
#[derive(Clone, Default, PartialEq, Debug)]
pub(crate) struct Register {
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: Option<LogId>,
    pub(crate) purged: Option<LogId>,
    pub(crate) hosting: Hosting,
    /// See [`crate::node::hosting`].
    pub(crate) hosted: u64,
}

/// Whether a node has a replica of a group. Of group 0 every node has one.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) enum Hosting {
    /// It has none; if it had one, that is gone.
    #[default]
    No,
    /// It has.
    Yes,
    /// What it had is to be removed: whatever is left of it is not to be used.
    Dropping,
}

const REGISTER_VERSION: u8 = 2;

impl Register {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(96);
        bytes.put_u8(REGISTER_VERSION);
        match &self.vote {
            None => bytes.put_u8(0),
            Some(vote) => put_vote(&mut bytes, vote),
        }
        put_log_id(&mut bytes, self.committed.as_ref());
        put_log_id(&mut bytes, self.purged.as_ref());
        bytes.put_u8(self.hosting as u8);
        bytes.put_u64(self.hosted);
        bytes
    }

    pub(crate) fn decode(bytes: Vec<u8>) -> Result<Register, Malformed> {
        let mut take = Take::new(bytes.into());
        take.version(REGISTER_VERSION)?;
        let vote = take_optional_vote(&mut take)?;
        let committed = take_log_id(&mut take)?;
        let purged = take_log_id(&mut take)?;
        let hosting = match take.u8()? {
            0 => Hosting::No,
            1 => Hosting::Yes,
            2 => Hosting::Dropping,
            other => return malformed(format!("{other} does not say whether a group is hosted")),
        };
        let hosted = take.u64()?;
        take.end()?;
        Ok(Register { vote, committed, purged, hosting, hosted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log_id(term: u64, node: u64, index: u64) -> LogId {
        LogId::new(LeaderId::new(term, node), index)
    }

    #[test]
    fn entries_keep_their_bytes() {
        let member = |address: &str| Member { addresses: vec![address.to_owned()] };
        let nodes = BTreeMap::from([(1, member("a:1")), (2, member("b:2")), (3, Member::default())]);
        let configs = vec![BTreeSet::from([1, 2]), BTreeSet::from([2])];
        let membership = Membership::new(configs, nodes).unwrap();
        let payloads = [
            (Payload::Blank, "00 0700000000000000 0200000000000000"),
            (
                Payload::Normal(Proposal(Bytes::from_static(b"command"))),
                "01 0700000000000000 0200000000000000 636f6d6d616e64",
            ),
            (
                Payload::Membership(membership),
                "02 0700000000000000 0200000000000000 \
                 02000000 02000000 0100000000000000 0200000000000000 01000000 0200000000000000 \
                 03000000 0100000000000000 01000000 03000000 613a31 \
                 0200000000000000 01000000 03000000 623a32 0300000000000000 00000000",
            ),
        ];
        for (payload, golden) in payloads {
            let entry = Entry { log_id: log_id(7, 2, 41), payload };
            let bytes = [&entry_header(&entry)[..], &entry_body(&entry)].concat();
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            assert_eq!(hex, golden.replace(' ', ""));
            assert_eq!(decode_entry(41, bytes.clone().into()).unwrap(), entry);
            for cut in 0..ENTRY_HEADER.min(bytes.len()) {
                assert!(decode_entry(41, Bytes::copy_from_slice(&bytes[..cut])).is_err());
            }
        }
    }

    #[test]
    fn a_register_keeps_its_bytes() {
        let register = Register {
            vote: Some(Vote::new_committed(3, 1)),
            committed: Some(log_id(2, 1, 5)),
            purged: None,
            hosting: Hosting::Yes,
            hosted: 9,
        };
        let bytes = register.encode();
        let golden = [
            &[2u8, 2][..],
            &3u64.to_le_bytes(),
            &1u64.to_le_bytes(),
            &[1],
            &2u64.to_le_bytes(),
            &1u64.to_le_bytes(),
            &5u64.to_le_bytes(),
            &[0, 1],
            &9u64.to_le_bytes(),
        ]
        .concat();
        assert_eq!(bytes, golden);
        assert_eq!(Register::decode(bytes), Ok(register));
        assert_eq!(Register::decode(Register::default().encode()), Ok(Register::default()));
        assert!(Register::decode(vec![3]).is_err());
    }
}
