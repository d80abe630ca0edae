//! Pipelines, transactions, several connections and several nodes.

use dogsled::cluster::ring::slots::{group_of_slot, slot_of};

use crate::support::{Connection, Served, escaped, request, words};

fn pipeline(connection: &mut Connection, lines: &[String]) -> Vec<String> {
    let bytes: Vec<u8> = lines.iter().flat_map(|line| request(&words(line))).collect();
    connection.send(&bytes);
    lines.iter().map(|_| escaped(&connection.reply())).collect()
}

#[test]
fn a_pipeline_is_answered_in_order_and_sees_itself() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    let mut lines = Vec::new();
    let mut expected = Vec::new();
    for number in 0..300 {
        let key = format!("k{}", number % 7);
        let round = number / 7 + 1;
        lines.push(format!("INCR {key}"));
        expected.push(format!(":{round}\\r\\n"));
        match number % 5 {
            0 => {
                lines.push(format!("GET {key}"));
                expected.push(format!("${}\\r\\n{round}\\r\\n", round.to_string().len()));
            }
            1 => {
                lines.push("PING".to_owned());
                expected.push("+PONG\\r\\n".to_owned());
            }
            2 => {
                lines.push(format!("SELECT {}", 1));
                lines.push(format!("EXISTS {key}"));
                lines.push("SELECT 0".to_owned());
                expected.extend(["+OK\\r\\n", ":0\\r\\n", "+OK\\r\\n"].map(str::to_owned));
            }
            3 => {
                lines.push("nonsense".to_owned());
                expected.push("-ERR unknown command 'nonsense', with args beginning with: \\r\\n".to_owned());
            }
            _ => {
                lines.push(format!("MSET x {number} y {number} z {number}"));
                lines.push("MGET x y z".to_owned());
                expected.push("+OK\\r\\n".to_owned());
                let each = format!("${}\\r\\n{number}\\r\\n", number.to_string().len());
                expected.push(format!("*3\\r\\n{each}{each}{each}"));
            }
        }
    }
    assert_eq!(pipeline(&mut redis, &lines), expected);
}

