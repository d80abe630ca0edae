//! Power cuts at every write and sync: what was committed is there, and nothing reads as damage.

use crate::support::*;
use dogsled_storage::disk::{Fault, Operation};
use dogsled_storage::tree_file::TreeFile;

/// Commits until the disk fails; returns the states that may be found afterwards: the last one
/// acknowledged, and the one that was being committed.
fn run(disk: &dogsled_storage::disk::SimulatedDisk, seed: u64, commits: usize) -> (Model, Model) {
    let mut random = Random(seed);
    let mut model = Model::new();
    let Ok((mut database, _)) = open(disk) else {
        return (Model::new(), Model::new());
    };
    for number in 0..commits {
        let mut tried = model.clone();
        // The same choices again on a database in memory tell what the commit would have made.
        random_commit(&in_memory(), &mut tried, &mut Random(random.0)).unwrap();
        if random_commit(&database, &mut model, &mut random).is_err() {
            return (model, tried);
        }
        if number % 4 == 3 {
            drop(database);
            database = match open(disk) {
                Ok((database, _)) => database,
                Err(_) => return (model.clone(), model),
            };
        }
    }
    (model.clone(), model)
}

#[test]
fn a_power_cut_at_every_change_loses_nothing_committed() {
    const COMMITS: usize = 6;
    let changes = {
        let disk = new_disk(1);
        run(&disk, 21, COMMITS);
        disk.changes()
    };
    assert!(changes > 100, "{changes} changes");
    let mut kept_unacknowledged = 0;
    for change in 0..changes {
        for seed in 0..3 {
            let disk = new_disk(1);
            disk.crash_at_change(change);
            let (acknowledged, tried) = run(&disk, 21, COMMITS);
            let disk = disk.power_cut(change * 3 + seed);
            let what = format!("cut at change {change}, seed {seed}");
            let (database, _) = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            let found = read_all(&database).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert!(found == acknowledged || found == tried, "{what}: neither state");
            kept_unacknowledged += u32::from(found != acknowledged);

            // And it goes on from there, over another cut.
            let mut model = found;
            random_commit(&database, &mut model, &mut Random(change)).unwrap();
            let disk = disk.power_cut(seed);
            drop(database);
            let (database, _) = open(&disk).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            assert!(read_all(&database).unwrap() == model, "{what}, again");
        }
    }
    assert!(kept_unacknowledged > 0, "no cut ever kept a commit under way: is the disk that lossy?");
}

/// A process dies in the middle of a commit, and the power fails while the next one opens: what was
/// only in the page cache must not be all there is of the header.
#[test]
fn a_power_cut_while_reopening_after_a_kill_loses_nothing() {
    const COMMITS: usize = 2;
    let changes = {
        let disk = new_disk(1);
        run(&disk, 22, COMMITS);
        disk.changes()
    };
    for change in 0..changes {
        for later in 0..6 {
            let disk = new_disk(1);
            disk.crash_at_change(change);
            let (acknowledged, tried) = run(&disk, 22, COMMITS);
            let killed = disk.process_kill();
            killed.crash_at_change(killed.changes() + later);
            drop(open(&killed));
            let what = format!("killed at change {change}, cut {later} changes later");
            for seed in 0..4 {
                let after = killed.power_cut(seed);
                let (database, _) = open(&after).unwrap_or_else(|error| panic!("{what}: {error}"));
                let found = read_all(&database).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(found == acknowledged || found == tried, "{what}: neither state");
            }
        }
    }
}

#[test]
fn after_a_failed_sync_nothing_more_is_written() {
    let disk = new_disk(4);
    let mut model = Model::new();
    let (database, file) = open(&disk).unwrap();
    random_commit(&database, &mut model, &mut Random(1)).unwrap();
    disk.inject(Fault { operation: Some(Operation::Sync), after: 0, from_then_on: false });
    let error = random_commit(&database, &mut model.clone(), &mut Random(2)).unwrap_err();
    let error = file.map_error("committing", error);
    assert!(matches!(error, dogsled_storage::Error::Io { .. }), "{error}");
    let changes = disk.changes();
    assert!(random_commit(&database, &mut model.clone(), &mut Random(3)).is_err());
    drop(database);
    assert!(redb::StorageBackend::write(&file, 4096, &[1; 4096]).is_err());
    assert!(redb::StorageBackend::sync_data(&file).is_err());
    assert_eq!(disk.changes(), changes, "nothing reaches a disk in doubt");
    let disk = disk.power_cut(9);
    let (database, _) = open(&disk).unwrap();
    assert!(read_all(&database).unwrap() == model);
}

