//! Names and seals: whoever reads the shared tier learns nothing from it.
//!
//! From the fleet's secret and a caller's credential, HKDF-SHA-256 (RFC 5869) derives two keys of that caller: one makes
//! names (HMAC-SHA-256, 128 bits of it), the other seals values (XChaCha20-Poly1305). With only the secret, or only the
//! credential, nothing can be found or opened. A value is sealed together with its whole name, so it opens nowhere else.
//!
//! Links of a caller that is known to be a user are under keys of the user instead, so that each of the user's callers finds them: who
//! has the fleet's secret, and can tell all that makes the user, can open those without a token. So is the acceptance, where the identity
//! provider vouches for each caller. The name of each caller in the journal stays its own.
//!
//! Nonces are random. XChaCha20's have 192 bits, so a collision under one key is unlikely: below 2⁻⁶⁴ after 2⁶⁴ values. With
//! the 96 bits of AES-GCM, an access key that a fleet uses for years could come too near to one.

use std::hash::Hasher;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chacha20poly1305::aead::{Aead, Payload};
use chacha20poly1305::{KeyInit, XChaCha20Poly1305, XNonce};
use hkdf::{Hkdf, HkdfExtract};
use hmac::{Hmac, Mac};
use sha2::Sha256;
use siphasher::sip128::{Hasher128, SipHasher24};
use zeroize::Zeroizing;

use super::TierId;
use super::fleets::Fingerprint;
use super::record::JournalEvent;
use crate::api::id;
use crate::cache::purges::{ApiName, Mark, Target};
use crate::config::{Endpoint, Secret};

/// The format of names, of values, and of the derivation of keys (as in [`expand`]): sidecars of two versions share nothing, and see
/// each other as two fleets.
///
/// 1 had names of 192 bits, links as text, and no purges of one API's ids.
const VERSION: u8 = 2;
const NONCE: usize = 24;
const TAG: usize = 16;
/// Bytes of a name's hash: 22 characters.
const NAME: usize = 16;
/// Most bytes of a sealed value: a longer one is neither written nor read.
pub(super) const MOST_TEXT: usize = 12 << 10;

/// Bytes of a sealed value of `plain` bytes.
const fn sealed_bytes(plain: usize) -> usize {
    1 + NONCE + plain + TAG
}

/// Characters of the same as text.
pub(super) const fn sealed_len(plain: usize) -> usize {
    (sealed_bytes(plain) * 4).div_ceil(3)
}

/// Writes a field after its length, so that different lists of fields differ; `None`, an absent field, differs from an empty
/// one.
fn field(field: Option<&[u8]>, mut write: impl FnMut(&[u8])) {
    write(&field.map_or(u64::MAX, |field| field.len() as u64).to_be_bytes());
    write(field.unwrap_or_default());
}

/// What keys are derived from besides the fleet's secret: its kind, and its fields.
pub(super) type Secrets<'s> = (&'s str, &'s [Option<&'s [u8]>]);

/// The same of the user that a caller is known to be.
#[derive(Clone, Copy)]
pub(crate) struct UserSecrets<'s> {
    /// What the keys of its links are derived from.
    pub(crate) secrets: Secrets<'s>,
    /// Whether an acceptance of any of its callers counts for all.
    pub(crate) shares_acceptance: bool,
}

/// One of the fleet's secrets, for one endpoint: fleets of different endpoints share nothing.
pub(super) struct FleetKey {
    secret: Secret,
    endpoint: String,
    prefix: Box<str>,
    pub(super) journal: Box<str>,
    /// The name of the journal that the journal continues, in the same slot of a Cluster.
    pub(super) previous_journal: Box<str>,
    /// The name of the key that tells which fleets use the prefix: the same for all of them.
    pub(super) fleets: Box<str>,
    pub(super) seal: Seal,
    pub(super) purge_key: [u8; 16],
}

impl FleetKey {
    pub(super) fn new(secret: Secret, endpoint: &Endpoint, prefix: &str) -> Self {
        let endpoint = endpoint.to_string();
        let keys = derive(&secret, &endpoint, "fleet", &[]);
        let mut purge_key = [0; 16];
        expand(&keys, "marks", &mut purge_key);
        let [journal, previous_journal] = ['j', 'o'].map(|kind| name(prefix, kind, &names(&keys)));
        let fleets = format!("{prefix}v").into();
        Self {
            secret,
            endpoint,
            prefix: prefix.into(),
            journal,
            previous_journal,
            fleets,
            seal: Seal::new(&keys),
            purge_key,
        }
    }

