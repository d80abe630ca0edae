//! Clients of Redis clusters, unchanged, against three processes of `dogsled serve`: redis-py's `RedisCluster`, ioredis's
//! `Cluster`, `redis-cli -c` and `redis-benchmark --cluster`; while leaders move and a node is killed, and no command is
//! lost. Where a client is not installed, that is said and its test is left out; `.ci/run` installs what it can.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Sandbox, skipped};

const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

struct Cluster {
    sandbox: Sandbox,
    members: String,
    addresses: BTreeMap<u64, String>,
    ports: BTreeMap<u64, u16>,
    moved: &'static str,
    nodes: BTreeMap<u64, Served>,
}

impl Cluster {
    fn start(moved: &'static str) -> Cluster {
        let sandbox = Sandbox::new();
        sandbox.certificates(&[1, 2, 3]);
        let addresses: BTreeMap<u64, String> = (1..=3).map(|node| (node, free_address())).collect();
        let port = || free_address().parse::<SocketAddr>().expect("an address").port();
        let ports = (1..=3).map(|node| (node, port())).collect();
        let members: Vec<String> =
            addresses.iter().map(|(node, address)| format!("{node}={address}")).collect();
        let (members, nodes) = (members.join(","), BTreeMap::new());
        let mut cluster = Cluster { sandbox, members, addresses, ports, moved, nodes };
        for node in [2, 3, 1] {
            let served = cluster.launch(node, if node == 1 { &["--init"] } else { &[] });
            cluster.nodes.insert(node, served);
        }
        for served in cluster.nodes.values_mut() {
            served.says("\"event\":\"redis\"");
        }
        cluster
    }

    fn launch(&self, node: u64, more: &[&str]) -> Served {
        let (id, data) = (node.to_string(), format!("data-{node}"));
        let redis = format!("127.0.0.1:{}", self.ports[&node]);
        let listen = &self.addresses[&node];
        let fixed = ["--certs", "certs", "--node", &id, "--data", &data, "--listen", listen, "--cache", "16"];
        let same =
            ["--members", &self.members, "--redis", &redis, "--redis-moved", self.moved, "--http", "off"];
        self.sandbox.serve(&[&fixed[..], &same, more].concat())
    }

    fn all_ports(&self) -> String {
        self.ports.values().map(u16::to_string).collect::<Vec<_>>().join(",")
    }

    /// The sum over all nodes of a figure of `INFO`.
    fn figure(&self, name: &str) -> u64 {
        let of = |port: &u16| {
            let said = ask(*port, "INFO all");
            let line = said.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.and_then(|number| number.trim().parse::<u64>().ok()).unwrap_or_else(|| panic!("{said}"))
        };
        self.nodes.keys().map(|node| of(&self.ports[node])).sum()
    }

    /// Waits until every node names three that have slots.
    fn is_spread(&self) {
        eventually("the three share the slots", || {
            self.ports.values().all(|port| ask(*port, "CLUSTER INFO").contains("cluster_size:3"))
        });
    }

    /// Who leads what, as each of them says.
    fn slots(&self) -> Vec<String> {
        self.ports.values().map(|port| ask(*port, "CLUSTER SLOTS")).collect()
    }

    /// Waits until no leader has moved for some seconds: a client that knew one from before would have what it sends
    /// passed on until it asks again.
    fn is_settled(&self) {
        let (mut before, mut since) = (self.slots(), Instant::now());
        eventually("leaders stay where they are", || {
            let now = self.slots();
            if now != before {
                (before, since) = (now, Instant::now());
            }
            since.elapsed() > Duration::from_secs(3)
        });
    }

    /// Has the leaders move: one node hands over what it leads and ends, another is killed; both come back, and lead again.
    fn has_leaders_moved(&mut self) {
        for (node, is_killed) in [(2, false), (3, true)] {
            let ends = self.nodes.remove(&node).expect("it runs");
            match is_killed {
                true => ends.kill_nine(),
                false => assert_eq!(ends.terminate(), 0),
            }
            eventually("the other two share the slots", || {
                ask(self.ports[&1], "CLUSTER INFO").contains("cluster_size:2")
            });
            std::thread::sleep(Duration::from_secs(1));
            let mut again = self.launch(node, &[]);
            again.says("\"event\":\"redis\"");
            self.nodes.insert(node, again);
            self.is_spread();
            std::thread::sleep(Duration::from_secs(1));
        }
    }
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(40);
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What a node says to an inline command; nothing if it is not there.
fn ask(port: u16, line: &str) -> String {
    let Ok(mut stream) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return String::new() };
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    let mut said = Vec::new();
    if stream.write_all(format!("{line}\r\nQUIT\r\n").as_bytes()).is_ok() {
        let _ = stream.read_to_end(&mut said);
    }
    String::from_utf8_lossy(&said).into_owned()
}

/// A script that counts while something happens.
struct Counting {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Counting {
    fn start(program: &str, script: &str, ports: &str) -> Counting {
        let mut child = Command::new(program)
            .args([&format!("{SCRIPTS}/{script}"), ports])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("it ran before");
        let lines = BufReader::new(child.stdout.take().expect("piped"));
        let mut counting = Counting { child, lines };
        assert_eq!(counting.line(), "counting\n", "{script}");
        counting
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).expect("text");
        line
    }

