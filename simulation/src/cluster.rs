//! [`Cluster`]: machines with a disk, a clock and, most of the time, a running node.
//!
//! A machine's node is the real one; what is simulated is below it (disk, clock, network) and
//! around it (the process that it runs in). A machine dies in several ways:
//!
//! - [`Death::PowerCut`]: the process is gone, and of what was not synced the disk keeps what its
//!   seed says.
//! - [`Death::Kill`]: the process is gone; what it had written is there, synced or not.
//! - [`Death::Shutdown`]: the node is told to stop, and does it in order.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use dogsled_replication::runtime::Process;
use dogsled_replication::{Node, NodeConfig, NodeId, Timing};
use dogsled_storage::disk::SimulatedDisk;

use crate::clock::SimulatedClock;
use crate::network::SimulatedNetwork;
use crate::planted::Planted;
use crate::random::Random;
use crate::trace::{Trace, event};

/// Of its own: seeds that once found something shall go on meaning the same.
const TIMING: Timing = Timing {
    heartbeat: Duration::from_millis(100),
    election: (Duration::from_millis(300), Duration::from_millis(600)),
};

/// What the nodes of a run are started with, drawn from its seed.
#[derive(Clone, Debug)]
pub struct Setup {
    /// How many machines.
    pub nodes: u64,
    /// How many partitions beside the meta group.
    pub partitions: u32,
    /// Entries kept for followers that were away: few of them, and snapshots are needed often.
    pub keep_entries: u64,
    /// Memory for the newest entries, and as much for changes that watches ask for: little of it, and old entries
    /// are read from the WAL.
    pub log_cache_bytes: usize,
    /// Time that a sync takes.
    pub sync_time: (Duration, Duration),
    /// Whether leadership is moved around by itself.
    pub balance_leaders: bool,
    /// How often a node looks after itself.
    pub maintenance_every: Duration,
}

/// How a machine's node ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Death {
    /// See the [module](self).
    PowerCut,
    /// See the [module](self).
    Kill,
    /// See the [module](self).
    Shutdown,
}

/// A running node and what it runs in.
#[derive(Clone)]
pub struct Running {
    /// The node.
    pub node: Node,
    /// Its process.
    pub process: Process,
}

/// One of the [`Cluster`].
pub struct Machine {
    /// Its number.
    pub id: NodeId,
    /// What it stores on.
    pub disk: SimulatedDisk,
    /// What it takes for the time.
    pub clock: SimulatedClock,
    /// How often its node was started.
    pub starts: u64,
    /// Its node, if it runs.
    pub running: Option<Running>,
    /// Whether its process is stopped.
    pub paused: bool,
    random: Random,
}

/// See the [module](self).
pub struct Cluster {
    /// By number.
    pub machines: BTreeMap<NodeId, Machine>,
    /// What connects them.
    pub network: SimulatedNetwork,
    /// What the nodes are started with.
    pub setup: Setup,
    /// What happens.
    pub trace: Trace,
    /// How often nodes were started.
    pub starts: Arc<AtomicU64>,
    /// A bug that is planted.
    pub planted: Option<Planted>,
}

impl Machine {
    fn new(id: NodeId, mut random: Random, skew_ms: i64) -> Machine {
        let drift = random.between(0, 400) as i64 - 200;
        Machine {
            id,
            disk: SimulatedDisk::new(random.number()),
            clock: SimulatedClock::new(skew_ms, drift),
            starts: 0,
            running: None,
            paused: false,
            random,
        }
    }
}

/// The address of a node; nobody resolves it.
pub fn addresses(node: NodeId) -> Vec<String> {
    vec![format!("node-{node}:1")]
}

impl Cluster {
    /// Machines whose nodes have not been started yet.
    pub fn new(
        seed: u64,
        setup: Setup,
        skews_ms: &[i64],
        network: SimulatedNetwork,
        trace: Trace,
    ) -> Cluster {
        let machine = |number: u64| {
            let skew = skews_ms.get(number as usize - 1).copied().unwrap_or(0);
            Machine::new(NodeId(number), Random::new(seed, 1_000 + number), skew)
        };
        let machines = (1..=setup.nodes).map(|number| (NodeId(number), machine(number))).collect();
        Cluster { machines, network, setup, trace, starts: Arc::default(), planted: None }
    }

    /// All machines' numbers.
    pub fn ids(&self) -> Vec<NodeId> {
        self.machines.keys().copied().collect()
    }

    /// A machine more, whose node has not been started yet.
    pub fn add(&mut self, id: NodeId, seed: u64) {
        event!(self.trace, "machine {id} is new");
        self.machines.insert(id, Machine::new(id, Random::new(seed, id.0), 0));
    }

    /// A machine whose node does not run gets an empty disk.
    pub fn wipe(&mut self, id: NodeId, seed: u64) {
        if let Some(machine) = self.machines.get_mut(&id) {
            event!(self.trace, "machine {id} loses its disk");
            machine.disk = SimulatedDisk::new(seed);
        }
    }

