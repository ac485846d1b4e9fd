//! Whose calls fail: what the breaker judges by.
//!
//! Failures are counted by source, not by number. A source is an accepted caller, or a set of ids; all callers that are not
//! accepted are one source, and sets that share an id are one set. Sources are independent if they differ in both: one caller
//! with many ids, and one id of many callers, are one source each. So neither a made-up token nor one bad id can make the
//! endpoint look down.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::caller::Caller;
use crate::config;

/// How long a call counts.
const WINDOW: Duration = Duration::from_secs(10);
/// Calls that are remembered.
const MOST: usize = 512;

/// On whose behalf a call is made, and for what.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) caller: Caller,
    /// Whether the endpoint has accepted the caller.
    pub(super) accepted: bool,
    /// Hashes of the ids that are asked for, whoever asks.
    pub(super) ids: Arc<[u64]>,
}

/// What a call says of the endpoint's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CallOutcome {
    /// It answers with links.
    Success,
    /// It answers, but that says nothing: a refused caller, a bad request.
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
    calls: VecDeque<Call>,
}

struct Call {
    at: Instant,
    /// `None`: several callers, on one connection that was lost.
    caller: Option<(Caller, bool)>,
    ids: Arc<[u64]>,
    failure: Option<FailureKind>,
}

/// What failures show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Finding {
    /// Whether the endpoint itself is down: independent sources have failed, or no connection could be made.
    pub(super) is_endpoint: bool,
    /// Whether no other source's calls succeed: then the endpoint may be down, though only one source has asked it.
    pub(super) nobody_succeeds: bool,
    pub(super) counts: Counts,
    /// The callers that have failed.
    pub(super) suspects: Vec<Suspect>,
}

/// How much evidence there is.
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

/// A caller whose calls fail, and the ids that they were for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) caller: Caller,
    pub(super) ids: HashSet<u64>,
    /// How many sets the ids are: from two on, the caller fails whatever it asks for.
    pub(super) sets: usize,
}

impl Suspect {
    /// Whether it is `source` that fails.
    pub(super) fn is(&self, source: &Source) -> bool {
        self.caller == source.caller && (self.sets > 1 || source.ids.iter().any(|id| self.ids.contains(id)))
    }
}

impl Evidence {
    /// Adds a call that ended now.
    pub(super) fn add(&mut self, source: &Source, failure: Option<FailureKind>, now: Instant) {
        while self.calls.front().is_some_and(|call| now.duration_since(call.at) >= WINDOW) || self.calls.len() >= MOST {
            self.calls.pop_front();
        }
        // A connection that is lost fails all that it carries: that is one failure, and nobody knows whose.
        if let Some(FailureKind::Lost(_)) = failure
            && let Some(call) = self.calls.iter_mut().find(|call| call.failure == failure)
        {
            if call.caller.is_some_and(|(caller, _)| caller != source.caller) {
                call.caller = None;
            }
            return;
        }
        // Links are the endpoint's word that it accepts their caller.
        let caller = Some((source.caller, source.accepted || failure.is_none()));
        self.calls.push_back(Call { at: now, caller, ids: Arc::clone(&source.ids), failure });
    }

    /// Forgets the failures: they have led to something.
    pub(super) fn forget_failures(&mut self) {
        self.calls.retain(|call| call.failure.is_none());
    }

    /// What the calls so far show, after one of `source` has failed. `None`: nothing yet.
    pub(super) fn judge(&self, source: &Source, config: &config::Breaker) -> Option<Finding> {
        let in_a_row = usize::try_from(config.consecutive).unwrap_or(usize::MAX);
        let row: Vec<&Call> = self.calls.iter().rev().take_while(|call| call.failure.is_some()).collect();
        if row.len() >= in_a_row {
            let finding = Finding::of(&row, in_a_row);
            let nobody_succeeds = !self.others_succeed(&row, finding.counts);
            if finding.is_endpoint || nobody_succeeds {
                return Some(Finding { nobody_succeeds, ..finding });
            }
        }
        let failed: Vec<&Call> = self.calls.iter().filter(|call| call.failure.is_some()).collect();
        let enough = self.calls.len() >= usize::try_from(config.min_calls).unwrap_or(usize::MAX);
        if enough && failed.len() as f64 >= config.ratio * self.calls.len() as f64 {
            let finding = Finding::of(&failed, in_a_row);
            // Of sources, too, a share must have failed.
            let well = self.succeeding(&failed);
            let share = finding.counts.callers as f64 / (finding.counts.callers + well) as f64;
            let nobody_succeeds = !self.others_succeed(&failed, finding.counts);
            if (finding.is_endpoint && share >= config.ratio) || nobody_succeeds {
                return Some(Finding { nobody_succeeds, ..finding });
            }
        }
        self.judge_one(source, in_a_row)
    }

