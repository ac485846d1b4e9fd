//! Finding a request's credential, and telling whose it is.

use std::sync::Arc;

use http::header::{AUTHORIZATION, HOST, ORIGIN, RANGE};
use http::request::Parts;
use http::{HeaderMap, HeaderName, HeaderValue};

use super::signature::{self, Claim, Fault, Signer};
use super::{AuthError, Bypass, Caller, Callers, Identity};
use crate::api;
use crate::config::KeyPair;
use crate::message::headers::made_hop_by_hop;
use crate::telemetry::log::events;

/// What a request shows to say who it is from.
pub enum Credential<'r> {
    /// A token: whoever has it is its caller.
    Token(&'r HeaderValue),
    /// A signature by one of the configured keys, yet to be verified.
    Signed(Claim<'r>, &'r Arc<KeyPair>),
}

/// The first value of a credential's header; an empty one counts as absent.
pub(super) fn value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Option<&'h HeaderValue> {
    headers.get_all(name).iter().find(|value| !value.is_empty())
}

/// The only value of a credential's header.
fn only_value<'h>(headers: &'h HeaderMap, name: &HeaderName) -> Result<Option<&'h HeaderValue>, Bypass> {
    let mut values = headers.get_all(name).iter().filter(|value| !value.is_empty());
    match (values.next(), values.next()) {
        (_, Some(_)) => Err(Bypass::Credentials),
        (value, None) => Ok(value),
    }
}

impl Callers {
    /// Finds the credential of a batch.
    ///
    /// # Errors
    /// Why the request cannot be anyone's batch: it is to be forwarded untouched.
    pub fn credential<'r>(&'r self, headers: &'r HeaderMap) -> Result<Credential<'r>, Bypass> {
        if headers.contains_key(ORIGIN) {
            return Err(Bypass::Origin);
        }
        if headers.contains_key(RANGE) {
            return Err(Bypass::Range);
        }
        if self.has_long_header(headers) {
            return Err(Bypass::HeaderTooLong);
        }
        match (only_value(headers, &AUTHORIZATION)?, only_value(headers, &api::TOKEN)?) {
            (Some(_), Some(_)) => Err(Bypass::Credentials),
            (None, None) => Err(Bypass::NoCredential),
            (Some(_), None) => {
                let claim = Claim::read(headers).ok_or(Bypass::Algorithm)?;
                let pair = self.keys.of(&claim).ok_or(Bypass::UnknownKey)?;
                Ok(Credential::Signed(claim, pair))
            }
            (None, Some(_)) if value(headers, &api::SECURITY_TOKEN).is_some() => Err(Bypass::Credentials),
            (None, Some(token)) => Ok(Credential::Token(token)),
        }
    }

    /// Who shows `credential` in a request of this head and this body.
    ///
    /// # Errors
    /// Why that is nobody.
    pub fn identify(&self, credential: &Credential<'_>, head: &Parts, body: &[u8]) -> Result<Identity, AuthError> {
        let (caller, signer) = self.caller_of(credential, head, body).inspect_err(|reason| {
            if let AuthError::Unverified(fault) = reason {
                self.warn_of_unverified(*fault);
            }
        })?;
        Ok(Identity::new(caller, self.caller_states.of(caller), signer))
    }

    /// As [`Callers::identify`], with no trace: whoever is not remembered does not become so.
    ///
    /// # Errors
    /// As there.
    pub fn known(
        &self,
        credential: &Credential<'_>,
        head: &Parts,
        body: &[u8],
    ) -> Result<(Caller, Option<Identity>), AuthError> {
        let (caller, signer) = self.caller_of(credential, head, body)?;
        Ok((caller, self.caller_states.peek(caller).map(|caller_state| Identity::new(caller, caller_state, signer))))
    }

    /// Whom a token shows, if the endpoint has once accepted it and it is remembered.
    pub fn accepted(&self, token: &HeaderValue) -> Option<Identity> {
        let caller = self.caller_by_token(token);
        Some(Identity::new(caller, self.caller_states.accepted.get(&caller)?, None))
    }

    fn caller_by_token(&self, token: &HeaderValue) -> Caller {
        let mut hash = self.by_token;
        hash.field(token.as_bytes());
        Caller(hash.finish())
    }

