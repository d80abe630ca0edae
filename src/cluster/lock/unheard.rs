//! What nobody hears of is given back: a grant or a place in the queue whose asker has gone.
//!
//! Asking for a lock is a command that is carried out whether or not somebody still waits for its answer. A lock
//! with a lease of its own would only be held for nothing until that ends; one that lives with a session would be held,
//! or stood in line for, as long as the session is kept alive, and every later attempt would queue behind it.
//!
//! So the asking is a task of its own. If the future that waits for it is dropped, the answer is: and dropping
//! that gives back what it says. If the outcome is not known, the number of the command is asked until it is. And
//! whatever is given back is given back until somebody has answered, or the lease or session has ended it.

use std::time::Duration;

use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::{Answer, Command, Operation, Reply};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Lock;
use super::wait::{LogTime, WAIT_LEASE};
use crate::cluster::core::{Failed, unexpected};
use crate::cluster::session::Numbered;
use crate::cluster::until::Asked;
use crate::cluster::{Error, Result};

/// An answer on its way to whoever asked. Dropped unread, it is undone.
struct Answered {
    lock: Lock,
    reply: Option<(LockReply, LogTime)>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        if let Some((reply, _)) = self.reply.take() {
            self.lock.give_back(&reply);
        }
    }
}

impl Lock {
    /// Has a command that takes the lock, or a place in line, carried out.
    pub(super) async fn ask_for(&self, command: LockCommand) -> Result<(LockReply, LogTime)> {
        let until = self.client.until();
        let group = self.client.core().group_of(&self.name, until).await?;
        let (sender, receiver) = oneshot::channel();
        let lock = self.clone();
        // The lease is counted from before it can have begun: what is left of it is never overstated.
        let asked = Asked::now();
        let finishing = self.client.core().finishing.begin();
        self.client.runtime().spawn(async move {
            let _finishing = finishing;
            let operation = Operation::Command(Command::Lock(command));
            match lock.client.core().carry_out(group, Vec::new(), operation, until).await {
                Ok(reply) => {
                    let told = match reply.result {
                        Ok(Answer::Reply(Reply::Lock(answer))) => {
                            let known = LogTime { ms: reply.time_ms, asked };
                            Ok(Answered { lock, reply: Some((answer, known)) })
                        }
                        other => Err(unexpected(&other)),
                    };
                    // If nobody is there it comes back, and is dropped.
                    drop(sender.send(told));
                }
                Err(Failed { error, number }) => {
                    drop(sender.send(Err(error)));
                    if let Some(number) = number {
                        lock.undo(group, number).await;
                    }
                }
            }
        });
        let mut answered = receiver.await.unwrap_or(Err(Error::Closed))?;
        Ok(answered.reply.take().expect("it is taken once"))
    }

    /// Finds out what came of a command whose answer was not heard, and gives that back.
    async fn undo(&self, group: u32, number: Numbered) {
        let core = self.client.core();
        let begun = Instant::now();
        let mut attempt = 0;
        while self.may_still_matter(begun) && !core.is_closed() {
            // Whatever comes under the number is told what became of the first; if that has not come, it never will.
            let told = core.repeat(group, &number, Operation::Nothing, self.client.until()).await;
            match told.map(|reply| reply.result) {
                Ok(Ok(Answer::Reply(Reply::Lock(reply)))) => return self.give_back(&reply),
                Ok(_) | Err(Error::Closed | Error::Incompatible(_) | Error::Invalid(_)) => return,
                Err(_) => core.before_next_attempt(attempt).await,
            }
            attempt += 1;
        }
    }

    fn give_back(&self, reply: &LockReply) {
        let (name, owner) = (self.name.clone(), self.owner.clone());
        match reply {
            LockReply::Acquired { token, .. } => {
                self.carry_through(LockCommand::Release { name, owner, token: *token });
            }
            LockReply::Waiting { ticket, .. } => {
                self.carry_through(LockCommand::CancelWait { name, ticket: *ticket });
            }
            _ => {}
        }
    }

    /// Has something given back, in the background, however often it has to be asked for.
    pub(super) fn carry_through(&self, command: LockCommand) {
        let lock = self.clone();
        let finishing = self.client.core().finishing.begin();
        self.client.runtime().spawn(async move {
            let _finishing = finishing;
            let begun = Instant::now();
            let mut attempt = 0;
            while lock.may_still_matter(begun) && !lock.client.core().is_closed() {
                match lock.execute(command.clone()).await {
                    Ok(_) | Err(Error::Closed | Error::Incompatible(_) | Error::Invalid(_)) => return,
                    Err(_) => lock.client.core().before_next_attempt(attempt).await,
                }
                attempt += 1;
            }
        });
    }

    /// Whether what was taken since `begun` may still be there if it was not given back.
    fn may_still_matter(&self, begun: Instant) -> bool {
        match &self.session {
            Some(session) => !session.is_lost(),
            // A place in line is over by then, and a lease that is not renewed at its own end: this is to end it
            // sooner, and not for ever.
            None => begun.elapsed() < WAIT_LEASE + Duration::from_secs(30),
        }
    }
}
