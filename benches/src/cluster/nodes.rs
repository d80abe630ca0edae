//! Three processes of dogsled: this executable, run as a node.

use std::io::{BufRead as _, BufReader, Read as _};
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use dogsled::cluster::redis::{RedisOptions, RedisServer};
use dogsled::cluster::{
    Client, ClientOptions, Node, NodeCertificates, NodeConfig, NodeId, default_partitions,
};

const READY: &str = "ready";

/// A node that this process is to be. Not for people.
#[derive(Debug, Args)]
pub struct NodeTask {
    /// The node's directory.
    dir: PathBuf,
    /// The directory of the development certificates that all nodes share.
    certificates: PathBuf,
    /// Its id.
    id: u64,
    /// Where it listens.
    listen: SocketAddr,
    /// Addresses of all members, in the order of their ids, when this one is to make the cluster.
    #[arg(long, value_delimiter = ',')]
    create: Vec<String>,
    /// How many partitions it makes.
    #[arg(long, default_value_t = default_partitions())]
    partitions: u32,
    /// Addresses of members of the cluster that this one is to join.
    #[arg(long, value_delimiter = ',')]
    join: Vec<String>,
    /// Where it serves Redis clients.
    #[arg(long)]
    redis: Option<SocketAddr>,
}

/// Is a node until standard input ends, then shuts down.
///
/// # Errors
/// What the node says.
pub fn run_node(task: NodeTask) -> Result<()> {
    // As many threads as a node would have on a machine of its own with as many cores.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let mut config = NodeConfig::new(&task.dir, task.id, task.listen);
        config.certificates = NodeCertificates::Development(task.certificates);
        let node = Node::start(config).await?;
        if !task.create.is_empty() {
            let members = task.create.iter().zip(1..);
            let members = members.map(|(address, id)| (NodeId(id), vec![address.clone()])).collect();
            node.create_cluster(task.partitions, members).await?;
        }
        if !task.join.is_empty() {
            node.join(task.join).await?;
        }
        let _redis = match task.redis {
            Some(address) => Some(RedisServer::start(node.client(), RedisOptions::new(address)).await?),
            None => None,
        };
        println!("{READY}");
        tokio::task::spawn_blocking(|| std::io::stdin().read_to_end(&mut Vec::new())).await??;
        node.shutdown().await?;
        Ok(())
    })
}

/// Nodes of one cluster; ended when dropped.
pub(super) struct Cluster {
    dir: PathBuf,
    partitions: u32,
    /// Where the first node serves Redis clients.
    redis: Option<SocketAddr>,
    pub(super) addresses: Vec<String>,
    pub(super) nodes: Vec<Option<Child>>,
}

impl Cluster {
    /// Three of them.
    pub(super) async fn start(dir: &Path, partitions: u32) -> Result<Cluster> {
        Cluster::start_with(dir, partitions, 3, None)
    }

    /// So many, of which the first serves Redis clients at `redis`.
    pub(super) fn start_with(
        dir: &Path,
        partitions: u32,
        count: usize,
        redis: Option<SocketAddr>,
    ) -> Result<Cluster> {
        fs::create_dir_all(dir)?;
        let free = |_| Ok(UdpSocket::bind("127.0.0.1:0")?.local_addr()?.to_string());
        let addresses = (0..count).map(free).collect::<Result<Vec<_>>>()?;
        let nodes = (0..count).map(|_| None).collect();
        let mut cluster = Cluster { dir: dir.to_owned(), partitions, redis, addresses, nodes };
        // The first one makes the cluster, for which it needs the others.
        for n in (1..count).chain([0]) {
            cluster.spawn(n, n == 0)?;
        }
        Ok(cluster)
    }

    /// Starts the node of index `n` and waits until it says that it is ready.
    pub(super) fn spawn(&mut self, n: usize, create: bool) -> Result<()> {
        let mut command = self.command(n + 1, &self.addresses[n])?;
        if create {
            command.args([
                "--create",
                &self.addresses.join(","),
                "--partitions",
                &self.partitions.to_string(),
            ]);
        }
        if let Some(redis) = self.redis.filter(|_| n == 0) {
            command.args(["--redis", &redis.to_string()]);
        }
        self.nodes[n] = Some(start(command, n + 1)?);
        Ok(())
    }

    /// A fourth node, with nothing on its disk, that joins: to be [started](start).
    pub(super) fn joining(&self) -> Result<Command> {
        let mut command = self.command(4, "127.0.0.1:0")?;
        command.args(["--join", &self.addresses.join(",")]);
        Ok(command)
    }

    fn command(&self, id: usize, address: &str) -> Result<Command> {
        let mut command = Command::new(env::current_exe()?);
        command
            .args(["child", "node"])
            .arg(self.dir.join(format!("n{id}")))
            .arg(&self.dir)
            .args([&id.to_string(), address])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Ok(command)
    }

    /// Ids of those that run.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.nodes.iter().flatten().map(Child::id).collect()
    }

    /// SIGKILL.
    pub(super) fn kill(&mut self, n: usize) -> Result<()> {
        if let Some(mut child) = self.nodes[n].take() {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    pub(super) async fn client(&self) -> Result<Client> {
        let options = ClientOptions::development(&self.dir)?;
        let client = Client::connect(self.addresses.clone(), options).await?;
        // Every partition has its leader.
        let begun = Instant::now();
        loop {
            let map = client.map().await?;
            if map.leaders.len() == self.partitions as usize + 1 && map.leaders.iter().all(Option::is_some) {
                return Ok(client);
            }
            if begun.elapsed() > Duration::from_secs(20) {
                bail!("not every partition has a leader after 20 s: {map:?}");
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Starts a node and returns when it says that it is ready.
pub(super) fn start(mut command: Command, id: usize) -> Result<Child> {
    let mut child = command.spawn().context("starting a node")?;
    let mut line = String::new();
    let out = child.stdout.take().context("the node has no output")?;
    BufReader::new(out).read_line(&mut line)?;
    if line.trim() != READY {
        let _ = child.kill();
        bail!("node {id} ended early: {}", child.wait()?);
    }
    Ok(child)
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in self.nodes.iter_mut().flatten() {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}