/// Two of each of these keys are in different partitions.
#[test]
fn a_transaction_spans_partitions_and_is_all_or_nothing() {
    let served = Served::new(1, 16);
    let (mut one, mut other) = (served.connect(0), served.connect(0));
    let run = |connection: &mut Connection, lines: &[&str]| -> String {
        let replies: Vec<String> = lines.iter().map(|line| connection.says(line)).collect();
        replies.last().unwrap().clone()
    };
    run(&mut one, &["MSET a 1 b 2 c 3 d 4"]);
    let done = run(&mut one, &["MULTI", "INCR a", "INCRBY b 10", "GET c", "DEL d", "SET e 5", "EXEC"]);
    assert_eq!(done, "*5\\r\\n:2\\r\\n:12\\r\\n$1\\r\\n3\\r\\n:1\\r\\n+OK");
    assert_eq!(
        one.says("MGET a b c d e"),
        "*5\\r\\n$1\\r\\n2\\r\\n$2\\r\\n12\\r\\n$1\\r\\n3\\r\\n$-1\\r\\n$1\\r\\n5"
    );
    // What was watched has changed.
    run(&mut one, &["WATCH a b", "MULTI", "INCR a", "INCR b"]);
    assert_eq!(other.says("SET b 100"), "+OK");
    assert_eq!(one.says("EXEC"), "*-1");
    assert_eq!(one.says("MGET a b"), "*2\\r\\n$1\\r\\n2\\r\\n$3\\r\\n100");
    run(&mut one, &["WATCH a b none"]);
    assert_eq!(run(&mut one, &["MULTI", "INCR a", "INCR b", "EXEC"]), "*2\\r\\n:3\\r\\n:101");
    // Times to live and hashes, too.
    run(&mut one, &["SET t 1 EX 100"]);
    let lines = ["MULTI", "INCR t", "INCR a", "HSET h f 1 g 2", "EXPIRE h 50", "EXPIRE c 70", "EXEC"];
    assert_eq!(run(&mut one, &lines), "*5\\r\\n:2\\r\\n:4\\r\\n:2\\r\\n:1\\r\\n:1");
    assert_eq!(one.says("MGET t a h"), "*3\\r\\n$1\\r\\n2\\r\\n$1\\r\\n4\\r\\n$-1");
    let ttl = |redis: &mut Connection, key: &str| redis.says(&format!("TTL {key}"));
    for (key, most) in [("t", 100), ("h", 50), ("c", 70)] {
        let found: i64 = ttl(&mut one, key)[1..].parse().unwrap();
        assert!((most - 20..=most).contains(&found), "{key} lives for {found} s");
    }
    // A hash goes to another partition with its fields and its time.
    let lines = ["MULTI", "HSET h i 3", "HDEL h f", "RENAME h moved", "HGET moved i", "DEL a", "EXEC"];
    assert_eq!(run(&mut one, &lines), "*5\\r\\n:1\\r\\n:1\\r\\n+OK\\r\\n$1\\r\\n3\\r\\n:1");
    assert_eq!(one.says("HGETALL moved"), "*4\\r\\n$1\\r\\ng\\r\\n$1\\r\\n2\\r\\n$1\\r\\ni\\r\\n$1\\r\\n3");
    assert_ne!(ttl(&mut one, "moved"), ":-1");
    assert_eq!(one.says("EXISTS h a"), ":0");
    assert_eq!(one.says("SET a 3"), "+OK");
    assert_eq!(
        run(&mut one, &["MULTI", "SET t 2", "INCR a", "INCR b", "INCR c", "EXEC"]).matches(':').count(),
        3
    );
    assert_eq!(one.says("TTL t"), ":-1");
    // With a tag they share a partition, and all is possible.
    let tagged = ["MULTI", "SET {x}1 1 EX 100", "INCR {x}1", "RENAME {x}1 {x}2", "TTL {x}2", "EXEC"];
    assert_eq!(run(&mut one, &tagged), "*4\\r\\n+OK\\r\\n:2\\r\\n+OK\\r\\n:100");
}

/// Money is moved between accounts of different partitions, by several at a time: none is made or lost.
#[test]
fn optimistic_transfers_keep_the_sum() {
    let served = Served::new(1, 8);
    served.connect(0).ask("MSET acc0 100 acc1 100 acc2 100 acc3 100");
    let address = served.servers[0].local_address();
    let workers: Vec<_> = (0..3u64)
        .map(|worker| {
            std::thread::spawn(move || {
                let mut redis = Connection::new(address);
                let mut moved = 0;
                for step in 0..60 {
                    let (from, to) = ((worker + step) % 4, (worker + 2 * step + 1) % 4);
                    if from == to {
                        continue;
                    }
                    let before = |redis: &mut Connection, account: u64| -> i64 {
                        let reply = redis.ask(&format!("GET acc{account}"));
                        reply.split("\\r\\n").nth(1).unwrap().parse().unwrap()
                    };
                    redis.ask(&format!("WATCH acc{from} acc{to}"));
                    let (a, b) = (before(&mut redis, from), before(&mut redis, to));
                    redis.ask("MULTI");
                    redis.ask(&format!("SET acc{from} {}", a - 1));
                    redis.ask(&format!("SET acc{to} {}", b + 1));
                    moved += u64::from(redis.ask("EXEC").starts_with("*2"));
                }
                moved
            })
        })
        .collect();
    let moved: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert!(moved > 30, "{moved} transfers");
    let reply = served.connect(0).ask("MGET acc0 acc1 acc2 acc3");
    let sum: i64 = reply.split("\\r\\n").filter_map(|line| line.parse::<i64>().ok()).sum();
    assert_eq!(sum, 400, "{reply}");
}

