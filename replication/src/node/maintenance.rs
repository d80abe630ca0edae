//! What a node does by itself, now and then.
//!
//! - **Purging**: lets entries go that the last checkpoint covers and that are too many or too old to
//!   be kept for followers that were away; but not those that a snapshot under way will be continued
//!   with.
//! - **Elections**: a replica that has got again what it had may be elected; see [`super::hosting`].
//! - **Memory**: the log of a group that is idle is not kept in memory.
//! - **Sessions**: as leader, when the log's time has passed the end of some session, proposes that
//!   sessions be ended, and says for how long it has led: no lease ends that it has not seen pass. Nothing
//!   ends but by that entry.
//! - **Time**: as leader, gives the log a stamp when it begins to lead, and when nobody has written for a minute, so
//!   that followers never measure time from an old one.
//! - **What is due** ([`run_due`]): as leader, when the log's time has passed the end of some key, or of a
//!   lease of a lock that others wait for, proposes that these be settled. It looks often, at two numbers
//!   in memory, because somebody waits.
//! - **Pinned states** that nobody has asked for during their lease are let go; see [`crate::pin`].
//! - **Transactions** whose coordinator is gone: see [`super::transactions`].
//! - **Load**: how busy each group is, is measured: see [`super::load`].
//! - **Balance**: leadership of a partition belongs to the first of those that the record gives it to,
//!   which are spread evenly over the members, by number and by load. A leader hands it to that one once that one has all but
//!   the newest entries and answers.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dogsled_storage::codec::encode_group_command;
use dogsled_storage::expiry::MOST_DUE;
use dogsled_storage::group::{Answer, GroupCommand, GroupRead, GroupReadReply, Operation};
use dogsled_storage::{Command, Reply};
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, RaftMetrics};
use tokio::time::Instant;

use super::Inner;
use crate::group::Group;
use crate::runtime::watch;
use crate::types::{TypeConfig, position};

/// Entries that a group may have more of before purging is worth while, unless it is to keep fewer.
const PURGE_BATCH: u64 = 1_000;
/// A group without new entries for so long gives back the memory of its log.
const IDLE: Duration = Duration::from_secs(30);
/// Who is handed leadership may lack so many entries.
const NEAR: u64 = 1_000;
/// Groups whose leadership is moved at a time.
const MOVES: usize = 4;
/// A node that has just become leader is left alone for so long.
const SETTLE: Duration = Duration::from_secs(3);

/// The log of a group that nobody writes to is given a stamp so often.
const STAMP_EVERY: Duration = Duration::from_secs(60);

