//! What the disk itself can do: one 4 KiB block at a time, overwritten in place.
//!
//! The file is filled with zeros and synced beforehand, so that no write changes file metadata: the cheapest
//! durable write there is, and the yardstick for a single writer.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::Result;

use super::threads::{Done, Limit, run};

const BLOCK: usize = 4096;
const BLOCKS: u64 = 16 * 1024;

/// `pwrite` and then `fdatasync`.
pub const FDATASYNC: &str = "raw fdatasync";
/// One `pwrite` to a file opened with `O_DIRECT | O_DSYNC`.
pub const DIRECT: &str = "raw O_DIRECT|O_DSYNC";

/// A block that `O_DIRECT` accepts.
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

/// A zero-filled file of 64 MiB.
#[derive(Debug)]
pub struct RawFile {
    buffered: File,
    direct: Option<File>,
}

impl RawFile {
    /// Creates it in `dir`.
    pub fn create(dir: &Path) -> Result<RawFile> {
        let path = dir.join("raw-blocks");
        let mut buffered =
            OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
        let zeros = vec![0; BLOCK * 256];
        for _ in 0..BLOCKS / 256 {
            buffered.write_all(&zeros)?;
        }
        buffered.sync_all()?;
        let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::DSYNC;
        // Some file systems refuse O_DIRECT; then this baseline is left out.
        let direct = OpenOptions::new().write(true).custom_flags(flags.bits().cast_signed()).open(&path).ok();
        Ok(RawFile { buffered, direct })
    }

    /// The baselines that work here.
    pub fn kinds(&self) -> Vec<&'static str> {
        if self.direct.is_some() { vec![FDATASYNC, DIRECT] } else { vec![FDATASYNC] }
    }

    /// Measures one of [`RawFile::kinds`].
    pub fn measure(&self, kind: &str, limit: Limit) -> Result<Done> {
        let mut block = Box::new(Block([0x5a; BLOCK]));
        let block_of = |i: u64| (i % BLOCKS) * BLOCK as u64;
        let direct = self.direct.as_ref().filter(|_| kind == DIRECT);
        let counter = std::sync::atomic::AtomicU64::new(0);
        let next = || counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        block.0[0] = 1;
        let block = &block;
        run(1, Limit { chunk: 1, ..limit }, &|worker| {
            worker.start();
            while worker.claim() > 0 {
                match direct {
                    Some(file) => file.write_all_at(&block.0, block_of(next()))?,
                    None => {
                        self.buffered.write_all_at(&block.0, block_of(next()))?;
                        self.buffered.sync_data()?;
                    }
                }
            }
            Ok(())
        })
    }
}
