//! Quotas of trees that are spread over partitions.

use std::time::Duration;

use dogsled::cluster::transaction::{TransactionError, TransactionResult};
use dogsled::cluster::{Error, Tree};
use dogsled::{Measure, QuotaLimit};

use crate::support::{Cluster, eventually};

const PARTITIONS: u32 = 4;

fn bytes(bytes: u64) -> Option<QuotaLimit> {
    Some(QuotaLimit { bytes: Some(bytes), entries: None })
}

/// Puts keys until one is refused, or there are so many; how many were taken.
async fn fill(tree: &Tree, tag: &str, most: usize) -> usize {
    for number in 0..most {
        match tree.put(format!("{tag}{number:05}"), "0123456789").await {
            Ok(()) => {}
            Err(Error::QuotaExceeded(exceeded)) => {
                assert_eq!((&exceeded.tree[..], exceeded.measure), (&b"cache"[..], Measure::Bytes));
                return number;
            }
            Err(other) => panic!("{other}"),
        }
    }
    most
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tree_never_holds_more_than_its_quota_whoever_leads() {
    let mut cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await.with_deadline(Duration::from_secs(20));
    let cache = client.tree("cache");
    cache.put("before", "x").await.unwrap();
    client.set_tree_quota("cache", bytes(40_000)).await.unwrap();
    assert!(matches!(client.set_tree_quota("cache", bytes(3)).await, Err(Error::Invalid(_))));
    let quota = || async {
        let quotas = client.tree_quotas().await.unwrap();
        assert_eq!(quotas.len(), 1);
        quotas.into_iter().next().unwrap()
    };
    let found = quota().await;
    assert_eq!((found.whole.bytes, found.whole.entries, found.whole.limit), (7, 1, bytes(40_000).unwrap()));
    assert_eq!(found.parts.len(), PARTITIONS as usize);

    // Each key is of 15 bytes. Spread, the tree is nearly full before the first refusal.
    let taken = fill(&cache, "", 5_000).await as u64 * 15;
    assert!((28_000..=40_000).contains(&taken), "{taken}");
    let found = quota().await;
    assert_eq!(found.whole.bytes, taken + 7);
    assert_eq!(found.fullest().unwrap().1, 99);

    // Another leads what is full, and knows.
    let (full, _) = found.fullest().unwrap();
    let mut leader = cluster.leader(full).await;
    // It is handed back after a while: then once more.
    while leader == 1 {
        let heir = dogsled::cluster::NodeId(2);
        eventually("another leads", || async {
            let _ = client.transfer_leader(full, heir).await;
            client.map().await.is_ok_and(|map| map.leaders[full as usize] == Some(heir))
        })
        .await;
        leader = cluster.leader(full).await;
    }
    cluster.halt(leader).await;
    let part = found.parts.iter().find(|(group, _)| *group == full).unwrap().1.clone();
    let again = quota().await;
    assert_eq!(again.parts.iter().find(|(group, _)| *group == full).unwrap().1, part);
    // All with one tag has the share of one partition.
    let of_tag = fill(&cache, "{a}", 5_000).await;
    assert!(of_tag < 10_000 / 18, "{of_tag}");

    // Smaller is never refused; a transaction over partitions is refused whole.
    for number in 0..100 {
        cache.put(format!("{number:05}"), "012345678").await.unwrap();
    }
    let before = quota().await.whole;
    let refused: TransactionResult<()> = client
        .transaction(|tx| {
            let cache = cache.clone();
            async move {
                for number in 0..40 {
                    tx.put(&cache, format!("{number:05}"), vec![b'x'; 2_000])?;
                }
                Ok(())
            }
        })
        .await;
    assert!(matches!(&refused, Err(TransactionError::Cluster(Error::QuotaExceeded(_)))), "{refused:?}");
    assert_eq!(quota().await.whole, before);
    client.set_tree_quota("cache", None).await.unwrap();
    assert!(client.tree_quotas().await.unwrap().is_empty());
    cache.put("{a}more", vec![b'x'; 50_000]).await.unwrap();
}
