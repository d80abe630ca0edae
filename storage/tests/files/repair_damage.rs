//! Damage anywhere: verifying tells it, repairing saves the rest and says exactly what was lost.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::Random;
use crate::support::database::*;
use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::replica::{Replica, ReplicaOptions};
use dogsled_storage::wal::{Wal, WalOptions};
use dogsled_storage::{
    Engine, Error, KeyRange, LossKind, Options, RepairOptions, RepairReport, repair, repair_with,
    verify_directory,
};

const TARGET: &str = "repaired";

/// A closed database with checkpointed keys and commits behind the checkpoint.
pub(crate) fn closed_database() -> (SimulatedDisk, History) {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 5, 150, &[40, 80, 110]);
    engine.close().unwrap();
    drop(engine);
    (disk.duplicate(), history)
}

pub(crate) fn segments(disk: &SimulatedDisk) -> Vec<PathBuf> {
    files(disk).into_iter().filter(|path| path.extension().is_some_and(|end| end == "wal")).collect()
}

fn run_repair(
    disk: &SimulatedDisk,
    target: &str,
    options: RepairOptions,
) -> dogsled_storage::Result<RepairReport> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    repair_with(&disk, Path::new(DIRECTORY), Path::new(target), options, &mut |_| ())
}

/// Repairs and holds the result against the history. The report.
pub(crate) fn check_repair(disk: &SimulatedDisk, history: &History, what: &str) -> RepairReport {
    let before: Vec<(PathBuf, Option<Vec<u8>>)> =
        files(disk).into_iter().map(|path| (path.clone(), disk.content(&path))).collect();
    let report =
        run_repair(disk, TARGET, RepairOptions::default()).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (path, content) in before {
        assert!(disk.content(&path) == content, "{what}: {} was changed", path.display());
    }
    let engine = Engine::open(options_in(disk, TARGET)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let verified = engine.verify().unwrap();
    assert!(verified.is_sound(), "{what}: {:?}", verified.damage);
    let tell = || report.losses.iter().map(|loss| format!("\n  {loss}")).collect::<String>();

    let lost_commits = report
        .losses
        .iter()
        .any(|loss| matches!(loss.kind, LossKind::Commits | LossKind::CommitsBehindGap | LossKind::Tail));
    let without_end = report.notes.iter().any(|note| note.contains("orderly shutdown"));
    assert!(
        report.last_commit == history.last() || lost_commits || without_end,
        "{what}: ends at {} of {} and does not say so:{}",
        report.last_commit,
        history.last(),
        tell()
    );
    let expected = history.state_at(report.last_commit);
    // Trees whose names were lost have their numbers in the new ones.
    let original = |name: &[u8]| {
        let number = name.strip_prefix(b"recovered-t").map(|digits| std::str::from_utf8(digits).unwrap());
        match number {
            Some(number) => history.names[&u32::from_str_radix(number, 16).unwrap()].clone(),
            None => name.to_vec(),
        }
    };
    let lost = |tree: &[u8], key: &[u8]| {
        report.losses.iter().find(|loss| {
            loss.damage.keys.as_ref().is_some_and(|keys| {
                keys.tree.as_ref().is_none_or(|name| original(name) == tree)
                    && KeyRange { tree: None, ..keys.clone() }.contains(tree, key)
            })
        })
    };
    let mut found = read(&engine);
    found = found.into_iter().map(|((tree, key), value)| ((original(&tree), key), value)).collect();
    for ((tree, key), value) in &expected {
        match found.get(&(tree.clone(), key.clone())) {
            Some(same) if same == value => {}
            other => assert!(
                lost(tree, key).is_some(),
                "{what}: {} of {} is {} without a word:{}",
                key.escape_ascii(),
                tree.escape_ascii(),
                if other.is_some() { "wrong" } else { "missing" },
                tell()
            ),
        }
    }
    for ((tree, key), value) in &found {
        assert!(history.ever(tree, key, value), "{what}: a value that never was:{}", tell());
        if expected.get(&(tree.clone(), key.clone())) == Some(value) {
            continue;
        }
        let loss = lost(tree, key);
        assert!(
            loss.is_some_and(|loss| loss.kind == LossKind::Outdated),
            "{what}: {} of {} is not what it was, but {loss:?}",
            key.escape_ascii(),
            tree.escape_ascii()
        );
    }
    // It goes on, with numbers that were never used.
    assert!(engine.sequence() >= report.last_commit);
    report
}

#[test]
fn a_sound_database_verifies_and_is_saved_whole() {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 5, 150, &[40, 80, 110]);
    let live = engine.verify().unwrap();
    assert!(live.is_sound(), "{:?}", live.damage);
    assert_eq!(live.trees, 3);
    assert!(live.wal_commits >= 39 && live.tree_blocks > 50, "{live:?}");
    drop(engine);
    let disk = disk.duplicate();
    let closed = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
    assert!(closed.is_sound(), "{:?}", closed.damage);
    assert_eq!(closed.keys, live.keys);

    let report = check_repair(&disk, &history, "sound");
    assert!(report.is_complete() && report.notes.is_empty(), "{report:?}");
    assert_eq!(report.last_commit, history.last());
    assert_eq!(report.keys, history.state_at(history.last()).len() as u64);
}

