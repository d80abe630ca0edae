//! [`Attempt`]: one run of a transaction's closure.
//!
//! Holds the snapshot that is read, the writes that are kept aside, and what was read: keys with
//! their versions ([`KeyRead`]), and for each iterator a [`RangeTrack`] of how far it went from
//! either end. Versions of own writes are never noted; a key that is only ever read
//! after it was written in the same transaction does not depend on anybody.
//!
//! No borrow of the state is held while a caller's code runs, so a closure may use views and
//! iterators of its transaction in any order and nesting.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::rc::Rc;
use std::sync::Arc;

use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::evaluate::{self, Context, Effect, Entry, Versioned, View};
use dogsled_storage::expiry::{self, ExpiryCommand};
use dogsled_storage::lock::{FencingToken, PENDING_SEQUENCE};
use dogsled_storage::{
    Command, Error as StorageError, OwnedCommand, Reply, Result as StorageResult, TreeId, Write, owned,
};
use dogsled_storage::{Durability, Fence, Snapshot};

use super::UnabortableTransactionResult;
use crate::db::Database;
use crate::{Error, IVec, Result};

/// One run of a transaction's closure; see the [module](self).
pub(crate) struct Attempt {
    pub(super) database: Arc<Database>,
    pub(super) snapshot: Snapshot,
    time_ms: u64,
    state: RefCell<State>,
    must_be_synced: Cell<bool>,
    is_over: Cell<bool>,
}

#[derive(Default)]
pub(super) struct State {
    /// Few, so that searching them in a row beats any map.
    trees: Vec<TreeAccess>,
    ranges: Vec<RangeTrack>,
    /// Locks that must be held for the commit.
    fences: Vec<Fence>,
    /// Locks of which this run was told that they are held.
    seen_held: Vec<Fence>,
    /// Keys that a session owns by this transaction, and where that is written down.
    owned: BTreeMap<(TreeId, IVec), IVec>,
}

struct TreeAccess {
    id: TreeId,
    /// Keys read from the snapshot, with their versions; 0: absent.
    reads: BTreeMap<IVec, u64>,
    writes: BTreeMap<IVec, Option<IVec>>,
    /// Up to which keys, from either end, everything was popped.
    popped: [Option<IVec>; 2],
}

/// How committing ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    Yes,
    /// Something that was read has changed.
    Conflict,
}

impl State {
    fn access(&mut self, tree: TreeId) -> &mut TreeAccess {
        let position = match self.trees.iter().position(|access| access.id == tree) {
            Some(position) => position,
            None => {
                self.trees.push(TreeAccess {
                    id: tree,
                    reads: BTreeMap::new(),
                    writes: BTreeMap::new(),
                    popped: [None, None],
                });
                self.trees.len() - 1
            }
        };
        &mut self.trees[position]
    }

    fn writes(&self, tree: TreeId) -> Option<&BTreeMap<IVec, Option<IVec>>> {
        self.trees.iter().find(|access| access.id == tree).map(|access| &access.writes)
    }
}

impl Attempt {
    pub(super) fn start(database: Arc<Database>) -> Rc<Attempt> {
        Rc::new(Attempt {
            snapshot: database.engine.snapshot(),
            time_ms: database.engine.now_ms(),
            database,
            state: RefCell::default(),
            must_be_synced: Cell::new(false),
            is_over: Cell::new(false),
        })
    }

    /// Views that escape from the closure must not take writes that go nowhere.
    pub(super) fn check_running(&self) -> StorageResult<()> {
        if self.is_over.get() {
            return Err(StorageError::InvalidRequest("the transaction of this view is over".to_owned()));
        }
        Ok(())
    }

    pub(super) fn get(&self, tree: TreeId, key: &[u8]) -> StorageResult<Option<Versioned>> {
        self.check_running()?;
        if let Some(written) = self.state.borrow().writes(tree).and_then(|writes| writes.get(key)) {
            return Ok(written.clone().map(|value| Versioned { version: PENDING_SEQUENCE, value }));
        }
        let found = self.snapshot.get(tree, key)?;
        let version = found.as_ref().map_or(0, |found| found.version);
        self.state.borrow_mut().access(tree).reads.insert(IVec::from(key), version);
        Ok(found)
    }

