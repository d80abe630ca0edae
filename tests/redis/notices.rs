//! What is told of keys, beside the real Redis.

use std::net::SocketAddr;

use crate::beside::Redis;
use crate::support::{Connection, Served, escaped};

/// Commands, one a line. `expires`: the event of that is waited for.
const SCRIPT: &str = "\
SET {t}a 1
SET {t}a 2 EX 100
SET {t}a 3 NX
SET {t}n 3 NX GET
SET {t}n 4 XX GET PX 100000
SET {t}n 5 XX KEEPTTL
SETNX {t}a 1
SETNX {t}b 1
SETEX {t}c 100 v
PSETEX {t}c 100000 v
GETSET {t}c w
GETDEL {t}c
GETDEL {t}c
GETEX {t}b EX 100
GETEX {t}b PERSIST
GETEX {t}b PERSIST
GETEX {t}b
GETEX {t}none EX 5
APPEND {t}a x
APPEND {t}new x
SETRANGE {t}a 2 yz
SETRANGE {t}a 2 ''
INCR {t}i
INCR {t}a
DECRBY {t}i 5
INCRBYFLOAT {t}i 0.5
MSET {t}x 1 {t}y 2 {t}x 3
MSETNX {t}x 1 {t}z 2
MSETNX {t}z 1 {t}z2 2
EXPIRE {t}x 100
EXPIRE {t}x 100 NX
EXPIRE {t}none 100
PERSIST {t}x
PERSIST {t}x
EXPIRE {t}x -1
PEXPIREAT {t}y 1
DEL {t}x {t}y {t}z {t}none
UNLINK {t}z2
RENAME {t}a {t}a2
RENAME {t}a2 {t}b
RENAME {t}b {t}b
RENAMENX {t}b {t}n
RENAMENX {t}b {t}b3
COPY {t}b3 {t}b4
COPY {t}b3 {t}b4
COPY {t}b3 {t}b4 REPLACE
COPY {t}b3 {t}b4 DB 3 REPLACE
GET {t}b3
TYPE {t}b3
HSET {t}h f 1 g 2
HSET {t}h f 1
HSETNX {t}h f 1
HSETNX {t}h k 1
HINCRBY {t}h f 4
HINCRBY {t}h2 f 4
HINCRBYFLOAT {t}h f 0.5
HINCRBY {t}h f 1
HDEL {t}h none
HDEL {t}h k
HDEL {t}h f g
HSET {t}b3 f v
INCR {t}h2
GET {t}h2
SET {t}h2 plain
SELECT 5
SET {t}five 1
DEL {t}five
SELECT 0
MULTI
SET {t}m 1
INCR {t}m
PUBLISH {t}other x
HSET {t}m f v
DEL {t}m
EXEC
SET {t}gone v PX 30
expires
SET {t}past v EXAT 1
expires
SET {t}h2 v PXAT 1
expires
HSET {t}gone2 f v
PEXPIRE {t}gone2 30
expires
MSET p 1 q 2 r 3 s 4
DEL p q r s none
PSETEX {t}last 1 v
expires
";

struct Side {
    commands: Connection,
    listener: Connection,
}

impl Side {
    fn new(commands: SocketAddr, listener: SocketAddr, letters: &str) -> Side {
        let (mut commands, mut listener) = (Connection::new(commands), Connection::new(listener));
        assert_eq!(commands.says("FLUSHALL"), "+OK");
        assert_eq!(commands.says(&format!("CONFIG SET notify-keyspace-events {letters}")), "+OK");
        // Not in words, where a line below is a space.
        listener.send(b"PSUBSCRIBE __key*\r\nSUBSCRIBE end\r\n");
        for name in ["__key*", "end"] {
            assert!(escaped(&listener.reply()).contains(name));
        }
        Side { commands, listener }
    }
}

