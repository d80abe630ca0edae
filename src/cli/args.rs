//! The command line, as clap reads it.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use super::bytes::ByteFormat;
use super::exit::{EXIT_CODES, Failure, Result};
use super::load::LoadFormat;

mod coordination;
mod node;

pub(crate) use coordination::{
    ElectionCommand, FenceArgs, LockRun, NamedLockRun, RegistryCommand, RunArgs, SemaphoreArgs,
    SessionCommand, UnderLock,
};
pub(crate) use node::{
    CertsCommand, DemoArgs, LogFormat, MemberCommand, Preset, RebalanceArgs, RedisMoved, ServeArgs,
    TreeCommand,
};

/// A key-value store: run a node of a cluster, and read and write a cluster or a database directory.
///
/// `dogsled serve` is a database that others connect to; the other commands reach it with
/// --connect. Or they work on the directory given with --dir (or in DOGSLED_DIR), which no other
/// process may have open. Keys and values are any bytes; they are written as text with \xNN for
/// what is not, unless another form is chosen.
#[derive(Debug, Parser)]
#[command(name = "dogsled", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The database directory
    #[arg(short, long, global = true, env = "DOGSLED_DIR", value_name = "DIR")]
    pub(crate) dir: Option<PathBuf>,

    /// Nodes of a cluster to work on, instead of a directory; any of them will do
    #[arg(long, global = true, env = "DOGSLED_CONNECT", value_name = "HOST:PORT,…", value_delimiter = ',')]
    pub(crate) connect: Vec<String>,

    /// Directory of certificates [default: what `serve` makes for trying out]
    #[arg(long, global = true, env = "DOGSLED_CERTS", value_name = "DIR")]
    #[arg(
        long_help = "Directory of the authority's and the own certificate, as `dogsled certs` makes them. Without \
                       it, those that `dogsled serve` makes for trying things out, in dogsled-data/dev-certs"
    )]
    pub(crate) certs: Option<PathBuf>,

    /// Whose certificate to show, if there are several
    #[arg(long, global = true, env = "DOGSLED_CLIENT", value_name = "NAME")]
    pub(crate) client: Option<String>,

    /// How long the cluster may take [default: 10; serve: 60; member: 600]
    #[arg(long, global = true, env = "DOGSLED_TIMEOUT", value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) timeout: Option<u64>,

    /// The tree to work on, instead of the default one
    #[arg(short, long, global = true, value_name = "NAME")]
    pub(crate) tree: Option<OsString>,

    /// Print JSON: one object per entry or summary. Errors too, on standard error
    #[arg(long, global = true)]
    pub(crate) json: bool,

    /// How keys are written, in arguments and listings
    #[arg(short, long, global = true, value_name = "FORM", hide_possible_values = true)]
    #[arg(
        long_help = "How keys are written, in arguments and listings: text (with \\xNN escapes), raw, hex, \
                       base64, or file (arguments only: the name of a file that holds the bytes; - is \
                       standard input)"
    )]
    pub(crate) key_format: Option<ByteFormat>,

    /// How values are written: text, raw, hex, base64 or file, as for keys
    #[arg(short = 'f', long, global = true, value_name = "FORM", hide_possible_values = true)]
    pub(crate) value_format: Option<ByteFormat>,

    /// Draw no progress bars (none are drawn where standard error is not a terminal)
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,

    /// Memory for caches and buffered writes, in MiB [default: 256]
    #[arg(long, global = true, env = "DOGSLED_CACHE", value_name = "MIB", value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    pub(crate) cache: Option<u64>,

    /// Whether variables name both a directory and a cluster, and no option says which.
    #[arg(skip)]
    ambiguous: bool,

    /// Whether they were named on the command line.
    #[arg(skip)]
    given: Given,
}

/// Which options were given by whoever wrote the command, not by a variable.
#[derive(Clone, Copy, Debug, Default)]
struct Given {
    dir: bool,
    connect: bool,
}

impl Cli {
    /// Reads the command line and the variables.
    pub(crate) fn read() -> Result<Cli> {
        let matches = match Cli::command().try_get_matches() {
            Ok(matches) => matches,
            // Help and the version are what was asked for, not errors.
            Err(error)
                if !error.use_stderr() || !std::env::args_os().any(|argument| argument == "--json") =>
            {
                error.exit()
            }
            Err(error) => {
                let text = error.render().to_string();
                let text = text.strip_prefix("error: ").unwrap_or(&text);
                let first = text.split("\n\n").next().unwrap_or_default();
                return Err(Failure::usage(first.trim().to_owned()));
            }
        };
        let mut cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
        cli.global.given = Given { dir: given("dir"), connect: given("connect") };
        cli.global.settle(given("dir"), given("connect"))?;
        Ok(cli)
    }
}

