//! [`Hub`]: `SUBSCRIBE`, `PUBLISH` and their kin, over all nodes of the cluster.
//!
//! # Idea
//!
//! ```text
//! PUBLISH ─► a key of the tree redis:channels ─► log of its partition
//!                                                 └─ a watch of each node that has subscribers ─► Hub ─► Inbox of each
//! ```
//!
//! A message is a write like any other: the key is the channel and the value the message, which stays for
//! [`KEPT_MS`]. So it is answered when a quorum has synced it, reaches whoever is subscribed at any node, and the messages of a
//! channel come to all in one order, that of the log. Also `PUBLISH` in a pipeline, within `MULTI` (with all else or not at
//! all), and under a lock is what it is for other writes.
//!
//! # Promises
//!
//! Whoever has been answered that it is subscribed gets what is published from then on, as long as the connection holds: at most
//! once, as in Redis. A connection that does not read what it subscribed to is closed when [`MOST_WAITING`] bytes wait for it,
//! or fewer if much waits for all of them. If the node cannot follow the cluster for longer than changes are kept, messages are lost, which the log says.
//!
//! What `PUBLISH` and `PUBSUB` say of subscribers is of those at this node.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::TreeId;
use dogsled_storage::expiry::When;
use dogsled_storage::hashes::Content;
use dogsled_storage::strings::{SetOnly, StringAction, StringsOperation};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinHandle;

use super::database::{Data, Shape};
use super::table::{Asked, Planned, Step};
use super::{CHANNELS, glob, tree_name};
use crate::IVec;
use crate::cluster::{Client, Error, Event, Subscriber};

/// How long a message is kept as the value of its channel: only so that the tree does not grow.
const KEPT_MS: u64 = 10_000;
/// The most bytes that wait for one connection.
const MOST_WAITING: usize = 32 << 20;
/// The most that waits for all connections of the server: then those are closed for which more than [`FAIR`] waits.
const MOST_WAITING_OF_ALL: usize = 512 << 20;
/// What may wait for a connection however much waits for others.
const FAIR: usize = 64 << 10;
/// What a message costs beside its bytes.
const OVERHEAD: usize = 128;
/// The most channels and patterns of one connection.
const MOST_SUBSCRIBED: usize = 16 << 10;
/// After so long without messages it is looked whether anybody is subscribed.
const IDLE: Duration = Duration::from_secs(10);
/// Before it is tried again to follow the cluster.
const PAUSE: Duration = Duration::from_millis(200);

/// What is asked of subscriptions.
#[derive(Clone, Debug)]
pub(super) struct Listen {
    /// Or ends them.
    begins: bool,
    /// Instead of channels.
    patterns: bool,
    names: Vec<Bytes>,
}

fn listen(asked: &Asked<'_>, begins: bool, patterns: bool) -> Planned {
    // Apart from the rest of what was read, which they would keep.
    let names = asked.arguments[1..].iter().map(|name| Bytes::copy_from_slice(name)).collect();
    Ok(Step::Listen(Listen { begins, patterns, names }))
}

pub(super) fn subscribe(asked: &Asked<'_>) -> Planned {
    listen(asked, true, false)
}

pub(super) fn subscribe_to_patterns(asked: &Asked<'_>) -> Planned {
    listen(asked, true, true)
}

pub(super) fn unsubscribe(asked: &Asked<'_>) -> Planned {
    listen(asked, false, false)
}

pub(super) fn unsubscribe_from_patterns(asked: &Asked<'_>) -> Planned {
    listen(asked, false, true)
}

pub(super) fn publish(asked: &Asked<'_>) -> Planned {
    let (channel, message) = (&asked.arguments[1], IVec::from(&asked.arguments[2][..]));
    let (only, when) = (SetOnly::Always, Some(When::After(KEPT_MS)));
    let action = StringAction::Set { value: message, only, when, get: false };
    let (tree, key) = (TreeId(CHANNELS), IVec::from(&channel[..]));
    let shape = Shape::Published(channel.clone());
    Ok(Step::Data(Data::new(vec![StringsOperation { tree, key, action }], shape)))
}

