//! QUIC between nodes and with clients, also those that mean no good.

#[path = "../common/mod.rs"]
mod common;

mod certificates;
mod clients;
mod peers;
mod strangers;
mod unread;
mod wire_hostile;
