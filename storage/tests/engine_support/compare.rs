//! Comparison of a database with the model, by every way there is to read it.

use std::ops::Bound;

use dogsled_storage::model::{ModelState, ModelTree};
use dogsled_storage::quota::check_invariants;
use dogsled_storage::{Engine, Error, IVec, Snapshot, TreeId, Versioned, View};

use super::Random;

type Entry = (IVec, Versioned);

/// Panics unless a snapshot shows exactly the model's state: trees, lengths, every key with its
/// version by point reads, and scans in both directions.
pub fn assert_snapshot_is(snapshot: &Snapshot, model: &ModelState, context: &str) {
    assert_eq!(snapshot.sequence(), model.sequence(), "{context}: the snapshot's sequence");
    assert_eq!(snapshot.trees(), shown_trees(model), "{context}: trees as of {}", model.sequence());
    let own = [TreeId::COUNTERS, TreeId::LOCKS, TreeId::QUOTAS];
    check_invariants(model).unwrap_or_else(|error| panic!("{context}: {error}"));
    for id in model.names().map(|(_, id)| id).chain(own) {
        let expected = model.tree(id).expect("a named tree exists");
        let context = format!("{context}: {id:?} as of {}", model.sequence());
        assert_eq!(
            snapshot.len(id).expect("a tree has a length"),
            expected.len() as u64,
            "{context}: length"
        );
        let forward: Vec<Entry> = all(snapshot, id).collect();
        assert_entries(&forward, expected, &format!("{context}, forward"));
        let mut backward: Vec<Entry> = all(snapshot, id).rev().collect();
        backward.reverse();
        assert_entries(&backward, expected, &format!("{context}, backward"));
        for (key, found) in expected {
            let read = snapshot.get(id, key).expect("a key can be read");
            assert_eq!(read.as_ref(), Some(found), "{context}: key {key:?}");
        }
        for absent in ["", "k", "k00000", "nowhere", "\u{7f}"] {
            if !expected.contains_key(absent.as_bytes()) {
                let read = snapshot.get(id, absent.as_bytes()).expect("an absent key can be read");
                assert_eq!(read, None, "{context}: key {absent:?}");
            }
        }
    }
}

/// Panics unless the newest state is the model's, by snapshot and by the engine's own reads.
pub fn assert_engine_is(engine: &Engine, model: &ModelState, context: &str) {
    assert_eq!(engine.sequence(), model.sequence(), "{context}: the engine's sequence");
    assert_eq!(engine.trees(), shown_trees(model), "{context}: trees");
    let mut keys = model.len(TreeId::COUNTERS) + model.len(TreeId::LOCKS) + model.len(TreeId::QUOTAS);
    for (name, id) in model.names() {
        assert_eq!(engine.tree_id(name), Some(id), "{context}: the number of tree {name:?}");
        let tree = model.tree(id).expect("a named tree exists");
        assert_eq!(engine.len(id).expect("a tree has a length"), tree.len() as u64, "{context}: {id:?}");
        keys += tree.len() as u64;
        // Point reads before any scan, and not in order: a scan would fill the cache for them.
        let stride = (tree.len() / 3 + 1).max(1);
        for (key, found) in (0..stride).flat_map(|start| tree.iter().skip(start).step_by(stride)) {
            let read = engine.get(id, key).expect("a key can be read");
            assert_eq!(read.as_ref(), Some(&found.value), "{context}: {id:?} key {key:?}");
            let absent = [&key[..], &[0xfe]].concat();
            let read = engine.get(id, &absent).expect("an absent key can be read");
            assert_eq!(read, None, "{context}: {id:?} key {absent:?}");
        }
    }
    assert_snapshot_is(&engine.snapshot(), model, context);
    let stats = engine.stats().expect("figures");
    assert_eq!(stats.keys, keys, "{context}: keys in the figures");
}

