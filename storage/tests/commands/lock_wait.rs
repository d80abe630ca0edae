//! Waiting for locks: in order, woken by events, nothing lost and nobody left behind.
//!
//! Leases of `u64::MAX` never end, so a wake-up that is lost shows as a test that hangs; each runs
//! under [`within`], which fails after a minute instead.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dogsled_storage::evaluate::evaluate;
use dogsled_storage::lock::{FencingToken, LockCommand, LockReply};
use dogsled_storage::lock_wait::{Granted, LockWaiters, Woken};
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, Context, Error, IVec, Reply, Result};

const FOR_EVER: u64 = u64::MAX;

/// As the engine does it: one commit mutex around the state, waiters told after each commit.
#[derive(Clone)]
struct Database {
    state: Arc<Mutex<ModelState>>,
    waiters: LockWaiters,
    attempts: Arc<AtomicUsize>,
    is_closed: Arc<Mutex<bool>>,
    opened: Instant,
}

impl Database {
    fn new() -> Database {
        Database {
            state: Arc::default(),
            waiters: LockWaiters::new(),
            attempts: Arc::default(),
            is_closed: Arc::default(),
            opened: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        1_000 + self.opened.elapsed().as_millis() as u64
    }

    fn execute(&self, command: LockCommand) -> Result<LockReply> {
        if *self.is_closed.lock().unwrap() {
            return Err(Error::Poisoned("closed".into()));
        }
        let mut state = self.state.lock().unwrap();
        let context = Context { sequence: state.sequence() + 1, time_ms: self.now_ms() };
        let outcome = evaluate(&*state, &context, &Command::Lock(command))?;
        if !outcome.effects.is_empty() {
            state.apply(context.sequence, &outcome.effects);
        }
        // Out of the mutex, which is the harder of the two allowed places.
        drop(state);
        self.waiters.effects_applied(&outcome.effects);
        match outcome.reply {
            Reply::Lock(reply) => Ok(reply),
            other => panic!("{other:?}"),
        }
    }

    fn try_acquire(&self, owner: &str, lease_ms: u64) -> Result<LockReply> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        self.execute(LockCommand::TryAcquire { name: "door".into(), owner: owner.into(), lease_ms })
    }

    fn acquire(&self, owner: &str, lease_ms: u64, deadline: Option<Instant>) -> Result<Option<Granted>> {
        let attempt = || self.try_acquire(owner, lease_ms);
        self.waiters.acquire(b"door", deadline, || self.now_ms(), attempt)
    }

    fn release(&self, owner: &str, token: FencingToken) -> LockReply {
        self.execute(LockCommand::Release { name: "door".into(), owner: owner.into(), token }).unwrap()
    }

    fn attempts(&self) -> usize {
        self.attempts.load(Ordering::SeqCst)
    }

    fn wait_for_waiters(&self, count: usize) {
        while self.waiters.waiting() != count {
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let database = self.clone();
        let builder = thread::Builder::new().stack_size(256 << 10);
        builder.spawn(move || work(&database)).unwrap()
    }

    /// Starts a thread that waits for the lock, and returns once it stands in the queue, or has given up.
    fn queue_up<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> T + Send + 'static,
    ) -> thread::JoinHandle<T> {
        let waiting = self.waiters.waiting();
        let thread = self.spawn(work);
        while self.waiters.waiting() <= waiting && !thread.is_finished() {
            thread::sleep(Duration::from_millis(1));
        }
        thread
    }
}

