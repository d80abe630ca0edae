//! No bytes make a decoder panic, allocate what they only claim, or read beyond what they have.

use bytes::Bytes;
use dogsled_net::wire::{self, FrameReader};
use proptest::prelude::*;

fn near_valid() -> impl Strategy<Value = Vec<u8>> {
    let seeds = prop_oneof![
        Just(b"dogsledP\x02\x00\x39\x00".to_vec()),
        Just(b"dogsledC\x02\x00\x18\x00".to_vec()),
        Just(b"dogsledA\x02\x00\x00\x00".to_vec()),
        Just(b"\x05\0\0\0\x01\0\0\0\x08\x07\x06\x05\x04\x03\x02\x01".to_vec()),
        Just(b"\xff\xff\xff\xff\x01\0\0\0".to_vec()),
        Just(Vec::new()),
    ];
    (seeds, proptest::collection::vec(any::<u8>(), 0..200)).prop_map(|(mut seed, rest)| {
        seed.extend(rest);
        seed
    })
}

proptest! {
    #[test]
    fn decoders_take_any_bytes(bytes in near_valid(), limit in 0usize..1000, size in 1usize..50) {
        if let Ok(Some((_, used))) = wire::decode_greeting(&bytes) {
            prop_assert!(used <= bytes.len());
        }
        if let Ok(Some((_, used))) = wire::decode_answer(&bytes) {
            prop_assert!(used <= bytes.len());
        }
        let whole = wire::decode_frame(&bytes, limit).map(|frame| frame.map(|(header, body, used)| {
            assert!(used <= bytes.len());
            (header, body.to_vec())
        }));
        // Fed piece by piece the first frame is the same.
        let mut reader = FrameReader::new(limit);
        let mut first = Ok(None);
        for piece in bytes.chunks(size) {
            reader.push(Bytes::copy_from_slice(piece));
            first = reader.next_frame().map(|frame| frame.map(|(header, body)| (header, body.to_vec())));
            if !matches!(first, Ok(None)) {
                break;
            }
        }
        prop_assert_eq!(first, whole);
    }
}
