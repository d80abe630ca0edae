//! [`Holder`]: a client that takes locks of all kinds, waits in line for them, dawdles, and writes under them. What
//! holders are told is judged by [`Held`](crate::locks::Held).
//!
//! They take plain locks, both sides of read/write locks, and permits of semaphores; for a lease that they renew, or
//! for as long as a session lives; if it is free, or after waiting for it. They wait as the real client does: a
//! place in line is a key that vanishes, so they follow that key, look at their ticket when it has gone
//! or when the stream has begun or broken off, and say now and then that they still wait.
//!
//! They are as bad as holders are: they fall asleep for longer than their lease, in the middle of what they do,
//! and go on as if nothing had happened; they leave the line, or forget that they stand in it; they walk away without
//! giving anything back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::ClientRequest;
use dogsled_replication::ring::group_of;
use dogsled_replication::watch::WatchEvent;
use dogsled_storage::lock::queue::waiter_key;
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply, LockRequest, READ_WRITE};
use dogsled_storage::{
    Answer, Command, Fence, GroupRead, GroupReadReply, GroupReply, IVec, LOCK_QUEUES_TREE_NAME, Operation,
    Refusal, Reply, SessionId, TreeId,
};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::caller::Caller;
use crate::locks::{End, Grant};
use crate::owners::LONGEST;
use crate::random::Random;
use crate::run::PATIENCE;
use crate::trace::event;
use crate::workload::Shared;

/// The tree that holders write to: not the one whose history is judged.
const GUARDED: &str = "guarded";
/// The locks, by their tags, and how many permits each has.
const LOCKS: [(&str, u32); 4] = [("g0", 1), ("g1", 1), ("g2", READ_WRITE), ("g3", 3)];
/// Which of them there is work on; most lives have few, so that there is somebody to wait for.
const USED: [&[usize]; 6] = [&[0], &[0, 1], &[0, 2], &[2], &[3], &[0, 2, 3]];
/// The log's time passes no faster than time by more than a part of this.
const PACE: u32 = 32;

/// See the [module](self).
pub struct Holder {
    number: u64,
    caller: Caller,
    used: &'static [usize],
    written: u64,
}

/// What a holder wants.
#[derive(Clone, Copy)]
struct Want {
    lock: &'static str,
    group: u32,
    request: LockRequest,
    /// How long it counts as waiting without a word; 0: it does not wait.
    wait_ms: u64,
    lease: Duration,
}

/// A session that locks are to live with.
#[derive(Clone, Copy)]
struct Session {
    id: SessionId,
    /// Before this moment it has not ended by itself.
    until: Instant,
}

/// What a holder has.
struct Hold {
    want: Want,
    token: FencingToken,
    session: Option<Session>,
    /// Whether a renewal was asked for and not heard of: it may come late.
    is_uncertain: bool,
}

fn at_least(lease: Duration) -> Duration {
    lease - lease / PACE
}

fn name(lock: &str) -> IVec {
    IVec::from(format!("{{{lock}}}"))
}

fn lock_reply(reply: &GroupReply) -> Option<&LockReply> {
    match &reply.result {
        Ok(Answer::Reply(Reply::Lock(reply))) => Some(reply),
        _ => None,
    }
}

/// In the end everything is free: whoever asks for a lock gets it, when the leases of those who have walked away are
/// over, and the delays behind them.
///
/// # Errors
/// What is not, in words.
pub async fn all_are_free(seed: u64, shared: &Arc<Shared>) -> Result<(), String> {
    let mut caller = Caller::new(599, Random::new(seed, 30_000), Arc::clone(shared));
    let (free_by, end) = (Instant::now() + LONGEST * 2, Instant::now() + PATIENCE);
    for (lock, capacity) in LOCKS {
        let group = group_of(&name(lock), shared.partitions);
        let request = LockRequest { permits: capacity, capacity, lease_ms: 1, delay_ms: 0 };
        let acquire =
            LockCommand::Acquire { name: name(lock), owner: IVec::from("the last"), request, wait_ms: 0 };
        loop {
            let operation = Operation::Command(Command::Lock(acquire.clone()));
            let reply = caller.once(group, &[], operation).await;
            match reply.as_ref().and_then(lock_reply) {
                Some(LockReply::Acquired { .. }) => break,
                Some(reply) if Instant::now() > free_by => {
                    return Err(format!(
                        "lock {lock} is not free although nobody holds it any more: {reply:?}"
                    ));
                }
                None if Instant::now() > end => {
                    return Err(format!("nobody says whether lock {lock} is free: {reply:?}"));
                }
                _ => sleep(Duration::from_millis(50)).await,
            }
        }
    }
    event!(shared.trace, "all locks are free");
    Ok(())
}

