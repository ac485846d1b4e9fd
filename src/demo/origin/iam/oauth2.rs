//! OAuth 2.0: introspection (RFC 7662), and the key set (RFC 7517) by which JSON Web Tokens are verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::grant::ACCOUNT;
use super::{Behaviour, CLIENT, Iam, Issued};

pub(super) const INTROSPECT: &str = "/oauth2/introspect";
pub(super) const KEYS: &str = "/jwks.json";
const FORM: &str = "application/x-www-form-urlencoded";

/// The token that an introspection is about.
pub(super) fn subject(body: &[u8]) -> Option<String> {
    let body = std::str::from_utf8(body).ok()?;
    let encoded = body.split('&').find_map(|pair| pair.strip_prefix("token="))?.replace('+', " ");
    Some(percent_decode_str(&encoded).decode_utf8().ok()?.into_owned()).filter(|token| !token.is_empty())
}

/// `POST /oauth2/introspect`, for [`CLIENT`] or the bearer of a token that lives (RFC 7662 §2.1).
pub(super) fn introspect(iam: &Iam, behaviour: &Behaviour, parts: &Parts, body: &[u8]) -> Response<String> {
    let header = |name| parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let is_allowed = match header(AUTHORIZATION).split_once(' ') {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("basic") => {
            secret == STANDARD.encode(format!("{CLIENT}:{}", iam.client_secret()))
        }
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => iam.token(token).is_some(),
        _ => false,
    };
    if !is_allowed {
        // RFC 7662 §2.3, RFC 6749 §5.2.
        let mut response = error(401, "invalid_client");
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"introspection\""));
        return response;
    }
    let media_type = header(CONTENT_TYPE).split(';').next().unwrap_or_default();
    let Some(token) = subject(body).filter(|_| media_type.trim().eq_ignore_ascii_case(FORM)) else {
        return error(400, "invalid_request");
    };
    let Some(issued) = behaviour.describe(iam, &token) else {
        // And no more than that (RFC 7662 §2.2).
        return Response::new(json!({"active": false}).to_string());
    };
    let mut answer = claims(iam, &issued);
    if let Some(members) = answer.as_object_mut() {
        members.insert("active".to_owned(), json!(true));
        members.insert("username".to_owned(), json!(issued.grant.user));
        members.insert("token_type".to_owned(), json!("Bearer"));
    }
    Response::new(answer.to_string())
}

/// What a token says of itself (RFC 7519 §4.1; `client_id` and `scope` as RFC 9068 §2.2 has them). The roles are its scope.
pub(super) fn claims(iam: &Iam, issued: &Issued) -> Value {
    let grant = &issued.grant;
    let mut claims = grant.beside.clone();
    let seconds = issued.issued / 1000;
    let account = || ACCOUNT.to_owned();
    claims.extend([
        ("iss".to_owned(), json!(iam.issuer())),
        ("sub".to_owned(), json!(grant.user_id())),
        ("aud".to_owned(), json!(grant.project.clone().unwrap_or_else(account))),
        ("client_id".to_owned(), json!(CLIENT_ID)),
        ("scope".to_owned(), json!(grant.roles.join(" "))),
        ("iat".to_owned(), json!(seconds)),
        ("nbf".to_owned(), json!(seconds)),
        ("exp".to_owned(), json!(issued.expires / 1000)),
        ("jti".to_owned(), json!(issued.serial)),
    ]);
    Value::Object(claims)
}

/// The client that tokens were issued to.
const CLIENT_ID: &str = "batch-service";

/// `GET /jwks.json`.
pub(super) fn keys(iam: &Iam) -> Response<String> {
    Response::new(iam.state().keys.public().to_string())
}

fn error(status: u16, code: &str) -> Response<String> {
    let mut response = Response::new(json!({"error": code}).to_string());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
