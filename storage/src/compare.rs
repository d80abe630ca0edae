//! Compare, then or else: one command that looks at keys and writes one thing or another.
//!
//! It is what etcd's transactions are: where the conditions are known beforehand, no closure has to read
//! first and be run again. All conditions hold, and `then` is written, or one does not, and `otherwise`
//! is. A condition is on the value of a key, or on its version.

use bincode::{Decode, Encode};

use crate::command::{Reply, TreeId, Write};
use crate::evaluate::{Outcome, View, effects_of_writes, require_tree};
use crate::{IVec, Result};

/// What is asked of one key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Condition {
    /// It has a value.
    Present,
    /// It has none.
    Absent,
    /// It has this value.
    Is(IVec),
    /// It has another value, or none.
    IsNot(IVec),
    /// It has a value, which is less in the order of bytes.
    Less(IVec),
    /// It has a value, which is greater in the order of bytes.
    Greater(IVec),
    /// Its value was written by this commit; 0: it has none.
    Version(u64),
}

/// A condition on a key.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Comparison {
    /// Where.
    pub tree: TreeId,
    /// Which key.
    pub key: IVec,
    /// What must hold.
    pub condition: Condition,
}

impl Condition {
    /// Whether it holds of a value with its version.
    pub fn holds(&self, found: Option<(&IVec, u64)>) -> bool {
        match (self, found) {
            (Condition::Present, found) => found.is_some(),
            (Condition::Absent, found) => found.is_none(),
            (Condition::Is(value), found) => found.is_some_and(|(found, _)| found == value),
            (Condition::IsNot(value), found) => found.is_none_or(|(found, _)| found != value),
            (Condition::Less(value), found) => found.is_some_and(|(found, _)| found < value),
            (Condition::Greater(value), found) => found.is_some_and(|(found, _)| found > value),
            (Condition::Version(version), found) => found.map_or(0, |(_, version)| version) == *version,
        }
    }
}

/// Evaluates [`Command::Compare`](crate::Command::Compare).
pub(crate) fn evaluate(
    view: &impl View,
    comparisons: &[Comparison],
    then: &[Write],
    otherwise: &[Write],
) -> Result<Outcome> {
    for (index, Comparison { tree, key, condition }) in comparisons.iter().enumerate() {
        require_tree(view, *tree)?;
        let found = view.get(*tree, key)?;
        if !condition.holds(found.as_ref().map(|found| (&found.value, found.version))) {
            let reply = Reply::Compared(Err((index as u32, found.map(|found| found.value))));
            return Ok(Outcome { effects: effects_of_writes(view, otherwise)?, reply });
        }
    }
    Ok(Outcome { effects: effects_of_writes(view, then)?, reply: Reply::Compared(Ok(())) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Command;
    use crate::model::ModelState;

    #[test]
    fn each_condition_holds_of_what_it_should() {
        let value = |text: &str| IVec::from(text);
        let (m, seven) = (value("m"), 7);
        for (condition, of_m, of_none) in [
            (Condition::Present, true, false),
            (Condition::Absent, false, true),
            (Condition::Is(value("m")), true, false),
            (Condition::Is(value("n")), false, false),
            (Condition::IsNot(value("m")), false, true),
            (Condition::IsNot(value("n")), true, true),
            (Condition::Less(value("n")), true, false),
            (Condition::Less(value("m")), false, false),
            (Condition::Greater(value("l")), true, false),
            (Condition::Greater(value("m")), false, false),
            (Condition::Version(7), true, false),
            (Condition::Version(0), false, true),
        ] {
            assert_eq!(condition.holds(Some((&m, seven))), of_m, "{condition:?}");
            assert_eq!(condition.holds(None), of_none, "{condition:?}");
        }
    }

    #[test]
    fn one_of_the_two_is_written_and_the_reply_says_why() {
        let mut state = ModelState::new();
        let tree = TreeId::DEFAULT;
        let write =
            |key: &str, value: Option<&str>| Write { tree, key: key.into(), value: value.map(IVec::from) };
        let compare = Command::Compare {
            comparisons: vec![
                Comparison { tree, key: "a".into(), condition: Condition::Absent },
                Comparison { tree, key: "b".into(), condition: Condition::Absent },
            ],
            then: vec![write("b", Some("1"))],
            otherwise: vec![write("b", None), write("c", Some("2"))],
        };
        assert_eq!(state.execute(1, &compare).unwrap(), Reply::Compared(Ok(())));
        let failed = Reply::Compared(Err((1, Some("1".into()))));
        assert_eq!(state.execute(2, &compare).unwrap(), failed);
        assert!(state.tree(tree).unwrap().keys().eq([&IVec::from("c")]));
    }
}
