//! Why an answer is not as its API is described.

use std::collections::HashSet;

use serde_json::value::RawValue;

use super::{has_error, items_of, list_of, text_of};
use crate::api::json;
use crate::api::{BatchApi, id};

/// The first thing for which [`super::read`] does not take `body` for an answer about `ids`; `None` if it takes it. The text names keys
/// of `[[batch]]`, and nothing of the answer.
pub fn misfit(api: &BatchApi, body: &[u8], ids: &[&str]) -> Option<String> {
    let Ok(whole) = serde_json::from_slice::<&RawValue>(text_of(body)) else {
        return Some("it is not JSON, or is cut short".to_owned());
    };
    let kind = if api.items.key.is_some() { "list" } else { "object" };
    let Some(list) = list_of(api, whole) else {
        let code = api.errors.code.as_ref().and_then(|code| json::find(whole, code)).map(RawValue::get);
        return Some(match code {
            Some("true" | "false") => "it has true or false at errors.code, and so has every answer: a flag is no code; say in errors.unless what it is where all is well".to_owned(),
            Some(code) if code != "null" => "it has an error at errors.code".to_owned(),
            _ if has_error(api, whole) => "it has another value than errors.unless says".to_owned(),
            _ => format!("it has no {kind} at items.at"),
        });
    };
    let Some(items) = items_of(api, list) else {
        return Some(format!("the {kind} at items.at has a name twice"));
    };
    let (mut known, mut seen) = (HashSet::new(), HashSet::new());
    for readings in ids.iter().map(|id| id::readings(id)) {
        known.extend(readings);
    }
    for (at, item) in items.into_iter().enumerate() {
        let at = at + 1;
        let Some((id, _)) = item.and_then(|item| item.read(api)) else {
            return Some(format!("item {at} has no id at items.key"));
        };
        if !known.contains(&id) {
            return Some(format!("item {at} is for an id that was not asked for"));
        }
        if !seen.insert(id) {
            return Some(format!("item {at} is the second one for its id"));
        }
    }
    None
}
