//! What transactions promise, one promise at a time.

#![allow(clippy::unit_arg, reason = "`Ok(drop(…?))` is the shortest closure that only writes")]

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use dogsled::transaction::{
    TransactionError, TransactionOptions, TransactionResult, Transactional, TransactionalTree,
    UnabortableTransactionError, abort,
};
use dogsled::{Batch, Config, Db, Durability, Error, IVec, Tree, Ttl};

fn open() -> Db {
    Config::new().temporary(true).open().unwrap()
}

/// Runs `transaction`, and `meanwhile` once while it runs; how often it ran.
fn runs_with_meanwhile(
    db: &Db,
    transaction: impl Fn(&TransactionalTree) -> Result<(), UnabortableTransactionError>,
    meanwhile: impl Fn(&Tree),
) -> u32 {
    let runs = Cell::new(0);
    let result: TransactionResult<()> = db.transaction(|tree| {
        transaction(tree)?;
        // So that there is something to validate.
        tree.apply_batch(&{
            let mut batch = Batch::default();
            batch.insert("zzz unrelated", "x");
            batch
        })?;
        runs.set(runs.get() + 1);
        assert!(runs.get() <= 2, "it conflicts though nobody else writes");
        if runs.get() == 1 {
            meanwhile(db);
        }
        Ok(())
    });
    result.unwrap();
    runs.get()
}

type Reads = fn(&TransactionalTree) -> Result<(), UnabortableTransactionError>;

/// (what is read, which insert or remove does not matter to it, which does)
const EXTENTS: &[(&str, Reads, &[&str], &[&str])] = &[
    ("get, found", |tree| tree.get("c").map(drop), &["b", "cc"], &["c"]),
    ("get, absent", |tree| tree.get("d").map(drop), &["c", "e"], &["d"]),
    ("insert", |tree| tree.insert("d", "1").map(drop), &["c", "e"], &["d"]),
    (
        "compare_and_swap",
        |tree| tree.compare_and_swap("d", None::<&str>, Some("1")).map(drop),
        &["c", "e"],
        &["d"],
    ),
    ("first", |tree| tree.first().map(drop), &["aa", "b", "e"], &["a", "A"]),
    ("last", |tree| tree.last().map(drop), &["f", "a", "e"], &["g", "gg"]),
    ("get_gt", |tree| tree.get_gt("c").map(drop), &["c", "ee", "g"], &["d", "e"]),
    ("get_lt", |tree| tree.get_lt("e").map(drop), &["e", "b", "a"], &["d", "c"]),
    ("pop_min", |tree| tree.pop_min().map(drop), &["b"], &["a", "A"]),
    ("is_empty", |tree| tree.is_empty().map(drop), &["b", "g"], &["a", "A"]),
    (
        "whole range",
        |tree| tree.range("b".."f").try_for_each(|entry| entry.map(drop)),
        &["a", "f", "g"],
        &["b", "bb", "e", "ee"],
    ),
    (
        "inclusive range",
        |tree| tree.range("b"..="e").try_for_each(|entry| entry.map(drop)),
        &["a", "ee"],
        &["b", "e"],
    ),
    ("prefix", |tree| tree.scan_prefix("e").try_for_each(|entry| entry.map(drop)), &["d", "f"], &["e", "ee"]),
    (
        "half of a range",
        |tree| {
            let mut iter = tree.range("b".."g");
            iter.next().transpose()?; // c
            iter.next().transpose().map(drop) // e
        },
        &["f", "ee"],
        &["b", "d", "e", "c"],
    ),
    (
        "both ends of a range",
        |tree| {
            let mut iter = tree.iter();
            iter.next().transpose()?; // a
            iter.next_back().transpose().map(drop) // g
        },
        &["b", "c", "f"],
        &["a", "g", "gg", "A"],
    ),
    (
        "both ends until they meet",
        |tree| {
            let mut iter = tree.range("b".."f");
            while iter.next().transpose()?.is_some() && iter.next_back().transpose()?.is_some() {}
            Ok(())
        },
        &["a", "f", "g"],
        &["b", "d", "dd", "e", "ee"],
    ),
    (
        "an own write before the first",
        |tree| {
            tree.apply_batch(&{
                let mut batch = Batch::default();
                batch.insert("b", "mine");
                batch
            })?;
            tree.range("b"..).next().transpose().map(drop)
        },
        &["c", "bb", "a"],
        &[],
    ),
    (
        "nothing",
        |tree| {
            drop(tree.iter());
            Ok(())
        },
        &["a", "b"],
        &[],
    ),
    ("a counter", |tree| tree.counter("n").add(1).map(drop), &["a", "n"], &[]),
];

