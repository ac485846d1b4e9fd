//! The life of a process: it starts, reloads on SIGHUP or when its files change, and drains on SIGTERM or SIGINT.

use std::io;
use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{App, StartError, Watch, log_warnings};
use crate::config::Config;
use crate::telemetry::log::events;

/// How the life of a process has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// What was in flight is finished, or `limits.drain` was over.
    Drained,
    /// A second signal came.
    CutShort,
}

/// The signals that have an effect. Their handlers are installed first: to the first process of a container, a signal without
/// a handler does nothing.
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

    async fn next(&mut self) -> Trigger {
        tokio::select! {
            _ = self.terminate.recv() => Trigger::Stop,
            _ = self.interrupt.recv() => Trigger::Stop,
            _ = self.hang_up.recv() => Trigger::Reload,
        }
    }

    /// Waits for a signal to stop. Sets `reload` where one to reload came before.
    async fn stop(&mut self, reload: &mut bool) {
        while self.next().await != Trigger::Stop {
            *reload = true;
        }
    }
}

/// What a signal or a changed file causes.
#[derive(PartialEq, Eq)]
enum Trigger {
    /// SIGTERM, SIGINT.
    Stop,
    /// SIGHUP.
    Reload,
}

/// Serves as `config` says, which `watch` has loaded, until SIGTERM or SIGINT. SIGHUP, and a change of a file that is
/// watched, load it anew.
pub async fn serve(config: Config, mut watch: Watch) -> Result<End, StartError> {
    log_warnings(&config.warnings, &watch.path().display().to_string());
    let mut signals = Signals::new().map_err(StartError::Signals)?;
    let app = App::start(config).await?;
    notify(&[NotifyState::Ready]);
    // A SIGHUP that comes during a reload asks for another: the file may have changed after it was read.
    let mut again = false;
    loop {
        let command = tokio::select! {
            command = signals.next(), if !again => command,
            () = watch.changed(), if !again => Trigger::Reload,
            else => Trigger::Reload,
        };
        if command == Trigger::Stop {
            break;
        }
        again = false;
        let running = Arc::clone(&app.running);
        let path = watch.path().to_owned();
        let now = NotifyState::monotonic_usec_now().ok();
        notify(&[NotifyState::Reloading].into_iter().chain(now).collect::<Vec<_>>());
        let reload = tokio::task::spawn_blocking(move || {
            running.reload(&mut watch);
            watch
        });
        // A file system that hangs does not delay the end.
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
        notify(&[NotifyState::Ready]);
    }
    notify(&[NotifyState::Stopping]);
    tokio::select! {
        () = app.drain() => Ok(End::Drained),
        () = signals.stop(&mut again) => {
            events::SecondSignal {}.log();
            Ok(End::CutShort)
        }
    }
}

/// Tells systemd, where it has started this process.
fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        events::NotifyFailed { reason: format_args!("{error}") }.log();
    }
}
