//! How connections to the endpoint are made: over the network, or, in simulations, in memory.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;
use tower_service::Service;

use super::resolver::Resolver;
use crate::config;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Bytes that an in-memory connection buffers each way.
const MEMORY_BUFFER: usize = 64 << 10;
/// How long an idle peer may be silent before TCP probes it, between probes, and how many may go unanswered.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// How long bytes that were sent may stay unacknowledged before TCP gives a connection up (RFC 5482). HTTP/1.1 has no ping:
/// without this, a connection that died silently is found by nothing but a call's deadline.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// A connection's age is shortened by up to this share, so that those made together do not end together.
const JITTER: f64 = 0.2;

/// No connection could be made. The pool reports it in the same way where it only lost track of a connection.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct ConnectFailed(BoxError);

/// Where simulated connections go: `accept` gets the endpoint's side of each.
#[derive(Clone)]
pub struct MemoryEndpoint {
    /// Gets the endpoint's side of each connection. Once its receiver is gone, connecting fails.
    pub accept: UnboundedSender<DuplexStream>,
    /// Whether calls use HTTP/2, as if TLS had negotiated it.
    pub http2: bool,
}

impl From<UnboundedSender<DuplexStream>> for MemoryEndpoint {
    fn from(accept: UnboundedSender<DuplexStream>) -> Self {
        Self { accept, http2: false }
    }
}

/// Which protocols a connection may use.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocols {
    /// HTTP/2 where TLS negotiates it, else HTTP/1.1. For calls: short requests whose bytes TCP must get acknowledged soon.
    All,
    /// HTTP/1.1, which one request at a time has to itself.
    Http1,
}

/// Makes connections, numbered in the order in which they were made.
#[derive(Clone)]
pub(super) struct Connector {
    route: Route,
    protocols: Protocols,
    max_age: Duration,
    /// Number of the next connection. Shared by all connectors of one client.
    next: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Route {
    /// TCP and TLS where the endpoint's scheme asks for it, straight or through an egress proxy's tunnel.
    Network {
        network: Box<Network>,
        timeout: Duration,
        resolver: Resolver,
    },
    Memory(MemoryEndpoint),
}

#[derive(Clone)]
enum Network {
    Direct(HttpsConnector<HttpConnector<Resolver>>),
    Tunnel(HttpsConnector<Tunnel<HttpConnector<Resolver>>>),
}

impl Connector {
    /// Over the network.
    pub(super) fn network(
        config: &config::Upstream,
        tls: ClientConfig,
        protocols: Protocols,
        resolver: &Resolver,
        next: &Arc<AtomicU64>,
    ) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver.clone());
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        let (idle, interval, retries) = KEEPALIVE;
        tcp.set_keepalive(Some(idle));
        tcp.set_keepalive_interval(Some(interval));
        tcp.set_keepalive_retries(Some(retries));
        if protocols == Protocols::All {
            // Not for other routes: an endpoint that reads an upload slowly acknowledges nothing for a while.
            tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        }
        // Each address of a family gets its share; both families are raced (RFC 8305).
        tcp.set_connect_timeout(Some(config.connect_timeout));
        let network = match &config.proxy {
            None => Network::Direct(secured(tcp, tls, protocols)),
            Some(proxy) => Network::Tunnel(secured(tunnel(proxy, tcp), tls, protocols)),
        };
        // TLS, and a proxy's tunnel, have as much time again as TCP.
        let timeout = config.connect_timeout * 2;
        let route = Route::Network { network: Box::new(network), timeout, resolver: resolver.clone() };
        Self { route, protocols, max_age: config.max_connection_age, next: Arc::clone(next) }
    }

    /// In memory.
    pub(super) fn memory(
        endpoint: MemoryEndpoint,
        config: &config::Upstream,
        protocols: Protocols,
        next: &Arc<AtomicU64>,
    ) -> Self {
        let max_age = config.max_connection_age;
        Self { route: Route::Memory(endpoint), protocols, max_age, next: Arc::clone(next) }
    }

    /// The number that the next connection will have.
    pub(super) fn next_number(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn info(&self, remote: Option<(Resolver, SocketAddr)>) -> ConnectionInfo {
        ConnectionInfo(Arc::new(Info {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            expires: Instant::now() + self.max_age.mul_f64(1.0 - JITTER * rand::random::<f64>()),
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            remote,
        }))
    }
}

fn secured<C>(connector: C, tls: ClientConfig, protocols: Protocols) -> HttpsConnector<C> {
    let secured = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    match protocols {
        Protocols::All => secured.enable_all_versions().wrap_connector(connector),
        Protocols::Http1 => secured.enable_http1().wrap_connector(connector),
    }
}

