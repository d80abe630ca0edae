//! Directories of other programs: refused, and nothing in them is touched.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::database::*;
use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::{Engine, Error, repair, verify_directory};

type Files = Vec<(&'static str, Vec<u8>)>;

fn foreign() -> Vec<(&'static str, Files)> {
    let text = |text: &str| text.as_bytes().to_vec();
    let mut redb = b"redb\x1a\x0a\xa9\x0d\x0a".to_vec();
    redb.resize(8192, 1);
    vec![
        (
            "etcd's layout",
            vec![
                ("wal/0000000000000000-0000000000000000.wal", vec![3; 6000]),
                ("wal/0.tmp", vec![0; 6000]),
                ("snap/db", vec![5; 9000]),
            ],
        ),
        ("a folder wal alone", vec![("wal/0000000000000000-0000000000000000.wal", vec![3; 6000])]),
        ("segments of a name like ours", vec![("wal/0000000000000001.wal", vec![3; 6000])]),
        ("a file wal", vec![("wal", vec![3; 6000])]),
        ("a file CREATING", vec![("CREATING", text("in progress\n")), ("data", text("mine"))]),
        (
            "a file CREATING, with a tree and segments of names like ours",
            vec![
                ("CREATING", text("in progress\n")),
                ("tree.redb", redb.clone()),
                ("wal/0000000000000001.wal", vec![3; 6000]),
                ("wal/notes", text("mine")),
            ],
        ),
        ("an empty file CREATING, with a tree", vec![("CREATING", Vec::new()), ("tree.redb", redb.clone())]),
        ("a file CREATING alone", vec![("CREATING", text("in progress\n"))]),
        ("a file MANIFEST", vec![("MANIFEST", text("Manifest-Version: 1.0\n")), ("data", text("mine"))]),
        ("an empty file MANIFEST", vec![("MANIFEST", Vec::new()), ("data", text("mine"))]),
        (
            "RocksDB",
            vec![("LOCK", Vec::new()), ("CURRENT", text("MANIFEST-1\n")), ("MANIFEST-1", vec![1; 99])],
        ),
        ("redb under our name", vec![("tree.redb", redb)]),
    ]
}

fn contents(disk: &SimulatedDisk) -> Vec<(PathBuf, Option<Vec<u8>>)> {
    disk.files().into_iter().map(|path| (path.clone(), disk.content(&path))).collect()
}

#[test]
fn directories_of_other_programs_are_refused_and_left_as_they_were() {
    for (what, files) in foreign() {
        let disk = SimulatedDisk::new(1);
        for (name, bytes) in &files {
            disk.set_content(&Path::new(DIRECTORY).join(name), bytes.clone());
        }
        let before = contents(&disk);
        let shared: Arc<dyn Disk> = Arc::new(disk.clone());
        let directory = Path::new(DIRECTORY);
        let opened = Engine::open(options(&disk)).map(drop);
        let verified = verify_directory(&disk, directory).map(drop);
        let repaired = repair(&shared, directory, Path::new("target"), &mut |_| ()).map(drop);
        for (how, result) in [("open", opened), ("verify", verified), ("repair", repaired)] {
            match result {
                Err(Error::NotADatabase { path, what: why }) => {
                    assert!(path.starts_with(DIRECTORY) && !why.is_empty(), "{what}: {how}: {why}");
                }
                other => panic!("{what}: {how}: {other:?}"),
            }
        }
        assert!(contents(&disk) == before, "{what}: changed to {:?}", disk.files());
    }
}

/// A crash while the directory was made leaves `CREATING`, in any state, and what was made so far.
#[test]
fn a_directory_whose_making_was_cut_off_is_made_again() {
    let disk = SimulatedDisk::new(1);
    drop(Engine::open(options(&disk)).unwrap());
    let changes = disk.changes();
    for place in 1..changes {
        for kill in [true, false] {
            let disk = SimulatedDisk::new(1);
            disk.crash_at_change(place);
            drop(Engine::open(options(&disk)));
            let disk = if kill { disk.process_kill() } else { disk.power_cut(place) };
            let engine = Engine::open(options(&disk)).unwrap_or_else(|error| panic!("{place}: {error}"));
            engine.close().unwrap();
            drop(engine);
            assert!(verify_directory(&disk, Path::new(DIRECTORY)).unwrap().is_sound(), "{place}");
        }
    }
}
