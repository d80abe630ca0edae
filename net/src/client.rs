//! The client's side: one connection to one node, with pipelined requests and streams of results.
//!
//! Which node to ask, when to dial again and what may be repeated is the caller's business; the
//! errors say what is known: [`TransportError::Unreachable`] means that nothing was sent.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::{NodeId, TransportError};
use futures_util::future::BoxFuture;
use parking_lot::Mutex;
use quinn::{Connection, RecvStream, SendStream};

use crate::certs::{CertificateError, CertificateFiles, Certificates, Fingerprint};
use crate::client_stream::{ClosedWhenDropped, ResultStream};
use crate::endpoint::CertificateSource;
use crate::options::NetOptions;
use crate::peer::{CLOSED_NORMALLY, CLOSED_REFUSED, other_cluster, read_answer, write_error};
use crate::requester::{RequestQueue, drive};
use crate::socket;
use crate::tls::{client_config, cluster_name, explain, remote_names};
use crate::wire::{CLIENT_ALPN, ClientHello, FrameKind, FrameWriter, Verdict, encode_client_hello};

/// A UDP socket for connections of one client, with its certificates. Cheap to clone.
#[derive(Clone)]
pub struct ClientEndpoint {
    inner: Arc<ClientInner>,
}

struct ClientInner {
    /// By address family: a socket of the one cannot reach the other everywhere.
    v4: Option<quinn::Endpoint>,
    v6: Option<quinn::Endpoint>,
    identity: Mutex<Identity>,
    server_name: String,
    options: NetOptions,
}

/// Who the client is on connections that are made from now on.
struct Identity {
    config: quinn::ClientConfig,
    /// Where it came from, and how the files looked then.
    files: Option<(CertificateFiles, Fingerprint)>,
}

impl std::fmt::Debug for ClientEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientEndpoint").field("server_name", &self.inner.server_name).finish_non_exhaustive()
    }
}

impl ClientEndpoint {
    /// Opens a socket, on the current tokio runtime. The certificates are those of a client, or of
    /// a node that acts as one; the cluster that they name is the one that connections must reach.
    pub fn new(certificates: &Certificates, options: NetOptions) -> Result<ClientEndpoint, TransportError> {
        ClientEndpoint::open(&CertificateSource::Memory(certificates.clone()), options)
    }

    /// As [`new`](Self::new), but files are looked at again before each connection that is made: what has
    /// taken the place of the certificates is used from then on, if it can be and names the same cluster.
    pub fn open(source: &CertificateSource, options: NetOptions) -> Result<ClientEndpoint, TransportError> {
        let unusable = |error: CertificateError| TransportError::Unreachable(error.to_string());
        let (certificates, files) = match &source.absolute() {
            CertificateSource::Memory(certificates) => {
                certificates.check().map_err(unusable)?;
                (certificates.clone(), None)
            }
            CertificateSource::Files(files) => {
                // Before they are read: what changes meanwhile is noticed the next time.
                let fingerprint = files.fingerprint();
                (Certificates::load(files).map_err(unusable)?, Some((files.clone(), fingerprint)))
            }
        };
        let cluster = certificates.names().map_err(unusable)?.cluster.ok_or_else(|| {
            TransportError::Unreachable("the client's certificate names no cluster".to_owned())
        })?;
        let config = client_config(&certificates, CLIENT_ALPN, &options).map_err(unusable)?;
        let identity = Mutex::new(Identity { config, files });
        let open = |address: SocketAddr| {
            let (socket, _) = socket::bind(address, options.udp_buffer)?;
            socket::open(socket, socket::endpoint_config(None, &options), None).map(|(endpoint, _)| endpoint)
        };
        let v4 = open((Ipv4Addr::UNSPECIFIED, 0).into());
        let v6 = open((Ipv6Addr::UNSPECIFIED, 0).into());
        if let (Err(error), Err(_)) = (&v4, &v6) {
            return Err(TransportError::Unreachable(format!("no UDP socket: {error}")));
        }
        let server_name = cluster_name(&cluster);
        Ok(ClientEndpoint {
            inner: Arc::new(ClientInner { v4: v4.ok(), v6: v6.ok(), identity, server_name, options }),
        })
    }

