//! What arrives: handshakes, greetings, and the connections of peers and clients after them.
//!
//! A stranger gets as far as TLS: without a certificate of the cluster's authority there is no
//! stream. A peer is then taken for who its certificate names, and must greet as that node. One
//! connection per peer is served; a newer one takes the place of an older, in such a way that the
//! service never sees requests of both at a time, nor an older one's after a newer one's.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::{ClientIdentity, NodeId, Service};
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use quinn::{Connection, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use crate::client_stream;
use crate::endpoint::Shared;
use crate::options::{LANES, lane_index, lane_priority};
use crate::peer::{CLOSED_NORMALLY, CLOSED_REFUSED, other_cluster};
use crate::responder::{Limits, respond};
use crate::tls::{explain, protocol, remote_names};
use crate::wire::{
    Answer, CLIENT_ALPN, Greeting, Hello, MAX_GREETING_LENGTH, PEER_ALPN, Verdict, WIRE_VERSION, WireError,
    decode_greeting, encode_answer,
};

/// How long a refusal waits to be read before the connection is closed.
const REFUSAL_LINGER: Duration = Duration::from_millis(500);
/// How long another connection of the same id has to show that it lives.
const PROBE: Duration = Duration::from_secs(1);
const PROBE_GRAIN: Duration = Duration::from_millis(20);

type Refusal = (Verdict, String);

/// The connections that peers have made to this node.
#[derive(Default)]
pub(crate) struct IncomingPeers {
    peers: Mutex<HashMap<NodeId, Arc<IncomingPeer>>>,
}

impl IncomingPeers {
    /// Forgets them: a handle of a connection keeps its socket open.
    pub(crate) fn clear(&self) {
        self.peers.lock().clear();
    }

    fn forget(&self, node: NodeId, connection: &Connection) {
        let peers = self.peers.lock();
        let Some(peer) = peers.get(&node) else { return };
        let mut current = peer.current.lock();
        if current.as_ref().is_some_and(|current| current.connection.stable_id() == connection.stable_id()) {
            // The entry itself stays, for its right to read; there are few nodes.
            *current = None;
        }
    }
}

#[derive(Default)]
struct IncomingPeer {
    current: Mutex<Option<Current>>,
    /// Held by the connection whose requests are handed to the service.
    reading: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Clone)]
struct Current {
    connection: Connection,
    incarnation: u128,
}

/// Takes what arrives until the endpoint closes.
pub(crate) async fn accept_loop(shared: Arc<Shared>, service: Arc<dyn Service>) {
    let Some(endpoint) = shared.endpoint() else { return };
    let handshakes = Arc::new(Semaphore::new(shared.options.max_handshakes));
    let clients = Arc::new(Semaphore::new(shared.options.max_client_connections));
    let by_address = ByAddress::default();
    let mut tasks = JoinSet::new();
    loop {
        let incoming = tokio::select! {
            incoming = endpoint.accept() => incoming,
            Some(_) = tasks.join_next() => continue,
        };
        let Some(incoming) = incoming else { break };
        let max = shared.options.max_handshakes;
        let address = incoming.remote_address().ip();
        // When half of them are made, who has many of these gets no more: one stranger is not to keep all others out.
        let is_crowded = handshakes.available_permits() < max / 2;
        let is_one_of_many = is_crowded && Handshake::of(&by_address, address) >= (max / 4).max(1);
        let permit = (!is_one_of_many).then(|| handshakes.clone().try_acquire_owned().ok()).flatten();
        let Some(permit) = permit else {
            // A flood: not even a refusal, which would be traffic to an address that may be forged.
            shared.counters.flooded();
            incoming.ignore();
            continue;
        };
        let busy = handshakes.available_permits() < shared.options.max_handshakes * 3 / 4;
        if busy && !incoming.remote_address_validated() && incoming.may_retry() {
            // Fails for validated addresses only.
            let _ = incoming.retry();
            continue;
        }
        let handshake = Handshake::new(permit, &by_address, address);
        tasks.spawn(connection(shared.clone(), service.clone(), clients.clone(), incoming, handshake));
    }
    drop(endpoint);
    // The connections are closed: what is left completes requests, or is dropped by the owner.
    while tasks.join_next().await.is_some() {}
}

