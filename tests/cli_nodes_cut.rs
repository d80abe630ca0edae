//! Three processes of `dogsled serve`, each in a network of its own, whose ways to each other are cut
//! while clients write: who has no quorum acknowledges nothing, who has one goes on soon, and after
//! mending all agree on everything that was acknowledged. Beside them there is traffic of other kinds (transactions,
//! writes under a lock, watchers: see [`cli_support::mixed`]), which must be right all the while.
//!
//! The networks are namespaces that the test makes with `ip`, and the host's is not touched:
//!
//! ```text
//!   node 1 ─┐
//!   node 2 ─┼─ hub (a bridge) ─ clients
//!   node 3 ─┘
//! ```
//!
//! Two kinds of cuts, both as silent as a cable that was pulled:
//!
//! - **A node from all**: its end of the bridge is set down.
//! - **One direction between two**: the sender is told a hardware address that nobody has. That loses
//!   what a rule of a packet filter would, and needs neither `iptables` nor what it needs of the
//!   kernel, so no kind of cut is ever skipped for the lack of it.
//!
//! Where namespaces cannot be made the tests say so on standard error, past the harness, and pass.
#![cfg(all(feature = "cli", target_os = "linux"))]

mod cli_support;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use cli_support::load::{Load, Told, eventually, is_whole};
use cli_support::mixed::Mixed;
use cli_support::nodes::Served;
use cli_support::{Sandbox, skipped};
use dogsled::cluster::{CertificateFiles, Client, ClientOptions, NodeId};
use parking_lot::{Mutex, MutexGuard};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::Runtime;

const NODES: [u64; 3] = [1, 2, 3];
const CLIENTS: u64 = 9;
/// Writes of those who have a quorum are acknowledged again within this.
const BOUND: Duration = Duration::from_secs(10);
/// Of one call.
const DEADLINE: Duration = Duration::from_secs(3);
/// Between two calls of a worker of the mixed traffic, which is to leave time for those that have a bound.
const PAUSE: Duration = Duration::from_millis(20);
/// A hardware address that nobody has.
const NOBODY: &str = "02:00:00:00:00:fe";

/// One cluster at a time: the bounds are of a machine that does nothing else.
static ONE: Mutex<()> = Mutex::new(());

fn address(host: u64) -> String {
    format!("10.99.7.{host}")
}

fn endpoint(node: u64) -> String {
    format!("{}:7400", address(node))
}

