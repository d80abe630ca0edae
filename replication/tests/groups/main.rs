//! Nodes and their groups, several in one process: formed, moved, killed, recovered.

#[path = "../common/mod.rs"]
mod common;

mod alone;
mod cluster;
mod disks;
mod moves;
mod pins;
mod recover;
mod transactions;
mod transfers;
