//! The file's tables and keys, one by one.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderName;
use toml::de::DeTable;

use super::error::ConfigErrors;
use super::reader::{Report, Section};
use super::{Config, Endpoint, Level, LogFormat};

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Key by key; for a key that stands in the wrong table.
const KEYS: [(&str, &str); 45] = [
    ("listen", "address"),
    ("upstream", "endpoint"),
    ("upstream", "deadline"),
    ("upstream", "connect_timeout"),
    ("upstream", "idle_timeout"),
    ("upstream", "ids_per_call"),
    ("upstream", "uri_bytes"),
    ("upstream", "calls_per_scope"),
    ("upstream", "calls"),
    ("upstream", "answer_bytes"),
    ("upstream", "ca_file"),
    ("cache", "capacity"),
    ("freshness", "max"),
    ("freshness", "min_remaining"),
    ("freshness", "unsigned"),
    ("freshness", "absent"),
    ("freshness", "stale_if_error"),
    ("freshness", "refresh_ahead"),
    ("freshness", "honour_no_store"),
    ("upstream.retry", "attempts"),
    ("upstream.retry", "budget"),
    ("upstream.breaker", "consecutive"),
    ("upstream.breaker", "ratio"),
    ("upstream.breaker", "min_calls"),
    ("upstream.breaker", "open"),
    ("callers", "revalidate"),
    ("callers", "cache_control"),
    ("callers", "scope_headers"),
    ("limits", "connections"),
    ("limits", "in_flight"),
    ("limits", "waiters"),
    ("limits", "batch_ids"),
    ("limits", "batch_body"),
    ("limits", "header_bytes"),
    ("limits", "header_timeout"),
    ("limits", "idle_timeout"),
    ("limits", "drain"),
    ("log", "level"),
    ("log", "format"),
    ("log", "access"),
    // Sections, met as keys of another table.
    ("", "listen"),
    ("", "admin"),
    ("", "upstream"),
    ("", "cache"),
    ("", "freshness"),
];

pub(super) fn read(text: &str) -> Result<Config, ConfigErrors> {
    let mut report = Report::new(text);
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        report.add(error.span().map_or(0, |span| span.start), "", format!("not TOML: {}", error.message()));
    }
    let config = config(&document, &mut report);
    report.finish(config)
}

