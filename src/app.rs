//! The composition root: a [`Config`] builds everything, runs it, and drains it.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use prometheus::Registry;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::access_urls::AccessUrls;
use crate::admin::Admin;
use crate::cache::Cache;
use crate::caller::Callers;
use crate::caller::signature::Keys;
use crate::clock::Clock;
use crate::config::{self, Config};
use crate::fetch::Fetch;
use crate::metrics::Metrics;
use crate::passthrough::{Passthrough, Resign};
use crate::router::Router;
use crate::server;
use crate::upstream::{SetupError, Upstream};

/// Connections that the admin listener serves at a time.
const ADMIN_CONNECTIONS: usize = 64;

/// Between one sweep of dead links and the next.
const SWEEP: Duration = Duration::from_secs(60);

/// Why sidelink does not start.
#[derive(Debug)]
pub enum StartError {
    /// A listener's address cannot be had.
    Bind(SocketAddr, io::Error),
    /// The endpoint's client cannot be built.
    Upstream(SetupError),
    /// The metrics cannot be registered: a fault of sidelink's own.
    Metrics(prometheus::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Bind(address, error) => write!(f, "cannot listen on {address}: {error}"),
            StartError::Upstream(error) => error.fmt(f),
            StartError::Metrics(error) => write!(f, "metrics: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Everything between a client's request and the endpoint, without listeners.
pub struct Proxy {
    /// Answers clients.
    pub router: Arc<Router>,
    /// Answers operators.
    pub admin: Arc<Admin>,
    cache: Arc<Cache>,
    clock: Clock,
    config: Arc<Config>,
    metrics: Arc<Metrics>,
    ready: Arc<AtomicBool>,
}

impl Proxy {
    /// Builds everything, to reach the endpoint over the network. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the endpoint's client cannot be built.
    pub fn new(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::build(config, clock, Upstream::new)
    }

    /// Builds everything, to reach the endpoint in memory: `accept` gets its side of each connection.
    ///
    /// # Errors
    /// If the metrics cannot be registered.
    pub fn in_memory(config: Config, clock: Clock, accept: UnboundedSender<DuplexStream>) -> Result<Self, StartError> {
        Self::build(config, clock, |config, clock, metrics| Ok(Upstream::in_memory(accept, config, clock, metrics)))
    }

    fn build(
        config: Config,
        clock: Clock,
        upstream: impl FnOnce(&config::Upstream, Clock, Arc<Metrics>) -> Result<Upstream, SetupError>,
    ) -> Result<Self, StartError> {
        let config = Arc::new(config);
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).map_err(StartError::Metrics)?);
        metrics.reload.succeeded(clock.now().unix_seconds());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).map_err(StartError::Metrics)?;

        let upstream = upstream(&config.upstream, clock.clone(), Arc::clone(&metrics));
        let upstream = Arc::new(upstream.map_err(StartError::Upstream)?);
        let keys = Arc::new(Keys::new(config.callers.keys.iter().map(|key| &key.pair)));
        let calls_per_caller = config.upstream.calls.div_ceil(2);
        let callers = Callers::new(&config.callers, Arc::clone(&keys), calls_per_caller, rand::random(), clock.clone());
        let callers = Arc::new(callers);
        let cache = Arc::new(Cache::new(&config.cache, &metrics));
        let fetch = Fetch::new(
            Arc::clone(&upstream),
            Arc::clone(&callers),
            Arc::clone(&cache),
            Arc::clone(&metrics),
            Arc::clone(&config),
            clock.clone(),
        );
        let resign = Resign::new(keys, Arc::clone(&upstream), &config.limits, clock.clone(), Arc::clone(&metrics));
        let passthrough = Arc::new(Passthrough::new(Arc::clone(&upstream), resign, config.upstream.idle_timeout));
        let access_urls = AccessUrls::new(
            callers,
            Arc::clone(&cache),
            fetch,
            Arc::clone(&passthrough),
            Arc::clone(&config),
            Arc::clone(&metrics),
            clock.clone(),
        );
        let ready = Arc::new(AtomicBool::new(false));
        let admin =
            Admin::new(registry, Arc::clone(&metrics), Arc::clone(&cache), Arc::clone(&upstream), Arc::clone(&ready));
        let router = Router::new(access_urls, passthrough, upstream, Arc::clone(&metrics), config.log.access);
        Ok(Self { router: Arc::new(router), admin: Arc::new(admin), cache, clock, config, metrics, ready })
    }
}

