//! `backup` and `restore` of a cluster, by the real binary: one moment over all partitions while transfers run between
//! them, back into a cluster of another size, and nothing at all of what is damaged.

use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use dogsled::Batch;
use dogsled::cluster::Client;
use dogsled::cluster::ring::TreeHash;
use rustix::process::{Pid, Signal, kill_process};

use crate::cli_support::bank::{
    ACCOUNTS, Redis, TOTAL, account, connect, dogsled, everything, node, purse, runtime, sum, transfer,
    transfer_by_redis,
};
use crate::cli_support::nodes::free_address;
use crate::cli_support::{Sandbox, files};

/// Backups while transfers run. A bug that shows in one of ten is to be seen.
const ROUNDS: usize = 10;
const RESTORE_TREE: &str = "__dogsled__restore";

/// One writer writes these one after the other: of each pair, the second is never without the first.
async fn write_in_order(client: Client, stop: &AtomicBool) {
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let tree = client.tree("order");
        tree.put(format!("first {number}"), "1").await.expect("written");
        tree.put(format!("second {number}"), "2").await.expect("written");
        number += 1;
    }
}

#[test]
fn a_backup_amid_transfers_is_of_one_moment_and_comes_back_into_a_cluster_of_another_size() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2, 3, 4]);
    let (mut one, address) = node(&sandbox, 1, &["--partitions", "8", "--redis", "127.0.0.1:0"]);
    let mut redis = Redis::connect(&mut one);
    let runtime = runtime();
    let client = runtime.block_on(connect(&sandbox, &address));
    let hash = TreeHash::Before { delimiter: b'/', occurrence: 1 };
    let session = client.session(Duration::from_secs(60));
    runtime.block_on(async {
        for number in 0..ACCOUNTS {
            client.tree("bank").insert(account(number), &1_000u64.to_be_bytes()).await.expect("written");
        }
        client.tree("bytes").insert([0xff, 0, 0x80], vec![0xfe; 3 << 20]).await.expect("written");
        client.tree("bytes").insert([], "empty key").await.expect("written");
        client.tree("short").insert_with_ttl("k", "v", Duration::from_secs(3_600)).await.expect("written");
        client.tree("short").insert_with_ttl("over", "v", Duration::from_millis(1)).await.expect("written");
        client.set_tree_hash("together", hash).await.expect("chosen");
        for number in 0..40 {
            client
                .tree("together")
                .insert(format!("user {}/{number}", number % 7), "v")
                .await
                .expect("written");
        }
        session.insert(&client.tree("bytes"), "mine", "as long as I live").await.expect("written");
        client.counter("visits").add(42).await.expect("counted");
        for _ in 0..3 {
            client.tree("jobs").insert_next("{job} ", "work").await.expect("written");
        }
    });
    for number in 0..ACCOUNTS {
        redis.run(&format!("HSET {} balance 1000 owner o{number}", purse(number)));
    }
    for start in (0..1_000).step_by(50) {
        let fields: Vec<String> = (start..start + 50).map(|field| format!("f{field} v{field}")).collect();
        redis.run(&format!("HSET large {}", fields.join(" ")));
    }
    redis.run("HSET ends f v");
    redis.run("EXPIRE ends 3600");
    redis.run("HSET once-a-hash f v");
    redis.run("SET once-a-hash string");
    redis.run("SET was-a-string v");

    let (stop, done, done_by_redis) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (runtime, stop, done, done_by_redis) = (&runtime, &stop, &done, &done_by_redis);
        for seed in 1..7 {
            let client = client.clone();
            scope.spawn(move || runtime.block_on(transfer(client, seed, stop, done)));
        }
        let writer = client.clone();
        scope.spawn(move || runtime.block_on(write_in_order(writer, stop)));
        let redis = &mut redis;
        scope.spawn(move || transfer_by_redis(redis, 9, stop, done_by_redis));
        let wait_for = |count| {
            let until = Instant::now() + Duration::from_secs(60);
            let (done_before, by_redis) =
                (done.load(Ordering::Relaxed), done_by_redis.load(Ordering::Relaxed));
            while done.load(Ordering::Relaxed) < done_before + count
                || done_by_redis.load(Ordering::Relaxed) < by_redis + count
            {
                assert!(Instant::now() < until, "nobody gets on");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for(10);
        for round in 0..ROUNDS {
            dogsled(&sandbox, &address, &["backup", &format!("full-{round}")]).ok();
            wait_for(5);
        }
        dogsled(&sandbox, &address, &["backup", "more", "--since", "full-9"]).ok();
        wait_for(5);
        stop.store(true, Ordering::Relaxed);
    });
    runtime.block_on(async {
        client.tree("bytes").remove([]).await.expect("removed");
        client.tree("bytes").insert("new", "1").await.expect("written");
        client.tree("short").insert_with_ttl("k", "v", Duration::from_secs(7_200)).await.expect("written");
        client.tree("jobs").insert_next("{job} ", "work").await.expect("written");
    });
    redis.run("HDEL large f7 f8");
    redis.run("HSET large f9 changed");
    redis.run("PERSIST ends");
    assert_eq!(redis.run("RENAME {0}purse-0 {0}purse-100"), "OK");
    redis.run("DEL was-a-string");
    redis.run("HSET was-a-string now hash");
    redis.run("CONFIG SET notify-keyspace-events KA");
    dogsled(&sandbox, &address, &["backup", "last", "--since", "full-9", "--since", "more"]).ok();
    assert_eq!(redis.run("RENAME {0}purse-100 {0}purse-0"), "OK");

    // Three nodes with another number of partitions.
    let (mut two, other) = node(&sandbox, 2, &["--partitions", "3", "--redis", "127.0.0.1:0"]);
    let [(three, _), _four] = [3, 4].map(|id| node(&sandbox, id, &["--join", &other]));
    let mut redis_there = Redis::connect(&mut two);
    let restored = runtime.block_on(connect(&sandbox, &other));
    // Each of the backups alone has the exact total: a cut that is not of one moment has not.
    let mut totals_by_redis = Vec::new();
    for round in 0..ROUNDS {
        let merge: &[&str] = if round == 0 { &[] } else { &["--merge"] };
        let full = format!("full-{round}");
        let said = dogsled(&sandbox, &other, &[&["restore", &full][..], merge].concat()).ok();
        assert!(said.contains("found equal"), "{said}");
        assert_eq!(sum(&runtime.block_on(everything(&restored, "bank"))), TOTAL, "backup {round}");
        totals_by_redis.push(redis_there.total());
        let order = runtime.block_on(everything(&restored, "order"));
        let numbers = order.keys().filter_map(|key| std::str::from_utf8(key).ok()?.strip_prefix("second "));
        for number in numbers {
            assert!(order.contains_key(format!("first {number}").as_bytes()), "backup {round}: {number}");
        }
    }
    assert_eq!(totals_by_redis, [TOTAL as i64; ROUNDS]);
    dogsled(&sandbox, &other, &["restore", "last"]).fails_saying(8, &["comes before it"]);
    dogsled(&sandbox, &other, &["restore", "full-9", "last"]).fails_saying(8, &["does not add to"]);
    dogsled(&sandbox, &other, &["restore", "full-8", "more"]).fails_saying(8, &["does not add to"]);
    dogsled(&sandbox, &other, &["restore", "full-9", "full-9"]).fails_saying(8, &["complete one"]);
    dogsled(&sandbox, &other, &["restore", "full-9", "more"])
        .fails_saying(8, &["not empty", "nothing was written"]);
    dogsled(&sandbox, &other, &["backup", "x", "--since", "full-9"]).fails_saying(8, &["another cluster"]);
    runtime.block_on(async {
        for tree in restored.tree_names().await.expect("read") {
            restored.tree(tree).clear().await.expect("cleared");
        }
    });
    redis_there.run("FLUSHALL");
    dogsled(&sandbox, &other, &["restore", "full-9", "more", "last"]).ok();
    for tree in ["bank", "order", "together", "jobs"] {
        let (here, there) =
            (runtime.block_on(everything(&client, tree)), runtime.block_on(everything(&restored, tree)));
        assert!(!here.is_empty() && here == there, "{tree}");
    }
    let mut bytes = runtime.block_on(everything(&client, "bytes"));
    assert!(bytes.remove(&b"mine"[..]).is_some(), "the session lives");
    assert!(runtime.block_on(everything(&restored, "bytes")) == bytes);
    assert_eq!(dogsled(&sandbox, &other, &["counter", "get", "visits"]).ok(), "42\n");
    let ttl = dogsled(&sandbox, &other, &["-t", "short", "ttl", "k"]).ok();
    assert!((6_000..=7_200).contains(&ttl.trim().parse::<u64>().expect("seconds")), "{ttl}");
    dogsled(&sandbox, &other, &["-t", "short", "get", "over"]).fails(1);
    assert_eq!(restored.tree_hash("together"), hash);
    let next = runtime.block_on(restored.tree("jobs").insert_next("{job} ", "work")).expect("written");
    let next_here = runtime.block_on(client.tree("jobs").insert_next("{job} ", "work")).expect("written");
    assert_eq!(next, next_here, "numbers go on where they were");

    assert_eq!(redis_there.run("RENAME {0}purse-100 {0}purse-0"), "OK");
    for key in (0..ACCOUNTS).map(purse).chain(["large".into(), "was-a-string".into()]) {
        let all = redis.run(&format!("HGETALL {key}"));
        assert!(!all.is_empty());
        assert_eq!(redis_there.run(&format!("HGETALL {key}")), all, "{key}");
    }
    assert_eq!(redis_there.run("HLEN large"), "998");
    assert_eq!(redis_there.run("TTL ends"), "-1");
    // Of each partition that there is now, whatever there were.
    assert_eq!(runtime.block_on(everything(&client, "redis:events")).len(), 8);
    let events = runtime.block_on(everything(&restored, "redis:events"));
    assert!(events.len() == 3 && events.values().all(|letters| letters == b"AK"), "{events:?}");
    assert_eq!(redis_there.run("GET once-a-hash"), "string");
    assert_eq!(redis_there.run("DBSIZE"), redis.run("DBSIZE"));
    let trees = dogsled(&sandbox, &other, &["trees"]).ok();
    assert!(!trees.contains(RESTORE_TREE), "{trees}");

    // Back again, also of a cluster that has just lost a node.
    dogsled(&sandbox, &other, &["backup", "back"]).ok();
    three.kill_nine();
    dogsled(&sandbox, &other, &["backup", "back-more", "--since", "back"]).ok();
    let said = dogsled(&sandbox, &address, &["restore", "back", "back-more", "--merge"]).ok();
    assert!(said.contains("found equal"), "{said}");
}

