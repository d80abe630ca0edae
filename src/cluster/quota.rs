//! Quotas of a cluster's trees: the limit of a tree is divided among the partitions, and each keeps its share.
//!
//! # What a limit means on a cluster
//!
//! Of a limit each of P partitions gets a P-th part, the first ones one byte or key more if that does not divide
//! evenly; each refuses what would give the tree more than its share there, by its own log. From this follows:
//!
//! - **A tree never holds more than its limit**, whatever happens to nodes and clients, since its shares add up to it.
//!   The one exception is bounded: transactions over several partitions that are prepared at one time in one partition
//!   are each judged by what is there then, and together may add more than is left, no more than they add.
//! - **A write may be refused before the tree as a whole is full**, because its partition is. Keys that are hashed whole
//!   spread evenly: of many small ones the first refusal comes when the tree is nearly full. A tree whose keys have few
//!   tags, or few prefixes that are hashed ([`Client::set_tree_hash`]), lies in few partitions, and has their
//!   shares only: such a tree needs a limit of P times what one partition is to hold. [`SharedQuota::parts`] tells how full
//!   each is.
//! - **A change of the limit is not one step**: it is made in one partition after the other. If it fails half-way, some
//!   have the old share and some the new; the same call again goes on.
//!
//! The number of partitions never changes, and a partition's share moves with it from node to node.

use std::collections::BTreeMap;

use dogsled_storage::{Command, GroupRead, GroupReadReply, Reply};
use futures_util::future::{join_all, try_join_all};

use super::core::unexpected;
use super::error::of_parts;
use super::ring::TreeHash;
use super::{Client, Error, ReadFrom, Result};
use crate::{IVec, QuotaLimit, TreeQuota};

/// The quota of a tree that is spread over a cluster, and how much of it is used.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SharedQuota {
    /// The sum of all partitions.
    pub whole: TreeQuota,
    /// Each partition, by its number.
    pub parts: Vec<(u32, TreeQuota)>,
}

impl SharedQuota {
    /// The partition that has used most of its share, and how much of it, in hundredths.
    pub fn fullest(&self) -> Option<(u32, u64)> {
        let used = |used: u64, limit: Option<u64>| match limit {
            None => 0,
            Some(0) => 100,
            Some(limit) => u64::try_from(u128::from(used) * 100 / u128::from(limit)).unwrap_or(u64::MAX),
        };
        let parts = self.parts.iter().map(|(group, part)| {
            let (bytes, entries) =
                (used(part.bytes, part.limit.bytes), used(part.entries, part.limit.entries));
            (*group, bytes.max(entries))
        });
        parts.max_by_key(|(_, used)| *used)
    }
}

/// The part that one of so many partitions gets of a limit.
fn share(limit: u64, partitions: u32, group: u32) -> u64 {
    let (each, left) = (limit / u64::from(partitions), limit % u64::from(partitions));
    // They are numbered from 1.
    each + u64::from(u64::from(group) <= left)
}

