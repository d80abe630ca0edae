//! `dogsled txn`, against a directory and against a node.

use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Sandbox, run_with_input};

const LINES: &str = r#"
{"op":"check","key":"a","is":null}
{"op":"put","key":"a","value":"1"}
{"op":"put","tree":"other","key":{"hex":"00ff"},"value":"2"}
{"op":"get","key":"a"}
{"op":"get","key":"nothing"}
{"op":"add","counter":"visits","by":3}
"#;

/// Runs the same against whatever `command` makes.
fn everything(command: &dyn Fn(&[&str]) -> std::process::Command) {
    let txn = |input: &str| run_with_input(command(&["txn", "-", "--json"]), input.as_bytes());
    assert_eq!(txn(LINES).ok(), "{\"operations\":6,\"results\":[\"1\",null,3]}\n");
    assert_eq!(run_with_input(command(&["get", "a"]), b"").ok(), "1\n");
    assert_eq!(run_with_input(command(&["-t", "other", "get", r"\x00\xff"]), b"").ok(), "2\n");
    let failing = |input: &str| run_with_input(command(&["txn"]), input.as_bytes());
    failing(LINES).fails_saying(8, &["line 2", "nothing was done"]);
    assert_eq!(run_with_input(command(&["counter", "get", "visits"]), b"").ok(), "3\n");
    failing("{\"op\":\"put\",\"key\":\"a\"}").fails_saying(6, &["line 1", "value"]);
    let expiring = concat!(
        r#"{"op":"put","key":"short","value":"1","ttl":100}"#,
        "\n",
        r#"{"op":"expire","key":"a","ttl":200}"#,
        "\n",
        r#"{"op":"expire","key":"nothing","ttl":200}"#,
        "\n",
        r#"{"op":"put","key":"stays","value":"1","ttl":100}"#,
        "\n",
        r#"{"op":"persist","key":"stays"}"#,
    );
    assert_eq!(txn(expiring).ok(), "{\"operations\":5,\"results\":[true,false]}\n");
    let ttl = |key: &str| run_with_input(command(&["ttl", key]), b"").ok().trim().to_owned();
    let within = |key: &str, seconds: std::ops::RangeInclusive<u64>| {
        let left = ttl(key);
        assert!(left.parse().is_ok_and(|left| seconds.contains(&left)), "{key} has {left} to live");
    };
    within("short", 1..=100);
    within("a", 101..=200);
    assert_eq!(ttl("stays"), "forever");
    failing("{\"op\":\"expire\",\"key\":\"a\",\"ttl\":0}").fails_saying(6, &["line 1", "nonzero"]);
    txn("{\"op\":\"remove\",\"key\":\"a\"}\n").ok();
    run_with_input(command(&["get", "a"]), b"").fails(1);
}

#[test]
fn operations_in_a_directory_are_one_transaction() {
    let sandbox = Sandbox::new();
    everything(&|arguments| sandbox.command(arguments));
}

#[test]
fn operations_on_a_cluster_are_one_transaction() {
    let sandbox = Sandbox::new();
    let address = free_address();
    let mut command = sandbox.bare(&["serve"]);
    command.env("DOGSLED_LISTEN", &address);
    let mut served = Served::start(command, &sandbox.path("log"));
    served.says("serving; try");
    everything(&|arguments| {
        let mut command = sandbox.bare(&["--connect", &address]);
        command.args(arguments);
        command
    });
}
