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
use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};

use crate::api;
use crate::clock::{Clock, Moment, millis};
use crate::config::{self, KeyPair};
use crate::error::Fault;
use signature::{Claim, Keys, Signer};
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

/// Caller, group and the values of the headers that may change an answer. Links never cross scopes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(u128);

impl Scope {
    /// The key of `id` in this scope: the scope itself is the key of the hash, and nobody can guess it.
    pub fn key(self, id: &str) -> Key {
        // One round and three, as the standard library's: the hashes are secret, so two that meet cannot be looked for.
        let Halves(low, high) = Halves::of(self.0);
        Key(Halves::of(SipHasher13::new_with_keys(low, high).hash(id.as_bytes()).as_u128()))
    }

    #[cfg(test)]
    pub(crate) fn of_test(number: u128) -> Self {
        Self(number)
    }
}

/// One id in one scope.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(Halves);

/// 128 bits, low and high half: aligned as one half is, which saves a table room.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Halves(u64, u64);

impl Halves {
    fn of(whole: u128) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = whole.to_le_bytes();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p]))
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Half of a keyed hash is one still.
        state.write_u64(self.0.1);
    }
}

impl Key {
    /// The half that is not its hash in a table.
    pub(crate) fn low(self) -> u64 {
        self.0.0
    }

    /// A number from 0 to 1 that is this key's own, so that links fetched together need not be refreshed together.
    pub fn spread(self) -> f64 {
        let [low, ..] = self.low().to_le_bytes();
        f64::from(low) / 255.0
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
    /// A credential or scope header is longer than the endpoint takes it.
    HeaderTooLong,
    /// Not readable as a batch.
    Unreadable,
    /// An answer that could not be matched to the ids asked for.
    Unmatched,
}

impl Bypass {
    /// Every reason, for metrics.
    pub const ALL: [Bypass; 11] = [
        Bypass::NoCredential,
        Bypass::Credentials,
        Bypass::Algorithm,
        Bypass::UnknownKey,
        Bypass::UnsignedHeader,
        Bypass::UnsignedPayload,
        Bypass::Cookie,
        Bypass::Range,
        Bypass::HeaderTooLong,
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
            Bypass::HeaderTooLong => "header-too-long",
            Bypass::Unreadable => "unreadable",
            Bypass::Unmatched => "unmatched",
        }
    }
}

