//! Who asks: credentials → [`Caller`] → [`Scope`] → [`Key`].
//!
//! A token is a secret that only its caller has; a signature proves that its sender has the secret key, once it is verified
//! with the configured one ([`signature`]). Whoever shows neither is no caller, and gets nothing from memory.
//!
//! Everything here is a keyed 128-bit hash over length-prefixed fields (SipHash-2-4-128, key drawn at start), so neither
//! two field lists that run together nor a token and its prefix can meet, and a dump of memory's keys names nobody.
//! A scope holds its caller's *generation*: dropping everything kept for a caller is drawing a new one, at once and
//! whatever the number of links; what a call brings that left before is filed under the old one, where nobody looks.

pub mod signature;
mod standing;

use std::hash::Hasher;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, COOKIE, RANGE, VARY};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::{Hasher128, SipHasher24};

use crate::api;
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, KeyPair};
use crate::error::Fault;
use signature::{Claim, Keys, Signer};
use standing::Standings;

pub use standing::Standing;

/// Who asks: a keyed hash of a token, or of a verified access key with what was signed beside it. Never the token itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Caller(u128);

impl Caller {
    /// Eight hex digits for a log line: enough to follow a caller, useless to become one.
    pub fn short(self) -> String {
        format!("{:08x}", self.0 >> 96)
    }
}

/// Caller, group and the values of the headers that may change an answer. Links never cross scopes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(u128);

/// One id in one scope.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(u128);

impl Key {
    /// A number from 0 to 1 that is this key's own, so that links fetched together need not be refreshed together.
    pub fn spread(self) -> f64 {
        let [low, ..] = self.0.to_le_bytes();
        f64::from(low) / 255.0
    }
}

/// A caller with what its calls carry.
#[derive(Clone)]
pub struct Requester {
    /// Who asks.
    pub caller: Caller,
    /// What is remembered of it.
    pub standing: Arc<Standing>,
    /// Signs its calls, where its own request was signed.
    pub signer: Option<Signer>,
    /// What shows who it is, besides a signature.
    credential: Option<(HeaderName, HeaderValue)>,
    /// The headers that may change an answer, as the client sent them.
    scope_headers: Vec<(HeaderName, HeaderValue)>,
    generation: u64,
}

impl Requester {
    /// All of a client's headers that a call carries.
    pub fn headers(&self) -> impl Iterator<Item = &(HeaderName, HeaderValue)> {
        self.credential.iter().chain(&self.scope_headers)
    }
}

/// What a request shows to say who it is from.
pub enum Credential<'r> {
    /// A token: whoever has it is its caller.
    Token(&'r HeaderValue),
    /// A signature by one of the configured keys, yet to be verified.
    Signed(Claim<'r>, &'r Arc<KeyPair>),
}

/// Why a request has no caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stranger {
    /// It is to be forwarded untouched.
    Bypass(Bypass),
    /// It claims to be signed with a known key, and is not.
    Forged(Fault),
}

/// Why a batch is forwarded untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Bypass {
    /// No credential, or an empty one.
    NoCredential,
    /// More than one credential.
    Credentials,
    /// An `Authorization` of a scheme that sidelink does not know.
    Algorithm,
    /// Signed with a key that is not configured.
    UnknownKey,
    /// Signed, but not over a header that says who asks, or that may change the answer.
    UnsignedHeader,
    /// Signed, but not over its body.
    UnsignedPayload,
    /// A Cookie may shape the answer.
    Cookie,
    /// A Range asks for a piece.
    Range,
    /// Not readable as a batch.
    Unreadable,
    /// An answer that could not be matched to the ids asked for.
    Unmatched,
}

impl Bypass {
    /// Every reason, for metrics.
    pub const ALL: [Bypass; 10] = [
        Bypass::NoCredential,
        Bypass::Credentials,
        Bypass::Algorithm,
        Bypass::UnknownKey,
        Bypass::UnsignedHeader,
        Bypass::UnsignedPayload,
        Bypass::Cookie,
        Bypass::Range,
        Bypass::Unreadable,
        Bypass::Unmatched,
    ];

    /// Its name in metrics and in `Cache-Status`.
    pub fn name(self) -> &'static str {
        match self {
            Bypass::NoCredential => "no-credential",
            Bypass::Credentials => "credentials",
            Bypass::Algorithm => "algorithm",
            Bypass::UnknownKey => "unknown-key",
            Bypass::UnsignedHeader => "unsigned-header",
            Bypass::UnsignedPayload => "unsigned-payload",
            Bypass::Cookie => "cookie",
            Bypass::Range => "range",
            Bypass::Unreadable => "unreadable",
            Bypass::Unmatched => "unmatched",
        }
    }
}

