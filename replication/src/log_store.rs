//! The Raft log of a group, on one stream of the node's WAL.
//!
//! # Promise
//!
//! What openraft asks of a log store: an appended entry can be read at once, its callback is
//! called once it is durable; a vote is durable before it counts; entries are consecutive.
//! Everything that happens to any group of the node is one sequence of records in the WAL, so what
//! survives a crash is a prefix of it, and the orders below hold for it, too.
//!
//! # Layout
//!
//! An entry of index i is the stream's entry [`position`]`(i)`; vote, committed and purged log ids
//! are the stream's register (see [`crate::types`] for the bytes). Purging writes the register and
//! lets the entries go in one step, which has room on a full disk, too.
//!
//! # In memory
//!
//! The newest entries stay in memory up to [`LogOptions::cache_bytes`] a group, because nearly
//! every entry is read three times within milliseconds of being appended: by the replication to
//! each follower, and to be applied. Older ones are read from the WAL, at most
//! [`LogOptions::read_bytes`] at a time.
//!
//! # What may be purged
//!
//! The WAL is shared: one old entry of an idle group keeps every segment since. So entries have an
//! age, counted in bytes that the WAL has grown by after them, whichever group wrote and with the padding of each sync
//! (small synced entries are mostly padding), and [`LogStore::purgeable`] gives
//! the last entry that is too old or too many to be kept for a follower that was away.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use dogsled_storage::wal::{StreamId, Ticket, Wal};
use futures_util::Stream;
use openraft::OptionalSend;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;

use crate::blocking::Blocking;
use crate::durability::{Durability, Waiter, to_io};
use crate::metrics::{GroupMetrics, NodeMetrics};
use crate::pace::{Pace, Served};
use crate::status::EntryIdentity;
use crate::transport::NodeId;
use crate::types::{
    Entry, LogId, Register, TypeConfig, Vote, decode_entry, entry_body, entry_header, entry_memory, position,
    shared_bytes,
};

/// Bounds of a group's log.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LogOptions {
    /// Newest entries kept in memory, in bytes.
    pub(crate) cache_bytes: usize,
    /// Most bytes that one read brings into memory (but at least one entry).
    pub(crate) read_bytes: usize,
    /// Most bytes of entries in one message to a follower (but at least one entry).
    pub(crate) message_bytes: usize,
}

impl Default for LogOptions {
    fn default() -> LogOptions {
        LogOptions { cache_bytes: 8 << 20, read_bytes: 4 << 20, message_bytes: 1 << 20 }
    }
}

/// What the logs of a node share.
pub(crate) struct SharedLog {
    pub(crate) wal: Arc<Wal>,
    pub(crate) durability: Durability,
    blocking: Blocking,
    /// What is counted of all groups.
    pub(crate) metrics: NodeMetrics,
    /// How fast state is copied to other nodes.
    pub(crate) pace: Pace,
    /// Bytes of entries that all groups have appended.
    appended: AtomicU64,
}

impl SharedLog {
    /// Of a node that copies no more than so many bytes per second to others.
    pub(crate) fn new(
        wal: Arc<Wal>,
        durability: Durability,
        blocking: Blocking,
        copy_limit: Option<u64>,
    ) -> SharedLog {
        let (metrics, pace) = (NodeMetrics::default(), Pace::new(copy_limit));
        SharedLog { wal, durability, blocking, metrics, pace, appended: AtomicU64::new(0) }
    }

    /// Waits until so many bytes may be copied to another node.
    pub(crate) async fn may_copy(&self, bytes: usize) {
        let served = || {
            let commands = self.metrics.commands();
            let appended = self.appended.load(Ordering::Relaxed);
            Served { commands: commands.count(), took: commands.sum(), appended }
        };
        self.pace.wait(bytes, served).await;
    }
}

/// Bytes in one message of what is read from the disk for a follower.
const COPY_BYTES: usize = 256 << 10;

/// Bytes between two marks of an entry's age.
const MARK_EVERY: u64 = 256 << 10;

struct State {
    register: Register,
    /// Index of the first entry that is there, or that comes next.
    first: u64,
    /// The last entry, or the last that was purged.
    last: Option<LogId>,
    /// The newest entries, consecutive up to the last one.
    cache: VecDeque<Entry>,
    cache_bytes: usize,
    /// Of some entries, in order: the index, and how much the WAL had written when it was appended.
    marks: VecDeque<(u64, u64)>,
}