#[test]
fn a_damaged_backup_is_refused_with_its_place_before_anything_is_written() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1]);
    let (mut node, address) = node(&sandbox, 1, &["--partitions", "2", "--redis", "127.0.0.1:0"]);
    let mut redis = Redis::connect(&mut node);
    for number in 0..20 {
        dogsled(&sandbox, &address, &["put", &format!("k{number}"), "value"]).ok();
        redis.run(&format!("HSET hash-{number} f v"));
    }
    dogsled(&sandbox, &address, &["backup", "b"]).ok();
    dogsled(&sandbox, &address, &["backup", "b"]).fails_saying(8, &["holds"]);
    dogsled(&sandbox, &address, &["del", "k0"]).ok();
    let try_it = |path: &Path, damaged: &[u8]| {
        let sound = std::fs::read(path).expect("it is there");
        std::fs::write(path, damaged).expect("written");
        let name = path.file_name().expect("a file").to_str().expect("text");
        // It would be written over what is there: nothing of it may be.
        dogsled(&sandbox, &address, &["restore", "b", "--merge"])
            .fails_saying(6, &[name, "offset", "nothing was written"]);
        dogsled(&sandbox, &address, &["backup", "never", "--since", "b"])
            .fails_saying(6, &[name, "offset", "no backup was made"]);
        std::fs::write(path, sound).expect("written");
    };
    for path in files(&sandbox.path("b")) {
        let sound = std::fs::read(&path).expect("it is there");
        for part in 0..12 {
            let at = part * (sound.len() - 1) / 11;
            let mut flipped = sound.clone();
            flipped[at] ^= 1 << (part % 8);
            try_it(&path, &flipped);
            try_it(&path, &sound[..at]);
        }
        try_it(&path, &[&sound[..], b"x"].concat());
        if !path.ends_with("MANIFEST") {
            std::fs::rename(&path, sandbox.path("aside")).expect("renamed");
            dogsled(&sandbox, &address, &["restore", "b", "--merge"])
                .fails_saying(6, &["is missing", "nothing was written"]);
            std::fs::rename(sandbox.path("aside"), &path).expect("renamed");
        }
    }
    // Files that are sound each, but not where they belong.
    let partition = |number: u32| sandbox.path(&format!("b/partition-{number:05}"));
    let (first, second) =
        (std::fs::read(partition(1)).expect("there"), std::fs::read(partition(2)).expect("there"));
    try_it(&partition(1), &second);
    try_it(&partition(2), &first);
    dogsled(&sandbox, &address, &["get", "k0"]).fails(1);
    dogsled(&sandbox, &address, &["restore", "b", "--merge"]).ok();
    assert_eq!(dogsled(&sandbox, &address, &["get", "k0"]).ok(), "value\n");

    // One that was not finished is none, and another can be made in its place.
    std::fs::remove_file(sandbox.path("b/MANIFEST")).expect("it is there");
    for merge in [&[][..], &["--merge"]] {
        dogsled(&sandbox, &address, &[&["restore", "b"], merge].concat())
            .fails_saying(8, &["not finished", "again"]);
    }
    dogsled(&sandbox, &address, &["backup", "next", "--since", "b"]).fails_saying(8, &["not finished"]);
    dogsled(&sandbox, &address, &["backup", "b"]).ok();
    dogsled(&sandbox, &address, &["restore", "b", "--merge"]).ok();
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("it is there");
}

