//! [`Hub`]: `SUBSCRIBE`, `PUBLISH` and their kin, over all nodes of the cluster.
//!
//! # Promises
//!
//! - Whoever has been answered that it is subscribed, at any node, gets what is published from then on, at any node, **at
//!   most once**, for as long as its connection holds. Redis promises no more; nothing is kept for who was not there.
//! - **In the order of the publisher**: what one connection publishes on one channel comes to every subscriber in that
//!   order. More than in Redis's cluster: what all publish on one channel comes to all in the same order. Nothing is said
//!   of the order of different channels, also for one who subscribed to both.
//! - What `PUBLISH` was answered for will reach all who are subscribed at a node that follows the cluster: a quorum has it. If
//!   a node dies, its subscribers lose their connections, and no others lose a message.
//! - **`PUBLISH` is answered by the number of receivers at this node**, as in Redis's cluster, where the bus to the other
//!   nodes tells of no receivers either. `PUBSUB` counts the subscriptions at this node for the same reason.
//! - Within `MULTI`, and under a lock of `DOGSLED.FENCED`, a message is told with all else or not at all.
//! - After the answer to `UNSUBSCRIBE` nothing more comes from that channel.
//!
//! A subscriber that does not read is closed: see `inbox.rs`. Messages of more than about 15 MiB, or entries with more than
//! 65,536 events, may be more than is kept for the nodes that follow, and then none of their subscribers gets them; the
//! same if a node cannot follow the cluster for longer than changes are kept ([`watch_bytes`](crate::cluster::ReplicationConfig::watch_bytes)), its subscribers miss messages, and its log says so.
//!
//! # Idea
//!
//! ```text
//! PUBLISH ─► StringAction::Tell on a key of the tree redis:channels ─► log of its partition
//!                                  └─ a watch of each node that has subscribers ─► Hub ─► Inbox of each
//! ```
//!
//! A message is an entry of the log and no value: [`StringAction::Tell`] tells those who watch the key, here the channel,
//! and changes nothing. So nothing of it is ever in a tree, in `DBSIZE`, in a checkpoint or a backup (the tree `redis:channels` is
//! there, and empty), there is nothing to expire, and a thousand messages to one channel that a pipeline makes one entry
//! are a thousand events. What a watch tells of a key that is *written* is its last value within an entry only: messages that
//! were values were lost by that.
//!
//! What Redis tells of keys (`notify-keyspace-events`) is told in the same way, on the tree `redis:events`, by the commands
//! that change the keys: see [`notices`](dogsled_storage::strings::notices). Here it becomes messages on the channels
//! `__keyspace@0__:key` and `__keyevent@0__:event`. These come in the order in which it happened to keys of one partition; Redis's
//! cluster has an order for those of one node.
//!
//! Any client of the cluster can listen, by a [watch](crate::cluster::Tree::watch_prefix) of the tree `redis:channels`.
//!
//! # Why through the log
//!
//! Redis's nodes send messages to each other without agreeing on anything, which is cheaper: no sync, no quorum. Through the
//! log it costs what a small `SET` costs, and a cluster without a quorum refuses (`CLUSTERDOWN`) what would else reach some. For
//! that there is one order for all, `MULTI` and locks hold for messages, a subscriber's node may change the replica that it
//! follows in the middle without a gap ([`watch`](dogsled_replication::watch)), and there is no second way between nodes with
//! failures of its own. What has to be fast, and may be lost, is better sent by other means.

mod inbox;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use dogsled_net::resp::Value;
use dogsled_storage::TreeId;
use dogsled_storage::strings::notices::Notice;
use dogsled_storage::strings::{StringAction, StringsOperation};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::inbox::Inbox;
pub(super) use self::inbox::Message;
use super::database::{Data, Shape};
use super::table::{Asked, Planned, Step};
use super::{CHANNELS, EVENTS, glob, tree_name};
use crate::IVec;
use crate::cluster::{Client, Error, Event, Subscriber};

