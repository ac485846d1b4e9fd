//! Evidence: whose calls fail. The breaker judges by it.
//!
//! Failures are counted by source, not by number. A source is an accepted caller, or a set of ids; all callers that are not
//! accepted are one source, and sets that share an id are one set. Sources are independent if they differ in both: one caller
//! with many ids, and one id of many callers, are one source each. So neither a made-up token nor one bad id can make the
//! endpoint look down.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::auth::Caller;
use crate::config::BreakerConfig;

/// How long a call counts.
const WINDOW: Duration = Duration::from_secs(10);
/// Calls that are remembered.
const MAX_CALLS: usize = 256;
/// The newest failures whose ids are compared: more would only cost time.
const CONSIDERED: usize = 32;
/// Sets of ids that are remembered of one caller.
const MAX_SETS: usize = 8;
/// Ids of one call that are remembered.
pub(super) const MOST_IDS: usize = 64;

/// The caller and the ids of a call.
#[derive(Clone)]
pub(super) struct CallSource {
    pub(super) caller: Caller,
    /// Whether the endpoint has accepted the caller.
    pub(super) accepted: bool,
    /// Hashes of the ids, the same for every caller; [`MOST_IDS`] at most.
    pub(super) ids: Arc<[u64]>,
}

/// The outcome of a call, as evidence of the endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallOutcome {
    /// It answers with links.
    Success,
    /// It answers with something else, such as a refused caller or a bad request: no evidence.
    Neutral,
    Failure(FailureKind),
}

/// How a call failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureKind {
    /// No connection could be made. No client can cause that.
    Connect,
    /// The connection with this number was lost, with all that it carried.
    Lost(u64),
    /// 502, 503 or 504, or a stream that was reset.
    Answer,
    /// No answer within a fair time.
    Silence,
}

/// Recent calls.
#[derive(Default)]
pub(super) struct Evidence {
    calls: VecDeque<PastCall>,
}

struct PastCall {
    at: Instant,
    /// With whether it is accepted. `None`: several callers, on one connection that was lost.
    caller: Option<(Caller, bool)>,
    ids: Arc<[u64]>,
    failure: Option<FailureKind>,
}

/// The conclusion from recent failures.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// The endpoint itself is down: independent sources have failed, or no connection could be made.
    pub(super) is_endpoint: bool,
    /// No other source succeeds: the endpoint may be down, though only one source has asked it.
    pub(super) nobody_succeeds: bool,
    pub(super) counts: Counts,
    /// The callers that have failed.
    pub(super) suspects: Vec<Suspect>,
}

/// The amount of evidence.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Callers whose calls failed; all that are not accepted count as one.
    pub callers: usize,
    /// Sets of ids whose calls failed; sets that share an id count as one.
    pub id_sets: usize,
    /// Failures to connect.
    pub connect: usize,
    /// Connections that were lost.
    pub lost: usize,
    /// Answers of 502, 503 and 504.
    pub answer: usize,
    /// Calls that were not answered in time.
    pub silence: usize,
}

/// A caller whose calls fail, and the ids of those calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) caller: Caller,
    /// The ids that failing calls have in common: one set for each reason, as far as can be told.
    sets: Vec<HashSet<u64>>,
    /// The caller fails with any ids: it has several sets, and none of its calls succeeds.
    any_ids: bool,
}

impl Suspect {
    /// Of one failed call.
    pub(super) fn new(source: &CallSource) -> Self {
        Self::of(source.caller, &source.ids)
    }

    fn of(caller: Caller, ids: &[u64]) -> Self {
        Self { caller, sets: vec![ids.iter().copied().collect()], any_ids: false }
    }

    /// Whether calls of `source` are expected to fail.
    pub(super) fn matches(&self, source: &CallSource) -> bool {
        self.caller == source.caller && (self.any_ids || self.has_any(&source.ids))
    }

    /// Whether any of `ids` has failed.
    pub(super) fn has_any(&self, ids: &[u64]) -> bool {
        ids.iter().any(|id| self.sets.iter().any(|set| set.contains(id)))
    }

    /// Adds further failures of the same caller.
    pub(super) fn merge(&mut self, other: Self) {
        other.sets.into_iter().for_each(|ids| self.add(ids));
        self.any_ids |= other.any_ids;
    }

