//! Clients that mean no good, and such as do not read.

use std::io::{Read, Write};
use std::time::Duration;

use crate::support::{Connection, Served, escaped, eventually, request, words};

/// Whatever was sent, others are served.
#[track_caller]
fn serves(served: &Served) {
    assert_eq!(served.connect(0).says("PING"), "+PONG");
}

#[test]
fn garbage_is_answered_and_the_connection_closed() {
    let served = Served::new(1, 1);
    for (bytes, answer) in [
        (&b"*1\r\n$17825793\r\n"[..], "-ERR Protocol error: invalid bulk length\\r\\n"),
        (b"*1048577\r\n", "-ERR Protocol error: invalid multibulk length\\r\\n"),
        (b"*1\r\nGET\r\n", "-ERR Protocol error: expected '$', got 'G'\\r\\n"),
        (b"GET \"a\r\n", "-ERR Protocol error: unbalanced quotes in request\\r\\n"),
        (b"PING\r\n*x\r\n", "+PONG\\r\\n-ERR Protocol error: invalid multibulk length\\r\\n"),
    ] {
        let mut redis = served.connect(0);
        redis.send(bytes);
        assert_eq!(redis.rest(), answer, "{}", bytes.escape_ascii());
    }
    let mut redis = served.connect(0);
    // It may be closed before all is sent.
    let _ = redis.stream.write_all(&[b'a'; 200 << 10]);
    assert!(!redis.rest().contains("PONG"));
    let mut redis = served.connect(0);
    redis.send(b"\0\x01\xff\xfe GET / HTTP/1.1\r\n");
    assert!(redis.reply().starts_with(b"-ERR unknown command"));
    serves(&served);
}

/// What a page in somebody's browser can send here.
#[test]
fn requests_of_browsers_do_nothing() {
    let served = Served::new(1, 1);
    for head in ["POST / HTTP/1.1", "post /x HTTP/1.1\r\nHost: a", "PUT / HTTP/1.1\r\nhOsT: 127.0.0.1"] {
        let mut redis = served.connect(0);
        redis.send(format!("{head}\r\nContent-Length: 20\r\n\r\nSET planted 1\r\n").as_bytes());
        let said = redis.rest();
        assert!(!said.contains("OK"), "{said}");
    }
    assert_eq!(served.connect(0).says("EXISTS planted"), ":0");
}

#[test]
fn inline_commands_and_half_frames_are_served_when_they_have_come() {
    let served = Served::new(1, 1);
    let mut redis = served.connect(0);
    for byte in b"SET 'a b' \"c\\x41\"\r\n*2\r\n$3\r\nGET\r\n$3\r\na b\r\n" {
        redis.send(&[*byte]);
    }
    assert_eq!(redis.reply(), b"+OK\r\n");
    assert_eq!(redis.reply(), b"$2\r\ncA\r\n");
    let mut half = served.connect(0);
    half.send(b"*2\r\n$3\r\nGET\r\n$17825792\r\nabc");
    serves(&served);
    drop(half);
    serves(&served);
}

#[test]
fn what_all_together_hold_is_bounded() {
    let served = Served::with(1, 1, |options| options.max_held_bytes = 4 << 20);
    let sent: Vec<Connection> = (0..4)
        .map(|_| {
            let mut redis = served.connect(0);
            redis.send(b"*2\r\n$3\r\nGET\r\n$2000000\r\n");
            // It may be refused amid this.
            let _ = redis.stream.write_all(&vec![b'x'; 3 << 19]);
            redis
        })
        .collect();
    eventually("two are refused", || sent.iter().filter(|redis| is_closed(redis)).count() >= 2);
    let greedy: Vec<Connection> = sent.into_iter().filter(|redis| !is_closed(redis)).collect();
    assert!(greedy.len() <= 2, "{} hold more than there is", greedy.len());
    serves(&served);
    drop(greedy);
    eventually("there is room again", || {
        let mut redis = served.connect(0);
        let set = request(&[b"SET".to_vec(), b"k".to_vec(), vec![b'x'; 1 << 20]]);
        let _ = redis.stream.write_all(&set);
        redis.rest_of_line() == "+OK\\r\\n"
    });
    // However little the others hold, no one has more than half.
    let mut redis = served.connect(0);
    redis.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$2097152\r\n");
    assert_eq!(redis.rest(), "-ERR Protocol error: too big request\\r\\n");
}

