//! The configuration: one validated struct per table.
//!
//! **To add a key, add a line to its table** (`section!`, explained in `declare.rs`): name, type, default, what its value may
//! be (`kind.rs`) and the doc line that operators read. Reading, `sidelink check`, `config/sidelink.toml` and
//! `docs/CONFIGURATION.md` are derived from it; `make docs` writes the two files. Rules between keys are in `rules.rs`.
//!
//! Every error of a file is reported at once, with its line, its key and the nearest key that exists (`diagnostics.rs`).

pub mod batch;
mod callers;
mod declare;
mod diagnostics;
mod endpoint;
mod headers;
mod identity;
pub mod jwks;
mod kind;
mod listen;
pub mod pem;
mod render;
mod rules;
mod secret;
mod shared;
mod table;
mod trace;
mod upstream;

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use toml::de::DeTable;
use tracing::level_filters::LevelFilter;

use batch::BatchApi;
pub use callers::{CallerKey, CallersConfig};
use declare::section;
use diagnostics::Diagnostics;
pub use diagnostics::{ConfigError, ConfigErrors};
pub use endpoint::{Endpoint, Url};
pub(crate) use headers::is_credential_name;
pub use identity::{IdentityConfig, IdentitySource, Style};
pub use kind::parse_duration;
pub(crate) use kind::show_duration;
use kind::{DAY, HOUR, MILLISECOND, MINUTE, SECOND, choice, count, duration, flag, secret_file, size, text};
pub use listen::{Listen, ListenAddress, Tls, TlsError};
pub use render::{reference, shipped};
pub use secret::{KeyPair, Secret, StoredSecret};
pub use shared::{NodeAddress, NodeUrl, Shared};
pub use trace::{Trace, TraceHeader};
pub use upstream::{BreakerConfig, Retry, UpstreamConfig};

section! {
    /// Everything a running sidelink is built from.
    #[derive(Clone, Debug, PartialEq)]
    pub struct Config: pub fn for_endpoint(endpoint: Endpoint) {
        /// Where clients connect.
        pub listen: Listen = Listen::default() => table(Listen::keys);
        /// Where operators, probes and Prometheus connect.
        pub admin: AdminConfig = AdminConfig::default() => table(AdminConfig::keys);
        /// The endpoint that sidelink stands in front of, and how it is called.
        pub upstream: UpstreamConfig = UpstreamConfig::for_endpoint(endpoint) => table(UpstreamConfig::visit);
        /// A batch API that is answered from memory: a preset, taken as it is or with keys overridden, or one that is written out; one such table for each. Without any: the preset huawei-osm alone. With a preset no key is mandatory. docs/BATCH_APIS.md describes how to write one.
        pub batch: Vec<BatchApi> = BatchApi::preset("huawei-osm").into_iter().collect() => list(BatchApi::blank, BatchApi::visit);
        /// How much is cached.
        pub cache: CacheConfig = CacheConfig::default() => table(CacheConfig::keys);
        /// How long it is cached.
        pub freshness: Freshness = Freshness::default() => table(Freshness::keys);
        /// How callers are told apart.
        pub callers: CallersConfig = CallersConfig::default() => table(CallersConfig::keys);
        /// The tier that a fleet of sidecars shares, in Redis or Valkey; without this table there is none.
        pub shared: Option<Shared> = None => optional(|| Shared::at(Vec::new(), Vec::new()), Shared::visit);
        /// Limits of what clients may use.
        pub limits: Limits = Limits::default() => table(Limits::keys);
        /// The threads.
        pub runtime: Runtime = Runtime::default() => table(Runtime::keys);
        /// The log.
        pub log: Log = Log::default() => table(Log::keys);
        /// Spans for an OpenTelemetry collector; without this table there are none.
        pub trace: Option<Trace> = None => optional(|| Trace::at(Endpoint::stand_in()), Trace::visit);
        /// Warnings: settings that are allowed, and probably not intended.
        pub warnings: Vec<ConfigError> = Vec::new();
    }
}

