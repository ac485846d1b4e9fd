use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioExecutor;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};
use tokio::time::advance;

use super::*;
use crate::message::body::{DRAIN_BYTES, DRAIN_TIME};

const LIMITS: Limits = Limits {
    header_bytes: 8 << 10,
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(60),
    drain: Duration::from_secs(30),
};
const GET: &[u8] = b"GET /a HTTP/1.1\r\nhost: x\r\n\r\n";

async fn path(request: Request<Incoming>) -> Response<Full<Bytes>> {
    Response::new(Full::new(Bytes::from(request.uri().path().to_owned())))
}

/// A client's end of a connection that is served in memory.
fn connect() -> DuplexStream {
    let (client, server) = duplex(64 << 10);
    tokio::spawn(serve_connection(server, LIMITS, path));
    client
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

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let mut client = connect();
    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\n\r\nGET /b HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    read_until(&mut client, "/a").await;
    read_until(&mut client, "/b").await;
}

#[tokio::test]
async fn http2_with_prior_knowledge_is_served_on_the_same_port() {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(connect())).await.unwrap();
    tokio::spawn(connection);
    for target in ["http://x/a", "http://x/b"] {
        let request = Request::get(target).body(Full::<Bytes>::default()).unwrap();
        let body = sender.send_request(request).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, target["http://x".len()..]);
    }
}

#[tokio::test]
async fn a_head_over_the_limit_is_refused_with_a_431() {
    let mut client = connect();
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(16 << 10));
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test]
async fn a_client_that_closes_its_half_still_gets_its_answer() {
    let mut client = connect();
    client.write_all(GET).await.unwrap();
    client.shutdown().await.unwrap();
    read_until(&mut client, "/a").await;
}

#[tokio::test(start_paused = true)]
async fn a_head_that_trickles_in_is_cut_off_after_its_time() {
    let mut client = connect();
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "/a").await;
    advance(Duration::from_secs(30)).await;
    let began = Instant::now();
    let (mut read, mut write) = tokio::io::split(client);
    let trickle = tokio::spawn(async move {
        for byte in GET {
            if write.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_secs(3)).await;
        }
    });
    closed_after(&mut read).await;
    assert_eq!(began.elapsed().as_secs(), 10);
    trickle.abort();
}

#[tokio::test(start_paused = true)]
async fn a_quiet_connection_is_kept_for_the_idle_time_and_no_longer() {
    let mut client = connect();
    for _ in 0..3 {
        client.write_all(GET).await.unwrap();
        read_until(&mut client, "/a").await;
        tokio::time::sleep(Duration::from_secs(59)).await;
    }
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "/a").await;
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_never_says_anything_is_closed() {
    assert_eq!(closed_after(&mut connect()).await.as_secs(), 60);
}

