//! The simulated endpoint follows the public API reference, over sockets and over in-memory streams.

use std::io::Read;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use sidelink::api::request::Form;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{LinkSigner, Loss, Options, Origin, ScriptedReply, UnknownIds, link_is_for};

use crate::support::{Reply, TestClient, origin_options};

const TOKEN: (&str, &str) = ("x-auth-token", "t");

async fn start() -> Origin {
    Origin::start(origin_options()).await.unwrap()
}

async fn send(origin: &Origin, method: Method, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    TestClient::new(origin.address()).send(method, target, headers, body.to_vec()).await
}

/// Sends a batch in query form as the caller `t`.
async fn ask(origin: &Origin, query: &str) -> Reply {
    ask_with(origin, query, &[TOKEN]).await
}

async fn ask_with(origin: &Origin, query: &str, headers: &[(&str, &str)]) -> Reply {
    TestClient::new(origin.address()).get(&format!("{}?{query}", api::PATH), headers).await
}

async fn ask_by_body(origin: &Origin, headers: &[(&str, &str)], body: &str) -> Reply {
    send(origin, Method::GET, api::PATH, headers, body.as_bytes()).await
}

/// A request for the id `1`.
fn batch(origin: &Origin) -> Request<Full<Bytes>> {
    let uri = format!("http://{}{}?accessory_ids=1", origin.address(), api::PATH);
    Request::get(uri).header(TOKEN.0, TOKEN.1).body(Full::default()).unwrap()
}

/// An in-memory connection.
fn connect(origin: &Origin) -> TokioIo<tokio::io::DuplexStream> {
    let (near, far) = tokio::io::duplex(1 << 16);
    let serving = origin.clone();
    tokio::spawn(async move { serving.serve_connection(far).await });
    TokioIo::new(near)
}

#[test]
fn command_line_options_are_parsed_and_validated() {
    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        options: Options,
    }
    for wrong in ["--fail-ratio=1.5", "--fail-ratio=nan", "--poison-status=99", "--link-life=x"] {
        assert!(Arguments::try_parse_from(["origin", wrong]).is_err(), "{wrong}");
    }
    let some = Arguments::parse_from(["origin", "--missing=1,2", "--unknown-ids=fail", "--clock-offset=-5"]).options;
    assert_eq!((some.missing.len(), some.unknown_ids, some.clock_offset), (2, UnknownIds::Fail, -5));
    let default = Options::default();
    assert_eq!(
        (default.api.name, default.link_life, default.poison_status),
        ("huawei-osm", Duration::from_secs(900), 500)
    );
}

#[tokio::test]
async fn the_three_request_forms_are_read() {
    let origin = start().await;
    let target = format!("{}?accessory_ids=1&accessory_ids=3%20x&accessory_ids=b%2F2,c&group_id=g+1", api::PATH);
    let answer = send(&origin, Method::GET, &target, &[TOKEN], b"").await;
    assert_eq!(answer.ids(), ["1", "3 x", "b/2,c"]);
    assert_eq!(ask(&origin, "accessory_ids=1,a%2Cb,+").await.ids(), ["1", "a,b", " "]);
    let body = r#"{ "group_id" : "1", "accessory_ids" : [ "1", "ü" ], "other": 1 }"#;
    let json = ("content-type", "application/json; charset=utf-8");
    assert_eq!(ask_by_body(&origin, &[TOKEN, json], body).await.ids(), ["1", "ü"]);

    let calls = origin.calls();
    let forms: Vec<_> = calls.iter().map(|call| call.form).collect();
    assert_eq!(forms, [Some(Form::Repeated), Some(Form::Comma), Some(Form::Body)]);
    let groups: Vec<_> = calls.iter().map(|call| call.group.as_deref()).collect();
    assert_eq!(groups, [Some("g 1"), None, Some("1")]);
    assert_eq!((calls[0].target.as_str(), &calls[0].method), (target.as_str(), &Method::GET));
    assert_eq!(calls[0].headers["x-auth-token"], "t");
    assert_eq!((&calls[1].ids[..], &calls[2].body[..]), (&["1", "a,b", " "].map(String::from)[..], body.as_bytes()));
}

