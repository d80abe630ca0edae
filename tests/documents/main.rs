//! What documents and examples say is so: each command line and program in them is run.
#![cfg(feature = "cli")]

#[path = "../cli_support/mod.rs"]
mod cli_support;

mod examples;
mod pages;
