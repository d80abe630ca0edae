//! `dogsled serve` of one node, and the data commands against it.

use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::cli_support::load::Load;
use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Sandbox, run_with_input};
use dogsled::cluster::{Client, ClientOptions, default_partitions};
use rustix::process::Signal;

/// A node without an option, and a way to run commands against it.
struct Alone {
    sandbox: Sandbox,
    address: String,
}

impl Alone {
    fn new() -> Alone {
        Alone { sandbox: Sandbox::new(), address: free_address() }
    }

    fn start(&self) -> Served {
        let mut command = self.sandbox.bare(&["serve"]);
        command.env("DOGSLED_LISTEN", &self.address);
        let mut served = Served::start(command, &self.sandbox.path("log"));
        served.says("listens on");
        served
    }

    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.sandbox.bare(&["--connect", &self.address]);
        command.args(arguments);
        command
    }

    #[track_caller]
    fn run(&self, arguments: &[&str]) -> crate::cli_support::Run {
        crate::cli_support::run(self.command(arguments))
    }
}

#[test]
fn a_node_without_an_option_is_a_database_that_outlives_it() {
    let alone = Alone::new();
    let mut served = alone.start();
    served.says("DEVELOPMENT CERTIFICATES in dogsled-data/dev-certs");
    served.says(&format!("of this node alone, with {} partitions", default_partitions()));
    let hint = served.says("serving; try: dogsled");
    assert!(hint.ends_with(&format!("--connect {} put greeting hello", alone.address)), "{hint}");

    assert_eq!(alone.run(&["put", "greeting", "hello"]).ok(), "");
    assert_eq!(alone.run(&["get", "greeting"]).ok(), "hello\n");
    alone.run(&["get", "nothing"]).fails_saying(1, &["no key \"nothing\""]);
    alone.run(&["-t", "none", "get", "greeting"]).fails_saying(1, &["no tree \"none\""]);
    assert_eq!(
        alone.run(&["put", "greeting", "hallo", "--json"]).ok(),
        "{\"key\":\"greeting\",\"replaced\":true}\n"
    );

    let loaded =
        run_with_input(alone.command(&["load", "-", "--format", "tsv", "-t", "dogs"]), b"b\t2\na\t1\nc\t3\n");
    assert_eq!(loaded.ok(), "3 records (6 B) loaded\n");
    assert_eq!(alone.run(&["-t", "dogs", "scan"]).ok(), "a\t1\nb\t2\nc\t3\n");
    assert_eq!(alone.run(&["-t", "dogs", "scan", "--reverse", "-n", "2", "--keys-only"]).ok(), "c\nb\n");
    assert_eq!(alone.run(&["-t", "dogs", "scan", "--from", "b", "--json"]).ok().lines().count(), 2);
    assert_eq!(alone.run(&["-t", "dogs", "count"]).ok(), "3\n");
    assert_eq!(alone.run(&["-t", "dogs", "count", "--prefix", "b"]).ok(), "1\n");
    alone.run(&["-t", "dogs", "del", "a", "x"]).fails_saying(1, &["no key x", "1 key removed"]);
    assert!(alone.run(&["trees"]).ok().contains("dogs\t2\n"));

    assert_eq!(alone.run(&["counter", "add", "tickets", "5"]).ok(), "5\n");
    alone.run(&["counter", "add", "tickets", "--max", "5"]).fails_saying(8, &["stands at 5"]);
    let token = alone.run(&["lock", "acquire", "deploy", "--owner", "ann"]).ok();
    alone.run(&["lock", "acquire", "deploy", "--owner", "bo"]).fails_saying(8, &["held by \"ann\""]);
    assert!(alone.run(&["lock", "holder", "deploy"]).ok().starts_with("ann\ttoken "));
    alone.run(&["lock", "release", "deploy", "--owner", "ann", "--token", token.trim_end()]).ok();
    alone.run(&["lock", "holder", "deploy"]).fails(1);

    assert_eq!(served.terminate(), 0);
    let mut served = alone.start();
    served.says("belongs to the cluster");
    assert_eq!(alone.run(&["get", "greeting"]).ok(), "hallo\n");
    assert_eq!(alone.run(&["-t", "dogs", "scan"]).ok(), "b\t2\nc\t3\n");
    assert_eq!(alone.run(&["counter", "get", "tickets"]).ok(), "5\n");
    served.signal(Signal::INT);
    assert_eq!(served.exit_code(), 0);
}

#[test]
fn an_embedded_database_moves_into_a_node_and_back() {
    let alone = Alone::new();
    let mut served = alone.start();
    served.says("serving");
    alone.sandbox.run(&["put", "key", "value"]).ok();
    alone.sandbox.run(&["-t", "dogs", "put", "a", "1"]).ok();
    alone.sandbox.run(&["counter", "add", "visits", "7"]).ok();
    let archive = alone.sandbox.argument("archive");
    alone.sandbox.run(&["export", archive.as_str()]).ok();

    alone.run(&["import", &archive]).ok();
    assert_eq!(alone.run(&["get", "key"]).ok(), "value\n");
    assert_eq!(alone.run(&["-t", "dogs", "get", "a"]).ok(), "1\n");
    assert_eq!(alone.run(&["counter", "get", "visits"]).ok(), "7\n");
    alone.run(&["import", &archive]).fails_saying(8, &["--merge"]);

    let exported = alone.run(&["export", "--format", "jsonl", "-t", "dogs"]).ok();
    assert_eq!(exported, "{\"key\":\"a\",\"tree\":\"dogs\",\"value\":\"1\"}\n");
}

