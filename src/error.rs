//! What sidelink itself has to say when it cannot give an answer: whose fault, which status, which code.
//!
//! One shape, the API's own: `{"error_code":"SIDELINK.…","error_msg":"…"}` (`docs/ERRORS.md`). The endpoint's errors are not
//! here: they are passed on as they came. Messages are fixed texts, so that no secret can be in one.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

pub use crate::telemetry::metrics::Limit;

/// The methods that are forwarded, as `Allow` has them. TRACE is as well, for whoever asks for it.
pub const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// Why a request gets an answer of sidelink's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// More distinct ids than `limits.batch_ids`.
    TooManyIds,
    /// A batch's body over `limits.batch_body`.
    BodyTooLarge,
    /// A body that has to be hashed to be signed again, over `limits.signed_body`.
    SignedBodyTooLarge,
    /// `Connection` names a header that says who asks, is signed, or may change the answer.
    NamedByConnection,
    /// `only-if-cached`, and not all ids are here.
    NotCached,
    /// Not a request that HTTP allows.
    Malformed(&'static str),
    /// CONNECT: sidelink is no tunnel.
    Connect,
    /// TRACE with `Max-Forwards: 0`: nothing is reflected.
    Trace,
    /// Absolute form for another authority: sidelink is no open proxy.
    Misdirected,
    /// More than three sidelinks in `Via`.
    Loop,
    /// The endpoint could not be reached, or what it sent is no answer.
    NoAnswer(NoAnswer),
    /// The request's deadline has passed.
    Deadline,
    /// The endpoint is taken to be down; ask again after this long.
    BreakerOpen(Duration),
    /// The endpoint has asked this caller, or everyone, to hold back for this long.
    HeldBack(Duration),
    /// A limit is reached.
    Shed(Limit),
}

/// How the endpoint failed to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// No connection: refused, unreachable, name or certificate.
    Connect,
    /// The connection broke before the answer was whole.
    Broken,
    /// A 200 whose JSON is broken or truncated, or whose coding cannot be undone.
    Unreadable,
    /// Longer than `upstream.answer_bytes`.
    TooLong,
    /// A flight ended without a result: a fault of sidelink's own.
    Lost,
}

/// Declares every error once: `variant => STATUS "code" "whose fault": "what happened", "what to do";`, the last three for
/// `docs/ERRORS.md`.
macro_rules! errors {
    ($($error:pat => $status:ident $code:literal $fault:literal: $what:literal, $remedy:literal;)+) => {
        impl Error {
            /// The status that the client gets.
            pub fn status(self) -> StatusCode {
                match self {
                    $($error => StatusCode::$status,)+
                }
            }

            /// The code in the body; stable, unlike the message.
            pub fn code(self) -> &'static str {
                match self {
                    $($error => $code,)+
                }
            }
        }

        /// The table of `docs/ERRORS.md`.
        pub fn reference() -> String {
            let mut table = String::from("| code | status | what happened | whose fault | what to do |\n|---|---|---|---|---|\n");
            for (status, code, fault, what, remedy) in [$((StatusCode::$status, $code, $fault, $what, $remedy)),+] {
                let wait = if status == StatusCode::SERVICE_UNAVAILABLE { " + `Retry-After`" } else { "" };
                table += &format!("| {code} | {}{wait} | {what} | {fault} | {remedy} |\n", status.as_u16());
            }
            table
        }
    };
}

