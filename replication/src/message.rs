//! What nodes say to each other: requests and replies as bytes.
//!
//! A request of a peer is authenticated by the network (its certificate names it) and still
//! decoded as if it came from a stranger: see [`crate::codec`] for the rules.
//!
//! ```text
//! request    version u8 (1), kind u8, cluster u64, group u32, then by kind:
//!    1 append         vote, previous log id, committed log id, entries u32, each: length u32, bytes
//!    2 vote           vote, last log id, transfer of leadership u8
//!    3 would you vote the same
//!    4 take over      vote of the leader, to u64, last log id
//!    5 read index     nothing
//!    6 snapshot: where do you want it from
//!                     vote, snapshot
//!    7 snapshot: a piece
//!                     vote, snapshot, piece: length u32, bytes (which say where it belongs)
//!    8 snapshot: all is there, install it
//!                     vote, snapshot
//!    9 a client's request, passed on
//!                     name: length u32, UTF-8; the client's bytes to the end
//!   10 a cluster was made, you belong to it (cluster 0: it is in the body)
//!                     cluster id u128, partitions u32, members
//!                     answer: weight u32, zone: length u32, UTF-8
//!   11 which cluster are you, that I may join it (cluster 0)
//!                     node u64, addresses
//!   12 you are given a replica of this group
//!                     position u64: of the membership that says so far whose it is; anew u8: whether
//!                     that membership is without you, so that what you have of the group is to go
//!   13 you lack what you had acknowledged
//!                     vote of the leader, position u64: up to where
//!
//! reply      version u8 (1), 0 and the answer, or 1, kind u8, text to the end
//!            answers:
//!    1 append         0 all is there; 1 a part of it: log id; 2 conflict; 3 a higher vote: vote
//!    2, 3 vote        vote, last log id, granted u8
//!    5 read index     position u64
//!    6, 7 snapshot    the place that is wanted next: length u32, bytes
//!    8 snapshot       vote
//!    9 passed on      the client's reply to the end
//!   10 share          see there
//!    others           nothing
//!            kinds: 1 malformed, 2 another cluster, 3 no such group, 4 failed, 5 not the leader, 6 removed:
//!            before the text term u64, leader u64, epoch u64
//! snapshot   position u64, note: length u32, bytes
//! ```
//!
//! Log ids, votes, entries and addresses are those of [`crate::types`]. The cluster's number is the
//! lower half of its id: a node of another cluster that got in by a mistaken certificate must not
//! count as a voter of this one.

use std::cmp::Ordering;

use bytes::Bytes;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest, VoteResponse,
};

use crate::codec::{Malformed, Put, Take, malformed};
use crate::fence::Authority;
use crate::status::{put_ids, take_ids};
use crate::transport::NodeId;
use crate::types::{
    ENTRY_HEADER, Entry, LogId, TypeConfig, Vote, decode_entry, entry_body, entry_header, put_addresses,
    put_log_id, put_vote, take_addresses, take_log_id, take_vote,
};

pub(crate) const VERSION: u8 = 1;

/// Version, kind, cluster, group.
pub(crate) const HEADER: usize = 1 + 1 + 8 + 4;

/// Kinds of requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Append = 1,
    Vote = 2,
    PreVote = 3,
    TransferLeader = 4,
    ReadIndex = 5,
    SnapshotBegin = 6,
    SnapshotPiece = 7,
    SnapshotFinish = 8,
    Forward = 9,
    Adopt = 10,
    Join = 11,
    Host = 12,
    Forgotten = 13,
}

impl Kind {
    fn of(byte: u8) -> Result<Kind, Malformed> {
        use Kind::*;
        let all = [
            Append,
            Vote,
            PreVote,
            TransferLeader,
            ReadIndex,
            SnapshotBegin,
            SnapshotPiece,
            SnapshotFinish,
            Forward,
            Adopt,
            Join,
            Host,
            Forgotten,
        ];
        match all.into_iter().find(|kind| *kind as u8 == byte) {
            Some(kind) => Ok(kind),
            None => malformed(format!("a request of the unknown kind {byte}")),
        }
    }
}

