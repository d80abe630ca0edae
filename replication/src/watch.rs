//! Following what happens to keys, as a stream of messages to a client.
//!
//! A watch is served by the node that is asked, from its own replica, in the order of the group's log.
//! First it says from where on it tells everything ([`WatchEvent::Began`]); who reads after that misses
//! nothing. What it cannot tell it says ([`WatchEvent::Lost`]): the client was too slow, or the replica
//! jumped ahead by a snapshot. Then the client reads again.
//!
//! # Going on elsewhere
//!
//! All replicas tell the same events in the same order, so a client that knows how far it has been told
//! ([`Told`]) goes on at another node with neither gap nor repetition. A replica keeps its newest changes in
//! memory for that: [`NodeConfig::watch_bytes`](crate::NodeConfig::watch_bytes) over all groups, the oldest
//! leave first. What was applied since the replica's last checkpoint before a restart is there again after it, since it
//! is applied again. Who asks for what is not kept is told from where on all is
//! ([`WatchEvent::Compacted`]), and the stream ends. A watcher of keys to which nothing happens moves on by
//! [`WatchEvent::Progress`], about once a second.
//!
//! # After a recovery
//!
//! What a group goes on with after a [recovery](crate::recovery) has positions that may have been told before, of what
//! is lost. So the upper 16 bits of each position that a watch tells say how many recoveries lie behind it (none, and
//! they are zero, where there was never one), its *history*. A replica ends its watches when its history becomes
//! another, and what is asked for by a position of an earlier history is not kept
//! ([`WatchEvent::Compacted`]), also where it happened before the histories parted: watchers read again, and those
//! that keep what they have read forget it.
//!
//! A node that is cut off from the group's leader would be silent, and its client could not tell that from
//! nothing happening. So a watch ends when the node has heard of nobody for a while, and the client goes
//! elsewhere.
//!
//! ```text
//! message    version u8 (1), 6, events u32, each (positions: 48 bits of the log, 16 bits of history):
//!    0 began    position u64
//!    1 put      position u64, key: length u32, bytes; value: length u32, bytes
//!    2 removed  position u64, key
//!    3 cleared  position u64
//!    4 lost     position u64
//!    5 progress position u64
//!    6 compacted position u64
//! ```

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::IVec;
use dogsled_storage::group::GroupRead;
use dogsled_storage::watch::{Compacted, DEFAULT_CAPACITY, Event, Subscription};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt, stream};
use tokio::time::Instant;

use crate::client::PROTOCOL_VERSION;
use crate::codec::{Malformed, Put, Take, malformed};
use crate::group::Group;

/// What [`ClientReply`](crate::ClientReply) calls its kinds is continued here.
const EVENTS: u8 = 6;
/// Events are put into one message up to about so many bytes.
const MESSAGE_BYTES: usize = 256 << 10;
/// A node that is out of touch for so long ends its watches.
const OUT_OF_TOUCH: Duration = Duration::from_secs(5);
/// How often that is looked at while nothing happens.
const LOOK: Duration = Duration::from_secs(1);

/// The lower bits of a position that a watch tells: of the group's log.
const LOG_BITS: u32 = 48;

/// The position in the group's log that a watch tells of by this: without its [history](self#after-a-recovery).
///
/// ```
/// use dogsled_replication::watch::position_in_log;
/// assert_eq!(position_in_log(7), 7);
/// ```
pub fn position_in_log(told: u64) -> u64 {
    told & ((1 << LOG_BITS) - 1)
}

/// How many recoveries a position that a watch tells has behind it, up to 65,535: see
/// [the module](self#after-a-recovery).
///
/// ```
/// use dogsled_replication::watch::history;
/// assert_eq!(history(7), 0);
/// ```
pub fn history(told: u64) -> u64 {
    told >> LOG_BITS
}

/// How far a watch has told, to the event.
///
/// ```
/// use dogsled_replication::watch::Told;
/// let mut told = Told::all_to(6);
/// told.one_of(9); // the entry at 9 put this key,
/// told.one_of(9); // and that one, and perhaps more:
/// assert_eq!(told, Told { position: 8, events: 2 });
/// told.all(9);
/// assert_eq!(told, Told::all_to(9));
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Told {
    /// Everything up to this position of the group's log, with its [history](self#after-a-recovery),
    pub position: u64,
    /// and so many events of the entry behind it.
    pub events: u32,
}

