//! One write of an embedded database; see [`crate::engine`].

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::commands::says_it_is_so;
use super::{Durability, Shared, prefetch, touches_locks};
use crate::evaluate::{Context, Effect, Effects, evaluate};
use crate::fence::{self, Fence};
use crate::state::{LatestView, Prefetched, State};
use crate::{Command, Error, Reply, Result};

/// From so many bytes on a write makes sure that the log has room before it takes the commit mutex for good.
const RESERVED_FROM: usize = 256 << 10;

/// About how many bytes an effect takes in the log.
fn bytes_of(effect: &Effect) -> usize {
    const OTHERS: usize = 32;
    OTHERS
        + match effect {
            Effect::Put { key, value, .. } | Effect::Tell { key, value, .. } => key.len() + value.len(),
            Effect::Remove { key, .. } => key.len(),
            _ => 0,
        }
}

/// Effects, and what the caller is told.
pub(super) type Done<R> = (Effects, R);

/// What a write does while the commit mutex is held, and what it needs for that.
pub(super) struct Write<'a, R> {
    /// What it comes to.
    pub(super) evaluate: &'a dyn Fn(&LatestView<'_>, &Context) -> Result<Done<R>>,
    /// Reads from the B-tree what it looks at.
    pub(super) prefetch: &'a dyn Fn(&Arc<State>) -> Result<Prefetched>,
    /// Whether a reply without effects says that what was asked for is so already.
    pub(super) says_it_is_so: &'a dyn Fn(&R) -> bool,
    /// Whether it does not wait for a checkpoint to make room.
    pub(super) is_urgent: bool,
}

impl Shared {
    /// See [`Engine::execute`] and [`Engine::execute_fenced`](super::Engine::execute_fenced).
    pub(crate) fn execute(
        &self,
        command: Command,
        fences: &[Fence],
        durability: Durability,
    ) -> Result<Reply> {
        command.check_limits()?;
        if self.options.low_disk_bytes > 0 && command.asks_for_space() {
            self.room.check(&self.options)?;
        }
        self.write(
            &Write {
                evaluate: &|view, context| {
                    if !fences.is_empty() {
                        fence::check(view, context, fences)?;
                    }
                    let outcome = evaluate(view, context, &command)?;
                    Ok((outcome.effects, outcome.reply))
                },
                prefetch: &|state| prefetch(state, self.has_quotas.load(Ordering::Relaxed), &command),
                says_it_is_so: &|reply| says_it_is_so(&command, reply),
                // A lease must not run out because its renewal waits for a checkpoint; locks are few.
                is_urgent: matches!(command, Command::Lock(_)),
            },
            durability,
        )
    }

    /// Evaluates, logs, publishes, and waits as long as `durability` says.
    pub(super) fn write<R>(&self, write: &Write<'_, R>, durability: Durability) -> Result<R> {
        let shared = self;
        if shared.replica.is_some() {
            return Err(Error::InvalidRequest(
                "a replica is changed by the entries of its log only".to_owned(),
            ));
        }
        // Before the reply of a command without effects, too: whoever waits for a lock must hear
        // that it will never be released.
        shared.check_open().inspect_err(|_| shared.lock_waiters.notify_all())?;
        if !write.is_urgent {
            shared.wait_for_room()?;
        }
        let mut prefetched: Option<Prefetched> = None;
        let mut has_reserved = false;
        let (reply, ticket, sequence) = loop {
            let mut committer = shared.commit.lock();
            let time_ms = committer.now_ms(&*shared.options.clock).max(shared.due.seen_ms());
            if shared.due.keys() <= time_ms {
                // What is over for a commit is so for readers: a transaction that found it would never be committed.
                shared.due.saw(time_ms);
            }
            let state = shared.state.load();
            let view = LatestView {
                state: &state,
                sequence: committer.sequence,
                is_snapshot: false,
                next_id: committer.next_id,
                ends: &committer.ends,
                transactions: None,
                found_end: None.into(),
                prefetched: prefetched.as_ref(),
                may_read_disk: prefetched.is_some(),
                needs_disk: false.into(),
                earliest_due: shared.due.keys(),
                has_quotas: shared.has_quotas.load(Ordering::Relaxed),
            };
            let context = Context { sequence: committer.sequence + 1, time_ms };
            match (write.evaluate)(&view, &context) {
                Err(_) if view.needs_disk.get() => {
                    let state = Arc::clone(&state);
                    drop(committer);
                    prefetched = Some((write.prefetch)(&state)?);
                }
                Err(error) => return Err(error),
                Ok((effects, reply)) => {
                    if let Some((tree, last, key)) = view.found_end.take() {
                        committer.ends.found(tree, last, key);
                    }
                    if effects.is_empty() {
                        drop(committer);
                        if durability == Durability::Synced && (write.says_it_is_so)(&reply) {
                            shared.wal.sync()?;
                        }
                        return Ok(reply);
                    }
                    let bytes = if has_reserved { 0 } else { effects.iter().map(bytes_of).sum() };
                    if bytes > RESERVED_FROM {
                        // A segment that has room for it may have to be made first, and that takes as long as to write it:
                        // nobody else is to wait for that, least of all who renews a lease.
                        drop(committer);
                        shared.wal.reserve(bytes)?;
                        has_reserved = true;
                        continue;
                    }
                    let committed = shared.commit(&mut committer, &state, &context, &effects);
                    drop(committer);
                    let (ticket, wakeups) = committed.inspect_err(|_| shared.lock_waiters.notify_all())?;
                    // Subscribers and waiters run without the mutex; subscribers last, because
                    // theirs is a stranger's code, which may take its time.
                    if touches_locks(&effects) {
                        shared.lock_waiters.effects_applied(&effects);
                    }
                    drop(wakeups);
                    break (reply, ticket, context.sequence);
                }
            }
        };
        if durability == Durability::Synced {
            if let Err(error) = shared.wal.wait_durable(ticket) {
                shared.lock_waiters.notify_all();
                return Err(error);
            }
            shared.durable_sequence.fetch_max(sequence, Ordering::Relaxed);
        }
        Ok(reply)
    }
}
