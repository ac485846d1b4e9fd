//! The routes of the simulated endpoint, and the batch route at length.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::answers::{self, error, gzip};
use super::asked::{self, Asked};
use super::credential::{Credential, Refusal};
use super::links::{Owner, link};
use super::{Broken, Call, Options, Origin, Reply, UnknownIds, lock, neighbours};
use crate::api;
use crate::auth::signature;
use crate::message::body::{Body, whole};

/// Most bytes of a batch's body.
const MOST_BYTES: usize = 1 << 20;
/// What a truncated reply announces beyond what it sends.
const CUT_OFF: usize = 64;

/// Answers one request.
///
/// # Errors
/// [`Broken`], to end the connection: the request's body breaks off, a reset is scripted, or the endpoint stops.
pub(super) async fn answer(origin: &Origin, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    let serial = origin.0.serial.fetch_add(1, Ordering::Relaxed);
    // A call goes by the options of its arrival.
    let options = lock(&origin.0.options).clone();
    let mut response = if parts.method == Method::GET && parts.uri.path() == api::PATH {
        match Limited::new(body, MOST_BYTES).collect().await {
            Ok(body) => {
                let body = body.to_bytes();
                let asked = asked::read(&parts, &body, options.max_ids);
                let now = now(origin, &options);
                let credential = Credential::of(&parts, &signature::hash(&body), &options.keys, now);
                let whose = credential.as_ref().map_or("", Credential::text);
                let faults = lock(&origin.0.faults).clone();
                let options = faults.apply(options.clone(), whose);
                if let Some(reply) = arrive(origin, &options, &parts, body, asked.as_ref().ok(), whose).await? {
                    return play(origin, reply).await;
                }
                let is_poisoned = asked.as_ref().is_ok_and(|asked| is_poisoned(&options, &asked.ids));
                if let Some(reply) = faults.poison_reply.filter(|_| is_poisoned) {
                    return play(origin, reply).await;
                }
                batch(&options, &parts, credential, asked, now, serial)
            }
            Err(reason) if reason.is::<LengthLimitError>() => {
                error(413, "APIGW.0201", "Request entity too large", serial)
            }
            Err(reason) => return Err(Broken::other(reason)),
        }
    } else {
        neighbours::answer(origin, &parts, body, &options.keys, now(origin, &options), serial).await?
    };
    answers::stamp(response.headers_mut(), now(origin, &options), serial);
    Ok(response)
}

/// The endpoint's clock, in Unix seconds.
fn now(origin: &Origin, options: &Options) -> u64 {
    (origin.0.clock.now().unix_millis() / 1000).saturating_add_signed(options.clock_offset)
}

/// Counts and records a call on the batch route, and waits until it may go on. Returns the reply scripted for it.
async fn arrive(
    origin: &Origin,
    options: &Options,
    parts: &Parts,
    body: Bytes,
    asked: Option<&Asked>,
    whose: &str,
) -> Result<Option<Reply>, Broken> {
    let origin = &origin.0;
    if let Some(asked) = asked {
        origin.count(whose, asked.group.as_deref(), &asked.ids);
    }
    if options.record {
        lock(&origin.calls).push(Call {
            method: parts.method.clone(),
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: parts.headers.clone(),
            body,
            ids: asked.map(|asked| asked.ids.clone()).unwrap_or_default(),
            group: asked.and_then(|asked| asked.group.clone()),
            form: asked.map(|asked| asked.form),
        });
    }
    // Before the arrival is told, or whoever waits for it scripts this call's reply in place of the next one's.
    let scripted = lock(&origin.script).pop_front();
    origin.arrived.send_modify(|arrived| *arrived += 1);
    let go_on = async {
        // The sender lives as long as the origin.
        let _ = origin.gate.subscribe().wait_for(|open| *open).await;
        if !options.delay.is_zero() {
            tokio::time::sleep(options.delay).await;
        }
    };
    // On HTTP/2 a call is a task of its own, that does not end with its connection.
    tokio::select! {
        () = go_on => Ok(scripted),
        () = origin.stop.cancelled() => Err(Broken::other("stopped")),
    }
}

