//! [`Compare`]: write one thing or another, as conditions hold or not, in one step.

use std::collections::BTreeMap;
use std::time::Duration;

use dogsled_replication::ring;
use dogsled_storage::compare::{Comparison, Condition};
use dogsled_storage::{Command, Reply, TreeId, Write};
use tokio::time::Instant;

use super::commit::{CommitError, in_one_command};
use super::{ConflictableTransactionError, Transaction, TransactionError, TransactionResult};
use crate::cluster::{Client, Error, Tree};
use crate::{Compared, IVec};

/// Conditions on keys, and what to write if all of them hold, or not; made by [`Client::compare`].
///
/// ```no_run
/// # async fn claim(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
/// let jobs = client.tree("jobs");
/// let claimed = client
///     .compare()
///     .is(&jobs, "{7}:state", "waiting")
///     .then_put(&jobs, "{7}:state", "running")
///     .then_put(&jobs, "{7}:by", "ann")
///     .run()
///     .await?;
/// if !claimed.held() {
///     println!("the job is {:?}", claimed.found());
/// }
/// # Ok(()) }
/// ```
///
/// If all keys are of one partition, and no time to live is given, this is one command. Otherwise, and if something is
/// written [under a lock](Tree::under), it is a [transaction](super).
#[derive(Clone, Debug)]
#[must_use = "it does nothing until it is run"]
pub struct Compare {
    client: Client,
    trees: Vec<Tree>,
    comparisons: Vec<Comparison>,
    then: Vec<Write>,
    otherwise: Vec<Write>,
    /// Times to live, by the number of the write.
    then_for: BTreeMap<usize, Duration>,
    otherwise_for: BTreeMap<usize, Duration>,
}

impl Compare {
    fn tree(&mut self, tree: &Tree) -> TreeId {
        let same = |known: &Tree| known.name() == tree.name() && known.fences() == tree.fences();
        let index = self.trees.iter().position(same).unwrap_or_else(|| {
            self.trees.push(tree.clone());
            self.trees.len() - 1
        });
        TreeId(index as u32)
    }

