//! What clients did and what they heard: the history that the judges judge.
//!
//! Every operation is on one *object*: a key, a pair of keys that are only ever written together, or
//! a counter. Objects are independent of each other, so each can be judged alone (linearizability
//! is local: Herlihy & Wing, 1990).
//!
//! The order of invocations and answers is a counter, not the time: many things happen in one
//! instant of simulated time, and still one after the other.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;

/// A value that is written; each is written by one operation only. 0 is no value.
pub type Value = u64;

/// Those of bounded additions.
pub const BOUNDS: std::ops::RangeInclusive<i64> = 0..=12;

/// What was asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// Set the value; the answer tells the one before, unless it was a batch.
    Put(Value),
    /// Set the value without hearing what was there.
    Write(Value),
    /// Remove it; the answer tells what was there.
    Remove,
    /// Set the value if it is the first.
    Swap(Value, Value),
    /// Read.
    Get,
    /// Add to a counter; the answer tells the sum. Of counters that are only ever added to together, to all of them.
    Add(i64),
    /// Add to a counter if the sum is within [`BOUNDS`]; the answer tells the sum, or what the counter stands at.
    AddWithin(i64),
}

/// What was heard.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Heard {
    /// The value before, or that was read; a counter's as its bits.
    Value(u64),
    /// It is done.
    Done,
    /// It was swapped.
    Swapped,
    /// It was not swapped, or not added: this was there.
    Differs(Value),
}

/// What became of an operation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It happened, between invocation and answer.
    Heard(Heard),
    /// It did not happen and never will: that was promised.
    Refused,
    /// It may have happened, may still happen, or never.
    Unknown,
}

/// An operation of a client.
#[derive(Clone, Debug)]
pub struct Operation {
    /// Whose.
    pub client: u64,
    /// What was asked for.
    pub action: Action,
    /// When, in the order of all invocations and answers.
    pub invoked: u64,
    /// When the answer came; `None` as long as there is none.
    pub answered: Option<u64>,
    /// What it was.
    pub outcome: Outcome,
}

/// Kinds of objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// A key, or a pair of keys.
    Register,
    /// A counter.
    Counter,
}

#[derive(Default)]
struct Inner {
    next: u64,
    objects: BTreeMap<String, (Option<Kind>, Vec<Operation>)>,
}

/// See the [module](self); clones are the same history.
#[derive(Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

/// An operation that is under way.
pub struct Begun {
    object: String,
    at: usize,
}

impl History {
    /// Something is asked for.
    pub fn invoke(&self, client: u64, object: &str, kind: Kind, action: Action) -> Begun {
        let mut inner = self.0.lock();
        inner.next += 1;
        let invoked = inner.next;
        let (found, operations) = inner.objects.entry(object.to_owned()).or_default();
        *found = Some(kind);
        operations.push(Operation { client, action, invoked, answered: None, outcome: Outcome::Unknown });
        Begun { object: object.to_owned(), at: operations.len() - 1 }
    }

    /// And that came of it.
    pub fn answer(&self, begun: &Begun, outcome: Outcome) {
        let mut inner = self.0.lock();
        inner.next += 1;
        let now = inner.next;
        if let Some((_, operations)) = inner.objects.get_mut(&begun.object) {
            operations[begun.at].outcome = outcome;
            operations[begun.at].answered = Some(now);
        }
    }

    /// All of it, by object.
    pub fn objects(&self) -> Vec<(String, Kind, Vec<Operation>)> {
        let inner = self.0.lock();
        let object = |(name, (kind, operations)): (&String, &(Option<Kind>, Vec<Operation>))| {
            (name.clone(), kind.unwrap_or(Kind::Register), operations.clone())
        };
        inner.objects.iter().map(object).collect()
    }

    /// How many operations have each outcome: heard, refused, unknown.
    pub fn counts(&self) -> (usize, usize, usize) {
        let inner = self.0.lock();
        let mut counts = (0, 0, 0);
        for operation in inner.objects.values().flat_map(|(_, operations)| operations) {
            match operation.outcome {
                Outcome::Heard(_) => counts.0 += 1,
                Outcome::Refused => counts.1 += 1,
                Outcome::Unknown => counts.2 += 1,
            }
        }
        counts
    }
}
