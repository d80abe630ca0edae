//! Those who should not be let in, and those who misbehave once they are: each is refused with a
//! reason, and harms nobody else.

use std::time::{Duration, Instant};

use crate::common::*;
use bytes::Bytes;
use dogsled_net::certs::{Authority, Certificates};
use dogsled_net::wire::{self, ClientHello, FrameHeader, FrameKind, Hello, Verdict};
use dogsled_net::{CertificateSource, ClientConnection, EndpointConfig, NetOptions};
use dogsled_replication::{Lane, NodeId, Transport, TransportError};

fn of_node(id: u64) -> Certificates {
    match certificate(id) {
        CertificateSource::Memory(certificates) => certificates,
        CertificateSource::Files(_) => unreachable!("it is in memory"),
    }
}

fn hello(from: u64, to: u64) -> Hello {
    Hello {
        cluster: CLUSTER,
        from: NodeId(from),
        to: NodeId(to),
        incarnation: 1,
        max_body: 1 << 20,
        lane: Lane::Data,
    }
}

/// Greets with these bytes on a new stream; the answer.
async fn greet(connection: &quinn::Connection, bytes: &[u8]) -> (Verdict, String) {
    greet_on(&mut connection.open_bi().await.expect("a stream"), bytes).await
}

/// The reason for which the node refuses the first request.
async fn refusal(one: &TestNode, to: u64) -> String {
    match one.endpoint.request(NodeId(to), Lane::Data, "x".into(), 30 * SECOND).await {
        Err(TransportError::Unreachable(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_is_refused_on_both_sides() {
    let (log, _guard) = Log::capture();
    let other = Authority::generate("test").expect("an authority");
    let issued = other.node(NodeId(1), &[], YEAR).expect("a certificate");
    let own = issued.certificates().expect("sound");
    // Trusts itself alone: it refuses the one it dials.
    let one =
        TestNode::start(EndpointConfig { certificates: CertificateSource::Memory(own.clone()), ..config(1) });
    let two = TestNode::node(2);
    one.knows(2, &two);
    let why = refusal(&one, 2).await;
    assert!(why.contains("UnknownIssuer") || why.contains("BadSignature"), "{why}");
    // Trusts the right authority, but is not of it: it is refused by the one it dials.
    let mixed = Certificates { ca: of_node(1).ca, ..own };
    assert!(mixed.check().expect_err("unusable").to_string().contains("not signed by the trusted"));
    let connection = connect(&two, &mixed, wire::PEER_ALPN).await.expect("TLS 1.3 learns of it later");
    let error = connection.closed().await;
    assert!(matches!(error, quinn::ConnectionError::ConnectionClosed(_)), "{error}");
    eventually("it is logged", || log.text().contains("a connection was not made")).await;
    assert_eq!(two.service.seen.lock().len(), 0);
}

#[tokio::test]
async fn a_certificate_of_another_node_is_refused() {
    // At the start already, if it is one's own.
    let wrong = EndpointConfig { certificates: certificate(3), ..config(1) };
    let error = dogsled_net::Endpoint::open(wrong).expect_err("refused").to_string();
    assert!(error.contains("node 3, not of node 1"), "{error}");
    // By the one who dials, if another node answers.
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.endpoint.set_addresses(NodeId(3), vec![two.address()]);
    let why = refusal(&one, 3).await;
    assert!(why.contains("node-3.dogsled"), "{why}");
    // By the one who is dialled, if the greeting claims more than the certificate.
    let connection = connect(&two, &of_node(1), wire::PEER_ALPN).await.expect("connects");
    let (verdict, why) = greet(&connection, &wire::encode_hello(&hello(4, 2))).await;
    assert_eq!(verdict, Verdict::Identity);
    assert!(why.contains("greets as node 4, but its certificate names 1"), "{why}");
    // A client's certificate makes no peer.
    let connection = connect(&two, &client_certificates("eve"), wire::PEER_ALPN).await.expect("connects");
    let (verdict, why) = greet(&connection, &wire::encode_hello(&hello(1, 2))).await;
    assert_eq!((verdict, why.contains("names no node")), (Verdict::Identity, true), "{why}");
    // Who wants someone else is told who this is.
    let connection = connect(&two, &of_node(1), wire::PEER_ALPN).await.expect("connects");
    let (verdict, why) = greet(&connection, &wire::encode_hello(&hello(1, 9))).await;
    assert_eq!((verdict, why.contains("this is node 2")), (Verdict::Identity, true), "{why}");
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let one = TestNode::start(EndpointConfig { cluster: 7, ..config(1) });
    let two = TestNode::node(2);
    one.knows(2, &two);
    let why = refusal(&one, 2).await;
    assert!(why.contains("belongs to cluster"), "{why}");
    assert_eq!(two.service.seen.lock().len(), 0);
}

#[tokio::test]
async fn an_unknown_wire_version_is_refused_by_name() {
    let two = TestNode::node(2);
    let connection = connect(&two, &of_node(1), wire::PEER_ALPN).await.expect("connects");
    let mut greeting = wire::encode_hello(&hello(1, 2));
    greeting[8] = 9;
    let (verdict, why) = greet(&connection, &greeting).await;
    assert_eq!(verdict, Verdict::Version);
    assert!(why.contains("wire version 9 is unknown"), "{why}");
    let client = connect(&two, &client_certificates("old"), wire::CLIENT_ALPN).await.expect("connects");
    let mut greeting = wire::encode_client_hello(&ClientHello { cluster: 0, max_body: 1 });
    greeting[8] = 9;
    assert_eq!(greet(&client, &greeting).await.0, Verdict::Version);
}

#[tokio::test]
async fn an_unknown_protocol_gets_no_connection() {
    let two = TestNode::node(2);
    let error = connect(&two, &of_node(1), b"h3").await.expect_err("refused");
    assert!(
        error.to_string().contains("120") || error.to_string().to_lowercase().contains("protocol"),
        "{error}"
    );
}

#[tokio::test]
async fn garbage_on_the_port_disturbs_nobody() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    one.ask(2, "before").await.expect("answered");
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    let mut noise = 0x9e37_79b9_7f4a_7c15_u64;
    for size in 0..2000 {
        let datagram: Vec<u8> = (0..size % 1500)
            .map(|_| {
                noise ^= noise << 13;
                noise ^= noise >> 7;
                noise ^= noise << 17;
                // Many with the bits of an initial packet.
                noise as u8 | if size % 3 == 0 { 0xc0 } else { 0 }
            })
            .collect();
        let _ = socket.send_to(&datagram, two.endpoint.local_address());
    }
    assert_eq!(one.ask(2, "after").await, Ok("after".into()));
}

#[tokio::test]
async fn a_peer_that_breaks_the_protocol_is_cut_off_and_others_go_on() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    one.ask(2, "before").await.expect("answered");
    let frame = |length, kind, body: &[u8]| {
        let mut bytes = wire::encode_header(&FrameHeader { length, kind, id: 5 }).to_vec();
        bytes.extend_from_slice(body);
        bytes
    };
    let limit = options().max_peer_body as u32;
    let cases: [(&str, Vec<u8>); 5] = [
        ("an oversized frame", frame(limit + 1, FrameKind::Request, b"")),
        ("four gigabytes", frame(u32::MAX, FrameKind::Request, b"")),
        ("a reply to nothing", frame(0, FrameKind::Reply, b"")),
        ("an unknown kind", [&[0, 0, 0, 0, 99][..], &[0; 11]].concat()),
        ("noise", vec![0xee; 5000]),
    ];
    for (what, bytes) in cases {
        let connection = connect(&two, &of_node(3), wire::PEER_ALPN).await.expect("connects");
        let mut streams = Vec::new();
        for lane in [Lane::Control, Lane::Bulk, Lane::Data, Lane::Client] {
            let mut stream = connection.open_bi().await.expect("a stream");
            let greeting = wire::encode_hello(&Hello { lane, ..hello(3, 2) });
            let (verdict, why) = greet_on(&mut stream, &greeting).await;
            assert_eq!(verdict, Verdict::Accepted, "{what}: {why}");
            streams.push(stream);
        }
        let (send, _) = &mut streams[2];
        send.write_all(&bytes).await.expect("written");
        // Before a lane that was not greeted on would be the reason.
        let closed = tokio::time::timeout(5 * SECOND, connection.closed()).await;
        assert!(closed.is_ok(), "{what} is tolerated");
        assert_eq!(one.ask(2, "still").await, Ok("still".into()), "after {what}");
    }
    assert!(two.service.seen.lock().iter().all(|(from, _, _)| *from == NodeId(1)));
}

#[tokio::test]
async fn who_connects_and_says_nothing_is_dropped() {
    let quick =
        EndpointConfig { options: NetOptions { connect_timeout: 2 * SECOND, ..options() }, ..config(2) };
    let two = TestNode::start(quick);
    for alpn in [wire::PEER_ALPN, wire::CLIENT_ALPN] {
        let connection = connect(&two, &of_node(1), alpn).await.expect("connects");
        let closed = tokio::time::timeout(PATIENCE, connection.closed()).await.expect("it is closed");
        assert!(matches!(closed, quinn::ConnectionError::ApplicationClosed(_)), "{closed}");
    }
}

#[tokio::test]
async fn of_two_nodes_with_one_id_the_second_is_refused_and_both_sides_say_so() {
    let (log, _guard) = Log::capture();
    let (first, two) = (TestNode::node(1), TestNode::node(2));
    first.knows(2, &two);
    first.ask(2, "first").await.expect("answered");
    let second = TestNode::node(1);
    second.knows(2, &two);
    let why = refusal(&second, 2).await;
    assert!(why.contains("two nodes have the id 1"), "{why}");
    assert_eq!(first.ask(2, "still").await, Ok("still".into()));
    eventually("both are logged", || {
        let log = log.text();
        let refuses = log.lines().any(|line| line.contains("ERROR") && line.contains("a peer is refused"));
        let refused =
            log.lines().any(|line| line.contains("ERROR") && line.contains("the peer refuses this node"));
        refuses && refused
    })
    .await;
    // When the first is gone the id is free.
    first.endpoint.close().await;
    let began = Instant::now();
    while second.ask(2, "mine").await.is_err() {
        assert!(began.elapsed() < 10 * SECOND);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_node_that_dials_its_own_id_elsewhere_is_refused() {
    let (first, second) = (TestNode::node(1), TestNode::node(1));
    second.endpoint.set_addresses(NodeId(1), vec![first.address()]);
    let why = refusal(&second, 1).await;
    assert!(why.contains("two nodes have the id 1"), "{why}");
}

#[tokio::test]
async fn a_clients_frames_are_limited_too() {
    let limited = EndpointConfig { options: NetOptions { max_client_body: 1000, ..options() }, ..config(2) };
    let two = TestNode::start(limited);
    let certificates = client_certificates("big");
    let client =
        ClientConnection::connect(&[two.address()], &certificates, options()).await.expect("connects");
    let reply = client.request(Bytes::from(vec![0; 1001]), SECOND).await;
    assert_eq!(reply, Err(TransportError::TooLarge { length: 1001, limit: 1000 }));
    let raw = connect(&two, &certificates, wire::CLIENT_ALPN).await.expect("connects");
    let (mut send, mut receive) = raw.open_bi().await.expect("a stream");
    let greeting = wire::encode_client_hello(&ClientHello { cluster: 0, max_body: 1000 });
    send.write_all(&greeting).await.expect("written");
    receive.read_chunk(1000, true).await.expect("readable").expect("an answer");
    let header = FrameHeader { length: 1001, kind: FrameKind::Request, id: 0 };
    send.write_all(&wire::encode_header(&header)).await.expect("written");
    assert!(tokio::time::timeout(5 * SECOND, raw.closed()).await.is_ok());
    assert_eq!(client.request("on".into(), PATIENCE).await, Ok("on".into()));
}
