//! Keystone's tokens, as OpenStack and Huawei have them.
//!
//! Sources: "Validate and show information for token" and its samples in OpenStack's Identity API reference
//! (docs.openstack.org/api-ref/identity/v3); "Verifying a Token" and "Obtaining a User Token Through Password Authentication" in
//! Huawei Cloud's IAM API reference (support.huaweicloud.com/en-us/api-iam, `iam_30_0004` and `iam_30_0001`).

use http::header::{VARY, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderValue, Response, StatusCode};
use serde_json::{Value, json};

use super::grant::{ACCOUNT, Grant, id};
use super::{Behaviour, Dialect, Iam, Issued, LIFE};
use crate::clock::rfc3339;

pub(super) const TOKENS: &str = "/v3/auth/tokens";
const AUTH_TOKEN: &str = "x-auth-token";
const SUBJECT_TOKEN: &str = "x-subject-token";
/// Roles that may validate the tokens of others: Huawei's Security Administrator, and OpenStack's administrator.
const ADMINISTRATORS: [&str; 2] = ["secu_admin", "admin"];
/// The role of a token that is issued over HTTP.
const ROLE: &str = "te_admin";

/// The token that a validation is about.
pub(super) fn subject(parts: &Parts) -> Option<&str> {
    header(parts, SUBJECT_TOKEN)
}

/// `GET /v3/auth/tokens`: a token may validate itself, an administrator's any.
pub(super) fn validate(iam: &Iam, behaviour: &Behaviour, parts: &Parts) -> Response<String> {
    let Some((asker, asking)) = header(parts, AUTH_TOKEN).and_then(|token| Some((token, iam.token(token)?))) else {
        let mut response = error(401, "Unauthorized", "The request you have made requires authentication.");
        if let Ok(value) = HeaderValue::try_from(format!("Keystone uri=\"{}\"", iam.issuer())) {
            response.headers_mut().insert(WWW_AUTHENTICATE, value);
        }
        return response;
    };
    let Some(subject) = subject(parts) else {
        return error(400, "Bad Request", "X-Subject-Token is missing in the request");
    };
    let is_administrator = || asking.grant.roles.iter().any(|role| ADMINISTRATORS.contains(&role.as_str()));
    if asker != subject && !is_administrator() {
        return error(
            403,
            "Forbidden",
            "You are not authorized to perform the requested action: identity:validate_token",
        );
    }
    let Some(issued) = behaviour.describe(iam, subject) else {
        return error(404, "Not Found", "X-Subject-Token is invalid in the request");
    };
    let has_catalog = !parts.uri.query().unwrap_or_default().split('&').any(|pair| pair.starts_with("nocatalog"));
    described(iam, behaviour, behaviour.describes.as_deref().unwrap_or(subject), &issued, has_catalog)
}

/// `POST /v3/auth/tokens` with a name and any password: issues a token.
pub(super) fn authenticate(iam: &Iam, behaviour: &Behaviour, body: &[u8]) -> Response<String> {
    let request: Value = serde_json::from_slice(body).unwrap_or_default();
    let text = |place: &str| request.pointer(place).and_then(Value::as_str);
    let Some(user) = text("/auth/identity/password/user/name") else {
        return error(400, "Bad Request", "Expecting to find identity in auth.");
    };
    let project = text("/auth/scope/project/name").map(str::to_owned);
    let grant = Grant { project, ..Grant::new(user, "", &[ROLE]) };
    let token = iam.issue_grant(grant, LIFE);
    let Some(issued) = iam.token(&token) else {
        return error(500, "Internal Server Error", "The token has been revoked meanwhile.");
    };
    let mut response = described(iam, behaviour, &token, &issued, true);
    *response.status_mut() = StatusCode::CREATED;
    response
}

/// An answer that describes a token.
fn described(iam: &Iam, behaviour: &Behaviour, token: &str, issued: &Issued, has_catalog: bool) -> Response<String> {
    let grant = &issued.grant;
    let account = json!({"id": id("account", ACCOUNT), "name": ACCOUNT});
    let is_huawei = behaviour.dialect == Dialect::Huawei;
    let role = |role: &String| json!({"id": if is_huawei { "0".to_owned() } else { id("role", role) }, "name": role});
    let password_expires = if is_huawei { json!("") } else { Value::Null };
    let mut body = json!({
        "expires_at": date(issued.expires),
        "issued_at": date(issued.issued),
        "methods": ["password"],
        "roles": grant.roles.iter().map(role).collect::<Vec<_>>(),
        "user": {"domain": account, "id": grant.user_id(), "name": grant.user, "password_expires_at": password_expires},
    });
    let mut add = |name: &str, value: Value| {
        if let Some(members) = body.as_object_mut() {
            members.insert(name.to_owned(), value);
        }
    };
    match &grant.project {
        Some(project) => add("project", json!({"domain": account, "id": id("project", project), "name": project})),
        None => add("domain", account),
    }
    if has_catalog {
        let endpoint = |region: &str, url: String| {
            let id = id("endpoint", &url);
            json!({"id": id, "interface": "public", "region": region, "region_id": region, "url": url})
        };
        let identity = endpoint("*", iam.issuer());
        let storage = endpoint("cn-south-1", "https://obs.cn-south-1.myhuaweicloud.com".to_owned());
        add(
            "catalog",
            json!([
                {"endpoints": [identity], "id": id("service", "iam"), "name": "iam", "type": "iam"},
                {"endpoints": [storage], "id": id("service", "obs"), "name": "obs", "type": "object-store"},
            ]),
        );
    }
    if !is_huawei {
        add("is_domain", json!(false));
        add("audit_ids", json!([issued.serial]));
    }
    for (name, value) in &grant.beside {
        add(name, value.clone());
    }
    let mut response = Response::new(json!({"token": body}).to_string());
    if let Ok(token) = HeaderValue::from_str(token) {
        response.headers_mut().insert(SUBJECT_TOKEN, token);
    }
    response.headers_mut().insert(VARY, HeaderValue::from_static("X-Auth-Token"));
    response
}

/// An error in Keystone's form.
pub(super) fn error(status: u16, title: &str, message: &str) -> Response<String> {
    let body = json!({"error": {"code": status, "message": message, "title": title}});
    let mut response = Response::new(body.to_string());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

/// With six digits of a second, as both have it: `2026-11-24T15:17:07.250000Z`.
fn date(unix_millis: u64) -> String {
    let seconds = rfc3339(unix_millis / 1000 * 1000);
    format!("{}.{:03}000Z", seconds.trim_end_matches('Z'), unix_millis % 1000)
}

fn header<'p>(parts: &'p Parts, name: &str) -> Option<&'p str> {
    parts.headers.get(name)?.to_str().ok().filter(|value| !value.is_empty())
}
