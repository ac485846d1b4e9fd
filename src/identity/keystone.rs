//! Introspection as Keystone and Huawei's IAM have it: `GET /v3/auth/tokens`.
//!
//! All of the answer's `token` makes a user, but for what is different in each token or says how it was made; so tokens of another
//! project, of fewer roles, of an assumed role or a restricted application credential stay apart.

use bytes::Bytes;
use http::header::{ACCEPT, CACHE_CONTROL};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use jiff::Timestamp;
use serde_json::value::RawValue;

use super::digest::{NotCanonical, UserDigest};
use super::requests::{TokenAnswer, sensitive};
use crate::api::TOKEN;
use crate::config::batch::Pointer;
use crate::config::{Secret, Url};
use crate::message::json::{Members, find_set, member, members, string};

const SUBJECT: HeaderName = HeaderName::from_static("x-subject-token");
/// Leaves out the list of services, which may be long.
const QUERY: &str = "?nocatalog=true";
/// Members of `token` that make no user.
const LEFT_OUT: [&str; 5] = ["issued_at", "expires_at", "audit_ids", "methods", "catalog"];
const ROLES: &str = "roles";

/// The request for `token`, with sidelink's `own` token or else with itself; `None` for a token that fits in no header.
pub(super) fn request(url: &Url, token: &[u8], own: Option<&Secret>) -> Option<Request<Bytes>> {
    let subject = sensitive(token)?;
    let asker = own.map_or_else(|| Some(subject.clone()), |own| sensitive(own.expose()))?;
    Request::get(format!("{url}{QUERY}"))
        .header(ACCEPT, HeaderValue::from_static("application/json"))
        .header(TOKEN, asker)
        .header(SUBJECT, subject)
        // All tokens are asked about at one URL: no cache on the way may answer for another token.
        .header(CACHE_CONTROL, HeaderValue::from_static("no-store"))
        .body(Bytes::new())
        .ok()
}

/// Reads the answer to [`request`] for `token`; `fields` make a user in place of the style's own, `now` is in Unix milliseconds.
pub(super) fn read(
    response: &Response<Bytes>,
    token: &[u8],
    has_service_token: bool,
    fields: &[Pointer],
    digest: UserDigest,
    now: u64,
) -> TokenAnswer {
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND if is_object(response.body()) => return TokenAnswer::refused(),
        StatusCode::UNAUTHORIZED if !has_service_token && is_object(response.body()) => return TokenAnswer::refused(),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN if has_service_token => {
            return TokenAnswer::refused_credentials();
        }
        other => return TokenAnswer::of_status(other),
    }
    if response.headers().get_all(SUBJECT).iter().any(|subject| subject.as_bytes() != token) {
        return TokenAnswer::unusable("it is about another token");
    }
    let Some(answer) = std::str::from_utf8(response.body()).ok().and_then(members) else {
        return TokenAnswer::unusable("it is no JSON object");
    };
    read_answer(&answer, fields, digest, now)
}

/// Whether a body is a JSON object: an error of the provider, and not a page of a gateway on the way.
fn is_object(body: &[u8]) -> bool {
    std::str::from_utf8(body).ok().and_then(members).is_some()
}

fn read_answer(answer: &Members<'_>, fields: &[Pointer], mut digest: UserDigest, now: u64) -> TokenAnswer {
    let Some(token) = member(answer, "token").and_then(|token| members(token.get())) else {
        return TokenAnswer::unusable("it has no object \"token\"");
    };
    let Some(user) = member(&token, "user").and_then(|user| members(user.get())) else {
        return TokenAnswer::unusable("its token has no object \"user\"");
    };
    let ends = member(&token, "expires_at").and_then(string).and_then(|text| text.parse::<Timestamp>().ok());
    let Some(ends) = ends.map(|ends| u64::try_from(ends.as_millisecond()).unwrap_or(0)) else {
        return TokenAnswer::unusable("its token has no time in \"expires_at\"");
    };
    if fields.is_empty() {
        if member(&user, "id").and_then(string).is_none_or(|id| id.is_empty()) {
            return TokenAnswer::incomplete("/token/user/id");
        }
        let mut own: Vec<_> = token.iter().filter(|(name, _)| !LEFT_OUT.contains(&&**name)).collect();
        own.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        for (name, value) in own {
            if field(&mut digest, name, value, name == ROLES).is_err() {
                // Its name is not repeated: it is a text of the answer.
                return TokenAnswer::incomplete("a member of token");
            }
        }
    }
    for pointer in fields {
        let found = find_set(answer, pointer).ok_or(NotCanonical);
        let is_roles = pointer.tokens().iter().map(AsRef::as_ref).eq(["token", ROLES]);
        let added = found.and_then(|value| field(&mut digest, &pointer.to_string(), value, is_roles));
        if added.is_err() {
            return TokenAnswer::incomplete(&pointer.to_string());
        }
    }
    TokenAnswer::user(digest.finish(), Some(ends), now)
}

fn field(digest: &mut UserDigest, name: &str, value: &RawValue, is_set: bool) -> Result<(), NotCanonical> {
    if is_set { digest.set(name, value) } else { digest.field(name, Some(value)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_answered_by_no_cache_and_shows_its_tokens_in_no_debug_output() {
        let url = Url::parse("https://iam/v3/auth/tokens").unwrap();
        let request = request(&url, b"marked", None).unwrap();
        assert_eq!(request.headers()[CACHE_CONTROL], "no-store");
        assert_eq!(
            (&request.headers()[TOKEN], &request.headers()[SUBJECT]),
            (&"marked".parse().unwrap(), &"marked".parse().unwrap())
        );
        assert!(!format!("{request:?}").contains("marked"));
    }
}
