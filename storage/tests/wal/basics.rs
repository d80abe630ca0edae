//! What a WAL does while nothing goes wrong, and what it refuses to open.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dogsled_storage::disk::{Disk, Fault, Operation, RealDisk, SimulatedDisk};
use dogsled_storage::wal::{StreamId, Wal, WalOptions};
use dogsled_storage::{Error, Result};

const ONE: StreamId = StreamId(1);
const TWO: StreamId = StreamId(2);

fn options() -> WalOptions {
    WalOptions { segment_size: 64 << 10, seed: Some(1), threads: false, ..WalOptions::new("wal", 7) }
}

fn open(disk: &SimulatedDisk) -> Result<Wal> {
    Wal::open(Arc::new(disk.clone()), options())
}

fn entries(wal: &Wal, stream: StreamId) -> Vec<(u64, Vec<u8>)> {
    let mut found = Vec::new();
    wal.replay(stream, 0, &mut |index, bytes| {
        found.push((index, bytes.to_vec()));
        Ok(())
    })
    .unwrap();
    found
}

#[test]
fn entries_are_read_back_before_and_after_they_are_written_and_after_reopening() {
    let disk = SimulatedDisk::new(1);
    let wal = open(&disk).unwrap();
    assert!(wal.was_created());
    for index in 10..20u64 {
        wal.append(ONE, index, &[b"entry ", index.to_string().as_bytes()]).unwrap();
    }
    let expected: Vec<_> = (10..20u64).map(|index| (index, format!("entry {index}").into_bytes())).collect();
    let read = |wal: &Wal| {
        let read = wal.read(ONE, 10, 100, usize::MAX).unwrap();
        read.into_iter().map(|(index, bytes)| (index, bytes.to_vec())).collect::<Vec<_>>()
    };
    assert_eq!(read(&wal), expected, "pending");
    wal.write_out().unwrap();
    assert_eq!(read(&wal), expected, "written");
    wal.sync().unwrap();
    assert_eq!(entries(&wal, ONE), expected);
    drop(wal);
    let wal = open(&disk).unwrap();
    assert!(!wal.was_created());
    assert_eq!(read(&wal), expected, "reopened");
    assert_eq!((wal.first_index(ONE), wal.last_index(ONE)), (Some(10), Some(19)));
    assert_eq!(wal.streams(), [ONE]);
}

#[test]
fn reads_are_bounded_but_make_progress() {
    let disk = SimulatedDisk::new(1);
    let wal = open(&disk).unwrap();
    for index in 1..=10 {
        wal.append(ONE, index, &[&[index as u8; 100]]).unwrap();
        if index % 3 == 0 {
            wal.sync().unwrap();
        }
    }
    assert_eq!(wal.read(ONE, 1, 11, 0).unwrap().len(), 1);
    assert_eq!(wal.read(ONE, 1, 11, 250).unwrap().len(), 2);
    assert_eq!(wal.read(ONE, 3, 5, 10_000).unwrap().len(), 2);
    assert_eq!(wal.read(ONE, 8, 100, 10_000).unwrap().len(), 3);
    assert_eq!(wal.read(ONE, 11, 100, 10_000).unwrap().len(), 0);
    wal.purge_to(ONE, 4).unwrap();
    assert!(matches!(wal.read(ONE, 4, 11, 10_000), Err(Error::Compacted { oldest: 5 })));
}

#[test]
fn the_wrong_index_is_refused_and_changes_nothing() {
    let disk = SimulatedDisk::new(1);
    let wal = open(&disk).unwrap();
    wal.append(ONE, 5, &[b"a"]).unwrap();
    for wrong in [4, 5, 7, u64::MAX] {
        assert!(matches!(wal.append(ONE, wrong, &[b"b"]), Err(Error::InvalidRequest(_))), "{wrong}");
    }
    wal.append(ONE, 6, &[b"b"]).unwrap();
    wal.append(TWO, 1, &[b"other"]).unwrap();
    assert_eq!(entries(&wal, ONE), [(5, b"a".to_vec()), (6, b"b".to_vec())]);
}

