//! What keeps an HTTP/2 connection alive, on a paused clock.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use sidelink::message::body::{Body, whole};
use sidelink::server::{ConnLimits, Protocol, RequestBody, serve_connection};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{Instant, sleep};

use super::frames::*;

const LIMITS: ConnLimits = ConnLimits {
    header_bytes: 8 << 10,
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(60),
    max_connection_age: Duration::from_secs(3600),
    drain: Duration::from_secs(30),
    linger: Duration::from_secs(1),
};
/// After the idle time, to close.
const LEAVE: u64 = 5;

/// Answers with as many bytes as the path says, after as many seconds as the query does.
async fn bytes(request: Request<RequestBody>) -> Response<Body> {
    let number = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    let (seconds, count) = (number(request.uri().query()), number(request.uri().path().get(1..)));
    sleep(Duration::from_secs(seconds)).await;
    Response::new(whole(Bytes::from(vec![b'x'; usize::try_from(count).unwrap()])))
}

/// A client whose socket has room for `buffer` bytes each way.
async fn connect(buffer: usize, settings: &[(u16, u32)]) -> Http2<DuplexStream> {
    let (client, server) = duplex(buffer);
    tokio::spawn(serve_connection(Protocol::Any, server, LIMITS, Default::default(), bytes));
    let mut client = Http2::over(client, settings).await;
    client.patience = Duration::from_secs(10_000);
    client
}

#[tokio::test(start_paused = true)]
async fn frames_about_the_connection_alone_do_not_keep_it_alive() {
    for frame in [
        frame(PING, 0, 0, &[1; 8]),
        frame(PING, ACK, 0, &[1; 8]),
        frame(SETTINGS, 0, 0, &[]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]),
        frame(0xfa, 0, 0, b"x"),
    ] {
        // The client reads nothing, and what it would read fits into its socket.
        let mut client = connect(1 << 20, &[]).await;
        client.ask(&get("/9"), true).await;
        let began = Instant::now();
        while client.io.write_all(&frame).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
        let lived = began.elapsed().as_secs();
        assert!((60 + LEAVE..=62 + LEAVE).contains(&lived), "{frame:?}: {lived}");
        assert_eq!(client.over_with().await, Some(0), "it was told");
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_pings_and_reads_nothing_is_cut_off_once_its_socket_is_full() {
    let mut client = connect(1 << 10, &[]).await;
    let began = Instant::now();
    while client.io.write_all(&frame(PING, 0, 0, &[1; 8])).await.is_ok() {}
    assert!(began.elapsed() <= Duration::from_secs(60 + LEAVE), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_idle_client_gets_a_goaway_and_closes_without_a_cut() {
    let mut client = connect(1 << 20, &[]).await;
    for _ in 0..3 {
        // Beyond the time that a head may take: the preface is none.
        sleep(Duration::from_secs(59)).await;
        assert_eq!(client.exchange(&get("/9")).await.status(), 200);
    }
    let began = Instant::now();
    assert_eq!(client.over_with().await, Some(0));
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_crosses_the_goaway_is_answered() {
    let mut client = connect(1 << 20, &[]).await;
    client.settle().await;
    sleep(Duration::from_secs(61)).await;
    let stream = client.ask(&get("/9?30"), true).await;
    assert_eq!(client.end(stream).await.status(), 200);
    assert_eq!(client.over_with().await, Some(0));
}

/// Nothing else can be sent on the connection meanwhile (RFC 9113 §4.3), so such a head harms its own client alone.
#[tokio::test(start_paused = true)]
async fn a_head_that_does_not_end_keeps_no_connection_alive() {
    let head = block(&get("/9"));
    for beginning in [frame(HEADERS, END_STREAM, 3, &head[..4]), frame(HEADERS, END_HEADERS, 3, &head)[..12].to_vec()] {
        let mut client = connect(1 << 20, &[]).await;
        client.ask(&get("/9?50"), true).await;
        client.settle().await;
        client.write(&beginning).await;
        let began = Instant::now();
        // One byte of an octet string that goes on, or of the frame that does.
        let piece = if beginning.len() == 13 { frame(CONTINUATION, 0, 3, &head[4..5]) } else { head[3..4].to_vec() };
        while client.io.write_all(&piece).await.is_ok() {
            sleep(Duration::from_secs(3)).await;
        }
        assert!(began.elapsed().as_secs() <= 50 + 60 + LEAVE + 2, "{:?}", began.elapsed());
    }
}

#[tokio::test(start_paused = true)]
async fn heads_one_after_another_are_not_taken_for_one() {
    let mut client = connect(1 << 20, &[]).await;
    let mut rest: Vec<u8> = Vec::new();
    // Each write ends within a head.
    for stream in (1..81).step_by(2) {
        let next = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&get("/9")));
        client.write(&[&rest, &next[..12]].concat()).await;
        rest = next[12..].to_vec();
        sleep(Duration::from_secs(5)).await;
    }
    client.write(&rest).await;
    assert_eq!(client.end(79).await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn an_answer_of_any_size_without_room_lets_its_connection_end_in_time() {
    // hyper has the whole of the first ones; the last is larger than a stream is given at a time.
    for size in [1, 10_000, 16 << 10, 1_000_000] {
        let mut client = connect(1 << 20, &[(4, 0)]).await;
        client.makes_room = false;
        let stream = client.ask(&get(&format!("/{size}")), true).await;
        let began = Instant::now();
        while client.io.write_all(&frame(PING, 0, 0, &[1; 8])).await.is_ok() {
            sleep(Duration::from_secs(1)).await;
        }
        // The stream is reset first, and then the connection is idle.
        assert!(began.elapsed() <= Duration::from_secs(122 + LEAVE), "{size}: {:?}", began.elapsed());
        assert_eq!((client.over_with().await, client.received(stream)), (Some(0), 0), "{size}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_given_room_slowly_but_steadily_is_not_given_up() {
    let mut client = connect(1 << 20, &[(4, 0)]).await;
    client.makes_room = false;
    let stream = client.ask(&get("/100000"), true).await;
    let began = Instant::now();
    while client.received(stream) < 100_000 {
        client.room(stream, 1 << 10).await;
        client.room(0, 1 << 10).await;
        client.settle().await;
        sleep(Duration::from_secs(3)).await;
    }
    assert_eq!(client.end(stream).await.status(), 200);
    assert!(began.elapsed() > Duration::from_secs(250), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_takes_long_is_awaited_and_a_client_that_has_vanished_is_not() {
    let mut client = connect(1 << 20, &[]).await;
    assert_eq!(client.exchange(&get("/9?500")).await.status(), 200);

    // Answers no ping.
    let mut client = connect(1 << 20, &[]).await;
    client.ask(&get("/9?500"), true).await;
    let began = Instant::now();
    client.settle().await;
    let mut rest = Vec::new();
    let _ = client.io.read_to_end(&mut rest).await;
    assert!((119..=122).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
}

#[tokio::test(start_paused = true)]
async fn at_its_maximum_age_an_http2_connection_ends_once_what_is_in_service_is_answered() {
    let mut client = connect(1 << 20, &[]).await;
    let began = Instant::now();
    let stream = client.ask(&get("/9?7200"), true).await;
    while client.goaways.is_empty() {
        client.read().await.expect("it is told first");
    }
    assert!((3240..=3600).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(client.end(stream).await.status(), 200);
    assert_eq!(client.over_with().await, Some(0));
    assert_eq!(began.elapsed().as_secs(), 7200);
}