#[test]
fn a_transaction_depends_on_exactly_what_it_read() {
    for (name, reads, harmless, harmful) in EXTENTS {
        let prepare = || {
            let db = open();
            for key in ["a", "c", "e", "g"] {
                db.insert(key, "0").unwrap();
            }
            db
        };
        let expectations = harmless.iter().map(|key| (key, 1)).chain(harmful.iter().map(|key| (key, 2)));
        for (key, expected) in expectations {
            let db = prepare();
            let runs = runs_with_meanwhile(&db, reads, |tree| drop(tree.insert(key, "other").unwrap()));
            assert_eq!(runs, expected, "runs of \"{name}\" when {key} is inserted meanwhile");

            let db = prepare();
            let is_there = db.contains_key(key).unwrap();
            let runs = runs_with_meanwhile(&db, reads, |tree| drop(tree.remove(key).unwrap()));
            let expected = if is_there { expected } else { 1 };
            assert_eq!(runs, expected, "runs of \"{name}\" when {key} is removed meanwhile");
        }
    }
}

#[test]
fn a_change_that_was_undone_is_a_change() {
    let db = open();
    db.insert("k", "v").unwrap();
    let runs = runs_with_meanwhile(
        &db,
        |tree| tree.get("k").map(drop),
        |tree| {
            tree.remove("k").unwrap();
            tree.insert("k", "v").unwrap();
        },
    );
    assert_eq!(runs, 2);
}

#[test]
fn clearing_and_dropping_meanwhile_are_noticed() {
    let db = open();
    db.insert("k", "v").unwrap();
    let runs = runs_with_meanwhile(&db, |tree| tree.get("k").map(drop), |tree| tree.clear().unwrap());
    assert_eq!(runs, 2);

    let doomed = db.open_tree("doomed").unwrap();
    let result: TransactionResult<()> = doomed.transaction(|tree| {
        tree.insert("k", "v")?;
        db.drop_tree("doomed")?;
        Ok(())
    });
    assert_eq!(result, Err(TransactionError::Storage(Error::CollectionNotFound("doomed".into()))));
    let result: TransactionResult<()> = doomed.transaction(|tree| Ok(drop(tree.get("k")?)));
    assert_eq!(result, Err(TransactionError::Storage(Error::CollectionNotFound("doomed".into()))));
}

#[test]
fn a_blind_batch_and_a_transaction_that_only_reads_never_run_again() {
    let db = open();
    db.insert("k", "v").unwrap();
    let mut batch = Batch::default();
    batch.insert("k", "mine");
    let meanwhile = |tree: &Tree| drop(tree.insert("k", "other").unwrap());
    assert_eq!(runs_with_meanwhile(&db, |tree| tree.apply_batch(&batch), meanwhile), 1);
    assert_eq!(db.get("k").unwrap().unwrap(), "mine");

    let runs = Cell::new(0);
    let result: TransactionResult<_> = db.transaction(|tree| {
        runs.set(runs.get() + 1);
        let before = tree.get("k")?;
        db.insert("k", "newer")?;
        assert_eq!(tree.get("k")?, before);
        Ok(before.unwrap())
    });
    assert_eq!((result.unwrap(), runs.get()), (IVec::from("mine"), 1));
}

