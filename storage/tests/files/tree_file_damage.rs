//! Damage is reported with its place, or does no harm; it is never returned as data.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use crate::support::*;
use dogsled_storage::Error;
use dogsled_storage::disk::{Disk, OpenMode, SimulatedDisk};
use dogsled_storage::tree_file::{TreeFile, damage_in, map_redb_error, open_redb_and_file};
use redb::StorageBackend;

/// A small database, cleanly closed, and what it holds.
fn small_database() -> (Vec<u8>, Model) {
    let disk = new_disk(1);
    let mut model = Model::new();
    let mut random = Random(11);
    let (database, _) = open(&disk).unwrap();
    for _ in 0..12 {
        random_commit(&database, &mut model, &mut random).unwrap();
    }
    drop(database);
    let bytes = disk.content(Path::new(PATH)).unwrap();
    (bytes, model)
}

fn disk_with(bytes: Vec<u8>) -> SimulatedDisk {
    let disk = SimulatedDisk::new(0);
    disk.set_content(Path::new(PATH), bytes);
    disk
}

/// Opens and reads everything. The data, or the error.
fn try_read(bytes: Vec<u8>) -> dogsled_storage::Result<Model> {
    let disk = disk_with(bytes);
    let (database, file) = open(&disk)?;
    read_all(&database).map_err(|error| file.map_error("reading", error))
}

/// The one rule of this file.
fn check(what: &str, bytes: Vec<u8>, model: &Model) -> bool {
    match catch_unwind(AssertUnwindSafe(|| try_read(bytes))) {
        Err(_) => panic!("{what}: panicked"),
        Ok(Ok(found)) => {
            assert!(found == *model, "{what}: wrong data");
            true
        }
        Ok(Err(Error::Corrupt(corruption))) => {
            assert_eq!(corruption.file, Path::new(PATH), "{what}");
            assert!(corruption.offset.is_some(), "{what}: no place in {corruption}");
            false
        }
        Ok(Err(error)) => panic!("{what}: {error}"),
    }
}

/// The checksum must catch each flip, wherever in the block.
#[test]
fn every_flipped_bit_of_a_data_block_is_caught_by_its_read() {
    let (bytes, _) = small_database();
    let disk = disk_with(bytes.clone());
    let file = disk.open(Path::new(PATH), OpenMode::ReadWrite).unwrap();
    let tree = TreeFile::open(file.clone(), Path::new(PATH), DATABASE_ID).unwrap();
    let blocks = tree.length() / 4096 - 1;
    assert!(blocks > 10, "{blocks} blocks are too few to mean anything");
    let mut found = [0; 4096];
    // Every bit of every fifth block: the others differ in nothing that matters here.
    for data in (0..blocks).step_by(5) {
        let place = (4 + data) * 4096;
        let sound = tree.read((data + 1) * 4096, &mut found);
        sound.unwrap_or_else(|error| panic!("block {data}: {error}"));
        for bit in 0..4096 * 8 {
            let at = (place + bit / 8) as usize;
            file.write_at(at as u64, &[bytes[at] ^ (1 << (bit % 8))]).unwrap();
            let error = tree.read((data + 1) * 4096, &mut found).unwrap_err();
            let damage = damage_in(&error).expect("damage with its place");
            assert_eq!(damage.offset, Some(place));
            assert_eq!(tree.last_damage().as_ref(), Some(damage));
            assert_eq!(found, [0; 4096], "nothing damaged is left in the buffer");
            file.write_at(at as u64, &[bytes[at]]).unwrap();
        }
    }
}