impl Told {
    /// Everything up to a position, and nothing of what comes then.
    pub fn all_to(position: u64) -> Told {
        Told { position, events: 0 }
    }

    /// An event of the entry at this position was told.
    pub fn one_of(&mut self, position: u64) {
        let Some(before) = position.checked_sub(1).filter(|before| *before >= self.position) else {
            return;
        };
        if self.position != before {
            *self = Told::all_to(before);
        }
        self.events += 1;
    }

    /// Everything up to this position was told.
    pub fn all(&mut self, position: u64) {
        if position > self.position {
            *self = Told::all_to(position);
        }
    }

    pub(crate) fn put(&self, bytes: &mut Vec<u8>) {
        bytes.put_u64(self.position);
        bytes.put_u32(self.events);
    }

    pub(crate) fn take(take: &mut Take) -> Result<Told, Malformed> {
        Ok(Told { position: take.u64()?, events: take.u32()? })
    }
}

/// Something that a watch tells. Positions are of the group's log, with their [history](self#after-a-recovery).
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WatchEvent {
    /// The watch tells everything after this position.
    Began {
        /// Of the group's log.
        position: u64,
    },
    /// A key got a value.
    Put {
        /// Of the entry.
        position: u64,
        /// The key.
        key: Bytes,
        /// Its new value.
        value: Bytes,
    },
    /// A key was removed.
    Removed {
        /// Of the entry.
        position: u64,
        /// The key.
        key: Bytes,
    },
    /// All keys of the tree were removed.
    Cleared {
        /// Of the entry.
        position: u64,
    },
    /// Something is missing here; the watch tells everything after this position.
    Lost {
        /// Of the group's log.
        position: u64,
    },
    /// Everything up to this position was told.
    Progress {
        /// Of the group's log.
        position: u64,
    },
    /// What the client asked for is not kept any more. The stream ends.
    Compacted {
        /// Everything after this position can be asked for here.
        position: u64,
    },
}

impl WatchEvent {
    fn put(&self, bytes: &mut Vec<u8>) {
        let (kind, position) = match self {
            WatchEvent::Began { position } => (0, position),
            WatchEvent::Put { position, .. } => (1, position),
            WatchEvent::Removed { position, .. } => (2, position),
            WatchEvent::Cleared { position } => (3, position),
            WatchEvent::Lost { position } => (4, position),
            WatchEvent::Progress { position } => (5, position),
            WatchEvent::Compacted { position } => (6, position),
        };
        bytes.put_u8(kind);
        bytes.put_u64(*position);
        match self {
            WatchEvent::Put { key, value, .. } => {
                bytes.put_bytes(key);
                bytes.put_bytes(value);
            }
            WatchEvent::Removed { key, .. } => bytes.put_bytes(key),
            _ => {}
        }
    }

    fn take(take: &mut Take) -> Result<WatchEvent, Malformed> {
        let kind = take.u8()?;
        let position = take.u64()?;
        Ok(match kind {
            0 => WatchEvent::Began { position },
            1 => WatchEvent::Put { position, key: take.bytes()?, value: take.bytes()? },
            2 => WatchEvent::Removed { position, key: take.bytes()? },
            3 => WatchEvent::Cleared { position },
            4 => WatchEvent::Lost { position },
            5 => WatchEvent::Progress { position },
            6 => WatchEvent::Compacted { position },
            other => return malformed(format!("an event of the unknown kind {other}")),
        })
    }

    /// The events of a message.
    ///
    /// # Errors
    /// What is wrong with the bytes; a stream that ends with an error ends with a
    /// [`ClientReply`](crate::ClientReply).
    pub fn decode(bytes: Bytes) -> Result<Vec<WatchEvent>, Malformed> {
        let mut take = Take::new(bytes);
        take.version(PROTOCOL_VERSION)?;
        if take.u8()? != EVENTS {
            return malformed("not a message of a watch");
        }
        let events = (0..take.count(9)?).map(|_| WatchEvent::take(&mut take)).collect::<Result<_, _>>()?;
        take.end()?;
        Ok(events)
    }

    pub(crate) fn encode(events: &[WatchEvent]) -> Bytes {
        let mut bytes = vec![PROTOCOL_VERSION, EVENTS];
        bytes.put_u32(events.len() as u32);
        for event in events {
            event.put(&mut bytes);
        }
        bytes.into()
    }

