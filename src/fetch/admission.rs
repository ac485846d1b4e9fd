//! `limits.in_flight`: which batches may start flights.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Fetcher;
use super::flights::InFlightPermit;
use crate::auth::CallerState;
use crate::error::{Error, Limit};

impl Fetcher {
    /// Gives `count` permits, or none.
    pub(super) fn permits(
        self: &Arc<Self>,
        count: usize,
        caller_state: &Arc<CallerState>,
    ) -> Result<Vec<InFlightPermit>, Limit> {
        let most = self.config.limits.in_flight;
        let before = self.state.in_flight.fetch_add(count, Ordering::Relaxed);
        let before_caller = caller_state.flights.fetch_add(count, Ordering::Relaxed);
        let accepted = caller_state.is_accepted();
        let unaccepted = if accepted { 0 } else { count };
        let before_unaccepted = self.state.unaccepted_in_flight.fetch_add(unaccepted, Ordering::Relaxed);
        // Made first: dropping the permits takes the counts back.
        let permit =
            || InFlightPermit { state: Arc::clone(&self.state), caller_state: Arc::clone(caller_state), accepted };
        let permits: Vec<InFlightPermit> = std::iter::repeat_with(permit).take(count).collect();
        if count > 0 && before + count > most {
            return Err(Limit::InFlight);
        }
        // All callers that are not accepted count as one: a single client can make up many tokens.
        let most_for_one = most.div_ceil(2);
        if count > 0 && (before_caller + count > most_for_one || !accepted && before_unaccepted + count > most_for_one)
        {
            return Err(Limit::CallerInFlight);
        }
        Ok(permits)
    }

    /// Counts a request that is refused for a limit.
    pub(super) fn shed(&self, limit: Limit) -> Error {
        self.metrics.shed.of(limit).inc();
        Error::Shed(limit)
    }
}
