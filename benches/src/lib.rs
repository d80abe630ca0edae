//! dogsled beside its peers: how the comparison works.
//!
//! [`data`] makes keys and values; [`contestant`] says what a database must offer and [`peers`] has one
//! implementation per database; [`workloads`] measures; [`compare`] decides who is measured when; [`results`] is
//! the JSON file; [`report`], [`plot`] and [`readme`] show it; [`targets`] judges it. The criterion benches
//! borrow [`data`] too.
//!
//! [`rows`] is what the measurements of clusters print and write; they need the feature `cluster`.
//!
//! [`ring`] is apart from that: the placement of partitions on paper, without a database.

pub mod child;
#[cfg(feature = "cluster")]
pub mod cluster;
pub mod compare;
pub mod comparison;
pub mod contestant;
pub mod data;
pub mod machine;
pub mod peers;
pub mod plot;
pub mod readme;
pub mod report;
pub mod results;
pub mod ring;
pub mod rows;
pub mod spinners;
pub mod stats;
pub mod targets;
pub mod workloads;
