//! sidelink's own errors: status, code, message, whose fault it is and what to do.
//!
//! **To add an error, add it to `errors!`**, and run `make docs`. The body has the API's shape:
//! `{"error_code":"SIDELINK.…","error_msg":"…","request_id":"…"}` (`docs/ERRORS.md`). The endpoint's errors are passed on as
//! they came. Messages are fixed texts with numbers, so that no secret can be in one.

use std::borrow::Cow;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

pub use crate::telemetry::metrics::Limit;

/// The methods that are forwarded, as `Allow` lists them. TRACE is forwarded too, but not advertised.
pub const METHODS: &str = "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS";

/// More ids than are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMany {
    /// As many as came, each counted as often as it came.
    pub came: usize,
    /// `limits.batch_ids`.
    pub allowed: usize,
}

/// How the endpoint failed to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoAnswer {
    /// No connection: refused, unreachable, name or certificate.
    Connect,
    /// The connection broke before the answer was complete.
    Broken,
    /// A 200 whose JSON may be cut off, whose coding is not what it says, or whose framing is ambiguous.
    Unreadable,
    /// Longer than `upstream.answer_bytes`.
    TooLong,
    /// A flight ended without a result: a bug in sidelink.
    Lost,
}

impl NoAnswer {
    fn message(self) -> &'static str {
        match self {
            NoAnswer::Connect => "the endpoint could not be reached; sidelink's log has the reason",
            NoAnswer::Broken => "the connection to the endpoint broke before its answer was complete",
            NoAnswer::Unreadable => "the endpoint's answer could not be read",
            NoAnswer::TooLong => "the endpoint's answer is longer than this sidelink allows",
            NoAnswer::Lost => "sidelink lost track of the request; its log has the reason",
        }
    }
}

/// Declares each error as `Variant(field: Type): STATUS "code" "whose fault", MESSAGE => "what to do";`. Its doc comment is
/// what happened, for `docs/ERRORS.md`.
macro_rules! errors {
    ($($(#[doc = $what:literal])+ $error:ident $(($field:ident: $type:ty))?:
        $status:ident $code:literal $fault:literal, $message:expr => $remedy:literal;)+) => {
        /// Why a request gets an answer of sidelink's own.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Error {
            $($(#[doc = $what])+ $error $(($type))?,)+
        }

        impl Error {
            /// The status that the client gets.
            pub fn status(self) -> StatusCode {
                match self {
                    $(Error::$error { .. } => StatusCode::$status,)+
                }
            }

            /// The code in the body; stable, unlike the message.
            pub fn code(self) -> &'static str {
                match self {
                    $(Error::$error { .. } => $code,)+
                }
            }

            /// Whose fault it is and what to do.
            pub fn message(self) -> Cow<'static, str> {
                match self {
                    $(Error::$error $(($field))? => $message.into(),)+
                }
            }
        }

        /// The table of `docs/ERRORS.md`.
        pub fn reference() -> String {
            let mut table = String::from("| code | status | what happened | whose fault | what to do |\n|---|---|---|---|---|\n");
            for (status, code, fault, what, remedy) in [$((StatusCode::$status, $code, $fault, concat!($($what),+), $remedy)),+] {
                let wait = if status == StatusCode::SERVICE_UNAVAILABLE { " + `Retry-After`" } else { "" };
                table += &format!("| {code} | {}{wait} |{what} | {fault} | {remedy} |\n", status.as_u16());
            }
            table
        }
    };
}

