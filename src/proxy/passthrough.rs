//! Streams requests of every other route to the endpoint, and answers back. A proxy must change some headers, Host among them,
//! which signatures cover: a Host that names the endpoint is left as it is; else the request is signed again (`resign`), if
//! its key is configured.

mod deletion;
mod expectation;
mod resign;

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Buf;
use http::header::{CONNECTION, HOST, MAX_FORWARDS, TRANSFER_ENCODING};
use http::uri::Authority;
use http::{HeaderValue, Request, Version};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use pin_project_lite::pin_project;
use tokio::sync::watch;
use tokio::time::{Instant, Sleep};

use crate::auth::Callers;
use crate::auth::signature::Keys;
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::error::{Error, NoAnswer};
use crate::limits::budget::{Budget, Reservation};
use crate::message::body::{BodyError, stream};
use crate::message::headers::{add_via, max_forwards, strip_hop_by_hop};
use crate::message::reply::Reply;
use crate::telemetry::metrics::{Metrics, Outcome};
use crate::telemetry::trace::{self, RequestSpan};
use crate::upstream::Upstream;

use deletion::Deletion;
use expectation::{Expectation, Unsent, is_expected};

/// The handler of every route but the batch route.
pub struct Passthrough {
    pub(crate) upstream: Arc<Upstream>,
    pub(crate) keys: Arc<Keys>,
    /// The callers of each batch API.
    pub(crate) callers: Box<[Arc<Callers>]>,
    pub(crate) cache: Arc<Cache>,
    /// Exchanges under way.
    pub(crate) exchanges: Budget,
    /// Bytes of the bodies that are read to be hashed, until the endpoint answers.
    pub(crate) signed_bodies: Budget,
    pub(crate) config: Arc<Config>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) clock: Clock,
    /// Whether the log says already that a key is unknown.
    pub(crate) warned_of_key: AtomicBool,
}

