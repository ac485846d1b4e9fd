//! Finds a request's credential, and identifies its caller.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};
use zeroize::Zeroizing;

use super::signature::{self, Claim, DOMAIN_ID, Fault, PROJECT_ID, SDK_CONTENT, SDK_DATE, SECURITY_TOKEN, Signer};
use super::{AuthError, Bypass, Caller, CallerState, Callers, Identity, LastToken, UserId, header_bytes};
use crate::api::BatchApi;
use crate::clock::Moment;
use crate::config::KeyPair;
use crate::message::header_filter::Headers;
use crate::message::headers::made_hop_by_hop;
use crate::telemetry::log::events;

/// The credential of a request.
pub enum Credential<'r> {
    /// A token: whoever has it is its caller.
    Token(&'r HeaderValue),
    /// The values of several credential headers, in the order of their API; one of them at least is there.
    Headers(Vec<Option<&'r HeaderValue>>),
    /// A signature by one of the configured keys, not verified yet.
    Signed(Claim<'r>, &'r Arc<KeyPair>),
}

impl Credential<'_> {
    /// The token whose user can be looked up: the value of the only credential header, or of Authorization among several; of Authorization
    /// without the scheme `Bearer` (RFC 6750 §2.1).
    pub(crate) fn token(&self, api: &BatchApi) -> Option<&[u8]> {
        match self {
            Self::Token(value) if *api.credentials.first()? != AUTHORIZATION => Some(value.as_bytes()),
            Self::Token(value) => bearer(value),
            Self::Headers(values) => {
                let mut headers = api.credentials.iter().zip(values);
                bearer((*headers.find(|(name, _)| **name == AUTHORIZATION)?.1)?)
            }
            Self::Signed(..) => None,
        }
    }

    /// The same, to be kept while it is looked up.
    pub(crate) fn user_token(&self, api: &BatchApi) -> Option<UserToken> {
        let token = Zeroizing::new(self.token(api)?.to_vec());
        let beside = match self {
            Self::Headers(values) => {
                let others = api.credentials.iter().zip(values).filter(|(name, _)| **name != AUTHORIZATION);
                others.map(|(_, value)| value.cloned()).collect()
            }
            Self::Token(_) | Self::Signed(..) => Vec::new(),
        };
        Some(UserToken { token, beside })
    }
}

/// A token whose user can be looked up, with the credential headers beside it.
pub(crate) struct UserToken {
    token: Zeroizing<Vec<u8>>,
    beside: Vec<Option<HeaderValue>>,
}

impl UserToken {
    /// The token.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.token
    }

    /// The user of the credential, whose token is `id`'s: what stands beside the token is part of it.
    pub(crate) fn user(&self, id: UserId) -> UserId {
        if self.beside.is_empty() {
            return id;
        }
        let beside = self.beside.iter().map(|value| value.as_ref().map(HeaderValue::as_bytes));
        UserId::of("credentials beside the token", std::iter::once(Some(&id.0[..])).chain(beside))
    }
}

/// The token of an Authorization, if its scheme is `Bearer`, or if it has none.
fn bearer(value: &HeaderValue) -> Option<&[u8]> {
    let value = value.as_bytes();
    match value.iter().position(|byte| *byte == b' ') {
        None => Some(value),
        Some(space) => {
            let (scheme, token) = value.split_at(space);
            scheme.eq_ignore_ascii_case(b"Bearer").then(|| token.trim_ascii())
        }
    }
}

/// The first value of a credential header; an empty value counts as absent.
pub(super) fn value<'h>(headers: Headers<'h>, name: &HeaderName) -> Option<&'h HeaderValue> {
    headers.get_all(name).find(|value| !value.is_empty())
}

fn only_value<'h>(headers: Headers<'h>, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Bypass> {
    let mut values = headers.get_all(name).filter(|value| !value.is_empty());
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Bypass::Credentials),
        (value, None) => Ok(value),
    }
}

