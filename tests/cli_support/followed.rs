//! Keys that writers write and watchers follow: each watcher must be told exactly what has happened to each key, in
//! order, nothing missing and nothing twice, whatever happens to the nodes meanwhile.
//!
//! A writer waits for each answer before it goes on, and writes a key never again after a call of which it does not
//! know whether it was carried out. So what is known of a key is its whole history, but for a last step that may or may
//! not be a part of it, and may come late.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled::cluster::{Client, Event, Subscriber, Tree, WatchPosition, default_partitions, ring};
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::load::PATIENCE;

const TREE: &str = "followed";
const PREFIX: &str = "by ";
const WRITERS: usize = 2;
/// Keys that a writer writes in turn.
const KEYS: u64 = 40;
/// A watcher that begins again where it was does so after so many events.
const AT_A_TIME: usize = 200;

/// What happened to a key: its value is another, or (`None`) it was removed.
type Step = Option<String>;

/// What is known to have happened.
#[derive(Default)]
struct History {
    /// Of each key.
    certain: BTreeMap<String, Vec<Step>>,
    /// What may have happened to a key last.
    perhaps: BTreeMap<String, Step>,
}

/// What a watcher was told.
#[derive(Default)]
struct Told {
    of_keys: BTreeMap<String, Vec<Step>>,
    /// The numbers of the writes of one writer in one partition, as they were told of.
    numbers: BTreeMap<(String, u32), Vec<u64>>,
    events: usize,
}

/// See the [module](self).
pub(super) struct Followed {
    history: Arc<Mutex<History>>,
    writers: Vec<JoinHandle<()>>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    told: Arc<Mutex<Told>>,
    follows: JoinHandle<()>,
}

impl Followed {
    /// Starts writers of one client, and watchers that have one each.
    pub(super) async fn start(
        writer: &Client,
        watchers: [Client; 2],
        stop: &Arc<AtomicBool>,
        progress: &Arc<AtomicU64>,
        pause: Duration,
    ) -> Followed {
        let tree = writer.tree(TREE);
        // Every partition knows the tree before anybody follows it.
        for number in 0..u64::from(default_partitions()) * 8 {
            tree.put(format!("other {number}"), "").await.expect("all nodes are well at first");
        }
        let mut following = Vec::new();
        for (number, client) in watchers.into_iter().enumerate() {
            let tree = client.tree(TREE);
            let subscriber = tree.watch_prefix(PREFIX).await.expect("all nodes are well at first");
            let told = Arc::new(Mutex::new(Told::default()));
            let again = (number == 1).then_some(AT_A_TIME);
            let follows = tokio::spawn(follow(tree, subscriber, Arc::clone(&told), again));
            following.push(Watcher { told, follows });
        }
        let history = Arc::new(Mutex::new(History::default()));
        let write = |writer: usize| {
            let (history, stop, progress) = (Arc::clone(&history), Arc::clone(stop), Arc::clone(progress));
            tokio::spawn(write(tree.clone(), writer, history, stop, progress, pause))
        };
        let writers = (0..WRITERS).map(write).collect();
        Followed { history, writers, watchers: following }
    }

    /// Waits for the writers, which were told to stop, and looks at what the watchers were told. How many events.
    pub(super) async fn stop(self) -> usize {
        for writer in self.writers {
            writer.await.expect("it does not panic");
        }
        let history = std::mem::take(&mut *self.history.lock());
        let mut events = 0;
        for watcher in self.watchers {
            // What was acknowledged is told of soon.
            let began = Instant::now();
            while !watcher.follows.is_finished()
                && history.certain.iter().any(|(key, steps)| {
                    watcher.told.lock().of_keys.get(key).map_or(0, Vec::len) < steps.len()
                })
            {
                assert!(began.elapsed() < PATIENCE, "{}", history.missing(&watcher.told.lock()));
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if watcher.follows.is_finished() {
                watcher.follows.await.expect("it is told of nothing that must not be");
                panic!("a watcher has ended");
            }
            // Nothing comes behind it that must not.
            tokio::time::sleep(Duration::from_millis(300)).await;
            watcher.follows.abort();
            let told = watcher.told.lock();
            history.check(&told);
            events += told.events;
        }
        events
    }
}

impl History {
    fn missing(&self, told: &Told) -> String {
        let short = |(key, steps): (&String, &Vec<Step>)| {
            let told = told.of_keys.get(key).map_or(&[][..], Vec::as_slice);
            (told.len() < steps.len()).then(|| format!("{key}: {steps:?}, told {told:?}"))
        };
        let missing: Vec<String> = self.certain.iter().filter_map(short).take(5).collect();
        format!("acknowledged, and a watcher is not told: {missing:#?}")
    }

