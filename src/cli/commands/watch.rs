//! `watch`: what happens to the keys of a cluster, as it happens.

use std::ffi::OsStr;

use dogsled::cluster::{Event, WatchPosition};
use dogsled_storage::DEFAULT_TREE_NAME;
use serde_json::{Value, json};

use crate::cli::args::Global;
use crate::cli::bytes;
use crate::cli::exit::{Failure, Result};
use crate::cli::output::Output;
use crate::cli::remote::Remote;

fn encode(position: &WatchPosition) -> String {
    position.to_bytes().iter().map(|byte| format!("{byte:02x}")).collect()
}

fn decode(text: &str) -> Result<WatchPosition> {
    let wrong = || Failure::usage("--after takes the \"position\" of a line that `watch --json` has written");
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).map(|digit| digit as u8))
        .collect::<Option<_>>()
        .ok_or_else(wrong)?;
    let (pairs, []) = digits.as_chunks::<2>() else { return Err(wrong()) };
    let bytes: Vec<u8> = pairs.iter().map(|[high, low]| high << 4 | low).collect();
    WatchPosition::from_bytes(&bytes).map_err(|_| wrong())
}

pub(crate) fn watch(
    global: &Global,
    out: &mut Output,
    prefix: Option<&OsStr>,
    after: Option<&str>,
    limit: Option<u64>,
) -> Result<()> {
    if !global.wants_cluster()? {
        let why =
            "nothing happens to a directory that this command has to itself: give a cluster with --connect";
        return Err(Failure::usage(why));
    }
    let prefix = prefix.map(|prefix| global.key_argument(prefix)).transpose()?.unwrap_or_default();
    let after = after.map(decode).transpose()?.unwrap_or_default();
    let remote = Remote::connect(global)?;
    let tree = remote.client().tree(global.tree_name()?.as_deref().unwrap_or(DEFAULT_TREE_NAME));
    let mut changes = remote.wait(tree.watch_prefix_from(&prefix, &after))?;
    let mut told = 0;
    while limit.is_none_or(|limit| told < limit) {
        let event = match changes.try_next() {
            Some(event) => Some(event),
            None => {
                // Whoever reads this gets everything before nothing happens for a while.
                out.finish()?;
                remote.wait(changes.next())
            }
        };
        let Some(event) = event else { break };
        told += 1;
        tell(out, event?, &encode(changes.position()))?;
    }
    Ok(())
}

fn tell(out: &mut Output, event: Event, position: &str) -> Result<()> {
    let document = |event: &str, key: Option<&[u8]>, value: Option<&[u8]>| {
        let mut document = json!({ "event": event, "position": position });
        for (name, bytes) in [("key", key), ("value", value)] {
            if let (Some(bytes), Value::Object(fields)) = (bytes, &mut document) {
                fields.insert(name.into(), bytes::to_json(bytes));
            }
        }
        document
    };
    match event {
        Event::Insert { key, value } if out.json => out.document(&document("put", Some(&key), Some(&value))),
        Event::Insert { key, value } => {
            out.write_bytes(b"+\t").map_err(|error| Failure::output(&error))?;
            out.entry(&key, Some(&value))
        }
        Event::Remove { key } if out.json => out.document(&document("removed", Some(&key), None)),
        Event::Remove { key } => {
            out.write_bytes(b"-\t").map_err(|error| Failure::output(&error))?;
            out.entry(&key, None)
        }
        Event::Clear { .. } => out.summary("cleared", document("cleared", None, None)),
        _ => out.summary("lost", document("lost", None, None)),
    }
}
