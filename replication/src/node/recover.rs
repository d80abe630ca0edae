//! Carries out what [`crate::recovery`] decides.
//!
//! Any node can be asked. It asks all members how they are, and decides; then, if it is to be done:
//!
//! ```text
//! hold       all survivors: no other recovery; the lost are not heard any more     forgotten if nothing comes of it
//! look again and decide: nothing that the lost could have done meanwhile is missed
//! go on      the best survivor of the meta group, if that has lost its quorum
//! record     the lost are taken out
//! keep       all survivors: the lost are given up, in a file
//! go on      the best survivor of each partition
//! release
//! ```
//!
//! Interrupted anywhere, it can be asked again, with the same members named. Once the meta group has gone on without
//! the lost its leader takes them out by itself, and has whoever comes back to it give them up, too, before he gets
//! anything of the new history: whoever asks again may come late, or never.
//!
//! Why *all* survivors keep before any partition goes on: a survivor that did not know could still vote and
//! acknowledge together with lost members that have come back, and what these would make together is a majority
//! of the old voters. What a client would be told by them would be lost.
//!
//! The survivor checks for itself what only it can know: that nobody who was given up answers *it*, that it
//! is not in touch with a quorum, that its last entry is still the one that was judged by, and that the recovery
//! is still the one that it holds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use openraft::storage::{IOFlushed, RaftLogReader, RaftLogStorage};
use openraft::type_config::TypeConfigExt;
use openraft::vote::RaftLeaderId;
use tokio::time::Instant;

use super::drive::ANSWER;
use super::{Cluster, Inner, random_u128};
use crate::client::{ClientReply, ClientRequest, HoldStage};
use crate::error::ClusterError;
use crate::fence::HOLD;
use crate::given_up::{GivenUp, Held};
use crate::group::{Group, entry_id};
use crate::message::Host;
use crate::meta::{Change, Record};
use crate::recovery::{Recovery, TERM_LEAP, plan};
use crate::ring::META_GROUP;
use crate::runtime::watch;
use crate::status::{MembershipId, NodeStatus};
use crate::transport::NodeId;
use crate::types::{Entry, LeaderId, LogId, Member, Membership, Payload, TypeConfig, Vote};

