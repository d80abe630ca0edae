//! `ring`: how even placements are and how little they move, on paper.
//!
//! ```text
//! cargo run --release -p dogsled-benches -- ring
//! ```
//!
//! No database and no network: [`Placement`] is a pure function, and this calls it as the members of a
//! cluster come, go and change. Beside it stands the **plain ring**, where a partition belongs to the
//! first distinct members clockwise and nothing else is looked at, to show what the rest is for.
//! Everything but the times is the same on every machine.

mod chart;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use dogsled::cluster::NodeId;
use dogsled::cluster::ring::{Member, Placement, group_of};
use serde::Serialize;

use crate::data::key;
use crate::machine::Machine;
use crate::stats::human;

const REPLICAS: u32 = 3;
/// The cluster that grows one by one has so many partitions, and ends at so many members.
const GROWN: (u32, u64) = (4_096, 200);

/// What `ring.json` holds.
#[derive(Debug, Serialize)]
pub struct Report {
    machine: Machine,
    nodes: u64,
    partitions: u32,
    replicas: u32,
    rows: Vec<Row>,
    growth: Vec<Growth>,
    steps: Vec<Step>,
    /// Replicas of each member over the average, ascending, of the large cluster at its beginning and
    /// after all steps, and on a plain ring.
    loads: BTreeMap<String, Vec<f64>>,
}

/// A promise in numbers.
#[derive(Debug, Serialize)]
struct Row {
    what: String,
    measured: f64,
    unit: &'static str,
    at_most: f64,
}

/// One join while a cluster grows.
#[derive(Debug, Serialize)]
struct Growth {
    members: u64,
    /// Replicas moved, over one part of as many as there are members.
    moved: f64,
    fullest: f64,
    emptiest: f64,
    most_leaders: f64,
    fullest_of_plain_ring: f64,
    moved_of_plain_ring: f64,
}

/// One change of the large cluster.
#[derive(Debug, Serialize)]
struct Step {
    what: String,
    members: usize,
    moved: u64,
    /// What no placement of such loads could do without: what members have lost that they cannot
    /// keep, or gained that they must have, whichever is more.
    needed: u64,
    /// Moved from one member to another though neither came, left or changed.
    between_others: u64,
    /// The fullest and the emptiest member, over its share by weight.
    fullest: f64,
    emptiest: f64,
    most_leaders: f64,
    milliseconds: f64,
}

/// Measures, prints, writes.
///
/// # Errors
/// If files cannot be written, or a promise is broken.
pub fn run(nodes: u64, partitions: u32, out: &Path) -> Result<()> {
    let began = Instant::now();
    let rows = rows()?;
    let growth = growth()?;
    let mut loads = BTreeMap::new();
    let steps = steps(nodes, partitions, &mut loads)?;
    let machine = Machine::describe(Path::new("."));
    let report = Report { machine, nodes, partitions, replicas: REPLICAS, rows, growth, steps, loads };
    print(&report);
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let (json, svg) = (out.join("ring.json"), out.join("ring.svg"));
    fs::write(&json, serde_json::to_string_pretty(&report)? + "\n")?;
    fs::write(&svg, chart::svg(&report))?;
    println!("\nwrote {} and {} in {:.1} s", json.display(), svg.display(), began.elapsed().as_secs_f64());
    let broken: Vec<&str> =
        report.rows.iter().filter(|row| row.measured > row.at_most).map(|row| &*row.what).collect();
    ensure!(broken.is_empty(), "over the target: {}", broken.join("; "));
    Ok(())
}

fn member(node: u64) -> Member {
    Member { node: NodeId(node), weight: 100, zone: String::new() }
}

fn members(count: u64) -> Vec<Member> {
    (1..=count).map(member).collect()
}

fn moved(before: &Placement, after: &Placement) -> u64 {
    before.changes_to(after).iter().map(|change| change.added.len() as u64).sum()
}

