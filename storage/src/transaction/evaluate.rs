//! What the operations of transactions mean: pure, as [`crate::evaluate`] is.

use super::{
    Commit, DECISION, Decided, Decision, Guarded, LockedBy, MAX_AHEAD_MS, MAX_FORGET, MAX_LEASE_MS, PREPARED,
    Part, Prepare, Prepared, Reason, TransactionId, Transactions, Vote, key,
};
use crate::codec::{encode_decided, encode_prepared};
use crate::command::TreeId;
use crate::evaluate::{Context, Effect, Effects, View, effects_of_writes, is_current, is_range_current};
use crate::expiry::LiveView;
use crate::group::{Answer, Refusal};
use crate::session::Done;
use crate::{IVec, Result, expiry, quota};

/// Why a part cannot be committed as it stands.
enum No {
    Conflict,
    Locked(LockedBy),
}

fn refuse(what: impl Into<String>) -> Result<Done> {
    Ok((Effects::new(), Err(Refusal::Invalid(what.into()))))
}

fn answer(effects: Effects, answer: Answer) -> Result<Done> {
    Ok((effects, Ok(answer)))
}

fn is_part_current(view: &impl View, context: &Context, part: &Part) -> Result<bool> {
    let mut current = expiry::demands_hold(view, context, &part.expiries)?;
    for read in &part.reads {
        current = current && is_current(view, read)?;
    }
    for range in &part.ranges {
        current = current && is_range_current(view, range)?;
    }
    Ok(current)
}

/// Whether all that was read is still so, and no lock of another stands in the way.
fn examine(
    view: &impl View,
    transactions: &Transactions,
    context: &Context,
    part: &Part,
) -> Result<std::result::Result<(), No>> {
    let guarded = Guarded::new(view, transactions);
    // Keys that have expired are not read by anybody.
    let current = if view.earliest_due()? <= context.time_ms {
        is_part_current(&LiveView::new(&guarded, context.time_ms), context, part)?
    } else {
        is_part_current(&guarded, context, part)?
    };
    if !current {
        return Ok(Err(No::Conflict));
    }
    let locked = guarded
        .stopped_by(&[])
        .or_else(|| part.written().find_map(|(tree, key)| transactions.against_write(tree, key)));
    Ok(locked.map_or(Ok(()), |lock| Err(No::Locked(lock))))
}

/// What is asked for and cannot be done is an answer, as it is of any other command. Nobody could go on behind an entry
/// that fails on every replica.
fn refused(done: Result<Done>) -> Result<Done> {
    match done {
        Err(error) => Ok((Effects::new(), Err(Refusal::of(error)?))),
        done => done,
    }
}

/// The answer to a part that could not be applied, whatever is there.
fn refuse_expiries(view: &impl View, context: &Context, part: &Part) -> Result<Option<Done>> {
    let checked = expiry::check_list(view, &part.writes, &part.expiries);
    match checked.and_then(|()| expiry::demands_hold(view, context, &part.expiries)) {
        Ok(_) => Ok(None),
        Err(error) => Ok(Some((Effects::new(), Err(Refusal::of(error)?)))),
    }
}

/// What a part comes to, as of the time at which it was validated.
fn effects_of_part(view: &impl View, context: &Context, part: &Part) -> Result<Effects> {
    let mut effects = effects_of_writes(view, &part.writes)?;
    expiry::extend_live(view, context, &part.writes, &part.expiries, &mut effects)?;
    Ok(effects)
}

/// [`Operation::Prepare`](crate::Operation::Prepare). `trees` are effects that make the trees that are
/// missing: a lock names its tree by number, so the tree is there as long as the lock.
pub(crate) fn prepare(
    view: &impl View,
    transactions: &Transactions,
    context: &Context,
    trees: Effects,
    prepare: &Prepare,
) -> Result<Done> {
    refused(vote(view, transactions, context, trees, prepare))
}

fn vote(
    view: &impl View,
    transactions: &Transactions,
    context: &Context,
    trees: Effects,
    prepare: &Prepare,
) -> Result<Done> {
    let Prepare { transaction, home, decide_by_ms, lease_ms, only_lock, part } = prepare;
    if !(1..=MAX_LEASE_MS).contains(lease_ms) {
        return refuse(format!("the lease of a prepared transaction is 1 to {MAX_LEASE_MS} ms"));
    }
    if *decide_by_ms > context.time_ms.saturating_add(MAX_AHEAD_MS) {
        return refuse(format!("a decision until {decide_by_ms} is too far off: it is {}", context.time_ms));
    }
    if transactions.is_prepared(*transaction) {
        return answer(Effects::new(), Answer::Vote(Vote::Yes));
    }
    if let Some(refused) = refuse_expiries(view, context, part)? {
        return Ok(refused);
    }
    if *only_lock {
        if !part.only_reads() {
            return refuse("a part that is only to be locked writes something");
        }
    } else {
        match examine(view, transactions, context, part)? {
            Ok(()) => {}
            Err(No::Conflict) => return answer(Effects::new(), Answer::Vote(Vote::Conflict)),
            Err(No::Locked(lock)) => return answer(Effects::new(), Answer::Vote(Vote::Locked(lock))),
        }
        if view.has_quotas()? {
            // What it would come to: when it is resolved it is not judged any more.
            let mut effects = effects_of_part(view, context, part)?;
            if let Err(error) = quota::charge(view, &mut effects) {
                return Ok((Effects::new(), Err(Refusal::of(error)?)));
            }
        }
    }
    let prepared = Prepared {
        home: *home,
        decide_by_ms: *decide_by_ms,
        expires_ms: context.time_ms.saturating_add(*lease_ms),
        // Who only locks reads afterwards, and decides nothing that others could see before that: no end is kept from
        // being seen by him, least of all from being seen by himself.
        prepared_ms: if *only_lock { u64::MAX } else { context.time_ms },
        part: if *only_lock && part.is_empty() { Part::of_everything() } else { part.clone() },
    };
    let mut effects = trees;
    effects.push(Effect::Put {
        tree: TreeId::TRANSACTIONS,
        key: key(PREPARED, *transaction),
        value: IVec::from(encode_prepared(&prepared)),
        fresh: Some(true),
    });
    answer(effects, Answer::Vote(Vote::Yes))
}

