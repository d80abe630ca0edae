//! [`GroupCommand`]: what an entry of a group's log asks for, and [`GroupReply`]: what came of it;
//! [`GroupRead`]: what is asked of a replica without an entry.
//!
//! A group is a set of [replicas](crate::replica) that apply the same log. Its entries carry a
//! [`Command`] with what a command alone does not have:
//!
//! - **The time.** Whoever leads stamps it; it is the only clock that leases know, so all replicas
//!   agree on what has expired at each position.
//! - **The trees by name.** Numbers of trees differ between groups, so `TreeId(i)` within the
//!   command is an index into [`GroupCommand::trees`], resolved where the entry is applied. A tree
//!   that is not there is made by the first write into it; to everything else it is empty.
//! - **The session**, which makes a retried command happen once; see [`crate::session`].
//!
//! The bytes are described and decoded in [`crate::codec`]. A change of the types here, be it a new
//! variant at the end, is a new format version: replicas of two releases must never differ in what
//! they make of one entry.

use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::command::{Command, KeyRead, RangeRead, Reply};
use crate::evaluate::{Entry, Versioned};
use crate::fence::Fence;
use crate::lock::{FencingToken, Holder, LockReply, Permit};
use crate::open_sessions::OpenSession;
use crate::quota::{QuotaExceeded, TreeQuota};
use crate::strings::{StringsOperation, StringsReplies, StringsReply};
use crate::transaction::{Commit, Decision, LockedBy, Prepare, TransactionId, Vote};
use crate::{Error, IVec, Result};

/// The most trees that one command may name.
pub const MAX_GROUP_TREES: usize = 1024;
/// The most keys that one [`GroupRead::GetMany`] may ask for.
pub const MAX_READ_KEYS: usize = 64 << 10;
/// The most bytes of keys and values that the answer of a read carries, unless a single entry is
/// larger.
pub const MAX_PAGE_BYTES: u64 = 16 << 20;

/// A session: a number that whoever opens it draws at random, and never uses twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct SessionId(pub u128);

impl std::fmt::Display for SessionId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// The place of a command within its session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct SessionTag {
    /// Which session.
    pub session: SessionId,
    /// Of several commands under way, each is in another slot.
    pub slot: u16,
    /// Numbers the commands of the slot, upwards. Retries of a command keep slot and number. The
    /// first with a larger number says that the client has heard of those before, or given them up.
    pub sequence: u64,
}

/// An entry of a group's log; see the [module](self).
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub struct GroupCommand {
    /// Makes a retry safe; `None`: the command happens as often as it is in the log.
    pub session: Option<SessionTag>,
    /// The leader's time in milliseconds since 1970. The log's time is the latest stamp so far.
    pub time_ms: u64,
    /// Names of the trees that the operation refers to by index.
    pub trees: Vec<IVec>,
    /// What to do.
    pub operation: Operation,
}

/// What a [`GroupCommand`] does.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub enum Operation {
    /// Nothing, but the log's time moves. Answer: [`Answer::Done`].
    Nothing,
    /// A command whose `TreeId(i)` mean `trees[i]`. Answer: [`Answer::Reply`].
    Command(Command),
    /// Opens a session, or renews it with another lease. Answer: [`Answer::Session`].
    OpenSession {
        /// Drawn at random by whoever opens it.
        session: SessionId,
        /// How long it lives without renewal, in milliseconds of the log's time.
        lease_ms: u64,
    },
    /// Starts a session's lease anew. Answer: [`Answer::Session`].
    RenewSession {
        /// Which.
        session: SessionId,
    },
    /// Forgets a session. Answer: [`Answer::Done`], also if there is none.
    CloseSession {
        /// Which.
        session: SessionId,
    },
    /// Ends sessions whose lease is over, a bounded number. Answer: [`Answer::SessionsExpired`].
    ExpireSessions {
        /// For how long, by its own monotonic clock, whoever proposes this has led the group: no
        /// session with a longer lease is ended. So a new leader gives every lease its full time.
        led_ms: u64,
    },
    /// A command as in [`Operation::Command`], carried out only while locks are held under these tokens.
    /// Otherwise [`Refusal::LockNotHeld`].
    Fenced {
        /// All of them must hold; see [`crate::fence`].
        fences: Vec<Fence>,
        /// What to do.
        command: Command,
    },
    /// A participant's part of a transaction; as a numbered command of a session only. Answer:
    /// [`Answer::Vote`].
    Prepare(Prepare),
    /// Decides on a transaction; as a numbered command of a session only. Answer: [`Answer::Decided`].
    Commit(Commit),
    /// What was decided on a transaction? If nothing, it is aborted now. Answer: [`Answer::Decided`].
    Settle {
        /// Which transaction.
        transaction: TransactionId,
        /// As in its [`Prepare`].
        decide_by_ms: u64,
    },
    /// Ends what is prepared of a transaction, as it was decided. Answer: [`Answer::Done`], also if
    /// nothing is.
    Resolve {
        /// Which transaction.
        transaction: TransactionId,
        /// Whether it was committed.
        commit: bool,
    },
    /// Nobody will ask for these decisions any more: all participants have resolved them. Answer:
    /// [`Answer::Done`].
    Forget {
        /// Which, at most [`MAX_FORGET`](crate::transaction::MAX_FORGET).
        transactions: Vec<TransactionId>,
    },
}

