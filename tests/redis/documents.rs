//! What `COMMAND DOCS` tells of arguments, beside the real Redis.

use crate::beside::Redis;
use crate::support::{Connection, Served, escaped, reply_length, request, words};

/// What takes fewer arguments than in Redis. Whatever else differs is an error.
const FEWER: [&str; 1] = ["client|list"];
/// What Redis 7.0 has not, besides the group `dogsled`.
const OURS: [&str; 2] = ["client|no-touch", "client|setinfo"];

/// The values that a reply consists of, each as its bytes.
fn within(reply: &[u8]) -> Vec<&[u8]> {
    let head = reply.windows(2).position(|pair| pair == b"\r\n").unwrap() + 2;
    let (mut rest, mut values) = (&reply[head..], Vec::new());
    while !rest.is_empty() {
        let (value, behind) = rest.split_at(reply_length(rest).unwrap());
        values.push(value);
        rest = behind;
    }
    values
}

/// The names in a map, and what it has under them. In RESP2 it is an array of both in turn.
fn map(reply: &[u8]) -> Vec<(String, &[u8])> {
    let name = |bulk: &[u8]| escaped(bulk).split("\\r\\n").nth(1).unwrap().to_owned();
    within(reply).chunks_exact(2).map(|pair| (name(pair[0]), pair[1])).collect()
}

/// What a map has under a name.
fn found<'a>(reply: &'a [u8], name: &str) -> Option<&'a [u8]> {
    map(reply).into_iter().find(|(known, _)| known == name).map(|(_, value)| value)
}

fn documents(connection: &mut Connection, name: &str) -> Vec<u8> {
    connection.send(&request(&words(&format!("COMMAND DOCS {name}"))));
    connection.reply()
}

#[test]
fn arguments_are_told_as_by_redis() {
    let Some(redis) = Redis::start() else { return };
    let served = Served::new(1, 1);
    for version in [2, 3] {
        let (mut theirs, mut ours) = (Connection::new(redis.address), served.connect(0));
        for connection in [&mut theirs, &mut ours] {
            connection.ask(&format!("HELLO {version}"));
        }
        let (mut compared, mut differ) = (0, Vec::new());
        let all = documents(&mut ours, "");
        for (command, about) in map(&all) {
            let below = found(about, "subcommands").map(map).unwrap_or_default();
            for (name, about) in std::iter::once((command, about)).chain(below) {
                let alone = documents(&mut ours, &name);
                assert!(map(&alone) == [(name.clone(), about)], "{name}: {}", escaped(&alone));
                let told = |about: &[u8], what: &str| found(about, what).map(escaped);
                let expected = documents(&mut theirs, &name);
                let Some((_, expected)) = map(&expected).pop() else {
                    let is_ours = name.starts_with("dogsled.") || OURS.contains(&name.as_str());
                    assert!(is_ours && told(about, "arguments").is_some(), "{name} in RESP{version}");
                    continue;
                };
                compared += 1;
                for what in ["since", "group"] {
                    assert_eq!(told(about, what), told(expected, what), "{what} of {name}");
                }
                let (found, expected) = (told(about, "arguments"), told(expected, "arguments"));
                if FEWER.contains(&name.as_str()) {
                    assert_ne!(found, expected, "{name} is not told otherwise than by Redis any more");
                } else if found != expected {
                    differ.push(format!("{name}\n  Redis    {expected:?}\n  the node {found:?}"));
                }
            }
        }
        assert!(compared > 120, "{compared} commands");
        assert!(differ.is_empty(), "{} in RESP{version}:\n{}", differ.len(), differ.join("\n"));
    }
}
