//! Attacks on signed requests: nothing between a client and sidelink makes it sign, serve or store what its key owner
//! did not ask for.

use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows, pair};
use crate::support::{Reply, Stack, query, raw};
use http::Method;
use sidelink::clock::Clock;
use sidelink::config::Config;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const ECHO: &str = "/v2/servicerequest/echo";

async fn stack(configure: impl FnOnce(&mut Config)) -> Stack {
    Stack::with(
        |options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)],
        |config| {
            knows(config, ACCESS_KEY, SECRET_KEY);
            configure(config);
        },
    )
    .await
}

fn get(stack: &Stack, target: &str) -> Unsigned<'static> {
    Unsigned::get(stack.client.address, target, &Clock::system())
}

fn text(r: &Unsigned<'_>, extra: &str) -> String {
    let mut text = format!("{} {} HTTP/1.1\r\n", r.method, r.target);
    for (name, value) in r.sign() {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text + extra + "\r\n"
}

async fn send(stack: &Stack, r: &Unsigned<'_>, extra: &[(&str, &str)], body: &[u8]) -> Reply {
    let headers = r.sign();
    let mut headers: Vec<(&str, &str)> = headers.iter().map(|(n, v)| (*n, v.as_str())).collect();
    headers.extend(extra);
    stack.client.send(r.method.clone(), &r.target, &headers, body.to_vec()).await
}

#[tokio::test]
async fn connection_takes_no_signed_header_away() {
    let stack = stack(|_| {}).await;
    let r =
        Unsigned { method: Method::DELETE, ..get(&stack, ECHO) }.header("if-match", "v1").header("x-project-id", "p");
    let answer = raw(stack.client.address, text(&r, "connection: close, if-match, x-project-id\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401"), "{answer}");
    assert!(answer.contains("SIDELINK.0003"), "{answer}");
    // What is a connection's own may be named, signed or not.
    let r = get(&stack, ECHO).header("te", "trailers");
    let answer =
        raw(stack.client.address, text(&r, "connection: close, te, x-other\r\nx-other: 1\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn connection_takes_no_signed_header_from_a_batch_that_is_forwarded() {
    let stack = stack(|_| {}).await;
    let r = get(&stack, &query(&["1"])).header("x-project-id", "p");
    let answer =
        raw(stack.client.address, text(&r, "range: bytes=0-1\r\nconnection: close, x-project-id\r\n").as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("SIDELINK.0003"), "{answer}");
    assert!(stack.asked().is_empty());
}

#[tokio::test]
async fn a_body_that_does_not_match_its_stated_hash_is_not_signed_again() {
    let stack = stack(|_| {}).await;
    let empty = sidelink::auth::signature::hash(b"");
    let r = Unsigned { method: Method::POST, ..get(&stack, ECHO) };
    let reply = send(&stack, &r, &[("x-sdk-content-sha256", &empty)], b"evil").await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (401, Some("APIGW.0301")));
}

#[tokio::test]
async fn bodies_waiting_for_the_endpoint_count_too() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = silent.local_addr().unwrap();
    let stack = stack(|config| {
        config.upstream.endpoint = sidelink::config::Endpoint::parse(&format!("http://{endpoint}")).unwrap();
        config.limits.signed_body = 4 << 10;
        config.limits.signed_bodies = 4 << 10;
    })
    .await;
    let body = vec![b'x'; 3 << 10];
    let post = Unsigned { method: Method::POST, body: &body, ..get(&stack, ECHO) };
    let first = text(&post, &format!("content-length: {}\r\n", body.len()));
    let mut slow = tokio::net::TcpStream::connect(stack.client.address).await.unwrap();
    slow.write_all(first.as_bytes()).await.unwrap();
    slow.write_all(&body).await.unwrap();
    let (mut taken, _) = silent.accept().await.unwrap();
    let mut seen = [0; 1];
    taken.read_exact(&mut seen).await.unwrap();
    let second = tokio::time::timeout(Duration::from_secs(3), send(&stack, &post, &[], &body)).await;
    let second = second.expect("a second body is taken while the first still waits");
    assert_eq!(second.status, 503);
}

#[tokio::test]
async fn a_declared_length_over_the_limit_is_refused_before_it_is_sent() {
    let stack = stack(|_| {}).await;
    let r = Unsigned { method: Method::POST, body: b"x", ..get(&stack, ECHO) };
    let head = text(&r, &format!("expect: 100-continue\r\ncontent-length: {}\r\n", 5 << 20));
    let mut stream = tokio::net::TcpStream::connect(stack.client.address).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut first = [0; 12];
    stream.read_exact(&mut first).await.unwrap();
    assert_eq!(std::str::from_utf8(&first).unwrap(), "HTTP/1.1 413");
}

/// Some SDKs state it of a request without a body too, and sign that.
#[tokio::test]
async fn unsigned_payload_without_a_body_is_no_payload() {
    let stack = stack(|_| {}).await;
    // The signer of tests takes the stated hash only with a body.
    for (target, hit) in
        [(query(&["1"]), "sidelink; fwd=miss; stored"), (query(&["1"]), "sidelink; hit"), (ECHO.into(), "")]
    {
        let r = Unsigned { body: b"x", ..get(&stack, &target) }.header("x-sdk-content-sha256", "UNSIGNED-PAYLOAD");
        let reply = send(&stack, &r, &[], b"").await;
        assert_eq!((reply.status.as_u16(), reply.header("cache-status")), (200, hit), "{:?}", reply.body);
    }
}

#[tokio::test]
async fn host_keeps_its_case() {
    let origin = Stack::with(|options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)], |_| {}).await;
    let port = origin.origin.address().port();
    let stack = stack(|config| {
        config.upstream.endpoint = sidelink::config::Endpoint::parse(&format!("http://localhost:{port}")).unwrap();
        config.callers.keys.clear();
    })
    .await;
    let post = Unsigned {
        method: Method::POST,
        body: b"b",
        ..Unsigned::get(format!("LocalHost:{port}"), ECHO, &Clock::system())
    };
    let echo = send(&stack, &post, &[], b"b").await.json();
    let pairs: Vec<(String, String)> = serde_json::from_value(echo["headers"].clone()).unwrap();
    assert!(pairs.contains(&("host".into(), format!("LocalHost:{port}"))), "{pairs:?}");
}

