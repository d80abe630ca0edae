//! Locks with leases and fencing tokens, as commands.
//!
//! Promise: at every position of the log a lock has at most one holder, and each grant carries a
//! [`FencingToken`] that is strictly larger than that of every earlier grant of the same lock,
//! across releases, expiries and reopens.
//!
//! **What a lease can and cannot do.** A holder that is paused longer than its lease (by the
//! scheduler, a debugger, a suspended laptop) goes on believing that it holds the lock. No lock
//! service can prevent that; the token is the remedy. Send it along with everything that is done
//! under the lock, and let whatever is written to refuse a token smaller than the largest it saw.
//!
//! **Time** is the log's time in [`Context`] and nothing else: a lease ends at the first command
//! whose time is at or after `expires_ms`. No clock is read here, so all replicas agree on who
//! held a lock at each position. A lock whose lease has ended is free to the next acquirer at
//! once; [`LockCommand::Expire`] removes it earlier, so that whoever waits is woken.
//!
//! | command | the lock is | reply |
//! |---|---|---|
//! | [`LockCommand::TryAcquire`] | free, or its lease has ended | [`LockReply::Acquired`] |
//! | | held, be it by the same owner | [`LockReply::Held`] |
//! | [`LockCommand::Renew`] | held by this owner with this token | [`LockReply::Renewed`] |
//! | | anything else, also if the lease has ended and nobody came | [`LockReply::NotHeld`] |
//! | [`LockCommand::Release`] | held by this owner with this token | [`LockReply::Released`] |
//! | | the same, but its lease has ended | removed, and [`LockReply::NotHeld`] |
//! | | anything else | [`LockReply::NotHeld`] |
//! | [`LockCommand::Expire`] | there, and its lease has ended | [`LockReply::Expired`] |
//! | | held | [`LockReply::Held`] |
//! | | free | [`LockReply::NotHeld`] |
//!
//! **Re-entry is refused.** An owner that asks for a lock it holds is told [`LockReply::Held`]
//! with itself as holder: counting re-entries would leave "who releases last" to chance after a
//! retry. The reply names owner, token and expiry, so an owner that never heard the answer to its
//! first request learns of its grant this way.
//!
//! **Tokens** are positions in the log: a grant's token is the sequence of the commit that made
//! it. Positions only grow, so a lock needs no record once it is released, and names that were
//! locked once cost nothing afterwards.
//!
//! **Inside a transaction** the position is not known before the commit. Evaluate with
//! [`PENDING_SEQUENCE`]: the record then says "the commit that wrote me", which every later reader
//! resolves to the version of the record. The transaction's own view must give version 0 to
//! what the transaction itself has written; until the commit the token reads as
//! [`FencingToken::PENDING`].
//!
//! # Layout
//!
//! In [`TreeId::LOCKS`], key = the lock's name; no record: the lock is free. The value:
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | record version, 1; another one is refused with a clear error, never guessed at |
//! | varint, bytes | the owner: its length, its bytes |
//! | varint | the token; 0: the version (sequence) of this record is the token |
//! | varint | `expires_ms`, the log's time at which the lease ends |
//!
//! Varints are bincode's; see [`crate::codec`]. Queues of waiters, read locks, semaphores and
//! delays after an unclean end need more state than this and get record version 2; a lock keeps
//! its version until the next grant rewrites it.
//!
//! Not here: waiting ([`crate::lock_wait`]), renewing in the background, sessions.
//!
//! ```
//! use dogsled_storage::lock::{self, LockCommand, LockReply};
//! use dogsled_storage::model::ModelState;
//! use dogsled_storage::{Command, Reply};
//!
//! let mut state = ModelState::new();
//! let acquire = |owner: &str| {
//!     let (name, owner) = ("printer".into(), owner.into());
//!     Command::Lock(LockCommand::TryAcquire { name, owner, lease_ms: 500 })
//! };
//! // At time 1,000 the lock is free.
//! let Reply::Lock(LockReply::Acquired { token, expires_ms }) = state.execute(1_000, &acquire("ann"))?
//! else { panic!() };
//! assert_eq!(expires_ms, 1_500);
//! // At 1,400 it is held, at 1,500 the lease has ended, and the next token is larger.
//! assert!(matches!(state.execute(1_400, &acquire("ben"))?, Reply::Lock(LockReply::Held { .. })));
//! let Reply::Lock(LockReply::Acquired { token: next, .. }) = state.execute(1_500, &acquire("ben"))?
//! else { panic!() };
//! assert!(next > token);
//! assert_eq!(lock::holder(&state, 1_600, b"printer")?.unwrap().owner, "ben");
//! # Ok::<(), dogsled_storage::Error>(())
//! ```

use std::fmt;

use bincode::{Decode, Encode};

