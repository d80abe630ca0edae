//! A node's end of the network: one UDP port for peers and clients, in and out.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwap;
use bytes::Bytes;
use dogsled_replication::{Lane, NodeId, Service, Transport, TransportError};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use quinn::AsyncUdpSocket;
use ring::rand::SecureRandom;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::accept::{IncomingPeers, accept_loop};
use crate::certs::{CertificateError, CertificateFiles, Certificates, Fingerprint};
use crate::figures::{Counters, Figures};
use crate::options::NetOptions;
use crate::peer::{CLOSED_NORMALLY, Peer};
use crate::socket;
use crate::tls::{client_config, server_config};
use crate::wire::PEER_ALPN;

/// Certificates are spoken of in the log when they have less left.
const EXPIRY_WARNING: Duration = Duration::from_secs(14 * 86_400);
/// Strangers can not fill the log: one complaint per interval, with the count of the others.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

/// Several round trips of a local network, and the longest delay of an acknowledgement.
const QUIET_BEFORE_CLOSE: Duration = Duration::from_millis(60);

/// Where an endpoint's certificates come from.
#[derive(Clone, Debug)]
pub enum CertificateSource {
    /// From files, which are looked at again for changes.
    Files(CertificateFiles),
    /// As they are.
    Memory(Certificates),
}

impl CertificateSource {
    /// The same files whatever directory the process works in later.
    pub(crate) fn absolute(&self) -> CertificateSource {
        match self {
            CertificateSource::Files(files) => CertificateSource::Files(files.absolute()),
            CertificateSource::Memory(_) => self.clone(),
        }
    }
}

/// Who this node is, and where it listens.
#[derive(Clone, Debug)]
pub struct EndpointConfig {
    /// This node.
    pub node: NodeId,
    /// Its cluster; others are refused.
    pub cluster: u128,
    /// The UDP address for peers and clients.
    pub listen: SocketAddr,
    /// What this node presents and trusts.
    pub certificates: CertificateSource,
    /// Limits and times.
    pub options: NetOptions,
}

/// Why an endpoint cannot be opened.
#[derive(Debug)]
pub enum OpenError {
    /// The port cannot be listened on.
    Listen {
        /// Where it should listen.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The certificates cannot be used.
    Certificate(CertificateError),
}

impl std::fmt::Display for OpenError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            OpenError::Listen { address, source } => write!(f, "cannot listen on {address}: {source}"),
            OpenError::Certificate(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Listen { source, .. } => Some(source),
            OpenError::Certificate(error) => Some(error),
        }
    }
}

impl From<CertificateError> for OpenError {
    fn from(error: CertificateError) -> Self {
        OpenError::Certificate(error)
    }
}

/// What the tasks of an endpoint share.
pub(crate) struct Shared {
    pub(crate) node: NodeId,
    pub(crate) cluster: u128,
    pub(crate) incarnation: u128,
    pub(crate) options: NetOptions,
    pub(crate) incoming: IncomingPeers,
    pub(crate) counters: Counters,
    pub(crate) closing: watch::Sender<bool>,
    /// `None` once it is closed. Each clone keeps the port open.
    endpoint: Mutex<Option<quinn::Endpoint>>,
    peer_client: ArcSwap<quinn::ClientConfig>,
    peers: Mutex<HashMap<NodeId, Arc<Peer>>>,
    complaints: Mutex<(Option<Instant>, u64)>,
}

impl Shared {
    pub(crate) fn endpoint(&self) -> Option<quinn::Endpoint> {
        self.endpoint.lock().clone()
    }

    pub(crate) fn peer_client_config(&self) -> quinn::ClientConfig {
        quinn::ClientConfig::clone(&self.peer_client.load())
    }

    pub(crate) fn peer(&self, node: NodeId) -> Option<Arc<Peer>> {
        self.peers.lock().get(&node).cloned()
    }

    pub(crate) fn random_u128(&self) -> u128 {
        random_u128()
    }

