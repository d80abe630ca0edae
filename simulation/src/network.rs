//! [`SimulatedNetwork`]: carries requests between nodes, late, or not at all.
//!
//! It promises what [`Transport`] does and no more. Requests of one lane to one peer arrive in
//! their order; a request may be lost on its way (its connection broke), before or after it was
//! carried out, and then its sender hears at once, or only when the deadline has passed. Answers
//! overtake each other. What was sent arrives even if its sender has died since; what arrives at a
//! node that was restarted in between is lost with its connection.
//!
//! Beyond the promise, messages of Raft itself are now and then carried twice, the second time late
//! and out of order: Raft is built to stand that, so a network layer that one day resends what it is
//! not sure of must do no harm. Requests of clients, passed on between nodes, are never doubled:
//! that would be the transport breaking its word.
//!
//! A **cut** is one-way: nothing sent from one node to the other arrives, be it a request or an
//! answer.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::runtime::Process;
use dogsled_replication::{ClientIdentity, Lane, NodeId, Service, Transport, TransportError};
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::planted::Planted;
use crate::random::Random;
use crate::trace::{Trace, event};

/// How well a network does.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Times on the way, in microseconds.
    pub delay_us: (u64, u64),
    /// Requests lost before they are carried out, in a thousand.
    pub requests_lost: u64,
    /// Answers lost, in a thousand.
    pub replies_lost: u64,
    /// Messages of Raft carried twice, in a thousand.
    pub doubled: u64,
}

impl Quality {
    /// A good local network.
    pub const GOOD: Quality =
        Quality { delay_us: (100, 1_500), requests_lost: 0, replies_lost: 0, doubled: 0 };
}

type Answer = Result<Bytes, TransportError>;
type Pipe = (NodeId, NodeId, Lane);

struct Request {
    from: NodeId,
    to: NodeId,
    lane: Lane,
    body: Bytes,
    number: u64,
    /// Life of the receiver for which it was meant.
    life: u64,
    /// `None` for the second copy of a doubled one.
    answer: Option<oneshot::Sender<Answer>>,
}

#[derive(Clone)]
struct Attached {
    service: Arc<dyn Service>,
    process: Process,
    life: u64,
}

struct State {
    random: Random,
    nodes: BTreeMap<NodeId, Attached>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    quality: Quality,
    /// A group whose leaders cannot spread what they write; see [`SimulatedNetwork::starve`].
    starved: Option<u32>,
    /// Ways that are worse than the rest: by so many microseconds.
    slow: BTreeMap<(NodeId, NodeId), u64>,
    pipes: BTreeMap<Pipe, (mpsc::UnboundedSender<(Instant, Request)>, Instant)>,
    /// Answers that never come: whoever waits is to find out by the deadline.
    silent: VecDeque<oneshot::Sender<Answer>>,
    lives: u64,
    requests: u64,
    /// What nodes take clients' requests for, if a bug is planted there.
    planted: Option<Planted>,
}

/// See the [module](self); clones are the same network.
#[derive(Clone)]
pub struct SimulatedNetwork {
    state: Arc<Mutex<State>>,
    trace: Trace,
}

/// Silent answers kept; beyond it, the oldest are told.
const SILENT: usize = 10_000;

/// So many lost in a thousand are next to nothing.
const FEW: u64 = 20;

fn lost(why: &str) -> Answer {
    Err(TransportError::Lost(why.to_owned()))
}

impl SimulatedNetwork {
    /// A network without nodes.
    pub fn new(random: Random, trace: Trace) -> SimulatedNetwork {
        let state = State {
            random,
            nodes: BTreeMap::new(),
            cuts: BTreeSet::new(),
            quality: Quality::GOOD,
            starved: None,
            slow: BTreeMap::new(),
            pipes: BTreeMap::new(),
            silent: VecDeque::new(),
            lives: 0,
            requests: 0,
            planted: None,
        };
        SimulatedNetwork { state: Arc::new(Mutex::new(state)), trace }
    }

    /// From now on nodes take clients' requests for what a bug makes of them.
    pub fn plant(&self, planted: Option<Planted>) {
        self.state.lock().planted = planted;
    }

