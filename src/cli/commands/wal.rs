//! `wal dump` and `wal verify`: the write-ahead log as it lies on disk, without recovering it.
//!
//! Neither changes anything. Both hold the database's lock meanwhile, because a log that is being
//! written looks torn.

use std::collections::HashMap;
use std::path::Path;

use dogsled_storage::codec::decode_effects;
use dogsled_storage::disk::RealDisk;
use dogsled_storage::wal::{Event, RecordKind, Summary, inspect};
use dogsled_storage::{
    COUNTERS_TREE_NAME, DEFAULT_TREE_NAME, EMBEDDED_STREAM, EXPIRY_TREE_NAME, Effect, Effects, Error,
    HASHES_TREE_NAME, IVec, LOCK_QUEUES_TREE_NAME, LOCKS_TREE_NAME, QUOTAS_TREE_NAME, SEQUENCES_TREE_NAME,
    SESSIONS_TREE_NAME, TreeId,
};
use serde_json::{Value, json};

use crate::cli::args::{Global, WalCommand};
use crate::cli::bytes;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::output::{self, Output};
use crate::cli::store;

pub(crate) fn wal(global: &Global, out: &mut Output, command: &WalCommand) -> Result<()> {
    let (WalCommand::Dump { directory, .. } | WalCommand::Verify { directory }) = command;
    let directory = global.directory(directory.as_ref())?;
    store::require_files(directory)?;
    super::upkeep::require_ours(directory)?;
    let _lock = store::hold(directory)?;
    let wal = directory.join("wal");
    match command {
        WalCommand::Dump { limit, .. } => dump(out, &wal, limit.unwrap_or(u64::MAX)),
        WalCommand::Verify { .. } => verify(out, &wal),
    }
}

