//! [`LockGuard`]: a lock that is held, renewed in the background, and that knows when it may be lost.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogsled_storage::Fence;
use dogsled_storage::lock::LockCommand;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::Lock;
use crate::cluster::until::{Asked, MARGIN, Until, look};
use crate::cluster::{Error, Result, Session, ring};
use crate::{FencingToken, IVec, NotHeld};

/// The owner is told when only one part of so many is left of the lease.
const WARNING: u32 = 6;

/// A lock that is held, until its lease ends or this is dropped.
///
/// The lease is renewed in the background, unless the lock was asked for
/// [otherwise](Lock::without_renewal) or [resumed](Lock::resume). If it lives with a
/// [session](Lock::of_session), the lease is the session's, which renews it; the cluster is asked as often, every third
/// of it, whether the lock is held still: an operator may have [taken it back](Lock::release_grant).
///
/// Dropping releases in the background, without telling whether the lock was still held;
/// [`LockGuard::release`] waits, and tells.
///
/// ```no_run
/// # async fn work(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// # async fn print_the_queue() {}
/// use std::time::Duration;
/// let guard = client.lock("{printer}").acquire(Duration::from_secs(10)).await?;
/// tokio::select! {
///     () = print_the_queue() => {}
///     () = guard.lost() => println!("stopped: somebody else may hold the printer soon"),
/// }
/// // Carried out only if the lock is still held.
/// client.tree("jobs").under(&guard).insert("{printer}:last job", "42").await?;
/// # Ok(()) }
/// ```
#[must_use = "the lock is released when the guard is dropped"]
pub struct LockGuard {
    lock: Lock,
    token: FencingToken,
    lease: Arc<Lease>,
    renewer: Option<AbortHandle>,
    is_released: bool,
}

/// What the guard and its renewer share.
struct Lease {
    expires_ms: AtomicU64,
    /// By this machine's clock; `None`: for ever.
    valid_until: Mutex<Option<Until>>,
    length: Mutex<Duration>,
    /// When it is to be renewed next in the background; `None`: never.
    renew_at: Mutex<Option<Instant>>,
    /// Held over a renewal and what is written down of it here: of two that cross, the log may have the one last and
    /// this the other, and then what is believed here is not what holds.
    renewing: tokio::sync::Mutex<()>,
    /// Also tells that the lease is another, to those who wait for its end.
    lost: watch::Sender<bool>,
    /// Whose lease counts instead of this one, and in which partition.
    session: Option<(Session, u32)>,
}

impl Lease {
    /// The length by which renewals go: the session's, if it lives with one, whatever was asked for.
    fn pace(&self, length: Duration) -> Duration {
        self.session.as_ref().map_or(length, |(session, _)| session.lease())
    }

    /// A renewal is on its way: it may hold from now on, whether its answer is heard or not.
    fn asked(&self, asked: Asked, length: Duration) {
        let length = self.pace(length);
        let mut valid_until = self.valid_until.lock();
        if let Some(shorter) = asked.checked_add(length - length / MARGIN) {
            let is_shorter = valid_until.is_none_or(|until| shorter.instant() < until.instant());
            if is_shorter {
                *valid_until = Some(shorter);
            }
        }
        drop(valid_until);
        // The warning comes as early as the shorter one wants it.
        let mut known = self.length.lock();
        *known = known.min(length);
        drop(known);
        let mut renew_at = self.renew_at.lock();
        *renew_at = renew_at.into_iter().chain(third(asked.instant(), length)).min();
        drop(renew_at);
        self.lost.send_modify(|_| {});
    }

    fn renewed(&self, asked: Asked, length: Duration, expires_ms: u64) {
        let length = self.pace(length);
        self.expires_ms.store(expires_ms, Ordering::Relaxed);
        *self.length.lock() = length;
        *self.valid_until.lock() = asked.checked_add(length - length / MARGIN);
        *self.renew_at.lock() = third(asked.instant(), length);
        self.lost.send_modify(|_| {});
    }

    /// It is another's, or nobody's: nothing is left of it.
    fn over(&self) {
        *self.valid_until.lock() = Some(Until::new(Instant::now()));
        self.lost.send_replace(true);
    }

    fn renew_in(&self, wait: Duration) {
        *self.renew_at.lock() = Some(Instant::now() + wait);
    }

    /// Returns when it is to be renewed; `false` if it is lost before.
    async fn until_due(&self) -> bool {
        let mut lost = self.lost.subscribe();
        loop {
            if *lost.borrow_and_update() {
                return false;
            }
            let renew_at = *self.renew_at.lock();
            tokio::select! {
                // It cannot be closed: this has the sender.
                _ = lost.changed() => {}
                () = until(renew_at) => return true,
            }
        }
    }

