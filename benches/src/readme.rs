//! The table of `docs/performance.md`, from the JSON file: no number in it is typed by hand.

use std::fmt::Write as _;

use crate::results::{Report, Row, WorkloadResult};
use crate::stats::human;

/// Renders Markdown.
pub fn table(report: &Report) -> String {
    let mut out = String::new();
    let (machine, effort) = (&report.machine, &report.effort);
    let _ = writeln!(
        out,
        "Measured {} on {} ({} cores, {} of memory, {}, Linux {}), commit {}. Medians of {} interleaved repeats; \
         {} keys of 16 bytes, values of 100 bytes ({} keys in the large load); {} MiB of cache each; the best database of each row is in bold. \
         Synced rows ran with low-priority spinner threads keeping the cores awake.{}\n",
        machine.date,
        machine.processor,
        machine.cores,
        machine.memory,
        machine.file_system,
        machine.kernel,
        machine.commit,
        effort.repeats,
        human(effort.keys as f64),
        human(effort.memory_keys as f64),
        effort.cache_mebibytes,
        if effort.quick { " **A quick run: not for quoting.**" } else { "" },
    );
    let names: Vec<&str> = report.contestants.iter().map(|one| one.name.as_str()).collect();
    let judged = report.workloads.iter().any(|result| result.verdict.is_some());
    let mut header = String::from("| work |");
    let mut rule = String::from("|---|");
    for name in &names {
        let _ = write!(header, " {name} |");
        rule.push_str("---:|");
    }
    if judged {
        header.push_str(" target | reached |");
        rule.push_str("---|---|");
    }
    let _ = writeln!(out, "{header}\n{rule}");
    for result in &report.workloads {
        let _ = writeln!(out, "{}", line(result, &names, judged));
    }
    let sittings = sittings(report);
    if sittings.len() > 1 {
        let _ = writeln!(out, "\nNot all in one sitting:\n");
        for (when, titles) in sittings {
            let _ = writeln!(out, "- {when}: {}", titles.join("; "));
        }
    }
    if report.workloads.iter().any(|result| result.rows.iter().any(|row| row.weaker)) {
        let _ = writeln!(
            out,
            "\n† Does not sync when it says so: a weaker promise, not counted as a peer there."
        );
    }
    out
}

/// Which rows were measured when, and of which commit.
fn sittings(report: &Report) -> Vec<(&str, Vec<&str>)> {
    let mut sittings: Vec<(&str, Vec<&str>)> = Vec::new();
    for result in report.workloads.iter().filter(|result| !result.measured.is_empty()) {
        match sittings.iter_mut().find(|(when, _)| *when == result.measured) {
            Some((_, titles)) => titles.push(&result.title),
            None => sittings.push((&result.measured, vec![&result.title])),
        }
    }
    sittings
}

fn line(result: &WorkloadResult, names: &[&str], judged: bool) -> String {
    let best = result.best(Row::comparable).map(|row| row.name.as_str());
    let mut line = format!("| {}, {} |", result.title, result.unit);
    for name in names {
        let cell = result.row(name).map_or(String::new(), |row| {
            let number = human(row.summary.median);
            match (best == Some(name), row.weaker) {
                (true, _) => format!("**{number}**"),
                (false, true) => format!("{number} †"),
                (false, false) => number,
            }
        });
        let _ = write!(line, " {cell} |");
    }
    if judged {
        line.push_str(&match &result.verdict {
            Some(verdict) => {
                let mark = if verdict.met { "yes" } else { "**no**" };
                let reached = match &verdict.against {
                    // A bar would end the cell.
                    Some(against) => format!("{:.2} × {}", verdict.reached, against.replace('|', " + ")),
                    None => human(verdict.reached),
                };
                format!(" {} | {mark}: {reached} |", verdict.target)
            }
            None => " | |".to_owned(),
        });
    }
    let baselines: Vec<String> = result.rows.iter().filter(|row| row.baseline).map(baseline).collect();
    if !baselines.is_empty() {
        let title = format!("{}, {}", result.title, result.unit);
        line = line.replacen(&title, &format!("{title} ({})", baselines.join("; ")), 1);
    }
    line
}

fn baseline(row: &Row) -> String {
    // A bar would end the cell.
    format!("{} {}", row.name.replace('|', " + "), human(row.summary.median))
}
