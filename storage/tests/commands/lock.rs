//! What locks promise, as scripts with their outcome beside them; see `commands_support::check`.

use std::collections::HashMap;

use crate::commands_support::{Logged, Random, check};
use dogsled_storage::evaluate::{Versioned, evaluate};
use dogsled_storage::lock::{self, FencingToken, Holder, LockCommand, LockReply, PENDING_SEQUENCE};
use dogsled_storage::model::ModelState;
use dogsled_storage::{Command, Context, IVec, Reply, TreeId};

#[test]
fn one_owner_at_a_time() {
    check(
        "at 1000
         who door                    => nobody
         ann takes door for 500      => acquired 1 until 1500
         who door                    => ann, token 1, until 1500
         ben takes door for 500      => held by ann, token 1, until 1500
         # Another lock is another matter.
         ben takes gate for 100      => acquired 2 until 1100
         ann releases door 1         => released
         who door                    => nobody
         ben takes door for 500      => acquired 4 until 1500",
    );
}

#[test]
fn re_entry_is_refused_and_names_the_grant() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         ann takes door for 900      => held by ann, token 1, until 1500
         ann releases door 1         => released
         ann releases door 1         => not held",
    );
}

#[test]
fn a_lease_ends_at_its_last_millisecond_and_not_before() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         at 1499
         ben takes door for 500      => held by ann, token 1, until 1500
         who door                    => ann, token 1, until 1500
         at 1500
         who door                    => nobody
         ben takes door for 500      => acquired 2 until 2000
         # Too late: ben's grant is not touched.
         ann renews door 1 for 500   => not held
         ann releases door 1         => not held
         who door                    => ben, token 2, until 2000",
    );
}

#[test]
fn renewal_counts_from_now_and_may_shorten() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         at 1400
         ann renews door 1 for 500   => renewed until 1900
         at 1899
         ben takes door for 500      => held by ann, token 1, until 1900
         ann renews door 1 for 1     => renewed until 1900
         at 1900
         # The lease has ended: it cannot be renewed even though nobody came.
         ann renews door 1 for 500   => not held
         who door                    => nobody",
    );
}

#[test]
fn only_the_owner_with_its_token_renews_or_releases() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         ben renews door 1 for 500   => not held
         ben releases door 1         => not held
         ann renews door 2 for 500   => not held
         ann releases door 0         => not held
         ann renews gate 1 for 500   => not held
         ann releases gate 1         => not held
         who door                    => ann, token 1, until 1500",
    );
}

#[test]
fn an_old_grant_of_the_same_owner_has_no_power_over_its_new_one() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         at 2000
         ann takes door for 500      => acquired 2 until 2500
         ann releases door 1         => not held
         ann renews door 1 for 500   => not held
         ann releases door 2         => released",
    );
}

#[test]
fn a_release_after_the_lease_frees_the_lock_and_says_that_it_was_lost() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         at 1500
         ann releases door 1         => not held
         expire door                 => not held",
    );
}

#[test]
fn expire_removes_a_lock_only_once_its_lease_has_ended() {
    check(
        "at 1000
         expire door                 => not held
         ann takes door for 500      => acquired 1 until 1500
         at 1499
         expire door                 => held by ann, token 1, until 1500
         at 1500
         expire door                 => expired
         expire door                 => not held
         ben takes door for 500      => acquired 3 until 2000",
    );
}

#[test]
fn tokens_grow_across_releases_and_reopens() {
    check(
        "at 1000
         ann takes door for 500      => acquired 1 until 1500
         ann releases door 1         => released
         reopen
         ann takes door for 500      => acquired 3 until 1500
         at 1600
         reopen
         ben takes door for 500      => acquired 4 until 2100
         ben renews door 4 for 600   => renewed until 2200
         reopen
         who door                    => ben, token 4, until 2200
         ben releases door 4         => released",
    );
}

#[test]
fn a_lease_to_the_end_of_time_never_ends() {
    check(
        "at 1000
         ann takes door for 18446744073709551615  => acquired 1 until 18446744073709551615
         at 18446744073709551615
         ben takes door for 500      => held by ann, token 1, until 18446744073709551615
         expire door                 => held by ann, token 1, until 18446744073709551615
         ann releases door 1         => released",
    );
}

