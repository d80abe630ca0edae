//! Where and when a run took place.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// The facts that a number is worth nothing without.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Machine {
    /// Day and time in UTC.
    pub date: String,
    /// Commit of the working copy, marked when it had changes.
    pub commit: String,
    /// Compiler.
    pub rustc: String,
    /// Processor model.
    pub processor: String,
    /// Cores that this process may use.
    pub cores: usize,
    /// Memory of the machine.
    pub memory: String,
    /// Kernel release.
    pub kernel: String,
    /// Type of the file system that holds the databases.
    pub file_system: String,
}

impl Machine {
    /// Asks the system. `data` is on the file system in question.
    pub fn describe(data: &Path) -> Machine {
        let unknown = || "unknown".to_owned();
        Machine {
            date: utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
            commit: commit().unwrap_or_else(unknown),
            rustc: output("rustc", &["--version"]).unwrap_or_else(unknown),
            processor: field("/proc/cpuinfo", "model name").unwrap_or_else(unknown),
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            memory: field("/proc/meminfo", "MemTotal").map_or_else(unknown, |total| mebibytes(&total)),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .map_or_else(|_| unknown(), |release| release.trim().to_owned()),
            file_system: file_system(data).unwrap_or_else(unknown),
        }
    }

    /// In one line.
    pub fn in_words(&self) -> String {
        format!(
            "{}, commit {}, {}; {}, {} cores, {}, {}, Linux {}",
            self.date,
            self.commit,
            self.rustc,
            self.processor,
            self.cores,
            self.memory,
            self.file_system,
            self.kernel
        )
    }
}

fn output(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn commit() -> Option<String> {
    let hash = output("git", &["rev-parse", "--short=12", "HEAD"])?;
    let changed = output("git", &["status", "--porcelain", "--untracked-files=no"]);
    Some(if changed.is_none_or(|changes| !changes.is_empty()) {
        format!("{hash} with changes")
    } else {
        hash
    })
}

/// The value of a `name : value` line.
fn field(path: &str, name: &str) -> Option<String> {
    fs::read_to_string(path).ok()?.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn mebibytes(kibibytes: &str) -> String {
    match kibibytes.trim_end_matches(" kB").parse::<f64>() {
        Ok(kibibytes) => format!("{:.0} GiB", kibibytes / f64::from(1 << 20)),
        Err(_) => kibibytes.to_owned(),
    }
}

/// The type of the mount with the longest matching path.
fn file_system(data: &Path) -> Option<String> {
    let data = fs::canonicalize(data).ok()?;
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    mounts
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace().skip(1);
            let (point, kind) = (words.next()?, words.next()?);
            data.starts_with(point).then(|| (point.len(), kind.to_owned()))
        })
        .max()
        .map(|(_, kind)| kind)
}

/// `2026-11-21 03:19 UTC`, by the civil-from-days algorithm of Howard Hinnant.
fn utc(seconds: u64) -> String {
    let (days, second_of_day) = (seconds / 86_400 + 719_468, seconds % 86_400);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", second_of_day / 3_600, second_of_day / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::utc;

    #[test]
    fn dates() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_795_231_169), "2026-11-21 03:19 UTC");
    }
}
