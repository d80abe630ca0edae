//! What counters promise, as scripts with their outcome beside them; see `commands_support::check`.

use crate::commands_support::{Logged, Random, check};
use dogsled_storage::counter::{CounterCommand, CounterReply};
use dogsled_storage::{Command, Error, Reply, TreeId};

#[test]
fn counts_from_zero_in_both_directions() {
    check(
        "get seats          => none
         add seats 5        => 5
         add seats -7       => -2
         get seats          => -2
         get others         => none",
    );
}

#[test]
fn an_overflow_is_told_and_changes_nothing() {
    check(
        "set seats 9223372036854775806    => none
         add seats 1                      => 9223372036854775807
         add seats 1                      => overflow at 9223372036854775807
         get seats                        => 9223372036854775807
         set seats -9223372036854775808   => 9223372036854775807
         add seats -1                     => overflow at -9223372036854775808
         add seats -9223372036854775808   => overflow at -9223372036854775808
         add seats 9223372036854775807    => -1",
    );
}

#[test]
fn a_bounded_addition_stays_within_both_bounds_inclusive() {
    check(
        "add seats 2 within 0 3     => 2
         add seats 2 within 0 3     => out of bounds at 2
         add seats 1 within 0 3     => 3
         add seats 1 within 0 3     => out of bounds at 3
         add seats -4 within 0 3    => out of bounds at 3
         add seats -3 within 0 3    => 0
         # An overflow is beyond every bound, and no error of its own.
         set seats 9223372036854775807  => 0
         add seats 1 within -9223372036854775808 9223372036854775807  => out of bounds at 9223372036854775807",
    );
}

#[test]
fn a_counter_out_of_bounds_may_be_brought_back_within() {
    check(
        "set seats 10               => none
         add seats -1 within 0 3    => out of bounds at 10
         add seats -8 within 0 3    => 2",
    );
}

#[test]
fn bounds_that_hold_no_number_are_an_error() {
    check(
        "add seats 1 within 3 0  => invalid request: the bounds 3 to 0 of a counter hold no number
         get seats               => none",
    );
}

#[test]
fn set_and_remove_return_the_old_value() {
    check(
        "set seats 4       => none
         set seats 0       => 4
         remove seats      => 0
         remove seats      => none
         get seats         => none
         add seats 1       => 1",
    );
}

#[test]
fn counters_survive_a_reopen() {
    check(
        "add seats 5       => 5
         set desks -300    => none
         reopen
         get seats         => 5
         get desks         => -300
         add seats 1       => 6",
    );
}

#[test]
fn a_damaged_value_is_reported_and_never_counted_from() {
    check(
        "raw counters seats 616263
         add seats 1   => damaged data in the tree of counters: counter \"seats\" holds 3 bytes instead of 8; `dogsled repair` saves what is sound
         get seats     => damaged data in the tree of counters: counter \"seats\" holds 3 bytes instead of 8; `dogsled repair` saves what is sound
         set seats 1   => damaged data in the tree of counters: counter \"seats\" holds 3 bytes instead of 8; `dogsled repair` saves what is sound",
    );
}

#[test]
fn what_changes_nothing_writes_nothing() {
    let mut logged = Logged::default();
    let name = || "seats".into();
    for command in [
        CounterCommand::Get { name: name() },
        CounterCommand::Remove { name: name() },
        CounterCommand::AddWithin { name: name(), delta: 9, min: 0, max: 3 },
    ] {
        logged.execute(&Command::Counter(command)).unwrap();
        assert_eq!(logged.state.sequence(), 0);
    }
    // A counter that is not there comes to be even by an addition of nothing, once.
    for _ in 0..2 {
        logged.execute(&Command::Counter(CounterCommand::Add { name: name(), delta: 0 })).unwrap();
        assert_eq!(logged.state.sequence(), 1);
    }
}

#[test]
fn a_name_over_the_limit_is_refused() {
    let mut logged = Logged::default();
    let long = Command::Counter(CounterCommand::Get { name: vec![b'x'; 4097].into() });
    let error = logged.execute(&long).unwrap_err();
    assert!(matches!(error, Error::InvalidRequest(_)), "{error}");
    assert!(error.to_string().contains("4097 bytes is over the limit of 4096"), "{error}");
}

/// Random commands on a few counters, compared with arithmetic in 128 bits.
#[test]
fn random_commands_agree_with_wide_arithmetic() {
    for seed in 0..200 {
        let mut random = Random(seed);
        let mut logged = Logged::default();
        let mut model: [Option<i128>; 3] = [None; 3];
        for step in 0..100 {
            let index = random.below(3) as usize;
            let name = || ["a", "b", "c"][index].into();
            // Half of the steps near the borders, half small.
            let mut value = || if random.coin() { random.signed() } else { random.below(9) as i64 - 4 };
            let (delta, first, second) = (value(), value(), value());
            let (min, max) = (first.min(second), first.max(second));
            let current = model[index].unwrap_or(0);
            let sum = current + i128::from(delta);
            let (command, expected) = match random.below(6) {
                0 | 1 => {
                    let fits = i64::try_from(sum).is_ok();
                    let reply = if fits {
                        model[index] = Some(sum);
                        CounterReply::Added { value: sum as i64 }
                    } else {
                        CounterReply::Overflow { current: current as i64 }
                    };
                    (CounterCommand::Add { name: name(), delta }, reply)
                }
                2 | 3 => {
                    let reply = if sum >= i128::from(min) && sum <= i128::from(max) {
                        model[index] = Some(sum);
                        CounterReply::Added { value: sum as i64 }
                    } else {
                        CounterReply::OutOfBounds { current: current as i64 }
                    };
                    (CounterCommand::AddWithin { name: name(), delta, min, max }, reply)
                }
                4 => {
                    let old = model[index].replace(delta.into());
                    (
                        CounterCommand::Set { name: name(), value: delta },
                        CounterReply::Previous(old.map(|old| old as i64)),
                    )
                }
                _ => {
                    let old = model[index].take();
                    (
                        CounterCommand::Remove { name: name() },
                        CounterReply::Previous(old.map(|old| old as i64)),
                    )
                }
            };
            let reply = logged.execute(&Command::Counter(command.clone())).unwrap();
            assert_eq!(reply, Reply::Counter(expected), "seed {seed}, step {step}, {command:?}");
        }
        let there = model.iter().flatten().count() as u64;
        assert_eq!(logged.state.len(TreeId::COUNTERS), there, "seed {seed}");
        logged.reopen();
    }
}
