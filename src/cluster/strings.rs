//! Values with Redis's semantics, for tools that bring them: what a Redis client writes, written by a [`Tree`].

use std::collections::BTreeMap;

use dogsled_storage::strings::{StringAction, StringsOperation, StringsReplies, StringsReply};
use dogsled_storage::{Command, Reply, TreeId};
use futures_util::future::join_all;

use super::core::unexpected;
use super::error::of_parts;
use super::{Result, Tree};
use crate::IVec;

impl Tree {
    /// Carries out operations on keys, those of each partition together and in their order; the replies, in the order of
    /// the operations.
    ///
    /// # Errors
    /// Those of [writing](super#writes); in each partition all is done or nothing. That an operation cannot be carried out
    /// is a reply.
    #[doc(hidden)]
    pub async fn operate(&self, actions: &[(IVec, StringAction)]) -> Result<Vec<StringsReply>> {
        let until = self.client().until();
        self.by_stored_name(until, |stored| async move {
            let mut parts: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
            for (place, (key, _)) in actions.iter().enumerate() {
                let group = self.client().core().group_in(&stored, key, until).await?;
                parts.entry(group).or_default().push(place);
            }
            let done = parts.iter().map(|(group, places)| {
                let operations = places.iter().map(|place| {
                    let (key, action) = &actions[*place];
                    StringsOperation { tree: TreeId(0), key: key.clone(), action: action.clone() }
                });
                let command = Command::Strings { watched: Vec::new(), operations: operations.collect() };
                let stored = stored.clone();
                async move {
                    match self.execute_in(*group, stored, command, until).await? {
                        Reply::Strings(StringsReplies(replies)) if replies.len() == places.len() => {
                            Ok(replies)
                        }
                        other => Err(unexpected(&other)),
                    }
                }
            });
            let replies = of_parts(join_all(done).await)?;
            let mut placed: Vec<(usize, StringsReply)> =
                parts.values().flatten().copied().zip(replies.into_iter().flatten()).collect();
            placed.sort_unstable_by_key(|(place, _)| *place);
            Ok(placed.into_iter().map(|(_, reply)| reply).collect())
        })
        .await
    }
}