/// How many connections are being made from each address.
type ByAddress = Arc<Mutex<HashMap<IpAddr, usize>>>;

/// A connection that is being made, and counts as that until this is dropped.
struct Handshake {
    _permit: OwnedSemaphorePermit,
    by_address: ByAddress,
    address: IpAddr,
}

impl Handshake {
    fn new(permit: OwnedSemaphorePermit, by_address: &ByAddress, address: IpAddr) -> Handshake {
        *by_address.lock().entry(address).or_insert(0) += 1;
        Handshake { _permit: permit, by_address: Arc::clone(by_address), address }
    }

    /// How many there are from an address.
    fn of(by_address: &ByAddress, address: IpAddr) -> usize {
        by_address.lock().get(&address).copied().unwrap_or(0)
    }
}

impl Drop for Handshake {
    fn drop(&mut self) {
        let mut by_address = self.by_address.lock();
        if let Entry::Occupied(mut count) = by_address.entry(self.address) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
    }
}

async fn connection(
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    clients: Arc<Semaphore>,
    incoming: Incoming,
    handshake: Handshake,
) {
    let address = incoming.remote_address();
    let limit = shared.options.connect_timeout;
    let made = match incoming.accept() {
        Ok(connecting) => tokio::time::timeout(limit, connecting).await,
        Err(error) => Ok(Err(error)),
    };
    let connection = match made {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            shared.counters.failed();
            shared.complain(|| tracing::warn!(%address, why = explain(&error), "a connection was not made"));
            return;
        }
        Err(_) => {
            shared.counters.failed();
            return;
        }
    };
    match protocol(&connection).as_deref() {
        Some(PEER_ALPN) => {
            connection.set_receive_window(shared.options.connection_window());
            peer(shared, service, connection, handshake).await;
        }
        Some(CLIENT_ALPN) => match Arc::clone(&clients).try_acquire_owned() {
            Ok(_one) => {
                let connections = shared.options.max_client_connections - clients.available_permits();
                let window = shared.options.client_window(connections);
                connection.set_receive_window(VarInt::from_u32(window));
                connection.set_send_window(window.into());
                client(shared, service, connection, handshake).await;
            }
            Err(_) => {
                let why = "this node has as many clients as it serves";
                shared.counters.busy();
                shared.complain(|| tracing::warn!(%address, "a client is refused: {why}"));
                refuse_first_stream(&shared, &connection, (Verdict::Busy, why.to_owned())).await;
            }
        },
        _ => connection.close(CLOSED_REFUSED.into(), b"unknown protocol"),
    }
}

/// Waits for the next stream and its greeting, no longer than a dial may take.
async fn greeted_stream(
    shared: &Shared,
    connection: &Connection,
) -> Result<(SendStream, RecvStream, Result<Greeting, Refusal>), String> {
    let read = async {
        let (send, mut receive) = connection.accept_bi().await.map_err(|error| explain(&error))?;
        let greeting = read_greeting(&mut receive).await?;
        Ok((send, receive, greeting))
    };
    let limit = shared.options.connect_timeout;
    tokio::time::timeout(limit, read).await.unwrap_or_else(|_| Err("it did not greet in time".to_owned()))
}

