//! dogsled: an embedded key-value store in the style of sled.

pub use dogsled_storage as storage;
