//! Greetings and their answers; see the table in [`super`].

use dogsled_replication::{Lane, NodeId};

use super::{Fields, WIRE_VERSION, WireError};

const PEER_MAGIC: &[u8; 8] = b"dogsledP";
const CLIENT_MAGIC: &[u8; 8] = b"dogsledC";
const ANSWER_MAGIC: &[u8; 8] = b"dogsledA";

/// Magic, version, length of the rest.
const PREFIX_LENGTH: usize = 12;
const HELLO_LENGTH: usize = 57;
const CLIENT_HELLO_LENGTH: usize = 24;
/// All of an answer but its reason.
const ANSWER_LENGTH: usize = 62;

/// No greeting of any version is longer: what a receiver reads before it gives up.
pub const MAX_GREETING_LENGTH: usize = PREFIX_LENGTH + 1024;
/// The longest reason of a refusal, in bytes.
pub const MAX_REASON_LENGTH: usize = 512;
/// The longest answer, in bytes.
pub const MAX_ANSWER_LENGTH: usize = ANSWER_LENGTH + MAX_REASON_LENGTH;

/// What a node says first on each of its four streams to a peer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// The cluster that the node belongs to.
    pub cluster: u128,
    /// The node that speaks.
    pub from: NodeId,
    /// The node that it wants to speak to.
    pub to: NodeId,
    /// Drawn when the speaker's process started.
    pub incarnation: u128,
    /// The longest body of a reply that it accepts.
    pub max_body: u64,
    /// What this stream is for.
    pub lane: Lane,
}

/// What a client says first on the first stream of its connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientHello {
    /// The cluster that it wants, 0 for any.
    pub cluster: u128,
    /// The longest body of a reply that it accepts.
    pub max_body: u64,
}

/// The first message of a stream.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Greeting {
    /// Of a node.
    Peer(Hello),
    /// Of a client.
    Client(ClientHello),
}

/// What became of a greeting.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Verdict {
    /// Frames may follow.
    Accepted,
    /// The wire version is unknown.
    Version,
    /// The other side belongs to another cluster.
    Cluster,
    /// The certificate does not name who the greeting says, or someone else was dialled.
    Identity,
    /// Another process holds a connection under this node id.
    DuplicateId,
    /// Too many connections, or going down.
    Busy,
    /// The greeting makes no sense.
    Malformed,
    /// A refusal of a later version; the reason says more.
    Other(u8),
}

impl Verdict {
    /// The byte on the wire.
    pub fn code(self) -> u8 {
        match self {
            Verdict::Accepted => 0,
            Verdict::Version => 1,
            Verdict::Cluster => 2,
            Verdict::Identity => 3,
            Verdict::DuplicateId => 4,
            Verdict::Busy => 5,
            Verdict::Malformed => 6,
            Verdict::Other(code) => code,
        }
    }

    fn of(code: u8) -> Verdict {
        match code {
            0 => Verdict::Accepted,
            1 => Verdict::Version,
            2 => Verdict::Cluster,
            3 => Verdict::Identity,
            4 => Verdict::DuplicateId,
            5 => Verdict::Busy,
            6 => Verdict::Malformed,
            other => Verdict::Other(other),
        }
    }
}

/// The answer to a greeting.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer {
    /// Wire version of the side that answers.
    pub version: u16,
    /// Accepted or not.
    pub verdict: Verdict,
    /// The cluster of the node that answers.
    pub cluster: u128,
    /// The node that answers.
    pub node: NodeId,
    /// Drawn when its process started.
    pub incarnation: u128,
    /// The longest body of a request that it accepts.
    pub max_body: u64,
    /// Why it refuses; empty if it does not.
    pub reason: String,
}

fn lane_code(lane: Lane) -> u8 {
    match lane {
        Lane::Control => 0,
        Lane::Data => 1,
        Lane::Bulk => 2,
        Lane::Client => 3,
    }
}

fn prefix(magic: &[u8; 8], rest: u16, bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(magic);
    bytes.extend_from_slice(&WIRE_VERSION.to_le_bytes());
    bytes.extend_from_slice(&rest.to_le_bytes());
}

/// The bytes of a node's greeting.
pub fn encode_hello(hello: &Hello) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_LENGTH + HELLO_LENGTH);
    prefix(PEER_MAGIC, HELLO_LENGTH as u16, &mut bytes);
    bytes.extend_from_slice(&hello.cluster.to_le_bytes());
    bytes.extend_from_slice(&hello.from.0.to_le_bytes());
    bytes.extend_from_slice(&hello.to.0.to_le_bytes());
    bytes.extend_from_slice(&hello.incarnation.to_le_bytes());
    bytes.extend_from_slice(&hello.max_body.to_le_bytes());
    bytes.push(lane_code(hello.lane));
    bytes
}

