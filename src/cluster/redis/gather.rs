//! Commands of many connections that become one entry.
//!
//! A Redis client sends a command and waits; fifty of them send fifty, and each, as an entry of its own, would pay for
//! being encoded, numbered, written, applied and answered alone. So while a group has an entry under way, what
//! other connections want of it is gathered, and is the next entry: when that one is through, or after [`LINGER`].
//! When nothing is under way a command goes at once. It is what a pipeline of one connection becomes as well.
//!
//! What is gathered stays what it was: each command is carried out by itself, one after the other, with a reply of its
//! own. Only what belongs to whole entries is shared: an entry that has to wait, because another transaction
//! holds one of its keys, makes all of it wait, to the deadline if need be, but not those behind it for longer than
//! `LINGER`; and one that is refused as a whole is carried out again command by command, so that nobody is refused for what
//! another asked.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::strings::{StringAction, StringsOperation, StringsReply};
use futures_util::StreamExt;
use futures_util::future::join_all;
use futures_util::stream::FuturesUnordered;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::database::submit;
use super::entry::Filling;
use crate::cluster::{Client, Error};

/// The longest that a command waits for those before it.
const LINGER: Duration = Duration::from_millis(5);

type Outcome = Result<Vec<StringsReply>, Error>;

/// What one connection wants, and how it is told.
struct Wanted {
    operations: Vec<StringsOperation>,
    bytes: usize,
    told: oneshot::Sender<Outcome>,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Wanted>,
    is_running: bool,
}

/// See the [module](self).
#[derive(Clone, Default)]
pub(super) struct Gatherer {
    groups: Arc<Mutex<HashMap<u32, Queue>>>,
}

/// Whether this may share an entry: it writes, and its reply is short, so that those of an entry are, too.
pub(super) fn may_share(operation: &StringsOperation) -> bool {
    matches!(
        operation.action,
        StringAction::Set { get: false, .. }
            | StringAction::RequireAbsent { .. }
            | StringAction::Delete
            | StringAction::Append { .. }
            | StringAction::Overwrite { .. }
            | StringAction::Add { .. }
            | StringAction::AddFloat { .. }
            | StringAction::Expire { .. }
            | StringAction::Persist
            | StringAction::Tell { .. }
    )
}

impl Gatherer {
    /// Has operations carried out by a group, in one entry, perhaps with others', in the order of these calls.
    pub(super) fn push(&self, client: &Client, group: u32, operations: Vec<StringsOperation>) -> Pending {
        let (told, outcome) = oneshot::channel();
        let bytes = operations.iter().map(StringsOperation::bytes).sum();
        let begins = {
            let mut groups = self.groups.lock();
            let queue = groups.entry(group).or_default();
            queue.waiting.push(Wanted { operations, bytes, told });
            !std::mem::replace(&mut queue.is_running, true)
        };
        if begins {
            let end = End { gatherer: self.clone(), group, is_done: false };
            let client = client.clone();
            tokio::spawn(async move { end.run(&client).await });
        }
        Pending(outcome)
    }

    /// What fits into one entry of what waits.
    fn next(&self, group: u32, is_idle: bool) -> Next {
        let mut groups = self.groups.lock();
        let queue = groups.entry(group).or_default();
        if queue.waiting.is_empty() {
            queue.is_running = !is_idle;
            return if is_idle { Next::Done } else { Next::Wait };
        }
        let mut filling = Filling::default();
        let fits = |wanted: &&Wanted| filling.fits(&wanted.operations, wanted.bytes);
        let count = queue.waiting.iter().take_while(fits).count();
        let later = queue.waiting.split_off(count);
        Next::Entry(std::mem::replace(&mut queue.waiting, later))
    }
}

/// What comes of what was [pushed](Gatherer::push), whether anybody waits for it or not.
pub(super) struct Pending(oneshot::Receiver<Outcome>);

impl Pending {
    /// The replies.
    ///
    /// # Errors
    /// As [`submit`].
    pub(super) async fn outcome(self) -> Outcome {
        self.0.await.unwrap_or_else(|_| Err(Error::OutcomeUnknown("the node is stopping".to_owned())))
    }
}

enum Next {
    Entry(Vec<Wanted>),
    /// Nothing waits, and something is under way.
    Wait,
    Done,
}

/// If the task is dropped or panics, those that wait are told, and the next command begins another.
struct End {
    gatherer: Gatherer,
    group: u32,
    is_done: bool,
}

impl End {
    /// Has everything carried out until nothing waits.
    async fn run(mut self, client: &Client) {
        let group = self.group;
        let mut under_way = FuturesUnordered::new();
        // Those that have been read together are to go together.
        tokio::task::yield_now().await;
        loop {
            match self.gatherer.next(group, under_way.is_empty()) {
                Next::Entry(wanted) => under_way.push(carry_out(client, group, wanted)),
                Next::Wait => {}
                Next::Done => {
                    self.is_done = true;
                    return;
                }
            }
            tokio::select! {
                biased;
                _ = under_way.next() => {}
                () = tokio::time::sleep(LINGER) => {}
            }
        }
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if !self.is_done {
            self.gatherer.groups.lock().remove(&self.group);
        }
    }
}

async fn carry_out(client: &Client, group: u32, wanted: Vec<Wanted>) {
    let (mut operations, mut shares) = (Vec::new(), Vec::with_capacity(wanted.len()));
    for Wanted { operations: own, told, .. } in wanted {
        shares.push((own.len(), told));
        operations.extend(own);
    }
    // Kept for another attempt only where there may be one.
    let kept = (shares.len() > 1).then(|| operations.clone());
    match (submit(client, group, Vec::new(), &[], operations).await, kept) {
        (Ok(replies), _) => {
            let mut replies = replies.unwrap_or_default().into_iter();
            for (count, told) in shares {
                // An error means that the connection has ended.
                let _ = told.send(Ok(replies.by_ref().take(count).collect()));
            }
        }
        (Err(error), Some(operations)) if is_refused(&error) => {
            let mut operations = operations.into_iter();
            let alone = shares.into_iter().map(|(count, told)| {
                let own: Vec<StringsOperation> = operations.by_ref().take(count).collect();
                async move {
                    let outcome = submit(client, group, Vec::new(), &[], own).await;
                    let _ = told.send(outcome.map(Option::unwrap_or_default));
                }
            });
            join_all(alone).await;
        }
        (Err(error), _) => {
            for (_, told) in shares {
                let _ = told.send(Err(error.clone()));
            }
        }
    }
}

/// Whether nothing was done because of what was asked for.
fn is_refused(error: &Error) -> bool {
    error.is_definite() && !matches!(error, Error::Unavailable(_) | Error::Closed)
}
