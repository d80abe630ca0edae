//! The table of README that compares, from the files in `benches/results`: no number in it is typed by hand, and a test holds
//! README to it.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde::de::DeserializeOwned;

use crate::results::Report;
use crate::rows::Table;
use crate::stats::human;

/// Before and behind it.
pub const MARKS: (&str, &str) = ("<!-- comparison:begin -->", "<!-- comparison:end -->");

/// Columns beside dogsled's.
const OTHERS: [&str; 4] = ["sled", "redb", "etcd", "Redis"];

/// A row: what it is called, which file has it, under which id.
const ROWS: [(&str, &str, &str); 10] = [
    ("embedded: durable puts by 16 threads", "compare", "durable-put-16"),
    ("embedded: buffered puts by one", "compare", "buffered-put-1"),
    ("embedded: gets by one", "compare", "get-1"),
    ("three nodes: puts by 256 clients", "cluster", "put-256"),
    ("three nodes: linearizable gets by 256", "cluster", "get-256"),
    ("three nodes: additions to one counter by 64", "operations", "counter"),
    ("three nodes: events to 10,000 watchers", "operations", "watch"),
    ("one node, Redis clients: `SET`", "redis", "set-1"),
    ("one node, Redis clients: `GET`", "redis", "get-1"),
    ("three nodes, Redis clients: `SET`", "redis", "three-set-1"),
];

fn read<T: DeserializeOwned>(results: &Path, file: &str) -> Result<T> {
    let path = results.join(file).with_extension("json");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    serde_json::from_str(&text).with_context(|| format!("reading {}", path.display()))
}

/// Who reached what in a row.
fn measured(results: &Path, file: &str, id: &str) -> Result<Vec<(String, f64)>> {
    if file == "compare" {
        let report: Report = read(results, file)?;
        let row = report.workloads.into_iter().find(|row| row.id == id);
        let row = row.with_context(|| format!("{file}.json has no row {id}"))?;
        return Ok(row.rows.into_iter().map(|row| (row.name, row.summary.median)).collect());
    }
    let table: Table = read(results, file)?;
    let row = table.rows.into_iter().find(|row| row.id == id);
    let row = row.with_context(|| format!("{file}.json has no row {id}"))?;
    if !row.unit.ends_with("per second") {
        bail!("{file}.json: {id} is not of a second");
    }
    Ok(row.series.into_iter().map(|series| (series.name, series.summary.median)).collect())
}

/// Renders Markdown.
///
/// # Errors
/// A file or a row that is not there.
pub fn table(results: &Path) -> Result<String> {
    let mut out = format!("| a second | dogsled | {} |\n|---|---:|", OTHERS.join(" | "));
    out.push_str(&"---:|".repeat(OTHERS.len()));
    for (title, file, id) in ROWS {
        let measured = measured(results, file, id)?;
        let cell = |name: &str| {
            let found = measured.iter().find(|(known, _)| known == name);
            found.map_or(String::new(), |(_, median)| human(*median))
        };
        let own = cell("dogsled");
        if own.is_empty() {
            bail!("{file}.json: {id} has no figure of dogsled");
        }
        let _ = write!(out, "\n| {title} | {own} |");
        for name in OTHERS {
            let _ = write!(out, " {} |", cell(name));
        }
    }
    out.push('\n');
    Ok(out)
}

/// A text with what is between the marks replaced.
///
/// # Errors
/// They are not there.
pub fn replaced(text: &str, table: &str) -> Result<String> {
    let (begin, rest) = text.split_once(MARKS.0).context("there is no mark where the table begins")?;
    let (_, end) = rest.split_once(MARKS.1).context("there is no mark where the table ends")?;
    Ok(format!("{begin}{}\n{table}{}{end}", MARKS.0, MARKS.1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readme_compares_by_what_was_measured() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let readme = std::fs::read_to_string(here.join("../README.md")).unwrap();
        let wanted = replaced(&readme, &table(&here.join("results")).unwrap()).unwrap();
        assert!(readme == wanted, "run: cargo run --release -p dogsled-benches -- readme-comparison");
    }

    #[test]
    fn what_is_not_there_is_told() {
        let empty = tempfile::tempdir().unwrap();
        assert!(table(empty.path()).is_err());
        assert!(replaced("nothing", "table").is_err());
        let marked = format!("a\n{}\nold\n{}\nb\n", MARKS.0, MARKS.1);
        assert_eq!(replaced(&marked, "new\n").unwrap(), format!("a\n{}\nnew\n{}\nb\n", MARKS.0, MARKS.1));
    }
}
