//! Sends requests over hyper-util's client, and sends them again where that is safe.
//!
//! A request is sent again, on a new connection, where HTTP/2 proves that it was not processed (RFC 9113 §8.7), and where a
//! connection that it did not have to itself from the start ends before any byte of an answer. Only requests that are
//! idempotent and have no body (RFC 9110 §9.2.2) come here as [`Outgoing::Repeatable`]. Such a loss says nothing about the
//! endpoint's health: neither the breaker nor the retry budget hears of it.

use std::error::Error as StdError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use h2::Reason;
use http::{Extensions, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::client::legacy::connect::{CaptureConnection, Connected, capture_connection};
use hyper_util::client::legacy::{Builder, Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use prometheus::IntCounter;
use tokio::time::Instant;

use super::connector::{ConnectFailed, ConnectionInfo, Connector};
use crate::message::body::{Body, whole};

/// Idle connections kept.
const POOL_MOST: usize = 1000;
/// Headers of an answer, and bytes of its head, beyond which it is none; over HTTP/2 the bytes alone count.
const HEADERS: usize = 100;
const HEADER_BYTES: u32 = 64 << 10;
/// Bytes that the endpoint may send ahead, over HTTP/2: for one call, and for all.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 4 << 20;
/// Answers over HTTP/2 that may be broken before their connection is given up.
const STREAM_ERRORS: usize = 100;
/// An HTTP/2 connection on which requests wait and nothing comes is pinged after this long, ...
const PING: Duration = Duration::from_secs(2);
/// ... and closed where the ping is not answered within this long. An HTTP/2 stack answers pings, however busy the application
/// behind it is.
const PONG: Duration = Duration::from_secs(3);
/// How often one request may be sent again.
const RESENDS: usize = 2;

/// A client of the endpoint: a pool of connections, and a way around it.
pub(super) struct HttpClient {
    builder: Builder,
    connector: Connector,
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

/// Why there is no answer's head.
pub(super) struct SendError {
    pub(super) error: ClientError,
    /// The number of the connection that was lost, if one was.
    pub(super) lost: Option<u64>,
    /// The endpoint asks for HTTP/1.1 (RFC 9113 §7, `HTTP_1_1_REQUIRED`).
    pub(super) wants_http1: bool,
}

/// Where one request is. Outlives the future that sends it.
pub(super) struct Progress {
    began: Instant,
    dispatch: Mutex<Option<Dispatch>>,
}

/// A request on its connection.
struct Dispatch {
    sent: Instant,
    captured: CaptureConnection,
    info: ConnectionInfo,
    bytes_before: u64,
}

impl Default for Progress {
    fn default() -> Self {
        Self { began: Instant::now(), dispatch: Mutex::default() }
    }
}

impl Progress {
    /// How long it has been since the request was to be sent first.
    pub(super) fn waited(&self) -> Duration {
        self.began.elapsed()
    }

    /// When the request was last handed to a connection.
    pub(super) fn sent(&self) -> Option<Instant> {
        self.dispatch().as_ref().map(|dispatch| dispatch.sent)
    }

    /// The number of its connection.
    pub(super) fn connection(&self) -> Option<u64> {
        self.dispatch().as_ref().map(|dispatch| dispatch.info.number())
    }

    /// Gives the request up because its deadline has passed. A connection over which no byte has come since it was sent takes
    /// no new ones.
    pub(super) fn give_up(&self) {
        if let Some(dispatch) = &*self.dispatch()
            && dispatch.is_silent()
        {
            dispatch.retire();
        }
    }

    fn dispatch(&self) -> MutexGuard<'_, Option<Dispatch>> {
        self.dispatch.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Dispatch {
    /// `None` while there is no connection.
    fn new(captured: &CaptureConnection) -> Option<Self> {
        let info = info(captured.connection_metadata().as_ref()?)?;
        info.add_request();
        let bytes_before = info.bytes_read();
        Some(Self { sent: Instant::now(), captured: captured.clone(), info, bytes_before })
    }

    /// Whether the connection is not this request's alone: it was there before, when the next one was to be number `next`, or
    /// others have used it since. Then another request, or time, may be the reason for its loss.
    fn is_reused(&self, next: u64) -> bool {
        self.info.number() < next || self.info.requests() > 1
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

fn info(connected: &Connected) -> Option<ConnectionInfo> {
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    extras.remove()
}

impl HttpClient {
    /// Connects to nothing yet. `resends` counts requests that are sent again.
    pub(super) fn new(connector: Connector, pool_idle: Duration, resends: IntCounter) -> Self {
        let mut builder = Client::builder(TokioExecutor::new());
        builder
            .pool_timer(TokioTimer::new())
            .timer(TokioTimer::new())
            .pool_idle_timeout(pool_idle)
            .pool_max_idle_per_host(POOL_MOST)
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
        Self { builder, connector, pooled, unpooled, resends }
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
        progress: &Progress,
    ) -> Result<Response<Incoming>, SendError> {
        let mut attempt = 0;
        let mut pooled = !new_connection;
        loop {
            let (request, again) = match outgoing {
                Outgoing::Repeatable(request) => (request.clone().map(whole), Some(request)),
                Outgoing::Once(request) => (request, None),
            };
            let opened_before = self.connector.next_number();
            let result = self.send_once(request, pooled, progress).await;
            let dispatch = progress.dispatch();
            if let (Err(_), Some(dispatch)) = (&result, &*dispatch) {
                dispatch.info.failed();
            }
            let reused = dispatch.as_ref().is_some_and(|dispatch| dispatch.is_reused(opened_before));
            // Over HTTP/2 bytes may have come that are another request's.
            let no_answer = dispatch.as_ref().is_some_and(|dispatch| dispatch.is_silent() || dispatch.is_http2());
            let safe = match &result {
                // RFC 9110 §15.5.9: said on an idle connection, just as the request left.
                Ok(response) => {
                    reused && response.status() == StatusCode::REQUEST_TIMEOUT && response.version() < Version::HTTP_2
                }
                Err(error) => may_send_again(error, reused && no_answer),
            };
            match again {
                Some(request) if safe && attempt < RESENDS => outgoing = Outgoing::Repeatable(request),
                _ => {
                    let connection = dispatch.as_ref().map(|dispatch| dispatch.info.number());
                    return result.map_err(|error| SendError::new(error, connection));
                }
            }
            // The pool no longer has a retired HTTP/2 connection, and what it has instead is shared: a connection for each
            // request that was refused would be many at once. Over HTTP/1.1 it may have others that are as dead.
            pooled = attempt == 0 && dispatch.as_ref().is_some_and(Dispatch::is_http2);
            dispatch.as_ref().inspect(|dispatch| dispatch.retire());
            drop(dispatch);
            self.resends.inc();
            attempt += 1;
        }
    }

    async fn send_once(
        &self,
        mut request: Request<Body>,
        pooled: bool,
        progress: &Progress,
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
        if let Some(dispatch) = &dispatch
            && dispatch.info.is_outdated()
        {
            dispatch.retire();
        }
        *progress.dispatch() = dispatch;
        match early {
            Some(result) => result,
            None => response.await,
        }
    }
}

impl SendError {
    fn new(error: ClientError, connection: Option<u64>) -> Self {
        let stream = http2_error(&error);
        let wants_http1 = stream.and_then(h2::Error::reason) == Some(Reason::HTTP_1_1_REQUIRED);
        let lost = connection.filter(|_| !stream.is_some_and(h2::Error::is_reset));
        Self { error, lost, wants_http1 }
    }
}

/// Whether a repeatable request that has no answer may be sent again: HTTP/2 says that it was not processed, or the connection was
/// lost (`is_lost`) before any byte of an answer.
fn may_send_again(error: &ClientError, is_lost: bool) -> bool {
    if error.is_connect() {
        // Else a connection that others were making, or had made, was given up just as it was to be shared.
        return !causes(error).any(|cause| cause.is::<ConnectFailed>());
    }
    if let Some(error) = http2_error(error) {
        let refused = error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM);
        // h2 fails streams with the peer's GOAWAY only where they are above its last id.
        let unprocessed = error.is_remote() && (refused || error.is_go_away());
        return unprocessed && error.reason() != Some(Reason::HTTP_1_1_REQUIRED);
    }
    let cause = causes(error).find_map(|cause| cause.downcast_ref::<hyper::Error>());
    is_lost && !cause.is_some_and(|cause| cause.is_user() || cause.is_parse())
}

fn http2_error(error: &ClientError) -> Option<&h2::Error> {
    causes(error).find_map(|cause| cause.downcast_ref())
}

/// Whether an answer broke off because its HTTP/2 stream was reset: its connection goes on.
pub(super) fn is_stream_reset(error: &(dyn StdError + 'static)) -> bool {
    chain_of(error).any(|cause| cause.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_reset))
}

/// An error and its causes.
fn chain_of<'e>(error: &'e (dyn StdError + 'static)) -> impl Iterator<Item = &'e (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |cause: &&'e (dyn StdError + 'static)| (*cause).source())
}

fn causes(error: &ClientError) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    error.source().into_iter().flat_map(chain_of)
}
