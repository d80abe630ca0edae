//! Requests of clients: answered here, or passed on to who leads. Those of peers are begun in [`super::peer`].

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::codec::{decode_group_read, encode_group_reply};
use dogsled_storage::group::Operation;
use dogsled_storage::kind::{drops_tree, names_tree};
use dogsled_storage::seal::sealed_by;
use dogsled_storage::{Command, IVec};
use futures_util::future::{BoxFuture, Either};
use futures_util::stream::BoxStream;
use futures_util::{FutureExt, StreamExt};
use tokio::time::Instant;

use super::drive::is_internal;
use super::members::LONG;
use super::transactions::failed_read;
use super::{Cluster, Inner, Node};
use crate::client::{ClientReply, ClientRequest};
use crate::codec::Take;
use crate::error::ClusterError;
use crate::message::{Header, PeerError, encode_error, encode_forward, take_reply};
use crate::meta::{self, Change};
use crate::metrics::Asked;
use crate::pin::RESTORE_TREE_NAME;
use crate::ring::tree_hash::RESERVED;
use crate::ring::{META_GROUP, TreeHash};
use crate::transport::{ClientIdentity, Lane, NodeId, Service, TransportError};

/// Nodes that a request is passed on to, one after the other, before it is refused.
const MAX_HOPS: usize = 4;
/// The longest that a request may ask for.
const MAX_DEADLINE: Duration = Duration::from_secs(3600);

/// The future, begun: what it sends before it first waits is sent in the order of these calls, which
/// is the order of arrival, though whoever polls the rest may do so in any.
pub(super) fn begun<T: Send + 'static>(
    future: impl Future<Output = T> + Send + 'static,
) -> BoxFuture<'static, T> {
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

pub(super) fn failed(error: impl std::fmt::Display) -> Bytes {
    encode_error(&PeerError::Failed(error.to_string()))
}

/// The future, as a task: it goes on although nobody polls, as it must if it may hold what others wait for, the right
/// to change which groups a node has. If it is dropped half-way, `lost` is the answer.
pub(super) fn on_its_own(
    future: impl Future<Output = Bytes> + Send + 'static,
    lost: impl FnOnce(String) -> Bytes + Send + 'static,
) -> BoxFuture<'static, Bytes> {
    let task = crate::runtime::spawn(future);
    async move { task.await.unwrap_or_else(|_| lost("the node is stopping".to_owned())) }.boxed()
}

/// What serves a client goes on if the client does not wait for it.
pub(super) fn goes_on(serve: impl Future<Output = Bytes> + Send + 'static) -> BoxFuture<'static, Bytes> {
    on_its_own(serve, |why| ClientReply::Error(ClusterError::OutcomeUnknown(why)).encode())
}

/// Whether an encoded request only reads.
fn is_read(body: &Bytes) -> bool {
    matches!(
        ClientRequest::decode(body.clone()),
        Ok(ClientRequest::Read { .. } | ClientRequest::ReadPinned { .. })
    )
}

/// Who wants something done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Asker {
    Client,
    /// This node itself: what it has to do for its groups must not wait behind what clients want, and those perhaps for that.
    Node,
    /// Another one has passed it on: it is answered here, or not at all.
    OtherNode,
}

impl Asker {
    /// On which lane it may be passed on.
    fn lane(self) -> Option<Lane> {
        match self {
            Asker::Client => Some(Lane::Client),
            Asker::Node => Some(Lane::Data),
            Asker::OtherNode => None,
        }
    }
}

/// A request on its way to another node.
struct Passed {
    body: Bytes,
    lane: Lane,
    deadline: Duration,
    repeatable: bool,
}

/// The refusal of one who does not lead, or has no replica, if that is what the reply is.
fn not_leader(reply: &Bytes) -> Option<ClusterError> {
    // Kind 5 is an error: nothing else is worth decoding.
    if reply.get(1) != Some(&5) {
        return None;
    }
    match ClientReply::decode(reply.clone()) {
        Ok(ClientReply::Error(error @ ClusterError::NotLeader { .. })) => Some(error),
        _ => None,
    }
}