    fn of(event: Event) -> WatchEvent {
        match event {
            Event::Put { sequence, key, value } => WatchEvent::Put {
                position: sequence,
                key: Bytes::copy_from_slice(&key),
                value: Bytes::copy_from_slice(&value),
            },
            Event::Remove { sequence, key } => {
                WatchEvent::Removed { position: sequence, key: Bytes::copy_from_slice(&key) }
            }
            Event::Cleared { sequence } => WatchEvent::Cleared { position: sequence },
            Event::Overflowed { sequence, .. } => WatchEvent::Lost { position: sequence },
        }
    }

    /// Of this history.
    fn in_history(mut self, history: u64) -> WatchEvent {
        let (WatchEvent::Began { position }
        | WatchEvent::Put { position, .. }
        | WatchEvent::Removed { position, .. }
        | WatchEvent::Cleared { position }
        | WatchEvent::Lost { position }
        | WatchEvent::Progress { position }
        | WatchEvent::Compacted { position }) = &mut self;
        *position = position_in_log(*position) | history << LOG_BITS;
        self
    }

    fn length(&self) -> usize {
        match self {
            WatchEvent::Put { key, value, .. } => 17 + key.len() + value.len(),
            WatchEvent::Removed { key, .. } => 13 + key.len(),
            _ => 9,
        }
    }
}

struct Watch {
    group: Arc<Group>,
    tree: Bytes,
    prefix: Bytes,
    began: Option<Instant>,
    /// Of which the client was told; `None`: nothing yet.
    history: Option<u64>,
    /// Without its history. `None`: nothing yet, and it begins with what comes.
    told: Option<Told>,
    subscription: Option<Subscription>,
    /// Events of the entry behind `told` that come again and were told.
    skip: u32,
    is_over: bool,
}

/// The messages of a watch, from where the client was told to, or from now on; it ends with the node, and
/// when that is out of touch with the group.
pub(crate) fn watch(
    group: Arc<Group>,
    tree: Bytes,
    prefix: Bytes,
    told: Option<Told>,
) -> BoxStream<'static, Bytes> {
    let (began, subscription) = (None, None);
    let history = told.map(|told| history(told.position));
    let told = told.map(|told| Told { position: position_in_log(told.position), ..told });
    let watch = Watch { group, tree, prefix, began, history, told, subscription, skip: 0, is_over: false };
    stream::unfold(watch, |mut watch| async move {
        let events = watch.next().await?;
        let history = watch.history.unwrap_or_default();
        let events: Vec<WatchEvent> = events.into_iter().map(|event| event.in_history(history)).collect();
        Some((WatchEvent::encode(&events), watch))
    })
    .boxed()
}

/// Whether a tree of this name is not to be made here any more; see [`dogsled_storage::seal`].
pub(crate) fn is_sealed(group: &Group, tree: &[u8]) -> bool {
    let Some(replica) = group.slot.replica() else { return false };
    // What costs least: this is asked where nobody may be kept waiting, and a length may have to be counted.
    let read = GroupRead::Get { tree: IVec::from(tree), key: IVec::new() };
    matches!(replica.read(&read), Err(dogsled_storage::Error::TreeSealed(_)))
}

impl Watch {
    async fn next(&mut self) -> Option<Vec<WatchEvent>> {
        while !self.is_over {
            // One that has just begun may wait for a leader to be elected.
            let is_old = self.began.is_some_and(|began| began.elapsed() > OUT_OF_TOUCH);
            if is_old && !self.group.is_in_touch(OUT_OF_TOUCH) {
                return None;
            }
            // The client begins anew, and is told then that something is missing: also of what was told just now and was
            // of the next history already.
            if self.began.is_some() && self.history != Some(self.current_history()) {
                return None;
            }
            let Some(subscription) = &self.subscription else {
                if let Some(event) = self.subscribe() {
                    return Some(vec![event]);
                }
                if self.subscription.is_none() {
                    // Nothing will ever happen to it. The client, who begins anew, is told why.
                    if is_sealed(&self.group, &self.tree) {
                        return None;
                    }
                    self.group.slot.wait_for_change(Duration::from_millis(100)).await;
                }
                continue;
            };
            // It ends with the tree, and with the replica when a snapshot takes its place.
            let first = poll_fn(|context| subscription.poll_next(context));
            let mut events = Vec::new();
            match tokio::time::timeout(LOOK, first).await {
                Ok(Some(event)) => self.gather(event, &mut events),
                Ok(None) => self.subscription = None,
                Err(_) => self.progress(&mut events),
            }
            if !events.is_empty() {
                return Some(events);
            }
        }
        None
    }

