//! What openraft runs on: tokio, with two differences.
//!
//! - **Waits too short for tokio's timer end at once.** The timer counts whole milliseconds, and openraft
//!   waits a microsecond between two reports of what is durable, to merge them; that must not become a
//!   millisecond. (What it costs otherwise was reasoned from openraft's source, not measured alone.)
//! - **Random numbers can be seeded** for the thread ([`seed_thread`]), for simulations.

use std::cell::Cell;
use std::future::{Future, Ready};
use std::io;
use std::time::Duration;

use futures_util::future::Either;
use openraft::{AsyncRuntime, OptionalSend};
use openraft_rt_tokio::{TokioInstant, TokioMpsc, TokioMutex, TokioOneshot, TokioRuntime, TokioWatch};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};

/// A wait that tokio would make twenty times as long.
const TOO_SHORT: Duration = Duration::from_micros(50);

thread_local! {
    static SEED: Cell<Option<u64>> = const { Cell::new(None) };
}

/// From now on, what Raft does at random on this thread follows from the seed. For simulations, which
/// have one thread.
pub fn seed_thread(seed: u64) {
    SEED.set(Some(seed));
}

/// See the [module](self).
pub(crate) struct Runtime(TokioRuntime);

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

type Sleep = Either<Ready<()>, tokio::time::Sleep>;

impl AsyncRuntime for Runtime {
    type JoinError = tokio::task::JoinError;
    type JoinHandle<T: OptionalSend + 'static> = tokio::task::JoinHandle<T>;
    type Sleep = Sleep;
    type Instant = TokioInstant;
    type TimeoutError = tokio::time::error::Elapsed;
    type Timeout<R, T: Future<Output = R> + OptionalSend> = tokio::time::Timeout<T>;
    type ThreadLocalRng = SmallRng;
    type Mpsc = TokioMpsc;
    type Watch = TokioWatch;
    type Oneshot = TokioOneshot;
    type Mutex<T: OptionalSend + 'static> = TokioMutex<T>;

    fn spawn<T>(future: T) -> Self::JoinHandle<T::Output>
    where
        T: Future + OptionalSend + 'static,
        T::Output: OptionalSend + 'static,
    {
        tokio::spawn(future)
    }

    fn sleep(duration: Duration) -> Sleep {
        if duration < TOO_SHORT {
            return Either::Left(std::future::ready(()));
        }
        Either::Right(tokio::time::sleep(duration))
    }

    fn sleep_until(deadline: TokioInstant) -> Sleep {
        use openraft::Instant;
        Runtime::sleep(deadline - TokioInstant::now())
    }

    fn timeout<R, F: Future<Output = R> + OptionalSend>(
        duration: Duration,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout(duration, future)
    }

    fn timeout_at<R, F: Future<Output = R> + OptionalSend>(
        deadline: TokioInstant,
        future: F,
    ) -> Self::Timeout<R, F> {
        TokioRuntime::timeout_at(deadline, future)
    }

    fn is_panic(error: &tokio::task::JoinError) -> bool {
        error.is_panic()
    }

    fn thread_rng() -> SmallRng {
        let seed = match SEED.get() {
            None => rand::rng().random(),
            Some(seed) => {
                let next = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
                SEED.set(Some(next));
                next
            }
        };
        SmallRng::seed_from_u64(seed)
    }

    fn new(threads: usize) -> Runtime {
        Runtime(TokioRuntime::new(threads))
    }

    fn block_on<F, T>(&mut self, future: F) -> T
    where
        F: Future<Output = T>,
    {
        self.0.block_on(future)
    }

    fn spawn_blocking<F, T>(work: F) -> impl Future<Output = Result<T, io::Error>> + Send
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        TokioRuntime::spawn_blocking(work)
    }
}
