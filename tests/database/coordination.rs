//! Fenced writes, times to live and shared locks of the embedded database, as an application sees them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dogsled::transaction::{TransactionError, TransactionResult, Transactional};
use dogsled::{Batch, Compare, Config, Db, Error, FencingToken, Ttl};

const LEASE: Duration = Duration::from_secs(30);

fn open() -> Db {
    Config::new().temporary(true).open().unwrap()
}

#[test]
fn every_way_to_write_is_refused_once_the_lock_is_lost() {
    let db = open();
    let (first, second) = (db.open_tree("first").unwrap(), db.open_tree("second").unwrap());
    let guard = db.lock("printer").acquire(LEASE).unwrap();
    let token = guard.token();
    let (under, other) = (first.under(&guard), second.under(&guard));
    let counter = db.counter("pages").under(&guard);
    let mut batch = Batch::default();
    batch.insert("b", "1");
    let write_all = || -> Vec<Result<(), Error>> {
        let transaction: TransactionResult<()> = (&first, &other).transaction(|(first, other)| {
            first.insert("t", "1")?;
            other.insert("t", "1")?;
            Ok(())
        });
        let transaction = transaction.map_err(|error| match error {
            TransactionError::Storage(error) => error,
            TransactionError::Abort(()) => unreachable!("nothing aborts"),
        });
        vec![
            under.insert("a", "1").map(drop),
            under.put("a", "2"),
            under.compare_and_swap("a", Some("2"), Some("3")).map(drop),
            under.update_and_fetch("a", |_| Some("4")).map(drop),
            under.apply_batch(batch.clone()),
            under.insert_with_ttl("c", "1", LEASE).map(drop),
            under.expire("c", LEASE).map(drop),
            under.insert_next("n", "1").map(drop),
            counter.add(1).map(drop),
            transaction,
            under.remove("b").map(drop),
        ]
    };
    for (number, result) in write_all().into_iter().enumerate() {
        assert_eq!(result, Ok(()), "write {number}");
    }
    guard.release().unwrap().unwrap();
    let next = db.lock("printer").acquire(LEASE).unwrap();
    let (before, counted) = (first.checksum().unwrap(), counter.get().unwrap());
    let refused = Error::LockNotHeld { lock: "printer".into(), token, current: Some(next.token()) };
    for (number, result) in write_all().into_iter().enumerate() {
        assert_eq!(result, Err(refused.clone()), "write {number}");
    }
    assert_eq!((first.checksum().unwrap(), counter.get().unwrap()), (before, counted));
    assert_eq!(under.get("a").unwrap().unwrap(), "4", "reading goes on");
    assert!(next.token() > token && token > FencingToken::PENDING && next.is_valid());
}

#[test]
fn an_export_carries_times_to_live_into_another_database() {
    let db = open();
    let users = db.open_tree("users").unwrap();
    users.insert("for good", "1").unwrap();
    users.insert_with_ttl("for a while", "2", LEASE).unwrap();
    users.insert_with_ttl("rewritten", "3", LEASE).unwrap();
    users.insert("rewritten", "4").unwrap();
    let ttl = Duration::from_secs(4);
    db.insert_with_ttl("soon", "5", ttl).unwrap();
    let names: Vec<_> = db.tree_names();
    assert_eq!(names.len(), 2, "the tree of times to live is not shown: {names:?}");
    let copy = open();
    copy.import(db.export());
    let users = copy.open_tree("users").unwrap();
    assert_eq!(users.ttl("for good").unwrap(), Ttl::Forever);
    assert_eq!(users.ttl("rewritten").unwrap(), Ttl::Forever);
    assert!(matches!(users.ttl("for a while").unwrap(), Ttl::In(left) if left <= LEASE));
    assert_eq!(copy.checksum().unwrap(), db.checksum().unwrap());
    std::thread::sleep(ttl + Duration::from_millis(100));
    assert_eq!((db.get("soon").unwrap(), copy.get("soon").unwrap()), (None, None));
}

