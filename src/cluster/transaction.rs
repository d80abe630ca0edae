//! Serializable transactions over any keys, trees, counters and partitions of a cluster.
//!
//! ```no_run
//! # async fn buy(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use dogsled::cluster::transaction::{TransactionError, abort};
//!
//! let (stock, orders) = (&client.tree("stock"), &client.tree("orders"));
//! let bought = client
//!     .transaction(|tx| async move {
//!         let Some(left) = tx.get(stock, "sled").await? else { return abort("there is none") };
//!         match left[0] {
//!             0 => return abort("all are sold"),
//!             left => tx.put(stock, "sled", [left - 1])?,
//!         }
//!         let number = tx.counter_add("orders", 1).await?;
//!         tx.put(orders, number.to_be_bytes(), "one sled")?;
//!         Ok(number)
//!     })
//!     .await;
//! match bought {
//!     Ok(number) => println!("order {number}"),
//!     Err(TransactionError::Abort(why)) => println!("{why}"),
//!     // Asking settles it.
//!     Err(TransactionError::OutcomeUnknown { transaction, .. }) => {
//!         println!("{:?}", transaction.outcome().await?)
//!     }
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(()) }
//! ```
//!
//! **Promise.** A transaction that returns `Ok` took effect at one moment, in all partitions together: all it read
//! was so at that moment. It is strict: that moment is between the call and the return, so whoever begins
//! afterwards sees it. One that returns an error changed nothing, unless the error is
//! [`TransactionError::OutcomeUnknown`].
//!
//! # How
//!
//! The closure reads what it wants, [linearizably](super#reads), without any lock, and its writes are kept aside;
//! its own reads see them. What it read is noted, with versions. When it has ended, and
//!
//! - all is in **one partition**, one command asks that partition to apply the writes if all that was read is still
//!   so: one round of Raft, as for a single write. `{tag}` in keys puts them into one partition;
//! - there are **several**, a two-phase commit asks each to validate and lock its part, and then one of them to
//!   decide: two rounds. Participants and decision are replicated, so no crash of a node blocks anybody; and if this
//!   client dies amid it, whoever meets the locks after their lease (5 s) has it settled. See
//!   [`dogsled_storage::transaction`];
//! - it has **written nothing**, what it read is looked at once more, and nothing is logged. If it was one read, not
//!   even that. Beside writers who never rest something has always changed; so from the fourth time on, all that it
//!   read is locked against being written, read at one moment, and shown to the closure.
//!
//! If something has changed, or is locked by another, the closure runs again, after a random pause that grows, up
//! to a hundred times or until the client's deadline ([`TransactionError::Conflict`]). So it should have no effects
//! but those of the transaction.
//!
//! **Nothing can deadlock.** The closure holds no lock while it runs. Whoever has locked what it wants to write never
//! waits for others: it gives back what it has and begins anew. From the fourth time on it takes its partitions in
//! order, so of those that are in each other's way some one gets through. Whoever has locked what it only reads
//! waits for those who had locked it for writing before, and so for nobody who waits.
//!
//! # What a closure sees
//!
//! A key is read once, and is then the same for the rest of the run. Different keys are read at different moments,
//! so a run that will have to be repeated may see what never was together: half of another's transfer. Its
//! result counts for nothing. Also what it [aborts](abort) for counts only if all it has read was so at one
//! moment; otherwise it runs again. But a closure should not panic, or loop, because of what it sees.
//!
//! [Locks](Transaction::lock) may be taken, renewed and given back with the rest, but not waited for. What it writes
//! through a tree [under a lock](super::Tree::under) is written while that is held, with all the rest, or none of it is;
//! [`Transaction::holds_lock`] asks.

mod attempt;
mod commit;
mod compare;
mod error;
mod locks;
mod looking;
mod owned;
mod sets;

use std::future::Future;

use tokio::time::Instant;

use self::commit::{CommitError, Committed, commit, was_one_moment};
use self::looking::look_at_one_moment;
use self::sets::Sets;
use super::{Client, Error};

pub(super) use self::looking::ReadLocks;

