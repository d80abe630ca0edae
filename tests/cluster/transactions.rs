//! Transactions over trees, counters and partitions, seen by those who run them at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use dogsled::Batch;
use dogsled::cluster::transaction::{TransactionError, TransactionResult, abort};
use dogsled::cluster::{Client, Error, ring};

use crate::support::Cluster;

const PARTITIONS: u32 = 4;

/// A key of each partition.
fn keys() -> Vec<String> {
    let of = |group| {
        (0..).map(|i| format!("key {i}")).find(move |key| ring::group_of(key.as_bytes(), PARTITIONS) == group)
    };
    (1..=PARTITIONS).map(|group| of(group).unwrap()).collect()
}

fn number(value: Option<dogsled::IVec>) -> u64 {
    value.map_or(0, |bytes| std::str::from_utf8(&bytes).unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_reads_what_it_writes_and_happens_as_a_whole() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let (one, two) = (&client.tree("one"), &client.tree("two"));
    one.put("{x}a", "1").await.unwrap();
    // One partition, and all of them.
    for keys in [vec!["{x}a".to_owned(), "{x}b".to_owned()], keys()] {
        let keys = &keys;
        let done: TransactionResult<()> = client
            .transaction(|tx| async move {
                assert_eq!(tx.get(two, &keys[0]).await?, None);
                assert_eq!(tx.insert(two, &keys[0], "first").await?, None);
                assert_eq!(tx.get(two, &keys[0]).await?.unwrap(), "first");
                assert_eq!(tx.insert(two, &keys[0], "second").await?.unwrap(), "first");
                tx.put(one, &keys[1], "other")?;
                assert!(tx.contains_key(one, &keys[1]).await?);
                assert_eq!(tx.remove(one, &keys[1]).await?.unwrap(), "other");
                tx.put(one, &keys[1], "last")?;
                let mut batch = Batch::default();
                keys.iter().for_each(|key| batch.insert(format!("{key}!").as_str(), "batch"));
                tx.apply_batch(one, batch)?;
                let many = tx.get_many(one, [keys[1].as_str(), "nothing", "{x}a"]).await?;
                assert_eq!(many, [Some("last".into()), None, Some("1".into())]);
                assert_eq!(tx.counter_add("visits", 2).await?, 2);
                assert_eq!(tx.counter_add("visits", 3).await?, 5);
                assert!(tx.counter_add_within("visits", 3, 0..=7).await?.is_err());
                assert!(matches!(tx.counter_add("visits", i64::MAX).await, Err(Error::Invalid(_))));
                Ok(())
            })
            .await;
        done.unwrap();
        assert_eq!(two.get(&keys[0]).await.unwrap().unwrap(), "second");
        assert_eq!(one.get(&keys[1]).await.unwrap().unwrap(), "last");
        for key in keys {
            assert_eq!(one.get(format!("{key}!")).await.unwrap().unwrap(), "batch");
        }
        assert_eq!(client.counter("visits").get().await.unwrap(), 5);
        client.counter("visits").reset().await.unwrap();
    }
    // Nothing of what is aborted.
    let keys = &keys();
    let aborted: TransactionResult<(), &str> = client
        .transaction(|tx| async move {
            tx.put(one, &keys[0], "never")?;
            tx.put(one, &keys[3], "never")?;
            abort("on second thoughts")
        })
        .await;
    assert!(matches!(aborted, Err(TransactionError::Abort("on second thoughts"))), "{aborted:?}");
    assert_eq!(one.get(&keys[0]).await.unwrap(), None);
    // A handle that was kept is of no use.
    let kept = std::sync::Mutex::new(None);
    let kept_ref = &kept;
    let done: TransactionResult<()> = client
        .transaction(|tx| async move {
            *kept_ref.lock().unwrap() = Some(tx);
            Ok(())
        })
        .await;
    done.unwrap();
    let kept = kept.into_inner().unwrap().unwrap();
    assert!(kept.put(one, "a", "b").is_err() && kept.get(one, "a").await.is_err());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ranges_show_what_was_written_and_notice_what_others_add() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = &client.tree("range");
    for i in 0..40 {
        tree.put(format!("{i:02}"), format!("{i}")).await.unwrap();
    }
    let names = |entries: Vec<(dogsled::IVec, dogsled::IVec)>| {
        entries.into_iter().map(|(key, _)| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
    };
    let runs = &AtomicU32::new(0);
    let seen: Vec<Vec<String>> = client
        .transaction(|tx| {
            let (client, names) = (client.clone(), &names);
            async move {
                tx.delete(tree, "11")?;
                tx.put(tree, "10x", "new")?;
                tx.put(tree, "99", "beyond")?;
                let seen = vec![
                    names(tx.range(tree, "10".."14").await?),
                    names(tx.range_limited(tree, "10".., 3).await?),
                    names(tx.range_limited(tree, "36".., 9).await?),
                    names(tx.scan_prefix(tree, "2").await?),
                    names(tx.range(tree, "x".."b").await?),
                ];
                if runs.fetch_add(1, Ordering::SeqCst) == 0 {
                    // Within what was seen.
                    client.tree("range").put("12x", "by another").await?;
                }
                if runs.load(Ordering::SeqCst) == 2 {
                    // Not within.
                    client.tree("range").put("30x", "by another").await?;
                }
                Ok::<_, dogsled::cluster::transaction::ConflictableTransactionError>(seen)
            }
        })
        .await
        .unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert_eq!(seen[0], ["10", "10x", "12", "12x", "13"]);
    assert_eq!(seen[1], ["10", "10x", "12"]);
    assert_eq!(seen[2], ["36", "37", "38", "39", "99"]);
    assert_eq!(seen[3], (20..30).map(|i| i.to_string()).collect::<Vec<_>>());
    assert!(seen[4].is_empty());
    assert_eq!(tree.get("11").await.unwrap(), None);
    assert_eq!(tree.get("99").await.unwrap().unwrap(), "beyond");
}

async fn transfer(client: &Client, from: &str, to: &str, amount: u64) -> TransactionResult<bool> {
    let tree = &client.tree("accounts");
    client
        .transaction(|tx| async move {
            let (left, right) = (number(tx.get(tree, from).await?), number(tx.get(tree, to).await?));
            if left < amount {
                return Ok(false);
            }
            tx.put(tree, from, (left - amount).to_string())?;
            tx.put(tree, to, (right + amount).to_string())?;
            Ok(true)
        })
        .await
}

async fn total(client: &Client, keys: &[String]) -> TransactionResult<u64> {
    let tree = &client.tree("accounts");
    client
        .transaction(|tx| async move {
            let mut total = 0;
            // One after the other, so that transfers come between.
            for key in keys {
                total += number(tx.get(tree, key).await?);
            }
            Ok(total)
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transfers_between_partitions_keep_the_total_while_leaders_die() {
    let mut cluster = Cluster::made(3, PARTITIONS).await;
    let keys = Arc::new(keys());
    let client = cluster.client(1).await;
    for key in &*keys {
        client.tree("accounts").put(key, "100").await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let done: Arc<Vec<AtomicU32>> = Arc::new((0..4).map(|_| AtomicU32::new(0)).collect());
    let mut tasks = Vec::new();
    for worker in 0..4u64 {
        let client = cluster.client(1 + worker % 3).await.with_deadline(Duration::from_secs(20));
        let (keys, stop, done) = (Arc::clone(&keys), Arc::clone(&stop), Arc::clone(&done));
        tasks.push(tokio::spawn(async move {
            let (done, mut round) = (&done[worker as usize], worker);
            while !stop.load(Ordering::Relaxed) {
                round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = |shift: u32| (round >> shift) as usize % keys.len();
                if worker == 0 {
                    match total(&client, &keys).await {
                        Ok(total) => {
                            assert_eq!(total, 400, "what was read was never so");
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(error) => {
                            assert!(!matches!(error, TransactionError::Cluster(Error::Invalid(_))), "{error}")
                        }
                    }
                } else if at(33) != at(40) {
                    let told = transfer(&client, &keys[at(33)], &keys[at(40)], round >> 60).await;
                    done.fetch_add(u32::from(told.is_ok()), Ordering::Relaxed);
                }
            }
        }));
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let leader = cluster.leader(2).await;
    cluster.halt(leader).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.start(leader).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Who reads everything is in everybody's way, and they in his: each may take its time.
    let until = Instant::now() + Duration::from_secs(60);
    while done.iter().any(|done| done.load(Ordering::Relaxed) <= 5) {
        assert!(Instant::now() < until, "{done:?}");
        assert!(tasks.iter().all(|task| !task.is_finished()), "one of them has failed: {done:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    stop.store(true, Ordering::Relaxed);
    for task in tasks {
        task.await.unwrap();
    }
    let client = cluster.client(leader % 3 + 1).await;
    assert_eq!(total(&client, &keys).await.unwrap(), 400);
}

/// The total by a range, whose keys nobody names.
async fn total_of_range(client: &Client) -> TransactionResult<u64> {
    let tree = &client.tree("accounts");
    client
        .transaction(|tx| async move {
            let entries = tx.range::<&str, _>(tree, ..).await?;
            // What is not there is no part of what was locked before.
            let none = tx.range_limited(tree, "x"..="y", 2).await?;
            Ok(entries.into_iter().chain(none).map(|(_, value)| number(Some(value))).sum())
        })
        .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_of_everything_get_through_beside_writers_who_never_rest() {
    const WRITERS: u64 = 8;
    const ROUNDS: u32 = 20;
    let cluster = Cluster::made(3, PARTITIONS).await;
    // Two of each partition.
    let keys: Arc<Vec<String>> =
        Arc::new(keys().into_iter().flat_map(|key| [format!("{{{key}}}a"), format!("{{{key}}}b")]).collect());
    let client = cluster.client(1).await;
    for key in &*keys {
        client.tree("accounts").put(key, "100").await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = Vec::new();
    for worker in 0..WRITERS {
        let client = cluster.client(1 + worker % 3).await.with_deadline(Duration::from_secs(60));
        let (keys, stop) = (Arc::clone(&keys), Arc::clone(&stop));
        writers.push(tokio::spawn(async move {
            let (mut done, mut round) = (0, worker);
            while !stop.load(Ordering::Relaxed) {
                round = round.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let at = |shift: u32| (round >> shift) as usize % keys.len();
                if at(33) != at(40) {
                    done +=
                        u32::from(transfer(&client, &keys[at(33)], &keys[at(40)], round >> 60).await.is_ok());
                }
            }
            done
        }));
    }
    let mut readers = Vec::new();
    for by_range in [false, true] {
        let client = cluster.client(2).await.with_deadline(Duration::from_secs(60));
        let keys = Arc::clone(&keys);
        readers.push(tokio::spawn(async move {
            let began = std::time::Instant::now();
            for _ in 0..ROUNDS {
                let total =
                    if by_range { total_of_range(&client).await } else { total(&client, &keys).await };
                assert_eq!(total.unwrap(), 800, "what was read was never so");
            }
            println!("{ROUNDS} times, by range: {by_range}, in {:?}", began.elapsed());
        }));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    let mut done = Vec::new();
    for writer in writers {
        done.push(writer.await.unwrap());
    }
    println!("transfers: {done:?}");
    assert!(done.iter().sum::<u32>() > 20, "the writers rested: {done:?}");
    assert_eq!(total(&client, &keys).await.unwrap(), 800);
    // Nothing of the readers is left.
    for group in 1..=PARTITIONS {
        crate::support::eventually(&format!("group {group} has no locks"), || {
            let prepared = cluster.nodes.values().filter_map(|node| node.replication().replica(group));
            std::future::ready(prepared.map(|replica| replica.transaction_counts().0).sum::<usize>() == 0)
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closure_that_reads_something_else_each_time_is_judged_by_all_that_it_has_read() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let keys = &keys();
    let tree = &client.tree("turns");
    for key in keys {
        tree.put(key, "0").await.unwrap();
    }
    let runs = &AtomicU32::new(0);
    let client = &client;
    // The first three runs are disturbed, each in what it has read. The fourth is shown the first two keys and reads
    // the third by itself; it is disturbed in one that it was shown. The fifth is shown all three.
    let seen: Vec<String> = client
        .transaction(|tx| async move {
            let run = runs.fetch_add(1, Ordering::SeqCst);
            let count = if run < 3 { 2 } else { 3 };
            let mut seen = Vec::new();
            for key in &keys[..count] {
                let value = tx.get(tree, key).await?.unwrap();
                seen.push(String::from_utf8(value.to_vec()).unwrap());
            }
            if run < 4 {
                client.tree("turns").put(&keys[0], (run + 1).to_string()).await?;
            }
            Ok::<_, dogsled::cluster::transaction::ConflictableTransactionError>(seen)
        })
        .await
        .unwrap();
    assert_eq!(runs.load(Ordering::SeqCst), 5);
    assert_eq!(seen, ["4", "0", "0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_that_want_the_same_keys_both_get_through() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let keys = Arc::new(keys());
    let mut tasks = Vec::new();
    for _ in 0..6 {
        let (client, keys) =
            (cluster.client(1).await.with_deadline(Duration::from_secs(60)), Arc::clone(&keys));
        tasks.push(tokio::spawn(async move {
            for _ in 0..10 {
                let (keys, tree) = (&keys, &client.tree("hot"));
                let added: TransactionResult<()> = client
                    .transaction(|tx| async move {
                        for key in keys.iter() {
                            let value = number(tx.get(tree, key).await?) + 1;
                            tx.put(tree, key, value.to_string())?;
                        }
                        Ok(())
                    })
                    .await;
                added.unwrap();
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let client = cluster.client(1).await;
    for key in &*keys {
        assert_eq!(number(client.tree("hot").get(key).await.unwrap()), 60);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tens_of_thousands_of_operations_are_one_transaction() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = &client.tree("many");
    let count = 40_000;
    let done: TransactionResult<()> = client
        .transaction(|tx| async move {
            for i in 0..count {
                tx.put(tree, format!("{i:05}"), "v")?;
            }
            Ok(())
        })
        .await;
    done.unwrap();
    assert_eq!(tree.len().await.unwrap(), count);
    let sum: TransactionResult<usize> =
        client.transaction(|tx| async move { Ok(tx.range::<&str, _>(tree, ..).await?.len()) }).await;
    assert_eq!(sum.unwrap() as u64, count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compare_then_or_else_in_one_partition_and_over_several() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = client.tree("compared");
    let far = keys();
    for [a, b] in [["{x}a", "{x}b"], [&far[0], &far[1]]] {
        let compare = || {
            client
                .compare()
                .is_absent(&tree, a)
                .is_not(&tree, b, "taken")
                .then_put(&tree, a, "mine")
                .then_put(&tree, b, "taken")
                .else_put(&tree, b, "else")
        };
        assert!(compare().run().await.unwrap().held());
        assert_eq!(tree.get(a).await.unwrap().unwrap(), "mine");
        assert_eq!(tree.get(b).await.unwrap().unwrap(), "taken");
        let second = compare().run().await.unwrap();
        assert_eq!((second.failed(), second.found().unwrap()), (Some(0), &"mine".into()));
        assert_eq!(tree.get(b).await.unwrap().unwrap(), "else");
        let third = client.compare().is_less(&tree, a, "n").is_greater(&tree, b, "e").then_remove(&tree, a);
        assert!(third.run().await.unwrap().held());
        assert_eq!(tree.get(a).await.unwrap(), None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_under_a_lock_that_another_has_taken_since_does_nothing() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = &client.tree("guarded");
    let lease = Duration::from_secs(30);
    let first = client.lock("job").owner("ann").acquire(lease).await.unwrap();
    let token = first.token();
    let client_ref = &client;
    let write = |key: String| async move {
        let key = &key;
        let written: TransactionResult<(), &str> = client_ref
            .transaction(|tx| async move {
                if !tx.holds_lock("job", token).await? {
                    return abort("lost");
                }
                tx.put(tree, key, "by the first")?;
                Ok(())
            })
            .await;
        written
    };
    for key in keys() {
        write(key).await.unwrap();
    }
    first.release().await.unwrap().unwrap();
    let second = client.lock("job").owner("ben").acquire(lease).await.unwrap();
    for key in keys() {
        assert!(matches!(write(format!("{key} again")).await, Err(TransactionError::Abort("lost"))));
    }
    assert_eq!(tree.len().await.unwrap(), u64::from(PARTITIONS));
    second.release().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_transaction_writes_under_a_lock_it_writes_only_while_that_is_held() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = &cluster.client(1).await;
    let (free, lease) = (&client.tree("free"), Duration::from_secs(30));
    let first = client.lock("job").owner("ann").acquire(lease).await.unwrap();
    let guarded = &client.tree("guarded").under(&first);
    let (first_key, second_key) = (&keys()[0], &keys()[1]);
    let write = |value: &'static str| async move {
        let written: TransactionResult<()> = client
            .transaction(|tx| async move {
                tx.put(free, first_key, value)?;
                let mut batch = Batch::default();
                batch.insert(second_key.as_str(), value);
                tx.apply_batch(guarded, batch)?;
                Ok(())
            })
            .await;
        written
    };
    let compare = |value: &'static str| {
        let compare = client.compare().is_absent(guarded, "no such key");
        compare.then_put(free, first_key, value).then_put(guarded, second_key, value).run()
    };
    write("by the first").await.unwrap();
    assert!(compare("by the first, too").await.unwrap().held());
    // All of one partition, which is one command without a lock.
    let alone =
        || client.compare().is_present(guarded, second_key).then_put(guarded, second_key, "alone").run();
    assert!(alone().await.unwrap().held());

    let token = first.token();
    first.release().await.unwrap().unwrap();
    let second = client.lock("job").owner("ben").acquire(lease).await.unwrap();
    let refused = |error: Option<&Error>| match error {
        Some(Error::LockNotHeld { lock, token: presented, current }) => {
            assert_eq!((&lock[..], *presented, *current), (&b"job"[..], token, Some(second.token())));
        }
        other => panic!("{other:?}"),
    };
    let error = |result: TransactionResult<()>| match result {
        Err(TransactionError::Cluster(error)) => error,
        other => panic!("{other:?}"),
    };
    refused(Some(&error(write("too late").await)));
    refused(Some(&error(compare("too late").await.map(drop))));
    refused(Some(&error(alone().await.map(drop))));
    // What is not written there does not ask for it, and neither does reading.
    let unguarded: TransactionResult<()> = client
        .transaction(|tx| async move {
            let found = tx.get(guarded, second_key).await?;
            tx.put(free, first_key, found.unwrap())?;
            Ok(())
        })
        .await;
    unguarded.unwrap();
    assert_eq!(free.get(first_key).await.unwrap().unwrap(), "alone");
    assert_eq!(guarded.get(second_key).await.unwrap().unwrap(), "alone");
    second.release().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn locks_are_taken_and_given_back_with_what_is_written_or_not_at_all() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    let (tree, keys) = (&client.tree("jobs"), &keys());
    let lease = Duration::from_secs(20);
    // In one partition, and over all of them.
    for (lock, keys) in [("{x}job", vec!["{x}a".to_owned()]), ("job", keys.clone())] {
        let keys = &keys;
        let take = async |owner: &'static str| -> TransactionResult<bool> {
            client
                .transaction(|tx| async move {
                    if !tx.lock(lock).try_acquire(owner, lease).await? {
                        return Ok(false);
                    }
                    keys.iter().try_for_each(|key| tx.put(tree, key, owner))?;
                    Ok(true)
                })
                .await
        };
        assert!(take("ann").await.unwrap(), "{lock}");
        assert!(!take("ben").await.unwrap(), "{lock}: it is held");
        for key in keys {
            assert_eq!(tree.get(key).await.unwrap().unwrap(), "ann");
        }
        let guard = client.lock(lock).owner("ann").resume().await.unwrap().expect("it is held");
        let token = guard.token();
        // What is under the lock is written with its end.
        let under = &tree.under(&guard);
        let finish = async || -> TransactionResult<bool> {
            client
                .transaction(|tx| async move {
                    assert_eq!(tx.lock(lock).holder().await?.map(|holder| holder.token), Some(token));
                    keys.iter().try_for_each(|key| tx.put(under, key, "done"))?;
                    Ok(tx.lock(lock).release("ann", token).await?)
                })
                .await
        };
        let waits = tokio::spawn({
            let lock = client.lock(lock).owner("cy");
            async move { lock.acquire(lease).await.map(|guard| guard.token()) }
        });
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(finish().await.unwrap(), "{lock}");
        let next = waits.await.unwrap().expect("it was given back");
        assert!(next > token, "{lock}: {next:?} after {token:?}");
        for key in keys {
            assert_eq!(tree.get(key).await.unwrap().unwrap(), "done");
        }
        // It is not ann's any more: nothing is written, and nothing given back.
        let late: TransactionResult<bool> = client
            .transaction(|tx| async move {
                let released = tx.lock(lock).release("ann", token).await?;
                let renewed = tx.lock(lock).renew("ann", token, lease).await?;
                Ok(released || renewed || tx.holds_lock(lock, token).await?)
            })
            .await;
        assert!(!late.unwrap(), "{lock}");
        let twice: TransactionResult<()> = client
            .transaction(|tx| async move {
                let other = tx.lock("{x}another");
                assert!(other.try_acquire("ann", lease).await?);
                other.try_acquire("ann", lease).await?;
                Ok(())
            })
            .await;
        assert!(matches!(twice, Err(TransactionError::Cluster(Error::Invalid(_)))), "{twice:?}");
        assert_eq!(client.lock("{x}another").holder().await.unwrap(), None);
        // Who goes on all the same has what was told of the first.
        let first: TransactionResult<()> = client
            .transaction(|tx| async move {
                let other = tx.lock("{x}another");
                assert!(other.try_acquire("ann", lease).await?);
                assert!(other.try_acquire("ben", lease).await.is_err());
                Ok(())
            })
            .await;
        first.unwrap();
        let taken_up = client.lock("{x}another").owner("ann").resume().await.unwrap();
        taken_up.expect("ann has it").release().await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_many_that_take_a_lock_in_transactions_at_once_one_has_it_and_wrote() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    for round in 0..5 {
        let tries = (0..8).map(|number| {
            let (client, lock) = (client.clone(), format!("contended {round}"));
            tokio::spawn(async move {
                let (tree, lock, owner) = (&client.tree("won"), &lock, &format!("owner {number}"));
                let taken: TransactionResult<bool> = client
                    .transaction(|tx| async move {
                        let taken = tx.lock(lock).try_acquire(owner, Duration::from_secs(20)).await?;
                        if taken {
                            tx.put(tree, owner, lock.as_str())?;
                            tx.counter_add(lock, 1).await?;
                        }
                        Ok(taken)
                    })
                    .await;
                taken.unwrap()
            })
        });
        let tries: Vec<_> = tries.collect();
        let mut winners = 0;
        for one in tries {
            winners += u32::from(one.await.unwrap());
        }
        assert_eq!(winners, 1);
        let lock = format!("contended {round}");
        assert_eq!(client.counter(&lock).get().await.unwrap(), 1);
        let holder = client.lock(&lock).holder().await.unwrap().expect("somebody has it");
        assert_eq!(client.tree("won").get(&holder.owner).await.unwrap().unwrap(), lock.as_bytes());
    }
}
