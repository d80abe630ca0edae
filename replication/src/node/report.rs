//! What a node tells those who look after it: figures, whether it is ready, how the members are.
//!
//! All of it is put together when somebody asks. What there may be much of is bounded, because somebody may ask
//! every second.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::Duration;

use dogsled_storage::replica::Replica;
use dogsled_storage::{LockQueue, Population};
use futures_util::future::join_all;

use super::{Inner, Node};
use crate::client::{ClientReply, ClientRequest};
use crate::group::Group;
use crate::metrics::{Family, Figures, SlowCommand};
use crate::ring::{META_GROUP, TreeHash};
use crate::status::{GroupStatus, NodeStatus, OUT_OF_TOUCH, Role};
use crate::transport::NodeId;

/// How long a member may take to say how it is.
const ANSWER: Duration = Duration::from_secs(3);
/// The most quotas, of a tree in a group each, that are told of; `dogsled tree quota` has all.
const MOST_QUOTAS: usize = 1_000;
/// Up to how many sessions, locks and waiters of a group are counted.
const COUNTED: usize = 10_000;
/// How many holders and waiters of a lock are told.
const PEOPLE: usize = 8;

/// A lock that is held or waited for, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupLock {
    /// Its group.
    pub group: u32,
    /// Who holds it and who waits.
    pub queue: LockQueue,
    /// The time of the group's log, by which leases end.
    pub now_ms: u64,
}

impl Node {
    /// What the node counts and measures, as of now: see [`crate::metrics`].
    pub async fn families(&self) -> Vec<Family> {
        self.inner.families().await
    }

    /// Has [`Node::families`] tell, too, what something beside the node counts, for as long as that is there.
    pub fn add_figures(&self, figures: Weak<dyn Figures>) {
        self.inner.shared_log.metrics.add_figures(figures);
    }

    /// The slowest commands of the last minutes that this node has answered, the slowest first.
    pub fn slow_commands(&self) -> Vec<SlowCommand> {
        self.inner.shared_log.metrics.slow_commands(self.inner.config.clock.now_ms())
    }

    /// Why nothing but a restart will help the node, if so.
    pub fn failure(&self) -> Option<String> {
        self.inner.shared_log.wal.poisoned().map(|error| error.to_string())
    }

    /// Why the node is not ready to serve: it applies nothing, or not all that its groups commit. Empty: it is.
    pub fn unready(&self) -> Vec<String> {
        self.inner.unready()
    }

    /// How every member is, as it says itself; or why nothing was heard of it.
    pub async fn member_statuses(&self) -> Vec<(NodeId, Vec<String>, Result<NodeStatus, String>)> {
        let (inner, me) = (&self.inner, self.inner.config.node);
        let mut members = inner.map().members;
        if !members.iter().any(|(node, _)| *node == me) {
            members.push((me, inner.config.addresses.clone()));
        }
        let asked = members.into_iter().map(|(node, addresses)| async move {
            if node == me {
                return (node, addresses, Ok(inner.status()));
            }
            (node, addresses, self.member_status(node, ANSWER).await)
        });
        join_all(asked).await
    }

    /// How another member is, as it says itself within this time.
    ///
    /// # Errors
    /// Why nothing was heard of it, in words.
    pub async fn member_status(&self, node: NodeId, limit: Duration) -> Result<NodeStatus, String> {
        let reply = self.inner.pass_on(node, ClientRequest::Status.encode(), limit).await;
        match reply.map(ClientReply::decode) {
            Ok(Ok(ClientReply::Status(status))) => Ok(*status),
            Ok(Ok(ClientReply::Error(error))) | Err(error) => Err(error.to_string()),
            Ok(Ok(_)) => Err("an answer to something else".to_owned()),
            Ok(Err(error)) => Err(error.to_string()),
        }
    }

    /// Locks that are held or waited for in the groups that this node has a replica of, as that knows: at most
    /// `limit`, with the first of those who hold and wait; and whether there are more.
    pub async fn locks(&self, limit: usize) -> (Vec<GroupLock>, bool) {
        let replicas = self.inner.replicas();
        let listed = self.inner.blocking.run(move || {
            let (mut locks, mut more) = (Vec::new(), false);
            for (group, replica) in replicas {
                if locks.len() >= limit {
                    return (locks, true);
                }
                let now_ms = replica.time_ms();
                // A replica that cannot be read says so where it matters.
                let Ok((found, others)) = replica.locks(limit - locks.len(), PEOPLE) else { continue };
                more |= others;
                locks.extend(found.into_iter().map(|queue| GroupLock { group, queue, now_ms }));
            }
            (locks, more)
        });
        listed.await.unwrap_or_default()
    }
}

