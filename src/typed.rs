//! [`TypedTree`]: a tree whose keys and values are Rust types.
//!
//! Keys are encoded so that the order of the bytes is the order of the values ([`KeyEncode`]):
//! ranges over a typed tree are ranges of Rust values. Values are whatever serde can serialize,
//! in bincode's encoding behind a version byte ([`value`]).
//!
//! Nothing marks a tree as typed: it is a [`Tree`] like any other, and opening it by another type
//! is answered with [`Error::Decode`] where the bytes do not fit, with the key in question.

pub mod key;
mod key_tuples;
pub mod value;

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use key::{KeyDecode, KeyEncode, MalformedKey};
pub use key_tuples::StartsWith;

use crate::tree::prefix_bounds;
use crate::{Error, IVec, Iter, Result, Tree};

/// A tree whose keys are of type `K` and whose values are of type `V`; made by
/// [`Db::open_typed_tree`](crate::Db::open_typed_tree).
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use serde::{Deserialize, Serialize};
///
/// #[derive(Debug, PartialEq, Serialize, Deserialize)]
/// struct Reading {
///     celsius: f32,
///     station: String,
/// }
///
/// // By day and hour; negative days come before positive ones.
/// let readings = db.open_typed_tree::<(i32, u8), Reading>("readings")?;
/// for (day, hour, celsius) in [(2, 6, -1.5), (-1, 6, -20.0), (2, 18, 3.0)] {
///     readings.insert(&(day, hour), &Reading { celsius, station: "north".into() })?;
/// }
/// let since_day_0: Vec<_> = readings.range((0, 0)..).keys().collect::<Result<_, _>>()?;
/// assert_eq!(since_day_0, [(2, 6), (2, 18)]);
/// assert_eq!(readings.scan_prefix(&2i32).count(), 2);
/// # Ok(()) }
/// ```
pub struct TypedTree<K, V> {
    tree: Tree,
    types: PhantomData<fn(K) -> V>,
}

impl<K, V> Clone for TypedTree<K, V> {
    fn clone(&self) -> Self {
        TypedTree::new(self.tree.clone())
    }
}

impl<K, V> fmt::Debug for TypedTree<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedTree").field(&self.tree).finish()
    }
}

impl<K, V> TypedTree<K, V> {
    pub(crate) fn new(tree: Tree) -> TypedTree<K, V> {
        TypedTree { tree, types: PhantomData }
    }

    /// The tree below, of bytes: for transactions, batches and watching.
    ///
    /// ```
    /// # fn main() -> dogsled::transaction::TransactionResult<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// use dogsled::typed::{KeyDecode, KeyEncode, value};
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// ages.tree().transaction(|tree| {
    ///     let key = "ann".to_key();
    ///     let age: u8 = value::decode(&tree.get(&key)?.unwrap())?;
    ///     tree.insert(key, value::encode(&(age + 1))?)?;
    ///     Ok(())
    /// })?;
    /// assert_eq!(ages.get("ann")?, Some(42));
    /// # Ok(()) }
    /// ```
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// How many keys there are, without counting them.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.len(), 1);
    /// # Ok(()) }
    /// ```
    pub fn len(&self) -> usize {
        self.tree.len()
    }

    /// Whether there are no keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// assert!(ages.is_empty());
    /// # Ok(()) }
    /// ```
    pub fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Removes all keys at once.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// ages.clear()?;
    /// assert!(ages.is_empty());
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of writing.
    pub fn clear(&self) -> Result<()> {
        self.tree.clear()
    }
}

impl<K: KeyDecode, V: Serialize + DeserializeOwned> TypedTree<K, V> {
    /// Sets a key; the value that was there before.
    ///
    /// Where `K` is `String`, a key may be given as `str`, and where it is `Vec<u8>`, as `[u8]`.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// assert_eq!(ages.insert("ann", &41)?, None);
    /// assert_eq!(ages.insert("ann", &42)?, Some(41));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if a value cannot be encoded or the one before cannot be decoded (the
    /// new one is set then), and those of writing.
    pub fn insert<Q>(&self, key: &Q, value: &V) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: KeyEncode + ?Sized,
    {
        let key = key.to_key();
        let previous = self.tree.insert(&key, value::encode(value)?)?;
        previous.map(|previous| decode_value(&key, &previous)).transpose()
    }

