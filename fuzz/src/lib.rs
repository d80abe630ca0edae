//! What the fuzz targets share: reading decisions from the fuzzer's bytes, and damaging files.

pub mod memory;
pub mod node;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::model::ModelState;
use dogsled_storage::{Clock, Command, Durability, Engine, IVec, Options, TreeId, Write};

/// The fuzzer's bytes, taken one decision at a time; zeros when they are used up.
pub struct Choices<'a>(pub &'a [u8]);

impl Choices<'_> {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    pub fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// One of 24 keys: short ones, the empty one, prefixes of each other, long ones.
    pub fn key(&mut self) -> IVec {
        let number = self.byte() % 24;
        match number {
            0 => IVec::new(),
            1..=3 => IVec::from(vec![b'k'; number.into()]),
            4 => IVec::from(vec![0xff; 3]),
            5 => IVec::from(vec![b'k'; 500]),
            _ => IVec::from(format!("key {number:02}")),
        }
    }

    pub fn value(&mut self) -> IVec {
        let (fill, length) = (self.byte(), self.byte());
        let length = match length {
            0..=199 => usize::from(length) / 4,
            200..=239 => usize::from(length) * 4,
            _ => usize::from(length) * 30,
        };
        IVec::from(vec![fill; length])
    }
}

/// A clock that stands still.
#[derive(Debug)]
pub struct StoppedClock;

impl Clock for StoppedClock {
    fn now_ms(&self) -> u64 {
        1_000
    }
}

pub const DIRECTORY: &str = "db";
pub const DATABASE_ID: u128 = 7;

/// A small database without threads: what it does depends on its calls alone.
pub fn options(disk: &SimulatedDisk) -> Options {
    Options {
        cache_capacity: 8 << 20,
        segment_size: 64 << 10,
        flush_every_ms: None,
        background_threads: false,
        checkpoint_slice_keys: 5,
        clock: Arc::new(StoppedClock),
        disk: Arc::new(disk.clone()),
        database_id: Some(DATABASE_ID),
        ..Options::new(DIRECTORY)
    }
}

/// The database that is damaged, always the same one, and its state after each commit.
pub struct Sound {
    pub disk: SimulatedDisk,
    pub history: Vec<ModelState>,
}

/// Some commits in the B-tree, some in the WAL only.
pub fn sound_database() -> Sound {
    let disk = SimulatedDisk::new(1);
    let engine = Engine::open(options(&disk)).expect("a new disk");
    let mut model = ModelState::new();
    let mut history = vec![model.clone()];
    let mut run = |command: Command, durability| {
        model.execute(1_000, &command).expect("a sound command");
        engine.execute(command, durability).expect("a sound disk");
        history.push(model.clone());
    };
    run(Command::CreateTree { name: "other".into() }, Durability::Buffered);
    for number in 0..60u32 {
        let tree = if number % 3 == 0 { TreeId::FIRST_USER } else { TreeId::DEFAULT };
        let key = IVec::from(format!("key {:02}", number % 40));
        let value = Some(IVec::from(vec![number as u8; (number as usize * 37) % 400]));
        if number % 7 == 6 {
            run(Command::Insert { tree, key, value: value.expect("made above") }, Durability::Synced);
        } else {
            let second = IVec::from(format!("key {:02}", (number + 9) % 40));
            let writes = vec![
                Write { tree, key, value: value.clone() },
                Write { tree: TreeId::DEFAULT, key: second, value },
            ];
            run(Command::Batch { writes }, Durability::Buffered);
        }
        if number == 30 || number == 45 {
            engine.checkpoint().expect("a sound disk");
        }
    }
    drop(engine);
    Sound { disk, history }
}

/// Damages one file as the fuzzer says: patches, copied and zeroed blocks, a cut, a lost file.
pub fn damage(disk: &SimulatedDisk, choices: &mut Choices<'_>) {
    let files: Vec<PathBuf> = disk.files();
    let chosen = choices.byte() as usize;
    if files.is_empty() {
        return;
    }
    let path: &Path = &files[chosen % files.len()];
    let Some(mut bytes) = disk.content(path) else { return };
    let length = bytes.len() as u32;
    if length == 0 {
        return;
    }
    match choices.byte() % 8 {
        0 => return disk.remove_content(path),
        1 => bytes.truncate((choices.number() % length) as usize),
        2 | 3 => {
            let blocks = (length / 4096).max(1);
            let (from, to) = (choices.number() % blocks, choices.number() % blocks);
            let (from, to) = (from as usize * 4096, to as usize * 4096);
            let count = bytes.len().saturating_sub(from.max(to)).min(4096);
            bytes.copy_within(from..from + count, to);
        }
        4 => {
            let from = (choices.number() % length) as usize & !4095;
            let end = bytes.len().min(from + 4096);
            bytes[from..end].fill(0);
        }
        _ => {
            for _ in 0..1 + choices.byte() % 4 {
                let at = (choices.number() % length) as usize;
                bytes[at] ^= choices.byte().max(1);
            }
        }
    }
    disk.set_content(path, bytes);
}
