//! [`Session`]: what an application is while it lives, and what dies with it.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dogsled_storage::open_sessions::MAX_SESSIONS;
use dogsled_storage::{Command, OpenSession, Owned, OwnedCommand, Reply, SessionId};

use crate::db::Database;
use crate::lock::milliseconds;
use crate::renewal::{Lease, Leased};
use crate::{Error, IVec, Result, Tree};

/// Owns keys, and [locks](crate::Lock::of_session), that die with it; made by [`Db::session`](crate::Db::session).
///
/// It ends when it is [closed](Session::close), when the last clone is dropped, or when it was not renewed for its
/// lease, as when its process has died. Then its keys are removed. Who opens the database anew
/// finds what the last process has left, until the lease, which begins anew, is over.
///
/// A lease is over when its time has passed, by the machine's monotonic clock.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use std::time::Duration;
/// let session = db.session(Duration::from_secs(10))?;
/// let workers = db.open_tree("workers")?;
/// session.insert(&workers, "7", "idle")?;
/// assert_eq!(session.insert_next(&workers, "job-", "resize")?, "job-00000000000000000000");
/// // A plain write of a key makes it one like any other.
/// workers.insert("7", "retired")?;
/// drop(session);
/// assert_eq!(workers.len(), 1);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Inner>);

/// A session that has not ended, as the database sees it; see [`Db::sessions`](crate::Db::sessions).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SessionStatus {
    /// Its number.
    pub id: SessionId,
    /// How long it lives without renewal.
    pub lease: Duration,
    /// What is left of that: the least of all partitions.
    pub left: Duration,
    /// The partitions of a cluster in which it is open; of an embedded database none.
    pub partitions: Vec<u32>,
    /// How many answers to writes of a client of a cluster are remembered with it; 0: it is an application's.
    pub answers: u64,
    /// What dies with it, the first of each partition.
    pub owned: Vec<Owned>,
    /// Whether it owns more than that.
    pub owns_more: bool,
}

impl SessionStatus {
    pub(crate) fn of(found: OpenSession, left_ms: u64) -> SessionStatus {
        SessionStatus {
            id: found.session,
            lease: Duration::from_millis(found.lease_ms),
            left: Duration::from_millis(left_ms),
            partitions: Vec::new(),
            answers: found.answers.into(),
            owned: found.owned.0,
            owns_more: found.owns_more,
        }
    }
}

pub(crate) fn list(database: &Database) -> Result<Vec<SessionStatus>> {
    let mut sessions: Vec<SessionStatus> = Vec::new();
    loop {
        let after = sessions.last().map(|last| last.id);
        let (found, more) = database.engine.open_sessions(after, MAX_SESSIONS)?;
        sessions.extend(found.into_iter().map(|(found, left_ms)| SessionStatus::of(found, left_ms)));
        if !more {
            return Ok(sessions);
        }
    }
}

struct Inner {
    database: Arc<Database>,
    id: SessionId,
    lease: Arc<Lease>,
    /// Whether it goes on without this handle.
    is_kept: AtomicBool,
}

impl Session {
    pub(crate) fn open(database: Arc<Database>, lease: Duration) -> Result<Session> {
        // `RandomState` is keyed from the system's entropy, anew for each value.
        let draw = || u128::from(RandomState::new().hash_one(std::process::id()));
        let id = SessionId((draw() << 64) | draw());
        let asked = Instant::now();
        let durability = database.durability();
        let expires_ms =
            database.on_sessions(|engine| engine.open_session(id, milliseconds(lease), durability))?;
        Session::of(database, id, (expires_ms, asked, lease))
    }

    pub(crate) fn resume(database: Arc<Database>, id: SessionId) -> Result<Option<Session>> {
        let Some(lease_ms) = database.engine.session_lease(id)? else { return Ok(None) };
        let asked = Instant::now();
        let durability = database.durability();
        let renewed = database.on_sessions(|engine| engine.renew_session(id, durability))?;
        let Some(expires_ms) = renewed else { return Ok(None) };
        Session::of(database, id, (expires_ms, asked, Duration::from_millis(lease_ms))).map(Some)
    }

