//! [`Replica`]: an [`Engine`] that is changed by the entries of a replicated log, and by nothing
//! else.
//!
//! # Promise
//!
//! Replicas that have applied the same entries hold the same: trees, keys, values, versions (the
//! version of a key is the position of the entry that wrote it), sessions, the log's time. It does
//! not matter when each of them made checkpoints, was closed, or installed a snapshot of another.
//!
//! # Idea
//!
//! The entries are durable before they are applied, in a log that the caller keeps, so a replica
//! logs nothing. Its B-tree is, at any time, exactly the state at one position of that log, which is
//! recorded with it: the last completed [checkpoint](Replica::checkpoint). Opening begins there
//! ([`Replica::applied`]), and the caller applies the later entries again. What comes before
//! [`Replica::durable_applied`] is not needed any more by this replica, and may leave the log.
//!
//! ```text
//! entry ─► decode ─► resolve, evaluate(newest view) ─► overlay ─► watchers      in memory only
//!                                                         └─► (checkpoint: sync WAL, one redb transaction)
//! ```
//!
//! # How it differs from an embedded database
//!
//! | | embedded | replica |
//! |---|---|---|
//! | the WAL | its own; effects | the node's, of all its groups; only synced, before a checkpoint |
//! | a crash amid a checkpoint | effects are replayed over what is half there | nothing may be half there: one transaction |
//! | a commit without effects | none | a position like any other |
//! | time | its clock | the stamps of the entries |
//! | a failed checkpoint | poisons the WAL | fails this replica; the node's others go on |
//!
//! # The caller's part
//!
//! Positions grow by one, and one thread at a time applies. An entry is the same on every replica,
//! and so is the position. An error of [`Replica::apply`] is the world's, and whether the
//! entry was applied is then told by [`Replica::applied`]: close, open again, go on behind what is
//! applied then.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::clock::Clock;
use crate::codec::{GROUP_COMMAND_VERSION, decode_group_command};
use crate::directory::Directory;
use crate::disk::{Disk, RealDisk};
use crate::engine::{Committer, Shared, prefetch, prefetch_part, touches_locks};
use crate::evaluate::Context;
use crate::group::{GroupReply, Operation, Refusal};
use crate::group_evaluate::{Resolved, evaluate_resolved, resolve};
use crate::meta::{
    Checkpoint, EXPIRY_TREE_NAME, HASHES_TREE_NAME, LOCK_QUEUES_TREE_NAME, MAX_NOTE_LENGTH, QUOTAS_TREE_NAME,
    SEQUENCES_TREE_NAME, SESSIONS_TREE_NAME,
};
use crate::replica_install::{check_id, remove_stale};
use crate::replica_snapshot::ReplicaSnapshot;
use crate::replica_transactions::PreparedCount;
use crate::session;
use crate::state::{LatestView, Prefetched, State};
use crate::transaction::{Commit, Prepare, Prepared};
use crate::wal::Wal;
use crate::watch::Wakeups;
use crate::{Effect, Engine, Error, IVec, Options, Result, TreeId};

/// A replica's overlay is frozen at this size if not before: it is folded in one transaction, and
/// pages that a transaction replaces stay in the file until the next.
pub(crate) const FREEZE_BYTES: usize = 64 << 20;

/// How far a replica has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Position of the last entry; 0 before the first.
    pub position: u64,
    /// What the caller gave along with the last entry that came with something: bytes that mean
    /// nothing here, such as a log id and a membership.
    pub note: Vec<u8>,
}

/// How to open a [`Replica`].
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    /// Where; made if missing. Beside it, `<directory>.incoming` is where a snapshot of another
    /// replica is built.
    pub directory: PathBuf,
    /// The node's; a directory of another is refused.
    pub database_id: u128,
    /// As [`Options::cache_capacity`].
    pub cache_capacity: u64,
    /// Bytes of the newest changes that are kept in memory, for watchers that come back; see
    /// [`crate::watch`].
    pub retain_changes_bytes: u64,
    /// What stores the bytes.
    pub disk: Arc<dyn Disk>,
    /// Whether checkpoints are made in the background. Without it only [`Replica::checkpoint`] makes
    /// them.
    pub background_threads: bool,
}

