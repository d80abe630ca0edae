//! [`Holder`]: a client that takes locks, dawdles, and writes under them; and [`Held`]: what all holders
//! were told, and whether that can be.
//!
//! Holders are as bad as holders are: they fall asleep for longer than their lease, in the middle of what they do,
//! and go on as if nothing had happened. What must hold all the same:
//!
//! - **Mutual exclusion of fenced writes.** No write under a token takes place at a position at which a
//!   larger token of the same lock had been granted. (Of a plain lock the token is the position of its
//!   grant.)
//! - **A lease is a lease.** Nobody else is granted the lock before the lease has passed, by time and not by
//!   anybody's clock, unless it was given back. This is judged while no node has been started meanwhile: a leader that
//!   has never followed another in its life has nothing but its wall clock to bridge the time for which it was down.
//! - **A lease is no more than a lease.** Nobody is refused because of a grant whose lease has ended, by the log's time.
//!
//! Seeds 0 and 2 of the first hundred catch two faults if they are built in: a fenced write that is carried
//! out without its token being compared, and stamps that follow a leader's wall clock wherever it jumps.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::ring::group_of;
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply};
use dogsled_storage::{Answer, Command, Fence, GroupReply, IVec, Operation, Refusal, Reply, TreeId};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::Caller;
use crate::random::Random;
use crate::trace::event;
use crate::workload::Shared;

/// The tree that holders write to: not the one whose history is judged.
const GUARDED: &str = "guarded";
/// The locks, each with what it guards, by their tags.
const TAGS: [&str; 2] = ["g0", "g1"];
/// The log's time passes no faster than time by more than a part of this.
const PACE: u32 = 32;

/// One grant.
#[derive(Clone, Debug)]
struct Grant {
    token: u64,
    holder: u64,
    asked: Instant,
    heard: Instant,
    lease: Duration,
    /// When it was begun to be given back.
    released: Option<Instant>,
    /// How often nodes had been started when it was asked for, and when it was heard of.
    starts: (u64, u64),
}

#[derive(Default)]
struct Inner {
    grants: BTreeMap<&'static str, Vec<Grant>>,
    /// Token and position of fenced writes that have taken place.
    writes: BTreeMap<&'static str, Vec<(u64, u64)>>,
    refused: u64,
    wrong: Vec<String>,
}

/// See the [module](self); clones are the same.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<Inner>>);

impl Held {
    /// Grants, fenced writes that took place, and those that were refused.
    pub fn counts(&self) -> (usize, usize, u64) {
        let inner = self.0.lock();
        let grants = inner.grants.values().map(Vec::len).sum();
        (grants, inner.writes.values().map(Vec::len).sum(), inner.refused)
    }

    /// Somebody was refused, at that time of the log, because of a grant whose lease ends then.
    fn refused(&self, tag: &str, time_ms: u64, token: FencingToken, expires_ms: u64) {
        if expires_ms <= time_ms {
            let what = format!(
                "lock {tag}: at {time_ms} it is held under token {token}, whose lease ended at {expires_ms}"
            );
            self.0.lock().wrong.push(what);
        }
    }

    /// What must not be, in words.
    pub fn judge(&self) -> Vec<String> {
        let inner = self.0.lock();
        let mut violations = inner.wrong.clone();
        for (tag, grants) in &inner.grants {
            for (token, position) in inner.writes.get(tag).into_iter().flatten() {
                let later = grants.iter().find(|grant| grant.token > *token && grant.token <= *position);
                if let Some(later) = later {
                    violations.push(format!(
                        "lock {tag}: a write under token {token} took place at {position}, and token {} had been \
                         granted to holder {} before",
                        later.token, later.holder
                    ));
                }
            }
            let mut grants = grants.clone();
            grants.sort_by_key(|grant| grant.token);
            for pair in grants.windows(2) {
                let [before, after] = pair else { continue };
                if before.token == after.token {
                    violations.push(format!("lock {tag}: token {} was granted twice", after.token));
                }
                let ends = before.asked + before.lease - before.lease / PACE;
                let is_given_back = before.released.is_some_and(|released| released <= after.heard);
                if after.heard < ends && !is_given_back && before.starts.0 == after.starts.1 {
                    violations.push(format!(
                        "lock {tag}: token {} was granted to holder {} within the lease of token {} of holder {}, \
                         which had {:?} left",
                        after.token,
                        after.holder,
                        before.token,
                        before.holder,
                        ends - after.heard
                    ));
                }
            }
        }
        violations
    }
}

