//! The write-ahead log: the only durable copy of a write until a checkpoint.
//!
//! # Promise
//!
//! When [`Wal::wait_durable`] or [`Wal::sync`] has returned `Ok`, everything appended up to that
//! ticket survives a power cut. Without waiting, what was appended is handed to the operating
//! system within milliseconds and survives the death of the process; it survives a power cut once
//! something later has been synced, or after [`WalOptions::flush_every`]. What opening brings back
//! is always a prefix of what was appended: nothing is there without all before it. Damaged bytes
//! are reported with file and offset and never returned. After any error of writing or syncing,
//! nothing more is acknowledged until the WAL is opened anew.
//!
//! # Idea
//!
//! A WAL serves many numbered [streams](StreamId): the embedded database is one, and later every
//! Raft group of a node is one. A stream is a run of consecutively numbered entries that grows at
//! its end ([`Wal::append`]), loses a suffix ([`Wal::truncate_after`]) or a prefix
//! ([`Wal::purge_to`]), and has a small register beside it ([`Wal::set_state`], for votes). All
//! that happens to any stream is one sequence of records, and one sync makes the records of many
//! streams and threads durable: *group commit*.
//!
//! The sequence lies in *segments*, files of a fixed size, filled with zeros or with what an
//! earlier life left, before they are used. Appending overwrites blocks that exist and never
//! changes a file's length or place, so a sync has no metadata to write: on ext4 that is the
//! difference between 0.16 and 2 milliseconds. A segment that no stream needs any more is renamed
//! and used again.
//!
//! There is one writer at a time, but it is no thread: whoever waits for durability and finds the
//! *pen* free writes the pending group itself (module `writer` says why, and how the others
//! sleep). Two threads do what nobody waits for: one prepares and recycles segments, one writes
//! out what was appended without waiting.
//!
//! # Layout
//!
//! Numbers are little-endian; checksums are CRC-32 (IEEE). A directory holds
//! `<number>.wal` (a segment; the number in 16 hexadecimal digits, from 1, growing by one),
//! `<number>.spare` (a file out of use; contents mean nothing) and `<number>.filling` (a file
//! that is not yet filled).
//!
//! A segment's first 4,096 bytes hold its header, the last 4,096 its [seal](#seals), the rest frames,
//! each beginning at a multiple of 4,096. A segment is named `.wal` only once its header is durable.
//!
//! ```text
//! segment header, 64 bytes, then zeros up to 4,096
//!   0  magic         "dogswal\0"
//!   8  version       u32   2; place and extent of magic, version and checksum never change
//!  12  zero          u32
//!  16  database id   u128
//!  32  number        u64   as in the file name
//!  40  epoch         u64   drawn at random each time that the file becomes a segment
//!  48  size          u64   of the file
//!  56  zero          u32
//!  60  checksum      u32   of bytes 0..60
//!
//! frame header, 64 bytes, then the payload, then zeros up to a multiple of 4,096
//!   0  magic         "dWfr"
//!   4  flags         u32   1: opening frame, 2: written by an orderly shutdown, 4: seal
//!   8  epoch         u64   of the segment: what an earlier life left can never pass for a frame
//!  16  segment       u64   its number
//!  24  group         u64   1, 2, 3 … through all segments; in an opening frame that of the next, in a
//!                          seal the first of the next segment
//!  32  durable       u64   the last group known to be durable when this one was written
//!  40  length        u32   of the payload
//!  44  records       u32   in the payload
//!  48  previous      u32   header checksum of the frame before this one, 0 in the very first
//!  52  payload sum   u32   of header bytes 0..52 and the payload
//!  56  zero          u32
//!  60  header sum    u32   of header bytes 0..60
//!
//! record, 17 bytes, then its own
//!   0  kind          u8    1 append, 2 truncate after index, 3 purge to index, 4 set register
//!   1  stream        u32
//!   5  index         u64   0 for a register
//!  13  length        u32   of the bytes that follow
//!
//! payload of an opening frame, the first of each segment
//!   0  previous      u64   number of the segment before this one, 0 in the very first
//!   8  end           u64   offset in that segment at which the log went on here
//!  16  streams       u32   how many follow, each:
//!                          stream u32, first u64, last u64 (empty: first > last),
//!                          register's length u32, register
//! ```
//!
//! The opening restates all registers and what every stream holds: registers and truncations in
//! older segments need not be kept. It is durable before any other frame of its segment is
//! written. A group that does not fit into a segment gets one of its own size.
//!
//! # Where the log ends
//!
//! A segment that has a successor ends where the successor's opening says; every frame before
//! that must be sound. In the last segment, frames are read as long as they are sound and in
//! sequence. At the first place where that fails, all later blocks are searched for frame
//! headers of this epoch:
//!
//! - one says that the group expected here was durable already: this is **damage**; opening is
//!   refused with file and offset;
//! - there are some, but none says so: a **torn tail**, groups that were being written when the
//!   machine stopped. It is discarded, and the log goes on in a new segment, whose opening
//!   declares where the log ended: what the tail left can never be read again;
//! - there is none: the log ends here and goes on here.
//!
//! Damage to the very last group cannot be told from a torn write, as in any log. An orderly
//! shutdown therefore ends with an empty frame that says that all before it is durable.
//!
//! # Seals
//!
//! An opening says where the segment before it ended. Were that all, a log whose newest segments are
//! missing, by a restore that left them out or a file system that lost them, would read as one that
//! ended earlier, and acknowledged commits would be gone without a word. So each segment but the last
//! ends with a seal, a frame without payload in its last block: the log goes on in the next segment,
//! with this group. A log that ends with a sealed segment is refused, whatever is prepared behind it.
//!
//! The seal is written just after the next segment's opening is durable, and costs those who wait for
//! their commits no sync: the preparing thread syncs it, closing does, and opening writes those again
//! that a power cut took, as long as the next segments are there.
//!
//! # Crashes
//!
//! | the machine stops | what is found |
//! |---|---|
//! | while a segment is being filled | `.filling`: removed |
//! | while a spare gets its new header | `.spare`: taken as it is |
//! | before or after the name `.wal` is durable | a spare, or a segment without frames: taken as it is |
//! | while an opening is being written | a segment without frames; the log ends in the one before |
//! | before a seal is durable | a segment with a successor and no seal: sealed again |
//! | while a group is being written | a torn tail: never acknowledged |
//! | between a synced group and its acknowledgement | the group: more than was promised |
//! | while unsynced groups are on their way | all of them up to the first that is not whole |
//! | while segments are being recycled | those left over are older than a gap, and not needed |
//!
//! A gap that matters is told from one that does not by what the oldest remaining opening says: if
//! a stream still needs entries of segments that are not there, opening is refused.
//!
//! # What is assumed of hardware
//!
//! What [`crate::disk`] says: synced blocks stay; unsynced ones may be there or not, or torn; a
//! write never harms other blocks. Blocks that hold acknowledged bytes are never written again
//! while they are needed: groups are padded to whole blocks.
//!
//! # Omissions
//!
//! When to purge is the owner's decision, and so is locking the directory. Entries that pin an old
//! segment keep all later ones, too. There is one writer: two syncs in flight at once would need
//! acknowledgements that wait for each other.

