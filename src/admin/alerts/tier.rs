//! Alerts about the shared tier.

use super::{Alert, Fault, Kind, Severity, lasting, listed, number, span, times};
use crate::admin::AdminState;
use crate::clock::{Moment, millis};
use crate::shared::{Fingerprint, WriteRefusal};
use crate::telemetry::metrics::{Reading, SharedFailure};

/// The milliseconds whose round trips are judged: few, so that the alert ends soon after the failures.
const WINDOW: u64 = 30_000;
/// Failures within them that are shown, and the share of all round trips, as its divisor.
const FAILURES: u64 = 5;
const SHARE: u64 = 100;
/// The milliseconds after which a purge that waits to be told is shown.
const UNTOLD: u64 = 30_000;

/// The tier is down, refuses what is written, lacks a node, or fails now and then: the first of these alone.
pub(super) fn shared_tier(state: &AdminState, now: Moment) -> Option<Alert> {
    let tier = state.tier.as_ref()?;
    let (since, title, text) = if state.process.metrics.shared.is_down() {
        let since = state.process.history.tier_down_since();
        let reason = tier.outage().map_or_else(String::new, |reason| format!(" {reason}."));
        let text = format!(
            "It is not used{}.{reason} No batch fails for it: this sidecar fetches what others may have, and purges reach it late. Check \
             the server of shared.url and the way to it.",
            lasting(since, now)
        );
        (since, "The shared tier is down", text)
    } else if let Some(refusal) = tier.write_refusal() {
        let since = now.before(millis(refusal.since.elapsed()));
        (Some(since), "The shared tier refuses writes", refused(&refusal, since, now))
    } else if let Some(reason) = tier.node_down() {
        let text = format!(
            "{reason}. The links in its slots are neither found nor shared; the other nodes are used. No batch fails for it: the ids are              fetched from the endpoint. Check that node, and the way to it."
        );
        (None, "A node of the shared tier is down", text)
    } else {
        let (title, text) = failing(&state.process.history.counted_with_tier(WINDOW))?;
        (None, title, text)
    };
    Some(Alert {
        kind: Kind::SharedTier,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since,
        title: title.to_owned(),
        text,
    })
}

fn refused(refusal: &WriteRefusal, since: Moment, now: Moment) -> String {
    let WriteRefusal { server, command, code, .. } = refusal;
    let (what, purges) = match code.as_str() {
        "OOM" => ("it is full: raise its maxmemory, or let it evict (maxmemory-policy allkeys-lru)", "purges are told"),
        "NOREPLICAS" => (
            "it has fewer replicas than its min-replicas-to-write asks for: bring them back, or lower it",
            "a purge at this sidecar is told to no other",
        ),
        _ => (
            "it cannot save its data to its disk: see its log, or turn its persistence off, which the tier does not need",
            "a purge at this sidecar is told to no other",
        ),
    };
    format!(
        "{server} answers {command} with {code}{}: {what}. Links that it has are used, new ones are not shared, and {purges}. No batch \
         fails for it.",
        lasting(Some(since), now)
    )
}

fn failing(counted: &Reading) -> Option<(&'static str, String)> {
    let failures = |kind: SharedFailure| counted.shared_failures.get(kind as usize).copied().unwrap_or(0);
    let of_round_trips = [
        (failures(SharedFailure::Timeout), "took longer than shared.timeout"),
        (failures(SharedFailure::Broken), "lost their connection"),
        (failures(SharedFailure::Reply), "were answered with an error"),
    ];
    let failed: u64 = of_round_trips.iter().map(|(count, _)| count).sum();
    let (all, unsealed) = (counted.shared_operations, failures(SharedFailure::Unsealed));
    if failed >= FAILURES.max(all / SHARE) {
        let text = format!(
            "{failed} of {all} round trips of the last {} failed: {}. No batch fails for it: the ids are fetched from the endpoint. \
             Check the server of shared.url and the way to it.",
            span(WINDOW),
            listed(of_round_trips),
        );
        return Some(("The shared tier fails", text));
    }
    (unsealed >= FAILURES.max(all / SHARE)).then(|| {
        let text = format!(
            "{} found in the last {} do not open, and count as misses. Sidecars of another version write them, or somebody alters \
             them.",
            number(unsealed, "value", "values"),
            span(WINDOW),
        );
        ("Values in the shared tier do not open", text)
    })
}

