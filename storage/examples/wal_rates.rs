//! How fast the WAL is, beside raw durable overwrites of the same disk.
//!
//! `cargo run --release -p dogsled-storage --example wal_rates [directory] [seconds per measurement]`
//!
//! Contestants run interleaved in short slices, and ratios are taken within each round: a machine
//! that does other things meanwhile slows all of a round down alike. Some virtual machines complete a
//! sync only at the next timer tick when their cores are idle, so low-priority processes spin
//! meanwhile to keep them awake.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use dogsled_storage::disk::{BLOCK_SIZE, Disk, OpenMode, RealDisk};
use dogsled_storage::wal::{StreamId, Wal, WalOptions};

const ROUNDS: usize = 15;
/// A put of a 16-byte key and a 100-byte value, with what an engine adds.
const RECORD: [u8; 130] = [7; 130];

struct Spinners(Vec<Child>);

impl Spinners {
    fn start() -> Spinners {
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let spin = || {
            Command::new("nice")
                .args(["-n", "19", "sh", "-c", "while :; do :; done"])
                .stdin(Stdio::null())
                .spawn()
        };
        let children: Vec<Child> = (0..cores).filter_map(|_| spin().ok()).collect();
        println!("{} low-priority spinners keep the cores awake", children.len());
        Spinners(children)
    }
}

impl Drop for Spinners {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Durable overwrites of zero-filled blocks, one after the other.
fn raw(directory: &std::path::Path, time: Duration) -> f64 {
    let path = directory.join("raw");
    let size = 64 << 20;
    if !path.exists() {
        let file = RealDisk.open(&path, OpenMode::Create).unwrap();
        file.write_at(0, &vec![0; size]).unwrap();
        file.sync().unwrap();
    }
    let file = RealDisk.open(&path, OpenMode::Aligned).unwrap();
    let bytes = vec![7; 2 * BLOCK_SIZE];
    let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
    let block = &bytes[start..start + BLOCK_SIZE];
    let (begun, mut done) = (Instant::now(), 0u64);
    while begun.elapsed() < time {
        file.write_at_synced(done * BLOCK_SIZE as u64 % size as u64, block).unwrap();
        done += 1;
    }
    done as f64 / begun.elapsed().as_secs_f64()
}

/// Appends by `threads` threads that take turns at the stream's next index, as commits do.
fn append(wal: &Wal, threads: usize, durable: bool, time: Duration) -> (f64, f64) {
    let next = parking_lot::Mutex::new(wal.last_index(StreamId(0)).map_or(1, |last| last + 1));
    let (stop, total) = (AtomicBool::new(false), AtomicU64::new(0));
    let groups = wal.stats().groups;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut done = 0u64;
                while !stop.load(Ordering::Relaxed) {
                    let ticket = {
                        let mut next = next.lock();
                        let ticket = wal.append(StreamId(0), *next, &[&RECORD[..30], &RECORD[30..]]).unwrap();
                        *next += 1;
                        ticket
                    };
                    if durable {
                        wal.wait_durable(ticket).unwrap();
                    }
                    done += 1;
                }
                total.fetch_add(done, Ordering::Relaxed);
            });
        }
        std::thread::sleep(time);
        stop.store(true, Ordering::Relaxed);
    });
    let total = total.into_inner() as f64;
    let seconds = begun.elapsed().as_secs_f64();
    let groups = (wal.stats().groups - groups).max(1) as f64;
    let last = wal.last_index(StreamId(0)).unwrap();
    let ticket = wal.purge_to(StreamId(0), last).unwrap();
    wal.wait_durable(ticket).unwrap();
    (total / seconds, total / groups)
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let parent = arguments.next().unwrap_or_else(|| ".".to_owned());
    let seconds: f64 = arguments.next().map_or(0.2, |text| text.parse().expect("seconds"));
    let time = Duration::from_secs_f64(seconds);
    let directory = std::path::Path::new(&parent).join(format!("wal_rates.{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let spinners = Spinners::start();
    let begun = Instant::now();
    let options = WalOptions::new(directory.join("wal"), 1);
    let wal = Wal::open(Arc::new(RealDisk), options.clone()).unwrap();
    println!("made in {:?}", begun.elapsed());

    let contestants: [(&str, usize, bool); 6] = [
        ("raw O_DIRECT|O_DSYNC 4 KiB", 0, true),
        ("durable, 1 thread", 1, true),
        ("durable, 16 threads", 16, true),
        ("durable, 64 threads", 64, true),
        ("buffered, 1 thread", 1, false),
        ("buffered, 2 threads", 2, false),
    ];
    let mut rates = vec![Vec::new(); contestants.len()];
    let mut sizes = vec![Vec::new(); contestants.len()];
    for _ in 0..ROUNDS {
        for (at, (_, threads, durable)) in contestants.iter().enumerate() {
            let (rate, size) = match threads {
                0 => (raw(&directory, time), 1.0),
                _ => append(&wal, *threads, *durable, time),
            };
            rates[at].push(rate);
            sizes[at].push(size);
        }
    }
    let median = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        (sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1])
    };
    println!(
        "{:28} {:>9} {:>9} {:>9} {:>8} {:>9}",
        "per second", "min", "median", "max", "x raw", "per group"
    );
    let ratios =
        |at: usize| -> Vec<f64> { rates[at].iter().zip(&rates[0]).map(|(rate, raw)| rate / raw).collect() };
    for (at, (name, ..)) in contestants.iter().enumerate() {
        let (low, middle, high) = median(&rates[at]);
        let per_group = median(&sizes[at]).1;
        let ratio = median(&ratios(at)).1;
        println!("{name:28} {low:9.0} {middle:9.0} {high:9.0} {ratio:8.2} {per_group:9.1}");
    }

    // Opening 64 MiB of small records.
    let mut index = wal.last_index(StreamId(0)).map_or(1, |last| last + 1);
    let first = index;
    for _ in 0..430_000 {
        wal.append(StreamId(1), index, &[&RECORD]).unwrap();
        index += 1;
    }
    println!("{:?}", wal.stats());
    wal.close().unwrap();
    let begun = Instant::now();
    let wal = Wal::open(Arc::new(RealDisk), options).unwrap();
    let opened = begun.elapsed();
    let begun = Instant::now();
    let mut bytes = 0;
    wal.replay(StreamId(1), 0, &mut |_, entry| {
        bytes += entry.len();
        Ok(())
    })
    .unwrap();
    println!(
        "{} entries: opened in {opened:?}, {bytes} bytes replayed in {:?}",
        index - first,
        begun.elapsed()
    );
    drop((wal, spinners));
    std::fs::remove_dir_all(&directory).unwrap();
}
