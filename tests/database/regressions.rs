//! Each of these once went wrong.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::task::{Context, Wake, Waker};
use std::time::Duration;

use dogsled::transaction::{ConflictableTransactionError, TransactionError};
use dogsled::{Config, Db, Error, Tree};
use parking_lot::Mutex;

fn temporary() -> Db {
    Config::new().temporary(true).open().unwrap()
}

#[test]
fn locks_stay_behind_when_data_moves_and_work_there() {
    let old = temporary();
    let plain = temporary();
    for number in 0..100u32 {
        old.insert(number.to_be_bytes(), "v").unwrap();
        plain.insert(number.to_be_bytes(), "v").unwrap();
    }
    old.counter("c").add(3).unwrap();
    plain.counter("c").add(3).unwrap();
    old.lock("l").acquire(Duration::from_secs(3600)).unwrap().keep();
    assert_eq!(old.checksum().unwrap(), plain.checksum().unwrap());

    let new = temporary();
    new.import(old.export());
    assert_eq!(new.checksum().unwrap(), old.checksum().unwrap());
    assert_eq!(new.counter("c").get().unwrap(), 3);
    assert!(new.lock("l").try_acquire(Duration::from_secs(1)).unwrap().is_some());

    // As exported by those who did take them along.
    let item = vec![b"m".to_vec(), vec![0; 40]];
    let export = vec![(b"tree".to_vec(), b"__dogsled__locks".to_vec(), vec![item].into_iter())];
    new.try_import(export).unwrap();
    assert!(new.lock("m").try_acquire(Duration::from_secs(1)).unwrap().is_some());
}

#[test]
fn grants_are_not_written_directly() {
    let db = temporary();
    let locks = db.open_tree("__dogsled__locks").unwrap();
    assert!(matches!(locks.insert("l", "x"), Err(Error::Unsupported(_))));
    assert!(matches!(locks.clear(), Err(Error::Unsupported(_))));
    let result = locks.transaction(|tree| {
        tree.insert("l", "x")?;
        Ok::<_, ConflictableTransactionError<()>>(())
    });
    assert!(matches!(result, Err(TransactionError::Storage(Error::Unsupported(_)))), "{result:?}");
    assert!(db.lock("l").try_acquire(Duration::from_secs(1)).unwrap().is_some());
}

struct Panics(Mutex<Sender<()>>);

impl Wake for Panics {
    fn wake(self: Arc<Self>) {
        self.0.lock().send(()).unwrap();
        panic!("a waker of a test");
    }
}

