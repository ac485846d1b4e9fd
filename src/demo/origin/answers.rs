//! The bodies that the simulated endpoint answers with.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::api;
use crate::message::body::{Body, whole};

/// 9999-12-31T23:59:59Z, the last date that HTTP can write.
const LAST_DATE: u64 = 253_402_300_799;

/// An error in the API's shape.
pub(super) fn error(status: u16, code: &str, message: &str, serial: usize) -> Response<Body> {
    let request_id = request_id(serial);
    let body = json!({"error_code": code, "error_msg": message, "request_id": request_id});
    let mut response = json(status, &body);
    if status == 429 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    }
    response
}

/// A JSON answer; a `status` that is none becomes a 500.
pub(super) fn json(status: u16, body: &Value) -> Response<Body> {
    let mut response = Response::new(whole(body.to_string().into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// What every answer has: a date, by the simulated clock, and a name.
pub(super) fn stamp(headers: &mut HeaderMap, unix_seconds: u64, serial: usize) {
    // Beyond it, formatting panics.
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_seconds.min(LAST_DATE)));
    for (name, value) in [(DATE, date), (api::REQUEST_ID, request_id(serial))] {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
}

fn request_id(serial: usize) -> String {
    format!("{serial:032x}")
}

/// Compresses `body` where the client accepts gzip.
pub(super) fn gzip(request: &HeaderMap, response: &mut HeaderMap, body: Bytes) -> Bytes {
    if !accepts_gzip(request) {
        return body;
    }
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    // Writing to memory does not fail.
    match encoder.write_all(&body).and_then(|()| encoder.finish()) {
        Ok(coded) => {
            response.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
            coded.into()
        }
        Err(_) => body,
    }
}

fn accepts_gzip(request: &HeaderMap) -> bool {
    let values = request.get_all(ACCEPT_ENCODING).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let refused = |part: &str| {
            let weight = part.strip_prefix("q=").or_else(|| part.strip_prefix("Q="));
            weight.and_then(|weight| weight.parse::<f32>().ok()).is_some_and(|weight| weight <= 0.0)
        };
        parts.next().is_some_and(|name| name.eq_ignore_ascii_case("gzip")) && !parts.any(refused)
    })
}
