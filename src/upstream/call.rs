//! Calls and their answers.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, USER_AGENT, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

use super::coding;
use crate::auth::Caller;
use crate::auth::signature::{self, Signer};
use crate::clock::Moment;
use crate::error::Error;
use crate::limits::pause::Paused;

/// One request to the endpoint for a batch's misses.
pub struct Call {
    /// Path and query.
    pub target: String,
    /// Empty for the query forms.
    pub body: Bytes,
    /// The caller's credential and scope headers, and its trace context.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Signs each attempt, if the batch was signed.
    pub signer: Option<Signer>,
    /// Sidelinks that the batch had passed before this one.
    pub hops: usize,
    /// The caller that it is made for.
    pub caller: Caller,
    /// Whether the endpoint has accepted the caller.
    pub accepted: bool,
    /// The ids that it asks for.
    pub ids: Vec<Box<str>>,
}

/// Why a call is refused.
#[derive(Clone, Debug)]
pub enum Rejection {
    /// Calls of its source fail; the time until the next may be made.
    Breaker(Duration),
    /// The endpoint has asked for a pause.
    Pause(Paused),
}

impl Rejection {
    /// The answer in which the endpoint asked for a pause.
    pub fn answer(&self) -> Option<Response<Bytes>> {
        match self {
            Rejection::Breaker(_) => None,
            Rejection::Pause(paused) => paused.answer(),
        }
    }

    /// The error for a client that gets no answer of the endpoint's.
    pub fn error(&self) -> Error {
        match self {
            Rejection::Breaker(wait) => Error::BreakerOpen(*wait),
            Rejection::Pause(paused) => Error::HeldBack(paused.left),
        }
    }
}

/// The endpoint's answer to a call, whole and decoded.
#[derive(Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers; `Content-Encoding` is gone where the body was decoded.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// When the call was sent.
    pub sent: Moment,
}

impl Call {
    /// Its request, to `uri`; signed for `host`, at `now` in Unix seconds, if the batch was signed.
    pub(super) fn request(&self, uri: Uri, host: &str, now: u64) -> Request<Bytes> {
        let target = uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = Method::GET;
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidelink/", env!("CARGO_PKG_VERSION"))));
        for _ in 0..=self.hops {
            headers.append(VIA, HeaderValue::from_static("1.1 sidelink"));
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if let Some(signer) = &self.signer {
            signer.sign(&Method::GET, &target, headers, host, &signature::hash(&self.body), now);
        }
        request
    }
}

impl Answer {
    /// Whether its body is in a coding that cannot be decoded.
    pub fn is_coded(&self) -> bool {
        coding::is_coded(&self.headers)
    }

    /// The same as a response.
    pub fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}
