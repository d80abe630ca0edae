//! [`Error`]: what can go wrong on the way to a cluster, by what the caller can do.

use std::fmt;

/// The result of everything that a cluster can refuse.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong, by what the caller can do about it.
///
/// Whether a write has happened is never left to guess: only after [`Error::OutcomeUnknown`] it may
/// have.
///
/// | the caller | variant |
/// |---|---|
/// | tries again later | [`Error::Unavailable`] |
/// | changes the request | [`Error::Invalid`] |
/// | reads before it writes again | [`Error::OutcomeUnknown`] |
/// | stops what it does under a lock | [`Error::LockNotHeld`] |
/// | shows an administrator's certificate | [`Error::Denied`] |
/// | looks at the cluster again | [`Error::Conflict`] |
/// | removes something, or gives the nodes more space | [`Error::NoSpace`] |
/// | removes something from the tree, or raises its quota | [`Error::QuotaExceeded`] |
/// | opens another client | [`Error::Closed`] |
/// | updates one of the two sides | [`Error::Incompatible`] |
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Nothing was done, and nothing will be: no node that could serve the request was reached before
    /// the deadline, or there was no quorum. Try again later.
    Unavailable(String),
    /// Nothing was done, and nothing will be: the request cannot be carried out as it stands (a key
    /// that is too long, a batch over several partitions…). Change it.
    Invalid(String),
    /// The deadline passed, or the session ended, before the outcome was heard. The write may have
    /// happened, and may still happen. Read, if that matters, before writing again.
    ///
    /// Within the deadline the client repeats what it did not hear the outcome of, so this is rare:
    /// see [`cluster`](crate::cluster#writes).
    OutcomeUnknown(String),
    /// Nothing was done, and nothing will be: the client's certificate does not permit it. Only an
    /// [administrator](super::certs::Authority::administrator) changes a cluster's members.
    Denied(String),
    /// Nothing was done: somebody else has changed the cluster since it was looked at. Look again, and
    /// ask again if it is still what is wanted.
    Conflict(String),
    /// Nothing was done: the disks of a majority of the partition's replicas are nearly full, so that it takes no
    /// writes, only what removes something. Remove something, or give the nodes space; writes go on by themselves
    /// then.
    NoSpace(String),
    /// Nothing was done, and nothing will be: the write demanded that a lock be held under a token
    /// ([`Tree::under`](super::Tree::under)), and it is not. Stop what is done under the lock.
    LockNotHeld {
        /// The lock.
        lock: crate::IVec,
        /// The token that was presented.
        token: crate::FencingToken,
        /// The largest token of those who hold it now.
        current: Option<crate::FencingToken>,
    },
    /// Nothing was done, and nothing will be: a tree would have more in this partition than its share of the tree's
    /// quota; see [`Client::set_tree_quota`](super::Client::set_tree_quota). Remove something from the tree, or raise
    /// the quota.
    QuotaExceeded(crate::QuotaExceeded),
    /// Nothing was done: the client, or the node that it belongs to, was closed.
    Closed,
    /// The answer of the cluster is not what this version understands: client and nodes are of
    /// versions that do not fit. A write has perhaps happened.
    Incompatible(String),
}

impl Error {
    /// Whether it is certain that nothing was done and nothing will be.
    pub fn is_definite(&self) -> bool {
        !matches!(self, Error::OutcomeUnknown(_) | Error::Incompatible(_))
    }

    /// Whether the same call may succeed later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Error::Unavailable(_))
    }
}

/// What becomes of something that was done in parts, each for itself: if one failed, its error when nothing at all was
/// done, and otherwise that it is not known.
pub(super) fn of_parts<T>(parts: Vec<Result<T>>) -> Result<Vec<T>> {
    let count = parts.len();
    let (mut done, mut failed) = (Vec::with_capacity(count), Vec::new());
    for part in parts {
        match part {
            Ok(part) => done.push(part),
            Err(error) => failed.push(error),
        }
    }
    match failed.first() {
        None => Ok(done),
        Some(first) if done.is_empty() && failed.iter().all(Error::is_definite) => Err(first.clone()),
        Some(first) => {
            let done = done.len();
            Err(Error::OutcomeUnknown(format!("{done} of {count} partitions have done their part: {first}")))
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Unavailable(why) => write!(f, "the cluster is not available, try again: {why}"),
            Error::Invalid(what) => write!(f, "invalid request: {what}"),
            Error::OutcomeUnknown(why) => write!(f, "whether it has happened is not known: {why}"),
            Error::Denied(what) => write!(f, "not permitted: {what}"),
            Error::Conflict(what) => write!(f, "conflict: {what}"),
            Error::NoSpace(what) => write!(f, "no space for writes: {what}"),
            Error::LockNotHeld { lock, token, current } => {
                let (lock, token) = (lock.clone(), *token);
                dogsled_storage::Error::LockNotHeld { lock, token, current: *current }.fmt(f)
            }
            Error::QuotaExceeded(exceeded) => write!(f, "in this partition {exceeded}"),
            Error::Closed => f.write_str("the client was closed"),
            Error::Incompatible(what) => {
                write!(f, "client and node are of versions that do not fit: {what}")
            }
        }
    }
}

impl std::error::Error for Error {}
