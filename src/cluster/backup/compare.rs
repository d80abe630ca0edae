//! Whether a cluster holds what a backup does, key by key: values, when they end, how many there are, the fields of
//! hashes.
//!
//! What is not there any more may have ended. That is for the cluster to say, by the time that its replies tell: the clock of
//! whoever restores may be wrong by any amount, and sound data is not to be called different for it.

use std::collections::BTreeMap;
use std::sync::Arc;

use dogsled_replication::ring::TreeHash;
use dogsled_storage::codec::Listed;
use dogsled_storage::hashes::HashAction;
use dogsled_storage::strings::{StringAction, StringsReplies, StringsReply};
use dogsled_storage::{GroupRead, GroupReadReply};
use futures_util::future::try_join_all;

use super::BackupError;
use super::batches::{Batch, Batches, Hash, Stretch, is_of_events, is_of_hashes};
use super::chain::Chain;
use super::format::{self, Record};
use super::restore::makes_no_sense;
use crate::IVec;
use crate::cluster::core::unexpected;
use crate::cluster::{Client, Error, ReadFrom};

/// Keys that are read back at a time.
const TOGETHER: usize = 256;
/// The clocks of those that lead a partition one after the other may be so far apart.
const SOON_MS: u64 = 1_000;

/// What is to be in a tree.
#[derive(Default)]
struct Count {
    keys: u64,
    /// Whether some of them expire.
    expire: bool,
}

/// A hash, and how many fields it is to have.
type Whole = (Arc<Hash>, u64);

impl Client {
    /// See the [module](self). If the cluster held something `before`, how many keys there are says nothing.
    pub(super) async fn compare_with(
        &self,
        chain: &Arc<Chain>,
        before: bool,
        progress: impl Fn(u64),
    ) -> Result<(), BackupError> {
        let mut counts: BTreeMap<IVec, Count> = BTreeMap::new();
        let mut last: Option<Whole> = None;
        let mut batches = Batches::read(self, chain, 0, TOGETHER);
        while let Some(batch) = batches.next().await {
            if is_of_hashes(&batch.section) {
                let stretches = batch.stretches().map_err(makes_no_sense)?;
                for Stretch { hash, .. } in stretches.iter().filter(|stretch| stretch.begins) {
                    let count = counts.entry(hash.stored.clone()).or_default();
                    count.keys += 1;
                    count.expire |= hash.expires_ms.is_some();
                }
                self.compare_hashes(&stretches, &mut last).await?;
            } else if batch.section.1 == format::KEYS && !is_of_events(&batch.section) {
                let count = counts.entry(batch.section.0.clone()).or_default();
                count.keys += batch.records.len() as u64;
                count.expire |= batch.records.iter().any(|record| record.expires_ms.is_some());
                self.compare_keys(&batch).await?;
            }
            progress(batch.end);
        }
        batches.end().await?;
        self.check_lengths(last).await?;
        for (stored, Count { keys, expire }) in counts.into_iter().filter(|_| !before) {
            let name = TreeHash::of_stored(&stored).1;
            let found = self.retry(|| async { self.tree(name).len().await }).await?;
            if found > keys || (found < keys && !expire) {
                let what = format!("tree \"{}\" has {found} keys, and not {keys}", name.escape_ascii());
                return Err(BackupError::Differs(what));
            }
        }
        Ok(())
    }

    async fn compare_keys(&self, batch: &Batch) -> Result<(), BackupError> {
        let stored = &batch.section.0;
        let tree = &self.tree(TreeHash::of_stored(stored).1);
        let keys: Vec<IVec> = batch.records.iter().map(|record| record.key.clone()).collect();
        let found = self.retry(|| tree.get_many(&keys)).await?;
        let here = &self.stored_here(stored);
        // Behind the values: what was over when those were read is over by the time that is told now.
        let ends = batch.records.iter().zip(found).map(|(record, found)| async move {
            let key = &record.key;
            let read = GroupRead::Expires { tree: here.clone(), key: key.clone() };
            let read = &read;
            let ask = || async {
                let group = self.core().group_in(here, key, self.until()).await?;
                self.core().read(group, read, ReadFrom::Leader, self.until()).await
            };
            match self.retry(ask).await?.reply {
                GroupReadReply::Expires { at_ms, now_ms } => {
                    check_value(stored, record, found, now_ms)?;
                    check_end(stored, key, record.expires_ms, at_ms, now_ms)
                }
                other => Err(unexpected(&other).into()),
            }
        });
        try_join_all(ends).await.map(drop)
    }

    /// `last` is the hash that the batch before ended with.
    async fn compare_hashes(
        &self,
        stretches: &[Stretch],
        last: &mut Option<Whole>,
    ) -> Result<(), BackupError> {
        let mut asked: Vec<(&Hash, StringAction)> = Vec::new();
        let mut whole: Vec<Whole> = Vec::new();
        for Stretch { hash, begins, fields } in stretches {
            if *begins {
                whole.extend(last.replace((Arc::clone(hash), 0)));
                asked.push((hash, StringAction::Expires));
            }
            if let Some((_, count)) = last {
                *count += fields.len() as u64;
            }
            if !fields.is_empty() {
                let names = fields.iter().map(|(name, _)| name.clone()).collect();
                asked.push((hash, StringAction::Hash(HashAction::GetMany { fields: Listed(names) })));
            }
        }
        let mut replies = self.ask_hashes(asked).await?.into_iter();
        for Stretch { hash, begins, fields } in stretches {
            if *begins {
                match replies.next() {
                    Some(StringsReply::Expires { at_ms, now_ms }) => {
                        check_end(&hash.stored, &hash.key, hash.expires_ms, at_ms, now_ms)?;
                    }
                    other => return Err(unexpected(&other).into()),
                }
            }
            if fields.is_empty() {
                continue;
            }
            let found = match replies.next() {
                Some(StringsReply::Values(found)) => found.0,
                _ => Vec::new(),
            };
            let expected = fields.iter().map(|(_, value)| Some(value));
            if !found.iter().map(Option::as_ref).eq(expected) && !self.has_ended(hash).await? {
                return Err(differs(&hash.stored, &hash.key, "is a hash with other fields"));
            }
        }
        self.check_lengths(whole).await
    }