#[test]
fn truncations_purges_and_registers_survive_reopening_and_recycling() {
    let disk = SimulatedDisk::new(1);
    let mut expected: Vec<(u64, Vec<u8>)> = Vec::new();
    let mut next = 1u64;
    for round in 0..40u64 {
        let wal = open(&disk).unwrap();
        assert_eq!(entries(&wal, ONE), expected, "round {round}");
        if round > 0 {
            assert_eq!(wal.state(TWO), Some(format!("vote {}", round - 1).into_bytes()));
        }
        wal.set_state(TWO, format!("vote {round}").as_bytes()).unwrap();
        for _ in 0..20 {
            let value = vec![round as u8; 700];
            wal.append(ONE, next, &[&next.to_le_bytes(), &value]).unwrap();
            expected.push((next, [&next.to_le_bytes()[..], &value].concat()));
            next += 1;
            wal.sync().unwrap();
        }
        wal.truncate_after(ONE, next - 4).unwrap();
        expected.truncate(expected.len() - 3);
        next -= 3;
        wal.append(ONE, next, &[b"instead"]).unwrap();
        expected.push((next, b"instead".to_vec()));
        next += 1;
        wal.purge_to(ONE, next.saturating_sub(25)).unwrap();
        expected.retain(|(index, _)| *index > next.saturating_sub(25));
        assert_eq!(entries(&wal, ONE), expected, "round {round}, before closing");
        assert!(wal.stats().segments <= 6, "{:?}", wal.stats());
    }
    let wal = open(&disk).unwrap();
    assert!(wal.stats().first_segment > 10, "{:?}", wal.stats());
    assert!(disk.used() < 8 * (64 << 10), "{} bytes used", disk.used());
}

#[test]
fn a_group_larger_than_a_segment_gets_one_of_its_own() {
    for threads in [false, true] {
        let disk = SimulatedDisk::new(1);
        let open = || Wal::open(Arc::new(disk.clone()), WalOptions { threads, ..options() }).unwrap();
        let wal = open();
        wal.append(ONE, 1, &[b"small"]).unwrap();
        wal.append(ONE, 2, &[&vec![2; 300_000]]).unwrap();
        wal.append(ONE, 3, &[&vec![3; 1_000_000]]).unwrap();
        wal.append(ONE, 4, &[b"small"]).unwrap();
        wal.sync().unwrap();
        let lengths = |wal: &Wal| entries(wal, ONE).iter().map(|(_, bytes)| bytes.len()).collect::<Vec<_>>();
        assert_eq!(lengths(&wal), [5, 300_000, 1_000_000, 5]);
        drop(wal);
        let wal = open();
        assert_eq!(lengths(&wal), [5, 300_000, 1_000_000, 5]);
    }
}

#[test]
fn many_threads_append_and_wait_on_a_real_disk() {
    const EACH: u64 = 300;
    let directory = tempfile::tempdir().unwrap();
    let options = || WalOptions { segment_size: 1 << 20, ..WalOptions::new(directory.path(), 1) };
    let wal = Wal::open(Arc::new(RealDisk), options()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..16u32 {
            let wal = &wal;
            scope.spawn(move || {
                let stream = StreamId(thread);
                for index in 1..=EACH {
                    let ticket = wal.append(stream, index, &[&[thread as u8; 200]]).unwrap();
                    wal.wait_durable(ticket).unwrap();
                    assert!(wal.is_durable(ticket));
                    if index % 50 == 0 {
                        assert_eq!(wal.read(stream, index, index + 1, 1000).unwrap()[0].1.len(), 200);
                        wal.purge_to(stream, index - 20).unwrap();
                    }
                }
            });
        }
    });
    let stats = wal.stats();
    assert!(stats.groups < 16 * EACH, "no group was shared: {stats:?}");
    drop(wal);
    let wal = Wal::open(Arc::new(RealDisk), options()).unwrap();
    for thread in 0..16 {
        assert_eq!(entries(&wal, StreamId(thread)).len(), 20);
    }
}

