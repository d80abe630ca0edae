//! Runs the same work on several threads and counts what they did.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Barrier, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// When to stop: after `budget` or `max_operations`, whichever comes first.
#[derive(Debug, Clone, Copy)]
pub struct Limit {
    /// Time for the measurement.
    pub budget: Duration,
    /// Operations of all threads together.
    pub max_operations: u64,
    /// Operations between two looks at the clock. Reading it costs as much as a tenth of a get.
    pub chunk: u64,
}

/// What was done.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Operations of all threads.
    pub operations: u64,
    /// From the common start until the last thread finished.
    pub elapsed: Duration,
}

impl Done {
    /// Operations per second.
    pub fn per_second(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }
}

struct Shared {
    limit: Limit,
    barrier: Barrier,
    start: OnceLock<Instant>,
    claimed: AtomicU64,
    last_end_nanos: AtomicU64,
}

/// A thread's view of the measurement.
pub struct Worker<'a> {
    shared: &'a Shared,
    /// Which thread this is, from 0.
    pub index: usize,
    started: bool,
}

impl Worker<'_> {
    /// Waits until all threads have prepared themselves. Call it once, before the first [`Worker::claim`].
    pub fn start(&mut self) {
        self.started = true;
        self.shared.barrier.wait();
        self.shared.start.get_or_init(Instant::now);
    }

    /// How many operations to do next; 0 at the end.
    pub fn claim(&mut self) -> u64 {
        let shared = self.shared;
        let start = shared.start.get().expect("a worker starts before it claims");
        let elapsed = start.elapsed();
        let chunk = shared.limit.chunk;
        if elapsed < shared.limit.budget {
            let before = shared.claimed.fetch_add(chunk, Ordering::Relaxed);
            if before < shared.limit.max_operations {
                return chunk;
            }
            shared.claimed.fetch_sub(chunk, Ordering::Relaxed);
        }
        let nanos = u64::try_from(elapsed.as_nanos()).expect("no measurement takes centuries");
        shared.last_end_nanos.fetch_max(nanos, Ordering::Relaxed);
        0
    }
}

/// Runs `body` on each of `threads` threads. It prepares itself, calls [`Worker::start`] and then does what
/// [`Worker::claim`] says until that is 0.
pub fn run(
    threads: usize,
    limit: Limit,
    body: &(dyn Fn(&mut Worker<'_>) -> Result<()> + Sync),
) -> Result<Done> {
    let shared = Shared {
        limit,
        barrier: Barrier::new(threads),
        start: OnceLock::new(),
        claimed: AtomicU64::new(0),
        last_end_nanos: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|index| {
                let shared = &shared;
                scope.spawn(move || {
                    let mut worker = Worker { shared, index, started: false };
                    let result = body(&mut worker);
                    if !worker.started {
                        // Its preparation failed: the others wait at the barrier, let them go.
                        shared.barrier.wait();
                    }
                    result
                })
            })
            .collect();
        handles
            .into_iter()
            .map(|handle| handle.join().map_err(|_| anyhow!("a measuring thread panicked"))?)
            .collect::<Result<Vec<()>>>()
    })?;
    Ok(Done {
        operations: shared.claimed.into_inner(),
        elapsed: Duration::from_nanos(shared.last_end_nanos.into_inner().max(1)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_claimed_operations_are_counted_once() {
        let limit = Limit { budget: Duration::from_secs(60), max_operations: 1_000, chunk: 10 };
        let counted = AtomicU64::new(0);
        let done = run(4, limit, &|worker| {
            worker.start();
            loop {
                let chunk = worker.claim();
                if chunk == 0 {
                    return Ok(());
                }
                counted.fetch_add(chunk, Ordering::Relaxed);
            }
        })
        .unwrap();
        assert_eq!(done.operations, 1_000);
        assert_eq!(counted.into_inner(), 1_000);
    }

    #[test]
    fn a_thread_that_cannot_prepare_fails_the_run_and_blocks_no_one() {
        let limit = Limit { budget: Duration::from_millis(1), max_operations: 10, chunk: 1 };
        let result = run(2, limit, &|worker| {
            if worker.index == 0 {
                return Err(anyhow!("cannot prepare"));
            }
            worker.start();
            while worker.claim() > 0 {}
            Ok(())
        });
        assert!(result.is_err());
    }
}
