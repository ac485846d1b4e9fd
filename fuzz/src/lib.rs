//! What must hold for any bytes: one function a fuzz target. `tests/it/corpora.rs` runs them over the corpora without a
//! fuzzer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod descriptions;
mod fleet;
mod identity;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, DATE, HOST};
use http::{HeaderMap, HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Full};
use serde_json::Value;
use sidelink::api::BatchApi;
use sidelink::api::answer::{self, AnswerItem, ParsedAnswer};
use sidelink::api::call::CallTemplate;
use sidelink::api::envelope::Envelope;
use sidelink::api::request::{self, Batch};
use sidelink::app::Generations;
use sidelink::auth::signature::{self, Claim};
use sidelink::cache::freshness::{AnswerFreshness, Expiry, expiry, judge};
use sidelink::clock::Clock;
use sidelink::config::{Config, Endpoint, KeyPair, Secret};
use sidelink::demo::origin::interface::{body as body_of, target as target_of};
use sidelink::demo::origin::{Options, Origin, ScriptedReply, link_is_for};
use sidelink::message::cache_control::Directives;
use sidelink::proxy::router::Connection;
use sidelink::server::{self, ConnLimits, Peer, Protocol};
use sidelink::telemetry::metrics::IdResult;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::mpsc;

pub use descriptions::{description, recorded};
pub use fleet::shared;
pub use identity::identity;

/// 2026-11-24, midnight.
const EPOCH: i64 = 1_795_478_400_000;

/// A batch that is read means the same when it is written again with its own ids.
pub fn batch(data: &[u8]) {
    let api = BatchApi::preset("huawei-osm").unwrap();
    let (query, body) = split(data);
    let query = std::str::from_utf8(query).ok();
    let headers = HeaderMap::new();
    let Ok(read) = Batch::read(&api, query, &headers, body) else { return };
    assert!(!read.ids.is_empty());
    for id in &read.ids {
        assert!(sidelink::api::id::readings(&id.name).all(|text| request::is_id(&api, &text)), "{id:?}");
    }
    let template = CallTemplate::new("/x", &read);
    let ids = || read.ids.iter().map(|id| id.written);
    let (target, written) = (template.target(ids()), template.body(ids()));
    // A query that no URL can have is not sent either.
    let Ok(uri) = target.parse::<http::Uri>() else { return };
    let again = Batch::read(&api, uri.query(), &headers, &written).expect("what was read is read again");
    assert_eq!((again.form, &again.group, &again.ids), (read.form, &read.group, &read.ids));
}

/// An answer that is read as links has each text once, for the id in it; merging what was read and reading that is the same.
pub fn answer(data: &[u8]) {
    let ids = ["1", "2", "a/b", "\u{4e2d}", "x y"];
    let api = BatchApi::preset("huawei-osm").unwrap();
    let read = answer::read(&api, data, None, &ids);
    let _ = answer::error_code(&api, data);
    let ParsedAnswer::Items { items, .. } = &read else { return };
    for (id, item) in ids.iter().zip(items) {
        let Some(item) = item else { continue };
        // A number may be beyond what this reads.
        if let Ok(value) = serde_json::from_str::<Value>(&item.text) {
            assert_eq!(value["accessory_id"], *id);
        }
        assert_eq!(answer::url_of(&api, &item.text).as_deref(), item.url.as_deref());
    }
    let texts: Vec<&[u8]> = items.iter().flatten().map(|item| item.text.as_bytes()).collect();
    let merged = Envelope::of(&api).expect("it names one").merge(texts.iter().copied());
    assert_eq!(answer::read(&api, &merged, None, &ids), read);
}