fn label(group: u32) -> Vec<(&'static str, std::borrow::Cow<'static, str>)> {
    vec![("group", group.to_string().into())]
}

impl Inner {
    fn hosted(&self) -> Vec<Arc<Group>> {
        let groups = self.cluster.get().map(|cluster| cluster.groups()).unwrap_or_default();
        groups.values().cloned().collect()
    }

    fn replicas(&self) -> Vec<(u32, Arc<Replica>)> {
        let replica = |group: Arc<Group>| Some((group.id, group.slot.replica()?));
        self.hosted().into_iter().filter_map(replica).collect()
    }

    fn unready(&self) -> Vec<String> {
        if let Some(error) = self.shared_log.wal.poisoned() {
            return vec![format!("the WAL failed: {error}")];
        }
        if self.is_stopping.load(Ordering::Relaxed) {
            return vec!["the node is stopping".to_owned()];
        }
        if self.cluster.get().is_none() {
            return vec!["the node belongs to no cluster yet".to_owned()];
        }
        if self.fence.is_out() {
            return vec![self.is_out().to_string()];
        }
        let why = |group: Arc<Group>| {
            let status = group.status();
            // One that is being filled is no loss to anybody yet. Without the record nothing goes.
            let counts = group.id == META_GROUP || status.voters.contains(&self.config.node);
            let why = match (&status.failure, status.role, status.leader) {
                (Some(failure), ..) => failure.clone(),
                (None, Role::Down, _) => "it is being opened".to_owned(),
                _ if !counts => return None,
                (None, _, None) => "no leader is known".to_owned(),
                (None, ..) if !group.is_in_touch(OUT_OF_TOUCH) => {
                    "it is behind its leader, or cut off".to_owned()
                }
                _ => return None,
            };
            Some(format!("group {}: {why}", group.id))
        };
        self.hosted().into_iter().filter_map(why).collect()
    }

    async fn families(&self) -> Vec<Family> {
        let mut families = self.shared_log.metrics.families();
        let status = self.status();
        families.extend(self.of_the_node(&status));
        families.extend(of_groups(status.node, &status.groups));
        families.extend(self.of_the_wal(&status));
        families.extend(self.of_engines());
        families.extend(self.of_sessions_and_locks().await);
        families.extend(self.of_quotas().await);
        families
    }

    fn of_the_node(&self, status: &NodeStatus) -> Vec<Family> {
        let mut info = Family::gauge("dogsled_node_info", "Which node of which cluster this is.");
        let cluster = if status.cluster == 0 { String::new() } else { format!("{:032x}", status.cluster) };
        info.add(vec![("node", status.node.to_string().into()), ("cluster", cluster.into())], 1_u64);
        let record = self.cluster.get().and_then(|cluster| cluster.record());
        let partitions = self.cluster.get().map_or(0, |cluster| cluster.partitions);
        vec![
            info,
            Family::gauge("dogsled_ready", "Whether the node applies all that its groups commit.")
                .of(u64::from(self.unready().is_empty())),
            Family::gauge("dogsled_members", "Members of the cluster, as far as this node knows.")
                .of(status.members.len() as u64),
            Family::gauge("dogsled_partitions", "Partitions of the cluster.").of(u64::from(partitions)),
            Family::gauge("dogsled_ring_epoch", "How often the cluster's record of members was changed.")
                .of(record.map_or(0, |record| record.epoch)),
            Family::counter(
                "dogsled_requests_forwarded_total",
                "Requests of clients that were passed on to another node, which leads the group.",
            )
            .of(self.forwarded.load(Ordering::Relaxed)),
            Family::gauge("dogsled_disk_size_bytes", "Bytes of the file system of the node's directory.")
                .of(status.disk_total_bytes),
            Family::gauge("dogsled_disk_free_bytes", "How many of them the node can still use.")
                .of(status.disk_free_bytes),
            Family::gauge(
                "dogsled_disk_low_mark_bytes",
                "Free bytes below which the node refuses what stores something; 0: never.",
            )
            .of(status.disk_low_mark_bytes),
            Family::gauge("dogsled_disk_low", "Whether it refuses that now.")
                .of(u64::from(status.disk_is_low)),
        ]
    }

