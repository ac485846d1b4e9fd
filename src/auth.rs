//! Who asks: [`Credential`] → [`Identity`] → [`Caller`] → [`Scope`] → [`Key`]. Start at [`Callers`]; where several callers are one
//! user, read `user`.
//!
//! A token is a secret that only its caller has; a signature proves that its sender has the secret key, once it is verified
//! with the configured one ([`signature`]). A request with neither has no caller, and gets nothing from memory.
//!
//! Callers, scopes and keys are keyed 128-bit hashes over length-prefixed fields (SipHash-2-4-128, key drawn at start), so
//! no two lists of fields collide, and a dump of memory's keys names nobody. A scope contains a number of its
//! caller's state, `entries_version`: a new number drops all entries of a caller at once, however many there are. Calls that were
//! sent before store into the scope of the old number, which no look-up reads.

mod acceptance;
mod caller_state;
mod credential;
mod last_token;
mod scope;
pub mod signature;
mod user;
mod user_cache;

use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use crate::api::BatchApi;
use crate::clock::{Clock, Moment, millis};
use crate::config::{CallersConfig, Endpoint};
use crate::message::header_filter::HeaderFilter;
use crate::telemetry::log::LogThrottle;
pub use crate::telemetry::metrics::Bypass;
use acceptance::Acceptance;
pub(crate) use caller_state::CallerState;
pub use caller_state::CallerStates;
pub use credential::Credential;
pub(crate) use credential::UserToken;
pub use last_token::LastToken;
use scope::KeyedHash;
pub use scope::{Key, KeyHasher, Scope};
use signature::{Fault, Keys, Signer};
pub(crate) use user::Owner;
pub use user::{TokenStatus, UserId};
pub(crate) use user_cache::{Membership, NoUser, UserLookup};

/// Who asks: a keyed hash of a token, or of a verified access key with what was signed beside it. Never the token itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller(u128);

impl Hash for Caller {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Half of a keyed hash is one as well.
        state.write_u64(scope::Halves::of(self.0).0);
    }
}

impl Caller {
    /// Shown in log lines as eight hex digits: enough to follow a caller, useless to become one.
    pub(crate) fn short(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    #[cfg(test)]
    pub(crate) fn of_test(number: u128) -> Self {
        Self(number)
    }
}

/// The caller of one request.
#[derive(Clone)]
pub struct Identity {
    pub(crate) caller: Caller,
    pub(crate) caller_state: Arc<CallerState>,
    /// Signs this caller's calls, where its own request was signed.
    pub(crate) signer: Option<Signer>,
    entries_version: u64,
    /// The user that it is, where that is known: the entries are the user's.
    pub(crate) membership: Option<Arc<Membership>>,
    /// The scope of its requests without scope headers.
    scope: Scope,
}

impl Identity {
    /// The owner of its entries.
    pub(crate) fn owner(&self) -> &Arc<Owner> {
        self.membership.as_ref().map_or(&self.caller_state.owner, |membership| &membership.owner)
    }

    /// Whether the identity provider vouches for the caller: it is its user, whatever the endpoint says of this one token.
    pub(crate) fn is_active(&self) -> bool {
        self.membership.as_ref().is_some_and(|membership| membership.is_active)
    }

    /// The acceptance that counts for it: its user's, if somebody vouches for it, else its own.
    fn acceptance(&self) -> &Acceptance {
        if self.is_active() { &self.owner().acceptance } else { &self.caller_state.owner.acceptance }
    }

    /// Whether the endpoint has accepted the caller, or somebody vouches for it: no made-up token.
    pub(crate) fn is_accepted(&self) -> bool {
        self.is_active() || self.caller_state.is_accepted()
    }

    /// Short hashes of the caller and of its user, for operators.
    pub(crate) fn shown(&self) -> (Option<u32>, Option<u32>) {
        (Some(self.caller.short()), self.membership.as_ref().map(|membership| membership.short()))
    }

    /// Whether a header of this name counts: in a signed request, only if it is signed.
    fn uses_header(&self, name: &HeaderName) -> bool {
        self.signer.as_ref().is_none_or(|signer| signer.covers(name))
    }
}

/// Why a request has no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// The request is forwarded untouched.
    Bypass(Bypass),
    /// The request claims to be signed with a configured key, and does not verify here: the endpoint judges it.
    Unverified(Fault),
    /// `Connection` names a header that is signed.
    NamedByConnection,
}

/// The most bytes of a credential or scope header of this name, unless its API says otherwise: an endpoint may end the connection on
/// which a longer one comes, with all calls on it.
const HEADER_BYTES: usize = 5000;