pub use self::attempt::Transaction;
pub use self::commit::{Outcome, Unsettled};
pub use self::compare::Compare;
pub use self::error::{
    ConflictableTransactionError, ConflictableTransactionResult, TransactionError, TransactionResult, abort,
};
pub use self::locks::TransactionLock;
pub use crate::Compared;

/// How often a closure runs.
const MAX_ATTEMPTS: u32 = 100;
/// Before the attempt with this number and all later ones, what was only read so far is read at one moment.
const LOOK_FIRST: u32 = 3;

impl Client {
    /// Runs a closure as a transaction; see [`transaction`](self).
    ///
    /// ```no_run
    /// # async fn transfer(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use dogsled::cluster::transaction::TransactionError;
    /// let moved: Result<(), TransactionError> = client
    ///     .transaction(|tx| async move {
    ///         tx.counter_add("ann", -10).await?;
    ///         tx.counter_add("ben", 10).await?;
    ///         Ok(())
    ///     })
    ///     .await;
    /// moved?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// What the closure aborts for; [`TransactionError::Conflict`], [`TransactionError::OutcomeUnknown`], and those of
    /// [reading](super#reads) and [writing](super#writes). The [deadline](Client::with_deadline) is for all runs together.
    pub async fn transaction<T, E, F, R>(&self, run: F) -> TransactionResult<T, E>
    where
        F: Fn(Transaction) -> R,
        R: Future<Output = ConflictableTransactionResult<T, E>>,
    {
        let until = self.until();
        let mut attempts = 0;
        let mut shown: Option<Sets> = None;
        while attempts < MAX_ATTEMPTS && (attempts == 0 || shown.is_some() || Instant::now() < until) {
            let transaction = Transaction::start(self.clone(), until, shown.take().unwrap_or_default());
            let result = match run(transaction.clone()).await {
                Ok(value) => transaction.read_fences().await.map(|()| value).map_err(Into::into),
                refused => refused,
            };
            let mut sets = transaction.end();
            match result {
                Ok(value) => match commit(self, &sets, attempts, until).await {
                    Ok(Committed::Yes) => return Ok(value),
                    Ok(Committed::Conflict) => {}
                    Err(CommitError::Cluster(error)) => again_if_renamed(self, &sets, error, until).await?,
                    Err(CommitError::Unknown(why, transaction)) => {
                        return Err(TransactionError::OutcomeUnknown { why, transaction });
                    }
                },
                Err(ConflictableTransactionError::Abort(reason)) => {
                    let was_so = match sets.has_lives() {
                        // Only where something is committed times to live are looked at again.
                        true => {
                            sets.forget_writes();
                            match commit(self, &sets, attempts, until).await {
                                Ok(committed) => Ok(matches!(committed, Committed::Yes)),
                                Err(CommitError::Cluster(error)) => Err(error),
                                // Nothing is written: it may run again.
                                Err(CommitError::Unknown(..)) => Ok(false),
                            }
                        }
                        false => was_one_moment(self, &sets, until).await,
                    };
                    match was_so {
                        Ok(true) => return Err(TransactionError::Abort(reason)),
                        Ok(false) => {}
                        Err(error) => again_if_renamed(self, &sets, error, until).await?,
                    }
                }
                Err(ConflictableTransactionError::Cluster(error)) => {
                    again_if_renamed(self, &sets, error, until).await?;
                }
            }
            self.core().back_off(attempts, until).await;
            attempts += 1;
            if attempts >= LOOK_FIRST && sets.only_reads() && Instant::now() < until {
                shown = look_at_one_moment(self, &sets, until).await?;
            }
        }
        Err(TransactionError::Conflict { attempts })
    }
}

/// A run that was refused because it named a tree as it was named before what is hashed of its keys was chosen is
/// repeated, with the other name; every other error is the transaction's.
async fn again_if_renamed(client: &Client, sets: &Sets, error: Error, until: Instant) -> Result<(), Error> {
    let is_refused = matches!(error, Error::Conflict(_));
    if is_refused && client.core().is_renamed(sets.trees.keys(), until).await { Ok(()) } else { Err(error) }
}
