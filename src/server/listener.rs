//! TCP and Unix sockets, and TLS on the former.

use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UnixListener, UnixStream};
use tokio_rustls::server::TlsStream;

use super::Peer;
use super::protocol::Protocol;
use crate::config::ListenAddress;

/// Connections that the system keeps until they are accepted, if it does so many (`net.core.somaxconn`). Where there is no room
/// left, it may reset one whose client takes it for made: a burst of clients needs some.
pub(super) const QUEUE: u32 = 4096;

/// Accepts connections.
pub enum Listener {
    /// From the network.
    Tcp(TcpListener),
    /// From this machine. The socket's file goes with it.
    Unix(UnixListener, SocketFile),
}

impl Listener {
    /// Listens at `address`. A Unix socket's file gets the permission bits `unix_mode`; one that is left over from a process
    /// that is gone makes room.
    ///
    /// # Errors
    /// If it cannot be had: someone listens there, or what has that name is no socket.
    pub async fn bind(address: &ListenAddress, unix_mode: u32) -> io::Result<Self> {
        match address {
            ListenAddress::Tcp(address) => {
                let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
                // The system lets the next process have a port at once.
                socket.set_reuseaddr(true)?;
                socket.bind(*address)?;
                socket.listen(QUEUE).map(Listener::Tcp)
            }
            ListenAddress::Unix(path) => {
                make_room(path).await?;
                let (listener, file) = bind_unix(path, unix_mode)?;
                Ok(Listener::Unix(listener, file))
            }
        }
    }

    /// Where in the network.
    pub fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(..) => None,
        }
    }

    pub(super) async fn accept(&self) -> io::Result<(Stream, Peer)> {
        match self {
            Listener::Tcp(listener) => {
                let (stream, address) = listener.accept().await?;
                // An optimisation: without it, answers are as right, only later.
                let _ = stream.set_nodelay(true);
                Ok((Stream::Tcp(stream), Peer::Tcp(address)))
            }
            Listener::Unix(listener, _) => {
                let (stream, _) = listener.accept().await?;
                Ok((Stream::Unix(stream), Peer::Local))
            }
        }
    }
}

/// Sees that nothing is lost by putting a socket at `path`.
async fn make_room(path: &Path) -> io::Result<()> {
    // Of the link itself: where it leads is not for sidelink to replace.
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.file_type().is_socket() {
        return Err(io::Error::new(ErrorKind::AlreadyExists, "what has that name is no socket; it is left alone"));
    }
    match UnixStream::connect(path).await {
        // Nobody has it open any more. It is replaced in one step, by renaming.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::NotFound) => Ok(()),
        Ok(_) => Err(io::Error::new(ErrorKind::AddrInUse, "another process listens there")),
        // Its queue is full, or it is not for this user to connect to: someone's it is.
        Err(error) => Err(error),
    }
}

/// A socket that has its permissions by the time it has its name.
fn bind_unix(path: &Path, mode: u32) -> io::Result<(UnixListener, SocketFile)> {
    let made = path.with_file_name(format!(".{:07x}", rand::random::<u32>() >> 4));
    let listener = UnixListener::bind(&made)?;
    let named = std::fs::set_permissions(&made, Permissions::from_mode(mode))
        .and_then(|()| std::fs::symlink_metadata(&made))
        .and_then(|file| std::fs::rename(&made, path).map(|()| (file.dev(), file.ino())));
    match named {
        Ok(id) => Ok((listener, SocketFile { path: path.to_owned(), id })),
        Err(error) => {
            let _ = std::fs::remove_file(&made);
            Err(error)
        }
    }
}

/// A Unix socket's file, which is removed when this is dropped.
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode.
    id: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Unless another process has put its own there meanwhile.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.id) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// A client's connection.
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    pub(super) fn protocol(&self) -> Protocol {
        match self {
            Stream::Tcp(_) | Stream::Unix(_) => Protocol::Any,
            Stream::Tls(stream) => Protocol::negotiated(stream.get_ref().1.alpn_protocol()),
        }
    }
}

/// `$call` on whichever stream it is.
macro_rules! forward {
    ($stream:expr, $name:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($name) => $call,
            Stream::Unix($name) => $call,
            Stream::Tls($name) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        forward!(self.get_mut(), stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        forward!(self.get_mut(), stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        forward!(self.get_mut(), stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        forward!(self, stream => stream.is_write_vectored())
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.get_mut(), stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        forward!(self.get_mut(), stream => Pin::new(stream).poll_shutdown(cx))
    }
}
