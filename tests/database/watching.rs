//! Subscribers, snapshots and changes together tell the whole history, and stop nobody.

#![allow(clippy::unit_arg, reason = "`Ok(drop(…?))` is the shortest closure that only writes")]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::time::{Duration, Instant};

use dogsled::transaction::{TransactionResult, Transactional};
use dogsled::{Batch, Change, Config, Db, Error, Event};

fn open() -> Db {
    Config::new().temporary(true).open().unwrap()
}

fn insert(key: &str, value: &str) -> Event {
    Event::Insert { key: key.into(), value: value.into() }
}

#[test]
fn every_way_of_writing_is_seen() {
    let db = open();
    let mut subscriber = db.watch_prefix("k");
    db.insert("k1", "a").unwrap();
    db.insert("other", "a").unwrap();
    db.remove("k1").unwrap();
    db.remove("k1").unwrap(); // changes nothing
    db.compare_and_swap("k2", None::<&str>, Some("b")).unwrap().unwrap();
    db.compare_and_swap("k2", None::<&str>, Some("c")).unwrap().unwrap_err();
    db.update_and_fetch("k2", |_| Some("d")).unwrap();
    let mut batch = Batch::default();
    batch.insert("k4", "f");
    batch.insert("k3", "e");
    db.apply_batch(batch).unwrap();
    let batch_sequence = db.sequence();
    let result: TransactionResult<()> = db.transaction(|tree| Ok(drop(tree.remove("k3")?)));
    result.unwrap();
    db.pop_min().unwrap();
    db.clear().unwrap();

    let mut seen = vec![];
    while let Some(event) = subscriber.try_next() {
        seen.push((event, subscriber.sequence()));
    }
    let events: Vec<Event> = seen.iter().map(|(event, _)| event.clone()).collect();
    let expected = [
        insert("k1", "a"),
        Event::Remove { key: "k1".into() },
        insert("k2", "b"),
        insert("k2", "d"),
        insert("k3", "e"),
        insert("k4", "f"),
        Event::Remove { key: "k3".into() },
        Event::Remove { key: "k2".into() },
        Event::Clear,
    ];
    assert_eq!(events, expected);
    assert!(seen.is_sorted_by_key(|(_, sequence)| *sequence));
    assert_eq!((seen[4].1, seen[5].1), (batch_sequence, batch_sequence));
}

