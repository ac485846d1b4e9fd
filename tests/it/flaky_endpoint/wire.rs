//! A TCP proxy between sidelink and an endpoint: it delays bytes, goes silent, and loses connections. As an egress proxy it
//! expects a CONNECT first.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::twin;
use crate::support::LOOPBACK;

/// Where the endpoint listens.
#[derive(Clone)]
pub enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What has become of connections: each number counts for those made before it, which were so many.
#[derive(Clone, Copy, Default)]
struct Lost {
    silent: usize,
    reset: usize,
    reset_at_next_use: usize,
}

pub struct Wire {
    pub address: SocketAddr,
    connections: Arc<AtomicUsize>,
    lost: watch::Sender<Lost>,
}

impl Wire {
    pub async fn start(target: Target, delay: Duration) -> Self {
        Self::with(target, delay, false).await
    }

    /// An egress proxy. All its tunnels lead to `target`.
    pub async fn egress(target: SocketAddr) -> Self {
        Self::with(Target::Tcp(target), Duration::ZERO, true).await
    }

    async fn with(target: Target, delay: Duration, is_egress: bool) -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let (address, connections) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let lost = watch::Sender::new(Lost::default());
        let (counter, seen) = (Arc::clone(&connections), lost.subscribe());
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let number = counter.fetch_add(1, Ordering::SeqCst);
                let (target, seen) = (target.clone(), seen.clone());
                tokio::spawn(async move {
                    near.set_nodelay(true).unwrap();
                    if is_egress && !is_connected(&mut near).await {
                        return;
                    }
                    match target {
                        Target::Tcp(address) => {
                            let Ok(far) = TcpStream::connect(address).await else { return };
                            far.set_nodelay(true).unwrap();
                            carry(near, far, number, seen, delay).await;
                        }
                        Target::Unix(path) => {
                            let Ok(far) = UnixStream::connect(path).await else { return };
                            carry(near, far, number, seen, delay).await;
                        }
                    }
                });
            }
        });
        Self { address, connections, lost }
    }

    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The present connections carry nothing more, and stay open.
    pub fn silence(&self) {
        let count = self.connections();
        self.lost.send_modify(|lost| lost.silent = count);
    }

    /// The present connections are reset now.
    pub fn reset(&self) {
        let count = self.connections();
        self.lost.send_modify(|lost| lost.reset = count);
    }

    /// The present connections are reset when the next bytes for the endpoint come.
    pub fn reset_at_next_use(&self) {
        let count = self.connections();
        self.lost.send_modify(|lost| lost.reset_at_next_use = count);
    }
}

/// Reads a CONNECT and says that the tunnel is there.
async fn is_connected(near: &mut TcpStream) -> bool {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let Ok(byte) = near.read_u8().await else { return false };
        head.push(byte);
    }
    head.starts_with(b"CONNECT ") && near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.is_ok()
}

async fn carry(
    near: TcpStream,
    far: impl AsyncRead + AsyncWrite,
    number: usize,
    mut lost: watch::Receiver<Lost>,
    delay: Duration,
) {
    let (near, twin) = twin(near);
    let (near_read, near_write) = split(near);
    let (far_read, far_write) = split(far);
    let (seen_there, seen_back) = (lost.clone(), lost.clone());
    let there = pump(near_read, far_write, delay, move || {
        let lost = *seen_there.borrow();
        if lost.reset_at_next_use > number { Fate::Reset } else { fate(&lost, number) }
    });
    let back = pump(far_read, near_write, delay, move || fate(&seen_back.borrow(), number));
    let is_reset = tokio::select! {
        carried = async { tokio::try_join!(there, back) } => carried.is_err(),
        _ = lost.wait_for(|lost| lost.reset > number) => true,
    };
    if is_reset {
        let _ = twin.set_zero_linger();
    }
}

enum Fate {
    Carried,
    Swallowed,
    Reset,
}

fn fate(lost: &Lost, number: usize) -> Fate {
    if lost.silent > number { Fate::Swallowed } else { Fate::Carried }
}

/// The connection has to be reset.
struct Reset;

/// Carries one direction to its end.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    delay: Duration,
    fate: impl Fn() -> Fate,
) -> Result<(), Reset> {
    let (send, mut queue) = unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            match fate() {
                Fate::Carried if count == 0 => return Ok(()),
                // Its end is not passed on either.
                Fate::Swallowed if count == 0 => std::future::pending().await,
                Fate::Reset => return Err(Reset),
                Fate::Swallowed => {}
                Fate::Carried => {
                    let _ = send.send((Instant::now() + delay, buffer[..count].to_vec()));
                }
            }
        }
    };
    let write = async {
        while let Some((due, bytes)) = queue.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                return Ok(());
            }
        }
        let _ = to.shutdown().await;
        Ok(())
    };
    tokio::try_join!(read, write).map(|_| ())
}
