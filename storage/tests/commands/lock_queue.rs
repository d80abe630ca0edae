//! Waiting for locks, read/write locks, semaphores and lock-delays: who gets a lock when.

use std::collections::{HashMap, VecDeque};

use crate::commands_support::{Logged, Random, check};
use dogsled_storage::lock::{self, FencingToken, LockCommand, LockReply, LockRequest};
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, IVec, Reply, TreeId};

#[test]
fn who_waits_is_served_in_the_order_of_arrival_by_the_release_itself() {
    check(
        "at 1000
         ann waits for door for 500  => acquired 1 until 1500
         ben waits for door for 500  => waits as 2 until 2000
         cat waits for door for 500  => waits as 3 until 2000
         at 1100
         ann releases door 1         => released
         who door                    => ben, token 4, until 1600
         ticket 2 still waits for door => acquired 4 until 1600
         ticket 3 still waits for door => waits as 3 until 2100
         ben releases door 4         => released
         who door                    => cat, token 6, until 1600
         cat releases door 6         => released
         who door                    => nobody
         ticket 3 still waits for door => not held",
    );
}

#[test]
fn nobody_comes_between_those_who_wait() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         ben waits for door for 500  => waits as 2 until 2000
         at 1500
         # The lease has ended; it is ben's, whoever asks first.
         dan takes door for 500      => held by ben, token 3, until 2000
         who door                    => ben, token 3, until 2000",
    );
}

#[test]
fn the_end_of_a_lease_is_settled_without_anybody_asking() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         ben waits for door for 500  => waits as 2 until 2000
         at 1499
         settle                      => 0 keys, 0 locks
         at 1500
         settle                      => 0 keys, 1 locks
         who door                    => ben, token 3, until 2000
         settle                      => 0 keys, 0 locks",
    );
}

#[test]
fn a_waiter_that_has_gone_is_passed_over() {
    check(
        "at 1000
         ann takes door for 5000     => acquired 1 until 6000
         ben waits for door for 500  => waits as 2 until 2000
         cat waits for door for 500  => waits as 3 until 2000
         at 1900
         ticket 3 still waits for door => waits as 3 until 2900
         at 2500
         ann releases door 1         => released
         who door                    => cat, token 5, until 3000
         ticket 2 still waits for door => not held",
    );
}

#[test]
fn leaving_the_queue_gives_back_what_was_granted_meanwhile() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         ben waits for door for 500  => waits as 2 until 2000
         cat waits for door for 500  => waits as 3 until 2000
         ticket 3 leaves door        => released
         ticket 3 leaves door        => not held
         ann releases door 1         => released
         ticket 2 leaves door        => released
         who door                    => nobody",
    );
}

#[test]
fn a_writer_is_not_starved_by_readers_and_readers_share() {
    check(
        "at 1000
         semaphore rw ann takes 1 of book for 500 delay 0 waits 100   => acquired 1 until 1500
         semaphore rw ben takes 1 of book for 500 delay 0 waits 100   => acquired 2 until 1500
         semaphore rw cat takes all of book for 500 delay 0 waits 900 => waits as 3 until 1900
         semaphore rw dan takes 1 of book for 500 delay 0 waits 900   => waits as 4 until 1900
         semaphore rw eve takes 1 of book for 500 delay 0 waits 900   => waits as 5 until 1900
         ann releases book 1         => released
         who book                    => ben, token 2, until 1500
         ben releases book 2         => released
         who book                    => cat, token 7, until 1500
         # Both readers at once, each with a larger token.
         cat releases book 7         => released
         ticket 4 still waits for book => acquired 8 until 1500
         ticket 5 still waits for book => acquired 9 until 1500
         dan releases book 8         => released
         eve releases book 9         => released
         semaphore rw ann takes all of book for 500 delay 0 waits 0   => acquired 11 until 1500",
    );
}