impl Config {
    /// Reads and validates the file at `path`, of 1 MiB at most; on a reload, `running` is the current configuration.
    ///
    /// # Errors
    /// Every error of the file, each with its line and key, keys that a reload cannot change among them; or the one reason
    /// why it cannot be read.
    pub fn load(path: &Path, running: Option<&Self>) -> Result<Self, ConfigErrors> {
        let whole_file = |message| vec![ConfigError { message, ..ConfigError::default() }];
        let config = text_of(path).map_err(whole_file).and_then(|text| Self::validate(&text, running));
        config.map_err(|errors| ConfigErrors { file: Some(path.to_owned()), errors })
    }

    /// The `[admin]` of the file at `path`, whatever else is wrong with the file: for the health check of a process that goes on with
    /// the configuration before.
    ///
    /// # Errors
    /// Why the file cannot be read.
    pub fn load_admin(path: &Path) -> Result<AdminConfig, String> {
        let text = text_of(path)?;
        let (report, (document, _)) = (Diagnostics::new(&text), DeTable::parse_recoverable(&text));
        let mut config = Self::for_endpoint(Endpoint::stand_in());
        table::visit(Some(document.get_ref()), &report, |table| config.keys(table));
        Ok(config.admin)
    }

    /// Validates TOML text.
    pub fn parse(text: &str) -> Result<Self, ConfigErrors> {
        Self::validate(text, None).map_err(|errors| ConfigErrors { file: None, errors })
    }

    fn validate(text: &str, running: Option<&Self>) -> Result<Self, Vec<ConfigError>> {
        let report = Diagnostics::new(text);
        let (document, syntax) = DeTable::parse_recoverable(text);
        for error in syntax {
            report.not_toml(error.span(), error.message());
        }
        let mut config = Self::for_endpoint(Endpoint::stand_in());
        table::visit(Some(document.get_ref()), &report, |table| config.keys(table));
        rules::check(&config, document.get_ref(), &report);
        if let Some(running) = running {
            rules::check_immutable(running, &config, document.get_ref(), &report);
        }
        Ok(Self { warnings: report.finish()?, ..config })
    }
}

/// A longer file is not a configuration.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The text of the file at `path`, or why it cannot be read.
fn text_of(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    // One byte more than allowed shows that the file is too long, even if it is endless.
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err("is longer than 1 MiB".to_owned());
    }
    String::from_utf8(bytes).map_err(|error| {
        let before = error.as_bytes().iter().take(error.utf8_error().valid_up_to());
        format!("is not UTF-8 text: see line {}", 1 + before.filter(|byte| **byte == b'\n').count())
    })
}

section! {
    /// `[admin]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct AdminConfig {
        /// Address of metrics, probes and the status page.
        pub address: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 8081)), text("an address such as \"127.0.0.1:8081\"", address).immutable();
        /// File with the token that admits operators from elsewhere than loopback (Authorization: Bearer TOKEN, or the password that a browser asks for), and nothing else.
        pub token_file: Option<StoredSecret> = None, secret_file(secret::from_file).check(|file, found| {
            if file.secret.expose().len() < GUESSABLE {
                found.warn(&format!("a token of fewer than {GUESSABLE} characters may be guessed"));
            }
        }).optional("/etc/sidelink/admin-token");
        /// TLS on this address, so that neither the token nor what operators see goes over the network in clear.
        pub tls: Option<Tls> = None => optional(Tls::blank, Tls::visit);
    }
}

/// A token that is shorter gets a warning.
const GUESSABLE: usize = 16;

fn address(text: &str) -> Result<SocketAddr, String> {
    listen::socket_address(text, "an address such as \"127.0.0.1:8081\"", 8081)
}

section! {
    /// `[runtime]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Runtime {
        /// Threads that serve requests; without this key as many as the cores that the process may use, 4 at most.
        pub threads: Option<usize> = None, count(1..=64).immutable().optional(2);
    }
}

section! {
    /// `[cache]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct CacheConfig {
        /// Bytes of links in memory, their bookkeeping included; an eighth is for whole answers to batches that come again.
        pub capacity: u64 = 256 << 20, size(1 << 20..=1 << 40);
    }
}

