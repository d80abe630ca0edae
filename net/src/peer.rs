//! The way to one peer: keeps a connection up for this node's requests, and redials it with
//! back-off.
//!
//! A node requests on the connection that it has dialled itself; the peer's requests come on one
//! that the peer has dialled (see [`crate::accept`]). So neither must agree with the other which of
//! two crossing connections stays.
//!
//! ```text
//!            ┌─ dial fails: refuse requests, back off ─┐
//! addresses ─┴► dial ─► all lanes greeted ─► drive ──┴─ connection lost: dial again at once
//! ```
//!
//! While the first dial after a start or a loss is under way, requests wait; once one has failed
//! they are refused at once, so that a dead peer holds up nobody. A peer that has restarted usually
//! dials us before we notice: its greeting [nudges](Peer::nudge) us to drop the connection to its
//! predecessor and dial without waiting.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogsled_replication::{Lane, NodeId};
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::endpoint::Shared;
use crate::options::{LANES, lane_index, lane_priority};
use crate::requester::{RequestQueue, drive};
use crate::tls::{explain, node_name};
use crate::wire::{
    Answer, Hello, MAX_ANSWER_LENGTH, Verdict, WIRE_VERSION, WireError, decode_answer, encode_hello,
};

/// Addresses that one name may resolve to and are tried.
const ADDRESSES_PER_NAME: usize = 4;
/// A connection that did not last so long counts as a failed dial.
const SHORT_LIVED: Duration = Duration::from_secs(2);
/// How often deadlines of waiting requests are looked at while there is no connection.
const WAITING_GRAIN: Duration = Duration::from_millis(10);
/// A dial that is younger is not begun again because of a nudge.
const FRESH_DIAL: Duration = Duration::from_millis(100);

pub(crate) const CLOSED_NORMALLY: u32 = 0;
pub(crate) const CLOSED_REFUSED: u32 = 1;

/// One peer, as seen from here.
pub(crate) struct Peer {
    node: NodeId,
    lanes: [RequestQueue; LANES.len()],
    addresses: watch::Sender<Vec<String>>,
    nudged: Notify,
    /// The incarnation that was last heard of, from the peer's own connection.
    seen: Mutex<Option<u128>>,
}

/// Why a dial failed.
struct DialError {
    why: String,
    /// The peer has answered, and will not have us: someone must look at it.
    refused: bool,
}

struct Dialled {
    connection: Connection,
    lanes: [(SendStream, RecvStream); LANES.len()],
    incarnation: u128,
    max_body: usize,
}

impl Peer {
    pub(crate) fn new(node: NodeId, shared: &Shared) -> Peer {
        let queue = || {
            let options = &shared.options;
            let why = format!("no address of node {node} is known");
            RequestQueue::new(options.max_queued_bytes, options.max_peer_body, &why)
        };
        Peer {
            node,
            lanes: std::array::from_fn(|_| queue()),
            addresses: watch::Sender::new(Vec::new()),
            nudged: Notify::new(),
            seen: Mutex::new(None),
        }
    }

    pub(crate) fn lane(&self, lane: Lane) -> &RequestQueue {
        &self.lanes[lane_index(lane)]
    }

    /// Replaces what is known; an existing connection stays as long as it works.
    pub(crate) fn set_addresses(&self, addresses: Vec<String>) {
        self.addresses.send_if_modified(|known| {
            if *known == addresses {
                return false;
            }
            if known.is_empty() {
                self.accept();
            }
            *known = addresses;
            true
        });
    }

    /// The peer is up, under this incarnation: it has just been heard of.
    pub(crate) fn nudge(&self, incarnation: u128) {
        *self.seen.lock() = Some(incarnation);
        self.nudged.notify_one();
    }

    fn accept(&self) {
        self.lanes.iter().for_each(RequestQueue::accept);
    }

    pub(crate) fn refuse(&self, why: &str) {
        self.lanes.iter().for_each(|lane| lane.refuse(why));
    }

    /// Answers waiting requests whose deadline passes; never ends.
    async fn expire_waiting(&self) {
        loop {
            tokio::time::sleep(WAITING_GRAIN).await;
            for lane in &self.lanes {
                lane.expire(Instant::now());
            }
        }
    }