/// Whether an `Authorization` is the same in all requests of its caller, so that a call may carry it: a scheme with a token
/// (`token68`, RFC 9110 §11.2), or a token alone. One with parameters is a signature of its very request, as AWS4-HMAC-SHA256,
/// Digest and OAuth 1.0 are; some tokens are bound to their connection (RFC 4559) or go with a proof (RFC 9449).
fn is_of_caller(authorization: &HeaderValue) -> bool {
    const BOUND: [&[u8]; 3] = [b"negotiate", b"ntlm", b"dpop"];
    let text = authorization.as_bytes().trim_ascii();
    let (scheme, token) = match text.iter().position(|byte| *byte == b' ') {
        Some(space) => text.split_at(space),
        None => (&[][..], text),
    };
    let token = token.trim_ascii();
    let end = token.iter().rposition(|byte| *byte != b'=').map_or(0, |last| last + 1);
    // All bytes, without a branch for each: a token is long, and nearly always one.
    let is_token68 = |byte: u8| byte.is_ascii_alphanumeric() | matches!(byte, b'-'..=b'/' | b'_' | b'~' | b'+');
    let are_token68 = |token: &[u8]| token.iter().fold(true, |all, byte| all & is_token68(*byte));
    token.get(..end).is_some_and(|token| !token.is_empty() && are_token68(token))
        && !BOUND.iter().any(|bound| bound.eq_ignore_ascii_case(scheme))
}

/// No header of this many bytes is longer than the endpoint takes.
const SHORT: usize = 32;

impl Callers {
    /// Finds the credential of a batch.
    ///
    /// # Errors
    /// Why the request is not a batch of any caller, so that it is forwarded untouched.
    pub fn credential<'r>(&'r self, headers: impl Into<Headers<'r>>) -> Result<Credential<'r>, Bypass> {
        let headers = headers.into();
        if headers.contains(&ORIGIN) {
            return Err(Bypass::Origin);
        }
        if headers.contains(&RANGE) {
            return Err(Bypass::Range);
        }
        if self.has_long_header(headers) {
            return Err(Bypass::HeaderTooLong);
        }
        let signature = if self.api.signed { only_value(headers, &AUTHORIZATION)? } else { None };
        match (signature, self.presented(headers)?) {
            (Some(_), Some(_)) => Err(Bypass::Credentials),
            (None, None) => Err(Bypass::NoCredential),
            (Some(_), None) => {
                let claim = Claim::read(headers.map()).ok_or(Bypass::Algorithm)?;
                let pair = self.keys.of(&claim).ok_or(Bypass::UnknownKey)?;
                Ok(Credential::Signed(claim, pair))
            }
            (None, Some(_)) if self.api.signed && value(headers, &SECURITY_TOKEN).is_some() => Err(Bypass::Credentials),
            (None, Some(credential)) => Ok(credential),
        }
    }

