//! What an operator may set: one small struct per concern, already validated.
//!
//! A file is TOML text ([`Config::load`]); `config/reader.rs` reads it key by key with the place of each in the file, so that every
//! error of a file is reported at once, with its line, its key and the nearest key that exists. The structs here
//! hold only what has passed: a port is a port, a share lies between 0 and 1. `config/sidelink.toml` ships every key
//! with its default; a test holds the two equal.

mod endpoint;
mod error;
mod file;
mod files;
mod fixed;
mod listen;
mod own;
pub mod pem;
mod reach;
mod reader;
mod reload;
mod render;
mod report;
mod secret;
mod shared;
mod trace;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;

pub use endpoint::Endpoint;
pub use error::{ConfigError, ConfigErrors, Warning};
pub use listen::{Listen, ListenAddress, Tls, TlsError};
pub use reach::{ClientCertificate, Proxy};
pub use reload::{Reload, ReloadState};
pub use secret::{KeyPair, Secret, SecretSource};
pub use shared::{Address, Shared};
pub use trace::{Trace, TraceHeader};

/// Everything a running sidelink is built from.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Where clients connect.
    pub listen: Listen,
    /// Where operators and probes connect.
    pub admin: Admin,
    /// The endpoint and how it is called.
    pub upstream: Upstream,
    /// How much is kept.
    pub cache: Cache,
    /// How long it is kept.
    pub freshness: Freshness,
    /// Who may see what.
    pub callers: Callers,
    /// What a fleet shares; none by default.
    pub shared: Option<Shared>,
    /// What a client may ask of this process.
    pub limits: Limits,
    /// What is logged.
    pub log: Log,
    /// Where spans go; nowhere by default.
    pub trace: Option<Trace>,
    /// What is allowed and yet not right; for an operator to read.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Reads and validates the file at `path`, of 1 MiB at most.
    ///
    /// # Errors
    /// Every error of the file, each with its line and key; or the one reason why it cannot be read.
    pub fn load(path: &Path) -> Result<Self, ConfigErrors> {
        let text = file::text(path).map_err(|message| ConfigErrors::whole_file(path, message))?;
        Self::parse(&text).map_err(|errors| errors.of_file(path))
    }

    /// As [`Config::load`], to take the place of one that is in force.
    ///
    /// # Errors
    /// As there; also each key that cannot change while sidelink runs.
    pub fn reload(path: &Path, running: &Self) -> Result<Self, ConfigErrors> {
        let text = file::text(path).map_err(|message| ConfigErrors::whole_file(path, message))?;
        file::read(&text, Some(running)).map_err(|errors| errors.of_file(path))
    }

    /// Validates TOML text.
    ///
    /// # Errors
    /// Every error of the text, each with its line and key.
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        file::read(text, None)
    }

    /// The defaults, in front of `endpoint`.
    pub fn for_endpoint(endpoint: Endpoint) -> Self {
        Self {
            listen: Listen::default(),
            admin: Admin::default(),
            upstream: Upstream::for_endpoint(endpoint),
            cache: Cache::default(),
            freshness: Freshness::default(),
            callers: Callers::default(),
            shared: None,
            limits: Limits::default(),
            log: Log::default(),
            trace: None,
            warnings: Vec::new(),
        }
    }
}

/// `[admin]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Admin {
    /// TCP address of metrics, probes and all else for operators. Default `127.0.0.1:8081`.
    pub address: SocketAddr,
    /// What lets operators in from elsewhere than loopback. Default none: only loopback.
    pub token: Option<AdminToken>,
}

/// The operators' token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminToken {
    /// The token, as it was read with the configuration.
    pub secret: Secret,
    /// Where.
    pub file: PathBuf,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: SocketAddr::from(([127, 0, 0, 1], 8081)), token: None }
    }
}

