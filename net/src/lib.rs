//! The network of dogsled: QUIC between the nodes of a cluster, and from its clients.
//!
//! Carries bytes that it does not interpret. A node opens an [`Endpoint`], which is its
//! [`Transport`](dogsled_replication::Transport) to other nodes, and hands what arrives to a
//! [`Service`](dogsled_replication::Service). A client opens a [`ClientConnection`] to a node.
//!
//! | module | about |
//! |---|---|
//! | [`certs`] | who may speak, and as whom: authority, certificates, their files |
//! | [`wire`] | greetings and frames, byte by byte |
//! | `endpoint` | the UDP port, certificates in use, closing |
//! | `peer` | the way out: one connection per peer with its lanes, redialled |
//! | `accept` | the way in: handshakes, greetings, who takes whose place |
//! | `requester`, `responder` | the two ends of a stream of requests |
//! | [`resp`] | the protocol of Redis: requests in, replies out |
//! | `client`, `client_stream` | what clients use, and streams of results |
//! | `figures` | who is connected, and who was turned away |
//!
//! # Promises
//!
//! - Nobody gets further than the TLS handshake without a certificate of the cluster's authority,
//!   and a peer is who its certificate names.
//! - Requests of one lane to one peer reach its service in the order in which they were made, each
//!   once or not at all. Replies come in any order. A lane never waits for another.
//! - [`Unreachable`](dogsled_replication::TransportError::Unreachable) means that nothing was sent.
//! - What a connection can make a node hold in memory is bounded, before anything is allocated.
//!
//! Not here: meaning, retries, which node to ask.

mod accept;
mod client;
mod client_stream;
mod endpoint;
mod figures;
mod options;
mod peer;
mod requester;
mod responder;
mod socket;
mod tls;

pub mod certs;
pub mod resp;
pub mod wire;

pub use client::{ClientConnection, ClientEndpoint};
pub use client_stream::ResultStream;
pub use endpoint::{CertificateSource, Endpoint, EndpointConfig, OpenError};
pub use figures::Figures;
pub use options::NetOptions;
