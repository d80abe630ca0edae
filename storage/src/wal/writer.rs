//! Appending and group commit.
//!
//! Appending copies a record into the pending group, under a mutex that nobody holds while
//! writing. Writing takes **the pen**: whoever waits for durability and finds the pen free takes
//! the pending group, writes it and syncs it, there and then, on its own thread. Whoever finds the
//! pen taken sleeps at the [`Gate`]: the group in flight may be its own, or the next one will be.
//! A holder that puts the pen down first wakes one waiter of the next group, so that the disk is
//! not idle, and then everybody whose group it made durable.
//!
//! So there is one writer at a time, as with a dedicated log thread, and nobody waits for more
//! than the group in flight and its own. But a lone writer pays for no hand-off between threads,
//! which costs two context switches per write: as much as a tenth of a fast disk's sync.
//!
//! Tried and dropped: letting a new holder wait a fraction of a sync for those just set free to
//! join its group, so that sixteen writers share one sync instead of taking turns in two camps of
//! eight. On two cores they take longer to come back than the wait is worth: groups grew by a
//! tenth, throughput fell by a fifth.
//!
//! Group numbers are what tickets are made of. They grow by one per frame, and every frame names
//! the one before it by its checksum.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};

use crate::disk::BLOCK_SIZE;
use crate::error::{Error, Result};

use super::background::Flusher;
use super::buffer::Buffer;
use super::format::{
    FIRST_FRAME, FLAG_CLOSED, FLAG_OPENING, FRAME_HEADER_SIZE, FrameHeader, Kind, MAX_RECORD, Opening,
    RECORD_HEADER_SIZE, encode_record_header, padded,
};
use super::gate::Gate;
use super::segment::{Files, Segment};
use super::streams::Streams;
use super::{StreamId, Ticket, WalOptions, WalStats};

/// The first segment of a database is at most this long, and each next one at most four times as
/// long as the one before, up to the segment size: making a database costs milliseconds, and a
/// small one stays small.
const FIRST_SEGMENT: u64 = 1 << 20;

/// After a failure to make a segment, appends that need it fail for this long without another try.
const RETRY_PREPARING_AFTER: Duration = Duration::from_millis(50);

/// Where a group lies.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    pub(super) segment: u64,
    pub(super) block: u32,
    pub(super) payload_length: u32,
}

impl Frame {
    pub(super) fn new(segment: u64, offset: u64, payload_length: usize) -> Frame {
        let block = u32::try_from(offset / BLOCK_SIZE as u64).expect("a segment is below 16 TiB");
        let payload_length = u32::try_from(payload_length).expect("a payload is below 4 GiB");
        Frame { segment, block, payload_length }
    }

    pub(super) fn offset(self) -> u64 {
        u64::from(self.block) * BLOCK_SIZE as u64
    }
}

/// What appending changes. Its mutex is held for copying, never for reading or writing files.
pub(super) struct State {
    /// The group being filled, and its number.
    pub(super) pending: Buffer,
    pub(super) pending_records: u32,
    pub(super) group: u64,
    /// The group being written. Its buffer is shared with readers.
    pub(super) in_flight: Option<(u64, Arc<RwLock<Buffer>>)>,
    /// A buffer out of use.
    pub(super) idle_buffer: Option<Buffer>,
    pub(super) streams: Streams,
    /// Where the groups from `first_frame` on lie.
    pub(super) frames: VecDeque<Frame>,
    pub(super) first_frame: u64,
    /// Every segment in use, the active one included.
    pub(super) segments: BTreeMap<u64, Arc<Segment>>,
    pub(super) active: Arc<Segment>,
    /// Where in the active segment the next frame goes.
    pub(super) position: u64,
    /// The newest segment whose opening is durable; older ones may be let go.
    pub(super) opened: u64,
    /// The segment after the active one, ready.
    pub(super) prepared: Option<Arc<Segment>>,
    /// Length that the prepared segment must have at least.
    pub(super) wanted: u64,
    /// The prepared segment is to be as short as it may be; see [`Shared::shrink`].
    pub(super) shrinking: bool,
    /// Attempts to prepare a segment that failed, and what became of the last.
    pub(super) failures: u64,
    pub(super) failure: Option<(Instant, Error)>,
    /// Something was purged or truncated since the last group was taken.
    pub(super) released: bool,
    /// Segments whose seal was written and not synced.
    pub(super) unsynced_seals: Vec<u64>,
    /// Segments below this number are no longer needed.
    pub(super) recycle_below: u64,
    pub(super) stopping: bool,
}

