//! Three processes of `dogsled serve` under constant load, to which one after another something happens:
//! it is killed with `SIGKILL` and started again, paused by `SIGSTOP` until others lead in its place, or
//! killed and left without a disk, so that a new member takes its place. All the while no call fails and
//! no reader sees a counter go back; afterwards what was acknowledged is there, what was counted was
//! counted once, and all replicas hold the same.
//!
//! `DOGSLED_SEED=n` gives the order of the nodes and the times again. The soak, in which nodes die at random under
//! mixed traffic of dogsled's own clients and of Redis clients, lasts `DOGSLED_SOAK_SECONDS`; 12 if nobody says.
#![cfg(feature = "cli")]

mod cli_support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use cli_support::Sandbox;
use cli_support::load::{Load, eventually, is_whole, replicas_agree};
use cli_support::mixed::Mixed;
use cli_support::nodes::{Served, free_address};
use cli_support::redis_traffic::RedisTraffic;
use dogsled::cluster::{CertificateFiles, Client, ClientOptions};
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::time::sleep;

const WRITERS: usize = 8;
/// A call has twice as long as a client gives it by default, as the machine may stand still for some seconds, and what
/// a busy one takes to notice that this is over.
const DEADLINE: Duration = Duration::from_secs(20);
const LATE: Duration = Duration::from_millis(500);

/// One cluster at a time: what a call may take is of a machine that does nothing else.
static ONE: Mutex<()> = Mutex::new(());

/// Small and good enough for orders and times.
struct Random(u64);

impl Random {
    fn new(test: &str) -> Random {
        let given = std::env::var("DOGSLED_SEED").ok().and_then(|text| text.parse().ok());
        let seed = given.unwrap_or_else(|| u64::from(std::process::id()));
        println!("again: DOGSLED_SEED={seed} cargo test --workspace --test cli_nodes_killed {test}");
        Random(seed)
    }

    /// Less than `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn shuffled<T>(&mut self, mut items: Vec<T>) -> Vec<T> {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last as u64 + 1) as usize);
        }
        items
    }
}

struct Cluster {
    sandbox: Sandbox,
    /// Of every member; each is in the zone of its address.
    addresses: BTreeMap<u64, String>,
    nodes: BTreeMap<u64, Served>,
    /// The first three, as each of them is told.
    members: String,
    /// Where these serve Redis clients.
    redis: Vec<String>,
}

impl Cluster {
    fn start() -> Cluster {
        let sandbox = Sandbox::new();
        sandbox.certificates(&[1, 2, 3]);
        let addresses: BTreeMap<u64, String> = (1..=3).map(|node| (node, free_address())).collect();
        let members: Vec<String> =
            addresses.iter().map(|(node, address)| format!("{node}={address}")).collect();
        let redis: Vec<String> = (0..3).map(|_| free_address()).collect();
        let members = members.join(",");
        let mut cluster = Cluster { sandbox, addresses, nodes: BTreeMap::new(), members, redis };
        for node in [2, 3, 1] {
            let served = cluster.launch(node, if node == 1 { &["--init"] } else { &[] });
            cluster.nodes.insert(node, served);
        }
        for served in cluster.nodes.values_mut() {
            served.says("\"serving\"");
        }
        cluster
    }

