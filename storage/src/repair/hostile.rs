//! Arbitrary bytes in place of a database: what fuzzing calls.

use std::ops::Bound;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::repair;
use crate::disk::{BLOCK_SIZE, Disk, SimulatedDisk};
use crate::tree_file::layout;
use crate::verify::verify_directory;
use crate::{Engine, Options};

const SOURCE: &str = "source";
const TARGET: &str = "target";

/// Verifies, opens and repairs a directory that holds `files` (names in the directory, such as
/// `tree.redb` and `wal/0000000000000001.wal`, and their bytes), all on a simulated disk.
///
/// With `seal` the checksums of `tree.redb` are made to match first, so that what lies behind them
/// is reached; then it is not opened, because redb trusts what we have verified.
///
/// # Panics
/// If a promise is broken: anything may be refused, but nothing may panic, and what was repaired
/// must open, verify and be readable to its end.
pub fn check_arbitrary_files(files: &[(&str, &[u8])], seal: bool) {
    let disk = SimulatedDisk::new(0);
    for (name, bytes) in files {
        let mut bytes = bytes.to_vec();
        if seal && *name == "tree.redb" {
            seal_tree(&mut bytes);
        }
        disk.set_content(&Path::new(SOURCE).join(name), bytes);
    }
    let copy = disk.duplicate();
    let shared: Arc<dyn Disk> = Arc::new(disk);
    let _ = verify_directory(&*shared, Path::new(SOURCE));
    if repair(&shared, Path::new(SOURCE), Path::new(TARGET), &mut |_| ()).is_ok() {
        let engine = Engine::open(options(&shared, TARGET)).expect("a repaired database opens");
        let report = engine.verify().expect("a repaired database can be read");
        assert!(report.is_sound(), "repaired, and damaged: {:?}", report.damage);
        read_all(&engine).expect("a repaired database is sound");
    }
    if !seal && let Ok(engine) = Engine::open(options(&(Arc::new(copy) as Arc<dyn Disk>), SOURCE)) {
        // Damage in what opening need not read shows here.
        let _ = read_all(&engine);
    }
}

fn options(disk: &Arc<dyn Disk>, directory: &str) -> Options {
    Options {
        disk: Arc::clone(disk),
        background_threads: false,
        flush_every_ms: None,
        cache_capacity: 8 << 20,
        segment_size: 64 << 10,
        ..Options::new(PathBuf::from(directory))
    }
}

fn read_all(engine: &Engine) -> crate::Result<()> {
    let snapshot = engine.snapshot();
    for (_, id) in snapshot.trees() {
        for entry in snapshot.range(id, Bound::Unbounded, Bound::Unbounded) {
            entry?;
        }
    }
    Ok(())
}

/// Makes every checksum of a tree file match.
fn seal_tree(bytes: &mut [u8]) {
    let blocks = bytes.len() / BLOCK_SIZE;
    let range = |block: u64| block as usize * BLOCK_SIZE..(block as usize + 1) * BLOCK_SIZE;
    if blocks >= 1 {
        let crc = crc32fast::hash(&bytes[..40]);
        bytes[40..44].copy_from_slice(&crc.to_le_bytes());
    }
    for slot in [1, 2].into_iter().filter(|slot| *slot < blocks as u64) {
        let end = range(slot).end;
        let crc = layout::checksum(slot, &bytes[range(slot).start..end - 4]);
        bytes[end - 4..end].copy_from_slice(&crc.to_le_bytes());
    }
    for data in 0..layout::data_blocks(blocks as u64) {
        let block = layout::data_block(data);
        let crc = layout::checksum(block, &bytes[range(block)]);
        let entry = range(layout::checksum_block(data / layout::GROUP_BLOCKS)).start
            + 4 * (data % layout::GROUP_BLOCKS) as usize;
        bytes[entry..entry + 4].copy_from_slice(&crc.to_le_bytes());
    }
}