/// How long a group may take to elect its only voter, or the meta group to have a leader.
const ELECTION: Duration = Duration::from_secs(20);
/// Within this a survivor usually has gone on with its groups; after it, it is asked again.
const GOES_ON: Duration = Duration::from_secs(5);
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
        let (record, recovery) = self.plan_recovery(&lost).await?;
        if !accept_data_loss {
            return Ok(recovery);
        }
        let operation = random_u128(self.config.seed.map(|seed| seed ^ self.fresh_number()));
        let survivors: Vec<NodeId> =
            record.members.keys().copied().filter(|node| !lost.contains(node)).collect();
        // One first: of two operators at once one is refused there and holds nothing, while if all were told at once
        // each could be refused by whoever has heard the other first, and again and again if both ask again.
        let (first, others) = survivors.split_at(survivors.len().min(1));
        let begun = match self.tell(first, operation, HoldStage::Begin, &lost).await {
            Ok(()) => self.tell(others, operation, HoldStage::Begin, &lost).await,
            refused => refused,
        };
        let recovered = match begun {
            Ok(()) => {
                let renewed = async {
                    loop {
                        tokio::time::sleep(HOLD / 4).await;
                        // Whoever does not hear it refuses to go on when it comes to that.
                        let _ = self.tell(&survivors, operation, HoldStage::Begin, &lost).await;
                    }
                };
                tokio::select! {
                    biased;
                    recovered = self.recover_held(operation, &survivors, &lost, until) => recovered,
                    () = renewed => unreachable!("it is renewed as long as the recovery takes"),
                }
            }
            Err(error) => Err(error),
        };
        // Whoever does not hear it forgets it after a while.
        let _ = self.tell(&survivors, operation, HoldStage::End, &lost).await;
        recovered
    }

    async fn plan_recovery(self: &Arc<Self>, lost: &[NodeId]) -> Result<(Record, Recovery), ClusterError> {
        let record = self.newest_known_record(lost).await?;
        let asked: BTreeSet<NodeId> = record.members.keys().copied().chain(lost.iter().copied()).collect();
        let answers = self.ask_how_they_are(asked.into_iter()).await;
        let answers: BTreeMap<NodeId, NodeStatus> =
            answers.into_iter().map(|status| (status.node, status)).collect();
        let named = lost.iter().copied().collect();
        let recovery = plan(&record, &answers, &named).map_err(ClusterError::Invalid)?;
        Ok((record, recovery))
    }

    /// With all survivors holding: see the [module](self).
    async fn recover_held(
        self: &Arc<Self>,
        operation: u128,
        survivors: &[NodeId],
        lost: &[NodeId],
        until: Instant,
    ) -> Result<Recovery, ClusterError> {
        let (record, mut recovery) = self.plan_recovery(lost).await?;
        if record.members.keys().any(|node| !lost.contains(node) && !survivors.contains(node)) {
            return Err(ClusterError::Conflict("the members have changed meanwhile: look again".to_owned()));
        }
        tracing::warn!(?recovery, "the quorum of groups is given up");
        let mut by_survivor: BTreeMap<NodeId, Vec<(u32, u64, MembershipId)>> = BTreeMap::new();
        for group in &recovery.groups {
            let Some(survivor) = group.survivor else { continue };
            let part = (group.group, group.term, group.last);
            match group.group {
                META_GROUP => {
                    self.have_go_on(survivor, operation, &recovery.lost, vec![part], until).await?;
                }
                _ => by_survivor.entry(survivor).or_default().push(part),
            }
        }
        self.give_up_for_lost(&recovery.lost).await?;
        self.tell(survivors, operation, HoldStage::Keep, &recovery.lost).await?;
        let parts = by_survivor
            .into_iter()
            .map(|(survivor, groups)| self.have_go_on(survivor, operation, &recovery.lost, groups, until));
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
        operation: u128,
        lost: &[NodeId],
        groups: Vec<(u32, u64, MembershipId)>,
        until: Instant,
    ) -> Result<(), ClusterError> {
        if survivor == self.config.node {
            return self.go_on(operation, lost.to_vec(), groups).await;
        }
        let request = ClientRequest::GoOn { operation, lost: lost.to_vec(), groups }.encode();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let answer = self.forward(survivor, request.clone(), left.min(GOES_ON)).await;
            match answer.map(ClientReply::decode) {
                // Done twice it is done once. All others are refused as long as this waits, so it does not wait for
                // an answer that was lost.
                Err(ClusterError::OutcomeUnknown(_)) if left > GOES_ON && !*self.stop.borrow() => {
                    tokio::time::sleep(LOOK).await;
                }
                Ok(Ok(ClientReply::Error(error))) | Err(error) => return Err(error),
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(ClusterError::OutcomeUnknown(error.to_string())),
            }
        }
    }

    /// As the best survivor of groups that have lost their quorum: goes on with them alone.
    pub(super) async fn go_on(
        self: &Arc<Self>,
        operation: u128,
        lost: Vec<NodeId>,
        groups: Vec<(u32, u64, MembershipId)>,
    ) -> Result<(), ClusterError> {
        let me = self.config.node;
        let alive = self.ask_how_they_are(lost.iter().copied()).await;
        // Those that are given up already are, whether they have come back or not.
        let is_lost = |node: &NodeId| lost.contains(node) && !self.fence.is_removed(*node);
        let alive: Vec<NodeId> = alive.into_iter().map(|status| status.node).filter(is_lost).collect();
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
        let mut failure = None;
        for (id, term, expected) in groups {
            if !self.fence.holds(operation) {
                return Err(ClusterError::Conflict(
                    "the recovery took too long, or another took its place".to_owned(),
                ));
            }
            let group = self.group(id)?;
            match self.go_on_with(&group, term, expected, &lost).await {
                Ok(true) => started.push(group),
                Ok(false) => {}
                // Nothing goes on before the meta group does, which says who is lost.
                Err(error) if id == META_GROUP => return Err(error),
                // The others are not the worse for that.
                Err(error) => failure = failure.or(Some(error)),
            }
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
        failure.map_or(Ok(()), Err)
    }

    /// Whether this node has the group alone now.
    async fn go_on_with(
        self: &Arc<Self>,
        group: &Arc<Group>,
        term: u64,
        expected: MembershipId,
        lost: &[NodeId],
    ) -> Result<bool, ClusterError> {
        let me = self.config.node;
        let (id, invalid) = (group.id, ClusterError::Invalid);
        group.running()?;
        let (voters, _) = group.members();
        if voters == [me.0] {
            // Done already, by one who was interrupted, perhaps before the end.
            let enough = group.log.is_enough().await;
            enough.map_err(|error| ClusterError::Storage(format!("group {id}: {error}")))?;
            return Ok(true);
        }
        if !lost.iter().any(|node| voters.contains(&node.0)) {
            // And others have joined it since.
            return Ok(false);
        }
        if group.is_in_touch(self.config.timing.election.1) {
            return Err(invalid(format!(
                "group {id} is in touch with a quorum on node {me}: it is not lost"
            )));
        }
        group.close().await;
        let appended = self.append_alone(group, term, expected, lost).await;
        group.closing.send_replace(false);
        self.start(group);
        appended.map(|()| true)
    }

    /// With the group's Raft ended: the entry that makes this node the only member.
    async fn append_alone(
        &self,
        group: &Group,
        term: u64,
        expected: MembershipId,
        lost: &[NodeId],
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
        if id == META_GROUP {
            // No record says so yet, and from the next entry on they must not be heard, whatever comes between.
            self.write_given_up(|file| file.add(leader_id.term, lost.iter().copied())).await?;
            self.fence.is_about_to_give_up(lost.iter().copied().collect());
        }
        let appended = self.append_membership(group, leader_id, last.index + 1).await;
        if id == META_GROUP {
            if appended.is_ok() {
                self.give_up(leader_id.term, lost.iter().copied()).await?;
            } else if log.last().is_some_and(|now| now == last) {
                // Nothing came of it.
                self.write_given_up(|file| file.take_back(leader_id.term)).await?;
                self.fence.is_about_to_give_up(BTreeSet::new());
            }
        }
        appended?;
        // It may have been one that was getting its log again: there is nobody left to get the rest from.
        log.is_enough().await.map_err(storage)
    }

    /// The entry that makes this node the only member of a group, in a leadership of its own.
    async fn append_membership(
        &self,
        group: &Group,
        leader_id: LeaderId,
        index: u64,
    ) -> Result<(), ClusterError> {
        let (me, id) = (self.config.node, group.id);
        let storage = |error: std::io::Error| ClusterError::Storage(format!("group {id}: {error}"));
        let mut log = group.log.clone();
        // First, and not as if it had been elected: a crash leaves one who votes for nobody of the past.
        log.save_vote(&Vote { leader_id, committed: false }).await.map_err(storage)?;
        let member = Member { addresses: self.config.addresses.clone() };
        let membership = Membership::new(vec![BTreeSet::from([me.0])], BTreeMap::from([(me.0, member)]))
            .map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let log_id = LogId::new(leader_id, index);
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

impl Inner {
    /// Tells all survivors, this node among them, how far a recovery is.
    async fn tell(
        self: &Arc<Self>,
        survivors: &[NodeId],
        operation: u128,
        stage: HoldStage,
        lost: &[NodeId],
    ) -> Result<(), ClusterError> {
        let told = survivors.iter().map(|node| async move {
            if *node == self.config.node {
                return self.hold(operation, stage, lost.to_vec()).await;
            }
            let request = ClientRequest::Hold { operation, stage, lost: lost.to_vec() };
            match self.forward(*node, request.encode(), ANSWER * 4).await.map(ClientReply::decode) {
                Ok(Ok(ClientReply::Error(error))) => Err(error),
                Ok(Ok(_)) => Ok(()),
                Ok(Err(error)) => Err(ClusterError::Unavailable(format!("node {node}: {error}"))),
                Err(error) => Err(ClusterError::Unavailable(format!(
                    "node {node} does not take part in the recovery: {error}"
                ))),
            }
        });
        futures_util::future::join_all(told).await.into_iter().collect()
    }

    /// A recovery is under way; see [`crate::fence`].
    pub(super) async fn hold(
        self: &Arc<Self>,
        operation: u128,
        stage: HoldStage,
        lost: Vec<NodeId>,
    ) -> Result<(), ClusterError> {
        let me = self.config.node;
        if lost.contains(&me) {
            return Err(ClusterError::Invalid(format!("node {me} answers: it is not lost")));
        }
        match stage {
            HoldStage::Begin => {
                let held: BTreeSet<NodeId> = lost.into_iter().collect();
                self.fence.hold(operation, held.clone()).map_err(ClusterError::Conflict)?;
                let until_ms = self.config.clock.now_ms() + HOLD.as_millis() as u64;
                let held = Held { operation, lost: held, until_ms };
                self.write_given_up(|file| file.held = Some(held)).await
            }
            HoldStage::Keep => {
                if !self.fence.holds(operation) {
                    let why = "the recovery took too long, or another took its place";
                    return Err(ClusterError::Conflict(why.to_owned()));
                }
                self.give_up(0, lost).await
            }
            HoldStage::End => {
                if !self.fence.release(operation) {
                    return Ok(());
                }
                self.write_given_up(|file| {
                    file.held.take_if(|held| held.operation == operation);
                })
                .await
            }
        }
    }

    /// Gives up these for ever, as of a term of the meta group's log; durable on return.
    async fn give_up(&self, term: u64, lost: impl IntoIterator<Item = NodeId>) -> Result<(), ClusterError> {
        let mut nodes = self.fence.given_up();
        let lost: Vec<NodeId> = lost.into_iter().collect();
        nodes.extend(lost.iter().copied());
        self.write_given_up(|file| file.add(term, lost)).await?;
        self.fence.set_given_up(nodes);
        Ok(())
    }

    async fn write_given_up(&self, change: impl FnOnce(&mut GivenUp)) -> Result<(), ClusterError> {
        let mut known = self.given_up.lock().await;
        let mut file = known.clone();
        change(&mut file);
        if file == *known {
            return Ok(());
        }
        let (disk, directory) = (Arc::clone(&self.config.disk), self.config.directory.clone());
        let written = file.clone();
        match self.blocking.run(move || written.write(&*disk, &directory)).await {
            Ok(Ok(())) => {
                *known = file;
                Ok(())
            }
            Ok(Err(error)) => Err(ClusterError::Storage(error.to_string())),
            Err(error) => Err(ClusterError::Storage(error.to_string())),
        }
    }

    /// Those that are given up whatever happens to this node: not those without which it is only about to go on.
    pub(super) async fn given_up_for_certain(&self) -> BTreeSet<NodeId> {
        let last = self.group(META_GROUP).ok().and_then(|group| group.log.last());
        self.given_up.lock().await.as_of(last.map_or(0, |last| last.leader_id.term))
    }

    /// This node is given a group by a peer: whom that has given up this node does not hear either, before it is told
    /// anything of what goes on without them.
    pub(super) async fn host_for_peer(self: &Arc<Self>, group: u32, host: Host) -> Result<(), String> {
        let Host { position, anew, given_up } = host;
        if given_up.contains(&self.config.node) {
            return Err(format!("node {} is given up by who gives it a group", self.config.node));
        }
        let known = self.fence.given_up();
        if given_up.iter().any(|node| !known.contains(node)) {
            self.give_up(0, given_up).await.map_err(|error| error.to_string())?;
        }
        self.host(group, position, anew).await
    }

    /// Those that were given up before the node was started, or are about to be.
    pub(super) async fn load_given_up(&self, cluster: &Cluster) -> dogsled_storage::Result<()> {
        let (disk, directory) = (Arc::clone(&self.config.disk), self.config.directory.clone());
        let read = self.blocking.run(move || GivenUp::read(&*disk, &directory)).await;
        let mut found =
            read.map_err(|error| dogsled_storage::Error::io("reading who was given up", error))??;
        let meta = cluster.group(META_GROUP);
        let term = meta.as_ref().and_then(|group| group.log.last()).map_or(0, |last| last.leader_id.term);
        // Others were to be given up by one who died before it went on without them, and has not: nor are they later, when the
        // log comes to such a term by other means. Where the log itself has to come from others that is not known.
        if meta.is_some_and(|group| group.log.may_vote()) && found.nodes.values().any(|from| *from > term) {
            found.nodes.retain(|_, from| *from <= term);
            let (disk, directory) = (Arc::clone(&self.config.disk), self.config.directory.clone());
            let without = found.clone();
            let written = self.blocking.run(move || without.write(&*disk, &directory)).await;
            written.map_err(|error| dogsled_storage::Error::io("writing who was given up", error))??;
        }
        self.fence.set_given_up(found.as_of(term));
        if let Some(Held { operation, lost, until_ms }) = found.held.clone() {
            let left = Duration::from_millis(until_ms.saturating_sub(self.config.clock.now_ms()));
            self.fence.hold_still(operation, lost, left);
        }
        *self.given_up.lock().await = found;
        Ok(())
    }

    /// A number that differs from the one before.
    fn fresh_number(&self) -> u64 {
        self.changes.send_modify(|changes| *changes += 1);
        *self.changes.borrow()
    }
}

/// Between two attempts to write that the node was taken out.
const AGAIN: Duration = Duration::from_secs(1);

/// Writes down that the node was taken out, when it is told so: started again, it may hear of nobody.
pub(super) async fn write_down(node: std::sync::Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let Some(mut out) = node.upgrade().map(|node| node.fence.out()) else { return };
    tokio::select! {
        biased;
        _ = stop.wait_for(|stop| *stop) => return,
        _ = out.wait_for(|out| *out) => {}
    }
    loop {
        let Some(strong) = node.upgrade() else { return };
        let mut file = *strong.file.lock();
        if file.taken_out {
            return;
        }
        file.taken_out = true;
        let (disk, directory) = (Arc::clone(&strong.config.disk), strong.config.directory.clone());
        match strong.blocking.run(move || file.write(&*disk, &directory)).await {
            Ok(Ok(())) => {
                *strong.file.lock() = file;
                return;
            }
            failed => tracing::error!(?failed, "that this node was taken out could not be written down"),
        }
        drop(strong);
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(AGAIN) => {}
        }
    }
}
