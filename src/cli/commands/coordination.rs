//! `counter` and `lock`.
//!
//! A lock taken here outlives its process, of which a directory has one at a time only: it is held
//! until it is released with its owner and token, or until its lease ends.

use std::time::Duration;

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
            let Some(holder) = database.lock_holder(&name)? else {
                return Err(Failure::not_found(format!("nobody holds lock {shown:?}")));
            };
            out.summary(
                format_args!(
                    "{}\ttoken {}\tfor {} s more",
                    bytes::display(&holder.owner),
                    holder.token,
                    holder.expires_ms.saturating_sub(database.now_ms()).div_ceil(1000)
                ),
                holder_fields(&name, &holder),
            )
        }
        LockCommand::Acquire { owner, lease, .. } => {
            let owner = name_argument("owner", owner)?;
            let database = global.database()?;
            let lease = Duration::from_secs(*lease);
            let Some((token, expires_ms)) = database.lock_acquire(&name, &owner, lease)? else {
                return Err(refused(&name, database.lock_holder(&name)?));
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
                return Err(Failure::refused(format!(
                    "lock {shown:?} is not held by {:?} with token {token}: its lease ended, or it was released",
                    bytes::display_short(&owner)
                )));
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

fn holder_fields(name: &[u8], holder: &dogsled::Holder) -> Value {
    json!({
        "lock": bytes::to_json(name),
        "owner": bytes::to_json(&holder.owner),
        "token": holder.token.0,
        "expires_ms": holder.expires_ms,
    })
}

fn refused(name: &[u8], holder: Option<dogsled::Holder>) -> Failure {
    let shown = bytes::display_short(name);
    match holder {
        Some(holder) => {
            let owner = bytes::display_short(&holder.owner);
            let mut failure =
                Failure::refused(format!("lock {shown:?} is held by {owner:?} with token {}", holder.token));
            if let Value::Object(fields) = holder_fields(name, &holder) {
                failure.details.extend(fields);
            }
            failure
        }
        None => Failure::refused(format!("lock {shown:?} was held by another")),
    }
}
