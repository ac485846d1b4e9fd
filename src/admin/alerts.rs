//! The problems of the moment, in plain words: `alerts` of `/status.json`, and the banners of the page.
//!
//! **To add an alert, add a variant to [`Kind`]**, in the order of what hurts most, and a function to [`alerts`].
//!
//! A title changes only if the cause does, since screen readers read it out each time; numbers that grow are in the text.

mod batches;
mod tier;

use serde_json::{Value, json};

use super::AdminState;
use crate::clock::{Moment, millis, rfc3339};
use crate::config::IdentityConfig;
use crate::error::Error;
use crate::telemetry::metrics::{BreakerState, CertificateUse};

/// The milliseconds whose batches are judged.
const WINDOW: u64 = 120_000;
/// The milliseconds for which dropped log lines are shown: all of the history.
const LONG_WINDOW: u64 = 600_000;
/// The milliseconds before a certificate's end from which on it is shown.
const CERTIFICATE: u64 = 14 * 24 * 3600 * 1000;

/// The alerts, in the order in which they are shown among those of one severity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    /// Batches fail.
    Errors,
    /// The breaker is not closed, or refuses sources alone.
    Breaker,
    /// The endpoint has asked all callers to pause.
    Pause,
    /// A certificate has expired, or will soon.
    Certificate,
    /// The process ends.
    Draining,
    /// The configuration file was refused.
    Reload,
    /// Batches are answered with links past their freshness.
    Stale,
    /// Batches are forwarded untouched.
    Forwarded,
    /// The shared tier is down, refuses writes, or fails.
    SharedTier,
    /// Another fleet uses the shared tier under the same prefix.
    SharedTierSplit,
    /// Purges wait to be told to the fleet.
    PurgesUntold,
    /// Purges were merged into one of everything.
    PurgesMerged,
    /// The identity provider fails.
    IdentityProvider,
    /// The identity provider refuses sidelink's own credentials.
    IdentityCredentials,
    /// Log lines were dropped.
    LogDropped,
    /// The limit of open files is too low.
    Descriptors,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Severity {
    /// Clients get errors now.
    Critical,
    /// Something is amiss, and clients are answered.
    Warning,
}

/// Who can repair it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Client,
    Endpoint,
    Sidelink,
    Operator,
    /// The counters do not tell.
    Unknown,
}

#[derive(Clone, Debug)]
struct Alert {
    kind: Kind,
    severity: Severity,
    fault: Fault,
    /// When it began, as far as it is known.
    since: Option<Moment>,
    /// What hurts, and the cause.
    title: String,
    /// What, since when, whose fault, and what to do.
    text: String,
}

/// The alerts of `state` now, worst first.
pub(super) fn alerts(state: &AdminState, now: Moment) -> Value {
    let counted = state.process.history.counted_within(WINDOW);
    let (mut errors, mut breaker) = (batches::errors(state, &counted, now), breaker(state, now));
    if let (Some(failing), Some(tripped)) = (&errors, &mut breaker)
        && (failing.fault, tripped.fault) == (Fault::Endpoint, Fault::Endpoint)
    {
        // One fault, one alert: the endpoint fails, and so the breaker has tripped.
        tripped.text = format!("{} {}", batches::failed(state, &counted, now), tripped.text);
        errors = None;
    }
    let found = [
        errors,
        batches::stale(state, &counted, now),
        batches::forwarded(&counted),
        breaker,
        pause(state),
        certificate(state, now),
        draining(state, now),
        reload(state, now),
        tier::shared_tier(state, now),
        tier::shared_tier_split(state, now),
        tier::purges_untold(state, now),
        tier::purges_merged(&counted),
        identity_provider(state, now),
        log_dropped(state),
        descriptors(state),
    ];
    let mut alerts: Vec<Alert> = found.into_iter().flatten().collect();
    alerts.sort_by_key(|alert| (alert.severity, alert.kind));
    alerts.iter().map(Alert::json).collect()
}

