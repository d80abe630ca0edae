//! An embedded database is made a node on a disk that crashes at every write: there is always the one
//! or the other, whole.

use std::sync::atomic::{AtomicU64, Ordering};

use dogsled_storage::counter::CounterCommand;
use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::lock::LockCommand;
use dogsled_storage::replica::Replica;
use dogsled_storage::{Clock, Command, Durability, ExpiryCommand, TreeId, When, Write};

use super::*;
use crate::log_store::{LogOptions, LogStore};
use crate::node::open_directory;
use crate::transport::NodeId;

#[derive(Debug, Default)]
struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now_ms(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1_000
    }
}

fn open_embedded(disk: &SimulatedDisk) -> Result<Arc<Engine>> {
    Engine::open(Options {
        cache_capacity: 8 << 20,
        segment_size: 64 << 10,
        background_threads: false,
        clock: Arc::new(Ticks::default()),
        disk: Arc::new(disk.clone()),
        database_id: Some(7),
        ..Options::new("d")
    })
}

/// A database with some of everything, half of it in the B-tree.
fn fill(engine: &Engine) {
    let run = |command| engine.execute(command, Durability::Buffered).unwrap();
    run(Command::CreateTree { name: "users".into() });
    let users = engine.tree_id(b"users").unwrap();
    for round in 0..3u64 {
        for n in 0..40u64 {
            let key = (round * 25 + n).to_be_bytes();
            run(Command::Insert { tree: users, key: key[..].into(), value: vec![round as u8; 50].into() });
        }
        let write =
            Write { tree: TreeId::DEFAULT, key: round.to_be_bytes()[..].into(), value: Some("v".into()) };
        run(Command::Batch { writes: vec![write] });
        run(Command::Counter(CounterCommand::Add { name: "visits".into(), delta: 5 }));
        run(Command::ReserveIds { count: 10 });
        let (name, owner) = (format!("lock {round}").as_str().into(), "ann".into());
        run(Command::Lock(LockCommand::TryAcquire { name, owner, lease_ms: 1 << 40 }));
        if round == 1 {
            engine.checkpoint().unwrap();
        }
    }
    // One that is over already, and not removed, and one that stays.
    for (key, after_ms) in [("brief", 1), ("long", 1 << 40)] {
        let (tree, when) = (users, When::After(after_ms));
        let insert = ExpiryCommand::Insert { tree, key: key.into(), value: "v".into(), when };
        run(Command::Expiry(insert));
    }
    run(Command::Remove { tree: users, key: 3u64.to_be_bytes()[..].into() });
    engine.sync().unwrap();
}

fn config(disk: &SimulatedDisk) -> NodeConfig {
    NodeConfig {
        disk: Arc::new(disk.clone()),
        threads: false,
        seed: Some(1),
        wal_segment_bytes: 64 << 10,
        convert_embedded: true,
        ..NodeConfig::new("d", NodeId(3), vec!["host:1".to_owned()])
    }
}

/// What state an embedded database is in, as a replica that has the same has it.
fn fingerprint(engine: &Engine) -> (u64, u64) {
    let snapshot = ReplicaSnapshot::of_embedded(engine, Vec::new());
    (snapshot.applied().position, snapshot.fingerprint().unwrap())
}

/// The node is there, and holds what the embedded database held.
fn check_node(disk: &SimulatedDisk, expected: (u64, u64), context: &str) {
    let config = config(disk);
    let (_lock, file, log) = open_directory(&config).expect(context);
    assert_eq!((file.node, file.partitions, file.converting), (3, 1, false), "{context}");
    assert_ne!(file.cluster, 0, "{context}");
    let log = Arc::new(log);
    let bounds = |group: u32| {
        LogStore::open(Arc::clone(&log), StreamId(group), LogOptions::default()).expect(context).bounds()
    };
    assert_eq!(bounds(0), (0, 2), "{context}: the meta group begins with its member and the record");
    assert_eq!(bounds(GROUP), (expected.0, expected.0), "{context}: all before is purged");
    let options = ReplicaOptions {
        disk: Arc::clone(&config.disk),
        background_threads: false,
        ..ReplicaOptions::new("d/groups/1", file.database_id)
    };
    let replica = Replica::open(options, Arc::clone(&log.wal)).expect(context);
    let snapshot = replica.snapshot();
    assert_eq!((snapshot.applied().position, snapshot.fingerprint().unwrap()), expected, "{context}");
    for old in ["d/MANIFEST", "d/tree.redb"] {
        assert!(!disk.exists(Path::new(old)).unwrap(), "{context}: {old}");
    }
    assert_eq!(disk.list(Path::new("d/wal.new")).unwrap(), [""; 0], "{context}");
    assert!(matches!(open_embedded(disk), Err(Error::NotADatabase { .. })), "{context}");
}

#[test]
fn a_crash_at_any_write_leaves_the_embedded_database_or_the_node() {
    let original = SimulatedDisk::new(1);
    let engine = open_embedded(&original).unwrap();
    fill(&engine);
    let expected = fingerprint(&engine);
    engine.close().unwrap();
    drop(engine);

    let undisturbed = original.duplicate();
    drop(open_directory(&config(&undisturbed)).unwrap());
    check_node(&undisturbed, expected, "undisturbed");
    let changes = undisturbed.changes();
    let mut outcomes = [0; 2];
    for place in 1..=changes {
        for cut in [false, true] {
            let context = format!("crash at change {place}, power cut: {cut}");
            let disk = original.duplicate();
            disk.crash_at_change(place);
            // It may be over before the crash, or at its last, immaterial step.
            drop(open_directory(&config(&disk)));
            let disk = if cut { disk.power_cut(place) } else { disk.process_kill() };
            let begun = NodeFile::read(&disk, Path::new("d")).expect(&context).is_some();
            outcomes[usize::from(begun)] += 1;
            match open_embedded(&disk) {
                Ok(engine) => {
                    assert!(!begun, "{context}: two databases");
                    assert_eq!(fingerprint(&engine), expected, "{context}");
                }
                Err(error) => {
                    assert!(begun && matches!(error, Error::NotADatabase { .. }), "{context}: {error}")
                }
            }
            drop(open_directory(&config(&disk)).expect(&context));
            check_node(&disk, expected, &context);
        }
    }
    assert!(outcomes.iter().all(|count| *count > 20), "{outcomes:?} of {changes} changes");
}

#[test]
fn an_empty_database_and_one_that_is_no_database() {
    let disk = SimulatedDisk::new(1);
    let nothing = open_directory(&config(&disk)).map(drop);
    assert!(matches!(nothing, Err(Error::NotADatabase { .. })), "{nothing:?}");
    let engine = open_embedded(&disk).unwrap();
    assert!(matches!(open_directory(&config(&disk)), Err(Error::InUse(_))), "it is open");
    let expected = fingerprint(&engine);
    assert_eq!(expected.0, 1);
    engine.close().unwrap();
    drop(engine);
    // Without being asked to, nobody converts anything.
    let unasked = open_directory(&NodeConfig { convert_embedded: false, ..config(&disk) }).map(drop);
    assert!(matches!(unasked, Err(Error::NotADatabase { .. })), "{unasked:?}");
    check_node(&disk, expected, "empty");
}
