//! [`Lock`]: exclusion among threads and processes that outlive each other.

mod of_session;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled_storage::lock::{self, LockCommand, LockReply, LockRequest};
pub use dogsled_storage::lock::{FencingToken, Holder, Permit};
use dogsled_storage::lock_wait::SessionEnded;
use dogsled_storage::{Command, Fence, Reply, TreeId};

use crate::db::Database;
use crate::renewal::{Lease, Leased};
use crate::{Durability, Error, IVec, Result, Session};

pub use self::of_session::SessionLock;

/// The longest [delay](Lock::delay).
pub(crate) const LONGEST_DELAY: Duration = Duration::from_secs(24 * 60 * 60);

static NEXT_GUARD: AtomicU64 = AtomicU64::new(0);

/// A named lock that is held for the time of a lease; made by [`Db::lock`](crate::Db::lock).
///
/// A mutex is held by a thread and forgotten with its process. A lock is held by whoever its
/// owner's name says, survives the process, and ends by itself when its lease runs out without
/// renewal, so that a holder that died does not stand in the way for ever.
///
/// A guard renews its lease in the background, unless it is asked not to
/// ([`without_renewal`](Lock::without_renewal)): one thread does it for all guards of a database. When a lease
/// nears its end and could not be renewed, the guard tells ([`LockGuard::wait_until_lost`],
/// [`LockGuard::when_lost`]).
///
/// A holder that was merely slow may go on believing that it holds the lock. Every grant
/// therefore carries a [`FencingToken`], larger than those before. Writes to the database can demand that
/// it holds: see [`Tree::under`](crate::Tree::under). Hand it on with what is done elsewhere under the lock, and
/// refuse there what comes with a smaller one than was seen already.
///
/// Read/write locks ([`Db::read_lock`](crate::Db::read_lock), [`Db::write_lock`](crate::Db::write_lock)) and
/// semaphores ([`Db::semaphore`](crate::Db::semaphore)) are locks with more than one permit. A lock can live
/// with a [`Session`] instead of a lease of its own: see [`Lock::of_session`].
///
/// A lease ends when its time has passed, whatever the machine's clock is set to; see
/// [`SteadyClock`](crate::storage::SteadyClock).
///
/// Taking a lock is always synced, so that no token is given twice.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use std::time::Duration;
/// let lock = db.lock("nightly job");
/// let first = lock.acquire(Duration::from_secs(10))?;
/// first.renew(Duration::from_secs(20))?;
/// let token = first.token();
/// first.release()?;
/// let second = lock.acquire(Duration::from_secs(10))?;
/// assert!(second.token() > token);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Lock {
    name: IVec,
    owner: IVec,
    permits: u32,
    capacity: u32,
    delay: Duration,
    renews: bool,
    database: Arc<Database>,
    /// What it lives with.
    session: Option<Session>,
}

impl Lock {
    pub(crate) fn new(name: IVec, permits: u32, capacity: u32, database: Arc<Database>) -> Lock {
        let (owner, delay) = (default_owner(), Duration::ZERO);
        Lock { name, owner, permits, capacity, delay, renews: true, database, session: None }
    }

    /// Guards do not renew their lease by themselves.
    #[must_use]
    pub fn without_renewal(mut self) -> Lock {
        self.renews = false;
        self
    }

    /// Asks for so many permits of a semaphore at a time instead of one.
    #[must_use]
    pub fn permits(mut self, permits: u32) -> Lock {
        self.permits = permits;
        self
    }

    /// If the lease ends without release, nobody is granted the lock for so long: time for a holder that
    /// was slow to find out. At most a day, as nothing ends a delay before its time.
    #[must_use]
    pub fn delay(mut self, delay: Duration) -> Lock {
        self.delay = delay.min(LONGEST_DELAY);
        self
    }

    /// Who asks for the lock, in bytes that nobody else uses; the default is made up for each
    /// handle. It is what [`Lock::holder`] shows to others, and what [`Lock::resume`] goes by.
    #[must_use]
    pub fn owner(mut self, owner: impl AsRef<[u8]>) -> Lock {
        self.owner = IVec::from(owner.as_ref());
        self
    }

    /// The lock's name.
    pub fn name(&self) -> &IVec {
        &self.name
    }

    fn execute(&self, command: LockCommand, durability: Durability) -> dogsled_storage::Result<LockReply> {
        match self.database.execute(Command::Lock(command), durability)? {
            Reply::Lock(reply) => Ok(reply),
            other => unreachable!("a lock's command was answered with {other:?}"),
        }
    }

