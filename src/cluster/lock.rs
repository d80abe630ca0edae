//! [`Lock`]: excluding each other, with leases and fencing tokens.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogsled_replication::Consistency;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::{Command, GroupRead, GroupReadReply, Reply};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::core::unexpected;
use super::session::random_u64;
use super::{Client, Result};
use crate::lock::milliseconds;
use crate::{FencingToken, Holder, IVec, NotHeld};

/// How often a lock that is held is looked at.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(250));

/// A named lock of a cluster; made by [`Client::lock`].
///
/// The methods are those of the embedded [`Lock`](crate::Lock). A lease ends by the time of the cluster's
/// log, never by the client's clock; a holder that is paused for longer goes on believing that it
/// holds the lock. So send the [token](LockGuard::token) along with what is done under it, and let
/// whatever is written to refuse a token that is smaller than one it has seen.
///
/// # Waiting
///
/// [`Lock::acquire`] **polls**: there is no queue of waiters in the cluster. While the lock is held, it
/// reads who holds it, at first every 10 ms and then ever more seldom, up to every 250 ms; such reads
/// write nothing. It asks for the lock when it is free, or when the holder's lease should have ended.
/// So a lock that is given back is taken within a quarter of a second, and by **whoever comes first**:
/// nobody is promised a turn.
#[derive(Clone)]
pub struct Lock {
    client: Client,
    name: IVec,
    owner: IVec,
}

/// An owner's name that nobody else has, and that a person can make something of.
fn default_owner() -> IVec {
    static HANDLES: AtomicU64 = AtomicU64::new(0);
    let number = HANDLES.fetch_add(1, Ordering::Relaxed);
    IVec::from(format!("process {} handle {number} {:016x}", std::process::id(), random_u64()))
}

/// What came of one try.
enum Try {
    Granted(LockGuard),
    /// And so much is left of the holder's lease.
    Held(Duration),
}

impl Lock {
    pub(super) fn new(client: Client, name: IVec) -> Lock {
        Lock { client, name, owner: default_owner() }
    }

    /// Asks under this name: bytes that nobody else uses. Needed by those who want to
    /// [resume](Lock::resume) after a restart.
    #[must_use]
    pub fn owner(mut self, owner: impl AsRef<[u8]>) -> Lock {
        self.owner = IVec::from(owner.as_ref());
        self
    }

    /// The lock's name.
    pub fn name(&self) -> &IVec {
        &self.name
    }

