//! The storage engine of dogsled.

pub mod command;
pub mod counter;
pub mod disk;
mod error;
pub mod evaluate;
mod ivec;
pub mod lock;
pub mod tree_file;

pub use command::{Command, Reply, TreeId, Write};
pub use error::{Corruption, Error, Result};
pub use evaluate::{Context, Effect, Effects, Outcome, Versioned, View};
pub use ivec::IVec;
