//! `flush_async`: syncing without making the caller's thread wait.
//!
//! A sync blocks, so some thread has to wait for it. One thread per database does, from the first
//! request on; requests that come while it syncs share the next sync. The database joins it when
//! it closes, after all requests were answered, so that no thread of ours holds the directory
//! when the drop of the last handle returns.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::task::{Context, Poll, Waker};
use std::thread::JoinHandle;

use dogsled_storage::Engine;
use parking_lot::Mutex;

use crate::Result;

/// Makes all commits so far durable; how many were not yet.
pub(crate) fn sync(engine: &Engine) -> Result<usize> {
    let pending = engine.sequence().saturating_sub(engine.durable_sequence());
    engine.sync()?;
    Ok(pending as usize)
}

/// The thread that waits for syncs; started by the first request.
#[derive(Default)]
pub(crate) struct Flusher {
    worker: Mutex<Option<Worker>>,
}

struct Worker {
    requests: Sender<Arc<Mutex<Slot>>>,
    thread: JoinHandle<()>,
}

#[derive(Default)]
struct Slot {
    result: Option<Result<usize>>,
    waker: Option<Waker>,
}

impl Flusher {
    pub(crate) fn request(&self, engine: &Arc<Engine>) -> FlushFuture {
        let slot = Arc::new(Mutex::new(Slot::default()));
        let mut worker = self.worker.lock();
        if worker.is_none() {
            let (requests, queue) = channel();
            let engine = Arc::clone(engine);
            let builder = std::thread::Builder::new().name("dogsled flush".to_owned());
            match builder.spawn(move || run(&engine, &queue)) {
                Ok(thread) => *worker = Some(Worker { requests, thread }),
                Err(error) => slot.lock().result = Some(Err(error.into())),
            }
        }
        if let Some(worker) = &*worker {
            // It ends only after the sender is dropped.
            worker.requests.send(Arc::clone(&slot)).expect("the flush thread runs");
        }
        FlushFuture { slot }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let Some(Worker { requests, thread }) = self.worker.get_mut().take() else { return };
        drop(requests);
        // A waker that drops the last handle runs on that very thread, which cannot join itself;
        // it ends by itself then.
        if thread.thread().id() != std::thread::current().id() {
            let _ = thread.join();
        }
    }
}

fn run(engine: &Engine, queue: &Receiver<Arc<Mutex<Slot>>>) {
    while let Ok(first) = queue.recv() {
        let slots: Vec<_> = std::iter::once(first).chain(queue.try_iter()).collect();
        let result = sync(engine);
        for slot in slots {
            let waker = {
                let mut slot = slot.lock();
                slot.result = Some(result.clone());
                slot.waker.take()
            };
            if let Some(waker) = waker {
                // A stranger's code; others wait for this thread. Its panic was printed.
                let _ = catch_unwind(AssertUnwindSafe(|| waker.wake()));
            }
        }
    }
}

/// What [`Tree::flush_async`](crate::Tree::flush_async) returns. The sync is under way whether or
/// not it is polled.
#[must_use = "the result says whether the writes are durable"]
pub struct FlushFuture {
    slot: Arc<Mutex<Slot>>,
}

impl Future for FlushFuture {
    type Output = Result<usize>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<usize>> {
        let mut slot = self.slot.lock();
        if let Some(result) = &slot.result {
            return Poll::Ready(result.clone());
        }
        match &mut slot.waker {
            Some(waker) => waker.clone_from(context.waker()),
            none => *none = Some(context.waker().clone()),
        }
        Poll::Pending
    }
}

impl fmt::Debug for FlushFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FlushFuture")
    }
}