/// Outer error: the stream failed. Inner: what came is no greeting, and the answer says so.
async fn read_greeting(receive: &mut RecvStream) -> Result<Result<Greeting, Refusal>, String> {
    let mut bytes = Vec::new();
    loop {
        match receive.read_chunk(MAX_GREETING_LENGTH, true).await {
            Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.bytes),
            Ok(None) => return Err("the stream ended instead of a greeting".to_owned()),
            Err(quinn::ReadError::ConnectionLost(error)) => return Err(explain(&error)),
            Err(error) => return Err(error.to_string()),
        }
        return Ok(match decode_greeting(&bytes) {
            Ok(Some((greeting, length))) if length == bytes.len() => Ok(greeting),
            Ok(Some(_)) => Err((Verdict::Malformed, "bytes follow the greeting".to_owned())),
            Ok(None) if bytes.len() < MAX_GREETING_LENGTH => continue,
            Ok(None) => Err((Verdict::Malformed, "the greeting is too long".to_owned())),
            Err(error @ WireError::Version { .. }) => Err((Verdict::Version, error.to_string())),
            Err(error) => Err((Verdict::Malformed, error.to_string())),
        });
    }
}

fn answer(shared: &Shared, max_body: usize, refusal: Option<&Refusal>) -> Vec<u8> {
    encode_answer(&Answer {
        version: WIRE_VERSION,
        verdict: refusal.map_or(Verdict::Accepted, |(verdict, _)| *verdict),
        cluster: shared.cluster,
        node: shared.node,
        incarnation: shared.incarnation,
        max_body: max_body as u64,
        reason: refusal.map_or(String::new(), |(_, reason)| reason.clone()),
    })
}

/// Says why on the stream, waits until that was read, and closes.
async fn refuse(shared: &Shared, connection: &Connection, mut send: SendStream, refusal: Refusal) {
    if refusal.0 != Verdict::Busy {
        shared.counters.failed();
    }
    let bytes = answer(shared, 0, Some(&refusal));
    let said = async {
        if send.write_all(&bytes).await.is_ok() && send.finish().is_ok() {
            // Either outcome means that there is nothing left to wait for.
            let _ = send.stopped().await;
        }
    };
    let _ = tokio::time::timeout(REFUSAL_LINGER, said).await;
    connection.close(CLOSED_REFUSED.into(), refusal.1.as_bytes());
}

async fn refuse_first_stream(shared: &Shared, connection: &Connection, refusal: Refusal) {
    match greeted_stream(shared, connection).await {
        Ok((send, _, _)) => refuse(shared, connection, send, refusal).await,
        Err(_) => connection.close(CLOSED_REFUSED.into(), refusal.1.as_bytes()),
    }
}

