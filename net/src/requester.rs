//! The asking end of a stream of requests: a queue that anyone may add to, and the one task that
//! moves it over a connection.
//!
//! ```text
//! request() ─► RequestQueue ─► [drive: batch, number, write] ─► stream
//!    future ◄── one reply each ◄─ [drive: read, match by id]  ◄─ stream
//! ```
//!
//! The queue outlives connections. What waits in it has surely not been sent; what [`drive`] took
//! out may have been. That line is where [`TransportError::Unreachable`] ends and
//! [`TransportError::Lost`] and [`TransportError::TimedOut`] begin.
//!
//! Costs per request: one allocation for the future, one for its reply's way back. Everything else
//! is shared by all that is queued when the task wakes: one wake-up, one lock, one write.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use bytes::Bytes;
use dogsled_replication::TransportError;
use futures_util::FutureExt;
use futures_util::future::{BoxFuture, ready};
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream};
use tokio::sync::oneshot;
use tokio::time::Sleep;

use crate::tls::explain;
use crate::wire::{FRAME_HEADER_LENGTH, FrameKind, FrameReader, FrameWriter, WireError};

/// What is taken from the queue for one write.
const BATCH_BYTES: usize = 256 << 10;
/// Pieces of datagrams that are read at a time.
const READ_PIECES: usize = 32;
/// Rounds of reading and writing before other tasks get a turn.
const ROUNDS: usize = 8;
/// What a queued request occupies besides its body.
const OVERHEAD: usize = 64;
/// Deadlines are looked at no more often.
const DEADLINE_GRAIN: Duration = Duration::from_millis(1);
/// While the other side takes nothing, the queue is not drained and its deadlines are looked at so
/// often.
const BLOCKED_GRAIN: Duration = Duration::from_millis(10);
/// Longer deadlines are cut to this; such a request is waiting for the connection to end.
const LONGEST_DEADLINE: Duration = Duration::from_secs(365 * 86_400);

/// The code of streams that end before their time.
pub(crate) const GIVEN_UP: u32 = 1;

type ReplySender = oneshot::Sender<Result<Bytes, TransportError>>;

struct Queued {
    body: Bytes,
    deadline: Instant,
    reply: ReplySender,
}

struct State {
    queue: VecDeque<Queued>,
    bytes: usize,
    /// No queued request's deadline is earlier.
    earliest: Option<Instant>,
    /// While set, requests are refused at once, for this reason.
    refusing: Option<String>,
    /// The longest body that the other side accepts, by what it said last.
    max_body: usize,
    /// The task that drives, if it found nothing to do.
    driver: Option<Waker>,
}

/// Requests on their way to one other side on one stream.
pub(crate) struct RequestQueue {
    state: Mutex<State>,
    max_bytes: usize,
}

impl RequestQueue {
    /// Refuses requests until told otherwise.
    pub(crate) fn new(max_bytes: usize, max_body: usize, refusing: &str) -> RequestQueue {
        RequestQueue {
            state: Mutex::new(State {
                queue: VecDeque::new(),
                bytes: 0,
                earliest: None,
                refusing: Some(refusing.to_owned()),
                max_body,
                driver: None,
            }),
            max_bytes,
        }
    }

