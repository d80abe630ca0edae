//! `compare`: dogsled beside its peers, in one process run on one file system.
//!
//! ```text
//! cargo run --release -p dogsled-benches --features peers -- compare
//! ```
//!
//! Only options are dealt with here; the library of this crate does the work.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand};

use dogsled_benches::child::ChildTask;
use dogsled_benches::contestant::Contestant;
use dogsled_benches::results::{Effort, Report};
use dogsled_benches::rows::Table;
use dogsled_benches::{child, compare, comparison, peers, plot, readme, report, ring};

/// The nodes' is the one that the `dogsled` binary has. Embedded databases that are compared, some of them in C++,
/// all have the system's.
#[cfg(all(feature = "cluster", not(feature = "peers")))]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Benchmarks of dogsled beside other embedded databases.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure, print tables, write compare.json and compare.svg.
    Compare(CompareArgs),
    /// Run three replicated nodes beside three of etcd, write cluster.json.
    #[cfg(feature = "cluster")]
    Cluster(ClusterArgs),
    /// Counters, locks, transactions and watches of a cluster beside etcd's and Redis', write operations.json.
    #[cfg(feature = "cluster")]
    Operations(OperationsArgs),
    /// A node that joins, and what partitions cost, write partitions.json.
    #[cfg(feature = "cluster")]
    Partitions(PartitionsArgs),
    /// redis-benchmark on a node, on three, and on Redis, write redis.json.
    #[cfg(feature = "cluster")]
    Redis(RedisArgs),
    /// Place 100,000 partitions on 1,000 nodes, on paper; write ring.json and ring.svg.
    Ring(RingArgs),
    /// Print a table for the documents from a JSON file that `compare`, `cluster`, `operations`, `partitions` or `redis`
    /// wrote.
    ReadmeTable {
        /// The file.
        #[arg(default_value = "benches/results/compare.json")]
        json: PathBuf,
    },
    /// Bring README's table up to date with the files that were written.
    ReadmeComparison {
        /// The document.
        #[arg(default_value = "README.md")]
        readme: PathBuf,
        /// Where the files are.
        #[arg(long, default_value = "benches/results")]
        results: PathBuf,
    },
    #[command(hide = true)]
    Child {
        #[command(subcommand)]
        task: ChildTask,
    },
}

#[cfg(feature = "cluster")]
#[derive(Debug, Args)]
struct ClusterArgs {
    /// Repeats of each measurement.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// How often the leader is killed.
    #[arg(long, default_value_t = 50)]
    kills: usize,
    /// Workloads whose name begins so, separated by commas (put, get, batch, idle, failover, rolling, snapshot).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Directory for the nodes' data, on the file system to measure; it is removed at the end.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Directory for cluster.json.
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
    /// Keep the rows in cluster.json that this run does not measure: a long comparison in several sittings.
    #[arg(long)]
    keep: bool,
}

#[cfg(feature = "cluster")]
#[derive(Debug, Args)]
struct OperationsArgs {
    /// Repeats of each measurement.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Watchers in all.
    #[arg(long, default_value_t = 10_000)]
    watchers: usize,
    /// Workloads whose name begins so, separated by commas (counter, lock, handover, transaction, watch).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Directory for the nodes' data, on the file system to measure; it is removed at the end.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Directory for operations.json.
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
    /// Keep the rows in operations.json that this run does not measure: a long comparison in several sittings.
    #[arg(long)]
    keep: bool,
}

#[cfg(feature = "cluster")]
#[derive(Debug, Args)]
struct PartitionsArgs {
    /// Repeats of each measurement.
    #[arg(long, default_value_t = 3)]
    repeats: usize,
    /// Seconds for each measurement.
    #[arg(long, default_value_t = 3.0)]
    seconds: f64,
    /// MiB that are there when a node joins.
    #[arg(long, default_value_t = 300)]
    mebibytes: u64,
    /// Workloads whose name begins so, separated by commas (join, partitions).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Directory for the nodes' data, on the file system to measure; it is removed at the end.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Directory for partitions.json.
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
    /// Keep the rows in partitions.json that this run does not measure: a long comparison in several sittings.
    #[arg(long)]
    keep: bool,
}

