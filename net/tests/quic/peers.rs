//! Requests between nodes: order, sizes, lanes, deadlines, and what errors promise.

use std::time::{Duration, Instant};

use crate::common::*;
use bytes::Bytes;
use dogsled_net::NetOptions;
use dogsled_replication::{Lane, NodeId, Transport, TransportError};
use futures_util::future::join_all;

#[tokio::test]
async fn a_request_is_answered_in_both_directions() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    two.knows(1, &one);
    assert_eq!(one.ask(2, "ping").await.expect("answered"), "ping");
    assert_eq!(two.ask(1, "pong").await.expect("answered"), "pong");
    assert_eq!(*two.service.seen.lock(), [(NodeId(1), Lane::Data, Bytes::from("ping"))]);
    assert_eq!(*one.service.seen.lock(), [(NodeId(2), Lane::Data, Bytes::from("pong"))]);
    let began = Instant::now();
    one.endpoint.close().await;
    two.endpoint.close().await;
    assert!(began.elapsed() < 10 * SECOND, "closing took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_lane_arrive_in_the_order_of_the_calls() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    let lanes = [Lane::Control, Lane::Data, Lane::Client, Lane::Bulk];
    let requests = (0..3000u32).map(|i| {
        // Every tenth is late, and overtaken.
        let body = if i % 10 == 0 { format!("late {i}") } else { format!("{i}") };
        one.endpoint.request(NodeId(2), lanes[i as usize % 4], body.into(), 5 * SECOND)
    });
    let replies = join_all(requests.collect::<Vec<_>>()).await;
    for (i, reply) in replies.into_iter().enumerate() {
        let reply = reply.expect("answered");
        assert!(std::str::from_utf8(&reply).expect("text").ends_with(&i.to_string()));
    }
    let seen = two.service.seen.lock();
    for (index, lane) in lanes.into_iter().enumerate() {
        let numbers: Vec<usize> = seen
            .iter()
            .filter(|(_, of, _)| *of == lane)
            .map(|(_, _, body)| {
                let text = std::str::from_utf8(body).expect("text");
                text.trim_start_matches("late ").parse().expect("a number")
            })
            .collect();
        let expected: Vec<usize> = (0..3000).filter(|i| i % 4 == index).collect();
        assert_eq!(numbers, expected, "{lane:?}");
    }
}

#[tokio::test]
async fn bodies_of_any_size_up_to_the_limit_pass_and_larger_ones_are_refused_unsent() {
    let limit = 1 << 20;
    let small = |node| dogsled_net::EndpointConfig {
        options: NetOptions { max_peer_body: limit, ..options() },
        ..config(node)
    };
    let (one, two) = (TestNode::start(small(1)), TestNode::start(small(2)));
    one.knows(2, &two);
    for size in [0, 1, 1183, 4096, 4097, 70_000, limit] {
        let body: Bytes = (0..size).map(|i| (i % 251) as u8).collect();
        assert_eq!(one.ask(2, body.clone()).await, Ok(body), "{size} bytes");
    }
    let seen = two.service.seen.lock().len();
    let too_large = TransportError::TooLarge { length: limit + 1, limit };
    assert_eq!(one.ask(2, vec![0; limit + 1]).await, Err(too_large));
    // A reply over the limit is told as what it is to whoever asked, and harms no other.
    let reply = one.ask(2, format!("size {}", limit + 1)).await;
    assert!(matches!(&reply, Err(TransportError::ReplyTooLarge(why)) if why.contains("limit")), "{reply:?}");
    assert_eq!(one.ask(2, "on").await, Ok("on".into()));
    assert_eq!(two.service.seen.lock().len(), seen + 2);
}

#[tokio::test]
async fn a_request_to_a_node_without_address_is_unreachable() {
    let one = TestNode::node(1);
    let reply = one.ask(2, "hello?").await;
    assert!(matches!(&reply, Err(TransportError::Unreachable(why)) if why.contains("node 2")), "{reply:?}");
}