/// The bytes of a client's greeting.
pub fn encode_client_hello(hello: &ClientHello) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PREFIX_LENGTH + CLIENT_HELLO_LENGTH);
    prefix(CLIENT_MAGIC, CLIENT_HELLO_LENGTH as u16, &mut bytes);
    bytes.extend_from_slice(&hello.cluster.to_le_bytes());
    bytes.extend_from_slice(&hello.max_body.to_le_bytes());
    bytes
}

/// The bytes of an answer. A reason over the limit is cut.
pub fn encode_answer(answer: &Answer) -> Vec<u8> {
    let mut end = answer.reason.len().min(MAX_REASON_LENGTH);
    while !answer.reason.is_char_boundary(end) {
        end -= 1;
    }
    let reason = &answer.reason.as_bytes()[..end];
    let mut bytes = Vec::with_capacity(ANSWER_LENGTH + reason.len());
    bytes.extend_from_slice(ANSWER_MAGIC);
    bytes.extend_from_slice(&answer.version.to_le_bytes());
    bytes.push(answer.verdict.code());
    bytes.push(0);
    bytes.extend_from_slice(&answer.cluster.to_le_bytes());
    bytes.extend_from_slice(&answer.node.0.to_le_bytes());
    bytes.extend_from_slice(&answer.incarnation.to_le_bytes());
    bytes.extend_from_slice(&answer.max_body.to_le_bytes());
    bytes.extend_from_slice(&(end as u16).to_le_bytes());
    bytes.extend_from_slice(reason);
    bytes
}

/// Takes a greeting off the front of `bytes`: with it, how many bytes it had. `None` if more bytes
/// are needed. An unknown version is reported as soon as its number is there.
pub fn decode_greeting(bytes: &[u8]) -> Result<Option<(Greeting, usize)>, WireError> {
    let magic_part = bytes.get(..8).unwrap_or(bytes);
    let peer = PEER_MAGIC.starts_with(magic_part);
    let client = CLIENT_MAGIC.starts_with(magic_part);
    if !peer && !client {
        return Err(WireError::Magic);
    }
    if bytes.len() < PREFIX_LENGTH {
        return Ok(None);
    }
    let mut fields = Fields(&bytes[8..]);
    let version = fields.u16()?;
    if version != WIRE_VERSION {
        return Err(WireError::Version { theirs: version });
    }
    let length = usize::from(fields.u16()?);
    let expected = if peer { HELLO_LENGTH } else { CLIENT_HELLO_LENGTH };
    if length != expected {
        return Err(WireError::Malformed("a greeting has another length than its version says"));
    }
    if fields.0.len() < length {
        return Ok(None);
    }
    let greeting = if peer {
        Greeting::Peer(Hello {
            cluster: fields.u128()?,
            from: NodeId(fields.u64()?),
            to: NodeId(fields.u64()?),
            incarnation: fields.u128()?,
            max_body: fields.u64()?,
            lane: match fields.u8()? {
                0 => Lane::Control,
                1 => Lane::Data,
                2 => Lane::Bulk,
                3 => Lane::Client,
                _ => return Err(WireError::Malformed("a greeting names an unknown lane")),
            },
        })
    } else {
        Greeting::Client(ClientHello { cluster: fields.u128()?, max_body: fields.u64()? })
    };
    Ok(Some((greeting, PREFIX_LENGTH + length)))
}