    /// What the calls of one caller show: that all of its last ones failed, or all those for the same ids.
    fn judge_one(&self, source: &Source, in_a_row: usize) -> Option<Finding> {
        let own =
            || self.calls.iter().rev().filter(|call| call.caller.is_some_and(|(caller, _)| caller == source.caller));
        let row: Vec<&Call> = own().take_while(|call| call.failure.is_some()).collect();
        let same_ids = own().filter(|call| call.ids.iter().any(|id| source.ids.contains(id)));
        let same_row: Vec<&Call> = same_ids.take_while(|call| call.failure.is_some()).collect();
        let row = if row.len() >= in_a_row { row } else { same_row };
        (row.len() >= in_a_row).then(|| Finding { is_endpoint: false, ..Finding::of(&row, in_a_row) })
    }

    /// Whether calls of other sources than that of `failed` succeed.
    fn others_succeed(&self, failed: &[&Call], counts: Counts) -> bool {
        let same_caller = |call: &Call| failed.iter().any(|failed| failed.caller_source() == call.caller_source());
        let same_ids = |call: &Call| failed.iter().any(|failed| failed.ids.iter().any(|id| call.ids.contains(id)));
        let same_source = |call: &Call| match (counts.callers, counts.id_sets) {
            (1, 1) => same_caller(call) && same_ids(call),
            (1, _) => same_caller(call),
            _ => same_ids(call),
        };
        self.calls.iter().any(|call| call.failure.is_none() && !same_source(call))
    }

    /// How many callers succeed that are none of those of `failed`.
    fn succeeding(&self, failed: &[&Call]) -> usize {
        let failed: HashSet<_> = failed.iter().map(|call| call.caller_source()).collect();
        let well = self.calls.iter().filter(|call| call.failure.is_none()).map(Call::caller_source);
        well.filter(|caller| !failed.contains(caller)).collect::<HashSet<_>>().len()
    }
}

impl Call {
    /// The caller as a source: all that are not accepted are one, and so are several at once.
    fn caller_source(&self) -> Option<Caller> {
        self.caller.filter(|(_, accepted)| *accepted).map(|(caller, _)| caller)
    }
}

impl Finding {
    fn of(failed: &[&Call], in_a_row: usize) -> Self {
        let of_kind =
            |kind: fn(FailureKind) -> bool| failed.iter().filter(|call| call.failure.is_some_and(kind)).count();
        let counts = Counts {
            callers: failed.iter().map(|call| call.caller_source()).collect::<HashSet<_>>().len(),
            id_sets: id_sets(failed.iter().copied()).len(),
            connect: of_kind(|kind| kind == FailureKind::Connect),
            lost: of_kind(|kind| matches!(kind, FailureKind::Lost(_))),
            answer: of_kind(|kind| kind == FailureKind::Answer),
            silence: of_kind(|kind| kind == FailureKind::Silence),
        };
        let mut suspects: Vec<Suspect> = Vec::new();
        for (caller, _) in failed.iter().filter_map(|call| call.caller) {
            if suspects.iter().any(|suspect| suspect.caller == caller) {
                continue;
            }
            let own = failed.iter().filter(|call| call.caller.is_some_and(|(other, _)| other == caller));
            let sets = id_sets(own.copied());
            suspects.push(Suspect { caller, sets: sets.len(), ids: sets.into_iter().flatten().collect() });
        }
        let is_endpoint = counts.callers.min(counts.id_sets) > 1 || counts.connect >= in_a_row;
        Self { is_endpoint, nobody_succeeds: false, counts, suspects }
    }
}

