//! Sends requests over hyper-util's client, and sends them again if that is safe.
//!
//! A request is sent again, on a new connection, if HTTP/2 proves that it was not processed (RFC 9113 §8.7), or if a
//! reused connection ends before any byte of an answer. Calls, and other idempotent requests without a body (RFC 9110 §9.2.2),
//! are [`Outgoing::Repeatable`]. Neither the breaker nor the retry budget counts such a loss, since it says nothing
//! about the endpoint's health. Retries of failed calls: [`super::retry`].

use std::error::Error as StdError;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::Reason;
use http::{Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, capture_connection};
use hyper_util::client::legacy::{Builder, Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use prometheus::IntCounter;
use tokio::time::Instant;

use super::connector::{ConnectFailed, ConnectionInfo, ConnectionNumbers, Connector, extra};
use crate::message::body::{Body, whole};

/// Most idle connections.
const MAX_IDLE: usize = 1000;
/// Most headers of an answer, over HTTP/1.1, and most bytes of its head.
const HEADERS: usize = 100;
const HEADER_BYTES: u32 = 64 << 10;
/// HTTP/2 flow control: bytes that the endpoint may send ahead for one call, and for all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A connection of HTTP/2 is closed after this many broken answers.
const STREAM_ERRORS: usize = 100;
/// An HTTP/2 connection on which requests wait is pinged if no byte has come for this long.
const PING: Duration = Duration::from_secs(2);
/// A connection is closed if a ping is not answered within this time. HTTP/2 stacks answer pings however busy the application is.
const PONG: Duration = Duration::from_secs(3);
/// How often one request may be sent again.
const RESENDS: usize = 2;

/// An HTTP client of the endpoint: a pool of connections, and requests on connections outside the pool.
pub(super) struct HttpClient {
    builder: Builder,
    connector: Connector,
    numbers: ConnectionNumbers,
    pooled: ArcSwap<Client<Connector, Body>>,
    /// Makes a connection for each request.
    unpooled: Client<Connector, Body>,
    resends: IntCounter,
}

/// A request to send.
pub(super) enum Outgoing {
    /// May be processed twice: idempotent, and its body is empty or part of what makes it idempotent.
    Repeatable(Request<Bytes>),
    /// Sent once at most.
    Once(Request<Body>),
}

/// The progress of one request. Outlives the future that sends it.
pub(super) struct SendProgress {
    began: Instant,
    dispatch: Mutex<Option<Dispatch>>,
}

/// A request on its connection.
struct Dispatch {
    sent: Instant,
    captured: CaptureConnection,
    info: Arc<ConnectionInfo>,
    bytes_before: u64,
    /// The connection was lost, with all that it carried.
    is_lost: bool,
}

impl Default for SendProgress {
    fn default() -> Self {
        Self { began: Instant::now(), dispatch: Mutex::default() }
    }
}

impl SendProgress {
    /// The time since the request was first to be sent.
    pub(super) fn waited(&self) -> Duration {
        self.began.elapsed()
    }

    /// The time since the request was last handed to a connection.
    pub(super) fn since_sent(&self) -> Option<Duration> {
        self.dispatch.lock().as_ref().map(|dispatch| dispatch.sent.elapsed())
    }

    /// The number of the connection that was lost, if one was.
    pub(super) fn lost_connection(&self) -> Option<u64> {
        self.dispatch.lock().as_ref().filter(|dispatch| dispatch.is_lost).map(|dispatch| dispatch.info.number)
    }

    /// The request, or its answer, ended with `error`. A stream that was reset leaves its connection intact.
    pub(super) fn failed(&self, error: &(dyn StdError + 'static)) {
        if let Some(dispatch) = &mut *self.dispatch.lock() {
            dispatch.is_lost = !cause(error).is_some_and(h2::Error::is_reset);
        }
    }

    /// The deadline has passed. A connection from which no byte has come since the request was sent takes no new requests.
    pub(super) fn timed_out(&self) {
        if let Some(dispatch) = self.dispatch.lock().as_ref().filter(|dispatch| dispatch.is_silent()) {
            dispatch.retire();
        }
    }
}

impl Dispatch {
    /// `None` while there is no connection.
    fn new(captured: &CaptureConnection) -> Option<Self> {
        let info: Arc<ConnectionInfo> = extra(captured.connection_metadata().as_ref()?)?;
        info.requests.fetch_add(1, Ordering::Relaxed);
        let bytes_before = info.bytes_read();
        Some(Self { sent: Instant::now(), captured: captured.clone(), info, bytes_before, is_lost: false })
    }

    /// Whether the connection is not this request's alone: it was open before, when the next number was `next`, or other
    /// requests have used it since. Then another request, or its age, may be the reason for its loss.
    fn is_reused(&self, next: u64) -> bool {
        self.info.number < next || self.info.requests.load(Ordering::Relaxed) > 1
    }

    fn is_silent(&self) -> bool {
        self.info.bytes_read() == self.bytes_before
    }

    fn is_http2(&self) -> bool {
        self.captured.connection_metadata().as_ref().is_some_and(Connected::is_negotiated_h2)
    }

    /// Keeps the connection from taking new requests.
    fn retire(&self) {
        if let Some(connected) = &*self.captured.connection_metadata() {
            connected.poison();
        }
    }
}

impl HttpClient {
    /// Connects to nothing yet. `resends` counts requests that are sent again.
    pub(super) fn new(
        connector: Connector,
        numbers: ConnectionNumbers,
        pool_idle: Duration,
        resends: IntCounter,
    ) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(pool_idle)
            .pool_max_idle_per_host(MAX_IDLE)
            .http1_max_headers(HEADERS)
            .http1_max_buf_size(HEADER_BYTES as usize)
            .http2_max_header_list_size(HEADER_BYTES)
            .http2_initial_stream_window_size(STREAM_WINDOW)
            .http2_initial_connection_window_size(CONNECTION_WINDOW)
            .http2_max_local_error_reset_streams(STREAM_ERRORS)
            .http2_keep_alive_interval(PING)
            .http2_keep_alive_timeout(PONG);
        let unpooled = builder.clone().pool_max_idle_per_host(0).build(connector.clone());
        let pooled = ArcSwap::from_pointee(builder.build(connector.clone()));
        Self { builder, connector, numbers, pooled, unpooled, resends }
    }

    /// Closes idle connections; those in use end with their requests.
    pub(super) fn drop_idle(&self) {
        self.pooled.store(Arc::new(self.builder.build(self.connector.clone())));
    }

    /// Sends a request, and again where that is safe; on a new connection from the start if `new_connection`.
    ///
    /// # Errors
    /// If there is no answer's head.
    pub(super) async fn send(
        &self,
        mut outgoing: Outgoing,
        new_connection: bool,
        progress: &SendProgress,
    ) -> Result<Response<Incoming>, ClientError> {
        let mut resends = 0;
        let mut pooled = !new_connection;
        loop {
            let (request, again) = match outgoing {
                Outgoing::Repeatable(request) => (request.clone().map(whole), Some(request)),
                Outgoing::Once(request) => (request, None),
            };
            let opened_before = self.numbers.next();
            let result = self.send_once(request, pooled, progress).await;
            if let Err(error) = &result {
                progress.failed(error);
            }
            let dispatch = progress.dispatch.lock();
            if let (Err(_), Some(dispatch)) = (&result, &*dispatch) {
                dispatch.info.failed();
            }
            let is_http2 = dispatch.as_ref().is_some_and(Dispatch::is_http2);
            let is_reused = dispatch.as_ref().is_some_and(|dispatch| dispatch.is_reused(opened_before));
            let is_safe = match &result {
                // RFC 9110 §15.5.9: the endpoint closed an idle connection just as the request was sent.
                Ok(response) => {
                    is_reused
                        && response.status() == StatusCode::REQUEST_TIMEOUT
                        && response.version() < Version::HTTP_2
                }
                // Over HTTP/2, bytes that came may belong to another request.
                Err(error) => {
                    let is_unanswered = is_http2 || dispatch.as_ref().is_some_and(Dispatch::is_silent);
                    may_resend(error, is_reused && is_unanswered)
                }
            };
            match again {
                Some(request) if is_safe && resends < RESENDS => outgoing = Outgoing::Repeatable(request),
                _ => return result,
            }
            // An HTTP/2 connection that is retired leaves the pool, and requests share its successor: a new connection for each
            // refused request would be many at once. Over HTTP/1.1 the pool may have other dead connections.
            pooled = resends == 0 && is_http2;
            dispatch.as_ref().inspect(|dispatch| dispatch.retire());
            drop(dispatch);
            self.resends.inc();
            resends += 1;
        }
    }

    async fn send_once(
        &self,
        mut request: Request<Body>,
        pooled: bool,
        progress: &SendProgress,
    ) -> Result<Response<Incoming>, ClientError> {
        let captured = capture_connection(&mut request);
        let mut connected = captured.clone();
        let response = if pooled { self.pooled.load().request(request) } else { self.unpooled.request(request) };
        tokio::pin!(response);
        let early = tokio::select! {
            biased;
            result = &mut response => Some(result),
            () = async { drop(connected.wait_for_connection_metadata().await) } => None,
        };
        let dispatch = Dispatch::new(&captured);
        dispatch.as_ref().filter(|dispatch| dispatch.info.is_outdated()).inspect(|dispatch| dispatch.retire());
        *progress.dispatch.lock() = dispatch;
        match early {
            Some(result) => result,
            None => response.await,
        }
    }
}

/// Whether the endpoint asks for HTTP/1.1 (RFC 9113 §7, `HTTP_1_1_REQUIRED`).
pub(super) fn wants_http1(error: &ClientError) -> bool {
    cause(error).and_then(h2::Error::reason) == Some(Reason::HTTP_1_1_REQUIRED)
}

/// Whether a repeatable request without an answer may be sent again: HTTP/2 says that it was not processed, or the connection
/// was lost (`is_lost`) before any byte of an answer.
fn may_resend(error: &ClientError, is_lost: bool) -> bool {
    if error.is_connect() {
        // Otherwise the request was to share a connection that was lost as it was handed over.
        return cause::<ConnectFailed>(error).is_none();
    }
    if let Some(error) = cause::<h2::Error>(error) {
        let is_refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // h2 fails streams with the peer's GOAWAY only where they are above its last id.
        let is_unprocessed = error.is_remote() && (is_refused || error.is_go_away());
        return is_unprocessed && error.reason() != Some(Reason::HTTP_1_1_REQUIRED);
    }
    is_lost && !cause::<hyper::Error>(error).is_some_and(|cause| cause.is_user() || cause.is_parse())
}

/// The first error of this type: `error`, or one of its causes.
pub(super) fn cause<'e, E: StdError + 'static>(error: &'e (dyn StdError + 'static)) -> Option<&'e E> {
    std::iter::successors(Some(error), |error: &&'e (dyn StdError + 'static)| (*error).source())
        .find_map(|error| error.downcast_ref())
}