/// `[upstream]`
#[derive(Clone, Debug, PartialEq)]
pub struct Upstream {
    /// The endpoint. The only mandatory key.
    pub endpoint: Endpoint,
    /// The longest a batch may take, from its last byte read to its answer, 1 ms to 10 min. Default 10 s.
    pub deadline: Duration,
    /// The longest that a TCP connection may take, 1 ms to 1 min; the addresses of the endpoint's name share it, and TLS has as
    /// much again. Default 2 s.
    pub connect_timeout: Duration,
    /// How old a connection may become, 1 s to 24 h; up to a fifth less, so that not all end together. Default 5 min.
    pub max_connection_age: Duration,
    /// How long an idle connection is kept, 1 s to 1 h: less than the endpoint and what is before it keep one. Default 30 s.
    pub pool_idle: Duration,
    /// Other routes: the longest without a byte in either direction, 1 ms to 1 h. Default 60 s.
    pub idle_timeout: Duration,
    /// Ids that the endpoint takes in one call, 1 to 1000. Default 100.
    pub ids_per_call: usize,
    /// Bytes of a call's request target at most, 1 KiB to 64 KiB. Default 6 KiB.
    pub uri_bytes: usize,
    /// Calls at a time for one scope and form; further ids gather meanwhile; 1 to 1000. Default 4.
    pub calls_per_scope: usize,
    /// Calls at a time in all, 1 to 100 000. Default 256.
    pub calls: usize,
    /// Bytes of one answer at most, after decoding, 64 KiB to 256 MiB; a longer one is no answer. Default 8 MiB.
    pub answer_bytes: usize,
    /// PEM file of certificate authorities that replaces the platform's; it can be read when the configuration is. None
    /// by default.
    pub ca_file: Option<PathBuf>,
    /// Certificate and key by which the endpoint knows sidelink. None by default.
    pub client: Option<ClientCertificate>,
    /// The HTTP proxy through which the endpoint is reached. None by default; the environment's `HTTPS_PROXY` and the like
    /// have no say.
    pub proxy: Option<Proxy>,
    /// `[upstream.retry]`
    pub retry: Retry,
    /// `[upstream.breaker]`
    pub breaker: Breaker,
}

impl Upstream {
    /// The defaults, in front of `endpoint`.
    pub fn for_endpoint(endpoint: Endpoint) -> Self {
        Self {
            endpoint,
            deadline: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(2),
            max_connection_age: Duration::from_secs(300),
            pool_idle: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            ids_per_call: 100,
            uri_bytes: 6 << 10,
            calls_per_scope: 4,
            calls: 256,
            answer_bytes: 8 << 20,
            ca_file: None,
            client: None,
            proxy: None,
            retry: Retry::default(),
            breaker: Breaker::default(),
        }
    }
}

/// `[upstream.retry]`
#[derive(Clone, Debug, PartialEq)]
pub struct Retry {
    /// Further attempts for one call at most, 0 to 10. Default 2.
    pub attempts: usize,
    /// Retries as a share of recent calls, 0 to 1; a share above 0 also allows one a second. Default 0.2.
    pub budget: f64,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts: 2, budget: 0.2 }
    }
}

/// `[upstream.breaker]`
#[derive(Clone, Debug, PartialEq)]
pub struct Breaker {
    /// Failures in a row that open it, 1 to 1 000 000. Default 5.
    pub consecutive: u32,
    /// Share of failed calls that opens it, 0.01 to 1. Default 0.5.
    pub ratio: f64,
    /// Calls in the ratio's window (5 to 10 s) before it counts, 1 to 1 000 000. Default 20.
    pub min_calls: u32,
    /// How long it stays open before a probe, 1 ms to 1 min; up to a fifth more. Default 2 s.
    pub open: Duration,
}

impl Default for Breaker {
    fn default() -> Self {
        Self { consecutive: 5, ratio: 0.5, min_calls: 20, open: Duration::from_secs(2) }
    }
}

/// `[cache]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cache {
    /// Bytes of links and their bookkeeping, 1 MiB to 1 TiB. Default 256 MiB.
    pub capacity: u64,
}

impl Default for Cache {
    fn default() -> Self {
        Self { capacity: 256 << 20 }
    }
}

/// `[freshness]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Freshness {
    /// The longest that a link is served without asking again, 1 s to 24 h. Default 10 min.
    pub max: Duration,
    /// Life that a link from memory must have left, 0 to 24 h. Default 60 s.
    pub min_remaining: Duration,
    /// Freshness of a link that carries no signature, 0 to 24 h. Default 60 s.
    pub unsigned: Duration,
    /// How long a left-out id is remembered as absent, 0 to 1 h. Default 5 s.
    pub absent: Duration,
    /// How long past its freshness a usable link may answer for a failing endpoint, 0 to 24 h. Default 5 min.
    pub stale_if_error: Duration,
    /// Whether a hit late in a link's freshness fetches it again in the background. Default true.
    pub refresh_ahead: bool,
    /// Whether the endpoint's `no-store` keeps its links out of the cache. Default true.
    pub honour_no_store: bool,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            max: Duration::from_secs(600),
            min_remaining: Duration::from_secs(60),
            unsigned: Duration::from_secs(60),
            absent: Duration::from_secs(5),
            stale_if_error: Duration::from_secs(300),
            refresh_ahead: true,
            honour_no_store: true,
        }
    }
}

