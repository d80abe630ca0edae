//! [`run`]: one cluster's life, from its seed to the verdict.
//!
//! A run makes a cluster, lets clients work on it while faults come and go, then ends all faults,
//! and asks three things: does it serve again within [`PATIENCE`]; do all replicas come to hold the
//! same; and could everything that the clients heard have happened. What must hold at every moment
//! is looked at several times in each simulated second on the way.
//!
//! Everything happens in one thread, and time passes only when nobody has anything left to do, so a
//! minute of a cluster's life takes a fraction of a second, and the same seed is the same life.

use std::panic;
use std::sync::{Arc, Once};
use std::time::Duration;
use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use dogsled_replication::runtime::seed_random_numbers;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::caller::{Caller, LogTimes};
use crate::cluster::{Cluster, Setup};
use crate::faults::{self, Faults};
use crate::history::{Heard, History, Kind, Operation, Outcome};
use crate::holders::{Holder, all_are_free};
use crate::invariants::Watchdog;
use crate::leases::{BOUND, Leases};
use crate::linearizability::{Verdict, check};
use crate::locks::Held;
use crate::network::SimulatedNetwork;
use crate::owners::{LONGEST, Owned, Owner, read_numbered};
use crate::planted::Planted;
use crate::random::Random;
use crate::trace::{Trace, event};
use crate::watchers::{Watched, Watcher};
use crate::workload::{Client, Ledger, Objects, Recorded, Shared};

/// After the last fault, the cluster serves again within this time.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Time for what happened last to come to those who watch.
const QUIET: Duration = Duration::from_secs(3);
/// How often faults and invariants are looked after.
const STEP: Duration = Duration::from_millis(50);

/// How to run.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where everything comes from.
    pub seed: u64,
    /// Whether to print every event.
    pub trace: bool,
    /// How long faults come, in simulated time.
    pub duration: Duration,
    /// Only these faults, if there are any.
    pub only: Vec<faults::Kind>,
    /// Whether clients run transactions over partitions, instead of the usual work.
    pub transactions: bool,
    /// Whether a quorum is lost for ever and recovered, instead of everything else.
    pub lost: bool,
    /// A bug that is planted, to see it caught.
    pub planted: Option<Planted>,
}

impl Options {
    /// The usual run of a seed.
    pub fn new(seed: u64) -> Options {
        let duration = Duration::from_secs(12);
        let (trace, only, planted) = (false, Vec::new(), None);
        Options { seed, trace, duration, only, transactions: false, lost: false, planted }
    }

    /// The run of a seed in which clients run transactions.
    pub fn with_transactions(seed: u64) -> Options {
        Options { transactions: true, ..Options::new(seed) }
    }

    /// The life of a seed in which a quorum is lost for ever.
    pub fn with_a_lost_quorum(seed: u64) -> Options {
        Options { lost: true, ..Options::new(seed) }
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Report {
    /// Of which seed.
    pub seed: u64,
    /// What must not be; empty if all is well.
    pub violations: Vec<String>,
    /// Objects whose history was too hard to judge.
    pub undecided: usize,
    /// Hash of everything that happened, and how much that was.
    pub trace: (u64, u64),
    /// Operations heard, refused, unknown.
    pub operations: (usize, usize, usize),
    /// What was done to the cluster.
    pub faults: String,
    /// How transactions over partitions ended, if there were any, what came of locks, sessions, keys, watches and
    /// some faults: how often.
    pub counts: BTreeMap<&'static str, u64>,
    /// The transactions that happened, if there were any.
    pub recorded: Recorded,
}

thread_local! {
    /// Panics within tasks would otherwise only end the task.
    static PANICS: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    static WATCHED: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

fn watch_for_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |panicked| {
            if WATCHED.get() {
                PANICS.with_borrow_mut(|panics| panics.push(panicked.to_string()));
            }
            before(panicked);
        }));
    });
}

/// Lives through a seed.
///
/// # Panics
/// If there is no runtime to be had, or the simulation itself is wrong.
pub fn run(options: &Options) -> Report {
    watch_for_panics();
    PANICS.with_borrow_mut(Vec::clear);
    WATCHED.set(true);
    seed_random_numbers(Some(options.seed));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .expect("a runtime without threads needs nothing");
    let mut report = match options.lost {
        true => runtime.block_on(crate::lost::live(options)),
        false => runtime.block_on(live(options)),
    };
    drop(runtime);
    seed_random_numbers(None);
    WATCHED.set(false);
    let panics = PANICS.with_borrow_mut(std::mem::take);
    report.violations.extend(panics.into_iter().map(|panic| format!("a panic: {panic}")));
    report
}

