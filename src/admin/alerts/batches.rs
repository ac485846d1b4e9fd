//! Batches that fail, by whose fault, and batches that are forwarded untouched.
//!
//! The counters count batches by outcome and calls by result, and one call may serve several batches. So the fault is that of the
//! failed calls and refused requests within the same time, most frequent first; it is not known batch by batch. How the endpoint
//! answers what is forwarded is not counted.

use http::StatusCode;

use super::{Alert, Fault, Kind, Severity, WINDOW, listed, span, span_in_history};
use crate::admin::AdminState;
use crate::clock::Moment;
use crate::telemetry::metrics::{Bypass, CallResult, Limit, Reading};

/// Fewer batches are no alert, unless they are all.
const LEAST: u64 = 3;

/// The most frequent reason of failures.
struct Cause {
    fault: Fault,
    /// Completes a title: "All batches fail: …".
    title: String,
    remedy: String,
}

pub(super) fn errors(state: &AdminState, counted: &Reading, now: Moment) -> Option<Alert> {
    let (failed, all) = (counted.failed_batches(), counted.batches.iter().sum::<u64>());
    if failed == 0 || failed * 100 < all || (failed < LEAST && failed < all) {
        return None;
    }
    let Cause { fault, title, remedy } = cause(state, counted, now);
    // A client's expired token is no emergency while others are answered.
    let critical_share = if fault == Fault::Client { 50 } else { 5 };
    let is_critical = failed >= LEAST && failed * 100 >= all * critical_share;
    let quantity = match failed * 100 / all {
        100 => "All",
        50.. => "Most",
        10.. => "Many",
        _ => "Some",
    };
    let since = state.process.history.failing_since(WINDOW);
    let first = since.map(|since| now.since(since)).filter(|age| *age >= WINDOW);
    let first = first.map_or_else(String::new, |age| format!(", the first of them {} ago", span_in_history(age)));
    let failures = failures(counted);
    let failures = if failures.is_empty() { String::new() } else { format!(" Meanwhile: {failures}.") };
    Some(Alert {
        kind: Kind::Errors,
        severity: if is_critical { Severity::Critical } else { Severity::Warning },
        fault,
        since: Some(since.unwrap_or(now)),
        title: format!("{quantity} batches fail: {title}"),
        text: format!("{failed} of {all} batches failed in the last {}{first}.{failures} {remedy}", span(WINDOW)),
    })
}

fn calls(counted: &Reading, result: CallResult) -> u64 {
    counted.calls.get(result as usize).copied().unwrap_or(0)
}

fn shed(counted: &Reading, limit: Limit) -> u64 {
    counted.shed.get(limit as usize).copied().unwrap_or(0)
}

/// Calls that were sent, or could have been, and got no answer in time. A call that found no permit counts as one too, and is shed.
fn late(counted: &Reading) -> u64 {
    calls(counted, CallResult::Deadline).saturating_sub(shed(counted, Limit::Calls))
}

/// The failed calls by result, and the requests that sidelink refused at a limit.
fn failures(counted: &Reading) -> String {
    listed([
        (calls(counted, CallResult::ClientError), "calls refused with a 4xx"),
        (calls(counted, CallResult::ServerError), "calls answered with a 5xx"),
        (calls(counted, CallResult::NoAnswer), "calls without a usable answer"),
        (late(counted), "calls without an answer in time"),
        (calls(counted, CallResult::ErrorIn200), "calls with an error in a 200, or items that match no id"),
        (calls(counted, CallResult::Unexpected), "calls answered with an unexpected status"),
        (calls(counted, CallResult::Refused), "calls not sent (breaker or pause)"),
        (counted.shed.iter().sum(), "requests refused at a limit"),
    ])
}

fn cause(state: &AdminState, counted: &Reading, now: Moment) -> Cause {
    let of = |result| calls(counted, result);
    let shed_all: u64 = counted.shed.iter().sum();
    let refused = of(CallResult::ClientError);
    let silent = of(CallResult::NoAnswer);
    let most =
        [of(CallResult::ServerError), silent, late(counted), of(CallResult::Refused), of(CallResult::Unexpected)]
            .into_iter()
            .chain([of(CallResult::ErrorIn200), refused, shed_all])
            .max()
            .filter(|most| *most > 0);
    let Some(most) = most else { return without_calls() };
    if shed_all == most {
        return at_a_limit(counted);
    }
    let last_refusal = state.upstream.last_refusal().filter(|refusal| now.since(refusal.at) < WINDOW);
    let status = last_refusal.map(|refusal| refusal.status);
    if refused == most {
        return refusal(status);
    }
    // Where the breaker has tripped, its own alert has the reason.
    let last = state.upstream.last_failure().filter(|failure| now.since(failure.at) < WINDOW);
    let last = last.filter(|_| !state.process.metrics.breaker_tripped());
    let last = last
        .map_or_else(String::new, |last| format!(" Last failure, {} ago: {}.", span(now.since(last.at)), last.reason));
    let endpoint = |title: &str, remedy: &str| Cause {
        fault: Fault::Endpoint,
        title: title.to_owned(),
        remedy: format!("{remedy}{last}"),
    };
    if of(CallResult::ServerError) == most {
        return endpoint("the endpoint answers with a 5xx", "The endpoint is at fault: ask who runs it.");
    }
    if silent == most {
        let remedy =
            "The endpoint, or the way to it, is at fault: check that it runs, and name, network and certificate.";
        return endpoint("the endpoint gives no usable answer", remedy);
    }
    if late(counted) == most {
        let remedy = "The endpoint, or the way to it, is slow: ask who runs it, or raise upstream.deadline.";
        return endpoint("the endpoint does not answer in time", remedy);
    }
    if of(CallResult::ErrorIn200) == most {
        let remedy = "The endpoint's answers say why (error_code), such as no permission: a client may lack it, or the endpoint fails.";
        return Cause { fault: Fault::Unknown, ..endpoint("the endpoint reports errors in a 200", remedy) };
    }
    if of(CallResult::Unexpected) == most {
        let remedy = "No batch endpoint answers so: check upstream.endpoint, and what stands before it.";
        return endpoint("the endpoint answers with an unexpected status", remedy);
    }
    if state.process.metrics.breaker_tripped() {
        return endpoint("the endpoint is not asked while the breaker is open", "The endpoint is at fault.");
    }
    match status {
        Some(StatusCode::TOO_MANY_REQUESTS) => refusal(status),
        _ => endpoint(
            "the endpoint has asked callers to pause",
            "The endpoint is at fault: it is overloaded or in maintenance.",
        ),
    }
}

