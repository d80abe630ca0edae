//! Checkpoints: folding the overlay into the B-tree, in the background.
//!
//! # Steps
//! 1. **Freeze** (commit mutex): the active overlay becomes the frozen one, an empty one takes its
//!    place. Writers go on at once.
//! 2. **Sync the WAL** up to the frozen overlay's last commit. The B-tree must never hold more
//!    than the WAL has durably: what follows would be a hole in the history.
//! 3. **Count**: keys that were put without looking are looked up in the B-tree while it is still
//!    as it was under them; see [`crate::overlay`]. Now the lengths of the trees are known.
//! 4. **Slices**: the frozen overlay's newest state is written in key order, some ten thousand keys
//!    to a redb transaction (durable, two-phase, with quick repair). After each the new B-tree is
//!    published under the same frozen overlay, which shadows every key that is half-way, so each
//!    such state reads the same. That is why slices exist: with one large transaction the held
//!    B-tree pins every old page until the end, and the file grows to twice its size.
//!    The **first slice** also says what the record will be (row `folding`).
//! 5. The **last slice** also records the applied sequence, the catalog and the lengths.
//! 6. The frozen overlay goes, and the WAL's prefix with it.
//!
//! # Replicas
//! A [replica](crate::replica) has no effects to replay, it evaluates the commands of its log
//! again, and for that the B-tree must be exactly as it was at the recorded position. So its frozen
//! overlay is one slice, and smaller from the start. Its record is also renewed when nothing but the
//! position has moved. Its thread sleeps without end while all is folded.
//!
//! # Crashes
//! Before step 5 is durable the record still names the old sequence, so recovery replays the whole
//! WAL behind it over a B-tree that holds some of it already. Effects are absolute and replayed in
//! order, so the contents are the same. How many keys there are at the last commit that was being
//! folded is in the row `folding`; counted again over a B-tree that holds slices it would come out
//! wrong. After step 5 the replay starts behind it.
//!
//! # Errors
//! An error of redb latches it: the checkpoint's failure is kept, writers that need room get it,
//! and the WAL is poisoned so that nothing more is acknowledged; before that it is synced, as commits may have been
//! acknowledged from memory. Everything acknowledged is in the WAL; reopening recovers it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redb::TableDefinition;

use crate::base::Base;
use crate::engine::{EMBEDDED_STREAM, Shared};
use crate::evaluate::Versioned;
use crate::leaf_cache::{LeafCache, ValueRef};
use crate::meta::{CHECKPOINT_ROW, Checkpoint, FOLDING_ROW, META_TABLE, table_name};
use crate::overlay::{Length, Overlay};
use crate::replica::Applied;
use crate::state::State;
use crate::{IVec, Result, TreeId};

/// Bytes of one slice; its keys are an option.
const SLICE_BYTES: usize = 4 << 20;

/// An overlay of at least this size is folded when nothing was committed for [`IDLE`], so that
/// reads find everything in one place and a reopening finds little to replay.
const IDLE_BYTES: usize = 1 << 20;
const IDLE: Duration = Duration::from_millis(1500);
/// When the WAL has grown by so many bytes it is folded, however little memory its commits take: a synced commit takes
/// at least 4 KiB of it, so a lone durable writer would fill gigabytes before the overlay is full.
const WAL_BYTES: u64 = 256 << 20;
/// A replica is folded after this long without an entry, however little there is: then its thread
/// sleeps until there is one, and the node's WAL is not held back.
const REPLICA_IDLE: Duration = Duration::from_secs(10);
/// How often the thread of a replica looks while something is not folded.
const REPLICA_TICK: Duration = Duration::from_secs(2);
/// Closing folds a WAL of so many bytes, if it is so many times as large as what is folded: the same few
/// keys written over and over make a long WAL and a small overlay.
const CLOSING_BYTES: u64 = 16 << 20;
const CLOSING_TIMES: u64 = 8;
/// After this long without a commit the WAL's spare segments are given back: those that nobody waits for, and all.
const AT_REST: Duration = Duration::from_secs(5);
const LONG_AT_REST: Duration = Duration::from_secs(60);

