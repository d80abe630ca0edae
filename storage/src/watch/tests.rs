//! Subscriptions, their histories and their bounds.

use super::*;

const TREE: TreeId = TreeId(20);

fn put(key: &str, value: &str) -> Effect {
    Effect::Put { tree: TREE, key: key.into(), value: value.into(), fresh: Some(true) }
}

#[test]
fn a_subscription_sees_its_tree_and_prefix_in_commit_order() {
    let watchers = Watchers::new();
    let all = watchers.subscribe(TREE, b"", 10);
    let some = watchers.subscribe(TREE, b"a", 10);
    let other = watchers.subscribe(TreeId(21), b"", 10);
    drop(watchers.publish(1, &[put("a1", "x"), put("b1", "y")]));
    drop(watchers.publish(2, &[Effect::Remove { tree: TREE, key: "a1".into() }]));
    drop(watchers.publish(3, &[Effect::Clear { tree: TREE }]));
    let seen: Vec<u64> = std::iter::from_fn(|| all.try_next()).map(|event| event.sequence()).collect();
    assert_eq!(seen, [1, 1, 2, 3]);
    assert_eq!(some.try_next(), Some(Event::Put { sequence: 1, key: "a1".into(), value: "x".into() }));
    assert_eq!(some.try_next(), Some(Event::Remove { sequence: 2, key: "a1".into() }));
    assert_eq!(some.try_next(), Some(Event::Cleared { sequence: 3 }));
    assert_eq!(some.try_next(), None);
    assert_eq!(other.try_next(), None);
}

#[test]
fn of_many_subscriptions_each_sees_the_keys_under_its_prefix_and_no_others() {
    // Prefixes and keys of up to three letters out of two: all that can contain each other.
    let words = |longest: u32| {
        (0..=longest).flat_map(|length| {
            (0..1u32 << length)
                .map(move |bits| (0..length).map(|at| if bits >> at & 1 == 0 { 'a' } else { 'b' }).collect())
        })
    };
    let watchers = Watchers::new();
    let mut subscriptions = Vec::new();
    for round in 0..3 {
        for prefix in words(3) {
            let prefix: String = prefix;
            subscriptions.push((watchers.subscribe(TREE, prefix.as_bytes(), 100), prefix));
        }
        // Some of those of each prefix, and all of some prefixes, are gone.
        subscriptions.retain(|(_, prefix)| round < 2 || prefix != "ab" && prefix != "b");
        subscriptions.remove(round * 5);
    }
    let keys: Vec<String> = words(4).collect();
    for (key, sequence) in keys.iter().zip(1..) {
        drop(watchers.publish(sequence, &[put(key, ""), Effect::Clear { tree: TreeId(9) }]));
    }
    drop(watchers.publish(99, &[Effect::Clear { tree: TREE }]));
    for (subscription, prefix) in &subscriptions {
        let told: Vec<u64> =
            std::iter::from_fn(|| subscription.try_next()).map(|event| event.sequence()).collect();
        let keys = keys.iter().zip(1..).filter(|(key, _)| key.starts_with(prefix));
        let expected: Vec<u64> = keys.map(|(_, sequence)| sequence).chain([99]).collect();
        assert_eq!(told, expected, "under {prefix:?}");
    }
    drop(subscriptions);
    let state = watchers.registry.state.lock();
    assert!(state.trees.is_empty() && watchers.registry.count.load(Ordering::Relaxed) == 0);
}

struct Panics;

impl std::task::Wake for Panics {
    fn wake(self: Arc<Self>) {
        panic!("a waker of a test");
    }
}

