//! What a call asks for: a reader of its own, so that it cannot share the proxy's mistakes.

use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::Value;

use crate::api;
use crate::api::request::Form;

/// What a call asks for.
pub(super) struct Asked {
    pub(super) ids: Vec<String>,
    pub(super) group: Option<String>,
    pub(super) form: Form,
}

/// Reads a call on the batch route of `most` ids at most; if it is none, says why.
pub(super) fn read(parts: &Parts, body: &[u8], most: usize) -> Result<Asked, &'static str> {
    let query = parts.uri.query().unwrap_or("");
    let asked = match (query.is_empty(), body.is_empty()) {
        (false, true) => read_query(query)?,
        (true, false) => read_body(parts, body)?,
        (false, false) => return Err("parameters in both query and body"),
        (true, true) => return Err("accessory_ids is mandatory"),
    };
    let length = |text: &str, most: usize| (1..=most).contains(&text.chars().count());
    if asked.ids.is_empty() || asked.ids.len() > most {
        return Err("accessory_ids has no items, or too many");
    }
    if !asked.ids.iter().all(|id| length(id, api::ID_CHARS)) {
        return Err("an accessory id takes 1 to 64 characters");
    }
    if asked.group.as_deref().is_some_and(|group| !length(group, api::GROUP_CHARS)) {
        return Err("group_id takes 1 to 32 characters");
    }
    Ok(asked)
}

fn read_query(query: &str) -> Result<Asked, &'static str> {
    let decode = |text: &str| {
        let spaced = text.replace('+', " ");
        percent_decode_str(&spaced).decode_utf8().map(String::from).map_err(|_| "a parameter is not UTF-8")
    };
    let (mut raw, mut group) = (Vec::new(), None);
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        match decode(name)?.as_str() {
            api::IDS => raw.push(value),
            api::GROUP => group = Some(decode(value)?),
            _ => {}
        }
    }
    let (form, values) = match raw.as_slice() {
        [only] if only.contains(',') => (Form::Comma, only.split(',').collect()),
        _ => (Form::Repeated, raw),
    };
    let ids = values.into_iter().map(decode).collect::<Result<_, _>>()?;
    Ok(Asked { ids, group, form })
}

fn read_body(parts: &Parts, body: &[u8]) -> Result<Asked, &'static str> {
    #[derive(Deserialize)]
    struct Fields {
        accessory_ids: Vec<String>,
        group_id: Option<String>,
    }
    if !is_json(parts) {
        return Err("the body is not JSON");
    }
    let fields: Value = serde_json::from_slice(body).map_err(|_| "the body is not JSON")?;
    // An array would do for a struct's fields in their order.
    let fields = if fields.is_object() { Fields::deserialize(fields).ok() } else { None };
    let Fields { accessory_ids, group_id } = fields.ok_or("the body is not as documented")?;
    Ok(Asked { ids: accessory_ids, group: group_id, form: Form::Body })
}

/// A body with no type at all is taken for JSON.
fn is_json(parts: &Parts) -> bool {
    let Some(value) = parts.headers.get(CONTENT_TYPE) else {
        return !parts.headers.contains_key(CONTENT_ENCODING);
    };
    let media_type = value.to_str().ok().and_then(|value| value.split(';').next()).unwrap_or("");
    media_type.trim().eq_ignore_ascii_case("application/json") && !parts.headers.contains_key(CONTENT_ENCODING)
}