fn config(document: &toml::Spanned<DeTable<'_>>, report: &mut Report<'_>) -> Option<Config> {
    let mut root = Section::root(document);

    let mut section = root.section("upstream", "upstream", report);
    let found = section.require("endpoint", report);
    let endpoint = found.as_ref().and_then(|found| {
        let text = found.text(report, "a URL")?;
        Endpoint::parse(text).map_err(|message| found.wrong(report, message)).ok()
    });
    // The others are checked whether or not there is an endpoint.
    let stand_in = || Endpoint {
        scheme: http::uri::Scheme::HTTP,
        authority: http::uri::Authority::from_static("stand-in.invalid"),
    };
    let mut config = Config::for_endpoint(endpoint.clone().unwrap_or_else(stand_in));
    let upstream = &mut config.upstream;
    section.duration("deadline", &mut upstream.deadline, MILLISECOND..=10 * MINUTE, report);
    section.duration("connect_timeout", &mut upstream.connect_timeout, MILLISECOND..=MINUTE, report);
    section.duration("idle_timeout", &mut upstream.idle_timeout, MILLISECOND..=HOUR, report);
    section.count("ids_per_call", &mut upstream.ids_per_call, 1..=1000, report);
    section.bytes("uri_bytes", &mut upstream.uri_bytes, 1 << 10..=64 << 10, report);
    section.count("calls_per_scope", &mut upstream.calls_per_scope, 1..=1000, report);
    section.count("calls", &mut upstream.calls, 1..=100_000, report);
    section.bytes("answer_bytes", &mut upstream.answer_bytes, 64 << 10..=256 << 20, report);
    if let Some(found) = section.find("ca_file")
        && let Some(path) = found.text(report, "a file's path")
    {
        match std::fs::File::open(path) {
            Ok(_) => upstream.ca_file = Some(PathBuf::from(path)),
            Err(error) => found.wrong(report, format!("cannot be read: {error}")),
        }
    }
    let mut retry = section.section("retry", "upstream.retry", report);
    retry.count("attempts", &mut upstream.retry.attempts, 0..=10, report);
    retry.share("budget", &mut upstream.retry.budget, 0.0..=1.0, report);
    retry.finish(&KEYS, report);
    let mut breaker = section.section("breaker", "upstream.breaker", report);
    breaker.number("consecutive", &mut upstream.breaker.consecutive, 1..=1_000_000, report);
    breaker.share("ratio", &mut upstream.breaker.ratio, 0.01..=1.0, report);
    breaker.number("min_calls", &mut upstream.breaker.min_calls, 1..=1_000_000, report);
    breaker.duration("open", &mut upstream.breaker.open, MILLISECOND..=MINUTE, report);
    breaker.finish(&KEYS, report);
    section.finish(&KEYS, report);

    let mut section = root.section("listen", "listen", report);
    section.list("address", &mut config.listen.address, address, report);
    let listen = section.find("address");
    if let Some(found) = &listen
        && config.listen.address.is_empty()
        && found.value.as_array().is_some_and(|array| array.is_empty())
    {
        found.wrong(report, "names no address");
    }
    let twice = config.listen.address.iter().enumerate().find(|(at, address)| {
        address.port() != 0 && config.listen.address.iter().take(*at).any(|other| other == *address)
    });
    if let (Some(found), Some((_, address))) = (&listen, twice) {
        found.wrong(report, format!("names {address} twice"));
    }
    section.finish(&KEYS, report);

    let mut section = root.section("admin", "admin", report);
    if let Some(found) = section.find("address")
        && let Some(text) = found.text(report, "an address such as \"127.0.0.1:8081\"")
    {
        match address(text) {
            Ok(read) if read.port() != 0 && config.listen.address.contains(&read) => {
                found.wrong(report, format!("{read} is listen.address already"));
            }
            Ok(read) => config.admin.address = read,
            Err(message) => found.wrong(report, message),
        }
    }
    section.finish(&KEYS, report);
    if let (Some(found), Some(endpoint)) = (&found, &endpoint)
        && config.listen.address.iter().any(|listener| is_own(endpoint, *listener))
    {
        found.wrong(report, "is this sidelink's own listener: requests would go round in circles");
    }

    let mut section = root.section("cache", "cache", report);
    section.size("capacity", &mut config.cache.capacity, 1 << 20..=1 << 40, report);
    section.finish(&KEYS, report);

    let mut section = root.section("freshness", "freshness", report);
    let freshness = &mut config.freshness;
    section.duration("max", &mut freshness.max, SECOND..=DAY, report);
    section.duration("min_remaining", &mut freshness.min_remaining, Duration::ZERO..=DAY, report);
    section.duration("unsigned", &mut freshness.unsigned, Duration::ZERO..=DAY, report);
    section.duration("absent", &mut freshness.absent, Duration::ZERO..=HOUR, report);
    section.duration("stale_if_error", &mut freshness.stale_if_error, Duration::ZERO..=DAY, report);
    section.flag("refresh_ahead", &mut freshness.refresh_ahead, report);
    section.flag("honour_no_store", &mut freshness.honour_no_store, report);
    section.finish(&KEYS, report);

    let mut section = root.section("callers", "callers", report);
    let callers = &mut config.callers;
    section.duration("revalidate", &mut callers.revalidate, SECOND..=DAY, report);
    section.flag("cache_control", &mut callers.cache_control, report);
    section.list("scope_headers", &mut callers.scope_headers, scope_header, report);
    section.finish(&KEYS, report);

    let mut section = root.section("limits", "limits", report);
    let limits = &mut config.limits;
    section.count("connections", &mut limits.connections, 1..=1_000_000, report);
    section.count("in_flight", &mut limits.in_flight, 1..=10_000_000, report);
    section.count("waiters", &mut limits.waiters, 1..=10_000_000, report);
    section.count("batch_ids", &mut limits.batch_ids, 1..=10_000, report);
    section.bytes("batch_body", &mut limits.batch_body, 1 << 10..=16 << 20, report);
    section.bytes("header_bytes", &mut limits.header_bytes, 8 << 10..=1 << 20, report);
    section.duration("header_timeout", &mut limits.header_timeout, MILLISECOND..=HOUR, report);
    section.duration("idle_timeout", &mut limits.idle_timeout, MILLISECOND..=DAY, report);
    section.duration("drain", &mut limits.drain, Duration::ZERO..=HOUR, report);
    section.finish(&KEYS, report);

    let mut section = root.section("log", "log", report);
    section.choice("level", &mut config.log.level, &Level::WORDS, report);
    section.choice("format", &mut config.log.format, &LogFormat::WORDS, report);
    section.flag("access", &mut config.log.access, report);
    section.finish(&KEYS, report);

    root.finish(&KEYS, report);
    endpoint.map(|_| config)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("\"{}\" is not an address such as \"127.0.0.1:8080\"", text.escape_debug()))
}

/// Whether the endpoint is a listener of this very process, as far as addresses tell without asking a resolver.
fn is_own(endpoint: &Endpoint, listener: SocketAddr) -> bool {
    if listener.port() == 0 || listener.port() != endpoint.port() {
        return false;
    }
    let host = endpoint.authority.host();
    let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().ok();
    let loopback = host == "localhost" || ip.is_some_and(|ip| ip.is_loopback() || ip.is_unspecified());
    ip == Some(listener.ip()) || (loopback && (listener.ip().is_loopback() || listener.ip().is_unspecified()))
}

fn scope_header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("\"{}\" is not a header's name", text.escape_debug()))?;
    let reason = match name.as_str() {
        "authorization" | "x-auth-token" | "x-security-token" | "cookie" => "a credential, and always told apart",
        "connection" | "keep-alive" | "proxy-connection" | "te" | "trailer" | "transfer-encoding" | "upgrade" => {
            "about one connection, and not forwarded"
        }
        "host" | "content-length" | "content-type" | "content-encoding" | "accept" | "accept-encoding"
        | "user-agent" | "via" | "range" | "expect" | "traceparent" | "cache-control" => {
            "set by sidelink itself on every call"
        }
        _ => return Ok(name),
    };
    Err(format!("{name} is {reason}"))
}

impl Level {
    pub(super) const WORDS: [(&'static str, Level); 5] = [
        ("error", Level::Error),
        ("warn", Level::Warn),
        ("info", Level::Info),
        ("debug", Level::Debug),
        ("trace", Level::Trace),
    ];
}

impl LogFormat {
    pub(super) const WORDS: [(&'static str, LogFormat); 2] = [("json", LogFormat::Json), ("text", LogFormat::Text)];
}