#[tokio::test]
async fn a_deadline_that_passes_unsent_is_unreachable_and_then_refusals_are_immediate() {
    let patient = dogsled_net::EndpointConfig {
        options: NetOptions { connect_timeout: 2 * SECOND, max_back_off: 60 * SECOND, ..options() },
        ..config(1)
    };
    let one = TestNode::start(patient);
    // Bound, and never answering.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    one.endpoint.set_addresses(NodeId(2), vec![silent.local_addr().expect("bound").to_string()]);
    let began = Instant::now();
    let asked = one.endpoint.request(NodeId(2), Lane::Data, "x".into(), Duration::from_millis(200));
    let reply = asked.await;
    // And not when the dial has failed.
    let is_expired = |why: &str| why.contains("before the deadline");
    assert!(matches!(&reply, Err(TransportError::Unreachable(why)) if is_expired(why)), "{reply:?}");
    assert!(began.elapsed() >= Duration::from_millis(150), "{:?}", began.elapsed());
    // Once the dial has failed, nobody waits.
    let reply = one.endpoint.request(NodeId(2), Lane::Data, "x".into(), 60 * SECOND).await;
    assert!(
        matches!(&reply, Err(TransportError::Unreachable(why)) if why.contains("no answer")),
        "{reply:?}"
    );
    let began = Instant::now();
    for _ in 0..100 {
        assert!(matches!(one.ask(2, "x").await, Err(TransportError::Unreachable(_))));
    }
    // Less than ten of them would wait for a dial.
    assert!(began.elapsed() < 20 * SECOND, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_deadline_that_passes_after_sending_is_an_unknown_outcome() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    one.ask(2, "warm").await.expect("answered");
    let hang = one.endpoint.request(NodeId(2), Lane::Data, "hang".into(), SECOND);
    let mut late = one.endpoint.request(NodeId(2), Lane::Data, "later 5000".into(), PATIENCE);
    let early = one.endpoint.request(NodeId(2), Lane::Data, "later 4000".into(), SECOND);
    assert_eq!(early.await, Err(TransportError::TimedOut));
    assert!(futures_util::poll!(&mut late).is_pending(), "the deadline was not kept");
    assert_eq!(late.await, Ok("later 5000".into()));
    assert_eq!(hang.await, Err(TransportError::TimedOut));
    // The reply to the early one came, to nobody; the slot is reused without confusion.
    for i in 0..100 {
        let body = format!("again {i}");
        assert_eq!(one.ask(2, body.clone()).await, Ok(body.into()));
    }
}

#[tokio::test]
async fn a_dropped_future_gives_up_the_reply_not_the_request() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    drop(one.endpoint.request(NodeId(2), Lane::Data, "forget me".into(), 5 * SECOND));
    eventually("it arrives", || two.service.seen.lock().iter().any(|(_, _, body)| body == "forget me")).await;
}

