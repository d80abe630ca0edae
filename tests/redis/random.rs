//! Random commands on the real Redis and on a node: the replies are the same.

use crate::beside::Redis;
use crate::support::{Connection, Served};

/// Splitmix64.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }

    fn one<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.below(of.len() as u64) as usize]
    }
}

fn line(random: &mut Random) -> String {
    let (key, other) = (random.below(5), random.below(5));
    let field = random.one(&["a", "b", "c", "d", "''"]);
    let more = random.one(&["a", "b", "e"]);
    let value = random.one(&["1", "-7", "text", "2.5", "''", "9223372036854775807", "\\0dogsled:hash"]);
    let number = random.one(&["1", "-3", "x", "9223372036854775807", "0.5"]);
    let command = match random.below(38) {
        0..=4 => "HSET kK F V",
        5 => "HSET kK F V M N",
        6 => "HSETNX kK F V",
        7 => "HMSET kK F V",
        8 => "HGET kK F",
        9 => "HMGET kK F M none",
        10 | 11 => "HDEL kK F M",
        12 => "HEXISTS kK F",
        13 => "HLEN kK",
        14 => "HSTRLEN kK F",
        15 => "HGETALL kK",
        16 => "HKEYS kK",
        17 => "HVALS kK",
        18 => "HSCAN kK 0",
        19 => "HINCRBY kK F N",
        20 => "HINCRBYFLOAT kK F N",
        21 => "TYPE kK",
        22 => "SET kK V",
        23 => "GET kK",
        24 => "DEL kK kO",
        25 => "EXISTS kK kO",
        26 => "RENAME kK kO",
        27 => "COPY kK kO REPLACE",
        // Points in time, never time that is left: that is rounded, and the two are asked at different moments.
        28 => "EXPIREAT kK 4102444800",
        29 => "EXPIRETIME kK",
        30 => "PERSIST kK",
        31 => "INCR kK",
        32 => "SET kK V NX GET",
        33 => "GETEX kK EXAT 4102444900",
        34 => "SET kK V EXAT 4102444800",
        35 => "SET kK V KEEPTTL",
        36 => "MSETNX kK V kO V",
        _ => "APPEND kK V",
    };
    let words: Vec<String> = command
        .split(' ')
        .map(|word| match word {
            "kK" => format!("k{key}"),
            "kO" => format!("k{other}"),
            "F" => field.to_owned(),
            "M" => more.to_owned(),
            "V" => value.to_owned(),
            "N" => number.to_owned(),
            word => word.to_owned(),
        })
        .collect();
    words.join(" ")
}

/// Replies that tell fields in no order, with their parts in order.
fn in_order(line: &str, reply: &str) -> String {
    let size = match line.split(' ').next() {
        Some("HGETALL" | "HSCAN") => 4,
        Some("HKEYS" | "HVALS") => 2,
        _ => return reply.to_owned(),
    };
    // The heads of the lists, then lengths and bytes in turn: two lines are one text.
    let lines: Vec<&str> = reply.split("\\r\\n").collect();
    let begin = if line.starts_with("HSCAN") { 4 } else { 1 }.min(lines.len());
    let mut parts: Vec<_> = lines[begin..].chunks(size).map(<[&str]>::to_vec).collect();
    parts.sort();
    format!("{:?} {parts:?}", &lines[..begin])
}

/// What led to it, as far as one wants to read.
fn last(said: &[String]) -> String {
    said[said.len().saturating_sub(60)..].join("\n")
}

#[test]
fn random_commands_are_answered_as_by_redis() {
    compare(1);
}

/// Most of what is on two keys, and most of `MULTI`, is a transaction over partitions then.
#[test]
fn random_commands_are_answered_as_by_redis_over_partitions_too() {
    compare(16);
}

fn compare(partitions: u32) {
    let Some(redis) = Redis::start() else { return };
    let served = Served::new(1, partitions);
    let seeds = std::env::var("DOGSLED_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(6);
    for seed in 0..seeds {
        let mut random = Random(seed);
        let mut theirs = Connection::new(redis.address);
        let mut ours = Connection::new(served.servers[0].local_address());
        let mut said = Vec::new();
        for connection in [&mut theirs, &mut ours] {
            assert_eq!(connection.ask("FLUSHALL"), "+OK\\r\\n");
        }
        let mut queued: Vec<String> = Vec::new();
        for _ in 0..400 {
            let line = match (queued.is_empty(), random.below(12)) {
                (true, 0) => "MULTI".to_owned(),
                (false, 0..=2) => "EXEC".to_owned(),
                _ => line(&mut random),
            };
            let (expected, found) = (theirs.ask(&line), ours.ask(&line));
            let replay = || {
                format!(
                    "seed {seed}; replay: DOGSLED_SEEDS={} cargo test --workspace --test redis random",
                    seed + 1
                )
            };
            said.push(line.clone());
            match line.as_str() {
                "MULTI" => queued.push(line.clone()),
                "EXEC" => {
                    // Within it fields may be told in any order.
                    if !queued.iter().any(|line| in_order(line, "x\\r\\n") != "x\\r\\n") {
                        assert_eq!(found, expected, "{}\n{}", replay(), last(&said));
                    }
                    queued.clear();
                    continue;
                }
                _ if !queued.is_empty() => queued.push(line.clone()),
                _ => {}
            }
            let same = in_order(&line, &found) == in_order(&line, &expected);
            assert!(same, "{}\n{}\nRedis: {expected}\nthe node: {found}", replay(), last(&said));
        }
    }
}
