//! A quota, as Redis clients meet it: as a server that has reached its `maxmemory`.

use dogsled::QuotaLimit;

use crate::support::Served;

const FULL: &str =
    "-OOM command not allowed: the quota of its tree is used up. Delete something, or raise it";

#[test]
fn a_tree_that_is_full_refuses_what_makes_it_larger_and_nothing_else() {
    let served = Served::new(1, 4);
    let mut redis = served.connect(0);
    let client = served.client();
    served.runtime.block_on(async {
        let limit = QuotaLimit { bytes: Some(400), entries: None };
        client.set_tree_quota("redis", Some(limit)).await.unwrap();
    });
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