#[test]
fn random_damage_is_told_and_the_rest_is_saved() {
    let (sound, history) = closed_database();
    let whole = history.state_at(history.last());
    let (mut partly, mut complete) = (0, 0);
    for seed in 0..200 {
        let mut random = Random(seed);
        let disk = sound.duplicate();
        let mut what = format!("seed {seed}:");
        for _ in 0..1 + random.below(3) {
            let files = files(&disk);
            // Most of it in the B-tree, which is the largest and has the most to lose.
            let path = if random.below(2) == 0 {
                PathBuf::from("db/tree.redb")
            } else {
                files[random.below(files.len() as u64) as usize].clone()
            };
            let Some(mut bytes) = disk.content(&path) else { continue };
            let place = random.below(bytes.len() as u64) as usize;
            let block = place / 4096 * 4096..(place / 4096 * 4096 + 4096).min(bytes.len());
            let how = match random.below(20) {
                0 => {
                    disk.remove_content(&path);
                    what += &format!(" {} removed;", path.display());
                    continue;
                }
                1 => {
                    bytes.truncate(place);
                    "cut"
                }
                2..6 => {
                    bytes[block].fill(0);
                    "block zeroed"
                }
                6..9 => {
                    bytes[block].iter_mut().for_each(|byte| *byte = random.next() as u8);
                    "block overwritten"
                }
                _ => {
                    bytes[place] ^= 1 << random.below(8);
                    "bit flipped"
                }
            };
            what += &format!(" {} {how} at {place};", path.display());
            disk.set_content(&path, bytes);
        }
        let verified = match verify_directory(&disk, Path::new(DIRECTORY)) {
            Ok(verified) => verified,
            // All files but ones that say nothing are gone.
            Err(Error::NotADatabase { .. }) => continue,
            Err(error) => panic!("{what}: {error}"),
        };
        if verified.is_sound() && verified.notes.is_empty() {
            // Then it must be as good as it says.
            let copy = disk.duplicate();
            let engine = Engine::open(options(&copy)).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(read(&engine) == whole, "{what}: verified, and wrong");
        }
        let report = check_repair(&disk, &history, &what);
        if report.is_complete() {
            complete += 1;
        } else {
            partly += 1;
        }
    }
    assert!(partly > 30 && complete > 30, "{partly} partly saved, {complete} wholly");
}

#[test]
fn every_block_of_the_tree_is_verified_or_holds_nothing() {
    let (sound, history) = closed_database();
    let tree = Path::new("db/tree.redb");
    let bytes = sound.content(tree).unwrap();
    let mut reported = 0;
    for block in 0..bytes.len() / 4096 {
        for at in [0, 3, 64, 2000] {
            let disk = sound.duplicate();
            disk.flip_bit(tree, (block * 4096 + at) as u64, 2);
            let verified = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
            let what = format!("byte {at} of block {block}");
            if verified.is_sound() {
                let engine = Engine::open(options(&disk)).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(read(&engine) == history.state_at(history.last()), "{what}");
            } else {
                reported += 1;
                assert!(
                    verified.damage.iter().all(|damage| damage.file == tree && damage.offset.is_some()),
                    "{what}: {:?}",
                    verified.damage
                );
            }
        }
    }
    assert!(reported > 100, "{reported}");
}