#[tokio::test]
async fn requests_that_the_api_reference_forbids_are_a_400() {
    let origin = start().await;
    let many = |count: usize| vec!["accessory_ids=1"; count].join("&");
    let id = |length: usize| format!("accessory_ids={}", "ü".repeat(length).replace('ü', "%C3%BC"));
    let group = |length: usize| format!("accessory_ids=1&group_id={}", "g".repeat(length));
    for good in [many(100), id(64), group(32)] {
        assert_eq!(ask(&origin, &good).await.status, 200, "{good}");
    }
    let none = "group_id=1".to_owned();
    for bad in [
        many(101),
        id(65),
        group(33),
        group(0),
        none,
        "accessory_ids=".to_owned(),
        "accessory_ids=1,,2".to_owned(),
        "accessory_ids=%FF".to_owned(),
        String::new(),
    ] {
        let answer = ask(&origin, &bad).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (400, "OSM.0001"), "{bad}");
        assert_eq!(answer.json()["request_id"], answer.headers["x-request-id"].to_str().unwrap());
    }
    for body in
        ["{", "[]", r#"[["1"],"g"]"#, r#"{"accessory_ids":[1]}"#, r#"{"accessory_ids":[]}"#, r#"{"group_id":"1"}"#]
    {
        assert_eq!(ask_by_body(&origin, &[TOKEN], body).await.code(), "OSM.0001", "{body}");
    }
    let body = r#"{"accessory_ids":["1"]}"#;
    assert_eq!(ask_by_body(&origin, &[TOKEN], body).await.status, 200);
    for other in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        assert_eq!(ask_by_body(&origin, &[TOKEN, other], body).await.code(), "OSM.0001", "{other:?}");
    }
    let both = format!("{}?accessory_ids=1", api::PATH);
    assert_eq!(send(&origin, Method::GET, &both, &[TOKEN], body.as_bytes()).await.code(), "OSM.0001");
    assert_eq!(ask_by_body(&origin, &[TOKEN], &" ".repeat((1 << 20) + 1)).await.status, 413);

    origin.update(|options| options.max_ids = Some(2));
    assert_eq!(ask(&origin, &many(3)).await.code(), "OSM.0001");
    assert_eq!(origin.calls().last().unwrap().form, None);
}

#[tokio::test]
async fn a_call_needs_a_credential() {
    let origin = start().await;
    origin.update(|options| options.refuse = vec!["old".to_owned()]);
    let signed = ("authorization", "SDK-HMAC-SHA256 Access=AK1, SignedHeaders=host, Signature=00");
    for (headers, status, code) in [
        (vec![], 401, "OSM.0002"),
        (vec![("x-auth-token", "")], 401, "OSM.0002"),
        (vec![("authorization", "V11-HMAC-SHA256 Access=a")], 401, "OSM.0002"),
        (vec![("x-auth-token", "old")], 401, "APIGW.0301"),
        (vec![signed], 401, "APIGW.0301"),
        (vec![TOKEN], 200, ""),
    ] {
        let answer = ask_with(&origin, "accessory_ids=1", &headers).await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code), "{headers:?}");
    }
}

