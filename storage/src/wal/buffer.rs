//! [`Buffer`]: the bytes of one commit group, at an address that direct writes accept.

use crate::disk::BLOCK_SIZE;

use super::format::{FRAME_HEADER_SIZE, padded};

/// Larger ones are given back to the allocator after use.
const KEPT: usize = 16 << 20;

/// Room for a frame header, then a payload, in whole blocks at a block-aligned address.
///
/// The alignment comes from slack at the beginning of an ordinary vector; it holds because the
/// vector is never moved to another allocation without the bytes being laid out anew.
pub(super) struct Buffer {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Buffer {
    pub(super) fn new(capacity: usize) -> Buffer {
        // There is room for the header wherever the first block begins.
        let bytes = vec![0; padded(capacity.max(FRAME_HEADER_SIZE)) + BLOCK_SIZE];
        let start = bytes.as_ptr().align_offset(BLOCK_SIZE);
        assert!(start <= BLOCK_SIZE, "no aligned address within {BLOCK_SIZE} bytes of slack");
        Buffer { bytes, start, length: FRAME_HEADER_SIZE }
    }

    /// Whole blocks of zeros, header included.
    pub(super) fn zeros(length: usize) -> Buffer {
        let mut buffer = Buffer::new(length);
        buffer.length = length;
        buffer
    }

    /// Length of the frame so far, its header included.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    pub(super) fn payload(&self) -> &[u8] {
        &self.bytes[self.start + FRAME_HEADER_SIZE..self.start + self.length]
    }

    #[inline]
    pub(super) fn extend(&mut self, part: &[u8]) {
        let end = self.length + part.len();
        if self.start + padded(end) > self.bytes.len() {
            self.grow(end);
        }
        self.bytes[self.start + self.length..self.start + end].copy_from_slice(part);
        self.length = end;
    }

    #[cold]
    fn grow(&mut self, needed: usize) {
        let mut larger = Buffer::new(needed.max(2 * self.length));
        larger.bytes[larger.start..larger.start + self.length]
            .copy_from_slice(&self.bytes[self.start..self.start + self.length]);
        larger.length = self.length;
        *self = larger;
    }

    /// The frame in whole blocks, its tail zero.
    pub(super) fn frame_mut(&mut self) -> &mut [u8] {
        let end = padded(self.length);
        let frame = &mut self.bytes[self.start..self.start + end];
        frame[self.length..].fill(0);
        frame
    }

    /// The frame as [`Buffer::frame_mut`] left it.
    pub(super) fn frame(&self) -> &[u8] {
        &self.bytes[self.start..self.start + padded(self.length)]
    }

    /// Makes it empty for the next group.
    pub(super) fn clear(&mut self) {
        if self.bytes.len() > KEPT {
            *self = Buffer::new(BLOCK_SIZE);
        }
        self.length = FRAME_HEADER_SIZE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_aligned_and_zero_padded_while_it_grows_and_is_reused() {
        let mut buffer = Buffer::new(0);
        for round in 0..3u8 {
            let mut expected = Vec::new();
            for part in 0..200usize {
                let bytes = vec![round + 1; part * 7];
                buffer.extend(&bytes);
                expected.extend(bytes);
            }
            assert_eq!(buffer.payload(), expected);
            let length = buffer.length();
            let frame = buffer.frame_mut();
            assert_eq!(frame.as_ptr() as usize % BLOCK_SIZE, 0);
            assert_eq!(frame.len() % BLOCK_SIZE, 0);
            assert!(frame[length..].iter().all(|byte| *byte == 0));
            buffer.clear();
            buffer.extend(&[9; 3]);
            assert!(buffer.frame_mut()[FRAME_HEADER_SIZE + 3..].iter().all(|byte| *byte == 0));
            buffer.clear();
        }
    }
}