#[test]
fn an_embedded_directory_moves_into_many_partitions_while_others_write() {
    let alone = Alone::new();
    let mut served = alone.start();
    served.says(&format!("with {} partitions", default_partitions()));
    let lines: String = (0..20_000).map(|number| format!("key{number:05}\tvalue {number}\n")).collect();
    alone.sandbox.fill(&lines);
    alone.sandbox.run(&["-t", "dogs", "put", "lead", "Balto", "--ttl", "5000"]).ok();
    alone.sandbox.run(&["counter", "add", "visits", "7"]).ok();
    let source = alone.sandbox.database().display().to_string();

    let runtime = tokio::runtime::Runtime::new().expect("threads");
    let client = runtime.block_on(async {
        let options = ClientOptions::development(alone.sandbox.path("dogsled-data")).expect("certificates");
        Client::connect([alone.address.clone()], options).await.expect("a client")
    });
    let load = runtime.block_on(async {
        let load = Load::start(&client, "meanwhile", 4);
        load.goes_on(20).await;
        load
    });
    // There are counters of others.
    alone.run(&["import", &source]).fails_saying(8, &["nothing was imported", "--merge"]);
    let summary = alone.run(&["import", &source, "--merge"]).ok();
    assert!(summary.starts_with("20,002 records of 3 trees imported"), "{summary}");
    runtime.block_on(async {
        load.goes_on(20).await;
        let told = load.stop().await;
        told.check_that_no_call_failed(Duration::from_secs(10));
        told.check(&client).await;
        client.close().await;
    });

    assert_eq!(alone.run(&["scan"]).ok(), lines);
    assert_eq!(alone.run(&["-t", "dogs", "get", "lead"]).ok(), "Balto\n");
    let left: i64 = alone.run(&["-t", "dogs", "ttl", "lead"]).ok().trim().parse().expect("seconds");
    assert!((4_900..=5_000).contains(&left), "{left}");
    assert_eq!(alone.run(&["counter", "get", "visits"]).ok(), "7\n");
    alone.run(&["import", &alone.sandbox.argument("dogsled-data")]).fails_saying(7, &["dogsled serve"]);
    // What was moved is still where it was.
    assert_eq!(alone.sandbox.run(&["count"]).ok(), "20000\n");
}

#[test]
fn status_tells_of_members_and_groups() {
    let alone = Alone::new();
    let mut served = alone.start();
    served.says("serving");
    let text = alone.run(&["status"]).ok();
    let partitions = format!("1 member, {} partitions", default_partitions());
    for part in [&partitions[..], "node  address", &alone.address, "ok\n", "meta   1"] {
        assert!(text.contains(part), "{part:?} is not in {text}");
    }
    let status: serde_json::Value =
        serde_json::from_str(&alone.run(&["status", "--json"]).ok()).expect("one document");
    assert_eq!(status["partitions"], default_partitions());
    assert_eq!(status["groups"].as_array().map(Vec::len), Some(default_partitions() as usize + 1));
    assert_eq!(status["members"][0]["leads"], default_partitions() + 1);
    assert_eq!(status["members"][0]["answers"], true);
    let bytes = |name: &str| status["members"][0][name].as_u64().expect(name);
    assert!(bytes("tree_bytes") > 0 && bytes("disk_free_bytes") < bytes("disk_total_bytes"), "{status}");
    assert!(
        status["groups"].as_array().is_some_and(|groups| groups.iter().all(|group| group["leader"] == 1))
    );
    assert_eq!(alone.run(&["member", "list"]).ok(), format!("1\t{}\tactive\t100\t-\n", alone.address));
    alone.run(&["member", "remove", "9"]).fails_saying(1, &["node 9 is no member", "its members are 1"]);
    alone.run(&["member", "remove", "1"]).fails_saying(8, &["only member"]);
}

