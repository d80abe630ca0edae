//! Arbitrary bytes in place of messages, and messages as a peer would send them: what fuzzing calls.

use std::fmt::Debug;

use bytes::Bytes;
use dogsled_storage::replica_snapshot::fuzz_chunk;
use dogsled_storage::{ChunkPosition, Command, TreeId, codec};
use openraft::raft::{AppendEntriesRequest, TransferLeaderRequest, VoteRequest};
use openraft::vote::RaftLeaderId;

use crate::client::{ClientReply, ClientRequest};
use crate::codec::{Malformed, Put, Take};
use crate::message::*;
use crate::node::Node;
use crate::stamp::stamp;
use crate::types::{
    Entry, LeaderId, LogId, Member, Membership, Payload, Proposal, Register, Vote, decode_entry, entry_body,
    entry_header,
};
use crate::watch::WatchEvent;

/// What `decode` makes of the bytes must be encoded to something that decodes to the same.
fn comes_back<T: PartialEq + Debug, E: Debug>(
    bytes: &Bytes,
    decode: impl Fn(Bytes) -> Result<T, E>,
    encode: impl Fn(&T) -> Bytes,
) {
    if let Ok(found) = decode(bytes.clone()) {
        assert_eq!(decode(encode(&found)).expect("just encoded"), found);
    }
}

/// The same of what cannot be compared: by its bytes.
fn bytes_come_back<T>(
    bytes: &Bytes,
    decode: impl Fn(Take) -> Result<T, Malformed>,
    encode: impl Fn(&T) -> Bytes,
    encoded_header: impl Fn(&mut Take),
) {
    if let Ok(found) = decode(Take::new(bytes.clone())) {
        let once = encode(&found);
        let mut take = Take::new(once.clone());
        encoded_header(&mut take);
        let again = decode(take).expect("just encoded");
        assert_eq!(encode(&again), once);
    }
}

/// Decodes the bytes as everything that comes from a peer or a client, or lies in the WAL beside the
/// commands; what decodes must come back when it is encoded.
///
/// # Panics
/// If a promise is broken.
pub fn check_messages(bytes: &[u8]) {
    let bytes = &Bytes::copy_from_slice(bytes);
    let header = |take: &mut Take| {
        Header::take(take).expect("just encoded");
    };
    let reply = |take: &mut Take| *take = take_reply(take.rest()).expect("just encoded");

    comes_back(bytes, ClientRequest::decode, ClientRequest::encode);
    comes_back(bytes, ClientReply::decode, ClientReply::encode);
    if let Ok((Some(map), reply)) = ClientReply::decode_with_map(bytes.clone()) {
        let again = ClientReply::encode_with_map(map.clone(), &reply.encode());
        assert_eq!(ClientReply::decode_with_map(again), Ok((Some(map), reply)));
    }
    comes_back(bytes, WatchEvent::decode, |events| WatchEvent::encode(events));
    comes_back(bytes, |bytes| Register::decode(bytes.to_vec()), |register| register.encode().into());
    comes_back(
        bytes,
        |bytes| decode_entry(7, bytes),
        |entry| [&entry_header(entry)[..], &entry_body(entry)].concat().into(),
    );
    comes_back(bytes, |bytes| ChunkPosition::decode(&bytes), |position| position.encode().into());
    if let Ok(stamped) = stamp(bytes, 1_000_000) {
        // What has a time can be given another.
        assert_eq!(stamp(&stamped, 1_000_000).as_ref(), Ok(&stamped));
    }
    fuzz_chunk(bytes);

    comes_back(bytes, |bytes| codec::decode_group_command(&bytes), encoded(codec::encode_group_command));
    comes_back(bytes, |bytes| codec::decode_group_reply(&bytes), encoded(codec::encode_group_reply));
    comes_back(bytes, |bytes| codec::decode_group_read(&bytes), encoded(codec::encode_group_read));
    comes_back(
        bytes,
        |bytes| codec::decode_group_read_reply(&bytes),
        encoded(codec::encode_group_read_reply),
    );

    // Requests and replies of peers: what follows their headers, which a fuzzer need not guess.
    for rest in [Some(bytes.clone()), after_header(bytes), after_reply(bytes)].into_iter().flatten() {
        let bytes = &rest;
        bytes_come_back(bytes, take_append, |request| encode_append(1, 2, request), header);
        bytes_come_back(
            bytes,
            take_append_reply,
            |(reply, is_low)| encode_append_reply(reply, *is_low),
            reply,
        );
        bytes_come_back(bytes, take_vote_request, |vote| encode_vote(Kind::Vote, 1, 2, vote), header);
        bytes_come_back(bytes, take_vote_reply, encode_vote_reply, reply);
        bytes_come_back(bytes, take_transfer, |transfer| encode_transfer(1, 2, transfer), header);
        bytes_come_back(bytes, take_join, |(node, addresses)| encode_join(*node, addresses), header);
        bytes_come_back(bytes, Adoption::take, encode_adopt, header);
        bytes_come_back(bytes, take_host, |host| encode_host(1, 2, host), header);
        let name = |mut take: Take| {
            let name = SnapshotName::take(&mut take)?;
            take.end()?;
            Ok(name)
        };
        bytes_come_back(bytes, name, |name| name.encode(Kind::SnapshotBegin, 1, 2, 0).into(), header);
    }
}

