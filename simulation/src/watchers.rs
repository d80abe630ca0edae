//! [`Watcher`]: a client that follows keys, from one node to the next, and [`Watched`]: what all
//! watchers were told, and whether that can be.
//!
//! A watcher asks a node for everything under a prefix, listens for a while, and goes on at another
//! node, because it wants to, or because the stream broke off. What it is told between a *began* or a
//! *lost* and the end is a *stretch*. The promise is about stretches:
//!
//! - The entries come in the order of their positions, all behind the position where it began.
//! - A stretch tells everything in it: what another one tells of a position in between, or what a
//!   writer was told to have happened there, it tells, too, if it is under its prefix. That holds to
//!   the last position of a stretch that broke off, and without end for those that never did.
//! - One position does one thing to a key, whoever tells it.
//!
//! A watcher that goes on often asks for what comes after the event that it was told last. Then the new
//! stretch begins there, whichever node tells it, or the node says that it has not kept so much.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::watch::{Told, WatchEvent};
use dogsled_replication::{ClientReply, ClientRequest, NodeId};
use dogsled_storage::IVec;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::history::Value;
use crate::random::Random;
use crate::trace::event;
use crate::workload::{Shared, TREE, value_of};

/// Position and key of a change.
type Place = (u64, Vec<u8>);
/// Where, and the value that the key got, 0 if none.
type Change = (Place, Value);
/// By group and place: the value, and who was told.
type Truth = BTreeMap<(u32, Place), (Value, String)>;

/// What one stream told without a gap.
#[derive(Debug)]
struct Stretch {
    watcher: u64,
    node: NodeId,
    group: u32,
    prefix: Vec<u8>,
    /// Everything behind this position is told.
    from: u64,
    changes: BTreeMap<Place, Value>,
    last: u64,
    broken: bool,
}

impl Stretch {
    /// Whether a change must be told in it.
    fn covers(&self, group: u32, (position, key): &Place) -> bool {
        self.group == group
            && key.starts_with(&self.prefix)
            && *position > self.from
            // The last entry's changes may have been told in part.
            && (*position < self.last || !self.broken)
    }
}

#[derive(Default)]
struct Inner {
    stretches: Vec<Stretch>,
    /// What writers were told: group and change.
    acknowledged: Vec<(u32, Change)>,
}

/// See the [module](self); clones are the same.
#[derive(Clone, Default)]
pub struct Watched(Arc<Mutex<Inner>>);

impl Watched {
    /// A writer was told that this has happened.
    pub fn acknowledged(&self, group: u32, position: u64, key: &[u8], value: Value) {
        self.0.lock().acknowledged.push((group, ((position, key.to_vec()), value)));
    }

    /// How much was judged.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let inner = self.0.lock();
        let changes: usize = inner.stretches.iter().map(|stretch| stretch.changes.len()).sum();
        [("stretches watched", inner.stretches.len() as u64), ("changes watched", changes as u64)].into()
    }

    /// What must not be, in words.
    pub fn judge(&self) -> Vec<String> {
        let inner = self.0.lock();
        let mut violations = Vec::new();
        let mut truth = Truth::new();
        let told = inner.stretches.iter().flat_map(|stretch| {
            let by = format!("watcher {} at node {}", stretch.watcher, stretch.node);
            stretch.changes.iter().map(move |(at, value)| (stretch.group, at.clone(), *value, by.clone()))
        });
        let written = inner.acknowledged.iter();
        let written =
            written.map(|(group, (at, value))| (*group, at.clone(), *value, "its writer".to_owned()));
        for (group, at, value, by) in written.chain(told) {
            let (known, whose) = truth.entry((group, at.clone())).or_insert((value, by.clone()));
            if *known != value {
                violations.push(format!(
                    "group {group}: entry {} put {value} into {} for {by}, and {known} for {whose}",
                    at.0,
                    String::from_utf8_lossy(&at.1)
                ));
            }
        }
        for stretch in &inner.stretches {
            let missing = truth
                .iter()
                .find(|((group, at), _)| stretch.covers(*group, at) && !stretch.changes.contains_key(at));
            if let Some(((group, (position, key)), (value, by))) = missing {
                violations.push(format!(
                    "group {group}: watcher {} at node {} was told everything under {:?} from {} to {}, broken off: {}, but not that entry {position} put {value} into {}, as {by} was",
                    stretch.watcher,
                    stretch.node,
                    String::from_utf8_lossy(&stretch.prefix),
                    stretch.from,
                    stretch.last,
                    stretch.broken,
                    String::from_utf8_lossy(key)
                ));
            }
        }
        violations
    }
}

