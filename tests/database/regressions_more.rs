//! More that once went wrong: with clocks, numbers, locks in transactions, and strangers' closures.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled::storage::Clock;
use dogsled::transaction::{TransactionError, TransactionResult, abort};
use dogsled::{Config, Db, Error, Instance, Pick, Ttl, TypedTree};

const LEASE: Duration = Duration::from_secs(60);

fn temporary() -> Db {
    Config::new().temporary(true).open().unwrap()
}

/// Shows what it was set to, and what has passed since.
#[derive(Debug)]
struct Shifted {
    shows_ms: AtomicU64,
    made: Instant,
}

impl Shifted {
    fn at(shows_ms: u64) -> Arc<Shifted> {
        Arc::new(Shifted { shows_ms: shows_ms.into(), made: Instant::now() })
    }
}

impl Clock for Shifted {
    fn now_ms(&self) -> u64 {
        self.shows_ms.load(Ordering::SeqCst) + self.elapsed_ms()
    }

    fn elapsed_ms(&self) -> u64 {
        self.made.elapsed().as_millis() as u64
    }
}

#[test]
fn a_time_to_live_ends_in_time_though_the_clock_is_behind_that_of_the_process_before() {
    let directory = tempfile::tempdir().unwrap();
    let open = |shows_ms| Config::new().path(directory.path()).clock(Shifted::at(shows_ms)).open().unwrap();
    let (hour, now) = (3_600_000, 1_700_000_000_000);
    let db = open(now + hour);
    db.insert("before", "v").unwrap();
    drop(db);
    // The clock was an hour ahead, and is right now.
    let db = open(now);
    db.insert_with_ttl("k", "v", Duration::from_millis(1_000)).unwrap();
    assert!(matches!(db.ttl("k").unwrap(), Ttl::In(left) if left <= Duration::from_millis(1_000)));
    std::thread::sleep(Duration::from_millis(1_100));
    assert_eq!(db.get("k").unwrap(), None);
    assert_eq!(db.ttl("k").unwrap(), Ttl::NoKey);
    let runs = Cell::new(0);
    let done: TransactionResult<()> = db.transaction(|tree| {
        runs.set(runs.get() + 1);
        assert!(runs.get() < 5, "it is never committed");
        assert_eq!(tree.get("k")?, None);
        tree.insert("x", "")?;
        Ok(())
    });
    done.unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while db.len() > 2 {
        assert!(Instant::now() < until, "it is not removed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_numbered_key_overwrites_none_that_came_after_its_number_was_written_down() {
    let db = temporary();
    assert_eq!(db.insert_next("job-", "a").unwrap(), "job-00000000000000000000");
    let old = temporary();
    for number in 1..10u32 {
        old.insert(format!("job-{number:020}"), "imported").unwrap();
    }
    db.try_import(old.export()).unwrap();
    assert_eq!(db.insert_next("job-", "b").unwrap(), "job-00000000000000000010");
    assert_eq!(db.get("job-00000000000000000001").unwrap().unwrap(), "imported");
    db.insert("job-00000000000000000011", "plain").unwrap();
    db.insert("job-00000000000000000012-and-more", "plain").unwrap();
    let key = db.transaction(|tree| Ok::<_, _>(tree.insert_next("job-", "c")?));
    assert_eq!(key.map_err(|_: TransactionError| ()).unwrap(), "job-00000000000000000012");
    assert_eq!(db.get("job-00000000000000000011").unwrap().unwrap(), "plain");
}

#[test]
fn a_transaction_takes_a_lock_whose_holder_is_gone_and_gives_it_back() {
    let db = temporary();
    db.lock("l").acquire(Duration::from_millis(10)).unwrap().keep();
    std::thread::sleep(Duration::from_millis(30));
    let runs = Cell::new(0);
    let done: TransactionResult<()> = db
        .transaction(|tree| {
            runs.set(runs.get() + 1);
            assert!(runs.get() < 5, "it is never committed");
            let lock = tree.lock("l");
            assert!(lock.try_acquire("me", LEASE)?);
            let holder = lock.holder()?.expect("it is held here");
            assert!(lock.is_held("me", holder.token)?);
            if !lock.release("me", holder.token)? {
                return abort(());
            }
            tree.insert("x", "")?;
            Ok(())
        })
        .map_err(|error: TransactionError<()>| panic!("{error:?}"));
    done.unwrap();
    // And one that it keeps has a token that is behind all others.
    let before = db.lock("m").acquire(Duration::from_millis(10)).unwrap();
    let token = before.token();
    before.keep();
    std::thread::sleep(Duration::from_millis(30));
    let taken: TransactionResult<bool> =
        db.transaction(|tree| Ok(tree.lock("m").try_acquire("me", LEASE)?));
    assert!(taken.unwrap());
    let guard = db.lock("m").owner("me").resume().unwrap().expect("it is held");
    assert!(guard.token() > token && guard.token().0 == db.sequence(), "{:?} {token:?}", guard.token());
}

#[test]
fn who_picks_an_instance_may_ask_for_others() {
    let db = temporary();
    let session = db.session(LEASE).unwrap();
    let registry = db.registry("search").unwrap();
    for id in ["a", "b"] {
        registry.register(&session, &Instance::new(id, "127.0.0.1:1")).unwrap();
    }
    let resolver = registry.follow().unwrap();
    let picked = resolver.pick_where(Pick::Random, |instance| {
        resolver.instances().len() == 2 && resolver.pick(Pick::RoundRobin).is_some() && instance.id == "b"
    });
    assert_eq!(picked.unwrap().id, "b");
}

#[test]
fn a_key_of_two_sessions_is_left_behind_with_the_later_one_whatever_their_numbers() {
    for _ in 0..16 {
        let db = temporary();
        let (before, after) = (db.session(LEASE).unwrap(), db.session(LEASE).unwrap());
        before.insert(&db, "instance", "here").unwrap();
        after.insert(&db, "instance", "here again").unwrap();
        db.insert("plain", "v").unwrap();
        let copy = temporary();
        copy.import(db.export());
        assert_eq!((copy.get("instance").unwrap(), copy.len()), (None, 1));
    }
}

#[test]
fn what_is_popped_in_a_transaction_is_seen_by_what_follows_and_by_who_writes_meanwhile() {
    let db = temporary();
    for number in 0..2_000u32 {
        db.insert(number.to_be_bytes(), "v").unwrap();
    }
    let runs = Cell::new(0);
    let popped: TransactionResult<Vec<u32>> = db.transaction(|tree| {
        runs.set(runs.get() + 1);
        let mut popped = Vec::new();
        let number = |key: dogsled::IVec| u32::from_be_bytes(key[..].try_into().unwrap());
        for _ in 0..500 {
            popped.push(number(tree.pop_min()?.unwrap().0));
        }
        // What is put where everything was popped is there.
        tree.insert(7u32.to_be_bytes(), "again")?;
        popped.push(number(tree.pop_min()?.unwrap().0));
        if runs.get() == 1 {
            // Among what was popped: it was read, and has changed.
            db.insert(9u32.to_be_bytes(), "changed").unwrap();
        }
        while let Some((key, _)) = tree.pop_max()? {
            popped.push(number(key));
        }
        assert!(tree.is_empty()? && tree.pop_min()?.is_none());
        Ok(popped)
    });
    let mut popped = popped.unwrap();
    assert_eq!(runs.get(), 2);
    assert_eq!(popped[500], 7);
    popped.remove(500);
    popped.sort_unstable();
    assert!(popped.into_iter().eq(0..2_000));
    assert!(db.is_empty());
}

#[test]
fn a_value_is_computed_under_a_key_as_long_as_keys_may_be_and_apart_from_that_of_other_trees() {
    let db = temporary();
    let other = db.open_tree("other").unwrap();
    for length in [4_070, 4_090, 5_000, 64 << 10] {
        let key = vec![b'k'; length];
        let made = db.get_or_compute(&key, LEASE, LEASE, || {
            other.get_or_compute(&key, LEASE, LEASE, || Ok::<_, Error>("inner"))
        });
        assert_eq!(made.unwrap(), "inner");
    }
}

#[test]
fn a_lease_that_is_renewed_at_the_last_moment_is_not_lost() {
    let db = temporary();
    let length = Duration::from_millis(900);
    let guard = db.lock("l").without_renewal().acquire(length).unwrap();
    assert!(guard.wait_until_lost_for(Duration::from_secs(5)), "nobody renews it");
    if guard.renew(LEASE).unwrap().is_err() {
        // This machine was too slow for that.
        return;
    }
    assert!(guard.is_valid());
    assert!(!guard.wait_until_lost_for(Duration::ZERO));
}

#[test]
fn a_snapshot_is_empty_when_all_that_is_in_it_is_over() {
    let db = temporary();
    let tree = db.open_tree("t").unwrap();
    let held = db.snapshot();
    tree.insert_with_ttl("k", "v", Duration::from_millis(1)).unwrap();
    let snapshot = db.snapshot();
    std::thread::sleep(Duration::from_millis(20));
    let later = db.snapshot();
    assert!(held.is_empty(&tree).unwrap() && later.is_empty(&tree).unwrap());
    assert_eq!(snapshot.is_empty(&tree).unwrap(), snapshot.iter(&tree).next().is_none());
}

#[test]
fn a_value_of_many_small_numbers_can_be_read_back() {
    let db = temporary();
    let tree: TypedTree<u32, Vec<u64>> = db.open_typed_tree("numbers").unwrap();
    let numbers = vec![1u64; 70_000_000];
    tree.insert(&1, &numbers).unwrap();
    assert!(tree.get(&1).unwrap().unwrap() == numbers);
}
