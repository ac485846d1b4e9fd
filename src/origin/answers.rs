//! The bodies that the simulated endpoint answers with.

use std::io::Write;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, DATE, RETRY_AFTER};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use crate::api;
use crate::body::{Body, whole};

/// An error in the API's shape.
pub(super) fn error(status: u16, code: &str, message: &str, serial: usize) -> Response<Body> {
    let request_id = request_id(serial);
    let body = json!({"error_code": code, "error_msg": message, "request_id": request_id});
    let mut response = json(status, &body, serial);
    if status == 429 {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("2"));
    }
    response
}

/// A JSON answer.
pub(super) fn json(status: u16, body: &Value, serial: usize) -> Response<Body> {
    let mut response = Response::new(whole(body.to_string().into()));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(request_id) = HeaderValue::from_str(&request_id(serial)) {
        headers.insert(api::REQUEST_ID, request_id);
    }
    response
}

fn request_id(serial: usize) -> String {
    format!("{serial:032x}")
}

/// Dates an answer by the simulated clock.
pub(super) fn date(headers: &mut HeaderMap, unix_seconds: u64) {
    let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_seconds));
    if let Ok(date) = HeaderValue::from_str(&date) {
        headers.insert(DATE, date);
    }
}

/// Compresses `body` where the client accepts gzip.
pub(super) fn gzip(request: &HeaderMap, response: &mut HeaderMap, body: Bytes) -> Bytes {
    let accepts = request.get(ACCEPT_ENCODING).and_then(|value| value.to_str().ok());
    if !accepts.is_some_and(|value| value.contains("gzip")) {
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