    async fn check_lengths(&self, whole: impl IntoIterator<Item = Whole>) -> Result<(), BackupError> {
        let whole: Vec<Whole> = whole.into_iter().collect();
        let asked = whole.iter().map(|(hash, _)| (&**hash, StringAction::Hash(HashAction::Length)));
        let replies = self.ask_hashes(asked.collect()).await?;
        for ((hash, fields), reply) in whole.iter().zip(replies) {
            if reply != StringsReply::Integer(*fields as i64) && !self.has_ended(hash).await? {
                let what = format!("is not a hash of {fields} fields, but says {reply:?}");
                return Err(differs(&hash.stored, &hash.key, &what));
            }
        }
        Ok(())
    }

    /// Whether a hash may have been gone when it was read before.
    async fn has_ended(&self, hash: &Hash) -> Result<bool, Error> {
        if hash.expires_ms.is_none() {
            return Ok(false);
        }
        match self.ask_hashes(vec![(hash, StringAction::Expires)]).await?.pop() {
            Some(StringsReply::Expires { now_ms, .. }) => Ok(is_over(hash.expires_ms, now_ms)),
            other => Err(unexpected(&other)),
        }
    }

    /// The replies to operations that read, in their order.
    async fn ask_hashes(&self, asked: Vec<(&Hash, StringAction)>) -> Result<Vec<StringsReply>, Error> {
        let mut replies = vec![StringsReply::Unchanged; asked.len()];
        let mut groups: BTreeMap<u32, Vec<(usize, &Hash, StringAction)>> = BTreeMap::new();
        for (index, (hash, action)) in asked.into_iter().enumerate() {
            groups.entry(self.group_of_hash(hash).await?).or_default().push((index, hash, action));
        }
        let answers = try_join_all(groups.into_iter().map(|(group, asked)| async move {
            let indices: Vec<usize> = asked.iter().map(|(index, ..)| *index).collect();
            let asked = asked.into_iter().map(|(_, hash, action)| (hash, action));
            let (trees, operations) = self.operations(asked);
            let read = GroupRead::Strings { trees, operations };
            let answer =
                self.retry(|| self.core().read(group, &read, ReadFrom::Leader, self.until())).await?;
            match answer.reply {
                GroupReadReply::Strings(StringsReplies(found)) if found.len() == indices.len() => {
                    Ok(indices.into_iter().zip(found))
                }
                other => Err(unexpected(&other)),
            }
        }));
        for (index, reply) in answers.await?.into_iter().flatten() {
            replies[index] = reply;
        }
        Ok(replies)
    }
}

/// Whether a key that ends then may be gone at this time of the cluster.
fn is_over(expires_ms: Option<u64>, now_ms: u64) -> bool {
    expires_ms.is_some_and(|expires_ms| expires_ms <= now_ms.saturating_add(SOON_MS))
}

fn check_value(
    stored: &IVec,
    Record { key, expires_ms, value, .. }: &Record,
    found: Option<IVec>,
    now_ms: u64,
) -> Result<(), BackupError> {
    match found == *value || (found.is_none() && is_over(*expires_ms, now_ms)) {
        true => Ok(()),
        false => Err(differs(stored, key, "has another value")),
    }
}

/// `found`: as [`GroupReadReply::Expires`] has it.
fn check_end(
    stored: &IVec,
    key: &IVec,
    expires_ms: Option<u64>,
    found: Option<Option<u64>>,
    now_ms: u64,
) -> Result<(), BackupError> {
    match found {
        Some(at_ms) if at_ms == expires_ms => Ok(()),
        None if is_over(expires_ms, now_ms) => Ok(()),
        _ => Err(differs(stored, key, "has another time to live")),
    }
}

fn differs(stored: &IVec, key: &IVec, what: &str) -> BackupError {
    let (name, key) = (TreeHash::of_stored(stored).1.escape_ascii(), key.escape_ascii());
    BackupError::Differs(format!("key \"{key}\" of tree \"{name}\" {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_gone_has_ended_by_the_time_that_the_cluster_tells() {
        let stored = IVec::from("t");
        // This process's clock is past both, or before both, as it likes.
        for now_ms in [50_000, u64::MAX / 2] {
            let record = |expires_ms| Record {
                key: "k".into(),
                version: 1,
                expires_ms: Some(expires_ms),
                value: Some("v".into()),
            };
            let (over, later) = (record(now_ms - 1), record(now_ms + 10 * SOON_MS));
            check_value(&stored, &over, None, now_ms).unwrap();
            check_end(&stored, &over.key, over.expires_ms, None, now_ms).unwrap();
            check_value(&stored, &later, None, now_ms).unwrap_err();
            check_end(&stored, &later.key, later.expires_ms, None, now_ms).unwrap_err();
            check_value(&stored, &later, Some("v".into()), now_ms).unwrap();
            check_value(&stored, &over, Some("other".into()), now_ms).unwrap_err();
        }
    }
}
