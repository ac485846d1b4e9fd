//! A reply on its way to the client, with what metrics, the access log and traces say of it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, Version};

use crate::api::errors;
use crate::config::batch::ErrorShape;
use crate::error::Error;
use crate::message::body::{Body, drain, whole};
use crate::message::headers::{REQUEST_ID, add_via, expects_continue, request_id};
use crate::telemetry::metrics::{Outcome, Source, Tally};

/// A response, and how it came about.
pub struct Reply {
    /// The response.
    pub response: Response<Body>,
    /// How it came about.
    pub info: ReplyInfo,
}

/// How a reply came about.
#[derive(Clone, Copy)]
pub struct ReplyInfo {
    /// How the request was answered.
    pub outcome: Outcome,
    /// Who has decided on the status.
    pub source: Source,
    /// The results of a batch's ids.
    pub tally: Tally,
    /// The caller's short hash, if the caller is known.
    pub caller: Option<u32>,
    /// The short hash of its user, if the caller is known to be one.
    pub user: Option<u32>,
    /// How long the request waited for the endpoint, if it did.
    pub waited: Option<Duration>,
    /// The error, or the reason why the batch was not answered from entries.
    pub detail: Option<Detail>,
}

/// An error, or the reason why a batch was not answered from entries.
#[derive(Clone, Copy)]
pub enum Detail {
    /// An error, for which sidelink has made the reply.
    Error(Error),
    /// Why a batch was forwarded untouched, or that its answer is a remembered refusal.
    Named(&'static str),
}

impl ReplyInfo {
    /// The error, where sidelink has made the reply for one.
    pub fn error(&self) -> Option<Error> {
        match self.detail {
            Some(Detail::Error(error)) => Some(error),
            Some(Detail::Named(_)) | None => None,
        }
    }
}

impl Detail {
    /// What the log says of it: the code of the error, or the name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error(error) => error.code(),
            Self::Named(name) => name,
        }
    }
}

impl Reply {
    /// A reply of no batch. The endpoint has decided on the status of a bypass and of an error.
    pub fn new(response: Response<Body>, outcome: Outcome) -> Self {
        let is_endpoints = matches!(outcome, Outcome::Bypass | Outcome::Error);
        let source = if is_endpoints { Source::Endpoint } else { Source::Sidelink };
        let info = ReplyInfo {
            outcome,
            source,
            tally: Tally::default(),
            caller: None,
            user: None,
            waited: None,
            detail: None,
        };
        Self { response, info }
    }

    /// An error of sidelink's own.
    pub fn error(error: Error) -> Self {
        let id = request_id();
        let mut reply = Self::local(error.response(&id), Outcome::Error, id);
        if matches!(error, Error::BodyTooLarge(_) | Error::SignedBodyTooLarge(_) | Error::Malformed(_)) {
            reply.response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        reply.info.detail = Some(Detail::Error(error));
        reply
    }

    /// As [`Self::error`], for a request whose body is not read. The body is read and discarded for a while, so that the client gets
    /// to read the reply; not if the client waits for a 100, since reading would tell it to send the body.
    pub fn refuse<B>(error: Error, request: Request<B>) -> Self
    where
        B: http_body::Body<Data = Bytes, Error: Send> + Send + 'static,
    {
        if !expects_continue(request.version(), request.headers(), request.body()) {
            drain(request.into_body());
        }
        Self::error(error)
    }

    /// A response of this `X-Request-Id` that the endpoint has no part in.
    pub fn local(response: Response<Bytes>, outcome: Outcome, id: HeaderValue) -> Self {
        let mut response = response.map(whole);
        let headers = response.headers_mut();
        headers.insert(REQUEST_ID, id);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        add_via(headers, Version::HTTP_11);
        let mut reply = Self::new(response, outcome);
        reply.info.source = Source::Sidelink;
        reply
    }

    /// Names the reply as its client named the request, if it did.
    pub fn set_request_id(&mut self, id: Option<&HeaderValue>) {
        let Some(id) = id else { return };
        self.response.headers_mut().insert(REQUEST_ID, id.clone());
        if let Some(error) = self.info.error() {
            *self.response.body_mut() = whole(error.body(id));
        }
    }

    /// Gives an error of sidelink's own this shape.
    pub fn shape_error(&mut self, shape: &ErrorShape) {
        let headers = self.response.headers_mut();
        let (Some(error), Some(id)) = (self.info.error(), headers.get(REQUEST_ID)) else { return };
        let body = errors::body(shape, error, id);
        if let Ok(media_type) = HeaderValue::from_str(&shape.media_type) {
            headers.insert(CONTENT_TYPE, media_type);
        }
        *self.response.body_mut() = whole(body);
    }

    /// The same reply, after `waited` for the endpoint.
    pub fn after(mut self, waited: Duration) -> Self {
        self.info.waited = Some(waited);
        self
    }
}
