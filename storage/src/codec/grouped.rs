//! What a group of replicas exchanges, in bincode; see [`crate::codec`] for the rules.

use bincode::de::{BorrowDecode, BorrowDecoder, Decoder};
use bincode::error::DecodeError;
use bincode::{Decode, Encode};

use super::bincoded::{Body, MAX_ENCODED_COMMAND_LENGTH, decode_command_body, encode, versioned_body};
use crate::counter::{CounterAddition, Sums};
use crate::group::{GroupCommand, GroupRead, GroupReadReply, GroupReply, Operation, Refusal, SessionId};
use crate::lock::FencingToken;
use crate::quota::QuotaExceeded;
use crate::strings::{StringsReplies, StringsReply};
use crate::transaction::{Commit, LockedBy, Prepare};
use crate::{Error, IVec, Result};

/// The first byte of an encoded [`GroupCommand`]. An entry of a newer version stops a replica: to
/// skip what others carry out would make it another database. Version 1 had a watermark in the place of
/// the slot of a [`SessionTag`](crate::SessionTag), version 2 had no fences, times to live and queues of
/// locks; neither was ever released.
pub const GROUP_COMMAND_VERSION: u8 = 3;
/// The first byte of an encoded [`GroupReply`].
const GROUP_REPLY_VERSION: u8 = 1;
/// The first byte of an encoded [`GroupRead`].
const GROUP_READ_VERSION: u8 = 1;
/// The first byte of an encoded [`GroupReadReply`].
const GROUP_READ_REPLY_VERSION: u8 = 1;

/// The longest encoding of a [`GroupCommand`], and of any answer: a command, and room for the names
/// of its trees.
pub const MAX_ENCODED_GROUP_COMMAND_LENGTH: usize = MAX_ENCODED_COMMAND_LENGTH + (8 << 20);

/// The longest encoding of a [`GroupRead`].
pub const MAX_ENCODED_GROUP_READ_LENGTH: usize = 64 << 20;

/// Encodes an entry of a group's log; the same command always gives the same bytes.
///
/// ```
/// use dogsled_storage::codec::{decode_group_command, encode_group_command};
/// use dogsled_storage::group::{GroupCommand, Operation};
/// use dogsled_storage::{Command, TreeId};
///
/// let operation = Operation::Command(Command::Remove { tree: TreeId(0), key: "a".into() });
/// let command = GroupCommand { session: None, time_ms: 7, trees: vec!["t".into()], operation };
/// let bytes = encode_group_command(&command)?;
/// assert_eq!(bytes, b"\x03\0\x07\x01\x01t\x01\x04\0\x01a");
/// assert_eq!(decode_group_command(&bytes)?, command);
/// # Ok::<(), dogsled_storage::Error>(())
/// ```
///
/// # Errors
/// [`Error::InvalidRequest`] if the encoding is longer than [`MAX_ENCODED_GROUP_COMMAND_LENGTH`].
pub fn encode_group_command(command: &GroupCommand) -> Result<Vec<u8>> {
    within(MAX_ENCODED_GROUP_COMMAND_LENGTH, "a command", encode(GROUP_COMMAND_VERSION, command))
}

