//! Signing again what was signed for this host: verified first, so that sidelink's key vouches for nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http::Request;
use http::uri::PathAndQuery;
use http_body_util::BodyExt;
use tracing::warn;

use crate::body::{Body, BodyError, stream, whole};
use crate::caller::signature::{self, Claim, Keys, Signer};
use crate::clock::Clock;
use crate::config;
use crate::error::{Error, Limit};
use crate::metrics::Metrics;
use crate::upstream::Upstream;

/// Verifies signatures and makes them again for the endpoint's host.
pub struct Resign {
    keys: Arc<Keys>,
    upstream: Arc<Upstream>,
    body_limit: usize,
    bodies_limit: usize,
    /// Bytes of bodies that are held to be hashed.
    held: AtomicUsize,
    clock: Clock,
    metrics: Arc<Metrics>,
    warned: AtomicBool,
}

/// A verified signature, and what it says of the body.
pub(super) struct Proof {
    signer: Signer,
    payload: String,
}

impl Resign {
    /// Over what the composition root has built.
    pub fn new(
        keys: Arc<Keys>,
        upstream: Arc<Upstream>,
        limits: &config::Limits,
        clock: Clock,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            keys,
            upstream,
            body_limit: limits.signed_body,
            bodies_limit: limits.signed_bodies,
            held: AtomicUsize::new(0),
            clock,
            metrics,
            warned: AtomicBool::new(false),
        }
    }

    /// Verifies the signature of a request by a known key; any other request is handed back as it is. A body whose hash is
    /// signed and not stated is read to its end.
    ///
    /// # Errors
    /// If the signature proves nothing, or the body is over a limit.
    pub(super) async fn verify<B>(&self, request: Request<B>) -> Result<(Request<Body>, Option<Proof>), Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let (head, body) = request.into_parts();
        let Some(claim) = Claim::read(&head.headers) else {
            return Ok((Request::from_parts(head, stream(body)), None));
        };
        let Some(pair) = self.keys.of(&claim) else {
            self.say_once_that_a_key_is_unknown();
            return Ok((Request::from_parts(head, stream(body)), None));
        };
        let stated = signature::stated_payload(&head.headers).map_err(Error::Signature)?;
        let (payload, body) = match stated {
            // Whether a body has the hash that is stated is the endpoint's to check.
            Some(stated) if !body.is_end_stream() => (stated.to_owned(), stream(body)),
            _ => {
                let body = self.read(body).await?;
                (signature::hash(&body), whole(body))
            }
        };
        let now = self.clock.now().unix_seconds();
        let signer = signature::verify(&claim, pair, &head, &payload, now).map_err(Error::Signature)?;
        Ok((Request::from_parts(head, body), Some(Proof { signer, payload })))
    }

    /// Signs a request that is about to be sent to the endpoint, its headers as they will be.
    pub(super) fn sign(&self, request: &mut Request<Body>, proof: &Proof) {
        let target = request.uri().path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
        let method = request.method().clone();
        let (host, now) = (self.upstream.authority().as_str(), self.clock.now().unix_seconds());
        proof.signer.sign(&method, &target, request.headers_mut(), host, &proof.payload, now);
    }

    async fn read<B>(&self, body: B) -> Result<Bytes, Error>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError>,
    {
        let mut body = stream(body);
        let mut held = Held { total: &self.held, bytes: 0 };
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::Malformed("the request's body broke off"))?;
            let Some(piece) = frame.data_ref() else { continue };
            let refusal = if read.len() + piece.len() > self.body_limit {
                Some(Error::SignedBodyTooLarge)
            } else if !held.grow(piece.len(), self.bodies_limit) {
                self.metrics.shed.with_label_values(&[Limit::SignedBodies.name()]).inc();
                Some(Error::Shed(Limit::SignedBodies))
            } else {
                None
            };
            if let Some(refusal) = refusal {
                crate::server::drain(body);
                return Err(refusal);
            }
            read.extend_from_slice(piece);
        }
        Ok(read.freeze())
    }

    fn say_once_that_a_key_is_unknown(&self) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                "a request is signed for another host than the endpoint's, with an access key that is not in callers.keys: the endpoint will refuse it; configure the key, or have clients sign for the endpoint's host"
            );
        }
    }
}

/// Bytes of bodies that are held at a time.
struct Held<'r> {
    total: &'r AtomicUsize,
    bytes: usize,
}

impl Held<'_> {
    fn grow(&mut self, bytes: usize, most: usize) -> bool {
        self.bytes += bytes;
        self.total.fetch_add(bytes, Ordering::Relaxed) + bytes <= most
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