    /// Takes what else is there, as much as fits into one message.
    fn gather(&mut self, first: Event, events: &mut Vec<WatchEvent>) {
        let Some(subscription) = self.subscription.take() else { return };
        let mut length = 0;
        let mut next = Some(first);
        while let Some(event) = next {
            if self.is_news(&event) {
                let event = WatchEvent::of(event);
                length += event.length();
                events.push(event);
            }
            next = if length < MESSAGE_BYTES { subscription.try_next() } else { None };
        }
        self.subscription = Some(subscription);
        self.progress(events);
    }

    /// Notes that an event is told; whether it was not before.
    fn is_news(&mut self, event: &Event) -> bool {
        let told = self.told.get_or_insert_default();
        match event {
            Event::Overflowed { sequence, .. } => {
                told.all(*sequence);
                self.skip = 0;
                return true;
            }
            _ if self.skip > 0 && event.sequence() == told.position + 1 => {
                self.skip -= 1;
                return false;
            }
            _ => {}
        }
        self.skip = 0;
        // Its entry was said to be lost, or told whole: whoever was told so has read what it came to.
        if event.sequence() <= told.position {
            return false;
        }
        told.one_of(event.sequence());
        true
    }

    /// Says how far everything was told, if that is further than what was told last.
    fn progress(&mut self, events: &mut Vec<WatchEvent>) {
        let Some(position) = self.subscription.as_ref().and_then(Subscription::caught_up) else { return };
        let Some(told) = &mut self.told else { return };
        if position > told.position {
            told.all(position);
            self.skip = 0;
            events.push(WatchEvent::Progress { position });
        }
    }

    /// As many of its bits as are told.
    fn current_history(&self) -> u64 {
        self.group.slot.history().min(u64::MAX >> LOG_BITS)
    }

    /// Begins to hear of the tree if it is there; what the client is to be told of it.
    fn subscribe(&mut self) -> Option<WatchEvent> {
        let is_first = self.began.is_none();
        // Before the replica is looked at: what that has then is of this history or of a later one.
        let history = self.current_history();
        let replica = self.group.slot.replica()?;
        match self.history {
            Some(told) if is_first && told < history => {
                self.is_over = true;
                self.history = Some(history);
                return Some(WatchEvent::Compacted { position: replica.applied().position });
            }
            // The client knows more than this replica does: others go on.
            Some(told) if told > history => {
                self.is_over = true;
                return None;
            }
            _ => self.history = Some(history),
        }
        let watch = |after| replica.engine().watch_after(&self.tree, &self.prefix, DEFAULT_CAPACITY, after);
        let (began, lost) = match watch(self.told.map(|told| told.position)) {
            Ok(began) => (began, false),
            Err(Compacted { position }) if is_first => {
                self.is_over = true;
                return Some(WatchEvent::Compacted { position });
            }
            Err(Compacted { .. }) => (watch(None).ok()?, true),
        };
        let (position, subscription) = began;
        self.subscription = subscription;
        match &mut self.told {
            Some(told) if !lost => told.all(position),
            told => *told = Some(Told::all_to(position)),
        }
        self.skip = self.told.map_or(0, |told| told.events);
        if is_first {
            self.began = Some(Instant::now());
            return Some(WatchEvent::Began { position: self.told.map_or(position, |told| told.position) });
        }
        lost.then_some(WatchEvent::Lost { position })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_keep_their_bytes() {
        let events = [
            WatchEvent::Began { position: 1 },
            WatchEvent::Put { position: 2, key: "k".into(), value: "v1".into() },
            WatchEvent::Removed { position: 3, key: "k".into() },
            WatchEvent::Cleared { position: 4 },
            WatchEvent::Lost { position: 5 },
            WatchEvent::Progress { position: 6 },
            WatchEvent::Compacted { position: 7 },
        ];
        let bytes = WatchEvent::encode(&events);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "010607000000",
                "000100000000000000",
                "010200000000000000010000006b020000007631",
                "020300000000000000010000006b",
                "030400000000000000",
                "040500000000000000",
                "050600000000000000",
                "060700000000000000",
            )
        );
        assert_eq!(WatchEvent::decode(bytes.clone()).unwrap(), events);
        for cut in 0..bytes.len() {
            assert!(WatchEvent::decode(bytes.slice(..cut)).is_err());
        }
    }
}
