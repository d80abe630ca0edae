#![allow(missing_docs, dead_code)]
use crate::{Error, Result, disk::Disk};
use std::path::Path;
pub fn open_redb(_: &dyn Disk, _: &Path, _: u128, _: u64) -> Result<redb::Database> {
    unimplemented!()
}
pub fn map_redb_error(_: &Path, _: &str, _: impl Into<redb::Error>) -> Error {
    unimplemented!()
}
