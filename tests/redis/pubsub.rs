//! Messages to those who are subscribed, at any node.

use dogsled::cluster::ring;

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
        (
            "CLIENT id",
            "-ERR Can't execute 'client|id': only (P|S)SUBSCRIBE / (P|S)UNSUBSCRIBE / PING / QUIT / RESET are allowed \
             in this context",
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
fn a_pipeline_of_messages_comes_whole_and_in_order_also_within_multi_and_over_partitions() {
    let served = Served::new(2, 8);
    let mut listeners: Vec<Connection> = (0..2).map(|node| served.connect(node)).collect();
    for listener in &mut listeners {
        listener.ask("SUBSCRIBE news");
    }
    let mut publisher = served.connect(0);
    let pipeline: Vec<u8> =
        (0..1000).flat_map(|number| format!("PUBLISH news {number}\r\n").into_bytes()).collect();
    publisher.send(&pipeline);
    for _ in 0..1000 {
        assert_eq!(publisher.reply(), b":1\r\n");
    }
    // Several on one channel in one transaction, of one partition and of all.
    for more in ["", "MSET a 1 b 2 c 3 d 4 e 5 f 6 g 7\r\nPUBLISH other x\r\n"] {
        let transaction =
            format!("MULTI\r\nPUBLISH news x\r\n{more}PUBLISH news y\r\nPUBLISH news y\r\nEXEC\r\n");
        publisher.send(transaction.as_bytes());
        for _ in 0..4 + more.lines().count() {
            assert!(matches!(publisher.reply()[0], b'+'));
        }
        assert!(publisher.reply().starts_with(if more.is_empty() { b"*3" } else { b"*5" }));
    }
    let numbers = (0..1000).map(|number| number.to_string());
    let expected: Vec<String> = numbers
        .chain(["x", "y", "y", "x", "y", "y"].map(str::to_owned))
        .map(|text| message("news", &text))
        .collect();
    for listener in &mut listeners {
        let heard: Vec<String> = (0..expected.len()).map(|_| told(listener)).collect();
        assert_eq!(heard, expected);
    }
    // Nothing is left of them.
    let client = served.client();
    let left = served.runtime.block_on(async { client.tree("redis:channels").len().await });
    assert_eq!(left.expect("it can be counted"), 0);
}

#[test]
fn no_message_that_was_answered_is_missed_when_the_node_that_leads_is_lost() {
    let mut served = Served::new(3, 4);
    let mut cluster = served.cluster.take().unwrap();
    let leader = served.runtime.block_on(cluster.leader(ring::group_of(b"news", 4)));
    let others: Vec<usize> = (0..3).filter(|node| *node as u64 + 1 != leader).collect();
    let mut listener = served.connect(others[0]);
    listener.ask("SUBSCRIBE news");
    let mut publisher = served.connect(others[1]);
    let mut answered = Vec::new();
    for number in 0..200 {
        if number == 100 {
            served.runtime.block_on(cluster.halt(leader));
        }
        let reply = publisher.says(&format!("PUBLISH news {number}"));
        match &reply[..1] {
            ":" => answered.push(number),
            // Nobody knows whether it has happened, or it has not.
            "-" => {}
            _ => panic!("{reply}"),
        }
    }
    served.cluster = Some(cluster);
    assert!(answered.len() > 150, "{} were answered", answered.len());
    assert_eq!(publisher.says("PUBLISH news end"), ":0");
    let mut heard: Vec<u32> = Vec::new();
    loop {
        let told = told(&mut listener);
        let text = told.rsplit("\\r\\n").nth(1).expect("of several lines");
        if text == "end" {
            break;
        }
        heard.push(text.parse().expect("a number"));
    }
    assert!(heard.is_sorted_by(|one, next| one < next), "at most once, and in order: {heard:?}");
    let missed: Vec<&u32> = answered.iter().filter(|number| !heard.contains(number)).collect();
    assert!(missed.is_empty(), "{missed:?} were answered, and never heard");
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

/// A transaction tells its other partitions after it is answered: what is published then has to wait for it.
#[test]
fn what_is_published_after_a_transaction_over_partitions_comes_behind_it() {
    let served = Served::new(2, 8);
    let mut listener = served.connect(1);
    listener.ask("SUBSCRIBE news");
    let mut publisher = served.connect(0);
    for round in 0..50 {
        let lines = format!(
            "MULTI\r\nMSET a 1 b 2 c 3 d 4\r\nPUBLISH news {round}-a\r\nEXEC\r\nPUBLISH news {round}-b\r\n"
        );
        publisher.send(lines.as_bytes());
        for _ in 0..5 {
            publisher.reply();
        }
        for text in ["a", "b"] {
            let wanted = message("news", &format!("{round}-{text}"));
            assert_eq!(told(&mut listener), wanted);
        }
    }
}
