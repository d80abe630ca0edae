//! [`Subscriber`]: what happens to the keys under a prefix.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::task::{Context, Poll};
use std::time::Duration;

use dogsled_storage::watch::{self, Subscription};
use dogsled_storage::{self as engine, Effect, TreeId};

use crate::IVec;

/// Something that happened to a key under the prefix of a [`Subscriber`].
///
/// sled has the first two variants only, so a `match` needs one more arm, `_`, to say what to do
/// when events were lost; sled's answer to a slow subscriber is to stop the writers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    /// All keys were removed at once, by [`Tree::clear`](crate::Tree::clear).
    Clear,
    /// The subscriber was too slow, and events are missing here. Later ones follow.
    Overflowed {
        /// How many.
        lost: u64,
    },
    /// Of a subscriber that reads [what was before](crate::Tree::watch_prefix_after): a checkpoint has let go
    /// of commits that it had not read yet. Later events follow.
    Compacted {
        /// The first commit of which everything is told.
        from: u64,
    },
}

impl Event {
    /// The key; empty for events that are not of one key.
    pub fn key(&self) -> &IVec {
        static NONE: IVec = IVec::new();
        match self {
            Event::Insert { key, .. } | Event::Remove { key } => key,
            Event::Clear | Event::Overflowed { .. } | Event::Compacted { .. } => &NONE,
        }
    }
}

/// Receives an [`Event`] for each change of the keys under a prefix, in commit order; made by
/// [`Tree::watch_prefix`](crate::Tree::watch_prefix).
///
/// As an iterator it waits for the next event, and ends when the database is closed or the tree
/// is dropped. As a future it resolves to the next event, under any executor:
/// `while let Some(event) = (&mut subscriber).await { … }`.
///
/// It holds a bounded number of events that were not yet taken. A subscriber that is too slow
/// never makes a writer wait: it finds an [`Event::Overflowed`] in the place of what it missed.
///
/// It does not keep the database open.
///
/// ```
/// # fn main() -> dogsled::Result<()> {
/// use dogsled::{Config, Event};
/// let tree = Config::new().temporary(true).open()?;
/// let subscriber = tree.watch_prefix("");
/// let writer = std::thread::spawn(move || tree.insert("a", "1").map(drop));
/// for event in subscriber.take(1) {
///     match event {
///         Event::Insert { key, value } => assert_eq!((&key[..], &value[..]), (&b"a"[..], &b"1"[..])),
///         Event::Remove { key } => println!("{key:?} is gone"),
///         other => println!("read again: {other:?}"),
///     }
/// }
/// writer.join().unwrap()?;
/// # Ok(()) }
/// ```
#[derive(Debug)]
pub struct Subscriber {
    backlog: Option<Backlog>,
    subscription: Subscription,
    sequence: u64,
}

/// What happened before the subscription began, read from the WAL as it is asked for.
#[derive(Debug)]
struct Backlog {
    commits: engine::Changes,
    tree: TreeId,
    prefix: IVec,
    /// The last commit that the subscription does not tell.
    last: u64,
    /// Of one commit.
    events: VecDeque<(u64, Event)>,
}

impl Backlog {
    /// The next event, and the sequence of its commit; `None`: the subscription tells the rest.
    fn next(&mut self) -> Option<(u64, Event)> {
        loop {
            if let Some(event) = self.events.pop_front() {
                return Some(event);
            }
            if self.commits.sequence() >= self.last {
                return None;
            }
            let commit = match self.commits.next()? {
                Ok(commit) if commit.sequence > self.last => return None,
                Ok(commit) => commit,
                // Let go meanwhile, or not to be read: what follows is told by the subscription.
                Err(_) => {
                    let from = std::mem::replace(&mut self.last, 0) + 1;
                    return Some((from - 1, Event::Compacted { from }));
                }
            };
            for effect in commit.effects {
                let event = match effect {
                    Effect::Put { tree, key, value, .. } if self.is_watched(tree, &key) => {
                        Event::Insert { key, value }
                    }
                    Effect::Remove { tree, key } if self.is_watched(tree, &key) => Event::Remove { key },
                    Effect::Clear { tree } if tree == self.tree => Event::Clear,
                    _ => continue,
                };
                self.events.push_back((commit.sequence, event));
            }
        }
    }

