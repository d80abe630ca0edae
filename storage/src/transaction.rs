//! Transactions over several groups: two-phase commit whose participants and whose decision are
//! replicated, so that no single crash blocks it.
//!
//! # Promise
//!
//! A transaction happens in all of its groups or in none, at one moment: that of the decision. It is
//! serializable, and strict: whatever begins after somebody was told the decision sees it.
//!
//! # How
//!
//! ```text
//! coordinator ── Prepare ─► each participant    validate what was read, lock what was read and written
//!             ── Commit ──► home                validate, decide, and apply home's own writes: one entry
//!             ── Resolve ─► each participant    apply the writes (or not), release the locks
//!             ── Forget ──► home                nobody will ask any more
//! ```
//!
//! The *home* is one of the groups that the transaction touches; the *participants* are the others.
//! Home needs no locks: its part is validated and applied in the entry that decides, when all that was
//! read elsewhere is locked. That entry is the commit point. So the caller waits for two entries one
//! after the other, and a transaction of one group is no business of this module: it is a
//! [`Command::Transact`](crate::Command::Transact).
//!
//! | operation | answer |
//! |---|---|
//! | [`Prepare`] | [`Vote::Yes`] and the part is kept with its locks; anything else, and nothing is kept |
//! | the same with [`Prepare::only_lock`] | [`Vote::Yes`], whatever is there |
//! | [`Commit`] | [`Decision`]: committed, and recorded so; or aborted |
//! | [`Settle`](crate::Operation::Settle) | the decision; if there is none, that is now an abort |
//! | [`Resolve`](crate::Operation::Resolve) | done; also if there is nothing (any more) to resolve |
//! | [`Forget`](crate::Operation::Forget) | done |
//!
//! # Locks
//!
//! A prepared part locks what it writes for itself, and what it read (keys and ranges) against being
//! written. Until it is resolved,
//!
//! - a command, a session that ends, whatever is in the log: nothing reads a key that is locked for
//!   writing, or writes one that is locked at all. What would, has no effect and is answered
//!   [`Refusal::Locked`](crate::Refusal::Locked); it is repeated when the lock is gone. This is checked
//!   on what was looked up and on the effects that came of it, not on commands, so
//!   it holds for every command that there is or will be (`guard.rs`);
//! - a linearizable read of a key that is locked for writing waits. Between the decision and Resolve the
//!   old value is still there, and to return it would break the strictness;
//! - another Prepare or Commit that meets a lock is answered [`Vote::Locked`] and does not wait.
//!
//! # Looking while others write
//!
//! Whoever only reads validates in the end, without a lock, that nothing has changed: beside writers who never
//! rest something always has. So after some vain attempts a reader *keeps the writers off while it
//! looks*: with [`Prepare::only_lock`] it has all that it is going to read locked against being written, in all
//! groups, whatever is there now. That is never refused. Who is prepared to write there already ends as if the reader were not
//! there, and the reads wait for that, as all reads do; but nobody comes after them. So the reader waits for
//! those who were before it and for nobody else, and gets through. Then it has its locks given back. It
//! decides on nothing and has nothing to commit. Its home is one of the groups, where it can only be settled: as
//! aborted.
//!
//! That what it has read was so at one moment does not hang on the locks being kept. In each group it looks, after
//! all reading, whether **at that position of the log it is still prepared, and all is as it was read**
//! ([`GroupRead::Validate`](crate::GroupRead::Validate) with `under`). Let T be a moment after the last read and
//! before the first of these looks. In each group,
//!
//! - the reader is prepared at the look. It is prepared once and resolved once, never again after that, so it has
//!   been prepared since before the read, and at T;
//! - at the read nobody else was prepared to write what was read, because a read waits for those; and while the reader is
//!   prepared nobody becomes so, and no command writes it. So from the read to the look it was not written, also
//!   not something that came and went; and none had decided at T whose writes are not there yet;
//! - what expires by time alone is gone for good: what is there at the read and at the look was there at T, and what
//!   is not there at the read was not there at T.
//!
//! So all that was read is what was there at T, which is while the transaction runs: it is strict. If locks were
//! lost, because their lease was over, the look says so, and what was read counts for nothing.
//!
//! **Everything.** A part that is only to be locked and names nothing locks the whole group: all trees, those that are
//! not there yet, too. What belongs to sessions and locks alone goes on. That is how a state of all groups
//! at one moment is *pinned*, for a backup: see [`crate::pin`].
//!
//! # No deadlock
//!
//! There are three kinds:
//!
//! - who *wants to write* and holds locks never waits for one: the coordinator whose Prepare or Commit meets a lock
//!   aborts, gives back what it holds, and begins anew after a random pause;
//! - who *only looks* holds locks while its reads wait for others. Those are of the first kind: two that look share what
//!   both of them lock;
//! - *commands and reads* wait for both, and hold nothing.
//!
//! Each waits only for kinds that stand before its own in this list, so no circle of waiting can close. That two who
//! write do not refuse each other for ever is the [coordinator's](coordinator) part.
//!
//! # Coordinators that are gone
//!
//! A participant's locks have a lease, by its log's time. Whoever meets a lock after that, or the
//! participant's leader who looks for such now and then, asks home to *settle*. Home answers with the
//! decision, or records an abort, and the asker resolves the part accordingly. **Safety does not hang on
//! any clock**: settling early aborts a transaction that might have been committed, and nothing worse,
//! because the decision is home's, and is made once.
//!
//! # What makes late messages harmless
//!
//! - *A Prepare or Commit happens at most once*: they are carried out only as numbered commands of a
//!   [session](crate::session). A copy that comes late gets the remembered answer, or is refused.
//!   So no part is prepared again after it was resolved, and no part of home applied twice.
//! - *A Prepare that comes first after its transaction was given up* locks in vain until its lease ends,
//!   and home, asked, says that it was aborted: nobody commits without having heard of that Prepare.
//! - *A Commit that comes after an abort was settled* finds the record of that abort. The record is kept
//!   until `decide_by_ms`, which is part of the Commit and of every Prepare, and is judged by home's log's
//!   time alone: a Commit that comes later is refused for being late. So an abort need be remembered only
//!   until then, and after it is presumed where there is no record.
//! - *A commit is remembered until every participant has resolved*, which the coordinator says with
//!   Forget. If it does not, home's leader has them resolve, some time after `decide_by_ms`
//!   ([`KEEP_DECISION_MS`]). Whoever asks to settle for a lock that it met asks while that lock is there,
//!   or its answer no longer matters: resolving what is not prepared does nothing.
//!
//! # Layout
//!
//! In [`TreeId::TRANSACTIONS`](crate::TreeId::TRANSACTIONS); it travels in checkpoints and snapshots as all
//! trees do. Numbers in keys are big-endian:
//!
//! | key | value |
//! |---|---|
//! | 1, transaction (16) | a prepared part; see `codec` |
//! | 2, transaction (16) | a decision |
//!
//! The locks are not stored: [`Transactions`] holds them in memory, is derived from these rows when a
//! replica is opened, and follows the effects from then on.
//!
//! # What is not here
//!
//! Waiting, asking, repeating: the node and the client do that. Here is what each entry means, and, in
//! [`coordinator`], what the coordinator does next.

