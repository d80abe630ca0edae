#![allow(missing_docs, dead_code)]
use crate::{Error, Result, disk::Disk};
use std::path::Path;
pub fn open_redb(_: &dyn Disk, p: &Path, _: u128, c: u64) -> Result<redb::Database> {
    Ok(redb::Builder::new().set_cache_size(c as usize).create(p).unwrap())
}
pub fn map_redb_error(_: &Path, _: &str, e: impl Into<redb::Error>) -> Error {
    panic!("{:?}", e.into())
}
