//! [`Election`]: one leader among many, and everybody knows who.
//!
//! A lock with a word to say: whoever holds the election's lock writes its value under the fence of its
//! grant, beside the token. So a value is the leader's if the lock is held under that token, and a
//! leader that was slow and replaced cannot speak any more. What is stored is what the cluster's elections store.

use std::fmt;
use std::time::Duration;

use crate::{Db, Error, Event, Fence, FencingToken, IVec, LockGuard, NotHeld, Result, Subscriber, Tree};

// The tree of what leaders say; the key is the election's name.
pub(crate) use dogsled_storage::kind::ELECTIONS_TREE_NAME as TREE;

/// A named election among threads, and among those who open the database one after the other; made by
/// [`Db::election`](crate::Db::election).
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use std::time::Duration;
/// let election = db.election("scheduler");
/// let leadership = election.campaign("thread 7", Duration::from_secs(10))?;
/// leadership.proclaim("thread 7, busy")?;
/// assert_eq!(election.leader()?.unwrap().value, "thread 7, busy");
/// leadership.resign()?.expect("it still led");
/// assert_eq!(election.leader()?, None);
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Election {
    db: Db,
    name: IVec,
}

/// Who leads, and what it says; see [`Election::leader`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The token of its grant: larger than those of all leaders before.
    pub token: FencingToken,
    /// What it proclaims.
    pub value: IVec,
}

impl Leader {
    pub(crate) fn encode(token: FencingToken, value: &[u8]) -> Vec<u8> {
        [&token.0.to_be_bytes()[..], value].concat()
    }

    /// `None`: it is no leader's.
    pub(crate) fn decode(stored: &[u8]) -> Option<Leader> {
        let (token, value) = stored.split_first_chunk()?;
        Some(Leader { token: FencingToken(u64::from_be_bytes(*token)), value: IVec::from(value) })
    }
}

fn decode(stored: &[u8]) -> Result<Leader> {
    Leader::decode(stored).ok_or_else(|| Error::Decode(format!("tree \"{TREE}\" holds what is no leader's")))
}

impl Election {
    pub(crate) fn new(db: Db, name: IVec) -> Election {
        Election { db, name }
    }

    fn tree(&self) -> Result<Tree> {
        self.db.open_tree(TREE)
    }

    /// Waits until it is this candidate's turn, in the order in which they came, and leads from then
    /// on. The lease is renewed in the background.
    ///
    /// # Errors
    /// As [`Lock::acquire`](crate::Lock::acquire).
    pub fn campaign(&self, value: impl AsRef<[u8]>, lease: Duration) -> Result<Leadership> {
        loop {
            let guard = self.db.lock(&self.name).acquire(lease)?;
            // Unless the lease was over before the first word was said.
            if let Some(leadership) = self.lead(value.as_ref(), guard)? {
                return Ok(leadership);
            }
        }
    }

    /// As [`Election::campaign`], but gives up after `timeout`.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let (election, lease) = (db.election("scheduler"), Duration::from_secs(10));
    /// let leadership = election.campaign("thread 7", lease)?;
    /// assert!(election.campaign_timeout("thread 8", lease, Duration::from_millis(5))?.is_none());
    /// # drop(leadership);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Election::campaign`].
    pub fn campaign_timeout(
        &self,
        value: impl AsRef<[u8]>,
        lease: Duration,
        timeout: Duration,
    ) -> Result<Option<Leadership>> {
        match self.db.lock(&self.name).acquire_timeout(lease, timeout)? {
            Some(guard) => self.lead(value.as_ref(), guard),
            None => Ok(None),
        }
    }