impl Alert {
    fn json(&self) -> Value {
        json!({
            "kind": self.kind.name(),
            "severity": if self.severity == Severity::Critical { "critical" } else { "warning" },
            "fault": self.fault.name(),
            "since": self.since.map(Moment::unix_millis),
            "title": self.title,
            "text": self.text,
        })
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Errors => "errors",
            Kind::Breaker => "breaker",
            Kind::Pause => "pause",
            Kind::Certificate => "certificate",
            Kind::Draining => "draining",
            Kind::Reload => "reload",
            Kind::Stale => "stale",
            Kind::Forwarded => "forwarded",
            Kind::SharedTier => "shared_tier",
            Kind::SharedTierSplit => "shared_tier_split",
            Kind::PurgesUntold => "purges_untold",
            Kind::PurgesMerged => "purges_merged",
            Kind::IdentityProvider => "identity_provider",
            Kind::IdentityCredentials => "identity_credentials",
            Kind::LogDropped => "log_dropped",
            Kind::Descriptors => "descriptors",
        }
    }
}

impl Fault {
    fn name(self) -> &'static str {
        match self {
            Fault::Client => "client",
            Fault::Endpoint => "endpoint",
            Fault::Sidelink => "sidelink",
            Fault::Operator => "operator",
            Fault::Unknown => "unknown",
        }
    }
}

fn breaker(state: &AdminState, now: Moment) -> Option<Alert> {
    let status = state.upstream.breaker();
    let counts = status.counts;
    let evidence = listed([
        (counts.connect as u64, "failed to connect"),
        (counts.lost as u64, "connections lost"),
        (counts.answer as u64, "answers of 502, 503 or 504"),
        (counts.silence as u64, "without an answer in time"),
    ]);
    let evidence = format!(
        "Evidence: {}, for {} and {}.",
        if evidence.is_empty() { "a probe that failed".to_owned() } else { evidence },
        number(counts.callers as u64, "caller", "callers"),
        number(counts.id_sets as u64, "set of ids", "sets of ids"),
    );
    if status.state == BreakerState::Closed {
        return (status.refused > 0).then(|| Alert {
            kind: Kind::Breaker,
            severity: Severity::Warning,
            fault: Fault::Unknown,
            since: None,
            title: "The calls of single callers fail, so the breaker refuses them alone".to_owned(),
            text: format!(
                "{} held back while the calls of others succeed. {evidence} Their credentials or their ids make the \
                 endpoint fail; the access log has the callers with errors.",
                number(status.refused as u64, "caller is", "callers are"),
            ),
        });
    }
    let since = state.process.history.breaker_tripped_since();
    let failure = state.upstream.last_failure();
    let reason = failure.as_ref().map_or_else(String::new, |failure| {
        format!(" Last failure, {} ago: {}.", span(now.since(failure.at)), failure.reason)
    });
    let wait = match state.upstream.rejection_of_all().map(|rejection| rejection.error) {
        Some(Error::BreakerOpen(wait)) => Some(wait),
        _ => None,
    };
    let next = wait.map_or_else(String::new, |wait| format!(" The next probe follows in {}.", left(millis(wait))));
    let (title, calls) = match status.state {
        BreakerState::HalfOpen => {
            ("The breaker is half-open: the endpoint failed, and is probed", "One call at a time goes to the endpoint")
        }
        // Where nobody succeeds and one source has failed, others are let through.
        _ if wait.is_none() => {
            ("The breaker is open: the endpoint fails", "No call of those who have failed goes to the endpoint")
        }
        _ => ("The breaker is open: the endpoint fails", "No call goes to the endpoint"),
    };
    Some(Alert {
        kind: Kind::Breaker,
        severity: Severity::Critical,
        fault: Fault::Endpoint,
        since,
        title: title.to_owned(),
        text: format!(
            "{calls}{}.{reason} {evidence}{next} Batches that memory can answer are answered, others get a 503. Repair the \
             endpoint or the way to it; the breaker closes by itself.",
            lasting(since, now),
        ),
    })
}