/// Regression: the rest of a body that came while its answer was stuck passed for a head, and the connection's idle time began
/// only when another alarm rang.
#[tokio::test(start_paused = true)]
async fn a_connection_whose_answer_was_stuck_when_its_body_ended_is_idle_afterwards() {
    let (mut client, server) = duplex(64 << 10);
    tokio::spawn(serve_connection(server, LIMITS, async |request: Request<Incoming>| {
        tokio::spawn(request.into_body().collect());
        Response::new(Full::new(Bytes::from(vec![b'x'; 1 << 20])))
    }));
    client.write_all(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\nhello").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    client.write_all(b"hello").await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    read_until(&mut client, "\r\n\r\n").await;
    client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

/// Regression: it had the time of a head for the rest of its body.
#[tokio::test(start_paused = true)]
async fn who_is_answered_before_its_body_is_over_may_take_its_time_for_it() {
    let mut client = {
        let (client, server) = duplex(64 << 10);
        tokio::spawn(serve_connection(server, LIMITS, async |request: Request<Incoming>| {
            tokio::spawn(request.into_body().collect());
            Response::new(Full::new(Bytes::from_static(b"early")))
        }));
        client
    };
    client.write_all(b"POST /a HTTP/1.1\r\nhost: x\r\ncontent-length: 10\r\n\r\n").await.unwrap();
    read_until(&mut client, "early").await;
    for byte in b"helloyou!!" {
        tokio::time::sleep(Duration::from_secs(5)).await;
        client.write_all(&[*byte]).await.unwrap();
    }
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "early").await;
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_not_cut_off_and_its_connection_stays() {
    let (mut client, server) = duplex(1024);
    tokio::spawn(serve_connection(server, LIMITS, |request| async {
        tokio::time::sleep(Duration::from_secs(500)).await;
        path(request).await
    }));
    for _ in 0..2 {
        client.write_all(GET).await.unwrap();
        read_until(&mut client, "/a").await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_read_its_answer_is_cut_off() {
    let (mut client, server) = duplex(1024);
    let served = tokio::spawn(serve_connection(server, LIMITS, |_| async {
        Response::new(Full::new(Bytes::from(vec![b'x'; 1 << 20])))
    }));
    client.write_all(GET).await.unwrap();
    let began = Instant::now();
    assert!(served.await.unwrap().is_err());
    assert_eq!(began.elapsed().as_secs(), 60);
}

struct Listening {
    address: SocketAddr,
    stop: CancellationToken,
    open: IntGauge,
    running: tokio::task::JoinHandle<()>,
}

async fn listen<S, F>(connections: usize, answer: S) -> Listening
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    listen_at(reception(LIMITS, connections), answer).await
}

fn reception(limits: Limits, connections: usize) -> Arc<ListenerState> {
    let open = IntGauge::new("open", "open").unwrap();
    Arc::new(ListenerState::new(limits, connections, open, CancellationToken::new()))
}

async fn listen_at<S, F>(reception: Arc<ListenerState>, answer: S) -> Listening
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, open) = (reception.stop.clone(), reception.open.clone());
    let answer = move |_, request| answer(request);
    let running = tokio::spawn(run(Listener::Tcp(listener), reception, answer));
    Listening { address, stop, open, running }
}

#[tokio::test]
async fn at_the_connection_limit_the_next_one_waits_for_one_to_end() {
    let served = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&served);
    let listening = listen(1, move |request| {
        counter.fetch_add(1, Ordering::SeqCst);
        path(request)
    })
    .await;
    let mut first = TcpStream::connect(listening.address).await.unwrap();
    first.write_all(GET).await.unwrap();
    read_until(&mut first, "/a").await;
    let mut second = TcpStream::connect(listening.address).await.unwrap();
    second.write_all(GET).await.unwrap();
    first.write_all(GET).await.unwrap();
    read_until(&mut first, "/a").await;
    assert_eq!((served.load(Ordering::SeqCst), listening.open.get()), (2, 1));
    drop(first);
    read_until(&mut second, "/a").await;
}

#[tokio::test]
async fn draining_finishes_what_is_in_flight_and_closes_the_rest() {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let go = Arc::new(Notify::new());
    let gate = Arc::clone(&go);
    let listening = listen(10, move |request| {
        let (arrived, gate) = (arrived.clone(), Arc::clone(&gate));
        async move {
            if request.uri().path() == "/slow" {
                arrived.send(()).unwrap();
                gate.notified().await;
            }
            path(request).await
        }
    })
    .await;
    let mut idle = TcpStream::connect(listening.address).await.unwrap();
    idle.write_all(GET).await.unwrap();
    read_until(&mut idle, "/a").await;
    let mut busy = TcpStream::connect(listening.address).await.unwrap();
    busy.write_all(b"GET /slow HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    arrivals.recv().await.unwrap();

    listening.stop.cancel();
    closed_after(&mut idle).await;
    go.notify_one();
    let mut answer = String::new();
    busy.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains("connection: close") && answer.ends_with("/slow"), "{answer}");
    listening.running.await.unwrap();
    assert!(TcpStream::connect(listening.address).await.is_err());
}

#[tokio::test]
async fn who_waits_to_be_let_in_when_a_drain_begins_is_answered() {
    let listening = listen(1, path).await;
    let mut first = TcpStream::connect(listening.address).await.unwrap();
    first.write_all(GET).await.unwrap();
    read_until(&mut first, "/a").await;
    let mut waiting = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(listening.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        waiting.push(stream);
    }
    // One has been accepted and waits, the other is in the system's queue.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    listening.stop.cancel();
    for mut stream in waiting {
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.contains("connection: close") && answer.ends_with("/a"), "{answer}");
    }
    listening.running.await.unwrap();
}

