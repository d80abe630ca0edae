//! Single-bit flips of a small database's files: each is harmless, or is reported with file and
//! place when it is opened or read. Never wrong data, never a panic.
//!
//! CI flips every bit of MANIFEST and a sample of the others, most of them in bytes that hold
//! something; `DOGSLED_EXHAUSTIVE=1` flips every bit of every file.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, Durability, Engine, Error, Snapshot, TreeId};

use crate::support::workload::{Shape, Workload};
use crate::support::{
    DIRECTORY, Random, TestClock, for_each_seed, from_environment, in_directory, open_small,
};

/// Flips of each file other than MANIFEST in one run of a seed.
const SAMPLE: u64 = 3_000;

/// A database to damage, and what it held after each commit.
struct Sound {
    disk: SimulatedDisk,
    history: Vec<ModelState>,
}

/// Some commits in the B-tree, some in the WAL only, all of them synced.
fn make(seed: u64, close: bool) -> Sound {
    let disk = SimulatedDisk::new(seed);
    let engine = open_small(&disk, &TestClock::new(1_000)).expect("a new disk");
    let mut workload = Workload::new(seed, Shape::SMALL);
    let mut model = ModelState::new();
    let mut history = vec![model.clone()];
    for step in 0..110 {
        let command = if step % 3 == 0 {
            Command::Insert { tree: TreeId::DEFAULT, key: workload.key(), value: workload.value() }
        } else {
            workload.command(&model)
        };
        let expected = model.execute(1_000, &command);
        let durability = if step % 4 == 0 { Durability::Synced } else { Durability::Buffered };
        let found = engine.execute(command, durability);
        assert_eq!(expected.ok(), found.ok());
        if model.sequence() as usize == history.len() {
            history.push(model.clone());
        }
        if step == 40 || step == 80 {
            engine.checkpoint().expect("a sound disk");
        }
    }
    engine.sync().expect("a sound disk");
    if close {
        drop(engine);
        return Sound { disk, history };
    }
    // Killed: no orderly end is in the WAL.
    let killed = disk.process_kill();
    drop(engine);
    Sound { disk: killed.duplicate(), history }
}

impl Sound {
    fn newest(&self) -> &ModelState {
        self.history.last().expect("it begins with the empty state")
    }