    /// Queues a request, or refuses it at once.
    pub(crate) fn request(
        &self,
        body: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'static, Result<Bytes, TransportError>> {
        let (reply, replied) = oneshot::channel();
        let now = Instant::now();
        let deadline = now + deadline.min(LONGEST_DEADLINE);
        let driver = {
            let mut state = self.state.lock();
            let cost = body.len() + OVERHEAD;
            let refusal = if body.len() > state.max_body {
                Some(TransportError::TooLarge { length: body.len(), limit: state.max_body })
            } else if let Some(why) = &state.refusing {
                Some(TransportError::Unreachable(why.clone()))
            // A body over the whole bound may pass when nothing else waits.
            } else if state.bytes > 0 && state.bytes + cost > self.max_bytes {
                Some(TransportError::Unreachable(format!("{} bytes are waiting to be sent", state.bytes)))
            } else {
                None
            };
            if let Some(error) = refusal {
                return ready(Err(error)).boxed();
            }
            state.bytes += cost;
            state.earliest = Some(state.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
            state.queue.push_back(Queued { body, deadline, reply });
            state.driver.take()
        };
        if let Some(driver) = driver {
            driver.wake();
        }
        async move {
            // A sender that was dropped unanswered: the runtime is going down around its task.
            replied.await.unwrap_or_else(|_| Err(TransportError::Lost("the endpoint was closed".to_owned())))
        }
        .boxed()
    }

    /// From now on requests wait for a connection that is being made, or is there.
    pub(crate) fn accept(&self) {
        self.state.lock().refusing = None;
    }

    /// From now on requests are refused; those that wait are, too.
    pub(crate) fn refuse(&self, why: &str) {
        let waiting = {
            let mut state = self.state.lock();
            state.refusing = Some(why.to_owned());
            state.bytes = 0;
            state.earliest = None;
            std::mem::take(&mut state.queue)
        };
        for queued in waiting {
            // An error means that nobody waits for the reply any more.
            let _ = queued.reply.send(Err(TransportError::Unreachable(why.to_owned())));
        }
    }

    /// The other side has said what it accepts.
    pub(crate) fn set_max_body(&self, max_body: usize) {
        self.state.lock().max_body = max_body;
    }

    /// Answers those whose deadline passed while they waited, and says when the next one will.
    pub(crate) fn expire(&self, now: Instant) -> Option<Instant> {
        let mut expired = Vec::new();
        let earliest = {
            let mut state = self.state.lock();
            if state.earliest.is_none_or(|earliest| earliest > now) {
                return state.earliest;
            }
            let mut kept = VecDeque::with_capacity(state.queue.len());
            for queued in std::mem::take(&mut state.queue) {
                if queued.deadline <= now {
                    state.bytes -= queued.body.len() + OVERHEAD;
                    expired.push(queued);
                } else {
                    kept.push_back(queued);
                }
            }
            state.earliest = kept.iter().map(|queued| queued.deadline).min();
            state.queue = kept;
            state.earliest
        };
        for queued in expired {
            let why = "it could not be sent before the deadline".to_owned();
            let _ = queued.reply.send(Err(TransportError::Unreachable(why)));
        }
        earliest
    }

    /// Moves requests of about `BATCH_BYTES` into `batch`; if there are none, `waker` is woken by
    /// the next.
    fn take(&self, batch: &mut Vec<Queued>, waker: &Waker) {
        let mut state = self.state.lock();
        let mut bytes = 0;
        while bytes < BATCH_BYTES {
            let Some(queued) = state.queue.pop_front() else { break };
            bytes += queued.body.len() + FRAME_HEADER_LENGTH;
            state.bytes -= queued.body.len() + OVERHEAD;
            batch.push(queued);
        }
        if state.queue.is_empty() {
            state.earliest = None;
        }
        if batch.is_empty() {
            match &mut state.driver {
                Some(known) => known.clone_from(waker),
                none @ None => *none = Some(waker.clone()),
            }
        }
    }
}

/// Requests that were sent and have no reply yet. An id is a slot's index with its generation above,
/// so that a late reply finds nobody rather than somebody else.
struct InFlight {
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// No deadline in flight is earlier.
    earliest: Option<Instant>,
}

struct Slot {
    generation: u32,
    waiting: Option<(Instant, ReplySender)>,
}

impl InFlight {
    fn insert(&mut self, deadline: Instant, reply: ReplySender) -> u64 {
        self.earliest = Some(self.earliest.map_or(deadline, |earliest| earliest.min(deadline)));
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot { generation: 0, waiting: None });
            // Each has gone through a window of a few MiB: far fewer than 2^32.
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.waiting = Some((deadline, reply));
        u64::from(slot.generation) << 32 | u64::from(index)
    }

    /// `None` if that id was never given out; `Some(None)` if its request was given up.
    fn remove(&mut self, id: u64) -> Option<Option<ReplySender>> {
        let (index, generation) = (id as u32, (id >> 32) as u32);
        let slot = self.slots.get_mut(index as usize)?;
        if slot.generation != generation {
            return Some(None);
        }
        let Some((_, reply)) = slot.waiting.take() else { return Some(None) };
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        Some(Some(reply))
    }

    fn expire(&mut self, now: Instant) {
        if self.earliest.is_none_or(|earliest| earliest > now) {
            return;
        }
        self.earliest = None;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            match &slot.waiting {
                Some((deadline, _)) if *deadline <= now => {
                    slot.generation = slot.generation.wrapping_add(1);
                    self.free.push(index as u32);
                    if let Some((_, reply)) = slot.waiting.take() {
                        let _ = reply.send(Err(TransportError::TimedOut));
                    }
                }
                Some((deadline, _)) => {
                    self.earliest = Some(self.earliest.map_or(*deadline, |earliest| earliest.min(*deadline)));
                }
                None => {}
            }
        }
    }

    fn fail(&mut self, why: &str) {
        for slot in &mut self.slots {
            if let Some((_, reply)) = slot.waiting.take() {
                let _ = reply.send(Err(TransportError::Lost(why.to_owned())));
            }
        }
    }
}

