//! Names and seals: whoever reads the shared tier learns nothing from it.
//!
//! From the fleet's secret and a caller's credential, HKDF-SHA-256 (RFC 5869) derives two keys of that caller: one makes
//! names (HMAC-SHA-256, 192 bits of it), the other seals values (XChaCha20-Poly1305). With only the secret, or only the
//! credential, nothing can be found or opened. A value is sealed together with its whole name, so it opens nowhere else.
//!
//! Nonces are random. XChaCha20's have 192 bits, so a collision under one key is unlikely: below 2⁻⁶⁴ after 2⁶⁴ values. With
//! the 96 bits of AES-GCM, an access key that a fleet uses for years could come too near to one.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hkdf::{Hkdf, HkdfExtract};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::config::{Endpoint, Secret};

/// The format of values, and of the derivation of keys; values of another version do not open.
const VERSION: u8 = 1;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Bytes of a name's hash: 32 characters.
const NAME: usize = 24;
/// Most characters of a sealed value: a longer one is neither written nor read.
pub(super) const MOST_TEXT: usize = 12 << 10;

/// Characters of a sealed value of `plain` bytes.
pub(super) const fn sealed_len(plain: usize) -> usize {
    let bytes = 1 + NONCE + plain + TAG;
    (bytes * 4).div_ceil(3)
}

/// Writes a field after its length, so that different lists of fields differ; `None`, an absent field, differs from an empty
/// one.
fn field(field: Option<&[u8]>, mut write: impl FnMut(&[u8])) {
    write(&field.map_or(u64::MAX, |field| field.len() as u64).to_be_bytes());
    write(field.unwrap_or_default());
}

/// One of the fleet's secrets, for one endpoint: fleets of different endpoints share nothing.
pub(super) struct FleetKey {
    secret: Secret,
    endpoint: String,
    prefix: Box<str>,
    /// The journal's key in Redis.
    pub(super) journal: Box<str>,
    /// Seals the journal.
    pub(super) seal: Seal,
    /// The key of names of purges.
    pub(super) purge_key: [u8; 16],
}

impl FleetKey {
    pub(super) fn new(secret: Secret, endpoint: &Endpoint, prefix: &str) -> Self {
        let endpoint = endpoint.to_string();
        let keys = derive(&secret, &endpoint, "fleet", &[]);
        let mut purge_key = [0; 16];
        expand(&keys, "marks", &mut purge_key);
        let journal = name(prefix, 'j', &names(&keys));
        Self { secret, endpoint, prefix: prefix.into(), journal, seal: Seal::new(&keys), purge_key }
    }

    /// The keys of the caller with the credential of these fields.
    pub(super) fn caller(&self, kind: &str, fields: &[Option<&[u8]>]) -> CallerKey {
        let keys = derive(&self.secret, &self.endpoint, kind, fields);
        let names = names(&keys);
        let mut hash = [0; 16];
        expand(&keys, "caller", &mut hash);
        CallerKey {
            seal: Seal::new(&keys),
            acceptance: name(&self.prefix, 'c', &names),
            hash: u128::from_be_bytes(hash),
            names,
            prefix: self.prefix.clone(),
        }
    }
}

/// A caller's keys under one of the fleet's secrets.
pub(super) struct CallerKey {
    pub(super) seal: Seal,
    /// The name of the endpoint's acceptance of the caller.
    pub(super) acceptance: Box<str>,
    /// The caller's name in the journal.
    pub(super) hash: u128,
    names: Hmac<Sha256>,
    prefix: Box<str>,
}

impl CallerKey {
    /// The names in the scope of these fields.
    pub(super) fn scope<'f>(&self, fields: impl IntoIterator<Item = Option<&'f [u8]>>) -> ScopeNames {
        let mut names = self.names.clone();
        for each in fields {
            field(each, |bytes| names.update(bytes));
        }
        ScopeNames { names, prefix: self.prefix.clone() }
    }
}

/// Names of values in one scope.
pub(super) struct ScopeNames {
    names: Hmac<Sha256>,
    prefix: Box<str>,
}

impl ScopeNames {
    /// The name of the link of `id`.
    pub(super) fn link(&self, id: &str) -> Box<str> {
        name(&self.prefix, 'l', &self.of(id))
    }

    /// The name of the lease on `id`.
    pub(super) fn lease(&self, id: &str) -> Box<str> {
        name(&self.prefix, 'f', &self.of(id))
    }

    fn of(&self, id: &str) -> Hmac<Sha256> {
        let mut names = self.names.clone();
        field(Some(id.as_bytes()), |bytes| names.update(bytes));
        names
    }
}

fn derive(secret: &Secret, endpoint: &str, kind: &str, fields: &[Option<&[u8]>]) -> Hkdf<Sha256> {
    let mut extract = HkdfExtract::<Sha256>::new(Some(secret.expose()));
    let first = [Some(endpoint.as_bytes()), Some(kind.as_bytes())];
    for each in first.iter().chain(fields) {
        field(*each, |bytes| extract.input_ikm(bytes));
    }
    extract.finalize().1
}

/// Derives a key for `purpose`.
fn expand(keys: &Hkdf<Sha256>, purpose: &str, key: &mut [u8]) {
    // Fails only for keys of more than 8160 bytes.
    let _ = keys.expand_multi_info(&[b"sidelink/1 ", purpose.as_bytes()], key);
}

fn names(keys: &Hkdf<Sha256>) -> Hmac<Sha256> {
    let mut key = Zeroizing::new([0; 64]);
    expand(keys, "names", key.as_mut_slice());
    // A block long, which is HMAC's own size of key.
    Hmac::<Sha256>::new((&*key).into())
}