#[test]
fn all_damage_is_told_and_not_only_the_first() {
    let disk = SimulatedDisk::new(1);
    let (engine, _) = build(&disk, 5, 150, &[149]);
    let tree = Path::new("db/tree.redb");
    let length = disk.content(tree).unwrap().len() as u64;
    for block in 4..length / 4096 {
        disk.flip_bit(tree, block * 4096 + 700, 1);
    }
    // Live: the writer goes on, and nothing that is cached hides it.
    let live = engine.verify().unwrap();
    assert!(!live.is_sound());
    // The roots are damaged, so little is reached: count where the leaves alone are.
    let disk = SimulatedDisk::new(1);
    let (engine, _) = build(&disk, 5, 150, &[149]);
    let sound = engine.verify().unwrap().tree_blocks;
    let bytes = disk.content(tree).unwrap();
    let mut damaged = 0;
    for block in 4..bytes.len() / 4096 {
        let page = &bytes[block * 4096..block * 4096 + 4096];
        if page[0] == 1
            && page[1..4].iter().any(|byte| *byte != 0)
            && page.windows(4).any(|bytes| bytes == b"key ")
        {
            disk.flip_bit(tree, block as u64 * 4096 + 300, 1);
            damaged += 1;
        }
    }
    let live = engine.verify().unwrap();
    assert!(live.damage.len() > 20, "{} of {sound} blocks, {damaged} flipped", live.damage.len());
    let without_keys: Vec<_> =
        live.damage.iter().filter(|damage| damage.keys.is_none() && !damage.what.contains("sound")).collect();
    assert!(without_keys.is_empty(), "{without_keys:?}");
}

#[test]
fn commits_behind_a_gap_are_applied_only_if_asked() {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 9, 120, &[20]);
    engine.close().unwrap();
    drop(engine);
    let disk = disk.duplicate();
    let segments = segments(&disk);
    assert!(segments.len() > 4, "{segments:?}");
    let middle = &segments[segments.len() / 2];
    disk.remove_content(middle);

    let error = Engine::open(options(&disk)).unwrap_err();
    assert!(matches!(&error, Error::Corrupt(_)), "{error}");
    let report = check_repair(&disk, &history, "without a segment");
    let gap = report.losses.iter().find(|loss| loss.kind == LossKind::Commits).expect("lost commits");
    let behind = report.losses.iter().find(|loss| loss.kind == LossKind::CommitsBehindGap).expect("the rest");
    let (first, last) = gap.commits.unwrap();
    assert_eq!(report.last_commit, first - 1);
    assert_eq!(behind.commits, Some((last + 1, history.last())));

    // Numbers that the commits behind the gap had are not given again.
    let engine = Engine::open(options_in(&disk, TARGET)).unwrap();
    assert!(engine.sequence() >= history.last());
    drop(engine);

    let mut options = RepairOptions::default();
    options.apply_behind_gaps = true;
    let report = run_repair(&disk, "elsewhere", options).unwrap();
    assert_eq!(report.last_commit, history.last());
    assert!(report.losses.iter().all(|loss| loss.kind == LossKind::Commits), "{:?}", report.losses);
    let engine = Engine::open(options_in(&disk, "elsewhere")).unwrap();
    assert!(engine.verify().unwrap().is_sound());
}

/// Where the B-tree ended is not known without it; that the log did not begin where its first
/// segment does now, is.
#[test]
fn commits_behind_a_missing_first_segment_are_applied_only_if_asked() {
    for checkpoints in [&[][..], &[20]] {
        let disk = SimulatedDisk::new(1);
        let (engine, history) = build(&disk, 9, 120, checkpoints);
        engine.close().unwrap();
        drop(engine);
        let disk = disk.duplicate();
        let segments = segments(&disk);
        assert!(segments.len() > 4, "{segments:?}");
        disk.remove_content(&segments[0]);
        disk.remove_content(Path::new("db/tree.redb"));
        let what = format!("{checkpoints:?}, without the tree and the first segment");
        let report = check_repair(&disk, &history, &what);
        let gap = report.losses.iter().find(|loss| loss.kind == LossKind::Commits).expect("lost commits");
        let (first, last) = gap.commits.expect("they are named");
        assert_eq!(gap.damage.file, segments[0], "{gap}");
        if checkpoints.is_empty() {
            assert_eq!(first, 1);
        }
        let behind =
            report.losses.iter().find(|loss| loss.kind == LossKind::CommitsBehindGap).expect("the rest");
        assert_eq!(behind.commits, Some((last + 1, history.last())));
        assert_eq!(report.commits_applied, 0, "{report:?}");
        assert_eq!(report.keys, 0, "{report:?}");

        let mut options = RepairOptions::default();
        options.apply_behind_gaps = true;
        let report = run_repair(&disk, "elsewhere", options).unwrap();
        assert_eq!(report.last_commit, history.last());
        assert_eq!(report.commits_applied, history.last() - last);
    }
}

