//! Credentials of calls to the simulated endpoint.

use http::request::Parts;

use crate::api;
use crate::auth::signature::{self, Claim, Keys};
use crate::config::KeyPair;

/// The credential of a call. Its links are made for it.
pub(super) enum OriginCredential<'a> {
    /// An IAM token.
    Token(&'a str),
    /// The access key that signed it.
    Signed(&'a str),
}

/// Why a call is not authenticated: the API's code and its message.
pub(super) type Unauthenticated = (&'static str, &'static str);

const NONE: Unauthenticated = ("OSM.0002", "not authenticated");
const FORGED: Unauthenticated = ("APIGW.0301", "Incorrect IAM authentication information: verify aksk signature fail");

impl<'a> OriginCredential<'a> {
    /// Reads the credential of a request whose body has this hash; an `X-Auth-Token` precedes a signature. `now` is in
    /// Unix seconds.
    pub(super) fn read(head: &'a Parts, hash: &str, pairs: &[KeyPair], now: u64) -> Result<Self, Unauthenticated> {
        let token = head.headers.get(api::TOKEN).and_then(|value| value.to_str().ok());
        if let Some(token) = token.filter(|token| !token.is_empty()) {
            return Ok(Self::Token(token));
        }
        access_key(head, hash, pairs, now)?.map(Self::Signed).ok_or(NONE)
    }

    /// The token or the access key.
    pub(super) fn text(&self) -> &'a str {
        match self {
            Self::Token(text) | Self::Signed(text) => text,
        }
    }
}

/// The access key that signed a request whose body has this hash; `None` if the request is not signed.
pub(super) fn access_key<'a>(
    head: &'a Parts,
    hash: &str,
    pairs: &[KeyPair],
    now: u64,
) -> Result<Option<&'a str>, Unauthenticated> {
    let Some(claim) = Claim::read(&head.headers) else { return Ok(None) };
    let keys = Keys::new(pairs);
    let pair = keys.of(&claim).ok_or(FORGED)?;
    match signature::verify_whole(&claim, pair, head, hash, now) {
        Ok((signer, _)) if signer.is_strict() => Ok(Some(claim.access_key)),
        _ => Err(FORGED),
    }
}