#[tokio::test]
async fn a_link_belongs_to_one_id_and_scope() {
    let origin = start().await;
    let query = "accessory_ids=b%2F2%2C%3F&group_id=g";
    let headers = [TOKEN, ("x-language", "en-us"), ("x-site", "1"), ("x-time-zone", "GMT+8")];
    let (id, link) = ask_with(&origin, query, &headers).await.links().remove(0);
    assert_eq!(id, "b/2,?");
    let right = (id.as_str(), Some("g"), "t", Some("en-us"), Some("1"));
    let is_for = |(id, group, token, language, site)| link_is_for(&link, id, group, token, language, site);
    assert!(is_for(right), "{link}");
    for other in [
        ("b/2,", right.1, right.2, right.3, right.4),
        (right.0, None, right.2, right.3, right.4),
        (right.0, right.1, "T", right.3, right.4),
        (right.0, right.1, right.2, None, right.4),
        (right.0, right.1, right.2, right.3, Some("-")),
    ] {
        assert!(!is_for(other), "{other:?} {link}");
    }
    assert!(link.contains("&time-zone=GMT%2B8&"), "{link}");
    let again = ask_with(&origin, query, &headers).await.links().remove(0).1;
    assert_ne!(link, again, "each call makes a new link");
}

#[tokio::test]
async fn links_have_the_usual_size_and_expiry_with_every_signer() {
    let origin = start().await;
    for (signer, expiry) in [
        (LinkSigner::V2, Some("&Expires=")),
        (LinkSigner::V4, Some("&X-Amz-Expires=900&")),
        (LinkSigner::Obs, Some("&X-Obs-Expires=900&")),
        (LinkSigner::Unreadable, None),
        (LinkSigner::Unsigned, None),
    ] {
        origin.update(|options| options.signer = Some(signer));
        let (_, link) = ask(&origin, "accessory_ids=1234567890&group_id=1").await.links().remove(0);
        assert!(link_is_for(&link, "1234567890", Some("1"), "t", None, None), "{link}");
        assert_eq!(link.contains("Signature="), signer != LinkSigner::Unsigned, "{link}");
        match expiry {
            Some(expiry) => {
                assert!(link.contains(expiry) && (430..=470).contains(&link.len()), "{} {link}", link.len());
            }
            None => assert!(!link.contains("Expires="), "{link}"),
        }
    }
}

#[tokio::test]
async fn answers_and_links_are_dated_by_the_simulated_clock() {
    let origin = start().await;
    for offset in [3600, -3600] {
        origin.update(|options| options.clock_offset = offset);
        let answer = ask(&origin, "accessory_ids=1").await;
        let date = httpdate::parse_http_date(answer.headers["date"].to_str().unwrap()).unwrap();
        let unix = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
        assert!(unix(date).abs_diff(unix(SystemTime::now()).saturating_add_signed(offset)) <= 5);
        let expires = answer.links()[0].1.split("&Expires=").nth(1).unwrap().split('&').next().unwrap().to_owned();
        assert!(expires.parse::<u64>().unwrap().abs_diff(unix(date) + 900) <= 1);
    }
    for offset in [i64::MAX, i64::MIN] {
        origin.update(|options| {
            (options.clock_offset, options.link_life) = (offset, Duration::MAX);
        });
        for signer in [LinkSigner::V2, LinkSigner::V4] {
            origin.update(|options| options.signer = Some(signer));
            assert_eq!(ask(&origin, "accessory_ids=1").await.status, 200);
        }
    }
}

#[tokio::test]
async fn unknown_ids_are_left_out_or_fail_the_batch() {
    let origin = start().await;
    origin.update(|options| options.missing = vec!["2".to_owned()]);
    assert_eq!(ask(&origin, "accessory_ids=1,2,3").await.ids(), ["1", "3"]);
    origin.update(|options| options.reversed = true);
    assert_eq!(ask(&origin, "accessory_ids=1,2,3").await.ids(), ["3", "1"]);
    origin.update(|options| options.unknown_ids = UnknownIds::Fail);
    assert_eq!(ask(&origin, "accessory_ids=1,2,3").await.code(), "OSM.0001");
    assert_eq!(ask(&origin, "accessory_ids=1").await.ids(), ["1"]);
}