    /// Opens it with one bit flipped and reads everything in every way.
    fn try_flip(&self, path: &Path, offset: u64, bit: u8, lost: u64) -> Harm {
        let disk = self.disk.duplicate();
        disk.flip_bit(path, offset, bit);
        let engine = match open_small(&disk, &TestClock::new(2_000)) {
            Ok(engine) => engine,
            Err(error) => return reported(&error),
        };
        let sequence = engine.sequence();
        let newest = self.newest().sequence();
        assert!(sequence <= newest && sequence + lost >= newest, "{sequence} of {newest} commits are there");
        let model = &self.history[sequence as usize];
        let mut harm = match read_everything(&engine, &engine.snapshot(), model) {
            Ok(()) => Harm::None,
            Err(error) => reported(&error),
        };
        // And it goes on: what it writes over the damage is sound, or it stops with a report.
        if offset.is_multiple_of(8) {
            let insert = Command::Insert { tree: TreeId::DEFAULT, key: "new".into(), value: "new".into() };
            let result = engine.execute(insert.clone(), Durability::Synced).and_then(|_| engine.checkpoint());
            match result {
                Err(error) => harm = harm.max(reported(&error)),
                Ok(()) => {
                    drop(engine);
                    let mut model = model.clone();
                    model.execute(2_000, &insert).expect("an insert");
                    let engine = match open_small(&disk, &TestClock::new(2_000)) {
                        Ok(engine) => engine,
                        Err(error) => return reported(&error),
                    };
                    assert_eq!(engine.sequence(), model.sequence(), "after a checkpoint");
                    if let Err(error) = read_everything(&engine, &engine.snapshot(), &model) {
                        harm = harm.max(reported(&error));
                    }
                }
            }
        }
        harm
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Harm {
    None,
    Reported,
}

/// Panics unless the error says which file of ours is damaged.
fn reported(error: &Error) -> Harm {
    match error {
        Error::Corrupt(corruption) => {
            let ours = corruption.file.starts_with(DIRECTORY);
            assert!(ours && !corruption.what.is_empty(), "no place: {error}");
        }
        Error::NotADatabase { path, .. } => assert!(path.starts_with(DIRECTORY), "no place: {error}"),
        // After damage was met the checkpoint's failure is told again, with its place.
        Error::Poisoned(why) => assert!(why.contains(DIRECTORY), "no place: {error}"),
        other => panic!("not a report of damage: {other:?}"),
    }
    Harm::Reported
}

/// Whatever can be read is right; an error ends that reading only.
fn read_everything(engine: &Engine, snapshot: &Snapshot, model: &ModelState) -> Result<(), Error> {
    let mut first_error = None;
    let mut note = |error: Error| {
        reported(&error);
        first_error.get_or_insert(error);
    };
    assert_eq!(
        snapshot.trees().into_iter().filter(|(_, id)| !id.is_system()).collect::<Vec<_>>(),
        model.names().map(|(name, id)| (name.clone(), id)).collect::<Vec<_>>()
    );
    let own = [TreeId::COUNTERS, TreeId::LOCKS];
    for id in model.names().map(|(_, id)| id).chain(own) {
        let tree = model.tree(id).expect("a tree of the model");
        assert_eq!(snapshot.len(id).expect("a length"), tree.len() as u64);
        for (key, expected) in tree {
            match engine.get(id, key) {
                Ok(found) => assert_eq!(found.as_ref(), Some(&expected.value), "{id:?} {key:?}"),
                Err(error) => note(error),
            }
        }
        for absent in [&b"nowhere"[..], b"zzz"] {
            match engine.get(id, absent) {
                Ok(found) => assert_eq!(found, None),
                Err(error) => note(error),
            }
        }
        let all = || snapshot.range(id, std::ops::Bound::Unbounded, std::ops::Bound::Unbounded);
        let mut expected = tree.iter();
        let mut whole = true;
        for entry in all() {
            match entry {
                Ok((key, found)) => assert_eq!(Some((&key, &found)), expected.next(), "forward {id:?}"),
                Err(error) => {
                    note(error);
                    whole = false;
                }
            }
        }
        assert!(!whole || expected.next().is_none(), "a scan of {id:?} ends early");
        let mut expected = tree.iter().rev();
        let mut whole = true;
        for entry in all().rev() {
            match entry {
                Ok((key, found)) => assert_eq!(Some((&key, &found)), expected.next(), "backward {id:?}"),
                Err(error) => {
                    note(error);
                    whole = false;
                }
            }
        }
        assert!(!whole || expected.next().is_none(), "a backward scan of {id:?} ends early");
    }
    first_error.map_or(Ok(()), Err)
}

/// The bits of a file to flip.
fn bits(content: &[u8], all: bool, random: &mut Random) -> Vec<(u64, u8)> {
    if all || content.len() < 100 {
        return (0..content.len() as u64 * 8).map(|bit| (bit / 8, (bit % 8) as u8)).collect();
    }
    let used: Vec<u64> = (0..content.len() as u64).filter(|offset| content[*offset as usize] != 0).collect();
    (0..SAMPLE)
        .map(|number| {
            let offset = match number % 4 {
                _ if used.is_empty() => random.below(content.len() as u64),
                0 => random.below(content.len() as u64),
                // The beginning of a block: headers.
                1 => random.pick(&used) / 4096 * 4096 + random.below(64),
                _ => *random.pick(&used),
            };
            (offset.min(content.len() as u64 - 1), random.below(8) as u8)
        })
        .collect()
}

/// Flips bits of one file on all cores; how many were reported, how many were harmless.
fn flip_file(sound: &Sound, path: &Path, flips: &[(u64, u8)], lost: u64) -> (u64, u64) {
    let (next, harmful) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some((offset, bit)) = flips.get(next.fetch_add(1, Ordering::Relaxed) as usize) {
                    let tried = catch_unwind(AssertUnwindSafe(|| sound.try_flip(path, *offset, *bit, lost)));
                    match tried {
                        Ok(Harm::Reported) => {
                            harmful.fetch_add(1, Ordering::Relaxed);
                        }
                        Ok(Harm::None) => {}
                        Err(_) => panic!("bit {bit} of byte {offset} of {} was flipped", path.display()),
                    }
                }
            });
        }
    });
    let harmful = harmful.into_inner();
    (harmful, flips.len() as u64 - harmful)
}

