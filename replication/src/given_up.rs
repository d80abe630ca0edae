//! The file that says whom a node has given up for ever in a recovery: `given-up`, beside the file `node`.
//!
//! From when it is written on the node neither hears these members nor answers them, whatever its
//! [record](crate::meta) says by then; see [`crate::fence`]. It is never removed: whoever was given up never
//! belongs to the cluster again.
//!
//! ```text
//!   0  magic      "doglost\0"
//!   8  version    u32   1; place and extent of magic and version never change
//!  12  count      u32
//!  16  term       u64   it counts if the last entry of the meta group's log here is of this term or a later one:
//!                       0 always. Whoever goes on alone with the meta group writes it before that entry
//!  24  ids        u64 each
//!      checksum   u32   CRC-32 of all before
//! ```
//!
//! Little-endian. It is replaced by writing `given-up.new` and renaming it.

use std::collections::BTreeSet;
use std::path::Path;

use dogsled_storage::disk::{Disk, OpenMode};
use dogsled_storage::{Error, Result};

use crate::transport::NodeId;

const MAGIC: &[u8; 8] = b"doglost\0";
const VERSION: u32 = 1;
const HEADER: usize = 24;
/// More members no cluster has.
const MOST: usize = 1 << 16;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct GivenUp {
    pub(crate) term: u64,
    pub(crate) nodes: BTreeSet<NodeId>,
}

impl GivenUp {
    /// Reads a directory's; nobody, if there is none.
    pub(crate) fn read(disk: &dyn Disk, directory: &Path) -> Result<GivenUp> {
        let path = directory.join("given-up");
        let failed = |error| Error::io(format!("reading {}", path.display()), error);
        if !disk.exists(&path).map_err(failed)? {
            return Ok(GivenUp::default());
        }
        let file = disk.open(&path, OpenMode::Read).map_err(failed)?;
        let length = file.length().map_err(failed)?;
        let wrong = |what: &str| Err(Error::corrupt(&path, 0, what));
        if length < HEADER as u64 + 4 || length > (HEADER + 4 + MOST * 8) as u64 {
            return wrong(&format!("{length} bytes long"));
        }
        let mut bytes = vec![0; length as usize];
        file.read_at(0, &mut bytes).map_err(failed)?;
        let (bytes, checksum) = bytes.split_at(bytes.len() - 4);
        if checksum != crc32fast::hash(bytes).to_le_bytes() {
            return wrong("the checksum does not match the bytes");
        }
        let u32_at = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
        let u64_at = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        if &bytes[..8] != MAGIC || u32_at(8) != VERSION {
            return wrong("not a list of given-up members of this version");
        }
        if bytes.len() != HEADER + u32_at(12) as usize * 8 {
            return wrong("the count does not match the length");
        }
        let nodes = (HEADER..bytes.len()).step_by(8).map(|at| NodeId(u64_at(at)));
        Ok(GivenUp { term: u64_at(16), nodes: nodes.collect() })
    }

    /// Replaces a directory's; durable on return.
    pub(crate) fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<()> {
        assert!(self.nodes.len() <= MOST, "{} members are given up", self.nodes.len());
        let mut bytes = Vec::with_capacity(HEADER + 4 + self.nodes.len() * 8);
        bytes.extend_from_slice(MAGIC);
        bytes.extend_from_slice(&VERSION.to_le_bytes());
        bytes.extend_from_slice(&(self.nodes.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&self.term.to_le_bytes());
        for node in &self.nodes {
            bytes.extend_from_slice(&node.0.to_le_bytes());
        }
        let checksum = crc32fast::hash(&bytes);
        bytes.extend_from_slice(&checksum.to_le_bytes());
        let (path, aside) = (directory.join("given-up"), directory.join("given-up.new"));
        let write = || -> std::io::Result<()> {
            let file = disk.open(&aside, OpenMode::Create)?;
            file.set_length(0)?;
            file.write_at(0, &bytes)?;
            file.sync()?;
            disk.rename(&aside, &path)?;
            disk.sync_directory(directory)
        };
        write().map_err(|error| Error::io(format!("writing {}", path.display()), error))
    }
}

#[cfg(test)]
mod tests {
    use dogsled_storage::disk::RealDisk;

    use super::*;

    #[test]
    fn the_file_keeps_its_bytes_and_notices_damage() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path();
        assert_eq!(GivenUp::read(&RealDisk, path).unwrap(), GivenUp::default());
        let nodes = BTreeSet::from([NodeId(3), NodeId(258)]);
        for given_up in [GivenUp { term: 0, nodes: BTreeSet::new() }, GivenUp { term: 1 << 32, nodes }] {
            given_up.write(&RealDisk, path).unwrap();
            assert_eq!(GivenUp::read(&RealDisk, path).unwrap(), given_up);
        }
        let bytes = std::fs::read(path.join("given-up")).unwrap();
        let golden = "646f676c6f737400 01000000 02000000 0000000001000000 0300000000000000 0201000000000000";
        let hex: String = bytes[..bytes.len() - 4].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, golden.replace(' ', ""));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            std::fs::write(path.join("given-up"), &damaged).unwrap();
            assert!(matches!(GivenUp::read(&RealDisk, path), Err(Error::Corrupt(_))), "byte {at}");
            std::fs::write(path.join("given-up"), &bytes[..at]).unwrap();
            assert!(matches!(GivenUp::read(&RealDisk, path), Err(Error::Corrupt(_))), "{at} bytes");
        }
    }
}