#[test]
fn a_snapshot_shows_what_there_was_when_it_was_made() {
    let db = open();
    let ttl = Duration::from_secs(4);
    db.insert_with_ttl("k", "v", ttl).unwrap();
    let snapshot = db.snapshot();
    std::thread::sleep(ttl + Duration::from_millis(100));
    assert_eq!(db.get("k").unwrap(), None);
    assert_eq!(db.iter().count(), 0);
    assert_eq!(snapshot.get(&db, "k").unwrap().unwrap(), "v");
    assert_eq!(db.snapshot().get(&db, "k").unwrap(), None);
    // A transaction sees what its snapshot does, and writes it anew for good.
    db.transaction::<_, _, ()>(|tree| {
        assert_eq!(tree.get("k")?, None);
        tree.insert("k", "w")?;
        Ok(())
    })
    .unwrap();
    assert_eq!(db.ttl("k").unwrap(), Ttl::Forever);
}

#[test]
fn threads_wait_for_read_write_locks_and_semaphores() {
    let db = open();
    let writer = db.write_lock("book").acquire(LEASE).unwrap();
    let inside = Arc::new(AtomicU32::new(0));
    let most = Arc::new(AtomicU32::new(0));
    let threads: Vec<_> = (0..6)
        .map(|_| {
            let (db, inside, most) = (db.clone(), Arc::clone(&inside), Arc::clone(&most));
            std::thread::spawn(move || {
                let reader = db.read_lock("book").acquire(LEASE).unwrap();
                let seat = db.semaphore("seats", 2).acquire(LEASE).unwrap();
                most.fetch_max(inside.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                // Until two were there at the same time.
                let until = Instant::now() + Duration::from_secs(5);
                while most.load(Ordering::SeqCst) < 2 && Instant::now() < until {
                    std::thread::sleep(Duration::from_millis(2));
                }
                std::thread::sleep(Duration::from_millis(20));
                inside.fetch_sub(1, Ordering::SeqCst);
                seat.release().unwrap().unwrap();
                reader.release().unwrap().unwrap();
            })
        })
        .collect();
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(most.load(Ordering::SeqCst), 0);
    writer.release().unwrap().unwrap();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(most.load(Ordering::SeqCst), 2);
    assert!(db.write_lock("book").try_acquire(LEASE).unwrap().is_some());
}

#[test]
fn after_an_unclean_end_a_lock_is_delayed() {
    let db = open();
    let (lease, delay) = (Duration::from_millis(40), Duration::from_millis(150));
    let began = Instant::now();
    let guard = db.lock("job").delay(delay).acquire(lease).unwrap();
    guard.keep();
    let next = db.lock("job").acquire(LEASE).unwrap();
    assert!(began.elapsed() > delay, "{:?}", began.elapsed());
    assert!(next.release().unwrap().is_ok());
}

#[test]
fn several_counters_are_added_to_together_or_not_at_all() {
    let db = open();
    db.counter("full").set(i64::MAX).unwrap();
    assert_eq!(
        db.add_to_counters([("a", 1), ("b", -2), ("a", 2)]).unwrap(),
        [("a".into(), 3), ("b".into(), -2)]
    );
    assert!(matches!(db.add_to_counters([("a", 1), ("full", 1)]), Err(Error::Unsupported(_))));
    assert_eq!(db.counter("a").get().unwrap(), 3);
    assert_eq!(db.counter("a").set_if(3, 10).unwrap(), Ok(()));
    assert_eq!(db.counter("a").set_if(3, 11).unwrap(), Err(10));
}

#[test]
fn a_guard_renews_its_lease_until_it_is_given_back_or_kept() {
    let db = open();
    // Renewed at a third of it, so that a machine may stand still for some seconds.
    let lease = Duration::from_secs(7);
    // Many guards, and one thread.
    let guards: Vec<_> = (0..50).map(|i| db.lock(format!("job {i}")).acquire(lease).unwrap()).collect();
    let (told, hears) = std::sync::mpsc::channel();
    guards[0].when_lost(move || told.send(()).unwrap());
    assert!(!guards[0].wait_until_lost_for(lease * 3 / 2), "a lease and a half");
    for (i, guard) in guards.iter().enumerate() {
        assert!(guard.is_valid());
        assert!(db.lock(format!("job {i}")).try_acquire(lease).unwrap().is_none());
        db.under(guard).insert("done", "yes").unwrap();
    }
    let mut guards = guards.into_iter();
    let (kept, released) = (guards.next().unwrap(), guards.next().unwrap());
    kept.keep();
    assert!(released.release().unwrap().is_ok());
    assert!(db.lock("job 1").try_acquire(LEASE).unwrap().is_some());
    // Nobody renews what was kept.
    assert!(db.lock("job 0").acquire_timeout(LEASE, Duration::from_secs(20)).unwrap().is_some());
    assert!(hears.try_recv().is_err(), "it was not lost, it was given up");
}

#[test]
fn a_guard_tells_in_time_that_its_lock_may_be_lost() {
    let db = open();
    let lease = Duration::from_secs(7);
    let began = Instant::now();
    let guard = db.lock("job").without_renewal().acquire(lease).unwrap();
    let (told, hears) = std::sync::mpsc::channel();
    guard.when_lost(move || told.send(()).unwrap());
    assert!(!guard.wait_until_lost_for(lease / 3));
    guard.wait_until_lost();
    let waited = began.elapsed();
    assert!(waited >= lease / 2, "{waited:?}");
    if waited < lease * 9 / 10 {
        let rival = db.lock("job").try_acquire(lease).unwrap();
        assert!(rival.is_none() || began.elapsed() >= lease, "told before the lease has ended");
    }
    hears.recv_timeout(Duration::from_secs(20)).expect("it is told in both ways");
    // Somebody else takes it away: the next renewal finds out.
    let guard = db.lock("taken").acquire(lease).unwrap();
    let (told, hears) = std::sync::mpsc::channel();
    guard.when_lost(move || told.send(()).unwrap());
    let thief = db.lock("taken").owner(guard.owner()).resume().unwrap().unwrap();
    assert!(thief.release().unwrap().is_ok());
    hears.recv_timeout(Duration::from_secs(20)).expect("the thread tells");
    assert!(!guard.is_valid() && guard.wait_until_lost_for(Duration::ZERO));
    assert_eq!(guard.renew(lease).unwrap(), Err(dogsled::NotHeld));
    assert_eq!(guard.expires_ms(), 0);
    // It is lost already.
    let (told, hears) = std::sync::mpsc::channel();
    guard.when_lost(move || told.send(()).unwrap());
    assert!(hears.try_recv().is_ok());
}

#[test]
fn a_callback_that_panics_leaves_those_of_other_guards_to_be_called() {
    let db = open();
    let lease = Duration::from_millis(300);
    let (told, hears) = std::sync::mpsc::channel();
    for name in ["first", "second"] {
        let guard = db.lock(name).without_renewal().acquire(lease).unwrap();
        let told = told.clone();
        guard.when_lost(|| panic!("a callback of a test"));
        guard.when_lost(move || told.send(name).unwrap());
        assert_eq!(hears.recv_timeout(Duration::from_secs(20)), Ok(name));
    }
}

#[test]
fn the_directory_is_free_when_the_last_guard_is_dropped_while_leases_are_renewed() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..30 {
        let db = dogsled::open(directory.path()).unwrap();
        let guards: Vec<_> =
            (0..8).map(|i| db.lock(format!("{i}")).acquire(Duration::from_millis(5)).unwrap()).collect();
        drop(db);
        std::thread::sleep(Duration::from_millis(4));
        drop(guards);
        // Opened again at once: the renewing thread does not keep the database.
    }
}

