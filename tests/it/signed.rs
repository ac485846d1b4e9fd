//! Only who signs with a configured secret key gets links from memory for its access key, and what sidelink sends on its
//! behalf is signed for the endpoint. What does not verify here reaches the endpoint as it was signed, and gets its answer.

use std::time::Duration;

use bytes::Bytes;
use http::Method;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use sidelink::clock::Clock;
use sidelink::config::Config;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{self, ScriptedReply as Scripted, link_is_for};

use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows, pair};
use crate::support::{Reply, Stack, query, raw};

const ECHO: &str = "/v2/servicerequest/echo";

/// An endpoint and a sidelink that know the key, on one simulated clock.
struct Signed {
    stack: Stack,
    clock: Clock,
}

impl Signed {
    async fn start() -> Self {
        Self::with(|_| {}, |config| knows(config, ACCESS_KEY, SECRET_KEY)).await
    }

    async fn with(endpoint: impl FnOnce(&mut origin::Options), configure: impl FnOnce(&mut Config)) -> Self {
        let clock = Clock::simulated(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis().try_into().unwrap());
        let keys = |options: &mut origin::Options| {
            options.keys = vec![pair(ACCESS_KEY, SECRET_KEY), pair("AKOTHER", "sk-other")];
            endpoint(options);
        };
        Self { stack: Stack::on(clock.clone(), keys, configure).await, clock }
    }

