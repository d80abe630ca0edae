//! Waiting for a lock: a ticket in the partition's log, and one key that is followed until it vanishes.
//!
//! ```text
//! acquire ─► Waiting { ticket }
//!              └─ follow the waiter's key ─► it vanishes ─► read the ticket ─► granted, or over
//!                   │ every ten seconds: still here
//!                   └ the stream breaks: follow it elsewhere, and read the ticket
//! ```
//!
//! No grant is missed: the ticket is read after the stream has begun, and after every break of it.
//!
//! When the key has vanished, the node that told so is believed, without a quorum: what it has applied was committed,
//! and if it says that the ticket has the lock, then it does or did. How much of the lease is left must not be taken
//! from a node that may be cut off and know an old time only. So it is counted from the last
//! [time of the log](LogTime) that this client was told, which is less than the grant's by less than the wait.
//! Any other answer is asked for again, of the group. Even what the group says is left is not believed beyond that
//! count: the time beside such an answer is of the clock of whoever gave it, which may have been set back.

use std::time::Duration;

use bytes::Bytes;
use dogsled_replication::ClientRequest;
use dogsled_replication::watch::WatchEvent;
use dogsled_storage::lock::queue::waiter_key;
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::{GroupRead, GroupReadReply, LOCK_QUEUES_TREE_NAME};
use futures_util::StreamExt;
use tokio::time::{Instant, sleep_until};

use super::Lock;
use crate::FencingToken;
use crate::cluster::core::unexpected;
use crate::cluster::until::{Asked, MARGIN};
use crate::cluster::{Error, ReadFrom, Result};
use crate::lock::milliseconds;

/// A waiter that was not heard of for so long is passed over.
pub(super) const WAIT_LEASE: Duration = Duration::from_secs(30);

/// The log had this time when something was asked, or later: it passes no faster than the time here, but for
/// [`MARGIN`].
#[derive(Clone, Copy)]
pub(super) struct LogTime {
    pub(super) ms: u64,
    pub(super) asked: Asked,
}

impl LogTime {
    /// How long it is at least, from `now`, until the log has a time; too little rather than too much.
    fn until(self, ms: u64, now: Asked) -> Duration {
        let passed = now.since(self.asked);
        Duration::from_millis(ms.saturating_sub(self.ms)).saturating_sub(passed + passed / MARGIN)
    }

    /// As [`LogTime::until`], or less, if whoever was asked `now` says that the log has this time by then.
    fn until_by(self, told_ms: u64, ms: u64, now: Asked) -> Duration {
        Duration::from_millis(ms.saturating_sub(told_ms)).min(self.until(ms, now))
    }
}

/// What a wait ended with.
pub(super) enum Waited {
    Granted {
        token: FencingToken,
        expires_ms: u64,
        /// Of the lease, when it was asked.
        left: Duration,
        asked: Asked,
    },
    TimeUp,
    /// The ticket is over.
    Gone,
}

/// A place in the queue. Dropping it leaves, and gives back what was granted meanwhile.
struct Place<'a> {
    lock: &'a Lock,
    ticket: u64,
    known: LogTime,
    is_over: bool,
}

