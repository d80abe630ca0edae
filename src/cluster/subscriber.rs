//! [`Subscriber`]: following keys over all partitions.
//!
//! ```text
//! partition 1 ─ stream of a node ─► follower ─┐
//! partition 2 ─ stream of a node ─► follower ─┼─ one bounded queue ─► Subscriber
//! partition 3 ─ stream of a node ─► follower ─┘
//! ```
//!
//! Each partition is followed at its leader, or at another replica if that cannot be reached: all
//! replicas tell the same, in the order of the partition's log. When a stream breaks, the follower begins a
//! new one elsewhere, after the very event that it was told last, so that nothing is missing and nothing comes
//! twice. Replicas keep their newest changes for that ([`dogsled_replication::watch`]). If two of them have
//! kept too little, the subscriber is told that something is missing, and up to where ([`Event::Lost`]).
//!
//! The queue is bounded, by the number of events and by their bytes: see `queue`. While it is full, nothing more is read from the nodes for this subscriber, which keep a
//! bounded number of events for each stream, and say that they have lost some when there are more.
//!
//! Subscribers of a client that follow the same keys share the streams: see `follower`.

pub(super) mod follower;
mod queue;

use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::task::{Context, Poll};

use bytes::Bytes;
use dogsled_replication::ring::TreeHash;
use dogsled_replication::watch::{self, Told, position_in_log};
use futures_util::Stream;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};

use self::follower::{Followed, Follower, Home, Listener};
use self::queue::{Item, Queue, Waiting};
use super::{Client, Error, Result};
use crate::IVec;

/// A partition, as far as keys are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    group: u32,
    partitions: u32,
    hash: TreeHash,
}

impl Part {
    /// Whether a key belongs to it.
    pub fn contains(&self, key: impl AsRef<[u8]>) -> bool {
        self.hash.group_of(key.as_ref(), self.partitions) == self.group
    }
}

/// What has happened to keys that a [`Subscriber`] follows.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Event {
    /// A key got a value.
    Insert {
        /// The key.
        key: IVec,
        /// Its new value.
        value: IVec,
    },
    /// A key was removed.
    Remove {
        /// The key.
        key: IVec,
    },
    /// All keys of one part of the tree were removed at once: [`Tree::clear`](super::Tree::clear) does
    /// this to one part after the other.
    Clear {
        /// Which part.
        part: Part,
    },
    /// Events of one part may be missing here: the cluster keeps no more of them up to this position; later
    /// ones follow. Read what is of interest again: what is read from now on, and what is told from now on,
    /// leaves no gap.
    Lost {
        /// Which part.
        part: Part,
        /// The position in the partition's log after which everything is told.
        position: u64,
    },
}

/// How far a [`Subscriber`] was told, in each partition, to the event: where another one goes on, by
/// [`Tree::watch_prefix_from`](super::Tree::watch_prefix_from), perhaps after a restart of the program.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct WatchPosition {
    parts: BTreeMap<u32, Told>,
}

impl WatchPosition {
    /// After the entry at a position in one partition's log.
    pub(super) fn of_part(group: u32, position: u64) -> WatchPosition {
        WatchPosition { parts: BTreeMap::from([(group, Told::all_to(position))]) }
    }

    /// Bytes to be kept: version 1, then for each partition in little-endian its number (u32), the position
    /// (u64; its upper 16 bits say how many recoveries with a loss of data lie behind it) up to which all was
    /// told, and how many events of the entry behind that (u32).
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![1];
        for (group, told) in &self.parts {
            bytes.extend_from_slice(&group.to_le_bytes());
            bytes.extend_from_slice(&told.position.to_le_bytes());
            bytes.extend_from_slice(&told.events.to_le_bytes());
        }
        bytes
    }

    /// From what [`WatchPosition::to_bytes`] has given.
    ///
    /// # Errors
    /// [`Error::Invalid`] for other bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<WatchPosition> {
        let invalid = || Error::Invalid("these bytes are no position of a watch".to_owned());
        let (&[1], rest) = bytes.split_first_chunk().ok_or_else(invalid)? else { return Err(invalid()) };
        let (parts, []) = rest.as_chunks::<16>() else { return Err(invalid()) };
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes"));
        let parts = parts.iter().map(|part| {
            let position = u64::from_le_bytes(part[4..12].try_into().expect("eight bytes"));
            (number(&part[..4]), Told { position, events: number(&part[12..]) })
        });
        Ok(WatchPosition { parts: parts.collect() })
    }
}

/// Follows the keys of a tree that begin with a prefix; made by
/// [`Tree::watch_prefix`](super::Tree::watch_prefix).
///
/// A stream, with a [`next`](Subscriber::next) of its own. Events of one partition come in the order of
/// commits, those of different partitions as they come. An event can be told of a write before that
/// write has returned.
///
/// **Read, then follow**: begin to watch, then read. What is told after that may have been read already,
/// and the last that is told of a key is what it is.
///
/// **Go on later**: [`position`](Subscriber::position) says how far it was told.
///
/// It ends, after an error, when the client is closed. Dropping it ends it on the nodes.
pub struct Subscriber {
    events: Waiting,
    position: WatchPosition,
    /// Partitions whose stream is broken.
    broken: Arc<AtomicUsize>,
    /// Dropped after the queue.
    _homes: Homes,
}

/// Tells those who follow that nobody listens any more.
struct Homes(Vec<Arc<Home>>);

