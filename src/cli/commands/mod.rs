//! What each command does, one module per kind.

pub(crate) mod backup;
pub(crate) mod bench;
pub(crate) mod certs;
pub(crate) mod coordination;
pub(crate) mod election;
pub(crate) mod entries;
pub(crate) mod load;
pub(crate) mod lock_run;
pub(crate) mod member;
pub(crate) mod rebalance;
pub(crate) mod recover;
pub(crate) mod registry;
pub(crate) mod running;
pub(crate) mod session;
pub(crate) mod status;
pub(crate) mod transfer;
pub(crate) mod tree;
pub(crate) mod ttl;
pub(crate) mod txn;
pub(crate) mod upkeep;
pub(crate) mod wal;
pub(crate) mod watch;
