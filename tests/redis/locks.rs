//! Locks with fencing tokens, as Redis clients have them.

use std::time::{Duration, Instant};

use crate::support::{Connection, Served};

/// The number that a line is answered with.
fn number(connection: &mut Connection, line: &str) -> u64 {
    let said = connection.says(line);
    said.strip_prefix(':').and_then(|number| number.parse().ok()).unwrap_or_else(|| panic!("{line}: {said}"))
}

#[test]
fn a_lock_is_held_by_one_and_tokens_grow() {
    let served = Served::new(1, 8);
    let (mut one, mut other) = (served.connect(0), served.connect(0));
    let first = number(&mut one, "DOGSLED.LOCK {j}lock 60000");
    assert_eq!(other.says("DOGSLED.LOCK {j}lock 60000"), "$-1");
    assert_eq!(one.says("DOGSLED.LOCK {j}lock 60000"), "$-1", "whoever asks again is somebody else");
    assert_eq!(other.says(&format!("DOGSLED.UNLOCK {{j}}lock {}", first + 1)), ":0");
    assert_eq!(one.says(&format!("DOGSLED.UNLOCK {{j}}lock {first}")), ":1");
    assert_eq!(one.says(&format!("DOGSLED.UNLOCK {{j}}lock {first}")), ":0");
    let second = number(&mut other, "dogsled.lock {j}lock 60000 owner ann");
    assert!(second > first, "{second} after {first}");
    assert_eq!(number(&mut other, &format!("DOGSLED.LOCK {{j}}lock 90000 RENEW {second}")), second);
    assert_eq!(one.says(&format!("DOGSLED.LOCK {{j}}lock 90000 RENEW {first}")), "$-1");
    // It is the lock of every other client.
    let client = served.client();
    served.runtime.block_on(async {
        let holder = client.lock("{j}lock").holder().await.unwrap().unwrap();
        assert_eq!((holder.owner.as_ref(), holder.token.0), (&b"ann"[..], second));
    });
    // In resp3 too.
    one.ask("HELLO 3");
    assert_eq!(one.says("DOGSLED.LOCK {j}lock 60000"), "_");
}

#[test]
fn a_fenced_command_is_carried_out_only_under_the_lock() {
    let served = Served::new(1, 8);
    let (mut one, mut other) = (served.connect(0), served.connect(0));
    let short = number(&mut one, "DOGSLED.LOCK {j}lock 50");
    std::thread::sleep(Duration::from_millis(60));
    let token = number(&mut other, "DOGSLED.LOCK {j}lock 60000 WAIT 30000");
    // The one does not know that its lease has ended.
    let refused = one.says(&format!("DOGSLED.FENCED {{j}}lock {short} SET {{j}}k stale"));
    assert!(refused.starts_with("-LOCKNOTHELD "), "{refused}");
    assert_eq!(one.says("GET {j}k"), "$-1");
    let under = |line: &str| format!("DOGSLED.FENCED {{j}}lock {token} {line}");
    assert_eq!(other.says(&under("SET {j}k fresh EX 100")), "+OK");
    assert_eq!(other.says(&under("GET {j}k")), "$5\\r\\nfresh");
    assert_eq!(other.says(&under("MSET {j}a 1 {j}b 2")), "+OK");
    assert_eq!(other.says(&under("HSET {j}h f v")), ":1");
    assert_eq!(other.says(&under("INCR {j}k")), "-ERR value is not an integer or out of range");
    // Also in the database that is selected.
    assert_eq!(other.says("SELECT 2"), "+OK");
    assert_eq!(other.says(&under("SET {j}k there")), "+OK");
    assert_eq!(other.says("SELECT 0"), "+OK");
    assert_eq!(other.says("GET {j}k"), "$5\\r\\nfresh");
    assert_eq!(other.says(&format!("DOGSLED.UNLOCK {{j}}lock {token}")), ":1");
    let refused = other.says(&under("DEL {j}k"));
    assert!(refused.starts_with("-LOCKNOTHELD "), "{refused}");
    assert_eq!(other.says("GET {j}k"), "$5\\r\\nfresh");
}