    fn of(database: Arc<Database>, id: SessionId, lease: (u64, Instant, Duration)) -> Result<Session> {
        let lease = Lease::new(&database, Leased::Session(id), lease, true);
        let session = Session(Arc::new(Inner { database, id, lease, is_kept: AtomicBool::new(false) }));
        session.0.database.renewer.look_after(&session.0.lease)?;
        Ok(session)
    }

    pub(crate) fn lease(&self) -> &Arc<Lease> {
        &self.0.lease
    }

    /// Its number, as the database knows it.
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    pub(crate) fn check(&self, tree: &Tree) -> Result<()> {
        if !Arc::ptr_eq(&self.0.database, &tree.database) {
            return Err(Error::Unsupported("a session owns keys of its own database only".to_owned()));
        }
        if self.is_lost() {
            return Err(Error::Unsupported("the session has ended; open another one".to_owned()));
        }
        Ok(())
    }

    /// Sets a key that dies with this session; the value before. A plain write of the key makes it one
    /// like any other.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the session has ended or is of another database, and those of [`Tree::insert`].
    pub fn insert<K, V>(&self, tree: &Tree, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.check(tree)?;
        let (key, value, session) = (IVec::from(key.as_ref()), value.into(), self.0.id);
        let insert = OwnedCommand::Insert { tree: tree.id, key, value, session };
        match tree.execute(Command::Owned(insert), self.0.database.durability())? {
            Reply::Previous(previous) => Ok(previous),
            other => unreachable!("an insert was answered with {other:?}"),
        }
    }

    /// As [`Tree::insert_next`], of a key that dies with this session.
    ///
    /// # Errors
    /// As [`Session::insert`].
    pub fn insert_next<P, V>(&self, tree: &Tree, prefix: P, value: V) -> Result<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.check(tree)?;
        let (prefix, value) = (IVec::from(prefix.as_ref()), value.into());
        let next = OwnedCommand::InsertNext { tree: tree.id, prefix, value, session: Some(self.0.id) };
        match tree.execute(Command::Owned(next), self.0.database.durability())? {
            Reply::Named { key } => Ok(key),
            other => unreachable!("a numbered insert was answered with {other:?}"),
        }
    }

    /// Whether it has ended, or was not renewed for so long that it may have.
    pub fn is_lost(&self) -> bool {
        self.0.lease.is_lost()
    }

    /// Waits until the session has ended, or is about to (a sixth of its lease is left) because it could not be
    /// renewed.
    pub fn wait_until_lost(&self) {
        self.0.lease.wait_until_lost(None);
    }

    /// As [`Session::wait_until_lost`], for at most so long; whether it is lost.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let session = db.session(Duration::from_secs(1))?;
    /// assert!(!session.wait_until_lost_for(Duration::from_millis(1200))); // it is renewed
    /// session.close()?;
    /// assert!(session.wait_until_lost_for(Duration::ZERO));
    /// # Ok(()) }
    /// ```
    pub fn wait_until_lost_for(&self, timeout: Duration) -> bool {
        self.0.lease.wait_until_lost(Instant::now().checked_add(timeout))
    }

    /// Ends it: its keys are gone and its locks free when this returns.
    ///
    /// # Errors
    /// Those of writing; then its lease ends it.
    pub fn close(&self) -> Result<()> {
        self.0.lease.end_and_tell();
        let durability = self.0.database.durability();
        Ok(self.0.database.on_sessions(|engine| engine.close_session(self.0.id, durability))?)
    }

    /// Forgets the handle, and its clones, without ending the session: it lives until its lease ends, unless it is
    /// [taken up](crate::Db::resume_session) before.
    pub fn keep(self) {
        self.0.is_kept.store(true, Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.lease.end();
        if !*self.is_kept.get_mut() {
            // If this fails, the end of the lease does it.
            let durability = self.database.durability();
            let _ = self.database.on_sessions(|engine| engine.close_session(self.id, durability));
        }
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.0.id).finish_non_exhaustive()
    }
}
