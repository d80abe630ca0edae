//! Decoding needs memory in proportion to the bytes that are there, never to what they claim.
//!
//! A test program of its own, with one test: it counts what its allocator hands out.
#![allow(unsafe_code, reason = "only an allocator sees what is allocated, and its trait is unsafe")]

mod commands_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use commands_support::Random;
use dogsled_storage::codec::{
    decode_command, decode_effects, decode_group_command, decode_group_read, decode_group_read_reply,
    decode_group_reply, encode_command,
};
use dogsled_storage::{Command, TreeId, Write};

struct Counting;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it came; counting touches no memory
// that is handed out.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let in_use = IN_USE.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(in_use, Ordering::Relaxed);
        // SAFETY: the caller's promises are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that `work` had allocated at a time, beyond what was there before.
fn peak_of(work: impl FnOnce()) -> usize {
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    work();
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn memory_follows_the_bytes_and_not_their_claims() {
    // Error texts and the test harness need a little.
    const SLACK: usize = 16 << 10;
    let largest = b"\xfd\xff\xff\xff\xff\xff\xff\xff\x7f";
    let within_limit = b"\xfc\xff\xff\xff\x3f";
    for claim in [&largest[..], within_limit] {
        for prefix in [
            &b"\x01\x06"[..],             // a batch
            b"\x01\x06\x01\x00",          // a batch's key
            b"\x01\x06\x01\x00\x01k\x01", // a batch's value
            b"\x01\x08",                  // a transaction's reads
            b"\x01\x08\x00",              // ranges
            b"\x01\x08\x00\x00",          // writes
            b"\x01\x0d",                  // comparisons
            b"\x01\x0d\x01\x10\x01k\x02", // what is compared with
            b"\x01\x0d\x00",              // writes then
            b"\x01\x0d\x00\x00",          // writes otherwise
            b"\x01\x00",                  // a name
            b"\x01\x03\x10",              // a key
            b"\x01\x03\x10\x01k",         // a value
            b"\x01\x05\x10\x01k\x01",     // an old value
            b"\x01\x0a\x00",              // a counter's name
            b"\x01\x0b\x00\x01l",         // an owner
        ] {
            for tail in [0, 1, 1_000] {
                let bytes = [prefix, claim, &vec![0; tail]].concat();
                let peak = peak_of(|| assert!(decode_command(&bytes).is_err(), "{}", bytes.escape_ascii()));
                assert!(peak < SLACK + 50 * bytes.len(), "{peak} bytes for {}", bytes.escape_ascii());
            }
        }
    }

    // What a group exchanges: one of these claims falls into a list of each decoder.
    for claim in [&largest[..], within_limit] {
        for prefix in [
            &b"\x02\x00\x07"[..],                            // the names of a command's trees
            b"\x02\x00\x07\x01",                             // one such name
            b"\x02\x00\x07\x00\x01\x06",                     // a batch
            b"\x02\x00\x07\x00\x06\x01\x01\x01\x01",         // reads of a prepared part
            b"\x02\x00\x07\x00\x06\x01\x01\x01\x01\x00",     // ranges
            b"\x02\x00\x07\x00\x06\x01\x01\x01\x01\x00\x00", // writes
            b"\x02\x00\x07\x00\x07\x01\x01",                 // participants
            b"\x02\x00\x07\x00\x0a",                         // what is to be forgotten
            b"\x01\x08",                                     // trees of what is to be validated
            b"\x01\x08\x00",                                 // keys of it
            b"\x01\x08\x00\x00",                             // ranges of it
            b"\x01\x00\x07",                                 // a reply
            b"\x01\x03\x07\x01\x00",                         // why a reply refuses
            b"\x01\x01\x01t",                                // keys of a read
            b"\x01\x01",                                     // values of an answer
            b"\x01\x02",                                     // a page
            b"\x01\x02\x01",                                 // a key in it
            b"\x01\x06",                                     // names of trees
        ] {
            for tail in [0, 1, 1_000] {
                let bytes = [prefix, claim, &vec![0; tail]].concat();
                let peak = peak_of(|| {
                    let _ = decode_group_command(&bytes);
                    let _ = decode_group_reply(&bytes);
                    let _ = decode_group_read(&bytes);
                    let _ = decode_group_read_reply(&bytes);
                });
                assert!(peak < SLACK + 75 * bytes.len(), "{peak} bytes for {}", bytes.escape_ascii());
            }
        }
    }

    // A list that is as long as it claims, of the smallest elements.
    let write = Write { tree: TreeId(0), key: "".into(), value: None };
    let batch = encode_command(&Command::Batch { writes: vec![write; 100_000] }).unwrap();
    let peak = peak_of(|| drop(decode_command(&batch).unwrap()));
    assert!(peak < SLACK + 75 * batch.len(), "{peak} bytes for {}", batch.len());

    // Effects: iterating allocates nothing at all; copying, in proportion.
    let record = [&b"\x01\x05\xd0\x86\x03"[..], &[3, 0].repeat(50_000)].concat();
    let mut count = 0;
    let peak = peak_of(|| {
        let (_, effects) = decode_effects(&record).unwrap();
        count = effects.map(|effect| assert!(effect.is_ok())).count();
    });
    assert_eq!((count, peak), (50_000, 0));
    let peak = peak_of(|| drop(decode_effects(&record).unwrap().1.to_owned().unwrap()));
    assert!(peak < SLACK + 130 * record.len(), "{peak} bytes for {}", record.len());

    for seed in 0..20_000 {
        let mut random = Random(seed);
        let mut bytes = vec![1, random.below(12) as u8];
        bytes.extend((0..random.below(60)).map(|_| match random.below(4) {
            0 => 251 + random.below(4) as u8,
            1 => random.below(4) as u8,
            _ => random.next() as u8,
        }));
        let peak = peak_of(|| {
            let _ = decode_command(&bytes);
            let _ = decode_effects(&bytes).map(|(_, effects)| effects.to_owned());
        });
        assert!(peak < SLACK + 75 * bytes.len(), "seed {seed}: {peak} bytes for {}", bytes.escape_ascii());
    }
}