#[test]
fn in_a_pipeline_only_what_is_fenced_fails_and_in_a_transaction_all_does() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    let token = number(&mut redis, "DOGSLED.LOCK {j}lock 60000");
    let stale = token - 1;
    for line in ["SET {j}a 1", &format!("DOGSLED.FENCED {{j}}lock {stale} INCR {{j}}a"), "INCR {j}a"] {
        redis.send(&crate::support::request(&crate::support::words(line)));
    }
    assert_eq!(redis.reply(), b"+OK\r\n");
    assert!(redis.reply().starts_with(b"-LOCKNOTHELD "));
    assert_eq!(redis.reply(), b":2\r\n");
    let mut execute = |token: u64, lines: &[&str]| {
        assert_eq!(redis.says("MULTI"), "+OK");
        for line in lines {
            let queued = redis.says(&line.replace("TOKEN", &token.to_string()));
            assert_eq!(queued, "+QUEUED", "{line}");
        }
        let executed = redis.says("EXEC");
        (executed, redis.says("GET {j}a"))
    };
    let lines =
        ["INCR {j}a", "DOGSLED.FENCED {j}lock TOKEN INCR {j}a", "DOGSLED.FENCED {j}lock TOKEN GET {j}a"];
    let (executed, found) = execute(stale, &lines);
    assert!(executed.starts_with("-LOCKNOTHELD "), "{executed}");
    assert_eq!(found, "$1\\r\\n2");
    let (executed, found) = execute(token, &lines);
    assert_eq!((executed.as_str(), found.as_str()), ("*3\\r\\n:3\\r\\n:4\\r\\n$1\\r\\n4", "$1\\r\\n4"));
    // Keys beside it are of other partitions.
    let lines = ["SET {j}a 9", "DOGSLED.FENCED {j}lock TOKEN SET b 9", "HSET {i}h f v", "SET {h}e 9 EX 100"];
    let (executed, found) = execute(stale, &lines);
    assert!(executed.starts_with("-LOCKNOTHELD "), "{executed}");
    assert_eq!(found, "$1\\r\\n4");
    let (executed, found) = execute(token, &lines);
    assert_eq!((executed.as_str(), found.as_str()), ("*4\\r\\n+OK\\r\\n+OK\\r\\n:1\\r\\n+OK", "$1\\r\\n9"));
    assert_eq!(redis.says("MULTI"), "+OK");
    assert_eq!(redis.says("DOGSLED.LOCK {j}lock 1000"), "-ERR DOGSLED.LOCK cannot be within MULTI");
    assert!(redis.says("EXEC").starts_with("-EXECABORT "));
}

#[test]
fn wrong_requests_for_locks_are_told_as_redis_does() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    for (line, expected) in [
        ("DOGSLED.LOCK a", "-ERR wrong number of arguments for 'dogsled.lock' command"),
        ("DOGSLED.UNLOCK a", "-ERR wrong number of arguments for 'dogsled.unlock' command"),
        ("DOGSLED.FENCED a 1", "-ERR wrong number of arguments for 'dogsled.fenced' command"),
        ("DOGSLED.LOCK a b", "-ERR value is not an integer or out of range"),
        ("DOGSLED.LOCK a 0", "-ERR invalid expire time in 'dogsled.lock' command"),
        ("DOGSLED.LOCK a -5", "-ERR invalid expire time in 'dogsled.lock' command"),
        ("DOGSLED.LOCK a 10 WAIT", "-ERR syntax error"),
        ("DOGSLED.LOCK a 10 WAIT -1", "-ERR timeout is negative"),
        ("DOGSLED.LOCK a 10 WAIT x", "-ERR value is not an integer or out of range"),
        ("DOGSLED.LOCK a 10 RENEW 7 WAIT 1", "-ERR syntax error"),
        ("DOGSLED.LOCK a 10 nonsense x", "-ERR syntax error"),
        ("DOGSLED.UNLOCK a -1", "-ERR a fencing token is never negative"),
        ("DOGSLED.FENCED a x GET k", "-ERR value is not an integer or out of range"),
        ("DOGSLED.FENCED a 1 GET", "-ERR wrong number of arguments for 'get' command"),
        ("DOGSLED.FENCED a 1 nonsense k", "-ERR unknown command 'nonsense', with args beginning with: 'k' "),
        ("DOGSLED.FENCED a 1 PING", "-ERR DOGSLED.FENCED is for commands on keys, which PING is not"),
        ("DOGSLED.FENCED a 1 MULTI", "-ERR DOGSLED.FENCED is for commands on keys, which MULTI is not"),
        ("DOGSLED.FENCED a 1 FLUSHDB", "-ERR DOGSLED.FENCED is for commands on keys, which FLUSHDB is not"),
        (
            "DOGSLED.FENCED a 1 DOGSLED.FENCED a 1 GET a",
            "-ERR DOGSLED.FENCED is for commands on keys, which DOGSLED.FENCED is not",
        ),
    ] {
        assert_eq!(redis.says(line), expected, "{line}");
    }
    assert_eq!(redis.says("PING"), "+PONG");
}

#[test]
fn who_waits_is_served_in_turn_and_who_hangs_up_leaves_the_queue() {
    let served = Served::new(1, 8);
    let mut holder = served.connect(0);
    let token = number(&mut holder, "DOGSLED.LOCK l 600000");
    let began = Instant::now();
    assert_eq!(served.connect(0).says("DOGSLED.LOCK l 1000 WAIT 200"), "$-1");
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    // What was asked before is answered while the connection waits.
    let mut gone = served.connect(0);
    gone.send(b"PING\r\nDOGSLED.LOCK l 600000 WAIT 600000\r\n");
    assert_eq!(gone.reply(), b"+PONG\r\n");
    // Time to stand in the queue, before the other.
    std::thread::sleep(Duration::from_millis(300));
    let mut next = served.connect(0);
    next.send(b"DOGSLED.LOCK l 600000 WAIT 600000\r\n");
    std::thread::sleep(Duration::from_millis(300));
    drop(gone);
    assert_eq!(holder.says(&format!("DOGSLED.UNLOCK l {token}")), ":1");
    // Were it the turn of the one who has gone, it would be for ten minutes.
    let granted = next.reply();
    let granted: u64 = std::str::from_utf8(&granted[1..granted.len() - 2]).unwrap().parse().unwrap();
    assert!(granted > token);
}