/// Which spare segments of the WAL were given back since the last commit.
#[derive(PartialEq, Eq)]
enum Trimmed {
    Not,
    Cold,
    All,
}

/// Tells those who wait for a checkpoint that none will come if the thread panics: redb asserts
/// much of what it finds, and a caller must get an error then, not wait for ever.
struct FailOnPanic<'a>(&'a Shared);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let why = "the checkpoint thread panicked";
            self.0.poison(why);
            self.0.progress.lock().failed.get_or_insert(crate::Error::Poisoned(why.into()));
            self.0.progressed.notify_all();
        }
    }
}

/// The background thread.
pub(crate) fn run(shared: &Arc<Shared>) {
    let _guard = FailOnPanic(shared);
    let mut last_sequence = 0;
    let mut quiet_since = Instant::now();
    let mut trimmed = Trimmed::Not;
    // Bytes that the WAL had written when the last checkpoint began.
    let mut folded = 0;
    loop {
        let target = {
            let mut progress = shared.progress.lock();
            loop {
                if progress.closing {
                    return;
                }
                if progress.wanted > progress.finished && progress.failed.is_none() {
                    break progress.wanted;
                }
                let timed_out = match &shared.replica {
                    None => shared.progressed.wait_for(&mut progress, IDLE / 3).timed_out(),
                    Some(replica)
                        if replica.may_sleep(shared.checkpointed()) || progress.failed.is_some() =>
                    {
                        shared.progressed.wait(&mut progress);
                        quiet_since = Instant::now();
                        false
                    }
                    Some(_) => shared.progressed.wait_for(&mut progress, REPLICA_TICK).timed_out(),
                };
                if timed_out && progress.failed.is_none() {
                    if shared.wal.stats().bytes_written >= folded + WAL_BYTES {
                        progress.wanted = progress.wanted.max(progress.finished + 1);
                        continue;
                    }
                    let state = shared.state.load();
                    let sequence = match &shared.replica {
                        Some(replica) => replica.applied(),
                        None => state.active.sequence(),
                    };
                    if sequence != last_sequence {
                        last_sequence = sequence;
                        quiet_since = Instant::now();
                        trimmed = Trimmed::Not;
                    } else if state.active.bytes() >= IDLE_BYTES && quiet_since.elapsed() >= IDLE {
                        progress.wanted = progress.wanted.max(progress.finished + 1);
                    } else if shared.replica.is_some() {
                        if quiet_since.elapsed() >= REPLICA_IDLE {
                            progress.wanted = progress.wanted.max(progress.finished + 1);
                        }
                    } else if trimmed == Trimmed::Not && quiet_since.elapsed() >= AT_REST {
                        trimmed = Trimmed::Cold;
                        // A spare that cannot be removed costs its space, no more.
                        let _ = shared.wal.trim();
                    } else if trimmed == Trimmed::Cold && quiet_since.elapsed() >= LONG_AT_REST {
                        trimmed = Trimmed::All;
                        let _ = shared.wal.trim_all();
                    }
                }
            }
        };
        folded = shared.wal.stats().bytes_written;
        let result = checkpoint(shared, || shared.progress.lock().closing);
        if let Err(error) = &result {
            shared.poison(&format!("a checkpoint failed: {error}"));
        }
        let mut progress = shared.progress.lock();
        match result {
            // It may have been cut short; whoever waits is told that the database closes.
            Ok(()) if progress.closing => {}
            Ok(()) => {
                progress.finished = target;
                // One may not have been enough.
                if shared.state.load().active.bytes() > shared.freeze_at() && progress.wanted == target {
                    progress.wanted += 1;
                }
            }
            Err(error) => progress.failed = Some(error),
        }
        shared.progressed.notify_all();
    }
}