#[tokio::test]
async fn who_waits_to_be_let_in_does_not_hold_up_the_end() {
    let limits = Limits { drain: Duration::from_millis(20), ..LIMITS };
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let listening = listen_at(reception(limits, 1), move |_| {
        arrived.send(()).unwrap();
        std::future::pending()
    })
    .await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(listening.address).await.unwrap();
        stream.write_all(GET).await.unwrap();
        streams.push(stream);
    }
    arrivals.recv().await.unwrap();
    listening.stop.cancel();
    listening.running.await.unwrap();
    for mut stream in streams {
        closed_after(&mut stream).await;
    }
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_read_slowly_but_steadily_is_not_cut_off() {
    let (mut client, server) = duplex(1024);
    tokio::spawn(serve_connection(server, LIMITS, |_| async {
        Response::new(Full::new(Bytes::from(vec![b'x'; 64 << 10])))
    }));
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "\r\n\r\n").await;
    let mut body = vec![0; 64 << 10];
    // Every piece is in time, all of them together are not.
    for piece in body.chunks_mut(1 << 10) {
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.read_exact(piece).await.unwrap();
    }
}

/// A connection whose handler reads the request's body to its end.
fn connect_reader() -> DuplexStream {
    let (client, server) = duplex(64 << 10);
    tokio::spawn(serve_connection(server, LIMITS, |request: Request<Incoming>| async {
        let status = if request.into_body().collect().await.is_ok() { 200 } else { 400 };
        Response::builder().status(status).body(Full::<Bytes>::default()).unwrap()
    }));
    client
}

#[tokio::test(start_paused = true)]
async fn a_body_may_trickle_in_but_not_stall() {
    let mut client = connect_reader();
    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n").await.unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(50)).await;
        client.write_all(b"x").await.unwrap();
    }
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 200 "));

    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\nx").await.unwrap();
    assert_eq!(closed_after(&mut client).await.as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_body_that_its_handler_asks_for_late_gets_its_whole_time() {
    let (mut client, server) = duplex(64 << 10);
    tokio::spawn(serve_connection(server, LIMITS, |request: Request<Incoming>| async {
        tokio::time::sleep(Duration::from_secs(500)).await;
        let body = request.into_body().collect().await.unwrap().to_bytes();
        Response::new(Full::new(body))
    }));
    client.write_all(b"GET /a HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 3\r\n\r\n").await.unwrap();
    assert!(read_until(&mut client, "\r\n\r\n").await.starts_with("HTTP/1.1 100 "));
    tokio::time::sleep(Duration::from_secs(50)).await;
    client.write_all(b"abc").await.unwrap();
    read_until(&mut client, "abc").await;
}

type H2 = hyper::client::conn::http2::SendRequest<Full<Bytes>>;

/// An HTTP/2 client, and its connection's task, which ends with it.
async fn connect_http2(server: DuplexStream) -> (H2, tokio::task::JoinHandle<()>) {
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(server)).await.unwrap();
    (sender, tokio::spawn(async move { drop(connection.await) }))
}

fn get() -> Request<Full<Bytes>> {
    Request::get("http://x/a").body(Full::default()).unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_quiet_http2_connection_is_kept_for_the_idle_time_and_no_longer() {
    let (mut sender, ended) = connect_http2(connect()).await;
    // Beyond the time that a head may take: the preface is not one.
    tokio::time::sleep(Duration::from_secs(59)).await;
    for _ in 0..2 {
        sender.send_request(get()).await.unwrap().into_body().collect().await.unwrap();
        tokio::time::sleep(Duration::from_secs(59)).await;
    }
    sender.send_request(get()).await.unwrap().into_body().collect().await.unwrap();
    let began = Instant::now();
    ended.await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 60);
}

#[tokio::test(start_paused = true)]
async fn a_slow_handler_is_not_cut_off_over_http2() {
    let (client, server) = duplex(64 << 10);
    tokio::spawn(serve_connection(server, LIMITS, |request| async {
        tokio::time::sleep(Duration::from_secs(500)).await;
        path(request).await
    }));
    let (mut sender, _ended) = connect_http2(client).await;
    for _ in 0..2 {
        let body = sender.send_request(get()).await.unwrap().into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "/a");
    }
}

#[tokio::test(start_paused = true)]
async fn an_http2_preface_that_does_not_end_is_cut_off_as_a_head() {
    let mut client = connect();
    client.write_all(b"PRI * HTTP/2.0\r\n\r\n").await.unwrap();
    assert_eq!(closed_after(&mut client).await.as_secs(), 10);
}

