//! `serve`: a node, from the command line.
//!
//! ```text
//! settings   options, variables, file ─► what the node is told
//! logging    tracing ─► standard error
//! begin      makes a cluster, joins one, or goes on
//! notify     tells systemd
//! ```
//!
//! Standard output gets what a person or script has to know, once: where the node listens, and that
//! it serves. All else is the log's. The process ends by SIGTERM or SIGINT, after it has handed over
//! what it leads; a second one ends it at once.

mod begin;
pub(crate) mod logging;
mod notify;
pub(crate) mod settings;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use dogsled::cluster::http::{HttpOptions, HttpServer, Starting};
use dogsled::cluster::redis::{Redirects, RedisOptions, RedisServer};
use dogsled::cluster::{
    CertificateFiles, CertificateSource, ClientOptions, Node, NodeCertificates, NodeConfig, OpenError,
    StartError, Timing,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::begin::Begun;
use self::notify::notify;
use self::settings::{Beginning, DEFAULT_DATA, Port, Settings};
use super::args::{Global, Preset, RedisMoved, ServeArgs};
use super::exit::{Code, Failure, Result};
use super::output::{self, Output};

/// How often the node is looked at for failures.
const CHECK_UP: Duration = Duration::from_secs(5);

/// Runs a node until it is told to stop.
pub(crate) fn serve(global: &Global, out: &mut Output, args: &ServeArgs) -> Result<()> {
    let settings = Settings::resolve(global, args)?;
    logging::start(settings.log_level.as_deref().unwrap_or("info"), settings.log_format)?;
    let is = |name: &str| settings.data.join(name).exists();
    if is("MANIFEST") && !is("node") && !settings.from_embedded {
        return Err(Failure::new(
            Code::NotADatabase,
            format!(
                "{} holds an embedded database, not a node's: make it the first node of a cluster of one partition \
                 with --from-embedded; or give another --data, and move its content there with `dogsled export` and \
                 `dogsled import`",
                settings.data.display()
            ),
        ));
    }
    if settings.from_embedded && !is("MANIFEST") && !is("node") {
        let data = settings.data.display();
        return Err(Failure::new(
            Code::NotADatabase,
            format!("{data}: there is no embedded database to make a node of"),
        ));
    }
    allow_descriptors(if settings.redis == Port::Off { 0 } else { u64::from(settings.max_connections) });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::io("starting threads", &error))?;
    let outcome = runtime.block_on(run(&settings, out));
    // Whatever still waits for a peer or the disk does so in vain.
    runtime.shutdown_timeout(Duration::from_secs(1));
    outcome
}

/// Descriptors beside those of Redis clients: files, sockets, HTTP's connections.
const OTHER_DESCRIPTORS: u64 = 1024;

/// Has the system permit as many open files as connections may take: programs begin with 1,024, and may have more if
/// they ask.
fn allow_descriptors(connections: u64) {
    let wanted = connections + OTHER_DESCRIPTORS;
    let limit = getrlimit(Resource::Nofile);
    // `None`: as many as the system has.
    let (Some(current), most) = (limit.current, limit.maximum) else { return };
    if current >= wanted {
        return;
    }
    let raised = most.map_or(wanted, |most| most.min(wanted)).max(current);
    let outcome = setrlimit(Resource::Nofile, Rlimit { current: Some(raised), maximum: most });
    let permitted = if outcome.is_ok() { raised } else { current };
    if permitted < wanted {
        tracing::warn!(
            permitted,
            wanted,
            "the system permits this process fewer open files than --max-connections may take: see ulimit -Hn, or \
             LimitNOFILE of a systemd unit; connections beyond them wait to be taken"
        );
    }
}

/// Its number on Linux, macOS and the BSDs, for which the library of signals has no name.
const SIGXFSZ: i32 = 25;

