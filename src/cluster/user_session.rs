//! [`Session`]: what an application is to the cluster while it lives, and what dies with it.
//!
//! A session in the sense of the [client's own](super#writes) makes writes happen once. This one is the
//! application's: it owns keys. It is opened in each partition in which it comes to own something, and renewed there
//! every third of its lease, or in all of them ([`Session::open_everywhere`]). A partition ends it by an entry of its log, which its leader proposes
//! after it has seen the whole lease pass on its own monotonic clock: after a change of leaders, every session has its
//! full lease again.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use dogsled_storage::open_sessions::MAX_SESSIONS;
use dogsled_storage::{
    Answer, Command, GroupRead, GroupReadReply, Operation, OwnedCommand, Refusal, Reply, SessionId, TreeId,
};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::core::{Core, unexpected};
use super::ring::TreeHash;
use super::session::random_u64;
use super::until::{Asked, MARGIN, Until, look};
use super::{Client, Error, ReadFrom, Result, Tree};
use crate::lock::milliseconds;
use crate::{IVec, SessionStatus};

/// When a lease that was asked for then may be over: a little before it is, as a partition's time may pass a little
/// faster than this machine's.
fn certain_until(asked: Asked, lease: Duration) -> Until {
    asked.until(lease - lease / MARGIN)
}

/// How long to wait before a renewal that could not be done is tried again: a twentieth of the lease, within these.
const SHORTEST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The longest lease: what dies with a client should do so some day.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// Owns keys, and [locks](super::Lock::of_session), that die with it; made by [`Client::session`].
///
/// It ends when it is [closed](Session::close), when the last clone is dropped, or when the cluster has not
/// heard of it for its lease. Then its keys are removed, in each partition for itself.
///
/// ```no_run
/// # async fn serve(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
/// use std::time::Duration;
/// let session = client.session(Duration::from_secs(10));
/// // Whoever looks under `{workers}:` sees those that live.
/// session.insert(&client.tree("workers"), "{workers}:10.0.0.7", "idle").await?;
/// session.lost().await;
/// println!("the cluster takes this worker for dead");
/// # Ok(()) }
/// ```
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    client: Client,
    id: SessionId,
    lease: Duration,
    /// The partitions in which it is open, and until when that is certain.
    open: Mutex<BTreeMap<u32, Until>>,
    opening: tokio::sync::Mutex<()>,
    /// Whether another process has opened it: it cannot be told whether it has ended where it is not open.
    is_resumed: bool,
    /// Whether it goes on without this handle.
    is_kept: AtomicBool,
    lost: watch::Sender<bool>,
}

impl Inner {
    /// Whether it has ended, or may have by now.
    fn is_lost(&self) -> bool {
        // By the clock as well: who has been asleep comes here before those that look for it.
        *self.lost.borrow() || self.certain_until().is_some_and(|until| until <= Instant::now())
    }

    fn check(&self) -> Result<()> {
        match self.is_lost() {
            true => Err(Error::Invalid("the session has ended; open another one".to_owned())),
            false => Ok(()),
        }
    }

    /// Opens the session in a partition unless it is.
    async fn open_in(&self, group: u32, until: Instant) -> Result<()> {
        self.check()?;
        if self.open.lock().contains_key(&group) {
            return Ok(());
        }
        if self.is_resumed {
            let why = "the session is not open in the partition of this key; open it everywhere";
            return Err(Error::Invalid(why.to_owned()));
        }
        let _one_at_a_time = self.opening.lock().await;
        if self.open.lock().contains_key(&group) {
            return Ok(());
        }
        let asked = Asked::now();
        let open = Operation::OpenSession { session: self.id, lease_ms: milliseconds(self.lease) };
        match self.client.core().operate(group, open, until).await?.result {
            Ok(Answer::Session { .. }) => {
                if !self.is_open(group, asked) {
                    // Whoever ended it meanwhile did not know of this partition. Nothing was done here under it, and
                    // now nothing will be.
                    close_in(self.client.core(), self.id, vec![group], until).await?;
                }
                self.check()
            }
            Err(Refusal::SessionUnknown(_)) => {
                self.lost.send_replace(true);
                self.check()
            }
            Err(refusal) => Err(Error::Invalid(refusal.to_string())),
            Ok(other) => Err(unexpected(&other)),
        }
    }

