//! Segment files: making them ahead of use, opening them, using them again.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::disk::{BLOCK_SIZE, Disk, DiskDirectory, DiskFile, OpenMode};
use crate::error::{Error, Result};

use super::buffer::Buffer;
use super::format::{SegmentHeader, frames_end, seal_header};

/// Zeros are written in steps of this size, so that a foreground sync never waits long behind
/// them, and closing never waits for a whole segment to be filled.
const FILL_STEP: u64 = 256 << 10;

/// A segment in which so many groups were waited for is hot; see [`Segment::is_hot`].
const HOT_GROUPS: u32 = 16;

/// The most spares that are kept for writers who do not wait.
const COLD_SPARES: usize = 16;

/// What may become of a segment out of use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reuse {
    /// Somebody still reads it.
    Never,
    Cold,
    /// See [`Segment::is_hot`].
    Hot,
}

/// A filled file out of use.
struct Spare {
    path: PathBuf,
    hot: bool,
}

/// One segment file, open.
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) size: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn DiskFile>,
    /// Groups in it whose durability somebody waited for.
    awaited: AtomicU32,
}

impl Segment {
    pub(super) fn new(header: &SegmentHeader, path: PathBuf, file: Arc<dyn DiskFile>) -> Segment {
        Segment {
            number: header.number,
            epoch: header.epoch,
            size: header.size,
            path,
            file,
            awaited: AtomicU32::new(0),
        }
    }

    /// Where its frames end: behind lies its seal.
    pub(super) fn frames_end(&self) -> u64 {
        frames_end(self.size)
    }

    /// Writes the [seal](super#seals), without syncing it: the next segment's opening, which is
    /// durable, says the same, and more. It is the last that is written to the segment, whose
    /// descriptors for writing are closed: a WAL may have thousands of segments.
    pub(super) fn write_seal(&self, group: u64, previous: u32) -> Result<()> {
        let mut block = Buffer::zeros(BLOCK_SIZE);
        seal_header(self.number, self.epoch, group, previous).seal(block.frame_mut());
        self.file
            .write_at(self.frames_end(), block.frame())
            .map_err(|error| Error::io(format!("sealing {}", self.path.display()), error))?;
        self.file.no_more_writes();
        Ok(())
    }

    /// Makes the seal durable.
    pub(super) fn sync_seal(&self) -> Result<()> {
        self.file.sync().map_err(|error| Error::io(format!("sealing {}", self.path.display()), error))
    }

    /// Somebody waited for a group in it.
    pub(super) fn was_awaited(&self) {
        self.awaited.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether writers who wait took it up: their next segment should be there before they ask for
    /// it, without zeros being written beside them. For what nobody waits for that is no loss.
    pub(super) fn is_hot(&self) -> bool {
        self.awaited.load(Ordering::Relaxed) >= HOT_GROUPS
    }

    /// Bytes that were written for good. Read, not mapped: a map would be quicker by a copy, but a
    /// page of it that the disk cannot read ends the process, and nobody needs to reason about one
    /// that is faulted in while its neighbour is written past the cache.
    pub(super) fn bytes(&self, offset: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        self.file.read_at(offset, &mut bytes)?;
        Ok(bytes)
    }
}

/// What a name in the directory says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FileName {
    /// `0000000000000001.wal`: a segment, in use or prepared.
    Segment(u64),
    /// `0000000000000001.spare`: filled, out of use; its bytes mean nothing.
    Spare,
    /// `0000000000000001.filling`: not yet filled, or left so by a crash.
    Filling,
}

pub(super) fn parse_name(name: &str) -> Option<FileName> {
    let (digits, suffix) = name.split_once('.')?;
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if digits.len() != 16 || !digits.bytes().all(lower_hex) {
        return None;
    }
    let number = u64::from_str_radix(digits, 16).ok()?;
    match suffix {
        "wal" if number > 0 => Some(FileName::Segment(number)),
        "spare" => Some(FileName::Spare),
        "filling" => Some(FileName::Filling),
        _ => None,
    }
}