errors! {
    /// The batch has more distinct ids than `limits.batch_ids`.
    TooManyIds(ids: TooMany): BAD_REQUEST "SIDELINK.0001" "client",
        format!("the batch has {} ids, and this sidelink allows {}; ask in smaller batches", ids.came, ids.allowed)
        => "Ask in smaller batches, or raise the limit. The endpoint's own limit of ids in one call does not matter: sidelink splits.";
    /// The body of a batch is larger than `limits.batch_body`.
    BodyTooLarge(most: usize): PAYLOAD_TOO_LARGE "SIDELINK.0002" "client",
        format!("the body is larger than the {most} bytes that this sidelink allows; ask in smaller batches")
        => "Ask in smaller batches, or raise the limit.";
    /// The body is larger than `limits.signed_body`, and its request has to be signed again.
    SignedBodyTooLarge(most: usize): PAYLOAD_TOO_LARGE "SIDELINK.0002" "client",
        format!("the body is larger than the {most} bytes that this sidelink signs again; send it as UNSIGNED-PAYLOAD, or sign for the endpoint's own host")
        => "Send it as `UNSIGNED-PAYLOAD`, sign for the endpoint's own host ([SDK.md](SDK.md)), or raise the limit.";
    /// `Connection` names a credential, a scope header, or a header that is signed.
    NamedByConnection: UNAUTHORIZED "SIDELINK.0003" "client",
        "Connection names a header that says who asks, is signed, or may change the answer; such a header is the endpoint's, so leave it out of Connection"
        => "Leave it out of `Connection`, which would remove the header on the way to the endpoint. (A signature that does not verify here is not an error of sidelink: the endpoint decides, [SDK.md](SDK.md).)";
    /// The request has `Cache-Control: only-if-cached`, and not all links are in memory.
    NotCached: GATEWAY_TIMEOUT "SIDELINK.0004" "client",
        "only-if-cached was asked, and not all links are in memory"
        => "Ask without it. The endpoint was not asked.";
    /// HTTP does not allow the request: a `Host` that is missing, doubled, or no host and port; over HTTP/2, outer space in a field value, two `content-length` fields, or an empty `:scheme`; a `Transfer-Encoding` other than `chunked`; a body that breaks off, cannot be read, or does not arrive within `limits.idle_timeout`.
    Malformed(message: &'static str): BAD_REQUEST "SIDELINK.0005" "client", message => "Correct the client.";
    /// The method is TRACE with `Max-Forwards: 0`.
    Trace: METHOD_NOT_ALLOWED "SIDELINK.0005" "client",
        "sidelink answers no TRACE; send it with a larger Max-Forwards for the endpoint to answer"
        => "sidelink reflects nothing. With a larger number the endpoint answers.";
    /// The method is CONNECT.
    Connect: METHOD_NOT_ALLOWED "SIDELINK.0005" "client",
        "sidelink is no tunnel; use an http:// base URL"
        => "sidelink is not a tunnel: give the client an `http://` base URL.";
    /// The request has an absolute URL for another host than the endpoint's.
    Misdirected: MISDIRECTED_REQUEST "SIDELINK.0005" "client",
        "the URL names another host than upstream.endpoint, and sidelink forwards to that alone"
        => "sidelink forwards to its own endpoint only. A client that has sidelink as its HTTP proxy names the host of `upstream.endpoint` ([SDK.md](SDK.md)); send other requests elsewhere.";
    /// The request has passed more than three sidelinks.
    Loop: LOOP_DETECTED "SIDELINK.0006" "operator",
        "the request has passed more than three sidelinks; the endpoint seems to be a sidelink"
        => "`upstream.endpoint` points at a sidelink, perhaps this one: point it at the endpoint.";
    /// There is no usable answer: refused, unreachable, reset, a certificate that does not verify, JSON that is cut off with its connection, a body that is not in the content coding that it names, lengths that differ, a transfer coding other than `chunked`, longer than `upstream.answer_bytes`.
    NoAnswer(how: NoAnswer): BAD_GATEWAY "SIDELINK.1001" "endpoint, or the way to it", how.message()
        => "Ask again. If it persists, see the reason in sidelink's log.";
    /// There is no answer within `upstream.deadline`; on other routes: no byte for `upstream.idle_timeout`.
    Deadline: GATEWAY_TIMEOUT "SIDELINK.1002" "endpoint, or the way to it",
        "the endpoint did not answer in time"
        => "Ask again. If it persists, the endpoint is slow or the deadline short.";
    /// The breaker is open, because the endpoint is failing (`sidelink_breaker_state`); the endpoint is not asked now.
    BreakerOpen(_wait: Duration): SERVICE_UNAVAILABLE "SIDELINK.1003" "endpoint",
        "the endpoint is failing; sidelink asks it again shortly"
        => "Ask again after `Retry-After` seconds.";
    /// The endpoint has asked for a pause: of all callers, or of this one with an answer too long to be repeated. The endpoint is not asked now.
    HeldBack(_wait: Duration): SERVICE_UNAVAILABLE "SIDELINK.1003" "endpoint",
        "the endpoint has asked for a pause; ask again later"
        => "Ask again after `Retry-After` seconds.";
    /// A limit is reached: `limits.in_flight`, half of it by one caller, `limits.waiters`, `limits.exchanges`, `limits.batch_bodies`, or `limits.signed_bodies`.
    Shed(limit: Limit): SERVICE_UNAVAILABLE "SIDELINK.1004" "load, or operator",
        format!("this sidelink is at a limit ({}); ask again shortly", limit.name())
        => "Ask again after `Retry-After` seconds. `sidelink_shed_total` tells which limit. A batch that is all in memory is served all the same, unless there is no room to read its body.";
}

impl Error {
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

    /// The body, in the shape of the endpoint's errors, for the answer of this `X-Request-Id`.
    pub fn body(self, request_id: &HeaderValue) -> Bytes {
        let request_id = request_id.to_str().unwrap_or_default();
        let (code, message) = (self.code(), self.message());
        // All are plain ASCII without quotes or backslashes: a test holds them so, and a request id is checked.
        format!(r#"{{"error_code":"{code}","error_msg":"{message}","request_id":"{request_id}"}}"#).into()
    }

    /// The error as a response to the request of this id, without the headers that every response gets.
    pub fn response(self, request_id: &HeaderValue) -> Response<Bytes> {
        let mut response = Response::new(self.body(request_id));
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
            Error::TooManyIds(TooMany { came: 1001, allowed: 1000 }),
            Error::BodyTooLarge(1 << 20),
            Error::SignedBodyTooLarge(1 << 20),
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
            let response = error.response(&HeaderValue::from_static("an.id-1"));
            let body: serde_json::Value = serde_json::from_slice(response.body()).unwrap();
            assert_eq!(body["request_id"], "an.id-1");
            assert_eq!(body["error_code"], error.code());
            assert_eq!(body["error_msg"], *error.message());
            let temporary = response.status() == StatusCode::SERVICE_UNAVAILABLE;
            assert_eq!(response.headers().contains_key(RETRY_AFTER), temporary);
        }
    }
}