/// The most channels and patterns of one connection.
const MOST_SUBSCRIBED: usize = 16 << 10;
/// The most bytes of their names.
const MOST_NAMES: usize = 1 << 20;
/// About what a subscription costs besides its name.
const PER_NAME: usize = 256;
/// The longest channel.
pub(super) const LONGEST_CHANNEL: usize = 4 << 10;
/// The most bytes of all patterns of a connection: each is compared with the channel of every message.
const MOST_PATTERNS: usize = 16 << 10;
/// The longest pattern: it is compared with the channel of every message, which takes as long as both are.
pub(super) const LONGEST_PATTERN: usize = 256;
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
    if asked.arguments[1].len() > LONGEST_CHANNEL {
        return Err(Value::error(format!("ERR a channel of more than {LONGEST_CHANNEL} bytes")));
    }
    let (channel, message) = (&asked.arguments[1], IVec::from(&asked.arguments[2][..]));
    let action = StringAction::Tell { value: message };
    let (tree, key) = (TreeId(CHANNELS), IVec::from(&channel[..]));
    let shape = Shape::Published(channel.clone());
    Ok(Step::Data(Data::new(vec![StringsOperation { tree, key, action }], shape)))
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

/// What is followed for those who are subscribed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Feed {
    /// What is published.
    Messages,
    /// What is told of keys.
    Events,
}

impl Feed {
    const ALL: [Feed; 2] = [Feed::Messages, Feed::Events];

    fn tree(self) -> u32 {
        match self {
            Feed::Messages => CHANNELS,
            Feed::Events => EVENTS,
        }
    }

    /// Whether it may have something on such a channel.
    fn may_have(self, patterns: bool, name: &[u8]) -> bool {
        let beginning = if patterns { glob::prefix(name) } else { name };
        match self {
            Feed::Messages => true,
            Feed::Events if patterns && beginning.len() < EVENTS_BEGIN.len() => {
                EVENTS_BEGIN.starts_with(beginning)
            }
            Feed::Events => beginning.starts_with(EVENTS_BEGIN),
        }
    }
}

/// What the names of all channels begin with on which is told of keys.
const EVENTS_BEGIN: &[u8] = b"__key";

/// The subscriptions of all connections to a server.
#[derive(Default)]
pub(super) struct Hub {
    places: Mutex<Places>,
    waiting: Arc<AtomicUsize>,
    /// Messages that connections were to be told.
    messages: AtomicU64,
    /// What follows each [`Feed`] for them.
    followers: [tokio::sync::Mutex<Option<Follower>>; 2],
}

/// What follows a [`Feed`].
struct Follower {
    task: JoinHandle<()>,
    /// Whether it does at the moment, and does not only try to again.
    follows: watch::Receiver<bool>,
}

/// Waits until the cluster is followed; whether it is, or nobody follows any more.
///
/// # Errors
/// It is not by then.
async fn is_followed(mut follows: watch::Receiver<bool>, until: Instant) -> Result<bool, Error> {
    // What a task said last says nothing when it has ended.
    if follows.has_changed().is_err() {
        return Ok(false);
    }
    match tokio::time::timeout_at(until, follows.wait_for(|follows| *follows)).await {
        Ok(followed) => Ok(followed.is_ok()),
        Err(_) => {
            let why = "not every partition tells of messages at the moment";
            Err(Error::Unavailable(why.to_owned()))
        }
    }
}

/// What a [`Hub`] counts.
pub(super) struct HubFigures {
    /// Subscriptions to channels.
    pub(super) channels: u64,
    /// Subscriptions to patterns.
    pub(super) patterns: u64,
    /// Bytes of messages that wait.
    pub(super) waiting_bytes: u64,
    /// Messages that connections were to be told.
    pub(super) messages: u64,
}

impl Hub {
    pub(super) fn figures(&self) -> HubFigures {
        let places = self.places.lock();
        let count = |listeners: &Listeners| listeners.values().map(|listeners| listeners.len() as u64).sum();
        HubFigures {
            channels: count(&places.channels),
            patterns: count(&places.patterns),
            waiting_bytes: self.waiting.load(Ordering::Relaxed) as u64,
            messages: self.messages.load(Ordering::Relaxed),
        }
    }

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

    /// Whether nobody is subscribed to anything of it.
    fn is_unwanted(&self, feed: Feed) -> bool {
        let places = self.places.lock();
        let wants =
            |patterns: bool, names: &Listeners| names.keys().any(|name| feed.may_have(patterns, name));
        !wants(false, &places.channels) && !wants(true, &places.patterns)
    }

    fn event(&self, feed: Feed, key: &[u8], value: &[u8]) {
        if feed == Feed::Messages {
            return self.deliver(key, value);
        }
        let Some(notice) = Notice::decode(value) else { return };
        if notice.by_key {
            self.deliver(
                &[format!("__keyspace@{}__:", notice.database).as_bytes(), key].concat(),
                notice.event,
            );
        }
        if notice.by_event {
            let channel = format!("__keyevent@{}__:", notice.database);
            self.deliver(&[channel.as_bytes(), notice.event].concat(), key);
        }
    }