impl GroupReadReply {
    /// Whether [`set_time`](GroupReadReply::set_time) may change anything.
    pub fn tells_time(&self) -> bool {
        match self {
            GroupReadReply::Ticket { .. }
            | GroupReadReply::Expires { .. }
            | GroupReadReply::Sessions { .. }
            | GroupReadReply::LockHolder(_)
            | GroupReadReply::LockHolders { .. } => true,
            GroupReadReply::Strings(replies) => replies.0.iter().any(StringsReply::tells_time),
            _ => false,
        }
    }

    /// Puts a later time of the log into an answer that tells it: that of an entry which would be made
    /// now. In a group in which nobody writes the log's time stands still.
    pub fn set_time(&mut self, time_ms: u64) {
        match self {
            GroupReadReply::Ticket { now_ms, .. }
            | GroupReadReply::Expires { now_ms, .. }
            | GroupReadReply::Sessions { now_ms, .. } => {
                *now_ms = time_ms.max(*now_ms);
            }
            GroupReadReply::Strings(replies) => {
                replies.0.iter_mut().for_each(|reply| reply.set_time(time_ms))
            }
            // Whoever holds a lock whose lease is over by then holds it no more, though no entry says so yet.
            GroupReadReply::LockHolder(holder) => {
                holder.take_if(|holder| holder.expires_ms <= time_ms);
            }
            GroupReadReply::LockHolders { holders, .. } => {
                holders.retain(|permit| !permit.has_ended(time_ms));
            }
            _ => {}
        }
    }

    /// Puts into an answer that tells of leases for how long whoever answers leads.
    pub fn set_led(&mut self, ms: u64) {
        if let GroupReadReply::Sessions { led_ms, .. } = self {
            *led_ms = ms;
        }
    }
}

impl Operation {
    /// The command that it carries.
    pub fn command(&self) -> Option<&Command> {
        match self {
            Operation::Command(command) | Operation::Fenced { command, .. } => Some(command),
            _ => None,
        }
    }

    pub(crate) fn fences(&self) -> &[Fence] {
        match self {
            Operation::Fenced { fences, .. } => fences,
            _ => &[],
        }
    }
}

/// What came of a [`GroupCommand`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GroupReply {
    /// Position in the log at which it was carried out; of a retry, that of the first time.
    pub position: u64,
    /// The log's time there.
    pub time_ms: u64,
    /// What it came to. After a refusal nothing was changed, but for what the session remembers.
    pub result: Result<Answer, Refusal>,
}

/// What came of an [`Operation`] that was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// It is done.
    Done,
    /// The command's.
    Reply(Reply),
    /// The session is alive.
    Session {
        /// The log's time at which it ends unless renewed.
        expires_ms: u64,
    },
    /// Sessions were forgotten.
    SessionsExpired {
        /// How many.
        sessions: u64,
        /// Whether there is more to forget: ask again.
        more: bool,
    },
    /// Whether a part is prepared.
    Vote(Vote),
    /// What was decided on a transaction.
    Decided(Decision),
}