/// What every request begins with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) cluster: u64,
    pub(crate) group: u32,
}

impl Header {
    pub(crate) fn take(take: &mut Take) -> Result<Header, Malformed> {
        take.version(VERSION)?;
        Ok(Header { kind: Kind::of(take.u8()?)?, cluster: take.u64()?, group: take.u32()? })
    }

    pub(crate) fn encode(&self, room: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER + room);
        bytes.put_u8(VERSION);
        bytes.put_u8(self.kind as u8);
        bytes.put_u64(self.cluster);
        bytes.put_u32(self.group);
        bytes
    }
}

pub(crate) fn encode_append(cluster: u64, group: u32, request: &AppendEntriesRequest<TypeConfig>) -> Bytes {
    let header = Header { kind: Kind::Append, cluster, group };
    let bodies: usize = request.entries.iter().map(|entry| 4 + ENTRY_HEADER + body_length(entry)).sum();
    let mut bytes = header.encode(80 + bodies);
    put_vote(&mut bytes, &request.vote);
    put_log_id(&mut bytes, request.prev_log_id.as_ref());
    put_log_id(&mut bytes, request.leader_commit.as_ref());
    bytes.put_u32(request.entries.len() as u32);
    for entry in &request.entries {
        let body = entry_body(entry);
        bytes.put_u32((ENTRY_HEADER + body.len()) as u32);
        bytes.extend_from_slice(&entry_header(entry));
        bytes.extend_from_slice(&body);
    }
    bytes.into()
}

fn body_length(entry: &Entry) -> usize {
    match &entry.payload {
        openraft::EntryPayload::Normal(proposal) => proposal.0.len(),
        _ => 0,
    }
}

pub(crate) fn take_append(mut take: Take) -> Result<AppendEntriesRequest<TypeConfig>, Malformed> {
    let vote = take_vote(&mut take)?;
    if !vote.committed {
        return malformed("entries of a node that was not elected");
    }
    let prev_log_id = take_log_id(&mut take)?;
    let leader_commit = take_log_id(&mut take)?;
    let count = take.count(4 + ENTRY_HEADER)?;
    let mut entries = Vec::with_capacity(count);
    let first = prev_log_id.as_ref().map_or(0, |previous| previous.index + 1);
    for index in (first..).take(count) {
        entries.push(decode_entry(index, take.bytes()?)?);
    }
    take.end()?;
    // What openraft asserts of a request, so that no peer can stop this node.
    let mut last = prev_log_id;
    for entry in &entries {
        if last.is_some_and(|last| last.leader_id > entry.log_id.leader_id) {
            return malformed("entries are not in the order of their leaders");
        }
        last = Some(entry.log_id);
    }
    if last.is_some_and(|last| last.leader_id > vote.leader_id) {
        return malformed("entries of a later leader than the one who sends them");
    }
    Ok(AppendEntriesRequest { vote, prev_log_id, entries, leader_commit })
}

/// Refuses entries that contradict what is committed here, of which openraft takes for granted that
/// all leaders have it.
pub(crate) fn check_append(
    request: &AppendEntriesRequest<TypeConfig>,
    committed: Option<LogId>,
) -> Result<(), Malformed> {
    let Some(committed) = committed else { return Ok(()) };
    let mut named = request.prev_log_id.iter().chain(request.entries.iter().map(|entry| &entry.log_id));
    let contradicts = |log_id: &&LogId| match log_id.index.cmp(&committed.index) {
        Ordering::Less => **log_id > committed,
        Ordering::Equal => **log_id != committed,
        Ordering::Greater => false,
    };
    match named.find(contradicts) {
        Some(log_id) => malformed(format!("entry {log_id} contradicts {committed}, which is committed")),
        None => Ok(()),
    }
}

/// `is_low`: whether the disk of whoever answers is nearly full; see [`crate::room`].
pub(crate) fn encode_append_reply(reply: &AppendEntriesResponse<TypeConfig>, is_low: bool) -> Bytes {
    let mut bytes = ok(32);
    bytes.put_u8(u8::from(is_low));
    match reply {
        AppendEntriesResponse::Success => bytes.put_u8(0),
        AppendEntriesResponse::PartialSuccess(log_id) => {
            bytes.put_u8(1);
            put_log_id(&mut bytes, log_id.as_ref());
        }
        AppendEntriesResponse::Conflict => bytes.put_u8(2),
        AppendEntriesResponse::HigherVote(vote) => {
            bytes.put_u8(3);
            put_vote(&mut bytes, vote);
        }
    }
    bytes.into()
}

