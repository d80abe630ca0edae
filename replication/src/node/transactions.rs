//! What a node does about [transactions over several groups](dogsled_storage::transaction).
//!
//! - **Waiting.** A command or a linearizable read that meets a lock waits here, by the replica, until the
//!   transaction is resolved, and then is carried out. So clients need not know of locks, nobody polls over
//!   the network, and whoever waits holds nothing but a request.
//! - **Settling.** Whoever waits for a lock whose lease is over asks the transaction's home what was decided, and has
//!   the part resolved. That is the node's work and not the client's: every client has it, also those that speak
//!   other protocols, and the node knows the leases.
//! - **Looking after.** A group's leader does the same for locks that nobody has met, so that none outlives its lease
//!   by more than a round of maintenance; and where the group is home, has what was committed resolved, and forgets
//!   it, if the coordinator has not.
//!
//! All of it may be done twice, by several nodes at a time: a decision is made once, and resolving what is resolved
//! does nothing.

use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::codec::{decode_group_reply, encode_group_command};
use dogsled_storage::group::{
    Answer, GroupCommand, GroupRead, GroupReadReply, GroupReply, Operation, Refusal,
};
use dogsled_storage::hashes::HashAction;
use dogsled_storage::strings::{StringAction, StringsOperation};
use dogsled_storage::transaction::{
    Decided, Decision, KEEP_DECISION_MS, LockedBy, MAX_FORGET, TransactionId,
};
use dogsled_storage::{Replica, Settled};
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, join_all};
use tokio::time::Instant;

use super::Inner;
use crate::client::{ClientReply, ClientRequest};
use crate::error::ClusterError;
use crate::group::Group;
use crate::runtime;

/// The longest wait before looking whether a lease is over.
const LOOK: Duration = Duration::from_millis(100);
/// Parts that a round of maintenance settles in one group, and decisions that it looks after.
const AT_ONCE: usize = 256;

/// Where the next round of maintenance goes on in a group, so that those that cannot be settled or forgotten now, because
/// another group is not there, do not keep it from the others; `None`: at the beginning.
#[derive(Default)]
pub(super) struct LookedAfter {
    lapsed: Option<TransactionId>,
    decided: Option<(u64, TransactionId)>,
}