    /// Adds a failed call. Ids that it shares with an earlier one are what may be to blame.
    fn add(&mut self, ids: HashSet<u64>) {
        if let Some(set) = self.sets.iter_mut().find(|set| !set.is_disjoint(&ids)) {
            set.retain(|id| ids.contains(id));
        } else if self.sets.len() < MAX_SETS {
            self.sets.push(ids);
        }
    }
}

impl Evidence {
    /// Adds a call that ended now.
    pub(super) fn add(&mut self, source: &CallSource, failure: Option<FailureKind>, now: Instant) {
        while self.calls.front().is_some_and(|call| now.duration_since(call.at) >= WINDOW)
            || self.calls.len() >= MAX_CALLS
        {
            self.calls.pop_front();
        }
        // A lost connection fails all that it carries: that is one failure, of an unknown caller.
        if let Some(FailureKind::Lost(_)) = failure
            && let Some(call) = self.calls.iter_mut().find(|call| call.failure == failure)
        {
            if call.caller.is_some_and(|(caller, _)| caller != source.caller) {
                call.caller = None;
            }
            return;
        }
        // An answer with links shows that the endpoint accepts their caller.
        let caller = Some((source.caller, source.accepted || failure.is_none()));
        self.calls.push_back(PastCall { at: now, caller, ids: Arc::clone(&source.ids), failure });
    }

    /// Forgets the failures, since the breaker has acted on them.
    pub(super) fn forget_failures(&mut self) {
        self.calls.retain(|call| call.failure.is_none());
    }

    /// Judges the calls so far, after one of `source` has failed. `None`: they show nothing yet.
    pub(super) fn judge(&self, source: &CallSource, config: &BreakerConfig) -> Option<Finding> {
        let in_a_row = usize::try_from(config.consecutive).unwrap_or(usize::MAX);
        let newest = || self.calls.iter().rev();
        let row: Vec<&PastCall> = newest().take_while(|call| call.failure.is_some()).collect();
        let failed: Vec<&PastCall> = newest().filter(|call| call.failure.is_some()).collect();
        let is_share = self.calls.len() >= usize::try_from(config.min_calls).unwrap_or(usize::MAX)
            && failed.len() as f64 >= config.ratio * self.calls.len() as f64;
        let by_row = if row.len() >= in_a_row { self.judge_all(&row, in_a_row, config.ratio) } else { None };
        by_row
            .or_else(|| if is_share { self.judge_all(&failed, in_a_row, config.ratio) } else { None })
            .or_else(|| self.judge_one(source, in_a_row))
    }

    /// Judges the endpoint by these failures, newest first.
    fn judge_all(&self, failed: &[&PastCall], in_a_row: usize, ratio: f64) -> Option<Finding> {
        let finding = self.finding(failed);
        let failing: HashSet<Caller> = failed
            .iter()
            .filter_map(|call| call.accepted())
            .filter(|caller| !self.succeeds_since(failed, *caller))
            .collect();
        let succeeded = self.calls.iter().filter(|call| call.failure.is_none()).filter_map(PastCall::accepted);
        let succeeding = succeeded.filter(|caller| !failing.contains(caller)).collect::<HashSet<_>>().len();
        // Callers that are not accepted are a source only where nobody else's calls tell more.
        let has_others = failed.iter().any(|call| call.accepted().is_none());
        let sources = failing.len() + usize::from(succeeding == 0 && has_others);
        // A share of the callers must fail, or as many as must fail in a row.
        let enough = failing.len() >= in_a_row || failing.len() as f64 >= ratio * (failing.len() + succeeding) as f64;
        let are_independent = sources.min(finding.counts.id_sets) > 1;
        let is_endpoint = finding.counts.connect >= in_a_row || (are_independent && enough);
        let nobody_succeeds = !self.others_succeed(failed, finding.counts);
        (is_endpoint || nobody_succeeds).then_some(Finding { is_endpoint, nobody_succeeds, ..finding })
    }

    /// Judges one caller: whether all of its last calls failed, or all those for the same ids.
    fn judge_one(&self, source: &CallSource, in_a_row: usize) -> Option<Finding> {
        let same_caller = || self.calls.iter().rev().filter(|call| call.is_of(source.caller));
        let row: Vec<&PastCall> = same_caller().take_while(|call| call.failure.is_some()).collect();
        let same_ids = same_caller().filter(|call| call.ids.iter().any(|id| source.ids.contains(id)));
        let same_row: Vec<&PastCall> = same_ids.take_while(|call| call.failure.is_some()).collect();
        let row = if row.len() >= in_a_row { row } else { same_row };
        (row.len() >= in_a_row).then(|| self.finding(&row))
    }

