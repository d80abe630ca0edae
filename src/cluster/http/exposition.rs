//! Families of metrics as text for Prometheus, and as JSON for the page.

use std::fmt::Write;

use dogsled_replication::metrics::{Distribution, Family, FamilyKind, SampleValue};
use serde_json::{Map, Value, json};

/// The media type of [`text`].
pub(super) const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// All families, each with its values, in Prometheus' text format.
pub(super) fn text(families: &[Family]) -> String {
    let mut text = String::with_capacity(64 << 10);
    for family in families {
        // Writing to a String cannot fail.
        let _ = write_family(&mut text, family);
    }
    text
}

fn write_family(text: &mut String, family: &Family) -> std::fmt::Result {
    let name = family.name;
    let kind = match family.kind {
        FamilyKind::Counter => "counter",
        FamilyKind::Gauge => "gauge",
        FamilyKind::Histogram => "histogram",
    };
    let help = family.help.replace('\\', "\\\\").replace('\n', "\\n");
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}")?;
    for sample in &family.samples {
        let labels = labels(&sample.labels);
        match &sample.value {
            SampleValue::Whole(value) => writeln!(text, "{name}{} {value}", in_braces(&labels))?,
            SampleValue::Real(value) => writeln!(text, "{name}{} {value}", in_braces(&labels))?,
            SampleValue::Distribution(distribution) => {
                write_distribution(text, name, &labels, distribution)?;
            }
        }
    }
    Ok(())
}

fn write_distribution(
    text: &mut String,
    name: &str,
    labels: &str,
    distribution: &Distribution,
) -> std::fmt::Result {
    let comma = if labels.is_empty() { "" } else { "," };
    for (limit, count) in distribution.cumulative() {
        let limit = limit.as_secs_f64();
        writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{limit}\"}} {count}")?;
    }
    let count = distribution.count();
    writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}")?;
    let labels = in_braces(labels);
    writeln!(text, "{name}_sum{labels} {}", distribution.sum().as_secs_f64())?;
    writeln!(text, "{name}_count{labels} {count}")
}

fn labels(labels: &[(&'static str, std::borrow::Cow<'static, str>)]) -> String {
    let escaped = |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    let labels = labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    labels.collect::<Vec<_>>().join(",")
}

fn in_braces(labels: &str) -> String {
    if labels.is_empty() { String::new() } else { format!("{{{labels}}}") }
}

/// All families by name. Histograms of several groups are added up: the page shows the node's.
pub(super) fn json(families: &[Family]) -> Value {
    let families = families.iter().map(|family| {
        let samples = match family.kind {
            FamilyKind::Histogram => added_up(family),
            FamilyKind::Counter | FamilyKind::Gauge => family
                .samples
                .iter()
                .map(|sample| {
                    let value = match &sample.value {
                        SampleValue::Whole(value) => json!(value),
                        SampleValue::Real(value) => json!(value),
                        SampleValue::Distribution(_) => Value::Null,
                    };
                    json!({ "labels": label_fields(&sample.labels), "value": value })
                })
                .collect(),
        };
        (family.name.to_owned(), Value::Array(samples))
    });
    Value::Object(families.collect())
}

fn label_fields(labels: &[(&'static str, std::borrow::Cow<'static, str>)]) -> Map<String, Value> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect()
}

fn added_up(family: &Family) -> Vec<Value> {
    let mut sums: Vec<(Map<String, Value>, Distribution)> = Vec::new();
    for sample in &family.samples {
        let SampleValue::Distribution(distribution) = &sample.value else { continue };
        let mut labels = label_fields(&sample.labels);
        labels.remove("group");
        match sums.iter_mut().find(|(known, _)| *known == labels) {
            Some((_, sum)) => sum.add(distribution),
            None => sums.push((labels, **distribution)),
        }
    }
    let sample = |(labels, sum): (Map<String, Value>, Distribution)| {
        let buckets = sum.cumulative().map(|(limit, count)| json!([limit.as_secs_f64(), count]));
        json!({
            "labels": labels,
            "count": sum.count(),
            "sum": sum.sum().as_secs_f64(),
            "buckets": buckets.collect::<Vec<_>>(),
        })
    };
    sums.into_iter().map(sample).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use dogsled_replication::metrics::Histogram;

    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut info = Family::gauge("a_info", "Says \\ and\nmore.");
        info.add(vec![("name", "a \"b\" \\ c\nd".into()), ("other", "".into())], 1_u64);
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(10));
        histogram.observe(Duration::from_secs(60));
        let mut times = Family::histogram("b_seconds", "Times.").of(histogram.read());
        times.add(vec![("stage", "sync".into())], histogram.read());
        let text =
            text(&[info, Family::counter("c_total", "None."), times, Family::gauge("d", "D.").of(0.5)]);
        for line in [
            "# HELP a_info Says \\\\ and\\nmore.",
            "# TYPE a_info gauge",
            "a_info{name=\"a \\\"b\\\" \\\\ c\\nd\",other=\"\"} 1",
            "# TYPE c_total counter",
            "b_seconds_bucket{le=\"0.000008\"} 0",
            "b_seconds_bucket{le=\"0.000016\"} 1",
            "b_seconds_bucket{le=\"+Inf\"} 2",
            "b_seconds_sum 60.00001",
            "b_seconds_count 2",
            "b_seconds_bucket{stage=\"sync\",le=\"+Inf\"} 2",
            "b_seconds_count{stage=\"sync\"} 2",
            "d 0.5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is not in\n{text}");
        }
    }

    #[test]
    fn the_page_is_told_the_sum_over_groups() {
        let histogram = Histogram::default();
        histogram.observe(Duration::from_micros(10));
        let mut times = Family::histogram("b_seconds", "Times.");
        for (stage, group) in [("sync", "1"), ("sync", "2"), ("apply", "1")] {
            times.add(vec![("stage", stage.into()), ("group", group.into())], histogram.read());
        }
        let json = json(&[times, Family::gauge("d", "D.").of(7_u64)]);
        let samples = json["b_seconds"].as_array().expect("an array");
        assert_eq!(samples.len(), 2, "{json}");
        assert_eq!((&samples[0]["labels"]["stage"], &samples[0]["count"]), (&json!("sync"), &json!(2)));
        assert_eq!(json["d"][0]["value"], 7);
    }
}