/// Why an [`Operation`] was not carried out, grouped by what the caller can do. Every replica
/// refuses alike.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub enum Refusal {
    /// The request cannot be carried out as it stands; change it.
    Invalid(String),
    /// It is over a limit; split it.
    TooLarge(String),
    /// There is no such tree, and the command does not make one.
    TreeNotFound(IVec),
    /// The session was never opened here, or its lease has ended: open a new one. If this was a
    /// retry, whether the command has happened is not known.
    SessionUnknown(SessionId),
    /// A later command of the same slot has been carried out: the client had given this one up.
    Forgotten {
        /// The number of the latest.
        latest: u64,
    },
    /// The entry's bytes are not a command.
    Malformed(String),
    /// The command demanded that a lock be held under a token, and it is not. Stop what is done under
    /// the lock.
    LockNotHeld {
        /// The lock.
        lock: IVec,
        /// The token that was presented.
        token: FencingToken,
        /// The largest token of those who hold it now.
        current: Option<FencingToken>,
    },
    /// What it reads or writes is locked by a transaction. The session does not remember this answer:
    /// repeat it under the same number when the lock is gone.
    Locked(LockedBy),
    /// It names a tree by a name under which it does not live here: what the caller knows of the tree is
    /// old; see [`crate::seal`].
    TreeSealed(IVec),
    /// A tree would be larger than its quota allows in this group: remove something from it, or raise the quota.
    QuotaExceeded(QuotaExceeded),
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Refusal::Invalid(what) | Refusal::TooLarge(what) => write!(f, "invalid request: {what}"),
            Refusal::TreeNotFound(name) => write!(f, "there is no tree \"{}\"", name.escape_ascii()),
            Refusal::SessionUnknown(session) => write!(f, "session {session} is not open, or has expired"),
            Refusal::Forgotten { latest } => {
                write!(f, "the session's client had given it up: command {latest} of its slot came before it")
            }
            Refusal::Malformed(what) => write!(f, "the entry is not a command: {what}"),
            Refusal::LockNotHeld { lock, token, current } => crate::fence::explain(f, lock, *token, *current),
            Refusal::Locked(lock) => write!(f, "{lock}"),
            Refusal::TreeSealed(name) => write!(f, "{}", Error::TreeSealed(name.clone())),
            Refusal::QuotaExceeded(exceeded) => write!(f, "{exceeded}"),
        }
    }
}

impl std::error::Error for Refusal {}

impl Refusal {
    /// The refusal that an error of the request is; an error of the world stays one.
    ///
    /// # Errors
    /// Damage, I/O, a poisoned database: whoever meets them must stop, not answer.
    pub fn of(error: Error) -> Result<Refusal> {
        match error {
            Error::InvalidRequest(what) => Ok(Refusal::Invalid(what)),
            Error::TreeNotFound(name) => Ok(Refusal::TreeNotFound(name)),
            Error::TreeSealed(name) => Ok(Refusal::TreeSealed(name)),
            Error::QuotaExceeded(exceeded) => Ok(Refusal::QuotaExceeded(exceeded)),
            Error::LockNotHeld { lock, token, current } => Ok(Refusal::LockNotHeld { lock, token, current }),
            world => Err(world),
        }
    }
}

/// What is asked of one replica's newest state.
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub enum GroupRead {
    /// The value of a key. Reply: [`GroupReadReply::Value`].
    Get {
        /// The tree's name; one that is not there is empty.
        tree: IVec,
        /// Which key.
        key: IVec,
    },
    /// The values of keys as of one position. Reply: [`GroupReadReply::Values`].
    GetMany {
        /// The tree's name.
        tree: IVec,
        /// At most [`MAX_READ_KEYS`].
        keys: Vec<IVec>,
    },
    /// A page of a range. Reply: [`GroupReadReply::Page`].
    Range {
        /// The tree's name.
        tree: IVec,
        /// Where it begins.
        low: Bound<IVec>,
        /// Where it ends.
        high: Bound<IVec>,
        /// Whether from the end to the beginning.
        reverse: bool,
        /// The most entries of the page; 0 counts as 1.
        limit: u32,
        /// The page ends with the entry that reaches so many bytes, or [`MAX_PAGE_BYTES`].
        limit_bytes: u64,
        /// Whether values are wanted, not only keys and versions.
        values: bool,
    },
    /// How many keys a tree has. Reply: [`GroupReadReply::Length`].
    Len {
        /// The tree's name.
        tree: IVec,
    },
    /// What a counter stands at. Reply: [`GroupReadReply::Counter`].
    Counter {
        /// Its name.
        name: IVec,
    },
    /// Who holds a lock. Reply: [`GroupReadReply::LockHolder`].
    LockHolder {
        /// Its name.
        name: IVec,
    },
    /// The names of the trees. Reply: [`GroupReadReply::Trees`].
    Trees,
    /// When the first session ends: nothing is to be expired before. Reply:
    /// [`GroupReadReply::Time`].
    EarliestSessionExpiry,
    /// What has become of somebody who waits for a lock. Reply: [`GroupReadReply::Ticket`].
    Ticket {
        /// The lock's name.
        name: IVec,
        /// The number under which it waits.
        ticket: u64,
    },
    /// When a key expires. Reply: [`GroupReadReply::Expires`].
    Expires {
        /// The tree's name.
        tree: IVec,
        /// Which key.
        key: IVec,
    },
    /// Whether all that was read is still so. Reply: [`GroupReadReply::Valid`].
    Validate {
        /// Names of the trees that the reads refer to by index.
        trees: Vec<IVec>,
        /// Keys that were read.
        reads: Vec<KeyRead>,
        /// Ranges that were read.
        ranges: Vec<RangeRead>,
        /// If given, the position at which the first of them was read: then nothing that was absent may have come
        /// and gone again since, either.
        since: Option<u64>,
        /// If given, this transaction must still be prepared here, too: then nothing that it has locked was written
        /// since.
        under: Option<TransactionId>,
    },
    /// What is known of transactions over several groups. Reply: [`GroupReadReply::Transactions`].
    Transactions,
    /// Operations on strings and hashes that only read. Reply: [`GroupReadReply::Strings`].
    Strings {
        /// Names of the trees that the operations refer to by index.
        trees: Vec<IVec>,
        /// At most [`MAX_READ_KEYS`].
        operations: Vec<StringsOperation>,
    },
    /// All who hold a lock. Reply: [`GroupReadReply::LockHolders`].
    LockHolders {
        /// Its name.
        name: IVec,
    },
    /// The sessions that are open, a page of them. Reply: [`GroupReadReply::Sessions`].
    Sessions {
        /// Those with larger numbers; `None`: from the first.
        after: Option<SessionId>,
        /// The most sessions of the page, within [`MAX_SESSIONS`](crate::open_sessions::MAX_SESSIONS); 0 counts as 1.
        limit: u32,
    },
    /// The trees that have quotas. Reply: [`GroupReadReply::Quotas`].
    Quotas,
    /// The number that the next key of a prefix gets. Reply: [`GroupReadReply::NextNumber`].
    NextNumber {
        /// Where.
        tree: IVec,
        /// What the keys begin with.
        prefix: IVec,
    },
    /// The versions of keys and of what kind their values are, as of one position, without the values. Reply:
    /// [`GroupReadReply::Values`]: of a [hash](crate::hashes) its head, of everything else an empty value.
    GetKinds {
        /// The tree's name.
        tree: IVec,
        /// At most [`MAX_READ_KEYS`].
        keys: Vec<IVec>,
    },
}

