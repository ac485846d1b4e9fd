//! `Expect: 100-continue` (RFC 9110 §10.1.1): a body waits until the endpoint asks for it.
//!
//! Over HTTP/1.1, hyper tells a client to continue when its body is first polled; over HTTP/2 it cannot. So the body of a client
//! that expects this is not polled before the endpoint says 100, or has been silent for [`PATIENCE`]. An endpoint that
//! answers first does not want the body: it is dropped unread, and the client gets the answer without having uploaded. The
//! connection to the endpoint then ends with the answer, since an announced body never comes on it.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http::header::EXPECT;
use http::{HeaderValue, Request, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use parking_lot::Mutex;
use pin_project_lite::pin_project;
use tokio::sync::{oneshot, watch};
use tokio::time::{Instant, Sleep};

use crate::message::body::{Body, BodyError, stream};
use crate::message::headers::expects_continue;

/// How long the body waits for an endpoint that may not know of expectations.
const PATIENCE: Duration = Duration::from_secs(1);

/// One request's expectation.
#[derive(Clone)]
pub(super) struct Expectation {
    /// The waiting body, and the channel to the task that sends it. The side that takes them decides whether the body is sent.
    waiting: Arc<Mutex<Option<(Body, Unsent)>>>,
    /// Told when the body begins to move.
    progress: Arc<watch::Sender<Instant>>,
}

/// A body that was announced to the endpoint and not sent. Dropping it ends the connection.
pub(super) type Unsent = oneshot::Sender<Body>;

/// Whether the client of `request` waits for a 100. The header is removed where the expectation is void: the body has been
/// read, there is none, or the client speaks HTTP/1.0.
pub(super) fn is_expected(request: &mut Request<Body>) -> bool {
    let is_read = request.body().is_whole() || request.body().is_end_stream();
    if !is_read && expects_continue(request.version(), request.headers(), request.body()) {
        return true;
    }
    let is_continue = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
    if request.headers().get_all(EXPECT).iter().all(is_continue) {
        request.headers_mut().remove(EXPECT);
    }
    false
}

impl Expectation {
    /// Delays `request`'s body until the endpoint says 100, for `most` at most.
    pub(super) fn delay(
        request: Request<Body>,
        progress: &Arc<watch::Sender<Instant>>,
        most: Duration,
    ) -> (Request<Body>, Self) {
        let (head, body) = request.into_parts();
        let (sender, receiver) = oneshot::channel();
        let (patience, size_hint) = (PATIENCE.min(most), body.size_hint());
        let expectation = Self { waiting: Arc::new(Mutex::new(Some((body, sender)))), progress: Arc::clone(progress) };
        let (this, sleep) = (expectation.clone(), tokio::time::sleep(patience));
        let delayed =
            DelayedBody { body: None, receiver, expectation: this, size_hint, sleep, patience, is_asked: false };
        let mut request = Request::from_parts(head, stream(delayed));
        let this = expectation.clone();
        hyper::ext::on_informational(&mut request, move |interim| {
            if interim.status() == StatusCode::CONTINUE {
                this.send();
            }
        });
        (request, expectation)
    }

    /// Sends the body on if it still waits; returns whether it did.
    fn send(&self) -> bool {
        let Some((body, sender)) = self.waiting.lock().take() else { return false };
        self.progress.send_replace(Instant::now());
        sender.send(body).is_ok()
    }

    /// The endpoint has answered. A body that still waits is dropped; the returned value must live until the end of the
    /// answer.
    pub(super) fn answered(&self) -> Option<Unsent> {
        self.waiting.lock().take().map(|(_, sender)| sender)
    }
}

pin_project! {
    struct DelayedBody {
        body: Option<Body>,
        // Yields the body once it is to be sent.
        receiver: oneshot::Receiver<Body>,
        expectation: Expectation,
        size_hint: SizeHint,
        #[pin]
        sleep: Sleep,
        patience: Duration,
        // Whether it was polled, that is, the request's head has been sent.
        is_asked: bool,
    }
}

impl http_body::Body for DelayedBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut this = self.project();
        loop {
            if let Some(body) = this.body {
                return Pin::new(body).poll_frame(cx);
            }
            match Pin::new(&mut *this.receiver).poll(cx) {
                Poll::Ready(Ok(body)) => *this.body = Some(body),
                Poll::Ready(Err(_)) => {
                    let error = BodyError::Ended("the endpoint has answered without the body");
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Pending => {
                    if !std::mem::replace(this.is_asked, true) {
                        this.sleep.as_mut().reset(Instant::now() + *this.patience);
                    }
                    ready!(this.sleep.as_mut().poll(cx));
                    if !this.expectation.send() {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_some_and(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| self.size_hint, Body::size_hint)
    }
}