    /// Notes that it is open in a partition since it was asked for, unless it has ended: whether it is noted.
    fn is_open(&self, group: u32, asked: Asked) -> bool {
        let mut open = self.open.lock();
        // Under the lock: whoever ends it after this closes it here as well.
        let lives = !*self.lost.borrow();
        if lives {
            open.insert(group, certain_until(asked, self.lease));
        }
        lives
    }

    /// Until when it is certain that no partition has ended it; `None` if it is open in none.
    fn certain_until(&self) -> Option<Instant> {
        self.open.lock().values().map(|until| until.instant()).min()
    }

    /// Returns when that is over.
    async fn over(&self) {
        loop {
            match self.certain_until() {
                Some(until) if until <= Instant::now() => return,
                Some(until) => sleep_until(look(until)).await,
                None => std::future::pending().await,
            }
        }
    }

    fn end(&self) -> Vec<u32> {
        let mut open = self.open.lock();
        self.lost.send_replace(true);
        std::mem::take(&mut *open).into_keys().collect()
    }
}

impl Client {
    /// Takes up a session that another process, or an earlier life of this one, has opened and still
    /// [keeps](Session::keep); `None` if it has ended. Its lease starts anew, and is renewed from here on.
    ///
    /// It can come to own something in those partitions only in which it is open:
    /// see [`Session::open_everywhere`].
    ///
    /// ```no_run
    /// # async fn live(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use std::time::Duration;
    /// let session = client.session(Duration::from_secs(60));
    /// session.open_everywhere().await?;
    /// let id = session.id();
    /// session.keep();
    /// // In another process, within a minute:
    /// let session = client.resume_session(id).await?.expect("it lives");
    /// session.insert(&client.tree("workers"), "10.0.0.7", "idle").await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn resume_session(&self, id: SessionId) -> Result<Option<Session>> {
        let until = self.until();
        let core = self.core();
        let renewals = groups(core, until).await?.map(|group| async move {
            let asked = Asked::now();
            let reply = core.operate(group, Operation::RenewSession { session: id }, until).await?;
            match reply.result {
                Ok(Answer::Session { expires_ms }) => {
                    let lease = Duration::from_millis(expires_ms.saturating_sub(reply.time_ms));
                    Ok(Some((group, asked, lease)))
                }
                Err(Refusal::SessionUnknown(_)) => Ok(None),
                Err(refusal) => Err(Error::Invalid(refusal.to_string())),
                Ok(other) => Err(unexpected(&other)),
            }
        });
        let renewed: Vec<_> =
            futures_util::future::try_join_all(renewals).await?.into_iter().flatten().collect();
        let Some(lease) = renewed.iter().map(|(.., lease)| (*lease).min(LONGEST)).min() else {
            return Ok(None);
        };
        let open = renewed
            .into_iter()
            .map(|(group, asked, lease)| (group, certain_until(asked, lease.min(LONGEST))))
            .collect();
        Ok(Some(Session::of(self.clone(), id, lease, Some(open))))
    }
}

impl Client {
    /// The sessions that are open in any partition, in the order of their numbers, and what each of them owns. Those of
    /// clients, which make writes happen once, are among them: they own nothing, and remember answers.
    ///
    /// Each partition is asked by itself. What is left of a lease is what its leader sees, which has to see all of
    /// a lease pass before it ends a session.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn sessions(&self) -> Result<Vec<SessionStatus>> {
        let until = self.until();
        let core = self.core();
        let reads = groups(core, until).await?.map(|group| sessions_of(core, group, until));
        let mut all = BTreeMap::<SessionId, SessionStatus>::new();
        for found in futures_util::future::try_join_all(reads).await?.into_iter().flatten() {
            match all.entry(found.id) {
                std::collections::btree_map::Entry::Vacant(entry) => drop(entry.insert(found)),
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    let known = entry.get_mut();
                    known.left = known.left.min(found.left);
                    known.partitions.extend(found.partitions);
                    known.answers += found.answers;
                    known.owned.extend(found.owned);
                    known.owns_more |= found.owns_more;
                }
            }
        }
        Ok(all.into_values().collect())
    }
}

