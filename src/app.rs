//! The composition root: a [`Config`] builds everything, which then runs, is reloaded, and is drained.
//!
//! Start reading at [`serve`], the life of a process, then [`App`], its listeners, then [`Generations`], what is behind them.

pub mod core_dumps;
pub mod descriptors;
mod generation;
mod notify;
mod serve;
mod sockets;
mod watch;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hyper::Request;
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::admin::{self, ProcessState};
use crate::auth::LastToken;
use crate::clock::Clock;
use crate::config::{Config, ConfigError, ListenAddress, Tls, TlsError, pem};
use crate::message::ending::CutOff;
use crate::proxy::router::Connection;
use crate::server::{self, ConnLimits, Listener, ListenerState, Peer, RequestBody};
use crate::telemetry::log::{self, events};
use crate::telemetry::metrics::CertificateUse;
use crate::upstream::SetupError;

pub use generation::{Generation, Generations};
pub use serve::{End, StopSignals, serve};
pub use sockets::PassedSockets;
pub use watch::Watch;

/// Connections that the admin listener serves at a time.
const ADMIN_CONNECTIONS: usize = 64;
/// The longest that an operator's connection stays without a byte.
const ADMIN_IDLE: Duration = Duration::from_secs(5);
/// The longest that answers to operators delay the end.
const ADMIN_DRAIN: Duration = Duration::from_secs(1);
/// Between one removal of dead links from the cache and the next.
const SWEEP: Duration = Duration::from_secs(60);
/// A file that stays refused is tried again every few seconds, and the log is told of it this often.
const SAID_AGAIN: Duration = Duration::from_secs(300);
/// Between one report of dropped log lines and the next.
const REPORT_DROPPED: Duration = Duration::from_secs(1);
/// Between one removal of expired whole answers and the next.
const SWEEP_ANSWERS: Duration = Duration::from_secs(1);

