//! Golden bytes of a backup's files, what damage comes to, and chains compared with a plain map.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::BackupError;
use super::chain::Chain;
use super::format::partition_path;
use super::format::{
    KEYS, MANIFEST, Manifest, NUMBERS, PartitionEntry, Reader, Record, Section, Sum, Writer,
};
use super::take::prepare;
use super::unfinished::{Earlier, take_over};
use crate::IVec;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn record(key: &str, version: u64, expires_ms: Option<u64>, value: Option<&str>) -> Record {
    Record { key: key.into(), version, expires_ms, value: value.map(IVec::from) }
}

fn section(tree: &str, part: u8) -> Section {
    (tree.into(), part)
}

/// Writes a backup of one partition.
fn write(directory: &Path, backup: u128, parent: u128, sections: &[(Section, Vec<Record>)]) -> Manifest {
    std::fs::create_dir_all(directory).unwrap();
    let mut writer = Writer::create(directory, backup, 1).unwrap();
    for (section, records) in sections {
        writer.begin(section).unwrap();
        records.iter().for_each(|record| writer.record(record).unwrap());
        writer.end().unwrap();
    }
    let sum = writer.finish().unwrap();
    let partitions = vec![PartitionEntry { position: 9, time_ms: 10, sum }];
    let manifest = Manifest { backup, parent, cluster: 1, partitions, ..Manifest::default() };
    manifest.write(directory).unwrap();
    manifest
}

/// All of a backup of one partition.
fn read(directory: &Path) -> Result<Vec<(Section, Record)>, BackupError> {
    let manifest = Manifest::read(directory)?;
    let mut reader = Reader::open(&manifest, directory, 1)?;
    let mut records = Vec::new();
    while let Some(record) = reader.next()? {
        records.push(record);
    }
    Ok(records)
}

fn merged(directories: &[PathBuf]) -> Result<Vec<(Section, Record)>, BackupError> {
    let mut merged = Chain::open(directories)?.partition(1)?;
    let mut records = Vec::new();
    while let Some(record) = merged.next()? {
        records.push(record);
    }
    Ok(records)
}

#[test]
fn the_files_keep_their_bytes() {
    let manifest = Manifest {
        backup: 1,
        parent: 2,
        cluster: 3,
        made_ms: 4,
        partitions: vec![PartitionEntry {
            position: 5,
            time_ms: 6,
            sum: Sum { length: 7, records: 8, check: 9 },
        }],
        trees: vec!["t".into()],
        removed_members: vec![10],
    };
    let expected = "4447534c44424b4d01000000 01000000000000000000000000000000 02000000000000000000000000000000 \
                    03000000000000000000000000000000 0400000000000000 01000000 0500000000000000 \
                    0600000000000000 0700000000000000 0800000000000000 09000000 01000000 01000000 74 01000000 \
                    0a00000000000000 04bd8567";
    assert_eq!(hex(&manifest.encode()), expected.replace(' ', ""));
    assert_eq!(Manifest::decode(&manifest.encode()), Ok(manifest));

    let directory = tempfile::tempdir().unwrap();
    let mut writer = Writer::create(directory.path(), 0x0102, 3).unwrap();
    writer.begin(&section("t", KEYS)).unwrap();
    writer.record(&record("k", 5, None, Some("v"))).unwrap();
    writer.record(&record("l", 6, Some(7), Some(""))).unwrap();
    writer.record(&record("m", 0, None, None)).unwrap();
    writer.end().unwrap();
    let sum = writer.finish().unwrap();
    assert_eq!(sum, Sum { length: 174, records: 3, check: 0x1ee5_977d });
    let expected = "4447534c4442414b 01000000 02010000000000000000000000000000 03000000 364d6682 \
                    54 02000000 0074 a01f4133 \
                    52 4c000000 01000000 0500000000000000 0000000000000000 01000000 6b 76 \
                    01000000 0600000000000000 0700000000000000 00000000 6c \
                    01000000 0000000000000000 0000000000000000 ffffffff 6d 60a51cea \
                    45 08000000 0300000000000000 7232be7f \
                    5a 10000000 0100000000000000 0300000000000000 7d97e51e";
    let written = std::fs::read(partition_path(directory.path(), 3)).unwrap();
    assert_eq!(hex(&written), expected.replace(' ', ""));
}

