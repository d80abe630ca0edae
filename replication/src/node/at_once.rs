//! Reads that a node answers within the call, for its own client: where it has a group [alone](crate::alone).

use dogsled_storage::Settled;
use dogsled_storage::group::{GroupRead, GroupReadReply};
use tokio::time::Instant;

use super::Node;
use super::reads::{key_of, with_position};
use super::transactions::{is_quick, open_replica};
use crate::metrics::Asked;

impl Node {
    /// A linearizable read's answer, and the position that it is as of; `None` if others have to be asked, if it
    /// has to wait, takes long or fails: then it is for the usual way, which does all that and tells errors.
    ///
    /// It may read the disk as the usual way does for the same reads, and sends and waits for nothing.
    pub fn read_at_once(&self, group: u32, read: &GroupRead) -> Option<(GroupReadReply, u64)> {
        let inner = &self.inner;
        if inner.fence.is_out() || !is_quick(read) {
            return None;
        }
        let (began, group) = (Instant::now(), inner.group(group).ok()?);
        let generation = group.slot.generation();
        if !group.is_alone() {
            return None;
        }
        // Before reading: the answer includes at least this.
        let position = group.slot.applied();
        let Ok(Settled::Answer(answer)) = open_replica(&group).ok()?.read_settled(read) else { return None };
        let found = with_position(&group, key_of(read), answer, position).ok()?;
        // What was known of a replica does not hold of another that took its place meanwhile.
        if group.slot.generation() != generation {
            return None;
        }
        let (metrics, now_ms) = (&inner.shared_log.metrics, || inner.config.clock.now_ms());
        metrics.answered(&Asked::of(group.id, read), began.elapsed(), now_ms);
        Some(found)
    }
}