    /// The fleet's fingerprint: a hash of all that names, keys and scopes depend on, and 32 bits of it, which tell nothing of
    /// the secret.
    pub(super) fn fingerprint(&self, names: &[String]) -> Fingerprint {
        let fixed = [Some(&[VERSION][..]), Some(self.prefix.as_bytes())];
        let names = names.iter().map(|name| Some(name.as_bytes()));
        let fields: Vec<_> = fixed.into_iter().chain(names).collect();
        let mut fingerprint = [0; 4];
        expand(&derive(&self.secret, &self.endpoint, "fingerprint", &fields), "fingerprint", &mut fingerprint);
        Fingerprint(u32::from_be_bytes(fingerprint))
    }

    /// The keys of the scope of `fields`, those of `group` among them, and of the caller with this credential at `api`, which is
    /// this user if it is known to be one.
    pub(super) fn scope(
        &self,
        (kind, credential): Secrets<'_>,
        user: Option<UserSecrets<'_>>,
        fields: &[Option<&[u8]>],
        api: &str,
        group: Option<&str>,
    ) -> ScopeKeys {
        let of_caller = derive(&self.secret, &self.endpoint, kind, credential);
        let of_user = user.map(|user| derive(&self.secret, &self.endpoint, user.secrets.0, user.secrets.1));
        let of_owner = of_user.as_ref().unwrap_or(&of_caller);
        let of_acceptance = if user.is_some_and(|user| user.shares_acceptance) { of_owner } else { &of_caller };
        let number = |keys: &Hkdf<Sha256>| {
            let mut number = [0; 16];
            expand(keys, "caller", &mut number);
            u128::from_be_bytes(number)
        };
        let mut names = names(of_owner);
        for each in fields {
            field(*each, |bytes| names.update(bytes));
        }
        let group = group.into_iter().flat_map(id::readings);
        ScopeKeys {
            seal: Seal::new(of_owner),
            owner: number(of_owner),
            acceptance: name(&self.prefix, 'c', &self::names(of_acceptance)),
            acceptance_seal: Seal::new(of_acceptance),
            acceptance_subject: number(of_acceptance),
            caller: number(&of_caller),
            names,
            prefix: self.prefix.clone(),
            purge_key: self.purge_key,
            api: ApiName::new(self.purge_key, api),
            group: group.map(|group| Target::Group(&group).mark(self.purge_key)).collect(),
        }
    }
}

/// The keys of one scope under one of the fleet's secrets.
pub(super) struct ScopeKeys {
    /// Seals the links of the caller, or of its user.
    pub(super) seal: Seal,
    /// The name in the journal of whose the links are: the caller's or its user's.
    owner: u128,
    /// The name of the endpoint's acceptance of the caller, or of its user where any caller's counts for all.
    pub(super) acceptance: Box<str>,
    /// Seals the acceptance.
    pub(super) acceptance_seal: Seal,
    /// The name in the journal of whose the acceptance is.
    acceptance_subject: u128,
    /// The caller's name in the journal.
    pub(super) caller: u128,
    names: Hmac<Sha256>,
    prefix: Box<str>,
    purge_key: [u8; 16],
    api: ApiName,
    /// Purges of the group; two of them, where it has two readings.
    group: Vec<Mark>,
}

impl ScopeKeys {
    /// The events that void the link of `id` with this name, besides a purge of everything.
    pub(super) fn events(&self, id: &str, name: &str) -> Vec<JournalEvent> {
        let marks = self.api.marks_of(self.purge_key, id).chain(self.group.iter().copied());
        marks.map(JournalEvent::Purge).chain([self.revocation_of_owner(), self.withdrawal(name)]).collect()
    }

    /// The event that voids the link with this name.
    pub(super) fn withdrawal(&self, name: &str) -> JournalEvent {
        let mut hash = SipHasher24::new_with_key(&self.purge_key);
        hash.write(name.as_bytes());
        JournalEvent::Link(hash.finish128().as_u128())
    }

    /// The event that voids the caller's acceptance and links, where those are not its user's.
    pub(super) fn revocation(&self) -> JournalEvent {
        JournalEvent::Caller(self.caller)
    }

    /// The event that voids the acceptance.
    pub(super) fn end_of_acceptance(&self) -> JournalEvent {
        JournalEvent::Caller(self.acceptance_subject)
    }