pub(crate) fn take_append_reply(
    mut take: Take,
) -> Result<(AppendEntriesResponse<TypeConfig>, bool), Malformed> {
    let is_low = take.flag()?;
    let reply = match take.u8()? {
        0 => AppendEntriesResponse::Success,
        1 => AppendEntriesResponse::PartialSuccess(take_log_id(&mut take)?),
        2 => AppendEntriesResponse::Conflict,
        3 => AppendEntriesResponse::HigherVote(take_vote(&mut take)?),
        other => return malformed(format!("an answer of the unknown kind {other}")),
    };
    take.end()?;
    Ok((reply, is_low))
}

pub(crate) fn encode_vote(kind: Kind, cluster: u64, group: u32, request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut bytes = Header { kind, cluster, group }.encode(64);
    put_vote(&mut bytes, &request.vote);
    put_log_id(&mut bytes, request.last_log_id.as_ref());
    bytes.put_u8(u8::from(request.leadership_transfer));
    bytes.into()
}

pub(crate) fn take_vote_request(mut take: Take) -> Result<VoteRequest<TypeConfig>, Malformed> {
    let vote = take_vote(&mut take)?;
    let last_log_id = take_log_id(&mut take)?;
    let leadership_transfer = take.flag()?;
    take.end()?;
    Ok(VoteRequest { vote, last_log_id, leadership_transfer })
}

pub(crate) fn encode_vote_reply(reply: &VoteResponse<TypeConfig>) -> Bytes {
    let mut bytes = ok(64);
    put_vote(&mut bytes, &reply.vote);
    put_log_id(&mut bytes, reply.last_log_id.as_ref());
    bytes.put_u8(u8::from(reply.vote_granted));
    bytes.into()
}

pub(crate) fn take_vote_reply(mut take: Take) -> Result<VoteResponse<TypeConfig>, Malformed> {
    let vote = take_vote(&mut take)?;
    let last_log_id = take_log_id(&mut take)?;
    let vote_granted = take.flag()?;
    take.end()?;
    Ok(VoteResponse { vote, vote_granted, last_log_id })
}

pub(crate) fn encode_transfer(
    cluster: u64,
    group: u32,
    request: &TransferLeaderRequest<TypeConfig>,
) -> Bytes {
    let mut bytes = Header { kind: Kind::TransferLeader, cluster, group }.encode(64);
    put_vote(&mut bytes, request.from_leader());
    bytes.put_u64(*request.to_node_id());
    put_log_id(&mut bytes, request.last_log_id());
    bytes.into()
}

pub(crate) fn take_transfer(mut take: Take) -> Result<TransferLeaderRequest<TypeConfig>, Malformed> {
    let from = take_vote(&mut take)?;
    let to = take.u64()?;
    let last_log_id = take_log_id(&mut take)?;
    take.end()?;
    Ok(TransferLeaderRequest::new(from, to, last_log_id))
}

/// Which state a snapshot is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct SnapshotName {
    pub(crate) vote: Vote,
    pub(crate) position: u64,
    pub(crate) note: Bytes,
}

impl SnapshotName {
    pub(crate) fn encode(&self, kind: Kind, cluster: u64, group: u32, room: usize) -> Vec<u8> {
        let mut bytes = Header { kind, cluster, group }.encode(64 + self.note.len() + room);
        put_vote(&mut bytes, &self.vote);
        bytes.put_u64(self.position);
        bytes.put_bytes(&self.note);
        bytes
    }

    pub(crate) fn take(take: &mut Take) -> Result<SnapshotName, Malformed> {
        Ok(SnapshotName { vote: take_vote(take)?, position: take.u64()?, note: take.bytes()? })
    }
}