#[test]
fn tokens_that_are_ahead_of_the_log_are_never_given_again() {
    check(
        "at 1000
         semaphore rw ann takes all of book for 100 delay 0 waits 100 => acquired 1 until 1100
         semaphore rw ben takes 1 of book for 100 delay 0 waits 900   => waits as 2 until 1900
         semaphore rw cat takes 1 of book for 100 delay 0 waits 900   => waits as 3 until 1900
         semaphore rw dan takes 1 of book for 100 delay 0 waits 900   => waits as 4 until 1900
         ann releases book 1         => released
         ticket 4 still waits for book => acquired 7 until 1100
         at 1100
         # All three leases end at once, at position 6.
         expire book                 => expired
         eve takes book for 100      => acquired 8 until 1200",
    );
}

#[test]
fn a_semaphore_has_as_many_permits_as_it_says() {
    check(
        "at 1000
         semaphore 3 ann takes 2 of seats for 500 delay 0 waits 0   => acquired 1 until 1500
         semaphore 3 ben takes 2 of seats for 500 delay 0 waits 0   => held by ann, token 1, until 1500
         semaphore 3 cat takes 1 of seats for 500 delay 0 waits 0   => acquired 2 until 1500
         semaphore 2 dan takes 1 of seats for 500 delay 0 waits 0   => invalid request: lock \"seats\" is in use with a capacity of 3, not 2
         dan takes seats for 500     => invalid request: lock \"seats\" is in use with a capacity of 3, not 1
         semaphore 3 dan takes 4 of seats for 500 delay 0 waits 0   => invalid request: 4 permits of a lock that has 3
         semaphore 3 dan takes 0 of seats for 500 delay 0 waits 0   => invalid request: 0 permits of a lock that has 3
         ann releases seats 1        => released
         cat releases seats 2        => released
         dan takes seats for 500     => acquired 5 until 1500",
    );
}

#[test]
fn after_an_unclean_end_the_lock_is_delayed() {
    check(
        "at 1000
         semaphore 1 ann takes 1 of door for 500 delay 300 waits 0  => acquired 1 until 1500
         ben waits for door for 500  => waits as 2 until 2000
         at 1600
         settle                      => 0 keys, 1 locks
         who door                    => nobody
         dan takes door for 500      => held by , token 1, until 1800
         at 1800
         settle                      => 0 keys, 1 locks
         who door                    => ben, token 4, until 2300
         ben releases door 4         => released
         # After a release there is no delay.
         semaphore 1 ann takes 1 of door for 500 delay 300 waits 0  => acquired 6 until 2300
         ann releases door 6         => released
         ben takes door for 500      => acquired 8 until 2300",
    );
}

/// What a queue is, written down a second time: a list of holders and a list of those who wait.
#[derive(Default)]
struct Plain {
    holders: Vec<(u64, u32, u64, FencingToken)>,
    waiting: VecDeque<(u64, u32, u64, u64)>,
    largest: u64,
}

const CAPACITY: u32 = 3;

impl Plain {
    /// Lets go on what can; who is granted has no token known here.
    fn settle(&mut self, now: u64) -> Vec<u64> {
        self.holders.retain(|(.., ends, _)| *ends > now);
        let mut granted = Vec::new();
        while let Some(&(ticket, permits, ends, lease)) = self.waiting.front() {
            if ends > now {
                let taken: u32 = self.holders.iter().map(|holder| holder.1).sum();
                if taken + permits > CAPACITY {
                    break;
                }
                self.holders.push((ticket, permits, now + lease, FencingToken(0)));
                granted.push(ticket);
            }
            self.waiting.pop_front();
        }
        granted
    }
}