    fn try_acquire_once(&self, lease: Duration) -> dogsled_storage::Result<LockReply> {
        let (name, owner) = (self.name.clone(), self.owner.clone());
        let request = LockRequest {
            permits: self.permits,
            capacity: self.capacity,
            lease_ms: milliseconds(lease),
            delay_ms: milliseconds(self.delay),
        };
        // Who waits does so in this process.
        let command = match &self.session {
            None => LockCommand::Acquire { name, owner, request, wait_ms: 0 },
            Some(session) => {
                let (session, waits) = (session.id(), false);
                LockCommand::AcquireOwned { name, owner, request, session, waits }
            }
        };
        // Synced, so that after power loss no grant can be made with this token again.
        self.execute(command, Durability::Synced)
    }

    fn guard(
        &self,
        token: FencingToken,
        (expires_ms, asked, length): (u64, Instant, Duration),
        renews: bool,
    ) -> Result<LockGuard> {
        let lease = match &self.session {
            // Which is looked after already.
            Some(session) => Arc::clone(session.lease()),
            None => {
                let leased = Leased::Lock { name: self.name.clone(), owner: self.owner.clone(), token };
                Lease::new(&self.database, leased, (expires_ms, asked, length), renews)
            }
        };
        let number = NEXT_GUARD.fetch_add(1, Ordering::Relaxed);
        let guard = LockGuard { lock: self.clone(), token, lease, number, is_released: false };
        guard.look_after()?;
        Ok(guard)
    }

    /// Takes the lock if it is free.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let lock = db.lock("nightly job");
    /// let guard = lock.try_acquire(Duration::from_secs(10))?.expect("it is free");
    /// assert!(lock.try_acquire(Duration::from_secs(10))?.is_none());
    /// drop(guard);
    /// assert!(lock.try_acquire(Duration::from_secs(10))?.is_some());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a lease below a millisecond, and
    /// those of writing.
    pub fn try_acquire(&self, lease: Duration) -> Result<Option<LockGuard>> {
        let asked = Instant::now();
        match self.try_acquire_once(lease)? {
            LockReply::Acquired { token, expires_ms } => {
                self.guard(token, (expires_ms, asked, lease), self.renews).map(Some)
            }
            LockReply::Held { .. } => Ok(None),
            other => unreachable!("acquiring was answered with {other:?}"),
        }
    }

    /// Takes the lock, waiting until it is free. Waiters of this process sleep, and are served in
    /// the order in which they came.
    ///
    /// # Errors
    /// As [`Lock::try_acquire`].
    pub fn acquire(&self, lease: Duration) -> Result<LockGuard> {
        let granted = self.acquire_before(lease, None)?;
        Ok(granted.expect("without a deadline there is no end but a grant or an error"))
    }

    /// As [`Lock::acquire`], but gives up after `timeout`.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let (lock, lease) = (db.lock("nightly job"), Duration::from_secs(10));
    /// let guard = lock.acquire(lease)?;
    /// assert!(lock.acquire_timeout(lease, Duration::from_millis(5))?.is_none());
    ///
    /// let waiter = std::thread::spawn({
    ///     let lock = lock.clone();
    ///     move || lock.acquire_timeout(lease, Duration::from_secs(60)).map(|guard| guard.is_some())
    /// });
    /// guard.release()?;
    /// assert!(waiter.join().unwrap()?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Lock::try_acquire`].
    pub fn acquire_timeout(&self, lease: Duration, timeout: Duration) -> Result<Option<LockGuard>> {
        // A timeout beyond what the clock can express is for ever.
        self.acquire_before(lease, Instant::now().checked_add(timeout))
    }

    fn acquire_before(&self, lease: Duration, deadline: Option<Instant>) -> Result<Option<LockGuard>> {
        let engine = &self.database.engine;
        let mut asked = Instant::now();
        let attempt = || {
            asked = Instant::now();
            self.try_acquire_once(lease)
        };
        let (waiters, now_ms) = (engine.lock_waiters(), || engine.now_ms());
        let granted = match &self.session {
            None => waiters.acquire(&self.name, deadline, now_ms, attempt)?,
            Some(session) => {
                let id = session.id();
                let is_open = || engine.session_lease(id).map(|lease| lease.is_some());
                let granted =
                    waiters.acquire_of_session(&self.name, id, is_open, deadline, now_ms, attempt)?;
                granted.map_err(|SessionEnded| {
                    let what = format!("session {id}, which was to own a lock, has ended; open another one");
                    Error::Unsupported(what)
                })?
            }
        };
        let guard =
            granted.map(|granted| self.guard(granted.token, (granted.expires_ms, asked, lease), self.renews));
        guard.transpose()
    }

