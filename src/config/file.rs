//! The file's tables and keys, one by one.

use std::fs::File;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use http::HeaderName;
use toml::de::DeTable;

use super::error::ConfigErrors;
use super::fixed;
use super::own::is_own;
use super::reach;
use super::reader::{Found, Section};
use super::report::Report;
use super::secret::{self, KeyPair, Secret, SecretSource};
use super::{AdminToken, Config, Endpoint, Key, Level, ListenAddress, LogFormat, Tls};
use crate::api;

/// A configuration is a page or two: what is longer is some other file.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// A token that is shorter gets a warning.
const GUESSABLE: usize = 16;

const MILLISECOND: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// The text of the file at `path`, or why there is none.
pub(super) fn text(path: &Path) -> Result<String, String> {
    let unreadable = |error: io::Error| format!("cannot be read: {error}");
    let mut bytes = Vec::new();
    // One byte too many tells that the file is too long, also where it has no end.
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

/// Reads a whole file; `running` is what is in force already, if it is to take its place.
pub(super) fn read(text: &str, running: Option<&Config>) -> Result<Config, ConfigErrors> {
    let mut report = Report::new(text);
    let config = read_into(&mut report, text, running);
    let warnings = report.take_warnings();
    report.finish(config.map(|config| Config { warnings, ..config }))
}

fn read_into(report: &mut Report<'_>, text: &str, running: Option<&Config>) -> Option<Config> {
    let (document, syntax) = DeTable::parse_recoverable(text);
    for error in syntax {
        report.not_toml(error.span(), error.message());
    }
    let config = config(&document, report)?;
    if let Some(running) = running {
        fixed::check(running, &config, document.get_ref(), report);
    }
    Some(config)
}

fn config(document: &toml::Spanned<DeTable<'_>>, report: &mut Report<'_>) -> Option<Config> {
    let mut root = Section::root(document);

    let mut section = root.section("upstream", report);
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
    section.duration("max_connection_age", &mut upstream.max_connection_age, SECOND..=24 * HOUR, report);
    section.duration("pool_idle", &mut upstream.pool_idle, SECOND..=HOUR, report);
    section.duration("idle_timeout", &mut upstream.idle_timeout, MILLISECOND..=HOUR, report);
    section.count("ids_per_call", &mut upstream.ids_per_call, 1..=1000, report);
    section.bytes("uri_bytes", &mut upstream.uri_bytes, 1 << 10..=64 << 10, report);
    section.count("calls_per_scope", &mut upstream.calls_per_scope, 1..=1000, report);
    section.count("calls", &mut upstream.calls, 1..=100_000, report);
    section.bytes("answer_bytes", &mut upstream.answer_bytes, 64 << 10..=256 << 20, report);
    reach::read(&mut section, upstream, report);
    let mut retry = section.section("retry", report);
    retry.count("attempts", &mut upstream.retry.attempts, 0..=10, report);
    retry.share("budget", &mut upstream.retry.budget, 0.0..=1.0, report);
    retry.finish(report);
    let mut breaker = section.section("breaker", report);
    breaker.number("consecutive", &mut upstream.breaker.consecutive, 1..=1_000_000, report);
    breaker.share("ratio", &mut upstream.breaker.ratio, 0.01..=1.0, report);
    breaker.number("min_calls", &mut upstream.breaker.min_calls, 1..=1_000_000, report);
    breaker.duration("open", &mut upstream.breaker.open, MILLISECOND..=MINUTE, report);
    breaker.finish(report);
    section.finish(report);

    let mut section = root.section("listen", report);
    let listeners = section.list("address", &mut config.listen.address, ListenAddress::parse, report);
    if let Some(found) = section.find("address")
        && found.value.as_array().is_some_and(|array| array.is_empty())
    {
        found.wrong(report, "names no address");
    }
    if let Some(found) = section.find("unix_mode")
        && let Some(text) = found.text(report, "an octal mode such as \"0660\"")
    {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && text.bytes().all(|byte| byte.is_ascii_digit()) => {
                config.listen.unix_mode = mode;
            }
            _ => found.wrong(report, "must be an octal mode such as \"0660\", between \"0000\" and \"0777\""),
        }
    }
    let mut tls_section = section.section("tls", report);
    config.listen.tls = tls(&mut tls_section, report);
    tls_section.finish(report);
    section.finish(report);

    let mut section = root.section("admin", report);
    let admin = section.find("address");
    let mut admin_is_read = true;
    if let Some(found) = &admin {
        let text = found.text(report, "an address such as \"127.0.0.1:8081\"");
        match text.map(address) {
            Some(Ok(read)) => config.admin.address = read,
            Some(Err(message)) => found.wrong(report, message),
            None => {}
        }
        admin_is_read = text.is_some_and(|text| address(text).is_ok());
    }
    if let Some(found) = section.find("token_file") {
        config.admin.token = admin_token(&found, report);
    }
    section.finish(report);
    let admin_address = admin_is_read.then_some(config.admin.address);
    listeners_apart(&config.listen.address, &listeners, admin_address, admin.as_ref(), report);
    if let (Some(found), Some(endpoint)) = (&found, &endpoint)
        && config
            .listen
            .address
            .iter()
            .filter_map(ListenAddress::tcp)
            .chain(admin_address)
            .any(|listener| is_own(endpoint, listener))
    {
        found.wrong(report, "is this sidelink's own listener: requests would go round in circles");
    }

    let mut section = root.section("cache", report);
    section.size("capacity", &mut config.cache.capacity, 1 << 20..=1 << 40, report);
    section.finish(report);

    let mut section = root.section("freshness", report);
    let freshness = &mut config.freshness;
    section.duration("max", &mut freshness.max, SECOND..=DAY, report);
    section.duration("min_remaining", &mut freshness.min_remaining, Duration::ZERO..=DAY, report);
    section.duration("unsigned", &mut freshness.unsigned, Duration::ZERO..=DAY, report);
    section.duration("absent", &mut freshness.absent, Duration::ZERO..=HOUR, report);
    section.duration("stale_if_error", &mut freshness.stale_if_error, Duration::ZERO..=DAY, report);
    section.flag("refresh_ahead", &mut freshness.refresh_ahead, report);
    section.flag("honour_no_store", &mut freshness.honour_no_store, report);
    section.finish(report);

    let mut section = root.section("callers", report);
    let callers = &mut config.callers;
    section.duration("revalidate", &mut callers.revalidate, SECOND..=DAY, report);
    section.flag("cache_control", &mut callers.cache_control, report);
    let places = section.list("scope_headers", &mut callers.scope_headers, scope_header, report);
    for (at, (name, found)) in callers.scope_headers.iter().zip(&places).enumerate() {
        if callers.scope_headers.iter().take(at).any(|other| other == name) {
            found.wrong(report, format!("names {name} twice"));
        }
    }
    for mut table in section.tables("keys", report) {
        callers.keys.extend(key(&mut table, &callers.keys, report));
        table.finish(report);
    }
    section.finish(report);

    let mut section = root.section("shared", report);
    config.shared = super::shared::read(&mut section, report);
    section.finish(report);

    let mut section = root.section("limits", report);
    let limits = &mut config.limits;
    section.count("connections", &mut limits.connections, 1..=1_000_000, report);
    section.count("in_flight", &mut limits.in_flight, 1..=10_000_000, report);
    section.count("waiters", &mut limits.waiters, 1..=10_000_000, report);
    section.count("exchanges", &mut limits.exchanges, 1..=1_000_000, report);
    section.count("batch_ids", &mut limits.batch_ids, 1..=10_000, report);
    if limits.in_flight / 2 < limits.batch_ids
        && let Some(found) = section.find("in_flight").or_else(|| section.find("batch_ids"))
    {
        let least = 2 * limits.batch_ids;
        let why = "one caller may hold half of it, and a whole batch has to fit";
        found.wrong(report, format!("limits.in_flight must be at least {least}, twice limits.batch_ids: {why}"));
    }
    section.bytes("batch_body", &mut limits.batch_body, 1 << 10..=16 << 20, report);
    section.bytes("batch_bodies", &mut limits.batch_bodies, 1 << 10..=1 << 40, report);
    if limits.batch_bodies < limits.batch_body
        && let Some(found) = section.find("batch_bodies").or_else(|| section.find("batch_body"))
    {
        found.wrong(report, "limits.batch_bodies must be at least limits.batch_body: one such body has to fit");
    }
    section.bytes("signed_body", &mut limits.signed_body, 1 << 10..=256 << 20, report);
    section.bytes("signed_bodies", &mut limits.signed_bodies, 1 << 10..=1 << 40, report);
    if limits.signed_bodies < limits.signed_body
        && let Some(found) = section.find("signed_bodies").or_else(|| section.find("signed_body"))
    {
        found.wrong(report, "limits.signed_bodies must be at least limits.signed_body: one such body has to fit");
    }
    section.bytes("header_bytes", &mut limits.header_bytes, 8 << 10..=1 << 20, report);
    section.duration("header_timeout", &mut limits.header_timeout, MILLISECOND..=HOUR, report);
    section.duration("idle_timeout", &mut limits.idle_timeout, MILLISECOND..=DAY, report);
    section.duration("drain", &mut limits.drain, Duration::ZERO..=HOUR, report);
    section.finish(report);

    let mut section = root.section("log", report);
    section.choice("level", &mut config.log.level, &Level::WORDS, report);
    section.choice("format", &mut config.log.format, &LogFormat::WORDS, report);
    section.flag("access", &mut config.log.access, report);
    section.finish(report);

    let mut section = root.section("trace", report);
    config.trace = super::trace::read(&mut section, report).map(|(trace, found)| {
        let mut listeners = config.listen.address.iter().filter_map(ListenAddress::tcp).chain(admin_address);
        if listeners.any(|listener| is_own(&trace.endpoint, listener)) {
            found.wrong(report, "is this sidelink's own listener: every span would bring forth another");
        }
        trace
    });
    section.finish(report);

    root.finish(report);
    endpoint.map(|_| config)
}

fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| format!("\"{}\" is not an address such as \"127.0.0.1:8080\"", text.escape_debug()))
}

/// No two listeners share an address. The error is at a key that stands in the file.
fn listeners_apart(
    addresses: &[ListenAddress],
    places: &[Found<'_, '_>],
    admin_address: Option<SocketAddr>,
    admin: Option<&Found<'_, '_>>,
    report: &mut Report<'_>,
) {
    let clash = |one: &ListenAddress, other: &ListenAddress| match (one.tcp(), other.tcp()) {
        (Some(one), Some(other)) => clash(one, other),
        _ => one == other,
    };
    for (at, (address, found)) in addresses.iter().zip(places).enumerate() {
        if let Some(other) = addresses.iter().take(at).find(|other| clash(address, other)) {
            found.wrong(report, format!("{address} clashes with {other}, named before"));
        }
    }
    let Some(admin_address) = admin_address.map(ListenAddress::Tcp) else { return };
    let Some((at, address)) = addresses.iter().enumerate().find(|(_, address)| clash(address, &admin_address)) else {
        return;
    };
    match (admin, places.get(at)) {
        (Some(admin), _) => admin.wrong(report, format!("{admin_address} clashes with {address}, a listen.address")),
        (None, Some(found)) => {
            found.wrong(report, format!("{address} clashes with {admin_address}, the default of admin.address"));
        }
        // The defaults do not clash.
        (None, None) => {}
    }
}