/// What a connection is to be told.
#[derive(Clone, Debug)]
pub(super) struct Message {
    /// That it was subscribed by.
    pattern: Option<Bytes>,
    channel: Bytes,
    text: Bytes,
}

impl Message {
    fn bytes(&self) -> usize {
        self.channel.len() + self.text.len() + OVERHEAD
    }

    /// As it is sent.
    pub(super) fn value(self) -> Value {
        let Message { pattern, channel, text } = self;
        Value::Push(match pattern {
            None => vec![Value::text("message"), Value::Bulk(channel), Value::Bulk(text)],
            Some(pattern) => {
                let (pattern, channel) = (Value::Bulk(pattern), Value::Bulk(channel));
                vec![Value::text("pmessage"), pattern, channel, Value::Bulk(text)]
            }
        })
    }
}

/// Where what a connection is to be told waits.
struct Inbox {
    sender: UnboundedSender<Message>,
    waiting: AtomicUsize,
    /// For all connections.
    waiting_of_all: Arc<AtomicUsize>,
    /// There is too much that the connection has not read.
    is_over: AtomicBool,
    over: Notify,
}

impl Inbox {
    fn push(&self, message: Message) {
        if self.is_over.load(Ordering::Relaxed) {
            return;
        }
        let bytes = message.bytes();
        let own = self.waiting.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let all = self.waiting_of_all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if own > MOST_WAITING || (all > MOST_WAITING_OF_ALL && own > FAIR) {
            self.is_over.store(true, Ordering::Relaxed);
            self.taken(bytes);
            self.over.notify_one();
            return;
        }
        // A connection that is gone is about to leave.
        let _ = self.sender.send(message);
    }