/// Decodes an entry from bytes that may be anything.
///
/// # Errors
/// [`Error::InvalidRequest`] saying what is wrong.
pub fn decode_group_command(bytes: &[u8]) -> Result<GroupCommand> {
    decode(MAX_ENCODED_GROUP_COMMAND_LENGTH, GROUP_COMMAND_VERSION, "a command", bytes, |body| {
        Ok(GroupCommand {
            session: body.next()?,
            time_ms: body.next()?,
            trees: body.list()?,
            operation: match body.next::<u32>()? {
                0 => Operation::Nothing,
                1 => Operation::Command(decode_command_body(std::mem::take(&mut body.0))?),
                2 => Operation::OpenSession { session: body.next()?, lease_ms: body.next()? },
                3 => Operation::RenewSession { session: body.next()? },
                4 => Operation::CloseSession { session: body.next()? },
                5 => Operation::ExpireSessions { led_ms: body.next()? },
                6 => Operation::Fenced {
                    fences: body.list()?,
                    command: decode_command_body(std::mem::take(&mut body.0))?,
                },
                7 => Operation::Prepare(Prepare {
                    transaction: body.next()?,
                    home: body.next()?,
                    decide_by_ms: body.next()?,
                    lease_ms: body.next()?,
                    only_lock: body.next()?,
                    part: body.part()?,
                }),
                8 => Operation::Commit(Commit {
                    transaction: body.next()?,
                    decide_by_ms: body.next()?,
                    participants: body.list()?,
                    part: body.part()?,
                }),
                9 => Operation::Settle { transaction: body.next()?, decide_by_ms: body.next()? },
                10 => Operation::Resolve { transaction: body.next()?, commit: body.next()? },
                11 => Operation::Forget { transactions: body.list()? },
                other => return Err(unknown("operation", other)),
            },
        })
    })
}

/// Encodes a reply.
///
/// # Errors
/// [`Error::InvalidRequest`] if it is longer than [`MAX_ENCODED_GROUP_COMMAND_LENGTH`].
pub fn encode_group_reply(reply: &GroupReply) -> Result<Vec<u8>> {
    within(MAX_ENCODED_GROUP_COMMAND_LENGTH, "a reply", encode(GROUP_REPLY_VERSION, reply))
}

/// Decodes a reply from bytes that may be anything.
///
/// # Errors
/// [`Error::InvalidRequest`] saying what is wrong.
pub fn decode_group_reply(bytes: &[u8]) -> Result<GroupReply> {
    decode(MAX_ENCODED_GROUP_COMMAND_LENGTH, GROUP_REPLY_VERSION, "a reply", bytes, |body| body.next())
}

/// Encodes a read.
///
/// # Errors
/// [`Error::InvalidRequest`] if it is longer than [`MAX_ENCODED_GROUP_READ_LENGTH`].
pub fn encode_group_read(read: &GroupRead) -> Result<Vec<u8>> {
    within(MAX_ENCODED_GROUP_READ_LENGTH, "a read", encode(GROUP_READ_VERSION, read))
}

/// Decodes a read from bytes that may be anything.
///
/// # Errors
/// [`Error::InvalidRequest`] saying what is wrong.
pub fn decode_group_read(bytes: &[u8]) -> Result<GroupRead> {
    decode(MAX_ENCODED_GROUP_READ_LENGTH, GROUP_READ_VERSION, "a read", bytes, |body| {
        Ok(match body.next::<u32>()? {
            0 => GroupRead::Get { tree: body.next()?, key: body.next()? },
            1 => GroupRead::GetMany { tree: body.next()?, keys: body.list()? },
            2 => GroupRead::Range {
                tree: body.next()?,
                low: body.next()?,
                high: body.next()?,
                reverse: body.next()?,
                limit: body.next()?,
                limit_bytes: body.next()?,
                values: body.next()?,
            },
            3 => GroupRead::Len { tree: body.next()? },
            4 => GroupRead::Counter { name: body.next()? },
            5 => GroupRead::LockHolder { name: body.next()? },
            6 => GroupRead::Trees,
            7 => GroupRead::EarliestSessionExpiry,
            8 => GroupRead::Ticket { name: body.next()?, ticket: body.next()? },
            9 => GroupRead::Expires { tree: body.next()?, key: body.next()? },
            10 => GroupRead::Validate {
                trees: body.list()?,
                reads: body.list()?,
                ranges: body.list()?,
                since: body.next()?,
                under: body.next()?,
            },
            11 => GroupRead::Transactions,
            12 => GroupRead::Strings { trees: body.list()?, operations: body.list()? },
            13 => GroupRead::LockHolders { name: body.next()? },
            14 => GroupRead::Sessions { after: body.next()?, limit: body.next()? },
            15 => GroupRead::Quotas,
            16 => GroupRead::NextNumber { tree: body.next()?, prefix: body.next()? },
            17 => GroupRead::GetKinds { tree: body.next()?, keys: body.list()? },
            other => return Err(unknown("read", other)),
        })
    })
}