async fn peer(shared: Arc<Shared>, service: Arc<dyn Service>, connection: Connection, handshake: Handshake) {
    let address = connection.remote_address();
    let certified = remote_names(&connection).nodes;
    let mut first: Option<(Hello, Arc<OwnedMutexGuard<()>>)> = None;
    let mut seen = [false; LANES.len()];
    let mut lanes = JoinSet::new();
    while seen != [true; LANES.len()] {
        let (mut send, receive, greeting) = match greeted_stream(&shared, &connection).await {
            Ok(stream) => stream,
            Err(why) => {
                shared.counters.failed();
                shared.complain(|| tracing::warn!(%address, why, "a peer's connection failed early"));
                connection.close(CLOSED_REFUSED.into(), why.as_bytes());
                break;
            }
        };
        let checked = greeting.and_then(|greeting| check(&shared, &certified, greeting, first.as_ref()));
        let admitted = match (checked, &first) {
            (Ok(hello), Some((_, reading))) => Ok((hello, reading.clone())),
            (Ok(hello), None) => match admit(&shared, &hello, &connection).await {
                Ok(reading) => Ok((hello, Arc::new(reading))),
                Err(refusal) => Err(refusal),
            },
            (Err(refusal), _) => Err(refusal),
        };
        let (hello, reading) = match admitted {
            Ok((hello, _)) if std::mem::replace(&mut seen[lane_index(hello.lane)], true) => {
                let refusal = (Verdict::Malformed, "a lane was opened twice".to_owned());
                refuse(&shared, &connection, send, refusal).await;
                break;
            }
            Ok(admitted) => admitted,
            Err(refusal) => {
                let why = &refusal.1;
                tracing::error!(%address, node = ?certified, why, "a peer is refused");
                refuse(&shared, &connection, send, refusal).await;
                break;
            }
        };
        let options = &shared.options;
        let _ = send.set_priority(lane_priority(hello.lane));
        if send.write_all(&answer(&shared, options.max_peer_body, None)).await.is_err() {
            break;
        }
        let limits = Limits {
            max_request: options.max_peer_body,
            max_reply: usize::try_from(hello.max_body).unwrap_or(usize::MAX).min(options.max_peer_body),
            max_concurrent: options.max_concurrent_peer_requests,
            max_concurrent_bytes: options.max_concurrent_bytes,
            patience: options.reply_patience,
        };
        let (from, lane, service) = (hello.from, hello.lane, service.clone());
        let handle = move |body: Bytes| service.peer_request(from, lane, body);
        let closed = closed(&connection);
        lanes.spawn(respond(send, receive, limits, closed, reading.clone(), handle));
        first.get_or_insert((hello, reading));
    }
    drop(handshake);
    let _counted = (seen == [true; LANES.len()]).then(|| shared.counters.peer());
    if let (Some((hello, _)), true) = (&first, seen == [true; LANES.len()]) {
        tracing::info!(peer = %hello.from, %address, "a peer has connected");
        if let Some(peer) = shared.peer(hello.from) {
            peer.nudge(hello.incarnation);
        }
    }
    // Only the lanes still hold the right to read.
    let node = first.map(|(hello, _)| hello.from);
    while let Some(ended) = lanes.join_next().await {
        let why = match ended {
            Ok(Ok(())) => "the peer ended a lane".to_owned(),
            Ok(Err(broken)) => {
                if broken.stalled {
                    shared.counters.stalled();
                    tracing::warn!(%address, why = broken.why, "a peer is cut off");
                }
                broken.why
            }
            Err(error) => {
                tracing::error!(%error, "the service has panicked");
                "internal error".to_owned()
            }
        };
        tracing::debug!(%address, why, "a peer's lane has ended");
        // A lane alone is of no use; the peer dials anew.
        connection.close(CLOSED_NORMALLY.into(), why.as_bytes());
        if let Some(node) = node {
            shared.incoming.forget(node, &connection);
        }
    }
}

fn closed(connection: &Connection) -> BoxFuture<'static, ()> {
    let connection = connection.clone();
    async move {
        connection.closed().await;
    }
    .boxed()
}

/// Whether who greets is who the certificate names, and wants this node of this cluster.
fn check(
    shared: &Shared,
    certified: &[NodeId],
    greeting: Greeting,
    first: Option<&(Hello, Arc<OwnedMutexGuard<()>>)>,
) -> Result<Hello, Refusal> {
    let Greeting::Peer(hello) = greeting else {
        return Err((Verdict::Malformed, "a client's greeting under the peers' protocol".to_owned()));
    };
    let identity = |why: String| Err((Verdict::Identity, why));
    if certified != [hello.from] {
        let certified: Vec<String> = certified.iter().map(NodeId::to_string).collect();
        let names = if certified.is_empty() { "no node".to_owned() } else { certified.join(", ") };
        return identity(format!("it greets as node {}, but its certificate names {names}", hello.from));
    }
    if hello.cluster != shared.cluster {
        return Err((Verdict::Cluster, other_cluster(shared.cluster, hello.cluster)));
    }
    if hello.to != shared.node {
        return identity(format!("node {} was dialled, and this is node {}", hello.to, shared.node));
    }
    if hello.from == shared.node && hello.incarnation != shared.incarnation {
        return Err((
            Verdict::DuplicateId,
            format!("two nodes have the id {}: this one and the one that has dialled it", shared.node),
        ));
    }
    if let Some((first, _)) = first
        && (first.from, first.incarnation) != (hello.from, hello.incarnation)
    {
        return identity("its streams greet as different nodes".to_owned());
    }
    Ok(hello)
}

