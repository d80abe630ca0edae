//! Asking a server over HTTP, as little of it as the tests need.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) code: u16,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: String,
}

/// Sends these bytes, and reads until the server closes the connection.
pub(crate) fn exchange(address: &str, request: &[u8]) -> Answer {
    let mut stream = TcpStream::connect(address).expect("the port is open");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    stream.write_all(request).expect("the request is taken");
    let mut bytes = Vec::new();
    let mut buffer = [0; 16 << 10];
    // A server that refuses what it has not read to its end resets the connection after its answer.
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        bytes.extend_from_slice(&buffer[..length]);
    }
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
    let mut lines = head.lines();
    let code = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|code| code.parse().ok());
    let header = |line: &str| {
        let (name, value) = line.split_once(':').expect("a header");
        (name.to_ascii_lowercase(), value.trim().to_owned())
    };
    let answer =
        Answer { code: code.expect("a code"), headers: lines.map(header).collect(), body: body.to_owned() };
    if let Some(length) = answer.headers.get("content-length")
        && !request.starts_with(b"HEAD ")
    {
        assert_eq!(length.parse(), Ok(answer.body.len()), "{answer:?}");
    }
    answer
}

pub(crate) fn get(address: &str, path: &str) -> Answer {
    exchange(
        address,
        format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").as_bytes(),
    )
}

/// Asks until the answer is as wanted.
#[track_caller]
pub(crate) fn get_until(address: &str, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let began = Instant::now();
    loop {
        let answer = get(address, path);
        if wanted(&answer) {
            return answer;
        }
        assert!(began.elapsed() < Duration::from_secs(30), "{path} still answers {answer:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Samples of Prometheus' text format, by name and labels.
pub(crate) struct Metrics {
    pub(crate) kinds: BTreeMap<String, String>,
    pub(crate) samples: BTreeMap<String, f64>,
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|first: char| first.is_ascii_digit())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

impl Metrics {
    /// Takes the text apart, and finds fault with what Prometheus would not take, or its conventions forbid.
    pub(crate) fn parse(text: &str) -> Metrics {
        let mut metrics = Metrics { kinds: BTreeMap::new(), samples: BTreeMap::new() };
        let mut helped = String::new();
        let mut current = String::new();
        assert!(text.ends_with('\n'));
        for line in text.lines() {
            if let Some(help) = line.strip_prefix("# HELP ") {
                let (name, help) = help.split_once(' ').expect("a name and a sentence");
                assert!(is_name(name) && help.ends_with('.'), "{line}");
                helped = name.to_owned();
            } else if let Some(kind) = line.strip_prefix("# TYPE ") {
                let (name, kind) = kind.split_once(' ').expect("a name and a kind");
                assert_eq!(name, helped, "a type without help");
                assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
                assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
                assert_eq!(kind == "histogram", name.ends_with("_duration_seconds"), "{line}");
                let known = metrics.kinds.insert(name.to_owned(), kind.to_owned());
                assert_eq!(known, None, "{name} comes twice");
                current = name.to_owned();
            } else {
                let (series, value) = line.rsplit_once(' ').expect("a series and a value");
                let name = series.split('{').next().expect("a name");
                assert!(is_name(name), "{line}");
                assert_eq!(metrics.family(name).as_deref(), Some(&current[..]), "{line} is out of place");
                let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
                assert!(value >= 0.0, "{line}");
                let known = metrics.samples.insert(series.to_owned(), value);
                assert_eq!(known, None, "{series} comes twice");
            }
        }
        metrics.check_histograms();
        metrics
    }

    /// The family that a sample of this name belongs to.
    pub(crate) fn family(&self, name: &str) -> Option<String> {
        if self.kinds.get(name).is_some_and(|kind| kind != "histogram") {
            return Some(name.to_owned());
        }
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end))?;
        (self.kinds.get(base)? == "histogram").then(|| base.to_owned())
    }

    fn check_histograms(&self) {
        for (series, count) in &self.samples {
            let Some((name, labels)) = series
                .split_once("_count")
                .filter(|(name, _)| self.kinds.get(*name).is_some_and(|kind| kind == "histogram"))
            else {
                continue;
            };
            let inner = labels.trim_start_matches('{').trim_end_matches('}');
            let begin = match inner.is_empty() {
                true => format!("{name}_bucket{{le=\""),
                false => format!("{name}_bucket{{{inner},le=\""),
            };
            let limit = |series: &str| match series[begin.len()..].trim_end_matches("\"}") {
                "+Inf" => f64::INFINITY,
                limit => limit.parse().expect("a number"),
            };
            let mut buckets: Vec<(f64, f64)> = self
                .samples
                .range(begin.clone()..)
                .take_while(|(series, _)| series.starts_with(&begin))
                .map(|(series, value)| (limit(series), *value))
                .collect();
            buckets.sort_by(|one, other| one.0.total_cmp(&other.0));
            assert!(buckets.len() > 10, "{series}: {buckets:?}");
            assert!(buckets.windows(2).all(|two| two[0].1 <= two[1].1), "{series}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, *count)), "{series}");
            assert!(self.samples.contains_key(&format!("{name}_sum{labels}")), "{series}");
        }
    }

    /// The sum of the samples of this name whose labels include all of these.
    pub(crate) fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        let of = |series: &&String| series.split('{').next() == Some(name);
        let has = |series: &&String| labels.iter().all(|label| series.contains(label));
        self.samples.iter().filter(|(series, _)| of(series) && has(series)).map(|(_, value)| value).sum()
    }
}
