//! Benchmarks of dogsled.
fn main() {}
