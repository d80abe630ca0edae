//! One connection: reads requests, has them carried out in order, and answers in order.
//!
//! ```text
//! bytes ─► requests that have all come ─► steps ─► data that follow each other: together
//!                                               ─► all else: one after the other
//! ```
//!
//! Nothing is read while requests are carried out. While replies are written, what comes is read up to a bound: many clients
//! send all of a pipeline before they read the first reply, and would wait for this side while it waits for them. So
//! what a connection holds is bounded: by what is read ahead, and by the replies to what was carried out at once. A client that
//! does not read its replies is not read from beyond that, and closed when that has lasted: see [`sending`].

mod sending;

use std::mem;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use dogsled_net::resp::{ClientStream, Protocol, Request, RequestLimits, RequestReader, Value};
use futures_util::FutureExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::database::{Data, Watched, failed};
use super::held::Share;
use super::link::Link;
use super::multi::Queue;
use super::pubsub::{Listen, Message, Subscriptions};
use super::server::Shared;
use super::table::{Multi, Planned, Step, find, unknown, wrong_arity};
use super::{describe, now_ms, slots};
use crate::IVec;

pub(super) use self::sending::held;

/// How many requests, and about how many bytes of them, are carried out together: few at first, more while the
/// replies are small, and fewer when they are large, as nobody knows that before.
const BATCH: usize = 256;
const FIRST_BATCH: usize = 16;
/// Replies that are larger than this together are large.
const LARGE: usize = 4 << 20;
const BATCH_BYTES: usize = 4 << 20;
/// How much is read at once.
const READ: usize = 16 << 10;
/// Replies are sent when they are so many bytes, or nothing more is there to be answered.
const SEND: usize = 64 << 10;
/// How long it may take to end.
const FAREWELL: Duration = Duration::from_secs(1);
/// How much is read of a client that waits for a lock.
const MOST_READ_AHEAD: usize = 64 << 10;
/// A buffer that was larger is given back.
const KEPT: usize = 1 << 20;
/// The most keys that are watched.
const MOST_WATCHED: usize = 16 << 10;

struct Connection {
    link: Link,
    reader: RequestReader,
    queue: Option<Queue>,
    watched: Vec<Watched>,
    /// `None`: none yet.
    subscriptions: Option<Subscriptions>,
    /// Replies in the order of the requests; `None`: is being found out.
    replies: Vec<(Protocol, Option<Value>)>,
    /// About the bytes of those that are there.
    waiting: usize,
    /// What is to be carried out together, and where its replies go.
    data: Vec<(usize, Data)>,
    out: Vec<u8>,
    /// How many bytes were sent.
    sent: usize,
    /// How many requests are carried out together next.
    batch: usize,
    /// Of what all connections hold.
    share: Share,
    /// When it was made.
    since: Instant,
    /// When the command began to come of which a part is there.
    partial_since: Option<Instant>,
    /// Since when nothing has come of one that has sent much of which nothing could be carried out yet.
    silent_since: Option<Instant>,
    /// Something has come while replies were written.
    has_read_ahead: bool,
    /// Nothing more is answered.
    is_broken_off: bool,
}

/// Serves a connection until it ends.
pub(super) async fn serve(stream: TcpStream, peer: SocketAddr, shared: Arc<Shared>, id: u64) {
    shared.connected.fetch_add(1, Ordering::Relaxed);
    let local = stream.local_addr().map_or_else(|_| String::new(), |local| local.to_string());
    let link = Link::new(Arc::clone(&shared), id, peer.to_string(), local);
    let mut connection = Connection {
        reader: RequestReader::new(limits(&link)),
        link,
        queue: None,
        watched: Vec::new(),
        subscriptions: None,
        replies: Vec::new(),
        waiting: 0,
        data: Vec::new(),
        out: Vec::new(),
        sent: 0,
        batch: FIRST_BATCH,
        share: shared.held.share(id),
        since: Instant::now(),
        partial_since: None,
        silent_since: None,
        has_read_ahead: false,
        is_broken_off: false,
    };
    // Small replies are not to wait for more.
    let _ = stream.set_nodelay(true);
    let patience = shared.request_time;
    let stream = match &shared.tls {
        None => ClientStream::Plain(stream),
        Some(tls) => match tokio::time::timeout(patience, tls.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::info!(%peer, %error, "a Redis client does not speak TLS, or not with this certificate");
                return;
            }
            Err(_) => return,
        },
    };
    // That a client is gone is nothing to be told.
    let _ = connection.run(stream).await;
}

