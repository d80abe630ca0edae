//! Traffic of Redis clients, each with something that must hold whatever happens to the nodes meanwhile: a counter that
//! many count on, money that is moved in `MULTI`, and keys that come and go.
//!
//! A client talks to one node, and goes to the next when its connection breaks or nothing comes. What was asked then may
//! have happened or not; so it may if the answer begins with `UNKNOWN`. After every other error it has not.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// How long a client waits for an answer: longer than a node that lives takes to say that it does not know.
const ANSWER: Duration = Duration::from_secs(15);
const COUNTER: &str = "redis:counted";
/// Accounts, each of another partition as a rule, and what is on all of them together.
const ACCOUNTS: [&str; 4] = ["redis:ann", "redis:ben", "redis:cem", "redis:dag"];
const TOTAL: i64 = 4_000;
/// Keys that a worker has at a time.
const KEYS: u64 = 30;

#[derive(Debug, PartialEq, Eq)]
enum Reply {
    Text(String),
    Number(i64),
    Bulk(Option<String>),
    Array(Vec<Reply>),
    Error(String),
}

/// What came of a request.
#[derive(Debug)]
enum Outcome {
    Done(Reply),
    /// It was not carried out.
    Refused,
    /// Nobody knows.
    Perhaps,
}

/// A client of one node at a time.
struct Redis {
    addresses: Vec<String>,
    next: usize,
    stream: Option<BufReader<TcpStream>>,
}

impl Redis {
    fn new(addresses: &[String], first: usize) -> Redis {
        Redis { addresses: addresses.to_vec(), next: first, stream: None }
    }

    /// Sends several requests at once, and has the reply to the last.
    async fn ask(&mut self, requests: &[&[&str]]) -> Outcome {
        if self.stream.is_none() {
            let address = &self.addresses[self.next % self.addresses.len()];
            self.next += 1;
            match timeout(Duration::from_secs(1), TcpStream::connect(address)).await {
                Ok(Ok(stream)) => self.stream = Some(BufReader::new(stream)),
                _ => return Outcome::Refused,
            }
        }
        let stream = self.stream.as_mut().expect("it was just connected");
        let asked = async {
            let mut bytes = String::new();
            for words in requests {
                bytes += &format!("*{}\r\n", words.len());
                words.iter().for_each(|word| bytes += &format!("${}\r\n{word}\r\n", word.len()));
            }
            stream.write_all(bytes.as_bytes()).await?;
            let mut last = Reply::Bulk(None);
            for _ in requests {
                last = Box::pin(reply(stream)).await?;
            }
            io::Result::Ok(last)
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(Reply::Error(why))) if why.starts_with("UNKNOWN") => Outcome::Perhaps,
            Ok(Ok(Reply::Error(why))) => {
                let known = ["CLUSTERDOWN", "LOADING", "EXECABORT"];
                assert!(known.iter().any(|word| why.starts_with(word)), "{requests:?} was answered {why:?}");
                Outcome::Refused
            }
            Ok(Ok(reply)) => Outcome::Done(reply),
            _ => {
                self.stream = None;
                Outcome::Perhaps
            }
        }
    }
}

async fn reply(stream: &mut BufReader<TcpStream>) -> io::Result<Reply> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 || !line.ends_with("\r\n") {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (kind, rest) = line.trim_end().split_at(1);
    let number = || rest.parse::<i64>().expect("a number");
    Ok(match kind {
        "+" => Reply::Text(rest.to_owned()),
        "-" => Reply::Error(rest.to_owned()),
        ":" => Reply::Number(number()),
        "$" if number() < 0 => Reply::Bulk(None),
        "$" => {
            let mut bytes = vec![0; number() as usize + 2];
            stream.read_exact(&mut bytes).await?;
            bytes.truncate(bytes.len() - 2);
            Reply::Bulk(Some(String::from_utf8(bytes).expect("text")))
        }
        "*" if number() < 0 => Reply::Bulk(None),
        "*" => {
            let mut parts = Vec::new();
            for _ in 0..number() {
                parts.push(Box::pin(reply(stream)).await?);
            }
            Reply::Array(parts)
        }
        other => panic!("a reply that begins with {other:?}"),
    })
}

