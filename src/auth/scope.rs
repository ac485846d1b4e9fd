//! Scopes, and the keys of entries in them.

use std::cell::OnceCell;
use std::hash::Hasher;

use http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, ORIGIN, USER_AGENT, VARY};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};

use super::signature::{SECURITY_TOKEN, Signer};
use super::{Caller, Callers, Identity, UserId, credential};
use crate::api::id::Group;
use crate::api::request::{Batch, Id};
use crate::message::header_filter::Headers;

/// A hash of the caller and of the values of the headers that may change an answer; a batch's text is looked up under it. With the
/// batch's group and the rest of its request in the hash as well ([`Scope::of_batch`]), it is the scope of entries. Entries
/// never cross scopes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Scope(u128);

impl Scope {
    /// The scope of the entries of `batch` in this scope.
    pub fn of_batch(self, batch: &Batch<'_>) -> Scope {
        let scope = self.of_group(&batch.group);
        if batch.rest().is_empty() {
            scope
        } else {
            scope.of_fields(b"rest", batch.rest().iter().map(|field| field.as_bytes()))
        }
    }

    /// The scope of a group in this scope.
    pub(crate) fn of_group(self, group: &Group<'_>) -> Scope {
        Scope(self.hash(b"group").with(group.fields()))
    }

    /// The scope of requests that have these fields, in this scope.
    pub(crate) fn of_fields<'f>(self, purpose: &[u8], fields: impl Iterator<Item = &'f [u8]>) -> Scope {
        Scope(self.hash(purpose).with(fields.map(Some)))
    }

    /// The keys of a batch's ids in this scope.
    pub fn keys(self) -> Keys {
        Keys { ids: self, elements: OnceCell::new() }
    }

    /// A hash whose key is this scope, which nobody can guess.
    fn hash(self, purpose: &[u8]) -> KeyedHash {
        KeyedHash::new(&self.0.to_le_bytes(), purpose)
    }

    /// The key of `id` in this scope: the scope itself is the key of the hash, and nobody can guess it.
    pub fn key(self, id: &str) -> Key {
        // SipHash-1-3, as in the standard library: the hashes are secret, so nobody can search for collisions.
        let Halves(low, high) = Halves::of(self.0);
        Key(Halves::of(SipHasher13::new_with_keys(low, high).hash(id.as_bytes()).as_u128()))
    }

    /// Shown in log lines as eight hex digits.
    pub(crate) fn short(self) -> u32 {
        Caller(self.0).short()
    }

    /// A secret number of this scope.
    pub(crate) fn seed(self) -> u64 {
        Halves::of(self.0).0
    }

    #[cfg(test)]
    pub(crate) fn of_test(number: u128) -> Self {
        Self(number)
    }
}

/// The keys of ids in one scope.
pub struct Keys {
    /// The scope of ids of which nothing is said besides.
    ids: Scope,
    /// That of elements, by their text, in which the id is.
    elements: OnceCell<Scope>,
}

impl Keys {
    /// The key of an id. The rest of its element is part of the key.
    pub fn of(&self, id: &Id<'_>) -> Key {
        let elements = || *self.elements.get_or_init(|| self.ids.of_fields(b"element", std::iter::empty()));
        id.qualifier().map_or_else(|| self.ids.key(&id.name), |element| elements().key(element))
    }
}

/// The hash of one id in one scope.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(Halves);

/// 128 bits, low and high half, with the alignment of 64: this saves memory in tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Halves(pub(super) u64, pub(super) u64);

impl Halves {
    pub(super) fn of(whole: u128) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = whole.to_le_bytes();
        Self(u64::from_le_bytes([a, b, c, d, e, f, g, h]), u64::from_le_bytes([i, j, k, l, m, n, o, p]))
    }
}

impl std::hash::Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Half of a keyed hash is a keyed hash too.
        state.write_u64(self.0.1);
    }
}

impl Key {
    /// The half that tables do not use as the hash.
    pub(crate) fn low(self) -> u64 {
        self.0.0
    }

    /// A part of the key.
    pub(crate) fn part(self) -> u32 {
        let [.., a, b, c, d] = self.low().to_le_bytes();
        u32::from_le_bytes([a, b, c, d])
    }

    /// A number that depends on the key, so that links fetched together are not refreshed together.
    pub(crate) fn spread(self) -> u8 {
        let [low, ..] = self.low().to_le_bytes();
        low
    }
}

/// Takes a keyed hash for its own hash: that of [`Key`] and other types that hash as one `u64`.
#[derive(Default)]
pub struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, half: u64) {
        self.0 = half;
    }
}

impl Callers {
    /// The scope of a caller's requests without scope headers.
    pub(super) fn scope_of(&self, caller: Caller, entries_version: u64) -> Scope {
        let mut hash = self.by_scope;
        let Halves(low, high) = Halves::of(caller.0);
        for number in [low, high, entries_version] {
            hash.0.write_u64(number);
        }
        Scope(hash.finish())
    }

    /// The scope of a user's requests without scope headers.
    pub(super) fn scope_of_user(&self, id: UserId) -> Scope {
        Scope(self.by_user.with([Some(&id.0[..])]))
    }

