//! [`HttpServer`]: metrics, health and a status page of a node, over HTTP.
//!
//! | path | what |
//! |---|---|
//! | `/` | a page for people: ring, members, moves, throughput, latency, locks, slow commands |
//! | `/metrics` | everything the node counts and measures, in the text format of Prometheus |
//! | `/metrics.json` | the same for the page, with the locks and the slow commands |
//! | `/status` | how the cluster is: the document of `dogsled status --json` |
//! | `/livez` | 200, or 503 if nothing but a restart will help |
//! | `/readyz` | 200 while the node applies what its groups commit; 503 with the reasons otherwise |
//!
//! Before there is a node, [`Starting`] answers `/livez` with 200 and all else with 503.
//!
//! ```no_run
//! # async fn run(node: dogsled::cluster::Node) -> std::io::Result<()> {
//! use dogsled::cluster::http::{HttpOptions, HttpServer};
//! let listener = std::net::TcpListener::bind("127.0.0.1:7480")?;
//! let server = HttpServer::start(&node, listener, HttpOptions::default())?;
//! println!("http://{}/", server.local_address());
//! # Ok(()) }
//! ```
//!
//! # Who may look
//!
//! Whoever reaches the port: it shows names of members, trees and locks, and no keys and values of trees. So it
//! belongs on loopback, or behind something that knows people. There is nothing that it changes. On a loopback
//! address it answers only who asks for it by such a name, so that a web page elsewhere cannot make a browser on
//! this machine look here (DNS rebinding). The page loads nothing from anywhere, and its content security policy
//! names its one script and its one style by their hashes.
//!
//! # Limits
//!
//! Connections, bytes and time of a request's head, time of a connection: see [`HttpOptions`]. A request with a
//! body is refused. What costs something to put together is made for one who asks at a time, and kept for a
//! moment for the others, so that no number of visitors makes more work than one.
//!
//! # The text format
//!
//! It is written here, in [`exposition`](self), rather than by a crate: those (`prometheus`, `prometheus-client`) hold
//! the counters and know how to write them down. The node's counters lie where they are counted, and most of what is
//! told is read from what others know. Left of such a crate would be three dozen lines.

mod exposition;
mod page;
mod process;
mod server;
mod starting;

pub use self::starting::Starting;

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::Node;

/// Bounds of an [`HttpServer`].
#[derive(Clone, Copy, Debug)]
pub struct HttpOptions {
    /// Connections at a time; more are told so and closed. Default 128.
    pub max_connections: usize,
    /// Bytes of a request's head. Default 16 KiB, which is about the least.
    pub max_head_bytes: usize,
    /// A request's head has to arrive within this time, and so has the next one of a connection. Default 10 s.
    pub head_timeout: Duration,
    /// A connection is closed after this time. Default 2 minutes.
    pub connection_time: Duration,
}

impl Default for HttpOptions {
    fn default() -> HttpOptions {
        HttpOptions {
            max_connections: 128,
            max_head_bytes: 16 << 10,
            head_timeout: Duration::from_secs(10),
            connection_time: Duration::from_secs(120),
        }
    }
}

/// A server that tells of a node; see the [module](self). It ends when it is [stopped](HttpServer::stop) or
/// dropped.
#[derive(Debug)]
pub struct HttpServer {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl HttpServer {
    /// Serves on a port that is open. To be called in a tokio runtime with I/O and time drivers.
    ///
    /// # Errors
    /// What the system says about the listener.
    pub fn start(
        node: &Node,
        listener: std::net::TcpListener,
        options: HttpOptions,
    ) -> std::io::Result<HttpServer> {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(server::run(node.clone(), listener, address, options, stopped));
        Ok(HttpServer { address, stop, task: Some(task) })
    }

    /// Where it listens; tells the port if the system chose it.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the port, and what is connected, and returns when that is done.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        if let Some(task) = self.task.take() {
            // A task that panicked has ended, too.
            let _ = task.await;
        }
    }
}

impl Drop for HttpServer {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}
