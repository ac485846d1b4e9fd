//! Credentials of calls to the simulated endpoint.

use http::request::Parts;

use crate::api;
use crate::auth::signature::{self, Claim, Keys};
use crate::config::KeyPair;

/// Why a call is not authenticated: the API's code and its message.
pub(super) type Unauthenticated = (&'static str, &'static str);

const NONE: Unauthenticated = ("OSM.0002", "not authenticated");
const FORGED: Unauthenticated = ("APIGW.0301", "Incorrect IAM authentication information: verify aksk signature fail");

/// The token, or the access key, of a request whose body has this hash; an `X-Auth-Token` precedes a signature. `now` is in Unix
/// seconds.
pub(super) fn credential<'a>(
    head: &'a Parts,
    hash: &str,
    pairs: &[KeyPair],
    now: u64,
) -> Result<&'a str, Unauthenticated> {
    let token = head.headers.get(api::TOKEN).and_then(|value| value.to_str().ok()).filter(|token| !token.is_empty());
    token.map_or_else(|| access_key(head, hash, pairs, now)?.ok_or(NONE), Ok)
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
