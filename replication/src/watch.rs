//! Following what happens to keys, as a stream of messages to a client.
//!
//! A watch is served by the node that is asked, from its own replica, in the order of the group's log.
//! First it says from where on it tells everything ([`WatchEvent::Began`]); who reads after that misses
//! nothing. What it cannot tell it says ([`WatchEvent::Lost`]): the client was too slow, or the replica
//! jumped ahead by a snapshot, or the tree came into being just then. Then the client reads again.
//!
//! A node that is cut off from the group's leader would be silent, and its client could not tell that from
//! nothing happening. So a watch ends when the node has heard of nobody for a while, and the client goes
//! elsewhere.
//!
//! ```text
//! message    version u8 (1), 6, events u32, each:
//!    0 began    position u64
//!    1 put      position u64, key: length u32, bytes; value: length u32, bytes
//!    2 removed  position u64, key
//!    3 cleared  position u64
//!    4 lost     position u64
//! ```

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_storage::watch::{DEFAULT_CAPACITY, Event, Subscription};
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

/// Something that a watch tells.
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
}

impl WatchEvent {
    fn put(&self, bytes: &mut Vec<u8>) {
        let (kind, position) = match self {
            WatchEvent::Began { position } => (0, position),
            WatchEvent::Put { position, .. } => (1, position),
            WatchEvent::Removed { position, .. } => (2, position),
            WatchEvent::Cleared { position } => (3, position),
            WatchEvent::Lost { position } => (4, position),
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
    subscription: Option<Subscription>,
}

/// The messages of a watch; it ends with the node, and when that is out of touch with the group.
pub(crate) fn watch(group: Arc<Group>, tree: Bytes, prefix: Bytes) -> BoxStream<'static, Bytes> {
    let watch = Watch { group, tree, prefix, began: None, subscription: None };
    stream::unfold(watch, |mut watch| async move {
        let events = watch.next().await?;
        Some((WatchEvent::encode(&events), watch))
    })
    .boxed()
}

impl Watch {
    async fn next(&mut self) -> Option<Vec<WatchEvent>> {
        loop {
            // One that has just begun may wait for a leader to be elected.
            let is_old = self.began.is_some_and(|began| began.elapsed() > OUT_OF_TOUCH);
            if is_old && !self.group.is_in_touch(OUT_OF_TOUCH) {
                return None;
            }
            let Some(subscription) = &self.subscription else {
                if let Some(event) = self.subscribe() {
                    return Some(vec![event]);
                }
                self.group.slot.wait_for_change(Duration::from_millis(100)).await;
                continue;
            };
            // It ends with the tree, and with the replica when a snapshot takes its place.
            let first = poll_fn(|context| subscription.poll_next(context));
            let Ok(first) = tokio::time::timeout(LOOK, first).await else { continue };
            let Some(first) = first else {
                self.subscription = None;
                continue;
            };
            let mut events = vec![WatchEvent::of(first)];
            let mut length = events[0].length();
            while length < MESSAGE_BYTES
                && let Some(event) = subscription.try_next()
            {
                let event = WatchEvent::of(event);
                length += event.length();
                events.push(event);
            }
            return Some(events);
        }
    }

    /// Begins to hear of the tree if it is there; what the client is to be told of it.
    fn subscribe(&mut self) -> Option<WatchEvent> {
        let replica = self.group.slot.replica()?;
        let engine = replica.engine();
        let tree = engine.tree_id(&self.tree);
        self.subscription = tree.map(|tree| engine.watch(tree, &self.prefix, DEFAULT_CAPACITY));
        // After subscribing: what is up to here can be read, what comes later is told.
        let position = replica.applied().position;
        if self.began.is_none() {
            self.began = Some(Instant::now());
            return Some(WatchEvent::Began { position });
        }
        self.subscription.is_some().then_some(WatchEvent::Lost { position })
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
        ];
        let bytes = WatchEvent::encode(&events);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "010605000000",
                "000100000000000000",
                "010200000000000000010000006b020000007631",
                "020300000000000000010000006b",
                "030400000000000000",
                "040500000000000000",
            )
        );
        assert_eq!(WatchEvent::decode(bytes.clone()).unwrap(), events);
        for cut in 0..bytes.len() {
            assert!(WatchEvent::decode(bytes.slice(..cut)).is_err());
        }
    }
}