#[test]
fn a_restore_that_was_killed_goes_on_and_one_that_was_interrupted_says_how() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2]);
    let (_one, address) = node(&sandbox, 1, &["--partitions", "4"]);
    let (mut two, other) = node(&sandbox, 2, &["--partitions", "2", "--redis", "127.0.0.1:0"]);
    let runtime = runtime();
    let (client, restored) =
        runtime.block_on(async { (connect(&sandbox, &address).await, connect(&sandbox, &other).await) });
    let keys = 60_000;
    runtime.block_on(async {
        for start in (0..keys).step_by(5_000) {
            let mut batch = Batch::default();
            for number in start..start + 5_000 {
                batch.insert(format!("key {number:06}"), vec![b'v'; 100]);
            }
            client.tree("t").apply_batch_by_partition(batch).await.expect("written");
        }
    });
    dogsled(&sandbox, &address, &["backup", "b"]).ok();
    dogsled(&sandbox, &address, &["-t", "t", "put", "other", "1"]).ok();
    dogsled(&sandbox, &address, &["backup", "another"]).ok();

    let marked = || {
        let marks = runtime.block_on(everything(&restored, RESTORE_TREE));
        let number = |mark: &Vec<u8>| u64::from_be_bytes(mark[..].try_into().expect("8 bytes"));
        marks.values().next().map_or(0, number)
    };
    let begin = |before: u64| {
        let arguments = ["--connect", &other, "--certs", "certs", "restore", "b"];
        let mut before = before;
        for _ in 0..5 {
            let mut command = sandbox.bare(&arguments);
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            let mut child = command.spawn().expect("it starts");
            let until = Instant::now() + Duration::from_secs(60);
            // It goes on for a moment at a time, and stands still while it is looked at: until it has written
            // something, and not all.
            while child.try_wait().expect("it is this process's child").is_none() {
                signal(&child, Signal::CONT);
                std::thread::sleep(Duration::from_millis(15));
                signal(&child, Signal::STOP);
                let mark = marked();
                if mark != before && (1..keys).contains(&mark) {
                    return child;
                }
                assert!(Instant::now() < until, "it was at {before}, and is at {mark}");
            }
            // It was done within that moment: once more, from the beginning.
            runtime.block_on(restored.drop_tree("t")).expect("it was restored");
            before = 0;
        }
        panic!("it is done too soon each time");
    };
    // It stands still.
    let mut killed = begin(0);
    killed.kill().expect("it is there");
    killed.wait().expect("it was killed");
    for merge in [&[][..], &["--merge"]] {
        dogsled(&sandbox, &other, &[&["restore", "another"], merge].concat())
            .fails_saying(8, &["not finished here", "same command"]);
    }
    dogsled(&sandbox, &other, &["backup", "of-a-half"]).fails_saying(8, &["was not finished"]);
    assert!(!sandbox.path("of-a-half/MANIFEST").exists());

    let interrupted = begin(marked());
    signal(&interrupted, Signal::INT);
    signal(&interrupted, Signal::CONT);
    let said = interrupted.wait_with_output().expect("it ends");
    let message = String::from_utf8_lossy(&said.stderr);
    assert!(
        said.status.code() == Some(10) && message.contains("the same command goes on with it"),
        "{said:?}"
    );

    let said = dogsled(&sandbox, &other, &["--json", "restore", "b"]).ok();
    let said: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    assert!(said["resumed_at"].as_u64().expect("a number") > 0, "{said}");
    let (here, there) =
        (runtime.block_on(everything(&client, "t")), runtime.block_on(everything(&restored, "t")));
    assert_eq!((here.len(), there.len()), (keys as usize + 1, keys as usize));
    assert!(there.iter().all(|(key, value)| here.get(key) == Some(value)));
    // It is full now.
    dogsled(&sandbox, &other, &["restore", "b"]).fails_saying(8, &["not empty", "nothing was written"]);
    assert_eq!(Redis::connect(&mut two).run("DBSIZE"), "0");
}

