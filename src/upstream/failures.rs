//! Failures of the endpoint: logged, each kind at most once in a while, and the last one remembered.

use http::StatusCode;
use parking_lot::Mutex;

use crate::clock::{Clock, Moment};
use crate::telemetry::log::{LogThrottle, events};

/// A call or request that failed because of the endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastFailure {
    /// The time.
    pub at: Moment,
    /// The reason, with all causes. Names no header, body or query.
    pub reason: String,
}

/// An error that the endpoint answered a call with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    /// The time.
    pub at: Moment,
    /// The name of the batch API.
    pub api: Box<str>,
    /// The answer's status.
    pub status: StatusCode,
    /// The error code in its body, if it looks like one.
    pub code: Option<String>,
}

/// The most characters of an error code that is shown.
const MOST_CODE: usize = 32;

#[derive(Default)]
pub(super) struct FailureLog {
    pub(super) last: Mutex<Option<LastFailure>>,
    pub(super) last_error: Mutex<Option<LastError>>,
    no_answer: LogThrottle,
    broken_off: LogThrottle,
    unusable: LogThrottle,
    server_error: LogThrottle,
}

impl FailureLog {
    /// There is no answer, not even its head.
    pub(super) fn no_answer(&self, clock: &Clock, reason: &str) {
        self.remember(clock, format!("no answer: {reason}"));
        self.no_answer.when_due(|suppressed| events::NoAnswer { reason, suppressed }.log());
    }

    /// An answer ended early, after its head.
    pub(super) fn broken_off(&self, clock: &Clock, reason: &str) {
        self.remember(clock, format!("its answer broke off: {reason}"));
        self.broken_off.when_due(|suppressed| events::AnswerBrokenOff { reason, suppressed }.log());
    }

    /// An answer is complete, and cannot be used.
    pub(super) fn unusable(&self, clock: &Clock, reason: &str) {
        self.remember(clock, format!("its answer cannot be used: {reason}"));
        self.unusable.when_due(|suppressed| events::AnswerUnusable { reason, suppressed }.log());
    }

    /// An answer is a 5xx.
    pub(super) fn server_error(&self, clock: &Clock, status: StatusCode) {
        self.remember(clock, format!("it answers with {}", status.as_u16()));
        self.server_error.when_due(|suppressed| events::ServerError { status: status.as_u16(), suppressed }.log());
    }

    /// A call to `api` was answered with an error.
    pub(super) fn error(&self, clock: &Clock, api: &str, status: StatusCode, code: Option<String>) {
        let is_code = |code: &String| {
            code.len() <= MOST_CODE && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte))
        };
        let code = code.filter(is_code);
        *self.last_error.lock() = Some(LastError { at: clock.now(), api: api.into(), status, code });
    }

    fn remember(&self, clock: &Clock, reason: String) {
        *self.last.lock() = Some(LastFailure { at: clock.now(), reason });
    }
}
