//! Each resource that clients use has a limit over all clients. At the limit the next request gets a 503 with `Retry-After`,
//! counted by limit. Hits are never refused.

use std::time::Duration;

use http::Method;
use sidelink::demo::origin::interface as api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{Reply, Stack, TestClient, query, raw};

const ECHO: &str = "/v2/servicerequest/echo";

fn is_shed(reply: &Reply) {
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (503, Some("SIDELINK.1004")));
    assert_eq!(reply.header("retry-after"), "1");
}

/// Waits until a gauge has this value.
async fn reaches(stack: &Stack, series: &str, value: f64) {
    let seen = async {
        while stack.metric(series).await != value {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.unwrap_or_else(|_| panic!("{series} is never {value}"));
}

const EXCHANGES: &str = "sidelink_limit_used{limit=\"exchanges\"}";

#[tokio::test]
async fn requests_on_other_routes_have_a_limit_in_all_and_batches_go_on() {
    let stack = Stack::with(|_| {}, |config| config.limits.exchanges = 2).await;
    let batch = query(&["1"]);
    stack.client.batch("t", &["1"]).await;
    stack.origin.hold();
    let arrived = stack.origin.batch_calls();
    // An Origin makes a batch a request like any other.
    let mut exchanges = Vec::new();
    for _ in 0..2 {
        let (client, batch) = (stack.client.clone(), batch.clone());
        let headers = [("x-auth-token", "t"), ("origin", "https://h")];
        exchanges.push(tokio::spawn(async move { client.get(&batch, &headers).await }));
    }
    stack.origin.arrived(arrived + 2).await;
    assert_eq!(stack.metric(EXCHANGES).await, 2.0);
    is_shed(&stack.client.get(ECHO, &[]).await);
    is_shed(&stack.client.send(Method::POST, ECHO, &[], "hello").await);
    is_shed(&stack.client.send(Method::DELETE, "/v2/servicerequest/accessorys/1", &[("x-auth-token", "t")], "").await);
    is_shed(&stack.client.get(&batch, &[("x-auth-token", "t"), ("range", "bytes=0-1")]).await);
    assert_eq!(stack.metric("sidelink_shed_total{limit=\"exchanges\"}").await, 4.0);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
    stack.origin.release();
    for reply in exchanges {
        assert_eq!(reply.await.unwrap().status, 200);
    }
    assert_eq!(stack.client.get(ECHO, &[]).await.status, 200);
    reaches(&stack, EXCHANGES, 0.0).await;
}

#[tokio::test]
async fn a_client_that_leaves_frees_its_exchange_and_one_that_does_not_read_does_not() {
    let stack = Stack::with(|_| {}, |config| config.limits.exchanges = 1).await;
    let mut idle = TcpStream::connect(stack.client.address).await.unwrap();
    let download = "GET /v2/servicerequest/accessorys/1?bytes=50000000 HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\n\r\n";
    idle.write_all(download.as_bytes()).await.unwrap();
    idle.read_exact(&mut [0; 100]).await.unwrap();
    is_shed(&stack.client.get(ECHO, &[]).await);
    drop(idle);
    reaches(&stack, EXCHANGES, 0.0).await;
    assert_eq!(stack.client.get(ECHO, &[]).await.status, 200);
}

#[tokio::test]
async fn a_reload_changes_the_limit_and_counts_exchanges_from_before() {
    let stack = Stack::with(|_| {}, |config| config.limits.exchanges = 1).await;
    stack.origin.hold();
    let (client, batch) = (stack.client.clone(), query(&["1"]));
    let exchange = tokio::spawn(async move { client.get(&batch, &[("origin", "https://h")]).await });
    stack.origin.arrived(1).await;
    is_shed(&stack.client.get(ECHO, &[]).await);
    let mut more = sidelink::config::Config::clone(&stack.app.config());
    more.limits.exchanges = 2;
    stack.app.apply(more).unwrap();
    assert_eq!(stack.client.get(ECHO, &[]).await.status, 200);
    assert_eq!(stack.metric("sidelink_limit{limit=\"exchanges\"}").await, 2.0);
    stack.origin.release();
    exchange.await.unwrap();
}

#[tokio::test]
async fn bodies_of_batches_have_a_limit_in_all_and_those_without_one_go_on() {
    let stack = Stack::with(
        |_| {},
        |config| {
            config.limits.batch_body = 4 << 10;
            config.limits.batch_bodies = 4 << 10;
        },
    )
    .await;
    stack.client.batch("t", &["1"]).await;
    let body = format!("{{{}\"accessory_ids\":[\"1\"]}}", " ".repeat(3 << 10));
    let headers = [("x-auth-token", "t"), ("content-type", "application/json")];
    let in_body = || stack.client.send(Method::GET, api::PATH, &headers, body.clone());
    assert_eq!(in_body().await.ids(), ["1"]);
    // A body that is only announced takes no share; one that does not end has a share of what it sent.
    let head =
        format!("GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: t\r\ncontent-length: {}\r\n\r\n", api::PATH, body.len());
    let mut slow = TcpStream::connect(stack.client.address).await.unwrap();
    slow.write_all(head.as_bytes()).await.unwrap();
    assert_eq!(in_body().await.ids(), ["1"]);
    slow.write_all(&body.as_bytes()[1..]).await.unwrap();
    reaches(&stack, "sidelink_limit_used{limit=\"batch_bodies\"}", (body.len() - 1) as f64).await;
    is_shed(&in_body().await);
    assert_eq!(stack.metric("sidelink_shed_total{limit=\"batch_bodies\"}").await, 1.0);
    assert_eq!(stack.client.batch("t", &["1"]).await.header("cache-status"), "sidelink; hit");
    drop(slow);
    reaches(&stack, "sidelink_limit_used{limit=\"batch_bodies\"}", 0.0).await;
    assert_eq!(in_body().await.ids(), ["1"]);
    // A body over `limits.batch_body` is refused before it is sent.
    let refused = raw(stack.client.address, head.replace("content-length: 3", "content-length: 9").as_bytes()).await;
    assert!(refused.starts_with("HTTP/1.1 413 "), "{refused}");
}

const CALLS: &str = "sidelink_limit_used{limit=\"calls\"}";
const WAITERS: &str = "sidelink_limit_used{limit=\"waiters\"}";

#[tokio::test]
async fn calls_have_a_limit_in_all_and_what_is_over_it_waits_for_its_turn() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls = 2).await;
    for caller in 0..5 {
        stack.client.batch(&caller.to_string(), &["accepted"]).await;
    }
    let before = stack.asked().len();
    stack.origin.hold();
    let mut batches = Vec::new();
    for caller in 0..5 {
        let client = stack.client.clone();
        batches.push(tokio::spawn(async move { client.batch(&caller.to_string(), &["1"]).await }));
    }
    reaches(&stack, WAITERS, 5.0).await;
    assert_eq!((stack.metric(CALLS).await, stack.asked().len() - before), (2.0, 2));
    stack.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().ids(), ["1"]);
    }
    assert_eq!(stack.asked().len() - before, 5);
    reaches(&stack, CALLS, 0.0).await;
}