errors! {
    Error::TooManyIds => BAD_REQUEST "SIDELINK.0001" "client":
        "more distinct ids than `limits.batch_ids`",
        "Ask in smaller batches, or raise the limit. The endpoint's own limit of ids in one call does not matter: sidelink splits.";
    Error::BodyTooLarge => PAYLOAD_TOO_LARGE "SIDELINK.0002" "client":
        "a batch's body over `limits.batch_body`",
        "As above.";
    Error::SignedBodyTooLarge => PAYLOAD_TOO_LARGE "SIDELINK.0002" "client":
        "a body over `limits.signed_body`, whose request has to be signed again",
        "Send it as `UNSIGNED-PAYLOAD`, sign for the endpoint's own host ([SDK.md](SDK.md)), or raise the limit.";
    Error::NamedByConnection => UNAUTHORIZED "SIDELINK.0003" "client":
        "`Connection` names a header that says who asks, may change the answer, or is signed",
        "Leave it out of `Connection`: such a header is the endpoint's, and would be removed on the way. (A signature that does not verify here is no error of sidelink's: the endpoint judges it, [SDK.md](SDK.md).)";
    Error::NotCached => GATEWAY_TIMEOUT "SIDELINK.0004" "client":
        "`Cache-Control: only-if-cached`, and not all links are in memory",
        "Ask without it. No id has been asked of the endpoint.";
    Error::Malformed(_) => BAD_REQUEST "SIDELINK.0005" "client":
        "not a request that HTTP allows: a `Host` that is missing, doubled, or no host and port; over HTTP/2, outer space in a field value, two `content-length` fields, or an empty `:scheme`; a `Transfer-Encoding` other than `chunked`; a body that breaks off, cannot be read, or does not come within `limits.idle_timeout`",
        "Mend the client.";
    Error::Trace => METHOD_NOT_ALLOWED "SIDELINK.0005" "client":
        "TRACE with `Max-Forwards: 0`",
        "sidelink reflects nothing. With a larger number the endpoint answers.";
    Error::Connect => METHOD_NOT_ALLOWED "SIDELINK.0005" "client":
        "CONNECT",
        "sidelink is no tunnel: give the client an `http://` base URL.";
    Error::Misdirected => MISDIRECTED_REQUEST "SIDELINK.0005" "client":
        "an absolute URL for another host than the endpoint's",
        "sidelink forwards to its own endpoint only. A client that has sidelink as its HTTP proxy names the host of `upstream.endpoint` ([SDK.md](SDK.md)); send other requests elsewhere.";
    Error::Loop => LOOP_DETECTED "SIDELINK.0006" "operator":
        "the request has passed more than three sidelinks",
        "`upstream.endpoint` points at a sidelink, perhaps this one: point it at the endpoint.";
    Error::NoAnswer(_) => BAD_GATEWAY "SIDELINK.1001" "endpoint, or the way to it":
        "no usable answer: refused, unreachable, reset, a certificate that does not verify, JSON broken or cut off, a content coding that does not hold, lengths that differ, a transfer coding other than `chunked`, longer than `upstream.answer_bytes`",
        "Ask again. If it stays: sidelink's log has the reason.";
    Error::Deadline => GATEWAY_TIMEOUT "SIDELINK.1002" "endpoint, or the way to it":
        "no answer within `upstream.deadline`; on other routes: not a byte for `upstream.idle_timeout`",
        "Ask again. If it stays: the endpoint is slow, or the deadline short.";
    Error::BreakerOpen(_) | Error::HeldBack(_) => SERVICE_UNAVAILABLE "SIDELINK.1003" "endpoint":
        "the endpoint is taken to be down (`sidelink_breaker_state`), or has asked for a pause with an answer that is too long to be given again; it is not asked now",
        "Ask again after `Retry-After` seconds.";
    Error::Shed(_) => SERVICE_UNAVAILABLE "SIDELINK.1004" "load, or operator":
        "a limit is reached: `limits.in_flight`, half of it by one caller, `limits.waiters`, `limits.exchanges`, `limits.batch_bodies`, or `limits.signed_bodies`",
        "Ask again after `Retry-After` seconds. `sidelink_shed_total` tells which limit. A batch that is all in memory is served all the same, unless its body cannot be read for want of room.";
}

