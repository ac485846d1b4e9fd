//! Makes connections to the endpoint: over the network, or, in simulations, in memory.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Extensions, HeaderValue, Uri};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector, HttpInfo};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf, duplex};
use tokio::sync::mpsc::UnboundedSender;
use tokio::time::{Instant, timeout};
use tower::util::BoxCloneSyncService;
use tower::{BoxError, ServiceExt, service_fn};

use super::resolver::Resolver;
use crate::config::{Endpoint, UpstreamConfig};

/// Bytes that an in-memory connection buffers each way.
const MEMORY_BUFFER: usize = 64 << 10;
/// TCP keep-alive: idle time before the first probe, time between probes, and unanswered probes that end the connection.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(15), Duration::from_secs(5), 3);
/// How long sent bytes may stay unacknowledged before TCP gives a connection up (RFC 5482). HTTP/1.1 has no ping: without this,
/// only a call's deadline finds a connection that died silently.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);
/// A connection's maximum age is shortened by up to this share, so that connections made together do not end together.
const JITTER: f64 = 0.2;

/// No connection could be made. The pool reports a connection that it lost track of as a connect error too; that error has no
/// `ConnectFailed` among its causes.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(super) struct ConnectFailed(BoxError);

/// Where simulated connections go.
#[derive(Clone)]
pub struct MemoryEndpoint {
    /// Gets the endpoint's side of each connection. Once its receiver is gone, connecting fails.
    pub accept: UnboundedSender<DuplexStream>,
    /// Whether calls use HTTP/2, as if TLS had negotiated it.
    pub http2: bool,
}

/// What a simulated process connects to.
pub struct MemoryNetwork {
    /// The endpoint.
    pub endpoint: MemoryEndpoint,
    /// The identity provider, if there is one.
    pub identity_provider: Option<MemoryEndpoint>,
}

impl<E: Into<MemoryEndpoint>> From<E> for MemoryNetwork {
    fn from(endpoint: E) -> Self {
        Self { endpoint: endpoint.into(), identity_provider: None }
    }
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
    /// HTTP/1.1, with one request at a time on a connection.
    Http1,
}

/// Makes a connection to the authority of a URI.
pub(super) type Connector = BoxCloneSyncService<Uri, TokioIo<Stream>, ConnectFailed>;

/// Connects over TCP, and TLS where the endpoint's scheme asks for it, directly or through an egress proxy's tunnel.
pub(super) fn network(
    config: &UpstreamConfig,
    mut tls: ClientConfig,
    protocols: Protocols,
    resolver: Resolver,
    numbers: ConnectionNumbers,
) -> Connector {
    let dns = resolver.clone();
    let mut tcp = HttpConnector::new_with_resolver(service_fn(move |name| dns.clone().resolve(name)));
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    let (idle, interval, retries) = KEEPALIVE;
    tcp.set_keepalive(Some(idle));
    tcp.set_keepalive_interval(Some(interval));
    tcp.set_keepalive_retries(Some(retries));
    if protocols == Protocols::All {
        tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Not for other routes: an endpoint that reads an upload slowly acknowledges nothing for a while.
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    }
    // Each address of a family gets its share; both families are raced (RFC 8305).
    tcp.set_connect_timeout(Some(config.connect_timeout));
    let secured = match &config.proxy {
        None => BoxCloneSyncService::new(HttpsConnector::from((tcp, tls))),
        Some(proxy) => {
            let tunnel = tunnel(proxy, config.proxy_authorization(), tcp);
            BoxCloneSyncService::new(HttpsConnector::from((tunnel, tls)))
        }
    };
    // TLS, and a proxy's tunnel, have as much time again as TCP.
    let limit = config.connect_timeout * 2;
    BoxCloneSyncService::new(service_fn(move |uri| {
        let connecting = timeout(limit, secured.clone().oneshot(with_port(uri)));
        let (resolver, numbers) = (resolver.clone(), numbers.clone());
        async move {
            let connected = connecting.await.unwrap_or_else(|_| Err("upstream.connect_timeout is over".into()));
            let stream = connected.inspect_err(|_| resolver.failed()).map_err(ConnectFailed)?;
            let connected = stream.connected();
            let remote = extra(&connected).map(|tcp: HttpInfo| (resolver, tcp.remote_addr()));
            Ok(numbers.stream(TokioIo::new(stream), connected.is_negotiated_h2(), remote))
        }
    }))
}

