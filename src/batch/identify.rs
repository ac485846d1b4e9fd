//! Looks up the user of a batch's token, if `[callers.identity]` is set.

use std::sync::Arc;

use http::HeaderMap;

use super::{Authenticated, BatchRoute};
use crate::auth::{TokenStatus, UserLookup, UserToken};
use crate::clock::Moment;
use crate::identity::IdentityProvider;

impl BatchRoute {
    /// Whether the user of the token must be looked up before its batch.
    pub(super) fn needs_user(&self, (credential, identity): &Authenticated<'_>, now: Moment) -> bool {
        self.identity_provider.is_some()
            && self.callers.user_lookup(identity, now) == UserLookup::First
            && credential.token(&self.api).is_some()
    }

    /// Looks it up again in the background, if what is known expires soon.
    pub(super) fn renew_user(&self, (credential, identity): &Authenticated<'_>, now: Moment) {
        if let Some(provider) = &self.identity_provider
            && self.callers.user_lookup(identity, now) == UserLookup::InBackground
            && let Some(token) = credential.user_token(&self.api)
        {
            self.callers.postpone_renewal(identity, now);
            let (provider, callers, identity) = (Arc::clone(provider), Arc::clone(&self.callers), identity.clone());
            tokio::spawn(async move {
                let status = look_up(&provider, &token, true).await;
                callers.learn(&identity, status, now);
            });
        }
    }

    /// Looks up the user of the token.
    pub(super) async fn look_up_user(&self, (credential, identity): &Authenticated<'_>) {
        if let Some(provider) = &self.identity_provider
            && let Some(token) = credential.user_token(&self.api)
        {
            if let Some(tier) = self.fetch.tier() {
                // So that what the fleet says of the token is heard, also where its batches never ask the tier.
                let none = HeaderMap::new();
                let (kind, fields) = self.callers.credential_fields(credential, identity, &none);
                tier.introduce(identity, (kind, &fields), &self.api.name);
                if !self.callers.is_current(identity) {
                    return;
                }
            }
            let asked = self.clock.now();
            if self.callers.knows_user(identity, asked) {
                return;
            }
            let status = look_up(provider, &token, identity.is_accepted()).await;
            self.callers.learn(identity, status, asked);
        }
    }
}

async fn look_up(provider: &IdentityProvider, token: &UserToken, was_accepted: bool) -> TokenStatus {
    match provider.look_up(token.bytes(), was_accepted).await {
        TokenStatus::User { id, expires, is_active } => TokenStatus::User { id: token.user(id), expires, is_active },
        status => status,
    }
}