/// Reads the log; what `each` says goes wrong ends the reading.
fn read(wal: &Path, mut each: impl FnMut(Event<'_>) -> Result<()>) -> Result<Summary> {
    let mut stopped = None;
    let summary = inspect(&RealDisk, wal, &mut |event| {
        each(event).map_err(|failure| {
            let message = failure.message.clone();
            stopped = Some(failure);
            Error::InvalidRequest(message)
        })
    });
    match stopped {
        Some(failure) => Err(failure),
        None => summary.map_err(|error| dogsled::Error::from(error).into()),
    }
}

fn verify(out: &mut Output, wal: &Path) -> Result<()> {
    let mut torn = Vec::new();
    let mut malformed = Vec::new();
    let mut commits = Commits::default();
    let summary = read(wal, |event| {
        match event {
            Event::TornTail { file, offset } => {
                torn.push(json!({ "file": file.display().to_string(), "offset": offset }))
            }
            Event::Record { kind: RecordKind::Append, stream, index, bytes, discarded }
                if stream == EMBEDDED_STREAM && !discarded =>
            {
                if let Err(what) = commits.next(index).and(decode(bytes).map(drop)) {
                    malformed.push(format!("commit {index}: {what}"));
                }
            }
            _ => {}
        }
        Ok(())
    })?;
    let damage: Vec<String> = summary.damage.iter().map(ToString::to_string).chain(malformed).collect();
    let lost = summary.lost_groups.iter().map(|(first, last)| last - first + 1).sum::<u64>();
    let fields = json!({
        "sound": damage.is_empty(), "segments": summary.segments, "frames": summary.frames,
        "records": summary.records, "commits": commits.count, "first_commit": commits.first,
        "last_commit": commits.last, "torn": torn, "damage": damage, "lost_groups": lost,
    });
    if out.json {
        out.document(&fields)?;
    } else {
        out.line(format_args!(
            "{} in {}, {}",
            output::count(commits.count, "commit"),
            output::count(summary.segments as u64, "segment"),
            match (commits.first, commits.last) {
                (Some(first), Some(last)) => format!("{first} to {last}"),
                _ => "none: if the database is sound, all are in the B-tree".to_owned(),
            }
        ))?;
        for torn in &torn {
            out.line(format_args!(
                "the last write was cut short, in {} at offset {}: it was never acknowledged as synced",
                torn["file"].as_str().unwrap_or_default(),
                torn["offset"]
            ))?;
        }
        for damage in &damage {
            out.line(damage)?;
        }
    }
    if damage.is_empty() {
        return if out.json { Ok(()) } else { out.line("sound") };
    }
    Failure::unless_hung_up(out.finish())?;
    let places = output::count(damage.len() as u64, "damaged place");
    let groups = if lost > 0 { format!(", {} lost", output::count(lost, "group")) } else { String::new() };
    Err(Failure::new(Code::Corrupt, format!("{places}{groups}; `dogsled repair` saves what is sound")))
}

/// Which commits a log holds.
#[derive(Default)]
struct Commits {
    first: Option<u64>,
    last: Option<u64>,
    count: u64,
}

impl Commits {
    fn next(&mut self, index: u64) -> Result<(), String> {
        let expected = self.last.map(|last| last + 1);
        self.first.get_or_insert(index);
        self.last = Some(index);
        self.count += 1;
        match expected {
            Some(expected) if expected != index => Err(format!("commit {expected} should come here")),
            _ => Ok(()),
        }
    }
}

fn decode(bytes: &[u8]) -> Result<(u64, Effects), String> {
    decode_effects(bytes)
        .and_then(|(time, effects)| Ok((time, effects.to_owned()?)))
        .map_err(|malformed| malformed.to_string())
}

fn dump(out: &mut Output, wal: &Path, limit: u64) -> Result<()> {
    let mut names = HashMap::from(
        [
            (TreeId::DEFAULT, DEFAULT_TREE_NAME),
            (TreeId::COUNTERS, COUNTERS_TREE_NAME),
            (TreeId::LOCKS, LOCKS_TREE_NAME),
            (TreeId::EXPIRY, EXPIRY_TREE_NAME),
            (TreeId::LOCK_QUEUES, LOCK_QUEUES_TREE_NAME),
            (TreeId::SEQUENCES, SEQUENCES_TREE_NAME),
            (TreeId::QUOTAS, QUOTAS_TREE_NAME),
            (TreeId::HASHES, HASHES_TREE_NAME),
            (TreeId::SESSIONS, SESSIONS_TREE_NAME),
        ]
        .map(|(id, name)| (id, IVec::from(name))),
    );
    let mut shown = 0;
    let mut damaged = 0;
    if !out.json {
        out.line("commit\ttime\toperation\ttree\tkey\tvalue")?;
    }
    let summary = read(wal, |event| {
        match event {
            Event::Record { kind: RecordKind::Append, stream, index, bytes, discarded }
                if stream == EMBEDDED_STREAM && shown < limit =>
            {
                shown += 1;
                match decode(bytes) {
                    Ok((time, effects)) => return commit(out, &mut names, index, time, &effects, discarded),
                    Err(what) => {
                        damaged += 1;
                        out.remark(format_args!("commit {index}: {what}"));
                    }
                }
            }
            Event::Damage(corruption) => out.remark(corruption),
            Event::TornTail { file, offset } => {
                out.remark(format_args!(
                    "{} at offset {offset}: the last write was cut short",
                    file.display()
                ));
            }
            _ => {}
        }
        Ok(())
    })?;
    let places = summary.damage.len() as u64 + damaged;
    if places == 0 {
        return Ok(());
    }
    Failure::unless_hung_up(out.finish())?;
    Err(Failure::new(Code::Corrupt, format!("{} in the log", output::count(places, "damaged place"))))
}

fn commit(
    out: &mut Output,
    names: &mut HashMap<TreeId, IVec>,
    sequence: u64,
    time_ms: u64,
    effects: &Effects,
    discarded: bool,
) -> Result<()> {
    let mut described = Vec::with_capacity(effects.len());
    for effect in effects {
        if let Effect::CreateTree { id, name } = effect {
            names.insert(*id, name.clone());
        }
        // A name that was given before this log begins is in the B-tree only.
        let name = |id: &TreeId| names.get(id).cloned().unwrap_or_else(|| IVec::from(format!("#{}", id.0)));
        let (operation, tree, key, value): (_, Option<IVec>, Option<&IVec>, Option<&IVec>) = match effect {
            Effect::Put { tree, key, value, .. } => ("put", Some(name(tree)), Some(key), Some(value)),
            Effect::Remove { tree, key } => ("remove", Some(name(tree)), Some(key), None),
            Effect::Tell { tree, key, value } => ("tell", Some(name(tree)), Some(key), Some(value)),
            Effect::Clear { tree } => ("clear", Some(name(tree)), None, None),
            Effect::CreateTree { name, .. } => ("create", Some(name.clone()), None, None),
            Effect::DropTree { id } => ("drop", Some(name(id)), None, None),
            Effect::SetNextId { .. } => ("reserve ids", None, None, None),
        };
        if out.json {
            let mut fields = serde_json::Map::new();
            fields.insert("operation".into(), operation.into());
            for (field, bytes) in [("tree", tree.as_ref()), ("key", key), ("value", value)] {
                if let Some(bytes) = bytes {
                    fields.insert(field.into(), bytes::to_json(bytes));
                }
            }
            described.push(Value::Object(fields));
            continue;
        }
        let text = |bytes: Option<&IVec>| bytes.map(|bytes| bytes::display(bytes)).unwrap_or_default();
        let operation = if discarded { format!("(discarded) {operation}") } else { operation.to_owned() };
        let line = format!(
            "{sequence}\t{}\t{operation}\t{}\t{}\t{}",
            timestamp(time_ms),
            text(tree.as_ref()),
            text(key),
            text(value)
        );
        out.line(line.trim_end_matches('\t'))?;
    }
    if out.json {
        out.document(&json!({
            "sequence": sequence, "time_ms": time_ms, "discarded": discarded, "effects": described,
        }))?;
    }
    Ok(())
}

/// Milliseconds since 1970 as `2026-11-21T03:28:00.123Z`.
fn timestamp(time_ms: u64) -> String {
    let (days, rest) = (time_ms / 86_400_000, time_ms % 86_400_000);
    // Years that begin in March make the leap day the last; eras of 400 years repeat.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hours, minutes, seconds) = (rest / 3_600_000, rest / 60_000 % 60, rest / 1000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{hours:02}:{minutes:02}:{seconds:02}.{:03}Z", rest % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_those_of_the_calendar() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400_000), "2000-02-29T00:00:00.000Z");
        assert_eq!(timestamp(951_868_799_999), "2000-02-29T23:59:59.999Z");
        assert_eq!(timestamp(1_795_231_680_123), "2026-11-21T03:28:00.123Z");
        assert_eq!(timestamp(4_107_542_400_000), "2100-03-01T00:00:00.000Z");
    }
}
