//! The file that says whose a directory is: `node`, beside the lock of the directory.
//!
//! ```text
//!   0  magic         "dognode\0"
//!   8  version       u32   1; place and extent of magic, version and checksum never change
//!  12  partitions    u32   0 as long as the node belongs to no cluster
//!  16  node id       u64
//!  24  database id   u128  of the node's WAL and replicas, drawn when the directory was made
//!  40  cluster id    u128  0 as long as the node belongs to no cluster
//!  56  flags         u32   1: an embedded database is being made a node, see crate::convert; 2: the node was told
//!                          that it was taken out of the cluster, see crate::fence
//!  60  checksum      u32   CRC-32 of bytes 0..60
//! ```
//!
//! Little-endian. It is replaced by writing `node.new` and renaming it.

use std::path::Path;

use dogsled_storage::disk::{Disk, OpenMode};
use dogsled_storage::{Error, Result};

const MAGIC: &[u8; 8] = b"dognode\0";
const VERSION: u32 = 1;
const LENGTH: usize = 64;

/// What the file says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct NodeFile {
    pub(crate) node: u64,
    pub(crate) database_id: u128,
    pub(crate) cluster: u128,
    pub(crate) partitions: u32,
    pub(crate) converting: bool,
    pub(crate) taken_out: bool,
}

const CONVERTING: u32 = 1;
const TAKEN_OUT: u32 = 2;

impl NodeFile {
    /// Reads a directory's; `None` if there is none.
    pub(crate) fn read(disk: &dyn Disk, directory: &Path) -> Result<Option<NodeFile>> {
        let path = directory.join("node");
        let failed = |error| Error::io(format!("reading {}", path.display()), error);
        if !disk.exists(&path).map_err(failed)? {
            return Ok(None);
        }
        let file = disk.open(&path, OpenMode::Read).map_err(failed)?;
        let length = file.length().map_err(failed)?;
        if length != LENGTH as u64 {
            return Err(Error::corrupt(&path, 0, format!("{length} bytes long instead of {LENGTH}")));
        }
        let mut bytes = [0; LENGTH];
        file.read_at(0, &mut bytes).map_err(failed)?;
        let refuse = |what: String| Err(Error::NotADatabase { path: directory.to_owned(), what });
        if &bytes[..8] != MAGIC {
            return refuse("the file `node` is not one of dogsled's".to_owned());
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u128_at = |at: usize| u128::from_le_bytes(bytes[at..at + 16].try_into().expect("sixteen bytes"));
        if u32_at(60) != crc32fast::hash(&bytes[..60]) {
            return Err(Error::corrupt(&path, 0, "the checksum does not match the bytes"));
        }
        if u32_at(8) != VERSION {
            return refuse(format!(
                "the node's directory has format {} and this program reads format {VERSION}",
                u32_at(8)
            ));
        }
        if u32_at(56) & !(CONVERTING | TAKEN_OUT) != 0 {
            return Err(Error::corrupt(&path, 56, format!("flags {:#x} of an unknown meaning", u32_at(56))));
        }
        Ok(Some(NodeFile {
            node: u64::from_le_bytes(bytes[16..24].try_into().expect("eight bytes")),
            database_id: u128_at(24),
            cluster: u128_at(40),
            partitions: u32_at(12),
            converting: u32_at(56) & CONVERTING != 0,
            taken_out: u32_at(56) & TAKEN_OUT != 0,
        }))
    }

    /// Replaces a directory's; durable on return.
    pub(crate) fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<()> {
        let mut bytes = [0; LENGTH];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.partitions.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.node.to_le_bytes());
        bytes[24..40].copy_from_slice(&self.database_id.to_le_bytes());
        bytes[40..56].copy_from_slice(&self.cluster.to_le_bytes());
        let flags = u32::from(self.converting) * CONVERTING + u32::from(self.taken_out) * TAKEN_OUT;
        bytes[56..60].copy_from_slice(&flags.to_le_bytes());
        let checksum = crc32fast::hash(&bytes[..60]);
        bytes[60..].copy_from_slice(&checksum.to_le_bytes());
        let aside = directory.join("node.new");
        let write = || -> std::io::Result<()> {
            let file = disk.open(&aside, OpenMode::Create)?;
            file.set_length(0)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            disk.rename(&aside, &directory.join("node"))?;
            disk.sync_directory(directory)
        };
        write().map_err(|error| Error::io(format!("writing {}", directory.join("node").display()), error))
    }
}

#[cfg(test)]
mod tests {
    use dogsled_storage::disk::RealDisk;

    use super::*;

    #[test]
    fn the_file_keeps_what_it_was_told_and_notices_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(NodeFile::read(&RealDisk, path).unwrap(), None);
        let file = NodeFile {
            node: 3,
            database_id: 5 << 100,
            cluster: 0,
            partitions: 0,
            converting: true,
            taken_out: false,
        };
        file.write(&RealDisk, path).unwrap();
        assert_eq!(NodeFile::read(&RealDisk, path).unwrap(), Some(file));
        let adopted = NodeFile { cluster: 7 << 90, partitions: 16, converting: false, ..file };
        adopted.write(&RealDisk, path).unwrap();
        assert_eq!(NodeFile::read(&RealDisk, path).unwrap(), Some(adopted));
        let out = NodeFile { taken_out: true, ..adopted };
        out.write(&RealDisk, path).unwrap();
        assert_eq!(NodeFile::read(&RealDisk, path).unwrap(), Some(out));
        let mut bytes = std::fs::read(path.join("node")).unwrap();
        assert_eq!(bytes[56..60], [2, 0, 0, 0]);
        bytes[20] ^= 1;
        std::fs::write(path.join("node"), bytes).unwrap();
        assert!(matches!(NodeFile::read(&RealDisk, path), Err(Error::Corrupt(_))));
    }
}
