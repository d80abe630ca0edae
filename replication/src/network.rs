//! openraft's side of the network: what a leader or candidate of a group sends, over a
//! [`Transport`].
//!
//! # Lanes
//!
//! Entries go on [`Lane::Data`]; votes, heartbeats and the like on [`Lane::Control`], so that no
//! amount of data delays them; snapshots on [`Lane::Bulk`].
//!
//! # Pipelining
//!
//! A leader does not wait for a follower's answer before it sends more: up to
//! [`MAX_IN_FLIGHT`] requests or [`MAX_IN_FLIGHT_BYTES`] are on their way to a follower for each
//! group, answers are given to openraft in the order of the requests, and beyond that the log
//! waits on disk, not in memory. The first error ends the stream; openraft begins another from what
//! it knows to have arrived.
//!
//! # Errors
//!
//! openraft waits ever longer before it tries a peer again that is *unreachable*, and tries at once
//! after any other error. So that is what everything is called that will not get better by trying
//! at once.
//!
//! # What is committed goes with the next entries
//!
//! When entries are committed openraft tells each follower in a request without entries. Under load the next
//! entries follow within moments and say the same, so such a request [waits a little](HOLD) for them, and is
//! dropped if they come: two messages and two wake-ups of Raft fewer at every follower for each batch. Nobody
//! waits for it: who wrote is answered when the leader knows, and a read at a follower makes the leader ask its
//! quorum, which tells them, too. (openraft does not need an answer to each request: what is known to match
//! answers all requests up to there. Which of them a peer has answered is noted
//! [here](crate::confirmations), for reads.)

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, Stream, StreamExt};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::{Backoff, RPCOption, RPCTypes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};

use crate::acknowledged::Acknowledged;
use crate::confirmations::{Confirmations, Moment};
use crate::fence::Fence;
use crate::message::{
    Kind, PeerError, encode_append, encode_forgotten, encode_transfer, encode_vote, take_append_reply,
    take_reply, take_vote_reply,
};
use crate::room::Room;
use crate::runtime::together;
use crate::snapshot::{SnapshotData, Snapshots};
use crate::state_machine::{Machine, ReplicaSlot};
use crate::transport::{Lane, NodeId, Transport, TransportError};
use crate::types::{LeaderId, LogId, Member, SnapshotOf, TypeConfig, Vote, position};

/// Requests on their way to one follower for one group.
const MAX_IN_FLIGHT: usize = 128;
/// Their bytes; one more request may begin as long as there are fewer.
const MAX_IN_FLIGHT_BYTES: usize = 4 << 20;
/// How long a request that only says what is committed waits for entries to go with, and then for the end of
/// another such time, at which those of all groups go in one packet.
const HOLD: Duration = Duration::from_millis(5);

type RpcError = RPCError<TypeConfig>;

/// What the connections of a group share.
#[derive(Clone)]
pub(crate) struct Network {
    pub(crate) node: NodeId,
    pub(crate) group: u32,
    pub(crate) cluster: u64,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) snapshots: Arc<Snapshots>,
    pub(crate) fence: Arc<Fence>,
    /// Who has said that its disk is nearly full.
    pub(crate) room: Arc<Room>,
    /// The replica whose state is sent.
    pub(crate) slot: Arc<ReplicaSlot>,
    /// Who has confirmed that this node leads.
    pub(crate) confirmations: Arc<Confirmations>,
    /// What the followers have acknowledged.
    pub(crate) acknowledged: Arc<Acknowledged>,
    /// How long a request with entries may take: longer than a slow sync.
    pub(crate) append_deadline: Duration,
    /// The first and the last wait before a peer that was unreachable is tried again.
    pub(crate) backoff: (Duration, Duration),
}

/// One group's way to one peer.
pub(crate) struct Connection {
    network: Network,
    to: NodeId,
    lane: Lane,
}

impl RaftNetworkFactory<TypeConfig> for Network {
    type Network = Connection;

    async fn new_client(&mut self, target: u64, _: &Member) -> Connection {
        Connection { network: self.clone(), to: NodeId(target), lane: Lane::Data }
    }

