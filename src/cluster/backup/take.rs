//! Making a backup.
//!
//! A thread for each partition writes its file, and reads what earlier backups had. What it wants of the nodes it asks for
//! where the network is waited for ([`Wanted`]); when nobody answers there any more, it ends.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use dogsled_replication::meta::Record as ClusterRecord;
use dogsled_replication::pin::{PinnedPage, PinnedRead, PinnedState};
use dogsled_storage::disk::{Disk, DiskLock, RealDisk};
use dogsled_storage::pin::{PinnedEntry, PinnedPart};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use super::batches::Batches;
use super::chain::{Chain, Merged};
use super::format::{self, Manifest, PartitionEntry, Record, Section, Sum, Writer};
use super::pinned::PinnedCluster;
use super::unfinished::{self, Earlier, Kept};
use super::{BackupError, MARKER_TREE, blocking, joined};
use crate::IVec;
use crate::cluster::{Client, Error};

/// About how many bytes a page has.
const PAGE_BYTES: u32 = 1 << 20;
/// Partitions that are copied at a time.
const TOGETHER: usize = 4;
/// Locked, and empty, while a backup is made.
const LOCK: &str = "LOCK";
/// Records of earlier backups that are looked at in one go.
const BATCH_RECORDS: usize = 2048;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct BackupReport {
    /// Its number.
    pub backup: u128,
    /// Records in it: keys, fields of hashes, and what is known of numbered keys; or what of it has changed.
    pub records: u64,
    /// Bytes of its files.
    pub bytes: u64,
    /// Partitions.
    pub partitions: u32,
    /// Records that were there already, of a backup in the same directory that was not finished.
    pub kept: u64,
}

/// What the thread of a partition wants.
enum Wanted {
    /// A page of what is pinned.
    Page { group: u32, read: PinnedRead, reply: oneshot::Sender<crate::cluster::Result<PinnedPage>> },
    /// That it is known that it has looked at so many more keys.
    Progress(u64),
}

impl Client {
    /// Writes the state of the cluster at this moment into a new directory; with `since`, only what has changed since
    /// the last of these, a complete backup and what was added to it, oldest first. `progress` is told how many keys
    /// of about how many were looked at. See [`backup`](super).
    ///
    /// # Errors
    /// [`BackupError::Refused`] if the directory holds something, or the chain does not fit; [`BackupError::Damaged`] if
    /// that is damaged; [`BackupError::Cluster`] with [`Error::Conflict`] if a node that held a part of the state
    /// stopped: ask again. A backup that failed is none; one that is made in its place uses what that has copied.
    pub async fn backup(
        &self,
        directory: &Path,
        since: &[PathBuf],
        progress: impl Fn(u64, u64),
    ) -> Result<BackupReport, BackupError> {
        let record = self.record().await?;
        let cluster = self.map().await?.cluster;
        let chain = match since {
            [] => None,
            since => Some(self.chain_of(since, cluster, &record).await?),
        };
        let path = directory.to_owned();
        let held = blocking(self, move || prepare(&path)).await?;
        let mut pinned = PinnedCluster::pin(self).await?;
        if let Some(chain) = &chain
            && chain.partitions() as usize != pinned.states.len()
        {
            let why = "the earlier backup has another number of partitions than the cluster";
            return Err(BackupError::Refused(format!("{why}: take a complete backup")));
        }
        let made = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let partition = |state: &PinnedState, sum| PartitionEntry {
            position: state.position,
            time_ms: state.time_ms,
            sum,
        };
        let planned = Manifest {
            backup: pinned.under.0,
            parent: chain.as_ref().map_or(0, |chain| chain.newest().backup),
            cluster,
            made_ms: made.as_millis() as u64,
            partitions: pinned.states.values().map(|state| partition(state, Sum::default())).collect(),
            trees: Vec::new(),
            removed_members: removed_members(&record),
        };
        let (path, plan, beside) = (directory.to_owned(), planned.clone(), Arc::clone(&held));
        let take_over = move || {
            // Nobody else is to come before this has ended.
            let _held = beside;
            unfinished::take_over(&path, LOCK, &plan)
        };
        let earlier = blocking(self, take_over).await?;
        let total = pinned.states.values().flat_map(|state| &state.trees).map(|(_, keys)| keys).sum();
        let progress = |done: u64| progress(done.min(total), total);
        let copied = self.copy(directory, &held, &pinned, &chain, earlier, &progress).await;
        pinned.let_go().await;
        let copies = copied?;
        // Not that of before: what was pinned may be in trees that came in between.
        let now = self.record().await?;
        if removed_members(&now) != removed_members(&record) {
            let what = "members were taken out of the cluster while it was backed up";
            return Err(Error::Conflict(what.to_owned()).into());
        }
        let manifest = Manifest {
            partitions: copies
                .iter()
                .map(|copied| partition(&pinned.states[&copied.group], copied.sum))
                .collect(),
            trees: now
                .trees
                .iter()
                .filter(|(_, tree)| tree.in_force)
                .map(|(name, tree)| tree.hash.stored_name(name))
                .collect(),
            ..planned
        };
        let report = BackupReport {
            backup: manifest.backup,
            records: copies.iter().map(|copied| copied.sum.records).sum(),
            bytes: copies.iter().map(|copied| copied.sum.length).sum(),
            partitions: copies.len() as u32,
            kept: copies.iter().map(|copied| copied.kept).sum(),
        };
        let path = directory.to_owned();
        let finish = move || {
            manifest.write(&path)?;
            unfinished::forget(&path);
            held.leave();
            Ok(())
        };
        blocking(self, finish).await?;
        Ok(report)
    }