    fn caller_of(
        &self,
        credential: &Credential<'_>,
        head: &Parts,
        body: &[u8],
    ) -> Result<(Caller, Option<Signer>), AuthError> {
        match credential {
            Credential::Token(token) => Ok((self.caller_by_token(token), None)),
            Credential::Signed(claim, pair) => {
                let signer = self.verify(claim, pair, head, body)?;
                let mut hash = self.by_key;
                hash.field(signer.access_key().as_bytes());
                for field in identity_fields(&signer, &head.headers) {
                    match field {
                        Some(value) => hash.field(value),
                        None => hash.absent(),
                    }
                }
                Ok((Caller(hash.finish()), Some(signer)))
            }
        }
    }

    fn verify(&self, claim: &Claim<'_>, pair: &Arc<KeyPair>, head: &Parts, body: &[u8]) -> Result<Signer, AuthError> {
        let now = self.clock.now().unix_seconds();
        let (signer, payload) = signature::verify_whole(claim, pair, head, body, now).map_err(AuthError::Unverified)?;
        if made_hop_by_hop(&head.headers).any(|name| signer.covers(&name)) {
            return Err(AuthError::NamedByConnection);
        }
        // Without a body there is nothing that could have been swapped.
        if payload == signature::UNSIGNED_PAYLOAD && !body.is_empty() {
            return Err(AuthError::Bypass(Bypass::UnsignedPayload));
        }
        Ok(signer)
    }

    /// Whether `Connection` names a header that says who asks, may change the answer, or is part of every signature. Such a
    /// header is meant for the endpoint; if it were removed as `Connection` asks, the request would be another one.
    pub fn is_named_by_connection(&self, headers: &HeaderMap) -> bool {
        const NAMES: [HeaderName; 6] =
            [AUTHORIZATION, HOST, api::TOKEN, api::SECURITY_TOKEN, api::SDK_DATE, api::SDK_CONTENT];
        made_hop_by_hop(headers).any(|name| NAMES.contains(&name) || self.is_scope_header(&name))
    }

    /// Whether a credential or scope header is longer than the endpoint takes it. Several of one name count as the one list
    /// that they stand for (RFC 9110 §5.3).
    pub fn has_long_header(&self, headers: &HeaderMap) -> bool {
        let credentials = [api::TOKEN, api::SECURITY_TOKEN];
        credentials.iter().chain(&self.scope_headers).any(|name| {
            let bytes: usize = headers.get_all(name).iter().map(|value| value.len() + ", ".len()).sum();
            bytes.saturating_sub(", ".len()) > api::header_bytes(name)
        })
    }

    /// What a credential is made up of, for those who must know it again elsewhere: its kind, and its fields.
    pub fn made_up_of<'r>(
        &self,
        credential: &Credential<'r>,
        requester: &Identity,
        headers: &'r HeaderMap,
    ) -> (&'static str, Vec<Option<&'r [u8]>>)
    where
        Self: 'r,
    {
        match (credential, &requester.signer) {
            (Credential::Signed(_, pair), Some(signer)) => {
                let mut fields = vec![Some(pair.access_key.as_bytes()), Some(pair.secret_key.expose())];
                fields.extend(identity_fields(signer, headers));
                ("key", fields)
            }
            (Credential::Signed(_, pair), None) => ("key", vec![Some(pair.access_key.as_bytes())]),
            (Credential::Token(token), _) => ("token", vec![Some(token.as_bytes())]),
        }
    }

    /// Says, seldom, that a signature by a configured key does not verify.
    pub fn warn_of_unverified(&self, fault: Fault) {
        self.unverified.when_due(|suppressed| {
            events::SignatureUnverified { reason: fault.message(), suppressed }.log();
        });
    }
}

/// What is signed beside the access key to say who asks.
fn identity_fields<'h>(signer: &Signer, headers: &'h HeaderMap) -> [Option<&'h [u8]>; 3] {
    // Once at most: a header that is signed is there once.
    [api::SECURITY_TOKEN, api::DOMAIN_ID, api::PROJECT_ID].map(|name| {
        let is_credential = name == api::SECURITY_TOKEN;
        let value = headers.get(&name).filter(|value| signer.covers(&name) && !(is_credential && value.is_empty()));
        value.map(HeaderValue::as_bytes)
    })
}
