//! `backup`, `verify`, `repair` and `stats`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dogsled_storage::disk::{Disk, RealDisk};
use dogsled_storage::{
    LossKind, RepairOptions, RepairReport, VerifyReport, is_own_directory, repair_with, verify_directory,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::args::Global;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::output::{self, Output};
use crate::cli::progress::Progress;
use crate::cli::store;

/// Source and target out of one or two arguments.
fn source_and_target<'a>(
    global: &'a Global,
    directories: &'a [PathBuf],
) -> Result<(&'a PathBuf, &'a PathBuf)> {
    match directories {
        [source, target] => Ok((source, target)),
        [target] => match &global.dir {
            Some(source) => Ok((source, target)),
            None => {
                Err(Failure::usage("give the database's directory and the new one, or --dir and the new one"))
            }
        },
        _ => unreachable!("clap takes one or two"),
    }
}

pub(crate) fn backup(
    global: &Global,
    out: &mut Output,
    directories: &[PathBuf],
    since: &[PathBuf],
) -> Result<()> {
    if !since.is_empty() {
        return Err(Failure::usage("--since is for the backup of a cluster: it needs --connect"));
    }
    let (source, target) = source_and_target(global, directories)?;
    let db = global.open_existing(Some(source))?;
    let total = db.stats()?.keys;
    let progress = Progress::items(Some(total), "backing up", global.quiet);
    let report = db.backup_with(target, |done, _| progress.set(done))?;
    drop(progress);
    out.summary(
        format_args!(
            "{} ({}) of {} copied to {}, as of commit {}",
            output::count(report.keys, "key"),
            output::size(report.bytes),
            source.display(),
            target.display(),
            report.sequence
        ),
        json!({
            "sequence": report.sequence, "trees": report.trees, "keys": report.keys, "bytes": report.bytes,
            "target": target.display().to_string(),
        }),
    )
}

/// Refuses another program's directory before a lock file is put into it.
pub(super) fn require_ours(directory: &Path) -> Result<()> {
    if is_own_directory(&RealDisk, directory).map_err(dogsled::Error::from)? {
        return Ok(());
    }
    Err(Failure::new(
        Code::NotADatabase,
        format!("{}: nothing in it was made by dogsled", directory.display()),
    ))
}

pub(crate) fn verify(global: &Global, out: &mut Output, directory: Option<&PathBuf>) -> Result<()> {
    let directory = global.directory(directory)?;
    store::require_files(directory)?;
    require_ours(directory)?;
    // Not opened: what is damaged need not be fit to be opened, and nothing is recovered first. It is locked all the same.
    let progress = Progress::items(None, "verifying", global.quiet);
    let report = verify_directory(&RealDisk, directory).map_err(dogsled::Error::from)?;
    drop(progress);
    let told = tell_verified(out, &report);
    if report.is_sound() {
        return told;
    }
    Failure::unless_hung_up(told.and_then(|()| out.finish()))?;
    Err(Failure::new(
        Code::Corrupt,
        format!(
            "{} in {}; `dogsled repair` saves what is sound",
            output::count(report.damage.len() as u64, "damaged place"),
            directory.display()
        ),
    ))
}

fn tell_verified(out: &mut Output, report: &VerifyReport) -> Result<()> {
    if out.json {
        let mut fields = to_json(report);
        fields["sound"] = report.is_sound().into();
        return out.document(&fields);
    }
    for damage in &report.damage {
        out.line(format_args!("damaged: {damage}"))?;
    }
    for note in &report.notes {
        out.line(format_args!("note: {note}"))?;
    }
    out.line(format_args!(
        "B-tree: {} of {} in {}; log: {} in {}, with {} not in the B-tree yet; {}",
        output::count(report.keys, "key"),
        output::count(report.trees, "tree"),
        output::count(report.tree_blocks, "block"),
        output::count(report.wal_commits, "commit"),
        output::count(report.wal_segments, "segment"),
        output::count(report.wal_changes, "change"),
        if report.is_sound() { "all sound" } else { "not all sound" }
    ))
}

pub(crate) fn repair(
    global: &Global,
    out: &mut Output,
    directories: &[PathBuf],
    behind_gaps: bool,
) -> Result<()> {
    let (source, target) = source_and_target(global, directories)?;
    store::require_files(source)?;
    let mut options = RepairOptions::default();
    options.apply_behind_gaps = behind_gaps;
    let progress = Progress::items(None, "saving", global.quiet);
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let report =
        repair_with(&disk, source, target, options, &mut |done| progress.set(done.keys + done.commits))
            .map_err(dogsled::Error::from)?;
    drop(progress);
    let told = tell_repaired(out, &report, target);
    // A write that was cut short is what every crash leaves behind, not a loss to act on.
    let losses = report.losses.iter().filter(|loss| loss.kind != LossKind::Tail).count() as u64;
    if losses == 0 {
        return told;
    }
    Failure::unless_hung_up(told.and_then(|()| out.finish()))?;
    Err(Failure::new(Code::Corrupt, format!("{}; the rest is saved", output::count(losses, "loss"))))
}

fn tell_repaired(out: &mut Output, report: &RepairReport, target: &Path) -> Result<()> {
    if out.json {
        return out.document(&to_json(report));
    }
    for loss in &report.losses {
        out.line(format_args!("lost: {loss}"))?;
    }
    for note in &report.notes {
        out.line(format_args!("note: {note}"))?;
    }
    out.line(format_args!(
        "{} ({}) of {} saved to {}, as of commit {}",
        output::count(report.keys, "key"),
        output::size(report.bytes),
        output::count(report.trees, "tree"),
        target.display(),
        report.last_commit
    ))
}

fn to_json(report: &impl Serialize) -> Value {
    serde_json::to_value(report).expect("reports are plain data")
}

pub(crate) fn stats(global: &Global, out: &mut Output, directory: Option<&PathBuf>) -> Result<()> {
    if directory.is_none() && global.wants_cluster()? {
        return Err(Failure::usage(
            "these are figures of a database directory (--dir); those of a cluster are in `dogsled status`, and at \
             /metrics of each node",
        ));
    }
    let db = global.open_existing(directory)?;
    let stats = db.stats()?;
    if out.json {
        return out.document(&to_json(&stats));
    }
    for (name, value) in [
        ("trees", output::number(stats.trees)),
        ("keys", output::number(stats.keys)),
        ("commits", output::number(stats.sequence)),
        ("checkpointed up to commit", output::number(stats.checkpointed_sequence)),
        ("B-tree file", output::size(stats.tree_file_bytes)),
        ("write-ahead log", output::size(stats.wal_file_bytes)),
        ("not in the B-tree yet", output::size(stats.overlay_bytes)),
        ("leaf cache", output::size(stats.leaf_cache_bytes)),
        ("redb's cache, at most", output::size(stats.redb_cache_bytes)),
        ("cache capacity", output::size(stats.cache_capacity)),
    ] {
        out.line(format_args!("{name:<26} {value}"))?;
    }
    Ok(())
}
