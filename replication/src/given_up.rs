//! The file that says whom a node does not hear any more because of a recovery: `given-up`, beside the file `node`.
//!
//! - **Given up**, for ever: from when it is written on the node neither hears these members nor answers them,
//!   whatever its [record](crate::meta) says by then; see [`crate::fence`]. That is never taken back: whoever was given
//!   up never belongs to the cluster again.
//! - **Held**, for as long as a recovery is under way: it is in the file so that a survivor that loses power amid it has
//!   not forgotten. Otherwise it could, started again, elect a leader together with members that are being given up, or
//!   tell them of the new history, while another survivor goes on without them.
//!
//! ```text
//!   0  magic      "doglost\0"
//!   8  version    u32   1; place and extent of magic and version never change
//!  12  count      u32   of those given up
//!  16  held       u32   of those held
//!  20  zero       u32
//!  24  until      u64   milliseconds, by the node's clock: for so long the recovery holds if nothing is heard of it
//!  32  operation  u128  which recovery
//!  48  given up   u64 id, u64 term, each: it counts if the last entry of the meta group's log here is of this term or
//!                       a later one. 0: always. Whoever goes on alone with the meta group writes it before that entry
//!      held       u64 id, each
//!      checksum   u32   CRC-32 of all before
//! ```
//!
//! Little-endian. It is replaced by writing `given-up.new` and renaming it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use dogsled_storage::disk::{Disk, OpenMode};
use dogsled_storage::{Error, Result};

use crate::transport::NodeId;

const MAGIC: &[u8; 8] = b"doglost\0";
const VERSION: u32 = 1;
const HEADER: usize = 48;
/// More members no cluster has.
const MOST: usize = 1 << 16;

/// A recovery that is under way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) operation: u128,
    pub(crate) lost: BTreeSet<NodeId>,
    /// By the node's clock.
    pub(crate) until_ms: u64,
}

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct GivenUp {
    /// And from which term of the meta group's log on that counts.
    pub(crate) nodes: BTreeMap<NodeId, u64>,
    pub(crate) held: Option<Held>,
}

impl GivenUp {
    /// Those who count, if the last entry of the meta group's log is of this term.
    pub(crate) fn as_of(&self, term: u64) -> BTreeSet<NodeId> {
        self.nodes.iter().filter(|(_, from)| **from <= term).map(|(node, _)| *node).collect()
    }

    /// These count from this term on, or from an earlier one.
    pub(crate) fn add(&mut self, term: u64, nodes: impl IntoIterator<Item = NodeId>) {
        for node in nodes {
            let from = self.nodes.entry(node).or_insert(term);
            *from = term.min(*from);
        }
    }

    /// Those do not who were to count from this term on.
    pub(crate) fn take_back(&mut self, term: u64) {
        self.nodes.retain(|_, from| *from != term);
    }

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
        if length < HEADER as u64 + 4 || length > (HEADER + 4 + MOST * 24) as u64 {
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
        let (count, held) = (u32_at(12) as usize, u32_at(16) as usize);
        if bytes.len() != HEADER + count * 16 + held * 8 {
            return wrong("the counts do not match the length");
        }
        let (given_up, rest) = bytes[HEADER..].split_at(count * 16);
        let word = |bytes: &[u8]| u64::from_le_bytes(bytes[..8].try_into().expect("eight bytes"));
        let nodes = given_up.chunks(16).map(|pair| (NodeId(word(pair)), word(&pair[8..]))).collect();
        let lost: BTreeSet<NodeId> = rest.chunks(8).map(|id| NodeId(word(id))).collect();
        let operation = u128::from_le_bytes(bytes[32..48].try_into().expect("sixteen bytes"));
        let held = (!lost.is_empty()).then(|| Held { operation, lost, until_ms: u64_at(24) });
        Ok(GivenUp { nodes, held })
    }

    /// Replaces a directory's; durable on return.
    pub(crate) fn write(&self, disk: &dyn Disk, directory: &Path) -> Result<()> {
        let held = self.held.as_ref();
        let lost = held.map_or(0, |held| held.lost.len());
        assert!(self.nodes.len() <= MOST && lost <= MOST, "{} and {lost} are given up", self.nodes.len());
        let mut bytes = Vec::with_capacity(HEADER + 4 + self.nodes.len() * 16 + lost * 8);
        bytes.extend_from_slice(MAGIC);
        for number in [VERSION, self.nodes.len() as u32, lost as u32, 0] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&held.map_or(0, |held| held.until_ms).to_le_bytes());
        bytes.extend_from_slice(&held.map_or(0, |held| held.operation).to_le_bytes());
        for (node, term) in &self.nodes {
            bytes.extend_from_slice(&node.0.to_le_bytes());
            bytes.extend_from_slice(&term.to_le_bytes());
        }
        for node in held.iter().flat_map(|held| &held.lost) {
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
        let nodes = BTreeMap::from([(NodeId(3), 0), (NodeId(258), 1 << 32)]);
        let lost = BTreeSet::from([NodeId(7)]);
        let held = Held { operation: 0x0a0b, lost, until_ms: 77 };
        for given_up in [
            GivenUp { nodes: nodes.clone(), held: None },
            GivenUp { nodes: BTreeMap::new(), held: Some(held.clone()) },
            GivenUp { nodes, held: Some(held) },
        ] {
            given_up.write(&RealDisk, path).unwrap();
            assert_eq!(GivenUp::read(&RealDisk, path).unwrap(), given_up);
        }
        let bytes = std::fs::read(path.join("given-up")).unwrap();
        let golden = concat!(
            "646f676c6f737400 01000000 02000000 01000000 00000000 4d00000000000000 0b0a0000000000000000000000000000",
            "0300000000000000 0000000000000000 0201000000000000 0000000001000000 0700000000000000"
        );
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
    #[test]
    fn each_counts_from_its_own_term_on() {
        let mut given_up = GivenUp::default();
        given_up.add(0, [NodeId(1)]);
        given_up.add(1 << 32, [NodeId(2)]);
        // A recovery that dies before it goes on does not take back what an earlier one has done.
        given_up.add(2 << 32, [NodeId(1), NodeId(2), NodeId(3)]);
        assert_eq!(given_up.as_of(7), BTreeSet::from([NodeId(1)]));
        assert_eq!(given_up.as_of(1 << 32), BTreeSet::from([NodeId(1), NodeId(2)]));
        assert_eq!(given_up.as_of(2 << 32), [1, 2, 3].map(NodeId).into());
    }
}