fn pause(state: &AdminState) -> Option<Alert> {
    let Error::HeldBack(left) = state.upstream.rejection_of_all()?.error else { return None };
    Some(Alert {
        kind: Kind::Pause,
        severity: Severity::Critical,
        fault: Fault::Endpoint,
        since: None,
        title: "The endpoint has asked all callers to pause (503 with Retry-After)".to_owned(),
        text: format!(
            "{} left. Until then no call is sent: batches that memory can answer are answered, others get a 503. Two callers \
             with different ids were told so, hence it is no matter of one caller. The endpoint is overloaded or under maintenance: \
             ask who runs it.",
            self::left(millis(left)),
        ),
    })
}

/// The certificate in use that ends first.
fn certificate(state: &AdminState, now: Moment) -> Option<Alert> {
    let gauges = state.process.metrics.certificate_expiry.iter();
    let ends = gauges.map(|(of, gauge)| (u64::try_from(gauge.get()).unwrap_or(0), of)).filter(|(end, _)| *end > 0);
    let (end, of) = ends.min_by_key(|(end, _)| *end)?;
    let key = match of {
        CertificateUse::Listen => "listen.tls.cert",
        CertificateUse::Admin => "admin.tls.cert",
        CertificateUse::Upstream => "upstream.client_cert",
        CertificateUse::Identity => "callers.identity.client_cert",
    };
    let left = end.saturating_sub(now.unix_seconds()) * 1000;
    (left < CERTIFICATE).then(|| Alert {
        kind: Kind::Certificate,
        severity: if left == 0 { Severity::Critical } else { Severity::Warning },
        fault: Fault::Operator,
        since: None,
        title: format!("A certificate {} ({key})", if left == 0 { "has expired" } else { "expires soon" }),
        text: format!(
            "{}, at {}. Then connections that verify it fail. Replace the file and its key: both are read again when they change, without a restart.",
            if left == 0 { "It is no longer valid".to_owned() } else { format!("{} left", span(left)) },
            rfc3339(end * 1000),
        ),
    })
}

fn identity_provider(state: &AdminState, now: Moment) -> Option<Alert> {
    let provider = state.identity_provider.as_ref()?;
    // One fault, one alert: requests are held back once there are enough of these refusals.
    let (kind, reason, since) = match provider.credentials_refused() {
        Some(since) => (Kind::IdentityCredentials, None, since),
        None => provider.outage().map(|(reason, since)| (Kind::IdentityProvider, Some(reason), since))?,
    };
    let since = now.before(millis(since.elapsed()));
    let server = state.config.callers.identity.as_ref().and_then(IdentityConfig::server);
    let server = server.map_or_else(String::new, |server| format!(" ({server})"));
    let consequence = "No batch fails for it: a token of which it cannot be asked is a caller of its own, and what is known of others is good \
        for callers.revalidate at most.";
    let ago = span(now.since(since));
    let (title, text) = match reason {
        Some(reason) => (
            "The identity provider fails: new tokens share nothing",
            format!(
                "Since {ago} ago: {reason}. It is asked again every 30 seconds at most{server}. {consequence} Check the provider, the way to it, \
                 and [callers.identity]."
            ),
        ),
        None => (
            "The identity provider refuses sidelink's own credentials: new tokens share nothing",
            format!(
                "Since {ago} ago it has answered 401 or 403 to each request, whatever the token{server}. {consequence} Renew what \
                 callers.identity.token_file or client_file names, or give it the right to ask about others' tokens; the file is read again by \
                 itself."
            ),
        ),
    };
    Some(Alert {
        kind,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: Some(since),
        title: title.to_owned(),
        text,
    })
}

fn draining(state: &AdminState, now: Moment) -> Option<Alert> {
    let since = *state.process.draining.get()?;
    let open = state.process.metrics.connections.get().max(0).unsigned_abs();
    Some(Alert {
        kind: Kind::Draining,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: Some(since),
        title: "sidelink is shutting down: it accepts no new connections".to_owned(),
        text: format!(
            "Told to end {} ago. Requests in flight are answered; {} open. It ends when they are closed, {} after the beginning \
             at the latest (limits.drain). This is as it should be during a restart or an upgrade; else see who sent the signal.",
            span(now.since(since)),
            number(open, "connection is", "connections are"),
            span(millis(state.config.limits.drain)),
        ),
    })
}

