//! The composition root: a [`Config`] builds everything (`proxy`), runs it (`serve`), puts another in its place (`watch`),
//! and drains it.

pub mod core_dumps;
mod proxy;
mod serve;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Request;
use hyper::body::Incoming;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::admin::{self, History};
use crate::cache::Cache;
use crate::clock::Clock;
use crate::config::{Config, ListenAddress, Tls, TlsError, Warning};
use crate::server::{self, Listener, ListenerState, Peer};
use crate::telemetry::log::{self, events};
use crate::upstream::SetupError;

pub use proxy::{Generation, Proxy};
pub use serve::{End, serve};
pub use watch::Watch;

/// Connections that the admin listener serves at a time.
const ADMIN_CONNECTIONS: usize = 64;

/// The longest that an operator's connection stays without a byte.
const ADMIN_IDLE: Duration = Duration::from_secs(5);

/// The longest that answers to operators hold up the end.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);

/// Between one sweep of dead links and the next.
const SWEEP: Duration = Duration::from_secs(60);

/// Why sidelink does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address cannot be had; the key that names it comes first.
    #[error("{0}: cannot listen on {1}: {2}{remedy}", remedy = remedy(.2))]
    Bind(&'static str, ListenAddress, io::Error),
    /// The endpoint's client cannot be built.
    #[error(transparent)]
    Upstream(SetupError),
    /// The listeners' certificate cannot be used.
    #[error(transparent)]
    Tls(TlsError),
    /// Signals cannot be heard.
    #[error("signals: {0}")]
    Signals(io::Error),
    /// The metrics cannot be registered: a fault of sidelink's own.
    #[error("metrics: {0}")]
    Metrics(prometheus::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    let taken = error.kind() == io::ErrorKind::AddrInUse;
    if taken { "; end what listens there, or name another address" } else { "" }
}

/// Why a configuration cannot be put in force.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The endpoint's client cannot be built.
    #[error(transparent)]
    Upstream(SetupError),
    /// The listeners' certificate cannot be used.
    #[error(transparent)]
    Tls(TlsError),
}

/// A sidelink that is listening.
pub struct App {
    addresses: Vec<ListenAddress>,
    admin_address: SocketAddr,
    running: Arc<Running>,
    stop: CancellationToken,
    stop_admin: CancellationToken,
    clients: JoinSet<()>,
    admin: JoinSet<()>,
}

/// What a configuration can be put in force in.
struct Running {
    proxy: Proxy,
    clients: Arc<ListenerState>,
    operators: Arc<ListenerState>,
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
        let config = Arc::clone(&proxy.current().config);
        let limits = server::Limits::from(&config.limits);
        let (stop, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let open = proxy.lasting().metrics.connections.clone();
        let clients = ListenerState::new(limits, config.limits.connections, open, stop.clone());
        // Admin connections are nobody's clients: they are not in the gauge.
        let uncounted =
            prometheus::IntGauge::new("admin_connections", "not registered").map_err(StartError::Metrics)?;
        let operators = ListenerState::new(operators_limits(limits), ADMIN_CONNECTIONS, uncounted, stop_admin.clone());
        let operators = operators.without_linger();
        let mut app = Self {
            addresses: Vec::new(),
            admin_address: config.admin.address,
            running: Arc::new(Running { proxy, clients: Arc::new(clients), operators: Arc::new(operators) }),
            stop,
            stop_admin,
            clients: JoinSet::new(),
            admin: JoinSet::new(),
        };
        app.listen(&config).await?;
        app.running.proxy.lasting().ready.store(true, Ordering::Release);
        let endpoint = &config.upstream.endpoint;
        let addresses: Vec<String> = app.addresses.iter().map(ToString::to_string).collect();
        let addresses = addresses.join(", ");
        events::Serving {
            endpoint: format_args!("{endpoint}"),
            addresses: &addresses,
            tls: config.listen.tls.is_some(),
            admin: format_args!("{}", app.admin_address),
        }
        .log();
        Ok(app)
    }

    async fn listen(&mut self, config: &Config) -> Result<(), StartError> {
        // All are bound before any is served: half a sidelink helps nobody.
        let admin_listener = bind("admin.address", &config.admin.address.into(), 0).await?;
        self.admin_address = admin_listener.local_addr().unwrap_or(config.admin.address);
        let mut listeners = Vec::new();
        for address in &config.listen.address {
            let listener = bind("listen.address", address, config.listen.unix_mode).await?;
            self.addresses.push(listener.local_addr().map_or_else(|| address.clone(), ListenAddress::Tcp));
            listeners.push(listener);
        }
        if let Some(tls) = &config.listen.tls {
            self.running.clients.secure(tls.read().map_err(StartError::Tls)?);
        }
        for listener in listeners {
            let running = Arc::clone(&self.running);
            let answer = move |_: Peer, request: Request<Incoming>| {
                let current = running.proxy.current();
                async move { current.router.answer(request).await }
            };
            self.clients.spawn(server::run(listener, Arc::clone(&self.running.clients), answer));
        }
        let lasting = self.running.proxy.lasting();
        self.admin.spawn(sweep(Arc::clone(&lasting.cache), lasting.clock.clone(), self.stop_admin.clone()));
        self.admin.spawn(sample(Arc::clone(&lasting.history), Arc::clone(&lasting.cache), self.stop_admin.clone()));
        let running = Arc::clone(&self.running);
        let answer = move |peer: Peer, request: Request<Incoming>| {
            let current = running.proxy.current();
            async move { current.admin.answer(peer, request).await }
        };
        self.admin.spawn(server::run(admin_listener, Arc::clone(&self.running.operators), answer));
        Ok(())
    }

