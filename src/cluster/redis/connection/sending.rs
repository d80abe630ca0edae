//! What leaves a connection, what it holds until then, and when it is given up.
//!
//! Replies are written into one buffer, and that is sent when nothing more is there to be answered, or it is large; the
//! largest replies bit by bit. As long as a client does not take what it is sent, what it sends is read up to a bound. All
//! that is held is counted, with that of all other connections: see [`super::super::held`].

use std::mem;
use std::sync::Arc;
use std::time::Duration;

use dogsled_net::resp::{ClientStream, Moved, Protocol, RequestReader, Value};
use tokio::time::Instant;

use super::{Connection, KEPT, READ, SEND, end, limits};
use crate::cluster::redis::database::UNKNOWN;
use crate::cluster::redis::held::MUCH;
use crate::cluster::redis::pubsub::{Message, Subscriptions};
use crate::cluster::redis::server::LEAST_PACE;

/// Replies that are larger are sent in pieces of about so many bytes.
const PIECE: usize = 1 << 20;
/// How much is kept of what a client sends while it does not read its replies.
const MOST_SENT_AHEAD: usize = 64 << 20;
/// About what a value of a reply takes besides its bytes.
const PER_VALUE: usize = 64;

/// About how many bytes a reply takes until it is sent.
pub(in crate::cluster::redis) fn held(value: &Value) -> usize {
    held_alone(value)
        + match value {
            Value::Array(values) | Value::Set(values) | Value::Push(values) => values.iter().map(held).sum(),
            Value::Map(pairs) => pairs.iter().map(|(key, value)| held(key) + held(value)).sum(),
            _ => 0,
        }
}

/// Without the values that it consists of.
fn held_alone(value: &Value) -> usize {
    match value {
        Value::Array(_) | Value::Set(_) | Value::Push(_) | Value::Map(_) => PER_VALUE,
        other => PER_VALUE + other.weight(),
    }
}

/// A time that the clock cannot express is far away all the same.
fn after(patience: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(patience).unwrap_or_else(|| now + Duration::from_secs(365 * 86_400))
}

impl Connection {
    /// Ends the connection, because all together hold too much and this one most.
    pub(super) async fn leave(&mut self, mut stream: ClientStream) -> std::io::Result<()> {
        // At once: others wait for the room, and the client may not read what it is told.
        self.queue = None;
        self.reader = RequestReader::new(limits(&self.link));
        self.count();
        let full = "ERR the clients together have sent more than is kept for them; try again later";
        Value::error(full).encode(self.link.protocol, &mut self.out);
        self.send(&mut stream).await?;
        end(stream).await
    }

    /// When the connection is given up, unless more comes: of one that has sent a part of a command, or much that waits
    /// for `EXEC`, or has not yet said who it is.
    pub(super) fn waits_until(&mut self) -> Option<Instant> {
        let begun = self.began_until();
        // What is little may wait for ever, and costs no look at the clock.
        if self.reader.held() + self.queue.as_ref().map_or(0, |queue| queue.bytes) <= MUCH {
            self.silent_since = None;
            return begun;
        }
        let silent = self.silent_since.get_or_insert_with(Instant::now);
        let silent = silent.checked_add(self.link.server.request_time);
        begun.into_iter().chain(silent).min()
    }

    /// The same, by when that began.
    fn began_until(&mut self) -> Option<Instant> {
        let (held, time) = (self.reader.held(), self.link.server.request_time);
        if held == 0 && !self.reader.is_amid_request() {
            self.partial_since = None;
        } else {
            self.partial_since.get_or_insert_with(Instant::now);
        }
        let begun = if self.link.is_authenticated { self.partial_since? } else { self.since };
        begun.checked_add(time + Duration::from_secs((held / LEAST_PACE) as u64))
    }

    /// Counts what this connection holds; whether all together hold no more than they may, as soon as those have left
    /// that hold more than this one.
    pub(super) fn charge(&mut self) -> bool {
        // One that holds next to nothing is not to suffer for the others.
        self.count() || self.share.bytes() <= READ || self.share.make_room()
    }

    fn count(&mut self) -> bool {
        let queued = self.queue.as_ref().map_or(0, |queue| queue.bytes);
        let names = self.subscriptions.as_ref().map_or(0, Subscriptions::held);
        let watched: usize = self.watched.iter().map(|watched| watched.key.len() + 64).sum();
        let own = self.link.named();
        let holds = self.reader.held() + queued + self.waiting + self.out.len() + names + watched + own;
        self.share.set(holds)
    }

    /// Takes back what was counted and is held no more: one that is silent from now on must not keep others from being
    /// served.
    pub(super) fn recount(&mut self) {
        if self.share.bytes() > READ {
            // It can only have become less.
            self.count();
        }
    }