#[test]
fn readers_never_see_a_segment_change_under_them() {
    let directory = tempfile::tempdir().unwrap();
    let options = WalOptions { segment_size: 64 << 10, ..WalOptions::new(directory.path(), 1) };
    let wal = Wal::open(Arc::new(RealDisk), options).unwrap();
    let entry = |index: u64| index.to_le_bytes().repeat(1 + index as usize % 80);
    wal.append(ONE, 1, &[&entry(1)]).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3u64)
            .map(|reader| {
                let (wal, stop) = (&wal, &stop);
                scope.spawn(move || {
                    let (mut next, mut seen) = (1, 0u64);
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                        match wal.read(ONE, next, u64::MAX, 3000 * reader as usize) {
                            Ok(entries) => {
                                for (index, bytes) in entries {
                                    assert_eq!(index, next);
                                    assert_eq!(bytes, entry(index));
                                    (next, seen) = (next + 1, seen + 1);
                                }
                            }
                            Err(Error::Compacted { oldest }) => next = oldest,
                            Err(other) => panic!("{other}"),
                        }
                    }
                    seen
                })
            })
            .collect();
        for index in 2..20_000u64 {
            let ticket = wal.append(ONE, index, &[&entry(index)]).unwrap();
            if index % 64 == 0 {
                wal.purge_to(ONE, index - 60).unwrap();
            }
            if index % 200 == 0 {
                wal.wait_durable(ticket).unwrap();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        for reader in readers {
            assert!(reader.join().unwrap() > 0, "a reader saw nothing");
        }
    });
    assert!(wal.stats().first_segment > 20, "{:?}", wal.stats());
}

#[test]
fn buffered_appends_reach_the_disk_by_themselves() {
    let directory = tempfile::tempdir().unwrap();
    let every = Duration::from_millis(20);
    let options = WalOptions { flush_every: Some(every), ..WalOptions::new(directory.path(), 1) };
    let wal = Wal::open(Arc::new(RealDisk), options).unwrap();
    let mut ticket = None;
    for index in 1..=100_000 {
        ticket = Some(wal.append(ONE, index, &[&[7; 100]]).unwrap());
    }
    let deadline = Instant::now() + Duration::from_secs(20);
    while !wal.is_durable(ticket.unwrap()) {
        assert!(Instant::now() < deadline, "never synced: {:?}", wal.stats());
        std::thread::sleep(every);
    }
    assert_eq!(wal.stats().pending_bytes, 0);
    assert_eq!(entries(&wal, ONE).len(), 100_000);
}

#[test]
fn foreign_and_newer_segments_are_refused_untouched() {
    let disk = SimulatedDisk::new(1);
    drop(open(&disk).unwrap());
    let path = Path::new("wal/0000000000000001.wal");
    let before = disk.content(path).unwrap();
    let foreign = Wal::open(Arc::new(disk.clone()), WalOptions { database_id: 8, ..options() });
    match foreign.unwrap_err() {
        Error::NotADatabase { path: named, what } => {
            assert_eq!(named, path);
            assert!(what.contains("another database"), "{what}");
        }
        other => panic!("{other}"),
    }
    let mut newer = before;
    newer[8] = 3;
    let crc = crc32fast::hash(&newer[..60]);
    newer[60..64].copy_from_slice(&crc.to_le_bytes());
    disk.set_content(path, newer.clone());
    match open(&disk).unwrap_err() {
        Error::NotADatabase { what, .. } => assert!(what.contains("format version 3"), "{what}"),
        other => panic!("{other}"),
    }
    assert_eq!(disk.content(path).unwrap(), newer);
}

#[test]
fn a_missing_segment_is_refused_by_name() {
    let disk = SimulatedDisk::new(1);
    let wal = open(&disk).unwrap();
    for index in 1..=200 {
        wal.append(ONE, index, &[&[1; 1500]]).unwrap();
        wal.sync().unwrap();
    }
    let stats = wal.stats();
    assert!(stats.segments >= 5);
    drop(wal);
    for missing in 1..=stats.active_segment {
        let disk = disk.duplicate();
        let path = PathBuf::from(format!("wal/{missing:016x}.wal"));
        disk.remove_content(&path);
        match open(&disk).unwrap_err() {
            Error::Corrupt(corruption) => {
                assert_eq!(corruption.file, path);
                assert!(corruption.what.contains("missing"), "{}", corruption.what);
            }
            other => panic!("{other}"),
        }
    }
}

