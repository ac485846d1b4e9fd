//! The tier without its server: what it would write, and how it reads any bytes. For tests and fuzzing only.

use std::sync::Arc;

use super::journal::{self, RECORD};
use super::sealing::UserSecrets;
use super::{FleetSecret, Stamp, TierScope, TierState, TierUpdate};
use crate::auth::{CallerStates, Identity};
use crate::cache::Entry;
use crate::cache::purges::{Purges, Target};
use crate::clock::{Clock, Moment};
use crate::config::{self, Config};
use crate::telemetry::metrics::Metrics;

/// One sidecar's side of the tier, with the first of the fleet's secrets.
pub struct Trial(TierState);

impl Trial {
    /// A sidecar that has read nothing yet.
    pub fn new(shared: &config::Shared, config: &Config, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let purges = Arc::new(Purges::new(rand::random(), config.callers.revalidate));
        let caller_states = Arc::new(CallerStates::new(rand::random()));
        Self(TierState::new(shared, config, None, caller_states, purges, metrics, clock))
    }

    /// The scope of `group` and the caller with `token`, at the API `huawei-osm`.
    pub fn scope(&self, token: &str, group: Option<&str>) -> TierScope {
        self.scope_of_user(token, None, group)
    }

    /// The same where the caller is known to be this user.
    pub fn scope_of_user(&self, token: &str, user: Option<&str>, group: Option<&str>) -> TierScope {
        let (token, user) = ([Some(token.as_bytes())], user.map(|user| [Some(user.as_bytes())]));
        let user = user.as_ref().map(|user| UserSecrets { secrets: ("user", user), shares_acceptance: false });
        self.0.derive_scope(("token", &token), user, &[group.map(str::as_bytes)], "huawei-osm", group)
    }

    /// The same scope, of a caller whose state in [`Trial::caller_states`] revocations change.
    pub fn scope_of(&self, identity: &Identity, token: &str) -> TierScope {
        self.0.scope(identity, ("token", &[Some(token.as_bytes())]), None, &[None], "huawei-osm", None)
    }

    /// The states of this sidecar's callers.
    pub fn caller_states(&self) -> &Arc<CallerStates> {
        &self.0.caller_states
    }

    /// The first record of a new journal.
    pub fn begin(&self) -> Option<String> {
        self.0.secrets.first().and_then(|fleet| journal::begin(&fleet.key))
    }

    /// Reads the news of a journal, or all of it if it is another one, and applies them. False if it is none, so that it has to begin
    /// anew.
    pub fn read(&self, text: &[u8]) -> bool {
        let Some(fleet) = self.0.secrets.first() else { return false };
        let FleetSecret { key, journal } = fleet;
        let mut journal = journal.lock();
        let first = text.get(..RECORD).unwrap_or_default();
        if journal.first() != Some(first) && journal.adopt(key, first).is_none() {
            return false;
        }
        let rest = usize::try_from(journal.read_from()).ok().and_then(|from| text.get(from..)).unwrap_or_default();
        let news = journal.read(key, rest);
        drop(journal);
        self.0.apply(fleet, &news.events);
        news.is_whole
    }

    /// The state of the journal.
    pub fn stamp(&self) -> Option<Stamp> {
        self.0.secrets.first()?.journal.lock().stamp()
    }

    /// Announces a purge.
    pub fn purge(&self, target: Target<'_>) {
        self.0.purge(target);
    }

    /// Revokes the caller of `scope`.
    pub fn revoke(&self, scope: &TierScope) {
        self.0.announce_revocation(scope);
    }

    /// The records to be appended to the journal.
    pub fn tell(&self) -> Option<String> {
        let FleetSecret { key, journal } = self.0.secrets.first()?;
        journal.lock().take_pending(key)
    }

    /// Names and values to be written for what a call brought, with the stamp of when it was sent.
    pub fn write(&self, scope: &TierScope, stamp: &Stamp, update: &TierUpdate) -> Vec<(Box<str>, Vec<u8>)> {
        let sealed = self.0.seal(scope, *stamp, update);
        sealed.into_iter().map(|sealed| (sealed.name, sealed.value)).collect()
    }

    /// Reads `value` as the link of `id`.
    pub fn link(&self, scope: &TierScope, id: &str, value: &[u8]) -> Option<Entry> {
        let (fleet, keys) = self.0.of_scope(scope).next()?;
        self.0.open_link(fleet, keys, (id, &keys.link(&id.into())), value, self.0.clock.now())
    }

    /// Reads `value` as the caller's acceptance: when the call was sent that showed it.
    pub fn acceptance(&self, scope: &TierScope, value: &[u8]) -> Option<Moment> {
        let (fleet, keys) = self.0.of_scope(scope).next()?;
        self.0.open_acceptance(fleet, keys, value, self.0.clock.now())
    }
}
