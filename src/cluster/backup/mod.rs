//! Backups of a whole cluster, and bringing them back, into a cluster of any size.
//!
//! ```no_run
//! # async fn run(client: dogsled::cluster::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use dogsled::cluster::backup::RestoreOptions;
//! use std::path::PathBuf;
//!
//! let (full, monday) = (PathBuf::from("full"), PathBuf::from("monday"));
//! client.backup(&full, &[], |_, _| {}).await?;
//! client.backup(&monday, &[full.clone()], |_, _| {}).await?; // only what has changed
//! # let other = client.clone();
//! other.restore(&[full, monday], RestoreOptions::default(), |_, _, _| {}).await?;
//! # Ok(()) }
//! ```
//!
//! **Promise.** A backup is the state of all partitions at one moment between the call and its return: whatever was
//! acknowledged before is in it, of a transaction over several partitions all or nothing, and of two writes one after
//! the other not the second without the first. Writes go on meanwhile; they are kept off for a few rounds of messages
//! while that moment is [pinned](dogsled_storage::pin), however much there is to copy. Memory is bounded on both sides.
//!
//! **In it** are all trees with keys, values, the versions of the keys, times to live, the numbers that come next,
//! counters, hashes with their fields, and what is hashed of the keys of which tree. **Not in it** are keys that have
//! expired, sessions and what dies with them, locks, trees that have no keys, and the cluster's own members and settings.
//! Fencing tokens begin anew in the restored cluster: whatever outside of it remembers the tokens of the old one has to
//! forget them.
//!
//! **Changes only.** A backup can add to earlier ones of the same cluster. Every partition tells the keys and versions
//! that it has, and the values of what was written since; what was removed is found by comparing that with the chain of
//! earlier backups, which is read for it. So what is stored and sent of values is only what has changed, but keys are all
//! read. It is refused if the chain is of another cluster, or members were taken out since (a
//! [recovery](dogsled_replication::recovery) does that, and may give a position of the log another meaning): then take a
//! complete one.
//!
//! **If something fails.** A backup that was not finished has no manifest; it is refused as a backup, and one that is made
//! in the same directory takes its place; while it is still being made, another is refused. That is as of a new moment,
//! because the old one is gone, but takes from the files that are there what has not changed since: only keys are read
//! again. Neither writers nor nodes wait for a client that has died longer than a lease lasts:
//! 10 seconds of the log's time for the locks, a minute for what is pinned.
//!
//! **Restoring** reads and checks all files before anything is written. It can be interrupted at any moment; called again,
//! it goes on, which it knows by a tree of its own in the cluster. Versions are new ones there. In the end it reads
//! all keys and hashes back and compares (not the numbers that come next). Nobody else should write meanwhile. To a
//! cluster with keys it is refused, unless it is to be merged: what is in both is overwritten then.

mod batches;
mod chain;
mod compare;
mod format;
mod moment;
mod pinned;
mod restore;
mod take;
#[cfg(test)]
mod tests;
mod unfinished;

use std::fmt;
use std::path::PathBuf;

use tokio::task::JoinError;

use super::{Client, Error};

pub use self::moment::Moment;
pub use self::restore::{RestoreOptions, RestoreReport, RestoreStage};
pub use self::take::BackupReport;

/// The tree that says how far a restore has come.
pub(super) use dogsled_replication::pin::RESTORE_TREE_NAME as MARKER_TREE;

/// Why a backup was not made, or not restored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackupError {
    /// What the cluster says.
    Cluster(Error),
    /// What the operating system says of a file.
    Io {
        /// Which.
        path: PathBuf,
        /// What.
        error: String,
    },
    /// A file of the backup is damaged. Nothing was written.
    Damaged {
        /// Which.
        path: PathBuf,
        /// The byte at which the damaged part begins.
        offset: u64,
        /// What is wrong there.
        what: String,
    },
    /// It cannot be done as it was asked for; nothing was done.
    Refused(String),
    /// What was restored is not what is in the backup.
    Differs(String),
}

impl fmt::Display for BackupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BackupError::Cluster(error) => error.fmt(f),
            BackupError::Io { path, error } => write!(f, "{}: {error}", path.display()),
            BackupError::Damaged { path, offset, what } => {
                write!(f, "{}: offset {offset}: {what}", path.display())
            }
            BackupError::Refused(what) => f.write_str(what),
            BackupError::Differs(what) => write!(f, "the cluster does not hold what was restored: {what}"),
        }
    }
}

impl std::error::Error for BackupError {}

impl From<Error> for BackupError {
    fn from(error: Error) -> BackupError {
        BackupError::Cluster(error)
    }
}

/// Has done what waits for a disk, by a thread of its own.
async fn blocking<T: Send + 'static>(
    client: &Client,
    run: impl FnOnce() -> Result<T, BackupError> + Send + 'static,
) -> Result<T, BackupError> {
    joined(client.runtime().spawn_blocking(run).await)
}

/// What came of that.
fn joined<T>(done: Result<Result<T, BackupError>, JoinError>) -> Result<T, BackupError> {
    match done.map_err(JoinError::try_into_panic) {
        Ok(done) => done,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        // The threads are being stopped.
        Err(Err(_)) => Err(Error::Closed.into()),
    }
}