use crate::codec;
use crate::command::{MAX_NAME_LENGTH, Reply, TreeId};
use crate::evaluate::{Context, Effect, Effects, Outcome, Versioned, View};
use crate::{Error, IVec, Result};

/// What [`Context::sequence`] is while a transaction evaluates a command before its commit.
pub const PENDING_SEQUENCE: u64 = 0;

/// The version byte of the records that this build writes.
const RECORD_VERSION: u8 = 1;

/// The number that a grant carries: strictly larger at each grant of that lock.
///
/// It is the position in the log of the commit that granted the lock. Two locks may have grants
/// with one token, if one transaction took both.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct FencingToken(pub u64);

impl FencingToken {
    /// The token of a grant whose transaction has not committed; smaller than every token.
    pub const PENDING: FencingToken = FencingToken(PENDING_SEQUENCE);
}

impl fmt::Display for FencingToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An operation of a lock. Its name, and the name of its owner, are at most
/// [`MAX_NAME_LENGTH`] bytes; a lease is at least one millisecond.
///
/// An owner is whatever the caller tells apart: bytes that no other caller uses, such as a random
/// number with a host name for people to read. Only the owner together with the token of its
/// grant can renew or release.
///
/// New variants are added at the end: the position of a variant is part of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockCommand {
    /// Takes the lock if it is free. Reply: [`LockReply::Acquired`] or [`LockReply::Held`].
    TryAcquire {
        /// The lock.
        name: IVec,
        /// Who asks.
        owner: IVec,
        /// How long it may be held without renewal. A lease that would end after `u64::MAX`
        /// never ends.
        lease_ms: u64,
    },
    /// Starts the lease anew, from now. Reply: [`LockReply::Renewed`] or [`LockReply::NotHeld`].
    Renew {
        /// The lock.
        name: IVec,
        /// Who holds it.
        owner: IVec,
        /// The token of its grant.
        token: FencingToken,
        /// The new lease, counted from now; it may be shorter than what is left of the old one.
        lease_ms: u64,
    },
    /// Gives the lock back. Reply: [`LockReply::Released`] or [`LockReply::NotHeld`].
    Release {
        /// The lock.
        name: IVec,
        /// Who holds it.
        owner: IVec,
        /// The token of its grant.
        token: FencingToken,
    },
    /// Removes the lock if its lease has ended, so that waiters are woken. Reply:
    /// [`LockReply::Expired`], [`LockReply::Held`] or [`LockReply::NotHeld`].
    Expire {
        /// The lock.
        name: IVec,
    },
}

/// What the caller of a [`LockCommand`] is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum LockReply {
    /// The lock is the caller's.
    Acquired {
        /// The token of this grant.
        token: FencingToken,
        /// The log's time at which the lease ends.
        expires_ms: u64,
    },
    /// Someone holds the lock, perhaps the caller itself.
    Held {
        /// Who.
        holder: IVec,
        /// The token of its grant.
        token: FencingToken,
        /// The log's time at which its lease ends.
        expires_ms: u64,
    },
    /// The lease starts anew.
    Renewed {
        /// The log's time at which it ends now.
        expires_ms: u64,
    },
    /// The caller does not hold the lock, or holds it no longer; stop what is done under it.
    NotHeld,
    /// The lock was given back in time.
    Released,
    /// The lease had ended and the lock is free now.
    Expired,
}

/// Who holds a lock.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holder {
    /// Its name, as it gave it.
    pub owner: IVec,
    /// The token of its grant.
    pub token: FencingToken,
    /// The log's time at which its lease ends.
    pub expires_ms: u64,
}

/// Version 1 of what is stored of a lock that is held.
#[derive(Encode, Decode)]
struct Record {
    owner: IVec,
    token: u64,
    expires_ms: u64,
}

impl LockCommand {
    /// The lock's name.
    pub fn name(&self) -> &IVec {
        match self {
            LockCommand::TryAcquire { name, .. }
            | LockCommand::Renew { name, .. }
            | LockCommand::Release { name, .. }
            | LockCommand::Expire { name } => name,
        }
    }
}

impl Holder {
    /// Whether the lease has ended at this time of the log.
    pub fn has_expired(&self, time_ms: u64) -> bool {
        // The end of time never comes: see `LockCommand::TryAcquire::lease_ms`.
        self.expires_ms <= time_ms && self.expires_ms != u64::MAX
    }

    fn is(&self, owner: &IVec, token: FencingToken) -> bool {
        self.owner == *owner && self.token == token
    }

    fn into_held(self) -> LockReply {
        LockReply::Held { holder: self.owner, token: self.token, expires_ms: self.expires_ms }
    }
}

/// Who holds the lock at this time of the log; `None`: it is free, or its lease has ended.
///
/// # Errors
/// [`Error::Corrupt`] if the stored record is damaged or of a newer version, and errors of
/// reading the view.
pub fn holder(view: &impl View, time_ms: u64, name: &[u8]) -> Result<Option<Holder>> {
    Ok(last_holder(view, name)?.filter(|holder| !holder.has_expired(time_ms)))
}