/// Random commands of many on one semaphore, against the lists: the same are granted at the same time, no
/// more permits are out than there are, tokens grow, and nothing is left behind when all have gone.
#[test]
fn random_queues_are_those_of_two_lists() {
    for seed in 0..300 {
        let mut random = Random(seed);
        let mut logged = Logged::default();
        logged.time_ms = 1_000;
        let mut plain = Plain::default();
        let name = || IVec::from("door");
        let mut waits = 0;
        for step in 0..200 {
            logged.time_ms += random.below(25);
            let now = logged.time_ms;
            let position = logged.state.sequence() + 1;
            let whence = format!("seed {seed}, step {step}, time {now}");
            let lease_ms = 1 + random.below(150);
            let permits = 1 + random.below(CAPACITY.into()) as u32;
            let ticket_of = |random: &mut Random, plain: &Plain| match plain.waiting.len() as u64 {
                0 => 999_999,
                count => plain.waiting[random.below(count) as usize].0,
            };
            let command = match random.below(8) {
                0..=3 => LockCommand::Acquire {
                    name: name(),
                    owner: format!("owner {position}").as_str().into(),
                    request: LockRequest { permits, capacity: CAPACITY, lease_ms, delay_ms: 0 },
                    wait_ms: if random.coin() { 0 } else { 1 + random.below(200) },
                },
                4 => LockCommand::RenewWait {
                    name: name(),
                    ticket: ticket_of(&mut random, &plain),
                    wait_ms: 1 + random.below(200),
                },
                5 => LockCommand::CancelWait { name: name(), ticket: ticket_of(&mut random, &plain) },
                _ if plain.holders.is_empty() => LockCommand::Expire { name: name() },
                _ => {
                    let (_, _, _, token) = plain.holders[random.below(plain.holders.len() as u64) as usize];
                    let state = lock::state::read(&logged.state, b"door").unwrap();
                    let owner = state
                        .and_then(|(state, _)| {
                            state.holders.iter().find(|permit| permit.token == token).cloned()
                        })
                        .map(|permit| permit.owner);
                    match owner {
                        Some(owner) => LockCommand::Release { name: name(), owner, token },
                        None => LockCommand::Expire { name: name() },
                    }
                }
            };
            let Reply::Lock(reply) = logged.execute(&Command::Lock(command.clone())).unwrap() else {
                panic!("{whence}")
            };
            let whence = format!("{whence}, {command:?}: {reply:?}");
            plain.settle(now);
            match &command {
                LockCommand::Acquire { wait_ms, .. } => {
                    let taken: u32 = plain.holders.iter().map(|holder| holder.1).sum();
                    match &reply {
                        LockReply::Acquired { token, expires_ms } => {
                            assert!(plain.waiting.is_empty() && taken + permits <= CAPACITY, "{whence}");
                            plain.holders.push((0, permits, *expires_ms, *token));
                        }
                        LockReply::Waiting { ticket, expires_ms } => {
                            waits += 1;
                            assert!(!plain.waiting.is_empty() || taken + permits > CAPACITY, "{whence}");
                            assert_eq!((*ticket, *expires_ms), (position, now + wait_ms), "{whence}");
                            plain.waiting.push_back((*ticket, permits, *expires_ms, lease_ms));
                        }
                        LockReply::Held { .. } => {
                            assert!(*wait_ms == 0, "{whence}");
                            assert!(!plain.waiting.is_empty() || taken + permits > CAPACITY, "{whence}");
                        }
                        _ => panic!("{whence}"),
                    }
                }
                LockCommand::RenewWait { ticket, wait_ms, .. } => {
                    let waiting = plain.waiting.iter_mut().find(|waiting| waiting.0 == *ticket);
                    match (waiting, &reply) {
                        (Some(waiting), LockReply::Waiting { .. }) => waiting.2 = now + wait_ms,
                        (None, LockReply::Acquired { .. }) => {
                            assert!(plain.holders.iter().any(|holder| holder.0 == *ticket), "{whence}");
                        }
                        (None, LockReply::NotHeld) => {
                            assert!(plain.holders.iter().all(|holder| holder.0 != *ticket), "{whence}");
                        }
                        _ => panic!("{whence}"),
                    }
                }
                LockCommand::CancelWait { ticket, .. } => {
                    let before = (plain.waiting.len(), plain.holders.len());
                    plain.waiting.retain(|waiting| waiting.0 != *ticket);
                    plain.holders.retain(|holder| holder.0 != *ticket);
                    let is_changed = before != (plain.waiting.len(), plain.holders.len());
                    assert_eq!(reply == LockReply::Released, is_changed, "{whence}");
                    plain.settle(now);
                }
                LockCommand::Release { token, .. } => {
                    let before = plain.holders.len();
                    plain.holders.retain(|holder| holder.3 != *token);
                    assert_eq!(reply == LockReply::Released, before > plain.holders.len(), "{whence}");
                    plain.settle(now);
                }
                _ => {}
            }
            // The state says who was granted what; tokens are learned from it, and must be new.
            let state = lock::state::read(&logged.state, b"door").unwrap();
            let live: Vec<_> = state.iter().flat_map(|(state, _)| state.live(now)).cloned().collect();
            let expected: Vec<_> =
                plain.holders.iter().map(|holder| (holder.0, holder.1, holder.2)).collect();
            let found: Vec<_> =
                live.iter().map(|permit| (permit.ticket, permit.permits, permit.expires_ms)).collect();
            assert_eq!(found, expected, "{whence}");
            for (holder, permit) in plain.holders.iter_mut().zip(&live) {
                if holder.3 != permit.token {
                    holder.3 = permit.token;
                }
            }
            let tokens: HashMap<_, _> = live.iter().map(|permit| (permit.token, ())).collect();
            assert_eq!(tokens.len(), live.len(), "two grants with one token: {whence}");
            for permit in &live {
                if permit.token.0 > plain.largest {
                    plain.largest = permit.token.0;
                } else {
                    assert!(
                        permit.token.0 <= plain.largest && permit.token.0 != 0,
                        "a token that was given before: {whence}"
                    );
                }
            }
            if random.below(40) == 0 {
                logged.reopen();
            }
        }
        assert!(waits > 10, "seed {seed} waits {waits} times only");
        logged.time_ms += 100_000;
        for _ in 0..3 {
            logged.execute(&Command::SettleDue { limit: 10 }).unwrap();
            logged.execute(&Command::Lock(LockCommand::Expire { name: name() })).unwrap();
        }
        assert_eq!(logged.state.len(TreeId::LOCK_QUEUES), 0, "seed {seed}: somebody is left waiting");
        assert_eq!(logged.state.len(TreeId::LOCKS), 0, "seed {seed}: a record of a free lock is left");
    }
}