pub mod coordinator;
mod evaluate;
mod guard;
mod index;
mod removals;

use bincode::{Decode, Encode};

use crate::IVec;
use crate::command::{KeyRead, RangeFingerprint, RangeRead, TreeId, Write};
use crate::expiry::{ExpiryCommand, record_key};

pub(crate) use evaluate::{commit, forget, prepare, resolve, settle};
pub(crate) use guard::Guarded;
pub use index::Transactions;
pub(crate) use removals::Removals;

/// The longest lease of a prepared part, and the longest that a decision may be off.
pub const MAX_LEASE_MS: u64 = 60_000;

/// How far off the time until which a transaction may be decided can be, in milliseconds, where it is prepared. It is of
/// the log of another group, whose clock may be ahead of this one's. An abort that is recorded stays until then, so there
/// has to be a limit; whoever settles grants twice as much, so that what was prepared can be settled.
pub const MAX_AHEAD_MS: u64 = 24 * 60 * 60 * 1000;
/// A decision that nobody has said to forget is kept for so long after its `decide_by_ms`, so that a client
/// that has not heard it can ask.
pub const KEEP_DECISION_MS: u64 = 60_000;
/// The most transactions that one [`Forget`](crate::Operation::Forget) names.
pub const MAX_FORGET: usize = 1024;

/// A transaction: a number that its coordinator draws at random, and never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct TransactionId(pub u128);

impl std::fmt::Display for TransactionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// What a transaction has read and wants to write in one group. Within a
/// [`GroupCommand`](crate::GroupCommand) its `TreeId(i)` mean `trees[i]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Encode)]
pub struct Part {
    /// Keys that were read.
    pub reads: Vec<KeyRead>,
    /// Ranges that were read.
    pub ranges: Vec<RangeRead>,
    /// What to write; a later write to a key overrules an earlier one.
    pub writes: Vec<Write>,
    /// As in [`Command::Transact`](crate::Command::Transact).
    pub expiries: Vec<ExpiryCommand>,
}

impl Part {
    /// The keys that it writes, or whose time to live it changes, and the locks that it does something to.
    pub(crate) fn written(&self) -> impl Iterator<Item = (TreeId, &IVec)> {
        let writes = self.writes.iter().map(|write| (write.tree, &write.key));
        // Whoever asks that a lock is held has read it; and so it is with a time to live.
        let expiries = self.expiries.iter().filter(|expiry| !expiry.only_asks());
        writes.chain(expiries.map(|expiry| (expiry.tree(), expiry.key())))
    }

