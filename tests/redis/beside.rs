//! The same script on the real Redis and on nodes.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use crate::cluster::free_address;
use crate::skipped::skipped;
use crate::support::{Connection, Served, eventually};

const SCRIPT: &str = include_str!("script.txt");

/// A process of `redis-server`, ended with this.
pub(crate) struct Redis {
    child: Child,
    pub(crate) address: SocketAddr,
    _directory: tempfile::TempDir,
}

impl Redis {
    /// `None`: there is none on this machine, which is said.
    pub(crate) fn start() -> Option<Redis> {
        let directory = tempfile::tempdir().unwrap();
        let address = free_address();
        let port = address.port().to_string();
        let child = Command::new("redis-server")
            .args(["--port", &port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let child = match child {
            Ok(child) => child,
            Err(error) => {
                skipped(&format!("redis-server does not start ({error}); apt-get install redis-server"));
                return None;
            }
        };
        eventually("Redis listens", || std::net::TcpStream::connect(address).is_ok());
        Some(Redis { child, address, _directory: directory })
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two connections to one server.
struct Pair([Connection; 2]);

impl Pair {
    fn new(address: SocketAddr, version: u32) -> Pair {
        let mut pair = Pair([Connection::new(address), Connection::new(address)]);
        if version == 3 {
            for connection in &mut pair.0 {
                connection.ask("HELLO 3");
            }
        }
        pair
    }

    fn ask(&mut self, line: &str) -> String {
        match line.strip_prefix("2 ") {
            Some(line) => self.0[1].ask(line),
            None => self.0[0].ask(line),
        }
    }
}

/// Of what is left to live, which one of the two may be asked for some seconds later.
fn is_about_the_same(line: &str, expected: &str, found: &str) -> bool {
    let left = |reply: &str| reply.strip_prefix(':')?.strip_suffix("\\r\\n")?.parse::<u64>().ok();
    let both = left(expected).zip(left(found));
    line.starts_with("TTL ") && both.is_some_and(|(expected, found)| expected.abs_diff(found) <= 5)
}

fn compare(redis: &Redis, served: &Served, version: u32) {
    for (who, address) in [("Redis", redis.address), ("the node", served.servers[0].local_address())] {
        assert_eq!(Connection::new(address).ask("FLUSHALL"), "+OK\\r\\n", "{who}");
    }
    let mut theirs = Pair::new(redis.address, version);
    let mut ours = Pair::new(served.servers[0].local_address(), version);
    let mut differ = Vec::new();
    let mut count = 0;
    for (number, line) in (1..).zip(SCRIPT.lines()) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        count += 1;
        let (expected, found) = (theirs.ask(line), ours.ask(line));
        if expected != found && !is_about_the_same(line, &expected, &found) {
            differ.push(format!("script.txt:{number}: {line}\n  Redis    {expected}\n  the node {found}"));
        }
    }
    assert!(count > 300, "{count} lines");
    assert!(differ.is_empty(), "{} of {count} in RESP{version}:\n{}", differ.len(), differ.join("\n"));
}

/// In one partition everything is one entry.
#[test]
fn a_node_answers_as_redis_byte_by_byte() {
    let Some(redis) = Redis::start() else { return };
    let served = Served::new(1, 1);
    compare(&redis, &served, 2);
    compare(&redis, &served, 3);
}

#[test]
fn a_node_answers_as_redis_byte_by_byte_over_partitions() {
    let Some(redis) = Redis::start() else { return };
    compare(&redis, &Served::new(1, 16), 2);
}

/// Of what `COMMAND INFO` says: the name, numbers, and flags and categories in no order.
fn described(reply: &str) -> (Vec<String>, Vec<String>) {
    let lines = reply.split("\\r\\n").skip_while(|line| !line.starts_with('$')).skip(1);
    // What is behind them is longer than what is told here.
    let lines: Vec<String> = lines.take_while(|line| !line.starts_with('$')).map(str::to_owned).collect();
    let numbers = lines.iter().filter(|line| line.starts_with(':')).take(4).cloned();
    let mut words: Vec<String> = lines.iter().filter(|line| line.starts_with('+')).cloned().collect();
    words.sort();
    (lines[..1].iter().cloned().chain(numbers).collect(), words)
}

#[test]
fn commands_are_described_as_redis_describes_them() {
    let Some(redis) = Redis::start() else { return };
    let served = Served::new(1, 1);
    let (mut theirs, mut ours) = (Connection::new(redis.address), served.connect(0));
    let names = ours.ask("COMMAND LIST");
    let names: Vec<&str> =
        names.split("\\r\\n").filter(|line| !line.starts_with(['*', '$']) && !line.is_empty()).collect();
    assert!(names.len() > 80, "{names:?}");
    for below in [
        "client|id",
        "CLIENT|LIST",
        "cluster|slots",
        "cluster|meet",
        "command|getkeys",
        "config|get",
        "config|SET",
        "pubsub|numsub",
        "script|load",
        "script|help",
    ] {
        let line = format!("COMMAND INFO {below}");
        assert_eq!(described(&ours.ask(&line)), described(&theirs.ask(&line)), "{below}");
    }
    // Redis 7.0 does not know all of them.
    let of_redis = |name: &&&str| {
        !name.starts_with("dogsled.") && !["client|no-touch", "client|setinfo"].contains(*name)
    };
    for name in names.iter().filter(of_redis) {
        let line = format!("COMMAND INFO {name}");
        assert_eq!(described(&ours.ask(&line)), described(&theirs.ask(&line)), "{name}");
        // What is below them is answered for, and so is the group.
        let line = format!("COMMAND DOCS {name}");
        let (found, expected) = (ours.ask(&line), theirs.ask(&line));
        let behind = |reply: &str, word: &str| {
            let mut lines = reply.split("\\r\\n").skip_while(|line| *line != word).skip(2);
            lines.next().map(str::to_owned)
        };
        for word in ["since", "group"] {
            assert_eq!(behind(&found, word), behind(&expected, word), "{word} of {name}");
        }
        assert!(behind(&found, "complexity").is_some(), "{found}");
    }
}
