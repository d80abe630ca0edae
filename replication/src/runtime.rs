//! `Runtime`: tokio, as openraft sees it, with two differences and the doors that a simulation needs.
//!
//! The first difference: **the clocks of all groups tick together.** Each group of a leader looks at its clock five
//! times in a heartbeat, and a node has many groups. Here a tick is put off to the next point of a grid that all
//! share, so that one wake-up serves all groups, and their heartbeats to one node, and its answers, travel in one
//! packet. That is why openraft is told of heartbeats a quarter shorter than they are: one that is due within the
//! grid's step goes at its end.
//!
//! The second: **waits too short for tokio's timer end at once.** The timer counts whole
//! milliseconds, and openraft waits a microsecond between two reports of what is durable, to merge
//! them; that must not become a millisecond. (What it costs otherwise was reasoned from openraft's
//! source, not measured alone.) Waits *until* a time do not: whoever waits for his next turn and is woken
//! before it takes the same turn again, for ever where time stands still meanwhile, as in a simulation.
//!
//! The doors: a simulation of a whole cluster runs many nodes
//! in one thread, and needs two things that tokio does not know of:
//!
//! - **Random numbers from a seed.** openraft draws its election timeouts by a function without
//!   arguments. [`seed_random_numbers`] makes that function, in the thread that calls it, give a
//!   sequence that depends on the seed alone.
//! - **Processes.** A process that dies takes all its tasks with it, wherever they were; one that is
//!   stopped (`kill -STOP`, a hypervisor that looks elsewhere) does nothing while time goes on. A
//!   [`Process`] is a set of tasks to which that can be done. A task that a task of a process spawns
//!   belongs to it, too: that is why everything in this crate spawns through `spawn`.
//!
//! Both are thread-locals that a real node never sets. And nothing may be left to chance that no seed
//! reaches: see `watch`.

pub(crate) mod watch;

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::fmt;
use std::future::{Future, Ready};
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use futures_util::future::Either;
use openraft::OptionalSend;
use openraft::rt::AsyncRuntime;
use openraft_rt_tokio::TokioRuntime;
use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

thread_local! {
    static RANDOM: Cell<Option<u64>> = const { Cell::new(None) };
    static CURRENT: RefCell<Option<Process>> = const { RefCell::new(None) };
}

/// From now on this thread draws its random numbers from the seed; with `None`, from the operating
/// system again.
pub fn seed_random_numbers(seed: Option<u64>) {
    RANDOM.set(seed);
}

/// Spawns a task of whatever process the caller belongs to.
pub(crate) fn spawn<F>(future: F) -> JoinHandle<F::Output>
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    match CURRENT.with_borrow(Clone::clone) {
        None => tokio::spawn(future),
        Some(process) => process.spawn(future),
    }
}

/// The next number of the thread's seeded sequence, if it has one (splitmix64).
fn seeded() -> Option<u64> {
    let state = RANDOM.get()?.wrapping_add(0x9e37_79b9_7f4a_7c15);
    RANDOM.set(Some(state));
    let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    Some(mixed ^ (mixed >> 31))
}

/// A duration between two, drawn at random.
pub(crate) fn random_duration((least, most): (Duration, Duration)) -> Duration {
    let span = most.saturating_sub(least).as_micros() as u64;
    if span == 0 {
        return least;
    }
    least + Duration::from_micros(rand::RngExt::random_range(&mut RandomNumbers, 0..=span))
}

/// The thread's random numbers.
pub(crate) struct RandomNumbers;

impl rand::TryRng for RandomNumbers {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        match seeded() {
            Some(number) => Ok((number >> 32) as u32),
            None => rand::rng().try_next_u32(),
        }
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        match seeded() {
            Some(number) => Ok(number),
            None => rand::rng().try_next_u64(),
        }
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), Infallible> {
        if RANDOM.get().is_none() {
            return rand::rng().try_fill_bytes(bytes);
        }
        for part in bytes.chunks_mut(8) {
            let number = seeded().unwrap_or_default().to_le_bytes();
            part.copy_from_slice(&number[..part.len()]);
        }
        Ok(())
    }
}