    fn deliver(&self, channel: &[u8], text: &[u8]) {
        // Not in what was read from the network, of which it may be a small part.
        let (channel, text) = (Bytes::copy_from_slice(channel), Bytes::copy_from_slice(text));
        let tell = |listeners: &HashMap<u64, Arc<Inbox>>, pattern: Option<&Bytes>| {
            self.messages.fetch_add(listeners.len() as u64, Ordering::Relaxed);
            for inbox in listeners.values() {
                let (pattern, channel) = (pattern.cloned(), channel.clone());
                inbox.push(Message { pattern, channel, text: text.clone() });
            }
        };
        let places = self.places.lock();
        if let Some(listeners) = places.channels.get(&channel) {
            tell(listeners, None);
        }
        // Longer ones are only of keys: whoever wants to hear of such names them.
        let is_matched = channel.len() <= LONGEST_CHANNEL;
        for (pattern, listeners) in places.patterns.iter().filter(|_| is_matched) {
            if glob::matches(pattern, &channel) {
                tell(listeners, Some(pattern));
            }
        }
    }

    /// Returns when that of the cluster is followed. Whoever is told so before would miss messages.
    async fn follow(self: &Arc<Hub>, client: &Client, feed: Feed) -> Result<(), Error> {
        let until = client.until();
        loop {
            let mut follower = self.followers[feed as usize].lock().await;
            let Some(follows) = follower.as_ref().map(|follower| follower.follows.clone()) else {
                let subscriber = begin(client, feed).await?;
                let (tell, follows) = watch::channel(true);
                let task = deliver(Arc::downgrade(self), client.clone(), feed, subscriber, tell);
                *follower = Some(Follower { task: tokio::spawn(task), follows });
                return Ok(());
            };
            if is_followed(follows, until).await? {
                return Ok(());
            }
            // It has ended.
            *follower = None;
        }
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        for follower in &mut self.followers {
            if let Some(follower) = follower.get_mut().take() {
                follower.task.abort();
            }
        }
    }
}

async fn begin(client: &Client, feed: Feed) -> Result<Subscriber, Error> {
    client.tree(tree_name(feed.tree())).watch_prefix("").await
}