async fn sessions_of(core: &Core, group: u32, until: Instant) -> Result<Vec<SessionStatus>> {
    let mut sessions: Vec<SessionStatus> = Vec::new();
    loop {
        let after = sessions.last().map(|last| last.id);
        let read = GroupRead::Sessions { after, limit: MAX_SESSIONS as u32 };
        match core.read(group, &read, ReadFrom::Leader, until).await?.reply {
            GroupReadReply::Sessions { sessions: found, more, now_ms, led_ms } => {
                sessions.extend(found.into_iter().map(|found| {
                    let left_ms = found.left_ms(now_ms, led_ms);
                    SessionStatus { partitions: vec![group], ..SessionStatus::of(found, left_ms) }
                }));
                if !more {
                    return Ok(sessions);
                }
            }
            other => return Err(unexpected(&other)),
        }
    }
}

/// All partitions.
async fn groups(core: &Core, until: Instant) -> Result<std::ops::RangeInclusive<u32>> {
    Ok(1..=core.partitions(until).await?)
}

async fn close_in(core: &Core, session: SessionId, groups: Vec<u32>, until: Instant) -> Result<()> {
    let closes = groups.into_iter().map(|group| {
        let close = Operation::CloseSession { session };
        async move { core.operate(group, close, until).await }
    });
    futures_util::future::try_join_all(closes).await.map(drop)
}

impl Drop for Inner {
    fn drop(&mut self) {
        let groups = self.end();
        if !*self.is_kept.get_mut() && !groups.is_empty() && !self.client.core().is_closed() {
            let (core, session) = (self.client.shared_core(), self.id);
            let until = self.client.until();
            // If this fails, the end of the lease does it.
            // Closing the client waits for it.
            let finishing = core.finishing.begin();
            self.client.runtime().spawn(async move {
                let _finishing = finishing;
                close_in(&core, session, groups, until).await
            });
        }
    }
}

/// When what is certain to be open until then is renewed: when a third of its lease has passed.
fn due_at(certain: Instant, lease: Duration) -> Instant {
    certain.checked_sub(lease - lease / MARGIN - lease / 3).unwrap_or(certain)
}

/// How long to wait before what could not be renewed is tried again.
fn pause(lease: Duration) -> Duration {
    (lease / 20).clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
}

/// Renews a session wherever it is open.
async fn renew(inner: Weak<Inner>, lease: Duration) {
    let mut lost = match inner.upgrade() {
        Some(inner) => inner.lost.subscribe(),
        None => return,
    };
    // Not before, however much is due.
    let mut at_least = Instant::now();
    loop {
        // Not held while it waits: when nobody else holds it, the session ends.
        let Some(certain) = inner.upgrade().map(|inner| inner.certain_until()) else { return };
        // Nothing but what is done below makes it later, but a sleep of the machine brings it nearer.
        let next = match certain {
            Some(certain) => look(due_at(certain, lease).max(at_least).min(certain)),
            None => Instant::now() + lease / 3,
        };
        tokio::select! {
            _ = lost.wait_for(|lost| *lost) => return,
            () = sleep_until(next) => {}
        }
        let Some(inner) = inner.upgrade() else { return };
        if inner.is_lost() {
            inner.lost.send_replace(true);
            return;
        }
        // Those that are due, or nearly.
        let (now, soon) = (Instant::now(), Instant::now() + pause(lease));
        if now < at_least {
            continue;
        }
        let is_due = |until: &Until| due_at(until.instant(), lease) <= now;
        let is_nearly = |until: &Until| due_at(until.instant(), lease) <= soon;
        let groups: Vec<u32> = {
            let open = inner.open.lock();
            let due = open.iter().filter(|(_, until)| is_nearly(until)).map(|(group, _)| *group);
            if open.values().any(is_due) { due.collect() } else { Vec::new() }
        };
        if groups.is_empty() {
            continue;
        }
        let renewals = groups.into_iter().map(|group| {
            let inner = &inner;
            async move {
                let asked = Asked::now();
                let renew = Operation::RenewSession { session: inner.id };
                let renewed = inner.client.core().operate(group, renew, asked.instant() + lease / 3).await;
                match renewed.map(|reply| reply.result) {
                    Ok(Ok(_)) => {
                        inner.open.lock().insert(group, certain_until(asked, lease));
                    }
                    Ok(Err(_)) => {
                        inner.lost.send_replace(true);
                    }
                    // There is another time, unless it is over by then.
                    Err(_) => {}
                }
            }
        });
        tokio::select! {
            biased;
            () = inner.over() => {
                inner.lost.send_replace(true);
            }
            _ = futures_util::future::join_all(renewals) => {}
        }
        at_least = Instant::now() + pause(lease);
    }
}

