//! The bytes of a segment: its header, frames and records; see the [layout](super#layout).

use crate::disk::BLOCK_SIZE;

use super::StreamId;

/// The only format this code reads and writes. (Version 1 had no seals; no release wrote it.)
pub(crate) const FORMAT_VERSION: u32 = 2;

/// Where a segment's first frame begins.
pub(super) const FIRST_FRAME: u64 = BLOCK_SIZE as u64;

pub(super) const SEGMENT_HEADER_SIZE: usize = 64;
pub(super) const FRAME_HEADER_SIZE: usize = 64;
pub(super) const RECORD_HEADER_SIZE: usize = 17;

/// No record is larger, so that lengths fit their fields with room to spare.
pub(super) const MAX_RECORD: usize = 1 << 30;

const SEGMENT_MAGIC: [u8; 8] = *b"dogswal\0";
const FRAME_MAGIC: u32 = u32::from_le_bytes(*b"dWfr");

/// The frame opens its segment: its payload is an [`Opening`].
pub(super) const FLAG_OPENING: u32 = 1;
/// The frame was written by an orderly shutdown; it says that all before it is durable.
pub(super) const FLAG_CLOSED: u32 = 2;
/// The frame is a segment's [seal](super#seals): in its last block, it says that the log goes on in
/// the next segment.
pub(super) const FLAG_SEAL: u32 = 4;

/// Where the frames of a segment of this size end: the last block is its seal's.
pub(super) fn frames_end(size: u64) -> u64 {
    size.saturating_sub(BLOCK_SIZE as u64)
}

/// Whether a file begins as a segment does, be it damaged in one of two places.
pub(super) fn is_start_of_segment(bytes: &[u8]) -> bool {
    let frame = bytes.get(FIRST_FRAME as usize..FIRST_FRAME as usize + FRAME_HEADER_SIZE);
    bytes.starts_with(&SEGMENT_MAGIC) || frame.is_some_and(|frame| FrameHeader::decode(frame).is_some())
}

/// Rounds up to whole blocks.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(BLOCK_SIZE)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// The first 64 bytes of a segment file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) database_id: u128,
    pub(super) number: u64,
    pub(super) epoch: u64,
    pub(super) size: u64,
}

/// What the first bytes of a segment turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderFound {
    Sound(SegmentHeader),
    OtherVersion(u32),
    Damaged(&'static str),
}

impl SegmentHeader {
    pub(super) fn encode(&self, out: &mut [u8]) {
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        out[12..16].fill(0);
        out[16..32].copy_from_slice(&self.database_id.to_le_bytes());
        out[32..40].copy_from_slice(&self.number.to_le_bytes());
        out[40..48].copy_from_slice(&self.epoch.to_le_bytes());
        out[48..56].copy_from_slice(&self.size.to_le_bytes());
        out[56..60].fill(0);
        let crc = crc32fast::hash(&out[..60]);
        out[60..64].copy_from_slice(&crc.to_le_bytes());
    }

    pub(super) fn decode(bytes: &[u8]) -> HeaderFound {
        if bytes.len() < SEGMENT_HEADER_SIZE {
            return HeaderFound::Damaged("the file is too short for a segment header");
        }
        if bytes[..8] != SEGMENT_MAGIC {
            return HeaderFound::Damaged("the segment header does not begin with its magic bytes");
        }
        // The checksum's place and extent are the same in all versions to come, so a damaged
        // version number is not taken for a newer format.
        if crc32fast::hash(&bytes[..60]) != u32_at(bytes, 60) {
            return HeaderFound::Damaged("the segment header does not match its checksum");
        }
        let version = u32_at(bytes, 8);
        if version != FORMAT_VERSION {
            return HeaderFound::OtherVersion(version);
        }
        HeaderFound::Sound(SegmentHeader {
            database_id: u128::from_le_bytes(bytes[16..32].try_into().expect("sixteen bytes")),
            number: u64_at(bytes, 32),
            epoch: u64_at(bytes, 40),
            size: u64_at(bytes, 48),
        })
    }
}

/// The 64 bytes before a frame's payload.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct FrameHeader {
    pub(super) flags: u32,
    pub(super) epoch: u64,
    pub(super) segment: u64,
    pub(super) group: u64,
    pub(super) durable: u64,
    pub(super) payload_length: u32,
    pub(super) records: u32,
    /// The header checksum of the frame before this one.
    pub(super) previous: u32,
    pub(super) payload_crc: u32,
    /// This header's own checksum.
    pub(super) crc: u32,
}

