//! Connections to the simulated endpoint, and how they are lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::DuplexStream;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::{Origin, OriginState};

/// Hands over each connection that `listener` accepts, until `stop`.
pub(super) async fn accept(listener: TcpListener, stop: CancellationToken, serve: impl Fn(TcpStream)) {
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                serve(stream);
            }
            // Out of file descriptors, say: some end soon.
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
}

/// As [`accept`], of connections made in memory.
pub(super) async fn receive(
    mut connections: UnboundedReceiver<DuplexStream>,
    stop: CancellationToken,
    serve: impl Fn(DuplexStream),
) {
    while let Some(Some(stream)) = stop.run_until_cancelled(connections.recv()).await {
        serve(stream);
    }
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
    /// At once, in the middle of answers.
    Now,
    /// As soon as the next request has arrived on it, with no answer.
    AtNextRequest,
    /// After the answers under way: by `Connection: close` where there is one, on HTTP/2 by GOAWAY.
    Gracefully,
}

#[derive(Default)]
pub(super) struct OriginConnection {
    /// Cancelled to close it, and when it has ended.
    pub(super) is_closed: CancellationToken,
    pub(super) is_leaving: Notify,
    ends_at_next_request: AtomicBool,
    requests: AtomicUsize,
}

impl Origin {
    pub(super) fn add_connection(&self) -> Arc<OriginConnection> {
        let connection = Arc::new(OriginConnection::default());
        let mut state = self.state();
        state.connections_made += 1;
        state.open_connections().push(Arc::clone(&connection));
        connection
    }

    /// Loses every open connection.
    pub fn lose_connections(&self, how: Loss) {
        self.state().open_connections().iter().for_each(|connection| connection.lose(how));
    }

    /// Loses one open connection, if there is any: number `which` by age, modulo their count.
    pub fn lose_connection(&self, which: usize, how: Loss) {
        let mut state = self.state();
        let open = state.open_connections();
        if let Some(connection) = open.get(which % open.len().max(1)) {
            connection.lose(how);
        }
    }

    /// Connections since the start.
    pub fn connections(&self) -> usize {
        self.state().connections_made
    }
}

impl OriginState {
    /// The open ones, by age.
    fn open_connections(&mut self) -> &mut Vec<Arc<OriginConnection>> {
        self.connections.retain(|connection| !connection.is_closed.is_cancelled());
        &mut self.connections
    }
}

impl OriginConnection {
    fn lose(&self, how: Loss) {
        match how {
            Loss::Now => self.is_closed.cancel(),
            Loss::AtNextRequest => self.ends_at_next_request.store(true, Ordering::Relaxed),
            Loss::Gracefully => self.is_leaving.notify_one(),
        }
    }

    /// Whether the connection serves a request that has arrived, of `most` in all.
    pub(super) fn serves(&self, most: Option<usize>) -> bool {
        if self.ends_at_next_request.load(Ordering::Relaxed) {
            self.is_closed.cancel();
            return false;
        }
        let requests = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        if Some(requests) == most {
            self.is_leaving.notify_one();
        }
        true
    }
}
