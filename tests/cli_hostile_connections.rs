//! Thousands of slow and hostile connections at once, on every port of one node: those that say nothing, half a
//! command, half a request's head, that ask and do not read, and datagrams that look like the beginning of a
//! connection. Whoever is over a limit is told so, the node's memory stays bounded, and those who behave are
//! served all the while.
//!
//! `DOGSLED_CONNECTIONS` sets how many: 2,000 if nobody says, and 10,000 is the long run. If the system permits
//! fewer open files, the test says so and takes as many as it may.
#![cfg(all(feature = "cli", target_os = "linux"))]

mod cli_support;

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use cli_support::http::{Metrics, get};
use cli_support::nodes::{Served, free_address};
use cli_support::{Run, Sandbox, run};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Whoever behaves waits no longer than this for anything.
const PATIENCE: Duration = Duration::from_secs(10);
const MIB: u64 = 1 << 20;
/// What all Redis clients together may make the node hold.
const HELD: u64 = 512 * MIB;
/// What a connection may cost that holds next to nothing.
const EACH: u64 = 48 << 10;
/// HTTP's connections at a time.
const HTTP: usize = 128;

/// Past the harness, which keeps what passing tests print to itself.
fn say(what: &str) {
    let _ = writeln!(io::stderr(), "cli_hostile_connections: {what}");
}

/// How many connections there are to be: as asked for, or as the system permits this process.
fn count() -> usize {
    let asked = std::env::var("DOGSLED_CONNECTIONS").ok().map(|count| count.parse().expect("a number"));
    let (asked, limit) = (asked.unwrap_or(2_000_usize), getrlimit(Resource::Nofile));
    // Those of HTTP and of the test itself.
    let wanted = asked as u64 + 1_500;
    let permitted = limit.maximum.map_or(wanted, |most| most.min(wanted));
    if limit.current.is_some_and(|current| current < permitted) {
        let raised = Rlimit { current: Some(permitted), maximum: limit.maximum };
        setrlimit(Resource::Nofile, raised).expect("up to the hard limit it is permitted");
    }
    if permitted < wanted {
        say(&format!("the system permits {permitted} open files: not {asked} connections"));
    }
    (permitted - 1_500) as usize
}

fn redis(port: &str) -> TcpStream {
    let stream = TcpStream::connect(format!("127.0.0.1:{port}")).expect("the port is open");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream
}

/// Asks, and reads until the reply ends as expected.
#[track_caller]
fn ask(stream: &mut TcpStream, request: &str, expected: &str) {
    stream.write_all(request.as_bytes()).expect("it is taken");
    let mut reply = vec![0; expected.len()];
    stream.read_exact(&mut reply).expect("a reply in time");
    assert_eq!(String::from_utf8_lossy(&reply), expected);
}

fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        // A connection that is closed with bytes unread is reset.
        let is_end = matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
        assert!(is_end, "it was not ended: {error}, after \"{}\"", bytes.escape_ascii());
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn resident(served: &Served) -> u64 {
    let path = format!("/proc/{}/status", served.id());
    let status = std::fs::read_to_string(path).expect("it runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a size");
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().expect("a number") << 10
}

