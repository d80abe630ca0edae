//! Effects from arbitrary bytes: no panic, and what decodes encodes to something that decodes to
//! the same.
#![no_main]

use dogsled_storage::codec::{decode_effects, encode_effects};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok((time_ms, effects)) = decode_effects(bytes) else { return };
    let Ok(effects) = effects.to_owned() else { return };
    let mut again = Vec::new();
    encode_effects(time_ms, &effects, &mut again);
    let (time_again, effects_again) = decode_effects(&again).expect("just encoded");
    assert_eq!((time_again, effects_again.to_owned().expect("just encoded")), (time_ms, effects));
});
