//! The rule of verifying: a directory verifies as sound exactly if it opens and holds everything. (One
//! exception is in [`check`].)
//!
//! Files go missing one by one and by runs of segments, and are cut short, in databases that ended in
//! all the ways there are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::database::*;
use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::{Engine, Error, Options, verify_directory};

/// A database in some condition, and what it holds.
struct Case {
    name: &'static str,
    disk: SimulatedDisk,
    state: State,
}

fn closed(name: &'static str, checkpoints: &[u64]) -> Case {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 5, 80, checkpoints);
    engine.close().unwrap();
    drop(engine);
    Case { name, disk: disk.duplicate(), state: history.state_at(history.last()) }
}

fn killed(name: &'static str, checkpoints: &[u64]) -> Case {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 7, 80, checkpoints);
    let killed = disk.process_kill();
    drop(engine);
    Case { name, disk: killed.duplicate(), state: history.state_at(history.last()) }
}

/// With the WAL's threads: a next segment stands ready.
fn with_threads() -> Case {
    let disk = SimulatedDisk::new(1);
    let threads = Options { background_threads: true, ..options(&disk) };
    let (engine, history) = build_with(threads, 9, 80, &[30]);
    engine.close().unwrap();
    drop(engine);
    Case { name: "with threads", disk: disk.duplicate(), state: history.state_at(history.last()) }
}

/// A checkpoint has begun to fold and was cut off; with `earlier` there was one before it.
fn folding(name: &'static str, earlier: bool) -> Case {
    let make = || {
        let disk = SimulatedDisk::new(1);
        let slices = Options { checkpoint_slice_keys: 300, ..options(&disk) };
        let checkpoints: &[u64] = if earlier { &[40] } else { &[] };
        let (engine, history) = build_with(slices, 11, 80, checkpoints);
        (disk, engine, history)
    };
    let (disk, engine, _) = make();
    let before = disk.changes();
    engine.checkpoint().unwrap();
    let changes = disk.changes() - before;
    drop(engine);
    for part in 4..16 {
        let (disk, engine, history) = make();
        disk.crash_at_change(disk.changes() + changes * part / 16);
        engine.checkpoint().unwrap_err();
        drop(engine);
        let disk = disk.process_kill().duplicate();
        // One that did not fall into the writing of a copy of the header, so that it is sound.
        let sound = verify_directory(&disk, Path::new(DIRECTORY)).unwrap().is_sound();
        let opened = Engine::open(options(&disk.duplicate())).unwrap();
        if sound && opened.stats().unwrap().checkpointed_sequence < history.last() {
            return Case { name, disk, state: history.state_at(history.last()) };
        }
    }
    panic!("no cut fell between the first slice and the last");
}

fn backup() -> Case {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 13, 80, &[40]);
    engine.backup(Path::new("copy")).unwrap();
    drop(engine);
    let copy = SimulatedDisk::new(1);
    for path in disk.files() {
        if let Ok(name) = path.strip_prefix("copy") {
            copy.set_content(&Path::new(DIRECTORY).join(name), disk.content(&path).unwrap());
        }
    }
    Case { name: "a backup", disk: copy, state: history.state_at(history.last()) }
}

fn cases() -> Vec<Case> {
    vec![
        closed("closed", &[20, 50]),
        closed("closed, never checkpointed", &[]),
        closed("closed, checkpointed at its end", &[79]),
        killed("killed", &[20, 50]),
        killed("killed, never checkpointed", &[]),
        with_threads(),
        folding("a second checkpoint cut off", true),
        folding("the first checkpoint cut off", false),
        backup(),
    ]
}

fn segments(disk: &SimulatedDisk) -> Vec<PathBuf> {
    files(disk).into_iter().filter(|path| path.extension().is_some_and(|end| end == "wal")).collect()
}

/// The WAL's directory itself, as `rm -r` takes it.
fn without_wal_directory(disk: &SimulatedDisk) -> SimulatedDisk {
    let without = SimulatedDisk::new(1);
    for path in files(disk).into_iter().filter(|path| !path.starts_with("db/wal")) {
        without.set_content(&path, disk.content(&path).unwrap());
    }
    without
}

/// Holds verifying against opening. Whether it was sound.
fn check(case: &Case, disk: &SimulatedDisk, what: &str) -> bool {
    let what = format!("{}: {what}", case.name);
    let verified = verify_directory(disk, Path::new(DIRECTORY));
    let copy = disk.duplicate();
    match (verified, Engine::open(options(&copy))) {
        (Ok(report), Ok(engine)) if report.is_sound() => {
            assert!(read(&engine) == case.state, "{what}: sound, and opens with other contents");
            true
        }
        (Ok(report), Err(error)) => {
            let Error::Corrupt(corruption) = &error else { panic!("{what}: {error:?}") };
            // The one exception: a file that was not closed and cut where no tree reaches. Which of the
            // blocks behind redb has allocated all the same, only redb knows, and it panics.
            let only_redb_knows = corruption.what.contains("redb cannot make sense");
            assert!(!report.is_sound() || only_redb_knows, "{what}: sound, and refused: {error}");
            assert!(!only_redb_knows || what.contains("tree.redb cut to"), "{what}: {error}");
            false
        }
        (Ok(report), Ok(_)) => {
            // Opening goes by one of the header's two copies, and reads leaves only when asked.
            let tree = |damage: &dogsled_storage::Damage| damage.file.ends_with("tree.redb");
            assert!(report.damage.iter().all(tree), "{what}: opens, but {:?}", report.damage);
            false
        }
        (Err(error), opened) => panic!("{what}: verify: {error}; open: {:?}", opened.err()),
    }
}