/// Whether it was told something, or its end, by now.
fn is_closed(redis: &Connection) -> bool {
    redis.stream.set_nonblocking(true).unwrap();
    let told = redis.stream.peek(&mut [0; 20]);
    redis.stream.set_nonblocking(false).unwrap();
    match told {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    }
}

/// What a `SET` of so many bytes sends.
fn setting(key: &str, length: usize) -> Vec<u8> {
    request(&[b"SET".to_vec(), key.as_bytes().to_vec(), vec![b'x'; length]])
}

#[test]
fn those_that_hold_most_make_room_for_others() {
    let served = Served::with(1, 1, |options| options.max_held_bytes = 8 << 20);
    let queued = |bytes: usize| {
        let mut redis = served.connect(0);
        assert_eq!(redis.says("MULTI"), "+OK");
        redis.send(&setting("k", bytes));
        assert_eq!(redis.reply(), b"+QUEUED\r\n");
        redis
    };
    let (mut large, mut less) = (queued(7 << 19), queued(3 << 20));
    let mut half = served.connect(0);
    half.send(&setting("half", 3 << 20)[..5 << 19]);
    // That was more than there is; only the largest is closed for it, and whoever comes is served.
    let told = large.rest();
    let mut other = served.connect(0);
    other.send(&setting("other", 3 << 19));
    assert_eq!(other.reply(), b"+OK\r\n");
    assert!(told.starts_with("-ERR the clients together have sent more than is kept"), "{told}");
    assert_eq!(less.says("EXEC"), "*1\\r\\n+OK");
    half.send(&setting("half", 3 << 20)[5 << 19..]);
    assert_eq!(half.reply(), b"+OK\r\n");
}