/// Makes the connection the one of its peer, unless another process is connected under that id.
async fn admit(
    shared: &Shared,
    hello: &Hello,
    connection: &Connection,
) -> Result<OwnedMutexGuard<()>, Refusal> {
    let peer = shared.incoming.peers.lock().entry(hello.from).or_default().clone();
    loop {
        let known = peer.current.lock().clone();
        if let Some(known) = &known {
            let other = known.connection.remote_address();
            // From the same address it is the same node, started anew: two cannot share a port.
            let elsewhere = known.incarnation != hello.incarnation && other != connection.remote_address();
            if elsewhere && is_alive(shared, &known.connection).await {
                return Err((
                    Verdict::DuplicateId,
                    format!(
                        "two nodes have the id {}: the one at {other} is connected, this one is at {}",
                        hello.from,
                        connection.remote_address()
                    ),
                ));
            }
        }
        let mut current = peer.current.lock();
        // What had arrived on one that has ended since comes all the same, perhaps after its successor's.
        if let Some(reason) = connection.close_reason() {
            return Err((Verdict::Malformed, format!("the connection has ended: {}", explain(&reason))));
        }
        let id = |current: &Option<Current>| current.as_ref().map(|current| current.connection.stable_id());
        if id(&current) != id(&known) {
            // Another one was quicker: judge again.
            continue;
        }
        *current = Some(Current { connection: connection.clone(), incarnation: hello.incarnation });
        if let Some(known) = known {
            known.connection.close(CLOSED_NORMALLY.into(), b"a newer connection takes its place");
        }
        break;
    }
    // The requests that its predecessor has read come first.
    Ok(peer.reading.clone().lock_owned().await)
}

/// Makes the other side say something, and listens whether it does.
async fn is_alive(shared: &Shared, connection: &Connection) -> bool {
    let before = connection.stats().udp_rx.datagrams;
    // A larger window has to be announced, and the announcement acknowledged.
    let window = shared.options.connection_window();
    if let Ok(larger) = VarInt::from_u64(window.into_inner() + 65_536) {
        connection.set_receive_window(larger);
        connection.set_receive_window(window);
    }
    let probe = async {
        while connection.close_reason().is_none() {
            if connection.stats().udp_rx.datagrams > before {
                return true;
            }
            tokio::time::sleep(PROBE_GRAIN).await;
        }
        false
    };
    tokio::time::timeout(PROBE, probe).await.unwrap_or(false)
}

/// Hands a client's requests to the service, those whose replies may be long only as far as `max_long` allows.
fn handler(
    service: Arc<dyn Service>,
    identity: ClientIdentity,
    max_long: usize,
) -> impl FnMut(Bytes) -> BoxFuture<'static, Bytes> {
    /// What one permit stands for: a semaphore has room for fewer than there may be bytes.
    const UNIT: usize = 1 << 10;
    let units = u32::try_from(max_long / UNIT).unwrap_or(u32::MAX >> 3).clamp(1, u32::MAX >> 3);
    let room = Arc::new(Semaphore::new(units as usize));
    let identity = Arc::new(identity);
    move |body| {
        let long = service.long_reply(&body);
        if long == 0 {
            return service.client_request(&identity, body);
        }
        let wanted = u32::try_from(long.div_ceil(UNIT)).unwrap_or(u32::MAX).min(units);
        let (service, identity, room) = (service.clone(), identity.clone(), room.clone());
        async move {
            // Nobody closes it. Given back when the reply is where the writer counts it.
            let _permit = room.acquire_many_owned(wanted).await;
            service.client_request(&identity, body).await
        }
        .boxed()
    }
}

