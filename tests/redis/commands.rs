//! What each command answers, where the answer is known without the real Redis beside it.

use crate::support::{Connection, Served};

#[track_caller]
fn check(connection: &mut Connection, table: &[(&str, &str)]) {
    for (line, expected) in table {
        assert_eq!(connection.says(line), *expected, "{line}");
    }
}

#[test]
fn commands_answer_as_the_table_says() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    check(
        &mut redis,
        &[
            ("PING", "+PONG"),
            ("GET a", "$-1"),
            ("SET a 1", "+OK"),
            ("GET a", "$1\\r\\n1"),
            ("SET lock token NX PX 100000", "+OK"),
            ("SET lock other NX PX 100000", "$-1"),
            ("INCR a", ":2"),
            ("DECRBY a 12", ":-10"),
            ("INCRBYFLOAT a 0.5", "$4\\r\\n-9.5"),
            ("INCR a", "-ERR value is not an integer or out of range"),
            ("GET", "-ERR wrong number of arguments for 'get' command"),
            ("get a b", "-ERR wrong number of arguments for 'get' command"),
            ("ZADD h", "-ERR unknown command 'ZADD', with args beginning with: 'h' "),
            ("MSET a 1 b 2 c 3 d 4 e 5", "+OK"),
            ("MGET a none e", "*3\\r\\n$1\\r\\n1\\r\\n$-1\\r\\n$1\\r\\n5"),
            ("MSETNX x 1 y 2 z 3", ":1"),
            ("MSETNX w 1 y 2", ":0"),
            ("EXISTS x y z w", ":3"),
            ("DEL x y none", ":2"),
            ("UNLINK z", ":1"),
            ("DBSIZE", ":6"),
            ("RENAME b renamed", "+OK"),
            ("GET renamed", "$1\\r\\n2"),
            ("RENAME b renamed", "-ERR no such key"),
            ("RENAMENX c d", ":0"),
            ("COPY c copied", ":1"),
            ("TYPE c", "+string"),
            ("TYPE none", "+none"),
            ("SELECT 3", "+OK"),
            ("DBSIZE", ":0"),
            ("SET here 1", "+OK"),
            ("DBSIZE", ":1"),
            ("FLUSHDB", "+OK"),
            ("DBSIZE", ":0"),
            ("SELECT 0", "+OK"),
            ("DBSIZE", ":7"),
            ("CLIENT SETINFO LIB-NAME x", "+OK"),
            ("CLIENT SETINFO other x", "-ERR Unrecognized option 'other'"),
            ("COMMAND INFO nothing", "*1\\r\\n$-1"),
        ],
    );
    assert!(redis.ask("CLIENT ID").starts_with(':'));
    let told = redis.ask("CLIENT INFO");
    assert!(told.contains("lib-name=x") && told.contains(" fd=0 name= age="), "{told}");
    let fields = " flags=N db=0 sub=0 psub=0 ssub=0 multi=-1 cmd=client|info user=default resp=2 ";
    assert!(told.contains(fields), "{told}");
    assert!(redis.ask("INFO server").contains("redis_version:7."));
    assert!(!redis.ask("INFO clients").contains("redis_version"));
    let number = |redis: &mut Connection, section: &str, name: &str| -> u64 {
        let said = redis.ask(&format!("INFO {section}"));
        let line = said.split("\\r\\n").find_map(|line| line.strip_prefix(name));
        line.unwrap_or_else(|| panic!("no {name} in {said}")).trim_start_matches(':').parse().unwrap()
    };
    let before = number(&mut redis, "stats", "total_commands_processed");
    for _ in 0..10 {
        redis.ask("PING");
    }
    assert_eq!(number(&mut redis, "all", "total_commands_processed"), before + 11);
    assert!(number(&mut redis, "memory", "used_memory_rss") > 1 << 20);
    assert_eq!(number(&mut redis, "stats", "total_connections_received"), 1);
    served.connect(0).ask("PING");
    assert_eq!(number(&mut redis, "stats", "total_connections_received"), 2);
    assert!(redis.ask("INFO").contains("# Keyspace\\r\\ndb0:keys=7,expires=0,avg_ttl=0\\r\\n"));
    redis.ask("MULTI");
    redis.ask("INFO keyspace");
    assert!(redis.ask("EXEC").contains("db0:keys=7"));
    for (command, has) in
        [("CLIENT", "+SETNAME"), ("CONFIG", "+GET"), ("COMMAND", "+GETKEYS"), ("PUBSUB", "+NUMSUB")]
    {
        let said = redis.ask(&format!("{command} HELP"));
        assert!(said.contains(&format!("+{command} <subcommand>")) && said.contains(has), "{said}");
    }
    let said = redis.ask("CONFIG GET [mpb]*");
    for (name, value) in [
        ("maxclients", "10000".to_owned()),
        ("port", served.servers[0].local_address().port().to_string()),
        ("bind", "127.0.0.1".to_owned()),
        ("proto-max-bulk-len", "16252928".to_owned()),
    ] {
        let pair = format!("${}\\r\\n{name}\\r\\n${}\\r\\n{value}\\r\\n", name.len(), value.len());
        assert!(said.contains(&pair), "{pair} is not in {said}");
    }
    let hello = redis.ask("HELLO 3 SETNAME me");
    assert!(hello.starts_with("%7\\r\\n$6\\r\\nserver\\r\\n$5\\r\\nredis\\r\\n"), "{hello}");
    check(
        &mut redis,
        &[
            ("GET none", "_"),
            ("CLIENT GETNAME", "$2\\r\\nme"),
            ("CONFIG GET save", "%1\\r\\n$4\\r\\nsave\\r\\n$0\\r\\n"),
            ("RESET", "+RESET"),
            ("GET none", "$-1"),
            ("CLIENT GETNAME", "$-1"),
        ],
    );
    assert_eq!(redis.ask("QUIT"), "+OK\\r\\n");
    assert_eq!(redis.rest(), "");
}

