//! Frames; see the table in [`super`].

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

use super::WireError;

/// Bytes of a frame before its body.
pub const FRAME_HEADER_LENGTH: usize = 16;

/// Bodies up to this length are copied beside their header, longer ones travel as they are.
const COPIED_BODY: usize = 4 << 10;
/// What a new write buffer holds.
const WRITE_BUFFER: usize = 64 << 10;
/// Memory for a body before its bytes are there.
const FIRST_RESERVE: usize = 64 << 10;

/// What a frame is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FrameKind {
    /// Wants a reply.
    Request,
    /// The reply to the request with the same id.
    Reply,
    /// Instead of a reply or an item: there will be none, for the reason in the body (UTF-8).
    Failed,
    /// Wants a stream of items. The only frame that its stream carries in this direction.
    Open,
    /// One of a stream.
    Item,
    /// The stream is complete.
    End,
}

impl FrameKind {
    fn code(self) -> u8 {
        match self {
            FrameKind::Request => 1,
            FrameKind::Reply => 2,
            FrameKind::Failed => 3,
            FrameKind::Open => 4,
            FrameKind::Item => 5,
            FrameKind::End => 6,
        }
    }
}

/// What stands before a body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FrameHeader {
    /// Bytes of the body.
    pub length: u32,
    /// What the body is.
    pub kind: FrameKind,
    /// Of the request, chosen by the requester.
    pub id: u64,
}

/// The bytes of a header.
pub fn encode_header(header: &FrameHeader) -> [u8; FRAME_HEADER_LENGTH] {
    let mut bytes = [0; FRAME_HEADER_LENGTH];
    bytes[..4].copy_from_slice(&header.length.to_le_bytes());
    bytes[4] = header.kind.code();
    bytes[8..].copy_from_slice(&header.id.to_le_bytes());
    bytes
}

/// The header that stands in `bytes`, if its body is no longer than `limit`.
pub fn decode_header(bytes: &[u8; FRAME_HEADER_LENGTH], limit: usize) -> Result<FrameHeader, WireError> {
    let [l0, l1, l2, l3, kind, p0, p1, p2, id @ ..] = *bytes;
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    let kind = match kind {
        1 => FrameKind::Request,
        2 => FrameKind::Reply,
        3 => FrameKind::Failed,
        4 => FrameKind::Open,
        5 => FrameKind::Item,
        6 => FrameKind::End,
        _ => return Err(WireError::Malformed("a frame is of an unknown kind")),
    };
    if [p0, p1, p2] != [0; 3] {
        return Err(WireError::Malformed("padding of a frame is not zero"));
    }
    if usize::try_from(length).is_ok_and(|length| length <= limit) {
        Ok(FrameHeader { length, kind, id: u64::from_le_bytes(id) })
    } else {
        Err(WireError::TooLong { length: length.into(), limit })
    }
}

/// A header, its body, and how many bytes both had.
pub type DecodedFrame<'a> = (FrameHeader, &'a [u8], usize);

/// Takes a frame off the front of `bytes`: header, body, how many bytes they had. `None` if more
/// bytes are needed.
pub fn decode_frame(bytes: &[u8], limit: usize) -> Result<Option<DecodedFrame<'_>>, WireError> {
    let Some((header, rest)) = bytes.split_first_chunk::<FRAME_HEADER_LENGTH>() else { return Ok(None) };
    let header = decode_header(header, limit)?;
    let length = header.length as usize;
    Ok(rest.get(..length).map(|body| (header, body, FRAME_HEADER_LENGTH + length)))
}

/// Puts frames together from the pieces in which a stream arrives.
///
/// A body is always copied out of the pieces: they are parts of received datagrams, up to 64 KiB
/// in one allocation, all of which a small body that someone keeps would keep as well.
pub struct FrameReader {
    limit: usize,
    pieces: VecDeque<Bytes>,
    partial: Partial,
}

enum Partial {
    Header { bytes: [u8; FRAME_HEADER_LENGTH], filled: usize },
    Body { header: FrameHeader, body: Vec<u8> },
}

const NO_HEADER: Partial = Partial::Header { bytes: [0; FRAME_HEADER_LENGTH], filled: 0 };