pub(crate) fn encode_forward(cluster: u64, client: &str, body: &[u8]) -> Bytes {
    let mut bytes = Header { kind: Kind::Forward, cluster, group: 0 }.encode(4 + client.len() + body.len());
    bytes.put_bytes(client.as_bytes());
    bytes.extend_from_slice(body);
    bytes.into()
}

/// A cluster as it was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Adoption {
    pub(crate) cluster_id: u128,
    pub(crate) partitions: u32,
    pub(crate) members: Vec<(u64, Vec<String>)>,
}

impl Adoption {
    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u128(self.cluster_id);
        bytes.put_u32(self.partitions);
        put_members(bytes, &self.members);
    }

    pub(crate) fn take(mut take: Take) -> Result<Adoption, Malformed> {
        let adoption =
            Adoption { cluster_id: take.u128()?, partitions: take.u32()?, members: take_members(&mut take)? };
        take.end()?;
        Ok(adoption)
    }
}

pub(crate) fn put_members(bytes: &mut Vec<u8>, members: &[(u64, Vec<String>)]) {
    bytes.put_u32(members.len() as u32);
    for (node, addresses) in members {
        bytes.put_u64(*node);
        put_addresses(bytes, addresses);
    }
}

pub(crate) fn take_members(take: &mut Take) -> Result<Vec<(u64, Vec<String>)>, Malformed> {
    (0..take.count(12)?).map(|_| Ok((take.u64()?, take_addresses(take)?))).collect()
}

pub(crate) fn encode_adopt(adoption: &Adoption) -> Bytes {
    let mut bytes = Header { kind: Kind::Adopt, cluster: 0, group: 0 }.encode(256);
    adoption.put(&mut bytes);
    bytes.into()
}

/// The answer to a request for a read index.
pub(crate) fn encode_position(position: u64) -> Bytes {
    let mut bytes = ok(8);
    bytes.put_u64(position);
    bytes.into()
}

pub(crate) fn take_position(take: &mut Take) -> Result<u64, Malformed> {
    let position = take.u64()?;
    take.end()?;
    Ok(position)
}

/// The answer to a request that was passed on: the client's, whatever it is.
pub(crate) fn encode_forwarded(reply: &[u8]) -> Bytes {
    let mut bytes = ok(reply.len());
    bytes.extend_from_slice(reply);
    bytes.into()
}

/// The answer to the end of a snapshot: the vote of whoever has installed it.
pub(crate) fn encode_installed(vote: &Vote) -> Bytes {
    let mut bytes = ok(32);
    put_vote(&mut bytes, vote);
    bytes.into()
}

/// The answer to an adoption: the share and the zone that the node was started with.
pub(crate) fn encode_share(weight: u32, zone: &str) -> Bytes {
    let mut bytes = ok(8 + zone.len());
    bytes.put_u32(weight);
    bytes.put_bytes(zone.as_bytes());
    bytes.into()
}

pub(crate) fn take_share(take: &mut Take) -> Result<(u32, String), Malformed> {
    let share = (take.u32()?, take.text()?);
    take.end()?;
    Ok(share)
}

pub(crate) fn encode_join(node: u64, addresses: &[String]) -> Bytes {
    let mut bytes = Header { kind: Kind::Join, cluster: 0, group: 0 }.encode(256);
    bytes.put_u64(node);
    put_addresses(&mut bytes, addresses);
    bytes.into()
}

pub(crate) fn take_join(mut take: Take) -> Result<(u64, Vec<String>), Malformed> {
    let join = (take.u64()?, take_addresses(&mut take)?);
    take.end()?;
    Ok(join)
}

/// A node is given a group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Host {
    /// Of the membership as of which it is.
    pub(crate) position: u64,
    /// That membership is committed, and the node does not belong to it.
    pub(crate) anew: bool,
    /// Whom the giver has given up for ever: the node must not hear them either, from before it has anything.
    pub(crate) given_up: Vec<NodeId>,
}

pub(crate) fn encode_host(cluster: u64, group: u32, host: &Host) -> Bytes {
    let mut bytes = Header { kind: Kind::Host, cluster, group }.encode(13 + host.given_up.len() * 8);
    bytes.put_u64(host.position);
    bytes.put_u8(u8::from(host.anew));
    put_ids(&mut bytes, &host.given_up);
    bytes.into()
}