impl Global {
    pub(crate) fn is_dir_given(&self) -> bool {
        self.given.dir
    }

    pub(crate) fn is_connect_given(&self) -> bool {
        self.given.connect
    }

    /// An option overrules the other one's variable.
    fn settle(&mut self, dir_given: bool, connect_given: bool) -> Result<()> {
        if self.dir.is_none() || self.connect.is_empty() {
            return Ok(());
        }
        match (dir_given, connect_given) {
            (true, true) => return Err(Failure::usage("--dir and --connect exclude each other")),
            (true, false) => self.connect.clear(),
            (false, true) => self.dir = None,
            (false, false) => self.ambiguous = true,
        }
        Ok(())
    }

    /// Whether the command is to work on a cluster.
    pub(crate) fn wants_cluster(&self) -> Result<bool> {
        if self.ambiguous {
            return Err(Failure::usage(
                "DOGSLED_DIR and DOGSLED_CONNECT are both set: say with --dir or --connect which one is meant",
            ));
        }
        Ok(!self.connect.is_empty())
    }

    /// How long the cluster may take; `default` if nothing was said.
    pub(crate) fn timeout_or(&self, default: u64) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(default))
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Print the value of a key
    Get {
        /// The key
        key: OsString,
        /// Write the value's bytes to this file instead
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        from: ReadArgs,
    },
    /// Set a key; synced when the command returns
    Put {
        /// The key
        key: OsString,
        /// The value; with -f file the name of a file that holds it
        value: OsString,
        /// Let it expire after so long; a later put without this makes it stay
        #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        ttl: Option<u64>,
        /// Let it die with this session of a cluster, which `dogsled session open` has made
        #[arg(long, value_name = "ID", conflicts_with_all = ["ttl", "under"])]
        session: Option<String>,
        /// Put the next number behind the key, which is larger than all before, and print what came of it
        #[arg(long, conflicts_with_all = ["ttl", "under"])]
        next: bool,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Set or remove a key if its value is what is expected; exit code 8 if it is another
    Cas {
        /// The key
        key: OsString,
        /// What its value must be; without this it must not be there
        #[arg(long, value_name = "VALUE", required_unless_present = "new")]
        old: Option<OsString>,
        /// What to set it to; without this it is removed
        #[arg(long, value_name = "VALUE")]
        new: Option<OsString>,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Say how many seconds a key has to live, or "forever"; exit code 1 if it is not there
    Ttl {
        /// The key
        key: OsString,
    },
    /// Let a key expire after so long; exit code 1 if it is not there
    Expire {
        /// The key
        key: OsString,
        /// How long it has to live
        #[arg(value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
        seconds: u64,
    },
    /// Take the time to live from a key, so that it stays; exit code 1 if it has none
    Persist {
        /// The key
        key: OsString,
    },
    /// Remove keys; synced when the command returns
    Del {
        /// The keys; exit code 1 if one of them is not there (the others are removed)
        #[arg(required = true)]
        keys: Vec<OsString>,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// List keys and values in key order, as TSV
    Scan {
        #[command(flatten)]
        range: RangeArgs,
        /// From the last to the first
        #[arg(short, long)]
        reverse: bool,
        /// No more than this many
        #[arg(short = 'n', long)]
        limit: Option<u64>,
        /// Only the keys
        #[arg(long)]
        keys_only: bool,
        #[command(flatten)]
        from: ReadArgs,
    },
    /// Tell what happens to keys of a cluster, as it happens, until it is interrupted
    ///
    /// A line for each change: "+" with key and value, "-" with the key, "cleared", or "lost" where changes are
    /// missing because the cluster keeps no more of them. With --json, each has the position to go on from.
    Watch {
        /// What the keys begin with; all keys if not given
        prefix: Option<OsString>,
        /// Begin with what comes after this position, of a line of --json, instead of with what comes now
        #[arg(long, value_name = "POSITION")]
        after: Option<String>,
        /// End after so many lines
        #[arg(short = 'n', long)]
        limit: Option<u64>,
    },
    /// Count keys
    Count {
        #[command(flatten)]
        range: RangeArgs,
        #[command(flatten)]
        from: ReadArgs,
    },
    /// List the trees with their numbers of keys
    Trees,
    /// Load TSV, CSV, JSON Lines or Redis commands from a file or standard input
    Load(LoadArgs),
    /// Write all trees (or the one chosen with --tree) to a file or standard output
    Export {
        /// The file; - or none is standard output
        file: Option<PathBuf>,
        /// What to write; told from the file's name (.jsonl) if not given
        #[arg(long, value_name = "FORMAT")]
        format: Option<ExportFormat>,
    },
    /// Read what export wrote, refused as a whole if any of it is damaged (of JSON Lines, which are not checksummed: if a
    /// line is none); or all that an embedded database has
    Import {
        /// The file, or the directory of an embedded database, which no other process may have open meanwhile;
        /// - is standard input
        file: PathBuf,
        /// What it holds; told from its first bytes if not given
        #[arg(long, value_name = "FORMAT")]
        format: Option<ExportFormat>,
        /// Import into trees that have keys already, overwriting those that are in both
        #[arg(long)]
        merge: bool,
    },
    /// Copy the database, or a cluster (with --connect), to a new directory
    ///
    /// Of a directory the copy is a database like any other. Of a cluster it is a backup for `dogsled restore`: the state
    /// of all partitions at one moment, while writes go on.
    Backup {
        /// The new directory; with two, from the first to the second
        #[arg(required = true, num_args = 1..=2, value_names = ["SOURCE", "TARGET"])]
        directories: Vec<PathBuf>,
        /// Only what a cluster has changed since this backup; if that adds to others itself, name these first
        #[arg(long, value_name = "BACKUP")]
        since: Vec<PathBuf>,
    },
    /// Write a backup of a cluster into a cluster, of any size (with --connect)
    ///
    /// Everything is read and checked first; nothing is written of what is damaged. Interrupted, the same command goes on.
    Restore {
        /// The complete backup, and those that add to it, oldest first
        #[arg(required = true, value_name = "BACKUP")]
        directories: Vec<PathBuf>,
        /// Into a cluster that is not empty, overwriting keys that are in both
        #[arg(long)]
        merge: bool,
        /// Do not read back and compare in the end
        #[arg(long)]
        no_check: bool,
    },
    /// Read everything and check every checksum and count
    Verify {
        /// The database directory, instead of --dir
        directory: Option<PathBuf>,
    },
    /// Save what is sound of a damaged database to a new directory; the damaged one is not touched
    Repair {
        /// The new directory; with two, from the first to the second
        #[arg(required = true, num_args = 1..=2, value_names = ["SOURCE", "TARGET"])]
        directories: Vec<PathBuf>,
        /// Apply sound commits of the log that lie behind lost ones, too: newer values, but perhaps
        /// of a state that the database never had
        #[arg(long)]
        behind_gaps: bool,
    },
    /// Show sizes and counts
    Stats {
        /// The database directory, instead of --dir
        directory: Option<PathBuf>,
    },
    /// Measure this machine: puts, gets and scans, beside raw writes to the same disk
    Bench(BenchArgs),
    /// Look into the write-ahead log of a database that is not open
    Wal {
        #[command(subcommand)]
        command: WalCommand,
    },
    /// Read or change a counter
    Counter {
        #[command(subcommand)]
        command: CounterCommand,
    },
    /// Carry out several operations as one transaction: lines of JSON such as
    /// {"op":"put","key":"a","value":"1"}, with the operations get, put (perhaps with "ttl" in seconds), expire
    /// (with "ttl"), persist, remove, check (with "is") and add (with "counter" and "by")
    Txn {
        /// The file with the operations; - is standard input
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// See or take a lock, or run a command under it: `dogsled lock NAME -- command`
    #[command(subcommand_negates_reqs = true)]
    Lock {
        #[command(subcommand)]
        command: Option<LockCommand>,
        #[command(flatten)]
        run: LockRun,
    },
    /// Run a command under a read/write lock that is held for reading, beside other readers
    ReadLock(NamedLockRun),
    /// Run a command under a read/write lock that is held for writing, by nobody else
    WriteLock(NamedLockRun),
    /// Run a command under a permit of a semaphore, of which there are so many
    Semaphore(SemaphoreArgs),
    /// Lead, or see who leads: one among many candidates
    Election {
        #[command(subcommand)]
        command: ElectionCommand,
    },
    /// Open and close sessions: what a session owns (`put --session`) dies with it
    Session {
        #[command(subcommand)]
        command: SessionCommand,
    },
    /// Make instances of services known, and find them
    Registry {
        #[command(subcommand)]
        command: RegistryCommand,
    },
    /// Run a node: a database that others connect to, alone or with other nodes
    Serve(Box<ServeArgs>),
    /// Make certificates for a cluster: its authority, its nodes, its clients
    Certs {
        #[command(subcommand)]
        command: CertsCommand,
    },
    /// How a cluster is: members, groups, leaders, lag, log (with --connect)
    Status,
    /// See or change who belongs to a cluster (with --connect)
    Member {
        #[command(subcommand)]
        command: MemberCommand,
    },

    /// Move everything that a member holds to the others; it stays a member
    Drain {
        /// The node
        id: u64,
        /// Let it have its share again
        #[arg(long)]
        cancel: bool,
        /// Return when it is decided, not when it is done
        #[arg(long)]
        no_wait: bool,
    },

    /// Look at how partitions move between the members, and steer it
    Rebalance(RebalanceArgs),

    /// Keep so many replicas of each partition
    Replicas {
        /// How many; no more than there are active members
        count: u32,
        /// Return when it is decided, not when it is done
        #[arg(long)]
        no_wait: bool,
    },

    /// Quotas of trees, and (with --connect) what of a tree's keys says in which partition they lie
    Tree {
        #[command(subcommand)]
        command: TreeCommand,
    },

    /// Bring back what has lost its quorum for ever, from the best of what is left
    #[command(long_about = "\
Bring back partitions, or the meta group, whose quorum is lost for ever, from the best of what is left.

Each of them goes on with the replica that has most of its log. What only the lost members had is lost,
though it was acknowledged. So nothing is done without --accept-data-loss: the command says what it
would do, what the survivors have, and ends with exit code 8. The ids of the lost members are never taken
in again; if one of them comes back with what it had, it is refused. New nodes join as always.

If a lost member's disk is sound, start it instead: nothing is lost then.")]
    Recover {
        /// The members that will never come back; without any, it looks at those that do not answer
        #[arg(value_name = "ID")]
        lost: Vec<u64>,
        /// Do it, though acknowledged writes may be lost
        #[arg(long)]
        accept_data_loss: bool,
    },

    /// Watch a cluster of three nodes in this process lose its leader, and nothing else
    Demo(DemoArgs),
}

/// A part of a tree.
#[derive(Debug, Args)]
pub(crate) struct RangeArgs {
    /// Keys that begin with this
    #[arg(short, long)]
    pub(crate) prefix: Option<OsString>,
    /// Keys from this one on
    #[arg(long, value_name = "KEY")]
    pub(crate) from: Option<OsString>,
    /// Keys before this one
    #[arg(long, value_name = "KEY")]
    pub(crate) to: Option<OsString>,
}

/// Which replicas of a cluster answer.
#[derive(Debug, Default, Args)]
pub(crate) struct ReadArgs {
    /// Which replica of a cluster answers [default: leader]
    #[arg(long, value_name = "WHICH", value_enum, conflicts_with = "max_age")]
    pub(crate) read_from: Option<ReadFromArg>,
    /// What was acknowledged so many seconds ago must be seen, what came later need not be: the nearest
    /// replica that is known to be that new answers
    #[arg(long, value_name = "SECONDS")]
    pub(crate) max_age: Option<f64>,
    /// The zone that this is run in, for what is read from the nearest replica
    #[arg(long, env = "DOGSLED_ZONE", value_name = "ZONE")]
    pub(crate) zone: Option<String>,
}

/// Of `--read-from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ReadFromArg {
    /// The leader of each partition
    Leader,
    /// The replicas in turn; as new as the leader
    Any,
    /// A replica in --zone, if one answers; as new as the leader
    Nearest,
    /// Any replica, however old
    Stale,
}

/// Arguments of `load`.
#[derive(Debug, Args)]
pub(crate) struct LoadArgs {
    /// The file; - is standard input
    pub(crate) file: PathBuf,
    /// What it holds; told from its name (.tsv, .csv, .jsonl, .redis) if not given
    #[arg(long, value_name = "FORMAT")]
    pub(crate) format: Option<LoadFormat>,
    /// The key: a column (name or number from 1), or a field of JSON objects
    #[arg(long, value_name = "COLUMN")]
    pub(crate) key: Option<String>,
    /// The value: a column or field. Without it the other of two columns; of more, all but the
    /// key as a JSON object; of JSON objects, the whole object
    #[arg(long, value_name = "COLUMN")]
    pub(crate) value: Option<String>,
    /// The first line names the columns (the default for CSV)
    #[arg(long, overrides_with = "no_header")]
    pub(crate) header: bool,
    /// The first line is data (the default for TSV)
    #[arg(long)]
    pub(crate) no_header: bool,
    /// What separates columns, instead of a tab or comma
    #[arg(long, value_name = "CHARACTER")]
    pub(crate) delimiter: Option<char>,
    /// Leave out wrong records and say how many, instead of stopping at the first
    #[arg(long)]
    pub(crate) skip_bad: bool,
    /// Read and check the whole input, write nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    #[command(flatten)]
    pub(crate) fence: FenceArgs,
}

/// The formats of `export` and `import`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum ExportFormat {
    /// dogsled's own stream: compact, checksummed, versioned
    Archive,
    /// One {"tree":…, "key":…, "value":…} per line
    #[value(name = "jsonl", alias = "ndjson", alias = "json-lines")]
    JsonLines,
}

/// Arguments of `bench`.
#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// A directory on the disk to measure, instead of the current one; what is written there is
    /// removed again
    pub(crate) place: Option<PathBuf>,
    /// How many keys to write and read
    #[arg(long, default_value_t = 200_000, value_parser = clap::value_parser!(u64).range(1_000..=1_000_000_000))]
    pub(crate) records: u64,
    /// Bytes per value
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    pub(crate) value_size: u32,
    /// Durable writes per round; each waits for the disk
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u64).range(10..))]
    pub(crate) syncs: u64,
    /// Rounds; every figure is the median of them
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
}

