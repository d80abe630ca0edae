//! `get`, `put`, `del`, `scan`, `count` and `trees`.

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::Path;
use std::time::Duration;

use dogsled::{Fence, IVec};
use serde_json::json;

use crate::cli::args::{FenceArgs, Global, RangeArgs, ReadArgs};
use crate::cli::bytes::{self, ByteFormat};
use crate::cli::database::{Database, Keyspace};
use crate::cli::exit::{Failure, Result};
use crate::cli::operations::{Found, Operation, Said, Unmet, carry_out};
use crate::cli::output::{self, Output};
use crate::cli::output_file::OutputFile;
use crate::cli::progress::Progress;
use crate::cli::store::KeyRange;

pub(crate) fn get(
    global: &Global,
    out: &mut Output,
    key: &OsStr,
    file: Option<&Path>,
    from: &ReadArgs,
) -> Result<()> {
    let key = global.key_argument(key)?;
    let tree = global.tree_to_read(from)?;
    let Some(value) = tree.get(&key)? else {
        return Err(Failure::not_found(format!("no key {:?}", bytes::display_short(&key))));
    };
    if let Some(file) = file {
        let mut written = OutputFile::create(file, global.dir.as_deref())?;
        written.write_all(&value).map_err(|error| Failure::io(file.display(), &error))?;
        written.finish()?;
        return out.summary(
            format!("{} written to {}", output::size(value.len() as u64), file.display()),
            json!({ "key": bytes::to_json(&key), "bytes": value.len(), "file": file.display().to_string() }),
        );
    }
    if out.json { out.entry(&key, Some(&value)) } else { out.value(&value) }
}

pub(crate) fn put(
    global: &Global,
    out: &mut Output,
    key: &OsStr,
    value: &OsStr,
    ttl: Option<u64>,
    fence: &FenceArgs,
) -> Result<()> {
    let fence = fence.fence()?;
    let both_read_input = key == "-" && value == "-";
    if both_read_input && global.key_form() == ByteFormat::File && global.value_form() == ByteFormat::File {
        return Err(Failure::usage("key and value cannot both be standard input"));
    }
    let key = global.key_argument(key)?;
    let value = global.value_argument(value)?;
    let database = global.database()?;
    let tree = global.tree_for_writing(&database)?;
    let ttl = ttl.map(Duration::from_secs);
    let replaced = match (&fence, ttl) {
        (Some(fence), ttl) => put_under(&database, fence, tree, &key, value, ttl)?,
        (None, Some(ttl)) => Some(tree.insert_with_ttl(&key, value, ttl)?.is_some()),
        (None, None) => Some(tree.insert(&key, value)?.is_some()),
    };
    database.flush()?;
    // People want silence from a write that worked.
    if out.json {
        out.document(&json!({ "key": bytes::to_json(&key), "replaced": replaced }))
    } else {
        Ok(())
    }
}

/// `put --next`.
pub(crate) fn put_next(global: &Global, out: &mut Output, prefix: &OsStr, value: &OsStr) -> Result<()> {
    let prefix = global.key_argument(prefix)?;
    let value = global.value_argument(value)?;
    let database = global.database()?;
    let key = global.tree_for_writing(&database)?.insert_next(&prefix, value)?;
    database.flush()?;
    out.entry(&key, None)
}

pub(crate) fn cas(
    global: &Global,
    out: &mut Output,
    key: &OsStr,
    (old, new): (Option<&OsStr>, Option<&OsStr>),
    fence: &FenceArgs,
) -> Result<()> {
    let fence = fence.fence()?;
    let key = global.key_argument(key)?;
    let value = |value: Option<&OsStr>| value.map(|value| global.value_argument(value)).transpose();
    let (old, new) = (value(old)?, value(new)?);
    let database = global.database()?;
    let tree = global.tree_for_writing(&database)?;
    let swapped = match &fence {
        None => tree.compare_and_swap(&key, old.as_deref(), new.as_deref())?,
        Some(fence) => {
            let key = IVec::from(key.as_slice());
            let check = Operation::Check { tree: tree.clone(), key: key.clone(), is: old.map(IVec::from) };
            let write = match new {
                Some(value) => Operation::Put { tree, key, value: value.into(), ttl: None },
                None => Operation::Remove { tree, key },
            };
            match carry_out(&database, Some(fence), &[check, write])? {
                Ok(_) => Ok(()),
                Err(Unmet { found: Found::Value(found), .. }) => Err(found),
                Err(Unmet { found: Found::Count(_), .. }) => unreachable!("no counter was looked at"),
            }
        }
    };
    database.flush()?;
    match swapped {
        Ok(()) if out.json => out.document(&json!({ "key": bytes::to_json(&key), "swapped": true })),
        Ok(()) => Ok(()),
        Err(found) => {
            let shown = match &found {
                Some(value) => format!("the value is {:?}", bytes::display_short(value)),
                None => "there is no value".to_owned(),
            };
            let current = found.map_or(serde_json::Value::Null, |value| bytes::to_json(&value));
            Err(Failure::refused(format!("key {}: {shown}, nothing was done", bytes::display_short(&key)))
                .detail("current", current))
        }
    }
}