/// Settling does no more than it is asked to, and says that there is more.
#[test]
fn locks_are_settled_in_bounded_steps() {
    let mut state = ModelState::new();
    for number in 0..10 {
        for owner in ["ann", "ben"] {
            let acquire = LockCommand::Acquire {
                name: format!("lock {number}").as_str().into(),
                owner: owner.into(),
                request: LockRequest::exclusive(500),
                wait_ms: 10_000,
            };
            state.execute(1_000, &Command::Lock(acquire)).unwrap();
        }
    }
    let settle = Command::SettleDue { limit: 4 };
    let mut settled = Vec::new();
    loop {
        match state.execute(1_500, &settle).unwrap() {
            Reply::Settled { keys: 0, locks, more } => {
                settled.push(locks);
                if !more {
                    break;
                }
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(settled, [4, 4, 2]);
}

#[test]
fn whoever_waits_goes_on_at_the_end_of_a_delay_though_another_holds_a_permit() {
    check(
        "at 1000
         semaphore 2 ann takes 1 of seats for 50000 delay 0 waits 0  => acquired 1 until 51000
         semaphore 2 ben takes 1 of seats for 500 delay 300 waits 0  => acquired 2 until 1500
         semaphore 2 cat takes 1 of seats for 500 delay 0 waits 9000 => waits as 3 until 10000
         # Ben has vanished: his lease ends, and his delay begins.
         at 1500
         settle                      => 0 keys, 1 locks
         ticket 3 still waits for seats => waits as 3 until 2500
         at 1799
         settle                      => 0 keys, 0 locks
         at 1800
         settle                      => 0 keys, 1 locks
         ticket 3 still waits for seats => acquired 6 until 2300",
    );
}

#[test]
fn who_fits_goes_on_when_the_one_before_him_who_does_not_has_gone() {
    check(
        "at 1000
         semaphore 2 ann takes 1 of seats for 50000 delay 0 waits 0  => acquired 1 until 51000
         semaphore 2 ben takes 2 of seats for 500 delay 0 waits 500  => waits as 2 until 1500
         semaphore 2 cat takes 1 of seats for 500 delay 0 waits 9000 => waits as 3 until 10000
         at 1499
         settle                      => 0 keys, 0 locks
         at 1500
         settle                      => 0 keys, 1 locks
         ticket 3 still waits for seats => acquired 4 until 2000
         settle                      => 0 keys, 0 locks",
    );
}