    /// Counts failures, newest first, and names their callers.
    fn finding(&self, failed: &[&PastCall]) -> Finding {
        let of_kind =
            |kind: fn(FailureKind) -> bool| failed.iter().filter(|call| call.failure.is_some_and(kind)).count();
        let considered = failed.get(..CONSIDERED).unwrap_or(failed);
        let counts = Counts {
            callers: failed.iter().map(|call| call.accepted()).collect::<HashSet<_>>().len(),
            id_sets: count_id_sets(considered),
            connect: of_kind(|kind| kind == FailureKind::Connect),
            lost: of_kind(|kind| matches!(kind, FailureKind::Lost(_))),
            answer: of_kind(|kind| kind == FailureKind::Answer),
            silence: of_kind(|kind| kind == FailureKind::Silence),
        };
        let mut suspects: Vec<Suspect> = Vec::new();
        for call in considered.iter().rev() {
            let Some((caller, _)) = call.caller else { continue };
            match suspects.iter_mut().find(|suspect| suspect.caller == caller) {
                Some(suspect) => suspect.add(call.ids.iter().copied().collect()),
                None => suspects.push(Suspect::of(caller, &call.ids)),
            }
        }
        for suspect in &mut suspects {
            suspect.any_ids = suspect.sets.len() > 1 && !self.succeeds_since(considered, suspect.caller);
        }
        Finding { is_endpoint: false, nobody_succeeds: false, counts, suspects }
    }

    /// Whether a call of `caller` succeeded after the first of its failures among `failed`, newest first.
    fn succeeds_since(&self, failed: &[&PastCall], caller: Caller) -> bool {
        let first = failed.iter().rev().find(|call| call.is_of(caller)).map(|call| call.at);
        let mut succeeded = self.calls.iter().filter(|call| call.failure.is_none() && call.is_of(caller));
        first.is_some_and(|first| succeeded.any(|call| call.at > first))
    }

    /// Whether calls of other sources than that of `failed` succeed.
    fn others_succeed(&self, failed: &[&PastCall], counts: Counts) -> bool {
        let callers: HashSet<Option<Caller>> = failed.iter().map(|call| call.accepted()).collect();
        let considered = failed.get(..CONSIDERED).unwrap_or(failed);
        let ids: HashSet<u64> = considered.iter().flat_map(|call| call.ids.iter().copied()).collect();
        let same_caller = |call: &PastCall| callers.contains(&call.accepted());
        let same_ids = |call: &PastCall| call.ids.iter().any(|id| ids.contains(id));
        let same_source = |call: &PastCall| match (counts.callers, counts.id_sets) {
            (1, 1) => same_caller(call) && same_ids(call),
            (1, _) => same_caller(call),
            _ => same_ids(call),
        };
        self.calls.iter().any(|call| call.failure.is_none() && !same_source(call))
    }
}

impl PastCall {
    fn is_of(&self, caller: Caller) -> bool {
        self.caller.is_some_and(|(other, _)| other == caller)
    }

    /// The caller, if the endpoint has accepted it. All others are one source, and so are several callers at once.
    fn accepted(&self) -> Option<Caller> {
        self.caller.filter(|(_, accepted)| *accepted).map(|(caller, _)| caller)
    }
}

