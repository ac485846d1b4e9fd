//! Batches that fail, by whose fault; those that get stale links; and those that are forwarded untouched.
//!
//! The counters tell answers by status, and by who has decided on it. A 503 or 504 of sidelink's own may have several reasons: the
//! results of calls and the limits that were reached within the same time tell which is the most frequent.

use super::{Alert, Fault, Kind, Severity, WINDOW, span, span_in_history};
use crate::admin::AdminState;
use crate::clock::Moment;
use crate::error::Error;
use crate::limits::pause::Rejection;
use crate::telemetry::metrics::{BreakerState, Bypass, CallResult, Code, Limit, Outcome, Reading, Route, Source};

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
        100.. => "All",
        50.. => "Most",
        10.. => "Many",
        _ => "Some",
    };
    let since = state.process.history.failing_since(WINDOW);
    Some(Alert {
        kind: Kind::Errors,
        severity: if is_critical { Severity::Critical } else { Severity::Warning },
        fault,
        since: Some(since.unwrap_or(now)),
        title: format!("{quantity} batches fail: {title}"),
        text: format!("{} {remedy}", self::failed(state, counted, now)),
    })
}

/// How many batches failed, since when, and with which answers.
pub(super) fn failed(state: &AdminState, counted: &Reading, now: Moment) -> String {
    let first = state.process.history.failing_since(WINDOW).map(|since| now.since(since));
    let first = first.filter(|age| *age >= 2 * WINDOW);
    format!(
        "{} of {} batches failed in the last {}{}: {}.",
        counted.failed_batches(),
        counted.batches.iter().sum::<u64>(),
        span(WINDOW),
        first.map_or_else(String::new, |age| format!(", the first of them {} ago", span_in_history(age))),
        answers(counted),
    )
}

fn of(counted: &Reading, source: Source, code: Code) -> u64 {
    counted.responses(Route::Batch, |of, status| of == source && status == code)
}

fn calls(counted: &Reading, result: CallResult) -> u64 {
    counted.calls.get(result as usize).copied().unwrap_or(0)
}

fn shed(counted: &Reading, limit: Limit) -> u64 {
    counted.shed.get(limit as usize).copied().unwrap_or(0)
}

fn bypassed(counted: &Reading, reason: Bypass) -> u64 {
    counted.bypass.get(reason as usize).copied().unwrap_or(0)
}

/// Batches with an error in a 200, as far as they are told from others.
fn errors_in_200(counted: &Reading) -> u64 {
    counted.failed_batches() - counted.responses(Route::Batch, |_, code| code.is_error())
}

/// The failed batches by their answers: "40 × 401 from the endpoint, 2 × 503 from sidelink".
fn answers(counted: &Reading) -> String {
    let by_source = |source: Source| {
        let errors = Code::ALL.into_iter().filter(|code| code.is_error() && *code != Code::ClientLeft);
        errors.map(move |code| (of(counted, source, code), code.name(), source.name()))
    };
    let mut all: Vec<_> = Source::ALL.into_iter().flat_map(by_source).filter(|(count, ..)| *count > 0).collect();
    all.sort_by_key(|(count, ..)| std::cmp::Reverse(*count));
    let told = all.into_iter().map(|(count, code, source)| {
        let by = if source == Source::Endpoint.name() { "from the endpoint" } else { "from sidelink" };
        format!("{count} × {code} {by}")
    });
    let left = [(errors_in_200(counted), "with an error in a 200"), (left(counted), "whose clients left before")];
    let left = left.into_iter().filter(|(count, _)| *count > 0).map(|(count, words)| format!("{count} {words}"));
    told.chain(left).collect::<Vec<_>>().join(", ")
}

fn left(counted: &Reading) -> u64 {
    counted.responses(Route::Batch, |_, code| code == Code::ClientLeft)
}