    /// A plain write: the key has no time to live any more.
    pub(super) fn write(self: &Rc<Self>, tree: TreeId, key: IVec, value: Option<IVec>) -> StorageResult<()> {
        self.check_running()?;
        self.make_plain(tree, &key)?;
        self.keep(tree, key, value);
        Ok(())
    }

    /// What is written down of a key's time to live, or of its session, is about one version of it, so that of what was
    /// there before says nothing of the one to come. That of this transaction's own would.
    pub(super) fn make_plain(self: &Rc<Self>, tree: TreeId, key: &IVec) -> StorageResult<()> {
        let listed = self.state.borrow_mut().owned.remove(&(tree, key.clone()));
        if let Some(listed) = listed {
            self.keep(TreeId::SESSIONS, listed, None);
        }
        let has_own = self
            .state
            .borrow()
            .writes(TreeId::EXPIRY)
            .is_some_and(|writes| matches!(writes.get(&expiry::record_key(tree, key)), Some(Some(_))));
        if has_own {
            self.apply(&Command::Expiry(ExpiryCommand::Clear { tree, key: key.clone() }))?;
        }
        Ok(())
    }

    fn keep(&self, tree: TreeId, key: IVec, value: Option<IVec>) {
        let mut state = self.state.borrow_mut();
        let access = state.access(tree);
        if value.is_some() {
            let [front, back] = &mut access.popped;
            front.take_if(|front| key <= *front);
            back.take_if(|back| key >= *back);
        }
        access.writes.insert(key, value);
    }

    /// The time at which this began.
    pub(super) fn time_ms(&self) -> u64 {
        self.time_ms
    }

    /// The first own write of `low..high`, from either end; `None`: there is none.
    pub(super) fn written_in(
        &self,
        tree: TreeId,
        low: &IVec,
        high: Option<&IVec>,
        from_back: bool,
    ) -> Option<(IVec, Option<IVec>)> {
        if high.is_some_and(|high| high <= low) {
            return None;
        }
        let state = self.state.borrow();
        let bounds = (Bound::Included(low), high.map_or(Bound::Unbounded, Bound::Excluded));
        let mut found = state.writes(tree)?.range::<IVec, _>(bounds);
        let (key, value) = if from_back { found.next_back()? } else { found.next()? };
        Some((key.clone(), value.clone()))
    }

    /// Begins to note what an iterator over `low..high` reads; the number of its notes.
    pub(super) fn track_range(&self, tree: TreeId, low: IVec, high: Option<IVec>) -> usize {
        let mut state = self.state.borrow_mut();
        state.ranges.push(RangeTrack {
            tree,
            low,
            high,
            front: Reach::Nothing,
            front_count: 0,
            front_fingerprint: RangeFingerprint::default(),
            back: Reach::Nothing,
            back_versions: Vec::new(),
        });
        state.ranges.len() - 1
    }

    /// Notes progress of an iterator.
    pub(super) fn note_range(&self, track: usize, note: impl FnOnce(&mut RangeTrack)) {
        // After the commit, the notes are gone and nobody needs them.
        if let Some(track) = self.state.borrow_mut().ranges.get_mut(track) {
            note(track);
        }
    }

    /// The commit is to take place only while these locks are held.
    pub(super) fn fence(&self, fences: &[Fence]) {
        let own = &mut self.state.borrow_mut().fences;
        for fence in fences {
            if !own.contains(fence) {
                own.push(fence.clone());
            }
        }
    }

    /// The run was told that this lock is held under this token: where it is committed it must still be, or the run counts for
    /// nothing, as if it had been told something that has changed. (The lock's record need not change for that: a lease
    /// ends by itself.)
    pub(super) fn has_seen_held(&self, lock: &IVec, token: FencingToken) {
        let fence = Fence { lock: lock.clone(), token };
        let seen = &mut self.state.borrow_mut().seen_held;
        // What this transaction itself takes it holds only afterwards.
        if token != FencingToken::PENDING && !seen.contains(&fence) {
            seen.push(fence);
        }
    }

