//! [`Session`]: the numbers that make repeated writes happen once; see
//! [`dogsled_replication`'s sessions](dogsled_storage::session).
//!
//! A client has one session in each partition that it writes to, opened by its first write there.
//! Each write takes a slot that no other uses, with the slot's next number, and keeps both over all
//! repetitions. Whoever comes next in the slot tells the cluster that this answer is heard or given up.
//!
//! The slot that was used last is used again first, so that the cluster remembers no more answers
//! than there were ever writes under way at a time, and finds their place warm.
//!
//! A session whose lease has ended is replaced by one with another id: an id is never opened twice,
//! or messages of its first life could be taken for ones of the second.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogsled_storage::{SessionId, SessionTag};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// 64 bits that nobody else draws: the standard library keys its hasher by the system's randomness.
pub(super) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// One session in one partition.
pub(super) struct Session {
    pub(super) id: SessionId,
    slots: Mutex<Slots>,
    room: Notify,
    /// The latest time that the group's log was heard to have, and when.
    log_time: Mutex<(u64, Instant)>,
}

#[derive(Default)]
struct Slots {
    /// Slots that no write uses, each with its next number.
    free: Vec<(u16, u64)>,
    /// How many there are, the used ones included.
    count: usize,
    /// None is given out any more.
    ended: bool,
}

/// A slot of a session, with the number of a write in it; the slot is free again when this is dropped.
pub(super) struct Numbered {
    session: Arc<Session>,
    pub(super) tag: SessionTag,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        let SessionTag { slot, sequence, .. } = self.tag;
        self.session.slots.lock().free.push((slot, sequence + 1));
        // One for each place: a crowd that waits is not woken for every one of them.
        self.session.room.notify_one();
    }
}

impl Session {
    pub(super) fn new(id: SessionId) -> Session {
        let log_time = Mutex::new((0, Instant::now()));
        Session { id, slots: Mutex::default(), room: Notify::new(), log_time }
    }

    /// The group's log has, or had, this time.
    pub(super) fn heard(&self, time_ms: u64) {
        let mut log_time = self.log_time.lock();
        if time_ms > log_time.0 {
            *log_time = (time_ms, Instant::now());
        }
    }

    /// The time of the group's log, if it has gone on since as the time here has.
    pub(super) fn log_time_ms(&self) -> u64 {
        let (heard, at) = *self.log_time.lock();
        heard.saturating_add(at.elapsed().as_millis() as u64)
    }

    /// A slot and its next number, when fewer than `limit` are in use; `None` if the session has ended.
    pub(super) async fn number(self: &Arc<Self>, limit: usize) -> Option<Numbered> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Before looking: what is freed from here on is heard.
            room.as_mut().enable();
            {
                let mut slots = self.slots.lock();
                if slots.ended {
                    return None;
                }
                let taken = slots.free.pop().or_else(|| {
                    let slot = u16::try_from(slots.count).ok().filter(|_| slots.count < limit)?;
                    slots.count += 1;
                    Some((slot, 0))
                });
                if let Some((slot, sequence)) = taken {
                    let tag = SessionTag { session: self.id, slot, sequence };
                    return Some(Numbered { session: Arc::clone(self), tag });
                }
            }
            room.await;
        }
    }

    fn end(&self, only_if_idle: bool) -> bool {
        let ended = {
            let mut slots = self.slots.lock();
            let ends = slots.free.len() == slots.count || !only_if_idle;
            slots.ended |= ends;
            ends
        };
        if ended {
            self.room.notify_waiters();
        }
        ended
    }
}

/// The sessions of one client.
pub(super) struct Sessions {
    /// Random, the lowest 32 bits zero: they count the sessions.
    base: u128,
    opened: AtomicU32,
    places: Mutex<HashMap<u32, Arc<Place>>>,
}

/// The session in one partition, or its place.
pub(super) struct Place {
    state: Mutex<PlaceState>,
    /// Only one call at a time opens it.
    pub(super) opening: tokio::sync::Mutex<()>,
}

struct PlaceState {
    session: Option<Arc<Session>>,
    used: Instant,
}

impl Place {
    pub(super) fn get(&self) -> Option<Arc<Session>> {
        let mut state = self.state.lock();
        state.used = Instant::now();
        state.session.clone()
    }

    pub(super) fn set(&self, session: Arc<Session>) {
        self.state.lock().session = Some(session);
    }

    /// The cluster does not know it any more.
    pub(super) fn forget(&self, session: &Arc<Session>) {
        session.end(false);
        let mut state = self.state.lock();
        if state.session.as_ref().is_some_and(|current| Arc::ptr_eq(current, session)) {
            state.session = None;
        }
    }

