//! An access line is written when its answer has ended, and says what the client was given and who cut the answer short.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use sidelink::demo::origin::Origin;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::process::{Files, Process};
use crate::support::{origin_options, query};

/// More than the buffers of all connections take.
const LARGE: usize = 256 << 20;
/// Bytes that an HTTP/2 client takes before it reads.
const WINDOW: u32 = 64 << 10;
const DELETED: &str = "/v2/servicerequest/accessorys/1";

/// An endpoint that ends its answers as the path says. Every answer but `/large` announces 1000 bytes.
struct Endpoint {
    address: SocketAddr,
    asked: watch::Receiver<usize>,
    go_on: watch::Sender<bool>,
}

impl Endpoint {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counted, asked) = watch::channel(0);
        let (go_on, gate) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counted, gate) = (counted.clone(), gate.clone());
                tokio::spawn(async move { serve(stream, &counted, gate).await });
            }
        });
        Self { address, asked, go_on }
    }

    /// Waits until `count` requests have arrived.
    async fn was_asked(&mut self, count: usize) {
        self.asked.wait_for(|asked| *asked >= count).await.unwrap();
    }

    /// Ends the wait of `/two-halves`.
    fn go_on(&self) {
        self.go_on.send_replace(true);
    }
}

async fn serve(stream: TcpStream, counted: &watch::Sender<usize>, mut gate: watch::Receiver<bool>) {
    let mut stream = BufReader::new(stream);
    let mut path = String::new();
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.unwrap_or(0) == 0 {
            return;
        }
        if path.is_empty() {
            path = line.split(' ').nth(1).unwrap().to_owned();
        }
        if line == "\r\n" {
            break;
        }
    }
    counted.send_modify(|count| *count += 1);
    let length = if path == "/large" { LARGE } else { 1000 };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\r\n");
    let (half, rest) = ([b'x'; 500], [b'x'; 16 << 10]);
    let _ = match path.as_str() {
        "/waits" => stream.read_to_end(&mut Vec::new()).await.map(drop),
        "/whole" | DELETED => stream.write_all(&[head.as_bytes(), &half, &half].concat()).await,
        "/two-halves" => {
            stream.write_all(&[head.as_bytes(), &half].concat()).await.unwrap();
            gate.wait_for(|open| *open).await.unwrap();
            stream.write_all(&half).await
        }
        "/breaks" => stream.write_all(&[head.as_bytes(), &half].concat()).await,
        "/stalls" => {
            stream.write_all(&[head.as_bytes(), &half].concat()).await.unwrap();
            stream.read(&mut [0]).await.map(drop)
        }
        "/large" => {
            let mut written = stream.write_all(head.as_bytes()).await;
            for _ in 0..length / rest.len() {
                if written.is_err() {
                    break;
                }
                written = stream.write_all(&rest).await;
            }
            written
        }
        other => panic!("{other}"),
    };
}

/// A client of one connection.
struct Client {
    sender: Sender,
    connection: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    async fn connect(address: SocketAddr, is_http2: bool) -> Self {
        let stream = TokioIo::new(TcpStream::connect(address).await.unwrap());
        if is_http2 {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            builder.initial_stream_window_size(WINDOW).initial_connection_window_size(WINDOW);
            let (sender, connection) = builder.handshake(stream).await.unwrap();
            return Self { sender: Sender::Http2(sender), connection: tokio::spawn(async { drop(connection.await) }) };
        }
        let (sender, connection) = http1::handshake(stream).await.unwrap();
        Self { sender: Sender::Http1(sender), connection: tokio::spawn(async { drop(connection.await) }) }
    }

    async fn get(&mut self, path: &str) -> hyper::Result<Response<Incoming>> {
        let request = |target: String| {
            let request = Request::get(target).header("host", "endpoint").header("x-auth-token", "t");
            request.body(Empty::new()).unwrap()
        };
        match &mut self.sender {
            Sender::Http1(sender) => sender.send_request(request(path.to_owned())).await,
            Sender::Http2(sender) => sender.send_request(request(format!("http://endpoint{path}"))).await,
        }
    }

    /// Drops the answer, which resets its stream on HTTP/2; on HTTP/1 the connection is closed with bytes unread, which resets it.
    async fn leave(self, answer: Response<Incoming>) -> Option<Self> {
        drop(answer);
        if matches!(self.sender, Sender::Http2(_)) {
            return Some(self);
        }
        self.connection.abort();
        let _ = self.connection.await;
        None
    }
}

async fn frame(answer: &mut Response<Incoming>) -> usize {
    answer.body_mut().frame().await.unwrap().unwrap().into_data().unwrap().len()
}

fn said(line: &Value) -> (&str, u64, &str) {
    let text = |name: &str| line[name].as_str().unwrap_or("");
    (text("level"), line["status"].as_u64().unwrap(), text("aborted"))
}