    /// So many bytes wait no more.
    fn taken(&self, bytes: usize) {
        self.waiting.fetch_sub(bytes, Ordering::Relaxed);
        self.waiting_of_all.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Who is subscribed to each name, by the numbers of the connections.
type Listeners = HashMap<Bytes, HashMap<u64, Arc<Inbox>>>;

#[derive(Default)]
struct Places {
    channels: Listeners,
    patterns: Listeners,
}

impl Places {
    fn of(&mut self, patterns: bool) -> &mut Listeners {
        if patterns { &mut self.patterns } else { &mut self.channels }
    }
}

/// The subscriptions of all connections to a server.
#[derive(Default)]
pub(super) struct Hub {
    places: Mutex<Places>,
    waiting: Arc<AtomicUsize>,
    /// What follows the cluster for them.
    follower: tokio::sync::Mutex<Option<JoinHandle<()>>>,
}

impl Hub {
    /// How many connections get what is published on a channel, each as often as it is subscribed.
    pub(super) fn receivers(&self, channel: &[u8]) -> usize {
        let places = self.places.lock();
        let direct = places.channels.get(channel).map_or(0, HashMap::len);
        let by_pattern = places.patterns.iter().filter(|(pattern, _)| glob::matches(pattern, channel));
        direct + by_pattern.map(|(_, listeners)| listeners.len()).sum::<usize>()
    }

    /// The channels that match a pattern, to which somebody is subscribed.
    pub(super) fn channels(&self, pattern: Option<&[u8]>) -> Vec<Bytes> {
        let places = self.places.lock();
        let is_wanted = |channel: &&Bytes| pattern.is_none_or(|pattern| glob::matches(pattern, channel));
        places.channels.keys().filter(is_wanted).cloned().collect()
    }

    /// How many are subscribed to a channel by its name.
    pub(super) fn subscribers(&self, channel: &[u8]) -> usize {
        self.places.lock().channels.get(channel).map_or(0, HashMap::len)
    }

    /// How many patterns there are.
    pub(super) fn patterns(&self) -> usize {
        self.places.lock().patterns.len()
    }

    fn is_empty(&self) -> bool {
        let places = self.places.lock();
        places.channels.is_empty() && places.patterns.is_empty()
    }

    fn deliver(&self, channel: &IVec, stored: IVec) {
        let text = match Content::of(stored.clone()) {
            Content::Text(text) => text,
            Content::Hash(..) => stored,
        };
        // Not in what was read from the network, of which it may be a small part.
        let (channel, text) = (Bytes::copy_from_slice(channel), Bytes::copy_from_slice(&text));
        let tell = |listeners: &HashMap<u64, Arc<Inbox>>, pattern: Option<&Bytes>| {
            for inbox in listeners.values() {
                let (pattern, channel) = (pattern.cloned(), channel.clone());
                inbox.push(Message { pattern, channel, text: text.clone() });
            }
        };
        let places = self.places.lock();
        if let Some(listeners) = places.channels.get(&channel) {
            tell(listeners, None);
        }
        for (pattern, listeners) in &places.patterns {
            if glob::matches(pattern, &channel) {
                tell(listeners, Some(pattern));
            }
        }
    }

    /// Returns when the cluster is followed.
    async fn follow(self: &Arc<Hub>, client: &Client) -> Result<(), Error> {
        let mut follower = self.follower.lock().await;
        if follower.as_ref().is_some_and(|task| !task.is_finished()) {
            return Ok(());
        }
        let subscriber = watch(client).await?;
        *follower = Some(tokio::spawn(deliver(Arc::downgrade(self), client.clone(), subscriber)));
        Ok(())
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        if let Some(task) = self.follower.get_mut().take() {
            task.abort();
        }
    }
}

async fn watch(client: &Client) -> Result<Subscriber, Error> {
    client.tree(tree_name(CHANNELS)).watch_prefix("").await
}

/// Delivers what is published, until nobody is subscribed.
async fn deliver(weak: Weak<Hub>, client: Client, mut subscriber: Subscriber) {
    loop {
        let event = tokio::time::timeout(IDLE, subscriber.next()).await;
        let Some(hub) = weak.upgrade() else { return };
        match event {
            Ok(Some(Ok(Event::Insert { key, value }))) => hub.deliver(&key, value),
            Ok(Some(Ok(Event::Lost { .. }))) => {
                tracing::warn!(
                    "messages to subscribed Redis clients were lost: more was published than is kept"
                );
            }
            // They are not kept for longer.
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(Error::Closed)) | None) => return,
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "messages to subscribed Redis clients may be lost");
                drop(hub);
                loop {
                    tokio::time::sleep(PAUSE).await;
                    match watch(&client).await {
                        Ok(anew) => break subscriber = anew,
                        Err(Error::Closed) => return,
                        Err(_) => {}
                    }
                }
            }
            // Nothing was published for a while.
            Err(_) => {}
        }
        let Some(hub) = weak.upgrade() else { return };
        if hub.is_empty() {
            // Under the lock: whoever subscribes either is there by now, or finds that nobody follows.
            let mut follower = hub.follower.lock().await;
            if hub.is_empty() {
                *follower = None;
                return;
            }
        }
    }
}

/// The subscriptions of one connection, which end with it.
pub(super) struct Subscriptions {
    hub: Arc<Hub>,
    id: u64,
    inbox: Arc<Inbox>,
    messages: UnboundedReceiver<Message>,
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
}

impl Subscriptions {
    pub(super) fn new(hub: Arc<Hub>, id: u64) -> Subscriptions {
        let (sender, messages) = unbounded_channel();
        let (waiting, is_over, over) = (AtomicUsize::new(0), AtomicBool::new(false), Notify::new());
        let waiting_of_all = Arc::clone(&hub.waiting);
        let inbox = Arc::new(Inbox { sender, waiting, waiting_of_all, is_over, over });
        let (channels, patterns) = (BTreeSet::new(), BTreeSet::new());
        Subscriptions { hub, id, inbox, messages, channels, patterns }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.patterns.is_empty()
    }

