//! [`SessionLock`]: a lock that lives and dies with a session.

use std::time::Duration;

use tokio::time::Instant;

use super::{Lock, LockGuard};
use crate::IVec;
use crate::cluster::{Result, Session};

/// A lock, or one side of a read/write lock, or a semaphore, that is held under a [`Session`] instead of a lease
/// of its own; made by [`Lock::of_session`].
///
/// What is taken is held until it is released or the session ends, and so is the place in the queue of one who
/// waits. The end of the session in the partition is one entry of its log, and in that entry whoever waits is
/// granted the lock. If nobody has closed the session, the [delay](Lock::delay) follows.
///
/// [`LockGuard::lost`] tells when the session was not renewed and is about to end, and within a third of its lease when
/// the lock was [given back](Lock::release_grant) by somebody else. A guard keeps the session
/// open; [closing](Session::close) it ends the session all the same.
#[derive(Clone, Debug)]
pub struct SessionLock(Lock);

impl Lock {
    /// The same lock, taken for as long as a session lives.
    ///
    /// ```no_run
    /// # async fn work(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let session = client.session(Duration::from_secs(10));
    /// // One lease for all that this worker is and has.
    /// session.insert(&client.tree("workers"), "{shard 7}:worker", "10.0.0.7").await?;
    /// let guard = client.lock("{shard 7}").of_session(&session).acquire().await?;
    /// client.tree("shards").under(&guard).insert("{shard 7}:state", "mine").await?;
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
    /// [`Error::Invalid`](crate::cluster::Error::Invalid) if the session has ended, and those of
    /// [`Lock::try_acquire`].
    pub async fn try_acquire(&self) -> Result<Option<LockGuard>> {
        self.0.try_acquire(Duration::MAX).await
    }

    /// As [`Lock::resume`], with an owner that was [named](Lock::owner).
    ///
    /// # Errors
    /// Those of [reading](crate::cluster#reads).
    pub async fn resume(&self) -> Result<Option<LockGuard>> {
        self.0.resume().await
    }

    /// As [`Lock::acquire`].
    ///
    /// # Errors
    /// As [`SessionLock::try_acquire`], also if the session ends meanwhile.
    pub async fn acquire(&self) -> Result<LockGuard> {
        self.0.acquire(Duration::MAX).await
    }

    /// As [`Lock::acquire_timeout`].
    ///
    /// # Errors
    /// As [`SessionLock::acquire`].
    pub async fn acquire_timeout(&self, timeout: Duration) -> Result<Option<LockGuard>> {
        // A timeout beyond what the clock can express is for ever.
        self.0.acquire_before(Duration::MAX, Instant::now().checked_add(timeout)).await
    }
}