fn flip_files(seed: u64, sound: &Sound, lost: u64, which: impl Fn(&Path) -> bool) {
    let exhaustive = from_environment("DOGSLED_EXHAUSTIVE").is_some_and(|on| on != 0);
    let mut random = Random::new(seed);
    let undamaged = open_small(&sound.disk.duplicate(), &TestClock::new(2_000)).expect("it is sound");
    assert_eq!(undamaged.sequence(), sound.newest().sequence());
    read_everything(&undamaged, &undamaged.snapshot(), sound.newest()).expect("it is sound");
    drop(undamaged);
    let paths: Vec<PathBuf> = sound.disk.files().into_iter().filter(|path| which(path)).collect();
    assert!(!paths.is_empty());
    for path in paths {
        let content = sound.disk.content(&path).expect("a file");
        let flips = bits(&content, exhaustive, &mut random);
        let (harmful, harmless) = flip_file(sound, &path, &flips, lost);
        println!(
            "{}: {} bytes, {harmful} flips reported, {harmless} harmless",
            path.display(),
            content.len()
        );
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name == "MANIFEST" {
            assert_eq!(harmless, 0, "every byte of MANIFEST counts");
        }
        if name == "tree.redb" {
            assert!(harmful > flips.len() as u64 / 50, "hardly a flip was seen: is anything read?");
        }
    }
}

#[test]
fn no_flipped_bit_of_a_closed_databases_wal_is_returned_as_data() {
    for_each_seed("engine", "flips::no_flipped_bit_of_a_closed_databases_wal", 1, |seed| {
        let sound = Arc::new(make(seed, true));
        flip_files(seed, &sound, 0, |path| path.starts_with(in_directory("wal")));
    });
}

#[test]
fn no_flipped_bit_of_a_killed_databases_wal_is_returned_as_data() {
    for_each_seed("engine", "flips::no_flipped_bit_of_a_killed_databases_wal", 1, |seed| {
        // The last group may pass for torn: the module of the WAL says so. It holds up to four
        // commits here.
        flip_files(seed, &make(seed, false), 4, |path| path.starts_with(in_directory("wal")));
    });
}

#[test]
fn no_flipped_bit_of_the_b_tree_is_returned_as_data() {
    for_each_seed("engine", "flips::no_flipped_bit_of_the_b_tree", 1, |seed| {
        let sound = make(seed, seed % 2 == 1);
        flip_files(seed, &sound, 4, |path| path.ends_with("tree.redb"));
    });
}

#[test]
fn every_flipped_bit_of_the_manifest_is_reported() {
    for_each_seed("engine", "flips::every_flipped_bit_of_the_manifest", 1, |seed| {
        let sound = make(seed, true);
        flip_files(seed, &sound, 0, |path| path.ends_with("MANIFEST"));
    });
}

/// Whether it is a segment of the WAL that is in use or prepared.
fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "wal")
}

