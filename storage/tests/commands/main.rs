//! What commands mean, and their bytes.

#[path = "../commands_support/mod.rs"]
mod commands_support;
#[path = "../engine_support/mod.rs"]
mod support;

mod codec;
mod counter;
mod evaluate;
mod expiry;
mod fence;
mod group_codec;
mod hashes;
mod lock;
mod lock_queue;
mod lock_wait;
mod on_the_engine;
mod quota;
mod strings;
mod strings_difference;
