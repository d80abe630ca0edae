//! [`Settings`]: what a node is told by options, variables and a file, in this order.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::Duration;

use dogsled::cluster::{
    DEFAULT_REPLICAS, DEFAULT_WEIGHT, MAX_REPLICAS, MAX_WEIGHT, NodeId, default_partitions,
};
use serde::Deserialize;

use crate::cli::args::{Global, LogFormat, Preset, RedisMoved, ServeArgs};
use crate::cli::exit::{Failure, Result};

/// Where a node listens if it is not told.
pub(crate) const DEFAULT_ADDRESS: &str = "127.0.0.1:7400";
/// How far above that port the one for HTTP is if it is not told.
const HTTP_ABOVE: u16 = 80;
/// And the one for Redis clients: further than the ports of nodes that share a machine, with their HTTP, reach.
const REDIS_ABOVE: u16 = 1000;
/// Where its data lies if it is not told.
pub(crate) const DEFAULT_DATA: &str = "dogsled-data";
/// What nodes accept of one another.
const MAX_PARTITIONS: u32 = 4096;
const DEFAULT_CACHE_MIB: u64 = 256;
/// Of clients, and of Redis clients.
const DEFAULT_MAX_CONNECTIONS: u32 = 10_000;
const MOST_CONNECTIONS: u32 = 1_000_000;
/// How long others are waited for when a cluster is made or joined.
const DEFAULT_TIMEOUT: u64 = 60;
/// As of the option.
const MAX_TIMEOUT: u64 = 86_400;

/// A node and its addresses.
pub(crate) type Member = (NodeId, Vec<String>);

/// How a node comes to belong to a cluster, unless it does already.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Beginning {
    /// It makes one of itself.
    Alone,
    /// It makes one of these, itself among them.
    Make(Vec<Member>),
    /// One of these, of which it is one itself, will make the cluster.
    Wait(Vec<Member>),
    /// It asks these to be taken in.
    Join(Vec<String>),
}

/// Where a node serves something beside other nodes and clients: metrics and the status page, or Redis clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Nowhere.
    Off,
    /// Here, if the port is free: nobody has asked for it.
    IfFree(SocketAddr),
    /// Here, or the node does not start.
    Asked(SocketAddr),
}

/// What a node was told.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) data: PathBuf,
    pub(crate) node: NodeId,
    pub(crate) listen: SocketAddr,
    pub(crate) http: Port,
    /// Empty: where it listens.
    pub(crate) advertise: Vec<String>,
    pub(crate) beginning: Beginning,
    pub(crate) partitions: u32,
    pub(crate) replicas: u32,
    pub(crate) zone: String,
    pub(crate) weight: u32,
    pub(crate) from_embedded: bool,
    /// `None`: those for trying things out.
    pub(crate) certs: Option<PathBuf>,
    pub(crate) preset: Preset,
    pub(crate) cache_mib: u64,
    /// `None`: as the node thinks fit.
    pub(crate) disk_low_bytes: Option<u64>,
    pub(crate) max_connections: u32,
    pub(crate) log_format: LogFormat,
    pub(crate) log_level: Option<String>,
    pub(crate) timeout: Duration,
    /// Where Redis clients are served.
    pub(crate) redis: Port,
    pub(crate) redis_password: Option<String>,
    /// Where clients of clusters are told that it is.
    pub(crate) redis_announce: Option<String>,
    pub(crate) redis_moved: RedisMoved,
}

/// What the file may say: the names of the options.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    data: Option<PathBuf>,
    node: Option<u64>,
    listen: Option<String>,
    http: Option<String>,
    #[serde(default)]
    advertise: List,
    init: Option<bool>,
    #[serde(default)]
    members: List,
    #[serde(default)]
    join: List,
    partitions: Option<u32>,
    replicas: Option<u32>,
    zone: Option<String>,
    weight: Option<u32>,
    from_embedded: Option<bool>,
    certs: Option<PathBuf>,
    preset: Option<Preset>,
    cache: Option<u64>,
    disk_low: Option<Size>,
    max_connections: Option<u32>,
    log_format: Option<LogFormat>,
    log_level: Option<String>,
    timeout: Option<u64>,
    redis: Option<String>,
    redis_password: Option<String>,
    redis_announce: Option<String>,
    redis_moved: Option<RedisMoved>,
}