/// See the [module](self).
pub struct Watcher {
    number: u64,
    shared: Arc<Shared>,
    random: Random,
    group: u32,
    prefix: Vec<u8>,
    /// It listens so long to one node, if nothing happens to the stream.
    stay_ms: (u64, u64),
    /// The time it takes over a message.
    slow_ms: u64,
    /// How far it was told, and what of the entry behind that.
    told: Option<(Told, BTreeMap<Place, Value>)>,
}

impl Watcher {
    /// A watcher of a prefix that its seed chooses.
    pub fn new(number: u64, seed: u64, shared: Arc<Shared>) -> Watcher {
        let mut random = Random::new(seed, 20_000 + number);
        Watcher {
            number,
            group: random.between(1, u64::from(shared.partitions)) as u32,
            prefix: random.pick(&["", "key", "key0", "{pair"]).as_bytes().to_vec(),
            stay_ms: *random.pick(&[(100, 1_000), (1_000, 5_000), (60_000, 90_000)]),
            slow_ms: *random.pick(&[0, 0, 5, 30]),
            told: None,
            random,
            shared,
        }
    }

    /// Watches until it is told to stop.
    pub async fn run(mut self, mut stop: watch::Receiver<bool>) {
        while !*stop.borrow() {
            self.follow(&mut stop).await;
            tokio::time::sleep(Duration::from_millis(self.random.between(5, 100))).await;
        }
    }

