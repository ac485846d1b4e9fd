//! Who asks: credentials → [`Caller`] → [`Scope`] → [`Key`].
//!
//! A token is a secret that only its caller has; a signature proves that its sender has the secret key, once it is verified
//! with the configured one ([`signature`]). Whoever shows neither is no caller, and gets nothing from memory.
//!
//! Everything here is a keyed 128-bit hash over length-prefixed fields (SipHash-2-4-128, key drawn at start), so neither
//! two field lists that run together nor a token and its prefix can meet, and a dump of memory's keys names nobody.
//! A scope holds its caller's *generation*: dropping everything kept for a caller is drawing a new one, at once and
//! whatever the number of links; what a call brings that left before is filed under the old one, where nobody looks.

mod caller_state;
mod credential;
mod scope;
pub mod signature;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use crate::api;
use crate::clock::{Clock, Moment, millis};
use crate::config;
use crate::telemetry::log::LogThrottle;
pub use crate::telemetry::metrics::Bypass;
pub use caller_state::{CallerState, CallerStates};
pub use credential::Credential;
use scope::Fields;
pub use scope::{Key, Scope};
use signature::{Fault, Keys, Signer};

/// Who asks: a keyed hash of a token, or of a verified access key with what was signed beside it. Never the token itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Caller(u128);

impl Caller {
    /// What stands for it in a log line, as eight hex digits: enough to follow a caller, useless to become one.
    pub fn short(self) -> u32 {
        let [a, b, c, d, ..] = self.0.to_be_bytes();
        u32::from_be_bytes([a, b, c, d])
    }

    #[cfg(test)]
    pub(crate) fn of_test(number: u128) -> Self {
        Self(number)
    }
}

/// A caller as one request has shown it.
#[derive(Clone)]
pub struct Identity {
    /// Who asks.
    pub caller: Caller,
    /// What is remembered of it.
    pub caller_state: Arc<CallerState>,
    /// Signs its calls, where its own request was signed.
    pub signer: Option<Signer>,
    generation: u64,
}

impl Identity {
    fn new(caller: Caller, caller_state: Arc<CallerState>, signer: Option<Signer>) -> Self {
        let generation = caller_state.generation.load(Ordering::Acquire);
        Self { caller, caller_state, signer, generation }
    }

    /// Whether a header of this name counts: in a signed request, only if it is signed.
    fn uses_header(&self, name: &HeaderName) -> bool {
        self.signer.as_ref().is_none_or(|signer| signer.covers(name))
    }
}

/// Why a request has no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AuthError {
    /// It is to be forwarded untouched.
    Bypass(Bypass),
    /// It claims to be signed with a configured key, and this cannot be verified: the endpoint judges it.
    Unverified(Fault),
    /// `Connection` names a header that is signed.
    NamedByConnection,
}

/// Tells callers apart and remembers their states.
pub struct Callers {
    /// The beginnings of the hashes that callers and scopes are, each with its purpose told.
    by_token: Fields,
    by_key: Fields,
    by_scope: Fields,
    keys: Arc<Keys>,
    scope_headers: Vec<HeaderName>,
    /// Credentials, then scope headers.
    varies: Vec<HeaderName>,
    vary: HeaderValue,
    revalidate: u64,
    caller_states: Arc<CallerStates>,
    /// Signatures that do not verify.
    unverified: LogThrottle,
    clock: Clock,
}

impl Callers {
    /// Of those who ask `endpoint`. What is kept of a caller's at one endpoint is nobody's at another: each has a key of
    /// its own, made of that of `caller_states`.
    pub fn new(
        config: &config::Callers,
        keys: Arc<Keys>,
        caller_states: Arc<CallerStates>,
        endpoint: &config::Endpoint,
        clock: Clock,
    ) -> Self {
        let mut key = Fields::new(&caller_states.key, b"endpoint");
        key.field(endpoint.to_string().as_bytes());
        let key = key.finish().to_be_bytes();
        let mut scope_headers = api::SCOPE_HEADERS.to_vec();
        scope_headers.extend(config.scope_headers.iter().cloned());
        let mut varies = vec![api::TOKEN, AUTHORIZATION, api::SECURITY_TOKEN];
        varies.extend(scope_headers.iter().cloned());
        let names: Vec<&str> = varies.iter().map(HeaderName::as_str).collect();
        // Never the star: names of headers make a value of one.
        let vary = HeaderValue::from_str(&names.join(", ")).unwrap_or(HeaderValue::from_static("*"));
        Self {
            by_token: Fields::new(&key, b"caller/token"),
            by_key: Fields::new(&key, b"caller/key"),
            by_scope: Fields::new(&key, b"scope"),
            keys,
            scope_headers,
            varies,
            vary,
            revalidate: millis(config.revalidate),
            caller_states,
            unverified: LogThrottle::default(),
            clock,
        }
    }

    /// Whether the endpoint's acceptance of this caller is too old to answer from memory.
    pub fn must_revalidate(&self, requester: &Identity, now: Moment) -> bool {
        !requester.caller_state.accepted_within(self.revalidate, now)
    }

    /// Milliseconds until the endpoint's acceptance of this caller is too old; `None` once it is.
    pub fn accepted_left(&self, requester: &Identity, now: Moment) -> Option<u64> {
        requester.caller_state.accepted_left(self.revalidate, now)
    }

    /// The endpoint has accepted a caller in a call sent at `sent`, when its invalidations were `invalidations`. A call that left before
    /// a drop or an invalidation proves nothing; whether it does.
    pub fn accept(&self, requester: &Identity, sent: Moment, invalidations: u64) -> bool {
        let caller_state = &requester.caller_state;
        let proves = caller_state
            .accept_if(sent, || self.is_current(requester) && caller_state.invalidations() == invalidations);
        if proves {
            self.caller_states.promote(requester.caller, &requester.caller_state);
        }
        proves
    }

    /// The endpoint has accepted a caller elsewhere in the fleet, in a call sent at `sent`.
    pub fn accept_elsewhere(&self, requester: &Identity, sent: Moment) {
        if self.is_current(requester) && requester.caller_state.accept_elsewhere(sent) {
            self.caller_states.promote(requester.caller, &requester.caller_state);
        }
    }

    /// Whether nothing was dropped for the caller since `requester` was identified.
    pub fn is_current(&self, requester: &Identity) -> bool {
        requester.caller_state.generation.load(Ordering::Acquire) == requester.generation
    }

    /// Drops everything kept for a caller, at once.
    pub fn drop_links(&self, requester: &Identity) {
        self.each_standing(requester, |caller_state| {
            caller_state.generation.store(self.caller_states.generation(), Ordering::Release);
            caller_state.invalidate(self.clock.now());
        });
    }

    /// Makes a caller's next batch ask the endpoint, whatever is in memory.
    pub fn invalidate(&self, requester: &Identity) {
        self.each_standing(requester, |caller_state| caller_state.invalidate(self.clock.now()));
    }

    /// All that is remembered of a caller: it may have been forgotten, and met again, since `requester` was identified.
    fn each_standing(&self, requester: &Identity, refuse: impl Fn(&CallerState)) {
        refuse(&requester.caller_state);
        for table in [&self.caller_states.accepted, &self.caller_states.strangers] {
            if let Some(other) =
                table.peek(&requester.caller).filter(|other| !Arc::ptr_eq(other, &requester.caller_state))
            {
                refuse(&other);
            }
        }
    }
}

#[cfg(test)]
mod tests;
