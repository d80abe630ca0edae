//! The binary, as people and scripts use it: alone on a directory, and as nodes that are asked.
#![cfg(feature = "cli")]

#[path = "../cli_support/mod.rs"]
mod cli_support;

mod agreement;
mod backup;
mod coordination;
mod entries;
mod http;
mod load;
mod lock;
mod node_bad_input;
#[cfg(target_os = "linux")]
mod node_disk_full;
#[cfg(target_os = "linux")]
mod node_disk_low;
mod nodes_grow;
mod nodes_recover;
mod serve;
mod status_page;
mod status_page_keys;
mod transfer;
mod transfer_cluster;
mod tree;
mod txn;
mod upkeep;
mod watch;
