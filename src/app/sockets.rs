//! Sockets that a service manager has bound, and passes to this process (sd_listen_fds(3)). They outlast the process: clients that
//! connect while the next one starts wait in their queues.

use std::env;
use std::io;

use listenfd::ListenFd;

use crate::server::{Listener, PassedSocket};

/// The name (`FileDescriptorName=`, systemd.socket(5)) of the socket for operators. All others are for clients.
const ADMIN: &str = "admin";

/// The sockets that were passed.
#[derive(Default)]
pub struct PassedSockets {
    clients: Vec<PassedSocket>,
    operators: Option<PassedSocket>,
}

impl PassedSockets {
    /// Takes the sockets that were passed to this process; none where it was started without. To be called before there are threads,
    /// since it removes the environment variables.
    ///
    /// # Errors
    /// One of them is no socket for streams, over TCP or a Unix socket, or two are for operators.
    pub fn take() -> io::Result<Self> {
        let names = env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = Self::default();
        for index in 0..passed.len() {
            let socket = match passed.take_tcp_listener(index) {
                Ok(socket) => socket.map(PassedSocket::Tcp),
                Err(_) => passed.take_unix_listener(index)?.map(PassedSocket::Unix),
            };
            if names.next() != Some(ADMIN) {
                sockets.clients.extend(socket);
            } else if sockets.operators.is_some() {
                return Err(io::Error::other("two of them are named admin"));
            } else {
                sockets.operators = socket;
            }
        }
        Ok(sockets)
    }

    /// The listeners for clients and for operators. Must be called within a tokio runtime.
    pub(super) fn listeners(self) -> io::Result<(Vec<Listener>, Option<Listener>)> {
        let clients = self.clients.into_iter().map(Listener::passed).collect::<io::Result<_>>()?;
        Ok((clients, self.operators.map(Listener::passed).transpose()?))
    }
}
