//! What goes wrong on command: errors of single calls, a crash amid one, no room.

use std::io;

#[cfg(doc)]
use super::{Disk, DiskDirectory, DiskFile};
use super::{Inner, SimulatedDisk};

/// What a caller can ask of a disk, for counting and for [`Fault`]s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// [`Disk::open`] of a file that is there, [`Disk::open_directory`]
    Open,
    /// [`DiskFile::read_at`]
    Read,
    /// [`DiskFile::map`]
    Map,
    /// [`DiskFile::length`]
    Length,
    /// [`Disk::list`]
    List,
    /// [`Disk::exists`]
    Exists,
    /// [`Disk::lock`]
    Lock,
    /// [`Disk::create_directories`]
    CreateDirectories,
    /// A [`Disk::open`] that makes a file.
    Create,
    /// [`DiskFile::write_at`]
    Write,
    /// [`DiskFile::write_at_synced`]
    WriteSynced,
    /// [`DiskFile::sync`]
    Sync,
    /// [`DiskFile::set_length`]
    SetLength,
    /// [`Disk::rename`]
    Rename,
    /// [`Disk::remove`]
    Remove,
    /// [`DiskDirectory::sync`]
    SyncDirectory,
}

impl Operation {
    /// Whether it changes what is on the disk, or makes a change durable.
    pub fn is_change(self) -> bool {
        self >= Operation::CreateDirectories
    }
}

/// An error to come; see [`SimulatedDisk::inject`].
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which operation is to fail; `None` counts and fails any.
    pub operation: Option<Operation>,
    /// How many matching calls still succeed.
    pub after: u64,
    /// Whether every later one fails too.
    pub from_then_on: bool,
}

pub(super) fn input_output_error() -> io::Error {
    io::Error::from_raw_os_error(5)
}

pub(super) fn crash_error() -> io::Error {
    io::Error::other("the simulated machine has crashed")
}

impl SimulatedDisk {
    /// Lets the machine crash in its `change`th changing call, counted as [`SimulatedDisk::changes`]
    /// does: that call and all later ones fail, and it may or may not have taken effect.
    pub fn crash_at_change(&self, change: u64) {
        self.0.lock().crash_at = Some(change);
    }

    /// Whether it has crashed.
    pub fn crashed(&self) -> bool {
        self.0.lock().crashed
    }

    /// Adds an error to come.
    pub fn inject(&self, fault: Fault) {
        self.0.lock().faults.push(fault);
    }

    /// Errors still to come.
    pub fn pending_faults(&self) -> usize {
        self.0.lock().faults.len()
    }

    /// Forgets the errors to come.
    pub fn clear_faults(&self) {
        self.0.lock().faults.clear();
    }

    /// Bytes that fit on the disk, counting the lengths of its files; `None` for no limit.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    /// Refuses every change with `EROFS`, or stops refusing.
    pub fn set_read_only(&self, read_only: bool) {
        self.0.lock().read_only = read_only;
    }
}

/// How a call that was let in goes on.
pub(super) enum Entered {
    Normally,
    /// Take effect if you like, then fail with [`crash_error`].
    Crashing,
    /// Fail with `EIO`.
    Failing,
}

impl Inner {
    pub(super) fn enter(&mut self, operation: Operation) -> io::Result<Entered> {
        if self.crashed {
            return Err(crash_error());
        }
        self.calls += 1;
        *self.counts.entry(operation).or_default() += 1;
        if operation.is_change() {
            self.changes += 1;
            if self.read_only {
                return Err(io::Error::from_raw_os_error(30));
            }
            if self.crash_at.is_some_and(|change| self.changes >= change) {
                self.crashed = true;
                return Ok(Entered::Crashing);
            }
        }
        let mut failing = false;
        self.faults.retain_mut(|fault| {
            if fault.operation.is_some_and(|wanted| wanted != operation) {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failing = true;
            fault.from_then_on
        });
        Ok(if failing { Entered::Failing } else { Entered::Normally })
    }

    /// [`Inner::enter`] for calls that have no halves.
    pub(super) fn enter_whole(&mut self, operation: Operation) -> io::Result<bool> {
        match self.enter(operation)? {
            Entered::Normally => Ok(false),
            Entered::Crashing => Ok(true),
            Entered::Failing => Err(input_output_error()),
        }
    }

    pub(super) fn check_space(&self, file: u64, end: u64) -> io::Result<()> {
        let length = self.files[&file].bytes.len() as u64;
        match self.capacity {
            Some(capacity) if end > length && self.used() + (end - length) > capacity => {
                Err(io::Error::from_raw_os_error(28))
            }
            _ => Ok(()),
        }
    }
}
