//! Counts requests as they arrive, and delays them while a test holds them.

use std::io;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) struct Gate {
    arrived: watch::Sender<usize>,
    is_open: watch::Sender<bool>,
}

impl Default for Gate {
    fn default() -> Self {
        Self { arrived: watch::Sender::new(0), is_open: watch::Sender::new(true) }
    }
}

impl Gate {
    /// Counts a request, and returns after `delay` once the gate is open.
    ///
    /// # Errors
    /// When `stop` is cancelled first: on HTTP/2 a request is a task of its own, which does not end with its connection.
    pub(super) async fn pass(&self, delay: Duration, stop: &CancellationToken) -> io::Result<()> {
        self.arrived.send_modify(|arrived| *arrived += 1);
        let opened = async {
            // The sender lives in self.
            let _ = self.is_open.subscribe().wait_for(|is_open| *is_open).await;
            if !delay.is_zero() {
                tokio::time::sleep(delay).await;
            }
        };
        stop.run_until_cancelled(opened).await.ok_or_else(|| io::Error::other("stopped"))
    }

    /// Requests since the start.
    pub(super) fn count(&self) -> usize {
        *self.arrived.borrow()
    }

    /// Waits until so many requests have arrived since the start.
    pub(super) async fn arrived(&self, count: usize) {
        // The sender lives in self.
        let _ = self.arrived.subscribe().wait_for(|arrived| *arrived >= count).await;
    }

    /// Opens or closes it for requests that have not passed.
    pub(super) fn set_open(&self, is_open: bool) {
        self.is_open.send_replace(is_open);
    }
}
