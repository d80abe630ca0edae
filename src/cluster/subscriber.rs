//! [`Subscriber`]: following keys over all partitions.
//!
//! ```text
//! partition 1 ─ stream of a node ─► task ─┐
//! partition 2 ─ stream of a node ─► task ─┼─ one bounded queue ─► Subscriber
//! partition 3 ─ stream of a node ─► task ─┘
//! ```
//!
//! Each partition is followed at its leader, or at another replica if that cannot be reached: all
//! replicas tell the same, in the order of the partition's log. When a stream breaks, the task begins a
//! new one elsewhere. What was committed between the last event of the old one and the beginning of
//! the new one is not told by anybody, so the subscriber is told that ([`Event::Lost`]). A replica
//! that is behind tells again what the former had told already; that is left out, by position.
//!
//! The queue is bounded. While it is full, nothing more is read from the nodes, which keep a bounded
//! number of events for each stream, and say that they have lost some when there are more.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use dogsled_replication::watch::WatchEvent;
use dogsled_replication::{ClientReply, ClientRequest, ClusterError, ring};
use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::{Client, Error, Result};
use crate::IVec;

/// Events that wait to be taken.
const QUEUE: usize = 4096;

/// A partition, as far as keys are concerned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Part {
    group: u32,
    partitions: u32,
}

impl Part {
    /// Whether a key belongs to it.
    pub fn contains(&self, key: impl AsRef<[u8]>) -> bool {
        ring::group_of(key.as_ref(), self.partitions) == self.group
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
    /// Events of one part may be missing here; later ones follow. Read what is of interest again: what is
    /// read from now on, and what is told from now on, leaves no gap.
    Lost {
        /// Which part.
        part: Part,
    },
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
/// It ends, after an error, when the client is closed. Dropping it ends it on the nodes.
pub struct Subscriber {
    events: mpsc::Receiver<Result<Event>>,
    /// Ended when this is dropped.
    _tasks: JoinSet<()>,
}

impl Subscriber {
    /// Returns when every partition tells what happens.
    pub(super) async fn begin(
        client: Client,
        tree: IVec,
        prefix: IVec,
        until: Instant,
    ) -> Result<Subscriber> {
        let partitions = client.core().partitions(until).await?;
        let (sender, mut events) = mpsc::channel(QUEUE);
        let mut tasks = JoinSet::new();
        let mut begun = Vec::new();
        for group in 1..=partitions {
            let (tell, told) = oneshot::channel();
            begun.push(told);
            let follower = Follower {
                client: client.clone(),
                request: ClientRequest::Watch {
                    group,
                    tree: Bytes::copy_from_slice(&tree),
                    prefix: Bytes::copy_from_slice(&prefix),
                },
                part: Part { group, partitions },
                events: sender.clone(),
                begun: Some(tell),
                last: 0,
            };
            tasks.spawn(follower.run());
        }
        drop(sender);
        for told in begun {
            match timeout_at(until, told).await {
                Ok(Ok(())) => {}
                // It has ended, and said why.
                Ok(Err(_)) => return Err(first_error(&mut events)),
                Err(_) => {
                    let why = "not every partition was reached before the deadline";
                    return Err(Error::Unavailable(why.to_owned()));
                }
            }
        }
        Ok(Subscriber { events, _tasks: tasks })
    }

    /// The next event; `None` after the end.
    ///
    /// Dropping the future loses nothing.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        self.events.recv().await
    }

    /// The next event if one is there already.
    pub fn try_next(&mut self) -> Option<Result<Event>> {
        self.events.try_recv().ok()
    }
}

fn first_error(events: &mut mpsc::Receiver<Result<Event>>) -> Error {
    while let Ok(event) = events.try_recv() {
        if let Err(error) = event {
            return error;
        }
    }
    Error::Closed
}

impl Stream for Subscriber {
    type Item = Result<Event>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.events.poll_recv(context)
    }
}

impl fmt::Debug for Subscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subscriber").field("waiting", &self.events.len()).finish_non_exhaustive()
    }
}

/// Nobody takes the events any more.
struct Unwanted;

/// Follows one partition.
struct Follower {
    client: Client,
    request: ClientRequest,
    part: Part,
    events: mpsc::Sender<Result<Event>>,
    /// Told once, when the first stream has begun.
    begun: Option<oneshot::Sender<()>>,
    /// Position of the last event that was passed on.
    last: u64,
}

impl Follower {
    async fn run(mut self) {
        let mut avoid = None;
        let mut attempt = 0;
        while !self.client.core().is_closed() {
            if let Ok((node, mut stream)) =
                self.client.core().open_watch(&self.request, self.part.group, avoid).await
            {
                avoid = Some(node);
                while let Some(Ok(message)) = stream.next().await {
                    match self.message(message).await {
                        Ok(Ok(())) => attempt = 0,
                        // The node says why it ends the stream.
                        Ok(Err(Some(fatal))) => {
                            // Unwanted is as good an end.
                            let _ = self.events.send(Err(fatal)).await;
                            return;
                        }
                        Ok(Err(None)) => break,
                        Err(Unwanted) => return,
                    }
                }
            }
            self.client.core().before_next_attempt(attempt).await;
            attempt += 1;
        }
        let _ = self.events.send(Err(Error::Closed)).await;
    }

    /// Passes on what a node says. The inner error ends the stream: with a reason, for good.
    async fn message(&mut self, message: Bytes) -> Result<Result<(), Option<Error>>, Unwanted> {
        let events = match WatchEvent::decode(message.clone()) {
            Ok(events) => events,
            Err(malformed) => {
                return Ok(Err(match ClientReply::decode(message) {
                    Ok(ClientReply::Error(ClusterError::Denied(what))) => Some(Error::Denied(what)),
                    Ok(ClientReply::Error(_)) => None,
                    _ => Some(Error::Incompatible(malformed.to_string())),
                }));
            }
        };
        for event in events {
            self.event(event).await?;
        }
        Ok(Ok(()))
    }

    async fn event(&mut self, event: WatchEvent) -> Result<(), Unwanted> {
        let part = self.part;
        let (position, event) = match event {
            WatchEvent::Began { position } => {
                if let Some(begun) = self.begun.take() {
                    // Not waited for any more if the deadline has passed; then this ends as well.
                    let _ = begun.send(());
                    return Ok(());
                }
                // A replica that begins before what was told last tells what comes after that.
                if position < self.last {
                    return Ok(());
                }
                (self.last, Event::Lost { part })
            }
            // Several events may have the position of one commit: told before or not, they are told.
            WatchEvent::Put { position, .. }
            | WatchEvent::Removed { position, .. }
            | WatchEvent::Cleared { position }
                if position < self.last =>
            {
                return Ok(());
            }
            WatchEvent::Put { position, key, value } => {
                (position, Event::Insert { key: IVec::from(&key[..]), value: IVec::from(&value[..]) })
            }
            WatchEvent::Removed { position, key } => (position, Event::Remove { key: IVec::from(&key[..]) }),
            WatchEvent::Cleared { position } => (position, Event::Clear { part }),
            WatchEvent::Lost { position } => (position, Event::Lost { part }),
        };
        self.events.send(Ok(event)).await.map_err(|_| Unwanted)?;
        self.last = self.last.max(position);
        Ok(())
    }
}