impl Inner {
    /// Has a command carried out, if this node leads, when no lock of a transaction is in its way.
    pub(super) async fn propose(
        self: &Arc<Self>,
        group: &Arc<Group>,
        command: &[u8],
        deadline: Duration,
    ) -> Result<GroupReply, ClusterError> {
        let until = Instant::now() + deadline;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let reply = group.propose(command, left).await?;
            let Err(Refusal::Locked(lock)) = &reply.result else { return Ok(reply) };
            let lock = *lock;
            if !self.wait_until_resolved(group, &lock, until).await {
                return Err(ClusterError::Unavailable(lock.to_string()));
            }
        }
    }

    /// Answers a read on the newest state, when no lock of a transaction is in its way.
    pub(super) async fn read_settled(
        self: &Arc<Self>,
        group: &Arc<Group>,
        read: GroupRead,
    ) -> Result<GroupReadReply, ClusterError> {
        if let GroupRead::Len { tree } = &read {
            // Where much is written there is always something prepared, and one would wait for ever.
            let until = Instant::now() + Duration::from_secs(3600);
            for lock in open_replica(group)?.writers(tree) {
                if !self.wait_until_resolved(group, &lock, until).await {
                    return Err(ClusterError::Unavailable(lock.to_string()));
                }
            }
            let replica = open_replica(group)?;
            let answer = self.blocking.run(move || replica.read(&read)).await;
            let answer = answer.map_err(|error| ClusterError::Unavailable(error.to_string()))?;
            return answer.map_err(failed_read);
        }
        let read = Arc::new(read);
        // The caller gives up at its own deadline.
        let until = Instant::now() + Duration::from_secs(3600);
        loop {
            let answer = {
                let replica = open_replica(group)?;
                match is_quick(&read) {
                    true => replica.read_settled(&read),
                    false => {
                        let read = Arc::clone(&read);
                        let answer = self.blocking.run(move || replica.read_settled(&read)).await;
                        answer.map_err(|error| ClusterError::Unavailable(error.to_string()))?
                    }
                }
            };
            match answer.map_err(failed_read)? {
                Settled::Answer(answer) => return Ok(answer),
                Settled::Locked(lock) => {
                    if !self.wait_until_resolved(group, &lock, until).await {
                        return Err(ClusterError::Unavailable(lock.to_string()));
                    }
                }
            }
        }
    }

    /// Whether a transaction is resolved here before `until`. If its lease is over, has it settled.
    pub(super) async fn wait_until_resolved(
        self: &Arc<Self>,
        group: &Arc<Group>,
        lock: &LockedBy,
        until: Instant,
    ) -> bool {
        // Before looking: what is applied from here on is heard.
        let mut applied = group.slot.subscribe_applied();
        loop {
            match open_replica(group) {
                Ok(replica) if replica.is_prepared(lock.transaction) => {}
                Ok(_) => return true,
                Err(_) => return false,
            }
            let now = Instant::now();
            if now >= until {
                return false;
            }
            let mut wait = LOOK.min(until - now);
            match lock.expires_ms.checked_sub(group.slot.clock.now()) {
                None | Some(0) => self.settle(group.id, *lock),
                Some(left_ms) => wait = wait.min(Duration::from_millis(left_ms)),
            }
            // Whether something was applied is seen above.
            let _ = tokio::time::timeout(wait, applied.changed()).await;
        }
    }

    /// Has a transaction settled and its part resolved, in the background, unless that is being done.
    fn settle(self: &Arc<Self>, group: u32, lock: LockedBy) {
        let this = (group, lock.transaction);
        if !self.settling.lock().insert(this) {
            return;
        }
        let node = Arc::clone(self);
        runtime::spawn(async move {
            if let Err(error) = node.settle_now(group, lock).await {
                tracing::warn!(group, transaction = %lock.transaction, %error, "a transaction is not settled yet");
                // Whoever waits asks again with every entry that is applied.
                tokio::time::sleep(LOOK).await;
            }
            node.settling.lock().remove(&this);
        });
    }

    async fn settle_now(self: &Arc<Self>, group: u32, lock: LockedBy) -> Result<(), ClusterError> {
        let LockedBy { transaction, home, decide_by_ms, .. } = lock;
        let commit = if (1..=self.cluster()?.partitions).contains(&home) {
            let reply = self.operate(home, Operation::Settle { transaction, decide_by_ms }).await?;
            match reply.result {
                Ok(Answer::Decided(Decision::Committed)) => true,
                Ok(Answer::Decided(Decision::Aborted(_))) => false,
                other => return Err(ClusterError::Unavailable(format!("home says {other:?}"))),
            }
        } else {
            // Whoever prepared it was wrong: nobody can ever decide it there.
            false
        };
        self.operate(group, Operation::Resolve { transaction, commit }).await?;
        tracing::info!(group, %transaction, commit, "a transaction was settled for its coordinator");
        Ok(())
    }

    /// Has an operation carried out by a group, wherever it is led.
    fn operate(
        self: &Arc<Self>,
        group: u32,
        operation: Operation,
    ) -> BoxFuture<'static, Result<GroupReply, ClusterError>> {
        let node = Arc::clone(self);
        async move {
            let command = GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation };
            let command =
                encode_group_command(&command).map_err(|error| ClusterError::Invalid(error.to_string()))?;
            let request = ClientRequest::Submit { group, deadline: Duration::ZERO, command: command.into() };
            let body = request.encode();
            match ClientReply::decode(node.serve(request, body, super::serve::Asker::Node).await) {
                Ok(ClientReply::Applied(reply)) => decode_group_reply(&reply)
                    .map_err(|error| ClusterError::OutcomeUnknown(error.to_string())),
                Ok(ClientReply::Error(error)) => Err(error),
                Ok(other) => {
                    Err(ClusterError::OutcomeUnknown(format!("an answer to something else: {other:?}")))
                }
                Err(error) => Err(ClusterError::OutcomeUnknown(error.to_string())),
            }
        }
        .boxed()
    }

    /// As leader, now and then: see the [module](self).
    pub(super) fn look_after_transactions(self: &Arc<Self>, group: &Arc<Group>) {
        let Some(replica) = group.slot.replica() else { return };
        let mut looked_after = self.looked_after.lock();
        let looked_after = looked_after.entry(group.id).or_default();
        let lapsed = replica.expired_transactions(group.slot.clock.now(), looked_after.lapsed, AT_ONCE);
        looked_after.lapsed = lapsed.get(AT_ONCE - 1).map(|last| last.transaction);
        for lock in lapsed {
            self.settle(group.id, lock);
        }
        // By what the log says: this node's own clock may be ahead of it, and a decision must not be forgotten before
        // those who ask for it take it that it can be.
        let kept = replica.time_ms().saturating_sub(KEEP_DECISION_MS);
        let due = replica.decisions_before(kept, looked_after.decided, AT_ONCE);
        looked_after.decided =
            due.get(AT_ONCE - 1).map(|(transaction, last)| (last.decide_by_ms, *transaction));
        if due.is_empty() || !self.forgetting.lock().insert(group.id) {
            return;
        }
        let (node, group) = (Arc::clone(self), group.id);
        runtime::spawn(async move {
            node.forget(group, due).await;
            node.forgetting.lock().remove(&group);
        });
    }

    /// Has all participants resolve what was decided, and forgets what they have.
    async fn forget(self: &Arc<Self>, home: u32, due: Vec<(TransactionId, Decided)>) {
        let resolved = due.into_iter().map(|(transaction, decided)| async move {
            let commit = decided.committed;
            let resolves = decided
                .participants
                .into_iter()
                .map(|group| self.operate(group, Operation::Resolve { transaction, commit }));
            let all = join_all(resolves).await;
            let all = all.into_iter().all(|reply| reply.is_ok_and(|reply| reply.result == Ok(Answer::Done)));
            all.then_some(transaction)
        });
        let transactions: Vec<TransactionId> = join_all(resolved).await.into_iter().flatten().collect();
        for some in transactions.chunks(MAX_FORGET) {
            // If it fails, the next round does it.
            let _ = self.operate(home, Operation::Forget { transactions: some.to_vec() }).await;
        }
    }
}