    /// Logs what a stranger has caused, but not every time.
    pub(crate) fn complain(&self, log: impl FnOnce()) {
        let mut complaints = self.complaints.lock();
        let (last, unsaid) = &mut *complaints;
        if last.is_some_and(|last| last.elapsed() < COMPLAINT_INTERVAL) {
            *unsaid += 1;
            return;
        }
        let unsaid = std::mem::take(unsaid);
        *last = Some(Instant::now());
        drop(complaints);
        if unsaid > 0 {
            tracing::warn!(unsaid, "more trouble with connections than is logged");
        }
        log();
    }
}

fn random_u128() -> u128 {
    let mut bytes = [0; 16];
    if ring::rand::SystemRandom::new().fill(&mut bytes).is_err() {
        // Systems without randomness cannot do TLS either. The time tells restarts apart.
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        return now.as_nanos();
    }
    u128::from_le_bytes(bytes)
}

/// A node's end of the network; see the [crate's docs](crate).
///
/// Opens silent: it can request at once, but answers nobody until [`serve`](Self::serve) has told
/// whom to ask. To be [closed](Self::close) by its owner; the service may hold it.
pub struct Endpoint {
    shared: Arc<Shared>,
    source: CertificateSource,
    runtime: Handle,
    socket: Weak<dyn AsyncUdpSocket>,
    local_address: SocketAddr,
    tasks: Mutex<Vec<AbortHandle>>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("node", &self.shared.node)
            .field("local_address", &self.local_address)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Opens the port, on the current tokio runtime, which needs its I/O and time drivers. Fails if
    /// the certificate is not one that others would accept from this node.
    pub fn open(config: EndpointConfig) -> Result<Arc<Endpoint>, OpenError> {
        let EndpointConfig { node, cluster, listen, certificates: source, options } = config;
        let source = source.absolute();
        // Before they are read: what changes meanwhile is noticed the next time.
        let known = match &source {
            CertificateSource::Files(files) => Some(files.fingerprint()),
            CertificateSource::Memory(_) => None,
        };
        let certificates = load(&source, node)?;
        let peer_client = client_config(&certificates, PEER_ALPN, &options)?;
        let server = server_config(&certificates, &options)?;
        let at = |source| OpenError::Listen { address: listen, source };
        let (socket, granted) = socket::bind(listen, options.udp_buffer).map_err(at)?;
        if granted < options.udp_buffer {
            tracing::info!(
                granted,
                wanted = options.udp_buffer,
                "the UDP buffers are smaller than wanted (net.core.rmem_max, net.core.wmem_max)"
            );
        }
        let quic_config = socket::endpoint_config(Some(&certificates.key), &options);
        let (quic, socket) = socket::open(socket, quic_config, Some(server)).map_err(at)?;
        let local_address = quic.local_addr().map_err(at)?;
        let poll = options.certificate_poll;
        let endpoint = Arc::new(Endpoint {
            shared: Arc::new(Shared {
                node,
                cluster,
                incarnation: random_u128(),
                options,
                incoming: IncomingPeers::default(),
                counters: Counters::default(),
                closing: watch::Sender::new(false),
                endpoint: Mutex::new(Some(quic)),
                peer_client: ArcSwap::from_pointee(peer_client),
                peers: Mutex::new(HashMap::new()),
                complaints: Mutex::new((None, 0)),
            }),
            source,
            runtime: Handle::current(),
            socket,
            local_address,
            tasks: Mutex::new(Vec::new()),
        });
        if let (CertificateSource::Files(files), Some(known), Some(interval)) =
            (&endpoint.source, known, poll)
        {
            endpoint.spawn(poll_certificates(Arc::downgrade(&endpoint), files.clone(), known, interval));
        }
        Ok(endpoint)
    }

    /// From now on hands what arrives to `service`. To be called once.
    pub fn serve(&self, service: Arc<dyn Service>) {
        self.spawn(accept_loop(self.shared.clone(), service));
    }

    /// Where it listens; tells the port if it was opened on port 0.
    pub fn local_address(&self) -> SocketAddr {
        self.local_address
    }

