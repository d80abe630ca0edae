//! Money that is moved between keys of different partitions, by clients and by Redis clients, while something is done to
//! the cluster: wherever it comes out, the sum says whether it was of one moment.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dogsled::cluster::transaction::{TransactionError, TransactionResult};
use dogsled::cluster::{CertificateFiles, Client, ClientOptions};

use super::nodes::{Served, free_address};
use super::{Run, Sandbox};

pub(crate) const ACCOUNTS: u64 = 24;
pub(crate) const TOTAL: u64 = ACCOUNTS * 1_000;

/// A node that is a cluster of its own, of so many partitions, or joins another; and its address.
pub(crate) fn node(sandbox: &Sandbox, id: u64, more: &[&str]) -> (Served, String) {
    let address = free_address();
    let (id, data) = (id.to_string(), sandbox.argument(&format!("data-{id}")));
    let arguments =
        ["--certs", "certs", "--node", &id, "--listen", &address, "--data", &data, "--cache", "16"];
    let served = sandbox.serving(&[&arguments[..], more].concat());
    (served, address)
}

pub(crate) fn dogsled(sandbox: &Sandbox, address: &str, arguments: &[&str]) -> Run {
    sandbox.run_bare(&[&["--connect", address, "--certs", "certs"][..], arguments].concat())
}

pub(crate) async fn connect(sandbox: &Sandbox, address: &str) -> Client {
    let files = CertificateFiles::of_client(&sandbox.path("certs"), "admin");
    let mut options = ClientOptions::from_files(&files).expect("the certificates are there");
    options.deadline = Duration::from_secs(20);
    Client::connect([address], options).await.expect("the node answers")
}

pub(crate) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("threads")
}

/// A connection to a node's Redis port.
pub(crate) struct Redis(BufReader<TcpStream>);

impl Redis {
    pub(crate) fn connect(node: &mut Served) -> Redis {
        let said = node.says("\"event\":\"redis\"");
        let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next());
        let port: u16 =
            port.and_then(|port| port.parse().ok()).unwrap_or_else(|| panic!("no port in {said}"));
        Redis(BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("it listens")))
    }

    /// A further connection to the same port.
    pub(crate) fn another(&self) -> Redis {
        let address = self.0.get_ref().peer_addr().expect("it is connected");
        Redis(BufReader::new(TcpStream::connect(address).expect("it listens")))
    }

    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.0.read_line(&mut line).expect("an answer");
        line.trim_end().to_owned()
    }

    /// The answer; the parts of a list with spaces between them.
    pub(crate) fn run(&mut self, command: &str) -> String {
        self.0.get_mut().write_all(format!("{command}\r\n").as_bytes()).expect("sent");
        self.answer()
    }

    pub(crate) fn answer(&mut self) -> String {
        let line = self.line();
        let (kind, rest) = line.split_at(1);
        match kind {
            "+" | ":" | "-" => rest.to_owned(),
            "$" => match rest.parse::<usize>() {
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.0.read_exact(&mut bytes).expect("the value");
                    String::from_utf8_lossy(&bytes[..length]).into_owned()
                }
                Err(_) => "nil".to_owned(),
            },
            "*" => {
                let count: usize = rest.parse().expect("a number");
                (0..count).map(|_| self.answer()).collect::<Vec<_>>().join(" ")
            }
            _ => panic!("{line}"),
        }
    }

    /// The sum of the balances that are kept as fields of hashes.
    pub(crate) fn total(&mut self) -> i64 {
        let mut total = 0;
        for number in 0..ACCOUNTS {
            let balance = self.run(&format!("HGET {} balance", purse(number)));
            total += balance.parse::<i64>().unwrap_or_else(|_| panic!("purse {number}: {balance}"));
        }
        total
    }
}

pub(crate) fn account(number: u64) -> String {
    format!("account {number}")
}

/// All keys and values of a tree.
pub(crate) async fn everything(client: &Client, tree: &str) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut entries = client.tree(tree).iter();
    let mut found = BTreeMap::new();
    while let Some(entry) = entries.next().await {
        let (key, value) = entry.expect("it is read");
        found.insert(key.to_vec(), value.to_vec());
    }
    found
}

pub(crate) fn sum(accounts: &BTreeMap<Vec<u8>, Vec<u8>>) -> u64 {
    accounts.values().map(|value| u64::from_be_bytes(value[..].try_into().expect("a balance"))).sum()
}

/// Draws numbers.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

/// Moves money between accounts of different partitions until it is told to stop.
pub(crate) async fn transfer(client: Client, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let (from, to) = (account(random.below(ACCOUNTS)), account(random.below(ACCOUNTS)));
        if from == to {
            continue;
        }
        let bank = &client.tree("bank");
        let (from, to) = (&from, &to);
        let moved: TransactionResult<()> = client
            .transaction(|tx| async move {
                let read = |found: Option<dogsled::IVec>| {
                    u64::from_be_bytes(found.expect("an account")[..].try_into().expect("a balance"))
                };
                let (a, b) = (read(tx.get(bank, from).await?), read(tx.get(bank, to).await?));
                if a > 0 {
                    tx.put(bank, from, (a - 1).to_be_bytes())?;
                    tx.put(bank, to, (b + 1).to_be_bytes())?;
                }
                Ok(())
            })
            .await;
        match moved {
            Ok(()) => drop(done.fetch_add(1, Ordering::Relaxed)),
            Err(TransactionError::Conflict { .. }) => {}
            Err(error) => panic!("seed {seed}: {error}"),
        }
    }
}

/// The name of a hash that is a purse; of two sides, both of one partition.
pub(crate) fn purse(number: u64) -> String {
    format!("{{{}}}purse-{}", number / 2, number % 2)
}

/// The same between fields of two hashes, as a Redis client does it.
pub(crate) fn transfer_by_redis(redis: &mut Redis, seed: u64, stop: &AtomicBool, done: &AtomicU64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let from = random.below(ACCOUNTS);
        redis.run("MULTI");
        redis.run(&format!("HINCRBY {} balance -1", purse(from)));
        redis.run(&format!("HINCRBY {} balance 1", purse(from ^ 1)));
        let answer = redis.run("EXEC");
        assert!(answer.split(' ').all(|number| number.parse::<i64>().is_ok()), "seed {seed}: {answer}");
        done.fetch_add(1, Ordering::Relaxed);
    }
}
