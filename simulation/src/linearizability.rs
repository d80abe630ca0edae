//! Is there an order in which all this could have happened?
//!
//! A history of one object is *linearizable* if every operation can be given a moment between its
//! invocation and its answer such that, one after the other in that order, each gets the answer
//! that it got. The search is that of Wing and Gong (1993) with Lowe's memory (2017): it takes
//! operations one by one, always among those that no other must precede, and remembers which sets of
//! operations, with which state behind them, have led nowhere.
//!
//! An operation with an unknown outcome has no last moment: it may be put anywhere behind its
//! invocation, or be left out. One that was refused must be left out. So there are two prunings,
//! without which every unknown one would double the work:
//!
//! - An unknown write whose value nobody ever saw can be left out: whatever order there is with it,
//!   there is one without it.
//! - Of unknown operations that do the same (additions of one number), the one that was invoked
//!   first goes first.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use crate::history::{Action, BOUNDS, Heard, Kind, Operation, Outcome};
use crate::random::Random;

/// What the search found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// There is such an order.
    Linearizable,
    /// There is none: this many operations could be put in order at most, and then none of those
    /// that were due fitted the state.
    Violated {
        /// Operations put in order on the longest way.
        depth: usize,
        /// The state there.
        state: u64,
        /// Those that were due, in words.
        due: Vec<String>,
    },
    /// The search was given up.
    Undecided,
}

/// States tried before giving up.
const BUDGET: usize = 1_000_000;

/// What the object holds after an operation; `None` if it would not have given that answer.
fn step(kind: Kind, state: u64, operation: &Operation) -> Option<u64> {
    let heard = match operation.outcome {
        Outcome::Heard(heard) => Some(heard),
        Outcome::Unknown => None,
        Outcome::Refused => return None,
    };
    let (answer, after) = match operation.action {
        Action::Put(value) => (Heard::Value(state), value),
        Action::Write(value) => (Heard::Done, value),
        Action::Remove => (Heard::Value(state), 0),
        Action::Swap(old, new) if state == old => (Heard::Swapped, new),
        Action::Swap(..) => (Heard::Differs(state), state),
        Action::Get => (Heard::Value(state), state),
        Action::Add(delta) => {
            let sum = (state as i64).wrapping_add(delta) as u64;
            (Heard::Value(sum), sum)
        }
        Action::AddWithin(delta) => {
            let sum = (state as i64).checked_add(delta).filter(|sum| BOUNDS.contains(sum));
            match sum {
                Some(sum) => (Heard::Value(sum as u64), sum as u64),
                None => (Heard::Differs(state), state),
            }
        }
    };
    debug_assert!(
        kind == Kind::Counter || !matches!(operation.action, Action::Add(_) | Action::AddWithin(_))
    );
    (heard.is_none() || heard == Some(answer)).then_some(after)
}

/// Values that somebody saw, or that somebody's swap depends on.
fn seen(operations: &[Operation]) -> BTreeSet<u64> {
    let mut seen = BTreeSet::new();
    for operation in operations {
        if let Outcome::Heard(Heard::Value(value) | Heard::Differs(value)) = operation.outcome {
            seen.insert(value);
        }
        if let Action::Swap(old, _) = operation.action
            && operation.outcome != Outcome::Refused
        {
            seen.insert(old);
        }
    }
    seen
}

/// A set of operations as a number of 128 bits: two sets with the same number would be a
/// coincidence that no run lives to see.
type SetHash = u128;