#[test]
fn nobody_overwrites_a_version_that_was_not_seen() {
    let db = open();
    assert_eq!(db.get_versioned("k").unwrap(), None);
    assert!(db.put_if_version("k", "0", 0).unwrap().is_ok());
    let conflict = db.put_if_version("k", "x", 0).unwrap().unwrap_err();
    assert_eq!(conflict.current, db.get_versioned("k").unwrap());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut done = 0;
                while done < 200 {
                    let found = db.get_versioned("k").unwrap().unwrap();
                    let next = std::str::from_utf8(&found.value).unwrap().parse::<u32>().unwrap() + 1;
                    let written = db.put_if_version("k", next.to_string().as_str(), found.version).unwrap();
                    done += u32::from(written.is_ok());
                }
            });
        }
    });
    let found = db.get_versioned("k").unwrap().unwrap();
    assert_eq!(found.value, "800", "each added one");
    assert_eq!(found.version, db.sequence());
    assert!(db.remove_if_version("k", found.version - 1).unwrap().is_err());
    assert!(db.remove_if_version("k", found.version).unwrap().is_ok());
    assert_eq!(db.put_if_version("k", "x", found.version).unwrap().unwrap_err().current, None);
}

#[test]
fn what_moves_to_another_database_leaves_keys_of_sessions_and_is_not_overwritten_by_numbered_keys() {
    let old = Config::new().temporary(true).open().unwrap();
    let session = old.session(LEASE).unwrap();
    for value in ["one", "two"] {
        old.insert_next("job-", value).unwrap();
    }
    session.insert(&old, "instance", "here").unwrap();
    session.insert(&old, "taken", "here").unwrap();
    // Who writes it anew takes it from the session.
    old.insert("taken", "to stay").unwrap();
    old.insert("job-9-of-another-kind", "plain").unwrap();
    let new = Config::new().temporary(true).open().unwrap();
    new.import(old.export());
    assert_eq!(new.get("instance").unwrap(), None, "its session is not here");
    assert_eq!(new.get("taken").unwrap().unwrap(), "to stay");
    let keys = [("", "00000000000000000000"), ("job-", "job-00000000000000000002")];
    for (prefix, expected) in keys {
        assert_eq!(new.insert_next(prefix, "three").unwrap(), expected);
    }
    assert_eq!(new.get("job-00000000000000000001").unwrap().unwrap(), "two");
    // Nor one that is not the last.
    new.insert("n-00000000000000000000", "plain").unwrap();
    new.insert("n-5", "plain").unwrap();
    assert_eq!(new.insert_next("n-", "numbered").unwrap(), "n-00000000000000000001");
    drop(session);
}

