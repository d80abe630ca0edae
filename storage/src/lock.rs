//! Locks with leases and fencing tokens, as commands.
//!
//! Promise: at every position of the log the holders of a lock have no more permits than there are (a
//! plain lock has one), and each grant carries a [`FencingToken`] that is strictly larger than that of
//! every earlier grant of the same lock, across releases, expiries and reopens.
//!
//! **What a lease can and cannot do.** A holder that is paused longer than its lease (by the
//! scheduler, a debugger, a suspended laptop) goes on believing that it holds the lock. No lock
//! service can prevent that; the token is the remedy. A write to this database can demand that it
//! holds, and is refused otherwise: see [`crate::fence`]. Send it along with whatever is done elsewhere
//! under the lock, and let that refuse a token smaller than the largest it saw.
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
//! | [`LockCommand::Acquire`] | enough permits are free and nobody waits before | [`LockReply::Acquired`] |
//! | | not, and the caller does not want to wait | [`LockReply::Held`] |
//! | | not, and it does | [`LockReply::Waiting`] |
//! | [`LockCommand::AcquireOwned`] | as with `Acquire` | as with `Acquire` |
//! | [`LockCommand::RenewWait`] | waited for under this ticket | [`LockReply::Waiting`] |
//! | | granted to this ticket | [`LockReply::Acquired`], as it was granted |
//! | | anything else | [`LockReply::NotHeld`] |
//! | [`LockCommand::CancelWait`] | waited for under, or granted to, this ticket | [`LockReply::Released`] |
//! | | anything else | [`LockReply::NotHeld`] |
//!
//! **One state machine for locks, read/write locks and semaphores.** A lock has a *capacity*, and a
//! grant takes some of its *permits*. A plain lock has capacity 1. Of a read/write lock
//! ([`READ_WRITE`]) a writer takes all permits and a reader one. A semaphore has as many as one likes. The
//! capacity is that of the first who comes; while the lock is in use, whoever asks with another one is
//! refused.
//!
//! **Waiting** is in the log as well ([`queue`]). Who comes first is served first, whatever it wants: a
//! writer is not starved by readers, who queue up behind it. Whatever frees permits (a release, the end of
//! a lease, somebody leaving the queue) grants them to the next in the same entry, whose waiter's
//! key then vanishes; that is the event by which it is woken. A waiter has a lease as well, and one that has ended is
//! passed over.
//!
//! **Lock-delay.** A holder whose lease ends without release has perhaps left something half done, and
//! perhaps does not know yet. Who asks for a *delay* keeps the lock from being granted for so long after
//! such an end.
//!
//! **Locks of a session.** [`LockCommand::AcquireOwned`] takes permits that have no lease of their own: they
//! live and die with a session of the application ([`crate::session`]), and so does the place in the queue. When the
//! session ends, the entry that ends it takes its locks back and grants them to whoever waits. The end of
//! the session's lease is unclean, and the delay follows; closing it is a release.
//!
//! **Re-entry is refused.** An owner that asks for a lock it holds is told [`LockReply::Held`]
//! with itself as holder, or waits for itself: counting re-entries would leave "who releases last" to chance after a
//! retry. The reply names owner, token and expiry, so an owner that never heard the answer to its
//! first request learns of its grant this way.
//!
//! **Tokens** are positions in the log: a grant's token is the sequence of the commit that made
//! it. Positions only grow, so a lock needs no record once it is released, and names that were
//! locked once cost nothing afterwards. If one commit grants to several (readers who have waited), the
//! second has the next number, and so on; whoever comes later has a larger one all the same, because the
//! largest is kept for as long as it is ahead of the log.
//!
//! **Inside a transaction** the position is not known before the commit. Evaluate with
//! [`PENDING_SEQUENCE`]: the record then says "the commit that wrote me", which every later reader
//! resolves to the version of the record. The transaction's own view must give version 0 to
//! what the transaction itself has written; until the commit the token reads as
//! [`FencingToken::PENDING`]. A transaction of a cluster names the operation instead
//! ([`ExpiryCommand::Lock`](crate::ExpiryCommand::Lock)): it is evaluated where the transaction is committed,
//! and comes to what it is for, or the transaction is a conflict.
//!
//! # Layout
//!
//! [`state`] has the records, [`queue`] those who wait.
//!
//! Not here: how threads of an embedded database wait ([`crate::lock_wait`]), renewing in the
//! background.
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

