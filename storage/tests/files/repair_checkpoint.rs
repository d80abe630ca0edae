//! Verifying and repairing around checkpoints: under way, cut off, and beside writers.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::support::Random;
use crate::support::database::*;
use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::{
    Command, Durability, Engine, IVec, Options, Reply, TreeId, Write, repair, verify_directory,
};

/// So many keys that a checkpoint takes several transactions of redb; every key holds the number of
/// the round that wrote it.
fn write_round(engine: &Engine, round: u8) {
    for batch in 0..80_u32 {
        let writes = (0..500)
            .map(|number| Write {
                tree: TreeId::DEFAULT,
                key: IVec::from(&(batch * 500 + number).to_be_bytes()[..]),
                value: Some(IVec::from(&[round; 8][..])),
            })
            .collect();
        engine.execute(Command::Batch { writes }, Durability::Buffered).unwrap();
    }
    engine.sync().unwrap();
}

/// Two rounds of writes, with a checkpoint between them if there is to be an `earlier` one.
fn two_rounds(disk: &SimulatedDisk, earlier: bool) -> Arc<Engine> {
    let options = Options { cache_capacity: 256 << 20, segment_size: 1 << 20, ..options(disk) };
    let engine = Engine::open(options).unwrap();
    write_round(&engine, 1);
    if earlier {
        engine.checkpoint().unwrap();
    }
    write_round(&engine, 2);
    engine
}

fn cut_off_between_transactions(earlier: bool) {
    let disk = SimulatedDisk::new(1);
    let engine = two_rounds(&disk, earlier);
    let before = disk.changes();
    engine.checkpoint().unwrap();
    let changes = disk.changes() - before;
    drop(engine);
    assert!(changes > 100, "{changes}");

    let mut between = 0;
    for part in 1..8 {
        let disk = SimulatedDisk::new(1);
        let engine = two_rounds(&disk, earlier);
        let last = engine.sequence();
        disk.crash_at_change(disk.changes() + changes * part / 8);
        engine.checkpoint().unwrap_err();
        drop(engine);
        let disk = disk.power_cut(part);
        let verified = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
        // A cut may tear the copy of the header that was being written: opening takes the other one.
        let torn_header = |what: &str| what.contains("a copy of the B-tree's header");
        assert!(
            verified.damage.iter().all(|damage| torn_header(&damage.what)),
            "part {part}: {:?}",
            verified.damage
        );

        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let report = repair(&shared, Path::new(DIRECTORY), Path::new("repaired"), &mut |_| ()).unwrap();
        assert!(report.is_complete(), "part {part}: {:?}", report.losses);
        assert_eq!(report.last_commit, last, "part {part}");
        between += u32::from(report.commits_applied > 0);
        let engine = Engine::open(options_in(&disk, "repaired")).unwrap();
        assert!(engine.verify().unwrap().is_sound());
        let state = read(&engine);
        assert_eq!(state.len(), 40_000);
        assert!(state.values().all(|value| value == &[2; 8]), "part {part}: a key of the first round");
        let first_id = |engine: &Engine| match engine
            .execute(Command::ReserveIds { count: 1 }, Durability::Buffered)
            .unwrap()
        {
            Reply::Ids { first } => first,
            other => panic!("{other:?}"),
        };
        let id = first_id(&engine);
        drop(engine);
        // The source itself recovers the same.
        let engine = Engine::open(options(&disk)).unwrap();
        assert!(engine.verify().unwrap().is_sound());
        assert!(read(&engine) == state, "part {part}");
        assert_eq!(first_id(&engine), id, "part {part}: ids go on elsewhere");
    }
    assert!(between > 3, "{between} cuts were before the end of the checkpoint");
}

#[test]
fn a_checkpoint_cut_off_between_its_transactions_is_repaired_whole() {
    cut_off_between_transactions(true);
}

/// Its first transaction makes the table of the checkpoint record, which has no record yet.
#[test]
fn the_very_first_checkpoint_cut_off_between_its_transactions_is_repaired_whole() {
    cut_off_between_transactions(false);
}

/// The B-tree holds slices of commits that the log has lost.
#[test]
fn commits_that_a_checkpoint_had_begun_to_fold_and_the_log_lost_are_named() {
    let disk = SimulatedDisk::new(1);
    let engine = two_rounds(&disk, true);
    let before = disk.changes();
    engine.checkpoint().unwrap();
    let changes = disk.changes() - before;
    drop(engine);
    let disk = SimulatedDisk::new(1);
    let engine = two_rounds(&disk, true);
    let last = engine.sequence();
    disk.crash_at_change(disk.changes() + changes / 2);
    engine.checkpoint().unwrap_err();
    drop(engine);
    let disk = disk.power_cut(1);
    let mut segments = files(&disk);
    segments.retain(|path| path.extension().is_some_and(|end| end == "wal"));
    for path in segments.iter().rev().take(2) {
        disk.remove_content(path);
    }
    let verified = verify_directory(&disk, Path::new(DIRECTORY)).unwrap();
    assert!(!verified.is_sound());
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let report = repair(&shared, Path::new(DIRECTORY), Path::new("repaired"), &mut |_| ()).unwrap();
    let lost = report.losses.iter().find_map(|loss| loss.commits);
    assert_eq!(lost, Some((report.last_commit + 1, last)), "{:?}", report.losses);
    let engine = Engine::open(options_in(&disk, "repaired")).unwrap();
    assert!(engine.sequence() >= last, "a number is given twice");
}

#[test]
fn verifying_beside_writers_and_checkpoints_finds_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let engine = Engine::open(Options {
        cache_capacity: 8 << 20,
        segment_size: 1 << 20,
        ..Options::new(directory.path().join("db"))
    })
    .unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (engine, stop) = (&engine, &stop);
            scope.spawn(move || {
                let mut random = Random(thread);
                while !stop.load(Ordering::Relaxed) {
                    let writes = (0..200)
                        .map(|_| Write {
                            tree: TreeId::DEFAULT,
                            key: IVec::from(&random.below(50_000).to_be_bytes()[..]),
                            value: (random.below(4) > 0).then(|| IVec::from(&[7; 100][..])),
                        })
                        .collect();
                    engine.execute(Command::Batch { writes }, Durability::Buffered).unwrap();
                }
            });
        }
        let checkpointing = (&engine, &stop);
        scope.spawn(move || {
            while !checkpointing.1.load(Ordering::Relaxed) {
                checkpointing.0.checkpoint().unwrap();
            }
        });
        for _ in 0..60 {
            let report = engine.verify();
            let sound = report.as_ref().is_ok_and(|report| report.is_sound());
            if !sound {
                stop.store(true, Ordering::Relaxed);
            }
            assert!(sound, "{report:?}");
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(engine.stats().unwrap().checkpoints > 0, "no checkpoint ran beside it");
}
