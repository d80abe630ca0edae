//! Progress on standard error, for people: nothing is drawn when it is not a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar, a counter, or nothing.
///
/// Cleared when dropped, so that no half bar stands before an error message.
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// Bytes out of a known number; a running count of them where `total` is not known.
    pub(crate) fn bytes(total: Option<u64>, doing: &'static str, quiet: bool) -> Progress {
        let template = match total {
            Some(_) => "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}",
            None => "{spinner} {msg} {bytes} {bytes_per_sec}",
        };
        Progress::new(total, doing, quiet, template)
    }

    /// Items out of a known number; a running count of them where `total` is not known.
    pub(crate) fn items(total: Option<u64>, doing: &'static str, quiet: bool) -> Progress {
        let template = match total {
            Some(_) => "{msg} {wide_bar} {human_pos}/{human_len} {eta}",
            None => "{spinner} {msg} {human_pos} {elapsed}",
        };
        Progress::new(total, doing, quiet, template)
    }

    fn new(total: Option<u64>, doing: &'static str, quiet: bool, template: &str) -> Progress {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr_with_hz(10) };
        let bar = ProgressBar::with_draw_target(total, target);
        bar.set_style(ProgressStyle::with_template(template).expect("the templates above are valid"));
        bar.set_message(doing);
        if total.is_none() && !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(100));
        }
        Progress(bar)
    }

    /// How far the work has come.
    pub(crate) fn set(&self, position: u64) {
        self.0.set_position(position);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
