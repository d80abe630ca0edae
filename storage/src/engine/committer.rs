//! [`Committer`]: what orders commits.

use std::collections::VecDeque;

use crate::clock::{Clock, LogTime};
use crate::state::Ends;
use crate::transaction::{Removals, Transactions};

/// What the commit mutex guards.
#[derive(Debug)]
pub(crate) struct Committer {
    pub(crate) sequence: u64,
    pub(crate) time_ms: u64,
    log_time: LogTime,
    pub(crate) next_id: u64,
    /// Of a replica: what came with its last entry; see [`Applied::note`].
    pub(crate) note: Vec<u8>,
    pub(super) scratch: Vec<u8>,
    /// Bytes of the commits in the WAL at opening and of those since, and what they were at some commits, oldest first.
    logged: u64,
    marks: VecDeque<(u64, u64)>,
    /// Whether marks are asked for.
    retains: bool,
    pub(crate) ends: Ends,
    /// Of a replica.
    pub(crate) transactions: Transactions,
    /// Of a replica: for validating what was absent.
    pub(crate) removals: Removals,
}

/// Between two marks of [`Committer`].
const MARK_BYTES: u64 = 1 << 20;

impl Committer {
    pub(crate) fn new(sequence: u64, time_ms: u64, next_id: u64, retains: bool) -> Committer {
        Committer {
            sequence,
            time_ms,
            log_time: LogTime::default(),
            next_id,
            note: Vec::new(),
            scratch: Vec::new(),
            logged: 0,
            marks: VecDeque::new(),
            retains,
            ends: Ends::default(),
            transactions: Transactions::default(),
            removals: Removals::since(sequence),
        }
    }

    /// The log's time.
    #[inline]
    pub(super) fn now_ms(&mut self, clock: &dyn Clock) -> u64 {
        self.log_time.now_ms(clock, self.time_ms)
    }

    /// Counts the bytes of a commit that is in the WAL.
    #[inline]
    pub(crate) fn mark(&mut self, sequence: u64, bytes: usize) {
        if !self.retains {
            return;
        }
        self.logged += bytes as u64;
        if self.marks.back().is_none_or(|(_, logged)| self.logged - logged >= MARK_BYTES) {
            self.marks.push_back((sequence, self.logged));
        }
    }

    /// The last commit behind which at least `keep` bytes were logged; 0 if there is none.
    pub(crate) fn sequence_before(&mut self, keep: u64) -> u64 {
        while let Some((_, logged)) = self.marks.get(1)
            && self.logged - logged >= keep
        {
            self.marks.pop_front();
        }
        match self.marks.front() {
            Some((sequence, logged)) if self.logged - logged >= keep => *sequence,
            _ => 0,
        }
    }
}
