//! Waits for the WAL so that tasks need not: one thread per node that syncs, then tells everybody
//! whose records that sync covered.
//!
//! An append, a vote or a purge gives a ticket. Whoever needs to know when it is durable leaves
//! ticket and callback here and goes on. The thread takes all that has gathered, waits for the
//! newest ticket (which writes and syncs everything before it, of all groups: *group commit*) and
//! completes all of them. While it waits, the next group gathers.
//!
//! Callbacks of one batch are called newest first. To openraft they are watermarks: the first says
//! all, and the ones after it, being older, wake nobody.
//!
//! In a simulation there are no threads: [`Durability::inline`] syncs in the caller's call, or in a
//! task some simulated time later, so that what can happen between an append and its sync does.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dogsled_storage::wal::{Ticket, Wal};
use openraft::storage::IOFlushed;
use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::metrics::{Appended, Distribution, Histogram};
use crate::runtime;
use crate::types::TypeConfig;

/// Whom to tell.
pub(crate) enum Waiter {
    /// Entries, which are measured.
    Flushed(IOFlushed<TypeConfig>, Appended),
    Done(oneshot::Sender<io::Result<()>>),
}

impl Waiter {
    fn complete(self, result: io::Result<()>) {
        match self {
            Waiter::Flushed(flushed, appended) => {
                if result.is_ok() {
                    appended.durable();
                }
                flushed.io_completed(result);
            }
            // Nobody waits any more: no matter.
            Waiter::Done(sender) => drop(sender.send(result)),
        }
    }
}

#[derive(Default)]
struct Queue {
    waiting: Vec<(Ticket, Waiter)>,
    /// The thread has nothing to do and sleeps; without threads: there is no task.
    idle: bool,
    stopping: bool,
}

struct Shared {
    wal: Arc<Wal>,
    queue: Mutex<Queue>,
    wake: Condvar,
    syncs: Histogram,
}

impl Shared {
    fn new(wal: Arc<Wal>, queue: Queue) -> Arc<Shared> {
        let (queue, wake, syncs) = (Mutex::new(queue), Condvar::new(), Histogram::default());
        Arc::new(Shared { wal, queue, wake, syncs })
    }

    fn wait_durable(&self, ticket: Ticket) -> dogsled_storage::Result<()> {
        let began = Instant::now();
        let result = self.wal.wait_durable(ticket);
        self.syncs.observe(began.elapsed());
        result
    }
}

/// See the [module](self).
pub(crate) struct Durability {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
    mode: Mode,
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Thread,
    InCall,
    /// In a task, after a time between these two.
    Later(Duration, Duration),
}

impl Durability {
    /// With a thread of its own.
    pub(crate) fn threaded(wal: Arc<Wal>) -> io::Result<Durability> {
        let shared = Shared::new(wal, Queue::default());
        let run = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("dogsled-durability".to_owned()).spawn(move || run.run())?;
        Ok(Durability { shared, thread: Mutex::new(Some(thread)), mode: Mode::Thread })
    }

    /// Without. A sync takes between `time.0` and `time.1`; if that is nothing, it happens in
    /// [`Durability::when_durable`].
    pub(crate) fn inline(wal: Arc<Wal>, time: (Duration, Duration)) -> Durability {
        let shared = Shared::new(wal, Queue { idle: true, ..Queue::default() });
        let mode = if time.1.is_zero() { Mode::InCall } else { Mode::Later(time.0, time.1) };
        Durability { shared, thread: Mutex::new(None), mode }
    }

    /// Tells `waiter` when everything up to `ticket` is durable, or that it never will be.
    pub(crate) fn when_durable(&self, ticket: Ticket, waiter: Waiter) {
        if self.mode == Mode::InCall {
            waiter.complete(self.shared.wait_durable(ticket).map_err(to_io));
            return;
        }
        let mut queue = self.shared.queue.lock();
        if queue.stopping {
            drop(queue);
            waiter.complete(Err(io::Error::other("the node was shut down")));
            return;
        }
        queue.waiting.push((ticket, waiter));
        if queue.idle {
            queue.idle = false;
            drop(queue);
            match self.mode {
                Mode::Later(least, most) => {
                    drop(runtime::spawn(Arc::clone(&self.shared).run_in_task((least, most))));
                }
                _ => drop(self.shared.wake.notify_one()),
            }
        }
    }

    /// Returns when everything up to `ticket` is durable.
    pub(crate) async fn wait(&self, ticket: Ticket) -> io::Result<()> {
        let (sender, receiver) = oneshot::channel();
        self.when_durable(ticket, Waiter::Done(sender));
        receiver.await.unwrap_or_else(|_| Err(io::Error::other("the durability thread is gone")))
    }

    /// How long syncs took, each with the writing of what had gathered.
    pub(crate) fn syncs(&self) -> Distribution {
        self.shared.syncs.read()
    }

    /// Completes what waits, then ends the thread.
    pub(crate) fn stop(&self) {
        self.shared.queue.lock().stopping = true;
        self.shared.wake.notify_one();
        if self.mode != Mode::Thread {
            self.shared.complete_waiting();
        }
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            self.shared.wal.poison("the durability thread panicked");
        }
    }
}

impl Drop for Durability {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Shared {
    fn run(&self) {
        let mut batch = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock();
                while queue.waiting.is_empty() {
                    if queue.stopping {
                        return;
                    }
                    queue.idle = true;
                    self.wake.wait(&mut queue);
                }
                queue.idle = false;
                std::mem::swap(&mut batch, &mut queue.waiting);
            }
            self.complete(&mut batch);
        }
    }

    /// Syncs, and tells everybody of the batch.
    fn complete(&self, batch: &mut Vec<(Ticket, Waiter)>) {
        let newest = batch.iter().map(|(ticket, _)| *ticket).max().unwrap_or_default();
        let result = self.wait_durable(newest);
        for (_, waiter) in batch.drain(..).rev() {
            waiter.complete(result.clone().map_err(to_io));
        }
    }

    fn complete_waiting(&self) {
        let mut batch = std::mem::take(&mut self.queue.lock().waiting);
        if !batch.is_empty() {
            self.complete(&mut batch);
        }
    }

    async fn run_in_task(self: Arc<Self>, time: (Duration, Duration)) {
        loop {
            tokio::time::sleep(runtime::random_duration(time)).await;
            self.complete_waiting();
            let mut queue = self.queue.lock();
            if queue.waiting.is_empty() {
                queue.idle = true;
                return;
            }
        }
    }
}

/// An error of storage, for openraft.
pub(crate) fn to_io(error: dogsled_storage::Error) -> io::Error {
    match &error {
        dogsled_storage::Error::Io { source, .. } => io::Error::new(source.kind(), error),
        _ => io::Error::other(error),
    }
}