impl Error {
    /// Whose fault it is and what to do.
    pub fn message(self) -> &'static str {
        match self {
            Error::TooManyIds => "the batch has more ids than this sidelink allows; ask in smaller batches",
            Error::BodyTooLarge => "the body is larger than this sidelink allows; ask in smaller batches",
            Error::SignedBodyTooLarge => {
                "the body is larger than this sidelink signs again; send it as UNSIGNED-PAYLOAD, or sign for the endpoint's own host"
            }
            Error::NamedByConnection => {
                "Connection names a header that says who asks, is signed, or may change the answer; such a header is the endpoint's, so leave it out of Connection"
            }
            Error::NotCached => "only-if-cached was asked, and not all links are in memory",
            Error::Malformed(message) => message,
            Error::Connect => "sidelink is no tunnel; use an http:// base URL",
            Error::Trace => "sidelink answers no TRACE; send it with a larger Max-Forwards for the endpoint to answer",
            Error::Misdirected => {
                "the URL names another host than upstream.endpoint, and sidelink forwards to that alone"
            }
            Error::Loop => "the request has passed more than three sidelinks; the endpoint seems to be a sidelink",
            Error::NoAnswer(NoAnswer::Connect) => "the endpoint could not be reached; sidelink's log has the reason",
            Error::NoAnswer(NoAnswer::Broken) => "the connection to the endpoint broke before its answer was whole",
            Error::NoAnswer(NoAnswer::Unreadable) => "the endpoint's answer could not be read",
            Error::NoAnswer(NoAnswer::TooLong) => "the endpoint's answer is longer than this sidelink allows",
            Error::NoAnswer(NoAnswer::Lost) => "sidelink lost track of the request; its log has the reason",
            Error::Deadline => "the endpoint did not answer in time",
            Error::BreakerOpen(_) => "the endpoint is failing; sidelink asks it again shortly",
            Error::HeldBack(_) => "the endpoint has asked for a pause; ask again later",
            Error::Shed(_) => "this sidelink is at a limit; ask again shortly",
        }
    }

    /// Seconds for `Retry-After`, at least 1, where asking again helps.
    pub fn retry_after(self) -> Option<u64> {
        match self {
            Error::BreakerOpen(wait) | Error::HeldBack(wait) => {
                Some(wait.as_millis().div_ceil(1000).clamp(1, 60) as u64)
            }
            Error::Shed(_) => Some(1),
            _ => None,
        }
    }

    /// The whole answer, but for the headers that every answer gets.
    pub fn response(self) -> Response<Bytes> {
        // Codes and messages are plain ASCII without quotes or backslashes: a test holds them so.
        let body = format!(r#"{{"error_code":"{}","error_msg":"{}"}}"#, self.code(), self.message());
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = self.status();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if matches!(self, Error::Connect | Error::Trace) {
            response.headers_mut().insert(ALLOW, HeaderValue::from_static(METHODS));
        }
        if self == Error::NamedByConnection {
            // RFC 9110 §15.5.2: a 401 says how to authenticate.
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("SDK-HMAC-SHA256"));
        }
        if let Some(seconds) = self.retry_after() {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_is_json_in_the_apis_shape() {
        let wait = Duration::from_millis(1200);
        for error in [
            Error::TooManyIds,
            Error::BodyTooLarge,
            Error::SignedBodyTooLarge,
            Error::NamedByConnection,
            Error::NotCached,
            Error::Malformed("no Host header"),
            Error::Connect,
            Error::Trace,
            Error::Misdirected,
            Error::Loop,
            Error::NoAnswer(NoAnswer::Connect),
            Error::NoAnswer(NoAnswer::Broken),
            Error::NoAnswer(NoAnswer::Unreadable),
            Error::NoAnswer(NoAnswer::TooLong),
            Error::NoAnswer(NoAnswer::Lost),
            Error::Deadline,
            Error::BreakerOpen(wait),
            Error::HeldBack(wait),
            Error::Shed(Limit::InFlight),
        ] {
            let response = error.response();
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["error_code"], error.code());
            assert_eq!(body["error_msg"], error.message());
            let temporary = response.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(response.headers().contains_key(RETRY_AFTER), temporary);
        }
    }
}