    /// Removes the first, or the last, key of a tree. What was popped before is not looked at again.
    pub(super) fn pop(self: &Rc<Self>, tree: TreeId, last: bool) -> StorageResult<Option<(IVec, IVec)>> {
        let popped = self.state.borrow_mut().access(tree).popped[usize::from(last)].clone();
        let beyond = popped.map_or(Bound::Unbounded, Bound::Excluded);
        let (low, high) = if last { (Bound::Unbounded, beyond) } else { (beyond, Bound::Unbounded) };
        let found =
            super::iter::MergedIter::new(Rc::clone(self), tree, low, high).advance(last).transpose()?;
        let Some((key, found)) = found else { return Ok(None) };
        self.write(tree, key.clone(), None)?;
        self.state.borrow_mut().access(tree).popped[usize::from(last)] = Some(key.clone());
        Ok(Some((key, found.value)))
    }

    pub(super) fn require_sync(&self) {
        self.must_be_synced.set(true);
    }

    /// Sets a key that dies with a session, or has a number, or both, within this transaction.
    pub(super) fn write_owned(self: &Rc<Self>, command: OwnedCommand) -> UnabortableTransactionResult<Reply> {
        let (tree, session) = match &command {
            OwnedCommand::Insert { tree, key, session, .. } => {
                self.make_plain(*tree, key).map_err(Error::from)?;
                (*tree, Some(*session))
            }
            OwnedCommand::InsertNext { tree, session, .. } => (*tree, *session),
            OwnedCommand::SetNext { .. } => unreachable!("only what is restored sets numbers"),
        };
        let key = command.prefix().clone();
        let reply = self.evaluate(&Command::Owned(command))?;
        if let Some(session) = session {
            let key = if let Reply::Named { key } = &reply { key.clone() } else { key };
            let listed = owned::owned_key(session, tree, &key);
            self.state.borrow_mut().owned.insert((tree, key), listed);
        }
        Ok(reply)
    }

    /// Evaluates the command of a counter, a lock or a time to live within this transaction.
    pub(super) fn evaluate(self: &Rc<Self>, command: &Command) -> UnabortableTransactionResult<Reply> {
        let reply = self.check_running().and_then(|()| {
            command.check_limits()?;
            self.apply(command)
        });
        Ok(reply.map_err(Error::from)?)
    }

    fn apply(self: &Rc<Self>, command: &Command) -> StorageResult<Reply> {
        // The position of the commit is not known yet; `storage::lock` says what that means for fencing
        // tokens, and `storage::expiry` for times to live.
        let context = Context { sequence: PENDING_SEQUENCE, time_ms: self.time_ms };
        let outcome = evaluate::evaluate(&AttemptView(self), &context, command)?;
        for effect in outcome.effects {
            match effect {
                Effect::Put { tree, key, value, .. } => self.keep(tree, key, Some(value)),
                Effect::Remove { tree, key } => self.keep(tree, key, None),
                other => unreachable!("a command within a transaction came to {other:?}"),
            }
        }
        Ok(outcome.reply)
    }