#[test]
fn one_that_has_sent_much_and_then_nothing_is_closed_however_long_it_may_take() {
    let served = Served::with(1, 1, |options| options.request_time = Duration::from_secs(4));
    let mut idle = served.connect(0);
    assert_eq!(idle.says("MULTI"), "+OK");
    assert_eq!(idle.says("SET little 1"), "+QUEUED");
    let mut queued = served.connect(0);
    assert_eq!(queued.says("MULTI"), "+OK");
    queued.send(&setting("k", 4 << 20));
    assert_eq!(queued.reply(), b"+QUEUED\r\n");
    // It brings so much that minutes would be its own, if it went on.
    let mut half = served.connect(0);
    // It may be closed amid this, if the machine stands still.
    drop(half.stream.write_all(&setting("half", 8 << 20)[..6 << 20]));
    let began = std::time::Instant::now();
    for told in [queued.rest(), half.rest()] {
        assert!(told.starts_with("-ERR the command, or the password, took too long to come"), "{told}");
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(idle.says("EXEC"), "*1\\r\\n+OK");
}

#[test]
fn what_was_held_for_a_client_that_is_idle_now_is_there_for_others() {
    let served = Served::with(1, 1, |options| options.max_held_bytes = 8 << 20);
    let value = vec![b'x'; 3 << 20];
    let set = request(&[b"SET".to_vec(), b"k".to_vec(), value.clone()]);
    let reply = [b"$3145728\r\n", &value[..], b"\r\n"].concat();
    // Together more than twice as much as may be held; none of them is closed.
    let idle: Vec<Connection> = (0..6)
        .map(|number| {
            let mut redis = served.connect(0);
            redis.send(&set);
            assert_eq!(redis.reply(), b"+OK\r\n", "connection {number}");
            redis.send(&request(&words("GET k")));
            assert!(redis.reply() == reply, "connection {number}");
            redis
        })
        .collect();
    let mut redis = served.connect(0);
    eventually("nothing is held", || {
        let told = redis.ask("INFO memory");
        let held = told.split("\\r\\n").find_map(|line| line.strip_prefix("dogsled_held_for_clients:"));
        held.unwrap().parse::<usize>().unwrap() < 1 << 20
    });
    for mut redis in idle {
        assert_eq!(redis.says("PING"), "+PONG");
    }
}

#[test]
fn a_large_reply_is_counted_while_it_is_collected_and_sent_in_pieces() {
    let served = Served::with(1, 2, |options| options.max_held_bytes = 16 << 20);
    let mut redis = served.connect(0);
    // Names of 4 MiB together, and a hash of 6 MiB.
    for number in 0..70 {
        let name = format!("{number:02}{}", "n".repeat(60_000));
        assert_eq!(redis.says(&format!("SET {name} x")), "+OK");
    }
    let value = "v".repeat(2 << 20);
    for field in ["a", "b", "c"] {
        assert_eq!(redis.says(&format!("HSET hash {field} {value}")), ":1");
    }
    let fields: String =
        ["a", "b", "c"].map(|field| format!("$1\r\n{field}\r\n$2097152\r\n{value}\r\n")).concat();
    redis.send(&request(&words("HGETALL hash")));
    assert!(redis.reply() == format!("*6\r\n{fields}").as_bytes());
    redis.send(b"MULTI\r\nHGETALL hash\r\nPING\r\nEXEC\r\n");
    (0..3).for_each(|_| drop(redis.reply()));
    assert!(redis.reply() == format!("*2\r\n*6\r\n{fields}+PONG\r\n").as_bytes());
    assert!(redis.ask("KEYS *").starts_with("*71\\r\\n"));
    // Others hold most of what may be held. Whoever is still sending while a reply is collected may have to leave for
    // want of room; then they come again, and are given longer to have sent everything before it is asked.
    let part = [b"$8000000\r\n", &[b'x'; 7_900_000][..]].concat();
    let hold = |length: usize| {
        let mut greedy = served.connect(0);
        greedy.send(b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n");
        // An error is that it had to leave.
        drop(greedy.stream.write_all(&part[..length]));
        greedy
    };
    let mut held = None;
    let mut patience = Duration::ZERO;
    eventually("there is no room", || {
        held = Some((hold(part.len()), hold(7_000_000)));
        patience += Duration::from_millis(200);
        std::thread::sleep(patience);
        redis.ask("KEYS *").starts_with("-ERR the reply would be larger than")
    });
    assert_eq!(redis.says("DBSIZE"), ":71");
    drop(held);
    eventually("there is room again", || redis.ask("KEYS *").starts_with("*71\\r\\n"));
}

/// As redis-py's `pipeline.execute()` does: more than all sockets hold is sent before the first reply is read.
#[test]
fn a_pipeline_is_sent_whole_before_a_reply_is_read() {
    let served = Served::new(1, 4);
    let mut redis = served.connect(0);
    redis.stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    let (key, value) = ("k".repeat(200), "x".repeat(100));
    assert_eq!(redis.says(&format!("SET {key} {value}")), "+OK");
    let get = request(&words(&format!("GET {key}")));
    let count = (40 << 20) / get.len();
    redis.send(&get.repeat(count));
    let reply = format!("$100\r\n{value}\r\n").into_bytes();
    let mut told = vec![0; reply.len() * count];
    redis.stream.read_exact(&mut told).unwrap();
    assert!(told.chunks(reply.len()).all(|found| found == reply));
    assert_eq!(redis.says("PING"), "+PONG");
}

#[test]
fn a_client_that_does_not_read_is_not_read_from_and_closed_in_the_end() {
    let served = Served::with(1, 1, |options| options.patience = Duration::from_millis(400));
    let mut redis = served.connect(0);
    redis.ask(&format!("SET big {}", "x".repeat(1 << 20)));
    let gets = request(&words("GET big")).repeat(100);
    let mut sent = 0;
    redis.stream.set_write_timeout(Some(Duration::from_secs(20))).unwrap();
    // 100 replies of a MiB each are asked for, again and again, and none is read.
    let ended = loop {
        match redis.stream.write(&gets) {
            Ok(written) => sent += written,
            Err(error) => break error,
        }
        assert!(sent < 256 << 20, "all is taken, though nothing is read");
    };
    let kinds = [std::io::ErrorKind::ConnectionReset, std::io::ErrorKind::BrokenPipe];
    assert!(kinds.contains(&ended.kind()), "{ended}");
    serves(&served);
}

#[test]
fn a_command_that_comes_too_slowly_and_a_password_that_does_not_come_end_the_connection() {
    let served = Served::with(1, 1, |options| options.request_time = Duration::from_millis(3_500));
    let mut idle = served.connect(0);
    assert_eq!(idle.says("PING"), "+PONG");
    let mut slow = served.connect(0);
    slow.send(b"*2\r\n$3\r\nGET\r\n$");
    // A byte now and then does not help.
    let answer = std::thread::scope(|scope| {
        let mut also = slow.stream.try_clone().unwrap();
        scope.spawn(move || {
            while also.write_all(b"1").is_ok() {
                std::thread::sleep(Duration::from_millis(150));
            }
        });
        slow.rest()
    });
    assert!(answer.starts_with("-ERR the command, or the password, took too long to come"), "{answer}");
    // Between commands there is no hurry.
    assert_eq!(idle.says("PING"), "+PONG");
    let guarded = Served::with(1, 1, |options| {
        options.request_time = Duration::from_millis(3_500);
        options.password = Some("secret".to_owned());
    });
    let mut stranger = guarded.connect(0);
    assert!(stranger.says("GET a").starts_with("-NOAUTH"));
    assert!(stranger.rest().contains("took too long to come"));
    let mut known = guarded.connect(0);
    assert_eq!(known.says("AUTH secret"), "+OK");
    std::thread::sleep(Duration::from_millis(4_500));
    assert_eq!(known.says("PING"), "+PONG");
}

#[test]
fn connections_are_capped() {
    let served = Served::with(1, 1, |options| options.max_connections = 3);
    let mut let_in: Vec<Connection> = (0..3).map(|_| served.connect(0)).collect();
    for redis in &mut let_in {
        assert_eq!(redis.says("PING"), "+PONG");
    }
    assert_eq!(served.connect(0).rest(), "-ERR max number of clients reached\\r\\n");
    let_in.pop();
    eventually("a place is free", || {
        let mut redis = served.connect(0);
        redis.stream.write_all(b"PING\r\n").is_ok() && redis.rest_of_line() == "+PONG\\r\\n"
    });
}

#[test]
fn a_client_that_never_pauses_and_one_that_is_reset_are_not_taken_for_slow() {
    let served = Served::with(1, 1, |options| {
        options.request_time = Duration::from_millis(3_500);
        options.password = Some("secret".into());
    });
    let mut pool = served.connect(0);
    assert_eq!(pool.says("AUTH secret"), "+OK");
    let mut busy = served.connect(0);
    assert_eq!(busy.says("AUTH secret"), "+OK");
    // Whenever the server has read what there is, a command is cut somewhere.
    let request = request(&words(&format!("SET k {}", "x".repeat(100_000))));
    let (began, mut sent) = (std::time::Instant::now(), 0);
    busy.send(&request[..50_000]);
    while began.elapsed() < Duration::from_millis(7_500) {
        busy.send(&request[50_000..]);
        busy.send(&request[..50_000]);
        assert_eq!(busy.reply(), b"+OK\r\n");
        sent += 1;
    }
    assert!(sent > 3, "{sent} in seven seconds and a half");
    // It has been there for longer than one may be without a password.
    assert_eq!(pool.says("RESET"), "+RESET");
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(pool.says("AUTH secret"), "+OK");
}

#[test]
fn what_has_come_is_carried_out_though_the_client_sends_no_more() {
    let served = Served::new(1, 1);
    let mut holder = served.connect(0);
    let token = holder.says("DOGSLED.LOCK n 600000");
    let mut last = served.connect(0);
    last.send(format!("DOGSLED.UNLOCK n {}\r\nSET a 1\r\nGET a\r\n", &token[1..]).as_bytes());
    last.stream.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(last.rest(), ":1\\r\\n+OK\\r\\n$1\\r\\n1\\r\\n");
}

#[test]
fn replies_are_told_bit_by_bit_and_what_fills_memory_is_refused() {
    let served = Served::with(1, 2, |options| options.max_held_bytes = 96 << 20);
    let mut client = served.connect(0);
    let large = "x".repeat(4 << 20);
    assert_eq!(client.says(&format!("SET large {large}")), "+OK");
    assert_eq!(client.says("SET small 1"), "+OK");
    // Batches are as large as they become.
    for _ in 0..8 {
        client.send(&request(&words("PING")).repeat(256));
        (0..256).for_each(|_| assert_eq!(client.reply(), b"+PONG\r\n"));
    }
    // 240 MiB, more than all clients together may hold.
    let pipeline = [request(&words("GET large")), request(&words("GET small"))].concat().repeat(60);
    client.send(&pipeline);
    for _ in 0..60 {
        assert_eq!(client.reply().len(), 4 * 1024 * 1024 + 12);
        assert_eq!(client.reply(), b"$1\r\n1\r\n");
    }
    let keys = " large".repeat(200);
    assert!(client.says(&format!("MGET{keys}")).starts_with("-ERR the reply would be larger than 512 MiB"));
    serves(&served);
    // What is made without being brought counts: these would be 64 GiB in one entry.
    let ranges: String = (0..128).map(|number| format!("SETRANGE r{number} 536870911 x\r\n")).collect();
    client.send(format!("MULTI\r\n{ranges}EXEC\r\n").as_bytes());
    (0..129).for_each(|_| drop(client.reply()));
    let refused = escaped(&client.reply());
    assert!(refused.starts_with("-ERR "), "{refused}");
    serves(&served);
}

#[test]
fn a_pipeline_of_short_requests_with_long_replies_is_answered_in_parts() {
    let served = Served::new(1, 1);
    let mut client = served.connect(0);
    let info = |names: usize| format!("COMMAND INFO{}", " cluster".repeat(names));
    // Of these replies, of about 3 MiB in memory, there are never as many as there are requests.
    let pipeline = [request(&words(&info(128))), request(&words("PING"))].concat().repeat(8);
    client.send(&pipeline);
    for _ in 0..8 {
        assert!(client.reply().starts_with(b"*128\r\n*10\r\n$7\r\ncluster\r\n"));
        assert_eq!(client.reply(), b"+PONG\r\n");
    }
    assert_eq!(client.says(&info(1025)), "-ERR at most 1024 commands are described at a time");
    serves(&served);
}

/// Much of what is short to say is done a little at a time.
#[test]
fn what_a_pipeline_copies_and_appends_is_done_however_much_it_comes_to() {
    let served = Served::new(1, 2);
    let mut redis = served.connect(0);
    assert_eq!(redis.says(&format!("SET {{t}}long {}", "x".repeat(8 << 20))), "+OK");
    let copies: Vec<u8> =
        (0..10).flat_map(|to| request(&words(&format!("COPY {{t}}long {{t}}{to}")))).collect();
    redis.send(&copies);
    for to in 0..10 {
        assert_eq!(redis.reply(), b":1\r\n", "{to}");
    }
    redis.send(&request(&words("APPEND {t}long x")).repeat(150));
    for more in 1..=150 {
        assert_eq!(redis.reply(), format!(":{}\r\n", (8 << 20) + more).as_bytes());
    }
    redis.send(&request(&words("PEXPIRE {t}long 1000000")).repeat(150));
    for _ in 0..150 {
        assert_eq!(redis.reply(), b":1\r\n");
    }
    // At once it is another matter.
    redis.send(b"MULTI\r\n");
    redis.reply();
    redis.send(&copies);
    (0..10).for_each(|_| drop(redis.reply()));
    let refused = "$-ERR this copies, or writes anew, too much at once; do it in smaller steps";
    let told = redis.says("EXEC");
    assert!(told.contains(&refused[1..]), "{told}");
    let gone = (0..10).map(|to| format!(" {{t}}{to}")).collect::<String>();
    assert_eq!(redis.says(&format!("UNLINK{gone} {{t}}absent")), ":10");
    assert_eq!(redis.says("EXISTS {t}0 {t}long"), ":1");
}

/// Every node that has the partition would be asked for it again after it had died of it.
#[test]
fn a_transaction_that_would_tell_more_than_there_is_memory_is_refused() {
    let served = Served::new(1, 2);
    let mut redis = served.connect(0);
    let fields: String = (0..5_000).map(|field| format!(" field{field} value{field}")).collect();
    assert_eq!(redis.says(&format!("HSET {{t}}hash{fields}")), ":5000");
    redis.send(b"MULTI\r\n");
    redis.send(&request(&words("SET {t}x 1")));
    redis.send(&request(&words("HGETALL {t}hash")).repeat(20_000));
    (0..20_002).for_each(|_| drop(redis.reply()));
    let told = redis.says("EXEC");
    assert!(told.contains("takes more than 16777216 bytes"), "{told}");
    assert_eq!(redis.says("EXISTS {t}x"), ":0");
    assert_eq!(redis.says("HLEN {t}hash"), ":5000");
}

#[test]
fn a_random_key_is_every_key_in_turn() {
    let served = Served::new(1, 2);
    let mut redis = served.connect(0);
    for count in [2, 100] {
        for number in 0..count {
            redis.says(&format!("SET key:{number:03} x"));
        }
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..10_000 {
            seen.insert(redis.says("RANDOMKEY"));
            if seen.len() == count {
                break;
            }
        }
        assert_eq!(seen.len(), count, "{seen:?}");
    }
}
