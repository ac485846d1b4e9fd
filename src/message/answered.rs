//! An answer on its way out, with what metrics and the access log want to know of it.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION};
use http::{HeaderValue, Response, Version};

use crate::api;
use crate::error::Error;
use crate::message::body::{Body, whole};
use crate::message::headers::{add_via, request_id};
use crate::telemetry::metrics::{Outcome, Tally};

/// An answer and how it came about.
pub struct Answered {
    /// The answer.
    pub response: Response<Body>,
    /// How it came about.
    pub outcome: Outcome,
    /// What became of the ids of a batch.
    pub tally: Tally,
    /// The caller's short hash, if it was told.
    pub caller: Option<u32>,
    /// How long the endpoint was waited for, if it was.
    pub waited: Option<Duration>,
    /// The code of an error of sidelink's own, or why a batch was forwarded untouched.
    pub detail: Option<&'static str>,
}

impl Answered {
    /// An answer that was not made from links.
    pub fn new(response: Response<Body>, outcome: Outcome) -> Self {
        Self { response, outcome, tally: Tally::default(), caller: None, waited: None, detail: None }
    }

    /// An answer of sidelink's own.
    pub fn own(error: Error) -> Self {
        let mut answered = Self::made_here(error.response(), Outcome::Error);
        if matches!(error, Error::BodyTooLarge | Error::SignedBodyTooLarge | Error::Malformed(_)) {
            answered.response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        Self { detail: Some(error.code()), ..answered }
    }

    /// An answer that the endpoint has no part in.
    pub fn made_here(response: Response<Bytes>, outcome: Outcome) -> Self {
        let mut response = response.map(whole);
        let headers = response.headers_mut();
        headers.insert(api::REQUEST_ID, request_id());
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        add_via(headers, Version::HTTP_11);
        Self::new(response, outcome)
    }
}
