//! [`StaleTree`]: reads that ask no leader.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::time::Duration;

use super::{Entries, ReadFrom, Result, Tree};
use crate::IVec;
use crate::tree::{owned_bounds, prefix_bounds};

/// What was read, and how old it may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale<T> {
    /// What was read.
    pub value: T,
    /// How long ago the replica was last known to have everything that its leader had; of several
    /// replicas, the longest. `None`: the replica leads and has just heard from a majority, or it has never
    /// heard of its leader since it was started.
    pub age: Option<Duration>,
}

/// A [`Tree`] that is read from one replica as it is, without asking the leader; made by
/// [`Tree::stale`].
///
/// Reads go to one node, always the same as long as it answers; of a node's [own
/// client](super::Node::client) to that node. They are the cheapest there are, and work as long as one
/// node does, even without a quorum. What they return was true at some time; two of them may even
/// go back in time, when the first node fails and another one is asked.
#[derive(Clone)]
pub struct StaleTree {
    tree: Tree,
}

impl StaleTree {
    pub(super) fn new(tree: Tree) -> StaleTree {
        StaleTree { tree }
    }

    /// The value of a key.
    ///
    /// # Errors
    /// [`Error::Unavailable`](super::Error::Unavailable) if no replica at all was reached.
    pub async fn get<K: AsRef<[u8]>>(&self, key: K) -> Result<Stale<Option<IVec>>> {
        let (key, until) = (IVec::from(key.as_ref()), self.tree.client().until());
        let (value, age) = self.tree.read_key(key, ReadFrom::Stale, until).await?;
        Ok(Stale { value, age })
    }

    /// Whether a key has a value.
    ///
    /// # Errors
    /// As [`StaleTree::get`].
    pub async fn contains_key<K: AsRef<[u8]>>(&self, key: K) -> Result<Stale<bool>> {
        let Stale { value, age } = self.get(key).await?;
        Ok(Stale { value: value.is_some(), age })
    }

    /// The values of keys, in the order of the keys.
    ///
    /// # Errors
    /// As [`StaleTree::get`].
    pub async fn get_many<I>(&self, keys: I) -> Result<Stale<Vec<Option<IVec>>>>
    where
        I: IntoIterator,
        I::Item: AsRef<[u8]>,
    {
        let (value, age) = self.tree.read_keys(keys, ReadFrom::Stale).await?;
        Ok(Stale { value, age })
    }

    /// How many keys there are.
    ///
    /// # Errors
    /// As [`StaleTree::get`].
    pub async fn len(&self) -> Result<Stale<u64>> {
        let (value, age) = self.tree.length(ReadFrom::Stale).await?;
        Ok(Stale { value, age })
    }

    /// Whether there is no key.
    ///
    /// # Errors
    /// As [`StaleTree::get`].
    pub async fn is_empty(&self) -> Result<Stale<bool>> {
        let Stale { value, age } = self.len().await?;
        Ok(Stale { value: value == 0, age })
    }

    /// All keys and values in the order of the keys; [`Entries::age`] tells how old they may be.
    pub fn iter(&self) -> Entries {
        self.tree.entries((Bound::Unbounded, Bound::Unbounded), ReadFrom::Stale)
    }

    /// Keys of a range, and their values, in the order of the keys.
    pub fn range<K, R>(&self, range: R) -> Entries
    where
        K: AsRef<[u8]>,
        R: RangeBounds<K>,
    {
        self.tree.entries(owned_bounds(&range), ReadFrom::Stale)
    }

    /// Keys that begin with a prefix, and their values, in the order of the keys.
    pub fn scan_prefix<P: AsRef<[u8]>>(&self, prefix: P) -> Entries {
        self.tree.entries(prefix_bounds(prefix.as_ref()), ReadFrom::Stale)
    }
}

impl fmt::Debug for StaleTree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaleTree").field("name", self.tree.name()).finish_non_exhaustive()
    }
}
