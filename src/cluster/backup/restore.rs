//! Restoring a backup.
//!
//! How far it has come is kept in a tree of the cluster, [`MARKER_TREE`], by the number of the newest backup: so many
//! records of the chain are there. Whatever is written behind that may be written again; all writes here can be.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use dogsled_replication::ring::TreeHash;
use dogsled_storage::codec::Listed;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::strings::notices::Wanted;
use dogsled_storage::strings::{StringAction, StringsOperation, StringsReplies, StringsReply};
use dogsled_storage::{
    Command, ExpiryCommand, LOCKS_TREE_NAME, OwnedCommand, Reply, SESSIONS_TREE_NAME, SetIf,
    TRANSACTIONS_TREE_NAME, TreeId, When,
};
use futures_util::future::try_join_all;

use super::batches::{Batch, Batches, Hash, Stretch, is_of_events, is_of_hashes};
use super::chain::Chain;
use super::format::{self, Record};
use super::{BackupError, MARKER_TREE, blocking};
use crate::IVec;
use crate::cluster::core::unexpected;
use crate::cluster::{Client, Error, redis};

/// A batch is written when it has so many records.
const BATCH_RECORDS: usize = 2048;
/// Keys with a time to live that are written at a time.
const TOGETHER: usize = 256;
/// How often a batch is tried.
const ATTEMPTS: u32 = 8;

/// How to restore.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RestoreOptions {
    /// Into a cluster that holds something: what is in both is overwritten, all else stays.
    pub merge: bool,
    /// Without reading it back and comparing.
    pub skip_check: bool,
}

impl RestoreOptions {
    /// The same, with these choices.
    #[must_use]
    pub fn with(self, merge: bool, skip_check: bool) -> RestoreOptions {
        RestoreOptions { merge, skip_check }
    }
}

/// What a restore does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RestoreStage {
    /// It reads the backup to its end; in bytes.
    Verifying,
    /// It writes; in records.
    Writing,
    /// It reads back; in records.
    Comparing,
}

/// What was restored.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RestoreReport {
    /// Records that the backup holds.
    pub records: u64,
    /// How many of them an earlier call had written already.
    pub resumed_at: u64,
}

const UNFINISHED: &str = "the restore of another backup was not finished here: finish that, by the same command, \
                          or begin with an empty cluster";

impl Client {
    /// Reads a backup from its directory, and those that were added to it, oldest first, to its end, and writes what
    /// it holds into this cluster. Interrupted, it goes on when it is called again. Needs an administrator's certificate. See
    /// [`backup`](super).
    ///
    /// # Errors
    /// [`BackupError::Damaged`] before anything is written; [`BackupError::Refused`] if the cluster holds something;
    /// [`BackupError::Differs`] if it does not hold in the end what was written.
    pub async fn restore(
        &self,
        directories: &[PathBuf],
        options: RestoreOptions,
        progress: impl Fn(RestoreStage, u64, u64),
    ) -> Result<RestoreReport, BackupError> {
        let directories = directories.to_vec();
        let chain = Arc::new(blocking(self, move || Chain::open(&directories)).await?);
        let bytes = chain.bytes();
        let mut batches = Batches::read(self, &chain, 0, BATCH_RECORDS);
        while let Some(batch) = batches.next().await {
            progress(RestoreStage::Verifying, batch.bytes_read, bytes);
        }
        let records = batches.end().await?;
        let marker = self.tree(MARKER_TREE);
        let key = format!("{:032x}", chain.newest().backup);
        let resumed_at = match self.retry(|| marker.get(&key)).await? {
            Some(found) => {
                let number = found.as_ref().try_into().map(u64::from_be_bytes);
                number.map_err(|_| Error::Incompatible("a mark of another version of dogsled".to_owned()))?
            }
            None => {
                if !options.merge {
                    self.refuse_filled().await?;
                } else if self.tree(MARKER_TREE).len().await? > 0 {
                    // At the end the marks go, and what it has written would look whole.
                    return Err(BackupError::Refused(format!("nothing was written: {UNFINISHED}")));
                }
                // Before there is a mark: it may be refused, and then there is nothing to be finished.
                self.set_hashes(&chain).await?;
                let mark = IVec::from(0u64.to_be_bytes());
                self.retry(|| marker.put(&key, mark.clone())).await?;
                0
            }
        };
        progress(RestoreStage::Writing, resumed_at, records);
        self.set_hashes(&chain).await?;
        let mut batches = Batches::read(self, &chain, resumed_at, BATCH_RECORDS);
        while let Some(batch) = batches.next().await {
            let end = batch.end;
            self.write(batch, options.merge).await?;
            let mark = IVec::from(end.to_be_bytes());
            self.retry(|| marker.put(&key, mark.clone())).await?;
            progress(RestoreStage::Writing, end, records);
        }
        batches.end().await.map_err(changed)?;
        if !options.skip_check {
            let progress = |done| progress(RestoreStage::Comparing, done, records);
            self.compare_with(&chain, options.merge, progress).await.map_err(changed)?;
        }
        self.retry(|| self.drop_tree(MARKER_TREE)).await?;
        Ok(RestoreReport { records, resumed_at })
    }