    /// When the lock may be lost, with the margin; `None`: never.
    fn valid_until(&self) -> Option<Instant> {
        match &self.session {
            None => self.valid_until.lock().map(Until::instant),
            // The session may live on without the lock.
            Some((session, group)) => {
                let certain = session.valid_until(*group).filter(|_| !*self.lost.borrow());
                Some(certain.map_or_else(Instant::now, |(until, _)| until))
            }
        }
    }

    /// When the owner is told that the lease nears its end.
    fn warn_at(&self) -> Option<Instant> {
        let length = match &self.session {
            None => *self.length.lock(),
            Some((session, group)) => session.valid_until(*group).map_or(Duration::ZERO, |(_, lease)| lease),
        };
        self.valid_until().map(|until| until.checked_sub(length / WARNING).unwrap_or(until))
    }

    async fn session_lost(&self) {
        match &self.session {
            Some((session, _)) => session.lost().await,
            None => std::future::pending().await,
        }
    }
}

/// After a third of a lease; `None` if that is as good as never.
fn third(asked: Instant, length: Duration) -> Option<Instant> {
    let is_for_ever = length >= Duration::from_secs(1 << 40);
    asked.checked_add(length / 3).filter(|_| !is_for_ever)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Lock {
    pub(super) fn guard(
        &self,
        token: FencingToken,
        expires_ms: u64,
        asked: Asked,
        length: Duration,
    ) -> LockGuard {
        self.new_guard(token, expires_ms, asked, length, length, Some(length / 3))
    }

    /// Of a grant that was waited for: so much was left when it was heard of.
    pub(super) fn guard_of_waiter(
        &self,
        token: FencingToken,
        expires_ms: u64,
        asked: Asked,
        left: Duration,
        length: Duration,
    ) -> LockGuard {
        // One that never ends has not less left because it was waited for.
        let left = if expires_ms == u64::MAX { length } else { left.min(length) };
        let first = left.saturating_sub(length - length / 3);
        self.new_guard(token, expires_ms, asked, left, length, Some(first))
    }

    pub(super) fn resumed_guard(&self, token: FencingToken, expires_ms: u64) -> LockGuard {
        self.new_guard(token, expires_ms, Asked::now(), Duration::ZERO, Duration::ZERO, None)
    }

    fn new_guard(
        &self,
        token: FencingToken,
        expires_ms: u64,
        asked: Asked,
        left: Duration,
        length: Duration,
        first_renewal: Option<Duration>,
    ) -> LockGuard {
        // It costs nothing of a lease to ask for one that is not its own, also of what was resumed.
        let of_session = self.session.as_ref().map(|session| session.lease() / 3);
        let first_renewal = of_session.or(first_renewal).filter(|_| self.renews);
        let lease = Arc::new(Lease {
            renew_at: Mutex::new(
                first_renewal.and_then(|first| third(Instant::now(), first.saturating_mul(3))),
            ),
            expires_ms: AtomicU64::new(expires_ms),
            valid_until: Mutex::new(asked.checked_add(left.saturating_sub(length / MARGIN))),
            length: Mutex::new(length),
            renewing: tokio::sync::Mutex::new(()),
            lost: watch::Sender::new(false),
            session: self.session.clone().map(|session| {
                // It is known: a command was routed by it.
                let partitions = self.client.core().map.borrow().partitions;
                (session, ring::group_of(&self.name, partitions))
            }),
        });
        let renewer = first_renewal.map(|_| {
            let renewing = renew_while_held(self.clone(), token, Arc::clone(&lease));
            self.client.runtime().spawn(renewing).abort_handle()
        });
        LockGuard { lock: self.clone(), token, lease, renewer, is_released: false }
    }
}

/// Renews a lease until it is lost. Of what lives with a session it only asks whether it is held still.
async fn renew_while_held(lock: Lock, token: FencingToken, lease: Arc<Lease>) {
    while lease.until_due().await {
        let (now, length) = (Instant::now(), lease.pace(*lease.length.lock()));
        let until = lease.valid_until.lock().map(Until::instant);
        // Of a grant that was heard of late nothing may be left here, and yet it may be held.
        let until = until.unwrap_or(now).max(now + (length / 3).min(Duration::from_secs(60)));
        let renewed = async {
            let _alone = lease.renewing.lock().await;
            // Whoever went before may have given it another length.
            let (asked, length) = (Asked::now(), lease.pace(*lease.length.lock()));
            let renewed = match lock.session {
                None => lock.renew(token, length).await?,
                // Its session renews it, in an entry for all that the session has. This is only a look.
                Some(_) => lock.still_held(token).await?,
            };
            Ok::<_, Error>(renewed.map(|expires_ms| lease.renewed(asked, length, expires_ms)))
        };
        let renewed = timeout_at(until, renewed).await;
        // Whether a session lives, and what lives with it, is for the session to tell.
        let may_live_on = lock.session.as_ref().is_some_and(|session| !session.is_lost());
        match renewed {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(NotHeld))) => {
                lease.over();
                return;
            }
            Ok(Err(Error::Closed)) => {
                lease.lost.send_replace(true);
                return;
            }
            Err(_) if !may_live_on => {
                lease.lost.send_replace(true);
                return;
            }
            Ok(Err(_)) | Err(_) => {
                lease.renew_in((length / 20).clamp(Duration::from_millis(1), Duration::from_secs(1)));
            }
        }
    }
}