    /// Connects to the first of the addresses (`host:port`) that answers. `cluster` is its id, or 0
    /// for any.
    pub async fn connect(
        &self,
        addresses: &[String],
        cluster: u128,
    ) -> Result<ClientConnection, TransportError> {
        let limit = self.inner.options.connect_timeout;
        let mut failures = Vec::new();
        for address in addresses {
            let resolved = match tokio::time::timeout(limit, tokio::net::lookup_host(address)).await {
                Ok(Ok(resolved)) => resolved.take(4).collect::<Vec<_>>(),
                Ok(Err(error)) => {
                    failures.push(format!("{address}: {error}"));
                    continue;
                }
                Err(_) => {
                    failures.push(format!("{address}: the name was not resolved in time"));
                    continue;
                }
            };
            for resolved in resolved {
                let made = tokio::time::timeout(limit, self.connect_one(resolved, cluster)).await;
                match made.unwrap_or_else(|_| Err("no answer".to_owned())) {
                    Ok(connection) => return Ok(connection),
                    Err(why) => failures.push(format!("{address}: {why}")),
                }
            }
        }
        if failures.is_empty() {
            failures.push("no address is known".to_owned());
        }
        Err(TransportError::Unreachable(failures.join("; ")))
    }

    async fn connect_one(&self, address: SocketAddr, cluster: u128) -> Result<ClientConnection, String> {
        let endpoint = if address.is_ipv4() { &self.inner.v4 } else { &self.inner.v6 };
        let endpoint = endpoint.as_ref().ok_or("this machine has no socket for that kind of address")?;
        let connection = endpoint
            .connect_with(self.inner.config(), address, &self.inner.server_name)
            .map_err(|error| error.to_string())?
            .await
            .map_err(|error| explain(&error))?;
        let max_body = self.inner.options.max_client_body;
        match greet(&connection, cluster, max_body).await {
            Ok(greeted) => Ok(ClientConnection::start(self.inner.clone(), connection, greeted)),
            Err(why) => {
                connection.close(CLOSED_REFUSED.into(), why.as_bytes());
                Err(why)
            }
        }
    }
}

impl ClientInner {
    /// What the next connection is made with.
    fn config(&self) -> quinn::ClientConfig {
        let mut identity = self.identity.lock();
        let Identity { config, files: Some((files, known)) } = &mut *identity else {
            return identity.config.clone();
        };
        let found = files.fingerprint();
        if found != *known {
            match self.load(files) {
                Ok(renewed) => {
                    (*config, *known) = (renewed, found);
                    tracing::info!(certificate = %files.certificate.display(), "certificates reloaded");
                }
                // They may be half-way replaced: until they can be loaded, the next connection looks again.
                Err(error) => {
                    tracing::error!(%error, "changed certificates are not usable; the old ones stay");
                }
            }
        }
        config.clone()
    }

    fn load(&self, files: &CertificateFiles) -> Result<quinn::ClientConfig, CertificateError> {
        let certificates = Certificates::load(files)?;
        let named = certificates.names()?.cluster.unwrap_or_default();
        if cluster_name(&named) != self.server_name {
            return Err(CertificateError::Unusable(format!(
                "it names the cluster \"{named}\", and this client is of another"
            )));
        }
        client_config(&certificates, CLIENT_ALPN, &self.options)
    }
}

struct Greeted {
    send: SendStream,
    receive: RecvStream,
    node: NodeId,
    cluster: u128,
    max_request: usize,
}

async fn greet(connection: &Connection, cluster: u128, max_body: usize) -> Result<Greeted, String> {
    let (mut send, mut receive) = connection.open_bi().await.map_err(|error| explain(&error))?;
    // Requests before streams; fails for closed streams only.
    let _ = send.set_priority(1);
    let hello = encode_client_hello(&ClientHello { cluster, max_body: max_body as u64 });
    send.write_all(&hello).await.map_err(write_error)?;
    let answer = read_answer(&mut receive).await?;
    if answer.verdict != Verdict::Accepted {
        return Err(format!("refused: {}", answer.reason));
    }
    if cluster != 0 && answer.cluster != cluster {
        return Err(other_cluster(answer.cluster, cluster));
    }
    if remote_names(connection).nodes != [answer.node] {
        return Err(format!("it answers as node {}, which its certificate does not name", answer.node));
    }
    let max_request = usize::try_from(answer.max_body).unwrap_or(usize::MAX);
    Ok(Greeted { send, receive, node: answer.node, cluster: answer.cluster, max_request })
}

