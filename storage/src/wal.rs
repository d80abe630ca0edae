#![allow(missing_docs, dead_code)]
use crate::{Result, disk::Disk};
use std::{path::PathBuf, sync::Arc, time::Duration};
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamId(pub u32);
#[derive(Clone, Copy, Debug)]
pub struct Ticket;
#[derive(Default)]
pub struct WalOptions {
    pub directory: PathBuf,
    pub segment_size: u64,
    pub database_id: u128,
    pub flush_every: Option<Duration>,
}
#[derive(Debug)]
pub struct Wal;
impl Wal {
    pub fn open(_: Arc<dyn Disk>, _: WalOptions) -> Result<Wal> {
        unimplemented!()
    }
    pub fn append(&self, _: StreamId, _: u64, _: &[&[u8]]) -> Result<Ticket> {
        unimplemented!()
    }
    pub fn wait_durable(&self, _: Ticket) -> Result<()> {
        unimplemented!()
    }
    pub fn sync(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn close(&self) -> Result<()> {
        unimplemented!()
    }
    pub fn poison(&self, _: &str) {}
    pub fn first_index(&self, _: StreamId) -> Option<u64> {
        unimplemented!()
    }
    pub fn index_before(&self, _: StreamId, _: u64) -> u64 {
        unimplemented!()
    }
    pub fn purge_to(&self, _: StreamId, _: u64) -> Result<Ticket> {
        unimplemented!()
    }
    pub fn replay(&self, _: StreamId, _: u64, _: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        unimplemented!()
    }
}
impl Wal {
    pub fn read(&self, _: StreamId, _: u64, _: u64, _: usize) -> Result<Vec<(u64, crate::IVec)>> {
        unimplemented!()
    }
}
