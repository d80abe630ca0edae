//! What is measured, and what the numbers are called.
//!
//! [`ALL`] is the catalogue: order, title, unit and target of each result. The submodules do the work:
//! [`operations`] runs threads against an open warm database, [`lifecycle`] loads, overwrites, kills and
//! reopens whole databases, [`raw`] measures the disk itself.

pub mod lifecycle;
pub mod operations;
pub mod raw;
pub mod threads;

use crate::targets::{Among, Target};

/// One kind of result.
#[derive(Debug)]
pub struct Workload {
    /// Name in options and in the JSON file.
    pub id: &'static str,
    /// Title in tables.
    pub title: &'static str,
    /// What the numbers count.
    pub unit: &'static str,
    /// Times and sizes: less is better.
    pub lower_is_better: bool,
    /// What dogsled set out to reach.
    pub target: Option<Target>,
}

impl Workload {
    /// Whether its writes have to be synced when they return.
    pub fn is_durable(&self) -> bool {
        self.id.contains("durable")
    }
}

const fn rate(id: &'static str, title: &'static str, unit: &'static str, target: Option<Target>) -> Workload {
    Workload { id, title, unit, lower_is_better: false, target }
}

const fn amount(
    id: &'static str,
    title: &'static str,
    unit: &'static str,
    target: Option<Target>,
) -> Workload {
    Workload { id, title, unit, lower_is_better: true, target }
}

const fn at_least(ratio: f64, among: Among) -> Option<Target> {
    Some(Target::Ratio { bound: ratio, among })
}

/// Every workload, in the order of the report.
pub static ALL: &[Workload] = &[
    rate("durable-put-1", "durable put, 1 thread", "puts/s", at_least(0.9, Among::Raw)),
    rate("durable-put-16", "durable put, 16 threads", "puts/s", at_least(2.0, Among::All)),
    rate("durable-put-64", "durable put, 64 threads", "puts/s", at_least(3.0, Among::All)),
    rate("durable-batch", "batches of 1,000 puts, durable", "keys/s", at_least(1.0, Among::All)),
    rate("buffered-put-1", "buffered put, 1 thread", "puts/s", at_least(2.0, Among::All)),
    rate("buffered-put-2", "buffered put, 2 threads", "puts/s", at_least(2.0, Among::All)),
    rate("get-1", "point get, 1 thread", "gets/s", at_least(1.0, Among::One("lmdb"))),
    rate("get-2", "point get, 2 threads", "gets/s", at_least(1.0, Among::One("lmdb"))),
    rate("scan-100", "scan of 100 from a random start", "scans/s", at_least(1.0, Among::One("redb"))),
    rate("scan-full", "full scan", "entries/s", at_least(1.0, Among::One("redb"))),
    rate("load", "bulk load of random keys", "keys/s", at_least(1.5, Among::BTrees)),
    rate("load-settled", "bulk load until checkpoint or compaction is done", "keys/s", None),
    amount(
        "load-size",
        "files after the load",
        "MiB",
        Some(Target::Ratio { bound: 1.15, among: Among::One("redb") }),
    ),
    rate("tx-buffered-1", "transactions, buffered, 1 thread", "tx/s", at_least(2.0, Among::All)),
    rate("tx-buffered-4", "transactions, buffered, 4 threads", "tx/s", at_least(2.0, Among::All)),
    rate("tx-buffered-16", "transactions, buffered, 16 threads", "tx/s", at_least(2.0, Among::All)),
    rate("tx-durable-1", "transactions, durable, 1 thread", "tx/s", at_least(2.0, Among::All)),
    rate("tx-durable-4", "transactions, durable, 4 threads", "tx/s", at_least(2.0, Among::All)),
    rate("tx-durable-16", "transactions, durable, 16 threads", "tx/s", at_least(2.0, Among::All)),
    amount(
        "reopen",
        "open and first get after kill -9 with 64 MiB written",
        "ms",
        Some(Target::Value { bound: 500.0 }),
    ),
    amount(
        "disk-growth",
        "files after ten overwrites of all keys, against the load",
        "×",
        Some(Target::Value { bound: 2.5 }),
    ),
    amount(
        "memory-load",
        "resident after the large load, 256 MiB cache",
        "MiB",
        Some(Target::Value { bound: 400.0 }),
    ),
    amount(
        "memory-gets",
        "resident after as many random gets as a tenth of its keys",
        "MiB",
        Some(Target::Value { bound: 400.0 }),
    ),
    amount("memory-peak", "peak resident of the same process", "MiB", None),
];

/// Whether `only` admits the workload called `id`: by its name or, where it is no one's name, by a beginning.
/// Nothing means everything.
pub fn admits(only: &[String], id: &str) -> bool {
    only.is_empty()
        || only.iter().any(|word| {
            let is_a_name = ALL.iter().any(|workload| workload.id == word);
            if is_a_name { word == id } else { id.starts_with(word.as_str()) }
        })
}

/// The workload called `id`.
///
/// # Panics
///
/// When there is none: ids are constants of this crate.
pub fn by_id(id: &str) -> &'static Workload {
    ALL.iter().find(|workload| workload.id == id).unwrap_or_else(|| panic!("no workload is called {id}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_name_admits_itself_alone_and_a_beginning_all_that_begin_so() {
        let only = |word: &str| vec![word.to_owned()];
        assert!(admits(&only("durable-put-1"), "durable-put-1"));
        assert!(!admits(&only("durable-put-1"), "durable-put-16"));
        assert!(admits(&only("durable"), "durable-put-16"));
        assert!(!admits(&only("durable"), "tx-durable-1"));
        assert!(admits(&[], "get-1"));
    }

    #[test]
    fn ids_are_distinct() {
        for (i, workload) in ALL.iter().enumerate() {
            assert!(ALL[..i].iter().all(|other| other.id != workload.id), "{} is there twice", workload.id);
        }
    }
}