/// What Redis tells of the script is told here, too.
fn compare(redis: &Redis, served: &Served, letters: &str, in_order: bool) -> usize {
    let last = served.servers.len() - 1;
    let mut theirs = Side::new(redis.address, redis.address, letters);
    let (commands, listener) = (served.servers[0].local_address(), served.servers[last].local_address());
    let mut ours = Side::new(commands, listener, letters);
    let mut count = 0;
    let mut lines = SCRIPT.lines().peekable();
    while let Some(line) = lines.next() {
        println!("{line}");
        let mut expected = Vec::new();
        if line != "expires" {
            assert_eq!(theirs.commands.ask(line), ours.commands.ask(line), "{line}");
            // What ends at once may have ended before one looks: both are looked at together.
            if lines.peek() == Some(&"expires") {
                continue;
            }
        } else if letters.contains(['A', 'x']) {
            // It is told in two ways.
            let kinds = letters.matches(['K', 'E']).count();
            while expected.iter().filter(|told: &&String| told.contains("expired")).count() < kinds {
                expected.push(escaped(&theirs.listener.reply()));
            }
        } else {
            std::thread::sleep(std::time::Duration::from_millis(500));
        }
        // Not within MULTI.
        Connection::new(redis.address).ask("PUBLISH end x");
        loop {
            let told = escaped(&theirs.listener.reply());
            if told.contains("\\nend\\r") {
                break;
            }
            expected.push(told);
        }
        let mut found: Vec<String> = expected.iter().map(|_| escaped(&ours.listener.reply())).collect();
        count += found.len();
        if !in_order {
            expected.sort();
            found.sort();
        }
        assert_eq!(found, expected, "{line} with {letters}");
    }
    count
}

#[test]
fn of_keys_is_told_what_redis_tells() {
    let Some(redis) = Redis::start() else { return };
    let served = Served::new(1, 1);
    let all = compare(&redis, &served, "KEA", true);
    assert!(all > 120, "{all} events");
    let new = compare(&redis, &served, "KEAn", true) - all;
    assert!(new > 20, "{new} new keys");
    for letters in ["K$", "Eg", "KEx", "Eh", "Kn"] {
        let some = compare(&redis, &served, letters, true);
        assert!((1..all / 2).contains(&some), "{some} events of {letters}");
    }
}

#[test]
fn of_keys_is_told_at_another_node_and_over_partitions() {
    let Some(redis) = Redis::start() else { return };
    assert!(compare(&redis, &Served::new(2, 8), "KEA", false) > 120);
}

#[test]
fn which_events_are_told_is_set_as_in_redis_and_for_all_nodes() {
    let Some(redis) = Redis::start() else { return };
    let served = Served::new(2, 4);
    let (mut theirs, mut ours) = (Connection::new(redis.address), served.connect(0));
    for letters in ["KEA", "''", "Kg$", "Exeztdshl", "g$lshzxetdE", "AnmKE", "Q", "K_E", "nK", "ngK$E"] {
        for line in [
            format!("CONFIG SET notify-keyspace-events {letters}"),
            "CONFIG GET notify-keyspace-*".to_owned(),
        ] {
            assert_eq!(theirs.ask(&line), ours.ask(&line), "{line}");
        }
    }
    let at_the_other = served.connect(1).ask("CONFIG GET notify-keyspace-events");
    assert_eq!(at_the_other, ours.ask("CONFIG GET notify-keyspace-events"));
    for line in
        ["CONFIG SET nonsense 1", "CONFIG SET databases 3", "CONFIG SET x", "CONFIG NONSENSE", "CONFIG GET"]
    {
        assert_eq!(theirs.ask(line), ours.ask(line), "{line}");
    }
    // Keys are none of it, and are all there.
    assert_eq!(ours.says("SET a 1"), "+OK");
    assert_eq!(ours.says("DBSIZE"), ":1");
    assert_eq!(ours.says("CONFIG SET notify-keyspace-events ''"), "+OK");
    let mut listener = served.connect(1);
    listener.ask("PSUBSCRIBE *");
    for line in ["SET a 2", "PUBLISH end x"] {
        ours.ask(line);
    }
    assert!(escaped(&listener.reply()).contains("\\nend\\r"));
}

#[test]
fn a_key_that_stands_before_those_that_say_which_events_are_told_goes_when_they_are_set() {
    let served = Served::new(1, 2);
    let client = served.client();
    // As a restore by an earlier version left them, of a cluster of another number of partitions.
    let strays = ["", "!", "{", "{!}", "a", "z"];
    served.runtime.block_on(async {
        for stray in strays {
            client.tree("redis:events").put(stray, "").await.unwrap();
        }
    });
    let mut listener = served.connect(0);
    listener.send(b"PSUBSCRIBE __keyspace*\r\n");
    assert!(escaped(&listener.reply()).contains("__keyspace*"));
    let mut redis = served.connect(0);
    assert_eq!(redis.says("CONFIG SET notify-keyspace-events KA"), "+OK");
    for key in ["a", "b", "c", "d"] {
        assert_eq!(redis.says(&format!("SET {key} 1")), "+OK");
        let told = escaped(&listener.reply());
        assert!(told.contains(&format!("__keyspace@0__:{key}")), "{told}");
    }
    let left = served.runtime.block_on(client.tree("redis:events").len()).unwrap();
    assert_eq!(left, 2, "one for each partition");
}