/// The targets of a small cluster.
fn rows() -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let partitions = 64;
    for (before, after) in [(3, 4), (9, 10)] {
        let old = Placement::new(&members(before), partitions, REPLICAS)?;
        let new = old.rebalance(&members(after), REPLICAS)?;
        // Of keys, not of partitions: each as often as it changes a holder.
        let keys = 200_000;
        let changed = (0..keys).map(|i| {
            let group = group_of(&key(i), partitions);
            new.replicas(group).iter().filter(|node| !old.replicas(group).contains(node)).count() as u64
        });
        let part = (keys * u64::from(REPLICAS)) as f64 / after as f64;
        rows.push(Row {
            what: format!("keys moved by a join, N = {before} → {after}, over 1/N of their replicas"),
            measured: changed.sum::<u64>() as f64 / part,
            unit: "×",
            at_most: 1.1,
        });
    }
    let placement = Placement::new(&members(10), partitions, REPLICAS)?;
    let grown = (4..=10)
        .try_fold(Placement::new(&members(3), partitions, REPLICAS)?, |placement, count| {
            placement.rebalance(&members(count), REPLICAS)
        })?;
    for (what, placement) in [("made at once", placement), ("grown from 3", grown)] {
        rows.push(Row {
            what: format!("fullest member over average, 10 members, 64 × 3, {what}"),
            measured: spread(&placement, &members(10)).fullest,
            unit: "×",
            at_most: 1.15,
        });
    }
    let large = Placement::new(&members(1_000), 100_000, REPLICAS)?;
    let keys: Vec<_> = (0..65_536).map(key).collect();
    let rounds = 32;
    let began = Instant::now();
    let mut sum = 0;
    for key in (0..rounds).flat_map(|_| &keys) {
        sum ^= large.replicas(group_of(key, large.partitions()))[0].0;
    }
    std::hint::black_box(sum);
    rows.push(Row {
        what: "finding who holds a key, 100,000 partitions × 3 on 1,000 nodes".to_owned(),
        measured: began.elapsed().as_nanos() as f64 / (rounds * keys.len()) as f64,
        unit: " ns",
        at_most: 50.0,
    });
    Ok(rows)
}

struct Spread {
    fullest: f64,
    emptiest: f64,
    most_leaders: f64,
}

/// How far members are from their shares by weight. No weight here asks for more than a member can have.
fn spread(placement: &Placement, members: &[Member]) -> Spread {
    let loads = placement.loads();
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let mut spread = Spread { fullest: 0.0, emptiest: f64::MAX, most_leaders: 0.0 };
    for member in members.iter().filter(|member| member.weight > 0) {
        let partitions = f64::from(placement.partitions()) * f64::from(member.weight) / total;
        let (replicas, leads) = loads.get(&member.node).copied().unwrap_or_default();
        let held = replicas as f64 / (partitions * f64::from(placement.replica_count()));
        spread.fullest = spread.fullest.max(held);
        spread.emptiest = spread.emptiest.min(held);
        spread.most_leaders = spread.most_leaders.max(leads as f64 / partitions);
    }
    spread
}

fn growth() -> Result<Vec<Growth>> {
    let (partitions, last) = GROWN;
    let total = f64::from(partitions * REPLICAS);
    let mut placement = Placement::new(&members(3), partitions, REPLICAS)?;
    let mut plain = plain_ring(&members(3), partitions);
    let mut growth = Vec::new();
    for count in 4..=last {
        let members = members(count);
        let next = placement.rebalance(&members, REPLICAS)?;
        next.check_invariants(&members);
        let next_plain = plain_ring(&members, partitions);
        let spread = spread(&next, &members);
        let fresh =
            plain.iter().zip(&next_plain).map(|(old, new)| new.iter().filter(|m| !old.contains(m)).count());
        growth.push(Growth {
            members: count,
            moved: moved(&placement, &next) as f64 * count as f64 / total,
            fullest: spread.fullest,
            emptiest: spread.emptiest,
            most_leaders: spread.most_leaders,
            fullest_of_plain_ring: loads_of_plain_ring(&next_plain, count).last().copied().unwrap_or(0.0),
            moved_of_plain_ring: fresh.sum::<usize>() as f64 * count as f64 / total,
        });
        (placement, plain) = (next, next_plain);
    }
    Ok(growth)
}