impl LockGuard {
    /// The number of this grant, larger than those of all earlier grants of this lock.
    pub fn token(&self) -> FencingToken {
        self.token
    }

    /// The demand that the lock be held under this grant, for writes: see
    /// [`Tree::under`](crate::cluster::Tree::under).
    pub fn fence(&self) -> Fence {
        Fence { lock: self.lock.name.clone(), token: self.token }
    }

    /// Who holds it.
    pub fn owner(&self) -> &IVec {
        &self.lock.owner
    }

    /// When the lease ends, in milliseconds since 1970 by the cluster's log.
    pub fn expires_ms(&self) -> u64 {
        self.lease.expires_ms.load(Ordering::Relaxed)
    }

    /// When the lock may be lost, by this machine's clock, unless it is renewed before; `None`: never. It is
    /// counted from before the lease was asked for, with a margin for clocks that differ in pace; what the machine was
    /// suspended meanwhile is taken off.
    pub fn valid_until(&self) -> Option<Instant> {
        self.lease.valid_until()
    }

    /// Whether the lock is held, as far as this machine can tell. A process that is paused right after
    /// this call cannot rely on it; see [fencing](Lock#leases-and-being-paused).
    pub fn is_valid(&self) -> bool {
        let is_lost = *self.lease.lost.borrow();
        !is_lost && self.valid_until().is_none_or(|until| Instant::now() < until)
    }

    /// Returns when what is done under the lock must stop: the lock is lost, or its lease is about to end
    /// (a sixth of it is left) and was not renewed.
    pub async fn lost(&self) {
        let mut lost = self.lease.lost.subscribe();
        loop {
            if *lost.borrow_and_update() {
                return;
            }
            let warn_at = self.lease.warn_at();
            if warn_at.is_some_and(|warn_at| Instant::now() >= warn_at) {
                return;
            }
            tokio::select! {
                // It cannot be closed: this has the sender.
                _ = lost.changed() => {}
                () = until(warn_at.map(look)) => {}
                () = self.lease.session_lost() => return,
            }
        }
    }

    /// What is left of the lease at least, as far as this machine's clock can tell: counted from before
    /// it was asked for. Nothing after [`Lock::resume`], until it is renewed.
    pub fn remaining(&self) -> Duration {
        self.valid_until().map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()))
    }

    /// Starts the lease anew, from now; and renewals in the background, if there are any, renew it to so
    /// much from then on.
    ///
    /// # Errors
    /// Outer: those of [writing](crate::cluster#writes). Inner: [`NotHeld`]; what is done under the lock must stop.
    pub async fn renew(&self, lease: Duration) -> Result<std::result::Result<(), NotHeld>> {
        let _alone = self.lease.renewing.lock().await;
        let asked = Asked::now();
        self.lease.asked(asked, lease);
        match self.lock.renew(self.token, lease).await? {
            Ok(expires_ms) => {
                self.lease.renewed(asked, lease, expires_ms);
                Ok(Ok(()))
            }
            Err(NotHeld) => {
                self.lease.over();
                Ok(Err(NotHeld))
            }
        }
    }

    /// Gives the lock back; whoever waits next has it then.
    ///
    /// # Errors
    /// Outer: those of [writing](crate::cluster#writes); then it goes on being given back in the background, as after
    /// a drop, and is free when its lease ends, if not before. Inner: [`NotHeld`], if the lease had ended before.
    pub async fn release(mut self) -> Result<std::result::Result<(), NotHeld>> {
        self.stop_renewing();
        let released = self.lock.release(self.token).await;
        // Only if it was heard to be: a caller that gives up waiting drops the guard, and so does a failure here. That
        // tries again: what lives with a session would otherwise be held for as long as the session is kept alive.
        self.is_released = released.is_ok();
        released
    }

    /// Forgets the guard without giving the lock back: it is held until its lease ends, or until it is
    /// taken up by [`Lock::resume`].
    pub fn keep(mut self) {
        self.is_released = true;
    }

    fn stop_renewing(&mut self) {
        if let Some(renewer) = self.renewer.take() {
            renewer.abort();
        }
    }
}

impl From<&LockGuard> for Fence {
    fn from(guard: &LockGuard) -> Fence {
        guard.fence()
    }
}

impl Drop for LockGuard {
    fn drop(&mut self) {
        self.stop_renewing();
        if !self.is_released {
            let (name, owner) = (self.lock.name.clone(), self.lock.owner.clone());
            self.lock.carry_through(LockCommand::Release { name, owner, token: self.token });
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
