//! What is done to a cluster: which faults a run has at all is drawn from its seed (so that some runs
//! know only cuts, and some everything at once), and then which comes when.

use std::time::Duration;

use dogsled_replication::{Change, ClientReply, ClientRequest, NodeId};
use dogsled_storage::disk::{Fault, Operation};
use tokio::time::Instant;

use crate::cluster::{Cluster, Death};
use crate::figure8::{Figure8, Next};
use crate::members::Members;
use crate::network::Quality;
use crate::random::Random;
use crate::trace::event;

/// Kinds of faults.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// One node alone, both ways.
    Isolate,
    /// Two halves that do not hear each other.
    Split,
    /// Some way, in one direction.
    OneWay,
    /// Two halves that know of each other only through one node.
    Bridge,
    /// Some ways become slow.
    Slow,
    /// The whole network loses, delays and doubles.
    Lossy,
    /// A machine loses power.
    PowerCut,
    /// All machines do, at once.
    Blackout,
    /// A node is killed, the machine goes on.
    Kill,
    /// A machine loses power amid a write or a sync of some number.
    CrashInWrite,
    /// A node is told to stop.
    Shutdown,
    /// A process is stopped, and goes on later.
    Pause,
    /// A clock is set to another time.
    ClockJump,
    /// One write or sync of a disk fails.
    DiskError,
    /// A disk is full for a while.
    DiskFull,
    /// Leadership is asked to go elsewhere.
    Transfer,
    /// Leaders change amid their work so that an old entry is on a quorum and overwritten all the same.
    Figure8,
    /// A new machine becomes a member.
    Join,
    /// A member is taken out.
    Leave,
    /// A machine loses its disk, and comes back as a new member.
    Wipe,
    /// A member is to hold nothing for a while.
    Drain,
}

/// What most runs are about.
const USUAL: [Kind; 16] = [
    Kind::Isolate,
    Kind::Split,
    Kind::OneWay,
    Kind::Bridge,
    Kind::Slow,
    Kind::Lossy,
    Kind::PowerCut,
    Kind::Blackout,
    Kind::Kill,
    Kind::CrashInWrite,
    Kind::Shutdown,
    Kind::Pause,
    Kind::ClockJump,
    Kind::DiskError,
    Kind::DiskFull,
    Kind::Transfer,
];

/// What comes on top, in so many of a thousand runs. Drawn apart, so that a kind more does not change
/// what the other runs are.
const EXTRA: [(Kind, u64); 5] =
    [(Kind::Figure8, 250), (Kind::Join, 150), (Kind::Leave, 150), (Kind::Wipe, 150), (Kind::Drain, 200)];

/// Brings faults, and ends them.
pub struct Faults {
    random: Random,
    kinds: Vec<Kind>,
    next: Instant,
    gap_ms: (u64, u64),
    /// When cuts and slow ways are mended.
    mend_at: Option<Instant>,
    /// When the network is good again.
    good_at: Option<Instant>,
    /// When nodes that are down are started, paused ones go on.
    due: Vec<(Instant, NodeId)>,
    /// Disks that are full, and until when.
    full: Vec<(Instant, NodeId)>,
    /// While it goes on, nothing else begins.
    figure8: Option<Figure8>,
    members: Members,
    /// The network's usual quality in this run.
    usual: Quality,
}

impl std::str::FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> Result<Kind, String> {
        let all: Vec<Kind> = USUAL.into_iter().chain(EXTRA.map(|(kind, _)| kind)).collect();
        let found = all.iter().find(|kind| format!("{kind:?}").eq_ignore_ascii_case(name));
        found.copied().ok_or_else(|| format!("there is no such fault; there are {all:?}"))
    }
}

