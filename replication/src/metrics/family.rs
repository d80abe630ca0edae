//! [`Family`]: a metric and its values, for whoever shows them.

use std::borrow::Cow;

use super::Distribution;

/// What the values of a family mean.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FamilyKind {
    /// They only grow, from 0 when the node was started.
    Counter,
    /// They are what is the case now.
    Gauge,
    /// How many things took how long.
    Histogram,
}

/// Values of one meaning, told apart by labels.
#[derive(Clone, PartialEq, Debug)]
pub struct Family {
    /// Lower case, with the unit at the end.
    pub name: &'static str,
    /// What the values say, in one sentence.
    pub help: &'static str,
    /// What kind they are of.
    pub kind: FamilyKind,
    /// The values.
    pub samples: Vec<Sample>,
}

/// A value, and of what.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// Names and values.
    pub labels: Vec<(&'static str, Cow<'static, str>)>,
    /// The value.
    pub value: SampleValue,
}

/// A value.
#[derive(Clone, PartialEq, Debug)]
pub enum SampleValue {
    /// A count, or a size.
    Whole(u64),
    /// Anything else.
    Real(f64),
    /// Of a histogram.
    Distribution(Box<Distribution>),
}

impl From<u64> for SampleValue {
    fn from(value: u64) -> SampleValue {
        SampleValue::Whole(value)
    }
}

impl From<f64> for SampleValue {
    fn from(value: f64) -> SampleValue {
        SampleValue::Real(value)
    }
}

impl From<Distribution> for SampleValue {
    fn from(value: Distribution) -> SampleValue {
        SampleValue::Distribution(Box::new(value))
    }
}

impl Family {
    /// A family of things that only grow. Its name ends with `_total`.
    pub fn counter(name: &'static str, help: &'static str) -> Family {
        assert!(name.ends_with("_total"), "{name} is a counter, and does not say so");
        Family { name, help, kind: FamilyKind::Counter, samples: Vec::new() }
    }

    /// A family of what is the case now.
    pub fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { name, help, kind: FamilyKind::Gauge, samples: Vec::new() }
    }

    /// A family of durations. Its name ends with `_seconds`.
    pub fn histogram(name: &'static str, help: &'static str) -> Family {
        assert!(name.ends_with("_seconds"), "{name} is of durations, and does not say so");
        Family { name, help, kind: FamilyKind::Histogram, samples: Vec::new() }
    }

    /// Adds a value without labels.
    #[must_use]
    pub fn of(mut self, value: impl Into<SampleValue>) -> Family {
        self.samples.push(Sample { labels: Vec::new(), value: value.into() });
        self
    }

    /// Adds a value with labels.
    pub fn add(&mut self, labels: Vec<(&'static str, Cow<'static, str>)>, value: impl Into<SampleValue>) {
        self.samples.push(Sample { labels, value: value.into() });
    }
}