    /// The earlier backups, if they are sound and of this cluster.
    async fn chain_of(
        &self,
        since: &[PathBuf],
        cluster: u128,
        record: &ClusterRecord,
    ) -> Result<Arc<Chain>, BackupError> {
        let since = since.to_vec();
        let chain = Arc::new(blocking(self, move || Chain::open(&since)).await?);
        let newest = chain.newest();
        let why = if newest.cluster != cluster {
            "the earlier backup is of another cluster"
        } else if newest.removed_members != removed_members(record) {
            "members were taken out since the earlier backup, and what has changed cannot be told for certain"
        } else {
            let mut batches = Batches::read(self, &chain, 0, BATCH_RECORDS);
            while batches.next().await.is_some() {}
            batches.end().await?;
            return Ok(chain);
        };
        Err(BackupError::Refused(format!("{why}: take a complete backup")))
    }

    /// Copies all partitions; what their files came to.
    async fn copy(
        &self,
        directory: &Path,
        held: &Arc<Held>,
        pinned: &PinnedCluster,
        chain: &Option<Arc<Chain>>,
        mut earlier: BTreeMap<u32, Earlier>,
        progress: &impl Fn(u64),
    ) -> Result<Vec<Copied>, BackupError> {
        let (asks, mut asked) = mpsc::channel(2 * TOGETHER);
        let copies = pinned.states.iter().map(|(group, state)| {
            let (directory, chain, asks) = (directory.to_owned(), chain.clone(), asks.clone());
            let (group, backup, trees) = (*group, pinned.under.0, state.trees.clone());
            let (held, earlier) = (Arc::clone(held), earlier.remove(&group));
            let copy = move || {
                // Nobody else is to write here before this has ended, be it that nobody waits for it any more.
                let _held = held;
                let kept = earlier.map(Earlier::read).unwrap_or_default();
                let mut copy = Copy::new(group, chain.as_deref(), kept, asks)?;
                let sum = copy.run(&trees, Writer::create(&directory, backup, group)?)?;
                copy.kept.remove();
                Ok(Copied { group, sum, kept: copy.used })
            };
            async move { joined(self.runtime().spawn_blocking(copy).await) }
        });
        // Lazily: a thread begins when there is room for it.
        let (mut waiting, mut copies) = (copies, FuturesUnordered::new());
        copies.extend(waiting.by_ref().take(TOGETHER));
        let (mut pages, mut done_with, mut done) = (FuturesUnordered::new(), Vec::new(), 0);
        let failed = loop {
            tokio::select! {
                Some(wanted) = asked.recv() => match wanted {
                    Wanted::Page { group, read, reply } => pages.push(async move {
                        // Its thread has ended if it does not take it.
                        let _ = reply.send(pinned.page(group, read).await);
                    }),
                    Wanted::Progress(more) => {
                        done += more;
                        progress(done);
                    }
                },
                Some(()) = pages.next(), if !pages.is_empty() => {}
                copied = copies.next() => match copied {
                    Some(Ok(copied)) => {
                        pinned.done_with(copied.group);
                        done_with.push(copied);
                        copies.extend(waiting.next());
                    }
                    Some(Err(error)) => break Some(error),
                    None => break None,
                },
            }
        };
        if let Some(error) = failed {
            // Whoever makes a backup in its place must not meet them.
            drop((asked, pages));
            while copies.next().await.is_some() {}
            return Err(error);
        }
        done_with.sort_unstable_by_key(|copied| copied.group);
        Ok(done_with)
    }
}

