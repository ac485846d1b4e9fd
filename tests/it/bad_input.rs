//! A malformed or excessive request gets a clear error and affects no other client.

use std::time::Duration;

use http::Method;
use sidelink::demo::origin::interface as api;

use crate::support::{Stack, query, raw};

async fn is_refused(stack: &Stack, request: &str, status: &str, code: &str) {
    let answer = raw(stack.client.address, request.as_bytes()).await;
    assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?} got {answer}");
    assert!(answer.contains(code), "{request:?} got {answer}");
    assert_eq!(stack.asked().len(), 0);
}

#[tokio::test]
async fn requests_that_violate_http_are_refused_and_their_connections_close() {
    let stack = Stack::start().await;
    let target = query(&["1"]);
    for (request, code) in [
        (format!("GET {target} HTTP/1.1\r\nx-auth-token: t\r\n\r\n"), "SIDELINK.0005"),
        (format!("GET {target} HTTP/1.1\r\nhost: a\r\nhost: a\r\nx-auth-token: t\r\n\r\n"), "SIDELINK.0005"),
        (format!("GET {target} HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx"), ""),
        (format!("GET {target} HTTP/1.1\r\nhost: a\r\ncontent-length: x\r\n\r\n"), ""),
        (format!("GET {target} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n"), ""),
        (format!("GET {target} HTTP/1.1\r\nhost: a\r\nx: a\r\n folded\r\n\r\n"), ""),
        (format!("GET {target} HTTP/1.1\r\nhost : a\r\n\r\n"), ""),
        ("GET / x HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), ""),
        ("nonsense\r\n\r\n".to_owned(), ""),
        ("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n".to_owned(), "SIDELINK.0005"),
    ] {
        is_refused(&stack, &request, "400", code).await;
    }
}

#[tokio::test]
async fn sidelink_is_neither_an_open_proxy_nor_a_tunnel() {
    let stack = Stack::start().await;
    let close = "host: a\r\nconnection: close\r\nx-auth-token: t\r\n\r\n";
    is_refused(&stack, &format!("CONNECT example.com:443 HTTP/1.1\r\n{close}"), "405", "SIDELINK.0005").await;
    for authority in ["example.com", "user@127.0.0.1", "127.0.0.1:1"] {
        let request = format!("GET http://{authority}{} HTTP/1.1\r\n{close}", query(&["1"]));
        is_refused(&stack, &request, "421", "SIDELINK.0005").await;
    }
    let own = stack.origin.address();
    let answer =
        raw(stack.client.address, format!("GET http://{own}{} HTTP/1.1\r\n{close}", query(&["1"])).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    assert_eq!(stack.origin.calls()[0].headers["host"], own.to_string());
}

#[tokio::test]
async fn a_batch_over_batch_ids_is_a_400() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_ids = 3).await;
    let many = stack.client.batch("t", &["1", "2", "3", "4"]).await;
    assert_eq!((many.status.as_u16(), many.json()["error_code"].as_str()), (400, Some("SIDELINK.0001")));
    assert_eq!(stack.client.batch("t", &["1", "2", "3", "3", "3"]).await.status, 200);
}