/// Judges the operations of one object.
pub fn check(kind: Kind, operations: &[Operation]) -> Verdict {
    let seen = seen(operations);
    let keep = |operation: &&Operation| match (operation.outcome, operation.action) {
        (Outcome::Refused, _) | (Outcome::Unknown, Action::Get) => false,
        // What a counter is set to is added to before anybody sees it.
        (Outcome::Unknown, Action::Put(value) | Action::Write(value) | Action::Swap(_, value))
            if kind == Kind::Register =>
        {
            // A removal by swap is seen as any removal is.
            value == 0 || seen.contains(&value)
        }
        _ => true,
    };
    let mut operations: Vec<&Operation> = operations.iter().filter(keep).collect();
    operations.sort_by_key(|operation| operation.invoked);
    let last = |operation: &Operation| match operation.outcome {
        Outcome::Heard(_) => operation.answered.unwrap_or(u64::MAX),
        _ => u64::MAX,
    };
    let mut random = Random::new(7, 7);
    let names: Vec<SetHash> = operations
        .iter()
        .map(|_| (SetHash::from(random.number()) << 64) | SetHash::from(random.number()))
        .collect();
    let must = operations.iter().filter(|operation| last(operation) != u64::MAX).count();

    let mut search = Search {
        kind,
        operations: &operations,
        last: operations.iter().map(|operation| last(operation)).collect(),
        taken: vec![false; operations.len()],
        first: 0,
    };
    let mut been: HashSet<(SetHash, u64)> = HashSet::new();
    // One frame for each operation taken: what can come next, and what was there before.
    let mut frames: Vec<Frame> = Vec::new();
    let (mut state, mut set, mut done) = (0u64, 0 as SetHash, 0);
    let mut deepest = (0, 0, Vec::new());
    let mut candidates = search.candidates(state);
    loop {
        if done == must {
            return Verdict::Linearizable;
        }
        let next = candidates.pop();
        match next {
            Some((at, after)) => {
                let reached = (set ^ names[at], after);
                if !been.insert(reached) {
                    continue;
                }
                if been.len() > BUDGET {
                    return Verdict::Undecided;
                }
                frames.push(Frame { candidates, at, state, set, done, first: search.first });
                search.take(at);
                (set, state) = reached;
                done += usize::from(search.last[at] != u64::MAX);
                candidates = search.candidates(state);
                if done >= deepest.0 {
                    deepest = (done, state, search.due());
                }
            }
            None => {
                let Some(frame) = frames.pop() else {
                    let due = deepest.2.iter().map(|at| format!("{:?}", operations[*at])).collect();
                    return Verdict::Violated { depth: deepest.0, state: deepest.1, due };
                };
                search.taken[frame.at] = false;
                search.first = frame.first;
                (candidates, state, set, done) = (frame.candidates, frame.state, frame.set, frame.done);
            }
        }
    }
}

struct Frame {
    candidates: Vec<(usize, u64)>,
    at: usize,
    state: u64,
    set: SetHash,
    done: usize,
    first: usize,
}

struct Search<'a> {
    kind: Kind,
    operations: &'a [&'a Operation],
    /// The last moment of each.
    last: Vec<u64>,
    taken: Vec<bool>,
    /// All before this are taken.
    first: usize,
}

