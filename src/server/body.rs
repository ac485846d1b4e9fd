//! Bodies that tell when a request is over: their connection, and who wants to know how an answer ended.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::streams::StreamProgress;
use super::timeouts::InService;
use crate::message::body::{Body, BodyError};
use crate::message::ending::{Abort, BodyEnd, OnEnd};

/// The most that a stream of HTTP/2 is given to send at a time, since hyper keeps what it has until there is room: a frame's
/// worth (RFC 9113 §4.2).
const CHUNK: usize = 16 << 10;

/// A request's body.
pub struct RequestBody {
    body: Incoming,
    /// On HTTP/1, until the end is read.
    unread: Option<InService>,
}

impl RequestBody {
    pub(super) fn new(body: Incoming, is_http1: bool, in_service: &InService) -> Self {
        let is_chunked = body.size_hint().exact().is_none();
        let unread = (is_http1 && !body.is_end_stream()).then(|| in_service.body(is_chunked));
        Self { body, unread }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<hyper::Result<Frame<Bytes>>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let is_over = match &frame {
            Some(Ok(frame)) => frame.is_data() && self.body.is_end_stream(),
            Some(Err(_)) => false,
            None => true,
        };
        if matches!(&frame, Some(Ok(frame)) if frame.is_trailers()) {
            self.unread = None;
        } else if is_over && let Some(unread) = self.unread.take() {
            unread.body_ended();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body. Its request is in service until it is handed over to hyper, or dropped.
pub(super) struct ResponseBody {
    body: Body,
    in_service: InService,
    /// On HTTP/2: of its stream.
    progress: Option<Arc<StreamProgress>>,
    /// On HTTP/2: what hyper is not given yet.
    rest: Bytes,
    /// Until its end was told.
    on_end: Option<OnEnd>,
    /// Bytes that hyper was given.
    given: u64,
}

impl ResponseBody {
    /// Must be called in the task that sends it.
    pub(super) fn new(mut body: Body, in_service: InService) -> Self {
        let on_end = body.take_on_end();
        Self { body, in_service, progress: StreamProgress::current(), rest: Bytes::new(), on_end, given: 0 }
    }

    /// The next frame: on HTTP/2 of a chunk at most.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let Some(progress) = &self.progress else { return Pin::new(&mut self.body).poll_frame(cx) };
        if self.rest.is_empty() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(cx) else {
                progress.waits_for_body();
                return Poll::Pending;
            };
            progress.gave();
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => self.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        } else {
            progress.gave();
        }
        let chunk = self.rest.split_to(self.rest.len().min(CHUNK));
        Poll::Ready(Some(Ok(Frame::data(chunk))))
    }

    fn end(&mut self, aborted: Option<Abort>) {
        if let Some(on_end) = self.on_end.take() {
            on_end(BodyEnd { bytes: self.given, aborted });
        }
    }
}

impl Drop for ResponseBody {
    /// hyper drops a body when it needs no more of it, or can send no more.
    fn drop(&mut self) {
        if self.on_end.is_none() {
            return;
        }
        let is_stalled = self.progress.as_ref().is_some_and(|progress| progress.is_stalled());
        let by = if is_stalled { Abort::ClientTimeout } else { self.in_service.cut_off().by() };
        let aborted = (!self.is_end_stream()).then_some(by);
        self.end(aborted);
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let frame = ready!(self.poll_chunk(cx));
        match &frame {
            Some(Ok(frame)) => match frame.data_ref() {
                Some(data) => self.given += data.len() as u64,
                // Trailers are the last frame.
                None => self.end(None),
            },
            Some(Err(BodyError::Ended(_))) => self.end(Some(Abort::EndpointTimeout)),
            Some(Err(_)) => self.end(Some(Abort::Endpoint)),
            None => self.end(None),
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // hyper asks before the first frame; later on, anything may be left.
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}
