//! Connections to the simulated endpoint, and how they are lost.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::lock;

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// At once, in the middle of whatever it carries.
    Now,
    /// As soon as the next request has arrived on it, with no answer.
    AtNextRequest,
    /// After the answers that it owes: by `Connection: close` where one is under way, on HTTP/2 by GOAWAY.
    Gracefully,
}

/// The open connections.
#[derive(Default)]
pub(super) struct Connections {
    made: AtomicUsize,
    open: Mutex<BTreeMap<usize, Arc<Connection>>>,
}

/// An open connection.
#[derive(Default)]
pub(super) struct Connection {
    pub(super) is_lost: CancellationToken,
    pub(super) is_leaving: Notify,
    ends_at_next_request: AtomicBool,
    requests: AtomicUsize,
}

impl Connections {
    /// Forgets it again when dropped.
    pub(super) fn open(&self) -> Open<'_> {
        let number = self.made.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::default());
        lock(&self.open).insert(number, Arc::clone(&connection));
        Open { connections: self, number, connection }
    }

    pub(super) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    pub(super) fn lose_all(&self, how: Loss) {
        lock(&self.open).values().for_each(|connection| connection.lose(how));
    }

    pub(super) fn lose_one(&self, which: usize, how: Loss) {
        let open = lock(&self.open);
        if let Some(connection) = open.values().nth(which % open.len().max(1)) {
            connection.lose(how);
        }
    }
}

impl Connection {
    fn lose(&self, how: Loss) {
        match how {
            Loss::Now => self.is_lost.cancel(),
            Loss::AtNextRequest => self.ends_at_next_request.store(true, Ordering::Relaxed),
            Loss::Gracefully => self.is_leaving.notify_one(),
        }
    }

    /// A request has arrived, and the connection may serve `most`; whether this one is to be served.
    pub(super) fn serves(&self, most: Option<usize>) -> bool {
        if self.ends_at_next_request.load(Ordering::Relaxed) {
            self.is_lost.cancel();
            return false;
        }
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if Some(requests) == most {
            self.is_leaving.notify_one();
        }
        true
    }
}

/// A connection that is open.
pub(super) struct Open<'c> {
    connections: &'c Connections,
    number: usize,
    pub(super) connection: Arc<Connection>,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        lock(&self.connections.open).remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::Request;
    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::{http1, http2};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::duplex;

    use super::*;
    use crate::demo::origin::{Options, Origin};

    async fn start() -> Origin {
        let options = Options { address: ([127, 0, 0, 1], 0).into(), ..Options::default() };
        Origin::start(options).await.unwrap()
    }

    fn served(origin: &Origin) -> TokioIo<tokio::io::DuplexStream> {
        let (near, far) = duplex(1 << 16);
        let serving = origin.clone();
        tokio::spawn(async move { serving.serve_connection(far).await });
        TokioIo::new(near)
    }

    fn request() -> Request<Empty<Bytes>> {
        Request::get("http://origin/counts").body(Empty::new()).unwrap()
    }

    /// Whether a request is answered on it.
    async fn answers(sender: &mut http1::SendRequest<Empty<Bytes>>) -> bool {
        if sender.ready().await.is_err() {
            return false;
        }
        match sender.send_request(request()).await {
            Ok(response) => response.into_body().collect().await.is_ok(),
            Err(_) => false,
        }
    }

    async fn connect(origin: &Origin) -> http1::SendRequest<Empty<Bytes>> {
        let (sender, connection) = http1::handshake(served(origin)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    #[tokio::test]
    async fn connections_are_lost_as_they_are_told_and_others_are_not() {
        for how in [Loss::Now, Loss::AtNextRequest, Loss::Gracefully] {
            let origin = start().await;
            let (mut first, mut second) = (connect(&origin).await, connect(&origin).await);
            assert!(answers(&mut first).await && answers(&mut second).await);
            origin.lose_connection(0, how);
            assert!(!answers(&mut first).await && answers(&mut second).await, "{how:?}");
            origin.lose_connections(how);
            let mut third = connect(&origin).await;
            assert!(!answers(&mut second).await && answers(&mut third).await, "{how:?}");
            assert_eq!(origin.connections(), 3);
        }
    }

    #[tokio::test]
    async fn a_connection_serves_so_many_requests_and_ends_gracefully() {
        let origin = start().await;
        origin.update_faults(|faults| faults.requests_per_connection = Some(3));
        let mut sender = connect(&origin).await;
        for _ in 0..3 {
            assert!(answers(&mut sender).await);
        }
        assert!(!answers(&mut sender).await);

        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), served(&origin)).await.unwrap();
        let ended = tokio::spawn(connection);
        for _ in 0..3 {
            sender.ready().await.unwrap();
            assert_eq!(sender.send_request(request()).await.unwrap().status(), 200);
        }
        ended.await.unwrap().unwrap();
    }
}