/// About how many bytes the answer to an encoded read may have, if it is of those that may be long; 0: others, and what
/// is no read. Of values that are asked for by their keys nobody knows beforehand: then it is a guess.
pub fn long_group_read_answer(bytes: &[u8]) -> u64 {
    const GUESS: u64 = 512 << 10;
    const ENTRY: u64 = 64 << 10;
    // The kind, which is one byte as long as it is small.
    match bytes.get(1) {
        Some(1 | 12 | 14) => GUESS,
        Some(2) => match decode_group_read(bytes) {
            Ok(GroupRead::Range { limit, limit_bytes, .. }) => {
                let page = limit_bytes.min(crate::group::MAX_PAGE_BYTES);
                page.min(u64::from(limit.max(1)) * ENTRY).max(1)
            }
            _ => 0,
        },
        _ => 0,
    }
}

/// Encodes the answer to a read.
///
/// # Errors
/// [`Error::InvalidRequest`] if it is longer than [`MAX_ENCODED_GROUP_COMMAND_LENGTH`].
pub fn encode_group_read_reply(reply: &GroupReadReply) -> Result<Vec<u8>> {
    within(MAX_ENCODED_GROUP_COMMAND_LENGTH, "an answer", encode(GROUP_READ_REPLY_VERSION, reply))
}

/// Decodes the answer to a read from bytes that may be anything.
///
/// # Errors
/// [`Error::InvalidRequest`] saying what is wrong.
pub fn decode_group_read_reply(bytes: &[u8]) -> Result<GroupReadReply> {
    decode(MAX_ENCODED_GROUP_COMMAND_LENGTH, GROUP_READ_REPLY_VERSION, "an answer", bytes, |body| {
        Ok(match body.next::<u32>()? {
            0 => GroupReadReply::Value(body.next()?),
            1 => GroupReadReply::Values(body.list()?),
            2 => GroupReadReply::Page { entries: body.list()?, more: body.next()? },
            3 => GroupReadReply::Length(body.next()?),
            4 => GroupReadReply::Counter(body.next()?),
            5 => GroupReadReply::LockHolder(body.next()?),
            6 => GroupReadReply::Trees(body.list()?),
            7 => GroupReadReply::Time(body.next()?),
            8 => GroupReadReply::Ticket { reply: body.next()?, now_ms: body.next()? },
            9 => GroupReadReply::Expires { at_ms: body.next()?, now_ms: body.next()? },
            10 => GroupReadReply::Valid(body.next()?),
            11 => GroupReadReply::Transactions { prepared: body.next()?, decided: body.next()? },
            12 => GroupReadReply::Strings(body.next()?),
            13 => GroupReadReply::LockHolders { capacity: body.next()?, holders: body.list()? },
            14 => GroupReadReply::Sessions {
                sessions: body.list()?,
                more: body.next()?,
                now_ms: body.next()?,
                led_ms: body.next()?,
            },
            15 => GroupReadReply::Quotas(body.list()?),
            16 => GroupReadReply::NextNumber(body.next()?),
            other => return Err(unknown("answer", other)),
        })
    })
}

