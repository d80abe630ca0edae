//! A real process on a real file system, killed with `SIGKILL` at random moments, again and again
//! on the same directory. What it was told is durable must be there, everything is a prefix of
//! what it did, and transactions are whole.
//!
//! The child is this test's own binary, started again with [`CHILD`] set. It reports what was
//! acknowledged over a pipe, after it was acknowledged; the parent reads the pipe to its end.
//!
//! `DOGSLED_KILLS=n` kills `n` times instead of the few that CI does; `DOGSLED_SEED=n` gives the
//! moments of the kills.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use dogsled::transaction::TransactionOptions;
use dogsled::{Batch, Config, Db, Durability, IVec, Result, Transactional, Tree};

/// Holds the directory when the process is the child.
const CHILD: &str = "DOGSLED_KILL_NINE_DIRECTORY";

const ACCOUNTS: u64 = 8;
const EACH: u64 = 1_000;

/// Small segments and little memory, so that rotation and checkpoints happen in a moment.
fn open(directory: &Path) -> Result<Db> {
    Config::new()
        .path(directory)
        .segment_size(64 << 10)
        .cache_capacity(8 << 20)
        .flush_every_ms(Some(20))
        .open()
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_be_bytes(bytes.try_into().expect("eight bytes"))
}

fn stored(tree: &Tree, key: &str) -> u64 {
    tree.get(key).expect("a read").map_or(0, |value| number(&value))
}

/// What a value must be, so that a wrong one is told from a right one.
fn value_of(number: u64) -> Vec<u8> {
    let length = 1 + (number.wrapping_mul(0x9e37_79b9) >> 3) % 700;
    (0..length).map(|at| (number.wrapping_mul(31).wrapping_add(at * 7)) as u8).collect()
}

fn last_key(tree: &Tree) -> u64 {
    tree.last().expect("a read").map_or(0, |(key, _)| number(&key))
}

/// One write call per line: a line that ends was acknowledged.
fn tell(what: &str, number: u64) {
    let line = format!("{what} {number}\n");
    // The pipe is gone when the parent is: so is the purpose of this process.
    if std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush()).is_err() {
        std::process::exit(1);
    }
}

/// Writes until it is killed.
fn child(directory: &Path) -> Result<()> {
    let db = open(directory)?;
    let trees = ["log", "index", "buffered", "accounts"].map(|name| db.open_tree(name).expect("a tree"));
    let [log, index, buffered, accounts] = &trees;
    for account in 0..ACCOUNTS {
        accounts
            .compare_and_swap(format!("account {account}"), None::<&[u8]>, Some(EACH.to_be_bytes().to_vec()))?
            .ok();
    }
    db.flush()?;
    tell("ready", 1);
    std::thread::scope(|scope| {
        // Synced writes to two trees in one transaction, numbered.
        scope.spawn(|| {
            for next in last_key(log) + 1.. {
                let options = TransactionOptions::new().durability(Durability::Synced);
                let done: Result<(), dogsled::transaction::TransactionError> =
                    (log, index).transaction_with(options, |(log, index)| {
                        log.insert(next.to_be_bytes(), value_of(next))?;
                        index.insert(next.to_be_bytes(), b"here")?;
                        Ok(())
                    });
                done.expect("a sound disk");
                tell("log", next);
            }
        });
        // Buffered writes, acknowledged by a flush.
        scope.spawn(|| {
            for next in last_key(buffered) + 1.. {
                buffered.insert(next.to_be_bytes(), value_of(next)).expect("a sound disk");
                if next % 64 == 0 {
                    buffered.flush().expect("a sound disk");
                    tell("buffered", next);
                }
            }
        });
        // Transfers between accounts: two threads that conflict. Each counts its own.
        for teller in ["ann", "ben"] {
            scope.spawn(move || {
                let mut random = stored(accounts, teller) + 1;
                loop {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let [from, to] = [random >> 33, random >> 48].map(|bits| format!("account {}", bits % ACCOUNTS));
                    let options = TransactionOptions::new().durability(Durability::Synced);
                    let count: Result<u64, dogsled::transaction::TransactionError> =
                        accounts.transaction_with(options, |accounts| {
                            let read = |key: &str| -> Result<u64, dogsled::transaction::UnabortableTransactionError> {
                                Ok(accounts.get(key)?.map_or(0, |value| number(&value)))
                            };
                            let count = read(teller)? + 1;
                            let (rich, poor) = (read(&from)?, read(&to)?);
                            let amount = (random % 10).min(rich);
                            if from != to {
                                accounts.insert(from.as_bytes(), (rich - amount).to_be_bytes())?;
                                accounts.insert(to.as_bytes(), (poor + amount).to_be_bytes())?;
                            }
                            accounts.insert(teller.as_bytes(), count.to_be_bytes())?;
                            Ok(count)
                        });
                    tell(teller, count.expect("a sound disk"));
                }
            });
        }
        // Batches that are whole or not there, and checkpoints.
        for round in 0u64.. {
            let mut batch = Batch::default();
            for key in 0..20u64 {
                batch.insert(key.to_be_bytes().to_vec(), round.to_be_bytes().to_vec());
            }
            db.apply_batch(batch).expect("a sound disk");
            if round % 40 == 39 {
                db.checkpoint().expect("a sound disk");
            }
        }
    });
    Ok(())
}