pub(super) fn segment_path(directory: &Path, number: u64) -> PathBuf {
    directory.join(format!("{number:016x}.wal"))
}

/// Why no segment could be prepared.
pub(super) enum PrepareError {
    /// Nothing is in doubt: no name has changed. Another attempt may succeed.
    Clean(Error),
    /// It is not known which names the directory holds.
    InDoubt(Error),
    /// The database is being closed.
    Stopped,
}

/// The directory of segments.
pub(super) struct Files {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: PathBuf,
    /// The directory, open: the names in it are in doubt from a rename on until it is synced, and what
    /// could fail in between without need must not.
    open_directory: Arc<dyn DiskDirectory>,
    pub(super) database_id: u128,
    pub(super) segment_size: u64,
    spare_segments: usize,
    /// Filled files of `segment_size`, ready to be prepared.
    spares: Mutex<Vec<Spare>>,
    random: AtomicU64,
    stop: AtomicBool,
}

impl Files {
    pub(super) fn new(disk: Arc<dyn Disk>, options: &super::WalOptions) -> Result<Files> {
        use std::hash::{BuildHasher, Hasher};
        // The standard library's hash keys are the one source of randomness it has.
        let entropy = || std::collections::hash_map::RandomState::new().build_hasher().finish();
        let open_directory = disk
            .open_directory(&options.directory)
            .map_err(|error| Error::io(format!("opening {}", options.directory.display()), error))?;
        Ok(Files {
            disk,
            directory: options.directory.clone(),
            open_directory,
            database_id: options.database_id,
            segment_size: options.segment_size,
            spare_segments: options.spare_segments,
            spares: Mutex::new(Vec::new()),
            random: AtomicU64::new(options.seed.unwrap_or_else(entropy)),
            stop: AtomicBool::new(false),
        })
    }

    /// Cuts a filling under way short.
    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub(super) fn spares(&self) -> usize {
        self.spares.lock().len()
    }