/// Delivers what comes, until nobody is subscribed to it, and tells whether anything could.
async fn deliver(
    weak: Weak<Hub>,
    client: Client,
    feed: Feed,
    mut subscriber: Subscriber,
    follows: watch::Sender<bool>,
) {
    let mut looked = Instant::now();
    loop {
        let event = tokio::time::timeout(IDLE, subscriber.next()).await;
        let Some(hub) = weak.upgrade() else { return };
        match event {
            Ok(Some(Ok(Event::Insert { key, value }))) => hub.event(feed, &key, &value),
            Ok(Some(Ok(Event::Lost { .. }))) => {
                tracing::warn!(
                    "messages to subscribed Redis clients were lost: more was published than is kept"
                );
            }
            // Nothing is ever kept there.
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(Error::Closed)) | None) => return,
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "messages to subscribed Redis clients may be lost");
                drop(hub);
                follows.send_replace(false);
                loop {
                    tokio::time::sleep(PAUSE).await;
                    match begin(&client, feed).await {
                        Ok(anew) => break subscriber = anew,
                        Err(Error::Closed) => return,
                        Err(_) => {}
                    }
                }
                follows.send_replace(true);
            }
            // Nothing was published for a while.
            Err(_) => {}
        }
        // Seldom: it may have to go through all names.
        if looked.elapsed() < IDLE {
            continue;
        }
        looked = Instant::now();
        let Some(hub) = weak.upgrade() else { return };
        if hub.is_unwanted(feed) {
            // Under the lock: whoever subscribes either is there by now, or finds that nobody follows.
            let mut follower = hub.followers[feed as usize].lock().await;
            if hub.is_unwanted(feed) {
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
    channels: BTreeSet<Bytes>,
    patterns: BTreeSet<Bytes>,
    held: usize,
}

impl Subscriptions {
    pub(super) fn new(hub: Arc<Hub>, id: u64) -> Subscriptions {
        let inbox = Arc::new(Inbox::new(Arc::clone(&hub.waiting)));
        Subscriptions { hub, id, inbox, channels: BTreeSet::new(), patterns: BTreeSet::new(), held: 0 }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channels.is_empty() && self.patterns.is_empty()
    }

    /// How many channels and patterns there are.
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.channels.len(), self.patterns.len())
    }

    /// About how many bytes its names take.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    fn own(&mut self, patterns: bool) -> &mut BTreeSet<Bytes> {
        if patterns { &mut self.patterns } else { &mut self.channels }
    }

    fn count(&self) -> Value {
        Value::Integer((self.channels.len() + self.patterns.len()) as i64)
    }

    /// The next that the connection is to be told; `None`: it is too slow, and to be closed.
    pub(super) async fn next(&self) -> Option<Message> {
        self.inbox.next().await
    }

    /// The next that is there already.
    pub(super) fn take(&self) -> Option<Message> {
        self.inbox.take()
    }

    /// Returns when the connection is to be closed.
    pub(super) async fn too_slow(&self) {
        self.inbox.too_slow().await;
    }

    /// Changes what the connection is subscribed to; one reply for each name. Before those of what ends, what waits.
    pub(super) async fn change(&mut self, client: &Client, asked: Listen) -> Result<Vec<Value>, Error> {
        let replies = self.change_names(client, asked).await;
        self.held = self.channels.iter().chain(&self.patterns).map(|name| name.len() + PER_NAME).sum();
        replies
    }

    async fn change_names(&mut self, client: &Client, asked: Listen) -> Result<Vec<Value>, Error> {
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
            let longest = if patterns { LONGEST_PATTERN } else { LONGEST_CHANNEL };
            if names.iter().any(|name| name.len() > longest) {
                let what = if patterns { "pattern" } else { "channel" };
                return Err(Error::Invalid(format!("a {what} of more than {longest} bytes")));
            }
            let bytes = |names: &mut dyn Iterator<Item = &Bytes>| names.map(|name| name.len()).sum::<usize>();
            if patterns && bytes(&mut self.patterns.iter().chain(&names)) > MOST_PATTERNS {
                return Err(Error::Invalid(format!("more than {MOST_PATTERNS} bytes of patterns")));
            }
            let own = self.channels.iter().chain(&self.patterns).chain(&names);
            if own.map(|name| name.len()).sum::<usize>() > MOST_NAMES {
                return Err(Error::Invalid(format!(
                    "more than {MOST_NAMES} bytes of names of subscriptions"
                )));
            }
            // First, so that whoever follows does not end for want of subscribers.
            let before = self.own(patterns).clone();
            for name in &names {
                self.enter(patterns, name);
            }
            let hub = Arc::clone(&self.hub);
            for feed in Feed::ALL {
                if !names.iter().any(|name| feed.may_have(patterns, name)) {
                    continue;
                }
                if let Err(error) = hub.follow(client, feed).await {
                    let new = names.iter().filter(|name| !before.contains(*name));
                    new.for_each(|name| self.leave(patterns, name));
                    return Err(error);
                }
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
        let before = self.own(patterns).clone();
        names.iter().for_each(|name| self.leave(patterns, name));
        // What came before the end is told before it.
        let mut replies: Vec<Value> = std::iter::from_fn(|| self.take()).map(Message::value).collect();
        *self.own(patterns) = before;
        for name in names {
            self.own(patterns).remove(&name);
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_subscription_waits_until_the_cluster_is_followed_again() {
        let soon = || Instant::now() + Duration::from_millis(50);
        let (tell, follows) = watch::channel(true);
        assert!(is_followed(follows.clone(), soon()).await.unwrap());
        tell.send_replace(false);
        let refused = is_followed(follows.clone(), soon()).await;
        assert!(matches!(refused, Err(Error::Unavailable(_))), "{refused:?}");
        let later = Instant::now() + Duration::from_secs(60);
        let waits = tokio::spawn(is_followed(follows.clone(), later));
        tell.send_replace(true);
        assert!(waits.await.unwrap().unwrap());
        drop(tell);
        assert!(!is_followed(follows, later).await.unwrap(), "nobody follows");
    }

    #[test]
    fn what_is_told_of_keys_is_followed_for_those_who_may_be_told() {
        for (patterns, name, may) in [
            (false, "news", false),
            (false, "__key", true),
            (false, "__keyspace@0__:a", true),
            (false, "_", false),
            (true, "*", true),
            (true, "_[_]key*", true),
            (true, "__keyevent@*__:del", true),
            (true, "__kex*", false),
            (true, "n*", false),
        ] {
            assert_eq!(Feed::Events.may_have(patterns, name.as_bytes()), may, "{name}");
            assert!(Feed::Messages.may_have(patterns, name.as_bytes()));
        }
    }
}
