//! All routes of the simulated endpoint but the batch route, for tests of the pass-through. They need no credential, and refuse
//! a wrong one. And `/counts`, a route of no API: how much the batch route was asked.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::interface::ACCESSORIES;
use super::request::{access_key, token};
use super::{Exchange, json_answer};
use crate::message::body::{Body, stream as streamed, whole};

const ECHO: &str = "/v2/servicerequest/echo";
/// For comparisons of proxies: tells how much came through.
const COUNTS: &str = "/counts";
const MOST_ECHOED: usize = 64 << 10;
static CHUNK: [u8; 16 << 10] = [b'x'; 16 << 10];

/// Answers a request that is no batch.
///
/// # Errors
/// If its body breaks off.
pub(super) async fn answer(exchange: &Exchange, body: Incoming) -> io::Result<Response<Body>> {
    let parts = &exchange.parts;
    let body = ReadBody::read(body).await?;
    if let Err((code, message)) = access_key(parts, &body.hash, &exchange.options.keys, exchange.now) {
        return Ok(exchange.error(401, code, message));
    }
    let credential = match &exchange.options.api.simulated {
        None => token(parts).map(str::to_owned),
        Some(api) => api.credential(parts),
    };
    if let Some(Err((code, message))) = credential.map(|credential| exchange.owner(&credential).map(drop)) {
        return Ok(exchange.error(401, code, message));
    }
    let response = match (&parts.method, parts.uri.path()) {
        (&Method::GET, COUNTS) => {
            let origin = &exchange.origin;
            json_answer(200, &json!({"batch_calls": origin.batch_calls(), "ids_asked": origin.ids_asked()})).map(whole)
        }
        (_, ECHO) => echo(parts, &body),
        (&Method::POST, ACCESSORIES) => {
            let id = format!("up-{}", exchange.serial);
            json_answer(200, &json!({"accessory_id": id, "bytes": body.bytes})).map(whole)
        }
        (&Method::GET, path) if is_accessory(path) => download(parts),
        (&Method::DELETE, path) if is_accessory(path) => {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        _ => exchange.error(404, "APIGW.0101", "The API does not exist"),
    };
    Ok(exchange.stamped(response))
}

/// The length, the beginning and the hash of a body.
struct ReadBody {
    bytes: usize,
    /// The first 64 KiB.
    beginning: Vec<u8>,
    hash: String,
}

impl ReadBody {
    async fn read(mut body: Incoming) -> io::Result<Self> {
        let (mut bytes, mut beginning, mut hash) = (0, Vec::new(), Sha256::new());
        while let Some(frame) = body.frame().await {
            if let Some(data) = frame.map_err(io::Error::other)?.data_ref() {
                bytes += data.len();
                hash.update(data);
                beginning.extend(data.iter().take(MOST_ECHOED - beginning.len()));
            }
        }
        Ok(Self { bytes, beginning, hash: hex::encode(hash.finalize()) })
    }
}

/// Whether it is `…/accessorys/{ids}`.
fn is_accessory(path: &str) -> bool {
    let ids = path.strip_prefix(ACCESSORIES).and_then(|rest| rest.strip_prefix('/'));
    ids.is_some_and(|ids| !ids.is_empty() && !ids.contains('/'))
}

/// Streams `?bytes=N` bytes (1 MiB) in chunks, `?chunk_delay_ms=` apart (0).
fn download(parts: &Parts) -> Response<Body> {
    let parameter = |name: &str| {
        let mut pairs = parts.uri.query().unwrap_or("").split('&');
        pairs.find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')?.parse::<usize>().ok())
    };
    let total = parameter("bytes").unwrap_or(1 << 20);
    let delay = Duration::from_millis(parameter("chunk_delay_ms").unwrap_or(0) as u64);
    let chunks = stream::unfold(total, move |left| async move {
        if left == 0 {
            return None;
        }
        if left < total && !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        let mut chunk = Bytes::from_static(&CHUNK);
        chunk.truncate(left);
        let left = left - chunk.len();
        Some((Ok::<_, io::Error>(Frame::data(chunk)), left))
    });
    let mut response = Response::new(streamed(StreamBody::new(chunks)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(total));
    response
}

/// Returns the request: `method`, `target` (path and query, raw), `headers` (pairs), `body_bytes` and `body` (its first 64 KiB,
/// as text).
fn echo(parts: &Parts, body: &ReadBody) -> Response<Body> {
    let pair = |(name, value): (&HeaderName, &HeaderValue)| {
        [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()]
    };
    let echo = json!({
        "method": parts.method.as_str(),
        "target": parts.uri.path_and_query().map(ToString::to_string),
        "headers": parts.headers.iter().map(pair).collect::<Vec<_>>(),
        "body_bytes": body.bytes,
        "body": String::from_utf8_lossy(&body.beginning),
    });
    let mut response = json_answer(200, &echo).map(whole);
    // Headers of one connection, for a proxy to remove.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("x-hop"));
    response.headers_mut().insert("x-hop", HeaderValue::from_static("1"));
    response
}