/// Tells callers apart and remembers their standing.
pub struct Callers {
    /// The beginnings of the hashes that callers and scopes are, each with its purpose told.
    by_token: Fields,
    by_key: Fields,
    by_scope: Fields,
    keys: Arc<Keys>,
    scope_headers: Vec<HeaderName>,
    security_token: HeaderName,
    /// Credentials, then scope headers.
    varies: Vec<HeaderName>,
    vary: HeaderValue,
    revalidate: u64,
    standings: Arc<Standings>,
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
            security_token: api::SECURITY_TOKEN,
            varies,
            vary,
            revalidate: millis(config.revalidate),
            standings,
            clock,
        }
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
        if self.has_long_header(headers) {
            return Err(Bypass::HeaderTooLong);
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
        let (caller, signer) = self.caller_of(credential, head, body)?;
        let standing = self.standings.of(caller);
        Ok(Requester::new(caller, standing, signer))
    }

    /// As [`Callers::identify`], with no trace: whoever is not remembered does not become so.
    ///
    /// # Errors
    /// As there.
    pub fn known(
        &self,
        credential: &Credential<'_>,
        head: &Parts,
        body: &[u8],
    ) -> Result<(Caller, Option<Requester>), Stranger> {
        let (caller, signer) = self.caller_of(credential, head, body)?;
        Ok((caller, self.standings.peek(caller).map(|standing| Requester::new(caller, standing, signer))))
    }

    /// Whom a token shows, if the endpoint has once accepted it and it is remembered.
    pub fn accepted(&self, token: &HeaderValue) -> Option<Requester> {
        let caller = self.caller_by_token(token);
        Some(Requester::new(caller, self.standings.accepted.get(&caller)?, None))
    }

    fn caller_by_token(&self, token: &HeaderValue) -> Caller {
        let mut hash = self.by_token;
        hash.field(token.as_bytes());
        Caller(hash.finish())
    }

    fn caller_of(
        &self,
        credential: &Credential<'_>,
        head: &Parts,
        body: &[u8],
    ) -> Result<(Caller, Option<Signer>), Stranger> {
        match credential {
            Credential::Token(token) => Ok((self.caller_by_token(token), None)),
            Credential::Signed(claim, pair) => {
                let signer = self.verify(claim, pair, head, body)?;
                let mut names = self.scope_headers.iter().chain([&self.security_token]);
                if names.any(|name| head.headers.contains_key(name) && !signer.covers(name)) {
                    return Err(Stranger::Bypass(Bypass::UnsignedHeader));
                }
                let mut hash = self.by_key;
                hash.field(signer.access_key().as_bytes());
                for name in [&api::SECURITY_TOKEN, &api::DOMAIN_ID, &api::PROJECT_ID] {
                    // Once at most: it is signed.
                    match head.headers.get(name) {
                        Some(value) => hash.field(value.as_bytes()),
                        None => hash.absent(),
                    }
                }
                Ok((Caller(hash.finish()), Some(signer)))
            }
        }
    }

    /// Whether a header of this name is part of scopes.
    pub fn is_scope_header(&self, name: &HeaderName) -> bool {
        self.scope_headers.contains(name)
    }

    /// Whether a credential or scope header is longer than the endpoint takes it. Several of one name count as the one list
    /// that they stand for (RFC 9110 §5.3).
    pub fn has_long_header(&self, headers: &HeaderMap) -> bool {
        let credentials = [api::TOKEN, api::SECURITY_TOKEN];
        credentials.iter().chain(&self.scope_headers).any(|name| {
            let bytes: usize = headers.get_all(name).iter().map(|value| value.len() + ", ".len()).sum();
            bytes.saturating_sub(", ".len()) > api::header_bytes(name)
        })
    }

    /// All of a request's headers that its calls carry: what shows who asks, besides a signature, and the scope headers.
    pub fn carried(&self, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let mut carried = Vec::new();
        for name in [api::TOKEN, api::SECURITY_TOKEN] {
            // Once at most, or it is no credential.
            if let Some(secret) = headers.get(&name) {
                let mut secret = secret.clone();
                secret.set_sensitive(true);
                carried.push((name, secret));
            }
        }
        for name in &self.scope_headers {
            carried.extend(headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
        carried
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

    /// The scope of a requester's batch in `group`, with these headers.
    pub fn scope(&self, requester: &Requester, headers: &HeaderMap, group: Option<&str>) -> Scope {
        let mut hash = self.by_scope;
        let Halves(low, high) = Halves::of(requester.caller.0);
        for number in [low, high, requester.generation] {
            hash.number(number);
        }
        for field in self.scope_fields(headers, group) {
            match field {
                Some(field) => hash.field(field),
                None => hash.absent(),
            }
        }
        Scope(hash.finish())
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

    /// What a credential is made up of, for those who must know it again elsewhere: its kind, and its fields.
    pub fn made_up_of<'r>(
        &self,
        credential: &Credential<'r>,
        headers: &'r HeaderMap,
    ) -> (&'static str, Vec<Option<&'r [u8]>>)
    where
        Self: 'r,
    {
        match credential {
            Credential::Token(token) => ("token", vec![Some(token.as_bytes())]),
            Credential::Signed(_, pair) => {
                let mut fields = vec![Some(pair.access_key.as_bytes()), Some(pair.secret_key.expose())];
                let names = [&api::SECURITY_TOKEN, &api::DOMAIN_ID, &api::PROJECT_ID];
                fields.extend(names.map(|name| headers.get(name).map(HeaderValue::as_bytes)));
                ("key", fields)
            }
        }
    }

    /// What a scope is made up of besides its caller: the group, and each scope header by name and value.
    pub fn scope_fields<'r>(
        &'r self,
        headers: &'r HeaderMap,
        group: Option<&'r str>,
    ) -> impl Iterator<Item = Option<&'r [u8]>> {
        let group = std::iter::once(group.map(str::as_bytes));
        let names = if headers.is_empty() { [].iter() } else { self.scope_headers.iter() };
        group.chain(names.flat_map(|name| {
            let values = headers.get_all(name).iter();
            values.flat_map(|value| [Some(name.as_str().as_bytes()), Some(value.as_bytes())])
        }))
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

    /// What `Vary` says: the credential and the scope headers.
    pub fn vary(&self) -> &HeaderValue {
        &self.vary
    }

    /// Whether an answer's `Vary` names anything that is not part of a scope (RFC 9111 §4.1).
    pub fn varies_outside(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VARY).iter().any(|line| {
            line.to_str().map_or(true, |line| {
                line.split(',').map(str::trim).filter(|name| !name.is_empty()).any(|name| {
                    // Codings are undone, so what they vary by cannot be seen in a link.
                    let coding = name.eq_ignore_ascii_case(ACCEPT_ENCODING.as_str());
                    !coding && !self.varies.iter().any(|known| name.eq_ignore_ascii_case(known.as_str()))
                })
            })
        })
    }
}

/// A keyed hash over fields, each preceded by its length, and numbers.
#[derive(Clone, Copy)]
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

    /// A field of one length, which need not be told.
    fn number(&mut self, number: u64) {
        self.0.write_u64(number);
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