#[test]
fn thousands_of_slow_and_hostile_connections_are_bounded_and_others_are_served() {
    let sandbox = Sandbox::new();
    let count = count();
    let (listen, http) = (free_address(), free_address());
    let arguments = ["--listen", &listen, "--http", &http, "--redis", "127.0.0.1:0", "--max-connections"];
    let mut served = sandbox.serving(&[&arguments[..], &[&count.to_string()]].concat());
    let said = served.says("\"event\":\"redis\"");
    let port = said.split("127.0.0.1:").nth(1).and_then(|rest| rest.split('"').next()).expect("a port");
    let dogsled = |arguments: &[&str]| -> Run {
        let certs = sandbox.argument("dogsled-data/dev-certs");
        let mut command = sandbox.bare(&["--connect", &listen, "--certs", &certs]);
        command.args(arguments);
        run(command)
    };
    let mut good = redis(port);
    let value = "x".repeat(256 << 10);
    ask(&mut good, &format!("*3\r\n$3\r\nSET\r\n$3\r\nbig\r\n${}\r\n{value}\r\n", value.len()), "+OK\r\n");
    dogsled(&["put", "greeting", "hello"]).ok();
    let before = resident(&served);

    let began = Instant::now();
    let (mut slow, mut told) = (Vec::new(), 0);
    for number in 0..count - 1 {
        let mut stream = redis(port);
        let sent = match number % 3 {
            0 => Ok(()),
            // It claims much, and brings a little of it.
            1 => {
                stream.write_all(format!("*2\r\n$3\r\nGET\r\n$400000000\r\n{}", "y".repeat(2_000)).as_bytes())
            }
            // 4 MiB, which it never reads.
            _ => stream.write_all(&b"*2\r\n$3\r\nGET\r\n$3\r\nbig\r\n".repeat(16)),
        };
        // One that is closed meanwhile makes room for another.
        told += usize::from(sent.is_err());
        slow.push(stream);
        if number % 200 == 0 {
            ask(&mut good, "PING\r\n", "+PONG\r\n");
        }
    }
    say(&format!(
        "{} Redis clients, {told} of them refused already, after {:?}",
        slow.len(),
        began.elapsed()
    ));
    let mut heads = Vec::new();
    for _ in 0..HTTP + count / 8 {
        let mut stream = TcpStream::connect(&http).expect("the port is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\nx: ");
        heads.push(stream);
    }
    // What looks like the first packets of connections, from many addresses.
    let sockets: Vec<UdpSocket> = (0..32).map(|_| UdpSocket::bind("127.0.0.1:0").expect("a port")).collect();
    for number in 0..count {
        let mut packet = vec![0xc3, 0, 0, 0, 1, 8];
        packet.extend_from_slice(&(number as u64).to_be_bytes());
        packet.extend_from_slice(&[8, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0x44, 0x82]);
        packet.resize(1200, number as u8);
        sockets[number % sockets.len()].send_to(&packet, &listen).expect("it is sent");
    }

    // Those who behave are served, over each protocol.
    let began = Instant::now();
    ask(&mut good, "*2\r\n$3\r\nGET\r\n$8\r\nnot-here\r\n", "$-1\r\n");
    assert_eq!(dogsled(&["get", "greeting"]).ok(), "hello\n");
    dogsled(&["put", "more", "words"]).ok();
    assert!(began.elapsed() < PATIENCE, "it took {:?}", began.elapsed());
    // Whoever is over a limit is told so.
    let refused = heads.pop().expect("there are many");
    let refused = rest(refused);
    assert!(refused.starts_with("HTTP/1.1 503 ") && refused.contains("as many connections"), "{refused:?}");
    std::thread::sleep(Duration::from_secs(1));
    let after = resident(&served);
    let allowed = before + HELD + count as u64 * EACH + 128 * MIB;
    say(&format!("resident: {} MiB before, {} MiB with them", before / MIB, after / MIB));
    assert!(after < allowed, "{} MiB, allowed are {}", after / MIB, allowed / MIB);

    // As many as there may be, and one more.
    let mut more = Vec::new();
    let over = loop {
        let mut stream = redis(port);
        stream.write_all(b"PING\r\n").expect("it is sent");
        let mut reply = [0; 5];
        match stream.read_exact(&mut reply) {
            Ok(()) if reply == *b"+PONG" => more.push(stream),
            _ => break String::from_utf8_lossy(&reply).into_owned() + &rest(stream),
        }
        assert!(more.len() <= count, "all are let in");
    };
    assert_eq!(over, "-ERR max number of clients reached\r\n");
    ask(&mut good, "PING\r\n", "+PONG\r\n");

    drop((slow, heads, more));
    let until = Instant::now() + PATIENCE;
    loop {
        let mut stream = redis(port);
        let mut reply = [0; 7];
        if stream.write_all(b"PING\r\n").is_ok()
            && stream.read_exact(&mut reply).is_ok()
            && reply == *b"+PONG\r\n"
        {
            break;
        }
        assert!(Instant::now() < until, "there is no room again");
    }
    let metrics = Metrics::parse(&get(&http, "/metrics").body);
    assert!(metrics.sum("dogsled_connections_refused_total", &["too_many_http"]) >= 1.0);
    assert_eq!(served.terminate(), 0);
}