    /// The credential headers of a request, if it has one.
    fn presented<'r>(&self, headers: Headers<'r>) -> Result<Option<Credential<'r>>, Bypass> {
        if self.api.credentials.contains(&AUTHORIZATION)
            && let Some(authorization) = value(headers, &AUTHORIZATION)
            && !is_of_caller(authorization)
        {
            return Err(Bypass::Algorithm);
        }
        if let [name] = self.api.credentials.as_slice() {
            return Ok(only_value(headers, name)?.map(Credential::Token));
        }
        let values = self.api.credentials.iter().map(|name| only_value(headers, name));
        let values = values.collect::<Result<Vec<_>, _>>()?;
        Ok(values.iter().any(Option::is_some).then_some(Credential::Headers(values)))
    }

    /// Identifies the caller of `credential`, in a request of this head and this body, over a connection that has shown `last`.
    ///
    /// # Errors
    /// Why the request has no caller.
    pub fn identify(
        &self,
        credential: &Credential<'_>,
        last: &LastToken,
        head: &Parts,
        body: &[u8],
        now: Moment,
    ) -> Result<Identity, AuthError> {
        let identity = match credential {
            Credential::Token(token) => {
                let token = token.as_bytes();
                // Read before the caller is looked up.
                let changes = self.caller_states.changes();
                last.identity(token, self.token_key_id, changes, |known| {
                    let caller = known.unwrap_or_else(|| self.caller_of(token));
                    self.identity(caller, self.caller_states.get_or_insert(caller), None)
                })
            }
            Credential::Headers(values) => {
                let caller = self.caller_of_headers(values);
                self.identity(caller, self.caller_states.get_or_insert(caller), None)
            }
            Credential::Signed(claim, pair) => {
                let (caller, signer) = self.signed_caller(claim, pair, head, body).inspect_err(|reason| {
                    if let AuthError::Unverified(fault) = reason {
                        self.warn_of_unverified(*fault);
                    }
                })?;
                let state = self.caller_states.get_or_insert(caller);
                self.learn_user_of_key(pair, &signer, &head.headers, &state);
                self.identity(caller, state, Some(signer))
            }
        };
        Ok(self.without_expired_user(identity, now))
    }

    /// As [`Callers::identify`], but remembers nothing. Returns whether the caller is remembered.
    pub(crate) fn known(
        &self,
        credential: &Credential<'_>,
        head: &Parts,
        body: &[u8],
        now: Moment,
    ) -> Result<(Identity, bool), AuthError> {
        let (caller, signer) = match credential {
            Credential::Token(token) => (self.caller_of(token.as_bytes()), None),
            Credential::Headers(values) => (self.caller_of_headers(values), None),
            Credential::Signed(claim, pair) => {
                let (caller, signer) = self.signed_caller(claim, pair, head, body)?;
                (caller, Some(signer))
            }
        };
        let state = self.caller_states.all(caller).next();
        let is_known = state.is_some();
        // No entry is stored under version 0.
        let identity = self.identity(caller, state.unwrap_or_else(|| Arc::new(CallerState::new(0))), signer);
        Ok((self.without_expired_user(identity, now), is_known))
    }

    fn caller_of(&self, token: &[u8]) -> Caller {
        self.caller(self.by_token.with([Some(token)]))
    }

    fn caller_of_headers(&self, values: &[Option<&HeaderValue>]) -> Caller {
        let values = in_order(self.api.credentials.iter().zip(values));
        self.caller(self.by_token.with(values.map(|value| value.map(HeaderValue::as_bytes))))
    }

    /// The caller of the credential with this hash.
    fn caller(&self, credential: u128) -> Caller {
        Caller(credential ^ *self.mask)
    }

    fn signed_caller(
        &self,
        claim: &Claim<'_>,
        pair: &Arc<KeyPair>,
        head: &Parts,
        body: &[u8],
    ) -> Result<(Caller, Signer), AuthError> {
        let signer = self.verify(claim, pair, head, body)?;
        let fields = identity_fields(&signer, &head.headers);
        let fields = [Some(signer.access_key().as_bytes())].into_iter().chain(fields);
        Ok((self.caller(self.by_key.with(fields)), signer))
    }

    /// A key of which the configuration names the user is that user, as far as what is signed beside it is the same too.
    fn learn_user_of_key(&self, pair: &KeyPair, signer: &Signer, headers: &HeaderMap, state: &CallerState) {
        let Some(user) = pair.user.as_deref().filter(|_| self.cached_user(state).is_none()) else { return };
        let fields = std::iter::once(Some(user.as_bytes())).chain(identity_fields(signer, headers));
        let membership = self.membership(UserId::of("callers.keys", fields), false, Moment::NEVER);
        self.set_user(state, membership, Moment::NEVER, || true);
    }

    fn verify(&self, claim: &Claim<'_>, pair: &Arc<KeyPair>, head: &Parts, body: &[u8]) -> Result<Signer, AuthError> {
        let now = self.clock.now().unix_seconds();
        let hash = signature::hash(body);
        let (signer, payload) =
            signature::verify_whole(claim, pair, head, &hash, now).map_err(AuthError::Unverified)?;
        if made_hop_by_hop(&head.headers).any(|name| signer.covers(&name)) {
            return Err(AuthError::NamedByConnection);
        }
        // Without a body there is nothing to swap.
        if payload == signature::UNSIGNED_PAYLOAD && !body.is_empty() {
            return Err(AuthError::Bypass(Bypass::UnsignedPayload));
        }
        Ok(signer)
    }

    /// Whether `Connection` names a header that says who asks, may change the answer, or is part of every signature. Removing
    /// such a header, as `Connection` asks, would make another request.
    pub(crate) fn is_named_by_connection(&self, headers: Headers<'_>) -> bool {
        const NAMES: [HeaderName; 5] = [AUTHORIZATION, HOST, SECURITY_TOKEN, SDK_DATE, SDK_CONTENT];
        made_hop_by_hop(headers).any(|name| {
            NAMES.contains(&name) || self.secrets.contains(&name) || self.scope_headers().any(|known| *known == name)
        })
    }

    /// Whether a credential or scope header is longer than the endpoint takes. Several of one name count as one list
    /// (RFC 9110 §5.3).
    pub(crate) fn has_long_header(&self, headers: Headers<'_>) -> bool {
        // One pass tells it of most requests: each name is there once, and what is long is a token or has no limit.
        let is_short = |(name, value): (&HeaderName, &HeaderValue)| {
            value.len() <= SHORT
                || (self.secrets.first() == Some(name) && value.len() <= self.credential_bytes)
                || !self.limited.may_contain(name)
        };
        let map = headers.map();
        if map.len() == map.keys_len() && map.iter().all(is_short) {
            return false;
        }
        let is_long = |name: &HeaderName| {
            let bytes: usize = headers.get_all(name).map(|value| value.len() + ", ".len()).sum();
            bytes > header_bytes(&self.api, name) + ", ".len()
        };
        self.secrets.iter().any(is_long)
            || (headers.may_contain_any(self.scope_filter) && self.scope_headers().any(is_long))
    }

    /// The kind and the fields of a credential, from which the shared tier derives a caller's keys: other keys for each API.
    pub(crate) fn credential_fields<'r>(
        &'r self,
        credential: &Credential<'r>,
        identity: &Identity,
        headers: &'r HeaderMap,
    ) -> (&'static str, Vec<Option<&'r [u8]>>)
    where
        Self: 'r,
    {
        let api = Some(self.description.as_bytes());
        match credential {
            Credential::Signed(_, pair) => {
                let mut fields = vec![Some(pair.access_key.as_bytes()), Some(pair.secret_key.expose()), api];
                fields.extend(identity.signer.iter().flat_map(|signer| identity_fields(signer, headers)));
                ("key", fields)
            }
            Credential::Token(token) => ("token", vec![Some(token.as_bytes()), api]),
            Credential::Headers(values) => {
                ("headers", values.iter().map(|value| value.map(HeaderValue::as_bytes)).chain([api]).collect())
            }
        }
    }

    /// The same of the user that a caller is known to be.
    pub(crate) fn user_fields<'r>(&'r self, identity: &'r Identity) -> Option<(&'static str, [Option<&'r [u8]>; 2])> {
        let membership = identity.membership.as_ref()?;
        Some(("user", [Some(&membership.id.0), Some(self.description.as_bytes())]))
    }

    pub(crate) fn warn_of_unverified(&self, fault: Fault) {
        self.unverified.when_due(|suppressed| {
            events::SignatureUnverified { reason: fault.message(), suppressed }.log();
        });
    }
}

