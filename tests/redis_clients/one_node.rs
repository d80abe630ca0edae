//! Real Redis clients against the real binary: redis-cli, redis-benchmark, redis-py and ioredis. Where one of them is
//! not installed, that is said and its test is left out; `.ci/run` installs what it can, and counts what it cannot.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Output, Stdio};

use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Sandbox, skipped};

/// A node that serves Redis clients, and the port for them.
fn start(sandbox: &Sandbox, more: &[&str]) -> (Served, String) {
    let address = free_address();
    let arguments = [&["--listen", &address, "--redis", "127.0.0.1:0"], more].concat();
    let mut served = sandbox.serving(&arguments);
    let said = served.says("\"event\":\"redis\"");
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next());
    let port = port.unwrap_or_else(|| panic!("no address in {said}")).to_owned();
    (served, port)
}

/// Runs a program with this as its input; `None`: it is not installed, which is said.
fn run(program: &str, arguments: &[&str], input: &str) -> Option<Output> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(error) => {
            skipped(&format!("{program} does not start: {error}; apt-get install {}", package(program)));
            return None;
        }
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
    Some(child.wait_with_output().expect("it ends"))
}

/// Where Debian has a program.
fn package(program: &str) -> &str {
    match program {
        "node" => "nodejs",
        "redis-cli" | "redis-benchmark" => "redis-tools",
        _ => program,
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn redis_cli_works_and_other_clients_see_what_it_did() {
    let sandbox = Sandbox::new();
    let (served, port) = start(&sandbox, &[]);
    let script = "SET greeting hello\nGET greeting\nINCR visits\nINCR visits\nSET lock t NX EX 10\nSET lock u NX EX 10\n\
                  MULTI\nINCR visits\nGET greeting\nEXEC\nZADD h f\n";
    let Some(output) = run("redis-cli", &["-p", &port], script) else { return };
    let expected = "OK\nhello\n1\n2\nOK\n\nOK\nQUEUED\nQUEUED\n3\nhello\n\
                    ERR unknown command 'ZADD', with args beginning with: 'h' 'f' \n\n";
    assert_eq!(text(&output.stdout), expected, "{}", text(&output.stderr));
    let new = run("redis-cli", &["-3", "-p", &port, "GET", "greeting"], "").expect("it ran before");
    assert_eq!(text(&new.stdout), "hello\n");
    let scan = run("redis-cli", &["-p", &port, "--scan"], "").expect("it ran before");
    assert_eq!(text(&scan.stdout).lines().count(), 3);
    // Locks with tokens; the reply of one is an argument of the other.
    let ask = |line: &[&str]| {
        let output = run("redis-cli", &[&["-p", &port], line].concat(), "").expect("it ran before");
        text(&output.stdout).trim_end().to_owned()
    };
    let token = ask(&["DOGSLED.LOCK", "job", "60000"]);
    assert!(token.parse::<u64>().is_ok(), "{token}");
    assert_eq!(ask(&["DOGSLED.LOCK", "job", "60000"]), "");
    assert_eq!(ask(&["DOGSLED.FENCED", "job", &token, "INCR", "visits"]), "4");
    assert_eq!(ask(&["DOGSLED.UNLOCK", "job", &token]), "1");
    assert!(ask(&["DOGSLED.FENCED", "job", &token, "INCR", "visits"]).starts_with("LOCKNOTHELD "));
    assert_eq!(ask(&["GET", "visits"]), "4");
    assert_eq!(served.terminate(), 0);
}

#[test]
fn redis_benchmark_runs_its_course() {
    let sandbox = Sandbox::new();
    let (_served, port) = start(&sandbox, &[]);
    let arguments = ["-p", &port, "-t", "ping,set,get,incr,mset", "-n", "400", "-c", "10", "-P", "8", "-q"];
    let Some(output) = run("redis-benchmark", &arguments, "") else { return };
    let said = text(&output.stdout) + &text(&output.stderr);
    assert!(output.status.success(), "{said}");
    for test in ["PING_INLINE", "PING_MBULK", "SET", "GET", "INCR", "MSET (10 keys)"] {
        assert!(said.contains(&format!("{test}: ")), "no {test} in {said}");
    }
    assert!(!said.contains("rror"), "{said}");
}

/// What clients are tried with: `.ci/run` installs those that are missing, each in its pinned version.
const CLIENTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");

/// Has a program talk to nodes with and without a password; the last line that it says is `done`.
fn runs_its_course(program: &str, script: &str) {
    for password in ["", "secret"] {
        let sandbox = Sandbox::new();
        let more: &[&str] = if password.is_empty() { &[] } else { &["--redis-password", password] };
        let (_served, port) = start(&sandbox, more);
        let script = format!("{CLIENTS}/{script}");
        let output = run(program, &[&script, &port, password], "").expect("it ran before");
        let said = text(&output.stdout);
        assert!(said.starts_with("done"), "{script}: {said}{}", text(&output.stderr));
    }
}

/// A Python that has redis-py; `None`: there is none, which is said.
fn python() -> Option<String> {
    let python = std::env::var("DOGSLED_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = run(&python, &["-c", "import redis"], "");
    if found.is_some_and(|output| output.status.success()) {
        return Some(python);
    }
    skipped(&format!(
        "{python} has no redis-py; pip install -r tests/clients/requirements.txt, or name another with DOGSLED_PYTHON"
    ));
    None
}

#[test]
fn what_tutorials_write_with_redis_py_runs_unchanged() {
    let Some(python) = python() else { return };
    runs_its_course(&python, "tutorial.py");
}

/// Found as node finds packages; `NODE_PATH` says where else.
#[test]
fn what_tutorials_write_with_ioredis_runs_unchanged() {
    let found = run("node", &["-e", "require('ioredis')"], "");
    if !found.is_some_and(|output| output.status.success()) {
        skipped("node does not find ioredis; npm install as tests/clients/package.json says, and NODE_PATH");
        return;
    }
    runs_its_course("node", "tutorial.js");
}

/// Two nodes of one cluster, and their ports for Redis clients.
fn two_nodes(sandbox: &Sandbox) -> ([Served; 2], Vec<String>) {
    sandbox.certificates(&[1, 2]);
    let addresses = [free_address(), free_address()];
    let members = format!("1={},2={}", addresses[0], addresses[1]);
    let launch = |node: usize, more: &[&str]| {
        let (id, data) = (node.to_string(), format!("data-{node}"));
        let arguments = ["--certs", "certs", "--node", &id, "--data", &data, "--members", &members];
        let arguments =
            [&arguments, &["--listen", &addresses[node - 1], "--redis", "127.0.0.1:0"][..], more].concat();
        sandbox.serve(&arguments)
    };
    let mut nodes = [launch(2, &[]), launch(1, &["--init", "--partitions", "4"])];
    let ports = nodes.iter_mut().map(|node| {
        let said: serde_json::Value = serde_json::from_str(&node.says("\"event\":\"redis\"")).expect("JSON");
        said["address"].as_str().and_then(|address| address.rsplit(':').next()).expect("a port").to_owned()
    });
    let ports = ports.collect();
    (nodes, ports)
}

#[test]
fn redis_cli_and_redis_py_publish_and_subscribe_at_two_nodes() {
    let sandbox = Sandbox::new();
    let (_nodes, ports) = two_nodes(&sandbox);
    // It ends when its input does, which comes behind the message.
    let child = Command::new("redis-cli")
        .args(["-p", &ports[1], "SUBSCRIBE", "news"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    match child {
        Err(error) => skipped(&format!("redis-cli does not start: {error}; apt-get install redis-tools")),
        Ok(mut child) => {
            let mut told =
                BufReader::new(child.stdout.take().expect("piped")).lines().map(|line| line.expect("text"));
            let mut next = |count: usize| -> Vec<String> { told.by_ref().take(count).collect() };
            assert_eq!(next(3), ["subscribe", "news", "1"]);
            let script = "PUBLISH news hello\nPUBLISH other x\nPUBLISH news bye\n";
            let output = run("redis-cli", &["-p", &ports[0]], script).expect("it ran before");
            assert_eq!(text(&output.stdout), "0\n0\n0\n", "nobody is subscribed at that node");
            assert_eq!(next(6), ["message", "news", "hello", "message", "news", "bye"]);
            child.kill().expect("it runs");
            child.wait().expect("it was killed");
        }
    }
    let Some(python) = python() else { return };
    let script = format!("{CLIENTS}/pubsub.py");
    let output = run(&python, &[&script, &ports[0], &ports[1]], "").expect("it ran before");
    let said = text(&output.stdout);
    assert!(said.starts_with("done"), "{said}{}", text(&output.stderr));
}

#[test]
fn redis_clients_from_elsewhere_come_within_tls_and_with_a_password() {
    let sandbox = Sandbox::new();
    let open = ["serve", "--listen", "127.0.0.1:0", "--redis", "0.0.0.0:0"];
    sandbox.run_bare(&open).fails_saying(2, &["--redis 0.0.0.0:0", "TLS", "--certs"]);
    sandbox.run_bare(&["certs", "ca"]).ok();
    sandbox.run_bare(&["certs", "node", "1", "--host", "127.0.0.1"]).ok();
    sandbox.run_bare(&["certs", "client"]).ok();
    let with_certificates = [&open[..], &["--certs", "certs"]].concat();
    sandbox.run_bare(&with_certificates).fails_saying(2, &["--redis 0.0.0.0:0", "--redis-password"]);
    let address = free_address();
    let arguments =
        ["--certs", "certs", "--listen", &address, "--redis", "0.0.0.0:0", "--redis-password", "secret"];
    let mut served = sandbox.serving(&arguments);
    let said = served.says("\"event\":\"redis\"");
    let port = said.split("0.0.0.0:").nth(1).and_then(|rest| rest.split('"').next()).expect("an address");
    let ca = sandbox.path("certs/ca.crt").display().to_string();
    let own = ["-h", "127.0.0.1", "-p", port, "--tls", "--cacert", &ca, "--no-auth-warning"];
    let ask = |more: &[&str], input: &str| run("redis-cli", &[&own[..], more].concat(), input);

    let Some(output) = ask(&["PING"], "") else { return };
    assert_eq!(text(&output.stdout), "NOAUTH Authentication required.\n\n", "{}", text(&output.stderr));
    // Larger than a record, and than what waits within TLS.
    let large = "x".repeat(3 << 20);
    let said = |more: &[&str], input: &str| {
        text(&ask(&[&["-a", "secret"], more].concat(), input).expect("it ran before").stdout)
    };
    assert_eq!(said(&["-x", "SET", "large"], &large), "OK\n");
    assert_eq!(said(&["GET", "large"], ""), large.clone() + "\n");
    let commands: String = (0..2_000).map(|number| format!("INCR {}\n", number % 7)).collect();
    assert_eq!(said(&[], &commands).lines().count(), 2_000);
    // In clear, and with the certificates of somebody else.
    let clear = run("redis-cli", &["-p", port, "-a", "secret", "PING"], "").expect("it ran before");
    assert!(!text(&clear.stdout).contains("PONG"), "{clear:?}");
    let stranger = Sandbox::new();
    stranger.run_bare(&["certs", "ca"]).ok();
    let theirs = stranger.path("certs/ca.crt").display().to_string();
    let refused =
        run("redis-cli", &["-p", port, "--tls", "--cacert", &theirs, "PING"], "").expect("it ran before");
    assert!(text(&refused.stderr).contains("certificate verify failed"), "{refused:?}");

    // Whoever checks for the address as well, and subscribes.
    let Some(python) = python() else { return };
    let script = format!("{CLIENTS}/tls.py");
    let output = run(&python, &[&script, port, &ca], "").expect("it ran before");
    assert!(text(&output.stdout).starts_with("done"), "{}", text(&output.stderr));
    assert_eq!(served.terminate(), 0);
}

/// Built by `.ci/run`, apart from this workspace; `DOGSLED_REDIS_RS` says where it is.
#[test]
fn what_users_of_redis_rs_write_runs_unchanged() {
    let Some(program) = std::env::var_os("DOGSLED_REDIS_RS") else {
        skipped(
            "no DOGSLED_REDIS_RS; cargo build --locked --manifest-path tests/clients/redis-rs/Cargo.toml, and \
             let it name the program",
        );
        return;
    };
    for password in ["", "secret"] {
        let sandbox = Sandbox::new();
        let more: &[&str] = if password.is_empty() { &[] } else { &["--redis-password", password] };
        let (_served, port) = start(&sandbox, more);
        let output = Command::new(&program).args([&port, password]).output().expect("it starts");
        assert_eq!(text(&output.stdout), "done\n", "{}", text(&output.stderr));
    }
}

#[test]
fn redis_is_served_unless_somebody_says_otherwise_and_a_taken_port_is_told() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address)).expect("it is bound");
    let asked = taken.1.to_string();
    let start = |sandbox: &Sandbox, arguments: &[&str]| {
        let mut command = sandbox.bare(&["serve", "--json"]);
        command.args(arguments);
        let mut served = Served::start(command, &sandbox.path("log"));
        let told: serde_json::Value = serde_json::from_str(&served.says("\"serving\"")).expect("JSON");
        (served, told["redis"].clone())
    };
    // By default, and a client finds it.
    let sandbox = Sandbox::new();
    let (served, redis) = start(&sandbox, &["--listen", "127.0.0.1:0"]);
    let redis = redis.as_str().expect("an address").to_owned();
    let port = redis.strip_prefix("127.0.0.1:").expect("of loopback");
    if let Some(output) = run("redis-cli", &["-p", port, "PING"], "") {
        assert_eq!(text(&output.stdout), "PONG\n");
    }
    assert_eq!(served.terminate(), 0);
    assert!(std::net::TcpListener::bind(&redis).is_ok(), "the port is not free");
    let (served, redis) = start(&sandbox, &["--listen", "127.0.0.1:0", "--redis", "off"]);
    assert_eq!(redis, serde_json::Value::Null);
    assert_eq!(served.terminate(), 0);
    // The one that goes with the node's port, 1000 above it.
    let listen = format!("127.0.0.1:{}", taken.1.port() - 1000);
    if std::net::UdpSocket::bind(&listen).is_ok() {
        let (served, redis) = start(&sandbox, &["--listen", &listen]);
        assert_eq!(redis, serde_json::Value::Null);
        assert_eq!(served.terminate(), 0);
        let log = std::fs::read_to_string(sandbox.path("log")).expect("a log");
        assert!(log.contains("NO REDIS CLIENTS") && log.contains(&asked), "{log}");
    }
    let run =
        sandbox.run_bare(&["serve", "--listen", "127.0.0.1:0", "--redis", &asked, "--log-level", "off"]);
    run.fails_saying(3, &["cannot listen on", &asked, "(TCP)", "--redis off"]);
}