    /// Takes up the lock if this owner holds it already: after a restart of the process, or if a
    /// transaction took it. The guard does not renew the lease by itself. A lock that lives with a session is taken up
    /// as [one of that session](Lock::of_session) only.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let lock = db.lock("nightly job").owner("worker 7");
    /// let guard = lock.acquire(Duration::from_secs(10))?;
    /// let token = guard.token();
    /// guard.keep(); // as if the process ended here
    /// assert_eq!(lock.resume()?.unwrap().token(), token);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn resume(&self) -> Result<Option<LockGuard>> {
        // What lives with another session, or with none, ends when this lock's guard would not expect it.
        let session = self.session.as_ref().map(Session::id);
        let asked = Instant::now();
        let holders = self.holders()?.holders;
        let holder =
            holders.into_iter().find(|permit| permit.owner == self.owner && permit.session == session);
        let guard = holder.map(|holder| {
            let left = Duration::from_millis(holder.expires_ms.saturating_sub(self.database.engine.now_ms()));
            self.guard(holder.token, (holder.expires_ms, asked, left), false)
        });
        guard.transpose()
    }

    /// Who holds the lock; `None`: nobody, or nobody any more.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let guard = db.lock("nightly job").owner("worker 7").acquire(Duration::from_secs(10))?;
    /// let holder = db.lock("nightly job").holder()?.unwrap();
    /// assert_eq!(holder.owner, "worker 7");
    /// assert_eq!(holder.token, guard.token());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn holder(&self) -> Result<Option<Holder>> {
        self.first_holder(|_| true)
    }

    /// All who hold the lock, which are several of a read/write lock or a semaphore.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let (lease, pool) = (Duration::from_secs(10), db.semaphore("pool", 5));
    /// let one = pool.clone().acquire(lease)?;
    /// let two = pool.clone().permits(2).acquire(lease)?;
    /// let found = pool.holders()?;
    /// assert_eq!(found.capacity, 5);
    /// let tokens: Vec<_> = found.holders.iter().map(|permit| (permit.token, permit.permits)).collect();
    /// assert_eq!(tokens, [(one.token(), 1), (two.token(), 2)]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn holders(&self) -> Result<LockHolders> {
        let engine = &self.database.engine;
        // A snapshot, for the version of the record: it may be the token.
        let Some(stored) = engine.snapshot().get(TreeId::LOCKS, &self.name)? else {
            return Ok(LockHolders::default());
        };
        let state = lock::decode_state(&self.name, &stored)?;
        let holders = state.live(engine.now_ms()).cloned().collect();
        Ok(LockHolders { capacity: state.capacity, holders })
    }

    /// Gives back a grant of this [owner](Lock::owner) by its token, without its guard: what is left of a
    /// process that has died. The others who hold the lock hold it as before. A guard of it that there still is
    /// finds out when it renews.
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`NotHeld`], if this owner does not hold the lock under that token.
    pub fn release_grant(&self, token: FencingToken) -> Result<Result<(), NotHeld>> {
        let (name, owner) = (self.name.clone(), self.owner.clone());
        let command = LockCommand::Release { name, owner, token };
        match self.execute(command, self.database.durability())? {
            LockReply::Released => Ok(Ok(())),
            LockReply::NotHeld => Ok(Err(NotHeld)),
            other => unreachable!("releasing was answered with {other:?}"),
        }
    }

    fn first_holder(&self, is_it: impl Fn(&Holder) -> bool) -> Result<Option<Holder>> {
        Ok(self.holders()?.holders.iter().map(Permit::holder).find(is_it))
    }
}

/// All who hold a lock at one moment; see [`Lock::holders`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LockHolders {
    /// How many permits there are: 1 of a plain lock, `u32::MAX` of a read/write lock, of which a writer has all
    /// and a reader one; 0: nobody has the lock, or waits for it.
    pub capacity: u32,
    /// Who, in the order of the grants.
    pub holders: Vec<Permit>,
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lock").field("name", &self.name).field("owner", &self.owner).finish_non_exhaustive()
    }
}

/// A lock that is held, until its lease ends or this is dropped.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use std::time::Duration;
/// let guard = db.lock("printer").acquire(Duration::from_secs(1))?;
/// // Longer than the lease, which is renewed meanwhile.
/// assert!(!guard.wait_until_lost_for(Duration::from_millis(1200)));
/// db.under(&guard).insert("last job", "42")?;
/// # Ok(()) }
/// ```
///
/// Dropping releases without telling whether the lock was still held;
/// [`LockGuard::release`] tells.
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    lock: Lock,
    token: FencingToken,
    lease: Arc<Lease>,
    /// By which it is told from others that live with the same session.
    number: u64,
    is_released: bool,
}

/// The lock is not held any more: its lease ended, and perhaps someone else holds it now. What is
/// done under it must stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotHeld;

impl fmt::Display for NotHeld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the lock is not held any more")
    }
}

impl std::error::Error for NotHeld {}

