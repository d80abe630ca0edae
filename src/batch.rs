//! [`Batch`]: writes to one tree that are applied together.

use dogsled_storage::{TreeId, Write};

use crate::IVec;

/// Writes to one tree that are applied together or not at all, and without reading: the cheapest
/// way to write much.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// db.insert("key_0", "val_0")?;
///
/// let mut batch = dogsled::Batch::default();
/// batch.insert("key_a", "val_a");
/// batch.insert("key_b", "val_b");
/// batch.remove("key_0");
/// db.apply_batch(batch)?;
///
/// assert_eq!(db.get("key_0")?, None);
/// assert_eq!(db.get("key_b")?.unwrap(), "val_b");
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Batch {
    writes: Vec<(IVec, Option<IVec>)>,
}

impl Batch {
    /// Sets a key, overruling what the batch said of it before.
    pub fn insert<K, V>(&mut self, key: K, value: V)
    where
        K: Into<IVec>,
        V: Into<IVec>,
    {
        self.writes.push((key.into(), Some(value.into())));
    }

    /// Removes a key, overruling what the batch said of it before.
    pub fn remove<K>(&mut self, key: K)
    where
        K: Into<IVec>,
    {
        self.writes.push((key.into(), None));
    }

    /// How many writes there are.
    pub fn len(&self) -> usize {
        self.writes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.writes.is_empty()
    }

    pub(crate) fn writes(&self) -> &[(IVec, Option<IVec>)] {
        &self.writes
    }

    pub(crate) fn into_writes(self, tree: TreeId) -> Vec<Write> {
        self.writes.into_iter().map(|(key, value)| Write { tree, key, value }).collect()
    }
}
