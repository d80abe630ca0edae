//! The storage engine of dogsled.

mod base;
mod checkpoint;
pub mod clock;
pub mod codec;
pub mod command;
pub mod counter;
mod directory;
pub mod disk;
mod engine;
mod error;
pub mod evaluate;
mod ivec;
pub mod leaf_cache;
pub mod lock;
pub mod lock_wait;
mod meta;
pub mod model;
mod overlay;
mod snapshot;
mod state;
mod stats;
pub mod tree_file;
pub mod wal;
pub mod watch;

pub use clock::{Clock, SystemClock};
pub use command::{Command, Reply, TreeId, Write};
pub use directory::FORMAT_VERSION;
pub use engine::{Durability, EMBEDDED_STREAM, Engine, Options};
pub use error::{Corruption, Error, Result};
pub use evaluate::{Context, Effect, Effects, Outcome, Versioned, View};
pub use ivec::IVec;
pub use meta::DEFAULT_TREE_NAME;
pub use snapshot::{RangeIter, Snapshot};
pub use stats::Stats;