/// A link is never fresh when it is no longer usable, nor usable under its floor; a later look never finds more; and a link
/// whose expiry cannot be read is not kept.
pub fn freshness(data: &[u8]) {
    let (url, head) = split(data);
    let Ok(url) = std::str::from_utf8(url) else { return };
    let expiry = expiry(url);
    let mut headers = HeaderMap::new();
    let lines = [DATE, http::header::AGE, CACHE_CONTROL, CACHE_CONTROL, http::header::EXPIRES];
    for (name, line) in lines.into_iter().zip(head.split(|byte| *byte == b'\n')) {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(name, value);
        }
    }
    let runtime = runtime();
    let _entered = runtime.enter();
    let clock = Clock::simulated(EPOCH);
    let config = sidelink::config::Freshness::default();
    let source = AnswerFreshness::read(&headers, clock.now());
    let Ok(deadlines) = judge(&AnswerItem::of_link("{}", Some(url)), &source, &config) else { return };
    assert_ne!(expiry, Expiry::Unreadable, "kept");
    let floor = u64::try_from(config.min_remaining.as_millis()).expect("a minute");
    let mut before = u64::MAX;
    for _ in 0..8 {
        let now = clock.now();
        let (fresh, usable) = (deadlines.fresh_left(now), deadlines.usable_left(now));
        assert!(fresh.unwrap_or(0) <= usable.unwrap_or(0));
        assert!(usable.is_some() == deadlines.usable(now));
        assert!(usable.unwrap_or(0) <= before);
        if let (Some(_), Expiry::At(end)) = (usable, expiry) {
            let left = end.saturating_sub(now.unix_millis());
            assert!(left > floor, "{left} ms left by the local clock");
        }
        if let (Some(usable), Some(life)) = (usable, deadlines.life_left(now)) {
            assert!(life >= floor.min(usable), "{life} ms to live");
            assert!(life == u64::from(u32::MAX - 1) || usable + floor <= life + 1, "{usable} ms usable of {life}");
        }
        before = usable.unwrap_or(0);
        clock.step(150_000);
    }
}

/// A signature over any request that is made by the signer is verified, and is not once a byte of the target changes.
pub fn signature(data: &[u8]) {
    let mut lines = data.split(|byte| *byte == b'\n');
    let mut line = || lines.next().unwrap_or_default();
    let (target, authorization, header, body) = (line(), line(), line(), line());
    let pair = Arc::new(KeyPair { access_key: "AK".into(), secret_key: Secret::new(b"SK".to_vec()), user: None });
    let now = u64::try_from(EPOCH / 1000).expect("after 1970");
    let Ok(uri) = http::Uri::try_from(target) else { return };
    let Some(path_and_query) = uri.path_and_query().cloned() else { return };
    let Ok(mut request) = Request::get(uri.clone()).header(HOST, "h").body(()) else { return };
    if let Ok(value) = HeaderValue::from_bytes(header) {
        request.headers_mut().insert("x-language", value);
    }
    if let Ok(value) = HeaderValue::from_bytes(authorization) {
        request.headers_mut().insert(AUTHORIZATION, value);
        request.headers_mut().insert("x-sdk-date", HeaderValue::from_static("20261124T000000Z"));
        let (head, ()) = request.clone().into_parts();
        if let Some(claim) = Claim::read(&head.headers) {
            assert!(signature::verify_whole(&claim, &pair, &head, &signature::hash(body), now).is_err(), "a forgery");
        }
    }
    let signer = signer(&pair, now);
    let payload = signature::hash(body);
    let (mut head, ()) = request.into_parts();
    signer.sign(&Method::GET, &path_and_query, &mut head.headers, "h", &payload, now);
    {
        let claim = Claim::read(&head.headers).expect("it was signed");
        assert!(signature::verify(&claim, &pair, &head, &payload, now).is_ok(), "{uri} is signed and not verified");
        assert!(
            signature::verify(&claim, &pair, &head, &signature::hash(b"another body"), now).is_err()
                || body == b"another body"
        );
    }
    let other = format!("{}{}x", path_and_query, if path_and_query.query().is_some() { "&" } else { "?" });
    if let Ok(uri) = other.parse() {
        head.uri = uri;
        let claim = Claim::read(&head.headers).expect("it was signed");
        assert!(signature::verify(&claim, &pair, &head, &payload, now).is_err(), "{other} was not signed");
    }
}

/// A signer is had by verifying; this request's signature was made by the scheme's own rules.
fn signer(pair: &Arc<KeyPair>, now: u64) -> signature::Signer {
    let mut request =
        Request::get("/").header(HOST, "h").header("x-language", "l").header("x-sdk-date", "20261124T000000Z");
    let signed = "Access=AK, SignedHeaders=host;x-language;x-sdk-date";
    let value = "885b5763028ff92711fe8f16ef92a6aa396c02eb4b128552e072d2c16276fcee";
    request = request.header(AUTHORIZATION, format!("SDK-HMAC-SHA256 {signed}, Signature={value}"));
    let (head, ()) = request.body(()).expect("a request").into_parts();
    let claim = Claim::read(&head.headers).expect("a claim");
    signature::verify(&claim, pair, &head, &signature::hash(b""), now).expect("a signature")
}

