//! [`SessionLock`]: a lock that lives and dies with a session.

use std::time::Duration;

use super::{Lock, LockGuard};
use crate::{IVec, Result, Session};

/// A lock, or one side of a read/write lock, or a semaphore, that is held under a [`Session`] instead of a lease
/// of its own; made by [`Lock::of_session`].
///
/// What is taken is held until it is released or the session ends; in the very commit in which it ends the lock is
/// free. If nobody has closed the session, the [delay](Lock::delay) follows.
///
/// A guard tells when the session was not renewed and is about to end, and keeps the session open;
/// [closing](Session::close) it ends the session all the same.
#[derive(Clone, Debug)]
pub struct SessionLock(Lock);

impl Lock {
    /// The same lock, taken for as long as a session lives.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let session = db.session(Duration::from_secs(10))?;
    /// // One lease for all that this worker is and has.
    /// session.insert(&db, "shard 7: worker", "thread 7")?;
    /// let guard = db.lock("shard 7").of_session(&session).acquire()?;
    /// db.under(&guard).insert("shard 7: state", "mine")?;
    /// session.close()?;
    /// assert!(db.under(&guard).insert("shard 7: state", "still mine").is_err());
    /// assert_eq!(db.lock("shard 7").holder()?, None);
    /// # Ok(()) }
    /// ```
    pub fn of_session(mut self, session: &Session) -> SessionLock {
        self.session = Some(session.clone());
        SessionLock(self)
    }
}

impl SessionLock {
    /// The lock's name.
    pub fn name(&self) -> &IVec {
        self.0.name()
    }

    /// As [`Lock::try_acquire`].
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) if the session has ended, and those of
    /// [`Lock::try_acquire`].
    pub fn try_acquire(&self) -> Result<Option<LockGuard>> {
        self.0.try_acquire(Duration::MAX)
    }

    /// As [`Lock::resume`], with an owner that was [named](Lock::owner).
    ///
    /// # Errors
    /// Those of reading.
    pub fn resume(&self) -> Result<Option<LockGuard>> {
        self.0.resume()
    }

    /// As [`Lock::acquire`].
    ///
    /// # Errors
    /// As [`SessionLock::try_acquire`]; if the session ends meanwhile, at once.
    pub fn acquire(&self) -> Result<LockGuard> {
        self.0.acquire(Duration::MAX)
    }

    /// As [`Lock::acquire_timeout`].
    ///
    /// # Errors
    /// As [`SessionLock::acquire`].
    pub fn acquire_timeout(&self, timeout: Duration) -> Result<Option<LockGuard>> {
        self.0.acquire_timeout(Duration::MAX, timeout)
    }
}
