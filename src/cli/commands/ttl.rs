//! `ttl`, `expire` and `persist`: how long a key has to live.

use std::ffi::OsStr;
use std::time::Duration;

use dogsled::Ttl;
use serde_json::json;

use crate::cli::args::Global;
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;

fn missing(key: &[u8]) -> Failure {
    Failure::not_found(format!("no key {}", bytes::display_short(key)))
}

pub(crate) fn ttl(global: &Global, out: &mut Output, key: &OsStr) -> Result<()> {
    let key = global.key_argument(key)?;
    let database = global.existing_database()?;
    let tree = global.existing_tree(&database)?;
    match tree.ttl(&key)? {
        Ttl::NoKey => Err(missing(&key)),
        Ttl::Forever => {
            out.summary("forever", json!({ "key": bytes::to_json(&key), "ttl_ms": serde_json::Value::Null }))
        }
        Ttl::In(left) => {
            let ttl_ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
            out.summary(ttl_ms.div_ceil(1000), json!({ "key": bytes::to_json(&key), "ttl_ms": ttl_ms }))
        }
    }
}

pub(crate) fn expire(global: &Global, out: &mut Output, key: &OsStr, seconds: u64) -> Result<()> {
    let key = global.key_argument(key)?;
    let database = global.existing_database()?;
    global.existing_tree(&database)?;
    if !global.tree_for_writing(&database)?.expire(&key, Duration::from_secs(seconds))? {
        return Err(missing(&key));
    }
    database.flush()?;
    if out.json {
        out.document(&json!({ "key": bytes::to_json(&key), "ttl_ms": seconds.saturating_mul(1000) }))
    } else {
        Ok(())
    }
}

pub(crate) fn persist(global: &Global, out: &mut Output, key: &OsStr) -> Result<()> {
    let key = global.key_argument(key)?;
    let database = global.existing_database()?;
    global.existing_tree(&database)?;
    if !global.tree_for_writing(&database)?.persist(&key)? {
        return Err(Failure::not_found(format!("key {} has no time to live", bytes::display_short(&key))));
    }
    database.flush()?;
    if out.json {
        out.document(&json!({ "key": bytes::to_json(&key), "ttl_ms": serde_json::Value::Null }))
    } else {
        Ok(())
    }
}
