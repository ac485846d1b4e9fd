//! Connections to the simulated endpoint, and how they are lost.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

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
    /// After the answers under way: by `Connection: close` where there is one, on HTTP/2 by GOAWAY.
    Gracefully,
}

#[derive(Default)]
pub(super) struct Connections {
    made: AtomicUsize,
    /// By age. May contain closed ones.
    open: Mutex<Vec<Arc<Connection>>>,
}

#[derive(Default)]
pub(super) struct Connection {
    /// Cancelled to close it, and when it has ended.
    pub(super) is_closed: CancellationToken,
    pub(super) is_leaving: Notify,
    ends_at_next_request: AtomicBool,
    requests: AtomicUsize,
}

impl Connections {
    pub(super) fn open(&self) -> Arc<Connection> {
        self.made.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection::default());
        let mut open = lock(&self.open);
        open.retain(|connection| !connection.is_closed.is_cancelled());
        open.push(Arc::clone(&connection));
        connection
    }

    pub(super) fn made(&self) -> usize {
        self.made.load(Ordering::Relaxed)
    }

    pub(super) fn lose_all(&self, how: Loss) {
        lock(&self.open).iter().for_each(|connection| connection.lose(how));
    }

    pub(super) fn lose_one(&self, which: usize, how: Loss) {
        let mut open = lock(&self.open);
        open.retain(|connection| !connection.is_closed.is_cancelled());
        if let Some(connection) = open.get(which % open.len().max(1)) {
            connection.lose(how);
        }
    }
}

impl Connection {
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
