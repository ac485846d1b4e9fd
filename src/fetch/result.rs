//! The result of fetching one id.

use std::sync::Arc;

use http::HeaderValue;

use crate::auth::Caller;
use crate::cache::Entry;
use crate::error::{Error, NoAnswer};
use crate::limits::pause::Rejection;
use crate::telemetry::metrics::IdResult;
use crate::telemetry::trace::CallContext;
use crate::upstream::Answer;

/// The result of fetching one id.
#[derive(Clone)]
pub struct FetchResult {
    /// The entry that the id is answered with. One that is not stored says so ([`crate::cache::freshness::Deadlines::is_stored`]).
    pub entry: Result<Entry, Arc<Failure>>,
    /// Where the entry is from.
    pub source: EntrySource,
    /// The endpoint's name for the call.
    pub request_id: Option<HeaderValue>,
    /// The call's span, if it has one.
    pub call: Option<CallContext>,
}

/// Where a fetched entry is from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntrySource {
    /// This process's memory: it arrived there after the batch's first look-up.
    Memory,
    /// The shared tier.
    SharedTier,
    /// A call to the endpoint.
    Call,
    /// A flight that another batch had started.
    Joined {
        /// Whether that flight ended with an entry of the shared tier.
        from_tier: bool,
    },
}

impl FetchResult {
    /// The result of an id that has no answer of a call.
    pub(super) fn failed(cause: Cause) -> Self {
        let failure = Arc::new(Failure { cause, of_several_batches: false, ids: 0, caller: None });
        Self { entry: Err(failure), source: EntrySource::Call, request_id: None, call: None }
    }

    /// The result of an id that needs no call.
    pub(super) fn without_call(entry: Entry, source: EntrySource) -> Self {
        Self { entry: Ok(entry), source, request_id: None, call: None }
    }

    /// The same, for a batch that joined the flight.
    pub(super) fn joined(self) -> Self {
        Self { source: EntrySource::Joined { from_tier: self.source == EntrySource::SharedTier }, ..self }
    }

    /// How the id counts in metrics.
    pub fn id_result(&self) -> IdResult {
        match (&self.entry, self.source) {
            (Err(_), _) => IdResult::Failed,
            (Ok(_), EntrySource::Joined { .. }) => IdResult::Joined,
            (Ok(_), EntrySource::Call) => IdResult::Fetched,
            (Ok(entry), EntrySource::Memory | EntrySource::SharedTier) if entry.is_absent() => IdResult::Absent,
            (Ok(_), EntrySource::Memory) => IdResult::Hit,
            (Ok(_), EntrySource::SharedTier) => IdResult::Shared,
        }
    }
}

/// Why the ids of a call have no entries.
pub struct Failure {
    /// The reason.
    pub cause: Cause,
    /// Whether the call carried ids of other batches too, or had joiners: which batch is at fault is not known then.
    pub of_several_batches: bool,
    /// How many ids the call carried.
    pub ids: usize,
    /// The caller whose token the call carried; `None` if no call was made.
    pub caller: Option<Caller>,
}

/// How a call failed.
pub enum Cause {
    /// The endpoint answered with an error, which is passed on as it came.
    Answer(Answer),
    /// The answer has items that match no id asked for.
    Unmatched(Answer),
    /// The answer is no JSON, or in a coding that cannot be undone: only the client may know how to read it.
    Unreadable(Answer),
    /// No call was made.
    Rejected(Rejection),
    /// The endpoint gave no answer.
    NoAnswer(Error),
}

impl Failure {
    /// Whether a call for one batch alone may succeed. Not where the fault is the caller's as a whole or no batch's: a
    /// refused token, a throttled caller, an endpoint that is down.
    pub fn may_be_anothers_fault(&self) -> bool {
        match &self.cause {
            Cause::Answer(answer) => self.of_several_batches && !matches!(answer.status.as_u16(), 401 | 429),
            // One id may break connections, or have its source refused by the breaker.
            Cause::Rejected(Rejection { error: Error::BreakerOpen(_), .. })
            | Cause::NoAnswer(Error::BreakerOpen(_) | Error::NoAnswer(NoAnswer::Broken)) => self.of_several_batches,
            Cause::Unmatched(_) | Cause::Unreadable(_) | Cause::Rejected(_) | Cause::NoAnswer(_) => false,
        }
    }

    /// Whether the endpoint's answer may concern the token of the call alone, which is not that of `caller`: another token of its user
    /// has made the call.
    pub fn may_be_anothers_token(&self, caller: Caller) -> bool {
        let is_another = self.caller.is_some_and(|asked| asked != caller);
        is_another
            && match &self.cause {
                // A 200 that is an error may say "no permission".
                Cause::Answer(answer) => matches!(answer.status.as_u16(), 200 | 401 | 403 | 429),
                Cause::Rejected(_) => true,
                Cause::Unmatched(_) | Cause::Unreadable(_) | Cause::NoAnswer(_) => false,
            }
    }

    /// Whether a stale link may be served instead: the endpoint failed, it did not refuse.
    pub fn allows_stale(&self) -> bool {
        match &self.cause {
            Cause::Answer(answer) => matches!(answer.status.as_u16(), 429 | 500 | 502 | 503 | 504),
            Cause::Unmatched(_) => false,
            // What is no JSON is a gateway's page rather than the endpoint's answer.
            Cause::Unreadable(answer) => !answer.is_coded(),
            Cause::Rejected(_) => true,
            Cause::NoAnswer(error) => !matches!(error, Error::Shed(_)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Regression: a call that a half-open breaker refused failed all of its batches.
    #[test]
    fn a_call_that_the_breaker_refuses_is_repeated_for_each_of_its_batches_alone() {
        for of_several_batches in [false, true] {
            let cause = Cause::NoAnswer(Error::BreakerOpen(Duration::ZERO));
            let failure = Failure { cause, of_several_batches, ids: 2, caller: None };
            assert_eq!(failure.may_be_anothers_fault(), of_several_batches);
        }
    }
}
