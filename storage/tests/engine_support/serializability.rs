//! Is a recorded history of transactions serializable? After Elle (Kingsbury and Alvaro, VLDB 2020).
//!
//! Every value is a list, and a write appends the writer's number to it. So the final list of a
//! key is the order of its versions, and a list that was read says which version it was. From
//! this follow the dependencies between transactions:
//!
//! - **ww**: both appended to a key, one right after the other;
//! - **wr**: one read a list that ends with the other's number;
//! - **rw**: one read a list, and the other was the next to append to it;
//! - **real time**: one was answered before the other was begun.
//!
//! A history is strictly serializable if and only if these have no cycle. Keys that a range read
//! did not show are read as empty lists: phantoms are cycles like any others. What kind of cycle
//! it is ([`Anomaly`]) names the guarantee that was broken, with Adya's names.

use std::collections::{BTreeMap, BTreeSet};

/// A transaction's number, unique in its history.
pub type Number = u32;
/// A key's number.
pub type Key = u32;

/// One transaction as its client saw it.
#[derive(Clone, Debug, Default)]
pub struct Transaction {
    pub number: Number,
    /// The lists that were read before writing, ranges spelled out.
    pub reads: BTreeMap<Key, Vec<Number>>,
    /// The keys appended to.
    pub appends: BTreeSet<Key>,
    /// When it was begun and answered, on a clock that all clients share.
    pub begun: u64,
    pub answered: u64,
}

/// What is wrong with a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Anomaly {
    /// A list holds what no committed transaction appended.
    AbortedRead { key: Key, number: Number },
    /// A list holds one number twice, or an acknowledged append is missing.
    LostOrDoubled { key: Key, number: Number },
    /// A list that was read is not the beginning of the final one.
    NotAPrefix { key: Key, reader: Number },
    /// A cycle of writes alone.
    G0(Vec<Number>),
    /// A cycle of writes and reads of them.
    G1c(Vec<Number>),
    /// A cycle with one read that missed a write: a lost update, a skewed read.
    GSingle(Vec<Number>),
    /// A cycle with several such reads: write skew.
    G2(Vec<Number>),
    /// A cycle only with real time: a stale read.
    Stale(Vec<Number>),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Edge {
    Write,
    Read,
    Missed,
    Time,
}

/// Looks for an anomaly. `finals` are the lists at the end; a key that is not there is empty.
pub fn check(committed: &[Transaction], finals: &BTreeMap<Key, Vec<Number>>) -> Result<(), Anomaly> {
    let index: BTreeMap<Number, usize> =
        committed.iter().enumerate().map(|(at, transaction)| (transaction.number, at)).collect();
    let empty = Vec::new();
    let final_of = |key: Key| finals.get(&key).unwrap_or(&empty);

    for (&key, list) in finals {
        let mut seen = BTreeSet::new();
        for &number in list {
            if !index.get(&number).is_some_and(|at| committed[*at].appends.contains(&key)) {
                return Err(Anomaly::AbortedRead { key, number });
            }
            if !seen.insert(number) {
                return Err(Anomaly::LostOrDoubled { key, number });
            }
        }
    }
    // Positions within the lists, to tell what a list that ends somewhere was followed by.
    let mut edges: Vec<Vec<(usize, Edge)>> = vec![Vec::new(); committed.len()];
    let mut add = |from: Number, to: Number, edge: Edge| {
        if from != to {
            edges[index[&from]].push((index[&to], edge));
        }
    };
    for list in finals.values() {
        for pair in list.windows(2) {
            add(pair[0], pair[1], Edge::Write);
        }
    }
    for transaction in committed {
        for &key in &transaction.appends {
            if !final_of(key).contains(&transaction.number) {
                return Err(Anomaly::LostOrDoubled { key, number: transaction.number });
            }
        }
        for (&key, read) in &transaction.reads {
            let list = final_of(key);
            if !list.starts_with(read) {
                return Err(match read.iter().find(|number| !index.contains_key(number)) {
                    Some(&number) => Anomaly::AbortedRead { key, number },
                    None => Anomaly::NotAPrefix { key, reader: transaction.number },
                });
            }
            if let Some(&last) = read.last() {
                add(last, transaction.number, Edge::Read);
            }
            if let Some(&next) = list.get(read.len()) {
                add(transaction.number, next, Edge::Missed);
            }
        }
    }
    let without_time = edges.clone();
    if let Some(cycle) = find_cycle(&edges, committed.len()) {
        return Err(classify(&edges, &cycle, committed));
    }
    // Real time by way of a chain of moments, or there would be an edge for every pair.
    let mut edges = without_time;
    let moments: BTreeSet<u64> = committed.iter().map(|transaction| transaction.answered).collect();
    let moment_at: BTreeMap<u64, usize> =
        moments.iter().enumerate().map(|(at, time)| (*time, committed.len() + at)).collect();
    edges.resize(committed.len() + moments.len(), Vec::new());
    for (at, transaction) in committed.iter().enumerate() {
        edges[at].push((moment_at[&transaction.answered], Edge::Time));
        if let Some((_, before)) = moment_at.range(..transaction.begun).next_back() {
            edges[*before].push((at, Edge::Time));
        }
    }
    for at in committed.len()..edges.len().saturating_sub(1) {
        edges[at].push((at + 1, Edge::Time));
    }
    match find_cycle(&edges, edges.len()) {
        Some(cycle) => Err(Anomaly::Stale(
            cycle.iter().filter_map(|at| committed.get(*at)).map(|transaction| transaction.number).collect(),
        )),
        None => Ok(()),
    }
}

