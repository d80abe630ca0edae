//! Counters, locks and times to live as parts of a transaction.

use std::ops::RangeInclusive;
use std::rc::Rc;
use std::time::Duration;

use dogsled_storage::counter::{CounterCommand, CounterReply};
use dogsled_storage::expiry::{ExpiryCommand, ExpiryReply, SetIf, When};
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply};
use dogsled_storage::{Command, OwnedCommand, Reply, SessionId};

use super::attempt::Attempt;
use super::{TransactionalTree, UnabortableTransactionResult};
use crate::counter::{OutOfBounds, overflow};
use crate::lock::milliseconds;
use crate::{Error, IVec, Session, Ttl};

/// An atomic counter as a part of a transaction; see [`Counter`](crate::Counter).
///
/// Two transactions that add to one counter conflict, as any two that read and write one key do.
pub struct TransactionalCounter {
    name: IVec,
    attempt: Rc<Attempt>,
}

impl TransactionalCounter {
    pub(super) fn new(name: IVec, attempt: Rc<Attempt>) -> TransactionalCounter {
        TransactionalCounter { name, attempt }
    }

    fn evaluate(&self, command: CounterCommand) -> UnabortableTransactionResult<CounterReply> {
        match self.attempt.evaluate(&Command::Counter(command))? {
            Reply::Counter(reply) => Ok(reply),
            other => unreachable!("a counter's command was answered with {other:?}"),
        }
    }

    /// Adds, negative numbers too; the sum.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let visits = db.transaction(|tree| Ok(tree.counter("visits").add(1)?))?;
    /// assert_eq!(visits, 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the sum does not fit, and those of reading.
    pub fn add(&self, delta: i64) -> UnabortableTransactionResult<i64> {
        match self.evaluate(CounterCommand::Add { name: self.name.clone(), delta })? {
            CounterReply::Added { value } => Ok(value),
            CounterReply::Overflow { current } => Err(overflow(current, delta).into()),
            other => unreachable!("adding was answered with {other:?}"),
        }
    }

    /// Adds if the sum is within `bounds`; the sum.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let seat = db.transaction(|tree| Ok(tree.counter("seats").add_within(1, 0..=1)?))?;
    /// assert_eq!(seat, Ok(1));
    /// let full = db.transaction(|tree| Ok(tree.counter("seats").add_within(1, 0..=1)?))?;
    /// assert!(full.is_err());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Outer: those of reading. Inner: [`OutOfBounds`].
    pub fn add_within(
        &self,
        delta: i64,
        bounds: RangeInclusive<i64>,
    ) -> UnabortableTransactionResult<Result<i64, OutOfBounds>> {
        let (min, max) = bounds.into_inner();
        match self.evaluate(CounterCommand::AddWithin { name: self.name.clone(), delta, min, max })? {
            CounterReply::Added { value } => Ok(Ok(value)),
            CounterReply::OutOfBounds { current } => Ok(Err(OutOfBounds { current })),
            other => unreachable!("adding was answered with {other:?}"),
        }
    }

    /// The value; 0 if it was never set.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(db.transaction(|tree| Ok(tree.counter("never touched").get()?))?, 0);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get(&self) -> UnabortableTransactionResult<i64> {
        match self.evaluate(CounterCommand::Get { name: self.name.clone() })? {
            CounterReply::Value(value) => Ok(value.unwrap_or(0)),
            other => unreachable!("reading was answered with {other:?}"),
        }
    }

    /// Sets the value; the one before.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let before = db.transaction(|tree| Ok(tree.counter("stock").set(40)?))?;
    /// assert_eq!((before, db.counter("stock").get()?), (0, 40));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn set(&self, value: i64) -> UnabortableTransactionResult<i64> {
        match self.evaluate(CounterCommand::Set { name: self.name.clone(), value })? {
            CounterReply::Previous(previous) => Ok(previous.unwrap_or(0)),
            other => unreachable!("setting was answered with {other:?}"),
        }
    }

    /// Sets the value to 0 and forgets the counter; the value before.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.counter("visits").add(3)?;
    /// let counted = db.transaction(|tree| Ok(tree.counter("visits").reset()?))?;
    /// assert_eq!((counted, db.counter("visits").get()?), (3, 0));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn reset(&self) -> UnabortableTransactionResult<i64> {
        match self.evaluate(CounterCommand::Remove { name: self.name.clone() })? {
            CounterReply::Previous(previous) => Ok(previous.unwrap_or(0)),
            other => unreachable!("resetting was answered with {other:?}"),
        }
    }
}

