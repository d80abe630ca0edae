//! Opening, verifying and repairing a damaged database: no panic, no wrong data, and what was
//! repaired opens and is sound.
//!
//! The first byte chooses: damage to a sound database, or arbitrary bytes in place of its files.
#![no_main]

use std::collections::BTreeSet;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use dogsled_fuzz::{Choices, DIRECTORY, Sound, damage, options, sound_database};
use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::repair::{check_arbitrary_files, repair};
use dogsled_storage::{Engine, Options, verify_directory};
use libfuzzer_sys::fuzz_target;

static SOUND: LazyLock<Sound> = LazyLock::new(sound_database);

/// Every (tree, key, value) that ever was.
static EVER: LazyLock<BTreeSet<(u32, Vec<u8>, Vec<u8>)>> = LazyLock::new(|| {
    let mut ever = BTreeSet::new();
    for state in &SOUND.history {
        for (_, id) in state.names() {
            for (key, found) in state.tree(id).into_iter().flatten() {
                ever.insert((id.0, key.to_vec(), found.value.to_vec()));
            }
        }
    }
    ever
});

/// Panics at an entry that never was; an error ends the reading.
fn read_all(engine: &Engine) -> dogsled_storage::Result<()> {
    let snapshot = engine.snapshot();
    for (_, id) in snapshot.trees() {
        for entry in snapshot.range(id, Bound::Unbounded, Bound::Unbounded) {
            let (key, found) = entry?;
            let entry = (id.0, key.to_vec(), found.value.to_vec());
            assert!(EVER.contains(&entry), "never written: {entry:?}");
        }
    }
    Ok(())
}

fn damaged(choices: &mut Choices<'_>) -> SimulatedDisk {
    let disk = SOUND.disk.duplicate();
    while !choices.is_empty() {
        damage(&disk, choices);
    }
    disk
}

fuzz_target!(|bytes: &[u8]| {
    let mut choices = Choices(bytes);
    let kind = choices.byte();
    if kind % 4 == 3 {
        let (seal, split) = (kind & 128 != 0, usize::from(choices.byte()) * 64);
        let (wal, tree) = choices.0.split_at(split.min(choices.0.len()));
        let files = [("wal/0000000000000001.wal", wal), ("tree.redb", tree)];
        check_arbitrary_files(&files, seal);
        return;
    }
    let disk = damaged(&mut choices);
    let copy = disk.duplicate();
    if let Ok(engine) = Engine::open(options(&copy)) {
        let _ = read_all(&engine);
        let _ = engine.verify();
    }
    let shared: Arc<dyn Disk> = Arc::new(disk.clone());
    let _ = verify_directory(&*shared, Path::new(DIRECTORY));
    if repair(&shared, Path::new(DIRECTORY), Path::new("saved"), &mut |_| ()).is_ok() {
        let options = Options { directory: "saved".into(), database_id: None, ..options(&disk) };
        let engine = Engine::open(options).expect("a repaired database opens");
        read_all(&engine).expect("a repaired database is sound");
    }
});
