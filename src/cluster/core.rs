//! [`Core`]: what all clones of a client share, and the loop that carries a call through.
//!
//! ```text
//! Core::submit   a number in the session, the command under that number ─┐
//! Core::read     the read ───────────────────────────────────────────────┤
//!                                                                        ▼
//! Core::call     pick a node ─► ask it ─► answered? done
//!                    ▲            │
//!                    └─ wait ◄────┴ no answer, does not lead, no quorum: learn from it
//! ```

mod call;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use dogsled_net::{CertificateSource, ClientEndpoint, NetOptions};
use dogsled_replication as replication;
use dogsled_replication::pin::PinnedState;
use dogsled_replication::ring::TreeHash;
use dogsled_replication::{
    ClientReply, ClientRequest, ClusterError, ClusterMap, Consistency, NodeId, ReadAnswer, Service,
    TransportError, ring,
};
use dogsled_storage::codec::{
    decode_group_read_reply, decode_group_reply, encode_group_command, encode_group_read,
};
use dogsled_storage::{
    Answer, Command, Fence, GroupCommand, GroupRead, GroupReply, IVec, Operation, Refusal, Reply, SessionId,
    TransactionId,
};
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep, sleep_until, timeout_at};

use self::call::{Answered, BACK_OFF, Link, Repeat, this_process};
use super::finishing::Finishing;
use super::options::Behaviour;
use super::pool::Pool;
use super::read_from::{Prefer, ReadFrom};
use super::session::{Numbered, Session, Sessions, Upkeep, random_u64};
use super::subscriber::follower::Shared;
use super::{Error, Result};
use crate::QuotaExceeded;

/// How long the beginning of a stream may take.
const OPEN_STREAM: Duration = Duration::from_secs(5);
/// How long a call that was refused, because it named a tree as it was named before what is hashed of its keys was
/// chosen, waits to be told of the choice.
const RENAMED: Duration = Duration::from_secs(3);
/// How long closing sessions may take.
const FAREWELL: Duration = Duration::from_secs(1);

/// An operation that was not carried out, or perhaps was.
pub(super) struct Failed {
    pub(super) error: Error,
    /// If the outcome is unknown: what whoever asks for it has to use.
    pub(super) number: Option<Numbered>,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Failed {
        Failed { error, number: None }
    }
}

/// How nodes are reached.
pub(super) enum Reach {
    /// Over the network.
    Network(Pool),
    /// The node is in this process; it passes on what it cannot do itself.
    Here { node: replication::Node, stopped: watch::Receiver<bool>, elsewhere: Box<Elsewhere> },
}

/// The way from a node's own client to other nodes, for what its node cannot pass on: to follow a
/// partition that the node has no replica of. Nothing is opened before it is needed.
pub(super) struct Elsewhere {
    certificates: CertificateSource,
    net: NetOptions,
    pool: OnceLock<Pool>,
}

impl Elsewhere {
    pub(super) fn new(certificates: CertificateSource, net: NetOptions) -> Box<Elsewhere> {
        Box::new(Elsewhere { certificates, net, pool: OnceLock::new() })
    }

    fn pool(&self) -> Result<&Pool, TransportError> {
        if let Some(pool) = self.pool.get() {
            return Ok(pool);
        }
        let endpoint = ClientEndpoint::open(&self.certificates, self.net.clone())?;
        Ok(self.pool.get_or_init(|| Pool::new(endpoint, Vec::new())))
    }
}

/// See the [module](self).
pub(super) struct Core {
    pub(super) reach: Reach,
    pub(super) map: watch::Sender<Arc<ClusterMap>>,
    /// Wakes whoever asks for a new map.
    pub(super) ask: Notify,
    /// Whether anything was called since the last map.
    pub(super) used: AtomicBool,
    pub(super) page_bytes: u64,
    pub(super) finishing: Finishing,
    /// Who follows keys for several.
    pub(super) watches: Shared,
    sessions: Sessions,
    transactions: AtomicU64,
    session_lease: Duration,
    max_pipelined_writes: usize,
    closed: AtomicBool,
    closing: Notify,
    random: AtomicU64,
    turn: AtomicUsize,
    home: usize,
    zone: String,
}

