//! Where things lie in the file, and the two kinds of block that are not data.
//!
//! Everything here is pure: bytes in, bytes out.

use crate::disk::BLOCK_SIZE;

/// Data blocks that one checksum block covers: as many 4-byte entries as fit into it.
pub(crate) const GROUP_BLOCKS: u64 = (BLOCK_SIZE / 4) as u64;
/// Blocks before the first group: the identity block and two header slots.
pub(crate) const LEADING_BLOCKS: u64 = 3;
/// The newest version of the file's format that this code reads and writes.
pub(crate) const FORMAT_VERSION: u32 = 1;
/// What redb may keep in its block 0 (it uses 320 bytes).
pub(crate) const HEADER_CAPACITY: usize = SLOT_CHECKSUM - SLOT_BYTES;

/// redb's block 0, as far as it is kept.
pub(crate) type HeaderBytes = [u8; HEADER_CAPACITY];

const MAGIC: [u8; 12] = *b"dogsled\0tree";
/// How a redb file begins.
pub(crate) const REDB_MAGIC: [u8; 9] = [b'r', b'e', b'd', b'b', 0x1A, 0x0A, 0xA9, 0x0D, 0x0A];
const IDENTITY_CHECKSUM: usize = 40;
const SLOT_BYTES: usize = 8;
const SLOT_CHECKSUM: usize = BLOCK_SIZE - 4;

/// One block's bytes.
pub(crate) type Block = [u8; BLOCK_SIZE];

/// The place of data block `data` (redb's block `data + 1`) in the file, in blocks.
pub(crate) fn data_block(data: u64) -> u64 {
    LEADING_BLOCKS + (data / GROUP_BLOCKS) * (GROUP_BLOCKS + 1) + 1 + data % GROUP_BLOCKS
}

/// The place of the checksum block of `group`, in blocks.
pub(crate) fn checksum_block(group: u64) -> u64 {
    LEADING_BLOCKS + group * (GROUP_BLOCKS + 1)
}

/// The length of the file, in blocks, that holds `data` data blocks.
pub(crate) fn file_blocks(data: u64) -> u64 {
    LEADING_BLOCKS + data + data.div_ceil(GROUP_BLOCKS)
}

/// How many data blocks a file of `blocks` blocks holds. Inverse of [`file_blocks`].
pub(crate) fn data_blocks(blocks: u64) -> u64 {
    let grouped = blocks.saturating_sub(LEADING_BLOCKS);
    grouped - grouped.div_ceil(GROUP_BLOCKS + 1)
}

/// The checksum of a block: CRC-32 of its number in the file and its bytes, so that a block
/// which was written to the wrong place does not pass there. Never [`NO_CHECKSUM`] or
/// [`NEVER_WRITTEN`].
pub(crate) fn checksum(block: u64, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&block.to_le_bytes());
    hasher.update(bytes);
    hasher.finalize().max(NEVER_WRITTEN + 1)
}

/// The entry of a block about which the file says nothing: it cannot be read. A range of the
/// file that was lost and reads as zeros is full of these.
pub(crate) const NO_CHECKSUM: u32 = 0;
/// The entry of a block that became part of the file and was not written since: zeros.
pub(crate) const NEVER_WRITTEN: u32 = 1;

/// What the identity block says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Identity {
    /// A file of this format, of the database with this id.
    Ours(u128),
    /// A file of a newer format.
    Newer(u32),
    /// A file that redb wrote without us.
    PlainRedb,
    /// Not the first bytes of any file we know.
    Unknown,
    /// Ours by its magic, but its checksum does not match.
    Damaged,
}

/// Encodes the identity block.
pub(crate) fn encode_identity(database_id: u128) -> Block {
    let mut block = [0; BLOCK_SIZE];
    block[..12].copy_from_slice(&MAGIC);
    block[12..16].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    block[16..32].copy_from_slice(&database_id.to_le_bytes());
    block[32..36].copy_from_slice(&(BLOCK_SIZE as u32).to_le_bytes());
    block[36..40].copy_from_slice(&(GROUP_BLOCKS as u32).to_le_bytes());
    let crc = crc32fast::hash(&block[..IDENTITY_CHECKSUM]);
    block[IDENTITY_CHECKSUM..IDENTITY_CHECKSUM + 4].copy_from_slice(&crc.to_le_bytes());
    block
}

