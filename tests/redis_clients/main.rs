//! Redis clients that people use, unmodified, as their registries have them.
#![cfg(feature = "cli")]

#[path = "../cli_support/mod.rs"]
mod cli_support;

mod cluster;
mod one_node;
