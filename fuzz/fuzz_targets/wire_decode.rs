//! Everything that comes from the network, from arbitrary bytes: no panic, no memory beyond a
//! multiple of the input, and what decodes encodes to something that decodes to the same.
#![no_main]

use bytes::Bytes;
use dogsled_fuzz::memory::{Counting, peak_of};
use dogsled_net::wire::{
    FrameReader, FrameWriter, Greeting, decode_answer, decode_frame, decode_greeting, encode_answer,
    encode_client_hello, encode_hello,
};
use dogsled_replication::hostile::check_messages;
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static MEMORY: Counting = Counting;

/// A decoded element is up to so many times as large as its bytes, and there are copies.
const MULTIPLE: usize = 64;
/// What a reader sets aside before a body is there, twice, and small change.
const ROOM: usize = 256 << 10;
const LIMIT: usize = 1 << 20;

fn greetings(bytes: &[u8]) {
    if let Ok(Some((greeting, length))) = decode_greeting(bytes) {
        let again = match &greeting {
            Greeting::Peer(hello) => encode_hello(hello),
            Greeting::Client(hello) => encode_client_hello(hello),
        };
        assert_eq!(again, &bytes[..length]);
        assert_eq!(decode_greeting(&again), Ok(Some((greeting, length))));
    }
    if let Ok(Some((answer, length))) = decode_answer(bytes) {
        assert!(length <= bytes.len());
        let again = encode_answer(&answer);
        let length = again.len();
        assert_eq!(decode_answer(&again), Ok(Some((answer, length))));
    }
}

/// The frames of a stream are the same, in whatever pieces it arrives, and written again they are
/// the same bytes.
fn frames(bytes: &[u8]) {
    let (mut whole, mut rest) = (Vec::new(), bytes);
    let mut refused = false;
    loop {
        match decode_frame(rest, LIMIT) {
            Ok(Some((header, body, length))) => {
                whole.push((header, Bytes::copy_from_slice(body)));
                rest = &rest[length..];
            }
            Ok(None) => break,
            Err(_) => {
                refused = true;
                break;
            }
        }
    }
    let mut writer = FrameWriter::default();
    for (header, body) in &whole {
        writer.push(header.kind, header.id, body.clone());
    }
    assert_eq!(writer.chunks().concat(), &bytes[..bytes.len() - rest.len()]);

    let size = 1 + bytes.first().map_or(0, |first| usize::from(first % 40));
    let mut reader = FrameReader::new(LIMIT);
    let mut read = Vec::new();
    for piece in bytes.chunks(size) {
        reader.push(Bytes::copy_from_slice(piece));
        loop {
            match reader.next_frame() {
                Ok(Some(frame)) => read.push(frame),
                Ok(None) => break,
                Err(_) => {
                    assert!(refused, "only in pieces is it refused");
                    assert_eq!(read, whole);
                    return;
                }
            }
        }
    }
    assert_eq!(read, whole);
    assert!(!refused, "only as a whole is it refused");
}

fuzz_target!(|bytes: &[u8]| {
    let peak = peak_of(|| {
        greetings(bytes);
        frames(bytes);
        check_messages(bytes);
    });
    assert!(peak <= ROOM + MULTIPLE * bytes.len(), "{peak} bytes of memory for {}", bytes.len());
});
