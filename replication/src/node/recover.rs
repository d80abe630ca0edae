//! Carries out what [`crate::recovery`] decides.
//!
//! Any node can be asked. It asks all members how they are, decides, and if it is to be done: has the
//! meta group recovered first if it must be, has the lost members taken out of the record, and then has
//! each survivor go on with its groups. Interrupted anywhere, it can be asked again, with the same members
//! named.
//!
//! The survivor checks for itself what only it can know: that nobody who was given up answers *it*, that it
//! is not in touch with a quorum, and that its last entry is still the one that was judged by.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use tokio::time::Instant;

use super::Inner;
use super::drive::ANSWER;
use crate::client::{ClientReply, ClientRequest};
use crate::error::ClusterError;
use crate::group::{Group, entry_id};
use crate::meta::{Change, Record};
use crate::recovery::{Recovery, TERM_LEAP, plan};
use crate::ring::META_GROUP;
use crate::status::{MembershipId, NodeStatus};
use crate::transport::NodeId;
use crate::types::{Entry, LeaderId, LogId, Member, Membership, Payload, TypeConfig, Vote};

/// How long a group may take to elect its only voter, or the meta group to have a leader.
const ELECTION: Duration = Duration::from_secs(20);
/// Between two looks at that.
const LOOK: Duration = Duration::from_millis(20);

fn list(nodes: &[NodeId]) -> String {
    nodes.iter().map(NodeId::to_string).collect::<Vec<_>>().join(", ")
}

impl Inner {
    /// See the [module](self).
    pub(super) async fn recover(
        self: &Arc<Self>,
        lost: Vec<NodeId>,
        accept_data_loss: bool,
        deadline: Duration,
    ) -> Result<Recovery, ClusterError> {
        if accept_data_loss && lost.is_empty() {
            return Err(ClusterError::Invalid(
                "say which members will never come back: nobody is given up because he does not answer"
                    .to_owned(),
            ));
        }
        let until = Instant::now() + deadline;
        let record = self.newest_known_record(&lost).await?;
        let asked: BTreeSet<NodeId> = record.members.keys().copied().chain(lost.iter().copied()).collect();
        let answers = self.ask_how_they_are(asked.into_iter()).await;
        let answers: BTreeMap<NodeId, NodeStatus> =
            answers.into_iter().map(|status| (status.node, status)).collect();
        let mut recovery =
            plan(&record, &answers, &lost.into_iter().collect()).map_err(ClusterError::Invalid)?;
        if !accept_data_loss {
            return Ok(recovery);
        }
        tracing::warn!(?recovery, "the quorum of groups is given up");
        let mut by_survivor: BTreeMap<NodeId, Vec<(u32, u64, MembershipId)>> = BTreeMap::new();
        for group in &recovery.groups {
            let Some(survivor) = group.survivor else { continue };
            let part = (group.group, group.term, group.last);
            match group.group {
                META_GROUP => self.have_go_on(survivor, &recovery.lost, vec![part], until).await?,
                _ => by_survivor.entry(survivor).or_default().push(part),
            }
        }
        self.give_up_for_lost(&recovery.lost).await?;
        let parts = by_survivor
            .into_iter()
            .map(|(survivor, groups)| self.have_go_on(survivor, &recovery.lost, groups, until));
        // All of them, whatever happens to one.
        futures_util::future::join_all(parts).await.into_iter().collect::<Result<(), ClusterError>>()?;
        recovery.done = true;
        Ok(recovery)
    }

    /// The newest record that this node or another survivor knows: one that is behind may not know of
    /// everybody who has to be asked.
    async fn newest_known_record(self: &Arc<Self>, lost: &[NodeId]) -> Result<Record, ClusterError> {
        let Some(known) = self.cluster()?.record() else {
            return Err(ClusterError::Unavailable(
                "this node does not know the cluster's members yet".to_owned(),
            ));
        };
        let me = self.config.node;
        let others = known.members.keys().filter(|node| **node != me && !lost.contains(node));
        let asked = others.map(|node| self.forward(*node, ClientRequest::Record.encode(), ANSWER));
        let mut newest = Record::clone(&known);
        for reply in futures_util::future::join_all(asked).await {
            if let Ok(Ok(ClientReply::Record(found))) = reply.map(ClientReply::decode)
                && found.epoch > newest.epoch
            {
                newest = *found;
            }
        }
        Ok(newest)
    }

    /// Has the record say that these are gone for ever.
    async fn give_up_for_lost(self: &Arc<Self>, lost: &[NodeId]) -> Result<(), ClusterError> {
        let until = Instant::now() + ELECTION;
        loop {
            let change = Change::Lost { nodes: lost.to_vec() };
            let request = ClientRequest::Change { epoch: 0, wait: false, change };
            match self.ask_itself(request).await {
                Ok(()) => return Ok(()),
                // Done twice it is done once, so what was not heard of is asked for again.
                Err(ClusterError::Invalid(why)) => return Err(ClusterError::Invalid(why)),
                Err(error) if Instant::now() > until || *self.stop.borrow() => return Err(error),
                Err(_) => tokio::time::sleep(LOOK * 5).await,
            }
        }
    }