/// Takes an answer off the front of `bytes`: with it, how many bytes it had. `None` if more bytes
/// are needed. Answers of other versions decode too: their verdict says that they refuse.
pub fn decode_answer(bytes: &[u8]) -> Result<Option<(Answer, usize)>, WireError> {
    if !ANSWER_MAGIC.starts_with(bytes.get(..8).unwrap_or(bytes)) {
        return Err(WireError::Magic);
    }
    if bytes.len() < ANSWER_LENGTH {
        return Ok(None);
    }
    let mut fields = Fields(&bytes[8..]);
    let version = fields.u16()?;
    let verdict = Verdict::of(fields.u8()?);
    if fields.u8()? != 0 {
        return Err(WireError::Malformed("padding of an answer is not zero"));
    }
    let mut answer = Answer {
        version,
        verdict,
        cluster: fields.u128()?,
        node: NodeId(fields.u64()?),
        incarnation: fields.u128()?,
        max_body: fields.u64()?,
        reason: String::new(),
    };
    let length = usize::from(fields.u16()?);
    if length > MAX_REASON_LENGTH {
        return Err(WireError::TooLong { length: length as u64, limit: MAX_REASON_LENGTH });
    }
    let Some(reason) = fields.0.get(..length) else { return Ok(None) };
    answer.reason =
        std::str::from_utf8(reason).map_err(|_| WireError::Malformed("a reason is not UTF-8"))?.to_owned();
    if verdict == Verdict::Accepted && version != WIRE_VERSION {
        return Err(WireError::Version { theirs: version });
    }
    Ok(Some((answer, ANSWER_LENGTH + length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello {
            cluster: 0x0f0e_0d0c_0b0a_0908_0706_0504_0302_0100,
            from: NodeId(3),
            to: NodeId(0x1122_3344_5566_7788),
            incarnation: 0xab,
            max_body: 16 << 20,
            lane: Lane::Bulk,
        }
    }

    #[test]
    fn a_nodes_greeting_has_golden_bytes() {
        let mut golden = b"dogsledP\x02\x00\x39\x00".to_vec();
        golden.extend(0..=15);
        golden.extend_from_slice(b"\x03\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\x88\x77\x66\x55\x44\x33\x22\x11");
        golden.extend_from_slice(b"\xab\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\0\0\0\x01\0\0\0\0\x02");
        assert_eq!(encode_hello(&hello()), golden);
        assert_eq!(decode_greeting(&golden), Ok(Some((Greeting::Peer(hello()), golden.len()))));
        for cut in 0..golden.len() {
            assert_eq!(decode_greeting(&golden[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn a_clients_greeting_has_golden_bytes() {
        let hello = ClientHello { cluster: 7, max_body: 258 };
        let mut golden = b"dogsledC\x02\x00\x18\x00".to_vec();
        golden.extend_from_slice(b"\x07\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\x02\x01\0\0\0\0\0\0");
        assert_eq!(encode_client_hello(&hello), golden);
        assert_eq!(decode_greeting(&golden), Ok(Some((Greeting::Client(hello), golden.len()))));
    }

    #[test]
    fn an_answer_has_golden_bytes() {
        let answer = Answer {
            version: WIRE_VERSION,
            verdict: Verdict::Cluster,
            cluster: 1,
            node: NodeId(2),
            incarnation: 3,
            max_body: 4,
            reason: "no".to_owned(),
        };
        let mut golden = b"dogsledA\x02\x00\x02\x00".to_vec();
        golden.extend_from_slice(b"\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\x02\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\x03\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
        golden.extend_from_slice(b"\x04\0\0\0\0\0\0\0\x02\0no");
        assert_eq!(encode_answer(&answer), golden);
        assert_eq!(decode_answer(&golden), Ok(Some((answer, golden.len()))));
        for cut in 0..golden.len() {
            assert_eq!(decode_answer(&golden[..cut]), Ok(None), "cut at {cut}");
        }
    }

    #[test]
    fn an_unknown_version_is_named_whatever_follows() {
        let greeting = b"dogsledP\x2a\x00\xff\xff";
        assert_eq!(decode_greeting(greeting), Err(WireError::Version { theirs: 42 }));
    }

    #[test]
    fn a_refusal_of_a_later_version_is_readable() {
        let answer = Answer {
            version: 9,
            verdict: Verdict::Other(77),
            cluster: 1,
            node: NodeId(2),
            incarnation: 3,
            max_body: 4,
            reason: "moon phase".to_owned(),
        };
        let bytes = encode_answer(&answer);
        assert_eq!(decode_answer(&bytes), Ok(Some((answer, bytes.len()))));
    }

    #[test]
    fn a_long_reason_is_cut_at_a_character() {
        let reason = format!("{}é", "x".repeat(MAX_REASON_LENGTH - 1));
        let answer = Answer {
            version: 1,
            verdict: Verdict::Busy,
            cluster: 0,
            node: NodeId(0),
            incarnation: 0,
            max_body: 0,
            reason,
        };
        let bytes = encode_answer(&answer);
        let (decoded, _) = decode_answer(&bytes).expect("sound").expect("whole");
        assert_eq!(decoded.reason, "x".repeat(MAX_REASON_LENGTH - 1));
    }
}