#[test]
fn a_waker_that_panics_is_neither_the_writers_affair_nor_that_of_other_subscribers() {
    let watchers = Watchers::new();
    let (panics, flag) = (Waker::from(Arc::new(Panics)), Arc::new(Flag::default()));
    let wakes = Waker::from(Arc::clone(&flag));
    let subscriptions: Vec<_> = (0..4).map(|_| watchers.subscribe(TREE, b"", 10)).collect();
    for sequence in 1..=3 {
        for (number, subscription) in subscriptions.iter().enumerate() {
            let waker = if number % 2 == 0 { &panics } else { &wakes };
            while subscription.poll_next(&mut Context::from_waker(waker)).is_ready() {}
        }
        drop(watchers.publish(sequence, &[put("k", "v")]));
        assert_eq!(flag.0.load(Ordering::SeqCst), 2 * sequence as usize);
    }
    for (number, subscription) in subscriptions.iter().enumerate() {
        let waker = if number % 2 == 0 { &panics } else { &wakes };
        while subscription.poll_next(&mut Context::from_waker(waker)).is_ready() {}
    }
    watchers.close();
    assert_eq!(flag.0.load(Ordering::SeqCst), 8, "closing wakes them as well");
}

#[test]
fn a_task_that_is_told_of_many_effects_is_woken_once_and_again_by_the_next_commit() {
    let watchers = Watchers::new();
    let subscription = watchers.subscribe(TREE, b"", 10);
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(Arc::clone(&flag));
    for sequence in 1..=3 {
        while subscription.poll_next(&mut Context::from_waker(&waker)).is_ready() {}
        let wakeups = watchers.publish(sequence, &[put("a", ""), put("b", ""), put("c", "")]);
        assert_eq!(wakeups.0.len(), 1);
        drop(wakeups);
        assert_eq!(flag.0.load(Ordering::SeqCst), sequence as usize);
    }
}

#[test]
fn a_slow_subscriber_is_told_how_many_it_lost_and_goes_on() {
    let watchers = Watchers::new();
    let slow = watchers.subscribe(TREE, b"", 3);
    for sequence in 1..=10 {
        drop(watchers.publish(sequence, &[put("k", "v")]));
    }
    let sequences: Vec<u64> = (0..3).map(|_| slow.try_next().unwrap().sequence()).collect();
    assert_eq!(sequences, [1, 2, 3]);
    drop(watchers.publish(11, &[put("k", "v")]));
    assert_eq!(slow.try_next(), Some(Event::Overflowed { sequence: 10, lost: 7 }));
    assert_eq!(slow.try_next().unwrap().sequence(), 11);
    assert_eq!(slow.try_next(), None);
}

#[test]
fn values_that_are_too_large_to_hold_are_counted_as_lost() {
    let watchers = Watchers::new();
    let slow = watchers.subscribe(TREE, b"", 100);
    let large = IVec::from(vec![7; MAX_QUEUED_BYTES / 2 + 1]);
    for sequence in 1..=3 {
        let effect = Effect::Put { tree: TREE, key: "k".into(), value: large.clone(), fresh: Some(false) };
        drop(watchers.publish(sequence, &[effect]));
    }
    assert_eq!(slow.try_next().unwrap().sequence(), 1);
    assert_eq!(slow.try_next(), Some(Event::Overflowed { sequence: 3, lost: 2 }));
}

#[test]
fn closing_delivers_what_is_queued_and_then_ends() {
    let watchers = Watchers::new();
    let subscription = watchers.subscribe(TREE, b"", 10);
    drop(watchers.publish(1, &[put("k", "v")]));
    drop(watchers);
    assert!(subscription.next().is_some());
    assert!(subscription.next().is_none());
    assert_eq!(subscription.next_timeout(Duration::from_secs(9)), Err(RecvTimeoutError::Disconnected));
}

#[test]
fn dropping_the_tree_ends_its_subscriptions_and_no_others() {
    let watchers = Watchers::new();
    let gone = watchers.subscribe(TREE, b"", 10);
    let stays = watchers.subscribe(TreeId(21), b"", 10);
    drop(watchers.publish(1, &[Effect::DropTree { id: TREE }]));
    assert!(gone.next().is_none());
    assert_eq!(stays.next_timeout(Duration::ZERO), Err(RecvTimeoutError::Timeout));
    assert_eq!(watchers.registry.count.load(Ordering::Relaxed), 1);
    drop((gone, stays));
    assert_eq!(watchers.registry.count.load(Ordering::Relaxed), 0);
}

