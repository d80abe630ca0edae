//! Registers in transactions, judged as lists.
//!
//! The value of a register is the number of the transaction that wrote it, and whoever writes one has read it before,
//! in the same transaction. So each value says which one it replaced, and from the last value of a register all that it
//! ever held can be followed back: a list, to which each writer has appended. A value that was read is
//! then the list that ends with it, and [`serializability`](crate::serializability) judges registers and lists
//! together, in one graph: a cycle may go through both.
//!
//! A **lost update** shows here already: two writers have replaced the same value, and only one of them is on the way
//! back from the last.

use std::collections::{BTreeMap, BTreeSet};

use crate::serializability::{Anomaly, Key, Number, Transaction};

/// What a transaction did to registers.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// The values that it read; 0: there was none yet.
    pub reads: BTreeMap<Key, Number>,
    /// The registers that it wrote, all of which it had read.
    pub writes: BTreeSet<Key>,
}

/// Numbers of registers among keys of lists.
const FIRST: Key = 1_000;

/// Adds what transactions did to registers to what they did to lists, given the last value of each register.
///
/// # Errors
/// A value that no transaction wrote, or a write that is lost.
pub fn add_to(
    committed: &mut [(Transaction, Registers)],
    finals: &mut BTreeMap<Key, Vec<Number>>,
    last: &BTreeMap<Key, Number>,
) -> Result<(), Anomaly> {
    let replaced: BTreeMap<(Key, Number), Number> = committed
        .iter()
        .flat_map(|(transaction, registers)| {
            let number = transaction.number;
            registers.writes.iter().map(move |key| ((*key, number), registers.reads[key]))
        })
        .collect();
    let mut lists: BTreeMap<Key, Vec<Number>> = BTreeMap::new();
    for (&register, &last) in last {
        let key = FIRST + register;
        let (mut list, mut number) = (Vec::new(), last);
        while number != 0 {
            if list.contains(&number) {
                return Err(Anomaly::LostOrDoubled { key, number });
            }
            list.push(number);
            number = *replaced.get(&(register, number)).ok_or(Anomaly::AbortedRead { key, number })?;
        }
        list.reverse();
        lists.insert(register, list);
    }
    for (transaction, registers) in committed {
        for register in &registers.writes {
            let (key, number) = (FIRST + register, transaction.number);
            if !lists.get(register).is_some_and(|list| list.contains(&number)) {
                return Err(Anomaly::LostOrDoubled { key, number });
            }
            transaction.appends.insert(key);
        }
        for (register, &value) in &registers.reads {
            let list = lists.get(register).map_or(&[][..], |list| &list[..]);
            let read = match list.iter().position(|number| *number == value) {
                Some(at) => list[..=at].to_vec(),
                None if value == 0 => Vec::new(),
                None => return Err(Anomaly::AbortedRead { key: FIRST + register, number: value }),
            };
            transaction.reads.insert(FIRST + register, read);
        }
    }
    finals.extend(lists.into_iter().map(|(register, list)| (FIRST + register, list)));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serializability::check;

    /// What a transaction reads, and writes.
    type Did<'a> = (&'a [(Key, Number)], &'a [Key]);

    /// What transactions did, numbered from 1; and what is there in the end.
    fn judge(all: &[Did<'_>], last: &[(Key, Number)]) -> Result<(), Anomaly> {
        let mut committed: Vec<(Transaction, Registers)> = all
            .iter()
            .zip(1..)
            .map(|((reads, writes), number)| {
                // All at one time: that tells nothing of the order.
                let transaction = Transaction { number, begun: 0, answered: 9, ..Transaction::default() };
                let (reads, writes) = (reads.iter().copied().collect(), writes.iter().copied().collect());
                (transaction, Registers { reads, writes })
            })
            .collect();
        let mut finals = BTreeMap::new();
        add_to(&mut committed, &mut finals, &last.iter().copied().collect())?;
        let committed: Vec<Transaction> = committed.into_iter().map(|(transaction, _)| transaction).collect();
        check(&committed, &finals)
    }

    #[test]
    fn values_that_replace_each_other_are_a_list() {
        assert_eq!(
            judge(
                &[(&[(0, 0)], &[0]), (&[(0, 1), (1, 0)], &[0, 1]), (&[(0, 2), (1, 2)], &[])],
                &[(0, 2), (1, 2)]
            ),
            Ok(())
        );
    }

    #[test]
    fn a_lost_update_is_refused() {
        // Both have read that there is nothing, and the second has overwritten the first.
        let told = judge(&[(&[(0, 0)], &[0]), (&[(0, 0)], &[0])], &[(0, 2)]);
        assert_eq!(told, Err(Anomaly::LostOrDoubled { key: FIRST, number: 1 }));
    }

    #[test]
    fn write_skew_is_refused() {
        let told = judge(&[(&[(0, 0), (1, 0)], &[0]), (&[(0, 0), (1, 0)], &[1])], &[(0, 1), (1, 2)]);
        assert!(matches!(told, Err(Anomaly::G2(_))), "{told:?}");
    }

    #[test]
    fn a_skewed_read_is_refused() {
        let told = judge(&[(&[(0, 0), (1, 0)], &[0, 1]), (&[(0, 1), (1, 0)], &[])], &[(0, 1), (1, 1)]);
        assert!(matches!(told, Err(Anomaly::GSingle(_))), "{told:?}");
    }

    #[test]
    fn a_value_that_nobody_wrote_is_refused() {
        assert!(matches!(judge(&[(&[(0, 7)], &[])], &[(0, 0)]), Err(Anomaly::AbortedRead { .. })));
        assert!(matches!(judge(&[], &[(0, 7)]), Err(Anomaly::AbortedRead { .. })));
    }
}