impl Session {
    pub(super) fn new(client: Client, lease: Duration) -> Session {
        let id = SessionId((u128::from(random_u64()) << 64) | u128::from(random_u64()));
        Session::of(client, id, lease.clamp(Duration::from_millis(1), LONGEST), None)
    }

    /// Takes up what another process has opened; where that is, and until when.
    fn of(client: Client, id: SessionId, lease: Duration, resumed: Option<BTreeMap<u32, Until>>) -> Session {
        let runtime = client.runtime().clone();
        let inner = Arc::new(Inner {
            client,
            id,
            lease,
            is_resumed: resumed.is_some(),
            open: Mutex::new(resumed.unwrap_or_default()),
            opening: tokio::sync::Mutex::default(),
            is_kept: AtomicBool::new(false),
            lost: watch::Sender::new(false),
        });
        runtime.spawn(renew(Arc::downgrade(&inner), lease));
        Session(inner)
    }

    /// Its number, as the cluster knows it.
    pub fn id(&self) -> SessionId {
        self.0.id
    }

    /// Opens it in every partition now, instead of in each when it comes to own something there, so that other
    /// processes can [take it up](Client::resume_session), whatever it will own. It is renewed in every partition
    /// then, which is work for the cluster.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the session has ended, and those of [writing](super#writes).
    pub async fn open_everywhere(&self) -> Result<()> {
        let until = self.0.client.until();
        for group in groups(self.0.client.core(), until).await? {
            self.0.open_in(group, until).await?;
        }
        Ok(())
    }

    /// Forgets the handle, and its clones, without ending the session: it lives until its lease ends, unless it is
    /// [taken up](Client::resume_session) before.
    pub fn keep(self) {
        self.0.is_kept.store(true, Ordering::Relaxed);
    }

