//! The contestants: dogsled and its peers, a file each.
//!
//! Each is tuned as its own documentation advises for data that fits in memory; the file says how and why.

mod dogsled;
#[cfg(feature = "peers")]
mod fjall;
#[cfg(feature = "peers")]
mod lmdb;
#[cfg(feature = "peers")]
mod redb;
#[cfg(feature = "peers")]
mod rocksdb;
#[cfg(feature = "peers")]
mod sled;
#[cfg(feature = "peers")]
mod sqlite;

use crate::contestant::Contestant;

/// All that were compiled in.
pub fn all() -> Vec<&'static dyn Contestant> {
    vec![
        &dogsled::Dogsled,
        #[cfg(feature = "peers")]
        &redb::Redb,
        #[cfg(feature = "peers")]
        &sled::Sled,
        #[cfg(feature = "peers")]
        &fjall::Fjall,
        #[cfg(feature = "peers")]
        &rocksdb::RocksDb,
        #[cfg(feature = "peers")]
        &lmdb::Lmdb,
        #[cfg(feature = "peers")]
        &sqlite::Sqlite,
    ]
}

/// The one called `name`.
pub fn by_name(name: &str) -> Option<&'static dyn Contestant> {
    all().into_iter().find(|contestant| contestant.name() == name)
}
