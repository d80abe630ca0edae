//! Fencing: a write that takes place only while a lock is held.
//!
//! # Promise
//!
//! A write that names a [`Fence`] is carried out only if, at its own position of the log, the lock is held
//! under that token; otherwise nothing is changed and the caller is told
//! ([`Error::LockNotHeld`]). So a holder that was paused for longer than its lease, and goes on
//! believing that it holds the lock, can do no harm: by the time its write takes effect the lock has another
//! holder, whose token is larger, or none.
//!
//! This is the check that no client can make for itself: between its look at the lock and its write
//! anything may happen. Here both are one entry of the log.
//!
//! Any command can be fenced: [`Operation::Fenced`](crate::Operation::Fenced) on a cluster,
//! [`Engine::execute_fenced`](crate::Engine::execute_fenced) in an embedded database. Of a lock with
//! several holders (readers, a semaphore) the token may be that of any.
//!
//! # What must lie together
//!
//! A partition knows only the locks that are its own. On a cluster lock and keys must be of one partition: give
//! their names a common `{tag}`, as in `{printer}` for the lock and `{printer}:queue` for a key. What is not there is
//! not held, so a write that is sent to another partition is refused and never let through.

use std::fmt;

use bincode::{Decode, Encode};

use crate::evaluate::{Context, View};
use crate::lock::{self, FencingToken};
use crate::{Error, IVec, Result};

/// The most fences that one command may have.
pub const MAX_FENCES: usize = 64;

/// A lock that must be held under a token.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Fence {
    /// The lock's name.
    pub lock: IVec,
    /// The token of a grant.
    pub token: FencingToken,
}

/// Refuses unless every lock is held under its token.
///
/// # Errors
/// [`Error::LockNotHeld`] of the first that is not, [`Error::InvalidRequest`] for more than
/// [`MAX_FENCES`], and those of reading the view.
pub fn check(view: &impl View, context: &Context, fences: &[Fence]) -> Result<()> {
    if fences.len() > MAX_FENCES {
        let what = format!("{} fences are over the limit of {MAX_FENCES}", fences.len());
        return Err(Error::InvalidRequest(what));
    }
    for fence in fences {
        let found = lock::state::read(view, &fence.lock)?;
        let mut live = found.iter().flat_map(|(state, _)| state.live(context.time_ms));
        let mut current = None;
        if !live.any(|permit| {
            current = current.max(Some(permit.token));
            permit.token == fence.token
        }) {
            return Err(Error::LockNotHeld { lock: fence.lock.clone(), token: fence.token, current });
        }
    }
    Ok(())
}

/// The sentence for people.
pub(crate) fn explain(
    f: &mut fmt::Formatter<'_>,
    lock: &[u8],
    token: FencingToken,
    current: Option<FencingToken>,
) -> fmt::Result {
    let lock = lock.escape_ascii();
    write!(f, "lock \"{lock}\" is not held under token {token} any more, so nothing was written: ")?;
    match current {
        Some(current) => write!(f, "token {current} holds it"),
        None => f.write_str("nobody holds it"),
    }
}
