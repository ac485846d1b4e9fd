//! Reads requests. Parsing shares no code with the proxy, so that it cannot share its mistakes.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::interface;
use crate::api::request::Form;
use crate::auth::signature::{self, Claim, Keys};
use crate::config::KeyPair;

pub(super) struct ParsedCall {
    pub(super) ids: Vec<String>,
    pub(super) group: Option<String>,
    pub(super) form: Form,
}

/// Reads a call on the batch route of `most` ids at most.
///
/// # Errors
/// The reason why it is not one.
pub(super) fn parse(parts: &Parts, body: &[u8], most: usize) -> Result<ParsedCall, &'static str> {
    let query = parts.uri.query().unwrap_or("");
    let call = match (query.is_empty(), body.is_empty()) {
        (false, true) => parse_query(query)?,
        (true, false) => parse_body(parts, body)?,
        (false, false) => return Err("parameters in both query and body"),
        (true, true) => return Err("accessory_ids is mandatory"),
    };
    let fits = |text: &str, most: usize| (1..=most).contains(&text.chars().count());
    if call.ids.is_empty() || call.ids.len() > most {
        return Err("accessory_ids has no items, or too many");
    }
    if !call.ids.iter().all(|id| fits(id, interface::ID_CHARS)) {
        return Err("an accessory id takes 1 to 64 characters");
    }
    if call.group.as_deref().is_some_and(|group| !fits(group, interface::GROUP_CHARS)) {
        return Err("group_id takes 1 to 32 characters");
    }
    Ok(call)
}

fn parse_query(query: &str) -> Result<ParsedCall, &'static str> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(String::from).map_err(|_| "a parameter is not UTF-8")
    };
    let (mut raw, mut group) = (Vec::new(), None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match decode(name)?.as_str() {
            interface::IDS => raw.push(value),
            interface::GROUP => group = Some(decode(value)?),
            _ => {}
        }
    }
    let (form, values) = match raw.as_slice() {
        [only] if only.contains(',') => (Form::Comma, only.split(',').collect()),
        _ => (Form::Repeated, raw),
    };
    let ids = values.into_iter().map(decode).collect::<Result<_, _>>()?;
    Ok(ParsedCall { ids, group, form })
}

fn parse_body(parts: &Parts, body: &[u8]) -> Result<ParsedCall, &'static str> {
    #[derive(Deserialize)]
    struct BodyFields {
        accessory_ids: Vec<String>,
        group_id: Option<String>,
    }
    // A body without a type is read as JSON.
    let media_type = parts.headers.get(CONTENT_TYPE).map_or(Ok("application/json"), |value| value.to_str());
    let media_type = media_type.ok().and_then(|value| value.split(';').next()).unwrap_or("");
    let is_json = media_type.trim().eq_ignore_ascii_case("application/json");
    if !is_json || parts.headers.contains_key(CONTENT_ENCODING) {
        return Err("the body is not JSON");
    }
    // A map first: a struct could also be read from an array of its fields.
    let fields: Value = serde_json::from_slice(body).map_err(|_| "the body is not JSON")?;
    let fields = Map::deserialize(fields).and_then(|fields| BodyFields::deserialize(Value::Object(fields)));
    let BodyFields { accessory_ids, group_id } = fields.map_err(|_| "the body is not as documented")?;
    Ok(ParsedCall { ids: accessory_ids, group: group_id, form: Form::Body })
}

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
    token(head).map_or_else(|| access_key(head, hash, pairs, now)?.ok_or(NONE), Ok)
}

/// The token of a request, if it has one.
pub(super) fn token(head: &Parts) -> Option<&str> {
    head.headers.get(interface::TOKEN)?.to_str().ok().filter(|token| !token.is_empty())
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
