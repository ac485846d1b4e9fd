//! A client connection in memory, on a paused clock: how long it lives, and which requests it serves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use sidelink::config;
use sidelink::message::body::{Body, whole};
use sidelink::server::{ConnLimits, Protocol, RequestBody, serve_connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

const AGE: Duration = Duration::from_secs(3600);

/// The client's end.
fn connect<F>(answer: impl Fn(Request<RequestBody>) -> F + Clone + Send + 'static) -> DuplexStream
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (client, server) = duplex(64 << 10);
    let limits = ConnLimits { max_connection_age: AGE, ..ConnLimits::from(&config::Limits::default()) };
    tokio::spawn(serve_connection(Protocol::Any, server, limits, Default::default(), answer));
    client
}

#[tokio::test(start_paused = true)]
async fn at_its_maximum_age_an_http1_connection_ends_with_its_next_answer() {
    let mut client = connect(async |_| Response::new(whole(Bytes::from_static(b"answer"))));
    let began = Instant::now();
    loop {
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        while !answer.ends_with("answer") {
            answer.push(client.read_u8().await.unwrap().into());
        }
        if answer.contains("connection: close") {
            break;
        }
        sleep(Duration::from_secs(50)).await;
    }
    let age = began.elapsed();
    assert!(AGE.mul_f64(0.9) <= age && age <= AGE + Duration::from_secs(50), "{age:?}");
    assert_eq!(client.read(&mut [0]).await.unwrap(), 0);
}

/// A request that hyper reads to another end than a proxy in front of it may.
#[tokio::test(start_paused = true)]
async fn no_request_is_served_behind_trailers_or_an_unread_chunked_body() {
    let chunked = "POST /first HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    for (target, end) in [("/read", "x: y\r\n\r\n"), ("/late", "x: y\r\n\r\n"), ("/unread", "\r\n")] {
        let served = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&served);
        let mut client = connect(move |request: Request<RequestBody>| {
            counter.fetch_add(1, Ordering::SeqCst);
            async {
                match request.uri().path() {
                    "/read" => drop(request.into_body().collect().await.unwrap()),
                    "/late" => drop(tokio::spawn(request.into_body().collect())),
                    _ => {}
                }
                Response::new(whole(Bytes::from_static(b"answer")))
            }
        });
        let requests =
            [&chunked.replace("/first", target), "0\r\n", end, "GET /next HTTP/1.1\r\nhost: x\r\n\r\n"].concat();
        client.write_all(requests.as_bytes()).await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert_eq!(served.load(Ordering::SeqCst), 1, "{target}: {answers}");
    }
}