#[test]
fn a_time_to_live_ends_by_itself() {
    let served = Served::new(1, 4);
    let mut redis = served.connect(0);
    check(
        &mut redis,
        &[("SET a 1 PX 5000", "+OK"), ("SET stays 1", "+OK"), ("TTL stays", ":-1"), ("TTL none", ":-2")],
    );
    let left: i64 = redis.says("PTTL a").trim_start_matches(':').parse().unwrap();
    assert!((1..=5000).contains(&left), "{left} ms");
    crate::support::eventually("a is gone", || redis.ask("GET a") == "$-1\\r\\n");
    crate::support::eventually("a is removed", || redis.ask("DBSIZE") == ":1\\r\\n");
    check(&mut redis, &[("SET a 2 NX", "+OK"), ("EXPIRE a 100", ":1")]);
    let left: i64 = redis.says("TTL a").trim_start_matches(':').parse().unwrap();
    assert!((95..=100).contains(&left), "{left} s");
    check(&mut redis, &[("PERSIST a", ":1")]);
}

/// Every key that was there all the time comes, whatever the steps.
#[test]
fn a_scan_comes_to_every_key() {
    let served = Served::new(1, 8);
    let mut redis = served.connect(0);
    for number in 0..100 {
        redis.ask(&format!("SET key:{number:03} x"));
    }
    redis.ask("SET other x");
    for (options, count) in
        [("COUNT 7", 101), ("COUNT 1000", 101), ("MATCH key:*", 100), ("MATCH key:?5? COUNT 20", 10)]
    {
        let (mut cursor, mut found) = ("0".to_owned(), Vec::new());
        for _ in 0..200 {
            redis.send(&crate::support::request(&crate::support::words(&format!("SCAN {cursor} {options}"))));
            let reply = String::from_utf8(redis.reply()).unwrap();
            let mut lines =
                reply.split("\r\n").filter(|line| !line.starts_with(['*', '$']) && !line.is_empty());
            cursor = lines.next().unwrap().to_owned();
            found.extend(lines.map(str::to_owned));
            if cursor == "0" {
                break;
            }
        }
        assert_eq!(cursor, "0", "{options} does not end");
        found.sort();
        found.dedup();
        assert_eq!(found.len(), count, "{options}");
    }
    assert_eq!(redis.says("SCAN 12345"), "-ERR invalid cursor");
    assert!(redis.ask("KEYS key:09?").starts_with("*10\\r\\n"));
    for _ in 0..20 {
        assert!(redis.ask("RANDOMKEY").starts_with('$'));
    }
}

#[test]
fn a_password_is_asked_for() {
    let served = Served::with(1, 1, |options| options.password = Some("secret".to_owned()));
    let mut redis = served.connect(0);
    check(
        &mut redis,
        &[
            ("GET a", "-NOAUTH Authentication required."),
            ("PING", "-NOAUTH Authentication required."),
            ("AUTH wrong", "-WRONGPASS invalid username-password pair or user is disabled."),
            ("AUTH secre", "-WRONGPASS invalid username-password pair or user is disabled."),
            ("AUTH other secret", "-WRONGPASS invalid username-password pair or user is disabled."),
            ("GET a", "-NOAUTH Authentication required."),
        ],
    );
    assert!(redis.ask("HELLO 3").starts_with("-NOAUTH HELLO must be called"));
    check(
        &mut redis,
        &[
            ("AUTH secret", "+OK"),
            ("SET a 1", "+OK"),
            ("RESET", "+RESET"),
            ("GET a", "-NOAUTH Authentication required."),
        ],
    );
    assert!(redis.ask("HELLO 3 AUTH default secret").starts_with('%'));
    assert_eq!(redis.says("GET a"), "$1\\r\\n1");
    // What has not said who it is may not send much.
    let mut stranger = served.connect(0);
    stranger.send(b"*11\r\n");
    assert_eq!(stranger.rest(), "-ERR Protocol error: unauthenticated multibulk length\\r\\n");
    let mut stranger = served.connect(0);
    stranger.send(b"*2\r\n$4\r\nAUTH\r\n$16385\r\n");
    assert_eq!(stranger.rest(), "-ERR Protocol error: unauthenticated bulk length\\r\\n");
}

#[test]
fn where_other_machines_could_connect_it_does_not_listen() {
    let served = Served::new(1, 1);
    let mut options = dogsled::cluster::redis::RedisOptions::new(([0, 0, 0, 0], 0).into());
    options.password = Some("travels in clear".to_owned());
    let client = served.client();
    let refused = served.runtime.block_on(dogsled::cluster::redis::RedisServer::start(client, options));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);
}