/// Says that nothing more comes, which within TLS takes a client that reads.
async fn end(mut stream: ClientStream) -> std::io::Result<()> {
    tokio::time::timeout(FAREWELL, stream.shutdown()).await.unwrap_or(Ok(()))
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.link.server.connected.fetch_sub(1, Ordering::Relaxed);
    }
}

fn limits(link: &Link) -> RequestLimits {
    if link.is_authenticated { link.server.limits } else { RequestLimits::unauthenticated() }
}

/// Whether this is of a request for HTTP. Any page that somebody's browser shows can have such sent to this port, with
/// commands in their body.
fn is_http(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"POST") || name.eq_ignore_ascii_case(b"Host:")
}

/// What a connection waits for.
enum Come {
    /// So many bytes; 0: there will be no more.
    Read(usize),
    /// Something that it is to be told; `None`: it is too slow.
    Message(Option<Message>),
    /// Nothing, for too long.
    Late,
    /// That it has to leave: it holds most.
    Leave,
}

/// What the connection is to be told next; `None`: it is too slow.
async fn next_message(subscriptions: &mut Option<Subscriptions>) -> Option<Message> {
    match subscriptions {
        Some(subscriptions) => subscriptions.next().await,
        None => std::future::pending().await,
    }
}

/// Returns when the client has gone. What it sends meanwhile is read, as that it goes comes behind it; not beyond a
/// bound, from where on nothing is noticed.
async fn hung_up(stream: &mut ClientStream, sent: &mut BytesMut) {
    while sent.len() < MOST_READ_AHEAD {
        if let Ok(0) | Err(_) = stream.read(sent, READ).await {
            return;
        }
    }
    std::future::pending().await
}

