//! [`Changes`]: the history of the database, commit by commit.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use dogsled_storage as engine;
use dogsled_storage::{Effect, TreeId};

use crate::db::Database;
use crate::{Db, IVec, Result};

/// What one commit did.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Commit {
    /// Its place in the history; each is larger than the one before.
    pub sequence: u64,
    /// When it was made, in milliseconds since 1970.
    pub time_ms: u64,
    /// What it changed, in order.
    pub changes: Vec<Change>,
}

/// One change of a [`Commit`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Change {
    /// A key got a value.
    Insert {
        /// The name of the tree.
        tree: IVec,
        /// The key.
        key: IVec,
        /// Its new value.
        value: IVec,
    },
    /// A key was removed.
    Remove {
        /// The name of the tree.
        tree: IVec,
        /// The key.
        key: IVec,
    },
    /// All keys of a tree were removed.
    Clear {
        /// The name of the tree.
        tree: IVec,
    },
    /// A tree was made.
    CreateTree {
        /// Its name.
        tree: IVec,
    },
    /// A tree was dropped with all its keys.
    DropTree {
        /// Its name.
        tree: IVec,
    },
}

/// The commits after a sequence, in order; made by [`Db::changes_since`].
pub struct Changes {
    // Before the handle, so that it is gone before the database closes.
    commits: engine::Changes,
    names: HashMap<TreeId, IVec>,
    _database: Arc<Database>,
}

impl Db {
    /// The commits after `sequence`, in order, to the present one: what a follower needs that has
    /// seen all up to there.
    ///
    /// They are read from the write-ahead log, which goes back as far as
    /// [`Config::retain_changes_bytes`](crate::Config::retain_changes_bytes) says, and at least to
    /// the last checkpoint. A tree that was made before `sequence`, and dropped before this program
    /// opened the database, has lost its name; it is called by its number, as `#17`.
    ///
    /// What is handed out survives power loss, and is synced first if it did not yet: otherwise its sequence could come to
    /// be another commit's, and a follower would have what its database has lost. The same is asked of what a follower
    /// begins with. A [`snapshot`](Db::snapshot), and [`Db::sequence`], tell of commits that may not survive yet: call
    /// [`flush`](crate::Tree::flush) after it was taken, and go on from there only if that succeeds.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// use dogsled::Change;
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// let seen = db.sequence();
    /// db.insert("b", "2")?;
    /// db.remove("a")?;
    ///
    /// let commits: Vec<_> = db.changes_since(seen)?.collect::<Result<_, _>>()?;
    /// assert_eq!(commits.len(), 2);
    /// assert_eq!(commits[1].changes, [Change::Remove { tree: db.name(), key: "a".into() }]);
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Compacted`](crate::Error::Compacted) if some of them are no longer kept: take a
    /// [`snapshot`](Db::snapshot) and go on from its sequence.
    pub fn changes_since(&self, sequence: u64) -> Result<Changes> {
        let database = self.database();
        // Names first: what comes to be after them is named by the changes themselves.
        let names = database.tree_names();
        let commits = database.engine.changes_since(sequence)?;
        Ok(Changes { commits, names, _database: Arc::clone(database) })
    }

    /// The sequence of the last commit.
    pub fn sequence(&self) -> u64 {
        self.database().engine.sequence()
    }

    /// The sequence of the last commit that survives power loss.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// # let db = dogsled::Config::new().temporary(true).open()?;
    /// db.insert("a", "1")?;
    /// db.flush()?;
    /// assert!(db.durable_sequence() >= db.sequence());
    /// # Ok(()) }
    /// ```
    pub fn durable_sequence(&self) -> u64 {
        self.database().engine.durable_sequence()
    }
}

impl Changes {
    fn name(&self, tree: TreeId) -> IVec {
        self.names.get(&tree).cloned().unwrap_or_else(|| IVec::from(format!("#{}", tree.0)))
    }

    fn change(&mut self, effect: Effect) -> Option<Change> {
        Some(match effect {
            Effect::Put { tree, key, value, .. } => Change::Insert { tree: self.name(tree), key, value },
            Effect::Remove { tree, key } => Change::Remove { tree: self.name(tree), key },
            Effect::Clear { tree } => Change::Clear { tree: self.name(tree) },
            Effect::CreateTree { id, name } => {
                self.names.insert(id, name.clone());
                Change::CreateTree { tree: name }
            }
            Effect::DropTree { id } => Change::DropTree { tree: self.name(id) },
            // Nothing changes by these.
            Effect::SetNextId { .. } | Effect::Tell { .. } => return None,
        })
    }
}

impl Iterator for Changes {
    type Item = Result<Commit>;

    fn next(&mut self) -> Option<Result<Commit>> {
        loop {
            let commit = match self.commits.next()? {
                Ok(commit) => commit,
                Err(error) => return Some(Err(error.into())),
            };
            let changes: Vec<Change> =
                commit.effects.into_iter().filter_map(|effect| self.change(effect)).collect();
            if !changes.is_empty() {
                return Some(Ok(Commit { sequence: commit.sequence, time_ms: commit.time_ms, changes }));
            }
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Changes")
    }
}
