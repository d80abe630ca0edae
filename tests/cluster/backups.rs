//! Backups that were interrupted, and made again in the same directory.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dogsled::cluster::Client;
use dogsled::cluster::backup::{BackupError, BackupReport, RestoreOptions};

use crate::support::{Cluster, eventually};

const PARTITIONS: u32 = 2;

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Some writes: of about four kibibytes each, and of every kind.
async fn change(client: &Client, random: &mut Random, count: u64) {
    let (tree, other, numbered) = (client.tree("tree"), client.tree("other"), client.tree("numbered"));
    let tasks: Vec<_> = (0..count)
        .map(|number| {
            let (what, key) = (random.below(12), format!("key-{:04}", random.below(1_500)));
            let value = format!("{number}-{}", random.below(1_000_000)).repeat(500);
            let (tree, other, numbered, client) =
                (tree.clone(), other.clone(), numbered.clone(), client.clone());
            tokio::spawn(async move {
                match what {
                    0 => drop(tree.remove(&key).await.unwrap()),
                    1 => drop(tree.expire(&key, Duration::from_secs(10_000 + number)).await.unwrap()),
                    2 => drop(numbered.insert_next("{n}-", &b"numbered"[..]).await.unwrap()),
                    3 => drop(client.counter(&key).add(1).await.unwrap()),
                    4 | 5 => other.put(&key, value.as_bytes()).await.unwrap(),
                    _ => tree.put(&key, value.as_bytes()).await.unwrap(),
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

/// Begins a backup, and gives it up when so many keys were looked at; whether it was finished before.
async fn begin(client: &Client, directory: &Path, since: &[PathBuf], keys: u64) -> Option<BackupReport> {
    let enough = tokio::sync::Notify::new();
    let told = |done, _| {
        if done >= keys {
            enough.notify_one();
        }
    };
    let report = tokio::select! {
        biased;
        () = enough.notified() => return None,
        made = client.backup(directory, since, told) => made.unwrap(),
    };
    Some(report)
}

/// Makes one, once nobody else does so in this directory any more.
async fn make(client: &Client, directory: &Path, since: &[PathBuf]) -> BackupReport {
    for _ in 0..500 {
        match client.backup(directory, since, |_, _| {}).await {
            Err(BackupError::Refused(why)) if why.contains("another backup is being made") => {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            made => return made.unwrap(),
        }
    }
    panic!("it is still being made");
}

/// The blocks of a partition's file, without what tells backups apart: its number, and checks that begin with that.
fn blocks(directory: &Path, partition: u32) -> Vec<(u8, Vec<u8>)> {
    let bytes = std::fs::read(directory.join(format!("partition-{partition:05}"))).unwrap();
    let (mut rest, mut blocks) = (&bytes[36..], Vec::new());
    while let Some((head, behind)) = rest.split_first_chunk::<5>() {
        let length = u32::from_le_bytes(head[1..].try_into().unwrap()) as usize;
        blocks.push((head[0], behind[..length].to_vec()));
        rest = &behind[length + 4..];
    }
    blocks
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort_unstable();
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_interrupted_takes_what_is_there_and_is_byte_by_byte_what_a_new_one_is() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await.with_deadline(Duration::from_secs(30));
    let seed = std::env::var("DOGSLED_SEED").map_or(7, |seed| seed.parse().unwrap());
    println!("again: DOGSLED_SEED={seed} cargo test --test cluster backups");
    let mut random = Random(seed);
    let path = |name: &str| cluster.directory.path().join(name);
    let (mut chain, mut kept, mut interrupted) = (Vec::new(), 0, 0);
    change(&client, &mut random, 2_000).await;
    for round in 0..4 {
        let (resumed, fresh) = (path(&format!("resumed-{round}")), path(&format!("fresh-{round}")));
        for _ in 0..=random.below(2) {
            if begin(&client, &resumed, &chain, 200 + random.below(1_000)).await.is_some() {
                break;
            }
            interrupted += 1;
            let count = 50 + random.below(150);
            change(&client, &mut random, count).await;
        }
        if !resumed.join("MANIFEST").exists() {
            let report = make(&client, &resumed, &chain).await;
            assert!(report.kept <= report.records, "{report:?}");
            kept += report.kept;
        }
        let report = make(&client, &fresh, &chain).await;
        assert_eq!(report.kept, 0);
        for partition in 1..=PARTITIONS {
            assert!(blocks(&resumed, partition) == blocks(&fresh, partition), "round {round}");
        }
        assert_eq!(names(&resumed), ["MANIFEST", "partition-00001", "partition-00002"]);
        // The first is complete, the others add to those before.
        chain.push(resumed);
        change(&client, &mut random, 800).await;
    }
    assert!(interrupted >= 3 && kept > 300, "{interrupted} were interrupted, {kept} records were kept");
    let other = Cluster::made(1, 3).await;
    let restored = other.client(1).await;
    restored.restore(&chain, RestoreOptions::default(), |_, _, _| {}).await.unwrap();
}

/// What is left in a directory of another cluster's backup is of no use, nor what somebody has damaged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_or_is_damaged_is_copied_again() {
    let clusters = [Cluster::made(1, PARTITIONS).await, Cluster::made(1, PARTITIONS).await];
    let mut clients = Vec::new();
    for (number, cluster) in clusters.iter().enumerate() {
        let client = cluster.client(1).await.with_deadline(Duration::from_secs(30));
        // As many entries at the same positions.
        let mut batch = dogsled::Batch::default();
        for key in 0..600 {
            batch.insert(
                format!("{{t}}{key:04}").into_bytes(),
                format!("{number}").repeat(5_000).into_bytes(),
            );
        }
        client.tree("tree").apply_batch(batch).await.unwrap();
        clients.push(client);
    }
    let directory = clusters[0].directory.path().join("b");
    assert_eq!(begin(&clients[0], &directory, &[], 100).await, None);
    assert!(make(&clients[1], &directory, &[]).await.kept == 0, "it is of another cluster");
    std::fs::remove_dir_all(&directory).unwrap();

    // A file of which a bit is flipped counts as far as it is sound.
    let mut counted = BTreeMap::new();
    for place in [0, 1, 2, 3] {
        assert_eq!(begin(&clients[0], &directory, &[], 300).await, None);
        eventually("what was being written comes to its end", || std::future::ready(is_unlocked(&directory)))
            .await;
        for partition in 1..=PARTITIONS {
            let path = directory.join(format!("partition-{partition:05}"));
            let Ok(mut bytes) = std::fs::read(&path) else { continue };
            if bytes.len() > 1_000 {
                // Not in what says whose file it is.
                let at = 8 + (bytes.len() - 9) * place / 3;
                bytes[at] ^= 4;
                std::fs::write(&path, bytes).unwrap();
            }
        }
        let report = make(&clients[0], &directory, &[]).await;
        assert_eq!(report.records, 600);
        counted.insert(place, report.kept);
        let (restored, into) = (Cluster::made(1, 1).await, directory.clone());
        let client = restored.client(1).await;
        client.restore(&[into], RestoreOptions::default(), |_, _, _| {}).await.unwrap();
        let found = client.tree("tree").get("{t}0599").await.unwrap().unwrap();
        assert!(found.len() == 5_000 && found.iter().all(|byte| *byte == b'0'));
        std::fs::remove_dir_all(&directory).unwrap();
    }
    assert!(counted[&0] == 0 && counted[&1] > 0 && counted[&3] > counted[&1], "{counted:?}");
}

/// Whether nobody makes a backup there.
fn is_unlocked(directory: &Path) -> bool {
    let file = std::fs::File::open(directory.join("LOCK")).unwrap();
    file.try_lock().is_ok()
}
