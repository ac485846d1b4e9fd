//! The algorithms of signatures (RFC 7518 §3.1, RFC 8037 §3.1), verified by ring. `none` is not one of them.

use ring::hmac;
use ring::signature::{self, RsaParameters, RsaPublicKeyComponents, UnparsedPublicKey, VerificationAlgorithm};

use crate::config::jwks::{KeyMaterial, VerifyingKey};

/// An algorithm, with the type of its key: a public key never verifies as the secret of an HMAC.
#[derive(Clone, Copy)]
pub(super) enum Algorithm {
    Rsa(&'static RsaParameters),
    P256,
    P384,
    Ed25519,
    Hmac(hmac::Algorithm),
}

impl Algorithm {
    /// The algorithm of this name (`alg`).
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "RS256" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA256),
            "RS384" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA384),
            "RS512" => Self::Rsa(&signature::RSA_PKCS1_2048_8192_SHA512),
            "PS256" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA256),
            "PS384" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA384),
            "PS512" => Self::Rsa(&signature::RSA_PSS_2048_8192_SHA512),
            "ES256" => Self::P256,
            "ES384" => Self::P384,
            "EdDSA" | "Ed25519" => Self::Ed25519,
            "HS256" => Self::Hmac(hmac::HMAC_SHA256),
            "HS384" => Self::Hmac(hmac::HMAC_SHA384),
            "HS512" => Self::Hmac(hmac::HMAC_SHA512),
            _ => return None,
        })
    }

    /// Whether `key` is for this algorithm, of this name, and has the name that the token gives, if it gives one.
    pub(super) fn fits(self, name: &str, key: &VerifyingKey, key_name: Option<&str>) -> bool {
        let is_type = match (self, &key.material) {
            (Self::Rsa(_), KeyMaterial::Rsa { .. })
            | (Self::P256, KeyMaterial::P256(_))
            | (Self::P384, KeyMaterial::P384(_))
            | (Self::Ed25519, KeyMaterial::Ed25519(_)) => true,
            // RFC 7518 §3.2: no shorter than the digest.
            (Self::Hmac(hmac), KeyMaterial::Secret(secret)) => {
                secret.expose().len() >= hmac.digest_algorithm().output_len()
            }
            _ => false,
        };
        is_type
            && key.algorithm.as_deref().is_none_or(|algorithm| canonical(algorithm) == canonical(name))
            && key_name.is_none_or(|name| key.name.as_deref() == Some(name))
    }

    /// Whether `signature` over `message` is made with `key`.
    pub(super) fn verifies(self, key: &VerifyingKey, message: &[u8], signature: &[u8]) -> bool {
        let public = |algorithm: &'static dyn VerificationAlgorithm, key: &[u8]| {
            UnparsedPublicKey::new(algorithm, key).verify(message, signature).is_ok()
        };
        match (self, &key.material) {
            (Self::Rsa(parameters), KeyMaterial::Rsa { n, e }) => {
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature).is_ok()
            }
            (Self::P256, KeyMaterial::P256(point)) => public(&signature::ECDSA_P256_SHA256_FIXED, point),
            (Self::P384, KeyMaterial::P384(point)) => public(&signature::ECDSA_P384_SHA384_FIXED, point),
            (Self::Ed25519, KeyMaterial::Ed25519(key)) => public(&signature::ED25519, key),
            (Self::Hmac(algorithm), KeyMaterial::Secret(secret)) => {
                hmac::verify(&hmac::Key::new(algorithm, secret.expose()), message, signature).is_ok()
            }
            _ => false,
        }
    }
}

/// One name for the two of Ed25519 (RFC 8037 §3.1, RFC 9864 §2.2).
fn canonical(algorithm: &str) -> &str {
    if algorithm == "Ed25519" { "EdDSA" } else { algorithm }
}
