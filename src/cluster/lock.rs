//! [`Lock`]: excluding each other, with leases, fencing tokens and a queue of those who wait.

mod guard;
mod of_session;
mod unheard;
mod wait;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogsled_storage::lock::{LockCommand, LockReply, LockRequest, READ_WRITE};
use dogsled_storage::{Command, GroupRead, GroupReadReply, LOCKS_TREE_NAME, Reply};
use tokio::time::Instant;

pub use self::guard::LockGuard;
pub use self::of_session::SessionLock;
use self::wait::{LogTime, WAIT_LEASE, Waited};
use super::core::unexpected;
use super::session::random_u64;
use super::{Client, ReadFrom, Result, Session};
use crate::lock::{LONGEST_DELAY, milliseconds};
use crate::{FencingToken, Holder, IVec, LockHolders, NotHeld};

/// A named lock of a cluster; made by [`Client::lock`], or as one side of a read/write lock by
/// [`Client::read_lock`] and [`Client::write_lock`], or as a semaphore by [`Client::semaphore`].
///
/// The methods are those of the embedded [`Lock`](crate::Lock).
///
/// # Waiting
///
/// Whoever has to wait stands in a queue that is part of the partition's log: it survives the loss of nodes, and
/// is served in the order of arrival, writers and readers alike. Nobody polls. A waiter follows one key that
/// vanishes when it is granted the lock, which happens in the very entry that frees it. Every ten seconds it
/// says that it still waits; one that has not been heard of for thirty is passed over.
///
/// # Leases, and being paused
///
/// A guard renews its lease in the background, every third of it. If that fails until the lease nears its
/// end, [`LockGuard::lost`] tells, in time to stop. A lease ends by the time of the cluster's log, which
/// passes as time does whatever the machines' clocks are set to.
///
/// A process that is paused as a whole notices nothing, and goes on believing that it holds the lock. Against that
/// there is the [token](LockGuard::token): writes to this cluster through [`Tree::under`](super::Tree::under)
/// are carried out only while the lock is held, by the same log that grants it. What is done elsewhere should carry the token, and
/// be refused where a larger one was seen.
#[derive(Clone)]
pub struct Lock {
    client: Client,
    name: IVec,
    owner: IVec,
    permits: u32,
    capacity: u32,
    delay: Duration,
    renews: bool,
    /// What it lives with.
    session: Option<Session>,
}

/// An owner's name that nobody else has, and that a person can make something of.
fn default_owner() -> IVec {
    static HANDLES: AtomicU64 = AtomicU64::new(0);
    let number = HANDLES.fetch_add(1, Ordering::Relaxed);
    IVec::from(format!("process {} handle {number} {:016x}", std::process::id(), random_u64()))
}

impl Lock {
    pub(super) fn new(client: Client, name: IVec, permits: u32, capacity: u32) -> Lock {
        let (owner, delay, renews) = (default_owner(), Duration::ZERO, true);
        Lock { client, name, owner, permits, capacity, delay, renews, session: None }
    }

    pub(super) fn reader(client: Client, name: IVec) -> Lock {
        Lock::new(client, name, 1, READ_WRITE)
    }

    pub(super) fn writer(client: Client, name: IVec) -> Lock {
        Lock::new(client, name, READ_WRITE, READ_WRITE)
    }

    /// Asks under this name: bytes that nobody else uses. Needed by those who want to
    /// [resume](Lock::resume) after a restart.
    #[must_use]
    pub fn owner(mut self, owner: impl AsRef<[u8]>) -> Lock {
        self.owner = IVec::from(owner.as_ref());
        self
    }

    /// Asks for so many permits of a semaphore at a time instead of one.
    #[must_use]
    pub fn permits(mut self, permits: u32) -> Lock {
        self.permits = permits;
        self
    }

