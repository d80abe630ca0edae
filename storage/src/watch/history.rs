//! [`History`]: the newest changes, kept in memory for watchers that come back.
//!
//! A replica's log has commands, and what they came to was known only when they were applied; so what
//! a watcher has missed cannot be read from there. The effects themselves are kept instead, up to a number of
//! bytes. Keys and values are shared with the overlay and with what subscribers hold.
//!
//! Whole commits leave, the oldest first; the newest one stays, unless it is [several times](NEWEST) as large as all
//! may be: watchers that keep up are to see it, too. [`History::floor`] is the position after which nothing is missing: that of the last commit that has left, at first where the replica was opened, and where a tree was dropped,
//! since nobody can follow a name from one tree to the next.
//!
//! Of the database's own trees only counters and locks are kept: the others change with nearly every commit.

use std::collections::VecDeque;

use super::Event;
use crate::{Effect, TreeId};

/// See the [module](self).
#[derive(Debug, Default)]
pub(super) struct History {
    /// The bytes that may be kept; 0: nothing is.
    limit: usize,
    bytes: usize,
    /// Position of the last commit that has left, or where this began.
    left: u64,
    /// Position where a tree was dropped last.
    dropped: u64,
    /// The number of the first event that is kept; each has the next.
    first: u64,
    events: VecDeque<(TreeId, Event)>,
}

/// The newest commit stays while it is not larger than so many times what may be kept.
pub(super) const NEWEST: usize = 4;

/// Whether changes of a tree are kept.
pub(super) fn is_kept(tree: TreeId) -> bool {
    !tree.is_system() || tree == TreeId::COUNTERS || tree == TreeId::LOCKS
}

fn cost(event: &Event) -> usize {
    event.size() + size_of::<(TreeId, Event)>()
}

impl History {
    pub(super) fn new(limit: usize, floor: u64) -> History {
        History { limit, left: floor, ..History::default() }
    }

    pub(super) fn is_on(&self) -> bool {
        self.limit > 0
    }

    /// Everything after this position is here.
    pub(super) fn floor(&self) -> u64 {
        self.left.max(self.dropped)
    }

    /// Position of the last commit that has left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The number of the next event.
    pub(super) fn next(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// The number of the first event after a position, which is not below the floor.
    pub(super) fn after(&self, position: u64) -> u64 {
        self.first + self.events.partition_point(|(_, event)| event.sequence() <= position) as u64
    }

    /// How many events from this number on have left.
    pub(super) fn lost_from(&self, number: u64) -> u64 {
        self.first.saturating_sub(number)
    }

    /// Events from a number on.
    pub(super) fn from(&self, number: u64) -> impl Iterator<Item = &(TreeId, Event)> {
        self.events.range(number.saturating_sub(self.first) as usize..)
    }

    /// Keeps what a commit came to.
    pub(super) fn record(&mut self, sequence: u64, effects: &[Effect]) {
        if !self.is_on() {
            return;
        }
        for effect in effects {
            let (tree, event) = match effect {
                Effect::Put { tree, key, value, .. } | Effect::Tell { tree, key, value } => {
                    (*tree, Event::Put { sequence, key: key.clone(), value: value.clone() })
                }
                Effect::Remove { tree, key } => (*tree, Event::Remove { sequence, key: key.clone() }),
                Effect::Clear { tree } => (*tree, Event::Cleared { sequence }),
                Effect::DropTree { .. } => {
                    self.dropped = sequence;
                    continue;
                }
                Effect::CreateTree { .. } | Effect::SetNextId { .. } => continue,
            };
            if is_kept(tree) {
                self.bytes += cost(&event);
                self.events.push_back((tree, event));
            }
        }
        // Of what is kept: a commit of which nothing is must not take its place.
        let newest = self.events.back().map_or(0, |(_, event)| event.sequence());
        while self.bytes > self.limit {
            let Some((_, oldest)) = self.events.front() else { break };
            let oldest = oldest.sequence();
            if oldest == newest && self.bytes <= self.limit.saturating_mul(NEWEST) {
                break;
            }
            while let Some((_, event)) = self.events.front()
                && event.sequence() == oldest
            {
                self.bytes -= cost(event);
                self.events.pop_front();
                self.first += 1;
            }
            self.left = oldest;
        }
    }
}