    fn own(&mut self, patterns: bool) -> &mut BTreeSet<Bytes> {
        if patterns { &mut self.patterns } else { &mut self.channels }
    }

    fn count(&self) -> Value {
        Value::Integer((self.channels.len() + self.patterns.len()) as i64)
    }

    /// The next that the connection is to be told; `None`: it is too slow, and to be closed.
    pub(super) async fn next(&mut self) -> Option<Message> {
        let message = tokio::select! {
            biased;
            () = self.inbox.over.notified() => return None,
            message = self.messages.recv() => message?,
        };
        self.inbox.taken(message.bytes());
        Some(message)
    }

    /// The next that is there already.
    pub(super) fn take(&mut self) -> Option<Message> {
        let message = self.messages.try_recv().ok()?;
        self.inbox.taken(message.bytes());
        Some(message)
    }

    /// Returns when the connection is to be closed.
    pub(super) async fn too_slow(&self) {
        self.inbox.over.notified().await;
    }

    /// Changes what the connection is subscribed to; one reply for each name.
    pub(super) async fn change(&mut self, client: &Client, asked: Listen) -> Result<Vec<Value>, Error> {
        let Listen { begins, patterns, mut names } = asked;
        let letter = if patterns { "p" } else { "" };
        let kind = if begins { "subscribe" } else { "unsubscribe" };
        let reply = |name: Value, count: Value| {
            Value::Push(vec![Value::text(format!("{letter}{kind}")), name, count])
        };
        if begins && self.channels.len() + self.patterns.len() + names.len() > MOST_SUBSCRIBED {
            return Err(Error::Invalid(format!("more than {MOST_SUBSCRIBED} subscriptions")));
        }
        if begins {
            // First, so that whoever follows does not end for want of subscribers.
            let before = self.own(patterns).clone();
            for name in &names {
                self.enter(patterns, name);
            }
            let hub = Arc::clone(&self.hub);
            if let Err(error) = hub.follow(client).await {
                names
                    .iter()
                    .filter(|name| !before.contains(*name))
                    .for_each(|name| self.leave(patterns, name));
                return Err(error);
            }
            *self.own(patterns) = before;
            let mut replies = Vec::with_capacity(names.len());
            for name in names {
                self.own(patterns).insert(name.clone());
                replies.push(reply(Value::Bulk(name), self.count()));
            }
            return Ok(replies);
        }
        if names.is_empty() {
            names = self.own(patterns).iter().cloned().collect();
        }
        if names.is_empty() {
            return Ok(vec![reply(Value::Null, self.count())]);
        }
        let mut replies = Vec::with_capacity(names.len());
        for name in names {
            self.leave(patterns, &name);
            replies.push(reply(Value::Bulk(name), self.count()));
        }
        Ok(replies)
    }

    fn enter(&mut self, patterns: bool, name: &Bytes) {
        self.own(patterns).insert(name.clone());
        let mut places = self.hub.places.lock();
        let listeners = places.of(patterns).entry(name.clone()).or_default();
        listeners.insert(self.id, Arc::clone(&self.inbox));
    }

    fn leave(&mut self, patterns: bool, name: &Bytes) {
        self.own(patterns).remove(name);
        let mut places = self.hub.places.lock();
        if let Some(listeners) = places.of(patterns).get_mut(name) {
            listeners.remove(&self.id);
            if listeners.is_empty() {
                places.of(patterns).remove(name);
            }
        }
    }
}

impl Drop for Subscriptions {
    fn drop(&mut self) {
        for patterns in [false, true] {
            for name in std::mem::take(self.own(patterns)) {
                self.leave(patterns, &name);
            }
        }
        // Nothing comes any more.
        self.inbox.taken(self.inbox.waiting.load(Ordering::Relaxed));
    }
}