/// Tokens can be made up: callers that the endpoint has not accepted share a quarter of the calls.
#[tokio::test]
async fn callers_that_are_not_accepted_share_a_quarter_of_the_calls() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls = 8).await;
    stack.client.batch("accepted", &["1"]).await;
    stack.origin.hold();
    let mut batches = Vec::new();
    for caller in 0..5 {
        let client = stack.client.clone();
        batches.push(tokio::spawn(async move { client.batch(&format!("made-up-{caller}"), &["1"]).await }));
    }
    reaches(&stack, WAITERS, 5.0).await;
    reaches(&stack, CALLS, 2.0).await;
    let client = stack.client.clone();
    batches.push(tokio::spawn(async move { client.batch("accepted", &["2"]).await }));
    reaches(&stack, CALLS, 3.0).await;
    stack.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn calls_of_one_scope_have_a_limit_and_what_is_over_it_gathers() {
    let stack = Stack::with(|_| {}, |config| config.upstream.calls_per_scope = 1).await;
    stack.origin.hold();
    let mut batches = Vec::new();
    for id in ["1", "2", "3", "4"] {
        let client = stack.client.clone();
        batches.push(tokio::spawn(async move { client.batch("t", &[id]).await }));
        reaches(&stack, WAITERS, batches.len() as f64).await;
    }
    assert_eq!(stack.asked(), [["1"]]);
    stack.origin.release();
    for batch in batches {
        assert_eq!(batch.await.unwrap().status, 200);
    }
    assert_eq!(stack.asked(), [vec!["1"], vec!["2", "3", "4"]]);
}

#[tokio::test]
async fn connections_have_a_limit_and_the_next_one_waits_until_one_leaves() {
    let stack = Stack::with(|_| {}, |config| config.limits.connections = 2).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        open.push(TcpStream::connect(stack.client.address).await.unwrap());
    }
    let used = "sidelink_limit_used{limit=\"connections\"}";
    reaches(&stack, used, 2.0).await;
    let client = stack.client.clone();
    let waits = tokio::spawn(async move { client.batch("t", &["1"]).await });
    // The admin listener has a limit of its own.
    for _ in 0..5 {
        assert_eq!(stack.metric(used).await, 2.0);
    }
    assert!(!waits.is_finished() && stack.asked().is_empty());
    open.pop();
    assert_eq!(waits.await.unwrap().status, 200);
}

#[tokio::test]
async fn operators_connections_have_a_limit_and_idle_ones_are_closed() {
    let stack = Stack::with(|_| {}, |config| config.limits.idle_timeout = Duration::from_millis(500)).await;
    let mut open = Vec::new();
    for _ in 0..64 {
        open.push(TcpStream::connect(stack.app.admin_address()).await.unwrap());
    }
    // The probe waits no longer than the idle time.
    let probe = TestClient::new(stack.app.admin_address());
    let answer = tokio::time::timeout(Duration::from_secs(60), probe.get("/livez", &[])).await;
    assert_eq!(answer.expect("probes are kept out").status, 200);
}

#[tokio::test]
async fn an_error_of_a_limit_says_how_many_came_how_many_are_allowed_and_which_request_it_is_of() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_ids = 2).await;
    let refused = stack.client.batch("t", &["1", "2", "3"]).await;
    let told = refused.json();
    assert_eq!(told["error_msg"], "the batch has 3 ids, and this sidelink allows 2; ask in smaller batches");
    assert_eq!(told["request_id"], refused.header("x-request-id"));
    assert_eq!(refused.header("x-request-id").len(), 32);
    let named = [("x-auth-token", "t"), ("x-request-id", "a-clients.own_1")];
    let refused = stack.client.get(&query(&["1", "2", "3"]), &named).await;
    assert_eq!(
        (&refused.json()["request_id"], refused.header("x-request-id")),
        (&"a-clients.own_1".into(), "a-clients.own_1")
    );
    assert_eq!(refused.header("content-length"), refused.body.len().to_string());
}
