//! `Expect: 100-continue` on other routes (RFC 9110 §10.1.1): the client gets a 100 when the endpoint sends one, or after one
//! second without an answer. A final answer before that reaches the client without an upload.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use http::Method;
use sidelink::app::App;
use sidelink::clock::Clock;
use sidelink::demo::origin::interface as api;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::bad_endpoint::{Before, Sent};
use crate::raw_http2::frames::*;
use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows, pair};
use crate::support::{LOOPBACK, Stack, config, raw};

const TARGET: &str = "/v2/servicerequest/accessorys";
const REFUSAL: &str = "HTTP/1.1 413 Content Too Large\r\ncontent-length: 7\r\n\r\ntoo big";
const CREATED: &str = "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok";

fn head(length: usize) -> String {
    format!("POST {TARGET} HTTP/1.1\r\nhost: a\r\nexpect: 100-Continue\r\ncontent-length: {length}\r\n\r\n")
}

/// Starts sidelink and an endpoint that runs `answer` on each connection after it has read a request's head. The receiver
/// yields the heads.
async fn before<F>(
    answer: impl Fn(Sent<TcpStream>) -> F + Clone + Send + 'static,
) -> (Before, SocketAddr, mpsc::UnboundedReceiver<String>)
where
    F: Future<Output = ()> + Send,
{
    let (heads, told) = mpsc::unbounded_channel();
    let before = Before::start(move |stream, _| {
        let _ = heads.send(stream.head.clone());
        answer(stream)
    })
    .await;
    let address = before.app.addresses()[0];
    (before, address, told)
}

async fn read_body(stream: &mut Sent<TcpStream>, length: usize) -> String {
    let mut body = vec![0; length];
    stream.io.read_exact(&mut body).await.unwrap();
    String::from_utf8(body).unwrap()
}

/// Reads until the text ends with `end`.
async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let byte = timeout(Duration::from_secs(20), stream.read_u8()).await.expect("data within 20 s");
        text.push(byte.unwrap_or_else(|_| panic!("the connection ended after {text:?}")).into());
    }
    text
}

