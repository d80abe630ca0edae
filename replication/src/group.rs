//! One Raft group on this node: its log, its replica, and the openraft instance over both.
//!
//! How it is opened, kept running and closed is in [`life`].
//!
//! # Proposals
//!
//! A command is stamped with the leader's time and handed to openraft, which appends all that have
//! gathered as one. Whoever proposes is told the outcome, or that it is not known: once handed over,
//! a command may be in the log although leadership was lost, and the error says so.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use dogsled_storage::group::GroupReply;
use dogsled_storage::replica::ReplicaOptions;
use dogsled_storage::wal::StreamId;
use dogsled_storage::{Clock, Error};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, ForwardReason, ForwardToLeader, LinearizableReadError, RaftError};
use openraft::raft::Precondition;
use openraft::vote::RaftLeaderId;
use openraft::{ChangeMembers, Instant as _, ReadPolicy, ServerState};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::alone::Alone;
use crate::blocking::Blocking;
use crate::client::GroupChange;
use crate::error::ClusterError;
use crate::log_store::{LogOptions, LogStore, SharedLog};
use crate::metrics::GroupMetrics;
use crate::network::Network;
use crate::proposals::Proposals;
use crate::read_index::{ReadRounds, Round};
use crate::runtime::watch;
use crate::stamp::stamp;
use crate::state_machine::{Machine, ReplicaSlot};
use crate::status::{FollowerStatus, GroupStatus, MembershipId, Role};
use crate::transport::NodeId;
use crate::types::{LeaderId, LogId, Member, Proposal, TypeConfig, position};

mod life;

pub(crate) type Raft = openraft::Raft<TypeConfig, Machine>;

/// What a group is opened with.
pub(crate) struct GroupOptions {
    pub(crate) replica: ReplicaOptions,
    pub(crate) log: LogOptions,
    pub(crate) raft: Arc<openraft::Config>,
    /// Makes the network of the group over its replica.
    pub(crate) network: Box<dyn FnOnce(Arc<ReplicaSlot>) -> Network + Send>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) blocking: Blocking,
    pub(crate) max_command_bytes: usize,
}

/// See the [module](self).
pub(crate) struct Group {
    pub(crate) id: u32,
    pub(crate) slot: Arc<ReplicaSlot>,
    pub(crate) log: LogStore,
    pub(crate) metrics: Arc<GroupMetrics>,
    shared_log: Arc<SharedLog>,
    config: Arc<openraft::Config>,
    network: Network,
    max_command_bytes: usize,
    raft: ArcSwapOption<Raft>,
    failure: Mutex<Option<String>>,
    /// The term in which this node was last seen to lead, and since when.
    led: Mutex<Option<(u64, tokio::time::Instant)>>,
    /// What its log has to reach again, and why it does not vote before; see [`crate::acknowledged`].
    lacking: Mutex<Option<(u64, String)>>,
    /// A leader has been heard of while what is applied here did not reach the log's first entry.
    may_begin_anew: AtomicBool,
    /// Has the supervisor not wait any longer.
    again: Notify,
    proposals: Proposals,
    rounds: ReadRounds,
    /// For reads while another node leads.
    pub(crate) follower_rounds: ReadRounds,
    /// A position that this replica was told to include, and when it was asked for: everything that was
    /// acknowledged before is in it.
    confirmed: Mutex<Option<(tokio::time::Instant, u64)>>,
    alone: Alone,
    /// Ends the group on this node, and all who follow it.
    pub(crate) closing: watch::Sender<bool>,
    /// What supervises it.
    pub(crate) task: Mutex<Option<JoinHandle<()>>>,
}

