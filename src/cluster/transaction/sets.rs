//! [`Sets`]: what a transaction has read and wants to write.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Bound, RangeInclusive};
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::ring::TreeHash;
use dogsled_storage::codec::Listed;
use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::lock::{FencingToken, LockCommand};
use dogsled_storage::strings::StringAction;
use dogsled_storage::transaction::coordinator::Share;
use dogsled_storage::{
    ExpiryCommand, Fence, LOCKS_TREE_NAME, SessionId, SetIf, TreeId, Versioned, When, Write,
};

use crate::{IVec, Ttl};

/// What was read and is to be written.
#[derive(Default)]
pub(super) struct Sets {
    pub(super) trees: BTreeMap<IVec, Access>,
    /// The position at which something was first read, by group.
    positions: BTreeMap<u32, u64>,
    /// How many requests have read something: what came with one is of one moment.
    requests: u64,
    /// What was looked at, to be looked at again.
    pub(super) scans: BTreeSet<Scan>,
    /// What is there is to be kept, to be shown to a closure.
    pub(super) keeps: bool,
    /// What was seen there, if it is to be shown.
    pub(super) kept: BTreeMap<Scan, Arc<Seen>>,
    /// All that so many requests have read is of one moment.
    shown: Option<u64>,
    /// Locks under which something is to be written.
    fences: Vec<Fence>,
    /// Locks that were found to be held, by which the closure may have decided what to write.
    held: Vec<Fence>,
    /// What is to be done to locks.
    pub(super) locks: BTreeMap<IVec, LockCommand>,
}

/// The first keys of a range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Scan {
    pub(super) tree: IVec,
    pub(super) low: IVec,
    /// Exclusive.
    pub(super) high: Option<IVec>,
    /// How many.
    pub(super) want: usize,
}

impl Scan {
    /// The partitions that may have keys of it.
    pub(super) fn groups(&self, partitions: u32) -> RangeInclusive<u32> {
        let upper = self.high.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let hash = TreeHash::of_stored(&self.tree).0;
        match hash.group_of_range(Bound::Included(&self.low), upper, partitions) {
            Some(group) => group..=group,
            None => 1..=partitions,
        }
    }
}

/// What a [`Scan`] has found.
pub(super) struct Seen {
    pub(super) entries: Vec<(IVec, Versioned)>,
    /// Where what was looked at ends.
    pub(super) end: Option<IVec>,
}

/// The same of one tree.
#[derive(Default)]
pub(super) struct Access {
    pub(super) reads: BTreeMap<IVec, Option<Versioned>>,
    pub(super) ranges: Vec<RangeSeen>,
    pub(super) writes: BTreeMap<IVec, Option<IVec>>,
    /// Of keys that are written and are to expire; of keys that are not, what becomes of their time to live.
    times: BTreeMap<IVec, Time>,
    /// Of keys that were read and are written in no other way: what is done to them.
    pub(super) actions: BTreeMap<IVec, Vec<StringAction>>,
    /// When keys that were read expire, of which that was asked.
    lives: BTreeMap<IVec, Option<u64>>,
    /// Of keys that are written: those that die with a session, or have a number.
    owned: BTreeMap<IVec, Owned>,
    /// The number that comes next, of prefixes of which it was asked.
    next: BTreeMap<IVec, u64>,
}

/// What there is to a key that is written, beside its value.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Owned {
    /// With which it dies.
    pub(super) session: Option<SessionId>,
    /// Whether its prefix is to give it the number that it ends with.
    pub(super) is_numbered: bool,
}

/// A time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Time {
    /// In milliseconds from the commit.
    After(u64),
    /// None any more.
    Forever,
}

impl Access {
    /// A write without a time to live: the key has none any more.
    pub(super) fn write(&mut self, key: IVec, value: Option<IVec>) {
        self.times.remove(&key);
        match self.owned.get_mut(&key) {
            // The number is its own all the same.
            Some(owned) if owned.is_numbered && value.is_some() => owned.session = None,
            _ => drop(self.owned.remove(&key)),
        }
        self.writes.insert(key, value);
    }