impl Client {
    /// Limits how much a tree may hold, in bytes of keys and values or in keys, or (`None`) does so no more. From then
    /// on whatever would make it larger is refused with [`Error::QuotaExceeded`], and nothing of it is done; what removes
    /// something, or makes the tree smaller, never is. Needs an administrator's certificate.
    ///
    /// Each partition keeps its share of the limit, so that the tree never holds more than that, and a write may be
    /// refused before the tree as a whole is full: at once, if all its keys have one tag. See
    /// [the documentation](super#quotas) for what exactly is promised.
    ///
    /// The first time, each partition looks at all that it has of the tree, and does nothing else meanwhile.
    ///
    /// ```no_run
    /// # async fn limit(client: dogsled::cluster::Client) -> dogsled::cluster::Result<()> {
    /// use dogsled::QuotaLimit;
    /// let limit = QuotaLimit { bytes: Some(1 << 30), entries: None };
    /// client.set_tree_quota("sessions", Some(limit)).await?;
    /// for quota in client.tree_quotas().await? {
    ///     println!("{:?}: {} bytes", quota.whole.tree, quota.whole.bytes);
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for a limit that gives some partitions nothing (0 is one: the tree may only become smaller), and
    /// those of [writing](super#writes). If it fails, some partitions may have the new share already: call it again.
    pub async fn set_tree_quota(&self, name: impl AsRef<[u8]>, limit: Option<QuotaLimit>) -> Result<()> {
        let until = self.until();
        let partitions = self.core().partitions(until).await?;
        for amount in limit.iter().flat_map(|limit| [limit.bytes, limit.entries]).flatten() {
            if (1..u64::from(partitions)).contains(&amount) {
                return Err(Error::Invalid(format!(
                    "a quota of {amount} leaves nothing for some of the {partitions} partitions; give each at least one"
                )));
            }
        }
        let tree = self.tree(name);
        let set = tree.by_stored_name(until, |name| async move {
            let sets = (1..=partitions).map(|group| {
                let of_group = |amount: Option<u64>| amount.map(|amount| share(amount, partitions, group));
                let limit = limit.map(|limit| QuotaLimit {
                    bytes: of_group(limit.bytes),
                    entries: of_group(limit.entries),
                });
                let command = Command::SetQuota { name: name.clone(), limit };
                async move {
                    match self.core().execute(group, Vec::new(), command, until).await?.0 {
                        Reply::Quota(_) => Ok(()),
                        other => Err(unexpected(&other)),
                    }
                }
            });
            // All of them, whatever happens to one.
            of_parts(join_all(sets).await)
        });
        set.await.map(drop)
    }

    /// The trees that have quotas, by name, and how much of them is used.
    ///
    /// # Errors
    /// Those of [reading](super#reads).
    pub async fn tree_quotas(&self) -> Result<Vec<SharedQuota>> {
        let until = self.until();
        let groups = 1..=self.core().partitions(until).await?;
        let reads = groups.map(|group| async move {
            match self.core().read(group, &GroupRead::Quotas, ReadFrom::Leader, until).await?.reply {
                GroupReadReply::Quotas(quotas) => Ok((group, quotas)),
                other => Err(unexpected(&other)),
            }
        });
        let mut all = BTreeMap::<IVec, SharedQuota>::new();
        for (group, quotas) in try_join_all(reads).await? {
            for stored in quotas {
                let tree = IVec::from(TreeHash::of_stored(&stored.tree).1);
                let part = TreeQuota { tree: tree.clone(), ..stored };
                match all.entry(tree) {
                    std::collections::btree_map::Entry::Vacant(entry) => {
                        entry.insert(SharedQuota { whole: part.clone(), parts: vec![(group, part)] });
                    }
                    std::collections::btree_map::Entry::Occupied(mut entry) => {
                        let SharedQuota { whole, parts } = entry.get_mut();
                        let sum = |a: Option<u64>, b: Option<u64>| Some(a?.saturating_add(b?));
                        whole.limit.bytes = sum(whole.limit.bytes, part.limit.bytes);
                        whole.limit.entries = sum(whole.limit.entries, part.limit.entries);
                        whole.bytes += part.bytes;
                        whole.entries += part.entries;
                        parts.push((group, part));
                    }
                }
            }
        }
        Ok(all.into_values().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::share;

    #[test]
    fn the_shares_of_a_limit_add_up_to_it_and_are_as_equal_as_can_be() {
        for partitions in [1, 2, 7, 16, 64] {
            for limit in (0..200).chain([u64::MAX - 1, u64::MAX]) {
                let shares: Vec<u64> =
                    (1..=partitions).map(|group| share(limit, partitions, group)).collect();
                assert_eq!(shares.iter().map(|share| u128::from(*share)).sum::<u128>(), u128::from(limit));
                let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
                assert!(most - least <= 1, "{limit} over {partitions}");
            }
        }
    }
}
