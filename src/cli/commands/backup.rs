//! `backup` and `restore` of a cluster; see [`dogsled::cluster::backup`].

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use dogsled::cluster::Error;
use dogsled::cluster::backup::{BackupError, RestoreOptions, RestoreStage};
use serde_json::json;

use crate::cli::args::Global;
use crate::cli::exit::{Code, Failure, Result};
use crate::cli::output::{self, Output};
use crate::cli::progress::Progress;
use crate::cli::remote::Remote;

/// How long one request may take.
const TIMEOUT: u64 = 60;
/// A moment that was lost, because a node that held a part of it stopped, is given up for another so often.
const ATTEMPTS: u32 = 3;

impl From<BackupError> for Failure {
    fn from(error: BackupError) -> Failure {
        match error {
            BackupError::Cluster(error) => error.into(),
            BackupError::Io { .. } => Failure::new(Code::Io, error.to_string()),
            BackupError::Damaged { .. } => Failure::new(Code::BadInput, error.to_string()),
            BackupError::Refused(what) => Failure::refused(what),
            // What may come later is no success either.
            other => Failure::new(Code::Corrupt, other.to_string()),
        }
    }
}

/// Waits, unless the user has enough of it.
async fn unless_interrupted<T>(work: impl Future<Output = T>) -> Option<T> {
    tokio::select! {
        done = work => Some(done),
        // Where it cannot be listened for, it ends the process.
        Ok(()) = tokio::signal::ctrl_c() => None,
    }
}

pub(crate) fn backup(
    global: &Global,
    out: &mut Output,
    directories: &[PathBuf],
    since: &[PathBuf],
) -> Result<()> {
    let [directory] = directories else {
        return Err(Failure::usage("the cluster is copied: name only the new directory"));
    };
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let mut attempt = 0;
    let report = loop {
        attempt += 1;
        let bar: Mutex<Option<Progress>> = Mutex::new(None);
        let told = |done, total| {
            let mut bar = bar.lock().unwrap_or_else(PoisonError::into_inner);
            bar.get_or_insert_with(|| Progress::items(Some(total), "backing up", global.quiet)).set(done);
        };
        let none = "no backup was made; the same command uses what was copied";
        match remote.wait(unless_interrupted(client.backup(directory, since, told))) {
            Some(Err(BackupError::Cluster(Error::Conflict(_)))) if attempt < ATTEMPTS => {}
            Some(Ok(report)) => break report,
            Some(Err(error @ BackupError::Cluster(_))) => return Err(Failure::from(error).adding(none)),
            Some(Err(error)) => return Err(Failure::from(error).adding("no backup was made")),
            None => return Err(Failure::new(Code::Unavailable, "interrupted").adding(none)),
        }
    };
    out.summary(
        format_args!(
            "{} of {} in {} backed up to {}{}",
            output::count(report.records, if since.is_empty() { "key" } else { "change" }),
            output::count(report.partitions.into(), "partition"),
            output::size(report.bytes),
            directory.display(),
            match report.kept {
                0 => String::new(),
                kept => format!("; {kept} of them were there of one that was not finished"),
            }
        ),
        json!({
            "backup": format!("{:032x}", report.backup), "records": report.records, "bytes": report.bytes,
            "partitions": report.partitions, "kept": report.kept, "target": directory.display().to_string(),
        }),
    )
}

pub(crate) fn restore(
    global: &Global,
    out: &mut Output,
    directories: &[PathBuf],
    merge: bool,
    no_check: bool,
) -> Result<()> {
    if !global.wants_cluster()? {
        return Err(Failure::usage("a backup is restored into a cluster: name its nodes with --connect"));
    }
    let remote = Remote::connect(global)?;
    let client = remote.patient_client(global, TIMEOUT);
    let bar: RefCell<Option<(RestoreStage, Progress)>> = RefCell::new(None);
    let told = |stage: RestoreStage, done, total| {
        let mut bar = bar.borrow_mut();
        if bar.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            let new = match stage {
                RestoreStage::Verifying => Progress::bytes(Some(total), "checking", global.quiet),
                RestoreStage::Writing => Progress::items(Some(total), "restoring", global.quiet),
                RestoreStage::Comparing => Progress::items(Some(total), "comparing", global.quiet),
            };
            *bar = Some((stage, new));
        }
        if let Some((_, bar)) = &*bar {
            bar.set(done);
        }
    };
    let options = RestoreOptions::default().with(merge, no_check);
    let report = remote.wait(unless_interrupted(client.restore(directories, options, told)));
    let stage = bar.take().map(|(stage, _)| stage);
    let has_begun = stage.is_some_and(|stage| stage != RestoreStage::Verifying);
    let is_comparing = stage == Some(RestoreStage::Comparing);
    let unfinished = |why: &str| match has_begun {
        true => Failure::new(
            Code::OutcomeUnknown,
            format!("{why}; a part was restored, and the same command goes on with it"),
        ),
        false => Failure::new(
            Code::Unavailable,
            format!("{why}; nothing was written, the same command begins anew"),
        ),
    };
    let report = match report {
        Some(Ok(report)) => report,
        None => return Err(unfinished("interrupted")),
        Some(Err(BackupError::Cluster(error @ (Error::Unavailable(_) | Error::OutcomeUnknown(_))))) => {
            return Err(unfinished(&error.to_string()));
        }
        Some(Err(error @ BackupError::Damaged { .. })) => {
            return Err(Failure::from(error).adding("nothing was written"));
        }
        Some(Err(error)) => {
            // Only what is compared in the end can differ.
            let was_written = is_comparing && matches!(error, BackupError::Differs(_));
            let mut failure = Failure::from(error);
            if has_begun && was_written {
                let ends = "all of it was written; if others wrote meanwhile, the same command with --merge or \
                            --no-check ends it";
                failure = failure.adding(ends);
            } else if has_begun {
                failure.message =
                    failure.message.replace("nothing was done, ", "").replace("nothing was done: ", "");
                failure = failure.adding("a part was restored, and the same command goes on with it");
            }
            return Err(failure);
        }
    };
    let checked = if no_check { "" } else { ", read back and found equal" };
    out.summary(
        format_args!("{} restored{checked}", output::count(report.records, "key")),
        json!({ "records": report.records, "resumed_at": report.resumed_at, "checked": !no_check }),
    )
}