/// `["a", "b"]`, or `"a,b"` as on the command line.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a string, or a list of strings")]
enum List {
    One(String),
    Many(Vec<String>),
}

impl Default for List {
    fn default() -> List {
        List::Many(Vec::new())
    }
}

impl List {
    fn or_given(self, given: &[String]) -> Vec<String> {
        let list = match self {
            _ if !given.is_empty() => given.to_vec(),
            List::One(joined) => joined.split(',').map(str::to_owned).collect(),
            List::Many(list) => list,
        };
        list.into_iter().map(|item| item.trim().to_owned()).collect()
    }
}

/// `1073741824`, or `"1G"` as on the command line.
#[derive(Debug, Deserialize)]
#[serde(untagged, expecting = "expected a number of bytes, or a string such as \"300M\"")]
enum Size {
    Bytes(u64),
    Written(String),
}

impl File {
    fn read(path: &Path) -> Result<File> {
        let text = std::fs::read_to_string(path).map_err(|error| Failure::io(path.display(), &error))?;
        File::parse(&text).map_err(|why| Failure::usage(format!("{}: {why}", path.display())))
    }

    fn parse(text: &str) -> Result<File, String> {
        toml::from_str(text).map_err(|error| {
            let what = error.message().lines().collect::<Vec<_>>().join("; ");
            match error.span() {
                Some(span) => {
                    let before = text.get(..span.start).unwrap_or(text);
                    let line = before.matches('\n').count() + 1;
                    if text
                        .lines()
                        .nth(line - 1)
                        .is_some_and(|line| line.trim_start().starts_with("redis-password"))
                    {
                        // The message would go to the journal with it.
                        return format!("line {line}: redis-password is to be a string in quotes");
                    }
                    let key = text.get(span).map(|key| key.trim()).filter(|key| !key.contains('\n'));
                    match key.filter(|key| !key.is_empty() && !what.contains(*key)) {
                        Some(key) => format!("line {line}: {what} ({key})"),
                        None => format!("line {line}: {what}"),
                    }
                }
                None => what,
            }
        })
    }
}

impl Settings {
    /// Puts together what options, variables and the file say.
    pub(crate) fn resolve(global: &Global, args: &ServeArgs) -> Result<Settings> {
        let file = args.config.as_deref().map(File::read).transpose()?.unwrap_or_default();
        Settings::combine(global, args, file)
    }

