//! What a node does about disks that are nearly full; see [`crate::room`].

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use dogsled_storage::codec::decode_group_command;
use dogsled_storage::disk::Space;
use openraft::async_runtime::WatchReceiver;

use super::Inner;
use crate::error::ClusterError;
use crate::group::Group;
use crate::ring::META_GROUP;
use crate::room::Verdict;
use crate::runtime::watch;
use crate::transport::NodeId;

/// Looks in every round of maintenance: much can be written within one.
const LOOKS: u32 = 4;

/// Looks at the disk again and again, and hands over what the node leads while it is low.
pub(super) async fn run(node: Weak<Inner>, mut stop: watch::Receiver<bool>) {
    loop {
        let every = match node.upgrade() {
            Some(node) => node.config.maintenance_every / LOOKS,
            None => return,
        };
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return,
            () = tokio::time::sleep(every) => {}
        }
        let Some(node) = node.upgrade() else { return };
        node.look_at_disk().await;
        if node.room.is_low() {
            node.leave_leading_to_others().await;
        }
    }
}

impl Inner {
    pub(super) async fn look_at_disk(&self) {
        let (disk, directory) = (Arc::clone(&self.config.disk), self.config.directory.clone());
        let looked = self.blocking.run(move || {
            // The WAL may have a file system of its own.
            let all = [disk.space(&directory).ok(), disk.space(&directory.join("wal")).ok()];
            all.into_iter().flatten().min_by_key(|space| space.free)
        });
        // What cannot be told is not low: whoever writes finds out.
        let Ok(Some(space)) = looked.await else { return };
        let Space { total, free } = space;
        match self.room.see(space) {
            (true, true) => tracing::warn!(
                node = self.config.node.0,
                free,
                total,
                below = self.room.mark(),
                "the disk is nearly full: this node leaves leading to others, and refuses what stores something"
            ),
            (false, true) => {
                tracing::info!(node = self.config.node.0, free, total, "there is space on the disk again")
            }
            _ => {}
        }
    }

    /// Refuses a command that would be logged where there is too little space for it.
    pub(super) fn admit(&self, group: &Group, command: &[u8]) -> Result<(), ClusterError> {
        if !self.room.is_scarce_somewhere() || group.id == META_GROUP || !group.leads() {
            return Ok(());
        }
        let Some(refusal) = self.room.refusal(self.verdict(group), group.id) else { return Ok(()) };
        // One that cannot be decoded is refused for that.
        match decode_group_command(command) {
            Ok(command) if command.asks_for_space() => Err(refusal),
            _ => Ok(()),
        }
    }

    fn verdict(&self, group: &Group) -> Verdict {
        let Some(raft) = group.raft() else { return Verdict::Plenty };
        let metrics = raft.server_metrics();
        let metrics = metrics.borrow_watched();
        self.room.verdict(metrics.membership_config.membership().get_joint_config())
    }

    async fn leave_leading_to_others(&self) {
        let groups = self.cluster.get().map(|cluster| cluster.groups()).unwrap_or_default();
        for group in groups.values().filter(|group| group.leads()) {
            if let (Some(raft), Some(heir)) = (group.raft(), self.heir_with_space(group)) {
                // If it fails, the next look tries again.
                let _ = raft.trigger().transfer_leader(heir).await;
            }
        }
    }

    /// A voter that has space, answers, and has nearly all of the log.
    fn heir_with_space(&self, group: &Group) -> Option<u64> {
        if self.verdict(group) != Verdict::Elsewhere {
            // Nobody would be better off.
            return None;
        }
        let raft = group.raft()?;
        let metrics = raft.metrics();
        let metrics = metrics.borrow_watched();
        // Not amid a change of members.
        if metrics.membership_config != metrics.committed_membership_config {
            return None;
        }
        let voters: BTreeSet<u64> = metrics.membership_config.membership().voter_ids().collect();
        voters
            .into_iter()
            .filter(|voter| *voter != metrics.id && !self.room.is_low_at(NodeId(*voter)))
            .filter_map(|voter| Some((self.readiness(&metrics, voter)?, voter)))
            .max()
            .map(|(_, voter)| voter)
    }
}
