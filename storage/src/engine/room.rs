//! Whether there is space for what a command stores; see [`crate::space`].

use std::io;

use parking_lot::Mutex;

use super::Options;
use crate::disk::Space;
use crate::space::LowDisk;
use crate::{Error, Result};

/// The disk is looked at once for so many commands: it costs a system call.
const EVERY: u32 = 16;

/// What was seen last.
#[derive(Debug, Default)]
pub(super) struct Room(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    disk: Option<LowDisk>,
    is_low: bool,
    /// Commands until the next look.
    left: u32,
}

impl Room {
    /// Refuses, if the disk is low. While it is, every command looks.
    pub(super) fn check(&self, options: &Options) -> Result<()> {
        let mut seen = self.0.lock();
        if seen.left > 0 && !seen.is_low {
            seen.left -= 1;
            return Ok(());
        }
        seen.left = EVERY;
        // What cannot be told is not low: whoever writes finds out.
        let Ok(Space { total, free }) = options.disk.space(&options.directory) else { return Ok(()) };
        let mark = Some(options.low_disk_bytes);
        seen.is_low = seen.disk.get_or_insert_with(|| LowDisk::new(mark)).see(Space { total, free });
        if !seen.is_low {
            return Ok(());
        }
        let (path, mark) = (options.directory.display(), options.low_disk_bytes);
        Err(Error::io(
            format!("writing to {path}, whose disk is nearly full"),
            io::Error::new(
                io::ErrorKind::StorageFull,
                format!(
                    "{free} bytes are free, and {mark} are kept; remove something, or give it space: writes go on by \
                     themselves then"
                ),
            ),
        ))
    }
}
