//! Requests on other routes, and the framing of any answer.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper_util::client::legacy::Error as ClientError;

use super::Upstream;
use super::client::{Outgoing, SendProgress};
use crate::error::{Error, NoAnswer};
use crate::message::body::Body;
use crate::telemetry::log::chain;
use crate::telemetry::metrics::Code;

/// The reason that is logged where the head of an answer on another route is invalid.
const BAD_HEAD: &str =
    "its lengths differ, its transfer coding is not chunked, or it is an upgrade that nobody asked for";

impl Upstream {
    /// Sends any other request, whose hop-by-hop headers are gone already, and returns the answer as it streams in. A missing
    /// Host becomes the endpoint's. An idempotent request without a body (RFC 9110 §9.2.2) is sent again where its connection is
    /// lost.
    ///
    /// # Errors
    /// If there is no answer's head.
    pub async fn forward(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = self.config.endpoint.uri(target);
        *request.version_mut() = Version::HTTP_11;
        let outgoing = if request.method().is_idempotent() && request.body().is_end_stream() {
            Outgoing::Repeatable(request.map(|_| Bytes::new()))
        } else {
            Outgoing::Once(request)
        };
        let response = self.http1_client.send(outgoing, false, &SendProgress::default()).await;
        let checked = self.checked(response.map_err(|error| self.no_answer(&error))?);
        checked.inspect_err(|_| self.failures.unusable(&self.clock, BAD_HEAD))
    }

    /// An answer with unambiguous framing, which is counted. A 101 is none: no request asks for an upgrade.
    pub(super) fn checked(&self, mut response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
        self.metrics.upstream_responses.of(Code::from(response.status())).inc();
        if response.status().is_informational() || !normalize_length(response.headers_mut()) {
            return Err(Error::NoAnswer(NoAnswer::Unreadable));
        }
        Ok(response)
    }

    /// Notes why there is no answer. The client gets this error.
    pub(super) fn no_answer(&self, error: &ClientError) -> Error {
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<hyper::Error>());
        // A client whose upload breaks off says nothing about the endpoint.
        if !cause.is_some_and(hyper::Error::is_user) {
            self.failures.no_answer(&self.clock, &chain(error));
        }
        Error::NoAnswer(if error.is_connect() { NoAnswer::Connect } else { NoAnswer::Broken })
    }
}

/// Leaves an answer's head at most one Content-Length: none beside a Transfer-Encoding, by which hyper has framed the body, and one
/// for several equal ones (RFC 9112 §6.3). `false` where lengths differ or are no numbers (hyper does not look where status or
/// method exclude a body), and where a transfer coding remains that nobody decodes.
fn normalize_length(headers: &mut HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
    if let Some(coding) = codings.next() {
        let is_decoded = [&b"chunked"[..], b"identity"].iter().any(|known| coding.eq_ignore_ascii_case(known));
        let is_one = codings.next().is_none();
        headers.remove(CONTENT_LENGTH);
        return is_one && is_decoded;
    }
    let mut length: Option<u64> = None;
    for value in headers.get_all(CONTENT_LENGTH) {
        for text in value.to_str().unwrap_or_default().split(',').map(str::trim) {
            let number = text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
            if number.is_none() || length.is_some() && length != number {
                return false;
            }
            length = number;
        }
    }
    length.map(|length| headers.insert(CONTENT_LENGTH, HeaderValue::from(length)));
    true
}