/// Whether a client's command names the tree of the record, which only the cluster itself writes, or locks it: transactions
/// have nothing to do in group 0.
fn writes_the_record(request: &ClientRequest) -> bool {
    let ClientRequest::Submit { group: META_GROUP, command, .. } = request else { return false };
    let is_record = |name: &[u8]| name == meta::TREE.as_bytes();
    let command = dogsled_storage::codec::decode_group_command(command);
    command.is_ok_and(|command| {
        command.trees.iter().any(|tree| is_record(tree))
            || match &command.operation {
                // Their names are not among the command's trees.
                Operation::Command(
                    Command::CreateTree { name }
                    | Command::DropTree { name }
                    | Command::SetQuota { name, .. },
                )
                | Operation::Fenced {
                    command:
                        Command::CreateTree { name }
                        | Command::DropTree { name }
                        | Command::SetQuota { name, .. },
                    ..
                } => is_record(name),
                Operation::Prepare(_)
                | Operation::Commit(_)
                | Operation::Resolve { .. }
                | Operation::Settle { .. }
                | Operation::Forget { .. } => true,
                _ => false,
            }
    })
}

impl Inner {
    /// Refuses a client's command that names a tree which only the cluster makes: it would be made, and mean something. One
    /// that seals the name of another would keep everybody off that, for ever. If it is not refused: the stored names in it of
    /// which nothing is known here, which have to be [looked up](Inner::check_chosen).
    fn check_trees(&self, client: &ClientIdentity, command: &[u8]) -> Result<Vec<IVec>, ClusterError> {
        let (mut refusal, mut unknown) = (None, Vec::new());
        names_tree(command, |name| {
            // Most are nothing of this kind.
            if name.starts_with(RESERVED) {
                refusal = refuse_to_name(client, name);
                let record = || self.cluster.get().and_then(Cluster::record);
                if refusal.is_none()
                    && TreeHash::is_stored(name)
                    && !record().is_some_and(|it| is_chosen(&it, name))
                {
                    unknown.push(IVec::from(name));
                }
            }
            refusal.is_some()
        });
        if refusal.is_none() && drops_tree(command, RESTORE_TREE_NAME) {
            refusal = refuse_to_name(client, RESTORE_TREE_NAME);
        }
        refusal.map_or(Ok(unknown), Err)
    }

    /// Refuses stored names that nobody has chosen, as far as this node can find out: clients may hear of a choice before it
    /// does, and ask again.
    async fn check_chosen(self: &Arc<Self>, names: &[IVec]) -> Result<(), ClusterError> {
        let unavailable = |why: &dyn std::fmt::Display| {
            ClusterError::Unavailable(format!("whether the tree is hashed so is not known: {why}"))
        };
        let record = match ClientReply::decode(self.served(ClientRequest::Record).await) {
            Ok(ClientReply::Record(record)) => record,
            Ok(ClientReply::Error(error)) => return Err(unavailable(&error)),
            Ok(_) => return Err(unavailable(&"an answer to something else")),
            Err(malformed) => return Err(unavailable(&malformed)),
        };
        match names.iter().find(|name| !is_chosen(&record, name)) {
            None => Ok(()),
            Some(name) => {
                let (hash, plain) = TreeHash::of_stored(name);
                let plain = plain.escape_ascii();
                let why = format!("the tree \"{plain}\" is not hashed by {hash}, as far as this node knows");
                Err(ClusterError::Unavailable(why))
            }
        }
    }
}

/// Whether what is hashed of a tree's keys was chosen as a stored name says.
fn is_chosen(record: &meta::Record, stored: &[u8]) -> bool {
    let (hash, plain) = TreeHash::of_stored(stored);
    record.trees.get(plain).is_some_and(|chosen| chosen.hash == hash)
}

