//! Arguments of the commands that run and look after nodes.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::BoolishValueParser;
use clap::{Args, Subcommand, ValueEnum};
use serde::Deserialize;

/// Arguments of `serve`. Each can be a variable or stand in the file, too.
#[derive(Debug, Args)]
#[command(after_help = "\
Without any option: a database of one node in ./dogsled-data, reached at 127.0.0.1:7400, and by Redis clients
at 127.0.0.1:8400.

Options overrule variables, variables overrule the file. The file is TOML, and its keys are the names
of the options: data, node, listen, http, advertise, init, members, join, partitions, replicas, zone, weight,
from-embedded, certs, preset, disk-low, max-connections, redis, redis-password, redis-announce, redis-moved, cache, log-format, log-level, timeout.

The first three nodes of a cluster, each with its own id and address:
  dogsled serve --certs certs --node 1 --listen 10.0.0.1:7400 --init --members 1=10.0.0.1:7400,2=10.0.0.2:7400,3=10.0.0.3:7400
  dogsled serve --certs certs --node 2 --listen 10.0.0.2:7400 --members …the same…
  dogsled serve --certs certs --node 3 --listen 10.0.0.3:7400 --members …the same…
and a fourth later:
  dogsled serve --certs certs --node 4 --listen 10.0.0.4:7400 --join 10.0.0.1:7400

SIGTERM and SIGINT stop a node after it has handed leadership over; SIGHUP has it read its
certificates again.")]
pub(crate) struct ServeArgs {
    /// Where the node's data lies; made if missing [default: dogsled-data]
    #[arg(long, env = "DOGSLED_DATA", value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,

    /// The node's id, which no other node ever has or had [default: 1]
    #[arg(long, env = "DOGSLED_NODE", value_name = "ID")]
    pub(crate) node: Option<u64>,

    /// The UDP address to listen on; port 0 takes any [default: 127.0.0.1:7400]
    #[arg(long, env = "DOGSLED_LISTEN", value_name = "HOST:PORT")]
    pub(crate) listen: Option<String>,

    /// The TCP address for metrics (/metrics), health (/livez, /readyz) and a status page (/), or `off`. Whoever
    /// reaches it may look [default: loopback, 80 above the port of --listen, as in 127.0.0.1:7480; without it if
    /// that is taken]
    #[arg(long, env = "DOGSLED_HTTP", value_name = "HOST:PORT")]
    pub(crate) http: Option<String>,

    /// Where others reach the node [default: its entry in --members, or --listen]
    #[arg(long, env = "DOGSLED_ADVERTISE", value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub(crate) advertise: Vec<String>,

    /// Make the cluster; for one of its first nodes
    #[arg(long, env = "DOGSLED_INIT", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub(crate) init: Option<bool>,

    /// The first nodes of the cluster, for each of them
    #[arg(long, env = "DOGSLED_MEMBERS", value_name = "ID=HOST:PORT,…", value_delimiter = ',')]
    pub(crate) members: Vec<String>,

    /// Nodes of a cluster to become a member of
    #[arg(long, env = "DOGSLED_JOIN", value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub(crate) join: Vec<String>,

    /// How many partitions a new cluster has, for ever [default: two for each processor of this machine, 4 to 64]
    #[arg(long, env = "DOGSLED_PARTITIONS", value_name = "COUNT")]
    pub(crate) partitions: Option<u32>,

    /// How many replicas of each partition a new cluster keeps, as soon as it has so many members; see
    /// `dogsled replicas` [default: 3]
    #[arg(long, env = "DOGSLED_REPLICAS", value_name = "COUNT")]
    pub(crate) replicas: Option<u32>,

    /// What fails together with this node: a rack, a building. Replicas of a partition lie in distinct
    /// zones where there are enough. Counts when the node becomes a member
    #[arg(long, env = "DOGSLED_ZONE", value_name = "ZONE")]
    pub(crate) zone: Option<String>,

    /// The node's share of what the cluster holds, in proportion to the others'. Counts when the node
    /// becomes a member; later see `dogsled member weight` [default: 100]
    #[arg(long, env = "DOGSLED_WEIGHT", value_name = "WEIGHT")]
    pub(crate) weight: Option<u32>,

    /// Make the embedded database in --data the first node of a cluster, with one partition for ever.
    /// Needs room for a second copy; it cannot be opened as embedded database afterwards
    #[arg(long, env = "DOGSLED_FROM_EMBEDDED", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL", value_parser = BoolishValueParser::new())]
    pub(crate) from_embedded: Option<bool>,

    /// How far apart the nodes are [default: lan]
    #[arg(long, env = "DOGSLED_PRESET")]
    pub(crate) preset: Option<Preset>,

