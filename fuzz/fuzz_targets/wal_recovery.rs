//! The WAL from arbitrary bytes: opening never panics, and a WAL that opens can be read, appended
//! to and opened again with what it held.
//!
//! The first byte chooses: the bytes as they are in place of the first segment, or damage to the
//! segments of a sound WAL. No damage may bring back an entry that was never appended.
#![no_main]

use std::path::Path;
use std::sync::{Arc, LazyLock};

use dogsled_fuzz::{Choices, damage};
use dogsled_storage::disk::{Disk, SimulatedDisk};
use dogsled_storage::wal::{StreamId, Wal, WalOptions};
use libfuzzer_sys::fuzz_target;

const STREAMS: u32 = 2;
const ENTRIES: u64 = 60;

fn options() -> WalOptions {
    let mut options = WalOptions::new("wal", 7);
    options.segment_size = 32 << 10;
    options.threads = false;
    options.seed = Some(1);
    options
}

fn open(disk: &SimulatedDisk) -> dogsled_storage::Result<Wal> {
    Wal::open(Arc::new(disk.clone()) as Arc<dyn Disk>, options())
}

fn entry(stream: u32, index: u64) -> Vec<u8> {
    vec![(index * 3 + u64::from(stream)) as u8; (index as usize * 97) % 3_000]
}

static SOUND: LazyLock<SimulatedDisk> = LazyLock::new(|| {
    let disk = SimulatedDisk::new(1);
    let wal = open(&disk).expect("a new disk");
    for index in 1..=ENTRIES {
        for stream in 0..STREAMS {
            wal.append(StreamId(stream), index, &[&entry(stream, index)]).expect("room");
        }
        if index % 5 == 0 {
            wal.sync().expect("a sound disk");
        }
    }
    wal.purge_to(StreamId(0), 20).expect("room");
    wal.set_state(StreamId(1), b"a register").expect("room");
    wal.truncate_after(StreamId(1), ENTRIES - 2).expect("room");
    wal.sync().expect("a sound disk");
    // Not closed: the last group may pass for torn.
    disk.process_kill().duplicate()
});

fn read_all(wal: &Wal, each: &mut dyn FnMut(u32, u64, &[u8])) -> dogsled_storage::Result<()> {
    for stream in wal.streams() {
        wal.replay(stream, 0, &mut |index, bytes| {
            each(stream.0, index, bytes);
            Ok(())
        })?;
    }
    Ok(())
}

fuzz_target!(|bytes: &[u8]| {
    let mut choices = Choices(bytes);
    let raw = choices.byte() % 2 == 0;
    let disk = if raw {
        let disk = SimulatedDisk::new(0);
        let mut segment = choices.0.to_vec();
        segment.resize(segment.len().next_multiple_of(4096), 0);
        disk.set_content(Path::new("wal/0000000000000001.wal"), segment);
        disk
    } else {
        let disk = SOUND.duplicate();
        while !choices.is_empty() {
            damage(&disk, &mut choices);
        }
        disk
    };
    let Ok(wal) = open(&disk) else { return };
    let mut found = Vec::new();
    let read = read_all(&wal, &mut |stream, index, bytes| found.push((stream, index, bytes.to_vec())));
    if read.is_err() {
        return;
    }
    if !raw {
        for (stream, index, bytes) in &found {
            assert_eq!(*bytes, entry(*stream, *index), "entry {index} of stream {stream} was never appended");
        }
    }
    let next = wal.last_index(StreamId(0)).unwrap_or(0).saturating_add(1);
    if wal.append(StreamId(0), next, &[b"new"]).is_ok() {
        wal.sync().expect("a sound disk");
        found.push((0, next, b"new".to_vec()));
    }
    drop(wal);
    let wal = open(&disk).expect("it was opened before");
    let mut again = Vec::new();
    read_all(&wal, &mut |stream, index, bytes| again.push((stream, index, bytes.to_vec())))
        .expect("it was read before");
    found.sort();
    again.sort();
    assert_eq!(found, again);
});
