//! Requests of peers and clients.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::codec::{decode_group_read, encode_group_read_reply, encode_group_reply};
use dogsled_storage::group::{GroupRead, GroupReadReply};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use openraft::async_runtime::WatchReceiver;

use super::transactions::{failed_read, open_replica};
use super::{Inner, Node};
use crate::client::{ClientReply, ClientRequest, Consistency};
use crate::codec::{Put, Take};
use crate::error::ClusterError;
use crate::group::Group;
use crate::message::{
    Adoption, Header, Kind, PeerError, check_append, encode_append_reply, encode_error, encode_forward,
    encode_vote_reply, ok, take_append, take_join, take_reply, take_transfer, take_vote_request,
};
use crate::read_index::Round;
use crate::transport::{ClientIdentity, Lane, NodeId, Service, TransportError};
use crate::types::{Vote, position};

/// The longest that a request may ask for.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

/// The future, begun: what it sends before it first waits is sent in the order of these calls, which
/// is the order of arrival, though whoever polls the rest may do so in any.
fn begun<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> BoxFuture<'static, T> {
    // A task's budget must not decide what comes first.
    let mut future: Pin<Box<dyn Future<Output = T> + Send>> = Box::pin(tokio::task::unconstrained(future));
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => std::future::ready(value).boxed(),
        Poll::Pending => future,
    }
}

fn error(error: PeerError) -> BoxFuture<'static, Bytes> {
    std::future::ready(encode_error(&error)).boxed()
}

fn refused(error: ClusterError) -> BoxFuture<'static, Bytes> {
    std::future::ready(ClientReply::Error(error).encode()).boxed()
}

fn failed(error: impl std::fmt::Display) -> Bytes {
    encode_error(&PeerError::Failed(error.to_string()))
}

/// Whether who leads, or wants to, is who sends this: no node speaks for another, whatever its
/// certificate.
fn check_sender(from: NodeId, vote: &Vote) -> Result<(), PeerError> {
    let named = vote.leader_id.node_id;
    if named == from.0 {
        return Ok(());
    }
    Err(PeerError::Malformed(format!("node {from} speaks for node {named}")))
}

impl Service for Node {
    fn peer_request(&self, from: NodeId, lane: Lane, body: Bytes) -> BoxFuture<'static, Bytes> {
        let _ = lane;
        let mut take = Take::new(body);
        let header = match Header::take(&mut take) {
            Ok(header) => header,
            Err(malformed) => return error(PeerError::Malformed(malformed.to_string())),
        };
        match self.inner.peer_request(from, header, take) {
            Ok(reply) => reply,
            Err(refusal) => error(refusal),
        }
    }

    fn client_request(&self, client: &ClientIdentity, body: Bytes) -> BoxFuture<'static, Bytes> {
        let request = match ClientRequest::decode(body.clone()) {
            Ok(request) => request,
            Err(error) => return refused(ClusterError::Invalid(error.to_string())),
        };
        if request.is_administrative() && !client.administrator {
            return refused(ClusterError::Denied(format!(
                "the certificate of \"{}\" is not an administrator's, and only they change the cluster",
                client.name
            )));
        }
        begun(Arc::clone(&self.inner).serve(request, body, false))
    }

    fn client_stream(&self, client: &ClientIdentity, body: Bytes) -> BoxStream<'static, Bytes> {
        let _ = client;
        let error = match ClientRequest::decode(body) {
            Ok(ClientRequest::Watch { group, tree, prefix }) => match self.inner.group(group) {
                Ok(group) => {
                    // Those that follow a node that stops are told by the end of the stream.
                    let mut stop = self.inner.stop.subscribe();
                    let stopped = async move {
                        let _ = stop.wait_for(|stop| *stop).await;
                    };
                    return crate::watch::watch(Arc::clone(group), tree, prefix).take_until(stopped).boxed();
                }
                Err(error) => error,
            },
            Ok(_) => ClusterError::Invalid("this is not a request for a stream".to_owned()),
            Err(error) => ClusterError::Invalid(error.to_string()),
        };
        futures_util::stream::once(std::future::ready(ClientReply::Error(error).encode())).boxed()
    }
}