impl Passthrough {
    /// Sends `request` to the endpoint with its raw path and query. Rewrites Host unless it names the endpoint, removes
    /// hop-by-hop headers, adds `Via`.
    pub async fn forward<B>(self: &Arc<Self>, request: Request<B>, trace: &RequestSpan) -> Reply
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let reservation = match self.exchanges.one() {
            Ok(reservation) => reservation,
            Err(error) => return Reply::refuse(error, request),
        };
        let deletions = self.deletions(&request);
        if deletions.is_empty() {
            return self.exchange(request, deletions, reservation, trace).await;
        }
        // Runs to its end, also when the client leaves: a deleted id must be purged.
        let (this, trace) = (Arc::clone(self), trace.clone());
        let exchange = tokio::spawn(async move { this.exchange(request, deletions, reservation, &trace).await });
        exchange.await.unwrap_or_else(|_| Reply::error(Error::NoAnswer(NoAnswer::Lost)))
    }

    /// One request and its answer, which keeps the `reservation` to its end; `deletions` are what the request deletes.
    async fn exchange<B>(
        &self,
        request: Request<B>,
        deletions: Vec<Deletion>,
        reservation: Reservation,
        trace: &RequestSpan,
    ) -> Reply
    where
        B: http_body::Body<Data = bytes::Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let (version, idle_timeout) = (request.version(), self.config.upstream.idle_timeout);
        let endpoint_host = self.host_of_endpoint(&request);
        let (mut request, proof) = if endpoint_host.is_some() {
            (request.map(stream), None)
        } else {
            match self.verify_signature(request).await {
                Ok(verified) => verified,
                Err(error) => return Reply::error(error),
            }
        };
        request.headers_mut().remove(HOST);
        if let Some(host) = endpoint_host {
            request.headers_mut().insert(HOST, host);
        }
        strip_hop_by_hop(request.headers_mut());
        let span = trace.exchange(self.upstream.endpoint(), request.method());
        let context = span.context().unwrap_or_else(|| trace.context(request.headers()));
        trace::pass_on(request.headers_mut(), &context);
        add_via(request.headers_mut(), version);
        if let Some(most) = max_forwards(request.method(), request.headers()) {
            request.headers_mut().insert(MAX_FORWARDS, HeaderValue::from(most.saturating_sub(1)));
        }
        let (progress, mut seen) = watch::channel(Instant::now());
        let progress = Arc::new(progress);
        let is_continue_expected = is_expected(&mut request);

        if !request.body().is_end_stream() && request.body().size_hint().exact().is_none() {
            // hyper sends a GET of unknown length without a body unless told so. (HTTP/2 drops the header.)
            request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }

        if let Some(proof) = &proof {
            self.sign_again(&mut request, proof);
        }

        let broken_off = Arc::new(AtomicBool::new(false));
        let request = request.map(|body| {
            if body.is_end_stream() {
                return crate::message::body::whole(bytes::Bytes::new());
            }
            let broken_off = Arc::clone(&broken_off);
            stream(IdleTimeoutBody::new(body, idle_timeout, Arc::clone(&progress), None).map_err(move |error| {
                broken_off.store(true, Ordering::Relaxed);
                error
            }))
        });
        let (request, expectation) = if is_continue_expected {
            // Shorter than the timeout that ends the exchange.
            let (request, expectation) = Expectation::delay(request, &progress, idle_timeout / 2);
            (request, Some(expectation))
        } else {
            (request, None)
        };
        let asked = Instant::now();
        let answer = self.upstream.forward(request);
        tokio::pin!(answer);
        // The endpoint need not answer while the upload makes progress.
        let answer = loop {
            let last = *seen.borrow_and_update();
            tokio::select! {
                answer = &mut answer => break answer,
                () = tokio::time::sleep_until(last + idle_timeout) => {
                    if *seen.borrow() == last {
                        break Err(Error::Deadline);
                    }
                }
            }
        };
        let waited = asked.elapsed();
        let unsent = expectation.and_then(|expectation| expectation.answered());
        let (mut head, body) = match answer {
            Ok(response) => {
                span.end(Some(response.status()), "ok", 0);
                response.into_parts()
            }
            // The client's fault, although the connection to the endpoint ends.
            Err(_) if broken_off.load(Ordering::Relaxed) => {
                span.end(None, "client-broke-off", 0);
                return Reply::error(Error::Malformed("the request's body broke off")).after(waited);
            }
            Err(error) => {
                span.end(None, if error == Error::Deadline { "deadline" } else { "no_answer" }, 0);
                return Reply::error(error).after(waited);
            }
        };
        let body = self.purge_deleted(&deletions, head.status, body).await;
        strip_hop_by_hop(&mut head.headers);
        add_via(&mut head.headers, head.version);
        head.version = Version::HTTP_11;
        if unsent.is_some() && version <= Version::HTTP_11 {
            // The client may send its body all the same, and nobody reads it (RFC 9110 §10.1.1).
            head.headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        let body = stream(IdleTimeoutBody::new(body, idle_timeout, progress, Some((reservation, unsent))));
        Reply::new(http::Response::from_parts(head, body), Outcome::Bypass).after(waited)
    }

    /// The request's Host, byte for byte, if it names the endpoint: a signature may cover it.
    fn host_of_endpoint<B>(&self, request: &Request<B>) -> Option<HeaderValue> {
        let host = match request.headers().get(HOST) {
            Some(host) => host.clone(),
            // HTTP/2 has an authority instead.
            None => HeaderValue::from_str(request.uri().authority()?.as_str()).ok()?,
        };
        let authority = Authority::try_from(host.as_bytes()).ok()?;
        self.upstream.is_endpoint(&authority).then_some(host)
    }
}

pin_project! {
    /// A body that fails after `idle` without a frame, and reports each frame as progress.
    struct IdleTimeoutBody<B> {
        #[pin]
        body: B,
        #[pin]
        timeout: Sleep,
        idle: Duration,
        // Time counts only while a frame is waited for: a slow reader on the other side is not silence of this side.
        waiting: bool,
        progress: Arc<watch::Sender<Instant>>,
        // Dropped at the body's end, which is the exchange's end.
        on_end: Option<(Reservation, Option<Unsent>)>,
    }
}

impl<B> IdleTimeoutBody<B> {
    fn new(
        body: B,
        idle: Duration,
        progress: Arc<watch::Sender<Instant>>,
        on_end: Option<(Reservation, Option<Unsent>)>,
    ) -> Self {
        Self { body, timeout: tokio::time::sleep(idle), idle, waiting: false, progress, on_end }
    }
}

impl<B> http_body::Body for IdleTimeoutBody<B>
where
    B: http_body::Body,
    B::Error: Into<BodyError>,
{
    type Data = B::Data;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, BodyError>>> {
        let mut this = self.project();
        if let Poll::Ready(frame) = this.body.poll_frame(cx) {
            // An empty DATA frame of HTTP/2 is no progress.
            if !matches!(&frame, Some(Ok(frame)) if frame.data_ref().is_some_and(|data| !data.has_remaining())) {
                *this.waiting = false;
                this.progress.send_replace(Instant::now());
            }
            return Poll::Ready(frame.map(|frame| frame.map_err(Into::into)));
        }
        if !std::mem::replace(this.waiting, true) {
            this.timeout.as_mut().reset(Instant::now() + *this.idle);
        }
        ready!(this.timeout.poll(cx));
        Poll::Ready(Some(Err(BodyError::Ended("nothing came for upstream.idle_timeout"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
