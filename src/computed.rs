//! Get or compute: a cache in which nothing is computed twice at a time.

use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::command::MAX_NAME_LENGTH;

use crate::{Error, IVec, Lock, Result, Tree};

/// The lock under which the value of a key is computed, of its tree alone. Of what would be too long for a name only a part
/// and a checksum are in it: keys that have both in common share a lock, and wait for each other.
fn lock_name(tree: &[u8], key: &[u8]) -> IVec {
    let mut name = [&b"compute:"[..], &(tree.len() as u32).to_be_bytes(), tree, key].concat();
    if name.len() > MAX_NAME_LENGTH {
        let check = [crc32fast::hash(&name), name.len() as u32].map(u32::to_be_bytes);
        name.truncate(MAX_NAME_LENGTH - check.as_flattened().len());
        name.extend_from_slice(check.as_flattened());
    }
    IVec::from(name)
}

/// Computing what is not there.
impl Tree {
    /// The value of a key; if there is none, `compute` makes it, and it is kept for so long.
    ///
    /// Of all who ask for one key at a time one computes, and the others wait for it and get what it made: there is a lock
    /// for the key in this tree meanwhile, with that lease, renewed while `compute` runs. If it fails, the next one
    /// computes. What was computed is written under the lock's fence. `compute` may ask for other keys, and for the same key
    /// of other trees; whoever asks for the very key that it is computing waits for itself.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use std::time::Duration;
    /// let (keep, lease) = (Duration::from_secs(60), Duration::from_secs(10));
    /// let page = db.get_or_compute("/index", keep, lease, || Ok::<_, dogsled::Error>("<p>dogs"))?;
    /// assert_eq!(page, "<p>dogs");
    /// let again = db.get_or_compute("/index", keep, lease, || -> dogsled::Result<&str> { unreachable!() })?;
    /// assert_eq!(again, page);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// That of `compute`, and those of the database, for which `E` must have room.
    pub fn get_or_compute<K, V, E>(
        &self,
        key: K,
        keep: Duration,
        lease: Duration,
        compute: impl FnOnce() -> Result<V, E>,
    ) -> Result<IVec, E>
    where
        K: AsRef<[u8]>,
        V: Into<IVec>,
        E: From<Error>,
    {
        let key = key.as_ref();
        if let Some(found) = self.get(key)? {
            return Ok(found);
        }
        let lock = lock_name(&self.name(), key);
        let guard = Lock::new(lock, 1, 1, Arc::clone(&self.database)).acquire(lease)?;
        if let Some(found) = self.get(key)? {
            return Ok(found);
        }
        let value: IVec = compute()?.into();
        match self.under(&guard).insert_with_ttl(key, value.clone(), keep) {
            // It took longer than the lease in which it could be renewed. What it made is good all the same.
            Ok(_) | Err(Error::LockNotHeld { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(value)
    }
}
