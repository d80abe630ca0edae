//! The two threads of a WAL: one makes and recycles segments, one writes out what nobody waits for.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::Ticket;
use super::segment::{PrepareError, Reuse};
use super::writer::{Shared, first_size};
use crate::error::Result;

/// How long the flusher keeps its rhythm without anything to do before it sleeps for good.
const DORMANT_AFTER_TICKS: u32 = 100;

/// How long the preparer waits after a failure that nobody asks about.
const RETRY_AFTER: Duration = Duration::from_millis(500);

/// How the flusher is woken.
///
/// It wakes by itself every few milliseconds while there are appends: a wake-up per append would
/// cost a lone durable writer, who writes for itself anyway, more than all else.
#[derive(Default)]
pub(super) struct Flusher {
    mutex: Mutex<()>,
    condvar: Condvar,
    dormant: AtomicBool,
    urgent: AtomicBool,
    stopping: AtomicBool,
}

impl Flusher {
    /// Something was appended; `urgent` when enough is pending to be written without delay.
    #[inline]
    pub(super) fn appended(&self, urgent: bool) {
        if self.dormant.load(SeqCst) || (urgent && !self.urgent.load(Relaxed)) {
            self.wake(urgent);
        }
    }

    #[cold]
    fn wake(&self, urgent: bool) {
        let _guard = self.mutex.lock();
        self.dormant.store(false, SeqCst);
        if urgent {
            self.urgent.store(true, Relaxed);
        }
        self.condvar.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, SeqCst);
        self.wake(true);
    }
}

impl Shared {
    /// Writes out appended bytes that have been pending for a tick or have become many, and
    /// syncs every `flush_every`.
    pub(super) fn run_flusher(&self) {
        let mut stale = 0; // the pending group at the last tick
        let mut idle_ticks = 0;
        let mut last_sync = Instant::now();
        loop {
            {
                let mut guard = self.flusher.mutex.lock();
                if self.flusher.stopping.load(SeqCst) {
                    return;
                }
                if idle_ticks >= DORMANT_AFTER_TICKS {
                    self.flusher.dormant.store(true, SeqCst);
                    // Whoever appended before that store is seen here, whoever comes later wakes.
                    if self.state.lock().pending_records == 0 {
                        while self.flusher.dormant.load(SeqCst) && !self.flusher.stopping.load(SeqCst) {
                            self.flusher.condvar.wait(&mut guard);
                        }
                    }
                    self.flusher.dormant.store(false, SeqCst);
                    idle_ticks = 0;
                } else if !self.flusher.urgent.load(Relaxed) {
                    self.flusher.condvar.wait_for(&mut guard, self.options.write_out_after);
                }
            }
            let urgent = self.flusher.urgent.swap(false, Relaxed);
            let (pending, group) = {
                let state = self.state.lock();
                (state.pending_records > 0, state.group)
            };
            // Nothing is written any more.
            if self.check_poison().is_err() {
                return;
            }
            // Errors poison; there is nobody here to tell.
            if pending && (urgent || group == stale) {
                let _ = self.write_out_to(group);
            }
            stale = group;
            let written = self.written();
            let unsynced = pending || self.durable() < written;
            if !unsynced {
                last_sync = Instant::now();
            }
            if let Some(every) = self.options.flush_every
                && unsynced
                && last_sync.elapsed() >= every
            {
                // What is written while this one runs waits from here on.
                last_sync = Instant::now();
                let _ = self.wait_durable(Ticket(self.last_group()));
            }
            let waits_for_sync = unsynced && self.options.flush_every.is_some();
            idle_ticks = if pending || waits_for_sync { 0 } else { idle_ticks + 1 };
        }
    }

    /// Keeps a segment prepared, and recycles those no longer needed.
    pub(super) fn run_preparer(&self) {
        loop {
            while self.maintain() {}
            let mut state = self.state.lock();
            if state.stopping || self.check_poison().is_err() {
                return;
            }
            if state.has_recyclable() || !state.unsynced_seals.is_empty() {
                continue;
            }
            if state.failure.is_some() {
                self.maintenance.wait_for(&mut state, RETRY_AFTER);
                state.failure = None;
            } else if !state.shrinking
                && state.prepared.as_ref().is_some_and(|next| next.size >= state.wanted)
            {
                self.maintenance.wait(&mut state);
            }
        }
    }

    /// Does one piece of housekeeping; `false` if there was none, or it failed.
    pub(super) fn maintain(&self) -> bool {
        self.recycle() || self.prepare() || self.sync_seal()
    }

