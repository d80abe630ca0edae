//! Has a prefix of a tree's keys hashed: carries out what [`crate::ring::tree_hash`] tells.
//!
//! ```text
//! is the tree anywhere? ─► record: chosen ─► seal the name in every partition ─► is the tree anywhere?
//!                                              ─► record: in force ─► clients are told
//! ```
//!
//! The first look only spares most mistakes that anything is done; the second is the one that counts. Between
//! a partition's seal and that look nobody can have made the tree there, and nobody can afterwards. Whoever
//! leads the meta group does this; if it, or a partition, fails amid it, whoever wanted it asks again, and it
//! is gone on with: each step done twice is done once.
//!
//! If somebody made the tree between the first look and the seal, the choice stays, and does not come into
//! force before the tree is dropped: to take the seals back could race with another who goes on.

use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::codec::{
    decode_group_read_reply, decode_group_reply, encode_group_command, encode_group_read,
};
use dogsled_storage::group::{Answer, GroupCommand, GroupRead, GroupReadReply, Operation};
use dogsled_storage::seal::seal_of;
use dogsled_storage::{Command, IVec, Reply};
use futures_util::future::join_all;

use super::Inner;
use crate::client::{ClientReply, ClientRequest, Consistency};
use crate::error::ClusterError;
use crate::meta::{Change, chosen_already};
use crate::ring::{META_GROUP, TreeHash};

fn unexpected(reply: &dyn std::fmt::Debug) -> ClusterError {
    ClusterError::Unavailable(format!("an answer to something else: {reply:?}"))
}

impl Inner {
    /// As leader of the meta group; see the [module](self). `seen` as in [`Inner::change_record`].
    pub(super) async fn hash_tree(
        self: &Arc<Self>,
        seen: u64,
        tree: IVec,
        hash: TreeHash,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        let meta = self.group(META_GROUP)?;
        if !meta.leads() {
            return Err(meta.not_leader(meta.leader()));
        }
        let (record, _) = self.newest_record().await?;
        let change = Change::HashTree { tree: tree.clone(), hash };
        match record.trees.get(&tree) {
            Some(chosen) if chosen.hash != hash => {
                return Err(ClusterError::Conflict(chosen_already(&tree, chosen.hash)));
            }
            Some(chosen) if chosen.in_force => return Ok(()),
            Some(_) => {}
            None => {
                // What cannot be chosen at all is told first.
                record.changed(&change).map_err(ClusterError::Invalid)?;
                if hash == TreeHash::Whole {
                    return Ok(());
                }
                self.check_nowhere(record.partitions(), &tree, deadline).await?;
            }
        }
        // A second one at the same time, with another choice, is refused here.
        self.change_record(seen, &change).await.map_err(|error| match error {
            ClusterError::Invalid(why) => ClusterError::Conflict(why),
            other => other,
        })?;
        let seals = (1..=record.partitions()).map(|group| self.seal(group, &tree, deadline));
        join_all(seals).await.into_iter().collect::<Result<(), ClusterError>>()?;
        self.check_nowhere(record.partitions(), &tree, deadline).await?;
        self.change_record(0, &Change::TreeHashed { tree }).await.map(drop)
    }

    /// Has a partition refuse the plain name; see [`dogsled_storage::seal`].
    async fn seal(self: &Arc<Self>, group: u32, tree: &IVec, deadline: Duration) -> Result<(), ClusterError> {
        let command = GroupCommand {
            session: None,
            time_ms: 0,
            trees: Vec::new(),
            operation: Operation::Command(Command::CreateTree { name: seal_of(tree) }),
        };
        let command =
            encode_group_command(&command).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let request = ClientRequest::Submit { group, deadline, command: command.into() };
        match ClientReply::decode(self.served(request).await) {
            Ok(ClientReply::Applied(reply)) => match decode_group_reply(&reply).map(|reply| reply.result) {
                Ok(Ok(Answer::Reply(Reply::Tree { .. }))) => Ok(()),
                other => Err(unexpected(&other)),
            },
            Ok(ClientReply::Error(error)) => Err(error),
            other => Err(unexpected(&other)),
        }
    }

    /// Refuses if the tree is in any partition, even if it is empty there.
    async fn check_nowhere(
        self: &Arc<Self>,
        partitions: u32,
        tree: &IVec,
        deadline: Duration,
    ) -> Result<(), ClusterError> {
        let read =
            encode_group_read(&GroupRead::Trees).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        let looks = (1..=partitions).map(|group| {
            let consistency = Consistency::Linearizable;
            let request = ClientRequest::Read { group, deadline, consistency, read: read.clone().into() };
            async move { (group, ClientReply::decode(self.served(request).await)) }
        });
        let mut found = Vec::new();
        for (group, reply) in join_all(looks).await {
            match reply {
                Ok(ClientReply::Read { reply, .. }) => match decode_group_read_reply(&reply) {
                    Ok(GroupReadReply::Trees(names)) => {
                        if names.contains(tree) {
                            found.push(group);
                        }
                    }
                    other => return Err(unexpected(&other)),
                },
                Ok(ClientReply::Error(error)) => return Err(error),
                other => return Err(unexpected(&other)),
            }
        }
        if found.is_empty() {
            return Ok(());
        }
        let list: Vec<String> = found.iter().map(u32::to_string).collect();
        Err(ClusterError::Conflict(format!(
            "the tree \"{}\" is there already, in partition {}, hashed by the whole key: what is hashed of a tree's \
             keys is chosen before it is first written to. Copy what it has to another tree, or drop it, and ask again",
            tree.escape_ascii(),
            list.join(", ")
        )))
    }
}