impl std::fmt::Debug for TransactionalCounter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionalCounter").field("name", &self.name).finish_non_exhaustive()
    }
}

/// A lock as a part of a transaction: taken, checked or released together with what it guards.
///
/// A lock that a transaction takes is held once the transaction has committed; the fencing token
/// is the position of that commit, so it is not known before. Take the lock up afterwards by
/// [`Lock::resume`](crate::Lock::resume).
///
/// ```
/// # fn main() -> dogsled::transaction::TransactionResult<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use std::time::Duration;
/// let lease = Duration::from_secs(10);
/// let taken = db.transaction(|jobs| {
///     if !jobs.lock("job 1").try_acquire("worker 7", lease)? {
///         return Ok(false);
///     }
///     jobs.insert("job 1", "started by worker 7")?;
///     Ok(true)
/// })?;
/// assert!(taken);
/// let guard = db.lock("job 1").owner("worker 7").resume()?.expect("it is held");
/// assert!(guard.token().0 > 0);
/// # Ok(()) }
/// ```
pub struct TransactionalLock {
    name: IVec,
    attempt: Rc<Attempt>,
}

impl TransactionalLock {
    pub(super) fn new(name: IVec, attempt: Rc<Attempt>) -> TransactionalLock {
        TransactionalLock { name, attempt }
    }

    fn evaluate(&self, command: LockCommand) -> UnabortableTransactionResult<LockReply> {
        match self.attempt.evaluate(&Command::Lock(command))? {
            Reply::Lock(reply) => Ok(reply),
            other => unreachable!("a lock's command was answered with {other:?}"),
        }
    }

    /// That it is held now is to be so at the commit.
    fn noting(&self, token: FencingToken, is_held: bool) -> bool {
        if is_held {
            self.attempt.has_seen_held(&self.name, token);
        }
        is_held
    }

    /// Takes the lock for `owner` if it is free; whether it was. A transaction that takes a lock
    /// is always synced.
    ///
    /// # Errors
    /// Those of reading.
    pub fn try_acquire(
        &self,
        owner: impl AsRef<[u8]>,
        lease: Duration,
    ) -> UnabortableTransactionResult<bool> {
        let (name, owner) = (self.name.clone(), IVec::from(owner.as_ref()));
        match self.evaluate(LockCommand::TryAcquire { name, owner, lease_ms: milliseconds(lease) })? {
            LockReply::Acquired { .. } => {
                self.attempt.require_sync();
                Ok(true)
            }
            LockReply::Held { .. } => Ok(false),
            other => unreachable!("acquiring was answered with {other:?}"),
        }
    }

    /// Whether `owner` holds the lock with that token. Within a transaction that also writes what
    /// the lock guards, this is the check that a fencing token is for: if the lease ends before the transaction commits, the
    /// closure is run again. Of at most 64 locks.
    ///
    /// # Errors
    /// Those of reading.
    pub fn is_held(
        &self,
        owner: impl AsRef<[u8]>,
        token: FencingToken,
    ) -> UnabortableTransactionResult<bool> {
        let holder = self.holder()?;
        let is_held = holder.is_some_and(|holder| holder.owner == owner.as_ref() && holder.token == token);
        Ok(self.noting(token, is_held))
    }