#[test]
fn a_lease_of_nothing_is_an_error() {
    check(
        "at 1000
         ann takes door for 0        => invalid request: a lease of 0 ms would end before it begins
         ann takes door for 500      => acquired 1 until 1500
         ann renews door 1 for 0     => invalid request: a lease of 0 ms would end before it begins
         who door                    => ann, token 1, until 1500",
    );
}

#[test]
fn a_damaged_or_newer_record_is_reported_and_never_taken_for_free() {
    check(
        "at 1000
         raw locks newer 0403616e6e01fbdc05
         ann takes newer for 500     => damaged data in the tree of locks: lock \"newer\": format version 4 is not known, only 1 and 3; `dogsled repair` saves what is sound
         expire newer                => damaged data in the tree of locks: lock \"newer\": format version 4 is not known, only 1 and 3; `dogsled repair` saves what is sound
         raw locks short 0103616e6e01
         who short                   => damaged data in the tree of locks: lock \"short\": UnexpectedEnd { additional: 1 }; `dogsled repair` saves what is sound",
    );
}

/// The layout in the module's documentation, byte by byte.
#[test]
fn the_record_is_laid_out_as_documented() {
    let mut state = ModelState::new();
    let take =
        Command::Lock(LockCommand::TryAcquire { name: "door".into(), owner: "ann".into(), lease_ms: 500 });
    state.execute(1_000, &take).unwrap();
    let stored = &state.tree(TreeId::LOCKS).unwrap()[&b"door"[..]].value;
    assert_eq!(*stored, b"\x01\x03ann\x01\xfb\xdc\x05");
}

#[test]
fn an_owner_with_too_long_a_name_is_refused() {
    let mut logged = Logged::default();
    let owner = IVec::from(vec![b'x'; 4097]);
    let command = LockCommand::TryAcquire { name: "door".into(), owner, lease_ms: 1 };
    let error = logged.execute(&Command::Lock(command)).unwrap_err();
    assert!(error.to_string().contains("4097 bytes, over the limit of 4096"), "{error}");
}

fn stored(owner: &str, token: u64, expires_ms: u64, version: u64) -> Versioned {
    let mut value = vec![1, owner.len() as u8];
    value.extend_from_slice(owner.as_bytes());
    value.extend_from_slice(&[token as u8, expires_ms as u8]);
    Versioned { version, value: value.into() }
}

#[test]
fn a_grant_within_a_transaction_takes_the_token_of_its_commit() {
    let mut state = ModelState::new();
    let take = LockCommand::TryAcquire { name: "door".into(), owner: "ann".into(), lease_ms: 500 };
    let context = Context { sequence: PENDING_SEQUENCE, time_ms: 1_000 };
    let outcome = evaluate(&state, &context, &Command::Lock(take)).unwrap();
    let pending = Reply::Lock(LockReply::Acquired { token: FencingToken::PENDING, expires_ms: 1_500 });
    assert_eq!(outcome.reply, pending);
    // Others committed meanwhile; the transaction does at 42.
    state.apply(42, &outcome.effects);
    let holder = lock::holder(&state, 1_000, b"door").unwrap().unwrap();
    assert_eq!(holder, Holder { owner: "ann".into(), token: FencingToken(42), expires_ms: 1_500 });
    // A renewal writes the record again, and the token stays.
    let renew = LockCommand::Renew {
        name: "door".into(),
        owner: "ann".into(),
        token: FencingToken(42),
        lease_ms: 900,
    };
    let reply = state.execute(1_100, &Command::Lock(renew)).unwrap();
    assert_eq!(reply, Reply::Lock(LockReply::Renewed { expires_ms: 2_000 }));
    assert_eq!(lock::holder(&state, 1_100, b"door").unwrap().unwrap().token, FencingToken(42));
}

#[test]
fn a_record_resolves_its_token_by_its_version() {
    let token = |token, version| {
        lock::decode_state(b"door", &stored("ann", token, 9, version)).unwrap().holders[0].token
    };
    assert_eq!(token(3, 3), FencingToken(3));
    assert_eq!(token(3, 7), FencingToken(3), "renewed at 7");
    assert_eq!(token(0, 7), FencingToken(7), "granted by a transaction that committed at 7");
    assert_eq!(token(0, 0), FencingToken::PENDING, "granted by this very transaction");
    assert_eq!(token(3, 0), FencingToken(3), "renewed by this very transaction");
}

