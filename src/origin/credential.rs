//! Who calls the simulated endpoint.

use http::HeaderMap;
use http::header::AUTHORIZATION;

use crate::api;

const SIGNED: &str = "SDK-HMAC-SHA256 ";

/// What a call shows for itself. It is also what the call's links are made for.
pub(super) enum Credential<'a> {
    /// An IAM token.
    Token(&'a str),
    /// The access key that says it signed the request. Nobody has checked that: a verifier belongs where
    /// [`Credential::of`] makes this variant, and turns a bad signature into `None`.
    Unverified(&'a str),
}

impl<'a> Credential<'a> {
    /// Reads the credential of a request; an `X-Auth-Token` goes before a signature. `None`: not authenticated.
    pub(super) fn of(headers: &'a HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        if let Some(token) = text(api::TOKEN).filter(|token| !token.is_empty()) {
            return Some(Self::Token(token));
        }
        let fields = text(AUTHORIZATION)?.strip_prefix(SIGNED)?;
        let access_key = fields.split(',').find_map(|field| field.trim().strip_prefix("Access="));
        Some(Self::Unverified(access_key.unwrap_or("")))
    }

    /// Its text: the token or the access key.
    pub(super) fn text(&self) -> &'a str {
        match self {
            Self::Token(text) | Self::Unverified(text) => text,
        }
    }
}