    pub(super) fn write_owned(&mut self, key: IVec, value: IVec, owned: Owned) {
        // A key that has a number of this transaction's keeps it.
        let is_numbered = owned.is_numbered || self.owned.get(&key).is_some_and(|before| before.is_numbered);
        self.times.remove(&key);
        self.owned.insert(key.clone(), Owned { is_numbered, ..owned });
        self.writes.insert(key, Some(value));
    }

    /// Whether a key dies with a session, or has a number, by this transaction.
    pub(super) fn is_owned(&self, key: &IVec) -> bool {
        self.owned.contains_key(key)
    }

    pub(super) fn is_numbered(&self, key: &IVec) -> bool {
        self.owned.get(key).is_some_and(|owned| owned.is_numbered)
    }

    /// How long a key has to live, as far as this transaction says so.
    pub(super) fn own_ttl(&self, key: &IVec) -> Option<Ttl> {
        match (self.times.get(key), self.writes.get(key)) {
            (Some(Time::After(ms)), _) => Some(Ttl::In(Duration::from_millis(*ms))),
            (_, Some(None)) => Some(Ttl::NoKey),
            (_, Some(Some(_))) => Some(Ttl::Forever),
            // Of a key that is not written it depends on whether it is there.
            (_, None) => None,
        }
    }

    /// Whether a key that is there is to have no time to live any more.
    pub(super) fn persists(&self, key: &IVec) -> bool {
        self.times.get(key) == Some(&Time::Forever)
    }

    /// Notes when a key expires; what was noted first.
    pub(super) fn note_lives(&mut self, key: &IVec, at_ms: Option<u64>) -> Option<u64> {
        *self.lives.entry(key.clone()).or_insert(at_ms)
    }

    /// The number that a prefix gives next, if it is known.
    pub(super) fn next_number(&mut self, prefix: &IVec) -> Option<&mut u64> {
        self.next.get_mut(prefix)
    }

    pub(super) fn note_next_number(&mut self, prefix: &IVec, number: u64) {
        self.next.entry(prefix.clone()).or_insert(number);
    }

    pub(super) fn write_for(&mut self, key: IVec, value: IVec, ttl_ms: u64) {
        self.times.insert(key.clone(), Time::After(ttl_ms));
        self.writes.insert(key, Some(value));
    }

    /// Changes the time to live of a key that is there.
    pub(super) fn live_for(&mut self, key: IVec, time: Time) {
        match self.writes.get(&key) {
            // Nothing is there.
            Some(None) => {}
            Some(Some(_)) if time == Time::Forever => drop(self.times.remove(&key)),
            _ => drop(self.times.insert(key, time)),
        }
    }
}

/// A part of a range that one group has.
pub(super) struct RangeSeen {
    pub(super) group: u32,
    pub(super) low: IVec,
    /// Exclusive.
    pub(super) high: Option<IVec>,
    pub(super) count: u64,
    pub(super) fingerprint: RangeFingerprint,
}

impl Sets {
    pub(super) fn access(&mut self, tree: &IVec) -> &mut Access {
        if !self.trees.contains_key(tree) {
            self.trees.insert(tree.clone(), Access::default());
        }
        self.trees.get_mut(tree).expect("just inserted")
    }

    /// What is to be written in a tree, under locks.
    pub(super) fn writing(&mut self, tree: &IVec, fences: &[Fence]) -> &mut Access {
        for fence in fences {
            if !self.fences.contains(fence) {
                self.fences.push(fence.clone());
            }
        }
        self.access(tree)
    }

    /// The locks that have to be held.
    pub(super) fn fences(&self) -> &[Fence] {
        &self.fences
    }

    /// Notes that a lock is held, and is to be when all this takes effect.
    pub(super) fn note_held(&mut self, lock: &IVec, token: FencingToken) {
        let fence = Fence { lock: lock.clone(), token };
        if !self.held.contains(&fence) {
            self.held.push(fence);
        }
    }

