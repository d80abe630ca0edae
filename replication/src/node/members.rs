//! Who belongs to the cluster, and who leads what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::{Inner, Node, random_u128};
use crate::client::{ClientReply, ClientRequest};
use crate::error::ClusterError;
use crate::group::Group;
use crate::message::{
    Adoption, PeerError, encode_adopt, encode_error, encode_join, ok, take_reply, take_share,
};
use crate::meta::{self, Change, MemberRecord, MemberState, Record};
use crate::ring::META_GROUP;
use crate::transport::{Lane, NodeId};

/// How long making a cluster, or changing its members, may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// And how long whoever asked for that may wait until it is carried through.
pub(super) const LONG: Duration = Duration::from_secs(1200);
/// How long a node that is shut down tries to hand its groups over, and how soon it asks an heir again.
const HAND_OVER: (Duration, Duration) = (Duration::from_secs(2), Duration::from_millis(50));
/// The wait before something is tried again that others must do first.
const RETRY: Duration = Duration::from_millis(200);

impl Node {
    /// Makes a cluster of these members (this node among them, all new and running), with so many
    /// partitions for ever, and three replicas of each as soon as there are so many members. Can be
    /// called again if it was interrupted.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] if a member belongs to another cluster; [`ClusterError::Unavailable`]
    /// if one cannot be reached.
    pub async fn initialize_cluster(
        &self,
        partitions: u32,
        members: Vec<(NodeId, Vec<String>)>,
    ) -> Result<(), ClusterError> {
        self.inner.initialize(partitions, meta::DEFAULT_REPLICAS, members).await
    }

    /// As [`Node::initialize_cluster`], with so many replicas of each partition.
    ///
    /// # Errors
    /// The same.
    pub async fn initialize_cluster_with(
        &self,
        partitions: u32,
        replicas: u32,
        members: Vec<(NodeId, Vec<String>)>,
    ) -> Result<(), ClusterError> {
        self.inner.initialize(partitions, replicas, members).await
    }

    /// Makes this node, which is new, a member of the cluster that one of the `seeds` belongs to.
    /// Returns when it has its share of the partitions (or movement is paused). Can be called again if
    /// it was interrupted.
    ///
    /// # Errors
    /// As [`Node::initialize_cluster`].
    pub async fn join(&self, seeds: Vec<(NodeId, Vec<String>)>) -> Result<(), ClusterError> {
        self.inner.join(seeds).await
    }

    /// Takes in a running node that has adopted the cluster; returns when it has its share.
    ///
    /// # Errors
    /// See [`ClusterError`]; it can be called again to go on.
    pub async fn add_member(&self, node: NodeId, addresses: Vec<String>) -> Result<(), ClusterError> {
        self.done(ClientRequest::AddMember { node, addresses }).await
    }

    /// Takes out a member: what it has moves away, then it belongs to no group any more. Its id must not
    /// be used again.
    ///
    /// # Errors
    /// See [`ClusterError`]; it can be called again to go on.
    pub async fn remove_member(&self, node: NodeId) -> Result<(), ClusterError> {
        self.done(ClientRequest::RemoveMember { node }).await
    }

    /// Changes the cluster; returns when that is decided, or, with `wait`, when it is carried through.
    /// `epoch`: that of the record which was looked at before; 0: whatever it is.
    ///
    /// # Errors
    /// [`ClusterError::Conflict`] if the record has another epoch by now; see [`ClusterError`].
    pub async fn change(&self, epoch: u64, wait: bool, change: Change) -> Result<(), ClusterError> {
        self.done(ClientRequest::Change { epoch, wait, change }).await
    }

    async fn done(&self, request: ClientRequest) -> Result<(), ClusterError> {
        self.request(request).await.map(drop)
    }

    /// Asks for a group's leadership to go to a member.
    ///
    /// # Errors
    /// See [`ClusterError`].
    pub async fn transfer_leader(&self, group: u32, to: NodeId) -> Result<(), ClusterError> {
        match self.request(ClientRequest::TransferLeader { group, to }).await? {
            ClientReply::Error(error) => Err(error),
            _ => Ok(()),
        }
    }
}

