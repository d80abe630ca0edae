//! What other nodes ask of this one: Raft's requests, and those of the cluster's making. What clients ask, also through other
//! nodes, is in [`super::serve`].
//!
//! A peer is known by its certificate, and speaks for itself only. Whoever was taken out of the cluster is refused here, before
//! anything that it says is looked at; so is everybody, once this node was.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::raft::AppendEntriesResponse;
use tokio::time::Instant;

use super::Inner;
use super::drive::is_internal;
use super::serve::{Asker, begun, failed, on_its_own};
use crate::client::ClientRequest;
use crate::codec::Take;
use crate::message::{
    Adoption, Header, Kind, PeerError, check_append, check_sender, encode_append_reply, encode_error,
    encode_forwarded, encode_position, encode_share, encode_vote_reply, ok, take_append, take_forgotten,
    take_host, take_join, take_transfer, take_vote_request,
};
use crate::transport::NodeId;
use crate::types::{LogId, position};

impl Inner {
    /// Begins to answer; an error is the answer.
    pub(super) fn peer_request(
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
                let formed = self.cluster.get().and_then(|cluster| cluster.record());
                if formed.is_some_and(|record| !record.forming) {
                    // Whoever asks has been a part of that as well, unless it has lost its disk.
                    return Err(PeerError::WrongCluster(format!(
                        "node {} is a member of a cluster that was formed long ago; who has lost its disk joins it with \
                         an id that was never used",
                        self.config.node
                    )));
                }
                let adopt = async move {
                    match node.adopt(adoption).await {
                        Ok(()) => encode_share(node.config.weight, &node.config.zone),
                        Err(why) => encode_error(&PeerError::WrongCluster(why)),
                    }
                };
                return Ok(on_its_own(adopt, failed));
            }
            Kind::Join => {
                let (node, addresses) = take_join(take).map_err(malformed)?;
                if NodeId(node) != from {
                    return Err(PeerError::Malformed(format!("node {from} asks for node {node}")));
                }
                return Ok(Arc::clone(self).welcome(from, addresses).boxed());
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
        // What clients ask of it can still be passed on: that is judged by what it is.
        if header.kind != Kind::Forward
            && let Some(refusal) = self.fence.refusal(from)
        {
            return Err(refusal);
        }
        if header.kind != Kind::Forward && self.fence.is_out() {
            let me = self.config.node;
            return Err(PeerError::NoGroup(format!("node {me} was taken out of the cluster itself")));
        }
        if header.kind == Kind::Forward {
            let _client = take.text().map_err(malformed)?;
            let body = take.rest();
            // Whether the client may ask for it was judged by the node that it asked.
            let request = ClientRequest::decode(body.clone()).map_err(malformed)?;
            // But it does not steer the cluster, as it may believe that it does.
            if (request.is_administrative() || is_internal(&request))
                && let Some(refusal) = self.fence.refusal(from)
            {
                return Err(refusal);
            }
            let goes_on = request.is_administrative() || is_internal(&request);
            let serve = Arc::clone(self).serve(request, body, Asker::OtherNode);
            let serve = async move { encode_forwarded(&serve.await) };
            // What is done in several steps goes on if whoever asks is gone: a group could stay closed half-way.
            return Ok(if goes_on { on_its_own(serve, failed) } else { begun(serve) });
        }
        if header.kind == Kind::Host {
            let host = take_host(take).map_err(malformed)?;
            let node = Arc::clone(self);
            let host = async move {
                match node.host_for_peer(header.group, host).await {
                    Ok(()) => ok(0).into(),
                    Err(why) => encode_error(&PeerError::NoGroup(why)),
                }
            };
            return Ok(on_its_own(host, failed));
        }
        let Some(group) = &cluster.group(header.group) else {
            return Err(PeerError::NoGroup(format!("group {} is not here", header.group)));
        };
        if matches!(header.kind, Kind::Vote | Kind::PreVote) && !group.log.may_vote() {
            return Err(PeerError::NoGroup(format!(
                "node {} has had group {} before, and does not vote before it knows as much again",
                self.config.node, header.group
            )));
        }
        let running = || {
            group.raft().ok_or_else(|| PeerError::NoGroup(format!("group {} is being opened", header.group)))
        };
        Ok(match header.kind {
            Kind::Append => {
                let request = take_append(take).map_err(malformed)?;
                check_sender(from, &request.vote)?;
                let raft = running().inspect_err(|_| group.heard_while_down(&request.vote))?;
                let committed = raft.data_metrics().borrow_watched().local_committed;
                check_append(&request, committed).map_err(malformed)?;
                // A leader that has committed nothing of its own may not know yet what was acknowledged before it led.
                let knows_all = |commit: &LogId| commit.leader_id == request.vote.leader_id;
                let (arrived, committed) = (Instant::now(), request.leader_commit.filter(knows_all));
                let (group, room) = (Arc::clone(group), Arc::clone(&self.room));
                begun(async move {
                    match raft.append_entries(request).await {
                        Ok(reply) => {
                            // What one says who has been replaced without knowing is no news.
                            if let Some(committed) = committed
                                && !matches!(reply, AppendEntriesResponse::HigherVote(_))
                            {
                                group.slot.heard(position(committed.index), arrived);
                            }
                            encode_append_reply(&reply, room.is_low())
                        }
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
                check_sender(from, request.from_leader())?;
                let raft = running()?;
                let (group, me) = (Arc::clone(group), self.config.node);
                let at_most = self.config.timing.undisputed();
                begun(async move {
                    // It overtakes the entries that were under way when the leader sent it, and an heir that has not
                    // got them yet would ignore it. The leader takes no more, so there is nobody to write meanwhile.
                    if *request.to_node_id() == me.0 {
                        group.has_received(request.last_log_id(), at_most).await;
                    }
                    let handled = raft.handle_transfer_leader(request).await;
                    handled.map_or_else(failed, |_| ok(0).into())
                })
            }
            Kind::ReadIndex => {
                take.end().map_err(malformed)?;
                let group = Arc::clone(group);
                async move {
                    match group.read_index().await {
                        Ok(at) => encode_position(at),
                        Err(error) => encode_error(&PeerError::NotLeader(error.to_string())),
                    }
                }
                .boxed()
            }
            Kind::Forgotten => {
                let (vote, position) = take_forgotten(take).map_err(malformed)?;
                check_sender(from, &vote)?;
                let group = Arc::clone(group);
                on_its_own(
                    async move { group.forgotten(from, position).await.map_or_else(failed, |()| ok(0).into()) },
                    failed,
                )
            }
            Kind::SnapshotBegin | Kind::SnapshotPiece | Kind::SnapshotFinish => {
                begun(self.snapshots.receive(group, running()?, from, header, take)?)
            }
            Kind::Forward | Kind::Adopt | Kind::Join | Kind::Host => unreachable!("handled above"),
        })
    }
}