#[test]
fn writes_go_on_after_a_backup_was_killed_amid_it_and_bad_input_is_told() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1]);
    let (_node, address) = node(&sandbox, 1, &["--partitions", "4"]);
    dogsled(&sandbox, &address, &["put", "k", "v"]).ok();
    // Killed after so many milliseconds; the longest it keeps off anybody is told in its documentation.
    for after in [0, 5, 10, 15, 20, 30, 40, 60] {
        let arguments = ["--connect", &address, "--certs", "certs", "backup", "killed"];
        let mut command = sandbox.bare(&arguments);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        let mut child = command.spawn().expect("it starts");
        std::thread::sleep(Duration::from_millis(after));
        let _ = child.kill();
        child.wait().expect("it was killed");
        if sandbox.path("killed/MANIFEST").exists() {
            std::fs::remove_dir_all(sandbox.path("killed")).expect("removed");
        }
    }
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
    let began = now();
    dogsled(&sandbox, &address, &["--timeout", "30", "put", "k", "w"]).ok();
    assert!(now() - began < 20, "it took {} s", now() - began);
    dogsled(&sandbox, &address, &["backup", "killed"]).ok();

    let file = sandbox.file("file", "text");
    dogsled(&sandbox, &address, &["backup", &file]).fails(5);
    dogsled(&sandbox, &address, &["backup", "a", "b"]).fails_saying(2, &["name only the new directory"]);
    dogsled(&sandbox, &address, &["backup"]).fails(2);
    dogsled(&sandbox, &address, &["restore"]).fails(2);
    dogsled(&sandbox, &address, &["restore", "nothing"]).fails_saying(8, &["nothing", "no backup"]);
    dogsled(&sandbox, &address, &["backup", "x", "--since", "nothing"]).fails_saying(8, &["no backup"]);
    assert!(!sandbox.path("x").exists(), "nothing was begun");
    dogsled(&sandbox, &address, &["restore", &file]).fails(5);
    std::fs::create_dir(sandbox.path("filled")).expect("made");
    for name in ["precious", "partition-plan", "partition-1"] {
        let file = sandbox.path("filled").join(name);
        std::fs::write(&file, "text").expect("written");
        dogsled(&sandbox, &address, &["backup", "filled"]).fails_saying(8, &[name, "new directory"]);
        std::fs::remove_file(&file).expect("it is still there");
    }
    sandbox.run_bare(&["restore", "killed"]).fails_saying(2, &["--connect"]);
    sandbox.run(&["backup", "x", "--since", "killed"]).fails_saying(2, &["--connect"]);
    let nobody = free_address();
    let arguments = ["--connect", &nobody, "--certs", "certs", "--timeout", "1", "backup", "unheard"];
    sandbox.run_bare(&arguments).fails(9);
}