    /// What it has read, and locks against being written: keys, and the records of times to live.
    pub(crate) fn read(&self) -> impl Iterator<Item = (TreeId, IVec)> {
        let keys = self.reads.iter().map(|read| (read.tree, read.key.clone()));
        keys.chain(self.expiries.iter().filter_map(|expiry| match expiry {
            ExpiryCommand::Lives { tree, key, .. } => Some((TreeId::EXPIRY, record_key(*tree, key))),
            _ => None,
        }))
    }

    /// Whether it changes nothing.
    pub fn only_reads(&self) -> bool {
        self.writes.is_empty() && self.expiries.iter().all(ExpiryCommand::only_asks)
    }

    /// Whether it neither reads nor changes anything.
    pub fn is_empty(&self) -> bool {
        self.only_reads() && self.reads.is_empty() && self.ranges.is_empty()
    }

    /// What is kept of one that locks everything: a range that no command can name.
    pub(crate) fn of_everything() -> Part {
        let everything = RangeRead {
            tree: TreeId::TRANSACTIONS,
            low: IVec::new(),
            high: None,
            count: 0,
            fingerprint: RangeFingerprint::default().finish(),
        };
        Part { ranges: vec![everything], ..Part::default() }
    }

    /// Whether it is [that](Part::of_everything).
    pub(crate) fn locks_everything(&self) -> bool {
        self.ranges.first().is_some_and(|range| range.tree == TreeId::TRANSACTIONS)
    }
}

/// Asks a participant to validate, lock and keep its part. Answer: [`Vote`].
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Prepare {
    /// Of which transaction.
    pub transaction: TransactionId,
    /// The group that decides.
    pub home: u32,
    /// Not committed once home's log has this time.
    pub decide_by_ms: u64,
    /// How long, by the participant's log, before whoever meets the locks asks home.
    pub lease_ms: u64,
    /// Locks what the part names as read against being written from now on, whatever is there and whoever is
    /// prepared to write it already. The part must write nothing, and the transaction is never committed. If it
    /// names nothing at all, everything is locked.
    pub only_lock: bool,
    /// The participant's part.
    pub part: Part,
}

/// Asks home to decide, and to apply its own part. Answer: [`Decision`].
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct Commit {
    /// Which transaction.
    pub transaction: TransactionId,
    /// Too late once home's log has this time.
    pub decide_by_ms: u64,
    /// Those that have voted yes.
    pub participants: Vec<u32>,
    /// Home's part.
    pub part: Part,
}

/// A transaction whose lock stands in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct LockedBy {
    /// Which.
    pub transaction: TransactionId,
    /// The group that decides on it.
    pub home: u32,
    /// As in [`Prepare`].
    pub decide_by_ms: u64,
    /// From this time of the log on, whoever meets the lock asks home.
    pub expires_ms: u64,
}

impl std::fmt::Display for LockedBy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a key is locked by transaction {}, on which group {} decides", self.transaction, self.home)
    }
}

/// What a participant says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Vote {
    /// The part is prepared: locked, and kept until it is resolved.
    Yes,
    /// Something that was read has changed; nothing is kept.
    Conflict,
    /// Another transaction holds a lock; nothing is kept.
    Locked(LockedBy),
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Decision {
    /// It has happened.
    Committed,
    /// It has not, and will not.
    Aborted(Reason),
}

/// Why a transaction was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub enum Reason {
    /// Something that was read at home has changed.
    Conflict,
    /// Another transaction holds a lock at home.
    Locked(LockedBy),
    /// The time to decide was over.
    TooLate,
    /// Somebody who met its locks had it aborted.
    Settled,
    /// There is no record, and the time to decide is over: it was never committed, or that is forgotten.
    Presumed,
}

/// A part that is prepared, with trees by their numbers.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub(crate) struct Prepared {
    pub(crate) home: u32,
    pub(crate) decide_by_ms: u64,
    pub(crate) expires_ms: u64,
    /// The log's time when it was; `u64::MAX` of one that only locks.
    pub(crate) prepared_ms: u64,
    pub(crate) part: Part,
}

/// A decision that is remembered.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Decided {
    /// Whether it was committed.
    pub committed: bool,
    /// As in [`Commit`].
    pub decide_by_ms: u64,
    /// Who has, or had, to resolve.
    pub participants: Vec<u32>,
}

const PREPARED: u8 = 1;
const DECISION: u8 = 2;

fn key(kind: u8, transaction: TransactionId) -> IVec {
    let mut key = [kind; 17];
    key[1..].copy_from_slice(&transaction.0.to_be_bytes());
    IVec::from(key)
}