#[tokio::test]
async fn a_poison_id_fails_only_its_own_batch() {
    let origin = start().await;
    origin.update(|options| options.poison = vec!["bad".to_owned()]);
    for (status, code) in
        [(200, "OSM.01010001"), (400, "OSM.0001"), (403, "OSM.0003"), (429, "APIGW.0308"), (500, "OSM.0004")]
    {
        origin.update(|options| options.poison_status = status);
        let answer = ask(&origin, "accessory_ids=1,bad").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (status, code));
        assert_eq!(answer.headers.contains_key("retry-after"), status == 429);
        assert!(answer.json().get("accessory_urls").is_none());
    }
    assert_eq!(ask(&origin, "accessory_ids=1").await.ids(), ["1"]);
    origin.update(|options| options.fail_ratio = 1.0);
    for (status, code) in [(503, "APIGW.0202"), (500, "OSM.0004")] {
        let failed = ask(&origin, "accessory_ids=1").await;
        assert_eq!((failed.status.as_u16(), failed.code().as_str()), (status, code));
        origin.update(|options| options.fail_status = 500);
    }
}

#[tokio::test]
async fn an_answer_is_compressed_only_if_accepted() {
    let origin = start().await;
    for (accepted, coded) in [("gzip", true), ("br, GZIP;q=0.5", true), ("gzip;q=0", false), ("br", false)] {
        let answer = ask_with(&origin, "accessory_ids=1", &[TOKEN, ("accept-encoding", accepted)]).await;
        assert_eq!(answer.headers.contains_key("content-encoding"), coded, "{accepted}");
        if coded {
            let mut text = String::new();
            flate2::read::GzDecoder::new(&answer.body[..]).read_to_string(&mut text).unwrap();
            assert!(text.contains("accessory_urls"));
        } else {
            assert_eq!(answer.ids(), ["1"]);
        }
    }
    origin.update(|options| {
        options.no_gzip = true;
        options.cache_control = Some("no-store".to_owned());
    });
    let plain = ask_with(&origin, "accessory_ids=1", &[TOKEN, ("accept-encoding", "gzip")]).await;
    assert_eq!((plain.ids(), &plain.headers["cache-control"]), (vec!["1".to_owned()], &"no-store".parse().unwrap()));
}

#[tokio::test]
async fn calls_and_ids_are_counted_with_and_without_recording() {
    let origin = start().await;
    ask(&origin, "accessory_ids=1,2").await;
    ask(&origin, "accessory_ids=2,3").await;
    ask(&origin, "accessory_ids=").await;
    assert_eq!((origin.batch_calls(), origin.ids_asked()), (3, 4));
    origin.forget_calls();
    assert!(origin.calls().is_empty());
    origin.update(|options| options.record = false);
    ask(&origin, "accessory_ids=2,3&group_id=g").await;
    ask_with(&origin, "accessory_ids=1", &[("x-auth-token", "u")]).await;
    assert!(origin.calls().is_empty());
    assert_eq!((origin.batch_calls(), origin.ids_asked()), (5, 7));
    let counts = send(&origin, Method::GET, "/counts", &[], b"").await.json();
    assert_eq!(counts, serde_json::json!({"batch_calls": 5, "ids_asked": 7}));
}

#[tokio::test]
async fn held_calls_wait_until_released() {
    let origin = start().await;
    origin.hold();
    let asking = |query: &'static str| {
        let origin = origin.clone();
        tokio::spawn(async move { ask(&origin, query).await.ids() })
    };
    let (first, second) = (asking("accessory_ids=1"), asking("accessory_ids=2"));
    origin.arrived(2).await;
    // The held calls arrived before this reply was scripted, so they do not get it.
    origin.script(ScriptedReply::json(200, "{}"));
    assert!(!first.is_finished() && !second.is_finished());
    assert_eq!(
        send(&origin, Method::GET, "/v2/servicerequest/echo", &[], b"").await.status,
        200,
        "only batches are held"
    );
    origin.release();
    assert_eq!((first.await.unwrap(), second.await.unwrap()), (vec!["1".to_owned()], vec!["2".to_owned()]));
    assert_eq!(&ask(&origin, "accessory_ids=3").await.body[..], b"{}");
}