mod background;
mod buffer;
mod format;
mod gate;
mod inspect;
mod reader;
mod recovery;
mod segment;
mod streams;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::IVec;
use crate::disk::{BLOCK_SIZE, Disk};
use crate::error::{Error, Result};

pub(crate) use format::FORMAT_VERSION;
pub use inspect::{Event, RecordKind, Summary, inspect};
pub(crate) use recovery::{files, has_segments, no_log};

#[doc(hidden)]
pub use format::fuzz_frame;

use format::Kind;
use writer::{Change, Shared};

/// Number of a stream. Stream 0 is the embedded database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u32);

/// Proof of an append, to wait for; see [`Wal::wait_durable`]. Later tickets compare greater.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ticket(u64);

/// No register is larger.
pub const MAX_STATE: usize = 64 << 10;

/// How to open a [`Wal`].
#[derive(Clone, Debug)]
pub struct WalOptions {
    /// The directory of the segments; made if missing.
    pub directory: PathBuf,
    /// Length of a segment in bytes, a multiple of 4,096 and at least 32 KiB. Default 8 MiB: two
    /// always exist, and a small database should not take a hundred megabytes. The first segments
    /// of a database are shorter.
    pub segment_size: u64,
    /// Identifies the database that the segments belong to.
    pub database_id: u128,
    /// Files kept for reuse while there is something to do, beside the one that is prepared; see
    /// [`Wal::trim`]. Default 40: somewhat more than the 256 MiB after which the engine makes a
    /// checkpoint, so that a steady stream of synced writes reuses all of its segments.
    pub spare_segments: usize,
    /// Appended bytes are written out when there are this many. Default 256 KiB.
    pub write_out_bytes: usize,
    /// Appended bytes are written out after being pending for this long, or up to twice as long.
    /// Default 5 ms.
    pub write_out_after: Duration,
    /// Appending waits when more than this is pending. Default 8 MiB.
    pub max_pending_bytes: usize,
    /// How often to sync what nobody waits for; never if `None`, the default.
    pub flush_every: Option<Duration>,
    /// Whether to run the two threads. Without them everything happens in the caller's calls, in
    /// an order that depends on nothing else, and nothing is written out or synced by itself.
    pub threads: bool,
    /// Where epochs come from; drawn at random if `None`.
    pub seed: Option<u64>,
    /// There was a log before: that none is found is damage, and no new one is made.
    pub must_exist: bool,
}

