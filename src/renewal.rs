//! [`Renewer`]: one thread that renews the leases of all locks that a database's guards hold, and of its sessions.
//!
//! A guard's or session's [`Lease`] is renewed every third of it. If that fails, it is tried again soon, until only a sixth
//! is left: then whoever holds the guard is told, in time to stop.
//!
//! The thread sleeps until the next lease is due, and is there only once a guard was. It knows leases by
//! weak references: a guard that is dropped is forgotten. It must never be the last to have the database, which
//! would then be closed here, after the drop that its owner waits for. So it uses the database only with
//! [`Lease::is_over`] locked, and while that says that there is a guard, which has the database too; a guard
//! ends its lease under that mutex before it goes.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dogsled_storage::lock::{FencingToken, LockCommand, LockReply};
use dogsled_storage::{Command, Reply, SessionId};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::db::Database;
use crate::lock::milliseconds;
use crate::{Durability, IVec, NotHeld, Result};

/// The database's time may pass faster than this machine's monotonic clock, while it approaches a wall clock that
/// was set ([`SteadyClock`](dogsled_storage::SteadyClock): one part in 64). One part of so many is taken off.
const MARGIN: u32 = 32;
/// The owner is told when only one part of so many is left of the lease.
const WARNING: u32 = 6;

/// What lives for a lease.
pub(crate) enum Leased {
    Lock { name: IVec, owner: IVec, token: FencingToken },
    Session(SessionId),
}

/// The lease of a lock that is held, or of a session.
pub(crate) struct Lease {
    database: Weak<Database>,
    leased: Leased,
    /// The guard is gone, or has given the lock back. Locked while it is renewed, by whomever: of two renewals that
    /// cross, the log might have the one last and this the other.
    is_over: Mutex<bool>,
    state: Mutex<LeaseState>,
    changed: Condvar,
    /// Where it stands in the thread's queue.
    scheduled: Mutex<Option<(Instant, u64)>>,
}

struct LeaseState {
    length: Duration,
    expires_ms: u64,
    /// By the monotonic clock, with the margin; `None`: for ever.
    valid_until: Option<Instant>,
    /// Whether the thread renews it, once it is due.
    renews: bool,
    /// Whoever holds the guard was told.
    is_lost: bool,
    /// What is called then, and the number of the guard that wants it.
    when_lost: Vec<(u64, Box<dyn FnOnce() + Send>)>,
}

impl LeaseState {
    fn warn_at(&self) -> Option<Instant> {
        let warning = self.length / WARNING;
        self.valid_until.map(|until| until.checked_sub(warning).unwrap_or(until))
    }

    fn renewed(&mut self, asked: Instant, length: Duration, expires_ms: u64) {
        self.expires_ms = expires_ms;
        self.length = length;
        // Whoever was told in its last part that it may be lost has renewed it after all.
        self.is_lost = false;
        self.valid_until = asked.checked_add(length - length / MARGIN);
    }
}

impl Lease {
    /// Of what was asked for at that time.
    pub(crate) fn new(
        database: &Arc<Database>,
        leased: Leased,
        (expires_ms, asked, length): (u64, Instant, Duration),
        renews: bool,
    ) -> Arc<Lease> {
        let mut state = LeaseState {
            length,
            expires_ms,
            valid_until: None,
            renews,
            is_lost: false,
            when_lost: Vec::new(),
        };
        state.renewed(asked, length, expires_ms);
        Arc::new(Lease {
            database: Arc::downgrade(database),
            leased,
            is_over: Mutex::new(false),
            state: Mutex::new(state),
            changed: Condvar::new(),
            scheduled: Mutex::new(None),
        })
    }

    /// When it ends, by the database's time; 0 once the lock is known to be another's or nobody's.
    pub(crate) fn expires_ms(&self) -> u64 {
        self.state.lock().expires_ms
    }

    /// Nothing is done about it from here on.
    pub(crate) fn end(&self) {
        *self.is_over.lock() = true;
    }

    /// The same, and whoever waits for the loss is told.
    pub(crate) fn end_and_tell(&self) {
        self.end();
        self.state.lock().expires_ms = 0;
        self.lose();
    }

