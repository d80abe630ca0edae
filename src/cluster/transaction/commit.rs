//! Committing what a closure has read and wants to write: in one group at once, in several by two-phase
//! commit (see [`dogsled_storage::transaction`]), and if nothing is written by looking once more.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::ring;
use dogsled_storage::transaction::coordinator::{
    Coordinator, Phase, Request, Share, home_by_chance, home_in_order,
};
use dogsled_storage::transaction::{KEEP_DECISION_MS, Reason};
use dogsled_storage::{
    Answer, Command, Decision, GroupRead, GroupReadReply, Operation, Part, Refusal, Reply, TransactionId,
    Vote,
};
use futures_util::future::join_all;
use tokio::time::Instant;

use super::sets::Sets;
use crate::IVec;
use crate::cluster::core::{Core, Failed, unexpected};
use crate::cluster::session::Numbered;
use crate::cluster::{Client, Error, ReadFrom, Result};

/// How long a prepared part may keep its locks when nothing is heard of its transaction, and how long
/// the decision may take.
pub(super) const LEASE: Duration = Duration::from_secs(5);
/// How long what a decision is told to is asked to hear it. Whoever does not has it from home.
pub(super) const TELL: Duration = Duration::from_secs(10);
/// From the attempt with this number on the parts are prepared in order.
const IN_ORDER: u32 = 3;

/// How committing ended.
pub(super) enum Committed {
    Yes,
    /// Something that was read has changed, or is locked.
    Conflict,
}

/// Why it is not known how committing ended, or certain that it did not happen.
pub(super) enum CommitError {
    Unknown(String, Unsettled),
    Cluster(Error),
}

impl From<Error> for CommitError {
    fn from(error: Error) -> CommitError {
        CommitError::Cluster(error)
    }
}

/// What became of a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It has happened.
    Committed,
    /// It has not happened, and will not.
    Aborted,
    /// The cluster does not know any more: it was asked too late.
    Forgotten,
}

/// A transaction whose outcome was not heard, to ask by. Clones are the same.
///
/// The cluster remembers for about a minute. While this is there it keeps a place among
/// the writes that may be under way ([`ClientOptions::max_pipelined_writes`](crate::cluster::ClientOptions)).
#[derive(Clone)]
pub struct Unsettled {
    client: Client,
    how: Arc<How>,
}

enum How {
    /// It was one numbered command: whatever comes under its number next is told what became of it.
    Numbered { group: u32, number: Numbered },
    /// Home remembers.
    Recorded { home: u32, transaction: TransactionId, decide_by_ms: u64 },
    /// Nobody does: the session that it was a command of has ended.
    Gone,
}

impl Unsettled {
    /// What became of it. If it has not happened so far, it never will: asking settles it.
    ///
    /// # Errors
    /// Those of [writing](crate::cluster#writes); ask again.
    pub async fn outcome(&self) -> Result<Outcome> {
        let until = self.client.until();
        let core = self.client.core();
        match &*self.how {
            How::Numbered { group, number } => {
                let reply = core.repeat(*group, number, Operation::Nothing, until).await?;
                Ok(match reply.result {
                    // Of a comparison, whatever it has come to.
                    Ok(Answer::Reply(Reply::Done | Reply::Compared(_))) => Outcome::Committed,
                    // The number is used up by this question, or the command came to nothing.
                    Ok(Answer::Done | Answer::Reply(Reply::Conflict))
                    | Err(
                        Refusal::Invalid(_)
                        | Refusal::TooLarge(_)
                        | Refusal::TreeNotFound(_)
                        | Refusal::TreeSealed(_)
                        | Refusal::LockNotHeld { .. }
                        | Refusal::QuotaExceeded(_),
                    ) => Outcome::Aborted,
                    Err(Refusal::SessionUnknown(_) | Refusal::Forgotten { .. }) => Outcome::Forgotten,
                    other => return Err(unexpected(&other)),
                })
            }
            How::Recorded { home, transaction, decide_by_ms } => {
                settle(core, *home, *transaction, *decide_by_ms, until).await
            }
            How::Gone => Ok(Outcome::Forgotten),
        }
    }
}

impl fmt::Debug for Unsettled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut debug = f.debug_struct("Unsettled");
        match &*self.how {
            How::Numbered { group, number } => {
                debug.field("group", group).field("session", &number.tag.session);
            }
            How::Recorded { home, transaction, .. } => {
                debug.field("home", home).field("transaction", &format_args!("{transaction}"));
            }
            How::Gone => {}
        }
        debug.finish_non_exhaustive()
    }
}

