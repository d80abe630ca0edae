//! What the commands on trees mean, compared with maps that a reader can check at a glance.

use std::collections::BTreeMap;

use crate::commands_support::{Logged, Random};
use dogsled_storage::command::{KeyRead, RangeFingerprint, RangeRead};
use dogsled_storage::{Command, Error, IVec, Reply, TreeId, Write};

/// Trees as maps to value and version; everything is written in the plainest way.
#[derive(Default)]
struct Expected {
    trees: BTreeMap<TreeId, BTreeMap<IVec, (IVec, u64)>>,
    names: BTreeMap<IVec, TreeId>,
    trees_made: u32,
    ids_given: u64,
    commits: u64,
}

impl Expected {
    fn execute(&mut self, command: &Command) -> Result<Reply, &'static str> {
        const NO_TREE: &str = "no tree";
        let next = self.commits + 1;
        let mut has_changed = true;
        let reply = match command.clone() {
            Command::CreateTree { name } => match self.names.get(&name) {
                Some(&id) => {
                    has_changed = false;
                    Reply::Tree { id, created: false }
                }
                None => {
                    let id = TreeId(TreeId::FIRST_USER.0 + self.trees_made);
                    self.trees_made += 1;
                    self.names.insert(name, id);
                    self.trees.insert(id, BTreeMap::new());
                    Reply::Tree { id, created: true }
                }
            },
            Command::DropTree { name } => match self.names.get(&name) {
                Some(&TreeId::DEFAULT) => return Err("the default tree"),
                Some(id) => {
                    self.trees.remove(id);
                    self.names.remove(&name);
                    Reply::Dropped(true)
                }
                None => {
                    has_changed = false;
                    Reply::Dropped(false)
                }
            },
            Command::ClearTree { tree } => {
                let tree = self.trees.get_mut(&tree).ok_or(NO_TREE)?;
                has_changed = !tree.is_empty();
                tree.clear();
                Reply::Done
            }
            Command::Insert { tree, key, value } => {
                let tree = self.trees.get_mut(&tree).ok_or(NO_TREE)?;
                Reply::Previous(tree.insert(key, (value, next)).map(|old| old.0))
            }
            Command::Put { tree, key, value } => {
                self.trees.get_mut(&tree).ok_or(NO_TREE)?.insert(key, (value, next));
                Reply::Done
            }
            Command::Remove { tree, key } => {
                let old = self.trees.get_mut(&tree).ok_or(NO_TREE)?.remove(&key);
                has_changed = old.is_some();
                Reply::Previous(old.map(|old| old.0))
            }
            Command::CompareAndSwap { tree, key, old, new } => {
                let tree = self.trees.get_mut(&tree).ok_or(NO_TREE)?;
                let found = tree.get(&key).map(|found| found.0.clone());
                if found == old {
                    has_changed = found.is_some() || new.is_some();
                    match new {
                        Some(new) => tree.insert(key, (new, next)),
                        None => tree.remove(&key),
                    };
                    Reply::Swapped(Ok(()))
                } else {
                    has_changed = false;
                    Reply::Swapped(Err(found))
                }
            }
            Command::Batch { writes } => {
                has_changed = self.write(writes).ok_or(NO_TREE)?;
                Reply::Done
            }
            Command::Pop { tree, last } => {
                let tree = self.trees.get_mut(&tree).ok_or(NO_TREE)?;
                let popped = if last { tree.pop_last() } else { tree.pop_first() };
                has_changed = popped.is_some();
                Reply::Popped(popped.map(|(key, (value, _))| (key, value)))
            }
            Command::Transact { reads, ranges, writes, expiries: _ } => {
                let mut is_current = true;
                for read in reads {
                    let tree = self.trees.get(&read.tree).ok_or(NO_TREE)?;
                    is_current &= tree.get(&read.key).map_or(0, |found| found.1) == read.version;
                    if !is_current {
                        return Ok(Reply::Conflict);
                    }
                }
                for range in ranges {
                    let tree = self.trees.get(&range.tree).ok_or(NO_TREE)?;
                    is_current &= read_range(range.tree, tree, &range.low, range.high.as_ref()) == range;
                    if !is_current {
                        return Ok(Reply::Conflict);
                    }
                }
                has_changed = self.write(writes).ok_or(NO_TREE)?;
                Reply::Done
            }
            Command::ReserveIds { count } => {
                let first = self.ids_given;
                self.ids_given += count;
                Reply::Ids { first }
            }
            Command::Counter(_)
            | Command::Lock(_)
            | Command::Compare { .. }
            | Command::CountMany { .. }
            | Command::Expiry(_)
            | Command::SettleDue { .. }
            | Command::Owned(_)
            | Command::SetQuota { .. }
            | Command::Strings { .. } => unreachable!("not here"),
        };
        self.commits += u64::from(has_changed);
        Ok(reply)
    }

    /// All or nothing; `None`: a tree is missing. Otherwise, whether anything changed.
    fn write(&mut self, writes: Vec<Write>) -> Option<bool> {
        if writes.iter().any(|write| !self.trees.contains_key(&write.tree)) {
            return None;
        }
        // A key that is put and removed again by one batch was never there, and one that was
        // there and is put again has changed.
        let last: BTreeMap<_, _> =
            writes.into_iter().map(|write| ((write.tree, write.key), write.value)).collect();
        let mut has_changed = false;
        for ((tree, key), value) in last {
            let tree = self.trees.get_mut(&tree).expect("looked for above");
            has_changed |= match value {
                Some(value) => {
                    tree.insert(key, (value, self.commits + 1));
                    true
                }
                None => tree.remove(&key).is_some(),
            };
        }
        Some(has_changed)
    }
}

