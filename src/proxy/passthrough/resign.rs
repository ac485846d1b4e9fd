//! Signs requests again for the endpoint's host. Their own signatures are verified first, so that sidelink signs only for its
//! callers.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::Request;
use http::uri::PathAndQuery;

use super::Passthrough;
use crate::auth::Callers;
use crate::auth::signature::{self, Claim, Signer};
use crate::error::Error;
use crate::limits::budget::Reservation;
use crate::message::body::{Body, BodyError, stream, whole};
use crate::message::headers::{expects_continue, made_hop_by_hop};
use crate::telemetry::log::events;

/// A verified signature, and the body's hash that it states.
pub(super) struct VerifiedSignature {
    signer: Signer,
    payload: String,
    /// The reservation of a body that was read, under `limits.signed_bodies`.
    _reservation: Option<Reservation>,
}

impl Passthrough {
    /// Verifies the signature of a request by a configured key. Any other request, and one whose signature does not verify, is
    /// returned as it is. A body whose hash is signed and not stated is read to its end. Credential and scope headers that
    /// the signature does not cover are removed from a verified request.
    ///
    /// # Errors
    /// If `Connection` names a header that is signed, or the body is over a limit.
    pub(super) async fn verify_signature<B>(
        &self,
        request: Request<B>,
    ) -> Result<(Request<Body>, Option<VerifiedSignature>), Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        // Reading the body would tell a client that waits for a 100 to send it.
        let drains = !expects_continue(request.version(), request.headers(), request.body());
        let (mut head, body) = request.into_parts();
        let Some(claim) = Claim::read(&head.headers) else {
            return Ok((Request::from_parts(head, stream(body)), None));
        };
        let Some(pair) = self.keys.of(&claim) else {
            if claim.signs_host() && !self.warned_of_key.swap(true, Ordering::Relaxed) {
                events::SignedForOtherHost {}.log();
            }
            return Ok((Request::from_parts(head, stream(body)), None));
        };
        let now = self.clock.now().unix_seconds();
        let unsigned = matches!(signature::stated_payload(&head.headers), Ok(Some(signature::UNSIGNED_PAYLOAD)));
        let (verified, body, reservation) = if unsigned && !body.is_end_stream() {
            let payload = signature::UNSIGNED_PAYLOAD;
            let verified = signature::verify(&claim, pair, &head, payload, now);
            (verified.map(|signer| (signer, payload.to_owned())), stream(body), None)
        } else {
            let (limits, body) = (&self.config.limits, stream(body));
            let (most, time) = (limits.signed_body, limits.idle_timeout);
            let (body, reservation) =
                self.signed_bodies.read(body, most, Error::SignedBodyTooLarge(most), time, drains).await?;
            (signature::verify_whole(&claim, pair, &head, &signature::hash(&body), now), whole(body), Some(reservation))
        };
        match verified {
            // They would be removed here, and the signature says otherwise.
            Ok((signer, _)) if made_hop_by_hop(&head.headers).any(|name| signer.covers(&name)) => {
                if drains {
                    crate::message::body::drain(body);
                }
                Err(Error::NamedByConnection)
            }
            Ok((signer, payload)) => {
                self.callers.iter().for_each(|callers| callers.remove_unsigned(&signer, &mut head.headers));
                Ok((
                    Request::from_parts(head, body),
                    Some(VerifiedSignature { signer, payload, _reservation: reservation }),
                ))
            }
            Err(fault) => {
                // The batch routes have logged their own.
                let is_batch = |callers: &Arc<Callers>| callers.api().path.matches(head.uri.path());
                if let Some(callers) = self.callers.first().filter(|_| !self.callers.iter().any(is_batch)) {
                    callers.warn_of_unverified(fault);
                }
                Ok((Request::from_parts(head, body), None))
            }
        }
    }

    /// Signs a request whose headers are complete.
    pub(super) fn sign_again(&self, request: &mut Request<Body>, proof: &VerifiedSignature) {
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let method = request.method().clone();
        let (host, now) = (self.upstream.endpoint().authority.as_str(), self.clock.now().unix_seconds());
        proof.signer.sign(&method, &target, request.headers_mut(), host, &proof.payload, now);
    }
}