/// Random commands of a few owners on a few locks at a time that passes: no two hold a lock at
/// once, every token is larger than those before, and only who holds can renew or release.
#[test]
fn random_commands_never_break_mutual_exclusion_or_the_order_of_tokens() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut logged = Logged::default();
        // Of each lock, the last grant: owner, token, expiry, and whether it was given back.
        let mut granted: HashMap<&str, (&str, FencingToken, u64, bool)> = HashMap::new();
        let mut grants = 0;
        for step in 0..300 {
            logged.time_ms += random.below(30);
            let now = logged.time_ms;
            let name = ["door", "gate"][random.below(2) as usize];
            let owner = ["ann", "ben", "cat"][random.below(3) as usize];
            let lease_ms = 1 + random.below(100);
            let last = granted.get(name).copied();
            let held = last.filter(|&(_, _, expires_ms, is_released)| expires_ms > now && !is_released);
            let token = match random.below(4) {
                0 => FencingToken(random.below(300)),
                _ => last.map_or(FencingToken(0), |(_, token, ..)| token),
            };
            let is_holder = held.is_some_and(|(holder, its, ..)| holder == owner && its == token);
            let (name_bytes, owner_bytes) = (name.into(), owner.into());
            let command = match random.below(5) {
                0 | 1 => LockCommand::TryAcquire { name: name_bytes, owner: owner_bytes, lease_ms },
                2 => LockCommand::Renew { name: name_bytes, owner: owner_bytes, token, lease_ms },
                3 => LockCommand::Release { name: name_bytes, owner: owner_bytes, token },
                _ => LockCommand::Expire { name: name_bytes },
            };
            let whence = format!("seed {seed}, step {step}, time {now}, {command:?}, last grant {last:?}");
            let Reply::Lock(reply) = logged.execute(&Command::Lock(command.clone())).unwrap() else {
                panic!("{whence}");
            };
            match (&command, &reply) {
                (LockCommand::TryAcquire { .. }, LockReply::Acquired { token, expires_ms }) => {
                    assert!(held.is_none(), "granted while held: {whence}");
                    assert!(
                        last.is_none_or(|(_, before, ..)| *token > before),
                        "{token} is not larger: {whence}"
                    );
                    assert_eq!(*expires_ms, now + lease_ms, "{whence}");
                    granted.insert(name, (owner, *token, *expires_ms, false));
                    grants += 1;
                }
                (
                    LockCommand::TryAcquire { .. } | LockCommand::Expire { .. },
                    LockReply::Held { holder, token, expires_ms },
                ) => {
                    let (expected, its, until, _) =
                        held.unwrap_or_else(|| panic!("held by nobody: {whence}"));
                    assert_eq!(
                        (&holder[..], *token, *expires_ms),
                        (expected.as_bytes(), its, until),
                        "{whence}"
                    );
                }
                (LockCommand::Renew { .. }, LockReply::Renewed { expires_ms }) => {
                    assert!(is_holder, "{whence}");
                    granted.insert(name, (owner, token, *expires_ms, false));
                }
                (LockCommand::Release { .. }, LockReply::Released) => {
                    assert!(is_holder, "{whence}");
                    granted.insert(name, (owner, token, now, true));
                }
                (LockCommand::Renew { .. } | LockCommand::Release { .. }, LockReply::NotHeld) => {
                    assert!(!is_holder, "{whence}");
                }
                (LockCommand::Expire { .. }, LockReply::Expired | LockReply::NotHeld) => {
                    assert!(held.is_none(), "{whence}");
                }
                _ => panic!("{reply:?}: {whence}"),
            }
            let found = lock::holder(&logged.state, now, name.as_bytes()).unwrap();
            let expected = granted.get(name).filter(|grant| grant.2 > now && !grant.3);
            assert_eq!(
                found.map(|holder| (holder.owner, holder.token, holder.expires_ms)),
                expected.map(|grant| (IVec::from(grant.0), grant.1, grant.2)),
                "{whence}"
            );
            if random.below(50) == 0 {
                logged.reopen();
            }
        }
        assert!(grants > 20, "seed {seed} granted {grants} times only");
    }
}
