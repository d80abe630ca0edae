//! `counter` and `lock`.
//!
//! A lock taken here outlives its process, of which a directory has one at a time only: it is held
//! until it is released with its owner and token, or until its lease ends.

use std::time::Duration;

use dogsled_storage::lock::READ_WRITE;
use serde_json::{Value, json};

use crate::cli::args::{CounterCommand, Global, LockCommand};
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;
use crate::cli::store::name_argument;

pub(crate) fn counter(global: &Global, out: &mut Output, command: &CounterCommand) -> Result<()> {
    let (CounterCommand::Get { name } | CounterCommand::Add { name, .. } | CounterCommand::Reset { name }) =
        command;
    let name = name_argument("counter name", name)?;
    let field = |value: i64| json!({ "counter": bytes::to_json(&name), "value": value });
    match command {
        CounterCommand::Get { .. } => {
            let value = global.existing_database()?.counter(&name)?;
            out.summary(value, field(value))
        }
        CounterCommand::Add { amount, min, max, .. } => {
            let bounds = min.unwrap_or(i64::MIN)..=max.unwrap_or(i64::MAX);
            if bounds.is_empty() {
                return Err(Failure::usage("--min is above --max"));
            }
            let database = global.database()?;
            match database.counter_add(&name, *amount, bounds)? {
                Ok(value) => {
                    database.flush()?;
                    out.summary(value, field(value))
                }
                Err(refused) => Err(Failure::refused(format!(
                    "counter {:?} stands at {}, and adding {amount} would leave its bounds",
                    bytes::display_short(&name),
                    refused.current
                ))
                .detail("value", refused.current)),
            }
        }
        CounterCommand::Reset { .. } => {
            let database = global.existing_database()?;
            let previous = database.counter_reset(&name)?;
            database.flush()?;
            out.summary(previous, json!({ "counter": bytes::to_json(&name), "previous": previous }))
        }
    }
}

pub(crate) fn lock(global: &Global, out: &mut Output, command: &LockCommand) -> Result<()> {
    let (LockCommand::Holder { name }
    | LockCommand::Acquire { name, .. }
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
        LockCommand::Acquire { owner, lease, .. } => {
            let owner = name_argument("owner", owner)?;
            let database = global.database()?;
            let lease = Duration::from_secs(*lease);
            let Some((token, expires_ms)) = database.lock_acquire(&name, &owner, lease)? else {
                return Err(refused(&name, &database.lock_holders(&name)?));
            };
            database.flush()?;
            out.summary(
                token,
                json!({ "lock": bytes::to_json(&name), "token": token.0, "expires_ms": expires_ms }),
            )
        }
        LockCommand::Release { owner, token, .. } => {
            let owner = name_argument("owner", owner)?;
            let database = global.existing_database()?;
            let released = database.lock_release(&name, &owner, *token)?;
            if !released {
                let mut failure = Failure::refused(format!(
                    "lock {shown:?} is not held by {:?} with token {token}: its lease ended, or it was released",
                    bytes::display_short(&owner)
                ));
                // A typing error is seen at once.
                let found = database.lock_holders(&name)?;
                let others = found.holders.iter().take(3);
                let others: Vec<String> = others
                    .map(|permit| {
                        format!("{:?} with token {}", bytes::display_short(&permit.owner), permit.token)
                    })
                    .collect();
                if !others.is_empty() {
                    let more = if found.holders.len() > others.len() { " and others" } else { "" };
                    failure = failure.adding(format!("it is held by {}{more}", others.join(", ")));
                }
                return Err(failure);
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