impl FrameReader {
    /// For bodies up to `limit` bytes.
    pub fn new(limit: usize) -> FrameReader {
        FrameReader { limit, pieces: VecDeque::new(), partial: NO_HEADER }
    }

    /// Adds what the stream brought next.
    pub fn push(&mut self, piece: Bytes) {
        if !piece.is_empty() {
            self.pieces.push_back(piece);
        }
    }

    /// Whether a frame has begun that is not complete.
    pub fn is_between_frames(&self) -> bool {
        self.pieces.is_empty() && matches!(self.partial, Partial::Header { filled: 0, .. })
    }

    /// How many bytes there are of what is not complete.
    pub fn held(&self) -> usize {
        let partial = match &self.partial {
            Partial::Header { filled, .. } => *filled,
            Partial::Body { body, .. } => body.len(),
        };
        partial + self.pieces.iter().map(Bytes::len).sum::<usize>()
    }

    /// The next frame that is complete. After an error the stream is of no further use.
    pub fn next_frame(&mut self) -> Result<Option<(FrameHeader, Bytes)>, WireError> {
        loop {
            // The common case: header and body lie in one piece.
            if let (Partial::Header { filled: 0, .. }, Some(piece)) = (&self.partial, self.pieces.front_mut())
                && let Some((header, body, consumed)) = decode_frame(piece, self.limit)?
            {
                let body = Bytes::copy_from_slice(body);
                advance(&mut self.pieces, consumed);
                return Ok(Some((header, body)));
            }
            match &mut self.partial {
                Partial::Header { bytes, filled } => {
                    let Some(piece) = self.pieces.front() else { return Ok(None) };
                    let part = piece.len().min(FRAME_HEADER_LENGTH - *filled);
                    bytes[*filled..*filled + part].copy_from_slice(&piece[..part]);
                    *filled += part;
                    let filled = *filled;
                    advance(&mut self.pieces, part);
                    if filled == FRAME_HEADER_LENGTH {
                        let header = decode_header(bytes, self.limit)?;
                        let body = Vec::with_capacity((header.length as usize).min(FIRST_RESERVE));
                        self.partial = Partial::Body { header, body };
                    }
                }
                Partial::Body { header, body } => {
                    let missing = header.length as usize - body.len();
                    if missing == 0 {
                        let frame = (*header, Bytes::from(std::mem::take(body)));
                        self.partial = NO_HEADER;
                        return Ok(Some(frame));
                    }
                    let Some(piece) = self.pieces.front() else { return Ok(None) };
                    let part = piece.len().min(missing);
                    if body.capacity() - body.len() < part {
                        // Doubles what has arrived, never beyond what will.
                        body.reserve_exact(missing.min(body.len().max(part)));
                    }
                    body.extend_from_slice(&piece[..part]);
                    advance(&mut self.pieces, part);
                }
            }
        }
    }
}

/// Drops `count` bytes, which the first piece has.
fn advance(pieces: &mut VecDeque<Bytes>, count: usize) {
    if let Some(piece) = pieces.front_mut() {
        if piece.len() == count {
            pieces.pop_front();
        } else {
            bytes::Buf::advance(piece, count);
        }
    }
}

/// Collects frames for one write: small ones side by side in one buffer, large bodies uncopied.
#[derive(Default)]
pub struct FrameWriter {
    chunks: Vec<Bytes>,
    /// Chunks before this one are written.
    written: usize,
    buffer: BytesMut,
    length: usize,
}

impl FrameWriter {
    /// Adds a frame. The caller has compared the body with the receiver's limit, at most `u32::MAX`.
    pub fn push(&mut self, kind: FrameKind, id: u64, body: Bytes) {
        let length = u32::try_from(body.len()).expect("a body over 4 GiB passed the limit");
        let room = FRAME_HEADER_LENGTH + if body.len() <= COPIED_BODY { body.len() } else { 0 };
        if self.buffer.capacity() - self.buffer.len() < room {
            self.flush_buffer();
            self.buffer.reserve(WRITE_BUFFER);
        }
        self.buffer.extend_from_slice(&encode_header(&FrameHeader { length, kind, id }));
        self.length += FRAME_HEADER_LENGTH + body.len();
        if body.len() <= COPIED_BODY {
            self.buffer.extend_from_slice(&body);
        } else {
            self.flush_buffer();
            self.chunks.push(body);
        }
    }

