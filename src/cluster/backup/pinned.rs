//! [`PinnedCluster`]: the states of all partitions at one moment, held by their nodes while they are copied.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dogsled_replication::pin::{PinnedPage, PinnedRead, PinnedState};
use dogsled_replication::{ClientReply, ClientRequest, NodeId};
use dogsled_storage::transaction::Prepare;
use dogsled_storage::{Answer, Operation, Part, TransactionId, Vote};
use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};

use crate::cluster::core::unexpected;
use crate::cluster::transaction::ReadLocks;
use crate::cluster::{Client, Error, Result};

/// How long writers are kept off at most, if this client dies amid it.
const LOCK_LEASE: Duration = Duration::from_secs(10);
/// How long what is pinned outlives this client.
const PIN_LEASE: Duration = Duration::from_secs(60);
/// How often the moment is tried to be pinned.
const ATTEMPTS: u32 = 5;
/// How often a page is asked for.
const READS: u32 = 8;

pub(super) struct PinnedCluster {
    client: Client,
    pub(super) under: TransactionId,
    pub(super) states: BTreeMap<u32, PinnedState>,
    /// What is not read to its end yet.
    wanted: Arc<Mutex<BTreeMap<NodeId, Vec<u32>>>>,
    keeper: JoinHandle<()>,
    is_held: bool,
}

impl PinnedCluster {
    pub(super) async fn pin(client: &Client) -> Result<PinnedCluster> {
        let mut attempt = 0;
        loop {
            attempt += 1;
            match try_to_pin(client).await {
                Err(error @ (Error::Unavailable(_) | Error::Conflict(_))) if attempt < ATTEMPTS => {
                    tracing::debug!(%error, "a moment could not be pinned");
                    client.core().before_next_attempt(attempt).await;
                }
                Err(error) => return Err(error),
                Ok((under, states)) => {
                    let wanted = Arc::new(Mutex::new(by_node(&states)));
                    let keeper = keep(client.clone(), under, Arc::clone(&wanted));
                    let keeper = client.runtime().spawn(keeper);
                    return Ok(PinnedCluster {
                        client: client.clone(),
                        under,
                        states,
                        wanted,
                        keeper,
                        is_held: true,
                    });
                }
            }
        }
    }

    /// Which group's state is read, of whom.
    pub(super) async fn page(&self, group: u32, read: PinnedRead) -> Result<PinnedPage> {
        let node = self.states[&group].node;
        let request = ClientRequest::ReadPinned { node, group, under: self.under, read };
        let mut attempt = 0;
        loop {
            attempt += 1;
            let until = Instant::now() + Duration::from_secs(10);
            match self.client.core().ask_once(Some(node), &request, until).await {
                Ok(ClientReply::PinnedPage(page)) => return Ok(page),
                Ok(other) => return Err(unexpected(&other)),
                Err(Error::Unavailable(_) | Error::OutcomeUnknown(_)) if attempt < READS => {
                    self.client.core().before_next_attempt(attempt).await;
                }
                Err(Error::OutcomeUnknown(why)) => return Err(Error::Unavailable(why)),
                Err(error) => return Err(error),
            }
        }
    }

    /// No more is read of a group: its node need not hold it any longer.
    pub(super) fn done_with(&self, group: u32) {
        let node = self.states[&group].node;
        {
            let mut wanted = self.wanted.lock();
            let of_node = wanted.entry(node).or_default();
            of_node.retain(|other| *other != group);
            if of_node.is_empty() {
                wanted.remove(&node);
            }
        }
        let (client, under) = (self.client.clone(), self.under);
        let nodes = BTreeMap::from([(node, vec![group])]);
        self.client.runtime().spawn(async move { tell(&client, under, false, &nodes).await });
    }

    /// Has it let go. Better than to drop it where there is time: whoever ends now may not be heard.
    pub(super) async fn let_go(&mut self) {
        self.keeper.abort();
        tell(&self.client, self.under, false, &by_node(&self.states)).await;
        self.is_held = false;
    }
}

impl Drop for PinnedCluster {
    fn drop(&mut self) {
        self.keeper.abort();
        if !self.is_held {
            return;
        }
        let (client, under) = (self.client.clone(), self.under);
        let nodes = by_node(&self.states);
        self.client.runtime().spawn(async move { tell(&client, under, false, &nodes).await });
    }
}

fn by_node(states: &BTreeMap<u32, PinnedState>) -> BTreeMap<NodeId, Vec<u32>> {
    let mut nodes: BTreeMap<NodeId, Vec<u32>> = BTreeMap::new();
    for (group, state) in states {
        nodes.entry(state.node).or_default().push(*group);
    }
    nodes
}

/// Those that are not read yet are wanted, too.
async fn keep(client: Client, under: TransactionId, wanted: Arc<Mutex<BTreeMap<NodeId, Vec<u32>>>>) {
    loop {
        sleep(PIN_LEASE / 4).await;
        let nodes = wanted.lock().clone();
        tell(&client, under, true, &nodes).await;
    }
}

/// If a node does not hear it, whoever reads is told.
async fn tell(client: &Client, under: TransactionId, keep: bool, nodes: &BTreeMap<NodeId, Vec<u32>>) {
    let told = nodes.iter().map(|(node, groups)| async move {
        let request = ClientRequest::KeepPins { node: *node, under, keep, groups: groups.clone() };
        let until = Instant::now() + Duration::from_secs(5);
        let _ = client.core().ask_once(Some(*node), &request, until).await;
    });
    join_all(told).await;
}

async fn try_to_pin(client: &Client) -> Result<(TransactionId, BTreeMap<u32, PinnedState>)> {
    let (core, until) = (client.core(), Instant::now() + LOCK_LEASE);
    let groups: Vec<u32> = (1..=core.partitions(until).await?).collect();
    let (home, lease_ms) = (1, LOCK_LEASE.as_millis() as u64);
    let decide_by_ms = core.log_time_ms(home, until).await? + lease_ms;
    let under = core.fresh_transaction();
    let locks = ReadLocks::new(client, under, groups.clone());
    // A part that names nothing locks everything.
    let prepare =
        Prepare { transaction: under, home, decide_by_ms, lease_ms, only_lock: true, part: Part::default() };
    let prepares = groups
        .iter()
        .map(|group| core.carry_out(*group, Vec::new(), Operation::Prepare(prepare.clone()), until));
    for locked in join_all(prepares).await {
        match locked.map(|reply| reply.result) {
            Ok(Ok(Answer::Vote(Vote::Yes))) => {}
            Ok(other) => return Err(unexpected(&other)),
            // It wanted to write nothing, so nothing is in doubt.
            Err(failed) => match failed.error {
                Error::OutcomeUnknown(why) => return Err(Error::Unavailable(why)),
                error => return Err(error),
            },
        }
    }
    // Only now: see `dogsled_storage::pin`.
    let pins = groups.iter().map(|group| async move {
        let pinned = core.pin(*group, under, PIN_LEASE, until).await?;
        Ok::<_, Error>((*group, pinned))
    });
    let mut states = BTreeMap::new();
    let mut failed = None;
    for pinned in join_all(pins).await {
        match pinned {
            Ok((group, state)) => drop(states.insert(group, state)),
            Err(error) => failed = Some(error),
        }
    }
    drop(locks);
    if let Some(error) = failed {
        tell(client, under, false, &by_node(&states)).await;
        return Err(error);
    }
    Ok((under, states))
}
