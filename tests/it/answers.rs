//! A client cannot tell sidelink's answer from the endpoint's, except by the headers that tell its source. The endpoint's errors are
//! passed on unchanged.

use std::collections::HashSet;
use std::io::Write;

use http::header::{CONTENT_ENCODING, CONTENT_TYPE, ETAG, HeaderMap};
use http::{Method, StatusCode};
use sidelink::demo::origin::ScriptedReply;
use sidelink::demo::origin::interface as api;

use crate::support::{Stack, query};

#[tokio::test]
async fn an_answer_has_the_endpoints_headers_and_tells_its_source() {
    let stack = Stack::start().await;
    let miss = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!(miss.header("content-type"), "application/json");
    assert_eq!(miss.header("content-length"), miss.body.len().to_string());
    assert_eq!(miss.header("via"), "1.1 sidelink");
    assert!(miss.header("cache-control").starts_with("private, max-age="));
    assert!(!miss.headers.contains_key("age"));
    let vary: HashSet<&str> = miss.header("vary").split(", ").collect();
    for name in ["x-auth-token", "authorization", "x-language", "x-time-zone", "x-site", "x-domain-id", "x-project-id"]
    {
        assert!(vary.contains(name), "{name}");
    }
    // The endpoint's request id, or a generated one.
    assert_eq!(miss.header("x-request-id"), format!("{:032x}", 1));
    let names: HashSet<String> = [
        stack.client.batch("t", &["1"]).await.header("x-request-id").to_owned(),
        stack.client.batch("t", &["1"]).await.header("x-request-id").to_owned(),
    ]
    .into();
    assert!(names.len() == 2 && names.iter().all(|name| name.len() == 32));
}

#[tokio::test]
async fn items_are_in_the_order_of_the_request() {
    let stack = Stack::with(|endpoint| endpoint.reversed = true, |_| {}).await;
    assert_eq!(stack.client.batch("t", &["3", "1", "2"]).await.ids(), ["3", "1", "2"]);
}

#[tokio::test]
async fn items_are_the_endpoints_json_to_the_byte() {
    let stack = Stack::start().await;
    let item = r#"{ "accessory_id" : "1", "new_field": {"a":[1.0, 1e400, "\u0041"]}, "accessory_url":"u" }"#;
    stack.origin.script(ScriptedReply::json(200, format!("{{\"accessory_urls\": [\n{item} ]}}")));
    for _ in 0..2 {
        let reply = stack.client.batch("t", &["1"]).await;
        assert_eq!(reply.body, format!("{{\"accessory_urls\":[{item}]}}"));
    }
}

#[tokio::test]
async fn the_body_form_is_never_stored_downstream() {
    let stack = Stack::start().await;
    let body = r#"{"accessory_ids":["1"]}"#;
    let reply = stack.client.send(Method::GET, api::PATH, &[("x-auth-token", "t")], body).await;
    assert_eq!(reply.header("cache-control"), "no-store");
}

#[tokio::test]
async fn the_endpoints_errors_are_passed_on_unchanged() {
    for (status, code) in
        [(400, "OSM.0001"), (403, "OSM.0003"), (429, "APIGW.0308"), (500, "OSM.0004"), (200, "OSM.01010001")]
    {
        let stack = Stack::with(
            |endpoint| {
                endpoint.poison = vec!["bad".into()];
                endpoint.poison_status = status;
            },
            |_| {},
        )
        .await;
        // Each round has its own caller: a throttled one is paused.
        for caller in ["t", "u"] {
            let reply = stack.client.batch(caller, &["bad"]).await;
            assert_eq!(reply.status, status);
            let body = reply.json();
            assert_eq!(body["error_code"], code);
            assert_eq!(body["request_id"], reply.header("x-request-id"));
            assert_eq!(reply.header("cache-status"), format!("sidelink; fwd=miss; fwd-status={status}"));
            assert_eq!(reply.headers.contains_key("retry-after"), status == 429);
        }
        assert_eq!(stack.asked().len(), 2, "an error is never cached");
        assert_eq!(stack.metric(r#"sidelink_ids_total{result="failed"}"#).await, 2.0);
    }
}

#[tokio::test]
async fn a_200_with_a_validation_error_evicts_nothing_of_the_caller() {
    let stack = Stack::with(
        |endpoint| {
            endpoint.poison = vec!["bad".into()];
            endpoint.poison_status = 200;
        },
        |_| {},
    )
    .await;
    stack.client.batch("t", &["1"]).await;
    stack.client.batch("t", &["bad"]).await;
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
}

#[tokio::test]
async fn an_invalid_answer_is_a_502_in_the_apis_shape() {
    let truncated = r#"{"accessory_urls":[{"accessory_id":"1""#;
    for reply in [ScriptedReply::Reset, ScriptedReply::Truncated(truncated.into()), coded("gzip", b"not gzip")] {
        let stack = Stack::with(|_| {}, |config| config.upstream.retry.attempts = 0).await;
        stack.origin.script(reply.clone());
        let answer = stack.client.batch("t", &["1"]).await;
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{reply:?}");
        assert_eq!(answer.json()["error_code"], "SIDELINK.1001");
        assert_eq!(stack.client.batch("t", &["1"]).await.ids(), ["1"], "nothing of it is cached");
    }
}

#[tokio::test]
async fn an_endless_answer_or_a_compression_bomb_stops_at_the_limit() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(&vec![b' '; 10 << 20]).unwrap();
    for reply in [ScriptedReply::json(200, vec![b' '; 1 << 20]), coded("gzip", &encoder.finish().unwrap())] {
        let stack = Stack::with(|_| {}, |config| config.upstream.answer_bytes = 64 << 10).await;
        stack.origin.script(reply);
        assert_eq!(stack.client.batch("t", &["1"]).await.json()["error_code"], "SIDELINK.1001");
    }
}

#[tokio::test]
async fn coded_answers_are_decoded_and_validators_do_not_survive_a_merge() {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(br#"{"accessory_urls":[{"accessory_id":"1","accessory_url":"u"}]}"#).unwrap();
    let stack = Stack::start().await;
    stack.origin.script(coded("gzip", &encoder.finish().unwrap()));
    let reply = stack.client.get(&query(&["1"]), &[("x-auth-token", "t"), ("accept-encoding", "br")]).await;
    assert_eq!(reply.ids(), ["1"]);
    assert!(!reply.headers.contains_key(CONTENT_ENCODING) && !reply.headers.contains_key(ETAG));
}

#[tokio::test]
async fn without_an_endpoint_hits_are_served_and_misses_are_a_502() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    stack.origin.stop().await;
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
    let miss = stack.client.batch("t", &["1", "2"]).await;
    assert_eq!((miss.status.as_u16(), miss.json()["error_code"].as_str()), (502, Some("SIDELINK.1001")));
}

#[tokio::test]
async fn a_batch_is_answered_by_its_deadline() {
    let stack = Stack::with(|_| {}, |config| config.upstream.deadline = std::time::Duration::from_millis(50)).await;
    stack.origin.hold();
    let late = stack.client.batch("t", &["1"]).await;
    assert_eq!((late.status.as_u16(), late.json()["error_code"].as_str()), (504, Some("SIDELINK.1002")));
}

fn coded(coding: &str, body: &[u8]) -> ScriptedReply {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, "application/json".parse().unwrap());
    headers.insert(CONTENT_ENCODING, coding.parse().unwrap());
    headers.insert(ETAG, "\"v1\"".parse().unwrap());
    ScriptedReply::Whole(StatusCode::OK, headers, body.to_vec().into())
}