/// [`crate::Engine::checkpoint`].
pub(crate) fn request_and_wait(shared: &Arc<Shared>) -> Result<()> {
    if !shared.options.background_threads {
        let result = checkpoint(shared, || false);
        if let Err(error) = &result {
            shared.poison(&format!("a checkpoint failed: {error}"));
        }
        return result;
    }
    let mut progress = shared.progress.lock();
    // One that is under way may have frozen before the caller's last commit: wait for the next.
    progress.wanted = progress.wanted.max(progress.finished + 1) + 1;
    let target = progress.wanted;
    shared.progressed.notify_all();
    while progress.finished < target {
        if let Some(error) = &progress.failed {
            return Err(error.clone());
        }
        if progress.closing {
            return Err(crate::Error::InvalidRequest("the database is closed".to_owned()));
        }
        shared.progressed.wait(&mut progress);
    }
    Ok(())
}

/// When a database is closed, and nothing else runs any more: what it leaves on the disk is in proportion
/// to what it holds.
pub(crate) fn at_close(shared: &Arc<Shared>) {
    let state = shared.state.load_full();
    let overlays = std::iter::once(&state.active).chain(&state.frozen);
    let bytes: u64 = overlays.map(|overlay| overlay.bytes() as u64).sum();
    drop(state);
    let least = CLOSING_BYTES.max(bytes.saturating_mul(CLOSING_TIMES));
    let is_sound = shared.progress.lock().failed.is_none() && shared.wal.poisoned().is_none();
    if is_sound && shared.wal.stats().live_bytes >= least {
        // If it fails nothing is lost but the space: the WAL holds everything.
        let _ = checkpoint(shared, || false);
    }
}

/// One checkpoint; see the [module](self). Stops between slices if `cancelled` says so: the state
/// in between is as good as any.
fn checkpoint(shared: &Arc<Shared>, cancelled: impl Fn() -> bool) -> Result<()> {
    let mut freezing = shared.freezing.lock();
    let mut record = match freezing.take() {
        Some(record) => record,
        None => match freeze(shared) {
            Some(record) => record,
            None => return Ok(()),
        },
    };
    let frozen =
        Arc::clone(shared.state.load().frozen.as_ref().expect("a record exists only with a frozen overlay"));
    // Even if what follows fails: it can be done again.
    *freezing = Some(record.clone());
    shared.wal.sync()?;
    record.lengths = lengths(shared, &frozen, &record)?;
    let record = &*freezing.insert(record);

    let mut writer = SliceWriter { shared, frozen: &frozen, record, begun: false, started: Vec::new() };
    let mut trees = Vec::new();
    frozen.for_each_tree(|id, cleared, _| trees.push((id, cleared)));
    let mut slice = Slice::default();
    // Each slice leaves behind as many dead pages as it rewrites, so it should be a small part of the
    // tree: if the keys are spread evenly, no more than a 32nd. (An entry counts some 200 bytes.)
    let (slice_keys, slice_bytes) = match &shared.replica {
        None => {
            let keys = (frozen.bytes() / 200 / 32).max(1024).min(shared.options.checkpoint_slice_keys).max(1);
            (keys, SLICE_BYTES)
        }
        Some(_) => (usize::MAX, usize::MAX),
    };
    for (id, cleared) in trees {
        let dropped = !record.catalog.ids.contains_key(&id);
        if cleared || dropped {
            slice.cleared.push(id);
        }
        if dropped {
            continue;
        }
        let mut after: Option<IVec> = None;
        loop {
            let mut changes = Vec::new();
            let room = slice_keys - slice.keys;
            frozen.slice(id, after.as_ref(), room.min(4096), &mut changes);
            let Some((last, _)) = changes.last() else { break };
            after = Some(last.clone());
            slice.add(id, changes);
            if slice.keys >= slice_keys || slice.bytes >= slice_bytes {
                writer.write(std::mem::take(&mut slice), false)?;
                if cancelled() {
                    return Ok(());
                }
            }
        }
    }
    writer.write(slice, true)?;
    let record = freezing.take().expect("set above");
    let applied = record.applied;
    if let Some(replica) = &shared.replica {
        replica.set_durable(Applied { position: applied, note: record.note.unwrap_or_default() });
    }
    drop(freezing);
    shared.set_checkpointed(applied);
    shared.checkpoints.fetch_add(1, Ordering::Relaxed);
    if shared.replica.is_some() { Ok(()) } else { purge_wal(shared, applied) }
}

