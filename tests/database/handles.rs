//! Handles keep a database open, and nothing else does; it is closed when the last drop returns.

use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use dogsled::{Batch, Config, Db, Durability, Error};

fn is_open_elsewhere(path: &Path) -> bool {
    match dogsled::open(path) {
        Ok(_) => false,
        Err(Error::InUse(in_use)) => {
            assert_eq!(in_use, path);
            true
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn the_drop_of_the_last_handle_releases_the_directory() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    // Often, because a lock that is released a little later is free most of the times, too.
    for round in 0..30u8 {
        let db = dogsled::open(&path).unwrap();
        assert_eq!(db.len(), usize::from(round));
        db.insert([round], "v").unwrap();
        assert!(is_open_elsewhere(&path));
        if round % 2 == 0 {
            let flushed = db.flush_async();
            drop(db);
            drop(flushed);
        } else {
            drop(db);
        }
        assert!(!is_open_elsewhere(&path));
    }
}

#[test]
fn every_kind_of_handle_keeps_the_database_open() {
    type Handle = Box<dyn std::any::Any>;
    type Make = fn(&Db) -> Handle;
    let kinds: [(&str, Make); 8] = [
        ("database", |db| Box::new(db.clone())),
        ("tree", |db| Box::new(db.open_tree("t").unwrap())),
        ("iterator", |db| Box::new(db.iter())),
        ("snapshot", |db| Box::new(db.snapshot())),
        ("changes", |db| Box::new(db.changes_since(0).unwrap())),
        ("counter", |db| Box::new(db.counter("c"))),
        ("lock guard", |db| Box::new(db.lock("l").acquire(Duration::from_secs(9)).unwrap())),
        ("typed tree", |db| Box::new(db.open_typed_tree::<u8, u8>("t").unwrap())),
    ];
    for (name, make) in kinds {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("db");
        let db = dogsled::open(&path).unwrap();
        db.insert("k", "v").unwrap();
        let handle = make(&db);
        drop(db);
        assert!(is_open_elsewhere(&path), "{name}");
        drop(handle);
        assert!(!is_open_elsewhere(&path), "{name}");
    }
}

#[test]
fn an_iterator_outlives_the_handles_it_came_from() {
    let db = Config::new().temporary(true).open().unwrap();
    for number in 0..1000u32 {
        db.insert(number.to_be_bytes(), "v").unwrap();
    }
    let mut iter = db.iter();
    assert!(iter.next().is_some());
    db.checkpoint().unwrap();
    drop(db);
    assert_eq!(iter.filter(Result::is_ok).count(), 999);
}

#[test]
fn a_subscriber_does_not_keep_the_database_open_and_ends_with_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let db = dogsled::open(&path).unwrap();
    let mut subscriber = db.watch_prefix("");
    db.insert("k", "v").unwrap();
    drop(db);
    assert!(!is_open_elsewhere(&path));
    assert_eq!(*subscriber.next().unwrap().key(), "k");
    assert_eq!(subscriber.next(), None);
}

#[test]
fn a_temporary_database_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let db = Config::new().temporary(true).path(&path).open().unwrap();
    db.insert("k", "v").unwrap();
    let tree = db.open_tree("t").unwrap();
    drop(db);
    assert!(path.exists());
    // One that cannot be opened is not deleted either.
    assert!(Config::new().temporary(true).path(&path).open().is_err());
    assert!(path.exists());
    drop(tree);
    assert!(!path.exists());
}

#[test]
fn a_database_that_exists_is_not_created_anew() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("db");
    let config = Config::new().path(&path).create_new(true);
    let db = config.open().unwrap();
    db.insert("k", "v").unwrap();
    drop(db);
    assert!(config.open().is_err());
    let db = config.create_new(false).open().unwrap();
    assert_eq!(db.get("k").unwrap().unwrap(), "v");
}

#[derive(Default)]
struct Count(AtomicUsize);

impl Wake for Count {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn flushing_as_a_future_needs_no_runtime() {
    let db = Config::new().temporary(true).flush_every_ms(None).open().unwrap();
    for round in 0..50u8 {
        db.insert([round], "v").unwrap();
        let sequence = db.sequence();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut flushed = pin!(db.flush_async());
        let mut polls = 0;
        while flushed.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
            polls += 1;
            while count.0.load(Ordering::SeqCst) < polls {
                std::thread::yield_now();
            }
        }
        assert!(db.durable_sequence() >= sequence);
    }
    // Dropped before it is done, and the database right after it.
    drop(db.flush_async());
}

#[test]
fn numbers_are_not_given_twice_across_restarts_and_threads() {
    let directory = tempfile::tempdir().unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let db = dogsled::open(directory.path().join("db")).unwrap();
        let largest = seen.last().copied();
        let given: Vec<u64> = std::thread::scope(|scope| {
            let give = || (0..1000).map(|_| db.generate_id().unwrap()).collect::<Vec<_>>();
            let threads = [scope.spawn(give), scope.spawn(give)];
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        for id in given {
            assert!(largest.is_none_or(|largest| id > largest));
            assert!(seen.insert(id), "{id} was given twice");
        }
    }
}

#[test]
fn synced_writes_are_durable_when_they_return_and_flush_makes_all_so() {
    let db = Config::new().temporary(true).flush_every_ms(None).open().unwrap();
    db.insert("a", "1").unwrap();
    assert!(db.durable_sequence() < db.sequence());
    assert!(db.flush().unwrap() > 0);
    assert_eq!(db.flush().unwrap(), 0);
    assert_eq!(db.durable_sequence(), db.sequence());
    db.insert_with("b", "2", Durability::Synced).unwrap();
    assert_eq!(db.durable_sequence(), db.sequence());
    db.insert("c", "3").unwrap();
    let mut batch = Batch::default();
    batch.insert("d", "4");
    db.apply_batch_with(batch, Durability::Synced).unwrap();
    // What came before is durable with it.
    assert_eq!(db.durable_sequence(), db.sequence());
}

#[test]
fn what_is_over_a_limit_is_refused_and_changes_nothing() {
    let db = Config::new().temporary(true).open().unwrap();
    let refused = |result: dogsled::Result<()>| match result {
        Err(Error::Unsupported(why)) => assert!(why.contains("over the limit"), "{why}"),
        other => panic!("{other:?}"),
    };
    let long = vec![7; (64 << 10) + 1];
    refused(db.insert(&long, "v").map(drop));
    refused(db.open_tree(&long).map(drop));
    refused(db.counter(&long).add(1).map(drop));
    let mut batch = Batch::default();
    batch.insert("fine", "v");
    batch.insert(&long[..], "v");
    refused(db.apply_batch(batch));
    assert!(db.is_empty());
    db.insert(&long[1..], "v").unwrap();
    assert_eq!(db.get(&long[1..]).unwrap().unwrap(), "v");
}

#[test]
fn many_threads_may_open_and_drop_the_same_tree() {
    let db = Config::new().temporary(true).open().unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let tree = db.open_tree("contended").unwrap();
                    match tree.insert("k", "v") {
                        Ok(_) | Err(Error::CollectionNotFound(_)) => {}
                        Err(other) => panic!("{other}"),
                    }
                    db.drop_tree("contended").unwrap();
                }
            });
        }
    });
    let tree = db.open_tree("contended").unwrap();
    assert!(tree.is_empty());
    tree.insert("k", "v").unwrap();
    assert_eq!(db.open_tree("contended").unwrap().len(), 1);
}
