//! Requests of peers and clients to a node that serves, as the fuzzer says: no panic, and the node
//! goes on serving. Sound requests are mutated, because few get past the first checks otherwise.
//!
//! What a peer with a certificate may do is done: it can lead, add members, replace the state by a
//! snapshot. So a node that has another membership afterwards need not serve, and a state that came
//! in a snapshot is whatever the sender says; neither may stop the process. And an entry of a later
//! format, which only a peer can append, stops its group, as it must.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use bytes::Bytes;
use dogsled_fuzz::Choices;
use dogsled_fuzz::node::{GROUPS, MARKER, To, World, put, runtime, start, submit};
use dogsled_replication::hostile::{seal_piece, set_cluster};
use dogsled_replication::{ClientIdentity, Consistency, Lane, Node, NodeId, Service};
use dogsled_storage::group::{GroupRead, GroupReadReply};
use futures_util::StreamExt;
use libfuzzer_sys::fuzz_target;

static WORLD: LazyLock<World> = LazyLock::new(World::new);

const APPEND: u8 = 1;
const SNAPSHOT_FINISH: u8 = 8;
/// How long a request is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// A sound request, with some bytes changed.
fn mutated(choices: &mut Choices<'_>, sealed: bool) -> (To, Vec<u8>) {
    let (to, body) = &WORLD.requests[choices.byte() as usize % WORLD.requests.len()];
    let mut body = body.to_vec();
    for _ in 0..choices.byte() % 6 {
        let at = u16::from_le_bytes([choices.byte(), choices.byte()]) as usize % (body.len() + 1);
        let byte = choices.byte();
        match choices.byte() % 8 {
            0 => body.truncate(at),
            1 => body.insert(at, byte),
            2 if at < body.len() => drop(body.remove(at)),
            3 => body[at..].iter_mut().take(8).for_each(|place| *place = byte),
            _ if at < body.len() => body[at] = byte,
            _ => body.push(byte),
        }
    }
    if sealed {
        seal_piece(&mut body);
    }
    (*to, body)
}

fn raw(choices: &mut Choices<'_>) -> Vec<u8> {
    let length = usize::from(choices.byte()) * 4;
    let (taken, rest) = choices.0.split_at(length.min(choices.0.len()));
    choices.0 = rest;
    taken.to_vec()
}

/// Whether a peer may have led, and whether a snapshot may have taken the place of the state.
async fn run(node: &Node, choices: &mut Choices<'_>) -> (bool, bool) {
    let client = ClientIdentity { name: "fuzzer".into(), administrator: true };
    let mut waiting = Vec::new();
    let (mut led, mut installed) = (false, false);
    while !choices.is_empty() && waiting.len() < 40 {
        let kind = choices.byte();
        let (to, body) = match kind % 8 {
            0..=4 => mutated(choices, kind & 64 == 0),
            5 => {
                let mut body = raw(choices);
                if kind & 64 == 0 {
                    set_cluster(&mut body, WORLD.cluster);
                }
                (To::Peer, body)
            }
            6 => ([To::Client, To::Stream][usize::from(kind & 64 == 0)], raw(choices)),
            _ => {
                tokio::time::sleep(Duration::from_millis(u64::from(choices.byte()) * 8)).await;
                continue;
            }
        };
        led |= to == To::Peer && body.get(1) == Some(&APPEND);
        if to == To::Peer {
            // What contradicts what is committed is refused by what openraft has last told of that.
            // An entry that is committed meanwhile is none of this target's: let all come to rest.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let finishes = to == To::Peer && body.get(1) == Some(&SNAPSHOT_FINISH);
        let body = Bytes::from(body);
        let answer = match to {
            To::Peer => {
                // One that is no member, or this node itself, may come as well.
                let from = NodeId(if kind & 128 == 0 { 2 } else { u64::from(choices.byte() % 4) });
                node.peer_request(from, Lane::Data, body)
            }
            To::Client => node.client_request(&client, body),
            To::Stream => {
                let items = node.client_stream(&client, body).take(3);
                Box::pin(async move { items.collect::<Vec<_>>().await.concat().into() })
            }
        };
        let answer = tokio::spawn(tokio::time::timeout(PATIENCE, answer));
        if kind & 32 == 0 {
            let answered = answer.await.expect("it does not panic");
            installed |= finishes && answered.is_ok_and(|answer| answer.get(1) == Some(&0));
        } else {
            installed |= finishes;
            waiting.push(answer);
        }
    }
    for answer in waiting {
        let _ = answer.await.expect("it does not panic");
    }
    (led, installed)
}

async fn check(node: &Node, led: bool, may_be_changed: bool) {
    let status = node.status();
    assert_eq!(status.failure, None);
    for group in 0..GROUPS {
        let found = &status.groups[group as usize];
        if found.voters != [NodeId(1)] && !found.voters.is_empty() {
            continue;
        }
        let served = submit(node, group, &put("after", "key", "value")).await;
        let status = node.status();
        let found = &status.groups[group as usize];
        let of_later_format = found.failure.as_ref().is_some_and(|why| why.contains("has format version"));
        if !served && (found.voters != [NodeId(1)] || led && of_later_format) {
            // What was appended but not committed made others members.
            continue;
        }
        assert!(served, "group {group} does not serve any more: {found:?}");
        for (tree, key, expected) in [("after", "key", "value"), (MARKER, MARKER, MARKER)] {
            if tree == MARKER && may_be_changed {
                continue;
            }
            let read = GroupRead::Get { tree: tree.into(), key: key.into() };
            let answer =
                node.read(group, &read, Consistency::Linearizable).await.expect("it has just served");
            let GroupReadReply::Value(Some(value)) = answer.reply else {
                panic!("{tree} of group {group} is gone: {:?}", answer.reply)
            };
            assert_eq!(value.value, expected.as_bytes(), "{tree} of group {group}");
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    LazyLock::force(&WORLD);
    runtime().block_on(async {
        let node = start(&WORLD.disk.duplicate()).await;
        let (led, installed) = run(&node, &mut Choices(bytes)).await;
        let named = bytes.windows(MARKER.len()).any(|part| part == MARKER.as_bytes());
        check(&node, led, installed || named).await;
        node.halt().await.expect("a sound disk");
    });
});
