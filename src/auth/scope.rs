//! Scopes and keys: what links are kept under.

use std::hash::Hasher;

use http::header::{ACCEPT, ACCEPT_ENCODING, ORIGIN, USER_AGENT, VARY};
use http::{HeaderMap, HeaderName, HeaderValue};
use siphasher::sip128::{Hasher128, SipHasher13, SipHasher24};

use super::signature::Signer;
use super::{Callers, Identity, credential};
use crate::api;
use crate::api::id::Group;

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
pub(super) struct Halves(pub(super) u64, pub(super) u64);

impl Halves {
    pub(super) fn of(whole: u128) -> Self {
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

impl Callers {
    /// The scope of a requester's batch in `group`, with these headers.
    pub fn scope(&self, requester: &Identity, headers: &HeaderMap, group: &Group<'_>) -> Scope {
        let mut hash = self.by_scope;
        let Halves(low, high) = Halves::of(requester.caller.0);
        for number in [low, high, requester.generation] {
            hash.number(number);
        }
        for field in self.scope_fields(requester, headers, group) {
            match field {
                Some(field) => hash.field(field),
                None => hash.absent(),
            }
        }
        Scope(hash.finish())
    }

    /// What a scope is made up of besides its caller: the group, and each scope header by name and value.
    pub fn scope_fields<'r>(
        &'r self,
        requester: &'r Identity,
        headers: &'r HeaderMap,
        group: &'r Group<'r>,
    ) -> impl Iterator<Item = Option<&'r [u8]>> {
        let names = if headers.is_empty() { [].iter() } else { self.scope_headers.iter() };
        group.fields().chain(names.filter(|name| requester.uses_header(name)).flat_map(|name| {
            let values = headers.get_all(name).iter();
            values.flat_map(|value| [Some(name.as_str().as_bytes()), Some(value.as_bytes())])
        }))
    }

    /// Whether a header of this name is part of scopes.
    pub fn is_scope_header(&self, name: &HeaderName) -> bool {
        self.scope_headers.contains(name)
    }

    /// Removes from a request that is signed again the headers that say who asks, or may change the answer, and that its own
    /// signature does not cover: sidelink's signature would vouch for what the client's did not.
    pub fn remove_unsigned(&self, signer: &Signer, headers: &mut HeaderMap) {
        for name in self.scope_headers.iter().chain([&api::SECURITY_TOKEN]) {
            if !signer.covers(name) {
                headers.remove(name);
            }
        }
    }

    /// All of a request's headers that its calls carry: what shows who asks, besides a signature, and the scope headers.
    pub fn carried(&self, requester: &Identity, headers: &HeaderMap) -> Vec<(HeaderName, HeaderValue)> {
        let mut carried = Vec::new();
        for name in [api::TOKEN, api::SECURITY_TOKEN] {
            if let Some(secret) = credential::value(headers, &name).filter(|_| requester.uses_header(&name)) {
                let mut secret = secret.clone();
                secret.set_sensitive(true);
                carried.push((name, secret));
            }
        }
        for name in self.scope_headers.iter().filter(|name| requester.uses_header(name)) {
            carried.extend(headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
        }
        carried
    }

    /// What `Vary` says: the credential and the scope headers.
    pub fn vary(&self) -> &HeaderValue {
        &self.vary
    }

    /// Whether an answer's `Vary` names anything that is not part of a scope (RFC 9111 §4.1) and may differ between calls.
    pub fn varies_outside(&self, headers: &HeaderMap) -> bool {
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

/// Whether every call carries the same of this header, or none does: it is constant, or only browsers send it, whose batches
/// are forwarded.
fn is_the_same_in_all_calls(name: &str) -> bool {
    const BROWSERS: &str = "access-control-request-";
    [ACCEPT, ACCEPT_ENCODING, USER_AGENT, ORIGIN].iter().any(|known| name.eq_ignore_ascii_case(known.as_str()))
        || name.get(..BROWSERS.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(BROWSERS))
}

/// A keyed hash over fields, each preceded by its length, and numbers.
#[derive(Clone, Copy)]
pub(super) struct Fields(SipHasher24);

impl Fields {
    pub(super) fn new(key: &[u8; 16], purpose: &[u8]) -> Self {
        let mut fields = Self(SipHasher24::new_with_key(key));
        fields.field(purpose);
        fields
    }

    pub(super) fn field(&mut self, bytes: &[u8]) {
        self.0.write_u64(bytes.len() as u64);
        self.0.write(bytes);
    }

    /// A field of one length, which need not be told.
    pub(super) fn number(&mut self, number: u64) {
        self.0.write_u64(number);
    }

    /// A field that is not there differs from one that is empty.
    pub(super) fn absent(&mut self) {
        self.0.write_u64(u64::MAX);
    }

    pub(super) fn finish(self) -> u128 {
        self.0.finish128().as_u128()
    }
}