/// Step 1; `None` if there is nothing to fold.
fn freeze(shared: &Shared) -> Option<Checkpoint> {
    let committer = shared.commit.lock();
    let state = shared.state.load();
    assert!(state.frozen.is_none(), "the overlay before is still being folded");
    let is_moved = shared.replica.is_some() && committer.sequence > shared.checkpointed();
    if state.active.is_empty() && !is_moved {
        return None;
    }
    let record = Checkpoint {
        applied: committer.sequence,
        time_ms: committer.time_ms,
        next_id: committer.next_id,
        catalog: (*state.catalog).clone(),
        lengths: Default::default(),
        note: shared.replica.as_ref().map(|_| committer.note.clone()),
    };
    shared.state.store(Arc::new(State {
        active: Arc::new(Overlay::new(committer.sequence)),
        frozen: Some(Arc::clone(&state.active)),
        base: Arc::clone(&state.base),
        catalog: Arc::clone(&state.catalog),
    }));
    Some(record)
}

/// Step 3: the number of keys of each tree at the frozen overlay's last commit.
fn lengths(shared: &Shared, frozen: &Overlay, record: &Checkpoint) -> Result<BTreeMap<TreeId, u64>> {
    let state = shared.state.load_full();
    state.count_frozen(&shared.readers, frozen)?;
    let mut lengths: BTreeMap<TreeId, u64> =
        record.catalog.ids.keys().map(|id| (*id, state.base.length(*id))).collect();
    frozen.for_each_tree(|id, _, length| {
        if let Some(total) = lengths.get_mut(&id) {
            *total = match length {
                Length::All(all) => all,
                Length::More(more) => total.checked_add_signed(more).expect("no tree has less than no keys"),
            };
        }
    });
    Ok(lengths)
}

/// Lets WAL segments go that nobody needs any more.
fn purge_wal(shared: &Shared, applied: u64) -> Result<()> {
    let keep = shared.options.retain_changes_bytes;
    let limit = if keep == 0 { applied } else { shared.commit.lock().sequence_before(keep) };
    // The last one folded stays: should the B-tree's file ever come up as it was before this
    // checkpoint, the WAL then begins behind it, and the loss is noticed.
    let purge_to = limit.min(applied.saturating_sub(1));
    if purge_to > 0 {
        shared.wal.purge_to(EMBEDDED_STREAM, purge_to)?;
    }
    Ok(())
}

type Change = (IVec, Option<Versioned>);

/// What one redb transaction writes.
#[derive(Default)]
struct Slice {
    /// Trees whose table is dropped first.
    cleared: Vec<TreeId>,
    changes: Vec<(TreeId, Vec<Change>)>,
    keys: usize,
    bytes: usize,
}

impl Slice {
    fn add(&mut self, tree: TreeId, changes: Vec<Change>) {
        self.keys += changes.len();
        self.bytes += changes
            .iter()
            .map(|(key, value)| key.len() + value.as_ref().map_or(0, |found| found.value.len()))
            .sum::<usize>();
        match self.changes.last_mut() {
            Some((id, list)) if *id == tree => list.extend(changes),
            _ => self.changes.push((tree, changes)),
        }
    }
}

/// All changes once: first five of every nine in order, then the other four.
///
/// redb splits a full leaf in the middle, so keys that are put in order leave every leaf half empty
/// behind them, which is what a bulk load would come to. The second pass fills those halves, to
/// about nine tenths. Measured with a million random keys of 16 bytes and values of 100: 177 MiB
/// instead of 249.
fn in_two_passes(changes: &[Change]) -> impl Iterator<Item = &Change> {
    let pass = |first: bool| {
        changes
            .iter()
            .enumerate()
            .filter(move |(index, _)| (index % 9 < 5) == first)
            .map(|(_, change)| change)
    };
    pass(true).chain(pass(false))
}

