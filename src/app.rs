//! The composition root: a [`Config`] builds everything (`proxy`), runs it, and drains it.

mod proxy;

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::Config;
use crate::server::{self, Peer};
use crate::upstream::SetupError;

pub use proxy::{Assembly, Proxy};

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

/// A sidelink that is listening.
pub struct App {
    addresses: Vec<SocketAddr>,
    admin_address: SocketAddr,
    proxy: Arc<Proxy>,
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
        let proxy = Arc::new(Proxy::new(config, clock)?);
        let config = Arc::clone(&proxy.current().config);
        let mut app = Self {
            addresses: Vec::new(),
            admin_address: config.admin.address,
            proxy,
            stop: CancellationToken::new(),
            stop_admin: CancellationToken::new(),
            clients: JoinSet::new(),
            admin: JoinSet::new(),
        };
        app.listen(&config).await?;
        app.proxy.lasting().ready.store(true, Ordering::Release);
        let endpoint = &config.upstream.endpoint;
        info!(%endpoint, addresses = ?app.addresses, admin = %app.admin_address, "serving");
        Ok(app)
    }

    async fn listen(&mut self, config: &Config) -> Result<(), StartError> {
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
            let proxy = Arc::clone(&self.proxy);
            let answer = move |_: Peer, request: Request<Incoming>| {
                let current = proxy.current();
                async move { current.router.answer(request).await }
            };
            let gauge = self.proxy.lasting().metrics.connections.clone();
            self.clients.spawn(server::run(listener, limits, Arc::clone(&permits), gauge, self.stop.clone(), answer));
        }
        let lasting = self.proxy.lasting();
        self.admin.spawn(sweep(Arc::clone(&lasting.cache), lasting.clock.clone(), self.stop_admin.clone()));
        let proxy = Arc::clone(&self.proxy);
        let answer = move |peer: Peer, request: Request<Incoming>| {
            let current = proxy.current();
            async move { current.admin.answer(peer, request).await }
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

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.proxy.current().config)
    }

    /// Puts `config` in force, but for listeners and limits of connections, which stay as they are.
    ///
    /// # Errors
    /// As [`Proxy::reload`].
    pub fn reload(&self, config: Config) -> Result<(), SetupError> {
        self.proxy.reload(config)
    }

    /// Stops taking connections, finishes what is in flight within `limits.drain`, and returns. Metrics and probes are
    /// there until the end.
    pub async fn drain(mut self) {
        self.proxy.lasting().ready.store(false, Ordering::Release);
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
