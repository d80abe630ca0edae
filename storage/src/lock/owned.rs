//! Locks that live with a session: how they are listed with it, and how it ends with them.
//!
//! Each grant and each place in a queue is listed with its session among the session's keys
//! ([`crate::owned`]), as if it were a key of the tree of locks: 1 and the token, or 2 and the ticket (8), then the
//! lock's name. The value is empty: the record of the lock says everything else.

use std::collections::BTreeMap;

use super::{Evaluation, FencingToken, LockReply, LockRequest, PENDING_SEQUENCE};
use crate::command::TreeId;
use crate::evaluate::{Context, Effect, Effects, View};
use crate::group::SessionId;
use crate::open_sessions::Owned;
use crate::owned::owned_key;
use crate::{Error, IVec, Result, session};

pub(super) const GRANT: u8 = 1;
pub(super) const WAITER: u8 = 2;

fn listing(session: SessionId, kind: u8, number: u64, name: &[u8]) -> IVec {
    let mut key = Vec::with_capacity(9 + name.len());
    key.push(kind);
    key.extend_from_slice(&number.to_be_bytes());
    key.extend_from_slice(name);
    owned_key(session, TreeId::LOCKS, &key)
}

/// Whether what is listed with a session, by its tree, is a lock or a place in a queue.
pub(crate) fn is_listed(listed: &[u8]) -> bool {
    listed.get(17..21) == Some(&TreeId::LOCKS.0.to_be_bytes()[..])
}

/// What is listed with a session, if that is a lock or a place in a queue.
pub(crate) fn listed_lock(listed: &[u8]) -> Result<Owned> {
    let (kind, number, name) = split(listed)?;
    Ok(match kind {
        WAITER => Owned::Place { name, ticket: number },
        _ => Owned::Lock { name, token: FencingToken(number) },
    })
}

fn split(listed: &[u8]) -> Result<(u8, u64, IVec)> {
    match (listed.get(21), listed.get(22..30), listed.get(30..)) {
        (Some(kind), Some(number), Some(name)) => {
            let number = u64::from_be_bytes(number.try_into().expect("eight bytes"));
            Ok((*kind, number, IVec::from(name)))
        }
        _ => Err(Error::corrupt("the tree of sessions", None, "a session's lock that is too short")),
    }
}

/// Ends what a session has of locks, as far as `listed` says, which is all of the tree of locks: grants are
/// taken back, places in queues are left, and whoever waits is granted what that frees. Locks that another
/// session's end has changed already in this entry are left for the next: their names are in `touched`. So are those that
/// a transaction keeps as they are. How many are left, and how many of them for that reason.
pub(crate) fn session_ended(
    view: &impl View,
    context: &Context,
    session: SessionId,
    listed: Vec<IVec>,
    is_clean: bool,
    touched: &mut Vec<IVec>,
    effects: &mut Effects,
) -> Result<(usize, usize)> {
    let mut locks = BTreeMap::<IVec, Vec<u64>>::new();
    let (mut left, mut locked) = (0, 0);
    for listed in listed {
        let (kind, number, name) = split(&listed)?;
        if touched.contains(&name) {
            left += 1;
            continue;
        }
        if view.is_locked(TreeId::LOCKS, &name) {
            left += 1;
            locked += 1;
            continue;
        }
        let tickets = locks.entry(name).or_default();
        if kind == WAITER {
            tickets.push(number);
        }
    }
    for (name, tickets) in locks {
        let mut lock = Evaluation::read(view, context, &name)?;
        lock.end_session(session, &tickets, is_clean)?;
        effects.extend(lock.finish()?);
        touched.push(name);
    }
    Ok((left, locked))
}

impl<V: View> Evaluation<'_, V> {
    /// [`LockCommand::AcquireOwned`](super::LockCommand::AcquireOwned).
    pub(super) fn acquire_owned(
        &mut self,
        owner: &IVec,
        request: &LockRequest,
        session: SessionId,
        waits: bool,
    ) -> Result<LockReply> {
        if self.context.sequence == PENDING_SEQUENCE {
            let what = "a transaction does not take a lock for a session".to_owned();
            return Err(Error::InvalidRequest(what));
        }
        if !session::is_live(self.view, session)? {
            return Err(Error::InvalidRequest(format!(
                "session {session}, which is to own a lock, is not open here"
            )));
        }
        // The end of time, which never comes.
        let request = LockRequest { lease_ms: u64::MAX, ..*request };
        self.acquire(owner, &request, if waits { u64::MAX } else { 0 }, Some(session))
    }

    /// Whether the session that something is to live with has ended.
    pub(super) fn is_without_session(&self, session: Option<SessionId>) -> Result<bool> {
        match session {
            None => Ok(false),
            Some(session) => Ok(self.ending == Some(session) || !session::is_live(self.view, session)?),
        }
    }

    fn end_session(&mut self, session: SessionId, tickets: &[u64], is_clean: bool) -> Result<()> {
        self.ending = Some(session);
        let (gone, stay): (Vec<_>, Vec<_>) = std::mem::take(&mut self.state.holders)
            .into_iter()
            .partition(|permit| permit.session == Some(session));
        self.state.holders = stay;
        for permit in gone {
            self.unlist(Some(session), GRANT, permit.token.0);
            if permit.delay_ms > 0 && !is_clean {
                let free_at_ms = self.context.time_ms.saturating_add(permit.delay_ms);
                self.state.free_at_ms = self.state.free_at_ms.max(free_at_ms);
            }
        }
        self.is_changed = true;
        // Passes over the session's own places.
        self.grant_next()?;
        let first = self.state.queue_from;
        for ticket in tickets.iter().copied().filter(|ticket| *ticket >= first) {
            super::queue::remove(self.name, ticket, &mut self.effects);
            self.unlist(Some(session), WAITER, ticket);
            self.state.waiting -= 1;
        }
        Ok(())
    }

    pub(super) fn list(&mut self, session: Option<SessionId>, kind: u8, number: u64) {
        if let Some(session) = session {
            let key = listing(session, kind, number, self.name);
            let tree = TreeId::SESSIONS;
            self.effects.push(Effect::Put { tree, key, value: IVec::new(), fresh: Some(true) });
        }
    }

    pub(super) fn unlist(&mut self, session: Option<SessionId>, kind: u8, number: u64) {
        if let Some(session) = session {
            let key = listing(session, kind, number, self.name);
            self.effects.push(Effect::Remove { tree: TreeId::SESSIONS, key });
        }
    }
}
