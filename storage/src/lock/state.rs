//! [`LockState`]: what is stored of one lock; its two layouts.
//!
//! In [`TreeId::LOCKS`], key = the lock's name; no record: the lock is free and nobody waits.
//!
//! **Version 1** is what nearly all locks are: one holder of the only permit, nobody waiting, no delay.
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | record version, 1 |
//! | varint, bytes | the owner: its length, its bytes |
//! | varint | the token; 0: the version (sequence) of this record is the token |
//! | varint | `expires_ms`, the log's time at which the lease ends |
//!
//! **Version 3** is everything else (2 was the same without sessions, and is not read any more):
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | record version, 3 |
//! | varint | capacity: how many permits there are |
//! | varint | `free_at_ms`: before this time nothing is granted, because a holder ended uncleanly; 0: no such time |
//! | varint | the largest token given so far |
//! | varint | how many wait |
//! | varint | no ticket below this one waits |
//! | varint | the time under which the lock stands in the index of due times; 0: it does not |
//! | varint | how many holders, and for each: |
//! | varint, bytes | the owner |
//! | varint | the token; 0 as in version 1 |
//! | varint | permits |
//! | varint | `expires_ms` |
//! | varint | the delay in milliseconds that follows an unclean end |
//! | varint | the ticket under which it had waited; 0: it had not |
//! | 1, varint | 1 and the session that it lives with; 0: it lives for a lease of its own |
//!
//! A record of another version is refused with a clear error, never guessed at.

use bincode::{Decode, Encode};

use super::{FencingToken, Holder};
use crate::codec;
use crate::command::TreeId;
use crate::evaluate::{Versioned, View};
use crate::group::SessionId;
use crate::{Error, IVec, Result};

/// The most holders that one lock may have at a time, whatever its capacity.
pub const MAX_HOLDERS: usize = 1024;

const PLAIN: u8 = 1;
const FULL: u8 = 3;

/// What is stored of one lock; see [`super::state`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockState {
    /// How many permits there are; 1: it is a plain lock.
    pub capacity: u32,
    /// Nothing is granted before this time of the log; 0: no such time.
    pub free_at_ms: u64,
    /// How many wait.
    pub waiting: u64,
    /// Who holds it, in the order of the grants, whether a lease has ended or not.
    pub holders: Vec<Permit>,
    pub(super) last_token: u64,
    pub(super) queue_from: u64,
    pub(super) due_ms: u64,
}

/// A grant.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Permit {
    /// Whose.
    pub owner: IVec,
    /// The token of the grant.
    pub token: FencingToken,
    /// How many permits it takes.
    pub permits: u32,
    /// The log's time at which the lease ends.
    pub expires_ms: u64,
    /// For how long nothing is granted if the lease ends without release.
    pub delay_ms: u64,
    /// The ticket under which it was waited for; 0: it was not.
    pub ticket: u64,
    /// The session that it lives with.
    pub session: Option<SessionId>,
}

#[derive(Encode, Decode)]
struct PlainRecord {
    owner: IVec,
    token: u64,
    expires_ms: u64,
}

impl Permit {
    /// Whether the lease has ended at this time of the log.
    pub fn has_ended(&self, time_ms: u64) -> bool {
        // The end of time never comes: see `LockCommand::TryAcquire::lease_ms`.
        self.expires_ms <= time_ms && self.expires_ms != u64::MAX
    }

    /// For those who want no more than to know who.
    pub fn holder(&self) -> Holder {
        Holder { owner: self.owner.clone(), token: self.token, expires_ms: self.expires_ms }
    }
}

impl LockState {
    /// A free lock.
    pub(super) fn free(capacity: u32) -> LockState {
        LockState {
            capacity,
            free_at_ms: 0,
            waiting: 0,
            holders: Vec::new(),
            last_token: 0,
            queue_from: 0,
            due_ms: 0,
        }
    }

    /// Whoever holds it at this time of the log.
    pub fn live(&self, time_ms: u64) -> impl Iterator<Item = &Permit> {
        self.holders.iter().filter(move |permit| !permit.has_ended(time_ms))
    }