    /// What can be done once more is, while the cluster is in trouble.
    pub(super) async fn retry<T, R: Future<Output = Result<T, Error>>>(
        &self,
        run: impl Fn() -> R,
    ) -> Result<T, Error> {
        let mut attempt = 0;
        loop {
            match run().await {
                Err(Error::Unavailable(_) | Error::OutcomeUnknown(_)) if attempt < ATTEMPTS => {
                    attempt += 1;
                    self.core().before_next_attempt(attempt).await;
                }
                other => return other,
            }
        }
    }

    async fn refuse_filled(&self) -> Result<(), BackupError> {
        for name in self.tree_names().await? {
            if [LOCKS_TREE_NAME, SESSIONS_TREE_NAME, TRANSACTIONS_TREE_NAME].contains(&&name[..]) {
                continue;
            }
            let length = self.tree(&name).len().await?;
            if length > 0 {
                let what = match &name[..] {
                    MARKER_TREE => UNFINISHED.to_owned(),
                    name => format!("tree \"{}\" has {length} keys already", name.escape_ascii()),
                };
                return Err(BackupError::Refused(format!(
                    "the cluster is not empty, and nothing was written: {what}"
                )));
            }
        }
        Ok(())
    }

    /// Has of the keys of each tree hashed what was hashed of them.
    async fn set_hashes(&self, chain: &Chain) -> Result<(), BackupError> {
        for stored in &chain.newest().trees {
            let (hash, name) = TreeHash::of_stored(stored);
            if hash == TreeHash::Slot {
                // The name says so, here as there.
                continue;
            }
            match self.set_tree_hash(name, hash).await {
                Err(Error::Conflict(what)) => {
                    let shown = name.escape_ascii();
                    return Err(BackupError::Refused(format!(
                        "tree \"{shown}\" is hashed otherwise here: {what}"
                    )));
                }
                other => other?,
            }
        }
        Ok(())
    }

    async fn write(&self, batch: Batch, merge: bool) -> Result<(), BackupError> {
        if is_of_hashes(&batch.section) {
            let stretches = batch.stretches().map_err(makes_no_sense)?;
            return self.write_hashes(&stretches, merge).await;
        }
        if is_of_events(&batch.section) {
            return self.write_events(&batch).await;
        }
        let (stored, part) = batch.section;
        let tree = &self.tree(TreeHash::of_stored(&stored).1);
        let mut writes = crate::Batch::default();
        let mut apart = Vec::new();
        for Record { key, expires_ms, value, .. } in batch.records {
            let value = value.unwrap_or_default();
            match expires_ms {
                None if part == format::KEYS => writes.insert(key, value),
                _ => apart.push((key, value, expires_ms)),
            }
        }
        self.retry(|| tree.apply_batch_by_partition(writes.clone())).await?;
        for some in apart.chunks(TOGETHER) {
            let each = some.iter().map(|(key, value, expires_ms)| {
                let command = one(key, value, *expires_ms);
                async move { self.retry(|| tree.execute(key, command.clone())).await }
            });
            try_join_all(each).await?;
        }
        Ok(())
    }

    /// Which events of keys are told is set as Redis clients set it: all partitions that had keys say the same.
    async fn write_events(&self, batch: &Batch) -> Result<(), BackupError> {
        let mut values = batch.records.iter().filter_map(|record| record.value.as_ref());
        let Some(wanted) = values.find_map(|letters| Wanted::parse(letters)) else { return Ok(()) };
        match self.retry(|| redis::notify(self, wanted)).await? {
            None => Ok(()),
            Some(refused) => Err(BackupError::Differs(format!(
                "which events of keys are told could not be set ({refused:?})"
            ))),
        }
    }