    /// If the lease ends without release, nobody is granted the lock for so long: time for a holder that
    /// was paused to find out. At most a day, as nothing ends a delay before its time.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Lock {
        self.delay = delay.min(LONGEST_DELAY);
        self
    }

    /// Guards do not renew their lease by themselves.
    #[must_use]
    pub fn without_renewal(mut self) -> Lock {
        self.renews = false;
        self
    }

    /// The lock's name.
    pub fn name(&self) -> &IVec {
        &self.name
    }

    /// The answer, and the log's time there.
    async fn execute(&self, command: LockCommand) -> Result<(LockReply, u64)> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        match core.execute(group, Vec::new(), Command::Lock(command), until).await? {
            (Reply::Lock(reply), time_ms) => Ok((reply, time_ms)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn ask(&self, lease: Duration, wait: Duration) -> Result<(LockReply, LogTime)> {
        let request = LockRequest {
            permits: self.permits,
            capacity: self.capacity,
            lease_ms: milliseconds(lease),
            delay_ms: milliseconds(self.delay),
        };
        let (name, owner, wait_ms) = (self.name.clone(), self.owner.clone(), milliseconds(wait));
        let command = match &self.session {
            None => LockCommand::Acquire { name, owner, request, wait_ms },
            Some(session) => {
                session.open_for(LOCKS_TREE_NAME, &self.name).await?;
                let (session, waits) = (session.id(), wait_ms > 0);
                LockCommand::AcquireOwned { name, owner, request, session, waits }
            }
        };
        self.ask_for(command).await
    }

    /// Takes the lock if it is free and nobody waits for it; `None` if someone holds it, be it this owner.
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
    /// [`Error::Invalid`](super::Error::Invalid) if the lock is in use with another capacity, and those of
    /// [writing](super#writes). After [`Error::OutcomeUnknown`](super::Error::OutcomeUnknown)
    /// it is given back in the background, if it was taken: ask again.
    pub async fn try_acquire(&self, lease: Duration) -> Result<Option<LockGuard>> {
        match self.ask(lease, Duration::ZERO).await? {
            (LockReply::Acquired { token, expires_ms }, known) => {
                Ok(Some(self.guard(token, expires_ms, known.asked, lease)))
            }
            (LockReply::Held { .. }, _) => Ok(None),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Waits for its turn and takes the lock; see [waiting](Lock#waiting). The client's deadline is
    /// for each request, not for the wait. Dropping the future leaves the queue.
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
            let (ticket, known) = match self.ask(lease, WAIT_LEASE).await? {
                (LockReply::Acquired { token, expires_ms }, known) => {
                    return Ok(Some(self.guard(token, expires_ms, known.asked, lease)));
                }
                (LockReply::Waiting { ticket, .. }, known) => (ticket, known),
                (other, _) => return Err(unexpected(&other)),
            };
            match self.wait(ticket, known, deadline).await? {
                Waited::Granted { token, expires_ms, left, asked } => {
                    return Ok(Some(self.guard_of_waiter(token, expires_ms, asked, left, lease)));
                }
                Waited::TimeUp => return Ok(None),
                // Nothing was heard of this client for too long.
                Waited::Gone => {}
            }
        }
    }

    /// Takes up the lock if this owner holds it already: after a restart of the process, or when the
    /// outcome of acquiring it was not heard. The guard does not renew the lease by itself. A grant that lives with a
    /// session is taken up only by the lock [of that session](Lock::of_session).
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn resume(&self) -> Result<Option<LockGuard>> {
        let holders = self.holders().await?.holders;
        // What lives with another session, or with none, ends when this lock's guard would not expect it.
        let session = self.session.as_ref().map(Session::id);
        let holder =
            holders.into_iter().find(|permit| permit.owner == self.owner && permit.session == session);
        // How much of the lease is left is not known here before it is renewed.
        Ok(holder.map(|holder| self.resumed_guard(holder.token, holder.expires_ms)))
    }

    /// Who holds the lock, by the time of the last write in its partition, the first if there are several;
    /// `None`: nobody, or nobody any more.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn holder(&self) -> Result<Option<Holder>> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        let read = GroupRead::LockHolder { name: self.name.clone() };
        match core.read(group, &read, ReadFrom::Leader, until).await?.reply {
            GroupReadReply::LockHolder(holder) => Ok(holder),
            other => Err(unexpected(&other)),
        }
    }

    /// All who hold the lock, by the time of the log, which are several of a read/write lock or a semaphore.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn holders(&self) -> Result<LockHolders> {
        let until = self.client.until();
        let core = self.client.core();
        let group = core.group_of(&self.name, until).await?;
        let read = GroupRead::LockHolders { name: self.name.clone() };
        match core.read(group, &read, ReadFrom::Leader, until).await?.reply {
            GroupReadReply::LockHolders { capacity, holders } => Ok(LockHolders { capacity, holders }),
            other => Err(unexpected(&other)),
        }
    }

    /// Gives back a grant of this [owner](Lock::owner) by its token, without its guard: what is left of a
    /// process that has died. The others who hold the lock hold it as before. A guard of it that there still is
    /// finds out when it renews, or, if the grant lives with a [session](Lock::of_session), within a third of the session's
    /// lease.
    ///
    /// # Errors
    /// Outer: those of [writing](super#writes). Inner: [`NotHeld`], if this owner does not hold the lock under that
    /// token.
    pub async fn release_grant(&self, token: FencingToken) -> Result<std::result::Result<(), NotHeld>> {
        self.release(token).await
    }

    /// The log's time at which the lease ends now.
    pub(super) async fn renew(
        &self,
        token: FencingToken,
        lease: Duration,
    ) -> Result<std::result::Result<u64, NotHeld>> {
        let (name, owner) = (self.name.clone(), self.owner.clone());
        let command = LockCommand::Renew { name, owner, token, lease_ms: milliseconds(lease) };
        match self.execute(command).await?.0 {
            LockReply::Renewed { expires_ms } => Ok(Ok(expires_ms)),
            LockReply::NotHeld => Ok(Err(NotHeld)),
            other => Err(unexpected(&other)),
        }
    }

    /// The log's time at which the lease of a grant ends, if it holds; nothing is renewed.
    pub(super) async fn still_held(&self, token: FencingToken) -> Result<std::result::Result<u64, NotHeld>> {
        let holders = self.holders().await?.holders;
        let grant = holders.iter().find(|permit| permit.token == token);
        Ok(grant.map(|permit| permit.expires_ms).ok_or(NotHeld))
    }

    pub(super) async fn release(&self, token: FencingToken) -> Result<std::result::Result<(), NotHeld>> {
        let (name, owner) = (self.name.clone(), self.owner.clone());
        match self.execute(LockCommand::Release { name, owner, token }).await?.0 {
            LockReply::Released => Ok(Ok(())),
            LockReply::NotHeld => Ok(Err(NotHeld)),
            other => Err(unexpected(&other)),
        }
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("name", &self.name).field("owner", &self.owner).finish_non_exhaustive()
    }
}