#[tokio::test]
async fn a_handler_that_panics_costs_its_connection_and_nothing_else() {
    let listening = listen(1, |request| async move {
        assert_ne!(request.uri().path(), "/panic");
        path(request).await
    })
    .await;
    let mut first = TcpStream::connect(listening.address).await.unwrap();
    first.write_all(b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    closed_after(&mut first).await;
    let mut second = TcpStream::connect(listening.address).await.unwrap();
    second.write_all(GET).await.unwrap();
    read_until(&mut second, "/a").await;
    assert_eq!(listening.open.get(), 1);
}

#[tokio::test]
async fn a_listener_without_clients_takes_nothing_from_another() {
    let reception = reception(LIMITS, 1);
    let _quiet = listen_at(Arc::clone(&reception), path).await;
    // The quiet one has had its turn: it waits for a client.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let busy = listen_at(reception, path).await;
    let mut client = TcpStream::connect(busy.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    read_until(&mut client, "/a").await;
}

#[tokio::test]
async fn draining_ends_in_time_and_cuts_off_what_is_left() {
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let limits = Limits { drain: Duration::from_millis(20), ..LIMITS };
    let listening = listen_at(reception(limits, 10), move |_| {
        arrived.send(()).unwrap();
        std::future::pending()
    })
    .await;
    let mut client = TcpStream::connect(listening.address).await.unwrap();
    client.write_all(GET).await.unwrap();
    arrivals.recv().await.unwrap();
    listening.stop.cancel();
    listening.running.await.unwrap();
    assert_eq!(listening.open.get(), 0);
    closed_after(&mut client).await;
}

#[tokio::test]
async fn new_limits_count_for_connections_to_come() {
    let reception = reception(LIMITS, 1);
    let listening = listen_at(Arc::clone(&reception), path).await;
    let head = format!("GET /a HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(12 << 10));
    let mut before = TcpStream::connect(listening.address).await.unwrap();
    before.write_all(GET).await.unwrap();
    read_until(&mut before, "/a").await;
    // A second one waits until there may be two.
    let mut waiting = TcpStream::connect(listening.address).await.unwrap();
    waiting.write_all(head.as_bytes()).await.unwrap();
    reception.change(Limits { header_bytes: 64 << 10, ..LIMITS }, 2);
    read_until(&mut waiting, "/a").await;
    before.write_all(head.as_bytes()).await.unwrap();
    assert!(read_until(&mut before, "\r\n\r\n").await.starts_with("HTTP/1.1 431 "));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_refused_while_it_sends_gets_to_read_why() {
    let (mut client, server) = duplex(1 << 10);
    tokio::spawn(serve_connection(server, LIMITS, path));
    // Far more than the connection holds: it is all read, and the answer is there still.
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(512 << 10));
    client.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn what_is_read_of_a_refused_client_is_bounded_in_bytes_and_in_time() {
    let (mut client, server) = duplex(64 << 10);
    let served = tokio::spawn(serve_connection(server, LIMITS, path));
    let began = Instant::now();
    client.write_all(b"nonsense").await.unwrap();
    client.write_all(b"\r\n\r\nGET /").await.unwrap();
    let _ = served.await.unwrap();
    assert_eq!(began.elapsed(), DRAIN_TIME, "it says nothing more, and does not close either");

    let (mut client, server) = duplex(64 << 10);
    tokio::spawn(serve_connection(server, LIMITS, path));
    client.write_all(b"nonsense\r\n\r\n").await.unwrap();
    let mut sent = 0;
    while client.write_all(&[b'x'; 1 << 10]).await.is_ok() {
        sent += 1 << 10;
    }
    assert!((DRAIN_BYTES..2 * DRAIN_BYTES).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_on_and_does_not_read_is_not_served_ahead_and_is_cut_off() {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&count);
    let (mut client, server) = duplex(16 << 10);
    let served = tokio::spawn(serve_connection(server, LIMITS, move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Response::new(Full::new(Bytes::from(vec![b'x'; 16 << 10]))) }
    }));
    let mut asked = 0;
    while client.write_all(GET).await.is_ok() {
        asked += 1;
    }
    assert!(served.await.unwrap().is_err());
    assert!(asked < 4000, "{asked} requests were taken");
    assert!(count.load(Ordering::SeqCst) <= 4, "{count:?} answers were made for nobody");
}
