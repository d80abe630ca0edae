//! [`Transactional`]: what a transaction can be run over, and the loop that runs it.

use std::hash::{BuildHasher, RandomState};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::Error as StorageError;

use super::attempt::{Attempt, Committed};
use super::{
    ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult,
    TransactionalTree,
};
use crate::db::writes_of_this_thread;
use crate::{Durability, Error, IVec, Result, Tree};

/// How a single transaction is run.
///
/// ```
/// use dogsled::{Durability, transaction::TransactionOptions};
/// let options = TransactionOptions::new().durability(Durability::Synced);
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct TransactionOptions {
    durability: Option<Durability>,
}

impl TransactionOptions {
    /// As the database does by default.
    pub fn new() -> TransactionOptions {
        TransactionOptions::default()
    }

    /// What the transaction promises once it has returned, whatever the database's default.
    #[must_use]
    pub fn durability(mut self, to: Durability) -> TransactionOptions {
        self.durability = Some(to);
        self
    }
}

/// The trees of one run of a transaction. Its contents are the library's business.
pub struct TransactionalTrees {
    attempt: Rc<Attempt>,
    trees: Vec<TransactionalTree>,
}

impl std::fmt::Debug for TransactionalTrees {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(&self.trees).finish()
    }
}

impl TransactionalTrees {
    fn start<'a>(trees: impl IntoIterator<Item = &'a Tree>) -> Result<TransactionalTrees> {
        let mut trees = trees.into_iter();
        let Some(first) = trees.next() else {
            return Err(Error::Unsupported("a transaction needs at least one tree".to_owned()));
        };
        let attempt = Attempt::start(Arc::clone(&first.database));
        let mut views = vec![TransactionalTree::new(first, &attempt)];
        for tree in trees {
            if !Arc::ptr_eq(&tree.database, &first.database) {
                return Err(different_databases());
            }
            views.push(TransactionalTree::new(tree, &attempt));
        }
        Ok(TransactionalTrees { attempt, trees: views })
    }

    fn commit(&self, options: TransactionOptions) -> Result<Committed> {
        self.attempt.commit(options.durability).map_err(|error| match error {
            // The engine knows the tree by its number.
            StorageError::TreeNotFound(number) => Error::CollectionNotFound(self.name_of(&number)),
            other => other.into(),
        })
    }

    fn name_of(&self, number: &IVec) -> IVec {
        let is_it = |tree: &&TransactionalTree| *number == format!("#{}", tree.id().0);
        self.trees.iter().find(is_it).map_or_else(|| number.clone(), TransactionalTree::name)
    }
}

pub(super) fn different_databases() -> Error {
    Error::Unsupported("trees of different databases cannot be used in the same transaction".to_owned())
}

/// After so many conflicts a closure that writes outside of its transaction is taken to be what
/// it conflicts with. sled would have deadlocked at the first such write.
const MAX_CONFLICTS_WITH_WRITES_OUTSIDE: u32 = 1_000;

fn conflicts_with_itself() -> Error {
    Error::Unsupported(format!(
        "the transaction conflicted {MAX_CONFLICTS_WITH_WRITES_OUTSIDE} times, and its closure writes outside \
         of the transaction: most likely to what it reads within. Write through the view that it is given"
    ))
}

/// What a transaction can be run over: a tree, a slice of trees, a tuple of up to 14 trees.
///
/// ```
/// # fn main() -> dogsled::transaction::TransactionResult<()> {
/// # let db = dogsled::Config::new().temporary(true).open()?;
/// use dogsled::Transactional;
/// let trees = vec![db.open_tree("a")?, db.open_tree("b")?];
/// trees.transaction(|trees| {
///     for tree in trees {
///         tree.insert("in", "all of them")?;
///     }
///     Ok(())
/// })?;
/// assert!(trees[0].contains_key("in")? && trees[1].contains_key("in")?);
/// # Ok(()) }
/// ```
pub trait Transactional<E = ()> {
    /// What the closure is given.
    type View;

    /// Starts one run. The library's business.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for trees of different databases, and for none at all.
    fn make_overlay(&self) -> Result<TransactionalTrees>;

    /// What the closure is given in that run. The library's business.
    fn view_overlay(overlay: &TransactionalTrees) -> Self::View;

    /// Runs a transaction, calling the closure again whenever another writer came between, however
    /// often that is; see the [module](super).
    ///
    /// # Errors
    /// What the closure aborts with, and those of reading and writing. Nothing is changed then.
    fn transaction<F, A>(&self, f: F) -> TransactionResult<A, E>
    where
        F: Fn(&Self::View) -> ConflictableTransactionResult<A, E>,
    {
        self.transaction_with(TransactionOptions::default(), f)
    }

