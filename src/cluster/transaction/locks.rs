//! Locks in a transaction: [`TransactionLock`], and what a transaction asks of locks that its caller holds.
//!
//! What is read here is the lock's record, as any key. What is to be done to the lock is named, and evaluated where the
//! transaction is committed, at the time of the log there: by that it must come to what this run was told, or the run
//! counts for nothing and is repeated.

use std::collections::btree_map::Entry;
use std::time::Duration;

use dogsled_storage::lock::{FencingToken, Holder, LockCommand, LockState, decode_state};
use dogsled_storage::{Fence, LOCKS_TREE_NAME};

use super::attempt::Transaction;
use crate::IVec;
use crate::cluster::{Error, Result};
use crate::lock::milliseconds;

/// A lock as a part of a transaction: taken, checked or given back together with all that the transaction writes, or not
/// at all. See [`Transaction::lock`].
#[derive(Clone, Debug)]
pub struct TransactionLock {
    transaction: Transaction,
    name: IVec,
}

impl Transaction {
    /// A lock of this name, as a part of the transaction. Several of them may be, but only one thing is done to each.
    ///
    /// A lock that a transaction takes is held once the transaction has committed. The fencing token is the position of
    /// that commit, so it is not known before: take the lock up afterwards by
    /// [`Lock::resume`](crate::cluster::Lock::resume).
    ///
    /// ```no_run
    /// # async fn run(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use dogsled::cluster::transaction::TransactionResult;
    /// use std::time::Duration;
    /// let jobs = &client.tree("jobs");
    /// let taken: TransactionResult<bool> = client
    ///     .transaction(|tx| async move {
    ///         if !tx.lock("job 1").try_acquire("worker 7", Duration::from_secs(10)).await? {
    ///             return Ok(false);
    ///         }
    ///         tx.put(jobs, "job 1", "started by worker 7")?;
    ///         Ok(true)
    ///     })
    ///     .await;
    /// assert!(taken?);
    /// let guard = client.lock("job 1").owner("worker 7").resume().await?.expect("it is held");
    ///
    /// // What has been done is written, and the lock is given back, together.
    /// let token = guard.token();
    /// let done: TransactionResult<bool> = client
    ///     .transaction(|tx| async move {
    ///         tx.put(jobs, "job 1", "done")?;
    ///         Ok(tx.lock("job 1").release("worker 7", token).await?)
    ///     })
    ///     .await;
    /// assert!(done?);
    /// # Ok(()) }
    /// ```
    pub fn lock(&self, name: impl AsRef<[u8]>) -> TransactionLock {
        TransactionLock { transaction: self.clone(), name: IVec::from(name.as_ref()) }
    }

    /// Whether a lock is held under this token. What the transaction writes is written while it is, or not at all: so a
    /// holder that was paused for longer than its lease can do no harm.
    ///
    /// It is judged by the time of the log where the transaction is committed; over several partitions, where the lock's
    /// is prepared, after which nobody else gets it before the commit.
    ///
    /// ```no_run
    /// # async fn run(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
    /// use dogsled::cluster::transaction::abort;
    /// let guard = client.lock("nightly job").acquire(std::time::Duration::from_secs(10)).await?;
    /// let (state, token) = (&client.tree("state"), guard.token());
    /// client
    ///     .transaction(|tx| async move {
    ///         if !tx.holds_lock("nightly job", token).await? {
    ///             return abort("the lock is lost");
    ///         }
    ///         tx.put(state, "step", "2")?;
    ///         Ok(())
    ///     })
    ///     .await?;
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn holds_lock(&self, name: impl AsRef<[u8]>, token: FencingToken) -> Result<bool> {
        let name = IVec::from(name.as_ref());
        let is_held = self.tokens(&name).await?.contains(&token);
        if is_held {
            self.with(|sets| sets.note_held(&name, token))?;
        }
        Ok(is_held)
    }

    /// The tokens of all that hold a lock.
    async fn tokens(&self, name: &IVec) -> Result<Vec<FencingToken>> {
        let (state, time_ms) = self.state_of(name).await?;
        Ok(state.map_or_else(Vec::new, |state| state.live(time_ms).map(|permit| permit.token).collect()))
    }