fn encoded<T>(encode: impl Fn(&T) -> dogsled_storage::Result<Vec<u8>>) -> impl Fn(&T) -> Bytes {
    move |value| encode(value).expect("it came from fewer bytes than the limit").into()
}

fn after_header(bytes: &Bytes) -> Option<Bytes> {
    let mut take = Take::new(bytes.clone());
    let header = Header::take(&mut take).ok()?;
    let again = Header::take(&mut Take::new(header.encode(0).into()));
    assert_eq!(again, Ok(header));
    Some(take.rest())
}

fn after_reply(bytes: &Bytes) -> Option<Bytes> {
    match take_reply(bytes.clone()) {
        Ok(mut take) => Some(take.rest()),
        Err(error) => {
            if let Err(again) = take_reply(encode_error(&error)) {
                assert_eq!(take_reply(encode_error(&again)).err(), Some(again));
            }
            None
        }
    }
}

/// The number of the cluster in a request's header, put there: a fuzzer cannot guess it.
pub fn set_cluster(request: &mut [u8], cluster: u128) {
    if let Some(place) = request.get_mut(2..10) {
        place.copy_from_slice(&(cluster as u64).to_le_bytes());
    }
}

/// Makes the checksum of the piece in a request, if it is one of a snapshot, match again.
pub fn seal_piece(request: &mut [u8]) {
    let mut take = Take::new(Bytes::copy_from_slice(request));
    let piece = || -> Result<Bytes, Malformed> {
        Header::take(&mut take)?;
        SnapshotName::take(&mut take)?;
        take.bytes()
    }();
    if let Ok(piece) = piece
        && let Some((checked, _)) = piece.split_last_chunk::<4>()
    {
        let end = request.len();
        request[end - 4..].copy_from_slice(&crc32fast::hash(checked).to_le_bytes());
    }
}

