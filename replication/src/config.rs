//! How to run a node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::disk::{Disk, RealDisk};
use dogsled_storage::{Clock, SystemClock};

use crate::runtime::GRID;
use crate::transport::NodeId;

/// How soon members of a group notice that their leader is gone, and how much they talk for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timing {
    /// A leader that has nothing to say says so this often. Counted in tenths of a second, and at least one.
    pub heartbeat: Duration,
    /// A follower that has heard nothing for a while grants votes again, and asks for them itself after another.
    /// Of the time between these two there are three shares, and which of them a replica draws both from is settled by
    /// the group's number and the node's. The shares are so far apart that of three replicas no two ask at the same
    /// time, which would divide the votes and cost another round, although each looks at the clock only ten times a
    /// second; and if the longer is at most twice the shorter, whoever is asked first grants it. A dead leader is
    /// replaced after at most twice the longer and a tenth of a second, most often well before; one that is silent
    /// for less than twice the shorter stays.
    pub election: (Duration, Duration),
}

impl Timing {
    /// For so long after a leader was heard there is no other.
    pub(crate) fn undisputed(&self) -> Duration {
        self.election.0 * 2
    }

    /// For machines in one place: a dead leader is replaced within a second.
    pub const LAN: Timing = Timing {
        heartbeat: Duration::from_millis(100),
        election: (Duration::from_millis(165), Duration::from_millis(330)),
    };

    /// For machines far apart, or slow, or many groups with little to do.
    pub const WAN: Timing = Timing {
        heartbeat: Duration::from_millis(400),
        election: (Duration::from_millis(1_500), Duration::from_millis(3_000)),
    };
}

/// How to start a [`Node`](crate::Node).
#[derive(Clone, Debug)]
pub struct NodeConfig {
    /// Where everything of the node lies; made if missing.
    pub directory: PathBuf,
    /// This node's. Never given to another node, nor to this one after it has lost its disk.
    pub node: NodeId,
    /// Where others reach it (`host:port`).
    pub addresses: Vec<String>,
    /// The node's share of what the cluster holds, in proportion to other members'. Counts when it
    /// becomes a member; later the cluster's record does. Default 100.
    pub weight: u32,
    /// What fails together with the node: replicas of a partition lie in distinct zones where that is
    /// possible. Counts when it becomes a member. Default empty: a zone as well, of all that say nothing.
    pub zone: String,
    /// The cluster that the directory is expected to belong to, if that is known.
    pub cluster: Option<u128>,
    /// Whether an embedded database in the directory is made the first node of a cluster with one
    /// partition, of this node alone, which others can join. All that it holds stays; it needs room
    /// for a second copy meanwhile, and cannot be opened as embedded database any more. Without an
    /// embedded database (or a node that was made of one) it is an error. Default false: an
    /// embedded database is refused.
    pub convert_embedded: bool,
    /// Default [`Timing::LAN`].
    pub timing: Timing,
    /// What stores the bytes.
    pub disk: Arc<dyn Disk>,
    /// What leaders stamp entries with.
    pub clock: Arc<dyn Clock>,
    /// Whether work may run on threads. Without, everything happens in the tasks of the runtime, for
    /// simulations.
    pub threads: bool,
    /// Without threads: how long a sync of the WAL takes, at least and at most. Default: no time.
    pub sync_time: (Duration, Duration),
    /// Below so many free bytes of the file system of the directory the node refuses what stores something, and
    /// leaves leading to others; 0: never. Default: 256 MiB, or a twentieth of a file system smaller than 5 GiB. See
    /// [`dogsled_storage::space`].
    pub low_disk_bytes: Option<u64>,
    /// Length of a segment of the WAL. Default 16 MiB.
    pub wal_segment_bytes: u64,
    /// Where random numbers come from; from the operating system if `None`.
    pub seed: Option<u64>,
    /// Memory for the caches of all groups together. Default 256 MiB.
    pub cache_bytes: u64,
    /// Memory for the newest entries of all groups' logs together. Default 64 MiB.
    pub log_cache_bytes: usize,
    /// Memory for the newest changes of all groups together, from which watches go on that were at another node
    /// before; see [`crate::watch`]. Each group has an equal share, and keeps its newest change even if that is up to
    /// four times as large. Default 64 MiB.
    pub watch_bytes: u64,
    /// Entries of a group kept for followers that were away. Default 200,000.
    pub keep_entries: u64,
    /// Entries are kept until the WAL, of all groups together and with its padding, has grown by this much after them: about
    /// how large it gets, beside what the checkpoints have not covered yet. Default 512 MiB.
    pub keep_bytes: u64,
    /// Bytes of a second that snapshots, and entries for those who were away long, may take of the link, all
    /// together; if `None`, the default, what those leave who write meanwhile (it is less under a limit, too).
    pub snapshot_bytes_per_second: Option<u64>,
    /// The most bytes of an encoded command. Above what the transport carries in one message,
    /// nothing would ever be replicated. Default 16 MiB.
    pub max_command_bytes: usize,
    /// How long a request may take if it does not say. Default 10 s.
    pub request_deadline: Duration,
    /// Whether leadership of the groups is moved so that members share it. Default true.
    pub balance_leaders: bool,
    /// How often the node looks after itself: purges logs, expires sessions, moves leaders. Default
    /// 1 s.
    pub maintenance_every: Duration,
}

