//! Requests on other routes, and what an answer's head says.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderValue, Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use super::Upstream;
use super::client::{Outgoing, Progress, SendError};
use crate::error::{Error, NoAnswer};
use crate::message::body::Body;
use crate::telemetry::log::chain;

/// Why an answer on another route is none, where no library says so.
const BAD_HEAD: &str =
    "its lengths differ, its transfer coding is not chunked, or it is an upgrade that nobody asked for";

impl Upstream {
    /// Sends any other request, its hop-by-hop headers gone already, and hands back the answer as it streams in. Its Host
    /// stays as it is; where it has none, it is the endpoint's. An idempotent request without a body (RFC 9110 §9.2.2) is sent
    /// again where its connection is lost.
    ///
    /// # Errors
    /// If there is no answer's head.
    pub async fn forward(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = self.uri(target)?;
        *request.version_mut() = Version::HTTP_11;
        let outgoing = if request.method().is_idempotent() && request.body().is_end_stream() {
            Outgoing::Repeatable(request.map(|_| Bytes::new()))
        } else {
            Outgoing::Once(request)
        };
        let response = self.streams.send(outgoing, false, &Progress::default()).await;
        let answered = Self::answered(response.map_err(|error| self.unanswered(&error))?);
        answered.inspect_err(|_| self.failures.unusable(&self.clock, BAD_HEAD))
    }

    /// An answer, if it is one: a 101 is none to whoever has not asked for an upgrade, and nobody here does. Its framing is
    /// unambiguous.
    pub(super) fn answered(mut response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
        if response.status().is_informational() || !settle_length(response.headers_mut()) {
            return Err(Error::NoAnswer(NoAnswer::Unreadable));
        }
        Ok(response)
    }

    /// Says why there is no answer, and what that is to the client.
    pub(super) fn unanswered(&self, error: &SendError) -> Error {
        let error = &error.error;
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<hyper::Error>());
        // A client whose upload breaks off says nothing about the endpoint.
        if !cause.is_some_and(hyper::Error::is_user) {
            self.failures.no_answer(&self.clock, &chain(error));
        }
        Error::NoAnswer(if error.is_connect() { NoAnswer::Connect } else { NoAnswer::Broken })
    }
}

/// Leaves an answer's head one length at most: none beside a Transfer-Encoding, by which hyper has framed the body, and one for
/// several that are the same (RFC 9112 §6.3). Whether that could be done: not where lengths differ or are no numbers (hyper
/// does not look where there is no body by status or method), nor where a transfer coding is left that nobody undoes.
fn settle_length(headers: &mut HeaderMap) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter().map(HeaderValue::as_bytes);
    if let Some(coding) = codings.next() {
        let is_undone = [&b"chunked"[..], b"identity"].iter().any(|known| coding.eq_ignore_ascii_case(known));
        let is_one = codings.next().is_none();
        headers.remove(CONTENT_LENGTH);
        return is_one && is_undone;
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
    if let Some(length) = length {
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    true
}