/// What the file of a partition came to.
struct Copied {
    group: u32,
    sum: Sum,
    /// Records of it that were there already.
    kept: u64,
}

fn removed_members(record: &ClusterRecord) -> Vec<u64> {
    record.removed.iter().map(|node| node.0).collect()
}

/// A directory in which nobody else makes a backup meanwhile.
#[derive(Debug)]
pub(super) struct Held {
    path: PathBuf,
    /// `None`: the file system knows no locks.
    _lock: Option<Box<dyn DiskLock>>,
}

impl Held {
    /// Takes the lock file away, when there is a backup: then whoever comes finds that, be it by a lock of its own. If the
    /// backup came to nothing the file stays, because whoever waits for it might lock what is no file any more.
    fn leave(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes the directory; nothing is in it but what is left of a backup that was not finished.
pub(super) fn prepare(directory: &Path) -> Result<Arc<Held>, BackupError> {
    let io = |error: std::io::Error| BackupError::Io { path: directory.to_owned(), error: error.to_string() };
    // With the names of what is made: a backup whose directory a power cut takes is none.
    RealDisk.create_directories(directory).map_err(io)?;
    // First: what is somebody else's gets no file of ours.
    unfinished::check(directory, LOCK)?;
    let path = directory.join(LOCK);
    let lock = match RealDisk.lock(&path) {
        Ok(Some(lock)) => Some(lock),
        Ok(None) => {
            let shown = directory.display();
            return Err(BackupError::Refused(format!(
                "another backup is being made in {shown}: name a new directory"
            )));
        }
        Err(error) if knows_no_locks(&error) => None,
        Err(error) => return Err(io(error)),
    };
    // Again: whoever had the lock before may have finished.
    unfinished::check(directory, LOCK)?;
    Ok(Arc::new(Held { path, _lock: lock }))
}

/// Whether a file system has no locks, or a server of it nobody who keeps them.
fn knows_no_locks(error: &std::io::Error) -> bool {
    // ENOLCK, for which the standard library has no name.
    let no_locks = if cfg!(target_os = "linux") { 37 } else { 77 };
    error.kind() == std::io::ErrorKind::Unsupported || error.raw_os_error() == Some(no_locks)
}

/// What the backups before had in the partition, and where one is in it.
struct Before {
    records: Option<Merged>,
    next: Option<(Section, Record)>,
}

impl Before {
    fn new(mut records: Option<Merged>) -> Result<Before, BackupError> {
        let next = records.as_mut().map(Merged::next).transpose()?.flatten();
        Ok(Before { records, next })
    }

    fn take(&mut self) -> Result<Option<(Section, Record)>, BackupError> {
        let following = self.records.as_mut().map(Merged::next).transpose()?.flatten();
        Ok(std::mem::replace(&mut self.next, following))
    }
}

/// The copying of one partition.
struct Copy {
    group: u32,
    since: u64,
    before: Before,
    /// What was copied before it was interrupted.
    kept: Kept,
    /// Records that were taken from there.
    used: u64,
    asks: mpsc::Sender<Wanted>,
}

/// Whoever asked for the backup is gone.
fn given_up() -> BackupError {
    BackupError::Cluster(Error::Closed)
}

impl Copy {
    fn new(
        group: u32,
        chain: Option<&Chain>,
        kept: Kept,
        asks: mpsc::Sender<Wanted>,
    ) -> Result<Copy, BackupError> {
        let (since, before) = match chain {
            Some(chain) => {
                let since = chain.newest().partitions[group as usize - 1].position;
                (since, Some(chain.partition(group)?))
            }
            None => (0, None),
        };
        Ok(Copy { group, since, before: Before::new(before)?, kept, used: 0, asks })
    }

    fn run(&mut self, trees: &[(IVec, u64)], mut writer: Writer) -> Result<Sum, BackupError> {
        for (tree, _) in trees {
            if &tree[..] == MARKER_TREE {
                return Err(BackupError::Refused(
                    "a restore into this cluster was not finished: finish it first, by the same command"
                        .to_owned(),
                ));
            }
            for part in [format::KEYS, format::NUMBERS] {
                let section = (tree.clone(), part);
                self.gone(&mut writer, |other| other < &section)?;
                writer.begin(&section)?;
                self.section(&section, &mut writer)?;
                while let Some(record) = self.removed(|other, _| other == &section)? {
                    writer.record(&record)?;
                }
                writer.end()?;
            }
        }
        self.gone(&mut writer, |_| true)?;
        writer.finish()
    }

    /// The next record of before, as one that was removed, if it is one of these.
    fn removed(&mut self, which: impl Fn(&Section, &IVec) -> bool) -> Result<Option<Record>, BackupError> {
        match &self.before.next {
            Some((section, record)) if which(section, &record.key) => {}
            _ => return Ok(None),
        }
        let taken = self.before.take()?;
        Ok(taken.map(|(_, record)| Record { version: 0, expires_ms: None, value: None, ..record }))
    }

    /// Trees that are not there any more.
    fn gone(&mut self, writer: &mut Writer, which: impl Fn(&Section) -> bool) -> Result<(), BackupError> {
        while let Some(section) = self.before.next.as_ref().map(|(section, _)| section.clone()).filter(&which)
        {
            writer.begin(&section)?;
            while let Some(record) = self.removed(|other, _| other == &section)? {
                writer.record(&record)?;
            }
            writer.end()?;
        }
        Ok(())
    }

    fn read(
        &self,
        (tree, part): &Section,
        after: Option<&IVec>,
        since: u64,
        limit_bytes: u32,
    ) -> Result<PinnedPage, BackupError> {
        let read = PinnedRead {
            tree: bytes::Bytes::copy_from_slice(tree),
            part: if *part == format::KEYS { PinnedPart::Keys } else { PinnedPart::Numbers },
            after: after.map(|after| bytes::Bytes::copy_from_slice(after)),
            since,
            limit_bytes,
        };
        let (reply, answer) = oneshot::channel();
        let wanted = Wanted::Page { group: self.group, read, reply };
        self.asks.blocking_send(wanted).map_err(|_| given_up())?;
        Ok(answer.blocking_recv().map_err(|_| given_up())??)
    }

    fn section(&mut self, section: &Section, writer: &mut Writer) -> Result<(), BackupError> {
        let mut after: Option<IVec> = None;
        loop {
            // What was copied before has the values of what was not written since, as far as it goes.
            let since = self.kept.more_as_of().map_or(self.since, |position| position.max(self.since));
            let page = self.read(section, after.as_ref(), since, PAGE_BYTES)?;
            let (mut keys, mut is_beyond) = (0, false);
            // Or it would never end.
            if let (Some(next), Some(after)) = (&page.next, &after)
                && next <= after
            {
                let what = format!("group {} tells the same keys again", self.group);
                return Err(Error::Incompatible(what).into());
            }
            for PinnedEntry { key, version, expires_ms, mut value } in page.entries {
                let kept = self.kept.value(section, &key, version);
                while let Some(record) = self.removed(|other, before| other == section && before < &key)? {
                    writer.record(&record)?;
                }
                let known = self.before.next.as_ref();
                let known = known.filter(|(other, before)| other == section && before.key == key);
                let is_known = known.is_some();
                let is_same = known
                    .is_some_and(|(_, before)| (before.version, before.expires_ms) == (version, expires_ms));
                if !is_same && value.is_none() && kept.is_none() && since > self.since {
                    // From here on with values, if it was copied no further than to here.
                    is_beyond = self.kept.more_as_of().is_none();
                    if is_beyond {
                        break;
                    }
                }
                if is_known {
                    self.before.take()?;
                }
                if !is_same {
                    if value.is_none() {
                        self.used += u64::from(kept.is_some());
                        value = kept;
                    }
                    if value.is_none() {
                        // Only when it expires has changed, or that it dies with a session.
                        let one = self.read(section, after.as_ref(), 0, 1)?;
                        value = one.entries.into_iter().find(|one| one.key == key).and_then(|one| one.value);
                    }
                    let Some(value) = value else {
                        let what = format!("group {} tells a key without its value", self.group);
                        return Err(Error::Incompatible(what).into());
                    };
                    writer.record(&Record { key: key.clone(), version, expires_ms, value: Some(value) })?;
                }
                (after, keys) = (Some(key), keys + 1);
            }
            if section.1 == format::KEYS {
                self.asks.blocking_send(Wanted::Progress(keys)).map_err(|_| given_up())?;
            }
            // An empty page is not the end: so much was looked at that is in another section, or nowhere.
            match page.next {
                _ if is_beyond => {}
                Some(next) => after = Some(next),
                None => return Ok(()),
            }
        }
    }
}
