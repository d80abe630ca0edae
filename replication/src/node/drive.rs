//! Carries out what [`crate::reconcile`] decides: the task of whoever leads the meta group.
//!
//! Each round asks all members how they are, decides, and takes all the steps at once; each has its
//! group's leader change the group's members, wherever that is. A step that fails is decided upon
//! anew in the next round. While nothing is left to be done, rounds are rare: the record's change
//! begins the next one at once, and who has fallen silent shows without asking.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::Instant as _;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::Inner;
use super::load::Leaders;
use crate::client::{ClientReply, ClientRequest, GroupChange};
use crate::error::ClusterError;
use crate::message::{Host, encode_host, take_reply};
use crate::meta::{Change, MemberState, Record};
use crate::reconcile::{Step, View, is_reached, next_steps};
use crate::ring::META_GROUP;
use crate::runtime::watch;
use crate::status::NodeStatus;
use crate::transport::{Lane, NodeId};

/// Between two rounds while there is something to be done.
const BUSY: Duration = Duration::from_millis(100);
/// The most between two rounds that wait for something.
const LONGEST: Duration = Duration::from_millis(800);
/// Between two while there is nothing to be done.
const IDLE: Duration = Duration::from_secs(5);
/// How often one who might lead looks whether it does, and whether somebody is silent.
const LOOK: Duration = Duration::from_millis(250);
/// How long a member may take to say how it is.
pub(super) const ANSWER: Duration = Duration::from_millis(800);
/// How long a step may take: longer ones are gone on with in the next round.
const STEP: Duration = Duration::from_secs(8);

pub(super) async fn run(node: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    let mut drive = Drive::default();
    loop {
        let Some(strong) = node.upgrade() else { return };
        let round = drive.round(&strong);
        let wait = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            wait = round => wait,
        };
        let woken = async {
            strong.wake_driver.notified().await;
            // So that whoever changes the record again and again does not make a loop of it.
            tokio::time::sleep(BUSY / 10).await;
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = woken => drive.next = None,
            () = tokio::time::sleep(wait) => {}
        }
    }
}

#[derive(Default)]
struct Drive {
    /// When this node began to lead: who was silent before that is not known.
    led_since: Option<Instant>,
    /// When the next round is due.
    next: Option<Instant>,
    /// How long the last rounds waited that had nothing to do, but for others.
    waited: Duration,
    /// Who is to lead what, by what there is to do.
    leaders: Leaders,
}

impl Drive {
    /// Does what is to be done; how long to wait then.
    async fn round(&mut self, node: &Arc<Inner>) -> Duration {
        let Some(cluster) = node.cluster.get() else { return LOOK };
        let Some(meta) = cluster.group(META_GROUP) else { return LOOK };
        let Some(record) = cluster.record().filter(|_| meta.leads()) else {
            *self = Drive::default();
            node.progress.send_replace(None);
            return LOOK;
        };
        // A recovery that was interrupted after the meta group had gone on without them: nobody else takes them out
        // before it is asked for again, and they are not heard any more.
        let mut lost = node.given_up_for_certain().await;
        lost.retain(|node| record.members.contains_key(node));
        if !lost.is_empty() {
            let change = Change::Lost { nodes: lost.into_iter().collect() };
            node.take_step(&record, &View::default(), Step::Record(change)).await;
            return BUSY;
        }
        let now = Instant::now();
        let led_since = *self.led_since.get_or_insert(now);
        let silent = node.silent(&record, led_since);
        let is_silent = |(node, member): (&NodeId, &crate::meta::MemberRecord)| {
            let long = silent.get(node).is_some_and(|silent| *silent >= record.settings.replace_after);
            (member.state == MemberState::Active && long) || member.state == MemberState::Away
        };
        if self.next.is_some_and(|next| next > now) && !record.members.iter().any(is_silent) {
            return LOOK;
        }
        let view = node.look(&record, silent).await;
        let steps = next_steps(&record, &view);
        let reached = is_reached(&record, &view);
        let leaders = match reached && steps.is_empty() && node.config.balance_leaders {
            true => self.leaders.decide(&record, &view),
            false => None,
        };
        let seen = Arc::new((Record::clone(&record), view));
        let view = &seen.1;
        node.progress.send_replace(Some(Arc::clone(&seen)));
        if reached && steps.is_empty() {
            if let Some(change) = leaders {
                node.take_step(&record, view, Step::Record(change)).await;
            }
            self.next = Some(Instant::now() + IDLE);
            return LOOK;
        }
        self.next = None;
        if steps.is_empty() {
            // Something else has to happen first: a copy is under way, or somebody is down.
            self.waited = (self.waited * 2).clamp(BUSY, LONGEST);
            return self.waited;
        }
        self.waited = Duration::ZERO;
        let mut under_way: FuturesUnordered<_> =
            steps.into_iter().map(|step| node.take_step(&record, view, step)).collect();
        while under_way.next().await.is_some() {}
        BUSY
    }
}