pub(super) fn shared_tier_split(state: &AdminState, now: Moment) -> Option<Alert> {
    let (shared, fleet) = (state.config.shared.as_ref()?, state.fleet()?);
    let others = fleet.others.iter().map(Fingerprint::to_string).collect::<Vec<_>>();
    (!others.is_empty()).then(|| Alert {
        kind: Kind::SharedTierSplit,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: fleet.since,
        title: "The shared tier is split: another fleet uses the same server, database and prefix".to_owned(),
        text: format!(
            "This sidecar's fleet is {}; {} there too{}. They see neither each other's links nor each other's purges. If they are \
             meant to be one, compare at both what shared.secret_file holds, upstream.endpoint (localhost and 127.0.0.1 differ), \
             callers.scope_headers and the [[batch]] tables. If not, give each a shared.prefix of its own (here \"{}\").",
            fleet.fingerprint,
            if let [other] = others.as_slice() { format!("{other} is") } else { format!("{} are", others.join(", ")) },
            fleet.since.map_or_else(String::new, |since| format!(", for {} now", span(now.since(since)))),
            shared.prefix,
        ),
    })
}

pub(super) fn purges_untold(state: &AdminState, now: Moment) -> Option<Alert> {
    let tier = state.tier.as_ref()?;
    let since = tier.untold_since().filter(|since| now.since(*since) >= UNTOLD)?;
    Some(Alert {
        kind: Kind::PurgesUntold,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: Some(since),
        title: "Purges have not reached the fleet".to_owned(),
        text: format!(
            "The shared tier does not take {} of this sidecar, the oldest for {} now. They hold here; other sidecars may serve what was \
             purged until it ends by itself. They are told as soon as the tier takes them. Until then purge at each sidecar, and do not \
             restart this one, which would lose them.",
            number(tier.untold() as u64, "purge or revocation", "purges and revocations"),
            span(now.since(since)),
        ),
    })
}

pub(super) fn purges_merged(counted: &Reading) -> Option<Alert> {
    (counted.shared_merged > 0).then(|| Alert {
        kind: Kind::PurgesMerged,
        severity: Severity::Warning,
        fault: Fault::Operator,
        since: None,
        title: "Purges were merged into one purge of everything".to_owned(),
        text: format!(
            "This happened {} in the last {}: over 4096 purges and revocations waited to be told to the fleet, or this sidecar had missed more of \
             them than the shared tier keeps. Links are fetched again, and no purged one is served. Purge a group, or everything, \
             in place of many ids.",
            times(counted.shared_merged),
            span(super::WINDOW),
        ),
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use prometheus::Registry;

    use super::*;
    use crate::admin::history::{EVERY, History};
    use crate::clock::Clock;
    use crate::telemetry::metrics::{BreakerState, Metrics, Operation, show_state};

    /// Regression: what failed before the tier was back was counted, as more than there were round trips.
    #[tokio::test(start_paused = true)]
    async fn what_fails_while_the_tier_is_up_is_shown_for_half_a_minute_and_what_failed_while_it_was_down_is_not() {
        let (metrics, clock) = (Arc::new(Metrics::new(&Registry::new()).unwrap()), Clock::simulated(0));
        let history = History::new(Arc::clone(&metrics), clock);
        let shared = &metrics.shared;
        let sampled = async |state: BreakerState, timeouts: u64| {
            shared.failures.of(SharedFailure::Timeout).inc_by(timeouts);
            shared.operations.of(Operation::Get).inc_by(timeouts);
            show_state(&shared.breaker_state, state);
            tokio::time::advance(EVERY).await;
            history.sample(0, 0);
        };
        let shown = || failing(&history.counted_with_tier(WINDOW)).map(|(_, text)| text);
        sampled(BreakerState::Open, 10).await;
        shared.failures.of(SharedFailure::Timeout).inc_by(10);
        show_state(&shared.breaker_state, BreakerState::Closed);
        assert_eq!(shown(), None, "since the sample before, it was down");
        sampled(BreakerState::Closed, 10).await;
        shared.operations.of(Operation::Get).inc_by(8);
        shared.failures.of(SharedFailure::Timeout).inc_by(4);
        assert_eq!(shown(), None, "four");
        shared.failures.of(SharedFailure::Broken).inc_by(3);
        let text = shown().unwrap();
        let words =
            "7 of 8 round trips of the last 30 s failed: 4 took longer than shared.timeout, 3 lost their connection.";
        assert!(text.starts_with(words), "{text}");
        sampled(BreakerState::Closed, 0).await;
        assert!(shown().is_some());
        for _ in 0..WINDOW / 2000 {
            sampled(BreakerState::Closed, 0).await;
        }
        assert_eq!(shown(), None, "it is over");
        tokio::time::advance(Duration::from_secs(1)).await;
        shared.failures.of(SharedFailure::Unsealed).inc_by(5);
        assert!(shown().unwrap().starts_with("5 values found in the last 30 s do not open"));
    }
}
