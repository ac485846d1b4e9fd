//! `/status.json` and the page that shows it: one answer that loads nothing from elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::CONTENT_SECURITY_POLICY;
use http::{HeaderValue, Response, StatusCode};
use prometheus::Registry;
use serde_json::{Map, Value, json};

use super::{AdminState, ProcessState, alerts, typed};
use crate::clock::rfc3339;
use crate::message::body::Body;
use crate::shared::Fingerprint;
use crate::telemetry::metrics::{
    ApiMetrics, BreakerState, Bypass, CallResult, Counters, Eviction, EvidenceKind, Gauges, IdResult, Label, Metrics,
    Outcome, Reason, Refetch,
};

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The page; its policy allows only its inline style and script.
pub(super) fn page() -> Response<Body> {
    let nonce = hex::encode(rand::random::<[u8; 16]>());
    let page = PAGE.replace("{nonce}", &nonce).replace("{style}", STYLE).replace("{script}", SCRIPT);
    let mut response = typed(StatusCode::OK, page.into(), HeaderValue::from_static("text/html; charset=utf-8"));
    let policy = format!(
        "default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src data:; connect-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    );
    if let Ok(policy) = HeaderValue::from_str(&policy) {
        response.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The status. `query` may name the last sample that the client has, as `since=N`; without it, the answer includes the
/// configuration, without secrets.
pub(super) fn status(state: &AdminState, query: Option<&str>) -> Value {
    state.update_gauges();
    let mut parameters = query.unwrap_or_default().split('&');
    let since = parameters.find_map(|parameter| parameter.strip_prefix("since=")?.parse::<u64>().ok());
    let AdminState { process, upstream, config, .. } = state;
    let ProcessState { metrics, history, .. } = process;
    let (now, started) = (process.clock.now(), history.started);
    let reading = metrics.reading();
    let reload = process.last_reload.load();
    let mut status = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "host": rustix::system::uname().nodename().to_string_lossy(),
        "now": now.unix_millis(),
        "started": started.unix_millis(),
        "uptime_seconds": now.since(started) / 1000,
        "alerts": alerts::alerts(state, now),
        "ready": process.ready.load(Ordering::Acquire),
        "endpoint": config.upstream.endpoint.to_string(),
        "breaker": position(&metrics.breaker_state),
        "breaker_evidence": named::<EvidenceKind, _>(metrics.breaker_evidence.iter().map(|(_, gauge)| gauge.get())),
        "calls_refused": upstream.rejection_of_all().map(|rejection| rejection.error.message()),
        "last_failure": upstream.last_failure().map(|failure| json!({
            "at": failure.at.unix_millis(),
            "reason": failure.reason,
        })),
        "last_error": upstream.last_error().map(|error| json!({
            "at": error.at.unix_millis(),
            "api": error.api,
            "status": error.status.as_u16(),
            "code": error.code,
        })),
        "callers_accepted": process.caller_states.accepted(),
        "calls_in_flight": metrics.upstream_in_flight.get(),
        "connections": metrics.connections.get(),
        "reload": {
            "succeeded": reload.errors.is_empty(),
            "at": rfc3339(reload.at.unix_millis()),
            "errors": reload.errors,
        },
        "cache": {
            "links": metrics.cache_links.get(),
            "bytes": metrics.cache_bytes.get(),
            "capacity": metrics.cache_capacity.get(),
            "evicted": metrics.cache_evictions.of(Eviction::Size).get(),
            "purge_marks": metrics.purge_marks.get(),
        },
        "shared": config.shared.as_ref().map(|_| shared(state)),
        "identity": identity(state),
        "clock_skew_seconds": metrics.clock_skew.get(),
        "memory_bytes": resident(&process.registry),
        "totals": {
            "ids": named::<IdResult, _>(reading.ids),
            "batches": named::<Outcome, _>(reading.batches),
            "calls": named::<CallResult, _>(reading.calls),
            "call_ids": reading.call_ids,
            "bypass": named::<Bypass, _>(reading.bypass),
            "uncacheable": named::<Reason, _>(metrics.apis.sums(|api, reason| api.uncacheable.of(reason).get())),
            "refetched": named::<Refetch, _>(metrics.apis.sums(|api, cause| api.refetched.of(cause).get())),
            "shed": by_label(&metrics.shed),
            "purges": by_label(&metrics.purges),
        },
        "history": history.after(since.unwrap_or(0)),
    });
    if let Value::Object(fields) = &mut status {
        if since.is_none() {
            fields.insert("config".to_owned(), config.to_string().into());
        }
        if let Some(apis) = apis(metrics) {
            fields.insert("apis".to_owned(), apis);
        }
    }
    status
}

/// The counts of each batch API since the start; `None` where one is all that there is.
fn apis(metrics: &Metrics) -> Option<Value> {
    let apis = metrics.apis.all();
    let line = |(name, api): &(Arc<str>, Arc<ApiMetrics>)| {
        let ids = |are_counted: fn(IdResult) -> bool| -> u64 {
            let counted = api.ids.iter().filter(|(result, _)| are_counted(*result));
            counted.map(|(_, counter)| counter.get()).sum()
        };
        json!({
            "api": &**name,
            "batches": api.batches.iter().map(|(_, counter)| counter.get()).sum::<u64>(),
            "failed": api.batches.of(Outcome::Error).get(),
            "ids": ids(|_| true),
            "hits": ids(IdResult::is_spared),
        })
    };
    (apis.len() > 1).then(|| apis.iter().map(line).collect())
}

/// The shared tier.
fn shared(state: &AdminState) -> Value {
    let metrics = &state.process.metrics;
    let (shared, apis, fleet) = (&metrics.shared, metrics.apis.all(), state.fleet());
    let others = fleet.iter().flat_map(|fleet| &fleet.others).map(Fingerprint::to_string).collect::<Vec<_>>();
    let asked: u64 = shared.operations.iter().map(|(_, count)| count.get()).sum();
    let failed: u64 = shared.failures.iter().map(|(_, count)| count.get()).sum();
    json!({
        "breaker": position(&shared.breaker_state),
        "round_trips": asked,
        "failures": failed,
        "ids_found": apis.iter().map(|(_, api)| api.shared_hits.get()).sum::<u64>(),
        "ids_not_found": apis.iter().map(|(_, api)| api.shared_misses.get()).sum::<u64>(),
        "fleet": fleet.map(|fleet| fleet.fingerprint.to_string()),
        "other_fleets": others,
        "untold_records": state.tier.as_ref().map_or(0, |tier| tier.untold()),
    })
}

/// Most users that are listed.
const USERS: usize = 10;

/// Which callers are one user, and how the identity provider does; `None` where nobody says so.
fn identity(state: &AdminState) -> Option<Value> {
    let (users, metrics) = (state.users(), &state.process.metrics.identity);
    let user = |(user, callers): &(u32, usize)| json!({ "hash": format!("{user:08x}"), "callers": callers });
    (state.config.callers.identity.is_some() || !users.is_empty()).then(|| {
        json!({
            "breaker": position(&metrics.breaker_state),
            "requests": by_label(&metrics.requests),
            "users": metrics.users.get(),
            "callers": metrics.callers.get(),
            "most_callers": users.iter().take(USERS).map(user).collect::<Vec<_>>(),
        })
    })
}

/// The breaker's state, as its gauges show it.
fn position(gauges: &Gauges<BreakerState>) -> &'static str {
    gauges.iter().find(|(_, gauge)| gauge.get() == 1).map_or(BreakerState::Closed, |(state, _)| state).name()
}

/// Numbers under the names of a label's values.
fn named<L: Label, N: Into<Value>>(numbers: impl IntoIterator<Item = N>) -> Value {
    let names = L::VALUES.iter().map(|(_, value)| (*value).to_owned());
    names.zip(numbers.into_iter().map(Into::into)).collect::<Map<_, _>>().into()
}

/// The counts of a family with one label, by its values.
fn by_label<L: Label>(counters: &Counters<L>) -> Value {
    named::<L, _>(counters.iter().map(|(_, counter)| counter.get()))
}

/// Resident memory of this process, where the system reports it.
fn resident(registry: &Registry) -> Option<f64> {
    let families = registry.gather();
    let family = families.iter().find(|family| family.name() == "process_resident_memory_bytes")?;
    family.get_metric().first().map(|metric| metric.get_gauge().get_value())
}
