//! [`Leases`]: no lock, lease or prepared key outlives its owner.
//!
//! What is to end by itself is ended by whoever leads its group, and that takes a time. So it is asked for by time:
//! whatever is due, by the log's time, in the replica of a leader that could see to it, is gone within [`BOUND`].
//! Due are
//!
//! - a session whose lease is over, if the leader has led for so long;
//! - a key of a session that is not open any more, and a lock or a place in line that it had;
//! - a key whose time to live is over;
//! - a lock that somebody waits for, if as many permits are free as he wants who is first in line;
//! - a part of a transaction that is prepared, and whose lease is over: its home is asked, and it is resolved.
//!
//! A lock that nobody waits for stays as it is when its lease has ended, and is free to whoever comes: see
//! [`holders`](crate::holders).
//!
//! **While faults go on** a group is looked at as long as it is *calm*: one node has led it in one term, unpaused, with
//! a sound disk, in touch with a majority, over a network without cuts. With every fault that calm begins anew.
//! **After the faults**, when all who own something have walked away, everything must be gone from all replicas:
//! see [`Leases::nothing_is_left`].

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use dogsled_replication::{GroupStatus, NodeId, Role};
use dogsled_storage::lock::decode_state;
use dogsled_storage::{GroupRead, GroupReadReply, IVec, OpenSession, Owned, Replica, SessionId, TreeId};
use tokio::time::Instant;

use crate::cluster::{Cluster, Machine};
use crate::owners::{EPHEMERAL, session_in};

/// What is due in a group that is calm is gone within this time: a node looks after itself once in a second or more
/// often, has to get an entry onto a majority of disks, and for a transaction into two groups.
pub const BOUND: Duration = Duration::from_secs(5);
/// A leader that has heard from a majority within this time is in touch.
const IN_TOUCH: Duration = Duration::from_millis(400);
/// What is said of each part of a transaction.
const PART: &str = "a part of transaction";
/// So many of each kind are looked at.
const LIMIT: usize = 10_000;

/// A group that one node has led for a while without any fault.
struct Calm {
    leader: (NodeId, u64, u64),
    /// When this was first seen.
    since: Instant,
    /// The latest stamp, and when it was first seen.
    latest: (u64, Instant),
    /// What is due, and since when.
    due: BTreeMap<String, Instant>,
}

/// See the [module](self).
#[derive(Default)]
pub struct Leases {
    calm: BTreeMap<u32, Calm>,
}

/// Something that is to end by itself.
struct Thing {
    what: String,
    /// Whether its end is due.
    is_due: bool,
    /// Whether its owner has given it so long a lease that nobody waits for its end here.
    is_long: bool,
}

impl Leases {
    /// Looks at all groups that are calm.
    ///
    /// # Errors
    /// What has outlived its owner, in words.
    pub fn look(&mut self, cluster: &Cluster) -> Result<(), String> {
        let mut seen = BTreeMap::new();
        for machine in cluster.machines.values().filter(|machine| can_work(machine)) {
            let Some(running) = &machine.running else { continue };
            for status in running.node.status().groups {
                if status.group > 0 && cluster.network.is_good_for(status.group) && leads(&status, machine.id)
                {
                    let leader = (machine.id, machine.starts, status.term);
                    if let Some(replica) = running.node.replica(status.group) {
                        seen.insert(status.group, (leader, replica));
                    }
                }
            }
        }
        self.calm.retain(|group, calm| seen.get(group).is_some_and(|(leader, _)| *leader == calm.leader));
        let all_calm = seen.len() == cluster.setup.partitions as usize;
        for (group, (leader, replica)) in seen {
            let (now, time_ms) = (Instant::now(), replica.time_ms());
            let calm = self.calm.entry(group).or_insert_with(|| Calm {
                leader,
                since: now,
                latest: (time_ms, now),
                due: BTreeMap::new(),
            });
            if time_ms > calm.latest.0 {
                calm.latest = (time_ms, now);
            }
            // A leader's time goes on as time does.
            let now_ms = calm.latest.0 + calm.latest.1.elapsed().as_millis() as u64;
            let things = things(&replica, now_ms, calm.since.elapsed(), all_calm);
            let things = things.map_err(|error| format!("group {group} of node {}: {error}", leader.0))?;
            let due: BTreeMap<String, Instant> = things
                .into_iter()
                .filter(|thing| thing.is_due)
                .map(|thing| (calm.due.get(&thing.what).copied().unwrap_or(now), thing))
                .map(|(since, thing)| (thing.what, since))
                .collect();
            // Parts of transactions are not looked at when some group is not calm.
            let is_looked_at = |what: &str| all_calm || !what.starts_with(PART);
            let gone = calm.due.keys().filter(|what| is_looked_at(what) && !due.contains_key(*what));
            cluster.trace.count("due and gone", gone.count() as u64);
            calm.due = due;
            if let Some((what, since)) = calm.due.iter().find(|(_, since)| since.elapsed() > BOUND) {
                return Err(format!(
                    "group {group}: {:?} after it was due, though node {} has led all that time: {what}",
                    since.elapsed(),
                    leader.0
                ));
            }
        }
        Ok(())
    }