fn cause(state: &AdminState, counted: &Reading, now: Moment) -> Cause {
    let errors = Code::ALL.into_iter().filter(|code| code.is_error());
    let answers = errors.flat_map(|code| Source::ALL.map(|source| (of(counted, source, code), source, code)));
    let most = answers.max_by_key(|(count, ..)| *count).filter(|(count, ..)| *count >= errors_in_200(counted));
    match most {
        None => Cause {
            fault: Fault::Unknown,
            title: "the endpoint reports errors in a 200".to_owned(),
            remedy: "Its answers say why (error_code), such as no permission: a client may lack it, or the endpoint fails.".to_owned(),
        },
        Some((_, _, Code::ClientLeft)) => Cause {
            fault: Fault::Unknown,
            title: "clients leave before the answer".to_owned(),
            remedy: "Their timeouts are shorter than the endpoint takes, or they are restarted: compare with the time of a call, below."
                .to_owned(),
        },
        Some((_, Source::Endpoint, code)) if code.is_server_error() => Cause {
            fault: Fault::Endpoint,
            title: format!("the endpoint answers with {}", code.name()),
            remedy: format!("The endpoint is at fault: ask who runs it.{}", last_failure(state, now)),
        },
        Some((count, Source::Endpoint, Code::Unauthorized)) if bypassed(counted, Bypass::NoCredential) >= count => Cause {
            fault: Fault::Client,
            title: "clients send no credential (401)".to_owned(),
            remedy: "The clients are at fault, or what stands before sidelink: a credential is missing or was removed on the way."
                .to_owned(),
        },
        Some((_, Source::Endpoint, code)) => refusal(code),
        Some((_, Source::Sidelink, code)) => own_error(state, counted, code, now),
    }
}

/// The endpoint's 4xx.
fn refusal(code: Code) -> Cause {
    let (title, remedy) = match code {
        Code::Unauthorized => (
            "the endpoint does not accept the credentials",
            "The clients are at fault: their tokens have expired, or their keys are wrong. Renew them.",
        ),
        Code::Forbidden => (
            "the endpoint denies permission",
            "The clients are at fault: grant them access, or have them ask for other ids.",
        ),
        Code::NotFound => (
            "the endpoint does not find what is asked for",
            "Check the host and path of upstream.endpoint; if they are right, the clients ask for what does not exist.",
        ),
        Code::TooManyRequests => (
            "the endpoint throttles callers",
            "The clients are over their quota at the endpoint: ask less often, or have it raised.",
        ),
        _ => (
            "the endpoint rejects the requests",
            "The clients are at fault: compare a request with the API's reference, and read the endpoint's answer.",
        ),
    };
    Cause { fault: Fault::Client, title: format!("{title} ({})", code.name()), remedy: remedy.to_owned() }
}

/// An error of sidelink's own.
fn own_error(state: &AdminState, counted: &Reading, code: Code, now: Moment) -> Cause {
    let endpoint = |title: &str, remedy: &str| Cause {
        fault: Fault::Endpoint,
        title: title.to_owned(),
        remedy: format!("{remedy}{}", last_failure(state, now)),
    };
    let shed_calls = shed(counted, Limit::Calls);
    match code {
        Code::BadGateway => endpoint(
            "the endpoint gives no usable answer",
            "The endpoint, or the way to it, is at fault: check that it runs, and name, network and certificate.",
        ),
        // A call that gets no permit in time counts as one without an answer in time as well.
        Code::GatewayTimeout if calls(counted, CallResult::Deadline) > shed_calls => endpoint(
            "the endpoint does not answer in time",
            "The endpoint, or the way to it, is slow: ask who runs it, or raise upstream.deadline.",
        ),
        Code::GatewayTimeout if shed_calls == 0 => Cause {
            fault: Fault::Client,
            title: "clients ask for what is not in memory, with only-if-cached".to_owned(),
            remedy: "The endpoint was not asked, as the clients wish. Have them ask without only-if-cached.".to_owned(),
        },
        Code::Unavailable if counted.shed.iter().sum::<u64>() <= calls(counted, CallResult::Refused) => {
            held_back(state, &endpoint)
        }
        Code::Unavailable | Code::GatewayTimeout => at_a_limit(counted),
        Code::Loop => Cause {
            fault: Fault::Operator,
            title: "upstream.endpoint is a sidelink, perhaps this one".to_owned(),
            remedy: "Point upstream.endpoint at the endpoint itself.".to_owned(),
        },
        _ => Cause {
            fault: Fault::Client,
            title: format!("sidelink refuses the requests ({})", code.name()),
            remedy: "The clients are at fault: they ask for too much at once, or for what HTTP forbids. The answer says what is \
                     wrong (docs/ERRORS.md)."
                .to_owned(),
        },
    }
}