/// What the operating system may want.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> Result<Signals> {
        let on = |kind| signal(kind).map_err(|error| Failure::io("listening for signals", &error));
        // A file that may not grow (`ulimit -f`) is to be an error of the write, as a full disk is, not the end of the process.
        // Once it was listened for it ends nothing any more.
        drop(on(SignalKind::from_raw(SIGXFSZ))?);
        Ok(Signals {
            terminate: on(SignalKind::terminate())?,
            interrupt: on(SignalKind::interrupt())?,
            hang_up: on(SignalKind::hangup())?,
        })
    }

    /// The same before there is a node: its certificates are being read anyway.
    async fn end_of_start(&mut self) -> (&'static str, u8) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return ("SIGTERM", 15),
                _ = self.interrupt.recv() => return ("SIGINT", 2),
                _ = self.hang_up.recv() => {}
            }
        }
    }

    /// Waits until the process is to end; what is said of it.
    async fn end(&mut self, node: &Node) -> (&'static str, u8) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return ("SIGTERM", 15),
                _ = self.interrupt.recv() => return ("SIGINT", 2),
                _ = self.hang_up.recv() => {
                    if let Err(error) = node.reload_certificates() {
                        tracing::error!(%error, "the certificates are not usable; the old ones stay");
                    }
                }
            }
        }
    }
}

async fn run(settings: &Settings, out: &mut Output) -> Result<()> {
    // Before anything is there to be stopped: a signal must never find nobody.
    let mut signals = Signals::new()?;
    let (config, files) = node_config(settings);
    if let Some(address) = settings.unreachable_address() {
        tracing::warn!(
            listen = %settings.listen,
            "others are to reach this node at {address}, but it listens on this machine's own address only: see --listen"
        );
    }
    // Before the node, which takes longer: a port that is taken is told at once.
    let asked = match settings.http {
        Port::Asked(address) => Some(listen_for_http(address)?),
        Port::IfFree(_) | Port::Off => None,
    };
    if let Port::Asked(address) = settings.redis {
        // Given back: as long as there is no cluster, clients are to be refused rather than to wait.
        TcpListener::bind(address).map_err(|error| no_redis(address, &error))?;
    }
    // Who looks whether it is well must not take one that reads a long log for one that hangs.
    let starting = asked.as_ref().map(Starting::on).transpose();
    let starting = starting.map_err(|error| Failure::io("listening for HTTP", &error))?;
    let node = start(config, &mut signals).await.map_err(|error| explain(error, settings))?;
    drop(starting);
    let http = match settings.http {
        Port::IfFree(address) => listen_for_http_if_free(address),
        Port::Asked(_) | Port::Off => asked,
    };
    let http = http.map(|listener| HttpServer::start(&node, listener, HttpOptions::default())).transpose();
    let http = match http {
        Ok(http) => http,
        Err(error) => {
            node.shutdown().await?;
            return Err(Failure::io("listening for HTTP", &error));
        }
    };
    told(say_listening(&node, http.as_ref().map(HttpServer::local_address), settings, out));
    // Alone it can serve at once. Among others it may have to wait for them, which is no reason
    // for a supervisor to give it up.
    let waits_for_others = settings.beginning != Beginning::Alone || node.map().members.len() > 1;
    if waits_for_others {
        notify("READY=1\nSTATUS=waiting for the other nodes");
    }
    let outcome = tokio::select! {
        failed = live(&node, settings, &files, out) => failed,
        (name, _) = signals.end(&node) => {
            tracing::info!("{name}: handing over, then stopping");
            Ok(())
        }
    };
    notify("STOPPING=1");
    let stopped = tokio::select! {
        stopped = node.shutdown() => stopped.map_err(Failure::from),
        (name, number) = signals.end(&node) => {
            // A crash is what the node is made for; nothing acknowledged is lost.
            tracing::warn!("{name} again: stopping at once");
            std::process::exit(i32::from(128 + number));
        }
    };
    // Last: who asks meanwhile is told that the node is not ready.
    if let Some(http) = http {
        http.stop().await;
    }
    if outcome.is_ok() && stopped.is_ok() {
        tracing::info!("stopped");
    }
    outcome.and(stopped)
}

