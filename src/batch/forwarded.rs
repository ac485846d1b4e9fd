//! Batches that are forwarded as they were written: those that cannot be split, and those whose calls have not brought what
//! the endpoint would answer to the batch itself.

use std::sync::Arc;

use bytes::Bytes;
use http::header::EXPECT;
use http::request::Parts;
use http::{Request, StatusCode};
use tokio::time::timeout_at;

use super::{BatchRoute, Slots, respond};
use crate::api::request::Batch;
use crate::auth::Bypass;
use crate::error::Error;
use crate::fetch::{Cause, Failure, FetchContext};
use crate::limits::budget::Reservation;
use crate::message::answered::Answered;
use crate::message::body::{BodyError, stream, whole};
use crate::telemetry::log::events;
use crate::telemetry::trace::RequestSpan;

impl BatchRoute {
    /// The whole body, bounded. What a client sends on beyond is drained for a while, so that it gets to read the refusal, unless
    /// it waits to be told to send (`drains` is false).
    pub(super) async fn read_body<B>(&self, body: B, drains: bool) -> Result<(Bytes, Reservation), Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let limits = &self.config.limits;
        let mut body = stream(body);
        let read = self.bodies.read(&mut body, limits.batch_body, Error::BodyTooLarge, limits.idle_timeout).await;
        if let (Err(Error::BodyTooLarge | Error::Shed(_)), true) = (&read, drains) {
            crate::message::body::drain(body);
        }
        read
    }

    /// Forwards a request of the batch route untouched.
    pub(super) async fn bypass<B>(&self, request: Request<B>, reason: Bypass, trace: &RequestSpan) -> Answered
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        self.count_bypass(reason);
        respond::bypassed(Box::pin(self.passthrough.forward(request, trace)).await, reason)
    }

    pub(super) fn count_bypass(&self, reason: Bypass) {
        events::Bypassed { reason: reason.name() }.log();
        self.metrics.bypass.of(reason).inc();
    }

    /// The answer to a batch whose calls have failed, where the failure itself is not its answer:
    /// - an answer that cannot be matched, to a call that carried other ids too: the batch is fetched whole;
    /// - a refusal, to a batch that came with cookies, which calls do not carry: it is forwarded with them.
    pub(super) async fn forward_failed(
        &self,
        failure: &Failure,
        batch: &Batch<'_>,
        parts: &Parts,
        body: &Bytes,
        terms: &Arc<FetchContext>,
        slots: &mut Slots<'_>,
    ) -> Option<Answered> {
        let fits = self.fits_one_call(batch, &parts.uri);
        match &failure.cause {
            Cause::Unmatched(_) if !failure.shared && failure.ids == slots.slots.len() => {
                // The answer to exactly this batch: it is passed on.
                slots.count_fetched();
                None
            }
            Cause::Unmatched(_) if fits || failure.is_coded() => {
                Some(self.forward_written(parts, body, Bypass::Unmatched, terms, slots).await)
            }
            Cause::Unmatched(_) => Some(self.fetch_whole(batch, terms, slots).await),
            Cause::Answer(answer) if fits && terms.has_cookies && is_refusal(answer.status) => {
                Some(self.forward_with_cookies(parts, body, terms, slots).await)
            }
            _ => None,
        }
    }

    /// Forwards a batch with its cookies, since a call without them was refused. Its answer decides whether the endpoint
    /// still accepts the caller.
    pub(super) async fn forward_with_cookies(
        &self,
        parts: &Parts,
        body: &Bytes,
        terms: &FetchContext,
        slots: &mut Slots<'_>,
    ) -> Answered {
        let answered = self.forward_written(parts, body, Bypass::Cookie, terms, slots).await;
        if answered.response.status() == StatusCode::UNAUTHORIZED {
            self.fetch.drop_caller(terms, terms.was_accepted);
        }
        answered
    }

    /// Forwards a batch as it was written, within its deadline.
    async fn forward_written(
        &self,
        parts: &Parts,
        body: &Bytes,
        reason: Bypass,
        terms: &FetchContext,
        slots: &mut Slots<'_>,
    ) -> Answered {
        let mut written = Request::from_parts(parts.clone(), whole(body.clone()));
        // The client has been told to continue: its body is here.
        written.headers_mut().remove(EXPECT);
        let answered = timeout_at(terms.deadline, self.bypass(written, reason, &terms.trace)).await;
        let answered = answered.unwrap_or_else(|_| respond::own(Error::Deadline));
        if answered.response.status().is_success() {
            slots.count_fetched();
        }
        answered
    }
}

fn is_refusal(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}