/// The whole database, opened by redb: all bits of the first three blocks' used parts and of the
/// checksum entries in use, and a sample of every other block.
#[test]
fn a_flipped_bit_is_harmless_or_an_error_with_its_place() {
    let (bytes, model) = small_database();
    let blocks = bytes.len() / 4096;
    let mut bits: Vec<usize> = (0..48 * 8).collect();
    for slot in [1, 2] {
        bits.extend((slot * 4096 * 8)..(slot * 4096 * 8 + 340 * 8));
        bits.extend(((slot + 1) * 4096 * 8 - 40)..((slot + 1) * 4096 * 8));
    }
    bits.extend((3 * 4096 * 8)..((3 * 4096 + 4 * (blocks - 4) + 8) * 8));
    let mut random = Random(5);
    for block in 0..blocks {
        // The first bytes of a page say what it is; its first entries lie behind.
        for range in [40 * 8, 4096 * 8] {
            bits.extend((0..12).map(|_| block * 4096 * 8 + random.below(range) as usize));
        }
    }
    let (mut harmless, mut reported) = (0, 0);
    for bit in bits {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if check(&format!("bit {} of byte {}", bit % 8, bit / 8), damaged, &model) {
            harmless += 1;
        } else {
            reported += 1;
        }
    }
    assert!(harmless > 100 && reported > 100, "{harmless} harmless, {reported} reported");
}

#[test]
fn lost_and_misdirected_blocks_are_caught() {
    let (bytes, model) = small_database();
    let blocks = bytes.len() / 4096;
    let mut reported = 0;
    for block in 4..blocks {
        let place = block * 4096;
        let mut zeroed = bytes.clone();
        zeroed[place..place + 4096].fill(0);
        reported += u32::from(!check(&format!("block {block} zeroed"), zeroed, &model));

        // A neighbour's block with its checksum: right but for the place.
        let other = if block + 1 < blocks { block + 1 } else { 4 };
        let entry = |block: usize| 3 * 4096 + (block - 4) * 4;
        if bytes[entry(other)..entry(other) + 4] == [1, 0, 0, 0] {
            continue; // never written: nothing that could have gone astray
        }
        let mut moved = bytes.clone();
        moved.copy_within(other * 4096..(other + 1) * 4096, place);
        moved.copy_within(entry(other)..entry(other) + 4, entry(block));
        reported += u32::from(!check(&format!("block {other} written to {block}"), moved, &model));
    }
    assert!(reported > 10, "{reported}");

    // A hole over the checksums and what they cover.
    let mut hole = bytes;
    hole[3 * 4096..].fill(0);
    assert!(!check("a hole", hole, &model));
}

#[test]
fn damage_latches_in_redb_but_keeps_its_place() {
    let (mut bytes, _) = small_database();
    for block in 4..bytes.len() / 4096 {
        bytes[block * 4096 + 100] ^= 1;
    }
    let disk = disk_with(bytes);
    let error = open(&disk).unwrap_err();
    assert!(matches!(&error, Error::Corrupt(corruption) if corruption.offset.is_some()), "{error}");

    let disk = disk_with(small_database().0);
    // Without a cache, which would hold all of it.
    let (database, file) = open_redb_and_file(&disk, Path::new(PATH), DATABASE_ID, 0).unwrap();
    for block in 4..disk.content(Path::new(PATH)).unwrap().len() as u64 / 4096 {
        disk.flip_bit(Path::new(PATH), block * 4096 + 100, 3);
    }
    let first = file.map_error("reading", read_all(&database).unwrap_err());
    let Error::Corrupt(place) = first else { panic!("{first}") };
    let again = read_all(&database).unwrap_err();
    assert!(matches!(again, redb::Error::PreviousIo));
    assert!(matches!(map_redb_error(Path::new(PATH), "reading", again), Error::Poisoned(_)));
    let again = file.map_error("reading", read_all(&database).unwrap_err());
    assert!(matches!(again, Error::Corrupt(again) if again == place));
}

/// The process was not closed, only idle when its machine stopped: the newest commit is in both.
#[test]
fn losing_one_header_slot_after_a_commit_costs_nothing() {
    let disk = new_disk(1);
    let mut model = Model::new();
    let mut random = Random(12);
    let (database, _) = open(&disk).unwrap();
    for commit in 0..6 {
        random_commit(&database, &mut model, &mut random).unwrap();
        let bytes = disk.content(Path::new(PATH)).unwrap();
        for slot in [1, 2] {
            let mut damaged = bytes.clone();
            damaged[slot * 4096 + 50] ^= 4;
            assert!(try_read(damaged).unwrap() == model, "commit {commit}, slot {slot}");
        }
    }
}