impl ReplicaOptions {
    /// The defaults, for `directory` on the operating system's disk.
    pub fn new(directory: impl Into<PathBuf>, database_id: u128) -> ReplicaOptions {
        ReplicaOptions {
            directory: directory.into(),
            database_id,
            cache_capacity: 64 << 20,
            retain_changes_bytes: 1 << 20,
            disk: Arc::new(RealDisk),
            background_threads: true,
        }
    }
}

/// What only a replica's engine has.
#[derive(Debug)]
pub(crate) struct ReplicaState {
    /// What the last completed checkpoint recorded.
    durable: Mutex<Applied>,
    /// The last position, for those who do not hold the commit mutex.
    applied: AtomicU64,
    /// The log's time there, or a little later.
    time_ms: AtomicU64,
    /// The checkpoint thread sleeps until there is an entry.
    asleep: AtomicBool,
    pub(crate) prepared: PreparedCount,
    failure: OnceLock<Error>,
}

impl ReplicaState {
    pub(crate) fn new(applied: Applied, time_ms: u64) -> ReplicaState {
        ReplicaState {
            time_ms: AtomicU64::new(time_ms),
            applied: AtomicU64::new(applied.position),
            durable: Mutex::new(applied),
            asleep: AtomicBool::new(false),
            prepared: PreparedCount::default(),
            failure: OnceLock::new(),
        }
    }

    pub(crate) fn set_durable(&self, applied: Applied) {
        *self.durable.lock() = applied;
    }

    pub(crate) fn applied(&self) -> u64 {
        self.applied.load(Ordering::SeqCst)
    }

    pub(crate) fn time_ms(&self) -> u64 {
        self.time_ms.load(Ordering::SeqCst)
    }

    /// Whether all is folded; if so, the next entry wakes whoever asks. Call with the mutex of the
    /// checkpoints' progress held, and wait with it.
    pub(crate) fn may_sleep(&self, checkpointed: u64) -> bool {
        // This store is before that load, and in `advance` the other way round: one of the two sees
        // the other, in the one order that all such accesses have.
        self.asleep.store(true, Ordering::SeqCst);
        let may = self.applied() == checkpointed;
        if !may {
            self.asleep.store(false, Ordering::SeqCst);
        }
        may
    }

    pub(crate) fn fail(&self, why: &str) {
        // The first reason stays.
        let _ = self.failure.set(Error::Poisoned(why.into()));
    }

    pub(crate) fn failed(&self) -> Option<Error> {
        self.failure.get().cloned()
    }
}

/// Refuses an embedded database that is opened as a replica, and the other way round; completes the
/// record of a new replica.
pub(crate) fn check_kind(directory: &Directory, checkpoint: &mut Checkpoint, is_replica: bool) -> Result<()> {
    let refuse =
        |what: &str| Err(Error::NotADatabase { path: directory.path.clone(), what: what.to_owned() });
    // A database of a time before there were such.
    checkpoint.catalog.insert(TreeId::EXPIRY, IVec::from(EXPIRY_TREE_NAME));
    checkpoint.catalog.insert(TreeId::LOCK_QUEUES, IVec::from(LOCK_QUEUES_TREE_NAME));
    checkpoint.catalog.insert(TreeId::SEQUENCES, IVec::from(SEQUENCES_TREE_NAME));
    checkpoint.catalog.insert(TreeId::HASHES, IVec::from(HASHES_TREE_NAME));
    checkpoint.catalog.insert(TreeId::QUOTAS, IVec::from(QUOTAS_TREE_NAME));
    if !is_replica {
        if checkpoint.note.is_some() {
            return refuse("this is a replica of a node, whose log is elsewhere; open it with its node");
        }
        checkpoint.catalog.insert(TreeId::SESSIONS, IVec::from(SESSIONS_TREE_NAME));
        return Ok(());
    }
    if checkpoint.note.is_some() && !checkpoint.catalog.ids.contains_key(&TreeId::TRANSACTIONS) {
        // It was made before there were transactions over several groups.
        checkpoint.catalog.insert_of_replica();
    }
    if checkpoint.note.is_none() {
        let wal_path = directory.wal_path();
        let has_wal = directory
            .disk
            .exists(&wal_path)
            .map_err(|error| Error::io(format!("looking for {}", wal_path.display()), error))?;
        if has_wal || *checkpoint != Checkpoint::default() {
            return refuse("this is an embedded database, not a replica of a node; import its contents");
        }
        checkpoint.note = Some(Vec::new());
        checkpoint.catalog.insert_of_replica();
    }
    Ok(())
}

/// Leases are judged by the log's time alone.
#[derive(Debug)]
struct NoClock;