/// Panics unless a random range of the snapshot, consumed from both ends in random turns, is what
/// the model holds there; of a tree that is not there, an error.
pub fn assert_random_range(
    snapshot: &Snapshot,
    model: &ModelState,
    tree: TreeId,
    keys: (IVec, IVec),
    random: &mut Random,
) {
    let mut bound = |key: IVec| match random.below(5) {
        0 => Bound::Unbounded,
        1 | 2 => Bound::Included(key),
        _ => Bound::Excluded(key),
    };
    let (low, high) = (bound(keys.0), bound(keys.1));
    let mut expected = Vec::new();
    let (low_slice, high_slice) = (slice(&low), slice(&high));
    model
        .scan(tree, low_slice, high_slice, &mut |key, version| {
            expected.push((IVec::from(key), version));
            true
        })
        .expect("the model can be read");
    let mut iter = snapshot.range(tree, low.clone(), high.clone());
    if !tree.is_system() && model.tree(tree).is_none() {
        let told = if random.one_in(2) { iter.next() } else { iter.next_back() };
        assert!(matches!(told, Some(Err(Error::TreeNotFound(_)))), "{tree:?} is not there: {told:?}");
        assert!(iter.next().is_none() && iter.next_back().is_none(), "{tree:?}: an error ends a scan");
        return;
    }
    let (mut front, mut back) = (Vec::new(), Vec::new());
    let lean = 1 + random.below(7);
    // Some scans are dropped half-way.
    let mut left = if random.one_in(4) { random.below(20) } else { u64::MAX };
    let mut whole = false;
    while left > 0 {
        left -= 1;
        let next = if random.below(8) < lean {
            iter.next().map(|entry| front.push(entry.expect("a scan can be read")))
        } else {
            iter.next_back().map(|entry| back.push(entry.expect("a scan can be read")))
        };
        if next.is_none() {
            whole = true;
            break;
        }
    }
    let context = format!("{tree:?} {low:?}..{high:?} as of {}", model.sequence());
    for (position, (key, found)) in front.iter().enumerate() {
        assert_eq!(expected.get(position), Some(&(key.clone(), found.version)), "{context}, from the front");
    }
    for (position, (key, found)) in back.iter().enumerate() {
        let from_end = expected.len().checked_sub(position + 1).and_then(|index| expected.get(index));
        assert_eq!(from_end, Some(&(key.clone(), found.version)), "{context}, from the back");
    }
    for (key, found) in front.iter().chain(&back) {
        assert_eq!(
            Some(found),
            model.tree(tree).and_then(|tree| tree.get(key)),
            "{context}: value of {key:?}"
        );
    }
    if whole {
        assert_eq!(front.len() + back.len(), expected.len(), "{context}: number of entries");
        assert!(iter.next().is_none() && iter.next_back().is_none(), "{context}: an end stays one");
    }
}

/// All entries of a tree.
pub fn all(snapshot: &Snapshot, tree: TreeId) -> impl DoubleEndedIterator<Item = Entry> {
    snapshot.range(tree, Bound::Unbounded, Bound::Unbounded).map(|entry| entry.expect("a scan can be read"))
}

/// The trees as the engine lists them: those of its own only if they hold something.
fn shown_trees(model: &ModelState) -> Vec<(IVec, TreeId)> {
    let own = [(TreeId::COUNTERS, "__dogsled__counters"), (TreeId::LOCKS, "__dogsled__locks")];
    let mut shown: Vec<(IVec, TreeId)> = model.names().map(|(name, id)| (name.clone(), id)).collect();
    for (id, name) in own {
        if !model.is_empty(id) {
            shown.push((IVec::from(name), id));
        }
    }
    shown.sort();
    shown
}

fn assert_entries(found: &[Entry], expected: &ModelTree, context: &str) {
    let mut pairs = found.iter();
    for (key, value) in expected {
        match pairs.next() {
            Some((found_key, found_value)) => {
                assert_eq!((found_key, found_value), (key, value), "{context}");
            }
            None => panic!("{context}: {} of {} keys, {key:?} is missing", found.len(), expected.len()),
        }
    }
    assert_eq!(pairs.next(), None, "{context}: more than the model has");
}

fn slice(bound: &Bound<IVec>) -> Bound<&[u8]> {
    match bound {
        Bound::Included(key) => Bound::Included(key),
        Bound::Excluded(key) => Bound::Excluded(key),
        Bound::Unbounded => Bound::Unbounded,
    }
}