impl LockGuard {
    /// The number of this grant, larger than those of all earlier grants of this lock.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The demand that the lock be held under this grant, for writes: see
    /// [`Tree::under`](crate::Tree::under).
    pub fn fence(&self) -> Fence {
        Fence { lock: self.lock.name.clone(), token: self.token }
    }

    /// Whether something is left of the lease, by the database's clock. A program that is paused right
    /// after this call cannot rely on it; a write with the [`fence`](LockGuard::fence) can.
    pub fn is_valid(&self) -> bool {
        self.expires_ms() > self.lock.database.engine.now_ms()
    }

    /// Who holds it.
    pub fn owner(&self) -> &IVec {
        &self.lock.owner
    }

    /// When the lease ends, in milliseconds since 1970 by the database's clock, unless it is renewed before;
    /// 0 once the lock is known to be lost.
    pub fn expires_ms(&self) -> u64 {
        self.lease.expires_ms()
    }

    /// Waits until what is done under the lock must stop: the lock is lost, or its lease is about to end (a
    /// sixth of it is left) and was not renewed.
    pub fn wait_until_lost(&self) {
        self.lease.wait_until_lost(None);
    }

    /// As [`LockGuard::wait_until_lost`], for at most so long; whether what is done under the lock must stop.
    pub fn wait_until_lost_for(&self, timeout: Duration) -> bool {
        self.lease.wait_until_lost(Instant::now().checked_add(timeout))
    }

    /// Has something called when what is done under the lock must stop; never, if it is given back before. The
    /// thread that renews all leases of the database calls it, so it should be short, and must not wait for a
    /// lock. If it panics, the others are called all the same.
    pub fn when_lost(&self, then: impl FnOnce() + Send + 'static) {
        self.lease.when_lost(self.number, Box::new(then));
    }

    fn look_after(&self) -> Result<()> {
        if self.lock.session.is_some() {
            return Ok(());
        }
        let looked_after = self.lock.database.renewer.look_after(&self.lease);
        looked_after.map_err(Error::from)
    }

    /// What is left of the lease, by the database's clock.
    pub fn remaining(&self) -> Duration {
        Duration::from_millis(self.expires_ms().saturating_sub(self.lock.database.engine.now_ms()))
    }

    /// Starts the lease anew, from now; and renewals in the background, if there are any, renew it to so much
    /// from then on.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let guard = db.lock("nightly job").acquire(Duration::from_secs(1))?;
    /// guard.renew(Duration::from_secs(60))?.expect("it is still held");
    /// assert!(guard.remaining() > Duration::from_secs(50));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`NotHeld`].
    pub fn renew(&self, lease: Duration) -> Result<Result<(), NotHeld>> {
        if self.lock.session.is_some() {
            // It has no lease but the session's.
            let held = self.lock.first_holder(|holder| holder.token == self.token)?;
            return Ok(held.map(drop).ok_or(NotHeld));
        }
        let renewed = self.lease.renew(&self.lock.database, lease)?;
        if renewed.is_ok() {
            self.look_after()?;
        }
        Ok(renewed)
    }

    /// Gives the lock back.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let guard = db.lock("nightly job").acquire(Duration::from_secs(10))?;
    /// guard.release()?.expect("it was still held");
    /// assert_eq!(db.lock("nightly job").holder()?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`NotHeld`], if the lease had ended before.
    pub fn release(mut self) -> Result<Result<(), NotHeld>> {
        self.release_now()
    }

    /// The lease of a session goes on, and has nothing to tell this guard any more.
    fn end_lease(&self) {
        match self.lock.session {
            None => self.lease.end(),
            Some(_) => self.lease.forget(self.number),
        }
    }

    fn release_now(&mut self) -> Result<Result<(), NotHeld>> {
        self.is_released = true;
        self.end_lease();
        self.lock.release_grant(self.token)
    }

    /// Forgets the guard without giving the lock back: it is held until its lease ends, or until
    /// it is taken up by [`Lock::resume`].
    pub fn keep(mut self) {
        self.is_released = true;
        self.end_lease();
    }
}

impl From<&LockGuard> for Fence {
    fn from(guard: &LockGuard) -> Fence {
        guard.fence()
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        if !self.is_released {
            // If this fails, the end of the lease releases the lock.
            let _ = self.release_now();
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

/// Rounded up: a lease must not end before the time that was asked for.
pub(crate) fn milliseconds(lease: Duration) -> u64 {
    u64::try_from(lease.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// Bytes that no other handle uses, in this process or another on this machine, and that a person
/// can make something of.
fn default_owner() -> IVec {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let nanoseconds = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    IVec::from(format!("process {} handle {number} of {nanoseconds:x}", std::process::id()))
}
