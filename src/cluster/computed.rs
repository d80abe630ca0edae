//! Get or compute: a cache that many share, in which nothing is computed twice at a time.

use std::time::Duration;

use super::{Error, ReadFrom, Result, Tree};
use crate::IVec;

impl Tree {
    /// The value of a key; if there is none, `compute` makes it, and it is kept for so long.
    ///
    /// Of all who ask for one key at a time, over all clients, one computes and the others wait for it and
    /// get what it made: the key's name is a lock meanwhile, with that lease, renewed while `compute` runs. If it
    /// fails or its client dies, the next one computes. What was computed is written under the lock's
    /// fence, so one that was paused for longer than its lease does not overwrite what came after.
    ///
    /// ```no_run
    /// # async fn page(pages: dogsled::cluster::Tree) -> dogsled::cluster::Result<()> {
    /// # async fn render() -> Result<Vec<u8>, dogsled::cluster::Error> { Ok(Vec::new()) }
    /// use std::time::Duration;
    /// let (keep, lease) = (Duration::from_secs(60), Duration::from_secs(10));
    /// let page = pages.get_or_compute("/index", keep, lease, || async { render().await }).await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// That of `compute`, and those of the cluster, for which `E` must have room.
    pub async fn get_or_compute<K, V, E, F>(
        &self,
        key: K,
        keep: Duration,
        lease: Duration,
        compute: impl FnOnce() -> F,
    ) -> Result<IVec, E>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
        E: From<Error>,
        F: Future<Output = std::result::Result<V, E>>,
    {
        let key = key.as_ref();
        if let Some(found) = self.get(key).await? {
            return Ok(found);
        }
        // A lock of the key's own name is of its partition, where keys are hashed whole.
        let core = self.client().core();
        let (stored, until) = (self.stored_name(), self.client().until());
        if core.group_in(&stored, key, until).await? != core.group_of(key, until).await? {
            let what = "a tree of which something else than whole keys is hashed has no locks beside its keys, by which \
                        one computes for all";
            return Err(Error::Invalid(what.to_owned()).into());
        }
        let guard = self.client().lock(key).acquire(lease).await?;
        // Whoever had the lock before may have made it, which an older replica need not know.
        if let Some(found) = self.read_from(ReadFrom::Leader).get(key).await? {
            guard.release().await?.ok();
            return Ok(found);
        }
        let value: IVec = compute().await?.into();
        match self.under(&guard).insert_with_ttl(key, value.clone(), keep).await {
            // It took longer than the lease in which it could be renewed. What it made is good all the same.
            Ok(_) | Err(Error::LockNotHeld { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        guard.release().await?.ok();
        Ok(value)
    }
}