    /// As [`Transactional::transaction`], with options of its own.
    ///
    /// # Errors
    /// As [`Transactional::transaction`].
    fn transaction_with<F, A>(&self, options: TransactionOptions, f: F) -> TransactionResult<A, E>
    where
        F: Fn(&Self::View) -> ConflictableTransactionResult<A, E>,
    {
        let mut pause = Pause::default();
        let mut runs_with_writes_outside = 0;
        loop {
            let overlay = self.make_overlay()?;
            let writes_before = writes_of_this_thread();
            let result = f(&Self::view_overlay(&overlay));
            runs_with_writes_outside += u32::from(writes_of_this_thread() != writes_before);
            match result {
                Ok(value) => {
                    if overlay.commit(options)? == Committed::Yes {
                        return Ok(value);
                    }
                }
                Err(ConflictableTransactionError::Conflict) => {}
                // What made the closure give up was read from one snapshot, so it was so once.
                Err(ConflictableTransactionError::Abort(reason)) => {
                    overlay.attempt.end();
                    return Err(TransactionError::Abort(reason));
                }
                Err(ConflictableTransactionError::Storage(error)) => {
                    overlay.attempt.end();
                    return Err(TransactionError::Storage(error));
                }
            }
            if runs_with_writes_outside >= MAX_CONFLICTS_WITH_WRITES_OUTSIDE {
                return Err(conflicts_with_itself().into());
            }
            // The snapshot goes before the pause: others need not keep old versions for it.
            drop(overlay);
            pause.wait();
        }
    }
}

/// The pause before a transaction runs again: random, and longer from time to time, so that
/// those who met do not meet again.
#[derive(Default)]
struct Pause {
    conflicts: u32,
    random: Option<u64>,
}

impl Pause {
    fn wait(&mut self) {
        const FIRST_MICROSECONDS: u64 = 8;
        const LONGEST_MICROSECONDS: u64 = 4_000;
        self.conflicts += 1;
        if self.conflicts <= 2 {
            // Mostly whoever was in the way is done by now.
            std::thread::yield_now();
            return;
        }
        // The only randomness here, and it decides nothing but the length of a pause.
        let random = self.random.get_or_insert_with(|| RandomState::new().hash_one(0) | 1);
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        let longest = (FIRST_MICROSECONDS << (self.conflicts - 3).min(16)).min(LONGEST_MICROSECONDS);
        std::thread::sleep(Duration::from_micros(*random % longest));
    }
}

impl<E> Transactional<E> for Tree {
    type View = TransactionalTree;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::start([self])
    }

    fn view_overlay(overlay: &TransactionalTrees) -> TransactionalTree {
        overlay.trees[0].clone()
    }
}

impl<E> Transactional<E> for &Tree {
    type View = TransactionalTree;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::start([*self])
    }

    fn view_overlay(overlay: &TransactionalTrees) -> TransactionalTree {
        overlay.trees[0].clone()
    }
}

impl<E> Transactional<E> for &&Tree {
    type View = TransactionalTree;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::start([**self])
    }

    fn view_overlay(overlay: &TransactionalTrees) -> TransactionalTree {
        overlay.trees[0].clone()
    }
}

impl<E> Transactional<E> for [Tree] {
    type View = Vec<TransactionalTree>;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::start(self)
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Vec<TransactionalTree> {
        overlay.trees.clone()
    }
}

impl<E> Transactional<E> for [&Tree] {
    type View = Vec<TransactionalTree>;

    fn make_overlay(&self) -> Result<TransactionalTrees> {
        TransactionalTrees::start(self.iter().copied())
    }

    fn view_overlay(overlay: &TransactionalTrees) -> Vec<TransactionalTree> {
        overlay.trees.clone()
    }
}

/// Implements [`Transactional`] for the tuples whose element types are listed, and all shorter.
macro_rules! transactional_tuples {
    () => {};
    ($first:ident $first_index:tt $(, $rest:ident $rest_index:tt)*) => {
        transactional_tuples!(@reversed [] $first $first_index $(, $rest $rest_index)*);
        transactional_tuples!($($rest $rest_index),*);
    };
    (@reversed [$($name:ident $index:tt),*] $first:ident $first_index:tt $(, $rest:ident $rest_index:tt)*) => {
        transactional_tuples!(@reversed [$first $first_index $(, $name $index)*] $($rest $rest_index),*);
    };
    (@reversed [$($name:ident $index:tt),*]) => {
        impl<E> Transactional<E> for ($(transactional_tuples!(@type $name &Tree),)*) {
            type View = ($(transactional_tuples!(@type $name TransactionalTree),)*);

            fn make_overlay(&self) -> Result<TransactionalTrees> {
                TransactionalTrees::start([$(self.$index),*])
            }

            fn view_overlay(overlay: &TransactionalTrees) -> Self::View {
                ($(overlay.trees[$index].clone(),)*)
            }
        }
    };
    (@type $name:ident $type:ty) => { $type };
}

transactional_tuples!(N 13, M 12, L 11, K 10, J 9, I 8, H 7, G 6, F 5, E 4, D 3, C 2, B 1, A 0);
