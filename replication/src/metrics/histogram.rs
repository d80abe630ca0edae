//! [`Histogram`]: how long things took, in a few atomics.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::nanoseconds;

/// The first limit is two to this power of microseconds: 8 µs.
const FIRST: u32 = 3;
/// How many limits there are, each twice the one before: the last is 8.4 s.
const LIMITS: usize = 21;

/// Counts durations by their size. The limits are the same for all, so that they can be added up.
#[derive(Debug)]
pub struct Histogram {
    /// Those up to each limit that are above the one before it; the last: those above all.
    counts: [AtomicU64; LIMITS + 1],
    nanoseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: super::counters(), nanoseconds: AtomicU64::new(0) }
    }
}

fn place(nanoseconds: u64) -> usize {
    let microseconds = nanoseconds.div_ceil(1_000);
    // Of 0 and 1 the predecessor is 0, which has no bits.
    let bits = u64::BITS - microseconds.saturating_sub(1).leading_zeros();
    (bits.saturating_sub(FIRST) as usize).min(LIMITS)
}

impl Histogram {
    /// Something took so long.
    pub fn observe(&self, duration: Duration) {
        self.observe_many(duration, 1);
    }

    /// So many things took so long, each.
    pub fn observe_many(&self, duration: Duration, times: u64) {
        let nanoseconds = nanoseconds(duration);
        self.counts[place(nanoseconds)].fetch_add(times, Ordering::Relaxed);
        self.nanoseconds.fetch_add(nanoseconds.saturating_mul(times), Ordering::Relaxed);
    }

    /// What was counted so far. What is being counted meanwhile may be in a part of it.
    pub fn read(&self) -> Distribution {
        Distribution {
            counts: std::array::from_fn(|number| self.counts[number].load(Ordering::Relaxed)),
            nanoseconds: self.nanoseconds.load(Ordering::Relaxed),
        }
    }
}

/// What a [`Histogram`] has counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Distribution {
    counts: [u64; LIMITS + 1],
    nanoseconds: u64,
}

impl Distribution {
    /// Each limit, and how many were not above it.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        let limits = (0..LIMITS).map(|number| Duration::from_micros(1 << (FIRST + number as u32)));
        limits.zip(self.counts.iter().scan(0, |sum, count| {
            *sum += count;
            Some(*sum)
        }))
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// How long they took together.
    pub fn sum(&self) -> Duration {
        Duration::from_nanos(self.nanoseconds)
    }

    /// Both together.
    pub fn add(&mut self, other: &Distribution) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.nanoseconds = self.nanoseconds.saturating_add(other.nanoseconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_below_the_first_limit_that_it_does_not_exceed() {
        let limits: Vec<Duration> = Distribution::default().cumulative().map(|(limit, _)| limit).collect();
        assert_eq!(limits.first(), Some(&Duration::from_micros(8)));
        assert_eq!(limits.last(), Some(&Duration::from_micros(8_388_608)));
        let nanosecond = Duration::from_nanos(1);
        let mut probes = vec![Duration::ZERO, nanosecond, Duration::MAX, Duration::from_secs(3600)];
        probes.extend(limits.iter().flat_map(|limit| [*limit - nanosecond, *limit, *limit + nanosecond]));
        for probe in probes {
            let histogram = Histogram::default();
            histogram.observe(probe);
            let read = histogram.read();
            for (limit, count) in read.cumulative() {
                assert_eq!(count, u64::from(probe <= limit), "{probe:?} and {limit:?}");
            }
            assert_eq!(read.count(), 1);
        }
    }

    #[test]
    fn sums_and_counts_add_up() {
        let (one, other) = (Histogram::default(), Histogram::default());
        one.observe_many(Duration::from_micros(10), 3);
        other.observe(Duration::from_secs(100));
        let mut both = one.read();
        both.add(&other.read());
        assert_eq!(both.count(), 4);
        assert_eq!(both.sum(), Duration::from_secs(100) + Duration::from_micros(30));
        assert_eq!(both.cumulative().last(), Some((Duration::from_micros(8_388_608), 3)));
    }
}