    /// The event that voids all links of the caller, or of its user.
    pub(super) fn revocation_of_owner(&self) -> JournalEvent {
        JournalEvent::Caller(self.owner)
    }

    pub(super) fn link(&self, id: &TierId) -> Box<str> {
        self.name('l', id)
    }

    pub(super) fn lease(&self, id: &TierId) -> Box<str> {
        self.name('f', id)
    }

    fn name(&self, kind: char, TierId { id, element }: &TierId) -> Box<str> {
        let mut names = self.names.clone();
        field(Some(id.as_bytes()), |bytes| names.update(bytes));
        if let Some(element) = element {
            field(Some(element.as_bytes()), |bytes| names.update(bytes));
        }
        name(&self.prefix, kind, &names)
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

fn expand(keys: &Hkdf<Sha256>, purpose: &str, key: &mut [u8]) {
    // Fails only for keys of more than 8160 bytes.
    let _ = keys.expand_multi_info(&[b"sidelink/2 ", purpose.as_bytes()], key);
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

pub(super) struct Seal(XChaCha20Poly1305);

impl Seal {
    fn new(keys: &Hkdf<Sha256>) -> Self {
        let mut key = Zeroizing::new([0; 32]);
        expand(keys, "seal", key.as_mut_slice());
        Self(XChaCha20Poly1305::new((&*key).into()))
    }

    /// Seals `plain` for `name`. `None` if the result would be too long.
    pub(super) fn seal_bytes(&self, name: &str, plain: &[u8]) -> Option<Vec<u8>> {
        if sealed_bytes(plain.len()) > MOST_TEXT {
            return None;
        }
        let nonce: [u8; NONCE] = rand::random();
        let sealed = self.0.encrypt(&XNonce::from(nonce), Payload { msg: plain, aad: name.as_bytes() }).ok()?;
        let mut bytes = Vec::with_capacity(1 + NONCE + sealed.len());
        bytes.push(VERSION);
        bytes.extend_from_slice(&nonce);
        bytes.extend_from_slice(&sealed);
        Some(bytes)
    }

    /// The same as text, for a value that others append to.
    pub(super) fn seal(&self, name: &str, plain: &[u8]) -> Option<String> {
        self.seal_bytes(name, plain).map(|bytes| URL_SAFE_NO_PAD.encode(bytes))
    }

    /// Opens text that was sealed for `name` with this key.
    pub(super) fn open(&self, name: &str, text: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        self.open_bytes(name, &URL_SAFE_NO_PAD.decode(text).ok()?)
    }

    /// Opens what was sealed for `name` with this key.
    pub(super) fn open_bytes(&self, name: &str, bytes: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        if bytes.len() > MOST_TEXT {
            return None;
        }
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

    fn scope(fleet: &FleetKey, token: &str, group: Option<&str>) -> ScopeKeys {
        fleet.scope(("token", &[Some(token.as_bytes())]), None, &[group.map(str::as_bytes)], "a", group)
    }

    #[test]
    fn names_are_printable_and_differ_by_endpoint_caller_scope_and_id() {
        let here = fleet(SECRET, "http://h");
        let (other_host, other_secret) = (fleet(SECRET, "http://other"), fleet(&SECRET.to_uppercase(), "http://h"));
        let one = scope(&here, "t", Some("g"));
        let names = [
            one.link(&"1".into()),
            one.lease(&"1".into()),
            one.link(&"2".into()),
            scope(&here, "t", None).link(&"1".into()),
            scope(&here, "t", Some("")).link(&"1".into()),
            scope(&here, "t", Some("g1")).link(&"".into()),
            scope(&here, "u", Some("g")).link(&"1".into()),
            here.scope(("key", &[Some(b"t")]), None, &[Some(b"g")], "a", None).link(&"1".into()),
            here.scope(("token", &[Some(b"t"), None]), None, &[Some(b"g")], "a", None).link(&"1".into()),
            scope(&other_host, "t", Some("g")).link(&"1".into()),
            scope(&other_secret, "t", Some("g")).link(&"1".into()),
            one.acceptance.clone(),
            here.journal.clone(),
        ];
        for (at, name) in names.iter().enumerate() {
            assert!(name.starts_with("p:") && name.bytes().all(|byte| byte.is_ascii_graphic()), "{name}");
            assert_eq!(name.len(), 2 + 2 + 2 + (NAME * 4).div_ceil(3));
            assert!(!names.iter().take(at).any(|other| other == name));
        }
        let again = scope(&fleet(SECRET, "http://h"), "t", Some("g"));
        assert_eq!((one.link(&"1".into()), one.caller), (again.link(&"1".into()), again.caller));
    }

    #[test]
    fn a_fingerprint_depends_on_all_that_sharing_depends_on_and_shows_nothing_of_it() {
        let (tenant, user) = (String::from("x-tenant"), String::from("x-user"));
        let print = |secret: &str, endpoint: &str, prefix: &str, headers: &[String]| {
            let endpoint = Endpoint::parse(endpoint).unwrap();
            FleetKey::new(Secret::new(secret.as_bytes().to_vec()), &endpoint, prefix).fingerprint(headers)
        };
        let one = || print(SECRET, "http://localhost", "p:", std::slice::from_ref(&tenant));
        let prints = [
            one(),
            print(&SECRET.to_uppercase(), "http://localhost", "p:", std::slice::from_ref(&tenant)),
            print(SECRET, "http://127.0.0.1", "p:", std::slice::from_ref(&tenant)),
            print(SECRET, "https://localhost", "p:", std::slice::from_ref(&tenant)),
            print(SECRET, "http://localhost", "q:", std::slice::from_ref(&tenant)),
            print(SECRET, "http://localhost", "p:", &[]),
            print(SECRET, "http://localhost", "p:", std::slice::from_ref(&user)),
            print(SECRET, "http://localhost", "p:", &[tenant.clone(), user.clone()]),
            print(SECRET, "http://localhost", "p:", &[user.clone(), tenant.clone()]),
        ];
        for (at, fingerprint) in prints.iter().enumerate() {
            assert!(!prints[..at].contains(fingerprint), "{at}");
            assert!(fingerprint.to_string().len() == 8 && !SECRET.contains(&fingerprint.to_string()));
        }
        assert_eq!(one(), one(), "the same at every sidecar");
    }

    #[test]
    fn a_value_opens_only_under_its_name_and_for_its_caller() {
        let here = fleet(SECRET, "http://h");
        let one = scope(&here, "t", None);
        let value = one.seal.seal_bytes("name", b"link").unwrap();
        assert_eq!(**one.seal.open_bytes("name", &value).unwrap(), *b"link");
        assert!(one.seal.open_bytes("other name", &value).is_none(), "moved");
        for other in [scope(&here, "u", None), scope(&fleet(&SECRET.to_uppercase(), "http://h"), "t", None)] {
            assert!(other.seal.open_bytes("name", &value).is_none());
        }
        assert!(here.seal.open_bytes("name", &value).is_none());
        assert_ne!(one.seal.seal_bytes("name", b"link").unwrap(), value, "another nonce");
        assert!(one.seal.seal_bytes("name", &[0; MOST_TEXT]).is_none(), "too long");
    }

    proptest! {
        #[test]
        fn sealed_values_open_and_altered_ones_do_not(
            plain in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), by in 1..=255_u8,
        ) {
            let seal = scope(&fleet(SECRET, "http://h"), "t", None).seal;
            let text = seal.seal("name", &plain).unwrap();
            prop_assert_eq!(text.len(), sealed_len(plain.len()));
            prop_assert!(text.bytes().all(|byte| byte.is_ascii_graphic()));
            prop_assert_eq!(&**seal.open("name", text.as_bytes()).unwrap(), &plain);

            let mut bytes = seal.seal_bytes("name", &plain).unwrap();
            let length = bytes.len();
            prop_assert_eq!(length, sealed_bytes(plain.len()));
            prop_assert!(seal.open_bytes("name", &bytes[..at % length]).is_none());
            bytes[at % length] ^= by;
            prop_assert!(seal.open_bytes("name", &bytes).is_none());
            prop_assert!(seal.open("name", URL_SAFE_NO_PAD.encode(&bytes).as_bytes()).is_none());
            prop_assert!(seal.open("name", &text.as_bytes()[..at % text.len()]).is_none());
        }

        #[test]
        fn any_other_text_does_not_open(mut text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let seal = scope(&fleet(SECRET, "http://h"), "t", None).seal;
            prop_assert!(seal.open("name", &text).is_none());
            text.insert(0, VERSION);
            prop_assert!(seal.open_bytes("name", &text).is_none());
        }
    }
}