#[tokio::test]
async fn http2_authority_is_the_signed_host() {
    use http_body_util::{BodyExt, Full};
    let stack = stack(|_| {}).await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let client = hyper_util::client::legacy::Client::builder(executor).http2_only(true).build_http();
    for (target, status) in [(query(&["1"]), 200), (query(&["1"]), 200), (ECHO.to_owned(), 200)] {
        let r = get(&stack, &target);
        let mut request = http::Request::get(format!("http://{}{target}", stack.client.address));
        for (name, value) in r.sign() {
            if name != "host" {
                request = request.header(name, value);
            }
        }
        let reply = client.request(request.body(Full::<bytes::Bytes>::default()).unwrap()).await.unwrap();
        let (head, body) = reply.into_parts();
        assert_eq!(head.status, status, "{:?}", body.collect().await.unwrap().to_bytes());
    }
    assert_eq!(stack.asked().len(), 1);
}

#[tokio::test]
async fn a_refusal_by_sidelink_is_not_counted_as_forwarded() {
    let stack = stack(|_| {}).await;
    let request = text(&get(&stack, &query(&["1"])), "connection: close, content-type\r\n");
    let answer = raw(stack.client.address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 401") && answer.contains("www-authenticate: SDK-HMAC-SHA256"), "{answer}");
    assert!(answer.contains("cache-status: sidelink; detail=SIDELINK.0003\r\n"), "{answer}");
    assert!(stack.asked().is_empty());
}

#[tokio::test]
async fn without_a_host_header_the_authority_is_the_signed_host() {
    let stack = stack(|_| {}).await;
    let endpoint = stack.origin.address();
    // HTTP/1.0 with absolute-form and no Host: the authority is what was signed.
    let r = Unsigned::get(endpoint, &query(&["1"]), &Clock::system());
    let mut t = format!("GET http://{endpoint}{} HTTP/1.0\r\n", r.target);
    for (n, v) in r.sign() {
        if n != "host" {
            t.push_str(&format!("{n}: {v}\r\n"));
        }
    }
    let a = raw(stack.client.address, format!("{t}\r\n").as_bytes()).await;
    assert!(a.contains(" 200 "), "{a}");
    // No Host at all: it does not verify here, and reaches the endpoint under the endpoint's own name.
    let t = t.replace(&format!("http://{endpoint}"), "");
    let a = raw(stack.client.address, format!("{t}\r\n").as_bytes()).await;
    assert!(a.contains(" 200 ") && a.contains("detail=signature"), "{a}");
}
