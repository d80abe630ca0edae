//! Who belongs to the cluster, and who leads what.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use tokio::time::Instant;

use super::{Inner, Node, random_u128};
use crate::client::{ClientReply, ClientRequest, MemberStep};
use crate::error::ClusterError;
use crate::group::Group;
use crate::message::{Adoption, PeerError, encode_adopt, encode_error, encode_join, ok, take_reply};
use crate::transport::{Lane, NodeId};
use crate::types::Member;

/// How long making a cluster, or changing its members, may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// The wait before something is tried again that others must do first.
const RETRY: Duration = Duration::from_millis(200);

impl Node {
    /// Makes a cluster of these members (this node among them, all new and running), with so many
    /// partitions for ever. Can be called again if it was interrupted.
    ///
    /// # Errors
    /// [`ClusterError::Invalid`] if a member belongs to another cluster; [`ClusterError::Unavailable`]
    /// if one cannot be reached.
    pub async fn initialize_cluster(
        &self,
        partitions: u32,
        members: Vec<(NodeId, Vec<String>)>,
    ) -> Result<(), ClusterError> {
        self.inner.initialize(partitions, members).await
    }

    /// Makes this node, which is new, a member of the cluster that one of the `seeds` belongs to.
    /// Returns when it votes in every group. Can be called again if it was interrupted.
    ///
    /// # Errors
    /// As [`Node::initialize_cluster`].
    pub async fn join(&self, seeds: Vec<(NodeId, Vec<String>)>) -> Result<(), ClusterError> {
        self.inner.join(seeds).await
    }

    /// Makes a running node, that has adopted the cluster, a voting member of every group.
    ///
    /// # Errors
    /// See [`ClusterError`]; it can be called again to go on.
    pub async fn add_member(&self, node: NodeId, addresses: Vec<String>) -> Result<(), ClusterError> {
        self.inner.add_member(node, addresses).await
    }

    /// Takes a node out of every group. Its id must not be used again.
    ///
    /// # Errors
    /// See [`ClusterError`]; it can be called again to go on.
    pub async fn remove_member(&self, node: NodeId) -> Result<(), ClusterError> {
        self.inner.remove_member(node).await
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
        let members: Vec<_> = members.into_iter().map(|(node, addresses)| (node.0, addresses)).collect();
        let adoption = Adoption { cluster_id, partitions, members: members.clone() };
        // First here: called again after an interruption, this goes on with the same id.
        self.adopt(adoption.clone()).await.map_err(ClusterError::Invalid)?;
        let request = encode_adopt(&adoption);
        for (node, _) in members.iter().filter(|(node, _)| *node != me.0) {
            self.ask_until_reached(NodeId(*node), &request).await?;
        }
        let nodes: BTreeMap<u64, Member> =
            members.into_iter().map(|(node, addresses)| (node, Member { addresses })).collect();
        let deadline = Instant::now() + PATIENCE;
        for group in &self.cluster()?.groups {
            let raft = loop {
                match group.running() {
                    Ok(raft) => break raft,
                    Err(error @ ClusterError::Storage(_)) => return Err(error),
                    Err(error) if Instant::now() > deadline => return Err(error),
                    Err(_) => tokio::time::sleep(RETRY / 10).await,
                }
            };
            // It says so if the group has begun already, which is what is wanted.
            if let Err(error) = raft.initialize(nodes.clone()).await {
                tracing::info!(group = group.id, %error, "the group has its first members already");
            }
        }
        while self.cluster()?.groups.iter().any(|group| group.leader().is_none()) {
            if Instant::now() > deadline {
                return Err(ClusterError::Unavailable("no leader was elected".to_owned()));
            }
            tokio::time::sleep(RETRY / 10).await;
        }
        Ok(())
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
    pub(super) fn welcome(&self, node: NodeId, addresses: Vec<String>) -> Bytes {
        let Some(cluster) = self.cluster.get() else {
            // It may in a moment.
            return encode_error(&PeerError::NoGroup("this node belongs to no cluster itself".to_owned()));
        };
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
            let adoption = match self.ask_until_reached(*seed, &request).await {
                Ok(take) => Adoption::take(take).map_err(|error| ClusterError::Invalid(error.to_string()))?,
                Err(error) => {
                    failure = error;
                    continue;
                }
            };
            self.adopt(adoption).await.map_err(ClusterError::Invalid)?;
            // The seed knows who leads; this node does not yet.
            let request = ClientRequest::AddMember { node: me, addresses: addresses.clone() };
            let body = self.pass_on(*seed, request.encode(), PATIENCE * 10).await;
            match ClientReply::decode(body) {
                Ok(ClientReply::Error(error)) => return Err(error),
                Ok(_) => return Ok(()),
                Err(error) => return Err(ClusterError::Unavailable(error.to_string())),
            }
        }
        Err(failure)
    }

    pub(super) async fn add_member(
        self: &Arc<Self>,
        node: NodeId,
        addresses: Vec<String>,
    ) -> Result<(), ClusterError> {
        self.set_addresses(node, addresses.clone());
        self.in_every_group(node, MemberStep::Learner { addresses }).await?;
        self.in_every_group(node, MemberStep::Voter).await
    }

    pub(super) async fn remove_member(self: &Arc<Self>, node: NodeId) -> Result<(), ClusterError> {
        self.in_every_group(node, MemberStep::Remove).await
    }

    /// Takes a step in all groups at once; each by its leader, wherever that is.
    async fn in_every_group(self: &Arc<Self>, node: NodeId, step: MemberStep) -> Result<(), ClusterError> {
        let groups = self.cluster()?.groups.iter();
        let mut steps: FuturesUnordered<_> =
            groups.map(|group| self.until_done(group, node, step.clone())).collect();
        while let Some(done) = steps.next().await {
            done?;
        }
        Ok(())
    }

    async fn until_done(
        self: &Arc<Self>,
        group: &Group,
        node: NodeId,
        step: MemberStep,
    ) -> Result<(), ClusterError> {
        let deadline = Instant::now() + PATIENCE * 10;
        let request = ClientRequest::ChangeMember { group: group.id, node, step };
        loop {
            // Taking a step twice does no harm, so nothing is lost by an unknown outcome.
            let serve = Arc::clone(self).serve(request.clone(), request.encode(), false);
            let reply = Box::pin(serve).await;
            let error = match ClientReply::decode(reply) {
                Ok(ClientReply::Error(error @ (ClusterError::Invalid(_) | ClusterError::Storage(_)))) => {
                    return Err(error);
                }
                Ok(ClientReply::Error(error)) => error,
                Ok(_) => return Ok(()),
                Err(error) => ClusterError::Unavailable(error.to_string()),
            };
            if Instant::now() > deadline || *self.stop.borrow() {
                return Err(error);
            }
            tokio::time::sleep(RETRY).await;
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
        for group in cluster.groups.iter().filter(|group| group.leads()) {
            if let (Some(raft), Some(heir)) = (group.raft(), furthest_follower(group)) {
                // If it has stopped, it does not lead any more.
                let _ = raft.trigger().transfer_leader(heir).await;
            }
        }
        let deadline = Instant::now() + self.config.timing.election.1;
        let waiting =
            || cluster.groups.iter().any(|group| group.leads() && furthest_follower(group).is_some());
        while waiting() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(5)).await;
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
