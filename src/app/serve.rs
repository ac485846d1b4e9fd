//! The life of a process: it starts, reloads on SIGHUP or when its files change, and drains on SIGTERM or SIGINT.

use std::io;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::notify::{feed_watchdog, notify};
use super::{App, PassedSockets, StartError, Watch, log_warnings};
use crate::clock::Clock;
use crate::config::Config;
use crate::telemetry::log::events;

/// How the life of a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All requests in flight were answered, or `limits.drain` was over.
    Drained,
    /// A second signal came.
    CutShort,
}

/// SIGTERM and SIGINT.
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Installs the handlers. To the first process of a container, a signal without a handler does nothing.
    pub fn new() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for one of them.
    pub async fn recv(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Serves as `config` says, which `watch` has loaded, on the sockets that were passed to this process, until SIGTERM or SIGINT.
/// SIGHUP, and a change of a file that is watched, load it anew. Tells the service manager of each step.
pub async fn serve(config: Config, mut watch: Watch, sockets: PassedSockets) -> Result<End, StartError> {
    log_warnings(&config.warnings, &watch.path().display().to_string());
    let mut stop = StopSignals::new().map_err(StartError::Signals)?;
    // tokio notes a SIGHUP that comes during a reload, and another follows: the file may have changed after it was read.
    let mut hang_up = signal(SignalKind::hangup()).map_err(StartError::Signals)?;
    let app = App::start_on(config, Clock::system(), sockets).await?;
    let serving = app.status();
    notify(&[NotifyState::Ready, NotifyState::Status(&serving)]);
    // Ends with the runtime.
    tokio::spawn(feed_watchdog());
    loop {
        let is_asked = tokio::select! {
            () = stop.recv() => break,
            _ = hang_up.recv() => true,
            () = watch.changed() => false,
        };
        let running = Arc::clone(&app.running);
        let path = watch.path().to_owned();
        let now = NotifyState::monotonic_usec_now().ok();
        let reloading = [NotifyState::Reloading, NotifyState::Status("reloading the configuration")];
        notify(&reloading.into_iter().chain(now).collect::<Vec<_>>());
        let reload = tokio::task::spawn_blocking(move || {
            running.reload(&mut watch, is_asked);
            watch
        });
        // A file system that hangs does not delay the end.
        let reloaded = tokio::select! {
            reloaded = reload => reloaded,
            () = stop.recv() => break,
        };
        watch = match reloaded {
            Ok(watch) => watch,
            Err(error) => {
                events::ReloadFailed { reason: format_args!("{error}") }.log();
                Watch::new(&path)
            }
        };
        let serving = app.status();
        notify(&[NotifyState::Ready, NotifyState::Status(&serving)]);
    }
    notify(&[NotifyState::Stopping, NotifyState::Status("draining: answering what is in flight")]);
    tokio::select! {
        () = app.drain() => Ok(End::Drained),
        () = stop.recv() => {
            events::SecondSignal {}.log();
            Ok(End::CutShort)
        }
    }
}