/// Why sidelink does not start, or a configuration cannot be applied.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Listening at an address fails; the key that names the address comes first.
    #[error("{0}: cannot listen on {1}: {2}{remedy}", remedy = remedy(.2))]
    Bind(&'static str, ListenAddress, io::Error),
    /// A socket that was passed to this process cannot be used.
    #[error("LISTEN_FDS: a socket that was passed cannot be used: {0}")]
    PassedSocket(io::Error),
    /// The endpoint's client cannot be built.
    #[error(transparent)]
    Upstream(#[from] SetupError),
    /// A listener's certificate cannot be used; the table comes first.
    #[error("{0}.{1}")]
    Tls(&'static str, TlsError),
    /// Signal handlers cannot be installed.
    #[error("signals: {0}")]
    Signals(io::Error),
    /// The metrics cannot be registered: a bug in sidelink.
    #[error("metrics: {0}")]
    Metrics(#[from] prometheus::Error),
}

fn remedy(error: &io::Error) -> &'static str {
    let taken = error.kind() == io::ErrorKind::AddrInUse;
    if taken { "; end what listens there, or name another address" } else { "" }
}

/// A sidelink that is listening.
pub struct App {
    addresses: Vec<ListenAddress>,
    admin_address: SocketAddr,
    running: Arc<Running>,
    stop: CancellationToken,
    stop_admin: CancellationToken,
    stop_tasks: CancellationToken,
    /// The clients' listeners.
    clients: JoinSet<()>,
    admin: JoinSet<()>,
    /// Periodic tasks.
    tasks: JoinSet<()>,
    /// Whether a successor listens at the same addresses when this process is told to end.
    gives_up_ports: bool,
}

/// Components that a reload updates.
struct Running {
    generations: Generations,
    /// When the log was told last that the file is refused.
    refusal_said: Mutex<Option<Instant>>,
    clients: Arc<ListenerState>,
    operators: Arc<ListenerState>,
}

impl App {
    /// Builds everything and begins to serve, on sockets of its own.
    pub async fn start(config: Config) -> Result<Self, StartError> {
        Self::start_with(config, Clock::system()).await
    }

    /// As [`App::start`], with the caller's clock.
    pub async fn start_with(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::start_on(config, clock, PassedSockets::default()).await
    }

    /// As [`App::start_with`], on sockets that were passed to this process, in place of those that `config` names.
    pub async fn start_on(mut config: Config, clock: Clock, sockets: PassedSockets) -> Result<Self, StartError> {
        let descriptors_short = descriptors::fit(&mut config);
        let generations = Generations::new(config, clock, None)?;
        generations.builder.process.descriptors_short.store(descriptors_short.map(Arc::new));
        let config = Arc::clone(&generations.current().config);
        let limits = ConnLimits::from(&config.limits);
        let (stop, stop_admin) = (CancellationToken::new(), CancellationToken::new());
        let open = generations.builder.process.metrics.connections.clone();
        let clients = ListenerState::new(limits, config.limits.connections, open, stop.clone());
        // The gauge is of clients' connections alone.
        let unregistered = prometheus::IntGauge::new("admin_connections", "not registered")?;
        let operators = ListenerState::new(admin_limits(limits), ADMIN_CONNECTIONS, unregistered, stop_admin.clone());
        let mut app = Self {
            addresses: Vec::new(),
            admin_address: config.admin.address,
            running: Arc::new(Running {
                generations,
                refusal_said: Mutex::default(),
                clients: Arc::new(clients),
                operators: Arc::new(operators),
            }),
            stop,
            stop_admin,
            stop_tasks: CancellationToken::new(),
            clients: JoinSet::new(),
            admin: JoinSet::new(),
            tasks: JoinSet::new(),
            gives_up_ports: false,
        };
        app.listen(&config, sockets).await?;
        app.running.generations.builder.process.ready.store(true, Ordering::Release);
        let addresses: Vec<String> = app.addresses.iter().map(ToString::to_string).collect();
        events::Serving {
            endpoint: format_args!("{}", config.upstream.endpoint),
            addresses: &addresses.join(", "),
            tls: config.listen.tls.is_some(),
            admin: format_args!("{}", app.admin_address),
        }
        .log();
        Ok(app)
    }

    async fn listen(&mut self, config: &Config, sockets: PassedSockets) -> Result<(), StartError> {
        let (mut listeners, admin_listener) = sockets.listeners().map_err(StartError::PassedSocket)?;
        self.gives_up_ports = config.listen.reuse_port || admin_listener.is_some();
        // All are bound before any is served: half a sidelink is of no use.
        let reuse_port = config.listen.reuse_port;
        let admin_listener = match admin_listener {
            Some(listener) => listener,
            None => bind("admin.address", &config.admin.address.into(), 0, reuse_port).await?,
        };
        self.admin_address = admin_listener.address().and_then(|address| address.tcp()).unwrap_or(config.admin.address);
        if listeners.is_empty() {
            for address in &config.listen.address {
                listeners.push(bind("listen.address", address, config.listen.unix_mode, reuse_port).await?);
            }
        }
        self.addresses.extend(listeners.iter().filter_map(Listener::address));
        self.running.set_tls(ListenerTls::read(config)?);
        self.running.show_certificates(config);
        for listener in listeners {
            let running = Arc::clone(&self.running);
            let connect = move |peer: Peer, cut_off: CutOff| {
                let client = match peer {
                    Peer::Tcp(address) => Some(address.ip().to_canonical()),
                    Peer::Local => None,
                };
                let (running, last_token) = (Arc::clone(&running), LastToken::default());
                let connection = Arc::new(Connection { client, last_token, cut_off });
                move |request: Request<RequestBody>| running.generations.answer(request, &connection)
            };
            self.clients.spawn(server::run(listener, Arc::clone(&self.running.clients), connect));
        }
        let ProcessState { cache, clock, history, metrics, .. } = self.running.generations.builder.process.clone();
        self.tasks.spawn(every(REPORT_DROPPED, self.stop_tasks.clone(), async move || {
            metrics.log_dropped.inc_by(log::report_dropped());
        }));
        let swept = Arc::clone(&cache);
        self.tasks.spawn(every(SWEEP, self.stop_tasks.clone(), async move || {
            let (cache, now) = (Arc::clone(&swept), clock.now());
            // A large table takes a while: not on a thread that answers.
            let _ = spawn_blocking(move || cache.sweep(now)).await;
        }));
        let running = Arc::clone(&self.running);
        self.tasks.spawn(every(SWEEP_ANSWERS, self.stop_tasks.clone(), async move || {
            let answers = Arc::clone(&running.generations.current().answers);
            if answers.size().0 > 0 {
                let _ = spawn_blocking(move || answers.sweep()).await;
            }
        }));
        self.tasks.spawn(every(admin::EVERY, self.stop_tasks.clone(), async move || {
            let (links, bytes) = cache.size();
            history.sample(links, bytes);
        }));
        let running = Arc::clone(&self.running);
        let connect = move |peer: Peer, _: CutOff| {
            let running = Arc::clone(&running);
            move |request: Request<RequestBody>| {
                let current = running.generations.current();
                async move { current.admin.answer(peer, request).await }
            }
        };
        self.admin.spawn(server::run(admin_listener, Arc::clone(&self.running.operators), connect));
        Ok(())
    }

    /// The TCP addresses for clients.
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.addresses.iter().filter_map(ListenAddress::tcp).collect()
    }

    /// The address for operators.
    pub fn admin_address(&self) -> SocketAddr {
        self.admin_address
    }

    /// What it does, for a service manager: one line.
    fn status(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(ToString::to_string).collect();
        let (addresses, config) = (addresses.join(", "), self.config());
        let reload = self.running.generations.builder.process.last_reload.load();
        match reload.errors.first() {
            None => format!("serving {addresses} before {}", config.upstream.endpoint),
            Some(error) => {
                format!("serving {addresses}; the new configuration was refused: {}", error.replace('\n', " "))
            }
        }
    }

    /// The configuration that is applied.
    pub fn config(&self) -> Arc<Config> {
        Arc::clone(&self.running.generations.current().config)
    }

    /// Applies `config`. Listeners stay as they are, whatever it says of them.
    ///
    /// # Errors
    /// The endpoint's client cannot be built, or the listeners' certificate cannot be used. Nothing has changed then.
    pub fn apply(&self, config: Config) -> Result<(), StartError> {
        self.running.apply(config)
    }

    /// Stops accepting connections, finishes what is in flight within `limits.drain`, and returns. Metrics and probes are
    /// served until the end; but where a successor listens at the same addresses, operators' requests are its from the beginning, so
    /// that a purge reaches the process that goes on.
    pub async fn drain(mut self) {
        let builder = &self.running.generations.builder;
        builder.process.ready.store(false, Ordering::Release);
        let _ = builder.process.draining.set(builder.process.clock.now());
        let (began, drain) = (Instant::now(), self.config().limits.drain);
        if self.gives_up_ports {
            self.stop_admin.cancel();
            while self.admin.join_next().await.is_some() {}
        }
        self.stop.cancel();
        // Once it is true: a request that comes after this line is answered as the last of its connection.
        events::Draining {}.log();
        while self.clients.join_next().await.is_some() {}
        builder.exports.end(drain.saturating_sub(began.elapsed())).await;
        self.stop_admin.cancel();
        while self.admin.join_next().await.is_some() {}
        let last = Arc::clone(&self.running.generations.current());
        last.end().await;
        self.stop_tasks.cancel();
        while self.tasks.join_next().await.is_some() {}
        events::Stopped {}.log();
    }
}

/// The TLS of listeners, as their files have it.
struct ListenerTls {
    clients: Option<ServerConfig>,
    operators: Option<ServerConfig>,
}

impl ListenerTls {
    fn read(config: &Config) -> Result<Self, StartError> {
        let read = |table, tls: &Option<Tls>| {
            tls.as_ref().map(Tls::read).transpose().map_err(|error| StartError::Tls(table, error))
        };
        Ok(Self { clients: read("listen", &config.listen.tls)?, operators: read("admin", &config.admin.tls)? })
    }
}

impl Running {
    fn set_tls(&self, tls: ListenerTls) {
        for (listener, tls) in [(&self.clients, tls.clients), (&self.operators, tls.operators)] {
            if let Some(tls) = tls {
                listener.set_tls(tls);
            }
        }
    }

    /// Shows in metrics when the certificates in use end.
    fn show_certificates(&self, config: &Config) {
        let identity = config.callers.identity.as_ref();
        let gauges = &self.generations.builder.process.metrics.certificate_expiry;
        for (of, path) in [
            (CertificateUse::Listen, config.listen.tls.as_ref().map(|tls| &tls.cert)),
            (CertificateUse::Admin, config.admin.tls.as_ref().map(|tls| &tls.cert)),
            (CertificateUse::Upstream, config.upstream.client_cert.as_ref()),
            (CertificateUse::Identity, identity.and_then(|identity| identity.client_cert.as_ref())),
        ] {
            let expiry = path.and_then(|path| pem::expiry(path).ok()).unwrap_or(0);
            gauges.set(of, usize::try_from(expiry).unwrap_or(usize::MAX));
        }
    }

    fn apply(&self, mut config: Config) -> Result<(), StartError> {
        let descriptors_short = descriptors::fit(&mut config);
        let tls = ListenerTls::read(&config)?;
        let (limits, connections) = (ConnLimits::from(&config.limits), config.limits.connections);
        let level = config.log.level;
        self.generations.apply(config)?;
        self.generations.builder.process.descriptors_short.store(descriptors_short.map(Arc::new));
        self.show_certificates(&self.generations.current().config);
        self.set_tls(tls);
        self.clients.set_limits(limits, connections);
        self.operators.set_limits(admin_limits(limits), ADMIN_CONNECTIONS);
        log::set_level(level);
        Ok(())
    }

    /// Loads the file and applies it; one that is refused changes nothing. Logs the result, that of a file that stays refused every few
    /// minutes unless an operator has asked for the reload. Reads files: blocks.
    fn reload(&self, watch: &mut Watch, is_asked: bool) {
        let (running, path) = (self.generations.current().config.clone(), watch.path().display().to_string());
        let errors = match watch.load(Some(&running)) {
            Ok(config) => {
                let warnings = config.warnings.clone();
                match self.apply(config) {
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
        let is_known = self.generations.builder.process.last_reload.load().errors == errors;
        self.generations.refuse(errors.clone());
        let mut said = self.refusal_said.lock();
        if is_asked || !is_known || said.is_none_or(|said| said.elapsed() >= SAID_AGAIN) {
            *said = Some(Instant::now());
            for line in &errors {
                events::ConfigError { reason: line }.log();
            }
            events::ConfigRefused { file: &path, errors: errors.len() }.log();
        }
    }
}

fn log_warnings(warnings: &[ConfigError], file: &str) {
    for warning in warnings {
        events::ConfigWarning { file, reason: &warning.to_string() }.log();
    }
}

/// Operators are drained after clients, so they get little time; and they have few connections, so an idle one is closed
/// soon: probes use them too.
fn admin_limits(limits: ConnLimits) -> ConnLimits {
    ConnLimits {
        header_timeout: limits.header_timeout.min(ADMIN_IDLE),
        idle_timeout: limits.idle_timeout.min(ADMIN_IDLE),
        drain: limits.drain.min(ADMIN_DRAIN),
        linger: Duration::ZERO,
        ..limits
    }
}

/// Runs `task` periodically, until `stop`.
async fn every(interval: Duration, stop: CancellationToken, task: impl AsyncFn()) {
    while timeout(interval, stop.cancelled()).await.is_err() {
        task().await;
    }
}

async fn bind(
    key: &'static str,
    address: &ListenAddress,
    unix_mode: u32,
    reuse_port: bool,
) -> Result<Listener, StartError> {
    Listener::bind(address, unix_mode, reuse_port).await.map_err(|error| StartError::Bind(key, address.clone(), error))
}
