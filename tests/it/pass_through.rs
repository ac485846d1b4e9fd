//! Other routes are streamed. Only what a proxy must change is changed.

use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::Value;

use crate::support::{Stack, raw};

const ECHO: &str = "/v2/servicerequest/echo";

fn names(echo: &Value) -> Vec<String> {
    let pairs = echo["headers"].as_array().unwrap().iter();
    let mut names: Vec<String> = pairs.map(|pair| pair[0].as_str().unwrap().to_owned()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn method_target_headers_and_body_are_forwarded_unchanged() {
    let stack = Stack::start().await;
    let target = format!("{ECHO}?a=%2f%2F&b=x+y&c=%E9&&=;d");
    let headers = [("authorization", "SDK-HMAC-SHA256 x"), ("cookie", "a=b"), ("x-twice", "1"), ("x-twice", "2")];
    for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE, Method::PATCH] {
        let reply = stack.client.send(method.clone(), &target, &headers, "body").await;
        let echo = reply.json();
        assert_eq!(echo["method"], method.as_str());
        assert_eq!(echo["target"], target);
        assert_eq!(echo["body"], "body");
        let pairs: Vec<(String, String)> = serde_json::from_value(echo["headers"].clone()).unwrap();
        for (name, value) in headers {
            assert!(pairs.contains(&(name.to_owned(), value.to_owned())), "{name}: {value}");
        }
        assert!(pairs.contains(&("host".to_owned(), stack.origin.address().to_string())));
        assert!(pairs.contains(&("via".to_owned(), "1.1 sidelink".to_owned())));
        assert_eq!(reply.header("via"), "1.1 sidelink");
        assert!(!reply.headers.contains_key("cache-status"));
    }
}

#[tokio::test]
async fn hop_by_hop_headers_are_not_forwarded() {
    let stack = Stack::start().await;
    let request = format!(
        "GET {ECHO} HTTP/1.1\r\nhost: a\r\nconnection: close, x-mine\r\nx-mine: 1\r\nte: trailers\r\nkeep-alive: 5\r\nproxy-connection: x\r\nupgrade: h2c\r\nx-kept: 1\r\n\r\n"
    );
    let answer = raw(stack.client.address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(!head.contains("x-hop"), "the endpoint's Connection header names x-hop: {head}");
    let echo: Value = serde_json::from_str(body).unwrap();
    assert_eq!(names(&echo), ["host", "via", "x-kept"]);
}

#[tokio::test]
async fn a_large_upload_is_streamed() {
    let stack = Stack::start().await;
    let chunks = (0..512).map(|_| Ok::<_, std::io::Error>(Frame::data(Bytes::from(vec![b'x'; 64 << 10]))));
    let body = StreamBody::new(futures_util::stream::iter(chunks));
    let client = Client::builder(TokioExecutor::new()).build_http();
    let uri = format!("http://{}/v2/servicerequest/accessorys", stack.client.address);
    let request = Request::post(uri).body(body).unwrap();
    let reply = client.request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
    let reply: Value = serde_json::from_slice(&reply).unwrap();
    assert_eq!(reply["bytes"], 32 << 20);
}

#[tokio::test]
async fn a_slow_download_is_streamed() {
    let stack = Stack::start().await;
    let client = Client::builder(TokioExecutor::new()).build_http::<http_body_util::Empty<Bytes>>();
    let target = "/v2/servicerequest/accessorys/1,2?bytes=65536&chunk_delay_ms=100";
    let uri = format!("http://{}{target}", stack.client.address).parse().unwrap();
    let response = client.get(uri).await.unwrap();
    assert_eq!(response.headers()["content-length"], "65536");
    let mut body = response.into_body();
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(first.len() < 65536, "the first chunk arrives before the last one is sent");
    let rest = body.collect().await.unwrap().to_bytes();
    assert_eq!(first.len() + rest.len(), 65536);
}

#[tokio::test(start_paused = true)]
async fn an_idle_exchange_ends_with_a_504_after_idle_timeout() {
    let stack = Stack::with(
        |endpoint| endpoint.delay = Duration::from_secs(1000),
        |config| {
            config.upstream.idle_timeout = Duration::from_secs(5);
        },
    )
    .await;
    // A batch without a credential is forwarded, and the endpoint does not answer.
    let reply = stack.client.get(&crate::support::query(&["1"]), &[]).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (504, Some("SIDELINK.1002")));
}

#[tokio::test]
async fn an_unreachable_endpoint_is_a_502_in_the_apis_format() {
    let stack = Stack::start().await;
    stack.origin.stop().await;
    let reply = stack.client.get(ECHO, &[]).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (502, Some("SIDELINK.1001")));
}

#[tokio::test]
async fn the_body_is_forwarded_after_a_100_continue() {
    let stack = Stack::start().await;
    let request = format!(
        "POST {ECHO} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi"
    );
    let answer = raw(stack.client.address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 100 Continue"), "{answer}");
    assert!(answer.contains(r#""body":"hi""#), "{answer}");
}

#[tokio::test]
async fn a_chunked_get_body_is_forwarded() {
    let stack = Stack::start().await;
    let request = format!(
        "GET {ECHO} HTTP/1.1\r\nhost: a\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n"
    );
    let answer = raw(stack.client.address, request.as_bytes()).await;
    assert!(answer.contains(r#""body":"hi""#), "{answer}");
}