/// The values of credential headers, sorted by header name: the same order at each API.
pub(super) fn in_order<'n, T: 'n>(
    headers: impl Iterator<Item = (&'n HeaderName, &'n T)>,
) -> impl Iterator<Item = &'n T> {
    let mut headers: Vec<_> = headers.collect();
    headers.sort_unstable_by_key(|(name, _)| name.as_str());
    headers.into_iter().map(|(_, value)| value)
}

/// The signed headers that identify the caller beside the access key.
fn identity_fields<'h>(signer: &Signer, headers: &'h HeaderMap) -> [Option<&'h [u8]>; 3] {
    // A signed header occurs once.
    [SECURITY_TOKEN, DOMAIN_ID, PROJECT_ID].map(|name| {
        let is_credential = name == SECURITY_TOKEN;
        let value = headers.get(&name).filter(|value| signer.covers(&name) && !(is_credential && value.is_empty()));
        value.map(HeaderValue::as_bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_an_authorization_is_told_from_other_schemes() {
        let token = |text| bearer(&HeaderValue::from_static(text)).map(<[u8]>::to_vec);
        assert_eq!(token("Bearer abc"), Some(b"abc".to_vec()));
        assert_eq!(token("bearer  abc "), Some(b"abc".to_vec()));
        assert_eq!(token("abc"), Some(b"abc".to_vec()));
        assert_eq!(token("Basic abc"), None);
        assert_eq!(token("Bearerabc x"), None);
    }

    #[test]
    fn credentials_beside_the_token_are_part_of_its_user() {
        let api = BatchApi::preset("supabase-storage").unwrap();
        let at = |name: &str| api.credentials.iter().position(|known| known == name).unwrap();
        let user = |authorization: Option<&'static str>, key: Option<&'static str>| {
            let mut values = vec![None; api.credentials.len()];
            values[at("authorization")] = authorization.map(HeaderValue::from_static);
            values[at("apikey")] = key.map(HeaderValue::from_static);
            let credential = Credential::Headers(values.iter().map(Option::as_ref).collect());
            let token = credential.user_token(&api)?;
            assert_eq!(token.bytes(), b"t");
            Some(token.user(UserId([1; 32])))
        };
        let all = [None, Some(""), Some("k"), Some("l")].map(|key| user(Some("Bearer t"), key).unwrap());
        for (at, one) in all.iter().enumerate() {
            assert!(!all[..at].contains(one));
        }
        assert_eq!(user(None, Some("k")), None, "no token");
    }
}