    /// Who is connected, and who was turned away.
    pub fn figures(&self) -> Figures {
        self.shared.counters.read()
    }

    /// Reads the certificates again, for connections made from now on; those that exist stay. If
    /// the new ones are not usable, the old ones stay in use.
    pub fn reload(&self) -> Result<(), CertificateError> {
        let certificates = load(&self.source, self.shared.node)?;
        let options = &self.shared.options;
        let server = server_config(&certificates, options)?;
        let peer_client = client_config(&certificates, PEER_ALPN, options)?;
        if let Some(endpoint) = self.shared.endpoint() {
            endpoint.set_server_config(Some(server));
        }
        self.shared.peer_client.store(Arc::new(peer_client));
        tracing::info!("certificates reloaded");
        Ok(())
    }

    /// Says goodbye to everyone and frees the port. Requests under way are lost; the service's
    /// futures are dropped.
    pub async fn close(&self) {
        if self.shared.closing.send_replace(true) {
            return;
        }
        // Requests and streams of results fall silent, and what is under way arrives: see
        // `ResetWhenDropped`.
        tokio::time::sleep(QUIET_BEFORE_CLOSE).await;
        let Some(quic) = self.shared.endpoint.lock().take() else { return };
        // Those who dial again at once would keep it busy.
        quic.set_server_config(None);
        quic.close(CLOSED_NORMALLY.into(), b"the node is going down");
        // Peers that do not confirm must not hold it up.
        let _ = tokio::time::timeout(Duration::from_secs(1), quic.wait_idle()).await;
        drop(quic);
        for task in self.tasks.lock().drain(..) {
            task.abort();
        }
        self.shared.peers.lock().clear();
        self.shared.incoming.clear();
        for _ in 0..1000 {
            if self.socket.strong_count() == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        tracing::warn!(address = %self.local_address, "the port is still held by a connection");
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(self.runtime.spawn(task).abort_handle());
    }
}

impl Transport for Endpoint {
    fn request(
        &self,
        to: NodeId,
        lane: Lane,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        match self.shared.peer(to) {
            Some(peer) => peer.lane(lane).request(body, deadline),
            None => {
                let why = format!("no address of node {to} is known");
                ready(Err(TransportError::Unreachable(why))).boxed()
            }
        }
    }

    fn set_addresses(&self, peer: NodeId, addresses: Vec<String>) {
        if *self.shared.closing.borrow() {
            return;
        }
        let mut peers = self.shared.peers.lock();
        if let Some(known) = peers.get(&peer) {
            return known.set_addresses(addresses);
        }
        let new = Arc::new(Peer::new(peer, &self.shared));
        new.set_addresses(addresses);
        peers.insert(peer, new.clone());
        drop(peers);
        self.spawn(new.run(self.shared.clone()));
    }
}

fn load(source: &CertificateSource, node: NodeId) -> Result<Certificates, CertificateError> {
    let certificates = match source {
        CertificateSource::Files(files) => Certificates::load(files)?,
        CertificateSource::Memory(certificates) => {
            certificates.check()?;
            certificates.clone()
        }
    };
    certificates.check_node(node)?;
    let left = certificates.not_after()?.duration_since(SystemTime::now()).unwrap_or_default();
    if left < EXPIRY_WARNING {
        tracing::warn!(days = left.as_secs() / 86_400, "this node's certificate expires soon");
    }
    Ok(certificates)
}

/// Reloads certificates whose files have changed.
async fn poll_certificates(
    endpoint: Weak<Endpoint>,
    files: CertificateFiles,
    mut known: Fingerprint,
    interval: Duration,
) {
    loop {
        tokio::time::sleep(interval).await;
        let Some(endpoint) = endpoint.upgrade() else { return };
        let found = files.fingerprint();
        if found == known {
            continue;
        }
        // They may be half-way replaced: until they can be loaded, look again each time.
        match endpoint.reload() {
            Ok(()) => known = found,
            Err(error) => tracing::error!(%error, "changed certificates are not usable; the old ones stay"),
        }
    }
}