fn draw_setup(random: &mut Random) -> (Setup, Vec<i64>) {
    let nodes = if random.chance(200) { 5 } else { 3 };
    let millis = Duration::from_millis;
    let setup = Setup {
        nodes,
        partitions: random.between(1, 2) as u32,
        keep_entries: *random.pick(&[20, 100, 1_000, 200_000]),
        log_cache_bytes: *random.pick(&[4 << 10, 64 << 10, 8 << 20]),
        sync_time: *random.pick(&[
            (millis(0), millis(0)),
            (millis(0), millis(5)),
            (millis(1), millis(40)),
            (millis(0), millis(250)),
        ]),
        balance_leaders: random.chance(600),
        maintenance_every: millis(*random.pick(&[100, 300, 1_000])),
    };
    let most = *random.pick(&[0, 50, 5_000, 7_200_000]);
    let skews = (0..nodes).map(|_| random.between(0, 2 * most) as i64 - most as i64).collect();
    (setup, skews)
}

fn draw_objects(random: &mut Random) -> Objects {
    let names = |letter: &str, many: u64| (0..many).map(|at| format!("{letter}{at}")).collect();
    Objects {
        keys: names("key", random.between(1, 4)),
        pairs: names("pair", random.between(1, 2)),
        counters: names("counter", random.between(1, 2)),
        bounded: Vec::new(),
        twins: Vec::new(),
    }
}

async fn live(options: &Options) -> Report {
    let seed = options.seed;
    let trace = Trace::new(options.trace);
    let mut random = Random::new(seed, 1);
    let (mut setup, skews) = draw_setup(&mut random);
    if options.transactions {
        // One more than it would be, so that there are some to go over.
        setup.partitions += 1;
    }
    let mut objects = draw_objects(&mut random);
    // As with watchers, below.
    if options.only.is_empty() {
        let mut random = Random::new(seed, 9);
        let names = |letter: &str, many: u64| -> Vec<String> {
            (0..many).map(|at| format!("{letter}{at}")).collect()
        };
        objects.bounded = names("bounded", random.between(1, 2));
        objects.twins = names("twin", random.between(1, 2));
    }
    let network = SimulatedNetwork::new(Random::new(seed, 3), trace.clone());
    event!(trace, "seed {seed}: {setup:?} skews {skews:?}");
    let mut cluster = Cluster::new(seed, setup, &skews, network.clone(), trace.clone());
    cluster.planted = options.planted;
    network.plant(options.planted);
    let shared = Arc::new(Shared {
        network,
        history: History::default(),
        watched: Watched::default(),
        held: Held::default(),
        owned: Owned::default(),
        log: LogTimes::default(),
        starts: Arc::clone(&cluster.starts),
        trace: trace.clone(),
        nodes: cluster.ids().into(),
        partitions: cluster.setup.partitions,
        objects,
        violations: Default::default(),
        ledger: Ledger::default(),
        recorded: Default::default(),
        began: Instant::now(),
    });
    let mut faults = "none".to_owned();
    let mut violations = Vec::new();
    if let Err(error) = go(options, &mut cluster, &shared, &mut random, &mut faults).await {
        violations.push(error);
    }
    violations.extend(shared.violations.lock().drain(..));
    let undecided = judge(&shared.history, &mut violations);
    violations.extend(shared.watched.judge());
    violations.extend(shared.held.judge());
    violations.extend(shared.owned.judge(&shared.log));
    violations.extend(shared.log.judge());
    for violation in &violations {
        event!(trace, "VIOLATION: {violation}");
    }
    if options.trace && !violations.is_empty() {
        print_history(&shared.history);
    }
    let digest = trace.digest();
    // A node has the network and the network has it: left so, they and their disks would stay for ever,
    // and some thousand seeds fill the memory.
    for id in cluster.ids() {
        cluster.network.detach(id);
    }
    let operations = shared.history.counts();
    let mut counts = shared.ledger.counts();
    counts.extend(shared.held.counts());
    counts.extend(shared.owned.counts());
    counts.extend(trace.counts());
    counts.extend(shared.watched.counts());
    let recorded = std::mem::take(&mut *shared.recorded.lock());
    Report { seed, violations, undecided, trace: digest, operations, faults, counts, recorded }
}