    /// Starts one of the first three.
    fn launch(&self, node: u64, more: &[&str]) -> Served {
        let data = format!("data-{node}");
        let redis = &self.redis[node as usize - 1];
        let mut arguments = vec!["--members", &self.members, "--redis", redis];
        arguments.extend(more);
        let arguments = self.arguments(node, &data, &self.addresses[&node], &arguments);
        self.sandbox.serve(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }

    fn arguments(&self, node: u64, data: &str, address: &str, more: &[&str]) -> Vec<String> {
        let id = node.to_string();
        let fixed = ["--certs", "certs", "--node", &id, "--data", data, "--listen", address];
        let same = ["--zone", address, "--cache", "16"];
        fixed.iter().chain(&same).chain(more).map(|argument| (*argument).to_owned()).collect()
    }

    /// Runs a command against the cluster.
    fn run(&self, arguments: &[&str]) -> cli_support::Run {
        let connect = self.addresses.values().cloned().collect::<Vec<_>>().join(",");
        let mut all = vec!["--connect", &connect, "--certs", "certs"];
        all.extend(arguments);
        self.sandbox.run_bare(&all)
    }

    async fn client(&self, zone: &str) -> Client {
        let files = CertificateFiles::of_client(&self.sandbox.path("certs"), "admin");
        let options = ClientOptions::from_files(&files).expect("certificates of a client");
        let options = ClientOptions { deadline: DEADLINE, zone: zone.to_owned(), ..options };
        Client::connect(self.addresses.values().cloned(), options).await.expect("a client")
    }

    /// Lets `happen` do something to one node after another while clients write, and looks at what has
    /// become of it.
    fn under_load(mut self, nodes: Vec<u64>, mut happen: impl AsyncFnMut(&mut Cluster, &Load, u64)) {
        let runtime = tokio::runtime::Runtime::new().expect("threads");
        runtime.block_on(async {
            let client = self.client("").await;
            let mut load = Load::start(&client, "load", WRITERS);
            for zone in self.addresses.values() {
                load.read_near(self.client(zone).await);
            }
            for node in nodes {
                eventually("all three are level", || is_whole(&client, 100)).await;
                load.goes_on(100).await;
                happen(&mut self, &load, node).await;
                load.goes_on(100).await;
            }
            eventually("all three are level", || is_whole(&client, 100)).await;
            let told = load.stop().await;
            println!("{} keys were written; the slowest call took {:?}", told.keys.len(), told.slowest());
            told.check_that_no_call_failed(DEADLINE + LATE);
            assert!(told.keys.len() > 500, "only {} keys were written", told.keys.len());
            eventually("all three have all", || is_whole(&client, 0)).await;
            client.close().await;

            // Clients of their own: they remember nothing.
            let mut readers = Vec::new();
            for zone in self.addresses.values() {
                readers.push(self.client(zone).await);
            }
            told.check(&readers[0]).await;
            replicas_agree(&readers).await;
            for reader in readers {
                reader.close().await;
            }
        });
        for (node, served) in self.nodes {
            assert_eq!(served.terminate(), 0, "node {node}");
        }
    }
}

#[test]
fn killing_one_node_after_another_loses_nothing_and_fails_no_call() {
    let _one = ONE.lock();
    let mut random = Random::new("killing_one_node");
    let order = random.shuffled(vec![1, 2, 3]);
    Cluster::start().under_load(order, async |cluster, load, node| {
        cluster.nodes.remove(&node).expect("it runs").kill_nine();
        load.goes_on(100 + random.below(200)).await;
        cluster.nodes.insert(node, cluster.launch(node, &[]));
    });
}

#[test]
fn pausing_one_node_after_another_loses_nothing_and_fails_no_call() {
    let _one = ONE.lock();
    let mut random = Random::new("pausing_one_node");
    let order = random.shuffled(vec![1, 2, 3]);
    // Longer than an election; than clients wait for a silent node (3 s); than nodes do (6 s).
    let mut pauses = random.shuffled(vec![1_500, 4_000, 7_000]);
    Cluster::start().under_load(order, async |cluster, load, node| {
        let pause = pauses.pop().expect("one for each") + random.below(1_000);
        println!("node {node} is paused for {pause} ms");
        cluster.nodes[&node].signal(Signal::STOP);
        sleep(Duration::from_millis(pause)).await;
        // The others lead what it has led, and writers have gone on meanwhile.
        load.goes_on(1).await;
        cluster.nodes[&node].signal(Signal::CONT);
    });
}

/// Writes 200 MiB in large values; the most memory that one of the nodes had of its own meanwhile.
async fn write_much(client: &Client, round: u32, nodes: &[&Served]) -> u64 {
    let value = vec![b'x'; 256 << 10];
    let writers = (0..8).map(|writer| {
        let (tree, value) = (client.tree("load"), value.clone());
        tokio::spawn(async move {
            for number in 0..100 {
                let key = format!("much/{round}/{writer}/{number}");
                tree.insert(key, &value[..]).await.expect("it is written");
            }
        })
    });
    let writers: Vec<_> = writers.collect();
    let mut most = 0;
    while !writers.iter().all(|writer| writer.is_finished()) {
        most = nodes.iter().map(|node| node.memory()).fold(most, u64::max);
        sleep(Duration::from_millis(20)).await;
    }
    for writer in writers {
        writer.await.expect("it does not panic");
    }
    most
}

/// What leaders keep in memory for a node that stands still is no more than some MiB for each partition: the
/// rest waits in the log. By what they had before: caches fill, and checkpoints take memory, with every node there, too.
#[test]
#[cfg(target_os = "linux")]
fn a_node_that_stands_still_costs_the_others_little_memory_and_catches_up() {
    const MUCH: u64 = 96 << 20;
    let _one = ONE.lock();
    let cluster = Cluster::start();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let client = cluster.client("").await;
        eventually("all three are level", || is_whole(&client, 0)).await;
        let nodes: Vec<&Served> = cluster.nodes.values().collect();
        let mut usual = 0;
        for round in [0, 1] {
            usual = usual.max(write_much(&client, round, &nodes).await);
        }
        nodes[1].signal(Signal::STOP);
        let most = write_much(&client, 2, &[nodes[0], nodes[2]]).await;
        println!("{} MiB with all nodes, {} MiB while one stood still", usual >> 20, most >> 20);
        nodes[1].signal(Signal::CONT);
        assert!(most < usual + MUCH, "{most} bytes, and {usual} before");
        eventually("it has caught up", || is_whole(&client, 0)).await;
        client.close().await;
        let mut readers = Vec::new();
        for zone in cluster.addresses.values() {
            readers.push(cluster.client(zone).await);
        }
        replicas_agree(&readers).await;
    });
    for (node, served) in cluster.nodes {
        assert_eq!(served.terminate(), 0, "node {node}");
    }
}