impl Faults {
    /// Draws which faults there will be; `only` these, if there are any.
    pub fn new(seed: u64, only: &[Kind]) -> Faults {
        let mut random = Random::new(seed, 2);
        let mut kinds: Vec<Kind> = USUAL.to_vec();
        random.shuffle(&mut kinds);
        kinds.truncate(random.between(1, 8) as usize);
        let mut extra = Random::new(seed, 4);
        kinds.extend(EXTRA.iter().filter(|(_, per_mille)| extra.chance(*per_mille)).map(|(kind, _)| *kind));
        if !only.is_empty() {
            kinds = only.to_vec();
        }
        let gap_ms = *random.pick(&[(50, 800), (200, 2_000), (1_000, 4_000)]);
        let usual = match random.below(4) {
            0 => Quality { delay_us: (0, 20_000), ..Quality::GOOD },
            1 => Quality { requests_lost: 10, replies_lost: 10, doubled: 20, ..Quality::GOOD },
            _ => Quality::GOOD,
        };
        let next = Instant::now() + Duration::from_millis(random.between(gap_ms.0, gap_ms.1));
        Faults {
            random,
            kinds,
            next,
            gap_ms,
            mend_at: None,
            good_at: None,
            due: Vec::new(),
            full: Vec::new(),
            figure8: None,
            members: Members::new(Random::new(seed, 5)),
            usual,
        }
    }

    /// The faults of this run.
    pub fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// The network's usual quality in this run.
    pub fn usual(&self) -> Quality {
        self.usual
    }

    /// Does what is due by now.
    ///
    /// # Errors
    /// A node that does not start again although its disk is sound.
    pub async fn step(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        let now = Instant::now();
        self.tend(cluster, now).await?;
        if self.figure8.is_some() || now < self.next {
            return Ok(());
        }
        self.next = now + Duration::from_millis(self.random.between(self.gap_ms.0, self.gap_ms.1));
        let kind = *self.random.pick(&self.kinds);
        self.bring(cluster, kind, now).await;
        Ok(())
    }

