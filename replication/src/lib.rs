//! Replication: Raft groups on the shared write-ahead log, and what a node needs from its network.
//!
//! Decides; does not carry. What moves bytes between nodes implements [`Transport`], what comes in
//! from it is handed to a [`Service`]. There is no socket in this crate, so the same code runs on
//! QUIC and in a simulation.

mod alone;
mod blocking;
pub mod client;
mod codec;
mod config;
mod convert;
mod durability;
mod error;
mod fence;
mod given_up;
mod group;
#[doc(hidden)]
pub mod hostile;
mod log_store;
pub mod memory;
mod message;
pub mod meta;
pub mod metrics;
mod network;
mod node;
mod node_file;
mod pace;
pub mod pin;
mod proposals;
mod read_index;
mod reconcile;
pub mod recovery;
pub mod ring;
mod room;
pub mod runtime;
mod snapshot;
mod stamp;
mod state_machine;
pub mod status;
pub mod transport;
mod types;
pub mod watch;

pub use client::{ClientReply, ClientRequest, ClusterMap, Consistency, GroupChange};
pub use codec::Malformed;
pub use config::{NodeConfig, Timing};
pub use error::ClusterError;
pub use meta::{Change, MemberRecord, MemberState, MoveSettings, Record};
pub use node::{GroupLock, Node, ReadAnswer};
pub use recovery::{GroupRecovery, Recovery};
pub use status::{EntryIdentity, GroupStatus, MembershipId, NodeStatus, Role};
pub use transport::{ClientIdentity, Lane, NodeId, Service, Transport, TransportError};
