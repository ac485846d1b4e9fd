//! Retries of calls: a call without a connection, whose connection broke, or with a 502, 503 or 504, is attempted again after a
//! delay, if the breaker, the retry budget and the batch's deadline allow it. A 503 with `Retry-After` is not retried, nor is an
//! answer that did not come in time, is too long, or cannot be decoded.
//!
//! Requests that were provably not processed are sent again within one attempt: [`super::client`].

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use tokio::time::Instant;
use tower::retry::budget::{Budget, TpsBudget};

use super::Upstream;
use super::call::{Answer, Call};
use super::client::SendProgress;
use crate::config;
use crate::error::{Error, NoAnswer};

/// Delay before the first retry; each further one is three times as long, up to the longest. Jitter at most doubles a delay.
const FIRST_DELAY: Duration = Duration::from_millis(50);
const LONGEST_DELAY: Duration = Duration::from_secs(2);

/// The budget of retries.
pub(super) fn budget(config: &config::Retry) -> TpsBudget {
    // A share of few calls is no retry at all, so one retry a second is allowed in addition.
    let a_second = u32::from(config.budget > 0.0);
    #[allow(clippy::cast_possible_truncation)] // A share, of which seven digits are enough.
    TpsBudget::new(Duration::from_secs(10), a_second, config.budget as f32)
}

/// The delays before this many retries.
fn delays(retries: usize) -> impl Iterator<Item = Duration> {
    let longer = |delay: &Duration| Some((*delay * 3).min(LONGEST_DELAY));
    let delays = std::iter::successors(Some(FIRST_DELAY), longer).take(retries);
    delays.map(|delay| delay.mul_f64(1.0 + rand::random::<f64>()))
}

impl Upstream {
    /// Sends a call, with retries that `retries` counts, and waits for its complete answer, until `deadline` at most. `read` reads
    /// the body of a 200 that is not [coded](Answer::is_coded), and says whether it has links.
    ///
    /// # Errors
    /// If there is no answer: refused by the breaker or a pause, no connection, a broken one, an endless or undecodable
    /// body, or none in time.
    pub async fn call<R>(
        &self,
        call: &Call,
        deadline: Instant,
        retries: &mut u32,
        read: impl Fn(&HeaderMap, &[u8]) -> (R, bool),
    ) -> Result<(Answer, Option<R>), Error> {
        if let Some(paused) = self.paused() {
            return Err(paused.error);
        }
        let source = self.source_of(call);
        self.retry_budget.deposit();
        let mut admission = self.breaker.admit(&source, self.fair_time()).map_err(Error::BreakerOpen)?;
        let mut delays = delays(self.config.retry.attempts);
        // A call without a fair chance of an answer in time is not sent.
        let mut outcome = Err(Error::Deadline);
        let mut reading = None;
        while self.leaves_fair_time(deadline) {
            let progress = SendProgress::default();
            let probe = admission.is_probe();
            outcome = self.attempt(call, deadline, probe, &progress).await;
            let answer = outcome.as_ref().ok();
            let body = answer.filter(|answer| answer.status == StatusCode::OK && !answer.is_coded());
            let has_links;
            (reading, has_links) = body.map(|answer| read(&answer.headers, &answer.body)).unzip();
            if admission.record(self.judge(&outcome, has_links.unwrap_or(false), &progress)) {
                self.call_client.drop_idle();
                self.http1_client.drop_idle();
            }
            self.show_breaker();
            let Some(delay) = delays.next().filter(|_| self.is_retryable(&outcome)) else { break };
            let is_in_time = Instant::now() + delay + self.fair_time() <= deadline;
            if !is_in_time || !self.retry_budget.withdraw() {
                break;
            }
            tokio::time::sleep(delay).await;
            let Ok(next) = self.breaker.admit(&source, self.fair_time()) else { break };
            admission = next;
            self.metrics.upstream_retries.inc();
            *retries += 1;
        }
        outcome.map(|answer| (answer, reading))
    }

    /// Whether another attempt may succeed where this one has failed.
    fn is_retryable(&self, outcome: &Result<Answer, Error>) -> bool {
        match outcome {
            Ok(answer) => matches!(answer.status.as_u16(), 502..=504) && self.pause_of(answer).is_none(),
            Err(error) => matches!(error, Error::NoAnswer(NoAnswer::Connect | NoAnswer::Broken)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_threefold_to_a_bound_with_up_to_as_much_jitter() {
        let delays: Vec<u128> = delays(6).map(|delay| delay.as_millis()).collect();
        assert_eq!(delays.len(), 6);
        for (delay, least) in delays.into_iter().zip([50, 150, 450, 1350, 2000, 2000]) {
            assert!((least..=2 * least).contains(&delay), "{delay} {least}");
        }
    }
}
