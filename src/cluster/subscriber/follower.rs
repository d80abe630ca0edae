//! Following one partition for all who want the same of it.
//!
//! # One stream for many
//!
//! Ten thousand watchers of one setting in a program need its changes to travel once. So followers of the same
//! keys of the same partition become one: the [`Follower`] that comes first is entered in the client's
//! [`Shared`], and those that come later hand their listeners over to it and end.
//!
//! A listener changes hands between two events, with neither gap nor repetition, because all streams of the same
//! keys tell the same events in the same order, and [`Told`] says how far each has come. Whoever comes later begins
//! with a stream of its own, so that *from now on* means what it says. At each message it looks where the shared one
//! is: if that has told no more than itself, its listener goes over, and is not told there what it was told already. If
//! the shared one is ahead, it reads on; at the latest when nothing happens for a second both are at the same place.
//!
//! # A listener that is slow
//!
//! What is told to many is never waited for: the slow one would hold up the others. Whose [queue](super::queue) is full
//! gets a follower of its own, that goes on where it was and waits, and goes over again when the queue is half empty. A
//! listener that is alone is simply waited for.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use dogsled_replication::watch::{Told, WatchEvent, position_in_log};
use dogsled_replication::{ClientReply, ClientRequest, ClusterError};
use futures_util::StreamExt;
use parking_lot::Mutex;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{Notify, oneshot};

use super::queue::{Item, Queue};
use super::{Event, Part};
use crate::IVec;
use crate::cluster::{Client, Error};

/// So many replicas are asked for what is missing before it is given up.
const ASKED: u32 = 2;

/// What is followed: partition, stored name of the tree, prefix.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) struct Followed {
    pub(super) group: u32,
    pub(super) tree: Bytes,
    pub(super) prefix: Bytes,
}

/// The followers of a client that others can join.
#[derive(Default)]
pub(in crate::cluster) struct Shared(Mutex<HashMap<Followed, Arc<Place>>>);

/// Where a follower is, and whom it tells.
#[derive(Default)]
struct Place {
    state: Mutex<State>,
    /// A listener may be gone.
    left: Arc<Notify>,
}

/// Locked after [`Shared`], if that is locked as well.
#[derive(Default)]
struct State {
    /// How far events were passed on; `None`: nothing has begun.
    told: Option<Told>,
    listeners: Vec<Listener>,
    /// Whether it tells what happens, so that others may join.
    is_live: bool,
}

/// How whoever follows for a listener hears that it is gone.
#[derive(Default)]
pub(super) struct Home(Mutex<Arc<Notify>>);

impl Home {
    /// To be called when the listener has closed its queue.
    pub(super) fn leave(&self) {
        self.0.lock().notify_one();
    }

    fn move_to(&self, place: &Place, events: &Queue) {
        *self.0.lock() = Arc::clone(&place.left);
        // If it has left before, it told the other place.
        if events.is_closed() {
            place.left.notify_one();
        }
    }
}

/// Somebody who is told.
pub(super) struct Listener {
    pub(super) events: Queue,
    /// What it was told before, by another follower.
    pub(super) after: Option<Told>,
    /// Told once, when it has begun, and after what.
    pub(super) begun: Option<oneshot::Sender<Told>>,
    /// How many of the listener's partitions nobody tells of.
    pub(super) broken: Arc<AtomicUsize>,
    /// Whether this one is counted there.
    pub(super) has_broken: bool,
    pub(super) home: Arc<Home>,
}

