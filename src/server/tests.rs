//! Connections in memory, on a paused clock.

mod listener;

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::task::JoinHandle;

use super::*;
use crate::message::body::{DRAIN_BYTES, DRAIN_TIME, stream, whole};

const LIMITS: ConnLimits = ConnLimits {
    header_bytes: 8 << 10,
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(60),
    max_connection_age: Duration::from_secs(3600),
    drain: Duration::from_secs(30),
    linger: Duration::from_secs(1),
};
const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";

async fn path(request: Request<RequestBody>) -> Response<Body> {
    Response::new(whole(Bytes::from(request.uri().path().to_owned())))
}

/// A connection that is served in memory: the client's end, with room for `buffer` bytes each way, and its task.
fn serve<F>(
    buffer: usize,
    answer: impl Fn(Request<RequestBody>) -> F + Clone + Send + 'static,
) -> (DuplexStream, JoinHandle<Result<(), BoxError>>)
where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let (client, server) = duplex(buffer);
    let served = serve_connection(Protocol::Any, server, LIMITS, ConnStop::default(), answer);
    (client, tokio::spawn(served))
}

/// One whose answers are the paths.
fn connect() -> DuplexStream {
    serve(64 << 10, path).0
}

async fn read_until(io: &mut (impl AsyncReadExt + Unpin), end: &str) -> String {
    let mut text = String::new();
    while !text.ends_with(end) {
        let mut byte = [0];
        assert_eq!(io.read(&mut byte).await.unwrap(), 1, "closed after {text:?}");
        text.push(byte[0] as char);
    }
    text
}

/// When the connection was closed, counted from now.
async fn closed_after(io: &mut (impl AsyncReadExt + Unpin)) -> Duration {
    let began = Instant::now();
    let mut rest = Vec::new();
    let _ = io.read_to_end(&mut rest).await;
    began.elapsed()
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_cut_off_after_its_time() {
    let mut client = connect();
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "/a").await;
    sleep(Duration::from_secs(30)).await;
    let began = Instant::now();
    let (mut read, mut write) = tokio::io::split(client);
    let trickle = tokio::spawn(async move {
        for byte in GET {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            sleep(Duration::from_secs(3)).await;
        }
    });
    closed_after(&mut read).await;
    assert_eq!(began.elapsed().as_secs(), 10);
    trickle.abort();
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_stays_for_the_idle_time_and_no_longer() {
    let mut client = connect();
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        read_until(&mut client, "/a").await;
        sleep(Duration::from_secs(59)).await;
    }
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "/a").await;
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_closed_after_the_idle_time_and_a_part_of_a_head_after_the_header_timeout() {
    for (begin, seconds) in [(&b""[..], 60), (b"G", 10), (b"PRI * HTTP/2.0\r\n\r\n", 10)] {
        let mut client = connect();
        client.write_all(begin).await.unwrap();
        assert_eq!(closed_after(&mut client).await.as_secs(), seconds, "{begin:?}");
    }
}