#[test]
fn a_directory_verifies_as_sound_exactly_if_it_opens() {
    for case in cases() {
        assert!(check(&case, &case.disk, "as it was"));
        let all = files(&case.disk);
        for path in &all {
            let name = path.display();
            let disk = case.disk.duplicate();
            disk.remove_content(path);
            let sound = check(&case, &disk, &format!("without {name}"));
            assert!(!sound || path.extension().is_some_and(|end| end == "spare" || end == "wal"), "{name}");
            let content = case.disk.content(path).unwrap();
            let length = content.len();
            for cut in [0, 1, 63, 64, 4095, 4096, 4097, 8192, 12288, length / 2, length - 4096.min(length)] {
                if cut >= length {
                    continue;
                }
                let disk = case.disk.duplicate();
                disk.set_content(path, content[..cut].to_vec());
                let sound = check(&case, &disk, &format!("{name} cut to {cut} bytes"));
                let is_spare = path.extension().is_some_and(|end| end == "spare");
                // The last block of a B-tree's file that was not closed may be one that no tree reaches.
                let is_unreached = path.ends_with("tree.redb") && cut + 4096 == length;
                assert!(
                    !sound || is_spare || is_unreached,
                    "{}: {name} cut to {cut} bytes is sound",
                    case.name
                );
            }
        }
        let segments = segments(&case.disk);
        for count in 1..=segments.len() {
            let (newest, oldest) = (case.disk.duplicate(), case.disk.duplicate());
            segments.iter().rev().take(count).for_each(|path| newest.remove_content(path));
            segments.iter().take(count).for_each(|path| oldest.remove_content(path));
            check(&case, &newest, &format!("without the newest {count} segments"));
            check(&case, &oldest, &format!("without the oldest {count} segments"));
        }
        assert!(!check(&case, &without_wal_directory(&case.disk), "without the WAL's directory"));
    }
}

/// What is acknowledged as durable does not vanish with the files that held it.
#[test]
fn the_newest_segments_of_the_wal_do_not_go_missing_unnoticed() {
    for case in cases() {
        let segments = segments(&case.disk);
        let is_used = |path: &&PathBuf| {
            // An opening frame lies at 4096, of the same epoch as the segment.
            let bytes = case.disk.content(path).unwrap();
            bytes[4096..4100] == *b"dWfr" && bytes[40..48] == bytes[4104..4112]
        };
        let prepared = segments.len() - segments.iter().filter(is_used).count();
        for count in prepared + 1..=segments.len() {
            let disk = case.disk.duplicate();
            segments.iter().rev().take(count).for_each(|path| disk.remove_content(path));
            match Engine::open(options(&disk)) {
                Err(Error::Corrupt(_)) => {}
                Err(error) => panic!("{}, {count} missing: {error}", case.name),
                Ok(engine) => panic!("{}, {count} missing: {} commits", case.name, engine.sequence()),
            }
        }
    }
}

/// The wrong database's segments, or the wrong database's tree, in the right place.
#[test]
fn files_of_another_database_are_damage_to_verify_and_refused_by_open() {
    let case = closed("closed", &[20, 50]);
    let other = SimulatedDisk::new(2);
    let shared: Arc<dyn Disk> = Arc::new(other.clone());
    let another = Options { database_id: Some(78), disk: shared, ..options(&case.disk) };
    drop(build_with(another, 5, 80, &[20, 50]).0);
    let mut taken = segments(&case.disk);
    taken.push(PathBuf::from("db/tree.redb"));
    for path in taken {
        let disk = case.disk.duplicate();
        disk.set_content(&path, other.content(&path).expect("the same workload"));
        let report = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
        assert!(!report.is_sound(), "{}", path.display());
        assert!(Engine::open(options(&disk)).is_err(), "{}", path.display());
    }
}

#[test]
fn a_database_in_use_is_not_verified_from_outside() {
    let disk = SimulatedDisk::new(1);
    let (engine, _) = build(&disk, 15, 20, &[10]);
    let refused = verify_directory(&disk, Path::new(DIRECTORY));
    assert!(matches!(refused, Err(Error::InUse(_))), "{refused:?}");
    assert!(engine.verify().unwrap().is_sound());
    drop(engine);
    assert!(verify_directory(&disk, Path::new(DIRECTORY)).unwrap().is_sound());
    // Nor is a lock file made, or left locked.
    disk.remove_content(Path::new("db/LOCK"));
    let files = disk.files();
    assert!(verify_directory(&disk, Path::new(DIRECTORY)).unwrap().is_sound());
    assert_eq!(disk.files(), files);
    drop(Engine::open(options(&disk)).unwrap());
}