/// Every kind of request that a peer could send about a group: `donor`, which has gone on from the
/// last entry of `node`, is the one who leads now.
///
/// # Panics
/// If one of the nodes does not have the group.
pub fn peer_requests(node: &Node, donor: &Node, group: u32) -> Vec<Bytes> {
    let cluster = node.cluster().expect("it belongs to one") as u64;
    let status = |node: &Node| node.status().groups.swap_remove(group as usize);
    let (have, ahead) = (status(node), status(donor));
    let identity = |node: &Node, at: u64| node.entries(group, at, at).expect("a sound disk").pop();
    let log_id = |node: &Node, at: u64| {
        identity(node, at)
            .map(|entry| LogId::new(LeaderId::new(entry.term, entry.leader.0), entry.position - 1))
    };
    let (last, term) = (log_id(node, have.last), ahead.term + 5);
    let vote = Vote::new_committed(term, 2);
    let next = |step: u64, payload: Payload| Entry {
        log_id: LogId::new(LeaderId::new(term, 2), last.map_or(0, |last| last.index + 1) + step),
        payload,
    };
    let command = codec::encode_group_command(&dogsled_storage::group::GroupCommand {
        session: None,
        time_ms: 0,
        trees: vec!["tree".into()],
        operation: dogsled_storage::group::Operation::Command(Command::Insert {
            tree: TreeId(0),
            key: "key".into(),
            value: "value".into(),
        }),
    });
    let members = |ids: &[u64]| {
        let nodes: std::collections::BTreeMap<u64, Member> =
            ids.iter().map(|id| (*id, Member { addresses: vec![format!("node-{id}:1")] })).collect();
        Membership::new(vec![ids.iter().copied().collect()], nodes).expect("a membership")
    };
    let append = |entries: Vec<Entry>, leader_commit| {
        let request = AppendEntriesRequest { vote, prev_log_id: last, entries, leader_commit };
        encode_append(cluster, group, &request)
    };
    let put = Payload::Normal(Proposal(command.expect("within the limit").into()));
    let mut requests = vec![
        append(Vec::new(), last),
        append(vec![next(0, Payload::Blank), next(1, put.clone()), next(2, put)], last),
        append(vec![next(0, Payload::Membership(members(&[1]))), next(1, Payload::Blank)], last),
        append(vec![next(0, Payload::Membership(members(&[1, 2])))], last),
        append(vec![next(0, Payload::Blank)], Some(LogId::new(LeaderId::new(term, 2), have.last))),
    ];
    for (kind, leadership_transfer) in [(Kind::Vote, false), (Kind::Vote, true), (Kind::PreVote, false)] {
        let vote = Vote { committed: false, ..vote };
        let request = VoteRequest { vote, last_log_id: last, leadership_transfer };
        requests.push(encode_vote(kind, cluster, group, &request));
    }
    requests.push(encode_transfer(cluster, group, &TransferLeaderRequest::new(vote, 1, last)));
    requests.push(Header { kind: Kind::ReadIndex, cluster, group }.encode(0).into());

    let replica = donor.replica(group).expect("it is open");
    let snapshot = replica.snapshot();
    let applied = snapshot.applied();
    let name = SnapshotName { vote, position: applied.position, note: applied.note.clone().into() };
    requests.push(name.encode(Kind::SnapshotBegin, cluster, group, 0).into());
    let mut at = ChunkPosition::default();
    while !at.is_end() {
        let chunk = snapshot.chunk(&at, 2_000).expect("a sound disk");
        let mut request = name.encode(Kind::SnapshotPiece, cluster, group, 4 + chunk.bytes.len());
        request.put_bytes(&chunk.bytes);
        requests.push(request.into());
        at = chunk.next;
    }
    requests.push(name.encode(Kind::SnapshotFinish, cluster, group, 0).into());

    let read = ClientRequest::Map.encode();
    requests.push(encode_forward(cluster, "a client", &read));
    let adoption = Adoption {
        cluster_id: node.cluster().expect("checked above"),
        partitions: node.map().partitions,
        members: vec![(1, vec!["node-1:1".to_owned()]), (2, vec!["node-2:1".to_owned()])],
    };
    requests.push(encode_adopt(&adoption));
    requests.push(encode_join(2, &["node-2:1".to_owned()]));
    requests
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_no_message_breaks_a_decoder() {
        let mut random = 1u64;
        for round in 0..20_000usize {
            let mut bytes: Vec<u8> = (0..round % 200)
                .map(|_| {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Small numbers are what gets past the first checks.
                    let byte = (random >> 56) as u8;
                    if random >> 40 & 3 == 0 { byte } else { byte % 4 }
                })
                .collect();
            if let Some(first) = bytes.first_mut() {
                *first = 1;
            }
            check_messages(&bytes);
        }
    }
}