impl Inner {
    fn peer_request(
        self: &Arc<Self>,
        from: NodeId,
        header: Header,
        mut take: Take,
    ) -> Result<BoxFuture<'static, Bytes>, PeerError> {
        let malformed = |error: crate::codec::Malformed| PeerError::Malformed(error.to_string());
        match header.kind {
            Kind::Adopt => {
                let adoption = Adoption::take(take).map_err(malformed)?;
                let node = Arc::clone(self);
                return Ok(async move {
                    match node.adopt(adoption).await {
                        Ok(()) => ok(0).into(),
                        Err(why) => encode_error(&PeerError::WrongCluster(why)),
                    }
                }
                .boxed());
            }
            Kind::Join => {
                let (node, addresses) = take_join(take).map_err(malformed)?;
                if NodeId(node) != from {
                    return Err(PeerError::Malformed(format!("node {from} asks for node {node}")));
                }
                return Ok(std::future::ready(self.welcome(from, addresses)).boxed());
            }
            _ => {}
        }
        let Some(cluster) = self.cluster.get() else {
            return Err(PeerError::WrongCluster(format!(
                "node {} belongs to no cluster yet",
                self.config.node
            )));
        };
        if header.cluster != cluster.number() {
            return Err(PeerError::WrongCluster(format!(
                "node {} belongs to the cluster {:032x}",
                self.config.node, cluster.id
            )));
        }
        if header.kind == Kind::Forward {
            let _client = take.text().map_err(malformed)?;
            let body = take.rest();
            // Whether the client may ask for it was judged by the node that it asked.
            let request = ClientRequest::decode(body.clone()).map_err(malformed)?;
            let serve = Arc::clone(self).serve(request, body, true);
            return Ok(begun(async move {
                let reply = serve.await;
                let mut bytes = ok(reply.len());
                bytes.extend_from_slice(&reply);
                bytes.into()
            }));
        }
        let Some(group) = cluster.groups.get(header.group as usize) else {
            return Err(PeerError::NoGroup(format!("there is no group {}", header.group)));
        };
        let running = || {
            group.raft().ok_or_else(|| PeerError::NoGroup(format!("group {} is being opened", header.group)))
        };
        Ok(match header.kind {
            Kind::Append => {
                let request = take_append(take).map_err(malformed)?;
                check_sender(from, &request.vote)?;
                let raft = running()?;
                let committed = raft.data_metrics().borrow_watched().local_committed;
                check_append(&request, committed).map_err(malformed)?;
                group.slot.heard(request.leader_commit.map_or(0, |commit| position(commit.index)));
                begun(async move {
                    match raft.append_entries(request).await {
                        Ok(reply) => encode_append_reply(&reply),
                        Err(error) => failed(error),
                    }
                })
            }
            Kind::Vote => {
                let request = take_vote_request(take).map_err(malformed)?;
                check_sender(from, &request.vote)?;
                let raft = running()?;
                begun(async move {
                    raft.vote(request).await.map_or_else(failed, |reply| encode_vote_reply(&reply))
                })
            }
            Kind::PreVote => {
                let request = take_vote_request(take).map_err(malformed)?;
                check_sender(from, &request.vote)?;
                let raft = running()?;
                begun(async move {
                    raft.pre_vote(request).await.map_or_else(failed, |reply| encode_vote_reply(&reply))
                })
            }
            Kind::TransferLeader => {
                let request = take_transfer(take).map_err(malformed)?;
                let raft = running()?;
                begun(async move {
                    let handled = raft.handle_transfer_leader(request).await;
                    handled.map_or_else(failed, |_| ok(0).into())
                })
            }
            Kind::ReadIndex => {
                take.end().map_err(malformed)?;
                let group = Arc::clone(group);
                async move {
                    match group.read_index().await {
                        Ok(at) => {
                            let mut bytes = ok(8);
                            bytes.put_u64(at);
                            bytes.into()
                        }
                        Err(error) => encode_error(&PeerError::NotLeader(error.to_string())),
                    }
                }
                .boxed()
            }
            Kind::SnapshotBegin | Kind::SnapshotPiece | Kind::SnapshotFinish => {
                begun(self.snapshots.receive(group, running()?, header, take)?)
            }
            Kind::Forward | Kind::Adopt | Kind::Join => unreachable!("handled above"),
        })
    }

    /// Serves a client's request; `forwarded` if another node has passed it on.
    /// Answers a client's request; `body` is the same, to be passed on.
    pub(super) async fn serve(
        self: Arc<Self>,
        request: ClientRequest,
        body: Bytes,
        forwarded: bool,
    ) -> Bytes {
        let deadline = match &request {
            ClientRequest::Submit { deadline, .. } | ClientRequest::Read { deadline, .. }
                if !deadline.is_zero() =>
            {
                (*deadline).min(MAX_DEADLINE)
            }
            _ => self.config.request_deadline,
        };
        match self.serve_here(request, deadline).await {
            Ok(reply) => reply.encode(),
            Err(ClusterError::NotLeader { leader: Some(leader), .. })
                if !forwarded && leader != self.config.node =>
            {
                self.pass_on(leader, body, deadline).await
            }
            Err(error) => ClientReply::Error(error).encode(),
        }
    }

    pub(super) async fn pass_on(&self, to: NodeId, body: Bytes, deadline: Duration) -> Bytes {
        let cluster = self.cluster.get().map_or(0, |cluster| cluster.number());
        let request = encode_forward(cluster, "", &body);
        let error = match self.transport.request(to, Lane::Data, request, deadline).await {
            Ok(reply) => match take_reply(reply) {
                Ok(mut take) => return take.rest(),
                Err(
                    refused @ (PeerError::WrongCluster(_) | PeerError::NoGroup(_) | PeerError::Malformed(_)),
                ) => ClusterError::Unavailable(refused.to_string()),
                Err(failed) => ClusterError::OutcomeUnknown(failed.to_string()),
            },
            Err(error @ (TransportError::Unreachable(_) | TransportError::TooLarge { .. })) => {
                ClusterError::Unavailable(format!("node {to}, which leads: {error}"))
            }
            Err(error) => ClusterError::OutcomeUnknown(format!("node {to}, which leads: {error}")),
        };
        ClientReply::Error(error).encode()
    }

    async fn serve_here(
        self: &Arc<Self>,
        request: ClientRequest,
        deadline: Duration,
    ) -> Result<ClientReply, ClusterError> {
        match request {
            ClientRequest::Submit { group, command, .. } => {
                let reply = self.propose(self.group(group)?, &command, deadline).await?;
                let reply = encode_group_reply(&reply)
                    .map_err(|error| ClusterError::OutcomeUnknown(error.to_string()))?;
                Ok(ClientReply::Applied(reply.into()))
            }
            ClientRequest::Read { group, consistency, read, .. } => {
                let group = self.group(group)?;
                let read =
                    decode_group_read(&read).map_err(|error| ClusterError::Invalid(error.to_string()))?;
                let read = self.read(group, read, consistency);
                match tokio::time::timeout(deadline, read).await {
                    Ok(answer) => answer,
                    Err(_) => Err(ClusterError::Unavailable("no answer before the deadline".to_owned())),
                }
            }
            ClientRequest::Map => Ok(ClientReply::Map(self.map())),
            ClientRequest::Status => Ok(ClientReply::Status(Box::new(self.status()))),
            ClientRequest::Initialize { partitions, members } => {
                self.initialize(partitions, members).await.map(|()| ClientReply::Done)
            }
            ClientRequest::AddMember { node, addresses } => {
                self.add_member(node, addresses).await.map(|()| ClientReply::Done)
            }
            ClientRequest::RemoveMember { node } => {
                self.remove_member(node).await.map(|()| ClientReply::Done)
            }
            ClientRequest::TransferLeader { group, to } => {
                self.transfer_leader(group, to).await.map(|()| ClientReply::Done)
            }
            ClientRequest::ChangeMember { group, node, step } => {
                let group = self.group(group)?;
                group.change_member(node, step, deadline).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Watch { .. } => Err(ClusterError::Invalid("a watch is a stream".to_owned())),
        }
    }

    async fn read(
        self: &Arc<Self>,
        group: &Arc<Group>,
        read: GroupRead,
        consistency: Consistency,
    ) -> Result<ClientReply, ClusterError> {
        let age = match consistency {
            Consistency::Linearizable => {
                let at =
                    if group.leads() { group.read_index().await? } else { self.ask_leader(group).await? };
                group.slot.wait_applied(at).await;
                None
            }
            // A node that holds no state of the group yet has nothing to say, not even something old.
            Consistency::Stale if group.slot.applied() == 0 => {
                return Err(ClusterError::Unavailable(format!("group {} has not begun here", group.id)));
            }
            Consistency::Stale if group.leads() => None,
            Consistency::Stale => group.slot.age(),
        };
        // Before reading: the answer includes at least this.
        let position = group.slot.applied();
        let answer = match consistency {
            Consistency::Linearizable => self.read_settled(group, read).await?,
            Consistency::Stale => self.read_stale(group, read).await?,
        };
        let reply =
            encode_group_read_reply(&answer).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        Ok(ClientReply::Read { position, age, reply: reply.into() })
    }

    async fn read_stale(&self, group: &Arc<Group>, read: GroupRead) -> Result<GroupReadReply, ClusterError> {
        let replica = open_replica(group)?;
        let answer = match read {
            GroupRead::Get { .. } | GroupRead::Counter { .. } | GroupRead::LockHolder { .. } => {
                replica.read(&read)
            }
            _ => match self.blocking.run(move || replica.read(&read)).await {
                Ok(answer) => answer,
                Err(error) => return Err(ClusterError::Unavailable(error.to_string())),
            },
        };
        answer.map_err(failed_read)
    }

    /// As follower: the position up to which a read must know, by the leader. All reads that wait
    /// share one question.
    async fn ask_leader(&self, group: &Arc<Group>) -> Round {
        let cluster = self.cluster()?.number();
        let (transport, me) = (Arc::clone(&self.transport), self.config.node);
        let deadline = self.config.timing.election.1;
        let asked = Arc::clone(group);
        let round = move || {
            let (group, transport) = (Arc::clone(&asked), Arc::clone(&transport));
            async move {
                let Some(leader) = group.leader().filter(|leader| *leader != me) else {
                    return Err(group.not_leader(None));
                };
                let request = Header { kind: Kind::ReadIndex, cluster, group: group.id }.encode(0);
                let reply = transport.request(leader, Lane::Control, request.into(), deadline).await;
                let unavailable = |why: &dyn std::fmt::Display| {
                    ClusterError::Unavailable(format!("node {leader}, which leads group {}: {why}", group.id))
                };
                let mut take = take_reply(reply.map_err(|error| unavailable(&error))?)
                    .map_err(|error| unavailable(&error))?;
                take.u64().map_err(|error| unavailable(&error))
            }
        };
        group.follower_rounds.join(round).await
    }
}
