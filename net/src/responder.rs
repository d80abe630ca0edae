//! The answering end of a stream of requests: one task reads them, hands them to the service in the
//! order of arrival, polls their futures, and writes replies as they come.
//!
//! Memory is bounded by back-pressure: while as many requests are being worked on as the limits
//! allow, or as many replies wait to be written, nothing more is read, and QUIC's window stops the
//! other side. While that many bytes wait, the requests that were begun are not polled either: a reply
//! that is made as it is polled for is then not made at all. Replies that are made elsewhere, by another
//! thread or another node, are there all the same; who makes long ones so has them counted beforehand, see
//! [`Service::long_reply`](dogsled_replication::Service::long_reply).
//!
//! Who takes nothing of what waits for long is [given up](Limits::patience): what is not polled may hold
//! something that others want.
//!
//! Requests that were begun are completed even if the connection fails meanwhile: a
//! service need not fear to be dropped half-way.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesUnordered, Stream};
use quinn::{RecvStream, SendStream};
use tokio::time::{Instant, Sleep};

use crate::requester::{GIVEN_UP, Turn, poll_pieces, poll_write};
use crate::wire::{FrameKind, FrameReader, FrameWriter};

/// While more bytes of replies than this wait to be written, nothing is read and no request goes on.
const REPLY_BYTES: usize = 1 << 20;
/// Requests that are handed over, and replies that are gathered, before others get a turn.
const BURST: usize = 256;
/// Bytes in a second of a request that comes slowly, and is waited for all the same.
const LEAST_PACE: u64 = 16 << 10;
/// How long requests whose connection has failed may go on.
const COMPLETION: Duration = Duration::from_secs(60);

/// The bounds of one stream of requests.
#[derive(Clone, Copy)]
pub(crate) struct Limits {
    /// Longest body of a request.
    pub(crate) max_request: usize,
    /// Longest body of a reply: what the other side accepts.
    pub(crate) max_reply: usize,
    /// Requests that are worked on at a time.
    pub(crate) max_concurrent: usize,
    /// Their bytes (one request is always let through).
    pub(crate) max_concurrent_bytes: usize,
    /// How long replies may wait without the other side taking a byte of them; and how long a request that has begun to
    /// come may take, beside what its bytes take at the least pace.
    pub(crate) patience: Duration,
}

/// Why a stream of requests came to a bad end.
pub(crate) struct Broken {
    pub(crate) why: String,
    /// It was ended here, because its replies were not taken, or the rest of a request did not come.
    pub(crate) stalled: bool,
}

impl From<String> for Broken {
    fn from(why: String) -> Broken {
        Broken { why, stalled: false }
    }
}

struct Working {
    id: u64,
    bytes: usize,
    future: BoxFuture<'static, Bytes>,
}

impl Future for Working {
    type Output = (u64, usize, Bytes);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = std::task::ready!(self.future.as_mut().poll(context));
        Poll::Ready((self.id, self.bytes, reply))
    }
}

struct Responder<H> {
    handle: H,
    limits: Limits,
    reader: FrameReader,
    writer: FrameWriter,
    working: FuturesUnordered<Working>,
    working_bytes: usize,
    /// The connection's end, which reading would notice, but not while there is no room to read.
    closed: BoxFuture<'static, ()>,
    /// Since when replies wait of which the other side has taken nothing.
    untaken_since: Option<Instant>,
    /// Rings when that is too long, or earlier.
    patience: Pin<Box<Sleep>>,
    /// Since when a part of a request is here, and the rest is waited for.
    partial_since: Option<Instant>,
    /// Rings when that is too long, or earlier.
    rest: Pin<Box<Sleep>>,
}

