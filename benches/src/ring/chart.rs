//! The plot of [`ring`](super): four charts in one self-contained SVG.

use std::fmt::Write as _;

use super::{GROWN, Report};
use crate::plot::text;
use crate::stats::human;

const WIDTH: f64 = 470.0;
const HEIGHT: f64 = 250.0;
const GAP: f64 = 40.0;
const TOP: f64 = 70.0;
/// Room for a chart's title, and for its labels on the left and below.
const TITLE: f64 = 44.0;
const LEFT: f64 = 44.0;
const BELOW: f64 = 34.0;

const OURS: &str = "#c2410c";
const PLAIN: &str = "#64748b";
const LIGHT: &str = "#f59e0b";

/// A line of a chart.
struct Line<'a> {
    name: &'a str,
    color: &'a str,
    points: Vec<(f64, f64)>,
}

/// Renders the report.
pub(super) fn svg(report: &Report) -> String {
    let width = GAP + 2.0 * (WIDTH + GAP);
    let steps = TITLE + report.steps.len() as f64 * 22.0;
    let height = TOP + HEIGHT + GAP + steps.max(HEIGHT) + GAP;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut out, GAP, 28.0, "start", "font-size=\"16\" font-weight=\"bold\"", "Partitions on members");
    let note =
        "computed, not measured; the plain ring takes the first three members clockwise, with 64 points each";
    text(&mut out, GAP, 46.0, "start", "fill=\"#555555\"", note);
    let right = GAP + WIDTH + GAP;
    let growth = |of: fn(&super::Growth) -> f64| -> Vec<(f64, f64)> {
        report.growth.iter().map(|growth| (growth.members as f64, of(growth))).collect()
    };
    let partitions = human(f64::from(GROWN.0));
    chart(
        &mut out,
        (GAP, TOP),
        "Members against the average, as a cluster grows",
        &format!("replicas over average; {partitions} partitions × 3, members joining one by one"),
        &[
            Line { name: "plain ring, fullest", color: PLAIN, points: growth(|g| g.fullest_of_plain_ring) },
            Line { name: "most leaders", color: LIGHT, points: growth(|g| g.most_leaders) },
            Line { name: "fullest", color: OURS, points: growth(|g| g.fullest) },
            Line { name: "emptiest", color: "#0f766e", points: growth(|g| g.emptiest) },
        ],
        "members",
    );
    chart(
        &mut out,
        (right, TOP),
        "What a join moves",
        &format!("replicas moved over 1/N of all; {partitions} partitions × 3"),
        &[
            Line { name: "plain ring", color: PLAIN, points: growth(|g| g.moved_of_plain_ring) },
            Line { name: "dogsled", color: OURS, points: growth(|g| g.moved) },
        ],
        "members",
    );
    let below = TOP + HEIGHT + GAP;
    let colors = [("plain ring", PLAIN), ("made at once", LIGHT), ("after all steps", OURS)];
    let lines: Vec<Line<'_>> = colors
        .iter()
        .filter_map(|(name, color)| Some((*name, *color, report.loads.get(*name)?)))
        .map(|(name, color, loads)| {
            let place = |i: usize| i as f64 * 100.0 / (loads.len() - 1).max(1) as f64;
            let points = loads.iter().enumerate().map(|(i, load)| (place(i), *load)).collect();
            Line { name, color, points }
        })
        .collect();
    let size = format!(
        "{} nodes, {} partitions × {}",
        human(report.nodes as f64),
        human(f64::from(report.partitions)),
        report.replicas
    );
    chart(
        &mut out,
        (GAP, below),
        "Each member's replicas over its share",
        &format!("{size}; members from emptiest to fullest"),
        &lines,
        "% of members",
    );
    bars(&mut out, (right, below), report, &size);
    out.push_str("</svg>\n");
    out
}