fn batch(
    options: &Options,
    parts: &Parts,
    credential: Result<Credential<'_>, Refusal>,
    asked: Result<Asked, &'static str>,
    now: u64,
    serial: usize,
) -> Response<Body> {
    let credential = match credential {
        Ok(credential) => credential,
        Err((code, message)) => return error(401, code, message, serial),
    };
    let ids = asked.as_ref().map_or(&[][..], |asked| &asked.ids);
    if let Some(refusal) = refusal(options, &credential, ids, serial) {
        return refusal;
    }
    match asked {
        Ok(asked) => links(options, parts, credential.text(), &asked, now, serial),
        Err(reason) => error(400, "OSM.0001", reason, serial),
    }
}

/// What the options would have it refuse or fail.
fn refusal(options: &Options, credential: &Credential<'_>, ids: &[String], serial: usize) -> Option<Response<Body>> {
    if let Credential::Token(token) = credential
        && options.refuse.iter().any(|refused| refused == token)
    {
        return Some(error(401, "APIGW.0301", "Incorrect IAM authentication information", serial));
    }
    if options.fail_ratio > 0.0 && rand::random::<f64>() < options.fail_ratio {
        return Some(failed(options.fail_status, serial));
    }
    if is_poisoned(options, ids) {
        return Some(failed(options.poison_status, serial));
    }
    if options.unknown_ids == UnknownIds::Fail && ids.iter().any(|id| options.missing.contains(id)) {
        return Some(error(400, "OSM.0001", "an accessory does not exist", serial));
    }
    None
}

fn is_poisoned(options: &Options, ids: &[String]) -> bool {
    ids.iter().any(|id| options.poison.contains(id))
}

/// A failure of this status, with the code that goes with it.
fn failed(status: u16, serial: usize) -> Response<Body> {
    let code = match status {
        200 => api::VALIDATION_FAILED,
        400 => "OSM.0001",
        401 => "OSM.0002",
        403 => "OSM.0003",
        429 => "APIGW.0308",
        503 => "APIGW.0202",
        _ => "OSM.0004",
    };
    error(status, code, "failed", serial)
}

fn links(options: &Options, parts: &Parts, credential: &str, asked: &Asked, now: u64, serial: usize) -> Response<Body> {
    let header = |name: &str| parts.headers.get(name).and_then(|value| value.to_str().ok());
    let owner = Owner {
        credential,
        group: asked.group.as_deref(),
        language: header("x-language"),
        site: header("x-site"),
        time_zone: header("x-time-zone"),
    };
    let mut items: Vec<Value> = asked
        .ids
        .iter()
        .filter(|id| !options.missing.contains(id))
        .map(|id| {
            let url = link(options.signer, &owner, id, now, options.link_life, serial);
            json!({"accessory_url": url, "accessory_id": id, "accessory_name": format!("{id}.png")})
        })
        .collect();
    if options.reversed {
        items.reverse();
    }
    let mut body = Bytes::from(json!({"accessory_urls": items}).to_string());
    let mut response = Response::new(Body::Whole(Full::default()));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if !options.no_gzip {
        body = gzip(&parts.headers, headers, body);
    }
    if let Some(Ok(value)) = options.cache_control.as_deref().map(HeaderValue::from_str) {
        headers.insert(CACHE_CONTROL, value);
    }
    *response.body_mut() = whole(body);
    response
}

async fn play(origin: &Origin, reply: Reply) -> Result<Response<Body>, Broken> {
    match reply {
        Reply::Whole(status, headers, body) => {
            let mut response = Response::new(whole(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            Ok(response)
        }
        Reply::Truncated(body) => {
            let announced = body.len() + CUT_OFF;
            let cut = stream::once(async {
                // What was sent so far gets written out first.
                tokio::task::yield_now().await;
                Err(Broken::other("cut off"))
            });
            let frames = stream::iter([Ok(Frame::data(body))]).chain(cut);
            let mut response = Response::new(crate::message::body::stream(StreamBody::new(frames)));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(announced));
            Ok(response)
        }
        Reply::Reset => Err(Broken::other("reset")),
        Reply::Hang => {
            // On HTTP/2 a call is a task of its own, that does not end with its connection.
            origin.0.stop.cancelled().await;
            Err(Broken::other("stopped"))
        }
    }
}
