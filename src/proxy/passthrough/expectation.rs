//! `Expect: 100-continue` (RFC 9110 §10.1.1): a body waits until the endpoint asks for it.
//!
//! Over HTTP/1.1, hyper tells a client to continue when its body is first polled; over HTTP/2 it cannot. So the body of a client
//! that expects this is not polled before the endpoint says 100, or has been silent for [`PATIENCE`]. An endpoint that
//! answers first does not want the body: it is dropped unread, and the client gets the answer without having uploaded. The
//! connection to the endpoint then ends with the answer, since an announced body never comes on it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use http::header::EXPECT;
use http::{HeaderValue, Request, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::message::body::{Body, BodyError, stream};
use crate::message::headers::expects_continue;

/// How long the body waits for an endpoint that may not know of expectations.
const PATIENCE: Duration = Duration::from_secs(1);

/// The endpoint has said nothing yet.
const HELD: u8 = 0;
/// The endpoint has said 100, or has been silent for too long: the body is sent.
const WANTED: u8 = 1;
/// The endpoint has answered without the body.
const UNWANTED: u8 = 2;
/// That answer has ended.
const OVER: u8 = 3;

/// One request's expectation.
#[derive(Clone)]
pub(super) struct Expectation(Arc<ExpectationState>);

struct ExpectationState {
    phase: AtomicU8,
    /// The task that sends the body.
    sender: AtomicWaker,
    /// Told when the body begins to move.
    progress: Arc<watch::Sender<Instant>>,
}

impl Expectation {
    /// Takes the expectation of a request whose client waits for a 100. The header is removed where the expectation is void: the
    /// body has been read, there is none, or the client speaks HTTP/1.0.
    pub(super) fn take(request: &mut Request<Body>, progress: &Arc<watch::Sender<Instant>>) -> Option<Self> {
        let is_read = matches!(request.body(), Body::Whole(_)) || request.body().is_end_stream();
        if !is_read && expects_continue(request) {
            let (phase, sender) = (AtomicU8::new(HELD), AtomicWaker::new());
            return Some(Self(Arc::new(ExpectationState { phase, sender, progress: Arc::clone(progress) })));
        }
        let is_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        if request.headers().get_all(EXPECT).iter().all(is_continue) {
            request.headers_mut().remove(EXPECT);
        }
        None
    }

    /// Delays `request`'s body until the endpoint says 100, for `most` at most.
    pub(super) fn delay(&self, request: Request<Body>, most: Duration) -> Request<Body> {
        let patience = PATIENCE.min(most);
        let mut request = request.map(|body| {
            let sleep = tokio::time::sleep(patience);
            stream(HeldBack { body: Some(body), state: Arc::clone(&self.0), sleep, patience, is_asked: false })
        });
        let state = Arc::clone(&self.0);
        hyper::ext::on_informational(&mut request, move |interim| {
            if interim.status() == StatusCode::CONTINUE {
                state.want();
            }
        });
        request
    }

    /// The endpoint has answered. A body that still waits is dropped; the returned value must live until the end of the
    /// answer.
    pub(super) fn answered(&self) -> Option<Unsent> {
        self.0.leave(HELD, UNWANTED).then(|| Unsent(Arc::clone(&self.0)))
    }
}

impl ExpectationState {
    fn want(&self) {
        if self.leave(HELD, WANTED) {
            self.progress.send_replace(Instant::now());
        }
    }

    /// Whether it went from `before` to `after`.
    fn leave(&self, before: u8, after: u8) -> bool {
        let left = self.phase.compare_exchange(before, after, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if left {
            self.sender.wake();
        }
        left
    }
}

/// A body that was announced to the endpoint and not sent. Dropping it ends the connection.
pub(super) struct Unsent(Arc<ExpectationState>);

impl Drop for Unsent {
    fn drop(&mut self) {
        self.0.leave(UNWANTED, OVER);
    }
}

pin_project! {
    struct HeldBack {
        // `None` once it is not wanted.
        body: Option<Body>,
        state: Arc<ExpectationState>,
        #[pin]
        sleep: Sleep,
        patience: Duration,
        // Whether it was polled, that is, the request's head has been sent.
        is_asked: bool,
    }
}

impl http_body::Body for HeldBack {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut this = self.project();
        // Registered before the phase is read, so that no change is missed.
        this.state.sender.register(cx.waker());
        loop {
            match (this.state.phase.load(Ordering::Acquire), this.body.as_mut()) {
                (WANTED, Some(body)) => return Pin::new(body).poll_frame(cx),
                (HELD, _) => {
                    if !std::mem::replace(this.is_asked, true) {
                        this.sleep.as_mut().reset(Instant::now() + *this.patience);
                    }
                    ready!(this.sleep.as_mut().poll(cx));
                    this.state.want();
                }
                (UNWANTED, _) => {
                    *this.body = None;
                    return Poll::Pending;
                }
                _ => return Poll::Ready(Some(Err(BodyError::Ended("the endpoint has answered without the body")))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(SizeHint::default, Body::size_hint)
    }
}
