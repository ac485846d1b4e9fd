//! Accepts connections over TCP and Unix sockets: limits, time limits, TLS, hyper, and draining.
//!
//! HTTP/1.1 and HTTP/2 (by ALPN, or without TLS with prior knowledge) share a port. The same code serves clients and
//! operators. Start reading at [`run`].

mod body;
mod listener;
mod protocol;
mod streams;
mod timeouts;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::future::Future;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt, StreamExt};
use http::header::CONNECTION;
use http::{HeaderValue, Request, Response, Version};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use pin_project_lite::pin_project;
use prometheus::IntGauge;
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::{JoinSet, unconstrained};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tower::BoxError;

use crate::config;
use crate::limits::permits::Permits;
use crate::message::body::Body;
use crate::message::ending::CutOff;
use crate::telemetry::log::{LogThrottle, events};
use crate::telemetry::metrics::GaugeGuard;
use body::ResponseBody;
use listener::{PlainStream, QUEUE};
use timeouts::{ConnEnd, ConnIo, ConnState, ConnTimeouts, InService};

pub use body::RequestBody;
pub use listener::{Listener, PassedSocket};
pub use protocol::Protocol;

/// The time for which an idle connection stays open when a drain begins: longer than a request that was sent takes to arrive.
const LINGER: Duration = Duration::from_secs(1);
/// The pause after a failed accept. If file descriptors are used up, for example, some are closed soon.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This address.
    Tcp(SocketAddr),
    /// A process on this machine: over a Unix socket, or in memory.
    Local,
}

/// The limits of a connection.
#[derive(Clone, Copy, Debug)]
pub struct ConnLimits {
    /// Most bytes of a request's head; at least 8 KiB.
    pub header_bytes: usize,
    /// The time that a head may take from its first byte to its last.
    pub header_timeout: Duration,
    /// The time that may pass without a byte that is awaited, or without a request.
    pub idle_timeout: Duration,
    /// The age at which a connection takes no more requests; a random tenth of it less at most.
    pub max_connection_age: Duration,
    /// The time that requests in service get when a drain begins.
    pub drain: Duration,
    /// The time for which an idle connection stays open when a drain begins.
    pub linger: Duration,
}

impl From<&config::Limits> for ConnLimits {
    fn from(limits: &config::Limits) -> Self {
        Self {
            header_bytes: limits.header_bytes,
            header_timeout: limits.header_timeout,
            idle_timeout: limits.idle_timeout,
            max_connection_age: limits.max_connection_age,
            drain: limits.drain,
            linger: LINGER.min(limits.drain / 2),
        }
    }
}

/// How a connection is told to end, and tells why it was cut off.
#[derive(Clone, Default)]
pub struct ConnStop {
    /// Once cancelled, the connection is drained.
    pub drain: CancellationToken,
    /// Once cancelled, it is cut off: its time to drain has passed.
    pub at_once: CancellationToken,
    /// Set when it is cut off.
    pub cut_off: CutOff,
}

/// The state that listeners share.
pub struct ListenerState {
    /// Limits of connections that are accepted from now on.
    limits: ArcSwap<ConnLimits>,
    /// TLS of TCP connections that are accepted from now on.
    tls: ArcSwapOption<ServerConfig>,
    /// Permits, one for each connection. While none is free, a listener accepts one client, which waits for a permit, and no other.
    connections: Permits,
    /// Counts the connections that are served.
    open: IntGauge,
    /// Once cancelled, listeners and connections are drained.
    stop: CancellationToken,
    /// Once cancelled, connections are cut off.
    at_once: CancellationToken,
}

impl ListenerState {
    /// The state of listeners that serve at most `connections` at a time, counted in `open`. They drain once `stop` is cancelled.
    pub fn new(limits: ConnLimits, connections: usize, open: IntGauge, stop: CancellationToken) -> Self {
        let (limits, tls) = (ArcSwap::from_pointee(limits), ArcSwapOption::empty());
        let at_once = CancellationToken::new();
        Self { limits, tls, connections: Permits::new(connections), open, stop, at_once }
    }

