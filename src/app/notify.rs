//! Messages to systemd, where it has started this process (sd_notify(3)).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::{MissedTickBehavior, interval};

use crate::telemetry::log::events;

/// Tells the service manager.
pub(super) fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = send(states) {
        events::NotifyFailed { reason: format_args!("{error}") }.log();
    }
}

/// sd-notify's own function knows no abstract addresses, which begin with `@`.
fn send(states: &[NotifyState<'_>]) -> io::Result<()> {
    let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let socket = UnixDatagram::unbound()?;
    // A manager that is stuck stops no thread here.
    socket.set_nonblocking(true)?;
    match address.as_bytes() {
        [b'@', name @ ..] => socket.connect_addr(&SocketAddr::from_abstract_name(name)?)?,
        _ => socket.connect(&address)?,
    }
    let message: Vec<String> = states.iter().map(ToString::to_string).collect();
    socket.send(message.join("\n").as_bytes()).map(drop)
}

/// Tells the service manager, at twice the pace that it asks for (`WatchdogSec=`), that the runtime runs tasks. Never returns if
/// it asks.
pub(super) async fn feed_watchdog() {
    let Some(timeout) = sd_notify::watchdog_enabled().filter(|timeout| !timeout.is_zero()) else { return };
    let mut ticks = interval((timeout / 2).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        notify(&[NotifyState::Watchdog]);
    }
}
