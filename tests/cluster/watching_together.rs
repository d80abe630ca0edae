//! Those who follow the same share a stream, and each is told exactly what it would be told alone.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use dogsled::IVec;
use dogsled::cluster::{Client, Event, Subscriber, WatchPosition};

use crate::support::{Cluster, eventually};

const KEYS: u64 = 6;

async fn next(subscriber: &mut Subscriber) -> Event {
    let event = tokio::time::timeout(Duration::from_secs(20), subscriber.next()).await;
    event.expect("an event in time").expect("no end").expect("no error")
}

/// Numbers of which each key is given the next, one key after the other.
struct Writer {
    next: AtomicU64,
    stop: AtomicBool,
}

impl Writer {
    /// The number that a key has after so many writes, if it has one.
    fn of_key(key: u64, written: u64) -> u64 {
        (written + KEYS - 1 - key) / KEYS
    }

    fn written(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    async fn run(self: Arc<Self>, client: Client) {
        let tree = client.tree("followed");
        while !self.stop.load(Ordering::SeqCst) {
            let (key, number) = (self.written() % KEYS, self.written() / KEYS + 1);
            tree.put(format!("k{key}"), number.to_string()).await.unwrap();
            self.next.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Takes events, which are of consecutive numbers for each key.
struct Checked {
    subscriber: Subscriber,
    /// The last number of each key.
    last: BTreeMap<IVec, u64>,
    /// Writes that had been acknowledged before it was begun, and when it had been.
    begun: (u64, u64),
}

impl Checked {
    async fn take(&mut self) {
        let event = next(&mut self.subscriber).await;
        let Event::Insert { key, value } = event else { panic!("{event:?}") };
        let number: u64 = std::str::from_utf8(&value).unwrap().parse().unwrap();
        match self.last.insert(key.clone(), number) {
            Some(last) => assert_eq!(number, last + 1, "of {key:?}"),
            None => {
                let index = u64::from(key[1] - b'0');
                let least = Writer::of_key(index, self.begun.0) + 1;
                // One write may be on its way.
                let most = Writer::of_key(index, self.begun.1 + 1) + 1;
                assert!((least..=most).contains(&number), "{number} of {key:?}, not from {least} to {most}");
            }
        }
    }

    async fn take_to(&mut self, written: u64) {
        let numbers: Vec<u64> = (0..KEYS).map(|key| Writer::of_key(key, written)).collect();
        let key = |index: usize| IVec::from(format!("k{index}").as_str());
        while numbers.iter().enumerate().any(|(index, number)| self.last.get(&key(index)) != Some(number)) {
            self.take().await;
        }
        assert!(self.subscriber.try_next().is_none(), "nothing else");
    }
}

async fn begin(client: &Client, writer: &Writer) -> Checked {
    let before = writer.written();
    let subscriber = client.tree("followed").watch_prefix("k").await.unwrap();
    Checked { subscriber, last: BTreeMap::new(), begun: (before, writer.written()) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn they_come_and_go_amid_writes_and_each_is_told_everything_once_from_its_beginning() {
    let cluster = Cluster::made(1, 2).await;
    let node = cluster.nodes[&1].replication().clone();
    let streams = || (1..=2).map(|group| node.replica(group).unwrap().engine().watchers()).sum::<usize>();
    let client = cluster.client(1).await;
    let tree = client.tree("followed");
    for number in 0..32 {
        tree.put(format!("so that both partitions have the tree {number}"), "").await.unwrap();
    }
    let writer = Arc::new(Writer { next: AtomicU64::new(0), stop: AtomicBool::new(false) });
    let writing = tokio::spawn(Arc::clone(&writer).run(cluster.client(1).await));
    let mut slow = begin(&client, &writer).await;
    let mut live: Vec<Checked> = Vec::new();
    for round in 0..40_usize {
        live.push(begin(&client, &writer).await);
        for (at, checked) in live.iter_mut().enumerate() {
            for _ in 0..(at * 7 + round) % 23 {
                checked.take().await;
            }
        }
        if round % 5 == 4 {
            // One goes on where another one was.
            let gone = live.swap_remove(round % live.len());
            let position = WatchPosition::from_bytes(&gone.subscriber.position().to_bytes()).unwrap();
            let (last, begun) = (gone.last, gone.begun);
            drop(gone.subscriber);
            let subscriber = tree.watch_prefix_from("k", &position).await.unwrap();
            live.push(Checked { subscriber, last, begun });
        }
        if round % 7 == 6 {
            drop(live.swap_remove(round % live.len()));
        }
    }
    // More than the queue of the one that takes nothing holds; the others are told on and on.
    let much = writer.written() + 6_000;
    while writer.written() < much {
        for checked in &mut live {
            checked.take().await;
        }
    }
    writer.stop.store(true, Ordering::SeqCst);
    writing.await.unwrap();
    let written = writer.written();
    for checked in &mut live {
        checked.take_to(written).await;
    }
    slow.take_to(written).await;
    live.push(slow);
    eventually("all share one stream of each partition", || std::future::ready(streams() == 2)).await;
    let last = live.pop().unwrap();
    drop(live);
    tree.put("k0", (Writer::of_key(0, written) + 1).to_string()).await.unwrap();
    let mut last = last;
    last.take().await;
    assert_eq!(streams(), 2, "as long as one is there");
    drop(last);
    eventually("nobody follows any more", || std::future::ready(streams() == 0)).await;
}
