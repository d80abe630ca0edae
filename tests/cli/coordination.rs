//! `dogsled counter`, `lock`, `election`, `cas` and `put --next`, each step in a process of its own; what is the same on
//! a directory and on a cluster is tried on both.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::cli_support::alone::Alone;
use crate::cli_support::{Run, Sandbox, run};

/// Runs commands on something.
struct On<'a>(&'a dyn Fn(&[&str]) -> Command);

impl On<'_> {
    fn run(&self, arguments: &[&str]) -> Run {
        run((self.0)(arguments))
    }

    #[track_caller]
    fn ok(&self, arguments: &[&str]) -> String {
        self.run(arguments).ok().trim_end().to_owned()
    }
}

/// Each of a directory and of a cluster.
fn on_both(test: impl Fn(&On<'_>)) {
    let sandbox = Sandbox::new();
    test(&On(&|arguments| sandbox.command(arguments)));
    let alone = Alone::new();
    test(&On(&|arguments| alone.command(arguments)));
}

#[test]
fn a_counter_is_set_and_set_if_it_is_what_is_expected() {
    on_both(|on| {
        assert_eq!(on.ok(&["counter", "set", "stock", "40"]), "0");
        assert_eq!(on.ok(&["counter", "set", "stock", "-7"]), "40");
        assert_eq!(on.ok(&["counter", "set-if", "stock", "-7", "12"]), "");
        on.run(&["counter", "set-if", "stock", "-7", "13"]).fails_saying(8, &["stands at 12, not at -7"]);
        let refused = on.run(&["--json", "counter", "set-if", "stock", "-7", "13"]);
        let told: serde_json::Value = serde_json::from_str(&refused.stderr).expect("JSON");
        assert_eq!((refused.code, &told["value"]), (8, &12.into()));
        assert_eq!(
            on.ok(&["counter", "set-if", "untouched", "0", "1", "--json"]),
            r#"{"counter":"untouched","value":1}"#
        );
        assert_eq!(
            on.ok(&["counter", "set", "stock", "1", "--json"]),
            r#"{"counter":"stock","previous":12,"value":1}"#
        );
        assert_eq!(on.ok(&["counter", "get", "stock"]), "1");

        let token = on.ok(&["lock", "acquire", "shop", "--owner", "ann"]);
        let under = ["--under", "shop", "--token", &token];
        let with = |first: &[&'static str]| on.run(&[first, &under].concat());
        assert_eq!(with(&["counter", "set", "stock", "5"]).ok(), "1\n");
        assert_eq!(with(&["counter", "set-if", "stock", "5", "6"]).ok(), "");
        with(&["counter", "set-if", "stock", "5", "7"]).fails_saying(8, &["stands at 6"]);
        on.ok(&["lock", "release", "shop", "--owner", "ann", "--token", &token]);
        for late in [&["counter", "set", "stock", "9"][..], &["counter", "set-if", "stock", "6", "9"]] {
            with(late).fails_saying(8, &["is not held"]);
        }
        assert_eq!(on.ok(&["counter", "get", "stock"]), "6");
    });
}

#[test]
fn a_key_is_swapped_if_it_is_what_is_expected() {
    on_both(|on| {
        on.ok(&["cas", "k", "--new", "1"]);
        on.run(&["cas", "k", "--new", "2"]).fails_saying(8, &["the value is \"1\"", "nothing was done"]);
        on.ok(&["cas", "k", "--old", "1", "--new", "2"]);
        let refused = on.run(&["cas", "k", "--old", "1", "--new", "3", "--json"]);
        let told: serde_json::Value = serde_json::from_str(&refused.stderr).expect("JSON");
        assert_eq!((refused.code, &told["current"]), (8, &"2".into()));
        assert_eq!(
            on.ok(&["cas", "k", "--old", "2", "--new", "3", "--json"]),
            r#"{"key":"k","swapped":true}"#
        );
        on.run(&["cas", "k", "--old", "2"]).fails(8);
        on.ok(&["cas", "k", "--old", "3"]);
        on.run(&["get", "k"]).fails(1);
        on.run(&["cas", "k", "--old", "3"]).fails_saying(8, &["there is no value"]);
        on.run(&["cas", "k"]).fails(2);
        on.ok(&["-t", "other", "-f", "hex", "cas", "k", "--new", "00ff"]);
        assert_eq!(on.ok(&["-t", "other", "-f", "hex", "get", "k"]), "00ff");

        let token = on.ok(&["lock", "acquire", "keys", "--owner", "ann"]);
        let under = ["--under", "keys", "--token", &token];
        let with = |first: &[&'static str]| on.run(&[first, &under].concat());
        with(&["cas", "k", "--new", "1"]).ok();
        with(&["cas", "k", "--new", "2"]).fails_saying(8, &["the value is \"1\""]);
        with(&["cas", "k", "--old", "1", "--new", "2"]).ok();
        on.ok(&["lock", "release", "keys", "--owner", "ann", "--token", &token]);
        with(&["cas", "k", "--old", "2"]).fails_saying(8, &["is not held"]);
        assert_eq!(on.ok(&["get", "k"]), "2");
    });
}

#[test]
fn the_next_number_is_put_behind_a_prefix() {
    on_both(|on| {
        let first = on.ok(&["put", "--next", "{job}/", "a"]);
        let second = on.ok(&["put", "{job}/", "b", "--next"]);
        assert!(first.starts_with("{job}/") && first < second, "{first} and {second}");
        on.ok(&["del", &second]);
        // A number is given once.
        let third = on.ok(&["put", "--next", "{job}/", "c", "--json"]);
        let third: serde_json::Value = serde_json::from_str(&third).expect("JSON");
        let third = third["key"].as_str().expect("text").to_owned();
        assert!(second < third, "{second} and {third}");
        assert_eq!(on.ok(&["scan"]), format!("{first}\ta\n{third}\tc"));
        on.run(&["put", "--next", "{job}/", "c", "--ttl", "5"]).fails(2);
    });
    // With a session they die with it.
    let alone = Alone::new();
    let id = alone.run(&["session", "open"]).ok();
    let key = alone.run(&["put", "--next", "{worker}/", "idle", "--session", id.trim()]).ok();
    assert_eq!(alone.run(&["get", key.trim()]).ok(), "idle\n");
    alone.run(&["session", "close", id.trim()]).ok();
    alone.run(&["get", key.trim()]).fails(1);
}

#[test]
fn a_lock_is_renewed_by_its_token_and_can_be_waited_for() {
    on_both(|on| {
        let token = on.ok(&["lock", "acquire", "job", "--owner", "ann", "--lease", "8"]);
        let renew = |owner: &str, token: &str, lease: &str| {
            on.run(&["lock", "renew", "job", "--owner", owner, "--token", token, "--lease", lease])
        };
        renew("ann", &token, "1000").ok();
        let holder = on.ok(&["lock", "holder", "job"]);
        let left =
            holder.strip_suffix(" s more").and_then(|left| left.rsplit(' ').next()?.parse::<u64>().ok());
        assert!(left.is_some_and(|left| left > 900), "{holder}");
        renew("bo", &token, "1").fails_saying(8, &["is not held by \"bo\"", "\"ann\""]);
        renew("ann", "999999", "1").fails_saying(8, &["with token 999999", &token]);

        // Until the lease ends, but not longer than is waited.
        on.run(&["lock", "acquire", "job", "--owner", "bo", "--wait", "1"])
            .fails_saying(8, &["held by \"ann\""]);
        renew("ann", &token, "2").ok();
        let began = Instant::now();
        let second = on.ok(&["lock", "acquire", "job", "--owner", "bo", "--wait", "60"]);
        assert!(began.elapsed() < Duration::from_secs(50), "{:?}", began.elapsed());
        assert!(second.parse::<u64>().expect("a number") > token.parse().expect("a number"));
        renew("ann", &token, "60").fails_saying(8, &["is not held by \"ann\"", "\"bo\""]);
        on.ok(&["lock", "release", "job", "--owner", "bo", "--token", &second]);
        renew("bo", &second, "60").fails(8);
    });
}

#[test]
fn who_has_the_token_of_a_leader_speaks_for_it() {
    on_both(|on| {
        on.ok(&["put", "the database", "is there"]);
        on.run(&["election", "leader", "cron"]).fails_saying(1, &["nobody leads"]);
        // The election's lock is that of its name.
        let token = on.ok(&["lock", "acquire", "cron", "--owner", "ann"]);
        on.run(&["election", "leader", "cron"]).fails(1);
        on.ok(&["election", "proclaim", "cron", "here", "--token", &token]);
        assert_eq!(on.ok(&["election", "leader", "cron"]), format!("here\ttoken {token}"));
        let mut exported = (on.0)(&["election", "proclaim", "cron", "here, busy", "--json"]);
        exported.env("DOGSLED_LOCK", "cron").env("DOGSLED_LOCK_TOKEN", &token);
        assert_eq!(
            run(exported).ok(),
            format!("{{\"election\":\"cron\",\"leader\":\"here, busy\",\"token\":{token}}}\n")
        );
        on.run(&["election", "proclaim", "cron", "mine"]).fails_saying(2, &["which token"]);
        on.run(&["election", "proclaim", "cron", "mine", "--token", "999999"])
            .fails_saying(8, &["is not held"]);
        on.run(&["election", "resign", "cron", "--token", "999999"]).fails_saying(8, &["999999"]);
        assert_eq!(on.ok(&["election", "leader", "cron"]), format!("here, busy\ttoken {token}"));
        on.ok(&["election", "resign", "cron", "--token", &token]);
        on.run(&["election", "leader", "cron"]).fails(1);
        on.run(&["lock", "holder", "cron"]).fails(1);
        on.run(&["election", "resign", "cron", "--token", &token]).fails(8);
        on.run(&["election", "proclaim", "cron", "late", "--token", &token])
            .fails_saying(8, &["is not held"]);
    });
    // The command that runs while it leads, and the runner that is told of what it does.
    let alone = Alone::new();
    let binary = env!("CARGO_BIN_EXE_dogsled");
    let dogsled = format!("{binary} --connect {}", alone.address);
    let script = format!("{dogsled} election proclaim cron 'ann, busy' && {dogsled} election leader cron");
    let campaign = ["election", "campaign", "cron", "ann", "--", "sh", "-c", &script];
    let said = alone.run(&campaign).ok();
    assert!(said.starts_with("ann, busy\ttoken "), "{said}");
}

#[test]
fn stats_of_a_cluster_are_found_elsewhere() {
    let alone = Alone::new();
    alone.run(&["stats"]).fails_saying(2, &["dogsled status", "/metrics"]);
}

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
    let left: u64 = sandbox.run(&["ttl", "page"]).ok().trim_end().parse().expect("a number");
    assert!((95..=100).contains(&left), "{left} s");
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