    fn combine(global: &Global, args: &ServeArgs, file: File) -> Result<Settings> {
        let node = args.node.or(file.node).unwrap_or(1);
        if node == 0 {
            return Err(Failure::usage("0 is no node id; ids begin with 1"));
        }
        let node = NodeId(node);
        let members = members(&file.members.or_given(&args.members))?;
        let join = file.join.or_given(&args.join);
        let timeout = file.timeout.unwrap_or(DEFAULT_TIMEOUT);
        if !(1..=MAX_TIMEOUT).contains(&timeout) {
            return Err(Failure::usage(format!(
                "timeout: {timeout} seconds are not within 1 to {MAX_TIMEOUT}"
            )));
        }
        let init = args.init.or(file.init).unwrap_or(false);
        let mut advertise = file.advertise.or_given(&args.advertise);
        for address in advertise.iter().chain(&join) {
            check_address(address)?;
        }
        let own = members.iter().find(|(member, _)| *member == node);
        if !members.is_empty() && own.is_none() {
            let known: Vec<String> = members.iter().map(|(member, _)| member.to_string()).collect();
            return Err(Failure::usage(format!(
                "this is node {node}, and --members names {} only",
                known.join(", ")
            )));
        }
        if let (Some((_, addresses)), true) = (own, advertise.is_empty()) {
            advertise.clone_from(addresses);
        }
        let beginning = match (init, members.is_empty(), join.is_empty()) {
            (true, _, false) => return Err(Failure::usage("--init and --join exclude each other")),
            (false, false, false) => return Err(Failure::usage("--members and --join exclude each other")),
            (false, true, true) => Beginning::Alone,
            (true, _, true) => Beginning::Make(members),
            (false, false, true) => Beginning::Wait(members),
            (false, true, false) => Beginning::Join(join),
        };
        let listen = args.listen.clone().or(file.listen);
        let listen = resolve("--listen", listen.as_deref().unwrap_or(DEFAULT_ADDRESS))?;
        let http = match args.http.clone().or(file.http).as_deref() {
            None => beside(listen, HTTP_ABOVE),
            Some("off") => Port::Off,
            Some(address) => Port::Asked(resolve("--http", address)?),
        };
        if listen.ip().is_unspecified() && advertise.is_empty() {
            return Err(Failure::usage(format!(
                "{listen} is every address of this machine: say with --advertise under which one others reach \
                 the node"
            )));
        }
        let partitions = args.partitions.or(file.partitions).unwrap_or_else(default_partitions);
        if !(1..=MAX_PARTITIONS).contains(&partitions) {
            return Err(Failure::usage(format!(
                "--partitions {partitions} is not within 1 and {}",
                MAX_PARTITIONS
            )));
        }
        let replicas = args.replicas.or(file.replicas).unwrap_or(DEFAULT_REPLICAS);
        if !(1..=MAX_REPLICAS).contains(&replicas) {
            return Err(Failure::usage(format!("--replicas {replicas} is not within 1 and {MAX_REPLICAS}")));
        }
        let weight = args.weight.or(file.weight).unwrap_or(DEFAULT_WEIGHT);
        if !(1..=MAX_WEIGHT).contains(&weight) {
            return Err(Failure::usage(format!("--weight {weight} is not within 1 and {MAX_WEIGHT}")));
        }
        let from_embedded = args.from_embedded.or(file.from_embedded).unwrap_or(false);
        if from_embedded && beginning != Beginning::Alone {
            return Err(Failure::usage(
                "--from-embedded makes a node of its own: others --join it, and it does not join them",
            ));
        }
        if from_embedded && args.partitions.or(file.partitions).is_some_and(|count| count != 1) {
            return Err(Failure::usage(
                "an embedded database becomes a single partition; for more, `dogsled export` it and `import` it \
                 into a new cluster",
            ));
        }
        let partitions = if from_embedded { 1 } else { partitions };
        let cache_mib = global.cache.or(file.cache).unwrap_or(DEFAULT_CACHE_MIB);
        if !(1..=1 << 20).contains(&cache_mib) {
            return Err(Failure::usage(format!(
                "a cache of {cache_mib} MiB is not within 1 and {}",
                1 << 20
            )));
        }
        let disk_low = args.disk_low.clone().map(Size::Written).or(file.disk_low);
        let disk_low_bytes = disk_low.map(|size| bytes_of("--disk-low", size)).transpose()?;
        let max_connections =
            args.max_connections.or(file.max_connections).unwrap_or(DEFAULT_MAX_CONNECTIONS);
        if !(1..=MOST_CONNECTIONS).contains(&max_connections) {
            return Err(Failure::usage(format!(
                "--max-connections {max_connections} is not within 1 and {MOST_CONNECTIONS}"
            )));
        }
        let redis = match args.redis.clone().or(file.redis).as_deref() {
            None => beside(listen, REDIS_ABOVE),
            Some("off") => Port::Off,
            Some(address) => Port::Asked(resolve("--redis", address)?),
        };
        let redis_password = args.redis_password.clone().or(file.redis_password);
        if redis_password.as_ref().is_some_and(String::is_empty) {
            return Err(Failure::usage("an empty --redis-password is none"));
        }
        let certs = global.certs.clone().or(file.certs);
        let redis_announce = args.redis_announce.clone().or(file.redis_announce);
        if let Some(address) = &redis_announce
            && !address
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
        {
            return Err(Failure::usage(format!("--redis-announce {address} is not HOST:PORT")));
        }
        // Where others reach the node they reach this port, too.
        let redis_announce = match (redis_announce, redis, advertise.first()) {
            (None, Port::Asked(address), Some(advertised))
                if address.ip().is_unspecified() && address.port() != 0 =>
            {
                advertised.rsplit_once(':').map(|(host, _)| format!("{host}:{}", address.port()))
            }
            (announce, ..) => announce,
        };
        if let Port::Asked(address) = redis
            && !address.ip().is_loopback()
        {
            let open = format!("--redis {address} is open to other machines");
            if certs.is_none() {
                return Err(Failure::usage(format!(
                    "{open}, and needs TLS: give the node's certificates with --certs, or a loopback address"
                )));
            }
            if redis_password.is_none() {
                let what = format!("{open}, and needs a password: give one with --redis-password");
                return Err(Failure::usage(what));
            }
        }
        Ok(Settings {
            data: args.data.clone().or(file.data).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA)),
            node,
            listen,
            http,
            advertise,
            beginning,
            partitions,
            replicas,
            zone: args.zone.clone().or(file.zone).unwrap_or_default(),
            weight,
            from_embedded,
            certs,
            preset: args.preset.or(file.preset).unwrap_or(Preset::Lan),
            cache_mib,
            disk_low_bytes,
            max_connections,
            log_format: args.log_format.or(file.log_format).unwrap_or(LogFormat::Text),
            log_level: args.log_level.clone().or(file.log_level),
            timeout: global.timeout_or(timeout),
            redis,
            redis_password,
            redis_announce,
            redis_moved: args.redis_moved.or(file.redis_moved).unwrap_or(RedisMoved::Aware),
        })
    }

    /// What others have to know to reach the node, if it listens where nobody else can.
    pub(crate) fn unreachable_address(&self) -> Option<&str> {
        if !self.listen.ip().is_loopback() {
            return None;
        }
        let elsewhere = |address: &&String| {
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            match host.parse::<std::net::IpAddr>() {
                Ok(ip) => !ip.is_loopback(),
                Err(_) => host != "localhost",
            }
        };
        self.advertise.iter().find(elsewhere).map(String::as_str)
    }
}