/// One behind the other from the newest on, with and without the one that is prepared: the segment before
/// was sealed when the log went on in the next.
#[test]
fn missing_newest_segments_are_refused_by_the_name_of_the_first() {
    for (threads, kill) in [(false, false), (false, true), (true, false), (true, true)] {
        let disk = SimulatedDisk::new(1);
        let wal = Wal::open(Arc::new(disk.clone()), WalOptions { threads, ..options() }).unwrap();
        for index in 1..=200 {
            wal.append(ONE, index, &[&[1; 1500]]).unwrap();
            wal.sync().unwrap();
        }
        let active = wal.stats().active_segment;
        let disk = match kill {
            true => disk.process_kill(),
            false => disk,
        };
        drop(wal);
        for first in 2..=active {
            let disk = disk.duplicate();
            for path in disk.files() {
                let number = u64::from_str_radix(path.file_stem().unwrap().to_str().unwrap(), 16).unwrap();
                if number >= first {
                    disk.remove_content(&path);
                }
            }
            match open(&disk).unwrap_err() {
                Error::Corrupt(corruption) => {
                    assert_eq!(corruption.file, PathBuf::from(format!("wal/{first:016x}.wal")));
                    assert!(corruption.what.contains("missing"), "{}", corruption.what);
                }
                other => panic!("{other}"),
            }
        }
        // A segment that reads as never opened is no better than a missing one.
        let disk = disk.duplicate();
        let path = PathBuf::from(format!("wal/{active:016x}.wal"));
        let mut zeroed = disk.content(&path).unwrap();
        zeroed[4096..].fill(0);
        disk.set_content(&path, zeroed);
        assert!(matches!(open(&disk).unwrap_err(), Error::Corrupt(_)), "{threads} {kill}");
    }
}

/// A power cut takes seals that were not synced. The next opening writes them, and the one after it
/// relies on them.
#[test]
fn seals_that_a_power_cut_took_are_written_by_the_next_opening() {
    let mut taken = 0;
    for seed in 0..40 {
        let disk = SimulatedDisk::new(seed);
        let wal = open(&disk).unwrap();
        for index in 1..=65 {
            wal.append(ONE, index, &[&[1; 1500]]).unwrap();
            wal.sync().unwrap();
        }
        let active = wal.stats().active_segment;
        let disk = disk.power_cut(seed);
        drop(wal);
        let segment = |number: u64| PathBuf::from(format!("wal/{number:016x}.wal"));
        let is_sealed = |disk: &SimulatedDisk, number| {
            let content = disk.content(&segment(number)).unwrap();
            &content[content.len() - 4096..][..8] == b"dWfr\x04\0\0\0"
        };
        taken += (1..active).filter(|number| !is_sealed(&disk, *number)).count();
        drop(open(&disk).unwrap());
        assert!((1..active).all(|number| is_sealed(&disk, number)), "seed {seed}");
        let disk = disk.power_cut(seed);
        for number in active..=active + 2 {
            disk.remove_content(&segment(number));
        }
        assert!(matches!(open(&disk).unwrap_err(), Error::Corrupt(_)), "seed {seed}");
    }
    assert!(taken > 0, "no power cut took a seal");
}

/// What was purged last goes when the log is closed, and not only at the next opening.
#[test]
fn a_closed_log_keeps_no_segment_that_was_purged() {
    for threads in [false, true] {
        let disk = SimulatedDisk::new(1);
        let options = WalOptions { threads, ..options() };
        let wal = Wal::open(Arc::new(disk.clone()), options.clone()).unwrap();
        for index in 1..=400 {
            wal.append(ONE, index, &[&[1; 1500]]).unwrap();
            wal.sync().unwrap();
        }
        let before = disk.used();
        wal.purge_to(ONE, 399).unwrap();
        wal.close().unwrap();
        drop(wal);
        assert!(disk.used() <= 4 * options.segment_size, "{before} bytes became {}", disk.used());
        let wal = open(&disk).unwrap();
        assert_eq!(wal.first_index(ONE), Some(400));
    }
}

#[test]
fn a_read_only_disk_gives_a_plain_error() {
    let disk = SimulatedDisk::new(1);
    disk.create_directories(Path::new("wal")).unwrap();
    disk.set_read_only(true);
    assert!(matches!(open(&disk).unwrap_err(), Error::Io { .. }));
}

#[test]
fn spare_segments_that_writers_waited_on_outlive_a_trim_and_others_do_not() {
    for (waits, left) in [(true, true), (false, false)] {
        let disk = SimulatedDisk::new(1);
        let options = WalOptions { segment_size: 256 << 10, ..options() };
        let wal = Wal::open(Arc::new(disk), options).unwrap();
        for index in 1..=400u64 {
            let ticket = wal.append(ONE, index, &[&[7; 3000]]).unwrap();
            if waits {
                wal.wait_durable(ticket).unwrap();
            } else {
                wal.write_out().unwrap();
            }
        }
        wal.purge_to(ONE, 400).unwrap();
        wal.sync().unwrap();
        let spares = || wal.stats().spare_segments;
        assert!(spares() > 2, "{} spares", spares());
        wal.trim().unwrap();
        assert_eq!(spares() > 2, left, "waits: {waits}, {} spares", spares());
        let full = wal.stats().file_bytes;
        wal.trim_all().unwrap();
        assert!(spares() <= 1, "{} spares", spares());
        assert!(wal.stats().file_bytes < full || !left, "{} bytes of {full}", wal.stats().file_bytes);
    }
}

