//! What a node asks of its network ([`Transport`]) and what the network asks of a node
//! ([`Service`]).
//!
//! Bodies are opaque bytes to the network: it frames, orders, encrypts and limits them and knows no
//! message. A request is answered by exactly one reply or by an error; answers may overtake each
//! other, requests of one [`Lane`] to one peer do not.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;

/// A member of a cluster. Never reused: a node that lost its disk comes back under a new one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct NodeId(pub u64);

impl std::fmt::Display for NodeId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Which of a peer's ordered streams a request takes. One lane never waits for another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Lane {
    /// Votes and heartbeats, and all that must not wait behind data: small, few.
    Control,
    /// Log entries, and what nodes ask of one another.
    Data,
    /// Requests passed on for clients. Apart from the entries: a request is answered when its entry is on a quorum, and
    /// two nodes that have as many requests of each other as may be under way would each keep from being read
    /// what the other waits for. And one request may wait long for a transaction's end.
    Client,
    /// Pieces of snapshots: large, and last in line for the link.
    Bulk,
}

/// Why a request has no reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TransportError {
    /// Nothing was sent: there is no connection, or no address is known. Try later.
    Unreachable(String),
    /// It may have arrived; its outcome is unknown.
    Lost(String),
    /// The deadline passed; it may have arrived, its outcome is unknown.
    TimedOut,
    /// It arrived, and was done; but the answer is too long to be sent.
    ReplyTooLarge(String),
    /// The body is over the transport's limit in bytes; nothing was sent.
    TooLarge {
        /// Bytes of the body.
        length: usize,
        /// The most that a body may have.
        limit: usize,
    },
}

impl std::fmt::Display for TransportError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            TransportError::Unreachable(why) => write!(f, "unreachable: {why}"),
            TransportError::Lost(why) => write!(f, "the connection was lost: {why}"),
            TransportError::ReplyTooLarge(why) => f.write_str(why),
            TransportError::TimedOut => f.write_str("no answer before the deadline"),
            TransportError::TooLarge { length, limit } => {
                write!(f, "a message of {length} bytes is over the limit of {limit}")
            }
        }
    }
}

impl std::error::Error for TransportError {}

/// Carries requests to other nodes.
pub trait Transport: Send + Sync + 'static {
    /// Queues a request at once, in the order of the calls, and returns the future of its reply.
    /// Dropping the future gives up the reply, not the request.
    fn request(
        &self,
        to: NodeId,
        lane: Lane,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>>;

    /// Where a peer can be reached (`host:port`, tried in order). Replaces what was known.
    fn set_addresses(&self, peer: NodeId, addresses: Vec<String>);
}

/// Who a client is, by its certificate.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClientIdentity {
    /// The name that its certificate carries.
    pub name: String,
    /// Whether it may change the cluster itself: make it, change its members, move leadership. Without
    /// this it may only use data and look at the status; a request for more is
    /// [`ClusterError::Denied`](crate::ClusterError::Denied).
    pub administrator: bool,
}

/// Answers what comes in from the network.
///
/// Each method is called in the order of arrival (per lane and peer, or per client connection) and
/// must return at once; the work is in the future. Bodies come from outside: a malformed one must
/// be answered with an encoded error, never with a panic.
///
/// A future may not be polled for a while, when whoever asks does not read what it was answered. What holds
/// something that others wait for must go on by itself.
pub trait Service: Send + Sync + 'static {
    /// A request of another node, whose certificate names it.
    fn peer_request(&self, from: NodeId, lane: Lane, body: Bytes) -> BoxFuture<'static, Bytes>;

    /// A request of a client.
    fn client_request(&self, client: &ClientIdentity, body: Bytes) -> BoxFuture<'static, Bytes>;

    /// About how many bytes the reply to a client's request may have, if it is made whether or not anybody polls
    /// for it, and may be long. So many of one client are worked on at a time as memory is meant for them, and
    /// the others are called for later. Only for requests that none of the client's others wait for. 0: others.
    fn long_reply(&self, body: &Bytes) -> usize {
        let _ = body;
        0
    }

    /// A client's request whose answer is a stream (watches, large scans). The network applies
    /// back-pressure by polling it only as fast as the client reads; dropping it ends it.
    fn client_stream(&self, client: &ClientIdentity, body: Bytes) -> BoxStream<'static, Bytes>;
}