pub(crate) fn take_host(mut take: Take) -> Result<Host, Malformed> {
    let host = Host { position: take.u64()?, anew: take.flag()?, given_up: take_ids(&mut take)? };
    take.end()?;
    Ok(host)
}

/// A follower lacks what it had acknowledged to this leader, up to a position; see [`crate::acknowledged`].
pub(crate) fn encode_forgotten(cluster: u64, group: u32, vote: &Vote, position: u64) -> Bytes {
    let mut bytes = Header { kind: Kind::Forgotten, cluster, group }.encode(32);
    put_vote(&mut bytes, vote);
    bytes.put_u64(position);
    bytes.into()
}

pub(crate) fn take_forgotten(mut take: Take) -> Result<(Vote, u64), Malformed> {
    let forgotten = (take_vote(&mut take)?, take.u64()?);
    take.end()?;
    Ok(forgotten)
}

/// Why a peer did not answer a request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum PeerError {
    /// It could not read the request.
    Malformed(String),
    /// It belongs to another cluster, or to none yet.
    WrongCluster(String),
    /// It has no such group, or the group is being opened.
    NoGroup(String),
    /// It failed at it.
    Failed(String),
    /// It does not lead.
    NotLeader(String),
    /// Whoever asks was taken out of the cluster; by what history, see [`crate::fence`].
    Removed(Authority, String),
}

impl std::fmt::Display for PeerError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PeerError::Malformed(what) => write!(f, "the peer could not read the request: {what}"),
            PeerError::WrongCluster(what)
            | PeerError::NoGroup(what)
            | PeerError::Failed(what)
            | PeerError::NotLeader(what)
            | PeerError::Removed(_, what) => f.write_str(what),
        }
    }
}

impl std::error::Error for PeerError {}

/// Whether who leads, or wants to, is who sends this: no node speaks for another, whatever its
/// certificate.
pub(crate) fn check_sender(from: NodeId, vote: &Vote) -> Result<(), PeerError> {
    let named = vote.leader_id.node_id;
    if named == from.0 {
        return Ok(());
    }
    Err(PeerError::Malformed(format!("node {from} speaks for node {named}")))
}

/// The beginning of an answer.
pub(crate) fn ok(room: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2 + room);
    bytes.put_u8(VERSION);
    bytes.put_u8(0);
    bytes
}

pub(crate) fn encode_error(error: &PeerError) -> Bytes {
    let (kind, text) = match error {
        PeerError::Malformed(text) => (1, text),
        PeerError::WrongCluster(text) => (2, text),
        PeerError::NoGroup(text) => (3, text),
        PeerError::Failed(text) => (4, text),
        PeerError::NotLeader(text) => (5, text),
        PeerError::Removed(_, text) => (6, text),
    };
    let mut bytes = vec![VERSION, 1, kind];
    if let PeerError::Removed(authority, _) = error {
        authority.put(&mut bytes);
    }
    bytes.extend_from_slice(text.as_bytes());
    bytes.into()
}

/// What follows the beginning of an answer, or the error that it is.
pub(crate) fn take_reply(bytes: Bytes) -> Result<Take, PeerError> {
    let mut take = Take::new(bytes);
    let unreadable = |error: Malformed| PeerError::Failed(format!("the peer's answer is malformed: {error}"));
    take.version(VERSION).map_err(unreadable)?;
    if !take.flag().map_err(unreadable)? {
        return Ok(take);
    }
    let kind = take.u8().map_err(unreadable)?;
    let authority =
        if kind == 6 { Authority::take(&mut take).map_err(unreadable)? } else { Authority::default() };
    let text = String::from_utf8_lossy(&take.rest()).into_owned();
    Err(match kind {
        1 => PeerError::Malformed(text),
        2 => PeerError::WrongCluster(text),
        3 => PeerError::NoGroup(text),
        5 => PeerError::NotLeader(text),
        6 => PeerError::Removed(authority, text),
        _ => PeerError::Failed(text),
    })
}