/// Decodes the first bytes of a file; `bytes` may be shorter than a block.
pub(crate) fn decode_identity(bytes: &[u8]) -> Identity {
    if bytes.starts_with(&REDB_MAGIC) {
        return Identity::PlainRedb;
    }
    let Some(bytes) = bytes.get(..IDENTITY_CHECKSUM + 4) else {
        return Identity::Unknown;
    };
    let crc_matches = crc32fast::hash(&bytes[..IDENTITY_CHECKSUM]) == u32_at(bytes, IDENTITY_CHECKSUM);
    match (bytes[..12] == MAGIC, crc_matches) {
        (true, true) => {}
        (true, false) => return Identity::Damaged,
        // A flipped bit in the magic itself must not make a database somebody else's file.
        (false, true) => return Identity::Damaged,
        (false, false) if near(&bytes[..12], &MAGIC) => return Identity::Damaged,
        (false, false) => return Identity::Unknown,
    }
    let version = u32_at(bytes, 12);
    if version > FORMAT_VERSION {
        return Identity::Newer(version);
    }
    if version != FORMAT_VERSION || u32_at(bytes, 32) as usize != BLOCK_SIZE {
        return Identity::Damaged;
    }
    if u64::from(u32_at(bytes, 36)) != GROUP_BLOCKS {
        return Identity::Damaged;
    }
    Identity::Ours(u128::from_le_bytes(bytes[16..32].try_into().expect("16 bytes")))
}

/// Whether at most one byte differs.
fn near(a: &[u8], b: &[u8]) -> bool {
    a.iter().zip(b).filter(|(a, b)| a != b).count() <= 1
}

/// One of the two copies of redb's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Slot {
    /// Counts the synced headers of this file, from 1.
    pub(crate) sequence: u64,
    /// redb's block 0.
    pub(crate) header: HeaderBytes,
}

impl Slot {
    /// Encodes the slot for block `block`.
    pub(crate) fn encode(&self, block: u64) -> Block {
        let mut bytes = [0; BLOCK_SIZE];
        bytes[..SLOT_BYTES].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[SLOT_BYTES..SLOT_CHECKSUM].copy_from_slice(&self.header);
        let crc = checksum(block, &bytes[..SLOT_CHECKSUM]);
        bytes[SLOT_CHECKSUM..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Decodes what stands in block `block`; `None` if it is torn, damaged or was never written.
    pub(crate) fn decode(block: u64, bytes: &Block) -> Option<Slot> {
        if u32_at(bytes, SLOT_CHECKSUM) != checksum(block, &bytes[..SLOT_CHECKSUM]) {
            return None;
        }
        let sequence = u64::from_le_bytes(bytes[..SLOT_BYTES].try_into().expect("8 bytes"));
        let header = bytes[SLOT_BYTES..SLOT_CHECKSUM].try_into().expect("the slot's capacity");
        Some(Slot { sequence, header })
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4 bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_places_agree() {
        for data in (0..3000).chain((GROUP_BLOCKS * 50 - 3)..(GROUP_BLOCKS * 50 + 3)) {
            let blocks = file_blocks(data);
            assert_eq!(data_blocks(blocks), data, "{data} data blocks in {blocks}");
            if data > 0 {
                assert_eq!(data_block(data - 1) + 1, blocks, "the last of {data} ends the file");
            }
        }
        // A checksum block alone at the end holds no data.
        assert_eq!(data_blocks(file_blocks(GROUP_BLOCKS) + 1), GROUP_BLOCKS);
        assert_eq!(checksum_block(1), data_block(GROUP_BLOCKS - 1) + 1);
        assert_eq!(data_blocks(0), 0);
    }

    #[test]
    fn identity_block_is_as_documented() {
        let block = encode_identity(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10);
        assert_eq!(&block[..16], b"dogsled\0tree\x01\0\0\0");
        assert_eq!(
            &block[16..40],
            b"\x10\x0f\x0e\x0d\x0c\x0b\x0a\x09\x08\x07\x06\x05\x04\x03\x02\x01\0\x10\0\0\0\x04\0\0"
        );
        assert!(block[44..].iter().all(|byte| *byte == 0));
        assert_eq!(decode_identity(&block), Identity::Ours(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10));
    }

    #[test]
    fn every_flipped_bit_of_the_identity_is_damage() {
        let block = encode_identity(7);
        for bit in 0..44 * 8 {
            let mut flipped = block;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode_identity(&flipped), Identity::Damaged, "bit {bit}");
        }
    }

    #[test]
    fn other_files_are_told_apart() {
        let mut newer = encode_identity(7);
        newer[12] = 2;
        let crc = crc32fast::hash(&newer[..40]);
        newer[40..44].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(decode_identity(&newer), Identity::Newer(2));
        let mut redb = [0; BLOCK_SIZE];
        redb[..9].copy_from_slice(&REDB_MAGIC);
        assert_eq!(decode_identity(&redb), Identity::PlainRedb);
        assert_eq!(decode_identity(b""), Identity::Unknown);
        assert_eq!(decode_identity(&[0; BLOCK_SIZE]), Identity::Unknown);
    }

    #[test]
    fn a_slot_belongs_to_its_place() {
        let slot = Slot { sequence: 9, header: [3; HEADER_CAPACITY] };
        let block = slot.encode(1);
        assert_eq!(Slot::decode(1, &block), Some(slot));
        assert_eq!(Slot::decode(2, &block), None);
        assert_eq!(Slot::decode(1, &[0; BLOCK_SIZE]), None);
    }
}
