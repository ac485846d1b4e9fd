//! Listeners: their permits, and draining.

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::*;

struct Listening {
    address: SocketAddr,
    stop: CancellationToken,
    open: IntGauge,
    running: JoinHandle<()>,
}

fn listener_state(limits: ConnLimits, connections: usize) -> Arc<ListenerState> {
    let open = IntGauge::new("open", "open").unwrap();
    Arc::new(ListenerState::new(limits, connections, open, CancellationToken::new()))
}

/// Connects, and sends a request.
async fn ask(listening: &Listening, request: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(listening.address).await.unwrap();
    stream.write_all(request).await.unwrap();
    stream
}

async fn listen<S, F>(state: Arc<ListenerState>, answer: S) -> Listening
where
    S: Fn(Request<RequestBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, open) = (state.stop.clone(), state.open.clone());
    let running = tokio::spawn(run(Listener::Tcp(listener), state, move |_, _| answer.clone()));
    Listening { address, stop, open, running }
}

#[tokio::test]
async fn clients_that_wait_for_a_permit_when_a_drain_begins_are_answered() {
    let listening = listen(listener_state(LIMITS, 1), path).await;
    let mut first = ask(&listening, GET).await;
    read_until(&mut first, "/a").await;
    let waiting = [ask(&listening, GET).await, ask(&listening, GET).await];
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
async fn clients_that_wait_for_a_permit_do_not_delay_the_end_of_a_drain() {
    let limits = ConnLimits { drain: Duration::from_millis(20), ..LIMITS };
    let (arrived, mut arrivals) = mpsc::unbounded_channel();
    let listening = listen(listener_state(limits, 1), move |_| {
        arrived.send(()).unwrap();
        std::future::pending()
    })
    .await;
    let streams = [ask(&listening, GET).await, ask(&listening, GET).await, ask(&listening, GET).await];
    arrivals.recv().await.unwrap();
    listening.stop.cancel();
    listening.running.await.unwrap();
    for mut stream in streams {
        closed_after(&mut stream).await;
    }
}

#[tokio::test]
async fn a_handler_that_panics_ends_its_connection_alone() {
    let listening = listen(listener_state(LIMITS, 1), |request| async move {
        assert_ne!(request.uri().path(), "/panic");
        path(request).await
    })
    .await;
    let mut first = ask(&listening, b"GET /panic HTTP/1.1\r\nhost: x\r\n\r\n").await;
    closed_after(&mut first).await;
    let mut second = ask(&listening, GET).await;
    read_until(&mut second, "/a").await;
    assert_eq!(listening.open.get(), 1);
}

#[tokio::test]
async fn a_listener_without_clients_takes_no_permit() {
    let state = listener_state(LIMITS, 1);
    let _quiet = listen(Arc::clone(&state), path).await;
    // The quiet one has had its turn: it waits for a client.
    for _ in 0..10 {
        tokio::task::yield_now().await;
    }
    let busy = listen(state, path).await;
    let mut client = ask(&busy, GET).await;
    read_until(&mut client, "/a").await;
}

#[tokio::test]
async fn new_limits_count_for_connections_to_come() {
    let state = listener_state(LIMITS, 1);
    let listening = listen(Arc::clone(&state), path).await;
    let head = format!("GET /a HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n", "x".repeat(12 << 10));
    let mut before = ask(&listening, GET).await;
    read_until(&mut before, "/a").await;
    // A second one waits until there may be two.
    let mut waiting = ask(&listening, head.as_bytes()).await;
    state.set_limits(ConnLimits { header_bytes: 64 << 10, ..LIMITS }, 2);
    read_until(&mut waiting, "/a").await;
    before.write_all(head.as_bytes()).await.unwrap();
    assert!(read_until(&mut before, "\r\n\r\n").await.starts_with("HTTP/1.1 431 "));
}
