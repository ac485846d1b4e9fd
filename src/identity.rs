//! Who stands behind a token: callers whose tokens mean the same are one user (docs/IDENTITY.md). Start at [`IdentityProvider::look_up`].
//!
//! An introspection endpoint says it (`introspection`, in the styles `keystone` and `oauth2`), or the token itself, which a set
//! of keys verifies (`jwt`). Of what they say, a digest is made (`digest`) and nothing is kept. What cannot be read, is missing or
//! differs keeps a token apart: sharing is never a guess. A provider that is down or slow costs sharing, never an answer.

mod breaker;
mod digest;
mod introspection;
mod jwt;
mod keystone;
mod oauth2;
mod remote_keys;
mod requests;
mod signature;
mod single_flight;

use std::sync::Arc;

use bytes::Bytes;
use http::Response;
use tokio::time::Instant;

use crate::auth::TokenStatus;
use crate::clock::Clock;
use crate::config::{IdentityConfig, IdentitySource};
use crate::telemetry::metrics::{IdentityResult, Metrics};
use crate::upstream::{MemoryEndpoint, SetupError};
use introspection::Introspection;
use jwt::Tokens;

/// The identity provider. Answers are not cached.
pub struct IdentityProvider {
    source: Source,
    metrics: Arc<Metrics>,
}

enum Source {
    Introspection(Arc<Introspection>),
    Tokens(Box<Tokens>),
}

impl IdentityProvider {
    /// As `config` says. Connects to nothing yet.
    ///
    /// # Errors
    /// If there are no certificate authorities to trust, or a file's content is not as expected.
    pub fn new(config: &IdentityConfig, clock: Clock, metrics: Arc<Metrics>) -> Result<Self, SetupError> {
        Self::over(None, config, clock, metrics)
    }

    /// The same; the server that `config` names is in memory, if there is one.
    ///
    /// # Errors
    /// As [`IdentityProvider::new`].
    pub fn over(
        memory: Option<&MemoryEndpoint>,
        config: &IdentityConfig,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Result<Self, SetupError> {
        let source = match config.source() {
            Some(IdentitySource::Introspection(url)) => {
                Source::Introspection(Arc::new(Introspection::new(config, url, memory, clock, Arc::clone(&metrics))?))
            }
            Some(keys) => Source::Tokens(Box::new(Tokens::new(config, keys, memory, clock, &metrics)?)),
            None => return Err(SetupError::NoIdentitySource),
        };
        Ok(Self { source, metrics })
    }

    /// Why the identity provider is not asked now, and since when, for an operator; `None` where it is.
    pub(crate) fn outage(&self) -> Option<(String, Instant)> {
        match &self.source {
            Source::Introspection(introspection) => introspection.breaker.outage(),
            Source::Tokens(tokens) => tokens.outage(),
        }
    }

    /// Since when the introspection endpoint refuses sidelink's own credentials, whatever it is asked about.
    pub(crate) fn credentials_refused(&self) -> Option<Instant> {
        match &self.source {
            Source::Introspection(introspection) => introspection.credentials_refused(),
            Source::Tokens(_) => None,
        }
    }

    /// Whether the files that `config` names have the content that this was built from, where `config` is equal.
    pub fn trust_is_unchanged(&self, config: &IdentityConfig) -> bool {
        let requests = match &self.source {
            Source::Introspection(introspection) => Some(&introspection.requests),
            Source::Tokens(tokens) => tokens.requests(),
        };
        requests.is_none_or(|requests| requests.trust_is_unchanged(config))
    }

    /// Says whose `token` is; `was_accepted` by the endpoint, or not: tokens that nobody has accepted share a small budget.
    /// Concurrent questions about one token are one request, which goes on when those who asked have left.
    pub async fn look_up(&self, token: &[u8], was_accepted: bool) -> TokenStatus {
        match &self.source {
            Source::Introspection(introspection) => introspection.ask(token, was_accepted).await,
            Source::Tokens(tokens) => {
                let status = tokens.ask(token, was_accepted).await;
                self.metrics.identity.requests.of(status.result()).inc();
                status
            }
        }
    }

    /// What an answer of the introspection endpoint says of `token`, without asking.
    pub fn read(&self, answer: &Response<Bytes>, token: &[u8]) -> TokenStatus {
        match &self.source {
            Source::Introspection(introspection) => introspection.read(answer, token).status,
            Source::Tokens(_) => TokenStatus::NoUser(IdentityResult::Unverified),
        }
    }
}
