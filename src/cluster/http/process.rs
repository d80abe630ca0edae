//! What the operating system knows of this process, under the names that Prometheus' clients give it.

use std::sync::OnceLock;

use dogsled_replication::metrics::Family;
use rustix::time::{ClockId, clock_gettime};

/// Linux tells times in hundredths of a second to programs, on all machines.
const TICKS_PER_SECOND: f64 = 100.0;

/// What is known; nothing of what the system does not tell.
pub(super) fn families() -> Vec<Family> {
    let mut families = Vec::new();
    if let Some(bytes) = resident_bytes() {
        let help = "Memory of the process that is in main memory.";
        families.push(Family::gauge("process_resident_memory_bytes", help).of(bytes));
    }
    let used = clock_gettime(ClockId::ProcessCPUTime);
    let seconds = used.tv_sec as f64 + used.tv_nsec as f64 / 1e9;
    families.push(Family::counter("process_cpu_seconds_total", "Processor time of the process.").of(seconds));
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // One of them is that of the listing.
        let open = (open.count() as u64).saturating_sub(1);
        families.push(Family::gauge("process_open_fds", "Open file descriptors.").of(open));
    }
    if let Some(started) = started() {
        let help = "When the process was started, in seconds since 1970.";
        families.push(Family::gauge("process_start_time_seconds", help).of(started));
    }
    families
}

fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

fn started() -> Option<f64> {
    static STARTED: OnceLock<Option<f64>> = OnceLock::new();
    *STARTED.get_or_init(|| {
        let machine = std::fs::read_to_string("/proc/stat").ok()?;
        let booted: f64 =
            machine.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        let own = std::fs::read_to_string("/proc/self/stat").ok()?;
        // Behind the name, which may have anything in it, comes the third field; it is the 22nd.
        let ticks: f64 = own.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(booted + ticks / TICKS_PER_SECOND)
    })
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_process_has_memory_and_was_started_in_the_past() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().expect("after 1970").as_secs_f64();
        assert!(
            started().is_some_and(|at| at <= now + 2.0 && now - at < 86_400.0),
            "{:?} of {now}",
            started()
        );
        assert_eq!(families().len(), 4);
    }
}