#[cfg(feature = "cluster")]
#[derive(Debug, Args)]
struct RedisArgs {
    /// Repeats of each measurement.
    #[arg(long, default_value_t = 5)]
    repeats: usize,
    /// Seconds for each measurement, about.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Workloads whose name begins so, separated by commas (get, set, incr, three).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Directory for the servers' data, on the file system to measure; it is removed at the end.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Directory for redis.json.
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
    /// Keep the rows in redis.json that this run does not measure: a long comparison in several sittings.
    #[arg(long)]
    keep: bool,
}

#[derive(Debug, Args)]
struct RingArgs {
    /// Nodes of the large cluster.
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u64).range(20..=10_000))]
    nodes: u64,
    /// Its partitions, of three replicas each.
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    partitions: u32,
    /// Directory for ring.json and ring.svg.
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
}

#[derive(Debug, Args)]
struct CompareArgs {
    /// Entries in a warm database [default: 1000000, with --quick 100000].
    #[arg(long)]
    keys: Option<u64>,
    /// Repeats of each measurement [default: 5, with --quick 2].
    #[arg(long)]
    repeats: Option<usize>,
    /// Seconds for each timed measurement [default: 2, with --quick 0.3].
    #[arg(long)]
    seconds: Option<f64>,
    /// Workloads whose name begins so, separated by commas (durable-put, get, tx-buffered-16, …).
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Contestants, separated by commas [default: all that were compiled in].
    #[arg(long, value_delimiter = ',')]
    contestants: Vec<String>,
    /// Contestants of the workloads that take many minutes each (disk-growth, memory), separated by commas.
    #[arg(long, value_delimiter = ',', default_value = "dogsled")]
    heavy: Vec<String>,
    /// Entries in the memory workload [default: 10000000, with --quick 500000].
    #[arg(long)]
    memory_keys: Option<u64>,
    /// Cache of each contestant in MiB.
    #[arg(long, default_value_t = 512)]
    cache_mib: u64,
    /// Directory for the databases, on the file system to measure; they are removed at the end.
    #[arg(long, default_value = "target")]
    dir: PathBuf,
    /// Directory for compare.json and compare.svg.
    #[arg(long, default_value = "benches/results")]
    out: PathBuf,
    /// Keep the workloads in compare.json that this run does not measure: a long comparison in several sittings.
    /// Each workload is still measured in one run, with all of its contestants.
    #[arg(long)]
    keep: bool,
    /// A run of a few minutes to see that everything works. Not for quoting.
    #[arg(long)]
    quick: bool,
}

