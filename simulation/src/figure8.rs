//! [`Figure8`]: the schedule of figure 8 of the Raft paper (Ongaro & Ousterhout, 2014, §5.4.2), played
//! out on purpose.
//!
//! A leader must not count replicas of an entry of an older term: such an entry can be on a quorum and
//! still be overwritten. Faults that come by chance hardly ever show it, because a new leader's first
//! entry travels with the old ones, and once that is on the quorum all is well. So this fault knows the
//! protocol: while it lasts, the network loses each append that brings an entry of its sender's own
//! term ([`SimulatedNetwork::starve`](crate::network::SimulatedNetwork::starve)), and carries
//! everything else.
//!
//! ```text
//! gather    the leader, a, writes on; nobody gets it.                a: x    b:      c:
//! depose    a is killed; another, b, is elected, and writes.         a: x    b: y    c:
//! restore   b is cut off, a comes back, is elected in a third term,
//!           and c gets what a wrote in the first.                    a: x    b: y    c: x
//! overturn  a is cut off, b comes back. Its last entry is of the
//!           second term, c's of the first: b is elected.             a: x    b: y    c: y
//! ```
//!
//! Whoever counted `x` as committed in the third step has applied what no later leader has.

use std::time::Duration;

use dogsled_replication::{GroupStatus, NodeId, Role};
use tokio::time::Instant;

use crate::cluster::{Cluster, Death};
use crate::trace::event;

/// How long each step may take; then the fault ends there.
const LIMIT: Duration = Duration::from_secs(4);
/// Time for acknowledgements to arrive.
const SETTLE: Duration = Duration::from_millis(150);

#[derive(Clone, Copy, Debug)]
enum Stage {
    Gather,
    Depose,
    /// Since when a quorum has what the first leader wrote.
    Restore {
        second: NodeId,
        spread: Option<Instant>,
    },
    /// Since when the second leads again.
    Overturn {
        second: NodeId,
        leads: Option<Instant>,
    },
}

impl Stage {
    fn name(self) -> &'static str {
        match self {
            Stage::Gather => "gather",
            Stage::Depose => "depose",
            Stage::Restore { spread: None, .. } => "restore",
            Stage::Restore { .. } => "restore, and a quorum has the old entries",
            Stage::Overturn { leads: None, .. } => "overturn",
            Stage::Overturn { .. } => "overturn, and the second leads",
        }
    }
}

/// See the [module](self).
#[derive(Debug)]
pub struct Figure8 {
    group: u32,
    first: NodeId,
    /// Of the last entry that the first leader wrote for itself.
    position: u64,
    stage: Stage,
    /// When the step may end, if it is one of time, and when it must.
    not_before: Instant,
    until: Instant,
}

/// What is to be done next.
pub enum Next {
    /// Nothing yet.
    Wait,
    /// The node is to be started.
    Start(NodeId),
    /// It is over; this node is to be started if it does not run.
    Over(NodeId),
}

fn status(cluster: &Cluster, node: NodeId, group: u32) -> Option<GroupStatus> {
    let running = cluster.machines.get(&node)?.running.as_ref()?;
    running.node.status().groups.into_iter().find(|status| status.group == group)
}

/// Who leads a group and knows it, in the latest term, but for one.
fn leader(cluster: &Cluster, group: u32, but: Option<NodeId>) -> Option<NodeId> {
    let led = |id: NodeId| {
        let status = status(cluster, id, group)?;
        (status.role == Role::Leader && status.leader == Some(id)).then_some((status.term, id))
    };
    let others = cluster.ids().into_iter().filter(|id| Some(*id) != but);
    others.filter_map(led).max().map(|(_, id)| id)
}

/// Cuts a node off from all others.
fn isolate(cluster: &Cluster, node: NodeId) {
    for other in cluster.ids().into_iter().filter(|other| *other != node) {
        cluster.network.cut(node, other);
        cluster.network.cut(other, node);
    }
}

impl Figure8 {
    /// Begins, if every machine runs and the group has a leader; the leader writes for itself for so
    /// long.
    pub fn begin(cluster: &Cluster, group: u32, gather: Duration) -> Option<Figure8> {
        if cluster.machines.values().any(|machine| machine.running.is_none() || machine.paused) {
            return None;
        }
        let first = leader(cluster, group, None)?;
        cluster.network.mend();
        cluster.network.starve(Some(group));
        event!(cluster.trace, "figure 8 of group {group}: node {first} writes for itself");
        let now = Instant::now();
        Some(Figure8 {
            group,
            first,
            position: 0,
            stage: Stage::Gather,
            not_before: now + gather,
            until: now + LIMIT,
        })
    }

    fn enter(&mut self, cluster: &Cluster, stage: Stage) {
        event!(cluster.trace, "figure 8 of group {}: {}", self.group, stage.name());
        if let Stage::Overturn { leads: Some(_), .. } = stage {
            cluster.trace.count("figure 8 played to its end", 1);
        }
        self.stage = stage;
        self.until = Instant::now() + LIMIT;
    }

    /// Goes on, as far as it can by now.
    pub async fn step(&mut self, cluster: &mut Cluster) -> Next {
        let now = Instant::now();
        if now > self.until {
            return self.over(cluster);
        }
        let (group, first) = (self.group, self.first);
        match self.stage {
            Stage::Gather => {
                let last = |id| status(cluster, id, group).map_or(0, |status| status.last);
                let others = cluster.ids().into_iter().filter(|id| *id != first).map(last).max();
                if now < self.not_before || last(first) <= others.unwrap_or(0) {
                    return Next::Wait;
                }
                self.position = last(first);
                // What it wrote stays: it is killed, the machine goes on. After the restart old entries
                // are read from the WAL and new ones from memory, never both for one message: so the
                // old ones travel alone.
                cluster.end(first, Death::Kill).await;
                self.enter(cluster, Stage::Depose);
                Next::Wait
            }
            Stage::Depose => {
                let Some(second) = leader(cluster, group, Some(first)) else { return Next::Wait };
                isolate(cluster, second);
                self.enter(cluster, Stage::Restore { second, spread: None });
                Next::Start(first)
            }
            Stage::Restore { second, spread: None } => {
                if leader(cluster, group, Some(second)) == Some(first) {
                    let has = |id: &NodeId| {
                        *id != second
                            && status(cluster, *id, group).is_some_and(|status| status.last >= self.position)
                    };
                    let ids = cluster.ids();
                    if ids.iter().filter(|id| has(id)).count() > ids.len() / 2 {
                        self.enter(cluster, Stage::Restore { second, spread: Some(now) });
                    }
                }
                Next::Wait
            }
            Stage::Restore { second, spread: Some(since) } => {
                if now >= since + SETTLE {
                    cluster.network.mend();
                    isolate(cluster, first);
                    cluster.network.starve(None);
                    self.enter(cluster, Stage::Overturn { second, leads: None });
                }
                Next::Wait
            }
            Stage::Overturn { second, leads: None } => {
                if leader(cluster, group, Some(first)) == Some(second) {
                    self.enter(cluster, Stage::Overturn { second, leads: Some(now) });
                }
                Next::Wait
            }
            Stage::Overturn { leads: Some(since), .. } => {
                if now >= since + SETTLE {
                    return self.over(cluster);
                }
                Next::Wait
            }
        }
    }

    /// Ends it, whatever it has come to.
    pub fn over(&self, cluster: &Cluster) -> Next {
        event!(cluster.trace, "figure 8 of group {} is over in: {}", self.group, self.stage.name());
        cluster.network.starve(None);
        cluster.network.mend();
        Next::Over(self.first)
    }
}
