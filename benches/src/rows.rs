//! Rows of systems measured beside each other: what is printed, the JSON file, and a table for the documents.
//!
//! The first series of a row is dogsled's. A target compares its median with the median of another series
//! of the same row, so that nothing is judged by a number from another run; or with a number that was promised.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::stats::{Summary, human};

/// What one command has measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Table {
    /// Where and when.
    pub machine: Machine,
    /// What holds for all rows, a sentence each.
    pub conditions: Vec<String>,
    /// In the order in which they were measured.
    pub rows: Vec<Row>,
}

/// One thing that was measured.
#[derive(Debug, Serialize, Deserialize)]
pub struct Row {
    /// Names it for `--only`, and for whoever reads the JSON file.
    pub id: String,
    /// What was done.
    pub title: String,
    /// Of all its values.
    pub unit: String,
    /// dogsled's is the first.
    pub series: Vec<Series>,
    /// What was promised.
    pub target: Option<Target>,
    /// Day, time and commit of its run.
    pub measured: String,
    /// What a reader has to know.
    pub notes: Vec<String>,
}

/// What one system came to.
#[derive(Debug, Serialize, Deserialize)]
pub struct Series {
    /// The system, or what it was doing.
    pub name: String,
    /// One for each repeat.
    pub values: Vec<f64>,
    /// Of them.
    pub summary: Summary,
}

/// A bound of dogsled's median: as a multiple of another series', or as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Target {
    /// Whether more is better.
    pub at_least: bool,
    /// How many times; or the number itself.
    pub times: f64,
    /// As much as which series; empty: the number itself.
    pub of: String,
    /// What it came to; `None` if the other was not measured.
    pub reached: Option<f64>,
    /// Whether that is enough.
    pub met: Option<bool>,
}

impl Row {
    /// Without values.
    pub fn new(id: &str, title: &str, unit: &str) -> Row {
        let (id, title, unit) = (id.to_owned(), title.to_owned(), unit.to_owned());
        Row { id, title, unit, series: Vec::new(), target: None, measured: String::new(), notes: Vec::new() }
    }

    /// With the values of one more system; none if there are none.
    #[must_use]
    pub fn with(mut self, name: &str, values: Vec<f64>) -> Row {
        if let Some(summary) = Summary::of(&values) {
            self.series.push(Series { name: name.to_owned(), values, summary });
        }
        self
    }

    /// With a sentence.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Row {
        self.notes.push(note.into());
        self
    }

    /// To be at least so many times another series.
    #[must_use]
    pub fn at_least(self, times: f64, of: &str) -> Row {
        self.judged(true, times, of)
    }

    /// To be at most so many times another series.
    #[must_use]
    pub fn at_most(self, times: f64, of: &str) -> Row {
        self.judged(false, times, of)
    }

    /// To be at least so much.
    #[must_use]
    pub fn no_less(self, number: f64) -> Row {
        self.judged(true, number, "")
    }

    /// To be at most so much.
    #[must_use]
    pub fn no_more(self, number: f64) -> Row {
        self.judged(false, number, "")
    }

    fn judged(mut self, at_least: bool, times: f64, of: &str) -> Row {
        let own = self.series.first().map(|series| series.summary.median);
        let reached = if of.is_empty() { own } else { self.ratio_to(of) };
        let met = reached.map(|ratio| if at_least { ratio >= times } else { ratio <= times });
        self.target = Some(Target { at_least, times, of: of.to_owned(), reached, met });
        self
    }

    /// dogsled's median over another's.
    pub fn ratio_to(&self, of: &str) -> Option<f64> {
        let other = self.series.iter().skip(1).find(|series| series.name == of)?;
        Some(self.series.first()?.summary.median / other.summary.median)
    }

    /// In some lines, for people.
    pub fn in_words(&self) -> String {
        let mut out = format!("{} ({})\n", self.title, self.unit);
        for (at, series) in self.series.iter().enumerate() {
            let Summary { min, median, max } = series.summary;
            let _ = write!(
                out,
                "    {:<22} {:>10} {:>10} {:>10}",
                series.name,
                human(min),
                human(median),
                human(max)
            );
            if at > 0
                && let Some(ratio) = self.ratio_to(&series.name)
            {
                let _ = write!(out, "   dogsled is {} x", human(ratio));
            }
            out.push('\n');
        }
        if let Some(target) = &self.target {
            let _ = writeln!(out, "    {}: {}", target.in_words(), target.verdict());
        }
        for note in &self.notes {
            let _ = writeln!(out, "    {note}");
        }
        out
    }
}

