//! [`Held`]: what all who take locks were told, and whether that can be.
//!
//! Grants are judged by their place in the log. A grant is *certainly held* from the position that is its token
//! (the entry that grants has that position, or an earlier one if it grants to several) to the last position at
//! which something was done that only a holder can do: a fenced write, a renewal, the entry before a release.
//!
//! - **Never too many.** At no position those who certainly hold a lock have more permits than there are: one
//!   holder of a plain lock, no writer beside a reader, so many of a semaphore.
//! - **In line.** Tokens are granted in the order of arrival: by ticket of who had to wait, by position of who had
//!   not. Nobody overtakes, and no token is given twice.
//! - **Lost is lost.** Nothing that is done under a token takes place behind a position at which it was known to
//!   be lost, nor at a time of the log at which its lease had ended.
//! - **A lease is a lease.** Nobody loses a lock, and nobody else is granted what would be too much, before the
//!   lease has passed, by time and not by anybody's clock, unless it was given back. Of locks with a lease of their own this
//!   is judged while no node has been started meanwhile: a leader that has never followed another in its life has
//!   nothing but its wall clock to bridge the time for which it was down. Of those that live with a session, always.
//! - **A lease is no more than a lease.** Nobody is refused because of a grant whose lease has ended, by the log's time.
//! - **Lock-delay.** After an end without release nothing is granted for as long as its holder had asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use dogsled_storage::lock::FencingToken;
use parking_lot::Mutex;
use tokio::time::Instant;

/// How a grant came to its end, as far as its holder knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// Nobody has given it back: it ends with its lease, or its session's.
    Unclean,
    /// It was given back, or that was tried.
    Clean,
}

/// One grant.
#[derive(Clone, Debug)]
pub struct Grant {
    /// Its token.
    pub token: u64,
    /// Whose.
    pub holder: u64,
    /// The position of the entry by which its holder came: its ticket, if it had to wait.
    pub arrival: u64,
    /// How many permits.
    pub permits: u32,
    /// Of how many.
    pub capacity: u32,
    /// The delay that follows an unclean end.
    pub delay_ms: u64,
    /// Whether it lives with a session.
    pub of_session: bool,
    /// When it was heard of.
    pub heard: Instant,
    /// Before this moment it has not ended by itself.
    pub until: Instant,
    /// How often nodes had been started when it was asked for, and when it was heard of.
    pub starts: (u64, u64),
    /// The log's time of the grant, if that is known.
    pub granted_ms: Option<u64>,
    /// The log's time at which its lease ends; `None`: that is not known.
    pub ends_ms: Option<u64>,
    /// The last position at which it was certainly held, and the log's time there.
    pub held: (u64, u64),
    /// The first position at which it was known to be lost.
    pub lost: Option<u64>,
    /// When it was begun to be given back.
    pub released: Option<Instant>,
    /// How it ends.
    pub end: End,
}

#[derive(Default)]
struct Inner {
    grants: BTreeMap<&'static str, Vec<Grant>>,
    counts: BTreeMap<&'static str, u64>,
    wrong: Vec<String>,
}

/// See the [module](self); clones are the same.
#[derive(Clone, Default)]
pub struct Held(Arc<Mutex<Inner>>);

impl Held {
    /// One more of something.
    pub fn count(&self, what: &'static str) {
        *self.0.lock().counts.entry(what).or_default() += 1;
    }

