//! Serializable transactions over one or more trees of a database.
//!
//! **Promise.** A transaction that returns `Ok` took effect at one moment, as if nothing else had
//! run: all it read was so at that moment, and all it wrote became visible then, in all trees
//! together. One that returns an error, or panics, changed nothing.
//!
//! **How.** The closure runs over a snapshot, without any lock, and its writes are kept aside;
//! its own reads see them. What it read is noted: keys with the version they had, ranges with
//! exactly the extent that was looked at. At the end, one command asks the engine to apply the
//! writes if all that was read is still so. If it is not, the closure runs again over a new
//! snapshot, after a short random pause. So
//!
//! - the closure may run more than once, and should have no effects but those of the transaction;
//! - it may use any tree, of this database or another, in any way: nothing can deadlock. What it
//!   does outside of the views it was given is no part of the transaction. (A closure that reads
//!   a key in the transaction and writes it outside conflicts with itself, and fails after a
//!   thousand runs.)
//! - a transaction that writes nothing never conflicts, and [`Db::read`](crate::Db::read) is the
//!   shorter way to write one;
//! - [`TransactionalTree::insert`] returns the old value, and so has read it.
//!   [`TransactionalTree::apply_batch`] writes blindly: no write of others to those keys
//!   makes it conflict.
//!
//! ```
//! # use dogsled::{transaction::TransactionResult, Config};
//! # fn main() -> TransactionResult<()> {
//! let db = Config::new().temporary(true).open()?;
//! db.insert("k1", "cats")?;
//! db.insert("k2", "dogs")?;
//!
//! // Atomically swap two values.
//! db.transaction(|db| {
//!     let first = db.remove("k1")?.unwrap();
//!     let second = db.insert("k2", first)?.unwrap();
//!     db.insert("k1", second)?;
//!     Ok(())
//! })?;
//!
//! assert_eq!(db.get("k1")?.unwrap(), "dogs");
//! assert_eq!(db.get("k2")?.unwrap(), "cats");
//! # Ok(()) }
//! ```
//!
//! Over several trees, with an error of one's own:
//!
//! ```
//! # use dogsled::Config;
//! use dogsled::transaction::{abort, TransactionError, Transactional};
//! # fn main() -> dogsled::Result<()> {
//! # let db = Config::new().temporary(true).open()?;
//! let (unprocessed, processed) = (db.open_tree("unprocessed")?, db.open_tree("processed")?);
//! unprocessed.insert("k3", "ligers")?;
//! let process = || {
//!     (&unprocessed, &processed).transaction(|(unprocessed, processed)| {
//!         let Some((key, item)) = unprocessed.pop_min()? else { return abort("nothing to do") };
//!         processed.insert(key, [b"yappin' ", &item[..]].concat())?;
//!         Ok(())
//!     })
//! };
//! assert_eq!(process(), Ok(()));
//! assert_eq!(processed.get("k3")?.unwrap(), "yappin' ligers");
//! assert_eq!(process(), Err(TransactionError::Abort("nothing to do")));
//! # Ok(()) }
//! ```
//!
//! **Long transactions beside steady writers.** sled holds writers up while a transaction runs. Here nobody waits for it,
//! and it is the transaction that runs again: one that takes longer than it takes others to write what it has read
//! may do so for ever, for there is no limit to how often. What helps, in this order:
//!
//! - compute before, and read and write in the closure only;
//! - read little. A range that was read conflicts with whatever is written into it; one key, or a counter
//!   ([`TransactionalTree::counter`]), with that key. What need not be of the same moment as the writes can be read from a
//!   [snapshot](crate::Db::snapshot) before;
//! - write blindly what was not read, with [`TransactionalTree::apply_batch`];
//! - keep the others out: a [lock](crate::Db::lock) that all who write there take;
//! - give up: count the runs, or look at the clock, in the closure, and [`abort`].
//!
//! The names, generic parameters and errors are those of sled 0.34. Beyond it: ranges, and
//! everything else that reads in order; counters and locks; options, for the durability of a
//! single transaction; further trees by [`TransactionalTree::tree`]. Trees of two databases
//! cannot share a transaction, and transactions of two databases never meet.

mod attempt;
mod error;
mod iter;
mod operations;
mod transactional;
mod tree;

pub use error::{
    ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult,
    UnabortableTransactionError, UnabortableTransactionResult, abort,
};
pub use iter::TransactionalIter;
pub use operations::{TransactionalCounter, TransactionalLock};
pub use transactional::{TransactionOptions, Transactional, TransactionalTrees};
pub use tree::TransactionalTree;