/// A configuration is read or refused with the line of each error; what is read is shown so that it is read as the same.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    // What names a file would have it opened.
    if text.contains("file") || text.contains("env") || text.contains("cert") || text.contains("key") {
        return;
    }
    match Config::parse(text) {
        Ok(mut config) => {
            let mut again = Config::parse(&config.to_string()).expect("what is shown is a configuration");
            config.warnings.clear();
            again.warnings.clear();
            assert_eq!(again, config);
        }
        Err(errors) => assert!(!errors.to_string().is_empty()),
    }
}

/// Nothing that is added to a Cache-Control ever loosens it.
pub fn cache_control(data: &[u8]) {
    let mut headers = HeaderMap::new();
    for line in data.split(|byte| *byte == b'\n') {
        if let Ok(value) = HeaderValue::from_bytes(line) {
            headers.append(CACHE_CONTROL, value);
        }
    }
    let read = Directives::read(&headers);
    headers.append(CACHE_CONTROL, HeaderValue::from_static("max-age=7, No-Store, x=\"a,b\", min-fresh=9"));
    let more = Directives::read(&headers);
    assert!(more.no_store && more.max_age.expect("stated") <= read.max_age.unwrap_or(7).min(7));
    assert!(more.min_fresh.expect("stated") >= read.min_fresh.unwrap_or(0).max(9));
    let kept = |directives: Directives| (directives.no_cache, directives.only_if_cached, directives.must_revalidate);
    assert_eq!(kept(more), kept(read));
}

/// Whatever an operator sends is answered, and what is no purge purges nothing.
pub fn admin(data: &[u8]) {
    let (query, body) = split(data);
    runtime().block_on(async {
        let world = World::new();
        world.batch("t", None, None, &["1"], 0).await;
        let current = world.proxy.current();
        let request = Request::post("/purge").header(HOST, "localhost").header(CONTENT_TYPE, "application/json");
        let purged =
            current.admin.answer(Peer::Local, request.body(Full::new(Bytes::copy_from_slice(body))).unwrap()).await;
        assert!(matches!(purged.status().as_u16(), 200 | 204 | 400 | 413), "{}", purged.status());
        if let Ok(uri) = http::Uri::try_from([b"/explain?", query].concat()) {
            let request = Request::get(uri).header(HOST, "localhost").header("x-auth-token", "t");
            let explained = current.admin.answer(Peer::Local, request.body(Full::<Bytes>::default()).unwrap()).await;
            let text = explained.into_body().collect().await.unwrap().to_bytes();
            assert!(!text.windows(10).any(|window| window == b"Signature="), "a link is shown");
        }
        let again = world.batch("t", None, None, &["1"], 0).await;
        if purged.status() == 400 {
            assert!(again.2.contains("sidelink; hit"), "{again:?}");
        }
    });
}

/// Whatever bytes come over a connection: no handler sees a request with two framings or none it can read, and the
/// connection ends once its client has said all.
pub fn connection(data: &[u8]) {
    runtime().block_on(async {
        let limits = ConnLimits::from(&sidelink::config::Limits::default());
        let (near, far) = duplex(64 << 10);
        let served = tokio::spawn(server::serve_connection(
            Protocol::Any,
            far,
            limits,
            Default::default(),
            |request: Request<_>| async move {
                let headers = request.headers();
                let both = headers.contains_key("content-length") && headers.contains_key("transfer-encoding");
                assert!(!both, "a request with two framings");
                assert!(!request.uri().to_string().contains('#'), "a fragment");
                let body = http_body_util::Limited::new(request.into_body(), 1 << 20).collect().await;
                let status = if body.is_ok() { 200 } else { 400 };
                Response::builder().status(status).body(sidelink::message::body::whole(Bytes::new())).unwrap()
            },
        ));
        let data = data.to_vec();
        let (mut read, mut write) = tokio::io::split(near);
        let writing = async {
            for piece in data.chunks(7) {
                if write.write_all(piece).await.is_err() {
                    break;
                }
            }
            let _ = write.shutdown().await;
        };
        let mut answer = Vec::new();
        let (_, _) = tokio::join!(writing, read.read_to_end(&mut answer));
        if let Err(error) = served.await {
            std::panic::resume_unwind(error.into_panic());
        }
    });
}

