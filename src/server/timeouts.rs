//! The time limits of a client's connection that hyper lacks.
//!
//! hyper's own header timeout also runs on an idle connection, so it cannot tell a slow sender from a quiet client. Here
//! [`ConnIo`] and the service note in [`ConnState`] what a connection waits for, and [`ConnTimeouts`] knows what is due:
//!
//! | the connection | may last | then |
//! |---|---|---|
//! | is idle: no request is in service, none has begun | `idle_timeout`; while draining `linger` | it is closed, HTTP/2 by GOAWAY |
//! | reads a head (HTTP/1): from its first byte until the service is called | `header_timeout` | it is cut off |
//! | reads a request's body for the handler (HTTP/1) | `idle_timeout` without a byte, and a second | it is cut off |
//! | writes, and the client does not read | `idle_timeout` without a byte | it is cut off |
//! | lives at all | `max_connection_age` | HTTP/1 ends with its next answer, HTTP/2 by GOAWAY |
//!
//! While a handler works, only its own limits count. On HTTP/2, bytes are no sign of life, since they may be pings: a
//! connection is idle while no request is in service. A stream that makes no progress is reset by [`super::streams`].

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::{ConnLimits, ConnStop};
use crate::clock::millis;
use crate::message::body::{DRAIN_BYTES, DRAIN_TIME};
use crate::message::ending::{Abort, CutOff};

/// How HTTP/2 begins (RFC 9113 §3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// How long a connection that was told to close may stay without a request in service.
const LEAVE: Duration = Duration::from_secs(5);
/// Added to `idle_timeout` while a handler reads a body: the handler's own limit is as long, and has to expire first, so that
/// the handler can answer.
const HANDLER_GRACE: Duration = Duration::from_secs(1);
/// Each connection's age limit is shorter than `max_connection_age` by up to this share, so that connections that began together
/// do not end together.
const JITTER: f64 = 0.1;

/// The state of a connection, noted by its stream and its service, from which its timeouts follow.
#[derive(Default)]
pub(super) struct ConnState {
    began: Began,
    /// Why this side has cut it off.
    cut_off: CutOff,
    is_http2: AtomicBool,
    /// Requests whose answer is not sent yet, and bodies of HTTP/1 requests that are still read.
    in_service: AtomicUsize,
    /// The first bytes of a head have come, and the service has not been called (HTTP/1).
    in_head: AtomicBool,
    /// The next answer is the last one (HTTP/1).
    is_leaving: AtomicBool,
    /// The body of the last request was not read to its end (HTTP/1).
    is_body_unread: AtomicBool,
    /// A handler may still read the body of its request (HTTP/1).
    is_body_wanted: AtomicBool,
    /// A chunked body is not read yet, or had trailers (HTTP/1). hyper ends a line of trailers at CR LF, other servers also at a
    /// bare LF: they may see the next request begin at another byte.
    is_end_uncertain: AtomicBool,
    /// The moment from which a head is read. This and the fields below are read by [`ConnState::since`].
    head: AtomicU64,
    /// The start of a read that waits (HTTP/1).
    read: AtomicU64,
    /// The start of a write that waits.
    write: AtomicU64,
    /// The end of the last answer (HTTP/2), or of the last write that had to wait.
    active: AtomicU64,
    /// The moment at which this side was shut, while the client's is not.
    shut: AtomicU64,
    /// Announces that a time limit may be reached earlier than before.
    changed: Notify,
}

struct Began(Instant);

impl Default for Began {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl ConnState {
    /// The state of a connection that tells `cut_off` why it is cut off.
    pub(super) fn new(cut_off: CutOff) -> Self {
        Self { cut_off, ..Self::default() }
    }

    /// A request is in service until the ticket is dropped.
    pub(super) fn enter(self: &Arc<Self>) -> InService {
        self.in_head.store(false, Ordering::Relaxed);
        self.head.store(0, Ordering::Relaxed);
        self.is_body_unread.store(false, Ordering::Relaxed);
        InService::new(self, false)
    }

    pub(super) fn is_http2(&self) -> bool {
        self.is_http2.load(Ordering::Relaxed)
    }

    fn serves(&self) -> bool {
        // Pairs with `InService::drop`: after the end of a request is seen, so is its time.
        self.in_service.load(Ordering::Acquire) > 0
    }

    /// Whether the client may be in the middle of a request.
    fn is_mid_request(&self) -> bool {
        self.in_head.load(Ordering::Relaxed) || self.is_body_unread.load(Ordering::Relaxed) || self.serves()
    }

    fn note(&self, moment: &AtomicU64) {
        // Rounded up: 0 is none.
        moment.store(1 + millis(self.began.0.elapsed()), Ordering::Relaxed);
    }

