//! The arguments of what processes agree on through a cluster: locks, elections, sessions and services.

use std::ffi::OsString;

use clap::{Args, Subcommand};

/// A command that runs while something is held, and how it is ended.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// How long what is held outlives this process, in seconds; it is renewed while the command runs
    #[arg(long, value_name = "SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(crate) lease: u64,
    /// If it is lost the command gets SIGTERM, and SIGKILL after so long, or when it may be another's if that
    /// is sooner
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    pub(crate) kill_after: u64,
    /// The command and its arguments; its exit code is passed on
    #[arg(last = true, value_name = "COMMAND")]
    pub(crate) command: Vec<OsString>,
}

/// A lock that has to be held for something to be written.
#[derive(Debug, Default, Args)]
pub(crate) struct FenceArgs {
    /// Write only if this lock is held under --token then; otherwise nothing is written, exit code 8
    #[arg(long, value_name = "LOCK")]
    pub(crate) under: Option<OsString>,
    /// The fencing token of the lock's grant [default: DOGSLED_LOCK_TOKEN, which `dogsled lock` sets]
    #[arg(long, value_name = "TOKEN", requires = "under")]
    pub(crate) token: Option<u64>,
}

/// A command that runs under a lock, and how to wait for that.
#[derive(Debug, Args)]
#[command(
    after_help = "The command finds the lock's name and the fencing token of its grant in DOGSLED_LOCK and \
                        DOGSLED_LOCK_TOKEN. What it writes with `--under NAME` is written only while it holds the lock."
)]
pub(crate) struct UnderLock {
    /// Give up after so long if the lock is held; exit code 8 [default: wait for ever]
    #[arg(long, value_name = "SECONDS")]
    pub(crate) wait: Option<u64>,
    /// For how long nobody gets the lock after this process has vanished without giving it back
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    pub(crate) delay: u64,
    #[command(flatten)]
    pub(crate) run: RunArgs,
}

/// Of `lock`, to run a command.
#[derive(Debug, Args)]
pub(crate) struct LockRun {
    /// The lock under which to run a command (of a cluster: with --connect). One that is called as one of
    /// the subcommands is can only be used by those
    pub(crate) name: Option<OsString>,
    #[command(flatten)]
    pub(crate) under: UnderLock,
}

/// Of `read-lock` and `write-lock`.
#[derive(Debug, Args)]
pub(crate) struct NamedLockRun {
    /// The read/write lock (of a cluster: with --connect)
    pub(crate) name: OsString,
    #[command(flatten)]
    pub(crate) under: UnderLock,
}

/// Of `semaphore`.
#[derive(Debug, Args)]
pub(crate) struct SemaphoreArgs {
    /// The semaphore (of a cluster: with --connect)
    pub(crate) name: OsString,
    /// How many permits there are; all who use it must say the same
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) capacity: u32,
    /// How many of them to take
    #[arg(long, value_name = "COUNT", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) permits: u32,
    #[command(flatten)]
    pub(crate) under: UnderLock,
}

/// Of `election`.
#[derive(Debug, Subcommand)]
pub(crate) enum ElectionCommand {
    /// Wait for one's turn, and run a command while leading
    ///
    /// The command is stopped when leadership is lost. It finds the election's name and the fencing token of its
    /// leadership in DOGSLED_LOCK and DOGSLED_LOCK_TOKEN.
    Campaign {
        /// The election
        name: OsString,
        /// What to say as the leader: an address, say
        value: OsString,
        /// Give up after so long if another leads; exit code 8 [default: wait for ever]
        #[arg(long, value_name = "SECONDS")]
        wait: Option<u64>,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Say who leads; exit code 1 if nobody does
    Leader {
        /// The election
        name: OsString,
    },
    /// Say another word as the leader; exit code 8 if that is another by now
    Proclaim {
        /// The election
        name: OsString,
        /// What to say
        value: OsString,
        /// The token of the leadership, or of the election's lock [default: DOGSLED_LOCK_TOKEN, which
        /// `dogsled election campaign` sets]
        #[arg(long, value_name = "TOKEN")]
        token: Option<u64>,
    },
    /// Lead no more, so that the next candidate does; exit code 8 if another leads by now
    Resign {
        /// The election
        name: OsString,
        /// The token of the leadership, or of the election's lock [default: DOGSLED_LOCK_TOKEN, which
        /// `dogsled election campaign` sets]
        #[arg(long, value_name = "TOKEN")]
        token: Option<u64>,
    },
    /// Say who leads, and each change, until it is interrupted
    ///
    /// A line for each: "leads" with the value and the token, or "nobody".
    Observe {
        /// The election
        name: OsString,
        /// End after so many lines
        #[arg(short = 'n', long)]
        limit: Option<u64>,
    },
}

/// Of `session`.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// Open one and print its number; it ends unless it is renewed within the lease
    Open {
        /// How long it lives without renewal
        #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=365 * 86_400))]
        lease: u64,
    },
    /// List those that are open: number, lease, what is left of it, and what dies with each
    ///
    /// What is left is what the leader of the partition sees. Of a directory it is the whole lease: whoever opens a
    /// database gives every session its full time again. Sessions of clients, which make writes happen once, own nothing.
    List,
    /// Start its lease anew; exit code 1 if it has ended
    Renew {
        /// The number that open printed
        id: String,
    },
    /// End it: what it owns is gone when this returns; exit code 1 if it has ended
    Close {
        /// The number that open printed
        id: String,
    },
    /// Open one, renew it while a command runs, and close it then
    ///
    /// The command finds the session's number in DOGSLED_SESSION, and is stopped when the session is lost.
    Run {
        #[command(flatten)]
        run: RunArgs,
    },
}

/// Of `registry`.
#[derive(Debug, Subcommand)]
pub(crate) enum RegistryCommand {
    /// Make an instance known while a command runs
    ///
    /// If the cluster could not be reached for a whole lease, the instance is made known again as soon as it can.
    Register {
        /// The service
        service: String,
        /// Where the instance is to be reached
        address: String,
        /// What tells the instance from the others of its service [default: the address]
        #[arg(long)]
        id: Option<String>,
        /// What it says of itself: a zone, a version; may be given more than once
        #[arg(long = "tag", value_name = "TAG")]
        tags: Vec<String>,
        #[command(flatten)]
        run: RunArgs,
    },
    /// Take an instance out before its session ends; exit code 1 if it is not there
    Deregister {
        /// The service
        service: String,
        /// The instance
        id: String,
    },
    /// List the instances that there are: id, address and tags, as TSV
    Instances {
        /// The service
        service: String,
        /// Only those that have this tag
        #[arg(long)]
        tag: Option<String>,
    },
    /// Print the address of one of the instances; exit code 1 if there is none
    Pick {
        /// The service
        service: String,
        /// The same instance for the same key, as long as it is there, instead of a random one
        #[arg(long)]
        key: Option<OsString>,
        /// Only of those that have this tag
        #[arg(long)]
        tag: Option<String>,
    },
    /// List the instances, and each change, until it is interrupted
    ///
    /// A line for each: "+" with id, address and tags when it comes or says something else, "-" with the id when it is gone.
    Follow {
        /// The service
        service: String,
        /// End after so many lines
        #[arg(short = 'n', long)]
        limit: Option<u64>,
    },
}