/// Without WATCH: each transfer is of two partitions, and so is each look at both.
#[test]
fn transfers_between_hashes_are_seen_as_a_whole_or_not_at_all() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    for account in 0..4 {
        redis.ask(&format!("HSET acc{account} balance 100 moves 0"));
    }
    let address = served.servers[0].local_address();
    let workers: Vec<_> = (0..3u64)
        .map(|worker| {
            std::thread::spawn(move || {
                let mut redis = Connection::new(address);
                let mut moved = 0u64;
                for step in 0..40 {
                    let (from, to) = ((worker + step) % 4, (worker + 2 * step + 1) % 4);
                    if from == to {
                        continue;
                    }
                    redis.ask("MULTI");
                    redis.ask(&format!("HINCRBY acc{from} balance -1"));
                    redis.ask(&format!("HINCRBY acc{from} moves 1"));
                    redis.ask(&format!("HINCRBY acc{to} balance 1"));
                    redis.ask(&format!("EXPIRE acc{to} {}", 1000 + step));
                    let done = redis.ask("EXEC");
                    assert!(done.starts_with("*4") || done.starts_with("-CLUSTERDOWN "), "{done}");
                    moved += u64::from(done.starts_with("*4"));
                }
                moved
            })
        })
        .collect();
    // Of all values of fields the balances, or the moves.
    let sum = |replies: &str, first: usize| -> i64 {
        let lines: Vec<&str> = replies.split("\\r\\n").collect();
        let values = lines.windows(2).filter(|pair| pair[0].starts_with('$'));
        values.skip(first).step_by(2).map(|pair| pair[1].parse::<i64>().unwrap()).sum()
    };
    let mut looks = 0;
    while looks < 30 {
        redis.ask("MULTI");
        for account in 0..4 {
            redis.ask(&format!("HMGET acc{account} balance moves"));
        }
        let seen = redis.ask("EXEC");
        if seen.starts_with("-CLUSTERDOWN ") {
            continue;
        }
        looks += 1;
        assert_eq!(sum(&seen, 0), 400, "{seen}");
    }
    let moved: u64 = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert!(moved > 30, "{moved} transfers");
    let all: String = (0..4).map(|account| redis.ask(&format!("HMGET acc{account} balance moves"))).collect();
    assert_eq!((sum(&all, 0), sum(&all, 1)), (400, moved as i64), "{all}");
}

#[test]
fn what_a_transaction_over_partitions_makes_of_what_is_there_is_bounded() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    redis.ask(&format!("SET big {}", "x".repeat(1 << 20)));
    redis.ask("MULTI");
    // Somewhere else, whichever partitions these are of.
    for key in ["a", "b", "c", "d", "e", "f"] {
        redis.ask(&format!("SET {key} 1"));
    }
    for round in 0..1_500 {
        assert_eq!(redis.says(if round < 1_100 { "APPEND big x" } else { "COPY big copy" }), "+QUEUED");
    }
    let done = redis.says("EXEC");
    // A GiB is rewritten, and 64 MiB are copied, but no more.
    assert!(done.starts_with("*1506\\r\\n+OK"), "{}", &done[..100]);
    let refused = done.matches("-ERR").count();
    assert!((380..450).contains(&refused), "{refused} are refused: {}", &done[done.len() - 300..]);
}

/// What it was told would be kept there, for as long as a session.
#[test]
fn what_only_reads_is_not_written_to_the_log() {
    let served = Served::new(1, 1);
    let mut redis = served.connect(0);
    redis.ask("MSET a 1 b 2");
    redis.ask("HSET h f v");
    let applied = || {
        let status = served.runtime.block_on(served.client().status()).unwrap();
        status[0].status.as_ref().unwrap().groups.iter().map(|group| group.applied).sum::<u64>()
    };
    let before = applied();
    for round in 0..100 {
        if round % 2 == 0 {
            redis.ask("WATCH a");
        }
        redis.ask("MULTI");
        redis.ask("GET a");
        redis.ask("HGETALL h");
        redis.ask("MGET a b");
        let read =
            "*3\\r\\n$1\\r\\n1\\r\\n*2\\r\\n$1\\r\\nf\\r\\n$1\\r\\nv\\r\\n*2\\r\\n$1\\r\\n1\\r\\n$1\\r\\n2";
        assert_eq!(redis.says("EXEC"), read);
    }
    // A session is renewed now and then.
    let more = applied() - before;
    assert!(more < 20, "{more} entries");
    // But what is watched must be as it was.
    let mut other = served.connect(0);
    redis.ask("WATCH a");
    other.ask("SET a 3");
    redis.ask("MULTI");
    redis.ask("GET a");
    assert_eq!(redis.says("EXEC"), "*-1");
}

