//! Golden bytes of the client protocol.

use dogsled_storage::pin::{PinnedEntry, PinnedPart};

use std::collections::BTreeMap;

use dogsled_storage::IVec;

use super::*;
use crate::error::ClusterError;
use crate::pin::{PinnedPage, PinnedState};
use crate::recovery::{GroupRecovery, Recovery};
use crate::ring::TreeHash;
use crate::status::{FollowerStatus, GroupStatus, NodeStatus, Role};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn requests_keep_their_bytes() {
    let members = vec![(NodeId(1), vec!["a:1".to_owned()]), (NodeId(2), Vec::new())];
    let based_on = MembershipId { term: 1, leader: 2, position: 3 };
    let cases = [
        (
            ClientRequest::Submit {
                group: 3,
                deadline: Duration::from_millis(500),
                command: Bytes::from_static(b"cmd"),
            },
            "010103000000f4010000636d64",
        ),
        (
            ClientRequest::Read {
                group: 3,
                deadline: Duration::ZERO,
                consistency: Consistency::Stale,
                read: Bytes::from_static(b"r"),
            },
            "010203000000000000000172",
        ),
        (
            ClientRequest::Read {
                group: 3,
                deadline: Duration::ZERO,
                consistency: Consistency::AtMostOld(Duration::from_secs(1)),
                read: Bytes::from_static(b"r"),
            },
            "01020300000000000000 02 e8030000 72",
        ),
        (ClientRequest::Map, "0103"),
        (ClientRequest::Status, "0104"),
        (
            ClientRequest::Initialize { partitions: 16, replicas: 3, members },
            "0105100000000300000002000000010000000000000001000000030000\
             00613a31020000000000000000000000",
        ),
        (
            ClientRequest::AddMember { node: NodeId(4), addresses: vec!["d:4".to_owned()] },
            "010604000000000000000100000003000000643a34",
        ),
        (ClientRequest::RemoveMember { node: NodeId(4) }, "01070400000000000000"),
        (ClientRequest::TransferLeader { group: 2, to: NodeId(4) }, "0108020000000400000000000000"),
        (
            ClientRequest::ChangeGroup {
                group: 2,
                based_on,
                change: GroupChange::Learners { nodes: vec![(NodeId(4), vec!["d:4".to_owned()])] },
            },
            "010902000000 0100000000000000 0200000000000000 0300000000000000 02 01000000 0400000000000000 \
             01000000 03000000 643a34",
        ),
        (
            ClientRequest::ChangeGroup {
                group: 2,
                based_on,
                change: GroupChange::Voters { voters: vec![NodeId(4)], keep: true },
            },
            "010902000000 0100000000000000 0200000000000000 0300000000000000 03 01 01000000 0400000000000000",
        ),
        (
            ClientRequest::ChangeGroup {
                group: 2,
                based_on,
                change: GroupChange::Begin { members: vec![(NodeId(4), vec!["d:4".to_owned()])] },
            },
            "010902000000 0100000000000000 0200000000000000 0300000000000000 01 01000000 0400000000000000 \
             01000000 03000000 643a34",
        ),
        (
            ClientRequest::ChangeGroup {
                group: 2,
                based_on,
                change: GroupChange::Remove { nodes: vec![NodeId(4), NodeId(5)] },
            },
            "010902000000 0100000000000000 0200000000000000 0300000000000000 04 02000000 0400000000000000 \
             0500000000000000",
        ),
        (
            ClientRequest::ChangeGroup { group: 2, based_on, change: GroupChange::Settle },
            "010902000000 0100000000000000 0200000000000000 0300000000000000 05",
        ),
        (
            ClientRequest::Change {
                epoch: 7,
                wait: true,
                change: Change::Drain { node: NodeId(4), on: true },
            },
            "010b 0700000000000000 01 03 0400000000000000 01",
        ),
        (
            ClientRequest::Change {
                epoch: 0,
                wait: true,
                change: Change::HashTree {
                    tree: "chat".into(),
                    hash: TreeHash::Before { delimiter: b'/', occurrence: 2 },
                },
            },
            "010b 0000000000000000 01 0d 04000000 63686174 022f02",
        ),
        (ClientRequest::Record, "010c"),
        (ClientRequest::Membership { group: 2 }, "010d02000000"),
        (
            ClientRequest::Recover { lost: vec![NodeId(4)], accept_data_loss: true },
            "010f 01 01000000 0400000000000000",
        ),
        (
            ClientRequest::Hold { operation: 258, stage: HoldStage::Keep, lost: vec![NodeId(4)] },
            "0111 02010000000000000000000000000000 01 01000000 0400000000000000",
        ),
        (
            ClientRequest::GoOn { operation: 258, lost: vec![NodeId(4)], groups: vec![(2, 9, based_on)] },
            "0110 02010000000000000000000000000000 01000000 0400000000000000 01000000 02000000 0900000000000000 \
             0100000000000000 0200000000000000 0300000000000000",
        ),
        (
            ClientRequest::Pin {
                group: 2,
                deadline: Duration::from_millis(500),
                under: TransactionId(258),
                lease: Duration::from_secs(1),
            },
            "0112 02000000 f4010000 02010000000000000000000000000000 e8030000",
        ),
        (
            ClientRequest::ReadPinned {
                node: NodeId(4),
                group: 2,
                under: TransactionId(258),
                read: PinnedRead {
                    tree: "t".into(),
                    part: PinnedPart::Numbers,
                    after: Some("k".into()),
                    since: 7,
                    limit_bytes: 9,
                },
            },
            "0113 0400000000000000 02000000 02010000000000000000000000000000 01000000 74 01 01 01000000 6b \
             0700000000000000 09000000",
        ),
        (
            ClientRequest::KeepPins {
                node: NodeId(4),
                under: TransactionId(258),
                keep: true,
                groups: vec![2, 3],
            },
            "0114 0400000000000000 02010000000000000000000000000000 01 02000000 02000000 03000000",
        ),
        (
            ClientRequest::Watch { group: 1, tree: "t".into(), prefix: "p/".into(), told: None },
            "010a01000000010000007402000000702f 00",
        ),
        (
            ClientRequest::Watch {
                group: 1,
                tree: "t".into(),
                prefix: "p/".into(),
                told: Some(Told { position: 8, events: 2 }),
            },
            "010a01000000010000007402000000702f 01 0800000000000000 02000000",
        ),
    ];
    for (request, golden) in cases {
        let bytes = request.encode();
        assert_eq!(hex(&bytes), golden.replace(' ', ""), "{request:?}");
        assert_eq!(ClientRequest::decode(bytes).unwrap(), request);
    }
}