    /// Whether it is known to be lost, or may be over.
    pub(crate) fn is_lost(&self) -> bool {
        let state = self.state.lock();
        state.is_lost || state.valid_until.is_some_and(|until| until <= Instant::now())
    }

    /// When the thread has to look at it next; `None`: never.
    fn due_at(&self) -> Option<Instant> {
        let state = self.state.lock();
        let warn_at = state.warn_at().filter(|_| !state.is_lost)?;
        // Two thirds of the lease are left then, and half of it to try again.
        let third = state.valid_until?.checked_sub(state.length / 3 * 2).filter(|_| state.renews);
        Some(third.map_or(warn_at, |third| third.min(warn_at)))
    }

    /// What the thread does when it is due; when it is due again.
    fn step(&self) -> Option<Instant> {
        let (warn_at, renews) = {
            let state = self.state.lock();
            (state.warn_at().filter(|_| !state.is_lost)?, state.renews)
        };
        let now = Instant::now();
        if now < warn_at && (!renews || self.due_at().is_some_and(|due_at| due_at > now)) {
            return self.due_at();
        }
        if now < warn_at {
            let is_over = self.is_over.lock();
            let database = self.database.upgrade().filter(|_| !*is_over)?;
            // Whoever held the guard may have given it another length meanwhile.
            let length = self.state.lock().length;
            // Not synced: a power cut ends what the lock is for as well.
            match self.renew_now(&database, length, Durability::Buffered) {
                Ok(Ok(())) => return self.due_at(),
                Ok(Err(NotHeld)) => self.state.lock().expires_ms = 0,
                Err(_) => {
                    let pause = (length / 20).clamp(Duration::from_millis(1), Duration::from_secs(1));
                    return Some((now + pause).min(warn_at));
                }
            }
        }
        if !*self.is_over.lock() {
            let is_lost = {
                let state = self.state.lock();
                state.expires_ms == 0 || state.warn_at().is_some_and(|warn_at| warn_at <= Instant::now())
            };
            if !is_lost {
                // It was renewed meanwhile by whoever holds the guard.
                return self.due_at();
            }
            self.lose();
        }
        None
    }

    /// Waits until what is done under the lock must stop, or until `deadline`; whether it must.
    pub(crate) fn wait_until_lost(&self, deadline: Option<Instant>) -> bool {
        let mut state = self.state.lock();
        loop {
            let (now, warn_at) = (Instant::now(), state.warn_at());
            if state.is_lost || warn_at.is_some_and(|warn_at| warn_at <= now) {
                return true;
            }
            if deadline.is_some_and(|deadline| deadline <= now) {
                return false;
            }
            match warn_at.into_iter().chain(deadline).min() {
                Some(until) => drop(self.changed.wait_until(&mut state, until)),
                None => self.changed.wait(&mut state),
            }
        }
    }

    /// Calls `then` when the lock is lost or about to be, unless the guard is [forgotten](Lease::forget) before; at once if
    /// it is lost.
    pub(crate) fn when_lost(&self, guard: u64, then: Box<dyn FnOnce() + Send>) {
        let mut state = self.state.lock();
        if !state.is_lost {
            state.when_lost.push((guard, then));
            return;
        }
        drop(state);
        then();
    }

    /// A guard is not to be told of anything any more.
    pub(crate) fn forget(&self, guard: u64) {
        let is_of_it = |(whose, _): &mut (u64, _)| *whose == guard;
        let forgotten: Vec<_> = self.state.lock().when_lost.extract_if(.., is_of_it).collect();
        // A stranger's code, if it does something when it is dropped: not with the mutex held.
        drop(forgotten);
    }

    /// Starts it anew.
    pub(crate) fn renew(&self, database: &Database, length: Duration) -> Result<Result<(), NotHeld>> {
        let renewed = {
            let _alone = self.is_over.lock();
            self.renew_now(database, length, database.durability())
        };
        if let Ok(Err(NotHeld)) = renewed {
            self.state.lock().expires_ms = 0;
            self.lose();
        }
        Ok(renewed?)
    }

