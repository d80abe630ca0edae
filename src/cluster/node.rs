//! [`Node`]: a node of a cluster within an application.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use dogsled_net::certs::{CertificateError, CertificateFiles, Certificates, dev_certificates};
use dogsled_net::{CertificateSource, ClientEndpoint, Endpoint, EndpointConfig, NetOptions, OpenError};
use dogsled_replication as replication;
use dogsled_replication::{ClusterError, ClusterMap, NodeId, NodeStatus};
use tokio::sync::watch;

use super::core::Elsewhere;
use super::options::net_options;
use super::{Client, Error, ReplicationConfig, Result};

/// Who a node is, and whom it trusts.
#[derive(Clone, Debug)]
pub enum NodeCertificates {
    /// From files, which are read again when they change.
    Files(CertificateFiles),
    /// As they are.
    Memory(Certificates),
    /// For trying things out: made by the node itself if they are missing, with the authority's key
    /// beside them, in `dev-certs/` below this directory, which the nodes of one cluster must
    /// share. The log says so loudly.
    Development(PathBuf),
}

/// How to run a [`Node`].
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where the node lies, its id, its memory, its times. Where others reach it
    /// ([`addresses`](ReplicationConfig::addresses)) may be left empty if it listens on one address:
    /// then it is that.
    pub replication: ReplicationConfig,
    /// The UDP address for other nodes and clients; with port 0 the system chooses one.
    pub listen: SocketAddr,
    /// Who the node is.
    pub certificates: NodeCertificates,
    /// Limits and times of its connections.
    pub net: NetOptions,
}

impl NodeConfig {
    /// The defaults: with development certificates in the node's own directory.
    pub fn new(directory: impl Into<PathBuf>, node: u64, listen: SocketAddr) -> NodeConfig {
        let directory = directory.into();
        NodeConfig {
            certificates: NodeCertificates::Development(directory.clone()),
            replication: ReplicationConfig::new(directory, NodeId(node), Vec::new()),
            listen,
            net: net_options(),
        }
    }
}

/// Why a node cannot be started.
#[derive(Debug)]
#[non_exhaustive]
pub enum StartError {
    /// The configuration contradicts itself. Change it.
    Invalid(String),
    /// The certificates cannot be used, or not be made.
    Certificates(CertificateError),
    /// The address cannot be listened on.
    Listen(OpenError),
    /// The directory: it is in use, another node's, damaged; or the disk failed.
    Storage(crate::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Invalid(what) => write!(f, "the node's configuration: {what}"),
            StartError::Certificates(error) => error.fmt(f),
            StartError::Listen(error) => error.fmt(f),
            StartError::Storage(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Invalid(_) => None,
            StartError::Certificates(error) => Some(error),
            StartError::Listen(error) => Some(error),
            StartError::Storage(error) => Some(error),
        }
    }
}

/// How many partitions `dogsled serve --init` makes if nobody says: two for each processor of this machine, at least 4
/// and at most 64.
///
/// Each partition agrees on its writes, logs and applies them by itself. Two for each processor keep it busy while
/// one of them waits for its disk or its peers; of more, each has fewer writes to share the cost of a batch among, and
/// on two processors 16 take half as many writes as 4. The number is for ever: say a greater one for a cluster that is
/// to grow to more than a dozen members, so that each can have several.
///
/// ```
/// assert!((4..=64).contains(&dogsled::cluster::default_partitions()));
/// ```
#[must_use]
pub fn default_partitions() -> u32 {
    let processors = std::thread::available_parallelism().map_or(1, |count| count.get());
    (2 * processors).clamp(4, 64) as u32
}

/// A node of a cluster, in this process. Clones are the same node.
///
/// A new one belongs to no cluster: it waits to be taken into one, by
/// [`create_cluster`](Node::create_cluster) on any of the first members, or by
/// [`join`](Node::join) on itself.
///
/// It runs until [`shutdown`](Node::shutdown); dropping all handles does not end it.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use dogsled::cluster::{Node, NodeConfig};
/// let node = Node::start(NodeConfig::new("data", 1, "127.0.0.1:7400".parse()?)).await?;
/// if node.cluster().is_none() {
///     // Of this node alone, for the time being.
///     node.create_cluster(dogsled::cluster::default_partitions(), Vec::new()).await?;
/// }
/// let client = node.client();
/// client.tree("users").insert("ann", "admin").await?;
/// node.shutdown().await?;
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

struct Inner {
    node: replication::Node,
    endpoint: Arc<Endpoint>,
    certificates: CertificateSource,
    net: NetOptions,
    stopped: watch::Sender<bool>,
}

/// The host of `host:port`.
fn host(address: &str) -> String {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']').to_owned()
}