    /// Sets a key that dies with this session; the value before. A plain write of the key makes it one
    /// like any other.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the session has ended, and those of [writing](super#writes).
    pub async fn insert<K, V>(&self, tree: &Tree, key: K, value: V) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (key, value, session) = (IVec::from(key.as_ref()), value.into(), self.0.id);
        let insert = OwnedCommand::Insert { tree: TreeId(0), key: key.clone(), value, session };
        match self.execute_for(tree, &key, insert).await? {
            Reply::Previous(previous) => Ok(previous),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Tree::insert_next`], of a key that dies with this session.
    ///
    /// # Errors
    /// As [`Session::insert`] and [`Tree::insert_next`].
    pub async fn insert_next<P, V>(&self, tree: &Tree, prefix: P, value: V) -> Result<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        tree.next_key(prefix.as_ref(), value.into(), Some(self)).await
    }

    /// Has a command carried out in the partition of a key, where the session is opened first.
    async fn execute_for(&self, tree: &Tree, key: &IVec, command: OwnedCommand) -> Result<Reply> {
        let (until, command) = (self.0.client.until(), &command);
        tree.by_stored_name(until, |stored| async move {
            let group = self.open_for(&stored, key).await?;
            tree.execute_in(group, stored, Command::Owned(command.clone()), until).await
        })
        .await
    }

    /// Opens it in the partition of a key of a tree, by its stored name; which that is.
    pub(super) async fn open_for(&self, stored: &[u8], key: &[u8]) -> Result<u32> {
        let until = self.0.client.until();
        let group = self.0.client.core().group_in(stored, key, until).await?;
        self.0.open_in(group, until).await?;
        Ok(group)
    }

    /// How long it lives without renewal.
    pub(super) fn lease(&self) -> Duration {
        self.0.lease
    }

    /// Until when it lives in a partition for certain, if it is not renewed, with a margin, and its lease; `None`: it may
    /// have ended.
    pub(super) fn valid_until(&self, group: u32) -> Option<(Instant, Duration)> {
        let until = self.0.open.lock().get(&group)?.instant();
        (!*self.0.lost.borrow()).then_some((until, self.0.lease))
    }

    /// Whether it has ended, or was not heard of for so long that it may have.
    pub fn is_lost(&self) -> bool {
        self.0.is_lost()
    }

    /// Returns when the session has ended, or when it was not heard of for so long that it may have.
    pub async fn lost(&self) {
        let mut lost = self.0.lost.subscribe();
        // It cannot be closed: this has the sender.
        let _ = lost.wait_for(|lost| *lost).await;
    }

    /// Ends it: its keys are gone when this returns, but for what is more than some hundreds in one
    /// partition, which goes soon after.
    ///
    /// # Errors
    /// Those of [writing](super#writes); then its lease ends it.
    pub async fn close(&self) -> Result<()> {
        let groups = self.0.end();
        close_in(self.0.client.core(), self.0.id, groups, self.0.client.until()).await
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("id", &self.0.id).finish_non_exhaustive()
    }
}

impl Tree {
    /// Sets a new key: the prefix and its next number in twenty digits, which no key had before; the key.
    ///
    /// The prefix must have a [tag](super#routing), or all that is hashed of the tree's keys
    /// ([`Client::set_tree_hash`]), so that all its keys are of one partition, which gives the numbers.
    ///
    /// ```no_run
    /// # async fn queue(jobs: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// let key = jobs.insert_next("{jobs}:", "resize 7").await?;
    /// assert_eq!(key, "{jobs}:00000000000000000000");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a prefix without a tag, and those of [writing](super#writes).
    pub async fn insert_next<P, V>(&self, prefix: P, value: V) -> Result<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.next_key(prefix.as_ref(), value.into(), None).await
    }

    pub(super) async fn next_key(
        &self,
        prefix: &[u8],
        value: IVec,
        session: Option<&Session>,
    ) -> Result<IVec> {
        self.check_numbers(prefix).await?;
        let prefix = IVec::from(prefix);
        let tree = TreeId(0);
        let next = |session| OwnedCommand::InsertNext { tree, prefix: prefix.clone(), value, session };
        let reply = match session {
            Some(session) => session.execute_for(self, &prefix, next(Some(session.0.id))).await,
            None => self.execute(&prefix, Command::Owned(next(None))).await,
        };
        match reply? {
            Reply::Named { key } => Ok(key),
            other => Err(unexpected(&other)),
        }
    }

    /// Refuses a prefix whose keys are of several partitions: only one can give them numbers.
    pub(super) async fn check_numbers(&self, prefix: &[u8]) -> Result<()> {
        // Only what has a whole tag, or all that is hashed, has it whatever follows.
        let is_of_one = || TreeHash::of_stored(&self.stored_name()).0.part_of_prefix(prefix).is_some();
        if !is_of_one() {
            self.is_hashed_by_now(&self.stored_name()).await;
        }
        if !is_of_one() {
            return Err(Error::Invalid(format!(
                "the prefix \"{}\" has no {{tag}}, and its numbers are given by one partition",
                prefix.escape_ascii()
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_is_tried_again_before_the_lease_is_over() {
        let (lease, asked, begun) = (Duration::from_secs(60), Asked::now(), Instant::now());
        let certain = certain_until(asked, lease).instant();
        assert!(certain < begun + lease - lease / 64, "the log's time may be that much faster");
        assert_eq!(due_at(certain, lease), begun + lease / 3);
        // It was tried for a third of the lease, in vain.
        tokio::time::advance(lease / 3 * 2).await;
        assert!(due_at(certain, lease) < Instant::now());
        assert_eq!(pause(lease), LONGEST_PAUSE);
        assert!(Instant::now() + pause(lease) + lease / 5 < certain);
    }
}
