//! `txn`: several operations as one transaction, from lines of JSON.
//!
//! | line | does | result |
//! |---|---|---|
//! | `{"op":"get","key":…}` | reads a key | its value, or null |
//! | `{"op":"put","key":…,"value":…}` | sets a key; with `"ttl":60` it expires after so many seconds | |
//! | `{"op":"expire","key":…,"ttl":60}` | has a key expire after so many seconds | whether it is there |
//! | `{"op":"persist","key":…}` | takes the time to live from a key | |
//! | `{"op":"remove","key":…}` | removes a key | |
//! | `{"op":"check","key":…,"is":…}` | goes on only if that is its value; null: if it has none | |
//! | `{"op":"add","counter":…,"by":1}` | adds to a counter | the sum |
//!
//! Each but `add` may have a `"tree"`. Strings stand for their UTF-8 bytes, `{"base64":"…"}` and `{"hex":"…"}` for any.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use dogsled::IVec;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::args::{FenceArgs, Global};
use crate::cli::bytes;
use crate::cli::database::Database;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::operations::{Found, Operation, Said, Unmet, carry_out};
use crate::cli::output::{self, Output};

#[derive(Deserialize)]
#[serde(tag = "op", rename_all = "lowercase", deny_unknown_fields)]
enum Line {
    Get { tree: Option<String>, key: Value },
    Put { tree: Option<String>, key: Value, value: Value, ttl: Option<NonZeroU64> },
    Expire { tree: Option<String>, key: Value, ttl: NonZeroU64 },
    Persist { tree: Option<String>, key: Value },
    Remove { tree: Option<String>, key: Value },
    Check { tree: Option<String>, key: Value, is: Value },
    Add { counter: Value, by: i64 },
}

fn seconds(seconds: NonZeroU64) -> Duration {
    Duration::from_secs(seconds.get())
}

/// Operations with the numbers of their lines.
fn read(file: &Path, global: &Global, database: &Database) -> Result<Vec<(usize, Operation)>> {
    let input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(stdin().lock())
    } else {
        let opened = File::open(file);
        let opened = opened.map_err(|error| Failure::io(format!("opening {}", file.display()), &error))?;
        Box::new(BufReader::new(opened))
    };
    let mut operations = Vec::new();
    for (index, line) in input.lines().enumerate() {
        let number = index + 1;
        let line = line.map_err(|error| Failure::io(format!("reading {}", file.display()), &error))?;
        if line.trim().is_empty() {
            continue;
        }
        let wrong =
            |what: String| Failure::new(Code::BadInput, format!("{}, line {number}: {what}", file.display()));
        let line = serde_json::from_str(&line).map_err(|error| wrong(error.to_string()))?;
        let bytes = |of: &str, value: &Value| {
            bytes::from_json(value)
                .map(|bytes| IVec::from(&*bytes))
                .map_err(|what| wrong(format!("{of} is {what}")))
        };
        let tree = |name: &Option<String>| match name {
            Some(name) => database.tree_for_writing(name.as_bytes()),
            None => global.tree_for_writing(database),
        };
        operations.push((
            number,
            match &line {
                Line::Get { tree: name, key } => {
                    Operation::Get { tree: tree(name)?, key: bytes("the key", key)? }
                }
                Line::Put { tree: name, key, value, ttl } => Operation::Put {
                    tree: tree(name)?,
                    key: bytes("the key", key)?,
                    value: bytes("the value", value)?,
                    ttl: ttl.map(seconds),
                },
                Line::Expire { tree: name, key, ttl } => {
                    Operation::Expire { tree: tree(name)?, key: bytes("the key", key)?, ttl: seconds(*ttl) }
                }
                Line::Persist { tree: name, key } => {
                    Operation::Persist { tree: tree(name)?, key: bytes("the key", key)? }
                }
                Line::Remove { tree: name, key } => {
                    Operation::Remove { tree: tree(name)?, key: bytes("the key", key)? }
                }
                Line::Check { tree: name, key, is } => Operation::Check {
                    tree: tree(name)?,
                    key: bytes("the key", key)?,
                    is: if is.is_null() { None } else { Some(bytes("what it is to be", is)?) },
                },
                Line::Add { counter, by } => {
                    Operation::Add { counter: bytes("the counter's name", counter)?, by: *by }
                }
            },
        ));
    }
    Ok(operations)
}

pub(crate) fn txn(global: &Global, out: &mut Output, file: &Path, fence: &FenceArgs) -> Result<()> {
    let fence = fence.fence()?;
    let database = global.database()?;
    let (lines, operations): (Vec<usize>, Vec<Operation>) =
        read(file, global, &database)?.into_iter().unzip();
    let said = carry_out(&database, fence.as_ref(), &operations)?;
    database.flush()?;
    let said = said.map_err(|Unmet { operation, found }| {
        let line = lines[operation];
        let shown = match &found {
            Found::Value(Some(value)) => format!("the value is {:?}", bytes::display_short(value)),
            Found::Value(None) => "there is no value".to_owned(),
            Found::Count(current) => format!("the counter stands at {current}"),
        };
        Failure::refused(format!("the check of line {line} is not met, nothing was done: {shown}"))
            .detail("line", line as u64)
    })?;
    let results: Vec<Value> = said
        .unwrap_or_default()
        .iter()
        .map(|said| match said {
            Said::Value(value) => value.as_ref().map_or(Value::Null, |value| bytes::to_json(value)),
            Said::Count(sum) => json!(sum),
            Said::IsThere(is_there) => json!(is_there),
        })
        .collect();
    let lines: Vec<String> = results.iter().map(Value::to_string).collect();
    let done = output::count(operations.len() as u64, "operation");
    let sentence = lines.iter().fold(format!("done: {done}"), |all, line| all + "\n" + line);
    out.summary(sentence, json!({ "operations": operations.len(), "results": results }))
}
