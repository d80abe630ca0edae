//! Trees of which a prefix of the keys is hashed.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::time::Duration;

use dogsled::cluster::ring::{TreeHash, group_in};
use dogsled::cluster::{Client, Error, Event, Tree};
use dogsled::{Batch, IVec};

use crate::support::{Cluster, eventually};

const SLASH: TreeHash = TreeHash::Before { delimiter: b'/', occurrence: 1 };
const PARTITIONS: u32 = 8;

/// How many keys of a tree each partition has, as its leader knows.
async fn lengths(cluster: &Cluster, stored: &IVec) -> BTreeMap<u32, u64> {
    use dogsled_storage::{GroupRead, GroupReadReply};
    let mut lengths = BTreeMap::new();
    for group in 1..=PARTITIONS {
        let leader = cluster.leader(group).await;
        let replica = cluster.nodes[&leader].replication().replica(group).unwrap();
        let read = GroupRead::Len { tree: stored.clone() };
        let GroupReadReply::Length(length) = replica.read(&read).unwrap() else { panic!("no length") };
        lengths.insert(group, length);
    }
    lengths.retain(|_, length| *length > 0);
    lengths
}

async fn prefix(tree: &Tree, prefix: &str) -> Vec<(IVec, IVec)> {
    tree.scan_prefix(prefix).into_vec().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_with_the_same_hashed_prefix_lie_in_one_partition() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    client.set_tree_hash("messages", SLASH).await.unwrap();
    let messages = client.tree("messages");
    let stored = SLASH.stored_name(b"messages");
    assert!(prefix(&messages, "room 1/").await.is_empty());
    let mut batch = Batch::default();
    for number in 0..50 {
        batch.insert(format!("room 1/{number:04}"), "hello");
    }
    // Atomic, though nobody has written a tag.
    messages.apply_batch(batch).await.unwrap();
    let of_room = group_in(&stored, b"room 1/", PARTITIONS);
    assert_eq!(lengths(&cluster, &stored).await, BTreeMap::from([(of_room, 50)]));
    for room in 2..40 {
        for number in 0..3 {
            messages.put(format!("room {room}/{number:04}"), "hello").await.unwrap();
        }
        let group = group_in(&stored, format!("room {room}/").as_bytes(), PARTITIONS);
        assert_eq!(group, group_in(&stored, format!("room {room}").as_bytes(), PARTITIONS));
    }
    assert_eq!(lengths(&cluster, &stored).await.len(), PARTITIONS as usize, "rooms are spread");
    assert_eq!(messages.len().await.unwrap(), 50 + 38 * 3);
    assert_eq!(prefix(&messages, "room 1/").await.len(), 50);
    assert_eq!(prefix(&messages, "room 1").await.len(), 50 + 10 * 3, "of several partitions");

    // A node's own client, and every operation that has to know where a key is.
    let own = cluster.nodes[&2].client();
    eventually("the node knows", || std::future::ready(own.tree_hash("messages") == SLASH)).await;
    let messages = own.tree("messages");
    assert_eq!(messages.insert("room 1/0000", "you").await.unwrap().unwrap(), "hello");
    assert_eq!(messages.get("room 1/0000").await.unwrap().unwrap(), "you");
    let many = messages.get_many(["room 1/0001", "room 2/0001", "none"]).await.unwrap();
    assert_eq!(many, [Some("hello".into()), Some("hello".into()), None]);
    messages.compare_and_swap("room 2/0000", Some("hello"), Some("you")).await.unwrap().unwrap();
    messages.insert_with_ttl("room 1/ttl", "x", Duration::from_secs(600)).await.unwrap();
    assert!(matches!(messages.ttl("room 1/ttl").await.unwrap(), dogsled::Ttl::In(_)));
    let version = messages.get_versioned("room 1/0001").await.unwrap().unwrap().version;
    messages.put_if_version("room 1/0001", "new", version).await.unwrap().unwrap();
    let session = own.session(Duration::from_secs(10));
    session.insert(&messages, "room 1/who/ann", "here").await.unwrap();
    let numbered = messages.insert_next("room 1/n/", "x").await.unwrap();
    assert!(numbered.starts_with(b"room 1/n/"));
    assert!(matches!(messages.insert_next("room 1", "x").await, Err(Error::Invalid(_))));
    own.compare()
        .is(&messages, "room 1/0001", "new")
        .then_put(&messages, "room 1/0002", "then")
        .run()
        .await
        .unwrap();
    let messages = &messages;
    let moved = own.transaction(|transaction| async move {
        let room = transaction.scan_prefix(messages, "room 1/").await?;
        for (key, value) in &room {
            transaction.put(messages, [b"room 3/".as_slice(), &key[7..]].concat(), value.clone())?;
            transaction.delete(messages, key)?;
        }
        Ok::<_, dogsled::cluster::transaction::ConflictableTransactionError<()>>(room.len())
    });
    assert_eq!(moved.await.unwrap(), 53);
    assert!(prefix(messages, "room 1/").await.is_empty());
    assert_eq!(prefix(messages, "room 3/").await.len(), 53);
    session.close().await.unwrap();

    let names = client.tree_names().await.unwrap();
    assert!(
        names.contains(&"messages".into()) && !names.iter().any(|name| name.contains(&b':')),
        "{names:?}"
    );
    assert!(client.drop_tree("messages").await.unwrap());
    assert!(messages.is_empty().await.unwrap());
    messages.put("room 1/1", "x").await.unwrap();
    assert_eq!(lengths(&cluster, &stored).await, BTreeMap::from([(of_room, 1)]), "the choice has stayed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_of_a_hashed_prefix_needs_no_other_partition() {
    let mut cluster = Cluster::made(4, PARTITIONS).await;
    let client = cluster.client(1).await;
    client.set_tree_hash("messages", SLASH).await.unwrap();
    let messages = client.tree("messages");
    let stored = SLASH.stored_name(b"messages");
    let map = client.map().await.unwrap();
    let survives = |group: u32| {
        let lost = map.replicas_of(group).iter().filter(|node| node.0 > 2).count();
        lost < 2
    };
    let room = |alive: bool| {
        let mut rooms = (0..).map(|room| format!("room {room}/"));
        rooms.find(|room| survives(group_in(&stored, room.as_bytes(), PARTITIONS)) == alive).unwrap()
    };
    let (alive, dead) = (room(true), room(false));
    for room in [&alive, &dead] {
        for number in 0..3 {
            messages.put(format!("{room}{number}"), "x").await.unwrap();
        }
    }
    cluster.halt(3).await;
    cluster.halt(4).await;
    assert_eq!(prefix(&messages, &alive).await.len(), 3);
    let range = messages.range(format!("{alive}1")..format!("{alive}9"));
    assert_eq!(range.into_vec().await.unwrap().len(), 2);
    let quick = messages.with_deadline(Duration::from_millis(500));
    let refused = quick.scan_prefix(&dead).into_vec().await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
    let refused = quick.scan_prefix("room").into_vec().await.unwrap_err();
    assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_knows_an_old_map_is_served_by_the_new_one() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    // Once more if it took so long that some had asked for the map by themselves.
    for round in 0..5 {
        if old_maps_are_served(&cluster, &format!("messages {round}")).await {
            return;
        }
    }
    panic!("clients that are not used know the new map each time");
}

/// Whether each of the clients knew the old map until it was used.
async fn old_maps_are_served(cluster: &Cluster, name: &str) -> bool {
    let chooser = cluster.client(1).await;
    let mut before = cluster.client(1).await.tree(name).watch_prefix("room 1/").await.unwrap();
    // A client that is not used asks for the map every ten seconds only: these know the old one, and each does
    // something else first.
    let mut clients = Vec::new();
    for number in 0..17 {
        clients.push(cluster.client(number % 3 + 1).await);
    }
    let (mut old, mut all_old) = (clients.iter(), true);
    let mut next = || {
        let client = old.next().expect("there are enough");
        all_old &= client.tree_hash(name) == TreeHash::Whole;
        client
    };
    let messages = |client: &Client| client.tree(name);
    chooser.set_tree_hash(name, SLASH).await.unwrap();
    let known = messages(&chooser);

    messages(next()).put("room 1/1", "x").await.unwrap();
    assert_eq!(messages(next()).get("room 1/1").await.unwrap().unwrap(), "x");
    assert_eq!(prefix(&messages(next()), "room 1/").await.len(), 1);
    assert_eq!(messages(next()).iter().rev().into_vec().await.unwrap().len(), 1);
    let mut batch = Batch::default();
    for number in 10..30 {
        batch.insert(format!("room 1/{number}"), "y");
    }
    // Of many partitions, as this client would have it.
    messages(next()).apply_batch(batch.clone()).await.unwrap();
    messages(next()).apply_batch_by_partition(batch).await.unwrap();
    assert_eq!(messages(next()).len().await.unwrap(), 21);
    let many = messages(next()).get_many(["room 1/1", "room 1/10", "none"]).await.unwrap();
    assert_eq!(many, [Some("x".into()), Some("y".into()), None]);
    messages(next()).compare_and_swap("room 1/1", Some("x"), Some("z")).await.unwrap().unwrap();
    let found = messages(next()).get_versioned("room 1/1").await.unwrap().unwrap();
    assert_eq!(found.value, "z");
    let numbered = messages(next()).insert_next("room 1/n/", "x").await.unwrap();
    assert!(numbered.starts_with(b"room 1/n/"));
    let client = next();
    let session = client.session(Duration::from_secs(10));
    session.insert(&messages(client), "room 1/who/ann", "here").await.unwrap();
    assert_eq!(known.get("room 1/who/ann").await.unwrap().unwrap(), "here");
    session.close().await.unwrap();
    assert_eq!(known.get("room 1/who/ann").await.unwrap(), None, "the key was the session's");
    assert_eq!(messages(next()).ttl("room 1/1").await.unwrap(), dogsled::Ttl::Forever);
    let client = next();
    let tree = &messages(client);
    let moved = client.transaction(|transaction| async move {
        let value = transaction.get(tree, "room 1/1").await?;
        transaction.put(tree, "room 2/1", value.unwrap_or_default())?;
        Ok::<_, dogsled::cluster::transaction::ConflictableTransactionError<()>>(())
    });
    moved.await.unwrap();
    assert_eq!(known.get("room 2/1").await.unwrap().unwrap(), "z");
    let client = next();
    let tree = messages(client);
    let compared =
        client.compare().is(&tree, "room 2/1", "z").then_put(&tree, "room 2/2", "then").run().await;
    assert!(compared.unwrap().held());
    assert_eq!(known.get("room 2/2").await.unwrap().unwrap(), "then");
    let mut after = messages(next()).watch_prefix("room 3/").await.unwrap();
    known.put("room 3/1", "y").await.unwrap();
    let event = tokio::time::timeout(Duration::from_secs(20), after.next()).await.unwrap().unwrap();
    assert_eq!(event.unwrap(), Event::Insert { key: "room 3/1".into(), value: "y".into() });
    assert!(next().drop_tree(name).await.unwrap());
    assert!(known.is_empty().await.unwrap());

    // Nothing was ever written under the plain name.
    assert!(lengths_are_nothing(cluster, name).await);
    // Whoever followed the tree already hears that it does not do so any more.
    let ended = tokio::time::timeout(Duration::from_secs(20), before.next()).await.unwrap().unwrap();
    assert!(matches!(ended, Err(Error::Conflict(_))), "{ended:?}");
    all_old
}

/// Whether no partition has a tree of the plain name.
async fn lengths_are_nothing(cluster: &Cluster, name: &str) -> bool {
    use dogsled_storage::{GroupRead, GroupReadReply};
    for group in 1..=PARTITIONS {
        let leader = cluster.leader(group).await;
        let replica = cluster.nodes[&leader].replication().replica(group).unwrap();
        let GroupReadReply::Trees(names) = replica.read(&GroupRead::Trees).unwrap() else { return false };
        if names.contains(&name.into()) {
            return false;
        }
    }
    true
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_that_is_not_in_force_is_told_in_the_end() {
    use dogsled_storage::{Command, GroupCommand, Operation, seal};
    let cluster = Cluster::made(1, 1).await;
    let client = cluster.client(1).await;
    // The name is sealed, and whoever did it has died before it came into force.
    let operation = Operation::Command(Command::CreateTree { name: seal::seal_of(b"messages") });
    let seal = GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation };
    cluster.nodes[&1].replication().submit(1, &seal).await.unwrap().result.unwrap();
    let messages = client.tree("messages").with_deadline(Duration::from_millis(3_500));
    let (put, read) = tokio::join!(messages.put("room 1/1", "x"), messages.iter().into_vec());
    for refused in [put.unwrap_err(), read.unwrap_err()] {
        assert!(matches!(refused, Error::Conflict(_)), "{refused}");
    }
    // What waits for it is served when it comes.
    let waits = client.tree("messages");
    let (put, chosen) = tokio::join!(waits.put("room 1/1", "x"), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        client.set_tree_hash("messages", SLASH).await
    });
    put.unwrap();
    chosen.unwrap();
    assert_eq!(messages.get("room 1/1").await.unwrap().unwrap(), "x");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_hashed_is_chosen_once_and_before_the_first_key() {
    let cluster = Cluster::made(3, PARTITIONS).await;
    let (one, other) = (cluster.client(1).await, cluster.client(2).await);
    // A tree that is there is left alone, and written to in all partitions as before.
    one.tree("old").put("a", "1").await.unwrap();
    let refused = one.set_tree_hash("old", SLASH).await.unwrap_err();
    assert!(matches!(&refused, Error::Conflict(what) if what.contains("there already")), "{refused}");
    for key in 0..50 {
        one.tree("old").put(format!("{key}/"), "1").await.unwrap();
    }
    assert_eq!(one.tree("old").len().await.unwrap(), 51);
    assert!(one.record().await.unwrap().trees.is_empty());

    let first = TreeHash::First(4);
    let (slash, four) = tokio::join!(one.set_tree_hash("new", SLASH), other.set_tree_hash("new", first));
    let (chosen, refused) = match (slash, four) {
        (Ok(()), Err(refused)) => (SLASH, refused),
        (Err(refused), Ok(())) => (first, refused),
        both => panic!("one of two choices is in force: {both:?}"),
    };
    assert!(matches!(refused, Error::Conflict(_)), "{refused}");
    for client in [&one, &other] {
        client.set_tree_hash("new", chosen).await.unwrap();
        assert_eq!(client.tree_hash("new"), chosen);
        let refused = client.set_tree_hash("new", TreeHash::Whole).await.unwrap_err();
        assert!(matches!(refused, Error::Conflict(_)), "{refused}");
    }
    one.set_tree_hash("old", TreeHash::Whole).await.unwrap();
    for (name, hash) in [("", SLASH), ("__dogsled__locks", SLASH), ("none", TreeHash::First(0))] {
        let refused = one.set_tree_hash(name, hash).await.unwrap_err();
        assert!(matches!(refused, Error::Invalid(_) | Error::Incompatible(_)), "{name}: {refused}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_choice_that_was_interrupted_is_gone_on_with() {
    use dogsled_storage::{Command, GroupCommand, Operation, seal};
    let mut cluster = Cluster::made(3, PARTITIONS).await;
    let client = cluster.client(1).await;
    // Two partitions have sealed the name, and nobody knows more.
    for group in [2, 5] {
        let operation = Operation::Command(Command::CreateTree { name: seal::seal_of(b"messages") });
        let seal = GroupCommand { session: None, time_ms: 0, trees: Vec::new(), operation };
        cluster.nodes[&1].replication().submit(group, &seal).await.unwrap().result.unwrap();
    }
    let messages = client.tree("messages");
    let refused = messages.clear().await.unwrap_err();
    // The other partitions have done it: there was nothing.
    assert!(
        matches!(&refused, Error::OutcomeUnknown(why) if why.contains("lives under another name")),
        "{refused}"
    );
    client.set_tree_hash("messages", SLASH).await.unwrap();
    messages.put("room 1/1", "x").await.unwrap();
    // It outlives every node, and their snapshots.
    for node in 1..=3 {
        cluster.shutdown(node).await;
        cluster.start(node).await;
        for group in 0..=PARTITIONS {
            cluster.leader(group).await;
        }
    }
    let client = cluster.client(2).await;
    assert_eq!(client.tree_hash("messages"), SLASH);
    assert_eq!(prefix(&client.tree("messages"), "room 1/").await.len(), 1);
}

/// A key of few letters: short prefixes, delimiters and tags are all there.
fn random_key(random: &mut impl FnMut(u64) -> u64) -> Vec<u8> {
    let length = random(7);
    (0..length).map(|_| b"ab/{}\xff"[random(6) as usize]).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trees_that_are_hashed_anyhow_are_maps() {
    let cluster = Cluster::made(1, PARTITIONS).await;
    let client = cluster.client(1).await;
    let choices = [
        TreeHash::Whole,
        TreeHash::First(1),
        TreeHash::First(3),
        SLASH,
        TreeHash::Before { delimiter: b'/', occurrence: 2 },
        TreeHash::Slot,
    ];
    let seed = std::env::var("HASHING_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0x5eed);
    println!("replay with HASHING_SEED={seed}");
    let mut state: u64 = seed | 1;
    let mut random = |below: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) % below
    };
    for (number, hash) in choices.into_iter().enumerate() {
        let mut name = format!("tree {number}");
        match hash {
            // Told by the name, and by nothing else.
            TreeHash::Slot => {
                assert!(client.set_tree_hash(&name, hash).await.is_err());
                name = "redis:7".to_owned();
                assert!(client.set_tree_hash(&name, SLASH).await.is_err());
            }
            chosen => client.set_tree_hash(&name, chosen).await.unwrap(),
        }
        assert_eq!(client.tree_hash(&name), hash);
        let tree = client.tree(&name);
        let mut model: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut batch = Batch::default();
        for step in 0..400u32 {
            let key = random_key(&mut random);
            model.insert(key.clone(), step.to_be_bytes().to_vec());
            batch.insert(key, step.to_be_bytes().to_vec());
        }
        tree.apply_batch_by_partition(batch).await.unwrap();
        for key in model.keys().step_by(5).cloned().collect::<Vec<_>>() {
            assert_eq!(tree.remove(&key).await.unwrap().map(|value| value.to_vec()), model.remove(&key));
        }
        for _ in 0..200 {
            let bound = |random: &mut dyn FnMut(u64) -> u64| {
                let key = random_key(&mut |below| random(below));
                match random(3) {
                    0 => Bound::Included(key),
                    1 => Bound::Excluded(key),
                    _ => Bound::Unbounded,
                }
            };
            let bounds = (bound(&mut random), bound(&mut random));
            let within = |key: &Vec<u8>| std::ops::RangeBounds::contains(&bounds, key);
            let wanted: Vec<_> = model.iter().filter(|(key, _)| within(key)).collect();
            let found = tree.range(bounds.clone()).into_vec().await.unwrap();
            let found: Vec<_> = found.iter().map(|(key, value)| (key.to_vec(), value.to_vec())).collect();
            assert!(
                found.iter().map(|(key, value)| (key, value)).eq(wanted),
                "{hash:?} {bounds:?}: {found:?}"
            );
            let prefix = random_key(&mut random);
            let wanted = model.keys().filter(|key| key.starts_with(&prefix)).count();
            assert_eq!(
                tree.scan_prefix(&prefix).into_vec().await.unwrap().len(),
                wanted,
                "{hash:?} {prefix:?}"
            );
        }
    }
}