    fn finish(mut self) -> String {
        self.child.stdin.take().expect("piped").write_all(b"stop\n").expect("it still runs");
        let said = self.line();
        assert!(said.starts_with("done"), "{said}");
        assert!(self.child.wait().expect("it ends").success());
        said
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Whether a program runs so; if not, that is said.
fn is_there(program: &str, arguments: &[&str], instead: &str) -> bool {
    let run = Command::new(program).args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let is_there = run.is_ok_and(|status| status.success());
    if !is_there {
        skipped(&format!("{program} {}: {instead}", arguments.join(" ")));
    }
    is_there
}

/// The clients that are there: programs, and what they run.
fn clients() -> Vec<(String, &'static str)> {
    let mut clients = Vec::new();
    let python = std::env::var("DOGSLED_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if is_there(&python, &["-c", "import redis"], "pip install -r tests/clients/requirements.txt") {
        clients.push((python, "cluster.py"));
    }
    if is_there("node", &["-e", "require('ioredis')"], "npm install as tests/clients/package.json says") {
        clients.push(("node".to_owned(), "cluster.js"));
    }
    clients
}

/// Has clients count while leaders move.
fn loses_nothing(moved: &'static str) {
    let clients = clients();
    if clients.is_empty() {
        return;
    }
    let mut cluster = Cluster::start(moved);
    cluster.is_spread();
    cluster.is_settled();
    let ports = cluster.all_ports();
    let counting: Vec<Counting> =
        clients.iter().map(|(program, script)| Counting::start(program, script, &ports)).collect();
    // Sessions are open, and the map is known: what comes now comes to the leaders.
    let figures = || ["dogsled_forwarded", "total_commands_processed"].map(|name| cluster.figure(name));
    let before = figures();
    std::thread::sleep(Duration::from_secs(2));
    let after = figures();
    let [forwarded, commands] = [0, 1].map(|figure| after[figure] - before[figure]);
    cluster.has_leaders_moved();
    for (counting, (_, script)) in counting.into_iter().zip(&clients) {
        let said = counting.finish();
        let counted: u64 = said.split(' ').find_map(|word| word.trim().parse().ok()).expect("a number");
        println!(
            "{script}, {moved}: {forwarded} of {commands} passed on in two quiet seconds; {}",
            said.trim()
        );
        assert!(counted > 200, "{script}: {said}");
    }
    // Renewals of sessions and the like are passed on, commands are not: of clients that know nothing two in three would be. A
    // machine that is busy may have one of many leaders move, which not every client hears of.
    assert!(
        4 * forwarded < commands,
        "{forwarded} of {commands} requests were passed on though the clients knew the leaders"
    );
    if moved == "always" {
        assert!(cluster.figure("dogsled_moved") > 0, "nobody was sent to a new leader");
    }
}

#[test]
fn redis_py_and_ioredis_go_to_the_leaders_and_lose_nothing_while_they_move() {
    loses_nothing("always");
}

#[test]
fn redis_py_and_ioredis_that_say_they_know_of_slots_lose_nothing_while_leaders_move() {
    loses_nothing("aware");
}

#[test]
fn redis_cli_follows_moved_and_redis_benchmark_spreads_over_the_cluster() {
    if !is_there("redis-cli", &["--version"], "apt-get install redis-tools") {
        return;
    }
    let cluster = Cluster::start("aware");
    cluster.is_spread();
    let port = cluster.ports[&1].to_string();
    let mut child = Command::new("redis-cli")
        .args(["-c", "-p", &port])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it ran before");
    // The first makes it one that knows of slots.
    let script: String =
        (0..40).map(|number| format!("SET {{{number}}}k {number}\nGET {{{number}}}k\n")).collect();
    let script = format!("READWRITE\n{script}");
    child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("it reads");
    let output = child.wait_with_output().expect("it ends");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said.lines().filter(|line| !line.starts_with("-> Redirected")).collect();
    let wanted: Vec<String> = (0..40).flat_map(|number| ["OK".to_owned(), number.to_string()]).collect();
    assert_eq!(lines[1..], wanted, "{said}");
    assert!(cluster.figure("dogsled_moved") > 0, "it was sent nowhere: {said}");
    // One that knows of nothing is sent nowhere.
    let before = cluster.figure("dogsled_moved");
    for number in 0..40 {
        assert!(ask(cluster.ports[&2], &format!("GET {{{number}}}k")).contains(&format!("\n{number}\r")));
    }
    assert_eq!(cluster.figure("dogsled_moved"), before);
    if !is_there("redis-benchmark", &["--version"], "apt-get install redis-tools") {
        return;
    }
    let arguments =
        ["--cluster", "-p", &port, "-t", "set,get,incr", "-n", "3000", "-c", "12", "-r", "1000", "-q"];
    for left in (0..4).rev() {
        cluster.is_spread();
        cluster.is_settled();
        let (slots, forwarded) = (cluster.slots(), cluster.figure("dogsled_forwarded"));
        let output = Command::new("redis-benchmark").args(arguments).output().expect("it ran before");
        let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.contains("3 master nodes"), "{said}");
        for test in ["SET", "GET", "INCR"] {
            assert!(said.contains(&format!("{test}: ")), "no {test} in {said}");
        }
        assert!(!said.contains("rror") && !said.contains("MOVED"), "{said}");
        let forwarded = cluster.figure("dogsled_forwarded") - forwarded;
        // Of 6000 writes at nodes chosen by chance two thirds would be.
        if forwarded < 1000 {
            break;
        }
        // It does not hear of a leader that has moved: once more.
        let has_moved = cluster.slots() != slots;
        assert!(left > 0 && has_moved, "{forwarded} of 6000 writes were passed on");
    }
}
