//! Clients that ask for much and read little: what they cost is bounded, and those that read get all.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::common::*;
use bytes::Bytes;
use dogsled_net::wire::{
    CLIENT_ALPN, ClientHello, FrameHeader, FrameKind, FrameReader, FrameWriter, Verdict, encode_client_hello,
    encode_header,
};
use dogsled_net::{ClientConnection, EndpointConfig, NetOptions};
use quinn::{Connection, RecvStream, SendStream};

/// A client that reads when it is told to.
struct Raw {
    connection: Connection,
    send: SendStream,
    receive: RecvStream,
}

impl Raw {
    async fn greeted(node: &TestNode) -> Raw {
        let connection = connect(node, &client_certificates("lazy"), CLIENT_ALPN).await.expect("connects");
        let mut stream = connection.open_bi().await.expect("a stream");
        let hello = encode_client_hello(&ClientHello { cluster: CLUSTER, max_body: 16 << 20 });
        assert_eq!(greet_on(&mut stream, &hello).await.0, Verdict::Accepted);
        Raw { connection, send: stream.0, receive: stream.1 }
    }

    /// Sends requests, numbered from `first`.
    async fn ask(&mut self, first: u64, requests: impl IntoIterator<Item = String>) {
        let mut writer = FrameWriter::default();
        for (id, body) in (first..).zip(requests) {
            writer.push(FrameKind::Request, id, body.into());
        }
        let bytes = writer.chunks().concat();
        self.send.write_all(&bytes).await.expect("written");
    }
}

const REPLY: usize = 400_000;
const MAX_LONG: usize = 4 << 20;

fn patient_for(patience: Duration) -> TestNode {
    let options = NetOptions { reply_patience: patience, max_long_reply_bytes: MAX_LONG, ..options() };
    TestNode::start(EndpointConfig { options, ..config(1) })
}

/// What a connection of [`Raw`] may hold: what the writer takes before it is full (1 MiB) and the reply that fills
/// it; those that are made elsewhere; and what QUIC has sent ahead, which is quinn's window of a stream.
const BOUND: usize = (1 << 20) + REPLY + MAX_LONG + 1_250_000;

async fn client(node: &TestNode) -> ClientConnection {
    let certificates = client_certificates("bob");
    ClientConnection::connect(&[node.address()], &certificates, options()).await.expect("connects")
}

async fn is_served(node: &TestNode) {
    let other = client(node).await;
    let patience = 10 * SECOND;
    assert_eq!(other.request("on".into(), patience).await, Ok("on".into()));
    for kind in ["made", "elsewhere"] {
        let reply = other.request(format!("{kind} {REPLY}").into(), patience).await.expect("answered");
        assert_eq!(reply.len(), REPLY);
    }
}

#[tokio::test]
async fn a_client_that_never_reads_holds_a_bounded_amount_of_memory_until_it_is_cut_off() {
    let (log, _guard) = Log::capture();
    for kind in ["made", "elsewhere"] {
        let mut attempts = 0;
        let (node, lazy) = loop {
            let node = patient_for(2 * SECOND);
            let mut lazy = Raw::greeted(&node).await;
            let began = Instant::now();
            lazy.ask(0, (0..600).map(|_| format!("{kind} {REPLY}"))).await;
            eventually("replies wait", || node.service.held.now() > REPLY).await;
            let waiting = Instant::now();
            while waiting.elapsed() < SECOND / 2 {
                is_served(&node).await;
            }
            let peak = node.service.held.peak();
            assert!(peak > 1 << 20, "{kind}: it holds only {peak} bytes, so this shows nothing");
            // Beside the two of the other client.
            assert!(peak < BOUND + 2 * REPLY, "{kind}: {peak} bytes");
            let stalled = node.endpoint.figures().stalled;
            if began.elapsed() < 2 * SECOND {
                assert_eq!(stalled, 0);
                break (node, lazy);
            }
            // All this took longer than its patience, so that nothing can be said.
            attempts += 1;
            assert!(attempts < 5, "the node is never asked in time");
        };
        let why = lazy.connection.closed().await.to_string();
        assert!(why.contains("of replies was taken for 2s"), "{kind}: {why}");
        assert_eq!(node.endpoint.figures().stalled, 1);
        eventually("all of it is let go", || node.service.held.now() == 0).await;
        is_served(&node).await;
    }
    assert!(log.text().contains("a client is cut off"), "{}", log.text());
}