    /// What is stored of a lock, as others see it, and what time the log has that it belongs to, or more.
    async fn state_of(&self, name: &IVec) -> Result<(Option<LockState>, u64)> {
        let tree = IVec::from(LOCKS_TREE_NAME);
        self.read(&tree, name.clone()).await?;
        let found = self.with(|sets| sets.trees.get(&tree)?.reads.get(name)?.clone())?;
        let state = found.map(|stored| decode_state(name, &stored)).transpose();
        let state = state.map_err(|error| Error::Incompatible(error.to_string()))?;
        // By what is known of the log's time, which is more by now if anything.
        let core = self.client.core();
        let time_ms = core.log_time_ms(core.group_of(name, self.until).await?, self.until).await?;
        Ok((state, time_ms))
    }

    /// Makes it a part of what was read that the locks are held under which this run [writes](crate::cluster::Tree::under). A
    /// token that is not that of a holder never is again, so what is refused here is refused for good.
    pub(super) async fn read_fences(&self) -> Result<()> {
        let fences = self.with(|sets| sets.fences().to_vec())?;
        for Fence { lock, token } in fences {
            let tokens = self.tokens(&lock).await?;
            if !tokens.contains(&token) {
                return Err(Error::LockNotHeld { lock, token, current: tokens.into_iter().max() });
            }
        }
        Ok(())
    }
}

impl TransactionLock {
    /// Notes what is to be done.
    fn does(&self, command: LockCommand) -> Result<()> {
        // What was told of the first is what happens.
        let is_first = self.transaction.with(|sets| match sets.locks.entry(self.name.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(command);
                true
            }
            Entry::Occupied(_) => false,
        })?;
        match is_first {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "a transaction does one thing to a lock, and this one does a second to \"{}\"",
                self.name.escape_ascii()
            ))),
        }
    }

    /// Takes the lock for `owner` if it is free and nobody waits for it; whether it is.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a lease of nothing, and for the second thing that is done to this lock; as
    /// [`Transaction::get`].
    pub async fn try_acquire(&self, owner: impl AsRef<[u8]>, lease: Duration) -> Result<bool> {
        let lease_ms = some_lease(lease)?;
        let (state, time_ms) = self.transaction.state_of(&self.name).await?;
        let is_free = state.is_none_or(|state| state.is_free(time_ms));
        if is_free {
            let (name, owner) = (self.name.clone(), IVec::from(owner.as_ref()));
            self.does(LockCommand::TryAcquire { name, owner, lease_ms })?;
        }
        Ok(is_free)
    }

    /// Starts the lease anew, from the commit; whether the lock is held.
    ///
    /// # Errors
    /// As [`TransactionLock::try_acquire`].
    pub async fn renew(&self, owner: impl AsRef<[u8]>, token: FencingToken, lease: Duration) -> Result<bool> {
        let lease_ms = some_lease(lease)?;
        let is_held = self.is_held(owner.as_ref(), token).await?;
        if is_held {
            let (name, owner) = (self.name.clone(), IVec::from(owner.as_ref()));
            self.does(LockCommand::Renew { name, owner, token, lease_ms })?;
        }
        Ok(is_held)
    }

    /// Gives the lock back; whether it was held. Whoever waits for it gets it with the commit.
    ///
    /// # Errors
    /// As [`TransactionLock::try_acquire`].
    pub async fn release(&self, owner: impl AsRef<[u8]>, token: FencingToken) -> Result<bool> {
        let is_held = self.is_held(owner.as_ref(), token).await?;
        if is_held {
            let (name, owner) = (self.name.clone(), IVec::from(owner.as_ref()));
            self.does(LockCommand::Release { name, owner, token })?;
        }
        Ok(is_held)
    }

    /// Who holds the lock, before this transaction; of a read/write lock or a semaphore, who has held it for longest.
    ///
    /// # Errors
    /// As [`Transaction::get`].
    pub async fn holder(&self) -> Result<Option<Holder>> {
        let (state, time_ms) = self.transaction.state_of(&self.name).await?;
        Ok(state.and_then(|state| state.live(time_ms).next().map(|permit| permit.holder())))
    }

    async fn is_held(&self, owner: &[u8], token: FencingToken) -> Result<bool> {
        let (state, time_ms) = self.transaction.state_of(&self.name).await?;
        let is_it = |state: LockState| {
            state.live(time_ms).any(|permit| permit.owner == owner && permit.token == token)
        };
        Ok(state.is_some_and(is_it))
    }
}

fn some_lease(lease: Duration) -> Result<u64> {
    match milliseconds(lease) {
        0 => Err(Error::Invalid("a lease of nothing would end before it begins".to_owned())),
        lease_ms => Ok(lease_ms),
    }
}
