//! Criterion benches of the ring: what it costs to find who holds a key, and to place anew.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use dogsled::cluster::NodeId;
use dogsled::cluster::ring::{Member, Placement, group_of};
use dogsled_benches::data::key;

fn members(count: u64) -> Vec<Member> {
    (1..=count).map(|node| Member { node: NodeId(node), weight: 100, zone: String::new() }).collect()
}

fn ring(criterion: &mut Criterion) {
    let placement = Placement::new(&members(1_000), 100_000, 3).expect("members that can be placed");
    let keys: Vec<_> = (0..4096).map(key).collect();
    let mut i = 0;
    criterion.bench_function("replicas of a key, 100,000 partitions on 1,000 nodes", |bencher| {
        bencher.iter(|| {
            i = (i + 1) % keys.len();
            let group = group_of(black_box(&keys[i]), placement.partitions());
            black_box(placement.replicas(group)[0])
        });
    });
    let small = Placement::new(&members(9), 64, 3).expect("members that can be placed");
    let joined = members(10);
    criterion.bench_function("a tenth node joins, 64 partitions of 3 replicas", |bencher| {
        bencher.iter(|| small.rebalance(black_box(&joined), 3).expect("members that can be placed"));
    });
}

criterion_group!(benches, ring);
criterion_main!(benches);