impl Listener {
    fn break_off(&mut self) {
        if !std::mem::replace(&mut self.has_broken, true) {
            self.broken.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// It is told again what happens.
    fn mend(&mut self) {
        if std::mem::take(&mut self.has_broken) {
            self.broken.fetch_sub(1, Ordering::AcqRel);
        }
    }

    fn is_news(&self, told: Told) -> bool {
        self.after.is_none_or(|after| told > after)
    }

    /// Says why it ends, as soon as there is room.
    fn fail(self, error: Error) {
        if let Err(TrySendError::Full(item)) = self.events.try_send(Item::Failed(error)) {
            tokio::spawn(async move { self.events.send(item).await });
        }
    }
}

/// Why no more is read from a stream.
enum End {
    /// It is broken; there may be others.
    Broken,
    /// For good.
    Failed(Error),
    /// Nobody listens any more, or to another follower.
    Unwanted,
}

/// Follows one partition.
pub(super) struct Follower {
    client: Client,
    followed: Followed,
    part: Part,
    place: Arc<Place>,
    /// Whether others can join.
    is_shared: bool,
    /// How many replicas in a row have not kept what comes after what was told.
    compacted: u32,
    /// Whether the stream that is read has told something.
    was_told: bool,
}

impl Follower {
    /// Follows for a listener, who was told so much.
    pub(super) fn spawn(
        client: Client,
        followed: Followed,
        part: Part,
        told: Option<Told>,
        listener: Listener,
    ) {
        tokio::spawn(Follower::new(client, followed, part, told, listener).run());
    }

    fn new(
        client: Client,
        followed: Followed,
        part: Part,
        told: Option<Told>,
        listener: Listener,
    ) -> Follower {
        let place = Arc::new(Place::default());
        listener.home.move_to(&place, &listener.events);
        *place.state.lock() = State { told, listeners: vec![listener], is_live: false };
        Follower { client, followed, part, place, is_shared: false, compacted: 0, was_told: false }
    }

    async fn run(mut self) {
        let client = self.client.clone();
        let mut avoid = None;
        let mut attempt = 0;
        while !client.core().is_closed() {
            let request = ClientRequest::Watch {
                group: self.followed.group,
                tree: self.followed.tree.clone(),
                prefix: self.followed.prefix.clone(),
                told: self.place.state.lock().told.filter(|_| self.compacted < ASKED),
            };
            let opening = client.core().open_watch(&request, self.followed.group, avoid);
            let Some(opened) = self.while_wanted(opening).await else { return };
            if let Ok((node, mut stream)) = opened {
                avoid = Some(node);
                loop {
                    let Some(message) = self.while_wanted(stream.next()).await else { return };
                    let Some(Ok(message)) = message else { break };
                    match self.message(message).await {
                        Ok(()) => attempt = 0,
                        Err(End::Broken) => break,
                        Err(End::Unwanted) => return,
                        Err(End::Failed(error)) => return self.fail(&error),
                    }
                }
            }
            self.break_off();
            let Some(()) = self.while_wanted(client.core().before_next_attempt(attempt)).await else {
                return;
            };
            attempt += 1;
        }
        self.fail(&Error::Closed);
    }

    /// Waits for something as long as anybody listens.
    async fn while_wanted<T>(&mut self, something: impl Future<Output = T>) -> Option<T> {
        let left = Arc::clone(&self.place.left);
        let mut something = pin!(something);
        loop {
            tokio::select! {
                biased;
                () = left.notified() => {
                    if self.is_deserted() {
                        return None;
                    }
                }
                done = &mut something => return Some(done),
            }
        }
    }

    /// Strikes those off the list who are gone; whether nobody is left, and nobody can join.
    fn is_deserted(&mut self) -> bool {
        let mut shared = self.client.core().watches.0.lock();
        let mut state = self.place.state.lock();
        state.listeners.retain(|listener| !listener.events.is_closed());
        let deserted = state.listeners.is_empty();
        if deserted {
            state.is_live = false;
            if std::mem::take(&mut self.is_shared) {
                shared.remove(&self.followed);
            }
        }
        deserted
    }

    /// Ends what others could join, and gives who listened.
    fn leave(&mut self) -> Vec<Listener> {
        let mut shared = self.client.core().watches.0.lock();
        let mut state = self.place.state.lock();
        state.is_live = false;
        if std::mem::take(&mut self.is_shared) {
            shared.remove(&self.followed);
        }
        std::mem::take(&mut state.listeners)
    }

    fn fail(mut self, error: &Error) {
        for listener in self.leave() {
            listener.fail(error.clone());
        }
    }

    /// The stream tells nothing any more.
    fn break_off(&mut self) {
        let mut state = self.place.state.lock();
        state.is_live = false;
        if std::mem::take(&mut self.was_told) {
            state.listeners.iter_mut().for_each(Listener::break_off);
        }
    }

    /// Passes on what a node says.
    async fn message(&mut self, message: Bytes) -> Result<(), End> {
        let events = match WatchEvent::decode(message.clone()) {
            Ok(events) => events,
            Err(malformed) => {
                return Err(match ClientReply::decode(message) {
                    Ok(ClientReply::Error(ClusterError::Denied(what))) => End::Failed(Error::Denied(what)),
                    // What is hashed of the tree's keys was chosen: it is another partition's now.
                    Ok(ClientReply::Error(ClusterError::Conflict(what))) => {
                        self.client.core().ask.notify_one();
                        End::Failed(Error::Conflict(what))
                    }
                    Ok(ClientReply::Error(_)) => End::Broken,
                    _ => End::Failed(Error::Incompatible(malformed.to_string())),
                });
            }
        };
        for event in events {
            self.event(event).await?;
        }
        self.after_message()
    }

    /// Whether to read on.
    fn after_message(&mut self) -> Result<(), End> {
        if self.compacted > 0 {
            return Ok(());
        }
        if !std::mem::replace(&mut self.was_told, true) {
            let mut state = self.place.state.lock();
            state.is_live = true;
            state.listeners.iter_mut().for_each(Listener::mend);
        }
        if self.has_joined() { Err(End::Unwanted) } else { Ok(()) }
    }

    /// Hands the listener over to the follower that others have joined, if it is not ahead of this one; becomes
    /// that follower if there is none. Whether this one is not needed any more.
    fn has_joined(&mut self) -> bool {
        if self.is_shared {
            return false;
        }
        let mut shared = self.client.core().watches.0.lock();
        let mut state = self.place.state.lock();
        let Some(told) = state.told else { return false };
        if state.listeners.iter().any(|listener| !listener.events.is_half_empty()) {
            return false;
        }
        match shared.entry(self.followed.clone()) {
            Entry::Vacant(entry) => {
                entry.insert(Arc::clone(&self.place));
                self.is_shared = true;
                false
            }
            Entry::Occupied(entry) => {
                let place = entry.get();
                let mut there = place.state.lock();
                if !there.is_live || there.told > Some(told) {
                    return false;
                }
                for mut listener in state.listeners.drain(..) {
                    listener.after = Some(told);
                    listener.home.move_to(place, &listener.events);
                    there.listeners.push(listener);
                }
                true
            }
        }
    }

    async fn event(&mut self, event: WatchEvent) -> Result<(), End> {
        let part = self.part;
        let mut told = self.place.state.lock().told;
        let event = match event {
            WatchEvent::Began { position } => {
                let before = *told.get_or_insert(Told::all_to(position));
                let lost = self.compacted >= ASKED;
                if lost {
                    told = Some(Told::all_to(position));
                }
                self.compacted = 0;
                for listener in &mut self.place.state.lock().listeners {
                    if let Some(begun) = listener.begun.take() {
                        // Not waited for any more if the deadline has passed; then this ends as well.
                        let _ = begun.send(before);
                    }
                }
                lost.then_some(Event::Lost { part, position: position_in_log(position) })
            }
            WatchEvent::Compacted { .. } => {
                self.compacted += 1;
                return Ok(());
            }
            WatchEvent::Put { position, key, value } => {
                told.get_or_insert_default().one_of(position);
                Some(Event::Insert { key: IVec::from(&key[..]), value: IVec::from(&value[..]) })
            }
            WatchEvent::Removed { position, key } => {
                told.get_or_insert_default().one_of(position);
                Some(Event::Remove { key: IVec::from(&key[..]) })
            }
            WatchEvent::Cleared { position } => {
                told.get_or_insert_default().one_of(position);
                Some(Event::Clear { part })
            }
            WatchEvent::Lost { position } => {
                told = Some(Told::all_to(position));
                Some(Event::Lost { part, position: position_in_log(position) })
            }
            WatchEvent::Progress { position } => {
                told.get_or_insert_default().all(position);
                None
            }
        };
        self.pass(told.unwrap_or_default(), event).await
    }

    /// Tells everybody.
    async fn pass(&mut self, told: Told, event: Option<Event>) -> Result<(), End> {
        let group = self.followed.group;
        let mut slow = Vec::new();
        let mut alone = None;
        let before = {
            let mut state = self.place.state.lock();
            let before = state.told.replace(told);
            let mut at = 0;
            while let Some(listener) = state.listeners.get(at) {
                let full = match listener.is_news(told) {
                    false => None,
                    true => match listener.events.try_send(Item::Told(group, told, event.clone())) {
                        Ok(()) => None,
                        Err(TrySendError::Full(item)) => Some(item),
                        // It is struck off the list when it says that it has left.
                        Err(TrySendError::Closed(_)) => None,
                    },
                };
                match full {
                    None => at += 1,
                    Some(item) if state.listeners.len() == 1 => {
                        alone = Some((listener.events.clone(), item));
                        at += 1;
                    }
                    Some(_) => slow.push(state.listeners.swap_remove(at)),
                }
            }
            before
        };
        for listener in slow {
            self.follow_alone(listener, before);
        }
        let Some((events, item)) = alone else { return Ok(()) };
        self.do_not_share(&events, before);
        // Whoever has joined meanwhile is told, and the one that is slow is followed for by another.
        if self.place.state.lock().listeners.iter().all(|listener| !listener.events.is_same(&events)) {
            return Ok(());
        }
        match self.while_wanted(events.send(item)).await {
            Some(true) => Ok(()),
            _ => Err(End::Unwanted),
        }
    }

    /// Before one that is slow is waited for: nobody can join any more; or it is not waited for, since
    /// somebody has joined.
    fn do_not_share(&mut self, events: &Queue, before: Option<Told>) {
        let slow = {
            let mut shared = self.client.core().watches.0.lock();
            let mut state = self.place.state.lock();
            if state.listeners.len() > 1 {
                let at = state.listeners.iter().position(|listener| listener.events.is_same(events));
                at.map(|at| state.listeners.swap_remove(at))
            } else {
                if std::mem::take(&mut self.is_shared) {
                    shared.remove(&self.followed);
                }
                None
            }
        };
        if let Some(listener) = slow {
            self.follow_alone(listener, before);
        }
    }

    /// Lets another follower go on for a listener that was told everything up to `before` at least.
    fn follow_alone(&self, mut listener: Listener, before: Option<Told>) {
        let told = before.max(listener.after.take());
        // What comes next will be late.
        listener.break_off();
        Follower::spawn(self.client.clone(), self.followed.clone(), self.part, told, listener);
    }
}

#[cfg(test)]
mod tests {
    use dogsled_replication::ring::TreeHash;

    use super::*;

    /// What a partition tells: entries of one to three events, after some of which the streams are level.
    fn history(random: &mut impl FnMut(u64) -> u64) -> Vec<WatchEvent> {
        let mut events = Vec::new();
        let mut position = 0;
        for _ in 0..30 {
            position += 1 + random(3);
            for number in 0..1 + random(3) {
                let key = format!("{position} {number}").into();
                events.push(WatchEvent::Put { position, key, value: Bytes::new() });
            }
            if random(3) == 0 {
                events.push(WatchEvent::Progress { position });
            }
        }
        events
    }

    fn position(event: &WatchEvent) -> u64 {
        match event {
            WatchEvent::Put { position, .. } | WatchEvent::Progress { position } => *position,
            other => panic!("{other:?}"),
        }
    }

    /// A follower, how far its stream is, and whether it is not needed any more.
    struct Reader {
        follower: Follower,
        next: usize,
        is_over: bool,
    }

    /// Streams of the same keys are read at different speeds, and become one where they can.
    async fn told_once(seed: u64, client: &Client) -> usize {
        let mut state = seed;
        let mut random = move |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % below
        };
        let events = history(&mut random);
        let followed = Followed { group: 1, tree: "t".into(), prefix: "".into() };
        let part = Part { group: 1, partitions: 1, hash: TreeHash::Whole };
        let mut readers = Vec::new();
        let mut listeners = Vec::new();
        for _ in 0..2 + random(4) {
            let (events_to, told) = Queue::new();
            let listener = Listener {
                events: events_to,
                after: None,
                begun: None,
                broken: Arc::default(),
                has_broken: false,
                home: Arc::default(),
            };
            let from = position(&events[random(events.len() as u64) as usize]) * random(2);
            let mut follower = Follower::new(client.clone(), followed.clone(), part, None, listener);
            assert!(follower.event(WatchEvent::Began { position: from }).await.is_ok());
            let next = events.iter().position(|event| position(event) > from).unwrap_or(events.len());
            readers.push(Reader { follower, next, is_over: false });
            listeners.push((from, told));
        }
        while let Some(at) = {
            let open = |reader: &Reader| !reader.is_over && reader.next < events.len();
            let open: Vec<usize> = (0..readers.len()).filter(|at| open(&readers[*at])).collect();
            (!open.is_empty()).then(|| open[random(open.len() as u64) as usize])
        } {
            let reader = &mut readers[at];
            for event in events.iter().skip(reader.next).take(1 + random(5) as usize) {
                assert!(reader.follower.event(event.clone()).await.is_ok());
                reader.next += 1;
            }
            reader.is_over = reader.follower.after_message().is_err();
        }
        for (from, mut told) in listeners {
            let wanted =
                events.iter().filter(|event| position(event) > from).filter_map(|event| match event {
                    WatchEvent::Put { key, .. } => Some(IVec::from(&key[..])),
                    _ => None,
                });
            let mut heard = Vec::new();
            while let Some(Item::Told(_, _, event)) = told.try_recv() {
                match event {
                    Some(Event::Insert { key, .. }) => heard.push(key),
                    Some(other) => panic!("{other:?}"),
                    None => {}
                }
            }
            assert_eq!(heard, wanted.collect::<Vec<_>>(), "seed {seed}, from {from}");
        }
        for reader in &mut readers {
            reader.follower.leave();
        }
        readers.iter().filter(|reader| reader.is_over).count()
    }

    #[tokio::test]
    async fn who_goes_over_to_a_shared_stream_is_told_every_event_once_and_in_order() {
        let client = Client::unconnected();
        let mut joined = 0;
        for seed in 0..500 {
            joined += told_once(seed, &client).await;
        }
        assert!(joined > 500, "only {joined} went over");
    }
}
