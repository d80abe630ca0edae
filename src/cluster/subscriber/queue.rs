//! What waits to be taken by one [`Subscriber`](super::Subscriber), bounded twice: by the number of events, and by their
//! bytes, or a few thousand large values would be gigabytes.
//!
//! Room for bytes is given by a semaphore. An event that is larger than all of it takes all of it: it is let in when
//! nothing else waits.

use std::sync::Arc;
use std::task::{Context, Poll};

use dogsled_replication::watch::Told;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError, mpsc};

use super::Event;
use crate::cluster::Error;

/// Events that wait to be taken.
const EVENTS: usize = 4096;
/// Bytes of their keys and values.
const BYTES: u32 = 64 << 20;

/// What has been told of a group, and the event that was, if it is not merely that nothing happened.
pub(super) enum Item {
    Told(u32, Told, Option<Event>),
    Failed(Error),
}

impl Item {
    fn bytes(&self) -> u32 {
        let bytes = match self {
            Item::Told(_, _, Some(Event::Insert { key, value })) => key.len() + value.len(),
            Item::Told(_, _, Some(Event::Remove { key })) => key.len(),
            _ => 0,
        };
        u32::try_from(bytes).unwrap_or(BYTES).min(BYTES)
    }
}

/// An item, and its room, which is free again when it is taken.
struct Queued {
    item: Item,
    _room: OwnedSemaphorePermit,
}

/// The end of those who tell.
#[derive(Clone)]
pub(super) struct Queue {
    items: mpsc::Sender<Queued>,
    room: Arc<Semaphore>,
}

/// The end of who is told.
pub(super) struct Waiting(mpsc::Receiver<Queued>);

impl Queue {
    pub(super) fn new() -> (Queue, Waiting) {
        let (items, waiting) = mpsc::channel(EVENTS);
        let room = Arc::new(Semaphore::new(BYTES as usize));
        (Queue { items, room }, Waiting(waiting))
    }

    /// Puts an item in, or gives it back, and says why.
    pub(super) fn try_send(&self, item: Item) -> Result<(), TrySendError<Item>> {
        let place = match self.items.try_reserve() {
            Ok(place) => place,
            Err(TrySendError::Full(())) => return Err(TrySendError::Full(item)),
            Err(TrySendError::Closed(())) => return Err(TrySendError::Closed(item)),
        };
        match Arc::clone(&self.room).try_acquire_many_owned(item.bytes()) {
            Ok(room) => {
                place.send(Queued { item, _room: room });
                Ok(())
            }
            Err(TryAcquireError::NoPermits) => Err(TrySendError::Full(item)),
            Err(TryAcquireError::Closed) => unreachable!("nobody closes it"),
        }
    }

    /// Puts an item in when there is room; `false`: nobody takes any more.
    pub(super) async fn send(&self, item: Item) -> bool {
        let Ok(place) = self.items.reserve().await else { return false };
        let room = tokio::select! {
            room = Arc::clone(&self.room).acquire_many_owned(item.bytes()) => room,
            () = self.items.closed() => return false,
        };
        place.send(Queued { item, _room: room.expect("nobody closes it") });
        true
    }

    /// Whether nobody takes any more.
    pub(super) fn is_closed(&self) -> bool {
        self.items.is_closed()
    }

    /// Whether it is the queue of the same subscriber.
    pub(super) fn is_same(&self, other: &Queue) -> bool {
        self.items.same_channel(&other.items)
    }

    pub(super) fn is_half_empty(&self) -> bool {
        self.items.capacity() >= EVENTS / 2 && self.room.available_permits() >= BYTES as usize / 2
    }
}

impl Waiting {
    pub(super) async fn recv(&mut self) -> Option<Item> {
        self.0.recv().await.map(|queued| queued.item)
    }

    pub(super) fn try_recv(&mut self) -> Option<Item> {
        self.0.try_recv().ok().map(|queued| queued.item)
    }

    pub(super) fn poll_recv(&mut self, context: &mut Context<'_>) -> Poll<Option<Item>> {
        self.0.poll_recv(context).map(|queued| queued.map(|queued| queued.item))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::IVec;

    fn event(bytes: usize) -> Item {
        let event = Event::Insert { key: IVec::from("key"), value: IVec::from(vec![0; bytes - 3]) };
        Item::Told(1, Told::default(), Some(event))
    }

    #[test]
    fn large_events_fill_the_queue_before_many_do() {
        let (queue, mut waiting) = Queue::new();
        for _ in 0..64 {
            assert!(queue.try_send(event(1 << 20)).is_ok());
        }
        assert!(matches!(queue.try_send(event(3)), Err(TrySendError::Full(_))));
        // What tells of no key has no bytes.
        assert!(queue.try_send(Item::Told(1, Told::default(), None)).is_ok());
        assert!(!queue.is_half_empty());
        let mut sending = Box::pin(queue.send(event(3)));
        assert!(sending.as_mut().now_or_never().is_none());
        assert!(waiting.try_recv().is_some());
        assert_eq!(sending.now_or_never(), Some(true));
        for _ in 0..32 {
            assert!(waiting.try_recv().is_some());
        }
        assert!(queue.is_half_empty());
    }

    #[test]
    fn an_event_that_is_larger_than_the_queue_is_let_in_alone() {
        let (queue, mut waiting) = Queue::new();
        assert!(queue.try_send(event(BYTES as usize + 1)).is_ok());
        assert!(matches!(queue.try_send(event(3)), Err(TrySendError::Full(_))));
        assert!(waiting.try_recv().is_some());
        assert!(queue.try_send(event(3)).is_ok());
        assert!(matches!(queue.try_send(event(BYTES as usize + 1)), Err(TrySendError::Full(_))));
        drop(waiting);
        assert!(matches!(queue.try_send(event(3)), Err(TrySendError::Closed(_))));
        assert_eq!(queue.send(event(3)).now_or_never(), Some(false));
    }
}