impl Clock for NoClock {
    fn now_ms(&self) -> u64 {
        0
    }
}

/// An open replica; see the [module](self). Dropping it closes it.
///
/// ```
/// use std::sync::Arc;
/// use dogsled_storage::codec::encode_group_command;
/// use dogsled_storage::disk::RealDisk;
/// use dogsled_storage::group::{GroupCommand, Operation};
/// use dogsled_storage::replica::{Replica, ReplicaOptions};
/// use dogsled_storage::wal::{Wal, WalOptions};
/// use dogsled_storage::{Command, TreeId};
///
/// # let directory = tempfile::tempdir().unwrap();
/// # let directory = directory.path();
/// let wal = Arc::new(Wal::open(Arc::new(RealDisk), WalOptions::new(directory.join("wal"), 42))?);
/// let options = ReplicaOptions::new(directory.join("groups/1"), 42);
/// let replica = Replica::open(options.clone(), Arc::clone(&wal))?;
///
/// let put = Command::Insert { tree: TreeId(0), key: "lead dog".into(), value: "Balto".into() };
/// let entry = GroupCommand {
///     session: None,
///     time_ms: 1_000,
///     trees: vec!["dogs".into()],
///     operation: Operation::Command(put),
/// };
/// let reply = replica.apply(1, Some(b"log id"), &encode_group_command(&entry)?)?;
/// assert!(reply.result.is_ok());
/// replica.checkpoint()?;
/// drop(replica);
///
/// let replica = Replica::open(options, wal)?;
/// assert_eq!((replica.applied().position, &replica.applied().note[..]), (1, &b"log id"[..]));
/// # Ok::<(), dogsled_storage::Error>(())
/// ```
#[derive(Debug)]
pub struct Replica {
    engine: Arc<Engine>,
}