impl NodeConfig {
    /// The defaults.
    pub fn new(directory: impl Into<PathBuf>, node: NodeId, addresses: Vec<String>) -> NodeConfig {
        NodeConfig {
            directory: directory.into(),
            node,
            addresses,
            weight: crate::meta::DEFAULT_WEIGHT,
            zone: String::new(),
            cluster: None,
            convert_embedded: false,
            timing: Timing::LAN,
            disk: Arc::new(RealDisk),
            clock: Arc::new(SystemClock),
            threads: true,
            sync_time: (Duration::ZERO, Duration::ZERO),
            low_disk_bytes: None,
            wal_segment_bytes: 16 << 20,
            seed: None,
            cache_bytes: 256 << 20,
            log_cache_bytes: 64 << 20,
            watch_bytes: 64 << 20,
            keep_entries: 200_000,
            keep_bytes: 512 << 20,
            snapshot_bytes_per_second: None,
            max_command_bytes: 16 << 20,
            request_deadline: Duration::from_secs(10),
            balance_leaders: true,
            maintenance_every: Duration::from_secs(1),
        }
    }
}

/// Between the last time at which one replica can ask for votes, and the first of the next.
const APART: Duration = Duration::from_millis(4);

/// The part of [`Timing::election`] that is the replica's of a node in a group.
///
/// With shares of width w, each beginning a step s after the other, and looks at the clock every g, a replica
/// that draws twice from `least..least + w` asks before `2 least + 2 w + g`, and the next one, at the earliest, at
/// `2 least + 2 s`. So s has to be w + g/2, and a little more; two steps and a width are all that there is.
fn share_of_election(timing: &Timing, group: u32, node: NodeId) -> (Duration, Duration) {
    let (least, most) = timing.election;
    let all = most.saturating_sub(least);
    let width = all.saturating_sub(GRID + APART) / 3;
    let step = (all - width) / 2;
    // Members are numbered one after the other as they come, so most groups have one of each.
    let turn = ((node.0 % 3) as u32 + group % 3) % 3;
    let from = least + step * turn;
    // Something has to be drawn.
    (from, from + width.max(Duration::from_millis(1)))
}

pub(crate) fn raft_config(
    timing: &Timing,
    group: u32,
    node: NodeId,
) -> Result<openraft::Config, openraft::ConfigError> {
    let milliseconds = |duration: Duration| duration.as_millis() as u64;
    let election = share_of_election(timing, group, node);
    // It goes at the first tick thereafter; see the runtime.
    let heartbeat = milliseconds(timing.heartbeat.max(GRID) - GRID / 4);
    openraft::Config {
        cluster_name: "dogsled".to_owned(),
        heartbeat_interval: heartbeat,
        // A follower that just acknowledged entries needs no heartbeat.
        heartbeat_min_interval: Some(heartbeat / 2),
        election_timeout_min: milliseconds(election.0),
        election_timeout_max: milliseconds(election.1),
        // Bytes bound a message, see the log store; this only bounds what tiny entries cost.
        max_payload_entries: 4096,
        // Snapshots are taken and logs are purged by the node's maintenance.
        snapshot_policy: openraft::SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        purge_batch_size: 1,
        // Only a follower that needs what was purged gets a snapshot.
        replication_lag_threshold: u64::MAX / 2,
        enable_pre_vote: Some(true),
        // A leader that was restarted asks for votes like everybody else.
        enable_leader_restore: Some(false),
        // It hears of one only when that does no harm any more; see `crate::acknowledged`.
        allow_log_reversion: Some(true),
        ..openraft::Config::default()
    }
    .validate()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_replicas_never_ask_for_votes_at_the_same_time() {
        for timing in [Timing::LAN, Timing::WAN] {
            for group in 0..20 {
                let mut shares: Vec<_> =
                    (1..=3).map(|node| share_of_election(&timing, group, NodeId(node))).collect();
                shares.sort();
                assert_eq!(shares[0].0, timing.election.0);
                assert!(shares[2].1 <= timing.election.1 + Duration::from_micros(1), "{shares:?}");
                let asks = |draw: Duration| draw * 2;
                let is_before = |pair: &[(Duration, Duration)]| asks(pair[0].1) + GRID < asks(pair[1].0);
                assert!(shares.windows(2).all(is_before), "{shares:?}");
                assert!(
                    shares[2].1 <= asks(shares[0].0),
                    "whoever is asked first has to grant it: {shares:?}"
                );
                for node in 1..=3 {
                    raft_config(&timing, group, NodeId(node)).expect("valid");
                }
            }
        }
    }
}