#[test]
fn losing_one_header_slot_at_rest_costs_nothing() {
    let (bytes, model) = small_database();
    for slot in [1, 2] {
        let mut damaged = bytes.clone();
        damaged[slot * 4096..(slot + 1) * 4096].fill(0xee);
        assert!(try_read(damaged).unwrap() == model, "slot {slot}");
    }
    let mut damaged = bytes;
    damaged[4096 + 20] ^= 1;
    damaged[8192 + 30] ^= 1;
    let error = try_read(damaged).unwrap_err();
    assert!(matches!(&error, Error::Corrupt(at) if at.offset == Some(4096)), "{error}");
    assert!(error.to_string().contains("8192"), "{error}");
}

#[test]
fn a_file_cut_short_is_never_wrong() {
    let (bytes, model) = small_database();
    for length in (0..bytes.len()).step_by(512).chain([1, 11, 43, 44, 4095, 4097, bytes.len() - 1]) {
        match try_read(bytes[..length].to_vec()) {
            Ok(found) => assert!(found == model, "{length} bytes"),
            Err(Error::Corrupt(_)) => {}
            Err(Error::NotADatabase { .. }) if length < 44 => {}
            Err(error) => panic!("{length} bytes: {error}"),
        }
    }
}

#[test]
fn other_files_are_refused_and_not_touched() {
    let (bytes, _) = small_database();
    let mut newer = bytes.clone();
    newer[12] = 9;
    let crc = crc32fast::hash(&newer[..40]);
    newer[40..44].copy_from_slice(&crc.to_le_bytes());
    let mut redb = b"redb\x1a\x0a\xa9\x0d\x0a".to_vec();
    redb.resize(8192, 0);
    let text = b"some text that is longer than the identity of a file".to_vec();
    // Where ours must be, contents that are nobody's have taken its place.
    let cases =
        [(newer, "version 9"), (redb, "plain redb"), (text, "overwritten"), (Vec::new(), "overwritten")];
    for (bytes, expected) in cases {
        let disk = disk_with(bytes.clone());
        let error = open(&disk).unwrap_err();
        match expected {
            "overwritten" => assert!(matches!(error, Error::Corrupt(_)), "{error}"),
            _ => assert!(matches!(error, Error::NotADatabase { .. }), "{error}"),
        }
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(disk.content(Path::new(PATH)).unwrap(), bytes, "{expected}: changed");
    }
    let disk = disk_with(bytes);
    let other = dogsled_storage::tree_file::open_redb(&disk, Path::new(PATH), 5, CACHE).unwrap_err();
    assert!(other.to_string().contains("another database"), "{other}");
}

/// redb says only the first time what was wrong; the database says it every time.
#[test]
fn an_engine_names_the_place_of_damage_every_time() {
    use dogsled_storage::{Command, Durability, Engine, TreeId};
    let disk = SimulatedDisk::new(1);
    let put = |engine: &Engine, key: u32| {
        let (key, value) = (key.to_be_bytes()[..].into(), vec![7; 4000].into());
        engine.execute(Command::Insert { tree: TreeId::DEFAULT, key, value }, Durability::Buffered)
    };
    let engine = Engine::open(database::options(&disk)).unwrap();
    // More than the caches hold.
    for key in 0..4000 {
        put(&engine, key).unwrap();
    }
    engine.checkpoint().unwrap();
    drop(engine);
    let engine = Engine::open(database::options(&disk)).unwrap();
    put(&engine, 9999).unwrap();
    let length = disk.content(Path::new(PATH)).unwrap().len() as u64;
    for block in 4..length / 4096 {
        disk.flip_bit(Path::new(PATH), block * 4096 + 1000, 3);
    }
    let mut places = Vec::new();
    for key in 0..4000_u32 {
        match engine.get(TreeId::DEFAULT, &key.to_be_bytes()) {
            Ok(value) => assert!(
                value.as_deref() == Some(&[7; 4000][..]),
                "key {key}: {:?} after {} errors",
                value.map(|value| value.len()),
                places.len()
            ),
            Err(Error::Corrupt(corruption)) => {
                assert_eq!(corruption.file, Path::new(PATH));
                places.push(corruption.offset.expect("a place"));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(places.len() > 100, "{} reads met damage", places.len());
    assert_eq!(
        engine.get(TreeId::DEFAULT, &9999_u32.to_be_bytes()).unwrap().as_deref(),
        Some(&[7; 4000][..])
    );
}