/// What gives a key its time, and what rewrites it in a transaction over partitions, do not lose each other.
#[test]
fn a_time_to_live_that_was_given_meanwhile_is_kept() {
    let served = Served::new(1, 8);
    let address = served.servers[0].local_address();
    served.connect(0).ask("MSET a 0 b 0");
    let worker = std::thread::spawn(move || {
        let mut redis = Connection::new(address);
        for _ in 0..60 {
            loop {
                redis.ask("MULTI");
                redis.ask("INCR a");
                redis.ask("INCR b");
                let both = redis.says("EXEC");
                // Given up, with nothing done, because others come between.
                if !both.starts_with("-CLUSTERDOWN ") {
                    assert!(both.starts_with("*2"), "{both}");
                    break;
                }
            }
        }
    });
    let mut redis = served.connect(0);
    while !worker.is_finished() {
        assert_eq!(redis.says("EXPIRE a 1000"), ":1");
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert_ne!(redis.says("TTL a"), ":-1");
        assert_eq!(redis.says("PERSIST a"), ":1");
        std::thread::sleep(std::time::Duration::from_millis(3));
        assert_eq!(redis.says("TTL a"), ":-1");
    }
    worker.join().unwrap();
    assert_eq!(redis.says("MGET a b"), "*2\\r\\n$2\\r\\n60\\r\\n$2\\r\\n60");
}

/// Partitions that have no entry yet have no time of their own either.
#[test]
fn a_transaction_over_partitions_that_are_new_gives_keys_the_time_to_live_that_it_says() {
    let served = Served::new(1, 16);
    let mut redis = served.connect(0);
    redis.ask("MULTI");
    for key in ["a", "b", "c", "d", "e", "f"] {
        redis.ask(&format!("SET {key} there EX 100"));
    }
    assert_eq!(redis.says("EXEC"), format!("*6{}", "\\r\\n+OK".repeat(6)));
    for key in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(redis.says(&format!("GET {key}")), "$5\\r\\nthere");
        let left: u32 = redis.says(&format!("TTL {key}")).trim_start_matches(':').parse().unwrap();
        assert!((90..=100).contains(&left), "{key} has {left} s");
    }
}