impl Drop for InFlight {
    /// Also when the task is dropped half-way: what was sent must not be answered otherwise.
    fn drop(&mut self) {
        self.fail("the connection was closed here");
    }
}

/// Moves requests and replies over one stream until the connection fails; returns why. Requests in
/// flight are then lost, those still queued stay so.
pub(crate) async fn drive(
    queue: &RequestQueue,
    send: SendStream,
    mut receive: RecvStream,
    max_reply: usize,
) -> String {
    let mut send = ResetWhenDropped::new(send);
    let mut driver = Driver {
        queue,
        in_flight: InFlight { slots: Vec::new(), free: Vec::new(), earliest: None },
        reader: FrameReader::new(max_reply),
        writer: FrameWriter::default(),
        batch: Vec::new(),
        next_look: Instant::now(),
    };
    let mut timer = pin!(tokio::time::sleep(LONGEST_DEADLINE));
    let mut timer_at = None;
    let mut turn = Turn::default();
    let why = poll_fn(|context| {
        std::task::ready!(turn.poll_last(context));
        for _ in 0..ROUNDS {
            match driver.round(context, send.stream(), &mut receive) {
                Ok(true) => {}
                Ok(false) => {
                    driver.deadlines(context, timer.as_mut(), &mut timer_at);
                    return Poll::Pending;
                }
                Err(why) => return Poll::Ready(why),
            }
        }
        driver.deadlines(context, timer.as_mut(), &mut timer_at);
        context.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
    driver.in_flight.fail(&why);
    why
}

/// Lets the tasks that can run now run first, whenever its own is woken.
///
/// What wakes a stream's task (a sync that is through, a packet with messages for many groups) wakes many
/// others with it, and each of them has something to send. The task that was woken last would run at
/// once and send the first one's message alone; behind the others it sends all of them in one
/// packet, which is read, decrypted and acknowledged once. When nothing else can run this costs one
/// poll more.
#[derive(Default)]
pub(crate) struct Turn {
    has_waited: bool,
}

impl Turn {
    /// Pending at the first call after each ready one; the task is polled again after those that wait now.
    pub(crate) fn poll_last(&mut self, context: &Context<'_>) -> Poll<()> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(())
    }
}

struct Driver<'a> {
    queue: &'a RequestQueue,
    in_flight: InFlight,
    reader: FrameReader,
    writer: FrameWriter,
    batch: Vec<Queued>,
    /// Deadlines are not looked at before.
    next_look: Instant,
}

impl Driver<'_> {
    /// Does what can be done now; whether there may be more.
    fn round(
        &mut self,
        context: &mut Context<'_>,
        send: &mut SendStream,
        receive: &mut RecvStream,
    ) -> Result<bool, String> {
        let read = self.read(context, receive)?;
        let wrote = self.write(context, send)?;
        Ok(read || wrote)
    }

    fn read(&mut self, context: &mut Context<'_>, receive: &mut RecvStream) -> Result<bool, String> {
        let Some(some) = poll_pieces(context, receive, &mut self.reader)? else { return Ok(false) };
        if !some {
            return Err("the other side ended the stream".to_owned());
        }
        while let Some((header, body)) = self.reader.next_frame().map_err(wire_error)? {
            let result = match header.kind {
                FrameKind::Reply => Ok(body),
                FrameKind::Failed => {
                    Err(TransportError::ReplyTooLarge(String::from_utf8_lossy(&body).into_owned()))
                }
                _ => return Err("the other side sent a frame that is no reply".to_owned()),
            };
            match self.in_flight.remove(header.id) {
                Some(Some(reply)) => drop(reply.send(result)),
                Some(None) => {}
                None => return Err("the other side answered what was never asked".to_owned()),
            }
        }
        Ok(true)
    }

    fn write(&mut self, context: &mut Context<'_>, send: &mut SendStream) -> Result<bool, String> {
        if self.writer.pending() == 0 {
            self.queue.take(&mut self.batch, context.waker());
            for Queued { body, deadline, reply } in self.batch.drain(..) {
                let id = self.in_flight.insert(deadline, reply);
                self.writer.push(FrameKind::Request, id, body);
            }
        }
        poll_write(context, send, &mut self.writer)
    }

    /// Answers what is overdue and sets the timer to what will be next.
    fn deadlines(
        &mut self,
        context: &mut Context<'_>,
        mut timer: Pin<&mut Sleep>,
        timer_at: &mut Option<Instant>,
    ) {
        loop {
            let now = Instant::now();
            let due = |bound: Option<Instant>| bound.is_some_and(|bound| bound <= now);
            let mut queued = self.queue.state.lock().earliest;
            if now >= self.next_look && (due(self.in_flight.earliest) || due(queued)) {
                self.in_flight.expire(now);
                queued = self.queue.expire(now);
                self.next_look = now + DEADLINE_GRAIN;
            }
            // The bounds may be earlier than any deadline, never later.
            let blocked = (self.writer.pending() > 0).then(|| now + BLOCKED_GRAIN);
            let next = [self.in_flight.earliest, queued, blocked].into_iter().flatten().min();
            let Some(next) = next.map(|next| next.max(self.next_look)) else { return };
            // A timer that rings early costs less than one that is set anew for every request.
            if timer_at.is_none_or(|at| at <= now || next + DEADLINE_GRAIN < at) {
                timer.as_mut().reset(next.into());
                *timer_at = Some(next);
            }
            if timer.as_mut().poll(context).is_pending() {
                return;
            }
            *timer_at = None;
        }
    }
}

