//! A connection's clock.
//!
//! hyper's own header timeout also runs on an idle connection, so it cannot tell a slow sender from a quiet client. Here
//! a connection is in one of three phases:
//! - *idle*: no byte either way since the last one, or since the last answer ended; may stay so for `idle_timeout`;
//! - *in a head*: its first byte is here, its request is not; must be over within `header_timeout`. A pipelined head that
//!   came in part with the request before it is timed from its next byte;
//! - *in service*: a request is being answered. While the handler works there is no limit (its own limits hold), but
//!   once it asks for more of the request's body, a byte of it must come within `idle_timeout`.
//!
//! Whatever the phase, a write that is blocked must move within `idle_timeout`.
//!
//! A connection that is closed while its client may still be sending is shut on our side alone, and then read for a while,
//! into nothing: closed at once, it would be reset, and the client might never see what it was told (RFC 9112 §9.6).
//!
//! HTTP/2 interleaves, so after its preface (which counts as a head) a connection may be in a head and in service at once.
//! Its bytes are no sign of life: they may be pings. What counts is an answer that ends, or moves (`frames`). A connection
//! that is idle for too long is told so first, by GOAWAY, and has a while to take leave.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use hyper::body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};

use super::Limits;
use super::frames::Frames;
use super::framing::Framing;
use super::streams::Flow;
use crate::clock::millis;
use crate::message::body::{DRAIN_BYTES, DRAIN_TIME};

/// How HTTP/2 with prior knowledge begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// How long an HTTP/2 connection that was told to take leave has for it, and for whatever is still being served.
const LEAVE: Duration = Duration::from_secs(5);
/// The most that a stream of HTTP/2 is given to send at a time, for what hyper has it keeps until there is room: a frame's
/// worth (RFC 9113 §4.2).
const PIECE: usize = 16 << 10;

/// What a connection's service tells its stream.
pub(super) struct Phase {
    began: Instant,
    in_service: AtomicUsize,
    /// Requests so far.
    requests: AtomicUsize,
    /// Milliseconds from `began` to the end of the last answer; on HTTP/1, to the last byte either way.
    ended: AtomicU64,
    http2: AtomicBool,
    /// The first bytes of a head have come, the rest has not (HTTP/1).
    in_head: AtomicBool,
    /// The listener is to stop.
    leaves: AtomicBool,
    /// The connection's task, which on HTTP/2 is another than that of the answer that ends.
    reader: AtomicWaker,
    /// An HTTP/2 connection has been idle for too long.
    outstayed: Notify,
}

impl Phase {
    pub(super) fn new() -> Self {
        Self {
            began: Instant::now(),
            in_service: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            ended: AtomicU64::new(0),
            http2: AtomicBool::new(false),
            in_head: AtomicBool::new(false),
            leaves: AtomicBool::new(false),
            reader: AtomicWaker::new(),
            outstayed: Notify::new(),
        }
    }

    /// A request is in service until the ticket is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> InService {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.in_head.store(false, Ordering::Relaxed);
        self.in_service.fetch_add(1, Ordering::Relaxed);
        InService(Arc::clone(self))
    }

    /// From now on, requests are told that they are the last.
    pub(super) fn leave(&self) {
        self.leaves.store(true, Ordering::Relaxed);
    }

    /// Until it has had nothing to do for `span`, from now on; an HTTP/2 connection need not be waited for, as it can tell
    /// its client where it ends.
    pub(super) async fn quiet(&self, span: Duration) {
        let mut since = Instant::now();
        while !self.http2.load(Ordering::Relaxed) {
            since = since.max(self.last_end());
            let now = Instant::now();
            let busy = self.serves() || self.in_head.load(Ordering::Relaxed);
            if !busy && since + span <= now {
                break;
            }
            tokio::time::sleep_until((since + span).max(now + span / 4).max(now + Duration::from_millis(1))).await;
        }
    }

    /// Until an HTTP/2 connection has been idle for too long.
    pub(super) async fn outstayed(&self) {
        self.outstayed.notified().await;
    }

    fn serves(&self) -> bool {
        // With `drop`'s: whoever sees that an answer has ended also sees when.
        self.in_service.load(Ordering::Acquire) > 0
    }

    fn note_end(&self, now: Instant) {
        self.ended.store(millis(now.saturating_duration_since(self.began)), Ordering::Relaxed);
    }

    fn last_end(&self) -> Instant {
        self.began + Duration::from_millis(self.ended.load(Ordering::Relaxed))
    }
}