    /// The reply, and the log's time there.
    async fn execute(&self, command: LockCommand) -> Result<(LockReply, u64)> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        match core.execute(group, Vec::new(), Command::Lock(command), until).await? {
            (Reply::Lock(reply), time_ms) => Ok((reply, time_ms)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn try_once(&self, lease: Duration) -> Result<Try> {
        let (name, owner) = (self.name.clone(), self.owner.clone());
        // The lease is counted from before it can have begun: what is left of it is never overstated.
        let asked = Instant::now();
        let command = LockCommand::TryAcquire { name, owner, lease_ms: milliseconds(lease) };
        match self.execute(command).await? {
            (LockReply::Acquired { token, expires_ms }, _) => {
                Ok(Try::Granted(self.guard(token, expires_ms, asked.checked_add(lease))))
            }
            (LockReply::Held { expires_ms, .. }, time_ms) => {
                Ok(Try::Held(Duration::from_millis(expires_ms.saturating_sub(time_ms))))
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    fn guard(&self, token: FencingToken, expires_ms: u64, valid_until: Option<Instant>) -> LockGuard {
        let expires_ms = AtomicU64::new(expires_ms);
        let valid_until = Mutex::new(valid_until);
        LockGuard { lock: self.clone(), token, expires_ms, valid_until, is_released: false }
    }

    /// Takes the lock if it is free; `None` if someone holds it, be it this owner.
    ///
    /// ```no_run
    /// # async fn exclude(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// match client.lock("nightly job").try_acquire(Duration::from_secs(10)).await? {
    ///     Some(guard) => println!("under token {}", guard.token()),
    ///     None => println!("somebody else does it"),
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [writing](super#writes). After
    /// [`Error::OutcomeUnknown`](super::Error::OutcomeUnknown), [`Lock::resume`] tells.
    pub async fn try_acquire(&self, lease: Duration) -> Result<Option<LockGuard>> {
        match self.try_once(lease).await? {
            Try::Granted(guard) => Ok(Some(guard)),
            Try::Held(_) => Ok(None),
        }
    }

    /// Waits until the lock is free and takes it; see [waiting](Lock#waiting). The client's deadline is
    /// for each request, not for the wait.
    ///
    /// # Errors
    /// As [`Lock::try_acquire`].
    pub async fn acquire(&self, lease: Duration) -> Result<LockGuard> {
        let granted = self.acquire_before(lease, None).await?;
        Ok(granted.expect("without a deadline there is no end but a grant or an error"))
    }

    /// As [`Lock::acquire`], but gives up after `timeout`.
    ///
    /// # Errors
    /// As [`Lock::try_acquire`].
    pub async fn acquire_timeout(&self, lease: Duration, timeout: Duration) -> Result<Option<LockGuard>> {
        // A timeout beyond what the clock can express is for ever.
        self.acquire_before(lease, Instant::now().checked_add(timeout)).await
    }

    async fn acquire_before(&self, lease: Duration, deadline: Option<Instant>) -> Result<Option<LockGuard>> {
        loop {
            let left = match self.try_once(lease).await? {
                Try::Granted(guard) => return Ok(Some(guard)),
                Try::Held(left) => left,
            };
            // The log's time stands still while nobody writes: that the lease has ended shows only when
            // the lock is asked for.
            let ends = Instant::now().checked_add(left);
            let mut wait = LOOK.0;
            loop {
                let now = Instant::now();
                if deadline.is_some_and(|deadline| now >= deadline) {
                    return Ok(None);
                }
                let latest = [deadline, ends].into_iter().flatten().min();
                let most = latest.map_or(wait, |latest| wait.min(latest.saturating_duration_since(now)));
                sleep(most.max(Duration::from_millis(1))).await;
                wait = LOOK.1.min(wait.mul_f64(1.0 + self.client.core().jitter()));
                if ends.is_some_and(|ends| Instant::now() >= ends) || self.holder().await?.is_none() {
                    break;
                }
            }
        }
    }

    /// Takes up the lock if this owner holds it already: after a restart of the process, or when the
    /// outcome of acquiring it was not heard.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn resume(&self) -> Result<Option<LockGuard>> {
        let holder = self.holder().await?.filter(|holder| holder.owner == self.owner);
        // How much of the lease is left is not known here before it is renewed.
        Ok(holder.map(|holder| self.guard(holder.token, holder.expires_ms, Some(Instant::now()))))
    }

    /// Who holds the lock, by the time of the last write in its partition; `None`: nobody, or nobody
    /// any more.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn holder(&self) -> Result<Option<Holder>> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        let read = GroupRead::LockHolder { name: self.name.clone() };
        match core.read(group, &read, Consistency::Linearizable, until).await?.reply {
            GroupReadReply::LockHolder(holder) => Ok(holder),
            other => Err(unexpected(&other)),
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("name", &self.name).field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// A lock that is held, until its lease ends or this is dropped.
///
/// Dropping releases in the background, without telling whether the lock was still held;
/// [`LockGuard::release`] waits, and tells.
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    lock: Lock,
    token: FencingToken,
    expires_ms: AtomicU64,
    /// By this machine's clock; `None`: for ever.
    valid_until: Mutex<Option<Instant>>,
    is_released: bool,
}

impl LockGuard {
    /// The number of this grant, larger than those of all earlier grants of this lock.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// Who holds it.
    pub fn owner(&self) -> &IVec {
        &self.lock.owner
    }

    /// When the lease ends, in milliseconds since 1970 by the cluster's log.
    pub fn expires_ms(&self) -> u64 {
        self.expires_ms.load(Ordering::Relaxed)
    }

    /// What is left of the lease at least, as far as this machine's clock can tell: counted from before
    /// it was asked for. Nothing after [`Lock::resume`], until it is renewed.
    pub fn remaining(&self) -> Duration {
        self.valid_until.lock().map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Starts the lease anew, from now.
    ///
    /// # Errors
    /// Outer: those of [writing](super#writes). Inner: [`NotHeld`]; what is done under the lock must stop.
    pub async fn renew(&self, lease: Duration) -> Result<std::result::Result<(), NotHeld>> {
        let (name, owner) = (self.lock.name.clone(), self.lock.owner.clone());
        let asked = Instant::now();
        let command = LockCommand::Renew { name, owner, token: self.token, lease_ms: milliseconds(lease) };
        match self.lock.execute(command).await?.0 {
            LockReply::Renewed { expires_ms } => {
                self.expires_ms.store(expires_ms, Ordering::Relaxed);
                *self.valid_until.lock() = asked.checked_add(lease);
                Ok(Ok(()))
            }
            LockReply::NotHeld => Ok(Err(NotHeld)),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives the lock back.
    ///
    /// # Errors
    /// Outer: those of [writing](super#writes); then the lock is free when its lease ends, if not before.
    /// Inner: [`NotHeld`], if the lease had ended before.
    pub async fn release(mut self) -> Result<std::result::Result<(), NotHeld>> {
        let released = release(&self.lock, self.token).await;
        // Not before: a caller that gives up waiting drops the guard, which tries again.
        self.is_released = true;
        released
    }

    /// Forgets the guard without giving the lock back: it is held until its lease ends, or until it is
    /// taken up by [`Lock::resume`].
    pub fn keep(mut self) {
        self.is_released = true;
    }
}

async fn release(lock: &Lock, token: FencingToken) -> Result<std::result::Result<(), NotHeld>> {
    let (name, owner) = (lock.name.clone(), lock.owner.clone());
    match lock.execute(LockCommand::Release { name, owner, token }).await?.0 {
        LockReply::Released => Ok(Ok(())),
        LockReply::NotHeld => Ok(Err(NotHeld)),
        other => Err(unexpected(&other)),
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if !self.is_released {
            let (lock, token) = (self.lock.clone(), self.token);
            // If this fails, the end of the lease releases the lock.
            self.lock.client.runtime().spawn(async move { release(&lock, token).await });
        }
    }
}

impl fmt::Debug for LockGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LockGuard")
            .field("lock", &self.lock)
            .field("token", &self.token)
            .finish_non_exhaustive()
    }
}