    /// Who holds the lock.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let holder = db.transaction(|tree| Ok(tree.lock("nobody's").holder()?))?;
    /// assert!(holder.is_none());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn holder(&self) -> UnabortableTransactionResult<Option<crate::Holder>> {
        self.attempt.lock_holder(&self.name)
    }

    /// Starts the lease anew; whether the lock was still held.
    ///
    /// # Errors
    /// Those of reading.
    pub fn renew(
        &self,
        owner: impl AsRef<[u8]>,
        token: FencingToken,
        lease: Duration,
    ) -> UnabortableTransactionResult<bool> {
        let (name, owner) = (self.name.clone(), IVec::from(owner.as_ref()));
        match self.evaluate(LockCommand::Renew { name, owner, token, lease_ms: milliseconds(lease) })? {
            LockReply::Renewed { .. } => Ok(self.noting(token, true)),
            LockReply::NotHeld => Ok(false),
            other => unreachable!("renewing was answered with {other:?}"),
        }
    }

    /// Gives the lock back; whether it was still held.
    ///
    /// # Errors
    /// Those of reading.
    pub fn release(
        &self,
        owner: impl AsRef<[u8]>,
        token: FencingToken,
    ) -> UnabortableTransactionResult<bool> {
        let (name, owner) = (self.name.clone(), IVec::from(owner.as_ref()));
        match self.evaluate(LockCommand::Release { name, owner, token })? {
            LockReply::Released => Ok(self.noting(token, true)),
            LockReply::NotHeld => Ok(false),
            other => unreachable!("releasing was answered with {other:?}"),
        }
    }
}

impl std::fmt::Debug for TransactionalLock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TransactionalLock").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Attempt {
    fn lock_holder(self: &Rc<Self>, name: &[u8]) -> UnabortableTransactionResult<Option<crate::Holder>> {
        Ok(self
            .with_view(|view, time_ms| dogsled_storage::lock::holder(view, time_ms, name))
            .map_err(Error::from)?)
    }
}

/// Keys that expire, as those of a [`Tree`](crate::Tree::insert_with_ttl), counted from when the transaction's
/// run began. A plain write of the key takes its time to live from it, in a transaction too.
///
/// ```
/// # fn main() -> dogsled::transaction::TransactionResult<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use dogsled::Ttl;
/// use std::time::Duration;
/// db.insert("cart 7", "apples")?;
/// db.transaction(|db| {
///     let cart = db.remove("cart 7")?.unwrap_or_default();
///     db.insert_with_ttl("reserved 7", cart, Duration::from_secs(600))?;
///     Ok(())
/// })?;
/// assert!(matches!(db.ttl("reserved 7")?, Ttl::In(_)));
/// # Ok(()) }
/// ```
impl TransactionalTree {
    fn expiry(&self, command: ExpiryCommand) -> UnabortableTransactionResult<Reply> {
        if let ExpiryCommand::Insert { tree, key, .. } = &command {
            self.make_plain(*tree, key)?;
        }
        self.evaluate_on_tree(&Command::Expiry(command))
    }

    fn changed(&self, command: ExpiryCommand) -> UnabortableTransactionResult<bool> {
        match self.expiry(command)? {
            Reply::Expiry(reply) => Ok(reply == ExpiryReply::Changed),
            other => unreachable!("a time to live was answered with {other:?}"),
        }
    }