fn two_trees(directory: &Path) -> Manifest {
    let large = "x".repeat(200 << 10);
    write(
        directory,
        7,
        0,
        &[
            (
                section("a", KEYS),
                vec![record("", 1, None, Some("empty")), record("k", 2, Some(3), Some("v"))],
            ),
            (section("a", NUMBERS), vec![]),
            (section("b", KEYS), vec![record("l", 4, None, Some(&large)), record("m", 5, None, Some("w"))]),
        ],
    )
}

#[test]
fn no_bit_can_be_flipped_no_byte_cut_off_and_no_block_moved() {
    let directory = tempfile::tempdir().unwrap();
    two_trees(directory.path());
    assert_eq!(read(directory.path()).unwrap().len(), 4);
    let damaged = |bytes: &[u8], path: &Path| {
        std::fs::write(path, bytes).unwrap();
        match read(directory.path()) {
            Err(BackupError::Damaged { path: named, offset, .. }) => {
                assert_eq!(named, path);
                offset
            }
            other => panic!("{}: {:?}", path.display(), other.map(|records| records.len())),
        }
    };
    for path in [directory.path().join(MANIFEST), partition_path(directory.path(), 1)] {
        let sound = std::fs::read(&path).unwrap();
        // All bytes near both ends, and some between them.
        let places = (0..sound.len()).filter(|at| *at < 400 || *at + 200 > sound.len() || at % 10_007 == 0);
        for at in places {
            let mut flipped = sound.clone();
            flipped[at] ^= 1 << (at % 8);
            assert!(damaged(&flipped, &path) <= at as u64, "it names a later place than {at}");
            damaged(&sound[..at], &path);
        }
        damaged(&[&sound[..], &[0]].concat(), &path);
        std::fs::write(&path, &sound).unwrap();
    }
    // A block taken out, and one twice: each of them is sound.
    let path = partition_path(directory.path(), 1);
    let sound = std::fs::read(&path).unwrap();
    let length = |at: usize| 9 + u32::from_le_bytes(sound[at + 1..at + 5].try_into().unwrap()) as usize;
    let second = 36 + length(36);
    let third = second + length(second);
    damaged(&[&sound[..second], &sound[third..]].concat(), &path);
    damaged(&[&sound[..third], &sound[second..]].concat(), &path);
    // The same partition of another backup, which is sound.
    let other = tempfile::tempdir().unwrap();
    write(other.path(), 8, 0, &[]);
    let found = std::fs::read(partition_path(other.path(), 1)).unwrap();
    assert_eq!(damaged(&found, &path), 0);
    // And one of the same number: made by another attempt.
    let other = tempfile::tempdir().unwrap();
    write(other.path(), 7, 0, &[]);
    damaged(&std::fs::read(partition_path(other.path(), 1)).unwrap(), &path);
    std::fs::remove_file(&path).unwrap();
    assert!(
        matches!(read(directory.path()), Err(BackupError::Damaged { what, .. }) if what.contains("missing"))
    );
}