#[tokio::test]
async fn what_begins_and_does_not_go_on_is_given_up() {
    let node = patient_for(SECOND);
    let begin = |kind, length| encode_header(&FrameHeader { length, kind, id: 0 });
    let mut half = Raw::greeted(&node).await;
    half.ask(0, ["on".to_owned()]).await;
    half.send.write_all(&begin(FrameKind::Request, 1 << 20)).await.expect("written");
    half.send.write_all(&[7; 1000]).await.expect("written");
    let why = half.connection.closed().await.to_string();
    assert!(why.contains("bytes came in 1s, and not the rest"), "{why}");

    // A stream of results that is never asked for whole is given up by itself.
    let mut half = Raw::greeted(&node).await;
    let (mut send, mut receive) = half.connection.open_bi().await.expect("a stream");
    send.write_all(&begin(FrameKind::Open, 1000)).await.expect("written");
    let ended = tokio::time::timeout(10 * SECOND, receive.read_to_end(10)).await.expect("it ends");
    assert!(ended.is_ok_and(|bytes| bytes.is_empty()));
    half.ask(0, ["on".to_owned()]).await;
    let reply = half.receive.read_chunk(100, true).await.expect("served").expect("a reply");
    assert!(reply.bytes.ends_with(b"on"));
    // One that would be as long as a request may be is none.
    let (mut send, _receive) = half.connection.open_bi().await.expect("a stream");
    send.write_all(&begin(FrameKind::Open, 1 << 20)).await.expect("written");
    let why = half.connection.closed().await.to_string();
    assert!(why.contains("limit"), "{why}");
    is_served(&node).await;
}

#[tokio::test]
async fn a_client_that_reads_slowly_gets_every_reply() {
    let patience = 5 * SECOND;
    let node = patient_for(patience);
    let mut slow = Raw::greeted(&node).await;
    let asked = |id: u64| match id % 8 {
        0 => format!("made {REPLY}"),
        1 => format!("elsewhere {REPLY}"),
        _ => format!("size {}", 1000 + id),
    };
    slow.ask(0, (0..240).map(asked)).await;
    let began = Instant::now();
    let mut reader = FrameReader::new(16 << 20);
    let mut piece = vec![0; 64 << 10];
    let mut lengths = HashMap::new();
    while lengths.len() < 240 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        let read = slow.receive.read(&mut piece).await.expect("readable").expect("more");
        reader.push(Bytes::copy_from_slice(&piece[..read]));
        while let Some((header, body)) = reader.next_frame().expect("sound") {
            assert_eq!(header.kind, FrameKind::Reply);
            assert_eq!(lengths.insert(header.id, body.len()), None, "twice");
        }
    }
    assert!(began.elapsed() > patience, "it was too quick to show anything");
    for (id, length) in lengths {
        assert_eq!(length, if id % 8 < 2 { REPLY } else { 1000 + id as usize });
    }
    assert!(node.service.held.peak() < BOUND, "{} bytes", node.service.held.peak());
    assert_eq!(node.endpoint.figures().stalled, 0);
}

#[tokio::test]
async fn requests_that_wait_for_room_for_long_replies_hold_up_no_others() {
    let node = patient_for(30 * SECOND);
    let client = client(&node).await;
    let hangs = client.request("long hang".into(), 60 * SECOND);
    let waits = client.request("elsewhere 1000".into(), Duration::from_millis(300));
    let began = Instant::now();
    for i in 0..2000 {
        let body = Bytes::from(format!("{i}"));
        assert_eq!(client.request(body.clone(), PATIENCE).await, Ok(body));
    }
    assert!(waits.await.is_err(), "after {:?}", began.elapsed());
    drop(hangs);
}
