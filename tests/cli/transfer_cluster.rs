//! `export` and `import` of clusters, by the real binary: one moment over all partitions while transfers run between them,
//! hashes of Redis clients with all their fields, and none of what belongs to a session.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled::cluster::Client;

use crate::cli_support::Sandbox;
use crate::cli_support::bank::{
    ACCOUNTS, Redis, TOTAL, account, connect, dogsled, everything, node, purse, runtime, sum, transfer,
    transfer_by_redis,
};

/// Exports while transfers run, in turns of both formats.
const ROUNDS: usize = 6;
/// Fields of a hash that takes several lines.
const FIELDS: usize = 3_000;

fn name(round: usize) -> String {
    format!("all-{round}.{}", if round.is_multiple_of(2) { "dogsled" } else { "jsonl" })
}

/// What an export has of a cluster or a directory, in lines that can be compared.
fn lines(exported: &str) -> Vec<&str> {
    let mut lines: Vec<&str> = exported.lines().collect();
    lines.sort_unstable();
    lines
}

fn all_hashes(redis: &mut Redis) -> Vec<(String, String)> {
    let names = (0..ACCOUNTS).map(purse).chain(["large", "ends", "once-a-string"].map(String::from));
    names.map(|name| (redis.run(&format!("HGETALL {name}")), name)).collect()
}

fn fill(redis: &mut Redis) {
    for number in 0..ACCOUNTS {
        redis.run(&format!("HSET {} balance 1000 owner o{number}", purse(number)));
    }
    for start in (0..FIELDS).step_by(50) {
        let fields: Vec<String> = (start..start + 50).map(|field| format!("f{field} v{field}")).collect();
        redis.run(&format!("HSET large {}", fields.join(" ")));
    }
    redis.run("HSET ends f v");
    redis.run("EXPIRE ends 3600");
    redis.run("SET once-a-string v");
    redis.run("DEL once-a-string");
    redis.run("HSET once-a-string now hash");
    redis.run("HSET once-a-hash f v");
    redis.run("SET once-a-hash string EX 5000");
}

/// Whether a cluster holds what was filled in, by whoever looks.
fn check(client: &Client, redis: &mut Redis, hashes: &[(String, String)], what: &str) {
    assert_eq!(all_hashes(redis), hashes, "{what}");
    assert_eq!(redis.run("HLEN large"), FIELDS.to_string(), "{what}");
    assert_eq!(redis.run("TYPE once-a-hash"), "string", "{what}");
    assert_eq!(redis.run("GET once-a-hash"), "string", "{what}");
    for (key, from) in [("ends", 3_600), ("once-a-hash", 5_000)] {
        let left: i64 = redis.run(&format!("TTL {key}")).parse().expect("seconds");
        assert!((from - 1_200..=from).contains(&left), "{what}: {key} has {left} seconds");
    }
    runtime().block_on(async {
        let bytes = everything(client, "bytes").await;
        assert_eq!(bytes.get(&b"stays"[..]).map(Vec::as_slice), Some(&b"1"[..]), "{what}");
        assert!(!bytes.contains_key(&b"mine"[..]), "{what}: a key of a session");
        assert_eq!(client.counter("visits").get().await.expect("read"), 42, "{what}");
    });
}

