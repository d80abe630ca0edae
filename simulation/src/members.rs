//! [`Members`]: an operator who changes who belongs to the cluster, the way the binary's commands do.
//!
//! - A new machine **joins**: its node is started with an empty disk and calls
//!   [`Node::join`](dogsled_replication::Node::join), again and again until it has its share.
//! - A member **leaves**: some node is asked to remove it; once what it held has moved away, the machine
//!   goes.
//! - A machine is **wiped**: it loses its disk. For a while its node is started all the same, under its
//!   old id, as a careless operator would: it must belong to no cluster, so it cannot vote or
//!   acknowledge as the one whose memory it has lost. Then a new machine joins under a new id, and the
//!   old one is taken out.
//!
//! One change is made at a time, through whatever else happens to the cluster; what does not get
//! through is asked for again.

use std::collections::VecDeque;
use std::time::Duration;

use dogsled_replication::{ClientReply, ClientRequest, NodeId};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::{Cluster, Death, Running, addresses};
use crate::random::Random;
use crate::trace::event;

/// An operator waits so long for an answer, then asks again.
const ANSWER: Duration = Duration::from_secs(10);
/// The most machines of a cluster.
const MOST: usize = 6;

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The machine has an empty disk, and still starts under its old id.
    Impostor { node: NodeId, until: Instant },
    /// A new machine is to become a member.
    Join { node: NodeId },
    /// A member is to be taken out.
    Remove { node: NodeId },
}

/// See the [module](self).
pub struct Members {
    random: Random,
    steps: VecDeque<Step>,
    /// Whether the step is done.
    asking: Option<JoinHandle<bool>>,
    newest: u64,
}

impl Members {
    /// Nobody changes anything yet.
    pub fn new(random: Random) -> Members {
        Members { random, steps: VecDeque::new(), asking: None, newest: 0 }
    }

    /// Whether a change is under way.
    pub fn busy(&self) -> bool {
        !self.steps.is_empty()
    }

    fn next_id(&mut self, cluster: &Cluster) -> NodeId {
        let newest = cluster.ids().into_iter().map(|id| id.0).max().unwrap_or(0).max(self.newest);
        self.newest = newest + 1;
        NodeId(self.newest)
    }

    /// A machine more, if there are not too many.
    pub fn join(&mut self, cluster: &Cluster) {
        if !self.busy() && cluster.machines.len() < MOST {
            let node = self.next_id(cluster);
            self.steps.push_back(Step::Join { node });
        }
    }

    /// A member less, if enough are left to lose another.
    pub fn leave(&mut self, cluster: &Cluster, node: NodeId) {
        if !self.busy() && cluster.machines.len() > 3 {
            self.steps.push_back(Step::Remove { node });
        }
    }

    /// A machine loses its disk, and another comes for it.
    pub async fn wipe(&mut self, cluster: &mut Cluster, node: NodeId) {
        if self.busy() {
            return;
        }
        cluster.end(node, Death::PowerCut).await;
        let seed = self.random.number();
        cluster.wipe(node, seed);
        let new = self.next_id(cluster);
        let until = Instant::now() + Duration::from_millis(self.random.between(0, 3_000));
        self.steps.extend([Step::Impostor { node, until }, Step::Join { node: new }, Step::Remove { node }]);
    }

    /// Goes on, as far as it can by now.
    ///
    /// # Errors
    /// What must not be.
    pub async fn step(&mut self, cluster: &mut Cluster) -> Result<(), String> {
        let Some(step) = self.steps.front().copied() else { return Ok(()) };
        if let Step::Impostor { node, until } = step {
            return self.impostor(cluster, node, until).await;
        }
        let Some(asking) = self.asking.take() else { return self.ask(cluster, step).await };
        if !asking.is_finished() {
            self.asking = Some(asking);
            return Ok(());
        }
        // A process that was killed meanwhile has done nothing.
        if matches!(asking.await, Ok(true)) {
            event!(cluster.trace, "members: done: {}", describe(step));
            self.steps.pop_front();
            if let Step::Remove { node } = step {
                cluster.end(node, Death::Shutdown).await;
                cluster.machines.remove(&node);
            }
        } else if let [Step::Join { .. }, Step::Remove { .. }] | [Step::Remove { .. }, Step::Join { .. }] =
            [step, self.steps.get(1).copied().unwrap_or(step)]
        {
            // Whoever joins may have to wait until the one who has lost its disk is out, as nothing moves while too few
            // that are good would be left: an operator who sees that asks for the other.
            self.steps.swap(0, 1);
        }
        Ok(())
    }

    async fn impostor(&mut self, cluster: &mut Cluster, node: NodeId, until: Instant) -> Result<(), String> {
        if let Some(running) = &cluster.machines[&node].running {
            let status = running.node.status();
            if status.cluster != 0 || !status.groups.is_empty() {
                return Err(format!("node {node} has lost its disk and takes part all the same: {status:?}"));
            }
        } else if Instant::now() < until {
            // What was done to its disk may prevent it.
            let _ = cluster.start(node).await;
        }
        if Instant::now() >= until {
            cluster.end(node, Death::PowerCut).await;
            cluster.machines.remove(&node);
            self.steps.pop_front();
        }
        Ok(())
    }

    async fn ask(&mut self, cluster: &mut Cluster, step: Step) -> Result<(), String> {
        let others = |node: NodeId| -> Vec<NodeId> {
            cluster.ids().into_iter().filter(|other| *other != node).collect()
        };
        match step {
            Step::Join { node } => {
                let mut seeds = others(node);
                self.random.shuffle(&mut seeds);
                if !cluster.machines.contains_key(&node) {
                    let seed = self.random.number();
                    cluster.add(node, seed);
                    cluster.start(node).await.map_err(|error| format!("new node {node}: {error}"))?;
                }
                // If it is down, it will be started again.
                let Some(Running { node: joining, process }) = cluster.machines[&node].running.clone() else {
                    return Ok(());
                };
                event!(cluster.trace, "members: {}", describe(step));
                let seeds: Vec<_> = seeds.into_iter().map(|seed| (seed, addresses(seed))).collect();
                let trace = cluster.trace.clone();
                self.asking = Some(process.spawn(async move {
                    let joined = tokio::time::timeout(ANSWER, joining.join(seeds)).await;
                    event!(trace, "node {node} joins: {joined:?}");
                    matches!(joined, Ok(Ok(())))
                }));
            }
            Step::Remove { node } => {
                let asked = *self.random.pick(&others(node));
                event!(cluster.trace, "members: {} by way of node {asked}", describe(step));
                let request = ClientRequest::RemoveMember { node }.encode();
                let (network, trace) = (cluster.network.clone(), cluster.trace.clone());
                self.asking = Some(tokio::spawn(async move {
                    let reply = network.ask(0, asked, request, ANSWER).await;
                    let reply = reply.map(ClientReply::decode);
                    event!(trace, "node {node} leaves: {reply:?}");
                    // Nobody who asks again at once may do so without end within one instant.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    matches!(reply, Ok(Ok(ClientReply::Done)))
                }));
            }
            Step::Impostor { .. } => {}
        }
        Ok(())
    }
}

fn describe(step: Step) -> String {
    match step {
        Step::Impostor { node, .. } => format!("node {node} has an empty disk"),
        Step::Join { node } => format!("node {node} joins"),
        Step::Remove { node } => format!("node {node} leaves"),
    }
}