/// `[callers]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callers {
    /// How long the endpoint's acceptance of a caller counts, 1 s to 24 h. Default 5 min.
    pub revalidate: Duration,
    /// Whether a request's `Cache-Control` is honoured. Default true.
    pub cache_control: bool,
    /// Request headers, beyond the built-in ones, whose values may change an answer: none twice, no credential, none
    /// that is about one connection or that sidelink sets. Default none.
    pub scope_headers: Vec<HeaderName>,
    /// `[[callers.keys]]`: the keys whose signatures are verified and made again; no access key twice. Default none.
    pub keys: Vec<Key>,
}

/// One table of `[[callers.keys]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Key {
    /// The key, as it was read with the configuration.
    pub pair: KeyPair,
    /// Where its secret key was read.
    pub source: SecretSource,
}

impl Default for Callers {
    fn default() -> Self {
        let revalidate = Duration::from_secs(300);
        Self { revalidate, cache_control: true, scope_headers: Vec::new(), keys: Vec::new() }
    }
}

/// `[limits]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Client connections at a time; at the limit none is accepted until one ends; 1 to
    /// 1 000 000. Default 10 000.
    pub connections: usize,
    /// Ids being fetched at a time; one caller may hold half of them; at least twice `batch_ids`, to 10 000 000. Default
    /// 20 000.
    pub in_flight: usize,
    /// Batches waiting for a fetch at a time, 1 to 10 000 000. Default 10 000.
    pub waiters: usize,
    /// Requests on other routes at a time, from their head to the end of their answer; 1 to 1 000 000. Default 2000.
    pub exchanges: usize,
    /// Distinct ids in one batch, 1 to 10 000. Default 1000.
    pub batch_ids: usize,
    /// Bytes of a batch's body, 1 KiB to 16 MiB. Default 256 KiB.
    pub batch_body: usize,
    /// Bytes of such bodies at a time in all, until their batches are answered; at least `batch_body`, to 1 TiB. Default
    /// 64 MiB.
    pub batch_bodies: usize,
    /// Bytes of a body that has to be hashed before it is passed on, because its request is signed again, 1 KiB to 256 MiB.
    /// Default 4 MiB.
    pub signed_body: usize,
    /// Bytes of such bodies at a time in all; at least `signed_body`, to 1 TiB. Default 64 MiB.
    pub signed_bodies: usize,
    /// Bytes of a request's head, target included, 8 KiB to 1 MiB. Default 64 KiB.
    pub header_bytes: usize,
    /// The longest a client may take to send a request's head, 1 ms to 1 h. Default 10 s.
    pub header_timeout: Duration,
    /// The longest that a client connection may stay without a byte, 1 ms to 24 h. Default 60 s.
    pub idle_timeout: Duration,
    /// The longest that shutting down waits for answers in flight, 0 to 1 h. Default 30 s.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 10_000,
            in_flight: 20_000,
            waiters: 10_000,
            exchanges: 2000,
            batch_ids: 1000,
            batch_body: 256 << 10,
            batch_bodies: 64 << 20,
            signed_body: 4 << 20,
            signed_bodies: 64 << 20,
            header_bytes: 64 << 10,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(60),
            drain: Duration::from_secs(30),
        }
    }
}

/// `[log]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// The least severe level that is written. Default info.
    pub level: Level,
    /// How a line looks. Default JSON.
    pub format: LogFormat,
    /// Whether every request gets a line. Default true.
    pub access: bool,
}

impl Default for Log {
    fn default() -> Self {
        Self { level: Level::Info, format: LogFormat::Json, access: true }
    }
}

/// Severity of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something needs an operator's eye.
    Warn,
    /// What an operator wants to see by default.
    Info,
    /// What helps in finding a fault.
    Debug,
    /// Everything.
    Trace,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}