async fn settle(
    core: &Core,
    home: u32,
    transaction: TransactionId,
    decide_by_ms: u64,
    until: Instant,
) -> Result<Outcome> {
    let reply = core.operate(home, Operation::Settle { transaction, decide_by_ms }, until).await?;
    match reply.result {
        Ok(Answer::Decided(Decision::Committed)) => Ok(Outcome::Committed),
        // Only of what is asked so late that a commit would have been forgotten by now.
        Ok(Answer::Decided(Decision::Aborted(Reason::Presumed)))
            if reply.time_ms >= decide_by_ms.saturating_add(KEEP_DECISION_MS) =>
        {
            Ok(Outcome::Forgotten)
        }
        Ok(Answer::Decided(Decision::Aborted(_))) => Ok(Outcome::Aborted),
        other => Err(unexpected(&other)),
    }
}

fn definite(failed: Failed) -> CommitError {
    match failed.error {
        // Nobody else could have committed it.
        Error::OutcomeUnknown(why) => {
            CommitError::Cluster(Error::Unavailable(format!("a partition could not be prepared: {why}")))
        }
        error => CommitError::Cluster(error),
    }
}

/// Whether all that was read was so at one moment.
///
/// The moment is any between the last read and the first look here. A key that has the version now that it had when it was
/// read has had it all the time, and so in that moment; and no transaction has decided on
/// it meanwhile, because a look waits for those that are prepared. Versions never come again, but
/// absence does: so of what was absent (and of ranges, where something may have been absent), each group
/// is asked, too, whether anything was removed from the tree since. With one group there is no
/// need for that: all that it looks at is so at the moment of its look.
///
/// What was shown to the closure, of one moment already, is of that moment if it has not read anything else.
pub(super) async fn was_one_moment(client: &Client, sets: &Sets, until: Instant) -> Result<bool> {
    if sets.is_of_one_moment() {
        return Ok(true);
    }
    is_still_so(client, sets, None, until).await
}

/// Whether all that was read is still so; and if it is locked, whether it still is. Then nothing can have come and
/// gone, and nobody is asked for that.
pub(super) async fn is_still_so(
    client: &Client,
    sets: &Sets,
    locked: Option<TransactionId>,
    until: Instant,
) -> Result<bool> {
    let core = client.core();
    let partitions = core.partitions(until).await?;
    let shares = sets.shares(|tree, key| ring::group_in(tree, key, partitions));
    let several = shares.len() > 1;
    let looks = shares.into_iter().map(|(group, share)| async move {
        let since = if several && locked.is_none() { sets.first_read(group) } else { None };
        let Share { trees, part } = share;
        let (reads, ranges) = (part.reads, part.ranges);
        let read = GroupRead::Validate { trees, reads, ranges, since, under: locked };
        match core.read(group, &read, ReadFrom::Leader, until).await?.reply {
            GroupReadReply::Valid(valid) => Ok(valid),
            other => Err(unexpected(&other)),
        }
    });
    let mut all = true;
    for valid in join_all(looks).await {
        all &= valid?;
    }
    Ok(all)
}

/// Commits, if all that was read is still so.
pub(super) async fn commit(
    client: &Client,
    sets: &Sets,
    attempt: u32,
    until: Instant,
) -> Result<Committed, CommitError> {
    if sets.only_reads() {
        let valid = was_one_moment(client, sets, until).await?;
        return Ok(if valid { Committed::Yes } else { Committed::Conflict });
    }
    let partitions = client.core().partitions(until).await?;
    let mut shares = sets.shares(|tree, key| ring::group_in(tree, key, partitions));
    match shares.len() {
        0 => Ok(Committed::Yes),
        1 => {
            let (group, share) = shares.pop_first().expect("there is one");
            in_one(client, group, share, until).await
        }
        _ => in_several(client, shares, attempt >= IN_ORDER, until).await,
    }
}

async fn in_one(client: &Client, group: u32, share: Share, until: Instant) -> Result<Committed, CommitError> {
    let Share { trees, part: Part { reads, ranges, writes, expiries } } = share;
    let command = Command::Transact { reads, ranges, writes, expiries };
    in_one_command(client, group, trees, command, until, |reply| match reply {
        Reply::Done => Some(Committed::Yes),
        Reply::Conflict => Some(Committed::Conflict),
        _ => None,
    })
    .await
}

/// Has a command carried out that is all of a transaction; what its reply means, which is one that `read` knows.
pub(super) async fn in_one_command<T>(
    client: &Client,
    group: u32,
    trees: Vec<IVec>,
    command: Command,
    until: Instant,
    read: impl FnOnce(&Reply) -> Option<T>,
) -> Result<T, CommitError> {
    let unknown = |error: Error, how: How| {
        // An error that does not know is the outcome's, never that of a call which did nothing.
        let why = match error {
            Error::OutcomeUnknown(why) => why,
            error => error.to_string(),
        };
        Err(CommitError::Unknown(why, Unsettled { client: client.clone(), how: Arc::new(how) }))
    };
    match client.core().carry_out(group, trees, Operation::Command(command), until).await {
        Ok(reply) => {
            let known = match &reply.result {
                Ok(Answer::Reply(reply)) => read(reply),
                _ => None,
            };
            known.map_or_else(|| unknown(unexpected(&reply.result), How::Gone), Ok)
        }
        Err(Failed { error, .. }) if error.is_definite() => Err(error.into()),
        Err(Failed { error, number: Some(number) }) => unknown(error, How::Numbered { group, number }),
        Err(Failed { error, number: None }) => unknown(error, How::Gone),
    }
}

