//! The largest values: what can be made can be read, moved and answered by every node.

use dogsled::cluster::ring::slots::{group_of_slot, slot_of};

use crate::support::{Connection, Served, escaped, request, words};

const TOO_LONG: &str = "-ERR string exceeds maximum allowed size (proto-max-bulk-len)";

/// A reply as bytes: those of large values are not shown.
fn ask(redis: &mut Connection, before: &str, value: &[u8]) -> Vec<u8> {
    let mut words = words(before);
    words.push(value.to_vec());
    redis.send(&request(&words));
    redis.reply()
}

/// A key of one of two partitions.
fn key_of(group: u32, name: &str) -> String {
    let is_there = |key: &String| group_of_slot(slot_of(key.as_bytes()), 2) == group;
    (0..).map(|number| format!("{name}{number}")).find(is_there).unwrap()
}

#[test]
fn the_largest_value_is_made_read_and_moved_and_one_byte_more_is_refused() {
    let served = Served::new(3, 2);
    let mut nodes: Vec<Connection> = (0..3).map(|node| served.connect(node)).collect();
    let told = nodes[0].ask("CONFIG GET proto-max-bulk-len");
    let largest: usize = told.split("\\r\\n").nth(4).unwrap().parse().unwrap();
    assert!((15 << 20..16 << 20).contains(&largest), "{largest}");
    let value = vec![b'x'; largest];
    let whole = [format!("${largest}\r\n").as_bytes(), &value, b"\r\n"].concat();
    let (set, appended, stretched) = (key_of(1, "set"), key_of(2, "appended"), key_of(1, "stretched"));

    assert_eq!(ask(&mut nodes[0], &format!("SET {set}"), &value), b"+OK\r\n");
    let half = largest / 2;
    ask(&mut nodes[1], &format!("APPEND {appended}"), &value[..half]);
    let length = format!(":{largest}\r\n");
    assert_eq!(
        escaped(&ask(&mut nodes[1], &format!("APPEND {appended}"), &value[half..])),
        length.escape_default().to_string()
    );
    assert_eq!(
        nodes[2].ask(&format!("SETRANGE {stretched} {} x", largest - 1)),
        length.escape_default().to_string()
    );
    assert_eq!(ask(&mut nodes[2], "HSET hash field", &value), b":1\r\n");
    for node in &mut nodes {
        for get in [format!("GET {set}"), format!("GET {appended}"), "HGET hash field".to_owned()] {
            node.send(&request(&words(&get)));
            assert!(node.reply() == whole, "{get}");
        }
        assert_eq!(node.says(&format!("STRLEN {stretched}")), format!(":{largest}"));
    }

    // To the other partition, and back.
    for (from, to) in [(&set, key_of(2, "moved")), (&appended, key_of(1, "moved"))] {
        assert_eq!(nodes[0].says(&format!("RENAME {from} {to}")), "+OK");
        assert_eq!(nodes[1].says(&format!("EXISTS {from}")), ":0");
        nodes[2].send(&request(&words(&format!("GET {to}"))));
        assert!(nodes[2].reply() == whole, "{from} is another when it is moved");
        assert_eq!(nodes[2].says(&format!("APPEND {to} x")), TOO_LONG);
    }
    let more = vec![b'x'; largest + 1];
    for before in [
        "SET other",
        "SETNX other",
        "SETEX other 10",
        "GETSET other",
        "MSET other",
        "APPEND other",
        "HSET hash more",
        "HSETNX hash more",
        "PUBLISH channel",
    ] {
        let refused = escaped(&ask(&mut nodes[0], before, &more));
        assert_eq!(refused, format!("{TOO_LONG}\\r\\n"), "{before}");
    }
    assert_eq!(nodes[0].says(&format!("SETRANGE other {largest} x")), TOO_LONG);
    assert_eq!(nodes[0].says("MULTI"), "+OK");
    nodes[0].ask(&format!("SETRANGE other {largest} x"));
    nodes[0].ask("SET small 1");
    assert_eq!(nodes[0].says("EXEC"), format!("*2\\r\\n{TOO_LONG}\\r\\n+OK"));
    assert_eq!(nodes[0].says("EXISTS other"), ":0");
}

#[test]
fn a_hash_that_no_command_carries_stays_in_its_partition() {
    let served = Served::new(1, 2);
    let mut redis = served.connect(0);
    let (own, same, other) = (key_of(1, "own"), key_of(1, "same"), key_of(2, "other"));
    for field in 0..3 {
        assert_eq!(ask(&mut redis, &format!("HSET {own} {field}"), &vec![b'x'; 6 << 20]), b":1\r\n");
    }
    assert_eq!(redis.says(&format!("COPY {own} {same}")), ":1");
    for line in [format!("COPY {own} {other}"), format!("RENAME {own} {other}")] {
        let refused = redis.says(&line);
        assert!(refused.starts_with("-ERR a hash of more than 16 MiB is not carried"), "{refused}");
    }
    assert_eq!(redis.says(&format!("HLEN {own}")), ":3");
    assert_eq!(redis.says(&format!("EXISTS {other}")), ":0");
    assert_eq!(redis.says(&format!("HDEL {own} 0")), ":1");
    assert_eq!(redis.says(&format!("RENAME {own} {other}")), "+OK");
    assert_eq!(redis.says(&format!("HLEN {other}")), ":2");
}