pub(super) fn open_replica(group: &Group) -> Result<Arc<Replica>, ClusterError> {
    group
        .slot
        .replica()
        .ok_or_else(|| ClusterError::Unavailable(format!("group {} is installing a snapshot", group.id)))
}

pub(super) fn failed_read(error: dogsled_storage::Error) -> ClusterError {
    match error {
        dogsled_storage::Error::InvalidRequest(what) => ClusterError::Invalid(what),
        // The caller's map is older than the choice of what is hashed of the tree.
        sealed @ dogsled_storage::Error::TreeSealed(_) => ClusterError::Conflict(sealed.to_string()),
        other => ClusterError::Storage(other.to_string()),
    }
}

/// Whether a read looks at a key or a few, which costs less than another thread.
pub(super) fn is_quick(read: &GroupRead) -> bool {
    match read {
        GroupRead::Get { .. }
        | GroupRead::Counter { .. }
        | GroupRead::LockHolder { .. }
        | GroupRead::LockHolders { .. }
        | GroupRead::Ticket { .. } => true,
        GroupRead::Strings { operations, .. } => is_short(operations),
        _ => false,
    }
}

/// Whether such a read looks at a few keys only.
fn is_short(operations: &[StringsOperation]) -> bool {
    let is_whole = |operation: &StringsOperation| {
        matches!(operation.action, StringAction::Hash(HashAction::All | HashAction::Page { .. }))
    };
    operations.len() <= 64 && !operations.iter().any(is_whole)
}