impl Inner {
    /// How long members have not been heard of by this node, the leader of group 0.
    fn silent(&self, record: &Record, led_since: Instant) -> BTreeMap<NodeId, Duration> {
        let Some(raft) = self.cluster.get().and_then(|cluster| cluster.group(META_GROUP)?.raft()) else {
            return BTreeMap::new();
        };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        let since = |node: &NodeId| {
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(&node.0)?.as_ref());
            let silent = heard.map_or(Duration::MAX, |at| at.elapsed());
            silent.min(led_since.elapsed())
        };
        let others = record.members.keys().filter(|node| **node != self.config.node);
        others.map(|node| (*node, since(node))).collect()
    }

    /// Asks all members how they are.
    async fn look(self: &Arc<Self>, record: &Record, silent: BTreeMap<NodeId, Duration>) -> View {
        let statuses = self.ask_how_they_are(record.members.keys().copied()).await;
        let mut view = View::of(&statuses, self.config.timing.election.1 * 4);
        view.silent = silent;
        view
    }

    /// How this node is, and those of these that answer.
    pub(super) async fn ask_how_they_are(&self, nodes: impl Iterator<Item = NodeId>) -> Vec<NodeStatus> {
        let me = self.config.node;
        let asked = nodes.filter(|node| *node != me).map(|node| async move {
            let body = ClientRequest::Status.encode();
            match self.forward(node, body, ANSWER).await.map(ClientReply::decode) {
                Ok(Ok(ClientReply::Status(status))) if status.node == node => Some(*status),
                _ => None,
            }
        });
        let answers: Vec<Option<NodeStatus>> = futures_util::future::join_all(asked).await;
        let mut statuses = vec![self.status()];
        statuses.extend(answers.into_iter().flatten());
        // Of another cluster, or of none: its id was given to it anew.
        let cluster = self.cluster.get().map_or(0, |cluster| cluster.id);
        statuses.retain(|status| status.cluster == cluster);
        statuses
    }

    /// `view` has who was found to lead.
    async fn take_step(self: &Arc<Self>, record: &Record, view: &View, step: Step) {
        tracing::debug!(?step, "a step");
        let described = format!("{step:?}");
        let leader = |group: u32| view.groups.get(&group).map(|observed| observed.leader);
        let taken = match step {
            Step::Begin { group, members } => self.begin_group(record, group, members).await,
            Step::Change { group, based_on, change } => {
                let request = ClientRequest::ChangeGroup { group, based_on, change };
                self.ask_found(leader(group), request).await
            }
            Step::Lead { group, to } => {
                self.ask_found(leader(group), ClientRequest::TransferLeader { group, to }).await
            }
            Step::Record(change) => self.change_record(record.epoch, &change).await.map(drop),
        };
        if let Err(error) = taken {
            tracing::debug!(step = described, %error, "a step was not taken");
        }
    }

    /// Asks who was found to lead. This node's own replica may know better, or, after a loss of quorum, be of a group that
    /// went on without it, and follow one that leads no more for ever.
    async fn ask_found(
        self: &Arc<Self>,
        leader: Option<NodeId>,
        request: ClientRequest,
    ) -> Result<(), ClusterError> {
        let Some(leader) = leader.filter(|leader| *leader != self.config.node) else {
            return self.ask_itself(request).await;
        };
        match ClientReply::decode(self.forward(leader, request.encode(), STEP).await?) {
            Ok(ClientReply::Error(error)) => Err(error),
            Ok(_) => Ok(()),
            Err(error) => Err(ClusterError::OutcomeUnknown(error.to_string())),
        }
    }

    /// As if a client had asked; passed on to the group's leader.
    pub(super) async fn ask_itself(self: &Arc<Self>, request: ClientRequest) -> Result<(), ClusterError> {
        let reply = tokio::time::timeout(STEP, self.served(request)).await;
        match reply.map(ClientReply::decode) {
            Ok(Ok(ClientReply::Error(error))) => Err(error),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(ClusterError::OutcomeUnknown(error.to_string())),
            Err(_) => Err(ClusterError::OutcomeUnknown("it takes long".to_owned())),
        }
    }

    async fn begin_group(
        self: &Arc<Self>,
        record: &Record,
        group: u32,
        members: Vec<NodeId>,
    ) -> Result<(), ClusterError> {
        let address = |node: &NodeId| record.members.get(node).map(|member| member.addresses.clone());
        let all: Vec<_> = members.iter().filter_map(|node| Some((*node, address(node)?))).collect();
        let given = futures_util::future::join_all(
            members.iter().map(|node| async { (*node, self.give(*node, group, 0, false).await) }),
        )
        .await;
        let mut failure = ClusterError::Unavailable(format!("nobody has group {group}"));
        // Which of them it is that begins does not matter, nor if several do.
        for (node, given) in given {
            if let Err(error) = given {
                failure = error;
                continue;
            }
            let change = GroupChange::Begin { members: all.clone() };
            let request = ClientRequest::ChangeGroup { group, based_on: Default::default(), change };
            let begun = match node == self.config.node {
                true => self.ask_itself(request).await,
                false => self.forward(node, request.encode(), STEP).await.and_then(|reply| {
                    match ClientReply::decode(reply) {
                        Ok(ClientReply::Error(error)) => Err(error),
                        Ok(_) => Ok(()),
                        Err(error) => Err(ClusterError::OutcomeUnknown(error.to_string())),
                    }
                }),
            };
            match begun {
                Ok(()) => return Ok(()),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    /// Gives a node a group; see [`super::hosting`].
    pub(super) async fn give(
        self: &Arc<Self>,
        node: NodeId,
        group: u32,
        position: u64,
        anew: bool,
    ) -> Result<(), ClusterError> {
        let failed = |why: String| ClusterError::Unavailable(format!("node {node} and group {group}: {why}"));
        if node == self.config.node {
            return self.host(group, position, anew).await.map_err(failed);
        }
        let cluster = self.cluster()?.number();
        let given_up = self.given_up_for_certain().await.into_iter().collect();
        let body = encode_host(cluster, group, &Host { position, anew, given_up });
        let reply = self.transport.request(node, Lane::Control, body, STEP).await;
        let reply = reply.map_err(|error| failed(error.to_string()))?;
        take_reply(reply).map(drop).map_err(|error| failed(error.to_string()))
    }

    /// As leader of a group: changes its members. Whoever is new is given the group first.
    pub(super) async fn change_group(
        self: &Arc<Self>,
        group: u32,
        based_on: crate::status::MembershipId,
        change: GroupChange,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        let group = self.group(group)?;
        if let GroupChange::Begin { members } = change {
            return group.begin(members).await;
        }
        if !group.leads() {
            return Err(group.not_leader(group.leader()));
        }
        let mut change = change;
        if let GroupChange::Learners { nodes } = &mut change {
            let (committed, members) = group.committed_members();
            // Whoever is to be added is out as of the newest membership, and that is committed: otherwise
            // what is asked for was decided upon something else.
            if committed != based_on.position {
                return Err(ClusterError::Unavailable(format!(
                    "the membership of group {} is another by now",
                    group.id
                )));
            }
            // Who cannot take it does not keep the others from it.
            let given = nodes.iter().map(|(node, addresses)| {
                self.set_addresses(*node, addresses.clone());
                self.give(*node, group.id, committed, !members.contains(node))
            });
            let mut given = futures_util::future::join_all(given).await.into_iter();
            let mut failure = None;
            nodes.retain(|_| match given.next() {
                Some(Err(error)) => {
                    failure = Some(error);
                    false
                }
                _ => true,
            });
            if let (true, Some(error)) = (nodes.is_empty(), failure) {
                return Err(error);
            }
            if nodes.iter().all(|(node, _)| members.contains(node)) {
                return Ok(());
            }
        }
        group.change(based_on, change, deadline).await
    }

    /// Who belongs to a group, as its leader says; `None` if nobody says.
    pub(super) async fn ask_membership(self: &Arc<Self>, group: u32) -> Option<(u64, Vec<NodeId>)> {
        let mut leader = self.group(group).ok().and_then(|group| group.leader());
        let mut others = self.cluster.get()?.replicas_of(group).into_iter();
        for _ in 0..4 {
            let to = leader.take().filter(|leader| *leader != self.config.node).or_else(|| others.next())?;
            if to == self.config.node {
                continue;
            }
            let body = ClientRequest::Membership { group }.encode();
            match self.forward(to, body, ANSWER).await.map(ClientReply::decode) {
                Ok(Ok(ClientReply::Membership { position, nodes })) => return Some((position, nodes)),
                Ok(Ok(ClientReply::Error(ClusterError::NotLeader { leader: named, .. }))) => leader = named,
                _ => {}
            }
        }
        None
    }

    /// As leader of a group: who belongs to it, for certain.
    pub(super) async fn membership(&self, group: u32) -> Result<ClientReply, ClusterError> {
        let group = self.group(group)?;
        if !group.leads() {
            return Err(group.not_leader(group.leader()));
        }
        // Whoever still has a quorum knows all that is committed.
        group.read_index().await?;
        let (position, nodes) = group.committed_members();
        Ok(ClientReply::Membership { position, nodes })
    }
}

/// Whether a change is one that only the cluster itself makes.
pub(super) fn is_internal(request: &ClientRequest) -> bool {
    match request {
        ClientRequest::Change { change, .. } => !change.is_for_operators(),
        ClientRequest::GoOn { .. } | ClientRequest::Hold { .. } => true,
        _ => false,
    }
}
