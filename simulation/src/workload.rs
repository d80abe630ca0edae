//! [`Client`]: somebody who uses the cluster, and writes down what was asked for and what was heard.
//!
//! Clients are mean in the ways that matter: all of them work on the same few keys, they ask nodes
//! that do not lead, they go to another node after an error, they give up. Some work in sessions, and
//! retry whatever they do not know the outcome of, under the same number. The others never repeat
//! what may have happened, and so find out whether a refusal is one: they ask again after an error
//! that says that nothing was done, and write the first try down as never to happen.

mod transactions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogsled_replication::ring::group_of;
use dogsled_replication::{ClientReply, ClientRequest, ClusterError, Consistency, NodeId};
use dogsled_storage::codec::{
    decode_group_read_reply, decode_group_reply, encode_group_command, encode_group_read,
};
use dogsled_storage::command::Write;
use dogsled_storage::counter::{CounterAddition, CounterCommand, CounterReply};
use dogsled_storage::group::{
    Answer, GroupCommand, GroupRead, GroupReadReply, Operation, Refusal, SessionId, SessionTag,
};
use dogsled_storage::{Command, IVec, Reply, TreeId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::LogTimes;
use crate::history::{Action, BOUNDS, Heard, History, Kind, Outcome, Value};
use crate::locks::Held;
use crate::network::SimulatedNetwork;
use crate::owners::Owned;
use crate::random::Random;
use crate::trace::{Trace, event};
use crate::watchers::Watched;

pub use transactions::{Finals, Ledger, Recorded};

/// The tree that clients work in.
pub(crate) const TREE: &str = "tree";
/// Tries of one operation before a client gives it up.
const TRIES: u64 = 12;

/// What there is to work on.
#[derive(Clone, Debug)]
pub struct Objects {
    /// Keys.
    pub keys: Vec<String>,
    /// Pairs of keys, by their common tag.
    pub pairs: Vec<String>,
    /// Counters that are only added to.
    pub counters: Vec<String>,
    /// Counters that are kept within bounds, and set.
    pub bounded: Vec<String>,
    /// Pairs of counters that are only added to together, by their common tag.
    pub twins: Vec<String>,
}

/// What a run's clients share.
pub struct Shared {
    /// How they reach nodes.
    pub network: SimulatedNetwork,
    /// What they write down.
    pub history: History,
    /// What those were told who watch.
    pub watched: Watched,
    /// What those were told who hold locks.
    pub held: Held,
    /// What those were told who own keys that end by themselves.
    pub owned: Owned,
    /// What time the logs had where.
    pub log: LogTimes,
    /// How often nodes were started.
    pub starts: Arc<AtomicU64>,
    /// What happens.
    pub trace: Trace,
    /// Whom to ask, as of now.
    pub nodes: Mutex<Vec<NodeId>>,
    /// How many partitions there are.
    pub partitions: u32,
    /// What to work on.
    pub objects: Objects,
    /// What must not be, and was seen by a client itself.
    pub violations: Mutex<Vec<String>>,
    /// What transactions there were.
    pub ledger: Ledger,
    /// All of them that happened, and what there was in the end.
    pub recorded: Mutex<Recorded>,
    /// When the life began.
    pub began: Instant,
}

impl Shared {
    /// How often nodes were started so far.
    pub fn starts(&self) -> u64 {
        self.starts.load(Ordering::Relaxed)
    }
}

struct Session {
    id: SessionId,
    next: u64,
}

/// See the [module](self).
pub struct Client {
    number: u64,
    shared: Arc<Shared>,
    random: Random,
    /// By group, if it works in sessions.
    sessions: Option<BTreeMap<u32, Session>>,
    lease_ms: u64,
    think_ms: (u64, u64),
    values: u64,
    /// What it last saw of each key: a good guess for a swap.
    known: BTreeMap<String, Value>,
    /// Whom it asks first.
    favourite: NodeId,
}

/// What came of asking.
enum Asked {
    Reply(ClientReply),
    /// Nothing was done.
    Refused(Option<NodeId>),
    Unknown,
}

fn value_bytes(value: Value) -> IVec {
    // Long enough that a run fills segments.
    let mut bytes = vec![0xdd; 8 + (value % 97) as usize * 8];
    bytes[..8].copy_from_slice(&value.to_be_bytes());
    bytes.into()
}

pub(crate) fn value_of(bytes: Option<&IVec>) -> Value {
    bytes.and_then(|bytes| bytes.get(..8)).map_or(0, |head| {
        let mut value = [0; 8];
        value.copy_from_slice(head);
        u64::from_be_bytes(value)
    })
}

fn command(operation: Command) -> GroupCommand {
    GroupCommand {
        session: None,
        time_ms: 0,
        trees: vec![TREE.into()],
        operation: Operation::Command(operation),
    }
}

fn halves(tag: &str) -> [IVec; 2] {
    [format!("{{{tag}}}a").as_str().into(), format!("{{{tag}}}b").as_str().into()]
}

impl Client {
    /// A client; with sessions, or without.
    pub fn new(number: u64, seed: u64, shared: Arc<Shared>, sessions: bool) -> Client {
        let mut random = Random::new(seed, 10_000 + number);
        let favourite = *random.pick(&shared.nodes.lock());
        let slowest = *random.pick(&[10, 40, 150]);
        Client {
            number,
            sessions: sessions.then(BTreeMap::new),
            lease_ms: *random.pick(&[2_000, 20_000, 600_000]),
            think_ms: (0, slowest),
            values: 0,
            known: BTreeMap::new(),
            favourite,
            random,
            shared,
        }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.one().await;
            let wait = self.random.between(self.think_ms.0, self.think_ms.1);
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
    }

    fn new_value(&mut self) -> Value {
        self.values += 1;
        self.number * 1_000_000 + self.values
    }

    async fn one(&mut self) {
        let shared = Arc::clone(&self.shared);
        let objects = &shared.objects;
        // Not drawn for where there are none: those lives stay what they were.
        if !objects.bounded.is_empty() && self.random.chance(200) {
            return self.count(objects).await;
        }
        match self.random.below(100) {
            0..25 => {
                let key = self.random.pick(&objects.keys).clone();
                self.read_key(&key, None).await;
            }
            25..50 => {
                let key = self.random.pick(&objects.keys).clone();
                let value = self.new_value();
                let put =
                    Command::Insert { tree: TreeId(0), key: key.as_str().into(), value: value_bytes(value) };
                self.write_key(&key, Action::Put(value), put).await;
            }
            50..58 => {
                let key = self.random.pick(&objects.keys).clone();
                let remove = Command::Remove { tree: TreeId(0), key: key.as_str().into() };
                self.write_key(&key, Action::Remove, remove).await;
            }
            58..70 => {
                let key = self.random.pick(&objects.keys).clone();
                let old = self.known.get(&key).copied().unwrap_or(0);
                let new = self.new_value();
                let bytes = |value| if value == 0 { None } else { Some(value_bytes(value)) };
                let swap = Command::CompareAndSwap {
                    tree: TreeId(0),
                    key: key.as_str().into(),
                    old: bytes(old),
                    new: bytes(new),
                };
                self.write_key(&key, Action::Swap(old, new), swap).await;
            }
            70..76 => {
                let tag = self.random.pick(&objects.pairs).clone();
                let value = self.new_value();
                let [first, second] = halves(&tag);
                let half = |key| Write { tree: TreeId(0), key, value: Some(value_bytes(value)) };
                let batch = Command::Batch { writes: vec![half(first), half(second)] };
                self.write_key(&tag, Action::Write(value), batch).await;
            }
            76..82 => {
                let tag = self.random.pick(&objects.pairs).clone();
                self.read_pair(&tag, None).await;
            }
            82..96 => {
                let name = self.random.pick(&objects.counters).clone();
                let delta = self.random.between(1, 3) as i64;
                let add = Command::Counter(CounterCommand::Add { name: name.as_str().into(), delta });
                self.write(&name, Kind::Counter, Action::Add(delta), add).await;
            }
            _ => {
                let name = self.random.pick(&objects.counters).clone();
                self.read_counter(&name, None).await;
            }
        }
    }

    /// Does something with a counter that is more than one, or has bounds.
    async fn count(&mut self, objects: &Objects) {
        let name = self.random.pick(&objects.bounded).clone();
        let tag = self.random.pick(&objects.twins).clone();
        let (min, max) = BOUNDS.into_inner();
        match self.random.below(100) {
            0..40 => {
                let delta = self.random.between(0, 10) as i64 - 5;
                let add = CounterCommand::AddWithin { name: name.as_str().into(), delta, min, max };
                self.write(&name, Kind::Counter, Action::AddWithin(delta), Command::Counter(add)).await;
            }
            40..55 => {
                let expected = self.known.get(&name).copied().unwrap_or(0);
                let value = self.random.between(min as u64, max as u64);
                let set = CounterCommand::SetIf {
                    name: name.as_str().into(),
                    expected: expected as i64,
                    value: value as i64,
                };
                self.write(&name, Kind::Counter, Action::Swap(expected, value), Command::Counter(set)).await;
            }
            55..65 => {
                self.read_counter(&name, None).await;
            }
            _ => {
                // With nothing it is a look at both.
                let delta = self.random.between(0, 3) as i64;
                let additions =
                    halves(&tag).into_iter().map(|name| CounterAddition { name, delta }).collect();
                let add = Command::CountMany { additions };
                self.write(&tag, Kind::Counter, Action::Add(delta), add).await;
            }
        }
    }

    async fn write_key(&mut self, key: &str, action: Action, operation: Command) {
        self.write(key, Kind::Register, action, operation).await;
    }

    /// Sends a request to a node and tells what came of it.
    async fn ask(&mut self, node: NodeId, request: &ClientRequest) -> Asked {
        let deadline = Duration::from_millis(2_500);
        let answer = self.shared.network.ask(self.number, node, request.encode(), deadline).await;
        let reply = match answer {
            Ok(bytes) => match ClientReply::decode(bytes) {
                Ok(reply) => reply,
                Err(error) => {
                    self.violation(format!("node {node} gave an answer that cannot be read: {error}"));
                    return Asked::Unknown;
                }
            },
            Err(dogsled_replication::TransportError::Unreachable(_)) => return Asked::Refused(None),
            Err(_) => return Asked::Unknown,
        };
        match reply {
            ClientReply::Error(ClusterError::NotLeader { leader, .. }) => Asked::Refused(leader),
            ClientReply::Error(ClusterError::Invalid(what)) => {
                self.violation(format!("node {node} found a request invalid: {what}"));
                Asked::Refused(None)
            }
            ClientReply::Error(error) if error.is_definite() => Asked::Refused(None),
            ClientReply::Error(_) => Asked::Unknown,
            reply => Asked::Reply(reply),
        }
    }

    fn violation(&self, what: String) {
        event!(self.shared.trace, "client {}: VIOLATION: {what}", self.number);
        self.shared.violations.lock().push(format!("client {}: {what}", self.number));
    }

    /// Whom to ask after an answer that was none.
    async fn go_on(&mut self, hint: Option<NodeId>) {
        self.favourite = match hint {
            Some(leader) if self.random.chance(700) => leader,
            _ => *self.random.pick(&self.shared.nodes.lock()),
        };
        let wait = self.random.between(5, 150);
        tokio::time::sleep(Duration::from_millis(wait)).await;
    }

    /// The session's tag for the next command of a group, from a session that is open.
    async fn tag(&mut self, group: u32) -> Option<SessionTag> {
        let known = self.sessions.as_mut()?.get_mut(&group).map(|session| {
            session.next += 1;
            SessionTag { session: session.id, slot: 0, sequence: session.next }
        });
        if known.is_some() {
            return known;
        }
        // Drawn anew for each: a number is never used twice, not even after a failed opening.
        let id = SessionId((u128::from(self.number) << 64) | u128::from(self.random.number()));
        let open = GroupCommand {
            session: None,
            time_ms: 0,
            trees: Vec::new(),
            operation: Operation::OpenSession { session: id, lease_ms: self.lease_ms },
        };
        let request = submit(group, &open)?;
        for _ in 0..TRIES {
            match self.ask(self.favourite, &request).await {
                Asked::Reply(ClientReply::Applied(_)) => {
                    let tag = SessionTag { session: id, slot: 0, sequence: 1 };
                    self.sessions.as_mut()?.insert(group, Session { id, next: 1 });
                    return Some(tag);
                }
                Asked::Refused(hint) => self.go_on(hint).await,
                Asked::Reply(_) | Asked::Unknown => self.go_on(None).await,
            }
        }
        None
    }

    async fn write(&mut self, object: &str, kind: Kind, action: Action, operation: Command) {
        let group = self.group(object, kind);
        let mut command = command(operation);
        if self.sessions.is_some() {
            match self.tag(group).await {
                Some(tag) => command.session = Some(tag),
                None => return,
            }
        }
        let Some(request) = submit(group, &command) else { return };
        let begun = self.shared.history.invoke(self.number, object, kind, action);
        event!(self.shared.trace, "client {} {object} {action:?}", self.number);
        let (outcome, position) = self.until_known(group, &request, command.session.is_some()).await;
        if kind == Kind::Register {
            self.tell_watched(group, position, object, action, outcome);
        }
        event!(self.shared.trace, "client {} {object} {action:?}: {outcome:?}", self.number);
        self.shared.history.answer(&begun, outcome);
        match (outcome, action) {
            (Outcome::Heard(Heard::Differs(value)), _)
            | (Outcome::Heard(Heard::Value(value)), Action::AddWithin(_)) => {
                self.known.insert(object.to_owned(), value)
            }
            (Outcome::Heard(_), Action::Put(value) | Action::Swap(_, value)) => {
                self.known.insert(object.to_owned(), value)
            }
            (Outcome::Heard(_), Action::Remove) => self.known.insert(object.to_owned(), 0),
            _ => None,
        };
    }

    /// In a session, until the outcome is known or patience is at an end; otherwise until it is known
    /// or may have happened. With the position in the log, if it happened.
    async fn until_known(&mut self, group: u32, request: &ClientRequest, in_session: bool) -> (Outcome, u64) {
        let mut maybe = false;
        let or_unknown = |maybe: bool| (if maybe { Outcome::Unknown } else { Outcome::Refused }, 0);
        for _ in 0..TRIES {
            match self.ask(self.favourite, request).await {
                Asked::Reply(ClientReply::Applied(reply)) => match decode_group_reply(&reply) {
                    Ok(reply) => {
                        self.shared.log.note(group, &reply);
                        match reply.result {
                            Ok(Answer::Reply(answer)) => return (self.heard(answer), reply.position),
                            Err(Refusal::SessionUnknown(_)) => {
                                if let Some(sessions) = &mut self.sessions {
                                    sessions.remove(&group);
                                }
                                return or_unknown(maybe);
                            }
                            other => {
                                self.violation(format!("a command was answered by {other:?}"));
                                return (Outcome::Unknown, 0);
                            }
                        }
                    }
                    Err(error) => {
                        self.violation(format!("a reply cannot be read: {error}"));
                        return (Outcome::Unknown, 0);
                    }
                },
                Asked::Reply(other) => {
                    self.violation(format!("a command was answered by {other:?}"));
                    return (Outcome::Unknown, 0);
                }
                Asked::Refused(hint) => self.go_on(hint).await,
                Asked::Unknown => {
                    maybe = true;
                    self.go_on(None).await;
                    if !in_session {
                        break;
                    }
                }
            }
        }
        or_unknown(maybe)
    }

    /// What certainly happened, and where in the log, for those who compare it with what watchers are
    /// told.
    fn tell_watched(&self, group: u32, position: u64, object: &str, action: Action, outcome: Outcome) {
        let Outcome::Heard(heard) = outcome else { return };
        let watched = &self.shared.watched;
        match (action, heard) {
            (Action::Put(value), _) | (Action::Swap(_, value), Heard::Swapped) => {
                watched.acknowledged(group, position, object.as_bytes(), value)
            }
            (Action::Remove, Heard::Value(before)) if before != 0 => {
                watched.acknowledged(group, position, object.as_bytes(), 0)
            }
            (Action::Write(value), _) => {
                halves(object).iter().for_each(|key| watched.acknowledged(group, position, key, value))
            }
            _ => {}
        }
    }

    fn heard(&self, reply: Reply) -> Outcome {
        Outcome::Heard(match reply {
            Reply::Done => Heard::Done,
            Reply::Previous(before) => Heard::Value(value_of(before.as_ref())),
            Reply::Swapped(Ok(())) => Heard::Swapped,
            Reply::Swapped(Err(found)) => Heard::Differs(value_of(found.as_ref())),
            Reply::Counter(CounterReply::Added { value }) => Heard::Value(value as u64),
            Reply::Counter(CounterReply::OutOfBounds { current }) => Heard::Differs(current as u64),
            Reply::Counter(CounterReply::Swapped(Ok(()))) => Heard::Swapped,
            Reply::Counter(CounterReply::Swapped(Err(found))) => Heard::Differs(found as u64),
            Reply::Counted(sums) => {
                let sums: Vec<i64> = sums.0.iter().map(|sum| sum.delta).collect();
                let [first, second] = sums[..] else {
                    self.violation(format!("additions to two counters came to {sums:?}"));
                    return Outcome::Unknown;
                };
                if first != second {
                    self.violation(format!(
                        "counters that are added to together stand at {first} and {second}"
                    ));
                }
                Heard::Value(first as u64)
            }
            other => {
                self.violation(format!("a command came to {other:?}"));
                return Outcome::Unknown;
            }
        })
    }

    fn group(&self, object: &str, kind: Kind) -> u32 {
        match kind {
            // A pair lies where its tag does.
            Kind::Register | Kind::Counter => group_of(object.as_bytes(), self.shared.partitions),
        }
    }

    /// Reads; a read that fails changes nothing, so it is left out of the history. From `node`, once,
    /// if that is given.
    async fn read(
        &mut self,
        object: &str,
        kind: Kind,
        read: &GroupRead,
        node: Option<NodeId>,
        value: impl Fn(&Client, GroupReadReply) -> Option<u64>,
    ) -> bool {
        let group = self.group(object, kind);
        let Ok(read) = encode_group_read(read) else { return false };
        let request = ClientRequest::Read {
            group,
            deadline: Duration::ZERO,
            consistency: Consistency::Linearizable,
            read: read.into(),
        };
        // Any node answers reads.
        let from = node.unwrap_or_else(|| *self.random.pick(&self.shared.nodes.lock()));
        let begun = self.shared.history.invoke(self.number, object, kind, Action::Get);
        event!(self.shared.trace, "client {} {object} Get from {from}", self.number);
        let outcome = match self.ask(from, &request).await {
            Asked::Reply(ClientReply::Read { reply, .. }) => match decode_group_read_reply(&reply) {
                Ok(reply) => {
                    value(self, reply).map_or(Outcome::Refused, |value| Outcome::Heard(Heard::Value(value)))
                }
                Err(error) => {
                    self.violation(format!("a reply cannot be read: {error}"));
                    Outcome::Refused
                }
            },
            Asked::Reply(other) => {
                self.violation(format!("a read was answered by {other:?}"));
                Outcome::Refused
            }
            Asked::Refused(_) | Asked::Unknown => Outcome::Refused,
        };
        event!(self.shared.trace, "client {} {object} Get: {outcome:?}", self.number);
        self.shared.history.answer(&begun, outcome);
        if let (Outcome::Heard(Heard::Value(value)), Kind::Register) = (outcome, kind) {
            self.known.insert(object.to_owned(), value);
        }
        outcome != Outcome::Refused
    }

    async fn read_key(&mut self, key: &str, node: Option<NodeId>) -> bool {
        let get = GroupRead::Get { tree: TREE.into(), key: key.into() };
        let value = |client: &Client, reply: GroupReadReply| match reply {
            GroupReadReply::Value(found) => Some(value_of(found.map(|found| found.value).as_ref())),
            other => {
                client.violation(format!("a get was answered by {other:?}"));
                None
            }
        };
        self.read(key, Kind::Register, &get, node, value).await
    }

    async fn read_pair(&mut self, tag: &str, node: Option<NodeId>) -> bool {
        let get = GroupRead::GetMany { tree: TREE.into(), keys: halves(tag).into() };
        let value = |client: &Client, reply: GroupReadReply| match reply {
            GroupReadReply::Values(found) if found.len() == 2 => {
                let [first, second] = [0, 1].map(|at| value_of(found[at].as_ref().map(|found| &found.value)));
                if first != second {
                    client.violation(format!("half of a batch: pair {tag} is {first} and {second}"));
                }
                Some(first)
            }
            other => {
                client.violation(format!("a get of two was answered by {other:?}"));
                None
            }
        };
        self.read(tag, Kind::Register, &get, node, value).await
    }

    async fn read_counter(&mut self, name: &str, node: Option<NodeId>) -> bool {
        let get = GroupRead::Counter { name: name.into() };
        let value = |client: &Client, reply: GroupReadReply| match reply {
            GroupReadReply::Counter(value) => Some(value.unwrap_or(0) as u64),
            other => {
                client.violation(format!("a counter was answered by {other:?}"));
                None
            }
        };
        self.read(name, Kind::Counter, &get, node, value).await
    }

    /// Reads one of two counters that are added to together.
    async fn read_half(&mut self, tag: &str, half: &IVec, node: NodeId) -> bool {
        let get = GroupRead::Counter { name: half.clone() };
        let value = |_: &Client, reply: GroupReadReply| match reply {
            GroupReadReply::Counter(value) => Some(value.unwrap_or(0) as u64),
            _ => None,
        };
        self.read(tag, Kind::Counter, &get, Some(node), value).await
    }

    /// Reads everything from a node; whether all was answered.
    pub async fn read_all(&mut self, node: NodeId) -> bool {
        let shared = Arc::clone(&self.shared);
        let mut all = true;
        for key in &shared.objects.keys {
            all &= self.read_key(key, Some(node)).await;
        }
        for tag in &shared.objects.pairs {
            all &= self.read_pair(tag, Some(node)).await;
        }
        for name in shared.objects.counters.iter().chain(&shared.objects.bounded) {
            all &= self.read_counter(name, Some(node)).await;
        }
        for tag in &shared.objects.twins {
            for half in halves(tag) {
                all &= self.read_half(tag, &half, node).await;
            }
        }
        all
    }

    /// Writes nothing of importance into a group, by way of a node; whether that was done.
    pub async fn touch(&mut self, node: NodeId, group: u32) -> bool {
        let put = Command::Insert { tree: TreeId(0), key: "alive".into(), value: value_bytes(1) };
        let Some(request) = submit(group, &command(put)) else { return false };
        let Asked::Reply(ClientReply::Applied(reply)) = self.ask(node, &request).await else { return false };
        decode_group_reply(&reply).is_ok_and(|reply| reply.result.is_ok())
    }
}

fn submit(group: u32, command: &GroupCommand) -> Option<ClientRequest> {
    let command = encode_group_command(command).ok()?;
    Some(ClientRequest::Submit { group, deadline: Duration::from_secs(2), command: command.into() })
}
