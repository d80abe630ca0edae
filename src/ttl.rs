//! Keys that expire: the operations of [`Tree`] on times to live.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dogsled_storage::expiry::{ExpiryCommand, ExpiryReply, SetIf, When};
use dogsled_storage::{Command, Reply};

use crate::lock::milliseconds;
use crate::tree::CompareAndSwapResult;
use crate::{CompareAndSwapError, IVec, Result, Tree};

/// How long a key has to live; see [`Tree::ttl`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// There is no such key.
    NoKey,
    /// It does not expire.
    Forever,
    /// It expires after so long.
    In(Duration),
}

/// What is left until a time of the log.
pub(crate) fn left(at_ms: Option<Option<u64>>, now_ms: u64) -> Ttl {
    match at_ms {
        None => Ttl::NoKey,
        Some(None) => Ttl::Forever,
        Some(Some(at_ms)) => Ttl::In(Duration::from_millis(at_ms.saturating_sub(now_ms))),
    }
}

/// Keys that expire.
///
/// A key that has expired is not read any more from the moment on at which its time is over; it is
/// removed in the background, of which watchers are told. [`Tree::len`] counts it until then. Every write
/// that says nothing of a time to live takes it from the key: `insert`, `put`, a batch, a transaction,
/// `compare_and_swap`.
impl Tree {
    /// Sets a key that expires after so long; the value before.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// db.insert_with_ttl("session 7", "ann", Duration::from_millis(20))?;
    /// assert_eq!(db.get("session 7")?.unwrap(), "ann");
    /// std::thread::sleep(Duration::from_millis(40));
    /// assert_eq!(db.get("session 7")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`](crate::Error::Unsupported) for a time of nothing, and those of writing.
    pub fn insert_with_ttl<K, V>(&self, key: K, value: V, ttl: Duration) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (key, value, when) = (IVec::from(key.as_ref()), value.into(), When::After(milliseconds(ttl)));
        match self.expiry(ExpiryCommand::Insert { tree: self.id, key, value, when })? {
            Reply::Previous(previous) => Ok(previous),
            other => unreachable!("an insert was answered with {other:?}"),
        }
    }

    /// As [`Tree::compare_and_swap`], but what is set expires after so long.
    ///
    /// # Errors
    /// As [`Tree::insert_with_ttl`].
    pub fn compare_and_swap_with_ttl<K, OV, NV>(
        &self,
        key: K,
        old: Option<OV>,
        new: NV,
        ttl: Duration,
    ) -> CompareAndSwapResult
    where
        K: AsRef<[u8]>,
        OV: AsRef<[u8]>,
        NV: Into<IVec>,
    {
        let (key, new): (IVec, IVec) = (IVec::from(key.as_ref()), new.into());
        let old = old.map(|old| IVec::from(old.as_ref()));
        let when = When::After(milliseconds(ttl));
        match self.expiry(ExpiryCommand::Swap { tree: self.id, key, old, new: new.clone(), when })? {
            Reply::Swapped(Ok(())) => Ok(Ok(())),
            Reply::Swapped(Err(current)) => Ok(Err(CompareAndSwapError { current, proposed: Some(new) })),
            other => unreachable!("a swap was answered with {other:?}"),
        }
    }

    /// Has a key that is there expire after so long, counted from now; whether it was there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// use dogsled::Ttl;
    /// db.insert("k", "v")?;
    /// assert_eq!(db.ttl("k")?, Ttl::Forever);
    /// assert!(db.expire("k", Duration::from_secs(60))?);
    /// assert!(matches!(db.ttl("k")?, Ttl::In(left) if left > Duration::from_secs(50)));
    /// assert!(db.persist("k")?);
    /// assert_eq!(db.ttl("k")?, Ttl::Forever);
    /// assert_eq!(db.ttl("nothing")?, Ttl::NoKey);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Tree::insert_with_ttl`].
    pub fn expire<K: AsRef<[u8]>>(&self, key: K, ttl: Duration) -> Result<bool> {
        let (key, when) = (IVec::from(key.as_ref()), When::After(milliseconds(ttl)));
        self.changed(ExpiryCommand::Set { tree: self.id, key, when, only: SetIf::Always })
    }

    /// Has a key that is there expire at a time, as far away as the system's clock says now; whether it was there. If
    /// that is over, the key is removed.
    ///
    /// # Errors
    /// Those of writing.
    pub fn expire_at<K: AsRef<[u8]>>(&self, key: K, at: SystemTime) -> Result<bool> {
        // A time before 1970 is over as well.
        let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.expire_at_ms(key.as_ref(), self.database.engine.log_time_at(milliseconds(since)))
    }

    /// Has a key that is there expire at a time, in milliseconds since 1970.
    pub(crate) fn expire_at_ms(&self, key: &[u8], at_ms: u64) -> Result<bool> {
        let (key, when) = (IVec::from(key), When::At(at_ms));
        self.changed(ExpiryCommand::Set { tree: self.id, key, when, only: SetIf::Always })
    }

    /// Takes the time to live from a key, so that it stays; whether it had one.
    ///
    /// # Errors
    /// Those of writing.
    pub fn persist<K: AsRef<[u8]>>(&self, key: K) -> Result<bool> {
        self.changed(ExpiryCommand::Clear { tree: self.id, key: IVec::from(key.as_ref()) })
    }

    /// How long a key has to live.
    ///
    /// # Errors
    /// Those of reading.
    pub fn ttl<K: AsRef<[u8]>>(&self, key: K) -> Result<Ttl> {
        let engine = &self.database.engine;
        let at_ms = engine.expires(self.id, key.as_ref()).map_err(|error| self.explain(error))?;
        // Only where there is a time to compare with.
        let now_ms = if matches!(at_ms, Some(Some(_))) { engine.now_ms() } else { 0 };
        Ok(left(at_ms, now_ms))
    }

    fn expiry(&self, command: ExpiryCommand) -> Result<Reply> {
        self.execute(Command::Expiry(command), self.database.durability())
    }

    fn changed(&self, command: ExpiryCommand) -> Result<bool> {
        match self.expiry(command)? {
            Reply::Expiry(reply) => Ok(reply == ExpiryReply::Changed),
            other => unreachable!("a time to live was answered with {other:?}"),
        }
    }
}
