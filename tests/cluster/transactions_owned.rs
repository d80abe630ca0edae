//! Keys of sessions, keys with numbers, and times to live that are read, in transactions of a cluster.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogsled::cluster::transaction::{TransactionError, TransactionResult};
use dogsled::cluster::{Error, ring};
use dogsled::{IVec, Ttl};

use crate::support::Cluster;

const PARTITIONS: u32 = 4;
const LEASE: Duration = Duration::from_secs(60);

/// A key of another partition than this one.
fn elsewhere(key: &str) -> String {
    let group = |key: &str| ring::group_of(key.as_bytes(), PARTITIONS);
    (0..).map(|i| format!("key {i}")).find(|other| group(other) != group(key)).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_of_sessions_and_numbers_come_to_be_with_all_the_rest_or_not_at_all() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    let (jobs, workers) = (&client.tree("jobs"), &client.tree("workers"));
    let session = &client.session(LEASE);
    // In one partition, and over several.
    for (number, worker) in [(0, "{jobs}worker".to_owned()), (2, elsewhere("{jobs}"))] {
        let worker = &worker;
        let begun = async |fails: bool| -> TransactionResult<(IVec, IVec), &'static str> {
            client
                .transaction(|tx| async move {
                    assert_eq!(tx.insert_with_session(workers, session, worker, "here").await?, None);
                    assert_eq!(tx.get(workers, worker).await?.unwrap(), "here");
                    let first = tx.insert_next(jobs, "{jobs}:", "one").await?;
                    let second = tx.insert_next_with_session(jobs, session, "{jobs}:", "two").await?;
                    assert_eq!(tx.get(jobs, &second).await?.unwrap(), "two");
                    if fails {
                        return dogsled::cluster::transaction::abort("never mind");
                    }
                    Ok((first, second))
                })
                .await
        };
        assert!(matches!(begun(true).await, Err(TransactionError::Abort("never mind"))));
        assert_eq!(workers.get(worker).await.unwrap(), None);
        let (first, second) = begun(false).await.unwrap();
        assert_eq!(first, format!("{{jobs}}:{number:020}"));
        assert_eq!(second, format!("{{jobs}}:{:020}", number + 1));
        assert_eq!(workers.get(worker).await.unwrap().unwrap(), "here");
        assert_eq!(jobs.get(&second).await.unwrap().unwrap(), "two");
        // A plain write makes a key one like any other, in the same transaction as well.
        let plain: TransactionResult<()> = client
            .transaction(|tx| async move {
                tx.insert_with_session(workers, session, "{jobs}plain", "owned").await?;
                tx.put(workers, "{jobs}plain", "plain")?;
                Ok(())
            })
            .await;
        plain.unwrap();
    }
    session.close().await.unwrap();
    for key in ["{jobs}worker", &elsewhere("{jobs}")] {
        assert_eq!(workers.get(key).await.unwrap(), None, "{key} has outlived its session");
    }
    assert_eq!(workers.get("{jobs}plain").await.unwrap().unwrap(), "plain");
    let left = [0, 2].map(|number| format!("{{jobs}}:{number:020}"));
    for (number, key) in left.iter().enumerate() {
        assert_eq!(jobs.get(key).await.unwrap().unwrap(), "one", "{number}");
    }
    // A number that is given is used: its key is not removed again.
    let removed: TransactionResult<()> = client
        .transaction(|tx| async move {
            let key = tx.insert_next(jobs, "{jobs}:", "one").await?;
            Ok(tx.delete(jobs, key)?)
        })
        .await;
    assert!(matches!(removed, Err(TransactionError::Cluster(Error::Invalid(_)))), "{removed:?}");
    let refused: TransactionResult<Option<IVec>> = client
        .transaction(|tx| async move { Ok(tx.insert_with_session(workers, session, "a", "b").await?) })
        .await;
    assert!(matches!(refused, Err(TransactionError::Cluster(Error::Invalid(_)))), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_that_take_numbers_of_one_prefix_at_once_get_each_its_own() {
    const EACH: u32 = 5;
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    let takes = (0..6).map(|taker| {
        let client = client.clone();
        tokio::spawn(async move {
            let (jobs, names) = (&client.tree("jobs"), &client.tree("names"));
            let mut taken = Vec::new();
            for turn in 0..EACH {
                // Every third taker without a transaction.
                let key = if taker % 3 == 0 {
                    jobs.insert_next("{q}:", "plain").await.unwrap()
                } else {
                    let elsewhere = &elsewhere("{q}");
                    let key: TransactionResult<IVec> = client
                        .transaction(|tx| async move {
                            tx.put(names, format!("{elsewhere} {taker} {turn}"), "taken")?;
                            Ok(tx.insert_next(jobs, "{q}:", "of tx").await?)
                        })
                        .await;
                    key.unwrap()
                };
                taken.push(key);
            }
            taken
        })
    });
    let mut all = Vec::new();
    for taken in takes.collect::<Vec<_>>() {
        all.extend(taken.await.unwrap());
    }
    all.sort();
    let expected: Vec<IVec> =
        (0..6 * EACH).map(|number| format!("{{q}}:{number:020}").as_str().into()).collect();
    assert_eq!(all, expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_time_to_live_that_a_transaction_has_read_is_so_when_it_is_committed() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let (tree, other) = (&client.tree("t"), &elsewhere("{x}k"));
    tree.insert_with_ttl("{x}k", "v", LEASE).await.unwrap();
    tree.put("{x}forever", "v").await.unwrap();
    let runs = &AtomicU32::new(0);
    // Of one partition and of several; the last only reads.
    for writes in [Some("{x}seen"), Some(other.as_str()), None] {
        runs.store(0, Ordering::Relaxed);
        let seen: TransactionResult<Ttl> = client
            .transaction(|tx| async move {
                assert_eq!(tx.ttl(tree, "{x}nothing").await?, Ttl::NoKey);
                assert_eq!(tx.ttl(tree, "{x}forever").await?, Ttl::Forever);
                let ttl = tx.ttl(tree, "{x}k").await?;
                if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                    // Somebody changes it, and not the key.
                    assert!(tree.expire("{x}k", LEASE * 2).await?);
                }
                if let Some(key) = writes {
                    tx.put(tree, key, "seen")?;
                }
                Ok(ttl)
            })
            .await;
        let Ttl::In(left) = seen.unwrap() else { panic!("it has a time to live") };
        assert!(left > LEASE && left <= LEASE * 2, "{writes:?}: {left:?}");
        assert_eq!(runs.load(Ordering::Relaxed), 2, "{writes:?}");
        tree.expire("{x}k", LEASE).await.unwrap();
    }
    // What a run gives up for was so as well: the first has seen half of a change.
    tree.persist("{x}k").await.unwrap();
    runs.store(0, Ordering::Relaxed);
    let refused: TransactionResult<(), Ttl> = client
        .transaction(|tx| async move {
            let ttl = tx.ttl(tree, "{x}k").await?;
            if runs.fetch_add(1, Ordering::Relaxed) == 0 {
                assert!(tree.expire("{x}k", LEASE).await?);
            }
            tx.get(tree, other).await?;
            dogsled::cluster::transaction::abort(ttl)
        })
        .await;
    assert!(matches!(refused, Err(TransactionError::Abort(Ttl::In(_)))), "{refused:?}");
    assert_eq!(runs.load(Ordering::Relaxed), 2);
    // What it writes itself it sees.
    let own: TransactionResult<()> = client
        .transaction(|tx| async move {
            tx.put_with_ttl(tree, "{x}a", "v", LEASE)?;
            assert_eq!(tx.ttl(tree, "{x}a").await?, Ttl::In(LEASE));
            tx.put(tree, "{x}a", "v")?;
            assert_eq!(tx.ttl(tree, "{x}a").await?, Ttl::Forever);
            tx.delete(tree, "{x}a")?;
            assert_eq!(tx.ttl(tree, "{x}a").await?, Ttl::NoKey);
            tx.persist(tree, "{x}k")?;
            assert_eq!(tx.ttl(tree, "{x}k").await?, Ttl::Forever);
            Ok(())
        })
        .await;
    own.unwrap();
    assert_eq!(tree.ttl("{x}k").await.unwrap(), Ttl::Forever);
}
