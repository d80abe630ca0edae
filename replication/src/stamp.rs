//! Puts the leader's time into an encoded command without decoding it.
//!
//! A command passes through the leader as bytes: it was encoded by the client and is decoded where it
//! is applied, on every replica, which refuses what is malformed. Only its time, a bincode varint
//! behind the optional session, must be the leader's. See [`dogsled_storage::codec`] for the format.
//!
//! One thing must not wait until it is applied: the version. An entry of another one stops every
//! replica for good, so that a client could stop a group by one byte.

use dogsled_storage::codec::GROUP_COMMAND_VERSION;

use crate::codec::{Malformed, malformed};

/// Length of the varint at the beginning of `bytes`.
fn varint_length(bytes: &[u8]) -> Result<usize, Malformed> {
    let length = match bytes.first() {
        None => return malformed("a command that ends too early"),
        Some(0..=250) => 1,
        Some(251) => 3,
        Some(252) => 5,
        Some(253) => 9,
        Some(254) => 17,
        Some(255) => return malformed("a number of no known length in a command"),
    };
    if bytes.len() < length {
        return malformed("a command that ends too early");
    }
    Ok(length)
}

/// The command with another time.
pub(crate) fn stamp(command: &[u8], time_ms: u64) -> Result<Vec<u8>, Malformed> {
    match command.first() {
        Some(&GROUP_COMMAND_VERSION) => {}
        Some(version) => {
            return malformed(format!(
                "a command of format version {version}; this node reads only {GROUP_COMMAND_VERSION}"
            ));
        }
        None => return malformed("an empty command"),
    }
    let mut at = 1;
    let rest = |at: usize| command.get(at..).unwrap_or_default();
    match rest(at).first() {
        Some(0) => at += 1,
        Some(1) => {
            at += 1;
            // Session, slot, sequence.
            for _ in 0..3 {
                at += varint_length(rest(at))?;
            }
        }
        _ => return malformed("neither with nor without a session"),
    }
    let after = at + varint_length(rest(at))?;
    let mut stamped = Vec::with_capacity(command.len() + 9);
    stamped.extend_from_slice(&command[..at]);
    match time_ms {
        0..=250 => stamped.push(time_ms as u8),
        251..=0xffff => {
            stamped.push(251);
            stamped.extend_from_slice(&(time_ms as u16).to_le_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            stamped.push(252);
            stamped.extend_from_slice(&(time_ms as u32).to_le_bytes());
        }
        _ => {
            stamped.push(253);
            stamped.extend_from_slice(&time_ms.to_le_bytes());
        }
    }
    stamped.extend_from_slice(&command[after..]);
    Ok(stamped)
}

#[cfg(test)]
mod tests {
    use dogsled_storage::codec::encode_group_command;
    use dogsled_storage::group::{GroupCommand, Operation, SessionId, SessionTag};
    use dogsled_storage::{Command, TreeId};

    use super::*;

    #[test]
    fn a_stamped_command_is_what_encoding_it_with_that_time_gives() {
        let tag = |session, slot, sequence| SessionTag { session: SessionId(session), slot, sequence };
        let sessions = [
            None,
            Some(tag(1, 0, 0)),
            Some(tag(u128::MAX, u16::MAX, 70_000)),
            Some(tag(1 << 40, 251, u64::MAX)),
        ];
        let times = [0, 250, 251, 0xffff, 0x1_0000, 0xffff_ffff, 0x1_0000_0000, u64::MAX];
        let operation = Operation::Command(Command::Remove { tree: TreeId(0), key: "a key".into() });
        for session in sessions {
            for before in times {
                for after in times {
                    let mut command = GroupCommand {
                        session,
                        time_ms: before,
                        trees: vec!["tree".into()],
                        operation: operation.clone(),
                    };
                    let bytes = encode_group_command(&command).unwrap();
                    command.time_ms = after;
                    assert_eq!(stamp(&bytes, after).unwrap(), encode_group_command(&command).unwrap());
                }
            }
        }
    }

    #[test]
    fn what_is_no_command_is_refused() {
        // The last is sound but for its version.
        for bytes in
            [&[][..], &[3], &[3, 2], &[3, 0], &[3, 0, 253, 1], &[3, 1, 5], &[3, 0, 255], &[1, 0, 1, 0, 0]]
        {
            assert!(stamp(bytes, 7).is_err(), "{bytes:?}");
        }
    }
}
