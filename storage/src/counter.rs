//! Atomic counters, as commands.
//!
//! Promise: an addition is one command, so no two of them can read the same value and lose one
//! update; it is checked, so a counter never wraps around; and what is not carried out is told
//! with the value that stood in the way.
//!
//! A counter is a name and a signed 64-bit integer. One that was never written, or was removed,
//! reads as 0 and may be added to like any other.
//!
//! | command | when it applies | reply |
//! |---|---|---|
//! | [`CounterCommand::Add`] | the sum fits 64 bits | [`CounterReply::Added`] with the sum |
//! | | otherwise | [`CounterReply::Overflow`], nothing changed |
//! | [`CounterCommand::AddWithin`] | the sum is within `min..=max` | [`CounterReply::Added`] with the sum |
//! | | otherwise | [`CounterReply::OutOfBounds`], nothing changed |
//! | [`CounterCommand::Get`] | always | [`CounterReply::Value`] |
//! | [`CounterCommand::Set`] | always | [`CounterReply::Previous`] |
//! | [`CounterCommand::Remove`] | always | [`CounterReply::Previous`] |
//! | [`CounterCommand::SetIf`] | it stands at `expected` | [`CounterReply::Swapped`] |
//! | [`Command::CountMany`](crate::Command::CountMany) | every sum fits 64 bits | [`Reply::Counted`] |
//! | | otherwise | [`CounterReply::Overflow`] of the first that does not, nothing changed |
//!
//! Layout: in [`TreeId::COUNTERS`], key = the name, value = 8 bytes, the integer big-endian in
//! two's complement. Big-endian because it is what one expects to see in a hex dump; the order of
//! the bytes means nothing to the tree.
//!
//! Inside a transaction, [`evaluate`] runs over the transaction's own view, and its effects join
//! the transaction's writes. Two transactions that add to the same counter then conflict, as any
//! two that read and write one key do; for a hot counter use the command.
//!
//! Not here: exactly-once over retries, which sessions give, and counters spread over partitions.
//!
//! ```
//! use dogsled_storage::counter::{CounterCommand, CounterReply};
//! use dogsled_storage::model::ModelState;
//! use dogsled_storage::{Command, Reply};
//!
//! let mut state = ModelState::new();
//! let take_seat = Command::Counter(CounterCommand::AddWithin {
//!     name: "seats taken".into(),
//!     delta: 1,
//!     min: 0,
//!     max: 2,
//! });
//! for _ in 0..2 {
//!     state.execute(1_000, &take_seat)?;
//! }
//! let third = state.execute(1_000, &take_seat)?;
//! assert_eq!(third, Reply::Counter(CounterReply::OutOfBounds { current: 2 }));
//! # Ok::<(), dogsled_storage::Error>(())
//! ```

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use bincode::{Decode, Encode};

use crate::command::{Reply, TreeId};
use crate::evaluate::{Context, Effect, Effects, Outcome, View};
use crate::{Error, IVec, Result};

/// An operation of a counter. Its name is at most
/// [`MAX_NAME_LENGTH`](crate::command::MAX_NAME_LENGTH) bytes.
///
/// New variants are added at the end: the position of a variant is part of its encoding.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CounterCommand {
    /// Adds, if the sum fits. Reply: [`CounterReply::Added`] or [`CounterReply::Overflow`].
    Add {
        /// The counter.
        name: IVec,
        /// What to add; negative to subtract.
        delta: i64,
    },
    /// Adds, if the sum is within `min..=max`. Reply: [`CounterReply::Added`] or
    /// [`CounterReply::OutOfBounds`].
    ///
    /// Only the sum matters: a counter that is out of bounds already may be brought back within.
    AddWithin {
        /// The counter.
        name: IVec,
        /// What to add; negative to subtract.
        delta: i64,
        /// The least that the sum may be.
        min: i64,
        /// The most that the sum may be.
        max: i64,
    },
    /// Reads. Reply: [`CounterReply::Value`].
    Get {
        /// The counter.
        name: IVec,
    },
    /// Sets to a value; 0 is what `reset` means. Reply: [`CounterReply::Previous`].
    Set {
        /// The counter.
        name: IVec,
        /// Its new value.
        value: i64,
    },
    /// Removes the counter; it reads as 0 afterwards. Reply: [`CounterReply::Previous`].
    Remove {
        /// The counter.
        name: IVec,
    },
    /// Sets to a value if it stands at `expected`. Reply: [`CounterReply::Swapped`].
    SetIf {
        /// The counter.
        name: IVec,
        /// What it must stand at; a counter that is not there stands at 0.
        expected: i64,
        /// Its new value.
        value: i64,
    },
}

/// One of several additions that are made together; see [`Command::CountMany`](crate::Command::CountMany).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CounterAddition {
    /// The counter.
    pub name: IVec,
    /// What to add; negative to subtract.
    pub delta: i64,
}

/// Names of counters and what they stand at, sorted by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode)]
pub struct Sums(pub Vec<CounterAddition>);

/// What the caller of a [`CounterCommand`] is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum CounterReply {
    /// It was added.
    Added {
        /// The sum.
        value: i64,
    },
    /// The sum does not fit 64 bits; nothing was changed.
    Overflow {
        /// What the counter stands at.
        current: i64,
    },
    /// The sum would be out of the bounds asked for; nothing was changed.
    OutOfBounds {
        /// What the counter stands at.
        current: i64,
    },
    /// What the counter stands at; `None`: there is no such counter, which counts as 0.
    Value(Option<i64>),
    /// What the counter stood at before; `None`: there was no such counter.
    Previous(Option<i64>),
    /// Whether it stood at what was expected, and was set; if not, what it stands at.
    Swapped(std::result::Result<(), i64>),
}