    /// Ends what has lasted long enough, and restarts what has died.
    async fn tend(&mut self, cluster: &mut Cluster, now: Instant) -> Result<(), String> {
        if self.mend_at.is_some_and(|at| at <= now) {
            self.mend_at = None;
            event!(cluster.trace, "the network is mended");
            cluster.network.mend();
        }
        if self.good_at.is_some_and(|at| at <= now) {
            self.good_at = None;
            event!(cluster.trace, "the network is as usual");
            cluster.network.set_quality(self.usual);
        }
        let full: Vec<NodeId> = self.full.iter().filter(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        self.full.retain(|(at, _)| *at > now);
        for id in full {
            let Some(machine) = cluster.machines.get(&id) else { continue };
            event!(cluster.trace, "node {id}'s disk has room again");
            machine.disk.set_capacity(None);
        }
        for id in cluster.ids() {
            let machine = &cluster.machines[&id];
            let failed = machine.disk.crashed()
                || machine.running.as_ref().is_some_and(|running| running.node.status().failure.is_some());
            if machine.running.is_some() && failed {
                // The machine is off, or the node has given up on its WAL and waits for an operator.
                let death = if machine.disk.crashed() || self.random.chance(500) {
                    Death::PowerCut
                } else {
                    Death::Kill
                };
                cluster.end(id, death).await;
                let down = self.random.between(1, 2_000);
                self.due.push((now + Duration::from_millis(down), id));
            }
        }
        let due: Vec<NodeId> = self.due.iter().filter(|(at, _)| *at <= now).map(|(_, id)| *id).collect();
        self.due.retain(|(at, _)| *at > now);
        for id in due {
            // It may have left for good.
            let Some(machine) = cluster.machines.get(&id) else { continue };
            if machine.paused {
                cluster.resume(id);
            } else if machine.running.is_none() && !self.start(cluster, id).await? {
                self.due.push((now + Duration::from_millis(500), id));
            }
        }
        self.go_on(cluster).await?;
        self.members.step(cluster).await
    }

    /// What goes on by steps.
    async fn go_on(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        let Some(mut figure8) = self.figure8.take() else { return Ok(()) };
        let next = figure8.step(cluster).await;
        let (node, over) = match next {
            Next::Wait => (None, false),
            Next::Start(node) => (Some(node), false),
            Next::Over(node) => (Some(node), true),
        };
        if !over {
            self.figure8 = Some(figure8);
        }
        if let Some(node) = node
            && cluster.machines.get(&node).is_some_and(|machine| machine.running.is_none())
            && !self.due.iter().any(|(_, due)| *due == node)
            && !self.start(cluster, node).await?
        {
            self.due.push((Instant::now() + Duration::from_millis(500), node));
        }
        Ok(())
    }

    /// Starts a node; `false` if something that was done to its disk prevents it.
    async fn start(&mut self, cluster: &mut Cluster, id: NodeId) -> Result<bool, String> {
        let disturbed = self.full.iter().any(|(_, full)| *full == id);
        let Err(error) = cluster.start(id).await else { return Ok(true) };
        if disturbed || cluster.machines[&id].disk.crashed() {
            cluster.end(id, Death::PowerCut).await;
            return Ok(false);
        }
        Err(format!("node {id} does not start again: {error}"))
    }

    fn some_node(&mut self, cluster: &Cluster) -> Option<NodeId> {
        let running: Vec<NodeId> = cluster.nodes().map(|(id, _)| id).collect();
        if running.is_empty() {
            return None;
        }
        // Leaders are where it hurts.
        let leader = cluster.nodes().find_map(|(_, node)| node.leader(self.random.below(3) as u32));
        match leader.filter(|leader| running.contains(leader)) {
            Some(leader) if self.random.chance(500) => Some(leader),
            _ => Some(*self.random.pick(&running)),
        }
    }

    async fn bring(&mut self, cluster: &mut Cluster, kind: Kind, now: Instant) {
        let Some(node) = self.some_node(cluster) else { return };
        let random = &mut self.random;
        let later = |random: &mut Random, least: u64, most: u64| {
            now + Duration::from_millis(random.between(least, most))
        };
        event!(cluster.trace, "fault {kind:?} at node {node}");
        let mut ids = cluster.ids();
        random.shuffle(&mut ids);
        let half = ids.len() / 2;
        match kind {
            Kind::Isolate | Kind::Split | Kind::OneWay | Kind::Bridge => {
                for (from, to) in pairs(&ids) {
                    let side = |id: NodeId| ids.iter().position(|other| *other == id).unwrap_or(0) < half;
                    let cut = match kind {
                        Kind::Isolate => from == node || to == node,
                        Kind::Split => side(from) != side(to),
                        Kind::OneWay => from == node && (to == ids[0] || random.chance(300)),
                        // The last of them hears both halves.
                        _ => side(from) != side(to) && from != ids[ids.len() - 1] && to != ids[ids.len() - 1],
                    };
                    if cut && from != to {
                        cluster.network.cut(from, to);
                    }
                }
                self.mend_at = Some(later(random, 100, 5_000));
            }
            Kind::Slow => {
                for (from, to) in pairs(&ids) {
                    if random.chance(400) {
                        cluster.network.slow_down(from, to, random.between(1_000, 400_000));
                    }
                }
                self.mend_at = Some(later(random, 100, 5_000));
            }
            Kind::Lossy => {
                cluster.network.set_quality(Quality {
                    delay_us: (0, random.between(1_000, 100_000)),
                    requests_lost: random.between(0, 300),
                    replies_lost: random.between(0, 300),
                    doubled: random.between(0, 300),
                });
                self.good_at = Some(later(random, 100, 4_000));
            }
            Kind::PowerCut | Kind::Kill | Kind::Shutdown => {
                let death = match kind {
                    Kind::PowerCut => Death::PowerCut,
                    Kind::Kill => Death::Kill,
                    _ => Death::Shutdown,
                };
                let back = later(random, 1, 3_000);
                cluster.end(node, death).await;
                self.due.push((back, node));
            }
            Kind::Blackout => {
                for id in ids {
                    let back = later(random, 1, 2_000);
                    cluster.end(id, Death::PowerCut).await;
                    self.due.push((back, id));
                }
            }
            Kind::CrashInWrite => {
                let disk = &cluster.machines[&node].disk;
                disk.crash_at_change(disk.changes() + random.between(1, 60));
            }
            Kind::Pause => {
                let back = later(random, 20, 3_000);
                cluster.pause(node);
                self.due.push((back, node));
            }
            Kind::ClockJump => {
                let by = random.between(0, 7_200_000) as i64 - 3_600_000;
                let by = if random.chance(500) { by / 1_000 } else { by };
                event!(cluster.trace, "by {by} ms");
                cluster.machines[&node].clock.jump(by);
            }
            Kind::DiskError => {
                let operation = *random.pick(&[Operation::Write, Operation::Sync, Operation::WriteSynced]);
                let after = random.below(20);
                cluster.machines[&node].disk.inject(Fault {
                    operation: Some(operation),
                    after,
                    from_then_on: false,
                });
            }
            Kind::DiskFull => {
                let disk = &cluster.machines[&node].disk;
                disk.set_capacity(Some(disk.used() + random.between(0, 64 << 10)));
                self.full.push((later(random, 100, 4_000), node));
            }
            Kind::Transfer => {
                let group = random.below(u64::from(cluster.setup.partitions) + 1) as u32;
                let to = *random.pick(&ids);
                let request = ClientRequest::TransferLeader { group, to };
                let deadline = Duration::from_secs(1);
                ask(cluster, node, request, deadline, "transfers");
            }
            Kind::Figure8 => {
                let group = random.between(1, u64::from(cluster.setup.partitions)) as u32;
                let gather = Duration::from_millis(random.between(50, 400));
                self.figure8 = Figure8::begin(cluster, group, gather);
            }
            Kind::Join => self.members.join(cluster),
            Kind::Leave => self.members.leave(cluster, node),
            Kind::Wipe => self.members.wipe(cluster, node).await,
            Kind::Drain => {
                // Refused if too few would be left; heard by nobody if the meta group has no leader.
                let change = Change::Drain { node, on: random.chance(600) };
                let request = ClientRequest::Change { epoch: 0, wait: false, change };
                ask(cluster, ids[0], request, Duration::from_secs(2), "drains");
            }
        }
    }

    /// Whether somebody is still joining or leaving.
    pub fn members_change(&self) -> bool {
        self.members.busy()
    }

    /// Goes on with what was begun of joining and leaving, when all faults have ended.
    ///
    /// # Errors
    /// What must not be.
    pub async fn change_members(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        self.members.step(cluster).await
    }

    /// Ends all faults: everything runs, hears each other and has room.
    ///
    /// # Errors
    /// A node that does not start.
    pub async fn end(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        event!(cluster.trace, "the faults end");
        if let Some(figure8) = self.figure8.take() {
            figure8.over(cluster);
        }
        cluster.network.mend();
        cluster.network.set_quality(Quality::GOOD);
        for machine in cluster.machines.values() {
            machine.disk.clear_faults();
            machine.disk.set_capacity(None);
            // If the write that it was to crash in has not come, it will not.
            machine.disk.crash_at_change(u64::MAX);
        }
        self.full.clear();
        for id in cluster.ids() {
            cluster.resume(id);
            let machine = &cluster.machines[&id];
            let failed =
                machine.running.as_ref().is_none_or(|running| running.node.status().failure.is_some());
            if failed || machine.disk.crashed() {
                cluster.end(id, Death::PowerCut).await;
                cluster
                    .start(id)
                    .await
                    .map_err(|error| format!("node {id} does not start again: {error}"))?;
            }
        }
        Ok(())
    }
}

/// Asks a node for something, and counts whether that was accepted.
fn ask(cluster: &Cluster, node: NodeId, request: ClientRequest, deadline: Duration, what: &'static str) {
    let (network, trace) = (cluster.network.clone(), cluster.trace.clone());
    tokio::spawn(async move {
        let answer = network.ask(0, node, request.encode(), deadline).await;
        if let Ok(Ok(reply)) = answer.map(ClientReply::decode)
            && !matches!(reply, ClientReply::Error(_))
        {
            trace.count(what, 1);
        }
    });
}

fn pairs(ids: &[NodeId]) -> Vec<(NodeId, NodeId)> {
    let all = ids.iter().flat_map(|from| ids.iter().map(move |to| (*from, *to)));
    all.filter(|(from, to)| from != to).collect()
}
