//! Keys that expire: the operations of [`Tree`] on times to live.

use std::time::{Duration, SystemTime};

use dogsled_storage::expiry::{ExpiryCommand, ExpiryReply, SetIf, When};
use dogsled_storage::{Command, GroupRead, GroupReadReply, Reply, TreeId};

use super::core::unexpected;
use super::tree::CompareAndSwapResult;
use super::{ReadFrom, Result, Tree};
use crate::lock::milliseconds;
use crate::ttl::{Ttl, left};
use crate::{CompareAndSwapError, IVec};

/// Keys that expire; see [times to live](super#times-to-live).
impl Tree {
    /// Sets a key that expires after so long; the value before. Any other write of the key takes the
    /// time to live from it.
    ///
    /// ```no_run
    /// # async fn cache(pages: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// use std::time::{Duration, SystemTime};
    /// pages.insert_with_ttl("/index", "<html>", Duration::from_secs(60)).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`](super::Error::Invalid) for a time of nothing, and those of
    /// [writing](super#writes).
    pub async fn insert_with_ttl<K, V>(&self, key: K, value: V, ttl: Duration) -> Result<Option<IVec>>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
    {
        let (key, value, when) = (IVec::from(key.as_ref()), value.into(), When::After(milliseconds(ttl)));
        let insert = ExpiryCommand::Insert { tree: TreeId(0), key: key.clone(), value, when };
        match self.execute(&key, Command::Expiry(insert)).await? {
            Reply::Previous(previous) => Ok(previous),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Tree::compare_and_swap`], but what is set expires after so long.
    ///
    /// # Errors
    /// As [`Tree::insert_with_ttl`].
    pub async fn compare_and_swap_with_ttl<K, OV, NV>(
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
        let swap = ExpiryCommand::Swap { tree: TreeId(0), key: key.clone(), old, new: new.clone(), when };
        match self.execute(&key, Command::Expiry(swap)).await? {
            Reply::Swapped(Ok(())) => Ok(Ok(())),
            Reply::Swapped(Err(current)) => Ok(Err(CompareAndSwapError { current, proposed: Some(new) })),
            other => Err(unexpected(&other)),
        }
    }

    /// Has a key that is there expire after so long, counted from now; whether it was there.
    ///
    /// # Errors
    /// As [`Tree::insert_with_ttl`].
    pub async fn expire<K: AsRef<[u8]>>(&self, key: K, ttl: Duration) -> Result<bool> {
        let (key, when) = (IVec::from(key.as_ref()), When::After(milliseconds(ttl)));
        let set = ExpiryCommand::Set { tree: TreeId(0), key: key.clone(), when, only: SetIf::Always };
        self.changed(&key, set).await
    }

    /// Has a key that is there expire at a time, as far away as this machine's clock says now; whether it was there. If
    /// that is over, the key is removed.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn expire_at<K: AsRef<[u8]>>(&self, key: K, at: SystemTime) -> Result<bool> {
        let key = IVec::from(key.as_ref());
        let when = match at.duration_since(SystemTime::now()) {
            Ok(left) if !left.is_zero() => When::After(milliseconds(left)),
            // The beginning of time is over on every node.
            _ => When::At(0),
        };
        let set = ExpiryCommand::Set { tree: TreeId(0), key: key.clone(), when, only: SetIf::Always };
        self.changed(&key, set).await
    }

    /// Sets a key, or what is there already, to expire at a time of the log, in milliseconds since 1970: what is over by then
    /// is not there. For what was read of another cluster; this machine's clock has no part in it.
    #[doc(hidden)]
    pub async fn put_until(&self, key: IVec, value: Option<IVec>, at_ms: u64) -> Result<()> {
        let (tree, when, only) = (TreeId(0), When::At(at_ms), SetIf::Always);
        let command = match value {
            Some(value) => ExpiryCommand::Insert { tree, key: key.clone(), value, when },
            None => ExpiryCommand::Set { tree, key: key.clone(), when, only },
        };
        self.execute(&key, Command::Expiry(command)).await.map(drop)
    }

    /// Takes the time to live from a key, so that it stays; whether it had one.
    ///
    /// # Errors
    /// Those of [writing](super#writes).
    pub async fn persist<K: AsRef<[u8]>>(&self, key: K) -> Result<bool> {
        let key = IVec::from(key.as_ref());
        self.changed(&key, ExpiryCommand::Clear { tree: TreeId(0), key: key.clone() }).await
    }

    async fn changed(&self, key: &IVec, command: ExpiryCommand) -> Result<bool> {
        match self.execute(key, Command::Expiry(command)).await? {
            Reply::Expiry(reply) => Ok(reply == ExpiryReply::Changed),
            other => Err(unexpected(&other)),
        }
    }

    /// How long a key has to live.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn ttl<K: AsRef<[u8]>>(&self, key: K) -> Result<Ttl> {
        let until = self.client().until();
        let key = IVec::from(key.as_ref());
        let expires = |tree| GroupRead::Expires { tree, key: key.clone() };
        match self.read_at(&key, ReadFrom::Leader, until, expires).await?.reply {
            GroupReadReply::Expires { at_ms, now_ms } => Ok(left(at_ms, now_ms)),
            other => Err(unexpected(&other)),
        }
    }
}