mod owned;
pub mod queue;
pub mod state;

use std::fmt;

use bincode::{Decode, Encode};

use crate::command::{MAX_NAME_LENGTH, Reply, TreeId};
use crate::evaluate::{Context, Effect, Effects, Outcome, View};
use crate::group::SessionId;
use crate::{Error, IVec, Result};

pub(crate) use self::owned::{is_listed, listed_lock, session_ended};
use self::queue::Waiter;
pub use self::state::{LockState, MAX_HOLDERS, Permit, decode_state};

/// What [`Context::sequence`] is while a transaction evaluates a command before its commit.
pub const PENDING_SEQUENCE: u64 = 0;

/// The capacity of a read/write lock: a writer takes all permits, a reader one.
pub const READ_WRITE: u32 = u32::MAX;

/// The most waiters that count as gone that one command passes over.
const SKIP_AT_ONCE: usize = 1024;

/// The number that a grant carries: strictly larger at each grant of that lock.
///
/// It is the position in the log of the commit that granted the lock, or a little more; see
/// [`crate::lock`]. Two locks may have grants with one token, if one transaction took both.
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
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode, Decode)]
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
    /// Takes permits if they are free and nobody waits before, or waits for them. Reply:
    /// [`LockReply::Acquired`], [`LockReply::Held`] or [`LockReply::Waiting`].
    Acquire {
        /// The lock.
        name: IVec,
        /// Who asks.
        owner: IVec,
        /// How many permits, of how many, and for how long.
        request: LockRequest,
        /// How long the caller counts as waiting unless it says that it still does; 0: it does not
        /// wait.
        wait_ms: u64,
    },
    /// Says that the caller still waits, and asks whether it has to. Reply: [`LockReply::Waiting`],
    /// [`LockReply::Acquired`] or [`LockReply::NotHeld`].
    RenewWait {
        /// The lock.
        name: IVec,
        /// What waiting was answered with.
        ticket: u64,
        /// As in [`LockCommand::Acquire`].
        wait_ms: u64,
    },
    /// Leaves the queue, or gives back what was granted meanwhile. Reply: [`LockReply::Released`] or
    /// [`LockReply::NotHeld`].
    CancelWait {
        /// The lock.
        name: IVec,
        /// What waiting was answered with.
        ticket: u64,
    },
    /// As [`LockCommand::Acquire`], for as long as a session lives. Reply: the same.
    AcquireOwned {
        /// The lock.
        name: IVec,
        /// Who asks.
        owner: IVec,
        /// How many permits, of how many; the lease is not looked at.
        request: LockRequest,
        /// The session.
        session: SessionId,
        /// Whether the caller waits.
        waits: bool,
    },
}

/// What is asked of a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Encode, Decode)]
pub struct LockRequest {
    /// How many permits; at least one.
    pub permits: u32,
    /// Of how many there are: 1 for a plain lock, [`READ_WRITE`] for a read/write lock.
    pub capacity: u32,
    /// How long they may be held without renewal. A lease that would end after `u64::MAX` never ends.
    pub lease_ms: u64,
    /// For how long nothing is granted if the lease ends without release.
    pub delay_ms: u64,
}

