//! Reading a [`Tree`] in key order, and what comes first and last in it.

use std::ops::{Bound, RangeBounds};

use dogsled_storage::{Command, Reply};

use crate::{Error, IVec, Iter, Result, Tree};

/// Reading in key order.
impl Tree {
    /// All keys and values, in key order, as they are now.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// let mut iter = tree.iter();
    /// tree.insert("c", "3")?; // comes too late
    /// assert_eq!(iter.next().unwrap()?, ("a".into(), "1".into()));
    /// assert_eq!(iter.next_back().unwrap()?, ("b".into(), "2".into()));
    /// assert_eq!(iter.next(), None);
    /// # Ok(()) }
    /// ```
    pub fn iter(&self) -> Iter {
        self.range::<&[u8], _>(..)
    }

    /// The keys in a range and their values, in key order, as they are now.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// for key in ["a", "b", "c", "d"] {
    ///     tree.insert(key, key)?;
    /// }
    /// let keys: Vec<_> = tree.range("b".."d").keys().collect::<Result<_, _>>()?;
    /// assert_eq!(keys, ["b", "c"]);
    /// assert_eq!(tree.range("b"..="d").rev().next().unwrap()?.0, "d");
    /// # Ok(()) }
    /// ```
    pub fn range<K, R>(&self, range: R) -> Iter
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        let (low, high) = owned_bounds(&range);
        Iter::new(self.database.engine.snapshot().range(self.id, low, high), self.clone())
    }

    /// The keys that begin with `prefix` and their values, in key order, as they are now.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("user/ann", "1")?;
    /// tree.insert("user/bob", "2")?;
    /// tree.insert("view/ann", "3")?;
    /// assert_eq!(tree.scan_prefix("user/").count(), 2);
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix<P>(&self, prefix: P) -> Iter
    where
        P: AsRef<[u8]>,
    {
        let (low, high) = prefix_bounds(prefix.as_ref());
        Iter::new(self.database.engine.snapshot().range(self.id, low, high), self.clone())
    }

    /// The first key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// assert_eq!(tree.first()?, None);
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// assert_eq!(tree.first()?.unwrap().0, "a");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn first(&self) -> Result<Option<(IVec, IVec)>> {
        self.iter().next().transpose()
    }

    /// The last key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// assert_eq!(tree.last()?.unwrap().0, "b");
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn last(&self) -> Result<Option<(IVec, IVec)>> {
        self.iter().next_back().transpose()
    }

    /// The last key before `key`, and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([3], "b")?;
    /// assert_eq!(tree.get_lt([3])?.unwrap().0, &[1]);
    /// assert_eq!(tree.get_lt([1])?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_lt<K>(&self, key: K) -> Result<Option<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
    {
        self.range(..key).next_back().transpose()
    }

    /// The first key after `key`, and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([3], "b")?;
    /// assert_eq!(tree.get_gt([1])?.unwrap().0, &[3]);
    /// assert_eq!(tree.get_gt([3])?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn get_gt<K>(&self, key: K) -> Result<Option<(IVec, IVec)>>
    where
        K: AsRef<[u8]>,
    {
        self.range((Bound::Excluded(key), Bound::Unbounded)).next().transpose()
    }

    /// Removes the last key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([2], "b")?;
    /// assert_eq!(tree.pop_max()?.unwrap().0, &[2]);
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn pop_max(&self) -> Result<Option<(IVec, IVec)>> {
        self.pop(true)
    }

    /// Removes the first key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert([1], "a")?;
    /// tree.insert([2], "b")?;
    /// assert_eq!(tree.pop_min()?.unwrap().0, &[1]);
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn pop_min(&self) -> Result<Option<(IVec, IVec)>> {
        self.pop(false)
    }

    fn pop(&self, last: bool) -> Result<Option<(IVec, IVec)>> {
        match self.execute(Command::Pop { tree: self.id, last }, self.database.durability())? {
            Reply::Popped(found) => Ok(found),
            other => unreachable!("a pop was answered with {other:?}"),
        }
    }

    /// How many keys there are, without counting them; 0 if the tree was dropped.
    ///
    /// What `insert`, `remove` and most other calls change is counted as they run. Writes that do not
    /// look at what was there (batches, transactions and [`Tree::put`]) leave the count to the first who
    /// asks, or to the next checkpoint: it looks each of their keys up, once, in the B-tree.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// tree.insert("b", "2")?;
    /// tree.remove("a")?;
    /// assert_eq!(tree.len(), 1);
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    /// If such a look at the B-tree meets damage or an I/O error: a tree that cannot be read must not seem to have no
    /// keys, or an application fills it with what it begins with.
    pub fn len(&self) -> usize {
        let length = self.database.engine.len(self.id);
        self.unless_dropped(length.map_err(|error| self.explain(error))).unwrap_or(0) as usize
    }

    /// Whether there are no keys; so if the tree was dropped.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// assert!(tree.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Panics
    /// If damage or an I/O error is met while looking for the first key; [`Tree::first`] returns it instead.
    pub fn is_empty(&self) -> bool {
        // One key tells, without the count that a batch may have left to the first who asks.
        self.unless_dropped(self.first()).flatten().is_none()
    }

    /// For what sled's signatures have no error for; `None`: the tree was dropped.
    fn unless_dropped<T>(&self, read: Result<T>) -> Option<T> {
        match read {
            Ok(read) => Some(read),
            Err(Error::CollectionNotFound(_)) => None,
            Err(error) => panic!("reading the tree \"{}\" failed: {error}", self.name().escape_ascii()),
        }
    }
}