    /// What there still is of what is to end by itself, in any replica, when all owners have walked away.
    ///
    /// # Errors
    /// That, in words.
    pub fn nothing_is_left(cluster: &Cluster) -> Result<(), String> {
        for (id, node) in cluster.nodes() {
            for group in 1..=cluster.setup.partitions {
                let Some(replica) = node.replica(group) else { continue };
                let things = things(&replica, replica.time_ms(), Duration::MAX, true)
                    .map_err(|error| error.to_string())?;
                let left: Vec<String> =
                    things.into_iter().filter(|thing| !thing.is_long).map(|thing| thing.what).collect();
                if !left.is_empty() {
                    return Err(format!("node {id}, group {group}: {left:?}"));
                }
            }
        }
        Ok(())
    }
}

fn can_work(machine: &Machine) -> bool {
    let has_failed = machine.running.as_ref().is_none_or(|running| running.node.status().failure.is_some());
    !machine.paused && !machine.disk.crashed() && !has_failed
}

/// Whether a node leads, and hears from a majority.
fn leads(status: &GroupStatus, id: NodeId) -> bool {
    let hears = |node: &NodeId| {
        let follower = status.followers.iter().find(|follower| follower.node == *node);
        let heard = follower.and_then(|follower| follower.heard);
        *node == id || heard.is_some_and(|heard| heard <= IN_TOUCH)
    };
    let majority = |config: &Vec<NodeId>| config.iter().filter(|node| hears(node)).count() > config.len() / 2;
    status.role == Role::Leader && status.leader == Some(id) && status.configs.iter().all(majority)
}

/// What there is that ends by itself, when the log's time is `now_ms`, and one node has led for so long.
fn things(
    replica: &Replica,
    now_ms: u64,
    led: Duration,
    with_transactions: bool,
) -> dogsled_storage::Result<Vec<Thing>> {
    let mut things = Vec::new();
    let mut add = |what: String, is_due: bool, is_long: bool| things.push(Thing { what, is_due, is_long });
    let sessions = open_sessions(replica)?;
    let longest_ms = crate::owners::LONGEST.as_millis() as u64;
    for session in &sessions {
        let id = session.session;
        let is_due = now_ms >= session.expires_ms && led.as_millis() >= u128::from(session.lease_ms);
        add(format!("session {id}, ends at {}", session.expires_ms), is_due, session.lease_ms > longest_ms);
        for owned in &session.owned.0 {
            if let Owned::Key { key, .. } = owned {
                add(format!("key {} of session {id}", text(key)), false, false);
            }
        }
    }
    let is_open = |id: SessionId| sessions.iter().any(|session| session.session == id);

    // As all replicas have it, with what is over and was not removed.
    let snapshot = replica.engine().snapshot().with_expired();
    if let Some(tree) = snapshot.tree_id(EPHEMERAL.as_bytes()) {
        for entry in snapshot.range(tree, Bound::Unbounded, Bound::Unbounded) {
            let (key, found) = entry?;
            if let Some(session) = session_in(&found.value).filter(|session| !is_open(*session)) {
                add(format!("key {} of session {session}, which has ended", text(&key)), true, false);
            }
        }
    }
    for found in snapshot.times_to_live() {
        let (_, key, at_ms) = found?;
        add(format!("key {}, over at {at_ms}", text(&key)), now_ms >= at_ms, false);
    }

    let (queues, _) = replica.locks(LIMIT, LIMIT)?;
    for entry in snapshot.range(TreeId::LOCKS, Bound::Unbounded, Bound::Unbounded) {
        let (name, stored) = entry?;
        let state = decode_state(&name, &stored)?;
        let lock = format!("lock {}", text(&name));
        for permit in &state.holders {
            if let Some(session) = permit.session {
                let what = format!("{lock} under token {} of session {session}", permit.token);
                add(what, !is_open(session), false);
            }
        }
        if state.waiting == 0 {
            continue;
        }
        let queue = queues.iter().find(|queue| queue.name == name);
        let first = queue.and_then(|queue| queue.waiters.first());
        let taken: u64 = state.live(now_ms).map(|permit| u64::from(permit.permits)).sum();
        let wanted = first.map_or(0, |first| u64::from(first.permits));
        let is_free = taken + wanted <= u64::from(state.capacity) && now_ms >= state.free_at_ms;
        let ticket = first.map_or(0, |first| first.ticket);
        add(
            format!("{lock}: {wanted} permits for ticket {ticket}, first of {}", state.waiting),
            is_free,
            false,
        );
    }
    if with_transactions {
        for part in replica.expired_transactions(u64::MAX, None, LIMIT) {
            let what = format!("{PART} {}, over at {}", part.transaction, part.expires_ms);
            add(what, now_ms >= part.expires_ms, false);
        }
    }
    Ok(things)
}

fn open_sessions(replica: &Replica) -> dogsled_storage::Result<Vec<OpenSession>> {
    let mut all: Vec<OpenSession> = Vec::new();
    loop {
        let read = GroupRead::Sessions { after: all.last().map(|last| last.session), limit: u32::MAX };
        let GroupReadReply::Sessions { sessions, more, .. } = replica.read(&read)? else {
            unreachable!("sessions were asked for");
        };
        all.extend(sessions);
        if !more {
            return Ok(all);
        }
    }
}

fn text(bytes: &IVec) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
