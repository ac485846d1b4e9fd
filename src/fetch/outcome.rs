//! What came of fetching.

use std::sync::Arc;

use http::HeaderValue;

use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::error::{Error, NoAnswer};
use crate::telemetry::trace::CallContext;
use crate::upstream::{Answer, Rejection};

/// How a wanted id was had.
pub enum FetchResult {
    /// It had come into memory meanwhile.
    InMemory(Entry),
    /// By a flight.
    FlightResult {
        /// Whether another batch had started the flight.
        joined: bool,
        /// What came of it.
        landed: FlightResult,
    },
}

/// What came of fetching one id.
#[derive(Clone)]
pub struct FlightResult {
    /// The result.
    pub result: ItemResult,
    /// The endpoint's name for the call.
    pub request_id: Option<HeaderValue>,
    /// Whether it came from the shared tier, and no call was made.
    pub shared: bool,
    /// The call's span, if it has one.
    pub call: Option<CallContext>,
}

/// The result of fetching one id.
#[derive(Clone)]
pub enum ItemResult {
    /// Its item; without deadlines where it may not be kept.
    Link(Arc<str>, Option<Deadlines>),
    /// The endpoint left it out; without deadlines where that is not remembered.
    LeftOut(Option<Deadlines>),
    /// It could not be had.
    Failed(Arc<Failure>),
}

/// Why a call's ids could not be had.
pub struct Failure {
    /// What happened.
    pub cause: Cause,
    /// Whether the call carried other batches' ids too, or had joiners: then who is at fault is not known yet.
    pub shared: bool,
    /// Ids that the call carried.
    pub ids: usize,
}

/// What a failed call came to.
pub enum Cause {
    /// The endpoint's own error, to be passed on as it came.
    Answer(Answer),
    /// An answer with items that match no id asked for, or in a coding that cannot be undone.
    Unmatched(Answer),
    /// No call was made.
    Rejected(Rejection),
    /// No answer.
    NoAnswer(Error),
}

impl Failure {
    /// Whether the answer is in a coding that cannot be undone.
    pub fn is_coded(&self) -> bool {
        matches!(&self.cause, Cause::Unmatched(answer) if answer.is_coded())
    }

    /// Whether another call, for one batch alone, may show that this batch is not at fault. Not where the fault is the
    /// caller's as a whole, or nobody's: no answer, a token refused, a throttled caller, an endpoint that is down.
    pub fn may_be_anothers_fault(&self) -> bool {
        match &self.cause {
            Cause::Answer(answer) => self.shared && !matches!(answer.status.as_u16(), 401 | 429),
            // Of one id, calls may break, or be rejected for having failed.
            Cause::Rejected(Rejection::Breaker(_)) | Cause::NoAnswer(Error::NoAnswer(NoAnswer::Broken)) => self.shared,
            Cause::Unmatched(_) | Cause::Rejected(_) | Cause::NoAnswer(_) => false,
        }
    }

    /// Whether a stale link may answer for it: the endpoint failed, it did not refuse.
    pub fn allows_stale(&self) -> bool {
        match &self.cause {
            Cause::Answer(answer) => matches!(answer.status.as_u16(), 429 | 500 | 502 | 503 | 504),
            Cause::Unmatched(_) => false,
            Cause::Rejected(_) => true,
            Cause::NoAnswer(error) => !matches!(error, Error::Shed(_)),
        }
    }
}
