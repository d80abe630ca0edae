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
use crate::cluster::{Error, ReadFrom, Result};
use crate::lock::milliseconds;

/// A waiter that was not heard of for so long is passed over.
pub(super) const WAIT_LEASE: Duration = Duration::from_secs(30);

/// What a wait ended with.
pub(super) enum Waited {
    Granted {
        token: FencingToken,
        expires_ms: u64,
        /// Of the lease, when it was asked.
        left: Duration,
        asked: Instant,
    },
    TimeUp,
    /// The ticket is over.
    Gone,
}

/// A place in the queue. Dropping it leaves, and gives back what was granted meanwhile.
struct Place<'a> {
    lock: &'a Lock,
    ticket: u64,
    is_over: bool,
}

impl Place<'_> {
    fn leave(&self) -> LockCommand {
        LockCommand::CancelWait { name: self.lock.name.clone(), ticket: self.ticket }
    }

    /// What has become of it; `None`: it waits.
    async fn look(&mut self, group: u32) -> Result<Option<Waited>> {
        let core = self.lock.client.core();
        let read = GroupRead::Ticket { name: self.lock.name.clone(), ticket: self.ticket };
        let asked = Instant::now();
        let answer = core.read(group, &read, ReadFrom::Leader, self.lock.client.until()).await?;
        let waited = match answer.reply {
            GroupReadReply::Ticket { reply: LockReply::Waiting { .. }, .. } => return Ok(None),
            GroupReadReply::Ticket { reply: LockReply::Acquired { token, expires_ms }, now_ms } => {
                let left = Duration::from_millis(expires_ms.saturating_sub(now_ms));
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
            let (lock, leave) = (self.lock.clone(), self.leave());
            // If this fails, the end of the lease does it.
            self.lock.client.runtime().spawn(async move { lock.execute(leave).await });
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
    pub(super) async fn wait(&self, ticket: u64, deadline: Option<Instant>) -> Result<Waited> {
        let mut place = Place { lock: self, ticket, is_over: false };
        let waited = tokio::select! {
            biased;
            waited = self.follow(&mut place) => Some(waited?),
            () = until(deadline) => None,
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
                            self.still_waits(place.ticket, &mut heard).await;
                            continue;
                        }
                    };
                    let Some(Ok(message)) = message else { break };
                    let Ok(events) = WatchEvent::decode(message) else { break };
                    // A put is only the waiter's own word that it still waits.
                    if events.iter().all(|event| matches!(event, WatchEvent::Put { .. })) {
                        continue;
                    }
                    attempt = 0;
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
                self.still_waits(place.ticket, &mut heard).await;
            }
            core.before_next_attempt(attempt).await;
            attempt += 1;
        }
    }

    /// Says that this still waits. What is wrong with that, if anything, shows when the ticket is looked at.
    async fn still_waits(&self, ticket: u64, heard: &mut Instant) {
        let wait_ms = milliseconds(WAIT_LEASE);
        let renewed = self.execute(LockCommand::RenewWait { name: self.name.clone(), ticket, wait_ms }).await;
        // After a failure again soon.
        let pause = if renewed.is_ok() { Duration::ZERO } else { WAIT_LEASE / 3 - Duration::from_secs(1) };
        let now = Instant::now();
        *heard = now.checked_sub(pause).unwrap_or(now);
    }
}
