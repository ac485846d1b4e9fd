//! Faults of the simulated endpoint that only tests ask for.

use std::time::Duration;

use super::{Options, Reply};

/// What goes wrong for some callers and connections alone.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// The only token for which [`Options::poison`] fails a call; `None`: for everyone.
    pub poison_for: Option<String>,
    /// How such a call fails, in place of [`Options::poison_status`].
    pub poison_reply: Option<Reply>,
    /// Requests that one connection serves before it ends gracefully.
    pub requests_per_connection: Option<usize>,
    /// A token whose batches take so much longer.
    pub slow: Option<(String, Duration)>,
}

impl Faults {
    /// The options that hold for a call of `whose`.
    pub(super) fn apply(&self, mut options: Options, whose: &str) -> Options {
        if let Some((_, span)) = self.slow.as_ref().filter(|(token, _)| token == whose) {
            options.delay = options.delay.saturating_add(*span);
        }
        if self.poison_for.as_deref().is_some_and(|token| token != whose) {
            options.poison.clear();
        }
        options
    }
}