async fn in_several(
    client: &Client,
    shares: BTreeMap<u32, Share>,
    in_order: bool,
    until: Instant,
) -> Result<Committed, CommitError> {
    let core = client.core();
    let home = if in_order { home_in_order(&shares) } else { home_by_chance(&shares, core.next_random()) };
    let lease_ms = LEASE.as_millis() as u64;
    let decide_by_ms = core.log_time_ms(home, until).await? + lease_ms;
    let mut unfinished = Unfinished {
        client: client.clone(),
        coordinator: Some(Coordinator::new(core.fresh_transaction(), home, decide_by_ms, shares)),
    };
    let coordinator = unfinished.coordinator.as_mut().expect("just made");
    let mut failure = None;
    let participants = coordinator.participants();
    let rounds: Vec<&[u32]> =
        if in_order { participants.chunks(1).collect() } else { vec![&participants[..]] };
    for groups in rounds {
        let prepares = groups.iter().map(|group| {
            let Request { trees, operation } = coordinator.prepare(*group, lease_ms);
            async move { (*group, core.carry_out(*group, trees, operation, until).await) }
        });
        // All of them, whatever one says: what is under way cannot be called back.
        for (group, voted) in join_all(prepares.collect::<Vec<_>>()).await {
            match voted.map(|reply| reply.result) {
                Ok(Ok(Answer::Vote(vote))) => coordinator.voted(group, Some(vote)),
                Ok(other) => {
                    coordinator.voted(group, None);
                    failure = Some(unexpected(&other).into());
                }
                Err(failed) => {
                    // Of an error that says so, nothing was prepared.
                    let vote = failed.error.is_definite().then_some(Vote::Conflict);
                    coordinator.voted(group, vote);
                    failure = Some(definite(failed));
                }
            }
        }
        if coordinator.phase() == Phase::Aborted {
            break;
        }
    }
    let Some(Request { trees, operation }) = coordinator.commit() else {
        return failure.map_or(Ok(Committed::Conflict), Err);
    };
    match core.carry_out(home, trees, operation, until).await {
        Ok(reply) => match reply.result {
            Ok(Answer::Decided(decision)) => coordinator.decided(&decision),
            other => {
                let transaction = coordinator.transaction();
                let how = Arc::new(How::Recorded { home, transaction, decide_by_ms });
                let unsettled = Unsettled { client: client.clone(), how };
                return Err(CommitError::Unknown(unexpected(&other).to_string(), unsettled));
            }
        },
        Err(failed) if failed.error.is_definite() => {
            coordinator.not_sent();
            return Err(failed.error.into());
        }
        Err(failed) => {
            let (transaction, error) = (coordinator.transaction(), failed.error);
            // Perhaps only its session is gone, and home can tell.
            match settle(core, home, transaction, decide_by_ms, until).await {
                Ok(Outcome::Committed) => coordinator.decided(&Decision::Committed),
                Ok(Outcome::Aborted) => coordinator.decided(&Decision::Aborted(Reason::Settled)),
                Ok(Outcome::Forgotten) | Err(_) => {
                    let how = Arc::new(How::Recorded { home, transaction, decide_by_ms });
                    let unsettled = Unsettled { client: client.clone(), how };
                    return Err(CommitError::Unknown(error.to_string(), unsettled));
                }
            }
        }
    }
    Ok(match coordinator.phase() {
        Phase::Committed => Committed::Yes,
        _ => Committed::Conflict,
    })
}

/// A transaction whose participants are to be told, in the background, however its coordinator ended:
/// with the decision, by an error, or because its future was dropped.
struct Unfinished {
    client: Client,
    coordinator: Option<Coordinator>,
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(mut coordinator) = self.coordinator.take() else { return };
        // Dropped before Commit was sent, it will never be. Afterwards, what is not known is left to those who
        // meet the locks.
        coordinator.abort();
        if coordinator.resolves().is_empty() && !coordinator.may_be_forgotten() {
            return;
        }
        let core = self.client.shared_core();
        let finishing = core.finishing.begin();
        self.client.runtime().spawn(async move {
            let _finishing = finishing;
            finish(&core, coordinator).await;
        });
    }
}

/// Tells the participants what was decided, and home when all know.
async fn finish(core: &Arc<Core>, mut coordinator: Coordinator) {
    let until = Instant::now() + TELL;
    let told = coordinator
        .resolves()
        .into_iter()
        .map(|(group, operation)| async move { (group, core.operate(group, operation, until).await) });
    for (group, told) in join_all(told).await {
        if told.is_ok_and(|reply| reply.result == Ok(Answer::Done)) {
            coordinator.resolved(group);
        }
    }
    if coordinator.may_be_forgotten() {
        core.forget(coordinator.home(), coordinator.transaction());
    }
}
