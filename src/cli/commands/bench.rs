//! `bench`: what this machine gives, measured in a minute.
//!
//! Each round does a slice of every kind of work, so that all of them meet the same weather, and
//! the median of the rounds counts. Durable puts stand beside raw 4 KiB overwrites of zero-filled
//! blocks, each followed by `fdatasync`, on the same file system in the same round: their ratio
//! says something about dogsled, the rates alone say more about the disk. Low-priority threads
//! keep the cores awake meanwhile, because an idle virtual machine completes a sync only at its
//! next timer tick. `benches/` compares with other databases; this is for a quick look.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dogsled::{Config, Db, Durability};
use serde_json::json;

use crate::cli::args::{BenchArgs, Global};
use crate::cli::exit::{Failure, Result};
use crate::cli::output::{self, Output};
use crate::cli::progress::Progress;

const KEY_LENGTH: usize = 16;
const BLOCK_LENGTH: usize = 4096;
/// Raw writes go around in a file of this many blocks.
const RAW_BLOCKS: u64 = 4096;
const WRITERS: u64 = 16;
const SCAN_LENGTH: usize = 100;

/// One kind of work and its rate in each round.
struct Row {
    work: &'static str,
    unit: &'static str,
    /// Whether the raw write is what to compare it with.
    durable: bool,
    rates: Vec<f64>,
}

pub(crate) fn bench(global: &Global, out: &mut Output, args: &BenchArgs) -> Result<()> {
    let place = args.place.as_deref().unwrap_or(Path::new("."));
    let directory = tempfile::Builder::new()
        .prefix("dogsled-bench-")
        .tempdir_in(place)
        .map_err(|error| Failure::io(format!("making a directory in {}", place.display()), &error))?;
    let raw = raw_file(directory.path()).map_err(|error| Failure::io("the file for raw writes", &error))?;
    let db = Config::new()
        .path(directory.path().join("database"))
        .cache_capacity(global.cache_bytes())
        .durability(Durability::Buffered)
        .open()?;
    let mut rows = [
        ("raw 4 KiB overwrite + fdatasync", "writes", true),
        ("durable put, 1 thread", "puts", true),
        ("durable put, 16 threads", "puts", true),
        ("buffered put", "puts", false),
        ("get", "gets", false),
        ("scan of 100", "scans", false),
    ]
    .map(|(work, unit, durable)| Row { work, unit, durable, rates: Vec::new() });

    let progress =
        Progress::items(Some(u64::from(args.rounds) * rows.len() as u64), "measuring", global.quiet);
    let mut step = 0;
    for round in 0..u64::from(args.rounds) {
        for (kind, row) in rows.iter_mut().enumerate() {
            let rate = match kind {
                0 => durable(|| raw_writes(&raw, round, args.syncs))?,
                1 => durable(|| synced_puts(&db, args, round, 1))?,
                2 => durable(|| synced_puts(&db, args, round, WRITERS))?,
                3 => buffered_puts(&db, args, round)?,
                4 => gets(&db, args, round)?,
                _ => scans(&db, args, round)?,
            };
            row.rates.push(rate);
            step += 1;
            progress.set(step);
        }
    }
    drop(progress);
    report(out, args, &rows)
}

fn report(out: &mut Output, args: &BenchArgs, rows: &[Row]) -> Result<()> {
    let raw = median(&rows[0].rates);
    if out.json {
        for row in rows {
            let (low, high) = extremes(&row.rates);
            out.document(&json!({
                "work": row.work, "unit": format!("{}/s", row.unit),
                "min": low, "median": median(&row.rates), "max": high,
                "of_raw": row.durable.then(|| median(&row.rates) / raw),
            }))?;
        }
        return Ok(());
    }
    out.line(format_args!(
        "{} of {KEY_LENGTH} + {} bytes, {}, cores kept awake during syncs",
        output::count(args.records, "record"),
        args.value_size,
        output::count(u64::from(args.rounds), "round")
    ))?;
    out.line(format_args!("{:<32} {:>11} {:>11} {:>11}  of raw", "per second", "min", "median", "max"))?;
    for row in rows {
        let (low, high) = extremes(&row.rates);
        let middle = median(&row.rates);
        let share = if row.durable { format!("{:.2}", middle / raw) } else { String::new() };
        let [low, middle, high] = [low, middle, high].map(|rate| output::number(rate as u64));
        let line = format!("{:<32} {low:>11} {middle:>11} {high:>11}  {share}", row.work);
        out.line(line.trim_end())?;
    }
    Ok(())
}

