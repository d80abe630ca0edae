//! Real processes: two of three nodes are lost for ever, and the third goes on.

use std::time::{Duration, Instant};

use crate::cli_support::nodes::{Served, free_address};
use crate::cli_support::{Run, Sandbox};
use serde_json::Value;

struct Cluster {
    sandbox: Sandbox,
    addresses: Vec<String>,
}

impl Cluster {
    fn command(&self, node: usize, more: &[&str]) -> Vec<String> {
        let (id, data) = (node.to_string(), format!("data-{node}"));
        let fixed = [
            "--certs",
            "certs",
            "--node",
            &id,
            "--listen",
            &self.addresses[node - 1],
            "--data",
            &data,
            "--cache",
            "16",
        ];
        fixed.iter().chain(more).map(|argument| (*argument).to_owned()).collect()
    }

    /// Waits until it listens, not until it serves.
    fn start(&self, node: usize, more: &[&str]) -> Served {
        let arguments = self.command(node, more);
        self.sandbox.serve(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn run(&self, by: usize, arguments: &[&str]) -> Run {
        let mut all = vec!["--certs", "certs", "--connect", &self.addresses[by - 1]];
        all.extend(arguments);
        self.sandbox.run_bare(&all)
    }

    /// Until it works: whoever was killed may have been heard a moment ago.
    fn eventually(&self, by: usize, arguments: &[&str]) -> String {
        let began = Instant::now();
        loop {
            let run = self.run(by, arguments);
            if run.code == 0 {
                return run.ok();
            }
            assert!(began.elapsed() < Duration::from_secs(60), "{run:?}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

#[test]
fn the_third_node_goes_on_when_two_are_lost_for_ever() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2, 3, 4, 5]);
    let addresses: Vec<String> = (0..5).map(|_| free_address()).collect();
    let cluster = Cluster { sandbox, addresses };
    let members: Vec<String> =
        (1..=3).map(|node| format!("{node}={}", cluster.addresses[node - 1])).collect();
    let members = members.join(",");
    let mut one = cluster.start(1, &["--partitions", "4", "--init", "--members", &members]);
    let mut two = cluster.start(2, &["--members", &members]);
    let mut three = cluster.start(3, &["--members", &members]);
    for node in [&mut one, &mut two, &mut three] {
        node.says("\"serving\"");
    }
    for number in 0..20 {
        cluster.run(1, &["put", &format!("key-{number}"), "kept"]).ok();
    }
    // What node 1 answers for certain it has.
    for number in 0..20 {
        assert_eq!(cluster.run(1, &["get", &format!("key-{number}")]).ok(), "kept\n");
    }
    cluster.run(1, &["recover", "2", "--accept-data-loss"]).fails_saying(2, &["node 2 answers"]);
    cluster.run(1, &["recover", "--accept-data-loss"]).fails_saying(2, &["which members"]);

    // Whoever reads chooses who answers.
    assert_eq!(cluster.run(2, &["count", "--read-from", "any"]).ok(), "20\n");
    assert_eq!(cluster.run(3, &["count", "--prefix", "key-1", "--max-age", "0"]).ok(), "11\n");
    let scanned = cluster.run(2, &["scan", "-n", "1", "--read-from", "nearest", "--zone", "here"]).ok();
    assert_eq!(scanned, "key-0\tkept\n");
    let directory = cluster.sandbox.run_bare(&["--dir", "somewhere", "get", "key-0", "--read-from", "any"]);
    directory.fails_saying(2, &["--connect"]);

    two.kill_nine();
    three.kill_nine();
    std::fs::rename(cluster.sandbox.path("data-3"), cluster.sandbox.path("kept-3")).expect("it is there");
    std::fs::remove_dir_all(cluster.sandbox.path("data-2")).expect("it is there");

    // Without a quorum nothing is written, and as soon as node 1 has noticed, the error says why.
    let began = Instant::now();
    loop {
        let refused = cluster.run(1, &["--timeout", "3", "put", "key-0", "lost?"]);
        assert!(refused.code == 9 || refused.code == 10, "{refused:?}");
        if refused.stderr.contains("quorum") || refused.stderr.contains("most of its replicas are down") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{refused:?}");
    }
    assert_eq!(cluster.run(1, &["get", "key-0", "--read-from", "stale"]).ok(), "kept\n");
    cluster.run(1, &["recover", "2", "--accept-data-loss"]).fails_saying(2, &["node 3 does not answer"]);
    let planned = cluster.run(1, &["recover"]);
    assert_eq!(planned.code, 8, "{planned:?}");
    assert!(planned.stdout.contains("the meta group: node 1 goes on with"), "{planned:?}");
    assert!(planned.stdout.contains("partition 4: node 1 goes on with"), "{planned:?}");
    assert!(
        planned.stderr.contains("nothing was done") && planned.stderr.contains("recover 2 3"),
        "{planned:?}"
    );

    let done = cluster.eventually(1, &["recover", "2", "3", "--accept-data-loss"]);
    assert!(done.contains("done: node 2, 3 is given up for ever"), "{done}");
    for number in 0..20 {
        assert_eq!(
            cluster.run(1, &["get", &format!("key-{number}")]).ok(),
            "kept\n",
            "acknowledged, and survived"
        );
    }
    cluster.run(1, &["put", "alone", "yes"]).ok();

    // A lost member comes back with what it had, another with nothing: neither is taken in.
    std::fs::rename(cluster.sandbox.path("kept-3"), cluster.sandbox.path("data-3")).expect("it is there");
    let three = cluster.start(3, &["--members", &members]);
    let mut two = cluster.start(2, &["--join", &cluster.addresses[0]]);
    assert_ne!(two.exit_code(), 0, "an id that was given up is not taken in again");
    let began = Instant::now();
    loop {
        let refused = cluster.run(3, &["--timeout", "2", "get", "key-0"]);
        // Its client may have gone to node 1, of which node 3 has told it.
        if refused.code == 0 {
            assert_eq!(refused.stdout, "kept\n");
        }
        let log = std::fs::read_to_string(cluster.sandbox.path("log")).expect("a log");
        if log.contains("was taken out of the cluster, and serves nobody") {
            break;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{log}");
        std::thread::sleep(Duration::from_millis(200));
    }

    // New members join, and then it stands the loss of one again.
    let joined: Vec<Served> = [4, 5]
        .into_iter()
        .map(|node| {
            let mut served = cluster.start(node, &["--join", &cluster.addresses[0]]);
            served.says("\"serving\"");
            served
        })
        .collect();
    let status: Value = serde_json::from_str(&cluster.run(4, &["--json", "status"]).ok()).expect("JSON");
    assert_eq!(status["ring"]["removed"], serde_json::json!([2, 3]), "{status:#}");
    one.kill_nine();
    cluster.eventually(4, &["put", "without 1", "yes"]);
    for number in 0..20 {
        assert_eq!(cluster.eventually(5, &["get", &format!("key-{number}")]), "kept\n");
    }
    assert_eq!(cluster.eventually(5, &["get", "alone"]), "yes\n");
    drop((three, joined));
}