impl LockRequest {
    /// The only permit of a plain lock.
    pub fn exclusive(lease_ms: u64) -> LockRequest {
        LockRequest { permits: 1, capacity: 1, lease_ms, delay_ms: 0 }
    }
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
    /// Somebody holds the lock, or others wait for it, and the caller waits from now on.
    Waiting {
        /// The number under which it waits.
        ticket: u64,
        /// The log's time at which it counts as gone unless it says that it still waits.
        expires_ms: u64,
    },
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

impl LockCommand {
    /// The lock's name.
    pub fn name(&self) -> &IVec {
        match self {
            LockCommand::TryAcquire { name, .. }
            | LockCommand::Renew { name, .. }
            | LockCommand::Release { name, .. }
            | LockCommand::Expire { name }
            | LockCommand::Acquire { name, .. }
            | LockCommand::RenewWait { name, .. }
            | LockCommand::CancelWait { name, .. }
            | LockCommand::AcquireOwned { name, .. } => name,
        }
    }
}

impl Holder {
    /// Whether the lease has ended at this time of the log.
    pub fn has_expired(&self, time_ms: u64) -> bool {
        // The end of time never comes: see `LockCommand::TryAcquire::lease_ms`.
        self.expires_ms <= time_ms && self.expires_ms != u64::MAX
    }
}

/// Who holds the lock at this time of the log, the first if there are several; `None`: it is free, or
/// its lease has ended.
///
/// # Errors
/// [`Error::Corrupt`] if the stored record is damaged or of a newer version, and errors of
/// reading the view.
pub fn holder(view: &impl View, time_ms: u64, name: &[u8]) -> Result<Option<Holder>> {
    let found = state::read(view, name)?;
    Ok(found.and_then(|(state, _)| state.live(time_ms).next().map(Permit::holder)))
}

/// Whether an operation comes to what it is for: the lock is taken, renewed or given back.
///
/// # Errors
/// As [`evaluate`].
pub(crate) fn comes_to_it(view: &impl View, context: &Context, command: &LockCommand) -> Result<bool> {
    let Reply::Lock(reply) = evaluate(view, context, command)?.reply else { return Ok(false) };
    Ok(matches!(reply, LockReply::Acquired { .. } | LockReply::Renewed { .. } | LockReply::Released))
}

/// Whether a lock is held under this token at this time of the log.
///
/// # Errors
/// As [`holder`].
pub(crate) fn is_held(view: &impl View, time_ms: u64, name: &[u8], token: FencingToken) -> Result<bool> {
    let found = state::read(view, name)?;
    Ok(found.is_some_and(|(state, _)| state.live(time_ms).any(|permit| permit.token == token)))
}

/// What has become of a ticket at this time of the log: [`LockReply::Waiting`],
/// [`LockReply::Acquired`] or [`LockReply::NotHeld`].
///
/// # Errors
/// As [`holder`].
pub fn ticket(view: &impl View, time_ms: u64, name: &[u8], ticket: u64) -> Result<LockReply> {
    if let Some(waiter) = queue::waiter(view, name, ticket)? {
        return Ok(LockReply::Waiting { ticket, expires_ms: waiter.expires_ms });
    }
    let found = state::read(view, name)?;
    let mut live = found.iter().flat_map(|(state, _)| state.live(time_ms));
    let granted = live.find(|permit| permit.ticket == ticket && ticket != 0);
    Ok(granted.map_or(LockReply::NotHeld, |permit| LockReply::Acquired {
        token: permit.token,
        expires_ms: permit.expires_ms,
    }))
}

/// Evaluates a lock's command; see [`crate::evaluate`] and the table in the [module](self).
///
/// # Errors
/// [`Error::InvalidRequest`] for a lease of 0, an owner's name that is too long, or a capacity that is
/// not that of the lock; [`Error::Corrupt`] if the stored record is damaged or of a newer version, and
/// errors of reading the view.
pub fn evaluate(view: &impl View, context: &Context, command: &LockCommand) -> Result<Outcome> {
    let now = context.time_ms;
    let mut lock = Evaluation::begin(view, context, command.name())?;
    let reply = match command {
        LockCommand::TryAcquire { owner, lease_ms, .. } => {
            lock.acquire(owner, &LockRequest::exclusive(*lease_ms), 0, None)?
        }
        LockCommand::Acquire { owner, request, wait_ms, .. } => {
            lock.acquire(owner, request, *wait_ms, None)?
        }
        LockCommand::AcquireOwned { owner, request, session, waits, .. } => {
            lock.acquire_owned(owner, request, *session, *waits)?
        }
        LockCommand::Renew { owner, token, lease_ms, .. } => {
            let expires_ms = end_of_lease(now, *lease_ms)?;
            match lock.state.holders.iter_mut().find(|permit| permit.is(owner, *token)) {
                // It lives as long as its session.
                Some(permit) if permit.session.is_some() => {
                    LockReply::Renewed { expires_ms: permit.expires_ms }
                }
                Some(permit) => {
                    permit.expires_ms = expires_ms;
                    lock.is_changed = true;
                    LockReply::Renewed { expires_ms }
                }
                None => LockReply::NotHeld,
            }
        }
        LockCommand::Release { owner, token, .. } => {
            // The end of its lease is made known by the release, if by nothing before.
            lock.is_changed |= lock.ended.iter().any(|permit| permit.is(owner, *token));
            match lock.take_back(|permit| permit.is(owner, *token))? {
                true => LockReply::Released,
                false => LockReply::NotHeld,
            }
        }
        LockCommand::Expire { .. } => {
            let has_ended = !lock.ended.is_empty();
            lock.is_changed |= has_ended;
            match lock.state.holders.first() {
                Some(permit) => permit.held(),
                None if has_ended => LockReply::Expired,
                None => LockReply::NotHeld,
            }
        }
        LockCommand::RenewWait { ticket, wait_ms, .. } => lock.renew_wait(*ticket, *wait_ms)?,
        LockCommand::CancelWait { ticket, .. } => lock.cancel_wait(*ticket)?,
    };
    Ok(Outcome { effects: lock.finish()?, reply: Reply::Lock(reply) })
}

/// Lets those locks go on that are due: whose leases have ended while others wait. The effects, how many
/// locks, and whether there are more.
pub(crate) fn settle_due(view: &impl View, context: &Context, limit: usize) -> Result<(Effects, u64, bool)> {
    let (mut names, more) = queue::due(view, context.time_ms, limit)?;
    names.retain(|name| !view.is_locked(TreeId::LOCKS, name));
    let mut effects = Effects::new();
    let count = names.len() as u64;
    for name in &names {
        let mut lock = Evaluation::begin(view, context, name)?;
        lock.is_changed = true;
        effects.extend(lock.finish()?);
    }
    Ok((effects, count, more))
}

impl Permit {
    fn is(&self, owner: &IVec, token: FencingToken) -> bool {
        self.owner == *owner && self.token == token
    }

