//! Accepting connections: limits, time limits, TLS, hyper, and draining.
//!
//! HTTP/1.1 and HTTP/2 (by ALPN, or without TLS with prior knowledge) share a port. The same code serves clients and operators.

mod frames;
mod framing;
mod listener;
mod protocol;
mod streams;
mod timed;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use bytes::Bytes;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::{Body, Incoming};
use hyper::service::{Service, service_fn};
use hyper_util::rt::TokioIo;
use prometheus::IntGauge;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::OwnedSemaphorePermit;
use tokio::task::{JoinSet, unconstrained};
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config;
use crate::limits::permits::Permits;
use crate::telemetry::log::{LogThrottle, events};
use listener::{QUEUE, Stream};
use protocol::Protocol;
use timed::{Counted, Phase, Timed};

pub use listener::Listener;

/// How long an idle connection is left open when draining: longer than a request that is on its way takes to come.
const LINGER: Duration = Duration::from_secs(1);
/// Pause after a failed accept: out of file descriptors, say, and some are freed soon.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Whoever has this address.
    Tcp(SocketAddr),
    /// Someone on this machine, who got there by other ways than the network: a Unix socket, or memory.
    Local,
}

/// The limits of a listener's connections.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head; 8 KiB at the least.
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

/// What listeners share.
pub struct ListenerState {
    /// Of connections that are accepted from now on.
    limits: ArcSwap<Limits>,
    /// TLS of TCP connections that are accepted from now on.
    tls: ArcSwapOption<ServerConfig>,
    /// One for each connection. While there is none, a listener keeps the one client that it has accepted waiting and
    /// accepts no other.
    connections: Permits,
    /// Counts the connections that are served.
    open: IntGauge,
    /// Once cancelled, connections are drained.
    stop: CancellationToken,
    /// How long an idle connection is left open then.
    linger: Duration,
}

impl ListenerState {
    /// For so many connections at a time, which are counted in `open`. Once `stop` is cancelled, they are drained.
    pub fn new(limits: Limits, connections: usize, open: IntGauge, stop: CancellationToken) -> Self {
        let connections = Permits::new(connections);
        let limits = ArcSwap::from_pointee(limits);
        Self { limits, tls: ArcSwapOption::empty(), connections, open, stop, linger: LINGER }
    }

    /// Idle connections are closed at once when draining.
    pub fn without_linger(self) -> Self {
        Self { linger: Duration::ZERO, ..self }
    }

    /// Speaks TLS on TCP connections to come, by this certificate.
    pub fn secure(&self, tls: ServerConfig) {
        self.tls.store(Some(Arc::new(tls)));
    }

    /// Until draining is over; `end` is when, once that is known.
    async fn end(&self, end: &mut Option<Instant>) {
        self.stop.cancelled().await;
        let end = *end.get_or_insert_with(|| Instant::now() + self.limits.load().drain);
        tokio::time::sleep_until(end).await;
    }

    /// Changes limits, of connections to come, and of their number. Must be called within a tokio runtime.
    pub fn change(&self, limits: Limits, connections: usize) {
        self.limits.store(Arc::new(limits));
        self.connections.resize(connections);
    }
}

/// Serves `listener` until told to stop, then drains: no new connection, open ones are told to close, answers in flight
/// are finished, all within `limits.drain`; what is left then is cut off. No connection of `listener`'s is left when this
/// returns, nor soon after it is dropped. `answer` is told who asks.
pub async fn run<S, F, B>(listener: Listener, reception: Arc<ListenerState>, answer: S)
where
    S: Fn(Peer, Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    // Aborted when it is dropped.
    let mut connections = JoinSet::new();
    let failures = LogThrottle::default();
    // As many as the system has queued.
    let mut last_ones = QUEUE;
    let mut end = None;
    loop {
        let accepting = accept(&listener, &failures);
        let accepted = if reception.stop.is_cancelled() {
            // Who has connected by now is not turned away unheard.
            last_ones -= 1;
            match unconstrained(accepting).now_or_never() {
                Some(accepted) if last_ones > 0 => accepted,
                _ => break,
            }
        } else {
            tokio::select! {
                accepted = accepting => accepted,
                () = reception.stop.cancelled() => continue,
            }
        };
        // What is over makes room.
        while connections.try_join_next().is_some() {}
        let Some((stream, peer)) = accepted else { continue };
        // After, not before: a listener that waits for clients must not hold what another could use. Draining ends
        // connections, and so lets those in that wait. The semaphore is never closed.
        let permit = tokio::select! {
            biased;
            Ok(permit) = reception.connections.acquire_owned() => permit,
            () = reception.end(&mut end) => break,
        };
        let answer = answer.clone();
        let connection = serve_client(stream, Arc::clone(&reception), move |request| answer(peer, request));
        let slot = Slot::new(reception.open.clone(), permit);
        connections.spawn(async move {
            let _slot = slot;
            if let Err(error) = connection.await {
                events::ConnectionFailed { reason: format_args!("{error}") }.log();
            }
        });
    }
    drop(listener);
    let drained = async { while connections.join_next().await.is_some() {} };
    let is_drained = tokio::select! {
        biased;
        () = drained => true,
        () = reception.end(&mut end) => false,
    };
    if !is_drained {
        events::DrainTimeout {}.log();
        connections.shutdown().await;
    }
}

