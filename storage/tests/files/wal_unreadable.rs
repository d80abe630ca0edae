//! Blocks of the WAL that the disk cannot read: opening names the place, verifying tells it among the damage, and
//! repairing saves the rest. None of them ends the process, as touching such a page of a map would.

use std::path::{Path, PathBuf};

use crate::repair_damage::{check_repair, closed_database, segments};
use crate::support::database::*;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::{Engine, LossKind, verify_directory};

const BLOCK: u64 = 4096;

/// Every block of every segment.
fn blocks(disk: &SimulatedDisk) -> Vec<(PathBuf, u64)> {
    let of = |path: PathBuf| {
        let length = disk.content(&path).unwrap().len() as u64;
        (0..length).step_by(BLOCK as usize).map(move |offset| (path.clone(), offset))
    };
    segments(disk).into_iter().flat_map(of).collect()
}

#[test]
fn opening_names_the_place() {
    let (sound, _) = closed_database();
    for (path, offset) in blocks(&sound) {
        let disk = sound.duplicate();
        disk.make_unreadable(&path, offset..offset + 1);
        let error = Engine::open(options(&disk)).unwrap_err();
        let expected = format!("reading {} at {offset}", path.display());
        assert!(error.to_string().contains(&expected), "{expected}: {error}");
    }
}

#[test]
fn verifying_tells_the_place_and_repairing_saves_the_rest() {
    let (sound, history) = closed_database();
    for (path, offset) in blocks(&sound) {
        let disk = sound.duplicate();
        disk.make_unreadable(&path, offset..offset + 1);
        let what = format!("{} at {offset}", path.display());
        let verified = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
        let named = verified.damage.iter().any(|damage| {
            damage.file == path && damage.offset == Some(offset) && damage.what.contains("cannot be read")
        });
        assert!(named, "{what}: {:?}", verified.damage);
        let report = check_repair(&disk, &history, &what);
        let told = report.losses.iter().map(ToString::to_string).chain(report.notes.clone());
        assert!(told.into_iter().any(|told| told.contains("cannot be read")), "{what}: {report:?}");
    }
}

#[test]
fn what_lies_before_and_behind_an_unreadable_place_is_saved() {
    let (sound, history) = closed_database();
    let log = segments(&sound);
    let path = &log[log.len() / 2];
    sound.make_unreadable(path, 2 * BLOCK..4 * BLOCK);
    let report = check_repair(&sound, &history, "two blocks");
    let lost: Vec<LossKind> = report.losses.iter().map(|loss| loss.kind).collect();
    assert_eq!(lost, [LossKind::Commits, LossKind::CommitsBehindGap], "{report:?}");
    let (first, last) = report.losses[0].commits.unwrap();
    assert_eq!(report.last_commit, first - 1);
    assert_eq!(report.losses[1].commits, Some((last + 1, history.last())));
}

#[test]
fn the_history_of_changes_ends_with_an_error_there() {
    let disk = SimulatedDisk::new(1);
    let (engine, _) = build(&disk, 5, 150, &[]);
    let path = &segments(&disk)[1];
    disk.make_unreadable(path, 2 * BLOCK..3 * BLOCK);
    let found: Vec<_> = engine.changes_since(0).unwrap().take(1_000).collect();
    let error = found.iter().find_map(|commit| commit.as_ref().err()).expect("not all can be read");
    assert!(error.to_string().contains(&format!("reading {} at ", path.display())), "{error}");
}