    /// What a node is to be started with.
    pub fn transport(&self, from: NodeId) -> Arc<dyn Transport> {
        Arc::new(SimulatedTransport { from, network: self.clone() })
    }

    /// From now on the node's requests are answered by this, in that process.
    pub fn attach(&self, node: NodeId, service: Arc<dyn Service>, process: Process) {
        let mut state = self.state.lock();
        state.lives += 1;
        let life = state.lives;
        state.nodes.insert(node, Attached { service, process, life });
    }

    /// From now on the node cannot be reached.
    pub fn detach(&self, node: NodeId) {
        self.state.lock().nodes.remove(&node);
    }

    /// How well everything does from now on.
    pub fn set_quality(&self, quality: Quality) {
        self.state.lock().quality = quality;
    }

    /// Makes a way slower than the rest, in one direction.
    pub fn slow_down(&self, from: NodeId, to: NodeId, by_us: u64) {
        self.state.lock().slow.insert((from, to), by_us);
    }

    /// Nothing gets from one node to the other any more.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.state.lock().cuts.insert((from, to));
    }

    /// From now on each append of the group is lost that brings an entry of its sender's own term;
    /// heartbeats and older entries are not.
    pub fn starve(&self, group: Option<u32>) {
        self.state.lock().starved = group;
    }

    /// Whether all ways are open and equally quick, next to nothing is lost, and the group is not starved.
    pub fn is_good_for(&self, group: u32) -> bool {
        let state = self.state.lock();
        let Quality { requests_lost, replies_lost, .. } = state.quality;
        state.cuts.is_empty()
            && state.slow.is_empty()
            && requests_lost.max(replies_lost) <= FEW
            && state.starved != Some(group)
    }

    /// All ways are open and equally quick.
    pub fn mend(&self) {
        let mut state = self.state.lock();
        state.cuts.clear();
        state.slow.clear();
    }

    fn send(&self, from: NodeId, to: NodeId, lane: Lane, body: Bytes) -> oneshot::Receiver<Answer> {
        let (answer, receiver) = oneshot::channel();
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.requests += 1;
        let number = state.requests;
        let checksum = crc32fast::hash(&body);
        let (what, length) = (name(&body), body.len());
        event!(self.trace, "{from}->{to} #{number} {lane:?} {what} {length} bytes {checksum:08x}");
        let cut = state.cuts.contains(&(from, to));
        let Some(life) = state.nodes.get(&to).map(|node| node.life).filter(|_| !cut) else {
            // A connection that is known to be broken says so; one that is not, says nothing.
            if state.random.chance(500) {
                let _ = answer.send(Err(TransportError::Unreachable(format!("no way to node {to}"))));
            } else {
                state.keep_silent(answer);
            }
            return receiver;
        };
        let quality = state.quality;
        let slow = state.slow.get(&(from, to)).copied().unwrap_or(0);
        let mut delay =
            || Duration::from_micros(state.random.between(quality.delay_us.0, quality.delay_us.1) + slow);
        let arrival = Instant::now() + delay();
        let late = arrival + delay() * 10;
        let starved = state.starved.is_some_and(|group| brings_own_entries(&body, group));
        if starved || state.random.chance(quality.requests_lost) {
            event!(self.trace, "#{number} is lost");
            if state.random.chance(500) {
                state.keep_silent(answer);
            } else {
                tokio::spawn(async move {
                    tokio::time::sleep_until(arrival + Duration::from_millis(1)).await;
                    let _ = answer.send(lost("the request was lost"));
                });
            }
            return receiver;
        }
        if is_rafts(&body) && state.random.chance(quality.doubled) {
            let again = Request { from, to, lane, body: body.clone(), number, life, answer: None };
            let network = self.clone();
            tokio::spawn(async move {
                tokio::time::sleep_until(late).await;
                network.arrive(again);
            });
        }
        let request = Request { from, to, lane, body, number, life, answer: Some(answer) };
        let (pipe, last) = state.pipes.entry((from, to, lane)).or_insert_with(|| {
            let (sender, receiver) = mpsc::unbounded_channel();
            tokio::spawn(self.clone().run_pipe(receiver));
            (sender, arrival)
        });
        // A stream: what comes after waits for what is before it.
        *last = arrival.max(*last);
        // It ends only with the runtime.
        let _ = pipe.send((*last, request));
        receiver
    }

    async fn run_pipe(self, mut requests: mpsc::UnboundedReceiver<(Instant, Request)>) {
        while let Some((at, request)) = requests.recv().await {
            tokio::time::sleep_until(at).await;
            self.arrive(request);
        }
    }

    fn arrive(&self, request: Request) {
        let Request { from, to, lane, body, number, life, answer } = request;
        let node = {
            let mut state = self.state.lock();
            let open = !state.cuts.contains(&(from, to));
            match state.nodes.get(&to).filter(|node| open && node.life == life).cloned() {
                Some(node) => node,
                None => {
                    event!(self.trace, "#{number} does not arrive");
                    if let Some(answer) = answer {
                        state.keep_silent(answer);
                    }
                    return;
                }
            }
        };
        event!(self.trace, "#{number} arrives at {to}");
        let network = self.clone();
        node.process.spawn(async move {
            let reply = node.service.peer_request(from, lane, body).await;
            network.answer(from, to, number, reply, answer);
        });
    }

    fn answer(
        &self,
        from: NodeId,
        to: NodeId,
        number: u64,
        reply: Bytes,
        answer: Option<oneshot::Sender<Answer>>,
    ) {
        let Some(answer) = answer else { return };
        let mut state = self.state.lock();
        event!(self.trace, "#{number} answered, {} bytes {:08x}", reply.len(), crc32fast::hash(&reply));
        let quality = state.quality;
        let slow = state.slow.get(&(to, from)).copied().unwrap_or(0);
        let delay =
            Duration::from_micros(state.random.between(quality.delay_us.0, quality.delay_us.1) + slow);
        if state.cuts.contains(&(to, from)) || state.random.chance(quality.replies_lost) {
            event!(self.trace, "#{number}'s answer is lost");
            if state.random.chance(500) {
                state.keep_silent(answer);
                return;
            }
            tokio::spawn(async move {
                tokio::time::sleep(delay + Duration::from_millis(1)).await;
                let _ = answer.send(lost("the answer was lost"));
            });
            return;
        }
        let trace = self.trace.clone();
        tokio::spawn(async move {
            tokio::time::sleep(delay).await;
            event!(trace, "#{number}'s answer arrives");
            let _ = answer.send(Ok(reply));
        });
    }

    /// A request of a client, which is nobody's peer: its way is as good as the others'.
    pub async fn ask(&self, client: u64, to: NodeId, body: Bytes, deadline: Duration) -> Answer {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.state.lock();
            let quality = state.quality;
            let Some(node) = state.nodes.get(&to).cloned() else {
                return Err(TransportError::Unreachable(format!("node {to} is down")));
            };
            let way = (quality.delay_us.0, quality.delay_us.1);
            let there = Duration::from_micros(state.random.between(way.0, way.1));
            let back = Duration::from_micros(state.random.between(way.0, way.1));
            let request_lost = state.random.chance(quality.requests_lost);
            let reply_lost = state.random.chance(quality.replies_lost);
            let network = self.clone();
            let body = state.planted.map_or(body.clone(), |planted| planted.request(body));
            tokio::spawn(async move {
                tokio::time::sleep(there).await;
                let alive = network.state.lock().nodes.get(&to).is_some_and(|now| now.life == node.life);
                if request_lost || !alive {
                    return;
                }
                let identity = ClientIdentity { name: format!("client {client}"), administrator: true };
                let service = Arc::clone(&node.service);
                let served = node.process.spawn(async move { service.client_request(&identity, body).await });
                let Ok(reply) = served.await else { return };
                tokio::time::sleep(back).await;
                if !reply_lost {
                    let _ = sender.send(reply);
                }
            });
        }
        match tokio::time::timeout(deadline, receiver).await {
            Err(_) => Err(TransportError::TimedOut),
            Ok(Err(_)) => {
                // A connection that breaks is not noticed within the same instant.
                tokio::time::sleep(Duration::from_millis(1)).await;
                lost("the connection broke")
            }
            Ok(Ok(reply)) => Ok(reply),
        }
    }
}

