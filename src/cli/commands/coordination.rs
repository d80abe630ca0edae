//! `counter` and `lock`.
//!
//! A lock taken here outlives its process, of which a directory has one at a time only: it is held
//! until it is released with its owner and token, or until its lease ends.

use std::time::Duration;

use dogsled::{Fence, IVec};
use dogsled_storage::lock::READ_WRITE;
use serde_json::{Value, json};

use crate::cli::args::{CounterCommand, Global, LockCommand};
use crate::cli::bytes;
use crate::cli::database::Database;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::operations::{Found, Operation, Said, Unmet, carry_out};
use crate::cli::output::Output;
use crate::cli::store::name_argument;

pub(crate) fn counter(global: &Global, out: &mut Output, command: &CounterCommand) -> Result<()> {
    let (CounterCommand::Get { name }
    | CounterCommand::Add { name, .. }
    | CounterCommand::Set { name, .. }
    | CounterCommand::SetIf { name, .. }
    | CounterCommand::Reset { name, .. }) = command;
    let name = name_argument("counter name", name)?;
    let field = |value: i64| json!({ "counter": bytes::to_json(&name), "value": value });
    match command {
        CounterCommand::Get { .. } => {
            let value = global.existing_database()?.counter(&name)?;
            out.summary(value, field(value))
        }
        CounterCommand::Add { amount, min, max, fence, .. } => {
            let bounds = min.unwrap_or(i64::MIN)..=max.unwrap_or(i64::MAX);
            if bounds.is_empty() {
                return Err(Failure::usage("--min is above --max"));
            }
            let fence = fence.fence()?;
            let database = global.database()?;
            let added = match &fence {
                None => database.counter_add(&name, *amount, bounds)?.map_err(|refused| refused.current),
                Some(fence) => {
                    let counter = IVec::from(name.as_slice());
                    count_under(&database, fence, Operation::AddWithin { counter, by: *amount, bounds })?
                }
            };
            match added {
                Ok(value) => {
                    database.flush()?;
                    out.summary(value, field(value))
                }
                Err(current) => Err(Failure::refused(format!(
                    "counter {:?} stands at {current}, and adding {amount} would leave its bounds",
                    bytes::display_short(&name),
                ))
                .detail("value", current)),
            }
        }
        CounterCommand::Set { value, fence, .. } => {
            let fence = fence.fence()?;
            let database = global.database()?;
            let previous = match &fence {
                None => database.counter_set(&name, *value)?,
                Some(fence) => set_under(&database, fence, &name, *value)?,
            };
            database.flush()?;
            let counter = bytes::to_json(&name);
            out.summary(previous, json!({ "counter": counter, "previous": previous, "value": value }))
        }
        CounterCommand::SetIf { expected, value, fence, .. } => {
            let fence = fence.fence()?;
            let database = global.database()?;
            let set = match &fence {
                None => database.counter_set_if(&name, *expected, *value)?,
                Some(fence) => {
                    let counter = IVec::from(name.as_slice());
                    let set = Operation::SetIf { counter, is: *expected, to: *value };
                    count_under(&database, fence, set)?.map(drop)
                }
            };
            database.flush()?;
            match set {
                Ok(()) if out.json => out.document(&field(*value)),
                Ok(()) => Ok(()),
                Err(current) => Err(Failure::refused(format!(
                    "counter {:?} stands at {current}, not at {expected}",
                    bytes::display_short(&name),
                ))
                .detail("value", current)),
            }
        }
        CounterCommand::Reset { fence, .. } => {
            let fence = fence.fence()?;
            let database = global.existing_database()?;
            let previous = match &fence {
                None => database.counter_reset(&name)?,
                Some(fence) => set_under(&database, fence, &name, 0)?,
            };
            database.flush()?;
            out.summary(previous, json!({ "counter": bytes::to_json(&name), "previous": previous }))
        }
    }
}

/// What it stood at before.
fn set_under(database: &Database, fence: &Fence, name: &[u8], value: i64) -> Result<i64> {
    let set = Operation::Set { counter: IVec::from(name), to: value };
    Ok(count_under(database, fence, set)?.expect("setting has no condition"))
}

/// What an operation on a counter says under a lock, or at what the counter stands that it is not carried out.
fn count_under(database: &Database, fence: &Fence, operation: Operation) -> Result<Result<i64, i64>> {
    match carry_out(database, Some(fence), &[operation])? {
        Ok(Some(said)) => match said.as_slice() {
            [Said::Count(value)] => Ok(Ok(*value)),
            _ => unreachable!("one operation on a counter was carried out"),
        },
        Ok(None) => Err(Failure::new(
            Code::OutcomeUnknown,
            "the counter was changed, but what it stands at was not heard",
        )),
        Err(Unmet { found: Found::Count(current), .. }) => Ok(Err(current)),
        Err(Unmet { found: Found::Value(_), .. }) => unreachable!("no key was checked"),
    }
}