#[tokio::test]
async fn requests_over_the_queues_bound_are_refused_unsent() {
    let tight = dogsled_net::EndpointConfig {
        options: NetOptions { max_queued_bytes: 1 << 20, ..options() },
        ..config(1)
    };
    let one = TestNode::start(tight);
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").expect("binds");
    one.endpoint.set_addresses(NodeId(2), vec![silent.local_addr().expect("bound").to_string()]);
    let ask = |size: usize, lane| one.endpoint.request(NodeId(2), lane, vec![0; size].into(), 60 * SECOND);
    let waiting = ask(1 << 19, Lane::Data);
    let over = ask(1 << 20, Lane::Data).await;
    assert!(matches!(&over, Err(TransportError::Unreachable(why)) if why.contains("waiting")), "{over:?}");
    // Another lane has a bound of its own.
    let other = ask(1 << 19, Lane::Control);
    drop((waiting, other));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_is_not_delayed_while_data_and_bulk_saturate() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    one.ask(2, "warm").await.expect("answered");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let mut loads = Vec::new();
    for (lane, size, outstanding) in [(Lane::Bulk, 1 << 20, 16), (Lane::Data, 64 << 10, 64)] {
        for _ in 0..outstanding {
            let (endpoint, stop) = (one.endpoint.clone(), stop.clone());
            loads.push(tokio::spawn(async move {
                let body = Bytes::from(vec![1; size]);
                let mut times = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    let began = Instant::now();
                    endpoint.request(NodeId(2), lane, body.clone(), 60 * SECOND).await.expect("answered");
                    times.push(began.elapsed());
                }
                (lane, size, times)
            }));
        }
    }
    tokio::time::sleep(SECOND / 2).await;
    let mut times = Vec::new();
    for _ in 0..100 {
        let began = Instant::now();
        one.endpoint.request(NodeId(2), Lane::Control, "beat".into(), PATIENCE).await.expect("answered");
        times.push(began.elapsed());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (mut bytes, mut bulk) = (0, Vec::new());
    for load in join_all(loads).await {
        let (lane, size, times) = load.expect("ran");
        bytes += size * times.len();
        if lane == Lane::Bulk {
            bulk.extend(times);
        }
    }
    times.sort();
    bulk.sort();
    let median = bulk[bulk.len() / 2];
    println!(
        "{} MiB beside, bulk p50 {median:?}; control p50 {:?}, max {:?}",
        bytes >> 20,
        times[50],
        times[99]
    );
    assert!(bytes > 16 << 20, "no saturation: {bytes} bytes");
    // If control queued behind bulk it would take as long, be the machine fast or slow.
    assert!(times[50] < median / 2, "control is delayed: {:?}, bulk takes {median:?}", times[50]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_lane_stops_no_other() {
    // Requests of clients wait for entries, which are data: these must get through while as many of those wait as may.
    tokio::join!(others_go_on(Lane::Bulk), others_go_on(Lane::Client));
}

async fn others_go_on(stuck: Lane) {
    let (one, two) = (
        TestNode::node(1),
        TestNode::start(dogsled_net::EndpointConfig {
            options: NetOptions { max_concurrent_peer_requests: 4, stream_window: 1 << 20, ..options() },
            ..config(2)
        }),
    );
    one.knows(2, &two);
    one.ask(2, "warm").await.expect("answered");
    // The service takes four and answers none: the rest fills the stream's window and the queue.
    let mut hanging = Vec::new();
    for _ in 0..64 {
        let mut body = b"hang".to_vec();
        body.resize(256 << 10, 0);
        hanging.push(one.endpoint.request(NodeId(2), stuck, body.into(), SECOND));
    }
    for i in 0..200 {
        let lane = if i % 2 == 0 { Lane::Control } else { Lane::Data };
        let reply = one.endpoint.request(NodeId(2), lane, "on".into(), 5 * SECOND).await;
        assert_eq!(reply, Ok("on".into()));
    }
    let mut unsent = 0;
    for hanging in hanging {
        match hanging.await {
            Err(TransportError::TimedOut) => {}
            Err(TransportError::Unreachable(_)) => unsent += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(two.service.seen.lock().iter().filter(|(_, lane, _)| *lane == stuck).count(), 4);
    assert!(unsent > 32, "only {unsent} are known to be unsent");
}

#[tokio::test]
async fn requests_in_flight_are_lost_with_the_connection_and_a_restarted_peer_is_found_again() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    one.ask(2, "warm").await.expect("answered");
    let hanging = one.endpoint.request(NodeId(2), Lane::Data, "hang".into(), 60 * SECOND);
    eventually("it arrives", || two.service.seen.lock().len() == 2).await;
    let address = two.endpoint.local_address();
    two.endpoint.close().await;
    let lost = hanging.await;
    assert!(matches!(&lost, Err(TransportError::Lost(why)) if why.contains("going down")), "{lost:?}");
    let two = TestNode::start(config_at(2, address));
    let began = Instant::now();
    while one.ask(2, "again").await.is_err() {
        assert!(began.elapsed() < 10 * SECOND);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(two.service.seen.lock().len(), 1);
}

#[tokio::test]
async fn a_peer_that_comes_back_is_redialled_at_once_when_it_dials_itself() {
    let slow = |node, listen| dogsled_net::EndpointConfig {
        options: NetOptions {
            min_back_off: 60 * SECOND,
            max_back_off: 60 * SECOND,
            connect_timeout: 3 * SECOND,
            ..options()
        },
        ..config_at(node, listen)
    };
    let any = "127.0.0.1:0".parse().expect("an address");
    let one = TestNode::start(slow(1, any));
    let (two, address) = {
        let two = TestNode::start(slow(2, any));
        let address = two.endpoint.local_address();
        one.knows(2, &two);
        one.ask(2, "warm").await.expect("answered");
        two.endpoint.close().await;
        // The dial fails, and the next is far away.
        let refused = one.endpoint.request(NodeId(2), Lane::Data, "x".into(), 30 * SECOND).await;
        assert!(matches!(refused, Err(TransportError::Unreachable(_))), "{refused:?}");
        (TestNode::start(slow(2, address)), address)
    };
    assert_eq!(two.endpoint.local_address(), address);
    two.knows(1, &one);
    let began = Instant::now();
    while one.ask(2, "again").await.is_err() {
        // Less than the pause.
        assert!(began.elapsed() < 40 * SECOND, "not redialled");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_peer_without_addresses_is_forgotten() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    one.ask(2, "warm").await.expect("answered");
    one.endpoint.set_addresses(NodeId(2), Vec::new());
    let began = Instant::now();
    while one.ask(2, "x").await.is_ok() {
        assert!(began.elapsed() < PATIENCE, "still connected");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    one.knows(2, &two);
    assert_eq!(one.ask(2, "back").await, Ok("back".into()));
}

#[tokio::test]
async fn addresses_are_tried_in_order_until_one_answers() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    let addresses = vec!["no-such-host.invalid:1".to_owned(), "nonsense".to_owned(), two.address()];
    one.endpoint.set_addresses(NodeId(2), addresses);
    let reply = one.endpoint.request(NodeId(2), Lane::Data, "there".into(), 30 * SECOND).await;
    assert_eq!(reply, Ok("there".into()));
}
