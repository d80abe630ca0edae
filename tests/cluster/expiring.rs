//! Times to live within transactions.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dogsled::Ttl;
use dogsled::cluster::transaction::{TransactionError, TransactionResult};
use dogsled::cluster::{Client, Error, Tree, ring};

use crate::support::{Cluster, eventually};

const PARTITIONS: u32 = 4;

/// What is to be done with a key, with a time to live in seconds.
#[derive(Clone, Debug)]
enum Operation {
    Put(String),
    PutFor(String, u64),
    InsertFor(String, u64),
    Expire(u64),
    Persist,
    Delete,
}

/// The value of each key, and how long it has to live.
type Model = BTreeMap<String, (String, Option<u64>)>;

struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn operation(&mut self, number: u64) -> Operation {
        // So far apart that the time the test takes makes no difference.
        let seconds = (1 + self.below(5)) * 10_000;
        match self.below(8) {
            0 => Operation::Put(format!("put {number}")),
            1 | 2 => Operation::PutFor(format!("for {number}"), seconds),
            3 => Operation::InsertFor(format!("insert {number}"), seconds),
            4 | 5 => Operation::Expire(seconds),
            6 => Operation::Persist,
            _ => Operation::Delete,
        }
    }
}

fn model(model: &mut Model, key: &str, operation: &Operation) {
    match operation {
        Operation::Put(value) => drop(model.insert(key.to_owned(), (value.clone(), None))),
        Operation::PutFor(value, ttl) | Operation::InsertFor(value, ttl) => {
            model.insert(key.to_owned(), (value.clone(), Some(*ttl)));
        }
        Operation::Expire(ttl) => {
            if let Some(found) = model.get_mut(key) {
                found.1 = Some(*ttl);
            }
        }
        Operation::Persist => {
            if let Some(found) = model.get_mut(key) {
                found.1 = None;
            }
        }
        Operation::Delete => drop(model.remove(key)),
    }
}

