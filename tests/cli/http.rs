//! What a node tells over HTTP: metrics, health, status, and the page's file.

use std::net::TcpListener;

use crate::cli_support::http::{Metrics, exchange, get, get_until};
use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Sandbox, run};
use dogsled::cluster::default_partitions;
use rustix::process::Signal;
use serde_json::Value;

/// A node of the sandbox, and where it answers HTTP.
fn start(sandbox: &Sandbox, log: &str, arguments: &[&str]) -> (Served, Value) {
    let mut command = sandbox.bare(&["serve", "--json"]);
    command.args(arguments);
    let mut served = Served::start(command, &sandbox.path(log));
    let told: Value = serde_json::from_str(&served.says("\"listening\"")).expect("JSON");
    (served, told)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text"))
}

#[test]
fn a_node_tells_of_what_was_done_to_it() {
    let sandbox = Sandbox::new();
    let (mut served, told) = start(&sandbox, "log", &["--listen", "127.0.0.1:0"]);
    served.says("\"serving\"");
    let (http, quic) = (text(&told["http"]), text(&told["address"]));
    let ask = |arguments: &[&str]| run(sandbox.bare(&[&["--connect", quic], arguments].concat()));
    for number in 0..20 {
        ask(&["put", &format!("key {number}"), "value"]).ok();
    }
    ask(&["get", "key 1"]).ok();
    assert_eq!(ask(&["counter", "add", "visits", "3"]).ok(), "3\n");
    ask(&["lock", "acquire", "printer \"a\"", "--owner", "ann", "--lease", "600"]).ok();

    assert_eq!((get(http, "/livez").code, get(http, "/readyz").code), (200, 200));
    let answer =
        get_until(http, "/metrics", |answer| answer.body.contains("operation=\"counter_add_within\""));
    assert_eq!(answer.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let metrics = Metrics::parse(&answer.body);
    // The binary's `put` tells whether there was a value, so it is an `insert`.
    let insert = &["operation=\"insert\""];
    assert_eq!(metrics.sum("dogsled_commands_total", insert), 20.0);
    assert_eq!(metrics.sum("dogsled_command_duration_seconds_count", insert), 20.0);
    assert_eq!(metrics.sum("dogsled_commands_total", &["operation=\"counter_add_within\""]), 1.0);
    assert!(metrics.sum("dogsled_read_duration_seconds_count", &["operation=\"get\""]) >= 1.0);
    for stage in ["queue", "sync", "replicate", "apply"] {
        let stage = format!("stage=\"{stage}\"");
        assert!(metrics.sum("dogsled_write_stage_duration_seconds_count", &[&stage]) >= 22.0, "{stage}");
        assert!(metrics.sum("dogsled_write_stage_duration_seconds_sum", &[&stage]) > 0.0, "{stage}");
    }
    assert!(metrics.sum("dogsled_wal_sync_duration_seconds_count", &[]) > 0.0);
    assert_eq!(metrics.sum("dogsled_locks", &[]), 1.0);
    assert!(metrics.sum("dogsled_commands_total", &["operation=\"session_open\""]) >= 1.0);
    assert_eq!(metrics.sum("dogsled_group_leads", &[]), f64::from(default_partitions() + 1));
    assert_eq!(metrics.sum("dogsled_ready", &[]), 1.0);
    assert!(metrics.sum("dogsled_connections", &["kind=\"http\""]) >= 1.0);
    assert!(metrics.sum("process_resident_memory_bytes", &[]) > 1e6);
    let applied = metrics.sum("dogsled_group_applied_index", &[]);
    assert!(applied > 20.0 && applied <= metrics.sum("dogsled_group_last_index", &[]), "{applied}");

    let figures = get_until(http, "/metrics.json", |answer| answer.body.contains("printer"));
    let figures: Value = serde_json::from_str(&figures.body).expect("JSON");
    assert_eq!(figures["locks"][0]["name"], "printer \"a\"");
    assert_eq!(figures["locks"][0]["holders"][0]["owner"], "ann");
    assert!(figures["locks"][0]["holders"][0]["left_ms"].as_u64().is_some_and(|left| left > 500_000));
    assert!(!figures.to_string().contains("key 1"), "it tells of keys");

    let status: Value = serde_json::from_str(&get(http, "/status").body).expect("JSON");
    let printed: Value = serde_json::from_str(&ask(&["--json", "status"]).ok()).expect("JSON");
    for part in ["cluster", "partitions", "ring", "movement"] {
        assert_eq!(status[part], printed[part], "{part}");
    }
    for part in ["members", "groups"] {
        let names = |document: &Value| -> Vec<Vec<String>> {
            let all = document[part].as_array().expect("an array").iter();
            all.map(|one| one.as_object().expect("an object").keys().cloned().collect()).collect()
        };
        assert_eq!(names(&status), names(&printed), "{part}");
    }
    assert_eq!(served.terminate(), 0);
    assert!(TcpListener::bind(http).is_ok(), "the port is not free");
}

#[test]
fn what_nobody_has_a_reason_to_ask_for_is_refused() {
    let sandbox = Sandbox::new();
    let (served, told) = start(&sandbox, "log", &["--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]);
    let http = text(&told["http"]);
    let page = get(http, "/");
    assert_eq!((page.code, &page.headers["content-type"][..]), (200, "text/html; charset=utf-8"));
    assert!(page.body.starts_with("<!doctype html>") && page.body.ends_with("</html>\n"));
    let policy = &page.headers["content-security-policy"];
    assert!(policy.starts_with("default-src 'none'; script-src 'sha256-"), "{policy}");
    assert!(!policy.contains("unsafe"), "{policy}");
    assert_eq!(page.headers["x-content-type-options"], "nosniff");

    let send = |head: &str| exchange(http, format!("{head}\r\nconnection: close\r\n\r\n").as_bytes()).code;
    let own = format!("host: {http}");
    assert_eq!(send(&format!("HEAD /metrics HTTP/1.1\r\n{own}")), 200);
    assert_eq!(send(&format!("GET /nothing HTTP/1.1\r\n{own}")), 404);
    assert_eq!(send(&format!("POST /metrics HTTP/1.1\r\n{own}\r\ncontent-length: 0")), 405);
    assert_eq!(send(&format!("GET /metrics HTTP/1.1\r\n{own}\r\ncontent-length: 3")), 413);
    assert_eq!(send(&format!("GET /metrics HTTP/1.1\r\n{own}\r\ntransfer-encoding: chunked")), 413);
    assert_eq!(send("GET /metrics HTTP/1.1\r\nhost: evil.example"), 421);
    assert_eq!(send("GET /metrics HTTP/1.1\r\nhost: localhost"), 200);
    assert_eq!(send(&format!("GET / HTTP/1.1\r\n{own}\r\nx: {}", "x".repeat(20_000))), 431);
    assert_eq!(send("complete nonsense"), 400);
    let metrics =
        Metrics::parse(&get_until(http, "/metrics", |answer| answer.body.contains("4xx\"} 5")).body);
    assert!(metrics.sum("dogsled_http_requests_total", &["2xx"]) >= 3.0);
    assert_eq!(served.terminate(), 0);
}

#[test]
fn a_port_that_is_taken_stops_the_node_only_if_somebody_has_asked_for_it() {
    let sandbox = Sandbox::new();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let http = taken.local_addr().expect("it is bound").to_string();
    sandbox
        .run_bare(&["serve", "--listen", "127.0.0.1:0", "--http", &http, "--log-level", "off"])
        .fails_saying(3, &["cannot listen on", &http, "(TCP)", "--http off"]);

    // The port that goes with the other one, 80 above it.
    let port = taken.local_addr().expect("it is bound").port();
    let listen = format!("127.0.0.1:{}", port - 80);
    if std::net::UdpSocket::bind(&listen).is_ok() {
        let (mut served, told) = start(&sandbox, "log", &["--listen", &listen]);
        served.says("\"serving\"");
        assert_eq!(told["http"], Value::Null);
        assert_eq!(served.terminate(), 0);
        let log = std::fs::read_to_string(sandbox.path("log")).expect("a log");
        assert!(log.contains("NO METRICS AND NO STATUS PAGE") && log.contains(&http), "{log}");
    }
    let (served, told) = start(&sandbox, "log", &["--listen", "127.0.0.1:0", "--http", "off"]);
    assert_eq!(told["http"], Value::Null);
    assert_eq!(served.terminate(), 0);
}

/// Three nodes; then one that is left alone, and is alive, and not ready.
#[test]
fn a_node_is_ready_while_it_applies_what_its_groups_commit() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2, 3]);
    let addresses: Vec<String> = (0..3).map(|_| free_address()).collect();
    let members: Vec<String> =
        addresses.iter().enumerate().map(|(at, address)| format!("{}={address}", at + 1)).collect();
    let members = members.join(",");
    let launch = |node: usize, more: &[&str]| {
        let (id, data, log) = (node.to_string(), format!("data-{node}"), format!("log-{node}"));
        let mut arguments = vec!["--certs", "certs", "--node", &id, "--data", &data, "--cache", "16"];
        arguments.extend(["--listen", &addresses[node - 1], "--members", &members, "--http", "127.0.0.1:0"]);
        arguments.extend(more);
        start(&sandbox, &log, &arguments)
    };
    let (mut third, told) = launch(3, &[]);
    let http = text(&told["http"]);
    let waiting = get(http, "/readyz");
    assert_eq!((waiting.code, waiting.body.contains("no cluster")), (503, true), "{waiting:?}");
    assert_eq!(get(http, "/livez").code, 200);
    assert_eq!(get(http, "/status").code, 200);
    Metrics::parse(&get(http, "/metrics").body);

    let (second, _) = launch(2, &[]);
    let (first, _) = launch(1, &["--init"]);
    third.says("\"serving\"");
    get_until(http, "/readyz", |answer| answer.code == 200);
    let leads = |answer: &crate::cli_support::http::Answer| {
        Metrics::parse(&answer.body).sum("dogsled_group_follower_lag_entries", &[]) == 0.0
    };
    get_until(http, "/metrics", leads);
    let status = get_until(http, "/status", |answer| answer.body.matches("\"answers\":true").count() == 3);
    let status: Value = serde_json::from_str(&status.body).expect("JSON");
    assert_eq!(status["members"].as_array().map(Vec::len), Some(3));

    first.kill_nine();
    second.kill_nine();
    get_until(http, "/readyz", |answer| answer.code == 503 && answer.body.contains("group 0: "));
    assert_eq!(get(http, "/livez").code, 200);
    let metrics =
        Metrics::parse(&get_until(http, "/metrics", |answer| answer.body.contains("dogsled_ready 0")).body);
    assert_eq!(metrics.sum("dogsled_members", &[]), 3.0);
    let status = get_until(http, "/status", |answer| answer.body.matches("\"answers\":false").count() == 2);
    assert!(status.body.contains("\"error\":"), "{status:?}");
    third.signal(Signal::KILL);
}

