//! Rates of the engine alone, for profiling: `cargo run --release -p dogsled-storage --example
//! engine_rates -- [keys] [directory]`. Absolute numbers of one run; the comparison with peers is
//! in `benches/`.

use std::ops::Bound;
use std::time::Instant;

use dogsled_storage::{Command, Durability, Engine, IVec, Options, Reply, TreeId, Write};

fn main() -> dogsled_storage::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let count: usize = arguments.next().and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let directory = arguments.next().map_or_else(|| temporary.path().join("db"), std::path::PathBuf::from);
    let engine = Engine::open(Options::new(&directory))?;
    let keys: Vec<[u8; 16]> = (0..count as u64).map(key).collect();

    let durable = |what: &str| {
        timed(what, 2000, || {
            (0..2000_u64).try_for_each(|n| {
                let (key, value) = (IVec::from(&n.to_be_bytes()), IVec::from(&[3; 100]));
                let command = Command::Insert { tree: TreeId::COUNTERS, key, value };
                engine.execute(command, Durability::Synced).map(drop)
            })
        })
    };
    durable("durable put, empty database")?;
    let insert = |key: &[u8; 16], fill: u8| -> dogsled_storage::Result<Reply> {
        let (key, value) = (IVec::from(key), IVec::from(&[fill; 100]));
        engine.execute(Command::Insert { tree: TreeId::DEFAULT, key, value }, Durability::Buffered)
    };
    timed("load, new keys", count, || {
        keys.chunks(50_000).try_for_each(|chunk| {
            let put = |key| Write {
                tree: TreeId::DEFAULT,
                key: IVec::from(key),
                value: Some(IVec::from(&[1; 100])),
            };
            let writes = chunk.iter().map(put).collect();
            engine.execute(Command::Batch { writes }, Durability::Buffered).map(drop)
        })
    })?;
    let started = Instant::now();
    engine.checkpoint()?;
    println!("checkpoint: {:.2} s", started.elapsed().as_secs_f64());
    println!("{:?}", engine.stats()?);
    for name in ["tree.redb", "wal"] {
        let du = std::process::Command::new("du").arg("-sm").arg(directory.join(name)).output();
        print!("{}", du.map(|out| String::from_utf8_lossy(&out.stdout).into_owned()).unwrap_or_default());
    }
    durable("durable put, warm database")?;
    timed("overwrite", count, || keys.iter().rev().try_for_each(|key| insert(key, 2).map(drop)))?;
    timed("get, overlay not empty", count, || {
        keys.iter().try_for_each(|key| {
            assert!(engine.get(TreeId::DEFAULT, key)?.is_some());
            Ok(())
        })
    })?;
    engine.checkpoint()?;
    for _ in 0..2 {
        timed("get, checkpointed", count, || {
            keys.iter().try_for_each(|key| {
                assert!(engine.get(TreeId::DEFAULT, key)?.is_some());
                Ok(())
            })
        })?;
    }
    std::thread::scope(|scope| {
        for half in keys.chunks(count / 2) {
            let engine = &engine;
            scope.spawn(move || {
                timed("get, one of two threads", half.len(), || {
                    half.iter().try_for_each(|key| {
                        assert!(engine.get(TreeId::DEFAULT, key)?.is_some());
                        Ok(())
                    })
                })
            });
        }
    });
    timed("scan of 100 from a random start", count / 20, || {
        keys.iter().take(count / 20).try_for_each(|key| {
            let snapshot = engine.snapshot();
            let found = snapshot
                .range(TreeId::DEFAULT, Bound::Included(IVec::from(key)), Bound::Unbounded)
                .take(100)
                .map(|entry| entry.map(|(_, found)| found.value.len()))
                .sum::<Result<usize, _>>()?;
            assert!(found > 0);
            Ok(())
        })
    })?;
    timed("full scan", count, || {
        let all = engine.snapshot().range(TreeId::DEFAULT, Bound::Unbounded, Bound::Unbounded).count();
        assert_eq!(all, count);
        Ok(())
    })?;
    durable("durable put, after all")?;
    println!("{:?}", engine.stats()?);
    Ok(())
}

/// The `n`th key: random, but the same in every run.
fn key(n: u64) -> [u8; 16] {
    let mix = |mut x: u64| {
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let mut key = [0; 16];
    key[..8].copy_from_slice(&mix(n.wrapping_add(0x9e37_79b9_7f4a_7c15)).to_be_bytes());
    key[8..].copy_from_slice(&mix(n ^ 0x5851_f42d_4c95_7f2d).to_be_bytes());
    key
}

fn timed(
    what: &str,
    operations: usize,
    run: impl FnOnce() -> dogsled_storage::Result<()>,
) -> dogsled_storage::Result<()> {
    let started = Instant::now();
    run()?;
    let seconds = started.elapsed().as_secs_f64();
    println!(
        "{what}: {:.0}/s, {:.0} ns each",
        operations as f64 / seconds,
        seconds * 1e9 / operations as f64
    );
    Ok(())
}
