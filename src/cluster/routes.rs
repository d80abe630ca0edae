//! The router: keeps the map of who leads what, as the cluster changes.
//!
//! Nodes pass on what another leads, so a map that is old costs a hop and no error; and no answer
//! says that it came that way. So the map is asked for again: every second while the client is used
//! (every ten while it is not), from any node; and at once when a call waits too long or fails, from all nodes. Of different
//! answers the more frequent counts: a node that was cut off may believe for a while what it knew
//! before. And whoever answers a call that was made with the map of an old epoch sends the new one along.

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dogsled_replication::{ClientReply, ClientRequest, ClusterMap, NodeId, TransportError};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::time::{sleep, timeout};

use super::core::{Core, Reach};
use super::pool::Pool;

/// How often a client that is used asks for the map.
const EVERY: Duration = Duration::from_secs(1);
/// And one that is not, every so many times of that: the members that it knows may all leave.
const IDLE: u32 = 10;
/// How long the answers of all nodes are waited for.
const ROUND: Duration = Duration::from_millis(400);
/// The least between two rounds.
const PAUSE: Duration = Duration::from_millis(40);

/// Runs until the client is closed.
pub(super) async fn run(core: Weak<Core>) {
    let mut seconds_idle = 0;
    loop {
        let Some(strong) = core.upgrade().filter(|core| !core.is_closed()) else { return };
        let Reach::Network(pool) = &strong.reach else { return };
        let urgent = tokio::select! {
            () = strong.ask.notified() => true,
            () = sleep(EVERY) => false,
        };
        seconds_idle += 1;
        if !urgent && !strong.used.swap(false, Ordering::Relaxed) && seconds_idle < IDLE {
            continue;
        }
        seconds_idle = 0;
        let found = if urgent { ask_all(&strong, pool).await } else { ask_one(&strong, pool).await };
        if let Some(map) = found {
            adopt(&strong, pool, map);
        }
        drop(strong);
        sleep(PAUSE).await;
    }
}

/// The first map: fails if no node can be reached. One that accepts a connection and does not answer at once may only be
/// busy: it is asked again.
pub(super) async fn first(core: &Core, pool: &Pool) -> Result<(), TransportError> {
    const ATTEMPTS: usize = 3;
    let mut silent = None;
    for _ in 0..ATTEMPTS {
        let node = pool.any().await?;
        if let Some(map) = ask(pool, node, ROUND * 10).await {
            adopt(core, pool, map);
            return Ok(());
        }
        silent = Some(node);
    }
    let node = silent.expect("it was asked");
    Err(TransportError::Unreachable(format!("node {node} accepted the connection and then did not answer")))
}

async fn ask(pool: &Pool, node: NodeId, limit: Duration) -> Option<ClusterMap> {
    let asked = async {
        let connection = pool.connection(node).await.ok()?;
        connection.request(ClientRequest::Map.encode(), limit).await.ok()
    };
    match ClientReply::decode(timeout(limit, asked).await.ok()??) {
        Ok(ClientReply::Map(map)) => Some(map),
        _ => None,
    }
}

async fn ask_one(core: &Core, pool: &Pool) -> Option<ClusterMap> {
    let connected = pool.connected();
    match connected.first() {
        // The others in turn: what one of them believes is not to be all that is known.
        Some(_) => ask(pool, connected[core.next_turn() % connected.len()], ROUND).await,
        None => ask_all(core, pool).await,
    }
}

async fn ask_all(core: &Core, pool: &Pool) -> Option<ClusterMap> {
    let mut nodes: Vec<NodeId> = core.map.borrow().members.iter().map(|(node, _)| *node).collect();
    let members = nodes.len();
    nodes.extend(pool.connected().into_iter().filter(|node| !nodes.contains(node)).collect::<Vec<_>>());
    let mut maps = Vec::new();
    {
        let mut asked: FuturesUnordered<_> = nodes.iter().map(|node| ask(pool, *node, ROUND)).collect();
        while let Some(map) = asked.next().await {
            maps.extend(map.filter(|map| map.partitions > 0));
            // Those who do not answer are why this is asked.
            if maps.len() > members / 2 && members > 0 {
                break;
            }
        }
    }
    if maps.is_empty() {
        // Under the addresses that the cluster has, nobody: those that the client was given.
        let node = pool.any().await.ok()?;
        maps.extend(ask(pool, node, ROUND).await);
    }
    merge(maps, |node| pool.is_suspected(node))
}