#[test]
fn a_waiting_thread_and_a_waiting_task_are_woken() {
    let watchers = Watchers::new();
    let blocking = watchers.subscribe(TREE, b"", 10);
    let polled = watchers.subscribe(TREE, b"", 10);
    let flag = Arc::new(Flag::default());
    let waker = Waker::from(Arc::clone(&flag));
    assert_eq!(polled.poll_next(&mut Context::from_waker(&waker)), Poll::Pending);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| blocking.next());
        while blocking.queue.state.lock().waiting == 0 {
            std::thread::yield_now();
        }
        let wakeups = watchers.publish(1, &[put("k", "v")]);
        assert_eq!(flag.0.load(Ordering::SeqCst), 0, "not woken while the commit mutex is held");
        drop(wakeups);
        assert_eq!(thread.join().unwrap().unwrap().sequence(), 1);
    });
    assert_eq!(flag.0.load(Ordering::SeqCst), 1);
    assert!(polled.poll_next(&mut Context::from_waker(&waker)).is_ready());
}

/// Ten commits of one key each, `k1` to `k9` and `other`, kept up to so many bytes.
fn ten_commits(watchers: &Watchers) {
    for sequence in 1..=10 {
        let key = if sequence == 10 { "other".to_owned() } else { format!("k{sequence}") };
        drop(watchers.publish(sequence, &[put(&key, "v")]));
        watchers.advanced(sequence);
    }
}

fn sequences(subscription: &Subscription) -> Vec<u64> {
    std::iter::from_fn(|| subscription.try_next()).map(|event| event.sequence()).collect()
}

#[test]
fn who_comes_back_gets_what_was_missed_once_and_then_what_comes() {
    let watchers = Watchers::with_history(1 << 20, 0);
    ten_commits(&watchers);
    let back = watchers.subscribe_after(TREE, b"k", 10, 6).unwrap();
    assert_eq!(back.caught_up(), None, "it is behind");
    drop(watchers.publish(11, &[put("k11", "v")]));
    watchers.advanced(11);
    assert_eq!(sequences(&back), [7, 8, 9, 11]);
    assert_eq!(back.caught_up(), Some(11));
    drop(watchers.publish(12, &[put("k12", "v")]));
    watchers.advanced(12);
    assert_eq!(back.caught_up(), None);
    assert_eq!(sequences(&back), [12]);
    // Of a commit that has not come yet nothing is told twice.
    let early = watchers.subscribe_after(TREE, b"", 10, 14).unwrap();
    for sequence in 13..=16 {
        drop(watchers.publish(sequence, &[put("k", "v")]));
        watchers.advanced(sequence);
    }
    assert_eq!(sequences(&early), [15, 16]);
}

#[test]
fn who_comes_too_late_is_told_from_where_on_all_is_kept() {
    let one = Event::Put { sequence: 1, key: "k1".into(), value: "v".into() };
    let bytes = 3 * (one.size() + size_of::<(TreeId, Event)>()) + 8;
    let watchers = Watchers::with_history(bytes, 0);
    ten_commits(&watchers);
    assert_eq!(watchers.kept_after(), 7);
    let late = watchers.subscribe_after(TREE, b"", 10, 6);
    assert_eq!(late.unwrap_err(), Compacted { position: 7 });
    let behind = watchers.subscribe_after(TREE, b"", 10, 7).unwrap();
    // While it is behind, the history goes on without it.
    for sequence in 11..=14 {
        drop(watchers.publish(sequence, &[put("k", "v")]));
    }
    watchers.advanced(14);
    assert_eq!(behind.try_next(), Some(Event::Overflowed { sequence: 11, lost: 4 }));
    assert_eq!(sequences(&behind), [12, 13, 14]);
    // Nobody follows a name from a tree that is dropped to the next, nor what is not kept.
    drop(watchers.publish(15, &[Effect::DropTree { id: TreeId(77) }]));
    watchers.advanced(15);
    assert_eq!(watchers.subscribe_after(TREE, b"", 10, 14).unwrap_err().position, 15);
    assert!(watchers.subscribe_after(TREE, b"", 10, 15).is_ok());
    watchers.advanced(16);
    assert_eq!(watchers.subscribe_after(TreeId::SESSIONS, b"", 10, 15).unwrap_err().position, 16);
    assert!(Watchers::new().subscribe_after(TREE, b"", 10, 0).is_ok(), "nothing has happened");
}

