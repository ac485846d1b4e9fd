//! `[upstream]`: the endpoint and how it is called.

use std::path::PathBuf;
use std::time::Duration;

use super::declare::section;
use super::egress::{ClientCertificate, Proxy, client_keys, proxy_keys};
use super::endpoint::Endpoint;
use super::kind::{HOUR, MILLISECOND, MINUTE, SECOND, certificates, count, duration, share, size, text};
use super::table::Table;

section! {
    /// `[upstream]`
    #[derive(Clone, Debug, PartialEq)]
    pub struct Upstream: pub fn for_endpoint(endpoint: Endpoint) {
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
        /// Ids that the endpoint takes in one call.
        pub ids_per_call: usize = 100, count(1..=1000);
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
        /// Certificate and key by which the endpoint knows sidelink.
        pub client: Option<ClientCertificate> = None => [with |upstream: &mut Self, table: &mut Table<'_>| client_keys(&mut upstream.client, table)];
        /// The HTTP proxy through which the endpoint is reached.
        pub proxy: Option<Proxy> = None => [with |upstream: &mut Self, table: &mut Table<'_>| proxy_keys(&mut upstream.proxy, table)];
        /// When a call is attempted again.
        pub retry: Retry = Retry::default() => [table];
        /// When calls stop because they fail.
        pub breaker: Breaker = Breaker::default() => [table];
    }
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
    pub struct Breaker {
        /// Failed calls in a row that open it.
        pub consecutive: u32 = 5, count(1..=1_000_000);
        /// Share of failed calls that opens it.
        pub ratio: f64 = 0.5, share(0.01..=1.0);
        /// Calls within the last 5 to 10 seconds before that share counts.
        pub min_calls: u32 = 20, count(1..=1_000_000);
        /// How long it stays open before a probe; up to a fifth more.
        pub open: Duration = 2 * SECOND, duration(MILLISECOND..=MINUTE);
    }
}
