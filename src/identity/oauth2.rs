//! OAuth 2.0 Token Introspection (RFC 7662).
//!
//! `sub`, `client_id` and `scope` make a user, with `iss`, `aud` and what restricts a token further where they are there. RFC 7662
//! requires none of them: an answer without one of the first three keeps its token apart.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use serde_json::value::RawValue;
use zeroize::Zeroizing;

use super::digest::{NotCanonical, UserDigest};
use super::requests::{TokenAnswer, sensitive};
use crate::config::batch::Pointer;
use crate::config::{IdentityConfig, Url};
use crate::message::json::{find_set, member, members, string};

/// What makes a user, in the order of their names; whether it has to be there.
const FIELDS: [(&str, bool); 8] = [
    ("act", false),
    ("aud", false),
    ("authorization_details", false),
    ("client_id", true),
    ("cnf", false),
    ("iss", false),
    (SCOPE, true),
    ("sub", true),
];
const SCOPE: &str = "scope";
/// What stays as it is in application/x-www-form-urlencoded.
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'*').remove(b'-').remove(b'.').remove(b'_');

/// The value of `Authorization` with which sidelink asks: Basic by RFC 6749 §2.3.1, or Bearer.
pub(super) fn authorization(config: &IdentityConfig) -> Option<HeaderValue> {
    if let Some(token) = &config.token_file {
        return sensitive(&Zeroizing::new([b"Bearer ", token.secret.expose()].concat()));
    }
    let client = config.client_file.as_ref()?.secret.expose();
    let colon = client.iter().position(|byte| *byte == b':')?;
    let (id, secret) = (client.get(..colon)?, client.get(colon + 1..)?);
    let pair = Zeroizing::new(format!("{}:{}", percent_encode(id, FORM), percent_encode(secret, FORM)));
    sensitive(Zeroizing::new(format!("Basic {}", STANDARD.encode(pair.as_bytes()))).as_bytes())
}

/// The request for `token`.
pub(super) fn request(url: &Url, token: &[u8], authorization: &HeaderValue) -> Option<Request<Bytes>> {
    if token.is_empty() {
        return None;
    }
    Request::post(url.uri())
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))
        .body(format!("token={}", percent_encode(token, FORM)).into())
        .ok()
}

/// Reads the answer to [`request`]; `fields` make a user in place of the style's own, `now` is in Unix milliseconds.
pub(super) fn read(response: &Response<Bytes>, fields: &[Pointer], mut digest: UserDigest, now: u64) -> TokenAnswer {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => return TokenAnswer::refused_credentials(),
        other => return TokenAnswer::of_status(other),
    }
    let Some(answer) = std::str::from_utf8(response.body()).ok().and_then(members) else {
        return TokenAnswer::unusable("it is no JSON object");
    };
    match member(&answer, "active").map(RawValue::get) {
        Some("true") => {}
        Some("false") => return TokenAnswer::refused(),
        _ => return TokenAnswer::unusable("it does not say whether the token is active"),
    }
    let ends = match member(&answer, "exp").filter(|exp| exp.get() != "null").map(numeric_date) {
        Some(None) => return TokenAnswer::unusable("its \"exp\" is no time"),
        ends => ends.flatten(),
    };
    let added = if fields.is_empty() {
        FIELDS.into_iter().try_for_each(|(name, is_needed)| {
            let value = member(&answer, name).filter(|value| value.get() != "null");
            let is_usable = value.map_or(!is_needed, |value| {
                !is_needed || string(value).is_some_and(|text| !text.is_empty() || name == SCOPE)
            });
            let added = if is_usable { field(&mut digest, name, value, name == SCOPE) } else { Err(NotCanonical) };
            added.map_err(|NotCanonical| format!("/{name}"))
        })
    } else {
        fields.iter().try_for_each(|pointer| {
            let is_scope = pointer.tokens().iter().map(AsRef::as_ref).eq([SCOPE]);
            let found = find_set(&answer, pointer).ok_or(NotCanonical);
            let added = found.and_then(|value| field(&mut digest, &pointer.to_string(), Some(value), is_scope));
            added.map_err(|NotCanonical| pointer.to_string())
        })
    };
    match added {
        Ok(()) => TokenAnswer::user(digest.finish(), ends, now),
        Err(field) => TokenAnswer::incomplete(&field),
    }
}

fn field(digest: &mut UserDigest, name: &str, value: Option<&RawValue>, is_words: bool) -> Result<(), NotCanonical> {
    match value {
        Some(value) if is_words => digest.words(name, value),
        value => digest.field(name, value),
    }
}

/// A NumericDate (RFC 7519 §2) in Unix milliseconds: seconds, of which a fraction is cut off.
pub(super) fn numeric_date(value: &RawValue) -> Option<u64> {
    let (seconds, fraction) = value.get().split_once('.').unwrap_or((value.get(), "0"));
    let is_number = [seconds, fraction].iter().all(|digits| digits.bytes().all(|byte| byte.is_ascii_digit()));
    is_number.then(|| seconds.parse::<u64>().ok()?.checked_mul(1000))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Secret, StoredSecret};

    #[test]
    fn client_credentials_are_encoded_before_they_are_basic() {
        let file = |text: &str| Some(StoredSecret { secret: Secret::new(text.into()), source: "file".into() });
        let mut config = IdentityConfig::blank();
        config.client_file = file("my client:p:ss%+/~*-._");
        let value = authorization(&config).unwrap();
        assert!(value.is_sensitive());
        let basic = value.to_str().unwrap().strip_prefix("Basic ").unwrap();
        let pair = String::from_utf8(STANDARD.decode(basic).unwrap()).unwrap();
        assert_eq!(pair, "my%20client:p%3Ass%25%2B%2F%7E*-._");
        config.token_file = file("own");
        assert_eq!(authorization(&config).unwrap(), "Bearer own");
    }

    #[test]
    fn the_token_is_encoded_in_the_form() {
        let url = Url::parse("https://iam/introspect").unwrap();
        let request = request(&url, b"MII+a/b=&token=x%\xe9", &HeaderValue::from_static("Basic x")).unwrap();
        assert_eq!(request.body(), "token=MII%2Ba%2Fb%3D%26token%3Dx%25%E9");
    }
}