/// Does all of it in one transaction, and says what each read there.
async fn transact(client: &Client, operations: &[(String, Operation)]) -> TransactionResult<Vec<String>> {
    let tree = &client.tree("expiring");
    client
        .transaction(|tx| async move {
            let mut seen = Vec::new();
            for (key, operation) in operations {
                match operation {
                    Operation::Put(value) => tx.put(tree, key, value.as_str())?,
                    Operation::PutFor(value, ttl) => {
                        tx.put_with_ttl(tree, key, value.as_str(), Duration::from_secs(*ttl))?;
                    }
                    Operation::InsertFor(value, ttl) => {
                        let ttl = Duration::from_secs(*ttl);
                        let before = tx.insert_with_ttl(tree, key, value.as_str(), ttl).await?;
                        seen.push(before.map_or("nothing".to_owned(), |before| text(&before)));
                    }
                    Operation::Expire(ttl) => {
                        seen.push(tx.expire(tree, key, Duration::from_secs(*ttl)).await?.to_string());
                    }
                    Operation::Persist => tx.persist(tree, key)?,
                    Operation::Delete => tx.delete(tree, key)?,
                }
            }
            Ok(seen)
        })
        .await
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn is_as(tree: &Tree, model: &Model, keys: &[String], what: &str) {
    for key in keys {
        let value = tree.get(key).await.unwrap().map(|value| text(&value));
        let wanted = model.get(key);
        assert_eq!(value.as_ref(), wanted.map(|(value, _)| value), "{what}: {key}");
        let ttl = tree.ttl(key).await.unwrap();
        let fits = match (&ttl, wanted.map(|(_, ttl)| *ttl)) {
            (Ttl::NoKey, None) | (Ttl::Forever, Some(None)) => true,
            (Ttl::In(left), Some(Some(seconds))) => (seconds - 5_000..=seconds).contains(&left.as_secs()),
            _ => false,
        };
        assert!(fits, "{what}: {key} has {ttl:?} to live, and should have {wanted:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transactions_of_one_partition_and_of_several_do_to_times_to_live_what_a_model_does() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = client.tree("expiring");
    for seed in 0..3 {
        let (mut random, mut wanted) = (Random(seed), Model::new());
        tree.clear().await.unwrap();
        for round in 0..25 {
            // Half of them in one partition.
            let keys: Vec<String> = match random.below(2) {
                0 => (0..6).map(|key| format!("{{one}}{key}")).collect(),
                _ => (0..6).map(|key| format!("key {key}")).collect(),
            };
            let operations: Vec<(String, Operation)> = (0..1 + random.below(6))
                .map(|number| {
                    let key = keys[random.below(keys.len() as u64) as usize].clone();
                    (key, random.operation(round * 10 + number))
                })
                .collect();
            let mut seen = Vec::new();
            for (key, operation) in &operations {
                match operation {
                    Operation::InsertFor(..) => {
                        seen.push(wanted.get(key).map_or("nothing".to_owned(), |(value, _)| value.clone()));
                    }
                    Operation::Expire(_) => seen.push(wanted.contains_key(key).to_string()),
                    _ => {}
                }
                model(&mut wanted, key, operation);
            }
            let what = format!("seed {seed}, round {round}: {operations:?}");
            assert_eq!(transact(&client, &operations).await.unwrap(), seen, "{what}");
            is_as(&tree, &wanted, &keys, &what).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_transaction_sets_for_a_time_is_gone_after_it_in_every_partition() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = &client.tree("short");
    let of = |group| {
        (0..).map(|i| format!("key {i}")).find(move |key| ring::group_of(key.as_bytes(), PARTITIONS) == group)
    };
    let keys: &Vec<String> = &(1..=PARTITIONS).map(|group| of(group).unwrap()).collect();
    let ttl = Duration::from_secs(2);
    let none: TransactionResult<()> =
        client.transaction(|tx| async move { Ok(tx.put_with_ttl(tree, "k", "v", Duration::ZERO)?) }).await;
    assert!(matches!(none, Err(TransactionError::Cluster(Error::Invalid(_)))), "{none:?}");

    let began = Instant::now();
    let done: TransactionResult<()> = client
        .transaction(|tx| async move {
            for key in keys {
                tx.put_with_ttl(tree, key, "v", ttl)?;
                tx.put(tree, format!("{{{key}}} stays"), "v")?;
            }
            Ok(())
        })
        .await;
    done.unwrap();
    let there = || async {
        let values = tree.get_many(keys.iter()).await.unwrap();
        values.into_iter().flatten().count()
    };
    let found = there().await;
    assert!(found == keys.len() || began.elapsed() >= ttl, "{found} are there");
    eventually("all have expired", || async { there().await == 0 }).await;
    // By the clocks of the leaders, which are one here: not before, but for what the commit took.
    assert!(began.elapsed() >= ttl - Duration::from_millis(100), "{:?}", began.elapsed());
    // And are removed, by themselves.
    eventually("they are removed", || async { tree.len().await.unwrap() == u64::from(PARTITIONS) }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compare_sets_for_a_time_what_it_sets() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let tree = client.tree("compared");
    let minute = Duration::from_secs(60);
    for [a, b] in [["{x}a", "{x}b"], ["one", "{two}"]] {
        let compare = || {
            client
                .compare()
                .is_absent(&tree, a)
                .then_put_with_ttl(&tree, a, "mine", minute)
                .then_put(&tree, b, "mine")
                .else_put_with_ttl(&tree, b, "else", minute)
        };
        assert!(compare().run().await.unwrap().held());
        assert!(matches!(tree.ttl(a).await.unwrap(), Ttl::In(left) if left <= minute));
        assert_eq!(tree.ttl(b).await.unwrap(), Ttl::Forever);
        let refused = compare().run().await.unwrap();
        assert_eq!(refused.found(), Some(&dogsled::IVec::from("mine")));
        assert!(matches!(tree.ttl(b).await.unwrap(), Ttl::In(left) if left <= minute));
        assert_eq!(tree.get(b).await.unwrap().unwrap(), "else");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_expires_at_a_time_of_the_clock() {
    let cluster = Cluster::made(3, 2).await;
    let pages = cluster.client(2).await.tree("pages");
    for key in ["soon", "over", "before all time"] {
        pages.insert(key, "1").await.unwrap();
    }
    let now = SystemTime::now();
    assert!(pages.expire_at("soon", now + Duration::from_secs(1000)).await.unwrap());
    let left = pages.ttl("soon").await.unwrap();
    assert!(matches!(left, Ttl::In(left) if left.as_secs().abs_diff(990) < 15), "{left:?}");
    assert!(pages.expire_at("over", now - Duration::from_secs(1)).await.unwrap());
    assert!(pages.expire_at("before all time", UNIX_EPOCH - Duration::from_secs(1)).await.unwrap());
    assert_eq!(pages.get("over").await.unwrap(), None);
    assert_eq!(pages.get("before all time").await.unwrap(), None);
    assert!(!pages.expire_at("nothing", now + Duration::from_secs(1000)).await.unwrap());
}