impl Holder {
    /// A holder.
    pub fn new(number: u64, seed: u64, shared: Arc<Shared>) -> Holder {
        // In one life all holders work on the same locks.
        let used = *Random::new(seed, 31_000).pick(&USED);
        let random = Random::new(seed, 30_000 + number);
        // Numbers beyond those of clients and watchers.
        Holder { number, caller: Caller::new(500 + number, random, shared), used, written: 0 }
    }

    /// Works until it is told to stop; what it has then it leaves as it is.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.section(&mut stop).await;
            self.caller.dawdle(0, 300).await;
        }
    }

    fn held(&self) -> crate::locks::Held {
        self.caller.shared.held.clone()
    }

    fn wrong(&self, what: String) {
        event!(self.caller.shared.trace, "holder {}: VIOLATION: {what}", self.number);
        self.held().wrong(what);
    }

    async fn submit(&mut self, group: u32, operation: Operation) -> Option<GroupReply> {
        self.caller.once(group, &[GUARDED], operation).await
    }

    async fn lock(&mut self, group: u32, command: LockCommand) -> Option<GroupReply> {
        self.submit(group, Operation::Command(Command::Lock(command))).await
    }

    fn want(&mut self) -> Want {
        let random = &mut self.caller.random;
        let (lock, capacity) = LOCKS[*random.pick(self.used)];
        let permits = match capacity {
            1 => 1,
            READ_WRITE if random.chance(400) => READ_WRITE,
            READ_WRITE => 1,
            _ => random.between(1, 2) as u32,
        };
        let lease_ms = *random.pick(&[300, 1_000, 3_000]);
        let delay_ms = *random.pick(&[0, 0, 700]);
        let waits = random.chance(700);
        let wait_ms = if waits { *random.pick(&[600, 2_000, LONGEST.as_millis() as u64]) } else { 0 };
        let group = group_of(&name(lock), self.caller.shared.partitions);
        let request = LockRequest { permits, capacity, lease_ms, delay_ms };
        Want { lock, group, request, wait_ms, lease: Duration::from_millis(lease_ms) }
    }

    /// Takes a lock if it can, and does some things under it.
    async fn section(&mut self, stop: &mut watch::Receiver<bool>) {
        let want = self.want();
        let mut session = None;
        if self.caller.random.chance(300) {
            session = self.open_session(&want).await;
            if session.is_none() {
                return;
            }
        }
        let Some(mut hold) = self.acquire(&want, session, stop).await else { return };
        event!(self.caller.shared.trace, "holder {} has {} under {}", self.number, want.lock, hold.token);
        self.work(&mut hold, stop).await;
        if !*stop.borrow() && self.caller.random.chance(650) {
            self.give_back(&hold).await;
        }
    }

    async fn open_session(&mut self, want: &Want) -> Option<Session> {
        let id = SessionId((u128::from(self.caller.number) << 64) | u128::from(self.caller.random.number()));
        let asked = Instant::now();
        let open = Operation::OpenSession { session: id, lease_ms: want.request.lease_ms };
        match self.submit(want.group, open).await?.result {
            Ok(Answer::Session { .. }) => Some(Session { id, until: asked + at_least(want.lease) }),
            other => {
                self.wrong(format!("who opened a session was answered by {other:?}"));
                None
            }
        }
    }

    async fn acquire(
        &mut self,
        want: &Want,
        mut session: Option<Session>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Hold> {
        let Want { lock, group, request, wait_ms, .. } = *want;
        let (name, owner) = (name(lock), IVec::from(format!("holder {}", self.number)));
        let command = match session {
            Some(Session { id, .. }) => {
                LockCommand::AcquireOwned { name, owner, request, session: id, waits: wait_ms > 0 }
            }
            None if wait_ms == 0 && request.capacity == 1 && request.delay_ms == 0 => {
                LockCommand::TryAcquire { name, owner, lease_ms: request.lease_ms }
            }
            None => LockCommand::Acquire { name, owner, request, wait_ms },
        };
        let (asked, starts) = (Instant::now(), self.caller.shared.starts());
        let reply = self.lock(group, command).await?;
        let (position, time_ms) = (reply.position, reply.time_ms);
        let (waited, begun, token, expires_ms) = match lock_reply(&reply) {
            Some(LockReply::Acquired { token, expires_ms }) => (false, asked, *token, *expires_ms),
            Some(LockReply::Held { token, expires_ms, .. }) => {
                self.held().count("refused, as somebody has it");
                self.held().refused(lock, time_ms, *token, *expires_ms);
                return None;
            }
            Some(LockReply::Waiting { ticket, .. }) if wait_ms > 0 => {
                let ticket = *ticket;
                if ticket != position {
                    self.wrong(format!("lock {lock}: who came at {position} has ticket {ticket}"));
                }
                self.held().count("waited");
                let (begun, token, expires_ms) = self.wait(want, ticket, asked, &mut session, stop).await?;
                self.held().count("granted after waiting");
                (true, begun, token, expires_ms)
            }
            // The session is over.
            None if matches!(reply.result, Err(Refusal::Invalid(_)))
                && session.is_some_and(|session| Instant::now() >= session.until) =>
            {
                return None;
            }
            _ => {
                self.wrong(format!("lock {lock}: who asked for it was answered by {:?}", reply.result));
                return None;
            }
        };
        self.held().count(if session.is_some() { "grants of sessions" } else { "grants" });
        let granted_ms = match session {
            _ if !waited => Some(time_ms),
            None => Some(expires_ms - request.lease_ms),
            Some(_) => None,
        };
        let grant = Grant {
            token: token.0,
            holder: self.number,
            // That of a ticket is its number.
            arrival: position,
            permits: request.permits,
            capacity: request.capacity,
            delay_ms: request.delay_ms,
            of_session: session.is_some(),
            heard: Instant::now(),
            until: session.map_or(begun + at_least(want.lease), |session| session.until),
            starts: (starts, self.caller.shared.starts()),
            granted_ms,
            ends_ms: session.is_none().then_some(expires_ms),
            held: if waited { (0, 0) } else { (position, time_ms) },
            lost: None,
            released: None,
            end: End::Unclean,
        };
        self.held().granted(lock, grant);
        Some(Hold { want: *want, token, session, is_uncertain: false })
    }

    /// Waits in line: since when it has the lock at most, the token, and when the lease ends by the log's time.
    async fn wait(
        &mut self,
        want: &Want,
        ticket: u64,
        asked: Instant,
        session: &mut Option<Session>,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<(Instant, FencingToken, u64)> {
        let patience = Instant::now() + Duration::from_millis(self.caller.random.between(300, 8_000));
        let (wait, starts) = (Duration::from_millis(want.wait_ms), self.caller.shared.starts());
        // When it last said that it waits, and when it was last told that it does.
        let (mut said, mut told) = (asked, asked);
        let mut stream = None;
        loop {
            let say_at = said + wait / 3;
            let is_time = !self.follow(want, ticket, &mut stream, say_at.min(patience), stop).await;
            if *stop.borrow() {
                return None;
            }
            if Instant::now() >= patience {
                self.leave(want, ticket).await;
                return None;
            }
            let asked = Instant::now();
            let reply = match session {
                Some(session) if is_time => {
                    said = asked;
                    self.renew_session(want, session).await;
                    continue;
                }
                None if is_time => {
                    // Now and then it does not say so.
                    if self.caller.random.chance(100) {
                        self.caller.dawdle(0, want.wait_ms).await;
                    }
                    let (name, wait_ms) = (name(want.lock), want.wait_ms);
                    let reply = self.lock(want.group, LockCommand::RenewWait { name, ticket, wait_ms }).await;
                    reply.as_ref().and_then(lock_reply).cloned()
                }
                _ => {
                    let read = GroupRead::Ticket { name: name(want.lock), ticket };
                    match self.caller.read(want.group, &read).await {
                        Some((GroupReadReply::Ticket { reply, .. }, _)) => Some(reply),
                        _ => None,
                    }
                }
            };
            match reply {
                None => self.caller.dawdle(10, 100).await,
                Some(LockReply::Acquired { token, expires_ms }) => return Some((told, token, expires_ms)),
                Some(LockReply::Waiting { .. }) => {
                    told = asked;
                    if is_time {
                        said = asked;
                    }
                }
                Some(LockReply::NotHeld) => {
                    let now = Instant::now();
                    let is_right = match session {
                        Some(session) => now >= session.until,
                        // It was passed over, or had the lock and did not hear of it; or nobody knows.
                        None => {
                            now >= said + at_least(wait)
                                || now >= told + at_least(want.lease)
                                || starts != self.caller.shared.starts()
                        }
                    };
                    if !is_right {
                        self.wrong(format!("lock {}: ticket {ticket} is gone from the line", want.lock));
                    }
                    self.held().count("passed over");
                    return None;
                }
                Some(other) => {
                    self.wrong(format!("lock {}: ticket {ticket} was answered by {other:?}", want.lock));
                    return None;
                }
            }
        }
    }

    /// Follows the key that stands for the place in line: whether there is something to look at before `until`.
    async fn follow(
        &mut self,
        want: &Want,
        ticket: u64,
        stream: &mut Option<mpsc::Receiver<Bytes>>,
        until: Instant,
        stop: &mut watch::Receiver<bool>,
    ) -> bool {
        loop {
            if stream.is_none() {
                let node = *self.caller.random.pick(&self.caller.shared.nodes.lock());
                let request = ClientRequest::Watch {
                    group: want.group,
                    tree: Bytes::from_static(LOCK_QUEUES_TREE_NAME),
                    prefix: Bytes::copy_from_slice(&waiter_key(&name(want.lock), ticket)),
                    told: None,
                };
                *stream = self.caller.shared.network.watch(self.caller.number, node, request.encode());
            }
            let Some(messages) = stream else {
                sleep_until((Instant::now() + Duration::from_millis(50)).min(until)).await;
                if Instant::now() >= until || *stop.borrow() {
                    return false;
                }
                continue;
            };
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                _ = stop.wait_for(|stop| *stop) => return false,
                () = sleep_until(until) => return false,
            };
            let events = message.map(WatchEvent::decode);
            let Some(Ok(events)) = events else {
                // It broke off: what came meanwhile is to be looked at.
                *stream = None;
                sleep(Duration::from_millis(20)).await;
                return true;
            };
            let is_nothing =
                |event: &WatchEvent| matches!(event, WatchEvent::Put { .. } | WatchEvent::Progress { .. });
            if !events.iter().all(is_nothing) {
                return true;
            }
        }
    }

    /// Leaves the line, or forgets that it stands there.
    async fn leave(&mut self, want: &Want, ticket: u64) {
        if self.caller.random.chance(300) {
            return;
        }
        self.held().count("left the line");
        let cancel = LockCommand::CancelWait { name: name(want.lock), ticket };
        self.lock(want.group, cancel).await;
    }

    /// Does some things under a lock, whether it is still held or not.
    async fn work(&mut self, hold: &mut Hold, stop: &watch::Receiver<bool>) {
        let lease_ms = hold.want.request.lease_ms;
        for _ in 0..self.caller.random.between(1, 6) {
            self.caller.dawdle(0, lease_ms / 2).await;
            if self.caller.random.chance(150) {
                // For longer than its lease.
                self.caller.dawdle(lease_ms, lease_ms * 2).await;
            }
            if *stop.borrow() {
                return;
            }
            match self.caller.random.below(100) {
                0..60 => self.write(hold).await,
                60..90 => self.renew(hold).await,
                _ => {}
            }
        }
    }

    async fn write(&mut self, hold: &Hold) {
        let (Want { lock, group, .. }, token) = (hold.want, hold.token);
        self.written += 1;
        let value = IVec::from(format!("{token}.{}", self.written));
        let key = IVec::from(format!("{{{lock}}}value"));
        let command = Command::Insert { tree: TreeId(0), key, value };
        let fences = vec![Fence { lock: name(lock), token }];
        let Some(reply) = self.submit(group, Operation::Fenced { fences, command }).await else { return };
        match reply.result {
            Ok(_) => {
                self.held().count("fenced writes");
                self.held().used(lock, token.0, self.number, reply.position, reply.time_ms);
            }
            Err(Refusal::LockNotHeld { .. }) => {
                self.held().count("fenced writes refused");
                self.lost(hold, reply.position);
            }
            Err(other) => self.wrong(format!("a fenced write was refused: {other}")),
        }
    }

    fn lost(&self, hold: &Hold, position: u64) {
        let starts = self.caller.shared.starts();
        self.held().lost(hold.want.lock, hold.token.0, self.number, position, starts);
    }

    async fn renew(&mut self, hold: &mut Hold) {
        let (Want { lock, group, request, lease, .. }, token) = (hold.want, hold.token);
        if let Some(session) = &mut hold.session {
            self.renew_session(&hold.want, session).await;
            let until = session.until;
            self.held().update(lock, token.0, self.number, |grant| grant.until = until);
            return;
        }
        let (name, owner) = (name(lock), IVec::from(format!("holder {}", self.number)));
        let asked = Instant::now();
        let renew = LockCommand::Renew { name, owner, token, lease_ms: request.lease_ms };
        let reply = self.lock(group, renew).await;
        match reply.as_ref().map(|reply| (reply, lock_reply(reply))) {
            None => {
                hold.is_uncertain = true;
                self.held().update(lock, token.0, self.number, |grant| grant.ends_ms = None);
            }
            Some((reply, Some(LockReply::Renewed { expires_ms }))) => {
                self.held().count("renewals");
                self.held().used(lock, token.0, self.number, reply.position, reply.time_ms);
                let ends_ms = (!hold.is_uncertain).then_some(*expires_ms);
                self.held().update(lock, token.0, self.number, |grant| {
                    grant.ends_ms = ends_ms;
                    grant.until = asked + at_least(lease);
                });
            }
            Some((reply, Some(LockReply::NotHeld))) => self.lost(hold, reply.position),
            Some((reply, _)) => {
                self.wrong(format!("lock {lock}: a renewal was answered by {:?}", reply.result));
            }
        }
    }

    async fn renew_session(&mut self, want: &Want, session: &mut Session) {
        let asked = Instant::now();
        let renew = Operation::RenewSession { session: session.id };
        match self.submit(want.group, renew).await.map(|reply| reply.result) {
            Some(Ok(Answer::Session { .. })) => session.until = asked + at_least(want.lease),
            Some(Err(Refusal::SessionUnknown(_))) if Instant::now() < session.until => {
                self.wrong(format!("session {} has ended within its lease", session.id));
            }
            None | Some(Err(Refusal::SessionUnknown(_))) => {}
            Some(other) => self.wrong(format!("a renewal of a session was answered by {other:?}")),
        }
    }

    /// Gives back the lock, or all that its session has.
    async fn give_back(&mut self, hold: &Hold) {
        let (Want { lock, group, .. }, token) = (hold.want, hold.token);
        self.held().update(lock, token.0, self.number, |grant| {
            (grant.released, grant.end) = (Some(Instant::now()), End::Clean);
        });
        if let Some(session) = hold.session.filter(|_| self.caller.random.chance(500)) {
            self.submit(group, Operation::CloseSession { session: session.id }).await;
            return;
        }
        let (name, owner) = (name(lock), IVec::from(format!("holder {}", self.number)));
        let Some(reply) = self.lock(group, LockCommand::Release { name, owner, token }).await else { return };
        match lock_reply(&reply) {
            Some(LockReply::Released) => {
                self.held().count("releases");
                // It was held until the entry before.
                self.held().used(lock, token.0, self.number, reply.position - 1, reply.time_ms);
                self.held().update(lock, token.0, self.number, |grant| grant.lost = Some(reply.position));
            }
            Some(LockReply::NotHeld) => {
                self.held().update(lock, token.0, self.number, |grant| {
                    (grant.released, grant.end) = (None, End::Unclean);
                });
                self.lost(hold, reply.position);
            }
            _ => self.wrong(format!("lock {lock}: a release was answered by {:?}", reply.result)),
        }
    }
}
