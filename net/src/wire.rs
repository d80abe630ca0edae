//! The bytes on a stream, laid out by hand, and back from bytes that nobody vouches for.
//!
//! A QUIC connection carries one of two protocols, chosen by ALPN: [`PEER_ALPN`] between nodes,
//! [`CLIENT_ALPN`] from clients. All integers are little-endian. There is no checksum: QUIC's
//! packets are sealed by TLS 1.3 (AES-GCM or ChaCha20-Poly1305), so a flipped bit is a packet that
//! never arrived, and what arrives is what an authenticated peer has written.
//!
//! # Greeting
//!
//! Between nodes the side that requests opens four bidirectional streams, one per [`Lane`](dogsled_replication::Lane), and
//! greets on each; a client greets on the first stream of its connection. The first twelve bytes of
//! a greeting, and a whole answer, keep their layout in all versions to come, so that any two
//! versions can tell each other why they part.
//!
//! | greeting | bytes |
//! |---|---|
//! | magic, `dogsled?` with `P` for a peer and `C` for a client | 8 |
//! | wire version ([`WIRE_VERSION`]) | 2 |
//! | length of the rest; the rest is the version's own | 2 |
//! | *peer, 57:* cluster u128, node that speaks u64, node that it dialled u64, its incarnation u128, longest reply it accepts u64, lane u8 (0 control, 1 data, 2 bulk, 3 client) | 57 |
//! | *client, 24:* cluster u128 (0: any), longest reply it accepts u64 | 24 |
//!
//! | answer | bytes |
//! |---|---|
//! | magic `dogsledA` | 8 |
//! | wire version of the side that answers | 2 |
//! | [`Verdict`]: 0 accepted, others refused | 1 |
//! | 0 | 1 |
//! | cluster u128, node that answers u64, its incarnation u128, longest request it accepts u64 | 48 |
//! | length of the reason, at most [`MAX_REASON_LENGTH`] | 2 |
//! | the reason in UTF-8, empty when accepted | … |
//!
//! An *incarnation* is drawn at random when a node's process starts: it tells a node that was
//! restarted from two nodes that were given one id.
//!
//! # Frames
//!
//! After an accepted greeting both directions are frames:
//!
//! | frame | bytes |
//! |---|---|
//! | length of the body | 4 |
//! | [`FrameKind`] | 1 |
//! | 0 | 3 |
//! | id: a reply carries that of its request | 8 |
//! | body | … |
//!
//! Requests go one way, replies (or [`FrameKind::Failed`], with a reason) come back in any order.
//! Ids are chosen by the requester, which alone gives them a meaning. A client's stream of results
//! has a bidirectional stream of its own: [`FrameKind::Open`] one way, then [`FrameKind::Item`]s
//! and last [`FrameKind::End`] the other. A stream that ends without it was cut.
//!
//! # Hostile bytes
//!
//! The length is compared with the receiver's limit before anything is allocated, and a body's
//! memory grows as its bytes arrive. Unknown kinds, non-zero padding, lengths over the limit and
//! wrong magics are errors, upon which the connection is closed; no input makes a decoder panic.
//! The `decode_*` functions are pure and take slices, for fuzzers.

mod frame;
mod greeting;

pub use frame::{
    DecodedFrame, FRAME_HEADER_LENGTH, FrameHeader, FrameKind, FrameReader, FrameWriter, decode_frame,
    decode_header, encode_header,
};
pub use greeting::{
    Answer, ClientHello, Greeting, Hello, MAX_ANSWER_LENGTH, MAX_GREETING_LENGTH, MAX_REASON_LENGTH, Verdict,
    decode_answer, decode_greeting, encode_answer, encode_client_hello, encode_hello,
};

/// ALPN of connections between nodes.
pub const PEER_ALPN: &[u8] = b"dogsled-peer/1";
/// ALPN of connections of clients.
pub const CLIENT_ALPN: &[u8] = b"dogsled-client/1";
/// Version of greetings and frames that this build speaks. Version 1 had no lane for clients' requests.
pub const WIRE_VERSION: u16 = 2;

/// Why bytes are not what they should be.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not those of this protocol.
    Magic,
    /// The other side speaks another version.
    Version {
        /// The version that it named.
        theirs: u16,
    },
    /// A body longer than the receiver accepts.
    TooLong {
        /// What the header claims.
        length: u64,
        /// The most that is accepted.
        limit: usize,
    },
    /// Something else that no sound peer writes.
    Malformed(&'static str),
}

impl std::fmt::Display for WireError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            WireError::Magic => f.write_str("the first bytes are not those of dogsled's protocol"),
            WireError::Version { theirs } => {
                write!(f, "wire version {theirs} is unknown here, which speaks version {WIRE_VERSION}")
            }
            WireError::TooLong { length, limit } => {
                write!(f, "a frame of {length} bytes is over the limit of {limit}")
            }
            WireError::Malformed(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for WireError {}

/// Reads fixed-size fields off the front of a slice whose length was checked beforehand.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        let (head, rest) =
            self.0.split_first_chunk::<N>().ok_or(WireError::Malformed("a greeting is cut short"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn u8(&mut self) -> Result<u8, WireError> {
        Ok(self.take::<1>()?[0])
    }

    fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.take()?))
    }

    fn u128(&mut self) -> Result<u128, WireError> {
        Ok(u128::from_le_bytes(self.take()?))
    }
}