    fn since(&self, moment: &AtomicU64) -> Option<Instant> {
        let millis = moment.load(Ordering::Relaxed);
        (millis > 0).then(|| self.began.0 + Duration::from_millis(millis))
    }
}

/// A request, or the body of one, that keeps its connection in service.
pub(super) struct InService {
    state: Arc<ConnState>,
    is_body: bool,
}

impl InService {
    fn new(state: &Arc<ConnState>, is_body: bool) -> Self {
        state.in_service.fetch_add(1, Ordering::Relaxed);
        Self { state: Arc::clone(state), is_body }
    }

    /// Why the connection was cut off.
    pub(super) fn cut_off(&self) -> &CutOff {
        &self.state.cut_off
    }

    /// Whether the connection has to end with the answer to this request (HTTP/1).
    pub(super) fn is_last(&self) -> bool {
        self.state.is_leaving.load(Ordering::Relaxed) || self.state.is_end_uncertain.load(Ordering::Relaxed)
    }

    /// The body of this request begins; it is in service as well until it is read or dropped (HTTP/1).
    pub(super) fn body(&self, is_chunked: bool) -> InService {
        self.state.is_body_unread.store(true, Ordering::Relaxed);
        self.state.is_body_wanted.store(true, Ordering::Relaxed);
        if is_chunked {
            self.state.is_end_uncertain.store(true, Ordering::Relaxed);
        }
        InService::new(&self.state, true)
    }

    /// The body was read to its end, and had no trailers.
    pub(super) fn body_ended(self) {
        self.state.is_body_unread.store(false, Ordering::Relaxed);
        self.state.is_end_uncertain.store(false, Ordering::Relaxed);
    }
}

impl Drop for InService {
    fn drop(&mut self) {
        if self.is_body {
            self.state.is_body_wanted.store(false, Ordering::Relaxed);
        }
        if self.state.is_http2() {
            self.state.note(&self.state.active);
        }
        self.state.in_service.fetch_sub(1, Ordering::Release);
        if self.state.is_leaving.load(Ordering::Relaxed) {
            self.state.changed.notify_one();
        }
    }
}

/// How a time limit ends a connection.
pub(super) enum ConnEnd {
    /// It is closed, once what is in service has been answered.
    Close,
    /// It is cut off, by this, for this reason.
    CutOff(Abort, &'static str),
}

/// The timers of one connection. They run beside it and are not polled with it.
pub(super) struct ConnTimeouts {
    state: Arc<ConnState>,
    limits: ConnLimits,
    stop: ConnStop,
    expires: Instant,
    /// The moment at which the listener began to drain.
    draining: Option<Instant>,
    /// The moment at which the connection was told to close.
    closing: Option<Instant>,
}

impl ConnTimeouts {
    /// The timers of a connection that `stop` ends.
    pub(super) fn new(state: Arc<ConnState>, limits: ConnLimits, stop: ConnStop) -> Self {
        let expires = state.began.0 + limits.max_connection_age.mul_f64(1.0 - JITTER * rand::random::<f64>());
        Self { state, limits, stop, expires, draining: None, closing: None }
    }

    /// Waits for the next limit that the connection reaches.
    pub(super) async fn next(mut self) -> (ConnEnd, Self) {
        loop {
            let now = Instant::now();
            let leaves = self.draining.is_some() || now >= self.expires;
            if leaves {
                self.state.is_leaving.store(true, Ordering::Relaxed);
            }
            let due = match self.due() {
                // HTTP/2 tells its client where it ends: an idle connection need not be waited for.
                _ if leaves && self.closing.is_none() && self.state.is_http2() => Some((now, ConnEnd::Close)),
                due => due,
            };
            // A wait that begins later is due no earlier than this; `changed` announces everything else.
            let mut wake = now + self.limits.idle_timeout;
            if let Some((at, expiry)) = due {
                if at <= now {
                    if matches!(expiry, ConnEnd::Close) {
                        self.closing = Some(now);
                        self.state.is_leaving.store(true, Ordering::Relaxed);
                    }
                    return (expiry, self);
                }
                wake = at;
            }
            if !leaves {
                wake = wake.min(self.expires);
            }
            tokio::select! {
                () = sleep_until(wake) => {}
                () = self.state.changed.notified() => {}
                () = self.stop.at_once.cancelled() => {
                    return (ConnEnd::CutOff(Abort::Drain, "limits.drain has passed"), self);
                }
                () = self.stop.drain.cancelled(), if self.draining.is_none() => self.draining = Some(Instant::now()),
            }
        }
    }