impl FrameHeader {
    /// Fills in both checksums and lays the header down before the payload that follows it in
    /// `frame`. Returns the header's checksum.
    pub(super) fn seal(&mut self, frame: &mut [u8]) -> u32 {
        let (head, rest) = frame.split_at_mut(FRAME_HEADER_SIZE);
        let payload = &rest[..self.payload_length as usize];
        head[..4].copy_from_slice(&FRAME_MAGIC.to_le_bytes());
        head[4..8].copy_from_slice(&self.flags.to_le_bytes());
        head[8..16].copy_from_slice(&self.epoch.to_le_bytes());
        head[16..24].copy_from_slice(&self.segment.to_le_bytes());
        head[24..32].copy_from_slice(&self.group.to_le_bytes());
        head[32..40].copy_from_slice(&self.durable.to_le_bytes());
        head[40..44].copy_from_slice(&self.payload_length.to_le_bytes());
        head[44..48].copy_from_slice(&self.records.to_le_bytes());
        head[48..52].copy_from_slice(&self.previous.to_le_bytes());
        self.payload_crc = payload_checksum(head, payload);
        head[52..56].copy_from_slice(&self.payload_crc.to_le_bytes());
        head[56..60].fill(0);
        self.crc = crc32fast::hash(&head[..60]);
        head[60..64].copy_from_slice(&self.crc.to_le_bytes());
        self.crc
    }

    /// The header at the start of `bytes`, if it is sound; the payload may not be.
    pub(super) fn decode(bytes: &[u8]) -> Option<FrameHeader> {
        if bytes.len() < FRAME_HEADER_SIZE || u32_at(bytes, 0) != FRAME_MAGIC {
            return None;
        }
        let crc = u32_at(bytes, 60);
        if crc32fast::hash(&bytes[..60]) != crc {
            return None;
        }
        Some(FrameHeader {
            flags: u32_at(bytes, 4),
            epoch: u64_at(bytes, 8),
            segment: u64_at(bytes, 16),
            group: u64_at(bytes, 24),
            durable: u64_at(bytes, 32),
            payload_length: u32_at(bytes, 40),
            records: u32_at(bytes, 44),
            previous: u32_at(bytes, 48),
            payload_crc: u32_at(bytes, 52),
            crc,
        })
    }

    /// Bytes that the frame takes in its segment.
    pub(super) fn padded_length(&self) -> u64 {
        padded(FRAME_HEADER_SIZE + self.payload_length as usize) as u64
    }

    /// The payload of the frame that begins at `bytes`, if it is all there and sound.
    pub(super) fn payload<'a>(&self, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let end = FRAME_HEADER_SIZE.checked_add(self.payload_length as usize)?;
        let payload = bytes.get(FRAME_HEADER_SIZE..end)?;
        (payload_checksum(bytes, payload) == self.payload_crc).then_some(payload)
    }
}

/// Covers the header before it too, so that a payload cannot be paired with another header.
fn payload_checksum(header: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&header[..52]);
    hasher.update(payload);
    hasher.finalize()
}

/// The header of a segment's seal: `group` is the first of the next segment, and `previous` the
/// checksum of the last frame here.
pub(super) fn seal_header(segment: u64, epoch: u64, group: u64, previous: u32) -> FrameHeader {
    FrameHeader {
        flags: FLAG_SEAL,
        epoch,
        segment,
        group,
        durable: group - 1,
        previous,
        ..FrameHeader::default()
    }
}

/// What a record does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Append = 1,
    TruncateAfter = 2,
    PurgeTo = 3,
    SetState = 4,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        match byte {
            1 => Some(Kind::Append),
            2 => Some(Kind::TruncateAfter),
            3 => Some(Kind::PurgeTo),
            4 => Some(Kind::SetState),
            _ => None,
        }
    }

    /// Whether it lets entries go, which may free segments.
    pub(super) fn releases(self) -> bool {
        matches!(self, Kind::TruncateAfter | Kind::PurgeTo)
    }
}

/// One record of a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record<'a> {
    pub(super) kind: Kind,
    pub(super) stream: StreamId,
    pub(super) index: u64,
    pub(super) bytes: &'a [u8],
}

pub(super) fn encode_record_header(
    kind: Kind,
    stream: StreamId,
    index: u64,
    length: usize,
) -> [u8; RECORD_HEADER_SIZE] {
    assert!(length <= MAX_RECORD, "a record of {length} bytes is over the limit");
    let mut out = [0; RECORD_HEADER_SIZE];
    out[0] = kind as u8;
    out[1..5].copy_from_slice(&stream.0.to_le_bytes());
    out[5..13].copy_from_slice(&index.to_le_bytes());
    out[13..17].copy_from_slice(&(length as u32).to_le_bytes());
    out
}

