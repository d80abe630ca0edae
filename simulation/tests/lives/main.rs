//! Simulated lives of clusters: that they are sound, that what is not is caught, and that a seed is one life.

mod determinism;
mod histories;
mod load;
mod planted;
mod seeds;
