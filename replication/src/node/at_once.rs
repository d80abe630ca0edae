//! Reads that a node answers within the call, for its own client: where it has a group [alone](crate::alone).

use std::sync::Arc;

use dogsled_storage::group::{GroupRead, GroupReadReply};
use dogsled_storage::kind::ReadKind;
use dogsled_storage::replica::Replica;
use dogsled_storage::{IVec, Settled};
use tokio::time::Instant;

use super::Node;
use super::reads::{key_of, with_position};
use super::transactions::{is_quick, open_replica};
use crate::group::Group;
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
        metrics.answered(&Asked::of(group.id, read), 1, began.elapsed(), now_ms);
        Some(found)
    }

    /// As [`Node::read_at_once`] of each of these keys, by group and tree, in their order, if all are strings of Redis's
    /// or absent. What every read costs besides looking for the key is paid once for all.
    pub fn texts_at_once<'a>(
        &self,
        asked: impl Iterator<Item = (u32, &'a IVec, &'a IVec)>,
    ) -> Option<Vec<Option<IVec>>> {
        let inner = &self.inner;
        if inner.fence.is_out() {
            return None;
        }
        let began = Instant::now();
        let mut groups: Vec<(Arc<Group>, u64, Arc<Replica>)> = Vec::new();
        let mut texts = Vec::with_capacity(asked.size_hint().0);
        let mut first = None;
        for (id, tree, key) in asked {
            let place = match groups.iter().position(|(group, ..)| group.id == id) {
                Some(place) => place,
                None => {
                    let group = inner.group(id).ok()?;
                    let generation = group.slot.generation();
                    // A state that is looked at later, too, has everything that was acknowledged before this.
                    if !group.is_alone() {
                        return None;
                    }
                    let replica = open_replica(&group).ok()?;
                    groups.push((group, generation, replica));
                    groups.len() - 1
                }
            };
            texts.push(groups[place].2.text_settled(tree, key).ok()??);
            first.get_or_insert((id, tree));
        }
        // What was known of a replica does not hold of another that took its place meanwhile.
        if groups.iter().any(|(group, generation, _)| group.slot.generation() != *generation) {
            return None;
        }
        if let Some((group, tree)) = first {
            let asked = Asked { group, kind: ReadKind::StringsGet, tree: Some(tree.clone()) };
            let now_ms = || inner.config.clock.now_ms();
            inner.shared_log.metrics.answered(&asked, texts.len() as u64, began.elapsed(), now_ms);
        }
        Some(texts)
    }
}