    /// Reads as commands do that are evaluated within this transaction.
    pub(super) fn with_view<T>(
        self: &Rc<Self>,
        read: impl FnOnce(&AttemptView<'_>, u64) -> StorageResult<T>,
    ) -> StorageResult<T> {
        read(&AttemptView(self), self.time_ms)
    }

    /// Ends the attempt and applies its writes, if all that it read is still so.
    pub(super) fn commit(&self, durability: Option<Durability>) -> Result<Committed, StorageError> {
        let State { trees, ranges, mut fences, seen_held, .. } = self.end();
        let engine = &self.database.engine;
        let durability = match durability {
            _ if self.must_be_synced.get() => Durability::Synced,
            Some(durability) => durability,
            None => self.database.durability(),
        };
        if trees.iter().all(|access| access.writes.is_empty()) {
            // All was read from one snapshot: it took effect when that was made.
            if self.must_be_synced.get() {
                engine.sync()?;
            }
            return Ok(Committed::Yes);
        }
        let (mut reads, mut writes) = (Vec::new(), Vec::new());
        for TreeAccess { id: tree, reads: read, writes: written, .. } in trees {
            reads.extend(read.into_iter().map(|(key, version)| KeyRead { tree, key, version }));
            writes.extend(written.into_iter().map(|(key, value)| Write { tree, key, value }));
        }
        let ranges = outermost(ranges.into_iter().flat_map(RangeTrack::into_reads).collect());
        let command = Command::Transact { reads, ranges, writes, expiries: Vec::new() };
        let demanded = fences.len();
        let is_new = |fence: &Fence| !fences.contains(fence);
        let seen: Vec<Fence> = seen_held.into_iter().filter(is_new).collect();
        fences.extend(seen);
        let reply = match fences.is_empty() {
            true => self.database.execute(command, durability),
            false => self.database.execute_fenced(&fences, command, durability),
        };
        match reply {
            Ok(Reply::Done) => Ok(Committed::Yes),
            Ok(Reply::Conflict) => Ok(Committed::Conflict),
            Err(StorageError::LockNotHeld { lock, token, .. })
                if !fences[..demanded].iter().any(|fence| fence.lock == lock && fence.token == token) =>
            {
                Ok(Committed::Conflict)
            }
            Err(error) => Err(error),
            Ok(other) => unreachable!("a transaction was answered with {other:?}"),
        }
    }

    /// Ends the attempt without effect.
    pub(super) fn end(&self) -> State {
        self.is_over.set(true);
        self.state.take()
    }
}

/// How far an iterator has gone from one end.
enum Reach {
    Nothing,
    /// Up to and including this key.
    Through(IVec),
    /// To where the other end has come, or the end of the range: from the front an exclusive
    /// bound, from the back an inclusive one. `None`: the end of the tree.
    To(Option<IVec>),
}

/// Those ranges that are within no other. All are of one snapshot: if nothing has changed in the outer one, nothing has in it.
fn outermost(mut ranges: Vec<RangeRead>) -> Vec<RangeRead> {
    // One without an end comes before those that have one.
    let end = |range: &RangeRead| (range.high.is_some(), range.high.clone().map(std::cmp::Reverse));
    ranges.sort_by(|one, other| {
        let begins = |range: &RangeRead| (range.tree, range.low.clone());
        begins(one).cmp(&begins(other)).then_with(|| end(one).cmp(&end(other)))
    });
    let mut kept: Vec<RangeRead> = Vec::with_capacity(ranges.len());
    for range in ranges {
        let is_within = kept.last().is_some_and(|outer| {
            outer.tree == range.tree
                && (outer.high.is_none()
                    || range.high.as_ref().is_some_and(|high| Some(high) <= outer.high.as_ref()))
        });
        if !is_within {
            kept.push(range);
        }
    }
    kept
}

/// How far an iterator over `low..high` has gone, and which versions it met on the way.
///
/// Invariant: the versions noted are those of all keys that the snapshot holds in the extent,
/// in the order in which they were met, whether or not an own write hides them.
pub(super) struct RangeTrack {
    tree: TreeId,
    low: IVec,
    high: Option<IVec>,
    front: Reach,
    front_count: u64,
    front_fingerprint: RangeFingerprint,
    back: Reach,
    /// A fingerprint folds versions in key order; these come in the opposite one.
    back_versions: Vec<u64>,
}

impl RangeTrack {
    /// The snapshot has a key of that version next.
    pub(super) fn meet(&mut self, version: u64, from_back: bool) {
        if from_back {
            self.back_versions.push(version);
        } else {
            self.front_count += 1;
            self.front_fingerprint.add(version);
        }
    }

    /// The iterator has returned, or passed over, `key`.
    pub(super) fn reach(&mut self, key: &IVec, from_back: bool) {
        let reach = if from_back { &mut self.back } else { &mut self.front };
        // Own writes made after the end was reached may still come, but what was seen to be
        // empty of others' keys stays a part of what was read.
        if !matches!(reach, Reach::To(_)) {
            *reach = Reach::Through(key.clone());
        }
    }