#[test]
fn any_failing_call_is_an_error_and_loses_nothing() {
    for call in 0..200 {
        let disk = new_disk(6);
        let mut model = Model::new();
        let (database, _) = open(&disk).unwrap();
        random_commit(&database, &mut model, &mut Random(3)).unwrap();
        let mut next = model.clone();
        random_commit(&in_memory(), &mut next, &mut Random(4)).unwrap();

        disk.inject(Fault { operation: None, after: call, from_then_on: false });
        let result = random_commit(&database, &mut model.clone(), &mut Random(4));
        drop(database);
        disk.clear_faults();
        let (database, _) = open(&disk).unwrap_or_else(|error| panic!("call {call}: {error}"));
        let found = read_all(&database).unwrap();
        // A commit whose last sync failed may be there all the same.
        assert!(found == next || (found == model && result.is_err()), "call {call}: {result:?}");
    }
}

/// What a failed sync should have written stays readable until the machine goes down, and no later sync
/// writes it. A program that reopens the file on the same machine must not build on it.
#[test]
fn a_file_reopened_after_a_failed_sync_survives_a_power_cut() {
    for failing in 0..6 {
        for later in 0..40 {
            let disk = new_disk(7);
            let mut model = Model::new();
            let (database, _) = open(&disk).unwrap();
            let mut random = Random(5);
            for _ in 0..3 {
                random_commit(&database, &mut model, &mut random).unwrap();
            }
            drop(database);
            // What is tried twice begins as it does the second time: with a file just opened.
            let (database, _) = open(&disk).unwrap();
            disk.inject(Fault { operation: Some(Operation::Sync), after: failing, from_then_on: false });
            while disk.pending_faults() > 0 {
                let before = Random(random.0);
                if random_commit(&database, &mut model, &mut random).is_err() {
                    // It is tried again, and writes the same bytes to the same places.
                    random = before;
                    break;
                }
            }
            drop(database);
            disk.clear_faults();

            let what = format!("sync {failing} failed, cut {later} changes later");
            let (database, _) = open(&disk).unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut acknowledged = read_all(&database).unwrap();
            disk.crash_at_change(disk.changes() + later);
            let tried = loop {
                let mut tried = acknowledged.clone();
                random_commit(&in_memory(), &mut tried, &mut Random(random.0)).unwrap();
                if random_commit(&database, &mut acknowledged, &mut random).is_err() {
                    break tried;
                }
            };
            for seed in 0..4 {
                let after = disk.power_cut(seed);
                let (database, _) = open(&after).unwrap_or_else(|error| panic!("{what}: {error}"));
                let found = read_all(&database).unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(found == acknowledged || found == tried, "{what}: neither state");
            }
        }
    }
}

/// The same of the header alone: once the newer one has been read, only that one or a later one may be
/// found again, for pages that only the older one reaches may be overwritten from then on.
#[test]
fn a_header_that_was_read_after_a_failed_sync_is_never_taken_back() {
    use dogsled_storage::disk::{Disk, OpenMode};
    use redb::StorageBackend;

    let path = std::path::Path::new(PATH);
    let file = |disk: &dogsled_storage::disk::SimulatedDisk| disk.open(path, OpenMode::ReadWrite).unwrap();
    for seed in 0..64 {
        let disk = new_disk(8);
        let tree =
            TreeFile::create(disk.open(path, OpenMode::CreateNew).unwrap(), path, DATABASE_ID).unwrap();
        tree.set_len(8 * 4096).unwrap();
        disk.sync_directory(std::path::Path::new("db")).unwrap();
        for version in [1; 3] {
            tree.write(0, &[version; 64]).unwrap();
            tree.sync_data().unwrap();
        }
        disk.inject(Fault { operation: Some(Operation::Sync), after: 0, from_then_on: false });
        tree.write(0, &[2; 64]).unwrap();
        tree.sync_data().unwrap_err();
        drop(tree);

        let tree = TreeFile::open(file(&disk), path, DATABASE_ID).unwrap();
        let mut read = [0; 64];
        tree.read(0, &mut read).unwrap();
        assert_eq!(read, [2; 64], "it is in the page cache");
        disk.crash_at_change(disk.changes() + 2);
        tree.write(0, &[3; 64]).unwrap();
        tree.sync_data().unwrap_err();
        let after = disk.power_cut(seed);
        let tree = TreeFile::open(file(&after), path, DATABASE_ID)
            .unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        tree.read(0, &mut read).unwrap();
        assert!(read == [2; 64] || read == [3; 64], "seed {seed}: header {} is back", read[0]);
    }
}
