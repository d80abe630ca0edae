//! The storage engine of dogsled.

pub mod disk;
mod error;
mod ivec;
pub mod wal;

pub use error::{Corruption, Error, Result};
pub use ivec::IVec;