    /// Notes that a tree was named so, also if nothing comes of it: whoever is refused for it asks whether it has
    /// another name.
    pub(super) fn named(&mut self, tree: &IVec) -> &Sets {
        self.access(tree);
        self
    }

    pub(super) fn note_position(&mut self, group: u32, position: u64) {
        let first = self.positions.entry(group).or_insert(position);
        *first = (*first).min(position);
        self.requests += 1;
    }

    /// Something was read that the versions of what was read before tell of: it is to be looked at again whether they are
    /// the same.
    pub(super) fn note_read_beside(&mut self) {
        self.requests += 1;
        // Also of what came in one answer.
        self.shown = None;
    }

    /// Whether times to live were read, of which no version tells.
    pub(super) fn has_lives(&self) -> bool {
        self.trees.values().any(|access| !access.lives.is_empty())
    }

    /// Nothing is to be written any more, for the closure has given up.
    pub(super) fn forget_writes(&mut self) {
        for access in self.trees.values_mut() {
            let Access { writes, times, actions, owned, .. } = access;
            (*writes, *times, *actions, *owned) = Default::default();
        }
        self.locks.clear();
        self.fences.clear();
        self.held.clear();
    }

    /// Whether nothing is to be written.
    pub(super) fn only_reads(&self) -> bool {
        let only_reads = |access: &Access| {
            let writes = access.writes.is_empty() && access.times.is_empty() && access.actions.is_empty();
            // A time to live can only be looked at again where something is committed: no version tells of it.
            writes && access.lives.is_empty()
        };
        self.locks.is_empty() && self.trees.values().all(only_reads)
    }

    /// Whether all that was read came in one answer, or is what was of one moment when it was shown.
    pub(super) fn is_of_one_moment(&self) -> bool {
        self.requests <= 1 || self.shown == Some(self.requests)
    }

    /// To be filled with what a closure is to be shown.
    pub(super) fn to_be_shown() -> Sets {
        Sets { keeps: true, ..Sets::default() }
    }

    /// What was read counts as read by the closure that is shown it.
    pub(super) fn into_shown(self) -> Sets {
        Sets { keeps: false, shown: Some(self.requests), ..self }
    }

    /// The keys that were read, by tree.
    pub(super) fn keys_read(&self) -> impl Iterator<Item = (&IVec, Vec<IVec>)> {
        let read = self.trees.iter().filter(|(_, access)| !access.reads.is_empty());
        read.map(|(tree, access)| (tree, access.reads.keys().cloned().collect()))
    }

    /// The ranges that were read.
    pub(super) fn scans(&self) -> impl Iterator<Item = &Scan> {
        self.scans.iter()
    }

    /// What each group is to lock, so that all that was read can be read again: of ranges all that may come to be
    /// among the first keys.
    pub(super) fn locks(
        &self,
        group_in: impl Fn(&[u8], &[u8]) -> u32,
        partitions: u32,
    ) -> BTreeMap<u32, Share> {
        let mut shares = Shares::default();
        for (tree, keys) in self.keys_read() {
            for key in keys {
                let (share, tree) = shares.of(group_in(tree, &key), tree);
                share.part.reads.push(KeyRead { tree, key, version: 0 });
            }
        }
        for scan in &self.scans {
            let Scan { tree, low, high, .. } = scan;
            for group in scan.groups(partitions) {
                let (share, tree) = shares.of(group, tree);
                let (low, high) = (low.clone(), high.clone());
                share.part.ranges.push(RangeRead { tree, low, high, count: 0, fingerprint: 0 });
            }
        }
        shares.0
    }

    /// The position at which something was first read in a group.
    pub(super) fn first_read(&self, group: u32) -> Option<u64> {
        self.positions.get(&group).copied()
    }

