//! Reads of a group by the replica that is here: linearizable, of at most an age, or as it is.
//!
//! What is linearizable waits until this replica has everything that was acknowledged before the read came: the leader asks
//! its quorum ([`crate::read_index`]), a follower asks the leader, and those who ask at a time share a question. What was
//! confirmed of a replica says nothing of another that takes its place meanwhile, so then it begins anew.

use std::sync::Arc;

use dogsled_storage::IVec;
use dogsled_storage::codec::encode_group_read_reply;
use dogsled_storage::group::{GroupRead, GroupReadReply};
use tokio::time::Instant;

use super::Inner;
use super::transactions::{failed_read, open_replica};
use crate::client::{ClientReply, Consistency};
use crate::error::ClusterError;
use crate::group::Group;
use crate::message::{Header, Kind, take_position, take_reply};
use crate::read_index::Round;
use crate::transport::Lane;

/// The tree and the key, of a read of one value.
pub(super) fn key_of(read: &GroupRead) -> Option<(IVec, IVec)> {
    match read {
        GroupRead::Get { tree, key } => Some((tree.clone(), key.clone())),
        _ => None,
    }
}

/// The answer to a read, complete, and the position that it is as of; it includes at least `position`.
pub(super) fn with_position(
    group: &Group,
    key: Option<(IVec, IVec)>,
    mut answer: GroupReadReply,
    mut position: u64,
) -> Result<(GroupReadReply, u64), ClusterError> {
    // Of a key the position is exact: whoever follows it goes on behind that, and must not be told once
    // more of what the answer had in it already.
    if let (GroupReadReply::Value(found), Some((tree, key))) = (&mut answer, key) {
        match found {
            Some(found) => position = position.max(found.version),
            None => {
                let as_of = open_replica(group)?.get_as_of(&tree, &key).map_err(failed_read)?;
                if as_of.1 >= position {
                    (*found, position) = as_of;
                }
            }
        }
    }
    if answer.tells_time() {
        answer.set_time(group.slot.clock.now());
    }
    if let GroupReadReply::Sessions { .. } = &answer
        && let Some(term) = group.term_led()
    {
        answer.set_led(group.slot.clock.led(term).as_millis() as u64);
    }
    Ok((answer, position))
}

impl Inner {
    pub(super) async fn read(
        self: &Arc<Self>,
        group: &Arc<Group>,
        read: GroupRead,
        consistency: Consistency,
    ) -> Result<ClientReply, ClusterError> {
        loop {
            let generation = group.slot.generation();
            let reply = self.read_once(group, read.clone(), consistency).await?;
            // What was confirmed of a replica does not hold of another that took its place meanwhile.
            if consistency == Consistency::Stale || group.slot.generation() == generation {
                return Ok(reply);
            }
        }
    }

    async fn read_once(
        self: &Arc<Self>,
        group: &Arc<Group>,
        read: GroupRead,
        consistency: Consistency,
    ) -> Result<ClientReply, ClusterError> {
        let age = match consistency {
            Consistency::Linearizable => {
                self.confirm(group).await?;
                None
            }
            // Not by the age that a stale read tells: that is by what a leader says that may have lost its
            // majority without knowing it.
            Consistency::AtMostOld(limit) => match group.confirmed_age().filter(|age| *age <= limit) {
                Some(age) => Some(age),
                None => {
                    self.confirm(group).await?;
                    group.confirmed_age()
                }
            },
            // A node that holds no state of the group yet has nothing to say, not even something old. Its leader has.
            Consistency::Stale if group.slot.applied() == 0 => {
                let leader = group.leader().filter(|leader| *leader != self.config.node);
                return Err(match leader {
                    Some(_) => group.not_leader(leader),
                    None => ClusterError::Unavailable(format!("group {} has not begun here", group.id)),
                });
            }
            Consistency::Stale if group.leads() => group.out_of_touch_for(self.config.timing.undisputed()),
            Consistency::Stale => group.slot.age(),
        };
        // Before reading: the answer includes at least this.
        let position = group.slot.applied();
        let key = key_of(&read);
        let answer = match consistency {
            // What a transaction has decided long ago may not have been told here yet.
            Consistency::Linearizable | Consistency::AtMostOld(_) => self.read_settled(group, read).await?,
            Consistency::Stale => self.read_stale(group, read).await?,
        };
        let (answer, position) = with_position(group, key, answer, position)?;
        let reply =
            encode_group_read_reply(&answer).map_err(|error| ClusterError::Invalid(error.to_string()))?;
        Ok(ClientReply::Read { position, age, reply: reply.into() })
    }

    /// Waits until this replica has everything that was acknowledged before.
    pub(super) async fn confirm(&self, group: &Arc<Group>) -> Result<(), ClusterError> {
        let asked = Instant::now();
        if group.is_alone() {
            // Not what is told to be applied, which is told behind the answers: this is held against replicas to come.
            let applied =
                group.slot.replica().map_or_else(|| group.slot.applied(), |now| now.applied().position);
            group.confirm(asked, applied);
            return Ok(());
        }
        let begun = group.before_asking();
        let at = if group.leads() { group.read_index().await? } else { self.ask_leader(group).await? };
        group.slot.wait_applied(at).await;
        group.confirm(asked, at);
        group.alone_since(begun).await;
        Ok(())
    }

    async fn read_stale(&self, group: &Arc<Group>, read: GroupRead) -> Result<GroupReadReply, ClusterError> {
        let replica = open_replica(group)?;
        let answer = match read {
            GroupRead::Get { .. }
            | GroupRead::Counter { .. }
            | GroupRead::LockHolder { .. }
            | GroupRead::LockHolders { .. }
            | GroupRead::Ticket { .. } => replica.read(&read),
            _ => match self.blocking.run(move || replica.read(&read)).await {
                Ok(answer) => answer,
                Err(error) => return Err(ClusterError::Unavailable(error.to_string())),
            },
        };
        answer.map_err(failed_read)
    }

    /// As follower: the position up to which a read must know, by the leader. All reads that wait
    /// share one question.
    async fn ask_leader(&self, group: &Arc<Group>) -> Round {
        let cluster = self.cluster()?.number();
        let (transport, me) = (Arc::clone(&self.transport), self.config.node);
        let fence = Arc::clone(&self.fence);
        let deadline = self.config.timing.election.1;
        let asked = Arc::clone(group);
        let round = move || {
            let (group, transport) = (Arc::clone(&asked), Arc::clone(&transport));
            let fence = Arc::clone(&fence);
            async move {
                let Some(leader) = group.leader().filter(|leader| *leader != me) else {
                    return Err(group.not_leader(None));
                };
                let request = Header { kind: Kind::ReadIndex, cluster, group: group.id }.encode(0);
                let reply = transport.request(leader, Lane::Control, request.into(), deadline).await;
                let unavailable = |why: &dyn std::fmt::Display| {
                    ClusterError::Unavailable(format!("node {leader}, which leads group {}: {why}", group.id))
                };
                let reply = take_reply(reply.map_err(|error| unavailable(&error))?);
                let mut take = reply.map_err(|error| {
                    fence.refused(&error);
                    unavailable(&error)
                })?;
                take_position(&mut take).map_err(|error| unavailable(&error))
            }
        };
        group.follower_rounds.join(round).await
    }
}