impl State {
    fn next(&self) -> u64 {
        self.last.as_ref().map_or(0, |last| last.index + 1)
    }

    fn cached_from(&self) -> u64 {
        self.cache.front().map_or_else(|| self.next(), |entry| entry.log_id.index)
    }

    fn check_invariants(&self) {
        if let Some(newest) = self.cache.back() {
            assert!(
                Some(&newest.log_id) == self.last.as_ref(),
                "the newest cached entry is {}, the last {:?}",
                newest.log_id,
                self.last
            );
        }
        assert!(
            self.first <= self.next(),
            "the log begins at {} and ends before {}",
            self.first,
            self.next()
        );
    }
}

struct Inner {
    shared: Arc<SharedLog>,
    stream: StreamId,
    options: LogOptions,
    metrics: Arc<GroupMetrics>,
    state: Mutex<State>,
}

/// A group's log; clones are the same log. See the [module](self).
#[derive(Clone)]
pub(crate) struct LogStore {
    inner: Arc<Inner>,
}

impl LogStore {
    /// Opens what the stream holds.
    pub(crate) fn open(
        shared: Arc<SharedLog>,
        stream: StreamId,
        options: LogOptions,
    ) -> io::Result<LogStore> {
        let wal = &shared.wal;
        let register = match wal.state(stream) {
            None => Register::default(),
            Some(bytes) => Register::decode(bytes)?,
        };
        // Earlier builds wrote the two one after the other, and may have been stopped in between.
        if let (Some(purged), Some(first)) = (&register.purged, wal.first_index(stream))
            && first <= position(purged.index)
        {
            wal.purge_to(stream, position(purged.index)).map_err(to_io)?;
        }
        let after_purge = register.purged.as_ref().map_or(0, |purged| purged.index + 1);
        let (first, last) = match (wal.first_index(stream), wal.last_index(stream)) {
            (Some(first), Some(last)) => {
                if first != position(after_purge) {
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("{stream:?} begins at {first}, but {after_purge} entries were purged"),
                    ));
                }
                let entry = read_wal(wal, stream, last - 1, last, usize::MAX)?.pop();
                (first - 1, entry.map(|entry| entry.log_id))
            }
            _ => (after_purge, register.purged),
        };
        let state = State {
            register,
            first,
            last,
            cache: VecDeque::new(),
            cache_bytes: 0,
            marks: VecDeque::from([(first, shared.wal.bytes_written())]),
        };
        let metrics = shared.metrics.group(stream.0);
        Ok(LogStore { inner: Arc::new(Inner { shared, stream, options, metrics, state: Mutex::new(state) }) })
    }

    /// Index of the last entry that need not be kept: `keep_entries` others came after it, or
    /// `keep_bytes` in all groups.
    pub(crate) fn purgeable(&self, keep_entries: u64, keep_bytes: u64) -> Option<u64> {
        let mut state = self.inner.state.lock();
        let by_count = state.next().checked_sub(keep_entries + 1);
        let now = self.inner.shared.wal.bytes_written();
        // Entries before the second mark are at least as old as that mark.
        while state.marks.len() >= 2 && state.marks[1].0 <= state.first {
            state.marks.pop_front();
        }
        let old = state.marks.iter().take_while(|(_, at)| now - at > keep_bytes).last();
        let by_age = match (old, state.marks.back()) {
            // Nothing was appended since the newest mark, so all is as old as that.
            (Some(old), Some(newest)) if old == newest => state.next().checked_sub(1),
            (Some((index, _)), _) => index.checked_sub(1),
            _ => None,
        };
        by_count.max(by_age).filter(|index| *index >= state.first)
    }

    /// Whether a vote may be granted: the log has reached what it has to have; see
    /// [`crate::node::hosting`].
    pub(crate) fn may_vote(&self) -> bool {
        let state = self.inner.state.lock();
        state.next() >= state.register.hosted
    }

    /// Has the log reach `position` again before it votes, if it does not; durable on return. Whether that is news.
    pub(crate) async fn has_to_reach(&self, position: u64) -> io::Result<bool> {
        let (ticket, is_news) = {
            let mut state = self.inner.state.lock();
            if state.next() >= position {
                return Ok(false);
            }
            let is_news = state.register.hosted < position;
            // If it is none it may still not be durable.
            let ticket =
                self.set_register(&mut state, |register| register.hosted = register.hosted.max(position))?;
            (ticket, is_news)
        };
        self.inner.shared.durability.wait(ticket).await?;
        Ok(is_news)
    }

    /// Forgets all entries, but neither the vote nor how many they were: none is granted before there are as many again.
    /// Durable on return.
    pub(crate) async fn begin_anew(&self) -> io::Result<()> {
        let inner = &self.inner;
        let ticket = {
            let mut guard = inner.state.lock();
            let state = &mut *guard;
            let register = Register {
                committed: None,
                purged: None,
                hosted: state.register.hosted.max(state.next()),
                ..state.register.clone()
            };
            let wal = &inner.shared.wal;
            let ticket = wal.truncate_after_with_state(inner.stream, 0, &register.encode()).map_err(to_io)?;
            *state = State {
                register,
                first: 0,
                last: None,
                cache: VecDeque::new(),
                cache_bytes: 0,
                marks: VecDeque::from([(0, wal.bytes_written())]),
            };
            ticket
        };
        inner.shared.durability.wait(ticket).await
    }

    /// Position up to which entries were purged.
    pub(crate) fn purged(&self) -> u64 {
        self.inner.state.lock().register.purged.map_or(0, |purged| position(purged.index))
    }

    /// The vote that was last granted, or asked for.
    pub(crate) fn vote(&self) -> Option<Vote> {
        self.inner.state.lock().register.vote
    }

    /// Has the log be all that is asked of it before it votes, whatever that was; durable on return.
    pub(crate) async fn is_enough(&self) -> io::Result<()> {
        let ticket = {
            let mut state = self.inner.state.lock();
            let next = state.next();
            self.set_register(&mut state, |register| register.hosted = register.hosted.min(next))?
        };
        self.inner.shared.durability.wait(ticket).await
    }

    /// What the stream's register says of the replica's beginning.
    pub(crate) fn hosted(&self) -> u64 {
        self.inner.state.lock().register.hosted
    }

    /// The last entry, or the last that was purged.
    pub(crate) fn last(&self) -> Option<LogId> {
        self.inner.state.lock().last
    }

    /// Entries that are there: index of the first, and of the one that comes next.
    pub(crate) fn bounds(&self) -> (u64, u64) {
        let state = self.inner.state.lock();
        (state.first, state.next())
    }

    /// Forgets what is in memory: it can be read from the WAL. For groups that are idle.
    pub(crate) fn shrink(&self) {
        let mut state = self.inner.state.lock();
        state.cache = VecDeque::new();
        state.cache_bytes = 0;
    }

    /// See [`crate::Node::entries`].
    pub(crate) fn identities(&self, from: u64, to: u64) -> io::Result<Vec<EntryIdentity>> {
        let mut identities = Vec::new();
        let mut next = from.saturating_sub(1);
        while next < to {
            let entries = self.read(next, to, self.inner.options.read_bytes)?;
            let Some(last) = entries.last() else { break };
            next = last.log_id.index + 1;
            identities.extend(entries.iter().map(|entry| {
                let mut checksum = crc32fast::Hasher::new();
                checksum.update(&entry_header(entry));
                checksum.update(&entry_body(entry));
                EntryIdentity {
                    position: position(entry.log_id.index),
                    term: entry.log_id.leader_id.term,
                    leader: NodeId(entry.log_id.leader_id.node_id),
                    checksum: checksum.finalize(),
                }
            }));
        }
        Ok(identities)
    }

    fn set_register(&self, state: &mut State, change: impl FnOnce(&mut Register)) -> io::Result<Ticket> {
        self.write_register(state, change, |wal, stream, register| wal.set_state(stream, register))
    }

    /// What could not be written is not known either: openraft, started again, takes what it is told for durable.
    fn write_register(
        &self,
        state: &mut State,
        change: impl FnOnce(&mut Register),
        write: impl FnOnce(&Wal, StreamId, &[u8]) -> dogsled_storage::Result<Ticket>,
    ) -> io::Result<Ticket> {
        let inner = &self.inner;
        let mut register = state.register.clone();
        change(&mut register);
        let ticket = write(&inner.shared.wal, inner.stream, &register.encode()).map_err(to_io)?;
        state.register = register;
        Ok(ticket)
    }

    /// Entries of a range, as many as `limit` bytes hold but at least one if there is one.
    fn read(&self, from: u64, to_exclusive: u64, limit: usize) -> io::Result<Vec<Entry>> {
        let inner = &self.inner;
        let (from, to) = {
            let state = inner.state.lock();
            let (from, to) = (from.max(state.first), to_exclusive.min(state.next()));
            if from >= to {
                return Ok(Vec::new());
            }
            let cached_from = state.cached_from();
            if from >= cached_from {
                let range = (from - cached_from) as usize..(to - cached_from) as usize;
                let mut bytes = 0;
                let mut entries = Vec::with_capacity(range.len());
                for entry in state.cache.range(range) {
                    bytes += entry_memory(entry);
                    if bytes > limit && !entries.is_empty() {
                        break;
                    }
                    entries.push(entry.clone());
                }
                return Ok(entries);
            }
            (from, to.min(cached_from))
        };
        read_wal(&inner.shared.wal, inner.stream, from, to, limit)
    }
}