#[test]
fn the_newest_commit_is_kept_though_it_is_larger_than_all_may_be() {
    let limit = 1000;
    let watchers = Watchers::with_history(limit, 0);
    let large = |bytes: usize| put("k", &"v".repeat(bytes));
    drop(watchers.publish(1, &[put("k", "v")]));
    drop(watchers.publish(2, &[large(limit)]));
    watchers.advanced(2);
    assert_eq!(watchers.kept_after(), 1, "the one before has left");
    assert_eq!(sequences(&watchers.subscribe_after(TREE, b"", 10, 1).unwrap()), [2]);
    // A commit of which nothing is kept does not take its place.
    drop(watchers.publish(
        3,
        &[Effect::Put { tree: TreeId::SESSIONS, key: "s".into(), value: "".into(), fresh: None }],
    ));
    watchers.advanced(3);
    assert_eq!(sequences(&watchers.subscribe_after(TREE, b"", 10, 1).unwrap()), [2]);
    drop(watchers.publish(4, &[put("k", "v")]));
    assert_eq!(watchers.kept_after(), 2, "it was large, and is not the newest any more");
    // Memory is bounded all the same.
    drop(watchers.publish(5, &[large(limit * history::NEWEST)]));
    assert_eq!(watchers.kept_after(), 5);
}

#[test]
fn a_history_that_is_long_is_read_in_steps() {
    let watchers = Watchers::with_history(64 << 20, 0);
    let count = 3 * CATCH_UP as u64;
    for sequence in 1..=count {
        drop(watchers.publish(sequence, &[put("k", "v")]));
    }
    let back = watchers.subscribe_after(TREE, b"", 10, 0).unwrap();
    assert_eq!(back.next().unwrap().sequence(), 1);
    assert_eq!(back.queue.state.lock().events.len(), CATCH_UP - 1);
    assert_eq!(sequences(&back), (2..=count).collect::<Vec<_>>());
}

#[derive(Default)]
struct Flag(AtomicUsize);

impl std::task::Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn nothing_stays_of_subscriptions_that_come_and_go() {
    let watchers = Watchers::with_history(1 << 20, 0);
    for round in 0..50u64 {
        let keys = (0..200).map(|number| format!("{}{number}", "x".repeat(number % 7)));
        let live: Vec<Subscription> = keys
            .enumerate()
            .map(|(number, key)| match number % 3 {
                0 => watchers.subscribe(TREE, key.as_bytes(), 4),
                1 => watchers.subscribe(TreeId(21), key.as_bytes(), 4),
                _ => watchers.subscribe_after(TREE, b"", 4, round).unwrap(),
            })
            .collect();
        assert_eq!(watchers.subscriptions(), live.len());
        drop(watchers.publish(round + 1, &[put("x1", "1"), put("xx2", "2")]));
        // With events that nobody has taken.
        drop(live);
        assert_eq!(watchers.subscriptions(), 0);
        assert_eq!(watchers.registry.count.load(Ordering::Acquire), 1, "the history counts as one");
        assert!(watchers.registry.state.lock().trees.is_empty());
    }
}