    fn of_the_wal(&self, status: &NodeStatus) -> Vec<Family> {
        let wal = self.shared_log.wal.stats();
        vec![
            Family::gauge("dogsled_wal_live_bytes", "Bytes of the WAL that are needed.").of(wal.live_bytes),
            Family::gauge("dogsled_wal_file_bytes", "Bytes of all files of the WAL.").of(wal.file_bytes),
            Family::gauge("dogsled_wal_segments", "Segments of the WAL in use.").of(wal.segments as u64),
            Family::gauge("dogsled_wal_failed", "Whether the WAL has failed: the node must be restarted.")
                .of(u64::from(status.failure.is_some())),
            Family::counter("dogsled_wal_written_bytes_total", "Bytes written to the WAL, padding included.")
                .of(wal.bytes_written),
            Family::counter("dogsled_wal_records_total", "Records written to the WAL.").of(wal.records),
            Family::counter("dogsled_wal_commit_groups_total", "Groups of records that were written as one.")
                .of(wal.groups),
            Family::counter("dogsled_wal_syncs_total", "Syncs of the WAL.").of(wal.syncs),
            Family::histogram(
                "dogsled_wal_sync_duration_seconds",
                "Time to write what has gathered for the WAL, and to sync it.",
            )
            .of(self.shared_log.durability.syncs()),
        ]
    }

    fn of_engines(&self) -> Vec<Family> {
        let mut checkpoints =
            Family::counter("dogsled_checkpoints_total", "Checkpoints of a group's replica.");
        let mut stalls = Family::counter(
            "dogsled_write_stalls_total",
            "How often applying had to wait for a checkpoint because memory was full.",
        );
        let mut trees = Family::gauge("dogsled_tree_bytes", "Bytes of the B-tree of a group's replica.");
        let mut overlay = Family::gauge(
            "dogsled_overlay_bytes",
            "Memory of what was written to a group's replica and is not in its B-tree yet.",
        );
        let mut watchers = Family::gauge("dogsled_watchers", "Streams that follow keys of a group here.");
        let (mut leaves, mut redb, mut capacity, mut snapshots) = (0, 0, 0, 0);
        for (group, replica) in self.replicas() {
            let figures = replica.engine().figures();
            checkpoints.add(label(group), figures.checkpoints);
            stalls.add(label(group), figures.write_stalls);
            trees.add(label(group), figures.tree_bytes);
            overlay.add(label(group), figures.overlay_bytes);
            watchers.add(label(group), figures.watchers);
            leaves += figures.leaf_cache_bytes;
            redb += figures.redb_cache_bytes;
            capacity += figures.cache_capacity;
            snapshots += figures.open_snapshots;
        }
        vec![
            checkpoints,
            stalls,
            trees,
            overlay,
            watchers,
            Family::gauge("dogsled_leaf_cache_bytes", "Memory of the leaf caches of all groups.").of(leaves),
            Family::gauge("dogsled_redb_cache_limit_bytes", "What redb's page caches may use.").of(redb),
            Family::gauge("dogsled_cache_limit_bytes", "What caches and overlays of all groups may use.")
                .of(capacity),
            Family::gauge("dogsled_open_snapshots", "Snapshots and scans that are open.").of(snapshots),
        ]
    }

    /// Of the groups that this node leads, so that a sum over all nodes counts each once.
    async fn of_quotas(&self) -> Vec<Family> {
        let led = self.hosted().into_iter().filter(|group| group.leads());
        let led: Vec<_> = led.filter_map(|group| Some((group.id, group.slot.replica()?))).collect();
        let read = self.blocking.run(move || {
            // A replica that cannot be read says so where it matters.
            let quotas =
                |(group, replica): (u32, Arc<Replica>)| Some((group, replica.engine().quotas().ok()?));
            led.into_iter().filter_map(quotas).collect::<Vec<_>>()
        });
        let mut families = [
            Family::gauge("dogsled_tree_quota_bytes", "Bytes that a tree may have in a group, by its quota."),
            Family::gauge("dogsled_tree_quota_used_bytes", "Bytes of a tree that has a quota, in a group."),
            Family::gauge(
                "dogsled_tree_quota_entries",
                "Keys that a tree may have in a group, by its quota.",
            ),
            Family::gauge("dogsled_tree_quota_used_entries", "Keys of a tree that has a quota, in a group."),
        ];
        // Whoever makes trees does not decide how much every scrape has to carry.
        let mut told = 0;
        for (group, quotas) in read.await.unwrap_or_default() {
            for quota in quotas {
                told += 1;
                if told > MOST_QUOTAS {
                    break;
                }
                let name = TreeHash::of_stored(&quota.tree).1.escape_ascii().to_string();
                let values = [quota.limit.bytes, Some(quota.bytes), quota.limit.entries, Some(quota.entries)];
                for (family, value) in families.iter_mut().zip(values) {
                    if let Some(value) = value {
                        let mut labels = label(group);
                        labels.push(("tree", name.clone().into()));
                        family.add(labels, value);
                    }
                }
            }
        }
        families.into()
    }