impl WalOptions {
    /// The defaults.
    pub fn new(directory: impl Into<PathBuf>, database_id: u128) -> WalOptions {
        WalOptions {
            directory: directory.into(),
            segment_size: 8 << 20,
            database_id,
            spare_segments: 40,
            write_out_bytes: 256 << 10,
            write_out_after: Duration::from_millis(5),
            max_pending_bytes: 8 << 20,
            flush_every: None,
            threads: true,
            seed: None,
            must_exist: false,
        }
    }

    fn check(&self) -> Result<()> {
        let invalid = |what: &str| Err(Error::InvalidRequest(what.to_owned()));
        if self.segment_size < 32 << 10 || !self.segment_size.is_multiple_of(BLOCK_SIZE as u64) {
            return invalid("a segment's size must be a multiple of 4096 and at least 32 KiB");
        }
        if self.segment_size > 1 << 40 {
            return invalid("a segment's size must be at most 1 TiB");
        }
        Ok(())
    }
}

/// What a WAL holds and has done; see [`Wal::stats`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct WalStats {
    /// Bytes of the log from its first segment to its end.
    pub live_bytes: u64,
    /// Bytes appended and not yet written out.
    pub pending_bytes: u64,
    /// Bytes of all files, spare ones included.
    pub file_bytes: u64,
    /// Segments in use.
    pub segments: usize,
    /// Number of the oldest one in use.
    pub first_segment: u64,
    /// Number of the one being appended to.
    pub active_segment: u64,
    /// Files made ahead of use.
    pub spare_segments: usize,
    /// Groups written since opening.
    pub groups: u64,
    /// Records in them.
    pub records: u64,
    /// Syncs and synced writes since opening.
    pub syncs: u64,
    /// Bytes written since opening, padding included.
    pub bytes_written: u64,
}

/// A write-ahead log; see the [module](self).
///
/// ```
/// use std::sync::Arc;
/// use dogsled_storage::disk::RealDisk;
/// use dogsled_storage::wal::{StreamId, Wal, WalOptions};
///
/// # let directory = tempfile::tempdir().unwrap();
/// # let directory = directory.path();
/// let options = WalOptions::new(directory.join("wal"), 42);
/// let wal = Wal::open(Arc::new(RealDisk), options.clone())?;
/// wal.append(StreamId(0), 1, &[b"first"])?;
/// let ticket = wal.append(StreamId(0), 2, &[b"sec", b"ond"])?;
/// wal.wait_durable(ticket)?; // both survive a power cut
/// drop(wal);
///
/// let wal = Wal::open(Arc::new(RealDisk), options)?;
/// wal.replay(StreamId(0), 2, &mut |index, bytes| {
///     assert_eq!((index, bytes), (2, &b"second"[..]));
///     Ok(())
/// })?;
/// # Ok::<(), dogsled_storage::Error>(())
/// ```
pub struct Wal {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    created: bool,
}

impl Wal {
    /// Opens the WAL in a directory, or makes one.
    ///
    /// Everything that is there is read and checked. Damage, a missing segment, a newer format and
    /// another database's segments are refused, and then nothing was changed.
    pub fn open(disk: Arc<dyn Disk>, options: WalOptions) -> Result<Wal> {
        options.check()?;
        let recovered = recovery::recover(disk, &options)?;
        let with_threads = options.threads;
        let shared = Arc::new(Shared::new(options, recovered.files, recovered.state, recovered.pen));
        let wal = Wal { shared, threads: Mutex::new(Vec::new()), created: recovered.created };
        if with_threads {
            wal.spawn("dogsled-wal-preparer", Shared::run_preparer)?;
            wal.spawn("dogsled-wal-flusher", Shared::run_flusher)?;
        }
        Ok(wal)
    }