/// Shakes hands first, where there is TLS. Who is slow in that has a connection's permit like anyone, and the time of a
/// head; a bound of its own would let a few slow ones keep out all others.
async fn serve_client<S, F, B>(stream: Stream, reception: Arc<ListenerState>, answer: S) -> Result<(), BoxError>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let tls = reception.tls.load_full();
    let stream = match (stream, tls) {
        (Stream::Tcp(stream), Some(tls)) => {
            let within = reception.limits.load().header_timeout;
            let shaken = tokio::time::timeout(within, TlsAcceptor::from(tls).accept(stream)).await;
            Stream::Tls(Box::new(shaken.map_err(|_| "the TLS handshake took longer than limits.header_timeout")??))
        }
        (stream, _) => stream,
    };
    converse(stream.protocol(), stream, reception, answer).await
}

/// Serves one connection of a listener's; once told to stop, to the end of what is in flight.
///
/// An idle connection of HTTP/1 cannot be closed without harm: its client may be sending a request this very moment. So it
/// lingers, and whoever asks meanwhile is answered, and told by `Connection: close`. HTTP/2 has GOAWAY for that.
async fn converse<S, F, B>(
    protocol: Protocol,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    reception: Arc<ListenerState>,
    answer: S,
) -> Result<(), BoxError>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let limits = **reception.limits.load();
    let linger = async {
        reception.stop.cancelled().await;
        reception.linger.min(reception.limits.load().drain / 2)
    };
    converse_until(protocol, io, limits, linger, answer).await
}

/// Serves one connection; once `linger` tells how long an idle one is left open, to the end of what is in flight.
async fn converse_until<S, F, B>(
    protocol: Protocol,
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limits: Limits,
    linger: impl Future<Output = Duration>,
    answer: S,
) -> Result<(), BoxError>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    let phase = Arc::new(Phase::new());
    let io = TokioIo::new(Timed::new(io, Arc::clone(&phase), limits));
    let service = service(Arc::clone(&phase), answer);
    let builder = protocol.builder(&limits);
    let mut connection = pin!(builder.serve_connection(io, service));
    let told_to_end = async {
        tokio::select! {
            linger = linger => {
                phase.leave();
                linger
            }
            // HTTP/2 alone, which need not be waited for.
            () = phase.outstayed() => Duration::ZERO,
        }
    };
    // A set of one is asked only when it has been woken; by itself, each request would ask it, and take locks that all
    // connections share.
    let mut told_to_end: FuturesUnordered<_> = std::iter::once(told_to_end).collect();
    let linger = tokio::select! {
        // First, so that whoever was let in while draining hears that its first request is its last.
        biased;
        Some(linger) = told_to_end.next() => linger,
        ended = connection.as_mut() => return ended,
    };
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = phase.quiet(linger) => {}
    }
    connection.as_mut().graceful_shutdown();
    connection.await
}

/// A served connection's place, given back even if its handler panics.
struct Slot {
    open: IntGauge,
    _permit: OwnedSemaphorePermit,
}

impl Slot {
    fn new(open: IntGauge, permit: OwnedSemaphorePermit) -> Self {
        open.inc();
        Self { open, _permit: permit }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.open.dec();
    }
}

/// A client; `None` if there was none to be had, after a pause where it would be the same again.
async fn accept(listener: &Listener, failures: &LogThrottle) -> Option<(Stream, Peer)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        // The client has left before its turn: nothing is wrong here.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => None,
        Err(error) => {
            failures.when_due(|suppressed| {
                events::AcceptFailed { reason: format_args!("{error}"), suppressed }.log();
            });
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
) -> Result<(), BoxError>
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: std::error::Error + Send + Sync,
{
    converse_until(Protocol::Any, io, limits, std::future::pending(), answer).await
}

/// Tells the connection's clock when a request is in service, and its client when that is the last.
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
        let in_service = phase.enter();
        let is_http1 = request.version() <= Version::HTTP_11;
        let answer = answer(request);
        async move {
            let mut response = answer.await;
            if is_http1 && in_service.is_last() {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| Counted::new(body, in_service)))
        }
    })
}
