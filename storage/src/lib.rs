//! The storage engine of dogsled.

pub mod disk;
mod error;
mod ivec;
pub mod leaf_cache;

pub use error::{Corruption, Error, Result};
pub use ivec::IVec;
