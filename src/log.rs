//! Log lines to standard output.

use std::io::IsTerminal;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, Level, LogFormat};

/// Sends this process's log lines to standard output, as configured. A second call changes nothing.
pub fn init(config: &config::Log) {
    let level = match config.level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // The libraries below print what passes through them once they are let: headers, for one. They get to warn, no more.
    let targets = Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("sidelink", level)
        .with_target("access", level);
    let lines = tracing_subscriber::fmt::layer().with_ansi(std::io::stdout().is_terminal());
    // Fails only if there is a subscriber already.
    let _ = match config.format {
        LogFormat::Json => {
            tracing_subscriber::registry().with(lines.json().flatten_event(true)).with(targets).try_init()
        }
        LogFormat::Text => tracing_subscriber::registry().with(lines).with(targets).try_init(),
    };
}
