//! The storage engine of dogsled.

pub mod codec;
pub mod command;
pub mod counter;
pub mod disk;
mod error;
pub mod evaluate;
mod ivec;
pub mod lock;
pub mod leaf_cache;
pub mod lock_wait;
pub mod model;
pub mod watch;

pub use command::{Command, Reply, TreeId, Write};
pub use error::{Corruption, Error, Result};
pub use evaluate::{Context, Effect, Effects, Outcome, Versioned, View};
pub use ivec::IVec;
