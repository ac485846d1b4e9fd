//! One attempt of a call: its request, its complete, decoded answer, and what that says of the endpoint's health.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::TRANSFER_ENCODING;
use http::{HeaderValue, Request, Response, Version};
use http_body::Body as _;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::client::legacy::Error as ClientError;
use tokio::time::{Instant, timeout_at};

use super::call::{Answer, Call};
use super::client::{Outgoing, SendProgress, wants_http1};
use super::evidence::{CallOutcome, FailureKind};
use super::{UNREADABLE, Upstream, coding};
use crate::error::{Error, NoAnswer};
use crate::telemetry::log::{chain, events};
use crate::telemetry::metrics::{AttemptResult, GaugeGuard};

impl Upstream {
    /// Attempts `call` once; on a new connection if `new_connection`.
    pub(super) async fn attempt(
        &self,
        call: &Call,
        deadline: Instant,
        new_connection: bool,
        progress: &SendProgress,
    ) -> Result<Answer, Error> {
        call.metrics.upstream_call_ids.observe(call.ids.len() as f64);
        let _in_flight = GaugeGuard::new(&self.metrics.upstream_in_flight);
        let began = Instant::now();
        let exchange = timeout_at(deadline, self.exchange(call, new_connection, progress)).await;
        let took = began.elapsed();
        let outcome = exchange.unwrap_or_else(|_| {
            progress.timed_out();
            Err(Error::Deadline)
        });
        let result = match &outcome {
            Ok(answer) if answer.status.is_server_error() => AttemptResult::ServerError,
            Ok(answer) if answer.status.is_client_error() => AttemptResult::ClientError,
            Ok(_) => AttemptResult::Ok,
            Err(Error::Deadline) => AttemptResult::Deadline,
            Err(_) => AttemptResult::NoAnswer,
        };
        self.metrics.upstream_call_duration.of(result).observe(took.as_secs_f64());
        match &outcome {
            Ok(answer) if answer.status.is_server_error() => self.failures.server_error(&self.clock, answer.status),
            Err(Error::Deadline) => self.failures.no_answer(&self.clock, "none within upstream.deadline"),
            Err(Error::NoAnswer(NoAnswer::Unreadable)) => self.failures.unusable(&self.clock, UNREADABLE),
            Err(Error::NoAnswer(NoAnswer::TooLong)) => {
                self.failures.unusable(&self.clock, "it is longer than upstream.answer_bytes");
            }
            _ => {}
        }
        outcome
    }

    async fn exchange(&self, call: &Call, new_connection: bool, progress: &SendProgress) -> Result<Answer, Error> {
        let sent = self.clock.now();
        let request =
            call.request(&self.config.endpoint, sent.unix_seconds()).ok_or(Error::NoAnswer(NoAnswer::Lost))?;
        let response = self.send_call(request, new_connection, progress).await;
        let response = response.map_err(|error| self.no_answer(&error))?;
        let (head, body) = self.checked(response)?.into_parts();
        let is_chunked = |coding: &HeaderValue| coding.as_bytes().eq_ignore_ascii_case(b"chunked");
        let is_delimited = head.version == Version::HTTP_2
            || body.size_hint().exact().is_some()
            || head.headers.get(TRANSFER_ENCODING).is_some_and(is_chunked);
        let body = match Limited::new(body, self.config.answer_bytes).collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(Error::NoAnswer(NoAnswer::TooLong)),
            Err(error) => {
                self.failures.broken_off(&self.clock, &chain(&*error));
                progress.failed(&*error);
                return Err(Error::NoAnswer(NoAnswer::Broken));
            }
        };
        let mut headers = head.headers;
        let body = coding::decode(&mut headers, body, self.config.answer_bytes).map_err(Error::NoAnswer)?;
        Ok(Answer { status: head.status, headers, body, is_delimited, sent })
    }

    /// Sends a call's request over HTTP/2 where the endpoint speaks it, until the endpoint asks for HTTP/1.1.
    async fn send_call(
        &self,
        request: Request<Bytes>,
        new_connection: bool,
        progress: &SendProgress,
    ) -> Result<Response<Incoming>, ClientError> {
        if !self.http1_only.load(Ordering::Relaxed) {
            let sent = self.call_client.send(Outgoing::Repeatable(request.clone()), new_connection, progress).await;
            match sent {
                Err(error) if wants_http1(&error) => {
                    if !self.http1_only.swap(true, Ordering::Relaxed) {
                        events::Http1Required {}.log();
                    }
                }
                sent => return sent,
            }
        }
        self.http1_client.send(Outgoing::Repeatable(request), new_connection, progress).await
    }

    /// Judges the endpoint's health by an attempt.
    pub(super) fn judge(
        &self,
        outcome: &Result<Answer, Error>,
        has_links: bool,
        progress: &SendProgress,
    ) -> CallOutcome {
        let took = progress.since_sent();
        match outcome {
            Ok(_) if has_links => {
                took.inspect(|took| self.latency.observe(*took));
                CallOutcome::Success
            }
            // An endpoint that asks for a pause is not down.
            Ok(answer) if self.pause_of(answer).is_some() => CallOutcome::Neutral,
            Ok(answer) if matches!(answer.status.as_u16(), 502..=504) => CallOutcome::Failure(FailureKind::Answer),
            Err(Error::NoAnswer(NoAnswer::Connect)) => CallOutcome::Failure(FailureKind::Connect),
            Err(Error::NoAnswer(NoAnswer::Broken)) => {
                CallOutcome::Failure(progress.lost_connection().map_or(FailureKind::Answer, FailureKind::Lost))
            }
            // Unanswered after a fair time, or not even sent after the time for a connection.
            Err(Error::Deadline) if took.is_some_and(|took| took >= self.fair_time()) => {
                CallOutcome::Failure(FailureKind::Silence)
            }
            Err(Error::Deadline) if took.is_none() && progress.waited() >= self.config.connect_timeout => {
                CallOutcome::Failure(FailureKind::Silence)
            }
            _ => CallOutcome::Neutral,
        }
    }
}