/// The answer to a [`GroupRead`].
#[derive(Clone, Debug, PartialEq, Eq, Encode)]
pub enum GroupReadReply {
    /// A key's value and version.
    Value(Option<Versioned>),
    /// The same of each key that was asked for.
    Values(Vec<Option<Versioned>>),
    /// Entries in the order that was asked for.
    Page {
        /// With empty values if none were wanted.
        entries: Vec<Entry>,
        /// Whether the range goes on behind the last entry.
        more: bool,
    },
    /// A number of keys.
    Length(u64),
    /// `None`: there is no such counter, which counts as 0.
    Counter(Option<i64>),
    /// Whoever holds it at the log's time.
    LockHolder(Option<Holder>),
    /// Sorted; the database's own only if they hold something, and never that of the sessions.
    Trees(Vec<IVec>),
    /// A time of the log in milliseconds; `None`: never.
    Time(Option<u64>),
    /// [`LockReply::Waiting`], [`LockReply::Acquired`] or, if the ticket is over,
    /// [`LockReply::NotHeld`].
    Ticket {
        /// What has become of it.
        reply: LockReply,
        /// The log's time.
        now_ms: u64,
    },
    /// When a key expires.
    Expires {
        /// `None`: there is no such key; else when it expires, `None`: never.
        at_ms: Option<Option<u64>>,
        /// The log's time.
        now_ms: u64,
    },
    /// Whether what was read is valid.
    Valid(bool),
    /// How much is known of transactions.
    Transactions {
        /// Parts that are prepared and wait to be resolved.
        prepared: u64,
        /// Decisions that are remembered.
        decided: u64,
    },
    /// In the order in which they were asked for.
    Strings(StringsReplies),
    /// Whoever holds it at the log's time, in the order of the grants.
    LockHolders {
        /// How many permits there are; 0: the lock is free, and nobody waits.
        capacity: u32,
        /// The grants.
        holders: Vec<Permit>,
    },
    /// Sessions in the order of their numbers.
    Sessions {
        /// Those that have not ended.
        sessions: Vec<OpenSession>,
        /// Whether there are more.
        more: bool,
        /// The log's time.
        now_ms: u64,
        /// For how long whoever answers has led the group, by its own clock; `u64::MAX`: it does not lead.
        led_ms: u64,
    },
    /// In the order of the trees' numbers.
    Quotas(Vec<TreeQuota>),
    /// A number that no key of the prefix has had.
    NextNumber(u64),
}
