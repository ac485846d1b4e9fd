//! What is said of a failing endpoint: in the log, seldom for each kind; and the last of it, for whoever asks.

use std::sync::{Mutex, PoisonError};

use http::StatusCode;

use crate::clock::{Clock, Moment};
use crate::telemetry::log::{LogThrottle, events};

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
        self.no_answer.when_due(|suppressed| events::NoAnswer { reason, suppressed }.log());
    }

    /// An answer has broken off after its head.
    pub(super) fn broken_off(&self, clock: &Clock, reason: &str) {
        self.note(clock, format!("its answer broke off: {reason}"));
        self.broken_off.when_due(|suppressed| events::AnswerBrokenOff { reason, suppressed }.log());
    }

    /// An answer is whole, and of no use.
    pub(super) fn unusable(&self, clock: &Clock, reason: &str) {
        self.note(clock, format!("its answer cannot be used: {reason}"));
        self.unusable.when_due(|suppressed| events::AnswerUnusable { reason, suppressed }.log());
    }

    /// It answers with an error of its own, a 5xx.
    pub(super) fn server_error(&self, clock: &Clock, status: StatusCode) {
        self.note(clock, format!("it answers with {}", status.as_u16()));
        self.server_error.when_due(|suppressed| events::ServerError { status: status.as_u16(), suppressed }.log());
    }

    fn note(&self, clock: &Clock, reason: String) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Failure { at: clock.now(), reason });
    }
}