impl State {
    /// Room that ordinary records leave for letting entries go, so that a full disk can always be emptied.
    fn reserve(&self) -> u64 {
        (self.active.size / 8).min(64 << 10) / BLOCK_SIZE as u64 * BLOCK_SIZE as u64
    }

    /// Bytes of a segment that consists of its opening, a group of this length, the frame of an
    /// orderly shutdown and its seal.
    fn segment_for(&self, frame: usize) -> u64 {
        let opening = padded(FRAME_HEADER_SIZE + self.streams.opening_bound());
        FIRST_FRAME + (opening + padded(frame) + 2 * BLOCK_SIZE) as u64
    }

    /// Bytes of the active segment that groups may still take: there is always a block left for the
    /// frame of an orderly shutdown.
    fn left(&self) -> u64 {
        self.left_for_closing().saturating_sub(BLOCK_SIZE as u64)
    }

    fn left_for_closing(&self) -> u64 {
        // An opening that somebody else made may take more than there is.
        self.active.frames_end().saturating_sub(self.position)
    }

    /// Whether the pending group can grow by `length` and still be sure of a place.
    fn has_room(&self, length: usize, releases: bool) -> bool {
        let frame = self.pending.length() + length;
        let reserve = if releases { 0 } else { self.reserve() };
        padded(frame) as u64 + reserve <= self.left()
            || self.prepared.as_ref().is_some_and(|next| self.segment_for(frame) + reserve <= next.size)
    }

    /// How long the next segment should be.
    pub(super) fn next_size(&self, segment_size: u64) -> u64 {
        segment_size.min((self.active.size * 4).max(FIRST_SEGMENT)).max(self.wanted)
    }

    pub(super) fn has_recyclable(&self) -> bool {
        let below = self.recycle_below.min(self.opened);
        self.segments.first_key_value().is_some_and(|(number, _)| *number < below)
    }

    /// The oldest segment that holds entries some stream still needs.
    pub(super) fn oldest_needed(&self) -> u64 {
        let frame = |group: u64| self.frames.get(usize::try_from(group.checked_sub(self.first_frame)?).ok()?);
        self.streams.oldest_group().and_then(frame).map_or(self.active.number, |frame| frame.segment)
    }
}

pub(super) fn first_size(segment_size: u64) -> u64 {
    segment_size.min(FIRST_SEGMENT)
}

/// What writing changes: who holds it, writes.
pub(super) struct Pen {
    /// Header checksum of the last frame written.
    pub(super) chain: u32,
    pub(super) active: Arc<Segment>,
    /// The active segment holds frames that were not synced.
    pub(super) unsynced: bool,
    /// Once this group is durable, segments below this number may go.
    pub(super) release: Option<(u64, u64)>,
    /// The last frame says that everything is durable.
    pub(super) closed: bool,
}

/// One record that is to be written.
pub(super) struct Change<'a> {
    pub(super) kind: Kind,
    pub(super) index: u64,
    pub(super) parts: &'a [&'a [u8]],
}

impl Change<'_> {
    fn length(&self) -> usize {
        self.parts.iter().map(|part| part.len()).sum()
    }
}

/// A group on its way to the disk.
struct Taken {
    group: u64,
    buffer: Arc<RwLock<Buffer>>,
    records: u32,
    offset: u64,
    rotation: Option<Rotation>,
}

struct Rotation {
    next: Arc<Segment>,
    opening: Opening,
}