    fn is_watched(&self, tree: TreeId, key: &[u8]) -> bool {
        tree == self.tree && key.starts_with(&self.prefix)
    }
}

impl Subscriber {
    pub(crate) fn new(subscription: Subscription) -> Subscriber {
        Subscriber { backlog: None, subscription, sequence: 0 }
    }

    /// One that tells first what `commits` say, up to the commit `last`.
    pub(crate) fn after(
        commits: engine::Changes,
        (tree, prefix): (TreeId, IVec),
        last: u64,
        subscription: Subscription,
    ) -> Subscriber {
        let sequence = commits.sequence();
        let backlog = Backlog { commits, tree, prefix, last, events: VecDeque::new() };
        Subscriber { backlog: Some(backlog), subscription, sequence }
    }

    fn next_of_backlog(&mut self) -> Option<Event> {
        let next = self.backlog.as_mut()?.next();
        match next {
            Some((sequence, event)) => {
                self.sequence = sequence;
                Some(event)
            }
            None => {
                self.backlog = None;
                None
            }
        }
    }

    /// Waits for the next event for at most `timeout`.
    ///
    /// ```
    /// # fn main() -> dogsled::Result<()> {
    /// use std::{sync::mpsc::RecvTimeoutError, time::Duration};
    /// # let tree = dogsled::Config::new().temporary(true).open()?;
    /// let mut subscriber = tree.watch_prefix("");
    /// let moment = Duration::from_millis(1);
    /// assert_eq!(subscriber.next_timeout(moment), Err(RecvTimeoutError::Timeout));
    /// drop(tree);
    /// assert_eq!(subscriber.next_timeout(moment), Err(RecvTimeoutError::Disconnected));
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// `Timeout` when nothing came in time, `Disconnected` when nothing can come any more.
    pub fn next_timeout(&mut self, timeout: Duration) -> Result<Event, RecvTimeoutError> {
        if let Some(event) = self.next_of_backlog() {
            return Ok(event);
        }
        self.subscription.next_timeout(timeout).map(|event| self.deliver(event))
    }

    /// The next event if one is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        let before = self.next_of_backlog();
        before.or_else(|| self.subscription.try_next().map(|event| self.deliver(event)))
    }

    /// The sequence of the commit of the event returned last (of the last one lost, for
    /// [`Event::Overflowed`]); before the first 0, or what was asked for. Events of one commit have the same:
    /// who goes on later, by [`Tree::watch_prefix_after`](crate::Tree::watch_prefix_after), does so after a
    /// commit that was told as a whole.
    ///
    /// What is told may not be durable yet. Whoever keeps this number elsewhere, to go on from it after a power cut, keeps only
    /// what is up to [`Db::durable_sequence`](crate::Db::durable_sequence): what is lost then, others are numbered by
    /// later.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    fn deliver(&mut self, event: watch::Event) -> Event {
        self.sequence = event.sequence();
        match event {
            watch::Event::Put { key, value, .. } => Event::Insert { key, value },
            watch::Event::Remove { key, .. } => Event::Remove { key },
            watch::Event::Cleared { .. } => Event::Clear,
            watch::Event::Overflowed { lost, .. } => Event::Overflowed { lost },
        }
    }
}

impl Iterator for Subscriber {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        let before = self.next_of_backlog();
        before.or_else(|| self.subscription.next().map(|event| self.deliver(event)))
    }
}

impl Future for Subscriber {
    type Output = Option<Event>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        if let Some(event) = self.next_of_backlog() {
            return Poll::Ready(Some(event));
        }
        self.subscription.poll_next(context).map(|event| event.map(|event| self.deliver(event)))
    }
}
