//! [`Subscriber`]: what happens to the keys under a prefix.

use std::future::Future;
use std::pin::Pin;
use std::sync::mpsc::RecvTimeoutError;
use std::task::{Context, Poll};
use std::time::Duration;

use dogsled_storage::watch::{self, Subscription};

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
}

impl Event {
    /// The key; empty for events that are not of one key.
    pub fn key(&self) -> &IVec {
        static NONE: IVec = IVec::new();
        match self {
            Event::Insert { key, .. } | Event::Remove { key } => key,
            Event::Clear | Event::Overflowed { .. } => &NONE,
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
    subscription: Subscription,
    sequence: u64,
}

impl Subscriber {
    pub(crate) fn new(subscription: Subscription) -> Subscriber {
        Subscriber { subscription, sequence: 0 }
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
        self.subscription.next_timeout(timeout).map(|event| self.deliver(event))
    }

    /// The next event if one is there already.
    pub fn try_next(&mut self) -> Option<Event> {
        self.subscription.try_next().map(|event| self.deliver(event))
    }

    /// The sequence of the commit of the event returned last (of the last one lost, for
    /// [`Event::Overflowed`]); 0 before the first. Events of one commit have the same.
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
        self.subscription.next().map(|event| self.deliver(event))
    }
}

impl Future for Subscriber {
    type Output = Option<Event>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.subscription.poll_next(context).map(|event| event.map(|event| self.deliver(event)))
    }
}