impl CounterCommand {
    /// The counter's name.
    pub fn name(&self) -> &IVec {
        match self {
            CounterCommand::Add { name, .. }
            | CounterCommand::AddWithin { name, .. }
            | CounterCommand::Get { name }
            | CounterCommand::Set { name, .. }
            | CounterCommand::Remove { name }
            | CounterCommand::SetIf { name, .. } => name,
        }
    }
}

/// What a counter stands at; `None`: there is no such counter, which counts as 0.
///
/// # Errors
/// [`Error::Corrupt`] if the stored value is damaged, and errors of reading the view.
pub fn value(view: &impl View, name: &[u8]) -> Result<Option<i64>> {
    match view.get(TreeId::COUNTERS, name)? {
        Some(found) => decode_value(name, &found.value).map(Some),
        None => Ok(None),
    }
}

/// The integer in the stored bytes of the counter `name`.
///
/// # Errors
/// [`Error::Corrupt`], naming the counter, if they are not 8 bytes.
pub fn decode_value(name: &[u8], stored: &[u8]) -> Result<i64> {
    match <[u8; 8]>::try_from(stored) {
        Ok(bytes) => Ok(i64::from_be_bytes(bytes)),
        Err(_) => Err(Error::corrupt(
            "the tree of counters",
            None,
            format!("counter \"{}\" holds {} bytes instead of 8", name.escape_ascii(), stored.len()),
        )),
    }
}

/// Evaluates a counter's command; see [`crate::evaluate`] and the table in the [module](self).
///
/// # Errors
/// [`Error::InvalidRequest`] if `min` is above `max`, [`Error::Corrupt`] if the stored value is
/// damaged, and errors of reading the view.
pub fn evaluate(view: &impl View, _context: &Context, command: &CounterCommand) -> Result<Outcome> {
    let current = value(view, command.name())?;
    let counted = current.unwrap_or(0);
    let (effects, reply) = match command {
        CounterCommand::Add { name, delta } => match counted.checked_add(*delta) {
            Some(sum) => (put(name, current, sum), CounterReply::Added { value: sum }),
            None => (Effects::new(), CounterReply::Overflow { current: counted }),
        },
        CounterCommand::AddWithin { name, delta, min, max } => {
            if min > max {
                return Err(Error::InvalidRequest(format!(
                    "the bounds {min} to {max} of a counter hold no number"
                )));
            }
            // A sum that overflows is beyond every bound.
            match counted.checked_add(*delta).filter(|sum| (*min..=*max).contains(sum)) {
                Some(sum) => (put(name, current, sum), CounterReply::Added { value: sum }),
                None => (Effects::new(), CounterReply::OutOfBounds { current: counted }),
            }
        }
        CounterCommand::Get { .. } => (Effects::new(), CounterReply::Value(current)),
        CounterCommand::Set { name, value } => (put(name, current, *value), CounterReply::Previous(current)),
        CounterCommand::Remove { name } => {
            let mut effects = Effects::new();
            if current.is_some() {
                effects.push(Effect::Remove { tree: TreeId::COUNTERS, key: name.clone() });
            }
            (effects, CounterReply::Previous(current))
        }
        CounterCommand::SetIf { name, expected, value } if counted == *expected => {
            (put(name, current, *value), CounterReply::Swapped(Ok(())))
        }
        CounterCommand::SetIf { .. } => (Effects::new(), CounterReply::Swapped(Err(counted))),
    };
    Ok(Outcome { effects, reply: Reply::Counter(reply) })
}

/// Evaluates [`Command::CountMany`](crate::Command::CountMany): all additions, or none.
pub(crate) fn evaluate_many(view: &impl View, additions: &[CounterAddition]) -> Result<Outcome> {
    // Of each counter: whether it was there, and the sum.
    let mut sums: BTreeMap<&IVec, (Option<i64>, i64)> = BTreeMap::new();
    for CounterAddition { name, delta } in additions {
        let entry = match sums.entry(name) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let current = value(view, name)?;
                entry.insert((current, current.unwrap_or(0)))
            }
        };
        entry.1 = match entry.1.checked_add(*delta) {
            Some(sum) => sum,
            None => {
                let current = entry.0.unwrap_or(0);
                return Ok(Outcome::reply(Reply::Counter(CounterReply::Overflow { current })));
            }
        };
    }
    let effects = sums.iter().flat_map(|(name, (current, sum))| put(name, *current, *sum)).collect();
    let sums = sums.into_iter().map(|(name, (_, sum))| CounterAddition { name: name.clone(), delta: sum });
    Ok(Outcome { effects, reply: Reply::Counted(Sums(sums.collect())) })
}

/// Nothing if the counter stands at `new` already: then the log need not hear of it.
fn put(name: &IVec, current: Option<i64>, new: i64) -> Effects {
    let mut effects = Effects::new();
    if current != Some(new) {
        effects.push(Effect::Put {
            tree: TreeId::COUNTERS,
            key: name.clone(),
            value: IVec::from(new.to_be_bytes()),
            fresh: Some(current.is_none()),
        });
    }
    effects
}
