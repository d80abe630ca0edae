//! [`Pool`]: one connection to each node, made when it is needed and again when it was lost.
//!
//! A node that did not answer is *suspected* for a while, twice as long each time: calls prefer
//! others, which pass on what only the suspect's successor can do. Suspicion never forbids: when all
//! are suspected, they are asked all the same.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_net::{ClientConnection, ClientEndpoint};
use dogsled_replication::{NodeId, TransportError};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long a node is suspected at first, and at most.
const SUSPICION: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(8));
/// For how long one that did not answer comes after those that did, suspected or not. Longer than dialling two
/// that are not there: else the first is taken again when the second has failed, and the third never.
const LATELY: Duration = Duration::from_secs(10);

/// How long a call waits to be connected to the node that it prefers, when it is connected to another. Longer than
/// a handshake takes of which a datagram was lost.
const SOON: Duration = Duration::from_millis(150);

pub(super) struct Pool {
    endpoint: ClientEndpoint,
    seeds: Vec<String>,
    nodes: Mutex<HashMap<NodeId, Arc<Known>>>,
    /// Only one call at a time goes through the seeds.
    seeding: tokio::sync::Mutex<()>,
}

/// What is known of one node.
#[derive(Default)]
struct Known {
    state: Mutex<State>,
    /// Only one call at a time dials.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Default)]
struct State {
    addresses: Vec<String>,
    connection: Option<ClientConnection>,
    suspected_until: Option<Instant>,
    suspicion: Duration,
    /// When it did not answer, unless it has since.
    failed: Option<Instant>,
}

impl State {
    fn open_connection(&self) -> Option<ClientConnection> {
        self.connection.clone().filter(ClientConnection::is_open)
    }

    fn is_suspected(&self) -> bool {
        self.suspected_until.is_some_and(|until| until > Instant::now())
    }

    fn suspect(&mut self) {
        // Of calls that failed together each says so: that is one failure.
        if self.is_suspected() {
            return;
        }
        self.suspicion = (self.suspicion * 2).clamp(SUSPICION.0, SUSPICION.1);
        self.suspected_until = Some(Instant::now() + self.suspicion);
        self.failed = Some(Instant::now());
    }
}

impl Pool {
    pub(super) fn new(endpoint: ClientEndpoint, seeds: Vec<String>) -> Pool {
        Pool { endpoint, seeds, nodes: Mutex::default(), seeding: tokio::sync::Mutex::default() }
    }

    /// The addresses that the client was given.
    pub(super) fn seeds(&self) -> &[String] {
        &self.seeds
    }

    fn known(&self, node: NodeId) -> Arc<Known> {
        Arc::clone(self.nodes.lock().entry(node).or_default())
    }

    /// Where a node can be reached, as the cluster says.
    pub(super) fn set_addresses(&self, node: NodeId, addresses: &[String]) {
        let known = self.known(node);
        let mut state = known.state.lock();
        if !addresses.is_empty() && state.addresses != addresses {
            state.addresses = addresses.to_vec();
            state.suspected_until = None;
        }
    }

    /// Forgets nodes that left the cluster, unless they are what the client is connected to.
    pub(super) fn retain(&self, members: &[NodeId]) {
        self.nodes
            .lock()
            .retain(|node, known| members.contains(node) || known.state.lock().open_connection().is_some());
    }

    /// The node did not answer.
    pub(super) fn suspect(&self, node: NodeId) {
        self.known(node).state.lock().suspect();
    }

    /// The node has answered.
    pub(super) fn trust(&self, node: NodeId) {
        let known = self.known(node);
        let mut state = known.state.lock();
        state.suspected_until = None;
        state.suspicion = Duration::ZERO;
        state.failed = None;
    }

    pub(super) fn is_suspected(&self, node: NodeId) -> bool {
        self.nodes.lock().get(&node).is_some_and(|known| known.state.lock().is_suspected())
    }

    /// Whether the node did not answer lately, and has not since.
    pub(super) fn failed_lately(&self, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        let failed = nodes.get(&node).and_then(|known| known.state.lock().failed);
        failed.is_some_and(|at| at.elapsed() < LATELY)
    }