/// A number for the cluster that certificates name. The cluster's id proper is drawn when it is made,
/// after the nodes have met; every message between them carries it.
fn cluster_number(certificates: &Certificates) -> Result<u128, StartError> {
    let name = certificates.names().map_err(StartError::Certificates)?.cluster.unwrap_or_default();
    // FNV-1a: it must be the same everywhere, not good.
    let number = name.bytes().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d_u128, |hash, byte| {
        (hash ^ u128::from(byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    });
    // 0 stands for any.
    Ok(number.max(1))
}

fn explain(error: ClusterError) -> Error {
    match error {
        ClusterError::Invalid(what) => Error::Invalid(what),
        ClusterError::OutcomeUnknown(why) => Error::OutcomeUnknown(why),
        ClusterError::Denied(what) => Error::Denied(what),
        ClusterError::Conflict(what) => Error::Conflict(what),
        ClusterError::NoSpace(what) => Error::NoSpace(what),
        other => Error::Unavailable(other.to_string()),
    }
}

impl Node {
    /// Opens the node's directory, or makes one, and runs the node. To be called in the tokio
    /// runtime that it is to run in, which needs its I/O and time drivers; a runtime of several
    /// threads serves it better.
    ///
    /// # Errors
    /// See [`StartError`].
    pub async fn start(config: NodeConfig) -> Result<Node, StartError> {
        let NodeConfig { mut replication, listen, certificates, net } = config;
        let node = replication.node;
        if listen.ip().is_unspecified() && replication.addresses.is_empty() {
            return Err(StartError::Invalid(format!(
                "it listens on all addresses ({listen}): say under which one others reach it"
            )));
        }
        // An entry that fits no message would never be replicated.
        let room = net.max_peer_body.saturating_sub(64 << 10);
        if replication.max_command_bytes > room {
            return Err(StartError::Invalid(format!(
                "commands of up to {} bytes do not fit messages of {}",
                replication.max_command_bytes, net.max_peer_body
            )));
        }
        let source = match certificates {
            NodeCertificates::Memory(certificates) => CertificateSource::Memory(certificates),
            NodeCertificates::Files(files) => CertificateSource::Files(files),
            NodeCertificates::Development(directory) => {
                let mut hosts: Vec<String> = replication.addresses.iter().map(|a| host(a)).collect();
                if !listen.ip().is_unspecified() {
                    hosts.push(listen.ip().to_string());
                }
                hosts.push("localhost".to_owned());
                hosts.sort_unstable();
                hosts.dedup();
                let made = tokio::task::spawn_blocking(move || dev_certificates(&directory, node, &hosts));
                let made = made.await.map_err(|error| StartError::Invalid(error.to_string()))?;
                CertificateSource::Files(made.map_err(StartError::Certificates)?)
            }
        };
        let certificates = match &source {
            CertificateSource::Files(files) => Certificates::load(files).map_err(StartError::Certificates)?,
            CertificateSource::Memory(certificates) => certificates.clone(),
        };
        let endpoint = Endpoint::open(EndpointConfig {
            node,
            cluster: cluster_number(&certificates)?,
            listen,
            certificates: source.clone(),
            options: net.clone(),
        })
        .map_err(StartError::Listen)?;
        if replication.addresses.is_empty() {
            replication.addresses.push(endpoint.local_address().to_string());
        }
        let started = replication::Node::start(replication, endpoint.clone()).await;
        let node = match started {
            Ok(node) => node,
            Err(error) => {
                endpoint.close().await;
                return Err(StartError::Storage(error.into()));
            }
        };
        endpoint.serve(Arc::new(node.clone()));
        let inner = Inner { node, endpoint, certificates: source, net, stopped: watch::Sender::new(false) };
        Ok(Node { inner: Arc::new(inner) })
    }

    /// This node's id.
    pub fn id(&self) -> NodeId {
        self.inner.node.id()
    }

    /// Where it listens; tells the port if the system chose it.
    pub fn local_address(&self) -> SocketAddr {
        self.inner.endpoint.local_address()
    }

    /// Where others reach it.
    pub fn addresses(&self) -> &[String] {
        &self.inner.node.config().addresses
    }

    /// The cluster's id; `None` as long as the node belongs to none.
    pub fn cluster(&self) -> Option<u128> {
        self.inner.node.cluster()
    }

    /// Makes a cluster of this node and others, all new and running, with so many partitions for
    /// ever ([`default_partitions`] if nothing speaks for another number), and three replicas of each as soon as there are so many
    /// members. Returns when every group has begun. Can be called again if it was interrupted.
    ///
    /// # Errors
    /// [`Error::Invalid`] if one of them belongs to another cluster; [`Error::Unavailable`] if one
    /// cannot be reached.
    pub async fn create_cluster(&self, partitions: u32, members: Vec<(NodeId, Vec<String>)>) -> Result<()> {
        self.create_cluster_with(partitions, replication::meta::DEFAULT_REPLICAS, members).await
    }

    /// As [`create_cluster`](Node::create_cluster), with so many replicas of each partition.
    ///
    /// # Errors
    /// The same.
    pub async fn create_cluster_with(
        &self,
        partitions: u32,
        replicas: u32,
        mut members: Vec<(NodeId, Vec<String>)>,
    ) -> Result<()> {
        if !members.iter().any(|(node, _)| *node == self.id()) {
            members.push((self.id(), self.addresses().to_vec()));
        }
        self.inner.node.initialize_cluster_with(partitions, replicas, members).await.map_err(explain)
    }

    /// Makes this node, which is new, a member of the cluster that the nodes at these addresses
    /// belong to. Returns when it has its share of the partitions. Can be called again if it was
    /// interrupted.
    ///
    /// # Errors
    /// [`Error::Invalid`] if it belongs to another cluster already; [`Error::Unavailable`] if none of
    /// the addresses answers.
    pub async fn join<A>(&self, addresses: A) -> Result<()>
    where
        A: IntoIterator,
        A::Item: Into<String>,
    {
        let addresses = addresses.into_iter().map(Into::into);
        let found = self.find(addresses).await?;
        self.inner.node.join(found).await.map_err(explain)
    }

    /// Which nodes answer at these addresses: what [`create_cluster`](Node::create_cluster) takes.
    ///
    /// # Errors
    /// [`Error::Unavailable`] if none does.
    pub async fn find(&self, addresses: impl Iterator<Item = String>) -> Result<Vec<(NodeId, Vec<String>)>> {
        let unavailable = |error: replication::TransportError| Error::Unavailable(error.to_string());
        // As a client: it may speak to a node whose id it does not know.
        let endpoint =
            ClientEndpoint::open(&self.inner.certificates, self.inner.net.clone()).map_err(unavailable)?;
        let mut found: Vec<(NodeId, Vec<String>)> = Vec::new();
        let mut failures = Vec::new();
        for address in addresses {
            match endpoint.connect(std::slice::from_ref(&address), 0).await {
                Ok(connection) => {
                    let node = connection.node();
                    connection.close();
                    match found.iter_mut().find(|(known, _)| *known == node) {
                        Some((_, known)) => known.push(address),
                        None => found.push((node, vec![address])),
                    }
                }
                Err(error) => failures.push(error.to_string()),
            }
        }
        match found.is_empty() {
            true => Err(Error::Unavailable(failures.join("; "))),
            false => Ok(found),
        }
    }

    /// A client that takes the short way: it asks this node without a network between, which answers
    /// by itself what it can, and passes on what another node leads. Only to follow keys of partitions that
    /// this node has no replica of does it connect to those that have. It is [closed](Error::Closed) with
    /// the node.
    pub fn client(&self) -> Client {
        let elsewhere = Elsewhere::new(self.inner.certificates.clone(), self.inner.net.clone());
        Client::here(self.inner.node.clone(), self.inner.stopped.subscribe(), elsewhere)
    }

    /// Where everything is, as far as this node knows.
    pub fn map(&self) -> ClusterMap {
        self.inner.node.map()
    }

    /// What is wanted of the cluster, as far as this node knows; `None` before it is a member.
    pub fn record(&self) -> Option<Arc<replication::Record>> {
        self.inner.node.record()
    }

    /// How the node is.
    pub fn status(&self) -> NodeStatus {
        self.inner.node.status()
    }

    /// Who is connected, and who was turned away.
    #[cfg(feature = "http")]
    pub(super) fn connections(&self) -> dogsled_net::Figures {
        self.inner.endpoint.figures()
    }

    /// Grows whenever a leader or a membership changes, as far as this node hears of it.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.node.changes()
    }

    /// The same node as the crate `dogsled-replication` knows it.
    pub fn replication(&self) -> &replication::Node {
        &self.inner.node
    }

    /// Reads the certificates again, if they are files.
    ///
    /// # Errors
    /// They cannot be used; the old ones stay in use.
    pub fn reload_certificates(&self) -> Result<(), CertificateError> {
        self.inner.endpoint.reload()
    }

    /// Stops the node: hands leadership to others first, so that nobody has to notice that it is gone;
    /// then ends what runs. Its directory and its port are free on return.
    ///
    /// # Errors
    /// What was found on closing the storage.
    pub async fn shutdown(&self) -> crate::Result<()> {
        self.inner.stopped.send_replace(true);
        let stopped = self.inner.node.shutdown().await;
        self.inner.endpoint.close().await;
        Ok(stopped?)
    }

    /// Stops the node at once, as if its process had ended: no leadership is handed over, nothing is
    /// folded. For tests.
    ///
    /// # Errors
    /// As [`Node::shutdown`].
    pub async fn halt(&self) -> crate::Result<()> {
        self.inner.stopped.send_replace(true);
        self.inner.endpoint.close().await;
        Ok(self.inner.node.halt().await?)
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node")
            .field("id", &self.id())
            .field("local_address", &self.local_address())
            .finish_non_exhaustive()
    }
}
