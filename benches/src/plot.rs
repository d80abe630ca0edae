//! The plot: one small bar chart per workload, as a self-contained SVG.
//!
//! Bars are medians on a linear scale of their own chart; the thin line on each spans minimum to maximum.

use std::fmt::Write as _;

use crate::results::{Report, WorkloadResult};
use crate::stats::human;
use crate::targets::SUBJECT;

const COLUMNS: usize = 2;
const CHART_WIDTH: f64 = 470.0;
const LABEL_WIDTH: f64 = 150.0;
const NUMBER_WIDTH: f64 = 80.0;
const ROW: f64 = 18.0;
const HEADING: f64 = 34.0;
const GAP: f64 = 24.0;
const TOP: f64 = 60.0;

/// Renders the whole report.
pub fn svg(report: &Report) -> String {
    let mut body = String::new();
    let mut y = TOP;
    for charts in report.workloads.chunks(COLUMNS) {
        let mut height: f64 = 0.0;
        for (column, result) in charts.iter().enumerate() {
            let x = GAP + column as f64 * (CHART_WIDTH + GAP);
            height = height.max(chart(&mut body, result, x, y));
        }
        y += height + GAP;
    }
    let width = GAP + COLUMNS as f64 * (CHART_WIDTH + GAP);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{y}\" viewBox=\"0 0 {width} {y}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    text(&mut out, GAP, 26.0, "start", "font-size=\"16\" font-weight=\"bold\"", "dogsled beside its peers");
    let effort = &report.effort;
    let note = format!(
        "{}; {} keys, medians of {} interleaved repeats, lines from minimum to maximum; † promises less{}",
        report.machine.date,
        human(effort.keys as f64),
        effort.repeats,
        if effort.quick { "; QUICK RUN" } else { "" }
    );
    text(&mut out, GAP, 44.0, "start", "fill=\"#555555\"", &note);
    out.push_str(&body);
    out.push_str("</svg>\n");
    out
}

/// Draws one chart and returns its height.
fn chart(out: &mut String, result: &WorkloadResult, x: f64, y: f64) -> f64 {
    text(out, x, y + 12.0, "start", "font-weight=\"bold\"", &result.title);
    let direction = if result.lower_is_better { "lower is better" } else { "higher is better" };
    text(
        out,
        x,
        y + 26.0,
        "start",
        "fill=\"#555555\" font-size=\"10\"",
        &format!("{}, {direction}", result.unit),
    );
    let largest = result.rows.iter().map(|row| row.summary.max).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (CHART_WIDTH - LABEL_WIDTH - NUMBER_WIDTH) / largest;
    let left = x + LABEL_WIDTH;
    for (i, row) in result.rows.iter().enumerate() {
        let top = y + HEADING + i as f64 * ROW;
        let middle = top + ROW / 2.0;
        let color = match (row.name.as_str(), row.baseline) {
            (SUBJECT, _) => "#c2410c",
            (_, true) => "#cbd5e1",
            _ => "#64748b",
        };
        text(
            out,
            left - 6.0,
            middle + 4.0,
            "end",
            "",
            &format!("{}{}", row.name, if row.weaker { " †" } else { "" }),
        );
        let summary = row.summary;
        let _ = writeln!(
            out,
            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{color}\"/>",
            top + 2.0,
            summary.median * scale,
            ROW - 4.0
        );
        let _ = writeln!(
            out,
            "<line x1=\"{:.1}\" y1=\"{middle:.1}\" x2=\"{:.1}\" y2=\"{middle:.1}\" stroke=\"#0f172a\"/>",
            left + summary.min * scale,
            left + summary.max * scale
        );
        text(out, left + summary.max * scale + 6.0, middle + 4.0, "start", "", &human(summary.median));
    }
    HEADING + result.rows.len() as f64 * ROW
}

/// Writes a text element.
pub(crate) fn text(out: &mut String, x: f64, y: f64, anchor: &str, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {attributes}>{content}</text>"
    );
}
