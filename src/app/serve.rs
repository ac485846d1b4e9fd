//! A process's life: it starts, reloads when told to or when its files change, drains when asked to stop.

use std::io;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{App, StartError, Watch, log_warnings};
use crate::config::Config;
use crate::telemetry::log::events;

/// How a process's life has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// All was finished, or `limits.drain` was over.
    Drained,
    /// A second signal came.
    CutShort,
}

/// The signals that it heeds. Handlers are there from the start: the first process of a container has no others.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Signal,
}

impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hang_up: signal(SignalKind::hangup())?,
        })
    }

    /// What the next signal asks for.
    async fn next(&mut self) -> Asked {
        tokio::select! {
            _ = self.terminate.recv() => Asked::Stop,
            _ = self.interrupt.recv() => Asked::Stop,
            _ = self.hang_up.recv() => Asked::Reload,
        }
    }

    /// Waits until one asks to stop. Whether one asked for a reload before.
    async fn stop(&mut self, reload: &mut bool) {
        while self.next().await != Asked::Stop {
            *reload = true;
        }
    }
}

/// What a process is asked to do.
#[derive(PartialEq, Eq)]
enum Asked {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Serves as `config` says, which `watch` has loaded, until SIGTERM or SIGINT. SIGHUP, and a change of what it watches,
/// load it anew.
///
/// # Errors
/// If it does not start.
pub async fn serve(config: Config, mut watch: Watch) -> Result<End, StartError> {
    log_warnings(&config.warnings, &watch.path().display().to_string());
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let app = App::start(config).await?;
    tell(&[NotifyState::Ready]);
    // A SIGHUP that comes during a reload asks for another: the file may have changed after it was read.
    let mut again = false;
    loop {
        let asked = tokio::select! {
            asked = signals.next(), if !again => asked,
            () = watch.changed(), if !again => Asked::Reload,
            else => Asked::Reload,
        };
        if asked == Asked::Stop {
            break;
        }
        again = false;
        let running = Arc::clone(&app.running);
        let path = watch.path().to_owned();
        tell_of_reload();
        let reload = tokio::task::spawn_blocking(move || {
            running.reload(&mut watch);
            watch
        });
        // A file system that hangs does not keep it from ending.
        let reloaded = tokio::select! {
            reloaded = reload => reloaded,
            () = signals.stop(&mut again) => break,
        };
        watch = match reloaded {
            Ok(watch) => watch,
            Err(error) => {
                events::ReloadFailed { reason: format_args!("{error}") }.log();
                Watch::new(&path)
            }
        };
        tell(&[NotifyState::Ready]);
    }
    tell(&[NotifyState::Stopping]);
    tokio::select! {
        () = app.drain() => Ok(End::Drained),
        () = signals.stop(&mut again) => {
            events::SecondSignal {}.log();
            Ok(End::CutShort)
        }
    }
}

/// Tells systemd, where it is what has started this process.
fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        events::NotifyFailed { reason: format_args!("{error}") }.log();
    }
}

fn tell_of_reload() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}