/// Reads entries of indexes `from..to_exclusive`.
fn read_wal(
    wal: &Wal,
    stream: StreamId,
    from: u64,
    to_exclusive: u64,
    limit: usize,
) -> io::Result<Vec<Entry>> {
    let read = match wal.read(stream, position(from), position(to_exclusive), limit) {
        // Purged between the caller's look and this one.
        Err(dogsled_storage::Error::Compacted { .. }) => Vec::new(),
        other => other.map_err(to_io)?,
    };
    let entry = |(index, bytes)| decode_entry(index - 1, shared_bytes(bytes)).map_err(io::Error::from);
    read.into_iter().map(entry).collect()
}

fn to_range(range: impl RangeBounds<u64>) -> (u64, u64) {
    let from = match range.start_bound() {
        Bound::Included(from) => *from,
        Bound::Excluded(from) => from.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let to = match range.end_bound() {
        Bound::Included(to) => to.saturating_add(1),
        Bound::Excluded(to) => *to,
        Bound::Unbounded => u64::MAX,
    };
    (from, to)
}

/// Reads on as it is polled, a bounded part at a time.
struct Entries {
    log: LogStore,
    next: u64,
    to_exclusive: u64,
    read: std::vec::IntoIter<Entry>,
}

impl Stream for Entries {
    type Item = io::Result<Entry>;

    fn poll_next(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<io::Result<Entry>>> {
        let this = self.get_mut();
        if let Some(entry) = this.read.next() {
            return Poll::Ready(Some(Ok(entry)));
        }
        if this.next >= this.to_exclusive {
            return Poll::Ready(None);
        }
        match this.log.read(this.next, this.to_exclusive, this.log.inner.options.read_bytes) {
            Err(error) => {
                this.next = this.to_exclusive;
                Poll::Ready(Some(Err(error)))
            }
            Ok(entries) => {
                this.next = entries.last().map_or(this.to_exclusive, |last| last.log_id.index + 1);
                this.read = entries.into_iter();
                Poll::Ready(this.read.next().map(Ok))
            }
        }
    }
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn entries_stream<R>(&mut self, range: R) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (next, to_exclusive) = to_range(range);
        Entries { log: self.clone(), next, to_exclusive, read: Vec::new().into_iter() }
    }

    async fn try_get_log_entries<R>(&mut self, range: R) -> io::Result<Vec<Entry>>
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut from, to) = to_range(range);
        let mut entries = Vec::new();
        loop {
            let mut more = self.read(from, to, usize::MAX)?;
            let Some(last) = more.last() else { return Ok(entries) };
            from = last.log_id.index + 1;
            if entries.is_empty() {
                entries = more;
            } else {
                entries.append(&mut more);
            }
        }
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let inner = &self.inner;
        if start >= inner.state.lock().cached_from() {
            return self.read(start, end, inner.options.message_bytes);
        }
        // Who needs what is only on the disk was away, or is new. In small pieces, between which others get
        // their turn, and on a thread that may wait for the disk.
        let limit = inner.options.message_bytes.min(COPY_BYTES);
        let log = self.clone();
        let entries = inner.shared.blocking.run(move || log.read(start, end, limit)).await??;
        inner.shared.may_copy(entries.iter().map(entry_memory).sum()).await;
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        Ok(self.inner.state.lock().register.vote)
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.inner.state.lock();
        Ok(LogState { last_purged_log_id: state.register.purged, last_log_id: state.last })
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let ticket = {
            let mut state = self.inner.state.lock();
            self.set_register(&mut state, |register| register.vote = Some(*vote))?
        };
        self.inner.shared.durability.wait(ticket).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        let mut state = self.inner.state.lock();
        self.set_register(&mut state, |register| register.committed = committed)?;
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        // The register comes after the entry that it names in the WAL's one sequence, so a crash
        // that leaves the one leaves the other.
        Ok(self.inner.state.lock().register.committed)
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let inner = &self.inner;
        let mut newest = Ticket::default();
        let mut count = 0;
        {
            let mut guard = inner.state.lock();
            let state = &mut *guard;
            let mut bytes = 0;
            for entry in entries {
                let index = entry.log_id.index;
                let body = entry_body(&entry);
                newest = inner
                    .shared
                    .wal
                    .append(inner.stream, position(index), &[&entry_header(&entry), &body])
                    .map_err(to_io)?;
                if state.last.is_none() && state.cache.is_empty() {
                    state.first = index;
                }
                bytes += body.len() as u64;
                count += 1;
                state.last = Some(entry.log_id);
                state.cache_bytes += entry_memory(&entry);
                state.cache.push_back(entry);
            }
            while state.cache_bytes > inner.options.cache_bytes {
                let Some(oldest) = state.cache.pop_front() else { break };
                state.cache_bytes -= entry_memory(&oldest);
            }
            inner.shared.appended.fetch_add(bytes, Ordering::Relaxed);
            let written = inner.shared.wal.bytes_written();
            if state.marks.back().is_none_or(|(_, at)| written - at >= MARK_EVERY) {
                state.marks.push_back((state.next(), written));
            }
            state.check_invariants();
        }
        inner
            .shared
            .durability
            .when_durable(newest, Waiter::Flushed(callback, inner.metrics.appended(count)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let inner = &self.inner;
        let mut guard = inner.state.lock();
        let state = &mut *guard;
        // Nothing comes after that.
        if last.is_some_and(|last| last.index + 1 >= state.next()) {
            return Ok(());
        }
        // What is committed may be applied, and can not be taken back. A leader that has something else in its place was
        // elected by who had forgotten it (an older copy of a directory was put back): better one replica less than
        // two that differ.
        if let Some(committed) = state.register.committed
            && last.is_none_or(|last| last.index < committed.index)
        {
            return Err(io::Error::other(format!(
                "the leader's log lacks entry {}, which is committed here: another member has lost what it had acknowledged (its \
                 directory may be an older copy of itself)",
                position(committed.index)
            )));
        }
        inner
            .shared
            .wal
            .truncate_after(inner.stream, last.map_or(0, |last| position(last.index)))
            .map_err(to_io)?;
        let next = last.map_or(0, |last| last.index + 1);
        while state.cache.back().is_some_and(|entry| entry.log_id.index >= next) {
            if let Some(entry) = state.cache.pop_back() {
                state.cache_bytes -= entry_memory(&entry);
            }
        }
        while state.marks.len() > 1 && state.marks.back().is_some_and(|(index, _)| *index > next) {
            state.marks.pop_back();
        }
        state.last = last;
        state.check_invariants();
        Ok(())
    }

    async fn purge(&mut self, to: LogId) -> io::Result<()> {
        let inner = &self.inner;
        let mut guard = inner.state.lock();
        let state = &mut *guard;
        if state.register.purged.is_some_and(|purged| purged >= to) {
            return Ok(());
        }
        let purged = |register: &mut Register| register.purged = Some(to);
        self.write_register(state, purged, |wal, stream, register| {
            wal.purge_to_with_state(stream, position(to.index), register)
        })?;
        while state.cache.front().is_some_and(|entry| entry.log_id.index <= to.index) {
            if let Some(entry) = state.cache.pop_front() {
                state.cache_bytes -= entry_memory(&entry);
            }
        }
        state.first = to.index + 1;
        if state.last.is_none_or(|last| last.index <= to.index) {
            state.last = Some(to);
        }
        state.check_invariants();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