    async fn new_heartbeat_client(&mut self, target: u64, _: &Member) -> Connection {
        Connection { network: self.clone(), to: NodeId(target), lane: Lane::Control }
    }

    async fn new_snapshot_client(&mut self, target: u64, _: &Member) -> Connection {
        Connection { network: self.clone(), to: NodeId(target), lane: Lane::Bulk }
    }
}

impl Connection {
    fn request(&self, lane: Lane, body: Bytes, deadline: Duration) -> Request {
        if self.network.fence.is_out() {
            let why = format!("node {} was taken out of the cluster itself", self.network.node);
            return std::future::ready(Err(TransportError::Unreachable(why))).boxed();
        }
        if self.network.fence.is_shut_out(self.to) {
            // A log that is older than that may still count it among its voters.
            let why = format!("node {} was taken out of the cluster, or is just being given up", self.to);
            return std::future::ready(Err(TransportError::Unreachable(why))).boxed();
        }
        self.network.transport.request(self.to, lane, body, deadline)
    }

    async fn ask(
        &self,
        lane: Lane,
        action: RPCTypes,
        body: Bytes,
        deadline: Duration,
    ) -> Result<crate::codec::Take, RpcError> {
        let reply = self.request(lane, body, deadline).await;
        let reply = reply.map_err(|error| self.rpc_error(action, deadline, error))?;
        take_reply(reply).map_err(|error| self.refused(&error))
    }

    /// Sends entries, or asks for what is there; but to who has forgotten what it had acknowledged, only that.
    fn append(
        &self,
        lane: Lane,
        request: &AppendEntriesRequest<TypeConfig>,
        deadline: Duration,
    ) -> (Request, Asked, usize) {
        let Network { node, group, cluster, confirmations, acknowledged, .. } = &self.network;
        let leader = request.vote.leader_id;
        let previous = request.prev_log_id;
        let last = request.entries.last().map(|entry| entry.log_id).or(previous);
        let asked = Asked { leader, made: confirmations.now(), previous, last };
        let Some(position) = acknowledged.forgotten(self.to, leader) else {
            let body = encode_append(*cluster, *group, request);
            let bytes = body.len();
            return (self.request(lane, body, deadline), asked, bytes);
        };
        let body = encode_forgotten(*cluster, *group, &request.vote, position);
        let told = self.request(Lane::Control, body, deadline);
        let (to, acknowledged) = (self.to, Arc::clone(acknowledged));
        let why = format!(
            "node {to} lacks what it had acknowledged to node {node} in group {group}, up to entry {position}"
        );
        let refused = async move {
            // Otherwise it is told again with the next request.
            if told.await.is_ok_and(|reply| take_reply(reply).is_ok()) {
                acknowledged.is_told(to, leader);
            }
            Err(TransportError::Unreachable(why))
        };
        (refused.boxed(), asked, 0)
    }

    /// The answer to what was asked.
    fn take_append_reply(
        &self,
        take: crate::codec::Take,
        Asked { leader, made, previous, last }: Asked,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let (reply, is_low) = take_append_reply(take).map_err(unreadable)?;
        self.network.room.heard(self.to, is_low);
        let Network { acknowledged, confirmations, group, .. } = &self.network;
        match (&reply, &previous) {
            (AppendEntriesResponse::HigherVote(_), _) => {}
            (AppendEntriesResponse::Success, _) => {
                let last = last.map_or(0, |last| position(last.index));
                acknowledged.has(self.to, leader, last, confirmations.now());
            }
            (AppendEntriesResponse::PartialSuccess(last), _) => {
                let last = last.map_or(0, |last| position(last.index));
                acknowledged.has(self.to, leader, last, confirmations.now());
            }
            // A follower of no entries at all cannot miss one; openraft relies on it.
            (AppendEntriesResponse::Conflict, None) => {
                return Err(unreadable(crate::codec::Malformed(
                    "a conflict before the first entry".to_owned(),
                )));
            }
            (AppendEntriesResponse::Conflict, Some(previous)) => {
                let lacked = position(previous.index);
                if acknowledged.lacks(self.to, leader, lacked, made) {
                    tracing::warn!(
                        group,
                        node = self.to.0,
                        lacked,
                        "a follower lacks what it had acknowledged; it does not vote before it has it again"
                    );
                    let why = format!("node {} has lost what it had acknowledged", self.to);
                    return Err(RPCError::Unreachable(Unreachable::new(&TransportError::Unreachable(why))));
                }
            }
        }
        match reply {
            AppendEntriesResponse::HigherVote(_) => {}
            AppendEntriesResponse::Success
            | AppendEntriesResponse::PartialSuccess(_)
            | AppendEntriesResponse::Conflict => {
                self.network.confirmations.confirmed(self.to, leader, made);
            }
        }
        Ok(reply)
    }

