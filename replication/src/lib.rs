//! Replication: Raft groups on the shared write-ahead log, and what a node needs from its network.
//!
//! Decides; does not carry. What moves bytes between nodes implements [`Transport`], what comes in
//! from it is handed to a [`Service`]. There is no socket in this crate, so the same code runs on
//! QUIC and in a simulation.

pub mod transport;

pub use transport::{ClientIdentity, Lane, NodeId, Service, Transport, TransportError};