/// A number of bytes, perhaps with a unit of 1,024, of its square, or of its cube.
fn bytes_of(option: &str, size: Size) -> Result<u64> {
    let written = match size {
        Size::Bytes(bytes) => return Ok(bytes),
        Size::Written(written) => written,
    };
    let (number, unit) = match written.trim().split_at_checked(written.trim().len().saturating_sub(1)) {
        Some((number, "K" | "k")) => (number, 10),
        Some((number, "M" | "m")) => (number, 20),
        Some((number, "G" | "g")) => (number, 30),
        _ => (written.trim(), 0),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << unit));
    bytes.ok_or_else(|| {
        Failure::usage(format!("{option} {written:?} is no size: a number of bytes, or as in 512K, 300M, 2G"))
    })
}

/// `id=host:port`, each id once.
fn members(written: &[String]) -> Result<Vec<Member>> {
    let mut members: Vec<Member> = Vec::new();
    for entry in written {
        let parsed = entry.trim().split_once('=').and_then(|(id, address)| {
            Some((id.trim().parse().ok().filter(|id| *id > 0)?, address.trim().to_owned()))
        });
        let Some((id, address)) = parsed else {
            return Err(Failure::usage(format!("the member {entry:?} is not of the form id=host:port")));
        };
        check_address(&address)?;
        if members.iter().any(|(known, _)| known.0 == id) {
            return Err(Failure::usage(format!(
                "--members names node {id} twice: every node has its own id"
            )));
        }
        if let Some((other, _)) = members.iter().find(|(_, known)| known.contains(&address)) {
            return Err(Failure::usage(format!(
                "--members says {address} for node {other} and for node {id}"
            )));
        }
        members.push((NodeId(id), vec![address]));
    }
    Ok(members)
}

fn check_address(address: &str) -> Result<()> {
    let sound = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
    match sound {
        true => Ok(()),
        false => Err(Failure::usage(format!("the address {address:?} is not of the form host:port"))),
    }
}

