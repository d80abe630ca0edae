//! [`Chain`]: a complete backup and what was added to it, read as if they were one.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::BackupError;
use super::format::{self, Manifest, Reader, Record, Section};
use crate::IVec;

/// Backups, oldest first; the first is complete, and each of the others adds to the one before it.
pub(super) struct Chain {
    links: Vec<(PathBuf, Manifest)>,
}

impl Chain {
    /// Reads the manifests.
    pub(super) fn open(directories: &[PathBuf]) -> Result<Chain, BackupError> {
        let mut links: Vec<(PathBuf, Manifest)> = Vec::new();
        for directory in directories {
            let manifest = Manifest::read(directory)?;
            let shown = directory.display();
            match links.last() {
                None if manifest.parent != 0 => {
                    return Err(BackupError::Refused(format!(
                        "{shown} adds to backup {:032x}, and that comes before it: name the whole chain, oldest first",
                        manifest.parent
                    )));
                }
                Some((before, of)) if manifest.parent != of.backup => {
                    return Err(BackupError::Refused(format!(
                        "{shown} does not add to {}, but {}",
                        before.display(),
                        match manifest.parent {
                            0 => "is a complete one".to_owned(),
                            parent => format!("to backup {parent:032x}"),
                        }
                    )));
                }
                Some((before, of)) if manifest.partitions.len() != of.partitions.len() => {
                    let why = "has another number of partitions than";
                    return Err(BackupError::Refused(format!("{shown} {why} {}", before.display())));
                }
                _ => {}
            }
            links.push((directory.clone(), manifest));
        }
        if links.is_empty() {
            return Err(BackupError::Refused("no backup is named".to_owned()));
        }
        Ok(Chain { links })
    }

    /// The newest.
    pub(super) fn newest(&self) -> &Manifest {
        &self.links.last().expect("a chain is not empty").1
    }

    pub(super) fn partitions(&self) -> u32 {
        self.newest().partitions.len() as u32
    }

    /// Bytes in all its files.
    pub(super) fn bytes(&self) -> u64 {
        let partitions = self.links.iter().flat_map(|(_, manifest)| &manifest.partitions);
        partitions.map(|partition| partition.sum.length).sum()
    }

    /// What was in a partition when the newest was made.
    pub(super) fn partition(&self, partition: u32) -> Result<Merged, BackupError> {
        let mut readers = Vec::new();
        for (directory, manifest) in &self.links {
            readers.push(Reader::open(manifest, directory, partition)?);
        }
        let mut merged = Merged { readers, next: BTreeMap::new() };
        for index in 0..merged.readers.len() {
            merged.fetch(index)?;
        }
        Ok(merged)
    }

    /// That what the files of a partition say, which are sound each, makes no sense.
    pub(super) fn damaged(&self, partition: u32, what: &str) -> BackupError {
        let (directory, _) = self.links.last().expect("a chain is not empty");
        let path = format::partition_path(directory, partition);
        BackupError::Damaged { path, offset: 0, what: what.to_owned() }
    }
}

/// A partition's records in order, of each key the newest; see [`Chain::partition`].
pub(super) struct Merged {
    readers: Vec<Reader>,
    /// Of each reader that has one the next record: the newest backup's before the older ones' of one key.
    next: BTreeMap<(Section, IVec, Reverse<usize>), Record>,
}

impl Merged {
    fn fetch(&mut self, index: usize) -> Result<(), BackupError> {
        if let Some((section, record)) = self.readers[index].next()? {
            self.next.insert((section, record.key.clone(), Reverse(index)), record);
        }
        Ok(())
    }

    /// How much of the files was read.
    pub(super) fn bytes_read(&self) -> u64 {
        self.readers.iter().map(Reader::offset).sum()
    }

    /// The next key that is there.
    pub(super) fn next(&mut self) -> Result<Option<(Section, Record)>, BackupError> {
        loop {
            let Some(((section, key, index), record)) = self.next.pop_first() else { return Ok(None) };
            self.fetch(index.0)?;
            // Older ones of the same key.
            while let Some(entry) = self.next.first_entry()
                && (&entry.key().0, &entry.key().1) == (&section, &key)
            {
                let ((_, _, older), _) = entry.remove_entry();
                self.fetch(older.0)?;
            }
            if record.value.is_some() {
                return Ok(Some((section, record)));
            }
        }
    }
}