/// A sidelink that is listening.
pub struct App {
    addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
    ready: Arc<AtomicBool>,
    stop: CancellationToken,
    stop_admin: CancellationToken,
    clients: JoinSet<()>,
    admin: JoinSet<()>,
}

impl App {
    /// Builds everything and begins to serve.
    ///
    /// # Errors
    /// If an address is taken or the endpoint's client cannot be built.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Clock::system()).await
    }

    /// As [`App::start`], on a clock of the caller's.
    ///
    /// # Errors
    /// As there.
    pub async fn start_with(config: Config, clock: Clock) -> Result<Self, StartError> {
        let proxy = Proxy::new(config, clock)?;
        let mut app = Self {
            addresses: Vec::new(),
            admin_address: proxy.config.admin.address,
            ready: Arc::clone(&proxy.ready),
            stop: CancellationToken::new(),
            stop_admin: CancellationToken::new(),
            clients: JoinSet::new(),
            admin: JoinSet::new(),
        };
        app.listen(&proxy).await?;
        app.ready.store(true, Ordering::Release);
        let endpoint = &proxy.config.upstream.endpoint;
        info!(%endpoint, addresses = ?app.addresses, admin = %app.admin_address, "serving");
        Ok(app)
    }

    async fn listen(&mut self, proxy: &Proxy) -> Result<(), StartError> {
        let config = &proxy.config;
        // All are bound before any is served: half a sidelink helps nobody.
        let admin_listener = bind(config.admin.address).await?;
        self.admin_address = admin_listener.local_addr().unwrap_or(config.admin.address);
        let mut listeners = Vec::new();
        for address in &config.listen.address {
            let listener = bind(*address).await?;
            self.addresses.push(listener.local_addr().unwrap_or(*address));
            listeners.push(listener);
        }
        let limits = server::Limits::from(&config.limits);
        let permits = Arc::new(Semaphore::new(config.limits.connections));
        for listener in listeners {
            let router = Arc::clone(&proxy.router);
            let answer = move |request: Request<Incoming>| {
                let router = Arc::clone(&router);
                async move { router.answer(request).await }
            };
            let gauge = proxy.metrics.connections.clone();
            self.clients.spawn(server::run(listener, limits, Arc::clone(&permits), gauge, self.stop.clone(), answer));
        }
        self.admin.spawn(sweep(Arc::clone(&proxy.cache), proxy.clock.clone(), self.stop_admin.clone()));
        let admin = Arc::clone(&proxy.admin);
        let answer = move |request: Request<Incoming>| {
            let response = admin.answer(&request);
            async move { response }
        };
        let permits = Arc::new(Semaphore::new(ADMIN_CONNECTIONS));
        // Admin connections are nobody's clients: they are not in the gauge.
        let uncounted =
            prometheus::IntGauge::new("admin_connections", "not registered").map_err(StartError::Metrics)?;
        self.admin.spawn(server::run(admin_listener, limits, permits, uncounted, self.stop_admin.clone(), answer));
        Ok(())
    }

    /// Where clients connect.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// Stops taking connections, finishes what is in flight within `limits.drain`, and returns. Metrics and probes are
    /// there until the end.
    pub async fn drain(mut self) {
        self.ready.store(false, Ordering::Release);
        info!("draining");
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.stop_admin.cancel();
        while self.admin.join_next().await.is_some() {}
        info!("stopped");
    }
}

/// Forgets dead links now and then, until `stop`.
async fn sweep(cache: Arc<Cache>, clock: Clock, stop: CancellationToken) {
    while tokio::time::timeout(SWEEP, stop.cancelled()).await.is_err() {
        let (cache, clock) = (Arc::clone(&cache), clock.clone());
        // Apart from the answers: a large table takes a while.
        let _ = tokio::task::spawn_blocking(move || cache.sweep(clock.now())).await;
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|error| StartError::Bind(address, error))
}
