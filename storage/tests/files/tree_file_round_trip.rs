//! redb on a sound disk: what is written is read, and opening costs what it should.

use std::path::Path;

use crate::support::*;
use dogsled_storage::disk::{Disk, OpenMode, Operation};
use dogsled_storage::tree_file::TreeFile;
use redb::StorageBackend;

#[test]
fn random_transactions_and_reopens_agree_with_a_model() {
    for seed in 0..8 {
        let mut random = Random(seed);
        let mut disk = new_disk(seed);
        let mut model = Model::new();
        let (mut database, _) = open(&disk).unwrap();
        for step in 0..60 {
            random_commit(&database, &mut model, &mut random).unwrap();
            if random.below(8) == 0 {
                if random.below(2) == 0 {
                    drop(database);
                } else {
                    disk = disk.process_kill();
                    drop(database);
                }
                database = open(&disk).unwrap().0;
            }
            if step % 5 == 0 {
                assert!(read_all(&database).unwrap() == model, "seed {seed}, step {step}");
            }
        }
        assert!(read_all(&database).unwrap() == model, "seed {seed}");
    }
}

#[test]
fn any_alignment_and_length_reads_back() {
    let disk = new_disk(1);
    let file = disk.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    let file = TreeFile::create(file, Path::new(PATH), DATABASE_ID).unwrap();
    // Three groups, so that ranges cross the checksum blocks between them.
    let length: u64 = 4096 * 2500;
    file.set_len(length).unwrap();
    let mut model = vec![0; length as usize];
    let mut random = Random(2);
    for step in 0..1500 {
        // Near the borders of groups more often than by chance.
        let place = match random.below(3) {
            0 => 4096 * 1025 - 6000 + random.below(12_000),
            1 => 4096 * 2049 - 6000 + random.below(12_000),
            _ => 4096 + random.below(length - 4096),
        };
        let wanted = 1 + random.below(20_000) as usize;
        let place = if random.below(3) == 0 { place / 4096 * 4096 } else { place };
        let end = length.min(place + wanted as u64) as usize;
        let range = place as usize..end;
        if random.below(2) == 0 {
            let bytes = random.bytes(range.len());
            file.write(place, &bytes).unwrap();
            model[range].copy_from_slice(&bytes);
        } else {
            let mut found = vec![1; range.len()];
            file.read(place, &mut found).unwrap();
            assert!(found == model[range], "step {step}: {} bytes at {place}", found.len());
        }
    }
    file.write(0, b"header").unwrap();
    model[..6].copy_from_slice(b"header");
    file.sync_data().unwrap();

    let reopened = disk.open(Path::new(PATH), OpenMode::Read).unwrap();
    let reopened = TreeFile::open_read_only(reopened, Path::new(PATH), DATABASE_ID).unwrap();
    assert_eq!(reopened.length(), length);
    let mut found = vec![1; length as usize];
    reopened.read(0, &mut found).unwrap();
    assert!(found == model);
    assert!(reopened.read(length - 10, &mut [0; 11]).is_err());
}

#[test]
fn what_grows_again_after_shrinking_is_zero() {
    let disk = new_disk(1);
    let file = disk.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    let file = TreeFile::create(file, Path::new(PATH), DATABASE_ID).unwrap();
    for (long, short) in [(4096 * 40, 4096 * 10), (4096 * 3000, 4096 * 100), (4096 * 1026, 4096 * 1025)] {
        file.set_len(long).unwrap();
        file.write(4096, &vec![7; long as usize - 4096]).unwrap();
        file.sync_data().unwrap();
        file.set_len(short).unwrap();
        assert!(file.read(short, &mut [0; 1]).is_err(), "beyond the end");
        file.set_len(long).unwrap();
        let mut found = vec![1; (long - short) as usize];
        file.read(short, &mut found).unwrap();
        assert!(found.iter().all(|byte| *byte == 0));
        let mut kept = vec![0; short as usize - 4096];
        file.read(4096, &mut kept).unwrap();
        assert!(kept.iter().all(|byte| *byte == 7));
    }
}

#[test]
fn opening_reads_one_block_for_a_thousand() {
    let disk = new_disk(3);
    let file = disk.open(Path::new(PATH), OpenMode::CreateNew).unwrap();
    let file = TreeFile::create(file, Path::new(PATH), DATABASE_ID).unwrap();
    file.set_len(4096 * 10_000).unwrap();
    file.write(0, &[1; 320]).unwrap();
    file.sync_data().unwrap();
    let before = disk.count(Operation::Read);
    let again = disk.open(Path::new(PATH), OpenMode::ReadWrite).unwrap();
    TreeFile::open(again, Path::new(PATH), DATABASE_ID).unwrap();
    assert_eq!(disk.count(Operation::Read) - before, 3 + 10);
}