pub(super) struct InService(Arc<Phase>);

impl InService {
    /// Whether the connection is to end with this request.
    pub(super) fn is_last(&self) -> bool {
        self.0.leaves.load(Ordering::Relaxed)
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        // On HTTP/1 the connection's stream notes when, once the last of the answer is sent.
        let is_http2 = self.0.http2.load(Ordering::Relaxed);
        if is_http2 {
            self.0.note_end(Instant::now());
        }
        self.0.in_service.fetch_sub(1, Ordering::Release);
        if is_http2 {
            self.0.reader.wake();
        }
    }
}

/// A timer that is set often and fires seldom: moved only when it has to be.
#[derive(Default)]
pub(super) struct Alarm(Option<Pin<Box<Sleep>>>);

impl Alarm {
    /// Whether `deadline` has passed; otherwise the task is woken by then.
    pub(super) fn is_past(&mut self, deadline: Instant, cx: &mut Context<'_>) -> bool {
        self.is_past_at(Instant::now(), deadline, cx)
    }

    /// As `is_past`, where the clock has just been read.
    fn is_past_at(&mut self, now: Instant, deadline: Instant, cx: &mut Context<'_>) -> bool {
        if now >= deadline {
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
    /// The last byte in either direction; on HTTP/2, of an answer's body.
    last_byte: Instant,
    /// On HTTP/1: bytes have moved since the clock was read. It is read once there is something to be waited for, and not for
    /// each piece that comes or goes.
    moved: bool,
    /// How much of the HTTP/2 preface the connection has begun with; `None` once it has not, or has with all of it.
    preface: Option<usize>,
    framing: Framing,
    /// On HTTP/2, what comes and what goes.
    frames: [Frames; 2],
    /// When it was told to take leave, on HTTP/2.
    leave: Option<Instant>,
    /// When a head began to be waited for, and how many requests there had been then; on HTTP/2, the head's number.
    head: Option<(Option<Instant>, usize)>,
    /// Since when a read has been waiting.
    waiting: Option<Instant>,
    reading: Alarm,
    /// Since when a write has been blocked.
    blocked: Option<Instant>,
    writing: Alarm,
    /// Whether the client has closed its side.
    ended: bool,
    closing: Option<Closing>,
}

/// Our side of a connection is shut; what the client is still sending is read into nothing.
struct Closing {
    until: Instant,
    alarm: Alarm,
    /// Bytes that will be read at most.
    left: usize,
    /// Whether more must be expected.
    sending: bool,
}

impl Closing {
    fn poll(&mut self, io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<()> {
        let mut bytes = [0; 4 << 10];
        loop {
            let mut buf = ReadBuf::new(&mut bytes);
            match Pin::new(&mut *io).poll_read(cx, &mut buf) {
                Poll::Ready(Ok(())) if !buf.filled().is_empty() && buf.filled().len() < self.left => {
                    self.left -= buf.filled().len();
                    self.sending = true;
                }
                Poll::Ready(_) => return Poll::Ready(()),
                Poll::Pending if self.sending && !self.alarm.is_past(self.until, cx) => return Poll::Pending,
                Poll::Pending => return Poll::Ready(()),
            }
        }
    }
}

impl<IO> Timed<IO> {
    pub(super) fn new(io: IO, phase: Arc<Phase>, limits: Limits) -> Self {
        let last_byte = phase.began;
        Self {
            io,
            phase,
            limits,
            last_byte,
            moved: false,
            preface: Some(0),
            framing: Framing::new(),
            frames: Default::default(),
            leave: None,
            head: None,
            waiting: None,
            reading: Alarm::default(),
            blocked: None,
            writing: Alarm::default(),
            ended: false,
            closing: None,
        }
    }

    /// When a read that has been waiting since `since` must have brought something, if it must.
    fn read_deadline(&self, since: Instant) -> Option<Instant> {
        if self.phase.serves() {
            // In service, HTTP/1 reads only when the handler wants more of a body (`half_close` sees to it that hyper does
            // not read just to learn of an end).
            return Some(since + self.limits.idle_timeout);
        }
        if self.blocked.is_some() {
            // The end of an answer is still on its way: that has its own deadline.
            return None;
        }
        match self.head {
            Some((Some(began), before)) if before == self.phase.requests.load(Ordering::Relaxed) => {
                Some(began + self.limits.header_timeout)
            }
            _ => Some(self.last_byte + self.limits.idle_timeout),
        }
    }

    /// As `read_deadline`, on HTTP/2, which always reads.
    fn read_deadline_http2(&self) -> Option<Instant> {
        let head = self.head.and_then(|(began, _)| Some(began? + self.limits.header_timeout));
        // Whoever is served has the handler's limits, and those of `streams`; and an answer that is still on its way has its
        // own deadline.
        let is_idle = !self.phase.serves() && self.blocked.is_none();
        let idle = is_idle.then(|| {
            let idle_since = self.last_byte.max(self.phase.last_end());
            match self.leave {
                Some(told) => told.max(idle_since) + LEAVE,
                None => idle_since + self.limits.idle_timeout,
            }
        });
        [head, idle].into_iter().flatten().min()
    }

    /// Whether a read has to end now, having brought nothing so far.
    fn is_late(&mut self, cx: &mut Context<'_>) -> bool {
        let now = Instant::now();
        if let Some((began, _)) = &mut self.head {
            began.get_or_insert(now);
        }
        if !self.phase.http2.load(Ordering::Relaxed) {
            if std::mem::take(&mut self.moved) {
                self.last_byte = now;
                self.phase.note_end(now);
            }
            let since = *self.waiting.get_or_insert(now);
            return self.read_deadline(since).is_some_and(|deadline| self.reading.is_past_at(now, deadline, cx));
        }
        while let Some(deadline) = self.read_deadline_http2() {
            if !self.reading.is_past(deadline, cx) {
                return false;
            }
            if self.leave.is_some() || self.head.is_some() {
                return true;
            }
            self.leave = Some(Instant::now());
            self.phase.outstayed.notify_one();
        }
        false
    }

    fn note_read(&mut self, bytes: &mut [u8]) {
        self.waiting = None;
        if let Some(frames) = self.http2(bytes) {
            let [incoming, _] = &mut self.frames;
            incoming.watch(frames);
            self.head = incoming.open_head().map(|number| match self.head {
                Some((began, same)) if same == number => (began, number),
                _ => (None, number),
            });
            return;
        }
        self.moved = true;
        let was_in_body = self.framing.is_in_body();
        self.framing.watch(bytes);
        // What is left of a body whose answer has gone out already is no head.
        let is_body = was_in_body && (self.framing.is_in_body() || self.framing.is_between_requests());
        if !is_body && !self.phase.serves() {
            let requests = self.phase.requests.load(Ordering::Relaxed);
            match self.head {
                Some((_, before)) if before == requests => {}
                _ => {
                    self.head = Some((None, requests));
                    self.phase.in_head.store(true, Ordering::Relaxed);
                }
            }
        }
    }

    /// What of `bytes`, the next of the connection, is frames, if it has turned out to be HTTP/2.
    fn http2<'b>(&mut self, bytes: &'b [u8]) -> Option<&'b [u8]> {
        let mut frames = bytes;
        if let Some(rest) = self.preface.and_then(|matched| PREFACE.get(matched..)) {
            let same = rest.iter().zip(bytes).take_while(|(ours, theirs)| ours == theirs).count();
            if same == rest.len() {
                self.phase.http2.store(true, Ordering::Relaxed);
                self.last_byte = Instant::now();
                self.head = None;
            }
            self.preface = (same == bytes.len() && same < rest.len()).then(|| PREFACE.len() - rest.len() + same);
            frames = bytes.get(same..).unwrap_or_default();
        }
        self.phase.http2.load(Ordering::Relaxed).then_some(frames)
    }

    /// Notes that `bytes` were sent.
    fn note_sent(&mut self, bytes: &[u8]) {
        if !self.phase.http2.load(Ordering::Relaxed) {
            self.moved = true;
            return;
        }
        let [_, outgoing] = &mut self.frames;
        if outgoing.watch(bytes) {
            self.last_byte = Instant::now();
        }
    }

    /// Ends a write that has been blocked for too long.
    fn watch_write<T>(&mut self, wrote: Poll<io::Result<T>>, cx: &mut Context<'_>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            if self.blocked.take().is_some() {
                // A read that waits has had no deadline meanwhile.
                self.phase.reader.wake();
            }
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
            match buf.filled_mut().get_mut(before..) {
                Some(bytes) if !bytes.is_empty() => this.note_read(bytes),
                _ => this.ended = read.is_err() || buf.remaining() > 0,
            }
            return Poll::Ready(read);
        }
        // Before the phase is looked at, so that an answer that ends meanwhile is not missed.
        this.phase.reader.register(cx.waker());
        if this.is_late(cx) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Timed<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.io).poll_write(cx, buf);
        if let Poll::Ready(Ok(count @ 1..)) = wrote {
            this.note_sent(buf.get(..count).unwrap_or_default());
        }
        this.watch_write(wrote, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let wrote = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        if let Poll::Ready(Ok(mut count @ 1..)) = wrote {
            for buf in bufs {
                let sent = buf.get(..count.min(buf.len())).unwrap_or_default();
                count -= sent.len();
                this.note_sent(sent);
            }
        }
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
        let this = self.get_mut();
        if this.closing.is_none() {
            let shut = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.watch_write(shut, cx))?;
        }
        if this.ended {
            return Poll::Ready(Ok(()));
        }
        let sending = !this.framing.is_between_requests();
        let until = Instant::now() + DRAIN_TIME;
        let closing =
            this.closing.get_or_insert(Closing { until, alarm: Alarm::default(), left: DRAIN_BYTES, sending });
        closing.poll(&mut this.io, cx).map(Ok)
    }
}

pin_project! {
    /// A body whose request is in service until it is sent or given up.
    pub(super) struct Counted<B> {
        #[pin]
        body: B,
        in_service: InService,
        // On HTTP/2: its stream's, and what is left of a piece that is larger than hyper should hold for it.
        flow: Option<Arc<Flow>>,
        rest: Bytes,
    }
}

impl<B> Counted<B> {
    /// To be made in the task that sends it.
    pub(super) fn new(body: B, in_service: InService) -> Self {
        Self { body, in_service, flow: Flow::current(), rest: Bytes::new() }
    }
}

impl<B: Body<Data = Bytes>> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        let Some(flow) = this.flow else { return this.body.poll_frame(cx) };
        if this.rest.is_empty() {
            let Poll::Ready(frame) = this.body.poll_frame(cx) else {
                flow.lacks();
                return Poll::Pending;
            };
            flow.gave();
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) => *this.rest = data,
                Some(Ok(Err(other))) => return Poll::Ready(Some(Ok(other))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        } else {
            flow.gave();
        }
        let piece = this.rest.split_to(this.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut whole = SizeHint::new();
        // The order keeps each bound within the other.
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper.saturating_add(rest));
        }
        whole.set_lower(hint.lower().saturating_add(rest));
        whole
    }
}