fn steps(nodes: u64, partitions: u32, loads: &mut BTreeMap<String, Vec<f64>>) -> Result<Vec<Step>> {
    let mut now = members(nodes);
    let began = Instant::now();
    let mut placement = Placement::new(&now, partitions, REPLICAS)?;
    let mut steps = Vec::new();
    let total = u64::from(partitions * REPLICAS);
    steps.push(step("made from nothing", &now, &placement, (total, total, 0), began));
    loads.insert("made at once".to_owned(), sorted_loads(&placement, &now));
    loads.insert("plain ring".to_owned(), loads_of_plain_ring(&plain_ring(&now, partitions), nodes));

    let mut next_node = nodes + 1;
    let mut join = |now: &mut Vec<Member>, count: u64| {
        now.extend((next_node..next_node + count).map(member));
        next_node += count;
    };
    // From all over the list, and the same each time.
    let leave = |now: &mut Vec<Member>, count: usize| {
        for i in 0..count {
            now.remove((i * 7919 + 13) % now.len());
        }
    };
    type Change<'a> = (&'a str, Box<dyn FnMut(&mut Vec<Member>) + 'a>);
    let join = std::cell::RefCell::new(&mut join);
    let (ten, tenth) = (10.min(nodes / 2), nodes / 10);
    let changes: Vec<Change<'_>> = vec![
        ("one joins", Box::new(|now| join.borrow_mut()(now, 1))),
        ("ten join at once", Box::new(|now| join.borrow_mut()(now, ten))),
        ("one leaves", Box::new(|now| leave(now, 1))),
        ("ten leave at once", Box::new(|now| leave(now, ten as usize))),
        ("one doubles its weight", Box::new(|now| now[5].weight = 200)),
        ("one halves its weight", Box::new(|now| now[6].weight = 50)),
        ("one is drained", Box::new(|now| now[7].weight = 0)),
        ("a tenth leaves at once", Box::new(|now| leave(now, tenth as usize))),
        ("a tenth joins at once", Box::new(|now| join.borrow_mut()(now, tenth))),
        (
            "ten leave and ten join",
            Box::new(|now| {
                leave(now, ten as usize);
                join.borrow_mut()(now, ten);
            }),
        ),
        (
            "all get one of five zones",
            Box::new(|now| {
                for (i, member) in now.iter_mut().enumerate() {
                    member.zone = format!("zone {}", i % 5);
                }
            }),
        ),
        (
            "one joins a zone",
            Box::new(|now| {
                join.borrow_mut()(now, 1);
                now.last_mut().expect("one has joined").zone = "zone 0".to_owned();
            }),
        ),
        ("one leaves a zone", Box::new(|now| leave(now, 1))),
    ];
    for (what, mut change) in changes {
        let before = now.clone();
        change(&mut now);
        let began = Instant::now();
        let next = placement.rebalance(&now, REPLICAS)?;
        let milliseconds = began;
        let counts = count(&before, &now, &placement, &next);
        steps.push(step(what, &now, &next, counts, milliseconds));
        next.check_invariants(&now);
        placement = next;
    }
    loads.insert("after all steps".to_owned(), sorted_loads(&placement, &now));
    Ok(steps)
}

fn step(
    what: &str,
    members: &[Member],
    placement: &Placement,
    counts: (u64, u64, u64),
    began: Instant,
) -> Step {
    let milliseconds = began.elapsed().as_secs_f64() * 1e3;
    let spread = spread(placement, members);
    let (moved, needed, between_others) = counts;
    Step {
        what: what.to_owned(),
        members: members.iter().filter(|member| member.weight > 0).count(),
        moved,
        needed,
        between_others,
        fullest: spread.fullest,
        emptiest: spread.emptiest,
        most_leaders: spread.most_leaders,
        milliseconds,
    }
}

/// Replicas moved, how many of them had to, and how many between members that did not change.
fn count(before: &[Member], after: &[Member], old: &Placement, new: &Placement) -> (u64, u64, u64) {
    let same: std::collections::BTreeSet<NodeId> =
        after.iter().filter(|member| before.contains(member)).map(|member| member.node).collect();
    let mut between = 0;
    for change in old.changes_to(new) {
        let arrived = change.added.iter().filter(|node| same.contains(node)).count();
        let gone = change.removed.iter().filter(|node| same.contains(node)).count();
        between += arrived.min(gone) as u64;
    }
    let (loads, next) = (old.loads(), new.loads());
    let load =
        |loads: &BTreeMap<NodeId, (u64, u64)>, node| loads.get(&node).map_or(0, |(replicas, _)| *replicas);
    let total: u64 = after.iter().map(|member| u64::from(member.weight)).sum();
    let replicas = u64::from(new.partitions() * new.replica_count());
    let (mut lost, mut gained) = (0, 0);
    for node in loads.keys().chain(next.keys()).collect::<std::collections::BTreeSet<_>>() {
        let weight =
            after.iter().find(|member| member.node == *node).map_or(0, |member| u64::from(member.weight));
        let share = replicas * weight / total;
        if !same.contains(node) {
            lost += load(&loads, *node).saturating_sub(share.max(load(&next, *node)));
            gained += share.min(load(&next, *node)).saturating_sub(load(&loads, *node));
        }
    }
    (moved(old, new), lost.max(gained), between)
}

