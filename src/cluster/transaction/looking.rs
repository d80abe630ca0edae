//! Looking at much while others write: a reader whose reads were disturbed again and again has what it is going to
//! read locked against being written, in all partitions at a time, reads it, and gives the locks back. What that
//! rests on is said in [`dogsled_storage::transaction`].
//!
//! Which keys and ranges these are is known from the run before. The closure then runs once more and is shown what was
//! read. Its locks are gone by then: nobody waits for a closure. If it wants to see more than it did before, that is
//! read as ever, and validated with the rest; and the next time it is locked, too.

use std::sync::Arc;

use dogsled_replication::ring;
use dogsled_storage::transaction::Prepare;
use dogsled_storage::transaction::coordinator::Share;
use dogsled_storage::{Answer, Operation, TransactionId, Vote};
use futures_util::future::{join_all, try_join, try_join_all};
use tokio::time::Instant;

use super::Transaction;
use super::commit::{LEASE, TELL, is_still_so};
use super::sets::Sets;
use crate::cluster::core::{Core, unexpected};
use crate::cluster::{Client, Error, Result};

/// Reads all that a run has read, as it is at one moment; `None`: the locks were not kept for long enough, or not
/// given.
pub(super) async fn look_at_one_moment(
    client: &Client,
    wanted: &Sets,
    until: Instant,
) -> Result<Option<Sets>> {
    let core = client.core();
    let partitions = core.partitions(until).await?;
    let shares = wanted.locks(|tree, key| ring::group_in(tree, key, partitions), partitions);
    let Some(&home) = shares.keys().next() else { return Ok(None) };
    let lease_ms = LEASE.as_millis() as u64;
    let decide_by_ms = core.log_time_ms(home, until).await? + lease_ms;
    let transaction = core.fresh_transaction();
    let groups = shares.keys().copied().collect();
    let locks = ReadLocks::new(client, transaction, groups);
    let prepares = shares.into_iter().map(|(group, Share { trees, part })| {
        let prepare = Prepare { transaction, home, decide_by_ms, lease_ms, only_lock: true, part };
        // Locks that are older than their lease are of no use.
        let until = until.min(Instant::now() + LEASE);
        core.carry_out(group, trees, Operation::Prepare(prepare), until)
    });
    for locked in join_all(prepares).await {
        match locked.map(|reply| reply.result) {
            Ok(Ok(Answer::Vote(Vote::Yes))) => {}
            Ok(other) => return Err(unexpected(&other)),
            Err(failed) => match failed.error {
                Error::Unavailable(_) | Error::OutcomeUnknown(_) if Instant::now() < until => {
                    return Ok(None);
                }
                // It wanted to write nothing, so nothing is in doubt.
                Error::OutcomeUnknown(why) => {
                    return Err(Error::Unavailable(format!("what is read was not locked: {why}")));
                }
                error => return Err(error),
            },
        }
    }
    let look = Transaction::start(client.clone(), until, Sets::to_be_shown());
    look.read_again(wanted).await?;
    let seen = look.end();
    let valid = is_still_so(client, &seen, Some(transaction), until).await?;
    drop(locks);
    Ok(valid.then(|| seen.into_shown()))
}

impl Transaction {
    /// Reads what another run has read.
    async fn read_again(&self, wanted: &Sets) -> Result<()> {
        let keys = wanted.keys_read().map(|(tree, keys)| self.read_many(tree, keys));
        let scans = wanted.scans().map(|scan| self.look_at(scan));
        let (keys, scans) = (try_join_all(keys.collect::<Vec<_>>()), try_join_all(scans.collect::<Vec<_>>()));
        try_join(keys, scans).await?;
        Ok(())
    }
}

/// Locks against writing in some groups, perhaps, which are given back when this is dropped.
pub(in crate::cluster) struct ReadLocks {
    client: Client,
    transaction: TransactionId,
    groups: Vec<u32>,
}

impl ReadLocks {
    pub(in crate::cluster) fn new(
        client: &Client,
        transaction: TransactionId,
        groups: Vec<u32>,
    ) -> ReadLocks {
        ReadLocks { client: client.clone(), transaction, groups }
    }
}

impl Drop for ReadLocks {
    fn drop(&mut self) {
        let core = self.client.shared_core();
        let finishing = core.finishing.begin();
        let (transaction, groups) = (self.transaction, std::mem::take(&mut self.groups));
        self.client.runtime().spawn(async move {
            let _finishing = finishing;
            release(&core, transaction, groups).await;
        });
    }
}

/// What is not heard is settled when the lease is over.
async fn release(core: &Arc<Core>, transaction: TransactionId, groups: Vec<u32>) {
    let until = Instant::now() + TELL;
    let resolve = Operation::Resolve { transaction, commit: false };
    join_all(groups.into_iter().map(|group| core.operate(group, resolve.clone(), until))).await;
}