    /// Every running node.
    pub fn nodes(&self) -> impl Iterator<Item = (NodeId, &Node)> {
        self.machines.iter().filter_map(|(id, machine)| Some((*id, &machine.running.as_ref()?.node)))
    }

    fn config(&self, machine: &Machine, seed: u64) -> NodeConfig {
        let mut config = NodeConfig::new("node", machine.id, addresses(machine.id));
        config.timing = TIMING;
        config.disk = match self.planted {
            Some(planted) => planted.disk(machine.disk.clone()),
            None => Arc::new(machine.disk.clone()),
        };
        config.clock = Arc::new(machine.clock.clone());
        config.threads = false;
        config.sync_time = self.setup.sync_time;
        // The smallest that holds what a run writes in a second: so there are many.
        config.wal_segment_bytes = 128 << 10;
        config.seed = Some(seed);
        config.cache_bytes = 4 << 20;
        config.log_cache_bytes = self.setup.log_cache_bytes;
        config.watch_bytes = self.setup.log_cache_bytes as u64;
        config.keep_entries = self.setup.keep_entries;
        config.request_deadline = Duration::from_secs(2);
        config.balance_leaders = self.setup.balance_leaders;
        config.maintenance_every = match self.planted {
            Some(Planted::LookAfterNothing) => Duration::from_secs(3_600),
            _ => self.setup.maintenance_every,
        };
        config
    }

    /// What a planted bug has nodes do by themselves.
    pub fn act_as_planted(&self) {
        if let Some(planted) = self.planted {
            planted.act(self);
        }
    }

    /// Starts a machine's node.
    ///
    /// # Errors
    /// Why it does not start, in words.
    pub async fn start(&mut self, id: NodeId) -> Result<(), String> {
        let Some(machine) = self.machines.get_mut(&id) else { return Err(format!("no machine {id}")) };
        machine.starts += 1;
        self.starts.fetch_add(1, Ordering::Relaxed);
        let seed = machine.random.number();
        let machine = &self.machines[&id];
        event!(self.trace, "node {id} starts, life {}", machine.starts);
        let process = Process::new();
        let starting =
            process.spawn(Node::start(self.config(machine, seed), self.network.transport(id))).await;
        let node = match starting {
            Ok(Ok(node)) => node,
            Ok(Err(error)) => {
                process.kill();
                event!(self.trace, "node {id} does not start: {error}");
                return Err(error.to_string());
            }
            Err(error) => return Err(format!("starting panicked: {error}")),
        };
        self.network.attach(id, Arc::new(node.clone()), process.clone());
        if let Some(machine) = self.machines.get_mut(&id) {
            machine.running = Some(Running { node, process });
            machine.paused = false;
        }
        Ok(())
    }

    /// Ends a machine's node, or what a start that failed has left.
    pub async fn end(&mut self, id: NodeId, death: Death) {
        event!(self.trace, "node {id} ends: {death:?}");
        self.resume(id);
        let Some(machine) = self.machines.get_mut(&id) else { return };
        let running = machine.running.take();
        if death == Death::Shutdown
            && let Some(running) = &running
        {
            let node = running.node.clone();
            let stopped = running.process.spawn(async move { node.shutdown().await });
            if let Ok(Err(error)) = stopped.await {
                self.trace.remark(format_args!("shutdown: {error}"));
            }
        }
        self.network.detach(id);
        if let Some(running) = running {
            running.process.kill();
        }
        let seed = machine.random.number();
        machine.disk = match death {
            Death::PowerCut => machine.disk.power_cut(seed),
            Death::Kill | Death::Shutdown => machine.disk.process_kill(),
        };
        // The tasks are dropped in their turn of the runtime.
        tokio::task::yield_now().await;
    }

    /// Stops a machine's process for a while.
    pub fn pause(&mut self, id: NodeId) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if let Some(running) = &machine.running {
            event!(self.trace, "node {id} is paused");
            running.process.pause();
            machine.paused = true;
        }
    }

    /// Lets it go on.
    pub fn resume(&mut self, id: NodeId) {
        let Some(machine) = self.machines.get_mut(&id) else { return };
        if let Some(running) = machine.running.as_ref().filter(|_| machine.paused) {
            event!(self.trace, "node {id} goes on");
            running.process.resume();
        }
        machine.paused = false;
    }

    /// Starts all nodes and makes them one cluster.
    ///
    /// # Errors
    /// Why not, in words.
    pub async fn make(&mut self) -> Result<(), String> {
        for id in self.ids() {
            self.start(id).await?;
        }
        let members = self.ids().into_iter().map(|id| (id, addresses(id))).collect();
        let partitions = self.setup.partitions;
        let Some(first) = self.machines.values().find_map(|machine| machine.running.clone()) else {
            return Err("there is no machine".to_owned());
        };
        let node = first.node.clone();
        let made = first.process.spawn(async move { node.initialize_cluster(partitions, members).await });
        match made.await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(format!("making the cluster: {error}")),
            Err(error) => Err(format!("making the cluster panicked: {error}")),
        }
    }
}