#[derive(Default)]
struct Tasks {
    handles: Vec<AbortHandle>,
    paused: bool,
    killed: bool,
    /// Tasks that wanted to go on while the process was paused, in that order.
    stalled: Vec<Waker>,
}

/// The tasks of one simulated process; clones are the same. See the [module](self).
#[derive(Clone, Default)]
pub struct Process {
    tasks: Arc<Mutex<Tasks>>,
}

impl fmt::Debug for Process {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tasks = self.tasks.lock();
        write!(
            f,
            "Process({} tasks, paused: {}, killed: {})",
            tasks.handles.len(),
            tasks.paused,
            tasks.killed
        )
    }
}

impl Process {
    /// A process that has no tasks yet.
    pub fn new() -> Process {
        Process::default()
    }

    /// Spawns a task of the process; it and all that it spawns is dropped when the process is
    /// killed.
    pub fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(Confined { process: self.clone(), future: Box::pin(future) });
        let mut tasks = self.tasks.lock();
        if tasks.killed {
            task.abort();
        } else {
            if tasks.handles.len() == tasks.handles.capacity() {
                tasks.handles.retain(|task| !task.is_finished());
            }
            tasks.handles.push(task.abort_handle());
        }
        task
    }

    /// Nothing of it goes on until [`Process::resume`]; the clocks do.
    pub fn pause(&self) {
        self.tasks.lock().paused = true;
    }

    /// See [`Process::pause`].
    pub fn resume(&self) {
        let stalled = {
            let mut tasks = self.tasks.lock();
            tasks.paused = false;
            std::mem::take(&mut tasks.stalled)
        };
        stalled.into_iter().for_each(Waker::wake);
    }

    /// Ends it for ever: none of its tasks takes another step.
    pub fn kill(&self) {
        let handles = {
            let mut tasks = self.tasks.lock();
            tasks.killed = true;
            std::mem::take(&mut tasks.handles)
        };
        handles.iter().for_each(AbortHandle::abort);
    }
}

/// A future of a process.
struct Confined<F> {
    process: Process,
    future: Pin<Box<F>>,
}

impl<F: Future> Future for Confined<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.get_mut();
        {
            let mut tasks = this.process.tasks.lock();
            if tasks.paused {
                tasks.stalled.push(context.waker().clone());
                return Poll::Pending;
            }
        }
        let before = CURRENT.replace(Some(this.process.clone()));
        let _leave = Leave(before);
        this.future.as_mut().poll(context)
    }
}

/// Puts back what was current, also if the future panics.
struct Leave(Option<Process>);

impl Drop for Leave {
    fn drop(&mut self) {
        CURRENT.set(self.0.take());
    }
}

/// A wait that tokio would make twenty times as long.
const TOO_SHORT: Duration = Duration::from_micros(50);

/// Ticks are at multiples of this. Nothing that is measured in ticks can be shorter.
pub(crate) const GRID: Duration = Duration::from_millis(100);

/// Openraft waits until a time for a tick, and for less than this to merge reports.
const NOT_SHORT: Duration = Duration::from_millis(1);

/// The wait that ends together with others, at a multiple of `step`; see the [module](self). A simulation has
/// an order of its own, which may not depend on when its process was started.
pub(crate) fn together(wait: Duration, step: Duration) -> Duration {
    static BEGAN: OnceLock<Instant> = OnceLock::new();
    if wait < NOT_SHORT || RANDOM.get().is_some() {
        return wait;
    }
    up_to_grid(BEGAN.get_or_init(Instant::now).elapsed(), wait, step)
}

/// The wait from `now` to the first point of the grid at which `wait` is over. Never shorter than
/// `wait`: a lease or an election timeout that ends early is a broken promise.
fn up_to_grid(now: Duration, wait: Duration, step: Duration) -> Duration {
    let end = (now + wait).as_nanos().next_multiple_of(step.as_nanos());
    Duration::from_nanos(u64::try_from(end).unwrap_or(u64::MAX)).saturating_sub(now)
}