/// A cycle as short as can be, within the first strongly connected component that has one.
fn find_cycle(edges: &[Vec<(usize, Edge)>], count: usize) -> Option<Vec<usize>> {
    let component = components(edges, count);
    let mut members: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    for (at, of) in component.iter().enumerate() {
        members.entry(*of).or_default().push(at);
    }
    let cyclic = members.values().find(|members| members.len() > 1)?;
    let mut shortest: Option<Vec<usize>> = None;
    for &start in cyclic.iter().take(50) {
        let mut came_from: BTreeMap<usize, usize> = BTreeMap::new();
        let mut queue = std::collections::VecDeque::from([start]);
        'search: while let Some(at) = queue.pop_front() {
            for &(to, _) in &edges[at] {
                if to == start {
                    let mut cycle = vec![at];
                    while let Some(&before) = came_from.get(cycle.last().expect("not empty")) {
                        cycle.push(before);
                    }
                    cycle.reverse();
                    if shortest.as_ref().is_none_or(|found| cycle.len() < found.len()) {
                        shortest = Some(cycle);
                    }
                    break 'search;
                }
                if component[to] == component[start] && !came_from.contains_key(&to) {
                    came_from.insert(to, at);
                    queue.push_back(to);
                }
            }
        }
    }
    shortest
}

/// Tarjan's algorithm, without recursion.
fn components(edges: &[Vec<(usize, Edge)>], count: usize) -> Vec<usize> {
    const NONE: usize = usize::MAX;
    let (mut order, mut low, mut component) = (vec![NONE; count], vec![0; count], vec![NONE; count]);
    let (mut stack, mut next, mut found) = (Vec::new(), 0, 0);
    for root in 0..count {
        if order[root] != NONE {
            continue;
        }
        let mut calls = vec![(root, 0)];
        while let Some((at, edge)) = calls.pop() {
            if edge == 0 {
                (order[at], low[at]) = (next, next);
                next += 1;
                stack.push(at);
            } else {
                let (child, _) = edges[at][edge - 1];
                if component[child] == NONE {
                    low[at] = low[at].min(low[child]);
                }
            }
            match edges[at].get(edge) {
                Some(&(to, _)) => {
                    calls.push((at, edge + 1));
                    if order[to] == NONE {
                        calls.push((to, 0));
                    }
                }
                None if low[at] == order[at] => {
                    while let Some(member) = stack.pop() {
                        component[member] = found;
                        if member == at {
                            break;
                        }
                    }
                    found += 1;
                }
                None => {}
            }
        }
    }
    component
}

fn classify(edges: &[Vec<(usize, Edge)>], cycle: &[usize], committed: &[Transaction]) -> Anomaly {
    let mut kinds = Vec::new();
    for (position, &from) in cycle.iter().enumerate() {
        let to = cycle[(position + 1) % cycle.len()];
        let kind = edges[from].iter().filter(|(target, _)| *target == to).map(|(_, kind)| *kind).min();
        kinds.push(kind.expect("a cycle follows edges"));
    }
    let numbers = cycle.iter().map(|at| committed[*at].number).collect();
    match kinds.iter().filter(|kind| **kind == Edge::Missed).count() {
        0 if kinds.iter().all(|kind| *kind == Edge::Write) => Anomaly::G0(numbers),
        0 => Anomaly::G1c(numbers),
        1 => Anomaly::GSingle(numbers),
        _ => Anomaly::G2(numbers),
    }
}
