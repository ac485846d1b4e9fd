//! The properties of a batch that its fetch depends on.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use tokio::time::Instant;

use super::CacheRequirements;
use super::calls::QueueKey;
use crate::api::call::CallTemplate;
use crate::api::id::Group;
use crate::api::request::Id;
use crate::auth::{Identity, Key, Scope};
use crate::limits::budget::Reservation;
use crate::shared::{TierId, TierScope};
use crate::telemetry::trace::{RequestSpan, TraceContext};

/// The batch on whose behalf ids are fetched.
pub struct FetchContext {
    /// The caller.
    pub identity: Identity,
    /// The headers of the client that calls carry.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The scope of its entries.
    pub scope: Scope,
    /// The group.
    pub group: Group<'static>,
    /// Its request without the ids.
    pub template: CallTemplate,
    /// When the batch must be answered.
    pub deadline: Instant,
    /// The client's own request id, if it is well-formed: for a call that serves this batch alone.
    pub request_id: Option<HeaderValue>,
    /// Whether the batch came with cookies, which calls do not carry: it is forwarded with them where its call is refused.
    pub has_cookies: bool,
    /// Whether the endpoint was known to accept the caller when the batch came.
    pub was_accepted: bool,
    /// Number of sidelinks that the batch had passed.
    pub hops: usize,
    /// The batch's span, if it has one.
    pub trace: RequestSpan,
    /// The trace context that its calls carry, where they have no spans.
    pub trace_context: TraceContext,
    /// The client's requirements for answers from the cache.
    pub requirements: CacheRequirements,
    /// The batch fetches ids that may be fresh in memory, by the client's directives or because the caller must revalidate. The
    /// caller's whole answers end with these flights.
    pub refetches: bool,
    /// Its scope in the shared tier, if there is one.
    pub tier_scope: Option<Arc<TierScope>>,
    /// The share of `limits.batch_bodies` that its body takes, until its calls have ended: they may outlast their client, and have the
    /// texts of the body's elements, and of all else in it.
    pub body: Option<Reservation>,
}

impl FetchContext {
    /// The queue in which its ids wait for a call.
    pub(super) fn queue_key(&self) -> QueueKey {
        QueueKey { scope: self.scope, form: self.template.form(), caller: self.identity.caller }
    }
}

/// An id, and its key in the batch's scope.
#[derive(Clone)]
pub struct KeyedId {
    /// The id's name.
    pub id: Box<str>,
    /// Its key.
    pub key: Key,
    /// As its client wrote it.
    pub written: Box<str>,
    /// Whether what its element says besides is part of its key ([`Id::qualifier`]).
    pub is_qualified: bool,
}

impl KeyedId {
    /// An id of a batch, with its key.
    pub fn new(id: &Id<'_>, key: Key) -> Self {
        let is_qualified = id.qualifier().is_some();
        Self { id: Box::from(&*id.name), key, written: Box::from(id.written), is_qualified }
    }

    /// The id in the shared tier.
    pub(super) fn in_tier(&self) -> TierId {
        TierId { id: self.id.clone(), element: self.is_qualified.then(|| self.written.clone()) }
    }
}

impl AsRef<str> for KeyedId {
    fn as_ref(&self) -> &str {
        &self.id
    }
}