/// What is known of a reply that is not the one expected.
pub(super) fn unexpected(reply: &dyn std::fmt::Debug) -> Error {
    Error::Incompatible(format!("the answer to something else: {reply:?}"))
}

impl Core {
    pub(super) fn new(reach: Reach, options: &Behaviour) -> Arc<Core> {
        let core = Arc::new(Core {
            reach,
            map: watch::Sender::default(),
            ask: Notify::new(),
            used: AtomicBool::new(false),
            page_bytes: options.page_bytes,
            finishing: Finishing::default(),
            watches: Shared::default(),
            sessions: Sessions::new(),
            transactions: AtomicU64::new(0),
            session_lease: options.session_lease.max(Duration::from_secs(1)),
            max_pipelined_writes: options.max_pipelined_writes.clamp(1, 32 << 10),
            closed: AtomicBool::new(false),
            closing: Notify::new(),
            random: AtomicU64::new(random_u64()),
            turn: AtomicUsize::new(random_u64() as usize >> 1),
            home: random_u64() as usize >> 1,
            zone: options.zone.clone(),
        });
        tokio::spawn(upkeep(Arc::downgrade(&core), core.session_lease));
        core
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed)
            || matches!(&self.reach, Reach::Here { stopped, .. } if *stopped.borrow())
    }

    fn check_open(&self) -> Result<()> {
        if self.is_closed() { Err(Error::Closed) } else { Ok(()) }
    }

    /// Ends the client: calls under way end at their next attempt.
    pub(super) async fn close(&self) {
        if !self.is_closed() {
            // What was decided is told to those who wait for it.
            let _ = tokio::time::timeout(FAREWELL, self.finishing.idle()).await;
        }
        if self.closed.swap(true, Ordering::Relaxed) {
            return;
        }
        self.closing.notify_waiters();
        self.ask.notify_one();
        let sessions = self.sessions.end_all();
        let told = sessions.into_iter().map(|(group, session)| self.close_session(group, session));
        let _ = tokio::time::timeout(FAREWELL, futures_util::future::join_all(told)).await;
        match &self.reach {
            Reach::Network(pool) => pool.close(),
            Reach::Here { elsewhere, .. } => {
                if let Some(pool) = elsewhere.pool.get() {
                    pool.close();
                }
            }
        }
    }

    /// How many partitions there are; waits until it is known.
    pub(super) async fn partitions(&self, until: Instant) -> Result<u32> {
        loop {
            self.check_open()?;
            let mut maps = self.map.subscribe();
            let known = maps.borrow_and_update().partitions;
            if known > 0 {
                return Ok(known);
            }
            if Instant::now() >= until {
                let why = "no node that belongs to a cluster was reached before the deadline";
                return Err(Error::Unavailable(why.to_owned()));
            }
            match &self.reach {
                Reach::Here { node, .. } => {
                    let partitions = node.map().partitions;
                    let map = ClusterMap { partitions, ..ClusterMap::default() };
                    self.map.send_replace(Arc::new(map));
                    if partitions == 0 {
                        sleep(until.saturating_duration_since(Instant::now()).min(Duration::from_millis(20)))
                            .await;
                    }
                }
                Reach::Network(_) => {
                    self.ask.notify_one();
                    let soon = until.min(Instant::now() + Duration::from_millis(200));
                    // Whether it came or not is seen above.
                    let _ = timeout_at(soon, maps.changed()).await;
                }
            }
        }
    }

    /// The group of a key.
    pub(super) async fn group_of(&self, key: &[u8], until: Instant) -> Result<u32> {
        let known = self.map.borrow().partitions;
        let partitions = if known > 0 { known } else { self.partitions(until).await? };
        Ok(ring::group_of(key, partitions))
    }

    /// What is hashed of the keys of a tree, as far as is known here.
    pub(super) fn tree_hash(&self, tree: &[u8]) -> TreeHash {
        match &self.reach {
            Reach::Here { node, .. } => node.tree_hash(tree),
            Reach::Network(_) => self.map.borrow().tree_hash(tree),
        }
    }

    /// The name under which partitions keep a tree; see [`ring::tree_hash`].
    pub(super) fn stored_name(&self, tree: &IVec) -> IVec {
        match self.tree_hash(tree) {
            TreeHash::Whole => tree.clone(),
            other => other.stored_name(tree),
        }
    }

    /// After a partition has refused one of these names, and so has done nothing: whether another one is known for
    /// it by now. The newer map has come with the refusal if the node that refused had it; otherwise it is asked for,
    /// and for a while waited for: what is hashed is told to clients only once all partitions go by it.
    pub(super) async fn is_renamed<'a>(
        &self,
        stored: impl IntoIterator<Item = &'a IVec> + Clone,
        until: Instant,
    ) -> bool {
        let is_old = |stored: &IVec| {
            let (hash, name) = TreeHash::of_stored(stored);
            hash == TreeHash::Whole && self.tree_hash(name) != TreeHash::Whole
        };
        let until = until.min(Instant::now() + RENAMED);
        for attempt in 0.. {
            if stored.clone().into_iter().any(is_old) {
                return true;
            }
            if Instant::now() >= until || self.is_closed() {
                break;
            }
            self.before_next_attempt(attempt).await;
        }
        false
    }

    /// The group of a key in a tree that partitions keep under this name.
    pub(super) async fn group_in(&self, stored: &[u8], key: &[u8], until: Instant) -> Result<u32> {
        let known = self.map.borrow().partitions;
        let partitions = if known > 0 { known } else { self.partitions(until).await? };
        Ok(ring::group_in(stored, key, partitions))
    }

    /// Has a command carried out exactly once, unless the outcome is unknown.
    pub(super) async fn submit(
        &self,
        group: u32,
        trees: Vec<IVec>,
        command: Command,
        until: Instant,
    ) -> Result<GroupReply> {
        self.submit_operation(group, trees, Operation::Command(command), until).await
    }

    async fn submit_operation(
        &self,
        group: u32,
        trees: Vec<IVec>,
        operation: Operation,
        until: Instant,
    ) -> Result<GroupReply> {
        let carried_out = self.carry_out(group, trees, operation, until).await;
        carried_out.map_err(|failed| failed.error)
    }

    /// As [`Core::submit`], for any operation that a session may number.
    pub(super) async fn carry_out(
        &self,
        group: u32,
        trees: Vec<IVec>,
        operation: Operation,
        until: Instant,
    ) -> Result<GroupReply, Failed> {
        let mut command = GroupCommand { session: None, time_ms: 0, trees, operation };
        loop {
            let session = self.session(group, until).await?;
            let number = match timeout_at(until, session.number(self.max_pipelined_writes)).await {
                Ok(Some(number)) => number,
                // It has just ended.
                Ok(None) => continue,
                Err(_) => {
                    let why = "too many writes were under way until the deadline";
                    return Err(Error::Unavailable(why.to_owned()).into());
                }
            };
            command.session = Some(number.tag);
            let bytes = encode_group_command(&command).map_err(|error| Error::Invalid(error.to_string()))?;
            let answered = self.call_command(group, bytes.into(), Repeat::Numbered, until).await;
            let Answered { reply, perhaps_before } = match answered {
                Ok(answered) => answered,
                Err(error) => {
                    let number = (!error.is_definite()).then_some(number);
                    return Err(Failed { error, number });
                }
            };
            let reply = applied(reply)?;
            session.heard(reply.time_ms);
            match reply.result {
                Err(Refusal::SessionUnknown(_)) => {
                    self.sessions.place(group).forget(&session);
                    if perhaps_before {
                        let why = "the session ended before the outcome was heard";
                        return Err(Error::OutcomeUnknown(why.to_owned()).into());
                    }
                    // Nothing was done: once more, in a new session.
                    if Instant::now() >= until {
                        return Err(Error::Unavailable("the session has ended".to_owned()).into());
                    }
                }
                Err(Refusal::Forgotten { .. }) => {
                    return Err(Error::OutcomeUnknown("a later write has taken its place".to_owned()).into());
                }
                // Nodes wait until the lock is gone. A copy may still be on its way to one.
                Err(Refusal::Locked(lock)) if perhaps_before => {
                    let error = Error::OutcomeUnknown(lock.to_string());
                    return Err(Failed { error, number: Some(number) });
                }
                Err(Refusal::Locked(lock)) => return Err(Error::Unavailable(lock.to_string()).into()),
                // What is hashed of its keys was chosen since this client was told of the map: see
                // [`Core::is_renamed`].
                Err(sealed @ Refusal::TreeSealed(_)) => {
                    self.ask.notify_one();
                    return Err(Error::Conflict(sealed.to_string()).into());
                }
                Err(Refusal::Malformed(what)) => return Err(Error::Incompatible(what).into()),
                Err(Refusal::LockNotHeld { lock, token, current }) => {
                    return Err(Error::LockNotHeld { lock, token, current }.into());
                }
                Err(Refusal::QuotaExceeded(exceeded)) => {
                    let tree = IVec::from(TreeHash::of_stored(&exceeded.tree).1);
                    return Err(Error::QuotaExceeded(QuotaExceeded { tree, ..exceeded }).into());
                }
                Err(refusal @ (Refusal::Invalid(_) | Refusal::TooLarge(_) | Refusal::TreeNotFound(_))) => {
                    let (Refusal::Invalid(what) | Refusal::TooLarge(what)) = refusal else {
                        return Err(Error::Invalid(refusal.to_string()).into());
                    };
                    return Err(Error::Invalid(what).into());
                }
                Ok(_) => return Ok(reply),
            }
        }
    }

    /// Sends an operation under a number that was used already.
    pub(super) async fn repeat(
        &self,
        group: u32,
        number: &Numbered,
        operation: Operation,
        until: Instant,
    ) -> Result<GroupReply> {
        let command = GroupCommand { session: Some(number.tag), time_ms: 0, trees: Vec::new(), operation };
        let bytes = encode_group_command(&command).map_err(|error| Error::Invalid(error.to_string()))?;
        applied(self.call_command(group, bytes.into(), Repeat::Harmless, until).await?.reply)
    }

    /// Has an operation carried out that may be carried out more than once.
    pub(super) async fn operate(
        &self,
        group: u32,
        operation: Operation,
        until: Instant,
    ) -> Result<GroupReply> {
        let bytes = encode_operation(operation)?;
        applied(self.call_command(group, bytes, Repeat::Harmless, until).await?.reply)
    }

    /// The time of a group's log, as far as is known here.
    pub(super) async fn log_time_ms(&self, group: u32, until: Instant) -> Result<u64> {
        Ok(self.session(group, until).await?.log_time_ms())
    }

    /// A number that no transaction had before.
    pub(super) fn fresh_transaction(&self) -> TransactionId {
        let number = self.transactions.fetch_add(1, Ordering::Relaxed);
        TransactionId(self.sessions.base().wrapping_add(u128::from(number)))
    }

    /// As [`Core::submit`]; what the command was answered, and the log's time there.
    pub(super) async fn execute(
        &self,
        group: u32,
        trees: Vec<IVec>,
        command: Command,
        until: Instant,
    ) -> Result<(Reply, u64)> {
        let GroupReply { time_ms, result, .. } = self.submit(group, trees, command, until).await?;
        match result {
            Ok(Answer::Reply(reply)) => Ok((reply, time_ms)),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Core::execute`], but only while locks are held.
    pub(super) async fn execute_fenced(
        &self,
        group: u32,
        trees: Vec<IVec>,
        fences: &[Fence],
        command: Command,
        until: Instant,
    ) -> Result<Reply> {
        match self.submit_fenced(group, trees, fences, command, until).await?.result {
            Ok(Answer::Reply(reply)) => Ok(reply),
            other => Err(unexpected(&other)),
        }
    }

    /// As [`Core::submit`], but only while locks are held.
    pub(super) async fn submit_fenced(
        &self,
        group: u32,
        trees: Vec<IVec>,
        fences: &[Fence],
        command: Command,
        until: Instant,
    ) -> Result<GroupReply> {
        if fences.is_empty() {
            return self.submit(group, trees, command, until).await;
        }
        for fence in fences {
            if self.group_of(&fence.lock, until).await? != group {
                return Err(Error::Invalid(format!(
                    "lock \"{}\" and what is to be written under it are of different partitions, and a partition \
                     knows its own locks only: give both a common {{tag}}",
                    fence.lock.escape_ascii()
                )));
            }
        }
        let operation = Operation::Fenced { fences: fences.to_vec(), command };
        self.submit_operation(group, trees, operation, until).await
    }

    /// The session in a group, opened if there is none.
    async fn session(&self, group: u32, until: Instant) -> Result<Arc<Session>> {
        let place = self.sessions.place(group);
        if let Some(session) = place.get() {
            return Ok(session);
        }
        let not_opened = |why: &str| Error::Unavailable(format!("no session with group {group}: {why}"));
        let Ok(_one_at_a_time) = timeout_at(until, place.opening.lock()).await else {
            return Err(not_opened("none was opened before the deadline"));
        };
        loop {
            if let Some(session) = place.get() {
                return Ok(session);
            }
            self.check_open()?;
            let lease_ms = self.session_lease.as_millis() as u64;
            // Another id in each attempt: a copy of one that was given up may arrive when the session has been used and
            // closed, and must not open it again, with nothing known of what was done in it.
            let open = |session| encode_operation(Operation::OpenSession { session, lease_ms });
            let latest = Mutex::new(self.sessions.fresh_id());
            open(*latest.lock())?;
            let make = |deadline| {
                let session = self.sessions.fresh_id();
                *latest.lock() = session;
                let command = open(session).expect("one like it was encoded");
                ClientRequest::Submit { group, deadline, command }
            };
            let answered = self.call(Some(group), Prefer::Leader, Repeat::Harmless, until, make).await?;
            let reply = applied(answered.reply)?;
            match reply.result {
                Ok(Answer::Session { .. }) => {
                    let session = Arc::new(Session::new(*latest.lock()));
                    session.heard(reply.time_ms);
                    place.set(Arc::clone(&session));
                    return Ok(session);
                }
                // The answer came after the lease had ended.
                Err(Refusal::SessionUnknown(_)) if Instant::now() < until => {}
                Err(refusal) => return Err(not_opened(&refusal.to_string())),
                Ok(other) => return Err(unexpected(&other)),
            }
        }
    }

    async fn close_session(&self, group: u32, session: SessionId) {
        let Ok(command) = encode_operation(Operation::CloseSession { session }) else { return };
        let request = ClientRequest::Submit { group, deadline: FAREWELL, command };
        // Once: if it fails, the lease ends it.
        if let Ok((_, link)) = self.link(Some(group), None, Prefer::Leader).await {
            let _ = link.request(request.encode(), FAREWELL).await;
        }
    }

    async fn call_command(
        &self,
        group: u32,
        command: Bytes,
        repeat: Repeat,
        until: Instant,
    ) -> Result<Answered> {
        let make = |deadline| ClientRequest::Submit { group, deadline, command: command.clone() };
        self.call(Some(group), Prefer::Leader, repeat, until, make).await
    }

    /// Has the state of a group held that is locked as a whole.
    pub(super) async fn pin(
        &self,
        group: u32,
        under: TransactionId,
        lease: Duration,
        until: Instant,
    ) -> Result<PinnedState> {
        let make = |deadline| ClientRequest::Pin { group, deadline, under, lease };
        match self.call(Some(group), Prefer::Leader, Repeat::Harmless, until, make).await?.reply {
            ClientReply::Pinned(pinned) => Ok(pinned),
            other => Err(unexpected(&other)),
        }
    }

    /// Reads from one group.
    pub(super) async fn read(
        &self,
        group: u32,
        read: &GroupRead,
        from: ReadFrom,
        until: Instant,
    ) -> Result<ReadAnswer> {
        self.read_of(group, read, from.prefer(), from.consistency(), until).await
    }

    /// What the leader has applied, without asking others whether it still leads: it was committed, but
    /// later entries may have been, too.
    pub(super) async fn read_of_leader(
        &self,
        group: u32,
        read: &GroupRead,
        until: Instant,
    ) -> Result<ReadAnswer> {
        self.read_of(group, read, Prefer::Leader, Consistency::Stale, until).await
    }

    /// A linearizable read, if the node of this client can answer it within the call; otherwise it is for
    /// [`Core::read`].
    pub(super) fn read_at_once(&self, group: u32, read: &GroupRead) -> Option<ReadAnswer> {
        let Reach::Here { node, .. } = &self.reach else { return None };
        if self.is_closed() {
            return None;
        }
        let (reply, position) = node.read_at_once(group, read)?;
        Some(ReadAnswer { reply, position, age: None })
    }

    /// As [`Core::read_at_once`] of strings of Redis's, by group and tree.
    pub(super) fn texts_at_once<'a>(
        &self,
        asked: impl Iterator<Item = (u32, &'a IVec, &'a IVec)>,
    ) -> Option<Vec<Option<IVec>>> {
        let Reach::Here { node, .. } = &self.reach else { return None };
        if self.is_closed() { None } else { node.texts_at_once(asked) }
    }

    async fn read_of(
        &self,
        group: u32,
        read: &GroupRead,
        prefer: Prefer,
        consistency: Consistency,
        until: Instant,
    ) -> Result<ReadAnswer> {
        if consistency == Consistency::Linearizable
            && let Some(answer) = self.read_at_once(group, read)
        {
            return Ok(answer);
        }
        let read = encode_group_read(read).map_err(|error| Error::Invalid(error.to_string()))?;
        let read = Bytes::from(read);
        let make = |deadline| ClientRequest::Read { group, deadline, consistency, read: read.clone() };
        match self.call(Some(group), prefer, Repeat::Harmless, until, make).await?.reply {
            ClientReply::Read { position, age, reply } => {
                let reply = decode_group_read_reply(&reply)
                    .map_err(|error| Error::Incompatible(error.to_string()))?;
                Ok(ReadAnswer { reply, position, age })
            }
            other => Err(unexpected(&other)),
        }
    }

    /// Begins to follow keys of one group, at a node that is not `avoid` if there is another: messages to
    /// be decoded by [`replication::watch::WatchEvent`].
    pub(super) async fn open_watch(
        &self,
        request: &ClientRequest,
        group: u32,
        avoid: Option<NodeId>,
    ) -> Result<(NodeId, BoxStream<'static, Result<Bytes, TransportError>>), TransportError> {
        self.used.store(true, Ordering::Relaxed);
        let (node, link) = match &self.reach {
            Reach::Here { node, elsewhere, .. } if !node.hosts(group) => {
                self.link_elsewhere(node, elsewhere.pool()?, group, avoid).await?
            }
            _ => self.link(Some(group), avoid, Prefer::Leader).await?,
        };
        let stream = match link {
            Link::Network(connection) => connection.open_stream(request.encode(), OPEN_STREAM).await?.boxed(),
            Link::Here(node) => node.client_stream(&this_process(), request.encode()).map(Ok).boxed(),
        };
        Ok((node, stream))
    }

    /// Waits a little before another attempt, and asks for a new map.
    pub(super) async fn before_next_attempt(&self, attempt: u32) {
        self.ask.notify_one();
        self.back_off(attempt, Instant::now() + BACK_OFF.1).await;
    }

    /// Asks nodes for what any of them can tell, until one does.
    pub(super) async fn ask_any(&self, request: &ClientRequest, until: Instant) -> Result<ClientReply> {
        let answered = self.call(None, Prefer::Any, Repeat::Harmless, until, |_| request.clone()).await?;
        Ok(answered.reply)
    }

    /// Asks one node, once: for what is not to be repeated, or is asked of that node only.
    pub(super) async fn ask_once(
        &self,
        node: Option<NodeId>,
        request: &ClientRequest,
        until: Instant,
    ) -> Result<ClientReply> {
        self.check_open()?;
        let unavailable = |error: TransportError| Error::Unavailable(error.to_string());
        let asked = async {
            let link = match (node, &self.reach) {
                (Some(node), Reach::Network(pool)) => {
                    Link::Network(pool.connection(node).await.map_err(unavailable)?)
                }
                _ => self.link(None, None, Prefer::Any).await.map_err(unavailable)?.1,
            };
            let left = until.saturating_duration_since(Instant::now());
            match link.request(request.encode(), left).await {
                Ok(reply) => Ok(reply),
                Err(error @ TransportError::Unreachable(_)) => Err(unavailable(error)),
                Err(error) => Err(Error::OutcomeUnknown(error.to_string())),
            }
        };
        let reply = match timeout_at(until, asked).await {
            Ok(reply) => reply?,
            Err(_) => return Err(Error::OutcomeUnknown("no answer before the deadline".to_owned())),
        };
        match ClientReply::decode(reply).map_err(|error| Error::Incompatible(error.to_string()))? {
            ClientReply::Error(ClusterError::Invalid(what)) => Err(Error::Invalid(what)),
            ClientReply::Error(ClusterError::OutcomeUnknown(why)) => Err(Error::OutcomeUnknown(why)),
            ClientReply::Error(ClusterError::Denied(what)) => Err(Error::Denied(what)),
            ClientReply::Error(ClusterError::Conflict(what)) => Err(Error::Conflict(what)),
            ClientReply::Error(ClusterError::NoSpace(what)) => Err(Error::NoSpace(what)),
            ClientReply::Error(error) => Err(Error::Unavailable(error.to_string())),
            reply => Ok(reply),
        }
    }
}

/// Who leads a group; if nobody has said, who is to.
pub(super) fn leader_of(map: &ClusterMap, group: u32) -> Option<NodeId> {
    let known = map.leaders.get(group as usize).copied().flatten();
    known.or_else(|| map.replicas_of(group).first().copied())
}

fn encode_operation(operation: Operation) -> Result<Bytes> {
    let command = GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation };
    let bytes = encode_group_command(&command).map_err(|error| Error::Invalid(error.to_string()))?;
    Ok(bytes.into())
}

fn applied(reply: ClientReply) -> Result<GroupReply> {
    match reply {
        ClientReply::Applied(bytes) => {
            decode_group_reply(&bytes).map_err(|error| Error::Incompatible(error.to_string()))
        }
        other => Err(unexpected(&other)),
    }
}

/// Renews the sessions that are used, and closes those that are not.
async fn upkeep(core: std::sync::Weak<Core>, lease: Duration) {
    let third = lease / 3;
    let soon = (lease / 20).max(Duration::from_millis(1));
    let mut next = Instant::now() + third;
    // What could not be renewed is tried again soon, and nothing else: a third later its lease might be over.
    let mut failed: BTreeSet<u32> = BTreeSet::new();
    loop {
        let again = Instant::now() + soon;
        sleep_until(if failed.is_empty() { next } else { next.min(again) }).await;
        let is_all = Instant::now() >= next;
        if is_all {
            next = Instant::now() + third;
        }
        let Some(core) = core.upgrade().filter(|core| !core.is_closed()) else { return };
        let until = Instant::now() + lease / 3;
        let (core, before) = (&core, &failed);
        let due = core.sessions.upkeep(lease).into_iter().map(|due| async move {
            match due {
                Upkeep::Close(group, session) => core.close_session(group, session).await,
                Upkeep::Renew(group, _) if !is_all && !before.contains(&group) => {}
                Upkeep::Renew(group, session) => {
                    let Ok(bytes) = encode_operation(Operation::RenewSession { session: session.id }) else {
                        return None;
                    };
                    let renewed = core.call_command(group, bytes, Repeat::Harmless, until).await;
                    let reply = renewed.and_then(|answered| applied(answered.reply));
                    match reply {
                        Ok(GroupReply { result: Err(Refusal::SessionUnknown(_)), .. }) => {
                            core.sessions.place(group).forget(&session);
                        }
                        Ok(reply) => session.heard(reply.time_ms),
                        Err(_) => return Some(group),
                    }
                }
            }
            None
        });
        failed = futures_util::future::join_all(due).await.into_iter().flatten().collect();
    }
}