#[test]
fn a_closure_may_touch_any_tree_and_nest_transactions() {
    let (db, other) = (open(), open());
    let second = db.open_tree("second").unwrap();
    let result: TransactionResult<usize> = (&*db, &second).transaction(|(tree, view)| {
        view.insert("in", "transaction")?;
        db.insert("outside", "1")?;
        second.remove("outside")?;
        second.flush()?;
        db.open_tree("third")?.insert("k", "v")?;
        // Another transaction of the same trees, and one of another database, within this one.
        let inner: TransactionResult<()> =
            second.transaction(|second| Ok(drop(second.insert("inner", "1")?)));
        inner.unwrap();
        let elsewhere: TransactionResult<()> = other.transaction(|tree| Ok(drop(tree.insert("k", "v")?)));
        elsewhere.unwrap();
        let _ = db.iter().count() + db.len();
        // A snapshot of the beginning.
        assert_eq!(tree.get("absent")?, None);
        Ok(db.iter().count())
    });
    assert_eq!(result, Ok(1));
    assert!(second.contains_key("inner").unwrap() && second.contains_key("in").unwrap());
    assert!(other.contains_key("k").unwrap());
}

#[test]
fn a_closure_that_conflicts_with_itself_is_told_so() {
    let db = open();
    let result: TransactionResult<()> = db.transaction(|tree| {
        tree.insert("k", "within")?;
        db.insert("k", "outside")?;
        Ok(())
    });
    match result {
        Err(TransactionError::Storage(Error::Unsupported(why))) => assert!(why.contains("outside"), "{why}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(db.get("k").unwrap().unwrap(), "outside");
}

#[test]
fn trees_of_two_databases_are_refused() {
    let (db, other) = (open(), open());
    let refused = |result: TransactionResult<()>| match result {
        Err(TransactionError::Storage(Error::Unsupported(why))) => {
            assert!(why.contains("different databases"))
        }
        other => panic!("{other:?}"),
    };
    refused((&*db, &*other).transaction(|_| Ok(())));
    refused([&*db, &*other][..].transaction(|_| Ok(())));
    refused([Tree::clone(&db), Tree::clone(&other)][..].transaction(|_| Ok(())));
    refused(db.transaction(|tree| Ok(drop(tree.tree(&other)?))));
    let none: [Tree; 0] = [];
    let result: TransactionResult<()> = none[..].transaction(|_| Ok(()));
    assert!(matches!(result, Err(TransactionError::Storage(Error::Unsupported(_)))));
}

#[test]
fn tuples_of_all_sizes() {
    let db = open();
    let t: Vec<Tree> = (0..14).map(|number| db.open_tree(format!("t{number}")).unwrap()).collect();
    let one: TransactionResult<()> = (&t[0],).transaction(|(a,)| Ok(drop(a.insert("k", "1")?)));
    one.unwrap();
    let all: TransactionResult<()> = (
        &t[0], &t[1], &t[2], &t[3], &t[4], &t[5], &t[6], &t[7], &t[8], &t[9], &t[10], &t[11], &t[12], &t[13],
    )
        .transaction(|(a, b, c, d, e, f, g, h, i, j, k, l, m, n)| {
            for (position, tree) in [a, b, c, d, e, f, g, h, i, j, k, l, m, n].into_iter().enumerate() {
                tree.insert("position", position.to_string().as_str())?;
            }
            Ok(())
        });
    all.unwrap();
    for (position, tree) in t.iter().enumerate() {
        assert_eq!(tree.get("position").unwrap().unwrap(), position.to_string());
        assert_eq!(tree.name(), format!("t{position}"));
    }
}

#[test]
fn nothing_remains_of_a_transaction_that_was_aborted_or_panicked() {
    let db = open();
    let aborted: TransactionResult<(), u32> = db.transaction(|tree| {
        tree.insert("k", "v")?;
        tree.counter("n").add(1)?;
        tree.lock("l").try_acquire("me", Duration::from_secs(9))?;
        abort(7)
    });
    assert_eq!(aborted, Err(TransactionError::Abort(7)));
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let _: TransactionResult<()> = db.transaction(|tree| {
            tree.insert("k", "v")?;
            panic!("on purpose")
        });
    }));
    assert!(panicked.is_err());
    assert!(db.is_empty());
    assert_eq!(db.counter("n").get().unwrap(), 0);
    assert_eq!(db.lock("l").holder().unwrap(), None);
    let fine: TransactionResult<()> = db.transaction(|tree| Ok(drop(tree.insert("k", "v")?)));
    fine.unwrap();
}

