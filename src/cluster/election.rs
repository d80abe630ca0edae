//! [`Election`]: one leader among many, and everybody knows who.
//!
//! A lock with a word to say: whoever holds the election's lock writes its value under the fence of its
//! grant, beside the token. So a value is the leader's if the lock is held under that token, and a
//! leader that was paused and replaced cannot speak any more. Values are kept under the election's name, and so in
//! the partition of its lock.

use std::fmt;
use std::time::Duration;

use super::{Client, Error, Event, LockGuard, Result, Subscriber, Tree};
use crate::election::TREE;
use crate::{Fence, FencingToken, IVec, Leader, NotHeld};

/// A named election; made by [`Client::election`].
///
/// ```no_run
/// # async fn lead(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// # async fn work() {}
/// use std::time::Duration;
/// let election = client.election("scheduler");
/// let leadership = election.campaign("10.0.0.7:80", Duration::from_secs(10)).await?;
/// tokio::select! {
///     () = work() => {}
///     () = leadership.lost() => println!("another may lead soon"),
/// }
/// leadership.resign().await?.ok();
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Election {
    client: Client,
    name: IVec,
}

fn decode(stored: &IVec) -> Result<Leader> {
    let malformed = || Error::Incompatible(format!("tree \"{TREE}\" holds what is no leader's"));
    Leader::decode(stored).ok_or_else(malformed)
}

impl Election {
    pub(super) fn new(client: Client, name: IVec) -> Election {
        Election { client, name }
    }

    fn tree(&self) -> Tree {
        self.client.tree(TREE)
    }

    /// Waits until it is this candidate's turn, in the order in which they came, and leads from then
    /// on. The lease is renewed in the background.
    ///
    /// # Errors
    /// As [`Lock::acquire`](super::Lock::acquire).
    pub async fn campaign(&self, value: impl AsRef<[u8]>, lease: Duration) -> Result<Leadership> {
        loop {
            let guard = self.client.lock(&self.name).acquire(lease).await?;
            let leadership = Leadership { election: self.clone(), guard };
            match leadership.proclaim(value.as_ref()).await {
                Ok(()) => return Ok(leadership),
                // The lease was over before the first word was said: stand again.
                Err(Error::LockNotHeld { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// As [`Election::campaign`], but gives up after `timeout`.
    ///
    /// ```no_run
    /// # async fn lead(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let (lease, timeout) = (Duration::from_secs(10), Duration::from_secs(60));
    /// if client.election("scheduler").campaign_timeout("10.0.0.7:80", lease, timeout).await?.is_none() {
    ///     println!("another leads, still");
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Election::campaign`].
    pub async fn campaign_timeout(
        &self,
        value: impl AsRef<[u8]>,
        lease: Duration,
        timeout: Duration,
    ) -> Result<Option<Leadership>> {
        let granted = self.client.lock(&self.name).acquire_timeout(lease, timeout).await?;
        let Some(guard) = granted else { return Ok(None) };
        let leadership = Leadership { election: self.clone(), guard };
        match leadership.proclaim(value.as_ref()).await {
            Ok(()) => Ok(Some(leadership)),
            // As if it had not come to that.
            Err(Error::LockNotHeld { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Who leads; `None`: nobody does.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn leader(&self) -> Result<Option<Leader>> {
        let Some(stored) = self.tree().get(&self.name).await? else { return Ok(None) };
        let leader = decode(&stored)?;
        // After the value: if the lock is held under its token now, it was then.
        let holder = self.client.lock(&self.name).holder().await?;
        Ok(holder.is_some_and(|holder| holder.token == leader.token).then_some(leader))
    }

    /// Says another word in the name of who leads under a token: of a process that was handed it on, or that took the
    /// election's [lock](Client::lock), which has its name, by other means.
    ///
    /// # Errors
    /// [`Error::LockNotHeld`] if another may lead by now, and those of [writing](super#writes).
    pub async fn proclaim(&self, token: FencingToken, value: impl AsRef<[u8]>) -> Result<()> {
        let tree = self.tree().under(Fence { lock: self.name.clone(), token });
        tree.put(&self.name, Leader::encode(token, value.as_ref())).await
    }

    /// Ends the leadership under a token: the next candidate leads at once. A [`Leadership`] of it that there still is
    /// finds out when its lease is renewed.
    ///
    /// # Errors
    /// Outer: those of [writing](super#writes). Inner: [`NotHeld`], if it was lost before.
    pub async fn resign(&self, token: FencingToken) -> Result<std::result::Result<(), NotHeld>> {
        let tree = self.tree().under(Fence { lock: self.name.clone(), token });
        match tree.remove(&self.name).await {
            Ok(_) => {}
            Err(Error::LockNotHeld { .. }) => return Ok(Err(NotHeld)),
            Err(error) => return Err(error),
        }
        let lock = self.client.lock(&self.name);
        let holders = lock.holders().await?.holders;
        match holders.into_iter().find(|permit| permit.token == token) {
            Some(permit) => lock.owner(permit.owner).release_grant(token).await,
            None => Ok(Err(NotHeld)),
        }
    }

    /// Follows who leads, from now on; begin with [`Election::leader`] after this has returned.
    ///
    /// ```no_run
    /// # async fn look(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// let mut observer = client.election("scheduler").observe().await?;
    /// while let Some(leader) = observer.next().await {
    ///     println!("{:?}", leader?);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::watch_prefix`].
    pub async fn observe(&self) -> Result<Observer> {
        Ok(Observer { election: self.clone(), changes: self.tree().watch_prefix(&self.name).await? })
    }
}

impl fmt::Debug for Election {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Election").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Follows who leads; made by [`Election::observe`].
#[derive(Debug)]
pub struct Observer {
    election: Election,
    changes: Subscriber,
}

impl Observer {
    /// The next leader, or the next word of the same; the inner `None`: the leader has resigned. One that
    /// is gone without a word is followed by the next leader, or shows in [`Election::leader`]. The outer
    /// `None`: the client was closed.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn next(&mut self) -> Option<Result<Option<Leader>>> {
        loop {
            match self.changes.next().await? {
                Ok(Event::Insert { key, value }) if key == self.election.name => {
                    return Some(decode(&value).map(Some));
                }
                Ok(Event::Remove { key }) if key == self.election.name => return Some(Ok(None)),
                // What is true now can be read.
                Ok(Event::Lost { .. } | Event::Clear { .. }) => return Some(self.election.leader().await),
                Ok(_) => {}
                Err(error) => return Some(Err(error)),
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
    /// [`Tree::under`](super::Tree::under).
    pub fn guard(&self) -> &LockGuard {
        &self.guard
    }

    /// Says another word.
    ///
    /// # Errors
    /// [`Error::LockNotHeld`] if another may lead by now, and those of [writing](super#writes).
    pub async fn proclaim(&self, value: impl AsRef<[u8]>) -> Result<()> {
        self.election.proclaim(self.guard.token(), value).await
    }

    /// As [`LockGuard::lost`].
    pub async fn lost(&self) {
        self.guard.lost().await;
    }

    /// Gives it back: the next candidate leads at once.
    ///
    /// # Errors
    /// Outer: those of [writing](super#writes). Inner: [`NotHeld`], if it was lost before.
    pub async fn resign(self) -> Result<std::result::Result<(), NotHeld>> {
        match self.election.tree().under(&self.guard).remove(&self.election.name).await {
            Ok(_) => self.guard.release().await,
            Err(Error::LockNotHeld { .. }) => Ok(Err(NotHeld)),
            Err(error) => Err(error),
        }
    }
}