    async fn follow(&mut self, stop: &mut watch::Receiver<bool>) {
        let node = *self.random.pick(&self.shared.nodes.lock());
        // Now and then as one who has never been there.
        if self.random.between(0, 3) == 0 {
            self.told = None;
        }
        let request = ClientRequest::Watch {
            group: self.group,
            tree: TREE.as_bytes().into(),
            prefix: self.prefix.clone().into(),
            told: self.told.as_ref().map(|(told, _)| *told),
        };
        let leave =
            Instant::now() + Duration::from_millis(self.random.between(self.stay_ms.0, self.stay_ms.1));
        let Some(mut messages) = self.shared.network.watch(self.number, node, request.encode()) else {
            return;
        };
        event!(self.shared.trace, "watcher {} begins at node {node}", self.number);
        let mut stretch = None;
        let stopped = loop {
            let message = tokio::select! {
                biased;
                message = messages.recv() => message,
                _ = stop.wait_for(|stop| *stop) => break true,
                () = tokio::time::sleep_until(leave) => None,
            };
            let Some(message) = message else { break false };
            match WatchEvent::decode(message.clone()) {
                Ok(events) => {
                    for told in events {
                        self.hear(node, &mut stretch, told);
                    }
                }
                Err(error) => {
                    // A stream that ends with an error says it as other answers do.
                    if !matches!(ClientReply::decode(message), Ok(ClientReply::Error(_))) {
                        self.violation(format!("a message cannot be read: {error}"));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(self.slow_ms)).await;
        };
        event!(self.shared.trace, "watcher {} ends at node {node}", self.number);
        self.finish(stretch, !stopped);
    }

    fn hear(&mut self, node: NodeId, stretch: &mut Option<Stretch>, event: WatchEvent) {
        let (position, key, value) = match event {
            WatchEvent::Progress { position } => {
                if let (Some((told, partly)), Some(stretch)) = (&mut self.told, stretch) {
                    told.all(position);
                    partly.retain(|(at, _), _| *at > position);
                    stretch.last = stretch.last.max(position);
                }
                return;
            }
            WatchEvent::Compacted { position } => {
                event!(self.shared.trace, "watcher {} comes too late for {position}", self.number);
                self.told = None;
                return;
            }
            WatchEvent::Began { position } | WatchEvent::Lost { position } => {
                let is_lost = matches!(event, WatchEvent::Lost { .. });
                let (told, changes) = match self.told.take() {
                    Some((told, partly)) if !is_lost => (told, partly),
                    _ => (Told::all_to(position), BTreeMap::new()),
                };
                if position < told.position || (position > told.position && told.events > 0) {
                    self.violation(format!("asked for all after {told:?}, and begins at {position}"));
                }
                let last = changes.keys().next().map_or(position, |(at, _)| *at);
                self.told = Some((Told { position, ..told }, changes.clone()));
                let next = Stretch {
                    watcher: self.number,
                    node,
                    group: self.group,
                    prefix: self.prefix.clone(),
                    from: position,
                    changes,
                    last,
                    broken: true,
                };
                event!(self.shared.trace, "watcher {} is told all from {position}", self.number);
                self.finish(stretch.replace(next), true);
                return;
            }
            WatchEvent::Put { position, key, value } => {
                (position, key, value_of(Some(&IVec::from(&value[..]))))
            }
            WatchEvent::Removed { position, key } => (position, key, 0),
            WatchEvent::Cleared { position } => {
                return self.violation(format!("the tree was cleared at {position}, and nobody did that"));
            }
        };
        let Some(stretch) = stretch else {
            return self.violation(format!("entry {position} came before the beginning"));
        };
        let name = String::from_utf8_lossy(&key);
        event!(self.shared.trace, "watcher {} is told that {position} put {value} into {name}", self.number);
        if position < stretch.last || position <= stretch.from {
            self.violation(format!(
                "entry {position} came after {} from node {node}, with all behind {}",
                stretch.last, stretch.from
            ));
        }
        if !key.starts_with(&self.prefix) {
            self.violation(format!("{name} does not begin with what is watched"));
        }
        stretch.last = position;
        if let Some((told, partly)) = &mut self.told {
            told.one_of(position);
            partly.retain(|(at, _), _| *at == position);
            partly.insert((position, key.to_vec()), value);
        }
        if stretch.changes.insert((position, key.to_vec()), value).is_some() {
            self.violation(format!("entry {position} changed {name} twice"));
        }
    }

    fn finish(&self, stretch: Option<Stretch>, broken: bool) {
        if let Some(mut stretch) = stretch {
            stretch.broken = broken;
            self.shared.watched.0.lock().stretches.push(stretch);
        }
    }

    fn violation(&self, what: String) {
        event!(self.shared.trace, "watcher {}: VIOLATION: {what}", self.number);
        self.shared.violations.lock().push(format!("watcher {}: {what}", self.number));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One that was told everything under "key" from 10 on, and these positions and values of one key.
    fn stretch(watcher: u64, changes: &[(u64, Value)], last: u64, broken: bool) -> Stretch {
        let changes = changes.iter().map(|(position, value)| ((*position, b"key1".to_vec()), *value));
        let (node, prefix) = (NodeId(1), b"key".to_vec());
        Stretch { watcher, node, group: 1, prefix, from: 10, changes: changes.collect(), last, broken }
    }

    /// What is said of them, when a writer was told that entry 12 put 5 into the key.
    fn judged(stretches: impl IntoIterator<Item = Stretch>) -> Vec<String> {
        let watched = Watched::default();
        watched.acknowledged(1, 12, b"key1", 5);
        watched.0.lock().stretches.extend(stretches);
        watched.judge()
    }

    #[test]
    fn a_change_that_is_not_told_is_missed() {
        let all = [(12, 5), (15, 6)];
        assert_eq!(judged([stretch(1, &all, 15, false), stretch(2, &all, 20, false)]), Vec::<String>::new());
        // It knows of 12 by the writer, and of 15 by another watcher.
        for some in [&all[..1], &all[1..]] {
            let said = judged([stretch(1, &all, 15, false), stretch(2, some, 20, false)]);
            assert!(said.len() == 1 && said[0].contains("watcher 2"), "{said:?}");
        }
        // What is in another group, under another prefix, or before the beginning, need not be told.
        let silent = || stretch(1, &[], 20, false);
        assert_eq!(judged([silent()]).len(), 1);
        assert_eq!(judged([Stretch { group: 2, ..silent() }]), Vec::<String>::new());
        assert_eq!(judged([Stretch { prefix: b"key2".to_vec(), ..silent() }]), Vec::<String>::new());
        assert_eq!(judged([Stretch { from: 12, ..silent() }]), Vec::<String>::new());
    }

    #[test]
    fn one_entry_puts_one_value() {
        for said in [
            judged([stretch(1, &[(12, 6)], 12, false)]),
            judged([stretch(1, &[(12, 5), (13, 7)], 13, false), stretch(2, &[(12, 5), (13, 0)], 13, false)]),
        ] {
            assert!(said.len() == 1 && said[0].contains("into key1 for watcher"), "{said:?}");
        }
    }

    #[test]
    fn a_stretch_that_broke_off_tells_all_before_its_last_entry() {
        // That entry itself may have been told in part.
        for last in [11, 12] {
            assert_eq!(judged([stretch(1, &[], last, true)]), Vec::<String>::new());
        }
        assert_eq!(judged([stretch(1, &[], 13, true)]).len(), 1);
        assert_eq!(judged([stretch(1, &[], 11, false)]).len(), 1);
    }
}