#[test]
fn a_waker_that_panics_does_not_end_flushing() {
    let db = temporary();
    let (sender, woken) = channel();
    let waker = Waker::from(Arc::new(Panics(Mutex::new(sender))));
    let mut rounds = 0;
    // Until a flush was polled before it was done.
    while woken.try_recv().is_err() {
        db.insert("k", [0; 100]).unwrap();
        let pending = {
            let mut flushed = pin!(db.flush_async());
            flushed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending()
        };
        if pending {
            woken.recv_timeout(Duration::from_secs(20)).unwrap();
            break;
        }
        rounds += 1;
        assert!(rounds < 100_000, "no flush ever took time");
    }
    std::thread::sleep(Duration::from_millis(50));
    let (sender, woken) = channel();
    struct Tells(Mutex<Sender<()>>);
    impl Wake for Tells {
        fn wake(self: Arc<Self>) {
            self.0.lock().send(()).unwrap();
        }
    }
    let waker = Waker::from(Arc::new(Tells(Mutex::new(sender))));
    let mut flushed = pin!(db.flush_async());
    if flushed.as_mut().poll(&mut Context::from_waker(&waker)).is_pending() {
        woken.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

/// Set for the process that works in several directories.
const ELSEWHERE: &str = "DOGSLED_TEST_ELSEWHERE";

#[test]
fn a_database_with_a_relative_path_stays_where_it_was_opened() {
    if let Some(place) = std::env::var_os(ELSEWHERE) {
        return work_in_two_directories(std::path::Path::new(&place));
    }
    // The directory that a process works in is that of all of its threads, other tests among them.
    let place = tempfile::tempdir().unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args([
            "regressions::a_database_with_a_relative_path_stays_where_it_was_opened",
            "--exact",
            "--nocapture",
        ])
        .env(ELSEWHERE, place.path())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for name in ["one", "two"] {
        let path = place.path().join(name).join("db");
        let db = dogsled::open(&path).unwrap();
        assert!(db.verify().unwrap().is_sound());
        assert_eq!(db.len(), 400, "{name}");
        assert!(db.iter().all(|entry| entry.unwrap().1.starts_with(name.as_bytes())), "{name}");
    }
    assert!(!place.path().join("one/passing").exists(), "it was temporary");
    assert!(place.path().join("two/passing/mine").exists());
}

fn work_in_two_directories(place: &std::path::Path) {
    let open = || Config::new().path("db").segment_size(1 << 20).flush_every_ms(None).open().unwrap();
    let work_in = |name: &str| {
        let directory = place.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        std::env::set_current_dir(directory).unwrap();
    };
    work_in("one");
    let one = open();
    let passing = Config::new().path("passing").temporary(true).open().unwrap();
    work_in("two");
    let two = open();
    std::fs::create_dir("passing").unwrap();
    std::fs::write("passing/mine", "kept").unwrap();
    drop(passing);
    // Several segments of each, made, filled and used again.
    let mut random = 1_u64;
    for number in 0..400_u32 {
        for (name, db) in [("one", &one), ("two", &two)] {
            let mut value = name.as_bytes().to_vec();
            value.extend((0..8_000).map(|_| {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (random >> 56) as u8
            }));
            db.insert(number.to_be_bytes(), [value, vec![b'.'; 30_000]].concat()).unwrap();
            if number % 10 == 0 {
                db.flush().unwrap();
            }
        }
    }
}

#[test]
fn a_waker_may_open_the_tree_whose_drop_wakes_it() {
    struct Opens(Mutex<Option<Db>>, Mutex<Sender<Tree>>);
    impl Wake for Opens {
        fn wake(self: Arc<Self>) {
            let Some(db) = self.0.lock().take() else { return };
            self.1.lock().send(db.open_tree("t").unwrap()).unwrap();
        }
    }
    let db = temporary();
    let old = db.open_tree("t").unwrap();
    let (sender, opened) = channel();
    let waker = Waker::from(Arc::new(Opens(Mutex::new(Some(db.clone())), Mutex::new(sender))));
    let mut subscriber = pin!(old.watch_prefix(""));
    assert!(subscriber.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
    let dropping = std::thread::spawn({
        let db = db.clone();
        move || db.drop_tree("t").unwrap()
    });
    let new = opened.recv_timeout(Duration::from_secs(20)).expect("opening does not wait for the drop");
    assert!(dropping.join().unwrap());
    assert!(matches!(old.insert("k", "v"), Err(Error::CollectionNotFound(_))));
    new.insert("k", "v").unwrap();
    // The drop has not made it forget what the handles of the new one share.
    new.set_merge_operator(|_: &[u8], _: Option<&[u8]>, _: &[u8]| Some(b"merged".to_vec()));
    assert_eq!(db.open_tree("t").unwrap().merge("k", "x").unwrap().unwrap(), "merged");
}

#[test]
fn handles_of_a_tree_share_what_they_share_whoever_drops_it_meanwhile() {
    let db = temporary();
    let stop = &std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            let db = db.clone();
            scope.spawn(move || {
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    db.drop_tree("t").unwrap();
                }
            });
        }
        for round in 0..500u32 {
            let tree = db.open_tree("t").unwrap();
            tree.set_merge_operator(|_: &[u8], _: Option<&[u8]>, _: &[u8]| Some(b"merged".to_vec()));
            match db.open_tree("t").unwrap().merge("k", round.to_be_bytes()) {
                Ok(merged) => assert_eq!(merged.unwrap(), "merged"),
                Err(Error::CollectionNotFound(_)) => {}
                // Another tree of that name: nobody has set its operator.
                Err(Error::Unsupported(_)) => assert!(tree.insert("k", "v").is_err()),
                Err(other) => panic!("{other}"),
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    let tree = db.open_tree("t").unwrap();
    tree.insert("k", "v").unwrap();
}

#[test]
fn a_temporary_database_takes_no_files_of_the_one_that_is_opened_next() {
    let directory = tempfile::tempdir().unwrap();
    for round in 0..40 {
        let path = directory.path().join(format!("{round}"));
        let temporary = Config::new().path(&path).temporary(true).open().unwrap();
        temporary.insert("k", "temporary").unwrap();
        let opening = std::thread::spawn({
            let path = path.clone();
            move || {
                loop {
                    // In use, or half deleted: until neither.
                    if let Ok(db) = dogsled::open(&path) {
                        break db;
                    }
                }
            }
        });
        drop(temporary);
        let db = opening.join().unwrap();
        assert!(db.is_empty(), "round {round}");
        db.insert("k", "v").unwrap();
        drop(db);
        assert_eq!(dogsled::open(&path).unwrap().get("k").unwrap().unwrap(), "v", "round {round}");
    }
}