#[tokio::test]
async fn a_client_that_resets_in_the_middle_of_an_answer_is_in_its_access_line_with_the_bytes_that_it_was_given() {
    let endpoint = Endpoint::start().await;
    for (access, is_http2) in [("all", false), ("all", true), ("errors", false), ("errors", true)] {
        let path = Files::new(endpoint.address);
        let mut process = Process::start(&path.write(&format!("log.access = \"{access}\""))).await;
        let mut client = Client::connect(process.address, is_http2).await;
        let mut answer = client.get("/large").await.unwrap();
        let read = frame(&mut answer).await as u64;
        let _connection = client.leave(answer).await;
        let line = process.says("request").await;
        assert_eq!(said(&line), ("INFO", 200, "client"), "{access} {is_http2} {line}");
        let bytes = line["bytes"].as_u64().unwrap();
        assert!((read..LARGE as u64).contains(&bytes), "{read} {line}");
        assert!(line.get("detail").is_none(), "{line}");
    }
}

#[tokio::test]
async fn an_endpoint_that_breaks_off_is_in_the_access_line_with_what_came_before() {
    let endpoint = Endpoint::start().await;
    for (access, is_http2) in [("all", false), ("all", true), ("errors", false), ("errors", true)] {
        let path = Files::new(endpoint.address);
        let mut process = Process::start(&path.write(&format!("log.access = \"{access}\""))).await;
        let mut client = Client::connect(process.address, is_http2).await;
        let answer = client.get("/breaks").await.unwrap();
        assert!(answer.into_body().collect().await.is_err());
        let line = process.says("request").await;
        assert_eq!((said(&line), line["bytes"].as_u64()), (("WARN", 200, "endpoint"), Some(500)), "{access} {line}");
    }
}

#[tokio::test]
async fn a_whole_answer_has_all_its_bytes_and_its_time_to_the_end() {
    let mut asked = 0;
    let mut endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process = Process::start(&files.write("")).await;
    for is_http2 in [false, true] {
        let mut client = Client::connect(process.address, is_http2).await;
        endpoint.go_on.send_replace(false);
        let mut answer = client.get("/two-halves").await.unwrap();
        assert_eq!(frame(&mut answer).await, 500);
        asked += 1;
        endpoint.was_asked(asked).await;
        let began = std::time::Instant::now();
        // A span to be measured.
        tokio::time::sleep(std::time::Duration::from_millis(60)).await;
        endpoint.go_on();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 500);
        let waited = began.elapsed().as_millis() as f64;
        let line = process.says("request").await;
        assert_eq!((said(&line), line["bytes"].as_u64()), (("INFO", 200, ""), Some(1000)), "{line}");
        let [total, head] = ["milliseconds", "waited_milliseconds"].map(|name| line[name].as_f64().unwrap());
        assert!(total >= head + 60.0 && waited >= 60.0, "{line}");
        // One that comes at once.
        let answer = client.get("/whole").await.unwrap();
        assert_eq!(answer.into_body().collect().await.unwrap().to_bytes().len(), 1000);
        asked += 1;
        let line = process.says("request").await;
        assert_eq!((said(&line), line["bytes"].as_u64()), (("INFO", 200, ""), Some(1000)), "{line}");
    }
}

/// hyper asks some bodies for no frame, and some for none after their last byte.
#[tokio::test]
async fn answers_without_a_body_and_those_that_are_not_polled_to_their_end_are_whole() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut process = Process::start(&files.write("")).await;
    for (method, target) in [("HEAD", DELETED), ("DELETE", DELETED), ("HEAD", "/nowhere")] {
        let sent = process.client.send(method.parse().unwrap(), target, &[], "").await;
        let line = process.says("request").await;
        assert!(line.get("aborted").is_none() && line["bytes"] == 0, "{method} {} {line}", sent.status);
    }
    // An error of sidelink's own has a body, which HEAD does not get.
    origin.stop().await;
    assert_eq!(process.client.send(Method::HEAD, "/", &[], "").await.status, 502);
    let line = process.says("request").await;
    assert_eq!((line.get("aborted"), &line["bytes"]), (None, &0.into()), "{line}");
    // sidelink has read the answer to a deletion, and its length stands in the head alone.
    let endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process = Process::start(&files.write("")).await;
    let reply = process.client.send(Method::DELETE, DELETED, &[], "").await;
    let line = process.says("request").await;
    assert_eq!((reply.body.len(), line.get("aborted")), (1000, None), "{line}");
}

#[tokio::test]
async fn errors_alone_leave_out_whole_answers_and_have_those_that_were_cut_short() {
    let endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process = Process::start(&files.write("log.access = \"errors\"")).await;
    for is_http2 in [false, true] {
        let mut client = Client::connect(process.address, is_http2).await;
        client.get("/whole").await.unwrap().into_body().collect().await.unwrap();
        assert!(client.get("/breaks").await.unwrap().into_body().collect().await.is_err());
        assert_eq!(process.says("request").await["path"], "/breaks");
    }
}

