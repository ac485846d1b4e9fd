//! The routes of the simulated endpoint.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE};
use http::request::Parts;
use http::{HeaderValue, Method, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Value, json};

use super::answers::{date, error, gzip};
use super::links::{Owner, link};
use super::{Broken, Call, Options, Origin, Reply, answers, lock};
use crate::access_urls::request::Form;
use crate::api;
use crate::body::{Body, whole};

/// The documented most ids of one call.
const MOST_IDS: usize = 100;
const ACCESSORYS: &str = "/v2/servicerequest/accessorys";
const ECHO: &str = "/v2/servicerequest/echo";

pub(super) async fn answer(origin: &Origin, request: Request<Incoming>) -> Result<Response<Body>, Broken> {
    let (parts, body) = request.into_parts();
    let serial = origin.0.serial.fetch_add(1, Ordering::Relaxed);
    let path = parts.uri.path().to_owned();
    let response = match (&parts.method, path.as_str()) {
        (&Method::GET, api::PATH) => {
            let body = body.collect().await.map_err(broken)?.to_bytes();
            return batch(origin, &parts, body, serial).await;
        }
        (&Method::POST, ACCESSORYS) => upload(body, serial).await?,
        (_, ECHO) => echo(&parts, body, serial).await?,
        (&Method::GET, path) if path.starts_with(ACCESSORYS) => download(&parts),
        (&Method::DELETE, path) if path.starts_with(ACCESSORYS) => {
            let mut response = Response::new(whole(Bytes::new()));
            *response.status_mut() = http::StatusCode::NO_CONTENT;
            response
        }
        _ => error(404, "APIGW.0101", "The API does not exist", serial),
    };
    Ok(response)
}

async fn batch(origin: &Origin, parts: &Parts, body: Bytes, serial: usize) -> Result<Response<Body>, Broken> {
    let asked = read(parts, &body);
    let options = lock(&origin.0.options).clone();
    let ids = asked.as_ref().map_or(&[][..], |asked| &asked.ids);
    origin.0.ids_asked.fetch_add(ids.len(), Ordering::Relaxed);
    if options.record {
        lock(&origin.0.calls).push(Call {
            method: parts.method.clone(),
            target: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            headers: parts.headers.clone(),
            body,
            ids: ids.to_vec(),
            group: asked.as_ref().ok().and_then(|asked| asked.group.clone()),
            form: asked.as_ref().ok().map(|asked| asked.form),
        });
    }
    origin.0.arrived.send_modify(|arrived| *arrived += 1);
    let scripted = lock(&origin.0.script).pop_front();
    // The sender lives as long as the origin.
    let _ = origin.0.gate.subscribe().wait_for(|open| *open).await;
    if !options.delay.is_zero() {
        tokio::time::sleep(options.delay).await;
    }
    if let Some(reply) = scripted {
        return play(reply);
    }
    let now = now(origin, &options);
    let mut response = match refusal(&options, parts, ids, serial) {
        Some(refusal) => refusal,
        None => match &asked {
            Ok(asked) => links(&options, parts, asked, now, serial),
            Err(reason) => error(400, "OSM.0001", reason, serial),
        },
    };
    date(response.headers_mut(), now);
    Ok(response)
}

/// The endpoint's clock, in Unix seconds.
fn now(origin: &Origin, options: &Options) -> u64 {
    (origin.0.clock.now().unix_millis() / 1000).saturating_add_signed(options.clock_offset)
}

/// What a call asks for.
struct Asked {
    ids: Vec<String>,
    group: Option<String>,
    form: Form,
}

/// A reader of its own, so that it cannot share the proxy's mistakes.
fn read(parts: &Parts, body: &[u8]) -> Result<Asked, &'static str> {
    let query = parts.uri.query().unwrap_or("");
    let asked = match (query.is_empty(), body.is_empty()) {
        (false, true) => read_query(query)?,
        (true, false) => read_body(body)?,
        (false, false) => return Err("parameters in both query and body"),
        (true, true) => return Err("accessory_ids is mandatory"),
    };
    let length = |text: &str, most: usize| (1..=most).contains(&text.chars().count());
    if asked.ids.is_empty() || asked.ids.len() > MOST_IDS {
        return Err("accessory_ids takes 1 to 100 items");
    }
    if !asked.ids.iter().all(|id| length(id, 64)) {
        return Err("an accessory id takes 1 to 64 characters");
    }
    if asked.group.as_deref().is_some_and(|group| !length(group, 32)) {
        return Err("group_id takes 1 to 32 characters");
    }
    Ok(asked)
}

fn read_query(query: &str) -> Result<Asked, &'static str> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(String::from).map_err(|_| "a parameter is not UTF-8")
    };
    let (mut raw, mut group) = (Vec::new(), None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match decode(name)?.as_str() {
            api::IDS => raw.push(value),
            api::GROUP => group = Some(decode(value)?),
            _ => {}
        }
    }
    let (form, values) = match raw.as_slice() {
        [only] if only.contains(',') => (Form::Comma, only.split(',').collect()),
        _ => (Form::Repeated, raw),
    };
    let ids = values.into_iter().map(decode).collect::<Result<_, _>>()?;
    Ok(Asked { ids, group, form })
}