/// A client's connection to one node. Cheap to clone; closed when the last clone and the last
/// stream are dropped, or by [`close`](Self::close).
#[derive(Clone)]
pub struct ClientConnection {
    inner: Arc<ConnectionInner>,
}

struct ConnectionInner {
    connection: Arc<ClosedWhenDropped>,
    requests: Arc<RequestQueue>,
    node: NodeId,
    cluster: u128,
    max_request: usize,
    max_item: usize,
    /// Keeps the socket open.
    _endpoint: Arc<ClientInner>,
}

impl std::fmt::Debug for ClientConnection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClientConnection")
            .field("node", &self.inner.node)
            .field("address", &self.inner.connection.0.remote_address())
            .finish_non_exhaustive()
    }
}

impl ClientConnection {
    /// Opens a socket for this connection alone; see [`ClientEndpoint`] for several.
    pub async fn connect(
        addresses: &[String],
        certificates: &Certificates,
        options: NetOptions,
    ) -> Result<ClientConnection, TransportError> {
        ClientEndpoint::new(certificates, options)?.connect(addresses, 0).await
    }

    fn start(endpoint: Arc<ClientInner>, connection: Connection, greeted: Greeted) -> ClientConnection {
        let options = &endpoint.options;
        let requests =
            Arc::new(RequestQueue::new(options.max_queued_bytes, greeted.max_request, "not connected"));
        requests.accept();
        let (queue, max_item) = (requests.clone(), options.max_client_body);
        let driven = connection.clone();
        let connection = Arc::new(ClosedWhenDropped(connection));
        tokio::spawn(async move {
            let why = drive(&queue, greeted.send, greeted.receive, max_item).await;
            queue.refuse(&format!("the connection was lost: {why}"));
            driven.close(CLOSED_NORMALLY.into(), why.as_bytes());
        });
        ClientConnection {
            inner: Arc::new(ConnectionInner {
                connection,
                requests,
                node: greeted.node,
                cluster: greeted.cluster,
                max_request: greeted.max_request,
                max_item,
                _endpoint: endpoint,
            }),
        }
    }

    /// The node that was reached, as its certificate says.
    pub fn node(&self) -> NodeId {
        self.inner.node
    }

    /// The cluster that the node belongs to.
    pub fn cluster(&self) -> u128 {
        self.inner.cluster
    }

    /// Where the node was reached.
    pub fn remote_address(&self) -> SocketAddr {
        self.inner.connection.0.remote_address()
    }

    /// Whether requests have a chance.
    pub fn is_open(&self) -> bool {
        self.inner.connection.0.close_reason().is_none()
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> String {
        let connection = self.inner.connection.0.clone();
        explain(&connection.closed().await)
    }

    /// Queues a request at once, in the order of the calls, and returns the future of its reply.
    /// Dropping the future gives up the reply, not the request.
    pub fn request(
        &self,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        self.inner.requests.request(body, deadline)
    }

    /// Asks for a stream of results. The deadline is for its opening, not for its items.
    pub async fn open_stream(&self, body: Bytes, deadline: Duration) -> Result<ResultStream, TransportError> {
        let limit = self.inner.max_request;
        if body.len() > limit {
            return Err(TransportError::TooLarge { length: body.len(), limit });
        }
        let connection = &self.inner.connection;
        let opened = tokio::time::timeout(deadline, connection.0.open_bi()).await;
        let (mut send, receive) = match opened {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => return Err(TransportError::Unreachable(explain(&error))),
            Err(_) => {
                let why = "the node serves no more streams of this client at a time";
                return Err(TransportError::Unreachable(why.to_owned()));
            }
        };
        let mut writer = FrameWriter::default();
        writer.push(FrameKind::Open, 0, body);
        let written = async {
            send.write_all_chunks(writer.chunks()).await.map_err(write_error)?;
            send.finish().map_err(|error| error.to_string())
        };
        match tokio::time::timeout(deadline, written).await {
            Ok(Ok(())) => Ok(ResultStream::new(connection.clone(), receive, self.inner.max_item)),
            Ok(Err(why)) => Err(TransportError::Lost(why)),
            Err(_) => Err(TransportError::TimedOut),
        }
    }

    /// Ends the connection; requests and streams under way are lost.
    pub fn close(&self) {
        self.inner.connection.0.close(CLOSED_NORMALLY.into(), b"the client has closed it");
    }
}