    /// Takes the session out if nobody has used it for so long.
    fn take_idle(&self, idle: Duration) -> Option<Arc<Session>> {
        let mut state = self.state.lock();
        if state.used.elapsed() < idle || !state.session.as_ref()?.end(true) {
            return None;
        }
        state.session.take()
    }
}

/// What is to be done about a session that is open.
pub(super) enum Upkeep {
    Renew(u32, Arc<Session>),
    Close(u32, SessionId),
}

impl Sessions {
    pub(super) fn new() -> Sessions {
        let base = (u128::from(random_u64()) << 64) | u128::from(random_u64());
        Sessions { base: base & !u128::from(u32::MAX), opened: AtomicU32::new(0), places: Mutex::default() }
    }

    pub(super) fn fresh_id(&self) -> SessionId {
        SessionId(self.base | u128::from(self.opened.fetch_add(1, Ordering::Relaxed)))
    }

    /// A random number whose lowest 32 bits are zero.
    pub(super) fn base(&self) -> u128 {
        self.base
    }

    pub(super) fn place(&self, group: u32) -> Arc<Place> {
        let mut places = self.places.lock();
        let place = places.entry(group).or_insert_with(|| {
            let state = PlaceState { session: None, used: Instant::now() };
            Arc::new(Place { state: Mutex::new(state), opening: tokio::sync::Mutex::default() })
        });
        Arc::clone(place)
    }

    /// Sessions that are used are renewed; those that were not for as long as `idle` are closed.
    pub(super) fn upkeep(&self, idle: Duration) -> Vec<Upkeep> {
        let places: Vec<_> =
            self.places.lock().iter().map(|(group, place)| (*group, Arc::clone(place))).collect();
        let due = places.into_iter().filter_map(|(group, place)| match place.take_idle(idle) {
            Some(session) => Some(Upkeep::Close(group, session.id)),
            None => place.state.lock().session.clone().map(|session| Upkeep::Renew(group, session)),
        });
        due.collect()
    }

    /// Ends all sessions; those that the cluster is to be told of.
    pub(super) fn end_all(&self) -> Vec<(u32, SessionId)> {
        let places: Vec<_> = self.places.lock().drain().collect();
        let ended = places.into_iter().filter_map(|(group, place)| {
            let session = place.state.lock().session.take()?;
            session.end(false);
            Some((group, session.id))
        });
        ended.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn take(session: &Arc<Session>, limit: usize) -> Numbered {
        session.number(limit).await.unwrap()
    }

    #[tokio::test]
    async fn no_two_writes_share_a_slot_and_a_slot_counts_upwards() {
        let session = Arc::new(Session::new(SessionId(1)));
        let place = |number: &Numbered| (number.tag.slot, number.tag.sequence);
        let (a, b, c) = (take(&session, 9).await, take(&session, 9).await, take(&session, 9).await);
        assert_eq!([place(&a), place(&b), place(&c)], [(0, 0), (1, 0), (2, 0)]);
        drop(b);
        let again = take(&session, 9).await;
        assert_eq!(place(&again), (1, 1));
        drop(a);
        drop(again);
        assert_eq!(place(&take(&session, 9).await), (1, 2), "the one that was used last");
        assert_eq!(session.slots.lock().count, 3);
    }

    #[tokio::test]
    async fn a_writer_waits_while_too_many_are_under_way_and_hears_of_the_end() {
        let session = Arc::new(Session::new(SessionId(1)));
        let (_first, second) = (take(&session, 2).await, take(&session, 2).await);
        let waiting = tokio::spawn({
            let session = Arc::clone(&session);
            async move { session.number(2).await.map(|number| number.tag) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "both slots are in use");
        drop(second);
        let tag = waiting.await.unwrap().unwrap();
        assert_eq!((tag.slot, tag.sequence), (1, 1));
        assert!(!session.end(true), "the first is under way");
        assert!(session.end(false));
        assert!(session.number(2).await.is_none());
    }

    #[tokio::test]
    async fn an_id_is_never_used_twice_and_idle_sessions_are_closed() {
        let sessions = Sessions::new();
        assert_ne!(sessions.fresh_id(), sessions.fresh_id());
        let place = sessions.place(3);
        let session = Arc::new(Session::new(sessions.fresh_id()));
        place.set(Arc::clone(&session));
        let number = take(&session, 9).await;
        assert!(matches!(sessions.upkeep(Duration::ZERO)[..], [Upkeep::Renew(3, _)]), "it is in use");
        drop(number);
        assert!(matches!(sessions.upkeep(Duration::from_secs(9))[..], [Upkeep::Renew(3, _)]));
        assert!(matches!(sessions.upkeep(Duration::ZERO)[..], [Upkeep::Close(3, id)] if id == session.id));
        assert!(place.get().is_none() && sessions.upkeep(Duration::ZERO).is_empty());
    }
}