#[test]
fn commits_in_missing_newest_segments_are_a_loss() {
    let (sound, history) = closed_database();
    let segments = segments(&sound);
    for count in 1..segments.len() {
        let disk = sound.duplicate();
        segments.iter().rev().take(count).for_each(|path| disk.remove_content(path));
        let what = format!("without the newest {count} segments");
        let report = check_repair(&disk, &history, &what);
        assert!(!report.is_complete(), "{what}: {report:?}");
    }
}

/// Contents that are nothing of ours, in the place of the B-tree's file.
#[test]
fn a_tree_file_that_is_empty_or_overwritten_is_damage_and_the_log_is_saved() {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 9, 60, &[]);
    engine.close().unwrap();
    drop(engine);
    let sound = disk.duplicate();
    let tree = Path::new("db/tree.redb");
    let length = sound.content(tree).unwrap().len();
    let mut without_first_block = sound.content(tree).unwrap();
    without_first_block[..4096].fill(0);
    let contents = [
        ("empty", Vec::new()),
        ("short", vec![7; 20]),
        ("zeros", vec![0; length]),
        ("text", b"not a database\n".repeat(length / 15)),
        ("without its first block", without_first_block),
    ];
    for (what, bytes) in contents {
        for manifest in [true, false] {
            let disk = sound.duplicate();
            disk.set_content(tree, bytes.clone());
            if manifest {
                let error = Engine::open(options(&disk)).unwrap_err();
                let Error::Corrupt(corruption) = &error else { panic!("{what}: {error:?}") };
                assert_eq!(corruption.file, tree, "{what}");
                assert!(error.to_string().contains("dogsled repair"), "{what}: {error}");
            } else {
                disk.remove_content(Path::new("db/MANIFEST"));
            }
            let verified = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
            assert!(verified.damage.iter().any(|damage| damage.file == tree), "{what}: {verified:?}");
            let report = check_repair(&disk, &history, what);
            assert_eq!(report.last_commit, history.last(), "{what}");
            let engine = Engine::open(options_in(&disk, TARGET)).unwrap();
            assert!(read(&engine) == history.state_at(history.last()), "{what}");
        }
    }
    // Without anything of ours beside it, it is somebody else's.
    let disk = SimulatedDisk::new(1);
    disk.set_content(tree, b"not a database\n".repeat(1000));
    let error = verify_directory(&disk, Path::new(DIRECTORY)).unwrap_err();
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");
    let error = run_repair(&disk, TARGET, RepairOptions::default()).unwrap_err();
    assert!(matches!(error, Error::NotADatabase { .. }), "{error}");
}

#[test]
fn a_damaged_leaf_costs_its_own_keys_only() {
    let (sound, history) = closed_database();
    let tree = Path::new("db/tree.redb");
    let blocks = sound.content(tree).unwrap().len() / 4096;
    let whole = history.state_at(history.last());
    let (mut leaves, mut branches) = (0, 0);
    for block in 4..blocks {
        let disk = sound.duplicate();
        disk.flip_bit(tree, block as u64 * 4096 + 100, 1);
        let report = check_repair(&disk, &history, &format!("block {block}"));
        let ranges: Vec<_> = report.losses.iter().filter_map(|loss| loss.damage.keys.as_ref()).collect();
        let covered =
            whole.keys().filter(|(tree, key)| ranges.iter().any(|range| range.contains(tree, key))).count();
        match covered {
            0 => {}
            1..150 => leaves += 1,
            _ => branches += 1,
        }
    }
    assert!(leaves > 10, "{leaves} leaves");
    assert!(branches < 8, "{branches} blocks cost more than a leaf's keys");
}