fn read_body(body: &[u8]) -> Result<Asked, &'static str> {
    #[derive(Deserialize)]
    struct Fields {
        accessory_ids: Vec<String>,
        group_id: Option<String>,
    }
    let fields: Fields = serde_json::from_slice(body).map_err(|_| "the body is not as documented")?;
    Ok(Asked { ids: fields.accessory_ids, group: fields.group_id, form: Form::Body })
}

fn header<'p>(parts: &'p Parts, name: &str) -> Option<&'p str> {
    parts.headers.get(name).and_then(|value| value.to_str().ok())
}

fn refusal(options: &Options, parts: &Parts, ids: &[String], serial: usize) -> Option<Response<Body>> {
    // A signature is taken as given: verifying it is not simulated.
    let signed = parts.headers.contains_key(AUTHORIZATION);
    match header(parts, api::TOKEN.as_str()) {
        None | Some("") if !signed => {
            return Some(error(401, "OSM.0002", "not authenticated", serial));
        }
        Some(token) if options.refuse.iter().any(|refused| refused == token) => {
            return Some(error(401, "APIGW.0301", "Incorrect IAM authentication information", serial));
        }
        _ => {}
    }
    if options.fail_ratio > 0.0 && rand::random::<f64>() < options.fail_ratio {
        return Some(error(503, "APIGW.0202", "Backend unavailable", serial));
    }
    if ids.iter().any(|id| options.poison.contains(id)) {
        let code = match options.poison_status {
            200 => "OSM.01010001",
            400 => "OSM.0001",
            403 => "OSM.0003",
            429 => "APIGW.0308",
            _ => "OSM.0004",
        };
        return Some(error(options.poison_status, code, "failed", serial));
    }
    None
}

fn links(options: &Options, parts: &Parts, asked: &Asked, now: u64, serial: usize) -> Response<Body> {
    let owner = Owner {
        token: header(parts, api::TOKEN.as_str()).unwrap_or(""),
        group: asked.group.as_deref(),
        language: header(parts, "x-language"),
        site: header(parts, "x-site"),
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
    let response = answers::json(200, &Value::Null, serial);
    let (mut head, _) = response.into_parts();
    let mut body = Bytes::from(json!({"accessory_urls": items}).to_string());
    if !options.no_gzip {
        body = gzip(&parts.headers, &mut head.headers, body);
    }
    if let Some(Ok(value)) = options.cache_control.as_deref().map(HeaderValue::from_str) {
        head.headers.insert(CACHE_CONTROL, value);
    }
    Response::from_parts(head, whole(body))
}

fn play(reply: Reply) -> Result<Response<Body>, Broken> {
    match reply {
        Reply::Whole(status, headers, body) => {
            let mut response = Response::new(whole(body));
            *response.status_mut() = status;
            *response.headers_mut() = headers;
            Ok(response)
        }
        Reply::Truncated(body) => {
            let mut response = Response::new(crate::body::stream(StreamBody::new(stream::iter([
                Ok(Frame::data(body)),
                Err(Broken::other("cut off")),
            ]))));
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok(response)
        }
        Reply::Reset => Err(Broken::other("reset")),
    }
}

/// Counts what is uploaded, as it streams in.
async fn upload(mut body: Incoming, serial: usize) -> Result<Response<Body>, Broken> {
    let mut bytes = 0;
    while let Some(frame) = body.frame().await {
        bytes += frame.map_err(broken)?.data_ref().map_or(0, Bytes::len);
    }
    Ok(answers::json(200, &json!({"accessory_id": format!("up-{serial}"), "bytes": bytes}), serial))
}

/// Streams `?bytes=N` bytes in chunks, `?chunk_delay_ms=` apart.
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
        let size = left.min(16 * 1024);
        Some((Ok::<_, Broken>(Frame::data(Bytes::from(vec![b'x'; size]))), left - size))
    });
    let mut response = Response::new(crate::body::stream(StreamBody::new(chunks)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from(total));
    response
}

/// Tells what it was sent.
async fn echo(parts: &Parts, body: Incoming, serial: usize) -> Result<Response<Body>, Broken> {
    let body = body.collect().await.map_err(broken)?.to_bytes();
    let headers: Vec<[String; 2]> = parts
        .headers
        .iter()
        .map(|(name, value)| [name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()])
        .collect();
    let told = json!({
        "method": parts.method.as_str(),
        "target": parts.uri.path_and_query().map(ToString::to_string),
        "headers": headers,
        "body": String::from_utf8_lossy(&body),
    });
    let mut response = answers::json(200, &told, serial);
    // Headers of one connection, to be removed by a proxy.
    response.headers_mut().insert("connection", HeaderValue::from_static("x-hop"));
    response.headers_mut().insert("x-hop", HeaderValue::from_static("1"));
    Ok(response)
}

fn broken(error: hyper::Error) -> Broken {
    Broken::other(error)
}
