//! [`RedisServer`]: the port, and how many may be at it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use dogsled_net::CertificateSource;
use dogsled_net::resp::{ClientTls, RequestLimits};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use super::config::Parameters;
use super::connection;
use super::database::Database;
use super::held::Held;
use super::slots::{Redirects, Topology};
use crate::cluster::Client;
use crate::cluster::core::Reach;

/// How long connections may take to end when the server is closed.
const FAREWELL: Duration = Duration::from_secs(1);
/// After an error of accepting, as when there are no more file descriptors.
const PAUSE: Duration = Duration::from_millis(50);

/// How a [`RedisServer`] is run.
#[derive(Clone)]
pub struct RedisOptions {
    /// The TCP address to listen on. If other machines can connect to it, it needs `certificates` and a `password`.
    pub listen: SocketAddr,
    /// The node's own, with which connections are within TLS at an address that is not of loopback; on loopback they are in
    /// clear. Clients need the authority's certificate (`ca.crt`), and check for the name `node-<id>.dogsled` if they check
    /// for a name.
    pub certificates: Option<CertificateSource>,
    /// What a client has to say first, by `AUTH` or `HELLO`.
    pub password: Option<String>,
    /// How many connections there may be; more are told so and closed.
    pub max_connections: usize,
    /// Where clients of clusters are told that this node is, `host:port`; none: where it listens. For one that is
    /// reached through a tunnel or a proxy.
    pub announce: Option<String>,
    /// Which clients are sent to the node that leads a key's partition.
    pub redirects: Redirects,
    /// What one command, or one `MULTI`, may be; however that is, it has at most half of `max_held_bytes`.
    pub limits: RequestLimits,
    /// The most bytes that all connections together hold of commands that have not all come, or wait for `EXEC`, and
    /// of replies that are not read.
    pub max_held_bytes: usize,
    /// How long a client may read nothing of what it is sent, if it does not send at least [`LEAST_PACE`] in a second
    /// meanwhile.
    pub patience: Duration,
    /// How long a command that has begun to come may take until it is there; one that brings more than
    /// [`LEAST_PACE`] in a second may take longer. Also how long a client may take to say the password, and how long one
    /// may say nothing of which more than a MiB is kept, of a command or for `EXEC`. A client that says nothing between
    /// commands may stay.
    pub request_time: Duration,
}

/// Bytes in a second of what comes slowly, and is waited for all the same.
pub const LEAST_PACE: usize = 16 << 10;

impl RedisOptions {
    /// The defaults, at an address.
    pub fn new(listen: SocketAddr) -> RedisOptions {
        RedisOptions {
            listen,
            certificates: None,
            password: None,
            announce: None,
            redirects: Redirects::default(),
            max_connections: 10_000,
            limits: RequestLimits::default(),
            max_held_bytes: 512 << 20,
            patience: Duration::from_secs(60),
            request_time: Duration::from_secs(60),
        }
    }
}

impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("listen", &self.listen)
            .field("has_certificates", &self.certificates.is_some())
            .field("has_password", &self.password.is_some())
            .field("max_connections", &self.max_connections)
            .finish_non_exhaustive()
    }
}

/// What the connections share.
pub(super) struct Shared {
    pub(super) address: SocketAddr,
    /// Where connections are within TLS.
    pub(super) tls: Option<ClientTls>,
    pub(super) password: Option<String>,
    pub(super) max_connections: usize,
    pub(super) limits: RequestLimits,
    pub(super) patience: Duration,
    pub(super) request_time: Duration,
    pub(super) begun: Instant,
    pub(super) database: Database,
    pub(super) topology: Arc<Topology>,
    pub(super) connected: AtomicUsize,
    pub(super) held: Arc<Held>,
    /// How many commands have come, and how many connections were refused.
    pub(super) commands: AtomicU64,
    pub(super) rejected: AtomicU64,
    pub(super) closing: watch::Receiver<bool>,
    next_id: AtomicU64,
}

impl Shared {
    /// How many connections were served so far.
    pub(super) fn received(&self) -> u64 {
        // They are counted from 1.
        self.next_id.load(Ordering::Relaxed) - 1
    }

    /// What `HELLO` and `INFO` call it.
    pub(super) fn mode(&self) -> &'static str {
        if self.topology.is_known() { "cluster" } else { "standalone" }
    }
}

