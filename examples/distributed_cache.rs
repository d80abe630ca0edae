//! A cache that several processes share: what is asked for often is in each of them, what is made is made once,
//! and who changes something has it changed everywhere.
//!
//! `cargo run --example distributed_cache --features cluster` starts a node within this program and two clients of
//! it, which would be two processes.

use std::error::Error;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use dogsled::IVec;
use dogsled::cluster::{Client, ClientOptions, NearCache, Node, NodeCertificates, NodeConfig};

/// How long a page is kept, and how long one that makes it may be silent.
const KEEP: Duration = Duration::from_secs(60);
const LEASE: Duration = Duration::from_secs(10);

static RENDERED: AtomicU32 = AtomicU32::new(0);

async fn render(path: &str) -> Result<String, dogsled::cluster::Error> {
    tokio::time::sleep(Duration::from_millis(50)).await;
    let time = RENDERED.fetch_add(1, Ordering::Relaxed) + 1;
    Ok(format!("<h1>{path}, rendered for the {time}. time</h1>"))
}

/// One of the processes.
struct Server {
    pages: NearCache,
}

impl Server {
    async fn start(client: Client) -> dogsled::cluster::Result<Server> {
        Ok(Server { pages: client.tree("pages").near_cache("", 16 << 20).await? })
    }

    async fn page(&self, path: &str) -> dogsled::cluster::Result<IVec> {
        // Here; or in the cluster; or made by whoever comes first, while the others wait for it.
        if let Some(found) = self.pages.get(path).await? {
            return Ok(found);
        }
        self.pages.tree().get_or_compute(path, KEEP, LEASE, || render(path)).await
    }
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Box<dyn Error>> {
    let directory = tempfile::tempdir()?;
    let mut config = NodeConfig::new(directory.path().join("node"), 1, ([127, 0, 0, 1], 0).into());
    config.certificates = NodeCertificates::Development(directory.path().to_owned());
    let node = Node::start(config).await?;
    node.create_cluster(4, vec![(node.id(), node.addresses().to_vec())]).await?;
    let mut servers = Vec::new();
    for _ in 0..2 {
        let options = ClientOptions::development(directory.path())?;
        servers
            .push(Server::start(Client::connect([node.local_address().to_string()], options).await?).await?);
    }
    let (first, second) = (&servers[0], &servers[1]);

    // Both want it at the same time, and it is made once.
    let (a, b) = tokio::try_join!(first.page("/index"), second.page("/index"))?;
    assert_eq!(a, b);
    assert_eq!(RENDERED.load(Ordering::Relaxed), 1);

    // From now on it is in both, and the cluster is not asked.
    let asked = first.pages.hits_and_misses().1;
    while first.pages.hits_and_misses().0 < 1_000 {
        first.page("/index").await?;
    }
    let more = first.pages.hits_and_misses().1 - asked;
    assert!(more < 10, "{more} times the cluster was asked");

    // Who changes it has it changed everywhere.
    second.pages.remove("/index").await?;
    let anew = loop {
        // It takes as long as it takes to tell the other.
        let found = first.page("/index").await?;
        if found != a {
            break found;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    };
    assert_eq!(second.page("/index").await?, anew);
    assert_eq!(RENDERED.load(Ordering::Relaxed), 2);
    println!("{}", String::from_utf8_lossy(&anew));
    println!("(hits, misses): {:?}", first.pages.hits_and_misses());
    node.shutdown().await?;
    Ok(())
}
