//! Requests on other routes, and what an answer's head says.

use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, Version};
use http_body::Body as _;
use hyper::body::Incoming;

use super::Upstream;
use super::client::{Outgoing, Progress, SendError};
use crate::body::Body;
use crate::error::{Error, NoAnswer};
use crate::log::chain;

impl Upstream {
    /// Sends any other request, its hop-by-hop headers gone already, and hands back the answer as it streams in. Its Host
    /// stays as it is; where it has none, it is the endpoint's. An idempotent request without a body (RFC 9110 §9.2.2) is sent
    /// again where its connection is lost.
    ///
    /// # Errors
    /// If there is no answer's head.
    pub async fn forward(&self, mut request: Request<Body>) -> Result<Response<Incoming>, Error> {
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        *request.uri_mut() = self.uri(target)?;
        *request.version_mut() = Version::HTTP_11;
        let outgoing = if request.method().is_idempotent() && request.body().is_end_stream() {
            Outgoing::Repeatable(request.map(|_| Bytes::new()))
        } else {
            Outgoing::Once(request)
        };
        let response = self.streams.send(outgoing, false, &Progress::default()).await;
        self.answered(response.map_err(|error| self.unanswered(&error))?)
    }

    /// An answer, if it is one: a 101 is none to whoever has not asked for an upgrade, and nobody here does.
    pub(super) fn answered(&self, response: Response<Incoming>) -> Result<Response<Incoming>, Error> {
        if response.status().is_informational() {
            return Err(Error::NoAnswer(NoAnswer::Unreadable));
        }
        Ok(response)
    }

    /// Says why there is no answer, and what that is to the client.
    pub(super) fn unanswered(&self, error: &SendError) -> Error {
        let error = &error.error;
        let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<hyper::Error>());
        // A client whose upload breaks off says nothing about the endpoint.
        if !cause.is_some_and(hyper::Error::is_user) {
            self.failures.no_answer(&self.clock, &chain(error));
        }
        Error::NoAnswer(if error.is_connect() { NoAnswer::Connect } else { NoAnswer::Broken })
    }
}
