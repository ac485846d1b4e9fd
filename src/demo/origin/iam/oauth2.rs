//! OAuth 2.0: tokens for clients (RFC 6749 §4.4), introspection (RFC 7662), and the key set (RFC 7517) by which JSON Web Tokens are
//! verified.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderName, HeaderValue, Response, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::grant::{ACCOUNT, Grant};
use super::{Behaviour, CLIENT, Iam, Issued, JwtAlgorithm, LIFE};

pub(super) const INTROSPECT: &str = "/oauth2/introspect";
pub(super) const TOKEN: &str = "/oauth2/token";
pub(super) const KEYS: &str = "/jwks.json";
const FORM: &str = "application/x-www-form-urlencoded";

/// The token that an introspection is about.
pub(super) fn subject(body: &[u8]) -> Option<String> {
    field(body, "token").filter(|token| !token.is_empty())
}

/// `POST /oauth2/token`, for a client with any name and secret: issues a JSON Web Token with the scope that the client asks for.
pub(super) fn issue(iam: &Iam, parts: &Parts, body: &[u8]) -> Response<String> {
    let basic = header(parts, AUTHORIZATION).split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("basic"));
    let decoded = basic.and_then(|(_, secret)| String::from_utf8(STANDARD.decode(secret).ok()?).ok());
    let Some((user, _)) = decoded.as_deref().and_then(|secret| secret.split_once(':')) else {
        return unauthorized();
    };
    if field(body, "grant_type").as_deref() != Some("client_credentials") {
        return error(400, "unsupported_grant_type");
    }
    let scope = field(body, "scope").unwrap_or_default();
    let grant = Grant { project: None, ..Grant::new(user, "", &scope.split_whitespace().collect::<Vec<_>>()) };
    let token = iam.issue_jwt(grant, LIFE, JwtAlgorithm::Es256);
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": LIFE.as_secs(), "scope": scope});
    Response::new(answer.to_string())
}

/// `POST /oauth2/introspect`, for [`CLIENT`] or the bearer of a token that lives (RFC 7662 §2.1).
pub(super) fn introspect(iam: &Iam, behaviour: &Behaviour, parts: &Parts, body: &[u8]) -> Response<String> {
    let is_allowed = match header(parts, AUTHORIZATION).split_once(' ') {
        Some((scheme, secret)) if scheme.eq_ignore_ascii_case("basic") => {
            secret == STANDARD.encode(format!("{CLIENT}:{}", iam.client_secret()))
        }
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => iam.token(token).is_some(),
        _ => false,
    };
    if !is_allowed {
        return unauthorized();
    }
    let media_type = header(parts, CONTENT_TYPE).split(';').next().unwrap_or_default();
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

/// The claims of a token (RFC 7519 §4.1; `client_id` and `scope` as RFC 9068 §2.2 has them). The roles are its scope.
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

fn header(parts: &Parts, name: HeaderName) -> &str {
    parts.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// A field of a form.
fn field(body: &[u8], name: &str) -> Option<String> {
    let pairs = std::str::from_utf8(body).ok()?.split('&').filter_map(|pair| pair.split_once('='));
    let encoded = pairs.into_iter().find(|(known, _)| *known == name)?.1.replace('+', " ");
    Some(percent_decode_str(&encoded).decode_utf8().ok()?.into_owned())
}

/// A client that is not known (RFC 6749 §5.2, RFC 7662 §2.3).
fn unauthorized() -> Response<String> {
    let mut response = error(401, "invalid_client");
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"simulated\""));
    response
}

fn error(status: u16, code: &str) -> Response<String> {
    let mut response = Response::new(json!({"error": code}).to_string());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}