    /// The value of a key.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.get("ann")?, Some(41));
    /// assert_eq!(ages.get("bob")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if it is not a `V`, and those of reading.
    pub fn get<Q>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: KeyEncode + ?Sized,
    {
        let key = key.to_key();
        self.tree.get(&key)?.map(|found| decode_value(&key, &found)).transpose()
    }

    /// Whether a key is there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert!(ages.contains_key("ann")?);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// Those of reading.
    pub fn contains_key<Q>(&self, key: &Q) -> Result<bool>
    where
        K: Borrow<Q>,
        Q: KeyEncode + ?Sized,
    {
        self.tree.contains_key(key.to_key())
    }

    /// Removes a key; the value that was there.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.remove("ann")?, Some(41));
    /// assert_eq!(ages.remove("ann")?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if it was not a `V` (it is removed then), and those of writing.
    pub fn remove<Q>(&self, key: &Q) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: KeyEncode + ?Sized,
    {
        let key = key.to_key();
        self.tree.remove(&key)?.map(|found| decode_value(&key, &found)).transpose()
    }

    /// Replaces a value by a function of it, until no other writer comes between; the new value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// let birthday = |age: Option<u8>| Some(age.map_or(0, |age| age + 1));
    /// assert_eq!(ages.update("ann", birthday)?, Some(0));
    /// assert_eq!(ages.update("ann", birthday)?, Some(1));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if the value is not a `V`, and those of writing.
    pub fn update<Q, F>(&self, key: &Q, mut f: F) -> Result<Option<V>>
    where
        K: Borrow<Q>,
        Q: KeyEncode + ?Sized,
        F: FnMut(Option<V>) -> Option<V>,
    {
        let key = key.to_key();
        let mut current = self.tree.get(&key)?;
        loop {
            let decoded = current.as_deref().map(|found| decode_value(&key, found)).transpose()?;
            let new = f(decoded);
            let encoded = new.as_ref().map(value::encode).transpose()?;
            match self.tree.compare_and_swap(&key, current.as_deref(), encoded)? {
                Ok(()) => return Ok(new),
                Err(refused) => current = refused.current,
            }
        }
    }

    /// All keys and values, in the order of the keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("bob", &7)?;
    /// ages.insert("ann", &41)?;
    /// let all = ages.iter().collect::<dogsled::Result<Vec<_>>>()?;
    /// assert_eq!(all, [("ann".to_owned(), 41), ("bob".to_owned(), 7)]);
    /// # Ok(()) }
    /// ```
    pub fn iter(&self) -> TypedIter<K, V> {
        TypedIter::new(self.tree.iter())
    }

    /// The keys in a range and their values, in the order of the keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// for (name, age) in [("ann", 41), ("bob", 7), ("cid", 30)] {
    ///     ages.insert(name, &age)?;
    /// }
    /// let from_bob = ages.range("bob".to_owned()..).keys().collect::<dogsled::Result<Vec<_>>>()?;
    /// assert_eq!(from_bob, ["bob", "cid"]);
    /// # Ok(()) }
    /// ```
    pub fn range<R: RangeBounds<K>>(&self, range: R) -> TypedIter<K, V> {
        let encode = |bound: Bound<&K>| bound.map(KeyEncode::to_key);
        let bounds = (encode(range.start_bound()), encode(range.end_bound()));
        TypedIter::new(self.tree.range::<IVec, _>(bounds))
    }

