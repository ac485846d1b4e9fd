//! The version of HTTP that a connection speaks, and hyper's settings for it.

use hyper_util::rt::TokioTimer;
use hyper_util::server::conn::auto;

use super::ConnLimits;
use super::streams::Streams;

/// Streams that one HTTP/2 connection may have open.
const STREAMS: u32 = 100;
/// Headers that a request of HTTP/1 may have; HTTP/2 bounds their bytes alone, with 32 more for each (RFC 9113 §6.5.2).
const HEADERS: usize = 100;
/// Streams that an HTTP/2 client may reset before they are looked at; more is an attack (CVE-2023-44487).
const STREAM_RESETS: usize = 20;
/// Streams that are reset because of what an HTTP/2 client must not send; more is an attack (CVE-2025-8671).
const STREAM_ERRORS: usize = 100;
/// Bytes of a request's body that wait for its handler, of one stream and of one HTTP/2 connection.
const STREAM_WINDOW: u32 = 64 << 10;
const CONNECTION_WINDOW: u32 = 256 << 10;
/// Bytes of an answer that wait in an HTTP/2 connection to be sent.
const SEND_BUFFER: usize = 64 << 10;
/// The least that hyper takes for `max_buf_size`: it panics below.
const LEAST_HEADER_BYTES: usize = 8 << 10;

/// The HTTP that a connection may speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// Either; the first bytes tell (RFC 9113 §3.3), since without TLS nothing is negotiated.
    Any,
    /// Negotiated by ALPN, or the client offers nothing there.
    Http1,
    /// Negotiated by ALPN.
    Http2,
}

impl Protocol {
    /// The protocol of a TLS connection that has negotiated `alpn`. rustls refuses a client that offers only other protocols.
    pub(super) fn negotiated(alpn: Option<&[u8]>) -> Self {
        if alpn == Some(b"h2") { Self::Http2 } else { Self::Http1 }
    }

    pub(super) fn builder(self, limits: &ConnLimits) -> auto::Builder<Streams> {
        let mut builder = auto::Builder::new(Streams { idle_timeout: limits.idle_timeout });
        builder
            .http1()
            .timer(TokioTimer::new())
            // It also runs on an idle connection; see `super::timeouts`.
            .header_read_timeout(None)
            .half_close(true)
            .max_headers(HEADERS)
            .max_buf_size(limits.header_bytes.max(LEAST_HEADER_BYTES));
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
            .max_concurrent_streams(STREAMS)
            .max_pending_accept_reset_streams(STREAM_RESETS)
            .max_local_error_reset_streams(STREAM_ERRORS)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            // For clients that vanish while they are served.
            .keep_alive_interval(Some(limits.idle_timeout))
            .keep_alive_timeout(limits.idle_timeout);
        match self {
            Self::Any => builder,
            Self::Http1 => builder.http1_only(),
            Self::Http2 => builder.http2_only(),
        }
    }
}