    /// The scope of a caller's requests with this head. Entries lie in the scope of a batch in it ([`Scope::of_batch`]).
    pub fn scope(&self, identity: &Identity, headers: Headers<'_>, uri: &Uri) -> Scope {
        let mut with_head: Option<KeyedHash> = None;
        self.each_scope_field(identity, headers, uri, |field| {
            with_head.get_or_insert_with(|| identity.scope.hash(b"head")).field(field);
        });
        with_head.map_or(identity.scope, |hash| Scope(hash.finish()))
    }

    /// Calls `take` with the fields of a scope that a request's head has: its path, where the path has captures; the Content-Type of
    /// a POST; of another method that may have a body, by name and value, unless it is the one that calls have without it; each scope
    /// header by name and value.
    pub(crate) fn each_scope_field<'r>(
        &'r self,
        identity: &Identity,
        headers: Headers<'r>,
        uri: &'r Uri,
        mut take: impl FnMut(Option<&'r [u8]>),
    ) {
        if self.api.path.has_captures() {
            take(Some(uri.path().as_bytes()));
        }
        if self.api.method == Method::POST {
            headers.get_all(&CONTENT_TYPE).for_each(|value| take(Some(value.as_bytes())));
            take(None);
        } else if self.api.ids.body.is_some() && headers.contains(&CONTENT_TYPE) {
            let types = || headers.get_all(&CONTENT_TYPE).map(HeaderValue::as_bytes);
            if !types().eq([b"application/json"]) {
                for value in types() {
                    take(Some(CONTENT_TYPE.as_str().as_bytes()));
                    take(Some(value));
                }
            }
        }
        if !headers.may_contain_any(self.scope_filter) {
            return;
        }
        for (name, filter) in &self.scope_headers {
            if headers.may_contain_any(*filter) && identity.uses_header(name) {
                for value in headers.get_all(name) {
                    take(Some(name.as_str().as_bytes()));
                    take(Some(value.as_bytes()));
                }
            }
        }
    }

    /// The names of the scope headers.
    pub(super) fn scope_headers(&self) -> impl Iterator<Item = &HeaderName> {
        self.scope_headers.iter().map(|(name, _)| name)
    }

    /// Removes credential and scope headers that the client's signature does not cover from a request that is signed again:
    /// sidelink's signature would vouch for what the client's did not.
    pub(crate) fn remove_unsigned(&self, signer: &Signer, headers: &mut HeaderMap) {
        for name in self.scope_headers().chain([&SECURITY_TOKEN]) {
            if !signer.covers(name) {
                headers.remove(name);
            }
        }
    }

    /// The headers of a request that its calls carry: credentials, besides a signature, and scope headers.
    pub(crate) fn carried(&self, identity: &Identity, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let mut carried = Vec::new();
        for name in &self.secrets {
            if let Some(secret) = credential::value(headers.into(), name).filter(|_| identity.uses_header(name)) {
                let mut secret = secret.clone();
                secret.set_sensitive(true);
                carried.push((name.clone(), secret));
            }
        }
        for name in self.scope_headers().filter(|name| identity.uses_header(name)) {
            carried.extend(headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
        carried
    }

    /// Whether an answer's `Vary` names anything that is no part of a scope (RFC 9111 §4.1) and may differ between calls.
    pub(crate) fn varies_outside(&self, headers: &HeaderMap) -> bool {
        headers.get_all(VARY).iter().any(|line| {
            line.to_str().map_or(true, |line| {
                line.split(',').map(str::trim).filter(|name| !name.is_empty()).any(|name| {
                    let is_known = |known: &HeaderName| name.eq_ignore_ascii_case(known.as_str());
                    !is_the_same_in_all_calls(name) && !self.varies.iter().any(is_known)
                })
            })
        })
    }
}

/// Whether this header is the same in all calls: constant, or only sent by browsers, whose batches are forwarded.
fn is_the_same_in_all_calls(name: &str) -> bool {
    const BROWSERS: &str = "access-control-request-";
    [ACCEPT, ACCEPT_ENCODING, USER_AGENT, ORIGIN].iter().any(|known| name.eq_ignore_ascii_case(known.as_str()))
        || name.get(..BROWSERS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(BROWSERS))
}

/// A keyed hash over fields.
#[derive(Clone, Copy)]
pub(super) struct KeyedHash(SipHasher24);

impl KeyedHash {
    pub(super) fn new(key: &[u8; 16], purpose: &[u8]) -> Self {
        let mut hash = Self(SipHasher24::new_with_key(key));
        hash.field(Some(purpose));
        hash
    }

    /// The hash with these fields added. An absent field differs from an empty one.
    pub(super) fn with<'f>(mut self, fields: impl IntoIterator<Item = Option<&'f [u8]>>) -> u128 {
        fields.into_iter().for_each(|field| self.field(field));
        self.finish()
    }

    fn finish(self) -> u128 {
        self.0.finish128().as_u128()
    }

    /// Each field is preceded by its length.
    pub(super) fn field(&mut self, field: Option<&[u8]>) {
        self.0.write_u64(field.map_or(u64::MAX, |bytes| bytes.len() as u64));
        if let Some(bytes) = field {
            self.0.write(bytes);
        }
    }
}