impl SimulatedNetwork {
    /// A client's request that is answered by a stream; `None` if the node is down. Messages come one
    /// after the other and as fast as they are taken; the stream breaks off when the node dies. Its
    /// time on the way is always the same, so that who only listens changes nothing for others.
    pub fn watch(&self, client: u64, to: NodeId, body: Bytes) -> Option<mpsc::Receiver<Bytes>> {
        let (node, planted) = {
            let state = self.state.lock();
            (state.nodes.get(&to).cloned()?, state.planted)
        };
        let (sender, receiver) = mpsc::channel(1);
        let identity = ClientIdentity { name: format!("watcher {client}"), administrator: false };
        node.process.spawn(async move {
            let mut stream = node.service.client_stream(&identity, body);
            let mut number = 0;
            while let Some(message) = stream.next().await {
                number += 1;
                if planted.is_some_and(|planted| planted.drops(&message, number)) {
                    continue;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
                if sender.send(message).await.is_err() {
                    return;
                }
            }
        });
        Some(receiver)
    }
}

impl State {
    fn keep_silent(&mut self, answer: oneshot::Sender<Answer>) {
        self.silent.push_back(answer);
        if self.silent.len() > SILENT {
            self.silent.pop_front();
        }
    }
}

/// What a request is called, by the second byte of its header.
fn name(body: &[u8]) -> &'static str {
    const NAMES: [&str; 12] = [
        "?",
        "append",
        "vote",
        "pre-vote",
        "transfer-leader",
        "read-index",
        "snapshot-begin",
        "snapshot-piece",
        "snapshot-finish",
        "forward",
        "adopt",
        "join",
    ];
    body.get(1).and_then(|kind| NAMES.get(usize::from(*kind))).unwrap_or(&"?")
}

