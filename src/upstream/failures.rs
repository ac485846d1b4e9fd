//! What is said of a failing endpoint: in the log, seldom for each kind; and the last of it, for whoever asks.

use std::sync::{Mutex, PoisonError};

use http::StatusCode;
use tracing::warn;

use crate::clock::{Clock, Moment};
use crate::telemetry::log::LogThrottle;

/// By what a call came to nothing, for the endpoint's sake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// When.
    pub at: Moment,
    /// Why: all causes. Names no header, body or query.
    pub reason: String,
}

/// The failures of one endpoint.
#[derive(Default)]
pub(super) struct Failures {
    last: Mutex<Option<Failure>>,
    no_answer: LogThrottle,
    broken_off: LogThrottle,
    unusable: LogThrottle,
    server_error: LogThrottle,
}

impl Failures {
    /// The last one.
    pub(super) fn last(&self) -> Option<Failure> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// There is no answer, not even its head.
    pub(super) fn no_answer(&self, clock: &Clock, reason: &str) {
        self.note(clock, format!("no answer: {reason}"));
        if let Some(unsaid) = self.no_answer.is_due() {
            warn!(reason, unsaid, "no answer from the endpoint");
        }
    }

    /// An answer has broken off after its head.
    pub(super) fn broken_off(&self, clock: &Clock, reason: &str) {
        self.note(clock, format!("its answer broke off: {reason}"));
        if let Some(unsaid) = self.broken_off.is_due() {
            warn!(reason, unsaid, "the endpoint's answer broke off");
        }
    }

    /// An answer is whole, and of no use.
    pub(super) fn unusable(&self, clock: &Clock, reason: &str) {
        self.note(clock, format!("its answer cannot be used: {reason}"));
        if let Some(unsaid) = self.unusable.is_due() {
            warn!(reason, unsaid, "the endpoint's answer cannot be used");
        }
    }

    /// It answers with an error of its own, a 5xx.
    pub(super) fn server_error(&self, clock: &Clock, status: StatusCode) {
        self.note(clock, format!("it answers with {}", status.as_u16()));
        if let Some(unsaid) = self.server_error.is_due() {
            warn!(status = status.as_u16(), unsaid, "the endpoint answers with an error");
        }
    }

    fn note(&self, clock: &Clock, reason: String) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Failure { at: clock.now(), reason });
    }
}
