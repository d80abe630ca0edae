//! Commands from arbitrary bytes: no panic, no memory beyond a multiple of the input, and what
//! decodes encodes to something that decodes to the same.
#![no_main]

use dogsled_storage::codec::{decode_command, encode_command};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(command) = decode_command(bytes) {
        let again = encode_command(&command).expect("it came from fewer bytes than the limit");
        assert_eq!(decode_command(&again).expect("just encoded"), command);
        let _ = command.check_limits();
        // And the model does not trip over it either.
        let mut model = dogsled_storage::model::ModelState::new();
        let _ = model.execute(1_000, &command);
    }
});
