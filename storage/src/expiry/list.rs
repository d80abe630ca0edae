//! What a transaction asks of times to live, strings, locks, and keys of sessions and with numbers, beside its plain writes.
//!
//! It is a list of [`ExpiryCommand`]s. A list is judged twice: whether it can be carried out at all ([`check_list`]), which
//! depends on nothing but the trees that there are, and whether all is as it demands ([`demands_hold`]). Where it is prepared
//! before it is committed both are asked then, as of that time, and what it comes to ([`extend`]) must be done later without a
//! refusal.

use std::collections::BTreeSet;

use super::check_tree;
use super::{
    ExpiryCommand, LiveView, OVER_BEFORE_IT_BEGINS, When, count_hidden, evaluate, expires, record_key,
};
use crate::command::{TreeId, Write};
use crate::evaluate::{Context, Effects, View};
use crate::lock::LockCommand;
use crate::owned::{self, OwnedPart};
use crate::strings::{self, StringAction};
use crate::{Error, Result, lock};

/// What is asked of times to live beside `writes` comes to, behind what those do; see
/// [`Command::Transact`]. `view` shows what has not expired.
///
/// # Errors
/// As [`check_list`], and those of reading the view.
pub(crate) fn extend(
    view: &impl View,
    context: &Context,
    writes: &[Write],
    expiries: &[ExpiryCommand],
    effects: &mut Effects,
) -> Result<()> {
    check_list(view, writes, expiries)?;
    let (mut operations, mut owned) = (Vec::new(), Vec::new());
    for command in expiries {
        match command {
            ExpiryCommand::Strings { .. } => operations.extend(command.operations()),
            ExpiryCommand::Owned { tree, key, value, session, is_numbered } => {
                owned.push(OwnedPart {
                    tree: *tree,
                    key,
                    value,
                    session: *session,
                    is_numbered: *is_numbered,
                });
            }
            ExpiryCommand::Lock { command, .. } => {
                effects.extend(lock::evaluate(view, context, command)?.effects);
            }
            ExpiryCommand::Held { .. } | ExpiryCommand::Lives { .. } => {}
            _ => effects.extend(evaluate(view, context, command)?.effects),
        }
    }
    owned::effects_of_parts(view, &owned, effects)?;
    if !operations.is_empty() {
        // All in one list: the hashes that it makes get different ids. A quota is not for one of them, which would be left
        // out while all else is done: it is for all of the list, and after the vote for nothing any more.
        effects.extend(strings::effects_of_part(view, context, &operations)?);
    }
    Ok(())
}

/// Whether all is as a list wants it: locks that are to be held are, and what is done to others comes to what it is for;
/// keys have the time to live that was read; numbers are still to be had.
///
/// # Errors
/// Those of the locks' operations; [`Error::InvalidRequest`] if a session that is to own a key is not open; those of
/// reading the view.
pub(crate) fn demands_hold(view: &impl View, context: &Context, expiries: &[ExpiryCommand]) -> Result<bool> {
    for command in expiries {
        let holds = match command {
            ExpiryCommand::Lock { command, .. } => lock::comes_to_it(view, context, command)?,
            ExpiryCommand::Held { key, token, .. } => lock::is_held(view, context.time_ms, key, *token)?,
            ExpiryCommand::Lives { tree, key, at_ms } => match view.version(*tree, key)? {
                Some(version) => {
                    let record = view.get(TreeId::EXPIRY, &record_key(*tree, key))?;
                    expires(record.as_ref(), version)? == *at_ms
                }
                None => false,
            },
            ExpiryCommand::Owned { tree, key, session, is_numbered, .. } => {
                session.map_or(Ok(()), |session| owned::check_open(view, session))?;
                !is_numbered || owned::is_to_be_had(view, *tree, key)?
            }
            _ => true,
        };
        if !holds {
            return Ok(false);
        }
    }
    Ok(true)
}

/// As [`extend`], over a view that shows all that is there, as of the time of `context`.
pub(crate) fn extend_live(
    view: &impl View,
    context: &Context,
    writes: &[Write],
    expiries: &[ExpiryCommand],
    effects: &mut Effects,
) -> Result<()> {
    if expiries.is_empty() || view.earliest_due()? > context.time_ms {
        return extend(view, context, writes, expiries, effects);
    }
    let mut own = Effects::new();
    extend(&LiveView::new(view, context.time_ms), context, writes, expiries, &mut own)?;
    count_hidden(view, context, &mut own)?;
    effects.extend(own);
    Ok(())
}

/// Refuses what cannot be a part of a transaction, whatever the state is but for the trees that are there.
///
/// # Errors
/// [`Error::InvalidRequest`], [`Error::TreeNotFound`].
pub(crate) fn check_list(view: &impl View, writes: &[Write], expiries: &[ExpiryCommand]) -> Result<()> {
    if expiries.is_empty() {
        return Ok(());
    }
    let refuse = |what: &str| Err(Error::InvalidRequest(what.to_owned()));
    let mut keys = BTreeSet::new();
    for command in expiries {
        match command {
            ExpiryCommand::Lock { tree, .. } | ExpiryCommand::Held { tree, .. } => {
                if *tree != TreeId::LOCKS {
                    return refuse("an operation of a lock names another tree than that of locks");
                }
            }
            _ => check_tree(view, command.tree())?,
        }
        match command {
            ExpiryCommand::Insert { when: When::After(0), .. }
            | ExpiryCommand::Set { when: When::After(0), .. } => {
                return refuse(OVER_BEFORE_IT_BEGINS);
            }
            ExpiryCommand::Insert { .. } | ExpiryCommand::Set { .. } | ExpiryCommand::Clear { .. } => {}
            ExpiryCommand::Lock {
                command:
                    LockCommand::TryAcquire { .. } | LockCommand::Renew { .. } | LockCommand::Release { .. },
                ..
            } => {}
            ExpiryCommand::Lock { .. } => {
                return refuse("a transaction takes, renews or gives back a lock, and does not wait for it");
            }
            // Any number of tokens of a lock may be asked for, and what was read may be written.
            ExpiryCommand::Held { .. } | ExpiryCommand::Lives { .. } => continue,
            ExpiryCommand::Owned { key, is_numbered: true, .. } if owned::number_of(key).is_none() => {
                return refuse(
                    "a numbered key does not end with a number of twenty digits that has a next one",
                );
            }
            ExpiryCommand::Owned { .. } => {}
            ExpiryCommand::Strings { actions, .. } => {
                let is_of_one_key = |action: &StringAction| {
                    !matches!(
                        action,
                        StringAction::Transfer { .. } | StringAction::Suspect { .. } | StringAction::Clear
                    )
                };
                if !actions.0.iter().all(is_of_one_key) {
                    return refuse("a transaction names every key that an operation is about");
                }
            }
            ExpiryCommand::Swap { .. } | ExpiryCommand::Get { .. } => {
                return refuse("a transaction has said what it compares and reads by its reads");
            }
        }
        if !keys.insert((command.tree(), command.key())) {
            return refuse(
                "two operations of one transaction are on one lock, or the time to live of one key",
            );
        }
    }
    if writes.iter().any(|write| keys.contains(&(write.tree, &write.key))) {
        return refuse("a transaction writes one key both with a time to live and without");
    }
    Ok(())
}