/// The records of a payload from a position on. Ends with an error at bytes that are no record.
pub(super) struct Records<'a> {
    payload: &'a [u8],
    position: usize,
}

/// Bytes that pass their checksum and are no record all the same; where in the payload.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoRecord {
    pub(super) position: usize,
}

impl<'a> Records<'a> {
    pub(super) fn new(payload: &'a [u8], position: usize) -> Records<'a> {
        Records { payload, position }
    }

    /// Where in the payload the next record begins.
    pub(super) fn position(&self) -> usize {
        self.position
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Record<'a>, NoRecord>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let rest = self.payload.get(self.position..).unwrap_or_default();
        if rest.is_empty() {
            return None;
        }
        let no_record = NoRecord { position: self.position };
        if rest.len() < RECORD_HEADER_SIZE {
            self.position = self.payload.len();
            return Some(Err(no_record));
        }
        let end = RECORD_HEADER_SIZE + u32_at(rest, 13) as usize;
        let (Some(kind), Some(bytes)) = (Kind::from_byte(rest[0]), rest.get(RECORD_HEADER_SIZE..end)) else {
            self.position = self.payload.len();
            return Some(Err(no_record));
        };
        self.position += end;
        Some(Ok(Record { kind, stream: StreamId(u32_at(rest, 1)), index: u64_at(rest, 5), bytes }))
    }
}

/// What a stream holds at the beginning of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct StreamOpening {
    pub(super) stream: StreamId,
    /// First and last index; `None` when it has no entries.
    pub(super) bounds: Option<(u64, u64)>,
    /// The register; empty for none.
    pub(super) state: Vec<u8>,
}

/// The payload of a segment's first frame: where the segment before it ends, and what is needed
/// to do without the segments before.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub(super) struct Opening {
    /// Zero in the first segment of a database.
    pub(super) previous_segment: u64,
    pub(super) previous_end: u64,
    pub(super) streams: Vec<StreamOpening>,
}

pub(super) const OPENING_FIXED: usize = 20;
pub(super) const OPENING_PER_STREAM: usize = 24;

impl Opening {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(OPENING_FIXED + self.streams.len() * OPENING_PER_STREAM);
        out.extend_from_slice(&self.previous_segment.to_le_bytes());
        out.extend_from_slice(&self.previous_end.to_le_bytes());
        out.extend_from_slice(&(self.streams.len() as u32).to_le_bytes());
        for stream in &self.streams {
            // An empty stream is one whose first index is beyond its last.
            let (first, last) = stream.bounds.unwrap_or((1, 0));
            out.extend_from_slice(&stream.stream.0.to_le_bytes());
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&last.to_le_bytes());
            out.extend_from_slice(&(stream.state.len() as u32).to_le_bytes());
            out.extend_from_slice(&stream.state);
        }
        out
    }

    pub(super) fn decode(payload: &[u8]) -> Option<Opening> {
        let fixed = payload.get(..OPENING_FIXED)?;
        let mut opening = Opening {
            previous_segment: u64_at(fixed, 0),
            previous_end: u64_at(fixed, 8),
            streams: Vec::new(),
        };
        let mut rest = &payload[OPENING_FIXED..];
        for _ in 0..u32_at(fixed, 16) {
            let head = rest.get(..OPENING_PER_STREAM)?;
            let (first, last) = (u64_at(head, 4), u64_at(head, 12));
            let end = OPENING_PER_STREAM.checked_add(u32_at(head, 20) as usize)?;
            opening.streams.push(StreamOpening {
                stream: StreamId(u32_at(head, 0)),
                bounds: (first <= last).then_some((first, last)),
                state: rest.get(OPENING_PER_STREAM..end)?.to_vec(),
            });
            rest = &rest[end..];
        }
        rest.is_empty().then_some(opening)
    }
}