    fn when(mut self, tree: &Tree, key: impl AsRef<[u8]>, condition: Condition) -> Compare {
        let tree = self.tree(tree);
        self.comparisons.push(Comparison { tree, key: IVec::from(key.as_ref()), condition });
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

    fn write(mut self, then: bool, tree: &Tree, key: impl AsRef<[u8]>, value: Option<IVec>) -> Compare {
        let tree = self.tree(tree);
        let write = Write { tree, key: IVec::from(key.as_ref()), value };
        if then {
            self.then.push(write)
        } else {
            self.otherwise.push(write)
        }
        self
    }

    /// …set a key.
    pub fn then_put(self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.write(true, tree, key, Some(value.into()))
    }

    /// …set a key that expires after so long, counted from then.
    pub fn then_put_with_ttl(
        mut self,
        tree: &Tree,
        key: impl AsRef<[u8]>,
        value: impl Into<IVec>,
        ttl: Duration,
    ) -> Compare {
        self.then_for.insert(self.then.len(), ttl);
        self.then_put(tree, key, value)
    }

    /// …remove a key.
    pub fn then_remove(self, tree: &Tree, key: impl AsRef<[u8]>) -> Compare {
        self.write(true, tree, key, None)
    }

    /// Otherwise, if any condition does not hold, set a key.
    pub fn else_put(self, tree: &Tree, key: impl AsRef<[u8]>, value: impl Into<IVec>) -> Compare {
        self.write(false, tree, key, Some(value.into()))
    }

    /// Otherwise, if any condition does not hold, set a key that expires after so long, counted from then.
    pub fn else_put_with_ttl(
        mut self,
        tree: &Tree,
        key: impl AsRef<[u8]>,
        value: impl Into<IVec>,
        ttl: Duration,
    ) -> Compare {
        self.otherwise_for.insert(self.otherwise.len(), ttl);
        self.else_put(tree, key, value)
    }

    /// Otherwise, if any condition does not hold, remove a key.
    pub fn else_remove(self, tree: &Tree, key: impl AsRef<[u8]>) -> Compare {
        self.write(false, tree, key, None)
    }

    /// Looks, and writes.
    ///
    /// # Errors
    /// As [`Client::transaction`].
    pub async fn run(self) -> TransactionResult<Compared, std::convert::Infallible> {
        let until = self.client.until();
        loop {
            let trees: Vec<IVec> = self.trees.iter().map(Tree::stored_name).collect();
            match self.run_with(&trees, until).await {
                Err(TransactionError::Cluster(Error::Conflict(_)))
                    if self.client.core().is_renamed(&trees, until).await => {}
                done => return done,
            }
        }
    }

    /// With the names under which partitions keep the trees.
    async fn run_with(
        &self,
        trees: &[IVec],
        until: Instant,
    ) -> TransactionResult<Compared, std::convert::Infallible> {
        let core = self.client.core();
        let partitions = core.partitions(until).await?;
        let writes = self.then.iter().chain(&self.otherwise).map(|write| (write.tree, &write.key));
        let keys = self.comparisons.iter().map(|comparison| (comparison.tree, &comparison.key)).chain(writes);
        let group_in =
            |(tree, key): (TreeId, &IVec)| ring::group_in(&trees[tree.0 as usize], key, partitions);
        let mut groups: Vec<u32> = keys.map(group_in).collect();
        groups.sort_unstable();
        groups.dedup();
        let more = self.then_for.len() + self.otherwise_for.len() + self.fences();
        let (&[group], 0) = (&groups[..], more) else {
            return self
                .client
                .transaction(|transaction| async move { self.within(&transaction).await })
                .await;
        };
        let (comparisons, then) = (self.comparisons.clone(), self.then.clone());
        let command = Command::Compare { comparisons, then, otherwise: self.otherwise.clone() };
        let compared =
            in_one_command(&self.client, group, trees.to_vec(), command, until, |reply| match reply {
                Reply::Compared(Ok(())) => Some(Compared { failed: None }),
                Reply::Compared(Err((index, found))) => {
                    Some(Compared { failed: Some((*index as usize, found.clone())) })
                }
                _ => None,
            });
        compared.await.map_err(|error| match error {
            CommitError::Cluster(error) => TransactionError::Cluster(error),
            CommitError::Unknown(why, transaction) => TransactionError::OutcomeUnknown { why, transaction },
        })
    }

    /// How many locks something is to be written under.
    fn fences(&self) -> usize {
        let writes = self.then.iter().chain(&self.otherwise);
        writes.map(|write| self.trees[write.tree.0 as usize].fences().len()).sum()
    }

    async fn within(
        &self,
        transaction: &Transaction,
    ) -> Result<Compared, ConflictableTransactionError<std::convert::Infallible>> {
        let mut failed = None;
        for (index, Comparison { tree, key, condition }) in self.comparisons.iter().enumerate() {
            let found = transaction.get(&self.trees[tree.0 as usize], key).await?;
            if !condition.holds(found.as_ref().map(|found| (found, 0))) {
                failed = Some((index, found));
                break;
            }
        }
        let (writes, times) = match failed {
            None => (&self.then, &self.then_for),
            Some(_) => (&self.otherwise, &self.otherwise_for),
        };
        for (number, Write { tree, key, value }) in writes.iter().enumerate() {
            let tree = &self.trees[tree.0 as usize];
            match (value, times.get(&number)) {
                (Some(value), Some(ttl)) => transaction.put_with_ttl(tree, key, value, *ttl)?,
                (Some(value), None) => transaction.put(tree, key, value)?,
                (None, _) => transaction.delete(tree, key)?,
            }
        }
        Ok(Compared { failed })
    }
}

impl Client {
    /// Begins a [`Compare`]: write one thing or another, as conditions hold or not.
    pub fn compare(&self) -> Compare {
        let (trees, comparisons, then, otherwise) = Default::default();
        let (then_for, otherwise_for) = Default::default();
        Compare { client: self.clone(), trees, comparisons, then, otherwise, then_for, otherwise_for }
    }
}