/// Answers the requests of one stream until the other side ends it (`Ok`) or it fails.
/// `closed` ends with the connection. `reading` is dropped as soon as no more requests will be handed over; what was begun goes on.
pub(crate) async fn respond<G>(
    mut send: SendStream,
    mut receive: RecvStream,
    limits: Limits,
    closed: BoxFuture<'static, ()>,
    reading: G,
    handle: impl FnMut(Bytes) -> BoxFuture<'static, Bytes>,
) -> Result<(), Broken> {
    let mut responder = Responder {
        handle,
        limits,
        reader: FrameReader::new(limits.max_request),
        writer: FrameWriter::default(),
        working: FuturesUnordered::new(),
        working_bytes: 0,
        closed,
        untaken_since: None,
        patience: Box::pin(tokio::time::sleep(Duration::ZERO)),
        partial_since: None,
        rest: Box::pin(tokio::time::sleep(Duration::ZERO)),
    };
    let mut turn = Turn::default();
    let read = poll_fn(|context| {
        std::task::ready!(turn.poll_last(context));
        responder.poll_open(context, &mut send, &mut receive)
    })
    .await;
    drop(reading);
    let writable = read.is_ok();
    if read.as_ref().is_err_and(|broken| broken.stalled) {
        // What QUIC holds of it goes at once, not only when the last request is completed.
        let _ = send.reset(GIVEN_UP.into());
    }
    let end = tokio::time::timeout(
        COMPLETION,
        poll_fn(|context| responder.poll_closing(context, writable.then_some(&mut send))),
    )
    .await;
    match (read, end) {
        (Ok(()), Ok(Ok(()))) => {
            // Fails only if the other side is gone, which then needs no end.
            let _ = send.finish();
            Ok(())
        }
        (Ok(()), Ok(Err(why))) | (Err(why), _) => Err(why),
        (Ok(()), Err(_)) => Err("requests were not answered for too long".to_owned().into()),
    }
}

