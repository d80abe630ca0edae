//! The log of a node, on standard error: `tracing`, as text or as one JSON document per line.

use std::io;
use std::str::FromStr;

use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use crate::cli::args::LogFormat;
use crate::cli::exit::{Failure, Result};

/// Libraries whose reports of ordinary work would drown the node's own.
/// What matters of an election is told by the node.
const TALKATIVE: [(&str, LevelFilter); 5] = [
    ("openraft", LevelFilter::ERROR),
    ("quinn", LevelFilter::WARN),
    ("quinn_proto", LevelFilter::WARN),
    ("quinn_udp", LevelFilter::WARN),
    ("rustls", LevelFilter::WARN),
];

/// What of the log is wanted: a level, or levels of parts (`info,dogsled_net=debug`).
fn filter(level: &str) -> Result<Targets> {
    let wrong = || {
        Failure::usage(format!(
            "--log-level {level:?} is neither error, warn, info, debug or trace, nor a list such as \
             info,dogsled_net=debug"
        ))
    };
    if !level.is_empty()
        && let Ok(level) = LevelFilter::from_str(level)
    {
        let mut targets = Targets::new().with_default(level);
        for (library, most) in TALKATIVE {
            targets = targets.with_target(library, level.min(most));
        }
        return Ok(targets);
    }
    // A bare word would be taken for the name of a part.
    if !level.contains('=') {
        return Err(wrong());
    }
    Targets::from_str(level).map_err(|_| wrong())
}

/// Writes the log from now on.
pub(crate) fn start(level: &str, format: LogFormat) -> Result<()> {
    let filter = filter(level)?;
    let layer = tracing_subscriber::fmt::layer().with_writer(io::stderr).with_ansi(false);
    let started = match format {
        LogFormat::Text => tracing_subscriber::registry().with(layer.with_filter(filter)).try_init(),
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true);
            tracing_subscriber::registry().with(layer.with_filter(filter)).try_init()
        }
    };
    started.map_err(|error| Failure::usage(format!("the log cannot be started: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_understood_and_words_are_not() {
        for level in ["info", "TRACE", "off", "info,dogsled_net=debug"] {
            assert!(filter(level).is_ok(), "{level}");
        }
        for level in ["", "loud", "info,dogsled_net=loud"] {
            assert!(filter(level).is_err(), "{level}");
        }
        let info = filter("info").unwrap();
        assert!(info.would_enable("dogsled_net", &tracing::Level::INFO));
        assert!(!info.would_enable("openraft::engine", &tracing::Level::INFO));
    }
}
