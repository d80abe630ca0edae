//! A queue of jobs whose workers may die: no job is lost, none is done twice at a time.
//!
//!     cargo run --example job_queue

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dogsled::transaction::{TransactionResult, Transactional};
use dogsled::{Config, Db, IVec, Result, Tree};

struct Queue {
    db: Db,
    waiting: Tree,
    /// Value: when the worker's time is up, in milliseconds, and then the job.
    running: Tree,
}

impl Queue {
    fn open(db: &Db) -> Result<Queue> {
        Ok(Queue { db: db.clone(), waiting: db.open_tree("waiting")?, running: db.open_tree("running")? })
    }

    /// Adds a job at the end.
    fn push(&self, job: &str) -> Result<()> {
        let number = self.db.generate_id()?;
        self.waiting.insert(number.to_be_bytes(), job)?;
        Ok(())
    }

    /// Takes the first job. If it is not [done](Queue::done) in time it goes to another worker.
    fn take(&self, time: Duration) -> TransactionResult<Option<(IVec, IVec)>> {
        let now = now_ms();
        (&self.waiting, &self.running).transaction(|(waiting, running)| {
            // First what a worker took and never finished.
            let mut overdue = None;
            for entry in running.iter() {
                let (number, record) = entry?;
                let (deadline, job) = record.split_at(8);
                if deadline < &now.to_be_bytes()[..] {
                    overdue = Some((number, IVec::from(job)));
                    break;
                }
            }
            let next = match overdue {
                Some(job) => Some(job),
                None => waiting.pop_min()?,
            };
            let Some((number, job)) = next else { return Ok(None) };
            let deadline = now + time.as_millis() as u64;
            running.insert(&number, [&deadline.to_be_bytes()[..], &job].concat())?;
            Ok(Some((number, job)))
        })
    }

    fn done(&self, number: &[u8]) -> Result<()> {
        self.running.remove(number)?;
        Ok(())
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn main() -> TransactionResult<()> {
    let db = Config::new().temporary(true).open()?;
    let queue = Queue::open(&db)?;
    for number in 0..100 {
        queue.push(&format!("job {number}"))?;
    }

    // A worker that takes a job and dies.
    let (_, lost) = queue.take(Duration::ZERO)?.expect("there are jobs");
    std::thread::sleep(Duration::from_millis(5));

    let done = db.counter("jobs done");
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> TransactionResult<()> {
                    while let Some((number, _job)) = queue.take(Duration::from_secs(60))? {
                        // The work itself would be here.
                        queue.done(&number)?;
                        done.add(1)?;
                    }
                    Ok(())
                })
            })
            .collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;

    assert_eq!(done.get()?, 100);
    assert!(queue.waiting.is_empty() && queue.running.is_empty());
    println!("100 jobs done by 4 workers, {:?} after its first worker died", String::from_utf8_lossy(&lost));
    Ok(())
}
