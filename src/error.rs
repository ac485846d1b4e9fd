//! What sidelink itself has to say when it cannot give an answer: whose fault, which status, which code.
//!
//! One shape, the API's own: `{"error_code":"SIDELINK.…","error_msg":"…"}` (`docs/ERRORS.md`). The endpoint's errors are not
//! here: they are passed on as they came. Messages are fixed texts, so that no secret can be in one.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderValue, Response, StatusCode};

pub use crate::metrics::Limit;

/// Why a request gets an answer of sidelink's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// More distinct ids than `limits.batch_ids`.
    TooManyIds,
    /// A batch's body over `limits.batch_body`.
    BodyTooLarge,
    /// A body that has to be hashed to be signed again, over `limits.signed_body`.
    SignedBodyTooLarge,
    /// A signature by a known key that proves nothing.
    Signature(Fault),
    /// `only-if-cached`, and not all ids are here.
    NotCached,
    /// Not a request that HTTP allows.
    Malformed(&'static str),
    /// CONNECT: sidelink is no tunnel.
    Connect,
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

/// Why a signature proves nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A part is missing or unreadable, or a header that it covers is missing, there twice or named by `Connection`.
    Malformed,
    /// No `X-Sdk-Date`, or an unreadable one.
    Date,
    /// More than 15 minutes before or after now.
    Expired,
    /// It does not cover the host.
    Host,
    /// The body is not the one whose hash is stated.
    Payload,
    /// It is not what the key makes of the request.
    Mismatch,
}

impl Error {
    /// The status that the client gets.
    pub fn status(self) -> StatusCode {
        match self {
            Error::TooManyIds | Error::Malformed(_) => StatusCode::BAD_REQUEST,
            Error::BodyTooLarge | Error::SignedBodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Error::Signature(_) => StatusCode::UNAUTHORIZED,
            Error::NotCached | Error::Deadline => StatusCode::GATEWAY_TIMEOUT,
            Error::Connect => StatusCode::METHOD_NOT_ALLOWED,
            Error::Misdirected => StatusCode::MISDIRECTED_REQUEST,
            Error::Loop => StatusCode::LOOP_DETECTED,
            Error::NoAnswer(_) => StatusCode::BAD_GATEWAY,
            Error::BreakerOpen(_) | Error::HeldBack(_) | Error::Shed(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    /// The code in the body; stable, unlike the message.
    pub fn code(self) -> &'static str {
        match self {
            Error::TooManyIds => "SIDELINK.0001",
            Error::BodyTooLarge | Error::SignedBodyTooLarge => "SIDELINK.0002",
            Error::Signature(_) => "SIDELINK.0003",
            Error::NotCached => "SIDELINK.0004",
            Error::Malformed(_) | Error::Connect | Error::Misdirected => "SIDELINK.0005",
            Error::Loop => "SIDELINK.0006",
            Error::NoAnswer(_) => "SIDELINK.1001",
            Error::Deadline => "SIDELINK.1002",
            Error::BreakerOpen(_) | Error::HeldBack(_) => "SIDELINK.1003",
            Error::Shed(_) => "SIDELINK.1004",
        }
    }

    /// Whose fault it is and what to do.
    pub fn message(self) -> &'static str {
        match self {
            Error::TooManyIds => "the batch has more ids than this sidelink allows; ask in smaller batches",
            Error::BodyTooLarge => "the body is larger than this sidelink allows; ask in smaller batches",
            Error::SignedBodyTooLarge => {
                "the body is larger than this sidelink signs again; send it as UNSIGNED-PAYLOAD, or sign for the endpoint's own host"
            }
            Error::Signature(Fault::Malformed) => {
                "the signature cannot be read, or a header that it covers is missing, there twice or named by Connection; see docs/SDK.md"
            }
            Error::Signature(Fault::Date) => "the signed request has no X-Sdk-Date such as 20261124T151707Z",
            Error::Signature(Fault::Expired) => {
                "the signature's date is more than 15 minutes from this sidelink's; set the clock that is wrong"
            }
            Error::Signature(Fault::Host) => "the signature does not cover the Host header; sign it too",
            Error::Signature(Fault::Payload) => "the body is not the one whose hash X-Sdk-Content-Sha256 states",
            Error::Signature(Fault::Mismatch) => {
                "the signature does not match the request; the secret key differs, or something on the way changed the request"
            }
            Error::NotCached => "only-if-cached was asked, and not all links are in memory",
            Error::Malformed(message) => message,
            Error::Connect => "sidelink is no tunnel; use an http:// base URL",
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
        if self == Error::Connect {
            let allowed = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS");
            response.headers_mut().insert(ALLOW, allowed);
        }
        if matches!(self, Error::Signature(_)) {
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
            Error::Signature(Fault::Malformed),
            Error::Signature(Fault::Date),
            Error::Signature(Fault::Expired),
            Error::Signature(Fault::Host),
            Error::Signature(Fault::Payload),
            Error::Signature(Fault::Mismatch),
            Error::NotCached,
            Error::Malformed("no Host header"),
            Error::Connect,
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
