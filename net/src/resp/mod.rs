//! RESP, the protocol of Redis: requests in, replies out. What a request means is not known here.
//!
//! | module | about |
//! |---|---|
//! | [`request`] | [`RequestReader`]: commands from bytes as they arrive, within [`RequestLimits`] |
//! | [`reply`] | [`Value`]: a reply, written as RESP2 or RESP3 |
//! | [`stream`] | [`ClientStream`]: the connection, in clear or within TLS |
//!
//! # Promises
//!
//! - No byte of a request makes room for more than what has arrived: a header that announces 16 MiB costs
//!   what it takes to remember a number. What is over a limit is refused when the header is read.
//! - Bytes are looked at once, in whatever pieces they arrive: a request of a million bytes that comes one by one is not
//!   parsed a million times.
//! - What a client sends is refused with the words that Redis 7.0 has for it.
//!
//! # Why not with a crate
//!
//! `redis-protocol` (6.0.0 of 2024; MIT) was weighed, the best kept of those that there are. It is made for clients: its
//! decoder takes a whole frame or begins anew when more bytes have come, which makes a large request that
//! arrives in small pieces quadratic; arrays nest without a limit, by recursion; a length is bounded by nothing but what
//! the caller buffers; and inline commands, which people type into telnet, are not known to it. All of
//! that would be written around it, and it is more than what is left: a request is a list of byte
//! strings, nothing else. It would bring nom, cookie-factory, crc16 and bytes-utils with it. So this is parsed here, and fuzzed
//! (`fuzz/fuzz_targets/resp_request.rs`).

pub mod reply;
pub mod request;
pub mod stream;

pub use reply::{Protocol, Value};
pub use request::{ProtocolError, Request, RequestLimits, RequestReader};
pub use stream::{ClientStream, ClientTls, Moved};