fn refuse_to_name(client: &ClientIdentity, name: &[u8]) -> Option<ClusterError> {
    let shown = name.escape_ascii();
    if sealed_by(name).is_some() {
        let why = format!("only the cluster itself makes a tree \"{shown}\": it seals the name of another");
        return Some(ClusterError::Invalid(why));
    }
    if name == RESTORE_TREE_NAME && !client.administrator {
        return Some(ClusterError::Denied(format!(
            "the certificate of \"{}\" is not an administrator's, and only they restore backups (\"{shown}\")",
            client.name
        )));
    }
    let (hash, plain) = TreeHash::of_stored(name);
    let is_no_choice = hash == TreeHash::Whole || hash.stored_name(plain) != name;
    (TreeHash::is_stored(name) && is_no_choice)
        .then(|| ClusterError::Invalid(format!("\"{shown}\" says nothing of what is hashed")))
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
        let (known, body) = match ClientRequest::split_knowing(body) {
            Ok(split) => split,
            Err(error) => return refused(ClusterError::Invalid(error.to_string())),
        };
        let request = match ClientRequest::decode(body.clone()) {
            Ok(request) => request,
            Err(error) => return refused(ClusterError::Invalid(error.to_string())),
        };
        if request.is_administrative() && !client.administrator {
            let denied = ClusterError::Denied(format!(
                "the certificate of \"{}\" is not an administrator's, and only they change the cluster or have its state held",
                client.name
            ));
            self.inner.shared_log.metrics.failed(&denied);
            return refused(denied);
        }
        if is_internal(&request) || writes_the_record(&request) {
            return refused(ClusterError::Invalid("only the cluster itself asks for this".to_owned()));
        }
        let unknown = match &request {
            ClientRequest::Submit { command, .. } => match self.inner.check_trees(client, command) {
                Ok(unknown) => unknown,
                Err(refusal) => {
                    self.inner.shared_log.metrics.failed(&refusal);
                    return refused(refusal);
                }
            },
            _ => Vec::new(),
        };
        let is_administrative = request.is_administrative();
        let serve = Arc::clone(&self.inner).serve(request, body, Asker::Client);
        let serve = match unknown.is_empty() {
            true => Either::Left(serve),
            false => {
                let inner = Arc::clone(&self.inner);
                Either::Right(async move {
                    match inner.check_chosen(&unknown).await {
                        Ok(()) => serve.await,
                        Err(error) => ClientReply::Error(error).encode(),
                    }
                })
            }
        };
        let serve = match is_administrative {
            true => goes_on(serve),
            false => serve.boxed(),
        };
        let Some(known) = known else { return begun(serve) };
        let inner = Arc::clone(&self.inner);
        begun(async move {
            let reply = serve.await;
            inner.with_newer_map(known, reply)
        })
    }

    fn long_reply(&self, body: &Bytes) -> usize {
        ClientRequest::long_reply(body)
    }

    fn client_stream(&self, client: &ClientIdentity, body: Bytes) -> BoxStream<'static, Bytes> {
        let _ = client;
        let error = match ClientRequest::decode(body) {
            Ok(ClientRequest::Watch { .. }) if self.inner.fence.is_out() => self.inner.is_out(),
            Ok(ClientRequest::Watch { group, tree, prefix, told }) => match self.inner.group(group) {
                Ok(group) => {
                    // Those that follow a node that stops, or a group that moves away, are told by the end
                    // of the stream.
                    let mut stop = group.closing.subscribe();
                    let stopped = async move {
                        let _ = stop.wait_for(|stop| *stop).await;
                    };
                    match crate::watch::is_sealed(&group, &tree) {
                        false => {
                            return crate::watch::watch(group, tree, prefix, told)
                                .take_until(stopped)
                                .boxed();
                        }
                        true => failed_read(dogsled_storage::Error::TreeSealed(IVec::from(&tree[..]))),
                    }
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
    /// Answers a request of this node's own. Boxed, because answering may come back to this.
    pub(super) fn served(self: &Arc<Self>, request: ClientRequest) -> BoxFuture<'static, Bytes> {
        let body = request.encode();
        Arc::clone(self).serve(request, body, Asker::Node).boxed()
    }

    /// Answers a request; `body` is the same, to be passed on as far as who asks for it permits.
    pub(super) async fn serve(self: Arc<Self>, request: ClientRequest, body: Bytes, asker: Asker) -> Bytes {
        let deadline = match &request {
            ClientRequest::Submit { deadline, .. }
            | ClientRequest::Read { deadline, .. }
            | ClientRequest::Pin { deadline, .. }
                if !deadline.is_zero() =>
            {
                (*deadline).min(MAX_DEADLINE)
            }
            ClientRequest::AddMember { .. }
            | ClientRequest::RemoveMember { .. }
            | ClientRequest::Change { wait: true, .. }
            | ClientRequest::Recover { .. }
            | ClientRequest::GoOn { .. } => LONG,
            _ => self.config.request_deadline,
        };
        if let ClientRequest::ReadPinned { node, .. } | ClientRequest::KeepPins { node, .. } = request
            && node != self.config.node
            && let Some(lane) = asker.lane()
        {
            let passed_on = self.ask_node(node, lane, body, deadline).await;
            return passed_on.unwrap_or_else(|error| self.answer_failed(error));
        }
        let repeatable = matches!(request, ClientRequest::Submit { .. } | ClientRequest::Read { .. });
        let error = match self.serve_here(request, deadline).await {
            Ok(reply) => return reply.encode(),
            Err(error) => error,
        };
        match (error, asker.lane()) {
            (ClusterError::NotLeader { group, leader, addresses }, Some(lane)) => {
                let not_leader = ClusterError::NotLeader { group, leader, addresses };
                let passed = Passed { body, lane, deadline, repeatable };
                self.pass_on_to_leader(group, leader, passed, not_leader).await
            }
            (error, _) => self.answer_failed(error),
        }
    }

    /// Answers with an error of this node's own, and counts it.
    fn answer_failed(&self, error: ClusterError) -> Bytes {
        self.shared_log.metrics.failed(&error);
        ClientReply::Error(error).encode()
    }

    /// Has a request answered by the leader of a group. If it is not known who that is, whoever is to
    /// have the group is asked, until one of them leads it or says who does. What is `repeatable`, because whoever
    /// asks can repeat it without harm, does not wait for a node that leads no more.
    async fn pass_on_to_leader(
        &self,
        group: u32,
        leader: Option<NodeId>,
        Passed { body, lane, deadline, repeatable }: Passed,
        mut error: ClusterError,
    ) -> Bytes {
        let me = self.config.node;
        let Some(cluster) = self.cluster.get() else { return self.answer_failed(error) };
        // A replica that was given and then not taken into the group hears of no leader, however many there are.
        let here = cluster.group(group).filter(|group| !group.members().0.is_empty());
        let is_here = here.is_some();
        let mut others: Vec<NodeId> = match is_here {
            // It would be known here if anybody led it.
            true => Vec::new(),
            false => cluster.replicas_of(group),
        };
        let mut next = leader;
        let mut asked = vec![me];
        for _ in 0..MAX_HOPS {
            let to = next.take().filter(|node| !asked.contains(node)).or_else(|| {
                others.retain(|node| !asked.contains(node));
                others.first().copied()
            });
            let Some(to) = to else { break };
            asked.push(to);
            self.forwarded.fetch_add(1, Ordering::Relaxed);
            // One that was killed does not say so: whoever has taken its place does.
            let replaced = async {
                match &here {
                    Some(group) if repeatable => group.led_by_another(to).await,
                    _ => std::future::pending().await,
                }
            };
            let passed_on = tokio::select! {
                biased;
                reply = self.ask_node(to, lane, body.clone(), deadline) => reply,
                () = replaced => Err(ClusterError::OutcomeUnknown(format!(
                    "node {to}, which led group {group}, has not answered, and another node leads it now"
                ))),
            };
            let reply = match passed_on {
                Ok(reply) => reply,
                // Who led last is taken for the leader until there is another.
                Err(ClusterError::Unavailable(why)) if is_here => {
                    error = ClusterError::Unavailable(format!(
                        "group {group} has no leader that answers, perhaps most of its replicas are down: {why}"
                    ));
                    continue;
                }
                Err(definite) if definite.is_definite() => {
                    error = definite;
                    continue;
                }
                Err(unknown) => return self.answer_failed(unknown),
            };
            match not_leader(&reply) {
                None => {
                    if !is_here {
                        cluster.leaders.lock().insert(group, to);
                    }
                    return reply;
                }
                Some(refusal) => {
                    if let ClusterError::NotLeader { leader: Some(named), .. } = &refusal {
                        next = Some(*named);
                    }
                    error = refusal;
                }
            }
        }
        self.answer_failed(error)
    }

    /// Has another node answer a client's request.
    pub(super) async fn pass_on(
        &self,
        to: NodeId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ClusterError> {
        self.ask_node(to, Lane::Client, body, deadline).await
    }

    async fn ask_node(
        &self,
        to: NodeId,
        lane: Lane,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ClusterError> {
        let cluster = self.cluster.get().map_or(0, |cluster| cluster.number());
        let request = encode_forward(cluster, "", &body);
        match self.transport.request(to, lane, request, deadline).await {
            Ok(reply) => match take_reply(reply) {
                Ok(mut take) => Ok(take.rest()),
                Err(
                    refused @ (PeerError::WrongCluster(_) | PeerError::NoGroup(_) | PeerError::Malformed(_)),
                ) => Err(ClusterError::Unavailable(refused.to_string())),
                Err(refused @ PeerError::Removed(..)) => {
                    self.fence.refused(&refused);
                    Err(ClusterError::Invalid(refused.to_string()))
                }
                Err(failed) => Err(ClusterError::OutcomeUnknown(failed.to_string())),
            },
            Err(TransportError::ReplyTooLarge(why)) if is_read(&body) => {
                Err(ClusterError::Invalid(format!("{why}; ask for less at a time")))
            }
            Err(error @ (TransportError::Unreachable(_) | TransportError::TooLarge { .. })) => {
                Err(ClusterError::Unavailable(format!("node {to}, which leads: {error}")))
            }
            Err(error) => Err(ClusterError::OutcomeUnknown(format!("node {to}, which leads: {error}"))),
        }
    }

    /// As [`Inner::pass_on`], for what nodes ask of one another: it does not wait for what clients want.
    pub(super) async fn forward(
        &self,
        to: NodeId,
        body: Bytes,
        deadline: Duration,
    ) -> Result<Bytes, ClusterError> {
        self.ask_node(to, Lane::Data, body, deadline).await
    }

    /// What a node says that was taken out.
    pub(super) fn is_out(&self) -> ClusterError {
        ClusterError::Unavailable(format!(
            "node {} was taken out of the cluster: ask one that belongs to it",
            self.config.node
        ))
    }

    /// A reply to one who knows the map of an epoch: with the map, if there is a newer one.
    fn with_newer_map(&self, known: u64, reply: Bytes) -> Bytes {
        // Asked with every answer: the map is put together only for who needs it.
        let newest = self.cluster.get().map_or(0, |cluster| cluster.epoch());
        if newest <= known { reply } else { ClientReply::encode_with_map(self.map(), &reply) }
    }

    async fn serve_here(
        self: &Arc<Self>,
        request: ClientRequest,
        deadline: Duration,
    ) -> Result<ClientReply, ClusterError> {
        let only_looks =
            matches!(request, ClientRequest::Map | ClientRequest::Status | ClientRequest::Record);
        if self.fence.is_out() && !only_looks {
            return Err(self.is_out());
        }
        match request {
            ClientRequest::Submit { group, command, .. } => {
                let (began, group) = (Instant::now(), self.group(group)?);
                self.admit(&group, &command)?;
                let reply = self.propose(&group, &command, deadline).await?;
                let (metrics, now_ms) = (&self.shared_log.metrics, || self.config.clock.now_ms());
                metrics.carried_out((group.id, &group.metrics), &command, &reply, began.elapsed(), now_ms);
                let reply = encode_group_reply(&reply)
                    .map_err(|error| ClusterError::OutcomeUnknown(error.to_string()))?;
                Ok(ClientReply::Applied(reply.into()))
            }
            ClientRequest::Read { group, consistency, read, .. } => {
                let (began, group) = (Instant::now(), &self.group(group)?);
                let read =
                    decode_group_read(&read).map_err(|error| ClusterError::Invalid(error.to_string()))?;
                let asked = Asked::of(group.id, &read);
                let read = self.read(group, read, consistency);
                match tokio::time::timeout(deadline, read).await {
                    Ok(answer) => {
                        let (metrics, now_ms) = (&self.shared_log.metrics, || self.config.clock.now_ms());
                        answer.inspect(|_| metrics.answered(&asked, 1, began.elapsed(), now_ms))
                    }
                    Err(_) => Err(ClusterError::Unavailable("no answer before the deadline".to_owned())),
                }
            }
            ClientRequest::Map => Ok(ClientReply::Map(self.map())),
            ClientRequest::Status => Ok(ClientReply::Status(Box::new(self.status()))),
            ClientRequest::Initialize { partitions, replicas, members } => {
                self.initialize(partitions, replicas, members).await.map(|()| ClientReply::Done)
            }
            ClientRequest::AddMember { node, addresses } => {
                let (weight, zone) = (meta::DEFAULT_WEIGHT, String::new());
                let change = Change::Add { node, addresses, weight, zone };
                self.carry_out(0, true, change, deadline).await.map(|()| ClientReply::Done)
            }
            ClientRequest::RemoveMember { node } => {
                self.carry_out(0, true, Change::Remove { node }, deadline).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Change { epoch, change: Change::HashTree { tree, hash }, .. } => {
                self.hash_tree(epoch, tree, hash, deadline).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Change { epoch, wait, change } => {
                self.carry_out(epoch, wait, change, deadline).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Record => self.tell_record().await,
            ClientRequest::Membership { group } => self.membership(group).await,
            ClientRequest::TransferLeader { group, to } => {
                self.transfer_leader(group, to).await.map(|()| ClientReply::Done)
            }
            ClientRequest::ChangeGroup { group, based_on, change } => {
                self.change_group(group, based_on, change, deadline).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Recover { lost, accept_data_loss } => {
                let recovery = self.recover(lost, accept_data_loss, deadline).await?;
                Ok(ClientReply::Recovery(Box::new(recovery)))
            }
            ClientRequest::GoOn { operation, lost, groups } => {
                self.go_on(operation, lost, groups).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Hold { operation, stage, lost } => {
                self.hold(operation, stage, lost).await.map(|()| ClientReply::Done)
            }
            ClientRequest::Pin { group, under, lease, .. } => {
                let (group, until) = (&self.group(group)?, Instant::now() + deadline);
                match tokio::time::timeout(deadline, self.pin(group, under, lease, until)).await {
                    Ok(pinned) => pinned,
                    Err(_) => Err(ClusterError::Unavailable("no answer before the deadline".to_owned())),
                }
            }
            ClientRequest::ReadPinned { group, under, read, .. } => {
                self.read_pinned(group, under, read).await
            }
            ClientRequest::KeepPins { under, keep, groups, .. } => self.keep_pins(&groups, under, keep),
            ClientRequest::Watch { .. } => Err(ClusterError::Invalid("a watch is a stream".to_owned())),
        }
    }
}
