//! [`Inbox`]: what a connection is to be told and has not taken yet, which is bounded.
//!
//! The bounds are those of Redis's `client-output-buffer-limit pubsub 32mb 8mb 60`, and one for all connections
//! together. Past them nothing is kept: what waits is dropped at once, whatever the connection is about, and the
//! connection is closed as soon as it looks.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dogsled_net::resp::Value;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The most bytes that wait for one connection.
const MOST_WAITING: usize = 32 << 20;
/// More than this may wait for [`FOR_SO_LONG`].
const MUCH_WAITING: usize = 8 << 20;
const FOR_SO_LONG: Duration = Duration::from_secs(60);
/// The most that waits for all connections of a server: then those are closed for which more than [`FAIR`] waits.
const MOST_WAITING_OF_ALL: usize = 512 << 20;
/// What may wait for a connection however much waits for others.
const FAIR: usize = 64 << 10;
/// What a message costs beside its bytes.
const OVERHEAD: usize = 128;

/// What a connection is to be told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cluster::redis) struct Message {
    /// That it was subscribed by.
    pub(in crate::cluster::redis) pattern: Option<Bytes>,
    pub(in crate::cluster::redis) channel: Bytes,
    pub(in crate::cluster::redis) text: Bytes,
}

impl Message {
    // What several connections share counts for each: it may be the last to have it.
    fn bytes(&self) -> usize {
        self.channel.len() + self.text.len() + OVERHEAD
    }

    /// As it is sent.
    pub(in crate::cluster::redis) fn value(self) -> Value {
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

#[derive(Default)]
struct State {
    messages: VecDeque<Message>,
    bytes: usize,
    /// When it became more than [`MUCH_WAITING`].
    much_since: Option<Instant>,
    /// The connection is too slow.
    is_over: bool,
}

/// The messages that wait for one connection.
pub(in crate::cluster::redis) struct Inbox {
    state: Mutex<State>,
    /// Of the only one that waits: the connection.
    changed: Notify,
    /// The bytes that wait for all connections.
    of_all: Arc<AtomicUsize>,
}

impl Inbox {
    pub(in crate::cluster::redis) fn new(of_all: Arc<AtomicUsize>) -> Inbox {
        Inbox { state: Mutex::default(), changed: Notify::new(), of_all }
    }

    pub(in crate::cluster::redis) fn push(&self, message: Message) {
        let mut state = self.state.lock();
        if state.is_over {
            return;
        }
        let bytes = message.bytes();
        state.bytes += bytes;
        let own = state.bytes;
        let all = self.of_all.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let much_since = match own > MUCH_WAITING {
            true => Some(*state.much_since.get_or_insert_with(Instant::now)),
            false => None,
        };
        let lasts = much_since.is_some_and(|since| since.elapsed() > FOR_SO_LONG);
        if own > MOST_WAITING || lasts || (all > MOST_WAITING_OF_ALL && own > FAIR) {
            state.is_over = true;
            state.messages = VecDeque::new();
            self.of_all.fetch_sub(std::mem::take(&mut state.bytes), Ordering::Relaxed);
        } else {
            state.messages.push_back(message);
        }
        drop(state);
        self.changed.notify_one();
    }

    /// The next that is there already.
    pub(in crate::cluster::redis) fn take(&self) -> Option<Message> {
        let mut state = self.state.lock();
        let message = state.messages.pop_front()?;
        state.bytes -= message.bytes();
        if state.bytes <= MUCH_WAITING {
            state.much_since = None;
        }
        if state.messages.is_empty() {
            // One that waited for much is not to keep the room for it.
            state.messages = VecDeque::new();
        }
        self.of_all.fetch_sub(message.bytes(), Ordering::Relaxed);
        Some(message)
    }

    /// The next message; `None`: the connection is too slow, and to be closed.
    ///
    /// Dropping the future loses nothing.
    pub(in crate::cluster::redis) async fn next(&self) -> Option<Message> {
        loop {
            if self.state.lock().is_over {
                return None;
            }
            if let Some(message) = self.take() {
                return Some(message);
            }
            self.changed.notified().await;
        }
    }

    /// Returns when the connection is to be closed.
    pub(in crate::cluster::redis) async fn too_slow(&self) {
        while !self.state.lock().is_over {
            self.changed.notified().await;
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        self.of_all.fetch_sub(self.state.get_mut().bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(bytes: usize) -> Message {
        Message { pattern: None, channel: Bytes::new(), text: Bytes::from(vec![b'x'; bytes]) }
    }

    #[tokio::test]
    async fn what_waits_is_bounded_and_gone_at_once_past_the_bound() {
        let of_all = Arc::new(AtomicUsize::new(0));
        let (slow, other) = (Inbox::new(Arc::clone(&of_all)), Inbox::new(Arc::clone(&of_all)));
        other.push(message(10));
        let mut pushed = 0;
        while !slow.state.lock().is_over {
            slow.push(message(1 << 20));
            pushed += 1;
            assert!(of_all.load(Ordering::Relaxed) <= MOST_WAITING + (1 << 20));
        }
        assert_eq!(pushed, 32);
        assert_eq!(of_all.load(Ordering::Relaxed), 10 + OVERHEAD);
        slow.too_slow().await;
        assert_eq!(slow.next().await, None);
        slow.push(message(1));
        assert_eq!(slow.take(), None);
        assert_eq!(other.next().await, Some(message(10)));
        assert_eq!(of_all.load(Ordering::Relaxed), 0);
        other.push(message(5));
        drop(other);
        assert_eq!(of_all.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn much_may_wait_for_a_while_only() {
        let inbox = Inbox::new(Arc::default());
        for _ in 0..9 {
            inbox.push(message(1 << 20));
        }
        assert!(!inbox.state.lock().is_over);
        let long_ago = Instant::now().checked_sub(FOR_SO_LONG + Duration::from_secs(1));
        let Some(long_ago) = long_ago else { return };
        inbox.state.lock().much_since = Some(long_ago);
        for _ in 0..2 {
            assert!(inbox.take().is_some());
        }
        assert_eq!(inbox.state.lock().much_since, None, "it has caught up");
        inbox.push(message(1 << 20));
        inbox.push(message(1 << 20));
        inbox.state.lock().much_since = Some(long_ago);
        inbox.push(message(1));
        assert!(inbox.state.lock().is_over);
    }
}