/// Regression: the rest of a body that came while its answer was stuck passed for a head, and the connection's idle time began
/// too late.
#[tokio::test(start_paused = true)]
async fn a_connection_whose_answer_was_stuck_when_its_body_ended_is_idle_afterwards() {
    let (mut client, _) = serve(64 << 10, async |request: Request<RequestBody>| {
        tokio::spawn(request.into_body().collect());
        Response::new(whole(Bytes::from(vec![b'x'; 1 << 20])))
    });
    client.write_all(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    client.write_all(b"hello").await.unwrap();
    sleep(Duration::from_secs(1)).await;
    read_until(&mut client, "\r\n\r\n").await;
    client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

/// Regression: the rest of the body had the header timeout.
#[tokio::test(start_paused = true)]
async fn a_body_that_outlasts_its_answer_has_no_header_timeout() {
    let (mut client, _) = serve(64 << 10, async |request: Request<RequestBody>| {
        tokio::spawn(request.into_body().collect());
        Response::new(whole(Bytes::from_static(b"early")))
    });
    client.write_all(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").await.unwrap();
    read_until(&mut client, "early").await;
    for byte in b"helloyou!!" {
        sleep(Duration::from_secs(5)).await;
        client.write_all(&[*byte]).await.unwrap();
    }
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "early").await;
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

/// Regression: hyper still reads after a body that its handler drops, which passed for a body that stalls.
#[tokio::test(start_paused = true)]
async fn an_answer_to_a_body_that_is_not_read_may_take_its_time() {
    let slowly = async |_: Request<RequestBody>| {
        let chunks = futures_util::stream::unfold(0, |count| async move {
            sleep(Duration::from_secs(20)).await;
            (count < 6).then(|| (Ok::<_, hyper::Error>(http_body::Frame::data(Bytes::from_static(b"late"))), count + 1))
        });
        Response::new(stream(http_body_util::StreamBody::new(chunks)))
    };
    for framing in ["content-length: 1000", "transfer-encoding: chunked"] {
        let (mut client, _) = serve(64 << 10, slowly);
        let request = format!("POST /a HTTP/1.1\r\nhost: x\r\n{framing}\r\n\r\n");
        client.write_all(request.as_bytes()).await.unwrap();
        let answer = read_until(&mut client, "0\r\n\r\n").await;
        assert_eq!(answer.matches("late").count(), 6, "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_not_cut_off_and_its_connection_stays() {
    let (mut client, _) = serve(1024, |request| async {
        sleep(Duration::from_secs(500)).await;
        path(request).await
    });
    for _ in 0..2 {
        client.write_all(GET).await.unwrap();
        read_until(&mut client, "/a").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let (mut client, served) = serve(1024, |_| async { Response::new(whole(Bytes::from(vec![b'x'; 1 << 20]))) });
    client.write_all(GET).await.unwrap();
    let began = Instant::now();
    assert!(served.await.unwrap().is_err());
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_slowly_but_steadily_is_not_cut_off() {
    let (mut client, _) = serve(1024, |_| async { Response::new(whole(Bytes::from(vec![b'x'; 64 << 10]))) });
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    let mut body = vec![0; 64 << 10];
    // Every piece is in time, all of them together are not.
    for piece in body.chunks_mut(1 << 10) {
        sleep(Duration::from_secs(50)).await;
        client.read_exact(piece).await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_may_trickle_in_but_not_stall() {
    let (mut client, _) = serve(64 << 10, async |request: Request<RequestBody>| {
        let status = if request.into_body().collect().await.is_ok() { 200 } else { 400 };
        Response::builder().status(status).body(whole(Bytes::new())).unwrap()
    });
    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n").await.unwrap();
    for _ in 0..4 {
        sleep(Duration::from_secs(50)).await;
        client.write_all(b"x").await.unwrap();
    }
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));

    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nx").await.unwrap();
    assert_eq!(closed_after(&mut client).await.as_secs(), 61, "a second later than a handler's own limit");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_its_handler_reads_late_has_the_whole_idle_time() {
    let (mut client, _) = serve(64 << 10, |request: Request<RequestBody>| async {
        sleep(Duration::from_secs(500)).await;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(whole(body))
    });
    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 100 "));
    sleep(Duration::from_secs(50)).await;
    client.write_all(b"abc").await.unwrap();
    read_until(&mut client, "abc").await;
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_refused_while_it_sends_can_read_the_refusal() {
    let (mut client, _) = serve(1 << 10, path);
    // Far more than the connection holds: it is all read, and the answer is there still.
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(512 << 10));
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn what_is_read_from_a_refused_client_is_bounded_in_bytes_and_in_time() {
    let (mut client, served) = serve(64 << 10, path);
    let began = Instant::now();
    client.write_all(b"nonsense").await.unwrap();
    client.write_all(b"\r\n\r\nGET /").await.unwrap();
    let _ = served.await.unwrap();
    assert_eq!(began.elapsed().as_secs(), DRAIN_TIME.as_secs(), "it says nothing more, and does not close either");

    let (mut client, _) = serve(64 << 10, path);
    client.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let mut sent = 0;
    while client.write_all(&[b'x'; 1 << 10]).await.is_ok() {
        sent += 1 << 10;
    }
    assert!((DRAIN_BYTES..2 * DRAIN_BYTES).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_sends_requests_and_does_not_read_is_not_served_ahead_and_is_cut_off() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let (mut client, served) = serve(16 << 10, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Response::new(whole(Bytes::from(vec![b'x'; 16 << 10]))) }
    });
    let mut asked = 0;
    while client.write_all(GET).await.is_ok() {
        asked += 1;
    }
    assert!(served.await.unwrap().is_err());
    assert!(asked < 4000, "{asked} requests were taken");
    assert!(count.load(Ordering::SeqCst) <= 4, "{count:?} answers were made for nobody");
}
