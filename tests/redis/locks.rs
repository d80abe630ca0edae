//! Locks with fencing tokens, as Redis clients have them.

use std::time::{Duration, Instant};

use crate::support::{Connection, Served, escaped, request};

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

/// As Redis's documentation writes it.
const RELEASE: &str = "if redis.call(\"get\",KEYS[1]) == ARGV[1] then\n    return redis.call(\"del\",KEYS[1])\nelse\n    return 0\nend";

fn eval(redis: &mut Connection, script: &str, words: &[&str]) -> String {
    let all = [&["EVAL", script, "1"], words].concat();
    redis.send(&request(&all.iter().map(|word| word.as_bytes().to_vec()).collect::<Vec<_>>()));
    escaped(&redis.reply())
}

#[test]
fn the_scripts_of_locks_compare_before_they_delete_and_no_others_are_carried_out() {
    let served = Served::new(1, 4);
    let mut redis = served.connect(0);
    redis.ask("SET lock mine PX 60000");
    assert_eq!(eval(&mut redis, RELEASE, &["lock", "other"]), ":0\\r\\n");
    assert_eq!(redis.says("EXISTS lock"), ":1");
    assert_eq!(eval(&mut redis, RELEASE, &["none", "mine"]), ":0\\r\\n");
    assert_eq!(eval(&mut redis, RELEASE, &["lock", "mine"]), ":1\\r\\n");
    assert_eq!(redis.says("EXISTS lock"), ":0");
    redis.ask("HSET hash a 1");
    assert!(eval(&mut redis, RELEASE, &["hash", "mine"]).starts_with("-WRONGTYPE "));
    assert!(eval(&mut redis, "return 1", &["lock"]).starts_with("-ERR scripts are not carried out"));
    assert!(eval(&mut redis, RELEASE, &["lock"]).starts_with("-ERR this script has a key and 1 arguments"));
    // By its hash once it is known.
    redis.send(&request(&["SCRIPT", "LOAD", RELEASE].map(|word| word.as_bytes().to_vec())));
    let hash = "647c65a442733a1aa440f99908d249d13b4d6c4a";
    assert_eq!(escaped(&redis.reply()), format!("$40\\r\\n{hash}\\r\\n"));
    redis.ask("SET lock mine");
    assert_eq!(redis.says(&format!("SCRIPT EXISTS {hash} other")), "*2\\r\\n:1\\r\\n:0");
    assert_eq!(redis.says(&format!("EVALSHA {hash} 1 lock mine")), ":1");
    assert_eq!(redis.says("SCRIPT FLUSH"), "+OK");
    assert_eq!(
        redis.says(&format!("EVALSHA {hash} 1 lock mine")),
        "-NOSCRIPT No matching script. Please use EVAL."
    );
    redis.ask("MULTI");
    assert_eq!(redis.says(&format!("EVALSHA {hash} 1 lock mine")), "-ERR EVALSHA cannot be within MULTI");
    assert!(redis.says("EXEC").starts_with("-EXECABORT "));
}

