//! `[upstream]`: the endpoint and how it is called.

use std::path::{Path, PathBuf};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;
use http::uri::Scheme;

use super::declare::section;
use super::endpoint::Endpoint;
use super::kind::{
    HOUR, MILLISECOND, MINUTE, SECOND, certificates, count, duration, pem_file, secret_file, share, size, text,
};
use super::pem;
use super::secret::{self, Secret, StoredSecret};
use super::table::TableVisitor;

section! {
    /// `[upstream]`
    #[derive(Clone, Debug, PartialEq)]
    pub struct UpstreamConfig: pub fn for_endpoint(endpoint: Endpoint) {
        /// The endpoint: scheme, host and port.
        pub endpoint: Endpoint = endpoint, text("a URL", Endpoint::parse).required("https://osm.cn-south-1.myhuaweicloud.cn");
        /// The longest that a batch may take, from its last byte read to its answer.
        pub deadline: Duration = 10 * SECOND, duration(MILLISECOND..=10 * MINUTE);
        /// The longest that a TCP connection may take: the addresses of the endpoint's name share it, TLS has as much again.
        pub connect_timeout: Duration = 2 * SECOND, duration(MILLISECOND..=MINUTE);
        /// The longest that a connection is used; up to a fifth less, so that not all end together.
        pub max_connection_age: Duration = 5 * MINUTE, duration(SECOND..=24 * HOUR);
        /// How long an idle connection stays open: less than the endpoint, or a balancer before it, keeps it open.
        pub pool_idle: Duration = 30 * SECOND, duration(SECOND..=HOUR);
        /// Other routes: the longest without a byte in either direction.
        pub idle_timeout: Duration = MINUTE, duration(MILLISECOND..=HOUR);
        /// The most ids of one call, of whatever batch API; each has its own `batch.ids_per_call` besides.
        pub ids_per_call: usize = 1000, count(1..=1000);
        /// The longest target (path and query) of a call.
        pub uri_bytes: usize = 6 << 10, size(1 << 10..=64 << 10);
        /// Calls at a time for one caller and group; further ids gather meanwhile.
        pub calls_per_scope: usize = 4, count(1..=1000);
        /// Calls at a time in all.
        pub calls: usize = 256, count(1..=100_000);
        /// The longest answer to a call, decoded.
        pub answer_bytes: usize = 8 << 20, size(64 << 10..=256 << 20);
        /// PEM file of certificate authorities, instead of the platform's.
        pub ca_file: Option<PathBuf> = None, certificates().optional("/etc/sidelink/ca.pem");
        /// PEM file of the client certificate for the endpoint, if the endpoint asks for one.
        pub client_cert: Option<PathBuf> = None, certificates().check(|path, found| found.warn_of_expiry(path)).optional("/etc/sidelink/client.pem");
        /// PEM file of the private key of client_cert, readable by sidelink's user only.
        pub client_key: Option<PathBuf> = None, pem_file(pem::private_key).check(|path, found| found.warn_if_world_readable(path)).optional("/etc/sidelink/client-key.pem");
        /// The HTTP proxy through which the endpoint is reached, by CONNECT; HTTPS_PROXY and the like are ignored.
        pub proxy: Option<Endpoint> = None, text("a URL", proxy).optional("http://proxy.internal:3128");
        /// File that holds USER:PASSWORD for the proxy and nothing else, readable by sidelink's user only.
        pub proxy_credentials_file: Option<StoredSecret> = None, secret_file(proxy_credentials).optional("/etc/sidelink/proxy-credentials");
        /// When a call is attempted again.
        pub retry: Retry = Retry::default() => table(Retry::keys);
        /// When calls stop because they fail.
        pub breaker: BreakerConfig = BreakerConfig::default() => table(BreakerConfig::keys);
    }
}

impl UpstreamConfig {
    /// Visits each key, and reports what does not fit together.
    pub(super) fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        table.needs("client_cert", "client_key", "needs upstream.client_key: its private key");
        let whose = "needs upstream.client_cert: the certificate that the key belongs to";
        table.needs("client_key", "client_cert", whose);
        let unused = "needs upstream.proxy: there is no proxy for the credentials";
        table.needs("proxy_credentials_file", "proxy", unused);
    }

    /// The value of `Proxy-Authorization` (Basic, RFC 7617), which no debug output shows.
    pub fn proxy_authorization(&self) -> Option<HeaderValue> {
        let credentials = self.proxy_credentials_file.as_ref()?.secret.expose();
        Some(Secret::new(format!("Basic {}", STANDARD.encode(credentials)).into()).header_value())
    }
}

pub(super) fn proxy(text: &str) -> Result<Endpoint, String> {
    let proxy = Endpoint::parse(text)?;
    let wrong = "must begin with http://: TLS to the proxy itself is not supported";
    if proxy.scheme == Scheme::HTTP { Ok(proxy) } else { Err(wrong.to_owned()) }
}

pub(super) fn proxy_credentials(path: &Path) -> Result<Secret, String> {
    let secret = secret::from_file(path)?;
    if secret.expose().contains(&b':') { Ok(secret) } else { Err("must hold USER:PASSWORD".to_owned()) }
}

section! {
    /// `[upstream.retry]`
    #[derive(Clone, Debug, PartialEq)]
    pub struct Retry {
        /// Further attempts for one call, after no answer, 502, 503 or 504.
        pub attempts: usize = 2, count(0..=10);
        /// Retries as a share of recent calls; above 0 one a second is always allowed.
        pub budget: f64 = 0.2, share(0.0..=1.0);
    }
}

section! {
    /// `[upstream.breaker]`
    #[derive(Clone, Debug, PartialEq)]
    pub struct BreakerConfig {
        /// Failed calls in a row that open it: without an answer in time, or with a 502, 503 or 504.
        pub consecutive: u32 = 5, count(1..=1_000_000);
        /// Share of failed calls that opens it.
        pub ratio: f64 = 0.5, share(0.01..=1.0);
        /// Calls within the last 10 seconds (256 at most) before that share counts.
        pub min_calls: u32 = 20, count(1..=1_000_000);
        /// How long it stays open before a probe; up to a fifth more.
        pub open: Duration = 2 * SECOND, duration(MILLISECOND..=MINUTE);
    }
}