impl Search<'_> {
    fn take(&mut self, at: usize) {
        self.taken[at] = true;
        while self.first < self.taken.len() && self.taken[self.first] {
            self.first += 1;
        }
    }

    /// Those that no other that is left must precede.
    fn due(&self) -> Vec<usize> {
        let mut end = u64::MAX;
        let mut due = Vec::new();
        for at in self.first..self.operations.len() {
            if self.taken[at] {
                continue;
            }
            if self.operations[at].invoked > end {
                break;
            }
            end = end.min(self.last[at]);
            due.push(at);
        }
        due.retain(|at| self.operations[*at].invoked < end);
        due
    }

    /// Those of them that fit the state, with the state behind them; the one to try first is last.
    fn candidates(&self, state: u64) -> Vec<(usize, u64)> {
        let mut same: BTreeMap<(u8, u64, u64), ()> = BTreeMap::new();
        let mut known = Vec::new();
        let mut unknown = Vec::new();
        for at in self.due() {
            let operation = self.operations[at];
            let Some(after) = step(self.kind, state, operation) else { continue };
            if self.last[at] != u64::MAX {
                known.push((at, after));
                continue;
            }
            // An unknown one that changes nothing may as well be left out.
            if after == state {
                continue;
            }
            let what = match operation.action {
                Action::Add(delta) => (0, delta as u64, 0),
                Action::Remove => (1, 0, 0),
                Action::Swap(old, new) => (2, old, new),
                Action::Put(value) | Action::Write(value) => (3, value, 0),
                Action::AddWithin(delta) => (4, delta as u64, 0),
                Action::Get => continue,
            };
            if same.insert(what, ()).is_none() {
                unknown.push((at, after));
            }
        }
        // What was heard first is tried first, and what is not known to have happened last.
        known.sort_by_key(|(at, _)| std::cmp::Reverse(self.last[*at]));
        unknown.reverse();
        unknown.extend(known);
        unknown
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heard(invoked: u64, answered: u64, action: Action, heard: Heard) -> Operation {
        Operation { client: 0, action, invoked, answered: Some(answered), outcome: Outcome::Heard(heard) }
    }

    fn unknown(invoked: u64, action: Action) -> Operation {
        Operation { client: 0, action, invoked, answered: Some(invoked + 1), outcome: Outcome::Unknown }
    }

    fn registers(operations: &[Operation]) -> bool {
        check(Kind::Register, operations) == Verdict::Linearizable
    }

    #[test]
    fn reads_see_the_last_write_before_them() {
        let put = heard(1, 2, Action::Put(5), Heard::Value(0));
        assert!(registers(&[put.clone(), heard(3, 4, Action::Get, Heard::Value(5))]));
        assert!(!registers(&[put.clone(), heard(3, 4, Action::Get, Heard::Value(0))]));
        // While the write is under way, either is right; going back is not.
        let put = heard(1, 10, Action::Put(5), Heard::Value(0));
        let (old, new) = (Heard::Value(0), Heard::Value(5));
        let reads =
            |first, second| [put.clone(), heard(2, 3, Action::Get, first), heard(4, 5, Action::Get, second)];
        assert!(registers(&reads(old, new)));
        assert!(registers(&reads(old, old)));
        assert!(!registers(&reads(new, old)));
    }

    #[test]
    fn an_unknown_write_may_happen_late_or_never_but_not_twice() {
        let lost = unknown(1, Action::Put(5));
        let get = |invoked, value| heard(invoked, invoked + 1, Action::Get, Heard::Value(value));
        assert!(registers(&[lost.clone(), get(10, 0), get(20, 0)]));
        assert!(registers(&[lost.clone(), get(10, 0), get(20, 5), get(30, 5)]));
        assert!(!registers(&[lost.clone(), get(10, 5), get(20, 0)]));
        let put = heard(12, 13, Action::Put(6), Heard::Value(5));
        assert!(registers(&[lost.clone(), get(10, 5), put.clone(), get(20, 6)]));
        assert!(!registers(&[lost, get(10, 5), put, get(20, 6), get(30, 5)]));
    }

    #[test]
    fn a_refused_write_must_not_happen() {
        let refused = Operation { outcome: Outcome::Refused, ..unknown(1, Action::Put(5)) };
        assert!(registers(&[refused.clone(), heard(10, 11, Action::Get, Heard::Value(0))]));
        assert!(!registers(&[refused, heard(10, 11, Action::Get, Heard::Value(5))]));
    }

    #[test]
    fn swaps_and_removals_tell_what_was_there() {
        let put = heard(1, 2, Action::Put(5), Heard::Value(0));
        assert!(registers(&[
            put.clone(),
            heard(3, 4, Action::Swap(5, 6), Heard::Swapped),
            heard(5, 6, Action::Swap(5, 7), Heard::Differs(6)),
            heard(7, 8, Action::Remove, Heard::Value(6)),
        ]));
        assert!(!registers(&[put.clone(), heard(3, 4, Action::Swap(5, 6), Heard::Differs(5))]));
        let twice = heard(3, 9, Action::Swap(5, 6), Heard::Swapped);
        assert!(!registers(&[put, twice, heard(4, 8, Action::Swap(5, 7), Heard::Swapped)]));
    }

    #[test]
    fn a_counter_counts_each_addition_once() {
        let add = |invoked, delta, sum| heard(invoked, invoked + 1, Action::Add(delta), Heard::Value(sum));
        let counter = |operations: &[Operation]| check(Kind::Counter, operations) == Verdict::Linearizable;
        assert!(counter(&[add(1, 2, 2), add(3, 3, 5)]));
        assert!(!counter(&[add(1, 2, 2), add(3, 3, 7)]));
        let lost: Vec<Operation> = (0..30).map(|at| unknown(10 + at, Action::Add(1))).collect();
        let with = |sum| [&lost[..], &[heard(100, 101, Action::Get, Heard::Value(sum))]].concat();
        assert!(counter(&with(0)) && counter(&with(17)) && counter(&with(30)));
        assert!(!counter(&with(31)));
    }

    #[test]
    fn a_bounded_counter_stays_within_and_is_set_only_if_it_stands_where_it_should() {
        let at = |invoked, action, answer| heard(invoked, invoked + 1, action, answer);
        let counter = |operations: &[Operation]| check(Kind::Counter, operations) == Verdict::Linearizable;
        let most = *BOUNDS.end();
        let full = at(1, Action::AddWithin(most), Heard::Value(most as u64));
        assert!(counter(&[full.clone(), at(3, Action::AddWithin(1), Heard::Differs(most as u64))]));
        assert!(!counter(&[full.clone(), at(3, Action::AddWithin(1), Heard::Value(most as u64 + 1))]));
        // Refused although it would have fitted.
        assert!(!counter(&[at(1, Action::AddWithin(1), Heard::Differs(0))]));
        assert!(counter(&[full.clone(), at(3, Action::Swap(most as u64, 2), Heard::Swapped)]));
        assert!(!counter(&[full.clone(), at(3, Action::Swap(5, 2), Heard::Swapped)]));
        // Set by who never heard of it, and added to before anybody looked.
        let lost = unknown(3, Action::Swap(most as u64, 2));
        let get = |value| at(9, Action::Get, Heard::Value(value));
        let then = at(5, Action::AddWithin(1), Heard::Value(3));
        assert!(counter(&[full.clone(), lost.clone(), then.clone(), get(3)]));
        assert!(!counter(&[full.clone(), then, get(3)]));
        assert!(counter(&[full.clone(), lost.clone(), get(2)]) && counter(&[full, lost, get(most as u64)]));
    }

    /// Every order of a few operations, tried one after the other.
    fn by_trying_all(kind: Kind, operations: &[Operation]) -> bool {
        fn go(kind: Kind, left: &[Operation], state: u64) -> bool {
            if left.iter().all(|operation| !matches!(operation.outcome, Outcome::Heard(_))) {
                return true;
            }
            (0..left.len()).any(|at| {
                let first = &left[at];
                let preceded = left.iter().any(|other| {
                    matches!(other.outcome, Outcome::Heard(_))
                        && other.answered.is_some_and(|answered| answered < first.invoked)
                });
                let rest = [&left[..at], &left[at + 1..]].concat();
                !preceded && step(kind, state, first).is_some_and(|after| go(kind, &rest, after))
            })
        }
        go(kind, operations, 0)
    }

    #[test]
    fn it_agrees_with_trying_every_order() {
        let mut yes = 0;
        for seed in 0..4_000 {
            let mut random = Random::new(seed, 1);
            let kind = if random.chance(300) { Kind::Counter } else { Kind::Register };
            let mut operations = Vec::new();
            for number in 0..random.between(2, 6) {
                let value = |random: &mut Random| random.below(4);
                let (action, answer) = match (kind, random.below(5)) {
                    (_, 0) => (Action::Get, Heard::Value(value(&mut random))),
                    (Kind::Counter, 1) => (Action::AddWithin(12), Heard::Differs(value(&mut random))),
                    (Kind::Counter, 2) => (Action::AddWithin(2), Heard::Value(value(&mut random))),
                    (Kind::Counter, 3) => (Action::Swap(value(&mut random), 3), Heard::Swapped),
                    (Kind::Counter, _) => (Action::Add(1), Heard::Value(value(&mut random))),
                    (_, 1) => (Action::Put(number + 1), Heard::Value(value(&mut random))),
                    (_, 2) => (Action::Remove, Heard::Value(value(&mut random))),
                    (_, 3) => (Action::Write(number + 1), Heard::Done),
                    (_, _) => {
                        let answer = if random.chance(500) {
                            Heard::Swapped
                        } else {
                            Heard::Differs(value(&mut random))
                        };
                        (Action::Swap(value(&mut random), number + 1), answer)
                    }
                };
                let invoked = random.below(12) * 20 + number;
                let mut operation = heard(invoked, invoked + 10 + random.below(8) * 20, action, answer);
                if random.chance(250) {
                    operation.outcome = Outcome::Unknown;
                }
                operations.push(operation);
            }
            let verdict = check(kind, &operations);
            assert_eq!(
                verdict == Verdict::Linearizable,
                by_trying_all(kind, &operations),
                "seed {seed}: {verdict:?} {operations:#?}"
            );
            yes += u32::from(verdict == Verdict::Linearizable);
        }
        assert!((300..3_700).contains(&yes), "{yes} of 4000 are linearizable");
    }
}