#[test]
fn replies_that_may_be_long_are_told_by_the_request() {
    use dogsled_storage::codec::encode_group_read;
    use dogsled_storage::group::{GroupRead, MAX_PAGE_BYTES};
    use std::ops::Bound::Unbounded;
    let range = |limit, limit_bytes| GroupRead::Range {
        tree: "t".into(),
        low: Unbounded,
        high: Unbounded,
        reverse: false,
        limit,
        limit_bytes,
        values: true,
    };
    let (tree, key) = (IVec::from("t"), IVec::from("k"));
    for (read, expected) in [
        (GroupRead::Get { tree: tree.clone(), key: key.clone() }, 0),
        (GroupRead::GetMany { tree: tree.clone(), keys: vec![key] }, 512 << 10),
        (range(u32::MAX, 64 << 10), 64 << 10),
        (range(u32::MAX, u64::MAX), MAX_PAGE_BYTES as usize),
        (range(1, u64::MAX), 64 << 10),
        (range(0, 0), 1),
        (GroupRead::Len { tree }, 0),
        (GroupRead::Strings { trees: Vec::new(), operations: Vec::new() }, 512 << 10),
    ] {
        let request = ClientRequest::Read {
            group: 1,
            deadline: Duration::ZERO,
            consistency: Consistency::AtMostOld(Duration::ZERO),
            read: encode_group_read(&read).unwrap().into(),
        };
        assert_eq!(ClientRequest::long_reply(&request.encode()), expected, "{read:?}");
        assert_eq!(ClientRequest::long_reply(&request.encode_knowing(5)), expected, "{read:?}");
    }
    for bytes in
        [&b""[..], b"\x01", b"\x01\x02", b"\x01\x02\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x02", b"\x01\x13"]
    {
        assert_eq!(ClientRequest::long_reply(&Bytes::from_static(bytes)), 0);
    }
}

