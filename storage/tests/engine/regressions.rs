//! Each of these once went wrong.

use std::ops::Bound;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled_storage::disk::{Disk, Fault, SimulatedDisk};
use dogsled_storage::lock::{LockCommand, LockReply};
use dogsled_storage::lock_wait::Woken;
use dogsled_storage::{Command, Durability, Engine, Error, IVec, Reply, TreeId};

use crate::support::{TestClock, in_directory, open_small, small_options};

fn insert(engine: &Engine, key: impl Into<IVec>, value: impl Into<IVec>) -> dogsled_storage::Result<Reply> {
    let command = Command::Insert { tree: TreeId::DEFAULT, key: key.into(), value: value.into() };
    engine.execute(command, Durability::Buffered)
}

fn insert_many(engine: &Engine, numbers: std::ops::Range<u32>) {
    for number in numbers {
        insert(engine, &number.to_be_bytes()[..], "value").expect("a sound disk");
    }
}

/// The files whose path contains `part`, with their bytes.
fn files(disk: &SimulatedDisk, part: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let paths = disk.files().into_iter().filter(|path| path.to_string_lossy().contains(part));
    paths.map(|path| (path.clone(), disk.content(&path).expect("it is listed"))).collect()
}

fn replace(disk: &SimulatedDisk, part: &str, with: Vec<(PathBuf, Vec<u8>)>) {
    for (path, _) in files(disk, part) {
        disk.remove_content(&path);
    }
    for (path, bytes) in with {
        disk.set_content(&path, bytes);
    }
}

#[test]
fn a_wal_that_ends_before_the_b_tree_takes_writes() {
    let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    insert_many(&engine, 0..10);
    drop(engine);
    let older = files(&disk, "/wal/");
    let engine = open_small(&disk, &clock).expect("a sound disk");
    insert_many(&engine, 10..20);
    engine.checkpoint().expect("a sound disk");
    drop(engine);
    replace(&disk, "/wal/", older);
    for round in 0..3u32 {
        let engine = open_small(&disk, &clock).expect("all commits are in the B-tree");
        assert_eq!(engine.len(TreeId::DEFAULT).expect("a length"), u64::from(20 + round));
        insert_many(&engine, 20 + round..21 + round);
    }
}