    /// Seals are not synced where somebody waits for it.
    fn sync_seal(&self) -> bool {
        if self.state.lock().stopping {
            return false;
        }
        // An error poisons; there is nobody here to tell.
        self.sync_one_seal().unwrap_or(false)
    }

    /// Has a short segment prepared in the place of the one that stands ready, unless writers who wait
    /// will want it soon (or also then, if `all`), or something is pending: it takes as much of the disk
    /// as a full one, and a database at rest may never need it. Returns when that is done, or was given
    /// up because the disk fails.
    pub(super) fn shrink(&self, all: bool) -> Result<()> {
        let mut state = self.state.lock();
        let short = first_size(self.files.segment_size).max(state.wanted);
        let is_long = state.prepared.as_ref().is_some_and(|next| next.size > short);
        let is_wanted = state.pending_records > 0 || (state.active.is_hot() && !all);
        if state.stopping || !is_long || is_wanted {
            return Ok(());
        }
        state.shrinking = true;
        if !self.options.threads {
            drop(state);
            while self.maintain() {}
            return Ok(());
        }
        self.maintenance.notify_all();
        while (state.shrinking || state.prepared.is_none()) && state.failure.is_none() && !state.stopping {
            self.check_poison()?;
            self.room.wait_for(&mut state, RETRY_AFTER / 10);
        }
        Ok(())
    }

    /// Lets go of one segment that no stream needs any more.
    pub(super) fn recycle(&self) -> bool {
        !self.state.lock().stopping && self.release(false)
    }

    /// The same; when it is `closing` the segment is not kept for reuse.
    pub(super) fn release(&self, closing: bool) -> bool {
        if self.check_poison().is_err() {
            return false;
        }
        let segment = {
            let mut state = self.state.lock();
            if !state.has_recyclable() {
                return false;
            }
            let (number, segment) = state.segments.pop_first().expect("there is a first one");
            while state.frames.front().is_some_and(|frame| frame.segment <= number) {
                state.frames.pop_front();
                state.first_frame += 1;
            }
            segment
        };
        // Readers get segments from the map only: one that nobody else holds now, nobody will.
        let in_use = Arc::strong_count(&segment) > 1;
        let reuse = match segment.is_hot() {
            _ if in_use || closing => Reuse::Never,
            true => Reuse::Hot,
            false => Reuse::Cold,
        };
        let (path, size, number) = (segment.path.clone(), segment.size, segment.number);
        if in_use {
            drop(segment);
        }
        match self.files.retire(&path, size, number, reuse) {
            Ok(()) => true,
            Err(error) => {
                self.poison(&error.to_string());
                false
            }
        }
    }

    /// Prepares the segment that follows the active one, if it is not there yet or too short.
    fn prepare(&self) -> bool {
        if self.check_poison().is_err() {
            return false;
        }
        let (number, size, unfit) = {
            let mut state = self.state.lock();
            if state.stopping || state.failure.is_some() {
                return false;
            }
            let shrinking = std::mem::take(&mut state.shrinking);
            let short = first_size(self.files.segment_size).max(state.wanted);
            let unfit = match &state.prepared {
                Some(next) if next.size < state.wanted => {
                    // A pending group may count on it: only when there is none can it be let go.
                    if state.pending_records > 0 {
                        let group = state.group;
                        drop(state);
                        return self.write_out_to(group).is_ok();
                    }
                    state.prepared.take()
                }
                Some(next) if shrinking && next.size > short && state.pending_records == 0 => {
                    state.prepared.take()
                }
                Some(_) => {
                    self.room.notify_all();
                    return false;
                }
                None => None,
            };
            let size = if shrinking { short } else { state.next_size(self.files.segment_size) };
            let reuse = if shrinking { Reuse::Never } else { Reuse::Cold };
            (state.active.number + 1, size, unfit.map(|old| (old, reuse)))
        };
        let size = size.next_multiple_of(crate::disk::BLOCK_SIZE as u64);
        if let Some((old, reuse)) = unfit {
            let retired = self.files.retire(&old.path, old.size, old.number, reuse);
            if let Err(error) = retired.and_then(|()| self.files.sync_directory()) {
                self.poison(&error.to_string());
                return false;
            }
        }
        match self.files.prepare(number, size) {
            Ok(segment) => {
                self.state.lock().prepared = Some(segment);
                self.room.notify_all();
                true
            }
            Err(PrepareError::Clean(error)) => {
                let mut state = self.state.lock();
                state.failures += 1;
                state.failure = Some((Instant::now(), error));
                self.room.notify_all();
                false
            }
            Err(PrepareError::InDoubt(error)) => {
                self.poison(&error.to_string());
                false
            }
            Err(PrepareError::Stopped) => false,
        }
    }
}
