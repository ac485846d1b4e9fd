//! Accepting connections: limits, time limits, hyper, and draining.
//!
//! HTTP/1.1 and HTTP/2 with prior knowledge share a port. The same code serves clients and operators.

mod timed;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use prometheus::IntGauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::config;
use timed::{Counted, Phase, Timed};

/// Streams that one HTTP/2 connection may have open.
const STREAMS: u32 = 100;
/// What is read of a refused request's body, so that its sender gets to read the refusal (RFC 9112 §9.6).
const DRAIN_BYTES: usize = 1 << 20;
/// And for how long.
const DRAIN_TIME: Duration = Duration::from_secs(5);
/// Pause after a failed accept: out of file descriptors, say, and some are freed soon.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// The limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub header_bytes: usize,
    /// From a head's first byte to its last.
    pub header_timeout: Duration,
    /// Without a byte, where one is awaited from the client or for it.
    pub idle_timeout: Duration,
    /// For what is in flight when draining.
    pub drain: Duration,
}

impl From<&config::Limits> for Limits {
    fn from(limits: &config::Limits) -> Self {
        Self {
            header_bytes: limits.header_bytes,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            drain: limits.drain,
        }
    }
}

/// Serves `listener` until `stop`, then drains: no new connection, open ones are told to close, answers in flight are
/// finished, all within `limits.drain`. While no permit is left in `connections`, none is accepted.
pub async fn run<S, F, B>(
    listener: TcpListener,
    limits: Limits,
    connections: Arc<Semaphore>,
    open: IntGauge,
    stop: CancellationToken,
    answer: S,
) where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let graceful = GracefulShutdown::new();
    let builder = builder(&limits);
    loop {
        let accepted = tokio::select! {
            accepted = accept(&listener, &connections) => accepted,
            () = stop.cancelled() => break,
        };
        let Some((stream, permit)) = accepted else { continue };
        // An optimisation: without it, answers are as right, only later.
        let _ = stream.set_nodelay(true);
        let phase = Arc::new(Phase::new());
        let io = TokioIo::new(Timed::new(stream, Arc::clone(&phase), limits));
        let connection = builder.serve_connection(io, service(phase, answer.clone())).into_owned();
        let connection = graceful.watch(connection);
        let open = open.clone();
        open.inc();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                debug!(reason = %error, "a client's connection ended early");
            }
            open.dec();
            drop(permit);
        });
    }
    drop(listener);
    if tokio::time::timeout(limits.drain, graceful.shutdown()).await.is_err() {
        info!("limits.drain is over; what is still in flight is cut off");
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> Option<(tokio::net::TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // The semaphore is never closed.
    let permit = Arc::clone(connections).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, permit)),
        Err(error) => {
            warn!(reason = %error, "a connection could not be accepted");
            tokio::time::sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Serves one connection over any stream to its end.
///
/// # Errors
/// How it ended early: the client's fault, or its leaving.
pub async fn serve_connection<S, F, B>(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limits: Limits,
    answer: S,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let phase = Arc::new(Phase::new());
    let io = TokioIo::new(Timed::new(io, Arc::clone(&phase), limits));
    builder(&limits).serve_connection(io, service(phase, answer)).await
}

/// Tells the connection's clock when a request is in service.
fn service<S, F, B>(
    phase: Arc<Phase>,
    answer: S,
) -> impl Service<Request<Incoming>, Response = Response<Counted<B>>, Error = Infallible, Future: Send> + Clone + Send
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    service_fn(move |request: Request<Incoming>| {
        let in_service = phase.enter(request.version());
        let answer = answer(request);
        async move { Ok::<_, Infallible>(answer.await.map(|body| Counted::new(body, in_service))) }
    })
}

fn builder(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        // `Timed` tells a slow head from an idle connection; hyper's own timer does not.
        .header_read_timeout(None)
        .half_close(true)
        .max_buf_size(limits.header_bytes);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS)
        .keep_alive_interval(Some(limits.idle_timeout / 2))
        .keep_alive_timeout(limits.idle_timeout / 2);
    builder
}

/// Reads on, for a while and into nothing, what the sender of a refused request is still sending.
pub fn drain(mut body: Incoming) {
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(tokio::time::timeout(DRAIN_TIME, async move {
        let mut left = DRAIN_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                break;
            }
        }
    }));
}