/// Starts the node, which takes long where a database is converted or much of a log is read. Until then nothing was
/// promised, so whoever wants it to end need not wait, and a supervisor does not take it for stuck.
async fn start(config: NodeConfig, signals: &mut Signals) -> std::result::Result<Node, StartError> {
    let mut starting = tokio::spawn(Node::start(config));
    loop {
        tokio::select! {
            started = &mut starting => match started {
                Ok(started) => return started,
                Err(stopped) => std::panic::resume_unwind(stopped.into_panic()),
            },
            (name, number) = signals.end_of_start() => {
                tracing::warn!("{name}: stopping before the node has started");
                std::process::exit(i32::from(128 + number));
            }
            () = tokio::time::sleep(STARTING) => {
                notify(&format!("EXTEND_TIMEOUT_USEC={}", (STARTING * 6).as_micros()));
            }
        }
    }
}

/// How often a supervisor hears that the node is still being started.
const STARTING: Duration = Duration::from_secs(10);

/// That nobody listens to what is said of the node on standard output is no reason for it to end.
fn told(said: Result<()>) {
    if let Err(failure) = said {
        tracing::warn!("{}", failure.message);
    }
}

/// Opens the port for HTTP that somebody has asked for.
fn listen_for_http(address: SocketAddr) -> Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| {
        let code = if error.kind() == io::ErrorKind::AddrInUse { Code::InUse } else { Code::Io };
        let what = format!("cannot listen on {address} (TCP) for HTTP: {error}");
        Failure::new(code, what).adding("give another with --http, or --http off")
    })?;
    if !address.ip().is_loopback() {
        tracing::warn!("the metrics and the status page are open to whoever reaches {address} (TCP)");
    }
    Ok(listener)
}

/// Opens the port for HTTP that nobody has asked for: without it the node does its work all the same.
fn listen_for_http_if_free(address: SocketAddr) -> Option<TcpListener> {
    match TcpListener::bind(address) {
        Ok(listener) => Some(listener),
        Err(error) => {
            tracing::warn!(
                %error,
                "NO METRICS AND NO STATUS PAGE: {address} (TCP) cannot be listened on; give another with --http, or \
                 --http off"
            );
            None
        }
    }
}

/// Serves for ever; returns only what went wrong.
async fn live(node: &Node, settings: &Settings, files: &CertificateFiles, out: &mut Output) -> Result<()> {
    let options = ClientOptions::from_files(files)?;
    let begun = begin::begin(node, settings, &options).await?;
    let redis = serve_redis(node, settings, files).await?;
    told(say_serving(node, redis.as_ref().map(RedisServer::local_address), settings, begun, out));
    if let Some(redis) = &redis {
        told(say_redis(redis, settings, out));
    }
    notify("READY=1\nSTATUS=serving");
    let mut failures = Vec::new();
    loop {
        tokio::time::sleep(CHECK_UP).await;
        let status = node.status();
        // Whoever supervises the process can do more about it than this loop.
        if let Some(failure) = status.failure {
            return Err(Failure::new(
                Code::Io,
                format!(
                    "the write-ahead log failed, and nothing is acknowledged any more: {failure}. What was acknowledged \
                     is in it; start the node again"
                ),
            ));
        }
        let mut found: Vec<String> = Vec::new();
        let groups = status.groups.into_iter();
        found.extend(groups.filter_map(|group| Some(format!("group {}: {}", group.group, group.failure?))));
        if found != failures {
            for failure in &found {
                tracing::error!("{failure}");
            }
            if found.is_empty() {
                tracing::info!("the node has recovered");
            }
            notify(&format!("STATUS={}", found.first().map_or("serving", String::as_str).replace('\n', " ")));
            failures = found;
        }
    }
}

/// Lets Redis clients in. They are let out when this is dropped.
async fn serve_redis(
    node: &Node,
    settings: &Settings,
    files: &CertificateFiles,
) -> Result<Option<RedisServer>> {
    let (address, is_asked) = match settings.redis {
        Port::Off => return Ok(None),
        Port::IfFree(address) => (address, false),
        Port::Asked(address) => (address, true),
    };
    let mut options = RedisOptions::new(address);
    options.password.clone_from(&settings.redis_password);
    options.certificates = settings.certs.is_some().then(|| CertificateSource::Files(files.clone()));
    options.max_connections = settings.max_connections as usize;
    options.announce.clone_from(&settings.redis_announce);
    options.redirects = match settings.redis_moved {
        RedisMoved::Off => Redirects::Off,
        RedisMoved::Aware => Redirects::Aware,
        RedisMoved::Always => Redirects::Always,
    };
    match RedisServer::start(node.client(), options).await {
        Ok(server) => Ok(Some(server)),
        Err(error) if is_asked => Err(no_redis(address, &error)),
        // Without it the node does its work all the same.
        Err(error) => {
            tracing::warn!(
                %error,
                "NO REDIS CLIENTS: {address} (TCP) cannot be listened on; give another with --redis, or --redis off"
            );
            Ok(None)
        }
    }
}

