//! How connections to the endpoint are made: over the network, or, in simulations, in memory.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use tokio::io::{DuplexStream, duplex};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tower_service::Service;

use crate::config;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes that an in-memory connection buffers each way.
const MEMORY_BUFFER: usize = 64 << 10;

/// Makes connections.
#[derive(Clone)]
pub(super) enum Connector {
    /// TCP, a proxy's tunnel if there is one, and TLS where the endpoint's scheme asks for it; all together within the
    /// duration.
    Network(Box<Network>, Duration),
    /// Hands the endpoint's side of each connection to a simulation. Once that is gone, connecting fails.
    Memory(UnboundedSender<DuplexStream>),
}

/// Over the network, straight to the endpoint or through an egress proxy.
#[derive(Clone)]
pub(super) enum Network {
    Direct(HttpsConnector<HttpConnector>),
    Tunnel(HttpsConnector<Tunnel<HttpConnector>>),
}

/// A tunnel through `proxy`: for either scheme, so that what is sent stays the same with and
/// without a proxy (CONNECT, RFC 9110 §9.3.6).
pub(super) fn tunnel(proxy: &config::Proxy, tcp: HttpConnector) -> Tunnel<HttpConnector> {
    let tunnel = Tunnel::new(proxy.uri(), tcp);
    match proxy.authorization() {
        Some(value) => tunnel.with_auth(value),
        None => tunnel,
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        match self {
            Connector::Network(network, _) => match network.as_mut() {
                Network::Direct(connector) => connector.poll_ready(cx),
                Network::Tunnel(connector) => connector.poll_ready(cx),
            },
            Connector::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        match self {
            Connector::Network(network, timeout) => {
                let connecting = match network.as_mut() {
                    Network::Direct(connector) => connector.call(uri),
                    Network::Tunnel(connector) => connector.call(with_port(uri)),
                };
                let connecting = tokio::time::timeout(*timeout, connecting);
                Box::pin(async move {
                    match connecting.await {
                        Ok(stream) => Ok(Stream::Network(Box::new(stream?))),
                        Err(_) => Err("upstream.connect_timeout is over".into()),
                    }
                })
            }
            Connector::Memory(accept) => {
                let (near, far) = duplex(MEMORY_BUFFER);
                let accepted = accept.send(far).map_err(|_| "connection refused".into());
                Box::pin(async move { accepted.map(|()| Stream::Memory(TokioIo::new(near))) })
            }
        }
    }
}

/// A tunnel needs its target's port, and takes 443 for granted.
fn with_port(uri: Uri) -> Uri {
    let (Some(host), None, Some("http")) = (uri.host(), uri.port(), uri.scheme_str()) else { return uri };
    let authority = format!("{host}:80").parse();
    let mut parts = uri.clone().into_parts();
    parts.authority = authority.ok();
    Uri::from_parts(parts).unwrap_or(uri)
}

/// A connection to the endpoint.
pub(super) enum Stream {
    Network(Box<MaybeHttpsStream<TokioIo<TcpStream>>>),
    Memory(TokioIo<DuplexStream>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        match self {
            Stream::Network(stream) => stream.connected(),
            Stream::Memory(_) => Connected::new(),
        }
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Network(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Stream::Network(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Network(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Memory(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Stream::Network(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