impl Target {
    fn in_words(&self) -> String {
        let Target { at_least, times, of, .. } = self;
        let bound = if *at_least { "≥" } else { "≤" };
        if of.is_empty() { format!("{bound} {}", human(*times)) } else { format!("{bound} {times} × {of}") }
    }

    /// What it came to.
    fn in_number(&self, reached: f64) -> String {
        if self.of.is_empty() { human(reached) } else { format!("{} ×", human(reached)) }
    }

    fn verdict(&self) -> String {
        match (self.reached, self.met) {
            (Some(reached), Some(true)) => format!("met, {}", self.in_number(reached)),
            (Some(reached), _) => format!("MISSED, {}", self.in_number(reached)),
            (None, _) => "not measured".to_owned(),
        }
    }
}

impl Table {
    /// Writes the JSON file. With `keep`, rows that are in it stay unless this has them.
    ///
    /// # Errors
    /// Those of the file system; a file to be kept that is no such table.
    pub fn write(mut self, path: &Path, keep: bool) -> Result<()> {
        for row in &mut self.rows {
            row.measured = format!("{}, commit {}", self.machine.date, self.machine.commit);
        }
        if keep && path.exists() {
            let earlier: Table = serde_json::from_str(&std::fs::read_to_string(path)?)
                .with_context(|| format!("reading {}", path.display()))?;
            let mut rows = earlier.rows;
            for row in self.rows {
                match rows.iter_mut().find(|known| known.id == row.id) {
                    Some(known) => *known = row,
                    None => rows.push(row),
                }
            }
            self.rows = rows;
        }
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory)?;
        }
        std::fs::write(path, serde_json::to_string_pretty(&self)? + "\n")
            .with_context(|| format!("writing {}", path.display()))
    }

    /// Renders Markdown.
    pub fn markdown(&self) -> String {
        let machine = &self.machine;
        let mut out = format!(
            "Measured {} on {} ({} cores, {} of memory, {}, Linux {}), commit {}. {} Medians, minimum to maximum in \
             brackets.\n\n| work | dogsled | beside it | target | reached |\n|---|---:|---|---|---|\n",
            machine.date,
            machine.processor,
            machine.cores,
            machine.memory,
            machine.file_system,
            machine.kernel,
            machine.commit,
            self.conditions.join(" "),
        );
        for row in &self.rows {
            let mut cells = row.series.iter().map(|series| {
                let Summary { min, median, max } = series.summary;
                let span = if series.values.len() > 1 {
                    format!(" ({}–{})", human(min), human(max))
                } else {
                    String::new()
                };
                (&series.name, format!("{}{span}", human(median)))
            });
            let own = cells.next().map_or(String::new(), |(_, cell)| cell);
            let others: Vec<String> = cells.map(|(name, cell)| format!("{name} {cell}")).collect();
            let (target, reached) = match &row.target {
                Some(target) => {
                    let mark = match target.met {
                        Some(true) => "yes",
                        Some(false) => "**no**",
                        None => "not measured",
                    };
                    let reached =
                        target.reached.map_or(String::new(), |it| format!(": {}", target.in_number(it)));
                    (target.in_words(), format!("{mark}{reached}"))
                }
                None => (String::new(), String::new()),
            };
            let (title, unit, others) = (&row.title, &row.unit, others.join("; "));
            let _ = writeln!(out, "| {title}, {unit} | {own} | {others} | {target} | {reached} |");
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_compares_medians_of_the_same_row() {
        let row = || Row::new("r", "work", "us").with("dogsled", vec![1.0, 3.0, 2.0]).with("etcd", vec![4.0]);
        let least = row().at_least(0.5, "etcd").target.unwrap();
        assert_eq!((least.reached, least.met), (Some(0.5), Some(true)));
        assert_eq!(row().at_least(0.6, "etcd").target.unwrap().met, Some(false));
        assert_eq!(row().at_most(0.6, "etcd").target.unwrap().met, Some(true));
        assert_eq!(row().at_most(0.4, "etcd").target.unwrap().met, Some(false));
        let missing = row().with("redis", Vec::new()).at_most(0.4, "redis").target.unwrap();
        assert_eq!((missing.reached, missing.met), (None, None));
        let number = row().no_more(2.0).target.unwrap();
        assert_eq!((number.reached, number.met), (Some(2.0), Some(true)));
        assert_eq!((number.in_words().as_str(), number.verdict().as_str()), ("≤ 2.00", "met, 2.00"));
        assert_eq!(row().no_less(2.5).target.unwrap().met, Some(false));
    }
}
