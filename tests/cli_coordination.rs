//! `dogsled counter` and `dogsled lock`, each step in a process of its own.
#![cfg(feature = "cli")]

mod cli_support;

use cli_support::Sandbox;

#[test]
fn counters_count_within_bounds() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(&["counter", "add", "tickets"]).ok(), "1\n");
    assert_eq!(sandbox.run(&["counter", "add", "tickets", "9", "--max", "10"]).ok(), "10\n");
    sandbox.run(&["counter", "add", "tickets", "--max", "10"]).fails_saying(8, &["stands at 10"]);
    assert_eq!(sandbox.run(&["counter", "add", "tickets", "-10", "--min", "0"]).ok(), "0\n");
    sandbox.run(&["counter", "add", "tickets", "-1", "--min", "0"]).fails(8);
    sandbox.run(&["counter", "add", "tickets", "1", "--min", "5", "--max", "4"]).fails_saying(2, &["--min"]);
    assert_eq!(
        sandbox.run(&["counter", "add", "tickets", "-7", "--json"]).ok(),
        "{\"counter\":\"tickets\",\"value\":-7}\n"
    );
    assert_eq!(sandbox.run(&["counter", "get", "tickets"]).ok(), "-7\n");
    assert_eq!(sandbox.run(&["counter", "reset", "tickets"]).ok(), "-7\n");
    assert_eq!(sandbox.run(&["counter", "get", "tickets"]).ok(), "0\n");
}

#[test]
fn a_lock_outlives_its_process_until_it_is_released() {
    let sandbox = Sandbox::new();
    let token = sandbox.run(&["lock", "acquire", "deploy", "--owner", "ann"]).ok();
    let token = token.trim_end();
    let holder = sandbox.run(&["lock", "holder", "deploy"]).ok();
    assert!(holder.starts_with(&format!("ann\ttoken {token}\tfor ")), "{holder}");
    sandbox.run(&["lock", "acquire", "deploy", "--owner", "bo"]).fails_saying(8, &["held by \"ann\"", token]);
    sandbox.run(&["lock", "release", "deploy", "--owner", "bo", "--token", token]).fails(8);
    sandbox.run(&["lock", "release", "deploy", "--owner", "ann", "--token", "999999"]).fails(8);
    sandbox.run(&["lock", "holder", "deploy"]).ok();
    sandbox.run(&["lock", "release", "deploy", "--owner", "ann", "--token", token]).ok();
    sandbox.run(&["lock", "holder", "deploy"]).fails(1);
    let next = sandbox.run(&["lock", "acquire", "deploy", "--owner", "bo"]).ok();
    assert!(next.trim_end().parse::<u64>().expect("a number") > token.parse().expect("a number"));
}

#[test]
fn a_lease_ends_by_itself() {
    let sandbox = Sandbox::new();
    sandbox.run(&["lock", "acquire", "short", "--owner", "ann", "--lease", "1"]).ok();
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    sandbox.run(&["lock", "holder", "short"]).fails(1);
    sandbox.run(&["lock", "acquire", "short", "--owner", "bo"]).ok();
}

#[test]
fn keys_expire_and_can_be_kept() {
    let sandbox = Sandbox::new();
    assert_eq!(sandbox.run(&["put", "page", "x", "--ttl", "100"]).ok(), "");
    assert_eq!(sandbox.run(&["ttl", "page"]).ok(), "100\n");
    assert_eq!(sandbox.run(&["persist", "page"]).ok(), "");
    assert_eq!(sandbox.run(&["ttl", "page"]).ok(), "forever\n");
    sandbox.run(&["persist", "page"]).fails_saying(1, &["no time to live"]);
    assert_eq!(sandbox.run(&["expire", "page", "1"]).ok(), "");
    std::thread::sleep(std::time::Duration::from_millis(1_100));
    sandbox.run(&["get", "page"]).fails(1);
    sandbox.run(&["ttl", "page"]).fails(1);
    sandbox.run(&["expire", "page", "1"]).fails_saying(1, &["no key"]);
    sandbox.run(&["expire", "page", "0"]).fails(2);
}
