//! The simulated endpoint: as the public API reference has it, with options for delay, faults and link life. It has one batch API,
//! Huawei's unless the options name another ([`shapes`]).
//!
//! `sidelink origin` runs it alone, the demonstration runs it inside, and the tests drive it in-process: it records
//! calls, delays them until a test lets them go on, and sends scripted replies.
//!
//! It accepts any token, with an [`iam`] those that live there; signatures are verified. It keeps no uploads, and where the reference is
//! silent (the order of items, unknown ids) an option decides. Its batch route is in `batch`, all else in `other_routes`.

mod batch;
mod connections;
mod gate;
pub mod iam;
pub mod interface;
mod links;
mod options;
mod other_routes;
mod request;
pub mod shapes;

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::{Mutex, MutexGuard};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream};
use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::request::Form;
use crate::clock::Clock;
use crate::message::body::{Body, stream as streamed, whole};
use crate::message::headers::REQUEST_ID;
use connections::{OriginConnection, accept, receive};
use gate::Gate;

pub use connections::Loss;
pub use links::{LinkSigner, link_is_for};
pub use options::{Options, UnknownIds, shape};

/// 9999-12-31T23:59:59Z, the last date that HTTP can write.
const LAST_DATE: u64 = 253_402_300_799;
/// The bytes that a truncated reply announces and does not send.
const CUT_OFF: usize = 64;

/// A call on the batch route, as it arrived.
#[derive(Clone, Debug)]
pub struct RecordedCall {
    /// Its method.
    pub method: Method,
    /// Path and query, raw.
    pub target: String,
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// The ids it asked for, in that order; none where it could not be read.
    pub ids: Vec<String>,
    /// The group it named.
    pub group: Option<String>,
    /// Its form, where it could be read.
    pub form: Option<Form>,
}

/// A reply to one call on the batch route, sent as it is (hyper adds a `Date` and a missing length).
#[derive(Clone, Debug)]
pub enum ScriptedReply {
    /// This status, these headers and this body. The headers give its length rightly or not at all.
    Whole(StatusCode, HeaderMap, Bytes),
    /// A 200 that announces more than this body, and breaks off after it.
    Truncated(Bytes),
    /// The connection (on HTTP/2: the stream) ends with no answer.
    Reset,
    /// Nothing, until the client gives up.
    Hang,
}

impl ScriptedReply {
    /// A reply of JSON text; an invalid `status` becomes a 200.
    pub fn json(status: u16, body: impl Into<Bytes>) -> Self {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/json"))]);
        Self::Whole(StatusCode::from_u16(status).unwrap_or(StatusCode::OK), headers, body.into())
    }

    /// Sends it.
    ///
    /// # Errors
    /// To end the connection.
    async fn play(self, stop: &CancellationToken) -> io::Result<Response<Body>> {
        match self {
            Self::Whole(status, headers, body) => {
                let mut response = Response::new(whole(body));
                *response.status_mut() = status;
                *response.headers_mut() = headers;
                Ok(response)
            }
            Self::Truncated(body) => {
                let announced = body.len() + CUT_OFF;
                let cut = stream::once(async {
                    // The bytes so far are written out first.
                    tokio::task::yield_now().await;
                    Err(io::Error::other("cut off"))
                });
                let frames = stream::iter([Ok(Frame::data(body))]).chain(cut);
                let mut response = Response::new(streamed(StreamBody::new(frames)));
                response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
                response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(announced));
                Ok(response)
            }
            Self::Reset => Err(io::Error::other("reset")),
            Self::Hang => {
                stop.cancelled().await;
                Err(io::Error::other("stopped"))
            }
        }
    }
}

/// A running simulated endpoint. Clones share it; it runs until [`Origin::stop`], or as long as its runtime.
#[derive(Clone)]
pub struct Origin(Arc<Inner>);

struct Inner {
    address: SocketAddr,
    clock: Clock,
    state: Mutex<OriginState>,
    /// Of calls on the batch route.
    gate: Gate,
    stop: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Default)]
struct OriginState {
    options: Options,
    calls: Vec<RecordedCall>,
    script: VecDeque<ScriptedReply>,
    ids_asked: usize,
    /// Requests so far.
    serial: usize,
    /// Open ones, by age, and some that have ended.
    connections: Vec<Arc<OriginConnection>>,
    connections_made: usize,
}

struct Exchange {
    origin: Origin,
    parts: Parts,
    /// As of its arrival.
    options: Options,
    serial: usize,
    /// The endpoint's clock, in Unix seconds.
    now: u64,
}

impl Origin {
    /// Binds and begins to serve.
    ///
    /// # Errors
    /// If the address cannot be bound.
    pub async fn start(options: Options) -> io::Result<Self> {
        let listener = TcpListener::bind(options.address).await?;
        let origin = Self::new(listener.local_addr()?, options, Clock::system());
        let accepting = origin.clone();
        let stop = origin.0.stop.clone();
        origin.0.tasks.spawn(accept(listener, stop, move |stream| accepting.spawn(stream)));
        Ok(origin)
    }

    /// Serves the connections that come through `connections`, made in memory, on a clock of the caller's. No socket
    /// listens: [`Origin::address`] is what the options say.
    pub fn in_memory(options: Options, clock: Clock, connections: UnboundedReceiver<DuplexStream>) -> Self {
        let origin = Self::new(options.address, options, clock);
        let accepting = origin.clone();
        let stop = origin.0.stop.clone();
        tokio::spawn(receive(connections, stop, move |stream| accepting.spawn(stream)));
        origin
    }