/// Serves Redis's protocol to whoever connects; see the [module](super). Ends when it is dropped.
///
/// ```no_run
/// # async fn serve(node: dogsled::cluster::Node) -> std::io::Result<()> {
/// use dogsled::cluster::redis::{RedisOptions, RedisServer};
/// let options = RedisOptions::new(([127, 0, 0, 1], 6379).into());
/// let server = RedisServer::start(node.client(), options).await?;
/// println!("redis-cli -p {}", server.local_address().port());
/// # Ok(()) }
/// ```
pub struct RedisServer {
    address: SocketAddr,
    close: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl RedisServer {
    /// Listens, and serves what a client of the cluster reaches: a node's own takes the short way.
    ///
    /// # Errors
    /// [`io::ErrorKind::PermissionDenied`] if other machines could connect, without TLS or a password;
    /// [`io::ErrorKind::InvalidData`] if the certificates cannot be used; those of listening.
    pub async fn start(client: Client, options: RedisOptions) -> io::Result<RedisServer> {
        let tls = match &options.certificates {
            _ if options.listen.ip().is_loopback() => None,
            Some(_) if options.password.is_none() => return Err(open(&options, "without a password")),
            None => {
                return Err(open(
                    &options,
                    "without certificates, so passwords and data would travel in clear",
                ));
            }
            Some(source) => {
                let invalid = |error| io::Error::new(io::ErrorKind::InvalidData, error);
                Some(ClientTls::new(source.clone()).map_err(invalid)?)
            }
        };
        let listener = TcpListener::bind(options.listen).await?;
        let address = listener.local_addr()?;
        // Nobody can be sent to "every address of this machine".
        let redirects = match options.announce {
            None if address.ip().is_unspecified() => {
                tracing::warn!(%address, "clients of Redis clusters are not sent here: it is not announced where this is");
                Redirects::Off
            }
            _ => options.redirects,
        };
        let announced = options.announce.unwrap_or_else(|| address.to_string());
        let topology = Topology::new(&client, &announced, redirects).ok_or_else(|| {
            let what = format!("\"{announced}\" is not host:port, where clients could be sent to");
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let node = match &client.core().reach {
            Reach::Here { node, .. } => Some(node.clone()),
            Reach::Network(_) => None,
        };
        let parameters = Parameters::new(address, options.max_connections, options.max_held_bytes);
        let held = Held::new(options.max_held_bytes);
        let (close, closing) = watch::channel(false);
        let shared = Arc::new(Shared {
            address,
            tls,
            password: options.password,
            max_connections: options.max_connections,
            limits: RequestLimits {
                // No single client is to keep all others from being served.
                request_bytes: options.limits.request_bytes.min(options.max_held_bytes / 2),
                ..options.limits
            },
            patience: options.patience,
            request_time: options.request_time,
            begun: Instant::now(),
            database: Database::new(client, parameters, Arc::clone(&held)),
            topology,
            connected: AtomicUsize::new(0),
            held,
            commands: AtomicU64::new(0),
            rejected: AtomicU64::new(0),
            closing,
            next_id: AtomicU64::new(1),
        });
        if let Some(node) = node {
            let figures: Weak<Shared> = Arc::downgrade(&shared);
            node.add_figures(figures);
        }
        let task = Some(tokio::spawn(accept(listener, shared)));
        Ok(RedisServer { address, close, task })
    }

    /// Where it listens.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, and ends the connections: what they are about to do is given a second.
    pub async fn close(mut self) {
        self.close.send_replace(true);
        if let Some(task) = self.task.take() {
            // It ends by itself; that it panicked is reported elsewhere.
            let _ = task.await;
        }
    }
}

fn open(options: &RedisOptions, how: &str) -> io::Error {
    let what = format!("{} is not a loopback address: other machines could connect, {how}", options.listen);
    io::Error::new(io::ErrorKind::PermissionDenied, what)
}

impl fmt::Debug for RedisServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisServer").field("address", &self.address).finish_non_exhaustive()
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut closing = shared.closing.clone();
    let mut connections = JoinSet::new();
    // Ends with this function.
    let mut keeper = JoinSet::new();
    keeper.spawn(Arc::clone(&shared.topology).keep());
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Also when whoever could say so is gone.
            _ = closing.wait_for(|closing| *closing) => break,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, peer)) if connections.len() < shared.max_connections => {
                let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
                connections.spawn(connection::serve(stream, peer, Arc::clone(&shared), id));
            }
            Ok((stream, _)) => {
                shared.rejected.fetch_add(1, Ordering::Relaxed);
                // Within TLS it could only be told after a handshake.
                if shared.tls.is_none() {
                    refuse(stream).await;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a Redis client could not be accepted");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    shared.topology.withdraw();
    let ended = async { while connections.join_next().await.is_some() {} };
    let _ = tokio::time::timeout(FAREWELL, ended).await;
    // What is left is aborted when the set is dropped.
}

async fn refuse(mut stream: TcpStream) {
    // It fits into any buffer; whoever does not take it goes without.
    let told = stream.write_all(b"-ERR max number of clients reached\r\n");
    let _ = tokio::time::timeout(PAUSE, told).await;
}