/// A tunnel through `proxy`: for either scheme, so that what is sent stays the same with and
/// without a proxy (CONNECT, RFC 9110 §9.3.6).
fn tunnel<C>(proxy: &config::Proxy, tcp: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri(), tcp);
    match proxy.authorization() {
        Some(value) => tunnel.with_auth(value),
        None => tunnel,
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = ConnectFailed;
    type Future = Pin<Box<dyn Future<Output = Result<TokioIo<Stream>, ConnectFailed>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), ConnectFailed>> {
        match &mut self.route {
            Route::Network { network, .. } => match network.as_mut() {
                Network::Direct(connector) => connector.poll_ready(cx).map_err(ConnectFailed),
                Network::Tunnel(connector) => connector.poll_ready(cx).map_err(ConnectFailed),
            },
            Route::Memory(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        match &mut self.route {
            Route::Network { network, timeout, resolver } => {
                let connecting = match network.as_mut() {
                    Network::Direct(connector) => connector.call(uri),
                    Network::Tunnel(connector) => connector.call(with_port(uri)),
                };
                let (connecting, resolver) = (tokio::time::timeout(*timeout, connecting), resolver.clone());
                Box::pin(async move {
                    let connected = match connecting.await {
                        Ok(connected) => connected,
                        Err(_) => Err("upstream.connect_timeout is over".into()),
                    };
                    let stream = connected.inspect_err(|_| resolver.failed()).map_err(ConnectFailed)?;
                    let remote = match &stream {
                        MaybeHttpsStream::Http(tcp) => tcp.inner().peer_addr(),
                        MaybeHttpsStream::Https(tls) => tls.inner().get_ref().0.inner().inner().peer_addr(),
                    };
                    let info = connector.info(remote.ok().map(|remote| (resolver, remote)));
                    let transport = Transport::Network(TokioIo::new(Box::new(stream)));
                    Ok(TokioIo::new(Stream { transport, info }))
                })
            }
            Route::Memory(MemoryEndpoint { accept, http2 }) => {
                let (near, far) = duplex(MEMORY_BUFFER);
                let accepted = accept.send(far).map_err(|_| ConnectFailed("connection refused".into()));
                let http2 = *http2 && self.protocols == Protocols::All;
                Box::pin(async move {
                    accepted.map(|()| {
                        let transport = Transport::Memory { stream: near, http2 };
                        TokioIo::new(Stream { transport, info: connector.info(None) })
                    })
                })
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

/// What is known of one connection; travels with it through the client's pool.
#[derive(Clone)]
pub(super) struct ConnectionInfo(Arc<Info>);

struct Info {
    number: u64,
    expires: Instant,
    requests: AtomicU64,
    bytes_read: AtomicU64,
    /// Over the network: where it leads, and who has resolved that.
    remote: Option<(Resolver, SocketAddr)>,
}

impl ConnectionInfo {
    /// Connections are numbered in the order in which they were made.
    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    /// Counts a request that is sent over it.
    pub(super) fn add_request(&self) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// How many requests have been sent over it.
    pub(super) fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// How many bytes have come over it.
    pub(super) fn bytes_read(&self) -> u64 {
        self.0.bytes_read.load(Ordering::Relaxed)
    }

    /// Whether it is older than `upstream.max_connection_age`, or leads to an address that the endpoint's name has left.
    pub(super) fn is_outdated(&self) -> bool {
        let has_moved = |(resolver, remote): &(Resolver, SocketAddr)| resolver.has_moved_from(*remote);
        Instant::now() >= self.0.expires || self.0.remote.as_ref().is_some_and(has_moved)
    }

    /// A request got no answer over it. If no byte has ever come, its address is no good one.
    pub(super) fn failed(&self) {
        if let (0, Some((resolver, _))) = (self.bytes_read(), &self.0.remote) {
            resolver.failed();
        }
    }

    fn count_read(&self, bytes: usize) {
        let before = self.0.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
        if let (0, true, Some((resolver, remote))) = (before, bytes > 0, &self.0.remote) {
            resolver.answered(*remote);
        }
    }
}

/// A connection to the endpoint: the bytes of HTTP, after TLS.
pub(super) struct Stream {
    transport: Transport,
    info: ConnectionInfo,
}

enum Transport {
    Network(TokioIo<Box<MaybeHttpsStream<TokioIo<TcpStream>>>>),
    Memory { stream: DuplexStream, http2: bool },
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = match &self.transport {
            Transport::Network(stream) => stream.inner().connected(),
            Transport::Memory { http2: true, .. } => Connected::new().negotiated_h2(),
            Transport::Memory { http2: false, .. } => Connected::new(),
        };
        connected.extra(self.info.clone())
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        ready!(match &mut this.transport {
            Transport::Network(stream) => Pin::new(stream).poll_read(cx, buf),
            Transport::Memory { stream, .. } => Pin::new(stream).poll_read(cx, buf),
        })?;
        this.info.count_read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().transport {
            Transport::Network(stream) => Pin::new(stream).poll_write(cx, buf),
            Transport::Memory { stream, .. } => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Network(stream) => Pin::new(stream).poll_flush(cx),
            Transport::Memory { stream, .. } => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().transport {
            Transport::Network(stream) => Pin::new(stream).poll_shutdown(cx),
            Transport::Memory { stream, .. } => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