    fn refused(&self, error: &PeerError) -> RpcError {
        self.network.fence.refused(error);
        RPCError::Unreachable(Unreachable::new(error))
    }

    fn rpc_error(&self, action: RPCTypes, timeout: Duration, error: TransportError) -> RpcError {
        match error {
            TransportError::TimedOut => {
                RPCError::Timeout(Timeout { action, id: self.network.node.0, target: self.to.0, timeout })
            }
            TransportError::Lost(_) | TransportError::ReplyTooLarge(_) => {
                RPCError::Network(NetworkError::new(&error))
            }
            TransportError::Unreachable(_) | TransportError::TooLarge { .. } => {
                RPCError::Unreachable(Unreachable::new(&error))
            }
        }
    }
}

fn unreadable(error: crate::codec::Malformed) -> RpcError {
    RPCError::Unreachable(Unreachable::new(&error))
}

type Request = BoxFuture<'static, Result<Bytes, TransportError>>;

/// What a follower was asked to have.
#[derive(Clone, Copy)]
struct Asked {
    /// In which leadership.
    leader: LeaderId,
    /// When.
    made: Moment,
    /// The entry before those that were sent.
    previous: Option<LogId>,
    /// The last one.
    last: Option<LogId>,
}

struct InFlight {
    request: Request,
    bytes: usize,
    asked: Asked,
}

/// Sends what `input` gives as long as there is room; gives the answers in order.
struct Pipeline<'s, S> {
    connection: &'s Connection,
    input: Option<S>,
    deadline: Duration,
    in_flight: VecDeque<InFlight>,
    bytes: usize,
    hold: Hold,
    ended: bool,
}

/// Which requests wait for others to go with.
struct Hold {
    /// Heartbeats go at once.
    is_used: bool,
    /// The last entry that was sent or asked for in this stream; `None` before the first request.
    sent: Option<Option<LogId>>,
    /// A request without entries that waits for some, and until when.
    held: Option<(AppendEntriesRequest<TypeConfig>, Pin<Box<tokio::time::Sleep>>)>,
}

impl Hold {
    /// What is to be sent now that there is another request, in this order.
    fn take(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
    ) -> impl Iterator<Item = AppendEntriesRequest<TypeConfig>> + use<> {
        let previous = request.prev_log_id;
        let (first, until) = match self.held.take() {
            // This one says the same and more.
            Some((held, until)) if held.prev_log_id == previous => (None, Some(until)),
            Some((held, _)) => (Some(held), None),
            None => (None, None),
        };
        // The first request of a stream finds out what matches, which must not wait.
        let second = if self.is_used && request.entries.is_empty() && self.sent == Some(previous) {
            let until = until.unwrap_or_else(|| Box::pin(tokio::time::sleep(together(HOLD, HOLD))));
            self.held = Some((request, until));
            None
        } else {
            self.sent = Some(request.entries.last().map(|entry| entry.log_id).or(previous));
            Some(request)
        };
        first.into_iter().chain(second)
    }

    /// What has waited long enough, or for nothing: without an `input` nothing will come.
    fn poll_over(
        &mut self,
        context: &mut Context<'_>,
        input: bool,
    ) -> Option<AppendEntriesRequest<TypeConfig>> {
        let (_, until) = self.held.as_mut()?;
        let is_over = until.poll_unpin(context).is_ready() || !input;
        if is_over { self.held.take().map(|(request, _)| request) } else { None }
    }
}

