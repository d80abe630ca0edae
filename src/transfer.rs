//! Export, import and checksums, in forms that sled shares: how data moves over.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use dogsled_storage::{EXPIRY_TREE_NAME, LOCKS_TREE_NAME, TreeId};

use crate::{Batch, Db, Error, IVec, Iter, Result, Snapshot, Tree};

/// What an exported collection holds: pairs of key and value.
type ExportedItems = Box<dyn Iterator<Item = Vec<Vec<u8>>> + Send>;

/// What kind of collection an exported item is; there is one kind, `b"tree"`.
pub type CollectionType = Vec<u8>;
/// The name of an exported collection.
pub type CollectionName = Vec<u8>;

const TREE: &[u8] = b"tree";

/// Writes of an import that are applied together.
const IMPORT_BATCH_KEYS: usize = 10_000;
const IMPORT_BATCH_BYTES: usize = 8 << 20;

impl Db {
    /// Everything in the database, as it is now, in types of the standard library only: for each
    /// tree its kind, its name, and an iterator over pairs of key and value. Locks that are held, and keys that die with a
    /// session, are not among it. If keys have a time to live, these are a tree of their own at the end. Of hashes of Redis
    /// clients, which `dogsled import` may have brought, only the keys are among it, without their fields: `dogsled
    /// export` carries them over.
    ///
    /// sled's [`import`](Db::import) takes it, and the other way round:
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// let old = sled::Config::new().temporary(true).open()?;
    /// old.open_tree("users")?.insert("ann", "admin")?;
    ///
    /// let new = dogsled::Config::new().temporary(true).open()?;
    /// new.import(old.export());
    ///
    /// assert_eq!(new.open_tree("users")?.get("ann")?.unwrap(), "admin");
    /// assert_eq!(new.checksum()?, old.checksum()?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    /// If reading fails, as the iterators do, and sled's.
    pub fn export(
        &self,
    ) -> Vec<(CollectionType, CollectionName, impl Iterator<Item = Vec<Vec<u8>>> + use<>)> {
        let snapshot = self.snapshot();
        let of_sessions = snapshot.keys_of_sessions().expect("reading failed while exporting");
        let of_sessions: Arc<HashSet<(TreeId, IVec)>> = Arc::new(of_sessions.into_iter().collect());
        let export_tree = |tree: TreeId, iter: Iter| {
            let of_sessions = Arc::clone(&of_sessions);
            iter.filter_map(move |entry| {
                let (key, value) = entry.expect("reading failed while exporting");
                let stays = of_sessions.is_empty() || !of_sessions.contains(&(tree, key.clone()));
                stays.then(|| vec![key.to_vec(), value.to_vec()])
            })
        };
        let trees = snapshot.trees().into_iter().filter(holds_data);
        let mut all: Vec<_> = trees
            .map(|tree| {
                let entries: ExportedItems = Box::new(export_tree(tree.id, snapshot.iter(&tree)));
                (TREE.to_vec(), tree.name().to_vec(), entries)
            })
            .collect();
        // Only if there is one: sled's exports have no such tree.
        let mut ends = self.exported_ends(&snapshot).peekable();
        if ends.peek().is_some() {
            all.push((TREE.to_vec(), EXPIRY_TREE_NAME.to_vec(), Box::new(ends)));
        }
        all
    }

    /// The times to live, with the names of trees in the place of numbers.
    fn exported_ends(&self, snapshot: &Snapshot) -> impl Iterator<Item = Vec<Vec<u8>>> + Send + use<> {
        let names: HashMap<_, _> = snapshot.trees().into_iter().map(|tree| (tree.id, tree.name())).collect();
        snapshot.times_to_live().map(move |entry| {
            let (tree, key, at_ms) = entry.expect("reading failed while exporting");
            let name = &names[&tree];
            let length = u16::try_from(name.len()).expect("the name of a tree is within its limit");
            vec![[&length.to_be_bytes()[..], &name[..], &key[..]].concat(), at_ms.to_be_bytes().to_vec()]
        })
    }

    fn import_ends(&self, items: impl Iterator<Item = Vec<Vec<u8>>>) -> Result<()> {
        for item in items {
            let parts = || {
                let [key, at_ms] = &item[..] else { return None };
                let (length, rest) = key.split_first_chunk()?;
                let (name, key) = rest.split_at_checked(u16::from_be_bytes(*length).into())?;
                Some((name, key, u64::from_be_bytes(at_ms[..].try_into().ok()?)))
            };
            let Some((name, key, at_ms)) = parts() else {
                return Err(Error::Unsupported("a time to live that is none".to_owned()));
            };
            self.open_tree(name)?.expire_at_ms(key, at_ms)?;
        }
        Ok(())
    }