#[test]
fn a_view_that_escapes_takes_no_writes() {
    let db = open();
    let escaped: TransactionResult<TransactionalTree> = db.transaction(|tree| {
        tree.insert("k", "v")?;
        Ok(tree.clone())
    });
    let escaped = escaped.unwrap();
    assert!(matches!(
        escaped.insert("lost", "v"),
        Err(UnabortableTransactionError::Storage(Error::Unsupported(_)))
    ));
    assert!(escaped.get("k").is_err());
    assert!(escaped.counter("n").add(1).is_err());
    assert!(escaped.first().is_err() && escaped.len().is_err() && escaped.pop_min().is_err());
    let told: Vec<_> = escaped.range("a".."z").collect();
    assert!(told.len() == 1 && told[0].is_err(), "{told:?}");
    assert_eq!(db.len(), 1);
}

#[test]
fn a_lock_taken_in_a_transaction_carries_the_position_of_its_commit() {
    let db = open();
    let lease = Duration::from_secs(60);
    let taken: TransactionResult<bool> = db.transaction(|tree| {
        tree.insert("work", "begun")?;
        assert!(!tree.lock("l").is_held("me", dogsled::FencingToken(1))?);
        Ok(tree.lock("l").try_acquire("me", lease)?)
    });
    assert!(taken.unwrap());
    let guard = db.lock("l").owner("me").resume().unwrap().unwrap();
    assert_eq!(guard.token().0, db.sequence());
    assert!(db.durable_sequence() >= guard.token().0, "a grant is synced");

    // Work under the lock is fenced by checking the token in the transaction that does it.
    let fenced = |token| -> TransactionResult<bool> {
        db.transaction(|tree| {
            if !tree.lock("l").is_held("me", token)? {
                return Ok(false);
            }
            tree.insert("work", "done")?;
            Ok(tree.lock("l").release("me", token)?)
        })
    };
    let token = guard.token();
    assert_eq!(fenced(dogsled::FencingToken(token.0 - 1)), Ok(false));
    assert_eq!(fenced(token), Ok(true));
    assert_eq!(guard.release().unwrap(), Err(dogsled::NotHeld));
    assert!(db.lock("l").try_acquire(lease).unwrap().unwrap().token() > token);
}

#[test]
fn a_lease_that_ends_while_the_closure_runs_counts_where_it_is_committed() {
    let db = open();
    let (lock, lease) = (db.lock("l").owner("me").without_renewal(), Duration::from_millis(1_500));
    let token = |lease| {
        let guard = lock.acquire(lease).unwrap();
        let token = guard.token();
        guard.keep();
        token
    };
    type Check = fn(&dogsled::transaction::TransactionalLock, dogsled::FencingToken) -> bool;
    let checks: [Check; 3] = [
        |lock, token| lock.is_held("me", token).unwrap(),
        |lock, token| lock.renew("me", token, Duration::from_secs(60)).unwrap(),
        |lock, token| lock.release("me", token).unwrap(),
    ];
    for check in checks {
        for left in (0..5).rev() {
            let (token, runs) = (token(lease), std::cell::Cell::new(0));
            let written: TransactionResult<bool> = db.transaction(|tree| {
                runs.set(runs.get() + 1);
                if !check(&tree.lock("l"), token) {
                    return Ok(false);
                }
                std::thread::sleep(lease + Duration::from_millis(100));
                tree.insert("k", "too late")?;
                Ok(true)
            });
            assert_eq!(written, Ok(false));
            assert!(db.is_empty() && db.lock("l").holder().unwrap().is_none());
            if runs.get() == 2 {
                break;
            }
            // The lease was over before the closure ran: once more.
            assert!(left > 0 && runs.get() == 1, "it ran {} times", runs.get());
        }
    }
    // What is taken and checked within one transaction is held from then on.
    let taken: TransactionResult<bool> = db.transaction(|tree| {
        assert!(tree.lock("l").try_acquire("me", Duration::from_secs(60))?);
        let token = tree.lock("l").holder()?.unwrap().token;
        assert!(tree.lock("l").is_held("me", token)?);
        tree.insert("k", "v")?;
        Ok(tree.lock("l").renew("me", token, Duration::from_secs(60))?)
    });
    assert_eq!(taken, Ok(true));
}