    /// A random epoch, never zero, never the same for two numbers.
    fn epoch(&self, number: u64) -> u64 {
        let random = self.random.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut z = random ^ number.rotate_left(32);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)).max(1)
    }

    pub(super) fn sync_directory(&self) -> Result<()> {
        self.open_directory
            .sync()
            .map_err(|error| Error::io(format!("syncing {}", self.directory.display()), error))
    }

    /// Takes up a spare found when opening, or removes it if it is of no use.
    pub(super) fn adopt_spare(&self, path: PathBuf) -> Result<()> {
        let failed = |error| Error::io(format!("looking at the spare segment {}", path.display()), error);
        let length = self.disk.open(&path, OpenMode::Read).and_then(|file| file.length()).map_err(failed)?;
        let mut spares = self.spares.lock();
        if length == self.segment_size && spares.len() < self.spare_segments.max(1) {
            spares.push(Spare { path, hot: false });
        } else {
            self.disk.remove(&path).map_err(failed)?;
        }
        Ok(())
    }

    /// Removes the spares, those that were hot only if `all`.
    pub(super) fn trim(&self, all: bool) -> Result<()> {
        let gone: Vec<Spare> = self.spares.lock().extract_if(.., |spare| all || !spare.hot).collect();
        for Spare { path, .. } in gone {
            self.disk
                .remove(&path)
                .map_err(|error| Error::io(format!("removing {}", path.display()), error))?;
        }
        Ok(())
    }

    /// Takes a segment out of use: what it held is no longer needed. Keeps it as a spare, unless
    /// there are enough, its size is unusual, or somebody still reads it (a removed file stays
    /// as it was for those who have it open; one written anew would change under them).
    pub(super) fn retire(&self, path: &Path, size: u64, number: u64, reuse: Reuse) -> Result<()> {
        let failed = |error| Error::io(format!("recycling {}", path.display()), error);
        let most = match reuse {
            Reuse::Never => 0,
            Reuse::Cold => self.spare_segments.min(COLD_SPARES),
            Reuse::Hot => self.spare_segments,
        };
        if size == self.segment_size && self.spares() < most {
            let spare = self.directory.join(format!("{number:016x}.spare"));
            self.disk.rename(path, &spare).map_err(failed)?;
            // Its header may be overwritten only when the old name is gone for good.
            self.sync_directory()?;
            self.spares.lock().push(Spare { path: spare, hot: reuse == Reuse::Hot });
        } else {
            self.disk.remove(path).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes segment `number` ready for appending: filled with zeros or with what an earlier life
    /// left, its header durable, its name durable.
    pub(super) fn prepare(&self, number: u64, size: u64) -> Result<Arc<Segment>, PrepareError> {
        assert!(size.is_multiple_of(BLOCK_SIZE as u64), "a segment of {size} bytes is not whole blocks");
        let mut spare = if size == self.segment_size { self.spares.lock().pop() } else { None };
        // After a crash two of one name may have been found.
        while let Some(path) = spare.as_ref().map(|spare| &spare.path)
            && matches!(self.disk.exists(path), Ok(false))
        {
            spare = self.spares.lock().pop();
        }
        let path = match spare {
            Some(spare) => spare.path,
            None => self.fill(number, size)?,
        };
        let header = SegmentHeader { database_id: self.database_id, number, epoch: self.epoch(number), size };
        let mut block = Buffer::zeros(BLOCK_SIZE);
        header.encode(block.frame_mut());
        let opened = self.disk.open(&path, OpenMode::Aligned);
        let written = opened.and_then(|file| file.write_at_synced(0, block.frame()).map(|()| file));
        let file = written.map_err(|error| {
            // Whatever it holds now, nothing refers to it.
            let _ = self.disk.remove(&path);
            PrepareError::Clean(Error::io(format!("preparing {}", path.display()), error))
        })?;
        let target = segment_path(&self.directory, number);
        self.disk
            .rename(&path, &target)
            .map_err(|error| Error::io(format!("renaming {}", path.display()), error))
            .and_then(|()| self.sync_directory())
            .map_err(PrepareError::InDoubt)?;
        Ok(Arc::new(Segment::new(&header, target, file)))
    }

    fn fill(&self, number: u64, size: u64) -> Result<PathBuf, PrepareError> {
        let path = self.directory.join(format!("{number:016x}.filling"));
        let filled = self.fill_file(&path, size);
        filled.map_err(|error| {
            let _ = self.disk.remove(&path);
            if self.stop.load(Ordering::Relaxed) {
                return PrepareError::Stopped;
            }
            PrepareError::Clean(Error::io(format!("making the segment {}", path.display()), error))
        })?;
        Ok(path)
    }

    fn fill_file(&self, path: &Path, size: u64) -> io::Result<()> {
        self.disk.open(path, OpenMode::Create)?.set_length(size)?;
        // Past the page cache where possible: nobody is going to read these zeros.
        let file = self.disk.open(path, OpenMode::Aligned)?;
        let zeros = Buffer::zeros(FILL_STEP.min(size) as usize);
        let mut offset = 0;
        while offset < size {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::from(io::ErrorKind::Interrupted));
            }
            let step = (size - offset).min(FILL_STEP);
            file.write_at(offset, &zeros.frame()[..step as usize])?;
            offset += step;
        }
        file.sync()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_names_are_taken_for_segments() {
        assert_eq!(parse_name("00000000000000ff.wal"), Some(FileName::Segment(255)));
        assert_eq!(parse_name("00000000000000ff.spare"), Some(FileName::Spare));
        assert_eq!(parse_name("0000000000000001.filling"), Some(FileName::Filling));
        for other in ["0000000000000000.wal", "00000000000000FF.wal", "1.wal", "0000000000000001.wal~", "x"] {
            assert_eq!(parse_name(other), None, "{other}");
        }
    }
}
