//! What is there of a backup that was not finished, and how the next one in the same directory uses it.
//!
//! A moment that was pinned is gone with whoever pinned it, so a backup cannot simply go on: what it copied is as of one
//! position of each partition's log, and what follows would be as of another. But a partition tells which keys it has in
//! which versions, and values only of what was written after a position that it is told. So the next backup is made anew, as
//! of a new moment, and takes each value that still has the version under which it was copied from the files of before: only
//! keys come over the network a second time.
//!
//! | file | what |
//! |---|---|
//! | `UNFINISHED` | written before anything is copied: a manifest, without trees, that says as of which positions |
//! | `partition-00001` | what is being copied |
//! | `earlier-00001-77` | what was copied of partition 1 before, as of position 77; gone when the partition is copied again |
//!
//! **What may be used.** The directory's `UNFINISHED` must be of the same cluster, of the same number of partitions, must add
//! to the same backup, and since then no member may have been taken out, after which a position could mean something else:
//! else all files are removed. Of a file as much is used as its checksums vouch for. Of several that were left of one
//! partition, because that was interrupted more than once, the longest is.
//!
//! A file that is there under two names, or under none, after a power cut does no harm: what is not found is copied.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::BackupError;
use super::format::{self, Manifest, Reader, Record, Section};
use crate::IVec;

pub(super) const UNFINISHED: &str = "UNFINISHED";
/// Until it is whole.
const ASIDE: &str = "UNFINISHED.partial";

fn io(path: &Path) -> impl Fn(std::io::Error) -> BackupError {
    move |error| BackupError::Io { path: path.to_owned(), error: error.to_string() }
}

/// The number of a partition in a file's name, if it is written as we do.
fn number(text: &str) -> Option<u32> {
    let is_ours = text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| is_ours)
}

/// A file that was left, by its exact name.
#[derive(Debug, PartialEq, Eq)]
enum Left {
    Partition(u32),
    Earlier {
        partition: u32,
        position: u64,
    },
    /// `UNFINISHED`, and manifests that were not finished.
    Manifest,
}

impl Left {
    fn of(name: &str) -> Option<Left> {
        if [UNFINISHED, ASIDE, "MANIFEST.partial"].contains(&name) {
            return Some(Left::Manifest);
        }
        if let Some(partition) = name.strip_prefix("partition-") {
            return number(partition).map(Left::Partition);
        }
        let (partition, position) = name.strip_prefix("earlier-")?.split_once('-')?;
        let is_ours = position.bytes().all(|byte| byte.is_ascii_digit());
        let position = position.parse().ok().filter(|_| is_ours)?;
        Some(Left::Earlier { partition: number(partition)?, position })
    }
}

fn earlier_path(directory: &Path, partition: u32, position: u64) -> PathBuf {
    directory.join(format!("earlier-{partition:05}-{position}"))
}

/// That a directory holds nothing but what a backup that was not finished leaves, and `lock`.
pub(super) fn check(directory: &Path, lock: &str) -> Result<(), BackupError> {
    files(directory, lock).map(drop)
}

fn files(directory: &Path, lock: &str) -> Result<Vec<(PathBuf, Left)>, BackupError> {
    let (io, shown) = (io(directory), directory.display());
    let mut left = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(&io)? {
        let entry = entry.map_err(&io)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name == lock && entry.metadata().map_err(&io)?.len() == 0 {
            continue;
        }
        let Some(kind) = Left::of(&name) else {
            return Err(BackupError::Refused(format!("{shown} holds {name} already: name a new directory")));
        };
        if kind != Left::Manifest && !format::is_ours_or_empty(&entry.path()).map_err(&io)? {
            return Err(BackupError::Refused(format!(
                "{shown} holds {name}, which is no backup's: name a new directory"
            )));
        }
        left.push((entry.path(), kind));
    }
    Ok(left)
}

/// Whether what was copied for one can be used for the other.
fn fits(before: &Manifest, now: &Manifest) -> bool {
    let what = |of: &Manifest| (of.cluster, of.parent, of.partitions.len(), of.removed_members.clone());
    what(before) == what(now)
}

