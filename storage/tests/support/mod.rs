//! What several test files share: a seeded random source, and a model of a B-tree in redb.

#![allow(dead_code, unreachable_pub)]

pub mod database;

use std::collections::BTreeMap;
use std::path::Path;

use dogsled_storage::disk::SimulatedDisk;
use dogsled_storage::tree_file::{TreeFile, open_redb_and_file};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition, TableHandle};

pub const PATH: &str = "db/tree.redb";
pub const DATABASE_ID: u128 = 0x0123_4567_89ab_cdef_0011_2233_4455_6677;
pub const CACHE: u64 = 1 << 20;
pub const TABLES: [&str; 2] = ["t00000000", "t00000010"];

/// Table number and key to value.
pub type Model = BTreeMap<(usize, Vec<u8>), Vec<u8>>;

/// SplitMix64: small, seeded, good enough to choose test cases.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        (0..length).map(|_| self.next() as u8).collect()
    }
}

pub fn definition(table: usize) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(TABLES[table])
}

pub fn new_disk(seed: u64) -> SimulatedDisk {
    use dogsled_storage::disk::Disk;
    let disk = SimulatedDisk::new(seed);
    disk.create_directories(Path::new("db")).unwrap();
    disk
}

pub fn open(disk: &SimulatedDisk) -> dogsled_storage::Result<(Database, TreeFile)> {
    open_redb_and_file(disk, Path::new(PATH), DATABASE_ID, CACHE)
}

/// Where a commit can be played through that shall only change a model.
pub fn in_memory() -> Database {
    redb::Builder::new().create_with_backend(redb::backends::InMemoryBackend::new()).unwrap()
}

/// One transaction of random puts and removes; the model follows only if it commits.
pub fn random_commit(database: &Database, model: &mut Model, random: &mut Random) -> Result<(), redb::Error> {
    let mut next = model.clone();
    let mut transaction = database.begin_write()?;
    transaction.set_quick_repair(true);
    {
        let mut tables = [transaction.open_table(definition(0))?, transaction.open_table(definition(1))?];
        for _ in 0..1 + random.below(30) {
            let number = random.below(2) as usize;
            let key = format!("key {:03}", random.below(200)).into_bytes();
            if random.below(3) == 0 {
                tables[number].remove(key.as_slice())?;
                next.remove(&(number, key));
            } else {
                // Mostly small; sometimes several pages.
                let length = if random.below(20) == 0 { random.below(30_000) } else { random.below(120) };
                let value = random.bytes(length as usize);
                tables[number].insert(key.as_slice(), value.as_slice())?;
                next.insert((number, key), value);
            }
        }
    }
    transaction.commit()?;
    *model = next;
    Ok(())
}

/// Everything in the database.
pub fn read_all(database: &Database) -> Result<Model, redb::Error> {
    let transaction = database.begin_read()?;
    let mut found = Model::new();
    let present: Vec<String> = transaction.list_tables()?.map(|table| table.name().to_owned()).collect();
    for (number, name) in TABLES.iter().enumerate() {
        if !present.iter().any(|table| table == name) {
            continue;
        }
        for entry in transaction.open_table(definition(number))?.iter()? {
            let (key, value) = entry?;
            found.insert((number, key.value().to_vec()), value.value().to_vec());
        }
    }
    Ok(found)
}