fn reload(state: &AdminState, now: Moment) -> Option<Alert> {
    let reload = state.process.last_reload.load();
    let first = reload.errors.first()?;
    let others = match reload.errors.len() - 1 {
        0 => String::new(),
        others => format!(" {} below, under State.", number(others as u64, "more line stands", "more lines stand")),
    };
    Some(Alert {
        kind: Kind::Reload,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: Some(reload.since),
        title: format!(
            "The configuration file is refused{}",
            key(first).map_or_else(String::new, |key| format!(": {key}"))
        ),
        text: format!(
            "{first}{} Refused {} ago; the previous configuration stays in effect. Correct the file: it is read again within 10 s. A \
             restart with this file would fail.{others}",
            if first.ends_with(['.', '?', '!']) { "" } else { "." },
            span(now.since(reload.since)),
        ),
    })
}

/// The key that an error names: "sidelink.toml:4: limits.batch_idz: unknown key".
fn key(error: &str) -> Option<&str> {
    let is_key = |part: &&str| {
        let mut characters = part.chars();
        let of_keys = |character: char| {
            character.is_ascii_lowercase() || character.is_ascii_digit() || "._[]".contains(character)
        };
        characters.next().is_some_and(|first| first.is_ascii_lowercase()) && characters.all(of_keys)
    };
    // The first part names the file, if any does.
    error.split(": ").take(2).find(is_key)
}

fn log_dropped(state: &AdminState) -> Option<Alert> {
    let dropped = state.process.history.counted_within(LONG_WINDOW).log_dropped;
    (dropped > 0).then(|| Alert {
        kind: Kind::LogDropped,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: None,
        title: "Log lines are lost".to_owned(),
        text: format!(
            "{} dropped in the last {}: who reads standard output does not keep up, or it takes no more (a full disk?). Requests \
             go on. Check the log collector, or write less: log.access = \"errors\".",
            number(dropped, "line was", "lines were"),
            span(LONG_WINDOW),
        ),
    })
}

fn descriptors(state: &AdminState) -> Option<Alert> {
    let short = state.process.descriptors_short.load_full()?;
    Some(Alert {
        kind: Kind::Descriptors,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: None,
        title: "Too few open files are allowed, so fewer clients may connect".to_owned(),
        text: format!(
            "{} connections of clients are accepted in place of {} (limits.connections): this process may open {} files, and its \
             limits need {}. Raise the hard limit (ulimit -Hn, or LimitNOFILE= of systemd) and restart, or lower limits.connections.",
            short.connections, short.configured, short.limit, short.needed,
        ),
    })
}

/// ", for 3 min now"; nothing where it has just begun.
fn lasting(since: Option<Moment>, now: Moment) -> String {
    since.map_or_else(String::new, |since| format!(", for {} now", span_in_history(now.since(since))))
}

/// A span that the history tells: it knows ten minutes.
fn span_in_history(length: u64) -> String {
    let text = span(length);
    if length > LONG_WINDOW - 10_000 { format!("{text} or longer") } else { text }
}

/// The rest of a span, rounded up to a whole second.
fn left(length: u64) -> String {
    span(length.next_multiple_of(1000))
}

/// A span in the largest unit of which it has one, and seconds up to two minutes. Rounded down, so that nothing is said to be older
/// than the process.
fn span(length: u64) -> String {
    match length / 1000 {
        seconds @ 0..120 => format!("{seconds} s"),
        seconds @ 120..7200 => format!("{} min", seconds / 60),
        seconds @ 7200..172_800 => format!("{} h", seconds / 3600),
        seconds => format!("{} days", seconds / 86_400),
    }
}

fn number(count: u64, one: &str, several: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { several })
}

fn times(count: u64) -> String {
    if count == 1 { "once".to_owned() } else { format!("{count} times") }
}

/// "3 refused with a 4xx, 1 without an answer": those that are not zero.
fn listed<'w>(counts: impl IntoIterator<Item = (u64, &'w str)>) -> String {
    let some = counts.into_iter().filter(|(count, _)| *count > 0);
    some.map(|(count, words)| format!("{count} {words}")).collect::<Vec<_>>().join(", ")
}
