//! What is on disk: tree files, verifying and repairing, and what is not ours.

#[path = "../support/mod.rs"]
mod support;

mod directory_foreign;
mod repair_checkpoint;
mod repair_damage;
mod repair_hostile;
mod tree_file_crash;
mod tree_file_damage;
mod tree_file_round_trip;
mod verify_agrees_with_open;
mod wal_unreadable;