#[tokio::test(start_paused = true)]
async fn a_delay_delays_batches() {
    let origin = start().await;
    origin.update(|options| options.delay = Duration::from_secs(3));
    let before = tokio::time::Instant::now();
    ask(&origin, "accessory_ids=1").await;
    assert!(before.elapsed() >= Duration::from_secs(3));
}

#[tokio::test]
async fn scripted_replies_are_sent_in_order_and_unchanged() {
    let origin = start().await;
    let headers = HeaderMap::from_iter([("x-own".parse().unwrap(), "1".parse().unwrap())]);
    origin.script(ScriptedReply::Whole(StatusCode::IM_A_TEAPOT, headers, Bytes::from_static(b"tea")));
    origin.script(ScriptedReply::Truncated(Bytes::from_static(b"{\"accessory_urls\":[")));
    origin.script(ScriptedReply::Reset);

    let whole = ask(&origin, "accessory_ids=1").await;
    assert_eq!(
        (whole.status.as_u16(), &whole.body[..], &whole.headers["x-own"]),
        (418, &b"tea"[..], &"1".parse().unwrap())
    );
    assert!(!whole.headers.contains_key("x-request-id"));

    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let cut = client.request(batch(&origin)).await.unwrap();
    assert_eq!((cut.status(), &cut.headers()["content-length"]), (StatusCode::OK, &"83".parse().unwrap()));
    let mut body = cut.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "{\"accessory_urls\":[");
    body.frame().await.unwrap().unwrap_err();

    client.request(batch(&origin)).await.unwrap_err();
    assert_eq!(ask(&origin, "accessory_ids=1").await.ids(), ["1"]);
    assert_eq!(origin.batch_calls(), 4);
}

#[tokio::test]
async fn a_stopped_origin_is_down_until_another_starts_on_its_address() {
    let origin = start().await;
    origin.hold();
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let waiting = tokio::spawn(client.request(batch(&origin)));
    origin.arrived(1).await;
    origin.stop().await;
    waiting.await.unwrap().unwrap_err();
    assert!(client.request(batch(&origin)).await.unwrap_err().is_connect());

    let again = Origin::start(Options { address: origin.address(), ..origin_options() }).await.unwrap();
    assert_eq!(ask(&again, "accessory_ids=1").await.ids(), ["1"]);
    // An in-memory connection ends too.
    let (_client, server) = tokio::io::duplex(64);
    let serving = again.clone();
    let served = tokio::spawn(async move { serving.serve_connection(server).await });
    again.stop().await;
    served.await.unwrap();
}

#[tokio::test]
async fn http2_over_in_memory_streams_is_served() {
    let origin = start().await;
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), connect(&origin)).await.unwrap();
    tokio::spawn(connection);
    let response = sender.send_request(batch(&origin)).await.unwrap();
    assert_eq!((response.status(), response.version()), (StatusCode::OK, http::Version::HTTP_2));
    assert_eq!(origin.calls()[0].ids, ["1"]);
    origin.script(ScriptedReply::Reset);
    sender.send_request(batch(&origin)).await.unwrap_err();
    let echo = Request::put(format!("http://{}/v2/servicerequest/echo", origin.address()));
    let echo = echo.body(Full::from("x")).unwrap();
    assert_eq!(sender.send_request(echo).await.unwrap().status(), StatusCode::OK, "only the stream was reset");

    origin.hold();
    let waiting = tokio::spawn(sender.send_request(batch(&origin)));
    origin.arrived(3).await;
    origin.stop().await;
    waiting.await.unwrap().unwrap_err();
}