impl<S> Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    fn send_more(&mut self, context: &mut Context<'_>) {
        while self.in_flight.len() < MAX_IN_FLIGHT && self.bytes < MAX_IN_FLIGHT_BYTES {
            let Some(input) = &mut self.input else { break };
            match input.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(None) => self.input = None,
                Poll::Ready(Some(request)) => self.hold.take(request).for_each(|request| self.send(request)),
            }
        }
        if let Some(request) = self.hold.poll_over(context, self.input.is_some()) {
            self.send(request);
        }
    }

    fn send(&mut self, request: AppendEntriesRequest<TypeConfig>) {
        let (request, asked, bytes) = self.connection.append(self.connection.lane, &request, self.deadline);
        self.bytes += bytes;
        self.in_flight.push_back(InFlight { request, bytes, asked });
    }
}

impl<S> Stream for Pipeline<'_, S>
where
    S: Stream<Item = AppendEntriesRequest<TypeConfig>> + Unpin,
{
    type Item = Result<StreamAppendResult<TypeConfig>, RpcError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        this.send_more(context);
        let Some(oldest) = this.in_flight.front_mut() else {
            return match this.input {
                None => Poll::Ready(None),
                Some(_) => Poll::Pending,
            };
        };
        let Poll::Ready(reply) = oldest.request.poll_unpin(context) else { return Poll::Pending };
        let asked = oldest.asked;
        this.bytes -= oldest.bytes;
        this.in_flight.pop_front();
        let result = reply
            .map_err(|error| this.connection.rpc_error(RPCTypes::AppendEntries, this.deadline, error))
            .and_then(|bytes| take_reply(bytes).map_err(|error| this.connection.refused(&error)))
            .and_then(|take| this.connection.take_append_reply(take, asked))
            .map(|reply| reply.into_stream_result(asked.previous, asked.last));
        let whole = matches!(&result, Ok(Ok(matching)) if *matching == asked.last);
        // What follows a request that failed, fails; what follows a part would leave a gap.
        this.ended = !whole;
        Poll::Ready(Some(result))
    }
}

impl RaftNetworkV2<TypeConfig> for Connection {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<TypeConfig>, RpcError> {
        let deadline = option.soft_ttl();
        let (reply, asked, _) = self.append(self.lane, &request, deadline);
        let reply = reply.await.map_err(|error| self.rpc_error(RPCTypes::AppendEntries, deadline, error))?;
        let take = take_reply(reply).map_err(|error| self.refused(&error))?;
        self.take_append_reply(take, asked)
    }

    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Result<StreamAppendResult<TypeConfig>, RpcError>>, RpcError>>
    where
        S: Stream<Item = AppendEntriesRequest<TypeConfig>> + OptionalSend + Unpin + 'static,
    {
        // A heartbeat that comes late is worthless. Entries are not: that a follower's disk is slow
        // must not make the leader send them again.
        let deadline = match self.lane {
            Lane::Control => option.soft_ttl(),
            _ => self.network.append_deadline,
        };
        let is_used = self.lane == Lane::Data;
        let pipeline = Pipeline {
            connection: self,
            input: Some(input),
            deadline,
            in_flight: VecDeque::new(),
            bytes: 0,
            hold: Hold { is_used, sent: None, held: None },
            ended: false,
        };
        std::future::ready(Ok(pipeline.boxed())).boxed()
    }