    fn held(&self) -> LockReply {
        LockReply::Held { holder: self.owner.clone(), token: self.token, expires_ms: self.expires_ms }
    }
}

/// One lock while a command is evaluated.
struct Evaluation<'a, V> {
    view: &'a V,
    context: &'a Context,
    name: &'a IVec,
    /// Without those whose lease has ended.
    state: LockState,
    /// Holders whose lease has ended.
    ended: Vec<Permit>,
    /// The version of the record; `None`: there is none.
    stored: Option<u64>,
    /// Under which the lock stands in the index so far.
    due_ms: u64,
    /// Whether the record is to be written.
    is_changed: bool,
    /// This session ends with the very entry: what is its own is nobody's any more.
    ending: Option<SessionId>,
    /// When whoever joined the line with the very command counts as gone.
    joined_until: Option<u64>,
    /// There may be more who have gone than this command passes over.
    passed_over_all: bool,
    /// Of those who wait.
    effects: Effects,
}

impl<'a, V: View> Evaluation<'a, V> {
    /// Takes away what has ended, and grants what that frees to those who wait.
    fn begin(view: &'a V, context: &'a Context, name: &'a IVec) -> Result<Evaluation<'a, V>> {
        let mut lock = Evaluation::read(view, context, name)?;
        lock.grant_next()?;
        Ok(lock)
    }

    /// As [`Evaluation::begin`], without granting anything yet.
    fn read(view: &'a V, context: &'a Context, name: &'a IVec) -> Result<Evaluation<'a, V>> {
        let (mut state, stored) = match state::read(view, name)? {
            Some((state, version)) => (state, Some(version)),
            None => (LockState::free(1), None),
        };
        let now = context.time_ms;
        let (ended, live): (Vec<_>, Vec<_>) =
            std::mem::take(&mut state.holders).into_iter().partition(|permit| permit.has_ended(now));
        state.holders = live;
        for permit in ended.iter().filter(|permit| permit.delay_ms > 0) {
            state.free_at_ms = state.free_at_ms.max(permit.expires_ms.saturating_add(permit.delay_ms));
        }
        let due_ms = state.due_ms;
        let effects = Effects::new();
        let (is_changed, ending, joined_until, passed_over_all) = (false, None, None, true);
        Ok(Evaluation {
            view,
            context,
            name,
            state,
            ended,
            stored,
            due_ms,
            is_changed,
            ending,
            joined_until,
            passed_over_all,
            effects,
        })
    }

    fn is_in_use(&self) -> bool {
        !self.state.holders.is_empty() || self.state.waiting > 0
    }

    fn fits(&self, permits: u32) -> bool {
        let taken: u64 = self.state.holders.iter().map(|permit| u64::from(permit.permits)).sum();
        taken + u64::from(permits) <= u64::from(self.state.capacity)
            && self.state.holders.len() < MAX_HOLDERS
            && self.context.time_ms >= self.state.free_at_ms
    }

    fn grant(
        &mut self,
        owner: IVec,
        request: &LockRequest,
        expires_ms: u64,
        ticket: u64,
        session: Option<SessionId>,
    ) -> FencingToken {
        let sequence = self.context.sequence;
        let token = match self.state.last_token {
            // Of a transaction that is still to be committed; and by its position no other is ahead then.
            _ if sequence == PENDING_SEQUENCE => PENDING_SEQUENCE,
            0 => sequence,
            last => sequence.max(last + 1),
        };
        self.state.last_token = self.state.last_token.max(token);
        self.is_changed = true;
        let token = FencingToken(token);
        let LockRequest { permits, delay_ms, .. } = *request;
        self.list(session, owned::GRANT, token.0);
        self.state.holders.push(Permit { owner, token, permits, expires_ms, delay_ms, ticket, session });
        token
    }

    /// Grants to those who wait, in their order, until one does not fit.
    fn grant_next(&mut self) -> Result<()> {
        let mut skipped = 0;
        while self.state.waiting > 0 && skipped < SKIP_AT_ONCE {
            let Some((ticket, waiter)) = queue::first(self.view, self.name, self.state.queue_from)? else {
                let what = format!("lock \"{}\": those who wait are missing", self.name.escape_ascii());
                return Err(Error::corrupt("the tree of waiters", None, what));
            };
            let now = self.context.time_ms;
            let Waiter { owner, permits, lease_ms, delay_ms, session, .. } = waiter.clone();
            if waiter.has_gone(now) || self.is_without_session(session)? {
                skipped += 1;
            } else if self.fits(permits) {
                let request = LockRequest { permits, capacity: self.state.capacity, lease_ms, delay_ms };
                self.grant(owner, &request, now.saturating_add(lease_ms), ticket, session);
            } else {
                break;
            }
            queue::remove(self.name, ticket, &mut self.effects);
            self.unlist(session, owned::WAITER, ticket);
            self.state.waiting -= 1;
            self.state.queue_from = ticket + 1;
            self.is_changed = true;
        }
        self.passed_over_all = skipped < SKIP_AT_ONCE;
        Ok(())
    }

    fn acquire(
        &mut self,
        owner: &IVec,
        request: &LockRequest,
        wait_ms: u64,
        session: Option<SessionId>,
    ) -> Result<LockReply> {
        check_owner(owner)?;
        let now = self.context.time_ms;
        let expires_ms = end_of_lease(now, request.lease_ms)?;
        if request.permits == 0 || request.permits > request.capacity {
            return Err(Error::InvalidRequest(format!(
                "{} permits of a lock that has {}",
                request.permits, request.capacity
            )));
        }
        if !self.is_in_use() {
            self.state.capacity = request.capacity;
        } else if self.state.capacity != request.capacity {
            return Err(Error::InvalidRequest(format!(
                "lock \"{}\" is in use with a capacity of {}, not {}",
                self.name.escape_ascii(),
                self.state.capacity,
                request.capacity
            )));
        }
        if self.state.waiting == 0 && self.fits(request.permits) {
            let token = self.grant(owner.clone(), request, expires_ms, 0, session);
            return Ok(LockReply::Acquired { token, expires_ms });
        }
        if wait_ms == 0 {
            // The one whose lease ends first: not before that is it worth while to ask again.
            let first = self.state.holders.iter().min_by_key(|permit| permit.expires_ms);
            let free_at_ms = self.state.free_at_ms;
            return Ok(match first {
                // Not the end of a lease is waited for, but that of a delay, while others hold permits.
                Some(permit) if now < free_at_ms && free_at_ms < permit.expires_ms => LockReply::Held {
                    holder: permit.owner.clone(),
                    token: permit.token,
                    expires_ms: free_at_ms,
                },
                Some(permit) => permit.held(),
                // Nobody holds it, but it is not free: a delay, or more who have gone than one
                // command passes over.
                None => LockReply::Held {
                    holder: self.ended.first().map(|permit| permit.owner.clone()).unwrap_or_default(),
                    token: FencingToken(self.state.last_token),
                    expires_ms: self.state.free_at_ms.max(now.saturating_add(1)),
                },
            });
        }
        let ticket = self.context.sequence;
        if ticket == PENDING_SEQUENCE {
            return Err(Error::InvalidRequest("a transaction does not wait for a lock".to_owned()));
        }
        let LockRequest { permits, lease_ms, delay_ms, .. } = *request;
        let expires_ms = now.saturating_add(wait_ms);
        let waiter = Waiter { owner: owner.clone(), permits, lease_ms, delay_ms, expires_ms, session };
        queue::put(self.name, ticket, &waiter, true, &mut self.effects);
        self.list(session, owned::WAITER, ticket);
        self.state.waiting += 1;
        self.is_changed = true;
        self.joined_until = Some(expires_ms);
        Ok(LockReply::Waiting { ticket, expires_ms })
    }

    /// Takes permits away from whoever is such; whether somebody was.
    fn take_back(&mut self, is_it: impl Fn(&Permit) -> bool) -> Result<bool> {
        let Some(position) = self.state.holders.iter().position(is_it) else { return Ok(false) };
        let permit = self.state.holders.remove(position);
        self.unlist(permit.session, owned::GRANT, permit.token.0);
        self.is_changed = true;
        self.grant_next()?;
        Ok(true)
    }

    /// The waiter, unless it was granted the lock just now.
    fn waiter(&self, ticket: u64) -> Result<Option<Waiter>> {
        if ticket < self.state.queue_from { Ok(None) } else { queue::waiter(self.view, self.name, ticket) }
    }

    fn renew_wait(&mut self, ticket: u64, wait_ms: u64) -> Result<LockReply> {
        if let Some(waiter) = self.waiter(ticket)? {
            if waiter.session.is_some() {
                return Ok(LockReply::Waiting { ticket, expires_ms: waiter.expires_ms });
            }
            let expires_ms = end_of_lease(self.context.time_ms, wait_ms)?;
            queue::put(self.name, ticket, &Waiter { expires_ms, ..waiter }, false, &mut self.effects);
            return Ok(LockReply::Waiting { ticket, expires_ms });
        }
        let granted = self.state.holders.iter().find(|permit| permit.ticket == ticket && ticket != 0);
        Ok(granted.map_or(LockReply::NotHeld, |permit| LockReply::Acquired {
            token: permit.token,
            expires_ms: permit.expires_ms,
        }))
    }

    fn cancel_wait(&mut self, ticket: u64) -> Result<LockReply> {
        if let Some(waiter) = self.waiter(ticket)? {
            queue::remove(self.name, ticket, &mut self.effects);
            self.unlist(waiter.session, owned::WAITER, ticket);
            self.state.waiting -= 1;
            self.is_changed = true;
            // Whoever stands behind may fit where this one did not.
            if self.state.waiting > 0
                && queue::first(self.view, self.name, self.state.queue_from)?
                    .is_some_and(|(first, _)| first == ticket)
            {
                self.state.queue_from = ticket + 1;
                self.grant_next()?;
            }
            return Ok(LockReply::Released);
        }
        let is_it = |permit: &Permit| permit.ticket == ticket && ticket != 0;
        Ok(if self.take_back(is_it)? { LockReply::Released } else { LockReply::NotHeld })
    }

    /// When something about the lock changes by itself that somebody has to be told of; 0: never.
    ///
    /// Of a lock that nobody waits for that is the end of its delay. Somebody who waits is to be told of whatever may
    /// let him go on: the end of a holder's lease; that of a delay, which may be running while others hold
    /// permits; and that he who is first in line has gone, since those behind may fit where he did not.
    fn next_due(&self) -> Result<u64> {
        let now = self.context.time_ms;
        if self.state.waiting == 0 {
            return Ok(if self.state.holders.is_empty() { self.state.free_at_ms } else { 0 });
        }
        if !self.passed_over_all {
            return Ok(now.max(1));
        }
        let first_in_line = match queue::first(self.view, self.name, self.state.queue_from)? {
            Some((_, waiter)) => Some(waiter.expires_ms),
            None => self.joined_until,
        };
        let first_end = self.state.holders.iter().map(|permit| permit.expires_ms).min();
        let delay = (self.state.free_at_ms > now).then_some(self.state.free_at_ms);
        // Nobody holds it, and yet it was not granted: only a delay can be why.
        let due = [first_in_line, first_end, delay].into_iter().flatten().min().unwrap_or(u64::MAX);
        Ok(if due == u64::MAX { 0 } else { due.max(1) })
    }

    fn finish(mut self) -> Result<Effects> {
        if !self.is_changed {
            return Ok(self.effects);
        }
        if self.state.free_at_ms <= self.context.time_ms {
            self.state.free_at_ms = 0;
        }
        self.state.due_ms = self.next_due()?;
        queue::move_due(self.name, self.due_ms, self.state.due_ms, &mut self.effects);
        // A token that is ahead of the log must be remembered, or it would be given again.
        let reached = match self.context.sequence {
            // Of a transaction, which commits behind all tokens there are: those that are ahead are
            // given to such as have waited, and only a cluster's logs have those.
            PENDING_SEQUENCE => u64::MAX,
            sequence => sequence.max(self.stored.unwrap_or(0)),
        };
        let is_needed = self.is_in_use() || self.state.free_at_ms > 0 || self.state.last_token > reached;
        let (tree, key) = (TreeId::LOCKS, self.name.clone());
        if is_needed {
            let (value, fresh) = (self.state.encode(), Some(self.stored.is_none()));
            self.effects.push(Effect::Put { tree, key, value, fresh });
        } else if self.stored.is_some() {
            self.effects.push(Effect::Remove { tree, key });
        }
        Ok(self.effects)
    }
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
