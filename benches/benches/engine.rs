//! Criterion benches of dogsled's own: what one operation costs, and what a change of the code did to
//! it. The comparison with other databases is `cargo run -p dogsled-benches -- compare`.
//!
//! Durable operations are not here: what they cost is the disk's affair, and only a run interleaved
//! with its raw rate says anything.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dogsled::{Batch, Config, Db};
use dogsled_benches::data::key;

const WARM: u64 = 100_000;

fn warm() -> Db {
    let db = Config::new().temporary(true).open().expect("a temporary database opens");
    for i in 0..WARM {
        db.insert(key(i), [7; 100]).expect("a put works");
    }
    db.checkpoint().expect("a checkpoint works");
    db
}

fn operations(criterion: &mut Criterion) {
    let db = warm();
    let mut i = 0;
    let mut next = move || {
        i = (i + 7919) % WARM;
        i
    };
    criterion.bench_function("get", |bencher| {
        bencher.iter(|| db.get(key(next())).expect("a get works").expect("the key is there"));
    });
    criterion.bench_function("get of an absent key", |bencher| {
        bencher.iter(|| assert!(db.get(key(WARM + next())).expect("a get works").is_none()));
    });
    let mut group = criterion.benchmark_group("scan");
    group.throughput(Throughput::Elements(100));
    group.bench_function("100 from a random start", |bencher| {
        bencher.iter(|| {
            db.range(key(next())..).take(100).map(|entry| entry.expect("a scan works").1.len()).sum::<usize>()
        });
    });
    group.finish();
    criterion.bench_function("overwrite, buffered", |bencher| {
        bencher.iter(|| db.insert(key(next()), [8; 100]).expect("a put works"));
    });
    let mut group = criterion.benchmark_group("batch");
    group.throughput(Throughput::Elements(1000));
    group.bench_function("1000 puts, buffered", |bencher| {
        bencher.iter_batched(
            || {
                let mut batch = Batch::default();
                for _ in 0..1000 {
                    batch.insert(&key(next())[..], [9; 100]);
                }
                batch
            },
            |batch| db.apply_batch(batch).expect("a batch works"),
            BatchSize::SmallInput,
        );
    });
    group.finish();
    criterion.bench_function("transaction, read 2 and write 2, buffered", |bencher| {
        bencher.iter(|| {
            let (from, to) = (key(next()), key(next()));
            db.transaction(|tree| {
                let (a, b) = (tree.get(from)?, tree.get(to)?);
                tree.insert(from, b.expect("the key is there"))?;
                tree.insert(to, a.expect("the key is there"))?;
                Ok::<(), dogsled::transaction::ConflictableTransactionError>(())
            })
            .expect("a transaction works");
        });
    });
    let counter = db.counter("visits");
    criterion.bench_function("counter add, buffered", |bencher| {
        bencher.iter(|| counter.add(1).expect("an add works"));
    });
    criterion.bench_function("snapshot", |bencher| bencher.iter(|| db.snapshot()));
}

criterion_group!(benches, operations);
criterion_main!(benches);