#[test]
fn a_trimmed_log_has_a_short_segment_stand_ready_and_grows_again() {
    let disk = SimulatedDisk::new(1);
    let options = WalOptions { segment_size: 8 << 20, threads: true, ..options() };
    let wal = Wal::open(Arc::new(disk.clone()), options.clone()).unwrap();
    let mut index = 0;
    let mut fill = |wal: &Wal, bytes: u64| {
        for _ in 0..bytes / 100_000 {
            index += 1;
            wal.append(ONE, index, &[&[7; 100_000]]).unwrap();
            wal.write_out().unwrap();
        }
        wal.purge_to(ONE, index).unwrap();
        wal.sync().unwrap();
        index
    };
    fill(&wal, 40 << 20);
    // Its threads recycle what was purged, and prepare the next segment.
    let begun = Instant::now();
    while wal.stats().segments > 1 || wal.stats().file_bytes < 16 << 20 {
        assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", wal.stats());
        std::thread::sleep(Duration::from_millis(1));
    }
    let before = wal.stats().file_bytes;
    wal.trim().unwrap();
    let after = wal.stats().file_bytes;
    assert!((9 << 20..=10 << 20).contains(&after), "{before} bytes became {after}");
    // Again it finds nothing to do; what follows does not notice.
    wal.trim().unwrap();
    assert_eq!(wal.stats().file_bytes, after);
    let last = fill(&wal, 40 << 20);
    wal.append(ONE, last + 1, &[b"kept"]).unwrap();
    wal.trim_all().unwrap();
    wal.close().unwrap();
    drop(wal);
    let wal = Wal::open(Arc::new(disk), options).unwrap();
    assert_eq!(wal.read(ONE, last + 1, last + 2, 100).unwrap()[0].1, b"kept");
}

#[test]
fn a_process_out_of_descriptors_can_still_sync_the_names_it_has_changed() {
    let disk = SimulatedDisk::new(1);
    let wal = open(&disk).unwrap();
    // After the two of making the next segment, which may fail and be tried again, nothing is opened.
    disk.inject(Fault { operation: Some(Operation::Open), after: 2, from_then_on: true });
    let mut next = 1;
    let failed = loop {
        match wal.append(ONE, next, &[&[7; 3000]]) {
            Ok(_) => next += 1,
            Err(error) => break error,
        }
        wal.sync().unwrap();
    };
    assert!(matches!(failed, Error::Io { .. }) && wal.poisoned().is_none(), "{failed}: {:?}", wal.poisoned());
    assert_eq!(wal.stats().active_segment, 2, "the one that could be made is in use");
    disk.clear_faults();
    wal.append(ONE, next, &[b"goes on"]).unwrap();
    wal.sync().unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn a_segment_that_is_full_keeps_one_descriptor() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().canonicalize().unwrap();
    let options = WalOptions { directory: directory.clone(), ..options() };
    let wal = Wal::open(Arc::new(RealDisk), options.clone()).unwrap();
    for index in 1..=300 {
        wal.append(ONE, index, &[&[7; 3000]]).unwrap();
        wal.sync().unwrap();
    }
    let descriptors_of_segments = || {
        let links = std::fs::read_dir("/proc/self/fd").unwrap();
        let targets = links.filter_map(|link| std::fs::read_link(link.unwrap().path()).ok());
        targets.filter(|target| target.starts_with(&directory) && *target != directory).count()
    };
    let segments = wal.stats().segments;
    assert!(segments > 10, "{segments}");
    // Three of the active one and of one that is prepared.
    let most = segments - 1 + 2 * 3;
    assert!(descriptors_of_segments() <= most, "{} of {segments} segments", descriptors_of_segments());
    drop(wal);
    let wal = Wal::open(Arc::new(RealDisk), options).unwrap();
    assert!(descriptors_of_segments() <= most, "{} when opened again", descriptors_of_segments());
    assert_eq!(entries(&wal, ONE).len(), 300);
}
