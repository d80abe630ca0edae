//! The small table of the README: some rows of all comparisons beside each other, from their JSON files.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;

use crate::results::Report;
use crate::rows::Table;
use crate::stats::human;

/// Its columns, by their names in the files.
const COLUMNS: [&str; 5] = ["dogsled", "sled", "redb", "etcd", "Redis"];

/// Rows of `compare.json`, and what they are called here.
const EMBEDDED: [(&str, &str); 5] = [
    ("durable-put-16", "durable puts by 16 threads"),
    ("buffered-put-1", "buffered puts by one thread"),
    ("get-1", "gets by one thread"),
    ("tx-buffered-4", "transactions by 4 threads"),
    ("scan-full", "entries of a full scan"),
];

/// Rows of the other files.
const REPLICATED: [(&str, &str, &str); 8] = [
    ("cluster.json", "put-256", "three nodes: puts of 256 clients"),
    ("cluster.json", "get-256", "three nodes: linearizable gets of 256 clients"),
    ("cluster.json", "batch-100", "three nodes: keys in batches of 100"),
    ("operations.json", "counter", "three nodes: additions to one counter"),
    ("operations.json", "watch", "three nodes: events to 10,000 watchers"),
    ("redis.json", "get-16", "one node, redis-benchmark: GET, 16 at a time"),
    ("redis.json", "set-16", "one node, redis-benchmark: SET, 16 at a time"),
    ("redis.json", "three-set-16", "three nodes, redis-benchmark: SET, 16 at a time"),
];

fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// Renders Markdown, of the files in a directory.
///
/// # Errors
/// A file that is not there or is none, a row that is not in it.
pub fn table(results: &Path) -> Result<String> {
    let mut out = String::from("| per second |");
    let mut rule = String::from("|---|");
    for column in COLUMNS {
        let _ = write!(out, " {column} |");
        rule.push_str("---:|");
    }
    let _ = writeln!(out, "\n{rule}");
    let mut add = |title: &str, cells: &dyn Fn(&str) -> Option<f64>| {
        let _ = write!(out, "| {title} |");
        for column in COLUMNS {
            let _ = write!(out, " {} |", cells(column).map_or(String::new(), human));
        }
        out.push('\n');
    };
    let compare: Report = read(&results.join("compare.json"))?;
    for (id, title) in EMBEDDED {
        let found = compare.workloads.iter().find(|workload| workload.id == id);
        let found = found.with_context(|| format!("compare.json has no {id}"))?;
        add(title, &|column| found.row(column).map(|row| row.summary.median));
    }
    for (file, id, title) in REPLICATED {
        let table: Table = read(&results.join(file))?;
        let found = table.rows.iter().find(|row| row.id == id);
        let found = found.with_context(|| format!("{file} has no {id}"))?;
        add(title, &|column| {
            let series = found.series.iter().find(|series| series.name == column);
            series.map(|series| series.summary.median)
        });
    }
    Ok(out)
}
