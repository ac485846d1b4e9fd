//! TCP and Unix sockets.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net;
use std::os::unix;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_util::either::Either;

use super::Peer;
use crate::config::ListenAddress;

/// Connections that the system queues until they are accepted, `net.core.somaxconn` at most. Where the queue is full, it may
/// reset a connection that its client believes to be established: a burst of clients needs room.
pub(super) const QUEUE: u32 = 4096;

/// A client's connection, before TLS.
pub(super) type PlainStream = Either<TcpStream, UnixStream>;

/// Accepts connections.
pub enum Listener {
    /// From the network.
    Tcp(TcpListener),
    /// From this machine. The socket's file goes with it, unless the service manager has made it.
    Unix(UnixListener, Option<SocketFile>),
}

/// A socket that a service manager has bound.
#[derive(Debug)]
pub enum PassedSocket {
    /// For the network.
    Tcp(net::TcpListener),
    /// For this machine.
    Unix(unix::net::UnixListener),
}

impl Listener {
    /// Listens at `address`. A Unix socket's file gets the permission bits `unix_mode`, and replaces one of a process that
    /// has ended. With `reuse_port` several processes of a user may listen at an address, and the system distributes the clients.
    ///
    /// # Errors
    /// Another process listens there, or the file is no socket.
    pub async fn bind(address: &ListenAddress, unix_mode: u32, reuse_port: bool) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                // So that the next process can use the port at once.
                socket.set_reuseaddr(true)?;
                socket.set_reuseport(reuse_port)?;
                socket.bind(*address)?;
                socket.listen(QUEUE).map(Listener::Tcp)
            }
            ListenAddress::Unix(path) => {
                check_free(path).await?;
                let (listener, file) = bind_unix(path, unix_mode)?;
                Ok(Listener::Unix(listener, Some(file)))
            }
        }
    }

    /// Takes over a socket. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// It does not listen.
    pub fn passed(socket: PassedSocket) -> io::Result<Self> {
        match socket {
            PassedSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                TcpListener::from_std(listener).map(Listener::Tcp)
            }
            PassedSocket::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Ok(Listener::Unix(UnixListener::from_std(listener)?, None))
            }
        }
    }

    /// Where it listens, if that has a name.
    pub fn address(&self) -> Option<ListenAddress> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok().map(ListenAddress::Tcp),
            Listener::Unix(_, Some(file)) => Some(ListenAddress::Unix(file.path.clone())),
            Listener::Unix(listener, None) => {
                listener.local_addr().ok()?.as_pathname().map(|path| ListenAddress::Unix(path.to_owned()))
            }
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(PlainStream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // An optimization: without it, answers are late, and no less right.
                let _ = stream.set_nodelay(true);
                Ok((Either::Left(stream), Peer::Tcp(address)))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Either::Right(stream), Peer::Local))
            }
        }
    }
}

/// Fails where a socket at `path` would replace anything but a socket on which nobody listens.
async fn check_free(path: &Path) -> io::Result<()> {
    // Does not follow a link: its target is not sidelink's to replace.
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "what has that name is no socket; it is left alone"));
    }
    match UnixStream::connect(path).await {
        // Nobody listens. It is replaced in one step, by renaming.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
        // Its queue is full, or this user may not connect: somebody listens.
        Err(error) => Err(error),
    }
}

/// A socket that has its permissions before it has its name.
fn bind_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let unnamed = path.with_file_name(format!(".{:07x}", rand::random::<u32>() >> 4));
    let listener = UnixListener::bind(&unnamed)?;
    let named = std::fs::set_permissions(&unnamed, Permissions::from_mode(mode))
        .and_then(|()| std::fs::symlink_metadata(&unnamed))
        .and_then(|file| std::fs::rename(&unnamed, path).map(|()| (file.dev(), file.ino())));
    match named {
        Ok(id) => Ok((listener, SocketFile { path: path.to_owned(), id })),
        Err(error) => {
            let _ = std::fs::remove_file(&unnamed);
            Err(error)
        }
    }
}

/// A Unix socket's file. Dropping this removes it.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Unless another process has replaced it.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
