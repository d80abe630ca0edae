//! The report that people read.

use std::fmt::Write as _;

use crate::results::{Report, WorkloadResult};
use crate::stats::human;
use crate::targets::SUBJECT;

/// One workload as a table.
pub fn workload(result: &WorkloadResult) -> String {
    let mut out = String::new();
    let mut heading = format!("{} ({}", result.title, result.unit);
    if result.lower_is_better {
        heading.push_str(", lower is better");
    }
    if result.spinners {
        heading.push_str(", cores kept awake by low-priority spinner threads");
    }
    heading.push(')');
    let best = result.best_peer().map(|row| row.summary.median);
    let _ = writeln!(out, "\n{heading}");
    let _ = writeln!(
        out,
        "  {:<22} {:>12} {:>12} {:>12} {:>11}  then settled in",
        "", "min", "median", "max", "× best peer"
    );
    for row in &result.rows {
        let ratio = best.map_or(String::new(), |best| format!("{:.2}", row.summary.median / best));
        let settled = row.settle_seconds.map_or(String::new(), |s| format!("{s:.2} s"));
        let _ = writeln!(
            out,
            "  {:<22} {:>12} {:>12} {:>12} {:>11}  {}",
            if row.weaker { format!("{} †", row.name) } else { row.name.clone() },
            human(row.summary.min),
            human(row.summary.median),
            human(row.summary.max),
            ratio,
            settled
        );
    }
    if result.rows.iter().any(|row| row.weaker) {
        let _ =
            writeln!(out, "  † does not sync when it says so: a weaker promise, not counted as a peer here");
    }
    if let Some(verdict) = &result.verdict {
        let met = if verdict.met { "met" } else { "MISSED" };
        let reached = match &verdict.against {
            Some(against) => format!(
                "{:.2} × {against} (single repeats {:.2} to {:.2})",
                verdict.reached, verdict.min, verdict.max
            ),
            None => human(verdict.reached),
        };
        let _ = writeln!(out, "  target {}: {SUBJECT} has {reached}: {met}", verdict.target);
    }
    out
}

/// What precedes the tables.
pub fn preamble(report: &Report) -> String {
    let (machine, effort) = (&report.machine, &report.effort);
    let mut out = String::new();
    let _ = writeln!(out, "{}", machine.in_words());
    let _ = writeln!(
        out,
        "{} keys of 16 random bytes, values of 100 that do not compress; cache {} MiB each; {} repeats, \
         interleaved: repeat r visits every contestant before repeat r+1 begins. The large load has {} keys.",
        human(effort.keys as f64),
        effort.cache_mebibytes,
        effort.repeats,
        human(effort.memory_keys as f64)
    );
    let _ = writeln!(
        out,
        "Synced comparisons run with one spinner thread per core at the lowest priority (SCHED_IDLE), because \
         an idle virtual machine may notice a disk's completion only at its next timer tick."
    );
    if effort.quick {
        let _ = writeln!(out, "QUICK run: good for trying things out, not for quoting.");
    }
    for one in &report.contestants {
        let _ = writeln!(out, "  {:<8} {:<24} {}", one.name, one.version, one.tuning);
    }
    out
}

/// What follows them: every verdict in a line.
pub fn verdicts(report: &Report) -> String {
    let mut out = String::new();
    let judged: Vec<_> =
        report.workloads.iter().filter_map(|result| Some((result, result.verdict.as_ref()?))).collect();
    if judged.is_empty() {
        return out;
    }
    let met = judged.iter().filter(|(_, verdict)| verdict.met).count();
    let _ = writeln!(out, "\n{met} of {} targets met", judged.len());
    for (result, verdict) in judged {
        let mark = if verdict.met { "met   " } else { "MISSED" };
        let against = verdict.against.as_deref().map_or(String::new(), |name| format!(" × {name}"));
        let _ = writeln!(
            out,
            "  {mark} {:<50} {}{against}, target {}",
            result.title,
            human(verdict.reached),
            verdict.target
        );
    }
    out
}