fn header_bytes(api: &BatchApi, name: &HeaderName) -> usize {
    api.header_bytes.iter().find(|(known, _)| known == name).map_or(HEADER_BYTES, |(_, most)| *most)
}

/// Identifies the callers of one batch API, and keeps their states.
pub struct Callers {
    api: Arc<BatchApi>,
    /// Its fingerprint.
    description: String,
    /// The number of the configuration that says which callers are one user.
    user_config: u64,
    /// Makes its callers differ from those of other APIs: a caller is this mask XOR a hash of the credential, which all APIs share.
    mask: Arc<u128>,
    /// Hashes to start from, each of another purpose.
    by_token: KeyedHash,
    /// Differs where callers do, and where another configuration says which callers are one user.
    token_key_id: u128,
    by_key: KeyedHash,
    by_scope: KeyedHash,
    by_user: KeyedHash,
    keys: Arc<Keys>,
    /// Each with its filter.
    scope_headers: Vec<(HeaderName, HeaderFilter)>,
    /// The filter of all scope headers.
    scope_filter: HeaderFilter,
    /// The headers that are secret: credentials, and what belongs to a signature.
    secrets: Vec<HeaderName>,
    /// The filter of the headers whose length is limited: scope headers and secrets.
    limited: HeaderFilter,
    /// The most bytes of the first credential header.
    credential_bytes: usize,
    /// Credential headers, then scope headers.
    varies: Vec<HeaderName>,
    /// The value of `Vary`: credential and scope headers.
    pub(crate) vary: HeaderValue,
    revalidate: u64,
    caller_states: Arc<CallerStates>,
    unverified: LogThrottle,
    clock: Clock,
}

