//! Learns whose a batch's token is, where `[callers.identity]` says who is to be asked.
//!
//! A token of which nothing is known waits for the answer; before what is known is no longer good, it is renewed in the background.

use std::sync::Arc;

use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderValue};
use zeroize::Zeroizing;

use super::{Asker, BatchRoute};
use crate::api::BatchApi;
use crate::auth::{Credential, Due, UserId, Word};
use crate::clock::Moment;
use crate::identity::Identities;

/// A token that somebody may be asked about, and the credentials beside it, which are part of who asks.
struct Token {
    token: Zeroizing<Vec<u8>>,
    beside: Zeroizing<Vec<u8>>,
}

impl Token {
    /// The token of a credential: the header's value, without the scheme `Bearer` (RFC 6750 §2.1).
    fn of(credential: &Credential<'_>, api: &BatchApi) -> Option<Self> {
        let at = |name, value: &HeaderValue| {
            let value = value.as_bytes();
            if name == AUTHORIZATION { bearer(value) } else { Some(value) }.map(|token| Zeroizing::new(token.to_vec()))
        };
        match credential {
            Credential::Token(value) => {
                let token = at(api.credentials.first()?, value)?;
                Some(Self { token, beside: Zeroizing::default() })
            }
            Credential::Headers(values) => {
                let mut token = None;
                let mut beside = Zeroizing::new(Vec::new());
                for (name, value) in api.credentials.iter().zip(values) {
                    match value {
                        Some(value) if name == AUTHORIZATION => token = at(name, value),
                        value => {
                            let value = value.map(HeaderValue::as_bytes);
                            // Each after its length, one more than that of an absent one.
                            let length = value.map_or(0, |value| value.len() as u64 + 1);
                            beside.extend_from_slice(&length.to_be_bytes());
                            beside.extend_from_slice(value.unwrap_or_default());
                        }
                    }
                }
                Some(Self { token: token?, beside })
            }
            Credential::Signed(..) => None,
        }
    }

    /// Asks whose the token is.
    async fn ask(&self, identities: &Identities, was_accepted: bool) -> Word {
        match identities.ask(&self.token, was_accepted).await {
            Word::User { id, ends, is_live } if !self.beside.is_empty() => {
                let id = UserId::of("credentials beside the token", [&id.0[..], &self.beside]);
                Word::User { id, ends, is_live }
            }
            word => word,
        }
    }
}

/// The token of an `Authorization`, if it is of the scheme `Bearer`, or a token alone.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    match value.iter().position(|byte| *byte == b' ') {
        None => Some(value),
        Some(space) => {
            let (scheme, token) = value.split_at(space);
            scheme.eq_ignore_ascii_case(b"Bearer").then(|| token.trim_ascii())
        }
    }
}

impl BatchRoute {
    /// Whether somebody has to be asked whose the token is, before its batch is looked up. Renews, in the background, what is about to be
    /// no longer good.
    pub(super) fn must_ask(&self, (credential, identity): &Asker<'_>, now: Moment) -> bool {
        let Some(identities) = &self.identities else { return false };
        match self.callers.due(identity, now) {
            Due::Nothing => false,
            Due::Word => Token::of(credential, &self.api).is_some(),
            Due::Renewal => {
                if let Some(token) = Token::of(credential, &self.api) {
                    self.callers.renews(identity, now);
                    let (identities, callers) = (Arc::clone(identities), Arc::clone(&self.callers));
                    let identity = identity.clone();
                    tokio::spawn(async move {
                        let word = token.ask(&identities, true).await;
                        callers.learn(&identity, word, now);
                    });
                }
                false
            }
        }
    }

    /// Asks whose the token is, and remembers the answer.
    pub(super) async fn ask(&self, (credential, identity): &Asker<'_>) {
        let (Some(identities), Some(token)) = (&self.identities, Token::of(credential, &self.api)) else { return };
        if let Some(tier) = self.fetch.tier() {
            let none = HeaderMap::new();
            let (kind, fields) = self.callers.credential_fields(credential, identity, &none);
            tier.introduce(identity, (kind, &fields), &self.api.name);
            if !self.callers.is_current(identity) {
                return;
            }
        }
        let asked = self.clock.now();
        let word = token.ask(identities, identity.is_accepted()).await;
        self.callers.learn(identity, word, asked);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_token_of_an_authorization_is_told_from_other_schemes() {
        assert_eq!(bearer(b"Bearer abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"bearer  abc "), Some(&b"abc"[..]));
        assert_eq!(bearer(b"abc"), Some(&b"abc"[..]));
        assert_eq!(bearer(b"Basic abc"), None);
        assert_eq!(bearer(b"Bearerabc x"), None);
    }

    #[test]
    fn credentials_beside_the_token_are_part_of_who_asks() {
        let api = BatchApi::preset("supabase-storage").unwrap();
        let token = |values: &[Option<&'static str>]| {
            let values: Vec<_> = values.iter().map(|value| value.map(HeaderValue::from_static)).collect();
            Token::of(&Credential::Headers(values.iter().map(Option::as_ref).collect()), &api)
        };
        let at = |name: &str| api.credentials.iter().position(|known| known == name).unwrap();
        let with = |key: Option<&'static str>| {
            let mut values = vec![None; api.credentials.len()];
            values[at("authorization")] = Some("Bearer t");
            values[at("apikey")] = key;
            token(&values).unwrap()
        };
        let all = [with(None), with(Some("")), with(Some("k")), with(Some("l"))];
        for (at, one) in all.iter().enumerate() {
            assert_eq!(**one.token, *b"t");
            assert!(all[..at].iter().all(|other| other.beside != one.beside));
        }
        let mut alone = vec![None; api.credentials.len()];
        alone[at("apikey")] = Some("k");
        assert!(token(&alone).is_none(), "no token");
    }
}