/// How many sets the ids of some calls are; those that share an id are one.
fn count_id_sets(calls: &[&PastCall]) -> usize {
    let mut sets: Vec<HashSet<u64>> = Vec::new();
    for call in calls {
        let mut merged: HashSet<u64> = call.ids.iter().copied().collect();
        sets.retain(|set| {
            let is_apart = !call.ids.iter().any(|id| set.contains(id));
            if !is_apart {
                merged.extend(set);
            }
            is_apart
        });
        sets.push(merged);
    }
    sets.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BreakerConfig =
        BreakerConfig { consecutive: 3, ratio: 0.5, min_calls: 10, open: Duration::from_secs(2) };

    fn source(caller: u128, ids: &[u64]) -> CallSource {
        CallSource { caller: Caller::of_test(caller), accepted: caller < 100, ids: ids.into() }
    }

    fn judge(calls: &[(u128, &[u64], Option<FailureKind>)]) -> Option<Finding> {
        let mut evidence = Evidence::default();
        let mut finding = None;
        for (caller, ids, failure) in calls {
            evidence.add(&source(*caller, ids), *failure, Instant::now());
            finding = failure.and_then(|_| evidence.judge(&source(*caller, ids), &CONFIG));
        }
        finding
    }

    const BAD: Option<FailureKind> = Some(FailureKind::Answer);
    const CONNECT: Option<FailureKind> = Some(FailureKind::Connect);

    const LOST: Option<FailureKind> = Some(FailureKind::Lost(5));

    #[tokio::test(start_paused = true)]
    async fn only_independent_sources_show_that_the_endpoint_is_down() {
        let repeated = |count, calls: &[(u128, &'static [u64], _)]| calls.repeat(count);
        let (one, two) = ((1, &[1][..], BAD), (2, &[2][..], BAD));
        let share = [repeated(3, &[one, two, (3, &[3], None)]), vec![one]].concat();
        let well = vec![(4, &[4][..], None), (5, &[5], None), (6, &[6], None)];
        let lost =
            |number| [(1, &[1][..], Some(FailureKind::Lost(number))), (2, &[2], Some(FailureKind::Lost(number)))];
        for (case, calls, expected) in [
            ("two callers with different ids", vec![one, two, one], Some((true, 2, 2))),
            ("one id of many callers", vec![(1, &[7, 1], BAD), (2, &[7, 2], BAD), (3, &[7], BAD)], Some((false, 3, 1))),
            ("many ids of one caller", vec![one, (1, &[2], BAD), (1, &[3], BAD)], Some((false, 1, 3))),
            (
                "callers that are not accepted",
                vec![(100, &[1], BAD), (101, &[2], BAD), (102, &[3], BAD)],
                Some((false, 1, 3)),
            ),
            ("two failures to connect", repeated(2, &[(1, &[1], CONNECT)]), None),
            ("three failures to connect", repeated(3, &[(1, &[1], CONNECT)]), Some((true, 1, 1))),
            ("one lost connection is one failure", vec![(1, &[1], LOST), (2, &[2], LOST), (3, &[3], LOST)], None),
            ("lost connections are nobody's in particular", [lost(0), lost(1), lost(2)].concat(), Some((false, 1, 1))),
            ("a share of calls and of callers", share.clone(), Some((true, 2, 2))),
            ("a share of calls, but most callers are well", [well, share].concat(), Some((false, 1, 1))),
            // Regression: a valid token with one bad id and a made-up one with another opened the breaker for ten that were served.
            (
                "a valid and a made-up token while another is served",
                [vec![(2, &[2][..], None)], repeated(3, &[(1, &[7], BAD), (100, &[8], BAD)])].concat(),
                Some((false, 1, 1)),
            ),
        ] {
            let counts = |finding: Finding| (finding.is_endpoint, finding.counts.callers, finding.counts.id_sets);
            assert_eq!(judge(&calls).map(counts), expected, "{case}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_suspected_alone_while_others_succeed() {
        let finding = judge(&[(2, &[2], None), (1, &[7], BAD), (2, &[2], None), (1, &[7], BAD), (1, &[7], BAD)]);
        let suspect = Suspect::new(&source(1, &[7]));
        assert_eq!(finding.unwrap().suspects, std::slice::from_ref(&suspect));
        assert!(
            suspect.matches(&source(1, &[1, 7]))
                && !suspect.matches(&source(1, &[1]))
                && !suspect.matches(&source(2, &[7]))
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_caller_with_two_bad_ids_whose_other_calls_succeed_is_refused_for_those_ids_alone() {
        let mut evidence = Evidence::default();
        let mut finding = None;
        for round in 0..3u64 {
            for ids in [&[7, 10 + round][..], &[8, 20 + round]] {
                evidence.add(&source(1, ids), BAD, Instant::now());
                finding = evidence.judge(&source(1, ids), &CONFIG).or(finding);
            }
            tokio::time::advance(Duration::from_millis(1)).await;
            evidence.add(&source(1, &[30 + round]), None, Instant::now());
            evidence.add(&source(2, &[40]), None, Instant::now());
        }
        let suspects = finding.unwrap().suspects;
        let suspect = &suspects[0];
        assert!(!suspect.any_ids && suspect.matches(&source(1, &[8])));
        assert!(!suspect.matches(&source(1, &[20])), "an id that was asked for with the bad one is not to blame");
    }
}
