//! Requests between nodes: order, sizes, lanes, deadlines, and what errors promise.

mod common;

use std::time::{Duration, Instant};

use bytes::Bytes;
use common::*;
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
    assert!(began.elapsed() < SECOND, "closing took {:?}", began.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_lane_arrive_in_the_order_of_the_calls() {
    let (one, two) = (TestNode::node(1), TestNode::node(2));
    one.knows(2, &two);
    let lanes = [Lane::Control, Lane::Data, Lane::Bulk];
    let requests = (0..3000u32).map(|i| {
        // Every tenth is late, and overtaken.
        let body = if i % 10 == 0 { format!("late {i}") } else { format!("{i}") };
        one.endpoint.request(NodeId(2), lanes[i as usize % 3], body.into(), 5 * SECOND)
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
        let expected: Vec<usize> = (0..3000).filter(|i| i % 3 == index).collect();
        assert_eq!(numbers, expected, "{lane:?}");
    }
}
