//! Clients: pipelined requests, streams of results, limits, and what they learn when a node goes.

use std::time::{Duration, Instant};

use crate::common::*;
use bytes::Bytes;
use dogsled_net::{ClientConnection, ClientEndpoint, EndpointConfig, NetOptions};
use dogsled_replication::TransportError;
use futures_util::future::join_all;

async fn client(node: &TestNode) -> ClientConnection {
    let certificates = client_certificates("alice");
    ClientConnection::connect(&[node.address()], &certificates, options()).await.expect("connects")
}

#[tokio::test]
async fn requests_are_pipelined_under_the_name_of_the_certificate() {
    let node = TestNode::node(7);
    let client = client(&node).await;
    assert_eq!((client.node().0, client.cluster()), (7, CLUSTER));
    let requests = (0..2000).map(|i| {
        let body = if i % 7 == 0 { format!("late {i}") } else { i.to_string() };
        client.request(body.into(), 5 * SECOND)
    });
    for (i, reply) in join_all(requests.collect::<Vec<_>>()).await.into_iter().enumerate() {
        assert!(reply.expect("answered").ends_with(i.to_string().as_bytes()));
    }
    assert!(node.service.clients.lock().iter().all(|name| name == "alice"));
    assert_eq!(client.request("hang".into(), Duration::from_millis(30)).await, Err(TransportError::TimedOut));
}

#[tokio::test]
async fn a_stream_brings_all_its_items_and_then_ends() {
    let node = TestNode::node(1);
    let client = client(&node).await;
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(client.open_stream("count 5000".into(), PATIENCE).await.expect("opens"));
    }
    for mut stream in streams {
        for i in 0..5000 {
            assert_eq!(stream.next().await, Some(Ok(Bytes::from(i.to_string()))));
        }
        assert_eq!(stream.next().await, None);
    }
    let mut drip = client.open_stream("drip 3".into(), PATIENCE).await.expect("opens");
    // A stream keeps its connection.
    drop(client);
    for i in 0..3 {
        assert_eq!(drip.next().await, Some(Ok(Bytes::from(i.to_string()))));
    }
    assert_eq!(drip.next().await, None);
    eventually("all have ended", || *node.service.streams.lock() == 0).await;
}

#[tokio::test]
async fn a_stream_is_polled_no_faster_than_it_is_read_and_ends_when_it_is_dropped() {
    let node = TestNode::node(1);
    let client = client(&node).await;
    let mut stream = client.open_stream("endless".into(), PATIENCE).await.expect("opens");
    stream.next().await.expect("an item").expect("sound");
    let mut before = 0;
    eventually("the service is held back", || {
        let items = *node.service.items.lock();
        let held = items == before;
        before = items;
        std::thread::sleep(Duration::from_millis(2));
        held && items > 1000
    })
    .await;
    // The two windows, and what is gathered for a write.
    assert!(before < 40_000, "{before} items of 1000 bytes");
    assert_eq!(client.request("on".into(), PATIENCE).await, Ok("on".into()));
    drop(stream);
    eventually("the service's stream is dropped", || *node.service.streams.lock() == 0).await;
    assert_eq!(client.request("on".into(), PATIENCE).await, Ok("on".into()));
}

#[tokio::test]
async fn streams_that_nobody_reads_keep_no_request_on_their_connection_waiting() {
    let node = TestNode::node(1);
    let client = client(&node).await;
    let mut streams = Vec::new();
    for _ in 0..30 {
        streams.push(client.open_stream("endless".into(), PATIENCE).await.expect("opens"));
    }
    let mut before = 0;
    eventually("the service is held back", || {
        let items = *node.service.items.lock();
        let held = items == before;
        before = items;
        std::thread::sleep(Duration::from_millis(5));
        held && items > 30 * 1000
    })
    .await;
    for _ in 0..20 {
        assert_eq!(client.request("on".into(), PATIENCE).await, Ok("on".into()));
    }
    let large = client.request("size 500000".into(), 5 * SECOND).await.expect("it is answered");
    assert_eq!(large.len(), 500_000);
    for stream in &mut streams {
        stream.next().await.expect("an item").expect("sound");
    }
}