    async fn of_sessions_and_locks(&self) -> Vec<Family> {
        let led = self.hosted().into_iter().filter(|group| group.leads());
        let led: Vec<_> = led.filter_map(|group| Some((group.id, group.slot.replica()?))).collect();
        let counted = self.blocking.run(move || {
            let count =
                |(group, replica): (u32, Arc<Replica>)| Some((group, replica.population(COUNTED).ok()?));
            led.into_iter().filter_map(count).collect::<Vec<(u32, Population)>>()
        });
        let mut sessions =
            Family::gauge("dogsled_sessions", "Sessions of a group that this node leads; 10000 may be more.");
        let mut locks = Family::gauge(
            "dogsled_locks",
            "Locks of a group that this node leads, held or waited for; 10000 may be more.",
        );
        let mut waiters = Family::gauge(
            "dogsled_lock_waiters",
            "Those who wait for a lock of a group that this node leads; 10000 may be more.",
        );
        for (group, population) in counted.await.unwrap_or_default() {
            sessions.add(label(group), population.sessions);
            locks.add(label(group), population.locks);
            waiters.add(label(group), population.waiting);
        }
        vec![sessions, locks, waiters]
    }
}

fn of_groups(node: NodeId, groups: &[GroupStatus]) -> Vec<Family> {
    let gauge = |name, help, value: &dyn Fn(&GroupStatus) -> Option<u64>| {
        let mut family = Family::gauge(name, help);
        for group in groups {
            if let Some(value) = value(group) {
                family.add(label(group.group), value);
            }
        }
        family
    };
    let mut lag = Family::gauge(
        "dogsled_group_follower_lag_entries",
        "Entries that a follower is not known to have, on the group's leader.",
    );
    let mut heard = Family::gauge(
        "dogsled_group_follower_heard_seconds",
        "Time since a follower was last heard of, on the group's leader.",
    );
    for group in groups.iter().filter(|group| group.role == Role::Leader) {
        for follower in &group.followers {
            let labels = || {
                let mut labels = label(group.group);
                labels.push(("follower", follower.node.to_string().into()));
                labels
            };
            lag.add(labels(), group.last.saturating_sub(follower.matched));
            if let Some(since) = follower.heard {
                heard.add(labels(), since.as_secs_f64());
            }
        }
    }
    vec![
        gauge(
            "dogsled_group_leads",
            "Whether this node leads the group, and has heard from a majority lately.",
            &|group| Some(u64::from(group.role == Role::Leader && group.is_in_touch(node))),
        ),
        gauge("dogsled_group_down", "Whether the group does not run here.", &|group| {
            Some(u64::from(group.role == Role::Down))
        }),
        gauge("dogsled_group_leader_id", "The node that leads the group; 0: none is known.", &|group| {
            Some(group.leader.filter(|_| group.is_in_touch(node)).map_or(0, |leader| leader.0))
        }),
        gauge("dogsled_group_term", "Raft's term of the group.", &|group| Some(group.term)),
        gauge("dogsled_group_voters", "Members of the group that vote.", &|group| {
            Some(group.voters.len() as u64)
        }),
        gauge("dogsled_group_entries", "Entries of the group's Raft log.", &|group| {
            Some((group.last + 1).saturating_sub(group.first))
        }),
        gauge("dogsled_group_last_index", "Position of the last entry.", &|group| Some(group.last)),
        gauge(
            "dogsled_group_committed_index",
            "Position of the last entry known to be committed.",
            &|group| Some(group.committed),
        ),
        gauge("dogsled_group_applied_index", "Position of the last entry applied here.", &|group| {
            Some(group.applied)
        }),
        gauge("dogsled_group_checkpointed_index", "Position that a restart begins at.", &|group| {
            Some(group.durable)
        }),
        lag,
        heard,
    ]
}
