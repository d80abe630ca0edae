//! The [`Record`] on a node: following it, and changing it.
//!
//! A node follows by looking into its own replica of group 0 whenever that has applied something. So
//! what it goes by may be old, never wrong: nothing that must not happen depends on its being new.
//!
//! Changes are made by the leader of group 0: it reads the newest record, decides what it is afterwards,
//! and has the group swap the one for the other. If somebody was quicker, an operator who has named the
//! epoch that he saw is told so; who has named none, is tried again.

use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::codec::{decode_group_read_reply, encode_group_command, encode_group_read};
use dogsled_storage::group::{Answer, GroupCommand, GroupRead, GroupReadReply, Operation};
use dogsled_storage::{Command, IVec, Reply, TreeId};
use tokio::time::Instant;

use super::Inner;
use crate::client::{ClientReply, ClientRequest, Consistency};
use crate::error::ClusterError;
use crate::fence::Authority;
use crate::group::Group;
use crate::meta::{self, Change, MemberState, Record};
use crate::reconcile;
use crate::ring::META_GROUP;
use crate::runtime::watch;
use crate::state_machine::decode_applied;
use crate::transport::NodeId;

/// The longest wait before the replica is looked at again.
const LOOK: Duration = Duration::from_secs(1);
/// How long the leader of group 0 may take to say what it is: less than who joins waits for that.
const ANSWERS: Duration = Duration::from_secs(2);
/// While it cannot be read: it is being replaced by a snapshot.
const RETRY: Duration = Duration::from_millis(20);

fn read_record() -> GroupRead {
    GroupRead::Get { tree: meta::TREE.into(), key: meta::KEY.into() }
}

fn decode(reply: GroupReadReply) -> Result<Option<(Record, IVec)>, String> {
    match reply {
        GroupReadReply::Value(None) => Ok(None),
        GroupReadReply::Value(Some(found)) => {
            let bytes = Bytes::copy_from_slice(&found.value);
            let record = Record::decode(bytes).map_err(|error| error.to_string())?;
            Ok(Some((record, found.value)))
        }
        other => Err(format!("an answer to something else: {other:?}")),
    }
}

/// The command that swaps records; `old` is `None` for the first.
pub(crate) fn swap(old: Option<IVec>, new: &Record) -> GroupCommand {
    let new = Some(IVec::from(&new.encode()[..]));
    let command = Command::CompareAndSwap { tree: TreeId(0), key: meta::KEY.into(), old, new };
    GroupCommand {
        session: None,
        time_ms: 0,
        trees: vec![meta::TREE.into()],
        operation: Operation::Command(command),
    }
}