    /// Whether a plain lock can be taken at this time of the log: nobody holds it, nobody waits for it, and no delay that
    /// followed the end of a lease is running.
    pub fn is_free(&self, time_ms: u64) -> bool {
        let delayed_until = |permit: &Permit| match permit.delay_ms {
            0 => 0,
            delay_ms => permit.expires_ms.saturating_add(delay_ms),
        };
        let delayed = self.holders.iter().map(delayed_until).max().unwrap_or(0).max(self.free_at_ms);
        self.live(time_ms).next().is_none() && self.waiting == 0 && time_ms >= delayed
    }

    pub(super) fn encode(&self) -> IVec {
        if let [only] = &self.holders[..]
            && self.capacity == 1
            && self.waiting == 0
            && self.free_at_ms == 0
            && self.due_ms == 0
            && only.delay_ms == 0
            && only.ticket == 0
            && only.session.is_none()
            && self.last_token == only.token.0
        {
            let (owner, token, expires_ms) = (only.owner.clone(), only.token.0, only.expires_ms);
            return IVec::from(codec::encode_record(PLAIN, &PlainRecord { owner, token, expires_ms }));
        }
        let LockState { capacity, free_at_ms, waiting, holders, last_token, queue_from, due_ms } = self;
        let head = (*capacity, *free_at_ms, *last_token, *waiting, *queue_from, *due_ms);
        IVec::from(codec::encode_list_record(FULL, &head, holders))
    }

    fn decode(bytes: &[u8]) -> Result<LockState, String> {
        match bytes.first() {
            Some(&FULL) => {
                let (head, holders) = codec::decode_list_record(FULL, bytes)?;
                let (capacity, free_at_ms, last_token, waiting, queue_from, due_ms) = head;
                Ok(LockState { capacity, free_at_ms, waiting, holders, last_token, queue_from, due_ms })
            }
            Some(&other) if other != PLAIN => {
                Err(format!("format version {other} is not known, only {PLAIN} and {FULL}"))
            }
            _ => {
                let PlainRecord { owner, token, expires_ms } = codec::decode_record(PLAIN, bytes)?;
                let permit = Permit {
                    owner,
                    token: FencingToken(token),
                    permits: 1,
                    expires_ms,
                    delay_ms: 0,
                    ticket: 0,
                    session: None,
                };
                Ok(LockState { holders: vec![permit], last_token: token, ..LockState::free(1) })
            }
        }
    }
}

/// The state in the stored record of the lock `name`.
///
/// # Errors
/// [`Error::Corrupt`], naming the lock, if the record is damaged or of a newer version.
pub fn decode_state(name: &[u8], stored: &Versioned) -> Result<LockState> {
    let damaged = |what: String| {
        Error::corrupt("the tree of locks", None, format!("lock \"{}\": {what}", name.escape_ascii()))
    };
    let mut state = LockState::decode(&stored.value).map_err(damaged)?;
    // Of the position that wrote it nothing follows: one entry may grant to many, one after the other, and each token is
    // larger than the one before.
    let last_given = state.last_token;
    for permit in &mut state.holders {
        if permit.token.0 > last_given {
            return Err(damaged(format!(
                "its token {} is beyond the last that was given, {last_given}",
                permit.token
            )));
        }
        if permit.token == FencingToken::PENDING {
            permit.token = FencingToken(stored.version);
        }
        state.last_token = state.last_token.max(permit.token.0);
    }
    Ok(state)
}

/// The stored state of a lock and the version of its record; `None`: it is free, and nobody waits.
///
/// # Errors
/// As [`decode_state`], and errors of reading the view.
pub fn read(view: &impl View, name: &[u8]) -> Result<Option<(LockState, u64)>> {
    match view.get(TreeId::LOCKS, name)? {
        Some(stored) => Ok(Some((decode_state(name, &stored)?, stored.version))),
        None => Ok(None),
    }
}