#[test]
fn the_dashboard_shows_what_a_node_tells() {
    let sandbox = Sandbox::new();
    let (mut served, told) = start(&sandbox, "log", &["--listen", "127.0.0.1:0"]);
    served.says("\"serving\"");
    let metrics = Metrics::parse(&get(text(&told["http"]), "/metrics").body);
    let dashboard =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/examples/cluster/grafana.json"));
    let dashboard: Value = serde_json::from_str(&dashboard.expect("the dashboard")).expect("JSON");
    let mut shown = Vec::new();
    let mut waiting = vec![&dashboard];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Object(fields) => {
                for name in ["expr", "query", "definition"] {
                    if let Some(Value::String(expression)) = fields.get(name) {
                        shown.push(expression.clone());
                    }
                }
                waiting.extend(fields.values());
            }
            Value::Array(values) => waiting.extend(values),
            _ => {}
        }
    }
    let mut names = std::collections::BTreeSet::new();
    for expression in &shown {
        let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        for word in words.filter(|word| word.starts_with("dogsled_") || word.starts_with("process_")) {
            let family = metrics.family(word);
            names.insert(family.unwrap_or_else(|| panic!("a node tells nothing of {word}, in {expression}")));
        }
    }
    assert!(names.len() >= 20, "the dashboard shows {names:?} only");
    assert_eq!(served.terminate(), 0);
}
