//! Sets of keys that verify the signatures of JSON Web Tokens (RFC 7517).

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::secret::{self, Secret};

/// The longest set.
pub const MOST_BYTES: usize = 256 << 10;
/// The most keys of a set: a token without a key's name is tried by each that fits.
const MOST_KEYS: usize = 64;

/// The keys of a set that can verify signatures. Debug output shows no secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeySet(pub Vec<VerifyingKey>);

/// A key of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    /// Its name, `kid`.
    pub name: Option<String>,
    /// The one algorithm that it is for, `alg`.
    pub algorithm: Option<String>,
    /// The key itself.
    pub material: KeyMaterial,
}

/// A key, by its type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyMaterial {
    /// RSA: modulus and exponent, big-endian.
    Rsa {
        /// The modulus.
        n: Vec<u8>,
        /// The exponent.
        e: Vec<u8>,
    },
    /// An uncompressed point on P-256.
    P256(Vec<u8>),
    /// An uncompressed point on P-384.
    P384(Vec<u8>),
    /// Ed25519.
    Ed25519(Vec<u8>),
    /// A secret of HMAC.
    Secret(Secret),
}

impl KeySet {
    /// Reads a set. Keys that cannot verify, or are of an unknown type, are left out (RFC 7517 §5): it may be empty then.
    ///
    /// # Errors
    /// Why it is no set. The text is not repeated.
    pub fn parse(text: &[u8]) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Set<'a> {
            #[serde(borrow)]
            keys: Vec<&'a RawValue>,
        }
        let set: Set<'_> = serde_json::from_slice(text)
            .map_err(|_| "is no set of keys (RFC 7517): a JSON object with a list named \"keys\"")?;
        if set.keys.len() > MOST_KEYS {
            return Err(format!("has more than {MOST_KEYS} keys"));
        }
        Ok(Self(set.keys.iter().filter_map(|key| VerifyingKey::parse(key)).collect()))
    }

    pub(super) fn from_file(path: &Path) -> Result<Self, String> {
        let keys = Self::parse(&secret::whole_file(path, MOST_BYTES)?)?;
        if keys.0.is_empty() {
            return Err("has no key that verifies signatures: of RSA, P-256, P-384, Ed25519 or HMAC".to_owned());
        }
        Ok(keys)
    }

    /// Whether one of its keys is a secret.
    pub(super) fn has_secret(&self) -> bool {
        self.0.iter().any(|key| matches!(key.material, KeyMaterial::Secret(_)))
    }

    /// The set without secrets: a secret that a server gives to anyone proves nothing.
    #[must_use]
    pub fn public(mut self) -> Self {
        self.0.retain(|key| !matches!(key.material, KeyMaterial::Secret(_)));
        self
    }
}

/// The members of a JWK (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2). A name that is there twice is an error.
#[derive(Deserialize)]
struct Jwk<'a> {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    usage: Option<String>,
    key_ops: Option<Vec<String>>,
    crv: Option<String>,
    n: Option<&'a str>,
    e: Option<&'a str>,
    x: Option<&'a str>,
    y: Option<&'a str>,
    k: Option<&'a str>,
}

impl VerifyingKey {
    fn parse(text: &RawValue) -> Option<Self> {
        let jwk: Jwk<'_> = serde_json::from_str(text.get()).ok()?;
        if jwk.usage.is_some_and(|usage| usage != "sig") {
            return None;
        }
        if jwk.key_ops.is_some_and(|operations| !operations.iter().any(|operation| operation == "verify")) {
            return None;
        }
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", None) => KeyMaterial::Rsa { n: number(jwk.n?)?, e: number(jwk.e?)? },
            ("EC", Some("P-256")) => KeyMaterial::P256(point(jwk.x?, jwk.y?, 32)?),
            ("EC", Some("P-384")) => KeyMaterial::P384(point(jwk.x?, jwk.y?, 48)?),
            ("OKP", Some("Ed25519")) => KeyMaterial::Ed25519(decode(jwk.x?).filter(|key| key.len() == 32)?),
            ("oct", None) => KeyMaterial::Secret(Secret::new(decode(jwk.k?)?)),
            _ => return None,
        };
        Some(Self { name: jwk.kid, algorithm: jwk.alg, material })
    }
}

fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok().filter(|bytes| !bytes.is_empty())
}

/// A number without the zeros that some writers put in front.
fn number(text: &str) -> Option<Vec<u8>> {
    let bytes = decode(text)?;
    let start = bytes.iter().position(|byte| *byte != 0)?;
    bytes.get(start..).map(<[u8]>::to_vec)
}

/// An uncompressed point (SEC 1 §2.3.3): each coordinate has the full length (RFC 7518 §6.2.1.2).
fn point(x: &str, y: &str, length: usize) -> Option<Vec<u8>> {
    let coordinate = |text| decode(text).filter(|bytes| bytes.len() == length);
    Some([&[4][..], &coordinate(x)?, &coordinate(y)?].concat())
}