pub(super) async fn run(node: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    // By group: since when this node leads it.
    let mut led_since: HashMap<u32, Instant> = HashMap::new();
    let settle = settle();
    // By group: the entry that came next when something was last appended, and when that was.
    let mut appended: HashMap<u32, (u64, Instant)> = HashMap::new();
    loop {
        let every = match node.upgrade() {
            Some(node) => node.config.maintenance_every,
            None => return,
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
        let Some(node) = node.upgrade() else { return };
        let Some(cluster) = node.cluster.get() else { continue };
        let groups = cluster.groups();
        node.measure(&groups);
        for group in groups.values() {
            group.let_elect();
            group.slot.pins.expire();
            let (_, next) = group.log.bounds();
            let (seen, since) = appended.entry(group.id).or_insert_with(|| (0, Instant::now()));
            if next != *seen {
                (*seen, *since) = (next, Instant::now());
            } else if since.elapsed() >= IDLE {
                group.log.shrink();
            }
        }
        let applied = |group| groups.get(&group).map_or(0, |group| group.slot.applied());
        node.snapshots.give_up_stale(applied).await;
        let (mut moves, mut proposing) = (0, Vec::new());
        for group in groups.values() {
            node.checkpoint_without_threads(group);
            node.purge(group).await;
            let Some(term) = group.term_led() else {
                led_since.remove(&group.id);
                continue;
            };
            let since = *led_since.entry(group.id).or_insert_with(Instant::now);
            node.look_after_transactions(group);
            if !group.is_in_touch(node.config.timing.undisputed()) {
                // Also before anybody has answered it for the first time: the voters may be gone since the election.
                group.slot.clock.has_no_majority(term);
            } else {
                proposing.push((group, term));
            }
            if node.config.balance_leaders && moves < MOVES && since.elapsed() >= SETTLE {
                moves += usize::from(node.balance(group).await);
            }
        }
        // Together, and not for long: a group whose commits are slow must not keep the others from being looked after.
        let at_most = node.config.timing.election.1;
        let proposals = proposing.into_iter().map(|(group, term)| {
            let (node, settle) = (&node, &settle);
            async move {
                if group.slot.clock.wants_stamp(term, STAMP_EVERY) {
                    // If it does not come to be, there is the next turn.
                    let _ = group.propose(settle, at_most).await;
                }
                node.expire_sessions(group, term).await;
            }
        });
        let _ = tokio::time::timeout(at_most * 4, futures_util::future::join_all(proposals)).await;
    }
}

/// How often [`run_due`] looks.
const DUE_EVERY: Duration = Duration::from_millis(100);
/// Entries that are proposed in a row before the other groups are looked at again.
const DUE_IN_A_ROW: u32 = 64;

/// Settles what is due, and if nothing is, brings nothing but its time.
fn settle() -> Vec<u8> {
    let settle = GroupCommand {
        session: None,
        time_ms: 0,
        trees: Vec::new(),
        operation: Operation::Command(Command::SettleDue { limit: MOST_DUE }),
    };
    encode_group_command(&settle).expect("a command of a few bytes can be encoded")
}

/// Has what is due settled; see the [module](self).
pub(super) async fn run_due(node: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let settle = settle();
    loop {
        let every = match node.upgrade() {
            Some(node) => node.config.maintenance_every.min(DUE_EVERY),
            None => return,
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
        let Some(node) = node.upgrade() else { return };
        let Some(cluster) = node.cluster.get() else { continue };
        let deadline = node.config.timing.election.1;
        let groups = cluster.groups();
        let due = groups.values().filter(|group| group.is_due()).map(|group| {
            let settle = &settle;
            async move {
                for _ in 0..DUE_IN_A_ROW {
                    let proposed = group.propose(settle, deadline).await.map(|reply| reply.result);
                    if !matches!(proposed, Ok(Ok(Answer::Reply(Reply::Settled { more: true, .. })))) {
                        return;
                    }
                }
            }
        });
        futures_util::future::join_all(due).await;
    }
}

impl Inner {
    /// Replicas without background threads fold nothing by themselves.
    fn checkpoint_without_threads(&self, group: &Group) {
        let Some(replica) = group.slot.replica() else { return };
        if !self.config.threads && replica.durable_applied().position < group.slot.applied() {
            // If it fails, the replica refuses the next entry, and the group is opened again.
            let _ = replica.checkpoint();
        }
    }

    async fn purge(&self, group: &Group) {
        let Some(raft) = group.raft() else { return };
        let Some(to) = group.log.purgeable(self.config.keep_entries, self.config.keep_bytes) else { return };
        let Some(replica) = group.slot.replica() else { return };
        let (first, next) = group.log.bounds();
        // Index of the last entry to go: one that the checkpoint covers, and that no follower will ask
        // for that is getting a snapshot.
        let mut to = to.min(next.saturating_sub(1));
        if let Some(held) = group.slot.held_position() {
            // A position is one more than its index: this is the last entry that the snapshot has. The
            // one behind it is the first that the follower will ask for; without it, it would be
            // sent the same snapshot again, for ever.
            let Some(last_held) = held.checked_sub(1) else { return };
            to = to.min(last_held);
        }
        let Some(last_durable) = replica.durable_applied().position.checked_sub(1) else { return };
        to = to.min(last_durable);
        drop(replica);
        if to < first || (to - first < PURGE_BATCH.min(self.config.keep_entries) && position(to) < next) {
            return;
        }
        let covered =
            raft.data_metrics().borrow_watched().snapshot.map_or(0, |log_id| position(log_id.index));
        // openraft purges what a snapshot covers, and its snapshot is our checkpoint: let it look.
        if covered < position(to) {
            let _ = raft.trigger().snapshot().await;
            return;
        }
        let _ = raft.trigger().purge_log(to).await;
    }

    async fn expire_sessions(&self, group: &Arc<Group>, term: u64) {
        let Some(replica) = group.slot.replica() else { return };
        let earliest = replica.read(&GroupRead::EarliestSessionExpiry);
        let Ok(GroupReadReply::Time(Some(earliest))) = earliest else { return };
        let now_ms = group.slot.clock.stamp(term);
        if now_ms < earliest {
            return;
        }
        let led_ms = group.slot.clock.led(term).as_millis() as u64;
        // After a change of leaders many are over of which no whole lease was seen.
        if !replica.is_any_session_over(now_ms, led_ms).is_ok_and(|any| any) {
            return;
        }
        drop(replica);
        let expire = GroupCommand {
            session: None,
            time_ms: 0,
            trees: Vec::new(),
            operation: Operation::ExpireSessions { led_ms },
        };
        let Ok(expire) = encode_group_command(&expire) else { return };
        let deadline = self.config.timing.election.1;
        for _ in 0..DUE_IN_A_ROW {
            let proposed = group.propose(&expire, deadline).await.map(|reply| reply.result);
            if !matches!(proposed, Ok(Ok(Answer::SessionsExpired { more: true, .. }))) {
                return;
            }
        }
    }

    /// How far a voter has come with a log that this node leads, if it answers and lacks so little that leadership can
    /// be handed to it.
    pub(super) fn readiness(&self, metrics: &RaftMetrics<TypeConfig>, voter: u64) -> Option<u64> {
        let heard = metrics.heartbeat.as_ref()?.get(&voter)?.as_ref()?;
        let matched = metrics.replication.as_ref()?.get(&voter).copied().flatten();
        let index = matched.map_or(0, |log_id| log_id.index);
        let is_near = index + NEAR >= metrics.last_log_index.unwrap_or(0);
        (is_near && heard.elapsed() <= self.config.timing.undisputed()).then_some(index)
    }

    /// Whether leadership was handed over.
    async fn balance(&self, group: &Group) -> bool {
        let Some(raft) = group.raft() else { return false };
        let heir = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters: Vec<u64> = metrics.membership_config.membership().voter_ids().collect();
            // Not amid a change of members.
            if metrics.membership_config != metrics.committed_membership_config || voters.is_empty() {
                return false;
            }
            let record = self.cluster.get().and_then(|cluster| cluster.record());
            let heir = match record.as_ref().and_then(|record| record.preferred_leader(group.id)) {
                // It would give it back.
                Some(first) if self.room.is_low_at(first) => return false,
                Some(first) if voters.contains(&first.0) => first.0,
                // It is still on its way to those that are to have it.
                _ => return false,
            };
            if heir == metrics.id {
                return false;
            }
            if self.readiness(&metrics, heir).is_none() {
                return false;
            }
            heir
        };
        raft.trigger().transfer_leader(heir).await.is_ok()
    }
}