/// Everything that must hold after a kill, given what was acknowledged.
fn check(db: &Db, acknowledged: &BTreeMap<String, u64>, context: &str) {
    let told = |what: &str| acknowledged.get(what).copied().unwrap_or(0);
    for name in ["log", "buffered"] {
        let tree = db.open_tree(name).expect("a tree");
        let mut last = 0;
        for entry in tree.iter() {
            let (key, value) = entry.expect("an entry");
            assert_eq!(number(&key), last + 1, "{context}: {name} has a hole");
            last = number(&key);
            assert_eq!(value, IVec::from(value_of(last)), "{context}: {name} {last}");
        }
        assert!(last >= told(name), "{context}: {name} {} was acknowledged, {last} is the last", told(name));
        assert_eq!(tree.len() as u64, last, "{context}: {name}");
    }
    let [log, index, accounts] = ["log", "index", "accounts"].map(|name| db.open_tree(name).expect("a tree"));
    assert!(
        log.iter()
            .keys()
            .map(|key| key.expect("a key"))
            .eq(index.iter().keys().map(|key| key.expect("a key"))),
        "{context}: half a transaction"
    );
    let mut sum = 0;
    for entry in accounts.scan_prefix("account ") {
        sum += number(&entry.expect("an entry").1);
    }
    assert!(sum == ACCOUNTS * EACH || acknowledged.is_empty(), "{context}: the accounts hold {sum} together");
    for teller in ["ann", "ben"] {
        let count = stored(&accounts, teller);
        assert!(
            count >= told(teller),
            "{context}: {teller}'s transfer {} is gone, {count} are there",
            told(teller)
        );
    }
    let rounds: std::collections::BTreeSet<IVec> =
        db.iter().values().map(|value| value.expect("a value")).collect();
    assert!(rounds.len() <= 1, "{context}: parts of several batches");
}

#[test]
fn what_was_acknowledged_survives_kill_nine_at_any_moment() {
    if let Some(directory) = std::env::var_os(CHILD) {
        child(Path::new(&directory)).expect("the child opens the database");
        return;
    }
    let environment = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let kills = environment("DOGSLED_KILLS").unwrap_or(12);
    let mut random = environment("DOGSLED_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("DOGSLED_SEED={random}");
    let directory = tempfile::tempdir().expect("a directory");
    let database = directory.path().join("db");
    let mut acknowledged: BTreeMap<String, u64> = BTreeMap::new();
    let mut lives = 0;
    for kill in 0..kills {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let context = format!("kill {kill}");
        let mut child = Command::new(std::env::current_exe().expect("this binary"))
            .args([
                "kill_nine::what_was_acknowledged_survives_kill_nine_at_any_moment",
                "--exact",
                "--nocapture",
            ])
            .env(CHILD, &database)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("a child");
        let mut output = BufReader::new(child.stdout.take().expect("a pipe"));
        // One in four is killed while it opens and recovers.
        let mut line = String::new();
        let wait_for_ready = !(random >> 40).is_multiple_of(4);
        while wait_for_ready && !line.starts_with("ready") {
            line.clear();
            let read = output.read_line(&mut line).expect("a line");
            assert!(read > 0, "{context}: the child died by itself: {}", error_output(&mut child));
        }
        std::thread::sleep(Duration::from_micros(
            (random >> 20) % if wait_for_ready { 250_000 } else { 40_000 },
        ));
        assert!(child.try_wait().expect("a state").is_none(), "{context}: {}", error_output(&mut child));
        child.kill().expect("SIGKILL");
        child.wait().expect("it is dead");
        loop {
            line.clear();
            // A line without its end was cut by the kill.
            if output.read_line(&mut line).expect("a line") == 0 || !line.ends_with('\n') {
                break;
            }
            if let Some((what, number)) = line.trim_end().split_once(' ')
                && let Ok(number) = number.parse::<u64>()
            {
                let newest = acknowledged.entry(what.to_owned()).or_default();
                *newest = number.max(*newest);
            }
        }
        lives += u64::from(wait_for_ready);
        let db = open(&database).unwrap_or_else(|error| panic!("{context}: it does not open: {error}"));
        check(&db, &acknowledged, &context);
        drop(db);
    }
    println!("after {kills} kills: {acknowledged:?}");
    for what in ["log", "buffered", "ann", "ben"] {
        assert!(lives == 0 || acknowledged.contains_key(what), "no {what} was ever acknowledged");
    }
    let db = open(&database).expect("it opens");
    let report = db.verify().expect("it can be verified");
    assert!(report.is_sound(), "{report:?}");
}

fn error_output(child: &mut std::process::Child) -> String {
    let mut text = String::new();
    if let Some(mut pipe) = child.stderr.take() {
        let _ = std::io::Read::read_to_string(&mut pipe, &mut text);
    }
    text
}