    /// Refuse what stores something, and leave leading to others, while fewer bytes of the disk are free (also as
    /// 512K, 300M or 2G); what removes something, reads and copies for other nodes go on. 0: never [default: 256M, or
    /// a twentieth of a disk smaller than 5G]
    #[arg(long, env = "DOGSLED_DISK_LOW", value_name = "SIZE")]
    pub(crate) disk_low: Option<String>,

    /// Connections of clients at a time, and as many again of Redis clients; more are told so and closed. Each takes a
    /// file descriptor if it is a Redis client's: the limit of those is raised as far as permitted [default: 10000]
    #[arg(long, env = "DOGSLED_MAX_CONNECTIONS", value_name = "COUNT")]
    pub(crate) max_connections: Option<u32>,

    /// The TCP address for Redis clients, or `off`. On loopback there is no encryption, and without a password whoever
    /// can connect can do anything with the data; elsewhere there is TLS with the certificates of --certs, and a password
    /// has to be given [default: loopback, 1000 above the port of --listen, as
    /// in 127.0.0.1:8400; without it if that is taken]
    #[arg(long, env = "DOGSLED_REDIS", value_name = "HOST:PORT")]
    pub(crate) redis: Option<String>,

    /// What Redis clients have to say first (AUTH). Others on this machine see it among the arguments: the
    /// variable or the file keep it better
    #[arg(long, env = "DOGSLED_REDIS_PASSWORD", hide_env_values = true, value_name = "PASSWORD")]
    pub(crate) redis_password: Option<String>,

    /// Where Redis clients are told that this node is, if they are clients of a cluster and do not reach it where it
    /// listens [default: that of --redis]
    #[arg(long, env = "DOGSLED_REDIS_ANNOUNCE", value_name = "HOST:PORT")]
    pub(crate) redis_announce: Option<String>,

    /// Which Redis clients are sent to the node that leads a key's partition, by MOVED: those that have asked where slots
    /// are, all, or none, to whom the node looks like a Redis that stands alone [default: aware]
    #[arg(long, env = "DOGSLED_REDIS_MOVED", value_name = "WHO")]
    pub(crate) redis_moved: Option<RedisMoved>,

    /// A TOML file that says what options and variables do not
    #[arg(long, env = "DOGSLED_CONFIG", value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,

    /// How the log on standard error is written [default: text]
    #[arg(long, env = "DOGSLED_LOG_FORMAT", value_name = "FORMAT")]
    pub(crate) log_format: Option<LogFormat>,

    /// error, warn, info, debug or trace; also per part: info,dogsled_net=debug [default: info]
    #[arg(long, env = "DOGSLED_LOG_LEVEL", value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

/// Which Redis clients are sent to other nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum RedisMoved {
    Off,
    Aware,
    Always,
}

/// How far apart nodes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Preset {
    /// In one place: a dead leader is replaced within a second
    Lan,
    /// Far apart, or on slow or busy machines: within some seconds
    Wan,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people
    Text,
    /// One JSON document per line
    Json,
}

/// Of `certs`.
#[derive(Debug, Subcommand)]
pub(crate) enum CertsCommand {
    /// Make the authority of a cluster: ca.crt, which all trust, and ca.key, to be kept away from
    /// the nodes
    Ca {
        /// The cluster's name; certificates of another name are refused
        #[arg(long, value_name = "NAME", default_value = "main")]
        cluster: String,
    },
    /// Make a node's certificate: node-ID.crt and node-ID.key
    Node {
        /// The node's id
        id: u64,
        /// Names and addresses under which it is reached, for tools that check them
        #[arg(long, value_name = "HOST,…", value_delimiter = ',')]
        host: Vec<String>,
        /// How long it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
        /// Replace one that is there; the node notices by itself
        #[arg(long)]
        replace: bool,
    },
    /// Make a client's certificate: client-NAME.crt and client-NAME.key
    Client {
        /// The client's name; without one, the administrator `admin`
        name: Option<String>,
        /// Let it change the cluster too: its members, and where groups are led
        #[arg(long)]
        admin: bool,
        /// How long it is valid
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u64).range(1..=3650))]
        days: u64,
        /// Replace one that is there
        #[arg(long)]
        replace: bool,
    },
}