    /// The next time limit in the present state, and how it ends the connection; `None` while a handler works.
    fn due(&self) -> Option<(Instant, ConnEnd)> {
        let (state, limits) = (&self.state, &self.limits);
        let cut_off = |since, limit, reason| Some((since + limit, ConnEnd::CutOff(Abort::ClientTimeout, reason)));
        if let Some(since) = state.since(&state.shut) {
            return cut_off(since, DRAIN_TIME, "the client did not close its side");
        }
        if let Some(since) = state.since(&state.write) {
            return cut_off(since, limits.idle_timeout, "the client did not read for limits.idle_timeout");
        }
        if state.serves() {
            // hyper also reads after a body that its handler has dropped, for as long as the answer takes.
            if !state.is_body_wanted.load(Ordering::Relaxed) {
                return None;
            }
            let limit = limits.idle_timeout + HANDLER_GRACE;
            return cut_off(state.since(&state.read)?, limit, "no body came for limits.idle_timeout");
        }
        if let Some(since) = state.since(&state.head) {
            return cut_off(since, limits.header_timeout, "the head took longer than limits.header_timeout");
        }
        let quiet_since = if state.is_http2() { state.began.0 } else { state.since(&state.read)? };
        let since = [state.since(&state.active), self.draining, self.closing].into_iter().flatten().max();
        let since = since.map_or(quiet_since, |since| since.max(quiet_since));
        match (self.closing, self.draining) {
            (Some(_), _) => cut_off(since, LEAVE, "the client did not close"),
            (None, Some(_)) => Some((since + limits.linger, ConnEnd::Close)),
            (None, None) => Some((since + limits.idle_timeout, ConnEnd::Close)),
        }
    }
}

/// A connection's stream. It notes what the connection waits for.
///
/// A connection that is closed while its client may be sending is shut on this side alone, and then read for a while, into
/// nothing: closed at once, it would be reset, and the client might never see what it was told (RFC 9112 §9.6).
pub(super) struct ConnIo<IO> {
    io: IO,
    state: Arc<ConnState>,
    /// The part of HTTP/2's preface that has not come yet; empty once it is known whether this is HTTP/2.
    preface: &'static [u8],
    /// The client has closed its side.
    is_over: bool,
    is_shut: bool,
    /// Bytes that are read at most after that.
    left: usize,
}

impl<IO> ConnIo<IO> {
    pub(super) fn new(io: IO, state: Arc<ConnState>) -> Self {
        // hyper reads at once.
        state.note(&state.read);
        Self { io, state, preface: PREFACE, is_over: false, is_shut: false, left: DRAIN_BYTES }
    }

    fn note_read(&mut self, bytes: &[u8]) {
        let state = &self.state;
        if state.is_http2() {
            return;
        }
        state.read.store(0, Ordering::Relaxed);
        if !self.preface.is_empty() {
            let begun = bytes.get(..self.preface.len()).unwrap_or(bytes);
            match self.preface.strip_prefix(begun) {
                Some([]) => {
                    self.preface = &[];
                    state.is_http2.store(true, Ordering::Relaxed);
                    state.in_head.store(false, Ordering::Relaxed);
                    state.head.store(0, Ordering::Relaxed);
                    return;
                }
                rest => self.preface = rest.unwrap_or_default(),
            }
        }
        // While a request is in service, these are bytes of its body.
        if !state.serves() {
            state.in_head.store(true, Ordering::Relaxed);
        }
    }

    fn note_wait(&self) {
        let state = &self.state;
        if state.is_http2() || state.since(&state.read).is_some() {
            return;
        }
        state.note(&state.read);
        if state.in_head.load(Ordering::Relaxed) && state.since(&state.head).is_none() {
            state.note(&state.head);
            state.changed.notify_one();
        }
    }

    fn note_write<T>(&self, write: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        let state = &self.state;
        match (state.since(&state.write), write.is_pending()) {
            (None, true) => state.note(&state.write),
            (Some(_), false) => {
                state.write.store(0, Ordering::Relaxed);
                state.note(&state.active);
            }
            _ => {}
        }
        write
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for ConnIo<IO> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.io).poll_read(cx, buf);
        match (&read, buf.filled().get(before..)) {
            (Poll::Pending, _) => this.note_wait(),
            (Poll::Ready(Ok(())), Some(bytes)) if !bytes.is_empty() => this.note_read(bytes),
            (Poll::Ready(read), _) => this.is_over = read.is_err() || buf.remaining() > 0,
        }
        read
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for ConnIo<IO> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.io).poll_write(cx, buf);
        this.note_write(write)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let write = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.note_write(write)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let flush = Pin::new(&mut this.io).poll_flush(cx);
        this.note_write(flush)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.is_shut {
            let shut = Pin::new(&mut this.io).poll_shutdown(cx);
            ready!(this.note_write(shut))?;
            this.is_shut = true;
        }
        let mut bytes = [0; 4 << 10];
        while !this.is_over {
            let mut buf = ReadBuf::new(&mut bytes);
            let read = Pin::new(&mut this.io).poll_read(cx, &mut buf);
            let count = buf.filled().len();
            match read {
                Poll::Ready(Ok(())) if (1..this.left).contains(&count) => {
                    this.left -= count;
                    this.state.is_body_unread.store(true, Ordering::Relaxed);
                }
                Poll::Pending if this.state.is_mid_request() => {
                    if this.state.since(&this.state.shut).is_none() {
                        this.state.note(&this.state.shut);
                        this.state.changed.notify_one();
                    }
                    return Poll::Pending;
                }
                _ => this.is_over = true,
            }
        }
        Poll::Ready(Ok(()))
    }
}