/// Tells callers apart and remembers their standing.
pub struct Callers {
    key: [u8; 16],
    keys: Arc<Keys>,
    scope_headers: Vec<HeaderName>,
    /// Credentials, then scope headers.
    vary: Vec<HeaderName>,
    revalidate: u64,
    standings: Standings,
    clock: Clock,
}

impl Callers {
    /// `key` must be random and secret; `calls_per_caller` is how many calls one caller may have under way.
    pub fn new(
        config: &config::Callers,
        keys: Arc<Keys>,
        calls_per_caller: usize,
        key: [u8; 16],
        clock: Clock,
    ) -> Self {
        let mut scope_headers = api::SCOPE_HEADERS.to_vec();
        scope_headers.extend(config.scope_headers.iter().cloned());
        let mut vary = vec![api::TOKEN, AUTHORIZATION, api::SECURITY_TOKEN];
        vary.extend(scope_headers.iter().cloned());
        let revalidate = millis(config.revalidate);
        Self { key, keys, scope_headers, vary, revalidate, standings: Standings::new(calls_per_caller), clock }
    }

    /// Finds the credential of a batch.
    ///
    /// # Errors
    /// Why the request cannot be anyone's batch: it is to be forwarded untouched.
    pub fn credential<'r>(&'r self, headers: &'r HeaderMap) -> Result<Credential<'r>, Bypass> {
        if headers.contains_key(COOKIE) {
            return Err(Bypass::Cookie);
        }
        if headers.contains_key(RANGE) {
            return Err(Bypass::Range);
        }
        match (headers.contains_key(AUTHORIZATION), headers.contains_key(api::TOKEN)) {
            (true, true) => Err(Bypass::Credentials),
            (false, false) => Err(Bypass::NoCredential),
            (true, false) => {
                let claim = Claim::read(headers).ok_or(Bypass::Algorithm)?;
                let pair = self.keys.of(&claim).ok_or(Bypass::UnknownKey)?;
                Ok(Credential::Signed(claim, pair))
            }
            (false, true) if headers.contains_key(api::SECURITY_TOKEN) => Err(Bypass::Credentials),
            (false, true) => {
                let mut tokens = headers.get_all(api::TOKEN).iter();
                match (tokens.next(), tokens.next()) {
                    (Some(token), None) if !token.is_empty() => Ok(Credential::Token(token)),
                    (Some(_), None) => Err(Bypass::NoCredential),
                    _ => Err(Bypass::Credentials),
                }
            }
        }
    }

    /// Who shows `credential` in a request of this head and this body.
    ///
    /// # Errors
    /// Why that is nobody.
    pub fn identify(&self, credential: &Credential<'_>, head: &Parts, body: &[u8]) -> Result<Requester, Stranger> {
        let mut scope_headers = Vec::with_capacity(self.scope_headers.len());
        for name in &self.scope_headers {
            for value in head.headers.get_all(name) {
                scope_headers.push((name.clone(), value.clone()));
            }
        }
        let (caller, credential, signer) = match credential {
            Credential::Token(token) => {
                let mut hash = Fields::new(&self.key, b"caller/token");
                hash.field(token.as_bytes());
                (hash.finish(), Some((api::TOKEN, *token)), None)
            }
            Credential::Signed(claim, pair) => {
                let signer = self.verify(claim, pair, head, body)?;
                let security_token = head.headers.get(api::SECURITY_TOKEN);
                let token_covered = security_token.is_none() || signer.covers(&api::SECURITY_TOKEN);
                if !token_covered || scope_headers.iter().any(|(name, _)| !signer.covers(name)) {
                    return Err(Stranger::Bypass(Bypass::UnsignedHeader));
                }
                let mut hash = Fields::new(&self.key, b"caller/key");
                hash.field(signer.access_key().as_bytes());
                for name in [&api::SECURITY_TOKEN, &api::DOMAIN_ID, &api::PROJECT_ID] {
                    // Once at most: it is signed.
                    match head.headers.get(name) {
                        Some(value) => hash.field(value.as_bytes()),
                        None => hash.absent(),
                    }
                }
                (hash.finish(), security_token.map(|token| (api::SECURITY_TOKEN, token)), Some(signer))
            }
        };
        let caller = Caller(caller);
        let credential = credential.map(|(name, value)| {
            let mut secret = value.clone();
            secret.set_sensitive(true);
            (name, secret)
        });
        let standing = self.standings.of(caller);
        let generation = standing.generation.load(Ordering::Acquire);
        Ok(Requester { caller, standing, signer, credential, scope_headers, generation })
    }