#[cfg(test)]
mod golden;

#[cfg(test)]
mod tests {
    use openraft::vote::RaftLeaderId;

    use super::*;
    use crate::types::{LeaderId, Payload, Proposal};

    fn log_id(term: u64, index: u64) -> LogId {
        LogId::new(LeaderId::new(term, 1), index)
    }

    fn append() -> AppendEntriesRequest<TypeConfig> {
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 1),
            prev_log_id: Some(log_id(2, 6)),
            leader_commit: Some(log_id(2, 5)),
            entries: vec![
                Entry {
                    log_id: log_id(2, 7),
                    payload: Payload::Normal(Proposal(Bytes::from_static(b"put"))),
                },
                Entry { log_id: log_id(3, 8), payload: Payload::Blank },
            ],
        }
    }

    fn body(bytes: &Bytes) -> Take {
        let mut take = Take::new(bytes.clone());
        Header::take(&mut take).unwrap();
        take
    }

    #[test]
    fn an_append_that_contradicts_what_is_committed_is_refused() {
        // It names entry 6 of term 2, 7 of term 2, 8 of term 3.
        for (term, index, sound) in [(2, 5, true), (2, 6, true), (2, 8, false), (3, 8, true), (1, 6, false)] {
            let checked = check_append(&append(), Some(log_id(term, index)));
            assert_eq!(checked.is_ok(), sound, "committed {index} of term {term}: {checked:?}");
        }
        assert_eq!(check_append(&append(), None), Ok(()));
    }

    #[test]
    fn giving_a_group_keeps_its_bytes() {
        let host = Host { position: 7, anew: true, given_up: vec![NodeId(3), NodeId(258)] };
        let bytes = encode_host(0x0102, 5, &host);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        let golden =
            "010c020100000000000005000000 0700000000000000 01 02000000 0300000000000000 0201000000000000";
        assert_eq!(hex, golden.replace(' ', ""));
        assert_eq!(take_host(body(&bytes)), Ok(host));
    }

    #[test]
    fn an_append_keeps_its_bytes() {
        let bytes = encode_append(0x0102, 5, &append());
        let golden = concat!(
            "01010201000000000000",
            "05000000",                                           // header
            "0203000000000000000100000000000000",                 // vote
            "01020000000000000001000000000000000600000000000000", // previous
            "01020000000000000001000000000000000500000000000000", // committed
            "02000000",
            "14000000",
            "01",
            "0200000000000000",
            "0100000000000000",
            "707574",
            "11000000",
            "00",
            "0300000000000000",
            "0100000000000000",
        );
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden);
        let header = Header::take(&mut Take::new(bytes.clone())).unwrap();
        assert_eq!(header, Header { kind: Kind::Append, cluster: 0x0102, group: 5 });
        let decoded = take_append(body(&bytes)).unwrap();
        assert_eq!(decoded.entries, append().entries);
        assert_eq!((decoded.vote, decoded.prev_log_id), (append().vote, append().prev_log_id));
        for cut in HEADER..bytes.len() {
            assert!(take_append(body(&bytes.slice(..cut))).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn an_append_that_would_break_the_log_is_refused() {
        let mut backwards = append();
        backwards.entries.swap(0, 1);
        assert!(take_append(body(&encode_append(1, 1, &backwards))).is_err());
        let mut early = append();
        early.vote = Vote::new_committed(2, 1);
        assert!(take_append(body(&encode_append(1, 1, &early))).is_err());
    }

    #[test]
    fn no_bytes_make_a_decoder_panic() {
        let bytes = encode_append(1, 1, &append());
        for position in 0..bytes.len() {
            for value in [0, 1, 2, 127, 255] {
                let mut changed = bytes.to_vec();
                changed[position] = value;
                let mut take = Take::new(changed.into());
                if Header::take(&mut take).is_ok() {
                    let _ = take_append(take.clone());
                    let _ = take_vote_request(take.clone());
                    let _ = take_transfer(take.clone());
                    let _ = SnapshotName::take(&mut take.clone());
                    let _ = Adoption::take(take.clone());
                    let _ = take_join(take);
                }
            }
        }
    }
}
