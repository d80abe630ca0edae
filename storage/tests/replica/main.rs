//! Replicas of one group: equal at every position, through crashes and snapshots.

#[path = "../replica_support/mod.rs"]
mod replicas;
#[path = "../engine_support/mod.rs"]
mod support;

mod crash;
mod model;
mod pins;
mod session_locks;
mod sessions;
mod transaction_ends;
mod transaction_locks;
mod transaction_owned;
mod transactions;
mod trees;