/// Whether it is a message of Raft's own, which may be carried twice.
fn is_rafts(body: &[u8]) -> bool {
    matches!(name(body), "append" | "vote" | "pre-vote")
}

/// Whether it is an append of the group with an entry of the term, and of the leader, that sends it.
/// The layout is that of `dogsled_replication`'s messages.
///
/// # Panics
/// If that has changed: then this function has to, or figure 8 would never be played again.
fn brings_own_entries(body: &[u8], group: u32) -> bool {
    fn take<'b>(rest: &mut &'b [u8], length: usize) -> Option<&'b [u8]> {
        rest.split_off(..length)
    }
    fn number(rest: &mut &[u8]) -> Option<u32> {
        Some(u32::from_le_bytes(take(rest, 4)?.try_into().ok()?))
    }
    fn look(body: &[u8], group: u32) -> Option<bool> {
        let mut rest = body;
        // Version, kind, cluster.
        take(&mut rest, 10)?;
        if number(&mut rest)? != group {
            return Some(false);
        }
        take(&mut rest, 1)?;
        let sender = take(&mut rest, 16)?;
        // The log ids of the entry before, and of the last one committed.
        for _ in 0..2 {
            if take(&mut rest, 1)? != [0] {
                take(&mut rest, 24)?;
            }
        }
        for _ in 0..number(&mut rest)? {
            let length = number(&mut rest)? as usize;
            let entry = take(&mut rest, length)?;
            if entry.get(1..17)? == sender {
                return Some(true);
            }
        }
        Some(false)
    }
    name(body) == "append" && look(body, group).expect("an append has the layout that is expected here")
}

struct SimulatedTransport {
    from: NodeId,
    network: SimulatedNetwork,
}

impl Transport for SimulatedTransport {
    fn request(
        &self,
        to: NodeId,
        lane: Lane,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let receiver = self.network.send(self.from, to, lane, body);
        async move {
            match tokio::time::timeout(deadline, receiver).await {
                Err(_) => Err(TransportError::TimedOut),
                Ok(Err(_)) => {
                    // Nobody who tries again at once may do so without end within one instant.
                    tokio::time::sleep(Duration::from_millis(1)).await;
                    lost("the connection broke")
                }
                Ok(Ok(answer)) => answer,
            }
        }
        .boxed()
    }

    fn set_addresses(&self, _: NodeId, _: Vec<String>) {}
}
