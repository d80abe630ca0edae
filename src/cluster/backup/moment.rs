//! [`Moment`]: the state of a cluster at one moment, for whoever reads it without making a backup of it.

use std::collections::BTreeMap;

use dogsled_replication::pin::{PinnedPage, PinnedRead, PinnedState};

use super::pinned::PinnedCluster;
use super::{BackupError, MARKER_TREE};
use crate::cluster::{Client, Result};

/// The states of all partitions at one moment, held by their nodes while they are read, whatever is written
/// meanwhile; [`backup`](super) tells what is in them, and who may wait for them.
#[doc(hidden)]
pub struct Moment {
    pinned: PinnedCluster,
}

impl Client {
    /// The state of the cluster at this moment, for tools. Only an administrator may ask for it.
    ///
    /// # Errors
    /// [`BackupError::Refused`] if a restore into this cluster was not finished; those of reading.
    #[doc(hidden)]
    pub async fn moment(&self) -> Result<Moment, BackupError> {
        let pinned = PinnedCluster::pin(self).await?;
        let trees = || pinned.states.values().flat_map(|state| &state.trees);
        if trees().any(|(name, _)| name == MARKER_TREE) {
            return Err(BackupError::Refused(
                "a restore into this cluster was not finished: finish it first, by the same command"
                    .to_owned(),
            ));
        }
        Ok(Moment { pinned })
    }
}

impl Moment {
    /// What each partition holds.
    pub fn partitions(&self) -> &BTreeMap<u32, PinnedState> {
        &self.pinned.states
    }

    /// Entries of a partition.
    ///
    /// # Errors
    /// [`Error::Conflict`](crate::cluster::Error::Conflict) if the node that held it has stopped: that moment is gone.
    pub async fn page(&self, partition: u32, read: PinnedRead) -> Result<PinnedPage> {
        self.pinned.page(partition, read).await
    }

    /// Tells the nodes that it is not wanted any more. They are told, too, when it is dropped; but whoever ends then
    /// may not be heard, and they hold it for a minute.
    pub async fn let_go(&mut self) {
        self.pinned.let_go().await;
    }
}
