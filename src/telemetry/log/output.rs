//! The way of log lines to standard output: a bounded queue, and a thread that writes. A reader that stalls delays no request.

use std::io::{self, Stdout, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Once, OnceLock, mpsc};
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};

use super::events;

/// Lines that wait for the reader at most; further ones are dropped. A line has some 400 bytes, and less than 4 KiB.
const QUEUED: usize = 4096;
/// The longest that the end of the process waits for the reader.
const END: Duration = Duration::from_secs(1);

/// Counts the lines that found the queue full.
static FULL: OnceLock<ErrorCounter> = OnceLock::new();
/// Lines that standard output did not take.
static FAILED: AtomicU64 = AtomicU64::new(0);
/// Lines that it took.
static WRITTEN: AtomicU64 = AtomicU64::new(0);

/// A queue of lines. When it is dropped, it is written to its end, unless the reader stalls.
#[derive(Debug)]
pub struct LogQueue(Option<WorkerGuard>);

pub(super) fn queue() -> (NonBlocking, LogQueue) {
    let builder = NonBlockingBuilder::default().buffered_lines_limit(QUEUED).thread_name("log");
    let (writer, guard) = builder.finish(Output(io::stdout()));
    let _ = FULL.set(writer.error_counter());
    (writer, LogQueue(Some(guard)))
}

/// Lines that were dropped since the process began: the queue was full, or standard output did not take them.
fn dropped() -> u64 {
    let full = FULL.get().map_or(0, |counter| counter.dropped_lines() as u64);
    full + FAILED.load(Ordering::Relaxed)
}

struct Reported {
    /// What the last call has returned.
    counted: u64,
    /// What the log was told.
    logged: u64,
    written: u64,
}

static REPORTED: Mutex<Reported> = Mutex::new(Reported { counted: 0, logged: 0, written: 0 });

/// The lines that were dropped since the last call. The log is told of them once lines are read again. To be called every second or
/// so.
pub(crate) fn report_dropped() -> u64 {
    let mut reported = REPORTED.lock();
    let (dropped, written) = (dropped(), WRITTEN.load(Ordering::Relaxed));
    if dropped > reported.logged && written > reported.written {
        events::LogDropped { lines: dropped - reported.logged }.log();
        reported.logged = dropped;
    }
    reported.written = written;
    let new = dropped - reported.counted;
    reported.counted = dropped;
    new
}

impl Drop for LogQueue {
    fn drop(&mut self) {
        // Not on this thread: where the queue is full, the guard prints to standard output, and waits for its reader for ever.
        let (guard, (ended, end)) = (self.0.take(), mpsc::channel());
        let waiting = thread::Builder::new().spawn(move || {
            drop(guard);
            let _ = ended.send(());
        });
        if waiting.is_ok() {
            let _ = end.recv_timeout(END);
        }
    }
}

/// Standard output. A line that it does not take is counted, and told of once.
struct Output(Stdout);

impl Write for Output {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self.0.write_all(line).and_then(|()| self.0.flush()) {
            Ok(()) => WRITTEN.fetch_add(1, Ordering::Relaxed),
            Err(error) => {
                static TOLD: Once = Once::new();
                TOLD.call_once(|| {
                    let _ = writeln!(
                        io::stderr(),
                        "sidelink: standard output takes no log lines: {error}; they are dropped"
                    );
                });
                FAILED.fetch_add(1, Ordering::Relaxed)
            }
        };
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
