//! One Redis server, and the few words of its protocol that are needed.
//!
//! `appendfsync always`: an answer is given when the append-only file is synced, on one machine. That
//! is less than a quorum of three promises, and the README says so.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;

/// Ended when dropped.
pub(super) struct Server {
    child: Child,
    address: String,
    port: u16,
}

impl Server {
    pub(super) async fn start(dir: &Path) -> Result<Server> {
        std::fs::create_dir_all(dir)?;
        let port = super::etcd::free_port()?;
        let child = Command::new("redis-server")
            .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", ""])
            .args(["--appendonly", "yes", "--appendfsync", "always", "--dir"])
            .arg(dir)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("starting redis-server (Debian: apt-get install redis-server)")?;
        let server = Server { child, address: format!("127.0.0.1:{port}"), port };
        let begun = Instant::now();
        loop {
            let answer = match server.connection().await {
                Ok(mut connection) => connection.call(&[b"PING"]).await,
                Err(error) => Err(error),
            };
            match answer {
                Ok(_) => return Ok(server),
                Err(error) if begun.elapsed() > Duration::from_secs(10) => {
                    return Err(error.context("redis-server does not serve"));
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    pub(super) fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn processes(&self) -> Vec<u32> {
        vec![self.child.id()]
    }

    pub(super) async fn connection(&self) -> Result<Connection> {
        let stream = TcpStream::connect(&self.address).await?;
        stream.set_nodelay(true)?;
        Ok(Connection { stream: BufReader::new(stream) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What Redis answers, as far as it is needed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Integer(i64),
    Text(Vec<u8>),
    Nothing,
}

pub(super) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    /// Sends one command and waits for its answer.
    pub(super) async fn call(&mut self, words: &[&[u8]]) -> Result<Answer> {
        let mut request = format!("*{}\r\n", words.len()).into_bytes();
        for word in words {
            request.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
            request.extend_from_slice(word);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_mut().write_all(&request).await?;
        let mut line = String::new();
        self.stream.read_line(&mut line).await?;
        let Some((kind, rest)) = line.trim_end().split_at_checked(1) else { bail!("Redis has hung up") };
        match kind {
            "+" => Ok(Answer::Text(rest.as_bytes().to_vec())),
            ":" => Ok(Answer::Integer(rest.parse()?)),
            "$" if rest.starts_with('-') => Ok(Answer::Nothing),
            "$" => {
                let mut text = vec![0; rest.parse::<usize>()? + 2];
                self.stream.read_exact(&mut text).await?;
                text.truncate(text.len() - 2);
                Ok(Answer::Text(text))
            }
            _ => bail!("Redis says {line:?}"),
        }
    }
}