/// Connects in memory.
pub(super) fn memory(endpoint: MemoryEndpoint, protocols: Protocols, numbers: ConnectionNumbers) -> Connector {
    BoxCloneSyncService::new(service_fn(move |_| {
        let (near, far) = duplex(MEMORY_BUFFER);
        let accepted = endpoint.accept.send(far).map_err(|_| ConnectFailed("connection refused".into()));
        let stream = accepted.map(|()| numbers.stream(near, endpoint.http2 && protocols == Protocols::All, None));
        std::future::ready(stream)
    }))
}

/// A tunnel through `proxy`, for either scheme, so that requests are the same with and without a proxy (CONNECT, RFC 9110
/// §9.3.6).
fn tunnel<C>(proxy: &Endpoint, authorization: Option<HeaderValue>, tcp: C) -> Tunnel<C> {
    let tunnel = Tunnel::new(proxy.uri(PathAndQuery::from_static("/")), tcp);
    match authorization {
        Some(value) => tunnel.with_auth(value),
        None => tunnel,
    }
}

/// Names the port of plain HTTP: a tunnel takes a missing one for 443.
fn with_port(uri: Uri) -> Uri {
    let (Some(host), None, Some("http")) = (uri.host(), uri.port(), uri.scheme_str()) else { return uri };
    let authority = format!("{host}:80").parse();
    let mut parts = uri.clone().into_parts();
    parts.authority = authority.ok();
    Uri::from_parts(parts).unwrap_or(uri)
}

/// Numbers the connections of one client in the order in which they are made, and limits their age.
#[derive(Clone)]
pub(super) struct ConnectionNumbers {
    next: Arc<AtomicU64>,
    max_age: Duration,
}

impl ConnectionNumbers {
    pub(super) fn new(max_age: Duration) -> Self {
        Self { next: Arc::default(), max_age }
    }

    /// The number of the next connection.
    pub(super) fn next(&self) -> u64 {
        self.next.load(Ordering::Relaxed)
    }

    fn stream(
        &self,
        transport: impl Transport + 'static,
        is_http2: bool,
        remote: Option<(Resolver, SocketAddr)>,
    ) -> TokioIo<Stream> {
        let info = ConnectionInfo {
            number: self.next.fetch_add(1, Ordering::Relaxed),
            expires: Instant::now() + self.max_age.mul_f64(1.0 - JITTER * rand::random::<f64>()),
            requests: AtomicU64::new(0),
            bytes_read: AtomicU64::new(0),
            remote,
        };
        TokioIo::new(Stream { transport: Box::new(transport), is_http2, info: Arc::new(info) })
    }
}

/// One connection's record; travels with it through the client's pool.
pub(super) struct ConnectionInfo {
    pub(super) number: u64,
    expires: Instant,
    /// Requests sent over it.
    pub(super) requests: AtomicU64,
    bytes_read: AtomicU64,
    /// Over the network: the peer's address, and the resolver that gave it.
    remote: Option<(Resolver, SocketAddr)>,
}

impl ConnectionInfo {
    pub(super) fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Whether it is older than `upstream.max_connection_age`, or leads to an address that the endpoint's name has left.
    pub(super) fn is_outdated(&self) -> bool {
        let has_moved = |(resolver, remote): &(Resolver, SocketAddr)| resolver.has_moved_from(*remote);
        Instant::now() >= self.expires || self.remote.as_ref().is_some_and(has_moved)
    }

    /// A request got no answer over it. An address from which no byte has ever come is tried last from now on.
    pub(super) fn failed(&self) {
        if let (0, Some((resolver, _))) = (self.bytes_read(), &self.remote) {
            resolver.failed();
        }
    }

    fn count_read(&self, bytes: usize) {
        let before = self.bytes_read.fetch_add(bytes as u64, Ordering::Relaxed);
        if let (0, true, Some((resolver, remote))) = (before, bytes > 0, &self.remote) {
            resolver.answered(*remote);
        }
    }
}

/// The extra of this type that a connection's makers have recorded.
pub(super) fn extra<T: Clone + Send + Sync + 'static>(connected: &Connected) -> Option<T> {
    let mut extras = Extensions::new();
    connected.get_extras(&mut extras);
    extras.remove()
}

trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// A connection to the endpoint: the bytes of HTTP, after TLS.
pub(super) struct Stream {
    transport: Box<dyn Transport>,
    is_http2: bool,
    info: Arc<ConnectionInfo>,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(Arc::clone(&self.info));
        if self.is_http2 { connected.negotiated_h2() } else { connected }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.transport).poll_read(cx, buf))?;
        self.info.count_read(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.transport).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}