    /// The iterator has found nothing up to `bound`, where the other end is.
    pub(super) fn exhaust(&mut self, bound: Option<IVec>, from_back: bool) {
        let reach = if from_back { &mut self.back } else { &mut self.front };
        *reach = Reach::To(bound);
    }

    fn into_reads(self) -> impl Iterator<Item = RangeRead> {
        let tree = self.tree;
        let front_high = match self.front {
            Reach::Nothing => None,
            Reach::Through(key) => Some(Some(successor(&key))),
            Reach::To(bound) => Some(bound),
        };
        let front = front_high.map(|high| RangeRead {
            tree,
            low: self.low,
            high,
            count: self.front_count,
            fingerprint: self.front_fingerprint.finish(),
        });
        let back_low = match self.back {
            Reach::Nothing => None,
            Reach::Through(key) => Some(key),
            Reach::To(bound) => Some(bound.unwrap_or_default()),
        };
        let back = back_low.map(|low| {
            let mut fingerprint = RangeFingerprint::default();
            self.back_versions.iter().rev().for_each(|&version| fingerprint.add(version));
            RangeRead {
                tree,
                low,
                high: self.high,
                count: self.back_versions.len() as u64,
                fingerprint: fingerprint.finish(),
            }
        });
        front.into_iter().chain(back)
    }
}

/// The least key after `key`.
pub(super) fn successor(key: &[u8]) -> IVec {
    let mut bytes = Vec::with_capacity(key.len() + 1);
    bytes.extend_from_slice(key);
    bytes.push(0);
    IVec::from(bytes)
}

/// What commands that are evaluated within a transaction see: its snapshot under its writes.
pub(super) struct AttemptView<'a>(&'a Rc<Attempt>);

impl View for AttemptView<'_> {
    fn get(&self, tree: TreeId, key: &[u8]) -> StorageResult<Option<Versioned>> {
        self.0.get(tree, key)
    }

    fn end(&self, tree: TreeId, last: bool) -> StorageResult<Option<Entry>> {
        let mut iter =
            super::iter::MergedIter::new(Rc::clone(self.0), tree, Bound::Unbounded, Bound::Unbounded);
        iter.advance(last).transpose()
    }

    fn scan(
        &self,
        tree: TreeId,
        low: Bound<&[u8]>,
        high: Bound<&[u8]>,
        each: &mut dyn FnMut(&[u8], u64) -> bool,
    ) -> StorageResult<()> {
        let own = |bound: Bound<&[u8]>| bound.map(IVec::from);
        let mut iter = super::iter::MergedIter::new(Rc::clone(self.0), tree, own(low), own(high));
        while let Some((key, found)) = iter.advance(false).transpose()? {
            if !each(&key, found.version) {
                break;
            }
        }
        Ok(())
    }

    fn next_to(&self, tree: TreeId, key: &[u8], before: bool) -> StorageResult<Option<Entry>> {
        let key = IVec::from(key);
        let (low, high) = match before {
            true => (Bound::Unbounded, Bound::Excluded(key)),
            false => (Bound::Excluded(key), Bound::Unbounded),
        };
        // From its end: what lies beyond is not looked at, and so is no part of what was read.
        super::iter::MergedIter::new(Rc::clone(self.0), tree, low, high).advance(before).transpose()
    }

    fn tree_id(&self, name: &[u8]) -> Option<TreeId> {
        self.0.snapshot.tree_id(name)
    }

    fn has_tree(&self, tree: TreeId) -> bool {
        self.0.snapshot.has_tree(tree)
    }

    fn next_tree_id(&self) -> TreeId {
        unreachable!("no command of a transaction makes trees")
    }

    fn tree_names_weight(&self) -> usize {
        unreachable!("no command of a transaction makes trees")
    }

    fn next_id(&self) -> u64 {
        unreachable!("no command of a transaction reserves numbers")
    }

    fn earliest_due(&self) -> StorageResult<u64> {
        // The snapshot does not show what has expired.
        Ok(u64::MAX)
    }
}