    fn check(&self, told: &Told) {
        for (key, told) in &told.of_keys {
            let certain = self.certain.get(key).map_or(&[][..], Vec::as_slice);
            let is_right = match told.strip_prefix(certain) {
                Some([]) => true,
                Some([more]) => self.perhaps.get(key) == Some(more),
                _ => false,
            };
            let perhaps = self.perhaps.get(key);
            assert!(is_right, "{key}: {certain:?}, perhaps {perhaps:?}; told {told:?}");
        }
        let late: BTreeSet<u64> = self.perhaps.values().flatten().map(|value| number(value)).collect();
        for (of, numbers) in &told.numbers {
            let numbers: Vec<u64> = numbers.iter().copied().filter(|number| !late.contains(number)).collect();
            assert!(
                numbers.is_sorted(),
                "{of:?}: not in the order in which they were acknowledged: {numbers:?}"
            );
        }
        assert!(told.events > 100, "{} events are too few to tell", told.events);
    }
}

/// Puts and removes keys in turn until told to stop.
async fn write(
    tree: Tree,
    writer: usize,
    history: Arc<Mutex<History>>,
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
    pause: Duration,
) {
    // Of each key in turn, which of its names is in use, and whether it is there.
    let mut names = vec![(0, false); KEYS as usize];
    for number in 0_u64.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let (generation, is_there) = &mut names[(number % KEYS) as usize];
        let key = format!("{PREFIX}{writer}: {}.{generation}", number % KEYS);
        let step = (!*is_there || number % 7 != 0).then(|| number.to_string());
        let written = match &step {
            Some(value) => tree.put(&key, value.as_bytes()).await,
            None => tree.remove(&key).await.map(drop),
        };
        match written {
            Ok(()) => {
                *is_there = step.is_some();
                history.lock().certain.entry(key).or_default().push(step);
                progress.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if error.is_definite() => {}
            Err(_) => {
                history.lock().perhaps.insert(key, step);
                (*generation, *is_there) = (*generation + 1, false);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

/// Writes down what it is told; begins again where it was, if so, after some events.
async fn follow(tree: Tree, mut subscriber: Subscriber, told: Arc<Mutex<Told>>, again: Option<usize>) {
    let mut position = WatchPosition::default();
    let mut until_again = again.unwrap_or(usize::MAX);
    loop {
        if until_again == 0 {
            drop(subscriber);
            // There may be no way to the nodes just now.
            subscriber = loop {
                match tree.watch_prefix_from(PREFIX, &position).await {
                    Ok(subscriber) => break subscriber,
                    Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
                }
            };
            until_again = again.unwrap_or(usize::MAX);
        }
        let event = subscriber.next().await.expect("it never ends").expect("it goes on whatever happens");
        position.clone_from(subscriber.position());
        until_again -= 1;
        let (key, step) = match event {
            Event::Insert { key, value } => (key, Some(text(&value))),
            Event::Remove { key } => (key, None),
            other => panic!("a watcher was told {other:?}"),
        };
        let (group, key) = (ring::group_of(&key, default_partitions()), text(&key));
        let mut told = told.lock();
        if let (Some(value), Some((writer, _))) = (&step, key.split_once(':')) {
            told.numbers.entry((writer.to_owned(), group)).or_default().push(number(value));
        }
        told.of_keys.entry(key).or_default().push(step);
        told.events += 1;
    }
}

fn number(value: &str) -> u64 {
    value.parse().expect("a number")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("text")
}