fn record(transaction: TransactionId, decided: &Decided) -> Effect {
    Effect::Put {
        tree: TreeId::TRANSACTIONS,
        key: key(DECISION, transaction),
        value: IVec::from(encode_decided(decided)),
        fresh: Some(true),
    }
}

fn recorded(transactions: &Transactions, transaction: TransactionId) -> Option<Decision> {
    let decided = transactions.decided(transaction)?;
    Some(if decided.committed { Decision::Committed } else { Decision::Aborted(Reason::Settled) })
}

/// [`Operation::Commit`](crate::Operation::Commit). No abort that is decided here is recorded: the number
/// of the command is used up, so no other answer to this Commit can be heard, and to whoever settles
/// later it is an abort that is not there yet.
pub(crate) fn commit(
    view: &impl View,
    transactions: &Transactions,
    context: &Context,
    commit: &Commit,
) -> Result<Done> {
    refused(decide(view, transactions, context, commit))
}

fn decide(view: &impl View, transactions: &Transactions, context: &Context, commit: &Commit) -> Result<Done> {
    let Commit { transaction, decide_by_ms, participants, part } = commit;
    let decided = |decision| answer(Effects::new(), Answer::Decided(decision));
    if *decide_by_ms > context.time_ms.saturating_add(MAX_LEASE_MS) {
        return refuse(format!("a decision may be at most {MAX_LEASE_MS} ms off"));
    }
    if let Some(decision) = recorded(transactions, *transaction) {
        return decided(decision);
    }
    if context.time_ms >= *decide_by_ms {
        return decided(Decision::Aborted(Reason::TooLate));
    }
    if let Some(refused) = refuse_expiries(view, context, part)? {
        return Ok(refused);
    }
    match examine(view, transactions, context, part)? {
        Ok(()) => {}
        Err(No::Conflict) => return decided(Decision::Aborted(Reason::Conflict)),
        Err(No::Locked(lock)) => return decided(Decision::Aborted(Reason::Locked(lock))),
    }
    let mut effects = effects_of_part(view, context, part)?;
    if let Err(error) = quota::charge(view, &mut effects) {
        return Ok((Effects::new(), Err(Refusal::of(error)?)));
    }
    let participants = participants.clone();
    effects
        .push(record(*transaction, &Decided { committed: true, decide_by_ms: *decide_by_ms, participants }));
    answer(effects, Answer::Decided(Decision::Committed))
}

/// [`Operation::Settle`](crate::Operation::Settle).
pub(crate) fn settle(
    transactions: &Transactions,
    context: &Context,
    transaction: TransactionId,
    decide_by_ms: u64,
) -> Result<Done> {
    if let Some(decision) = recorded(transactions, transaction) {
        return answer(Effects::new(), Answer::Decided(decision));
    }
    if context.time_ms >= decide_by_ms {
        return answer(Effects::new(), Answer::Decided(Decision::Aborted(Reason::Presumed)));
    }
    if decide_by_ms > context.time_ms.saturating_add(2 * MAX_AHEAD_MS) {
        return refuse(format!("a decision until {decide_by_ms} is too far off: it is {}", context.time_ms));
    }
    let mut effects = Effects::new();
    effects.push(record(transaction, &Decided { committed: false, decide_by_ms, participants: Vec::new() }));
    answer(effects, Answer::Decided(Decision::Aborted(Reason::Settled)))
}

/// [`Operation::Resolve`](crate::Operation::Resolve).
pub(crate) fn resolve(
    view: &impl View,
    transactions: &Transactions,
    context: &Context,
    transaction: TransactionId,
    commit: bool,
) -> Result<Done> {
    let Some(prepared) = transactions.prepared(transaction) else {
        return answer(Effects::new(), Answer::Done);
    };
    let mut effects = Effects::new();
    if commit {
        // What has expired since was locked, and is as it was.
        let then = Context { time_ms: prepared.prepared_ms.min(context.time_ms), ..*context };
        effects = effects_of_part(view, &then, &prepared.part)?;
    }
    effects.push(Effect::Remove { tree: TreeId::TRANSACTIONS, key: key(PREPARED, transaction) });
    answer(effects, Answer::Done)
}

/// [`Operation::Forget`](crate::Operation::Forget).
pub(crate) fn forget(
    transactions: &Transactions,
    context: &Context,
    forgotten: &[TransactionId],
) -> Result<Done> {
    if forgotten.len() > MAX_FORGET {
        return refuse(format!(
            "{} transactions to forget are over the limit of {MAX_FORGET}",
            forgotten.len()
        ));
    }
    let mut forgotten = forgotten.to_vec();
    forgotten.sort_unstable();
    forgotten.dedup();
    // An abort stands in the way of its Commit until that would come too late.
    let may_go = |decided: &Decided| decided.committed || context.time_ms >= decided.decide_by_ms;
    let known = forgotten
        .into_iter()
        .filter(|transaction| transactions.decided(*transaction).is_some_and(|decided| may_go(decided)));
    let effects = known
        .map(|transaction| Effect::Remove { tree: TreeId::TRANSACTIONS, key: key(DECISION, transaction) });
    answer(effects.collect(), Answer::Done)
}