/// No call failed, and no limit was reached.
fn without_calls() -> Cause {
    Cause {
        fault: Fault::Unknown,
        title: "sidelink refuses them itself, or their clients leave".to_owned(),
        remedy: "No call failed and no limit was reached. The batches are malformed or have too many ids, say only-if-cached, ask \
                 again for what the endpoint has refused, or their clients leave before the answer: the access log's detail tells which."
            .to_owned(),
    }
}

fn at_a_limit(counted: &Reading) -> Cause {
    let limit = Limit::ALL.into_iter().max_by_key(|limit| shed(counted, *limit)).unwrap_or(Limit::InFlight);
    let name = limit.meaning().replace('`', "");
    Cause {
        fault: Fault::Sidelink,
        title: format!(
            "sidelink is at a limit ({})",
            name.split(['.', ',', ':']).take(2).collect::<Vec<_>>().join(".")
        ),
        remedy: format!(
            "sidelink is too small for this load: {} was reached. Raise it, add sidecars, or find out why calls take long.",
            name.trim_end_matches('.')
        ),
    }
}

/// The endpoint refuses calls with a 4xx, the last one with `status`.
fn refusal(status: Option<StatusCode>) -> Cause {
    let (title, remedy) = match status.map(|status| status.as_u16()) {
        Some(401) => (
            "the endpoint does not accept the credentials (401)",
            "The clients are at fault: their tokens have expired, or their keys are wrong. Renew them.",
        ),
        Some(403) => (
            "the endpoint denies permission (403)",
            "The clients are at fault: grant them access, or have them ask for other ids.",
        ),
        Some(404) => (
            "the endpoint does not find what is asked for (404)",
            "Check the host and path of upstream.endpoint; if they are right, the clients ask for what does not exist.",
        ),
        Some(429) => (
            "the endpoint throttles callers (429)",
            "The clients are over their quota at the endpoint: ask less often, or have it raised.",
        ),
        Some(status) => {
            return Cause {
                fault: Fault::Client,
                title: format!("the endpoint rejects the requests ({status})"),
                remedy: "The clients are at fault: compare a request with the API's reference; error_msg in the answer says what \
                         is wrong."
                    .to_owned(),
            };
        }
        None => (
            "the endpoint refuses the requests (4xx)",
            "The clients are at fault: the status in the access log, and error_msg in the answer, say why.",
        ),
    };
    Cause { fault: Fault::Client, title: title.to_owned(), remedy: remedy.to_owned() }
}

pub(super) fn forwarded(counted: &Reading) -> Option<Alert> {
    let (forwarded, all) = (counted.bypass.iter().sum::<u64>(), counted.batches.iter().sum::<u64>());
    if forwarded == 0 || forwarded * 2 < all || (forwarded < LEAST && forwarded < all) {
        return None;
    }
    let of = |reason: Bypass| counted.bypass.get(reason as usize).copied().unwrap_or(0);
    let reason = Bypass::ALL.into_iter().max_by_key(|reason| of(*reason))?;
    Some(Alert {
        kind: Kind::Forwarded,
        severity: Severity::Warning,
        fault: if reason == Bypass::Unmatched { Fault::Endpoint } else { Fault::Client },
        since: None,
        title: format!(
            "{} batches are forwarded and none of them is cached: {}",
            if forwarded >= all { "All" } else { "Most" },
            reason.name().replace('-', " "),
        ),
        text: format!(
            "{forwarded} of {all} batches in the last {} were forwarded untouched. The most frequent reason: {} How the endpoint \
             answered them is not counted, and an error counts as none: see the status in the access log. docs/SDK.md says what a \
             batch looks like.",
            span(WINDOW),
            reason.meaning().replace('`', ""),
        ),
    })
}