    /// Speaks TLS on TCP connections to come, with this certificate.
    pub fn set_tls(&self, tls: ServerConfig) {
        self.tls.store(Some(Arc::new(tls)));
    }

    /// Changes the limits of connections to come, and of their number. Must be called within a tokio runtime.
    pub fn set_limits(&self, limits: ConnLimits, connections: usize) {
        self.limits.store(Arc::new(limits));
        self.connections.resize(connections);
    }

    /// Waits for the end of the time to drain, which the first call that sees the drain begin stores in `end`.
    async fn drain_deadline(&self, end: &mut Option<Instant>) {
        self.stop.cancelled().await;
        let end = *end.get_or_insert_with(|| Instant::now() + self.limits.load().drain);
        sleep_until(end).await;
    }
}

/// Serves `listener` until told to stop, then drains: no new connection, open ones are told to close, answers in flight
/// are finished, all within `limits.drain`; what is left then is cut off. No connection of `listener`'s is left when this
/// returns, nor soon after it is dropped. `connect` gives each connection the function that answers its requests,
/// from its client and from what will say why it was cut off.
pub async fn run<C, S, F>(listener: Listener, state: Arc<ListenerState>, connect: C)
where
    C: Fn(Peer, CutOff) -> S + Send + 'static,
    S: Fn(Request<RequestBody>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    // Dropping the set aborts its connections.
    let mut connections = JoinSet::new();
    let failures = LogThrottle::default();
    // Connections that the system may have queued when the drain begins.
    let mut left_to_accept = QUEUE;
    let mut end = None;
    loop {
        let accepting = accept(&listener, &failures);
        let accepted = if state.stop.is_cancelled() {
            // A client that has connected by now is served.
            left_to_accept -= 1;
            match unconstrained(accepting).now_or_never() {
                Some(accepted) if left_to_accept > 0 => accepted,
                _ => break,
            }
        } else {
            tokio::select! {
                accepted = accepting => accepted,
                () = state.stop.cancelled() => continue,
            }
        };
        while connections.try_join_next().is_some() {}
        let Some((stream, peer)) = accepted else { continue };
        // The permit is taken after the accept: a listener that waits for clients must not keep a permit that another could use.
        // Draining ends connections, so clients that wait get a permit. The semaphore is never closed.
        let permit = tokio::select! {
            biased;
            Ok(permit) = state.connections.acquire() => permit,
            () = state.drain_deadline(&mut end) => break,
        };
        let open = GaugeGuard::new(&state.open);
        let cut_off = CutOff::default();
        let connection = serve_client(stream, Arc::clone(&state), cut_off.clone(), connect(peer, cut_off));
        connections.spawn(async move {
            let _open = (open, permit);
            if let Err(error) = connection.await {
                events::ConnectionFailed { reason: format_args!("{error}") }.log();
            }
        });
    }
    drop(listener);
    let is_drained = tokio::select! {
        biased;
        () = async { while connections.join_next().await.is_some() {} } => true,
        () = state.drain_deadline(&mut end) => false,
    };
    if !is_drained {
        events::DrainTimeout {}.log();
        state.at_once.cancel();
        while connections.join_next().await.is_some() {}
    }
}

/// Accepts a client; `None` if there is none, after a pause where the next attempt would fail as well.
async fn accept(listener: &Listener, failures: &LogThrottle) -> Option<(PlainStream, Peer)> {
    match listener.accept().await {
        Ok(accepted) => Some(accepted),
        // The client has left before its turn: nothing is wrong here.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionAborted | ErrorKind::ConnectionReset) => None,
        Err(error) => {
            failures.when_due(|suppressed| {
                events::AcceptFailed { reason: format_args!("{error}"), suppressed }.log();
            });
            sleep(ACCEPT_PAUSE).await;
            None
        }
    }
}

