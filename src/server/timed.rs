//! A connection's clock.
//!
//! hyper's own header timeout also runs on an idle connection, so it cannot tell a slow sender from a quiet client. Here
//! a connection is in one of three phases:
//! - *idle*: no byte since the last answer; may stay so for `idle_timeout`;
//! - *in a head*: its first byte is here, its request is not; must be over within `header_timeout`;
//! - *in service*: a request is being answered; reading has no limit (the handler's own limits hold), and writing must
//!   move within `idle_timeout`.
//!
//! HTTP/2 interleaves, so only idle and in service are told apart there.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Version;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::Limits;
use crate::clock::millis;

/// What a connection's service tells its stream.
pub(super) struct Phase {
    began: Instant,
    in_service: AtomicUsize,
    /// Requests so far.
    requests: AtomicUsize,
    /// Milliseconds from `began` to the end of the last answer.
    ended: AtomicU64,
    http2: AtomicBool,
}

impl Phase {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            in_service: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
            http2: AtomicBool::new(false),
        }
    }

    /// A request is in service until the ticket is dropped.
    pub(super) fn enter(self: &Arc<Self>, version: Version) -> InService {
        if version == Version::HTTP_2 {
            self.http2.store(true, Ordering::Relaxed);
        }
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_service.fetch_add(1, Ordering::Relaxed);
        InService(Arc::clone(self))
    }

    fn last_end(&self) -> Instant {
        self.began + Duration::from_millis(self.ended.load(Ordering::Relaxed))
    }
}

pub(super) struct InService(Arc<Phase>);

impl Drop for InService {
    fn drop(&mut self) {
        self.0.ended.store(millis(self.0.began.elapsed()), Ordering::Relaxed);
        self.0.in_service.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A timer that is set often and fires seldom: moved only when it has to be.
#[derive(Default)]
struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Whether `deadline` has passed; otherwise the task is woken by then.
    fn is_past(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if Instant::now() >= deadline {
            return true;
        }
        let sleep = self.0.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        // An earlier alarm rings, finds nothing due and is moved then: cheaper than moving it for each request.
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            sleep.as_mut().reset(deadline);
        }
        false
    }
}

/// A stream that ends with `TimedOut` when its phase lasts too long.
pub(super) struct Timed<IO> {
    io: IO,
    phase: Arc<Phase>,
    limits: Limits,
    last_byte: Instant,
    /// The first byte of a head, and how many requests there had been then.
    head: Option<(Instant, usize)>,
    reading: Alarm,
    /// Since when a write has been blocked.
    blocked: Option<Instant>,
    writing: Alarm,
}

impl<IO> Timed<IO> {
    pub(super) fn new(io: IO, phase: Arc<Phase>, limits: Limits) -> Self {
        let last_byte = phase.began;
        Self {
            io,
            phase,
            limits,
            last_byte,
            head: None,
            reading: Alarm::default(),
            blocked: None,
            writing: Alarm::default(),
        }
    }

    /// When reading must have brought something; `None` while a request is in service.
    fn read_deadline(&mut self) -> Option<Instant> {
        let requests = self.phase.requests.load(Ordering::Relaxed);
        if self.head.is_some_and(|(_, before)| before != requests) || self.phase.http2.load(Ordering::Relaxed) {
            self.head = None;
        }
        if self.phase.in_service.load(Ordering::Relaxed) > 0 {
            return None;
        }
        Some(match self.head {
            Some((began, _)) => began + self.limits.header_timeout,
            None => self.last_byte.max(self.phase.last_end()) + self.limits.idle_timeout,
        })
    }

    fn note_bytes(&mut self) {
        self.last_byte = Instant::now();
        if self.phase.in_service.load(Ordering::Relaxed) == 0 {
            let requests = self.phase.requests.load(Ordering::Relaxed);
            match self.head {
                Some((_, before)) if before == requests => {}
                _ => self.head = Some((self.last_byte, requests)),
            }
        }
    }

    /// Ends a write that has been blocked for too long.
    fn watch_write<T>(&mut self, wrote: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.blocked = None;
            return wrote;
        }
        let since = *self.blocked.get_or_insert_with(Instant::now);
        if self.writing.is_past(since + self.limits.idle_timeout, cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for Timed<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.io).poll_read(cx, buf) {
            if buf.filled().len() > before {
                this.note_bytes();
            }
            return Poll::Ready(read);
        }
        if let Some(deadline) = this.read_deadline()
            && this.reading.is_past(deadline, cx)
        {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<IO: AsyncWrite + Unpin> AsyncWrite for Timed<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.io).poll_write(cx, buf);
        this.watch_write(wrote, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.watch_write(wrote, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flushed = Pin::new(&mut this.io).poll_flush(cx);
        this.watch_write(flushed, cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}

pin_project! {
    /// A body whose request is in service until it is sent or given up.
    pub(super) struct Counted<B> {
        #[pin]
        body: B,
        in_service: InService,
    }
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, in_service: InService) -> Self {
        Self { body, in_service }
    }
}

impl<B: Body> Body for Counted<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<B::Data>, B::Error>>> {
        self.project().body.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