    /// What each group is to validate and write.
    pub(super) fn shares(&self, group_in: impl Fn(&[u8], &[u8]) -> u32) -> BTreeMap<u32, Share> {
        let mut shares = Shares::default();
        for (name, access) in &self.trees {
            for (key, found) in &access.reads {
                let version = found.as_ref().map_or(0, |found| found.version);
                let (share, tree) = shares.of(group_in(name, key), name);
                share.part.reads.push(KeyRead { tree, key: key.clone(), version });
            }
            for RangeSeen { group, low, high, count, fingerprint } in &access.ranges {
                let (share, tree) = shares.of(*group, name);
                share.part.ranges.push(RangeRead {
                    tree,
                    low: low.clone(),
                    high: high.clone(),
                    count: *count,
                    fingerprint: fingerprint.finish(),
                });
            }
            for (key, value) in &access.writes {
                let (share, tree) = shares.of(group_in(name, key), name);
                let (key, value) = (key.clone(), value.clone());
                if let (Some(Owned { session, is_numbered }), Some(value)) =
                    (access.owned.get(&key).copied(), &value)
                {
                    let value = value.clone();
                    share.part.expiries.push(ExpiryCommand::Owned { tree, key, value, session, is_numbered });
                    continue;
                }
                match (access.times.get(&key), value) {
                    (Some(Time::After(ms)), Some(value)) => {
                        let when = When::After(*ms);
                        share.part.expiries.push(ExpiryCommand::Insert { tree, key, value, when });
                    }
                    (_, value) => share.part.writes.push(Write { tree, key, value }),
                }
            }
            for (key, time) in access.times.iter().filter(|(key, _)| !access.writes.contains_key(*key)) {
                let (share, tree) = shares.of(group_in(name, key), name);
                let (key, only) = (key.clone(), SetIf::Always);
                share.part.expiries.push(match time {
                    Time::After(ms) => ExpiryCommand::Set { tree, key, when: When::After(*ms), only },
                    Time::Forever => ExpiryCommand::Clear { tree, key },
                });
            }
            for (key, at_ms) in &access.lives {
                let (share, tree) = shares.of(group_in(name, key), name);
                share.part.expiries.push(ExpiryCommand::Lives { tree, key: key.clone(), at_ms: *at_ms });
            }
            for (key, actions) in &access.actions {
                let (share, tree) = shares.of(group_in(name, key), name);
                let (key, actions) = (key.clone(), Listed(actions.clone()));
                share.part.expiries.push(ExpiryCommand::Strings { tree, key, actions });
            }
        }
        let name = IVec::from(LOCKS_TREE_NAME);
        for (lock, command) in &self.locks {
            let (share, tree) = shares.of(group_in(&name, lock), &name);
            share.part.expiries.push(ExpiryCommand::Lock { tree, command: command.clone() });
        }
        // One that is given back in this very transaction is held until then, which is checked by that.
        for Fence { lock, token } in self.fences.iter().chain(&self.held) {
            let (share, tree) = shares.of(group_in(&name, lock), &name);
            let held = ExpiryCommand::Held { tree, key: lock.clone(), token: *token };
            if !share.part.expiries.contains(&held) {
                share.part.expiries.push(held);
            }
        }
        shares.0
    }
}

/// Shares that are being put together.
#[derive(Default)]
struct Shares(BTreeMap<u32, Share>);

impl Shares {
    /// The share of a group, and the number of a tree within it. Whoever asks goes through a tree as a whole, so it is
    /// the last if it is there; or, with a second round, one of few.
    fn of(&mut self, group: u32, tree: &IVec) -> (&mut Share, TreeId) {
        let share = self.0.entry(group).or_default();
        let index = share.trees.iter().rposition(|known| known == tree).unwrap_or_else(|| {
            share.trees.push(tree.clone());
            share.trees.len() - 1
        });
        (share, TreeId(index as u32))
    }
}

impl Sets {
    /// The value that was written, if one was.
    pub(super) fn written(&self, tree: &IVec, key: &IVec) -> Option<Option<IVec>> {
        self.trees.get(tree)?.writes.get(key).cloned()
    }

    /// The value that was written or read before.
    pub(super) fn known(&self, tree: &IVec, key: &IVec) -> Option<Option<IVec>> {
        let read = || {
            self.trees.get(tree)?.reads.get(key).map(|found| found.as_ref().map(|found| found.value.clone()))
        };
        self.written(tree, key).or_else(read)
    }
}
