//! `dogsled tree`: what of a tree's keys is hashed.

use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Run, Sandbox};

#[test]
fn what_is_hashed_of_a_tree_is_chosen_listed_and_kept() {
    let (sandbox, address) = (Sandbox::new(), free_address());
    let mut command = sandbox.bare(&["serve"]);
    command.env("DOGSLED_LISTEN", &address);
    let mut served = Served::start(command, &sandbox.path("log"));
    served.says("serving");
    let run = |arguments: &[&str]| -> Run {
        let mut all = vec!["--connect", &address];
        all.extend(arguments);
        sandbox.run_bare(&all)
    };
    run(&["-t", "old", "put", "a/1", "x"]).ok();
    run(&["tree", "hash", "old", "--before", "/"]).fails_saying(8, &["\"old\" is there already"]);
    let done = run(&["tree", "hash", "chat", "--before", "/", "--nth", "2"]).ok();
    assert_eq!(done, "of the keys of chat what is before \"/\" number 2 is hashed\n");
    run(&["tree", "hash", "chat", "--before", "/", "--nth", "2"]).ok();
    run(&["tree", "hash", "chat", "--first", "4"]).fails_saying(8, &["chosen for ever"]);
    run(&["tree", "hash", "more"]).fails(2);
    run(&["tree", "hash", "more", "--before", "ab"]).fails_saying(2, &["one byte"]);
    run(&["tree", "hash", "more", "--first", "4", "--json"]).ok();
    for key in ["rooms/7/2", "rooms/7/1", "rooms/8/1"] {
        run(&["-t", "chat", "put", key, "hello"]).ok();
    }
    assert_eq!(run(&["-t", "chat", "scan", "--prefix", "rooms/7/"]).ok().lines().count(), 2);
    assert_eq!(run(&["-t", "chat", "count"]).ok(), "3\n");
    let listed = run(&["tree", "list"]).ok();
    for line in ["chat\twhat is before \"/\" number 2", "more\tthe first 4 bytes", "old\tthe whole key"] {
        assert!(listed.lines().any(|listed| listed == line), "{line}: {listed}");
    }
    let listed = run(&["tree", "list", "--json"]).ok();
    let wanted = serde_json::json!({ "tree": "more", "hashed": { "first": 4 }, "in_force": true });
    let is_wanted = |line: &str| serde_json::from_str::<serde_json::Value>(line).expect("JSON") == wanted;
    assert!(listed.lines().any(is_wanted), "{listed}");
    let trees = run(&["trees"]).ok();
    assert!(trees.contains("chat\t3\n") && !trees.contains("sealed"), "{trees}");
}

#[test]
fn a_quota_is_set_shown_kept_and_taken_away() {
    let sandbox = Sandbox::new();
    let of_directory = |arguments: &[&str]| sandbox.run(arguments);
    let address = free_address();
    let mut command = sandbox.bare(&["serve"]);
    command.env("DOGSLED_LISTEN", &address);
    let mut served = Served::start(command, &sandbox.path("log"));
    served.says("serving");
    let of_cluster = |arguments: &[&str]| sandbox.run_bare(&[&["--connect", &address], arguments].concat());
    for run in [&of_directory as &dyn Fn(&[&str]) -> Run, &of_cluster] {
        run(&["-t", "cache", "put", "{a}", "12345"]).ok();
        run(&["tree", "quota", "cache"]).fails(1);
        // Of a cluster each of the 16 partitions gets 5 keys.
        let done = run(&["tree", "quota", "cache", "--bytes", "1KiB", "--entries", "80"]).ok();
        assert!(done.starts_with("cache\t8 B of 1.0 KiB\t1 of 80 keys"), "{done}");
        let keys: Vec<String> = (0..80).map(|number| format!("{{a}}{number:02}")).collect();
        let refused = keys.iter().find_map(|key| {
            let put = run(&["-t", "cache", "put", key, ""]);
            (put.code != 0).then_some(put)
        });
        refused.expect("it is full").fails_saying(12, &["\"cache\" is full", "raise its quota"]);
        run(&["-t", "cache", "del", "{a}"]).ok();
        run(&["-t", "cache", "put", "{a}", ""]).ok();
        let listed: serde_json::Value =
            serde_json::from_str(&run(&["tree", "quota", "--json"]).ok()).expect("JSON");
        assert_eq!((&listed["tree"], &listed["limit_entries"]), (&"cache".into(), &80.into()));
        run(&["tree", "quota", "cache", "--none"]).ok();
        run(&["-t", "cache", "put", "{a}99", ""]).ok();
        assert_eq!(run(&["tree", "quota"]).ok(), "");
        run(&["tree", "quota", "--bytes", "1"]).fails(2);
        run(&["tree", "quota", "cache", "--bytes", "1MB"]).fails_saying(2, &["none of the units"]);
        run(&["tree", "quota", "__dogsled__locks", "--bytes", "1"]).fails(2);
    }
    of_cluster(&["tree", "quota", "cache", "--bytes", "1GiB"]).ok();
    let status = of_cluster(&["status"]).ok();
    assert!(status.contains("quota of cache\t"), "{status}");
    let status: serde_json::Value =
        serde_json::from_str(&of_cluster(&["status", "--json"]).ok()).expect("JSON");
    assert_eq!(status["quotas"][0]["limit_bytes"], 1 << 30);
}