impl Connection {
    async fn run(&mut self, mut stream: ClientStream) -> std::io::Result<()> {
        // Made once: each would have to be entered in the list of those who wait, and struck off it, for each request.
        let mut closing = self.link.server.closing.clone();
        let mut is_closing = std::pin::pin!(closing.wait_for(|closing| *closing));
        loop {
            self.reader.give_back(KEPT);
            let (mut count, mut bytes, mut wrong) = (0, 0, None);
            // A short request may have a long reply at once, as `COMMAND INFO` has.
            while count < self.batch && bytes < BATCH_BYTES && self.waiting <= LARGE && !self.link.is_ending {
                match self.reader.next_request() {
                    Ok(Some(request)) => {
                        bytes += request.iter().map(|argument| argument.len()).sum::<usize>();
                        count += 1;
                        if let Some(step) = self.begin(request) {
                            Box::pin(self.wait_for(step, &mut stream)).await?;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        wrong = Some(error);
                        break;
                    }
                }
            }
            if count > 0 {
                self.link.server.commands.fetch_add(count as u64, Ordering::Relaxed);
                // What has come of the next command began to come now.
                self.partial_since = None;
            }
            let before = self.sent + self.out.len();
            self.finish(&mut stream).await?;
            match self.sent + self.out.len() - before {
                large if large > LARGE => self.batch = (self.batch / 4).max(1),
                small if small < SEND => self.batch = (self.batch * 2).min(BATCH),
                _ => {}
            }
            if let Some(error) = wrong.filter(|_| !self.is_broken_off) {
                Value::error(error.to_string()).encode(self.link.protocol, &mut self.out);
            }
            let is_ending = self.link.is_ending || wrong.is_some();
            if is_ending || count == 0 || self.out.len() >= SEND {
                if count == 0 && !self.out.is_empty() && self.is_one_of_many() {
                    // After those that have something to do, too: who serves many clients from one thread, as a proxy or
                    // a benchmark, is then woken once for all of their replies, not for each of them.
                    tokio::task::yield_now().await;
                }
                self.send(&mut stream).await?;
            }
            if is_ending {
                return end(stream).await;
            }
            // What was read while replies were written may be all that will ever come.
            if count > 0 || mem::take(&mut self.has_read_ahead) {
                continue;
            }
            self.recount();
            let until = self.waits_until();
            let late = async {
                match until {
                    Some(until) => tokio::time::sleep_until(until).await,
                    None => std::future::pending().await,
                }
            };
            let Connection { reader, subscriptions, link, share, .. } = self;
            // What was on its way already when it was sent elsewhere.
            let on_its_way = match link.redirected.is_being_sent() {
                true => stream.read(reader.buffer(), READ).now_or_never(),
                false => None,
            };
            // Those that say nothing, which may be thousands, are kept no buffer.
            let come = match on_its_way {
                Some(read) => Come::Read(read?),
                None => {
                    link.redirected.has_been_told();
                    tokio::select! {
                        read = stream.read(reader.buffer(), READ) => Come::Read(read?),
                        message = next_message(subscriptions) => Come::Message(message),
                        _ = &mut is_closing => Come::Read(0),
                        () = share.has_to_leave() => Come::Leave,
                        () = late => Come::Late,
                    }
                }
            };
            let read = match come {
                Come::Read(read) => read,
                Come::Message(message) => {
                    self.tell(message.ok_or_else(|| self.too_slow())?);
                    self.send(&mut stream).await?;
                    continue;
                }
                Come::Leave => return self.leave(stream).await,
                Come::Late => {
                    let slow = "ERR the command, or the password, took too long to come";
                    Value::error(slow).encode(self.link.protocol, &mut self.out);
                    self.send(&mut stream).await?;
                    return end(stream).await;
                }
            };
            if read == 0 {
                return Ok(());
            }
            self.silent_since = None;
            if !self.charge() {
                return self.leave(stream).await;
            }
        }
    }

    fn is_one_of_many(&self) -> bool {
        self.link.server.connected.load(Ordering::Relaxed) > 1
    }

    /// Whether nothing is understood but what concerns subscriptions: what is told could not be told from replies.
    fn only_listens(&self) -> bool {
        let is_subscribed =
            self.subscriptions.as_ref().is_some_and(|subscriptions| !subscriptions.is_empty());
        is_subscribed && self.link.protocol == Protocol::Resp2
    }

    async fn listen(&mut self, asked: Listen) {
        let (server, id) = (Arc::clone(&self.link.server), self.link.id);
        let database = &server.database;
        let subscriptions =
            self.subscriptions.get_or_insert_with(|| Subscriptions::new(Arc::clone(&database.hub), id));
        let changed = subscriptions.change(&database.client, asked).await;
        self.link.subscribed = subscriptions.counts();
        match changed {
            Ok(replies) => replies.into_iter().for_each(|reply| self.answer(reply)),
            Err(error) => self.answer(failed(&error)),
        }
    }

    fn answer(&mut self, value: Value) {
        self.waiting += held(&value);
        self.replies.push((self.link.protocol, Some(value)));
    }

    /// Puts the reply to what was put off where it belongs.
    fn answer_at(&mut self, place: usize, value: Value) {
        self.waiting += held(&value);
        self.replies[place].1 = Some(value);
    }

    /// Takes a request. What it does may be done later, together with those after it; or it is a step that has to be
    /// waited for. (This is no future, and that one is boxed, as it would be copied for each request, and is large.)
    fn begin(&mut self, request: Request) -> Option<Step> {
        let Some(command) = find(&request[0]) else {
            if is_http(&request[0]) {
                tracing::warn!(peer = %self.link.peer, "HTTP instead of Redis's protocol; the connection is closed");
                self.link.is_ending = true;
                return None;
            }
            self.spoil();
            self.answer(unknown(&request));
            return None;
        };
        if let Err(refused) = command.check(&request) {
            self.refuse(command.name, refused);
            return None;
        }
        if !self.link.is_authenticated && !command.is_free() {
            self.refuse(command.name, Value::error("NOAUTH Authentication required."));
            return None;
        }
        if self.only_listens() {
            match command.name {
                "subscribe" | "psubscribe" | "unsubscribe" | "punsubscribe" | "quit" | "reset" => {}
                "ping" if request.len() <= 2 => {
                    let text = request.get(1).cloned().unwrap_or_default();
                    self.answer(Value::Array(vec![Value::text("pong"), Value::Bulk(text)]));
                    return None;
                }
                "ping" => {
                    self.answer(wrong_arity("ping"));
                    return None;
                }
                _ => {
                    let name = command.full_name(&request);
                    let only = "only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in this context";
                    self.refuse(command.name, Value::error(format!("ERR Can't execute '{name}': {only}")));
                    return None;
                }
            }
        }
        // What is queued stays for long: it must not keep alive all that came with it.
        let request = match self.queue.is_some() {
            true => request.iter().map(|argument| Bytes::copy_from_slice(argument)).collect(),
            false => request,
        };
        let database = self.queue.as_ref().map_or(self.link.database, |queue| queue.database);
        let cursors = &self.link.server.database.cursors;
        let planned = command.plan(&request, database, now_ms(), cursors);
        let is_queued = self.queue.is_some()
            && !matches!(command.name, "exec" | "discard" | "multi" | "watch" | "quit" | "reset");
        if is_queued {
            let server = &self.link.server;
            if let Ok(Step::Data(data)) = &planned
                && let Some(moved) =
                    server.topology.moved_before(&self.link.redirected, &server.database, data)
            {
                self.spoil();
                self.answer(moved);
                return None;
            }
            let selects = command.name == "select";
            self.enqueue(planned, &request, selects);
            return None;
        }
        match planned {
            Err(refused) => self.answer(refused),
            Ok(Step::Data(mut data)) => {
                let server = &self.link.server;
                let is_here = self.link.reads_here && data.read_here();
                if !is_here
                    && let Some(moved) =
                        server.topology.moved(&mut self.link.redirected, &server.database, &data)
                {
                    self.answer(moved);
                    return None;
                }
                self.data.push((self.replies.len(), data));
                self.replies.push((self.link.protocol, None));
            }
            Ok(Step::Link(link, arguments)) => {
                let value = link(&mut self.link, &arguments);
                self.reader.set_limits(limits(&self.link));
                if mem::take(&mut self.link.is_reset) {
                    // The password may have to be said again.
                    self.since = Instant::now();
                    self.queue = None;
                    self.watched.clear();
                    self.subscriptions = None;
                }
                self.answer(value);
            }
            Ok(step) => return Some(step),
        }
        None
    }

    /// Carries out a step that is not done together with others.
    async fn wait_for(&mut self, step: Step, stream: &mut ClientStream) -> std::io::Result<()> {
        match step {
            Step::Data(_) | Step::Link(..) => unreachable!("done when it was taken"),
            Step::Whole(whole) => {
                self.carry_out(stream).await?;
                let value = self.link.server.database.whole(self.link.database.0, &whole).await;
                self.answer(value);
            }
            Step::Info(arguments) => {
                self.carry_out(stream).await?;
                let value = describe::info(&self.link, &arguments).await;
                self.answer(value);
            }
            Step::Script(scripted) => {
                self.carry_out(stream).await?;
                let value = self.link.server.database.script(&scripted).await;
                self.answer(value);
            }
            Step::Slots(arguments) => {
                self.carry_out(stream).await?;
                let value = slots::cluster(&mut self.link, &arguments).await;
                self.answer(value);
            }
            Step::Multi(multi, arguments) => {
                self.carry_out(stream).await?;
                let value = self.multi(multi, &arguments).await;
                self.answer(value);
            }
            Step::Listen(listen) => {
                self.carry_out(stream).await?;
                self.listen(listen).await;
            }
            Step::Lock(locking) => {
                // What was asked before is not to wait for others.
                self.finish(stream).await?;
                if locking.waits() {
                    self.send(stream).await?;
                }
                let server = Arc::clone(&self.link.server);
                let mut closing = server.closing.clone();
                // What does not wait is done, as all else is that has come, whoever is there.
                let waits = locking.waits();
                let hung_up = async {
                    match waits {
                        true => hung_up(stream, self.reader.buffer()).await,
                        false => std::future::pending().await,
                    }
                };
                let locked = tokio::select! {
                    value = server.database.lock(locking, &self.link.peer) => Some(value),
                    () = hung_up => None,
                    () = self.share.has_to_leave() => None,
                    _ = closing.wait_for(|closing| *closing) => None,
                };
                match locked {
                    Some(value) => self.answer(value),
                    None => self.link.is_ending = true,
                }
            }
        }
        // What is carried out one after the other is not to be collected until all of it is.
        if self.waiting > LARGE {
            self.finish(stream).await?;
            self.send(stream).await?;
        }
        Ok(())
    }

    /// Says why a command is not even queued. An `EXEC` that is not carried out ends what it was to carry out.
    fn refuse(&mut self, name: &str, why: Value) {
        let Value::Error(text) = &why else { unreachable!("an error") };
        if name == "exec" {
            let text = text.strip_prefix("ERR ").unwrap_or(text);
            let aborted = Value::error(format!("EXECABORT Transaction discarded because of: {text}"));
            self.queue = None;
            self.watched.clear();
            self.answer(aborted);
        } else {
            self.spoil();
            self.answer(why);
        }
    }

    fn spoil(&mut self) {
        if let Some(queue) = &mut self.queue {
            queue.spoil();
        }
    }

    fn enqueue(&mut self, planned: Planned, request: &[Bytes], selects: bool) {
        let Some(queue) = &mut self.queue else { return };
        let limit = self.link.server.limits.request_bytes;
        match queue.push(planned, request, selects, limit) {
            Ok(()) => self.answer(Value::Simple("QUEUED".into())),
            Err(refused) => self.answer(refused),
        }
    }

    /// Has done what was put off, and sends what the first of it tells if that is much.
    async fn carry_out(&mut self, stream: &mut ClientStream) -> std::io::Result<()> {
        if self.data.is_empty() {
            return Ok(());
        }
        if let Some(values) = self.link.server.database.read_at_once(&self.data) {
            let mut data = mem::take(&mut self.data);
            for ((place, _), value) in data.drain(..).zip(values) {
                self.answer_at(place, value);
            }
            // With its room.
            self.data = data;
            return Ok(());
        }
        Box::pin(self.carry_out_later(stream)).await
    }

    async fn carry_out_later(&mut self, stream: &mut ClientStream) -> std::io::Result<()> {
        let (mut places, mut data): (Vec<usize>, Vec<Data>) = self.data.drain(..).unzip();
        loop {
            let (values, left) = self.link.server.database.run(data).await;
            for (place, value) in places.drain(..values.len()).zip(values) {
                self.answer_at(place, value);
            }
            if left.is_empty() {
                return Ok(());
            }
            data = left;
            let first = places[0];
            places.iter_mut().for_each(|place| *place -= first);
            self.encode(first, stream).await?;
            self.send(stream).await?;
        }
    }

    /// Has done what was put off, and writes all replies.
    async fn finish(&mut self, stream: &mut ClientStream) -> std::io::Result<()> {
        self.carry_out(stream).await?;
        self.encode(self.replies.len(), stream).await
    }

    async fn multi(&mut self, multi: Multi, arguments: &[Bytes]) -> Value {
        match multi {
            Multi::Begin if self.queue.is_some() => Value::error("ERR MULTI calls can not be nested"),
            Multi::Begin => {
                let database = self.link.database;
                self.queue = Some(Queue::new(database));
                Value::OK
            }
            Multi::Discard => match self.queue.take() {
                Some(_) => {
                    self.watched.clear();
                    Value::OK
                }
                None => Value::error("ERR DISCARD without MULTI"),
            },
            Multi::Watch if self.queue.is_some() => Value::error("ERR WATCH inside MULTI is not allowed"),
            Multi::Watch => self.watch(&arguments[1..]).await,
            Multi::Unwatch => {
                self.watched.clear();
                Value::OK
            }
            Multi::Execute => match self.queue.take() {
                None => Value::error("ERR EXEC without MULTI"),
                Some(queue) => {
                    let watched = mem::take(&mut self.watched);
                    queue.execute(&mut self.link, watched).await
                }
            },
        }
    }

    async fn watch(&mut self, keys: &[Bytes]) -> Value {
        if self.watched.len() + keys.len() > MOST_WATCHED {
            return Value::error(format!("ERR more than {MOST_WATCHED} keys are watched"));
        }
        for key in keys {
            let (database, key) = (self.link.database, IVec::from(&key[..]));
            let is_known = |known: &Watched| known.database == database && known.key == key;
            // As it was first seen.
            if self.watched.iter().any(is_known) {
                continue;
            }
            match self.link.server.database.watch(database, key).await {
                Ok(watched) => self.watched.push(watched),
                Err(error) => return failed(&error),
            }
        }
        Value::OK
    }
}
