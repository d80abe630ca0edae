//! Commands, records and effects as bytes, and back from bytes that nobody vouches for.
//!
//! Two encodings, for two needs:
//!
//! - **Commands and records** ([`encode_command`], [`decode_command`]) change with the features of
//!   the database, and are decoded from peers and clients. They use bincode 2, and this module
//!   and the `derive`s on their types are all that knows of it.
//! - **Effects** ([`encode_effects`], [`decode_effects`]) are the payload of the embedded
//!   database's WAL, the hot path of every write. They are laid out by hand; see
//!   [`effects`] for the format byte by byte.
//!
//! - **What a group of replicas exchanges** ([`crate::group`]) is encoded like commands.
//!
//! # Commands
//!
//! | bytes | meaning |
//! |---|---|
//! | 1 | format version, 1 |
//! | rest | the [`Command`](crate::Command) in bincode's standard configuration: little-endian, enum variants and lengths and integers above 8 bits as varints, signed ones zigzag |
//!
//! bincode's varint: below 251, the byte itself; otherwise 251, 252 or 253 followed by 2, 4 or 8
//! bytes, little-endian. Options and results are one byte 0 or 1 before their contents.
//!
//! # Groups
//!
//! A [`GroupCommand`](crate::group::GroupCommand), [`GroupReply`](crate::group::GroupReply),
//! [`GroupRead`](crate::group::GroupRead) and [`GroupReadReply`](crate::group::GroupReadReply) is
//! each a version byte (3 for a command, 1 for the others) and its fields in order in the same encoding.
//! Within a group command the operation is last, so that what follows the number 1, or the number 6 and the
//! fences, is exactly the body of a command.
//!
//! # Hostile bytes
//!
//! Every decoder here holds to these rules, and `tests/commands/codec.rs` and the fuzz targets test them:
//!
//! - The length of the input is checked against a cap before anything is decoded.
//! - Nothing is allocated because the input claims a length; only bytes that are there are copied,
//!   and lists grow as their elements arrive. The memory needed is at most a small multiple
//!   (75) of the input's length. bincode's own limit stands behind that.
//! - All of the input must be used; bytes left over are an error.
//! - No type here refers to itself, so nesting cannot exhaust the stack, and no list has elements
//!   of size zero.
//! - The first byte is a version, and an unknown one is an error that names it.
//!
//! None of them panics on any input.

mod bincoded;
pub mod effects;
mod grouped;
mod transacted;

pub use bincoded::{MAX_ENCODED_COMMAND_LENGTH, decode_command, encode_command};
pub(crate) use bincoded::{decode_list_record, decode_record, encode_list_record, encode_record};
pub use effects::{EffectRef, EffectRefs, Malformed, decode_effects, encode_effects};
pub use grouped::{
    GROUP_COMMAND_VERSION, Listed, MAX_ENCODED_GROUP_COMMAND_LENGTH, MAX_ENCODED_GROUP_READ_LENGTH,
    decode_group_command, decode_group_read, decode_group_read_reply, decode_group_reply,
    encode_group_command, encode_group_read, encode_group_read_reply, encode_group_reply,
    long_group_read_answer,
};
pub(crate) use transacted::{decode_decided, decode_prepared, encode_decided, encode_prepared};
