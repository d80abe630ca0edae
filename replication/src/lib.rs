//! Replication: Raft groups on the shared write-ahead log, and what a node needs from its network.
//!
//! Decides; does not carry. What moves bytes between nodes implements [`Transport`], what comes in
//! from it is handed to a [`Service`]. There is no socket in this crate, so the same code runs on
//! QUIC and in a simulation.
//!
//! # Map
//!
//! A write's way, from a client to the disks of a quorum and back, and who is where on it:
//!
//! ```text
//! client ─► node ─► group ─► proposals ─► openraft ─► log_store ─► the WAL ─► durability
//!                                            │                                    │
//!                               network ─► transport ─► the peers' node ─► …      │
//!                                            ▼                                    ▼
//!                                       state_machine ─► the replica (dogsled-storage)
//! ```
//!
//! | of | modules |
//! |---|---|
//! | a node | [`Node`] serves, and looks after its groups; [`NodeConfig`], `node_file` (whose a directory is), `convert` (of an embedded database) |
//! | a group | `group`, `proposals` (batches), `log_store` (Raft's log on the shared WAL), `state_machine` (entries applied), `group_clock` (the log's time), `durability` (one sync for all groups), `types` |
//! | reads | `read_index` and `confirmations` (linearizable without an entry), `alone` (a node that is its own majority), [`watch`] (following keys), [`pin`] (a state held for who copies it) |
//! | peers | `network` (pipelines of openraft), `message` and `codec` (bytes), `snapshot` and `pace` (copying state, and how fast), [`transport`] (what carries it), [`memory`] (a network for tests) |
//! | members and placement | [`meta`] (the record of the cluster), [`ring`] (whose a partition is), `reconcile` (what is to be done next), `fence` and `given_up` (who is not heard any more), `room` (full disks) |
//! | loss of a quorum | [`recovery`] |
//! | clients | [`client`] (what they say, as bytes), [`ClusterError`] (what they can do about it), `stamp` (the leader's time, put into a command) |
//! | looking | [`status`], [`metrics`] |
//! | beneath | [`runtime`] (tokio, or a simulation), `blocking` (work that takes long), [`hostile`] (arbitrary bytes, for fuzzing) |

mod acknowledged;
mod alone;
mod blocking;
pub mod client;
mod codec;
mod config;
mod confirmations;
mod convert;
mod durability;
mod error;
mod fence;
mod given_up;
mod group;
mod group_clock;
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