    /// Whether there is a connection to another node, which may be asked instead.
    pub(super) fn has_other(&self, node: NodeId) -> bool {
        self.nodes.lock().iter().any(|(other, known)| {
            let state = known.state.lock();
            *other != node && !state.is_suspected() && state.open_connection().is_some()
        })
    }

    /// Nodes that there is a connection to.
    pub(super) fn connected(&self) -> Vec<NodeId> {
        let nodes = self.nodes.lock();
        let open = nodes.iter().filter(|(_, known)| known.state.lock().open_connection().is_some());
        open.map(|(node, _)| *node).collect()
    }

    /// The connection to a node, made if there is none. Making it goes on if the caller does not wait for it.
    pub(super) async fn connection(&self, node: NodeId) -> Result<ClientConnection, TransportError> {
        let known = self.known(node);
        if let Some(connection) = known.state.lock().open_connection() {
            return Ok(connection);
        }
        let dialled = tokio::spawn(dial(self.endpoint.clone(), known, node));
        match dialled.await.map_err(|ended| TransportError::Unreachable(ended.to_string()))? {
            Ok(connection) if connection.node() == node => Ok(connection),
            Ok(other) => {
                let found = other.node();
                self.keep(other);
                let why = format!("node {found} answers under the addresses of node {node}");
                Err(TransportError::Unreachable(why))
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Pool::connection`], for a caller that can go to another node: it does not wait for one that is long in
    /// answering, which most likely is not there.
    pub(super) async fn connection_soon(&self, node: NodeId) -> Result<ClientConnection, TransportError> {
        let made = tokio::time::timeout(SOON, self.connection(node)).await;
        made.unwrap_or_else(|_| {
            self.suspect(node);
            Err(TransportError::Unreachable(format!("node {node} did not answer soon")))
        })
    }

    fn keep(&self, connection: ClientConnection) {
        let known = self.known(connection.node());
        let mut state = known.state.lock();
        if state.open_connection().is_none() {
            if state.addresses.is_empty() {
                state.addresses = vec![connection.remote_address().to_string()];
            }
            state.connection = Some(connection);
        }
    }

    /// Some node that can be reached under one of the addresses that the client was given or has learned.
    pub(super) async fn any(&self) -> Result<NodeId, TransportError> {
        let _one_at_a_time = self.seeding.lock().await;
        if let Some(node) = self.connected().first() {
            return Ok(*node);
        }
        let mut failures = Vec::new();
        // Those that were given may have left the cluster since.
        let known: Vec<_> = self.nodes.lock().values().cloned().collect();
        let learned = known.iter().flat_map(|known| known.state.lock().addresses.clone());
        let mut addresses = self.seeds.clone();
        addresses.extend(learned.filter(|address| !self.seeds.contains(address)));
        for address in addresses {
            match self.endpoint.connect(&[address], 0).await {
                Ok(connection) => {
                    let node = connection.node();
                    self.keep(connection);
                    return Ok(node);
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        if failures.is_empty() {
            failures.push("no address was given".to_owned());
        }
        Err(TransportError::Unreachable(failures.join("; ")))
    }

    pub(super) fn close(&self) {
        for (_, known) in self.nodes.lock().drain() {
            if let Some(connection) = known.state.lock().connection.take() {
                connection.close();
            }
        }
    }
}

/// Connects to a node; what answers under its addresses may be another.
async fn dial(
    endpoint: ClientEndpoint,
    known: Arc<Known>,
    node: NodeId,
) -> Result<ClientConnection, TransportError> {
    let asked = Instant::now();
    let _one_at_a_time = known.dialling.lock().await;
    let addresses = {
        let state = known.state.lock();
        if let Some(connection) = state.open_connection() {
            return Ok(connection);
        }
        // Whoever dialled while this waited has found out already.
        if state.is_suspected() && asked.elapsed() > Duration::from_millis(1) {
            return Err(TransportError::Unreachable(format!("node {node} did not answer just now")));
        }
        state.addresses.clone()
    };
    let connected = endpoint.connect(&addresses, 0).await;
    let mut state = known.state.lock();
    match &connected {
        Ok(connection) if connection.node() == node => state.connection = Some(connection.clone()),
        // Another has taken its place: for who asks for this one, that is as good as no answer.
        Ok(_) | Err(_) => state.suspect(),
    }
    connected
}
