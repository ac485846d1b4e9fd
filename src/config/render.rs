//! The effective configuration as TOML: what `check` prints. It reads back as the same configuration. Each key is
//! written out by hand, so that no secret is printed for having been added to a struct.

use std::fmt::{self, Display};
use std::time::Duration;

use super::{Config, Level, LogFormat, SecretSource};

impl Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[listen]")?;
        writeln!(f, "address = {}", strings(&self.listen.address))?;
        writeln!(f, "unix_mode = {}", string(format_args!("{:04o}", self.listen.unix_mode)))?;
        if let Some(tls) = &self.listen.tls {
            writeln!(f, "\n[listen.tls]")?;
            writeln!(f, "cert = {}", string(tls.cert.display()))?;
            writeln!(f, "key = {}", string(tls.key.display()))?;
            if let Some(path) = &tls.client_ca {
                writeln!(f, "client_ca = {}", string(path.display()))?;
            }
        }
        writeln!(f, "\n[admin]")?;
        writeln!(f, "address = {}", string(self.admin.address))?;
        if let Some(token) = &self.admin.token {
            writeln!(f, "token_file = {}", string(token.file.display()))?;
        }

        let upstream = &self.upstream;
        writeln!(f, "\n[upstream]")?;
        writeln!(f, "endpoint = {}", string(&upstream.endpoint))?;
        writeln!(f, "deadline = {}", duration(upstream.deadline))?;
        writeln!(f, "connect_timeout = {}", duration(upstream.connect_timeout))?;
        writeln!(f, "max_connection_age = {}", duration(upstream.max_connection_age))?;
        writeln!(f, "pool_idle = {}", duration(upstream.pool_idle))?;
        writeln!(f, "idle_timeout = {}", duration(upstream.idle_timeout))?;
        writeln!(f, "ids_per_call = {}", upstream.ids_per_call)?;
        writeln!(f, "uri_bytes = {}", string(size(upstream.uri_bytes as u64)))?;
        writeln!(f, "calls_per_scope = {}", upstream.calls_per_scope)?;
        writeln!(f, "calls = {}", upstream.calls)?;
        writeln!(f, "answer_bytes = {}", string(size(upstream.answer_bytes as u64)))?;
        if let Some(path) = &upstream.ca_file {
            writeln!(f, "ca_file = {}", string(path.display()))?;
        }
        if let Some(client) = &upstream.client {
            writeln!(f, "client_cert = {}", string(client.cert.display()))?;
            writeln!(f, "client_key = {}", string(client.key.display()))?;
        }
        if let Some(proxy) = &upstream.proxy {
            writeln!(f, "proxy = {}", string(&proxy.address))?;
            if let Some((_, file)) = &proxy.credentials {
                writeln!(f, "proxy_credentials_file = {}", string(file.display()))?;
            }
        }

        writeln!(f, "\n[upstream.retry]")?;
        writeln!(f, "attempts = {}", upstream.retry.attempts)?;
        writeln!(f, "budget = {:?}", upstream.retry.budget)?;
        writeln!(f, "\n[upstream.breaker]")?;
        writeln!(f, "consecutive = {}", upstream.breaker.consecutive)?;
        writeln!(f, "ratio = {:?}", upstream.breaker.ratio)?;
        writeln!(f, "min_calls = {}", upstream.breaker.min_calls)?;
        writeln!(f, "open = {}", duration(upstream.breaker.open))?;

        writeln!(f, "\n[cache]")?;
        writeln!(f, "capacity = {}", string(size(self.cache.capacity)))?;

        let freshness = &self.freshness;
        writeln!(f, "\n[freshness]")?;
        writeln!(f, "max = {}", duration(freshness.max))?;
        writeln!(f, "min_remaining = {}", duration(freshness.min_remaining))?;
        writeln!(f, "unsigned = {}", duration(freshness.unsigned))?;
        writeln!(f, "absent = {}", duration(freshness.absent))?;
        writeln!(f, "stale_if_error = {}", duration(freshness.stale_if_error))?;
        writeln!(f, "refresh_ahead = {}", freshness.refresh_ahead)?;
        writeln!(f, "honour_no_store = {}", freshness.honour_no_store)?;

        writeln!(f, "\n[callers]")?;
        writeln!(f, "revalidate = {}", duration(self.callers.revalidate))?;
        writeln!(f, "cache_control = {}", self.callers.cache_control)?;
        writeln!(f, "scope_headers = {}", strings(&self.callers.scope_headers))?;

        for key in &self.callers.keys {
            writeln!(f, "\n[[callers.keys]]")?;
            writeln!(f, "access_key = {}", string(&key.pair.access_key))?;
            match &key.source {
                SecretSource::File(path) => writeln!(f, "secret_key_file = {}", string(path.display()))?,
                SecretSource::Environment(name) => writeln!(f, "secret_key_env = {}", string(name))?,
            }
        }

        if let Some(shared) = &self.shared {
            writeln!(f, "\n[shared]")?;
            writeln!(f, "url = {}", strings(&shared.urls()))?;
            writeln!(f, "cluster = {}", shared.cluster)?;
            writeln!(f, "secret_file = {}", string(shared.secret_file.display()))?;
            if let Some(username) = &shared.username {
                writeln!(f, "username = {}", string(username))?;
            }
            if let Some(path) = &shared.password_file {
                writeln!(f, "password_file = {}", string(path.display()))?;
            }
            if let Some(path) = &shared.ca_file {
                writeln!(f, "ca_file = {}", string(path.display()))?;
            }
            writeln!(f, "prefix = {}", string(&shared.prefix))?;
            writeln!(f, "timeout = {}", duration(shared.timeout))?;
            writeln!(f, "lease_wait = {}", duration(shared.lease_wait))?;
        }

        let limits = &self.limits;
        writeln!(f, "\n[limits]")?;
        writeln!(f, "connections = {}", limits.connections)?;
        writeln!(f, "in_flight = {}", limits.in_flight)?;
        writeln!(f, "waiters = {}", limits.waiters)?;
        writeln!(f, "exchanges = {}", limits.exchanges)?;
        writeln!(f, "batch_ids = {}", limits.batch_ids)?;
        writeln!(f, "batch_body = {}", string(size(limits.batch_body as u64)))?;
        writeln!(f, "batch_bodies = {}", string(size(limits.batch_bodies as u64)))?;
        writeln!(f, "signed_body = {}", string(size(limits.signed_body as u64)))?;
        writeln!(f, "signed_bodies = {}", string(size(limits.signed_bodies as u64)))?;
        writeln!(f, "header_bytes = {}", string(size(limits.header_bytes as u64)))?;
        writeln!(f, "header_timeout = {}", duration(limits.header_timeout))?;
        writeln!(f, "idle_timeout = {}", duration(limits.idle_timeout))?;
        writeln!(f, "drain = {}", duration(limits.drain))?;

        writeln!(f, "\n[log]")?;
        writeln!(f, "level = {}", string(word(&Level::WORDS, self.log.level)))?;
        writeln!(f, "format = {}", string(word(&LogFormat::WORDS, self.log.format)))?;
        write!(f, "access = {}", self.log.access)?;

        let Some(trace) = &self.trace else { return Ok(()) };
        writeln!(f, "\n\n[trace]")?;
        writeln!(f, "endpoint = {}", string(trace.uri()))?;
        writeln!(f, "sample = {:?}", trace.sample)?;
        writeln!(f, "service_name = {}", string(&trace.service_name))?;
        if let Some(path) = &trace.ca_file {
            writeln!(f, "ca_file = {}", string(path.display()))?;
        }
        write!(f, "timeout = {}", duration(trace.timeout))?;
        for header in &trace.headers {
            writeln!(f, "\n\n[[trace.headers]]")?;
            writeln!(f, "name = {}", string(&header.name))?;
            write!(f, "value_file = {}", string(header.file.display()))?;
        }
        Ok(())
    }
}

fn string(value: impl Display) -> toml::Value {
    toml::Value::String(value.to_string())
}

fn strings<T: Display>(values: &[T]) -> toml::Value {
    toml::Value::Array(values.iter().map(string).collect())
}

fn duration(duration: Duration) -> toml::Value {
    string(humantime::format_duration(duration))
}

/// A size in the largest binary unit that leaves no remainder.
pub(super) fn size(bytes: u64) -> String {
    for (unit, name) in [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
        if bytes > 0 && bytes.is_multiple_of(unit) {
            return format!("{}{name}", bytes / unit);
        }
    }
    format!("{bytes}B")
}

fn word<T: PartialEq>(words: &[(&'static str, T)], value: T) -> &'static str {
    words.iter().find(|(_, known)| *known == value).map_or("", |(word, _)| word)
}