    /// The keys whose first element, or first elements as a tuple, are `prefix`, and their values.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let readings = db.open_typed_tree::<(u32, u32), String>("readings")?;
    /// readings.insert(&(1, 6), &"cold".to_owned())?;
    /// readings.insert(&(2, 6), &"warm".to_owned())?;
    /// assert_eq!(readings.scan_prefix(&1u32).count(), 1);
    /// # Ok(()) }
    /// ```
    pub fn scan_prefix<P: KeyEncode>(&self, prefix: &P) -> TypedIter<K, V>
    where
        K: StartsWith<P>,
    {
        let mut bytes = Vec::new();
        prefix.encode(&mut bytes);
        let bounds = prefix_bounds(&bytes);
        TypedIter::new(self.tree.range::<IVec, _>(bounds))
    }

    /// The first key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("bob", &7)?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.first()?, Some(("ann".to_owned(), 41)));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if they are not a `K` and a `V`, and those of reading.
    pub fn first(&self) -> Result<Option<(K, V)>> {
        self.iter().next().transpose()
    }

    /// The last key and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("bob", &7)?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.last()?, Some(("bob".to_owned(), 7)));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`TypedTree::first`].
    pub fn last(&self) -> Result<Option<(K, V)>> {
        self.iter().next_back().transpose()
    }

    /// Removes the first key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.pop_min()?, Some(("ann".to_owned(), 41)));
    /// assert_eq!(ages.pop_min()?, None);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Decode`] if they were not a `K` and a `V` (they are removed then), and those of
    /// writing.
    pub fn pop_min(&self) -> Result<Option<(K, V)>> {
        self.tree.pop_min()?.map(decode_entry).transpose()
    }

    /// Removes the last key; it and its value.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// ages.insert("bob", &7)?;
    /// assert_eq!(ages.pop_max()?, Some(("bob".to_owned(), 7)));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`TypedTree::pop_min`].
    pub fn pop_max(&self) -> Result<Option<(K, V)>> {
        self.tree.pop_max()?.map(decode_entry).transpose()
    }
}

fn decode_value<V: DeserializeOwned>(key: &[u8], bytes: &[u8]) -> Result<V> {
    value::decode(bytes).map_err(|error| match error {
        Error::Decode(what) => Error::Decode(format!("the value of key \"{}\": {what}", key.escape_ascii())),
        other => other,
    })
}

fn decode_entry<K: KeyDecode, V: DeserializeOwned>((key, value): (IVec, IVec)) -> Result<(K, V)> {
    let decoded = K::from_key(&key)
        .map_err(|error| Error::Decode(format!("the key \"{}\": {error}", key.escape_ascii())))?;
    Ok((decoded, decode_value(&key, &value)?))
}

/// Keys and values of a [`TypedTree`] in the order of the keys, from both ends.
pub struct TypedIter<K, V> {
    iter: Iter,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K: KeyDecode, V: DeserializeOwned> TypedIter<K, V> {
    fn new(iter: Iter) -> TypedIter<K, V> {
        TypedIter { iter, types: PhantomData }
    }

    /// The keys alone.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.iter().keys().next().transpose()?, Some("ann".to_owned()));
    /// # Ok(()) }
    /// ```
    pub fn keys(self) -> impl DoubleEndedIterator<Item = Result<K>> {
        self.map(|entry| entry.map(|(key, _)| key))
    }

    /// The values alone, in the order of their keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// let ages = db.open_typed_tree::<String, u8>("ages")?;
    /// ages.insert("ann", &41)?;
    /// assert_eq!(ages.iter().values().next().transpose()?, Some(41));
    /// # Ok(()) }
    /// ```
    pub fn values(self) -> impl DoubleEndedIterator<Item = Result<V>> {
        self.map(|entry| entry.map(|(_, value)| value))
    }
}

impl<K: KeyDecode, V: DeserializeOwned> Iterator for TypedIter<K, V> {
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.iter.next()?.and_then(decode_entry))
    }
}

impl<K: KeyDecode, V: DeserializeOwned> DoubleEndedIterator for TypedIter<K, V> {
    fn next_back(&mut self) -> Option<Self::Item> {
        Some(self.iter.next_back()?.and_then(decode_entry))
    }
}

impl<K, V> fmt::Debug for TypedIter<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("TypedIter").field(&self.iter).finish()
    }
}