    /// How much there was of what.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().counts.clone()
    }

    /// Something was seen that must not be.
    pub fn wrong(&self, what: String) {
        self.0.lock().wrong.push(what);
    }

    /// Somebody has a lock.
    pub fn granted(&self, lock: &'static str, grant: Grant) {
        self.0.lock().grants.entry(lock).or_default().push(grant);
    }

    /// What was heard of a grant since, by its holder.
    ///
    /// # Panics
    /// If it was not noted.
    pub fn update(&self, lock: &'static str, token: u64, holder: u64, change: impl FnOnce(&mut Grant)) {
        let mut inner = self.0.lock();
        let grants = inner.grants.entry(lock).or_default();
        let grant = grants.iter_mut().find(|grant| grant.token == token && grant.holder == holder);
        change(grant.expect("it was noted when it was granted"));
    }

    /// Somebody was refused, at that time of the log, because of a grant whose lease ends then.
    pub fn refused(&self, lock: &str, time_ms: u64, token: FencingToken, expires_ms: u64) {
        if expires_ms <= time_ms {
            self.wrong(format!(
                "lock {lock}: at {time_ms} it is held under token {token}, whose lease ended at {expires_ms}"
            ));
        }
    }

    /// Something was done under a token, at a position and a time of the log.
    pub fn used(&self, lock: &'static str, token: u64, holder: u64, position: u64, time_ms: u64) {
        let mut wrong = Vec::new();
        self.update(lock, token, holder, |grant| {
            if let Some(lost) = grant.lost.filter(|lost| *lost <= position) {
                wrong.push(format!(
                    "lock {lock}: at {position} something was done under token {token}, which was lost at {lost}"
                ));
            }
            if let Some(ends_ms) = grant.ends_ms.filter(|ends_ms| *ends_ms <= time_ms) {
                wrong.push(format!(
                    "lock {lock}: at {time_ms} something was done under token {token}, whose lease ended at {ends_ms}"
                ));
            }
            grant.held = grant.held.max((position, time_ms));
        });
        self.0.lock().wrong.extend(wrong);
    }

    /// A token is not held any more, as somebody was told at a position.
    pub fn lost(&self, lock: &'static str, token: u64, holder: u64, position: u64, starts: u64) {
        let now = Instant::now();
        let mut wrong = None;
        self.update(lock, token, holder, |grant| {
            grant.lost = Some(grant.lost.map_or(position, |lost| lost.min(position)));
            let is_judged = grant.of_session || grant.starts.0 == starts;
            if grant.released.is_none() && now < grant.until && is_judged {
                let left = grant.until - now;
                wrong = Some(format!("lock {lock}: token {token} was lost with {left:?} left of its lease"));
            }
        });
        self.0.lock().wrong.extend(wrong);
    }

    /// What must not be, in words.
    pub fn judge(&self) -> Vec<String> {
        let inner = self.0.lock();
        let mut violations = inner.wrong.clone();
        for (lock, grants) in &inner.grants {
            let found = [too_many(grants), out_of_line(grants), too_early(grants), without_delay(grants)];
            violations.extend(found.into_iter().flatten().map(|what| format!("lock {lock}: {what}")));
        }
        violations
    }
}

fn too_many(grants: &[Grant]) -> Option<String> {
    grants.iter().find_map(|grant| {
        let at = grant.token;
        let held: Vec<&Grant> =
            grants.iter().filter(|other| (other.token..=other.held.0).contains(&at)).collect();
        let permits: u64 = held.iter().map(|grant| u64::from(grant.permits)).sum();
        let tokens: Vec<u64> = held.iter().map(|grant| grant.token).collect();
        (permits > u64::from(grant.capacity)).then(|| {
            format!(
                "at {at} it is held under the tokens {tokens:?}, which are {permits} permits of {}",
                grant.capacity
            )
        })
    })
}

fn out_of_line(grants: &[Grant]) -> Option<String> {
    let mut grants: Vec<&Grant> = grants.iter().collect();
    grants.sort_by_key(|grant| grant.arrival);
    grants.windows(2).find_map(|pair| {
        let (first, second) = (pair[0], pair[1]);
        (first.token >= second.token).then(|| {
            format!(
                "holder {} came at {} and has token {}, and holder {}, who came at {}, has token {}",
                first.holder, first.arrival, first.token, second.holder, second.arrival, second.token
            )
        })
    })
}