#[test]
fn replies_keep_their_bytes() {
    let map = ClusterMap {
        cluster: 5,
        epoch: 9,
        partitions: 1,
        members: vec![(NodeId(1), vec!["a:1".to_owned()])],
        zones: vec!["z".to_owned()],
        leaders: vec![Some(NodeId(1)), None],
        replicas: vec![vec![NodeId(1)], vec![NodeId(1), NodeId(2)]],
        trees: BTreeMap::from([("chat".into(), TreeHash::First(258))]),
    };
    let group = GroupRecovery {
        group: 2,
        survivor: Some(NodeId(5)),
        lost: vec![NodeId(4)],
        others: vec![NodeId(6)],
        last: MembershipId { term: 1, leader: 2, position: 3 },
        committed: 2,
        applied: 1,
        term: 9,
        led: true,
        level: Some(Duration::from_millis(7)),
    };
    let recovery = Recovery { lost: vec![NodeId(4)], done: true, groups: vec![group] };
    let not_leader =
        ClusterError::NotLeader { group: 1, leader: Some(NodeId(2)), addresses: vec!["b:2".to_owned()] };
    let cases = [
        (ClientReply::Done, "0100"),
        (ClientReply::Applied(Bytes::from_static(b"reply")), "01017265706c79"),
        (
            ClientReply::Read {
                position: 9,
                age: Some(Duration::from_millis(7)),
                reply: Bytes::from_static(b"x"),
            },
            "01020900000000000000010700000000000000 78",
        ),
        (
            ClientReply::Map(map),
            "0103 05000000000000000000000000000000 0900000000000000 01000000 01000000 0100000000000000 01000000 \
             03000000 613a31 01000000 01000000 7a 02000000 0100000000000000 0000000000000000 \
             02000000 01000000 0100000000000000 02000000 0100000000000000 0200000000000000 \
             01000000 04000000 63686174 010201",
        ),
        (ClientReply::Error(not_leader), "0105 01 01000000 01 0200000000000000 01000000 03000000 623a32"),
        (
            ClientReply::Membership { position: 9, nodes: vec![NodeId(4)] },
            "0109 0900000000000000 01000000 0400000000000000",
        ),
        (
            ClientReply::Recovery(Box::new(recovery)),
            "010a 01000000 0400000000000000 01 01000000 02000000 0500000000000000 01000000 0400000000000000 \
             01000000 0600000000000000 0100000000000000 0200000000000000 0300000000000000 \
             0200000000000000 0100000000000000 0900000000000000 01 0700000000000000",
        ),
        (
            ClientReply::Pinned(PinnedState {
                node: NodeId(4),
                position: 5,
                time_ms: 6,
                trees: vec![("t".into(), 7)],
            }),
            "010b 0400000000000000 0500000000000000 0600000000000000 01000000 01000000 74 0700000000000000",
        ),
        (
            ClientReply::PinnedPage(PinnedPage {
                entries: vec![
                    PinnedEntry { key: "k".into(), version: 3, expires_ms: Some(4), value: None },
                    PinnedEntry { key: "l".into(), version: 5, expires_ms: None, value: Some("v".into()) },
                ],
                next: Some("l".into()),
            }),
            "010c 01 02000000 01000000 6b 0300000000000000 01 0400000000000000 00 \
             01000000 6c 0500000000000000 00 01 01000000 76",
        ),
        (
            ClientReply::PinnedPage(PinnedPage { entries: vec![], next: Some("m".into()) }),
            "010c 02 01000000 6d 00000000",
        ),
        (ClientReply::PinnedPage(PinnedPage { entries: vec![], next: None }), "010c 00 00000000"),
        (ClientReply::Error(ClusterError::Conflict("why".to_owned())), "0105 07 03000000 776879"),
        (ClientReply::Error(ClusterError::NoSpace("why".to_owned())), "0105 08 03000000 776879"),
        (ClientReply::Error(ClusterError::OutcomeUnknown("why".to_owned())), "0105 03 03000000 776879"),
        (
            ClientReply::Error(ClusterError::NotLeader { group: 1, leader: None, addresses: Vec::new() }),
            "0105 01 01000000 00 00000000",
        ),
        (ClientReply::Error(ClusterError::Unavailable("why".to_owned())), "0105 02 03000000 776879"),
        (ClientReply::Error(ClusterError::Invalid("why".to_owned())), "0105 04 03000000 776879"),
        (ClientReply::Error(ClusterError::Storage("why".to_owned())), "0105 05 03000000 776879"),
        (ClientReply::Error(ClusterError::Denied("why".to_owned())), "0105 06 03000000 776879"),
    ];
    for (reply, golden) in cases {
        let bytes = reply.encode();
        assert_eq!(hex(&bytes), golden.replace(' ', ""), "{reply:?}");
        assert_eq!(ClientReply::decode(bytes).unwrap(), reply);
    }
}