impl Group {
    /// Opens what is on disk; may take long. `or_down`: if only the replica's own files cannot be read, the group is
    /// down, and tried again by its [supervisor](Group::supervise).
    pub(crate) fn open(
        id: u32,
        shared_log: Arc<SharedLog>,
        options: GroupOptions,
        or_down: bool,
    ) -> io::Result<Group> {
        let wal = Arc::clone(&shared_log.wal);
        let metrics = shared_log.metrics.group(id);
        let slot =
            ReplicaSlot::empty(options.replica, wal, options.blocking, options.clock, Arc::clone(&metrics));
        let failure = match slot.open() {
            Ok(()) => None,
            Err(error @ (Error::Corrupt(_) | Error::Io { .. })) if or_down => {
                tracing::error!(group = id, %error, "a replica cannot be opened; the node's others serve");
                Some(life::unopened(id, &error))
            }
            Err(error) => return Err(crate::durability::to_io(error)),
        };
        let slot = Arc::new(slot);
        let network = (options.network)(Arc::clone(&slot));
        let log = LogStore::open(Arc::clone(&shared_log), StreamId(id), options.log)?;
        Ok(Group {
            id,
            slot,
            log,
            shared_log,
            config: options.raft,
            network,
            max_command_bytes: options.max_command_bytes,
            raft: ArcSwapOption::empty(),
            failure: Mutex::new(failure),
            led: Mutex::new(None),
            lacking: Mutex::new(None),
            may_begin_anew: AtomicBool::new(false),
            again: Notify::new(),
            proposals: Proposals::new(Arc::clone(&metrics)),
            metrics,
            rounds: ReadRounds::default(),
            follower_rounds: ReadRounds::default(),
            confirmed: Mutex::new(None),
            alone: Alone::default(),
            closing: watch::Sender::new(false),
            task: Mutex::new(None),
        })
    }

    /// The running openraft, if it runs.
    pub(crate) fn raft(&self) -> Option<Arc<Raft>> {
        self.raft.load_full()
    }

    /// Whether nothing is known that would keep it from being opened.
    pub(crate) fn has_not_failed(&self) -> bool {
        self.failure.lock().is_none()
    }

    fn down(&self) -> ClusterError {
        match &*self.failure.lock() {
            Some(failure) => ClusterError::Storage(format!("group {}: {failure}", self.id)),
            None => ClusterError::Unavailable(format!("group {} is being opened", self.id)),
        }
    }

    pub(crate) fn running(&self) -> Result<Arc<Raft>, ClusterError> {
        self.raft().ok_or_else(|| self.down())
    }