/// Runs a test, and fails if it does not end.
fn within<T: Send + 'static>(limit: Duration, test: impl FnOnce() -> T + Send + 'static) -> T {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || sender.send(test()));
    match receiver.recv_timeout(limit) {
        Ok(value) => value,
        Err(error) => panic!("the test did not end within {limit:?}: {error}"),
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn a_free_lock_is_taken_at_once_even_after_the_deadline() {
    within(MINUTE, || {
        let database = Database::new();
        let granted = database.acquire("ann", 500, Some(database.opened)).unwrap().unwrap();
        assert_eq!(granted.token, FencingToken(1));
        assert_eq!((database.attempts(), database.waiters.waiting()), (1, 0));
        // Held now: with a deadline that has passed it is tried once, and not waited for.
        assert_eq!(database.acquire("ben", 500, Some(database.opened)).unwrap(), None);
        assert_eq!((database.attempts(), database.waiters.waiting()), (2, 0));
    });
}

#[test]
fn waiters_get_the_lock_in_the_order_of_their_arrival_and_nobody_polls() {
    within(MINUTE, || {
        let count = 1_000;
        let database = Database::new();
        let first = database.acquire("first", FOR_EVER, None).unwrap().unwrap();
        let order = Arc::new(Mutex::new(Vec::new()));
        let threads: Vec<_> = (0..count)
            .map(|index| {
                let order = Arc::clone(&order);
                database.queue_up(move |database| {
                    let owner = format!("waiter {index}");
                    let granted = database.acquire(&owner, FOR_EVER, None).unwrap().unwrap();
                    order.lock().unwrap().push((index, granted.token));
                    assert_eq!(database.release(&owner, granted.token), LockReply::Released);
                })
            })
            .collect();
        // The first of them was refused once; the others have not tried at all.
        thread::sleep(Duration::from_millis(200));
        assert_eq!(database.attempts(), 2);
        database.release("first", first.token);
        for thread in threads {
            thread.join().unwrap();
        }
        let order = order.lock().unwrap();
        assert!(order.iter().map(|(index, _)| *index).eq(0..count), "{order:?}");
        assert!(order.windows(2).all(|pair| pair[0].1 < pair[1].1), "{order:?}");
        assert_eq!(database.waiters.waiting(), 0);
        // When it moves up (it may have to learn who holds the lock), when the holder's grant is
        // seen, and when the holder is gone.
        assert!(database.attempts() <= 2 + 3 * count, "{} attempts", database.attempts());
    });
}

#[test]
fn the_head_waits_for_the_end_of_the_lease_and_no_longer() {
    within(MINUTE, || {
        let database = Database::new();
        let LockReply::Acquired { expires_ms, .. } = database.try_acquire("ann", 150).unwrap() else {
            panic!()
        };
        let granted = database.acquire("ben", FOR_EVER, None).unwrap().unwrap();
        let now = database.now_ms();
        assert!(now >= expires_ms, "granted at {now}, before {expires_ms}");
        assert!(now < expires_ms + 5_000, "granted at {now}, long after {expires_ms}");
        assert_eq!(granted.token, FencingToken(2));
        assert!(database.attempts() <= 5, "{} attempts", database.attempts());
    });
}

#[test]
fn a_shortened_lease_is_noticed() {
    within(MINUTE, || {
        let database = Database::new();
        let LockReply::Acquired { token, .. } = database.try_acquire("ann", 3_600_000).unwrap() else {
            panic!()
        };
        let ben = database.queue_up(|database| database.acquire("ben", FOR_EVER, None).unwrap().unwrap());
        let (name, owner) = ("door".into(), "ann".into());
        database.execute(LockCommand::Renew { name, owner, token, lease_ms: 20 }).unwrap();
        ben.join().unwrap();
    });
}

#[test]
fn who_gives_up_passes_the_turn_on() {
    within(MINUTE, || {
        // Threads that start late find that others have given up already, which shows nothing.
        for _ in 0..10 {
            let database = Database::new();
            let ann = database.acquire("ann", FOR_EVER, None).unwrap().unwrap();
            let soon = Instant::now() + Duration::from_secs(2);
            let until_soon =
                |owner| move |database: &Database| database.acquire(owner, FOR_EVER, Some(soon)).unwrap();
            let ben = database.queue_up(until_soon("ben"));
            let cat = database.queue_up(until_soon("cat"));
            let dan = database.spawn(|database| database.acquire("dan", FOR_EVER, None).unwrap());
            while database.waiters.waiting() < 3 && Instant::now() < soon {
                thread::sleep(Duration::from_millis(1));
            }
            let have_all_waited = database.waiters.waiting() == 3;
            assert_eq!(ben.join().unwrap(), None, "the head's deadline");
            assert_eq!(cat.join().unwrap(), None, "the deadline of one in the middle");
            assert!(Instant::now() >= soon);
            database.wait_for_waiters(1);
            database.release("ann", ann.token);
            assert!(dan.join().unwrap().is_some());
            if have_all_waited {
                return;
            }
        }
        panic!("they never stood in the queue together");
    });
}

#[test]
fn a_turn_that_was_not_taken_is_not_lost_with_its_waiter() {
    within(MINUTE, || {
        let database = Database::new();
        let ann = database.acquire("ann", FOR_EVER, None).unwrap().unwrap();
        let head = database.waiters.enqueue(b"door");
        assert_eq!(head.wait(None), Woken::Turn);
        let ben = database.queue_up(|database| database.acquire("ben", FOR_EVER, None).unwrap());
        // The release wakes the head, which leaves without another try.
        database.release("ann", ann.token);
        drop(head);
        assert!(ben.join().unwrap().is_some());
    });
}

#[test]
fn a_turn_before_the_sleep_is_remembered_and_taken_once() {
    within(MINUTE, || {
        let waiters = LockWaiters::new();
        let head = waiters.enqueue(b"door");
        let next = waiters.enqueue(b"door");
        let soon = || Some(Instant::now() + Duration::from_millis(20));
        assert_eq!(head.wait(None), Woken::Turn, "by being the first");
        waiters.notify(b"door");
        waiters.notify(b"door");
        assert_eq!(head.wait(None), Woken::Turn, "by both");
        assert_eq!(head.wait(soon()), Woken::TimeUp);
        assert_eq!(next.wait(soon()), Woken::TimeUp);
        waiters.notify(b"gate");
        assert_eq!(head.wait(soon()), Woken::TimeUp, "another lock");
        drop(head);
        assert_eq!(next.wait(None), Woken::Turn, "by moving up");
    });
}

#[test]
fn an_error_or_a_panic_leaves_the_queue_and_passes_the_turn_on() {
    within(MINUTE, || {
        let database = Database::new();
        let ann = database.acquire("ann", FOR_EVER, None).unwrap().unwrap();
        let failing = database.queue_up(|database| {
            let mut tries = 0;
            database.waiters.acquire(
                b"door",
                None,
                || 0,
                || {
                    tries += 1;
                    if tries == 1 {
                        database.try_acquire("ben", 1)
                    } else {
                        Err(Error::Poisoned("gone".into()))
                    }
                },
            )
        });
        let panicking = database.queue_up(|database| {
            let _ = database.waiters.acquire(b"door", None, || 0, || panic!("on purpose"));
        });
        let dan = database.queue_up(|database| database.acquire("dan", FOR_EVER, None).unwrap());
        database.release("ann", ann.token);
        assert!(matches!(failing.join().unwrap(), Err(Error::Poisoned(_))));
        assert!(panicking.join().is_err());
        assert!(dan.join().unwrap().is_some());
        assert_eq!(database.waiters.waiting(), 0);
    });
}

#[test]
fn everybody_hears_that_the_database_is_closed() {
    within(MINUTE, || {
        let database = Database::new();
        database.acquire("ann", FOR_EVER, None).unwrap();
        let threads: Vec<_> =
            (0..20).map(|_| database.queue_up(|database| database.acquire("ben", FOR_EVER, None))).collect();
        *database.is_closed.lock().unwrap() = true;
        database.waiters.notify_all();
        for thread in threads {
            assert!(matches!(thread.join().unwrap(), Err(Error::Poisoned(_))));
        }
    });
}

/// Threads that take and release as fast as they can, in every order that the scheduler comes up
/// with: none hangs, and never are two inside.
#[test]
fn no_wake_up_is_lost_under_contention() {
    within(MINUTE, || {
        let database = Database::new();
        let inside = Arc::new(AtomicUsize::new(0));
        let threads: Vec<_> = (0..8)
            .map(|index| {
                let (database, inside) = (database.clone(), Arc::clone(&inside));
                thread::spawn(move || {
                    let owner = format!("thread {index}");
                    let mut last = FencingToken::PENDING;
                    for round in 0..1_000 {
                        // Some give up at once or soon, so that heads leave in all states.
                        let patience = match (index + round) % 4 {
                            0 => Some(Duration::ZERO),
                            1 => Some(Duration::from_micros(50)),
                            _ => None,
                        };
                        let deadline = patience.map(|patience| Instant::now() + patience);
                        let Some(granted) = database.acquire(&owner, FOR_EVER, deadline).unwrap() else {
                            assert!(deadline.is_some_and(|deadline| deadline <= Instant::now()));
                            continue;
                        };
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0, "two hold the lock");
                        assert!(granted.token > last, "{} after {last}", granted.token);
                        last = granted.token;
                        inside.fetch_sub(1, Ordering::SeqCst);
                        assert_eq!(database.release(&owner, granted.token), LockReply::Released);
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        assert_eq!(database.waiters.waiting(), 0);
    });
}

#[test]
fn only_changes_of_locks_wake() {
    within(MINUTE, || {
        use dogsled_storage::{Effect, TreeId};
        let waiters = LockWaiters::new();
        let head = waiters.enqueue(b"door");
        assert_eq!(head.wait(None), Woken::Turn);
        let soon = || Some(Instant::now() + Duration::from_millis(5));
        let key = || IVec::from("door");
        let put = |tree| Effect::Put { tree, key: key(), value: key(), fresh: Some(true) };
        for (effect, expected) in [
            (put(TreeId::COUNTERS), Woken::TimeUp),
            (put(TreeId::LOCKS), Woken::Turn),
            (Effect::Remove { tree: TreeId::DEFAULT, key: key() }, Woken::TimeUp),
            (Effect::Remove { tree: TreeId::LOCKS, key: "gate".into() }, Woken::TimeUp),
            (Effect::Remove { tree: TreeId::LOCKS, key: key() }, Woken::Turn),
            (Effect::Clear { tree: TreeId::DEFAULT }, Woken::TimeUp),
            (Effect::Clear { tree: TreeId::LOCKS }, Woken::Turn),
        ] {
            waiters.effects_applied(std::slice::from_ref(&effect));
            assert_eq!(head.wait(soon()), expected, "{effect:?}");
        }
    });
}
