//! Clients that write while a test does something to the nodes, and what must be true afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled::IVec;
use dogsled::cluster::{Client, Error, ReadFrom, Role, default_partitions};
use dogsled_storage::COUNTERS_TREE_NAME;
use parking_lot::Mutex;
use tokio::task::{JoinHandle, JoinSet};

/// How long anything that a test waits for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
const TREE: &str = "load";

pub(crate) async fn eventually<F: Future<Output = bool>>(what: &str, mut holds: impl FnMut() -> F) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Whether every one of three members votes in every group and has what its leader has, but for so
/// many entries.
pub(crate) async fn is_whole(client: &Client, behind: u64) -> bool {
    let Ok(members) = client.status().await else { return false };
    let told: Vec<_> = members.into_iter().filter_map(|member| member.status.ok()).collect();
    let leading = told.iter().flat_map(|status| &status.groups).filter(|group| group.role == Role::Leader);
    let level = leading.filter(|group| {
        let near = |matched: u64| matched + behind >= group.last;
        group.followers.len() == 2 && group.followers.iter().all(|follower| near(follower.matched))
    });
    told.len() == 3 && level.count() == default_partitions() as usize + 1
}

/// What the writers were told.
#[derive(Default)]
pub(crate) struct Told {
    pub(crate) keys: Vec<String>,
    added: i64,
    perhaps_added: i64,
    /// What went wrong, call by call.
    failed: Vec<String>,
    /// How long the slowest call took, and which it was.
    slowest: (Duration, String),
}

impl Told {
    pub(crate) fn add(&mut self, more: Told) {
        self.keys.extend(more.keys);
        self.added += more.added;
        self.perhaps_added += more.perhaps_added;
        self.failed.extend(more.failed);
        if more.slowest.0 > self.slowest.0 {
            self.slowest = more.slowest;
        }
    }

    /// Remembers of a call how long it took and what it came to.
    fn heard<T>(&mut self, call: impl FnOnce() -> String, began: Instant, outcome: &Result<T, Error>) {
        let took = began.elapsed();
        match outcome {
            Ok(_) if took <= self.slowest.0 => {}
            Ok(_) => self.slowest = (took, call()),
            Err(error) => {
                let call = call();
                self.failed.push(format!("{call} after {took:?}: {error}"));
                if took > self.slowest.0 {
                    self.slowest = (took, call);
                }
            }
        }
    }

    /// Asserts that every call did what was asked of it, and within this.
    pub(crate) fn check_that_no_call_failed(&self, deadline: Duration) {
        let (count, first) = (self.failed.len(), self.failed.iter().take(5).collect::<Vec<_>>());
        assert!(self.failed.is_empty(), "{count} calls failed, among them {first:#?}");
        let (took, call) = &self.slowest;
        assert!(*took <= deadline, "{call} took {took:?}, and had {deadline:?}");
    }

    /// The longest that any call took.
    pub(crate) fn slowest(&self) -> Duration {
        self.slowest.0
    }

    /// Asserts that everything that was acknowledged is there, and was counted once. A client that
    /// remembers nothing is to be asked.
    pub(crate) async fn check(&self, reader: &Client) {
        let tree = reader.tree(TREE);
        for part in self.keys.chunks(1024) {
            let values = tree.get_many(part).await.expect("values");
            for (key, value) in part.iter().zip(values) {
                assert_eq!(value.as_deref(), Some(key.as_bytes()), "acknowledged and lost: {key}");
            }
        }
        let mut counted = 0;
        for number in 0..4 {
            counted += reader.counter(format!("counter {number}")).get().await.expect("a value");
        }
        assert!(
            (self.added..=self.added + self.perhaps_added).contains(&counted),
            "counted {counted}, acknowledged {}, perhaps {}",
            self.added,
            self.perhaps_added
        );
    }
}

/// Clients that write keys of their own, and count.
pub(crate) struct Load {
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    newest: Newest,
    writers: Vec<JoinHandle<Told>>,
}

/// The key that each writer was acknowledged last.
type Newest = Arc<Mutex<Vec<Option<String>>>>;

