//! What a Redis client sends, from arbitrary bytes: no panic, no memory beyond a multiple of the input, the same
//! in whatever pieces it comes, and requests written again are read as the same.
#![no_main]

use dogsled_fuzz::memory::{Counting, peak_of};
use dogsled_net::resp::{ProtocolError, Request, RequestLimits, RequestReader};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static MEMORY: Counting = Counting;

/// An argument of no bytes is announced by six, and takes 32 in memory; lists grow by doubling.
const MULTIPLE: usize = 64;
const ROOM: usize = 64 << 10;

fn read(bytes: &[u8], size: usize) -> (Vec<Request>, Option<ProtocolError>) {
    let mut reader = RequestReader::new(RequestLimits { line_bytes: 1 << 10, ..RequestLimits::default() });
    let mut requests = Vec::new();
    for piece in bytes.chunks(size) {
        reader.buffer().extend_from_slice(piece);
        loop {
            match reader.next_request() {
                Ok(Some(request)) => {
                    assert!(!request.is_empty());
                    requests.push(request);
                }
                Ok(None) => break,
                Err(error) => {
                    assert!(error.to_string().starts_with("ERR Protocol error: "));
                    return (requests, Some(error));
                }
            }
        }
    }
    (requests, None)
}

fn written(requests: &[Request]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for request in requests {
        bytes.extend_from_slice(format!("*{}\r\n", request.len()).as_bytes());
        for argument in request {
            bytes.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            bytes.extend_from_slice(argument);
            bytes.extend_from_slice(b"\r\n");
        }
    }
    bytes
}

fuzz_target!(|bytes: &[u8]| {
    let peak = peak_of(|| drop(read(bytes, usize::MAX)));
    assert!(peak <= ROOM + MULTIPLE * bytes.len(), "{peak} bytes of memory for {}", bytes.len());
    let whole = read(bytes, usize::MAX);
    let size = 1 + bytes.first().map_or(0, |first| usize::from(first % 40));
    assert_eq!(read(bytes, size), whole, "in pieces of {size}");
    assert_eq!(read(&written(&whole.0), usize::MAX), (whole.0, None));
});
