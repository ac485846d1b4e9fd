//! Parts of the simulated endpoint's answers.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::Exchange;
use crate::api;
use crate::message::body::{Body, whole};

/// 9999-12-31T23:59:59Z, the last date that HTTP can write.
const LAST_DATE: u64 = 253_402_300_799;

/// A JSON answer; an invalid `status` becomes a 500.
pub(super) fn json_answer(status: u16, body: &Value) -> Response<Bytes> {
    let mut response = Response::new(Bytes::from(body.to_string()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

impl Exchange {
    /// An error in the API's shape.
    pub(super) fn error(&self, status: u16, code: &str, message: &str) -> Response<Body> {
        let body = json!({"error_code": code, "error_msg": message, "request_id": self.request_id()});
        let mut response = self.stamped(json_answer(status, &body));
        if status == 429 {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
        }
        response.map(whole)
    }

    /// Adds what every answer has: a date, by the simulated clock, and a request id.
    pub(super) fn stamped<B>(&self, mut response: Response<B>) -> Response<B> {
        // Beyond it, formatting panics.
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.now.min(LAST_DATE)));
        for (name, value) in [(DATE, date), (api::REQUEST_ID, self.request_id())] {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        response
    }

    fn request_id(&self) -> String {
        format!("{:032x}", self.serial)
    }
}

/// Compresses `response` where the client accepts gzip.
pub(super) fn gzip(request: &HeaderMap, response: &mut Response<Bytes>) {
    if !accepts_gzip(request) {
        return;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory does not fail.
    if let Ok(coded) = encoder.write_all(response.body()).and_then(|()| encoder.finish()) {
        *response.body_mut() = coded.into();
        response.headers_mut().insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let (name, parameters) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = parameters.trim().to_ascii_lowercase();
        let is_refused = weight.strip_prefix("q=").and_then(|weight| weight.parse::<f32>().ok()) == Some(0.0);
        name.trim().eq_ignore_ascii_case("gzip") && !is_refused
    })
}
