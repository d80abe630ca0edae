//! Jobs that run at their times on one of several instances: that of the leader. When it is gone, another leads,
//! and no run is done twice, nor by one that does not know yet that it leads no more.
//!
//! `cargo run --example cron --features cluster` starts a node within this program, and three schedulers of which
//! one stops amid its work.

use std::error::Error;
use std::time::Duration;

use dogsled::cluster::{Client, ClientOptions, Election, Leadership, Node, NodeCertificates, NodeConfig};

/// Short, so that the example is; a real one has seconds.
const LEASE: Duration = Duration::from_secs(2);
const EVERY: Duration = Duration::from_millis(100);

/// Lock and keys share a tag, and so a partition: the one is checked where the others are written.
const ELECTION: &str = "{cron}";

/// Runs what is due, for as long as it leads; how many runs it did.
async fn lead(
    client: &Client,
    leadership: &Leadership,
    name: &str,
    runs: u64,
) -> dogsled::cluster::Result<u64> {
    // Every write through this says: only if I lead still.
    let journal = client.tree("journal").under(leadership.guard());
    let mut done = 0;
    while done < runs {
        // Where the one before has stopped.
        let next = journal.scan_prefix("{cron}run ").into_vec().await?.len();
        tokio::select! {
            () = leadership.lost() => break,
            () = tokio::time::sleep(EVERY) => {}
        }
        let key = format!("{{cron}}run {next:06}");
        // The run and its entry are one: an entry that is there already was another's.
        match journal.put_if_version(&key, name, 0).await {
            Ok(Ok(_)) => done += 1,
            Ok(Err(_)) => {}
            Err(dogsled::cluster::Error::LockNotHeld { .. }) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

async fn scheduler(
    client: Client,
    name: &'static str,
    runs: u64,
    vanishes: bool,
) -> dogsled::cluster::Result<u64> {
    let election: Election = client.election(ELECTION);
    let leadership = election.campaign(name, LEASE).await?;
    let done = lead(&client, &leadership, name, runs).await?;
    if vanishes {
        // Without a word: nobody resigns, and the others have to wait for the end of the lease.
        client.close().await;
    } else {
        leadership.resign().await?.ok();
    }
    Ok(done)
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut config = NodeConfig::new(directory.path().join("node"), 1, ([127, 0, 0, 1], 0).into());
    config.certificates = NodeCertificates::Development(directory.path().to_owned());
    let node = Node::start(config).await?;
    node.create_cluster(4, vec![(node.id(), node.addresses().to_vec())]).await?;

    let mut schedulers = Vec::new();
    for (name, runs, vanishes) in [("ann", 3, true), ("ben", 4, false), ("cat", 2, false)] {
        let options = ClientOptions::development(directory.path())?;
        let client = Client::connect([node.local_address().to_string()], options).await?;
        schedulers.push(tokio::spawn(scheduler(client, name, runs, vanishes)));
        // In this order.
        while node.client().election(ELECTION).leader().await?.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
    let mut done = 0;
    for scheduler in schedulers {
        done += scheduler.await??;
    }
    let journal = node.client().tree("journal").scan_prefix("{cron}run ").into_vec().await?;
    for (run, by) in &journal {
        println!("{} by {}", String::from_utf8_lossy(run), String::from_utf8_lossy(by));
    }
    assert_eq!((journal.len(), done), (9, 9), "each run once");
    assert!(journal.is_sorted_by_key(|(run, _)| run.clone()));
    node.shutdown().await?;
    Ok(())
}
