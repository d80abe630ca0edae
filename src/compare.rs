//! [`Compare`]: write one thing or another, as conditions hold or not, in one step.

use std::convert::Infallible;
use std::time::Duration;

use dogsled_storage::compare::Condition;

use crate::transaction::{
    TransactionError, TransactionResult, TransactionalTree, UnabortableTransactionResult,
};
use crate::{Db, IVec, Result, Tree};

/// Conditions on keys, and what to write if all of them hold, or not; made by [`Db::compare`]. The builder is that of
/// `cluster::Client`.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// let jobs = db.open_tree("jobs")?;
/// jobs.insert("7: state", "waiting")?;
/// let claim = || {
///     db.compare()
///         .is(&jobs, "7: state", "waiting")
///         .then_put(&jobs, "7: state", "running")
///         .then_put(&jobs, "7: by", "ann")
///         .else_put(&jobs, "7: missed by", "ann")
///         .run()
/// };
/// assert!(claim()?.held());
/// let again = claim()?;
/// assert_eq!((again.failed(), again.found().unwrap()), (Some(0), &"running".into()));
/// assert!(jobs.contains_key("7: missed by")?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is run"]
pub struct Compare {
    db: Db,
    conditions: Vec<(Tree, IVec, Condition)>,
    then: Vec<Write>,
    otherwise: Vec<Write>,
}

#[derive(Clone, Debug)]
struct Write {
    tree: Tree,
    key: IVec,
    /// `None`: the key is removed.
    value: Option<IVec>,
    ttl: Option<Duration>,
}

/// What a [`Compare`] came to, and one of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compared {
    pub(crate) failed: Option<(usize, Option<IVec>)>,
}

impl Compared {
    /// Whether all conditions held.
    pub fn held(&self) -> bool {
        self.failed.is_none()
    }

    /// The number of the first condition that did not hold, counted from 0.
    pub fn failed(&self) -> Option<usize> {
        self.failed.as_ref().map(|(index, _)| *index)
    }

    /// The value that the key of that condition had.
    pub fn found(&self) -> Option<&IVec> {
        self.failed.as_ref()?.1.as_ref()
    }
}

impl Db {
    /// Begins a [`Compare`]: write one thing or another, as conditions hold or not.
    pub fn compare(&self) -> Compare {
        Compare { db: self.clone(), conditions: Vec::new(), then: Vec::new(), otherwise: Vec::new() }
    }
}

impl Compare {
    fn when(mut self, tree: &Tree, key: impl AsRef<[u8]>, condition: Condition) -> Compare {
        // Looking is allowed to everybody.
        let tree = Tree { fences: None, ..tree.clone() };
        self.conditions.push((tree, IVec::from(key.as_ref()), condition));
        self
    }

    /// If the key has this value…
    pub fn is(self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.when(tree, key, Condition::Is(value.into()))
    }

    /// If the key has another value, or none…
    pub fn is_not(self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.when(tree, key, Condition::IsNot(value.into()))
    }

    /// If the key has a value…
    pub fn is_present(self, tree: &Tree, key: impl AsRef<[u8]>) -> Compare {
        self.when(tree, key, Condition::Present)
    }

    /// If the key has no value…
    pub fn is_absent(self, tree: &Tree, key: impl AsRef<[u8]>) -> Compare {
        self.when(tree, key, Condition::Absent)
    }

    /// If the key has a value that is less, in the order of bytes…
    pub fn is_less(self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.when(tree, key, Condition::Less(value.into()))
    }

    /// If the key has a value that is greater, in the order of bytes…
    pub fn is_greater(self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.when(tree, key, Condition::Greater(value.into()))
    }

    /// …set a key.
    pub fn then_put(mut self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.then.push(Write::new(tree, key, Some(value.into()), None));
        self
    }

    /// …set a key that expires after so long, counted from then.
    pub fn then_put_with_ttl(
        mut self,
        tree: &Tree,
        key: impl AsRef<[u8]>,
        value: impl Into<IVec>,
        ttl: Duration,
    ) -> Compare {
        self.then.push(Write::new(tree, key, Some(value.into()), Some(ttl)));
        self
    }

    /// …remove a key.
    pub fn then_remove(mut self, tree: &Tree, key: impl AsRef<[u8]>) -> Compare {
        self.then.push(Write::new(tree, key, None, None));
        self
    }

    /// Otherwise, if any condition does not hold, set a key.
    pub fn else_put(mut self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.otherwise.push(Write::new(tree, key, Some(value.into()), None));
        self
    }

    /// Otherwise, if any condition does not hold, set a key that expires after so long, counted from then.
    pub fn else_put_with_ttl(
        mut self,
        tree: &Tree,
        key: impl AsRef<[u8]>,
        value: impl Into<IVec>,
        ttl: Duration,
    ) -> Compare {
        self.otherwise.push(Write::new(tree, key, Some(value.into()), Some(ttl)));
        self
    }

    /// Otherwise, if any condition does not hold, remove a key.
    pub fn else_remove(mut self, tree: &Tree, key: impl AsRef<[u8]>) -> Compare {
        self.otherwise.push(Write::new(tree, key, None, None));
        self
    }

    /// Looks, and writes. It is a [transaction](crate::transaction): what is to be written through a tree
    /// [under a lock](Tree::under) is written while that is held, with all the rest, or nothing is.
    ///
    /// # Errors
    /// Those of [`Tree::transaction`].
    pub fn run(self) -> Result<Compared> {
        let ran: TransactionResult<Compared, Infallible> = self.db.transaction(|root| Ok(self.within(root)?));
        ran.map_err(|error| match error {
            TransactionError::Abort(never) => match never {},
            TransactionError::Storage(error) => error,
        })
    }

    fn within(&self, root: &TransactionalTree) -> UnabortableTransactionResult<Compared> {
        let mut failed = None;
        for (index, (tree, key, condition)) in self.conditions.iter().enumerate() {
            let found = root.tree(tree)?.get(key)?;
            if !condition.holds(found.as_ref().map(|found| (found, 0))) {
                failed = Some((index, found));
                break;
            }
        }
        for Write { tree, key, value, ttl } in if failed.is_none() { &self.then } else { &self.otherwise } {
            let tree = root.tree(tree)?;
            match (value, ttl) {
                (Some(value), Some(ttl)) => drop(tree.insert_with_ttl(key, value, *ttl)?),
                (Some(value), None) => drop(tree.insert(key, value)?),
                (None, _) => drop(tree.remove(key)?),
            }
        }
        Ok(Compared { failed })
    }
}

impl Write {
    fn new(tree: &Tree, key: impl AsRef<[u8]>, value: Option<IVec>, ttl: Option<Duration>) -> Write {
        Write { tree: tree.clone(), key: IVec::from(key.as_ref()), value, ttl }
    }
}
