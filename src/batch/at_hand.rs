//! The short way, which most batches take: all that is asked for is in memory.
//!
//! Such a batch is answered without waiting for anything, so it needs no future; its headers are gone through once, where the
//! long way looks for some fifteen by name. Only a request that none of those could make another one of comes this way. It
//! ends as the long way would end, or goes that way with nothing done and nothing counted (docs/BENCHMARKS.md: what this saves).

use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, HOST, HeaderName, ORIGIN, RANGE,
    TRANSFER_ENCODING, VIA,
};
use http::{HeaderMap, HeaderValue, Method, Request, Version};
use http_body::Body;
use tokio::time::Instant;

use super::{BatchRoute, distinct};
use crate::api;
use crate::api::request::Batch;
use crate::auth::Callers;
use crate::fetch::CacheRequirements;
use crate::message::answered::Answered;
use crate::message::headers::{has_outer_space, is_host, is_http2_target};

/// Headers that may make another request of a batch, besides those that are told apart below.
static TELLING: [HeaderName; 8] =
    [AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, ORIGIN, RANGE, TRANSFER_ENCODING, VIA, api::SECURITY_TOKEN];

/// A batch in a query, by token, with nothing else about it.
struct Plain<'r> {
    query: &'r str,
    token: &'r HeaderValue,
    /// Whether it has headers that are part of its scope.
    is_scoped: bool,
}

impl<'r> Plain<'r> {
    fn read<B: Body>(request: &'r Request<B>, callers: &Callers) -> Option<Self> {
        let uri = request.uri();
        if request.method() != Method::GET || uri.path() != api::PATH || !request.body().is_end_stream() {
            return None;
        }
        let is_http2 = request.version() == Version::HTTP_2;
        let (mut host, mut token, mut length, mut is_scoped) = (None, None, None, false);
        for (name, value) in request.headers() {
            if is_http2 && has_outer_space(value) {
                return None;
            }
            let first = match name {
                name if name == HOST => host.replace(value).is_none() && is_host(value.as_bytes()),
                name if *name == api::TOKEN => token.replace(value).is_none() && !value.is_empty(),
                name if TELLING.contains(name) => return None,
                // Any other value may take away what says who asks.
                name if *name == CONNECTION => {
                    [&b"keep-alive"[..], b"close"].iter().any(|usual| value.as_bytes().eq_ignore_ascii_case(usual))
                }
                name if name == CONTENT_LENGTH => length.replace(value).is_none(),
                name => {
                    is_scoped |= callers.is_scope_header(name);
                    true
                }
            };
            if !first {
                return None;
            }
        }
        // One name of the endpoint, where its version of HTTP has it; whatever else is the router's to judge.
        let is_named = match uri.authority() {
            None => request.version() == Version::HTTP_11 && host.is_some(),
            Some(_) => is_http2 && host.is_none() && is_http2_target(uri),
        };
        if !is_named {
            return None;
        }
        let token = token?;
        if token.len() > api::TOKEN_BYTES || (is_scoped && callers.has_long_header(request.headers())) {
            return None;
        }
        Some(Self { query: uri.query()?, token, is_scoped })
    }
}

impl BatchRoute {
    /// The answer to a request that came at `began`, if it is a batch and all of it is at hand. Otherwise nothing has
    /// happened yet.
    pub fn at_hand<B: Body>(&self, request: &Request<B>, began: Instant) -> Option<Answered> {
        let plain = Plain::read(request, &self.callers)?;
        let requester = self.callers.accepted(plain.token)?;
        let now = self.clock.at(began);
        if self.callers.must_revalidate(&requester, now) {
            return None;
        }
        let batch = Batch::from_query(plain.query).ok()?;
        let none = HeaderMap::new();
        let headers = if plain.is_scoped { request.headers() } else { &none };
        let scope = self.callers.scope(&requester, headers, &batch.group);
        let ids = distinct(&batch, scope, self.config.limits.batch_ids)?;
        let marks = self.cache.purges().of_group(batch.group.name());
        let view = self.cache.open(ids.iter().map(|(_, key)| *key));
        let found = view.look_up(&ids, &marks);
        let answered = self.all_of(&ids, &found, &CacheRequirements::default(), batch.form, now)?;
        self.metrics.batch_ids.observe(ids.len() as f64);
        Some(Answered { caller: Some(requester.caller.short()), ..answered })
    }
}
