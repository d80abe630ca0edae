//! Who waits for a lock, in the order of arrival; and when locks are due.
//!
//! In [`TreeId::LOCK_QUEUES`]; numbers in keys are big-endian:
//!
//! | key | value |
//! |---|---|
//! | 1, `due_ms` (8), name | nothing: at that time of the log something about the lock changes by itself |
//! | 2, length of the name (2), name, ticket (8) | version 2, then in bincode the [`Waiter`] |
//!
//! A ticket is the position of the entry with which the waiter came, so tickets are never given
//! twice, and their order is that of arrival. A waiter that leaves the queue, whether it was granted the
//! lock or not, leaves by the removal of its key: whoever waits watches that one key, and is woken once.

use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::codec;
use crate::command::TreeId;
use crate::evaluate::{Effect, Effects, View};
use crate::group::SessionId;
use crate::{Error, IVec, Result};

const DUE: u8 = 1;
const WAITER: u8 = 2;

const RECORD_VERSION: u8 = 2;

/// Somebody who waits.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Waiter {
    /// Who.
    pub owner: IVec,
    /// How many permits it wants.
    pub permits: u32,
    /// The lease that it wants, from the grant on.
    pub lease_ms: u64,
    /// The delay that is to follow an unclean end of its grant.
    pub delay_ms: u64,
    /// The log's time at which it counts as gone unless it says that it still waits.
    pub expires_ms: u64,
    /// The session that it, and its grant, live with.
    pub session: Option<SessionId>,
}

impl Waiter {
    /// Whether it counts as gone.
    pub fn has_gone(&self, time_ms: u64) -> bool {
        self.expires_ms <= time_ms && self.expires_ms != u64::MAX
    }
}

fn waiter_prefix(name: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(11 + name.len());
    key.push(WAITER);
    let length = u16::try_from(name.len()).expect("the name of a lock is within its limit");
    key.extend_from_slice(&length.to_be_bytes());
    key.extend_from_slice(name);
    key
}

/// The key that is there while somebody waits under that ticket.
pub fn waiter_key(name: &[u8], ticket: u64) -> IVec {
    let mut key = waiter_prefix(name);
    key.extend_from_slice(&ticket.to_be_bytes());
    IVec::from(key)
}

fn due_key(due_ms: u64, name: &[u8]) -> IVec {
    let mut key = Vec::with_capacity(9 + name.len());
    key.push(DUE);
    key.extend_from_slice(&due_ms.to_be_bytes());
    key.extend_from_slice(name);
    IVec::from(key)
}

/// Whoever waits under that ticket.
pub(super) fn waiter(view: &impl View, name: &[u8], ticket: u64) -> Result<Option<Waiter>> {
    match view.get(TreeId::LOCK_QUEUES, &waiter_key(name, ticket))? {
        Some(stored) => decode(name, &stored.value).map(Some),
        None => Ok(None),
    }
}

fn decode(name: &[u8], bytes: &[u8]) -> Result<Waiter> {
    codec::decode_record(RECORD_VERSION, bytes).map_err(|what| {
        let what = format!("a waiter for lock \"{}\": {what}", name.escape_ascii());
        Error::corrupt("the tree of waiters", None, what)
    })
}

/// Where the waiters of all locks stand, for those who count them.
pub(crate) fn all_waiters() -> (Bound<IVec>, Bound<IVec>) {
    (Bound::Included(IVec::from(&[WAITER][..])), Bound::Excluded(IVec::from(&[WAITER + 1][..])))
}

/// Where those of one lock stand, in their order.
pub(crate) fn waiters_of(name: &[u8]) -> (Bound<IVec>, Bound<IVec>) {
    (Bound::Included(waiter_key(name, 0)), Bound::Included(waiter_key(name, u64::MAX)))
}

/// Whoever waits under an entry of that range, and the ticket.
pub(crate) fn decode_entry(name: &[u8], key: &[u8], value: &[u8]) -> Result<(u64, Waiter)> {
    let ticket = u64::from_be_bytes(*key.last_chunk().expect("a waiter's key ends with its ticket"));
    Ok((ticket, decode(name, value)?))
}

/// The first who waits with a ticket from `from` on.
pub(super) fn first(view: &impl View, name: &[u8], from: u64) -> Result<Option<(u64, Waiter)>> {
    let (low, high) = (waiter_key(name, from), waiter_key(name, u64::MAX));
    let mut found = None;
    view.scan(TreeId::LOCK_QUEUES, Bound::Included(&low), Bound::Included(&high), &mut |key, _| {
        found = Some(IVec::from(key));
        false
    })?;
    let Some(key) = found else { return Ok(None) };
    let stored = view.get(TreeId::LOCK_QUEUES, &key)?;
    let stored = stored.expect("a key that was just found is there");
    decode_entry(name, &key, &stored.value).map(Some)
}

pub(super) fn put(name: &[u8], ticket: u64, waiter: &Waiter, fresh: bool, effects: &mut Effects) {
    let value = IVec::from(codec::encode_record(RECORD_VERSION, waiter));
    let key = waiter_key(name, ticket);
    effects.push(Effect::Put { tree: TreeId::LOCK_QUEUES, key, value, fresh: Some(fresh) });
}

pub(super) fn remove(name: &[u8], ticket: u64, effects: &mut Effects) {
    effects.push(Effect::Remove { tree: TreeId::LOCK_QUEUES, key: waiter_key(name, ticket) });
}

/// Moves a lock within the index of due times; 0: it does not stand there.
pub(super) fn move_due(name: &[u8], before_ms: u64, after_ms: u64, effects: &mut Effects) {
    if before_ms == after_ms {
        return;
    }
    let tree = TreeId::LOCK_QUEUES;
    if before_ms != 0 {
        effects.push(Effect::Remove { tree, key: due_key(before_ms, name) });
    }
    if after_ms != 0 {
        let key = due_key(after_ms, name);
        effects.push(Effect::Put { tree, key, value: IVec::new(), fresh: Some(true) });
    }
}

/// Names of locks that are due at this time of the log, at most `limit`; and whether there are more.
pub(super) fn due(view: &impl View, time_ms: u64, limit: usize) -> Result<(Vec<IVec>, bool)> {
    crate::expiry::due_keys(view, TreeId::LOCK_QUEUES, time_ms, limit).map(|(keys, more)| {
        let names = keys.into_iter().map(|key| IVec::from(key.get(9..).unwrap_or_default()));
        (names.collect(), more)
    })
}