#[test]
fn what_is_sound_and_makes_no_sense_or_is_newer_is_refused_too() {
    let refused = |sections: &[(Section, Vec<Record>)]| {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 7, 0, sections);
        match read(directory.path()) {
            Err(BackupError::Damaged { what, .. }) => what,
            other => panic!("{other:?}"),
        }
    };
    let one = |key| record(key, 1, None, Some("v"));
    assert!(refused(&[(section("t", KEYS), vec![one("b"), one("a")])]).contains("keys that do not ascend"));
    assert!(refused(&[(section("t", KEYS), vec![one("a"), one("a")])]).contains("keys that do not ascend"));
    let twice = [(section("t", KEYS), vec![]), (section("t", KEYS), vec![])];
    assert!(refused(&twice).contains("trees that do not ascend"));

    let directory = tempfile::tempdir().unwrap();
    let manifest = two_trees(directory.path());
    let renewed = |mut bytes: Vec<u8>, covered: usize| {
        bytes[8] = 2;
        let check = crc32fast::hash(&bytes[..covered]);
        bytes[covered..covered + 4].copy_from_slice(&check.to_le_bytes());
        bytes
    };
    let path = partition_path(directory.path(), 1);
    let sound = std::fs::read(&path).unwrap();
    std::fs::write(&path, renewed(sound.clone(), 32)).unwrap();
    let said = read(directory.path()).unwrap_err().to_string();
    assert!(said.contains("newer dogsled"), "{said}");
    std::fs::write(&path, sound).unwrap();
    let encoded = manifest.encode();
    let covered = encoded.len() - 4;
    std::fs::write(directory.path().join(MANIFEST), renewed(encoded, covered)).unwrap();
    let said = read(directory.path()).unwrap_err().to_string();
    assert!(said.contains("another version of dogsled"), "{said}");
}

/// Draws numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

