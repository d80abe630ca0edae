//! Threads that keep the cores awake while syncs are measured.
//!
//! On some virtual machines a disk's completion is noticed only at the next timer tick when every core is
//! idle: 250 syncs a second instead of many thousands, for every contestant alike. That measures the machine's
//! power saving and hides all differences. One spinning thread per core prevents it. The threads run under
//! `SCHED_IDLE`, which yields to any other runnable thread, or at nice 19 where that is refused.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use thread_priority::ThreadPriority;
use thread_priority::unix::{
    NormalThreadSchedulePolicy, ThreadSchedulePolicy, set_thread_priority_and_policy, thread_native_id,
    thread_schedule_policy,
};

/// Spins until dropped.
#[derive(Debug)]
pub struct Spinners {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Spinners {
    /// One spinner per core.
    pub fn start() -> Spinners {
        let stop = Arc::new(AtomicBool::new(false));
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let threads = (0..cores)
            .map(|_| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || {
                    step_back();
                    while !stop.load(Ordering::Relaxed) {
                        hint::spin_loop();
                    }
                })
            })
            .collect();
        Spinners { stop, threads }
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A spinner cannot panic; if it did, there is nothing left to stop.
            let _ = thread.join();
        }
    }
}

/// Puts the calling thread behind all others.
fn step_back() {
    let idle = ThreadSchedulePolicy::Normal(NormalThreadSchedulePolicy::Idle);
    // The call may fail after it has set the policy (it then adjusts niceness), so ask what holds.
    let _ = set_thread_priority_and_policy(thread_native_id(), ThreadPriority::Min, idle);
    if thread_schedule_policy().ok() != Some(idle) {
        // On Linux this concerns the calling thread only. Refused means a spinner of ordinary priority, which
        // disturbs all contestants alike.
        let _ = rustix::process::setpriority_process(None, 19);
    }
}