#[test]
fn an_embedded_database_becomes_the_first_node_of_a_cluster() {
    let alone = Alone::new();
    let embedded = |arguments: &[&str]| {
        crate::cli_support::run(alone.sandbox.bare(&[&["--dir", "dogsled-data"], arguments].concat()))
    };
    embedded(&["put", "greeting", "hello"]).ok();
    embedded(&["-t", "dogs", "put", "lead", "Balto"]).ok();
    assert_eq!(embedded(&["counter", "add", "visits", "41"]).ok(), "41\n");
    let token: u64 = embedded(&["lock", "acquire", "sled", "--owner", "ann", "--lease", "1"])
        .ok()
        .trim_end()
        .parse()
        .expect("a number");

    alone.sandbox.run_bare(&["serve"]).fails_saying(7, &["embedded database", "--from-embedded"]);
    alone.sandbox.run_bare(&["serve", "--data", "none", "--from-embedded"]).fails_saying(7, &["none"]);
    let start = || {
        let mut command = alone.sandbox.bare(&["serve", "--from-embedded", "--listen", &alone.address]);
        command.env("DOGSLED_LOG_LEVEL", "info");
        Served::start(command, &alone.sandbox.path("log"))
    };
    for life in 0..2 {
        let mut served = start();
        served.says("of this node alone, with 1 partition");
        assert_eq!(alone.run(&["get", "greeting"]).ok(), "hello\n");
        assert_eq!(alone.run(&["-t", "dogs", "get", "lead"]).ok(), "Balto\n");
        assert_eq!(alone.run(&["counter", "add", "visits"]).ok(), format!("{}\n", 42 + life));
        assert_eq!(served.terminate(), 0);
    }
    embedded(&["get", "greeting"]).fails_saying(7, &["node", "dogsled serve"]);

    // It grows as any cluster does, and fencing tokens with it.
    let mut first = start();
    first.says("serving");
    let certs = ["--certs", "dogsled-data/dev-certs"];
    alone.sandbox.run_bare(&[&["certs", "node", "2"], &certs[..]].concat()).ok();
    let address = free_address();
    let join = ["serve", "--node", "2", "--data", "second", "--join", &alone.address, "--listen", &address];
    let command = alone.sandbox.bare(&[&join[..], &certs].concat());
    let mut second = Served::start(command, &alone.sandbox.path("second.log"));
    second.says("joined the cluster");
    let asks_second = [&certs[..], &["--connect", &address, "-t", "dogs", "get", "lead"]].concat();
    assert_eq!(alone.sandbox.run_bare(&asks_second).ok(), "Balto\n");
    // Ann's lease may have more to go: the cluster counts it by its own clock.
    let deadline = Instant::now() + Duration::from_secs(30);
    let next: u64 = loop {
        let bo = alone.run(&["lock", "acquire", "sled", "--owner", "bo"]);
        if bo.code != 8 || Instant::now() > deadline {
            break bo.ok().trim_end().parse().expect("a number");
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(next > token, "{next} after {token}");
    assert_eq!(second.terminate(), 0);
    assert_eq!(first.terminate(), 0);
}

#[test]
fn systemd_hears_when_the_node_is_ready_and_when_it_stops() {
    let sandbox = Sandbox::new();
    let socket = UnixDatagram::bind(sandbox.path("notify")).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_secs(20))).expect("a timeout");
    let mut command = sandbox.bare(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"]);
    command.env("NOTIFY_SOCKET", sandbox.path("notify"));
    let served = Served::start(command, &sandbox.path("log"));
    let heard = || {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).expect("a message");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    };
    assert_eq!(heard(), "READY=1\nSTATUS=serving");
    assert_eq!(served.terminate(), 0);
    assert_eq!(heard(), "STOPPING=1");
    let log = std::fs::read_to_string(sandbox.path("log")).expect("a log");
    assert!(log.lines().count() > 0);
    for line in log.lines() {
        let line: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        assert!(line["level"].is_string() && line["timestamp"].is_string(), "{line}");
    }
}

/// The node is paused between two batches: the second is sent, and never answered.
#[test]
fn a_write_that_is_not_answered_has_an_exit_code_of_its_own() {
    let alone = Alone::new();
    let mut served = alone.start();
    served.says("serving");
    let mut command = alone.command(&["load", "-", "--format", "tsv", "--timeout", "2"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut load = command.spawn().expect("the binary starts");
    let mut input = load.stdin.take().expect("piped");
    let write = |input: &mut std::process::ChildStdin, from: u32, to: u32| {
        let lines: String = (from..to).map(|number| format!("key {number:06}\tvalue\n")).collect();
        // It may have given up before it has read everything.
        let _ = input.write_all(lines.as_bytes());
    };
    write(&mut input, 0, 30_000);
    let began = Instant::now();
    while alone.run(&["count"]).ok().trim_end().parse::<u32>().expect("a number") < 4096 {
        assert!(began.elapsed() < Duration::from_secs(20), "the first batch was not written");
    }
    served.signal(Signal::STOP);
    write(&mut input, 30_000, 60_000);
    drop(input);
    let output = load.wait_with_output().expect("it ends");
    served.signal(Signal::CONT);
    let message = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(10), "{message}");
    assert!(message.contains("the outcome is not known"), "{message}");
    assert_eq!(served.terminate(), 0);
}

#[test]
fn the_demo_ends_by_itself_and_loses_nothing() {
    let sandbox = Sandbox::new();
    let told = sandbox.run_bare(&["demo"]).ok();
    for part in [
        "they are a cluster of 16 partitions",
        "stopped at once",
        "starts again",
        "nothing that was acknowledged was lost",
    ] {
        assert!(told.contains(part), "{part:?} is not in {told}");
    }
}