fn read_range(id: TreeId, tree: &BTreeMap<IVec, (IVec, u64)>, low: &IVec, high: Option<&IVec>) -> RangeRead {
    let mut fingerprint = RangeFingerprint::default();
    let mut count = 0;
    for (key, (_, version)) in tree {
        if key >= low && high.is_none_or(|high| key < high) {
            count += 1;
            fingerprint.add(*version);
        }
    }
    RangeRead { tree: id, low: low.clone(), high: high.cloned(), count, fingerprint: fingerprint.finish() }
}

fn key(random: &mut Random) -> IVec {
    IVec::from([b'a' + random.below(6) as u8])
}

fn value(random: &mut Random) -> IVec {
    IVec::from([b'0' + random.below(3) as u8].repeat(1 + 40 * random.below(2) as usize))
}

fn command(random: &mut Random, expected: &Expected) -> Command {
    let tree = match random.below(8) {
        0..=4 => TreeId::DEFAULT,
        _ => TreeId(TreeId::FIRST_USER.0 + random.below(u64::from(expected.trees_made) + 1) as u32),
    };
    let name = ["ann", "ben", "__sled__default"][random.below(3) as usize].into();
    let maybe = |random: &mut Random| if random.coin() { Some(value(random)) } else { None };
    let writes = |random: &mut Random| -> Vec<Write> {
        let tree_of = |random: &mut Random| if random.coin() { tree } else { TreeId::DEFAULT };
        (0..random.below(6))
            .map(|_| Write { tree: tree_of(random), key: key(random), value: maybe(random) })
            .collect()
    };
    match random.below(20) {
        0 => Command::CreateTree { name },
        1 if random.coin() => Command::DropTree { name },
        2 if random.coin() => Command::ClearTree { tree },
        3..=6 => Command::Insert { tree, key: key(random), value: value(random) },
        7 | 8 => Command::Remove { tree, key: key(random) },
        9 | 10 => {
            let key = key(random);
            let there =
                expected.trees.get(&tree).and_then(|tree| tree.get(&key)).map(|found| found.0.clone());
            let old = if random.coin() { there } else { maybe(random) };
            Command::CompareAndSwap { tree, key, old, new: maybe(random) }
        }
        11 | 12 => Command::Batch { writes: writes(random) },
        13 => Command::Pop { tree, last: random.coin() },
        14..=17 => {
            // Reads as they are now, and now and then as they never were.
            let empty = BTreeMap::new();
            let now = expected.trees.get(&tree).unwrap_or(&empty);
            let reads = (0..random.below(3)).map(|_| {
                let key = key(random);
                let version = now.get(&key).map_or(0, |found| found.1);
                let version = if random.below(8) == 0 { random.below(expected.commits + 1) } else { version };
                KeyRead { tree, key, version }
            });
            let reads = reads.collect();
            let ranges = (0..random.below(2)).map(|_| {
                let (low, high) = (key(random), key(random));
                let mut range = read_range(tree, now, &low, Some(&high).filter(|_| low < high));
                range.count += u64::from(random.below(8) == 0);
                range.fingerprint ^= u64::from(random.below(8) == 0);
                range
            });
            let ranges = ranges.collect();
            Command::Transact { reads, ranges, writes: writes(random), expiries: Vec::new() }
        }
        _ => Command::ReserveIds { count: random.below(5) },
    }
}

