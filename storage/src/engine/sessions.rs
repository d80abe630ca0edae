//! Sessions of an embedded database: what an application is while it lives, and what dies with it.
//!
//! The operations are those of a replica ([`crate::session`]), evaluated by the same functions. What is different
//! is who proposes the end of a session: the thread of [`super::due`], which has seen the
//! whole lease pass on the monotonic clock since the database was opened. So sessions that were left by a process
//! that has died get their full lease again, as those of a cluster do from a new leader.

use super::execute::Write;
use super::{Durability, Engine, Shared};
use crate::evaluate::{Context, Effect};
use crate::group::{Answer, Refusal, SessionId};
use crate::session::{self, Done};
use crate::state::{LatestView, Prefetched};
use crate::{Error, OpenSession, Result, TreeId, open_sessions, quota};

impl Engine {
    /// Opens a session of an embedded database, or renews it with another lease; the log's time at which it ends.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] if the lease is 0 or the session has ended; those of
    /// [`Engine::execute`].
    pub fn open_session(&self, session: SessionId, lease_ms: u64, durability: Durability) -> Result<u64> {
        let open = self
            .shared
            .on_sessions(&|view, context| session::open(view, context, session, lease_ms), durability)?;
        expires(open.map_err(|refusal| Error::InvalidRequest(refusal.to_string()))?)
    }

    /// Starts a session's lease anew; the log's time at which it ends. `None`: it has ended.
    ///
    /// # Errors
    /// Those of [`Engine::execute`].
    pub fn renew_session(&self, session: SessionId, durability: Durability) -> Result<Option<u64>> {
        match self.shared.on_sessions(&|view, context| session::renew(view, context, session), durability)? {
            Ok(answer) => expires(answer).map(Some),
            Err(_) => Ok(None),
        }
    }

    /// The lease of a session in milliseconds; `None`: it has ended.
    ///
    /// # Errors
    /// Those of reading.
    pub fn session_lease(&self, session: SessionId) -> Result<Option<u64>> {
        let lease = std::cell::Cell::new(None);
        // It changes nothing, but sees what the newest commit has left.
        let read = self.shared.on_sessions(
            &|view, _| {
                lease.set(session::lease(view, session)?);
                Ok((Default::default(), Ok(Answer::Done)))
            },
            Durability::Buffered,
        );
        read.map(|_| lease.get())
    }

    /// The sessions that are open behind `after`, in the order of their numbers, at most `limit` and
    /// [`MAX_SESSIONS`](crate::open_sessions::MAX_SESSIONS), each with how many milliseconds are left of its lease;
    /// and whether there are more.
    ///
    /// # Errors
    /// Those of reading.
    pub fn open_sessions(
        &self,
        after: Option<SessionId>,
        limit: usize,
    ) -> Result<(Vec<(OpenSession, u64)>, bool)> {
        let (now_ms, led_ms) = (self.now_ms(), self.shared.led_ms());
        let (sessions, more) = open_sessions::page(&self.snapshot(), after, limit)?;
        let with_left = |session: OpenSession| {
            let left_ms = session.left_ms(now_ms, led_ms);
            (session, left_ms)
        };
        Ok((sessions.into_iter().map(with_left).collect(), more))
    }

    /// Ends a session: its keys are gone and its locks free when this returns.
    ///
    /// # Errors
    /// Those of [`Engine::execute`].
    pub fn close_session(&self, session: SessionId, durability: Durability) -> Result<()> {
        let close = |view: &LatestView<'_>, context: &Context| session::close(view, context, session);
        // It is never refused.
        let _ = self.shared.on_sessions(&close, durability)?;
        // What is too much to remove at once is left to be expired.
        self.expire_sessions().map(drop)
    }

    /// Ends those sessions whose whole lease has passed; how many. An embedded database with threads does so by
    /// itself.
    ///
    /// # Errors
    /// Those of [`Engine::execute`].
    pub fn expire_sessions(&self) -> Result<u64> {
        let mut ended = 0;
        loop {
            let (sessions, more) = self.shared.expire_sessions()?;
            ended += sessions;
            if !more {
                return Ok(ended);
            }
        }
    }
}

fn expires(answer: Answer) -> Result<u64> {
    match answer {
        Answer::Session { expires_ms } => Ok(expires_ms),
        other => unreachable!("an operation on a session was answered with {other:?}"),
    }
}

impl Shared {
    fn on_sessions(
        &self,
        evaluate: &dyn Fn(&LatestView<'_>, &Context) -> Result<Done>,
        durability: Durability,
    ) -> Result<Result<Answer, Refusal>> {
        self.write(
            &Write {
                evaluate: &|view, context| {
                    let (mut effects, answer) = evaluate(view, context)?;
                    // What dies with a session is counted where it was.
                    quota::charge(view, &mut effects)?;
                    Ok((effects, answer))
                },
                // What is looked at is known only by looking.
                prefetch: &|state| Ok(Prefetched::of(state)),
                says_it_is_so: &|answer| answer.is_ok(),
                // As the renewal of a lock.
                is_urgent: true,
            },
            durability,
        )
    }

    /// For how long this process has the database open, by the monotonic clock.
    fn led_ms(&self) -> u64 {
        self.options.clock.elapsed_ms().saturating_sub(self.due.opened_ms())
    }

    /// One step; how many sessions have ended, and whether there are more.
    pub(super) fn expire_sessions(&self) -> Result<(u64, bool)> {
        let answer = self.on_sessions(
            &|view, context| {
                let led_ms = self.led_ms();
                let done = session::expire(view, context, led_ms)?;
                if done.0.is_empty() {
                    let next = session::next_end(view, context.time_ms, led_ms)?;
                    // With the commit mutex held: no session is opened meanwhile that this would hide.
                    self.due.next_session(next);
                }
                Ok(done)
            },
            Durability::Buffered,
        )?;
        match answer {
            Ok(Answer::SessionsExpired { sessions, more }) => Ok((sessions, more)),
            Ok(other) => unreachable!("expiring sessions was answered with {other:?}"),
            Err(refusal) => unreachable!("expiring sessions was refused: {refusal}"),
        }
    }
}

/// When the first of these effects has a session end; `u64::MAX`: none does.
pub(super) fn first_end(effects: &[Effect]) -> u64 {
    let ends = effects.iter().filter_map(|effect| match effect {
        Effect::Put { tree: TreeId::SESSIONS, key, .. } => session::end_in_key(key),
        _ => None,
    });
    ends.min().unwrap_or(u64::MAX)
}
