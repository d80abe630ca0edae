//! What the system knows of a process: time on processors, and memory.

use std::fs;

use anyhow::{Context as _, Result};

/// Microseconds of a tick, the unit in which Linux tells of processor time.
const TICK_US: f64 = 10_000.0;

/// Ticks that a process has spent on processors, in user and kernel mode.
pub(super) fn ticks(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    // utime and stime, counted from behind the name.
    Ok(fields.get(11).context("no utime")?.parse::<u64>()?
        + fields.get(12).context("no stime")?.parse::<u64>()?)
}

/// Microseconds that processes have spent on processors together.
pub(super) fn processor_us(processes: &[u32]) -> Result<f64> {
    let ticks = processes.iter().map(|process| ticks(*process)).sum::<Result<u64>>()?;
    Ok(ticks as f64 * TICK_US)
}

/// MiB that a process has resident.
pub(super) fn resident_mib(process: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
}