fn main() -> Result<()> {
    match Cli::parse().command {
        Command::Compare(args) => compare(&args),
        #[cfg(feature = "cluster")]
        Command::Cluster(args) => dogsled_benches::cluster::run(&dogsled_benches::cluster::Plan {
            repeats: args.repeats.max(1),
            seconds: args.seconds,
            kills: args.kills,
            only: args.only,
            dir: args.dir,
            out: args.out,
            keep: args.keep,
        }),
        #[cfg(feature = "cluster")]
        Command::Operations(args) => {
            dogsled_benches::cluster::operations(&dogsled_benches::cluster::OperationsPlan {
                repeats: args.repeats.max(1),
                seconds: args.seconds,
                watchers: args.watchers.max(100),
                only: args.only,
                dir: args.dir,
                out: args.out,
                keep: args.keep,
            })
        }
        #[cfg(feature = "cluster")]
        Command::Partitions(args) => {
            dogsled_benches::cluster::partitions(&dogsled_benches::cluster::PartitionsPlan {
                repeats: args.repeats.max(1),
                seconds: args.seconds,
                mebibytes: args.mebibytes,
                only: args.only,
                dir: args.dir,
                out: args.out,
                keep: args.keep,
            })
        }
        #[cfg(feature = "cluster")]
        Command::Redis(args) => {
            dogsled_benches::cluster::redis_clients(&dogsled_benches::cluster::RedisClientsPlan {
                repeats: args.repeats.max(1),
                seconds: args.seconds,
                only: args.only,
                dir: args.dir,
                out: args.out,
                keep: args.keep,
            })
        }
        Command::Ring(args) => ring::run(args.nodes, args.partitions, &args.out),
        Command::ReadmeTable { json } => {
            let text = fs::read_to_string(&json).with_context(|| format!("reading {}", json.display()))?;
            match serde_json::from_str::<Table>(&text) {
                Ok(table) => print!("{}", table.markdown()),
                Err(_) => print!("{}", readme::table(&serde_json::from_str::<Report>(&text)?)),
            }
            Ok(())
        }
        Command::ReadmeComparison { readme, results } => {
            let text =
                fs::read_to_string(&readme).with_context(|| format!("reading {}", readme.display()))?;
            let text = comparison::replaced(&text, &comparison::table(&results)?)?;
            fs::write(&readme, text).with_context(|| format!("writing {}", readme.display()))
        }
        Command::Child { task } => child::run(task),
    }
}

fn compare(args: &CompareArgs) -> Result<()> {
    compare::check_only(&args.only)?;
    let contestants = if args.contestants.is_empty() { peers::all() } else { named(&args.contestants)? };
    if contestants.is_empty() {
        bail!("no contestant was compiled in: build with --features peers");
    }
    // A name that was not chosen for the run, or not compiled in, is not an error here: it is a default.
    let heavy = contestants.iter().copied().filter(|one| args.heavy.iter().any(|name| name == one.name()));
    let scratch = compare::scratch(&args.dir)?;
    let (keys, repeats, seconds, memory_keys) =
        if args.quick { (100_000, 2, 0.3, 500_000) } else { (1_000_000, 5, 2.0, 10_000_000) };
    let plan = compare::Plan {
        effort: Effort {
            keys: args.keys.unwrap_or(keys),
            repeats: args.repeats.unwrap_or(repeats).max(1),
            seconds: args.seconds.unwrap_or(seconds),
            memory_keys: args.memory_keys.unwrap_or(memory_keys),
            cache_mebibytes: args.cache_mib,
            quick: args.quick,
        },
        only: args.only.clone(),
        heavy: heavy.collect(),
        contestants,
        dir: scratch.path().to_owned(),
    };
    let earlier = if args.keep { earlier(&args.out)? } else { None };
    let mut report = compare::run(&plan)?;
    if let Some(earlier) = earlier {
        report.keep(earlier)?;
    }
    println!("{}", report::verdicts(&report).trim_end());
    write(&report, &args.out)
}

fn earlier(out: &Path) -> Result<Option<Report>> {
    let json = out.join("compare.json");
    match fs::read_to_string(&json) {
        Ok(text) => {
            Ok(Some(serde_json::from_str(&text).with_context(|| format!("reading {}", json.display()))?))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("reading {}", json.display())),
    }
}

fn named(names: &[String]) -> Result<Vec<&'static dyn Contestant>> {
    names
        .iter()
        .map(|name| {
            peers::by_name(name).with_context(|| {
                let known: Vec<&str> = peers::all().iter().map(|one| one.name()).collect();
                format!("no contestant is called '{name}'; there are: {}", known.join(", "))
            })
        })
        .collect()
}

fn write(report: &Report, out: &Path) -> Result<()> {
    fs::create_dir_all(out)?;
    let (json, svg) = (out.join("compare.json"), out.join("compare.svg"));
    fs::write(&json, serde_json::to_string_pretty(report)? + "\n")?;
    fs::write(&svg, plot::svg(report))?;
    println!("\nwrote {} and {}", json.display(), svg.display());
    Ok(())
}