    /// Where clients connect in the network.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().filter_map(ListenAddress::tcp).collect()
    }

    /// Where operators connect.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What is in force.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.running.proxy.current().config)
    }

    /// Puts `config` in force. Listeners stay as they are, whatever it says of them.
    ///
    /// # Errors
    /// If the endpoint's client cannot be built, or the listeners' certificate not be used. Nothing has changed then.
    pub fn reload(&self, config: Config) -> Result<(), ReloadError> {
        self.running.put_in_force(config)
    }

    /// Stops taking connections, finishes what is in flight within `limits.drain`, and returns. Metrics and probes are
    /// there until the end.
    pub async fn drain(mut self) {
        self.running.proxy.lasting().ready.store(false, Ordering::Release);
        events::Draining {}.log();
        let (began, most) = (Instant::now(), self.config().limits.drain);
        self.stop.cancel();
        while self.clients.join_next().await.is_some() {}
        self.running.proxy.lasting().exports.end(most.saturating_sub(began.elapsed())).await;
        self.stop_admin.cancel();
        while self.admin.join_next().await.is_some() {}
        events::Stopped {}.log();
    }
}

impl Running {
    fn put_in_force(&self, config: Config) -> Result<(), ReloadError> {
        let tls = config.listen.tls.as_ref().map(Tls::read).transpose().map_err(ReloadError::Tls)?;
        let (limits, connections) = (server::Limits::from(&config.limits), config.limits.connections);
        let level = config.log.level;
        self.proxy.reload(config).map_err(ReloadError::Upstream)?;
        if let Some(tls) = tls {
            self.clients.secure(tls);
        }
        self.clients.change(limits, connections);
        self.operators.change(operators_limits(limits), ADMIN_CONNECTIONS);
        log::set_level(level);
        Ok(())
    }

    /// Loads the file anew and puts it in force; where it will not do, all stays as it is. Says what has come of it. Reads
    /// files, so it must not be called where others wait for the thread.
    fn reload(&self, watch: &mut Watch) {
        let (running, path) = (self.proxy.current().config.clone(), watch.path().display().to_string());
        let errors = match watch.load(Some(&running)) {
            Ok(config) => {
                let warnings = config.warnings.clone();
                match self.put_in_force(config) {
                    Ok(()) => {
                        log_warnings(&warnings, &path);
                        events::ConfigReloaded { file: &path }.log();
                        return;
                    }
                    Err(error) => {
                        watch.refuse();
                        vec![error.to_string()]
                    }
                }
            }
            Err(errors) => errors.to_string().lines().map(str::to_owned).collect(),
        };
        // What is tried again and again is said once.
        let is_known = self.proxy.reloads().last().errors == errors;
        self.proxy.refuse(errors.clone());
        if !is_known {
            for line in &errors {
                events::ConfigError { reason: line }.log();
            }
            events::ConfigRefused { file: &path, errors: errors.len() }.log();
        }
    }
}

fn log_warnings(warnings: &[Warning], file: &str) {
    for warning in warnings {
        events::ConfigWarning { file, reason: &warning.to_string() }.log();
    }
}

/// Operators are drained after clients, who have taken their time already; and few connections serve them, so that nobody
/// may hold one for nothing: probes come by there.
fn operators_limits(limits: server::Limits) -> server::Limits {
    let [header_timeout, idle_timeout] =
        [limits.header_timeout, limits.idle_timeout].map(|limit| limit.min(ADMIN_IDLE));
    server::Limits { drain: limits.drain.min(ADMIN_DRAIN), header_timeout, idle_timeout, ..limits }
}

/// Forgets dead links now and then, until `stop`.
async fn sweep(cache: Arc<Cache>, clock: Clock, stop: CancellationToken) {
    while tokio::time::timeout(SWEEP, stop.cancelled()).await.is_err() {
        let (cache, clock) = (Arc::clone(&cache), clock.clone());
        // Apart from the answers: a large table takes a while.
        let _ = tokio::task::spawn_blocking(move || cache.sweep(clock.now())).await;
    }
}

/// Keeps the last ten minutes for the status page, until `stop`.
async fn sample(history: Arc<History>, cache: Arc<Cache>, stop: CancellationToken) {
    while tokio::time::timeout(admin::EVERY, stop.cancelled()).await.is_err() {
        let (links, bytes) = cache.size();
        history.sample(links, bytes);
    }
}

async fn bind(key: &'static str, address: &ListenAddress, unix_mode: u32) -> Result<Listener, StartError> {
    Listener::bind(address, unix_mode).await.map_err(|error| StartError::Bind(key, address.clone(), error))
}