impl Replica {
    /// Opens the replica in a directory, making one if there is none, in the state of its last
    /// checkpoint. What was left of a snapshot that was not installed is removed.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open(options: ReplicaOptions, wal: Arc<Wal>) -> Result<Arc<Replica>> {
        remove_stale(&*options.disk, &options.directory)?;
        let engine_options = Options {
            cache_capacity: options.cache_capacity,
            retain_changes_bytes: options.retain_changes_bytes,
            background_threads: options.background_threads,
            disk: options.disk,
            database_id: Some(options.database_id),
            clock: Arc::new(NoClock),
            ..Options::new(&options.directory)
        };
        let engine = Engine::open_with(engine_options, Some(wal))?;
        check_id(engine.shared.directory.database_id, options.database_id, &options.directory)?;
        engine.load_transactions()?;
        Ok(Arc::new(Replica { engine }))
    }

    /// Position of the last entry whose effects are visible, and the note.
    pub fn applied(&self) -> Applied {
        let committer = self.engine.shared.commit.lock();
        Applied { position: committer.sequence, note: committer.note.clone() }
    }

    /// What the last completed checkpoint recorded: a crash now goes back to no earlier position.
    pub fn durable_applied(&self) -> Applied {
        self.state().durable.lock().clone()
    }

    /// The log's time: the latest stamp of the entries applied.
    pub fn time_ms(&self) -> u64 {
        self.engine.shared.commit.lock().time_ms
    }

    /// Whether [`Replica::apply`] would wait for a checkpoint, which takes long: whoever must not be kept
    /// waiting calls [`Replica::wait_for_room`] elsewhere first.
    pub fn is_full(&self) -> bool {
        self.engine.shared.is_full()
    }

    /// Waits while memory is full.
    ///
    /// # Errors
    /// Those of the checkpoint that failed meanwhile.
    pub fn wait_for_room(&self) -> Result<()> {
        self.engine.shared.wait_for_room()
    }

    /// Applies one entry, an encoded [`GroupCommand`](crate::group::GroupCommand). `note` replaces
    /// the note; `None` keeps it.
    ///
    /// May wait for a checkpoint if memory is full.
    ///
    /// # Errors
    /// Only what the caller or the world is to blame for: a position out of order
    /// ([`Error::InvalidRequest`]), an entry of a newer version ([`Error::Corrupt`]), the disk. What
    /// the entry is refused for is in the reply.
    pub fn apply(&self, position: u64, note: Option<&[u8]>, entry: &[u8]) -> Result<GroupReply> {
        check_note(note)?;
        let shared = &*self.engine.shared;
        shared.check_open().inspect_err(|_| shared.lock_waiters.notify_all())?;
        shared.wait_for_room()?;
        let mut decoded = match decode_group_command(entry) {
            Ok(command) => Some(command),
            Err(error) => return self.refuse_malformed(position, note, entry, &error),
        };
        let mut resolved: Option<Resolved> = None;
        let mut prefetched: Option<Prefetched> = None;
        loop {
            let mut committer = shared.commit.lock();
            check_position(&committer, position)?;
            let state = shared.state.load();
            let view = LatestView {
                state: &state,
                sequence: committer.sequence,
                is_snapshot: false,
                next_id: committer.next_id,
                ends: &committer.ends,
                transactions: Some(&committer.transactions),
                found_end: None.into(),
                prefetched: prefetched.as_ref(),
                may_read_disk: prefetched.is_some(),
                needs_disk: false.into(),
                earliest_due: shared.due.keys(),
                has_quotas: shared.has_quotas.load(Ordering::Relaxed),
            };
            let resolved = resolved
                .get_or_insert_with(|| resolve(&view, decoded.take().expect("it is resolved only once")));
            let time_ms = committer.time_ms.max(resolved.command.time_ms);
            let context = Context { sequence: position, time_ms };
            let outcome = evaluate_resolved(&view, &context, resolved);
            // Also what looks like an outcome then: a refusal, because a key could not be read.
            if view.needs_disk.get() {
                let state = Arc::clone(&state);
                let to_resolve = to_resolve(&committer, resolved);
                drop(committer);
                let has_quotas = shared.has_quotas.load(Ordering::Relaxed);
                prefetched = Some(prefetch_entry(&state, has_quotas, resolved, to_resolve.as_deref())?);
                continue;
            }
            let outcome = outcome?;
            if let Some((tree, last, key)) = view.found_end.take() {
                committer.ends.found(tree, last, key);
            }
            let wakeups = shared.advance(&mut committer, &state, &context, note, &outcome.effects);
            drop(committer);
            if touches_locks(&outcome.effects) {
                shared.lock_waiters.effects_applied(&outcome.effects);
            }
            drop(wakeups);
            return Ok(outcome.reply);
        }
    }

    /// An entry without a command (a leader's first, a membership). The log's time stays.
    ///
    /// # Errors
    /// As [`Replica::apply`].
    pub fn skip(&self, position: u64, note: Option<&[u8]>) -> Result<()> {
        self.pass(position, note).map(drop)
    }

    /// Advances without effects; the log's time.
    fn pass(&self, position: u64, note: Option<&[u8]>) -> Result<u64> {
        check_note(note)?;
        let shared = &*self.engine.shared;
        shared.check_open()?;
        let mut committer = shared.commit.lock();
        check_position(&committer, position)?;
        let context = Context { sequence: position, time_ms: committer.time_ms };
        let state = shared.state.load();
        shared.advance(&mut committer, &state, &context, note, &[]);
        Ok(context.time_ms)
    }

    #[cold]
    fn refuse_malformed(
        &self,
        position: u64,
        note: Option<&[u8]>,
        entry: &[u8],
        error: &Error,
    ) -> Result<GroupReply> {
        if let Some(version) = entry.first().filter(|version| **version != GROUP_COMMAND_VERSION) {
            return Err(Error::corrupt(
                &self.engine.shared.directory.path,
                None,
                format!(
                    "the log's entry {position} has format version {version}, which this program does not read: \
                     it was written by a newer one, or is damaged"
                ),
            ));
        }
        let time_ms = self.pass(position, note)?;
        Ok(GroupReply { position, time_ms, result: Err(Refusal::Malformed(error.to_string())) })
    }

    /// The state as of now, for as long as it is held: to be sent to another replica.
    pub fn snapshot(&self) -> ReplicaSnapshot {
        let committer = self.engine.shared.commit.lock();
        ReplicaSnapshot::new(self.engine.snapshot(), &committer)
    }

    /// Makes the state durable as of now, or a little later, in [`Replica::durable_applied`].
    ///
    /// # Errors
    /// What stopped it. The replica has failed then: close it and open it again.
    pub fn checkpoint(&self) -> Result<()> {
        self.engine.checkpoint()
    }

    /// The engine below, for watches, figures and waiting for locks. It refuses to be written to.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// Stops the background. What was applied since the last checkpoint is to be applied again after
    /// opening; whoever wants to be quicker then calls [`Replica::checkpoint`] before.
    ///
    /// # Errors
    /// None so far.
    pub fn close(&self) -> Result<()> {
        self.engine.close()
    }

    pub(crate) fn state(&self) -> &ReplicaState {
        self.engine.shared.replica.as_ref().expect("a replica's engine is opened as one")
    }
}