impl Drop for Homes {
    fn drop(&mut self) {
        self.0.iter().for_each(|home| home.leave());
    }
}

impl Subscriber {
    /// Returns when every partition that may have such keys tells what happens, after `from` in those that
    /// it has, or `only` in one partition. The tree is given by the name under which partitions keep it.
    pub(super) async fn begin(
        client: Client,
        tree: IVec,
        prefix: IVec,
        from: &WatchPosition,
        only: Option<u32>,
        until: Instant,
    ) -> Result<Subscriber> {
        let partitions = client.core().partitions(until).await?;
        // If this ends early, the queue is dropped before the homes are told.
        let mut homes = Homes(Vec::new());
        let (queue, mut events) = Queue::new();
        let mut begun = Vec::new();
        // What has a whole tag, or all that is hashed, is of one partition, whatever follows.
        let hash = TreeHash::of_stored(&tree).0;
        let groups = match only.or_else(|| hash.group_of_prefix(&prefix, partitions)) {
            Some(group) => group..=group,
            None => 1..=partitions,
        };
        let broken = Arc::new(AtomicUsize::new(0));
        for group in groups {
            let (tell, told) = oneshot::channel();
            begun.push((group, told));
            let home = Arc::<Home>::default();
            homes.0.push(Arc::clone(&home));
            let listener = Listener {
                events: queue.clone(),
                after: None,
                begun: Some(tell),
                broken: Arc::clone(&broken),
                has_broken: false,
                home,
            };
            let (tree, prefix) = (Bytes::copy_from_slice(&tree), Bytes::copy_from_slice(&prefix));
            let followed = Followed { group, tree, prefix };
            let part = Part { group, partitions, hash };
            Follower::spawn(client.clone(), followed, part, from.parts.get(&group).copied(), listener);
        }
        drop(queue);
        let mut position = WatchPosition::default();
        for (group, told) in begun {
            match timeout_at(until, told).await {
                Ok(Ok(told)) => drop(position.parts.insert(group, told)),
                // It has ended, and said why.
                Ok(Err(_)) => return Err(first_error(&mut events)),
                Err(_) => {
                    let why = "not every partition was reached before the deadline";
                    return Err(Error::Unavailable(why.to_owned()));
                }
            }
        }
        Ok(Subscriber { events, position, broken, _homes: homes })
    }

    /// The next event; `None` after the end.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        loop {
            let item = self.events.recv().await?;
            if let Some(event) = self.deliver(item) {
                return Some(event);
            }
        }
    }

    /// The next event if one is there already.
    pub fn try_next(&mut self) -> Option<Result<Event>> {
        loop {
            let item = self.events.try_recv()?;
            if let Some(event) = self.deliver(item) {
                return Some(event);
            }
        }
    }

    /// The next event, and its position in its partition's log.
    pub(super) async fn next_at(&mut self) -> Option<Result<(u64, Event)>> {
        loop {
            let item = self.events.recv().await?;
            let at = match &item {
                Item::Told(_, _, Some(Event::Lost { position, .. })) => *position,
                // It is of the entry behind what was told as a whole.
                Item::Told(_, told, _) => position_in_log(told.position) + 1,
                Item::Failed(_) => 0,
            };
            if let Some(event) = self.deliver(item) {
                return Some(event.map(|event| (at, event)));
            }
        }
    }

    /// How many recoveries what was told has behind it, in the partition where there were most.
    pub(super) fn history(&self) -> u64 {
        self.position.parts.values().map(|told| watch::history(told.position)).max().unwrap_or_default()
    }

    /// How many partitions nobody tells of at the moment.
    pub(super) fn broken(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.broken)
    }

    /// How far it was told: up to the event that was returned last, in each partition. Begun anew from
    /// there, it goes on with the next, as long as the cluster has it: see
    /// [`NodeConfig::watch_bytes`](super::ReplicationConfig::watch_bytes).
    pub fn position(&self) -> &WatchPosition {
        &self.position
    }

    fn deliver(&mut self, item: Item) -> Option<Result<Event>> {
        match item {
            Item::Told(group, told, event) => {
                self.position.parts.insert(group, told);
                event.map(Ok)
            }
            Item::Failed(error) => Some(Err(error)),
        }
    }
}

fn first_error(events: &mut Waiting) -> Error {
    while let Some(item) = events.try_recv() {
        if let Item::Failed(error) = item {
            return error;
        }
    }
    Error::Closed
}

impl Stream for Subscriber {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        while let Poll::Ready(item) = self.events.poll_recv(context) {
            let Some(item) = item else { return Poll::Ready(None) };
            if let Some(event) = self.deliver(item) {
                return Poll::Ready(Some(event));
            }
        }
        Poll::Pending
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("waiting", &self.events.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_position_keeps_its_bytes() {
        let told = Told { position: 0x0102, events: 3 };
        let position = WatchPosition { parts: BTreeMap::from([(7, told), (9, Told::all_to(1))]) };
        let bytes = position.to_bytes();
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(
            hex,
            concat!(
                "01",
                "07000000",
                "0201000000000000",
                "03000000",
                "09000000",
                "0100000000000000",
                "00000000"
            )
        );
        assert_eq!(WatchPosition::from_bytes(&bytes).unwrap(), position);
        for cut in (0..bytes.len()).filter(|cut| (cut + 15) % 16 != 0) {
            assert!(WatchPosition::from_bytes(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(WatchPosition::from_bytes(&[2]).is_err());
    }
}