async fn go(
    options: &Options,
    cluster: &mut Cluster,
    shared: &Arc<Shared>,
    random: &mut Random,
    kinds: &mut String,
) -> Result<(), String> {
    let seed = options.seed;
    cluster.make().await?;
    let mut faults = Faults::new(seed, &options.only);
    *kinds = format!("{:?}", faults.kinds());
    event!(cluster.trace, "the cluster is made; faults: {kinds}");
    cluster.network.set_quality(faults.usual());
    let (stop, stopped) = watch::channel(false);
    let clients: Vec<_> = (1..=random.between(3, 8))
        .map(|number| {
            let in_sessions = random.chance(600);
            // Some of the usual work beside them.
            if options.transactions && number > 1 {
                let client = Client::new(number, seed, Arc::clone(shared), true);
                return tokio::spawn(client.run_transactions(stopped.clone()));
            }
            let client = Client::new(number, seed, Arc::clone(shared), in_sessions);
            tokio::spawn(client.run(stopped.clone()))
        })
        .collect();
    // Runs with certain faults only have no watchers: most are there because of their seeds, which
    // are to stay the lives that they were.
    let watchers = if options.only.is_empty() { Random::new(seed, 6).between(0, 3) } else { 0 };
    let watchers: Vec<_> = (1..=watchers)
        .map(|number| {
            // Each its own: tokio wakes those who share one in whatever order.
            let (stop, stopped) = watch::channel(false);
            let watcher = Watcher::new(number, seed, Arc::clone(shared));
            (stop, tokio::spawn(watcher.run(stopped)))
        })
        .collect();
    // As with watchers.
    let holders = if options.only.is_empty() { Random::new(seed, 7).between(0, 6) } else { 0 };
    let holders: Vec<_> = (1..=holders)
        .map(|number| {
            let (stop, stopped) = watch::channel(false);
            (stop, tokio::spawn(Holder::new(number, seed, Arc::clone(shared)).run(stopped)))
        })
        .collect();
    let owners = if options.only.is_empty() { Random::new(seed, 8).between(0, 3) } else { 0 };
    let owners: Vec<_> = (1..=owners)
        .map(|number| {
            let (stop, stopped) = watch::channel(false);
            (stop, tokio::spawn(Owner::new(number, seed, Arc::clone(shared)).run(stopped)))
        })
        .collect();
    let mut watchdog = Watchdog::default();
    let end = Instant::now() + options.duration;
    let mut faulty = Ok(());
    while faulty.is_ok() && Instant::now() < end {
        // Also before: of a node that has just been given a group anew, and ends, the life before would be asked for.
        faulty = watchdog.look(cluster);
        if faulty.is_ok() {
            faulty = faults.step(cluster).await;
        }
        if faulty.is_ok() {
            faulty = watchdog.look(cluster);
        }
        *shared.nodes.lock() = cluster.ids();
        cluster.act_as_planted();
        tokio::time::sleep(STEP).await;
    }
    if faulty.is_ok() {
        faulty = end_faults(&mut faults, cluster, shared, &mut watchdog).await;
    }
    stop.send_replace(true);
    holders.iter().chain(&owners).for_each(|(stop, _)| {
        stop.send_replace(true);
    });
    faulty?;
    plans_are_carried_through(cluster, &mut watchdog).await?;
    serves_again(cluster, shared, &mut watchdog, seed).await?;
    for client in clients {
        // One that panicked is counted among the panics.
        let _ = client.await;
    }
    for (_, task) in holders.into_iter().chain(owners) {
        let _ = task.await;
    }
    nothing_is_left(cluster, &mut watchdog).await?;
    all_are_free(seed, shared).await?;
    agree(cluster, &mut watchdog).await?;
    // Whatever was told is heard by now.
    tokio::time::sleep(QUIET).await;
    for (stop, watcher) in watchers {
        stop.send_replace(true);
        let _ = watcher.await;
    }
    numbers_are_read(shared, seed).await?;
    // Everything once more, by every node, after everything else.
    let mut reader = Client::new(99, seed, Arc::clone(shared), false);
    for id in cluster.ids() {
        let end = Instant::now() + PATIENCE;
        // Leadership may be on its way to another node, to share the work.
        while !reader.read_all(id).await {
            if Instant::now() > end {
                return Err(format!("node {id} does not answer reads although all is well"));
            }
            tokio::time::sleep(STEP).await;
        }
        let mut finals = None;
        while options.transactions && finals.is_none() {
            finals = reader.read_finals(id).await;
            if Instant::now() > end {
                return Err(format!("node {id} does not answer reads of lists although all is well"));
            }
        }
        if let Some(finals) = finals {
            let recorded = shared.ledger.recorded(finals);
            let violations = shared.ledger.judge(&recorded);
            shared.violations.lock().extend(violations);
            *shared.recorded.lock() = recorded;
            event!(cluster.trace, "transactions: {:?}", shared.ledger.counts());
        }
    }
    Ok(())
}

