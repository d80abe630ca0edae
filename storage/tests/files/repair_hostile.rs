//! Bytes that nobody vouches for: refused or repaired, and never a panic.

use std::path::Path;

use crate::support::Random;
use crate::support::database::*;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::repair::check_arbitrary_files;

fn seed_files() -> Vec<(String, Vec<u8>)> {
    let disk = SimulatedDisk::new(1);
    let (engine, _) = build(&disk, 3, 40, &[10, 30]);
    drop(engine);
    let name = |path: &Path| path.strip_prefix(DIRECTORY).unwrap().to_str().unwrap().to_owned();
    files(&disk).into_iter().map(|path| (name(&path), disk.content(&path).unwrap())).collect()
}

#[test]
fn nothing_and_noise_are_refused() {
    check_arbitrary_files(&[], false);
    let mut random = Random(1);
    for length in [0, 1, 43, 44, 4096, 12_288, 16_384, 40_960] {
        let noise = random.bytes(length);
        for seal in [false, true] {
            check_arbitrary_files(&[("tree.redb", &noise)], seal);
            check_arbitrary_files(&[("MANIFEST", &noise), ("wal/0000000000000001.wal", &noise)], seal);
        }
    }
}

#[test]
fn mutations_behind_matching_checksums_are_survived() {
    let seeds = seed_files();
    for seed in 0..150 {
        let mut random = Random(seed);
        let mut files = seeds.clone();
        for _ in 0..1 + random.below(6) {
            let tree = files.iter().position(|(name, _)| name == "tree.redb").unwrap();
            let which = if random.below(4) > 0 { tree } else { random.below(files.len() as u64) as usize };
            let bytes = &mut files[which].1;
            if bytes.is_empty() {
                continue;
            }
            // Headers, the beginnings of pages, and anywhere.
            let place = match random.below(3) {
                0 => random.below((bytes.len() as u64).min(12_288)),
                1 => (random.below(bytes.len() as u64) & !0xfff) + random.below(64),
                _ => random.below(bytes.len() as u64),
            } as usize;
            let end = (place + 1 + random.below(16) as usize).min(bytes.len());
            for byte in &mut bytes[place.min(end)..end] {
                *byte = match random.below(3) {
                    0 => 0xff,
                    1 => byte.wrapping_add(1),
                    _ => random.next() as u8,
                };
            }
        }
        let files: Vec<(&str, &[u8])> =
            files.iter().map(|(name, bytes)| (name.as_str(), bytes.as_slice())).collect();
        check_arbitrary_files(&files, seed % 2 == 0);
    }
}
