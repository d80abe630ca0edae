//! A quota, as Redis clients meet it: as a server that has reached its `maxmemory`.

use dogsled::QuotaLimit;

use crate::support::Served;

const FULL: &str =
    "-OOM command not allowed: the quota of its tree is used up. Delete something, or raise it";

/// Four partitions, of which each keeps a quarter of the limit.
fn limited() -> Served {
    let served = Served::new(1, 4);
    let client = served.client();
    served.runtime.block_on(async {
        let limit = QuotaLimit { bytes: Some(400), entries: None };
        client.set_tree_quota("redis", Some(limit)).await.unwrap();
    });
    served
}

#[test]
fn a_tree_that_is_full_refuses_what_makes_it_larger_and_nothing_else() {
    let served = limited();
    let mut redis = served.connect(0);
    // One tag, one partition: a quarter of the limit.
    assert_eq!(redis.says(&format!("SET {{j}}a {}", "x".repeat(80))), "+OK");
    assert_eq!(redis.says(&format!("SET {{j}}b {}", "x".repeat(80))), FULL);
    assert_eq!(redis.says(&format!("APPEND {{j}}a {}", "x".repeat(80))), FULL);
    assert_eq!(redis.says(&format!("HSET {{j}}h f {}", "x".repeat(80))), FULL);
    assert_eq!(redis.says("GET {j}b"), "$-1");
    // A pipeline: what is refused stands beside what is done.
    let long = "x".repeat(90);
    redis.send(
        format!("DEL {{j}}none\r\nSET {{j}}c {long}\r\nDEL {{j}}a\r\nSET {{j}}c {long}\r\n").as_bytes(),
    );
    let replies: Vec<String> =
        (0..4).map(|_| String::from_utf8(redis.reply()).unwrap().trim_end().to_owned()).collect();
    assert_eq!(replies, [":0", FULL, ":1", "+OK"]);
    // In a transaction, too.
    assert_eq!(redis.says("MULTI"), "+OK");
    assert_eq!(redis.says(&format!("SET {{j}}d {long}")), "+QUEUED");
    assert_eq!(redis.says("STRLEN {j}c"), "+QUEUED");
    let replies = redis.ask("EXEC");
    assert!(replies.contains("-OOM") && replies.contains(":90"), "{replies}");
    assert_eq!(redis.says("EXISTS {j}d"), ":0");
}

/// `foo` and `bar` are in different partitions, of which each keeps a quarter of the limit.
#[test]
fn a_transaction_over_partitions_is_refused_as_a_whole_where_one_of_them_is_full() {
    let served = limited();
    let mut redis = served.connect(0);
    let long = "x".repeat(120);
    assert!(redis.says(&format!("MSET foo 1 bar {long}")).starts_with("-OOM"));
    assert_eq!(redis.says("EXISTS foo bar"), ":0");
    let value = "x".repeat(60);
    assert_eq!(redis.says(&format!("MSET foo {value} {{bar}}full {value}")), "+OK");
    assert!(redis.says("RENAME foo {bar}k").starts_with("-OOM"));
    assert_eq!(redis.says("GET foo"), format!("$60\\r\\n{value}"));
    assert_eq!(redis.says("EXISTS {bar}k"), ":0");
    // One partition: the client is told, whatever of it was done.
    assert!(redis.says(&format!("MSET {{bar}}a 1 {{bar}}b {long}")).starts_with("-OOM"));
    assert!(redis.says(&format!("SETNX {{bar}}c {long}")).starts_with("-OOM"));
    // What frees is done, over partitions too.
    assert_eq!(redis.says("DEL foo {bar}full {bar}a"), ":3");
    assert_eq!(redis.says(&format!("MSET foo {value} {{bar}}full {value}")), "+OK");
}

#[test]
fn the_fields_of_a_hash_that_is_renamed_count_once() {
    let served = limited();
    let mut redis = served.connect(0);
    let value = "x".repeat(45);
    for line in
        ["MULTI", &format!("HSET {{j}}h f {value}"), "RENAME {j}h {j}g", "HSET {j}g f 2", "RENAME {j}g {j}h"]
    {
        redis.ask(line);
    }
    assert_eq!(redis.says("EXEC"), "*4\\r\\n:1\\r\\n+OK\\r\\n:0\\r\\n+OK");
    assert_eq!(redis.says(&format!("HSET {{j}}h f {value}")), ":0");
    assert_eq!(redis.says("RENAME {j}h {j}g"), "+OK");
    // There is no room for what is more.
    assert_eq!(redis.says(&format!("HSET {{j}}g h {value}")), FULL);
    assert_eq!(redis.says("HGETALL {j}g"), format!("*2\\r\\n$1\\r\\nf\\r\\n$45\\r\\n{value}"));
}
