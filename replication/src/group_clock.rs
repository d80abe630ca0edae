//! [`GroupClock`]: the time that leaders stamp on entries, and how long this node has led.
//!
//! Leases and times to live are measured by it, so it must pass as time does, whatever somebody sets the
//! machine's clock to. It goes on from the latest stamp by the *monotonic* clock. The wall clock has two
//! parts in it: it bridges the time in which nobody watched (the whole cluster was off), and, where it is
//! ahead, it draws the log's time nearer by a 64th of the time that passes. A clock that is behind the log is
//! waited for.
//!
//! A new leader goes on from what has been applied. What this node has stamped on entries of its own before, as a
//! leader that had lost its majority, may never have come to be; meanwhile another may have led, who had
//! been away and whose time was behind. Going on from there would end leases that were given under him.

use std::sync::Arc;
use std::time::Duration;

use dogsled_storage::Clock;
use parking_lot::Mutex;
use tokio::time::Instant;

/// See the [module](self).
pub(crate) struct GroupClock {
    clock: Arc<dyn Clock>,
    latest: Mutex<Latest>,
}

struct Latest {
    time_ms: u64,
    /// When it was that, by the monotonic clock.
    at: Instant,
    /// Whether `at` means that: the stamp was not just read from disk.
    is_bridged: bool,
    /// Milliseconds that have passed and not yet drawn the time nearer.
    credit: u64,
    /// The term in which this node leads, and since when.
    leads: Option<(u64, Instant)>,
    /// Its first stamp there.
    led_from_ms: u64,
    /// The latest stamp of an entry that was applied here, and when it was.
    applied: Option<(u64, Instant)>,
    /// Whether that `when` means when the stamp was made, or a little later.
    is_applied_bridged: bool,
}

/// The log's time comes nearer to a clock that is ahead by one part of so many.
const SLEW: u64 = 64;