pub(crate) fn lock(global: &Global, out: &mut Output, command: &LockCommand) -> Result<()> {
    let (LockCommand::Holder { name }
    | LockCommand::Acquire { name, .. }
    | LockCommand::Renew { name, .. }
    | LockCommand::Release { name, .. }) = command;
    let name = name_argument("lock name", name)?;
    let shown = bytes::display_short(&name);
    match command {
        LockCommand::Holder { .. } => {
            let database = global.existing_database()?;
            let found = database.lock_holders(&name)?;
            if found.holders.is_empty() {
                return Err(Failure::not_found(format!("nobody holds lock {shown:?}")));
            }
            if out.json {
                return out.document(&holder_fields(&name, &found));
            }
            let now_ms = database.now_ms();
            for permit in &found.holders {
                let left = match permit.session {
                    Some(session) => format!("with session {session}"),
                    None => format!("for {} s more", permit.expires_ms.saturating_sub(now_ms).div_ceil(1000)),
                };
                let (owner, share) = (bytes::display(&permit.owner), share(found.capacity, permit.permits));
                out.line(format_args!("{owner}\ttoken {}\t{left}{share}", permit.token))?;
            }
            Ok(())
        }
        LockCommand::Acquire { owner, lease, wait, .. } => {
            let owner = name_argument("owner", owner)?;
            let database = global.database()?;
            let (lease, wait) = (Duration::from_secs(*lease), Duration::from_secs(*wait));
            let Some((token, expires_ms)) = database.lock_acquire(&name, &owner, lease, wait)? else {
                return Err(refused(&name, &database.lock_holders(&name)?));
            };
            database.flush()?;
            out.summary(
                token,
                json!({ "lock": bytes::to_json(&name), "token": token.0, "expires_ms": expires_ms }),
            )
        }
        LockCommand::Renew { owner, token, lease, .. } => {
            let owner = name_argument("owner", owner)?;
            let database = global.existing_database()?;
            let renewed = database.lock_renew(&name, &owner, *token, Duration::from_secs(*lease))?;
            let Some(expires_ms) = renewed else {
                return Err(not_held(&name, &owner, *token, &database.lock_holders(&name)?));
            };
            database.flush()?;
            if out.json {
                let lock = bytes::to_json(&name);
                out.document(&json!({ "lock": lock, "token": token, "expires_ms": expires_ms }))
            } else {
                Ok(())
            }
        }
        LockCommand::Release { owner, token, .. } => {
            let owner = name_argument("owner", owner)?;
            let database = global.existing_database()?;
            if !database.lock_release(&name, &owner, *token)? {
                return Err(not_held(&name, &owner, *token, &database.lock_holders(&name)?));
            }
            database.flush()?;
            if out.json {
                out.document(&json!({ "lock": bytes::to_json(&name), "released": true }))
            } else {
                Ok(())
            }
        }
    }
}

/// Of a lock that was to be renewed or released; with who does hold it, so that a typing error is seen at once.
fn not_held(name: &[u8], owner: &[u8], token: u64, found: &dogsled::LockHolders) -> Failure {
    let failure = Failure::refused(format!(
        "lock {:?} is not held by {:?} with token {token}: its lease ended, or it was released",
        bytes::display_short(name),
        bytes::display_short(owner)
    ));
    let others = found.holders.iter().take(3);
    let others: Vec<String> = others
        .map(|permit| format!("{:?} with token {}", bytes::display_short(&permit.owner), permit.token))
        .collect();
    if others.is_empty() {
        return failure;
    }
    let more = if found.holders.len() > others.len() { " and others" } else { "" };
    failure.adding(format!("it is held by {}{more}", others.join(", ")))
}

/// What of a lock that several can hold one of them has.
fn share(capacity: u32, permits: u32) -> String {
    match (capacity, permits) {
        (1, _) => String::new(),
        (READ_WRITE, READ_WRITE) => "\tto write".to_owned(),
        (READ_WRITE, _) => "\tto read".to_owned(),
        _ => format!("\t{permits} of {capacity} permits"),
    }
}

/// The first who holds it, as of a plain lock, and all of them.
fn holder_fields(name: &[u8], found: &dogsled::LockHolders) -> Value {
    let of_one = |permit: &dogsled::Permit| {
        json!({
            "owner": bytes::to_json(&permit.owner),
            "token": permit.token.0,
            "permits": permit.permits,
            "expires_ms": permit.expires_ms,
            "session": permit.session.map(|session| session.to_string()),
        })
    };
    let holders: Vec<Value> = found.holders.iter().map(of_one).collect();
    let mut fields = json!({ "lock": bytes::to_json(name), "capacity": found.capacity });
    if let Some(first) = holders.first() {
        for field in ["owner", "token", "expires_ms"] {
            fields[field] = first[field].clone();
        }
    }
    fields["holders"] = holders.into();
    fields
}

fn refused(name: &[u8], found: &dogsled::LockHolders) -> Failure {
    let shown = bytes::display_short(name);
    match found.holders.first() {
        Some(holder) => {
            let owner = bytes::display_short(&holder.owner);
            let mut failure =
                Failure::refused(format!("lock {shown:?} is held by {owner:?} with token {}", holder.token));
            if let Value::Object(fields) = holder_fields(name, found) {
                failure.details.extend(fields);
            }
            failure
        }
        None => Failure::refused(format!("lock {shown:?} was held by another")),
    }
}