    fn new(address: SocketAddr, options: Options, clock: Clock) -> Self {
        Self(Arc::new(Inner {
            address,
            clock,
            state: Mutex::new(OriginState { options, ..OriginState::default() }),
            gate: Gate::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        }))
    }

    fn spawn(&self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let origin = self.clone();
        self.0.tasks.spawn(async move { origin.serve_connection(stream).await });
    }

    /// Serves one connection over any stream, HTTP/1.1 or HTTP/2, until either side ends it or [`Origin::stop`].
    pub async fn serve_connection(&self, io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let _tracked = self.0.tasks.token();
        let connection = self.add_connection();
        let _closes = connection.is_closed.clone().drop_guard();
        let service = service_fn(|request: Request<Incoming>| {
            let (origin, connection) = (self.clone(), Arc::clone(&connection));
            // An error resets the connection.
            async move {
                if !connection.serves(origin.state().options.requests_per_connection) {
                    return Err(io::Error::other("lost"));
                }
                origin.answer(request).await
            }
        });
        let server = auto::Builder::new(TokioExecutor::new());
        let mut serving = pin!(server.serve_connection(TokioIo::new(io), service));
        loop {
            tokio::select! {
                biased;
                () = self.0.stop.cancelled() => return,
                () = connection.is_closed.cancelled() => return,
                () = connection.is_leaving.notified() => serving.as_mut().graceful_shutdown(),
                // However a connection ends, it is the client's to judge.
                _ = serving.as_mut() => return,
            }
        }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// To end the connection: the request's body breaks off, a reset is scripted, or the endpoint stops.
    async fn answer(self, request: Request<Incoming>) -> io::Result<Response<Body>> {
        let (parts, body) = request.into_parts();
        let (options, serial) = {
            let mut state = self.state();
            state.serial += 1;
            (state.options.clone(), state.serial)
        };
        let now = (self.0.clock.now().unix_millis() / 1000).saturating_add_signed(options.clock_offset);
        let exchange = Exchange { origin: self, parts, options, serial, now };
        let (method, path) = (&exchange.parts.method, exchange.parts.uri.path());
        let is_batch = match &exchange.options.api.simulated {
            None => method == Method::GET && path == interface::PATH,
            Some(api) => api.is_for(method, path),
        };
        if is_batch { batch::answer(exchange, body).await } else { other_routes::answer(&exchange, body).await }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.0.address
    }

    fn state(&self) -> MutexGuard<'_, OriginState> {
        self.0.state.lock()
    }

    /// Changes its behaviour from the next call on.
    pub fn update(&self, change: impl FnOnce(&mut Options)) {
        change(&mut self.state().options);
    }

    /// The recorded calls on the batch route, in the order of their arrival; empty unless [`Options::record`].
    pub fn calls(&self) -> Vec<RecordedCall> {
        self.state().calls.clone()
    }

    /// Forgets the recorded calls. The counts go on.
    pub fn forget_calls(&self) {
        self.state().calls.clear();
    }

    /// Calls on the batch route since the start, recorded or not.
    pub fn batch_calls(&self) -> usize {
        self.0.gate.count()
    }

    /// Ids that those calls asked for in all; a call that could not be read asked for none.
    pub fn ids_asked(&self) -> usize {
        self.state().ids_asked
    }

    /// Delays calls on the batch route after they have arrived, until [`Origin::release`].
    pub fn hold(&self) {
        self.0.gate.set_open(false);
    }

    /// Lets calls go on.
    pub fn release(&self) {
        self.0.gate.set_open(true);
    }

    /// Waits until `count` calls on the batch route have arrived since the start.
    pub async fn arrived(&self, count: usize) {
        self.0.gate.arrived(count).await;
    }

    /// Has the next call that arrives on the batch route answered by `reply`, in place of its own answer; several
    /// replies serve as many calls, in their order.
    pub fn script(&self, reply: ScriptedReply) {
        self.state().script.push_back(reply);
    }

    /// Closes the listener and every connection, in the middle of answers, and returns when they are gone: the endpoint is down. To
    /// have it up again, start another one at the same address.
    pub async fn stop(&self) {
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

impl Exchange {
    /// An error in the API's shape.
    pub(super) fn error(&self, status: u16, code: &str, message: &str) -> Response<Body> {
        let (body, media_type) = match &self.options.api.simulated {
            None => {
                let body = json!({"error_code": code, "error_msg": message, "request_id": self.request_id()});
                (body, "application/json")
            }
            Some(api) => ((api.error)(status, message, &self.request_id()), api.media_type),
        };
        let mut response = self.stamped(json_answer(status, &body));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(media_type));
        if status == 429 {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response.map(whole)
    }

    /// Adds what every answer has: a date, by the simulated clock, and a request id.
    pub(super) fn stamped<B>(&self, mut response: Response<B>) -> Response<B> {
        // Beyond it, formatting panics.
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.now.min(LAST_DATE)));
        for (name, value) in [(DATE, date), (REQUEST_ID, self.request_id())] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    fn request_id(&self) -> String {
        format!("{:032x}", self.serial)
    }
}

/// A JSON answer; an invalid `status` becomes a 500.
pub(super) fn json_answer(status: u16, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