/// By hand because bincode makes room for as long a `String` as the input claims.
impl<Context> Decode<Context> for Refusal {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Refusal, DecodeError> {
        fn text<D: Decoder>(decoder: &mut D) -> Result<String, DecodeError> {
            let bytes = IVec::decode(decoder)?;
            let text = std::str::from_utf8(&bytes).map_err(|inner| DecodeError::Utf8 { inner })?;
            Ok(text.to_owned())
        }
        Ok(match u32::decode(decoder)? {
            0 => Refusal::Invalid(text(decoder)?),
            1 => Refusal::TooLarge(text(decoder)?),
            2 => Refusal::TreeNotFound(IVec::decode(decoder)?),
            3 => Refusal::SessionUnknown(SessionId::decode(decoder)?),
            4 => Refusal::Forgotten { latest: u64::decode(decoder)? },
            5 => Refusal::Malformed(text(decoder)?),
            6 => Refusal::LockNotHeld {
                lock: IVec::decode(decoder)?,
                token: FencingToken::decode(decoder)?,
                current: Option::<FencingToken>::decode(decoder)?,
            },
            7 => Refusal::Locked(LockedBy::decode(decoder)?),
            8 => Refusal::TreeSealed(IVec::decode(decoder)?),
            9 => Refusal::QuotaExceeded(QuotaExceeded::decode(decoder)?),
            other => return Err(DecodeError::OtherString(unknown("refusal", other))),
        })
    }
}

bincode::impl_borrow_decode!(Refusal);

/// By hand because bincode makes room for as many elements as the input claims.
impl<Context> Decode<Context> for Sums {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Sums, DecodeError> {
        let count = u64::decode(decoder)?;
        let mut sums = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(64));
        for _ in 0..count {
            // An element has bytes, so that the input's end ends this.
            sums.push(CounterAddition::decode(decoder)?);
        }
        Ok(Sums(sums))
    }
}

bincode::impl_borrow_decode!(Sums);

impl<Context> Decode<Context> for StringsReplies {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<StringsReplies, DecodeError> {
        let count = u64::decode(decoder)?;
        let mut replies = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(64));
        for _ in 0..count {
            replies.push(StringsReply::decode(decoder)?);
        }
        Ok(StringsReplies(replies))
    }
}

bincode::impl_borrow_decode!(StringsReplies);

/// A list within something else that is decoded as a whole: it has no more room than its elements need, which bincode's own
/// would have as the input claims.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Encode)]
pub struct Listed<T>(pub Vec<T>);

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Listed(Vec::new())
    }
}

impl<Context, T: Decode<Context>> Decode<Context> for Listed<T> {
    fn decode<D: Decoder<Context = Context>>(decoder: &mut D) -> Result<Listed<T>, DecodeError> {
        let count = u64::decode(decoder)?;
        let mut elements = Vec::with_capacity(usize::try_from(count).unwrap_or(0).min(16));
        for _ in 0..count {
            // An element has bytes, so that the input's end ends this.
            elements.push(T::decode(decoder)?);
        }
        Ok(Listed(elements))
    }
}

impl<'de, Context, T: Decode<Context>> BorrowDecode<'de, Context> for Listed<T> {
    fn borrow_decode<D: BorrowDecoder<'de, Context = Context>>(
        decoder: &mut D,
    ) -> Result<Listed<T>, DecodeError> {
        Listed::decode(decoder)
    }
}

fn within(limit: usize, what: &str, bytes: Vec<u8>) -> Result<Vec<u8>> {
    if bytes.len() > limit {
        return Err(too_long(limit, what, bytes.len()));
    }
    Ok(bytes)
}

fn too_long(limit: usize, what: &str, length: usize) -> Error {
    Error::InvalidRequest(format!("{what} of {length} bytes is over the limit of {limit}; split it"))
}

fn unknown(what: &str, number: u32) -> String {
    format!("no {what} is numbered {number}")
}

/// Enums with lists are taken apart by `read`, for the reason that
/// [`decode_command_body`] gives.
fn decode<T>(
    limit: usize,
    version: u8,
    what: &str,
    bytes: &[u8],
    read: impl FnOnce(&mut Body<'_>) -> Result<T, String>,
) -> Result<T> {
    if bytes.len() > limit {
        return Err(too_long(limit, what, bytes.len()));
    }
    let malformed = |why: String| Error::InvalidRequest(format!("not {what}: {why}"));
    let mut body = Body(versioned_body(version, bytes).map_err(malformed)?);
    let value = read(&mut body).map_err(malformed)?;
    body.end().map_err(malformed)?;
    Ok(value)
}