impl Inner {
    pub(super) async fn initialize(
        self: &Arc<Self>,
        partitions: u32,
        replicas: u32,
        members: Vec<(NodeId, Vec<String>)>,
    ) -> Result<(), ClusterError> {
        let me = self.config.node;
        if !members.iter().any(|(node, _)| *node == me) {
            return Err(ClusterError::Invalid(format!("node {me} is not among the members")));
        }
        let file = *self.file.lock();
        let cluster_id = match file.cluster {
            0 => self.config.cluster.unwrap_or_else(|| random_u128(self.config.seed)),
            begun => begun,
        };
        let deadline = Instant::now() + PATIENCE;
        // A member that lost its disk since would be taken in again, and vote as if it had promised nothing. All were taken
        // in before there was a record, and what is left to do is the driver's.
        if self.has_record().await {
            return self.wait_until_formed(deadline).await;
        }
        let named: Vec<_> = members.iter().map(|(node, addresses)| (node.0, addresses.clone())).collect();
        let adoption = Adoption { cluster_id, partitions, members: named };
        // First here: called again after an interruption, this goes on with the same id.
        self.adopt(adoption.clone()).await.map_err(ClusterError::Invalid)?;
        let request = encode_adopt(&adoption);
        let mut records = BTreeMap::new();
        for (node, addresses) in &members {
            let (weight, zone) = match *node == me {
                true => (self.config.weight, self.config.zone.clone()),
                false => {
                    let mut take = self.ask_until_reached(*node, &request).await?;
                    take_share(&mut take).map_err(|error| ClusterError::Invalid(error.to_string()))?
                }
            };
            let (state, addresses) = (MemberState::Active, addresses.clone());
            records.insert(*node, MemberRecord { state, weight, zone, addresses });
        }
        let record = Record::new(partitions, replicas, records).map_err(ClusterError::Invalid)?;
        let meta = self.group(META_GROUP)?;
        let voters = members.into_iter().filter(|(node, _)| record.meta_voters.contains(node)).collect();
        loop {
            match meta.running() {
                Ok(_) => break,
                Err(error @ ClusterError::Storage(_)) => return Err(error),
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => tokio::time::sleep(RETRY / 10).await,
            }
        }
        // Nothing, if the group has begun already, which is what is wanted.
        meta.begin(voters).await?;
        while let Err(error) = self.write_first_record(&record).await {
            // Tried twice, the second does nothing.
            if matches!(error, ClusterError::Invalid(_)) || Instant::now() > deadline {
                return Err(error);
            }
            tokio::time::sleep(RETRY / 10).await;
        }
        // The rest is the driver's.
        self.wait_until_formed(deadline).await
    }

    /// Whether the cluster's record is known here from before. If this node has a part in one that has begun, it is waited
    /// for: after a restart it takes a moment to be found.
    async fn has_record(&self) -> bool {
        let deadline = Instant::now() + PATIENCE / 4;
        loop {
            let Some(cluster) = self.cluster.get() else { return false };
            if cluster.record().is_some() {
                return true;
            }
            let begun = self.group(META_GROUP).is_ok_and(|group| group.log.last().is_some());
            if !begun || Instant::now() > deadline {
                return false;
            }
            tokio::time::sleep(RETRY / 10).await;
        }
    }

    async fn wait_until_formed(&self, deadline: Instant) -> Result<(), ClusterError> {
        loop {
            let cluster = self.cluster()?;
            let formed = cluster.record().is_some_and(|record| !record.forming);
            let groups = cluster.groups();
            if formed && groups.values().all(|group| group.leader().is_some()) {
                return Ok(());
            }
            if Instant::now() > deadline {
                return Err(ClusterError::Unavailable("not every group has begun".to_owned()));
            }
            tokio::time::sleep(RETRY / 10).await;
        }
    }

