//! [`OpenSession`]: which sessions there are and what each of them owns, for people who look.
//!
//! What is told is of one position of the log. A page ends with the session that makes it long enough, so that
//! neither thousands of sessions nor one that owns thousands of keys make an answer of many megabytes; of a session that
//! owns more than [`MAX_OWNED`] the rest is only said to be there.
//!
//! **How long a session has still to live** is for the leader to say: the lease is over when it has passed by the
//! log's time *and* the leader has seen all of it pass by its own clock ([`crate::session`]). So it is the longer
//! of the two that is left: [`OpenSession::left_ms`].

use std::ops::Bound;

use bincode::{Decode, Encode};

use crate::codec::Listed;
use crate::group::SessionId;
use crate::lock::FencingToken;
use crate::snapshot::Snapshot;
use crate::{IVec, Result, TreeId, lock, owned, session};

/// The most of what one session owns that is told.
pub const MAX_OWNED: usize = 256;
/// The most sessions in one answer.
pub const MAX_SESSIONS: usize = 256;
/// A page ends with the session that reaches so many bytes of names and keys.
const PAGE_BYTES: usize = 1 << 20;

/// A session that has not ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct OpenSession {
    /// Its number.
    pub session: SessionId,
    /// How long it lives without renewal.
    pub lease_ms: u64,
    /// The log's time at which that is over.
    pub expires_ms: u64,
    /// How many answers to commands of a client are remembered with it; 0: it is an application's.
    pub answers: u32,
    /// What dies with it: the first [`MAX_OWNED`], in the order of trees and keys.
    pub owned: Listed<Owned>,
    /// Whether it owns more.
    pub owns_more: bool,
}

/// What belongs to a session.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Owned {
    /// A key; one that was written by others since, or removed, is not its own any more and not told.
    Key {
        /// The tree's name.
        tree: IVec,
        /// Which.
        key: IVec,
    },
    /// A lock, or permits of one.
    Lock {
        /// Its name.
        name: IVec,
        /// The token of the grant.
        token: FencingToken,
    },
    /// A place in the queue for a lock.
    Place {
        /// The lock's name.
        name: IVec,
        /// The number under which it waits.
        ticket: u64,
    },
}

impl OpenSession {
    /// What is left of the lease at a time of the log, if a leader has seen so much pass since it leads.
    pub fn left_ms(&self, now_ms: u64, led_ms: u64) -> u64 {
        self.expires_ms.saturating_sub(now_ms).max(self.lease_ms.saturating_sub(led_ms))
    }
}

/// The sessions behind `after`, in the order of their numbers, at most [`MAX_SESSIONS`] and `limit`; and whether there
/// are more.
pub(crate) fn page(
    snapshot: &Snapshot,
    after: Option<SessionId>,
    limit: usize,
) -> Result<(Vec<OpenSession>, bool)> {
    let limit = limit.clamp(1, MAX_SESSIONS);
    let (low, high) = session::records_after(after);
    let (mut found, mut bytes) = (Vec::new(), 0);
    for entry in snapshot.range(TreeId::SESSIONS, low, high) {
        let (key, stored) = entry?;
        let Some((session, lease_ms, expires_ms)) = session::open_record(&key, &stored.value)? else {
            continue;
        };
        if found.len() >= limit || bytes >= PAGE_BYTES {
            return Ok((found, true));
        }
        let (owned, owns_more) = owned_by(snapshot, session)?;
        bytes += owned.iter().map(Owned::bytes).sum::<usize>();
        let answers = count(snapshot, session::slots_of(session))?;
        let owned = Listed(owned);
        found.push(OpenSession { session, lease_ms, expires_ms, answers, owned, owns_more });
    }
    Ok((found, false))
}

impl Owned {
    fn bytes(&self) -> usize {
        match self {
            Owned::Key { tree, key } => tree.len() + key.len(),
            Owned::Lock { name, .. } | Owned::Place { name, .. } => name.len(),
        }
    }
}

fn count(snapshot: &Snapshot, (low, high): (IVec, IVec)) -> Result<u32> {
    let mut count = 0;
    for entry in snapshot.range(TreeId::SESSIONS, Bound::Included(low), Bound::Included(high)) {
        entry?;
        count += 1;
    }
    Ok(count)
}

fn owned_by(snapshot: &Snapshot, session: SessionId) -> Result<(Vec<Owned>, bool)> {
    let (low, high) = session::owned_range(session);
    let mut found = Vec::new();
    for entry in snapshot.range(TreeId::SESSIONS, Bound::Included(low), Bound::Included(high)) {
        let (listed, stored) = entry?;
        if found.len() == MAX_OWNED {
            return Ok((found, true));
        }
        if lock::is_listed(&listed) {
            found.push(lock::listed_lock(&listed)?);
            continue;
        }
        let (tree, key, version) = owned::listed_key(&listed, &stored)?;
        if let Some(name) = snapshot.state().catalog.ids.get(&tree)
            && snapshot.get(tree, &key)?.is_some_and(|current| current.version == version)
        {
            found.push(Owned::Key { tree: name.clone(), key });
        }
    }
    Ok((found, false))
}