#[tokio::test]
async fn other_routes_are_answered() {
    let origin = start().await;
    let upload = send(&origin, Method::POST, "/v2/servicerequest/accessorys", &[], &[b'x'; 200_000]).await;
    assert_eq!((upload.status.as_u16(), upload.json()["bytes"].as_u64()), (200, Some(200_000)));
    assert!(upload.json()["accessory_id"].is_string());

    let path = "/v2/servicerequest/accessorys/1,2";
    for (query, length) in [("", 1 << 20), ("?bytes=0", 0), ("?bytes=20000&chunk_delay_ms=1", 20_000)] {
        let download = send(&origin, Method::GET, &format!("{path}{query}"), &[], b"").await;
        assert_eq!((download.body.len(), download.body.iter().all(|byte| *byte == b'x')), (length, true));
        assert!(download.headers.contains_key("x-request-id") && download.headers.contains_key("date"));
    }
    assert_eq!(send(&origin, Method::DELETE, path, &[], b"").await.status, 204);

    let target = "/v2/servicerequest/echo?b=%2f&a=1+2";
    let echo = send(&origin, Method::PATCH, target, &[("x-own", "1"), ("x-own", "2")], &[b'y'; 70_000]).await.json();
    assert_eq!(
        (&echo["method"], &echo["target"], &echo["body_bytes"]),
        (&"PATCH".into(), &target.into(), &70_000.into())
    );
    assert_eq!(echo["body"].as_str().unwrap(), "y".repeat(64 << 10));
    let pairs: Vec<(String, String)> = serde_json::from_value(echo["headers"].clone()).unwrap();
    let repeated: Vec<_> = pairs.iter().filter(|(name, _)| name == "x-own").map(|(_, value)| value.as_str()).collect();
    assert_eq!(repeated, ["1", "2"]);

    for (method, target) in [
        (Method::GET, "/"),
        (Method::GET, "/v2/servicerequest/accessorys"),
        (Method::GET, "/v2/servicerequest/accessorysx"),
        (Method::GET, "/v2/servicerequest/accessorys/access-urls/"),
        (Method::POST, api::PATH),
        (Method::DELETE, "/v2/servicerequest/accessorys/"),
    ] {
        let answer = send(&origin, method, target, &[], b"").await;
        assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "APIGW.0101"), "{target}");
    }
    assert_eq!(origin.batch_calls(), 0);
}

/// Whether this connection answers a request.
async fn answers(sender: &mut http1::SendRequest<Empty<Bytes>>) -> bool {
    if sender.ready().await.is_err() {
        return false;
    }
    match sender.send_request(Request::get("/counts").body(Empty::new()).unwrap()).await {
        Ok(response) => response.into_body().collect().await.is_ok(),
        Err(_) => false,
    }
}

async fn connect_http1(origin: &Origin) -> http1::SendRequest<Empty<Bytes>> {
    let (sender, connection) = http1::handshake(connect(origin)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn only_the_selected_connections_are_lost() {
    for how in [Loss::Now, Loss::AtNextRequest, Loss::Gracefully] {
        let origin = start().await;
        let (mut first, mut second) = (connect_http1(&origin).await, connect_http1(&origin).await);
        assert!(answers(&mut first).await && answers(&mut second).await);
        origin.lose_connection(0, how);
        assert!(!answers(&mut first).await && answers(&mut second).await, "{how:?}");
        origin.lose_connections(how);
        let mut third = connect_http1(&origin).await;
        assert!(!answers(&mut second).await && answers(&mut third).await, "{how:?}");
        assert_eq!(origin.connections(), 3);
    }
}

#[tokio::test]
async fn a_connection_closes_gracefully_after_its_last_request() {
    let origin = start().await;
    origin.update(|options| options.requests_per_connection = Some(3));
    let mut sender = connect_http1(&origin).await;
    for _ in 0..3 {
        assert!(answers(&mut sender).await);
    }
    assert!(!answers(&mut sender).await);

    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), connect(&origin)).await.unwrap();
    let ended = tokio::spawn(connection);
    for _ in 0..3 {
        sender.ready().await.unwrap();
        assert_eq!(sender.send_request(batch(&origin)).await.unwrap().status(), 200);
    }
    ended.await.unwrap().unwrap();
}