    fn verify(&self, claim: &Claim<'_>, pair: &Arc<KeyPair>, head: &Parts, body: &[u8]) -> Result<Signer, Stranger> {
        let now = self.clock.now().unix_seconds();
        let (signer, payload) = signature::verify_whole(claim, pair, head, body, now).map_err(Stranger::Forged)?;
        // Without a body there is nothing that could have been swapped.
        if payload == signature::UNSIGNED_PAYLOAD && !body.is_empty() {
            return Err(Stranger::Bypass(Bypass::UnsignedPayload));
        }
        Ok(signer)
    }

    /// The scope of a requester's batch in `group`.
    pub fn scope(&self, requester: &Requester, group: Option<&str>) -> Scope {
        let mut hash = Fields::new(&self.key, b"scope");
        hash.field(&requester.caller.0.to_be_bytes());
        hash.field(&requester.generation.to_be_bytes());
        match group {
            Some(group) => hash.field(group.as_bytes()),
            None => hash.absent(),
        }
        for (name, value) in &requester.scope_headers {
            hash.field(name.as_str().as_bytes());
            hash.field(value.as_bytes());
        }
        Scope(hash.finish())
    }

    /// The key of `id` in `scope`.
    pub fn key(&self, scope: Scope, id: &str) -> Key {
        let mut hash = Fields::new(&self.key, b"link");
        hash.field(&scope.0.to_be_bytes());
        hash.field(id.as_bytes());
        Key(hash.finish())
    }

    /// Whether the endpoint's acceptance of this caller is too old to answer from memory.
    pub fn must_revalidate(&self, requester: &Requester) -> bool {
        !requester.standing.accepted_within(self.revalidate, self.clock.now())
    }

    /// The endpoint has accepted a caller in a call sent at `sent`, when its doubts were `doubts`. A call that left before
    /// a drop or a doubt proves nothing; whether it does.
    pub fn accept(&self, requester: &Requester, sent: Moment, doubts: u64) -> bool {
        let proves = self.is_current(requester) && requester.standing.doubts() == doubts;
        if proves {
            requester.standing.accept(sent);
            self.standings.promote(requester.caller, &requester.standing);
        }
        proves
    }

    /// Whether nothing was dropped for the caller since `requester` was identified.
    pub fn is_current(&self, requester: &Requester) -> bool {
        requester.standing.generation.load(Ordering::Acquire) == requester.generation
    }

    /// Drops everything kept for a caller, at once.
    pub fn drop_links(&self, requester: &Requester) {
        requester.standing.generation.store(self.standings.generation(), Ordering::Release);
        requester.standing.doubt();
    }

    /// The names that `Vary` lists, and that an endpoint's `Vary` may name: the credential and the scope headers.
    pub fn vary(&self) -> &[HeaderName] {
        &self.vary
    }

    /// Whether an answer's `Vary` names anything that is not part of a scope (RFC 9111 §4.1).
    pub fn varies_outside(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VARY).iter().any(|line| {
            line.to_str().map_or(true, |line| {
                line.split(',').map(str::trim).filter(|name| !name.is_empty()).any(|name| {
                    // Codings are undone, so what they vary by cannot be seen in a link.
                    let coding = name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str());
                    !coding && !self.vary.iter().any(|known| name.eq_ignore_ascii_case(known.as_str()))
                })
            })
        })
    }
}

/// A keyed hash over fields, each preceded by its length.
struct Fields(SipHasher24);

impl Fields {
    fn new(key: &[u8; 16], purpose: &[u8]) -> Self {
        let mut fields = Self(SipHasher24::new_with_key(key));
        fields.field(purpose);
        fields
    }

    fn field(&mut self, bytes: &[u8]) {
        self.0.write_u64(bytes.len() as u64);
        self.0.write(bytes);
    }

    /// A field that is not there differs from one that is empty.
    fn absent(&mut self) {
        self.0.write_u64(u64::MAX);
    }

    fn finish(self) -> u128 {
        self.0.finish128().as_u128()
    }
}

#[cfg(test)]
mod tests;
