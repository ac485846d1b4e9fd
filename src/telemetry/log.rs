//! Log lines to standard output, through a queue. The lines themselves are declared in [`events`].

pub mod events;
mod output;

use std::io::IsTerminal;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::level_filters::LevelFilter;
use tracing_subscriber::Registry;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use crate::config::{self, LogFormat};
pub use output::LogQueue;
pub(crate) use output::report_dropped;

/// The filter by level, which a reload changes.
static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Sends this process's log lines to standard output, as configured, until the queue is dropped. A second call changes nothing.
pub fn init(config: &config::Log) -> LogQueue {
    let (writer, queue) = output::queue();
    let (filter, handle) = reload::Layer::new(targets(config.level));
    let registry = tracing_subscriber::registry().with(filter);
    let lines = tracing_subscriber::fmt::layer().with_ansi(has_colors()).with_writer(writer);
    let begun = match config.format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).try_init(),
        LogFormat::Text => registry.with(lines).try_init(),
    };
    // Fails only if there is a subscriber.
    if begun.is_ok() {
        let _ = FILTER.set(handle);
    }
    queue
}

/// Whether lines are colored: for a terminal that shows colors, whose user wants them (<https://no-color.org>).
fn has_colors() -> bool {
    let is_set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    std::io::stdout().is_terminal() && !is_set("NO_COLOR") && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Changes the least severe level that is written, after [`init`].
pub fn set_level(level: LevelFilter) {
    if let Some(filter) = FILTER.get() {
        // Fails only if the subscriber is gone.
        let _ = filter.reload(targets(level));
    }
}

/// The least time between two lines of the same event, where every call may cause one.
const PAUSE: Duration = Duration::from_secs(10);

/// Limits the lines of one event: a failing endpoint may cause many a second for hours.
pub struct LogThrottle {
    /// The least time between two lines.
    pause: Duration,
    throttled: Mutex<Throttled>,
}

#[derive(Default)]
struct Throttled {
    last: Option<Instant>,
    suppressed: u64,
}

impl Default for LogThrottle {
    fn default() -> Self {
        Self::every(PAUSE)
    }
}

impl LogThrottle {
    /// At most one line every `pause`.
    pub(crate) fn every(pause: Duration) -> Self {
        Self { pause, throttled: Mutex::default() }
    }

    /// Calls `log` with the number of lines suppressed since the last one; suppresses this one within the pause after it.
    pub(crate) fn when_due(&self, log: impl FnOnce(u64)) {
        let mut throttled = self.throttled.lock().unwrap_or_else(PoisonError::into_inner);
        if throttled.last.is_some_and(|last| last.elapsed() < self.pause) {
            throttled.suppressed += 1;
            return;
        }
        throttled.last = Some(Instant::now());
        let suppressed = std::mem::take(&mut throttled.suppressed);
        drop(throttled);
        log(suppressed);
    }
}

/// An error with its causes. Texts of hyper and rustls contain no header, body or query; the debug data of a GOAWAY (RFC 9113
/// §6.8), which h2 appends, may contain anything and is cut off.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut texts = Vec::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        let text = error.to_string();
        texts.push(text.split(" (b\"").next().unwrap_or_default().to_owned());
        cause = error.source();
    }
    texts.join(": ")
}

fn targets(level: LevelFilter) -> Targets {
    // Below WARN, libraries print what passes through them, headers included.
    Targets::new()
        .with_default(level.min(LevelFilter::WARN))
        .with_target("sidelink", level)
        .with_target("access", level)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use http_body_util::Full;
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    /// Regression: the debug data of a GOAWAY, up to 16 KiB, was logged.
    #[tokio::test]
    async fn the_debug_data_of_a_goaway_is_not_in_an_error() {
        let (client, mut server) = tokio::io::duplex(64 << 10);
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(client)).await.unwrap();
        tokio::spawn(connection);
        tokio::spawn(async move {
            // SETTINGS, then GOAWAY with code 1 (RFC 9113 §6.8).
            let debug_data = [&[0, 0, 0, 0, 0, 0, 0, 1][..], b"token MARKED"].concat();
            let length = u8::try_from(debug_data.len()).unwrap();
            let frames = [&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, length, 7, 0, 0, 0, 0, 0][..], &debug_data].concat();
            server.write_all(&frames).await.unwrap();
            let _ = server.read_to_end(&mut Vec::new()).await;
        });
        let request = Request::get("http://h/").body(Full::<Bytes>::default()).unwrap();
        let text = chain(&sender.send_request(request).await.unwrap_err());
        assert!(text.contains("unspecific protocol error") && !text.contains("MARKED"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_throttled_line_is_logged_once_per_pause_with_the_number_of_suppressed_lines() {
        let throttle = LogThrottle::default();
        let burst = || {
            let mut logged = Vec::new();
            (0..1000).for_each(|_| throttle.when_due(|suppressed| logged.push(suppressed)));
            logged
        };
        assert_eq!(burst(), [0]);
        tokio::time::advance(PAUSE - Duration::from_millis(1)).await;
        assert!(burst().is_empty());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(burst(), [1999]);

        let throttle = LogThrottle::every(Duration::from_secs(300));
        let mut lines = 0;
        for _ in 0..12 {
            throttle.when_due(|_| lines += 1);
            tokio::time::advance(Duration::from_secs(60)).await;
        }
        assert_eq!(lines, 3, "in twelve minutes");
    }
}
