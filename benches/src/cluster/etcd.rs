//! Three etcd processes.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use etcd_client::Client;

/// Ended when dropped.
pub(super) struct Cluster {
    nodes: Vec<Child>,
    urls: Vec<String>,
}

/// A TCP port that was free a moment ago.
pub(super) fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Cluster {
    pub(super) async fn start(dir: &Path) -> Result<Cluster> {
        let peers: Vec<String> =
            (0..3).map(|_| Ok(format!("http://127.0.0.1:{}", free_port()?))).collect::<Result<_>>()?;
        let urls: Vec<String> =
            (0..3).map(|_| Ok(format!("http://127.0.0.1:{}", free_port()?))).collect::<Result<_>>()?;
        let all: Vec<String> = peers.iter().enumerate().map(|(n, url)| format!("n{n}={url}")).collect();
        let mut cluster = Cluster { nodes: Vec::new(), urls };
        for (n, (peer, client)) in peers.iter().zip(&cluster.urls).enumerate() {
            std::fs::create_dir_all(dir)?;
            let child = Command::new("etcd")
                .args(["--name", &format!("n{n}"), "--data-dir"])
                .arg(dir.join(format!("n{n}")))
                .args(["--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer])
                .args(["--listen-client-urls", client, "--advertise-client-urls", client])
                .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
                // A transaction may have more than 128 operations only if told.
                .args(["--max-txn-ops", "1024", "--quota-backend-bytes", "8589934592"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("starting etcd (Debian: apt-get install etcd-server)")?;
            cluster.nodes.push(child);
        }
        let begun = Instant::now();
        loop {
            let answer = match cluster.client().await {
                Ok(mut clients) => {
                    clients[0].put("up", "1", None).await.map(drop).map_err(anyhow::Error::from)
                }
                Err(error) => Err(error),
            };
            match answer {
                Ok(()) => return Ok(cluster),
                Err(error) if begun.elapsed() > Duration::from_secs(20) => {
                    bail!("etcd does not serve: {error:#}")
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
            }
        }
    }

    /// Their ids.
    pub(super) fn processes(&self) -> Vec<u32> {
        self.nodes.iter().map(Child::id).collect()
    }

    /// Nine connections, spread over the nodes, as etcd's own benchmark has several.
    pub(super) async fn client(&self) -> Result<Vec<Client>> {
        self.clients(9).await
    }

    /// So many connections, spread over the nodes.
    pub(super) async fn clients(&self, count: usize) -> Result<Vec<Client>> {
        let mut clients = Vec::new();
        for n in 0..count {
            clients.push(Client::connect([&self.urls[n % 3]], None).await?);
        }
        Ok(clients)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}
