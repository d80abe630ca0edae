//! What processes agree on through a cluster, from the shell: read/write locks and semaphores, elections, sessions
//! and the registry of services.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use crate::cli_support::alone::Alone;
use crate::cli_support::bank::Redis;
use crate::cli_support::http::{Answer, Metrics, get_until};
use crate::cli_support::nodes::Served;
use crate::cli_support::{Run, Sandbox};
use dogsled::cluster::default_partitions;
use rustix::process::{Pid, Signal, kill_process};

/// Commands that go on while others are run.
impl Alone {
    fn start(&self, arguments: &[&str]) -> Running {
        Running(self.command(arguments).spawn().expect("the binary starts"))
    }

    /// Its lines of standard output, as they come.
    fn listen(&self, arguments: &[&str]) -> (Running, Lines) {
        let mut child = self.command(arguments).stdout(Stdio::piped()).spawn().expect("the binary starts");
        let stdout = child.stdout.take().expect("piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            BufReader::new(stdout).lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        (Running(child), Lines(lines))
    }
}

/// Is killed in the end if it still runs.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).expect("it runs");
    }

    fn code(mut self) -> Option<i32> {
        self.0.wait().expect("it is this process's child").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Lines(Receiver<String>);

impl Lines {
    #[track_caller]
    fn next(&self) -> String {
        self.0.recv_timeout(Duration::from_secs(30)).expect("a line")
    }
}

#[test]
fn readers_share_a_lock_that_a_writer_has_alone_and_a_semaphore_has_so_many_permits() {
    let alone = Alone::new();
    let inside = alone.sandbox.path("inside");
    let script = format!("touch {0}-$$; while test -e {0}-$$; do sleep 0.05; done", inside.display());
    let shell = ["--", "sh", "-c", &script];
    let count = || {
        let names = std::fs::read_dir(alone.sandbox.path("")).expect("readable");
        let inside = names.filter_map(Result::ok).map(|entry| entry.path());
        inside.filter(|path| path.to_string_lossy().contains("/inside-")).collect::<Vec<_>>()
    };
    let now = ["--wait", "0", "--", "true"];
    let with = |first: &[&'static str], rest: &[&'static str]| [first, rest].concat();

    let readers: Vec<_> =
        (0..2).map(|_| alone.start(&[&["read-lock", "book"][..], &shell].concat())).collect();
    alone.eventually("both readers are in it", || count().len() == 2);
    alone.run(&with(&["write-lock", "book"], &now)).fails_saying(8, &["held by another"]);
    alone.run(&with(&["read-lock", "book"], &now)).ok();
    // Another kind of lock of the same name.
    alone.run(&with(&["lock", "book"], &now)).fails_saying(2, &["capacity"]);
    count().iter().for_each(|path| std::fs::remove_file(path).expect("it is there"));
    for reader in readers {
        assert_eq!(reader.code(), Some(0));
    }
    let writer = alone.start(&[&["write-lock", "book"][..], &shell].concat());
    alone.eventually("the writer is in it", || count().len() == 1);
    alone.run(&with(&["read-lock", "book"], &now)).fails(8);
    count().iter().for_each(|path| std::fs::remove_file(path).expect("it is there"));
    assert_eq!(writer.code(), Some(0));
    alone.run(&["read-lock", "book", "--wait", "0", "--", "sh", "-c", "exit 7"]).fails_with(7);

    let pool = ["semaphore", "pool", "--capacity", "3"];
    let two = alone.start(&[&pool[..], &["--permits", "2"], &shell].concat());
    alone.eventually("two permits are taken", || count().len() == 1);
    alone.run(&with(&pool, &["--permits", "2", "--wait", "1", "--", "true"])).fails(8);
    alone.run(&with(&pool, &now)).ok();
    alone.run(&["semaphore", "pool", "--capacity", "4", "--wait", "0", "--", "true"]).fails(2);
    count().iter().for_each(|path| std::fs::remove_file(path).expect("it is there"));
    assert_eq!(two.code(), Some(0));

    alone.run(&["semaphore", "pool", "--", "true"]).fails(2);
    alone.run(&with(&pool, &["--permits", "4", "--", "true"])).fails_saying(2, &["4 permits"]);
    alone.run(&["write-lock", "book"]).fails_saying(2, &["write-lock NAME -- command"]);
    for kind in ["read-lock", "write-lock"] {
        alone.sandbox.run(&[kind, "book", "--", "true"]).fails_saying(2, &["--connect"]);
    }
}

trait FailsWith {
    fn fails_with(self, code: i32);
}

impl FailsWith for Run {
    /// A command's own code, of which dogsled says nothing.
    #[track_caller]
    fn fails_with(self, code: i32) {
        assert_eq!((self.code, self.stderr.as_str()), (code, ""), "{self:?}");
    }
}

#[test]
fn candidates_lead_one_after_the_other_and_who_observes_hears_of_each() {
    let alone = Alone::new();
    let (_observer, heard) = alone.listen(&["election", "observe", "cron"]);
    assert_eq!(heard.next(), "nobody");
    alone.run(&["election", "leader", "cron"]).fails_saying(1, &["nobody leads"]);

    let campaign = |value: &str, lease: &str| {
        let shown = alone.sandbox.path(value);
        let shown = shown.display();
        let script =
            format!("trap 'echo told > {shown}; exit 3' TERM; touch {shown}-listens; sleep 60 & wait");
        alone.start(&["election", "campaign", "cron", value, "--lease", lease, "--", "sh", "-c", &script])
    };
    let ann = campaign("ann", "10");
    let first = heard.next();
    assert!(first.starts_with("leads\tann\ttoken "), "{first}");
    let said = alone.run(&["election", "leader", "cron", "--json"]).ok();
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert_eq!((said["leader"].as_str(), said["election"].as_str()), (Some("ann"), Some("cron")));
    let late = ["election", "campaign", "cron", "eve", "--wait", "0", "--", "true"];
    alone.run(&late).fails_saying(8, &["another leads"]);

    let ben = campaign("ben", "2");
    // It is told to end, so its command is, whose code passes through; and the next leads.
    alone.eventually("the command listens", || alone.sandbox.path("ann-listens").exists());
    ann.signal(Signal::TERM);
    assert_eq!(ann.code(), Some(3));
    let token = |line: &str| line.rsplit(' ').next().and_then(|token| token.parse::<u64>().ok());
    let second = loop {
        match heard.next() {
            line if line == "nobody" => {}
            line => break line,
        }
    };
    assert!(second.starts_with("leads\tben\ttoken "), "{second}");
    assert!(token(&second) > token(&first), "{second} after {first}");

    // One that vanishes is missed when its lease has ended.
    ben.signal(Signal::STOP);
    assert_eq!(heard.next(), "nobody");
    let cat = campaign("cat", "2");
    let third = heard.next();
    assert!(third.starts_with("leads\tcat\t") && token(&third) > token(&second), "{third}");
    ben.signal(Signal::CONT);
    assert_eq!(ben.code(), Some(8), "its leadership was lost");
    drop(cat);

    alone.run(&["election", "campaign", "cron", "eve"]).fails_saying(2, &["-- command"]);
    alone.sandbox.run(&["election", "observe", "cron"]).fails_saying(2, &["--connect"]);
    assert_eq!(alone.run(&["election", "observe", "another", "--limit", "1"]).ok(), "nobody\n");
}

#[test]
fn what_a_session_owns_dies_with_it_and_lives_while_it_is_renewed() {
    let alone = Alone::new();
    let open = |lease: &str| alone.run(&["session", "open", "--lease", lease]).ok().trim().to_owned();
    let there = |key: &str| alone.run(&["get", key]).code == 0;

    let id = open("60");
    for key in ["worker/1", "worker/2", "worker/3"] {
        alone.run(&["put", key, "idle", "--session", &id]).ok();
    }
    alone.run(&["put", "worker/2", "mine now"]).ok();
    alone.run(&["session", "renew", &id]).ok();
    alone.run(&["session", "close", &id]).ok();
    assert_eq!(alone.run(&["scan"]).ok(), "worker/2\tmine now\n", "a plain put takes a key from its session");
    alone.run(&["session", "renew", &id]).fails_saying(1, &["has ended"]);
    alone.run(&["session", "close", &id]).fails(1);
    alone.run(&["put", "worker/1", "idle", "--session", &id]).fails(1);

    // Renewed, it outlives its lease; not renewed, it does not.
    let id = open("5");
    alone.run(&["put", "short", "lived", "--session", &id]).ok();
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(7) {
        alone.run(&["session", "renew", &id]).ok();
        assert!(there("short"));
        std::thread::sleep(Duration::from_millis(500));
    }
    alone.eventually("the lease ends", || !there("short"));
    alone.run(&["session", "renew", &id]).fails(1);

    // While a command runs.
    let binary = env!("CARGO_BIN_EXE_dogsled");
    let put = format!("{binary} --connect {} put during run --session $DOGSLED_SESSION", alone.address);
    let get = format!("{binary} --connect {} get during", alone.address);
    let script = format!("{put} && sleep 10 && {get}; exit 5");
    let run = alone.run(&["session", "run", "--lease", "7", "--", "sh", "-c", &script]);
    assert_eq!((run.code, run.stdout.as_str(), run.stderr.as_str()), (5, "run\n", ""));
    assert!(!there("during"));

    // The command is stopped when the session is lost.
    let shown = alone.sandbox.path("told");
    let ready = alone.sandbox.path("ready");
    let (told, listens) = (shown.display(), ready.display());
    let script = format!("trap 'echo told > {told}; exit 3' TERM; touch {listens}; sleep 60 & wait");
    let running = alone.start(&["session", "run", "--lease", "3", "--", "sh", "-c", &script]);
    alone.eventually("the command listens", || ready.exists());
    alone.served.signal(Signal::STOP);
    alone.eventually("the command is told", || shown.exists());
    alone.served.signal(Signal::CONT);
    assert_eq!(running.code(), Some(8));

    for wrong in ["7", "", "00000000000000000000000000000000g", "+0000000000000000000000000000001"] {
        alone.run(&["session", "renew", wrong]).fails_saying(2, &["32 hexadecimal digits"]);
    }
    alone.run(&["put", "a", "b", "--session", &id, "--ttl", "3"]).fails(2);
    alone.sandbox.run(&["session", "open"]).fails_saying(2, &["--connect"]);
    alone.sandbox.run(&["put", "a", "b", "--session", &id]).fails_saying(2, &["--connect"]);
}

#[test]
fn an_instance_is_known_while_its_command_runs() {
    let alone = Alone::new();
    let (_following, heard) = alone.listen(&["registry", "follow", "billing"]);
    alone.run(&["registry", "pick", "billing"]).fails_saying(1, &["no such instance"]);
    let register = |address: &str, more: &[&str]| {
        let command = ["registry", "register", "billing", address, "--lease", "7"];
        alone.start(&[&command[..], more, &["--", "sleep", "60"]].concat())
    };
    let east = register("10.0.0.1:80", &["--id", "1", "--tag", "zone=east", "--tag", "v2"]);
    assert_eq!(heard.next(), "+\t1\t10.0.0.1:80\tzone=east,v2");
    let west = register("10.0.0.2:80", &["--tag", "zone=west"]);
    assert_eq!(heard.next(), "+\t10.0.0.2:80\t10.0.0.2:80\tzone=west");

    let all = "1\t10.0.0.1:80\tzone=east,v2\n10.0.0.2:80\t10.0.0.2:80\tzone=west\n";
    assert_eq!(alone.run(&["registry", "instances", "billing"]).ok(), all);
    let some = alone.run(&["registry", "instances", "billing", "--tag", "v2", "--json"]).ok();
    let some: serde_json::Value = serde_json::from_str(&some).expect("one document");
    assert_eq!((some["id"].as_str(), some["tags"][0].as_str()), (Some("1"), Some("zone=east")));
    assert_eq!(alone.run(&["registry", "pick", "billing", "--tag", "zone=west"]).ok(), "10.0.0.2:80\n");
    alone.run(&["registry", "pick", "billing", "--tag", "zone=north"]).fails(1);
    let by_key = |key: &str| alone.run(&["registry", "pick", "billing", "--key", key]).ok();
    for key in ["ann", "ben", "cat"] {
        assert_eq!(by_key(key), by_key(key));
    }

    // Told to end it is gone at once, killed when its lease has ended.
    west.signal(Signal::TERM);
    assert_eq!(west.code(), Some(128 + 15));
    assert_eq!(heard.next(), "-\t10.0.0.2:80");
    east.signal(Signal::KILL);
    assert_eq!(heard.next(), "-\t1");
    assert_eq!(alone.run(&["registry", "instances", "billing"]).ok(), "");

    let third = register("10.0.0.3:80", &[]);
    assert_eq!(heard.next(), "+\t10.0.0.3:80\t10.0.0.3:80\t");
    alone.run(&["registry", "deregister", "billing", "10.0.0.3:80"]).ok();
    assert_eq!(heard.next(), "-\t10.0.0.3:80");
    alone.run(&["registry", "deregister", "billing", "10.0.0.3:80"]).fails(1);
    drop(third);

    alone.run(&["registry", "instances", "{x}"]).fails_saying(2, &["cannot be called"]);
    alone.run(&["registry", "register", "billing", "10.0.0.3:80"]).fails_saying(2, &["-- command"]);
    alone.sandbox.run(&["registry", "instances", "billing"]).fails_saying(2, &["--connect"]);
}

#[test]
fn each_operation_is_counted_under_the_name_that_it_has_here() {
    let sandbox = Sandbox::new();
    let command = sandbox.bare(&["serve", "--json", "--listen", "127.0.0.1:0"]);
    let mut served = Served::start(command, &sandbox.path("log"));
    let told: serde_json::Value = serde_json::from_str(&served.says("\"listening\"")).expect("JSON");
    served.says("\"serving\"");
    let (http, address) = (told["http"].as_str().expect("text"), told["address"].as_str().expect("text"));
    let run = |arguments: &[&str]| {
        crate::cli_support::run(sandbox.bare(&[&["--connect", address], arguments].concat())).ok()
    };
    run(&["lock", "one", "--", "true"]);
    run(&["read-lock", "two", "--", "true"]);
    run(&["write-lock", "two", "--", "true"]);
    run(&["semaphore", "three", "--capacity", "3", "--permits", "3", "--", "true"]);
    run(&["election", "campaign", "cron", "ann", "--", "true"]);
    run(&["registry", "register", "billing", "here", "--", "true"]);
    let id = run(&["session", "open"]);
    run(&["put", "owned", "value", "--session", id.trim()]);
    run(&["session", "renew", id.trim()]);
    run(&["session", "close", id.trim()]);
    let names = [
        "lock_acquire",
        "read_lock_acquire",
        "write_lock_acquire",
        "semaphore_acquire",
        "election_proclaim",
        "election_resign",
        "registry_register",
        "session_insert",
    ];
    let count = |metrics: &Metrics, name: &str| {
        metrics.sum("dogsled_commands_total", &[&format!("operation=\"{name}\"")])
    };
    let all = |answer: &Answer| {
        let metrics = Metrics::parse(&answer.body);
        names.iter().all(|name| count(&metrics, name) > 0.0)
    };
    let metrics = Metrics::parse(&get_until(http, "/metrics", all).body);
    for name in names {
        // An election is a lock as well.
        let times = if name == "lock_acquire" { 2.0 } else { 1.0 };
        assert_eq!(count(&metrics, name), times, "{name}");
    }
    for name in ["session_open", "session_renew", "session_close"] {
        assert!(count(&metrics, name) >= f64::from(default_partitions()), "{name}: in each partition");
    }
}

#[test]
fn what_redis_clients_do_is_counted_by_what_it_is() {
    let sandbox = Sandbox::new();
    let command = sandbox.bare(&[
        "serve",
        "--json",
        "--listen",
        "127.0.0.1:0",
        "--redis",
        "127.0.0.1:0",
        "--max-connections",
        "2",
    ]);
    let mut served = Served::start(command, &sandbox.path("log"));
    let told: serde_json::Value = serde_json::from_str(&served.says("\"listening\"")).expect("JSON");
    let mut redis = Redis::connect(&mut served);
    let mut other = redis.another();
    let http = told["http"].as_str().expect("text");
    for command in [
        "SET a 1",
        "MSET a 1 b 2",
        "INCR a",
        "SET {t}a 1",
        "APPEND b x",
        "EXPIRE a 1000",
        "HSET h f 1",
        "HINCRBY h f 1",
        "HDEL h f",
        "RENAME {t}a {t}c",
        "DEL b",
        "GET c",
        "HGET h f",
        "EXISTS c",
    ] {
        let answer = redis.run(command);
        assert!(!answer.contains("ERR"), "{command}: {answer}");
    }
    redis.run("MULTI");
    redis.run("SET {x}1 1");
    redis.run("INCR {x}2");
    assert_eq!(redis.run("EXEC"), "OK 1");
    assert_eq!(other.run("SUBSCRIBE news"), "subscribe news 1");
    assert_eq!(other.run("PSUBSCRIBE n*"), "psubscribe n* 2");
    assert_eq!(redis.run("PUBLISH news x"), "2");
    assert_eq!(redis.another().line(), "-ERR max number of clients reached");
    let written = [
        "strings_set",
        "strings_add",
        "strings_edit",
        "key_expire",
        "key_move",
        "key_delete",
        "hash_set",
        "hash_add",
        "hash_delete",
        "several",
        "publish",
    ];
    let read = ["strings_get", "hash_get", "key_look"];
    let has = |metrics: &Metrics, family: &str, name: &str| {
        metrics.sum(family, &[&format!("operation=\"{name}\"")]) >= 1.0
    };
    let all = |answer: &Answer| {
        let metrics = Metrics::parse(&answer.body);
        written.iter().all(|name| has(&metrics, "dogsled_commands_total", name))
            && read.iter().all(|name| has(&metrics, "dogsled_read_duration_seconds_count", name))
            && metrics.sum("dogsled_redis_messages_total", &[]) >= 2.0
    };
    let metrics = Metrics::parse(&get_until(http, "/metrics", all).body);
    assert_eq!(metrics.sum("dogsled_commands_total", &["operation=\"strings_add\""]), 1.0);
    assert_eq!(metrics.sum("dogsled_connections", &["kind=\"redis\""]), 2.0);
    assert_eq!(metrics.sum("dogsled_connections_refused_total", &["reason=\"too_many_redis\""]), 1.0);
    assert_eq!(metrics.sum("dogsled_redis_subscriptions", &["kind=\"channel\""]), 1.0);
    assert_eq!(metrics.sum("dogsled_redis_subscriptions", &["kind=\"pattern\""]), 1.0);
    assert_eq!(metrics.sum("dogsled_redis_messages_total", &[]), 2.0);
    for name in ["dogsled_redis_moved_total", "dogsled_redis_held_bytes"] {
        assert!(metrics.kinds.contains_key(name), "{name}");
    }
    drop((redis, other));
    get_until(http, "/metrics", |answer| {
        let metrics = Metrics::parse(&answer.body);
        metrics.sum("dogsled_connections", &["kind=\"redis\""]) == 0.0
            && metrics.sum("dogsled_redis_subscriptions", &[]) == 0.0
    });
}

#[test]
fn those_who_share_a_lock_are_listed_and_each_can_be_released() {
    let alone = Alone::new();
    let held = |name: &str, count: usize| {
        let output = alone.command(&["lock", "holder", name]).output().expect("it starts");
        String::from_utf8_lossy(&output.stdout).lines().count() == count
    };
    let semaphore = |permits: &'static str| {
        ["semaphore", "pool", "--capacity", "5", "--permits", permits, "--", "sleep", "60"]
    };
    let one = alone.start(&semaphore("1"));
    alone.eventually("the first has its permit", || held("pool", 1));
    let _two = alone.start(&semaphore("2"));
    alone.eventually("both have theirs", || held("pool", 2));
    let listed = alone.run(&["lock", "holder", "pool"]).ok();
    let lines: Vec<&str> = listed.lines().collect();
    assert!(lines[0].ends_with("\t1 of 5 permits") && lines[1].ends_with("\t2 of 5 permits"), "{listed}");
    let json: serde_json::Value =
        serde_json::from_str(&alone.run(&["--json", "lock", "holder", "pool"]).ok()).expect("JSON");
    assert_eq!((&json["capacity"], &json["holders"][1]["permits"]), (&5.into(), &2.into()));
    assert_eq!(json["token"], json["holders"][0]["token"]);

    let of = |number: usize, field: &str| match &json["holders"][number][field] {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let release = |owner: &str, token: &str| {
        alone.run(&["lock", "release", "pool", "--owner", owner, "--token", token])
    };
    // The token of one and the owner of the other are nobody's.
    release(&of(0, "owner"), &of(1, "token")).fails_saying(8, &["is not held by", &of(1, "owner")]);
    release(&of(1, "owner"), &of(1, "token")).ok();
    release(&of(1, "owner"), &of(1, "token")).fails_saying(8, &[&of(0, "owner")]);
    assert!(held("pool", 1), "the first holds its permit as before");
    one.signal(Signal::TERM);
    alone.eventually("nobody has a permit", || held("pool", 0));
    alone.run(&["lock", "holder", "pool"]).fails(1);

    let _reader = alone.start(&["read-lock", "book", "--", "sleep", "60"]);
    alone.eventually("it reads", || held("book", 1));
    assert!(alone.run(&["lock", "holder", "book"]).ok().ends_with("\tto read\n"));
}

#[test]
fn sessions_are_listed_with_what_dies_with_them() {
    let alone = Alone::new();
    let id = alone.run(&["session", "open", "--lease", "600"]).ok();
    let id = id.trim();
    alone.run(&["put", "worker", "idle", "--session", id]).ok();
    alone.run(&["put", "gone", "x", "--session", id]).ok();
    // A plain write makes it a key like any other.
    alone.run(&["put", "gone", "y"]).ok();
    let listed = alone.run(&["session", "list"]).ok();
    let mut lines = listed.lines().skip_while(|line| !line.starts_with(id));
    let session = lines.next().expect("it is listed");
    assert!(session.contains("\tlease 600 s\t") && session.ends_with("\towns 1"), "{session}");
    assert_eq!(lines.next(), Some("\tkey\t__sled__default\tworker"));
    let json = alone.run(&["--json", "session", "list"]).ok();
    let of_it = json.lines().find(|line| line.contains(id)).expect("it is listed");
    let of_it: serde_json::Value = serde_json::from_str(of_it).expect("JSON");
    let left = of_it["left_ms"].as_u64().expect("a number");
    assert!((500_000..=600_000).contains(&left), "{of_it}");
    assert_eq!((&of_it["owned"][0]["key"], &of_it["owns_more"]), (&"worker".into(), &false.into()));
    alone.run(&["session", "close", id]).ok();
    assert!(!alone.run(&["session", "list"]).ok().contains(id));
    // Of a directory: a database that no application has open has none but what one has left.
    alone.sandbox.run(&["put", "k", "v"]).ok();
    assert_eq!(alone.sandbox.run(&["session", "list"]).ok(), "");
}
