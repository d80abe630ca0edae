//! A database with a history that is known, on a simulated disk.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::{Command, Durability, Engine, IVec, Options, Reply, TreeId, Write};

use super::Random;

pub const DIRECTORY: &str = "db";

/// Name of the tree and key to value.
pub type State = BTreeMap<(Vec<u8>, Vec<u8>), Vec<u8>>;

<<<<<<< HEAD
/// A tree's name, a key, and the value it got (`None`: it was removed).
pub type Change = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);
=======
/// Tree, key, and its new value.
type Change = (Vec<u8>, Vec<u8>, Option<Vec<u8>>);
>>>>>>> treefile

/// What each commit changed.
#[derive(Clone, Default)]
pub struct History {
    /// By sequence from 1.
    commits: Vec<Vec<Change>>,
    pub names: BTreeMap<u32, Vec<u8>>,
}

impl History {
    pub fn last(&self) -> u64 {
        self.commits.len() as u64
    }

    /// The state after a commit.
    pub fn state_at(&self, sequence: u64) -> State {
        let mut state = State::new();
        for commit in &self.commits[..sequence as usize] {
            for (tree, key, value) in commit {
                match value {
                    Some(value) => state.insert((tree.clone(), key.clone()), value.clone()),
                    None => state.remove(&(tree.clone(), key.clone())),
                };
            }
        }
        state
    }

    /// Whether the key ever had this value.
    pub fn ever(&self, tree: &[u8], key: &[u8], value: &[u8]) -> bool {
        self.commits
            .iter()
            .flatten()
            .any(|(of, which, was)| of == tree && which == key && was.as_deref() == Some(value))
    }
}

pub fn options(disk: &SimulatedDisk) -> Options {
    options_in(disk, DIRECTORY)
}

pub fn options_in(disk: &SimulatedDisk, directory: &str) -> Options {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Options {
        disk,
        background_threads: false,
        flush_every_ms: None,
        segment_size: 32 << 10,
        cache_capacity: 8 << 20,
        database_id: Some(77),
        ..Options::new(directory)
    }
}

/// Random batches over three trees, sometimes clearing one, with a checkpoint after each of `checkpoints` batches.
pub fn build(disk: &SimulatedDisk, seed: u64, batches: u64, checkpoints: &[u64]) -> (Arc<Engine>, History) {
    build_with(options(disk), seed, batches, checkpoints)
}

pub fn build_with(options: Options, seed: u64, batches: u64, checkpoints: &[u64]) -> (Arc<Engine>, History) {
    let engine = Engine::open(options).unwrap();
    let mut random = Random(seed);
    let mut history = History::default();
    let mut trees: Vec<(Vec<u8>, TreeId)> = Vec::new();
    for name in ["apples", "pears"] {
        let reply = engine.execute(Command::CreateTree { name: name.into() }, Durability::Buffered).unwrap();
        let Reply::Tree { id, .. } = reply else { panic!("{reply:?}") };
        history.commits.push(Vec::new());
        trees.push((name.as_bytes().to_vec(), id));
    }
    trees.push((b"__sled__default".to_vec(), TreeId::DEFAULT));
    history.names = trees.iter().map(|(name, id)| (id.0, name.clone())).collect();
    let mut state = State::new();
    for batch in 0..batches {
        if random.below(25) == 0 {
            let (name, id) = trees[random.below(3) as usize].clone();
            let keys = state.keys().filter(|(tree, _)| *tree == name);
            let commit: Vec<_> = keys.map(|(tree, key)| (tree.clone(), key.clone(), None)).collect();
            let before = engine.sequence();
            engine.execute(Command::ClearTree { tree: id }, Durability::Synced).unwrap();
            if engine.sequence() > before {
                state.retain(|(tree, _), _| *tree != name);
                history.commits.push(commit);
            }
        }
        let mut writes = Vec::new();
        let mut commit = Vec::new();
        for _ in 0..1 + random.below(60) {
            let (name, id) = &trees[random.below(3) as usize];
            let key = format!("key {:05}", random.below(4000)).into_bytes();
            let value = (random.below(5) > 0).then(|| {
                let length = if random.below(200) == 0 { random.below(20_000) } else { random.below(100) };
                random.bytes(length as usize)
            });
            writes.push(Write {
                tree: *id,
                key: IVec::from(&key[..]),
                value: value.as_ref().map(|value| IVec::from(&value[..])),
            });
            commit.push((name.clone(), key, value));
        }
        let before = engine.sequence();
        engine.execute(Command::Batch { writes }, Durability::Synced).unwrap();
        // Removing what is not there is no commit.
        if engine.sequence() > before {
            for (tree, key, value) in &commit {
                match value {
                    Some(value) => state.insert((tree.clone(), key.clone()), value.clone()),
                    None => state.remove(&(tree.clone(), key.clone())),
                };
            }
            history.commits.push(commit);
        }
        if checkpoints.contains(&batch) {
            engine.checkpoint().unwrap();
        }
    }
    assert_eq!(engine.sequence(), history.last());
    (engine, history)
}

/// Everything in a database.
pub fn read(engine: &Engine) -> State {
    let snapshot = engine.snapshot();
    let mut state = State::new();
    for (name, id) in snapshot.trees() {
        for entry in snapshot.range(id, Bound::Unbounded, Bound::Unbounded) {
            let (key, found) = entry.unwrap();
            state.insert((name.to_vec(), key.to_vec()), found.value.to_vec());
        }
    }
    state
}

/// The files of the database directory.
pub fn files(disk: &SimulatedDisk) -> Vec<std::path::PathBuf> {
    disk.files()
        .into_iter()
        .filter(|path| path.starts_with(DIRECTORY) && path.file_name() != Path::new("LOCK").file_name())
        .collect()
}