/// The holder in the stored record of the lock `name`, whether its lease has ended or not.
///
/// # Errors
/// [`Error::Corrupt`], naming the lock, if the record is damaged or of a newer version.
pub fn decode_holder(name: &[u8], stored: &Versioned) -> Result<Holder> {
    let damaged = |what: String| {
        Error::corrupt("the tree of locks", None, format!("lock \"{}\": {what}", name.escape_ascii()))
    };
    let record: Record = codec::decode_record(RECORD_VERSION, &stored.value).map_err(damaged)?;
    // What this very transaction wrote has version 0, and then its token is pending as well.
    let is_committed = stored.version != PENDING_SEQUENCE;
    if is_committed && record.token > stored.version {
        return Err(damaged(format!(
            "its token {} is beyond position {}, which wrote it",
            record.token, stored.version
        )));
    }
    let token = if record.token == PENDING_SEQUENCE { stored.version } else { record.token };
    Ok(Holder { owner: record.owner, token: FencingToken(token), expires_ms: record.expires_ms })
}

fn last_holder(view: &impl View, name: &[u8]) -> Result<Option<Holder>> {
    match view.get(TreeId::LOCKS, name)? {
        Some(stored) => decode_holder(name, &stored).map(Some),
        None => Ok(None),
    }
}

/// Evaluates a lock's command; see [`crate::evaluate`] and the table in the [module](self).
///
/// # Errors
/// [`Error::InvalidRequest`] for a lease of 0 or an owner's name that is too long,
/// [`Error::Corrupt`] if the stored record is damaged or of a newer version, and errors of
/// reading the view.
pub fn evaluate(view: &impl View, context: &Context, command: &LockCommand) -> Result<Outcome> {
    let found = last_holder(view, command.name())?;
    let now = context.time_ms;
    let (effects, reply) = match command {
        LockCommand::TryAcquire { name, owner, lease_ms } => {
            check_owner(owner)?;
            let expires_ms = end_of_lease(now, *lease_ms)?;
            let fresh = found.is_none();
            match found {
                Some(holder) if !holder.has_expired(now) => (Effects::new(), holder.into_held()),
                _ => {
                    let token = FencingToken(context.sequence);
                    let holder = Holder { owner: owner.clone(), token, expires_ms };
                    (put(name, holder, fresh), LockReply::Acquired { token, expires_ms })
                }
            }
        }
        LockCommand::Renew { name, owner, token, lease_ms } => {
            let expires_ms = end_of_lease(now, *lease_ms)?;
            match found {
                Some(holder) if holder.is(owner, *token) && !holder.has_expired(now) => {
                    let renewed = Holder { expires_ms, ..holder };
                    (put(name, renewed, false), LockReply::Renewed { expires_ms })
                }
                _ => (Effects::new(), LockReply::NotHeld),
            }
        }
        LockCommand::Release { name, owner, token } => match found {
            Some(holder) if holder.is(owner, *token) => {
                let in_time = !holder.has_expired(now);
                (remove(name), if in_time { LockReply::Released } else { LockReply::NotHeld })
            }
            _ => (Effects::new(), LockReply::NotHeld),
        },
        LockCommand::Expire { name } => match found {
            Some(holder) if holder.has_expired(now) => (remove(name), LockReply::Expired),
            Some(holder) => (Effects::new(), holder.into_held()),
            None => (Effects::new(), LockReply::NotHeld),
        },
    };
    Ok(Outcome { effects, reply: Reply::Lock(reply) })
}

fn check_owner(owner: &[u8]) -> Result<()> {
    if owner.len() > MAX_NAME_LENGTH {
        return Err(Error::InvalidRequest(format!(
            "the owner of a lock has a name of {} bytes, over the limit of {MAX_NAME_LENGTH}",
            owner.len()
        )));
    }
    Ok(())
}

fn end_of_lease(now: u64, lease_ms: u64) -> Result<u64> {
    if lease_ms == 0 {
        return Err(Error::InvalidRequest("a lease of 0 ms would end before it begins".to_owned()));
    }
    Ok(now.saturating_add(lease_ms))
}

fn put(name: &IVec, holder: Holder, fresh: bool) -> Effects {
    let record = Record { owner: holder.owner, token: holder.token.0, expires_ms: holder.expires_ms };
    let value = IVec::from(codec::encode_record(RECORD_VERSION, &record));
    let mut effects = Effects::new();
    effects.push(Effect::Put { tree: TreeId::LOCKS, key: name.clone(), value, fresh: Some(fresh) });
    effects
}

fn remove(name: &IVec) -> Effects {
    let mut effects = Effects::new();
    effects.push(Effect::Remove { tree: TreeId::LOCKS, key: name.clone() });
    effects
}
