//! Measurements that need a process of their own: this executable runs itself.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Subcommand;
use serde::{Deserialize, Serialize};

use crate::contestant::{Contestant, Durability, Settings, open};
use crate::data::{self, Rng, Touched};
use crate::peers;

/// What the child is to do. Not for people: hidden in the help.
#[derive(Debug, Subcommand)]
#[allow(missing_docs)] // The names say it, and no one reads a hidden help.
pub enum ChildTask {
    /// Writes, says so, and waits to be killed.
    Write { contestant: String, dir: PathBuf, keys: u64, cache_bytes: u64, writes: u64 },
    /// Is a node of a cluster.
    #[cfg(feature = "cluster")]
    Node(crate::cluster::NodeTask),
    /// Loads, reads, and reports its memory.
    Memory { contestant: String, dir: PathBuf, keys: u64, cache_bytes: u64, gets: u64 },
}

/// Memory of a child in MiB.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Memory {
    /// Resident after the load.
    pub after_load: f64,
    /// Resident after the gets.
    pub after_gets: f64,
    /// Most that was ever resident.
    pub peak: f64,
    /// Of `after_gets`, pages of mapped files, which the kernel may take back.
    pub file_pages: f64,
}

const READY: &str = "ready";

/// The child's side.
pub fn run(task: ChildTask) -> Result<()> {
    match task {
        ChildTask::Write { contestant, dir, keys, cache_bytes, writes } => {
            write(find(&contestant)?, &dir, keys, cache_bytes, writes)
        }
        #[cfg(feature = "cluster")]
        ChildTask::Node(task) => crate::cluster::run_node(task),
        ChildTask::Memory { contestant, dir, keys, cache_bytes, gets } => {
            let memory = load_and_read(find(&contestant)?, &dir, keys, cache_bytes, gets)?;
            println!("{}", serde_json::to_string(&memory)?);
            Ok(())
        }
    }
}

fn find(name: &str) -> Result<&'static dyn Contestant> {
    peers::by_name(name).with_context(|| format!("no contestant is called {name}"))
}

fn write(contestant: &dyn Contestant, dir: &Path, keys: u64, cache_bytes: u64, writes: u64) -> Result<()> {
    let settings = Settings { durability: Durability::Buffered, cache_bytes, transactions: false };
    let db = open(contestant, dir, settings)?;
    let mut rng = Rng::new(u64::from(std::process::id()));
    db.write(&mut |writer| {
        let mut left = writes;
        while left > 0 {
            let size = left.min(100);
            let batch: Vec<_> = (0..size).map(|_| data::entry(rng.below(keys), rng.next_u64())).collect();
            writer.put_batch(&batch)?;
            left -= size;
        }
        Ok(())
    })?;
    // Nothing asks for a sync or checkpoint; the periodic flush of those that have one shall be over.
    thread::sleep(Duration::from_millis(700));
    let mut out = std::io::stdout();
    writeln!(out, "{READY}")?;
    out.flush()?;
    loop {
        thread::park();
    }
}

fn load_and_read(
    contestant: &dyn Contestant,
    dir: &Path,
    keys: u64,
    cache_bytes: u64,
    gets: u64,
) -> Result<Memory> {
    let settings = Settings { durability: Durability::Buffered, cache_bytes, transactions: false };
    let db = open(contestant, dir, settings)?;
    db.bulk_load(&mut (0..keys).map(|i| data::entry(i, 0)))?;
    let after_load = status("VmRSS")?;
    let mut rng = Rng::new(1);
    let mut touched = Touched::default();
    db.read(&mut |reader| {
        for _ in 0..gets {
            reader.get(&data::key(rng.below(keys)), &mut touched)?;
        }
        Ok(())
    })?;
    ensure!(touched.entries == gets, "asked for {gets} keys, found {}", touched.entries);
    Ok(Memory {
        after_load,
        after_gets: status("VmRSS")?,
        peak: status("VmHWM")?,
        file_pages: status("RssFile")?,
    })
}

/// A field of `/proc/self/status`, in MiB.
fn status(field: &str) -> Result<f64> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .with_context(|| format!("/proc/self/status has no {field}"))?;
    let kibibytes: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kibibytes / 1024.0)
}

/// The parent's side of [`ChildTask::Write`]: returns when the child is dead and collected.
pub fn write_and_be_killed(
    contestant: &dyn Contestant,
    dir: &Path,
    keys: u64,
    cache_bytes: u64,
    writes: u64,
) -> Result<()> {
    let mut child = spawn("write", contestant, dir, &[keys, cache_bytes, writes])?;
    let stdout = child.stdout.take().context("the child has no output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    // SIGKILL, before anything could be tidied up.
    child.kill()?;
    let status = child.wait()?;
    ensure!(line.trim() == READY, "the writing child ended early: {status}");
    Ok(())
}

/// The parent's side of [`ChildTask::Memory`].
pub fn memory(
    contestant: &dyn Contestant,
    dir: &Path,
    keys: u64,
    cache_bytes: u64,
    gets: u64,
) -> Result<Memory> {
    fs::create_dir_all(dir)?;
    let child = spawn("memory", contestant, dir, &[keys, cache_bytes, gets])?;
    let output = child.wait_with_output()?;
    if !output.status.success() {
        bail!("the loading child failed: {}", output.status);
    }
    serde_json::from_slice(&output.stdout).context("reading the child's report")
}

fn spawn(task: &str, contestant: &dyn Contestant, dir: &Path, numbers: &[u64]) -> Result<Child> {
    Command::new(env::current_exe()?)
        .args(["child", task, contestant.name()])
        .arg(dir)
        .args(numbers.iter().map(u64::to_string))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("starting a child process")
}