impl Callers {
    /// Callers of `api` at `endpoint`. Each has a hash key of its own, derived from that of `caller_states`, so that no scope
    /// of one is found at another.
    pub fn new(
        api: Arc<BatchApi>,
        config: &CallersConfig,
        keys: Arc<Keys>,
        caller_states: Arc<CallerStates>,
        endpoint: &Endpoint,
        clock: Clock,
    ) -> Self {
        let of_endpoint = KeyedHash::new(&caller_states.key, b"endpoint");
        let (endpoint, description) = (endpoint.to_string(), api.fingerprint());
        let key = of_endpoint.with([Some(endpoint.as_bytes()), Some(description.as_bytes())]).to_be_bytes();
        let of_endpoint = of_endpoint.with([Some(endpoint.as_bytes())]).to_be_bytes();
        let mut scope_headers = api.scope_headers.clone();
        scope_headers.extend(config.scope_headers.iter().filter(|name| !api.scope_headers.contains(name)).cloned());
        let mut secrets = api.credentials.clone();
        let mut varies = secrets.clone();
        if api.signed {
            secrets.push(signature::SECURITY_TOKEN);
            varies.extend([AUTHORIZATION, signature::SECURITY_TOKEN]);
        }
        varies.extend(scope_headers.iter().cloned());
        let names: Vec<&str> = varies.iter().map(HeaderName::as_str).collect();
        // Never the star: header names make a valid value.
        let vary = HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static("*"));
        let mut by_token = KeyedHash::new(&of_endpoint, b"caller/token");
        credential::in_order(api.credentials.iter().zip(&api.credentials)).for_each(|name| {
            by_token.field(Some(name.as_str().as_bytes()));
        });
        let user_config = caller_states.user_config.lock().number(config);
        Self {
            token_key_id: KeyedHash::new(&key, b"caller/last token").with([Some(&user_config.to_be_bytes()[..])]),
            user_config,
            mask: caller_states.add_mask(KeyedHash::new(&key, b"caller").with([])),
            by_token,
            by_key: KeyedHash::new(&of_endpoint, b"caller/key"),
            by_scope: KeyedHash::new(&key, b"scope"),
            by_user: KeyedHash::new(&key, b"scope/user"),
            keys,
            scope_filter: HeaderFilter::new(&scope_headers),
            limited: HeaderFilter::new(scope_headers.iter().chain(&secrets)),
            credential_bytes: secrets.first().map_or(0, |name| header_bytes(&api, name)),
            secrets,
            scope_headers: scope_headers.into_iter().map(|name| (name.clone(), HeaderFilter::new([&name]))).collect(),
            varies,
            vary,
            revalidate: millis(config.revalidate),
            caller_states,
            unverified: LogThrottle::default(),
            clock,
            description,
            api,
        }
    }

    /// The batch API whose callers they are.
    pub fn api(&self) -> &Arc<BatchApi> {
        &self.api
    }

    fn identity(&self, caller: Caller, caller_state: Arc<CallerState>, signer: Option<Signer>) -> Identity {
        let entries_version = caller_state.entries_version.load(Ordering::Acquire);
        // After the version: a word from before the entries were dropped is gone with them.
        let membership = self.cached_user(&caller_state).and_then(|known| known.membership.clone());
        let scope = match &membership {
            Some(membership) => membership.scope,
            None => self.scope_of(caller, entries_version),
        };
        Identity { caller, caller_state, signer, entries_version, membership, scope }
    }

    /// Whether the endpoint's last acceptance of this caller is too old to answer from memory.
    pub(crate) fn must_revalidate(&self, identity: &Identity, now: Moment) -> bool {
        self.accepted_left(identity, now).is_none()
    }

    /// Milliseconds until the endpoint's last acceptance of this caller is too old; `None` once it is.
    pub(crate) fn accepted_left(&self, identity: &Identity, now: Moment) -> Option<u64> {
        identity.acceptance().left(self.revalidate, now)
    }

    /// Records that the endpoint accepted a caller in a call sent at `sent`, when the caller had `invalidations`. Returns false
    /// for a call sent before links were dropped or invalidated: it proves nothing.
    pub(crate) fn accept(&self, identity: &Identity, sent: Moment, invalidations: u64) -> bool {
        let state = &identity.caller_state;
        let is_valid = || self.is_current(identity) && state.invalidations() == invalidations;
        let accepts = state.owner.acceptance.accept_if(sent, || {
            let accepts = is_valid();
            if accepts {
                state.is_refused.store(false, Ordering::Release);
            }
            accepts
        });
        if accepts {
            if identity.is_active() {
                identity.owner().acceptance.accept_elsewhere(sent);
            }
            self.caller_states.insert_accepted(identity.caller, state);
        }
        accepts
    }

    /// Records that the endpoint accepted a caller, or its user, in another sidecar's call, sent at `sent`.
    pub(crate) fn accept_elsewhere(&self, identity: &Identity, sent: Moment) {
        if self.is_current(identity) && identity.acceptance().accept_elsewhere(sent) {
            self.caller_states.insert_accepted(identity.caller, &identity.caller_state);
        }
    }

    /// Whether the caller's entries have not been dropped since `identity` was made.
    pub(crate) fn is_current(&self, identity: &Identity) -> bool {
        identity.caller_state.entries_version.load(Ordering::Acquire) == identity.entries_version
    }

    /// Whether the caller may have stale entries of its owner, and what a call for another caller of that owner brings: where those are
    /// its user's, not before the endpoint has accepted it, or somebody vouches for it.
    pub(crate) fn may_share(&self, identity: &Identity) -> bool {
        self.is_current(identity) && (identity.membership.is_none() || identity.is_accepted())
    }

    /// Drops all entries of a caller's credential, at each API. Returns the journal names of the credential's callers at other APIs that
    /// the endpoint had accepted.
    pub(crate) fn drop_entries(&self, identity: &Identity) -> Vec<Arc<Vec<u128>>> {
        let now = self.clock.now();
        let mut names = Vec::new();
        for state in self.caller_states.at_other_apis(identity.caller, *self.mask) {
            names.extend(state.fleet_names().filter(|_| state.is_accepted()));
            self.caller_states.drop_entries(&state, now, None);
        }
        self.each_state(identity, |state| self.caller_states.drop_entries(state, now, None));
        names
    }

    /// Makes a caller's next batch ask the endpoint, whatever is in memory.
    pub(crate) fn invalidate(&self, identity: &Identity) {
        let now = self.clock.now();
        self.each_state(identity, |state| state.invalidate(now));
        if identity.is_active() {
            identity.owner().acceptance.invalidate(now, || ());
        }
    }

    /// Makes the endpoint accept a caller again, and it alone, before it gets anything from memory; until then nobody vouches for it.
    pub(crate) fn refuse(&self, identity: &Identity) {
        let now = self.clock.now();
        self.each_state(identity, |state| state.refuse(now));
    }

    /// Updates each state of a caller: its state may have been evicted and created anew since `identity` was made.
    fn each_state(&self, identity: &Identity, update: impl Fn(&CallerState)) {
        update(&identity.caller_state);
        for other in self.caller_states.all(identity.caller) {
            if !Arc::ptr_eq(&other, &identity.caller_state) {
                update(&other);
            }
        }
        // Last: who sees the change looks the caller up again, and finds the updated state.
        self.caller_states.changed();
    }
}

#[cfg(test)]
mod tests;
