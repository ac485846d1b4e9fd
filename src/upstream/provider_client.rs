//! A client of the identity provider, a server beside the endpoint: short exchanges of idempotent requests, over connections that
//! are made as those of calls are.

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use http::{Request, Response};
use http_body_util::{BodyExt, Limited};
use prometheus::IntCounter;
use tokio::time::{Instant, timeout_at};

use super::client::{HttpClient, Outgoing, SendProgress, cause};
use super::connector::{self, ConnectFailed, ConnectionNumbers, MemoryEndpoint, Protocols};
use super::resolver::Resolver;
use super::trust::{self, SetupError, Trust};
use crate::config::UpstreamConfig;
use crate::telemetry::log::chain;

/// The client. HTTP/1.1 is enough for exchanges that are few at a time.
pub(crate) struct ProviderClient {
    http: HttpClient,
    trust: Trust,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ProviderError {
    /// No connection could be made.
    #[error("{0}")]
    Connect(String),
    /// The exchange failed.
    #[error("{0}")]
    Exchange(String),
    /// It was not over in time.
    #[error("no answer in time")]
    Deadline,
}

impl ProviderClient {
    /// A client of `config.endpoint`, or of the one in memory. Connects to nothing yet. `resends` counts requests that are sent again.
    pub(crate) fn new(
        config: &UpstreamConfig,
        memory: Option<&MemoryEndpoint>,
        resends: IntCounter,
    ) -> Result<Self, SetupError> {
        let trust = Trust::read(config, &trust::IDENTITY)?;
        let tls = trust.client()?;
        let numbers = ConnectionNumbers::new(config.max_connection_age);
        let resolver = Resolver::new(config.connect_timeout);
        let connector = match memory {
            None => connector::network(config, tls, Protocols::Http1, resolver, numbers.clone()),
            Some(endpoint) => connector::memory(endpoint.clone(), Protocols::Http1, numbers.clone()),
        };
        Ok(Self { http: HttpClient::new(connector, numbers, config.pool_idle, resends), trust })
    }

    /// Whether the files that `config` names have the content that this client was built from.
    pub(crate) fn trust_is_unchanged(&self, config: &UpstreamConfig) -> bool {
        Trust::read(config, &trust::IDENTITY).is_ok_and(|now| now == self.trust)
    }

    /// Sends an idempotent request, and reads its answer of `most` bytes at most.
    pub(crate) async fn exchange(
        &self,
        request: Request<Bytes>,
        most: usize,
        deadline: Instant,
    ) -> Result<Response<Bytes>, ProviderError> {
        let progress = SendProgress::default();
        let exchange = async {
            let sent = self.http.send(Outgoing::Repeatable(request), false, &progress).await;
            let response = sent.map_err(|error| {
                if cause::<ConnectFailed>(&error).is_some() {
                    ProviderError::Connect(chain(&error))
                } else {
                    ProviderError::Exchange(chain(&error))
                }
            })?;
            let (head, body) = response.into_parts();
            if head.headers.contains_key(CONTENT_ENCODING) {
                return Err(ProviderError::Exchange(
                    "the answer is in a content coding that was not asked for".to_owned(),
                ));
            }
            let body = Limited::new(body, most).collect().await;
            let body = body.map_err(|error| ProviderError::Exchange(chain(&*error)))?;
            Ok(Response::from_parts(head, body.to_bytes()))
        };
        timeout_at(deadline, exchange).await.unwrap_or_else(|_| {
            progress.timed_out();
            Err(ProviderError::Deadline)
        })
    }
}