/// A stream that is reset unless it was finished: what is not sent yet is thrown away.
///
/// quinn 0.11 sends no CONNECTION_CLOSE while congestion control holds back other data (issue 2785
/// there, fixed after 0.11.19), and the other side is left to its idle timeout. So streams with
/// much to send must be silent when an endpoint closes.
pub(crate) struct ResetWhenDropped {
    send: SendStream,
    finished: bool,
}

impl ResetWhenDropped {
    pub(crate) fn new(send: SendStream) -> ResetWhenDropped {
        ResetWhenDropped { send, finished: false }
    }

    pub(crate) fn stream(&mut self) -> &mut SendStream {
        &mut self.send
    }

    pub(crate) fn finish(&mut self) {
        self.finished = true;
        // Fails only if nobody is there to see it.
        let _ = self.send.finish();
    }
}

impl Drop for ResetWhenDropped {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.send.reset(GIVEN_UP.into());
        }
    }
}

fn wire_error(error: WireError) -> String {
    format!("the other side breaks the protocol: {error}")
}

/// Reads what is there into `reader`: `None` if nothing is, `Some(false)` at the end of the stream.
pub(crate) fn poll_pieces(
    context: &mut Context<'_>,
    receive: &mut RecvStream,
    reader: &mut FrameReader,
) -> Result<Option<bool>, String> {
    let mut pieces = [const { Bytes::new() }; READ_PIECES];
    // Cancel-safe: dropped when pending, the stream still wakes this task.
    let read = pin!(receive.read_chunks(&mut pieces)).poll(context);
    match read {
        Poll::Pending => Ok(None),
        Poll::Ready(Ok(None)) => Ok(Some(false)),
        Poll::Ready(Ok(Some(count))) => {
            for piece in &mut pieces[..count] {
                reader.push(std::mem::take(piece));
            }
            Ok(Some(true))
        }
        Poll::Ready(Err(quinn::ReadError::ConnectionLost(error))) => Err(explain(&error)),
        Poll::Ready(Err(quinn::ReadError::Reset(_))) => Err("the other side gave it up".to_owned()),
        Poll::Ready(Err(error)) => Err(error.to_string()),
    }
}

/// Writes what `writer` holds as far as the other side takes it; whether anything moved.
pub(crate) fn poll_write(
    context: &mut Context<'_>,
    send: &mut SendStream,
    writer: &mut FrameWriter,
) -> Result<bool, String> {
    let mut moved = false;
    while writer.pending() > 0 {
        // Cancel-safe, as above.
        let written = match pin!(send.write_chunks(writer.chunks())).poll(context) {
            Poll::Pending => return Ok(moved),
            Poll::Ready(Ok(written)) => written,
            Poll::Ready(Err(quinn::WriteError::ConnectionLost(error))) => return Err(explain(&error)),
            Poll::Ready(Err(error)) => return Err(error.to_string()),
        };
        writer.wrote(written.chunks, written.bytes);
        moved = true;
    }
    Ok(moved)
}