impl GroupClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> GroupClock {
        let latest = Latest {
            time_ms: 0,
            at: Instant::now(),
            is_bridged: false,
            credit: 0,
            leads: None,
            led_from_ms: u64::MAX,
            applied: None,
            is_applied_bridged: false,
        };
        GroupClock { clock, latest: Mutex::new(latest) }
    }

    /// A stamp for a new entry of the leader of this term, in milliseconds since 1970.
    pub(crate) fn stamp(&self, term: u64) -> u64 {
        let clock = self.clock.now_ms();
        let now = Instant::now();
        let mut latest = self.latest.lock();
        if latest.leads.is_none_or(|(led, _)| led != term) {
            latest.leads = Some((term, now));
            if let Some(applied) = latest.applied {
                (latest.time_ms, latest.at) = applied;
                latest.is_bridged = latest.is_applied_bridged;
            }
            if !latest.is_bridged && clock > latest.time_ms {
                (latest.time_ms, latest.at) = (clock, now);
            }
            latest.is_bridged = true;
            latest.led_from_ms = latest.time_ms;
        }
        let passed = now.saturating_duration_since(latest.at).as_millis() as u64;
        if passed > 0 {
            let behind = clock.saturating_sub(latest.time_ms.saturating_add(passed));
            latest.credit += passed;
            let nearer = behind.min(latest.credit / SLEW);
            latest.credit %= SLEW;
            latest.time_ms = latest.time_ms.saturating_add(passed).saturating_add(nearer);
            // The part of a millisecond that is cut off stays to be counted.
            latest.at += Duration::from_millis(passed);
        }
        latest.time_ms
    }

    /// The log's time as far as this node can tell: what has passed since the latest stamp that it has seen being made. If
    /// it has seen none since it was started, what a leader's first stamp would be: times that are reckoned from here,
    /// such as when a key ends that is to live for so long, must not have passed long ago.
    pub(crate) fn now(&self) -> u64 {
        let latest = self.latest.lock();
        match latest.is_bridged {
            true => latest.time_ms.saturating_add(latest.at.elapsed().as_millis() as u64),
            false => latest.time_ms.max(self.clock.now_ms()),
        }
    }

    /// For how long this node has led in this term; nothing before the first stamp.
    pub(crate) fn led(&self, term: u64) -> Duration {
        match self.latest.lock().leads {
            Some((led, since)) if led == term => since.elapsed(),
            _ => Duration::ZERO,
        }
    }

    /// Whether the log should be given a stamp for its own sake: nothing of this leader's has been applied in this
    /// term, or nothing newer for so long. Followers measure time from the latest stamp that they have seen, so none
    /// may be old: one that was restarted, or has caught up, takes it for as old as the moment in which it came.
    pub(crate) fn wants_stamp(&self, term: u64, at_most: Duration) -> bool {
        let latest = self.latest.lock();
        latest.leads.is_none_or(|(led, _)| led != term)
            || latest
                .applied
                .is_none_or(|(applied, at)| applied <= latest.led_from_ms || at.elapsed() >= at_most)
    }

    /// This leader has no majority: it is from now on that it sees leases pass which somebody could have renewed.
    pub(crate) fn has_no_majority(&self, term: u64) {
        if let Some((led, since)) = &mut self.latest.lock().leads
            && *led == term
        {
            *since = Instant::now();
        }
    }

    /// The log has this stamp.
    pub(crate) fn observe(&self, time_ms: u64) {
        let mut latest = self.latest.lock();
        let now = Instant::now();
        if time_ms > latest.time_ms {
            (latest.time_ms, latest.at) = (time_ms, now);
        }
        // Nought is no stamp: nothing was applied yet that has one.
        if time_ms > 0 && latest.applied.is_none_or(|(applied, _)| time_ms > applied) {
            latest.applied = Some((time_ms, now));
            // What this node has stamped itself it has seen being made.
            latest.is_applied_bridged |= latest.leads.is_some() && time_ms > latest.led_from_ms;
        }
    }

    /// This node follows a leader and has all that it has: what it sees from now on is at worst heard of
    /// late, and so it needs no wall clock any more to know how much time has passed since. What it saw last is at
    /// most as old as leaders [let it become](GroupClock::wants_stamp), so that much it may be behind; never ahead.
    ///
    /// Where no stamp was seen yet there is nothing to go on from: whoever leads first begins with the wall clock's time, or
    /// the log's would begin in 1970, and all that is given for a time would end when it is set right.
    pub(crate) fn bridge(&self) {
        let mut latest = self.latest.lock();
        if latest.applied.is_none() {
            return;
        }
        (latest.is_bridged, latest.is_applied_bridged) = (true, true);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// A clock that stands where it is put.
    #[derive(Debug, Default)]
    pub(crate) struct Hand(AtomicU64);

    impl Clock for Hand {
        fn now_ms(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn stamps_go_on_when_the_clock_is_behind_the_log() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        // An entry of a leader whose clock is hours ahead.
        clock.observe(10_000_000);
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.stamp(3), 10_001_500);
        hand.0.store(5, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.stamp(3), 10_001_510);
    }

    /// As a follower of a new group that has only heard of its leader, before anybody has stamped anything.
    #[tokio::test(start_paused = true)]
    async fn whoever_leads_first_begins_with_the_wall_clock_however_level_it_was_before() {
        let hand = Arc::new(Hand::default());
        hand.0.store(1_700_000_000_000, Ordering::Relaxed);
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        clock.observe(0);
        clock.bridge();
        tokio::time::advance(Duration::from_millis(1_500)).await;
        assert_eq!(clock.now(), 1_700_000_000_000);
        assert_eq!(clock.stamp(2), 1_700_000_000_000);
        // From then on no wall clock is needed.
        clock.observe(1_700_000_000_000);
        clock.bridge();
        hand.0.store(5, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.stamp(3), 1_700_000_000_010);
    }

    #[tokio::test(start_paused = true)]
    async fn before_any_stamp_the_time_is_what_the_first_one_would_be() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(50_000, Ordering::Relaxed);
        assert_eq!(clock.now(), 50_000);
        assert_eq!(clock.stamp(1), 50_000);
        // From then on it passes by itself.
        hand.0.store(900_000, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.now(), 50_010);
    }

    #[tokio::test(start_paused = true)]
    async fn a_clock_that_jumps_ahead_draws_the_logs_time_nearer_and_no_more() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        hand.0.store(20_000_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        // Whether it is asked often or seldom.
        for _ in 0..640 {
            tokio::time::advance(Duration::from_millis(1)).await;
            clock.stamp(1);
        }
        assert_eq!(clock.stamp(1), 1_650);
        tokio::time::advance(Duration::from_millis(6_400)).await;
        assert_eq!(clock.stamp(1), 8_150);
        // Another leader that has followed goes on likewise: by its own clock of the same kind.
        assert_eq!(clock.stamp(2), 8_150);
        // Once it is there it stays there.
        hand.0.store(8_151, Ordering::Relaxed);
        tokio::time::advance(Duration::from_millis(64)).await;
        hand.0.store(8_215, Ordering::Relaxed);
        assert_eq!(clock.stamp(2), 8_215);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_goes_on_from_what_was_applied_and_not_from_what_it_stamped_in_vain() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(1_000, Ordering::Relaxed);
        assert_eq!(clock.stamp(1), 1_000);
        clock.observe(1_000);
        // It has lost its majority, and does not know it.
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!(clock.stamp(1), 13_000);
        // Another leads, who was away and believes that it is earlier. A lease of three seconds is given.
        clock.observe(3_000);
        tokio::time::advance(Duration::from_secs(2)).await;
        // This one leads again: the lease is not over.
        assert_eq!(clock.stamp(3), 5_000);
        // What it had stamped has come to be after all.
        clock.observe(13_000);
        assert_eq!(clock.stamp(3), 13_000);
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_is_to_stamp_when_it_begins_and_when_nobody_has_written_for_long() {
        let minute = Duration::from_secs(60);
        let clock = GroupClock::new(Arc::new(Hand::default()) as Arc<dyn Clock>);
        clock.observe(5_000);
        assert!(clock.wants_stamp(1, minute));
        let first = clock.stamp(1);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert!(clock.wants_stamp(1, minute), "it has not been applied");
        clock.observe(first + 1);
        assert!(!clock.wants_stamp(1, minute));
        tokio::time::advance(minute).await;
        assert!(clock.wants_stamp(1, minute));
        clock.observe(clock.stamp(1));
        assert!(!clock.wants_stamp(1, minute));
        assert!(clock.wants_stamp(2, minute), "it was a former leader's");
        // Leases that nobody could renew are seen to pass from the end of that on.
        assert_eq!(clock.led(1), minute + Duration::from_millis(10));
        clock.has_no_majority(7);
        assert_eq!(clock.led(1), minute + Duration::from_millis(10));
        clock.has_no_majority(1);
        assert_eq!(clock.led(1), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn the_wall_clock_bridges_only_what_nobody_has_seen() {
        let hand = Arc::new(Hand::default());
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        hand.0.store(90_000_000, Ordering::Relaxed);
        // Read from disk after a night.
        clock.observe(3_600_000);
        clock.observe(3_700_000);
        assert_eq!(clock.stamp(4), 90_000_000);
        let clock = GroupClock::new(Arc::clone(&hand) as Arc<dyn Clock>);
        clock.observe(3_600_000);
        // Follows a leader, whose clock is right.
        clock.observe(80_000_000);
        clock.bridge();
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(clock.stamp(5), 80_000_010);
        assert_eq!(clock.led(5), Duration::ZERO);
        tokio::time::advance(Duration::from_millis(30)).await;
        assert_eq!((clock.led(5), clock.led(6)), (Duration::from_millis(30), Duration::ZERO));
    }
}