/// The bounds of a range, owned.
pub(crate) fn owned_bounds<K: AsRef<[u8]>>(range: &impl RangeBounds<K>) -> (Bound<IVec>, Bound<IVec>) {
    let own = |bound: Bound<&K>| bound.map(|key| IVec::from(key.as_ref()));
    let bounds = (own(range.start_bound()), own(range.end_bound()));
    let is_inverted = match &bounds {
        (Bound::Included(low), Bound::Included(high)) => low > high,
        (Bound::Included(low) | Bound::Excluded(low), Bound::Included(high) | Bound::Excluded(high)) => {
            low >= high
        }
        _ => false,
    };
    if is_inverted {
        // An empty range, as in sled, and of a form that no map panics about.
        return (Bound::Included(IVec::new()), Bound::Excluded(IVec::new()));
    }
    bounds
}

/// The range of the keys that begin with `prefix`.
pub(crate) fn prefix_bounds(prefix: &[u8]) -> (Bound<IVec>, Bound<IVec>) {
    // The first key after all of them: the prefix without trailing 0xff, its last byte one up.
    let high = match prefix.iter().rposition(|&byte| byte != u8::MAX) {
        Some(last) => {
            let mut high = prefix[..=last].to_vec();
            high[last] += 1;
            Bound::Excluded(IVec::from(high))
        }
        None => Bound::Unbounded,
    };
    (Bound::Included(IVec::from(prefix)), high)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Seek, SeekFrom};
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::path::Path;

    use crate::{Config, Db};

    /// Many times what the cache holds.
    const KEYS: u32 = 40_000;

    fn open(path: &Path) -> crate::Result<Db> {
        Config::new().path(path).cache_capacity(1 << 20).open()
    }

    #[test]
    fn a_tree_that_cannot_be_read_does_not_seem_empty() {
        let directory = tempfile::tempdir().expect("a directory");
        let db = open(directory.path()).expect("a new database");
        for number in 0..KEYS {
            db.insert(number.to_be_bytes(), vec![7; 500]).expect("a sound disk");
        }
        db.checkpoint().expect("a sound disk");
        drop(db);
        // What is damaged before is noticed when it is opened.
        let db = open(directory.path()).expect("a sound database");
        let tree = std::fs::OpenOptions::new().write(true).open(directory.path().join("tree.redb"));
        let mut tree = tree.expect("it is there");
        let length = tree.metadata().expect("it is there").len();
        tree.seek(SeekFrom::Start(4096)).expect("a file");
        std::io::copy(&mut std::io::repeat(0x5a).take(length - 4096), &mut tree).expect("a sound disk");
        let is_empty = catch_unwind(AssertUnwindSafe(|| db.is_empty()));
        // Nobody has looked whether they are new.
        for number in (0..KEYS).step_by(10) {
            db.put(number.to_be_bytes(), "8").expect("the log takes it");
        }
        let length = catch_unwind(AssertUnwindSafe(|| db.len()));
        assert!(is_empty.is_err(), "{is_empty:?}");
        assert!(length.is_err(), "{length:?}");
        // Closing may fail to fold what cannot be read.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(db)));
    }

    #[test]
    fn a_tree_that_was_dropped_has_no_keys() {
        let db = Config::new().temporary(true).open().expect("a new database");
        let tree = db.open_tree("tree").expect("a sound disk");
        tree.insert("a", "1").expect("a sound disk");
        assert!(!tree.is_empty());
        assert!(db.drop_tree("tree").expect("a sound disk"));
        assert!(tree.is_empty());
        assert_eq!(tree.len(), 0);
    }
}