/// Serves one connection of a listener, after its TLS handshake if there is TLS. The handshake has `header_timeout` and the
/// permit of its connection: with a separate bound, a few slow handshakes would keep out all others.
async fn serve_client<S, F>(
    stream: PlainStream,
    state: Arc<ListenerState>,
    cut_off: CutOff,
    answer: S,
) -> Result<(), BoxError>
where
    S: Fn(Request<RequestBody>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (limits, tls) = (**state.limits.load(), state.tls.load_full());
    let (protocol, stream) = match (stream, tls) {
        (Either::Left(stream), Some(tls)) => {
            let handshake = timeout(limits.header_timeout, TlsAcceptor::from(tls).accept(stream));
            let handshake = tokio::select! {
                handshake = handshake => handshake,
                () = state.at_once.cancelled() => return Err("limits.drain has passed".into()),
            };
            let stream = handshake.map_err(|_| "the TLS handshake took longer than limits.header_timeout")??;
            (Protocol::negotiated(stream.get_ref().1.alpn_protocol()), Either::Left(Box::new(stream)))
        }
        (stream, _) => (Protocol::Any, Either::Right(stream)),
    };
    let stop = ConnStop { drain: state.stop.clone(), at_once: state.at_once.clone(), cut_off };
    serve_connection(protocol, stream, limits, stop, answer).await
}

pin_project! {
    // Not an async block, which would have room for the answer twice: where it is captured, and where it is polled.
    struct Answer<F> {
        #[pin]
        answer: F,
        is_http1: bool,
        // Until the answer is there.
        in_service: Option<InService>,
    }
}

impl<F: Future<Output = Response<Body>>> Future for Answer<F> {
    type Output = Result<Response<ResponseBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.answer.poll(cx));
        let Some(in_service) = this.in_service.take() else { return Poll::Pending };
        if *this.is_http1 && in_service.is_last() {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Poll::Ready(Ok(response.map(|body| ResponseBody::new(body, in_service))))
    }
}

/// Serves one connection to its end, or until `stop` ends it.
///
/// An idle connection of HTTP/1 cannot be closed at once without harm: its client may be sending a request at this moment.
/// So it lingers; a request that comes meanwhile is answered with `Connection: close`. HTTP/2 has GOAWAY for that.
///
/// # Errors
/// Why it ended early: the client's fault, or the client left.
pub async fn serve_connection<S, F>(
    protocol: Protocol,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    limits: ConnLimits,
    stop: ConnStop,
    answer: S,
) -> Result<(), BoxError>
where
    S: Fn(Request<RequestBody>) -> F + Clone + Send + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let cut_off = stop.cut_off.clone();
    let state = Arc::new(ConnState::new(cut_off.clone()));
    let timeouts = ConnTimeouts::new(Arc::clone(&state), limits, stop);
    let io = TokioIo::new(ConnIo::new(stream, Arc::clone(&state)));
    let service = service_fn(move |request: Request<Incoming>| {
        let is_http1 = request.version() <= Version::HTTP_11;
        let in_service = state.enter();
        let answer = answer(request.map(|body| RequestBody::new(body, is_http1, &in_service)));
        Answer { answer, is_http1, in_service: Some(in_service) }
    });
    let builder = protocol.builder(&limits);
    let mut connection = pin!(builder.serve_connection(io, service));
    // Polled only when a timer has woken it, not with each request.
    let mut expiries: FuturesUnordered<_> = std::iter::once(timeouts.next()).collect();
    loop {
        let (expiry, timeouts) = tokio::select! {
            // First, so that the first request after a drain has begun is known to be the last.
            biased;
            Some(expired) = expiries.next() => expired,
            ended = connection.as_mut() => return ended,
        };
        match expiry {
            ConnEnd::Close => connection.as_mut().graceful_shutdown(),
            // Before the connection is dropped, with its requests.
            ConnEnd::CutOff(by, reason) => {
                cut_off.set(by);
                return Err(reason.into());
            }
        }
        expiries.push(timeouts.next());
    }
}
