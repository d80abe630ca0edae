//! Requests about [pinned states](crate::pin).

use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::pin::{Pinned, Pinning};
use dogsled_storage::{IVec, TransactionId};
use tokio::time::Instant;

use super::Inner;
use super::transactions::{failed_read, open_replica};
use crate::client::ClientReply;
use crate::error::ClusterError;
use crate::group::Group;
use crate::pin::{MAX_PAGE_BYTES, PinnedPage, PinnedRead, PinnedState};

/// What is told of a state that is not held, or not any more.
fn gone(group: u32) -> ClusterError {
    ClusterError::Conflict(format!(
        "the state of group {group} is not held any more: its lease was over, or its node was restarted, or has given up \
         the group"
    ))
}

impl Inner {
    /// Holds the state of a group under a transaction that has locked everything there.
    pub(super) async fn pin(
        self: &Arc<Self>,
        group: &Arc<Group>,
        under: TransactionId,
        lease: Duration,
        until: Instant,
    ) -> Result<ClientReply, ClusterError> {
        if let Some(pinned) = group.slot.pins.get(under) {
            return self.pinned(&pinned).await;
        }
        // This replica may not have heard of the locks yet.
        self.confirm(group).await?;
        loop {
            let replica = open_replica(group)?;
            let of = Arc::clone(&replica);
            let pinning = self.blocking.run(move || of.pin(under)).await;
            let pinning = pinning.map_err(|error| ClusterError::Unavailable(error.to_string()))?;
            match pinning.map_err(failed_read)? {
                Pinning::Pinned(pinned) => {
                    let pinned = Arc::new(pinned);
                    if !group.slot.pins.insert(under, Arc::clone(&pinned), lease) {
                        let why = format!("too many states of group {} are held already", group.id);
                        return Err(ClusterError::Unavailable(why));
                    }
                    // It keeps the files of its replica, and another may have taken its place.
                    if !group.slot.replica().is_some_and(|now| Arc::ptr_eq(&now, &replica)) {
                        group.slot.pins.remove(under);
                        return Err(gone(group.id));
                    }
                    return self.pinned(&pinned).await;
                }
                Pinning::Locked(lock) => {
                    if !self.wait_until_resolved(group, &lock, until).await {
                        return Err(ClusterError::Unavailable(lock.to_string()));
                    }
                }
                Pinning::NotLocked => {
                    return Err(ClusterError::Conflict(format!(
                        "group {} is not locked by transaction {under}, or not any more",
                        group.id
                    )));
                }
            }
        }
    }

    async fn pinned(&self, pinned: &Arc<Pinned>) -> Result<ClientReply, ClusterError> {
        let of = Arc::clone(pinned);
        let trees = self.blocking.run(move || of.trees()).await;
        let trees = trees.map_err(|error| ClusterError::Unavailable(error.to_string()))?;
        Ok(ClientReply::Pinned(PinnedState {
            node: self.config.node,
            position: pinned.position(),
            time_ms: pinned.time_ms(),
            trees,
        }))
    }

    /// A page of what is held here.
    pub(super) async fn read_pinned(
        &self,
        group: u32,
        under: TransactionId,
        read: PinnedRead,
    ) -> Result<ClientReply, ClusterError> {
        let here = self.cluster()?.group(group).ok_or_else(|| gone(group))?;
        let pinned = here.slot.pins.get(under).ok_or_else(|| gone(group))?;
        let page = move || {
            let after = read.after.as_ref().map(|after| IVec::from(&after[..]));
            let limit = u64::from(read.limit_bytes.clamp(1, MAX_PAGE_BYTES));
            pinned.page(&read.tree, read.part, after.as_ref(), read.since, limit)
        };
        let page = self.blocking.run(page).await;
        let page = page.map_err(|error| ClusterError::Unavailable(error.to_string()))?;
        let (entries, next) = page.map_err(failed_read)?;
        Ok(ClientReply::PinnedPage(PinnedPage { entries, next }))
    }

    /// Keeps what is held here of these groups, for its lease anew, or lets it go. If one of them is gone, the others are
    /// kept all the same: whoever asks may have all that it needs of that one.
    pub(super) fn keep_pins(
        &self,
        groups: &[u32],
        under: TransactionId,
        keep: bool,
    ) -> Result<ClientReply, ClusterError> {
        let cluster = self.cluster()?;
        let mut lost = None;
        for group in groups {
            let here = cluster.group(*group);
            match (&here, keep) {
                (Some(here), true) if here.slot.pins.get(under).is_some() => {}
                (_, true) => lost = lost.or(Some(*group)),
                (Some(here), false) => here.slot.pins.remove(under),
                (None, false) => {}
            }
        }
        lost.map_or(Ok(ClientReply::Done), |group| Err(gone(group)))
    }
}