type Sleep = Either<Ready<()>, tokio::time::Sleep>;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Runtime(TokioRuntime);

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = openraft_rt_tokio::TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = RandomNumbers;
    type Mpsc = openraft_rt_tokio::TokioMpsc;
    type Watch = watch::OrderedWatch;
    type Oneshot = openraft_rt_tokio::TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = openraft_rt_tokio::TokioMutex<T>;

    fn spawn<T>(future: T) -> JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        spawn(future)
    }

    fn sleep(duration: Duration) -> Self::Sleep {
        if duration < TOO_SHORT {
            return Either::Left(std::future::ready(()));
        }
        Either::Right(TokioRuntime::sleep(duration))
    }

    fn sleep_until(deadline: Self::Instant) -> Self::Sleep {
        use openraft::Instant;
        let wait = deadline - Self::Instant::now();
        if wait.is_zero() {
            return Either::Left(std::future::ready(()));
        }
        Either::Right(TokioRuntime::sleep(together(wait, GRID)))
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: Self::Instant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(join_error: &Self::JoinError) -> bool {
        join_error.is_panic()
    }

    fn thread_rng() -> RandomNumbers {
        RandomNumbers
    }

    fn new(threads: usize) -> Self {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F: Future<Output = T>, T>(&mut self, future: F) -> T {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, std::io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        TokioRuntime::spawn_blocking(work)
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;

    use super::*;

    #[test]
    fn openrafts_suite_passes() {
        // It wants waits of 50 ms to end within 200 ms, which they do not whenever the machine has other things to do.
        for attempts_left in (0..10).rev() {
            let run = std::panic::AssertUnwindSafe(openraft::rt::testing::Suite::<Runtime>::test_all);
            match std::panic::catch_unwind(run) {
                Ok(()) => return,
                Err(panic) if attempts_left == 0 => std::panic::resume_unwind(panic),
                Err(_) => {}
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_wait_until_a_time_ends_when_it_has_come_be_it_ever_so_near() {
        use openraft::Instant;
        for micros in [1, 49, 51, 999, 60_000] {
            let deadline = openraft_rt_tokio::TokioInstant::now() + Duration::from_micros(micros);
            Runtime::sleep_until(deadline).await;
            assert!(openraft_rt_tokio::TokioInstant::now() >= deadline, "{micros} us");
        }
    }

    #[test]
    fn waits_end_on_the_grid_and_never_early() {
        for micros in (0..200_000).step_by(77) {
            let now = Duration::from_micros(micros);
            for wait in [25, 50, 51, 99, 150].map(Duration::from_millis) {
                let longer = up_to_grid(now, wait, GRID);
                assert!(longer >= wait && longer < wait + GRID, "{wait:?} at {now:?} became {longer:?}");
                assert_eq!((now + longer).as_nanos() % GRID.as_nanos(), 0);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_numbers_again() {
        let draw = |seed| {
            seed_random_numbers(Some(seed));
            let numbers: Vec<u64> = (0..10).map(|_| RandomNumbers.next_u64()).collect();
            seed_random_numbers(None);
            numbers
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert_ne!(RandomNumbers.next_u64(), RandomNumbers.next_u64());
    }

    #[tokio::test(start_paused = true)]
    async fn a_paused_process_stands_still_and_a_killed_one_is_gone_with_all_it_spawned() {
        let steps = Arc::new(Mutex::new(0));
        let process = Process::new();
        let inner = Arc::clone(&steps);
        process.spawn(async move {
            // A task of a task belongs to the process.
            spawn(async move {
                loop {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    *inner.lock() += 1;
                }
            });
        });
        tokio::time::sleep(Duration::from_millis(55)).await;
        assert_eq!(*steps.lock(), 5);
        process.pause();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(*steps.lock(), 5);
        process.resume();
        tokio::time::sleep(Duration::from_millis(15)).await;
        assert_eq!(*steps.lock(), 7);
        process.kill();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(*steps.lock(), 7);
        assert_eq!(Arc::strong_count(&steps), 1, "its futures are dropped");
        assert!(process.spawn(std::future::ready(())).await.is_err());
    }
}