    async fn ask_until_reached(
        &self,
        node: NodeId,
        request: &Bytes,
    ) -> Result<crate::codec::Take, ClusterError> {
        let deadline = Instant::now() + PATIENCE / 4;
        loop {
            let reply =
                self.transport.request(node, Lane::Control, request.clone(), Duration::from_secs(10)).await;
            let error = match reply.map(take_reply) {
                Ok(Ok(take)) => return Ok(take),
                Ok(Err(PeerError::NoGroup(why) | PeerError::Failed(why))) => why,
                Ok(Err(refused)) => return Err(ClusterError::Invalid(format!("node {node}: {refused}"))),
                Err(error) => error.to_string(),
            };
            if Instant::now() > deadline {
                return Err(ClusterError::Unavailable(format!("node {node}: {error}")));
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// Answers a node that wants to join: which cluster this is.
    pub(super) async fn welcome(self: Arc<Self>, node: NodeId, addresses: Vec<String>) -> Bytes {
        let Some(cluster) = self.cluster.get() else {
            // It may in a moment.
            return encode_error(&PeerError::NoGroup("this node belongs to no cluster itself".to_owned()));
        };
        // Whoever asks has nothing yet. If it takes part already it has had what it promised on, and lost it:
        // it would vote as if it had promised nothing. What this node has of the record may be old.
        let record = match self.record_of_leader().await {
            Ok(record) => record,
            Err(error) => {
                return encode_error(&PeerError::NoGroup(format!("who belongs to the cluster: {error}")));
            }
        };
        let taken = record.as_ref().and_then(|record| record.members.get(&node));
        if taken.is_some_and(|member| member.state != MemberState::Joining) {
            return encode_error(&PeerError::WrongCluster(format!(
                "node {node} is a member already; if it has lost its disk, let it join with an id that was never used, \
                 and remove {node}"
            )));
        }
        self.set_addresses(node, addresses);
        let members = self.map().members.into_iter().map(|(node, addresses)| (node.0, addresses)).collect();
        let adoption = Adoption { cluster_id: cluster.id, partitions: cluster.partitions, members };
        let mut bytes = ok(256);
        adoption.put(&mut bytes);
        bytes.into()
    }

    async fn join(self: &Arc<Self>, seeds: Vec<(NodeId, Vec<String>)>) -> Result<(), ClusterError> {
        let (me, addresses) = (self.config.node, self.config.addresses.clone());
        for (node, addresses) in &seeds {
            self.set_addresses(*node, addresses.clone());
        }
        let request = encode_join(me.0, &addresses);
        let mut failure = ClusterError::Invalid("no seed was named".to_owned());
        for (seed, _) in seeds.iter().filter(|(seed, _)| *seed != me) {
            // Asked for again by a node that still has what it was given: only to be taken in.
            if self.cluster.get().is_none() {
                let adoption = match self.ask_until_reached(*seed, &request).await {
                    Ok(take) => {
                        Adoption::take(take).map_err(|error| ClusterError::Invalid(error.to_string()))?
                    }
                    Err(error @ ClusterError::Invalid(_)) => return Err(error),
                    Err(error) => {
                        failure = error;
                        continue;
                    }
                };
                self.adopt(adoption).await.map_err(ClusterError::Invalid)?;
            }
            let change = Change::Add {
                node: me,
                addresses: addresses.clone(),
                weight: self.config.weight,
                zone: self.config.zone.clone(),
            };
            let request = ClientRequest::Change { epoch: 0, wait: true, change };
            return self.ask_leader_by(*seed, &request).await;
        }
        Err(failure)
    }

    /// Asks the leader of group 0, which another member may know: this node does not yet.
    async fn ask_leader_by(
        self: &Arc<Self>,
        seed: NodeId,
        request: &ClientRequest,
    ) -> Result<(), ClusterError> {
        let deadline = Instant::now() + PATIENCE;
        let mut to = seed;
        loop {
            // Taken in twice is taken in once, so what was not heard can be asked for again.
            let error = match self.pass_on(to, request.encode(), LONG).await.map(ClientReply::decode) {
                Ok(Ok(ClientReply::Error(error))) => error,
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => return Err(ClusterError::Unavailable(error.to_string())),
                Err(error) => error,
            };
            if Instant::now() > deadline || *self.stop.borrow() {
                return Err(error);
            }
            match error {
                ClusterError::NotLeader { leader: Some(leader), addresses, .. } if leader != to => {
                    self.set_addresses(leader, addresses);
                    to = leader;
                }
                ClusterError::Invalid(_) | ClusterError::Denied(_) => return Err(error),
                _ => {
                    to = seed;
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    pub(super) async fn transfer_leader(&self, group: u32, to: NodeId) -> Result<(), ClusterError> {
        let group = self.group(group)?;
        let raft = group.running()?;
        if !group.leads() {
            return Err(group.not_leader(group.leader()));
        }
        if !group.members().0.contains(&to.0) {
            return Err(ClusterError::Invalid(format!("node {to} does not vote in group {}", group.id)));
        }
        if to == self.config.node {
            // It leads already. openraft would refuse writes and send no heartbeats until somebody
            // else is elected: with a single voter, for ever.
            return Ok(());
        }
        match raft.trigger().transfer_leader(to.0).await {
            Ok(()) => Ok(()),
            Err(error) => Err(ClusterError::Unavailable(error.to_string())),
        }
    }

    /// Hands the groups that this node leads to whoever is furthest, and waits a little for it to
    /// happen: so that nobody has to notice that this node is gone.
    pub(super) async fn give_up_leadership(&self) {
        let Some(cluster) = self.cluster.get() else { return };
        let until = Instant::now() + HAND_OVER.0;
        loop {
            let mut led = 0;
            for group in cluster.groups().values().filter(|group| group.leads()) {
                if let (Some(raft), Some(heir)) = (group.raft(), furthest_follower(group)) {
                    led += 1;
                    // If it has stopped, it does not lead any more.
                    let _ = raft.trigger().transfer_leader(heir).await;
                }
            }
            let again = Instant::now() + HAND_OVER.1;
            while cluster.groups().values().any(|group| group.leads() && furthest_follower(group).is_some()) {
                if Instant::now() >= again.min(until) {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            if led == 0 || Instant::now() >= until {
                return;
            }
        }
    }
}

/// The voter that has most of the log, if there is one beside this node.
fn furthest_follower(group: &Group) -> Option<u64> {
    let raft = group.raft()?;
    let metrics = raft.metrics();
    let metrics = metrics.borrow_watched();
    let membership = metrics.membership_config.membership();
    let others = membership.voter_ids().filter(|voter| *voter != metrics.id);
    let matched =
        |voter: &u64| metrics.replication.as_ref().and_then(|all| all.get(voter).copied().flatten());
    others.max_by_key(matched).filter(|voter| matched(voter).is_some())
}