impl Place<'_> {
    fn leave(&self) -> LockCommand {
        LockCommand::CancelWait { name: self.lock.name.clone(), ticket: self.ticket }
    }

    /// What has become of it if the node that leads, as far as is known here, has applied a grant.
    async fn look_at_leader(&mut self, group: u32) -> Option<Waited> {
        let core = self.lock.client.core();
        let read = GroupRead::Ticket { name: self.lock.name.clone(), ticket: self.ticket };
        let answer = core.read_of_leader(group, &read, self.lock.client.until()).await.ok()?;
        let GroupReadReply::Ticket { reply: LockReply::Acquired { token, expires_ms }, .. } = answer.reply
        else {
            return None;
        };
        self.is_over = true;
        let now = Asked::now();
        Some(Waited::Granted { token, expires_ms, left: self.known.until(expires_ms, now), asked: now })
    }

    /// What has become of it; `None`: it waits.
    async fn look(&mut self, group: u32) -> Result<Option<Waited>> {
        let core = self.lock.client.core();
        let read = GroupRead::Ticket { name: self.lock.name.clone(), ticket: self.ticket };
        let asked = Asked::now();
        let answer = core.read(group, &read, ReadFrom::Leader, self.lock.client.until()).await?;
        let waited = match answer.reply {
            GroupReadReply::Ticket { reply: LockReply::Waiting { .. }, .. } => return Ok(None),
            GroupReadReply::Ticket { reply: LockReply::Acquired { token, expires_ms }, now_ms } => {
                let left = self.known.until_by(now_ms, expires_ms, asked);
                Waited::Granted { token, expires_ms, left, asked }
            }
            GroupReadReply::Ticket { reply: LockReply::NotHeld, .. } => Waited::Gone,
            other => return Err(unexpected(&other)),
        };
        self.is_over = true;
        Ok(Some(waited))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.lock.carry_through(self.leave());
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

impl Lock {
    /// Waits under a ticket until it is over.
    pub(super) async fn wait(
        &self,
        ticket: u64,
        known: LogTime,
        deadline: Option<Instant>,
    ) -> Result<Waited> {
        let mut place = Place { lock: self, ticket, known, is_over: false };
        let waited = tokio::select! {
            biased;
            waited = self.follow(&mut place) => Some(waited?),
            () = until(deadline) => None,
            () = self.session_lost() => {
                return Err(Error::Invalid("the session ended while it waited for a lock".to_owned()));
            }
        };
        if let Some(waited) = waited {
            return Ok(waited);
        }
        // Waited for, so that the caller does not meet itself in the queue when it asks again.
        self.execute(place.leave()).await?;
        place.is_over = true;
        Ok(Waited::TimeUp)
    }

    async fn follow(&self, place: &mut Place<'_>) -> Result<Waited> {
        let core = self.client.core();
        let group = core.group_of(&self.name, self.client.until()).await?;
        let request = ClientRequest::Watch {
            group,
            tree: Bytes::from_static(LOCK_QUEUES_TREE_NAME),
            prefix: Bytes::copy_from_slice(&waiter_key(&self.name, place.ticket)),
            told: None,
        };
        let mut heard = Instant::now();
        let (mut avoid, mut attempt) = (None, 0);
        loop {
            if core.is_closed() {
                return Err(Error::Closed);
            }
            if let Ok((node, mut stream)) = core.open_watch(&request, group, avoid).await {
                avoid = Some(node);
                loop {
                    let message = tokio::select! {
                        biased;
                        message = stream.next() => message,
                        () = sleep_until(heard + WAIT_LEASE / 3) => {
                            self.still_waits(place, &mut heard).await;
                            continue;
                        }
                    };
                    let Some(Ok(message)) = message else { break };
                    let Ok(events) = WatchEvent::decode(message) else { break };
                    // A put is only the waiter's own word that it still waits.
                    if events
                        .iter()
                        .all(|event| matches!(event, WatchEvent::Put { .. } | WatchEvent::Progress { .. }))
                    {
                        continue;
                    }
                    attempt = 0;
                    if events.iter().any(|event| matches!(event, WatchEvent::Removed { .. }))
                        && let Some(granted) = place.look_at_leader(group).await
                    {
                        return Ok(granted);
                    }
                    match place.look(group).await {
                        Ok(Some(waited)) => return Ok(waited),
                        Ok(None) => {}
                        // Follow it anew, and look again then.
                        Err(error) if error.is_temporary() => break,
                        Err(error) => return Err(error),
                    }
                }
            }
            if heard.elapsed() >= WAIT_LEASE / 3 {
                self.still_waits(place, &mut heard).await;
            }
            core.before_next_attempt(attempt).await;
            attempt += 1;
        }
    }

    /// Returns when the session that this lives with has ended, if there is one.
    async fn session_lost(&self) {
        match &self.session {
            Some(session) => session.lost().await,
            None => std::future::pending().await,
        }
    }

    /// Says that this still waits. What is wrong with that, if anything, shows when the ticket is looked at.
    async fn still_waits(&self, place: &mut Place<'_>, heard: &mut Instant) {
        if self.session.is_some() {
            // Its session says so.
            *heard = Instant::now();
            return;
        }
        let (name, ticket, wait_ms) = (self.name.clone(), place.ticket, milliseconds(WAIT_LEASE));
        let asked = Asked::now();
        let renewed = self.execute(LockCommand::RenewWait { name, ticket, wait_ms }).await;
        if let Ok((_, ms)) = renewed {
            place.known = LogTime { ms, asked };
        }
        // After a failure again soon.
        let pause = if renewed.is_ok() { Duration::ZERO } else { WAIT_LEASE / 3 - Duration::from_secs(1) };
        let now = Instant::now();
        *heard = now.checked_sub(pause).unwrap_or(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_lease_is_counted_from_before_the_wait_and_never_too_much() {
        let asked = Asked::now();
        let known = LogTime { ms: 50_000, asked };
        let left = |seconds, ms| known.until(ms, asked.later(Duration::from_secs(seconds), Duration::ZERO));
        assert_eq!(left(0, 60_000), Duration::from_secs(10));
        assert_eq!(left(0, 50_000), Duration::ZERO);
        assert_eq!(left(0, 0), Duration::ZERO);
        // Granted eight seconds later, for ten: those eight are gone, and what the log may have been quicker.
        assert_eq!(left(8, 68_000), Duration::from_millis(10_000 - 250));
        assert_eq!(left(68, 68_000), Duration::ZERO);
    }

    #[test]
    fn a_clock_that_was_set_back_makes_no_lease_longer() {
        let asked = Asked::now();
        let known = LogTime { ms: 50_000, asked };
        let left = |told_ms| {
            known.until_by(told_ms, 68_000, asked.later(Duration::from_secs(3), Duration::from_secs(5)))
        };
        assert_eq!(left(60_000), Duration::from_secs(8));
        // An hour back, and a little.
        for told_ms in [0, 57_000] {
            assert_eq!(left(told_ms), Duration::from_millis(10_000 - 250), "told {told_ms}");
        }
    }
}