/// See the [module](self).
pub struct Holder {
    number: u64,
    caller: Caller,
    written: u64,
}

impl Holder {
    /// A holder.
    pub fn new(number: u64, seed: u64, shared: Arc<Shared>) -> Holder {
        let random = Random::new(seed, 30_000 + number);
        // Numbers beyond those of clients and watchers.
        Holder { number, caller: Caller::new(500 + number, random, shared), written: 0 }
    }

    /// Works until it is told to stop.
    pub async fn run(mut self, stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.section().await;
            self.caller.dawdle(0, 300).await;
        }
    }

    async fn submit(&mut self, tag: &str, operation: Operation) -> Option<GroupReply> {
        let group = group_of(format!("{{{tag}}}").as_bytes(), self.caller.shared.partitions);
        self.caller.once(group, &[GUARDED], operation).await
    }

    /// Takes a lock if it can, and does some things under it.
    async fn section(&mut self) {
        let tag = *self.caller.random.pick(&TAGS);
        let (name, owner) = (IVec::from(format!("{{{tag}}}")), IVec::from(format!("holder {}", self.number)));
        let lease_ms = *self.caller.random.pick(&[300, 1_000, 3_000]);
        let lease = Duration::from_millis(lease_ms);
        let (asked, starts) = (Instant::now(), self.caller.shared.starts());
        let take = LockCommand::TryAcquire { name: name.clone(), owner: owner.clone(), lease_ms };
        let Some(reply) = self.submit(tag, Operation::Command(Command::Lock(take))).await else { return };
        let token = match reply.result {
            Ok(Answer::Reply(Reply::Lock(LockReply::Acquired { token, .. }))) => token,
            Ok(Answer::Reply(Reply::Lock(LockReply::Held { token, expires_ms, .. }))) => {
                return self.caller.shared.held.refused(tag, reply.time_ms, token, expires_ms);
            }
            other => return self.wrong(format!("lock {tag}: who asked for it was answered by {other:?}")),
        };
        let grant = Grant {
            token: token.0,
            holder: self.number,
            asked,
            heard: Instant::now(),
            lease,
            released: None,
            starts: (starts, self.caller.shared.starts()),
        };
        event!(
            self.caller.shared.trace,
            "holder {} has {tag} under token {token} for {lease:?}",
            self.number
        );
        self.caller.shared.held.0.lock().grants.entry(tag).or_default().push(grant);
        for _ in 0..self.caller.random.between(1, 5) {
            // Once in a while for longer than the lease.
            self.caller.dawdle(0, lease_ms / 2).await;
            if self.caller.random.chance(200) {
                self.caller.dawdle(lease_ms, lease_ms * 2).await;
            }
            self.written += 1;
            let value = IVec::from(format!("{token}.{}", self.written));
            let key = IVec::from(format!("{{{tag}}}value"));
            let command = Command::Insert { tree: TreeId(0), key, value };
            let fences = vec![Fence { lock: name.clone(), token }];
            let Some(reply) = self.submit(tag, Operation::Fenced { fences, command }).await else { continue };
            let mut inner = self.caller.shared.held.0.lock();
            match reply.result {
                Ok(_) => inner.writes.entry(tag).or_default().push((token.0, reply.position)),
                Err(Refusal::LockNotHeld { .. }) => inner.refused += 1,
                Err(other) => inner.wrong.push(format!("a fenced write was refused: {other}")),
            }
        }
        if self.caller.random.chance(600) {
            self.released(tag, token);
            let release = LockCommand::Release { name, owner, token };
            self.submit(tag, Operation::Command(Command::Lock(release))).await;
        }
    }

    fn wrong(&self, what: String) {
        event!(self.caller.shared.trace, "holder {}: VIOLATION: {what}", self.number);
        self.caller.shared.held.0.lock().wrong.push(what);
    }

    fn released(&self, tag: &'static str, token: FencingToken) {
        let mut inner = self.caller.shared.held.0.lock();
        let grants = inner.grants.entry(tag).or_default();
        let grant = grants.iter_mut().find(|grant| grant.token == token.0 && grant.holder == self.number);
        grant.expect("it was noted when it was granted").released = Some(Instant::now());
    }
}