    /// Adds everything that was exported by [`Db::export`], or by sled's.
    ///
    /// # Panics
    /// As sled's: if writing fails, if a key is there already, if a collection is not a tree.
    /// [`Db::try_import`] returns an error instead.
    pub fn import(&self, export: Vec<(CollectionType, CollectionName, impl Iterator<Item = Vec<Vec<u8>>>)>) {
        if let Err(error) = self.try_import(export) {
            panic!("import failed: {error}");
        }
    }

    /// As [`Db::import`], but never panics. What was imported before an error stays.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let item = vec![b"key".to_vec(), b"value".to_vec()];
    /// let export = vec![(b"tree".to_vec(), b"users".to_vec(), vec![item].into_iter())];
    /// db.try_import(export.clone())?;
    /// assert_eq!(db.open_tree("users")?.get("key")?.unwrap(), "value");
    /// assert!(db.try_import(export).is_err()); // would overwrite
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if a key is there already, or the collection is not a tree of pairs;
    /// and those of writing.
    pub fn try_import(
        &self,
        export: Vec<(CollectionType, CollectionName, impl Iterator<Item = Vec<Vec<u8>>>)>,
    ) -> Result<()> {
        for (kind, name, items) in export {
            if kind != TREE {
                return Err(Error::Unsupported(format!(
                    "a collection of kind \"{}\" cannot be imported; only trees can",
                    kind.escape_ascii()
                )));
            }
            if name == LOCKS_TREE_NAME {
                continue;
            }
            if name == EXPIRY_TREE_NAME {
                self.import_ends(items)?;
                continue;
            }
            import_tree(&self.open_tree(&name)?, items)?;
        }
        Ok(())
    }

    /// The CRC-32 of the names, keys and values of all trees, as they are now; the same as sled's
    /// for the same data.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let before = db.checksum()?;
    /// db.insert("key", "value")?;
    /// assert_ne!(db.checksum()?, before);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn checksum(&self) -> Result<u32> {
        let snapshot = self.snapshot();
        let mut hasher = crc32fast::Hasher::new();
        // Sorted by name, as sled does.
        for tree in snapshot.trees().iter().filter(|tree| holds_data(tree)) {
            hasher.update(&tree.name());
            hash_entries(&mut hasher, snapshot.iter(tree))?;
        }
        Ok(hasher.finalize())
    }
}

impl Tree {
    /// The CRC-32 of all keys and values, as they are now; the same as sled's for the same data.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let (a, b) = (db.open_tree("a")?, db.open_tree("b")?);
    /// a.insert("key", "value")?;
    /// b.insert("key", "value")?;
    /// assert_eq!(a.checksum()?, b.checksum()?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn checksum(&self) -> Result<u32> {
        let mut hasher = crc32fast::Hasher::new();
        hash_entries(&mut hasher, self.iter())?;
        Ok(hasher.finalize())
    }
}

/// Whether a tree is part of what the database holds. Who has which lock is not: a grant belongs to
/// a running process and to the sequences of the database that gave it.
fn holds_data(tree: &Tree) -> bool {
    tree.id != TreeId::LOCKS
}

fn hash_entries(hasher: &mut crc32fast::Hasher, entries: Iter) -> Result<()> {
    for entry in entries {
        let (key, value) = entry?;
        hasher.update(&key);
        hasher.update(&value);
    }
    Ok(())
}

fn import_tree(tree: &Tree, items: impl Iterator<Item = Vec<Vec<u8>>>) -> Result<()> {
    let mut batch = Batch::default();
    let mut bytes = 0;
    for item in items {
        let Ok([key, value]) = <[Vec<u8>; 2]>::try_from(item) else {
            return Err(Error::Unsupported("an item of a tree is a key and a value".to_owned()));
        };
        if tree.contains_key(&key)? {
            return Err(Error::Unsupported(format!(
                "importing would overwrite key \"{}\" of tree \"{}\"",
                key.escape_ascii(),
                tree.name().escape_ascii()
            )));
        }
        bytes += key.len() + value.len();
        batch.insert(key, value);
        if batch.len() >= IMPORT_BATCH_KEYS || bytes >= IMPORT_BATCH_BYTES {
            tree.apply_batch(std::mem::take(&mut batch))?;
            bytes = 0;
        }
    }
    tree.apply_batch(batch)
}
