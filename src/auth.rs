//! Who asks: credentials → [`Caller`] → [`Scope`] → [`Key`].
//!
//! A token is a secret that only its caller has; a signature proves that its sender has the secret key, once it is verified
//! with the configured one ([`signature`]). Whoever shows neither is no caller, and gets nothing from memory.
//!
//! Everything here is a keyed 128-bit hash over length-prefixed fields (SipHash-2-4-128, key drawn at start), so neither
//! two field lists that run together nor a token and its prefix can meet, and a dump of memory's keys names nobody.
//! A scope holds its caller's *generation*: dropping everything kept for a caller is drawing a new one, at once and
//! whatever the number of links; what a call brings that left before is filed under the old one, where nobody looks.

mod bypass;
mod credential;
mod scope;
pub mod signature;
mod standing;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::AUTHORIZATION;
use http::{HeaderName, HeaderValue};

use crate::api;
use crate::clock::{Clock, Moment, millis};
use crate::config;
use crate::telemetry::log::Seldom;
pub use bypass::Bypass;
pub use credential::Credential;
use scope::Fields;
pub use scope::{Key, Scope};
use signature::{Fault, Keys, Signer};
pub use standing::{Standing, Standings};

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
pub struct Requester {
    /// Who asks.
    pub caller: Caller,
    /// What is remembered of it.
    pub standing: Arc<Standing>,
    /// Signs its calls, where its own request was signed.
    pub signer: Option<Signer>,
    generation: u64,
}

impl Requester {
    fn new(caller: Caller, standing: Arc<Standing>, signer: Option<Signer>) -> Self {
        let generation = standing.generation.load(Ordering::Acquire);
        Self { caller, standing, signer, generation }
    }

    /// Whether a header of this name counts: in a signed request, only if it is signed.
    fn uses_header(&self, name: &HeaderName) -> bool {
        self.signer.as_ref().is_none_or(|signer| signer.covers(name))
    }
}

/// Why a request has no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoCaller {
    /// It is to be forwarded untouched.
    Bypass(Bypass),
    /// It claims to be signed with a configured key, and this cannot be verified: the endpoint judges it.
    Unverified(Fault),
    /// `Connection` names a header that is signed.
    NamedByConnection,
}

/// Tells callers apart and remembers their standing.
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
    standings: Arc<Standings>,
    /// Signatures that do not verify.
    unverified: Seldom,
    clock: Clock,
}

impl Callers {
    /// Of those who ask `endpoint`. What is kept of a caller's at one endpoint is nobody's at another: each has a key of
    /// its own, made of that of `standings`.
    pub fn new(
        config: &config::Callers,
        keys: Arc<Keys>,
        standings: Arc<Standings>,
        endpoint: &config::Endpoint,
        clock: Clock,
    ) -> Self {
        let mut key = Fields::new(&standings.key, b"endpoint");
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
            standings,
            unverified: Seldom::default(),
            clock,
        }
    }

    /// Whether the endpoint's acceptance of this caller is too old to answer from memory.
    pub fn must_revalidate(&self, requester: &Requester, now: Moment) -> bool {
        !requester.standing.accepted_within(self.revalidate, now)
    }

    /// Milliseconds until the endpoint's acceptance of this caller is too old; `None` once it is.
    pub fn accepted_left(&self, requester: &Requester, now: Moment) -> Option<u64> {
        requester.standing.accepted_left(self.revalidate, now)
    }

    /// The endpoint has accepted a caller in a call sent at `sent`, when its doubts were `doubts`. A call that left before
    /// a drop or a doubt proves nothing; whether it does.
    pub fn accept(&self, requester: &Requester, sent: Moment, doubts: u64) -> bool {
        let standing = &requester.standing;
        let proves = standing.accept_if(sent, || self.is_current(requester) && standing.doubts() == doubts);
        if proves {
            self.standings.promote(requester.caller, &requester.standing);
        }
        proves
    }

    /// The endpoint has accepted a caller elsewhere in the fleet, in a call sent at `sent`.
    pub fn accept_elsewhere(&self, requester: &Requester, sent: Moment) {
        if self.is_current(requester) && requester.standing.accept_elsewhere(sent) {
            self.standings.promote(requester.caller, &requester.standing);
        }
    }

    /// Whether nothing was dropped for the caller since `requester` was identified.
    pub fn is_current(&self, requester: &Requester) -> bool {
        requester.standing.generation.load(Ordering::Acquire) == requester.generation
    }

    /// Drops everything kept for a caller, at once.
    pub fn drop_links(&self, requester: &Requester) {
        self.each_standing(requester, |standing| {
            standing.generation.store(self.standings.generation(), Ordering::Release);
            standing.doubt(self.clock.now());
        });
    }

    /// Makes a caller's next batch ask the endpoint, whatever is in memory.
    pub fn doubt(&self, requester: &Requester) {
        self.each_standing(requester, |standing| standing.doubt(self.clock.now()));
    }

    /// All that is remembered of a caller: it may have been forgotten, and met again, since `requester` was identified.
    fn each_standing(&self, requester: &Requester, refuse: impl Fn(&Standing)) {
        refuse(&requester.standing);
        for table in [&self.standings.accepted, &self.standings.strangers] {
            if let Some(other) = table.peek(&requester.caller).filter(|other| !Arc::ptr_eq(other, &requester.standing))
            {
                refuse(&other);
            }
        }
    }
}

#[cfg(test)]
mod tests;