#[test]
fn a_chain_is_what_a_map_says_after_each_of_its_backups() {
    for seed in 0..40 {
        let (mut random, parent) = (Random(seed), TempDir::new().unwrap());
        let mut state: BTreeMap<(Section, IVec), Record> = BTreeMap::new();
        let mut chain = Vec::new();
        for backup in 1..=4u64 {
            let mut changed: BTreeMap<Section, BTreeMap<IVec, Record>> = BTreeMap::new();
            for _ in 0..random.below(30) {
                let section = section(["a", "b", "c"][random.below(3) as usize], random.below(2) as u8);
                let key = format!("k{}", random.below(12));
                let value = (backup == 1 || random.below(3) > 0).then(|| format!("v{}", random.below(99)));
                let record = record(&key, backup, None, value.as_deref());
                match &record.value {
                    Some(_) => state.insert((section.clone(), record.key.clone()), record.clone()),
                    None => state.remove(&(section.clone(), record.key.clone())),
                };
                changed.entry(section).or_default().insert(record.key.clone(), record);
            }
            let directory = parent.path().join(backup.to_string());
            let sections: Vec<_> = changed
                .into_iter()
                .map(|(section, records)| (section, records.into_values().collect()))
                .collect();
            write(&directory, backup.into(), u128::from(backup) - 1, &sections);
            chain.push(directory);
            let found = merged(&chain).unwrap();
            let expected = state.iter().map(|((section, _), record)| (section.clone(), record.clone()));
            assert!(found.into_iter().eq(expected), "seed {seed}, backup {backup}");
        }
        for wrong in
            [&chain[1..], &[chain[0].clone(), chain[2].clone()], &[], &[chain[0].clone(), chain[0].clone()]]
        {
            assert!(matches!(merged(wrong), Err(BackupError::Refused(_))), "{wrong:?}");
        }
    }
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[test]
fn one_backup_is_made_in_a_directory_at_a_time() {
    let refused = |directory: &Path, why: &str| match prepare(directory) {
        Err(BackupError::Refused(what)) => assert!(what.contains(why), "{what}"),
        other => panic!("{other:?}"),
    };
    let made = tempfile::tempdir().unwrap();
    let directory = made.path().join("b");
    let held = prepare(&directory).unwrap();
    std::fs::write(partition_path(&directory, 1), b"DGSL").unwrap();
    refused(&directory, "another backup is being made");
    assert_eq!(names(&directory), ["LOCK", "partition-00001"], "what is there is somebody's");
    // It came to nothing: another takes its place.
    drop(held);
    let held = prepare(&directory).unwrap();
    assert_eq!(names(&directory), ["LOCK", "partition-00001"]);
    // Nobody says what it is of.
    let manifest = Manifest { partitions: vec![PartitionEntry::default()], ..Manifest::default() };
    assert!(take_over(&directory, "LOCK", &manifest).unwrap().is_empty());
    assert_eq!(names(&directory), ["LOCK", "UNFINISHED"]);
    drop(held);
    std::fs::remove_file(directory.join("UNFINISHED")).unwrap();
    // What is somebody else's stays as it is.
    std::fs::write(directory.join("LOCK"), b"mine").unwrap();
    refused(&directory, "holds LOCK");
    std::fs::remove_file(directory.join("LOCK")).unwrap();
    std::fs::write(directory.join("letter"), b"mine").unwrap();
    refused(&directory, "holds letter");
    assert_eq!(names(&directory), ["letter"]);
}

#[test]
fn of_what_was_not_finished_the_longest_is_kept_with_its_own_position() {
    let made = tempfile::tempdir().unwrap();
    let directory = made.path();
    let plan = |position: u64, cluster: u128| Manifest {
        backup: position.into(),
        cluster,
        partitions: vec![PartitionEntry { position, ..PartitionEntry::default() }; 2],
        ..Manifest::default()
    };
    let begin = |partition: u32, records: u64| {
        let mut writer = Writer::create(directory, 9, partition).unwrap();
        writer.begin(&section("t", KEYS)).unwrap();
        for number in 0..records {
            let key = format!("k{number:03}");
            writer.record(&record(&key, number, None, Some("v"))).unwrap();
        }
        writer.end().unwrap();
    };
    let keys = |earlier: BTreeMap<u32, Earlier>| -> Vec<(u32, u64, u64)> {
        let mut all = Vec::new();
        for (partition, earlier) in earlier {
            let mut kept = earlier.read();
            let position = kept.more_as_of().unwrap_or_default();
            let of = section("t", KEYS);
            let is_there =
                |number: &u64| kept.value(&of, &format!("k{number:03}")[..].into(), *number).is_some();
            all.push((partition, position, (0..100).filter(is_there).count() as u64));
        }
        all
    };
    assert!(take_over(directory, "LOCK", &plan(5, 1)).unwrap().is_empty());
    begin(1, 10);
    begin(2, 3);
    let found = take_over(directory, "LOCK", &plan(7, 1)).unwrap();
    assert_eq!(keys(found), [(1, 5, 10), (2, 5, 3)]);
    assert_eq!(names(directory), ["UNFINISHED", "earlier-00001-5", "earlier-00002-5"]);
    // Now the first does not come as far, the second comes further.
    begin(1, 4);
    begin(2, 8);
    let found = take_over(directory, "LOCK", &plan(8, 1)).unwrap();
    assert_eq!(keys(found), [(1, 5, 10), (2, 7, 8)]);
    assert_eq!(names(directory), ["UNFINISHED", "earlier-00001-5", "earlier-00002-7"]);
    // Cut anywhere, what is before is there.
    let path = directory.join("earlier-00001-5");
    let whole = std::fs::read(&path).unwrap();
    let mut before = 0;
    for length in 0..whole.len() {
        std::fs::write(&path, &whole[..length]).unwrap();
        let found = keys(take_over(directory, "LOCK", &plan(9, 1)).unwrap());
        let count = found.iter().find(|(partition, ..)| *partition == 1).map_or(0, |(.., count)| *count);
        assert!(count == 0 || count == 10, "records of one block come together");
        assert!(before <= count, "{length}");
        before = count;
    }
    assert_eq!(before, 10);
    // Of another cluster.
    assert!(take_over(directory, "LOCK", &plan(9, 2)).unwrap().is_empty());
    assert_eq!(names(directory), ["UNFINISHED"]);
}