/// Of `wal`.
#[derive(Debug, Subcommand)]
pub(crate) enum WalCommand {
    /// List what the log holds, commit by commit
    Dump {
        /// The database directory, instead of --dir
        directory: Option<PathBuf>,
        /// No more than so many commits; each has a line per operation
        #[arg(short = 'n', long)]
        limit: Option<u64>,
    },
    /// Check every frame, and say where the log ends and why
    Verify {
        /// The database directory, instead of --dir
        directory: Option<PathBuf>,
    },
}

/// Of `counter`.
#[derive(Debug, Subcommand)]
pub(crate) enum CounterCommand {
    /// Print its value; 0 if it was never touched
    Get {
        /// The counter
        name: OsString,
    },
    /// Add to it (a negative number subtracts) and print the new value
    Add {
        /// The counter
        name: OsString,
        /// How much
        #[arg(allow_negative_numbers = true, default_value_t = 1)]
        amount: i64,
        /// Refuse (exit code 8) to go below this
        #[arg(long, allow_negative_numbers = true)]
        min: Option<i64>,
        /// Refuse (exit code 8) to go above this
        #[arg(long, allow_negative_numbers = true)]
        max: Option<i64>,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Set it and print what it was
    Set {
        /// The counter
        name: OsString,
        /// What it is to be
        #[arg(allow_negative_numbers = true)]
        value: i64,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Set it if it is what is expected; exit code 8 if it is not
    SetIf {
        /// The counter
        name: OsString,
        /// What it must be; 0 if it was never touched
        #[arg(allow_negative_numbers = true)]
        expected: i64,
        /// What it is to be
        #[arg(allow_negative_numbers = true)]
        value: i64,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Set it back to 0 and print what it was
    Reset {
        /// The counter
        name: OsString,
        #[command(flatten)]
        fence: FenceArgs,
    },
}

/// Of `lock`.
#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Say who holds it, a line for each of those who share it; exit code 1 if nobody does
    Holder {
        /// The lock
        name: OsString,
    },
    /// Take it for a time and print the fencing token; exit code 8 if another holds it
    Acquire {
        /// The lock
        name: OsString,
        /// Who takes it
        #[arg(long)]
        owner: OsString,
        /// For how long, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=365 * 86_400))]
        lease: u64,
        /// Wait for so long if another holds it
        #[arg(long, value_name = "SECONDS", default_value_t = 0)]
        wait: u64,
    },
    /// Start its lease anew; exit code 8 if it is no longer held so
    Renew {
        /// The lock
        name: OsString,
        /// Who took it
        #[arg(long)]
        owner: OsString,
        /// The token that acquire printed
        #[arg(long)]
        token: u64,
        /// For how long from now, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=365 * 86_400))]
        lease: u64,
    },
    /// Give it back, or the share of it that has this token; exit code 8 if it is no longer held so
    Release {
        /// The lock
        name: OsString,
        /// Who took it
        #[arg(long)]
        owner: OsString,
        /// The token that acquire printed
        #[arg(long)]
        token: u64,
    },
}