fn sorted_loads(placement: &Placement, members: &[Member]) -> Vec<f64> {
    let loads = placement.loads();
    let total: f64 = members.iter().map(|member| f64::from(member.weight)).sum();
    let all = f64::from(placement.partitions() * placement.replica_count());
    let usable = members.iter().filter(|member| member.weight > 0);
    let mut loads: Vec<f64> = usable
        .map(|member| {
            let held = loads.get(&member.node).map_or(0, |(replicas, _)| *replicas);
            held as f64 * total / (all * f64::from(member.weight))
        })
        .collect();
    loads.sort_by(f64::total_cmp);
    loads
}

/// The first distinct members clockwise from each partition, with 64 points each, and nothing else.
fn plain_ring(members: &[Member], partitions: u32) -> Vec<Vec<u64>> {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let mut circle: Vec<(u64, u64)> = members
        .iter()
        .flat_map(|member| (0..64).map(move |i| (member.node.0 << 8 | i, member.node.0)))
        .map(|(point, node)| (mix(point.wrapping_mul(0x9e37_79b9_7f4a_7c15)), node))
        .collect();
    circle.sort_unstable();
    let replicas_of = |partition: u32| {
        let place = ((u128::from(partition) << 64) / u128::from(partitions)) as u64;
        let start = circle.partition_point(|(point, _)| *point < place);
        let mut nodes: Vec<u64> = Vec::with_capacity(REPLICAS as usize);
        for (_, node) in circle[start..].iter().chain(&circle[..start]) {
            if !nodes.contains(node) {
                nodes.push(*node);
            }
            if nodes.len() == REPLICAS as usize {
                break;
            }
        }
        nodes
    };
    (0..partitions).map(replicas_of).collect()
}

fn loads_of_plain_ring(replicas: &[Vec<u64>], members: u64) -> Vec<f64> {
    let mut held = vec![0u64; members as usize];
    for node in replicas.iter().flatten() {
        held[*node as usize - 1] += 1;
    }
    let average = (replicas.len() * REPLICAS as usize) as f64 / members as f64;
    let mut loads: Vec<f64> = held.into_iter().map(|held| held as f64 / average).collect();
    loads.sort_by(f64::total_cmp);
    loads
}

fn print(report: &Report) {
    println!("{}\n", report.machine.in_words());
    for row in &report.rows {
        let reached = if row.measured <= row.at_most { "reached" } else { "MISSED" };
        println!(
            "{:76} {:6.2}{} (at most {}{}: {reached})",
            row.what, row.measured, row.unit, row.at_most, row.unit
        );
    }
    println!(
        "\n{} partitions × {} on {} nodes:\n",
        human(f64::from(report.partitions)),
        report.replicas,
        report.nodes
    );
    println!(
        "{:26} {:>7} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9}",
        "", "members", "moved", "needed", "between", "fullest", "emptiest", "leaders", "ms"
    );
    for step in &report.steps {
        println!(
            "{:26} {:>7} {:>8} {:>8} {:>8} {:>8.3} {:>8.3} {:>8.3} {:>9.1}",
            step.what,
            step.members,
            step.moved,
            step.needed,
            step.between_others,
            step.fullest,
            step.emptiest,
            step.most_leaders,
            step.milliseconds
        );
    }
    let most = |of: fn(&Growth) -> f64| report.growth.iter().map(of).fold(0.0, f64::max);
    println!(
        "\n{} partitions × {}, 3 to {} members one by one: at most {:.3} × 1/N moved (plain ring {:.3}), fullest {:.3} × \
         average (plain ring {:.3})",
        GROWN.0,
        REPLICAS,
        GROWN.1,
        most(|growth| growth.moved),
        most(|growth| growth.moved_of_plain_ring),
        most(|growth| growth.fullest),
        most(|growth| growth.fullest_of_plain_ring)
    );
}