    fn lead(&self, value: &[u8], guard: LockGuard) -> Result<Option<Leadership>> {
        let leadership = Leadership { election: self.clone(), guard };
        match leadership.proclaim(value) {
            Ok(()) => Ok(Some(leadership)),
            Err(Error::LockNotHeld { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who leads; `None`: nobody does.
    ///
    /// # Errors
    /// Those of reading.
    pub fn leader(&self) -> Result<Option<Leader>> {
        let Some(stored) = self.tree()?.get(&self.name)? else { return Ok(None) };
        let leader = decode(&stored)?;
        // After the value: if the lock is held under its token now, it was then.
        let holder = self.db.lock(&self.name).holder()?;
        Ok(holder.is_some_and(|holder| holder.token == leader.token).then_some(leader))
    }

    /// Says another word in the name of who leads under a token: of a process that was handed it on, or that took the
    /// election's [lock](Db::lock), which has its name, by other means.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let election = db.election("scheduler");
    /// let guard = db.lock("scheduler").acquire(Duration::from_secs(10))?;
    /// election.proclaim(guard.token(), "process 7")?;
    /// assert_eq!(election.leader()?.unwrap().value, "process 7");
    /// election.resign(guard.token())?.expect("it still led");
    /// assert!(election.proclaim(guard.token(), "process 7, late").is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::LockNotHeld`] if another may lead by now, and those of writing.
    pub fn proclaim(&self, token: FencingToken, value: impl AsRef<[u8]>) -> Result<()> {
        let tree = self.tree()?.under(Fence { lock: self.name.clone(), token });
        tree.put(&self.name, Leader::encode(token, value.as_ref()))
    }

    /// Ends the leadership under a token: the next candidate leads at once. A [`Leadership`] of it that there still is
    /// finds out when its lease is renewed.
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`NotHeld`], if it was lost before.
    pub fn resign(&self, token: FencingToken) -> Result<std::result::Result<(), NotHeld>> {
        match self.tree()?.under(Fence { lock: self.name.clone(), token }).remove(&self.name) {
            Ok(_) => {}
            Err(Error::LockNotHeld { .. }) => return Ok(Err(NotHeld)),
            Err(error) => return Err(error),
        }
        let lock = self.db.lock(&self.name);
        let holders = lock.holders()?.holders;
        match holders.into_iter().find(|permit| permit.token == token) {
            Some(permit) => lock.owner(permit.owner).release_grant(token),
            None => Ok(Err(NotHeld)),
        }
    }

    /// Follows who leads, from now on; begin with [`Election::leader`] after this has returned.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let election = db.election("scheduler");
    /// let mut observer = election.observe()?;
    /// election.campaign("thread 7", Duration::from_secs(10))?.resign()?.expect("it still led");
    /// assert_eq!(observer.next().unwrap()?.unwrap().value, "thread 7");
    /// assert_eq!(observer.next().unwrap()?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn observe(&self) -> Result<Observer> {
        Ok(Observer { election: self.clone(), changes: self.tree()?.watch_prefix(&self.name) })
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Follows who leads; made by [`Election::observe`].
///
/// As an iterator it waits for the next leader, or the next word of the same; the inner `None`: the leader has
/// resigned. One that is gone without a word is followed by the next leader, or shows in [`Election::leader`].
#[derive(Debug)]
pub struct Observer {
    election: Election,
    changes: Subscriber,
}

impl Observer {
    /// What an event says; `None`: nothing of this election.
    fn read(&self, event: Event) -> Option<Result<Option<Leader>>> {
        match event {
            Event::Insert { key, value } if key == self.election.name => Some(decode(&value).map(Some)),
            Event::Remove { key } if key == self.election.name => Some(Ok(None)),
            Event::Insert { .. } | Event::Remove { .. } => None,
            // What is true now can be read.
            _ => Some(self.election.leader()),
        }
    }

    /// The next if it is there already.
    pub fn try_next(&mut self) -> Option<Result<Option<Leader>>> {
        loop {
            let event = self.changes.try_next()?;
            if let Some(heard) = self.read(event) {
                return Some(heard);
            }
        }
    }
}

impl Iterator for Observer {
    type Item = Result<Option<Leader>>;

    fn next(&mut self) -> Option<Result<Option<Leader>>> {
        loop {
            let event = self.changes.next()?;
            if let Some(heard) = self.read(event) {
                return Some(heard);
            }
        }
    }
}

/// Leading, until it is lost, given back or dropped; from [`Election::campaign`].
#[derive(Debug)]
#[must_use = "leadership ends when this is dropped"]
pub struct Leadership {
    election: Election,
    guard: LockGuard,
}

impl Leadership {
    /// The token of the grant, for writes that only the leader may make; see
    /// [`Tree::under`](crate::Tree::under).
    pub fn guard(&self) -> &LockGuard {
        &self.guard
    }

    /// Says another word.
    ///
    /// # Errors
    /// [`Error::LockNotHeld`] if another may lead by now, and those of writing.
    pub fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<()> {
        self.election.proclaim(self.guard.token(), value)
    }

    /// As [`LockGuard::wait_until_lost`].
    pub fn wait_until_lost(&self) {
        self.guard.wait_until_lost();
    }

    /// As [`LockGuard::wait_until_lost_for`].
    pub fn wait_until_lost_for(&self, timeout: Duration) -> bool {
        self.guard.wait_until_lost_for(timeout)
    }

    /// Gives it back: the next candidate leads at once.
    ///
    /// # Errors
    /// Outer: those of writing. Inner: [`NotHeld`], if it was lost before.
    pub fn resign(self) -> Result<std::result::Result<(), NotHeld>> {
        match self.election.tree()?.under(&self.guard).remove(&self.election.name) {
            Ok(_) => self.guard.release(),
            Err(Error::LockNotHeld { .. }) => Ok(Err(NotHeld)),
            Err(error) => Err(error),
        }
    }
}