#[derive(Default)]
pub(super) struct Counters {
    pub(super) groups: AtomicU64,
    pub(super) records: AtomicU64,
    pub(super) syncs: AtomicU64,
    pub(super) bytes_written: AtomicU64,
}

/// A WAL, shared with its threads.
pub(super) struct Shared {
    pub(super) options: WalOptions,
    pub(super) files: Files,
    pub(super) state: Mutex<State>,
    pen: Mutex<Pen>,
    gate: Gate,
    /// The last group known to be durable, and the last one handed to the operating system.
    durable: AtomicU64,
    written: AtomicU64,
    is_poisoned: AtomicBool,
    poison: Mutex<Option<Arc<str>>>,
    /// With `state`: there may be room again; there may be something to prepare or recycle.
    pub(super) room: Condvar,
    pub(super) maintenance: Condvar,
    pub(super) flusher: Flusher,
    pub(super) counters: Counters,
}

impl Shared {
    pub(super) fn new(options: WalOptions, files: Files, state: State, pen: Pen) -> Shared {
        let durable = state.group - 1;
        Shared {
            options,
            files,
            state: Mutex::new(state),
            pen: Mutex::new(pen),
            gate: Gate::default(),
            durable: AtomicU64::new(durable),
            written: AtomicU64::new(durable),
            is_poisoned: AtomicBool::new(false),
            poison: Mutex::new(None),
            room: Condvar::new(),
            maintenance: Condvar::new(),
            flusher: Flusher::default(),
            counters: Counters::default(),
        }
    }

    pub(super) fn durable(&self) -> u64 {
        self.durable.load(SeqCst)
    }

    pub(super) fn written(&self) -> u64 {
        self.written.load(SeqCst)
    }

    pub(super) fn check_poison(&self) -> Result<()> {
        if self.is_poisoned.load(SeqCst) { Err(self.poison_error()) } else { Ok(()) }
    }

    pub(super) fn poison_error(&self) -> Error {
        let why = self.poison.lock().clone();
        Error::Poisoned(why.unwrap_or_else(|| "the cause is not known".into()))
    }

    /// The first cause stays.
    pub(super) fn poison(&self, why: &str) {
        self.poison.lock().get_or_insert_with(|| why.into());
        self.is_poisoned.store(true, SeqCst);
        self.gate.wake_all(0);
        self.gate.wake_all(1);
        // With the mutex, so that nobody is between looking and sleeping.
        let _state = self.state.lock();
        self.room.notify_all();
        self.maintenance.notify_all();
    }

    fn poison_by(&self, error: Error) -> Error {
        self.poison(&error.to_string());
        self.poison_error()
    }

    /// Adds a record to the pending group.
    pub(super) fn record(&self, kind: Kind, stream: StreamId, index: u64, parts: &[&[u8]]) -> Result<Ticket> {
        self.records(stream, &[Change { kind, index, parts }])
    }

