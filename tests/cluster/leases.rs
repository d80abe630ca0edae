//! Leases as those see them who live by them: a guard and a session know in time when they may be over, and what is not
//! known is not told as if it were.

use std::time::{Duration, Instant};

use dogsled::cluster::transaction::{Outcome, TransactionError};
use dogsled::cluster::{Client, Error};

use crate::support::{Cluster, eventually};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(3);
/// Renewed at a third of it, so that a machine may stand still for some seconds.
const HELD: Duration = Duration::from_secs(7);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_that_is_made_shorter_is_renewed_and_told_by_its_new_length() {
    let cluster = Cluster::made(1, 2).await;
    let client = cluster.client(1).await;
    // Renewals follow the new length, also of what needed none before.
    for (name, lease) in [("one", LONG), ("two", Duration::MAX)] {
        let guard = client.lock(name).acquire(lease).await.unwrap();
        let lost = async {
            guard.lost().await;
            true
        };
        let kept = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            guard.renew(HELD).await.unwrap().unwrap();
            tokio::time::sleep(HELD * 3 / 2).await;
            false
        };
        let is_lost = tokio::select! {
            lost = lost => lost,
            lost = kept => lost,
        };
        assert!(!is_lost && guard.is_valid(), "{name}: nobody has renewed it");
        assert!(guard.remaining() <= HELD, "{name}: {:?}", guard.remaining());
        let rival = client.lock(name).owner("rival").try_acquire(LONG).await.unwrap();
        assert!(rival.is_none(), "{name}");
        guard.release().await.unwrap().unwrap();
    }
    // Without renewals, whoever waits for the loss is told in time.
    for (name, lease) in [("three", LONG), ("four", Duration::MAX)] {
        let guard = client.lock(name).without_renewal().acquire(lease).await.unwrap();
        let began = Instant::now();
        let shorter = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            guard.renew(SHORT).await.unwrap().unwrap();
            std::future::pending::<()>().await
        };
        tokio::select! {
            told = tokio::time::timeout(LONG / 2, guard.lost()) => told.expect("it is told"),
            () = shorter => unreachable!("it waits for ever"),
        }
        assert!(began.elapsed() >= SHORT / 2, "{name}: told after {:?}", began.elapsed());
        guard.release().await.ok();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_grant_for_ever_is_one_also_for_who_has_waited_for_it() {
    let cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let first = client.lock("job").acquire(LONG).await.unwrap();
    let waiting = {
        let client = client.clone();
        tokio::spawn(async move { client.lock("job").owner("second").acquire(Duration::MAX).await.unwrap() })
    };
    tokio::time::sleep(Duration::from_millis(200)).await;
    first.release().await.unwrap().unwrap();
    let second = waiting.await.unwrap();
    assert!(second.is_valid() && second.valid_until().is_none(), "{:?}", second.remaining());
    let lost = tokio::time::timeout(Duration::from_millis(300), second.lost()).await;
    assert!(lost.is_err(), "it was told that it is lost");
    second.release().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_lives_with_one_session_is_not_taken_up_by_another() {
    let cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let (before, after) = (client.session(LONG), client.session(LONG));
    let tree = client.tree("workers");
    before.insert(&tree, "before", "1").await.unwrap();
    after.insert(&tree, "after", "1").await.unwrap();
    let shard = || client.lock("shard").owner("worker");
    let held = shard().of_session(&before).try_acquire().await.unwrap().unwrap();
    let token = held.token();
    held.keep();
    assert!(shard().of_session(&after).resume().await.unwrap().is_none());
    assert!(shard().resume().await.unwrap().is_none());
    let again = shard().of_session(&before).resume().await.unwrap().unwrap();
    assert_eq!(again.token(), token);
    again.release().await.unwrap().unwrap();
    // Neither the other way about.
    shard().try_acquire(LONG).await.unwrap().unwrap().keep();
    assert!(shard().of_session(&after).resume().await.unwrap().is_none());
    assert!(shard().resume().await.unwrap().is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_of_a_session_is_told_lost_when_somebody_gives_it_back_and_kept_while_nobody_does() {
    let cluster = Cluster::made(1, 1).await;
    let (client, operator) = (cluster.client(1).await, cluster.client(1).await);
    let session = client.session(HELD);
    let lock = client.lock("shard").owner("worker").of_session(&session);
    let guard = lock.try_acquire().await.unwrap().unwrap();
    // It was asked for several times by then.
    let lost = tokio::time::timeout(HELD * 3 / 2, guard.lost()).await;
    assert!(lost.is_err() && guard.is_valid(), "nobody has taken it");
    operator.lock("shard").owner("worker").release_grant(guard.token()).await.unwrap().unwrap();
    tokio::time::timeout(HELD, guard.lost()).await.expect("it hears of it within a third of the lease");
    assert!(!guard.is_valid() && guard.remaining().is_zero());
    // The session lives on, and so does what else it has; one that was taken up hears of it as well.
    assert!(!session.is_lost());
    lock.try_acquire().await.unwrap().unwrap().keep();
    let resumed = lock.resume().await.unwrap().unwrap();
    assert!(resumed.is_valid());
    operator.lock("shard").owner("worker").release_grant(resumed.token()).await.unwrap().unwrap();
    tokio::time::timeout(HELD, resumed.lost()).await.expect("it hears of it as well");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_that_nobody_could_be_told_is_given_back_is_given_back_later() {
    let mut cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let session = client.session(LONG);
    let hasty = client.with_deadline(Duration::from_secs(4));
    let guard = hasty.lock("shard").of_session(&session).try_acquire().await.unwrap().unwrap();
    cluster.halt(1).await;
    assert!(guard.release().await.is_err());
    cluster.start(1).await;
    // Long before the session's lease is over, and the session is kept alive.
    let next = client.lock("shard").acquire_timeout(LONG, LONG / 2).await.unwrap();
    assert!(next.is_some_and(|next| next.is_valid()) && !session.is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_nobody_hears_of_is_told_lost_when_its_lease_is_over_and_not_later() {
    let mut cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let lease = Duration::from_secs(14);
    let session = client.session(lease);
    let asked = Instant::now();
    session.insert(&client.tree("workers"), "one", "1").await.unwrap();
    cluster.halt(1).await;
    tokio::time::timeout(lease * 4, session.lost()).await.expect("it is lost some day");
    // A third of the lease later it would be if only the end of a renewal that failed were looked at.
    let took = asked.elapsed();
    assert!(took < lease + lease / 4, "told after {took:?}");
    assert!(session.is_lost());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_closed_while_it_opens_elsewhere_leaves_nothing_behind() {
    let cluster = Cluster::made(1, 16).await;
    let client = cluster.client(1).await;
    let tree = client.tree("workers");
    let mut refused = 0;
    for round in 0..20_u32 {
        let session = client.session(LONG);
        let inserting = (0..32).map(|number| {
            let (session, tree) = (session.clone(), tree.clone());
            tokio::spawn(async move { session.insert(&tree, format!("{number}"), "1").await })
        });
        let inserting: Vec<_> = inserting.collect();
        // Later in each round.
        tokio::time::sleep(Duration::from_micros(500) * round).await;
        session.close().await.unwrap();
        for inserted in inserting {
            refused += u32::from(inserted.await.unwrap().is_err());
        }
        assert_eq!(tree.len().await.unwrap(), 0, "round {round}");
        let left = client.sessions().await.unwrap();
        assert!(left.iter().all(|left| left.id != session.id()), "round {round}: {left:?}");
    }
    assert!(refused > 0, "no insert met the end of its session");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_that_is_dropped_ends_before_its_client_is_closed() {
    let cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let (address, options) = (cluster.address(1), cluster.options());
    let once = std::thread::spawn(move || {
        // On one thread nothing happens between the drop and what follows.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let client = Client::connect([address], options).await.unwrap();
            // A lease that is never over is one of a year.
            let session = client.session(Duration::MAX);
            session.insert(&client.tree("workers"), "one", "1").await.unwrap();
            drop(session);
            client.close().await;
        });
    });
    tokio::task::spawn_blocking(|| once.join().unwrap()).await.unwrap();
    assert_eq!(client.tree("workers").get("one").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_takes_his_time_over_each_entry_gets_them_all() {
    let cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    let tree = client.tree("many");
    let keys = 100;
    for key in 0..keys {
        tree.put(format!("{key:03}"), vec![7; 1_500]).await.unwrap();
    }
    let hasty = tree.with_deadline(Duration::from_secs(1));
    // Once more if there was no answer: the machine may stand still for longer than the deadline.
    let mut tries = 0;
    let seen = 'again: loop {
        tries += 1;
        let mut entries = hasty.iter();
        let mut seen = 0;
        while let Some(entry) = entries.next().await {
            let (key, _) = match entry {
                Err(Error::Unavailable(_)) if tries < 5 => continue 'again,
                entry => entry.unwrap(),
            };
            assert_eq!(key, format!("{seen:03}").as_str());
            // Until the second page is asked for and has come: the first has two or three.
            if seen < 3 {
                tokio::time::sleep(Duration::from_millis(1_200)).await;
            }
            seen += 1;
        }
        break seen;
    };
    assert_eq!(seen, keys);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_whose_answer_was_not_heard_is_told_as_unknown_and_settled() {
    let mut cluster = Cluster::made(3, 1).await;
    let leader = cluster.leader(1).await;
    let others: Vec<u64> = (1..=3).filter(|node| *node != leader).collect();
    let client = cluster.client(leader).await.with_deadline(Duration::from_secs(2));
    let tasks: Vec<_> = (0..20)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move {
                let (tree, key) = (client.tree("t"), format!("key {number}"));
                for round in 0_u64.. {
                    let compare = client.compare().is_not(&tree, &key, "never");
                    match compare.then_put(&tree, &key, round.to_string().as_str()).run().await {
                        Ok(compared) => assert!(compared.held()),
                        Err(error) => return (key, round, error),
                    }
                }
                unreachable!("it goes on until it fails")
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(300)).await;
    for node in &others {
        cluster.halt(*node).await;
    }
    let mut failures = Vec::new();
    for task in tasks {
        failures.push(task.await.unwrap());
    }
    for node in others {
        cluster.start(node).await;
    }
    let client = client.with_deadline(LONG);
    eventually("there is a quorum again", || {
        let client = client.clone();
        async move { client.tree("t").get("later").await.is_ok() }
    })
    .await;
    let mut unknown = 0;
    for (key, round, error) in failures {
        let found = || async {
            let found = client.tree("t").get(&key).await.unwrap();
            found.map(|found| String::from_utf8_lossy(&found).parse::<u64>().unwrap())
        };
        match error {
            TransactionError::OutcomeUnknown { transaction, .. } => {
                unknown += 1;
                // It asks for no longer than the client had whose it is.
                let until = Instant::now() + LONG / 2;
                let outcome = loop {
                    match transaction.outcome().await {
                        Ok(outcome) => break outcome,
                        Err(error) => assert!(Instant::now() < until, "{key}: {error:?}"),
                    }
                };
                match outcome {
                    Outcome::Committed => assert_eq!(found().await, Some(round), "{key}"),
                    Outcome::Aborted => assert_eq!(found().await, round.checked_sub(1), "{key}"),
                    Outcome::Forgotten => panic!("{key}: it was asked within seconds"),
                }
            }
            error => {
                assert!(error.is_definite(), "{key}: {error:?}");
                assert!(
                    matches!(error, TransactionError::Cluster(Error::Unavailable(_))),
                    "{key}: {error:?}"
                );
                assert_eq!(found().await, round.checked_sub(1), "{key}");
            }
        }
    }
    assert!(unknown > 0, "none was under way when the quorum was lost");
    eventually("it goes on", || {
        let client = client.clone();
        async move { client.tree("t").put("later", "1").await.is_ok() }
    })
    .await;
}