#[test]
fn counters_keep_their_bounds_under_contention() {
    let db = open();
    db.counter("seats").set(10).unwrap();
    let sold: usize = std::thread::scope(|scope| {
        let sell = || {
            let mut sold = 0;
            for _ in 0..10 {
                let result: TransactionResult<bool> = db.transaction(|tree| {
                    let Ok(left) = tree.counter("seats").add_within(-1, 0..=10)? else { return Ok(false) };
                    assert_eq!(tree.insert(left.to_string().as_str(), "sold")?, None);
                    Ok(true)
                });
                sold += usize::from(result.unwrap());
            }
            sold
        };
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(sell)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!((sold, db.len(), db.counter("seats").get().unwrap()), (10, 10, 0));
}

#[test]
fn each_item_of_a_queue_is_taken_once() {
    let db = open();
    let (queue, done) = (db.open_tree("queue").unwrap(), db.open_tree("done").unwrap());
    for number in 0..100u8 {
        queue.insert([number], [number]).unwrap();
    }
    std::thread::scope(|scope| {
        for from_back in [false, true, false] {
            let (queue, done) = (&queue, &done);
            scope.spawn(move || {
                loop {
                    let result: TransactionResult<bool> = (queue, done).transaction(|(queue, done)| {
                        let item = if from_back { queue.pop_max()? } else { queue.pop_min()? };
                        let Some((key, value)) = item else { return Ok(false) };
                        assert_eq!(done.insert(key, value)?, None, "taken twice");
                        Ok(true)
                    });
                    if !result.unwrap() {
                        break;
                    }
                }
            });
        }
    });
    assert_eq!((queue.len(), done.len()), (0, 100));
}

#[test]
fn a_flush_within_makes_the_commit_durable() {
    let db = Config::new().temporary(true).flush_every_ms(None).open().unwrap();
    let result: TransactionResult<()> = db.transaction(|tree| {
        tree.insert("k", "v")?;
        tree.flush();
        Ok(())
    });
    result.unwrap();
    assert_eq!(db.durable_sequence(), db.sequence());
    let options = TransactionOptions::new().durability(Durability::Synced);
    let result: TransactionResult<()> = db.transaction_with(options, |tree| Ok(drop(tree.insert("k", "w")?)));
    result.unwrap();
    assert_eq!(db.durable_sequence(), db.sequence());
}

/// Random committed entries, own writes and reads from both ends, against a `BTreeMap`.
#[test]
fn own_writes_and_the_snapshot_read_as_one_map() {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state % below
    };
    for round in 0..300 {
        let db = open();
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let key = |number: u64| if number == 0 { vec![] } else { vec![b'k'; number as usize] };
        for _ in 0..random(12) {
            let (k, v) = (key(random(16)), vec![random(256) as u8]);
            db.insert(&k, &v[..]).unwrap();
            model.insert(k, v);
        }
        if round % 3 == 0 {
            db.checkpoint().unwrap();
        }
        let script: Vec<u64> = (0..60).map(|_| random(1 << 32)).collect();
        let has_run = Cell::new(false);
        let result: TransactionResult<()> = db.transaction(|tree| {
            assert!(!has_run.replace(true), "round {round} conflicts though nobody else writes");
            let mut model = model.clone();
            let mut script = script.iter().copied();
            let mut next = |below: u64| script.next().map_or(0, |number| number % below);
            for _ in 0..next(10) {
                let k = key(next(16));
                if next(3) == 0 {
                    assert_eq!(tree.remove(&k[..])?.map(|v| v.to_vec()), model.remove(&k));
                } else {
                    let v = vec![next(256) as u8];
                    assert_eq!(tree.insert(&k[..], &v[..])?.map(|v| v.to_vec()), model.insert(k, v));
                }
            }
            let bound = |choice: u64, key: Vec<u8>| match choice {
                0 => Bound::Unbounded,
                1 => Bound::Included(key),
                _ => Bound::Excluded(key),
            };
            let bounds = (bound(next(3), key(next(16))), bound(next(3), key(next(16))));
            let in_bounds = |k: &Vec<u8>| std::ops::RangeBounds::contains(&bounds, k);
            let mut expected: std::collections::VecDeque<_> =
                model.iter().filter(|(k, _)| in_bounds(k)).map(|(k, v)| (k.clone(), v.clone())).collect();
            let mut iter = tree.range::<Vec<u8>, _>(bounds.clone());
            loop {
                let (found, wanted) = if next(2) == 0 {
                    (iter.next(), expected.pop_front())
                } else {
                    (iter.next_back(), expected.pop_back())
                };
                let found = found.transpose()?.map(|(k, v)| (k.to_vec(), v.to_vec()));
                assert_eq!(found, wanted, "round {round}, {bounds:?} of {model:?}");
                if found.is_none() {
                    break;
                }
            }
            assert_eq!(iter.next().transpose()?, None);
            assert_eq!(iter.next_back().transpose()?, None);
            assert_eq!(tree.len()?, model.len());
            Ok(())
        });
        result.unwrap();
    }
}

#[test]
fn times_to_live_are_part_of_a_transaction() {
    let db = Config::new().temporary(true).open().unwrap();
    let hour = Duration::from_secs(3600);
    let left = |key: &str| db.ttl(key).unwrap();
    db.insert_with_ttl("kept", "1", hour).unwrap();
    db.insert_with_ttl("plain", "1", hour).unwrap();
    db.insert("stays", "1").unwrap();
    let aborted: TransactionResult<(), ()> = db.transaction(|tree| {
        tree.insert_with_ttl("new", "v", hour)?;
        tree.persist("kept")?;
        abort(())
    });
    assert_eq!(aborted, Err(TransactionError::Abort(())));
    assert_eq!((left("new"), db.get("new").unwrap()), (Ttl::NoKey, None));
    assert!(matches!(left("kept"), Ttl::In(_)));
    let result: TransactionResult<()> = db.transaction(|tree| {
        assert_eq!(tree.insert_with_ttl("new", "v", hour)?, None);
        assert!(matches!(tree.ttl("new")?, Ttl::In(left) if left == hour));
        // Once more, and shorter.
        assert!(tree.expire("new", hour / 2)?);
        assert!(matches!(tree.ttl("new")?, Ttl::In(left) if left == hour / 2));
        assert!(tree.persist("kept")?);
        assert!(!tree.persist("kept")?);
        assert_eq!(tree.ttl("kept")?, Ttl::Forever);
        // A plain write takes it, be it from before or from this very transaction.
        tree.insert("plain", "2")?;
        tree.insert_with_ttl("both", "1", hour)?;
        tree.insert("both", "2")?;
        assert_eq!((tree.ttl("plain")?, tree.ttl("both")?), (Ttl::Forever, Ttl::Forever));
        tree.insert_with_ttl("gone", "1", hour)?;
        tree.remove("gone")?;
        assert_eq!((tree.ttl("gone")?, tree.expire("gone", hour)?), (Ttl::NoKey, false));
        assert!(tree.expire("stays", hour)?);
        Ok(())
    });
    result.unwrap();
    assert!(matches!(left("new"), Ttl::In(left) if left <= hour / 2 && left > hour / 3));
    for key in ["kept", "plain", "both"] {
        assert_eq!(left(key), Ttl::Forever, "{key}");
    }
    assert_eq!(left("gone"), Ttl::NoKey);
    assert!(matches!(left("stays"), Ttl::In(_)));
    // Times to live are read as anything is: who decided by one runs again if it changes.
    let runs = std::cell::Cell::new(0);
    let result: TransactionResult<()> = db.transaction(|tree| {
        runs.set(runs.get() + 1);
        let seen = tree.ttl("stays")?;
        if runs.get() == 1 {
            assert!(db.persist("stays").unwrap());
        }
        tree.insert("seen", if seen == Ttl::Forever { "for ever" } else { "expires" })?;
        Ok(())
    });
    result.unwrap();
    assert_eq!((runs.get(), db.get("seen").unwrap().unwrap()), (2, "for ever".into()));
    // They end by themselves.
    let result: TransactionResult<()> =
        db.transaction(|tree| Ok(drop(tree.insert_with_ttl("short", "v", Duration::from_millis(30))?)));
    result.unwrap();
    std::thread::sleep(Duration::from_millis(60));
    assert_eq!(db.get("short").unwrap(), None);
}

#[test]
fn keys_of_sessions_and_numbers_come_to_be_with_all_the_rest_or_not_at_all() {
    let db = open();
    let session = db.session(Duration::from_secs(60)).unwrap();
    let other = open().session(Duration::from_secs(60)).unwrap();
    let begun = |fails: bool| -> TransactionResult<(IVec, IVec), &'static str> {
        db.transaction(|tree| {
            assert_eq!(tree.insert_with_session(&session, "worker", "here")?, None);
            let first = tree.insert_next("job:", "one")?;
            let second = tree.insert_next_with_session(&session, "job:", "two")?;
            assert_eq!(tree.get(&second)?.unwrap(), "two");
            // What is written plainly, or gets a time to live, dies with no session.
            for key in ["plain", "brief", "owned"] {
                tree.insert_with_session(&session, key, "owned")?;
            }
            tree.insert("plain", "plain")?;
            tree.insert_with_ttl("brief", "brief", Duration::from_secs(60))?;
            tree.insert_with_ttl("owned", "brief", Duration::from_secs(60))?;
            tree.insert_with_session(&session, "owned", "owned")?;
            assert_eq!(tree.ttl("owned")?, Ttl::Forever);
            if fails {
                return abort("never mind");
            }
            Ok((first, second))
        })
    };
    assert!(matches!(begun(true), Err(TransactionError::Abort("never mind"))));
    assert_eq!(db.get("worker").unwrap(), None);
    let (first, second) = begun(false).unwrap();
    assert_eq!(
        (&first[..], &second[..]),
        (&b"job:00000000000000000000"[..], &b"job:00000000000000000001"[..])
    );
    assert_eq!(db.insert_next("job:", "three").unwrap(), "job:00000000000000000002");
    let foreign: TransactionResult<Option<IVec>> =
        db.transaction(|tree| Ok(tree.insert_with_session(&other, "a", "b")?));
    assert!(matches!(foreign, Err(TransactionError::Storage(Error::Unsupported(_)))), "{foreign:?}");
    session.close().unwrap();
    for key in [&b"worker"[..], b"owned", &second] {
        assert_eq!(db.get(key).unwrap(), None, "{} has outlived its session", key.escape_ascii());
    }
    for key in [&b"plain"[..], b"brief", &first] {
        assert!(db.get(key).unwrap().is_some(), "{}", key.escape_ascii());
    }
    let closed: TransactionResult<Option<IVec>> =
        db.transaction(|tree| Ok(tree.insert_with_session(&session, "a", "b")?));
    assert!(matches!(closed, Err(TransactionError::Storage(Error::Unsupported(_)))), "{closed:?}");
}