/// Of each group the leader that most name; of two that are named as often, one that is not suspected.
fn merge(maps: Vec<ClusterMap>, is_suspected: impl Fn(NodeId) -> bool) -> Option<ClusterMap> {
    // Members that most agree upon: one that has left believes for ever what it knew then.
    let alike = |of: &&ClusterMap| maps.iter().filter(|map| map.members == of.members).count();
    let mut merged = maps.iter().max_by_key(|map| (map.epoch, alike(map)))?.clone();
    for (group, leader) in merged.leaders.iter_mut().enumerate() {
        let mut votes: HashMap<NodeId, usize> = HashMap::new();
        for named in maps.iter().filter_map(|map| map.leaders.get(group).copied().flatten()) {
            *votes.entry(named).or_default() += 1;
        }
        let most = votes.into_iter().max_by_key(|(node, votes)| (*votes, !is_suspected(*node)));
        *leader = most.map(|(node, _)| node);
    }
    Some(merged)
}

/// From now on the client goes by this map, unless there is reason to doubt it.
pub(super) fn adopt(core: &Core, pool: &Pool, found: ClusterMap) {
    let known = Arc::clone(&core.map.borrow());
    // A node that was taken out, or is being opened, knows nothing of the others any more, or yet.
    if known.partitions > 0 && (found.partitions == 0 || found.members.is_empty()) {
        return;
    }
    if known.cluster != 0 && found.cluster != known.cluster {
        tracing::error!(
            expected = format_args!("{:032x}", known.cluster),
            found = format_args!("{:032x}", found.cluster),
            "a node answers for another cluster, and is not listened to"
        );
        return;
    }
    for (node, addresses) in &found.members {
        pool.set_addresses(*node, addresses);
    }
    if !found.members.is_empty() {
        pool.retain(&found.members.iter().map(|(node, _)| *node).collect::<Vec<_>>());
    }
    core.map.send_if_modified(|map| {
        // An answer that was on its way for long is no news.
        if found.epoch < map.epoch {
            return false;
        }
        let mut found = found;
        keep_leaders(map, &mut found);
        let changed = **map != found;
        if changed {
            *map = Arc::new(found);
        }
        changed
    });
}

/// A node tells only of groups that it has; of the others counts what was known, as long as who led
/// may still have the group.
fn keep_leaders(known: &ClusterMap, found: &mut ClusterMap) {
    for group in 0..found.leaders.len() {
        let before = known.leaders.get(group).copied().flatten();
        let may_lead = before.filter(|node| found.replicas_of(group as u32).contains(node));
        let leader = &mut found.leaders[group];
        *leader = leader.or(may_lead);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(leaders: &[u64]) -> ClusterMap {
        let leaders = leaders.iter().map(|leader| Some(NodeId(*leader)).filter(|node| node.0 > 0)).collect();
        ClusterMap { cluster: 7, partitions: 1, leaders, ..ClusterMap::default() }
    }

    #[test]
    fn a_node_that_has_not_all_groups_takes_no_leader_away() {
        let known = map(&[1, 2, 3]);
        let mut found = map(&[1, 0, 0]);
        found.replicas = [vec![1], vec![2, 4], vec![4, 5]]
            .map(|nodes: Vec<u64>| nodes.into_iter().map(NodeId).collect())
            .into();
        keep_leaders(&known, &mut found);
        assert_eq!(found.leaders, [Some(NodeId(1)), Some(NodeId(2)), None], "node 3 has left the group");
    }

    #[test]
    fn a_node_that_was_left_behind_is_outvoted() {
        let maps = vec![map(&[1, 1]), map(&[2, 0]), map(&[2, 3])];
        let merged = merge(maps, |node| node == NodeId(1)).unwrap();
        assert_eq!(merged.leaders, [Some(NodeId(2)), Some(NodeId(3))]);
        assert_eq!(merge(Vec::new(), |_| false), None);
    }
}