#[test]
fn each_missing_file_of_a_database_with_its_threads_running_is_reported() {
    let disk = SimulatedDisk::new(1);
    let mut options = crate::support::small_options(&disk, &TestClock::new(1_000));
    options.background_threads = true;
    let engine = Engine::open(options).expect("a new disk");
    for number in 0..200u64 {
        let (key, value) = (number.to_be_bytes().to_vec().into(), vec![7; 900].into());
        let insert = Command::Insert { tree: TreeId::DEFAULT, key, value };
        engine.execute(insert, Durability::Synced).expect("a sound disk");
    }
    let segments = || disk.files().into_iter().filter(|path| is_segment(path)).collect::<Vec<_>>();
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let is_prepared = || {
        let newest = segments().pop().expect("a segment");
        // An opening frame lies at 4096.
        disk.content(&newest).is_some_and(|bytes| bytes.get(4096..4100) == Some(&[0; 4]))
    };
    while !is_prepared() {
        assert!(std::time::Instant::now() < deadline, "no segment is prepared");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    drop(engine);
    let mut all = segments();
    assert!(all.len() > 3, "{all:?}");
    all.pop();
    all.extend([in_directory("MANIFEST"), in_directory("tree.redb")]);
    for path in all {
        let disk = disk.duplicate();
        disk.remove_content(&path);
        match open_small(&disk, &TestClock::new(2_000)) {
            Ok(engine) => {
                panic!("{} is missing, and {} commits are there", path.display(), engine.sequence())
            }
            Err(error) => assert_eq!(reported(&error), Harm::Reported),
        }
    }
}

/// Whole blocks that went wrong, and files that are gone.
#[test]
fn zeroed_swapped_and_missing_parts_are_reported_or_harmless() {
    for_each_seed("engine", "flips::zeroed_swapped_and_missing_parts", 2, |seed| {
        let sound = make(seed, true);
        let mut random = Random::new(seed);
        let newest = sound.newest();
        let check = |disk: &SimulatedDisk, what: &str| {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let engine = match open_small(disk, &TestClock::new(2_000)) {
                    Ok(engine) => engine,
                    Err(error) => return reported(&error),
                };
                assert_eq!(engine.sequence(), newest.sequence(), "commits are missing");
                match read_everything(&engine, &engine.snapshot(), newest) {
                    Ok(()) => Harm::None,
                    Err(error) => reported(&error),
                }
            }));
            outcome.unwrap_or_else(|_| panic!("seed {seed}: {what}"))
        };
        let newest_segment = sound.disk.files().into_iter().rfind(|path| is_segment(path));
        let is_newest_segment = |path: &PathBuf| Some(path) == newest_segment.as_ref();
        for path in sound.disk.files() {
            let content = sound.disk.content(&path).expect("a file");
            let blocks = content.len() as u64 / 4096;
            for _ in 0..if blocks > 0 { 120 } else { 0 } {
                let disk = sound.disk.duplicate();
                let mut damaged = content.clone();
                let (one, other) = (random.below(blocks), random.below(blocks));
                let range = |block: u64| block as usize * 4096..(block as usize + 1) * 4096;
                let what = match random.below(3) {
                    0 => {
                        damaged[range(one)].fill(0);
                        format!("block {one} of {} was zeroed", path.display())
                    }
                    1 => {
                        damaged.copy_within(range(one), other as usize * 4096);
                        format!("block {one} of {} was written to {other}", path.display())
                    }
                    _ => {
                        damaged.truncate(random.below(content.len() as u64) as usize);
                        format!("{} was cut to {} bytes", path.display(), damaged.len())
                    }
                };
                disk.set_content(&path, damaged);
                check(&disk, &what);
            }
            if !path.ends_with("LOCK") {
                let disk = sound.disk.duplicate();
                disk.remove_content(&path);
                let what = format!("{} is missing", path.display());
                let harm = check(&disk, &what);
                if path.ends_with("MANIFEST") || path.ends_with("tree.redb") || is_newest_segment(&path) {
                    assert_eq!(harm, Harm::Reported, "seed {seed}: {what}");
                }
            }
        }
    });
}