/// The sets of ids of some calls; those that share an id are one.
fn id_sets<'c>(calls: impl Iterator<Item = &'c Call>) -> Vec<HashSet<u64>> {
    let mut sets: Vec<HashSet<u64>> = Vec::new();
    for call in calls {
        let mut set: HashSet<u64> = call.ids.iter().copied().collect();
        let (same, others) = sets.into_iter().partition(|other| !other.is_disjoint(&set));
        sets = others;
        set.extend(Vec::<HashSet<u64>>::into_iter(same).flatten());
        sets.push(set);
    }
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: config::Breaker =
        config::Breaker { consecutive: 3, ratio: 0.5, min_calls: 10, open: Duration::from_secs(2) };

    fn source(caller: u128, ids: &[u64]) -> Source {
        Source { caller: Caller::of_test(caller), accepted: caller < 100, ids: ids.into() }
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

    #[tokio::test(start_paused = true)]
    async fn two_callers_with_different_ids_show_that_the_endpoint_is_down() {
        let finding = judge(&[(1, &[1], BAD), (2, &[2], BAD), (1, &[1], BAD)]).unwrap();
        assert!(finding.is_endpoint);
        assert_eq!((finding.counts.callers, finding.counts.id_sets), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn one_id_of_many_callers_and_many_ids_of_one_caller_are_one_source() {
        for calls in [
            [(1, &[7, 1][..], BAD), (2, &[7, 2], BAD), (3, &[7], BAD)],
            [(1, &[1], BAD), (1, &[2], BAD), (1, &[3], BAD)],
            [(100, &[1], BAD), (101, &[2], BAD), (102, &[3], BAD)],
        ] {
            assert!(!judge(&calls).unwrap().is_endpoint, "one source says nothing of the endpoint");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn failing_to_connect_is_evidence_by_itself() {
        assert!(judge(&[(1, &[1], CONNECT), (1, &[1], CONNECT)]).is_none());
        assert!(judge(&[(1, &[1], CONNECT), (1, &[1], CONNECT), (1, &[1], CONNECT)]).unwrap().is_endpoint);
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_is_suspected_alone_while_others_succeed() {
        let finding = judge(&[(2, &[2], None), (1, &[7], BAD), (2, &[2], None), (1, &[7], BAD), (1, &[7], BAD)]);
        let suspect = Suspect { caller: Caller::of_test(1), ids: [7].into(), sets: 1 };
        assert_eq!(finding.unwrap().suspects, std::slice::from_ref(&suspect));
        assert!(suspect.is(&source(1, &[1, 7])) && !suspect.is(&source(1, &[1])) && !suspect.is(&source(2, &[7])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_connection_is_one_failure_of_nobody_in_particular() {
        let lost = Some(FailureKind::Lost(5));
        assert!(judge(&[(1, &[1], lost), (2, &[2], lost), (3, &[3], lost)]).is_none());
        let again = |number| Some(FailureKind::Lost(number));
        let calls: Vec<(u128, &[u64], _)> =
            (0..3).flat_map(|n| [(1, &[1][..], again(n)), (2, &[2], again(n))]).collect();
        assert!(!judge(&calls).unwrap().is_endpoint);
    }

    #[tokio::test(start_paused = true)]
    async fn a_share_of_calls_and_of_callers_must_fail() {
        let mut calls: Vec<(u128, &[u64], Option<FailureKind>)> = Vec::new();
        for _ in 0..3 {
            calls.extend([(1, &[1][..], BAD), (2, &[2], BAD), (3, &[3], None)]);
        }
        calls.push((1, &[1], BAD));
        assert!(judge(&calls).unwrap().is_endpoint);
        let well: [(u128, &[u64], _); 3] = [(4, &[4], None), (5, &[5], None), (6, &[6], None)];
        let calls: Vec<_> = well.into_iter().chain(calls).collect();
        assert!(judge(&calls).is_none_or(|finding| !finding.is_endpoint), "most callers are well");
    }
}