fn heading(out: &mut String, (x, y): (f64, f64), title: &str, note: &str) {
    text(out, x, y + 12.0, "start", "font-weight=\"bold\"", title);
    text(out, x, y + 27.0, "start", "fill=\"#555555\" font-size=\"10\"", note);
}

fn chart(out: &mut String, at: (f64, f64), title: &str, note: &str, lines: &[Line<'_>], below: &str) {
    heading(out, at, title, note);
    let (left, top) = (at.0 + LEFT, at.1 + TITLE);
    let (width, height) = (WIDTH - LEFT, HEIGHT - TITLE - BELOW);
    let all = || lines.iter().flat_map(|line| &line.points);
    let first = all().map(|(x, _)| *x).fold(f64::MAX, f64::min);
    let last = all().map(|(x, _)| *x).fold(f64::MIN, f64::max);
    let highest = (all().map(|(_, y)| *y).fold(1.0, f64::max) * 5.0).ceil() / 5.0;
    let x = |value: f64| left + (value - first) / (last - first).max(f64::MIN_POSITIVE) * width;
    let y = |value: f64| top + height - value / highest * height;
    let ticks = 4;
    for tick in 0..=ticks {
        let value = highest * f64::from(tick) / f64::from(ticks);
        rule(out, (left, y(value)), (left + width, y(value)), "#e2e8f0");
        text(
            out,
            left - 6.0,
            y(value) + 4.0,
            "end",
            "fill=\"#555555\" font-size=\"10\"",
            &format!("{value:.2}"),
        );
        let value = first + (last - first) * f64::from(tick) / f64::from(ticks);
        let place = top + height + 14.0;
        text(out, x(value), place, "middle", "fill=\"#555555\" font-size=\"10\"", &format!("{value:.0}"));
    }
    text(out, left + width / 2.0, top + height + 28.0, "middle", "fill=\"#555555\" font-size=\"10\"", below);
    rule(out, (left, y(1.0)), (left + width, y(1.0)), "#94a3b8");
    for (number, line) in lines.iter().enumerate() {
        let points: Vec<String> =
            line.points.iter().map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1))).collect();
        let _ = writeln!(
            out,
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>",
            line.color,
            points.join(" ")
        );
        // The lower half is where no line runs: members are near the average.
        let place = top + height * 0.55 + number as f64 * 16.0;
        rule(out, (left + 14.0, place - 4.0), (left + 34.0, place - 4.0), line.color);
        text(out, left + 40.0, place, "start", "font-size=\"11\"", line.name);
    }
}

/// What each change of the large cluster moved, beside what it had to.
fn bars(out: &mut String, at: (f64, f64), report: &Report, size: &str) {
    let note = format!("{size}; moved, grey: had to, (between unchanged members)");
    heading(out, at, "What a change moves", &note);
    let changes = &report.steps[1..];
    let most = changes.iter().map(|step| step.moved.max(step.needed)).max().unwrap_or(1).max(1) as f64;
    let (left, width) = (at.0 + 160.0, WIDTH - 160.0 - 100.0);
    for (number, step) in changes.iter().enumerate() {
        let top = at.1 + TITLE + number as f64 * 22.0;
        text(out, left - 6.0, top + 13.0, "end", "font-size=\"11\"", &step.what);
        // Roots, because a tenth of the members is a hundred times one of them.
        for (replicas, color, place, height) in
            [(step.moved, OURS, 2.0, 14.0), (step.needed, "#cbd5e1", 6.0, 6.0)]
        {
            let _ = writeln!(
                out,
                "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{height}\" fill=\"{color}\"/>",
                top + place,
                (replicas as f64 / most).sqrt() * width
            );
        }
        let end = left + (step.moved as f64 / most).sqrt() * width + 6.0;
        let label = format!("{} ({})", step.moved, step.between_others);
        text(out, end, top + 13.0, "start", "font-size=\"11\"", &label);
    }
}

fn rule(out: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let _ = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{color}\"/>",
        from.0, from.1, to.0, to.1
    );
}
