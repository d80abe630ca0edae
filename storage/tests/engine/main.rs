//! The embedded engine: what it promises, in models, under threads, crashes and damage.

#[path = "../engine_support/mod.rs"]
mod support;

mod commit_model;
mod concurrency;
mod crash;
mod flips;
mod low_disk;
mod model;
mod regressions;
mod sessions;
