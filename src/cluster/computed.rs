//! Get or compute: a cache that many share, in which nothing is computed twice at a time.

use std::time::Duration;

use dogsled_storage::command::MAX_NAME_LENGTH;
use tokio::time::Instant;

use super::{Error, ReadFrom, Result, Tree, ring};
use crate::IVec;

/// The lock under which the value of a key is computed: of the key's partition, and of its tree alone, so that what
/// computes a value may ask for the same key of another tree.
///
/// A name that cannot be told from others by its tree is the key itself: if what is hashed of the key cannot be the tag
/// of another name, or the name would be too long. Then the trees share the lock.
fn lock_name(tree: &[u8], key: &[u8]) -> IVec {
    let part = ring::hashed_part(key);
    if part.is_empty() || part.contains(&b'}') {
        return IVec::from(key);
    }
    let name = [&b"{"[..], part, b"}compute:", tree, b"\0", key].concat();
    IVec::from(if name.len() > MAX_NAME_LENGTH { key } else { &name[..] })
}

impl Tree {
    /// The value of a key; if there is none, `compute` makes it, and it is kept for so long.
    ///
    /// Of all who ask for one key at a time, over all clients, one computes and the others wait for it and
    /// get what it made: there is a lock for the key in this tree meanwhile, with that lease, renewed while `compute`
    /// runs. If it fails or its client dies, the next one computes. What was computed is written under the lock's
    /// fence, so one that was paused for longer than its lease does not overwrite what came after.
    ///
    /// The others wait until the client's [deadline](Tree::with_deadline), which should allow for what `compute` takes.
    /// `compute` may ask for other keys, and for the same key of other trees; whoever asks for the very key that it is
    /// computing waits for itself, until then.
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
    /// That of `compute`, and those of the cluster, for which `E` must have room. [`Error::Unavailable`] if somebody else
    /// was computing it at the deadline.
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
        // A lock with what is hashed of the key as its tag is of the key's partition, where keys are hashed whole.
        let core = self.client().core();
        let (stored, until) = (self.stored_name(), self.client().until());
        if core.group_in(&stored, key, until).await? != core.group_of(key, until).await? {
            let what = "a tree of which something else than whole keys is hashed has no locks beside its keys, by which \
                        one computes for all";
            return Err(Error::Invalid(what.to_owned()).into());
        }
        let lock = self.client().lock(lock_name(self.name(), key));
        let wait = until.saturating_duration_since(Instant::now());
        let Some(guard) = lock.acquire_timeout(lease, wait).await? else {
            let why = "somebody else was computing the value until the deadline";
            return Err(Error::Unavailable(why.to_owned()).into());
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lock_of_a_key_is_of_its_partition_and_of_its_tree_alone_where_it_can_be() {
        let long = "k".repeat(MAX_NAME_LENGTH);
        for key in ["", "/index", "{user 7}:page", "a}b", "{}", "{a", "x{y}z{", "a{b{c}}", &long] {
            let [one, other] = ["pages", "feeds"].map(|tree| lock_name(tree.as_bytes(), key.as_bytes()));
            assert_eq!(ring::hash(&one), ring::hash(key.as_bytes()), "{key}");
            assert_eq!(ring::hash(&other), ring::hash(key.as_bytes()), "{key}");
            assert!(one.len() <= MAX_NAME_LENGTH.max(key.len()), "{key}");
            let is_shared = ["", "a}b", "{}", &long].contains(&key);
            assert_eq!(one == other, is_shared, "{key}");
            assert_eq!(one == key, is_shared, "{key}");
        }
    }
}