/// Pairs that cannot be held together, the earlier one first.
fn conflicts(grants: &[Grant]) -> impl Iterator<Item = (&Grant, &Grant)> {
    grants.iter().flat_map(|first| {
        let is_later = |second: &&Grant| {
            second.token > first.token
                && u64::from(first.permits) + u64::from(second.permits) > u64::from(first.capacity)
        };
        grants.iter().filter(is_later).map(move |second| (first, second))
    })
}

fn too_early(grants: &[Grant]) -> Option<String> {
    conflicts(grants).find_map(|(before, after)| {
        let is_given_back = before.released.is_some_and(|released| released <= after.heard);
        let is_judged = before.of_session || before.starts.0 == after.starts.1;
        (after.heard < before.until && !is_given_back && is_judged).then(|| {
            format!(
                "token {} was granted to holder {} within the lease of token {} of holder {}, which had {:?} left",
                after.token,
                after.holder,
                before.token,
                before.holder,
                before.until - after.heard
            )
        })
    })
}

fn without_delay(grants: &[Grant]) -> Option<String> {
    let ended = grants.iter().filter(|grant| grant.delay_ms > 0 && grant.end == End::Unclean);
    ended.into_iter().find_map(|before| {
        let after = grants.iter().filter(|grant| grant.token > before.token).find(|after| {
            let Some(granted_ms) = after.granted_ms else { return false };
            match before.ends_ms {
                Some(ends_ms) => (ends_ms..ends_ms + before.delay_ms).contains(&granted_ms),
                // With its session it has ended later than it was held.
                None => {
                    before.of_session
                        && u64::from(before.permits) + u64::from(after.permits) > u64::from(before.capacity)
                        && granted_ms < before.held.1 + before.delay_ms
                }
            }
        })?;
        Some(format!(
            "token {} was granted at {:?}, and that of token {}, held at {} until {:?}, had ended without release and \
             asked for a delay of {} ms",
            after.token, after.granted_ms, before.token, before.held.1, before.ends_ms, before.delay_ms
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Of a plain lock, granted as it was asked for, and held to a position.
    fn grant(token: u64, held: u64) -> Grant {
        let now = Instant::now();
        Grant {
            token,
            holder: token,
            arrival: token,
            permits: 1,
            capacity: 1,
            delay_ms: 0,
            of_session: false,
            // What one was sure of is over when another hears of its grant, in whichever order they are made here.
            heard: now + Duration::from_secs(3600),
            until: now,
            starts: (0, 0),
            granted_ms: Some(token * 10),
            ends_ms: Some(token * 10 + 50),
            held: (held, held * 10),
            lost: None,
            released: None,
            end: End::Unclean,
        }
    }

    fn judge(grants: &[Grant]) -> Vec<String> {
        let held = Held::default();
        grants.iter().for_each(|grant| held.granted("lock", grant.clone()));
        held.judge()
    }

    fn is_told(grants: &[Grant], what: &str) {
        let told = judge(grants);
        assert!(told.len() == 1 && told[0].contains(what), "{told:?}");
    }

    #[test]
    fn one_after_the_other_is_well() {
        assert_eq!(judge(&[grant(10, 14), grant(15, 15), grant(20, 10)]), Vec::<String>::new());
    }

    #[test]
    fn two_holders_of_a_plain_lock_are_too_many() {
        is_told(&[grant(10, 16), grant(15, 15)], "at 15 it is held under the tokens [10, 15]");
    }

    #[test]
    fn a_writer_is_not_beside_readers_and_readers_are_beside_each_other() {
        let reader = |token, held| Grant { capacity: u32::MAX, ..grant(token, held) };
        let writer = |token, held| Grant { permits: u32::MAX, ..reader(token, held) };
        assert_eq!(judge(&[reader(10, 30), reader(11, 40), writer(41, 42)]), Vec::<String>::new());
        is_told(&[reader(10, 30), reader(11, 40), writer(35, 35)], "tokens [11, 35]");
        is_told(&[writer(10, 20), reader(15, 15)], "tokens [10, 15]");
    }

    #[test]
    fn a_semaphore_has_so_many_permits() {
        let some = |token, held, permits| Grant { permits, capacity: 3, ..grant(token, held) };
        assert_eq!(judge(&[some(10, 30, 2), some(11, 30, 1), some(31, 40, 3)]), Vec::<String>::new());
        is_told(&[some(10, 30, 2), some(11, 30, 1), some(12, 12, 1)], "4 permits of 3");
    }

    #[test]
    fn nobody_overtakes() {
        let waited = |ticket, token| Grant { arrival: ticket, ..grant(token, 0) };
        assert_eq!(judge(&[waited(5, 20), waited(6, 21), grant(30, 30)]), Vec::<String>::new());
        is_told(&[waited(5, 21), waited(6, 20)], "holder 21 came at 5");
        // Somebody who did not wait, while another did.
        is_told(&[waited(5, 21), grant(20, 20)], "holder 20, who came at 20");
        is_told(&[waited(20, 20), waited(21, 20)], "has token 20");
    }

    #[test]
    fn a_lock_is_not_granted_within_a_lease_unless_it_was_given_back() {
        let (first, second) = (grant(10, 10), grant(20, 20));
        let until = second.heard + Duration::from_secs(1);
        let first = Grant { until, ..first };
        is_told(&[first.clone(), second.clone()], "1s left");
        let given_back = Grant { released: Some(second.heard), ..first.clone() };
        assert_eq!(judge(&[given_back, second.clone()]), Vec::<String>::new());
        let started = Grant { starts: (0, 1), ..second.clone() };
        assert_eq!(judge(&[first.clone(), started.clone()]), Vec::<String>::new());
        let of_session = Grant { of_session: true, ends_ms: None, ..first };
        is_told(&[of_session, started], "1s left");
    }

    #[test]
    fn a_delay_follows_an_end_without_release() {
        // Its lease ends at 150.
        let before = Grant { delay_ms: 30, ..grant(10, 12) };
        let after = |granted_ms| Grant { granted_ms: Some(granted_ms), ..grant(20, 20) };
        assert_eq!(judge(&[before.clone(), after(180)]), Vec::<String>::new());
        is_told(&[before.clone(), after(179)], "a delay of 30 ms");
        is_told(&[before.clone(), after(150)], "a delay of 30 ms");
        let clean = Grant { end: End::Clean, ..before.clone() };
        assert_eq!(judge(&[clean, after(160)]), Vec::<String>::new());
        let of_session = Grant { of_session: true, ends_ms: None, ..before };
        assert_eq!(judge(&[of_session.clone(), after(150)]), Vec::<String>::new());
        is_told(&[of_session, after(149)], "a delay of 30 ms");
    }

    #[test]
    fn what_is_lost_is_lost() {
        let told = |position, time_ms| {
            let held = Held::default();
            held.granted("lock", grant(10, 10));
            held.lost("lock", 10, 10, 20, 0);
            held.used("lock", 10, 10, position, time_ms);
            held.judge().len()
        };
        assert_eq!((told(19, 149), told(20, 149), told(19, 150), told(30, 300)), (0, 1, 1, 2));
        let held = Held::default();
        held.granted("lock", Grant { until: Instant::now() + Duration::from_secs(9), ..grant(10, 10) });
        held.lost("lock", 10, 10, 20, 0);
        assert_eq!(held.judge().len(), 1);
    }

    #[test]
    fn nobody_is_refused_because_of_a_lease_that_has_ended() {
        let held = Held::default();
        held.refused("lock", 1_000, FencingToken(1), 1_001);
        assert_eq!(held.judge().len(), 0);
        held.refused("lock", 1_000, FencingToken(1), 1_000);
        assert_eq!(held.judge().len(), 1);
    }
}
