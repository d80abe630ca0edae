//! Nodes that Redis clients can talk to, and a client that shows every byte.
#![allow(unreachable_pub, reason = "its modules are those of one test")]

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dogsled::cluster::Client;
use dogsled::cluster::redis::{RedisOptions, RedisServer};
use tokio::runtime::Runtime;

use crate::cluster::Cluster;

/// Nodes in this process, each with a port for Redis clients.
pub struct Served {
    pub cluster: Option<Cluster>,
    pub servers: Vec<RedisServer>,
    pub runtime: Runtime,
}

impl Served {
    pub fn new(nodes: u64, partitions: u32) -> Served {
        Served::with(nodes, partitions, |_| {})
    }

    pub fn with(nodes: u64, partitions: u32, adjust: fn(&mut RedisOptions)) -> Served {
        let runtime = Runtime::new().unwrap();
        let (cluster, servers) = runtime.block_on(async {
            let cluster = Cluster::made(nodes, partitions).await;
            let mut servers = Vec::new();
            for node in cluster.nodes.values() {
                let mut options = RedisOptions::new(([127, 0, 0, 1], 0).into());
                adjust(&mut options);
                servers.push(RedisServer::start(node.client(), options).await.unwrap());
            }
            (cluster, servers)
        });
        Served { cluster: Some(cluster), servers, runtime }
    }

    pub fn connect(&self, node: usize) -> Connection {
        Connection::new(self.servers[node].local_address())
    }

    /// A client of another kind.
    pub fn client(&self) -> Client {
        let _here = self.runtime.enter();
        self.cluster.as_ref().unwrap().nodes[&1].client()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let (servers, cluster) = (std::mem::take(&mut self.servers), self.cluster.take());
        self.runtime.block_on(async {
            for server in servers {
                server.close().await;
            }
            drop(cluster);
        });
    }
}

/// A connection that hands out replies as they are.
pub struct Connection {
    pub stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn new(address: SocketAddr) -> Connection {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_nodelay(true).unwrap();
        Connection { stream, buffer: Vec::new() }
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// The bytes of the next reply.
    pub fn reply(&mut self) -> Vec<u8> {
        loop {
            if let Some(length) = reply_length(&self.buffer) {
                return self.buffer.drain(..length).collect();
            }
            let mut piece = [0; 64 << 10];
            let read = match self.stream.read(&mut piece) {
                // This process was stopped for a while.
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                read => read.unwrap(),
            };
            assert!(read > 0, "the connection ended within \"{}\"", self.buffer.escape_ascii());
            self.buffer.extend_from_slice(&piece[..read]);
        }
    }

    /// All that comes until the other side ends it.
    pub fn rest(&mut self) -> String {
        match self.stream.read_to_end(&mut self.buffer) {
            Ok(_) => {}
            // A connection that is closed with bytes unread is reset.
            Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {}
            Err(error) => panic!("it was not ended: {error}, after \"{}\"", escaped(&self.buffer)),
        }
        escaped(&self.buffer)
    }

    /// Asks in words (see [`words`]), and shows the reply.
    pub fn ask(&mut self, line: &str) -> String {
        self.send(&request(&words(line)));
        escaped(&self.reply())
    }

    /// As [`Connection::ask`], without the end of the reply's line.
    pub fn says(&mut self, line: &str) -> String {
        let reply = self.ask(line);
        reply.strip_suffix("\\r\\n").unwrap_or(&reply).to_owned()
    }
}

/// Words between spaces; `''` is the empty one, `_` within one is a space, `\0` a zero.
pub fn words(line: &str) -> Vec<Vec<u8>> {
    let word = |word: &str| match word {
        "''" => Vec::new(),
        word => word.replace('_', " ").replace("\\0", "\0").into_bytes(),
    };
    line.split(' ').filter(|word| !word.is_empty()).map(word).collect()
}

pub fn request(words: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = format!("*{}\r\n", words.len()).into_bytes();
    for word in words {
        bytes.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        bytes.extend_from_slice(word);
        bytes.extend_from_slice(b"\r\n");
    }
    bytes
}

/// How long the first reply in these bytes is; `None`: it has not all come.
pub fn reply_length(bytes: &[u8]) -> Option<usize> {
    let end = bytes.windows(2).position(|pair| pair == b"\r\n")?;
    let number = || -> i64 { std::str::from_utf8(&bytes[1..end]).unwrap().parse().unwrap() };
    let mut length = end + 2;
    let parts = match bytes[0] {
        b'$' | b'=' => {
            let body = number();
            if body >= 0 {
                length += body as usize + 2;
            }
            0
        }
        b'*' | b'~' | b'>' => number().max(0),
        b'%' => 2 * number().max(0),
        b'+' | b'-' | b':' | b'_' | b',' | b'#' => 0,
        other => panic!("a reply that begins with {:?}", char::from(other)),
    };
    if length > bytes.len() {
        return None;
    }
    for _ in 0..parts {
        length += reply_length(&bytes[length..])?;
    }
    Some(length)
}

pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(30), "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

impl Connection {
    /// What comes first, or nothing.
    pub fn rest_of_line(&mut self) -> String {
        let mut piece = [0; 64];
        let read = self.stream.read(&mut piece).unwrap_or(0);
        escaped(&piece[..read])
    }
}

/// Bytes as tests show them: quotes as they are.
pub fn escaped(bytes: &[u8]) -> String {
    bytes.escape_ascii().to_string().replace("\\'", "'")
}
