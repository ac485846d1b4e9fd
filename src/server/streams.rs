//! The streams of one HTTP/2 connection, each a task that hyper has made.
//!
//! A stream whose client gives it no room to send (its window is shut, or the connection's) holds its answer, and for
//! another route its connection to the endpoint as well. hyper waits for room as long as the connection lives; here a
//! stream is given up, which resets it (RFC 9113 §5.4.2), once that has taken `idle_timeout`. Others go on beside it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::time::Instant;

use super::timed::Alarm;
use crate::telemetry::log::events;

tokio::task_local! {
    /// Of the stream that is being polled.
    static FLOW: Arc<Flow>;
}

/// What a stream's body tells of whom it waits for.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// The next move is the client's: a piece was handed over, and none has been asked for since.
    waits_for_client: AtomicBool,
    /// ChunkedBody handed over so far.
    pieces: AtomicUsize,
}

impl Flow {
    /// That of the stream in whose task this is asked; `None` on HTTP/1.
    pub(super) fn current() -> Option<Arc<Flow>> {
        FLOW.try_with(Arc::clone).ok()
    }

    /// A piece is handed over.
    pub(super) fn gave(&self) {
        self.pieces.fetch_add(1, Ordering::Relaxed);
        self.waits_for_client.store(true, Ordering::Relaxed);
    }

    /// There is room for another piece, and none to give.
    pub(super) fn lacks(&self) {
        self.waits_for_client.store(false, Ordering::Relaxed);
    }
}

/// Runs a connection's streams.
#[derive(Clone, Copy)]
pub(super) struct Streams {
    /// The longest that a stream waits for room for its next piece.
    pub(super) idle_timeout: Duration,
}

impl<F> Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, stream: F) {
        let flow = Arc::<Flow>::default();
        let (stream, idle_timeout) = (FLOW.scope(Arc::clone(&flow), stream), self.idle_timeout);
        tokio::spawn(Watched { stream, flow, idle_timeout, waiting: None, alarm: Alarm::default() });
    }
}

pin_project! {
    struct Watched<F> {
        #[pin]
        stream: F,
        flow: Arc<Flow>,
        idle_timeout: Duration,
        // For room, since when, and after how many pieces.
        waiting: Option<(Instant, usize)>,
        alarm: Alarm,
    }
}

impl<F: Future> Future for Watched<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !this.flow.waits_for_client.load(Ordering::Relaxed) {
            *this.waiting = None;
            return Poll::Pending;
        }
        let pieces = this.flow.pieces.load(Ordering::Relaxed);
        let since = match *this.waiting {
            Some((since, before)) if before == pieces => since,
            _ => Instant::now(),
        };
        *this.waiting = Some((since, pieces));
        if this.alarm.is_past(since + *this.idle_timeout, cx) {
            events::StreamStalled {}.log();
            return Poll::Ready(());
        }
        Poll::Pending
    }
}
