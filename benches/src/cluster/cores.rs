//! Whether idle cores delay syncs, and what is done about that.

use std::path::Path;

use anyhow::Result;

use super::load::fdatasync_microseconds;
use crate::spinners::Spinners;

/// A bare sync that takes longer on an idle machine is one that the idle cores delay.
const SLOW_SYNC_US: f64 = 1_000.0;

/// See the [module](self).
pub(super) struct Cores {
    sleepy: bool,
    /// Microseconds of a bare 4 KiB overwrite and `fdatasync`, median, as measurements will have it.
    pub(super) fdatasync_us: f64,
}

impl Cores {
    /// Tries it out.
    pub(super) fn examine(dir: &Path) -> Result<Cores> {
        let asleep_us = fdatasync_microseconds(dir)?;
        let mut cores = Cores { sleepy: asleep_us > SLOW_SYNC_US, fdatasync_us: asleep_us };
        if cores.sleepy {
            let _awake = cores.keep_awake();
            cores.fdatasync_us = fdatasync_microseconds(dir)?;
        }
        Ok(cores)
    }

    /// Until it is dropped. Spinners would hide idle cores from the scheduler, which then leaves threads of
    /// the nodes waiting behind each other: only where syncs need them.
    pub(super) fn keep_awake(&self) -> Option<Spinners> {
        self.sleepy.then(Spinners::start)
    }

    pub(super) fn in_words(&self) -> String {
        let spinners =
            if self.sleepy { "Spinner threads keep the cores awake" } else { "No spinner threads" };
        format!("{spinners}; a bare 4 KiB overwrite + fdatasync takes {:.0} us (median).", self.fdatasync_us)
    }
}