#[tokio::test]
async fn a_client_gets_100_continue_only_after_the_endpoint_sends_it() {
    let may_continue = Arc::new(AtomicBool::new(false));
    let said = Arc::clone(&may_continue);
    let (_before, address, mut heads) = before(move |mut stream| {
        let said = Arc::clone(&said);
        async move {
            // Another interim answer must not start the upload.
            stream.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
            said.store(true, Ordering::SeqCst);
            stream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            assert_eq!(read_body(&mut stream, 3).await, "abc");
            stream.send(CREATED).await;
            assert!(stream.asked().await, "the connection to the endpoint is reused");
            stream.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
            stream.wait().await;
        }
    })
    .await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(head(3).as_bytes()).await.unwrap();
    let told = read_until(&mut client, "\r\n\r\n").await;
    assert_eq!(told, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(may_continue.load(Ordering::SeqCst), "sidelink sent a 100 before the endpoint did");
    let head = heads.recv().await.unwrap().to_ascii_lowercase();
    assert!(head.contains("\r\nexpect: 100-continue\r\n") && head.contains("\r\ncontent-length: 3\r\n"), "{head}");
    client.write_all(b"abc").await.unwrap();
    let answer = read_until(&mut client, "ok").await;
    assert!(answer.starts_with("HTTP/1.1 201 ") && !answer.contains("connection: close"), "{answer}");
    // The client's connection is reused as well.
    client.write_all(b"GET /v2/x HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let answer = read_until(&mut client, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
}

#[tokio::test]
async fn a_refused_upload_is_not_sent_and_its_connection_closes() {
    for closes in [true, false] {
        let (_before, address, mut heads) = before(move |mut stream| async move {
            stream.send(REFUSAL).await;
            if !closes {
                stream.wait().await;
            }
        })
        .await;
        for request in [head(1_000_000), head(3).replace("content-length: 3", "transfer-encoding: chunked")] {
            let answer = raw(address, request.as_bytes()).await;
            assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\r\n\r\ntoo big"), "{answer}");
            assert!(!answer.contains("100 Continue") && answer.contains("connection: close"), "{answer}");
            assert!(heads.recv().await.unwrap().to_ascii_lowercase().contains("expect: 100-continue"));
        }
    }
}

#[tokio::test]
async fn a_long_answer_before_the_upload_arrives_whole() {
    let (before, address, _heads) = before(|mut stream| async move {
        stream.send("HTTP/1.1 413 Content Too Large\r\ncontent-length: 300000\r\n\r\n").await;
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            stream.send("x".repeat(100_000)).await;
        }
        // The body is not sent, and the connection is closed instead of reused.
        let mut rest = Vec::new();
        assert!(
            timeout(Duration::from_secs(10), stream.io.read_to_end(&mut rest)).await.is_ok(),
            "the connection stays open"
        );
        assert!(rest.is_empty(), "{rest:?}");
    })
    .await;
    let answer = raw(address, head(1_000_000).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with(&"x".repeat(1000)), "{:?}", answer.get(..200));
    assert_eq!(answer.split_once("\r\n\r\n").unwrap().1.len(), 300_000);
    assert_eq!(before.client.get("/v2/x", &[]).await.status, 413, "other requests are served");
}

#[tokio::test]
async fn a_client_that_uploads_without_waiting_gets_the_answer() {
    let (_before, address, _heads) = before(|mut stream| async move {
        stream.send(REFUSAL).await;
        stream.wait().await;
    })
    .await;
    let answer = raw(address, format!("{}{}", head(1000), "x".repeat(1000)).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("too big"), "{answer}");
    assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
}

#[tokio::test]
async fn the_body_is_sent_after_a_second_without_a_100() {
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let app = App::start(config(listener.local_addr().unwrap())).await.unwrap();
    let endpoint = tokio::spawn(async move {
        let (mut io, _) = listener.accept().await.unwrap();
        let mut request = Vec::new();
        while !request.ends_with(b"abc") {
            request.push(io.read_u8().await.unwrap());
        }
        io.write_all(CREATED.as_bytes()).await.unwrap();
        io
    });
    let mut client = TcpStream::connect(app.addresses()[0]).await.unwrap();
    client.write_all(head(3).as_bytes()).await.unwrap();
    let began = Instant::now();
    assert_eq!(read_until(&mut client, "\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    assert!(began.elapsed() >= Duration::from_millis(900), "{:?}", began.elapsed());
    client.write_all(b"abc").await.unwrap();
    assert!(read_until(&mut client, "ok").await.starts_with("HTTP/1.1 201 "));
    endpoint.await.unwrap();
}

#[tokio::test]
async fn over_http2_the_body_waits_for_the_endpoint() {
    // The endpoint refuses the upload.
    let (_before, address, _heads) = before(|mut stream| async move {
        stream.send(REFUSAL).await;
        stream.wait().await;
    })
    .await;
    let fields = |length| {
        let mut fields = crate::raw_http2::frames::head("POST", TARGET);
        fields.extend([("expect", "100-continue"), ("content-length", length)]);
        fields
    };
    let mut client = Http2::connect(address).await;
    let stream = client.ask(&fields("1000000"), false).await;
    client.begun(stream).await;
    // h2 resets a stream whose request is not read to its end, with NO_ERROR, once the answer is whole (RFC 9113 §8.1).
    let end = client.end(stream).await;
    assert_eq!(end, End::Answered(413, "too big".to_owned()));
    assert_eq!(client.exchange(&get("/v2/x")).await.status(), 413, "the connection stays open");

    // The endpoint wants the upload: the body, which has arrived meanwhile, is sent after the 100.
    let (_before, address, mut heads) = before(|mut stream| async move {
        let mut early = [0];
        let nothing = timeout(Duration::from_millis(200), stream.io.read_exact(&mut early)).await;
        assert!(nothing.is_err(), "the body was sent before the 100");
        stream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        let body = read_body(&mut stream, 3).await;
        stream.send(format!("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{body}")).await;
        stream.wait().await;
    })
    .await;
    let mut client = Http2::connect(address).await;
    let stream = client.ask(&fields("3"), false).await;
    client.frame(DATA, END_STREAM, stream, b"abc").await;
    assert_eq!(client.end(stream).await, End::Answered(200, "abc".to_owned()));
    assert!(heads.recv().await.unwrap().contains("expect: 100-continue"));
}

#[tokio::test]
async fn a_meaningless_expectation_is_dropped_without_a_wait() {
    let stack = Stack::start().await;
    let echo = "/v2/servicerequest/echo";
    // RFC 9110 §10.1.1: a client must not send it without a body, and a server ignores it from HTTP/1.0.
    for request in [
        format!("GET {echo} HTTP/1.1\r\nhost: a\r\nconnection: close\r\nexpect: 100-continue\r\n\r\n"),
        format!("POST {echo} HTTP/1.0\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"),
    ] {
        let answer = raw(stack.client.address, request.as_bytes()).await;
        assert!(answer.contains(" 200 OK") && !answer.contains("\"expect\""), "{answer}");
        assert!(!answer.contains("100 Continue"), "{answer}");
    }
    // Any other expectation is forwarded.
    let request = head(3).replace("100-Continue", "the-worst").replace(TARGET, echo);
    let answer = raw(stack.client.address, format!("{request}abcGET / HTTP/1.0\r\n\r\n").as_bytes()).await;
    assert!(answer.contains(r#"["expect","the-worst"]"#) && answer.contains(r#""body":"abc""#), "{answer}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_sidelink_refuses_gets_no_100() {
    let stack = Stack::with(
        |_| {},
        |config| {
            knows(config, ACCESS_KEY, SECRET_KEY);
            (config.limits.batch_body, config.limits.signed_body) = (1024, 1024);
        },
    )
    .await;
    let signed = format!("authorization: SDK-HMAC-SHA256 Access={ACCESS_KEY}, SignedHeaders=host, Signature=00\r\n");
    let named = format!("{signed}connection: authorization\r\n");
    let with = |headers: &str, length| head(length).replace("host: a\r\n", &format!("host: a\r\n{headers}"));
    let batch =
        |length| with("x-auth-token: t\r\n", length).replace(&format!("POST {TARGET}"), &format!("GET {}", api::PATH));
    for (status, request) in [
        (400, head(1000).replace("host: a", "host: a b")),
        (413, batch(5000)),
        (413, with(&signed, 5000)),
        (401, with(&named, 1000)),
    ] {
        for _ in 0..50 {
            let answer = raw(stack.client.address, request.as_bytes()).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request:?}: {answer}");
        }
    }
}

/// Sends `request` and reads until the connection closes. Returns the answer and the time this took.
async fn timed(address: SocketAddr, request: &str) -> (String, Duration) {
    let began = Instant::now();
    let answer = raw(address, request.as_bytes()).await;
    (answer, began.elapsed())
}

#[tokio::test]
async fn only_a_forwarded_body_waits_for_the_endpoint() {
    let stack = Stack::with(
        |options| options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)],
        |config| knows(config, ACCESS_KEY, SECRET_KEY),
    )
    .await;
    let address = stack.client.address;
    // A signed body is read before the request is signed again; an unsigned one is streamed.
    for (payload, forwarded) in [(None, false), (Some("UNSIGNED-PAYLOAD"), true)] {
        let mut unsigned = Unsigned::get(address, "/v2/servicerequest/echo", &Clock::system());
        (unsigned.method, unsigned.body) = (Method::POST, b"abc");
        if let Some(payload) = payload {
            unsigned = unsigned.header("x-sdk-content-sha256", payload);
        }
        let headers: String = unsigned.sign().iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!(
            "POST /v2/servicerequest/echo HTTP/1.1\r\n{headers}connection: close\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc"
        );
        let (answer, took) = timed(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 100 ") && answer.contains("HTTP/1.1 200 "), "{answer}");
        assert_eq!(answer.contains(r#"["expect","100-continue"]"#), forwarded, "{answer}");
        assert!(answer.contains(r#""body":"abc""#) && took < Duration::from_millis(900), "{took:?}: {answer}");
    }
    // An unreadable batch is read here; a batch without a credential is forwarded.
    for (token, forwarded) in [("x-auth-token: t\r\n", false), ("", true)] {
        let request = format!(
            "GET {} HTTP/1.1\r\nhost: a\r\n{token}connection: close\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\nabc",
            api::PATH
        );
        let (answer, took) = timed(address, &request).await;
        assert!(answer.starts_with("HTTP/1.1 100 ") && answer.contains("fwd=bypass"), "{answer}");
        assert!(took < Duration::from_millis(900), "{took:?}");
        let call = stack.origin.calls().pop().unwrap();
        assert_eq!((call.headers.contains_key("expect"), &call.body[..]), (forwarded, &b"abc"[..]));
    }
}
