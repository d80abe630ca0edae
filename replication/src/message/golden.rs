//! Golden bytes of every message between nodes, written down from the table in [`super`] and not from
//! what the encoders give.

use openraft::vote::RaftLeaderId;

use super::*;
use crate::types::LeaderId;

const CLUSTER: u64 = 0x0102;
const GROUP: u32 = 5;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn is(bytes: &[u8], golden: &str) {
    assert_eq!(hex(bytes), golden.replace([' ', '\n'], ""));
}

/// Takes the header off a request, which must be this.
#[track_caller]
fn body(bytes: &Bytes, kind: Kind, cluster: u64, group: u32) -> Take {
    let mut take = Take::new(bytes.clone());
    assert_eq!(Header::take(&mut take).unwrap(), Header { kind, cluster, group });
    take
}

fn log_id() -> LogId {
    LogId::new(LeaderId::new(3, 1), 9)
}

#[test]
fn requests_for_votes_keep_their_bytes() {
    let request =
        VoteRequest { vote: Vote::new(4, 2), last_log_id: Some(log_id()), leadership_transfer: true };
    let bytes = encode_vote(Kind::Vote, CLUSTER, GROUP, &request);
    is(
        &bytes,
        "01 02 0201000000000000 05000000 01 0400000000000000 0200000000000000
         01 0300000000000000 0100000000000000 0900000000000000 01",
    );
    assert_eq!(take_vote_request(body(&bytes, Kind::Vote, CLUSTER, GROUP)).unwrap(), request);
    let request = VoteRequest { vote: Vote::new(4, 2), last_log_id: None, leadership_transfer: false };
    let bytes = encode_vote(Kind::PreVote, CLUSTER, GROUP, &request);
    is(&bytes, "01 03 0201000000000000 05000000 01 0400000000000000 0200000000000000 00 00");
    assert_eq!(take_vote_request(body(&bytes, Kind::PreVote, CLUSTER, GROUP)).unwrap(), request);
    let request = TransferLeaderRequest::new(Vote::new_committed(4, 2), 3, Some(log_id()));
    let bytes = encode_transfer(CLUSTER, GROUP, &request);
    is(
        &bytes,
        "01 04 0201000000000000 05000000 02 0400000000000000 0200000000000000 0300000000000000
         01 0300000000000000 0100000000000000 0900000000000000",
    );
    assert_eq!(take_transfer(body(&bytes, Kind::TransferLeader, CLUSTER, GROUP)).unwrap(), request);
}

#[test]
fn requests_without_a_body_and_of_snapshots_keep_their_bytes() {
    let bytes = Header { kind: Kind::ReadIndex, cluster: CLUSTER, group: GROUP }.encode(0);
    is(&bytes, "01 05 0201000000000000 05000000");
    let name =
        SnapshotName { vote: Vote::new_committed(4, 2), position: 9, note: Bytes::from_static(b"note") };
    for (kind, code) in
        [(Kind::SnapshotBegin, "06"), (Kind::SnapshotPiece, "07"), (Kind::SnapshotFinish, "08")]
    {
        let bytes = Bytes::from(name.encode(kind, CLUSTER, GROUP, 0));
        let golden = format!(
            "01 {code} 0201000000000000 05000000 02 0400000000000000 0200000000000000
             0900000000000000 04000000 6e6f7465"
        );
        is(&bytes, &golden);
        assert_eq!(SnapshotName::take(&mut body(&bytes, kind, CLUSTER, GROUP)).unwrap(), name);
    }
}

