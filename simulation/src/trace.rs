//! [`Trace`]: everything that happens in a run, as one hash, and as lines for whoever wants to read
//! them.
//!
//! Two runs of a seed must be the same run. Every message, fault, and answer is a line with its
//! simulated time; the lines are hashed as they come, so that a difference anywhere shows in the
//! end, and a trace of a hundred thousand lines need not be kept to compare it.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::time::Instant;

/// See the [module](self); clones are the same trace.
#[derive(Clone)]
pub struct Trace(Arc<Mutex<Inner>>);

struct Inner {
    began: Instant,
    hash: u64,
    events: u64,
    print: bool,
    line: String,
    counts: BTreeMap<&'static str, u64>,
}

impl Trace {
    /// A trace that begins now; `print` its lines to standard output.
    pub fn new(print: bool) -> Trace {
        let inner = Inner {
            began: Instant::now(),
            hash: 0xcbf2_9ce4_8422_2325,
            events: 0,
            print,
            line: String::new(),
            counts: BTreeMap::new(),
        };
        Trace(Arc::new(Mutex::new(inner)))
    }

    /// Something happened.
    pub fn event(&self, what: fmt::Arguments<'_>) {
        let mut inner = self.0.lock();
        let inner = &mut *inner;
        inner.line.clear();
        let micros = inner.began.elapsed().as_micros();
        // Writing into a string cannot fail.
        let _ = write!(inner.line, "{:>10}.{:03} {what}", micros / 1000, micros % 1000);
        inner.events += 1;
        // FNV-1a: the order of bytes matters, and it is the same on every machine.
        for byte in inner.line.bytes() {
            inner.hash = (inner.hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if inner.print {
            println!("{}", inner.line);
        }
    }

    /// Prints, if lines are printed, what is no part of the trace.
    pub fn remark(&self, what: fmt::Arguments<'_>) {
        if self.0.lock().print {
            println!("               # {what}");
        }
    }

    /// So much more of something, of which tests want to see enough. It is no part of the trace.
    pub fn count(&self, what: &'static str, many: u64) {
        *self.0.lock().counts.entry(what).or_default() += many;
    }

    /// How much there was of what.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().counts.clone()
    }

    /// Hash and number of the lines so far.
    pub fn digest(&self) -> (u64, u64) {
        let inner = self.0.lock();
        (inner.hash, inner.events)
    }
}

/// Writes one line into a [`Trace`].
macro_rules! event {
    ($trace:expr, $($what:tt)*) => { $trace.event(format_args!($($what)*)) };
}
pub(crate) use event;
