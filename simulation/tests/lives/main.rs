//! Simulated lives of clusters: that they are sound, that what is not is caught, and that a seed is one life.

use std::ops::Range;

/// Seeds whose lives [`seeds`] judges: of the usual kind, in two halves, with transactions, and with a lost quorum.
const USUAL: Range<u64> = 0..40;
const WITH_TRANSACTIONS: Range<u64> = 0..20;
const WITH_A_LOST_QUORUM: Range<u64> = 0..24;

mod determinism;
mod histories;
mod load;
mod planted;
mod seeds;