/// Whether the system would refuse the second of two listeners. Port 0 takes a free one.
fn clash(one: SocketAddr, other: SocketAddr) -> bool {
    let any = one.is_ipv4() == other.is_ipv4() && (one.ip().is_unspecified() || other.ip().is_unspecified());
    one.port() != 0 && one.port() == other.port() && (one.ip() == other.ip() || any)
}

fn scope_header(text: &str) -> Result<HeaderName, String> {
    let name: HeaderName = text.parse().map_err(|_| format!("\"{}\" is not a header's name", text.escape_debug()))?;
    let reason = match name.as_str() {
        "authorization" | "x-auth-token" | "x-security-token" | "cookie" => "a credential, and always told apart",
        "connection"
        | "keep-alive"
        | "proxy-connection"
        | "proxy-authorization"
        | "proxy-authenticate"
        | "te"
        | "trailer"
        | "transfer-encoding"
        | "upgrade"
        | "http2-settings" => "about one connection, and not forwarded",
        "host" | "content-length" | "content-type" | "content-encoding" | "accept" | "accept-encoding"
        | "user-agent" | "via" | "range" | "expect" | "traceparent" | "tracestate" | "cache-control" => {
            "set by sidelink itself on every call"
        }
        "x-sdk-date" | "x-sdk-content-sha256" | "x-request-id" | "date" => "another one with every request",
        _ if api::SCOPE_HEADERS.contains(&name) => "told apart without being named",
        _ => return Ok(name),
    };
    Err(format!("{name} is {reason}"))
}