#[test]
fn random_commands_agree_with_plain_maps() {
    let (mut conflicts, mut commits) = (0, 0);
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut logged = Logged::default();
        let mut expected = Expected::default();
        expected.trees.insert(TreeId::DEFAULT, BTreeMap::new());
        expected.names.insert("__sled__default".into(), TreeId::DEFAULT);
        for step in 0..200 {
            let command = command(&mut random, &expected);
            let whence = format!("seed {seed}, step {step}, {command:?}");
            match (logged.execute(&command), expected.execute(&command)) {
                (Ok(reply), Ok(expected)) => {
                    assert_eq!(reply, expected, "{whence}");
                    match reply {
                        Reply::Conflict => conflicts += 1,
                        _ => commits += u32::from(matches!(command, Command::Transact { .. })),
                    }
                }
                (Err(Error::TreeNotFound(_)), Err("no tree")) => {}
                (Err(Error::InvalidRequest(_)), Err("the default tree")) => {}
                (found, expected) => panic!("{found:?} instead of {expected:?}: {whence}"),
            }
            assert_eq!(logged.state.sequence(), expected.commits, "{whence}");
        }
        for (id, tree) in &expected.trees {
            let found = logged.state.tree(*id).unwrap_or_else(|| panic!("seed {seed}: no {id:?}"));
            let found: Vec<_> = found.iter().map(|(key, entry)| (key, &entry.value, entry.version)).collect();
            let tree: Vec<_> = tree.iter().map(|(key, (value, version))| (key, value, *version)).collect();
            assert_eq!(found, tree, "seed {seed}, {id:?}");
        }
        let names: Vec<_> = logged.state.names().map(|(name, id)| (name.clone(), id)).collect();
        assert_eq!(names, expected.names.into_iter().collect::<Vec<_>>(), "seed {seed}");
        logged.reopen();
    }
    // The generator must reach both ends of a transaction.
    assert!(conflicts > 500 && commits > 500, "{conflicts} conflicts, {commits} commits");
}

#[test]
fn what_is_over_a_limit_is_refused_with_both_numbers() {
    let mut logged = Logged::default();
    let tree = TreeId::DEFAULT;
    let long_key = IVec::from(vec![0; (64 << 10) + 1]);
    let long_name = IVec::from(vec![0; (4 << 10) + 1]);
    let put = Write { tree, key: long_key.clone(), value: None };
    for (command, expected) in [
        (Command::Insert { tree, key: long_key.clone(), value: "".into() }, "a key of 65537 bytes"),
        (Command::Remove { tree, key: long_key.clone() }, "a key of 65537 bytes"),
        (Command::Batch { writes: vec![put] }, "a key of 65537 bytes"),
        (Command::CreateTree { name: long_name }, "the name of a tree of 4097 bytes"),
    ] {
        let error = logged.execute(&command).unwrap_err();
        assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
        assert!(error.to_string().contains(expected), "{error}");
        assert!(error.to_string().contains("over the limit of"), "{error}");
        assert_eq!(logged.state.sequence(), 0);
    }
    let longest = Command::Insert { tree, key: vec![0; 64 << 10].into(), value: "".into() };
    logged.execute(&longest).unwrap();
}