impl<H: FnMut(Bytes) -> BoxFuture<'static, Bytes>> Responder<H> {
    fn has_room(&self) -> bool {
        self.working.len() < self.limits.max_concurrent
            && (self.working.is_empty() || self.working_bytes < self.limits.max_concurrent_bytes)
            && self.has_room_for_replies()
    }

    fn has_room_for_replies(&self) -> bool {
        self.writer.pending() < REPLY_BYTES
    }

    /// Reads, works and writes; ready at the end of the requests.
    fn poll_open(
        &mut self,
        context: &mut Context<'_>,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Poll<Result<(), Broken>> {
        let mut budget = BURST;
        loop {
            let mut moved = false;
            while budget > 0 && self.has_room() {
                match self.reader.next_frame() {
                    Ok(Some((header, body))) if header.kind == FrameKind::Request => {
                        self.partial_since = None;
                        self.begin(context, header.id, body);
                        budget -= 1;
                    }
                    Ok(Some(_)) => return Poll::Ready(Err("a frame is no request".to_owned().into())),
                    Err(error) => return Poll::Ready(Err(error.to_string().into())),
                    Ok(None) => match poll_pieces(context, receive, &mut self.reader) {
                        Err(why) => return Poll::Ready(Err(why.into())),
                        Ok(None) => break,
                        Ok(Some(true)) => {}
                        Ok(Some(false)) if self.reader.is_between_frames() => return Poll::Ready(Ok(())),
                        Ok(Some(false)) => {
                            return Poll::Ready(Err("the stream ends within a frame".to_owned().into()));
                        }
                    },
                }
                moved = true;
            }
            moved |= self.work(context, &mut budget);
            match self.write(context, send) {
                Ok(wrote) => moved |= wrote,
                Err(broken) => return Poll::Ready(Err(broken)),
            }
            if !moved {
                if !self.has_room() && self.closed.as_mut().poll(context).is_ready() {
                    return Poll::Ready(Err("the connection was closed".to_owned().into()));
                }
                return match self.wait_for_rest(context) {
                    Ok(()) => Poll::Pending,
                    Err(broken) => Poll::Ready(Err(broken)),
                };
            }
            if budget == 0 {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
        }
    }

    /// Completes what was begun, and writes it if there is still somewhere to write.
    fn poll_closing(
        &mut self,
        context: &mut Context<'_>,
        mut send: Option<&mut SendStream>,
    ) -> Poll<Result<(), Broken>> {
        if send.is_none() {
            self.writer = FrameWriter::default();
        }
        loop {
            let mut budget = usize::MAX;
            let mut moved = self.work(context, &mut budget);
            if let Some(send) = &mut send {
                match self.write(context, send) {
                    Ok(wrote) => moved |= wrote,
                    Err(broken) => return Poll::Ready(Err(broken)),
                }
            } else {
                self.writer = FrameWriter::default();
            }
            if self.working.is_empty() && self.writer.pending() == 0 {
                return Poll::Ready(Ok(()));
            }
            if !moved {
                return Poll::Pending;
            }
        }
    }

    /// Hands a request to the service. Many are answered at once and never join the others.
    fn begin(&mut self, context: &mut Context<'_>, id: u64, body: Bytes) {
        let bytes = body.len();
        let mut future = (self.handle)(body);
        match future.as_mut().poll(context) {
            Poll::Ready(reply) => self.reply(id, reply),
            Poll::Pending => {
                self.working_bytes += bytes;
                self.working.push(Working { id, bytes, future });
            }
        }
    }

    fn work(&mut self, context: &mut Context<'_>, budget: &mut usize) -> bool {
        let mut moved = false;
        while *budget > 0 && self.has_room_for_replies() {
            let Poll::Ready(Some((id, bytes, reply))) = Pin::new(&mut self.working).poll_next(context) else {
                break;
            };
            self.working_bytes -= bytes;
            self.reply(id, reply);
            *budget -= 1;
            moved = true;
        }
        moved
    }

    /// Writes what waits as far as the other side takes it; whether anything moved.
    fn write(&mut self, context: &mut Context<'_>, send: &mut SendStream) -> Result<bool, Broken> {
        let wrote = poll_write(context, send, &mut self.writer)?;
        if self.writer.pending() == 0 {
            self.untaken_since = None;
            return Ok(wrote);
        }
        if wrote {
            self.untaken_since = None;
        }
        let until = *self.untaken_since.get_or_insert_with(Instant::now) + self.limits.patience;
        // It is never set to later than `until`, and seldom anew: it rings, and is set to what is left.
        while self.patience.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                let (bytes, patience) = (self.writer.pending(), self.limits.patience);
                let why = format!("nothing of {bytes} bytes of replies was taken for {patience:?}");
                return Err(Broken { why, stalled: true });
            }
            self.patience.as_mut().reset(until);
        }
        Ok(wrote)
    }

    /// Waits for the rest of a request, but not for ever: what is here of it takes memory.
    fn wait_for_rest(&mut self, context: &mut Context<'_>) -> Result<(), Broken> {
        if self.reader.is_between_frames() || !self.has_room() {
            self.partial_since = None;
            return Ok(());
        }
        let held = self.reader.held();
        let patience = self.limits.patience + Duration::from_secs(held as u64 / LEAST_PACE);
        let until = *self.partial_since.get_or_insert_with(Instant::now) + patience;
        // As in `write`.
        while self.rest.as_mut().poll(context).is_ready() {
            if Instant::now() >= until {
                let why = format!("of a request {held} bytes came in {patience:?}, and not the rest");
                return Err(Broken { why, stalled: true });
            }
            self.rest.as_mut().reset(until);
        }
        Ok(())
    }

    fn reply(&mut self, id: u64, reply: Bytes) {
        if reply.len() <= self.limits.max_reply {
            self.writer.push(FrameKind::Reply, id, reply);
        } else {
            let (length, limit) = (reply.len(), self.limits.max_reply);
            tracing::error!(length, limit, "a reply is too large to be sent");
            let reason = format!("the reply of {length} bytes is over the limit of {limit}");
            self.writer.push(FrameKind::Failed, id, reason.into());
        }
    }
}