#[test]
fn increments_of_many_connections_are_all_counted() {
    let served = Served::new(1, 4);
    let address = served.servers[0].local_address();
    let workers: Vec<_> = (0..8)
        .map(|_| {
            std::thread::spawn(move || {
                let mut redis = Connection::new(address);
                for _ in 0..10 {
                    pipeline(&mut redis, &vec!["INCR n".to_owned(); 20]);
                }
            })
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert_eq!(served.connect(0).says("GET n"), "$4\\r\\n1600");
}

/// One partition, so that what the connections want becomes the same entries, in whatever order.
#[test]
fn commands_of_many_connections_that_share_entries_are_each_answered_with_their_own() {
    let served = Served::new(1, 1);
    served.connect(0).ask("SET text not-a-number");
    std::thread::scope(|scope| {
        for number in 1..=24 {
            let mut redis = served.connect(0);
            scope.spawn(move || {
                for round in 1..=60 {
                    let lines = [
                        format!("INCRBY own-{number} {number}"),
                        format!("INCRBY text {number}"),
                        format!("MSETNX once-{number} {round} also-{number} {round}"),
                        format!("APPEND letters-{number} x"),
                        format!("DEL own-{number}-{round}"),
                        "INCR all".to_owned(),
                    ];
                    let mut replies = pipeline(&mut redis, &lines);
                    replies.truncate(5);
                    let expected = [
                        format!(":{}\\r\\n", number * round),
                        "-ERR value is not an integer or out of range\\r\\n".to_owned(),
                        format!(":{}\\r\\n", i32::from(round == 1)),
                        format!(":{round}\\r\\n"),
                        ":0\\r\\n".to_owned(),
                    ];
                    assert_eq!(replies, expected, "connection {number}, round {round}");
                }
            });
        }
    });
    assert_eq!(served.connect(0).says("GET all"), "$4\\r\\n1440");
}

#[test]
fn other_clients_see_the_same_data_and_every_node_serves_every_key() {
    let served = Served::new(3, 8);
    let client = served.client();
    let mut connections: Vec<Connection> = (0..3).map(|node| served.connect(node)).collect();
    for number in 0..30 {
        let set = format!("SET k{number} v{number}");
        assert_eq!(connections[number % 3].says(&set), "+OK");
        let found = connections[(number + 1) % 3].says(&format!("GET k{number}"));
        assert!(found.ends_with(&format!("v{number}")), "{found}");
    }
    served.runtime.block_on(async {
        let tree = client.tree("redis");
        assert_eq!(tree.len().await.unwrap(), 30);
        assert_eq!(tree.get("k7").await.unwrap().unwrap(), "v7");
        tree.insert("k7", "anew").await.unwrap();
        client.tree("redis:5").insert("there", "x").await.unwrap();
    });
    assert_eq!(connections[2].says("GET k7"), "$4\\r\\nanew");
    assert_eq!(connections[2].says("SELECT 5"), "+OK");
    assert_eq!(connections[2].says("GET there"), "$1\\r\\nx");
}

/// A key of one of two partitions.
fn key_of(group: u32) -> String {
    let is_there = |key: &String| group_of_slot(slot_of(key.as_bytes()), 2) == group;
    (0..).map(|number| format!("k{number}")).find(is_there).unwrap()
}

#[test]
fn what_is_told_of_several_partitions_is_bounded_too() {
    let served = Served::new(1, 2);
    let mut redis = served.connect(0);
    let (one, other) = (key_of(1), key_of(2));
    assert_eq!(redis.says(&format!("SET {one} {}", "x".repeat(8 << 20))), "+OK");
    let many = vec![format!(" {one}"); 65].concat();
    assert!(redis.says(&format!("MGET {other}{many}")).starts_with("-ERR the reply would be larger"));
    // Nor what is made of it.
    redis.ask("MULTI");
    for number in 0..140 {
        redis.ask(&format!("COPY {one} copy-{number}"));
    }
    // 64 MiB are copied, and that is more than one partition takes at once.
    assert!(redis.says("EXEC").starts_with("-ERR a command of "));
    assert_eq!(redis.says("DBSIZE"), ":1");
}

#[test]
fn what_does_not_look_at_values_is_done_over_partitions_however_long_they_are() {
    let served = Served::with(1, 2, |options| options.max_held_bytes = 8 << 20);
    let mut redis = served.connect(0);
    let keys: Vec<String> = (0..20).map(|number| format!("long-{number}")).collect();
    let (all, long) = (keys.join(" "), "x".repeat(1 << 20));
    let fill = |redis: &mut Connection| {
        for key in &keys {
            assert_eq!(redis.says(&format!("SET {key} {long}")), "+OK");
        }
        assert_eq!(redis.says("HSET {1}h f v"), ":1");
        assert_eq!(redis.says("HSET {2}h f v g w"), ":2");
    };
    fill(&mut redis);
    let told = redis.says(&format!("MGET {all}"));
    assert!(told.starts_with("-ERR the keys have more than 512 MiB"), "{:.200}", told);
    assert_eq!(redis.says(&format!("EXISTS {all} none {{1}}h")), ":21");
    assert_eq!(redis.says(&format!("TOUCH {all} none {{1}}h")), ":21");
    let pairs = keys.iter().map(|key| format!("{key} 1")).collect::<Vec<_>>().join(" ");
    assert_eq!(redis.says(&format!("MSETNX {pairs}")), ":0");
    // Their values are not looked at, but that they change is seen.
    assert_eq!(redis.says(&format!("WATCH {all}")), "+OK");
    for line in ["MULTI".to_owned(), format!("DEL {all} none"), "EXISTS long-0 {2}h".to_owned()] {
        redis.ask(&line);
    }
    assert_eq!(served.connect(0).says("APPEND long-7 y"), format!(":{}", (1 << 20) + 1));
    assert_eq!(redis.says("EXEC"), "*-1");
    for line in [
        "MULTI".to_owned(),
        "HSET long-0 f v".to_owned(),
        "EXPIRE long-1 1000".to_owned(),
        "SET long-2 now KEEPTTL".to_owned(),
        "SET long-3 now XX".to_owned(),
        "RENAME {2}h long-4".to_owned(),
        "TYPE long-4".to_owned(),
        "TYPE long-5".to_owned(),
        "HGET long-4 g".to_owned(),
        format!("DEL {all} none {{1}}h {{2}}h"),
    ] {
        redis.ask(&line);
    }
    let wrong = "-WRONGTYPE Operation against a key holding the wrong kind of value\\r\\n";
    let done = format!(
        "*9\\r\\n{wrong}:1\\r\\n+OK\\r\\n+OK\\r\\n+OK\\r\\n+hash\\r\\n+string\\r\\n$1\\r\\nw\\r\\n:21"
    );
    assert_eq!(redis.says("EXEC"), done);
    assert_eq!(redis.says("DBSIZE"), ":0");
    fill(&mut redis);
    assert_eq!(redis.says(&format!("MSET {pairs} {{1}}h 1 {{2}}h 2")), "+OK");
    assert_eq!(
        redis.says("MGET long-0 long-19 {1}h {2}h"),
        "*4\\r\\n$1\\r\\n1\\r\\n$1\\r\\n1\\r\\n$1\\r\\n1\\r\\n$1\\r\\n2"
    );
    assert_eq!(redis.says(&format!("DEL {all} {{1}}h {{2}}h")), ":22");
    assert_eq!(redis.says("DBSIZE"), ":0");
}

/// Each partition numbers its hashes by itself, so two of them may have the same number.
#[test]
fn a_hash_that_is_renamed_to_one_of_another_partition_with_its_number_keeps_its_fields() {
    let served = Served::new(1, 2);
    let (client, mut redis) = (served.client(), served.connect(0));
    let tree = client.tree("redis");
    let keys = [key_of(1), key_of(2)];
    let same = |redis: &mut Connection| {
        for key in &keys {
            redis.ask(&format!("DEL {key}"));
            assert_eq!(redis.says(&format!("HSET {key} field same")), ":1");
        }
        // What is stored of a hash of one field tells its number, and the later one is the larger.
        for _ in 0..1000 {
            let heads = keys.each_ref().map(|key| served.runtime.block_on(tree.get(key)).unwrap().unwrap());
            let behind = match heads[0].cmp(&heads[1]) {
                std::cmp::Ordering::Equal => return,
                std::cmp::Ordering::Less => &keys[0],
                std::cmp::Ordering::Greater => &keys[1],
            };
            redis.ask(&format!("DEL {behind}"));
            assert_eq!(redis.says(&format!("HSET {behind} field same")), ":1");
        }
        panic!("their numbers do not meet");
    };
    let [one, other] = &keys;
    same(&mut redis);
    assert_eq!(redis.says(&format!("RENAME {one} {other}")), "+OK");
    assert_eq!(redis.says(&format!("HGET {other} field")), "$4\\r\\nsame");
    same(&mut redis);
    // What the two have not in common.
    redis.ask(&format!("HSET {other} field 2 own 3"));
    assert_eq!(redis.says(&format!("HLEN {other}")), ":2");
    assert_eq!(redis.says(&format!("RENAME {one} {other}")), "+OK");
    assert_eq!(redis.says(&format!("HGETALL {other}")), "*2\\r\\n$5\\r\\nfield\\r\\n$4\\r\\nsame");
    assert_eq!(redis.says(&format!("EXISTS {one}")), ":0");
    same(&mut redis);
    redis.ask(&format!("HSET {other} own 3"));
    assert_eq!(redis.says(&format!("COPY {other} {one} REPLACE")), ":1");
    assert_eq!(redis.says(&format!("HMGET {one} field own")), "*2\\r\\n$4\\r\\nsame\\r\\n$1\\r\\n3");
}

/// One partition's keys, and those of several: what is of the whole database is at its place before or behind the transaction.
#[test]
fn what_is_of_a_whole_database_is_within_multi_too() {
    for partitions in [1, 8] {
        let served = Served::new(1, partitions);
        let (mut redis, mut other) = (served.connect(0), served.connect(0));
        let run = |redis: &mut Connection, lines: &[&str]| {
            assert_eq!(redis.says("MULTI"), "+OK");
            for line in lines {
                assert_eq!(redis.says(line), "+QUEUED", "{line}");
            }
            redis.says("EXEC")
        };
        // Before all that writes, and behind it.
        let lines = ["DBSIZE", "SET a 1", "SET b 2", "DBSIZE", "KEYS a*", "GET b", "CONFIG GET databases"];
        let (key, value) = ("*1\\r\\n$1\\r\\na", "$1\\r\\n2");
        let config = "*2\\r\\n$9\\r\\ndatabases\\r\\n$2\\r\\n16";
        let expected = format!("*7\\r\\n:0\\r\\n+OK\\r\\n+OK\\r\\n:2\\r\\n{key}\\r\\n{value}\\r\\n{config}");
        assert_eq!(run(&mut redis, &lines), expected);
        // In the database that is selected there.
        let lines =
            ["SELECT 3", "DBSIZE", "SET c 1", "SELECT 0", "DBSIZE", "RANDOMKEY", "SELECT 3", "DBSIZE"];
        let found = run(&mut redis, &lines);
        assert!(found.starts_with("*8\\r\\n+OK\\r\\n:0\\r\\n+OK\\r\\n+OK\\r\\n:2\\r\\n$1"), "{found}");
        assert!(found.ends_with("+OK\\r\\n:1"), "{found}");
        assert_eq!(redis.says("SELECT 0"), "+OK");
        // What is behind a FLUSHDB stays, and what is before it does not.
        let lines = ["SET before 1", "GET a", "FLUSHDB", "SET behind 1", "SET too 1", "DBSIZE", "GET a"];
        let expected = "*7\\r\\n+OK\\r\\n$1\\r\\n1\\r\\n+OK\\r\\n+OK\\r\\n+OK\\r\\n:2\\r\\n$-1";
        assert_eq!(run(&mut redis, &lines), expected);
        assert_eq!(redis.says("EXISTS before behind too"), ":2");
        // If what is watched has changed, nothing of it is done.
        redis.ask("WATCH behind");
        other.ask("SET behind 2");
        assert_eq!(run(&mut redis, &["FLUSHALL", "SET more 1"]), "*-1");
        redis.ask("WATCH behind");
        other.ask("SET behind 3");
        assert_eq!(run(&mut redis, &["DBSIZE", "SET more 1", "FLUSHDB"]), "*-1");
        assert_eq!(redis.says("EXISTS behind too more"), ":2");
        assert!(run(&mut redis, &["CLUSTER INFO", "SCAN 0", "INFO server"]).contains("cluster_state:ok"));
    }
}

#[test]
fn what_is_answered_within_exec_before_hello_is_written_as_it_was_then() {
    let served = Served::new(1, 2);
    let mut redis = served.connect(0);
    for line in ["MULTI", "GET none", "CONFIG GET save", "HELLO 3", "GET none", "CONFIG GET save"] {
        redis.ask(line);
    }
    let found = redis.says("EXEC");
    let before = "*5\\r\\n$-1\\r\\n*2\\r\\n$4\\r\\nsave\\r\\n$0\\r\\n\\r\\n%7\\r\\n";
    assert!(found.starts_with(before), "{found}");
    assert!(found.ends_with("_\\r\\n%1\\r\\n$4\\r\\nsave\\r\\n$0\\r\\n"), "{found}");
}
