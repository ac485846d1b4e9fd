//! The shared tier's server: it does one thing at a time, and sends so many bytes in a second.

/// Microseconds.
pub(crate) const MILLISECOND: u64 = 1_000;
pub(crate) const SECOND: u64 = 1_000 * MILLISECOND;
/// Of a command that the server answers at once.
pub(crate) const ROUND_TRIP: u64 = MILLISECOND;
/// The server's time for a command, and for a thousand bytes.
const COMMAND: u64 = 20;
const THOUSAND_BYTES: u64 = 2;

#[derive(Default)]
pub(crate) struct Server {
    /// Until when it is busy.
    busy: u64,
}

impl Server {
    /// When the answer to a command with so many bytes is there that is sent at `now`.
    pub(crate) fn answers(&mut self, now: u64, bytes: usize) -> u64 {
        let begin = self.busy.max(now + ROUND_TRIP / 2);
        self.busy = begin + COMMAND + bytes as u64 * THOUSAND_BYTES / 1000;
        self.busy + ROUND_TRIP / 2
    }
}