    fn spawn(&self, name: &str, run: fn(&Shared)) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(move || run(&shared));
        self.threads.lock().push(spawned.map_err(|error| Error::io("starting a thread of the WAL", error))?);
        Ok(())
    }

    /// Whether [`Wal::open`] found no WAL and made one.
    pub fn was_created(&self) -> bool {
        self.created
    }

    /// Appends an entry, the concatenation of `parts`, to a stream. It is in memory on return; see
    /// [`Wal::wait_durable`] and [`Wal::write_out`].
    ///
    /// `index` must be one more than the stream's last; an empty stream takes any. On
    /// [`Error::Io`] the disk had no room for another segment: nothing was appended, and the same
    /// call succeeds once there is room.
    pub fn append(&self, stream: StreamId, index: u64, parts: &[&[u8]]) -> Result<Ticket> {
        if index == u64::MAX {
            return Err(Error::InvalidRequest("the last possible index is not in use".to_owned()));
        }
        self.shared.record(Kind::Append, stream, index, parts)
    }

    /// Returns when an entry of `length` bytes has room, so that the next [`Wal::append`] need not wait for a segment to be
    /// made, unless others have taken it meanwhile.
    ///
    /// # Errors
    /// As [`Wal::append`].
    pub fn reserve(&self, length: usize) -> Result<()> {
        self.shared.reserve(length)
    }

    /// Removes the entries after `index` from a stream.
    pub fn truncate_after(&self, stream: StreamId, index: u64) -> Result<Ticket> {
        self.shared.record(Kind::TruncateAfter, stream, index, &[])
    }

    /// Removes the entries up to and including `index` from a stream. Segments that no stream
    /// needs any more are recycled once this is durable.
    pub fn purge_to(&self, stream: StreamId, index: u64) -> Result<Ticket> {
        self.shared.record(Kind::PurgeTo, stream, index, &[])
    }

    /// Replaces a stream's register: at most [`MAX_STATE`] bytes; none remove it.
    pub fn set_state(&self, stream: StreamId, bytes: &[u8]) -> Result<Ticket> {
        self.shared.record(Kind::SetState, stream, 0, &[check_state(bytes)?])
    }

    /// Replaces a stream's register and does what [`Wal::purge_to`] does, as one: whether it fails or
    /// the machine stops, both are done or neither is. Like purging it has room on a full disk.
    pub fn purge_to_with_state(&self, stream: StreamId, index: u64, bytes: &[u8]) -> Result<Ticket> {
        self.with_state(Kind::PurgeTo, stream, index, bytes)
    }

    /// Replaces a stream's register and does what [`Wal::truncate_after`] does, as one; see
    /// [`Wal::purge_to_with_state`].
    pub fn truncate_after_with_state(&self, stream: StreamId, index: u64, bytes: &[u8]) -> Result<Ticket> {
        self.with_state(Kind::TruncateAfter, stream, index, bytes)
    }

    fn with_state(&self, kind: Kind, stream: StreamId, index: u64, bytes: &[u8]) -> Result<Ticket> {
        let state: &[&[u8]] = &[check_state(bytes)?];
        let register = Change { kind: Kind::SetState, index: 0, parts: state };
        self.shared.records(stream, &[register, Change { kind, index, parts: &[] }])
    }

    /// A stream's register, durable or not.
    pub fn state(&self, stream: StreamId) -> Option<Vec<u8>> {
        self.shared.state.lock().streams.state(stream).map(<[u8]>::to_vec)
    }

    /// Returns when everything up to `ticket` is durable, writing and syncing it if nobody else
    /// is at it: never waits for more than the group in flight and the ticket's own.
    ///
    /// # Panics
    /// If the ticket is another WAL's.
    pub fn wait_durable(&self, ticket: Ticket) -> Result<()> {
        self.shared.wait_durable(ticket)
    }

    /// Whether everything up to `ticket` is durable.
    pub fn is_durable(&self, ticket: Ticket) -> bool {
        self.shared.durable() >= ticket.0
    }

    /// Returns when everything appended before the call is durable.
    pub fn sync(&self) -> Result<()> {
        self.shared.check_poison()?;
        self.shared.wait_durable(Ticket(self.shared.last_group()))
    }

    /// Hands everything appended before the call to the operating system: it survives the death
    /// of the process, not that of the machine.
    pub fn write_out(&self) -> Result<()> {
        self.shared.check_poison()?;
        self.shared.write_out_to(self.shared.last_group())
    }

    /// The entries of a stream from `from` up to, not including, `to_exclusive`, or fewer: no more
    /// than `limit_bytes`, but at least one if there is one. Entries not yet written out are read
    /// from memory. [`Error::Compacted`] if the first of them was purged.
    pub fn read(
        &self,
        stream: StreamId,
        from: u64,
        to_exclusive: u64,
        limit_bytes: usize,
    ) -> Result<Vec<(u64, IVec)>> {
        self.shared.read(stream, from, to_exclusive, limit_bytes)
    }

    /// Calls `f` with the entries of a stream in order, from `from` on or from the first that
    /// is there. The bytes lie in the group that they were written with: no allocation per entry.
    pub fn replay(
        &self,
        stream: StreamId,
        from: u64,
        f: &mut dyn FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        self.shared.replay(stream, from, f)
    }

    /// Index of a stream's first entry, durable or not; `None` if it has none.
    pub fn first_index(&self, stream: StreamId) -> Option<u64> {
        Some(self.shared.state.lock().streams.bounds(stream)?.0)
    }

    /// Index of a stream's last entry, durable or not; `None` if it has none.
    pub fn last_index(&self, stream: StreamId) -> Option<u64> {
        Some(self.shared.state.lock().streams.bounds(stream)?.1)
    }

    /// The streams that have entries or a register.
    pub fn streams(&self) -> Vec<StreamId> {
        self.shared.state.lock().streams.ids()
    }

    /// What it holds and has done.
    pub fn stats(&self) -> WalStats {
        self.shared.stats()
    }

    /// Bytes written since opening, padding included: [`WalStats::bytes_written`], without waiting for anybody.
    pub fn bytes_written(&self) -> u64 {
        self.shared.bytes_written()
    }

    /// Removes the spare segments that no waiting writer will miss, and has a short one stand ready
    /// behind the active one: the next burst of appends makes new ones beside it. Those that writers
    /// had waited on stay, or each checkpoint would make the next such writers share the disk with the
    /// filling of new segments.
    pub fn trim(&self) -> Result<()> {
        self.shared.files.trim(false)?;
        self.shared.shrink(false)
    }

    /// The same with all spare segments. For an owner with nothing to do; closing removes them, too.
    pub fn trim_all(&self) -> Result<()> {
        self.shared.files.trim(true)?;
        self.shared.shrink(true)
    }

    /// Stops acknowledging anything, for a reason that lies outside (the B-tree's file failed,
    /// say). The first reason given stays.
    pub fn poison(&self, why: &str) {
        self.shared.poison(why);
    }

    /// Why nothing is acknowledged any more, if so: an [`Error::Poisoned`].
    pub fn poisoned(&self) -> Option<Error> {
        self.shared.check_poison().err()
    }

    /// Writes out and syncs everything and stops the threads; dropping does the same, but tells
    /// nobody about errors.
    pub fn close(&self) -> Result<()> {
        if self.shared.state.lock().stopping {
            return self.shared.check_poison();
        }
        self.shut_down()
    }

    fn shut_down(&self) -> Result<()> {
        self.shared.state.lock().stopping = true;
        self.shared.files.stop();
        self.shared.maintenance.notify_all();
        self.shared.room.notify_all();
        self.shared.flusher.stop();
        for thread in self.threads.lock().drain(..) {
            if thread.join().is_err() {
                self.shared.poison("a thread of the WAL panicked");
            }
        }
        self.shared.close()?;
        // What was purged is of no use to the next opening.
        while self.shared.release(true) {}
        self.shared.check_poison()?;
        self.shared.files.trim(true)
    }
}

fn check_state(bytes: &[u8]) -> Result<&[u8]> {
    if bytes.len() > MAX_STATE {
        return Err(Error::InvalidRequest(format!(
            "a register of {} bytes is over the limit of {MAX_STATE}",
            bytes.len()
        )));
    }
    Ok(bytes)
}

impl Drop for Wal {
    fn drop(&mut self) {
        if !self.shared.state.lock().stopping {
            let _ = self.shut_down();
        }
    }
}

impl std::fmt::Debug for Wal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wal")
            .field("directory", &self.shared.options.directory)
            .field("stats", &self.stats())
            .finish()
    }
}