/// Calls were not sent. A pause of one caller is no error of sidelink's own: the endpoint's answer is given again.
fn held_back(state: &AdminState, endpoint: &impl Fn(&str, &str) -> Cause) -> Cause {
    let is_paused = matches!(state.upstream.rejection_of_all(), Some(Rejection { error: Error::HeldBack(_), .. }));
    let breaker = state.upstream.breaker();
    if is_paused {
        let remedy = "The endpoint is at fault: it is overloaded or under maintenance.";
        endpoint("the endpoint has asked all callers to pause", remedy)
    } else if breaker.state != BreakerState::Closed {
        endpoint("the endpoint is not asked while the breaker is open", "The endpoint is at fault.")
    } else if breaker.refused > 0 {
        let remedy = "The endpoint fails for these callers, or for their ids.";
        Cause { fault: Fault::Unknown, ..endpoint("the breaker holds back callers whose calls fail", remedy) }
    } else {
        let remedy = "The endpoint was at fault, and is asked again.";
        endpoint("the endpoint was not asked for a while, since it failed or asked for a pause", remedy)
    }
}

fn at_a_limit(counted: &Reading) -> Cause {
    let limit = Limit::ALL.into_iter().max_by_key(|limit| shed(counted, *limit)).unwrap_or(Limit::InFlight);
    let meaning = limit.meaning().replace('`', "");
    let meaning = meaning.split([',', ':']).next().unwrap_or_default().trim_end_matches('.');
    Cause {
        fault: Fault::Sidelink,
        title: format!("sidelink is at a limit ({meaning})"),
        remedy: format!(
            "sidelink is too small for this load: {} requests met this limit. Raise it, add sidecars, or find out why calls take long.",
            shed(counted, limit)
        ),
    }
}

/// The reason of the last failure. Where the breaker has tripped, its own alert has the reason.
fn last_failure(state: &AdminState, now: Moment) -> String {
    let last = state.upstream.last_failure().filter(|_| !state.process.metrics.breaker_tripped());
    let last = last.filter(|failure| now.since(failure.at) < WINDOW);
    last.map_or_else(String::new, |last| format!(" Last failure, {} ago: {}.", span(now.since(last.at)), last.reason))
}

pub(super) fn stale(state: &AdminState, counted: &Reading, now: Moment) -> Option<Alert> {
    let stale = counted.batches.get(Outcome::Stale as usize).copied().unwrap_or(0);
    (stale > 0).then(|| Alert {
        kind: Kind::Stale,
        severity: Severity::Warning,
        fault: Fault::Endpoint,
        since: None,
        title: "The endpoint fails, and links past their freshness are served in its place".to_owned(),
        text: format!(
            "{stale} of {} batches in the last {} were answered so. The links still work; when they are near their own expiry, or \
             older than freshness.stale_if_error allows, their batches fail. The endpoint is at fault: ask who runs it.{}",
            counted.batches.iter().sum::<u64>(),
            span(WINDOW),
            last_failure(state, now),
        ),
    })
}

pub(super) fn forwarded(counted: &Reading) -> Option<Alert> {
    let (forwarded, all) = (counted.bypass.iter().sum::<u64>(), counted.batches.iter().sum::<u64>());
    if forwarded == 0 || forwarded * 2 < all || (forwarded < LEAST && forwarded < all) {
        return None;
    }
    let reason = Bypass::ALL.into_iter().max_by_key(|reason| bypassed(counted, *reason))?;
    Some(Alert {
        kind: Kind::Forwarded,
        severity: Severity::Warning,
        fault: match reason {
            Bypass::NoList | Bypass::Unmatched | Bypass::NotJson => Fault::Endpoint,
            _ => Fault::Client,
        },
        since: None,
        title: format!(
            "{} batches are forwarded, and nothing of them is cached: {}",
            if forwarded >= all { "All" } else { "Most" },
            reason.name().replace('-', " "),
        ),
        text: format!(
            "{forwarded} of {all} batches in the last {} were forwarded untouched. The reason of {} of them: {} docs/RUNBOOK.md, \
             SidelinkBypassed, says what to do.",
            span(WINDOW),
            bypassed(counted, reason),
            reason.meaning().replace('`', ""),
        ),
    })
}
