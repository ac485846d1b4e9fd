//! The neighbouring routes of the simulated endpoint, for what a proxy only passes through; they ask for no credential, and
//! refuse a signature that is wrong. And a route of no API: what it was asked.

use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{CONNECTION, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::answers::{error, json as json_answer};
use super::credential::signed_by;
use super::{Broken, Origin};
use crate::config::KeyPair;
use crate::message::body::{Body, stream as streamed, whole};

const ACCESSORYS: &str = "/v2/servicerequest/accessorys";
const ECHO: &str = "/v2/servicerequest/echo";
/// Of no API: tells whoever compares what stands before it how much still came through.
const COUNTS: &str = "/counts";
/// Most bytes of a body that are echoed.
const MOST_ECHOED: usize = 64 << 10;
/// A piece of a download.
static CHUNK: [u8; 16 << 10] = [b'x'; 16 << 10];

/// Answers a request that is no batch; a signature is verified with `keys` at `now`, in Unix seconds.
///
/// # Errors
/// [`Broken`] if its body breaks off.
pub(super) async fn answer(
    origin: &Origin,
    parts: &Parts,
    body: Incoming,
    keys: &[KeyPair],
    now: u64,
    serial: usize,
) -> Result<Response<Body>, Broken> {
    let taken = Taken::read(body).await?;
    if let Err((code, message)) = signed_by(parts, &taken.hash, keys, now) {
        return Ok(error(401, code, message, serial));
    }
    Ok(match (&parts.method, parts.uri.path()) {
        (&Method::GET, COUNTS) => counts(origin),
        (_, ECHO) => echo(parts, &taken),
        (&Method::POST, ACCESSORYS) => {
            json_answer(200, &json!({"accessory_id": format!("up-{serial}"), "bytes": taken.bytes}))
        }
        (&Method::GET, path) if is_accessory(path) => download(parts),
        (&Method::DELETE, path) if is_accessory(path) => {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        }
        _ => error(404, "APIGW.0101", "The API does not exist", serial),
    })
}

/// What the batch route was asked since the start.
fn counts(origin: &Origin) -> Response<Body> {
    let (calls, asked, distinct) = (origin.batch_calls(), origin.ids_asked(), origin.distinct_ids());
    json_answer(200, &json!({"batch_calls": calls, "ids_asked": asked, "distinct_ids": distinct}))
}

/// What is left of a body that streamed in.
struct Taken {
    bytes: usize,
    /// Its first 64 KiB.
    kept: Vec<u8>,
    hash: String,
}

impl Taken {
    async fn read(mut body: Incoming) -> Result<Self, Broken> {
        let (mut bytes, mut kept, mut hash) = (0, Vec::new(), Sha256::new());
        while let Some(frame) = body.frame().await {
            if let Some(piece) = frame.map_err(Broken::other)?.data_ref() {
                bytes += piece.len();
                hash.update(piece);
                let room = MOST_ECHOED - kept.len();
                kept.extend(piece.iter().take(room));
            }
        }
        Ok(Self { bytes, kept, hash: hex::encode(hash.finalize()) })
    }
}

/// Whether it is `…/accessorys/{ids}`.
fn is_accessory(path: &str) -> bool {
    let ids = path.strip_prefix(ACCESSORYS).and_then(|rest| rest.strip_prefix('/'));
    ids.is_some_and(|ids| !ids.is_empty() && !ids.contains('/'))
}

/// Streams `?bytes=N` bytes (1 MiB) in chunks, `?chunk_delay_ms=` apart (0).
fn download(parts: &Parts) -> Response<Body> {
    let parameter = |name: &str| {
        let mut pairs = parts.uri.query().unwrap_or("").split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(known, _)| *known == name).and_then(|(_, value)| value.parse::<usize>().ok())
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
        Some((Ok::<_, Broken>(Frame::data(chunk)), left))
    });
    let mut response = Response::new(streamed(StreamBody::new(chunks)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(total));
    response
}

/// Tells what it was sent: `method`, `target` (path and query, raw), `headers` (pairs), `body_bytes` and `body` (its
/// first 64 KiB, as text).
fn echo(parts: &Parts, taken: &Taken) -> Response<Body> {
    let headers: Vec<[String; 2]> = parts
        .headers
        .iter()
        .map(|(name, value)| [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
        .collect();
    let mut response = json_answer(
        200,
        &json!({
            "method": parts.method.as_str(),
            "target": parts.uri.path_and_query().map(ToString::to_string),
            "headers": headers,
            "body_bytes": taken.bytes,
            "body": String::from_utf8_lossy(&taken.kept),
        }),
    );
    // Headers of one connection, for a proxy to remove.
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("x-hop"));
    response.headers_mut().insert("x-hop", HeaderValue::from_static("1"));
    response
}