    fn renew_now(
        &self,
        database: &Database,
        length: Duration,
        durability: Durability,
    ) -> dogsled_storage::Result<Result<(), NotHeld>> {
        let asked = Instant::now();
        let expires_ms = match &self.leased {
            Leased::Lock { name, owner, token } => {
                let (name, owner, lease_ms) = (name.clone(), owner.clone(), milliseconds(length));
                let renew = LockCommand::Renew { name, owner, token: *token, lease_ms };
                match database.execute(Command::Lock(renew), durability)? {
                    Reply::Lock(LockReply::Renewed { expires_ms }) => Some(expires_ms),
                    Reply::Lock(LockReply::NotHeld) => None,
                    other => unreachable!("renewing was answered with {other:?}"),
                }
            }
            // Its length is what it was opened with.
            Leased::Session(session) => database.engine.renew_session(*session, durability)?,
        };
        let Some(expires_ms) = expires_ms else { return Ok(Err(NotHeld)) };
        self.state.lock().renewed(asked, length, expires_ms);
        self.changed.notify_all();
        Ok(Ok(()))
    }

    fn lose(&self) {
        let told = {
            let mut state = self.state.lock();
            state.is_lost = true;
            std::mem::take(&mut state.when_lost)
        };
        self.changed.notify_all();
        for (_, then) in told {
            // A stranger's code: others are to be told as well, and this may be the thread that renews all leases. Its
            // panic was printed.
            let _ = catch_unwind(AssertUnwindSafe(then));
        }
    }
}

#[derive(Default)]
struct Queue {
    due: BTreeMap<(Instant, u64), Weak<Lease>>,
    next: u64,
    closing: bool,
    thread: Option<JoinHandle<()>>,
}

impl Queue {
    fn put(&mut self, lease: &Arc<Lease>, at: Instant) {
        let key = (at, self.next);
        self.next += 1;
        if let Some(before) = lease.scheduled.lock().replace(key) {
            self.due.remove(&before);
        }
        self.due.insert(key, Arc::downgrade(lease));
    }
}

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    earlier: Condvar,
}

/// See the [module](self).
#[derive(Default)]
pub(crate) struct Renewer(Arc<Shared>);

impl Renewer {
    /// From now on, or anew, a lease is looked after.
    pub(crate) fn look_after(&self, lease: &Arc<Lease>) -> std::io::Result<()> {
        let Some(at) = lease.due_at() else { return Ok(()) };
        let mut queue = self.0.queue.lock();
        queue.put(lease, at);
        if queue.thread.is_none() {
            let shared = Arc::clone(&self.0);
            let thread = std::thread::Builder::new().name("dogsled-renewal".to_owned());
            queue.thread = Some(thread.spawn(move || run(&shared))?);
        }
        drop(queue);
        self.0.earlier.notify_all();
        Ok(())
    }
}

fn run(shared: &Shared) {
    let mut queue = shared.queue.lock();
    while !queue.closing {
        let Some((at, _)) = queue.due.first_key_value().map(|(key, _)| *key) else {
            shared.earlier.wait(&mut queue);
            continue;
        };
        if at > Instant::now() {
            shared.earlier.wait_until(&mut queue, at);
            continue;
        }
        let lease = queue.due.pop_first().and_then(|(_, lease)| lease.upgrade());
        let Some(lease) = lease else { continue };
        *lease.scheduled.lock() = None;
        let again = MutexGuard::unlocked(&mut queue, || lease.step());
        // Somebody may have renewed it meanwhile.
        if let Some(at) = again.filter(|_| lease.scheduled.lock().is_none()) {
            queue.put(&lease, at);
        }
        // What it was to call, if this is the last to have it, is a stranger's.
        let _ = MutexGuard::unlocked(&mut queue, || catch_unwind(AssertUnwindSafe(|| drop(lease))));
    }
}

impl Drop for Renewer {
    fn drop(&mut self) {
        let thread = {
            let mut queue = self.0.queue.lock();
            queue.closing = true;
            queue.thread.take()
        };
        self.0.earlier.notify_all();
        // What it calls when a lock is lost may have had the last handle of the database.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // One that panicked has ended, too.
            let _ = thread.join();
        }
    }
}