    async fn have_go_on(
        self: &Arc<Self>,
        survivor: NodeId,
        lost: &[NodeId],
        groups: Vec<(u32, u64, MembershipId)>,
        until: Instant,
    ) -> Result<(), ClusterError> {
        if survivor == self.config.node {
            return self.go_on(lost.to_vec(), groups).await;
        }
        let request = ClientRequest::GoOn { lost: lost.to_vec(), groups };
        let left = until.saturating_duration_since(Instant::now());
        match self.forward(survivor, request.encode(), left).await.map(ClientReply::decode) {
            Ok(Ok(ClientReply::Error(error))) | Err(error) => Err(error),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ClusterError::OutcomeUnknown(error.to_string())),
        }
    }

    /// As the best survivor of groups that have lost their quorum: goes on with them alone.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        lost: Vec<NodeId>,
        groups: Vec<(u32, u64, MembershipId)>,
    ) -> Result<(), ClusterError> {
        let me = self.config.node;
        let alive = self.ask_how_they_are(lost.iter().copied()).await;
        let alive: Vec<NodeId> =
            alive.into_iter().map(|status| status.node).filter(|node| lost.contains(node)).collect();
        if !alive.is_empty() {
            return Err(ClusterError::Invalid(format!(
                "node {} answers node {me}: it is not lost",
                list(&alive)
            )));
        }
        let mut started = Vec::new();
        // Nothing is given to this node or taken from it meanwhile, and it does not stop amid this.
        let hosting = self.hosting.lock().await;
        if *self.stop.borrow() {
            return Err(ClusterError::Unavailable("the node is stopping".to_owned()));
        }
        for (id, term, expected) in groups {
            let group = self.group(id)?;
            self.go_on_with(&group, term, expected).await?;
            started.push(group);
        }
        drop(hosting);
        let until = Instant::now() + ELECTION;
        for group in started {
            while !group.leads() {
                if Instant::now() > until || *self.stop.borrow() {
                    return Err(ClusterError::Unavailable(format!(
                        "group {} does not lead itself yet",
                        group.id
                    )));
                }
                tokio::time::sleep(LOOK).await;
            }
        }
        Ok(())
    }

    async fn go_on_with(
        self: &Arc<Self>,
        group: &Arc<Group>,
        term: u64,
        expected: MembershipId,
    ) -> Result<(), ClusterError> {
        let me = self.config.node;
        let (id, invalid) = (group.id, ClusterError::Invalid);
        group.running()?;
        let (voters, _) = group.members();
        if voters == [me.0] {
            // Done already, by one who was interrupted.
            return Ok(());
        }
        if group.is_in_touch(self.config.timing.election.1) {
            return Err(invalid(format!(
                "group {id} is in touch with a quorum on node {me}: it is not lost"
            )));
        }
        group.close().await;
        let appended = self.append_alone(group, term, expected).await;
        group.closing.send_replace(false);
        self.start(group);
        appended
    }

    /// With the group's Raft ended: the entry that makes this node the only member.
    async fn append_alone(
        &self,
        group: &Group,
        term: u64,
        expected: MembershipId,
    ) -> Result<(), ClusterError> {
        let (me, id) = (self.config.node, group.id);
        let storage = |error: std::io::Error| ClusterError::Storage(format!("group {id}: {error}"));
        let mut log = group.log.clone();
        let last = log.last().filter(|last| entry_id(*last) == expected);
        let Some(last) = last else {
            return Err(ClusterError::Conflict(format!("group {id} has other entries by now: look again")));
        };
        let voted = log.read_vote().await.map_err(storage)?;
        let known = term.max(last.leader_id.term).max(voted.map_or(0, |vote| vote.leader_id.term));
        let leader_id = LeaderId::new(known + TERM_LEAP, me.0);
        // First, and not as if it had been elected: a crash leaves one who votes for nobody of the past.
        log.save_vote(&Vote { leader_id, committed: false }).await.map_err(storage)?;
        let member = Member { addresses: self.config.addresses.clone() };
        let membership = Membership::new(vec![BTreeSet::from([me.0])], BTreeMap::from([(me.0, member)]))
            .map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let log_id = LogId::new(leader_id, last.index + 1);
        tracing::warn!(group = id, %log_id, "this node goes on with the group alone");
        let (flushed, is_flushed) = TypeConfig::oneshot();
        let entries = vec![Entry { log_id, payload: Payload::Membership(membership) }];
        log.append(entries, IOFlushed::signal(flushed)).await.map_err(storage)?;
        match is_flushed.await {
            Ok(durable) => durable.map_err(storage),
            Err(_) => Err(ClusterError::Storage(format!("group {id}: the WAL was closed"))),
        }
    }
}
