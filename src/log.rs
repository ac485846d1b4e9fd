//! Log lines to standard output.

use std::io::IsTerminal;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, Level, LogFormat};

/// Says what is written, and can be told anew.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Sends this process's log lines to standard output, as configured. A second call changes nothing.
pub fn init(config: &config::Log) {
    let (filter, handle) = reload::Layer::new(targets(config.level));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_ansi(std::io::stdout().is_terminal());
    let begun = match config.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines).try_init(),
    };
    // Fails only if there is a subscriber already.
    if begun.is_ok() {
        let _ = FILTER.set(handle);
    }
}

/// Changes the least severe level that is written, if this process's log lines were sent anywhere.
pub fn set_level(level: Level) {
    if let Some(filter) = FILTER.get() {
        // Fails only if the subscriber is gone.
        let _ = filter.reload(targets(level));
    }
}

fn targets(level: Level) -> Targets {
    let level = match level {
        Level::Error => LevelFilter::ERROR,
        Level::Warn => LevelFilter::WARN,
        Level::Info => LevelFilter::INFO,
        Level::Debug => LevelFilter::DEBUG,
        Level::Trace => LevelFilter::TRACE,
    };
    // The libraries below print what passes through them once they are let: headers, for one. They get to warn, no more.
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("sidelink", level)
        .with_target("access", level)
}
