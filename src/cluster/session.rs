//! [`Session`]: the numbers that make repeated writes happen once; see
//! [`dogsled_replication`'s sessions](dogsled_storage::session).
//!
//! A client has one session in each partition that it writes to, opened by its first write there.
//! Each write takes the next number and keeps it over all repetitions. *First incomplete* is the
//! watermark below which the client has heard of, or given up, all: the cluster forgets their answers.
//!
//! Invariant: the numbers under way are all of `first..first + done.len()`, `done[0]` is false, and
//! there are never more of them than the cluster remembers
//! ([`MAX_OUTSTANDING`](dogsled_storage::session::MAX_OUTSTANDING)).
//!
//! A session whose lease has ended is replaced by one with another id: an id is never opened twice,
//! or messages of its first life could be taken for ones of the second.

use std::collections::{HashMap, VecDeque};
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
    numbers: Mutex<Numbers>,
    room: Notify,
}

#[derive(Default)]
struct Numbers {
    /// The first incomplete one.
    first: u64,
    /// Of it and those after it: whether it is complete.
    done: VecDeque<bool>,
    /// No number is given out any more.
    ended: bool,
}

/// A number of a session, under way until this is dropped.
pub(super) struct Numbered {
    session: Arc<Session>,
    pub(super) tag: SessionTag,
}

impl Drop for Numbered {
    fn drop(&mut self) {
        self.session.complete(self.tag.sequence);
    }
}

impl Session {
    pub(super) fn new(id: SessionId) -> Session {
        Session { id, numbers: Mutex::default(), room: Notify::new() }
    }

    /// The next number, when fewer than `limit` lie between it and the first incomplete one; `None`
    /// if the session has ended.
    pub(super) async fn number(self: &Arc<Self>, limit: usize) -> Option<Numbered> {
        loop {
            let mut room = std::pin::pin!(self.room.notified());
            // Before looking: what is completed from here on is heard.
            room.as_mut().enable();
            {
                let mut numbers = self.numbers.lock();
                if numbers.ended {
                    return None;
                }
                if numbers.done.len() < limit {
                    let sequence = numbers.first + numbers.done.len() as u64;
                    numbers.done.push_back(false);
                    let tag = SessionTag { session: self.id, sequence, first_incomplete: numbers.first };
                    return Some(Numbered { session: Arc::clone(self), tag });
                }
            }
            room.await;
        }
    }

    fn complete(&self, sequence: u64) {
        let moved = {
            let mut numbers = self.numbers.lock();
            let index = sequence.checked_sub(numbers.first).expect("a number completes once");
            numbers.done[index as usize] = true;
            let before = numbers.first;
            while numbers.done.front() == Some(&true) {
                numbers.done.pop_front();
                numbers.first += 1;
            }
            numbers.first - before
        };
        // One for each place: a crowd that waits is not woken for every one of them.
        for _ in 0..moved {
            self.room.notify_one();
        }
    }

    fn end(&self, only_if_idle: bool) -> bool {
        let ended = {
            let mut numbers = self.numbers.lock();
            let ends = numbers.done.is_empty() || !only_if_idle;
            numbers.ended |= ends;
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
    slots: Mutex<HashMap<u32, Arc<Slot>>>,
}

/// The session in one partition, or its place.
pub(super) struct Slot {
    state: Mutex<SlotState>,
    /// Only one call at a time opens it.
    pub(super) opening: tokio::sync::Mutex<()>,
}

struct SlotState {
    session: Option<Arc<Session>>,
    used: Instant,
}

impl Slot {
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
        Sessions { base: base & !u128::from(u32::MAX), opened: AtomicU32::new(0), slots: Mutex::default() }
    }

    pub(super) fn fresh_id(&self) -> SessionId {
        SessionId(self.base | u128::from(self.opened.fetch_add(1, Ordering::Relaxed)))
    }

    pub(super) fn slot(&self, group: u32) -> Arc<Slot> {
        let mut slots = self.slots.lock();
        let slot = slots.entry(group).or_insert_with(|| {
            let state = SlotState { session: None, used: Instant::now() };
            Arc::new(Slot { state: Mutex::new(state), opening: tokio::sync::Mutex::default() })
        });
        Arc::clone(slot)
    }

    /// Sessions that are used are renewed; those that were not for as long as `idle` are closed.
    pub(super) fn upkeep(&self, idle: Duration) -> Vec<Upkeep> {
        let slots: Vec<_> =
            self.slots.lock().iter().map(|(group, slot)| (*group, Arc::clone(slot))).collect();
        let due = slots.into_iter().filter_map(|(group, slot)| match slot.take_idle(idle) {
            Some(session) => Some(Upkeep::Close(group, session.id)),
            None => slot.state.lock().session.clone().map(|session| Upkeep::Renew(group, session)),
        });
        due.collect()
    }

    /// Ends all sessions; those that the cluster is to be told of.
    pub(super) fn end_all(&self) -> Vec<(u32, SessionId)> {
        let slots: Vec<_> = self.slots.lock().drain().collect();
        let ended = slots.into_iter().filter_map(|(group, slot)| {
            let session = slot.state.lock().session.take()?;
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
    async fn the_watermark_waits_for_the_first_number_and_then_moves_over_all_that_are_done() {
        let session = Arc::new(Session::new(SessionId(1)));
        let (zero, one, two) = (take(&session, 9).await, take(&session, 9).await, take(&session, 9).await);
        assert_eq!([zero.tag.sequence, one.tag.sequence, two.tag.sequence], [0, 1, 2]);
        drop(one);
        assert_eq!(take(&session, 9).await.tag.first_incomplete, 0);
        drop(zero);
        let five = take(&session, 9).await;
        assert_eq!((five.tag.sequence, five.tag.first_incomplete), (4, 2));
        drop(two);
        assert_eq!(session.numbers.lock().first, 4);
    }

    #[tokio::test]
    async fn a_writer_waits_while_too_many_are_under_way_and_hears_of_the_end() {
        let session = Arc::new(Session::new(SessionId(1)));
        let (first, second) = (take(&session, 2).await, take(&session, 2).await);
        let waiting = tokio::spawn({
            let session = Arc::clone(&session);
            async move { session.number(2).await.map(|number| number.tag) }
        });
        drop(second);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished(), "the first is still under way");
        drop(first);
        let tag = waiting.await.unwrap().unwrap();
        assert_eq!((tag.sequence, tag.first_incomplete), (2, 2));
        assert!(session.end(true), "nothing is under way");
        assert!(session.number(2).await.is_none());
    }

    #[tokio::test]
    async fn an_id_is_never_used_twice_and_idle_sessions_are_closed() {
        let sessions = Sessions::new();
        assert_ne!(sessions.fresh_id(), sessions.fresh_id());
        let slot = sessions.slot(3);
        let session = Arc::new(Session::new(sessions.fresh_id()));
        slot.set(Arc::clone(&session));
        let number = take(&session, 9).await;
        assert!(matches!(sessions.upkeep(Duration::ZERO)[..], [Upkeep::Renew(3, _)]), "it is in use");
        drop(number);
        assert!(matches!(sessions.upkeep(Duration::from_secs(9))[..], [Upkeep::Renew(3, _)]));
        assert!(matches!(sessions.upkeep(Duration::ZERO)[..], [Upkeep::Close(3, id)] if id == session.id));
        assert!(slot.get().is_none() && sessions.upkeep(Duration::ZERO).is_empty());
    }
}
