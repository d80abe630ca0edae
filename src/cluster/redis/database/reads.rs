//! How a [`Database`] answers commands that only read: at once where this node has what they read alone, else by asking the
//! groups, all of them at a time, for as much as there is room to tell.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use dogsled_net::resp::Value;
use dogsled_storage::strings::{StringAction, StringsOperation, StringsReplies, StringsReply};
use dogsled_storage::{GroupRead, GroupReadReply};
use futures_util::future::join_all;

use super::{Data, Database, MOST_AT_ONCE, MOST_IN_REPLY, Placed, Shape, TOO_MUCH, bulk, failed, too_much};
use crate::cluster::core::unexpected;
use crate::cluster::redis::entry::{ENTRY_OPERATIONS, group_of_all, group_of_key, name_trees};
use crate::cluster::redis::held::Collected;
use crate::cluster::redis::tree_name;
use crate::cluster::{Error, ReadFrom};

/// About how many bytes a reply takes until it is written down, of which short values have the least part.
fn memory(reply: &StringsReply) -> usize {
    const EACH: usize = 160;
    let values = match reply {
        StringsReply::Values(values) => values.0.len(),
        StringsReply::Pairs { pairs, .. } => 2 * pairs.0.len(),
        _ => 1,
    };
    reply.bytes() + values * EACH
}

impl Database {
    /// The replies to commands if all of them read, and this node has what they read [alone](crate::cluster::core::Core::read_at_once);
    /// otherwise they are for [`Database::run`].
    pub(in crate::cluster::redis) fn read_at_once(&self, commands: &[(usize, Data)]) -> Option<Vec<Value>> {
        let partitions = self.known_partitions()?;
        if let Some(values) = self.get_at_once(partitions, commands) {
            return Some(values);
        }
        let mut asked: Vec<(u32, &StringsOperation)> = Vec::with_capacity(commands.len());
        for (_, data) in commands {
            // What it fails by is not to be the failure of others.
            if data.fence.is_some() || !data.is_read() || asked.len() > ENTRY_OPERATIONS {
                return None;
            }
            // What is of several groups is read as of one moment.
            let group = group_of_all(partitions, &data.operations, &[], &[])?;
            asked.extend(data.operations.iter().map(|operation| (group, operation)));
        }
        let (mut replies, mut told) = (Vec::with_capacity(asked.len()), 0);
        // In order: of what a connection asks for, nothing is to be older than what it asked for before.
        for alike in asked.chunk_by(|(one, _), (other, _)| one == other) {
            let mut operations: Vec<StringsOperation> =
                alike.iter().map(|(_, operation)| (*operation).clone()).collect();
            let (trees, count) = (name_trees(&mut operations, &mut []), operations.len());
            let read = GroupRead::Strings { trees, operations };
            match self.client.core().read_at_once(alike[0].0, &read)?.reply {
                GroupReadReply::Strings(StringsReplies(found)) if found.len() == count => {
                    told += found.iter().map(StringsReply::bytes).sum::<usize>();
                    replies.extend(found);
                }
                _ => return None,
            }
            if told > MOST_AT_ONCE {
                return None;
            }
        }
        let mut values = Vec::with_capacity(commands.len());
        let mut rest = &replies[..];
        for (_, data) in commands {
            let (own, later) = rest.split_at(data.operations.len());
            rest = later;
            values.push(data.reply(self, own));
        }
        Some(values)
    }

    /// As [`Database::read_at_once`] of commands each of which gets one string.
    fn get_at_once(&self, partitions: u32, commands: &[(usize, Data)]) -> Option<Vec<Value>> {
        let first = &commands.first()?.1.operations;
        let database = first.first()?.tree;
        let is_get = |data: &Data| {
            let [StringsOperation { tree, action: StringAction::Get, .. }] = &data.operations[..] else {
                return false;
            };
            *tree == database && data.fence.is_none() && data.shape == Shape::Plain
        };
        if commands.len() > ENTRY_OPERATIONS || !commands.iter().all(|(_, data)| is_get(data)) {
            return None;
        }
        let tree = tree_name(database.0);
        let keys = commands.iter().map(|(_, data)| &data.operations[0].key);
        let texts =
            self.client.core().texts_at_once(keys.map(|key| (group_of_key(key, partitions), &tree, key)))?;
        if texts.iter().flatten().map(|text| text.len()).sum::<usize>() > MOST_AT_ONCE {
            return None;
        }
        Some(texts.into_iter().map(|text| text.map_or(Value::Null, bulk)).collect())
    }