#[tokio::test]
async fn streams_and_connections_over_the_limit_are_refused() {
    let limited = EndpointConfig {
        options: NetOptions { max_client_streams: 4, max_client_connections: 1, ..options() },
        ..config(1)
    };
    let node = TestNode::start(limited);
    let first = client(&node).await;
    let mut streams = Vec::new();
    for _ in 0..4 {
        streams.push(first.open_stream("endless".into(), PATIENCE).await.expect("opens"));
    }
    let over = first.open_stream("count 1".into(), Duration::from_millis(100)).await;
    assert!(matches!(&over, Err(TransportError::Unreachable(why)) if why.contains("no more streams")));
    streams.pop();
    let mut stream = first.open_stream("count 1".into(), PATIENCE).await.expect("there is room again");
    assert_eq!(stream.next().await, Some(Ok("0".into())));
    let endpoint = ClientEndpoint::new(&client_certificates("bob"), options()).expect("a socket");
    let second = endpoint.connect(&[node.address()], 0).await.expect_err("refused").to_string();
    assert!(second.contains("as many clients as it serves"), "{second}");
    drop((first, streams, stream));
    let began = Instant::now();
    while endpoint.connect(&[node.address()], CLUSTER).await.is_err() {
        assert!(began.elapsed() < 10 * SECOND);
    }
}

#[tokio::test]
async fn a_node_that_goes_down_loses_what_is_under_way_and_refuses_the_rest() {
    let node = TestNode::node(1);
    let client = client(&node).await;
    let hanging = client.request("hang".into(), 60 * SECOND);
    let mut stream = client.open_stream("endless".into(), PATIENCE).await.expect("opens");
    stream.next().await.expect("an item").expect("sound");
    eventually("it arrives", || node.service.clients.lock().len() == 1).await;
    node.endpoint.close().await;
    let lost = hanging.await;
    assert!(matches!(&lost, Err(TransportError::Lost(why)) if why.contains("going down")), "{lost:?}");
    let last = loop {
        match stream.next().await {
            Some(Ok(_)) => {}
            last => break last,
        }
    };
    assert!(matches!(last, Some(Err(TransportError::Lost(_)))), "{last:?}");
    assert_eq!(stream.next().await, None);
    assert!(!client.is_open());
    let refused = client.request("more".into(), 60 * SECOND).await;
    assert!(matches!(refused, Err(TransportError::Unreachable(_))), "{refused:?}");
}

#[tokio::test]
async fn a_node_killed_and_started_again_tells_its_clients_at_their_next_word() {
    // Its packets stop as if the process had been killed: its runtime is dropped.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
    let certificates = certificate(1);
    let at = |listen| EndpointConfig { certificates: certificates.clone(), ..config_at(1, listen) };
    let node = {
        let _inside = runtime.enter();
        TestNode::start(at("127.0.0.1:0".parse().expect("an address")))
    };
    let address = node.endpoint.local_address();
    let client = client(&node).await;
    assert_eq!(client.request("on".into(), PATIENCE).await, Ok("on".into()));
    runtime.shutdown_background();
    drop(node);
    let began = Instant::now();
    let _node = loop {
        match std::net::UdpSocket::bind(address) {
            Ok(free) => {
                drop(free);
                break TestNode::start(at(address));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
        }
        assert!(began.elapsed() < 5 * SECOND, "the port is not freed");
    };
    let began = Instant::now();
    let lost = client.request("anyone?".into(), 60 * SECOND).await;
    assert!(matches!(lost, Err(TransportError::Lost(_) | TransportError::Unreachable(_))), "{lost:?}");
    // Well before the connection would be found idle.
    assert!(began.elapsed() < 15 * SECOND, "it took {:?}", began.elapsed());
}

#[tokio::test]
async fn another_cluster_and_another_authority_are_refused() {
    let node = TestNode::node(1);
    let endpoint = ClientEndpoint::new(&client_certificates("alice"), options()).expect("a socket");
    let why = endpoint.connect(&[node.address()], 5).await.expect_err("refused").to_string();
    assert!(why.contains("belongs to cluster"), "{why}");
    let other = dogsled_net::certs::Authority::generate("other").expect("an authority");
    let stranger = other.client("alice", YEAR).expect("issued").certificates().expect("sound");
    let endpoint = ClientEndpoint::new(&stranger, options()).expect("a socket");
    let why = endpoint.connect(&[node.address()], 0).await.expect_err("refused").to_string();
    assert!(why.contains("UnknownIssuer"), "{why}");
}