    /// Hashes are made anew, field by field: what a key holds of one means nothing in another group.
    async fn write_hashes(&self, stretches: &[Stretch], merge: bool) -> Result<(), BackupError> {
        let mut groups: BTreeMap<u32, Vec<(&Hash, StringAction)>> = BTreeMap::new();
        for Stretch { hash, begins, fields } in stretches {
            let actions = groups.entry(self.group_of_hash(hash).await?).or_default();
            // What is there goes. Where nothing is, nothing is removed: if such a write came late, by another way than
            // the one that was answered, it would take fields with it that were written since.
            if *begins && merge {
                actions.push((hash, StringAction::Delete));
            }
            if !fields.is_empty() {
                let pairs = Listed(fields.clone());
                actions.push((hash, StringAction::Hash(HashAction::Set { pairs })));
                // Together with the fields: so nobody finds a hash that stays.
                if let Some(at_ms) = hash.expires_ms {
                    let (when, only) = (When::At(at_ms), SetIf::Always);
                    actions.push((hash, StringAction::Expire { when, only, only_some: false }));
                }
            }
        }
        let written = groups.into_iter().filter(|(_, actions)| !actions.is_empty());
        try_join_all(written.map(|(group, actions)| async move {
            let (trees, operations) = self.operations(actions);
            let command = Command::Strings { watched: Vec::new(), operations };
            let (core, trees) = (self.core(), &trees);
            let execute = || core.execute(group, trees.clone(), command.clone(), self.until());
            match self.retry(execute).await?.0 {
                Reply::Strings(StringsReplies(replies)) => {
                    match replies.iter().find(|reply| matches!(reply, StringsReply::Failed(_))) {
                        None => Ok(()),
                        Some(failed) => Err(BackupError::Differs(format!(
                            "a hash could not be written, because somebody else writes there ({failed:?})"
                        ))),
                    }
                }
                other => Err(unexpected(&other).into()),
            }
        }))
        .await
        .map(drop)
    }

    /// The name under which a tree is kept here, where something else may be hashed of its keys.
    pub(super) fn stored_here(&self, stored: &IVec) -> IVec {
        self.core().stored_name(&IVec::from(TreeHash::of_stored(stored).1))
    }

    pub(super) async fn group_of_hash(&self, hash: &Hash) -> Result<u32, Error> {
        self.core().group_in(&self.stored_here(&hash.stored), &hash.key, self.until()).await
    }

    /// Operations on hashes, and the trees that they name by number.
    pub(super) fn operations<'a>(
        &self,
        actions: impl IntoIterator<Item = (&'a Hash, StringAction)>,
    ) -> (Vec<IVec>, Vec<StringsOperation>) {
        let mut trees: Vec<&IVec> = Vec::new();
        let operations = actions.into_iter().map(|(hash, action)| {
            let known = trees.iter().position(|tree| **tree == hash.stored);
            let number = known.unwrap_or_else(|| {
                trees.push(&hash.stored);
                trees.len() - 1
            });
            StringsOperation { tree: TreeId(number as u32), key: hash.key.clone(), action }
        });
        let operations = operations.collect();
        (trees.into_iter().map(|tree| self.stored_here(tree)).collect(), operations)
    }
}

/// What was read to its end before is damaged now.
fn changed(error: BackupError) -> BackupError {
    match error {
        BackupError::Damaged { path, offset, what } => {
            let error = format!(
                "it has changed since it was checked, and the cluster holds a part of it: offset {offset}: {what}"
            );
            BackupError::Io { path, error }
        }
        other => other,
    }
}

pub(super) fn makes_no_sense(what: &str) -> BackupError {
    // Whoever has read it has seen that it does.
    BackupError::Differs(format!("the backup holds {what}"))
}

/// What sets a key that expires, or the number that comes next.
fn one(key: &IVec, value: &IVec, expires_ms: Option<u64>) -> Command {
    let (tree, key, value) = (TreeId(0), key.clone(), value.clone());
    match expires_ms {
        Some(at_ms) => Command::Expiry(ExpiryCommand::Insert { tree, key, value, when: When::At(at_ms) }),
        None => Command::Owned(OwnedCommand::SetNext { tree, prefix: key, next: value }),
    }
}