/// Nothing outlives its owner: some time after the last of them has walked away, nothing that ends by itself is there
/// any more, in any replica.
async fn nothing_is_left(cluster: &Cluster, watchdog: &mut Watchdog) -> Result<(), String> {
    // Leadership may still move, and gives every session its whole lease again. And a replica may be behind until the piece of
    // a snapshot that was lost with its node is given up, which takes as long as anything here.
    let end = Instant::now() + PATIENCE + LONGEST * 3 + BOUND;
    while let Err(left) = Leases::nothing_is_left(cluster) {
        cluster.act_as_planted();
        watchdog.look(cluster)?;
        if Instant::now() > end {
            let status: Vec<_> = cluster.nodes().map(|(_, node)| node.status()).collect();
            return Err(format!(
                "although all is well and nobody owns anything any more, this is left: {left}: {status:#?}"
            ));
        }
        tokio::time::sleep(STEP).await;
    }
    event!(cluster.trace, "nothing is left of what ends by itself");
    Ok(())
}

/// Writes down which numbered keys there are in the end.
async fn numbers_are_read(shared: &Arc<Shared>, seed: u64) -> Result<(), String> {
    let mut caller = Caller::new(699, Random::new(seed, 40_000), Arc::clone(shared));
    let end = Instant::now() + PATIENCE;
    while !read_numbered(&mut caller).await {
        if Instant::now() > end {
            return Err("nobody tells which numbered keys there are although all is well".to_owned());
        }
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

/// Ends all faults, and waits until whoever was about to join or leave has.
async fn end_faults(
    faults: &mut Faults,
    cluster: &mut Cluster,
    shared: &Shared,
    watchdog: &mut Watchdog,
) -> Result<(), String> {
    faults.end(cluster).await?;
    let end = Instant::now() + PATIENCE * 2;
    while faults.members_change() {
        if Instant::now() > end {
            let status: Vec<_> = cluster.nodes().map(|(_, node)| node.status()).collect();
            return Err(format!(
                "the members do not change as they were asked to although all is well: {status:#?}"
            ));
        }
        faults.change_members(cluster).await?;
        watchdog.look(cluster)?;
        *shared.nodes.lock() = cluster.ids();
        tokio::time::sleep(STEP).await;
    }
    Ok(())
}

/// Waits until every plan is carried through: the members are the machines that there are, every group
/// is where the record wants it, and nobody has anything else.
async fn plans_are_carried_through(cluster: &Cluster, watchdog: &mut Watchdog) -> Result<(), String> {
    let end = Instant::now() + PATIENCE * 2;
    while let Err(why) = is_as_wanted(cluster) {
        watchdog.look(cluster)?;
        if Instant::now() > end {
            let status: Vec<_> = cluster.nodes().map(|(_, node)| node.status()).collect();
            return Err(format!("although all is well, {why}: {status:#?}"));
        }
        tokio::time::sleep(STEP).await;
    }
    event!(cluster.trace, "everything is where it is wanted");
    Ok(())
}

fn is_as_wanted(cluster: &Cluster) -> Result<(), String> {
    let newest = cluster.nodes().filter_map(|(_, node)| node.record()).max_by_key(|record| record.epoch);
    let Some(record) = newest else { return Err("there is no record".to_owned()) };
    let members: Vec<_> = record.members.keys().copied().collect();
    if members != cluster.ids() {
        return Err(format!("the members are {members:?}, and there are {:?}", cluster.ids()));
    }
    for (id, node) in cluster.nodes() {
        let groups = node.status().groups;
        let has: Vec<u32> = groups.iter().map(|group| group.group).collect();
        let wanted = |group: &u32| *group == 0 || record.replicas_of(*group).contains(&id);
        let wanted: Vec<u32> = (0..=record.partitions()).filter(wanted).collect();
        if has != wanted {
            return Err(format!("node {id} has {has:?}, wanted are {wanted:?}"));
        }
        for status in groups {
            let mut voters = record.replicas_of(status.group).to_vec();
            voters.sort_unstable();
            if status.voters != voters || status.joint {
                return Err(format!(
                    "node {id} takes {:?} for the voters of group {}, wanted are {voters:?}",
                    status.voters, status.group
                ));
            }
        }
    }
    Ok(())
}

/// Waits until every node serves writes and reads of every group.
async fn serves_again(
    cluster: &Cluster,
    shared: &Arc<Shared>,
    watchdog: &mut Watchdog,
    seed: u64,
) -> Result<(), String> {
    let mut client = Client::new(98, seed, Arc::clone(shared), false);
    let end = Instant::now() + PATIENCE;
    let mut left: BTreeSet<_> = cluster
        .ids()
        .into_iter()
        .flat_map(|id| (0..=cluster.setup.partitions).map(move |group| (id, group)))
        .collect();
    while let Some(&(id, group)) = left.first() {
        watchdog.look(cluster)?;
        if client.touch(id, group).await {
            left.remove(&(id, group));
            continue;
        }
        if Instant::now() > end {
            let status: Vec<_> = cluster.nodes().map(|(_, node)| node.status()).collect();
            return Err(format!(
                "{PATIENCE:?} after the last fault node {id} does not serve a write of group {group}: {status:#?}"
            ));
        }
        tokio::time::sleep(STEP).await;
    }
    event!(cluster.trace, "it serves again");
    Ok(())
}

/// Waits until everybody who is to have a replica has it, and all replicas have applied the same and hold the same.
async fn agree(cluster: &Cluster, watchdog: &mut Watchdog) -> Result<(), String> {
    let end = Instant::now() + PATIENCE;
    loop {
        watchdog.look(cluster)?;
        let Err(why) = is_as_wanted(cluster).and_then(|()| is_alike(cluster)) else {
            event!(cluster.trace, "all replicas agree");
            return Ok(());
        };
        if Instant::now() > end {
            return Err(format!("{PATIENCE:?} after the last write the replicas do not agree: {why}"));
        }
        tokio::time::sleep(STEP).await;
    }
}

fn is_alike(cluster: &Cluster) -> Result<(), String> {
    // By group: positions applied and of the last entry, and the state's fingerprint.
    let mut states: BTreeMap<u32, BTreeSet<(u64, u64, u64)>> = BTreeMap::new();
    for (id, node) in cluster.nodes() {
        for status in node.status().groups {
            let group = status.group;
            let replica = node.replica(group);
            let replica = replica.ok_or_else(|| format!("node {id} has no replica of group {group}"))?;
            let snapshot = replica.snapshot();
            let fingerprint = snapshot
                .fingerprint()
                .map_err(|error| format!("node {id}'s replica of group {group} cannot be read: {error}"))?;
            let state = (snapshot.applied().position, status.last, fingerprint);
            states.entry(group).or_default().insert(state);
        }
    }
    let all = states.len() == cluster.setup.partitions as usize + 1;
    match all && states.values().all(|states| states.len() == 1) {
        true => Ok(()),
        false => Err(format!("(applied, last, fingerprint) are {states:?}")),
    }
}

/// Judges the history of every object; how many could not be judged.
fn judge(history: &History, violations: &mut Vec<String>) -> usize {
    let mut undecided = 0;
    for (name, kind, operations) in history.objects() {
        match check(kind, &operations) {
            Verdict::Linearizable => {}
            Verdict::Undecided => undecided += 1,
            Verdict::Violated { depth, state, due } => violations.push(format!(
                "{name} is not linearizable: {depth} of {} operations can be put in order; then, with {state} there, none of these can come next:\n  {}",
                operations.len(),
                due.join("\n  ")
            )),
        }
        if kind == Kind::Counter && !name.starts_with("bounded") {
            counts_once(&name, &operations, violations);
        }
    }
    undecided
}

/// The last sum of a counter: all that was acknowledged, and some of what is not known.
fn counts_once(name: &str, operations: &[Operation], violations: &mut Vec<String>) {
    use crate::history::Action;
    let (mut least, mut unknown) = (0, 0);
    let mut last = None;
    for operation in operations {
        match (operation.action, operation.outcome) {
            (Action::Add(delta), Outcome::Heard(_)) => least += delta,
            (Action::Add(delta), Outcome::Unknown) => unknown += delta,
            // The last reads come after everything else.
            (Action::Get, Outcome::Heard(Heard::Value(value))) if operation.client == 99 => {
                last = Some(value as i64)
            }
            _ => {}
        }
    }
    if let Some(last) = last
        && !(least..=least + unknown).contains(&last)
    {
        violations.push(format!(
            "{name} ends at {last}: {least} were added for certain, and at most {unknown} more"
        ));
    }
}

fn print_history(history: &History) {
    for (name, kind, operations) in history.objects() {
        println!("{name} ({kind:?})");
        for operation in operations {
            let answered = operation.answered.map_or("never".to_owned(), |at| at.to_string());
            println!(
                "  {:>6}..{answered:>6} client {:>2} {:?}: {:?}",
                operation.invoked, operation.client, operation.action, operation.outcome
            );
        }
    }
}
