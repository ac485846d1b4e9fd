//! Calls and their answers.

use std::sync::Arc;

use bytes::Bytes;
use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, USER_AGENT, VIA};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};

use crate::auth::Caller;
use crate::auth::signature::{self, Signer};
use crate::clock::Moment;
use crate::config;
use crate::telemetry::metrics::ApiMetrics;

/// One request to the endpoint for a batch's misses.
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub target: String,
    /// Empty for the query forms.
    pub body: Bytes,
    /// The caller's credential and scope headers, the body's Content-Type, and the trace context.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Signs each attempt, if the batch was signed.
    pub signer: Option<Signer>,
    /// Sidelinks that the batch has passed before this one.
    pub hops: usize,
    /// The caller that it is made for.
    pub caller: Caller,
    /// Whether the endpoint has accepted the caller.
    pub accepted: bool,
    /// The ids that it asks for.
    pub ids: Vec<Box<str>>,
    /// Where its attempts count their ids.
    pub metrics: Arc<ApiMetrics>,
}

/// The endpoint's answer to a call, complete and decoded.
#[derive(Clone)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers; `Content-Encoding` is gone where the body was decoded.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Bytes,
    /// Whether its framing says where it ends, so that it is known to be complete; not where its connection ended with it.
    pub is_delimited: bool,
    /// When the call was sent.
    pub sent: Moment,
}

impl Call {
    /// Its request to `endpoint`; signed at `now`, in Unix seconds, if the batch was signed. `None` if its target is invalid.
    pub(super) fn request(&self, endpoint: &config::Endpoint, now: u64) -> Option<Request<Bytes>> {
        let target = PathAndQuery::try_from(self.target.as_str()).ok()?;
        let mut request = Request::new(self.body.clone());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = endpoint.uri(target.clone());
        let headers = request.headers_mut();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        if self.method != Method::POST {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        } else if self.body.is_empty() {
            // hyper writes none without a body, and servers may insist on it (411).
            headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
        }
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("sidelink/", env!("CARGO_PKG_VERSION"))));
        for _ in 0..=self.hops {
            headers.append(VIA, HeaderValue::from_static("1.1 sidelink"));
        }
        // The client's, where they are part of what is asked.
        for constant in [ACCEPT, CONTENT_TYPE] {
            if self.headers.iter().any(|(name, _)| *name == constant) {
                headers.remove(constant);
            }
        }
        for (name, value) in &self.headers {
            headers.append(name, value.clone());
        }
        if let Some(signer) = &self.signer {
            let host = endpoint.authority.as_str();
            signer.sign(&self.method, &target, headers, host, &signature::hash(&self.body), now);
        }
        Some(request)
    }
}

impl Answer {
    /// Whether its body is in a coding that cannot be decoded.
    pub fn is_coded(&self) -> bool {
        self.headers.contains_key(CONTENT_ENCODING)
    }

    /// Whether a body that is no JSON may be the beginning of one: it ended with its connection, and claims to be JSON.
    pub fn may_be_cut_off(&self) -> bool {
        let is_json = |media_type: &HeaderValue| {
            let essence = media_type.as_bytes().split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
            essence.to_ascii_lowercase().ends_with(b"json")
        };
        !self.is_delimited && self.headers.get(CONTENT_TYPE).is_none_or(is_json)
    }

    /// The same as a response.
    pub fn response(&self) -> Response<Bytes> {
        let mut response = Response::new(self.body.clone());
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        response
    }
}