/// Keeps what the node knows of the record as new as its replica of group 0.
pub(super) async fn follow(node: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let Some(mut applied) = node.upgrade().and_then(|node| {
        let group = node.cluster.get()?.group(META_GROUP)?;
        Some(group.slot.applied_positions())
    }) else {
        return;
    };
    let mut seen = None;
    loop {
        let wait = {
            let Some(node) = node.upgrade() else { return };
            let position = *applied.borrow_and_update();
            match seen == Some(position) || node.look_at_record() {
                true => {
                    seen = Some(position);
                    LOOK
                }
                false => RETRY,
            }
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            // The sender is the replica's slot, which is there as long as the node is.
            _ = applied.changed() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

impl Inner {
    /// Takes over what the replica of group 0 says; `false` if it cannot be read now.
    pub(super) fn look_at_record(&self) -> bool {
        let Some(cluster) = self.cluster.get() else { return false };
        let Some(replica) = cluster.group(META_GROUP).and_then(|group| group.slot.replica()) else {
            return false;
        };
        // Before what it says: what is known of the history is then at least that.
        let applied = decode_applied(&replica.applied()).ok().and_then(|(last, _)| last);
        let found = match replica.read(&read_record()).map_err(|error| error.to_string()).and_then(decode) {
            Ok(Some((record, _))) => record,
            Ok(None) => return true,
            Err(error) => {
                tracing::error!(%error, "the cluster's record cannot be read");
                return true;
            }
        };
        if let Some(last) = applied {
            let (term, leader, epoch) = (last.leader_id.term, last.leader_id.node_id, found.epoch);
            self.fence.set_record(Authority { term, leader, epoch }, &found.removed, self.config.node);
        }
        // A replica that was opened again begins with an older state.
        if cluster.record().is_some_and(|known| known.epoch >= found.epoch) {
            return true;
        }
        for (node, member) in &found.members {
            self.set_addresses(*node, member.addresses.clone());
        }
        self.shared_log.pace.set_limit(found.settings.bytes_per_second);
        tracing::debug!(epoch = found.epoch, "the cluster's record is new");
        cluster.set_record(found);
        self.changes.send_modify(|changes| *changes += 1);
        self.wake_driver.notify_one();
        true
    }

    /// Writes the first record, unless there is one.
    pub(super) async fn write_first_record(self: &Arc<Self>, record: &Record) -> Result<(), ClusterError> {
        // If there is one already, that one counts: whoever was interrupted had come so far.
        self.submit_to_meta(&swap(None, record)).await.map(drop)
    }

    /// Whether the swap was made.
    async fn submit_to_meta(self: &Arc<Self>, command: &GroupCommand) -> Result<bool, ClusterError> {
        let command =
            encode_group_command(command).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let request = ClientRequest::Submit {
            group: META_GROUP,
            deadline: Duration::ZERO,
            command: Bytes::from(command),
        };
        match ClientReply::decode(self.served(request).await) {
            Ok(ClientReply::Applied(reply)) => {
                let reply = dogsled_storage::codec::decode_group_reply(&reply)
                    .map_err(|error| ClusterError::OutcomeUnknown(error.to_string()))?;
                match reply.result {
                    Ok(Answer::Reply(Reply::Swapped(swapped))) => Ok(swapped.is_ok()),
                    other => Err(ClusterError::Invalid(format!("the record was refused: {other:?}"))),
                }
            }
            Ok(ClientReply::Error(error)) => Err(error),
            other => Err(ClusterError::OutcomeUnknown(format!("an answer to something else: {other:?}"))),
        }
    }

    /// The newest record, as of now, whoever leads group 0; `None` as long as there is none.
    pub(super) async fn record_of_leader(self: &Arc<Self>) -> Result<Option<Record>, ClusterError> {
        let unavailable = |why: &dyn std::fmt::Display| ClusterError::Unavailable(why.to_string());
        let read = encode_group_read(&read_record()).map_err(|error| unavailable(&error))?.into();
        let (group, deadline) = (META_GROUP, ANSWERS);
        let consistency = Consistency::Linearizable;
        let served = self.served(ClientRequest::Read { group, deadline, consistency, read }).await;
        match ClientReply::decode(served).map_err(|error| unavailable(&error))? {
            ClientReply::Read { reply, .. } => {
                let reply = decode_group_read_reply(&reply).map_err(|error| unavailable(&error))?;
                Ok(decode(reply).map_err(ClusterError::Storage)?.map(|(record, _)| record))
            }
            ClientReply::Error(error) => Err(error),
            _ => Err(unavailable(&"an answer to something else")),
        }
    }

    /// As leader of group 0: the newest record.
    pub(super) async fn newest_record(self: &Arc<Self>) -> Result<(Record, IVec), ClusterError> {
        let group = self.group(META_GROUP)?;
        let read = self.read(&group, read_record(), Consistency::Linearizable).await?;
        let ClientReply::Read { reply, .. } = read else {
            return Err(ClusterError::Unavailable("an answer to something else".to_owned()));
        };
        let reply =
            decode_group_read_reply(&reply).map_err(|error| ClusterError::Unavailable(error.to_string()))?;
        match decode(reply).map_err(ClusterError::Storage)? {
            Some(found) => Ok(found),
            None => Err(ClusterError::Unavailable("the cluster is still being made".to_owned())),
        }
    }

    /// The record for whoever asks: the newest, as the leader of group 0 knows it. If nobody leads it, what
    /// is known here, so that somebody who looks for what is wrong sees something.
    pub(super) async fn tell_record(self: &Arc<Self>) -> Result<ClientReply, ClusterError> {
        let meta = self.group(META_GROUP)?;
        if meta.leads() {
            if let Ok((record, _)) = self.newest_record().await {
                return Ok(ClientReply::Record(Box::new(record)));
            }
        } else if let Some(leader) = meta.leader() {
            return Err(meta.not_leader(Some(leader)));
        }
        match self.cluster()?.record() {
            Some(record) => Ok(ClientReply::Record(Box::new(Record::clone(&record)))),
            None => Err(ClusterError::Unavailable("the cluster is still being made".to_owned())),
        }
    }

    /// As leader of group 0: changes the record; see the [module](self). The epoch with which the change
    /// is in force.
    pub(super) async fn change_record(
        self: &Arc<Self>,
        seen: u64,
        change: &Change,
    ) -> Result<u64, ClusterError> {
        let group = self.group(META_GROUP)?;
        let deadline = Instant::now() + self.config.request_deadline;
        loop {
            if !group.leads() {
                return Err(group.not_leader(group.leader()));
            }
            let (record, bytes) = self.newest_record().await?;
            if seen != 0 && record.epoch != seen {
                return Err(ClusterError::Conflict(format!(
                    "the cluster was changed meanwhile: it is at epoch {}, and what is asked for was decided at \
                     epoch {seen}; look again",
                    record.epoch
                )));
            }
            if record.forming && *change != Change::Formed {
                return Err(ClusterError::Unavailable("the cluster is still being made".to_owned()));
            }
            let Some(next) = record.changed(change).map_err(ClusterError::Invalid)? else {
                return Ok(record.epoch);
            };
            if self.submit_to_meta(&swap(Some(bytes), &next)).await? {
                tracing::info!(epoch = next.epoch, ?change, "the cluster is changed");
                return Ok(next.epoch);
            }
            if Instant::now() > deadline {
                return Err(ClusterError::Unavailable("others change the cluster all the time".to_owned()));
            }
        }
    }

    /// As leader of group 0: changes the record, and waits until that is carried through if it should.
    pub(super) async fn carry_out(
        self: &Arc<Self>,
        seen: u64,
        wait: bool,
        change: Change,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        let until = Instant::now() + deadline;
        let epoch = self.change_record(seen, &change).await?;
        if !wait {
            return Ok(());
        }
        let group = self.group(META_GROUP)?;
        let mut progress = self.progress.subscribe();
        loop {
            {
                let progress = progress.borrow_and_update();
                if let Some(found) = progress.as_ref().filter(|found| found.0.epoch >= epoch) {
                    let (record, view) = &**found;
                    if record.settings.paused {
                        tracing::info!("movement is paused: the change waits for it to go on");
                        return Ok(());
                    }
                    let done = match &change {
                        Change::Add { node, .. } => has_its_share(record, view, *node),
                        Change::Remove { node } => {
                            let meta = view.groups.get(&META_GROUP);
                            record.removed.contains(node) && meta.is_some_and(|meta| !meta.has(*node))
                        }
                        _ => reconcile::is_reached(record, view),
                    };
                    if done {
                        return Ok(());
                    }
                }
            }
            let unknown = |why: &str| Err(ClusterError::OutcomeUnknown(why.to_owned()));
            if !group.leads() {
                // It is decided, so that it is asked for again there changes nothing.
                let left = until.saturating_duration_since(Instant::now());
                return self.wait_elsewhere(&group, change, left).await;
            }
            if *self.stop.borrow() {
                return unknown("the change is decided; this node stops");
            }
            if Instant::now() > until {
                return unknown("the change is decided, and is not carried through yet");
            }
            // Whether it came or not is seen above.
            let _ = tokio::time::timeout(LOOK, progress.changed()).await;
        }
    }
}

impl Inner {
    /// Waits for a change that was decided, at the node that leads group 0 now.
    async fn wait_elsewhere(
        self: &Arc<Self>,
        meta: &Group,
        change: Change,
        left: Duration,
    ) -> Result<(), ClusterError> {
        let unknown = || {
            let why = "the change is decided; another node carries it through";
            Err(ClusterError::OutcomeUnknown(why.to_owned()))
        };
        let me = self.config.node;
        let until = Instant::now() + self.config.timing.election.1 * 8;
        let leader = loop {
            match meta.leader().filter(|leader| *leader != me) {
                Some(leader) => break leader,
                None if Instant::now() > until || *self.stop.borrow() => return unknown(),
                None => tokio::time::sleep(RETRY).await,
            }
        };
        let request = ClientRequest::Change { epoch: 0, wait: true, change };
        match self.forward(leader, request.encode(), left).await.map(ClientReply::decode) {
            Ok(Ok(ClientReply::Done)) => Ok(()),
            Ok(Ok(ClientReply::Error(error @ ClusterError::OutcomeUnknown(_)))) => Err(error),
            _ => unknown(),
        }
    }
}

/// Whether a member is active and votes in all groups that it is to have a replica of.
fn has_its_share(record: &Record, view: &reconcile::View, node: NodeId) -> bool {
    let state = record.members.get(&node).map(|member| member.state);
    let votes = |group: u32| view.groups.get(&group).is_some_and(|seen| seen.voters.contains(&node));
    let mine = (0..=record.partitions()).filter(|group| record.replicas_of(*group).contains(&node));
    match state {
        Some(MemberState::Joining) | None => false,
        Some(_) => {
            mine.into_iter().all(votes) && view.groups.get(&META_GROUP).is_some_and(|meta| meta.has(node))
        }
    }
}