#[test]
fn replacing_one_node_after_another_that_lost_its_disk_loses_nothing_and_fails_no_call() {
    let _one = ONE.lock();
    let mut random = Random::new("replacing_one_node");
    let order = random.shuffled(vec![1, 2, 3]);
    Cluster::start().under_load(order, async |cluster, load, node| {
        cluster.nodes.remove(&node).expect("it runs").kill_nine();
        let data = format!("data-{node}");
        std::fs::remove_dir_all(cluster.sandbox.path(&data)).expect("it is there");
        load.goes_on(100 + random.below(200)).await;

        // It does not come back as who it was, whom it cannot speak for any more.
        let address = cluster.addresses[&node].clone();
        let seeds: Vec<&str> = cluster
            .addresses
            .iter()
            .filter(|(id, _)| **id != node)
            .map(|(_, address)| &address[..])
            .collect();
        let join = ["--join", &seeds.join(",")];
        let as_before = cluster.arguments(node, &data, &address, &join);
        let mut as_before = cluster.sandbox.serve(&as_before.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(as_before.exit_code(), 8);
        std::fs::remove_dir_all(cluster.sandbox.path(&data)).expect("it is there");

        let new = node + 3;
        cluster.sandbox.run_bare(&["certs", "node", &new.to_string()]).ok();
        let arguments = cluster.arguments(new, &data, &address, &join);
        let served = cluster.sandbox.serving(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
        cluster.addresses.remove(&node);
        cluster.addresses.insert(new, address);
        cluster.nodes.insert(new, served);
        let removed = cluster.run(&["member", "remove", &node.to_string()]).ok();
        assert!(removed.contains("no member any more"), "{removed}");
    });
}

#[test]
fn mixed_traffic_goes_on_and_stays_right_while_nodes_die_at_random() {
    let _one = ONE.lock();
    let mut random = Random::new("mixed_traffic");
    let given = std::env::var("DOGSLED_SOAK_SECONDS").ok();
    let seconds = given.map_or(12, |text| text.parse().expect("a number of seconds"));
    let mut cluster = Cluster::start();
    let runtime = tokio::runtime::Runtime::new().expect("threads");
    runtime.block_on(async {
        let client = cluster.client("").await;
        eventually("all three are level", || is_whole(&client, 100)).await;
        let watchers = [cluster.client("").await, cluster.client("").await];
        let mixed = Mixed::start(&client, watchers, Duration::ZERO).await;
        let redis = RedisTraffic::start(&cluster.redis).await;
        let (until, mut rounds) = (Instant::now() + Duration::from_secs(seconds), 0);
        while rounds == 0 || Instant::now() < until {
            let node = 1 + random.below(3);
            if random.below(3) == 0 {
                cluster.nodes[&node].signal(Signal::STOP);
                sleep(Duration::from_millis(500 + random.below(4_000))).await;
                cluster.nodes[&node].signal(Signal::CONT);
            } else {
                cluster.nodes.remove(&node).expect("it runs").kill_nine();
                sleep(Duration::from_millis(random.below(2_000))).await;
                cluster.nodes.insert(node, cluster.launch(node, &[]));
            }
            rounds += 1;
            let before = (mixed.carried_out(), redis.carried_out());
            eventually("traffic goes on", async || {
                mixed.carried_out() > before.0 + 50 && redis.carried_out() > before.1 + 50
            })
            .await;
            eventually("all three are level", || is_whole(&client, 1_000)).await;
        }
        let (carried_out, refused, events) = mixed.stop().await;
        let by_redis = redis.stop().await;
        println!(
            "{rounds} times something happened; {carried_out} calls were carried out, {refused} refused, and {events} \
             events told; Redis clients had {by_redis} carried out"
        );
        assert!(carried_out > 200, "only {carried_out} calls were carried out");
        client.close().await;
    });
    for (node, served) in cluster.nodes {
        assert_eq!(served.terminate(), 0, "node {node}");
    }
}

#[test]
fn a_fourth_node_joins_and_the_first_leaves() {
    let _one = ONE.lock();
    let cluster = Cluster::start();
    let sandbox = &cluster.sandbox;
    let connect = cluster.addresses.values().cloned().collect::<Vec<_>>().join(",");
    let run = |arguments: &[&str]| cluster.run(arguments);
    run(&["put", "key", "value"]).ok();
    sandbox.run_bare(&["certs", "node", "4"]).ok();
    let fourth = free_address();
    let arguments =
        ["--certs", "certs", "--node", "4", "--data", "data-4", "--listen", &fourth, "--join", &connect];
    let joined = sandbox.serving(&arguments);
    assert_eq!(run(&["member", "list"]).ok().lines().count(), 4);
    assert_eq!(
        run(&["member", "remove", "1"]).ok(),
        "node 1 is no member any more; its id must never be used again\n"
    );
    let listed = run(&["member", "list"]).ok();
    assert!(listed.contains(&format!("4\t{fourth}\tactive")) && !listed.contains("1\t127"), "{listed}");
    let alone = ["--connect", &fourth, "--certs", "certs", "get", "key"];
    assert_eq!(sandbox.run_bare(&alone).ok(), "value\n");
    // With the same option it goes on as the member that it is.
    assert_eq!(joined.terminate(), 0);
    let joined = sandbox.serving(&arguments);
    assert_eq!(sandbox.run_bare(&alone).ok(), "value\n");
    assert_eq!(joined.terminate(), 0);
}