#[test]
fn the_scripts_of_locks_prolong_what_the_caller_holds() {
    let served = Served::new(1, 4);
    let mut redis = served.connect(0);
    let reacquire = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('pexpire', KEYS[1], ARGV[2]) else return 0 end";
    let extend = "
        local token = redis.call('get', KEYS[1])
        if not token or token ~= ARGV[1] then
            return 0
        end
        local expiration = redis.call('pttl', KEYS[1])
        if not expiration then
            expiration = 0
        end
        if expiration < 0 then
            return 0
        end

        local newttl = ARGV[2]
        if ARGV[3] == \"0\" then
            newttl = ARGV[2] + expiration
        end
        redis.call('pexpire', KEYS[1], newttl)
        return 1
    ";
    let left =
        |redis: &mut Connection| -> i64 { redis.says("TTL lock").trim_start_matches(':').parse().unwrap() };
    redis.ask("SET lock mine EX 1000");
    assert_eq!(eval(&mut redis, extend, &["lock", "mine", "500000", "0"]), ":1\\r\\n");
    assert!((1400..=1500).contains(&left(&mut redis)));
    assert_eq!(eval(&mut redis, extend, &["lock", "mine", "300000", "1"]), ":1\\r\\n");
    assert!((200..=300).contains(&left(&mut redis)));
    assert_eq!(eval(&mut redis, reacquire, &["lock", "mine", "900000"]), ":1\\r\\n");
    assert!((800..=900).contains(&left(&mut redis)));
    for script in [extend, reacquire] {
        assert_eq!(eval(&mut redis, script, &["lock", "other", "5000000", "0"]), ":0\\r\\n");
        assert!(
            eval(&mut redis, script, &["lock", "mine", "x", "0"]).starts_with("-ERR value is not an integer")
        );
        let endless = i64::MAX.to_string();
        assert!(
            eval(&mut redis, script, &["lock", "mine", &endless, "1"])
                .starts_with("-ERR invalid expire time")
        );
    }
    assert!((800..=900).contains(&left(&mut redis)));
    redis.ask("PERSIST lock");
    assert_eq!(eval(&mut redis, extend, &["lock", "mine", "5000", "0"]), ":0\\r\\n");
    assert_eq!(eval(&mut redis, reacquire, &["lock", "mine", "0"]), ":1\\r\\n");
    assert_eq!(redis.says("EXISTS lock"), ":0");
}

/// Whoever reads first and deletes then deletes what another has put there meanwhile.
#[test]
fn a_script_never_deletes_what_became_another_s_meanwhile() {
    let served = Served::new(1, 1);
    let address = served.servers[0].local_address();
    let workers: Vec<_> = (0..3)
        .map(|_| {
            std::thread::spawn(move || {
                let mut redis = Connection::new(address);
                let release = |_: &u32| eval(&mut redis, RELEASE, &["lock", "mine"]) == ":1\\r\\n";
                (0..400).filter(release).count()
            })
        })
        .collect();
    let mut redis = served.connect(0);
    let (mut deleted, mut given) = (0, 0);
    while workers.iter().any(|worker| !worker.is_finished()) {
        assert_eq!(redis.says("SET lock mine"), "+OK");
        given += 1;
        // It is the other's from here on, if nobody has deleted it before.
        match redis.says("SET lock other XX").as_str() {
            "+OK" => assert_eq!(redis.says("GET lock"), "$5\\r\\nother", "what was the other's is deleted"),
            "$-1" => deleted += 1,
            other => panic!("{other}"),
        }
    }
    let counted: usize = workers.into_iter().map(|worker| worker.join().unwrap()).sum();
    assert_eq!(counted, deleted, "of {given}");
    assert!(deleted > 0, "none of {given} was deleted");
}

#[test]
fn what_is_under_a_lock_is_not_cut_by_what_is_not() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    let token = number(&mut redis, "DOGSLED.LOCK {j}lock 60000");
    assert_eq!(redis.says("SET {j}k kept"), "+OK");
    let fenced = format!("DOGSLED.FENCED {{j}}lock {token} SET {{j}}k changed");
    for lines in [["FLUSHDB", &fenced], [&fenced, "FLUSHALL"]] {
        assert_eq!(redis.says("MULTI"), "+OK");
        assert_eq!(redis.says(lines[0]), "+QUEUED");
        let refused = redis.says(lines[1]);
        assert!(refused.contains("within one MULTI with DOGSLED.FENCED"), "{refused}");
        assert_eq!(redis.says("EXEC"), "-EXECABORT Transaction discarded because of previous errors.");
        assert_eq!(redis.says("GET {j}k"), "$4\\r\\nkept");
    }
    // Each by itself is well.
    for (line, found) in [(fenced.as_str(), "$7\\r\\nchanged"), ("FLUSHDB", "$-1")] {
        assert_eq!(redis.says("MULTI"), "+OK");
        assert_eq!(redis.says(line), "+QUEUED");
        assert_eq!(redis.says("EXEC"), "*1\\r\\n+OK");
        assert_eq!(redis.says("GET {j}k"), found);
    }
}