    /// Who leads, as far as is known here.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        let raft = self.raft()?;
        raft.server_metrics().borrow_watched().current_leader.map(NodeId)
    }

    /// Waits until the log has an entry here, for at most so long. Whether it has.
    pub(crate) async fn has_received(&self, last: Option<&LogId>, at_most: Duration) -> bool {
        let Some(raft) = self.raft() else { return false };
        let mut metrics = raft.data_metrics();
        let waiting = async {
            loop {
                if metrics.borrow_watched().last_log.as_ref() >= last {
                    return true;
                }
                if metrics.changed().await.is_err() {
                    return false;
                }
            }
        };
        tokio::time::timeout(at_most, waiting).await.unwrap_or(false)
    }

    /// Returns when the group is known to be led by another node than now, and than `asked`.
    pub(crate) async fn led_by_another(&self, asked: NodeId) {
        let Some(raft) = self.raft() else { return std::future::pending().await };
        let mut metrics = raft.server_metrics();
        let before = metrics.borrow_watched().current_leader;
        loop {
            let now = metrics.borrow_watched().current_leader;
            if now.is_some() && now != before && now != Some(asked.0) {
                return;
            }
            if metrics.changed().await.is_err() {
                // The group is being opened again; that says nothing of who leads it.
                return std::future::pending().await;
            }
        }
    }

    /// Whether this node leads, as far as it knows.
    pub(crate) fn leads(&self) -> bool {
        self.term_led().is_some()
    }

    /// The term in which this node leads, as far as it knows.
    pub(crate) fn term_led(&self) -> Option<u64> {
        let raft = self.raft()?;
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let leads =
            metrics.state == ServerState::Leader && metrics.current_leader == Some(self.network.node.0);
        leads.then_some(metrics.vote.leader_id.term)
    }

    /// Whether this node has heard within `limit` from those who decide in the group: as follower from its
    /// leader, as leader from a majority. Otherwise it may be cut off and know nothing of it.
    pub(crate) fn is_in_touch(&self, limit: Duration) -> bool {
        if !self.leads() {
            return self.slot.age().is_some_and(|age| age <= limit);
        }
        let Some(raft) = self.raft() else { return false };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        // Who is a majority alone hears from nobody.
        let alone = metrics.membership_config.membership().voter_ids().eq([self.network.node.0]);
        alone
            || match metrics.last_quorum_acked {
                Some(heard) => heard.elapsed() <= limit,
                // It was elected by one; since when is known here only from the first look on.
                None => self.leads_since(metrics.current_term).elapsed() <= limit,
            }
    }

    /// When it was first seen here that this node leads in a term.
    fn leads_since(&self, term: u64) -> tokio::time::Instant {
        let mut led = self.led.lock();
        match *led {
            Some((known, since)) if known == term => since,
            _ => led.insert((term, tokio::time::Instant::now())).1,
        }
    }

    /// As leader: how long ago it last heard from a majority, if that is longer than `limit`. There may be
    /// another leader by now.
    pub(crate) fn out_of_touch_for(&self, limit: Duration) -> Option<Duration> {
        if self.is_in_touch(limit) {
            return None;
        }
        let raft = self.raft()?;
        let heard = raft.metrics().borrow_watched().last_quorum_acked;
        // Who has never heard from one leads since it was elected, which a majority took part in.
        heard.map(|heard| heard.elapsed())
    }

    /// The members and where to reach them, voters first.
    pub(crate) fn members(&self) -> (Vec<u64>, BTreeMap<u64, Member>) {
        let Some(raft) = self.raft() else { return Default::default() };
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let membership = metrics.membership_config.membership();
        let nodes = membership.nodes().map(|(node, member)| (*node, member.clone())).collect();
        (membership.voter_ids().collect(), nodes)
    }

    /// Whether this node leads, and keys have expired or locks are due.
    pub(crate) fn is_due(&self) -> bool {
        let Some(replica) = self.slot.replica() else { return false };
        let (keys, locks) = replica.engine().due();
        let first = keys.min(locks);
        // Most groups have nothing that is ever due, and are left alone.
        first != u64::MAX && self.term_led().is_some_and(|term| first <= self.slot.clock.stamp(term))
    }

    pub(crate) fn not_leader(&self, leader: Option<NodeId>) -> ClusterError {
        let (_, members) = self.members();
        let addresses =
            leader.and_then(|leader| members.get(&leader.0)).map(|member| member.addresses.clone());
        ClusterError::NotLeader { group: self.id, leader, addresses: addresses.unwrap_or_default() }
    }

    fn forward(&self, forward: &ForwardToLeader<TypeConfig>) -> ClusterError {
        match (&forward.reason, forward.leader_id) {
            (ForwardReason::LeaseExpired, _) => {
                ClusterError::Unavailable(format!("group {} has lost its quorum", self.id))
            }
            (_, Some(leader)) if leader == self.network.node.0 => {
                ClusterError::Unavailable(format!("leadership of group {} is changing", self.id))
            }
            (_, leader) => self.not_leader(leader.map(NodeId)),
        }
    }

    /// Has a command, encoded, carried out, if this node leads. The order of the first polls is the
    /// order in the log.
    pub(crate) async fn propose(
        &self,
        command: &[u8],
        deadline: Duration,
    ) -> Result<GroupReply, ClusterError> {
        if command.len() > self.max_command_bytes {
            return Err(ClusterError::Invalid(format!(
                "a command of {} bytes is over the limit of {}; split it",
                command.len(),
                self.max_command_bytes
            )));
        }
        let raft = self.running()?;
        let Some(term) = self.term_led() else {
            return Err(self.not_leader(self.leader()));
        };
        let stamped = stamp(command, self.slot.clock.stamp(term))
            .map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let receiver = self.proposals.push(&raft, Proposal(stamped.into()));
        let unknown = |why: &str| Err(ClusterError::OutcomeUnknown(format!("group {}: {why}", self.id)));
        match tokio::time::timeout(deadline, receiver).await {
            Err(_) => unknown("no quorum before the deadline"),
            Ok(Err(_)) => unknown("the group stopped"),
            Ok(Ok(Ok(response))) => match response.data {
                Some(reply) => Ok(reply),
                None => unknown("the entry was no command"),
            },
            Ok(Ok(Err(ClientWriteError::ForwardToLeader(forward)))) => Err(self.forward(&forward)),
            Ok(Ok(Err(ClientWriteError::LogEntryDiscarded(_)))) => unknown("leadership was lost"),
            Ok(Ok(Err(error))) => unknown(&error.to_string()),
        }
    }

    /// As leader: the position up to which a read must know. Shares rounds with all other reads.
    pub(crate) async fn read_index(self: &Arc<Self>) -> Round {
        let group = Arc::clone(self);
        self.rounds
            .join(move || {
                let group = Arc::clone(&group);
                async move { group.ask_quorum().await }
            })
            .await
    }

    /// Whether a read may be answered from what is applied, see [`alone`](crate::alone). Whoever relies on it has
    /// to see that the slot's generation is the same before this and after the read.
    pub(crate) fn is_alone(&self) -> bool {
        self.alone.is_certain() && self.leads()
    }

    /// To be called before a read asks, for [`Group::alone_since`].
    pub(crate) fn before_asking(&self) -> Option<u64> {
        self.alone.begin()
    }

    /// After a read has asked and waited until what it must know is applied: finds out whether the next need not.
    pub(crate) async fn alone_since(&self, begun: Option<u64>) {
        let (Some(begun), Some(raft)) = (begun, self.raft()) else { return };
        // Otherwise it is another node that may change the members, and this one would not know.
        if !self.leads() {
            return;
        }
        let me = self.network.node.0;
        // What most groups are not is seen without asking.
        let may_be = raft.metrics().borrow_watched().membership_config.membership().voter_ids().eq([me]);
        if !may_be || self.alone.is_certain() {
            return;
        }
        let alone = raft.with_raft_state(move |state| {
            let members = state.membership_state.effective();
            members.membership().get_joint_config().iter().all(|voters| voters.iter().eq([&me]))
        });
        // If openraft has ended there is nothing to know.
        if alone.await.is_ok_and(|alone| alone) && self.leads() {
            self.alone.conclude(begun);
        }
    }

    /// A leader that has a majority has said, to a question of `asked`, that a read must know `position`.
    pub(crate) fn confirm(&self, asked: tokio::time::Instant, position: u64) {
        let mut confirmed = self.confirmed.lock();
        if confirmed.is_none_or(|(before, _)| asked > before) {
            *confirmed = Some((asked, position));
        }
    }

    /// How long ago it was confirmed that this replica has everything that it has now, or less; `None` if
    /// never, or what was to be known is not applied yet.
    pub(crate) fn confirmed_age(&self) -> Option<Duration> {
        let (asked, position) = (*self.confirmed.lock())?;
        (self.slot.applied() >= position).then(|| asked.elapsed())
    }

    async fn ask_quorum(&self) -> Round {
        let raft = self.running()?;
        let confirmations = &self.network.confirmations;
        let asked = confirmations.now();
        match raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => {
                // Of the leadership in which it was given: that one's first entry is the least that it may be.
                let read = *linearizer.read_log_id();
                let metrics = raft.metrics();
                let until = confirmations.until_confirmed(
                    (self.network.node, *read.committed_leader_id(), asked),
                    |is_confirmed| is_confirmed(metrics.borrow_watched().membership_config.membership()),
                );
                let patience = Duration::from_millis(self.config.election_timeout_max);
                match tokio::time::timeout(patience, until).await {
                    Ok(()) => Ok(position(read.index())),
                    Err(_) => Err(ClusterError::Unavailable(format!("group {} has no quorum", self.id))),
                }
            }
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward))) => {
                Err(self.forward(&forward))
            }
            Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_))) => {
                Err(ClusterError::Unavailable(format!("group {} has no quorum", self.id)))
            }
            Err(RaftError::Fatal(_)) => Err(self.down()),
        }
    }

    /// The newest membership that is known to be committed, and its members.
    pub(crate) fn committed_members(&self) -> (u64, Vec<NodeId>) {
        let Some(raft) = self.raft() else { return (0, Vec::new()) };
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let committed = &metrics.committed_membership_config;
        let nodes = committed.membership().nodes().map(|(node, _)| NodeId(*node)).collect();
        (committed.log_id().as_ref().map_or(0, |log_id| position(log_id.index)), nodes)
    }

    /// Gives the group its first members; nothing if it has begun.
    pub(crate) async fn begin(&self, members: Vec<(NodeId, Vec<String>)>) -> Result<(), ClusterError> {
        let nodes: BTreeMap<u64, Member> =
            members.into_iter().map(|(node, addresses)| (node.0, Member { addresses })).collect();
        match self.running()?.initialize(nodes).await {
            Ok(()) => Ok(()),
            Err(RaftError::APIError(error)) => {
                tracing::debug!(group = self.id, %error, "the group has begun already");
                Ok(())
            }
            Err(RaftError::Fatal(_)) => Err(self.down()),
        }
    }

    /// As leader: changes the members, if the newest membership is still the one that this is based on.
    /// Nobody is given a vote before he has everything, and a majority of those who vote then has, too.
    pub(crate) async fn change(
        &self,
        based_on: MembershipId,
        change: GroupChange,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        let raft = self.running()?;
        if !self.leads() {
            return Err(self.not_leader(self.leader()));
        }
        // A leader that was removed leads on until it has found a successor. Who belongs to the group is
        // for that one to change: openraft takes the state of a removed leader for a bug.
        let (newest, is_member) = newest_membership(&raft);
        if !is_member {
            return Err(self.not_leader(None));
        }
        if newest != based_on.position {
            return Err(ClusterError::Unavailable(format!(
                "the newest membership of group {} is that at {newest}, not the one at {}",
                self.id, based_on.position
            )));
        }
        let ids = |nodes: Vec<NodeId>| nodes.into_iter().map(|node| node.0).collect::<BTreeSet<u64>>();
        let mut keep = false;
        let change = match change {
            GroupChange::Begin { .. } => {
                return Err(ClusterError::Invalid(format!("group {} has begun", self.id)));
            }
            GroupChange::Learners { nodes } => {
                let member = |(node, addresses): (NodeId, Vec<String>)| (node.0, Member { addresses });
                ChangeMembers::AddNodes(nodes.into_iter().map(member).collect())
            }
            GroupChange::Voters { voters, keep: kept } => {
                if voters.is_empty() {
                    return Err(ClusterError::Invalid("a group without voters".to_owned()));
                }
                keep = kept;
                let voters = ids(voters);
                let before = self.members().0.into_iter().collect();
                self.wait_until_caught_up(&raft, &before, &voters, deadline).await?;
                ChangeMembers::ReplaceAllVoters(voters)
            }
            GroupChange::Remove { nodes } => ChangeMembers::RemoveNodes(ids(nodes)),
            GroupChange::Settle => ChangeMembers::AddVoterIds(BTreeSet::new()),
        };
        let made_by = LeaderId::new(based_on.term, based_on.leader);
        let based_on = based_on.position.checked_sub(1).map(|index| LogId::new(made_by, index));
        let only_then = [Precondition::LastMembershipLogId { last_membership_log_id: based_on }];
        let _changing = self.alone.changing();
        let changed =
            tokio::time::timeout(deadline, raft.change_membership_if(change, keep, only_then)).await;
        match changed {
            Err(_) => Err(ClusterError::OutcomeUnknown("no quorum before the deadline".to_owned())),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(self.forward(&forward))
            }
            Ok(Err(RaftError::APIError(error @ ClientWriteError::LogEntryDiscarded(_)))) => {
                Err(ClusterError::OutcomeUnknown(error.to_string()))
            }
            Ok(Err(RaftError::APIError(error))) => Err(ClusterError::Unavailable(error.to_string())),
            // It was handed over, and may be in the log.
            Ok(Err(RaftError::Fatal(_))) => Err(ClusterError::OutcomeUnknown(self.down().to_string())),
        }
    }

    async fn wait_until_caught_up(
        &self,
        raft: &Raft,
        before: &BTreeSet<u64>,
        nodes: &BTreeSet<u64>,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        // What came after this has time until the change is committed.
        let goal = raft.data_metrics().borrow_watched().last_log.map_or(0, |last| last.index);
        let mut metrics = raft.data_metrics();
        let me = self.network.node.0;
        let caught_up = async {
            loop {
                let enough = {
                    let metrics = metrics.borrow_watched();
                    let has_all = |node: &u64| {
                        let matched = metrics.replication.as_ref().and_then(|all| all.get(node)?.as_ref());
                        *node == me || matched.is_some_and(|log_id| log_id.index >= goal)
                    };
                    let good = nodes.iter().filter(|node| has_all(node)).count();
                    nodes.difference(before).all(has_all) && good * 2 > nodes.len()
                };
                if enough {
                    return true;
                }
                if !self.leads() || metrics.changed().await.is_err() {
                    return false;
                }
            }
        };
        match tokio::time::timeout(deadline, caught_up).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.not_leader(self.leader())),
            Err(_) => Err(ClusterError::Unavailable(format!(
                "not enough of nodes {nodes:?} have caught up with group {}",
                self.id
            ))),
        }
    }

    pub(crate) fn status(&self) -> GroupStatus {
        let (first, next) = self.log.bounds();
        let durable = self.slot.replica().map_or(0, |replica| replica.durable_applied().position);
        let mut status = GroupStatus {
            group: self.id,
            role: Role::Down,
            leader: None,
            term: 0,
            voters: Vec::new(),
            learners: Vec::new(),
            membership: MembershipId::default(),
            settled: false,
            joint: false,
            configs: Vec::new(),
            newest: self.log.last().map_or_else(MembershipId::default, entry_id),
            first: position(first),
            last: next,
            committed: 0,
            applied: self.slot.applied(),
            durable,
            level: self.slot.age(),
            // Measured by the node.
            load: 0,
            followers: Vec::new(),
            failure: self.failure.lock().clone().or_else(|| self.lacking()),
        };
        let Some(raft) = self.raft() else { return status };
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        status.role = match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Down,
        };
        status.leader = metrics.current_leader.map(NodeId);
        status.term = metrics.current_term;
        let membership = metrics.membership_config.membership();
        status.voters = membership.voter_ids().map(NodeId).collect();
        status.learners = membership.learner_ids().map(NodeId).collect();
        status.membership = match metrics.membership_config.log_id() {
            None => MembershipId::default(),
            Some(log_id) => entry_id(*log_id),
        };
        status.settled = metrics.membership_config == metrics.committed_membership_config;
        if status.failure.is_none() && status.voters == [self.network.node] && !self.log.may_vote() {
            // Whoever went on with it alone was interrupted; to recover it again ends that.
            status.failure = Some(format!(
                "it has to have {} entries before it votes, and nobody else is there to get them from",
                self.log.hosted()
            ));
        }
        let configs = membership.get_joint_config();
        status.joint = configs.len() > 1;
        status.configs = configs.iter().map(|voters| voters.iter().copied().map(NodeId).collect()).collect();
        status.committed = metrics.cluster_committed.map_or(0, |committed| position(committed.index));
        for (node, matched) in metrics.replication.iter().flatten() {
            if *node == self.network.node.0 {
                continue;
            }
            let heard = metrics.heartbeat.as_ref().and_then(|all| all.get(node)?.as_ref());
            status.followers.push(FollowerStatus {
                node: NodeId(*node),
                matched: matched.as_ref().map_or(0, |log_id| position(log_id.index)),
                heard: heard.map(|at| at.elapsed()),
            });
        }
        status
    }
}

pub(crate) fn entry_id(log_id: LogId) -> MembershipId {
    let leader_id = log_id.leader_id;
    MembershipId { term: leader_id.term, leader: leader_id.node_id, position: position(log_id.index) }
}

/// The newest membership in a node's log, be it committed or not: its place, and whether the node belongs
/// to it.
pub(crate) fn newest_membership(raft: &Raft) -> (u64, bool) {
    let metrics = raft.server_metrics();
    let metrics = metrics.borrow_watched();
    let newest = &metrics.membership_config;
    let is_member = newest.membership().get_node(&metrics.id).is_some();
    (newest.log_id().as_ref().map_or(0, |log_id| position(log_id.index)), is_member)
}
