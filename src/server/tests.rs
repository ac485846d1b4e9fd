use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, advance};

use super::*;

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
    address: std::net::SocketAddr,
    stop: CancellationToken,
    open: IntGauge,
    running: tokio::task::JoinHandle<()>,
}

async fn listen<S, F>(connections: usize, answer: S) -> Listening
where
    S: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, open) = (CancellationToken::new(), IntGauge::new("open", "open").unwrap());
    let permits = Arc::new(Semaphore::new(connections));
    let running = tokio::spawn(run(listener, LIMITS, permits, open.clone(), stop.clone(), answer));
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
