//! Requests to the identity provider, and what its answers say.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use prometheus::Histogram;
use tokio::time::Instant;

use crate::auth::{TokenStatus, UserId};
use crate::config::IdentityConfig;
use crate::telemetry::metrics::{GaugeGuard, IdentityResult, Metrics};
use crate::upstream::{MemoryEndpoint, ProviderClient, ProviderError, SetupError};

/// The longest answer. A Keystone with many services answers with tens of kilobytes.
const MOST_BYTES: usize = 256 << 10;

/// The client of the identity provider.
pub(super) struct Requests {
    client: ProviderClient,
    metrics: Arc<Metrics>,
}

impl Requests {
    pub(super) fn new(
        config: &IdentityConfig,
        memory: Option<&MemoryEndpoint>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let connections = config.connections().ok_or(SetupError::NoIdentitySource)?;
        Ok(Self { client: ProviderClient::new(&connections, memory, metrics.identity.resends.clone())?, metrics })
    }

    /// Whether the files that `config` names have the content that this client was built from.
    pub(super) fn trust_is_unchanged(&self, config: &IdentityConfig) -> bool {
        config.connections().is_some_and(|connections| self.client.trust_is_unchanged(&connections))
    }

    /// Sends an idempotent request.
    ///
    /// # Errors
    /// There is no answer by `deadline`, or it is longer than [`MOST_BYTES`].
    pub(super) async fn send(
        &self,
        request: Request<Bytes>,
        deadline: Instant,
    ) -> Result<Response<Bytes>, ProviderError> {
        let _in_flight = GaugeGuard::new(&self.metrics.identity.in_flight);
        let _observed = Observed { began: Instant::now(), seconds: &self.metrics.identity.duration };
        self.client.exchange(request, MOST_BYTES, deadline).await
    }
}

/// Observes a duration, of a request that is given up as well.
struct Observed<'m> {
    began: Instant,
    seconds: &'m Histogram,
}

impl Drop for Observed<'_> {
    fn drop(&mut self) {
        self.seconds.observe(self.began.elapsed().as_secs_f64());
    }
}

/// What an answer says of a token.
#[derive(Debug)]
pub(super) struct TokenAnswer {
    pub(super) status: TokenStatus,
    /// Why it is of use to nobody, or which field is missing, without any text of the answer.
    pub(super) reason: Cow<'static, str>,
}

impl TokenAnswer {
    /// Of a user whose token `ends` then, in Unix milliseconds.
    pub(super) fn user(id: UserId, ends: Option<u64>, now: u64) -> Self {
        if ends.is_some_and(|ends| ends <= now) {
            return Self::refused();
        }
        Self { status: TokenStatus::User { id, expires: ends, is_active: true }, reason: "".into() }
    }

    /// The token is not valid.
    pub(super) fn refused() -> Self {
        Self::of(IdentityResult::Refused, "")
    }

    /// `field` is missing, or has no canonical form.
    pub(super) fn incomplete(field: &str) -> Self {
        Self::of(IdentityResult::Apart, format!("{field} is missing or cannot be compared"))
    }

    /// The provider refuses sidelink's own credentials.
    pub(super) fn refused_credentials() -> Self {
        Self::of(IdentityResult::Credentials, "it refuses sidelink's own credentials")
    }

    /// The answer, or that there is none, says nothing of the token.
    pub(super) fn unusable(reason: impl Into<Cow<'static, str>>) -> Self {
        Self::of(IdentityResult::Failed, reason)
    }

    /// Of an answer of any other status than those that a style knows.
    pub(super) fn of_status(status: StatusCode) -> Self {
        Self::unusable(format!("its status is {}", status.as_u16()))
    }

    fn of(result: IdentityResult, reason: impl Into<Cow<'static, str>>) -> Self {
        Self { status: TokenStatus::NoUser(result), reason: reason.into() }
    }
}

/// A header's value that no debug output shows; `None` for a token that fits in no header.
pub(super) fn sensitive(bytes: &[u8]) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_bytes(bytes).ok().filter(|value| !value.is_empty())?;
    value.set_sensitive(true);
    Some(value)
}