#[test]
fn a_slow_subscriber_stops_no_writer_and_is_told_what_it_lost() {
    let db = open();
    let mut slow = db.watch_prefix_with("", 10);
    let began = Instant::now();
    for number in 0..5_000u32 {
        db.insert(number.to_be_bytes(), "v").unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(60));
    let first: Vec<Event> = slow.by_ref().take(10).collect();
    assert!(first.iter().all(|event| matches!(event, Event::Insert { .. })));
    assert_eq!(slow.next(), Some(Event::Overflowed { lost: 4_990 }));
    assert_eq!(slow.sequence(), db.sequence());
    db.insert("after", "v").unwrap();
    assert_eq!(slow.next(), Some(insert("after", "v")));
    assert_eq!(slow.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
}

#[test]
fn dropping_the_tree_ends_its_subscribers() {
    let db = open();
    let tree = db.open_tree("t").unwrap();
    let mut subscriber = tree.watch_prefix("");
    let mut other = db.watch_prefix("");
    tree.insert("k", "v").unwrap();
    db.drop_tree("t").unwrap();
    assert_eq!(subscriber.next(), Some(insert("k", "v")));
    assert_eq!(subscriber.next(), None);
    assert_eq!(other.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
}

#[test]
fn a_snapshot_and_the_events_after_it_have_no_gap_and_no_overlap() {
    let db = open();
    /// Also of a test that fails: the scope waits for the writer.
    struct Over<'a>(&'a AtomicBool);
    impl Drop for Over<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let is_over = AtomicBool::new(false);
    let seen = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let over = Over(&is_over);
        let writer = scope.spawn(|| {
            for number in (0u32..).take_while(|_| !is_over.load(Ordering::Relaxed)) {
                // Not so far ahead that a subscriber who is kept waiting falls off.
                while db.sequence() > seen.load(Ordering::Relaxed) + 10_000
                    && !is_over.load(Ordering::Relaxed)
                {
                    std::thread::sleep(Duration::from_millis(1));
                }
                db.insert((number % 100).to_be_bytes(), number.to_be_bytes()).unwrap();
                if number % 256 == 0 {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        });
        for _ in 0..50 {
            let (snapshot, mut subscriber) = db.snapshot_and_watch("");
            let mut known: BTreeMap<_, _> = snapshot.iter(&db).collect::<Result<_, _>>().unwrap();
            let first = snapshot.sequence() + 1;
            seen.store(first, Ordering::Relaxed);
            // Each write sets the next number: a gap or an overlap would show.
            let mut last =
                known.values().max().map(|value| u32::from_be_bytes(value[..].try_into().unwrap()));
            for sequence in first..first + 50 {
                let event = subscriber.next_timeout(Duration::from_secs(20)).unwrap();
                let Event::Insert { key, value } = event else { panic!("{event:?}") };
                assert_eq!(subscriber.sequence(), sequence);
                seen.store(sequence, Ordering::Relaxed);
                let number = u32::from_be_bytes(value[..].try_into().unwrap());
                assert_eq!(number, last.map_or(0, |last| last + 1));
                last = Some(number);
                known.insert(key, value);
            }
        }
        drop(over);
        writer.join().unwrap();
    });
}

#[test]
fn a_copy_that_follows_the_changes_is_the_same() {
    let db = Config::new().temporary(true).retain_changes_bytes(1 << 30).open().unwrap();
    let (a, b) = (db.open_tree("a").unwrap(), db.open_tree("b").unwrap());
    a.insert("before", "1").unwrap();
    let snapshot = db.snapshot();
    let copy = open();
    copy.import(db.export());
    let mut sequence = snapshot.sequence();

    let follow = |sequence: &mut u64| {
        for commit in db.changes_since(*sequence).unwrap() {
            let commit = commit.unwrap();
            assert!(commit.sequence > *sequence);
            *sequence = commit.sequence;
            for change in commit.changes {
                match change {
                    Change::Insert { tree, key, value } => {
                        copy.open_tree(tree).unwrap().insert(key, value).map(drop).unwrap()
                    }
                    Change::Remove { tree, key } => {
                        copy.open_tree(tree).unwrap().remove(key).map(drop).unwrap()
                    }
                    Change::Clear { tree } => copy.open_tree(tree).unwrap().clear().unwrap(),
                    Change::CreateTree { tree } => copy.open_tree(tree).map(drop).unwrap(),
                    Change::DropTree { tree } => copy.drop_tree(tree).map(drop).unwrap(),
                    other => panic!("{other:?}"),
                }
            }
        }
    };
    for round in 0..10u8 {
        let result: TransactionResult<()> = (&a, &b).transaction(|(a, b)| {
            a.insert(vec![round], "x")?;
            b.insert(vec![round], "y")?;
            a.counter("rounds").add(1)?;
            a.counter("gone again").reset()?;
            a.counter("gone again").add(i64::from(round % 2))?;
            Ok(())
        });
        result.unwrap();
        match round {
            2 => a.clear().unwrap(),
            3 => drop(db.drop_tree("c").unwrap()),
            4 => drop(db.open_tree("c").unwrap().insert("k", "v").unwrap()),
            5 => db.checkpoint().unwrap(),
            6 => drop(b.remove([1]).unwrap()),
            7 => drop(db.drop_tree("c").unwrap()),
            _ => {}
        }
        if round % 2 == 1 {
            follow(&mut sequence);
            assert_eq!(copy.checksum().unwrap(), db.checksum().unwrap(), "after round {round}");
        }
    }
    assert_eq!(copy.counter("rounds").get().unwrap(), 10);
    assert_eq!(db.changes_since(sequence).unwrap().count(), 0);
}

#[test]
fn changes_that_are_no_longer_kept_are_reported_as_such() {
    let db = open();
    db.insert("k", "1").unwrap();
    db.checkpoint().unwrap();
    db.insert("k", "2").unwrap();
    match db.changes_since(0) {
        Err(Error::Compacted { oldest }) => assert!(oldest > 1),
        Ok(changes) => {
            // Kept longer than it has to be.
            assert_eq!(changes.filter(|commit| commit.is_ok()).count(), 2);
        }
        Err(other) => panic!("{other}"),
    }
    assert!(matches!(db.changes_since(99), Err(Error::Unsupported(_))));
}

#[test]
fn a_snapshot_stays_as_it_was() {
    let db = open();
    let (a, b) = (db.open_tree("a").unwrap(), db.open_tree("b").unwrap());
    for number in 0..500u32 {
        a.insert(number.to_be_bytes(), "old").unwrap();
    }
    let snapshot = db.snapshot();
    let checksum = a.checksum().unwrap();
    for number in 0..1000u32 {
        a.insert(number.to_be_bytes(), "new").unwrap();
        b.insert(number.to_be_bytes(), "new").unwrap();
        if number % 300 == 0 {
            db.checkpoint().unwrap();
        }
    }
    db.drop_tree("b").unwrap();
    a.clear().unwrap();
    db.checkpoint().unwrap();

    assert_eq!(snapshot.len(&a).unwrap(), 500);
    assert_eq!(snapshot.len(&b).unwrap(), 0);
    assert!(snapshot.iter(&a).all(|entry| entry.unwrap().1 == "old"));
    assert_eq!(snapshot.get(&a, 7u32.to_be_bytes()).unwrap().unwrap(), "old");
    assert_eq!(snapshot.range(&a, 490u32.to_be_bytes()..).rev().count(), 10);
    assert_eq!(snapshot.tree_names(), ["__sled__default", "a", "b"]);
    let again = open();
    let copy = again.open_tree("a").unwrap();
    for entry in snapshot.iter(&a) {
        let (key, value) = entry.unwrap();
        copy.insert(key, value).unwrap();
    }
    assert_eq!(copy.checksum().unwrap(), checksum);
    assert!(matches!(snapshot.get(&again, "k"), Err(Error::Unsupported(_))), "of another database");
    assert!(matches!(snapshot.get(&db.open_tree("later").unwrap(), "k"), Err(Error::CollectionNotFound(_))));
}

#[test]
fn who_comes_back_is_told_everything_since_once_in_order() {
    let directory = tempfile::tempdir().unwrap();
    let config = Config::new().path(directory.path()).retain_changes_bytes(1 << 20);
    let db = config.open().unwrap();
    let tree = db.open_tree("followed").unwrap();
    let write = |tree: &dogsled::Tree, i: u32| {
        tree.insert(format!("k{i:04}"), "v").unwrap();
        tree.insert("other", i.to_string().as_str()).unwrap();
    };
    (0..100).for_each(|i| write(&tree, i));
    let seen = db.sequence();
    (100..200).for_each(|i| write(&tree, i));
    drop((tree, db));
    let db = config.open().unwrap();
    let tree = db.open_tree("followed").unwrap();
    db.insert("k9999", "in another tree").unwrap();
    (200..300).for_each(|i| write(&tree, i));
    db.checkpoint().unwrap();
    let mut subscriber = tree.watch_prefix_after("k", seen).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| (300..400).for_each(|i| write(&tree, i)));
        let mut sequence = seen;
        for i in 100..400 {
            assert_eq!(subscriber.next().unwrap(), insert(&format!("k{i:04}"), "v"));
            assert!(subscriber.sequence() > sequence, "commit after commit");
            sequence = subscriber.sequence();
        }
    });
    assert!(subscriber.try_next().is_none());
    let future = tree.watch_prefix_after("k", db.sequence() + 1);
    assert!(matches!(future, Err(Error::Unsupported(_))), "{future:?}");
}

#[test]
fn who_comes_back_too_late_is_told_so() {
    let db = open();
    db.insert("a", "1").unwrap();
    let seen = db.sequence();
    let mut early = db.watch_prefix_after("", seen).unwrap();
    for i in 0..10 {
        db.insert("a", i.to_string().as_str()).unwrap();
    }
    let mut behind = db.watch_prefix_after("", seen).unwrap();
    db.checkpoint().unwrap();
    assert!(matches!(db.watch_prefix_after("", seen), Err(Error::Compacted { .. })));
    db.insert("a", "last").unwrap();
    // Who has begun before and reads now gets what was queued, or hears that it is gone.
    assert_eq!(early.try_next().unwrap(), insert("a", "0"));
    assert_eq!(behind.try_next().unwrap(), Event::Compacted { from: seen + 11 });
    assert_eq!(behind.try_next().unwrap(), insert("a", "last"));
    assert!(behind.try_next().is_none());
}