/// Between two checkpoints redb's previous commit has the same trees with other branch pages.
#[test]
fn a_lost_branch_page_is_made_up_for_by_the_commit_before() {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 5, 150, &[80, 100, 110]);
    let sound = disk.duplicate();
    let id = engine.database_id();
    drop(engine);
    // Whoever is refused takes nothing of it.
    let shared: Arc<dyn Disk> = Arc::new(sound.clone());
    let before = sound.content(Path::new("db/tree.redb"));
    let wal = WalOptions { threads: false, ..WalOptions::new("other", id) };
    let wal = Arc::new(Wal::open(Arc::clone(&shared), wal).unwrap());
    let as_replica =
        ReplicaOptions { disk: shared, background_threads: false, ..ReplicaOptions::new(DIRECTORY, id) };
    Replica::open(as_replica, wal).map(drop).expect_err("it is no replica");
    let after = sound.content(Path::new("db/tree.redb")).unwrap();
    assert_eq!(after.len(), before.unwrap().len());
    let tree = Path::new("db/tree.redb");
    let blocks = sound.content(tree).unwrap().len() / 4096;
    let whole = history.state_at(history.last());
    let mut made_up = 0;
    for block in 4..blocks {
        let disk = sound.duplicate();
        disk.flip_bit(tree, block as u64 * 4096 + 2, 1);
        let report = check_repair(&disk, &history, &format!("block {block}"));
        for loss in &report.losses {
            let Some(keys) = &loss.damage.keys else { continue };
            if loss.kind == LossKind::Outdated && keys.above.is_none() && keys.up_to.is_none() {
                made_up += 1;
                assert!(report.keys > whole.len() as u64 * 9 / 10, "{report:?}");
            }
        }
    }
    assert!(made_up > 0, "no tree's root was made up for");
}

#[test]
fn a_wal_that_ends_before_the_tree_does_is_not_put_over_it() {
    let disk = SimulatedDisk::new(1);
    let kept = Options { retain_changes_bytes: 1 << 30, ..options(&disk) };
    let (engine, history) = build_with(kept, 9, 120, &[119]);
    engine.close().unwrap();
    drop(engine);
    let disk = disk.duplicate();
    let mut segments = segments(&disk);
    assert!(segments.len() > 6, "{segments:?}");
    for segment in segments.split_off(4) {
        disk.remove_content(&segment);
    }
    let report = check_repair(&disk, &history, "without the newer segments");
    assert_eq!(report.last_commit, history.last());
    assert_eq!(report.commits_applied, 0);
}

#[test]
fn without_its_tree_what_the_wal_holds_is_saved() {
    let disk = SimulatedDisk::new(1);
    let (engine, history) = build(&disk, 9, 60, &[]);
    engine.close().unwrap();
    drop(engine);
    let disk = disk.duplicate();
    disk.remove_content(Path::new("db/tree.redb"));
    disk.remove_content(Path::new("db/MANIFEST"));
    let report = check_repair(&disk, &history, "without tree and manifest");
    assert_eq!(report.last_commit, history.last());
    let engine = Engine::open(options_in(&disk, TARGET)).unwrap();
    assert!(read(&engine) == history.state_at(history.last()));
}

#[test]
fn source_and_target_are_guarded() {
    let (disk, _) = closed_database();
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let directory = Path::new(DIRECTORY);
    let same = repair(&shared, directory, directory, &mut |_| ()).unwrap_err();
    assert!(matches!(same, Error::InvalidRequest(_)), "{same}");
    let engine = Engine::open(options(&disk)).unwrap();
    let in_use = repair(&shared, directory, Path::new(TARGET), &mut |_| ()).unwrap_err();
    assert!(matches!(in_use, Error::InUse(_)), "{in_use}");
    drop(engine);
    repair(&shared, directory, Path::new(TARGET), &mut |_| ()).unwrap();
    let again = repair(&shared, directory, Path::new(TARGET), &mut |_| ()).unwrap_err();
    assert!(matches!(again, Error::Io { .. }), "{again}");
    let nothing = repair(&shared, Path::new("nowhere"), Path::new("other"), &mut |_| ()).unwrap_err();
    assert!(matches!(nothing, Error::NotADatabase { .. }), "{nothing}");
    assert!(!shared.exists(Path::new("other")).unwrap(), "a failed repair leaves nothing behind");
}