#[test]
fn an_older_b_tree_is_noticed_when_all_commits_were_folded() {
    let (disk, clock) = (SimulatedDisk::new(2), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    insert_many(&engine, 0..5);
    engine.checkpoint().expect("a sound disk");
    drop(engine);
    let older = files(&disk, "tree.redb");
    assert_eq!(older.len(), 1);
    let engine = open_small(&disk, &clock).expect("a sound disk");
    insert_many(&engine, 5..10);
    engine.checkpoint().expect("a sound disk");
    drop(engine);
    replace(&disk, "tree.redb", older);
    match open_small(&disk, &clock) {
        Err(Error::Corrupt(_)) => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn changes_that_are_kept_do_not_pile_up_over_openings() {
    let (disk, clock) = (SimulatedDisk::new(3), TestClock::new(1_000));
    let mut sizes = Vec::new();
    for _ in 0..8u32 {
        let mut options = small_options(&disk, &clock);
        options.retain_changes_bytes = 3 << 20;
        let engine = Engine::open(options).expect("a sound disk");
        for number in 0..32u32 {
            insert(&engine, &number.to_be_bytes()[..], vec![7; 64 << 10]).expect("a sound disk");
        }
        engine.checkpoint().expect("a sound disk");
        let newest = engine.sequence();
        assert!(engine.changes_since(newest.saturating_sub(40)).is_ok());
        sizes.push(newest - (0..=newest).find(|at| engine.changes_since(*at).is_ok()).expect("the newest"));
    }
    // 48 commits are 3 MiB, and marks are 1 MiB apart.
    assert!(*sizes.last().expect("eight runs") <= 5 * 16, "{sizes:?}");
}

#[test]
fn what_was_acknowledged_before_closing_is_there_after() {
    for round in 0..60u64 {
        let (disk, clock) = (SimulatedDisk::new(round), TestClock::new(1_000));
        let mut options = small_options(&disk, &clock);
        options.background_threads = true;
        let engine = Engine::open(options).expect("a new disk");
        let acknowledged = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for thread in 0..3u32 {
                let (engine, acknowledged) = (&engine, &acknowledged);
                scope.spawn(move || {
                    for number in 0u32.. {
                        let key = (u64::from(thread) << 32 | u64::from(number)).to_be_bytes();
                        match insert(engine, &key[..], "value") {
                            Ok(_) => acknowledged.fetch_add(1, Ordering::Relaxed),
                            Err(Error::InvalidRequest(_)) => break,
                            Err(other) => panic!("{other}"),
                        };
                    }
                });
            }
            std::thread::sleep(Duration::from_micros(300 + 20 * round));
            engine.close().expect("a sound disk");
        });
        drop(engine);
        let engine = open_small(&disk, &clock).expect("a sound disk");
        assert_eq!(engine.len(TreeId::DEFAULT).expect("a length"), acknowledged.into_inner());
    }
}

#[test]
fn a_directory_with_a_lock_file_of_another_program_is_left_alone() {
    let (disk, clock) = (SimulatedDisk::new(4), TestClock::new(1_000));
    disk.create_directories(&in_directory("")).expect("a sound disk");
    for name in ["LOCK", "CURRENT", "MANIFEST-000005", "000004.sst"] {
        disk.set_content(&in_directory(name), b"theirs".to_vec());
    }
    let before = disk.files();
    match open_small(&disk, &clock) {
        Err(Error::NotADatabase { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert_eq!(disk.files(), before);
}

#[test]
fn watching_a_tree_that_is_gone_ends_at_once() {
    let (disk, clock) = (SimulatedDisk::new(5), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    let create = Command::CreateTree { name: "gone".into() };
    let Ok(Reply::Tree { id, .. }) = engine.execute(create, Durability::Buffered) else { panic!() };
    engine.execute(Command::DropTree { name: "gone".into() }, Durability::Buffered).expect("it exists");
    let ended = Err(std::sync::mpsc::RecvTimeoutError::Disconnected);
    let short = Duration::from_millis(10);
    assert_eq!(engine.watch(id, b"", 10).next_timeout(short), ended);
    assert_eq!(engine.snapshot_and_watch(id, b"", 10).1.next_timeout(short), ended);
}

#[test]
fn what_is_stored_keeps_nothing_else_in_memory() {
    let (disk, clock) = (SimulatedDisk::new(6), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    let block: Arc<[u8]> = Arc::from(vec![7; 6 << 10]);
    let part = |at| IVec::from(Arc::clone(&block)).subslice(at, 100);
    insert(&engine, part(0), part(100)).expect("a sound disk");
    insert(&engine, part(0), part(200)).expect("a sound disk");
    insert(&engine, "another", part(300)).expect("a sound disk");
    assert_eq!(Arc::strong_count(&block), 1);
}

#[test]
fn whoever_waits_for_a_lock_hears_of_a_disk_that_failed_in_the_background() {
    let (disk, clock) = (SimulatedDisk::new(7), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    let acquire = LockCommand::TryAcquire { name: "l".into(), owner: "b".into(), lease_ms: u64::MAX };
    let granted = engine.execute(Command::Lock(acquire), Durability::Buffered).expect("a sound disk");
    let Reply::Lock(LockReply::Acquired { token, .. }) = granted else { panic!("{granted:?}") };
    let waiter = engine.lock_waiters().enqueue(b"l");
    assert_eq!(waiter.wait(None), Woken::Turn, "the first of a queue tries at once");
    disk.inject(Fault { operation: None, after: 0, from_then_on: true });
    engine.sync().expect_err("the disk fails");
    let release = LockCommand::Release { name: "l".into(), owner: "b".into(), token };
    engine.execute(Command::Lock(release), Durability::Buffered).expect_err("the disk is in doubt");
    assert_eq!(waiter.wait(Some(Instant::now() + Duration::from_secs(3))), Woken::Turn);
}

#[test]
fn many_transactions_beside_a_long_reader_leave_no_versions_behind() {
    let (disk, clock) = (SimulatedDisk::new(8), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    insert(&engine, "counter", "first").expect("a sound disk");
    let long = engine.snapshot();
    for number in 0..2_000u32 {
        let _short = engine.snapshot();
        insert(&engine, "counter", &number.to_be_bytes()[..]).expect("a sound disk");
        let removal = Command::Remove { tree: TreeId::DEFAULT, key: "other".into() };
        let short = engine.snapshot();
        insert(&engine, "other", "value").expect("a sound disk");
        assert_eq!(short.len(TreeId::DEFAULT).expect("a length"), 1);
        engine.execute(removal, Durability::Buffered).expect("a sound disk");
        assert_eq!(short.len(TreeId::DEFAULT).expect("a length"), 1);
        engine.check_invariants();
    }
    assert_eq!(long.len(TreeId::DEFAULT).expect("a length"), 1);
    let found = long.get(TreeId::DEFAULT, b"counter").expect("a sound disk");
    assert_eq!(found.expect("it is there").value, "first");
    let stats = engine.stats().expect("figures");
    assert!(stats.overlay_bytes < 4_000, "{stats:?}");
}

/// The B-tree's file fails, and the log does not.
#[test]
fn what_was_acknowledged_from_memory_is_in_the_log_when_a_checkpoint_fails() {
    let (disk, clock) = (SimulatedDisk::new(9), TestClock::new(1_000));
    let open = |disk: &SimulatedDisk| {
        let mut options = small_options(disk, &clock);
        options.background_threads = true;
        Engine::open(options).expect("a sound directory")
    };
    let engine = open(&disk);
    // More than is kept in memory.
    for number in 0..5_000u32 {
        insert(&engine, &number.to_be_bytes()[..], vec![7; 4_000]).expect("a sound disk");
    }
    engine.checkpoint().expect("a sound disk");
    drop(engine);
    let engine = open(&disk);
    let (path, bytes) = files(&disk, "tree.redb").remove(0);
    disk.make_unreadable(&path, 0..bytes.len() as u64);
    let (taken, failed) = std::thread::scope(|scope| {
        let engine = &engine;
        // Everywhere among those that are there.
        let key = |number: u32| [(number % 5_000).to_be_bytes(), number.to_be_bytes()].concat();
        let take = move |number: &u32| {
            // Without a look at the B-tree.
            let put = Command::Put { tree: TreeId::DEFAULT, key: key(*number).into(), value: "value".into() };
            engine.execute(put, Durability::Buffered).is_ok()
        };
        let before = engine.sequence();
        let writer = scope.spawn(move || (0..1_000_000).take_while(take).count());
        while engine.sequence() < before + 200 && !writer.is_finished() {
            std::thread::yield_now();
        }
        let failed = engine.checkpoint();
        (writer.join().expect("it does not panic"), failed)
    });
    failed.expect_err("what is to be changed cannot be read");
    let killed = disk.process_kill();
    drop(engine);
    let (path, bytes) = files(&killed, "tree.redb").remove(0);
    killed.set_content(&path, bytes);
    let engine = open(&killed);
    assert_eq!(engine.snapshot().len(TreeId::DEFAULT).expect("a length"), 5_000 + taken as u64);
}

/// The same few keys over and over: a long WAL, and little to fold.
#[test]
fn what_a_closed_database_takes_is_in_proportion_to_what_it_holds() {
    for threads in [false, true] {
        let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1_000));
        let options = || {
            let mut options = small_options(&disk, &clock);
            options.background_threads = threads;
            options.segment_size = 1 << 20;
            options.cache_capacity = 64 << 20;
            options
        };
        let engine = Engine::open(options()).expect("a new disk");
        for number in 0..20_000u32 {
            let key = (number % 100).to_be_bytes();
            insert(&engine, &key[..], vec![number as u8; 2000]).expect("a sound disk");
        }
        let before = disk.used();
        assert!(before > 30 << 20, "{before} bytes");
        engine.close().expect("a sound disk");
        drop(engine);
        assert!(disk.used() < 8 << 20, "{before} bytes became {}", disk.used());
        let engine = Engine::open(options()).expect("a sound disk");
        assert_eq!((engine.len(TreeId::DEFAULT).expect("a length"), engine.sequence()), (100, 20_000));
        for number in 19_900..20_000u32 {
            let found = engine.get(TreeId::DEFAULT, &(number % 100).to_be_bytes()).expect("sound");
            assert_eq!(found, Some(IVec::from(vec![number as u8; 2000])));
        }
    }
}

/// A log whose opening frame reads as never written is no new log.
#[test]
fn a_log_that_reads_as_never_begun_is_damage() {
    let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    insert_many(&engine, 0..3);
    drop(engine);
    let segments = files(&disk, "/wal/");
    assert_eq!(segments.len(), 1);
    let (path, mut bytes) = segments[0].clone();
    bytes[4096..].fill(0);
    disk.set_content(&path, bytes);
    assert!(matches!(open_small(&disk, &clock).map(drop), Err(Error::Corrupt(_))));
}

#[test]
fn a_scan_of_a_tree_that_was_dropped_says_so_once() {
    let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    let created = engine.execute(Command::CreateTree { name: "t".into() }, Durability::Buffered);
    let Ok(Reply::Tree { id, .. }) = created else { panic!("{created:?}") };
    for key in ["a", "b"] {
        let put = Command::Insert { tree: id, key: key.into(), value: "value".into() };
        engine.execute(put, Durability::Buffered).expect("a sound disk");
    }
    let before = engine.snapshot();
    engine.execute(Command::DropTree { name: "t".into() }, Durability::Buffered).expect("a sound disk");
    fn is_error<T>(entry: Option<dogsled_storage::Result<T>>) -> bool {
        matches!(entry, Some(Err(Error::TreeNotFound(_))))
    }
    let after = engine.snapshot();
    let empty = (Bound::Excluded(IVec::from("a")), Bound::Excluded(IVec::from("a")));
    for (low, high) in [(Bound::Unbounded, Bound::Unbounded), empty] {
        let mut scan = after.range(id, low.clone(), high.clone());
        assert!(is_error(scan.next()) && scan.next().is_none() && scan.next_back().is_none());
        let mut scan = after.range(id, low, high);
        assert!(is_error(scan.next_back()) && scan.next_back().is_none() && scan.next().is_none());
    }
    // Who looked before goes on to see it, checkpoint or not.
    assert_eq!(before.range(id, Bound::Unbounded, Bound::Unbounded).count(), 2);
    engine.checkpoint().expect("a sound disk");
    assert!(before.range(id, Bound::Unbounded, Bound::Unbounded).all(|entry| entry.is_ok()));
    // The database's own are there even before they are.
    assert_eq!(after.range(TreeId::SESSIONS, Bound::Unbounded, Bound::Unbounded).count(), 0);
}

#[test]
fn what_is_dropped_with_an_engine_is_dropped_while_the_directory_is_locked() {
    struct Looks(SimulatedDisk, std::sync::mpsc::Sender<bool>);
    impl Drop for Looks {
        fn drop(&mut self) {
            let lock = self.0.files().into_iter().find(|path| path.ends_with("LOCK")).expect("a lock file");
            self.1.send(self.0.lock(&lock).expect("a sound disk").is_none()).expect("the test listens");
        }
    }
    let (disk, clock) = (SimulatedDisk::new(1), TestClock::new(1_000));
    let engine = open_small(&disk, &clock).expect("a new disk");
    let (told, hears) = std::sync::mpsc::channel();
    engine.drop_under_lock(Looks(disk.clone(), told));
    let snapshot = engine.snapshot();
    drop(engine);
    assert!(hears.try_recv().is_err(), "a snapshot reads from the directory");
    drop(snapshot);
    assert_eq!(hears.try_recv(), Ok(true));
    assert!(open_small(&disk, &clock).is_ok());
}
