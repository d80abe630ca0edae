//! Messages to those who are subscribed, at any node.

use crate::support::{Connection, Served, escaped, eventually};

/// The next that a connection is told.
fn told(connection: &mut Connection) -> String {
    escaped(&connection.reply())
}

fn message(channel: &str, text: &str) -> String {
    let part = |part: &str| format!("${}\\r\\n{part}\\r\\n", part.len());
    format!("*3\\r\\n{}{}{}", part("message"), part(channel), part(text))
}

#[test]
fn messages_come_to_subscribers_at_every_node_in_one_order() {
    let served = Served::new(3, 8);
    let mut listeners: Vec<Connection> = (0..3).map(|node| served.connect(node)).collect();
    for listener in &mut listeners {
        assert_eq!(listener.says("SUBSCRIBE news"), "*3\\r\\n$9\\r\\nsubscribe\\r\\n$4\\r\\nnews\\r\\n:1");
    }
    // Two publish at a time; what each has published comes in its order, and all are told the same.
    let (mut one, mut other) = (served.connect(0), served.connect(1));
    for number in 0..20 {
        one.send(format!("PUBLISH news a{number:02}\r\n").as_bytes());
        other.send(format!("PUBLISH news b{number:02}\r\n").as_bytes());
    }
    for _ in 0..20 {
        assert_eq!((one.reply(), other.reply()), (b":1\r\n".to_vec(), b":1\r\n".to_vec()));
    }
    let heard: Vec<Vec<String>> =
        listeners.iter_mut().map(|listener| (0..40).map(|_| told(listener)).collect()).collect();
    assert_eq!(heard[0], heard[1]);
    assert_eq!(heard[0], heard[2]);
    for letter in ["a", "b"] {
        let own: Vec<&String> =
            heard[0].iter().filter(|heard| heard.contains(&format!("\\n{letter}"))).collect();
        let expected: Vec<String> =
            (0..20).map(|number| message("news", &format!("{letter}{number:02}"))).collect();
        assert_eq!(own, expected.iter().collect::<Vec<_>>());
    }
    // Who published on another channel is not heard, and who has left hears nothing.
    assert_eq!(one.says("PUBLISH other x"), ":0");
    assert_eq!(listeners[2].says("UNSUBSCRIBE"), "*3\\r\\n$11\\r\\nunsubscribe\\r\\n$4\\r\\nnews\\r\\n:0");
    assert_eq!(listeners[2].says("PUBLISH news last"), ":0");
    assert_eq!(told(&mut listeners[0]), message("news", "last"));
    assert_eq!(listeners[2].says("PING"), "+PONG");
}

#[test]
fn subscriptions_are_answered_as_by_redis() {
    let served = Served::new(1, 4);
    let mut redis = served.connect(0);
    for (line, expected) in [
        ("UNSUBSCRIBE", "*3\\r\\n$11\\r\\nunsubscribe\\r\\n$-1\\r\\n:0"),
        ("SUBSCRIBE", "-ERR wrong number of arguments for 'subscribe' command"),
        ("PSUBSCRIBE n*", "*3\\r\\n$10\\r\\npsubscribe\\r\\n$2\\r\\nn*\\r\\n:1"),
        ("SUBSCRIBE news", "*3\\r\\n$9\\r\\nsubscribe\\r\\n$4\\r\\nnews\\r\\n:2"),
        ("SUBSCRIBE news", "*3\\r\\n$9\\r\\nsubscribe\\r\\n$4\\r\\nnews\\r\\n:2"),
        ("PING", "*2\\r\\n$4\\r\\npong\\r\\n$0\\r\\n"),
        ("PING x", "*2\\r\\n$4\\r\\npong\\r\\n$1\\r\\nx"),
        (
            "GET a",
            "-ERR Can't execute 'get': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed in \
             this context",
        ),
        ("UNSUBSCRIBE none", "*3\\r\\n$11\\r\\nunsubscribe\\r\\n$4\\r\\nnone\\r\\n:2"),
    ] {
        assert_eq!(redis.says(line), expected, "{line}");
    }
    let mut other = served.connect(0);
    for (line, expected) in [
        ("PUBSUB CHANNELS", "*1\\r\\n$4\\r\\nnews"),
        ("PUBSUB CHANNELS x*", "*0"),
        ("PUBSUB NUMSUB news x", "*4\\r\\n$4\\r\\nnews\\r\\n:1\\r\\n$1\\r\\nx\\r\\n:0"),
        ("PUBSUB NUMPAT", ":1"),
        ("PUBLISH news hello", ":2"),
        ("PUBLISH nothing \\0dogsled:hash", ":1"),
        ("PUBLISH other x", ":0"),
        ("PUBLISH news", "-ERR wrong number of arguments for 'publish' command"),
        ("DBSIZE", ":0"),
    ] {
        assert_eq!(other.says(line), expected, "{line}");
    }
    assert_eq!(told(&mut redis), message("news", "hello"));
    let by_pattern = |channel: &str, text: &str| {
        message(channel, text).replace("*3\\r\\n$7\\r\\nmessage", "*4\\r\\n$8\\r\\npmessage\\r\\n$2\\r\\nn*")
    };
    assert_eq!(told(&mut redis), by_pattern("news", "hello"));
    // Bytes that mean something to the store are bytes.
    redis.reply();
    assert_eq!(redis.says("RESET"), "+RESET");
    assert_eq!(redis.says("GET a"), "$-1");
    // In RESP3 all commands are understood, and messages are told from replies. Within MULTI they come with all else.
    redis.ask("HELLO 3");
    assert_eq!(redis.says("SUBSCRIBE news"), ">3\\r\\n$9\\r\\nsubscribe\\r\\n$4\\r\\nnews\\r\\n:1");
    assert_eq!(redis.says("MULTI"), "+OK");
    assert_eq!(redis.says("PUBLISH news queued"), "+QUEUED");
    assert_eq!(redis.says("SET {x}a 1"), "+QUEUED");
    assert_eq!(redis.says("EXEC"), "*2\\r\\n:1\\r\\n+OK");
    assert_eq!(told(&mut redis), message("news", "queued").replacen('*', ">", 1));
    assert_eq!(redis.says("MULTI"), "+OK");
    assert_eq!(redis.says("SUBSCRIBE x"), "-ERR SUBSCRIBE cannot be within MULTI");
    assert_eq!(redis.says("DISCARD"), "+OK");
}

#[test]
fn a_subscriber_that_does_not_read_is_closed_and_forgotten() {
    let served = Served::new(1, 2);
    let mut slow = served.connect(0);
    slow.ask("SUBSCRIBE flood");
    let mut publisher = served.connect(0);
    let flood = crate::support::request(&[b"PUBLISH".to_vec(), b"flood".to_vec(), vec![b'x'; 1 << 20]]);
    // More than waits for one connection, and what the sockets hold.
    for _ in 0..60 {
        publisher.send(&flood);
        publisher.reply();
    }
    eventually("it is forgotten", || publisher.says("PUBSUB NUMSUB flood").ends_with(":0"));
    assert_eq!(publisher.says("PUBLISH flood x"), ":0");
    // It finds the connection closed.
    slow.rest();
    assert_eq!(served.connect(0).says("PING"), "+PONG");
}