#[tokio::test]
async fn a_body_over_batch_body_is_a_413_that_reaches_the_client() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_body = 1024).await;
    let body = "x".repeat(500_000);
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n", api::PATH);
    let chunked = format!("{head}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let declared = format!("{head}content-length: {}\r\n\r\n{body}", body.len());
    for request in [chunked, declared] {
        is_refused(&stack, &request, "413", "SIDELINK.0002").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_stalled_batch_body_is_a_400() {
    let stack = Stack::with(|_| {}, |config| config.limits.idle_timeout = Duration::from_secs(5)).await;
    let head = format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\ncontent-length: 9\r\n\r\n{{", api::PATH);
    is_refused(&stack, &head, "400", "SIDELINK.0005").await;
}

#[tokio::test]
async fn a_body_on_a_query_batch_is_not_read_as_a_second_request() {
    let stack = Stack::start().await;
    let smuggled = "GET /v2/smuggled HTTP/1.1\r\nhost: a\r\n\r\n";
    let request = format!(
        "GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\ncontent-length: {}\r\n\r\n{smuggled}GET /v2/servicerequest/echo HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n",
        query(&["1"]),
        smuggled.len(),
    );
    let answers = raw(stack.client.address, request.as_bytes()).await;
    assert_eq!(answers.matches("HTTP/1.1 ").count(), 2, "{answers}");
    assert!(answers.contains("fwd=bypass; detail=unreadable") && answers.contains("/v2/servicerequest/echo"));
}

#[tokio::test]
async fn a_sidelink_that_is_its_own_endpoint_answers_508() {
    let listener = std::net::TcpListener::bind(crate::support::LOOPBACK).unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let mut config = crate::support::config(address);
    config.listen.address = vec![address.into()];
    let app = sidelink::app::App::start(config).await.unwrap();
    let client = crate::support::TestClient::new(app.addresses()[0]);
    let reply = tokio::time::timeout(Duration::from_secs(5), client.batch("t", &["1"]))
        .await
        .expect("sidelink waits for itself");
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (508, Some("SIDELINK.0006")));
}

#[tokio::test]
async fn more_than_three_sidelinks_in_via_are_a_loop() {
    let stack = Stack::start().await;
    for target in [query(&["1"]), "/v2/other".to_owned()] {
        let three = [("x-auth-token", "t"), ("via", "1.1 sidelink, 1.1 sidelink"), ("via", "2 sidelink")];
        assert_ne!(stack.client.get(&target, &three).await.status, 508);
        let four = [("x-auth-token", "t"), ("via", "1.1 sidelink, 1.1 sidelink"), ("via", "2 sidelink, 1.1 sidelink")];
        let looped = stack.client.get(&target, &four).await;
        assert_eq!((looped.status.as_u16(), looped.json()["error_code"].as_str()), (508, Some("SIDELINK.0006")));
    }
}

#[tokio::test]
async fn at_the_in_flight_limit_a_miss_is_shed_and_a_hit_is_served() {
    let stack = Stack::with(|_| {}, |config| config.limits.in_flight = 4).await;
    stack.client.batch("a", &["1"]).await;
    stack.origin.hold();
    let client = stack.client.clone();
    let first = tokio::spawn(async move { client.batch("a", &["2", "3"]).await });
    stack.origin.arrived(2).await;
    let shed = stack.client.batch("a", &["4"]).await;
    assert_eq!((shed.status.as_u16(), shed.json()["error_code"].as_str()), (503, Some("SIDELINK.1004")));
    assert_eq!(shed.header("retry-after"), "1");
    assert_eq!(stack.client.batch("a", &["1"]).await.header("cache-status"), "sidelink; hit");
    // One caller can use only half of the limit; other callers use the other half.
    let client = stack.client.clone();
    let other = tokio::spawn(async move { client.batch("b", &["1", "2"]).await });
    stack.origin.arrived(3).await;
    assert_eq!(stack.client.batch("c", &["1"]).await.status, 503);
    assert_eq!(stack.metric(r#"sidelink_shed_total{limit="caller_in_flight"}"#).await, 1.0);
    assert_eq!(stack.metric(r#"sidelink_shed_total{limit="in_flight"}"#).await, 1.0);
    stack.origin.release();
    assert_eq!(first.await.unwrap().ids(), ["2", "3"]);
    assert_eq!(other.await.unwrap().ids(), ["1", "2"]);
    assert_eq!(stack.client.batch("c", &["1"]).await.status, 200, "permits are released");
}

#[tokio::test]
async fn a_disconnect_frees_no_permit_before_the_flight_ends() {
    let stack = Stack::with(|_| {}, |config| config.limits.in_flight = 2).await;
    stack.origin.hold();
    let client = stack.client.clone();
    let gone = tokio::spawn(async move { client.batch("a", &["1"]).await });
    stack.origin.arrived(1).await;
    gone.abort();
    let _ = gone.await;
    assert_eq!(stack.client.batch("a", &["2"]).await.status, 503);
    stack.origin.release();
}

#[tokio::test]
async fn other_methods_on_the_batch_path_pass_through() {
    let stack = Stack::start().await;
    for method in [Method::POST, Method::PUT, Method::HEAD] {
        let reply = stack.client.send(method, &query(&["1"]), &[("x-auth-token", "t")], "").await;
        assert_eq!(reply.status, 404);
        assert!(!reply.headers.contains_key("cache-status"));
    }
}

#[tokio::test]
async fn a_slow_client_delays_no_other_client() {
    let stack = Stack::start().await;
    let slow = tokio::net::TcpStream::connect(stack.client.address).await.unwrap();
    let reply = tokio::time::timeout(Duration::from_secs(5), stack.client.batch("t", &["1"])).await;
    assert_eq!(reply.unwrap().status, 200);
    drop(slow);
}

#[tokio::test]
async fn at_the_waiters_limit_the_next_batch_is_shed() {
    let stack = Stack::with(|_| {}, |config| config.limits.waiters = 1).await;
    stack.origin.hold();
    let client = stack.client.clone();
    let first = tokio::spawn(async move { client.batch("a", &["1"]).await });
    stack.origin.arrived(1).await;
    let shed = stack.client.batch("b", &["1"]).await;
    assert_eq!((shed.status.as_u16(), shed.json()["error_code"].as_str()), (503, Some("SIDELINK.1004")));
    assert_eq!(stack.metric(r#"sidelink_shed_total{limit="waiters"}"#).await, 1.0);
    stack.origin.release();
    assert_eq!(first.await.unwrap().ids(), ["1"]);
    assert_eq!(stack.client.batch("b", &["1"]).await.ids(), ["1"]);
}