/// Of `member`.
#[derive(Debug, Subcommand)]
pub(crate) enum MemberCommand {
    /// List the members and where they are reached
    List,
    /// Take in a node that was started with --join and has not managed by itself, or tell of a member's new
    /// addresses
    Add {
        /// The node
        id: u64,
        /// Where it is reached
        #[arg(required = true, value_name = "HOST:PORT")]
        addresses: Vec<String>,
    },
    /// Take a node out, after what it holds has moved to others; its id can never be used again. Exit code
    /// 1 if it is no member
    Remove {
        /// The node
        id: u64,
    },
    /// Give a member another share of what the cluster holds, in proportion to the others'
    Weight {
        /// The node
        id: u64,
        /// Its share; a node has 100 if nobody says
        weight: u32,
        /// Return when it is decided, not when it is done
        #[arg(long)]
        no_wait: bool,
    },
}

/// Arguments of `rebalance`. Without any, it says how far movement is.
#[derive(Debug, Args)]
pub(crate) struct RebalanceArgs {
    /// Let nothing move any more
    #[arg(long, conflicts_with = "resume")]
    pub(crate) pause: bool,
    /// Let it go on
    #[arg(long)]
    pub(crate) resume: bool,
    /// Say how far movement is
    #[arg(long)]
    pub(crate) status: bool,
    /// Partitions that are copied at a time
    #[arg(long, value_name = "COUNT")]
    pub(crate) moves: Option<u32>,
    /// Bytes of a second that each node may send of copies; 0: no limit
    #[arg(long, value_name = "BYTES")]
    pub(crate) bytes_per_second: Option<u64>,
    /// Seconds of silence after which a member is replaced
    #[arg(long, value_name = "SECONDS")]
    pub(crate) replace_after: Option<u64>,
}

/// Arguments of `demo`.
#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Also show the nodes' log, on standard error: error, warn, info, debug or trace
    #[arg(long, value_name = "LEVEL")]
    pub(crate) log_level: Option<String>,
}

/// Of `tree`.
#[derive(Debug, Subcommand)]
pub(crate) enum TreeCommand {
    /// List the trees, and what of their keys is hashed
    List,
    /// Hash a prefix of a tree's keys, so that all keys with that prefix lie in one partition
    #[command(long_about = "\
Hash a prefix of a tree's keys, so that all keys with that prefix lie in one partition: a scan of the prefix asks
that partition alone, and a batch below it is atomic.

It is chosen for ever, and before the tree is first written to. Chosen again alike, nothing happens; something else
is a conflict (exit code 8).")]
    Hash {
        /// The tree
        name: OsString,
        /// Hash so many bytes at the beginning of each key
        #[arg(long, value_name = "BYTES", required_unless_present = "before", conflicts_with_all = ["before", "nth"])]
        #[arg(value_parser = clap::value_parser!(u16).range(1..))]
        first: Option<u16>,
        /// Hash what is before this byte, as in --before /
        #[arg(long, value_name = "DELIMITER")]
        before: Option<OsString>,
        /// Which occurrence of the delimiter
        #[arg(long, value_name = "NUMBER", default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
        nth: u8,
    },
    /// Limit how much a tree may hold, or see how much of its quota it has used
    #[command(long_about = "\
Limit how much a tree may hold, or see how much of its quota it has used, of a directory or (--connect) a cluster.

What would make the tree larger is refused then (exit code 12); removing and shrinking never is. What is
given replaces the quota that there was. In a cluster each partition keeps an equal share of the limit: the tree never
holds more, and a write is refused when its partition is full, which of a tree whose keys have few tags is early.")]
    Quota {
        /// The tree; without one, all that have quotas are listed
        name: Option<OsString>,
        /// The most bytes of keys and values; with a unit, as in 500MiB or 2GiB, or without
        #[arg(long, value_name = "SIZE", requires = "name", value_parser = size)]
        bytes: Option<u64>,
        /// The most keys
        #[arg(long, value_name = "COUNT", requires = "name")]
        entries: Option<u64>,
        /// Limit it no more
        #[arg(long, requires = "name", conflicts_with_all = ["bytes", "entries"])]
        none: bool,
    },
}

/// A number of bytes, with a unit or without.
fn size(text: &str) -> Result<u64, String> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "kib" => 10,
        "mib" => 20,
        "gib" => 30,
        "tib" => 40,
        _ => return Err(format!("{unit:?} is none of the units KiB, MiB, GiB and TiB")),
    };
    let number: u64 = number.parse().map_err(|error| format!("{number:?}: {error}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than there can be".to_owned())
}

#[cfg(test)]
mod tests {
    use super::size;

    #[test]
    fn sizes_have_units_or_none() {
        assert_eq!((size("0"), size("17"), size("3KiB")), (Ok(0), Ok(17), Ok(3 << 10)));
        assert_eq!((size("2 gib"), size("1TiB")), (Ok(2 << 30), Ok(1 << 40)));
        for wrong in ["", "KiB", "5MB", "-1", "1.5MiB", "99999999TiB"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }
}