/// Nodes that share a machine have different ports to listen on, and so they have here. Whoever lets the system
/// choose the one does so with the other.
fn beside(listen: SocketAddr, above: u16) -> Port {
    let port = match listen.port() {
        0 => Some(0),
        port => port.checked_add(above),
    };
    port.map_or(Port::Off, |port| Port::IfFree(SocketAddr::from((Ipv4Addr::LOCALHOST, port))))
}

fn resolve(option: &str, address: &str) -> Result<SocketAddr> {
    let wrong =
        |why: &dyn std::fmt::Display| Failure::usage(format!("{option} {address:?} is no host:port: {why}"));
    let mut found = address.to_socket_addrs().map_err(|error| wrong(&error))?;
    found.next().ok_or_else(|| wrong(&"the name has no address"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Cli, Command};

    fn settled(arguments: &[&str], file: &str) -> Result<Settings, String> {
        let cli = Cli::parse_from(["dogsled", "serve"].iter().chain(arguments));
        let Command::Serve(args) = cli.command else { panic!("not serve") };
        let file = File::parse(file)?;
        Settings::combine(&cli.global, &args, file).map_err(|failure| failure.message)
    }

    #[test]
    fn nothing_said_is_a_node_of_its_own() {
        let settings = settled(&[], "").unwrap();
        assert_eq!(settings.node, NodeId(1));
        assert_eq!(settings.listen.to_string(), DEFAULT_ADDRESS);
        assert_eq!(settings.http, Port::IfFree("127.0.0.1:7480".parse().unwrap()));
        assert_eq!(settings.beginning, Beginning::Alone);
        assert_eq!((settings.partitions, settings.certs), (default_partitions(), None));
        assert_eq!(settings.data, Path::new("dogsled-data"));
    }

    #[test]
    fn options_overrule_the_file() {
        let file = "node = 2\ncache = 64\nmembers = \"1=a:1,2=b:2\"\nlog-format = \"json\"\n";
        let settings = settled(&["--cache", "32", "--init"], file).unwrap();
        assert_eq!((settings.node, settings.cache_mib), (NodeId(2), 32));
        let members = vec![(NodeId(1), vec!["a:1".to_owned()]), (NodeId(2), vec!["b:2".to_owned()])];
        assert_eq!(settings.beginning, Beginning::Make(members));
        assert_eq!(settings.advertise, ["b:2"]);
        assert_eq!(settings.log_format, LogFormat::Json);
        assert_eq!(settings.unreachable_address(), Some("b:2"));
    }

    #[test]
    fn the_ports_for_http_and_redis_go_with_the_other_unless_somebody_says() {
        let http = |arguments: &[&str], file: &str| settled(arguments, file).map(|settings| settings.http);
        let at = |address: &str| address.parse().unwrap();
        assert_eq!(http(&["--listen", "10.0.0.1:7401"], ""), Ok(Port::IfFree(at("127.0.0.1:7481"))));
        assert_eq!(http(&["--listen", "127.0.0.1:0"], ""), Ok(Port::IfFree(at("127.0.0.1:0"))));
        assert_eq!(http(&["--listen", "127.0.0.1:65500"], ""), Ok(Port::Off));
        assert_eq!(http(&["--http", "127.0.0.1:80"], "http = \"off\""), Ok(Port::Asked(at("127.0.0.1:80"))));
        assert_eq!(http(&[], "http = \"off\""), Ok(Port::Off));
        let redis = |arguments: &[&str], file: &str| settled(arguments, file).map(|settings| settings.redis);
        assert_eq!(redis(&[], ""), Ok(Port::IfFree(at("127.0.0.1:8400"))));
        assert_eq!(redis(&["--listen", "10.0.0.1:7401"], ""), Ok(Port::IfFree(at("127.0.0.1:8401"))));
        assert_eq!(redis(&["--listen", "127.0.0.1:0"], ""), Ok(Port::IfFree(at("127.0.0.1:0"))));
        assert_eq!(redis(&["--listen", "127.0.0.1:65000"], ""), Ok(Port::Off));
        assert_eq!(
            redis(&["--redis", "127.0.0.1:79"], "redis = \"off\""),
            Ok(Port::Asked(at("127.0.0.1:79")))
        );
        assert_eq!(redis(&[], "redis = \"off\""), Ok(Port::Off));
    }

    #[test]
    fn where_redis_clients_are_sent_is_said_by_options_and_file() {
        let moved = |arguments: &[&str], file: &str| {
            settled(arguments, file).map(|settings| (settings.redis_moved, settings.redis_announce))
        };
        assert_eq!(moved(&[], ""), Ok((RedisMoved::Aware, None)));
        let (announce, cache) = ("redis-announce = \"cache:7000\"", Some("cache:7000".to_owned()));
        assert_eq!(moved(&["--redis-moved", "always"], announce), Ok((RedisMoved::Always, cache)));
        assert_eq!(moved(&[], "redis-moved = \"off\""), Ok((RedisMoved::Off, None)));
        for wrong in ["nowhere", ":7000", "cache:", "cache:70000"] {
            let refused = moved(&["--redis-announce", wrong], "");
            assert!(refused.is_err_and(|why| why.contains("--redis-announce")), "{wrong}");
        }
    }

    #[test]
    fn the_low_mark_of_the_disk_is_a_size() {
        let low = |arguments: &[&str], file: &str| settled(arguments, file).map(|all| all.disk_low_bytes);
        assert_eq!(low(&[], ""), Ok(None));
        assert_eq!(low(&["--disk-low", "0"], "disk-low = \"1G\""), Ok(Some(0)));
        assert_eq!(low(&["--disk-low", "300m"], ""), Ok(Some(300 << 20)));
        assert_eq!(low(&[], "disk-low = 4096"), Ok(Some(4096)));
        assert_eq!(low(&[], "disk-low = \"2G\""), Ok(Some(2 << 30)));
        for wrong in ["", "M", "-1", "1.5G", "10T", "99999999999999999999", "18446744073709551615K"] {
            assert!(low(&[&format!("--disk-low={wrong}")], "").is_err_and(|why| why.contains("--disk-low")));
        }
    }

    #[test]
    fn a_wrong_file_is_refused_with_key_and_line() {
        for (file, parts) in [
            ("node = 1\nlissten = \"a:1\"\n", ["line 2", "lissten"]),
            ("\n\ncache = \"much\"", ["line 3", "much"]),
            ("node = 1\nnode = 2", ["line 2", "node"]),
            ("preset = \"moon\"", ["line 1", "moon"]),
            ("members = 7", ["line 1", "list of strings"]),
            ("node = ", ["line 1", ""]),
        ] {
            let error = settled(&[], file).expect_err(file);
            for part in parts {
                assert!(error.contains(part), "{file:?}: {error}");
            }
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for (arguments, part) in [
            (&["--node", "0"][..], "node id"),
            (&["--init", "--join", "a:1"], "--join"),
            (&["--members", "1=a:1", "--join", "a:1"], "--members"),
            (&["--members", "1=a:1,1=b:1"], "twice"),
            (&["--members", "1=a:1,2=a:1"], "a:1"),
            (&["--members", "2=a:1"], "node 1"),
            (&["--members", "a:1"], "id=host:port"),
            (&["--join", "a"], "host:port"),
            (&["--listen", "0.0.0.0:7400"], "--advertise"),
            (&["--listen", "nonsense"], "--listen"),
            (&["--http", "nonsense"], "--http"),
            (&["--partitions", "0"], "--partitions"),
            (&["--replicas", "0"], "--replicas"),
            (&["--redis", "nonsense"], "--redis"),
            (&["--redis", "0.0.0.0:6379", "--redis-password", "x"], "--certs"),
            (&["--certs", "c", "--redis", "0.0.0.0:6379"], "--redis-password"),
            (&["--redis", "127.0.0.1:6379", "--redis-password", ""], "--redis-password"),
            (&["--weight", "0"], "--weight"),
            (&["--max-connections", "0"], "--max-connections"),
            (&["--from-embedded", "--join", "a:1"], "--join"),
            (&["--from-embedded", "--partitions", "16"], "single partition"),
        ] {
            let error = settled(arguments, "").expect_err(part);
            assert!(error.contains(part), "{arguments:?}: {error}");
        }
    }
}