struct SliceWriter<'a> {
    shared: &'a Arc<Shared>,
    frozen: &'a Arc<Overlay>,
    record: &'a Checkpoint,
    /// The row that says so is written.
    begun: bool,
    /// Trees whose old contents are gone from the B-tree already.
    started: Vec<TreeId>,
}

impl SliceWriter<'_> {
    fn write(&mut self, slice: Slice, last: bool) -> Result<()> {
        let base = Arc::clone(&self.shared.state.load().base);
        let file = base.file().clone();
        let failed = |error: redb::Error| file.map_error("checkpointing into", error);
        let database = &self.shared.database;
        let mut transaction = database.begin_write().map_err(|error| failed(error.into()))?;
        transaction.set_quick_repair(true);
        for id in &slice.cleared {
            let name = table_name(*id);
            let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(&name);
            transaction.delete_table(definition).map_err(|error| failed(error.into()))?;
        }
        let mut stored = Vec::new();
        for (id, changes) in &slice.changes {
            let name = table_name(*id);
            let definition: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new(&name);
            let mut table = transaction.open_table(definition).map_err(|error| failed(error.into()))?;
            for (key, value) in in_two_passes(changes) {
                match value {
                    Some(found) => {
                        stored.clear();
                        stored.extend_from_slice(&found.version.to_le_bytes());
                        stored.extend_from_slice(&found.value);
                        table.insert(&key[..], &stored[..]).map_err(|error| failed(error.into()))?;
                    }
                    None => {
                        table.remove(&key[..]).map_err(|error| failed(error.into()))?;
                    }
                }
            }
        }
        if last || !self.begun {
            let mut meta = transaction.open_table(META_TABLE).map_err(|error| failed(error.into()))?;
            let row = self.record.encode();
            let name = if last { CHECKPOINT_ROW } else { FOLDING_ROW };
            meta.insert(name, &row[..]).map_err(|error| failed(error.into()))?;
            self.begun = true;
        }
        transaction.commit().map_err(|error| failed(error.into()))?;
        self.publish(&base, &slice, last)
    }

    /// Makes the B-tree as just committed the one that is read.
    fn publish(&mut self, old: &Arc<Base>, slice: &Slice, last: bool) -> Result<()> {
        self.started.extend(&slice.cleared);
        let mut caches: HashMap<TreeId, Arc<LeafCache>> =
            old.trees().map(|(id, tree)| (id, Arc::clone(&tree.cache))).collect();
        for id in &slice.cleared {
            caches.insert(*id, Arc::new(LeafCache::new_empty_tree(Arc::clone(old.budget()))));
        }
        for (id, changes) in &slice.changes {
            let cache = caches
                .entry(*id)
                .or_insert_with(|| Arc::new(LeafCache::new_empty_tree(Arc::clone(old.budget()))));
            let changes = changes.iter().map(|(key, value)| {
                (&key[..], value.as_ref().map(|found| (found.version, ValueRef::Shared(&found.value))))
            });
            *cache = Arc::new(cache.apply(changes));
        }
        let mut lengths: HashMap<TreeId, u64> = if last {
            self.record.lengths.iter().map(|(id, length)| (*id, *length)).collect()
        } else {
            old.trees().map(|(id, tree)| (id, tree.length)).collect()
        };
        if !last {
            // New trees are in the B-tree before the record that names them; their length is told
            // by the frozen overlay until then.
            for (id, _) in &slice.changes {
                lengths.entry(*id).or_insert(0);
            }
        }
        let base = Base::hold(&self.shared.database, old.file(), lengths.into_iter(), caches, old.budget())?;
        for (_, tree) in base.trees() {
            if tree.cache.budget().excess() > 0 {
                tree.cache.evict_to_budget();
            }
        }
        let _committer = self.shared.commit.lock();
        let state = self.shared.state.load();
        debug_assert!(state.frozen.as_ref().is_some_and(|frozen| Arc::ptr_eq(frozen, self.frozen)));
        self.shared.state.store(Arc::new(State {
            active: Arc::clone(&state.active),
            frozen: if last { None } else { state.frozen.clone() },
            base: Arc::new(base),
            catalog: Arc::clone(&state.catalog),
        }));
        Ok(())
    }
}