/// Runs `ip`; its complaint if it fails.
fn ip(arguments: &str) -> Result<(), String> {
    let output = Command::new("ip").args(arguments.split(' ')).output();
    let output = output.map_err(|error| format!("`ip` (package iproute2): {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("`ip {arguments}`: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// The namespaces, which are deleted in the end, and all links with them.
struct Network {
    prefix: String,
    made: Vec<String>,
}

impl Network {
    fn new() -> Result<Network, String> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("dogsled-{}-{number}", std::process::id());
        let mut network = Network { prefix, made: Vec::new() };
        let hub = network.namespace("hub")?;
        ip(&format!("-n {hub} link add bridge type bridge"))?;
        ip(&format!("-n {hub} link set bridge up"))?;
        for host in NODES.into_iter().chain([CLIENTS]) {
            let own = network.namespace(host)?;
            ip(&format!("-n {hub} link add to-{host} type veth peer name hub netns {own}"))?;
            ip(&format!("-n {hub} link set to-{host} master bridge up"))?;
            ip(&format!("-n {own} addr add {}/24 dev hub", address(host)))?;
            ip(&format!("-n {own} link set hub up"))?;
            ip(&format!("-n {own} link set lo up"))?;
        }
        Ok(network)
    }

    fn name(&self, of: impl std::fmt::Display) -> String {
        format!("{}-{of}", self.prefix)
    }

    fn namespace(&mut self, of: impl std::fmt::Display) -> Result<String, String> {
        let name = self.name(of);
        ip(&format!("netns add {name}"))?;
        self.made.push(name.clone());
        Ok(name)
    }

    /// Nothing gets to the node or from it.
    fn cut_off(&self, node: u64) {
        ip(&format!("-n {} link set to-{node} down", self.name("hub"))).expect("the link is there");
    }

    fn mend(&self, node: u64) {
        ip(&format!("-n {} link set to-{node} up", self.name("hub"))).expect("the link is there");
    }

    /// Nothing gets from one to the other.
    fn cut_way(&self, from: u64, to: u64) {
        let (name, to) = (self.name(from), address(to));
        ip(&format!("-n {name} neigh replace {to} lladdr {NOBODY} dev hub nud permanent"))
            .expect("the link is there");
    }

    fn mend_way(&self, from: u64, to: u64) {
        ip(&format!("-n {} neigh del {} dev hub", self.name(from), address(to))).expect("it was cut");
    }

    /// A runtime whose sockets are in a host's network.
    fn runtime(&self, host: u64) -> Runtime {
        // Threads begin in the namespace of the thread that makes them.
        let _entered = Entered::into(&self.name(host));
        Runtime::new().expect("threads")
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for name in &self.made {
            if let Err(why) = ip(&format!("netns del {name}")) {
                say(&format!("left behind: {why}"));
            }
        }
    }
}

/// This thread in another network, until it is dropped.
struct Entered(File);

impl Entered {
    fn into(name: &str) -> Entered {
        let before = File::open("/proc/thread-self/ns/net").expect("Linux");
        let entered = Entered(before);
        enter(&File::open(format!("/run/netns/{name}")).expect("the namespace is there"));
        entered
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        enter(&self.0);
    }
}

fn enter(namespace: &File) {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .expect("who makes namespaces may enter them");
}

/// Past the harness, which keeps what passing tests print to itself.
fn say(what: &str) {
    let _ = writeln!(std::io::stderr(), "cli_nodes_cut: {what}");
}

struct Cluster {
    /// Before the network: a namespace lives as long as a process in it.
    nodes: BTreeMap<u64, Served>,
    network: Network,
    sandbox: Sandbox,
    _one: MutexGuard<'static, ()>,
}

impl Cluster {
    /// `None`, loudly, where there is no network to be made.
    fn start(test: &str) -> Option<Cluster> {
        let one = ONE.lock();
        let network = match Network::new() {
            Ok(network) => network,
            Err(why) => {
                skipped(&format!(
                    "{test}: no network to cut. {why}. It needs iproute2, and root or CAP_SYS_ADMIN and \
                     CAP_NET_ADMIN, with network namespaces, veth and bridge in the kernel."
                ));
                return None;
            }
        };
        let sandbox = Sandbox::new();
        sandbox.certificates(&NODES);
        let members: Vec<String> = NODES.map(|node| format!("{node}={}", endpoint(node))).into();
        let members = members.join(",");
        let mut nodes = BTreeMap::new();
        for node in [2, 3, 1] {
            let mut command = Command::new("ip");
            command.args(["netns", "exec", &network.name(node)]).arg(env!("CARGO_BIN_EXE_dogsled"));
            command.current_dir(sandbox.path("")).args(["serve", "--json", "--certs", "certs"]);
            command.args(["--node", &node.to_string(), "--data", &format!("data-{node}")]);
            command.args(["--listen", &endpoint(node), "--members", &members]);
            command.args((node == 1).then_some("--init"));
            let mut served = Served::start(command, &sandbox.path(&format!("log-{node}")));
            served.says("\"listening\"");
            nodes.insert(node, served);
        }
        for served in nodes.values_mut() {
            served.says("\"serving\"");
        }
        Some(Cluster { nodes, network, sandbox, _one: one })
    }

    fn client_options(&self) -> ClientOptions {
        let files = CertificateFiles::of_client(&self.sandbox.path("certs"), "admin");
        let options = ClientOptions::from_files(&files).expect("certificates of a client");
        ClientOptions { deadline: DEADLINE, ..options }
    }

    async fn client(&self, nodes: &[u64]) -> Client {
        let endpoints = nodes.iter().map(|node| endpoint(*node)).collect();
        connect_to(endpoints, self.client_options()).await
    }

    /// Runs a test in the clients' network, under load, and checks in the end what was acknowledged.
    fn under_load(self, test: impl AsyncFn(&Cluster, &Client, &Load) -> Told) {
        let cluster = &self;
        let _entered = Entered::into(&self.network.name(CLIENTS));
        Runtime::new().expect("threads").block_on(async {
            let client = cluster.client(&NODES).await;
            eventually("all three are level", || is_whole(&client, 100)).await;
            let watchers = [cluster.client(&NODES).await, cluster.client(&NODES).await];
            let mixed = Mixed::start(&client, watchers, PAUSE).await;
            let load = Load::start(&client, "outside", 6);
            load.goes_on(100).await;
            let mut told = test(cluster, &client, &load).await;
            eventually("all three are level again", || is_whole(&client, 100)).await;
            load.goes_on(100).await;
            let (carried_out, refused, events) = mixed.stop().await;
            say(&format!(
                "{carried_out} other calls were carried out, {refused} refused, {events} events told"
            ));
            assert!(carried_out > 100, "only {carried_out} other calls were carried out");
            told.add(load.stop().await);
            eventually("all three have all", || is_whole(&client, 0)).await;
            cluster.agree(&told).await;
            client.close().await;
        });
        for (node, served) in self.nodes {
            assert_eq!(served.terminate(), 0, "node {node}");
        }
    }

    /// The nodes hold the same, each of them serves, and what was acknowledged is there.
    async fn agree(&self, told: &Told) {
        for node in NODES {
            let reader = self.client(&[node]).await;
            told.check(&reader).await;
            reader.close().await;
        }
        let applied = async || {
            let reader = self.client(&NODES).await;
            let members = reader.status().await.expect("they serve");
            reader.close().await;
            let mut applied = members.into_iter().map(|member| {
                let groups = member.status.expect("each of them answers").groups;
                groups.iter().map(|group| group.applied).collect::<Vec<_>>()
            });
            let first = applied.next();
            applied.all(|other| Some(other) == first)
        };
        eventually("all three have applied the same", applied).await;
    }
}

async fn connect_to(endpoints: Vec<String>, options: ClientOptions) -> Client {
    Client::connect(endpoints, options).await.expect("a client")
}

/// The node that leads most groups.
async fn busiest(client: &Client) -> u64 {
    let leaders = client.map().await.expect("a node answers").leaders;
    let led = |node: &u64| leaders.iter().filter(|leader| **leader == Some(NodeId(*node))).count();
    NODES.into_iter().max_by_key(led).expect("there are three")
}

/// Asserts that all partitions, which so many keys reach, take writes within the bound.
async fn serves_within_bound(client: &Client, what: &str) {
    let began = Instant::now();
    let tree = client.tree("bound").with_deadline(Duration::from_secs(1));
    for number in 0..100 {
        while let Err(error) = tree.insert(format!("key {number}"), what).await {
            assert!(began.elapsed() < BOUND, "{what}: no write after {:?}: {error}", began.elapsed());
        }
    }
    say(&format!("{what}: all partitions took writes after {:?}", began.elapsed()));
}

/// Cuts a node off, beside which, in its own network, there are clients: none of theirs is
/// acknowledged, while the others serve. What they were told is checked with the rest.
async fn cut_off_with_clients(cluster: &Cluster, node: u64, client: &Client) -> Told {
    let runtime = cluster.network.runtime(node);
    let connect = cluster.client_options();
    let beside = runtime.spawn(connect_to(vec![endpoint(node)], connect)).await.expect("it does not panic");
    let before = {
        let _on = runtime.enter();
        Load::start(&beside, "beside", 2)
    };
    before.goes_on(20).await;
    cluster.network.cut_off(node);
    serves_within_bound(client, "a leader is cut off").await;
    // What was under way is acknowledged or not; what begins from here on cannot be.
    let mut told = before.stop().await;
    let lonely = {
        let _on = runtime.enter();
        Load::start(&beside, "alone", 2)
    };
    let reading = beside.clone();
    let read = runtime.spawn(async move { reading.tree("load").get("outside/0/000000").await });
    let read = read.await.expect("it does not panic");
    assert!(read.is_err(), "a node that is alone has answered a linearizable read: {read:?}");
    tokio::time::sleep(DEADLINE).await;
    assert_eq!(lonely.acknowledged(), 0, "a node that is alone has acknowledged writes");
    // It says no or does not know; what is not known may have been counted.
    let lonely = lonely.stop().await;
    assert_eq!(lonely.keys.len(), 0, "a node that is alone has acknowledged {:?}", lonely.keys);
    told.add(lonely);
    runtime.shutdown_background();
    told
}

#[test]
fn a_leader_that_is_cut_off_acknowledges_nothing_and_the_others_go_on() {
    let Some(cluster) = Cluster::start("majority") else { return };
    cluster.under_load(async |cluster, client, _| {
        let leader = busiest(client).await;
        let told = cut_off_with_clients(cluster, leader, client).await;
        cluster.network.mend(leader);
        told
    });
}

#[test]
fn a_follower_that_is_cut_off_is_not_missed() {
    let Some(cluster) = Cluster::start("minority") else { return };
    cluster.under_load(async |cluster, client, load| {
        let leader = busiest(client).await;
        let follower = NODES.into_iter().find(|node| *node != leader).expect("there are three");
        cluster.network.cut_off(follower);
        serves_within_bound(client, "a follower is cut off").await;
        load.goes_on(200).await;
        cluster.network.mend(follower);
        Told::default()
    });
}

#[test]
fn two_nodes_that_hear_each_other_only_through_the_third_go_on() {
    let Some(cluster) = Cluster::start("bridge") else { return };
    cluster.under_load(async |cluster, client, _| {
        let a = busiest(client).await;
        let b = NODES.into_iter().find(|node| *node != a).expect("there are three");
        cluster.network.cut_way(a, b);
        cluster.network.cut_way(b, a);
        serves_within_bound(client, "a bridge is left").await;
        // Long enough for elections to go back and forth, if they do.
        tokio::time::sleep(Duration::from_secs(3)).await;
        serves_within_bound(client, "a bridge is left, later").await;
        cluster.network.mend_way(a, b);
        cluster.network.mend_way(b, a);
        Told::default()
    });
}

#[test]
fn a_leader_that_is_heard_by_nobody_but_hears_all_is_replaced() {
    let Some(cluster) = Cluster::start("one way") else { return };
    cluster.under_load(async |cluster, client, _| {
        let mute = busiest(client).await;
        let others: Vec<u64> = NODES.into_iter().filter(|node| *node != mute).collect();
        for other in &others {
            cluster.network.cut_way(mute, *other);
        }
        serves_within_bound(client, "a leader is mute").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        serves_within_bound(client, "a leader is mute, later").await;
        for other in &others {
            cluster.network.mend_way(mute, *other);
        }
        Told::default()
    });
}

#[test]
fn a_follower_that_hears_nobody_but_is_heard_does_not_stop_the_others() {
    let Some(cluster) = Cluster::start("one way") else { return };
    cluster.under_load(async |cluster, client, _| {
        let leader = busiest(client).await;
        let deaf = NODES.into_iter().find(|node| *node != leader).expect("there are three");
        let others: Vec<u64> = NODES.into_iter().filter(|node| *node != deaf).collect();
        for other in &others {
            cluster.network.cut_way(*other, deaf);
        }
        serves_within_bound(client, "a follower is deaf").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        serves_within_bound(client, "a follower is deaf, later").await;
        for other in &others {
            cluster.network.mend_way(*other, deaf);
        }
        Told::default()
    });
}
