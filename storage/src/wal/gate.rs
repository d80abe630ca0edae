//! [`Gate`]: where threads wait for a commit group, woken group by group.

use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Two futex words, chosen by the parity of the group a thread waits for: the followers of the
/// group in flight sleep on one, those of the next group on the other, so that each can be woken
/// without disturbing the other. Waking costs no system call while nobody sleeps.
#[derive(Default)]
pub(super) struct Gate {
    sides: [Side; 2],
}

#[derive(Default)]
#[repr(align(64))]
struct Side {
    /// Counts the wakings; the futex word.
    word: AtomicU32,
    /// Threads that sleep or are about to.
    parked: AtomicU32,
    #[cfg(not(target_os = "linux"))]
    fallback: (parking_lot::Mutex<()>, parking_lot::Condvar),
}

impl Gate {
    /// Sleeps until woken, unless `ready` holds already. May return early for no reason.
    ///
    /// No waking is lost: `ready` is asked after the word was read, and whoever makes it true
    /// changes the word afterwards.
    pub(super) fn park(&self, group: u64, ready: impl Fn() -> bool) {
        let side = &self.sides[(group & 1) as usize];
        side.parked.fetch_add(1, SeqCst);
        let word = side.word.load(SeqCst);
        if !ready() {
            side.sleep(word);
        }
        side.parked.fetch_sub(1, SeqCst);
    }

    /// Wakes one thread that waits for `group`.
    pub(super) fn wake_one(&self, group: u64) {
        self.sides[(group & 1) as usize].wake(1);
    }

    /// Wakes every thread that waits for `group`.
    pub(super) fn wake_all(&self, group: u64) {
        self.sides[(group & 1) as usize].wake(i32::MAX as u32);
    }
}

impl Side {
    #[cfg(target_os = "linux")]
    fn sleep(&self, word: u32) {
        use rustix::thread::futex;
        // Interrupted, or the word has changed: the caller looks again in either case.
        let _ = futex::wait(&self.word, futex::Flags::PRIVATE, word, None);
    }

    #[cfg(target_os = "linux")]
    fn wake(&self, threads: u32) {
        use rustix::thread::futex;
        self.word.fetch_add(1, SeqCst);
        if self.parked.load(SeqCst) > 0 {
            let _ = futex::wake(&self.word, futex::Flags::PRIVATE, threads);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn sleep(&self, word: u32) {
        let mut guard = self.fallback.0.lock();
        while self.word.load(SeqCst) == word {
            self.fallback.1.wait(&mut guard);
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn wake(&self, _threads: u32) {
        let _guard = self.fallback.0.lock();
        self.word.fetch_add(1, SeqCst);
        self.fallback.1.notify_all();
    }
}