    /// Commands that read, each within one group; those that were not carried out, because there is enough to be told.
    pub(super) async fn read(
        &self,
        partitions: u32,
        from: ReadFrom,
        run: Vec<Placed>,
        values: &mut Vec<Value>,
    ) -> Vec<Placed> {
        let operations: Vec<&StringsOperation> =
            run.iter().flat_map(|placed| placed.data.operations.iter()).collect();
        let told = self.look_each(partitions, from, &operations, MOST_AT_ONCE).await;
        let (before, mut told) = (values.len(), &told[..]);
        let is_one = run.len() == 1;
        let mut run = run.into_iter();
        while let Some(next) = run.as_slice().first() {
            let (own, later) = told.split_at(next.data.operations.len());
            let own: Result<Option<Vec<StringsReply>>, Error> =
                own.iter().cloned().map(Result::transpose).collect::<Option<_>>().transpose();
            match own {
                Ok(Some(own)) => values.push(next.data.reply(self, &own)),
                Ok(None) => break,
                // What one of them asks for is not to be the failure of others: each is asked for alone.
                Err(Error::Invalid(_)) if !is_one => break,
                // Others may be where there is a leader.
                Err(error) => values.push(failed(&error)),
            }
            told = later;
            run.next();
        }
        if values.len() == before
            && let Some(Placed { data, .. }) = run.next()
        {
            // It alone is more than that.
            let operations: Vec<&StringsOperation> = data.operations.iter().collect();
            let told = self.look(partitions, from, &operations, MOST_IN_REPLY).await;
            values.push(match told.map(|told| told.into_iter().collect::<Option<Vec<_>>>()) {
                Ok(Some(own)) => data.reply(self, &own),
                Ok(None) => Value::error(TOO_MUCH),
                Err(error) => failed(&error),
            });
        }
        run.collect()
    }

    /// As [`Database::look_each`], or the first error.
    async fn look(
        &self,
        partitions: u32,
        from: ReadFrom,
        operations: &[&StringsOperation],
        most: usize,
    ) -> Result<Vec<Option<StringsReply>>, Error> {
        self.look_each(partitions, from, operations, most).await.into_iter().collect()
    }

    /// The replies to operations that read, each of one group; `None` for those before which there were about so many
    /// bytes already.
    async fn look_each(
        &self,
        partitions: u32,
        from: ReadFrom,
        operations: &[&StringsOperation],
        most: usize,
    ) -> Vec<Result<Option<StringsReply>, Error>> {
        let mut by_group: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
        for (index, operation) in operations.iter().enumerate() {
            by_group.entry(group_of_key(&operation.key, partitions)).or_default().push(index);
        }
        let (left, collected) = (AtomicUsize::new(most), self.held.collect());
        let (left, collected) = (&left, &collected);
        let parts = by_group.into_iter().map(|(group, indices)| async move {
            let asked: Vec<StringsOperation> =
                indices.iter().map(|index| operations[*index].clone()).collect();
            (indices, self.look_in(group, from, asked, left, collected).await)
        });
        let mut replies = vec![Ok(None); operations.len()];
        for (indices, found) in join_all(parts).await {
            match found {
                Ok(found) => {
                    for (index, reply) in indices.into_iter().zip(found) {
                        replies[index] = Ok(Some(reply));
                    }
                }
                Err(error) => indices.into_iter().for_each(|index| replies[index] = Err(error.clone())),
            }
        }
        replies
    }

    /// The replies to all operations that read.
    ///
    /// # Errors
    /// They are too much; those of reading.
    pub(in crate::cluster::redis) async fn look_at_all(
        &self,
        partitions: u32,
        operations: &[&StringsOperation],
    ) -> Result<Vec<StringsReply>, Error> {
        let told = self.look(partitions, ReadFrom::Leader, operations, MOST_IN_REPLY).await?;
        told.into_iter().collect::<Option<_>>().ok_or_else(too_much)
    }

    /// The replies to the first of these operations, all if there is so much left to be told.
    async fn look_in(
        &self,
        group: u32,
        from: ReadFrom,
        operations: Vec<StringsOperation>,
        left: &AtomicUsize,
        collected: &Collected,
    ) -> Result<Vec<StringsReply>, Error> {
        let (core, until) = (self.client.core(), self.client.until());
        // From the end, so that the next is the last.
        let (mut parts, mut replies) = (vec![operations], Vec::new());
        while let Some(mut part) = parts.pop() {
            if left.load(Ordering::Relaxed) == 0 {
                break;
            }
            let asked = part.clone();
            let trees = name_trees(&mut part, &mut []);
            let count = part.len();
            let read = GroupRead::Strings { trees, operations: part };
            match core.read(group, &read, from, until).await {
                Ok(answer) => match answer.reply {
                    GroupReadReply::Strings(StringsReplies(found)) if found.len() == count => {
                        let bytes: usize = found.iter().map(StringsReply::bytes).sum();
                        let less = |left: usize| Some(left.saturating_sub(bytes));
                        let _ = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
                        if !collected.add(found.iter().map(memory).sum()) {
                            return Err(too_much());
                        }
                        replies.extend(found);
                    }
                    other => return Err(unexpected(&other)),
                },
                // The values may be more than one answer carries.
                Err(Error::Invalid(_)) if count > 1 => {
                    let (first, second) = asked.split_at(count / 2);
                    parts.extend([second.to_vec(), first.to_vec()]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(replies)
    }

    /// The replies to operations of one group that read, of one moment, as much as one answer carries.
    pub(super) async fn read_together(
        &self,
        group: u32,
        mut operations: Vec<StringsOperation>,
    ) -> Result<Vec<StringsReply>, Error> {
        let (trees, count) = (name_trees(&mut operations, &mut []), operations.len());
        let read = GroupRead::Strings { trees, operations };
        match self.client.core().read(group, &read, ReadFrom::Leader, self.client.until()).await?.reply {
            GroupReadReply::Strings(StringsReplies(found)) if found.len() == count => Ok(found),
            other => Err(unexpected(&other)),
        }
    }
}