async fn client(
    shared: Arc<Shared>,
    service: Arc<dyn Service>,
    connection: Connection,
    handshake: Handshake,
) {
    let address = connection.remote_address();
    let names = remote_names(&connection);
    // A node may be a client as well: of another node, for its own users, and when it joins.
    let administrator = names.administrator || !names.nodes.is_empty();
    let name = names.client.or_else(|| names.nodes.first().map(|node| format!("node-{node}")));
    let (mut send, receive, greeting) = match greeted_stream(&shared, &connection).await {
        Ok(stream) => stream,
        Err(why) => {
            shared.counters.failed();
            shared.complain(|| tracing::warn!(%address, why, "a client's connection failed early"));
            return connection.close(CLOSED_REFUSED.into(), why.as_bytes());
        }
    };
    let checked = greeting.and_then(|greeting| match (greeting, name) {
        (Greeting::Client(hello), Some(name)) if hello.cluster == 0 || hello.cluster == shared.cluster => {
            Ok((hello, ClientIdentity { name, administrator }))
        }
        (Greeting::Client(hello), Some(_)) => {
            Err((Verdict::Cluster, other_cluster(shared.cluster, hello.cluster)))
        }
        (Greeting::Client(_), None) => {
            Err((Verdict::Identity, "its certificate names neither a client nor a node".to_owned()))
        }
        (Greeting::Peer(_), _) => {
            Err((Verdict::Malformed, "a peer's greeting under the clients' protocol".to_owned()))
        }
    });
    let (hello, identity) = match checked {
        Ok(checked) => checked,
        Err(refusal) => {
            let why = &refusal.1;
            shared.complain(|| tracing::warn!(%address, why, "a client is refused"));
            return refuse(&shared, &connection, send, refusal).await;
        }
    };
    let options = &shared.options;
    let _ = send.set_priority(1);
    if send.write_all(&answer(&shared, options.max_client_body, None)).await.is_err() {
        return;
    }
    drop(handshake);
    let _counted = shared.counters.client();
    tracing::debug!(%address, client = identity.name, "a client has connected");
    let max_reply = usize::try_from(hello.max_body).unwrap_or(usize::MAX).min(options.max_client_body);
    let limits = Limits {
        max_request: options.max_client_body,
        max_reply,
        max_concurrent: options.max_concurrent_client_requests,
        max_concurrent_bytes: options.max_concurrent_bytes,
        patience: options.reply_patience,
    };
    let handle = handler(service.clone(), identity.clone(), options.max_long_reply_bytes);
    let mut tasks = JoinSet::new();
    let responding = respond(send, receive, limits, closed(&connection), (), handle);
    let requests = {
        let (shared, client) = (shared.clone(), identity.name.clone());
        let task = responding.map(move |ended| {
            ended.map_err(|broken| {
                if broken.stalled {
                    shared.counters.stalled();
                    let why = &broken.why;
                    shared.complain(|| tracing::warn!(%address, client, why, "a client is cut off"));
                }
                broken.why
            })
        });
        tasks.spawn(task).id()
    };
    loop {
        tokio::select! {
            stream = connection.accept_bi() => match stream {
                // QUIC's limit of streams bounds these tasks.
                Ok(stream) => {
                    let closing = shared.closing.subscribe();
                    tasks.spawn(client_stream::serve(
                        service.clone(), identity.clone(), stream, closing, options.reply_patience, max_reply,
                    ));
                }
                Err(_) => break,
            },
            Some(ended) = tasks.join_next_with_id() => {
                let (id, why) = match ended {
                    Ok((id, Ok(()))) => (id, String::new()),
                    Ok((id, Err(why))) => (id, why),
                    Err(error) => {
                        tracing::error!(%error, "the service has panicked");
                        (error.id(), "internal error".to_owned())
                    }
                };
                if id == requests || !why.is_empty() {
                    shared.complain(|| tracing::debug!(%address, why, "a client's connection has ended"));
                    connection.close(CLOSED_NORMALLY.into(), why.as_bytes());
                }
            }
        }
    }
    while tasks.join_next().await.is_some() {}
}