    async fn vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = encode_vote(Kind::Vote, self.network.cluster, self.network.group, &request);
        let take = self.ask(Lane::Control, RPCTypes::Vote, body, option.soft_ttl()).await?;
        take_vote_reply(take).map_err(unreadable)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<VoteResponse<TypeConfig>, RpcError> {
        let body = encode_vote(Kind::PreVote, self.network.cluster, self.network.group, &request);
        let take = self.ask(Lane::Control, RPCTypes::Vote, body, option.soft_ttl()).await?;
        take_vote_reply(take).map_err(unreadable)
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Machine>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _: RPCOption,
    ) -> Result<SnapshotResponse<TypeConfig>, StreamingError<TypeConfig>> {
        self.network.snapshots.send(&self.network, self.to, vote, snapshot, cancel).await
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<TypeConfig>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<TypeConfig>, RpcError> {
        let body = encode_transfer(self.network.cluster, self.network.group, &request);
        let mut take = self.ask(Lane::Control, RPCTypes::TransferLeader, body, option.soft_ttl()).await?;
        // Whether it was taken up shows in who leads; nothing here depends on the answer.
        let _ = take.rest();
        Ok(Ok(()))
    }

    fn backoff(&self) -> Option<Backoff> {
        let (first, last) = self.network.backoff;
        Some(Backoff::new(std::iter::successors(Some(first), move |wait| Some((*wait * 2).min(last)))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;
    use crate::types::{Entry, LeaderId};

    fn log_id(index: u64) -> LogId {
        LogId { leader_id: LeaderId { term: 1, node_id: 1 }, index }
    }

    /// After `previous`, with so many entries, when so much is committed.
    fn request(previous: u64, entries: u64, committed: u64) -> AppendEntriesRequest<TypeConfig> {
        let entry = |index| Entry { log_id: log_id(index), payload: openraft::EntryPayload::Blank };
        AppendEntriesRequest {
            vote: Vote::new_committed(1, 1),
            prev_log_id: Some(log_id(previous)),
            leader_commit: Some(log_id(committed)),
            entries: (previous + 1..=previous + entries).map(entry).collect(),
        }
    }

    /// Length and commit of what goes at once.
    fn given(hold: &mut Hold, request: AppendEntriesRequest<TypeConfig>) -> Vec<(usize, u64)> {
        let commit = |sent: &AppendEntriesRequest<TypeConfig>| sent.leader_commit.map_or(0, |id| id.index);
        hold.take(request).map(|sent| (sent.entries.len(), commit(&sent))).collect()
    }

    async fn over(hold: &mut Hold, input: bool) -> Option<u64> {
        let over = poll_fn(|context| Poll::Ready(hold.poll_over(context, input))).await;
        over.and_then(|request| request.leader_commit).map(|id| id.index)
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_committed_goes_with_the_next_entries_or_alone_after_a_while() {
        let mut hold = Hold { is_used: true, sent: None, held: None };
        assert_eq!(given(&mut hold, request(4, 0, 2)), [(0, 2)], "the first finds out what matches");
        assert_eq!(given(&mut hold, request(4, 2, 2)), [(2, 2)]);
        assert_eq!(given(&mut hold, request(6, 0, 5)), []);
        assert_eq!(given(&mut hold, request(6, 0, 6)), [], "a newer one takes its place");
        assert_eq!(over(&mut hold, true).await, None);
        assert_eq!(given(&mut hold, request(6, 1, 6)), [(1, 6)], "the entries say it");
        tokio::time::sleep(HOLD * 3).await;
        assert_eq!(over(&mut hold, true).await, None, "nothing is left to be said");

        assert_eq!(given(&mut hold, request(7, 0, 7)), []);
        tokio::time::sleep(HOLD * 3).await;
        assert_eq!(over(&mut hold, true).await, Some(7));
        assert_eq!(given(&mut hold, request(7, 0, 8)), []);
        assert_eq!(over(&mut hold, false).await, Some(8), "nothing else will come");
        assert_eq!(given(&mut hold, request(7, 0, 9)), []);
        assert_eq!(
            given(&mut hold, request(3, 1, 9)),
            [(0, 9), (1, 9)],
            "that of another place is no substitute"
        );
    }

    #[tokio::test]
    async fn a_heartbeat_does_not_wait() {
        let mut hold = Hold { is_used: false, sent: None, held: None };
        for _ in 0..3 {
            assert_eq!(given(&mut hold, request(4, 0, 4)), [(0, 4)]);
        }
    }
}