    fn flush_buffer(&mut self) {
        if !self.buffer.is_empty() {
            self.chunks.push(self.buffer.split().freeze());
        }
    }

    /// Bytes that were pushed and not yet reported as written.
    pub fn pending(&self) -> usize {
        self.length
    }

    /// What to write next, never empty chunks; report progress to [`wrote`](Self::wrote).
    pub fn chunks(&mut self) -> &mut [Bytes] {
        self.flush_buffer();
        &mut self.chunks[self.written..]
    }

    /// The first `chunks` of the last [`chunks`](Self::chunks) went out whole, `bytes` in all.
    pub fn wrote(&mut self, chunks: usize, bytes: usize) {
        self.length -= bytes;
        self.written += chunks;
        if self.written == self.chunks.len() {
            self.chunks.clear();
            self.written = 0;
        } else {
            // Those are empty, but hold on to their memory.
            for done in &mut self.chunks[..self.written] {
                *done = Bytes::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &[u8] = b"\x05\0\0\0\x01\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01hello";

    #[test]
    fn every_kind_of_frame_has_golden_bytes() {
        let mut writer = FrameWriter::default();
        writer.push(FrameKind::Request, 0x0102_0304_0506_0708, Bytes::from_static(b"hello"));
        assert_eq!(writer.chunks().concat(), GOLDEN);
        for (kind, code) in [
            (FrameKind::Request, 1),
            (FrameKind::Reply, 2),
            (FrameKind::Failed, 3),
            (FrameKind::Open, 4),
            (FrameKind::Item, 5),
            (FrameKind::End, 6),
        ] {
            let header = FrameHeader { length: 0x0001_0203, kind, id: 9 };
            let golden = [3, 2, 1, 0, code, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0];
            assert_eq!(encode_header(&header), golden);
            assert_eq!(decode_header(&golden, 1 << 20), Ok(header));
        }
    }

    #[test]
    fn a_length_over_the_limit_is_refused_by_the_header_alone() {
        let mut reader = FrameReader::new(4);
        reader.push(Bytes::from_static(&GOLDEN[..15]));
        assert_eq!(reader.next_frame(), Ok(None));
        reader.push(Bytes::from_static(&GOLDEN[15..16]));
        assert_eq!(reader.next_frame(), Err(WireError::TooLong { length: 5, limit: 4 }));
        assert_eq!(decode_frame(&GOLDEN[..16], 4), Err(WireError::TooLong { length: 5, limit: 4 }));
    }

    #[test]
    fn frames_survive_any_division_into_pieces() {
        let mut writer = FrameWriter::default();
        let bodies: Vec<Bytes> =
            [0, 1, 300, 0, 5000, 17, 200_000].iter().map(|length| Bytes::from(vec![7u8; *length])).collect();
        for (id, body) in bodies.iter().enumerate() {
            writer.push(FrameKind::Reply, id as u64, body.clone());
        }
        let bytes = Bytes::from(writer.chunks().concat());
        assert_eq!(bytes.len(), writer.pending());
        for size in [1, 3, 15, 16, 17, 1200, 70_000, bytes.len()] {
            let mut reader = FrameReader::new(200_000);
            let mut read = Vec::new();
            let mut rest = bytes.clone();
            while !rest.is_empty() {
                reader.push(rest.split_to(size.min(rest.len())));
                while let Some((header, body)) = reader.next_frame().expect("sound") {
                    assert_eq!(header.id, read.len() as u64);
                    read.push(body);
                }
            }
            assert_eq!(read, bodies, "pieces of {size}");
            assert!(reader.is_between_frames());
        }
    }

    #[test]
    fn a_partly_written_batch_goes_on_where_it_stopped() {
        let mut writer = FrameWriter::default();
        writer.push(FrameKind::Request, 1, Bytes::from(vec![1; 10_000]));
        writer.push(FrameKind::Request, 2, Bytes::from(vec![2; 10]));
        let all = writer.chunks().concat();
        let mut out = Vec::new();
        while writer.pending() > 0 {
            let chunks = writer.chunks();
            let take = chunks[0].len().min(999);
            out.extend_from_slice(&chunks[0].split_to(take));
            let whole = usize::from(chunks[0].is_empty());
            writer.wrote(whole, take);
        }
        assert_eq!(out, all);
    }
}
