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
//! Each may have a `"tree"`. Strings stand for their UTF-8 bytes, `{"base64":"…"}` and `{"hex":"…"}` for any.

use std::fs::File;
use std::io::{BufRead, BufReader, stdin};
use std::num::NonZeroU64;
use std::path::Path;
use std::time::Duration;

use dogsled::cluster::transaction as far;
use dogsled::{IVec, transaction as near};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::args::Global;
use crate::cli::bytes;
use crate::cli::database::{Database, Keyspace};
use crate::cli::exit::{Code, Failure, Result};
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

enum Operation {
    Get { tree: Keyspace, key: IVec },
    Put { tree: Keyspace, key: IVec, value: IVec, ttl: Option<Duration> },
    Expire { tree: Keyspace, key: IVec, ttl: Duration },
    Persist { tree: Keyspace, key: IVec },
    Remove { tree: Keyspace, key: IVec },
    Check { tree: Keyspace, key: IVec, is: Option<IVec> },
    Add { counter: IVec, by: i64 },
}

/// What an operation has to say.
#[derive(Clone)]
enum Said {
    Value(Option<IVec>),
    Sum(i64),
    IsThere(bool),
}

/// A check that was not met.
#[derive(Debug)]
struct Unmet {
    line: usize,
    found: Option<IVec>,
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

pub(crate) fn txn(global: &Global, out: &mut Output, file: &Path) -> Result<()> {
    let database = global.database()?;
    let operations = read(file, global, &database)?;
    let said = match &database {
        Database::Directory(db) => match db.transaction(|root| run_near(root, &operations)) {
            Ok(said) => Ok(said),
            Err(near::TransactionError::Abort(unmet)) => Err(unmet),
            Err(near::TransactionError::Storage(error)) => return Err(error.into()),
        },
        Database::Cluster(remote) => {
            let operations = &operations;
            let client = remote.client();
            // What the last attempt has come to, which holds if it turns out to be the one that was committed.
            let last = &std::cell::RefCell::new(Vec::new());
            let ran = client.transaction(|tx| async move {
                let said = run_far(&tx, operations).await?;
                last.replace(said.clone());
                Ok(said)
            });
            match remote.wait(ran) {
                Ok(said) => Ok(said),
                Err(far::TransactionError::Abort(unmet)) => Err(unmet),
                Err(far::TransactionError::Cluster(error)) => return Err(error.into()),
                Err(error @ far::TransactionError::Conflict { .. }) => {
                    return Err(Failure::new(Code::Unavailable, describe(&error)));
                }
                Err(far::TransactionError::OutcomeUnknown { why, transaction }) => {
                    // Asking settles it.
                    match remote.wait(transaction.outcome()) {
                        Ok(far::Outcome::Aborted) => {
                            return Err(Failure::new(Code::Unavailable, format!("nothing was done: {why}")));
                        }
                        Ok(far::Outcome::Committed) => Ok(last.take()),
                        Ok(far::Outcome::Forgotten) | Err(_) => {
                            let what = format!("the outcome is not known: {why}");
                            return Err(Failure::new(Code::OutcomeUnknown, what));
                        }
                    }
                }
                Err(error) => return Err(Failure::new(Code::Unavailable, describe(&error))),
            }
        }
    };
    database.flush()?;
    let said = said.map_err(|Unmet { line, found }| {
        let shown = match &found {
            Some(value) => format!("the value is {:?}", bytes::display_short(value)),
            None => "there is no value".to_owned(),
        };
        Failure::refused(format!("the check of line {line} is not met, nothing was done: {shown}"))
            .detail("line", line as u64)
    })?;
    let results: Vec<Value> = said
        .iter()
        .map(|said| match said {
            Said::Value(value) => value.as_ref().map_or(Value::Null, |value| bytes::to_json(value)),
            Said::Sum(sum) => json!(sum),
            Said::IsThere(is_there) => json!(is_there),
        })
        .collect();
    let lines: Vec<String> = results.iter().map(Value::to_string).collect();
    let done = output::count(operations.len() as u64, "operation");
    let sentence = lines.iter().fold(format!("done: {done}"), |all, line| all + "\n" + line);
    out.summary(sentence, json!({ "operations": operations.len(), "results": results }))
}

fn describe(error: &far::TransactionError<Unmet>) -> String {
    match error {
        far::TransactionError::Conflict { attempts } => {
            format!("nothing was done: others were quicker, {attempts} times")
        }
        other => format!("{other:?}"),
    }
}

fn run_near(
    root: &near::TransactionalTree,
    operations: &[(usize, Operation)],
) -> near::ConflictableTransactionResult<Vec<Said>, Unmet> {
    let within = |tree: &Keyspace| match tree {
        Keyspace::Directory(tree) => root.tree(tree),
        Keyspace::Cluster(..) => unreachable!("the trees of a directory are there"),
    };
    let mut said = Vec::new();
    for (line, operation) in operations {
        match operation {
            Operation::Get { tree, key } => said.push(Said::Value(within(tree)?.get(key)?)),
            Operation::Put { tree, key, value, ttl } => {
                let tree = within(tree)?;
                drop(match ttl {
                    Some(ttl) => tree.insert_with_ttl(key, value, *ttl)?,
                    None => tree.insert(key, value)?,
                });
            }
            Operation::Expire { tree, key, ttl } => {
                said.push(Said::IsThere(within(tree)?.expire(key, *ttl)?));
            }
            Operation::Persist { tree, key } => drop(within(tree)?.persist(key)?),
            Operation::Remove { tree, key } => drop(within(tree)?.remove(key)?),
            Operation::Check { tree, key, is } => {
                let found = within(tree)?.get(key)?;
                if found != *is {
                    return near::abort(Unmet { line: *line, found });
                }
            }
            Operation::Add { counter, by } => said.push(Said::Sum(root.counter(counter).add(*by)?)),
        }
    }
    Ok(said)
}

async fn run_far(
    tx: &far::Transaction,
    operations: &[(usize, Operation)],
) -> far::ConflictableTransactionResult<Vec<Said>, Unmet> {
    let within = |tree: &Keyspace| match tree {
        Keyspace::Cluster(_, tree) => tree.clone(),
        Keyspace::Directory(_) => unreachable!("the trees of a cluster are there"),
    };
    let mut said = Vec::new();
    for (line, operation) in operations {
        match operation {
            Operation::Get { tree, key } => said.push(Said::Value(tx.get(&within(tree), key).await?)),
            Operation::Put { tree, key, value, ttl: None } => tx.put(&within(tree), key, value)?,
            Operation::Put { tree, key, value, ttl: Some(ttl) } => {
                tx.put_with_ttl(&within(tree), key, value, *ttl)?;
            }
            Operation::Expire { tree, key, ttl } => {
                said.push(Said::IsThere(tx.expire(&within(tree), key, *ttl).await?));
            }
            Operation::Persist { tree, key } => tx.persist(&within(tree), key)?,
            Operation::Remove { tree, key } => tx.delete(&within(tree), key)?,
            Operation::Check { tree, key, is } => {
                let found = tx.get(&within(tree), key).await?;
                if found != *is {
                    return far::abort(Unmet { line: *line, found });
                }
            }
            Operation::Add { counter, by } => said.push(Said::Sum(tx.counter_add(counter, *by).await?)),
        }
    }
    Ok(said)
}