section! {
    /// `[freshness]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Freshness {
        /// The longest that a link is served before it is fetched again.
        pub max: Duration = 10 * MINUTE, duration(SECOND..=DAY);
        /// The least life that a link from memory has left when it is served.
        pub min_remaining: Duration = MINUTE, duration(Duration::ZERO..=DAY);
        /// Freshness of a link that carries no signature.
        pub unsigned: Duration = MINUTE, duration(Duration::ZERO..=DAY);
        /// How long an id that the endpoint left out is remembered as absent, and the refusal (403) of one id alone.
        pub absent: Duration = 5 * SECOND, duration(Duration::ZERO..=HOUR);
        /// How long past its freshness a link with life left may answer for a failing endpoint.
        pub stale_if_error: Duration = 5 * MINUTE, duration(Duration::ZERO..=DAY);
        /// Whether a hit late in a link's freshness fetches it again in the background.
        pub refresh_ahead: bool = true, flag();
        /// Whether the endpoint's `Cache-Control: no-store` keeps its links out of memory.
        pub honour_no_store: bool = true, flag();
    }
}

section! {
    /// `[limits]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Limits {
        /// Client connections at a time; at the limit none is accepted until one ends.
        pub connections: usize = 10_000, count(1..=1_000_000);
        /// Ids being fetched at a time; one caller may use half of them. At least twice `limits.batch_ids`.
        pub in_flight: usize = 20_000, count(1..=10_000_000);
        /// Batches waiting for a fetch at a time.
        pub waiters: usize = 10_000, count(1..=10_000_000);
        /// Requests on other routes at a time, from their head to the end of their answer.
        pub exchanges: usize = 2000, count(1..=1_000_000);
        /// Distinct ids in one batch.
        pub batch_ids: usize = 1000, count(1..=10_000);
        /// Bytes of a batch's body.
        pub batch_body: usize = 256 << 10, size(1 << 10..=16 << 20);
        /// Bytes of batches' bodies in memory at a time, until they are answered and their calls have ended. At least `limits.batch_body`.
        pub batch_bodies: usize = 64 << 20, size(1 << 10..=1 << 40);
        /// Bytes of a body that has to be hashed, because its request is signed again.
        pub signed_body: usize = 4 << 20, size(1 << 10..=256 << 20);
        /// Bytes of such bodies in memory at a time. At least `limits.signed_body`.
        pub signed_bodies: usize = 64 << 20, size(1 << 10..=1 << 40);
        /// Bytes of a request's head, target included.
        pub header_bytes: usize = 64 << 10, size(8 << 10..=1 << 20);
        /// The longest a client may take to send a request's head over HTTP/1; over HTTP/2 it is `idle_timeout`.
        pub header_timeout: Duration = 10 * SECOND, duration(MILLISECOND..=HOUR);
        /// The longest that a client connection may stay without a byte.
        pub idle_timeout: Duration = MINUTE, duration(MILLISECOND..=DAY);
        /// The age at which a client connection ends, up to a tenth earlier: HTTP/1 with an answer, HTTP/2 by GOAWAY.
        pub max_connection_age: Duration = HOUR, duration(SECOND..=DAY);
        /// The longest that shutting down waits for answers in flight.
        pub drain: Duration = 30 * SECOND, duration(Duration::ZERO..=HOUR);
    }
}

section! {
    /// `[log]`
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Log {
        /// The least severe level that is written.
        pub level: LevelFilter = LevelFilter::INFO, choice(&LEVELS);
        /// JSON, one object per line, or text.
        pub format: LogFormat = LogFormat::Json, choice(&FORMATS).immutable();
        /// Which requests get an access line: all of them, those that are answered with a status of 400 or more or whose answer is cut short, or none.
        pub access: AccessLines = AccessLines::All, choice(&ACCESS).or_flag(AccessLines::All, AccessLines::Off);
    }
}

const LEVELS: [(&str, LevelFilter); 5] = [
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];
const ACCESS: [(&str, AccessLines); 3] =
    [("all", AccessLines::All), ("errors", AccessLines::Errors), ("off", AccessLines::Off)];
const FORMATS: [(&str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];

/// Which requests get an access line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLines {
    /// Every request.
    All,
    /// Requests that are answered with a status of 400 or more, and those whose answer is cut short or never comes.
    Errors,
    /// None.
    Off,
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// Text for people.
    Text,
}