#[test]
fn a_long_value_behind_short_ones_comes_back_too() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2]);
    let (one, address) = node(&sandbox, 1, &["--partitions", "1", "--redis", "off"]);
    let runtime = runtime();
    let client = runtime.block_on(connect(&sandbox, &address));
    // Together they are more than one command may carry.
    let lengths = [("a", 1_500 << 10), ("b", 15 << 20), ("c", 10), ("d", 15 << 20)];
    runtime.block_on(async {
        for (key, length) in lengths {
            client.tree("long").put(key, vec![b'v'; length]).await.expect("written");
        }
    });
    dogsled(&sandbox, &address, &["backup", "b"]).ok();
    assert_eq!(one.terminate(), 0);

    let (two, other) = node(&sandbox, 2, &["--partitions", "1", "--redis", "off"]);
    dogsled(&sandbox, &other, &["restore", "b"]).ok();
    let client = runtime.block_on(connect(&sandbox, &other));
    runtime.block_on(async {
        for (key, length) in lengths {
            let found = client.tree("long").get(key).await.expect("read").expect("it is there");
            assert_eq!(found.len(), length, "{key}");
        }
    });

    // What is not a backup's is not taken for the rest of one that was not finished.
    std::fs::create_dir(sandbox.path("other")).expect("made");
    std::fs::write(sandbox.path("other").join("partition-00001"), "somebody's own").expect("written");
    dogsled(&sandbox, &other, &["backup", "other"]).fails_saying(8, &["partition-00001", "no backup's"]);
    let kept = std::fs::read_to_string(sandbox.path("other").join("partition-00001"));
    assert_eq!(kept.expect("it is there"), "somebody's own");
    assert_eq!(two.terminate(), 0);
}
