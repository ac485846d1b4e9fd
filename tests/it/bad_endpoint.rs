//! A broken or hostile endpoint fails the one call that it answers: no answer is taken for another call's, none costs more memory or
//! time than its limit, and none is waited for beyond a batch's deadline. Over HTTP/1.1 and HTTP/2.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use sidelink::app::App;
use sidelink::config::{Config, Endpoint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;

use crate::raw_http2::frames::*;
use crate::support::{LOOPBACK, Reply, TestClient, config, raw};
use crate::tls::{Authority, acceptor, write};

/// Where an answer is over at its deadline.
const DEADLINE: Duration = Duration::from_secs(1);
/// Where an answer is over before: long beside what a loaded machine takes.
const NO_DEADLINE: Duration = Duration::from_secs(20);

const ECHO: &str = "/v2/servicerequest/echo";

/// The beginning of a valid answer to a batch.
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";

/// A sidelink in front of an endpoint whose bytes each test writes.
pub struct Before {
    pub app: App,
    pub client: TestClient,
    /// Bytes that the endpoint has sent.
    sent: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
}

impl Before {
    /// `answer` gets each connection after a request's head, and how many connections there were before.
    pub async fn start<F>(answer: impl Fn(Sent<TcpStream>, usize) -> F + Clone + Send + 'static) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        Self::within(DEADLINE, answer).await
    }

    /// As [`Before::start`], with this deadline.
    async fn within<F>(
        deadline: Duration,
        answer: impl Fn(Sent<TcpStream>, usize) -> F + Clone + Send + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send,
    {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let (sent, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (config, counter, count) =
            (config(listener.local_addr().unwrap()), Arc::clone(&connections), Arc::clone(&sent));
        tokio::spawn(async move {
            while let Ok((io, _)) = listener.accept().await {
                let (answer, number) = (answer.clone(), counter.fetch_add(1, Ordering::SeqCst));
                let mut stream = Sent { io, bytes: Arc::clone(&count), head: String::new() };
                tokio::spawn(async move {
                    if stream.asked().await {
                        answer(stream, number).await;
                    }
                });
            }
        });
        Self::with(config, deadline, sent, connections).await
    }

    async fn with(
        mut config: Config,
        deadline: Duration,
        sent: Arc<AtomicUsize>,
        connections: Arc<AtomicUsize>,
    ) -> Self {
        config.upstream.retry.attempts = 0;
        config.upstream.answer_bytes = 64 << 10;
        config.upstream.deadline = deadline;
        config.upstream.idle_timeout = Duration::from_secs(1);
        config.upstream.breaker.consecutive = 1000;
        config.upstream.breaker.ratio = 1.0;
        let app = App::start(config).await.unwrap();
        let client = TestClient::new(app.addresses()[0]);
        Self { app, client, sent, connections }
    }

    async fn is_no_answer(&self, what: &str, status: u16) {
        let batch = self.client.batch("t", &["1"]).await;
        is_error(&batch, status, what);
        // An answer that ends before its deadline was read within its limits, socket buffers included.
        let sent = self.sent.load(Ordering::SeqCst);
        assert!(status == 504 || sent < 32 << 20, "{what}: {sent} bytes were taken");
    }
}

fn is_error(reply: &Reply, status: u16, what: &str) {
    let code = if status == 504 { "SIDELINK.1002" } else { "SIDELINK.1001" };
    assert_eq!(reply.status.as_u16(), status, "{what}: {:?}", reply.body);
    assert_eq!(reply.json()["error_code"], code, "{what}");
}

/// The endpoint's side of a connection.
pub struct Sent<IO> {
    pub io: IO,
    bytes: Arc<AtomicUsize>,
    /// The head of the last request.
    pub head: String,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Sent<IO> {
    /// Reads a request's head; whether there was one.
    pub async fn asked(&mut self) -> bool {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = self.io.read_u8().await else { return false };
            head.push(byte);
        }
        self.head = String::from_utf8(head).unwrap();
        true
    }

    /// Whether it could be sent.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> bool {
        let sent = self.io.write_all(bytes.as_ref()).await.is_ok();
        self.bytes.fetch_add(bytes.as_ref().len(), Ordering::SeqCst);
        sent
    }

    async fn send_for_ever(&mut self, bytes: impl AsRef<[u8]>) {
        let bytes = bytes.as_ref().repeat(1 + (4 << 10) / bytes.as_ref().len());
        while self.send(&bytes).await {}
    }

    /// Until the other side closes.
    pub async fn wait(&mut self) {
        let _ = self.io.read_to_end(&mut Vec::new()).await;
    }
}

fn links(id: &str, url: &str) -> String {
    format!(r#"{{"accessory_urls":[{{"accessory_id":"{id}","accessory_url":"{url}"}}]}}"#)
}

fn whole(body: &str) -> String {
    format!("{OK}content-length: {}\r\n\r\n{body}", body.len())
}

#[tokio::test]
async fn endless_heads_are_a_502() {
    for (what, chunk) in
        [("headers", "x: y\r\n".to_owned()), ("one header", "x".repeat(999)), ("empty names", ": x\r\n".to_owned())]
    {
        let before = Before::within(NO_DEADLINE, move |mut stream, _| {
            let chunk = chunk.clone();
            async move {
                stream.send(OK).await;
                stream.send_for_ever(chunk).await;
            }
        })
        .await;
        before.is_no_answer(what, 502).await;
        is_error(&before.client.get(ECHO, &[]).await, 502, what);
    }
}

#[tokio::test]
async fn endless_interim_answers_are_waited_for_no_longer_than_the_deadline() {
    for interim in ["HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n"] {
        let before = Before::start(move |mut stream, _| async move {
            while stream.send(interim).await {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
        before.is_no_answer(interim, 504).await;
        is_error(&before.client.get(ECHO, &[]).await, 504, interim);
    }
}

#[tokio::test]
async fn an_interim_answer_is_skipped_and_the_next_counts() {
    let before = Before::start(|mut stream, _| async move {
        stream.send(format!("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n{}", whole(&links("1", "u")))).await;
        stream.wait().await;
    })
    .await;
    let reply = before.client.batch("t", &["1"]).await;
    assert_eq!((reply.ids(), reply.headers.contains_key("link")), (vec!["1".to_owned()], false));
}

#[tokio::test]
async fn endless_answers_stop_at_their_limit_with_any_framing() {
    let chunk = format!("1000\r\n{}\r\n", " ".repeat(0x1000));
    for (what, head, chunk) in [
        ("to the end of the connection", "connection: close\r\n\r\n".to_owned(), " ".repeat(4 << 10)),
        ("in chunks", "transfer-encoding: chunked\r\n\r\n".to_owned(), chunk),
        ("by a length beyond all bounds", format!("content-length: {}\r\n\r\n", u64::MAX / 2), " ".repeat(4 << 10)),
        ("extensions", "transfer-encoding: chunked\r\n\r\n1;".to_owned(), "x".repeat(99)),
        ("trailers", "transfer-encoding: chunked\r\n\r\n0\r\n".to_owned(), "x: y\r\n".to_owned()),
    ] {
        let before = Before::within(NO_DEADLINE, move |mut stream, _| {
            let (head, chunk) = (head.clone(), chunk.clone());
            async move {
                stream.send(format!("{OK}{head}")).await;
                stream.send_for_ever(chunk).await;
            }
        })
        .await;
        before.is_no_answer(what, 502).await;
    }
}

#[tokio::test]
async fn an_answer_that_trickles_ends_at_the_deadline_and_delays_no_other() {
    for head in ["", "HTTP/1.1 200 OK\r\nx: ", "HTTP/1.1 200 OK\r\ncontent-length: 60000\r\n\r\n"] {
        let before = Before::start(move |mut stream, number| async move {
            if number > 0 {
                stream.send(whole(&links("2", "u"))).await;
                return stream.wait().await;
            }
            stream.send(head).await;
            while stream.send(" ").await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        let client = before.client.clone();
        let slow = tokio::spawn(async move { client.batch("slow", &["1"]).await });
        while before.connections.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(before.client.batch("t", &["2"]).await.ids(), ["2"], "{head:?}");
        let slow = slow.await.unwrap();
        // Spaces before a status line are none.
        is_error(&slow, if head.is_empty() { 502 } else { 504 }, head);
    }
}

#[tokio::test]
async fn a_truncated_answer_is_a_502_or_passed_on_as_truncated() {
    let body = links("1", "u");
    for rest in [
        format!("content-length: {}\r\n\r\n{body}", body.len() + 1),
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n", body.len()),
        format!("transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n", body.len()),
        "x: y\r\n".to_owned(),
        String::new(),
    ] {
        let answer = format!("{OK}{rest}");
        let before = Before::within(NO_DEADLINE, move |mut stream, _| {
            let answer = answer.clone();
            async move {
                stream.send(answer).await;
            }
        })
        .await;
        before.is_no_answer(&rest, 502).await;
        let download = format!("GET {ECHO} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let passed_on = raw(before.app.addresses()[0], download.as_bytes()).await;
        let is_502 = passed_on.starts_with("HTTP/1.1 502 ");
        let is_cut = passed_on.starts_with("HTTP/1.1 200 ")
            && (passed_on.contains(&format!("content-length: {}", body.len() + 1))
                || !passed_on.ends_with("0\r\n\r\n"));
        assert!(is_502 || is_cut, "{rest:?}: {passed_on}");
    }
}

/// Without a length, only JSON shows whether it is complete.
#[tokio::test]
async fn an_answer_that_ends_with_its_connection_is_passed_on_unless_it_may_be_cut_off() {
    let cut_off = &links("1", "u")[..20];
    for (head, body, status) in [
        ("content-type: application/json; charset=utf-8\r\n", cut_off, 502),
        ("content-type: application/x+JSON\r\n", cut_off, 502),
        ("", cut_off, 502),
        ("content-type: application/json\r\ntransfer-encoding: identity\r\n", cut_off, 502),
        ("content-type: text/html\r\n", "<html>", 200),
        ("content-type: application/json\r\n", &links("1", "u"), 200),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\nconnection: close\r\n{head}\r\n{body}");
        let before = Before::within(NO_DEADLINE, move |mut stream, _| {
            let answer = answer.clone();
            async move {
                stream.send(answer).await;
            }
        })
        .await;
        if status == 502 {
            before.is_no_answer(head, 502).await;
            continue;
        }
        let reply = before.client.batch("t", &["1"]).await;
        assert_eq!((reply.status.as_u16(), &*reply.body), (200, body.as_bytes()), "{head}");
    }
}

#[tokio::test]
async fn a_redirect_is_passed_on_and_not_followed() {
    let elsewhere = TcpListener::bind(LOOPBACK).await.unwrap();
    let location = elsewhere.local_addr().unwrap();
    for status in [301, 302, 307, 308] {
        let before = Before::start(move |mut stream, _| async move {
            let head = format!("HTTP/1.1 {status} Moved\r\nlocation: http://{location}/\r\ncontent-length: 0\r\n\r\n");
            stream.send(head).await;
            stream.wait().await;
        })
        .await;
        for reply in [before.client.batch("t", &["1"]).await, before.client.get(ECHO, &[]).await] {
            assert_eq!(
                (reply.status.as_u16(), reply.header("location")),
                (status, format!("http://{location}/").as_str())
            );
        }
    }
    assert!(tokio::time::timeout(Duration::from_millis(50), elsewhere.accept()).await.is_err(), "somebody came");
}

#[tokio::test]
async fn ambiguous_framings_are_a_502() {
    let body = links("1", "u");
    let length = body.len();
    for (what, framing) in [
        ("two lengths", format!("content-length: {length}\r\ncontent-length: 3\r\n\r\n{body}")),
        ("a length below 0", format!("content-length: -1\r\n\r\n{body}")),
        ("a length that is none", format!("content-length: x\r\n\r\n{body}")),
        ("a length beyond all numbers", format!("content-length: 99999999999999999999\r\n\r\n{body}")),
        ("a chunk that is none", "transfer-encoding: chunked\r\n\r\nx\r\n".to_owned()),
        ("a chunk beyond all numbers", "transfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n".to_owned()),
        ("a folded header", format!("x: a\r\n b\r\ncontent-length: {length}\r\n\r\n{body}")),
        ("a NUL", format!("x: a\0\r\ncontent-length: {length}\r\n\r\n{body}")),
        ("a space before a colon", format!("x : a\r\ncontent-length: {length}\r\n\r\n{body}")),
    ] {
        let answer = format!("{OK}{framing}");
        let before = Before::within(NO_DEADLINE, move |mut stream, _| {
            let answer = answer.clone();
            async move {
                stream.send(answer).await;
            }
        })
        .await;
        before.is_no_answer(what, 502).await;
    }
    for nonsense in
        ["nonsense\r\n\r\n", "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 20 OK\r\n\r\n", "\0\0\0\0", "SSH-2.0-x\r\n"]
    {
        let before = Before::within(NO_DEADLINE, move |mut stream, _| async move {
            stream.send(nonsense).await;
        })
        .await;
        before.is_no_answer(nonsense, 502).await;
    }
}

#[tokio::test]
async fn bytes_after_an_answer_answer_no_request() {
    let before = Before::start(|mut stream, number| async move {
        if number == 0 {
            // Behind the first answer, one to a question that nobody has asked.
            stream.send(format!("{}{}", whole(&links("1", "good")), whole(&links("2", "planted")))).await;
        } else {
            stream.send(whole(&links("2", "good"))).await;
        }
        if stream.asked().await {
            stream.send(whole(&links("2", "good"))).await;
        }
        stream.wait().await;
    })
    .await;
    assert_eq!(before.client.batch("t", &["1"]).await.ids(), ["1"]);
    let second = before.client.batch("t", &["2"]).await;
    assert!(second.status != 200 || second.links() == [("2".to_owned(), "good".to_owned())], "{second:?}");
}

#[tokio::test]
async fn an_upgrade_that_was_not_requested_is_a_502() {
    let before = Before::within(NO_DEADLINE, |mut stream, _| async move {
        stream.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
        stream.wait().await;
    })
    .await;
    before.is_no_answer("an upgrade", 502).await;
    is_error(&before.client.get(ECHO, &[]).await, 502, "an upgrade");
}

/// As [`Before::start`], over TLS and HTTP/2: `answer` gets the connection after the first request's head, on stream 1.
async fn over_http2<F>(
    deadline: Duration,
    answer: impl Fn(Sent<TlsStream<TcpStream>>) -> F + Clone + Send + 'static,
) -> Before
where
    F: Future<Output = ()> + Send,
{
    let authority = Authority::new();
    let acceptor = acceptor(None, &authority.issue("localhost"), &[b"h2"]);
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let files = tempfile::tempdir().unwrap();
    let mut config = config(SocketAddr::from(([127, 0, 0, 1], 9)));
    let port = listener.local_addr().unwrap().port();
    config.upstream.endpoint = Endpoint::parse(&format!("https://localhost:{port}")).unwrap();
    config.upstream.ca_file = Some(write(&files, "ca.pem", &authority.pem()));
    let (sent, connections) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (bytes, counter) = (Arc::clone(&sent), Arc::clone(&connections));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, answer, bytes) = (acceptor.clone(), answer.clone(), Arc::clone(&bytes));
            counter.fetch_add(1, Ordering::SeqCst);
            tokio::spawn(async move {
                let Ok(io) = acceptor.accept(stream).await else { return };
                let mut stream = Sent { io, bytes, head: String::new() };
                stream.send(frame(SETTINGS, 0, 0, &[])).await;
                let mut preface = [0; PREFACE.len()];
                if stream.io.read_exact(&mut preface).await.is_err() {
                    return;
                }
                loop {
                    let mut head = [0; 9];
                    if stream.io.read_exact(&mut head).await.is_err() {
                        return;
                    }
                    let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
                    stream.io.read_exact(&mut vec![0; length]).await.unwrap();
                    match head[3] {
                        SETTINGS if head[4] & ACK == 0 => {
                            stream.send(frame(SETTINGS, ACK, 0, &[])).await;
                        }
                        HEADERS => return answer(stream).await,
                        _ => {}
                    }
                }
            });
        }
    });
    Before::with(config, deadline, sent, connections).await
}

/// The head of a good answer (RFC 7541, Appendix A: 8 is `:status: 200`).
fn ok() -> Vec<u8> {
    [&[0x88], &block(&[("content-type", "application/json")])[..]].concat()
}

#[tokio::test]
async fn over_http2_a_valid_answer_is_served() {
    let before = over_http2(DEADLINE, |mut stream| async move {
        stream.send(frame(HEADERS, END_HEADERS, 1, &ok())).await;
        stream.send(frame(DATA, END_STREAM, 1, links("1", "u").as_bytes())).await;
        stream.wait().await;
    })
    .await;
    assert_eq!(before.client.batch("t", &["1"]).await.ids(), ["1"]);
}

#[tokio::test]
async fn over_http2_invalid_answers_are_a_502_or_end_at_the_deadline() {
    let head = |more: &[(&str, &str)]| frame(HEADERS, END_HEADERS, 1, &[ok(), block(more)].concat());
    let long = "x".repeat(10_000);
    for (what, first, flood, status) in [
        ("continuations", frame(HEADERS, 0, 1, &ok()), frame(CONTINUATION, 0, 1, &block(&[("x", "y")])), 502),
        (
            "a head that is too long",
            [frame(HEADERS, 0, 1, &ok()), frame(CONTINUATION, 0, 1, &block(&[("x", &long)])).repeat(8)].concat(),
            frame(CONTINUATION, END_HEADERS, 1, &[]),
            502,
        ),
        ("data without end", head(&[]), frame(DATA, 0, 1, &[b' '; 1000]), 502),
        ("data without data", head(&[]), frame(DATA, 0, 1, &[]), 502),
        ("interim answers", Vec::new(), frame(HEADERS, END_HEADERS, 1, &block(&[(":status", "103")])), 504),
        ("pings", Vec::new(), frame(PING, 0, 0, &[0; 8]), 504),
        ("settings", Vec::new(), frame(SETTINGS, 0, 0, &[]), 504),
        ("promises", Vec::new(), frame(PUSH_PROMISE, END_HEADERS, 1, &[&[0, 0, 0, 2], &ok()[..]].concat()), 502),
        ("capitals", Vec::new(), frame(HEADERS, END_HEADERS, 1, &[ok(), block(&[("X", "y")])].concat()), 502),
        ("another length", head(&[("content-length", "3")]), frame(DATA, 0, 1, b"{}{}"), 502),
        ("a reset", Vec::new(), frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]), 502),
        ("a reset within", head(&[]), frame(RST_STREAM, 0, 1, &[0, 0, 0, 2]), 502),
        ("a farewell", Vec::new(), frame(GOAWAY, 0, 0, &[0; 8]), 502),
        ("nonsense", Vec::new(), b"HTTP/1.1 200 OK\r\n\r\n".to_vec(), 502),
    ] {
        let before = over_http2(if status == 504 { DEADLINE } else { NO_DEADLINE }, move |mut stream| {
            let (first, flood) = (first.clone(), flood.clone());
            async move {
                stream.send(first).await;
                stream.send_for_ever(flood).await;
            }
        })
        .await;
        before.is_no_answer(what, status).await;
    }
}

#[tokio::test]
async fn over_http2_silence_ends_at_the_deadline() {
    let before = over_http2(DEADLINE, |mut stream| async move { stream.wait().await }).await;
    before.is_no_answer("silence", 504).await;
    // The connection is there still, and as silent.
    before.is_no_answer("silence", 504).await;
}