#[test]
fn an_export_amid_transfers_is_of_one_moment_and_carries_hashes_into_a_cluster_of_another_size() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1, 2, 3]);
    let (mut one, address) = node(&sandbox, 1, &["--partitions", "8", "--redis", "127.0.0.1:0"]);
    let mut redis = Redis::connect(&mut one);
    let runtime = runtime();
    let client = runtime.block_on(connect(&sandbox, &address));
    let session = client.session(Duration::from_secs(60));
    runtime.block_on(async {
        for number in 0..ACCOUNTS {
            client.tree("bank").insert(account(number), &1_000u64.to_be_bytes()).await.expect("written");
        }
        client.tree("bytes").insert("stays", "1").await.expect("written");
        client.tree("bytes").insert([0xff, 0, 0x80], vec![0xfe; 1 << 20]).await.expect("written");
        session.insert(&client.tree("bytes"), "mine", "as long as I live").await.expect("written");
        client.counter("visits").add(42).await.expect("counted");
    });
    fill(&mut redis);

    let (stop, done, done_by_redis) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let (runtime, stop, done, done_by_redis) = (&runtime, &stop, &done, &done_by_redis);
        for seed in 1..7 {
            let client = client.clone();
            scope.spawn(move || runtime.block_on(transfer(client, seed, stop, done)));
        }
        let redis = &mut redis;
        scope.spawn(move || transfer_by_redis(redis, 9, stop, done_by_redis));
        let wait_for = |count| {
            let until = Instant::now() + Duration::from_secs(60);
            let goals = [
                (done, done.load(Ordering::Relaxed)),
                (done_by_redis, done_by_redis.load(Ordering::Relaxed)),
            ];
            while goals.iter().any(|(now, before)| now.load(Ordering::Relaxed) < before + count) {
                assert!(Instant::now() < until, "nobody gets on");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        wait_for(10);
        for round in 0..ROUNDS {
            dogsled(&sandbox, &address, &["export", &name(round)]).ok();
            wait_for(5);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let hashes = all_hashes(&mut redis);
    dogsled(&sandbox, &address, &["export", "last.dogsled"]).ok();
    dogsled(&sandbox, &address, &["export", "last.jsonl"]).ok();

    let (mut two, other) = node(&sandbox, 2, &["--partitions", "3", "--redis", "127.0.0.1:0"]);
    let mut redis_there = Redis::connect(&mut two);
    let there = runtime.block_on(connect(&sandbox, &other));
    for round in 0..ROUNDS {
        let merge: &[&str] = if round == 0 { &[] } else { &["--merge"] };
        dogsled(&sandbox, &other, &[&["import", &name(round)][..], merge].concat()).ok();
        // Each of them alone has the exact total: one that is not of one moment has not.
        assert_eq!(sum(&runtime.block_on(everything(&there, "bank"))), TOTAL, "export {round}");
        assert_eq!(redis_there.total(), TOTAL as i64, "export {round}");
    }
    dogsled(&sandbox, &other, &["import", "last.jsonl"])
        .fails_saying(8, &["nothing was imported", "--merge"]);
    for file in ["last.dogsled", "last.jsonl"] {
        // What is imported takes the place of what is there, of whatever kind.
        redis_there.run("HSET large another field");
        redis_there.run("DEL once-a-hash ends");
        redis_there.run("HSET once-a-hash is one");
        redis_there.run("SET ends string");
        dogsled(&sandbox, &other, &["import", file, "--merge"]).ok();
        check(&there, &mut redis_there, &hashes, file);
        assert_eq!(redis_there.run("DBSIZE"), redis.run("DBSIZE"), "{file}");
    }
    // They are hashes like those that were made there, and none is another.
    redis_there.run("HSET new f v");
    assert_eq!(redis_there.run("RENAME {0}purse-0 {0}purse-100"), "OK");
    assert_eq!(redis_there.run("HGETALL {0}purse-100"), hashes[0].0);
    redis_there.run("HDEL large f0 f1");
    assert_eq!(redis_there.run("HLEN large"), (FIELDS - 2).to_string());
    assert_eq!(redis_there.run("HGETALL new"), "f v");

    // Through directories.
    let exported = dogsled(&sandbox, &address, &["export", "--format", "jsonl"]).ok();
    for (file, directory) in [("last.dogsled", "by-archive"), ("last.jsonl", "by-lines")] {
        let path = sandbox.argument(directory);
        sandbox.run_bare(&["-d", &path, "import", &sandbox.argument(file)]).ok();
        let again = sandbox.run_bare(&["-d", &path, "export", "--format", "jsonl"]).ok();
        assert!(lines(&again) == lines(&exported), "{directory} does not hold what the cluster does");
    }
    let (mut three, third) = node(&sandbox, 3, &["--partitions", "5", "--redis", "127.0.0.1:0"]);
    let mut redis_third = Redis::connect(&mut three);
    let client_third = runtime.block_on(connect(&sandbox, &third));
    dogsled(&sandbox, &third, &["import", &sandbox.argument("by-lines")]).ok();
    check(&client_third, &mut redis_third, &hashes, "a directory");

    // One tree, on either side.
    let some = dogsled(&sandbox, &address, &["export", "--format", "jsonl", "-t", "bytes"]).ok();
    assert_eq!(some.lines().count(), 2);
    let some = dogsled(&sandbox, &address, &["export", "--format", "jsonl", "-t", "redis"]).ok();
    assert!(some.lines().all(|line| line.contains(r#""tree":"redis""#)));
    assert!(some.lines().all(|line| line.len() < 1 << 20) && some.contains(r#""continued":true"#));
    let one = sandbox.argument("one");
    sandbox.run_bare(&["-d", &one, "import", &sandbox.argument("last.dogsled"), "-t", "bank"]).ok();
    assert!(!sandbox.run_bare(&["-d", &one, "export", "--format", "jsonl"]).ok().contains("hash"));
}

#[test]
fn times_to_live_go_into_a_cluster_to_the_millisecond() {
    let sandbox = Sandbox::new();
    sandbox.certificates(&[1]);
    let (node, address) = node(&sandbox, 1, &["--partitions", "2", "--redis", "off"]);
    let line = |key: u64| {
        let at_ms = 4_102_444_800_000 + key;
        format!(r#"{{"expires_ms":{at_ms},"key":"k{key}","tree":"__sled__default","value":"v"}}"#)
    };
    let over = r#"{"expires_ms":5,"key":"over","tree":"__sled__default","value":"v"}"#;
    let stays = r#"{"key":"stays","tree":"__sled__default","value":"v"}"#;
    let text: Vec<String> = (0..300).map(line).chain([over, stays].map(str::to_owned)).collect();
    let file = sandbox.file("in.jsonl", text.join("\n"));
    dogsled(&sandbox, &address, &["import", &file]).ok();
    let there: Vec<&str> = text.iter().map(String::as_str).filter(|line| *line != over).collect();
    for format in ["jsonl", "archive"] {
        let file = sandbox.argument(&format!("out.{format}"));
        dogsled(&sandbox, &address, &["export", &file, "--format", format]).ok();
        let copy = Sandbox::new();
        copy.run(&["import", &file, "--format", format]).ok();
        let told = copy.run(&["export", "--format", "jsonl"]).ok();
        let mut there = there.clone();
        there.sort_unstable();
        assert_eq!(lines(&told), there, "{format}");
    }
    assert_eq!(node.terminate(), 0);
}
