//! Frames, records, openings and segment headers: decoding arbitrary bytes never panics, and what
//! was laid down comes back as it was.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| dogsled_storage::wal::fuzz_frame(bytes));