    /// Adds records of one stream to the pending group, all or none: a crash leaves all of them or none.
    pub(super) fn records(&self, stream: StreamId, changes: &[Change<'_>]) -> Result<Ticket> {
        let length: usize = changes.iter().map(|change| RECORD_HEADER_SIZE + change.length()).sum();
        if let Some(long) = changes.iter().find(|change| change.length() > MAX_RECORD) {
            return Err(Error::InvalidRequest(format!(
                "a record of {} bytes is over the limit of {MAX_RECORD}",
                long.length()
            )));
        }
        // The opening of the next segment may grow by the stream that these records make.
        let margin = super::format::OPENING_PER_STREAM
            + changes
                .iter()
                .filter(|change| change.kind == Kind::SetState)
                .map(Change::length)
                .sum::<usize>();
        // A register that comes with entries that go is a part of letting them go.
        let releases = changes.iter().any(|change| change.kind.releases());
        let mut state = self.state.lock();
        loop {
            self.check_poison()?;
            if state.stopping {
                return Err(Error::InvalidRequest("the log has been closed".to_owned()));
            }
            let bounded = state.pending_records == 0
                || state.pending.length() + length <= self.options.max_pending_bytes;
            if bounded && state.has_room(length + margin, releases) {
                break;
            }
            state = self.make_room(state, length + margin, releases)?;
        }
        let group = state.group;
        for change in changes {
            let Change { kind, index, parts } = *change;
            if kind == Kind::Append
                && let Some(next) = state.streams.next_index(stream)
                && next != index
            {
                return Err(Error::InvalidRequest(format!(
                    "entry {index} of stream {} does not follow the last, {}",
                    stream.0,
                    next - 1
                )));
            }
            let position = state.pending.length() - FRAME_HEADER_SIZE;
            state.pending.extend(&encode_record_header(kind, stream, index, change.length()));
            for part in parts {
                state.pending.extend(part);
            }
            state.pending_records += 1;
            state.released |= kind.releases();
            match kind {
                Kind::Append => state.streams.append(stream, index, group, position),
                Kind::TruncateAfter => state.streams.truncate_after(stream, index, group),
                Kind::PurgeTo => state.streams.purge_to(stream, index, group),
                Kind::SetState => state.streams.set_state(stream, &parts.concat(), group),
            }
        }
        let pending = state.pending.length();
        drop(state);
        self.flusher.appended(pending >= self.options.write_out_bytes);
        Ok(Ticket(group))
    }

    /// Returns when records of together `length` bytes have room, so that whoever appends them next need not wait for it.
    pub(super) fn reserve(&self, length: usize) -> Result<()> {
        let length = length.min(MAX_RECORD) + RECORD_HEADER_SIZE + super::format::OPENING_PER_STREAM;
        let mut state = self.state.lock();
        while !state.has_room(length, false) {
            self.check_poison()?;
            if state.stopping {
                return Err(Error::InvalidRequest("the log has been closed".to_owned()));
            }
            state = self.make_room(state, length, false)?;
        }
        Ok(())
    }

    /// Makes it more likely that a record of `length` fits; the caller looks again. Fails, with
    /// nothing appended, when the disk has no room for another segment.
    #[cold]
    fn make_room<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        length: usize,
        releases: bool,
    ) -> Result<MutexGuard<'a, State>> {
        if state.pending_records > 0 {
            // Too much pending, or a record that needs a segment of its own: write what there is.
            let group = state.group;
            drop(state);
            self.write_out_to(group)?;
            return Ok(self.state.lock());
        }
        let needed = state.segment_for(FRAME_HEADER_SIZE + length) + state.reserve();
        state.wanted = state.wanted.max(needed.next_multiple_of(BLOCK_SIZE as u64));
        if let Some((when, error)) = &state.failure
            && self.options.threads
            && when.elapsed() < RETRY_PREPARING_AFTER
        {
            return Err(error.clone());
        }
        state.failure = None;
        let failures = state.failures;
        if self.options.threads {
            self.maintenance.notify_all();
            while !state.has_room(length, releases) && state.failures == failures {
                self.check_poison()?;
                if state.stopping {
                    return Err(Error::InvalidRequest("the WAL is closed".to_owned()));
                }
                self.room.wait(&mut state);
            }
        } else {
            drop(state);
            while self.maintain() {}
            state = self.state.lock();
        }
        match &state.failure {
            Some((_, error)) if state.failures != failures && !state.has_room(length, releases) => {
                let error = error.clone();
                // What only this record needed is not prepared for others.
                state.wanted = 0;
                Err(error)
            }
            _ => Ok(state),
        }
    }

    /// Group commit; see the [module](self).
    pub(super) fn wait_durable(&self, ticket: Ticket) -> Result<()> {
        self.check_poison()?;
        let group = ticket.0;
        loop {
            if self.durable() >= group {
                return Ok(());
            }
            self.check_poison()?;
            match self.pen.try_lock() {
                Some(mut pen) => {
                    let before = self.durable();
                    let done = if before < group { self.write_group(&mut pen, true) } else { Ok(()) };
                    self.put_down(pen, before);
                    done?;
                    assert!(self.durable() >= group, "group {group} is not of this WAL");
                }
                None => self.gate.park(group, || {
                    self.durable() >= group || self.is_poisoned.load(SeqCst) || !self.pen.is_locked()
                }),
            }
        }
    }

    /// Hands every group up to `group` to the operating system.
    pub(super) fn write_out_to(&self, group: u64) -> Result<()> {
        self.check_poison()?;
        if self.written() >= group {
            return Ok(());
        }
        let mut pen = self.pen.lock();
        let before = self.durable();
        let done = if self.written() < group { self.write_group(&mut pen, false) } else { Ok(()) };
        self.put_down(pen, before);
        done
    }

    /// The group that a caller waits for who wants everything appended so far.
    pub(super) fn last_group(&self) -> u64 {
        let state = self.state.lock();
        if state.pending_records > 0 { state.group } else { state.group - 1 }
    }

    /// Frees the pen and wakes who waits for it or for what was done with it.
    fn put_down(&self, pen: MutexGuard<'_, Pen>, durable_before: u64) {
        drop(pen);
        let durable = self.durable();
        if durable == durable_before + 1 {
            // The next writer first: the disk is idle until it has taken over.
            self.gate.wake_one(durable + 1);
            self.gate.wake_all(durable);
        } else {
            // Buffered groups in between: those who wait sleep on both sides.
            self.gate.wake_all(0);
            self.gate.wake_all(1);
        }
        if !self.options.threads {
            while self.recycle() {}
        }
    }

    /// Writes the pending group, if there is one; with `sync`, everything written is durable
    /// afterwards. Any error poisons.
    fn write_group(&self, pen: &mut Pen, sync: bool) -> Result<()> {
        self.check_poison()?;
        let written = match self.take_group(pen) {
            Some(taken) => {
                let done = self.write_taken(pen, &taken, sync);
                done.map_err(|error| self.poison_by(error))?;
                self.finish(taken);
                true
            }
            None => false,
        };
        if sync && !written && pen.unsynced {
            self.sync_active(pen).map_err(|error| self.poison_by(error))?;
        }
        if let Some((group, below)) = pen.release
            && group <= self.durable()
        {
            pen.release = None;
            let mut state = self.state.lock();
            state.recycle_below = state.recycle_below.max(below);
            self.maintenance.notify_all();
        }
        Ok(())
    }

    /// Takes the pending group out of the appenders' hands and gives it a place.
    fn take_group(&self, pen: &mut Pen) -> Option<Taken> {
        let mut state = self.state.lock();
        let state = &mut *state;
        if state.pending_records == 0 {
            return None;
        }
        let frame = padded(state.pending.length()) as u64;
        let rotation = (frame > state.left()).then(|| {
            let next = state.prepared.take().expect("appending made sure of a segment to go on in");
            let opening = state.streams.opening(state.active.number, state.position);
            let opening_length = opening.encode().len();
            state.segments.insert(next.number, Arc::clone(&next));
            state.active = Arc::clone(&next);
            state.position = FIRST_FRAME + padded(FRAME_HEADER_SIZE + opening_length) as u64;
            state.wanted = 0;
            state.released = true;
            self.maintenance.notify_all();
            Rotation { next, opening }
        });
        let offset = state.position;
        state.position += frame;
        assert!(
            state.position <= state.active.frames_end(),
            "a group of {frame} at {offset} is beyond the end of segment {}",
            state.active.number
        );
        let group = state.group;
        state.group += 1;
        if std::mem::take(&mut state.released) {
            pen.release = Some((group, state.oldest_needed()));
        }
        state.streams.group_taken();
        let next_buffer = state.idle_buffer.take().unwrap_or_else(|| Buffer::new(BLOCK_SIZE));
        let buffer = Arc::new(RwLock::new(std::mem::replace(&mut state.pending, next_buffer)));
        let records = std::mem::take(&mut state.pending_records);
        state.in_flight = Some((group, Arc::clone(&buffer)));
        Some(Taken { group, buffer, records, offset, rotation })
    }

    fn write_taken(&self, pen: &mut Pen, taken: &Taken, sync: bool) -> Result<()> {
        if let Some(rotation) = &taken.rotation {
            // Nothing follows in the old segment; what the next opening says of it must be true.
            if pen.unsynced {
                self.sync_active(pen)?;
            }
            self.durable.store(taken.group - 1, SeqCst);
            let end_of_old = pen.chain;
            pen.chain = write_opening(&rotation.next, &rotation.opening, taken.group, end_of_old)?.0;
            self.counters.syncs.fetch_add(1, Relaxed);
            let old = std::mem::replace(&mut pen.active, Arc::clone(&rotation.next));
            // Behind the opening, so that a segment is never sealed whose successor was not opened.
            old.write_seal(taken.group, end_of_old)?;
            let old_number = old.number;
            // Recycling looks at who still holds it.
            drop(old);
            let mut state = self.state.lock();
            state.opened = rotation.next.number;
            state.unsynced_seals.push(old_number);
            self.maintenance.notify_all();
        }
        let segment = &pen.active;
        let mut header = FrameHeader {
            epoch: segment.epoch,
            segment: segment.number,
            group: taken.group,
            durable: self.durable(),
            records: taken.records,
            previous: pen.chain,
            ..FrameHeader::default()
        };
        {
            let mut buffer = taken.buffer.write();
            header.payload_length = buffer.payload().len() as u32;
            pen.chain = header.seal(buffer.frame_mut());
        }
        pen.closed = false;
        let buffer = taken.buffer.read();
        let frame = buffer.frame();
        let failed =
            |error| Error::io(format!("writing {} at {}", segment.path.display(), taken.offset), error);
        self.counters.bytes_written.fetch_add(frame.len() as u64, Relaxed);
        if sync {
            segment.was_awaited();
        }
        if sync && !pen.unsynced {
            segment.file.write_at_synced(taken.offset, frame).map_err(failed)?;
            self.counters.syncs.fetch_add(1, Relaxed);
        } else {
            segment.file.write_at(taken.offset, frame).map_err(failed)?;
            pen.unsynced = true;
        }
        self.written.store(taken.group, SeqCst);
        if pen.unsynced && sync {
            self.sync_active(pen)?;
        } else if sync {
            self.durable.store(taken.group, SeqCst);
        }
        Ok(())
    }

    /// Makes everything written durable.
    fn sync_active(&self, pen: &mut Pen) -> Result<()> {
        let written = self.written();
        let failed = |error| Error::io(format!("syncing {}", pen.active.path.display()), error);
        pen.active.file.sync().map_err(failed)?;
        pen.unsynced = false;
        self.counters.syncs.fetch_add(1, Relaxed);
        self.durable.store(written, SeqCst);
        Ok(())
    }

    /// Lets readers find a written group in its segment, and takes its buffer back.
    fn finish(&self, taken: Taken) {
        let Taken { group, buffer, records, offset, .. } = taken;
        self.counters.groups.fetch_add(1, Relaxed);
        self.counters.records.fetch_add(u64::from(records), Relaxed);
        let payload_length = buffer.read().payload().len();
        let mut state = self.state.lock();
        state.in_flight = None;
        assert!(
            state.first_frame + state.frames.len() as u64 == group,
            "group {group} was written after {} groups from {}",
            state.frames.len(),
            state.first_frame
        );
        let segment = state.active.number;
        state.frames.push_back(Frame::new(segment, offset, payload_length));
        // A reader may still hold it; then it goes when the reader does.
        if let Ok(buffer) = Arc::try_unwrap(buffer) {
            let mut buffer = buffer.into_inner();
            buffer.clear();
            state.idle_buffer = Some(buffer);
        }
    }

    /// Writes out and syncs everything; then, unless the last frame says so already, a frame that
    /// says that all before it is durable: without it, damage to the last group could not be
    /// told from a torn write.
    pub(super) fn close(&self) -> Result<()> {
        let mut pen = self.pen.lock();
        let before = self.durable();
        let done = self.write_group(&mut pen, true).and_then(|()| self.write_closing(&mut pen));
        self.put_down(pen, before);
        done?;
        while self.sync_one_seal()? {}
        Ok(())
    }

    /// Makes the seal of one segment durable; `false` if there is none to be.
    pub(super) fn sync_one_seal(&self) -> Result<bool> {
        self.check_poison()?;
        let segment = {
            let mut state = self.state.lock();
            let Some(number) = state.unsynced_seals.pop() else { return Ok(false) };
            state.segments.get(&number).map(Arc::clone)
        };
        if let Some(segment) = segment {
            segment.sync_seal().map_err(|error| self.poison_by(error))?;
        }
        Ok(true)
    }

    fn write_closing(&self, pen: &mut Pen) -> Result<()> {
        let mut state = self.state.lock();
        let room = state.left_for_closing() >= BLOCK_SIZE as u64;
        if pen.closed || !room || state.pending_records > 0 {
            return Ok(());
        }
        let (group, offset) = (state.group, state.position);
        state.group += 1;
        state.position += BLOCK_SIZE as u64;
        let frame = Frame::new(state.active.number, offset, 0);
        state.frames.push_back(frame);
        drop(state);
        let mut header = FrameHeader {
            flags: FLAG_CLOSED,
            epoch: pen.active.epoch,
            segment: pen.active.number,
            group,
            durable: group - 1,
            previous: pen.chain,
            ..FrameHeader::default()
        };
        let mut buffer = Buffer::zeros(FRAME_HEADER_SIZE);
        pen.chain = header.seal(buffer.frame_mut());
        let written = pen.active.file.write_at_synced(offset, buffer.frame());
        written.map_err(|error| {
            self.poison_by(Error::io(format!("closing {}", pen.active.path.display()), error))
        })?;
        pen.closed = true;
        self.written.store(group, SeqCst);
        self.durable.store(group, SeqCst);
        Ok(())
    }

    pub(super) fn bytes_written(&self) -> u64 {
        self.counters.bytes_written.load(Relaxed)
    }

    pub(super) fn stats(&self) -> WalStats {
        let state = self.state.lock();
        let first = state.segments.keys().next().copied().unwrap_or(state.active.number);
        let size = |segment: &Arc<Segment>| segment.size;
        WalStats {
            live_bytes: state
                .segments
                .values()
                .filter(|segment| segment.number < state.active.number)
                .map(size)
                .sum::<u64>()
                + state.position,
            pending_bytes: (state.pending.length() - FRAME_HEADER_SIZE) as u64,
            file_bytes: state.segments.values().chain(&state.prepared).map(size).sum::<u64>()
                + self.files.spares() as u64 * self.files.segment_size,
            segments: state.segments.len(),
            first_segment: first,
            active_segment: state.active.number,
            spare_segments: self.files.spares() + usize::from(state.prepared.is_some()),
            groups: self.counters.groups.load(Relaxed),
            records: self.counters.records.load(Relaxed),
            syncs: self.counters.syncs.load(Relaxed),
            bytes_written: self.counters.bytes_written.load(Relaxed),
        }
    }
}

/// Writes a segment's opening frame, durably and alone: a frame behind it proves that it was
/// there. Returns its checksum and where the next frame goes.
pub(super) fn write_opening(
    segment: &Segment,
    opening: &Opening,
    group: u64,
    previous: u32,
) -> Result<(u32, u64)> {
    let payload = opening.encode();
    let mut buffer = Buffer::new(FRAME_HEADER_SIZE + payload.len());
    buffer.extend(&payload);
    let mut header = FrameHeader {
        flags: FLAG_OPENING,
        epoch: segment.epoch,
        segment: segment.number,
        group,
        durable: group - 1,
        payload_length: payload.len() as u32,
        previous,
        ..FrameHeader::default()
    };
    let chain = header.seal(buffer.frame_mut());
    let written = segment.file.write_at_synced(FIRST_FRAME, buffer.frame());
    written.map_err(|error| Error::io(format!("opening {}", segment.path.display()), error))?;
    Ok((chain, FIRST_FRAME + header.padded_length()))
}