/// How often something was certainly done, and perhaps.
#[derive(Default, Debug)]
struct Counted {
    certainly: u64,
    perhaps: u64,
}

#[derive(Clone)]
struct Shared {
    addresses: Vec<String>,
    stop: Arc<AtomicBool>,
    progress: Arc<AtomicU64>,
}

impl Shared {
    /// Whether a worker is to make another call.
    async fn goes_on(&self) -> bool {
        tokio::time::sleep(Duration::from_millis(2)).await;
        !self.stop.load(Ordering::Relaxed)
    }

    fn progress(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }
}

/// See the [module](self).
pub(crate) struct RedisTraffic {
    shared: Shared,
    counts: Vec<JoinHandle<Counted>>,
    moves: Vec<JoinHandle<u64>>,
    churn: Vec<JoinHandle<u64>>,
    audit: JoinHandle<u64>,
}

impl RedisTraffic {
    /// Of nodes that serve Redis clients at these addresses, all of them well.
    pub(crate) async fn start(addresses: &[String]) -> RedisTraffic {
        let each = TOTAL / ACCOUNTS.len() as i64;
        for account in ACCOUNTS {
            let set = Redis::new(addresses, 0).ask(&[&["SET", account, &each.to_string()]]).await;
            assert!(matches!(set, Outcome::Done(_)), "{set:?}");
        }
        let shared = Shared { addresses: addresses.to_vec(), stop: Arc::default(), progress: Arc::default() };
        let counts = (0..3).map(|worker| tokio::spawn(count(shared.clone(), worker))).collect();
        let moves = (0..2).map(|worker| tokio::spawn(move_money(shared.clone(), worker))).collect();
        let churn = (0..2).map(|worker| tokio::spawn(come_and_go(shared.clone(), worker))).collect();
        let audit = tokio::spawn(audit(shared.clone()));
        RedisTraffic { shared, counts, moves, churn, audit }
    }

    /// Calls that were carried out.
    pub(crate) fn carried_out(&self) -> u64 {
        self.shared.progress.load(Ordering::Relaxed)
    }

    /// Ends it when all nodes are well, and looks whether everything is as it must be. How many calls were carried out.
    pub(crate) async fn stop(self) -> u64 {
        self.shared.stop.store(true, Ordering::Relaxed);
        let mut counted = Counted::default();
        for worker in self.counts {
            let one = worker.await.expect("nothing was seen that must not be");
            counted.certainly += one.certainly;
            counted.perhaps += one.perhaps;
        }
        let mut carried_out = counted.certainly;
        // Of each kind something must have been done, or it shows nothing.
        for (kind, workers) in [("moves", self.moves), ("churn", self.churn), ("audits", vec![self.audit])] {
            let before = carried_out;
            for worker in workers {
                carried_out += worker.await.expect("nothing was seen that must not be");
            }
            assert!(carried_out > before, "no {kind}");
        }
        let mut redis = Redis::new(&self.shared.addresses, 0);
        match redis.ask(&[&[&["MGET"], &ACCOUNTS[..]].concat()]).await {
            Outcome::Done(Reply::Array(found)) => assert_eq!(sum(&found), TOTAL, "{found:?}"),
            other => panic!("all nodes are well again: {other:?}"),
        }
        let stands = match redis.ask(&[&["GET", COUNTER]]).await {
            Outcome::Done(Reply::Bulk(Some(text))) => text.parse::<u64>().expect("a number"),
            other => panic!("all nodes are well again: {other:?}"),
        };
        assert!(
            (counted.certainly..=counted.certainly + counted.perhaps).contains(&stands),
            "the counter stands at {stands}, and was counted on {counted:?}"
        );
        carried_out
    }
}