/// Makes room in the directory for a backup, of which this manifest says what is known before it is made; what of an
/// unfinished one can be used, by partition.
pub(super) fn take_over(
    directory: &Path,
    lock: &str,
    now: &Manifest,
) -> Result<BTreeMap<u32, Earlier>, BackupError> {
    let failed = io(directory);
    let before = std::fs::read(directory.join(UNFINISHED)).ok();
    let before = before.and_then(|bytes| Manifest::decode(&bytes).ok()).filter(|before| fits(before, now));
    let mut longest: BTreeMap<u32, (u64, Earlier)> = BTreeMap::new();
    for (path, left) in files(directory, lock)? {
        let found = match (&left, &before) {
            (Left::Partition(partition), Some(before)) => {
                let entry =
                    (*partition as usize).checked_sub(1).and_then(|index| before.partitions.get(index));
                entry.map(|entry| (*partition, entry.position))
            }
            (Left::Earlier { partition, position }, Some(_)) => Some((*partition, *position)),
            _ => None,
        };
        let Some((partition, position)) = found else {
            // The manifest goes when another takes its place: until then it says what the files are.
            if left != Left::Manifest || before.is_none() {
                std::fs::remove_file(&path).map_err(&failed)?;
            }
            continue;
        };
        let length = std::fs::metadata(&path).map_err(&failed)?.len();
        if longest.get(&partition).is_some_and(|(other, _)| *other >= length) {
            std::fs::remove_file(&path).map_err(&failed)?;
            continue;
        }
        let earlier = Earlier { path, partition, position };
        if let Some((_, shorter)) = longest.insert(partition, (length, earlier)) {
            std::fs::remove_file(&shorter.path).map_err(&failed)?;
        }
    }
    let mut usable = BTreeMap::new();
    for (partition, (_, earlier)) in longest {
        let path = earlier_path(directory, partition, earlier.position);
        if earlier.path != path {
            std::fs::rename(&earlier.path, &path).map_err(&failed)?;
        }
        usable.insert(partition, Earlier { path, ..earlier });
    }
    // The names first: no file may be taken to be as of the positions that come now.
    std::fs::File::open(directory).and_then(|directory| directory.sync_all()).map_err(&failed)?;
    now.write_as(directory, ASIDE, UNFINISHED)?;
    Ok(usable)
}

/// There is a backup: what says otherwise goes.
pub(super) fn forget(directory: &Path) {
    let _ = std::fs::remove_file(directory.join(UNFINISHED));
}

/// What was copied of a partition before.
#[derive(Debug)]
pub(super) struct Earlier {
    path: PathBuf,
    partition: u32,
    position: u64,
}

impl Earlier {
    pub(super) fn read(self) -> Kept {
        let reader = Reader::of_unfinished(&self.path, self.partition).ok();
        let mut kept = Kept { reader, next: None, position: self.position, path: Some(self.path) };
        kept.fetch();
        kept
    }
}

/// The records of that, in order, to be asked for in the order of their keys.
#[derive(Default)]
pub(super) struct Kept {
    reader: Option<Reader>,
    next: Option<(Section, Record)>,
    position: u64,
    path: Option<PathBuf>,
}

impl Kept {
    fn fetch(&mut self) {
        self.next = self.reader.as_mut().and_then(|reader| match reader.next() {
            Ok(next) => next,
            Err(error) => {
                tracing::debug!(%error, "here ends what was copied before");
                None
            }
        });
    }

    /// The position as of which there is more of it, if there is.
    pub(super) fn more_as_of(&self) -> Option<u64> {
        self.next.as_ref().map(|_| self.position)
    }

    /// The value of a key, if it was copied with this version.
    pub(super) fn value(&mut self, section: &Section, key: &IVec, version: u64) -> Option<IVec> {
        while let Some((of, record)) = &self.next
            && (of, &record.key) < (section, key)
        {
            self.fetch();
        }
        let (of, record) = self.next.as_ref()?;
        let is_it = (of, &record.key, record.version) == (section, key, version);
        record.value.clone().filter(|_| is_it)
    }

    /// The partition is copied: it is not needed any more.
    pub(super) fn remove(self) {
        if let Some(path) = self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_left_are_known_by_their_exact_names() {
        let earlier = |partition, position| Some(Left::Earlier { partition, position });
        for (name, expected) in [
            ("partition-00001", Some(Left::Partition(1))),
            ("partition-123456", Some(Left::Partition(123_456))),
            ("earlier-00002-0", earlier(2, 0)),
            ("earlier-00002-18446744073709551615", earlier(2, u64::MAX)),
            ("UNFINISHED", Some(Left::Manifest)),
            ("UNFINISHED.partial", Some(Left::Manifest)),
            ("MANIFEST.partial", Some(Left::Manifest)),
            ("MANIFEST", None),
            ("partition-1", None),
            ("partition-+0001", None),
            ("partition-99999999999", None),
            ("earlier-00002", None),
            ("earlier-00002-", None),
            ("earlier-00002-+1", None),
            ("earlier-00002-18446744073709551616", None),
            ("unfinished", None),
        ] {
            assert_eq!(Left::of(name), expected, "{name}");
        }
    }
}