    /// Keeps the connection, until the endpoint closes.
    pub(crate) async fn run(self: Arc<Self>, shared: Arc<Shared>) {
        let mut closing = shared.closing.subscribe();
        tokio::select! {
            () = self.keep_connected(&shared) => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
        self.refuse("the endpoint is closed");
    }

    async fn keep_connected(self: &Arc<Self>, shared: &Arc<Shared>) {
        let mut addresses = self.addresses.subscribe();
        let mut failures = 0;
        let mut reported = String::new();
        // One that was begun anew because the peer was heard of comes to its end: two that dial each other would interrupt each
        // other for ever, if what they say takes as long as this.
        let mut was_nudged = false;
        loop {
            let known = addresses.borrow_and_update().clone();
            if known.is_empty() {
                self.refuse(&format!("no address of node {} is known", self.node));
                failures = 0;
                // The sender lives in `self`.
                let _ = addresses.changed().await;
                continue;
            }
            let began = Instant::now();
            let dialled = tokio::select! {
                dialled = self.dial(shared, &known) => dialled,
                () = self.expire_waiting() => continue,
                () = self.nudged_after(began + FRESH_DIAL), if !was_nudged => {
                    was_nudged = true;
                    continue;
                }
                _ = addresses.changed() => continue,
            };
            was_nudged = false;
            match dialled {
                Ok(dialled) => {
                    reported.clear();
                    let began = Instant::now();
                    let why = self.use_connection(shared, dialled, &mut addresses).await;
                    tracing::warn!(peer = %self.node, why, "connection lost");
                    if began.elapsed() >= SHORT_LIVED {
                        failures = 0;
                    }
                    if failures == 0 {
                        // Requests go on waiting: it was there, and most likely is again.
                        failures = 1;
                        continue;
                    }
                    self.refuse(&format!("the connection to node {} was lost: {why}", self.node));
                }
                Err(error) => {
                    self.refuse(&error.why);
                    if reported != error.why {
                        if error.refused {
                            tracing::error!(peer = %self.node, why = error.why, "the peer refuses this node");
                        } else {
                            tracing::warn!(peer = %self.node, why = error.why, "cannot connect");
                        }
                        reported = error.why;
                    }
                }
            }
            let pause = back_off(failures, shared);
            failures += 1;
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.nudged_after(began) => {}
                _ = addresses.changed() => addresses.mark_changed(),
            }
        }
    }

    async fn nudged_after(&self, moment: Instant) {
        loop {
            self.nudged.notified().await;
            if Instant::now() >= moment {
                return;
            }
        }
    }

    /// Tries all addresses in order.
    async fn dial(&self, shared: &Shared, addresses: &[String]) -> Result<Dialled, DialError> {
        let mut failures = Vec::new();
        let mut refused = false;
        for address in addresses {
            let limit = shared.options.connect_timeout;
            let resolved = match tokio::time::timeout(limit, tokio::net::lookup_host(address)).await {
                Ok(Ok(resolved)) => resolved.take(ADDRESSES_PER_NAME).collect::<Vec<_>>(),
                Ok(Err(error)) => {
                    failures.push(format!("{address}: {error}"));
                    continue;
                }
                Err(_) => {
                    failures.push(format!("{address}: the name was not resolved in time"));
                    continue;
                }
            };
            if resolved.is_empty() {
                failures.push(format!("{address}: the name has no address"));
            }
            for resolved in resolved {
                let attempt = tokio::time::timeout(limit, self.dial_one(shared, resolved)).await;
                match attempt.unwrap_or_else(|_| Err(unreachable("no answer"))) {
                    Ok(dialled) => return Ok(dialled),
                    Err(error) => {
                        refused |= error.refused;
                        failures.push(format!("{address}: {}", error.why));
                    }
                }
            }
        }
        Err(DialError { why: format!("node {}: {}", self.node, failures.join("; ")), refused })
    }

    async fn dial_one(&self, shared: &Shared, address: SocketAddr) -> Result<Dialled, DialError> {
        let endpoint = shared.endpoint().ok_or_else(|| unreachable("the endpoint is closed"))?;
        let config = shared.peer_client_config();
        let connection = endpoint
            .connect_with(config, address, &node_name(self.node))
            .map_err(|error| unreachable(&error.to_string()))?
            .await
            .map_err(|error| unreachable(&explain(&error)))?;
        drop(endpoint);
        let greeted = self.greet(shared, &connection).await;
        match greeted {
            Ok((lanes, answer)) => {
                let max_body = usize::try_from(answer.max_body).unwrap_or(usize::MAX);
                tracing::info!(peer = %self.node, %address, "connected");
                Ok(Dialled { connection, lanes, incarnation: answer.incarnation, max_body })
            }
            Err(error) => {
                connection.close(CLOSED_REFUSED.into(), error.why.as_bytes());
                Err(error)
            }
        }
    }

    async fn greet(
        &self,
        shared: &Shared,
        connection: &Connection,
    ) -> Result<([(SendStream, RecvStream); LANES.len()], Answer), DialError> {
        let mut opened = Vec::with_capacity(LANES.len());
        for lane in LANES {
            let (mut send, receive) =
                connection.open_bi().await.map_err(|error| unreachable(&explain(&error)))?;
            // Fails for closed streams only, which the write below reports.
            let _ = send.set_priority(lane_priority(lane));
            let hello = encode_hello(&Hello {
                cluster: shared.cluster,
                from: shared.node,
                to: self.node,
                incarnation: shared.incarnation,
                max_body: shared.options.max_peer_body as u64,
                lane,
            });
            send.write_all(&hello).await.map_err(|error| unreachable(&write_error(error)))?;
            opened.push((send, receive));
        }
        let mut last = None;
        for (_, receive) in &mut opened {
            let answer = read_answer(receive).await.map_err(|why| unreachable(&why))?;
            self.check(shared, &answer)?;
            last = Some(answer);
        }
        match (<[_; LANES.len()]>::try_from(opened), last) {
            (Ok(lanes), Some(answer)) => Ok((lanes, answer)),
            _ => Err(unreachable("no lane was opened")),
        }
    }