/// Prefix, a letter for the kind, and a hash: printable. The braces keep a link and its lease in one slot of a Cluster, so
/// that commands for both keep their order.
fn name(prefix: &str, kind: char, hash: &Hmac<Sha256>) -> Box<str> {
    let hash = hash.clone().finalize().into_bytes();
    let text = URL_SAFE_NO_PAD.encode(hash.get(..NAME).unwrap_or_default());
    format!("{prefix}{kind}.{{{text}}}").into()
}

/// Seals and opens values.
pub(super) struct Seal(XChaCha20Poly1305);

impl Seal {
    fn new(keys: &Hkdf<Sha256>) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        expand(keys, "seal", key.as_mut_slice());
        Self(XChaCha20Poly1305::new((&*key).into()))
    }

    /// Seals `plain` for `name`. `None` if the result would be too long.
    pub(super) fn seal(&self, name: &str, plain: &[u8]) -> Option<String> {
        if sealed_len(plain.len()) > MOST_TEXT {
            return None;
        }
        let nonce: [u8; NONCE] = rand::random();
        let sealed = self.0.encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: name.as_bytes() }).ok()?;
        let mut bytes = Vec::with_capacity(1 + NONCE + sealed.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        Some(URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens what was sealed for `name` with this key.
    pub(super) fn open(&self, name: &str, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if text.len() > MOST_TEXT {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (version, rest) = bytes.split_first()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE>()?;
        if *version != VERSION {
            return None;
        }
        let payload = Payload { msg: sealed, aad: name.as_bytes() };
        self.0.decrypt(&XNonce::from(*nonce), payload).ok().map(Zeroizing::new)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    fn fleet(secret: &str, endpoint: &str) -> FleetKey {
        let endpoint = Endpoint::parse(endpoint).unwrap();
        FleetKey::new(Secret::new(secret.as_bytes().to_vec()), &endpoint, "p:")
    }

    fn caller(fleet: &FleetKey, token: &str) -> CallerKey {
        fleet.caller("token", &[Some(token.as_bytes())])
    }

    #[test]
    fn names_are_printable_and_differ_by_endpoint_caller_scope_and_id() {
        let here = fleet(SECRET, "http://h");
        let one = caller(&here, "t");
        let scope = |caller: &CallerKey, group: Option<&str>| caller.scope([group.map(str::as_bytes)]);
        let of_group = scope(&one, Some("g"));
        let names = [
            of_group.link("1"),
            of_group.lease("1"),
            of_group.link("2"),
            scope(&one, None).link("1"),
            scope(&one, Some("")).link("1"),
            scope(&one, Some("g1")).link(""),
            scope(&caller(&here, "u"), Some("g")).link("1"),
            scope(&here.caller("key", &[Some(b"t")]), Some("g")).link("1"),
            scope(&here.caller("token", &[Some(b"t"), None]), Some("g")).link("1"),
            scope(&caller(&fleet(SECRET, "http://other"), "t"), Some("g")).link("1"),
            scope(&caller(&fleet(&SECRET.to_uppercase(), "http://h"), "t"), Some("g")).link("1"),
            one.acceptance.clone(),
            here.journal.clone(),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(name.starts_with("p:") && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
            assert_eq!(name.len(), 2 + 2 + 2 + NAME / 3 * 4);
            assert!(!names.iter().take(at).any(|other| other == name));
        }
        assert_eq!(of_group.link("1"), scope(&caller(&fleet(SECRET, "http://h"), "t"), Some("g")).link("1"));
        assert_eq!(one.hash, caller(&fleet(SECRET, "http://h"), "t").hash);
    }

    #[test]
    fn a_value_opens_only_under_its_name_and_for_its_caller() {
        let here = fleet(SECRET, "http://h");
        let one = caller(&here, "t");
        let text = one.seal.seal("name", b"link").unwrap();
        assert_eq!(**one.seal.open("name", text.as_bytes()).unwrap(), *b"link");
        assert!(one.seal.open("other name", text.as_bytes()).is_none(), "moved");
        for other in [caller(&here, "u"), caller(&fleet(&SECRET.to_uppercase(), "http://h"), "t")] {
            assert!(other.seal.open("name", text.as_bytes()).is_none());
        }
        assert!(here.seal.open("name", text.as_bytes()).is_none());
        assert_ne!(one.seal.seal("name", b"link").unwrap(), text, "another nonce");
        assert!(one.seal.seal("name", &[0; MOST_TEXT]).is_none(), "too long");
    }

    proptest! {
        #[test]
        fn sealed_values_open_and_altered_ones_do_not(
            plain in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), by in 1..=255_u8,
        ) {
            let seal = caller(&fleet(SECRET, "http://h"), "t").seal;
            let text = seal.seal("name", &plain).unwrap();
            prop_assert_eq!(text.len(), sealed_len(plain.len()));
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(&**seal.open("name", text.as_bytes()).unwrap(), &plain);

            let mut bytes = URL_SAFE_NO_PAD.decode(&text).unwrap();
            let length = bytes.len();
            bytes[at % length] ^= by;
            prop_assert!(seal.open("name", URL_SAFE_NO_PAD.encode(&bytes).as_bytes()).is_none());
            prop_assert!(seal.open("name", &text.as_bytes()[..at % text.len()]).is_none());
        }

        #[test]
        fn any_other_text_does_not_open(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            prop_assert!(caller(&fleet(SECRET, "http://h"), "t").seal.open("name", &text).is_none());
        }
    }
}
