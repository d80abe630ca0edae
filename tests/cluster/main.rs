//! Clusters of real nodes, over QUIC on loopback, seen through their clients.

mod backups;
mod coordination;
mod expiring;
mod failures;
mod hashing;
#[cfg(feature = "http")]
mod http;
mod leases;
mod membership;
mod operations;
mod quotas;
mod reads;
mod recovered;
mod services;
mod support;
mod transactions;
mod transactions_owned;
mod watching;
mod watching_together;