fn no_redis(address: SocketAddr, error: &io::Error) -> Failure {
    let code = if error.kind() == io::ErrorKind::AddrInUse { Code::InUse } else { Code::Io };
    let what = format!("cannot listen on {address} (TCP) for Redis clients: {error}");
    Failure::new(code, what).adding("give another with --redis, or --redis off")
}

fn say_redis(redis: &RedisServer, settings: &Settings, out: &mut Output) -> Result<()> {
    let (address, has_password) = (redis.local_address(), settings.redis_password.is_some());
    if out.json {
        let (event, address) = ("redis", address.to_string());
        out.document(&json!({ "event": event, "address": address, "has_password": has_password }))?;
        return out.finish();
    }
    let port = address.port();
    match &settings.certs {
        Some(certs) if !address.ip().is_loopback() => out.line(format_args!(
            "serving Redis clients on {address} (TCP, TLS); try: redis-cli -h HOST -p {port} --tls --cacert {} --askpass",
            certs.join("ca.crt").display()
        ))?,
        _ => out.line(format_args!("serving Redis clients on {address} (TCP); try: redis-cli -p {port}"))?,
    }
    if !has_password {
        out.line("WITHOUT A PASSWORD: whoever is on this machine can do anything with the data there")?;
    }
    out.finish()
}

fn node_config(settings: &Settings) -> (NodeConfig, CertificateFiles) {
    let mut config = NodeConfig::new(&settings.data, settings.node.0, settings.listen);
    config.replication.addresses.clone_from(&settings.advertise);
    config.replication.cache_bytes = settings.cache_mib << 20;
    config.replication.low_disk_bytes = settings.disk_low_bytes;
    config.net.max_client_connections = settings.max_connections as usize;
    config.replication.convert_embedded = settings.from_embedded;
    config.replication.zone.clone_from(&settings.zone);
    config.replication.weight = settings.weight;
    if settings.preset == Preset::Wan {
        config.replication.timing = Timing::WAN;
        config.net.connect_timeout = Duration::from_secs(10);
        config.net.idle_timeout = Duration::from_secs(15);
        config.net.keep_alive = Duration::from_secs(3);
        config.net.initial_rtt = Duration::from_millis(100);
        config.net.max_datagram = 1452;
    }
    let directory = settings.certs.clone().unwrap_or_else(|| development(&settings.data));
    let files = CertificateFiles::of_node(&directory, settings.node);
    if settings.certs.is_some() {
        config.certificates = NodeCertificates::Files(files.clone());
    }
    (config, files)
}

/// Where a node's certificates for trying things out lie.
fn development(data: &Path) -> std::path::PathBuf {
    data.join("dev-certs")
}

fn explain(error: StartError, settings: &Settings) -> Failure {
    let mut failure = Failure::from(error);
    if failure.code == Code::Certificates
        && let Some(certs) = &settings.certs
    {
        let (node, certs) = (settings.node, certs.display());
        failure = failure.adding(format!("`dogsled certs node {node} --certs {certs}` makes one"));
    }
    // What is said of an embedded database is of no use to a node, which has others to ask.
    if let Some(damage) = failure.message.strip_suffix("; `dogsled repair` saves what is sound") {
        let instead = match damage.contains("/groups/") {
            true => {
                "put it back if you can, or move that replica's directory (groups/0) away: it is made anew from the log \
                 and by the other nodes"
            }
            false => {
                "put it back if you can; else this member has lost what it promised: take it out of the cluster, and \
                 let a new one join"
            }
        };
        failure.message = format!("{damage}; {instead}");
        failure.code = Code::Corrupt;
    }
    if failure.code == Code::InUse && failure.message.contains("listen") {
        failure = failure.adding("give another with --listen");
    }
    failure
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Failure {
        match error {
            StartError::Certificates(error) | StartError::Listen(OpenError::Certificate(error)) => {
                error.into()
            }
            StartError::Listen(OpenError::Listen { address, source }) => {
                let code = match source.kind() {
                    std::io::ErrorKind::AddrInUse => Code::InUse,
                    _ => Code::Io,
                };
                Failure::new(code, format!("cannot listen on {address} (UDP): {source}"))
            }
            StartError::Storage(error) => error.into(),
            other => Failure::usage(other.to_string()),
        }
    }
}