    /// Whether the answer is that of the peer that was dialled.
    fn check(&self, shared: &Shared, answer: &Answer) -> Result<(), DialError> {
        let refused = |why: String| Err(DialError { why, refused: true });
        if answer.verdict != Verdict::Accepted {
            return Err(DialError {
                why: format!("refused: {}", answer.reason),
                refused: answer.verdict != Verdict::Busy,
            });
        }
        if answer.cluster != shared.cluster {
            return refused(other_cluster(answer.cluster, shared.cluster));
        }
        if answer.node != self.node {
            return refused(format!("node {} answered instead of node {}", answer.node, self.node));
        }
        Ok(())
    }

    /// Drives the lanes until something ends the connection; says what.
    async fn use_connection(
        self: &Arc<Self>,
        shared: &Shared,
        dialled: Dialled,
        addresses: &mut watch::Receiver<Vec<String>>,
    ) -> String {
        let Dialled { connection, lanes, incarnation, max_body } = dialled;
        self.accept();
        let mut drivers = JoinSet::new();
        for (index, (send, receive)) in lanes.into_iter().enumerate() {
            let (peer, max_reply) = (self.clone(), shared.options.max_peer_body);
            peer.lanes[index].set_max_body(max_body);
            drivers.spawn(async move { drive(&peer.lanes[index], send, receive, max_reply).await });
        }
        let why = loop {
            tokio::select! {
                ended = drivers.join_next() => break match ended {
                    Some(Ok(why)) => why,
                    Some(Err(error)) => error.to_string(),
                    None => "no lane is left".to_owned(),
                },
                () = self.nudged.notified() => {
                    if self.seen.lock().is_some_and(|seen| seen != incarnation) {
                        break "the peer has restarted".to_owned();
                    }
                }
                changed = addresses.changed() => {
                    if changed.is_err() || addresses.borrow().is_empty() {
                        addresses.mark_changed();
                        break "the peer was removed".to_owned();
                    }
                }
            }
        };
        connection.close(CLOSED_NORMALLY.into(), why.as_bytes());
        // With the connection closed they end, and with them what was in flight.
        while drivers.join_next().await.is_some() {}
        why
    }
}

/// Doubles from one failure to the next, up to the bound, with up to half as much jitter.
fn back_off(failures: u32, shared: &Shared) -> Duration {
    let options = &shared.options;
    let pause = options.min_back_off.saturating_mul(1 << failures.min(16)).min(options.max_back_off);
    let jitter = shared.random_u128() as u32;
    pause.mul_f64(0.75 + 0.5 * f64::from(jitter) / f64::from(u32::MAX))
}

fn unreachable(why: &str) -> DialError {
    DialError { why: why.to_owned(), refused: false }
}

pub(crate) fn other_cluster(theirs: u128, ours: u128) -> String {
    format!("it belongs to cluster {theirs:032x}, this node to cluster {ours:032x}")
}

pub(crate) fn write_error(error: quinn::WriteError) -> String {
    match error {
        quinn::WriteError::ConnectionLost(error) => explain(&error),
        other => other.to_string(),
    }
}

/// Reads the answer to a greeting. Nothing may follow it: nothing was asked yet.
pub(crate) async fn read_answer(receive: &mut RecvStream) -> Result<Answer, String> {
    let mut bytes = Vec::new();
    loop {
        let chunk = match receive.read_chunk(MAX_ANSWER_LENGTH, true).await {
            Ok(Some(chunk)) => chunk.bytes,
            Ok(None) => return Err("the stream ended instead of an answer".to_owned()),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(explain(&error)),
            Err(error) => return Err(error.to_string()),
        };
        bytes.extend_from_slice(&chunk);
        match decode_answer(&bytes) {
            Ok(Some((answer, length))) if length == bytes.len() => return Ok(answer),
            Ok(Some(_)) => return Err("bytes follow the answer".to_owned()),
            Ok(None) if bytes.len() <= MAX_ANSWER_LENGTH => {}
            Ok(None) => return Err("the answer is too long".to_owned()),
            Err(WireError::Version { theirs }) => {
                return Err(format!("it speaks wire version {theirs}, this side version {WIRE_VERSION}"));
            }
            Err(error) => return Err(error.to_string()),
        }
    }
}