impl Load {
    /// Starts writers, whose keys begin with `name`.
    pub(crate) fn start(client: &Client, name: &str, writers: usize) -> Load {
        let (stop, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let newest: Newest = Arc::new(Mutex::new(vec![None; writers]));
        let write = |writer| {
            let (stop, progress, newest) = (Arc::clone(&stop), Arc::clone(&progress), Arc::clone(&newest));
            write(client.clone(), name.to_owned(), writer, stop, progress, newest)
        };
        let writers = (0..writers).map(|writer| tokio::spawn(write(writer))).collect();
        Load { stop, progress, newest, writers }
    }

    /// From now on what was acknowledged last is read, too, at the replica that is nearest to this client.
    pub(crate) fn read_near(&mut self, client: Client) {
        self.writers.push(tokio::spawn(read_near(client, Arc::clone(&self.newest), Arc::clone(&self.stop))));
    }

    /// So many keys were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }

    /// Waits until so many more keys are acknowledged.
    pub(crate) async fn goes_on(&self, keys: u64) {
        let from = self.acknowledged();
        eventually("the writers go on", || async { self.acknowledged() >= from + keys }).await;
    }

    pub(crate) async fn stop(self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Told::default();
        for writer in self.writers {
            all.add(writer.await.expect("it does not panic"));
        }
        all
    }
}

async fn write(
    client: Client,
    name: String,
    writer: usize,
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    newest: Newest,
) -> Told {
    let (tree, counter) = (client.tree(TREE), client.counter(format!("counter {}", writer % 4)));
    let mut told = Told::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{name}/{writer}/{number:06}");
        let began = Instant::now();
        let inserted = tree.insert(&key, key.as_bytes()).await;
        told.heard(|| format!("insert {key}"), began, &inserted);
        let began = Instant::now();
        let added = counter.add(1).await;
        told.heard(|| format!("add after {key}"), began, &added);
        match added {
            Ok(stood) => {
                told.added += 1;
                let began = Instant::now();
                let stands = counter.get().await;
                told.heard(|| format!("read after {key}"), began, &stands);
                if let Ok(stands) = stands {
                    // It only grows: whoever answers with less has been overtaken, and does not know it.
                    assert!(stands >= stood, "the counter stood at {stood}, and is read as {stands}");
                }
            }
            Err(error) if error.is_definite() => {}
            Err(_) => told.perhaps_added += 1,
        }
        if inserted.is_ok() {
            newest.lock()[writer] = Some(key.clone());
            told.keys.push(key);
            progress.fetch_add(1, Ordering::Relaxed);
        }
    }
    told
}

/// Reads linearizably what was acknowledged before the read began, again and again, and does not wait for one answer
/// before it asks for the next: a node that was paused then finds questions that came when others led already.
async fn read_near(client: Client, newest: Newest, stop: Arc<AtomicBool>) -> Told {
    let mut reads = JoinSet::new();
    let mut all = Told::default();
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let newest = {
            let newest = newest.lock();
            newest[number % newest.len()].clone()
        };
        if let Some(key) = newest {
            let tree = client.tree(TREE).read_from(ReadFrom::Nearest);
            reads.spawn(async move {
                let mut told = Told::default();
                let began = Instant::now();
                let read = tree.get(&key).await;
                told.heard(|| format!("read {key} nearby"), began, &read);
                if let Ok(value) = read {
                    let value = value.as_deref();
                    assert_eq!(value, Some(key.as_bytes()), "{key} was acknowledged before it was asked for");
                }
                told
            });
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        while let Some(told) = reads.try_join_next() {
            all.add(told.expect("it does not panic"));
        }
    }
    while let Some(told) = reads.join_next().await {
        all.add(told.expect("it does not panic"));
    }
    client.close().await;
    all
}

/// Asserts that what the load has written is the same on the replicas of all members. Each of them is to
/// be in a zone of its own, and each of the clients in another of these: what it reads from the nearest
/// replica is then what that member holds.
pub(crate) async fn replicas_agree(clients: &[Client]) {
    let mut first: Option<Vec<(IVec, IVec)>> = None;
    for (number, client) in clients.iter().enumerate() {
        let mut held = Vec::new();
        for tree in [TREE.as_bytes(), COUNTERS_TREE_NAME] {
            let mut entries = client.tree(tree).read_from(ReadFrom::Nearest).iter();
            while let Some(entry) = entries.next().await {
                held.push(entry.expect("it answers"));
            }
        }
        let Some(first) = &first else {
            first = Some(held);
            continue;
        };
        assert_eq!(first.len(), held.len(), "the replicas of the first zone and of zone {number}");
        let differs = first.iter().zip(&held).find(|(one, other)| one != other);
        assert_eq!(differs, None, "the replicas of the first zone and of zone {number}");
    }
}