fn say_listening(node: &Node, http: Option<SocketAddr>, settings: &Settings, out: &mut Output) -> Result<()> {
    let data = settings.data.display();
    let address = node.local_address();
    if out.json {
        out.document(&json!({
            "event": "listening",
            "version": env!("CARGO_PKG_VERSION"),
            "node": node.id().0,
            "address": address.to_string(),
            "advertised": node.addresses(),
            "http": http.map(|http| http.to_string()),
            "data": data.to_string(),
            "development_certificates": settings.certs.is_none(),
        }))?;
        return out.finish();
    }
    out.line(format_args!(
        "dogsled {}: node {} listens on {address} (UDP), data in {data}",
        env!("CARGO_PKG_VERSION"),
        node.id()
    ))?;
    if let Some(http) = http {
        out.line(format_args!("metrics and a status page at http://{http}/"))?;
    }
    if settings.certs.is_none() {
        out.line(format_args!(
            "DEVELOPMENT CERTIFICATES in {}: whoever can read them can do anything here. `dogsled certs` makes real ones",
            development(&settings.data).display()
        ))?;
    }
    if node.cluster().is_none() {
        match &settings.beginning {
            Beginning::Alone => {}
            Beginning::Make(members) => {
                out.line(format_args!(
                    "making a cluster of {}",
                    output::count(members.len().max(1) as u64, "node")
                ))?;
            }
            Beginning::Wait(_) => out.line("waiting to be taken into the cluster by the node with --init")?,
            Beginning::Join(seeds) => {
                out.line(format_args!("joining the cluster of {}", seeds.join(", ")))?
            }
        }
    }
    out.finish()
}

fn say_serving(
    node: &Node,
    redis: Option<SocketAddr>,
    settings: &Settings,
    begun: Begun,
    out: &mut Output,
) -> Result<()> {
    let map = node.map();
    if out.json {
        out.document(&json!({
            "event": "serving",
            "cluster": format!("{:032x}", map.cluster),
            "partitions": map.partitions,
            "members": map.members.iter().map(|(member, _)| member.0).collect::<Vec<_>>(),
            "is_new": begun != Begun::Continued,
            "redis": redis.map(|redis| redis.to_string()),
        }))?;
        return out.finish();
    }
    let members: Vec<String> = map.members.iter().map(|(member, _)| member.to_string()).collect();
    let how = match begun {
        Begun::Made => "made",
        Begun::Joined => "joined",
        Begun::Continued => "belongs to",
    };
    let nodes = if members.len() == 1 {
        "of this node alone".to_owned()
    } else {
        format!("of nodes {}", members.join(", "))
    };
    out.line(format_args!(
        "{how} the cluster {:032x} {nodes}, with {} partitions",
        map.cluster, map.partitions
    ))?;
    let reached = node.addresses().first().cloned();
    let reached = reached.unwrap_or_else(|| node.local_address().to_string());
    let mut options = format!(" --connect {reached}");
    match &settings.certs {
        Some(certs) => options.push_str(&format!(" --certs {}", certs.display())),
        None if settings.data != Path::new(DEFAULT_DATA) => {
            options.push_str(&format!(" --certs {}", development(&settings.data).display()));
        }
        None => {}
    }
    out.line(format_args!("serving; try: dogsled{options} put greeting hello"))?;
    out.line(format_args!("             dogsled{options} status"))?;
    out.finish()
}
