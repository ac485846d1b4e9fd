//! What the calls for a batch need to know of it.

use std::sync::Arc;

use http::Method;
use http::header::{CONTENT_TYPE, COOKIE};
use http::request::Parts;
use tokio::time::Instant;

use super::BatchRoute;
use crate::api::call::CallTemplate;
use crate::api::request::{Batch, Form};
use crate::auth::{Credential, Identity, Scope};
use crate::fetch::{CacheRequirements, FetchContext};
use crate::message::header_filter::Headers;
use crate::message::headers;
use crate::shared::UserSecrets;
use crate::telemetry::trace::RequestSpan;

impl BatchRoute {
    /// What calls for a batch need to know of it. A batch that is all in memory does without.
    #[expect(clippy::too_many_arguments, reason = "each is another side of the batch")]
    pub(super) fn context(
        &self,
        batch: &Batch<'_>,
        scope: Scope,
        identity: Identity,
        credential: &Credential<'_>,
        requirements: CacheRequirements,
        head: &Parts,
        headers: Headers<'_>,
        trace: &RequestSpan,
    ) -> FetchContext {
        let tier_scope = self.fetch.tier().map(|tier| {
            let (kind, fields) = self.callers.credential_fields(credential, &identity, headers.map());
            let mut scope: Vec<_> = batch.group.fields().collect();
            scope.extend(batch.rest().iter().map(|field| Some(field.as_bytes())));
            // Between the fields of two kinds, whose numbers vary.
            scope.push(None);
            self.callers.each_scope_field(&identity, headers, &head.uri, |field| scope.push(field));
            let user = self.callers.user_fields(&identity);
            let shares_acceptance = identity.is_active();
            let user = user.as_ref().map(|(kind, fields)| UserSecrets { secrets: (*kind, fields), shares_acceptance });
            Arc::new(tier.scope(&identity, (kind, &fields), user, &scope, &self.api.name, batch.group.name()))
        });
        let mut carried = self.callers.carried(&identity, headers.map());
        if batch.form == Form::Body || self.api.method == Method::POST {
            carried.extend(headers.get_all(&CONTENT_TYPE).map(|value| (CONTENT_TYPE, value.clone())));
        }
        FetchContext {
            requirements,
            refetches: false,
            tier_scope,
            body: None,
            headers: carried,
            scope,
            group: batch.group.to_static(),
            template: CallTemplate::new(head.uri.path(), batch),
            deadline: Instant::now() + self.config.upstream.deadline,
            request_id: headers::client_request_id(headers).cloned(),
            has_cookies: self.has_cookies(headers),
            was_accepted: identity.is_accepted(),
            hops: headers::sidelinks(headers),
            trace_context: trace.context(headers.map()),
            trace: trace.clone(),
            identity,
        }
    }

    /// Whether a request has cookies that its calls do not carry.
    pub(super) fn has_cookies(&self, headers: Headers<'_>) -> bool {
        headers.contains(&COOKIE) && !self.api.credentials.contains(&COOKIE)
    }
}