#[test]
fn what_is_compared_is_written_one_way_or_the_other_and_under_the_locks_of_what_is_written() {
    let db = open();
    let (stock, log) = (db.open_tree("stock").unwrap(), db.open_tree("log").unwrap());
    stock.insert("bolts", "7").unwrap();
    let compare = |expected: &str| {
        let compare = db.compare().is(&stock, "bolts", expected).is_absent(&stock, "sold out");
        compare
            .then_put(&stock, "bolts", "6")
            .then_put_with_ttl(&log, "sold", "1", Duration::from_secs(60))
            .else_put(&log, "missed", "1")
            .else_remove(&stock, "bolts")
    };
    assert!(compare("7").run().unwrap().held());
    assert_eq!((stock.get("bolts").unwrap(), log.get("missed").unwrap()), (Some("6".into()), None));
    assert!(matches!(log.ttl("sold").unwrap(), Ttl::In(_)));
    stock.insert("sold out", "").unwrap();
    let second = compare("6").run().unwrap();
    assert_eq!((second.held(), second.failed(), second.found()), (false, Some(1), Some(&"".into())));
    assert_eq!((stock.get("bolts").unwrap(), log.get("missed").unwrap()), (None, Some("1".into())));

    stock.insert("bolts", "5").unwrap();
    let holds = |compare: Compare| compare.run().unwrap().held();
    let begin = || db.compare();
    assert!(holds(begin().is_not(&stock, "bolts", "6").is_present(&stock, "bolts")));
    assert!(holds(begin().is_not(&stock, "nuts", "6").is_less(&stock, "bolts", "6")));
    assert!(!holds(begin().is_greater(&stock, "bolts", "5")) && !holds(begin().is_less(&stock, "nuts", "6")));

    // Of a lock that is lost, only what is written matters.
    let guard = db.lock("stock").acquire(Duration::from_secs(60)).unwrap();
    let under = stock.under(&guard);
    let fenced = |expected: &str| {
        begin().is(&under, "bolts", expected).then_put(&under, "bolts", "4").else_put(&log, "late", expected)
    };
    assert!(holds(fenced("5")));
    guard.release().unwrap().unwrap();
    assert!(matches!(fenced("4").run(), Err(Error::LockNotHeld { .. })));
    assert_eq!((stock.get("bolts").unwrap(), log.get("late").unwrap()), (Some("4".into()), None));
    assert!(!holds(fenced("another")));
    assert_eq!(log.get("late").unwrap(), Some("another".into()));
}

#[test]
fn what_computes_a_value_may_ask_for_the_same_key_of_another_tree() {
    let db = dogsled::Config::new().temporary(true).open().unwrap();
    let (pages, parts) = (db.open_tree("pages").unwrap(), db.open_tree("parts").unwrap());
    let long = Duration::from_secs(60);
    let page = pages.get_or_compute("/index", long, long, || {
        parts.get_or_compute("/index", long, long, || Ok::<_, dogsled::Error>("<p>"))
    });
    assert_eq!(page.unwrap(), "<p>");
}
