//! Real Redis clients against the real binary: redis-cli, redis-benchmark and redis-py. Where one of them is
//! not installed, that is said and its test is left out.
#![cfg(feature = "cli")]

mod cli_support;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use cli_support::Sandbox;
use cli_support::nodes::{Served, free_address};

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
            eprintln!("SKIPPED: {program} does not start: {error}; apt-get install redis-tools");
            return None;
        }
    };
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads its input");
    Some(child.wait_with_output().expect("it ends"))
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

const TUTORIAL: &str = r#"
import sys
import redis

for protocol in (2, 3):
    r = redis.Redis(port=int(sys.argv[1]), password=sys.argv[2] or None, protocol=protocol, decode_responses=True)
    r.flushdb()
    assert r.ping()
    assert r.set("foo", "bar") is True
    assert r.get("foo") == "bar"
    assert r.get("nothing") is None
    assert r.incr("hits") == 1 and r.incrby("hits", 10) == 11 and r.decr("hits") == 10
    assert r.incrbyfloat("temperature", 36.6) == 36.6

    # A lock, as tutorials have it.
    assert r.set("lock:job", "me", nx=True, ex=10) is True
    assert r.set("lock:job", "you", nx=True, ex=10) is None
    assert 0 < r.ttl("lock:job") <= 10
    assert r.delete("lock:job") == 1
    assert r.setnx("lock:job", "you") is True
    assert r.expire("lock:job", 100) is True and r.persist("lock:job") is True

    assert r.mset({"a": 1, "b": 2, "c": 3}) is True
    assert r.mget("a", "none", "c") == ["1", None, "3"]
    assert r.exists("a", "b", "none") == 2
    assert sorted(r.keys("[abc]")) == ["a", "b", "c"]
    assert sorted(r.scan_iter(match="?", count=2)) == ["a", "b", "c"]
    assert r.type("a") == "string" and r.dbsize() == 7
    assert r.rename("a", "z") and r.getdel("z") == "1"

    with r.pipeline(transaction=True) as pipe:
        assert pipe.set("x", "1").incr("x").get("x").execute() == [True, 2, "2"]
    with r.pipeline(transaction=False) as pipe:
        for number in range(200):
            pipe.set(f"key:{number}", number)
            pipe.get(f"key:{number}")
        replies = pipe.execute()
        assert replies[1::2] == [str(number) for number in range(200)]

    def add(pipe):
        before = int(pipe.get("hits"))
        pipe.multi()
        pipe.set("hits", before + 1)
    assert r.transaction(add, "hits") == [True]
    assert r.get("hits") == "11"

    with r.pipeline() as pipe:
        pipe.watch("hits")
        r.set("hits", 100)
        pipe.multi()
        pipe.set("hits", 0)
        try:
            pipe.execute()
            raise AssertionError("a change was not seen")
        except redis.WatchError:
            pass
    assert r.get("hits") == "100"
    try:
        r.incr("foo")
        raise AssertionError("no error")
    except redis.ResponseError as error:
        assert "not an integer" in str(error), error
    assert r.info()["redis_version"].startswith("7.")
    assert r.client_id() > 0
print("done")
"#;

#[test]
fn what_tutorials_write_with_redis_py_runs_unchanged() {
    let python = std::env::var("DOGSLED_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let found = run(&python, &["-c", "import redis"], "");
    if !found.is_some_and(|output| output.status.success()) {
        eprintln!(
            "SKIPPED: {python} has no redis-py; pip install redis, or name another with DOGSLED_PYTHON"
        );
        return;
    }
    for password in ["", "secret"] {
        let sandbox = Sandbox::new();
        let more: &[&str] = if password.is_empty() { &[] } else { &["--redis-password", password] };
        let (_served, port) = start(&sandbox, more);
        let output = run(&python, &["-c", TUTORIAL, &port, password], "").expect("it ran before");
        assert_eq!(text(&output.stdout), "done\n", "{}", text(&output.stderr));
    }
}

#[test]
fn redis_is_not_served_unless_asked_for_and_a_taken_port_is_told() {
    let sandbox = Sandbox::new();
    let address = free_address();
    let mut served = sandbox.serving(&["--listen", &address, "--redis", "off"]);
    served.signal(rustix::process::Signal::TERM);
    assert_eq!(served.exit_code(), 0);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = taken.local_addr().map(|address| (taken, address.to_string())).expect("it is bound");
    let run = sandbox.run_bare(&["serve", "--listen", &address, "--redis", &taken.1]);
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains(&taken.1) && run.stderr.contains("--redis"), "{}", run.stderr);
}