/// The secret in the file that a value names, and the file's path.
pub(super) fn secret_file(found: &Found<'_, '_>, report: &mut Report<'_>) -> Option<(Secret, PathBuf)> {
    let path = Path::new(found.text(report, "a file's path")?);
    match secret::from_file(path) {
        Ok((secret, everyones)) => {
            if everyones {
                report.warn(found.span.start, &found.key, &too_open(path));
            }
            Some((secret, path.to_owned()))
        }
        Err(message) => {
            found.wrong(report, message);
            None
        }
    }
}

/// `[listen.tls]`, whose files are read to see that they fit together.
fn tls(section: &mut Section<'_, '_>, report: &mut Report<'_>) -> Option<Tls> {
    let keys = ["cert", "key", "client_ca"];
    let found = keys.map(|key| section.find(key));
    if !section.is_there() {
        return None;
    }
    for key in ["cert", "key"] {
        section.require(key, report);
    }
    let [cert, key, client_ca] =
        found.each_ref().map(|found| found.as_ref().and_then(|found| found.text(report, "a file's path")));
    if client_ca.is_none() && found.last().is_some_and(Option::is_some) {
        return None;
    }
    let tls = Tls { cert: cert?.into(), key: key?.into(), client_ca: client_ca.map(PathBuf::from) };
    if let Err(error) = tls.read() {
        if let Some((_, Some(found))) = keys.into_iter().zip(&found).find(|(key, _)| *key == error.key) {
            found.wrong(report, error.message);
        }
        return None;
    }
    if secret::is_everyones(&tls.key)
        && let [_, Some(key), _] = &found
    {
        report.warn(key.span.start, &key.key, &too_open(&tls.key));
    }
    Some(tls)
}

pub(super) fn too_open(path: &Path) -> String {
    format!("everyone on this machine may read {}; chmod o-rwx takes that away", path.display())
}

fn admin_token(found: &Found<'_, '_>, report: &mut Report<'_>) -> Option<AdminToken> {
    let (secret, file) = secret_file(found, report)?;
    if secret.expose().len() < GUESSABLE {
        let message = format!("a token of fewer than {GUESSABLE} characters may be guessed");
        report.warn(found.span.start, &found.key, &message);
    }
    Some(AdminToken { secret, file })
}

/// One table of `[[callers.keys]]`, after those before it.
fn key(table: &mut Section<'_, '_>, before: &[Key], report: &mut Report<'_>) -> Option<Key> {
    let access_key = table.find("access_key");
    let file = table.find("secret_key_file");
    let variable = table.find("secret_key_env");
    if !table.is_there() {
        return None;
    }
    let access_key = table.require("access_key", report).and(access_key).and_then(|found| {
        let text = found.text(report, "an access key")?;
        if text.is_empty() || text.len() > 128 || !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        {
            found.wrong(report, "must be an access key: 1 to 128 letters, digits and underscores");
            return None;
        }
        if before.iter().any(|key| key.pair.access_key == text) {
            found.wrong(report, "the same access key has a table before");
        }
        Some(text.to_owned())
    });
    let (secret_key, source) = match (file, variable) {
        (Some(file), None) => {
            let (secret_key, path) = secret_file(&file, report)?;
            (secret_key, SecretSource::File(path))
        }
        (None, Some(variable)) => {
            let name = variable.text(report, "the name of an environment variable")?;
            match secret::from_environment(name) {
                Ok(secret_key) => (secret_key, SecretSource::Environment(name.to_owned())),
                Err(message) => {
                    variable.wrong(report, message);
                    return None;
                }
            }
        }
        (Some(_), Some(_)) => {
            table.wrong(report, "has both secret_key_file and secret_key_env: the secret key can be in one place only");
            return None;
        }
        (None, None) => {
            table.wrong(report, "has no secret key: secret_key_file or secret_key_env says where it is");
            return None;
        }
    };
    Some(Key { pair: KeyPair { access_key: access_key?, secret_key }, source })
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_key_that_is_accepted_stands_in_the_shipped_file() {
        let shipped = include_str!("../../config/sidelink.toml");
        let mut report = Report::new(shipped);
        assert!(read_into(&mut report, shipped, None).is_some());

        let mut table = "";
        let mut written = BTreeSet::new();
        for line in shipped.lines() {
            if let Some(heading) = line.trim_start_matches("# ").strip_prefix('[') {
                table = heading.trim_matches(['[', ']']);
            }
            // A key without a default stands commented out.
            if let Some((key, _)) = line.trim_start_matches("# ").split_once(" = ")
                && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
            {
                written.insert(format!("{table}.{key}"));
            }
        }
        assert_eq!(report.keys(), written);
    }
}