impl Shared {
    /// Applies and publishes what an entry came to, and moves the position.
    fn advance(
        &self,
        committer: &mut Committer,
        state: &Arc<State>,
        context: &Context,
        note: Option<&[u8]>,
        effects: &[Effect],
    ) -> Option<Wakeups> {
        if let Some(note) = note {
            committer.note.clear();
            committer.note.extend_from_slice(note);
        }
        let replica = self.replica.as_ref().expect("only a replica advances");
        // Before the effects: whoever sees them goes by no earlier time.
        replica.time_ms.store(context.time_ms, Ordering::SeqCst);
        // Behind the row there is at most what a session remembers.
        if effects.iter().rev().take(2).any(touches_transactions) {
            // Before the rows are to be seen: see `PreparedCount`.
            replica.prepared.begin();
        }
        let wakeups = if effects.is_empty() {
            committer.sequence = context.sequence;
            committer.time_ms = context.time_ms;
            None
        } else {
            Some(self.publish(committer, state, context, effects))
        };
        for effect in effects {
            committer.removals.follow(context.sequence, effect);
            if touches_transactions(effect) {
                committer.transactions.follow(effect).expect("a row that was just made can be read");
                replica.prepared.set(committer.transactions.counts().0);
            }
        }
        replica.applied.store(context.sequence, Ordering::SeqCst);
        self.watchers.advanced(context.sequence);
        if replica.asleep.load(Ordering::SeqCst) && replica.asleep.swap(false, Ordering::SeqCst) {
            let _progress = self.progress.lock();
            self.progressed.notify_all();
        }
        wakeups
    }
}

fn touches_transactions(effect: &Effect) -> bool {
    matches!(
        effect,
        Effect::Put { tree: TreeId::TRANSACTIONS, .. } | Effect::Remove { tree: TreeId::TRANSACTIONS, .. }
    )
}

fn check_note(note: Option<&[u8]>) -> Result<()> {
    match note {
        Some(note) if note.len() > MAX_NOTE_LENGTH => Err(Error::InvalidRequest(format!(
            "a note of {} bytes is over the limit of {MAX_NOTE_LENGTH}",
            note.len()
        ))),
        _ => Ok(()),
    }
}

fn check_position(committer: &Committer, position: u64) -> Result<()> {
    if position != committer.sequence + 1 {
        return Err(Error::InvalidRequest(format!(
            "entry {position} cannot be applied behind entry {}",
            committer.sequence
        )));
    }
    Ok(())
}

/// The part that an entry resolves.
fn to_resolve(committer: &Committer, resolved: &Resolved) -> Option<Arc<Prepared>> {
    match &resolved.command.operation {
        Operation::Resolve { transaction, commit: true } => {
            committer.transactions.prepared(*transaction).cloned()
        }
        _ => None,
    }
}

/// Reads from the B-tree what an entry will look at first, without the commit mutex. What is not
/// foreseen here is read under it.
fn prefetch_entry(
    state: &Arc<State>,
    has_quotas: bool,
    resolved: &Resolved,
    to_resolve: Option<&Prepared>,
) -> Result<Prefetched> {
    let mut prefetched = match &resolved.command.operation {
        Operation::Command(command) | Operation::Fenced { command, .. } => {
            prefetch(state, has_quotas, command)?
        }
        Operation::Prepare(Prepare { part, .. }) | Operation::Commit(Commit { part, .. }) => {
            prefetch_part(state, has_quotas, &part.reads, &part.writes, &part.expiries)?
        }
        Operation::Resolve { .. } => {
            let part = to_resolve.map(|prepared| &prepared.part);
            let (writes, expiries) =
                part.map_or((&[][..], &[][..]), |part| (&part.writes[..], &part.expiries[..]));
            prefetch_part(state, has_quotas, &[], writes, expiries)?
        }
        _ => Prefetched::of(state),
    };
    if let Some(tag) = &resolved.command.session {
        for key in session::keys_of(tag) {
            prefetched.read(state, TreeId::SESSIONS, &key)?;
        }
    }
    Ok(prefetched)
}