#[tokio::test]
async fn a_large_batch_from_memory_that_is_cut_short_is_among_the_errors() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let files = Files::new(origin.address());
    let mut process = Process::start(&files.write("log.access = \"errors\"")).await;
    let ids: Vec<String> = (0..1000).map(|id| format!("{id:0>30}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let whole = process.client.batch("t", &ids).await.body.len() as u64;
    assert!(whole > 4 * u64::from(WINDOW), "{whole}");
    let mut client = Client::connect(process.address, true).await;
    let answer = client.get(&query(&ids)).await.unwrap();
    let _connection = client.leave(answer).await;
    let line = process.says("request").await;
    assert_eq!((said(&line), &line["hit"]), (("INFO", 200, "client"), &1000.into()), "{line}");
    assert!(line["bytes"].as_u64().unwrap() < whole, "{line}");
}

#[tokio::test]
async fn an_endpoint_that_falls_silent_is_told_from_one_that_breaks_off() {
    let endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process = Process::start(&files.write("upstream.idle_timeout = \"500ms\"")).await;
    for is_http2 in [false, true] {
        let mut client = Client::connect(process.address, is_http2).await;
        assert!(client.get("/stalls").await.unwrap().into_body().collect().await.is_err());
        let line = process.says("request").await;
        let expected = (("WARN", 200, "endpoint-timeout"), Some(500));
        assert_eq!((said(&line), line["bytes"].as_u64()), expected, "{line}");
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_is_told_from_one_that_has_left() {
    let endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process = Process::start(&files.write("limits.idle_timeout = \"1s\"")).await;
    for is_http2 in [false, true] {
        let mut client = Client::connect(process.address, is_http2).await;
        let answer = client.get("/large").await.unwrap();
        let line = process.says("request").await;
        assert_eq!(said(&line), ("WARN", 200, "client-timeout"), "{line}");
        drop(answer);
    }
}

/// Regression: a request whose body stopped, and which sidelink cut off, was logged as a client that has left.
#[tokio::test]
async fn a_client_that_stops_in_the_middle_of_its_request_is_not_called_one_that_has_left() {
    let endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process =
        Process::start(&files.write("limits.idle_timeout = \"500ms\"\nupstream.idle_timeout = \"1m\"")).await;
    let mut stream = TcpStream::connect(process.address).await.unwrap();
    stream.write_all(b"POST /waits HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhello").await.unwrap();
    let line = process.says("request").await;
    assert_eq!((said(&line), &line["detail"]), (("WARN", 408, "client-timeout"), &"client-timeout".into()), "{line}");
    assert!(line.get("bytes").is_none(), "{line}");
}

/// Regression: what sidelink cut off at the end of a drain was logged as clients that have left.
#[tokio::test]
async fn what_a_drain_cuts_off_is_not_called_a_client_that_has_left() {
    for is_http2 in [false, true] {
        let mut endpoint = Endpoint::start().await;
        let files = Files::new(endpoint.address);
        let mut process = Process::start(&files.write("limits.drain = \"200ms\"")).await;
        let mut begun = Client::connect(process.address, is_http2).await;
        let _answer = begun.get("/stalls").await.unwrap();
        let mut waiting = Client::connect(process.address, is_http2).await;
        let waiting = tokio::spawn(async move { waiting.get("/waits").await.map(drop) });
        endpoint.was_asked(2).await;
        process.signal("TERM");
        assert_eq!(process.exit().await, Some(0));
        assert!(waiting.await.unwrap().is_err());
        let mut lines: Vec<&Value> = process.log.iter().filter(|line| line["target"] == "access").collect();
        lines.sort_by_key(|line| line["status"].as_u64());
        let told: Vec<_> = lines.iter().map(|line| (said(line), line["detail"].as_str())).collect();
        assert_eq!(told, [(("WARN", 200, "drain"), None), (("WARN", 503, "drain"), Some("drain"))], "{is_http2}");
    }
}

/// Over HTTP/1, a disconnect looks like the end of the request.
#[tokio::test]
async fn a_client_that_resets_before_its_answer_is_a_499_and_no_warning() {
    let mut endpoint = Endpoint::start().await;
    let files = Files::new(endpoint.address);
    let mut process = Process::start(&files.write("log.access = \"errors\"")).await;
    let mut client = Client::connect(process.address, true).await;
    let asked = tokio::spawn(async move { client.get("/waits").await.map(drop) });
    endpoint.was_asked(1).await;
    asked.abort();
    let line = process.says("request").await;
    assert_eq!((said(&line), &line["detail"]), (("INFO", 499, "client"), &"client-left".into()), "{line}");
}