#[test]
fn a_status_keeps_its_bytes_and_no_bytes_make_a_decoder_panic() {
    let status = NodeStatus {
        node: NodeId(1),
        cluster: 7,
        members: vec![(NodeId(1), vec!["a:1".to_owned()])],
        groups: vec![GroupStatus {
            group: 0,
            role: Role::Leader,
            leader: Some(NodeId(1)),
            term: 2,
            voters: vec![NodeId(1), NodeId(2)],
            learners: vec![NodeId(3)],
            membership: MembershipId { term: 2, leader: 1, position: 6 },
            settled: true,
            joint: false,
            configs: vec![vec![NodeId(1), NodeId(2)]],
            newest: MembershipId { term: 2, leader: 1, position: 9 },
            first: 1,
            last: 9,
            committed: 8,
            applied: 8,
            durable: 4,
            level: Some(Duration::from_millis(6)),
            load: 1_234,
            followers: vec![FollowerStatus {
                node: NodeId(2),
                matched: 8,
                heard: Some(Duration::from_millis(5)),
            }],
            failure: Some("none really".to_owned()),
        }],
        wal_live_bytes: 1,
        wal_file_bytes: 2,
        wal_syncs: 3,
        tree_bytes: 4,
        disk_total_bytes: 6,
        disk_free_bytes: 5,
        disk_low_mark_bytes: 2,
        disk_is_low: true,
        redis: "a:6".to_owned(),
        failure: None,
    };
    let reply = ClientReply::Status(Box::new(status));
    let bytes = reply.encode();
    let golden = "0104 0100000000000000 07000000000000000000000000000000 \
         01000000 0100000000000000 01000000 03000000 613a31 \
         01000000 00000000 00 0100000000000000 0200000000000000 \
         02000000 0100000000000000 0200000000000000 01000000 0300000000000000 \
         0200000000000000 0100000000000000 0600000000000000 01 00 \
         01000000 02000000 0100000000000000 0200000000000000 \
         0200000000000000 0100000000000000 0900000000000000 \
         0100000000000000 0900000000000000 0800000000000000 0800000000000000 0400000000000000 \
         0600000000000000 d204000000000000 \
         01000000 0200000000000000 0800000000000000 0500000000000000 \
         01 0b000000 6e6f6e65207265616c6c79 \
         0100000000000000 0200000000000000 0300000000000000 \
         0400000000000000 0600000000000000 0500000000000000 0200000000000000 01 03000000 613a36 00";
    assert_eq!(hex(&bytes), golden.replace(' ', ""));
    assert_eq!(ClientReply::decode(bytes.clone()).unwrap(), reply);
    for position in 0..bytes.len() {
        for value in [0, 1, 2, 5, 10, 127, 255] {
            let mut changed = bytes.to_vec();
            changed[position] = value;
            let _ = ClientReply::decode(changed.clone().into());
            let _ = ClientRequest::decode(changed.into());
        }
    }
}

#[test]
fn who_knows_an_old_map_is_told_the_new_one_with_the_answer() {
    let request = ClientRequest::Status;
    let bytes = request.encode_knowing(7);
    assert_eq!(hex(&bytes), "010e07000000000000000104");
    assert_eq!(ClientRequest::split_knowing(bytes).unwrap(), (Some(7), request.encode()));
    assert_eq!(ClientRequest::split_knowing(request.encode()).unwrap(), (None, request.encode()));
    assert!(ClientRequest::split_knowing(Bytes::from_static(&[1, 14, 0])).is_err());

    let map = ClusterMap { epoch: 8, ..ClusterMap::default() };
    let bytes = ClientReply::encode_with_map(map.clone(), &ClientReply::Done.encode());
    let golden = "0107 32000000 \
         0103 00000000000000000000000000000000 0800000000000000 00000000 00000000 00000000 00000000 00000000 \
         00000000 0100";
    assert_eq!(hex(&bytes), golden.replace(' ', ""));
    assert_eq!(ClientReply::decode_with_map(bytes.clone()).unwrap(), (Some(map), ClientReply::Done));
    assert_eq!(ClientReply::decode_with_map(ClientReply::Done.encode()).unwrap(), (None, ClientReply::Done));
    assert!(ClientReply::decode(bytes.clone()).is_err(), "only for those who say what they know");
    for end in 0..bytes.len() {
        let _ = ClientReply::decode_with_map(bytes.slice(..end));
    }
}
