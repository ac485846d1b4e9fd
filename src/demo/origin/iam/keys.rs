//! Signing keys of JSON Web Tokens, made at start: ES256 and EdDSA. There is no RS256, since ring makes no RSA keys.

use std::io;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use serde_json::{Value, json};

use super::random;

/// How a JSON Web Token is signed (RFC 7518 §3.1, RFC 8037 §3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JwtAlgorithm {
    /// ECDSA over P-256.
    Es256,
    /// Ed25519.
    EdDsa,
}

pub(super) struct SigningKeys {
    ecdsa: EcdsaKeyPair,
    ed25519: Ed25519KeyPair,
    /// Their ids, in this order.
    ids: [String; 2],
}

impl SigningKeys {
    pub(super) fn generate() -> io::Result<Self> {
        let failed = |_| io::Error::other("no random numbers");
        let rejected = |error: ring::error::KeyRejected| io::Error::other(error.to_string());
        let (random_source, algorithm) = (SystemRandom::new(), &ECDSA_P256_SHA256_FIXED_SIGNING);
        let ecdsa = EcdsaKeyPair::generate_pkcs8(algorithm, &random_source).map_err(failed)?;
        let ed25519 = Ed25519KeyPair::generate_pkcs8(&random_source).map_err(failed)?;
        Ok(Self {
            ecdsa: EcdsaKeyPair::from_pkcs8(algorithm, ecdsa.as_ref(), &random_source).map_err(rejected)?,
            ed25519: Ed25519KeyPair::from_pkcs8(ed25519.as_ref()).map_err(rejected)?,
            ids: [random(8), random(8)],
        })
    }

    /// A token in the compact form (RFC 7515 §7.1).
    pub(super) fn sign(&self, algorithm: JwtAlgorithm, claims: &Value) -> String {
        let [ecdsa, ed25519] = &self.ids;
        let (name, id) = match algorithm {
            JwtAlgorithm::Es256 => ("ES256", ecdsa),
            JwtAlgorithm::EdDsa => ("EdDSA", ed25519),
        };
        let part = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let signed = format!("{}.{}", part(&json!({"alg": name, "typ": "JWT", "kid": id})), part(claims));
        let signature = match algorithm {
            // Fails without random numbers, of which there were some for the key: then a token that is not valid.
            JwtAlgorithm::Es256 => self
                .ecdsa
                .sign(&SystemRandom::new(), signed.as_bytes())
                .map_or_else(|_| Vec::new(), |signature| signature.as_ref().to_vec()),
            JwtAlgorithm::EdDsa => self.ed25519.sign(signed.as_bytes()).as_ref().to_vec(),
        };
        format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    /// The public halves, as a key set (RFC 7517 §5).
    pub(super) fn public(&self) -> Value {
        let [ecdsa, ed25519] = &self.ids;
        let text = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        // An uncompressed point: 4, x, y (SEC 1 §2.3.3).
        let point = self.ecdsa.public_key().as_ref().get(1..).unwrap_or_default();
        let (x, y) = point.split_at(point.len() / 2);
        let ed25519_x = self.ed25519.public_key().as_ref();
        json!({"keys": [
            {"kty": "EC", "crv": "P-256", "x": text(x), "y": text(y), "use": "sig", "alg": "ES256", "kid": ecdsa},
            {"kty": "OKP", "crv": "Ed25519", "x": text(ed25519_x), "use": "sig", "alg": "EdDSA", "kid": ed25519},
        ]})
    }
}
