//! [`Iter`]: keys and values in order.

use std::fmt;

use dogsled_storage::RangeIter;

use crate::{IVec, Result, Tree};

/// Keys and values of a [`Tree`] in key order, from both ends, as they were when it was made.
///
/// It is a handle: the database stays open, and memory keeps what it may still return, until it
/// is dropped. It may be sent to another thread.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let tree = dogsled::Config::new().temporary(true).open()?;
/// tree.insert("a", "1")?;
/// tree.insert("b", "2")?;
/// for entry in &tree {
///     let (key, value) = entry?;
///     println!("{key:?}: {value:?}");
/// }
/// let backwards: Vec<_> = tree.iter().rev().collect::<Result<_, _>>()?;
/// assert_eq!(backwards[0].0, "b");
/// # Ok(()) }
/// ```
pub struct Iter {
    // Before the handle, so that it is gone before the database closes.
    range: RangeIter,
    tree: Tree,
}

impl Iter {
    pub(crate) fn new(range: RangeIter, tree: Tree) -> Iter {
        Iter { range, tree }
    }

    /// The keys alone.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// assert_eq!(tree.iter().keys().next().unwrap()?, "a");
    /// # Ok(()) }
    /// ```
    pub fn keys(self) -> impl DoubleEndedIterator<Item = Result<IVec>> + Send + Sync {
        self.map(|entry| entry.map(|(key, _)| key))
    }

    /// The values alone, in the order of their keys.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// tree.insert("a", "1")?;
    /// assert_eq!(tree.iter().values().next().unwrap()?, "1");
    /// # Ok(()) }
    /// ```
    pub fn values(self) -> impl DoubleEndedIterator<Item = Result<IVec>> + Send + Sync {
        self.map(|entry| entry.map(|(_, value)| value))
    }
}

impl Iterator for Iter {
    type Item = Result<(IVec, IVec)>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        match self.range.next()? {
            Ok((key, found)) => Some(Ok((key, found.value))),
            Err(error) => Some(Err(self.tree.explain(error))),
        }
    }

    fn last(mut self) -> Option<Self::Item> {
        self.next_back()
    }
}

impl DoubleEndedIterator for Iter {
    #[inline]
    fn next_back(&mut self) -> Option<Self::Item> {
        match self.range.next_back()? {
            Ok((key, found)) => Some(Ok((key, found.value))),
            Err(error) => Some(Err(self.tree.explain(error))),
        }
    }
}

impl fmt::Debug for Iter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Iter").field("tree", &self.tree).finish_non_exhaustive()
    }
}