/// For the fuzz targets: decodes `bytes` as everything a segment holds, none of which may panic,
/// and lays them down as a payload, which must come back as it was.
#[doc(hidden)]
pub fn fuzz_frame(bytes: &[u8]) {
    if let HeaderFound::Sound(header) = SegmentHeader::decode(bytes) {
        let mut again = [0; SEGMENT_HEADER_SIZE];
        header.encode(&mut again);
        assert_eq!(SegmentHeader::decode(&again), HeaderFound::Sound(header));
    }
    if let Some(header) = FrameHeader::decode(bytes)
        && let Some(payload) = header.payload(bytes)
    {
        Records::new(payload, 0).for_each(drop);
    }
    Records::new(bytes, 0).for_each(drop);
    if let Some(opening) = Opening::decode(bytes) {
        assert_eq!(Opening::decode(&opening.encode()), Some(opening));
    }
    let mut frame = vec![0; padded(FRAME_HEADER_SIZE + bytes.len())];
    frame[FRAME_HEADER_SIZE..][..bytes.len()].copy_from_slice(bytes);
    let mut header = FrameHeader {
        epoch: bytes.len() as u64,
        payload_length: bytes.len() as u32,
        ..FrameHeader::default()
    };
    header.seal(&mut frame);
    let found = FrameHeader::decode(&frame).expect("a header that was just laid down");
    assert_eq!(found, header);
    assert_eq!(found.payload(&frame), Some(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_segment_header_has_these_bytes() {
        let header = SegmentHeader { database_id: 0x0102, number: 3, epoch: 4, size: 1 << 20 };
        let mut bytes = [0xff; SEGMENT_HEADER_SIZE];
        header.encode(&mut bytes);
        let mut golden = b"dogswal\0\x02\0\0\0\0\0\0\0\x02\x01".to_vec();
        golden.resize(32, 0);
        golden
            .extend([3, 0, 0, 0, 0, 0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[..60], golden[..]);
        assert_eq!(SegmentHeader::decode(&bytes), HeaderFound::Sound(header));
    }

    #[test]
    fn a_seal_has_these_bytes() {
        let mut bytes = [0xff; FRAME_HEADER_SIZE];
        seal_header(3, 4, 9, 0x0102_0304).seal(&mut bytes);
        let mut golden = b"dWfr\x04\0\0\0".to_vec();
        for number in [4u64, 3, 9, 8] {
            golden.extend(number.to_le_bytes());
        }
        golden.extend([0, 0, 0, 0, 0, 0, 0, 0, 4, 3, 2, 1]);
        assert_eq!(bytes[..52], golden[..]);
        let found = FrameHeader::decode(&bytes).expect("sound");
        assert_eq!(found.payload(&bytes), Some(&b""[..]));
    }

    #[test]
    fn another_version_is_told_from_a_damaged_one() {
        let header = SegmentHeader { database_id: 1, number: 3, epoch: 4, size: 1 << 20 };
        let mut bytes = [0; SEGMENT_HEADER_SIZE];
        header.encode(&mut bytes);
        for version in [1, 3] {
            bytes[8] = version;
            assert!(matches!(SegmentHeader::decode(&bytes), HeaderFound::Damaged(_)));
            let crc = crc32fast::hash(&bytes[..60]);
            bytes[60..].copy_from_slice(&crc.to_le_bytes());
            assert_eq!(SegmentHeader::decode(&bytes), HeaderFound::OtherVersion(u32::from(version)));
        }
    }

    #[test]
    fn every_flipped_bit_of_a_frame_is_noticed() {
        let mut frame = vec![0; 4096];
        frame[FRAME_HEADER_SIZE..FRAME_HEADER_SIZE + 100].fill(5);
        let mut header = FrameHeader { payload_length: 100, group: 9, ..FrameHeader::default() };
        header.seal(&mut frame);
        let sound = |frame: &[u8]| {
            let found = FrameHeader::decode(frame)?;
            Some((found.clone(), found.payload(frame)?.to_vec()))
        };
        assert_eq!(sound(&frame), Some((header, vec![5; 100])));
        for bit in 0..(FRAME_HEADER_SIZE + 100) * 8 {
            frame[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(sound(&frame), None, "bit {bit}");
            frame[bit / 8] ^= 1 << (bit % 8);
        }
    }

    #[test]
    fn an_opening_round_trips_and_survives_being_cut_short() {
        let opening = Opening {
            previous_segment: 4,
            previous_end: 8192,
            streams: vec![
                StreamOpening { stream: StreamId(0), bounds: Some((3, 9)), state: vec![1, 2] },
                StreamOpening { stream: StreamId(7), bounds: None, state: vec![] },
            ],
        };
        let bytes = opening.encode();
        assert_eq!(Opening::decode(&bytes), Some(opening));
        for length in 0..bytes.len() {
            assert_eq!(Opening::decode(&bytes[..length]), None);
        }
    }
}