    pub(super) async fn send(&mut self, stream: &mut ClientStream) -> std::io::Result<()> {
        // Nothing can be said to one whose replies are in the way: it would have to read them first.
        if self.out.len() > SEND && !self.charge() {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        let written = stream.write_at_once(&self.out)?;
        if written < self.out.len() {
            Box::pin(self.send_rest(written, stream)).await?;
        }
        self.sent += self.out.len();
        self.out.clear();
        if self.out.capacity() > KEPT {
            self.out = Vec::new();
        }
        self.recount();
        Ok(())
    }

    /// Writes what could not be written at once, and reads meanwhile what the client sends, as long as there is room for it.
    async fn send_rest(&mut self, mut written: usize, stream: &mut ClientStream) -> std::io::Result<()> {
        let patience = self.link.server.patience;
        // One that sends a large pipeline is not taken for one that does not read, if it is not slower than may be.
        let enough = (patience.as_secs() as usize).saturating_mul(LEAST_PACE).max(READ);
        let (mut until, mut read, mut has_ended) = (after(patience), 0, false);
        loop {
            // Of strangers no more is kept than of what they send otherwise.
            let may_send = !has_ended && self.link.is_authenticated;
            let may_read = may_send && self.reader.held() < MOST_SENT_AHEAD && self.charge();
            let Connection { reader, subscriptions, out, share, .. } = self;
            let buffer = may_read.then(|| reader.buffer());
            let too_slow = async {
                match subscriptions {
                    Some(subscriptions) => subscriptions.too_slow().await,
                    None => std::future::pending().await,
                }
            };
            let moved = tokio::select! {
                moved = stream.write_or_read(&out[written..], buffer) => moved?,
                () = too_slow => return Err(self.too_slow()),
                // Nothing can be said to it: it would have to read what is in the way.
                () = share.has_to_leave() => return Err(std::io::ErrorKind::OutOfMemory.into()),
                () = tokio::time::sleep_until(until) => return Err(std::io::ErrorKind::TimedOut.into()),
            };
            match moved {
                Moved::Written(0) => return Err(std::io::ErrorKind::WriteZero.into()),
                Moved::Flushed => return Ok(()),
                Moved::Written(more) => {
                    written += more;
                    (until, read) = (after(patience), 0);
                }
                // What it has sent before is still to be answered.
                Moved::Read(0) => has_ended = true,
                Moved::Read(more) => {
                    self.has_read_ahead = true;
                    read += more;
                    if read >= enough {
                        (until, read) = (after(patience), 0);
                    }
                }
            }
        }
    }

    pub(super) fn too_slow(&self) -> std::io::Error {
        tracing::warn!(peer = %self.link.peer, "a subscriber does not read what it is told, and is closed");
        std::io::ErrorKind::TimedOut.into()
    }

    /// Writes what the connection is to be told, and what else is there of that.
    pub(super) fn tell(&mut self, message: Message) {
        let mut next = Some(message);
        while let Some(message) = next {
            message.value().encode(self.link.protocol, &mut self.out);
            let has_room = self.out.len() < SEND;
            next = self.subscriptions.as_ref().filter(|_| has_room).and_then(Subscriptions::take);
        }
    }

    /// Writes the first replies, which are there, behind what is to be sent.
    ///
    /// What a node that stops cannot tell the outcome of is not answered: the connection ends, as it does when a node
    /// dies, and clients know what to do then.
    pub(super) async fn encode(&mut self, count: usize, stream: &mut ClientStream) -> std::io::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let server = Arc::clone(&self.link.server);
        let stops = *server.closing.borrow() || server.database.client.core().is_closed();
        let mut replies = mem::take(&mut self.replies);
        self.replies = replies.split_off(count);
        for (protocol, value) in replies.drain(..) {
            let value = value.expect("everything that was begun is carried out");
            self.is_broken_off |= stops && matches!(&value, Value::Error(text) if text.starts_with(UNKNOWN));
            let bytes = held(&value);
            if self.is_broken_off {
                self.waiting -= bytes;
            } else if bytes > PIECE {
                Box::pin(self.send_in_pieces(value, protocol, stream)).await?;
            } else {
                self.waiting -= bytes;
                value.encode(protocol, &mut self.out);
            }
        }
        // With its room.
        if self.replies.is_empty() {
            self.replies = replies;
        }
        self.link.is_ending |= self.is_broken_off;
        Ok(())
    }

    /// Writes a large reply bit by bit, and sends it so, but for the last bit: its bytes are not to be there twice.
    async fn send_in_pieces(
        &mut self,
        value: Value,
        protocol: Protocol,
        stream: &mut ClientStream,
    ) -> std::io::Result<()> {
        let mut within = vec![vec![value].into_iter()];
        while let Some(values) = within.last_mut() {
            let Some(value) = values.next() else {
                within.pop();
                continue;
            };
            self.waiting -= held_alone(&value);
            within.push(value.begin(protocol, &mut self.out).into_iter());
            if self.out.len() > PIECE {
                self.send(stream).await?;
            }
        }
        Ok(())
    }
}