    /// A GET that is signed for sidelink's address.
    fn get(&self, target: &str) -> Unsigned<'static> {
        Unsigned::get(self.stack.client.address, target, &self.clock)
    }

    async fn send(&self, request: &Unsigned<'_>) -> Reply {
        self.send_as(&request.method, &request.target, &request.sign(), request.body).await
    }

    async fn send_as(&self, method: &Method, target: &str, headers: &[(&str, String)], body: &[u8]) -> Reply {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        self.stack.client.send(method.clone(), target, &headers, body.to_vec()).await
    }

    async fn batch(&self, ids: &[&str]) -> Reply {
        self.send(&self.get(&query(ids))).await
    }

    /// The endpoint's clock is the machine's: both step.
    fn step(&self, seconds: i64) {
        self.clock.step(seconds * 1000);
        self.stack.origin.update(|options| options.clock_offset += seconds);
    }

    /// Whether a request that was tampered with gets the endpoint's refusal, and nothing from the cache.
    async fn refuses(&self, reply: Reply) {
        assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=signature");
        assert_eq!(self.stack.asked().len(), 2, "the first call, and the forwarded request");
        assert_eq!(self.stack.metric(r#"sidelink_bypass_total{reason="signature"}"#).await, 1.0);
    }
}

/// A stack in whose memory the links of `1` and `2` are.
async fn warm() -> Signed {
    let signed = Signed::start().await;
    assert_eq!(signed.batch(&["1", "2"]).await.ids(), ["1", "2"]);
    assert_eq!(signed.batch(&["1", "2"]).await.header("cache-status"), "sidelink; hit");
    signed
}

#[tokio::test]
async fn a_signed_batch_misses_hits_and_asks_for_missing_ids() {
    let signed = warm().await;
    let odd = "accessory_ids=a%2Fb&accessory_ids=c%20d&accessory_ids=e%2Bf&accessory_ids=g~h&accessory_ids=i%2Cj&accessory_ids=%E9%99%84%E4%BB%B6&accessory_ids=1";
    let reply = signed.send(&signed.get(&format!("{}?{odd}", api::PATH)).header("x-language", "en-us")).await;
    assert_eq!(reply.ids(), ["a/b", "c d", "e+f", "g~h", "i,j", "附件", "1"]);
    for (id, link) in reply.links() {
        assert!(link_is_for(&link, &id, None, ACCESS_KEY, Some("en-us"), None), "{link}");
    }
    let partial = signed.batch(&["2", "3"]).await;
    assert_eq!(partial.header("cache-status"), r#"sidelink; fwd=partial; stored; detail="hit=1 fetched=1""#);
    assert_eq!(signed.stack.asked()[2], ["3"]);
    for name in ["authorization", "x-security-token"] {
        assert!(partial.header("vary").split(", ").any(|vary| vary == name), "{name}");
    }
}

#[tokio::test]
async fn the_body_form_is_answered_from_memory_too() {
    let signed = Signed::start().await;
    let body = br#"{"accessory_ids":["1","2"]}"#;
    for expected in ["sidelink; fwd=miss; stored", "sidelink; hit"] {
        let reply = signed.send(&Unsigned { body, ..signed.get(api::PATH) }).await;
        assert_eq!((reply.header("cache-status"), reply.ids().len()), (expected, 2));
    }
}

#[tokio::test]
async fn a_tampered_query_is_refused() {
    let signed = warm().await;
    let headers = signed.get(&query(&["1"])).sign();
    signed.refuses(signed.send_as(&Method::GET, &query(&["2"]), &headers, b"").await).await;
}

#[tokio::test]
async fn a_tampered_body_is_refused() {
    let signed = warm().await;
    let headers = Unsigned { body: br#"{"accessory_ids":["1"]}"#, ..signed.get(api::PATH) }.sign();
    let body = br#"{"accessory_ids":["2"]}"#;
    signed.refuses(signed.send_as(&Method::GET, api::PATH, &headers, body).await).await;
}

#[tokio::test]
async fn a_tampered_header_is_refused() {
    let signed = warm().await;
    let mut headers = signed.get(&query(&["1"])).header("x-domain-id", "mine").sign();
    headers.iter_mut().find(|(name, _)| *name == "x-domain-id").unwrap().1 = "yours".into();
    signed.refuses(signed.send_as(&Method::GET, &query(&["1"]), &headers, b"").await).await;
}

#[tokio::test]
async fn a_tampered_date_is_refused() {
    let signed = warm().await;
    let mut headers = signed.get(&query(&["1"])).sign();
    let later = sidelink::clock::basic_date(signed.clock.now().unix_seconds() + 60);
    headers.iter_mut().find(|(name, _)| *name == "x-sdk-date").unwrap().1 = later;
    signed.refuses(signed.send_as(&Method::GET, &query(&["1"]), &headers, b"").await).await;
}

#[tokio::test]
async fn a_tampered_signature_is_refused() {
    let signed = warm().await;
    let mut headers = signed.get(&query(&["1"])).sign();
    let authorization = &mut headers.iter_mut().find(|(name, _)| *name == "authorization").unwrap().1;
    let last = if authorization.ends_with('0') { '1' } else { '0' };
    authorization.pop();
    authorization.push(last);
    signed.refuses(signed.send_as(&Method::GET, &query(&["1"]), &headers, b"").await).await;
}

#[tokio::test]
async fn stripped_signed_headers_are_refused() {
    let signed = warm().await;
    for (at, (from, to)) in [("host;", ""), ("content-type;", ""), ("SignedHeaders=content-type;host;x-sdk-date, ", "")]
        .into_iter()
        .enumerate()
    {
        let mut headers = signed.get(&query(&["1"])).sign();
        let authorization = &mut headers.iter_mut().find(|(name, _)| *name == "authorization").unwrap().1;
        assert!(authorization.contains(from), "{authorization}");
        *authorization = authorization.replace(from, to);
        let reply = signed.send_as(&Method::GET, &query(&["1"]), &headers, b"").await;
        assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=signature");
        assert_eq!(signed.stack.asked().len(), 2 + at);
    }
}

#[tokio::test]
async fn swapped_keys_are_refused() {
    let both = |config: &mut Config| {
        knows(config, ACCESS_KEY, SECRET_KEY);
        knows(config, "AKOTHER", "sk-other");
    };
    let signed = Signed::with(|_| {}, both).await;
    signed.batch(&["1"]).await;
    let swapped = Unsigned { access_key: ACCESS_KEY, secret_key: "sk-other", ..signed.get(&query(&["1"])) };
    signed.refuses(signed.send(&swapped).await).await;
    let other = Unsigned { access_key: "AKOTHER", secret_key: "sk-other", ..signed.get(&query(&["1"])) };
    assert_eq!(
        signed.send(&other).await.header("cache-status"),
        "sidelink; fwd=miss; stored",
        "its own, and only its own"
    );
}

#[tokio::test]
async fn a_replay_after_fifteen_minutes_is_refused() {
    let signed = warm().await;
    let headers = signed.get(&query(&["1"])).sign();
    signed.step(15 * 60 + 1);
    signed.refuses(signed.send_as(&Method::GET, &query(&["1"]), &headers, b"").await).await;
}

#[tokio::test]
async fn signed_identity_headers_are_part_of_the_caller() {
    let signed = Signed::start().await;
    let mut links = std::collections::HashSet::new();
    for name in ["content-language", "x-domain-id", "x-project-id", "x-security-token", "x-language"] {
        for value in ["a", "b"] {
            let request = signed.get(&query(&["1"])).header(name, value);
            let reply = signed.send(&request).await;
            if name == "content-language" && value == "b" {
                assert_eq!(reply.header("cache-status"), "sidelink; hit", "this one changes nothing");
            } else {
                assert_eq!(reply.header("cache-status"), "sidelink; fwd=miss; stored", "{name}: {value}");
            }
            links.insert(reply.links().remove(0).1);
            let call = signed.stack.origin.calls().pop().unwrap();
            if name != "content-language" {
                assert_eq!(call.headers[name], value);
            }
        }
    }
    assert_eq!(links.len(), 9);
}

#[tokio::test]
async fn a_batch_whose_body_is_not_signed_is_never_answered_from_memory() {
    let signed = warm().await;
    let body = br#"{"accessory_ids":["1","2"]}"#;
    for _ in 0..2 {
        let request = signed.get(api::PATH).header("x-sdk-content-sha256", "UNSIGNED-PAYLOAD");
        let reply = signed.send(&Unsigned { body, ..request }).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unsigned-payload");
        assert_eq!(reply.ids(), ["1", "2"]);
    }
    let hash = sidelink::auth::signature::hash(body);
    let request = signed.get(api::PATH).header("x-sdk-content-sha256", &hash);
    let reply = signed.send(&Unsigned { body, ..request }).await;
    assert_eq!(reply.header("cache-status"), "sidelink; hit", "the hash that is stated is the body's");
}

#[tokio::test]
async fn a_stated_hash_that_is_not_the_bodys_is_refused() {
    let signed = warm().await;
    let hash = sidelink::auth::signature::hash(br#"{"accessory_ids":["2"]}"#);
    let request = signed.get(api::PATH).header("x-sdk-content-sha256", &hash);
    let request = Unsigned { body: br#"{"accessory_ids":["1"]}"#, ..request };
    signed.refuses(signed.send(&request).await).await;
}

#[tokio::test]
async fn a_retry_is_signed_with_a_fresh_date() {
    let signed = Signed::start().await;
    signed.stack.origin.hold();
    signed.stack.origin.script(Scripted::json(503, "{}"));
    let request = signed.get(&query(&["1"]));
    let ask = signed.send(&request);
    let step = async {
        signed.stack.origin.arrived(1).await;
        signed.step(120);
        signed.stack.origin.release();
    };
    let (reply, ()) = tokio::join!(ask, step);
    assert_eq!(reply.ids(), ["1"]);
    let dates: Vec<u64> = signed
        .stack
        .origin
        .calls()
        .iter()
        .map(|call| sidelink::clock::read_basic_date(call.headers["x-sdk-date"].to_str().unwrap()).unwrap())
        .collect();
    assert!(dates.len() == 2 && dates[1] - dates[0] >= 120, "{dates:?}");
}

#[tokio::test]
async fn a_refresh_ahead_is_signed_long_after_its_clients_date() {
    let signed = Signed::with(
        |options| options.link_life = Duration::from_secs(7200),
        |config| {
            knows(config, ACCESS_KEY, SECRET_KEY);
            config.freshness.max = Duration::from_secs(3600);
            config.callers.revalidate = Duration::from_secs(7200);
        },
    )
    .await;
    signed.batch(&["1"]).await;
    signed.step(3550);
    assert_eq!(signed.batch(&["1"]).await.header("cache-status"), "sidelink; hit");
    signed.stack.origin.arrived(2).await;
    let ok = r#"sidelink_upstream_calls_total{result="ok"}"#;
    while signed.stack.metric(ok).await < 2.0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn an_acceptance_of_a_signed_caller_runs_out_too() {
    let signed = warm().await;
    signed.step(301);
    assert_eq!(signed.batch(&["1", "2"]).await.header("cache-status"), "sidelink; fwd=miss; stored");
    // The key is withdrawn.
    signed.stack.origin.update(|options| options.keys.clear());
    assert_eq!(signed.batch(&["1"]).await.status, 200);
    signed.step(301);
    let refused = signed.batch(&["1"]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
}

#[tokio::test]
async fn other_routes_are_signed_again_for_the_endpoint() {
    let signed = Signed::start().await;
    let delete = Unsigned { method: Method::DELETE, ..signed.get("/v2/servicerequest/accessorys/abc-1?group_id=g1") };
    assert_eq!(signed.send(&delete).await.status, 204);
    let body = br#"{"title":"t"}"#;
    let post = Unsigned { method: Method::POST, body, ..signed.get(ECHO) };
    let echo = signed.send(&post).await.json();
    assert_eq!(echo["body"], r#"{"title":"t"}"#);
    let pairs: Vec<(String, String)> = serde_json::from_value(echo["headers"].clone()).unwrap();
    assert!(pairs.contains(&("host".into(), signed.stack.origin.address().to_string())));

    // Dated anew, too: the client's own date may be about to run out.
    let now = signed.clock.now().unix_seconds();
    let old = Unsigned { now: now - 14 * 60, ..signed.get(ECHO) };
    let pairs: Vec<(String, String)> =
        serde_json::from_value(signed.send(&old).await.json()["headers"].clone()).unwrap();
    let dates: Vec<&String> = pairs.iter().filter(|(name, _)| name == "x-sdk-date").map(|(_, date)| date).collect();
    assert!(dates.len() == 1 && sidelink::clock::read_basic_date(dates[0]).unwrap() >= now, "{dates:?}");

    let forged = Unsigned { secret_key: "other", ..signed.get(ECHO) };
    let refused = signed.send(&forged).await;
    assert_eq!((refused.status.as_u16(), refused.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
}

#[tokio::test]
async fn a_large_upload_that_is_not_hashed_streams_through() {
    let signed = Signed::start().await;
    let mut request = signed.get("/v2/servicerequest/accessorys").header("x-sdk-content-sha256", "UNSIGNED-PAYLOAD");
    (request.method, request.body) = (Method::POST, b"x");
    let chunks = (0..256).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 64 << 10]))));
    let client = hyper_util::client::legacy::Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let mut upload = http::Request::post(format!("http://{}{}", signed.stack.client.address, request.target));
    for (name, value) in request.sign() {
        upload = upload.header(name, value);
    }
    let upload = upload.body(StreamBody::new(futures_util::stream::iter(chunks))).unwrap();
    let reply = client.request(upload).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply["bytes"], 16 << 20, "four times limits.signed_body");
}

#[tokio::test]
async fn a_body_that_must_be_hashed_has_a_limit() {
    let signed = Signed::with(
        |_| {},
        |config| {
            knows(config, ACCESS_KEY, SECRET_KEY);
            config.limits.signed_body = 1 << 10;
        },
    )
    .await;
    for (length, status) in [(1 << 10, 200), ((1 << 10) + 1, 413)] {
        let body = vec![b'x'; length];
        let post = Unsigned { method: Method::POST, body: &body, ..signed.get(ECHO) };
        assert_eq!(signed.send(&post).await.status, status, "{length}");
    }
}

#[tokio::test]
async fn bodies_that_must_be_hashed_have_a_limit_in_all() {
    let signed = Signed::with(
        |_| {},
        |config| {
            knows(config, ACCESS_KEY, SECRET_KEY);
            config.limits.signed_body = 4 << 10;
            config.limits.signed_bodies = 4 << 10;
        },
    )
    .await;
    let body = vec![b'x'; 3 << 10];
    let post = Unsigned { method: Method::POST, body: &body, ..signed.get(ECHO) };
    // An unfinished body uses most of the limit.
    let mut head = format!("POST {ECHO} HTTP/1.1\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in post.sign() {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    let mut slow = tokio::net::TcpStream::connect(signed.stack.client.address).await.unwrap();
    use tokio::io::AsyncWriteExt;
    slow.write_all(head.as_bytes()).await.unwrap();
    slow.write_all(b"\r\n").await.unwrap();
    slow.write_all(&body[1..]).await.unwrap();
    let shed = loop {
        let reply = signed.send(&post).await;
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!((shed.status.as_u16(), shed.json()["error_code"].as_str()), (503, Some("SIDELINK.1004")));
    assert!(signed.stack.metric(r#"sidelink_shed_total{limit="signed_bodies"}"#).await >= 1.0);
    drop(slow);
    while signed.send(&post).await.status != 200 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn signed_for_the_endpoints_host_is_forwarded_as_it_was_signed() {
    let signed = Signed::with(|_| {}, |_| {}).await;
    let endpoint = signed.stack.origin.address();
    let request = Unsigned::get(endpoint, &query(&["1", "2"]), &signed.clock);
    let headers = request.sign();
    for _ in 0..2 {
        let reply = signed.send(&request).await;
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unknown-key");
        assert_eq!(reply.ids(), ["1", "2"]);
    }
    let calls = signed.stack.origin.calls();
    assert_eq!(calls.len(), 2, "nothing is stored");
    for (name, value) in &headers {
        assert_eq!(calls[0].headers[*name], value.as_str());
    }

    // The same by absolute form, as an HTTP proxy's clients send it.
    let mut text = format!("GET http://{endpoint}{} HTTP/1.1\r\nconnection: close\r\n", request.target);
    for (name, value) in &headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    let answer = raw(signed.stack.client.address, format!("{text}\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.contains("cache-status: sidelink; fwd=bypass; detail=unknown-key"), "{answer}");

    // Other routes as well; and a Host that names the endpoint in other letters keeps them.
    let other = Unsigned { method: Method::POST, body: b"b", ..Unsigned::get(endpoint, ECHO, &signed.clock) };
    assert_eq!(signed.send(&other).await.json()["body"], "b");
}

#[tokio::test]
async fn signed_for_the_endpoints_host_with_a_known_key_is_answered_from_memory() {
    let signed = Signed::start().await;
    let request = Unsigned::get(signed.stack.origin.address(), &query(&["1", "2"]), &signed.clock);
    for expected in ["sidelink; fwd=miss; stored", "sidelink; hit"] {
        assert_eq!(signed.send(&request).await.header("cache-status"), expected);
    }
    assert_eq!(
        signed.batch(&["1", "2"]).await.header("cache-status"),
        "sidelink; hit",
        "one caller, whatever its Host"
    );
}

#[tokio::test]
async fn signed_for_sidelinks_host_without_its_key_is_the_endpoints_to_refuse() {
    let signed = Signed::with(|_| {}, |_| {}).await;
    let reply = signed.batch(&["1"]).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
    assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=unknown-key");
}