async fn count(shared: Shared, worker: usize) -> Counted {
    let (mut redis, mut counted) = (Redis::new(&shared.addresses, worker), Counted::default());
    let mut highest = 0;
    while shared.goes_on().await {
        match redis.ask(&[&["INCR", COUNTER]]).await {
            Outcome::Done(Reply::Number(stands)) => {
                assert!(stands > highest, "counted to {stands} after {highest}");
                (highest, counted.certainly) = (stands, counted.certainly + 1);
                shared.progress();
            }
            Outcome::Done(other) => panic!("INCR was answered {other:?}"),
            Outcome::Refused => {}
            Outcome::Perhaps => counted.perhaps += 1,
        }
    }
    counted
}

/// Moves money from one account to another in `MULTI`: both or neither.
async fn move_money(shared: Shared, worker: usize) -> u64 {
    let (mut redis, mut done) = (Redis::new(&shared.addresses, worker + 1), 0);
    for round in worker.. {
        if !shared.goes_on().await {
            break;
        }
        let (from, to) = (ACCOUNTS[round % 4], ACCOUNTS[(round * 7 + worker + 1) % 4]);
        let amount = (1 + round % 5).to_string();
        let moved = [&["MULTI"][..], &["DECRBY", from, &amount], &["INCRBY", to, &amount], &["EXEC"]];
        match redis.ask(&moved).await {
            Outcome::Done(Reply::Array(parts)) => {
                assert!(matches!(parts[..], [Reply::Number(_), Reply::Number(_)]), "{parts:?}");
                done += 1;
                shared.progress();
            }
            Outcome::Done(other) => panic!("EXEC was answered {other:?}"),
            Outcome::Refused | Outcome::Perhaps => {}
        }
    }
    done
}

/// What is on all accounts.
fn sum(values: &[Reply]) -> i64 {
    let value = |reply: &Reply| match reply {
        Reply::Bulk(Some(text)) => text.parse::<i64>().expect("a number"),
        other => panic!("an account has {other:?}"),
    };
    values.iter().map(value).sum()
}

/// Adds up all accounts: money that is under way must never be seen.
async fn audit(shared: Shared) -> u64 {
    let (mut redis, mut done) = (Redis::new(&shared.addresses, 2), 0);
    let accounts = [&["MGET"], &ACCOUNTS[..]].concat();
    while shared.goes_on().await {
        if let Outcome::Done(Reply::Array(values)) = redis.ask(&[&accounts]).await {
            assert_eq!(sum(&values), TOTAL, "an EXEC was seen half done: {values:?}");
            done += 1;
            shared.progress();
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    done
}

/// Sets keys that nobody else writes, reads them by way of any node, and removes them again.
async fn come_and_go(shared: Shared, worker: usize) -> u64 {
    let (mut writes, mut reads) =
        (Redis::new(&shared.addresses, worker), Redis::new(&shared.addresses, worker + 1));
    let (mut done, mut uncertain) = (0, std::collections::BTreeSet::new());
    for round in 0_u64.. {
        if !shared.goes_on().await {
            break;
        }
        let (key, value) = (format!("redis:{worker}:{}", round % KEYS), round.to_string());
        let removes = round % 3 == 0;
        let request: &[&str] = if removes { &["DEL", &key] } else { &["SET", &key, &value] };
        match writes.ask(&[request]).await {
            Outcome::Done(_) => {}
            Outcome::Refused => continue,
            Outcome::Perhaps => {
                // It may still happen, and late.
                uncertain.insert(key);
                continue;
            }
        }
        done += 1;
        shared.progress();
        if uncertain.contains(&key) {
            continue;
        }
        if let Outcome::Done(found) = reads.ask(&[&["GET", &key]]).await {
            assert_eq!(found, Reply::Bulk((!removes).then_some(value)), "{key}, which nobody else writes");
        }
    }
    done
}