fn median(rates: &[f64]) -> f64 {
    let mut sorted = rates.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn extremes(rates: &[f64]) -> (f64, f64) {
    rates.iter().fold((f64::INFINITY, 0.0), |(low, high), rate| (low.min(*rate), high.max(*rate)))
}

fn per_second(count: u64, since: Instant) -> f64 {
    count as f64 / since.elapsed().max(Duration::from_nanos(1)).as_secs_f64()
}

/// Runs `work` while no core falls asleep.
fn durable(work: impl FnOnce() -> Result<f64>) -> Result<f64> {
    let done = Arc::new(AtomicBool::new(false));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let spinners: Vec<_> = (0..cores)
        .map(|_| {
            let done = Arc::clone(&done);
            std::thread::spawn(move || {
                // On Linux this is the priority of the thread. Where it fails the figures are
                // lower, which is no reason to show none.
                let _ = rustix::process::nice(19);
                while !done.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        })
        .collect();
    let result = work();
    done.store(true, Ordering::Relaxed);
    for spinner in spinners {
        spinner.join().expect("a spinner only spins");
    }
    result
}

/// A file of zeros, all of them on the disk.
fn raw_file(directory: &Path) -> std::io::Result<File> {
    let file = File::options().create_new(true).read(true).write(true).open(directory.join("raw"))?;
    let zeros = vec![0; BLOCK_LENGTH * 64];
    for part in 0..RAW_BLOCKS / 64 {
        file.write_all_at(&zeros, part * zeros.len() as u64)?;
    }
    file.sync_all()?;
    Ok(file)
}

fn raw_writes(file: &File, round: u64, count: u64) -> Result<f64> {
    let block = vec![round as u8 + 1; BLOCK_LENGTH];
    let start = Instant::now();
    for number in 0..count {
        let offset = (round * count + number) % RAW_BLOCKS * BLOCK_LENGTH as u64;
        file.write_all_at(&block, offset)
            .and_then(|()| file.sync_data())
            .map_err(|error| Failure::io("a raw write", &error))?;
    }
    Ok(per_second(count, start))
}

/// Keys in an order that is random but the same for every run.
fn key(number: u64) -> [u8; KEY_LENGTH] {
    let mut key = [0; KEY_LENGTH];
    key[..8].copy_from_slice(&mix(number).to_be_bytes());
    key[8..].copy_from_slice(&number.to_be_bytes());
    key
}

/// The finalizer of SplitMix64: a bijection whose output looks random.
fn mix(number: u64) -> u64 {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

fn synced_puts(db: &Db, args: &BenchArgs, round: u64, threads: u64) -> Result<f64> {
    let each = args.syncs.div_ceil(if threads == 1 { 1 } else { 4 });
    // Its own part of the key space, so that reads below find what they expect.
    let base = (1 << 40) + (round << 32) + (threads << 24);
    let start = Instant::now();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..threads)
            .map(|writer| {
                scope.spawn(move || -> Result<()> {
                    let value = vec![writer as u8; args.value_size as usize];
                    for number in 0..each {
                        db.insert_with(key(base + writer * each + number), &value, Durability::Synced)?;
                    }
                    Ok(())
                })
            })
            .collect();
        writers.into_iter().try_for_each(|writer| writer.join().expect("a writer returns its errors"))
    })?;
    Ok(per_second(each * threads, start))
}

/// The first round inserts all records, later ones overwrite them.
fn buffered_puts(db: &Db, args: &BenchArgs, round: u64) -> Result<f64> {
    let value = vec![round as u8; args.value_size as usize];
    let start = Instant::now();
    for number in 0..args.records {
        db.insert(key(number), &value)?;
    }
    let rate = per_second(args.records, start);
    db.flush()?;
    Ok(rate)
}

fn gets(db: &Db, args: &BenchArgs, round: u64) -> Result<f64> {
    let start = Instant::now();
    for number in 0..args.records {
        let wanted = mix(number ^ round) % args.records;
        if db.get(key(wanted))?.is_none() {
            return Err(Failure::new(crate::cli::exit::Code::Corrupt, format!("record {wanted} is gone")));
        }
    }
    Ok(per_second(args.records, start))
}

fn scans(db: &Db, args: &BenchArgs, round: u64) -> Result<f64> {
    let count = (args.records / 20).max(1);
    let start = Instant::now();
    for number in 0..count {
        let first = key(mix(number ^ round) % args.records);
        for entry in db.range(first..).take(SCAN_LENGTH) {
            std::hint::black_box(entry?);
        }
    }
    Ok(per_second(count, start))
}