/// Whatever clients ask, the endpoint answers and the clocks do, the laws hold: links are for whoever asked, come in the
/// order asked, none under its floor comes from memory, and every id is counted once.
pub fn laws(data: &[u8]) {
    const TOKENS: [&str; 3] = ["alice", "alic", "bob"];
    const GROUPS: [Option<&str>; 2] = [None, Some("g")];
    const LANGUAGES: [Option<&str>; 2] = [None, Some("en-us")];
    runtime().block_on(async {
        let world = World::new();
        let mut asked = 0;
        let mut steps = data.iter().copied();
        // So that one input takes no more than a moment.
        for _ in 0..64 {
            let Some(step) = steps.next() else { break };
            let (kind, argument) = (step >> 5, usize::from(step & 31));
            match kind {
                0..=3 => {
                    let scope = (TOKENS[argument % 3], GROUPS[argument / 3 % 2], LANGUAGES[argument / 6 % 2]);
                    let mask = steps.next().unwrap_or(1);
                    let ids: Vec<String> =
                        (0..8).filter(|bit| mask >> bit & 1 == 1).map(|bit| bit.to_string()).collect();
                    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                    if ids.is_empty() {
                        continue;
                    }
                    asked += ids.len();
                    let (status, body, how) = world.batch(scope.0, scope.1, scope.2, &ids, kind % 3).await;
                    world.check(scope, &ids, status, &body, &how);
                }
                4 => tokio::time::advance(Duration::from_secs(1 << (argument % 11))).await,
                5 => {
                    let millis = 1000 << (argument / 2);
                    world.clock.step(if argument & 1 == 1 { millis } else { -millis });
                }
                6 => world.origin.script(reply(argument, steps.next().unwrap_or(0))),
                _ => {
                    let id = (argument % 8).to_string();
                    let body = match argument / 8 {
                        0 => format!(r#"{{"accessory_ids":["{id}"]}}"#),
                        1 => r#"{"group_id":"g"}"#.to_owned(),
                        2 => r#"{"all":true}"#.to_owned(),
                        _ => {
                            let target = format!("/v2/servicerequest/accessorys/{id}");
                            let request = Request::delete(target).header(HOST, "h").body(Full::<Bytes>::default());
                            world.proxy.answer(request.unwrap(), &Arc::default()).await;
                            continue;
                        }
                    };
                    let request =
                        Request::post("/purge").header(HOST, "localhost").header(CONTENT_TYPE, "application/json");
                    let request = request.body(Full::new(Bytes::from(body))).unwrap();
                    let answer = world.proxy.current().admin.answer(Peer::Local, request).await;
                    assert!(answer.status().is_success(), "{}", answer.status());
                }
            }
        }
        let page = world.metrics().await;
        // One API: a series for each result.
        let series = page.lines().filter(|line| line.starts_with("sidelink_ids_total{"));
        let counts: Vec<f64> =
            series.map(|line| line.rsplit_once(' ').expect("a value").1.parse().expect("a number")).collect();
        assert_eq!(counts.len(), IdResult::ALL.len(), "every result is there");
        let counted: f64 = counts.iter().sum();
        assert_eq!(counted, asked as f64, "every id is counted once");
    });
}

/// What the endpoint may come up with.
fn reply(kind: usize, id: u8) -> ScriptedReply {
    let item = format!(r#"{{"accessory_id":"{}","accessory_url":"u?Expires=1800000000&Signature=s"}}"#, id % 8);
    match kind % 12 {
        0 => ScriptedReply::Reset,
        1 => ScriptedReply::Truncated(r#"{"accessory_urls":["#.into()),
        2 => ScriptedReply::json(200, r#"{"accessory_urls":[{"accessory_id":"1""#),
        3 => ScriptedReply::json(200, r#"{"accessory_urls":[{"accessory_id":9,"accessory_url":"u"}]}"#),
        4 => ScriptedReply::json(200, r#"{"error_code":"OSM.01010002","error_msg":"no permission"}"#),
        5 => ScriptedReply::json(401, r#"{"error_code":"APIGW.0301","error_msg":"no"}"#),
        6 => ScriptedReply::json(200, format!(r#"{{"accessory_urls":[{item},{item}]}}"#)),
        7 => ScriptedReply::json(200, r#"{"accessory_urls":[]}"#),
        kind => {
            ScriptedReply::json([400, 403, 429, 503][kind - 8], r#"{"error_code":"OSM.0004","error_msg":"failed"}"#)
        }
    }
}

/// A whole sidelink and its endpoint on a paused clock, over connections in memory.
struct World {
    origin: Origin,
    clock: Clock,
    endpoint_clock: Clock,
    proxy: Generations,
    connection: Arc<Connection>,
}

impl World {
    fn new() -> Self {
        let clock = Clock::simulated(EPOCH);
        let endpoint_clock = Clock::simulated(EPOCH);
        let mut config = Config::for_endpoint(Endpoint::parse("http://endpoint").unwrap());
        config.log.access = sidelink::config::AccessLines::Off;
        let (accept, connections) = mpsc::unbounded_channel();
        let origin = Origin::in_memory(Options::default(), endpoint_clock.clone(), connections);
        let proxy = Generations::in_memory(config, clock.clone(), accept).unwrap();
        Self { origin, clock, endpoint_clock, proxy, connection: Arc::default() }
    }

    /// Status, body and Cache-Status of a batch's answer.
    async fn batch(
        &self,
        token: &str,
        group: Option<&str>,
        language: Option<&str>,
        ids: &[&str],
        form: u8,
    ) -> (u16, Bytes, String) {
        let form = [request::Form::Repeated, request::Form::Comma, request::Form::Body][usize::from(form % 3)];
        let target = target_of(form, &group.into(), ids.iter().copied());
        let mut head = Request::get(target).header(HOST, "h").header("x-auth-token", token);
        if let Some(language) = language {
            head = head.header("x-language", language);
        }
        let body = body_of(form, &group.into(), ids.iter().copied());
        let answer = self.proxy.answer(head.body(Full::new(body)).unwrap(), &self.connection).await;
        let how = answer.headers().get("cache-status").map_or("", |value| value.to_str().unwrap()).to_owned();
        let status = answer.status().as_u16();
        // What streams through may break off.
        let body = answer.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        (status, body, how)
    }

    fn check(&self, scope: (&str, Option<&str>, Option<&str>), ids: &[&str], status: u16, body: &[u8], how: &str) {
        if how.contains("fwd=bypass") {
            return;
        }
        let body: Value = serde_json::from_slice(body).expect("an answer in JSON");
        if status != 200 || body.get("error_code").is_some() {
            assert!(body["error_code"].is_string(), "{body}");
            return;
        }
        let items = body["accessory_urls"].as_array().expect("links");
        let positions: Vec<usize> = items
            .iter()
            .map(|item| ids.iter().position(|id| item["accessory_id"] == **id).expect("an id that was asked for"))
            .collect();
        assert!(positions.is_sorted(), "in the order asked");
        assert_eq!(positions.iter().collect::<HashSet<_>>().len(), items.len(), "each once");
        for item in items {
            let (id, url) = (item["accessory_id"].as_str().unwrap(), item["accessory_url"].as_str().unwrap());
            // A scripted link is nobody's own.
            let own = url.starts_with("u?") || link_is_for(url, id, scope.1, scope.0, scope.2, None);
            assert!(own, "{scope:?} got {url}");
            if (how == "sidelink; hit" || how.contains("stale"))
                && let Expiry::At(end) = expiry(url)
            {
                let left = end.saturating_sub(self.endpoint_clock.now().unix_millis());
                assert!(left >= 60_000, "a link with {left} ms to live was served from memory");
            }
        }
    }

    async fn metrics(&self) -> String {
        let request = Request::get("/metrics").header(HOST, "localhost").body(Full::<Bytes>::default()).unwrap();
        let page = self.proxy.current().admin.answer(Peer::Local, request).await;
        String::from_utf8(page.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap()
}

/// The first line, and all that follows.
fn split(data: &[u8]) -> (&[u8], &[u8]) {
    match data.iter().position(|byte| *byte == b'\n') {
        Some(at) => (&data[..at], &data[at + 1..]),
        None => (data, &[]),
    }
}
