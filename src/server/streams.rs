//! The streams of one HTTP/2 connection, each a task that hyper spawns.
//!
//! A stream whose client gives it no room to send (its window is shut, or the connection's) keeps its answer in memory, and
//! on another route than the batch route a connection to the endpoint as well. hyper waits for room as long as the
//! connection lives. Here a stream is dropped, which resets it (RFC 9113 §5.4.2), after `idle_timeout` without progress. The
//! other streams go on.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::telemetry::log::events;

tokio::task_local! {
    /// The progress of the stream that is polled.
    static PROGRESS: Arc<StreamProgress>;
}

/// The progress of a stream's answer, which its body reports to the stream.
#[derive(Debug, Default)]
pub(super) struct StreamProgress {
    /// The body has given a chunk, and was not asked for more since.
    waits_for_client: AtomicBool,
    /// The body has given a chunk since the stream looked last.
    gave: AtomicBool,
    /// The stream is reset, since the client gave it no room.
    is_stalled: AtomicBool,
}

impl StreamProgress {
    /// The progress of the stream whose task calls this; `None` on HTTP/1.
    pub(super) fn current() -> Option<Arc<StreamProgress>> {
        PROGRESS.try_with(Arc::clone).ok()
    }

    /// The body gives a chunk.
    pub(super) fn gave(&self) {
        self.gave.store(true, Ordering::Relaxed);
        self.waits_for_client.store(true, Ordering::Relaxed);
    }

    /// The body is asked for a chunk and has none yet.
    pub(super) fn waits_for_body(&self) {
        self.waits_for_client.store(false, Ordering::Relaxed);
    }

    /// Whether the stream is reset, since the client gave it no room.
    pub(super) fn is_stalled(&self) -> bool {
        self.is_stalled.load(Ordering::Relaxed)
    }
}

/// Spawns a connection's streams.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    /// The longest that a stream waits for room for its next chunk.
    pub(super) idle_timeout: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let progress = Arc::<StreamProgress>::default();
        let (stream, idle_timeout) = (PROGRESS.scope(Arc::clone(&progress), stream), self.idle_timeout);
        tokio::spawn(TimedStream { stream, progress, idle_timeout, since: Instant::now(), timer: None });
    }
}

pin_project! {
    // Not an async block, which would have room for the stream twice: where it is captured, and where it is pinned.
    struct TimedStream<F> {
        #[pin]
        stream: F,
        progress: Arc<StreamProgress>,
        idle_timeout: Duration,
        // The last chunk.
        since: Instant,
        // Set late: an earlier deadline fires first and is moved then, which is cheaper than moving it with each chunk.
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future> Future for TimedStream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.progress.gave.swap(false, Ordering::Relaxed) {
            *this.since = Instant::now();
        }
        if !this.progress.waits_for_client.load(Ordering::Relaxed) {
            return Poll::Pending;
        }
        let deadline = *this.since + *this.idle_timeout;
        if Instant::now() < deadline {
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            while timer.as_mut().poll(cx).is_ready() {
                timer.as_mut().reset(deadline);
            }
            return Poll::Pending;
        }
        events::StreamStalled {}.log();
        this.progress.is_stalled.store(true, Ordering::Relaxed);
        Poll::Ready(())
    }
}