    /// Sets a key that expires after so long; the value before.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a time of nothing, and those of reading.
    pub fn insert_with_ttl<K, V>(
        &self,
        key: K,
        value: V,
        ttl: Duration,
    ) -> UnabortableTransactionResult<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (key, value, when) = (IVec::from(key.as_ref()), value.into(), When::After(milliseconds(ttl)));
        match self.expiry(ExpiryCommand::Insert { tree: self.id(), key, value, when })? {
            Reply::Previous(previous) => Ok(previous),
            other => unreachable!("an insert was answered with {other:?}"),
        }
    }

    /// Has a key that is there expire after so long; whether it was there.
    ///
    /// # Errors
    /// As [`TransactionalTree::insert_with_ttl`].
    pub fn expire<K: AsRef<[u8]>>(&self, key: K, ttl: Duration) -> UnabortableTransactionResult<bool> {
        let (key, when) = (IVec::from(key.as_ref()), When::After(milliseconds(ttl)));
        self.changed(ExpiryCommand::Set { tree: self.id(), key, when, only: SetIf::Always })
    }

    /// Takes the time to live from a key, so that it stays; whether it had one.
    ///
    /// # Errors
    /// Those of reading.
    pub fn persist<K: AsRef<[u8]>>(&self, key: K) -> UnabortableTransactionResult<bool> {
        self.changed(ExpiryCommand::Clear { tree: self.id(), key: IVec::from(key.as_ref()) })
    }

    /// How long a key has to live, which counts as read.
    ///
    /// # Errors
    /// Those of reading.
    pub fn ttl<K: AsRef<[u8]>>(&self, key: K) -> UnabortableTransactionResult<Ttl> {
        let at_ms =
            match self.expiry(ExpiryCommand::Get { tree: self.id(), key: IVec::from(key.as_ref()) })? {
                Reply::Expiry(ExpiryReply::Expires(at_ms)) => Some(at_ms),
                Reply::Expiry(ExpiryReply::Absent) => None,
                other => unreachable!("a time to live was answered with {other:?}"),
            };
        Ok(crate::ttl::left(at_ms, self.began_ms()))
    }
}

/// Keys of [sessions](crate::Session), and numbered keys.
///
/// ```
/// # fn main() -> dogsled::transaction::TransactionResult<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use std::time::Duration;
/// let session = db.session(Duration::from_secs(30))?;
/// let job = db.transaction(|db| {
///     db.insert_with_session(&session, "worker 7", "here")?;
///     Ok(db.insert_next("job:", "resize 7")?)
/// })?;
/// assert_eq!(job, "job:00000000000000000000");
/// session.close()?;
/// assert_eq!(db.get("worker 7")?, None);
/// assert_eq!(db.get(&job)?.unwrap(), "resize 7");
/// # Ok(()) }
/// ```
impl TransactionalTree {
    /// Sets a key that dies with a session; the value before. A plain write of the key makes it one like any other.
    ///
    /// # Errors
    /// [`Error::Unsupported`] if the session has ended or is of another database, and those of reading.
    pub fn insert_with_session<K, V>(
        &self,
        session: &Session,
        key: K,
        value: V,
    ) -> UnabortableTransactionResult<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (tree, key, value) = (self.id(), IVec::from(key.as_ref()), value.into());
        let insert = OwnedCommand::Insert { tree, key, value, session: self.check_session(session)? };
        match self.owned(insert)? {
            Reply::Previous(previous) => Ok(previous),
            other => unreachable!("an insert was answered with {other:?}"),
        }
    }

    /// Sets a new key: the prefix and its next number, as [`Tree::insert_next`](crate::Tree::insert_next) does; the key.
    /// Two transactions that give numbers of one prefix conflict.
    ///
    /// # Errors
    /// Those of reading.
    pub fn insert_next<P, V>(&self, prefix: P, value: V) -> UnabortableTransactionResult<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        self.next_key(prefix.as_ref(), value.into(), None)
    }

    /// As [`TransactionalTree::insert_next`], of a key that dies with a session.
    ///
    /// # Errors
    /// As [`TransactionalTree::insert_with_session`].
    pub fn insert_next_with_session<P, V>(
        &self,
        session: &Session,
        prefix: P,
        value: V,
    ) -> UnabortableTransactionResult<IVec>
    where
        P: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let session = self.check_session(session)?;
        self.next_key(prefix.as_ref(), value.into(), Some(session))
    }

    fn next_key(
        &self,
        prefix: &[u8],
        value: IVec,
        session: Option<SessionId>,
    ) -> UnabortableTransactionResult<IVec> {
        let (tree, prefix) = (self.id(), IVec::from(prefix));
        match self.owned(OwnedCommand::InsertNext { tree, prefix, value, session })? {
            Reply::Named { key } => Ok(key),
            other => unreachable!("a numbered insert was answered with {other:?}"),
        }
    }
}