#[test]
fn requests_about_the_cluster_keep_their_bytes() {
    let bytes = encode_forward(CLUSTER, "ann", b"body");
    is(&bytes, "01 09 0201000000000000 00000000 03000000 616e6e 626f6479");
    let mut take = body(&bytes, Kind::Forward, CLUSTER, 0);
    assert_eq!((take.text().unwrap(), &take.rest()[..]), ("ann".to_owned(), &b"body"[..]));

    let adoption = Adoption {
        cluster_id: 5 << 64,
        partitions: 16,
        members: vec![(1, vec!["a:1".to_owned()]), (2, Vec::new())],
    };
    let bytes = encode_adopt(&adoption);
    is(
        &bytes,
        "01 0a 0000000000000000 00000000 00000000000000000500000000000000 10000000 02000000
         0100000000000000 01000000 03000000 613a31 0200000000000000 00000000",
    );
    assert_eq!(Adoption::take(body(&bytes, Kind::Adopt, 0, 0)).unwrap(), adoption);

    let join = (4, vec!["d:4".to_owned(), "e:5".to_owned()]);
    let bytes = encode_join(join.0, &join.1);
    is(&bytes, "01 0b 0000000000000000 00000000 0400000000000000 02000000 03000000 643a34 03000000 653a35");
    assert_eq!(take_join(body(&bytes, Kind::Join, 0, 0)).unwrap(), join);

    let host = Host { position: 9, anew: true, given_up: vec![NodeId(4)] };
    let bytes = encode_host(CLUSTER, GROUP, &host);
    is(&bytes, "01 0c 0201000000000000 05000000 0900000000000000 01 01000000 0400000000000000");
    assert_eq!(take_host(body(&bytes, Kind::Host, CLUSTER, GROUP)).unwrap(), host);

    let bytes = encode_forgotten(CLUSTER, GROUP, &Vote::new_committed(4, 2), 9);
    is(&bytes, "01 0d 0201000000000000 05000000 02 0400000000000000 0200000000000000 0900000000000000");
    let forgotten = take_forgotten(body(&bytes, Kind::Forgotten, CLUSTER, GROUP)).unwrap();
    assert_eq!(forgotten, (Vote::new_committed(4, 2), 9));
}

#[test]
fn replies_keep_their_bytes() {
    use AppendEntriesResponse::{Conflict, HigherVote, PartialSuccess, Success};
    for (reply, golden) in [
        (Success, "00"),
        (PartialSuccess(Some(log_id())), "01 01 0300000000000000 0100000000000000 0900000000000000"),
        (PartialSuccess(None), "01 00"),
        (Conflict, "02"),
        (HigherVote(Vote::new(9, 2)), "03 01 0900000000000000 0200000000000000"),
    ] {
        for (is_low, low) in [(false, "00"), (true, "01")] {
            let bytes = encode_append_reply(&reply, is_low);
            is(&bytes, &format!("01 00 {low} {golden}"));
            assert_eq!(take_append_reply(take_reply(bytes).unwrap()).unwrap(), (reply.clone(), is_low));
        }
    }
    for (last_log_id, granted, rest) in [
        (Some(log_id()), true, "01 0300000000000000 0100000000000000 0900000000000000 01"),
        (None, false, "00 00"),
    ] {
        let reply = VoteResponse { vote: Vote::new(4, 2), vote_granted: granted, last_log_id };
        let bytes = encode_vote_reply(&reply);
        is(&bytes, &format!("01 00 01 0400000000000000 0200000000000000 {rest}"));
        assert_eq!(take_vote_reply(take_reply(bytes).unwrap()).unwrap(), reply);
    }
    let bytes = encode_position(258);
    is(&bytes, "01 00 0201000000000000");
    assert_eq!(take_position(&mut take_reply(bytes).unwrap()), Ok(258));
    let bytes = encode_forwarded(b"reply");
    is(&bytes, "01 00 7265706c79");
    assert_eq!(&take_reply(bytes).unwrap().rest()[..], b"reply");
    let bytes = encode_installed(&Vote::new_committed(4, 2));
    is(&bytes, "01 00 02 0400000000000000 0200000000000000");
    assert_eq!(take_vote(&mut take_reply(bytes).unwrap()), Ok(Vote::new_committed(4, 2)));
    let bytes = encode_share(100, "z");
    is(&bytes, "01 00 64000000 01000000 7a");
    assert_eq!(take_share(&mut take_reply(bytes).unwrap()), Ok((100, "z".to_owned())));
    is(&ok(0), "01 00");
}

#[test]
fn refusals_keep_their_bytes() {
    let why = || "why".to_owned();
    let authority = Authority { term: 3, leader: 2, epoch: 258 };
    for (error, golden) in [
        (PeerError::Malformed(why()), "01 01 01 776879"),
        (PeerError::WrongCluster(why()), "01 01 02 776879"),
        (PeerError::NoGroup(why()), "01 01 03 776879"),
        (PeerError::Failed(why()), "01 01 04 776879"),
        (PeerError::NotLeader(why()), "01 01 05 776879"),
        (
            PeerError::Removed(authority, why()),
            "01 01 06 0300000000000000 0200000000000000 0201000000000000 776879",
        ),
    ] {
        let bytes = encode_error(&error);
        is(&bytes, golden);
        assert_eq!(take_reply(bytes).unwrap_err(), error);
    }
}