/// Whether there was a value; `None` if that was not heard.
fn put_under(
    database: &Database,
    fence: &Fence,
    tree: Keyspace,
    key: &[u8],
    value: Vec<u8>,
    ttl: Option<Duration>,
) -> Result<Option<bool>> {
    let get = Operation::Get { tree: tree.clone(), key: key.into() };
    let put = Operation::Put { tree, key: key.into(), value: value.into(), ttl };
    let said = unconditional(carry_out(database, Some(fence), &[get, put])?);
    Ok(said.map(|said| matches!(said.as_slice(), [Said::Value(Some(_))])))
}

/// The keys that were not there, all of which are removed together; none if that was not heard.
fn remove_under(
    database: &Database,
    fence: &Fence,
    tree: &Keyspace,
    keys: &[Vec<u8>],
) -> Result<Vec<String>> {
    let of_key = |key: &Vec<u8>| {
        let key = IVec::from(key.as_slice());
        [
            Operation::Get { tree: tree.clone(), key: key.clone() },
            Operation::Remove { tree: tree.clone(), key },
        ]
    };
    let operations: Vec<Operation> = keys.iter().flat_map(of_key).collect();
    let said = unconditional(carry_out(database, Some(fence), &operations)?).unwrap_or_default();
    let missing = keys.iter().zip(said).filter(|(_, said)| matches!(said, Said::Value(None)));
    Ok(missing.map(|(key, _)| bytes::display_short(key)).collect())
}

/// Of operations among which there is no condition.
fn unconditional(said: Result<Option<Vec<Said>>, Unmet>) -> Option<Vec<Said>> {
    said.expect("nothing was to be met")
}

pub(crate) fn del(global: &Global, out: &mut Output, keys: &[OsString], fence: &FenceArgs) -> Result<()> {
    let fence = fence.fence()?;
    let keys = keys.iter().map(|key| global.key_argument(key)).collect::<Result<Vec<_>>>()?;
    let database = global.existing_database()?;
    global.existing_tree(&database)?;
    let tree = global.tree_for_writing(&database)?;
    let mut missing = Vec::new();
    match &fence {
        Some(fence) => missing = remove_under(&database, fence, &tree, &keys)?,
        None => {
            for key in &keys {
                if tree.remove(key)?.is_none() {
                    missing.push(bytes::display_short(key));
                }
            }
        }
    }
    database.flush()?;
    let removed = keys.len() - missing.len();
    if !missing.is_empty() {
        let failure = Failure::not_found(format!("no key {}", missing.join(", ")));
        return Err(failure
            .adding(format!("{} removed", output::count(removed as u64, "key")))
            .detail("removed", removed));
    }
    if out.json { out.document(&json!({ "removed": removed })) } else { Ok(()) }
}

fn key_range(global: &Global, range: &RangeArgs) -> Result<KeyRange> {
    let bytes = |key: &Option<OsString>| key.as_deref().map(|key| global.key_argument(key)).transpose();
    Ok(KeyRange::new(bytes(&range.prefix)?, bytes(&range.from)?, bytes(&range.to)?))
}

pub(crate) fn scan(
    global: &Global,
    out: &mut Output,
    range: &RangeArgs,
    (reverse, keys_only): (bool, bool),
    limit: Option<u64>,
    from: &ReadArgs,
) -> Result<()> {
    if global.key_format == Some(ByteFormat::File) && range.prefix.is_none() && range.from.is_none() {
        return Err(Failure::usage("--key-format file is for arguments; keys cannot be listed so"));
    }
    let range = key_range(global, range)?;
    let tree = global.tree_to_read(from)?;
    let mut entries = tree.entries(&range, reverse, !keys_only);
    let mut left = limit.unwrap_or(u64::MAX);
    while left > 0
        && let Some(entry) = entries.next()
    {
        let (key, value) = entry?;
        out.entry(&key, (!keys_only).then_some(&value))?;
        left -= 1;
    }
    Ok(())
}

pub(crate) fn count(global: &Global, out: &mut Output, range: &RangeArgs, from: &ReadArgs) -> Result<()> {
    let range = key_range(global, range)?;
    let tree = global.tree_to_read(from)?;
    let mut count = tree.len()?;
    if !range.is_everything() {
        let progress = Progress::items(None, "counting", global.quiet);
        count = 0;
        for entry in tree.entries(&range, false, false) {
            entry?;
            count += 1;
            if count.is_multiple_of(4096) {
                progress.set(count);
            }
        }
    }
    out.summary(count, json!({ "count": count }))
}

pub(crate) fn trees(global: &Global, out: &mut Output) -> Result<()> {
    let database = global.existing_database()?;
    for name in database.tree_names()? {
        let count = database.tree(&name)?.len()?;
        if out.json {
            out.document(&json!({ "tree": bytes::to_json(&name), "count": count }))?;
        } else {
            out.line(format_args!("{}\t{count}", bytes::display(&name)))?;
        }
    }
    Ok(())
}
